//! Data movement: MOV and its extensions, stack, exchange, conditional moves.

use super::{close, open, read_op, write_op};
use crate::builder::{Bin, Builder, Rmw, Un};
use crate::flags::{ARITH, Cond, FlagOp, OF};
use crate::insn::{Insn, MemRef, Operand, Width};
use crate::state::gpr::{RAX, RBP, RBX, RDX, RSP};

const B1: Width = Width::B1;
const B8: Width = Width::B8;

#[inline(always)]
pub(crate) fn mov<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.width)?;
    write_op(b, i, 0, i.width, v)
}

#[inline(always)]
pub(crate) fn movzx<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.src_width)?;
    let v = b.zext(i.src_width, i.width, v);
    write_op(b, i, 0, i.width, v)
}

#[inline(always)]
pub(crate) fn movsx<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.src_width)?;
    let v = if i.src_width == i.width {
        v
    } else {
        b.sext(i.src_width, i.width, v)
    };
    write_op(b, i, 0, i.width, v)
}

#[inline(always)]
pub(crate) fn lea<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    // A segment override does not enter the result.
    let m = MemRef {
        seg: MemRef::NONE,
        ..i.mem
    };
    let a = b.address(&m);
    let a = if i.width == B8 {
        a
    } else {
        b.zext(B8, i.width, a)
    };
    write_op(b, i, 0, i.width, a)
}

pub(crate) fn xchg<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let v = read_op(b, i, 1, w)?;
    if i.ops[0] == Operand::Mem {
        let va = b.address(&i.mem);
        let old = b.atomic(Rmw::Xchg, w, va, v)?;
        return write_op(b, i, 1, w, old);
    }
    let (p, old) = open(b, i, w)?;
    close(b, p, w, v)?;
    write_op(b, i, 1, w, old)
}

/// RSP moved by `by`.
pub(crate) fn stack<B: Builder>(b: &mut B, by: i64) -> B::V {
    let sp = b.gpr(RSP, B8);
    let by = b.imm(B8, by as u64);
    b.bin(Bin::Add, B8, sp, by)
}

#[inline(always)]
pub(crate) fn push_value<B: Builder>(b: &mut B, w: Width, v: B::V) -> Result<(), B::Stop> {
    let sp = stack(b, -i64::from(w.bytes()));
    b.store(w, sp, v)?;
    b.set_gpr(RSP, B8, sp);
    Ok(())
}

#[inline(always)]
pub(crate) fn push<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 0, i.width)?;
    push_value(b, i.width, v)
}

#[inline(always)]
pub(crate) fn pop<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let n = i64::from(w.bytes());
    let sp = b.gpr(RSP, B8);
    let v = b.load(w, sp)?;
    if i.ops[0] == Operand::Mem {
        // The address is computed with RSP already incremented.
        let mut m = i.mem;
        if m.base == RSP {
            m.disp = m.disp.wrapping_add(n);
        }
        let va = b.address(&m);
        b.store(w, va, v)?;
    }
    let sp = stack(b, n);
    b.set_gpr(RSP, B8, sp);
    if let Operand::Gpr(r) = i.ops[0] {
        b.set_gpr(r, w, v);
    }
    Ok(())
}

pub(crate) fn pushf<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let f = b.rflags();
    // RF and VM read as zero.
    let mask = b.imm(B8, !0x3_0000);
    let f = b.bin(Bin::And, B8, f, mask);
    let f = if i.width == B8 {
        f
    } else {
        b.zext(B8, i.width, f)
    };
    push_value(b, i.width, f)
}

pub(crate) fn leave<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let bp = b.gpr(RBP, B8);
    let v = b.load(w, bp)?;
    let n = b.imm(B8, u64::from(w.bytes()));
    let sp = b.bin(Bin::Add, B8, bp, n);
    b.set_gpr(RSP, B8, sp);
    b.set_gpr(RBP, w, v);
    Ok(())
}

