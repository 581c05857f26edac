//! From guest bytes to [`Insn`]: operands, widths, memory operand, control flow and flag effects resolved once.
//!
//! iced-x86 reads the bytes, [`crate::table`] says which family an encoding belongs to. An encoding that
//! the processor lacks still decodes, as [`Op::Ud`]; a privileged one as [`Op::Privileged`]. What the
//! flag sets of an `Insn` promise is what the semantics do, which for flags that the manuals leave
//! undefined is narrower than the manuals' wording.

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register,
    RflagsBits,
};

use crate::flags::{ARITH, CF, FlagMask, OF, SF, ZF};
use crate::insn::{Control, Insn, MemRef, Op, Operand, Rep, Width};
use crate::table;

/// The longest instruction.
pub const MAX_LEN: usize = 15;

/// Why bytes are no instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside an instruction; fetch more.
    #[error("the bytes end inside the instruction at {rip:#x}")]
    NeedMore {
        /// Address of the instruction.
        rip: u64,
    },
    /// No instruction begins like this: #UD.
    #[error("invalid opcode at {rip:#x}")]
    Invalid {
        /// Address of the instruction.
        rip: u64,
    },
    /// More than 15 bytes: #GP(0).
    #[error("instruction at {rip:#x} is longer than 15 bytes")]
    TooLong {
        /// Address of the instruction.
        rip: u64,
    },
}

/// Decodes the instruction at `rip`, whose first bytes are `bytes` (give 15 where there are as many).
pub fn decode(rip: u64, bytes: &[u8]) -> Result<Insn, DecodeError> {
    decode_both(rip, bytes).map(|both| both.1)
}

/// The same, with what the decoder says of it.
pub(crate) fn decode_both(rip: u64, bytes: &[u8]) -> Result<(Instruction, Insn), DecodeError> {
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let mut x = Instruction::default();
    decoder.decode_out(&mut x);
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() < MAX_LEN => {
            return Err(DecodeError::NeedMore { rip });
        }
        DecoderError::NoMoreBytes => return Err(DecodeError::TooLong { rip }),
        // All 15 bytes were used: the instruction went on, or its last byte is the fifteenth.
        _ if decoder.position() == MAX_LEN && goes_on(bytes) => {
            return Err(DecodeError::TooLong { rip });
        }
        _ => return Err(DecodeError::Invalid { rip }),
    }
    Ok((x, convert(&x, bytes)))
}

/// Decodes instructions that follow each other, of a copy of their bytes.
pub(crate) struct Run<'a> {
    decoder: Decoder<'a>,
    bytes: &'a [u8],
}

impl<'a> Run<'a> {
    /// Of these bytes, which are at `rip`.
    pub(crate) fn new(rip: u64, bytes: &'a [u8]) -> Self {
        let decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
        Self { decoder, bytes }
    }

    /// The next one, if it is valid and ends where the bytes do, or before. Why not is [`decode`]'s to say.
    pub(crate) fn next(&mut self) -> Option<Insn> {
        let at = self.decoder.position();
        let mut x = Instruction::default();
        self.decoder.decode_out(&mut x);
        (self.decoder.last_error() == DecoderError::None).then(|| convert(&x, &self.bytes[at..]))
    }
}

/// Whether 15 bytes that are no valid instruction are not even an invalid one.
fn goes_on(bytes: &[u8]) -> bool {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NO_INVALID_CHECK);
    let _ = decoder.decode();
    decoder.last_error() != DecoderError::None
}

/// An instruction of `len` bytes at `rip` that does nothing but `op` ([`Op::Ud`], [`Op::Privileged`]):
/// what stands for bytes that do not decode.
#[must_use]
pub fn faulting(rip: u64, op: Op, bytes: &[u8]) -> Insn {
    let n = bytes.len().min(MAX_LEN);
    blank(rip, op, n.max(1), padded(&bytes[..n], n))
}

/// The first `n` of some bytes, the others 0.
fn padded(bytes: &[u8], n: usize) -> [u8; MAX_LEN] {
    let mut raw = [0; MAX_LEN];
    match bytes.first_chunk::<16>() {
        // Without a call.
        Some(all) => {
            let kept = u128::from_le_bytes(*all) & !(u128::MAX << (8 * n));
            raw.copy_from_slice(&kept.to_le_bytes()[..MAX_LEN]);
        }
        None => raw[..n].copy_from_slice(&bytes[..n]),
    }
    raw
}

/// An instruction that does nothing.
#[inline(always)]
fn blank(rip: u64, op: Op, len: usize, raw: [u8; MAX_LEN]) -> Insn {
    Insn {
        rip,
        op,
        len: len as u8,
        width: Width::B8,
        src_width: Width::B8,
        lock: false,
        rep: Rep::None,
        control: Control::Leave,
        ops: [Operand::None; 4],
        mem: MemRef::ABSENT,
        code: Code::INVALID as u16,
        flags_in: ARITH,
        flags_out: 0,
        bytes: raw,
    }
}

