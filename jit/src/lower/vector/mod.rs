//! Hot vector and scalar floating-point instructions as CLIF operations.
//!
//! A vector register is two I8X16 halves; 256-bit instructions work on both, VEX.128 ones clear the high half,
//! legacy SSE ones keep it. The host's MXCSR is the guest's while guest code runs, so rounding, denormals and
//! sticky flags are the hardware's own. What is not lowered here runs as a native thunk in the interpreter.

mod float;
mod int;
mod moves;
mod shuffle;

use super::Lower;
use cranelift_codegen::ir::{ConstantData, InstBuilder, MemFlagsData, Type, Value, types};
use iced_x86::{
    Decoder, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory, OpAccess, OpKind,
    Register,
};
use sevlab_cpu::builder::Builder;
use sevlab_cpu::insn::{Insn, Op};

/// Registers that an instruction uses (reads or writes) and writes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Uses {
    pub gprs: u16,
    pub gprs_out: u16,
    pub vecs: u16,
    pub vecs_out: u16,
    pub highs: u16,
    pub highs_out: u16,
    /// Read before they are written as a whole.
    pub gprs_in: u16,
    pub vecs_in: u16,
    pub highs_in: u16,
    /// Written as a whole, whatever happens (unless the instruction does not complete).
    pub gprs_killed: u16,
    pub vecs_killed: u16,
    pub highs_killed: u16,
    /// Vector registers (their lower and upper halves) whose value is really computed with, before anything writes to them.
    pub vecs_read: u16,
    pub highs_read: u16,
    /// Writes (or may write) arithmetic flags.
    pub flags: bool,
    /// Reads arithmetic flags.
    pub reads_flags: bool,
}

impl Uses {
    const ALL: Self = Self {
        gprs: !0,
        gprs_out: !0,
        vecs: !0,
        vecs_out: !0,
        highs: !0,
        highs_out: !0,
        gprs_in: !0,
        vecs_in: !0,
        highs_in: !0,
        gprs_killed: 0,
        vecs_killed: 0,
        highs_killed: 0,
        vecs_read: !0,
        highs_read: !0,
        flags: true,
        reads_flags: true,
    };
}

impl Uses {
    /// What this and then `o` use together.
    pub(crate) fn then(self, o: Self) -> Self {
        Self {
            gprs: self.gprs | o.gprs,
            gprs_out: self.gprs_out | o.gprs_out,
            vecs: self.vecs | o.vecs,
            vecs_out: self.vecs_out | o.vecs_out,
            highs: self.highs | o.highs,
            highs_out: self.highs_out | o.highs_out,
            gprs_in: self.gprs_in | (o.gprs_in & !self.gprs_killed),
            vecs_in: self.vecs_in | (o.vecs_in & !self.vecs_killed),
            highs_in: self.highs_in | (o.highs_in & !self.highs_killed),
            gprs_killed: self.gprs_killed | o.gprs_killed,
            vecs_killed: self.vecs_killed | o.vecs_killed,
            highs_killed: self.highs_killed | o.highs_killed,
            vecs_read: self.vecs_read | (o.vecs_read & !self.vecs_out),
            highs_read: self.highs_read | (o.highs_read & !self.highs_out),
            flags: self.flags || o.flags,
            reads_flags: self.reads_flags || o.reads_flags,
        }
    }
}

pub(super) fn iced(i: &Insn) -> Instruction {
    let mut d = Decoder::with_ip(64, &i.bytes[..i.len as usize], i.rip, DecoderOptions::NONE);
    d.decode()
}

/// Whether `i` loads by a vector of indices.
pub(super) fn is_gather(i: &Insn) -> bool {
    i.op == Op::Thunk && iced(i).memory_index().is_vector_register()
}

