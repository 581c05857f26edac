//! What translated code does more where caches are simulated (`--cache hierarchy`).
//!
//! Every access is a touch of its line: a probe of the line filter at `state.lines`, whose hit is a hit of the first-level
//! cache that changes nothing but the line's stamp, which the code stores; everything else is a helper's. Lines of
//! instructions are touched where control goes from one to the next, against the fetch filter at `state.fetches`.
//!
//! Invariants:
//! 1. A stamp is the clock (`retired + repeats`) before the instruction, plus 1. In this mode [`Lower::count`] is the
//!    clock, not the count since the region was entered.
//! 2. The tally is the sum since the region was entered, of whole instructions. Every way out adds it to the state's; a
//!    helper is told the sum as of its instruction. The state's `fetched` is always up to date; its `fetch_line` where the region
//!    is left, or the interpreter is to run an instruction.
//! 3. Where a block begins, its first line has been fetched: the edge there, or the entry, saw to it. An instruction's
//!    lines are fetched before anything else it does.
//! 4. A way out at an instruction that lies in two lines takes back that its second one was fetched: whoever runs the
//!    instruction fetches, and counts, that line again.
//! 5. Past a poll the clock stays below `stop_at` until the next: whatever is touched belongs to this turn.

use super::{Lower, state_flags};
use crate::layout::{self, exit};
use crate::region::Region;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    Block as ClifBlock, BlockArg, InstBuilder, MemFlagsData, Type, Value, types,
};
use cranelift_frontend::Variable;
use iced_x86::Mnemonic;
use sevlab_cpu::insn::{Op, Operand, Width};
use sevlab_cpu::model::TRAIL_BYTES;
use sevlab_cpu::model::costs::CostTable;
use sevlab_cpu::state::gpr::RSP;
use sevlab_cpu::{Builder, Insn};
use sevlab_memctl::{FetchFilter, LineFilter, TAG_SHIFT};

use super::mem::For;

/// log2 of a line.
const SHIFT: u64 = 6;
/// And of a page.
const PAGE_SHIFT: u64 = 12;

const fn line(va: u64) -> u64 {
    va >> SHIFT
}

fn last_line(i: &Insn) -> u64 {
    line(i.next_rip().wrapping_sub(1))
}

/// What an instruction loads first.
struct First {
    bytes: u32,
    /// It is what RSP points at, not the memory operand.
    of_stack: bool,
}

/// What `i` loads before it may find that it must be left to the interpreter, which loads it again.
fn leaves_behind_load(i: &Insn) -> Option<First> {
    let operand = |bytes| First {
        bytes,
        of_stack: false,
    };
    let stack = |bytes| First {
        bytes,
        of_stack: true,
    };
    let has_operand = i.ops.contains(&Operand::Mem);
    match i.op {
        Op::Div | Op::Idiv | Op::Push if has_operand => return Some(operand(i.width.bytes())),
        Op::Pop if has_operand => return Some(stack(i.width.bytes())),
        // The target may not be canonical.
        Op::CallInd | Op::JmpInd if has_operand => return Some(operand(8)),
        Op::Ret => return Some(stack(8)),
        Op::Thunk => {}
        _ => return None,
    }
    let ins = super::vector::iced(i);
    let leaves = matches!(
        ins.mnemonic(),
        Mnemonic::Comiss
            | Mnemonic::Comisd
            | Mnemonic::Vcomiss
            | Mnemonic::Vcomisd
            | Mnemonic::Cvttss2si
            | Mnemonic::Cvttsd2si
            | Mnemonic::Vcvttss2si
            | Mnemonic::Vcvttsd2si
    );
    let bytes = ins.memory_size().size() as u32;
    (leaves && bytes > 0).then(|| operand(bytes))
}

