//! Copies of blocks where caches are simulated (`--cache hierarchy`): before each access comes a probe of the line filter, before each
//! line of instructions one of the fetch filter.
//!
//! What a hit changes is the stamp of the line's slot, which the copy stores; everything else is a helper's. The rules of what counts, and
//! when, are those of [`crate::lower::lines`].
//!
//! Invariants, besides the module's:
//! 1. Between copies, the six flags are in the state's word [`layout::FLAGS`], as LAHF and SETO give them ([`Copier::keep_flags`]). Probes
//!    change the host's, so they are kept before one and come back before who reads them. Where an access may fault, they are in the word.
//! 2. MM0 is the stamp of what the instruction touches: the clock before it, plus 1. It goes up where the next access is.
//! 3. MM1 has the tally and MM2 the count of fetched lines, of what was done before the copy's first instruction, or before that
//!    behind the last step. What came since is known where the copy is left, and in each [`Access`]. MM3 to MM7 have the numbers 1 to 5.
//! 4. An access is made before its stamp is stored: if it faults, nothing has changed.

mod access;
mod behind;
mod sums;

use super::asm::{Asm, At};
use super::tables::Targets;
use super::uses::{Uses, touches};
use super::writer::{Writer, returned};
use super::{A, Copies, Direct, Left, P, RBP, RSP, S};
use crate::layout;
use behind::{Tail, Way};
use iced_x86::{Instruction, InstructionInfoFactory, OpKind};
use rustc_hash::FxHashMap;
use sevlab_cpu::flags::ARITH;
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use sevlab_memctl::{FetchFilter, LineFilter};
pub(crate) use sums::flags_word;

const RAX: u8 = 0;
/// log2 of a line, and of a page.
const SHIFT: u8 = 6;
const PAGE_SHIFT: u8 = 12;
/// log2 of the words from the filter's pair for a page to the next.
const PAIR_WORDS: u8 = LineFilter::PAIR_SHIFT as u8 - 3;
/// Jump if above, if not below, if zero, if not zero.
const JA: [u8; 2] = [0x0f, 0x87];
const JAE: [u8; 2] = [0x0f, 0x83];
const JZ: [u8; 2] = [0x0f, 0x84];
const JNZ: [u8; 2] = [0x0f, 0x85];
const JMP: [u8; 1] = [0xe9];

/// Where the filters of a core are, in the lowest 2 GiB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filters {
    lines: i32,
    fetches: i32,
}

impl Filters {
    /// Of filters at these addresses.
    pub(crate) fn at(lines: usize, fetches: usize) -> Option<Self> {
        let low = |at: usize, bytes: usize| {
            i32::try_from(at + bytes).ok()?;
            i32::try_from(at).ok()
        };
        Some(Self {
            lines: low(lines, LineFilter::BYTES)?,
            fetches: low(fetches, FetchFilter::BYTES)?,
        })
    }
}

/// What a helper has to know of an access, or of the fetch of a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)] // the helper's first part is assembly
pub(crate) struct Access {
    /// What MM1 lacks.
    pub tally: u64,
    /// What MM2 lacks.
    pub fetched: u32,
    /// Its bytes.
    pub bytes: u16,
    /// What the address must be a multiple of.
    pub align: u16,
    pub write: bool,
    /// The interpreter has to make it if it lies in two lines: the instruction may fault behind it, or these are touched twice.
    pub whole: bool,
}

/// All accesses of copies, by number. Most are like others', and have their number: helpers find the few there are in the host's caches.
#[derive(Default)]
pub(crate) struct Accesses {
    list: Vec<Access>,
    numbers: FxHashMap<Access, u32>,
}

impl Accesses {
    fn number(&mut self, access: Access) -> u32 {
        *self.numbers.entry(access).or_insert_with(|| {
            self.list.push(access);
            self.list.len() as u32 - 1
        })
    }

    /// Where the list is.
    pub(crate) fn address(&self) -> u64 {
        self.list.as_ptr() as u64
    }
}

/// What the sums lack, and the line fetched last.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    /// Instructions that MM0 lacks.
    clock: usize,
    tally: u64,
    fetched: u32,
    line: u64,
}

