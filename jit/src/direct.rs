//! Blocks that run as they are: the guest's own instructions on the host's registers.
//!
//! The problem: a compilation costs what some ten thousand runs of a block take, and most of a program's blocks run some hundred times;
//! and what a compiler makes of the guest's instructions, with flags, partial registers and a state in memory, is slower than what
//! the guest's own compiler made.
//!
//! The approach: the guest's instructions are the host's. Where guest memory is in the view, a block's instructions are
//! copied, in some microseconds. Memory operands get GS, whose base is the view's. Registers keep their names, but for those of
//! [`HOSTS`]; the flags and the vector registers are the host's. So copies go on to each other by plain jumps; the state's memory is
//! current only outside ([`enter`]). An instruction that is not copied is run by the interpreter, between two parts of the block.
//!
//! Invariants:
//! 1. Between blocks, each guest register is where [`HOSTS`] says.
//! 2. Each address was checked to lie in the view before it is used, but for a displacement and some pushes, for which the view's
//!    guards are wide enough. The check touches no flags: it reads a table at the address's high bits, of which only the
//!    first entry can be read.
//! 3. Until the access of an instruction has been made, no guest register of it has changed. So a fault of the host's
//!    ([`crate::faults`]) goes on at a way out that says how many instructions were not done.
//! 4. Nothing that comes between the guest's instructions changes the host's flags.
#![allow(unsafe_code)] // maps tables, sets the GS base

mod asm;
pub(crate) mod enter;
mod uses;

use crate::layout;
use asm::{Asm, At};
use iced_x86::{Encoder, Instruction, InstructionInfoFactory, OpKind, Register};
use sevlab_cpu::flags::{AF, ARITH};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use std::cell::Cell;
use std::sync::OnceLock;
use uses::{Uses, is_plain, ordered, touches, uses, wide};

const RCX: u8 = 1;
const RSP: u8 = 4;
const RBP: u8 = 5;
/// Guest segment number of FS.
const FS: u8 = 4;
/// Where guest registers are between blocks; those without a host register are in the state's memory. R15 has the state, RSP is the host's
/// own, and R10 and R11 ([`A`], [`S`]) are for what comes between.
const HOSTS: [Option<u8>; 16] = {
    let mut hosts = [None; 16];
    let mut r = 0;
    while r < 15 {
        hosts[r] = Some(r as u8);
        r += 1;
    }
    (hosts[RSP as usize], hosts[9], hosts[10], hosts[11]) = (Some(9), None, None, None);
    hosts
};
/// A target, or an address that is a sum.
const A: u8 = 10;
/// What is forgotten soon.
const S: u8 = 11;
/// Most instructions of a copy.
pub(crate) const MOST: usize = 64;
/// A stack pointer that was checked may move so far by one instruction.
const NEAR: i64 = 1 << 20;

/// Why copied code was left: what R11 says there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// By the exit of this number.
    Exit(u32),
    /// To an address that is not in [`Targets`].
    Indirect,
    /// For an instruction that the interpreter has to run: its number.
    Step(u32),
    /// An access faulted, with so many instructions counted that were not done.
    Out(u32),
    /// Whoever runs the vCPU is to look.
    Look,
}

impl Left {
    const UNDEFINED_AF: u32 = 8;

    const fn word(self) -> u32 {
        match self {
            Self::Exit(n) => n << 4,
            Self::Indirect => 1,
            Self::Step(n) => n << 4 | 2,
            Self::Out(n) => n << 4 | 3,
            Self::Look => 4,
        }
    }

    /// What a word says, and which arithmetic flags are the guest's.
    pub(crate) fn of(word: u32) -> (Self, u64) {
        let n = word >> 4;
        let left = match word & 7 {
            0 => Self::Exit(n),
            1 => Self::Indirect,
            2 => Self::Step(n),
            3 => Self::Out(n),
            _ => Self::Look,
        };
        let kept = if word & Self::UNDEFINED_AF != 0 {
            ARITH & !AF
        } else {
            ARITH
        };
        (left, kept)
    }
}