/// Line mode's part of a translation.
pub(super) struct Lines<'a> {
    costs: Option<&'a CostTable>,
    tally_var: Variable,
    polls: Vec<Polls>,
    // per guest block
    /// Tally at the block's start.
    tally: Option<Value>,
    /// And of the block's instructions so far.
    tallied: u64,
    /// The line fetched last; not known only before the entry's check.
    at: Option<u64>,
    /// The current instruction's second line has been fetched.
    straddles: bool,
    /// Clock and tally as the last helper was told.
    told: Option<(Value, Value)>,
    /// Where all ways out of instructions that a helper could not serve end: what they share of it, once for the region.
    out: Option<ClifBlock>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(
        costs: Option<&'a CostTable>,
        region: &Region,
        headers: &[bool],
        tally_var: Variable,
    ) -> Self {
        Self {
            costs,
            tally_var,
            polls: polls(region, headers),
            tally: None,
            tallied: 0,
            at: None,
            straddles: false,
            told: None,
            out: None,
        }
    }

    fn tally_of(&self, i: &Insn) -> u64 {
        self.costs.map_or(0, |c| c.tally(i))
    }
}

/// Most instructions between two looks at whether the turn ends. What is left of a turn then is the interpreter's: the
/// fewer, the better, but a look costs what half an instruction does.
const BETWEEN_POLLS: u32 = 16;

/// Where a block polls.
#[derive(Clone, Default)]
struct Polls {
    /// For each instruction: if the block polls before it, the most instructions from there to the next poll or way out.
    before: Vec<Option<u32>>,
    /// The most instructions from the block's end to the next poll or way out.
    behind: u32,
}

impl Polls {
    /// The most instructions from before instruction `k` to the next poll, not counting one right there.
    fn ahead(&self, k: usize) -> u32 {
        let next = self.before[k..].iter().skip(1).position(Option::is_some);
        next.map_or_else(
            || (self.before.len() - k) as u32 + self.behind,
            |n| n as u32 + 1,
        )
    }
}

/// Places polls at the starts of loops and as often as [`BETWEEN_POLLS`] says.
fn polls(region: &Region, headers: &[bool]) -> Vec<Polls> {
    /// The most instructions from the start of block `n` to its first poll.
    fn visit(
        n: usize,
        region: &Region,
        headers: &[bool],
        known: &mut [Option<(Polls, u32)>],
    ) -> u32 {
        if let Some((_, first)) = &known[n] {
            return *first;
        }
        let block = &region.blocks[n];
        let mut p = Polls::default();
        // Without loops' starts there is no cycle.
        for &s in block.successors().filter_map(|t| region.index.get(&t)) {
            if !headers[s] {
                p.behind = p.behind.max(visit(s, region, headers, known));
            }
        }
        let mut ahead = p.behind;
        p.before = vec![None; block.insns.len()];
        for k in (0..block.insns.len()).rev() {
            ahead += 1;
            if ahead >= BETWEEN_POLLS || k == 0 && headers[n] {
                p.before[k] = Some(std::mem::take(&mut ahead));
            }
        }
        known[n] = Some((p, ahead));
        ahead
    }
    let mut known = vec![None; region.blocks.len()];
    for n in 0..region.blocks.len() {
        visit(n, region, headers, &mut known);
    }
    known
        .into_iter()
        .map(|k| k.map(|(p, _)| p).unwrap_or_default())
        .collect()
}

