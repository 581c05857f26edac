//! Copies of blocks whose memory is in the view: an operand gets GS, and its address is checked to lie there.

use super::asm::At;
use super::tables::{Targets, number};
use super::uses::{Uses, is_plain, touches};
use super::writer::{Writer, returned};
use super::{A, Copies, Direct, Fix, Left, RBP, RCX, RSP, S};
use crate::layout;
use iced_x86::{Instruction, OpKind};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};

/// A stack pointer that was checked may move so far by one instruction.
const NEAR: i64 = 1 << 20;

/// Where an access faults that can't be made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// At this instruction.
    At(usize),
    /// Before the first, of which nothing has been done.
    Head,
    /// There too, and it is not the guest's access.
    Look,
}

/// What is behind a block's own code.
enum Tail {
    /// A way out in the middle: its jump, behind which instruction it is, where it goes to, and which flags are kept.
    Side(u32, usize, u64, u64),
    /// An exit that is not linked: its jump, and where it goes to.
    Exit(u32, u64),
    /// A target that is not in the table: the jump that comes here, and the instruction.
    Miss(u32, usize),
}

pub(super) struct Copier<'a> {
    w: Writer<'a>,
    /// log2 of the view's size: what has higher bits is not in it.
    view_bits: u8,
    /// Host registers whose value is known to be in the view.
    checked: u16,
    /// What A is the sum of, if it is one that is known to be in the view.
    sum: Option<(u8, (u8, u8))>,
    /// Those whose value is known to be less than 2^32 away from 0, as what has 32 bits: so much and more, with any scale and
    /// displacement, are the view's guards.
    small: u16,
    /// Where it begins anew once what does not change is checked.
    again: u32,
    /// Where code begins that may fault, and what the way out says: where, and which flags are kept. Or that may not.
    faulting: Vec<(u32, Option<(Way, u64)>)>,
    tails: Vec<Tail>,
}

impl<'a> Copier<'a> {
    /// For a view of so many bytes, a power of two. `budget`: blocks count against the budget of a turn. `bases`: see
    /// [`Plan::constant_bases`](super::plan::Plan::constant_bases).
    pub(super) fn new(w: Writer<'a>, bytes: u64, budget: bool, bases: u16) -> Self {
        let mut c = Self {
            w,
            view_bits: bytes.trailing_zeros() as u8,
            checked: 0,
            sum: None,
            again: 0,
            small: 0,
            faulting: Vec::new(),
            tails: Vec::new(),
        };
        c.begin(budget, bases);
        c
    }

    /// From here on an access may fault there.
    fn faults(&mut self, way: Way) {
        self.faulting
            .push((self.w.asm.here(), Some((way, self.w.kept))));
    }

    /// From here on nothing faults.
    fn safe(&mut self) {
        self.faulting.push((self.w.asm.here(), None));
    }

    /// Faults unless the register's value is an address in the view. What has higher bits than are looked at passes, and is no address of the
    /// host's: the access faults.
    fn check(&mut self, r: u8) {
        if self.checked >> r & 1 == 0 {
            self.check_bits(r, self.view_bits);
            self.checked |= 1 << r;
        }
    }

    /// Faults unless the 16 bits of the register from one on are clear.
    fn check_bits(&mut self, r: u8, from: u8) {
        self.w.asm.rotate(S, r, from);
        self.w.asm.low16(S, S);
        self.look_up();
    }

    /// Reads the check's entry of S.
    fn look_up(&mut self) {
        let at = At::entry(self.w.table, S);
        self.w.asm.mem(&[0x8b], S, at, false);
        self.w.fix(Fix::Table);
    }

    /// The host operand for the guest's memory operand, checked.
    fn operand(&mut self, m: &MemRef) -> Option<At> {
        let disp = i32::try_from(m.disp).ok();
        let (base, index) = self.w.registers(m);
        if base.is_none() && index.is_none() && m.seg == MemRef::NONE {
            // The processor's own, or an address as a number.
            let va = m.disp as u64;
            if va >> self.view_bits != 0 {
                return None;
            }
            self.constant(va);
            return Some(At::guest(A, 0));
        }
        let disp = disp?;
        if m.seg == MemRef::NONE && index.is_none() {
            let base = base?;
            if self.small >> base & 1 == 0 {
                self.check(base);
            }
            return Some(At::guest(base, disp));
        }
        if m.seg == MemRef::NONE {
            let small = |r: u8| self.small >> r & 1 != 0;
            if let Some((i, scale)) = index.filter(|i| small(i.0)) {
                if let Some(base) = base.filter(|b| !small(*b)) {
                    self.check(base);
                }
                return Some(At {
                    gs: true,
                    ..At::sum(base, Some((i, scale))).displaced(disp)
                });
            }
            let sum = base.zip(index);
            if sum.is_none() || sum != self.sum {
                self.w.asm.lea(A, At::sum(base, index));
                self.check_bits(A, self.view_bits);
                self.sum = sum;
            }
        } else {
            self.sum = None;
            self.w.asm.segment_sum(A, m.seg, base, index);
            self.check_bits(A, self.view_bits);
        }
        Some(At::guest(A, disp))
    }

