//! Bit test, scan, count, and the BMI extensions.

use super::{close, is_zero, non_zero, open, read_op, write_op};
use crate::builder::{Bin, Builder, Cmp, Rmw, Un};
use crate::flags::{ARITH, Flag, FlagOp};
use crate::insn::{Insn, MemRef, Op, Operand, Width};

const B8: Width = Width::B8;

/// BT, BTS, BTR, BTC. Only CF changes, as on current hardware. A bit offset in a register reaches
/// memory beyond the operand.
pub(super) fn bit_test<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let index = read_op(b, i, 1, w)?;
    let last = b.imm(w, u64::from(w.bits() - 1));
    let offset = b.bin(Bin::And, w, index, last);
    let va = if i.ops[0] == Operand::Mem {
        let bit_string = !matches!(i.ops[1], Operand::Imm(_));
        // The bit offset is part of the effective address: the segment base comes last.
        let mut m = i.mem;
        if bit_string {
            m.seg = MemRef::NONE;
        }
        let mut va = b.address(&m);
        if bit_string {
            let wide = if w == B8 { index } else { b.sext(w, B8, index) };
            let n = b.imm(B8, u64::from(3 + w.log2()));
            let units = b.bin(Bin::Sar, B8, wide, n);
            let n = b.imm(B8, u64::from(w.log2()));
            let bytes = b.bin(Bin::Shl, B8, units, n);
            va = b.bin(Bin::Add, B8, va, bytes);
            if i.mem.addr32 {
                let low = b.imm(B8, 0xffff_ffff);
                va = b.bin(Bin::And, B8, va, low);
            }
            if i.mem.seg != MemRef::NONE {
                let base = b.seg_base(i.mem.seg);
                va = b.bin(Bin::Add, B8, va, base);
            }
        }
        Some(va)
    } else {
        None
    };
    let one = b.imm(w, 1);
    let old = if i.op == Op::Bt {
        match va {
            Some(va) => b.load(w, va)?,
            None => read_op(b, i, 0, w)?,
        }
    } else {
        let mask = b.bin(Bin::Shl, w, one, offset);
        let (op, rmw, mask) = match i.op {
            Op::Bts => (Bin::Or, Rmw::Or, mask),
            Op::Btr => (Bin::And, Rmw::And, b.un(Un::Not, w, mask)),
            _ => (Bin::Xor, Rmw::Xor, mask),
        };
        match va {
            Some(va) if i.lock => b.atomic(rmw, w, va, mask)?,
            Some(va) => {
                let old = b.load_rmw(w, va)?;
                let new = b.bin(op, w, old, mask);
                b.store(w, va, new)?;
                old
            }
            None => {
                let (p, old) = open(b, i, w)?;
                let new = b.bin(op, w, old, mask);
                close(b, p, w, new)?;
                old
            }
        }
    };
    let bit = b.bin(Bin::Shr, w, old, offset);
    let bit = b.bin(Bin::And, w, bit, one);
    let c = non_zero(b, w, bit);
    b.set_flag(Flag::Cf, c);
    Ok(())
}

/// BSF, BSR: a zero source leaves the destination alone (all 64 bits of it).
pub(super) fn bit_scan<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let zero = is_zero(b, w, v);
    let index = if i.op == Op::Bsf {
        b.un(Un::Ctz, w, v)
    } else {
        let n = b.un(Un::Clz, w, v);
        let last = b.imm(w, u64::from(w.bits() - 1));
        b.bin(Bin::Sub, w, last, n)
    };
    if let Operand::Gpr(r) = i.ops[0] {
        if w == Width::B2 {
            let old = b.gpr(r, w);
            let new = b.select(zero, w, old, index);
            b.set_gpr(r, w, new);
        } else {
            let old = b.gpr(r, B8);
            let wide = if w == B8 { index } else { b.zext(w, B8, index) };
            let new = b.select(zero, B8, old, wide);
            b.set_gpr(r, B8, new);
        }
    }
    // SF, OF, CF, AF = 0 and the parity of the index (0 for no index), as current hardware does.
    let none = b.imm(w, 0);
    let shown = b.select(zero, w, none, index);
    b.set_flags(ARITH, FlagOp::Logic, w, shown, shown, shown);
    b.set_flag(Flag::Zf, zero);
    Ok(())
}

fn clear_flags<B: Builder>(b: &mut B) {
    let z = b.imm(B8, 0);
    b.set_flags(ARITH, FlagOp::Explicit, B8, z, z, z);
}