/// The ways in and through a region.
impl Lower<'_, '_> {
    /// From the function's entry to `first`, the first block: its line may be the one fetched last.
    pub(super) fn enter_lines(&mut self, first: ClifBlock) {
        let entry = self.region.entry();
        let p = self.pinned();
        let retired = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::RETIRED);
        let repeats = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::REPEATS);
        let clock = self.fb.ins().iadd(retired, repeats);
        self.fb.def_var(self.count_var, clock);
        self.count = Some(clock);
        let zero = self.iconst(types::I64, 0);
        if let Some(l) = &mut self.lines {
            self.fb.def_var(l.tally_var, zero);
            l.tally = Some(zero);
        }
        let last = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::FETCH_LINE);
        let here = self.iconst(types::I64, line(entry));
        let same = self.fb.ins().icmp(IntCC::Equal, last, here);
        let other = self.fb.create_block();
        self.fb.ins().brif(same, first, &[], other, &[]);
        self.enter_block(other);
        self.fetch(line(entry));
        self.fb.ins().jump(first, &[]);
    }

    /// At the start of block `n`.
    pub(super) fn begin_lines(&mut self, n: usize) {
        let first = line(self.region.blocks[n].rip);
        if let Some(l) = &mut self.lines {
            l.tally = Some(self.fb.use_var(l.tally_var));
            (l.tallied, l.straddles) = (0, false);
            l.at = Some(first);
            if self.options.trail {
                self.leave_trail(self.region.blocks[n].rip);
            }
        }
    }

    /// Leaves a block's address and the clock in the trail ([`sevlab_cpu::CpuState::trail`]).
    fn leave_trail(&mut self, rip: u64) {
        let clock = self.count.expect("set at the block's start");
        let p = self.pinned();
        let place = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::TRAIL);
        let rip = self.iconst(types::I64, rip);
        self.fb.ins().store(state_flags(), rip, place, 0);
        self.fb.ins().store(state_flags(), clock, place, 8);
        let inside = self.iconst(types::I64, TRAIL_BYTES as u64 - 1);
        let ring = self.fb.ins().band_not(place, inside);
        let next = self.add_constant(place, 16);
        let next = self.fb.ins().band(next, inside);
        let next = self.fb.ins().bor(ring, next);
        self.fb.ins().store(state_flags(), next, p, layout::TRAIL);
    }

    /// Before the current instruction does anything: its lines are fetched.
    pub(super) fn fetch_insn(&mut self) {
        let (first, last) = (line(self.insn.rip), last_line(&self.insn));
        let Some(l) = &self.lines else { return };
        if l.at != Some(first) {
            self.fetch(first);
        }
        if last != first {
            self.fetch(last);
            if let Some(l) = &mut self.lines {
                l.straddles = true;
            }
        }
    }

    /// Before the current instruction is lowered: one that may be left behind its load is left before it if the operand
    /// lies in two lines (or pages). Loaded twice, a part could have pushed out the other in between.
    pub(super) fn leave_early(&mut self) {
        let insn = self.insn;
        if self.lines.is_some()
            && let Some(first) = leaves_behind_load(&insn)
        {
            let va = if first.of_stack {
                self.gpr(RSP, Width::B8)
            } else {
                self.address(&insn.mem)
            };
            self.leave_if_crossing(va, first.bytes);
        }
    }

    /// Whether the current instruction is not to be lowered, but run by a helper, because it lies in two lines of code and may
    /// be left behind a load: that may have pushed out the second line, which would be fetched again. (What ends a block can't: a call
    /// through memory whose target is not canonical counts that fetch twice if its load pushed out its own code.)
    pub(super) fn runs_whole(&self) -> bool {
        let i = &self.insn;
        self.lines.as_ref().is_some_and(|l| l.straddles)
            && !i.ends_block()
            && leaves_behind_load(i).is_some()
    }

    /// The current instruction is complete.
    pub(super) fn insn_done(&mut self, counted: bool) {
        if let Some(l) = &mut self.lines {
            l.straddles = false;
            if counted {
                l.tallied = l.tallied.wrapping_add(l.tally_of(&self.insn));
            }
        }
    }

    /// At the end of a block, behind the definition of its variables: on the way to block `s` of the region, fetches
    /// its first line if that is another.
    pub(super) fn fetch_edge(&mut self, s: usize) {
        let Some(l) = &self.lines else { return };
        let to = line(self.region.blocks[s].rip);
        if l.at == Some(to) {
            return;
        }
        // The other edge is to find all as it was.
        let (insn, at) = (self.insn, l.at);
        self.insn = self.region.blocks[s].insns[0];
        self.fetch(to);
        self.insn = insn;
        if let Some(l) = &mut self.lines {
            l.at = at;
        }
    }

    /// Whether [`Self::fetch_edge`] would do anything.
    pub(super) fn edge_fetches(&self, s: usize) -> bool {
        self.lines
            .as_ref()
            .is_some_and(|l| l.at != Some(line(self.region.blocks[s].rip)))
    }

    /// Defines the tally for the following blocks.
    pub(super) fn define_tally(&mut self) {
        let tally = self.tally_so_far();
        if let (Some(l), Some(v)) = (&self.lines, tally) {
            self.fb.def_var(l.tally_var, v);
        }
    }

    /// Touches a line of instructions. A line that can't be fetched leaves at the current instruction.
    fn fetch(&mut self, which: u64) {
        let p = self.pinned();
        let flags = state_flags().with_readonly().with_can_move();
        let base = self.fb.ins().load(types::I64, flags, p, layout::FETCHES);
        let at = (which as usize % FetchFilter::ENTRIES * 8) as i32;
        let high = self.fb.ins().load(types::I32, state_flags(), base, at + 4);
        // What the filter has no room for matches nothing.
        let here = (which << SHIFT) >> FetchFilter::HIGH;
        let here = self.iconst(types::I32, here.min(u64::from(u32::MAX)));
        let hit = self.fb.ins().icmp(IntCC::Equal, high, here);
        let (fast, merge, cold) = self.fast_merge_cold();
        self.fb.ins().brif(hit, fast, &[], cold, &[]);
        self.enter_block(cold);
        let va = self.iconst(types::I64, which << SHIFT);
        let ok = self.call_line_helper(layout::H_LINE_FETCH, [va, va, va]);
        let leave = self.leave_block();
        self.fb.ins().brif(ok, merge, &[], leave, &[]);
        self.leave_unserved_in(leave);
        self.enter_block(fast);
        let slot = self.fb.ins().uload16(types::I64, state_flags(), base, at);
        self.store_stamp(base, slot, FetchFilter::STAMP);
        let p = self.pinned();
        self.add_to_state(p, layout::FETCHED, 1);
        self.fb.ins().jump(merge, &[]);
        self.enter_block(merge);
        if let Some(l) = &mut self.lines {
            l.at = Some(which);
        }
    }

    /// Stores which line was fetched last.
    fn store_fetch_line(&mut self, p: Value) {
        if let Some(which) = self.lines.as_ref().and_then(|l| l.at) {
            self.store_line_number(p, which);
        }
    }

    fn store_line_number(&mut self, p: Value, which: u64) {
        let v = self.iconst(types::I64, which);
        self.fb.ins().store(state_flags(), v, p, layout::FETCH_LINE);
    }

    /// Takes back the fetch of the current instruction's second line.
    fn unfetch(&mut self, p: Value) {
        self.add_to_state(p, layout::FETCHED, u64::MAX);
        self.store_line_number(p, line(self.insn.rip));
    }

    /// Before the current instruction fetches its lines: leaves if this is the place for a poll and the turn may end before
    /// the next. Nobody polls the exit request: turns are short.
    pub(super) fn poll_turn(&mut self) {
        let Some(l) = &self.lines else { return };
        let Some(ahead) = l.polls[self.at].before[self.done as usize] else {
            return;
        };
        let now = self.retired_so_far();
        let then = self.add_constant(now, u64::from(ahead));
        let p = self.pinned();
        let stop = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::STOP_AT);
        let out = self
            .fb
            .ins()
            .icmp(IntCC::UnsignedGreaterThanOrEqual, then, stop);
        self.poll_leave(out, exit::TURN);
    }

    /// Most instructions from behind the current one until the next poll or way out.
    pub(super) fn still_ahead(&self) -> u32 {
        self.lines
            .as_ref()
            .map_or(0, |l| l.polls[self.at].ahead(self.done as usize) - 1)
    }
}