/// `bytes`: its own, and perhaps more.
#[inline(always)]
fn convert(x: &Instruction, bytes: &[u8]) -> Insn {
    let code = x.code();
    let op = table::row(code).op;
    let len = x.len();
    let mut i = blank(x.ip(), op, len, padded(bytes, len));
    i.code = code as u16;
    i.lock = x.has_lock_prefix();
    i.control = control(x, op);
    i.width = width(x, op);
    i.src_width = match op {
        Op::Movzx | Op::Movsx => operand_width(x, 1).unwrap_or(i.width),
        _ => i.width,
    };
    for (to, k) in i.ops.iter_mut().zip(0..x.op_count()) {
        *to = operand(x, k);
    }
    i.mem = memory(x, op);
    adjust(&mut i, x);
    (i.flags_in, i.flags_out) = flag_effects(&i, x);
    i
}

/// What differs from operands as iced lists them.
fn adjust(i: &mut Insn, x: &Instruction) {
    match i.op {
        Op::Xchg if i.ops[0] == Operand::Mem || i.ops[1] == Operand::Mem => {
            i.lock = true;
            if i.ops[1] == Operand::Mem {
                i.ops.swap(0, 1);
            }
        }
        Op::Test if i.ops[1] == Operand::Mem => i.ops.swap(0, 1),
        Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps | Op::Ins | Op::Outs => {
            i.ops = [Operand::None; 4];
            i.rep = if x.has_repne_prefix() {
                Rep::Repne
            } else if x.has_rep_prefix() {
                Rep::Rep
            } else {
                Rep::None
            };
        }
        Op::MovFromSeg => i.ops[1] = segment_operand(x.op_register(1)),
        Op::MovToSeg | Op::PushSeg | Op::PopSeg => i.ops[0] = segment_operand(x.op_register(0)),
        // Which of the XSAVE family: 0 XSAVE, 1 XSAVEOPT, 2 XSAVEC.
        Op::Xsave => {
            i.ops[1] = Operand::Imm(match x.mnemonic() {
                Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => 1,
                Mnemonic::Xsavec | Mnemonic::Xsavec64 => 2,
                _ => 0,
            });
        }
        Op::Xlat => i.ops = [Operand::None; 4],
        _ => {}
    }
}

fn segment_operand(r: Register) -> Operand {
    Operand::Imm(match r {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        _ => 5,
    })
}

fn width_of_size(bytes: usize) -> Option<Width> {
    Some(match bytes {
        1 => Width::B1,
        2 => Width::B2,
        4 => Width::B4,
        8 => Width::B8,
        _ => return None,
    })
}

fn operand_width(x: &Instruction, n: u32) -> Option<Width> {
    if n >= x.op_count() {
        return None;
    }
    match x.op_kind(n) {
        OpKind::Register => {
            let r = x.op_register(n);
            if r.is_gpr() {
                width_of_size(r.size())
            } else {
                None
            }
        }
        OpKind::Memory
        | OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => width_of_size(x.memory_size().size()),
        _ => None,
    }
}

fn width(x: &Instruction, op: Op) -> Width {
    use Code as C;
    match op {
        Op::Push
        | Op::Pop
        | Op::Pushf
        | Op::Popf
        | Op::Leave
        | Op::Enter
        | Op::PushSeg
        | Op::PopSeg => match x.code() {
            C::Push_r16
            | C::Push_rm16
            | C::Push_imm16
            | C::Pushw_imm8
            | C::Pushw_FS
            | C::Pushw_GS
            | C::Pop_r16
            | C::Pop_rm16
            | C::Popw_FS
            | C::Popw_GS
            | C::Pushfw
            | C::Popfw
            | C::Leavew
            | C::Enterw_imm16_imm8 => Width::B2,
            _ => Width::B8,
        },
        Op::Cwd | Op::Cbw => match x.mnemonic() {
            Mnemonic::Cwd | Mnemonic::Cbw => Width::B2,
            Mnemonic::Cdq | Mnemonic::Cwde => Width::B4,
            _ => Width::B8,
        },
        Op::Iret => match x.code() {
            C::Iretw => Width::B2,
            C::Iretd => Width::B4,
            _ => Width::B8,
        },
        // The count register's width.
        Op::Jrcxz | Op::Loop | Op::Loope | Op::Loopne => match x.code() {
            C::Jecxz_rel8_64
            | C::Loop_rel8_64_ECX
            | C::Loope_rel8_64_ECX
            | C::Loopne_rel8_64_ECX
            | C::Loop_rel8_16_ECX
            | C::Loope_rel8_16_ECX
            | C::Loopne_rel8_16_ECX => Width::B4,
            _ => Width::B8,
        },
        Op::Out => operand_width(x, 1).unwrap_or(Width::B1),
        Op::Rdpid | Op::Jmp | Op::JmpInd | Op::Call | Op::CallInd | Op::Ret => Width::B8,
        // 0: the 32-bit form of the x87 pointers; REX.W: the 64-bit form.
        Op::Fxsave | Op::Fxrstor | Op::Xsave | Op::Xrstor => match x.mnemonic() {
            Mnemonic::Fxsave64
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor64 => Width::B8,
            _ => Width::B4,
        },
        Op::MovToSeg => operand_width(x, 1).unwrap_or(Width::B2),
        Op::Xlat => Width::B1,
        _ => operand_width(x, 0)
            .or_else(|| operand_width(x, 1))
            .unwrap_or(Width::B8),
    }
}