    /// A has another value: this one.
    fn constant(&mut self, value: u64) {
        self.sum = None;
        self.w.asm.constant(A, value);
    }

    /// Whether it may lead back to itself by copies that do not look: each circle of them has a step that does not go up.
    fn looks(&self) -> bool {
        let first = self.w.head();
        let goes_back = |i: &Insn| match i.control {
            Control::Jump(to) | Control::Call(to) => to <= first,
            Control::Branch(to) => to <= first || i.next_rip() <= first,
            Control::Next | Control::Leave => i.next_rip() <= first,
            Control::Indirect | Control::IndirectCall | Control::Return => true,
        };
        self.w.insns.iter().any(goes_back)
    }

    /// Whether the last instruction may go on at the first.
    fn is_loop(&self) -> bool {
        let last = self.w.insns.last();
        last.is_some_and(|i| match i.control {
            Control::Jump(to) => to == self.w.head(),
            Control::Branch(to) => to == self.w.head() || i.next_rip() == self.w.head(),
            _ => false,
        })
    }

    /// The way in. `bases`: host registers that addresses are made of before there is a way out, and that do not change.
    fn begin(&mut self, budget: bool, bases: u16) {
        if self.is_loop() {
            self.faults(Way::Head);
            for r in (0..16).filter(|r| bases >> r & 1 != 0) {
                self.check(r);
            }
        }
        self.safe();
        self.again = self.w.asm.here();
        if self.looks() {
            // Before the first instruction is counted.
            self.faults(Way::Look);
            self.w
                .asm
                .mem(&[0x8b], S, At::state(layout::EXIT_REQUEST), false);
            self.look_up();
            if budget {
                self.w.asm.load(S, At::state(layout::BUDGET));
                self.w.asm.lea(S, At::plain(S, -1));
                self.w.asm.store(At::state(layout::BUDGET), S);
                self.check_bits(S, 48);
            }
            self.safe();
        }
        self.w.count(0, self.w.insns.len());
        self.w.take();
    }

    /// Puts a register on the guest's stack, whose pointer has been checked.
    fn push(&mut self, r: u8) {
        let sp = self.w.plan.host(RSP);
        self.w.asm.store(At::guest(sp, -8), r);
        self.move_sp(-8);
    }

    /// Moves the guest's stack pointer by so little that it stays checked.
    fn move_sp(&mut self, by: i32) {
        let sp = self.w.plan.host(RSP);
        self.w.asm.lea(sp, At::plain(sp, by));
        self.unsum(sp);
    }

    /// What A is the sum of has changed, if it is this host register.
    fn unsum(&mut self, r: u8) {
        self.sum = self.sum.filter(|s| s.0 != r && s.1.0 != r);
    }

    /// A jump to where the guest goes on.
    fn exit(&mut self, op: &[u8], to: u64) {
        let at = self.w.asm.jump(op);
        if to == self.w.head() {
            self.w.asm.aim_back(at, self.again);
        } else {
            self.tails.push(Tail::Exit(at, to));
        }
    }

    /// A host register has another value.
    fn forget(&mut self, r: u8) {
        self.checked &= !(1 << r);
        self.small &= !(1 << r);
        self.unsum(r);
    }