/// Sums, and how they get to the state.
impl Lower<'_, '_> {
    /// The stamp of what the current instruction touches.
    fn stamp(&mut self) -> Value {
        let base = self.count.expect("set at the block's start");
        let k = u64::from(self.done) + 1;
        self.add_constant(base, k)
    }

    /// Tally since the region was entered, of the instructions before the current one.
    fn tally_so_far(&mut self) -> Option<Value> {
        let l = self.lines.as_ref()?;
        let (base, k) = (l.tally?, l.tallied);
        Some(self.add_constant(base, k))
    }

    fn add_to_state(&mut self, p: Value, at: i32, k: u64) {
        let old = self.fb.ins().load(types::I64, state_flags(), p, at);
        let new = self.add_constant(old, k);
        self.fb.ins().store(state_flags(), new, p, at);
    }

    /// Brings the state's counts up to the current instruction (or the block's end).
    pub(super) fn store_position(&mut self, p: Value) {
        let clock = self.retired_so_far();
        self.store_clock(p, clock);
        if let Some(more) = self.tally_so_far() {
            self.add_tally(p, more);
        }
        self.store_fetch_line(p);
        if self.lines.as_ref().is_some_and(|l| l.straddles) {
            self.unfetch(p);
        }
    }

    fn store_clock(&mut self, p: Value, clock: Value) {
        let repeats = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::REPEATS);
        let retired = self.fb.ins().isub(clock, repeats);
        self.fb
            .ins()
            .store(state_flags(), retired, p, layout::RETIRED);
    }

    fn add_tally(&mut self, p: Value, more: Value) {
        let old = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::TALLY);
        let new = self.fb.ins().iadd(old, more);
        self.fb.ins().store(state_flags(), new, p, layout::TALLY);
    }

    /// As [`Self::store_position`], after which the tally begins anew: the interpreter is to run the current instruction.
    pub(super) fn hand_over_position(&mut self, p: Value) {
        self.store_position(p);
        let zero = self.iconst(types::I64, 0);
        if let Some(l) = &mut self.lines {
            (l.tally, l.tallied) = (Some(zero), 0);
        }
    }

    /// The interpreter has run a repeated instruction, before which the state's count of repetitions was `before`.
    pub(super) fn add_repeats(&mut self, p: Value, before: Value) {
        let after = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::REPEATS);
        let more = self.fb.ins().isub(after, before);
        let base = self.count.expect("set at the block's start");
        self.count = Some(self.fb.ins().iadd(base, more));
    }

    /// Takes a completed branch, the current instruction, out of the state's sums again.
    pub(super) fn undo_position(&mut self, p: Value) {
        let Some(l) = &self.lines else { return };
        let tally = l.tally_of(&self.insn);
        self.add_to_state(p, layout::TALLY, tally.wrapping_neg());
        if line(self.insn.rip) != last_line(&self.insn) {
            self.unfetch(p);
        }
    }
}

