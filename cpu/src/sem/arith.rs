//! Addition, subtraction, logic, comparison, exchange-and-add.

use super::{close, is_zero, negative, open, read_op, write_op};
use crate::builder::{Bin, Builder, Cmp, Rmw, Un};
use crate::flags::{ARITH, CF, Flag, FlagOp};
use crate::insn::{Insn, Operand, Width};
use crate::state::gpr::RAX;

/// `xor r, r` and its like: both operands are the same whole register.
#[inline(always)]
fn same_register(i: &Insn) -> bool {
    matches!((i.ops[0], i.ops[1]), (Operand::Gpr(x), Operand::Gpr(y)) if x == y)
}

#[inline(always)]
fn zero_register<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let z = b.imm(i.width, 0);
    write_op(b, i, 0, i.width, z)?;
    b.set_flags(ARITH, FlagOp::Logic, i.width, z, z, z);
    Ok(())
}

/// `op0 = op0 OP op1`, with the flags of `flags`; `v` is the second operand.
#[inline(always)]
fn binary<B: Builder>(
    b: &mut B,
    i: &Insn,
    op: Bin,
    rmw: Rmw,
    flags: FlagOp,
    v: B::V,
) -> Result<(), B::Stop> {
    let w = i.width;
    if i.lock {
        let va = b.address(&i.mem);
        let old = b.atomic(rmw, w, va, v)?;
        let r = b.bin(op, w, old, v);
        b.set_flags(ARITH, flags, w, old, v, r);
        return Ok(());
    }
    let (p, a) = open(b, i, w)?;
    let r = b.bin(op, w, a, v);
    close(b, p, w, r)?;
    b.set_flags(ARITH, flags, w, a, v, r);
    Ok(())
}

#[inline(always)]
pub(crate) fn add<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.width)?;
    binary(b, i, Bin::Add, Rmw::Add, FlagOp::Add, v)
}

#[inline(always)]
pub(crate) fn sub<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    if same_register(i) {
        return zero_register(b, i);
    }
    let v = read_op(b, i, 1, i.width)?;
    binary(b, i, Bin::Sub, Rmw::Sub, FlagOp::Sub, v)
}

#[inline(always)]
pub(crate) fn and<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.width)?;
    binary(b, i, Bin::And, Rmw::And, FlagOp::Logic, v)
}

#[inline(always)]
pub(crate) fn or<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.width)?;
    binary(b, i, Bin::Or, Rmw::Or, FlagOp::Logic, v)
}

#[inline(always)]
pub(crate) fn xor<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    if same_register(i) {
        return zero_register(b, i);
    }
    let v = read_op(b, i, 1, i.width)?;
    binary(b, i, Bin::Xor, Rmw::Xor, FlagOp::Logic, v)
}

#[inline(always)]
pub(crate) fn cmp<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let a = read_op(b, i, 0, w)?;
    let v = read_op(b, i, 1, w)?;
    let r = b.bin(Bin::Sub, w, a, v);
    b.set_flags(ARITH, FlagOp::Sub, w, a, v, r);
    Ok(())
}

#[inline(always)]
pub(crate) fn test<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let a = read_op(b, i, 0, w)?;
    let r = if same_register(i) {
        a
    } else {
        let v = read_op(b, i, 1, w)?;
        b.bin(Bin::And, w, a, v)
    };
    b.set_flags(ARITH, FlagOp::Logic, w, r, r, r);
    Ok(())
}

#[inline(always)]
pub(crate) fn inc_dec<B: Builder>(b: &mut B, i: &Insn, inc: bool) -> Result<(), B::Stop> {
    let w = i.width;
    let one = b.imm(w, 1);
    let (bin, rmw, flags) = if inc {
        (Bin::Add, Rmw::Add, FlagOp::Inc)
    } else {
        (Bin::Sub, Rmw::Sub, FlagOp::Dec)
    };
    let (a, r);
    if i.lock {
        let va = b.address(&i.mem);
        a = b.atomic(rmw, w, va, one)?;
        r = b.bin(bin, w, a, one);
    } else {
        let (p, v) = open(b, i, w)?;
        a = v;
        r = b.bin(bin, w, a, one);
        close(b, p, w, r)?;
    }
    b.set_flags(ARITH & !CF, flags, w, a, one, r);
    Ok(())
}

/// CF as a value of width `w`.
fn carry_in<B: Builder>(b: &mut B, w: Width) -> B::V {
    let c = b.flag(Flag::Cf);
    b.cond_value(c, w)
}

pub(crate) fn adc<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    with_carry(b, i, Bin::Add, Rmw::Add, FlagOp::Add)
}

pub(crate) fn sbb<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    if same_register(i) {
        // 0 or -1: the register's old value does not enter.
        let z = b.imm(i.width, 0);
        let c = carry_in(b, i.width);
        let r = b.un(Un::Neg, i.width, c);
        write_op(b, i, 0, i.width, r)?;
        b.set_flags(ARITH, FlagOp::Sbb, i.width, z, z, r);
        return Ok(());
    }
    with_carry(b, i, Bin::Sub, Rmw::Sub, FlagOp::Sbb)
}

