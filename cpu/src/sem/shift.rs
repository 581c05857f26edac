//! Shifts and rotates.
//!
//! A count is masked to 5 bits (6 for 64-bit operands); a masked count of zero changes no flag. OF is
//! defined for a count of one only; where it is computed apart, it is computed as for one, which is
//! what current hardware does (but see [`rotate`]).

use super::{choose, close, negative, non_zero, open, read_op, write_op};
use crate::builder::{Bin, Builder};
use crate::flags::{AF, ARITH, Flag, FlagOp, PF, SF, ZF};
use crate::insn::{Insn, Op, Operand, Width};
use crate::state::gpr::RCX;

const B8: Width = Width::B8;

/// A masked count.
#[derive(Clone, Copy)]
enum Count<V> {
    Const(u64),
    /// At the operand's width.
    Var(V),
}

fn count<B: Builder>(b: &mut B, i: &Insn, n: usize) -> Count<B::V> {
    let w = i.width;
    let mask = if w == B8 { 63 } else { 31 };
    match i.ops[n] {
        Operand::Imm(c) => Count::Const(c as u64 & mask),
        _ => {
            let c = b.gpr(RCX, w);
            let m = b.imm(w, mask);
            Count::Var(b.bin(Bin::And, w, c, m))
        }
    }
}

/// Sets CF and OF; if the count is a variable that may be zero, only where it is not.
fn set_cf_of<B: Builder>(b: &mut B, when: Option<B::C>, cf: B::C, of: B::C) {
    let (cf, of) = match when {
        None => (cf, of),
        Some(nz) => {
            let old_cf = b.flag(Flag::Cf);
            let old_of = b.flag(Flag::Of);
            (choose(b, nz, cf, old_cf), choose(b, nz, of, old_of))
        }
    };
    b.set_flag(Flag::Cf, cf);
    b.set_flag(Flag::Of, of);
}

/// SHL, SHR, SAR.
#[inline]
pub(crate) fn shift<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let (bin, flags) = match i.op {
        Op::Shl => (Bin::Shl, FlagOp::Shl),
        Op::Shr => (Bin::Shr, FlagOp::Shr),
        _ => (Bin::Sar, FlagOp::Sar),
    };
    let c = count(b, i, 1);
    let (p, a) = open(b, i, w)?;
    match c {
        // Writes back what is there: a 32-bit register is zero-extended even so.
        Count::Const(0) => close(b, p, w, a),
        Count::Const(n) if n < u64::from(w.bits()) => {
            let n = b.imm(w, n);
            let r = b.bin(bin, w, a, n);
            close(b, p, w, r)?;
            b.set_flags(ARITH, flags, w, a, n, r);
            Ok(())
        }
        Count::Var(n) if w >= Width::B4 => {
            let r = b.bin(bin, w, a, n);
            close(b, p, w, r)?;
            let nz = non_zero(b, w, n);
            b.set_flags_if(nz, ARITH, flags, w, a, n, r);
            Ok(())
        }
        // 8- and 16-bit operands: the count may pass the width.
        c => {
            let n = match c {
                Count::Const(n) => b.imm(B8, n),
                Count::Var(n) => b.zext(w, B8, n),
            };
            let wide = if i.op == Op::Sar {
                b.sext(w, B8, a)
            } else {
                b.zext(w, B8, a)
            };
            let r = b.bin(bin, B8, wide, n);
            let out = if i.op == Op::Shl {
                let top = b.imm(B8, u64::from(w.bits()));
                b.bin(Bin::Shr, B8, r, top)
            } else {
                let one = b.imm(B8, 1);
                let before = b.bin(Bin::Shl, B8, wide, one);
                b.bin(Bin::Shr, B8, before, n)
            };
            let one = b.imm(B8, 1);
            let out = b.bin(Bin::And, B8, out, one);
            let cf = non_zero(b, B8, out);
            let r = b.zext(B8, w, r);
            let of = match i.op {
                Op::Shl => first_two_differ(b, w, a),
                Op::Shr => negative(b, w, a),
                _ => b.cond_const(false),
            };
            close(b, p, w, r)?;
            let nz = non_zero(b, B8, n);
            b.set_flags_if(nz, ZF | SF | PF | AF, FlagOp::Logic, w, r, r, r);
            set_cf_of(b, Some(nz), cf, of);
            Ok(())
        }
    }
}

