//! What instructions need beside a memory operand: counts, divisors, stack contents, images to load.

use super::{Draft, Fixup, Generator, number};
use crate::layout::{CODE, DATA, PAGE};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, Register,
};
use sevlab_cpu::flags::{ARITH, DF};

/// Bytes of a memory operand.
pub(super) fn memory_size(i: &Instruction) -> u64 {
    match i.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => 512,
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 => 832,
        M::Xrstor | M::Xrstor64 => 832,
        _ => (i.memory_size().size() as u64).clamp(1, 512),
    }
}

/// Alignment that a memory operand must have.
pub(super) fn alignment(i: &Instruction) -> u64 {
    match i.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Cmpxchg16b => 16,
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => 64,
        _ => 1,
    }
}

/// Bytes that an immediate or a branch displacement has in the encoding.
fn immediate(bytes: &[u8], ip: u64) -> (usize, usize) {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let i = decoder.decode();
    let o = decoder.get_constant_offsets(&i);
    (o.immediate_offset(), o.immediate_size())
}

impl Generator<'_> {
    /// A selector: null, the flat ones, one outside the tables.
    fn selector(&mut self) -> u64 {
        self.r.pick(&[0, 0, 1, 2, 3, 0x2b, 0x2b, 0xfff8])
    }

    /// Everything but the memory operand's address; false if this instance is no good.
    #[allow(clippy::too_many_lines)] // a table
    pub(super) fn prepare(
        &mut self,
        d: &mut Draft,
        i: &Instruction,
        bytes: &mut [u8],
        at: Option<u64>,
    ) -> bool {
        let next = d.case.end() + bytes.len() as u64;
        match i.flow_control() {
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call => {
                if matches!(
                    i.op_kind(0),
                    OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16
                ) {
                    let (offset, size) = immediate(bytes, d.case.end());
                    for b in &mut bytes[offset..offset + size] {
                        *b = 0;
                    }
                    if self.r.one_in(24) && !matches!(i.mnemonic(), M::Call) {
                        d.fixups.push(Fixup {
                            at: d.case.code().len() + offset,
                            size,
                            from: next,
                            over: usize::MAX,
                        });
                    } else if self.r.one_in(2) {
                        d.fixups.push(Fixup {
                            at: d.case.code().len() + offset,
                            size,
                            from: next,
                            over: 1 + self.r.below(2) as usize,
                        });
                    }
                    if !d.free(1) {
                        return true;
                    }
                    if i.is_loop() || i.is_loopcc() || i.is_jcx_short() {
                        let v = self.r.pick(&[0, 1, 2, 1 << 32, u64::MAX]);
                        d.set(1, v);
                    }
                    return true;
                }
                true
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                let to = if self.r.one_in(12) {
                    self.r.pick(&[DATA, 1 << 47, 0, 1 << 63, 0xdead_0000])
                } else {
                    next
                };
                match i.op_kind(0) {
                    OpKind::Register => {
                        number(i.op_register(0)).is_some_and(|n| d.set(n, to)) || self.r.one_in(20)
                    }
                    _ => {
                        if let Some(at) = at {
                            d.case.patch(at, &to.to_le_bytes());
                        }
                        true
                    }
                }
            }
            FlowControl::Return => self.prepare_return(d, i, next),
            _ => self.prepare_data(d, i, at),
        }
    }

    fn prepare_return(&mut self, d: &mut Draft, i: &Instruction, next: u64) -> bool {
        let iret = matches!(i.mnemonic(), M::Iretq | M::Iretd | M::Iret);
        let Some(sp) = d.rsp() else {
            // Where the selectors are is not known: without descriptor tables there is no telling what they do.
            return !iret && self.r.one_in(20);
        };
        let to = if self.r.one_in(16) {
            self.r.value()
        } else {
            next
        };
        match i.mnemonic() {
            M::Iretq | M::Iretd | M::Iret => {
                let size = match i.mnemonic() {
                    M::Iretq => 8,
                    M::Iretd => 4,
                    _ => 2,
                };
                let flags = 0x202 | self.r.bits() & (ARITH | DF);
                let rsp = sp.wrapping_add(8 * self.r.below(16));
                let mut frame = [next, 0x33, flags, rsp, 0x2b];
                if self.r.one_in(8) {
                    frame[0] = self.r.pick(&[1 << 47, 1 << 63, DATA]);
                }
                for (k, v) in frame.iter().enumerate() {
                    d.case
                        .patch(sp + k as u64 * size, &v.to_le_bytes()[..size as usize]);
                }
                true
            }
            _ => {
                d.case.patch(sp, &to.to_le_bytes());
                true
            }
        }
    }

    /// Memory that an instruction finds by registers that no operand names; `None` if there is none.
    fn prepare_implicit(&mut self, d: &mut Draft, i: &Instruction) -> Option<bool> {
        match i.mnemonic() {
            M::Movsb
            | M::Movsw
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsq
            | M::Movsd
            | M::Cmpsd
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
                if i.is_string_instruction() =>
            {
                let narrow = (0..i.op_count()).any(|n| {
                    use OpKind::{MemoryESEDI, MemorySegEDI, MemorySegESI};
                    matches!(i.op_kind(n), MemoryESEDI | MemorySegEDI | MemorySegESI)
                });
                let source = self.target(d, 8, !narrow);
                let near = self.r.one_in(2);
                let to = if near {
                    source.wrapping_add(self.r.below(64)).wrapping_sub(32)
                } else {
                    self.target(d, 8, !narrow)
                };
                let base = match i.memory_segment() {
                    Register::FS => d.case.regs.fs,
                    Register::GS => d.case.regs.gs,
                    _ => 0,
                };
                let limit = if narrow { 0xffff_ffff } else { u64::MAX };
                d.set(6, source.wrapping_sub(base) & limit);
                d.set(7, to & limit);
                if i.has_rep_prefix() || i.has_repne_prefix() {
                    let all = [
                        1,
                        2,
                        3,
                        7,
                        9,
                        40,
                        300,
                        0x1000,
                        0xffff_ffff,
                        0,
                        1 << 32,
                        u64::MAX,
                    ];
                    // Intel's processors truncate pointers and count before the first of a 32-bit count, AMD's do not.
                    let n = self.r.pick(if narrow { &all[..10] } else { &all });
                    d.set(1, n);
                    let fits = |n: usize| d.value(n).is_some_and(|v| v >> 32 == 0);
                    if narrow && !(fits(1) && fits(6) && fits(7)) {
                        return Some(false);
                    }
                }
            }
            M::Xlatb => {
                let to = self.target(d, 1, true);
                let base = match i.memory_segment() {
                    Register::FS => d.case.regs.fs,
                    Register::GS => d.case.regs.gs,
                    _ => 0,
                };
                d.set(3, to.wrapping_sub(base));
            }
            M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
                let to = self.target(d, 16, true);
                d.set(7, to);
            }
            M::Clzero | M::Monitorx => {
                let to = self.target(d, 64, true);
                d.set(0, to);
                if !self.r.one_in(4) {
                    d.set(1, 0);
                }
            }
            M::Mwaitx => {
                let v = self.r.below(8);
                d.set(1, v);
            }
            M::Leave => {
                let to = self.target(d, 8, true);
                d.set(5, to);
            }
            M::Enter => {
                let to = self.target(d, 8, true);
                d.set(5, to);
                // Deep frames would leave the stack's page.
                if i.immediate16() > 0x2000 && !self.r.one_in(4) {
                    return Some(false);
                }
            }
            _ => return None,
        }
        Some(true)
    }

    #[allow(clippy::too_many_lines)] // a table
    fn prepare_data(&mut self, d: &mut Draft, i: &Instruction, at: Option<u64>) -> bool {
        if let Some(done) = self.prepare_implicit(d, i) {
            return done;
        }
        let r = &mut self.r;
        match i.mnemonic() {
            M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
                if i.op_register(i.op_count() - 1) == Register::CL && r.one_in(2) =>
            {
                let v = r.pick(&[
                    0, 1, 2, 7, 8, 9, 15, 16, 16, 17, 31, 32, 33, 63, 64, 0x80, 0xff,
                ]);
                d.set(1, v);
            }
            M::Div | M::Idiv => {
                let low = d.value(0).unwrap_or(0);
                if !r.one_in(4) {
                    let byte = matches!(i.code(), Code::Div_rm8 | Code::Idiv_rm8);
                    if byte {
                        let v = r.bits() & 0xff;
                        d.set(0, v | r.pick(&[0, 0, 0xff00 * (v >> 7)]));
                    } else {
                        let high = if i.mnemonic() == M::Idiv && low >> 63 != 0 {
                            u64::MAX
                        } else {
                            r.below(3)
                        };
                        d.set(2, high);
                    }
                }
            }
            M::Popf | M::Popfq => {
                if let Some(sp) = d.rsp() {
                    let mut v = 0x202 | r.bits() & (ARITH | DF);
                    if r.one_in(4) {
                        // Privileged bits, NT and ID; not TF and AC.
                        v |= r.bits() & 0x0000_0000_003b_f2ff;
                    }
                    d.case.patch(sp, &v.to_le_bytes());
                } else {
                    return false;
                }
            }
            M::Cmpxchg if r.one_in(2) => {
                if let (OpKind::Register, Some(n)) = (i.op0_kind(), number(i.op0_register()))
                    && let Some(v) = d.value(n)
                {
                    d.set(0, v);
                } else if let (Some(at), Some(v)) = (at, d.value(0)) {
                    d.fixed |= 1;
                    d.case.patch(at, &v.to_le_bytes()[..i.memory_size().size()]);
                }
            }
            M::Cmpxchg8b | M::Cmpxchg16b => {
                if let (Some(at), Some(a), Some(x)) = (at, d.value(0), d.value(2))
                    && r.one_in(2)
                {
                    d.fixed |= 5;
                    if i.mnemonic() == M::Cmpxchg8b {
                        d.case.patch(at, &(a & 0xffff_ffff | x << 32).to_le_bytes());
                    } else {
                        let v = u128::from(a) | u128::from(x) << 64;
                        d.case.patch(at, &v.to_le_bytes());
                    }
                }
            }
            M::Bt | M::Bts | M::Btr | M::Btc if i.op0_kind() == OpKind::Memory => {
                if let Some(n) = (i.op1_kind() == OpKind::Register)
                    .then(|| number(i.op1_register()))
                    .flatten()
                    && !r.one_in(8)
                {
                    let v = r.below(0x400).wrapping_sub(0x200);
                    if !d.set(n, v) {
                        return d.value(n).is_some_and(|v| v < 0x1000) || r.one_in(8);
                    }
                }
            }
            M::Ldmxcsr | M::Vldmxcsr => {
                if let Some(at) = at {
                    let mut v = r.mxcsr();
                    if r.one_in(16) {
                        // On AMD's, bit 17 is their misaligned mode, which the guest lacks.
                        let at_home = crate::host::amd();
                        let reserved = r.pick(&[16, 17 + u32::from(at_home), 18, 19, 31]);
                        v |= 1 << reserved;
                    }
                    d.case.patch(at, &v.to_le_bytes());
                }
            }
            M::Fldcw => {
                if let Some(at) = at {
                    let v = r.control_word();
                    d.case.patch(at, &v.to_le_bytes());
                }
            }
            M::Fldenv | M::Frstor => {
                if let Some(at) = at {
                    let v = r.control_word() | 0x3f;
                    // Operand size 16 has the fields two bytes apart.
                    let short = matches!(i.code(), Code::Fldenv_m14byte | Code::Frstor_m94byte);
                    let step = if short { 2 } else { 4 };
                    d.case.patch(at, &v.to_le_bytes());
                    let status = r.bits() as u16 & 0x7f7f;
                    d.case.patch(at + step, &status.to_le_bytes());
                }
            }
            M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 => {
                if let Some(at) = at {
                    let v = r.mxcsr();
                    d.case.patch(at + 24, &v.to_le_bytes());
                    let control = r.control_word();
                    d.case.patch(at, &control.to_le_bytes());
                    // Which addresses are canonical is the processor's.
                    let pointers = u128::from(CODE) | u128::from(DATA) << 64;
                    d.case.patch(at + 8, &pointers.to_le_bytes());
                    if memory_size(i) > 512 {
                        let mut header = [0; 64];
                        header[0] = r.below(8) as u8;
                        if !r.one_in(16) {
                            d.case.patch(at + 512, &header);
                        }
                        d.set(0, r.below(8));
                        d.set(2, 0);
                        return d.value(0).is_some_and(|v| v & 0xffff_ffff < 8)
                            && d.value(2).is_some_and(|v| v & 0xffff_ffff == 0);
                    }
                }
            }
            M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 => {
                d.set(0, r.below(8));
                d.set(2, 0);
                return d.value(0).is_some_and(|v| v & 0xffff_ffff < 8)
                    && d.value(2).is_some_and(|v| v & 0xffff_ffff == 0);
            }
            M::Xgetbv => {
                let v = r.below(3);
                return d.set(1, v);
            }
            M::Lar | M::Lsl | M::Verr | M::Verw | M::Mov | M::Pop if uses_selector(i) => {
                let v = match i.mnemonic() {
                    M::Lar | M::Lsl | M::Verr | M::Verw => self.r.pick(&[0, 1, 2, 3, 0xfff8]),
                    _ => self.selector(),
                };
                let source = if i.op_count() == 1 { 0 } else { 1 };
                if i.mnemonic() == M::Pop {
                    if let Some(sp) = d.rsp() {
                        d.case.patch(sp, &v.to_le_bytes());
                        return true;
                    }
                    return false;
                }
                return match i.op_kind(source) {
                    OpKind::Register => number(i.op_register(source)).is_some_and(|n| {
                        let high = self.r.value() << 16;
                        d.set(n, high | v)
                    }),
                    _ => at.is_some_and(|at| d.case.patch(at, &(v as u16).to_le_bytes())),
                };
            }
            M::Wrfsbase | M::Wrgsbase => {
                if let Some(n) = number(i.op_register(0)) {
                    let v = r.pick(&[
                        DATA,
                        DATA + PAGE,
                        0,
                        1 << 47,
                        1 << 63,
                        0xffff_8000_0000_0000,
                    ]);
                    d.set(n, v);
                }
            }
            _ => {}
        }
        true
    }
}

/// Whether the source of an instruction is a selector.
fn uses_selector(i: &Instruction) -> bool {
    match i.mnemonic() {
        M::Lar | M::Lsl | M::Verr | M::Verw => true,
        M::Mov | M::Pop => {
            i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register()
        }
        _ => false,
    }
}

/// Whether an instruction is one of the x87 unit's.
pub(super) fn is_x87(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    i.cpuid_features()
        .iter()
        .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387))
}

/// Whether an instruction has an operand in memory.
pub(super) fn uses_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
        || i.is_stack_instruction()
        || i.is_string_instruction()
        || matches!(i.mnemonic(), M::Xlatb)
}

/// Whether an instruction loads the x87 unit's pointers with all of the state.
pub(super) fn restores_pointers(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64
    )
}
