//! Blocks that run as copies of the guest's own instructions: when they are made, how they are linked, and what comes of leaving
//! them. What a copy is, is in [`crate::direct`].
//!
//! Invariants, besides the engine's:
//! 1. A copy is in `blocks` only while its guest pages are tracked, as a region is.
//! 2. A jump of a copy goes to another, and an entry of the targets leads to one, only while that is in `blocks`.

use super::Engine;
use super::stored;
use crate::codebuf::CodeBuf;
use crate::direct::lines::Filters;
use crate::direct::{self, Direct, First, Left, MOST, Maker, Memory};
use crate::faults::{self, Copied};
use crate::layout::{self, word};
use crate::runtime;
use iced_x86::Instruction;
use rustc_hash::{FxHashMap, FxHashSet};
use sevlab_cpu::flags::LazyFlags;
use sevlab_cpu::insn::{Control, Insn};
use sevlab_cpu::{CpuState, Stop, Vcpu, interp};

/// Marks an address that the interpreter keeps for a block as that of a copy.
pub(super) const COPY: u64 = 1 << 63;
/// So often left at an access that can't be made, and a block is not copied any more.
const MOST_LEAVES: u32 = 32;
/// Copies need no more than the host's own alignment of jump targets.
pub(super) const ALIGN: usize = 16;

/// A block's copy.
pub(super) struct Block {
    code: usize,
    /// Where caches are simulated: its code for who has fetched the block's first line last.
    same: usize,
    pages: Vec<u64>,
    /// Exits that lead here.
    incoming: Vec<u32>,
    leaves: u32,
    /// It stands for a block that was not decoded ([`JitOptions::cold`](crate::JitOptions::cold)), and may be come to so often yet. No
    /// exit or target leads to it, so that each time is seen.
    left: Option<u32>,
    /// Its record for the code cache, if there is one and the copy is not from there.
    pub(super) made: Option<Box<[u8]>>,
}

/// Where a copy is from.
pub(super) enum Source {
    /// Made in this run; its record for the code cache, if there is one.
    Made(Option<Box<[u8]>>),
    /// From the code cache.
    Stored { cold: bool },
}

/// A jump out of a copy.
struct Exit {
    /// Where its distance is.
    jump: usize,
    /// Where it goes if it is not linked.
    stub: usize,
    /// Where it goes.
    goes: usize,
    to: u64,
    /// The line fetched last.
    line: u64,
}

impl Block {
    /// Where who has fetched that line last goes on.
    fn entry(&self, rip: u64, fetched: u64) -> usize {
        if fetched == rip >> 6 && self.same != 0 {
            self.same
        } else {
            self.code
        }
    }
}

impl Exit {
    /// It goes to `code` from now on.
    fn aim(&mut self, buffer: &CodeBuf, code: usize) {
        self.goes = code;
        let distance = code.wrapping_sub(self.jump + 4) as u32;
        buffer.patch(self.jump, distance.to_le_bytes());
    }
}

/// An instruction that the interpreter runs for a copy.
struct Step {
    insn: Insn,
    tally: u64,
    resume: usize,
    /// Instructions of the copy from it on: in the view all of these are counted before it.
    from: u32,
}

/// Instructions that follow each other.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) insns: Vec<Insn>,
    pub(super) decoded: Vec<Option<Instruction>>,
    /// What they count where caches are simulated.
    tallies: Vec<u64>,
    /// Pages that they are in, some of them twice.
    pages: Vec<u64>,
    /// The blocks behind the first.
    pub(super) behind: Vec<u64>,
}

impl Trace {
    fn add(&mut self, block: &interp::Block) {
        for (ins, i) in block.decoded() {
            self.decoded.push(ins);
            self.insns.push(i);
        }
        self.tallies.extend(block.tallies());
        self.pages
            .extend([block.rip >> 12, block.end.wrapping_sub(1) >> 12]);
    }
}

/// All copies.
#[derive(Default)]
pub(super) struct Copies {
    /// Where guest memory is that they are made for; `None`: there are none.
    pub(super) memory: Option<Memory>,
    /// Makes them; `None` if there can be none.
    pub(super) maker: Option<Maker>,
    pub(super) blocks: FxHashMap<u64, Block>,
    by_page: FxHashMap<u64, Vec<u64>>,
    exits: Vec<Exit>,
    steps: Vec<Step>,
    /// Blocks whose copies were left too often, or that are not cold any more: none is taken from the code cache.
    pub(super) refused: FxHashSet<u64>,
    /// The exit by which copies were left, if it is to be linked to where it led.
    pub(super) unlinked: Option<u32>,
}

impl Copies {
    /// There may be so many: a table that grows with them costs more than they do.
    pub(super) fn reserve(&mut self, copies: usize) {
        self.blocks.reserve(copies);
        self.exits.reserve(2 * copies);
    }