/// TZCNT, LZCNT: CF = source is zero, ZF = result is zero.
pub(super) fn count_zeros<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let none = is_zero(b, w, v);
    let r = b.un(if i.op == Op::Tzcnt { Un::Ctz } else { Un::Clz }, w, v);
    let zero = is_zero(b, w, r);
    write_op(b, i, 0, w, r)?;
    clear_flags(b);
    b.set_flag(Flag::Cf, none);
    b.set_flag(Flag::Zf, zero);
    Ok(())
}

pub(super) fn popcnt<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let zero = is_zero(b, w, v);
    let r = b.un(Un::Popcnt, w, v);
    write_op(b, i, 0, w, r)?;
    clear_flags(b);
    b.set_flag(Flag::Zf, zero);
    Ok(())
}

pub(super) fn andn<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let x = read_op(b, i, 1, w)?;
    let y = read_op(b, i, 2, w)?;
    let x = b.un(Un::Not, w, x);
    let r = b.bin(Bin::And, w, x, y);
    write_op(b, i, 0, w, r)?;
    b.set_flags(ARITH, FlagOp::Logic, w, r, r, r);
    Ok(())
}

/// Byte `n` of a control register operand, at the operand's width.
fn control_byte<B: Builder>(b: &mut B, w: Width, v: B::V, n: u64) -> B::V {
    let v = if n == 0 {
        v
    } else {
        let s = b.imm(w, 8 * n);
        b.bin(Bin::Shr, w, v, s)
    };
    let m = b.imm(w, 0xff);
    b.bin(Bin::And, w, v, m)
}

/// The low `count` bits of `v`, all of it if `count` is not below the width; also whether it is not.
fn low_bits<B: Builder>(b: &mut B, w: Width, v: B::V, count: B::V) -> (B::V, B::C) {
    let n = b.imm(w, u64::from(w.bits()));
    let whole = b.cmp(Cmp::Ule, w, n, count);
    let last = b.imm(w, u64::from(w.bits() - 1));
    let masked = b.bin(Bin::And, w, count, last);
    let ones = b.imm(w, u64::MAX);
    let high = b.bin(Bin::Shl, w, ones, masked);
    let mask = b.un(Un::Not, w, high);
    let low = b.bin(Bin::And, w, v, mask);
    (b.select(whole, w, v, low), whole)
}

pub(super) fn bextr<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let control = read_op(b, i, 2, w)?;
    let start = control_byte(b, w, control, 0);
    let count = control_byte(b, w, control, 1);
    let last = b.imm(w, u64::from(w.bits() - 1));
    let outside = b.cmp(Cmp::Ult, w, last, start);
    let masked = b.bin(Bin::And, w, start, last);
    let shifted = b.bin(Bin::Shr, w, v, masked);
    let zero = b.imm(w, 0);
    let shifted = b.select(outside, w, zero, shifted);
    let (r, _) = low_bits(b, w, shifted, count);
    let none = is_zero(b, w, r);
    write_op(b, i, 0, w, r)?;
    clear_flags(b);
    b.set_flag(Flag::Zf, none);
    Ok(())
}

pub(super) fn bzhi<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let control = read_op(b, i, 2, w)?;
    let count = control_byte(b, w, control, 0);
    let (r, whole) = low_bits(b, w, v, count);
    write_op(b, i, 0, w, r)?;
    b.set_flags(ARITH, FlagOp::Logic, w, r, r, r);
    b.set_flag(Flag::Cf, whole);
    Ok(())
}

/// BLSI, BLSMSK, BLSR.
pub(super) fn lowest_set<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let one = b.imm(w, 1);
    let (r, carry) = match i.op {
        Op::Blsi => {
            let n = b.un(Un::Neg, w, v);
            let c = non_zero(b, w, v);
            (b.bin(Bin::And, w, n, v), c)
        }
        op => {
            let n = b.bin(Bin::Sub, w, v, one);
            let c = is_zero(b, w, v);
            let bin = if op == Op::Blsr { Bin::And } else { Bin::Xor };
            (b.bin(bin, w, n, v), c)
        }
    };
    write_op(b, i, 0, w, r)?;
    b.set_flags(ARITH, FlagOp::Logic, w, r, r, r);
    b.set_flag(Flag::Cf, carry);
    Ok(())
}

pub(super) fn pdep_pext<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let mask = read_op(b, i, 2, w)?;
    let r = b.pdep_pext(i.op == Op::Pdep, w, v, mask);
    write_op(b, i, 0, w, r)
}