/// Accesses.
impl Lower<'_, '_> {
    /// As [`Self::leave_in`], behind a helper that could not serve the current instruction.
    pub(super) fn leave_unserved_in(&mut self, b: ClifBlock) {
        let Some(l) = &mut self.lines else {
            return self.leave_in(b);
        };
        let (clock, tally) = l.told.expect("a helper was called");
        let straddles = l.straddles;
        let out = match l.out {
            Some(out) => out,
            None => {
                let out = self.leave_block();
                (0..3).for_each(|_| _ = self.fb.append_block_param(out, types::I64));
                if let Some(l) = &mut self.lines {
                    l.out = Some(out);
                }
                out
            }
        };
        self.fill_way_out(b, |l| {
            let p = l.pinned();
            l.write_back_registers(p);
            l.store_fetch_line(p);
            if straddles {
                l.unfetch(p);
            }
            let rip = l.iconst(types::I64, l.insn.rip);
            let place = [clock, tally, rip].map(BlockArg::Value);
            l.fb.ins().jump(out, &place);
        });
    }

    /// Fills the block where these ways out end.
    pub(super) fn finish_lines(&mut self) {
        let Some(out) = self.lines.as_ref().and_then(|l| l.out) else {
            return;
        };
        self.enter_block(out);
        let &[clock, tally, rip] = self.fb.block_params(out) else {
            return;
        };
        let p = self.pinned();
        self.store_clock(p, clock);
        self.add_tally(p, tally);
        self.fb.ins().store(state_flags(), rip, p, layout::RIP);
        self.ret(exit::INTERPRET);
    }