    /// The numbers of the next exit and step.
    pub(super) fn first(&self) -> First {
        First {
            exit: self.exits.len() as u32,
            step: self.steps.len() as u32,
        }
    }

    /// The word of the copy at `rip`.
    pub(super) fn word(&self, rip: u64) -> Option<u64> {
        Some(self.blocks.get(&rip)?.code as u64 | COPY)
    }
}

impl Engine {
    /// Where guest memory is for copies of a vCPU whose view, if it has one, begins at `view`, where it is as large; `None`: it may have none.
    fn memory(&self, vcpu: &Vcpu, view: Option<u64>) -> Option<Memory> {
        if self.options.direct == 0 || !direct::is_possible() {
            return None;
        }
        if !self.options.lines {
            let budget = self.options.budget;
            let bytes = view.filter(|_| self.views(vcpu))?;
            return Some(Memory::View { bytes, budget });
        }
        let filters = [vcpu.state.lines, vcpu.state.fetches].map(|at| at.addr());
        let can = vcpu.state.trail.is_null() && !vcpu.is_traced() && faults::install();
        let filters = Filters::at(filters[0], filters[1]).filter(|_| can)?;
        Some(Memory::Lines(filters))
    }

    /// Readies this thread for the copies of a vCPU, if it may have some: its view begins at `view`.
    pub(super) fn prepare_direct(&mut self, vcpu: &mut Vcpu, view: Option<u64>) {
        let Some(memory) = self.memory(vcpu, view) else {
            return self.forget_copies_made();
        };
        let engine = &mut vcpu.state.engine;
        let lines = matches!(memory, Memory::Lines(_));
        engine[word(layout::LEAVE)] = direct::enter::leave_address(lines) as u64;
        engine[word(layout::AVX)] = u64::from(std::arch::is_x86_feature_detected!("avx"));
        if let Memory::View { bytes, .. } = memory {
            direct::set_gs(bytes);
        }
        if self.direct.memory != Some(memory) {
            self.forget_copies_made();
            self.direct.memory = Some(memory);
            self.direct.maker = Maker::new(memory);
        }
    }

    /// Has a block run as a copy from now on.
    pub(super) fn make_direct(&mut self, vcpu: &mut Vcpu, rip: u64) {
        if let Some(word) = self.direct.word(rip) {
            vcpu.interp.set_translated(rip, word);
            return;
        }
        let can = self.direct.maker.is_some();
        let Some(block) = vcpu.interp.block(rip).filter(|b| can && b.wants_copy()) else {
            return;
        };
        let trace = self.trace(vcpu, block, |_| true);
        let first = self.direct.first();
        let Some(maker) = &mut self.direct.maker else {
            return;
        };
        let begun = self.warm.begin();
        let made = maker.make(&trace.insns, &trace.decoded, &trace.tallies, first);
        let Some(made) = made else {
            block.refuse_copy();
            return;
        };
        let Ok(at) = self.shared.code.append_at(&made.code, ALIGN) else {
            self.full = true;
            return;
        };
        let stored = match (begun, self.direct.memory, &self.direct.maker) {
            (Some(begun), Some(Memory::View { bytes, .. }), Some(maker)) => {
                let record =
                    stored::record(&trace, &made, bytes, false, |fix| maker.base(fix, first));
                self.warm.added += begun.elapsed();
                Some(record)
            }
            _ => None,
        };
        for behind in trace.behind.iter().filter_map(|&at| vcpu.interp.block(at)) {
            // It has run for this one's sake so often: whether it needs a copy of its own is to be seen.
            behind.hits.set(1);
        }
        self.stats.direct += 1;
        self.stats.direct_bytes += made.code.len() as u64;
        let Trace { insns, tallies, .. } = trace;
        let insn = |k: usize| (insns[k], tallies.get(k).copied().unwrap_or(0));
        self.admit_copy(rip, at, made, trace.pages, Source::Made(stored), insn);
    }