/// Whether the two top bits differ: OF of a left shift or rotate by one.
fn first_two_differ<B: Builder>(b: &mut B, w: Width, a: B::V) -> B::C {
    let one = b.imm(w, 1);
    let moved = b.bin(Bin::Shl, w, a, one);
    let x = b.bin(Bin::Xor, w, a, moved);
    negative(b, w, x)
}

/// Whether the lowest bit of `x` and the top bit of `y` differ.
fn ends_differ<B: Builder>(b: &mut B, w: Width, x: B::V, y: B::V) -> B::C {
    let n = b.imm(w, u64::from(w.bits() - 1));
    let moved = b.bin(Bin::Shl, w, x, n);
    let x = b.bin(Bin::Xor, w, moved, y);
    negative(b, w, x)
}

fn lowest<B: Builder>(b: &mut B, w: Width, v: B::V) -> B::C {
    let one = b.imm(w, 1);
    let bit = b.bin(Bin::And, w, v, one);
    non_zero(b, w, bit)
}

/// ROL, ROR.
#[inline]
pub(crate) fn rotate<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let left = i.op == Op::Rol;
    let c = count(b, i, 1);
    let (p, a) = open(b, i, w)?;
    let last = u64::from(w.bits() - 1);
    let (n, when) = match c {
        Count::Const(0) => return close(b, p, w, a),
        Count::Const(n) => (b.imm(w, n & last), None),
        Count::Var(n) => {
            let nz = non_zero(b, w, n);
            let m = b.imm(w, last);
            (b.bin(Bin::And, w, n, m), Some(nz))
        }
    };
    let r = b.bin(if left { Bin::Rotl } else { Bin::Rotr }, w, a, n);
    close(b, p, w, r)?;
    let cf = if left {
        lowest(b, w, r)
    } else {
        negative(b, w, r)
    };
    if matches!(c, Count::Const(n) if n != 1) && i.ops[0] != Operand::Mem {
        // Hardware leaves OF alone for an immediate count and a register.
        b.set_flag(Flag::Cf, cf);
        return Ok(());
    }
    let of = if left {
        first_two_differ(b, w, a)
    } else {
        ends_differ(b, w, a, a)
    };
    set_cf_of(b, when, cf, of);
    Ok(())
}

/// The remainder of a 5-bit count by 9 or 17, for the rotates through carry of 8 and 16 bits.
fn modulo<B: Builder>(b: &mut B, w: Width, n: B::V) -> B::V {
    let (factor, modulus) = if w == Width::B1 { (57, 9) } else { (31, 17) };
    let f = b.imm(B8, factor);
    let q = b.bin(Bin::Mul, B8, n, f);
    let s = b.imm(B8, 9);
    let q = b.bin(Bin::Shr, B8, q, s);
    let m = b.imm(B8, modulus);
    let whole = b.bin(Bin::Mul, B8, q, m);
    b.bin(Bin::Sub, B8, n, whole)
}

/// RCL, RCR: a rotation of n + 1 bits.
pub(crate) fn rotate_carry<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let left = i.op == Op::Rcl;
    let c = count(b, i, 1);
    let (p, a) = open(b, i, w)?;
    let carry = b.flag(Flag::Cf);
    let (n, when) = match c {
        Count::Const(n) => {
            let n = match w {
                Width::B1 => n % 9,
                Width::B2 => n % 17,
                _ => n,
            };
            if n == 0 {
                return close(b, p, w, a);
            }
            (b.imm(B8, n), None)
        }
        Count::Var(n) => {
            let mut n = if w == B8 { n } else { b.zext(w, B8, n) };
            if w < Width::B4 {
                n = modulo(b, w, n);
            }
            let nz = non_zero(b, B8, n);
            (n, Some(nz))
        }
    };
    let of = if left {
        first_two_differ(b, w, a)
    } else {
        let c = b.cond_value(carry, w);
        ends_differ(b, w, c, a)
    };
    let (r, out) = if w == B8 {
        rotate_65(b, left, carry, a, n)
    } else {
        rotate_narrow(b, w, left, carry, a, n)
    };
    close(b, p, w, r)?;
    let cf = non_zero(b, B8, out);
    set_cf_of(b, when, cf, of);
    Ok(())
}