    fn fast_merge_cold(&mut self) -> (ClifBlock, ClifBlock, ClifBlock) {
        let (fast, merge, cold) = (
            self.fb.create_block(),
            self.fb.create_block(),
            self.fb.create_block(),
        );
        self.fb.set_cold_block(cold);
        (fast, merge, cold)
    }

    /// Calls a line-mode helper, which is told the position too; what it answers.
    pub(super) fn call_line_helper(&mut self, which: i32, args: [Value; 3]) -> Value {
        let clock = self.retired_so_far();
        let tally = self.tally_so_far().expect("in line mode");
        let p = self.pinned();
        let f = self.fb.ins().load(types::I64, state_flags(), p, which);
        let [a, b, c] = args;
        let sig = self.sig_line.expect("in line mode");
        self.fb
            .ins()
            .call_indirect(sig, f, &[a, b, c, clock, tally]);
        if let Some(l) = &mut self.lines {
            l.told = Some((clock, tally));
        }
        let p = self.pinned();
        self.fb
            .ins()
            .load(types::I64, state_flags(), p, layout::RET)
    }

    /// The probe of an access of `bytes` bytes: (hit, entry, host address if hit).
    fn line_probe(&mut self, va: Value, bytes: u32, why: For) -> (Value, Value, Value) {
        self.sync();
        let entry = self.element_of(va, SHIFT, LineFilter::ENTRIES, 3);
        let pair = LineFilter::PAIR_SHIFT.into();
        let page = self.element_of(va, PAGE_SHIFT, LineFilter::PAGES, pair);
        let entry = self.fb.ins().load(types::I64, state_flags(), entry, 0);
        let last = if let Some(va) = self.constant(va) {
            let last = va.wrapping_add(u64::from(bytes - 1));
            self.iconst(types::I64, last >> SHIFT)
        } else {
            let last = self.add_constant(va, u64::from(bytes - 1));
            self.fb.ins().ushr_imm_u(last, SHIFT as i64)
        };
        // With the bit behind the tag, which is to be 0 for a store.
        let bit = u32::from(why == For::Store);
        let found = self.fb.ins().ushr_imm_u(entry, i64::from(TAG_SHIFT - bit));
        let addend = self
            .fb
            .ins()
            .load(types::I64, state_flags(), page, LineFilter::ADDEND as i32);
        let asleep = self
            .fb
            .ins()
            .load(types::I64, state_flags(), page, LineFilter::ASLEEP as i32);
        let mut last = self.fb.ins().iadd(last, asleep);
        if why == For::Store {
            last = self.fb.ins().ishl_imm_u(last, 1);
        }
        let hit = self.fb.ins().icmp(IntCC::Equal, found, last);
        let host = self.fb.ins().iadd(va, addend);
        (hit, entry, host)
    }

    /// Address of what `va >> shift` has in an array of `count` elements of `1 << size` bytes at the filter's start.
    fn element_of(&mut self, va: Value, shift: u64, count: usize, size: u64) -> Value {
        let mask = (count as u64 - 1) << size;
        if let Some(va) = self.constant(va) {
            let tlb = self.tlb();
            return self.add_constant(tlb, va >> (shift - size) & mask);
        }
        let x = if count == 1 << 16 && size <= 3 {
            // The host has short words for this: a move of 16 bits, and a scaled index.
            let x = self.fb.ins().ushr_imm_u(va, shift as i64);
            let x = self.fb.ins().ireduce(types::I16, x);
            let x = self.fb.ins().uextend(types::I64, x);
            self.fb.ins().ishl_imm_u(x, size as i64)
        } else {
            let x = self.fb.ins().ushr_imm_u(va, (shift - size) as i64);
            let mask = self.iconst(types::I64, mask);
            self.fb.ins().band(x, mask)
        };
        let tlb = self.tlb();
        self.fb.ins().iadd(tlb, x)
    }

    /// Notes a use of a slot: the stamp goes among those at `stamps` behind `base`.
    fn store_stamp(&mut self, base: Value, slot: Value, stamps: usize) {
        let stamp = self.stamp();
        let slot = self.fb.ins().ishl_imm_u(slot, 3);
        let at = self.fb.ins().iadd(base, slot);
        self.fb.ins().store(state_flags(), stamp, at, stamps as i32);
    }