pub(crate) fn enter<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let n = i64::from(w.bytes());
    let imm = |k: usize| match i.ops[k] {
        Operand::Imm(v) => v,
        _ => 0,
    };
    let (size, level) = (imm(0) & 0xffff, imm(1) & 31);
    let bp = b.gpr(RBP, B8);
    let saved = b.gpr(RBP, w);
    let frame = stack(b, -n);
    b.store(w, frame, saved)?;
    for k in 1..level {
        let from = b.imm(B8, (-n * k) as u64);
        let from = b.bin(Bin::Add, B8, bp, from);
        let v = b.load(w, from)?;
        let to = stack(b, -n * (k + 1));
        b.store(w, to, v)?;
    }
    if level > 0 {
        let to = stack(b, -n * (level + 1));
        let v = if w == B8 { frame } else { b.zext(B8, w, frame) };
        b.store(w, to, v)?;
    }
    let sp = stack(b, -n * (level + 1) - size);
    // The new top of the stack must be writable.
    b.load_rmw(w, sp)?;
    b.set_gpr(RSP, B8, sp);
    let frame = if w == B8 { frame } else { b.zext(B8, w, frame) };
    b.set_gpr(RBP, w, frame);
    Ok(())
}

pub(crate) fn bswap<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 0, i.width)?;
    // The 16-bit form is undefined; hardware gives zero.
    let v = if i.width == Width::B2 {
        b.imm(Width::B2, 0)
    } else {
        b.un(Un::Bswap, i.width, v)
    };
    write_op(b, i, 0, i.width, v)
}

pub(crate) fn movbe<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let v = read_op(b, i, 1, i.width)?;
    let v = b.un(Un::Bswap, i.width, v);
    write_op(b, i, 0, i.width, v)
}

pub(crate) fn xlat<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let base = b.gpr(RBX, B8);
    let al = b.gpr(RAX, B1);
    let al = b.zext(B1, B8, al);
    let mut va = b.bin(Bin::Add, B8, base, al);
    if i.mem.addr32 {
        let low = b.imm(B8, 0xffff_ffff);
        va = b.bin(Bin::And, B8, va, low);
    }
    if i.mem.seg != MemRef::NONE {
        let base = b.seg_base(i.mem.seg);
        va = b.bin(Bin::Add, B8, va, base);
    }
    let v = b.load(B1, va)?;
    b.set_gpr(RAX, B1, v);
    Ok(())
}

#[inline]
pub(crate) fn cmov<B: Builder>(b: &mut B, i: &Insn, cc: Cond) -> Result<(), B::Stop> {
    // The load happens, and faults, whether or not the condition holds.
    let v = read_op(b, i, 1, i.width)?;
    let old = read_op(b, i, 0, i.width)?;
    let c = b.cond(cc);
    let v = b.select(c, i.width, v, old);
    write_op(b, i, 0, i.width, v)
}

#[inline]
pub(crate) fn setcc<B: Builder>(b: &mut B, i: &Insn, cc: Cond) -> Result<(), B::Stop> {
    let c = b.cond(cc);
    let v = b.cond_value(c, B1);
    write_op(b, i, 0, B1, v)
}

/// CWD, CDQ, CQO.
pub(crate) fn cwd<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let a = b.gpr(RAX, w);
    let n = b.imm(w, u64::from(w.bits() - 1));
    let sign = b.bin(Bin::Sar, w, a, n);
    b.set_gpr(RDX, w, sign);
    Ok(())
}

/// CBW, CWDE, CDQE.
pub(crate) fn cbw<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let half = Width::from_log2(i.width.log2() - 1);
    let a = b.gpr(RAX, half);
    let a = b.sext(half, i.width, a);
    b.set_gpr(RAX, i.width, a);
    Ok(())
}

pub(crate) fn lahf<B: Builder>(b: &mut B) -> Result<(), B::Stop> {
    let f = b.rflags();
    let f = b.zext(B8, B1, f);
    b.set_gpr_high(RAX, f);
    Ok(())
}

pub(crate) fn sahf<B: Builder>(b: &mut B) -> Result<(), B::Stop> {
    let ah = b.gpr_high(RAX);
    let ah = b.zext(B1, B8, ah);
    let mask = b.imm(B8, ARITH & !OF);
    let f = b.bin(Bin::And, B8, ah, mask);
    b.set_flags(ARITH & !OF, FlagOp::Explicit, B8, f, f, f);
    Ok(())
}

/// CLFLUSH family: the line must be readable. Caches are coherent, so nothing else shows.
pub(crate) fn clflush<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let va = b.address(&i.mem);
    b.load(B1, va)?;
    Ok(())
}