fn with_carry<B: Builder>(
    b: &mut B,
    i: &Insn,
    op: Bin,
    rmw: Rmw,
    flags: FlagOp,
) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let c = carry_in(b, w);
    if i.lock {
        let sum = b.bin(Bin::Add, w, v, c);
        let va = b.address(&i.mem);
        let old = b.atomic(rmw, w, va, sum)?;
        let r = b.bin(op, w, old, sum);
        b.set_flags(ARITH, flags, w, old, v, r);
        return Ok(());
    }
    let (p, a) = open(b, i, w)?;
    let r = b.bin(op, w, a, v);
    let r = b.bin(op, w, r, c);
    close(b, p, w, r)?;
    b.set_flags(ARITH, flags, w, a, v, r);
    Ok(())
}

pub(crate) fn neg<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    if i.lock {
        return b.complex(i); // a compare-exchange loop
    }
    let w = i.width;
    let (p, a) = open(b, i, w)?;
    let z = b.imm(w, 0);
    let r = b.un(Un::Neg, w, a);
    close(b, p, w, r)?;
    b.set_flags(ARITH, FlagOp::Sub, w, z, a, r);
    Ok(())
}

pub(crate) fn not<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    if i.lock {
        let ones = b.imm(w, u64::MAX);
        let va = b.address(&i.mem);
        b.atomic(Rmw::Xor, w, va, ones)?;
        return Ok(());
    }
    let (p, a) = open(b, i, w)?;
    let r = b.un(Un::Not, w, a);
    close(b, p, w, r)
}

pub(crate) fn adcx<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let a = read_op(b, i, 0, w)?;
    let c = carry_in(b, w);
    let r = b.bin(Bin::Add, w, a, v);
    let r = b.bin(Bin::Add, w, r, c);
    write_op(b, i, 0, w, r)?;
    b.set_flags(CF, FlagOp::Add, w, a, v, r);
    Ok(())
}

pub(crate) fn adox<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    let a = read_op(b, i, 0, w)?;
    let c = b.flag(Flag::Of);
    let c = b.cond_value(c, w);
    let r = b.bin(Bin::Add, w, a, v);
    let r = b.bin(Bin::Add, w, r, c);
    // Carry out of the top bit: (a & v) | ((a | v) & !r).
    let both = b.bin(Bin::And, w, a, v);
    let either = b.bin(Bin::Or, w, a, v);
    let not_r = b.un(Un::Not, w, r);
    let propagated = b.bin(Bin::And, w, either, not_r);
    let carry = b.bin(Bin::Or, w, both, propagated);
    let carry = negative(b, w, carry);
    write_op(b, i, 0, w, r)?;
    b.set_flag(Flag::Of, carry);
    Ok(())
}

pub(crate) fn xadd<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    if i.lock {
        let va = b.address(&i.mem);
        let old = b.atomic(Rmw::Add, w, va, v)?;
        let r = b.bin(Bin::Add, w, old, v);
        write_op(b, i, 1, w, old)?;
        b.set_flags(ARITH, FlagOp::Add, w, old, v, r);
        return Ok(());
    }
    let (p, a) = open(b, i, w)?;
    let r = b.bin(Bin::Add, w, a, v);
    if let super::Place::Mem(va) = p {
        b.store(w, va, r)?;
        write_op(b, i, 1, w, a)?;
    } else {
        // With the same register twice the sum is what stays.
        write_op(b, i, 1, w, a)?;
        close(b, p, w, r)?;
    }
    b.set_flags(ARITH, FlagOp::Add, w, a, v, r);
    Ok(())
}

pub(crate) fn cmpxchg<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let new = read_op(b, i, 1, w)?;
    let acc = b.gpr(RAX, w);
    let old;
    if i.lock {
        let va = b.address(&i.mem);
        old = b.atomic_cas(w, va, acc, new)?;
    } else {
        let (p, a) = open(b, i, w)?;
        old = a;
        let equal = b.cmp(Cmp::Eq, w, old, acc);
        match p {
            // A failure leaves the high half of a 32-bit destination alone.
            super::Place::Gpr(r) if w == Width::B4 => {
                let wide = b.zext(w, Width::B8, new);
                let keep = b.gpr(r, Width::B8);
                let v = b.select(equal, Width::B8, wide, keep);
                b.set_gpr(r, Width::B8, v);
            }
            _ => {
                let v = b.select(equal, w, new, old);
                close(b, p, w, v)?;
            }
        }
    }
    // The accumulator is written only if the comparison failed, so that a success keeps its high half.
    let equal = b.cmp(Cmp::Eq, w, old, acc);
    if i.ops[0] == Operand::Gpr(RAX) {
        // Always equal.
    } else if w == Width::B4 {
        let wide = b.zext(w, Width::B8, old);
        let keep = b.gpr(RAX, Width::B8);
        let v = b.select(equal, Width::B8, keep, wide);
        b.set_gpr(RAX, Width::B8, v);
    } else {
        // A success writes back what is there.
        b.set_gpr(RAX, w, old);
    }
    let r = b.bin(Bin::Sub, w, acc, old);
    b.set_flags(ARITH, FlagOp::Sub, w, acc, old, r);
    Ok(())
}

pub(crate) fn carry<B: Builder>(b: &mut B, v: bool) -> Result<(), B::Stop> {
    let c = b.cond_const(v);
    b.set_flag(Flag::Cf, c);
    Ok(())
}

pub(crate) fn cmc<B: Builder>(b: &mut B) -> Result<(), B::Stop> {
    let c = b.flag(Flag::Cf);
    let v = b.cond_value(c, Width::B1);
    let c = is_zero(b, Width::B1, v);
    b.set_flag(Flag::Cf, c);
    Ok(())
}
