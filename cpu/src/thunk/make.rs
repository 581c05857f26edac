//! From a decoded instruction to host code that runs it on a [`CpuState`].

use core::mem::offset_of;

use iced_x86::code_asm::{
    AsmRegister64, AsmRegisterXmm, AsmRegisterYmm, byte_ptr, qword_ptr, xmm0, ymm0, ymmword_ptr,
};
use iced_x86::code_asm::{CodeAssembler, get_gpr64, get_xmm, get_ymm, gpr64, ptr, xmmword_ptr};
use iced_x86::{
    EncodingKind, IcedError, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind,
    Register, RflagsBits,
};

use super::route::{ThunkKind, is_gather, software};
use super::soft::{self, Soft};
use super::{Entry, Pointers, Thunk, ThunkError};
use crate::flags::{AF, ARITH, CF, LazyFlags, OF, PF, SF, ZF};
use crate::state::{CpuState, gpr};

/// Offsets from the state pointer.
mod at {
    use super::*;
    pub const CC_OP: usize = offset_of!(CpuState, cc) + offset_of!(LazyFlags, op);
    pub const CC_R: usize = offset_of!(CpuState, cc) + offset_of!(LazyFlags, r);
    pub const FX: usize = offset_of!(CpuState, fx);
    pub const SCRATCH: usize = offset_of!(CpuState, scratch);
    pub const fn gpr(n: usize) -> usize {
        offset_of!(CpuState, gpr) + 8 * n
    }
    pub const fn xmm(n: usize) -> usize {
        offset_of!(CpuState, xmm) + 16 * n
    }
    pub const fn ymmh(n: usize) -> usize {
        offset_of!(CpuState, ymmh) + 16 * n
    }
}

// `movaps` on vector registers, FXRSTOR on the image, aligned memory operands in scratch.
const _: () = assert!(
    at::xmm(0).is_multiple_of(16)
        && at::ymmh(0).is_multiple_of(16)
        && at::FX.is_multiple_of(64)
        && at::SCRATCH.is_multiple_of(64)
);

/// In which order host registers are taken for the thunk's own use. Low, caller-saved ones first: they need no REX prefix, which
/// AH to BH can't have, and no saving.
const PREFERRED: [u8; 15] = [7, 6, 2, 1, 0, 8, 9, 10, 11, 3, 5, 12, 13, 14, 15];
/// RBX, RBP, R12 to R15.
const CALLEE_SAVED: u16 = 0xf028;
const RSP: usize = gpr::RSP as usize;

/// The cache's key, and what the thunk is made from: no prefixes but those of the encoding, and the memory operand without its
/// address (which software ones that compute their own address keep).
pub(super) fn normalise(ins: &Instruction, kind: ThunkKind) -> Instruction {
    let mut n = *ins;
    n.set_has_rep_prefix(false);
    n.set_has_repne_prefix(false);
    n.set_has_xacquire_prefix(false);
    n.set_has_xrelease_prefix(false);
    n.set_ip(0);
    n.set_len(0);
    if kind == ThunkKind::Software
        && (is_gather(n.mnemonic()) || soft::is_implicit_store(n.mnemonic()))
    {
        return n;
    }
    n.set_segment_prefix(Register::None);
    if memory_operand(&n).is_some() {
        n.set_memory_base(Register::None);
        n.set_memory_index(Register::None);
        n.set_memory_index_scale(1);
        n.set_memory_displacement64(0);
        n.set_memory_displ_size(8);
    }
    n
}

fn memory_operand(ins: &Instruction) -> Option<u32> {
    (0..ins.op_count()).find(|&n| ins.op_kind(n) == OpKind::Memory)
}