fn operand(x: &Instruction, n: u32) -> Operand {
    match x.op_kind(n) {
        OpKind::Register => register(x.op_register(n)),
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Operand::Imm(x.immediate(n) as i64),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Operand::Imm(x.near_branch_target() as i64)
        }
        OpKind::FarBranch16 | OpKind::FarBranch32 => Operand::None,
        _ => Operand::Mem,
    }
}

fn register(r: Register) -> Operand {
    if r.is_gpr() {
        let full = r.full_register().number() as u8;
        if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
            Operand::High(full)
        } else {
            Operand::Gpr(full)
        }
    } else if r.is_vector_register() {
        Operand::Vec(r.number() as u8)
    } else {
        Operand::None
    }
}

fn gpr_number(r: Register) -> u8 {
    if r.is_gpr() {
        r.full_register().number() as u8
    } else {
        MemRef::NONE
    }
}

fn memory(x: &Instruction, op: Op) -> MemRef {
    let mut seg = match x.memory_segment() {
        Register::FS => 4,
        Register::GS => 5,
        _ => MemRef::NONE,
    };
    let mut plain = |base: u8, addr32: bool, own_segment: bool| {
        if !own_segment {
            seg = MemRef::NONE;
        }
        MemRef {
            base,
            index: MemRef::NONE,
            scale: 0,
            seg,
            addr32,
            disp: 0,
        }
    };
    // Strings: the source if there is one (its segment can be overridden), else the destination.
    let mut destination = None;
    for n in 0..x.op_count() {
        match x.op_kind(n) {
            OpKind::MemorySegRSI => return plain(6, false, true),
            OpKind::MemorySegESI | OpKind::MemorySegSI => return plain(6, true, true),
            OpKind::MemorySegRDI => return plain(7, false, true),
            OpKind::MemorySegEDI | OpKind::MemorySegDI => return plain(7, true, true),
            OpKind::MemoryESRDI => destination = Some(false),
            OpKind::MemoryESEDI | OpKind::MemoryESDI => destination = Some(true),
            _ => {}
        }
    }
    if let Some(addr32) = destination {
        return plain(7, addr32, false);
    }
    if matches!(op, Op::Clzero | Op::Monitorx) {
        // Their rAX: what CLZERO and MONITORX name by an operand that iced calls a register.
        let segment = match x.segment_prefix() {
            Register::FS => 4,
            Register::GS => 5,
            _ => MemRef::NONE,
        };
        let narrow = matches!(x.code(), Code::Clzerod | Code::Monitorxd);
        return MemRef {
            seg: segment,
            ..plain(0, narrow, true)
        };
    }
    if !(0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory) {
        return MemRef::ABSENT;
    }
    if op == Op::Xlat {
        return plain(3, x.memory_base() == Register::EBX, true);
    }
    if x.is_ip_rel_memory_operand() {
        return MemRef {
            base: MemRef::NONE,
            index: MemRef::NONE,
            scale: 0,
            seg,
            addr32: x.memory_base() == Register::EIP,
            disp: x.ip_rel_memory_address() as i64,
        };
    }
    let (base, index) = (x.memory_base(), x.memory_index());
    let addr32 = base.is_gpr32()
        || index.is_gpr32()
        || base == Register::None && !index.is_gpr64() && x.memory_displ_size() == 4;
    MemRef {
        base: gpr_number(base),
        index: gpr_number(index),
        scale: x.memory_index_scale().trailing_zeros() as u8,
        seg,
        addr32,
        disp: x.memory_displacement64() as i64,
    }
}