/// A block's code.
#[derive(Default)]
pub(crate) struct Direct {
    pub code: Vec<u8>,
    /// Its exits, by number from the first on: where the distance of the jump is, and where it leads if it is not linked, as offsets; and the
    /// guest address it goes to.
    pub exits: Vec<(u32, u32, u64)>,
    /// Instructions for the interpreter, by number from the first on: which of the block's, where the block goes on behind it, and how many
    /// instructions are counted that were not done before it.
    pub steps: Vec<(usize, u32, u32)>,
    /// Where an instruction's code begins that may fault, and its way out; both as offsets in the code. Each reaches to the next.
    pub sites: Vec<(u32, u32)>,
}

/// Memory in the lowest 2 GiB, which an operand can name without a register.
fn low(bytes: usize, protection: i32) -> Option<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_32BIT;
    // SAFETY: a new mapping where nothing is.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    let at = (at != libc::MAP_FAILED).then_some(at as usize)?;
    (at + bytes <= i32::MAX as usize).then_some(at)
}

/// Whether this host and process can run such code.
pub(crate) fn is_possible() -> bool {
    std::arch::is_x86_feature_detected!("bmi2") && table().is_some()
}

/// The address of the check's table: what index 0 reads is there, and nothing behind it. Before it are small [`number`]s.
fn table() -> Option<i32> {
    static TABLE: OnceLock<Option<i32>> = OnceLock::new();
    *TABLE.get_or_init(|| {
        const PAGE: usize = 4096;
        const { assert!(8 * MOST < PAGE - 16) };
        // An entry for each value of the 16 bits looked at, the first of which ends a page.
        let at = low(PAGE + (8 << 16), libc::PROT_NONE)?;
        let page: *mut u64 = std::ptr::with_exposed_provenance_mut(at);
        // SAFETY: part of what was just mapped, and larger than what is written.
        let readable = unsafe {
            let protect = |how| libc::mprotect(page.cast(), PAGE, how) == 0;
            protect(libc::PROT_READ | libc::PROT_WRITE) && {
                for n in 0..=MOST {
                    page.add(n).write(n as u64);
                }
                protect(libc::PROT_READ)
            }
        };
        readable.then_some((at + PAGE - 8) as i32)
    })
}

/// The address of a small number as a word, from the table's.
fn number(table: i32, n: usize) -> i32 {
    table + 8 - 4096 + 8 * n as i32
}