/// BT and its kin with a register index address memory beyond their operand.
pub(super) fn is_bit_string(ins: &Instruction) -> bool {
    matches!(ins.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && ins.op_kind(0) == OpKind::Memory
        && ins.op_kind(1) == OpKind::Register
}

/// What the instruction uses, as bit masks by register number.
#[derive(Default)]
struct Uses {
    gpr: u16,
    gpr_written: u16,
    vec: u16,
    vec_read: u16,
    vec_written: u16,
    /// Some operand names it as YMM.
    vec_wide: u16,
    mmx: bool,
    x87: bool,
    mem_read: u16,
    mem_write: u16,
}

fn reads(a: OpAccess) -> bool {
    use OpAccess::*;
    matches!(a, Read | CondRead | ReadWrite | ReadCondWrite | CondWrite)
}
fn writes(a: OpAccess) -> bool {
    use OpAccess::*;
    matches!(a, Write | CondWrite | ReadWrite | ReadCondWrite)
}

fn uses(ins: &Instruction, info: &mut InstructionInfoFactory) -> Result<Uses, ThunkError> {
    let unsupported = || ThunkError::Unsupported { code: ins.code() };
    let mut u = Uses::default();
    let info = info.info(ins);
    for used in info.used_registers() {
        let (r, access) = (used.register(), used.access());
        if r.is_gpr() {
            let bit = 1 << r.full_register().number();
            u.gpr |= bit;
            u.gpr_written |= if writes(access) { bit } else { 0 };
        } else if r.is_vector_register() {
            if r.number() > 15 {
                return Err(unsupported());
            }
            let bit = 1 << r.number();
            u.vec |= bit;
            u.vec_read |= if reads(access) { bit } else { 0 };
            u.vec_written |= if writes(access) { bit } else { 0 };
        } else if r.is_mm() {
            u.mmx = true;
        } else if r.is_st() {
            u.x87 = true;
        } else if !r.is_segment_register() {
            return Err(unsupported());
        }
    }
    for n in 0..ins.op_count() {
        if ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_ymm() {
            u.vec_wide |= 1 << ins.op_register(n).number();
        }
    }
    let memory = info.used_memory();
    if memory.len() > 1 {
        return Err(unsupported());
    }
    if let Some(m) = memory.first() {
        let size = m.memory_size().size();
        if memory_operand(ins).is_none()
            || size == 0
            || size > 128
            || m.access() == OpAccess::NoMemAccess
        {
            return Err(unsupported());
        }
        u.mem_read = if reads(m.access()) { size as u16 } else { 0 };
        u.mem_write = if writes(m.access()) { size as u16 } else { 0 };
    } else if memory_operand(ins).is_some() {
        return Err(unsupported());
    }
    Ok(u)
}

/// The arithmetic flags among iced's flag bits, as RFLAGS bits.
fn arith(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    pairs
        .iter()
        .filter(|(b, _)| bits & b != 0)
        .map(|&(_, f)| f)
        .sum()
}

/// What the address of an operand of `size` bytes must be a multiple of.
pub(super) fn alignment(ins: &Instruction, size: u16, kind: ThunkKind) -> u16 {
    use M::*;
    let size = size.max(1);
    match ins.mnemonic() {
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => size,
        Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm => 1,
        Pcmpestri64 | Pcmpestrm64 => 1,
        _ if ins.encoding() == EncodingKind::Legacy && size == 16 && kind == ThunkKind::Vector => {
            16
        }
        _ => 1,
    }
}

/// The low address bits that #AC looks at.
fn natural(u: &Uses) -> u8 {
    match u.mem_read.max(u.mem_write) {
        size @ (2 | 4 | 8) => size as u8 - 1,
        10 => 7,
        // x87 environments and states, of 16- and 32-bit words
        14 | 94 => 1,
        28 | 108 => 3,
        _ => 0,
    }
}

fn pointers(m: M) -> Pointers {
    use M::*;
    match m {
        Fninit | Fnsave => Pointers::Clear,
        Fldenv | Frstor => Pointers::Load,
        Fldcw | Fnstcw | Fnstsw | Fnclex | Fnstenv => Pointers::Keep,
        _ => Pointers::Update,
    }
}

fn waits(m: M) -> bool {
    !matches!(
        m,
        M::Fninit | M::Fnclex | M::Fnstcw | M::Fnstsw | M::Fnstenv | M::Fnsave
    )
}

/// Describes the thunk of a normalised instruction, and makes its host code (none for software ones).
pub(super) fn make(
    ins: &Instruction,
    kind: ThunkKind,
    info: &mut InstructionInfoFactory,
    nothing: Entry,
) -> Result<(Thunk, Option<Vec<u8>>), ThunkError> {
    let m = ins.mnemonic();
    let mut t = Thunk {
        entry: nothing,
        kind,
        soft: Soft::None,
        mem_read: 0,
        mem_write: 0,
        align: 1,
        natural: 0,
        probe: false,
        explicit: false,
        simd: false,
        x87: false,
        mmx: false,
        waits: false,
        pointers: Pointers::Keep,
        env: 0,
        piece: 0,
        halves: 0,
        half_dst: 0,
        reads_flags: 0,
        writes_flags: 0,
    };
    if software(m) {
        t.natural = match m {
            M::Maskmovq => 7,
            M::Maskmovdqu | M::Vmaskmovdqu => 15,
            _ => 0,
        };
        t.soft = soft::plan(ins).ok_or(ThunkError::Unsupported { code: ins.code() })?;
        return Ok((t, None));
    }
    let failed = |e: IcedError| ThunkError::Encode {
        code: ins.code(),
        reason: e.to_string(),
    };
    if matches!(m, M::Vzeroupper | M::Vzeroall) {
        return Ok((t, Some(zero_code(m == M::Vzeroall).map_err(failed)?)));
    }
    let u = uses(ins, info)?;
    let undefined = arith(ins.rflags_undefined());
    t.writes_flags = arith(ins.rflags_modified());
    t.reads_flags = arith(ins.rflags_read()) | undefined;
    if super::integer(ins.code()) {
        // A shift by a count of 0 keeps the flags that it is said to write.
        t.reads_flags |= t.writes_flags;
    }
    t.explicit = t.reads_flags != 0 || (t.writes_flags != 0 && t.writes_flags != ARITH);
    t.mem_read = u.mem_read;
    t.mem_write = u.mem_write;
    t.align = alignment(ins, u.mem_read.max(u.mem_write), kind);
    t.natural = natural(&u);
    t.simd = u.vec != 0 || kind == ThunkKind::Vector;
    let mmx = match kind {
        ThunkKind::X87 => false,
        ThunkKind::Mmx => true,
        _ => u.mmx,
    };
    t.x87 = mmx || u.x87 || kind == ThunkKind::X87;
    t.mmx = mmx;
    t.waits = t.x87 && (mmx || waits(m));
    if t.x87 && !mmx {
        t.pointers = pointers(m);
    }
    t.piece = match (m, u.mem_read | u.mem_write) {
        (M::Fnstenv | M::Fldenv, 14) | (M::Fnsave | M::Frstor, 94) => 2,
        (M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor, _) => 4,
        (M::Fld | M::Fstp | M::Fbld | M::Fbstp, 10) => 8,
        _ => 0,
    };
    if m == M::Vcvtps2ph {
        t.halves = (ins.op_register(1).size() / 4) as u8;
        t.half_dst = (ins.op0_register().number() & 15) as u8;
    }
    if matches!(m, M::Fnstenv | M::Fnsave) {
        t.env = if matches!(u.mem_write, 14 | 94) {
            14
        } else {
            28
        };
    }
    t.probe = t.mem_write != 0
        && (t.x87
            || u.gpr_written != 0
            || u.vec_written != 0
            || t.writes_flags != 0
            || t.mem_read != 0
            || fp_store(m));
    let regs = Regs::choose(&u, t.writes_flags != 0)
        .ok_or(ThunkError::Unsupported { code: ins.code() })?;
    let code = code(ins, &u, &t, &regs).map_err(failed)?;
    Ok((t, Some(code)))
}

/// Stores that set MXCSR flags.
fn fp_store(m: M) -> bool {
    m == M::Vcvtps2ph
}

fn zero_code(all: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.vxorps(xmm0, xmm0, xmm0)?;
    for n in (0..16).step_by(2) {
        a.vmovups(ymmword_ptr(gpr64::rdi + at::ymmh(n)), ymm0)?;
        if all {
            a.vmovups(ymmword_ptr(gpr64::rdi + at::xmm(n)), ymm0)?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

fn r64(n: usize) -> AsmRegister64 {
    get_gpr64(Register::RAX + n as u32).unwrap_or(gpr64::rax)
}
fn xmm(n: usize) -> AsmRegisterXmm {
    get_xmm(Register::XMM0 + n as u32).unwrap_or(xmm0)
}
fn ymm(n: usize) -> AsmRegisterYmm {
    get_ymm(Register::YMM0 + n as u32).unwrap_or(ymm0)
}
fn bits(mask: u16) -> impl Iterator<Item = usize> {
    (0..16).filter(move |n| mask >> n & 1 != 0)
}

/// Register number `n` in the size of `like`, which is a form of RSP.
fn same_size(like: Register, n: usize) -> Register {
    const BYTES: [Register; 16] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
        Register::R8L,
        Register::R9L,
        Register::R10L,
        Register::R11L,
        Register::R12L,
        Register::R13L,
        Register::R14L,
        Register::R15L,
    ];
    match like.size() {
        1 => BYTES[n & 15],
        2 => Register::AX + n as u32,
        4 => Register::EAX + n as u32,
        _ => Register::RAX + n as u32,
    }
}

/// Host registers that the thunk takes for itself.
struct Regs {
    /// Holds the state pointer.
    state: usize,
    /// Stands in for the guest's RSP, for the host's own stays (RSP itself if the instruction does not use it).
    stand_in: usize,
    /// Temporaries, if flags are written.
    t0: usize,
    t1: usize,
    /// Callee-saved ones in use.
    saved: u16,
}

impl Regs {
    fn choose(u: &Uses, flags: bool) -> Option<Self> {
        let mut free = PREFERRED
            .iter()
            .map(|&n| usize::from(n))
            .filter(|n| u.gpr >> n & 1 == 0);
        let state = free.next()?;
        let stand_in = if u.gpr >> RSP & 1 != 0 {
            free.next()?
        } else {
            RSP
        };
        let (t0, t1) = if flags {
            (free.next()?, free.next()?)
        } else {
            (state, state)
        };
        let touched = u.gpr | 1 << state | 1 << stand_in | 1 << t0 | 1 << t1;
        Some(Self {
            state,
            stand_in,
            t0,
            t1,
            saved: touched & CALLEE_SAVED,
        })
    }
}

fn code(ins: &Instruction, u: &Uses, t: &Thunk, regs: &Regs) -> Result<Vec<u8>, IcedError> {
    let Regs {
        state,
        stand_in,
        t0,
        t1,
        saved,
    } = *regs;
    let host = |n: usize| if n == RSP { stand_in } else { n };

    let mut real = *ins;
    for n in 0..ins.op_count() {
        if ins.op_kind(n) == OpKind::Register && ins.op_register(n).full_register() == Register::RSP
        {
            real.set_op_register(n, same_size(ins.op_register(n), stand_in));
        }
    }
    if memory_operand(ins).is_some() {
        real.set_memory_base(Register::RAX + state as u32);
        real.set_memory_displacement64(at::SCRATCH as u64);
        real.set_memory_displ_size(8);
    }
    let vex = ins.encoding() == EncodingKind::VEX;
    let s = r64(state);
    let mut a = CodeAssembler::new(64)?;

    for n in bits(saved) {
        a.push(r64(n))?;
    }
    if s != gpr64::rdi {
        a.mov(s, gpr64::rdi)?;
    }
    if t.x87 {
        a.stmxcsr(ptr(s + (at::FX + 24)))?;
        a.fxrstor64(ptr(s + at::FX))?;
    }
    for n in bits(u.vec_read) {
        if vex {
            a.vmovaps(xmm(n), xmmword_ptr(s + at::xmm(n)))?;
            if u.vec_wide >> n & 1 != 0 {
                a.vinsertf128(ymm(n), ymm(n), xmmword_ptr(s + at::ymmh(n)), 1)?;
            }
        } else {
            a.movaps(xmm(n), xmmword_ptr(s + at::xmm(n)))?;
        }
    }
    for n in bits(u.gpr) {
        a.mov(r64(host(n)), qword_ptr(s + at::gpr(n)))?;
    }
    if t.reads_flags != 0 {
        a.push(qword_ptr(s + at::CC_R))?;
        a.popfq()?;
    }

    a.add_instruction(real)?;

    if t.writes_flags != 0 {
        let (t0, t1) = (r64(t0), r64(t1));
        a.pushfq()?;
        a.pop(t0)?;
        a.and(t0, t.writes_flags as i32)?;
        if t.writes_flags != ARITH {
            a.mov(t1, qword_ptr(s + at::CC_R))?;
            a.and(t1, (ARITH & !t.writes_flags) as i32)?;
            a.or(t0, t1)?;
        }
        a.mov(qword_ptr(s + at::CC_R), t0)?;
        a.mov(qword_ptr(s + at::CC_OP), 0)?;
    }
    for n in bits(u.gpr_written) {
        a.mov(qword_ptr(s + at::gpr(n)), r64(host(n)))?;
    }
    for n in bits(u.vec_written) {
        if vex {
            // A 128-bit form has cleared the upper half, which a store of it copies.
            a.vmovaps(xmmword_ptr(s + at::xmm(n)), xmm(n))?;
            a.vextractf128(xmmword_ptr(s + at::ymmh(n)), ymm(n), 1)?;
        } else {
            a.movaps(xmmword_ptr(s + at::xmm(n)), xmm(n))?;
        }
    }
    if u.vec_wide != 0 {
        a.vzeroupper()?;
    }
    if t.x87 {
        a.fxsave64(ptr(s + at::FX))?;
        // Leave no pending exception in the host's unit.
        let mut clean = a.create_label();
        a.test(byte_ptr(s + (at::FX + 2)), 0x80)?;
        a.je(clean)?;
        a.fnclex()?;
        a.set_label(&mut clean)?;
        a.nop()?;
    }
    for n in bits(saved).collect::<Vec<_>>().into_iter().rev() {
        a.pop(r64(n))?;
    }
    a.ret()?;
    a.assemble(0)
}