fn control(x: &Instruction, op: Op) -> Control {
    match op {
        Op::Jmp => Control::Jump(x.near_branch_target()),
        Op::Jcc(_) | Op::Jrcxz | Op::Loop | Op::Loope | Op::Loopne => {
            Control::Branch(x.near_branch_target())
        }
        Op::Call => Control::Call(x.near_branch_target()),
        Op::JmpInd => Control::Indirect,
        Op::CallInd => Control::IndirectCall,
        Op::Ret => Control::Return,
        // POPF may set TF, and then what follows is stepped.
        Op::Popf
        | Op::Int3
        | Op::Int
        | Op::Int1
        | Op::Into
        | Op::Iret
        | Op::JmpFar
        | Op::CallFar
        | Op::RetFar
        | Op::Rdpru
        | Op::Ud
        | Op::Privileged
        | Op::Syscall
        | Op::Cpuid
        | Op::Rdtsc
        | Op::Rdtscp
        | Op::Rdpmc
        | Op::Rdmsr
        | Op::Wrmsr
        | Op::In
        | Op::Out
        | Op::Ins
        | Op::Outs
        | Op::Hlt
        | Op::Vmmcall
        | Op::Vmgexit
        | Op::Wbinvd => Control::Leave,
        _ => Control::Next,
    }
}

/// The arithmetic flags an instruction reads, and those it always writes.
fn flag_effects(i: &Insn, x: &Instruction) -> (FlagMask, FlagMask) {
    // A count of zero keeps the flags; a count in CL may be zero.
    let shift =
        |written: FlagMask| match i.ops[1 + usize::from(matches!(i.op, Op::Shld | Op::Shrd))] {
            Operand::Imm(c) if c as u64 & count_mask(i.width) == 0 => (0, 0),
            Operand::Imm(_) => (0, written),
            _ => (written, 0),
        };
    match i.op {
        Op::Add
        | Op::Sub
        | Op::Cmp
        | Op::And
        | Op::Or
        | Op::Xor
        | Op::Test
        | Op::Neg
        | Op::Mul
        | Op::Imul1
        | Op::Imul2
        | Op::Imul3
        | Op::Bsf
        | Op::Bsr
        | Op::Tzcnt
        | Op::Lzcnt
        | Op::Popcnt
        | Op::Andn
        | Op::Bextr
        | Op::Blsi
        | Op::Blsmsk
        | Op::Blsr
        | Op::Bzhi
        | Op::Xadd
        | Op::Cmpxchg
        | Op::Popf
        | Op::Rdrand
        | Op::Rdseed => (0, ARITH),
        Op::Adc | Op::Sbb => (CF, ARITH),
        Op::Inc | Op::Dec => (0, ARITH & !CF),
        Op::Adcx => (CF, CF),
        Op::Adox => (OF, OF),
        Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd => shift(ARITH),
        Op::Rol | Op::Ror => match i.ops[1] {
            Operand::Imm(c) if c as u64 & count_mask(i.width) != 1 && i.ops[0] != Operand::Mem => {
                shift(CF)
            }
            _ => shift(CF | OF),
        },
        // A count that is a multiple of the 9- or 17-bit rotation keeps the flags too.
        Op::Rcl | Op::Rcr => match (shift(CF | OF), i.width) {
            ((r, w), Width::B4 | Width::B8) => (r | CF, w),
            ((r, w), _) if i.ops[1] == Operand::Imm(1) => (r | CF, w),
            _ => (CF | OF, 0),
        },
        Op::Bt | Op::Bts | Op::Btr | Op::Btc | Op::Clc | Op::Stc => (0, CF),
        Op::Cmc => (CF, CF),
        Op::Cmpxchg8b | Op::Cmpxchg16b | Op::SegCheck => (0, ZF),
        Op::Cmov(c) | Op::Setcc(c) | Op::Jcc(c) => (c.reads(), 0),
        Op::Loope | Op::Loopne => (ZF, 0),
        Op::Lahf => (ARITH & !OF, 0),
        Op::Sahf => (0, ARITH & !OF),
        Op::Pushf | Op::Syscall | Op::Iret => (ARITH, 0),
        Op::Scas | Op::Cmps if i.rep == Rep::None => (0, ARITH),
        Op::Scas | Op::Cmps => (ARITH, 0),
        Op::Thunk => (arith(x.rflags_read()), arith(x.rflags_modified())),
        // Whoever continues after these sees every flag.
        _ if i.control == Control::Leave => (ARITH, 0),
        _ => (0, 0),
    }
}

fn count_mask(w: Width) -> u64 {
    if w == Width::B8 { 63 } else { 31 }
}

fn arith(iced: u32) -> FlagMask {
    use crate::flags::{AF, PF};
    [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ]
    .iter()
    .filter(|(bit, _)| iced & bit != 0)
    .fold(0, |m, (_, flag)| m | flag)
}