    /// The copy of the block at `rip`, whose code is at `at`, runs from now on. `insn`: the instructions that its steps number, and what they
    /// count.
    pub(super) fn admit_copy(
        &mut self,
        rip: u64,
        at: usize,
        made: Direct,
        mut pages: Vec<u64>,
        source: Source,
        insn: impl Fn(usize) -> (Insn, u64),
    ) {
        let (left, made_here) = match source {
            Source::Made(record) => (None, record),
            Source::Stored { cold } => (cold.then_some(self.options.direct), None),
        };
        let copies = &mut self.direct;
        let offset = |n: u32| at + n as usize;
        let steps = made.steps.iter().map(|&(k, resume, from)| {
            let (insn, tally) = insn(k);
            Step {
                insn,
                tally,
                resume: offset(resume),
                from,
            }
        });
        copies.steps.extend(steps);
        copies.exits.extend(made.exits.iter().map(|exit| Exit {
            jump: offset(exit.jump),
            stub: offset(exit.stub),
            goes: offset(exit.stub),
            to: exit.to,
            line: exit.line,
        }));
        pages.sort_unstable();
        pages.dedup();
        for page in &pages {
            copies.by_page.entry(*page).or_default().push(rip);
        }
        self.faults.direct.insert(
            at,
            Copied {
                rip,
                sites: made.sites.into(),
            },
        );
        copies.blocks.insert(
            rip,
            Block {
                code: at,
                same: if made.same == 0 { 0 } else { offset(made.same) },
                pages,
                incoming: Vec::new(),
                leaves: 0,
                left,
                made: made_here,
            },
        );
        self.words.push((rip, at as u64 | COPY));
    }

    /// A block and those that mostly run behind it, as far as they are not copied yet, and are `wanted`.
    pub(super) fn trace(
        &self,
        vcpu: &Vcpu,
        first: &interp::Block,
        wanted: impl Fn(u64) -> bool,
    ) -> Trace {
        let mut trace = Trace::default();
        trace.add(first);
        let enough = first.hits.get() / 2;
        while let Some(last) = trace.insns.last() {
            let next = match last.control {
                Control::Jump(to) => [to, to],
                Control::Branch(to) => [to, last.next_rip()],
                _ => break,
            };
            let blocks = next.iter().filter_map(|&to| vcpu.interp.block(to));
            let Some(block) = blocks.max_by_key(|b| b.hits.get()) else {
                break;
            };
            let fits = block.hits.get() >= enough
                && trace.insns.len() + block.len() <= MOST
                && block.wants_copy()
                && wanted(block.rip)
                && !self.direct.blocks.contains_key(&block.rip)
                && !self.regions.contains_key(&block.rip)
                && trace.insns.iter().all(|i| i.rip != block.rip);
            if !fits {
                break;
            }
            trace.behind.push(block.rip);
            trace.add(block);
        }
        trace
    }

    /// Runs copies, from the one at `rip` on, which is left by `exit` for it.
    pub(super) fn run_copies(
        &mut self,
        vcpu: &mut Vcpu,
        exit: Option<u32>,
        rip: u64,
        code: usize,
    ) -> Result<(), Stop> {
        if let Some(n) = exit {
            self.link(n, rip);
        }
        if self.is_enough(rip) {
            return Ok(());
        }
        let lines = self.options.lines;
        let mut code = match self.direct.blocks.get(&rip) {
            Some(block) if lines => block.entry(rip, vcpu.state.fetch_line),
            _ => code,
        };
        if let Some(maker) = &self.direct.maker {
            vcpu.state.engine[word(layout::ACCESSES)] = maker.accesses.address();
            vcpu.state.engine[word(layout::SHORT)] = vcpu.short() as u64;
        }
        loop {
            let before = vcpu.state.retired;
            let outer = std::mem::replace(&mut vcpu.modelled, lines);
            let left = enter(&mut vcpu.state, code, lines);
            vcpu.modelled = outer;
            self.stats.copied += vcpu.state.retired - before;
            let rip = vcpu.state.rip;
            code = match left {
                Left::Exit(n) => match self.link(n, rip) {
                    Some(_) if self.is_enough(rip) => return Ok(()),
                    Some(code) => code,
                    None => {
                        self.direct.unlinked = Some(n);
                        return Ok(());
                    }
                },
                Left::Indirect => {
                    if self.is_enough(rip) {
                        return Ok(());
                    }
                    match (self.direct.blocks.get(&rip), &self.direct.maker) {
                        (Some(block), Some(maker)) => {
                            if block.left.is_none() {
                                maker.targets.enter(rip, block.code);
                            }
                            block.entry(rip, vcpu.state.fetch_line)
                        }
                        _ => return Ok(()),
                    }
                }
                Left::Step(n) => match self.step(vcpu, n)? {
                    Some(code) => code,
                    None => return Ok(()),
                },
                Left::Look if lines => return self.finish_turn(vcpu),
                Left::Look => return Ok(()),
                Left::Out(ahead) => {
                    self.uncount(vcpu, ahead);
                    if !lines {
                        self.note_leave(vcpu.state.engine[word(layout::LEFT_REGION)], vcpu);
                    }
                    return self.interpret(vcpu, interp::step);
                }
            };
            if !vcpu.dropped_code.is_empty() {
                return Ok(());
            }
        }
    }

