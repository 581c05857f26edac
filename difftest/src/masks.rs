//! Which results the manuals leave undefined: one table, by instruction. A flag is here only if both the Intel SDM
//! (vol. 2) and the AMD APM (vol. 3) call it undefined.
//!
//! Some instructions leave whole results undefined: SHLD and SHRD of 16 bits by more than 16. Those are not generated
//! ([`undefined_result`]).

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, RflagsBits};
use sevlab_cpu::flags::{AF, ARITH, CF, OF, PF, SF, ZF};

/// A shift's or rotate's count, masked as the processor does; `None` if it is in CL.
fn count(i: &Instruction, operand: u32) -> Option<u32> {
    match i.op_kind(operand) {
        OpKind::Immediate8 => Some(u32::from(i.immediate8()) & (width(i).max(32) - 1)),
        _ => None,
    }
}

/// Operand size in bits of a general-purpose instruction's first operand.
fn width(i: &Instruction) -> u32 {
    match i.op_kind(0) {
        OpKind::Register => i.op_register(0).size() as u32 * 8,
        _ => i.memory_size().size() as u32 * 8,
    }
}

fn by_one(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Rol_rm8_1
            | Rol_rm16_1
            | Rol_rm32_1
            | Rol_rm64_1
            | Ror_rm8_1
            | Ror_rm16_1
            | Ror_rm32_1
            | Ror_rm64_1
            | Rcl_rm8_1
            | Rcl_rm16_1
            | Rcl_rm32_1
            | Rcl_rm64_1
            | Rcr_rm8_1
            | Rcr_rm16_1
            | Rcr_rm32_1
            | Rcr_rm64_1
            | Shl_rm8_1
            | Shl_rm16_1
            | Shl_rm32_1
            | Shl_rm64_1
            | Shr_rm8_1
            | Shr_rm16_1
            | Shr_rm32_1
            | Shr_rm64_1
            | Sal_rm8_1
            | Sal_rm16_1
            | Sal_rm32_1
            | Sal_rm64_1
            | Sar_rm8_1
            | Sar_rm16_1
            | Sar_rm32_1
            | Sar_rm64_1
    )
}

/// Flags that are undefined after an instruction.
#[must_use]
pub fn undefined(i: &Instruction) -> u64 {
    // The count, and OF, which is defined for a count of one.
    let shift = |n: u32| {
        let known = if by_one(i.code()) {
            Some(1)
        } else {
            count(i, n)
        };
        (known, if known == Some(1) { 0 } else { OF })
    };
    match i.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => AF,
        M::Andn | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi => AF | PF,
        M::Bextr => AF | SF | PF,
        M::Mul | M::Imul => SF | ZF | AF | PF,
        M::Div | M::Idiv => ARITH,
        M::Shl | M::Sal | M::Shr | M::Sar => {
            let (known, of) = shift(1);
            // CF: the bit last shifted out, which there is none of beyond the operand's width.
            let cf = if i.mnemonic() != M::Sar && known.is_none_or(|n| n >= width(i)) {
                CF
            } else {
                0
            };
            match known {
                Some(0) => 0,
                _ => AF | of | cf,
            }
        }
        M::Rol | M::Ror | M::Rcl | M::Rcr => match shift(1) {
            (Some(0), _) => 0,
            (_, of) => of,
        },
        M::Shld | M::Shrd => match count(i, 2) {
            Some(0) => 0,
            Some(1) => AF,
            _ => AF | OF,
        },
        M::Bsf | M::Bsr => CF | OF | SF | AF | PF,
        M::Bt | M::Bts | M::Btr | M::Btc => OF | SF | AF | PF,
        M::Lzcnt | M::Tzcnt => OF | SF | AF | PF,
        _ => 0,
    }
}

/// Whether the instruction leaves an undefined result in a register or memory if CL is `cl` (`None`: who knows).
#[must_use]
pub fn undefined_result(i: &Instruction, cl: Option<u64>) -> bool {
    let count = count(i, 2).or(cl.map(|v| v as u32 & 31));
    matches!(i.mnemonic(), M::Shld | M::Shrd) && width(i) == 16 && count.is_none_or(|n| n > 16)
}

/// iced's flags as RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ]
    .iter()
    .filter(|(b, _)| bits & b != 0)
    .map(|(_, f)| f)
    .sum()
}

/// The arithmetic flags whose value before an instruction matters to it.
#[must_use]
pub fn reads(i: &Instruction) -> u64 {
    match i.mnemonic() {
        M::Syscall | M::Pushf | M::Pushfq => ARITH,
        M::Lahf => ARITH & !OF,
        _ => rflags(i.rflags_read()),
    }
}

/// The undefined flags after an instruction that began with `before` undefined.
#[must_use]
pub fn after(i: &Instruction, before: u64) -> u64 {
    let by_cl = match i.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => {
            !by_one(i.code()) && count(i, 1).is_none_or(|n| n == 0)
        }
        M::Shld | M::Shrd => count(i, 2).is_none_or(|n| n == 0),
        _ => false,
    };
    // The decoder takes RDPRU for one that writes them.
    let keeps = by_cl || i.mnemonic() == M::Rdpru;
    let defines = if keeps || i.has_rep_prefix() || i.has_repne_prefix() {
        0
    } else {
        rflags(i.rflags_modified())
    };
    before & !defines | undefined(i)
}
