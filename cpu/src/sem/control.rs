//! Jumps, calls, returns, loops.

use super::mov::{push_value, stack};
use super::{is_zero, non_zero, read_op};
use crate::builder::{Bin, Builder};
use crate::flags::{Cond, Flag};
use crate::insn::{Control, Insn, Op, Operand, Width};
use crate::state::gpr::{RCX, RSP};

const B8: Width = Width::B8;

fn target(i: &Insn) -> u64 {
    match i.control {
        Control::Jump(t) | Control::Branch(t) | Control::Call(t) => t,
        _ => i.next_rip(),
    }
}

#[inline(always)]
pub(crate) fn jmp<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    b.jump(target(i))
}

#[inline(always)]
pub(crate) fn jcc<B: Builder>(b: &mut B, i: &Insn, cc: Cond) -> Result<(), B::Stop> {
    let c = b.cond(cc);
    b.branch(c, target(i))
}

#[inline(always)]
pub(crate) fn jmp_indirect<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let t = read_op(b, i, 0, B8)?;
    b.check_target(t, None)?;
    b.jump_indirect(t)
}

#[inline(always)]
pub(crate) fn call<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let back = b.imm(B8, i.next_rip());
    push_value(b, B8, back)?;
    b.jump(target(i))
}

#[inline(always)]
pub(crate) fn call_indirect<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let t = read_op(b, i, 0, B8)?;
    let back = b.imm(B8, i.next_rip());
    b.check_target(t, Some(back))?;
    push_value(b, B8, back)?;
    b.jump_indirect(t)
}

#[inline(always)]
pub(crate) fn ret<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let sp = b.gpr(RSP, B8);
    let t = b.load(B8, sp)?;
    b.check_target(t, None)?;
    let extra = match i.ops[0] {
        Operand::Imm(n) => n & 0xffff,
        _ => 0,
    };
    let sp = stack(b, 8 + extra);
    b.set_gpr(RSP, B8, sp);
    b.jump_indirect(t)
}

pub(crate) fn jrcxz<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let n = b.gpr(RCX, i.width);
    let c = is_zero(b, i.width, n);
    b.branch(c, target(i))
}

pub(crate) fn loop_<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    let w = i.width;
    let n = b.gpr(RCX, w);
    let one = b.imm(w, 1);
    let n = b.bin(Bin::Sub, w, n, one);
    b.set_gpr(RCX, w, n);
    let mut c = non_zero(b, w, n);
    if i.op != Op::Loop {
        let mut z = b.flag(Flag::Zf);
        if i.op == Op::Loopne {
            z = b.cond_not(z);
        }
        c = b.cond_and(c, z);
    }
    b.branch(c, target(i))
}
