//! Multiplication and division.

use super::{non_zero, read_op, write_op};
use crate::builder::{Bin, Builder, Cmp};
use crate::flags::{ARITH, FlagOp};
use crate::insn::{Insn, Width};
use crate::state::gpr::{RAX, RDX};

/// The product of two `w` values: low half, high half, and whether the high half says more than the low
/// half's extension does.
fn product<B: Builder>(b: &mut B, signed: bool, w: Width, x: B::V, y: B::V) -> (B::V, B::V, B::C) {
    if w == Width::B8 {
        let lo = b.bin(Bin::Mul, w, x, y);
        let hi = b.bin(if signed { Bin::SMulHi } else { Bin::UMulHi }, w, x, y);
        let over = if signed {
            let n = b.imm(w, 63);
            let sign = b.bin(Bin::Sar, w, lo, n);
            b.cmp(Cmp::Ne, w, hi, sign)
        } else {
            non_zero(b, w, hi)
        };
        return (lo, hi, over);
    }
    // One multiplication at twice the width.
    let wide = Width::from_log2(w.log2() + 1);
    let extend = |b: &mut B, v| {
        if signed {
            b.sext(w, wide, v)
        } else {
            b.zext(w, wide, v)
        }
    };
    let x = extend(b, x);
    let y = extend(b, y);
    let p = b.bin(Bin::Mul, wide, x, y);
    let lo = b.zext(wide, w, p);
    let back = extend(b, lo);
    let over = b.cmp(Cmp::Ne, wide, p, back);
    let n = b.imm(wide, u64::from(w.bits()));
    let hi = b.bin(Bin::Shr, wide, p, n);
    let hi = b.zext(wide, w, hi);
    (lo, hi, over)
}

fn set_product_flags<B: Builder>(b: &mut B, w: Width, lo: B::V, over: B::C) {
    let v = b.cond_value(over, w);
    b.set_flags(ARITH, FlagOp::Mul, w, lo, v, lo);
}

/// MUL and one-operand IMUL.
pub(crate) fn mul1<B: Builder>(b: &mut B, i: &Insn, signed: bool) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 0, w)?;
    let a = b.gpr(RAX, w);
    let (lo, hi, over) = product(b, signed, w, a, v);
    b.set_gpr(RAX, w, lo);
    if w == Width::B1 {
        b.set_gpr_high(RAX, hi);
    } else {
        b.set_gpr(RDX, w, hi);
    }
    set_product_flags(b, w, lo, over);
    Ok(())
}

/// IMUL with two or three operands: `op0 = ops[x] * ops[y]`.
pub(crate) fn imul<B: Builder>(b: &mut B, i: &Insn, x: usize, y: usize) -> Result<(), B::Stop> {
    let w = i.width;
    let x = read_op(b, i, x, w)?;
    let y = read_op(b, i, y, w)?;
    let (lo, _, over) = product(b, true, w, x, y);
    write_op(b, i, 0, w, lo)?;
    set_product_flags(b, w, lo, over);
    Ok(())
}

/// MULX: no flags; if both destinations are one register it gets the high half.
pub(crate) fn mulx<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 2, w)?;
    let a = b.gpr(RDX, w);
    let (lo, hi, _) = product(b, false, w, a, v);
    write_op(b, i, 1, w, lo)?;
    write_op(b, i, 0, w, hi)
}

/// DIV and IDIV. The flags keep their values, as on current hardware.
pub(crate) fn div<B: Builder>(b: &mut B, i: &Insn, signed: bool) -> Result<(), B::Stop> {
    let w = i.width;
    let d = read_op(b, i, 0, w)?;
    let lo = b.gpr(RAX, w);
    let hi = if w == Width::B1 {
        b.gpr_high(RAX)
    } else {
        b.gpr(RDX, w)
    };
    let (q, r) = b.div(signed, w, hi, lo, d)?;
    b.set_gpr(RAX, w, q);
    if w == Width::B1 {
        b.set_gpr_high(RAX, r);
    } else {
        b.set_gpr(RDX, w, r);
    }
    Ok(())
}