    /// Goes where a register, memory or the stack says.
    fn indirect(&mut self, i: &Insn) -> Option<()> {
        let sp = self.w.plan.host(RSP);
        match i.ops[0] {
            _ if i.control == Control::Return => {
                self.check(sp);
                self.w.asm.load(A, At::guest(sp, 0));
            }
            Operand::Gpr(r) => {
                let r = self.w.plan.host(r);
                self.w.asm.copy(A, r);
            }
            Operand::Mem => {
                let at = self.operand(&i.mem)?;
                self.w.asm.load(A, at);
            }
            _ => return None,
        }
        if i.control == Control::IndirectCall {
            self.check(sp);
        }
        let kept = At::state(layout::KEPT);
        self.w.asm.low16(S, A);
        self.w.asm.store(kept, RCX);
        self.w.asm.load(RCX, At::entry(self.w.targets, S));
        self.w.fix(Fix::Targets);
        self.w.asm.lea(RCX, At::sum(Some(RCX), Some((A, 0))));
        // jrcxz over the jump
        self.w.asm.bytes(&[0xe3, 5]);
        let miss = self.w.asm.jump(&[0xe9]);
        self.tails.push(Tail::Miss(miss, self.w.done));
        self.w.asm.load(RCX, kept);
        self.move_stack(i, A)?;
        self.w.give();
        let code = self.w.targets + 8 * Targets::ENTRIES as i32;
        self.w.asm.jump_to(At::entry(code, S));
        self.w.fix(Fix::Targets);
        Some(())
    }

    /// What a return or a call does to the stack. `free`: a register for the address.
    fn move_stack(&mut self, i: &Insn, free: u8) -> Option<()> {
        match i.control {
            Control::Return => self.move_sp(returned(i)?),
            Control::IndirectCall => {
                self.w.asm.constant(free, i.next_rip());
                self.push(free);
            }
            _ => {}
        }
        Some(())
    }

    /// The instruction itself, with its registers and its memory operand replaced.
    fn copy(&mut self, ins: &Instruction, uses: Uses) -> Option<()> {
        let i = &self.w.insns[self.w.done];
        let is_mem = ins.op_kinds().any(|k| k == OpKind::Memory);
        let at = if is_mem && i.op != Op::Lea {
            Some(self.operand(&i.mem)?)
        } else {
            None
        };
        self.w.emit(ins, at)?;
        let small = matches!(i.op, Op::Add | Op::Sub)
            && i.width.bytes() == 8
            && matches!(i.ops, [Operand::Gpr(RSP), Operand::Imm(v), ..] if v.abs() < NEAR);
        for r in (0..16).filter(|r| uses.written >> r & 1 != 0) {
            if r == RSP && small {
                self.unsum(self.w.plan.host(r));
            } else {
                self.forget(self.w.plan.host(r));
            }
        }
        if let Operand::Gpr(r) = i.ops[0]
            && leaves_small(i)
        {
            self.small |= 1 << self.w.plan.host(r);
        }
        Some(())
    }

    /// Where the jump of an exit goes as long as it is not linked.
    fn unlinked(&mut self, jump: u32, to: u64, kept: u64) {
        let why = self.w.number_exit(jump, to, 0);
        self.w.asm.constant(A, to);
        self.w.leave(why, kept);
    }

    fn ways_out(&mut self) {
        let n = self.w.insns.len();
        let mut ways: Vec<((Way, u64), u32)> = Vec::new();
        for (begins, what) in std::mem::take(&mut self.faulting) {
            let Some((way, kept)) = what else {
                self.w.out.sites.push((begins, u32::MAX));
                continue;
            };
            let known = ways.iter().find(|w| w.0 == (way, kept)).map(|w| w.1);
            let out = known.unwrap_or_else(|| {
                let here = self.w.asm.here();
                ways.push(((way, kept), here));
                let (rip, left) = match way {
                    Way::At(k) => {
                        self.w.give();
                        (self.w.insns[k].rip, Left::Out((n - k) as u32))
                    }
                    Way::Head => (self.w.head(), Left::Out(0)),
                    Way::Look => (self.w.head(), Left::Look),
                };
                self.w.asm.constant(A, rip);
                self.w.leave(left, kept);
                here
            });
            self.w.out.sites.push((begins, out));
        }
        self.w.out.sites.sort_by_key(|s| s.0);
    }
}