/// Makes `base` the base of GS on this thread, which the simulator has no other use for.
pub(crate) fn set_gs(base: u64) {
    const ARCH_SET_GS: i32 = 0x1001;
    thread_local! {
        static GS: Cell<u64> = const { Cell::new(0) };
    }
    if GS.replace(base) != base {
        // SAFETY: nothing on this thread is addressed by GS but what this module makes.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Where indirect jumps lead: for the low 16 bits of a guest address, minus that address, and behind all of those its code.
pub(crate) struct Targets(usize);

impl Targets {
    const ENTRIES: usize = 1 << 16;

    fn new() -> Option<Self> {
        let at = low(16 * Self::ENTRIES, libc::PROT_READ | libc::PROT_WRITE)?;
        let targets = Self(at);
        // What no address is the opposite of, for the entry that zeroes would match.
        targets.set(0, 1, 0);
        Some(targets)
    }

    fn set(&self, index: u64, word: u64, code: usize) {
        let at: *mut u64 =
            std::ptr::with_exposed_provenance_mut(self.0 + 8 * (index as usize & 0xffff));
        // SAFETY: both words are in the mapping, which lives as long as this and is read by copied code alone, on this thread.
        unsafe {
            at.write(word);
            at.add(Self::ENTRIES).write(code as u64);
        }
    }

    /// Jumps to `rip` lead there from now on.
    pub(crate) fn enter(&self, rip: u64, code: usize) {
        self.set(rip, rip.wrapping_neg(), code);
    }

    /// Jumps to `rip` lead nowhere.
    pub(crate) fn remove(&self, rip: u64) {
        let at: *const u64 =
            std::ptr::with_exposed_provenance(self.0 + 8 * (rip as usize & 0xffff));
        // SAFETY: as in `set`.
        if unsafe { at.read() } == rip.wrapping_neg() {
            // The opposite of an address that belongs elsewhere.
            self.set(rip, !rip, 0);
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and copied code that reads it is gone with the engine.
        unsafe {
            libc::munmap(
                std::ptr::with_exposed_provenance_mut(self.0),
                16 * Self::ENTRIES,
            )
        };
    }
}

/// Copies blocks.
pub(crate) struct Maker {
    encoder: Encoder,
    info: InstructionInfoFactory,
    pub targets: Targets,
    table: i32,
    /// log2 of the view's size: what has higher bits is not in it.
    view_bits: u8,
    /// Blocks count against the budget of a turn.
    budget: bool,
}

impl Maker {
    /// For a view of `view` bytes, a power of two.
    pub(crate) fn new(view: u64, budget: bool) -> Option<Self> {
        Some(Self {
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            targets: Targets::new()?,
            table: table()?,
            view_bits: view.trailing_zeros() as u8,
            budget,
        })
    }

    /// The code of instructions that follow each other, or of the first of them: at most [`MOST`], where only the last is a jump to elsewhere
    /// than to where the next one is, or none. Its exits and steps are numbered from these on. `None` if none is one
    /// that can be copied.
    pub(crate) fn make(
        &mut self,
        insns: &[Insn],
        decoded: &[Option<Instruction>],
        first_exit: u32,
        first_step: u32,
    ) -> Option<Direct> {
        let decoded: Vec<(Instruction, Option<Uses>)> = insns
            .iter()
            .zip(decoded)
            .map(|(i, ins)| match ins {
                Some(ins) => (*ins, uses(i, ins, &mut self.info)),
                None => (Instruction::default(), None),
            })
            .collect();
        let stays = |(i, (_, uses)): (&Insn, &(_, Option<Uses>))| {
            uses.is_some() || i.control == Control::Next
        };
        let mut n = insns.iter().zip(&decoded).take_while(|&x| stays(x)).count();
        let mut unencodable = 0u64;
        loop {
            let plan;
            (plan, n) = Plan::of(&decoded[..n]);
            let copied = |k: usize| decoded[k].1.is_some() && unencodable >> k & 1 == 0;
            if !(0..n).any(copied) {
                return None;
            }
            let mut c = Copier {
                plan,
                table: self.table,
                view_bits: self.view_bits,
                targets: self.targets.0 as i32,
                encoder: &mut self.encoder,
                asm: Asm::default(),
                insns: &insns[..n],
                checked: 0,
                sum: None,
                again: 0,
                small: 0,
                kept: ARITH,
                done: 0,
                faulting: Vec::new(),
                tails: Vec::new(),
                first: (first_exit, first_step),
                out: Direct::default(),
            };
            c.begin(self.budget, plan.constant_bases(&insns[..n], &decoded));
            let mut failed = None;
            for (k, (ins, uses)) in decoded[..n].iter().enumerate() {
                match uses {
                    Some(uses) if unencodable >> k & 1 == 0 => {
                        if c.insn(ins, *uses).is_none() {
                            failed = Some(k);
                            break;
                        }
                    }
                    _ => c.step(),
                }
                c.done += 1;
            }
            match failed {
                None => return Some(c.end()),
                // It is left to the interpreter; if it ends the block, so are those behind it.
                Some(k) if insns[k].control == Control::Next => unencodable |= 1 << k,
                Some(k) => n = k,
            }
        }
    }
}

/// Which host registers stand for what in one block.
#[derive(Clone, Copy)]
struct Plan {
    hosts: [u8; 16],
    /// Guest registers that come from the state's memory, with the guest registers whose hosts they get meanwhile.
    moved: [(u8, u8); 4],
    count: usize,
    /// Guest registers that are written.
    written: u16,
}

impl Plan {
    /// The registers of a block, and how many of its instructions there are enough for.
    fn of(insns: &[(Instruction, Option<Uses>)]) -> (Self, usize) {
        let homeless = (0..16).filter(|&r| HOSTS[r].is_none());
        let homeless = homeless.fold(0u16, |all, r| all | 1 << r);
        let (mut used, mut written, mut n) = (0u16, 0u16, 0);
        for (_, uses) in insns {
            let u = uses.unwrap_or_default();
            let all = used | u.used | u.written;
            if (all & homeless).count_ones() > (!all & !homeless).count_ones() {
                break;
            }
            (used, written, n) = (all, written | u.written, n + 1);
        }
        let mut plan = Self {
            hosts: HOSTS.map(|h| h.unwrap_or(A)),
            moved: [(0, 0); 4],
            count: 0,
            written,
        };
        // The last ones are callee's, and mostly of the same functions that do not use them.
        let mut free = (0..16u8).rev().filter(|r| !(used | homeless) >> r & 1 != 0);
        for r in (0..16u8).filter(|r| used & homeless & 1 << r != 0) {
            let Some(from) = free.next() else { break };
            plan.hosts[usize::from(r)] = HOSTS[usize::from(from)].unwrap_or(A);
            plan.moved[plan.count] = (r, from);
            plan.count += 1;
        }
        (plan, n)
    }

    /// See [`Copier::begin`].
    fn constant_bases(&self, insns: &[Insn], decoded: &[(Instruction, Option<Uses>)]) -> u16 {
        let mut bases = 0u16;
        for (i, (ins, uses)) in insns.iter().zip(decoded) {
            if uses.is_none() {
                break;
            }
            let m = &i.mem;
            if touches(i, ins)
                && m.base != MemRef::NONE
                && (m.index, m.seg) == (MemRef::NONE, MemRef::NONE)
            {
                bases |= 1 << (m.base & 15);
            }
            if i.control != Control::Next {
                break;
            }
        }
        let moved = self.moved.iter().take(self.count);
        let changes = moved.fold(self.written, |all, m| all | 1 << m.0 | 1 << m.1);
        let constant = (0..16u8).filter(|r| bases & !changes & 1 << r != 0);
        constant.fold(0, |all, r| all | 1 << self.host(r))
    }

    /// The host register that a guest register is in.
    fn host(&self, r: u8) -> u8 {
        self.hosts[usize::from(r & 15)]
    }
}

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
    /// A way out in the middle: its jump, behind which instruction it is, and where it goes to.
    Side(u32, usize, u64),
    /// An exit that is not linked: its jump, and where it goes to.
    Exit(u32, u64),
    /// A target that is not in the table: the jump that comes here, and the instruction.
    Miss(u32, usize),
}

struct Copier<'a> {
    plan: Plan,
    table: i32,
    view_bits: u8,
    targets: i32,
    encoder: &'a mut Encoder,
    asm: Asm,
    insns: &'a [Insn],
    /// Host registers whose value is known to be in the view.
    checked: u16,
    /// What A is the sum of, if it is one that is known to be in the view.
    sum: Option<(u8, (u8, u8))>,
    /// Those whose value is known to be less than 2^32 away from 0, as what has 32 bits: so much and more, with any scale and
    /// displacement, are the view's guards.
    small: u16,
    /// Where it begins anew once what does not change is checked.
    again: u32,
    /// Those of the flags that are kept: what a shift or a product leaves in AF is undefined, and 0 in the interpreter.
    kept: u64,
    /// Instructions done.
    done: usize,
    /// Where code begins that may fault, and what the way out says: where, and which flags are kept. Or that may not.
    faulting: Vec<(u32, Option<(Way, u64)>)>,
    tails: Vec<Tail>,
    /// Numbers of the first exit and step.
    first: (u32, u32),
    out: Direct,
}

impl Copier<'_> {
    /// From here on an access may fault there.
    fn faults(&mut self, way: Way) {
        self.faulting
            .push((self.asm.here(), Some((way, self.kept))));
    }

    /// From here on nothing faults.
    fn safe(&mut self) {
        self.faulting.push((self.asm.here(), None));
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
        self.asm.rotate(S, r, from);
        self.asm.low16(S, S);
        self.asm.mem(&[0x8b], S, At::entry(self.table, S), false);
    }

    /// The host operand for the guest's memory operand, checked.
    fn operand(&mut self, m: &MemRef) -> Option<At> {
        let disp = i32::try_from(m.disp).ok();
        let base = (m.base != MemRef::NONE).then(|| self.plan.host(m.base));
        let index = (m.index != MemRef::NONE).then(|| (self.plan.host(m.index), m.scale & 3));
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
                self.asm.lea(A, At::sum(base, index));
                self.check_bits(A, self.view_bits);
                self.sum = sum;
            }
        } else {
            self.sum = None;
            let seg = layout::seg_base(usize::from(m.seg));
            self.asm.load(A, At::state(seg));
            for (r, scale) in base.map(|b| (b, 0)).into_iter().chain(index) {
                self.asm.lea(A, At::sum(Some(A), Some((r, scale))));
            }
            self.check_bits(A, self.view_bits);
        }
        Some(At::guest(A, disp))
    }

    /// A has another value: this one.
    fn constant(&mut self, value: u64) {
        self.sum = None;
        self.asm.constant(A, value);
    }

    /// Whether it may lead back to itself by copies that do not look: each circle of them has a step that does not go up.
    fn looks(&self) -> bool {
        let first = self.head();
        let goes_back = |i: &Insn| match i.control {
            Control::Jump(to) | Control::Call(to) => to <= first,
            Control::Branch(to) => to <= first || i.next_rip() <= first,
            Control::Next | Control::Leave => i.next_rip() <= first,
            Control::Indirect | Control::IndirectCall | Control::Return => true,
        };
        self.insns.iter().any(goes_back)
    }

    /// Where the guest is when it comes in.
    fn head(&self) -> u64 {
        self.insns.first().map_or(0, |i| i.rip)
    }

    /// Whether the last instruction may go on at the first.
    fn is_loop(&self) -> bool {
        let last = self.insns.last();
        last.is_some_and(|i| match i.control {
            Control::Jump(to) => to == self.head(),
            Control::Branch(to) => to == self.head() || i.next_rip() == self.head(),
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
        self.again = self.asm.here();
        if self.looks() {
            // Before the first instruction is counted.
            self.faults(Way::Look);
            self.asm
                .mem(&[0x8b], S, At::state(layout::EXIT_REQUEST), false);
            self.asm.mem(&[0x8b], S, At::entry(self.table, S), false);
            if budget {
                self.asm.load(S, At::state(layout::BUDGET));
                self.asm.lea(S, At::plain(S, -1));
                self.asm.store(At::state(layout::BUDGET), S);
                self.check_bits(S, 48);
            }
            self.safe();
        }
        self.asm.count(true, number(self.table, self.insns.len()));
        self.take();
    }

    /// Registers of the block that have no host register come into one.
    fn take(&mut self) {
        let plan = self.plan;
        for (r, from) in plan.moved.into_iter().take(plan.count) {
            let host = plan.host(r);
            self.asm.store(At::gpr(from), host);
            self.asm.load(host, At::gpr(r));
        }
    }

    /// And go back.
    fn give(&mut self) {
        let plan = self.plan;
        for (r, from) in plan.moved.into_iter().take(plan.count) {
            let host = plan.host(r);
            if plan.written >> r & 1 != 0 {
                self.asm.store(At::gpr(r), host);
            }
            self.asm.load(host, At::gpr(from));
        }
    }

    fn leave(&mut self, why: Left, kept: u64) {
        let af = if kept & AF == 0 {
            Left::UNDEFINED_AF
        } else {
            0
        };
        self.asm.constant(S, u64::from(why.word() | af));
        self.asm.jump_to(At::state(layout::LEAVE));
    }

    /// Puts a register on the guest's stack, whose pointer has been checked.
    fn push(&mut self, r: u8) {
        let sp = self.plan.host(RSP);
        self.asm.store(At::guest(sp, -8), r);
        self.move_sp(-8);
    }

    /// Moves the guest's stack pointer by so little that it stays checked.
    fn move_sp(&mut self, by: i32) {
        let sp = self.plan.host(RSP);
        self.asm.lea(sp, At::plain(sp, by));
        self.unsum(sp);
    }

    /// What A is the sum of has changed, if it is this host register.
    fn unsum(&mut self, r: u8) {
        self.sum = self.sum.filter(|s| s.0 != r && s.1.0 != r);
    }

    /// Leaves an instruction to the interpreter.
    fn step(&mut self) {
        let k = self.done;
        self.safe();
        self.give();
        self.constant(self.insns[k].rip);
        let number = self.first.1 + self.out.steps.len() as u32;
        self.leave(Left::Step(number), self.kept);
        let left = (self.insns.len() - k) as u32;
        self.out.steps.push((k, self.asm.here(), left));
        (self.checked, self.small) = (0, 0);
        self.kept = ARITH;
        self.take();
    }

    /// Where the copy goes on behind the instruction, if it does.
    fn next(&self) -> Option<u64> {
        self.insns.get(self.done + 1).map(|i| i.rip)
    }

    /// A jump to where the guest goes on.
    fn exit(&mut self, op: &[u8], to: u64) {
        let at = self.asm.jump(op);
        if to == self.head() {
            self.asm.aim_back(at, self.again);
        } else {
            self.tails.push(Tail::Exit(at, to));
        }
    }

    /// Copies an instruction.
    fn insn(&mut self, ins: &Instruction, uses: Uses) -> Option<()> {
        let i = &self.insns[self.done];
        if touches(i, ins) {
            self.faults(Way::At(self.done));
        }
        let sp = self.plan.host(RSP);
        match (i.op, i.control) {
            (Op::Nop, _) => {}
            (Op::Push, _) => {
                self.check(sp);
                match i.ops[0] {
                    Operand::Gpr(r) => self.push(self.plan.host(r)),
                    Operand::Imm(v) => {
                        self.constant(v as u64);
                        self.push(A);
                    }
                    Operand::Mem => {
                        let at = self.operand(&i.mem)?;
                        self.asm.load(A, at);
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
                let r = self.plan.host(r);
                self.asm.load(r, At::guest(sp, 0));
                self.forget(r);
                self.move_sp(8);
            }
            (Op::Leave, _) => {
                self.check(RBP);
                self.sum = None;
                self.asm.load(A, At::guest(RBP, 0));
                self.asm.lea(sp, At::plain(RBP, 8));
                self.asm.copy(RBP, A);
                self.forget(RBP);
                self.forget(sp);
                self.checked |= 1 << sp;
            }
            (_, Control::Jump(to)) if self.next() == Some(to) => {}
            (_, Control::Jump(to)) => {
                self.give();
                self.exit(&[0xe9], to);
            }
            (Op::Jcc(cc), Control::Branch(to)) if self.next().is_some() => {
                let falls = self.next() == Some(i.next_rip());
                let (cc, to) = if falls {
                    (cc as u8, to)
                } else {
                    (cc as u8 ^ 1, i.next_rip())
                };
                let at = self.asm.jump(&[0x0f, 0x80 | cc]);
                self.tails.push(Tail::Side(at, self.done, to));
            }
            (Op::Jcc(cc), Control::Branch(to)) => {
                self.give();
                self.exit(&[0x0f, 0x80 | cc as u8], to);
                self.exit(&[0xe9], i.next_rip());
            }
            (_, Control::Call(to)) => {
                self.check(sp);
                self.asm.constant(A, i.next_rip());
                self.push(A);
                self.give();
                self.exit(&[0xe9], to);
            }
            (_, Control::Return | Control::Indirect | Control::IndirectCall) => self.indirect(i)?,
            (Op::Lea, _) if i.mem.base == MemRef::NONE && i.mem.index == MemRef::NONE => {
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                if i.width.bytes() < 4 || i.mem.addr32 {
                    return None;
                }
                let r = self.plan.host(r);
                let value = i.mem.disp as u64 & i.width.mask();
                self.asm.constant(r, value);
                self.forget(r);
                self.checked |= u16::from(value >> self.view_bits == 0) << r;
            }
            _ => self.copy(ins, uses)?,
        }
        if i.flags_out & AF != 0 {
            let undefined = matches!(
                i.op,
                Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd | Op::Imul2 | Op::Imul3
            );
            self.kept = if undefined { ARITH & !AF } else { ARITH };
        }
        Some(())
    }

    /// A host register has another value.
    fn forget(&mut self, r: u8) {
        self.checked &= !(1 << r);
        self.small &= !(1 << r);
        self.unsum(r);
    }

    /// Goes where a register, memory or the stack says.
    fn indirect(&mut self, i: &Insn) -> Option<()> {
        let sp = self.plan.host(RSP);
        match i.ops[0] {
            _ if i.control == Control::Return => {
                self.check(sp);
                self.asm.load(A, At::guest(sp, 0));
            }
            Operand::Gpr(r) => {
                let r = self.plan.host(r);
                self.asm.copy(A, r);
            }
            Operand::Mem => {
                let at = self.operand(&i.mem)?;
                self.asm.load(A, at);
            }
            _ => return None,
        }
        if i.control == Control::IndirectCall {
            self.check(sp);
        }
        let kept = At::state(layout::KEPT);
        self.asm.low16(S, A);
        self.asm.store(kept, RCX);
        self.asm.load(RCX, At::entry(self.targets, S));
        self.asm.lea(RCX, At::sum(Some(RCX), Some((A, 0))));
        // jrcxz over the jump
        self.asm.bytes(&[0xe3, 5]);
        let miss = self.asm.jump(&[0xe9]);
        self.tails.push(Tail::Miss(miss, self.done));
        self.asm.load(RCX, kept);
        self.move_stack(i, A)?;
        self.give();
        let code = self.targets + 8 * Targets::ENTRIES as i32;
        self.asm.jump_to(At::entry(code, S));
        Some(())
    }

    /// What a return or a call does to the stack. `free`: a register for the address.
    fn move_stack(&mut self, i: &Insn, free: u8) -> Option<()> {
        match i.control {
            Control::Return => {
                let more = match i.ops[0] {
                    Operand::Imm(v) => i32::try_from(v).ok().filter(|v| *v >= 0)?,
                    _ => 0,
                };
                self.move_sp(8 + more);
            }
            Control::IndirectCall => {
                self.asm.constant(free, i.next_rip());
                self.push(free);
            }
            _ => {}
        }
        Some(())
    }

    /// The instruction itself, with its registers and its memory operand replaced.
    fn copy(&mut self, ins: &Instruction, uses: Uses) -> Option<()> {
        let i = &self.insns[self.done];
        let mut ins = *ins;
        let is_mem = ins.op_kinds().any(|k| k == OpKind::Memory);
        if is_mem && i.op != Op::Lea {
            let at = self.operand(&i.mem)?;
            ins.set_segment_prefix(Register::GS);
            ins.set_memory_base(at.base.map_or(Register::None, wide));
            let (index, scale) = at
                .index
                .map_or((Register::None, 0), |(r, scale)| (wide(r), scale));
            ins.set_memory_index(index);
            ins.set_memory_index_scale(1 << scale);
            ins.set_memory_displacement64(i64::from(at.disp) as u64);
            ins.set_memory_displ_size(match at.disp {
                _ if at.base.is_none() => 8,
                0 => 0,
                -128..128 => 1,
                _ => 8,
            });
            ins.set_code(ordered(ins.code()));
        } else if is_mem {
            ins.set_segment_prefix(Register::None);
            let (base, index) = (ins.memory_base(), ins.memory_index());
            ins.set_memory_base(self.renamed(base));
            ins.set_memory_index(self.renamed(index));
            ins.set_memory_displ_size(8);
        }
        for n in 0..ins.op_count() {
            if ins.op_kind(n) == OpKind::Register {
                ins.set_op_register(n, self.renamed(ins.op_register(n)));
            }
        }
        ins.set_has_rep_prefix(false);
        ins.set_has_repne_prefix(false);
        let encoded = self.encoder.encode(&ins, 0);
        // What it has written before it found an error is there, too.
        let mut bytes = self.encoder.take_buffer();
        encoded.ok()?;
        self.asm.bytes(&bytes);
        bytes.clear();
        self.encoder.set_buffer(bytes);
        let small = matches!(i.op, Op::Add | Op::Sub)
            && i.width.bytes() == 8
            && matches!(i.ops, [Operand::Gpr(RSP), Operand::Imm(v), ..] if v.abs() < NEAR);
        for r in (0..16).filter(|r| uses.written >> r & 1 != 0) {
            if r == RSP && small {
                self.unsum(self.plan.host(r));
            } else {
                self.forget(self.plan.host(r));
            }
        }
        if let Operand::Gpr(r) = i.ops[0]
            && leaves_small(i)
        {
            self.small |= 1 << self.plan.host(r);
        }
        Some(())
    }

    fn renamed(&self, r: Register) -> Register {
        if !r.is_gpr() {
            return r;
        }
        let from = r.full_register().number() as u8;
        let to = self.plan.host(from);
        if to == from {
            return r;
        }
        let table = match r.size() {
            8 => Register::RAX,
            4 => Register::EAX,
            2 => Register::AX,
            _ => {
                // The byte registers of encodings 4 to 7 come behind AH to BH.
                return match to {
                    0..=3 => Register::AL + u32::from(to),
                    _ => Register::SPL + u32::from(to - 4),
                };
            }
        };
        table + u32::from(to)
    }

    /// What lies behind: exits that are not linked, targets that are not known, the ways out.
    fn end(mut self) -> Direct {
        let insns = self.insns;
        if insns.last().is_some_and(|i| i.control == Control::Next) {
            self.give();
            self.exit(&[0xe9], insns.last().map_or(0, Insn::next_rip));
        }
        self.safe();
        let kept = self.kept;
        for tail in std::mem::take(&mut self.tails) {
            match tail {
                Tail::Side(at, k, to) => {
                    self.asm.aim(at);
                    let ahead = insns.len() - k - 1;
                    self.asm.count(false, number(self.table, ahead));
                    self.give();
                    let at = self.asm.jump(&[0xe9]);
                    if to == self.head() {
                        self.asm.aim_back(at, self.again);
                    } else {
                        self.unlinked(at, to, kept);
                    }
                }
                Tail::Exit(at, to) => {
                    self.unlinked(at, to, kept);
                }
                Tail::Miss(at, k) => {
                    self.asm.aim(at);
                    self.asm.load(RCX, At::state(layout::KEPT));
                    self.faults(Way::At(k));
                    // Nothing that the guest may go to is outside the view; the interpreter knows what is wrong with it.
                    self.check_bits(A, self.view_bits);
                    self.check_bits(A, 48);
                    // It was encoded before.
                    let _ = self.move_stack(&insns[k], S);
                    self.safe();
                    self.give();
                    self.leave(Left::Indirect, kept);
                }
            }
        }
        self.ways_out();
        self.out.code = self.asm.code;
        self.out
    }

    /// Where the jump of an exit goes as long as it is not linked.
    fn unlinked(&mut self, jump: u32, to: u64, kept: u64) {
        self.asm.aim(jump);
        let number = self.first.0 + self.out.exits.len() as u32;
        self.out.exits.push((jump, self.asm.here(), to));
        self.asm.constant(A, to);
        self.leave(Left::Exit(number), kept);
    }

    fn ways_out(&mut self) {
        let n = self.insns.len();
        let mut ways: Vec<((Way, u64), u32)> = Vec::new();
        for (begins, what) in std::mem::take(&mut self.faulting) {
            let Some((way, kept)) = what else {
                self.out.sites.push((begins, u32::MAX));
                continue;
            };
            let known = ways.iter().find(|w| w.0 == (way, kept)).map(|w| w.1);
            let out = known.unwrap_or_else(|| {
                let here = self.asm.here();
                ways.push(((way, kept), here));
                let (rip, left) = match way {
                    Way::At(k) => {
                        self.give();
                        (self.insns[k].rip, Left::Out((n - k) as u32))
                    }
                    Way::Head => (self.head(), Left::Out(0)),
                    Way::Look => (self.head(), Left::Look),
                };
                self.asm.constant(A, rip);
                self.leave(left, kept);
                here
            });
            self.out.sites.push((begins, out));
        }
        self.out.sites.sort_by_key(|s| s.0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_why() {
        for left in [
            Left::Exit(77),
            Left::Indirect,
            Left::Step(3),
            Left::Out(5),
            Left::Look,
        ] {
            assert_eq!(Left::of(left.word()), (left, ARITH));
            assert_eq!(
                Left::of(left.word() | Left::UNDEFINED_AF),
                (left, ARITH & !AF)
            );
        }
    }
}