pub(super) struct Copier<'a> {
    w: Writer<'a>,
    filters: Filters,
    tallies: &'a [u64],
    info: &'a mut InstructionInfoFactory,
    accesses: &'a mut Accesses,
    /// Instructions that MM0 counts.
    clock: usize,
    tally: u64,
    fetched: u32,
    /// The line fetched last.
    line: u64,
    /// The flags are the host's.
    in_host: bool,
    /// The flags are in the state's word.
    in_state: bool,
    /// The state's word says that high halves of vector registers are in use.
    highs: bool,
    /// Where it begins anew, with a fetch of its first line, and where its first instruction is.
    again: u32,
    body: u32,
    /// Jumps to where it begins anew without that fetch.
    again_same: Vec<u32>,
    ways: Vec<Way>,
    way_jumps: Vec<(u32, usize)>,
    faulting: Vec<(u32, Option<usize>)>,
    tails: Vec<Tail>,
    /// Words behind the code, and where their distances are.
    pool: Vec<(u32, u64)>,
}

const fn line(va: u64) -> u64 {
    va >> SHIFT
}

fn last_line(i: &Insn) -> u64 {
    line(i.next_rip().wrapping_sub(1))
}

/// Whether it may fault behind the load of its operand.
fn divides(i: &Insn) -> bool {
    matches!(i.op, Op::Div | Op::Idiv)
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        w: Writer<'a>,
        filters: Filters,
        tallies: &'a [u64],
        info: &'a mut InstructionInfoFactory,
        accesses: &'a mut Accesses,
    ) -> Self {
        let mut c = Self {
            w,
            filters,
            tallies,
            info,
            accesses,
            clock: 0,
            tally: 0,
            fetched: 0,
            line: u64::MAX,
            in_host: false,
            in_state: true,
            highs: false,
            again: 0,
            body: 0,
            again_same: Vec::new(),
            ways: Vec::new(),
            way_jumps: Vec::new(),
            faulting: Vec::new(),
            tails: Vec::new(),
            pool: Vec::new(),
        };
        c.w.take();
        c.again = c.w.asm.here();
        c.poll(u64::MAX);
        // What the first line counts is not known to who comes in without it.
        let first = line(c.w.head());
        c.fetch(first, 0);
        c.fetched = 0;
        c.count(2, 1);
        c.body = c.w.asm.here();
        c
    }

    /// Leaves if the turn may end before all instructions are done.
    fn poll(&mut self, line: u64) {
        let asm = &mut self.w.asm;
        asm.between(&[0x0f, 0x7e], 0, S, true);
        let more = self.w.insns.len() as i32 - 1;
        asm.group(0, S, more);
        asm.mem(&[0x3b], S, At::state(layout::STOP_AT), true);
        let position = Position {
            clock: 0,
            tally: 0,
            fetched: 0,
            line,
        };
        let way = Way {
            why: Left::Look,
            ..self.way_at(0, position)
        };
        self.jump_to_way(&JA, way);
    }

    fn move_sp(&mut self, by: i32) {
        let sp = self.w.plan.host(RSP);
        self.w.asm.lea(sp, At::plain(sp, by));
    }

    fn push(&mut self, way: Way, emit: impl FnOnce(&mut Asm)) {
        let sp = self.w.plan.host(RSP);
        self.word_at(sp, -8, true, way, emit);
        self.move_sp(-8);
    }

    /// Puts the address behind a call on the stack, whose pointer stays.
    fn store_return(&mut self, i: &Insn, way: Way) {
        let sp = self.w.plan.host(RSP);
        self.word_at(sp, -8, true, way, |asm| {
            asm.constant(A, i.next_rip());
            asm.store(At::plain(P, 0), A);
        });
    }

    /// A jump to where the guest goes on, with all sums and registers in their places.
    fn exit(&mut self, op: &[u8], to: u64) {
        let jump = self.w.asm.jump(op);
        self.tails.push(Tail::Exit {
            jump,
            to,
            line: self.line,
            kept: self.w.kept,
        });
    }

    /// Goes on elsewhere, with all sums in their places.
    fn go_on(&mut self, to: u64) {
        if to == self.w.head() {
            self.begin_again(&JMP, self.line);
        } else {
            self.w.give();
            self.exit(&JMP, to);
        }
    }

    /// A jump to the copy's own beginning, with all sums in their places, and registers where they are.
    fn begin_again(&mut self, op: &[u8], line_now: u64) {
        let jump = self.w.asm.jump(op);
        if line_now == line(self.w.head()) {
            self.again_same.push(jump);
        } else {
            self.w.asm.aim_back(jump, self.again);
        }
    }

    fn indirect(&mut self, i: &Insn, way: Way) -> Option<()> {
        let sp = self.w.plan.host(RSP);
        let kept = At::state(layout::KEPT);
        let pushes = i.control == Control::IndirectCall;
        match i.ops[0] {
            _ if i.control == Control::Return => {
                self.word_at(sp, 0, false, way, |asm| asm.load(A, At::plain(P, 0)));
            }
            Operand::Gpr(r) => {
                let r = self.w.plan.host(r);
                if pushes {
                    self.w.asm.store(kept, r);
                } else {
                    self.w.asm.copy(A, r);
                }
            }
            Operand::Mem => {
                let address = self.address_of(&i.mem)?;
                self.word_of(address, false, way, |asm| asm.load(A, At::plain(P, 0)));
                if pushes {
                    self.w.asm.store(kept, A);
                }
            }
            _ => return None,
        }
        if pushes {
            self.store_return(i, way);
            self.w.asm.load(A, kept);
        }
        self.advance(self.w.done);
        self.lose_flags();
        let k = self.w.done;
        self.tally = self.tally.wrapping_add(self.tallies[k]);
        let position = self.position(k + 1);
        let targets = self.w.targets;
        let asm = &mut self.w.asm;
        asm.low16(S, A);
        asm.load(P, At::entry(targets, S));
        // ADD P, A
        asm.between(&[0x01], A, P, true);
        let unknown = asm.jump(&JNZ);
        asm.copy(P, A);
        asm.shift(5, P, SHIFT);
        // CMP P, [rip + ...]
        asm.bytes(&[0x4c, 0x3b, 0x35]);
        self.word(position.line);
        let same = self.w.asm.jump(&JZ);
        self.settle(position);
        self.move_stack(i)?;
        self.w.give();
        let code = targets + 8 * Targets::ENTRIES as i32;
        self.w.asm.jump_to(At::entry(code, S));
        self.tails.push(Tail::Miss {
            jumps: [unknown, same],
            k,
            position,
            way,
        });
        Some(())
    }

    /// What a return or a call does to the stack's pointer.
    fn move_stack(&mut self, i: &Insn) -> Option<()> {
        match i.control {
            Control::Return => self.move_sp(returned(i)?),
            Control::IndirectCall => self.move_sp(-8),
            _ => {}
        }
        Some(())
    }

    /// The instruction itself.
    fn copy(&mut self, i: &Insn, ins: &Instruction, way: Way) -> Option<()> {
        let changed = ins.rflags_modified() & ARITHMETIC != 0;
        let flags = i.flags_in & ARITH != 0 || changed && i.flags_out & ARITH != ARITH;
        let is_mem = ins.op_kinds().any(|k| k == OpKind::Memory);
        if is_mem && i.op != Op::Lea {
            let access = self.shape(i, ins)?;
            let address = self.address_of(&i.mem)?;
            let bytes = self.w.encoded(ins, Some(At::plain(P, 0)))?;
            self.access(address, access, way, flags, bytes);
            self.in_host = flags;
        } else {
            if flags {
                self.need_flags();
            }
            if touches(i, ins) {
                // A division.
                self.keep_flags();
                self.advance(self.w.done);
                self.faults(way);
            }
            self.w.emit(ins, None)?;
            self.safe();
        }
        if changed {
            self.flags_changed();
        }
        self.note_highs(ins);
        Some(())
    }

    /// Whether it lies in two lines and may fault behind a load, which may have pushed out the second: that would be fetched again.
    fn is_whole(i: &Insn, ins: &Instruction) -> bool {
        last_line(i) != line(i.rip)
            && (divides(i) || i.op == Op::Push)
            && ins.op_kinds().any(|k| k == OpKind::Memory)
    }
}

