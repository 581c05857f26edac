//! Which instructions are copied, and what registers they use.

use super::{FS, RSP};
use iced_x86::{
    Code, CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use sevlab_cpu::thunk::{self, ThunkKind};

/// The general registers that an instruction uses, by their bits.
#[derive(Clone, Copy, Default)]
pub(super) struct Uses {
    pub used: u16,
    pub written: u16,
}

/// What an instruction uses, if it is one that is copied; `ins` is what the host takes it for.
pub(super) fn uses(i: &Insn, ins: &Instruction, info: &mut InstructionInfoFactory) -> Option<Uses> {
    // The guest's processor may take an instruction for another than the host does.
    if ins.is_invalid()
        || ins.len() != usize::from(i.len)
        || ins.code() as u16 != i.code
        || i.control == Control::Leave
    {
        return None;
    }
    let is_mem = ins.op_kinds().any(|k| k == OpKind::Memory);
    if is_mem && i.op != Op::Lea && (i.mem.addr32 || i.mem.seg != MemRef::NONE && i.mem.seg != FS) {
        return None;
    }
    match i.op {
        Op::Push
        | Op::Pop
        | Op::Leave
        | Op::Call
        | Op::CallInd
        | Op::Ret
        | Op::Jmp
        | Op::JmpInd => flow(i),
        Op::Jcc(_) => Some(Uses::default()),
        Op::Nop => Some(Uses::default()),
        op if is_plain(op) && !i.ops.iter().any(|o| matches!(o, Operand::Vec(_))) => Some(plain(i)),
        Op::Mul
        | Op::Imul1
        | Op::Div
        | Op::Idiv
        | Op::Mulx
        | Op::Shl
        | Op::Shr
        | Op::Sar
        | Op::Rol
        | Op::Ror
        | Op::Rcl
        | Op::Rcr
        | Op::Rorx
        | Op::Sarx
        | Op::Shlx
        | Op::Shrx
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
        | Op::Pdep
        | Op::Pext
        | Op::Xadd
        | Op::Cmpxchg
        | Op::Cmpxchg8b
        | Op::Cmpxchg16b
        | Op::Movbe
        | Op::Adcx
        | Op::Adox
        | Op::Clc
        | Op::Stc
        | Op::Cmc
        | Op::Xchg
        | Op::Cwd
        | Op::Cbw => known(ins, info),
        Op::Bswap if i.width.bytes() > 2 => known(ins, info),
        // Of 16 bits, a count may be above what the architecture defines.
        Op::Shld | Op::Shrd if i.width.bytes() > 2 => known(ins, info),
        // A bit string of any length, if its index is a register's.
        Op::Bt | Op::Bts | Op::Btr | Op::Btc if !is_mem || matches!(i.ops[1], Operand::Imm(_)) => {
            known(ins, info)
        }
        // The host notes exceptions before it finds that the store faults, the guest's processor behind that.
        Op::Thunk if is_mem && ins.mnemonic() == Mnemonic::Vcvtps2ph => None,
        // Only some processors want its operand aligned.
        Op::Thunk if is_mem && ins.cpuid_features().contains(&CpuidFeature::SHA) => None,
        Op::Thunk
            if matches!(
                thunk::route(ins.code()),
                Some(ThunkKind::Gpr | ThunkKind::Vector)
            ) =>
        {
            known(ins, info)
        }
        _ => None,
    }
}

/// Whether an operation has no other registers than its operands, the first of which it may write.
pub(super) fn is_plain(op: Op) -> bool {
    matches!(
        op,
        Op::Mov
            | Op::Movzx
            | Op::Movsx
            | Op::Lea
            | Op::Cmov(_)
            | Op::Setcc(_)
            | Op::Add
            | Op::Adc
            | Op::Sub
            | Op::Sbb
            | Op::And
            | Op::Or
            | Op::Xor
            | Op::Inc
            | Op::Dec
            | Op::Neg
            | Op::Not
            | Op::Imul2
            | Op::Imul3
            | Op::Cmp
            | Op::Test
    )
}

/// The uses of an instruction that has no other registers than its operands, the first of which it may write.
fn plain(i: &Insn) -> Uses {
    let bit = |o: &Operand| match o {
        Operand::Gpr(r) | Operand::High(r) => 1u16 << (r & 15),
        _ => 0,
    };
    let at = |r: u8| if r == MemRef::NONE { 0 } else { 1 << (r & 15) };
    let operands = i.ops.iter().fold(0, |all, o| all | bit(o));
    Uses {
        used: operands | at(i.mem.base) | at(i.mem.index),
        written: match i.op {
            Op::Cmp | Op::Test => 0,
            _ => bit(&i.ops[0]),
        },
    }
}

/// The same of stack operations and jumps.
fn flow(i: &Insn) -> Option<Uses> {
    let mut u = plain(i);
    let is_prefix = |b: &&u8| matches!(**b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2 | 0xf3);
    let narrow = i.bytes.iter().take_while(is_prefix).any(|b| *b == 0x66);
    match i.op {
        Op::Jmp => return Some(Uses::default()),
        Op::JmpInd => {
            u.written = 0;
            return Some(u);
        }
        Op::Pop if i.ops[0] == Operand::Gpr(RSP) || i.ops[0] == Operand::Mem => return None,
        Op::Pop => {}
        Op::Leave => (u.used, u.written) = (1 << super::RBP, 1 << super::RBP),
        _ => u.written = 0,
    }
    if matches!(i.op, Op::Push | Op::Pop | Op::Leave) && i.width.bytes() != 8 || narrow {
        return None;
    }
    u.used |= 1 << RSP;
    u.written |= 1 << RSP;
    Some(u)
}

/// What the decoder's tables say, of an instruction that the host has and whose memory operand is one as any other.
fn known(ins: &Instruction, info: &mut InstructionInfoFactory) -> Option<Uses> {
    let explicit = |k: OpKind| {
        !matches!(
            k,
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    };
    if !ins.op_kinds().all(explicit)
        || ins.memory_index().is_vector_register()
        || !thunk::host_has(ins.code())
    {
        return None;
    }
    let mut u = Uses::default();
    for r in info.info(ins).used_registers() {
        let reg = r.register();
        if reg.is_gpr() {
            let bit = 1u16 << reg.full_register().number();
            u.used |= bit;
            if !matches!(r.access(), OpAccess::Read | OpAccess::CondRead) {
                u.written |= bit;
            }
        } else if !reg.is_vector_register() && !reg.is_segment_register() {
            return None;
        }
    }
    Some(u)
}

/// Whether the instruction can fault.
pub(super) fn touches(i: &Insn, ins: &Instruction) -> bool {
    ins.op_kinds().any(|k| k == OpKind::Memory) && i.op != Op::Lea && i.op != Op::Nop
        || matches!(
            i.op,
            Op::Push | Op::Pop | Op::Leave | Op::Call | Op::CallInd | Op::Ret | Op::JmpInd
        )
        || matches!(i.op, Op::Div | Op::Idiv)
}

/// A store that waits for no other is one like any other in the interpreter, which therefore needs no fences.
pub(super) fn ordered(code: Code) -> Code {
    match code {
        Code::Movnti_m32_r32 => Code::Mov_rm32_r32,
        Code::Movnti_m64_r64 => Code::Mov_rm64_r64,
        Code::Movntps_m128_xmm => Code::Movaps_xmmm128_xmm,
        Code::Movntpd_m128_xmm => Code::Movapd_xmmm128_xmm,
        Code::Movntdq_m128_xmm => Code::Movdqa_xmmm128_xmm,
        Code::VEX_Vmovntps_m128_xmm => Code::VEX_Vmovaps_xmmm128_xmm,
        Code::VEX_Vmovntps_m256_ymm => Code::VEX_Vmovaps_ymmm256_ymm,
        Code::VEX_Vmovntpd_m128_xmm => Code::VEX_Vmovapd_xmmm128_xmm,
        Code::VEX_Vmovntpd_m256_ymm => Code::VEX_Vmovapd_ymmm256_ymm,
        Code::VEX_Vmovntdq_m128_xmm => Code::VEX_Vmovdqa_xmmm128_xmm,
        Code::VEX_Vmovntdq_m256_ymm => Code::VEX_Vmovdqa_ymmm256_ymm,
        code => code,
    }
}

/// The general register of these bits.
pub(super) fn wide(r: u8) -> Register {
    Register::RAX + u32::from(r)
}