/// What `i` uses and writes.
pub(crate) fn uses(i: &Insn) -> Uses {
    // A new MXCSR is as good as new operands: what was computed before it must not stand for the same operation
    // after it.
    if matches!(
        i.op,
        Op::Fxrstor | Op::Xrstor | Op::Xsave | Op::Fxsave | Op::Ldmxcsr
    ) {
        return Uses::ALL;
    }
    // RDSSP writes a register where there are shadow stacks.
    if i.op == Op::Nop {
        return Uses::default();
    }
    let ins = iced(i);
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&ins);
    let mut u = Uses {
        flags: ins.rflags_modified() & 0x3f != 0,
        reads_flags: ins.rflags_read() & 0x3f != 0,
        ..Uses::default()
    };
    for r in info.used_registers() {
        let reg = r.register();
        let writes = matches!(
            r.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        // Only an unconditional write of the whole register frees it from what it held.
        let kills = r.access() == OpAccess::Write && reg.size() >= 4;
        if reg.is_gpr() {
            let n = reg.full_register().number();
            u.gprs |= 1 << n;
            u.gprs_out |= u16::from(writes) << n;
            u.gprs_in |= u16::from(!kills) << n;
            u.gprs_killed |= u16::from(kills) << n;
        } else if reg.is_vector_register() {
            let n = reg.number();
            if n >= 16 {
                continue;
            }
            u.vecs |= 1 << n;
            u.vecs_out |= u16::from(writes) << n;
            u.vecs_in |= u16::from(!kills) << n;
            u.vecs_killed |= u16::from(kills) << n;
            let reads = matches!(
                r.access(),
                OpAccess::Read | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            u.vecs_read |= u16::from(reads) << n;
            u.highs_read |= u16::from(reads && !reg.is_xmm()) << n;
            if !reg.is_xmm() {
                u.highs |= 1 << n;
                u.highs_out |= u16::from(writes) << n;
                u.highs_in |= u16::from(!kills) << n;
            }
        }
    }
    // The operand information knows that the difference of a register and itself is zero; what runs it reads it.
    for n in 1..ins.op_count() {
        let reg = ins.op_register(n);
        if ins.op_kind(n) == OpKind::Register && reg.is_vector_register() && reg.number() < 16 {
            u.vecs |= 1 << reg.number();
            u.vecs_in |= 1 << reg.number();
            u.highs |= u16::from(!reg.is_xmm()) << reg.number();
            u.highs_in |= u16::from(!reg.is_xmm()) << reg.number();
        }
    }
    if ins.encoding() != EncodingKind::Legacy {
        // A VEX instruction clears what lies above the vector length of its destination.
        u.highs |= u.vecs_out;
        u.highs_out |= u.vecs_out;
        u.highs_killed |= u.vecs_killed & !u.highs_in;
    }
    if matches!(ins.code(), iced_x86::Code::VEX_Vzeroall) {
        u.vecs_out = !0;
        u.vecs = !0;
    }
    if matches!(
        ins.code(),
        iced_x86::Code::VEX_Vzeroall | iced_x86::Code::VEX_Vzeroupper
    ) {
        u.highs = !0;
        u.highs_out = !0;
        u.highs_killed = !0;
    }
    // A register that is read elsewhere in the operand list is read before it is written.
    u.gprs_killed &= !u.gprs_in;
    u.vecs_killed &= !u.vecs_in;
    u
}

/// A vector instruction being lowered.
struct V<'i> {
    insn: &'i Insn,
    ins: Instruction,
    vex: bool,
    /// 256-bit.
    wide: bool,
}

impl V<'_> {
    fn is_reg(&self, n: u32) -> bool {
        self.ins.op_kind(n) == OpKind::Register
    }
    fn is_vec(&self, n: u32) -> bool {
        self.is_reg(n) && self.ins.op_register(n).is_vector_register()
    }
    fn reg(&self, n: u32) -> usize {
        self.ins.op_register(n).number()
    }
    fn gpr(&self, n: u32) -> (u8, bool) {
        let r = self.ins.op_register(n);
        (r.full_register().number() as u8, r.size() == 8)
    }
    fn imm(&self, n: u32) -> u8 {
        if self.ins.op_kind(n) == OpKind::Immediate8 {
            self.ins.immediate8()
        } else {
            0
        }
    }
    /// Index of the first source of a two-source operation, and of the second.
    fn sources(&self) -> (u32, u32) {
        if self.vex { (1, 2) } else { (0, 1) }
    }
}

/// A pair of halves; the high one only where the instruction is 256 bits wide.
#[derive(Clone, Copy)]
struct Halves {
    low: Value,
    high: Option<Value>,
}

