//! Which instructions are copied: those that leave exactly what they leave in the interpreter.

use super::{FS, RAX, RBP, RDX, RSP};
use sevlab_cpu::flags::{ARITH, OF, PF, SF, ZF};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use std::sync::OnceLock;

/// The general registers that an instruction uses and writes, if it is one that is copied.
pub(super) fn registers(i: &Insn) -> Option<(u16, u16)> {
    if i.lock || i.mem.addr32 && i.op != Op::Lea {
        return None;
    }
    let is_mem = |o: &Operand| *o == Operand::Mem;
    let bit = |o: &Operand| match o {
        Operand::Gpr(r) | Operand::High(r) => 1u16 << (r & 15),
        _ => 0,
    };
    let (mut used, mut written) = (0, 0);
    for (k, o) in i.ops.iter().enumerate() {
        if matches!(o, Operand::Vec(_)) {
            return None;
        }
        used |= bit(o);
        if k == 0 {
            written |= bit(o);
        }
    }
    let stack = 1 << RSP;
    match i.op {
        Op::Mov | Op::Movzx | Op::Movsx | Op::Lea | Op::Bswap => {}
        Op::Cmov(_) | Op::Setcc(_) | Op::Add | Op::Adc | Op::Sub | Op::Sbb | Op::And => {}
        Op::Or | Op::Xor | Op::Inc | Op::Dec | Op::Neg | Op::Not | Op::Imul2 | Op::Imul3 => {}
        Op::Popcnt => {}
        // By a constant. Otherwise it depends on the count what is undefined, as it does on the host for what is not here.
        Op::Shl | Op::Shr | Op::Sar if matches!(i.ops[1], Operand::Imm(_)) => {}
        Op::Cmp | Op::Test => written = 0,
        Op::Xchg if !i.ops.iter().any(is_mem) => written |= bit(&i.ops[1]),
        Op::Cwd | Op::Cbw => {
            used |= 1 << RAX | 1 << RDX;
            written |= 1 << RAX | 1 << RDX;
        }
        Op::Nop => return Some((0, 0)),
        Op::Push | Op::Pop | Op::Leave | Op::Call | Op::CallInd | Op::Ret => {
            if i.op != Op::Pop {
                written = 0;
            }
            if i.op == Op::Leave {
                used |= 1 << RBP;
                written |= 1 << RBP;
            }
            // Of 16 bits, or with RSP itself: seldom, and not worth its cases.
            if used & stack != 0
                || i.ops.iter().any(is_mem) && matches!(i.op, Op::Push | Op::Pop)
                || matches!(i.op, Op::Push | Op::Pop | Op::Leave) && i.width.bytes() != 8
                || i.bytes[..usize::from(i.len)].contains(&0x66)
            {
                return None;
            }
            used |= stack;
            written |= stack;
        }
        Op::Jmp | Op::Jcc(_) | Op::JmpInd => written = 0,
        _ => return None,
    }
    let at = |r: u8| if r == MemRef::NONE { 0 } else { 1 << (r & 15) };
    if i.ops.iter().any(is_mem) || i.op == Op::Lea {
        if i.mem.seg != MemRef::NONE && i.mem.seg != FS {
            return None;
        }
        used |= at(i.mem.base) | at(i.mem.index);
    }
    (i.control != Control::Leave).then_some((used, written))
}

/// How many of these can be copied if no more are: what makes one exact may lie behind it.
pub(super) fn exact_prefix(insns: &[Insn]) -> usize {
    let inexact = |n: &usize| {
        let k = (0..*n).find(|&k| !is_exact(&insns[k], &insns[k + 1..*n]));
        k.filter(|k| k < n)
    };
    let mut n = insns.len();
    while let Some(k) = inexact(&n) {
        n = k;
    }
    n
}

/// Whether what the architecture leaves undefined of the flags is as in the interpreter, or nobody sees it: instructions behind write
/// it before any reads it, can fault, or leave the block.
fn is_exact(i: &Insn, behind: &[Insn]) -> bool {
    // AF is seen to (`Copier::kept`).
    let undefined = match i.op {
        Op::Shl | Op::Shr | Op::Sar if !shifts_alike(i) => OF,
        Op::Imul2 | Op::Imul3 => SF | ZF | PF,
        _ => return true,
    };
    for next in behind {
        if next.flags_in & undefined != 0 || touches(next) || registers(next).is_none() {
            return false;
        }
        if next.flags_out & undefined == undefined {
            return true;
        }
    }
    false
}

/// Whether the host leaves in OF, which most counts leave undefined, what the interpreter does.
fn shifts_alike(i: &Insn) -> bool {
    let Operand::Imm(count) = i.ops[1] else {
        return false;
    };
    let bits = i64::from(i.width.bits());
    match count & if bits == 64 { 63 } else { 31 } {
        0 | 1 => true,
        count if count >= bits => false,
        _ => match i.op {
            Op::Shl => host_shifts().0,
            Op::Sar => host_shifts().1,
            _ => false,
        },
    }
}

/// Whether the host's SHL leaves CF ^ sign in OF, and its SAR 0, by whatever count.
pub(super) fn host_shifts() -> (bool, bool) {
    static ALIKE: OnceLock<(bool, bool)> = OnceLock::new();
    *ALIKE.get_or_init(|| {
        let overflow = |flags: u64| flags & OF != 0;
        let mut alike = (true, true);
        for value in [0x8000_0000_0000_0001_u64, 0x5a5a_a5a5_3c3c_c3c3] {
            for count in 2..64u32 {
                let value = value.rotate_left(count * 7);
                let mut left = value;
                let (flags_left, flags_right): (u64, u64);
                // SAFETY: computes in registers, and pushes and pops one word each.
                unsafe {
                    std::arch::asm!(
                        "shl {a}, cl", "pushfq", "pop {f}", "sar {b}, cl", "pushfq", "pop {g}",
                        a = inout(reg) left, b = inout(reg) value => _,
                        f = out(reg) flags_left, g = out(reg) flags_right,
                        in("cl") count as u8,
                    );
                }
                let carry = value >> (64 - count) & 1 != 0;
                alike.0 &= overflow(flags_left) == (carry != (left >> 63 != 0));
                alike.1 &= !overflow(flags_right);
            }
        }
        alike
    })
}

/// Whether the instruction makes an access, or checks an address.
pub(super) fn touches(i: &Insn) -> bool {
    i.ops.contains(&Operand::Mem) && i.op != Op::Lea && i.op != Op::Nop
        || matches!(
            i.op,
            Op::Push | Op::Pop | Op::Leave | Op::Call | Op::CallInd | Op::Ret | Op::JmpInd
        )
}

/// Arithmetic flags that the instruction may change.
pub(super) fn may_write(i: &Insn) -> u64 {
    match i.op {
        Op::Shl | Op::Shr | Op::Sar => ARITH,
        _ => i.flags_out,
    }
}