/// Rotation of `w` + 1 bits inside a 64-bit value; the new carry is the second result's only bit.
fn rotate_narrow<B: Builder>(
    b: &mut B,
    w: Width,
    left: bool,
    carry: B::C,
    a: B::V,
    n: B::V,
) -> (B::V, B::V) {
    let bits = u64::from(w.bits());
    let wide = b.zext(w, B8, a);
    let c = b.cond_value(carry, B8);
    let top = b.imm(B8, bits);
    let c = b.bin(Bin::Shl, B8, c, top);
    let v = b.bin(Bin::Or, B8, c, wide);
    let size = b.imm(B8, bits + 1);
    let rest = b.bin(Bin::Sub, B8, size, n);
    let (l, r) = if left { (n, rest) } else { (rest, n) };
    let high = b.bin(Bin::Shl, B8, v, l);
    let low = b.bin(Bin::Shr, B8, v, r);
    let v = b.bin(Bin::Or, B8, high, low);
    let out = b.bin(Bin::Shr, B8, v, top);
    let one = b.imm(B8, 1);
    let out = b.bin(Bin::And, B8, out, one);
    (b.zext(B8, w, v), out)
}

/// Rotation of 65 bits by 0 to 63.
fn rotate_65<B: Builder>(b: &mut B, left: bool, carry: B::C, a: B::V, n: B::V) -> (B::V, B::V) {
    let one = b.imm(B8, 1);
    let last = b.imm(B8, 63);
    // 64 - n for n = 1 to 63; n = 0 is put right at the end.
    let before = b.bin(Bin::Sub, B8, n, one);
    let before = b.bin(Bin::And, B8, before, last);
    let rest = b.bin(Bin::Sub, B8, last, before);
    let c = b.cond_value(carry, B8);
    let (main, back) = if left {
        (Bin::Shl, Bin::Shr)
    } else {
        (Bin::Shr, Bin::Shl)
    };
    let moved = b.bin(main, B8, a, n);
    // The bits that come round: all but the one that becomes the carry.
    let round = b.bin(back, B8, a, one);
    let round = b.bin(back, B8, round, rest);
    let at = if left { before } else { rest };
    let c_at = b.bin(Bin::Shl, B8, c, at);
    let r = b.bin(Bin::Or, B8, moved, round);
    let r = b.bin(Bin::Or, B8, r, c_at);
    // The last bit out.
    let pos = if left { rest } else { before };
    let out = b.bin(Bin::Shr, B8, a, pos);
    let out = b.bin(Bin::And, B8, out, one);
    let nz = non_zero(b, B8, n);
    (b.select(nz, B8, r, a), out)
}