impl Lower<'_, '_> {
    /// Lowers `i` if it is one of the instructions this module knows.
    pub(super) fn vector(&mut self, i: &Insn) -> bool {
        if i.op != Op::Thunk {
            return false;
        }
        let ins = iced(i);
        if ins.op_count() > 0 && (0..ins.op_count()).any(|n| is_mmx(ins.op_register(n))) {
            return false;
        }
        let wide = (0..ins.op_count())
            .any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_ymm());
        let v = V {
            insn: i,
            vex: ins.encoding() == EncodingKind::VEX,
            wide,
            ins,
        };
        if !v.vex && ins.encoding() != EncodingKind::Legacy {
            return false;
        }
        self.read_raising = false;
        let lowered = self.vector_move(&v)
            || self.vector_int(&v)
            || self.vector_shuffle(&v)
            || self.vector_float(&v);
        // What was made of a result that raises flags keeps it alive only if it is itself.
        if lowered && self.read_raising && v.is_vec(0) && v.ins.rflags_modified() == 0 {
            self.vecs[v.reg(0)].raises = (true, v.wide);
        }
        lowered
    }

    fn cast(&mut self, t: Type, v: Value) -> Value {
        if self.fb.func.dfg.value_type(v) == t {
            return v;
        }
        self.fb.ins().bitcast(
            t,
            MemFlagsData::new().with_endianness(cranelift_codegen::ir::Endianness::Little),
            v,
        )
    }

    fn bytes(&mut self, v: Value) -> Value {
        self.cast(types::I8X16, v)
    }

    pub(super) fn vzero(&mut self) -> Value {
        self.vconst([0; 16])
    }

    fn vconst(&mut self, b: [u8; 16]) -> Value {
        let c = self
            .fb
            .func
            .dfg
            .constants
            .insert(ConstantData::from(&b[..]));
        self.fb.ins().vconst(types::I8X16, c)
    }

    /// Leaves unless `va` is a multiple of `n`.
    fn check_aligned(&mut self, va: Value, n: u64) {
        let mask = self.iconst(types::I64, n - 1);
        let low = self.fb.ins().band(va, mask);
        self.leave_if(low);
    }

    /// The memory operand's address.
    fn vector_address(&mut self, v: &V) -> Value {
        self.address(&v.insn.mem)
    }

    /// Loads 16 or 32 bytes.
    fn load_halves(&mut self, va: Value, wide: bool) -> Halves {
        if !wide {
            return Halves {
                low: self.load_type(types::I8X16, va),
                high: None,
            };
        }
        let host = self.host_address(va, 32, false);
        let flags = self.guest_flags();
        let low = self.fb.ins().load(types::I8X16, flags, host, 0);
        let high = self.fb.ins().load(types::I8X16, flags, host, 16);
        Halves {
            low,
            high: Some(high),
        }
    }

    /// Stores 16 or 32 bytes.
    fn store_halves(&mut self, va: Value, h: Halves) {
        match h.high {
            None => self.store_type(types::I8X16, va, h.low),
            high @ Some(_) if self.lines.is_some() => self.line_store(va, h.low, high),
            Some(high) => {
                let host = self.host_address(va, 32, true);
                let flags = self.guest_flags();
                self.fb.ins().store(flags, h.low, host, 0);
                self.fb.ins().store(flags, high, host, 16);
                self.end_site();
            }
        }
    }

    /// Vector operand `n` as one or two halves; memory operands of legacy SSE must be aligned.
    fn read_halves(&mut self, v: &V, n: u32) -> Halves {
        if v.is_vec(n) {
            let r = v.reg(n);
            let low = self.vec_low(r);
            return Halves {
                low,
                high: if v.wide { Some(self.vec_high(r)) } else { None },
            };
        }
        let va = self.vector_address(v);
        if !v.vex {
            self.check_aligned(va, 16);
        }
        self.load_halves(va, v.wide)
    }

    /// Writes vector operand 0 by the encoding's rule for the upper half.
    fn write_halves(&mut self, v: &V, h: Halves) {
        let r = v.reg(0);
        let low = self.bytes(h.low);
        self.set_vec_low(r, low);
        match h.high {
            Some(high) => {
                let high = self.bytes(high);
                self.set_vec_high(r, high);
            }
            None if v.vex => {
                let zero = self.vzero();
                self.set_vec_high(r, zero);
            }
            None => {}
        }
    }

    /// Applies `f` to both halves of two sources viewed as `t` and writes the result.
    fn map2(
        &mut self,
        v: &V,
        t: Type,
        mut f: impl FnMut(&mut Self, Value, Value) -> Value,
    ) -> bool {
        let (s1, s2) = v.sources();
        let b = self.read_halves(v, s2);
        let a = self.read_halves(v, s1);
        let mut half = |l: &mut Self, a: Value, b: Value| {
            let (a, b) = (l.cast(t, a), l.cast(t, b));
            f(l, a, b)
        };
        let low = half(self, a.low, b.low);
        let high = match (a.high, b.high) {
            (Some(a), Some(b)) => Some(half(self, a, b)),
            _ => None,
        };
        self.write_halves(v, Halves { low, high });
        true
    }

    /// Applies `f` to both halves of one source (operand 1) viewed as `t`.
    fn map1(&mut self, v: &V, t: Type, mut f: impl FnMut(&mut Self, Value) -> Value) -> bool {
        let a = self.read_halves(v, 1);
        let mut half = |l: &mut Self, a: Value| {
            let a = l.cast(t, a);
            f(l, a)
        };
        let low = half(self, a.low);
        let high = a.high.map(|a| half(self, a));
        self.write_halves(v, Halves { low, high });
        true
    }

    /// Reads the low scalar of operand `n`, from a vector register or from memory.
    fn read_scalar(&mut self, v: &V, n: u32, t: Type) -> Value {
        if v.is_vec(n) {
            let low = self.vec_low(v.reg(n));
            let lanes = self.cast(t.by(128 / t.bits()).expect("a scalar lane type"), low);
            return self.fb.ins().extractlane(lanes, 0);
        }
        let va = self.vector_address(v);
        self.load_type(t, va)
    }
}

fn is_mmx(r: Register) -> bool {
    r.is_mm() || r.is_st()
}