    /// Notes a hit of the data filter's entry, and that it was a store.
    fn store_line_stamp(&mut self, entry: Value, why: For) {
        let base = self.tlb();
        let slot = self.fb.ins().ireduce(types::I16, entry);
        let slot = self.fb.ins().uextend(types::I64, slot);
        self.store_stamp(base, slot, LineFilter::STAMP);
        if why == For::Store {
            let at = self.fb.ins().iadd(base, slot);
            let one = self.fb.ins().iconst(types::I8, 1);
            let wrote = LineFilter::WROTE as i32;
            self.fb.ins().store(state_flags(), one, at, wrote);
        }
    }

    /// The host address of `bytes` bytes at `va`, touched for a load (of a copy, if they cross a line) or a
    /// read-modify-write.
    pub(super) fn line_address(&mut self, va: Value, bytes: u32, rmw: bool) -> Value {
        let why = if rmw { For::Store } else { For::Load };
        let (hit, entry, host) = self.line_probe(va, bytes, why);
        let (fast, merge, cold) = self.fast_merge_cold();
        let result = self.fb.append_block_param(merge, types::I64);
        self.fb.ins().brif(hit, fast, &[], cold, &[]);
        self.enter_block(cold);
        let n = self.iconst(types::I64, u64::from(bytes));
        let helper = if rmw {
            layout::H_LINE_RMW
        } else {
            layout::H_LINE_LOAD
        };
        let got = self.call_line_helper(helper, [va, n, n]);
        let leave = self.leave_block();
        self.fb
            .ins()
            .brif(got, merge, &[BlockArg::Value(got)], leave, &[]);
        self.leave_unserved_in(leave);
        self.enter_block(fast);
        self.store_line_stamp(entry, why);
        self.fb.ins().jump(merge, &[BlockArg::Value(host)]);
        self.enter_block(merge);
        result
    }

    /// Stores `low`, and `high` behind it if there is one.
    pub(super) fn line_store(&mut self, va: Value, low: Value, high: Option<Value>) {
        let t = self.fb.func.dfg.value_type(low);
        let bytes = if high.is_some() { 32 } else { t.bytes() };
        let (hit, entry, host) = self.line_probe(va, bytes, For::Store);
        let (fast, merge, cold) = self.fast_merge_cold();
        self.fb.ins().brif(hit, fast, &[], cold, &[]);
        self.enter_block(cold);
        let n = self.iconst(types::I64, u64::from(bytes));
        let ok = if bytes >= 16 {
            let p = self.pinned();
            for (v, at) in [(Some(low), 0), (high, 16)] {
                if let Some(v) = v {
                    self.fb
                        .ins()
                        .store(state_flags(), v, p, layout::SCRATCH + at);
                }
            }
            self.call_line_helper(layout::H_LINE_STORE_WIDE, [va, n, n])
        } else {
            let wide = self.widened(t, low);
            self.call_line_helper(layout::H_LINE_STORE, [va, wide, n])
        };
        let leave = self.leave_block();
        self.fb.ins().brif(ok, merge, &[], leave, &[]);
        self.leave_unserved_in(leave);
        self.enter_block(fast);
        self.store_line_stamp(entry, For::Store);
        let flags = self.guest_flags();
        self.fb.ins().store(flags, low, host, 0);
        if let Some(high) = high {
            self.fb.ins().store(flags, high, host, 16);
        }
        self.fb.ins().jump(merge, &[]);
        self.enter_block(merge);
    }

    /// A value of up to 8 bytes as an I64.
    fn widened(&mut self, t: Type, v: Value) -> Value {
        let int = match t {
            types::F32 => self.fb.ins().bitcast(types::I32, MemFlagsData::new(), v),
            types::F64 => self.fb.ins().bitcast(types::I64, MemFlagsData::new(), v),
            _ => v,
        };
        if t.bytes() == 8 {
            int
        } else {
            self.fb.ins().uextend(types::I64, int)
        }
    }
}