impl Copies for Copier<'_> {
    fn insn(&mut self, ins: &Instruction, uses: Uses) -> Option<()> {
        let i = &self.w.insns[self.w.done];
        if touches(i, ins) {
            self.faults(Way::At(self.w.done));
        }
        let sp = self.w.plan.host(RSP);
        match (i.op, i.control) {
            (Op::Nop, _) => {}
            (Op::Push, _) => {
                self.check(sp);
                match i.ops[0] {
                    Operand::Gpr(r) => self.push(self.w.plan.host(r)),
                    Operand::Imm(v) => {
                        self.constant(v as u64);
                        self.push(A);
                    }
                    Operand::Mem => {
                        let at = self.operand(&i.mem)?;
                        self.w.asm.load(A, at);
                        self.sum = None;
                        self.push(A);
                    }
                    _ => return None,
                }
            }
            (Op::Pop, _) => {
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                self.check(sp);
                let r = self.w.plan.host(r);
                self.w.asm.load(r, At::guest(sp, 0));
                self.forget(r);
                self.move_sp(8);
            }
            (Op::Leave, _) => {
                self.check(RBP);
                self.sum = None;
                self.w.asm.load(A, At::guest(RBP, 0));
                self.w.asm.lea(sp, At::plain(RBP, 8));
                self.w.asm.copy(RBP, A);
                self.forget(RBP);
                self.forget(sp);
                self.checked |= 1 << sp;
            }
            (_, Control::Jump(to)) if self.w.next() == Some(to) => {}
            (_, Control::Jump(to)) => {
                self.w.give();
                self.exit(&[0xe9], to);
            }
            (Op::Jcc(cc), Control::Branch(to)) if self.w.next().is_some() => {
                let (at, to) = self.w.branch_aside(i, cc as u8, to);
                self.tails
                    .push(Tail::Side(at, self.w.done, to, self.w.kept));
            }
            (Op::Jcc(cc), Control::Branch(to)) => {
                self.w.give();
                self.exit(&[0x0f, 0x80 | cc as u8], to);
                self.exit(&[0xe9], i.next_rip());
            }
            (_, Control::Call(to)) => {
                self.check(sp);
                self.w.asm.constant(A, i.next_rip());
                self.push(A);
                self.w.give();
                self.exit(&[0xe9], to);
            }
            (_, Control::Return | Control::Indirect | Control::IndirectCall) => self.indirect(i)?,
            (Op::Lea, _) if i.mem.base == MemRef::NONE && i.mem.index == MemRef::NONE => {
                let (r, value) = self.w.load_address(i)?;
                self.forget(r);
                self.checked |= u16::from(value >> self.view_bits == 0) << r;
            }
            _ => self.copy(ins, uses)?,
        }
        self.w.note_af(i);
        Some(())
    }

    fn step(&mut self) {
        let k = self.w.done;
        self.safe();
        self.w.give();
        self.constant(self.w.insns[k].rip);
        self.w.leave(self.w.number_step(), self.w.kept);
        (self.checked, self.small) = (0, 0);
        self.w.resume();
    }

    fn end(mut self) -> Direct {
        let insns = self.w.insns;
        if insns.last().is_some_and(|i| i.control == Control::Next) {
            self.w.give();
            self.exit(&[0xe9], insns.last().map_or(0, Insn::next_rip));
        }
        self.safe();
        let kept = self.w.kept;
        for tail in std::mem::take(&mut self.tails) {
            match tail {
                Tail::Side(at, k, to, kept) => {
                    self.w.asm.aim(at);
                    let ahead = insns.len() - k - 1;
                    self.w.asm.add_mmx(0, false, number(self.w.table, ahead));
                    self.w.fix(Fix::Table);
                    self.w.give();
                    let at = self.w.asm.jump(&[0xe9]);
                    if to == self.w.head() {
                        self.w.asm.aim_back(at, self.again);
                    } else {
                        self.unlinked(at, to, kept);
                    }
                }
                Tail::Exit(at, to) => {
                    self.unlinked(at, to, kept);
                }
                Tail::Miss(at, k) => {
                    self.w.asm.aim(at);
                    self.w.asm.load(RCX, At::state(layout::KEPT));
                    self.faults(Way::At(k));
                    // Nothing that the guest may go to is outside the view; the interpreter knows what is wrong with it.
                    self.check_bits(A, self.view_bits);
                    self.check_bits(A, 48);
                    // It was encoded before.
                    let _ = self.move_stack(&insns[k], S);
                    self.safe();
                    self.w.give();
                    self.w.leave(Left::Indirect, kept);
                }
            }
        }
        self.ways_out();
        self.w.out.code = self.w.asm.code;
        self.w.out
    }

    fn next(&mut self) {
        self.w.done += 1;
    }
}

/// Whether the instruction, one that is copied as it is, leaves 32 bits in its first operand, a register: with zeroes above, or with their sign.
fn leaves_small(i: &Insn) -> bool {
    match i.op {
        Op::Cmp | Op::Test | Op::Setcc(_) => false,
        Op::Movzx | Op::Movsx => i.width.bytes() >= 4,
        Op::Mov if i.width.bytes() == 8 => {
            matches!(i.ops[1], Operand::Imm(v) if i32::try_from(v).is_ok())
        }
        // A count of 0 leaves the register as it is, its high half cleared.
        Op::Shl | Op::Shr | Op::Sar => i.width.bytes() == 4,
        op => is_plain(op) && i.width.bytes() == 4,
    }
}