/// SHLD, SHRD.
pub(crate) fn double<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let left = i.op == Op::Shld;
    let c = count(b, i, 2);
    let other = read_op(b, i, 1, w)?;
    let (p, a) = open(b, i, w)?;
    let (n, when) = match c {
        Count::Const(0) => return close(b, p, w, a),
        Count::Const(n) => (b.imm(w, n), None),
        Count::Var(n) => (n, Some(non_zero(b, w, n))),
    };
    if w == Width::B2 {
        return double_16(b, left, p, a, other, n, when);
    }
    // (other >> 1) >> (bits - 1 - n) is other >> (bits - n), and 0 for n = 0.
    let one = b.imm(w, 1);
    let last = b.imm(w, u64::from(w.bits() - 1));
    let rest = b.bin(Bin::Xor, w, n, last);
    let (main, back) = if left {
        (Bin::Shl, Bin::Shr)
    } else {
        (Bin::Shr, Bin::Shl)
    };
    let moved = b.bin(main, w, a, n);
    let x = b.bin(back, w, other, one);
    let x = b.bin(back, w, x, rest);
    let r = b.bin(Bin::Or, w, moved, x);
    close(b, p, w, r)?;
    if left {
        // CF, and OF for a count of one, are those of a plain left shift.
        match when {
            None => b.set_flags(ARITH, FlagOp::Shl, w, a, n, r),
            Some(nz) => b.set_flags_if(nz, ARITH, FlagOp::Shl, w, a, n, r),
        }
        return Ok(());
    }
    let mut of = ends_differ(b, w, other, a);
    match when {
        None => b.set_flags(ARITH, FlagOp::Shr, w, a, n, r),
        Some(nz) => {
            let old = b.flag(Flag::Of);
            of = choose(b, nz, of, old);
            b.set_flags_if(nz, ARITH, FlagOp::Shr, w, a, n, r);
        }
    }
    b.set_flag(Flag::Of, of);
    Ok(())
}

/// 16-bit SHLD and SHRD. For counts over 16, which are undefined, hardware shifts `a:other:a`.
fn double_16<B: Builder>(
    b: &mut B,
    left: bool,
    p: super::Place<B::V>,
    a: B::V,
    other: B::V,
    n: B::V,
    when: Option<B::C>,
) -> Result<(), B::Stop> {
    let w = Width::B2;
    let n = b.zext(w, B8, n);
    let wide = b.zext(w, B8, a);
    let middle = b.zext(w, B8, other);
    let s16 = b.imm(B8, 16);
    let s32 = b.imm(B8, 32);
    let middle = b.bin(Bin::Shl, B8, middle, s16);
    let high = b.bin(Bin::Shl, B8, wide, s32);
    let v = b.bin(Bin::Or, B8, wide, middle);
    let v = b.bin(Bin::Or, B8, v, high);
    let one = b.imm(B8, 1);
    let (r, out) = if left {
        let v = b.bin(Bin::Shl, B8, v, n);
        let s48 = b.imm(B8, 48);
        (b.bin(Bin::Shr, B8, v, s32), b.bin(Bin::Shr, B8, v, s48))
    } else {
        let double = b.bin(Bin::Shl, B8, v, one);
        (b.bin(Bin::Shr, B8, v, n), b.bin(Bin::Shr, B8, double, n))
    };
    let r = b.zext(B8, w, r);
    let out = b.bin(Bin::And, B8, out, one);
    let cf = non_zero(b, B8, out);
    let of = if left {
        first_two_differ(b, w, a)
    } else {
        ends_differ(b, w, other, a)
    };
    close(b, p, w, r)?;
    match when {
        None => b.set_flags(ZF | SF | PF | AF, FlagOp::Logic, w, r, r, r),
        Some(nz) => b.set_flags_if(nz, ZF | SF | PF | AF, FlagOp::Logic, w, r, r, r),
    }
    set_cf_of(b, when, cf, of);
    Ok(())
}

/// RORX: no flags.
pub(crate) fn rorx<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let n = match i.ops[2] {
        Operand::Imm(n) => n as u64 & u64::from(w.bits() - 1),
        _ => 0,
    };
    let n = b.imm(w, n);
    let r = b.bin(Bin::Rotr, w, v, n);
    write_op(b, i, 0, w, r)
}

/// SHLX, SHRX, SARX: no flags.
pub(crate) fn shift_x<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let n = read_op(b, i, 2, w)?;
    let m = b.imm(w, u64::from(w.bits() - 1));
    let n = b.bin(Bin::And, w, n, m);
    let bin = match i.op {
        Op::Shlx => Bin::Shl,
        Op::Shrx => Bin::Shr,
        _ => Bin::Sar,
    };
    let r = b.bin(bin, w, v, n);
    write_op(b, i, 0, w, r)
}
