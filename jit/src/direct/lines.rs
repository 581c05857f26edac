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

use super::asm::{Asm, At};
use super::tables::Targets;
use super::uses::{Uses, touches};
use super::writer::Writer;
use super::{A, Copies, Direct, Exit, Left, P, RBP, RSP, S};
use crate::layout;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use rustc_hash::FxHashMap;
use sevlab_cpu::flags::ARITH;
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use sevlab_cpu::thunk;
use sevlab_memctl::{FetchFilter, LineFilter, TAG_SHIFT};

const RAX: u8 = 0;
/// log2 of a line, and of a page.
const SHIFT: u8 = 6;
const PAGE_SHIFT: u8 = 12;
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
        let low = |at: usize| {
            i32::try_from(at)
                .ok()
                .filter(|at| *at < i32::MAX - (8 << 20))
        };
        Some(Self {
            lines: low(lines)?,
            fetches: low(fetches)?,
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

/// A way out at an instruction, of which nothing is done.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    rip: u64,
    position: Position,
    kept: u64,
    why: Left,
}

/// An address as the guest gives it, with host registers.
#[derive(Clone, Copy)]
struct Address {
    base: Option<u8>,
    index: Option<(u8, u8)>,
    disp: i64,
    segment: Option<u8>,
}

/// What is behind a copy's own code.
enum Tail {
    /// An access that the filter does not pass.
    Access {
        jump: u32,
        address: Address,
        number: u32,
        way: Way,
        /// The instruction reads flags.
        flags: bool,
        bytes: Vec<u8>,
        back: u32,
    },
    /// A fetch that the filter does not pass.
    Fetch {
        jump: u32,
        line: u64,
        number: u32,
        way: Way,
        back: u32,
    },
    /// A way out in the middle.
    Side {
        jump: u32,
        position: Position,
        to: u64,
        kept: u64,
    },
    /// An exit that is not linked.
    Exit {
        jump: u32,
        to: u64,
        line: u64,
        kept: u64,
    },
    /// A target that is not in the table, or whose line has been fetched last.
    Miss {
        jumps: [u32; 2],
        k: usize,
        position: Position,
        way: Way,
    },
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
        let jump = asm.jump(&JA);
        let way = Way {
            rip: self.w.head(),
            position: Position {
                clock: 0,
                tally: 0,
                fetched: 0,
                line,
            },
            kept: self.w.kept,
            why: Left::Look,
        };
        let way = self.way(way);
        self.way_jumps.push((jump, way));
    }

    /// The number of a way out.
    fn way(&mut self, way: Way) -> usize {
        let known = self.ways.iter().position(|w| *w == way);
        known.unwrap_or_else(|| {
            self.ways.push(way);
            self.ways.len() - 1
        })
    }

    /// From here on a fault goes there.
    fn faults(&mut self, way: Way) {
        let way = self.way(way);
        self.faulting.push((self.w.asm.here(), Some(way)));
    }

    /// From here on nothing faults.
    fn safe(&mut self) {
        self.faulting.push((self.w.asm.here(), None));
    }

    // ---- flags ----

    /// The flags are in the state's word, too.
    fn keep_flags(&mut self) {
        if !self.in_state {
            self.in_state = true;
            let asm = &mut self.w.asm;
            asm.copy(P, RAX);
            // LAHF, SETO al
            asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
            asm.mem(&[0x89], RAX, At::state(layout::FLAGS), false);
            asm.copy(RAX, P);
        }
    }

    /// What comes next changes the host's flags.
    fn lose_flags(&mut self) {
        self.keep_flags();
        self.in_host = false;
    }

    /// The flags are the host's.
    fn need_flags(&mut self) {
        if !self.in_host {
            self.in_host = true;
            bring_flags(&mut self.w.asm);
        }
    }

    /// An instruction has changed flags.
    fn flags_changed(&mut self) {
        (self.in_host, self.in_state) = (true, false);
    }

    // ---- sums ----

    /// Adds a number to MMX register `r`; the first five are in MMX registers themselves.
    fn count(&mut self, r: u8, n: usize) {
        match n {
            1..=5 => self.w.asm.between(&[0x0f, 0xd4], r, 2 + n as u8, false),
            n => self.w.count(r, n),
        }
    }

    /// MM0 counts the instructions before `k`.
    fn advance(&mut self, k: usize) {
        let more = k - self.clock;
        self.count(0, more);
        self.clock = k;
    }

    /// What the sums lack before instruction `k`, no line of which has been fetched.
    fn position(&self, k: usize) -> Position {
        Position {
            clock: k - self.clock,
            tally: self.tally,
            fetched: self.fetched,
            line: self.line,
        }
    }

    /// Makes the sums complete.
    fn settle(&mut self, p: Position) {
        self.count(0, p.clock);
        if p.tally != 0 {
            self.w.asm.bytes(&[0x0f, 0xd4, 0x0d]);
            self.word(p.tally);
        }
        self.count(2, p.fetched as usize);
    }

    /// The distance to a word behind the code.
    fn word(&mut self, value: u64) {
        self.pool.push((self.w.asm.here(), value));
        self.w.asm.bytes(&[0; 4]);
    }

    // ---- fetches ----

    /// Fetches a line for instruction `k`.
    fn fetch(&mut self, which: u64, k: usize) {
        let way = self.way_at(k, self.position(k));
        self.advance(k);
        let way = Way {
            position: Position {
                clock: 0,
                ..way.position
            },
            ..way
        };
        self.lose_flags();
        let at = self.filters.fetches + (which as usize % FetchFilter::ENTRIES * 8) as i32;
        // What the filter has no room for matches nothing.
        let high = (which << SHIFT) >> FetchFilter::HIGH;
        let high = high.min(u64::from(u32::MAX)) as u32;
        let asm = &mut self.w.asm;
        asm.mem(&[0x81], 7, At::absolute(at + 4), false);
        asm.bytes(&high.to_le_bytes());
        let jump = asm.jump(&JNZ);
        asm.mem(&[0x0f, 0xb7], S, At::absolute(at), false);
        let stamps = self.filters.fetches + FetchFilter::STAMP as i32;
        asm.mem(&[0x0f, 0x7f], 0, At::entry(stamps, S), false);
        let back = asm.here();
        let number = self.accesses.number(Access {
            tally: self.tally,
            fetched: self.fetched,
            bytes: 1,
            align: 1,
            write: false,
            whole: false,
        });
        self.tails.push(Tail::Fetch {
            jump,
            line: which,
            number,
            way,
            back,
        });
        self.line = which;
        self.fetched += 1;
    }

    /// Fetches what of the instruction's lines was not fetched last. The way out at it, whose second line counts as not fetched.
    fn fetch_insn(&mut self) -> Way {
        let k = self.w.done;
        let i = &self.w.insns[k];
        if self.line != line(i.rip) {
            self.fetch(line(i.rip), k);
        }
        let position = self.position(k);
        if last_line(i) != line(i.rip) {
            self.fetch(last_line(i), k);
        }
        self.way_at(k, position)
    }

    fn way_at(&self, k: usize, position: Position) -> Way {
        Way {
            rip: self.w.insns[k].rip,
            position,
            kept: self.w.kept,
            why: Left::Out(0),
        }
    }

    // ---- accesses ----

    fn address_of(&self, m: &MemRef) -> Option<Address> {
        let host = |r: u8| self.w.plan.host(r);
        let a = Address {
            base: (m.base != MemRef::NONE).then(|| host(m.base)),
            index: (m.index != MemRef::NONE).then(|| (host(m.index), m.scale & 3)),
            disp: m.disp,
            segment: (m.seg != MemRef::NONE).then_some(m.seg),
        };
        let plain = a.base.is_none() && a.index.is_none() && a.segment.is_none();
        (plain || i32::try_from(a.disp).is_ok()).then_some(a)
    }

    /// An access of the current instruction, by `bytes`, whose operand is at P; its way out is `way`.
    fn access(&mut self, address: Address, access: Access, way: Way, flags: bool, bytes: Vec<u8>) {
        let k = self.w.done;
        self.advance(k);
        let way = Way {
            position: Position {
                clock: 0,
                ..way.position
            },
            ..way
        };
        self.lose_flags();
        let number = self.accesses.number(Access {
            tally: self.tally,
            fetched: self.fetched,
            ..access
        });
        let lines = self.filters.lines;
        let asm = &mut self.w.asm;
        let of = |offset: usize, index: u8| At::entry(lines + offset as i32, index);
        address.into_a(asm);
        asm.rotate(P, A, PAGE_SHIFT);
        asm.low16(P, P);
        asm.lea(S, At::plain(A, i32::from(access.bytes) - 1));
        asm.shift(5, S, SHIFT);
        asm.mem(&[0x03], S, of(LineFilter::ASLEEP, P), true);
        asm.load(P, of(LineFilter::ADDEND, P));
        asm.lea(P, At::sum(Some(P), Some((A, 0))));
        asm.shift(5, A, SHIFT);
        asm.low16(A, A);
        asm.shift(4, S, TAG_SHIFT as u8);
        asm.mem(&[0x33], S, of(0, A), true);
        // What is left of a hit is the slot, and for a load the bit behind the tag.
        asm.group(7, S, 1 << (TAG_SHIFT - u32::from(access.write)));
        let jump = asm.jump(&JAE);
        if flags {
            bring_flags(asm);
        }
        self.faults(way);
        self.w.asm.bytes(&bytes);
        self.safe();
        let asm = &mut self.w.asm;
        asm.low16(S, S);
        asm.mem(&[0x0f, 0x7f], 0, of(LineFilter::STAMP, S), false);
        if access.write {
            let wrote = At {
                disp: lines + LineFilter::WROTE as i32,
                ..At::sum(None, Some((S, 0)))
            };
            asm.mem(&[0xc6], 0, wrote, false);
            asm.bytes(&[1]);
        }
        let back = asm.here();
        self.tails.push(Tail::Access {
            jump,
            address,
            number,
            way,
            flags,
            bytes,
            back,
        });
    }

    /// An access of 8 bytes off a host register, by what `emit` says.
    fn word_at(&mut self, r: u8, disp: i32, write: bool, way: Way, emit: impl FnOnce(&mut Asm)) {
        let address = Address {
            base: Some(r),
            index: None,
            disp: disp.into(),
            segment: None,
        };
        self.word_of(address, write, way, emit);
    }

    fn word_of(&mut self, address: Address, write: bool, way: Way, emit: impl FnOnce(&mut Asm)) {
        let mut body = Asm::default();
        emit(&mut body);
        let access = Access { write, ..plain(8) };
        self.access(address, access, way, false, body.code);
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

    // ---- ways out ----

    /// What is done before the copy is left behind the current instruction, but for registers.
    fn settle_behind(&mut self) {
        let k = self.w.done;
        self.tally = self.tally.wrapping_add(self.tallies[k]);
        let p = self.position(k + 1);
        self.settle(p);
        (self.clock, self.tally, self.fetched) = (k + 1, 0, 0);
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
            self.word_at(sp, -8, true, way, |asm| {
                asm.constant(A, i.next_rip());
                asm.store(At::plain(P, 0), A);
            });
            self.w.asm.load(A, kept);
        }
        self.advance(self.w.done);
        let way = Way {
            position: Position {
                clock: 0,
                ..way.position
            },
            ..way
        };
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
            Control::Return => {
                let more = match i.ops[0] {
                    Operand::Imm(v) => i32::try_from(v).ok().filter(|v| *v >= 0)?,
                    _ => 0,
                };
                self.move_sp(8 + more);
            }
            Control::IndirectCall => self.move_sp(-8),
            _ => {}
        }
        Some(())
    }

    /// The bytes of an instruction's memory operand, whether it is written, and what its address must be a multiple of.
    fn shape(&mut self, i: &Insn, ins: &Instruction) -> Option<Access> {
        let memory = self.info.info(ins).used_memory();
        let [m] = memory else { return None };
        let write = match m.access() {
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write
            | OpAccess::CondWrite
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite => true,
            OpAccess::None | OpAccess::NoMemAccess => return None,
        };
        let bytes = u16::try_from(m.memory_size().size()).ok()?;
        if !(1..=64).contains(&bytes) {
            return None;
        }
        let align = match i.op {
            Op::Thunk => thunk::alignment(ins, bytes),
            Op::Cmpxchg16b => 16,
            _ => 1,
        };
        Some(Access {
            write,
            align,
            whole: matches!(i.op, Op::Div | Op::Idiv)
                || matches!(m.access(), OpAccess::ReadWrite | OpAccess::ReadCondWrite),
            ..plain(bytes)
        })
    }

    /// Says whether high halves of vector registers are in use behind the instruction: helpers keep them then.
    fn note_highs(&mut self, ins: &Instruction) {
        let uses = match ins.mnemonic() {
            Mnemonic::Vzeroupper | Mnemonic::Vzeroall => false,
            _ if self.highs => return,
            _ if (0..ins.op_count()).any(|n| ins.op_register(n).is_ymm()) => true,
            _ => return,
        };
        self.highs = uses;
        let at = At::state(layout::HIGHS);
        self.w.asm.mem(&[0xc7], 0, at, false);
        self.w.asm.bytes(&u32::from(uses).to_le_bytes());
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
                // A division may fault.
                self.keep_flags();
                self.advance(self.w.done);
                self.faults(Way {
                    position: Position {
                        clock: 0,
                        ..way.position
                    },
                    ..way
                });
            }
            let bytes = self.w.encoded(ins, None)?;
            self.w.asm.bytes(&bytes);
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
            && matches!(i.op, Op::Div | Op::Idiv)
            && ins.op_kinds().any(|k| k == OpKind::Memory)
    }

    fn leave(&mut self, why: Left, kept: u64, at: u64, fetched: u64) {
        let asm = &mut self.w.asm;
        asm.constant(S, fetched);
        asm.store(At::state(layout::FETCH_LINE), S);
        asm.constant(A, at);
        self.w.leave(why, kept);
    }

    fn unlinked(&mut self, jump: u32, to: u64, line: u64, kept: u64) {
        self.w.asm.aim(jump);
        let number = self.w.first.exit + self.w.out.exits.len() as u32;
        let stub = self.w.asm.here();
        self.w.out.exits.push(Exit {
            jump,
            stub,
            to,
            line,
        });
        self.leave(Left::Exit(number), kept, to, line);
    }

    fn jump_to_way(&mut self, op: &[u8], way: Way) {
        let jump = self.w.asm.jump(op);
        let way = self.way(way);
        self.way_jumps.push((jump, way));
    }

    fn tail(&mut self, tail: Tail) {
        match tail {
            Tail::Access {
                jump,
                address,
                number,
                way,
                flags,
                bytes,
                back,
            } => {
                let asm = &mut self.w.asm;
                asm.aim(jump);
                address.into_a(asm);
                asm.constant(S, number.into());
                asm.mem(&[0xff], 2, At::state(layout::H_COPY_ACCESS), false);
                self.jump_to_way(&JZ, way);
                if flags {
                    bring_flags(&mut self.w.asm);
                }
                self.faults(way);
                self.w.asm.bytes(&bytes);
                self.safe();
                let jump = self.w.asm.jump(&JMP);
                self.w.asm.aim_back(jump, back);
            }
            Tail::Fetch {
                jump,
                line,
                number,
                way,
                back,
            } => {
                let asm = &mut self.w.asm;
                asm.aim(jump);
                asm.constant(A, line << SHIFT);
                asm.constant(S, number.into());
                asm.mem(&[0xff], 2, At::state(layout::H_COPY_FETCH), false);
                self.jump_to_way(&JZ, way);
                let jump = self.w.asm.jump(&JMP);
                self.w.asm.aim_back(jump, back);
            }
            Tail::Side {
                jump,
                position,
                to,
                kept,
            } => {
                self.w.asm.aim(jump);
                self.settle(position);
                if to == self.w.head() {
                    self.begin_again(&JMP, position.line);
                } else {
                    self.w.give();
                    let jump = self.w.asm.jump(&JMP);
                    self.unlinked(jump, to, position.line, kept);
                }
            }
            Tail::Exit {
                jump,
                to,
                line,
                kept,
            } => self.unlinked(jump, to, line, kept),
            Tail::Miss {
                jumps,
                k,
                position,
                way,
            } => {
                jumps.into_iter().for_each(|jump| self.w.asm.aim(jump));
                let asm = &mut self.w.asm;
                // The interpreter knows what is wrong with a target that is not the guest's to have.
                asm.copy(S, A);
                asm.shift(5, S, 47);
                self.jump_to_way(&JNZ, way);
                self.settle(position);
                // It was encoded before.
                let _ = self.move_stack(&self.w.insns[k]);
                self.w.give();
                let asm = &mut self.w.asm;
                asm.constant(S, position.line);
                asm.store(At::state(layout::FETCH_LINE), S);
                self.w.leave(Left::Indirect, way.kept);
            }
        }
    }

    /// Where it begins without a fetch.
    fn enter_same(&mut self) {
        self.w.out.same = self.w.asm.here();
        self.w.take();
        for jump in std::mem::take(&mut self.again_same) {
            self.w.asm.aim(jump);
        }
        self.poll(line(self.w.head()));
        let jump = self.w.asm.jump(&JMP);
        self.w.asm.aim_back(jump, self.body);
    }

    fn ways_out(&mut self) {
        let mut at = Vec::new();
        for n in 0..self.ways.len() {
            let way = self.ways[n];
            at.push(self.w.asm.here());
            for &(jump, to) in &self.way_jumps {
                if to == n {
                    self.w.asm.aim(jump);
                }
            }
            self.settle(way.position);
            self.w.give();
            self.leave(way.why, way.kept, way.rip, way.position.line);
        }
        for &(begins, way) in &self.faulting {
            let out = way.map_or(u32::MAX, |n| at[n]);
            self.w.out.sites.push((begins, out));
        }
        self.w.out.sites.sort_by_key(|s| s.0);
    }

    fn place_words(&mut self) {
        while !self.w.asm.here().is_multiple_of(8) {
            self.w.asm.bytes(&[0xcc]);
        }
        let mut placed: Vec<(u64, u32)> = Vec::new();
        for (at, value) in std::mem::take(&mut self.pool) {
            let known = placed.iter().find(|p| p.0 == value).map(|p| p.1);
            let here = known.unwrap_or_else(|| {
                let here = self.w.asm.here();
                placed.push((value, here));
                self.w.asm.bytes(&value.to_le_bytes());
                here
            });
            self.w.asm.aim_back(at, here);
        }
    }
}