/// The arithmetic flags as the decoder's tables have them.
const ARITHMETIC: u32 = {
    use iced_x86::RflagsBits as F;
    F::CF | F::PF | F::AF | F::ZF | F::SF | F::OF
};

impl Copies for Copier<'_> {
    fn insn(&mut self, ins: &Instruction, _: Uses) -> Option<()> {
        let k = self.w.done;
        let i = &self.w.insns[k];
        if Self::is_whole(i, ins) {
            self.step();
            return Some(());
        }
        let way = self.fetch_insn();
        let sp = self.w.plan.host(RSP);
        match (i.op, i.control) {
            (Op::Nop, _) => {}
            (Op::Push, _) => match i.ops[0] {
                Operand::Gpr(r) => {
                    let r = self.w.plan.host(r);
                    self.push(way, |asm| asm.store(At::plain(P, 0), r));
                }
                Operand::Imm(v) => {
                    let v = i32::try_from(v).ok()?;
                    self.push(way, |asm| {
                        asm.mem(&[0xc7], 0, At::plain(P, 0), true);
                        asm.bytes(&v.to_le_bytes());
                    });
                }
                Operand::Mem => {
                    let address = self.address_of(&i.mem)?;
                    self.word_of(address, false, way, |asm| asm.load(A, At::plain(P, 0)));
                    let kept = At::state(layout::KEPT);
                    self.w.asm.store(kept, A);
                    self.push(way, |asm| {
                        asm.load(A, kept);
                        asm.store(At::plain(P, 0), A);
                    });
                }
                _ => return None,
            },
            (Op::Pop, _) => {
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                let r = self.w.plan.host(r);
                self.word_at(sp, 0, false, way, |asm| asm.load(r, At::plain(P, 0)));
                self.move_sp(8);
            }
            (Op::Leave, _) => {
                let bp = self.w.plan.host(RBP);
                self.word_at(bp, 0, false, way, |asm| asm.load(A, At::plain(P, 0)));
                self.w.asm.lea(sp, At::plain(bp, 8));
                self.w.asm.copy(bp, A);
            }
            (_, Control::Jump(to)) if self.w.next() == Some(to) => {}
            (_, Control::Jump(to)) => {
                self.keep_flags();
                self.settle_behind();
                self.go_on(to);
                return Some(());
            }
            (Op::Jcc(cc), Control::Branch(to)) if self.w.next().is_some() => {
                self.need_flags();
                self.keep_flags();
                let (jump, to) = self.w.branch_aside(i, cc as u8, to);
                let mut position = self.position(k + 1);
                position.tally = position.tally.wrapping_add(self.tallies[k]);
                self.tails.push(Tail::Side {
                    jump,
                    position,
                    to,
                    kept: self.w.kept,
                });
            }
            (Op::Jcc(cc), Control::Branch(to)) => {
                let (mut cc, mut to, mut next) = (cc as u8, to, i.next_rip());
                if next == self.w.head() {
                    (cc, to, next) = (cc ^ 1, next, to);
                }
                self.need_flags();
                self.keep_flags();
                self.settle_behind();
                let jcc = [0x0f, 0x80 | cc];
                if to == self.w.head() {
                    self.begin_again(&jcc, self.line);
                    self.w.give();
                } else {
                    self.w.give();
                    self.exit(&jcc, to);
                }
                self.exit(&JMP, next);
                return Some(());
            }
            (_, Control::Call(to)) => {
                self.store_return(i, way);
                self.move_sp(-8);
                self.keep_flags();
                self.settle_behind();
                self.w.give();
                self.exit(&JMP, to);
                return Some(());
            }
            (_, Control::Return | Control::Indirect | Control::IndirectCall) => {
                return self.indirect(i, way);
            }
            (Op::Lea, _) if i.mem.base == MemRef::NONE && i.mem.index == MemRef::NONE => {
                self.w.load_address(i)?;
            }
            _ => self.copy(i, ins, way)?,
        }
        self.w.note_af(i);
        self.tally = self.tally.wrapping_add(self.tallies[k]);
        Some(())
    }

    fn step(&mut self) {
        let k = self.w.done;
        let i = &self.w.insns[k];
        self.keep_flags();
        let p = self.position(k);
        self.settle(p);
        self.w.give();
        self.leave(self.w.number_step(), self.w.kept, i.rip, p.line);
        (self.clock, self.tally, self.fetched) = (k + 1, 0, 0);
        self.line = last_line(i);
        (self.in_host, self.in_state, self.highs) = (false, true, false);
        self.w.resume();
    }

    fn next(&mut self) {
        self.w.done += 1;
    }

    fn end(mut self) -> Direct {
        let last = self.w.insns.last();
        if let Some(i) = last.filter(|i| i.control == Control::Next) {
            self.keep_flags();
            let p = self.position(self.w.insns.len());
            self.settle(p);
            self.go_on(i.next_rip());
        }
        self.safe();
        for tail in std::mem::take(&mut self.tails) {
            self.tail(tail);
        }
        self.enter_same();
        self.ways_out();
        self.place_words();
        self.w.out.code = self.w.asm.code;
        self.w.out
    }
}