    /// Links an exit to the copy at `rip`, where it led; its code.
    fn link(&mut self, n: u32, rip: u64) -> Option<usize> {
        let exit = self.direct.exits.get_mut(n as usize)?;
        // Whoever runs the vCPU may have sent it elsewhere meanwhile.
        let block = self
            .direct
            .blocks
            .get_mut(&rip)
            .filter(|_| exit.to == rip)?;
        let code = block.entry(rip, exit.line);
        if self.options.chaining && block.left.is_none() {
            block.incoming.push(n);
            exit.aim(&self.shared.code, code);
        }
        Some(code)
    }

    /// Counts that the copy at `rip` is come to, if it is one of a cold block. Whether that was often enough: it is gone then, and the
    /// interpreter decodes the block, which gets another copy if it goes on like this.
    fn is_enough(&mut self, rip: u64) -> bool {
        if self.stats.cold_copies == 0 {
            return false;
        }
        let block = self.direct.blocks.get_mut(&rip);
        let Some(left) = block.and_then(|b| b.left.as_mut()) else {
            return false;
        };
        *left = left.saturating_sub(1);
        if *left != 0 {
            return false;
        }
        self.drop_copy(rip);
        self.direct.refused.insert(rip);
        true
    }

    /// Instructions were counted that were not done.
    fn uncount(&mut self, vcpu: &mut Vcpu, ahead: u32) {
        vcpu.state.retired -= u64::from(ahead);
        self.stats.copied -= u64::from(ahead);
    }

    /// Runs an instruction for a copy; where that goes on, if it does.
    fn step(&mut self, vcpu: &mut Vcpu, n: u32) -> Result<Option<usize>, Stop> {
        let step = &self.direct.steps[n as usize];
        let (resume, from, before) = (step.resume, step.from, vcpu.state.retired);
        let done = runtime::step_over(vcpu, &step.insn, step.tally);
        let ran = vcpu.state.retired - before;
        self.stats.interpreted += ran;
        if self.options.lines {
            // Behind it the copy does not ask whether the turn ends.
            let behind = u64::from(from) - 1;
            let fits = vcpu.state.clock().saturating_add(behind) <= vcpu.state.stop_at;
            return done.map(|goes_on| (goes_on && fits).then_some(resume));
        }
        match done {
            // It is counted twice.
            Ok(true) => {
                vcpu.state.retired -= ran;
                self.stats.copied -= ran;
                Ok(Some(resume))
            }
            done => {
                self.uncount(vcpu, from);
                done.map(|_| None)
            }
        }
    }

    /// A copy was left at an access that can't be made. It goes if it often is.
    fn note_leave(&mut self, rip: u64, vcpu: &Vcpu) {
        let Some(block) = self.direct.blocks.get_mut(&rip) else {
            return;
        };
        block.leaves += 1;
        if block.leaves >= MOST_LEAVES {
            self.drop_copy(rip);
            self.direct.refused.insert(rip);
            if let Some(block) = vcpu.interp.block(rip) {
                block.refuse_copy();
            }
        }
    }

    /// Forgets the copy at `rip`, if there is one.
    fn drop_copy(&mut self, rip: u64) {
        let Some(block) = self.direct.blocks.remove(&rip) else {
            return;
        };
        for n in block.incoming {
            let exit = &mut self.direct.exits[n as usize];
            exit.aim(&self.shared.code, exit.stub);
        }
        if let Some(maker) = &self.direct.maker {
            maker.targets.remove(rip);
        }
        for page in block.pages {
            if let Some(list) = self.direct.by_page.get_mut(&page) {
                list.retain(|&at| at != rip);
            }
        }
        self.faults.direct.remove(&block.code);
        let region = self.regions.get(&rip).map_or(0, |r| r.code.address as u64);
        self.words.push((rip, region));
    }

    /// Forgets the copies made from a page.
    pub(super) fn drop_copies_of(&mut self, page: u64) {
        for rip in self.direct.by_page.remove(&page).unwrap_or_default() {
            self.drop_copy(rip);
        }
    }

    /// The host process has been cloned, and this is the clone: while it took the code over, the original may have linked exits to code
    /// that is not here.
    pub(super) fn relink(&mut self) {
        for exit in &mut self.direct.exits {
            exit.aim(&self.shared.code, exit.goes);
        }
    }

    /// Forgets all copies, whose code may be gone.
    pub(super) fn forget_copies_made(&mut self) {
        let copies = std::mem::take(&mut self.direct);
        self.words.extend(copies.blocks.keys().map(|&rip| (rip, 0)));
        self.faults.direct.clear();
    }
}

/// Runs copied code from `code` on, until it is left.
fn enter(s: &mut CpuState, code: usize, lines: bool) -> Left {
    s.cc = LazyFlags::explicit(s.cc.bits());
    let word = if lines {
        direct::enter::enter_lines(s, code)
    } else {
        direct::enter::enter(s, code)
    };
    let (left, kept) = Left::of(word);
    s.cc = LazyFlags::explicit(s.cc.r & kept);
    left
}