/// The flags in the state's word become the host's.
fn bring_flags(asm: &mut Asm) {
    asm.copy(A, RAX);
    asm.mem(&[0x8b], RAX, At::state(layout::FLAGS), false);
    // ADD al, 127: OF if al is 1; SAHF
    asm.bytes(&[0x04, 0x7f, 0x9e]);
    asm.copy(RAX, A);
}

/// What LAHF and SETO give, of the six flags.
pub(crate) fn flags_word(flags: u64) -> u64 {
    const OF: u32 = 11;
    (flags & 0xd5) << 8 | flags >> OF & 1
}

/// A load of so many bytes.
fn plain(bytes: u16) -> Access {
    Access {
        tally: 0,
        fetched: 0,
        bytes,
        align: 1,
        write: false,
        whole: false,
    }
}

/// The arithmetic flags as the decoder's tables have them.
const ARITHMETIC: u32 = {
    use iced_x86::RflagsBits as F;
    F::CF | F::PF | F::AF | F::ZF | F::SF | F::OF
};

impl Address {
    /// A becomes it.
    fn into_a(self, asm: &mut Asm) {
        let Self {
            base,
            index,
            disp,
            segment,
        } = self;
        if let Some(segment) = segment {
            let at = layout::seg_base(usize::from(segment));
            asm.load(A, At::state(at));
            for (r, scale) in base.map(|b| (b, 0)).into_iter().chain(index) {
                asm.lea(A, At::sum(Some(A), Some((r, scale))));
            }
            if disp != 0 {
                asm.lea(A, At::plain(A, disp as i32));
            }
        } else if base.is_none() && index.is_none() {
            asm.constant(A, disp as u64);
        } else {
            asm.lea(A, At::sum(base, index).displaced(disp as i32));
        }
    }
}

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
                if to == self.w.head() {
                    self.begin_again(&JMP, self.line);
                } else {
                    self.w.give();
                    self.exit(&JMP, to);
                }
                return Some(());
            }
            (Op::Jcc(cc), Control::Branch(to)) if self.w.next().is_some() => {
                let falls = self.w.next() == Some(i.next_rip());
                let (cc, to) = if falls {
                    (cc as u8, to)
                } else {
                    (cc as u8 ^ 1, i.next_rip())
                };
                self.need_flags();
                self.keep_flags();
                let jump = self.w.asm.jump(&[0x0f, 0x80 | cc]);
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
                self.push(way, |asm| {
                    asm.constant(A, i.next_rip());
                    asm.store(At::plain(P, 0), A);
                });
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
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                if i.width.bytes() < 4 || i.mem.addr32 {
                    return None;
                }
                let r = self.w.plan.host(r);
                let value = i.mem.disp as u64 & i.width.mask();
                self.w.asm.constant(r, value);
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
        let number = self.w.first.step + self.w.out.steps.len() as u32;
        self.leave(Left::Step(number), self.w.kept, i.rip, p.line);
        let more = (self.w.insns.len() - k - 1) as u32;
        self.w.out.steps.push((k, self.w.asm.here(), more));
        (self.clock, self.tally, self.fetched) = (k + 1, 0, 0);
        self.line = last_line(i);
        (self.in_host, self.in_state, self.highs) = (false, true, false);
        self.w.kept = ARITH;
        self.w.take();
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
            let to = i.next_rip();
            if to == self.w.head() {
                self.begin_again(&JMP, self.line);
            } else {
                self.w.give();
                self.exit(&JMP, to);
            }
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
