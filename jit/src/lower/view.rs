//! Guest memory accesses without a probe, where the memory controller keeps an address space in a view: guest address plus a
//! constant is the host address.
//!
//! What a page's entry in the fast TLB would refuse, the host's page tables refuse: see [`crate::faults`]. The constant is also
//! the size of the view, so one register serves for both; an address is compared with it once, and others at small
//! distances from it, which the guards on both sides of the view take in, are not.
//!
//! The price is that the guest's registers can be worked out at each access, as of a place from which the interpreter can go on: the
//! access's instruction, or one before it since which nothing was written, so that what was done since can be done again. At
//! such a place ([`Lower::site`]) the registers that have changed are stored, but for those that are a constant or lie at a
//! constant distance from what some slot holds; so a row of pops stores RSP once. So are the operands of the flags' record. A
//! record of several sources is not worth it: such an access takes the probe.
//!
//! Invariants:
//! 1. `Known` says what the state's memory holds on the way that is being translated; ways out do not change it.
//! 2. Between a site and the last access that belongs to it the state's memory does not change, nor does the guest's.
//! 3. Flags are in memory at the start of blocks that several ways lead to. Operands of a record are stored only once nothing
//!    refers to the record that the block began with.

use super::flow::Dirty;
use super::{Gpr, Home, Lower, Vec2, Written, state_flags};
use crate::faults::{Retired, Site, Source};
use crate::layout;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    InstBuilder, InstructionData, MemFlagsData, Opcode, SourceLoc, TrapCode, Value, types,
};

/// What the state's memory is known to hold.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// The value in each register's slot.
    gprs: [Option<Value>; 16],
    /// The operands of the flags' record.
    flags: [Option<Value>; 3],
    /// The instructions retired at the start of the block less those that the state's word counts.
    count: Option<i64>,
    /// Addresses that lie in the view or its guards.
    inside: Vec<Value>,
    /// The view is known to have 2 to the [`LARGEST`] bytes.
    large: bool,
    /// The site that accesses may still belong to.
    site: Option<u32>,
}

/// How the translation stands at the end of a block.
#[derive(Clone)]
struct End {
    known: Known,
    gprs: [Gpr; 16],
    vecs: [Vec2; 16],
    dirty: Written,
}

/// What the translation of a region with a view needs.
pub(super) struct View {
    /// Base and size.
    base: Value,
    known: Known,
    ends: Vec<Option<End>>,
    /// What may be stale at the start of each block that several ways lead to.
    stale: Vec<Dirty>,
    sites: Vec<Site>,
    /// Whether the current instruction's accesses go without a probe, once its first has been translated.
    decided: Option<bool>,
}

impl View {
    pub(super) fn new(base: Value, stale: Vec<Dirty>) -> Self {
        Self {
            base,
            known: Known::default(),
            ends: vec![None; stale.len()],
            stale,
            sites: Vec::new(),
            decided: None,
        }
    }

    pub(super) fn into_sites(self) -> Vec<Site> {
        self.sites
    }
}

/// What a flags' record is at an access.
enum Record {
    Current,
    /// Its kind, its operands, and which of them count.
    Of(u64, [Value; 3], [bool; 3]),
}

/// So far from an address that has been compared another may lie: the guards are twice as large.
const NEAR_BITS: u32 = 35;
/// Log2 of the bytes that the smallest and the largest view have.
const SMALLEST: u32 = 37;
const LARGEST: u32 = 45;

impl Lower<'_, '_> {
    /// Flags of guest memory accesses: what a probe has proven good does not trap; alignment is the guest's business.
    pub(super) fn guest_flags(&self) -> MemFlagsData {
        let flags = MemFlagsData::new();
        match &self.view {
            Some(view) if view.decided == Some(true) => flags,
            _ => flags.with_notrap(),
        }
    }

    /// At the start of a block, `before` being the only one that leads to it, if it has been translated.
    pub(super) fn begin_view(&mut self, before: Option<usize>) {
        let Some(view) = &mut self.view else { return };
        view.known = Known::default();
        view.decided = None;
        if let Some(end) = before.and_then(|p| view.ends[p].clone()) {
            view.known = end.known;
            for r in 0..16 {
                if let Home::Value(_) = end.gprs[r].full {
                    self.gprs[r] = end.gprs[r];
                }
                let Vec2 { low, high, .. } = end.vecs[r];
                for (half, ended) in [(&mut self.vecs[r].low, low), (&mut self.vecs[r].high, high)]
                {
                    if let Home::Value(_) = ended {
                        *half = ended;
                    }
                }
            }
            (self.dirty_gprs, self.dirty_vecs, self.dirty_highs) =
                (end.dirty.gprs, end.dirty.vecs, end.dirty.highs);
        }
        for r in 0..16 {
            if self.dirty_gprs >> r & 1 == 0
                && let Home::Value(v) = self.gprs[r].full
            {
                self.know_slot(r, v);
            }
        }
    }

    /// Before each instruction.
    pub(super) fn begin_view_insn(&mut self) {
        if let Some(view) = &mut self.view {
            view.decided = None;
        }
    }

    /// At the end of block `n`, before it branches.
    pub(super) fn end_view(&mut self, n: usize) {
        let length = self.region.blocks[n].insns.len() as i64;
        let dirty = self.stale_now();
        let (gprs, vecs) = (self.gprs, self.vecs);
        let Some(view) = &mut self.view else { return };
        let mut known = view.known.clone();
        known.count = known.count.map(|k| k + length);
        view.ends[n] = Some(End {
            known,
            gprs,
            vecs,
            dirty,
        });
    }

    fn stale_now(&self) -> Written {
        Written {
            gprs: self.dirty_gprs,
            vecs: self.dirty_vecs,
            highs: self.dirty_highs,
        }
    }

    /// What has to be stored on the way from the current block to block `s`, which does not take over how things stand: registers,
    /// and the flags.
    fn due_for(&self, s: usize) -> Option<(Written, bool)> {
        let view = self.view.as_ref()?;
        if s > self.at && self.sole_predecessor[s] == Some(self.at) {
            return None;
        }
        let expected = view.stale[s];
        let registers = Written {
            gprs: self.dirty_gprs & !expected.gprs,
            vecs: self.dirty_vecs & !expected.vecs,
            highs: self.dirty_highs & !expected.highs,
        };
        let flags = self.live_in[s] != 0 && self.flags.dirty();
        (flags || registers != Written::default()).then_some((registers, flags))
    }

    /// Whether the way to block `s` has to store anything.
    pub(super) fn edge_stores(&self, s: usize) -> bool {
        self.due_for(s).is_some()
    }

    /// On the way to block `s`, which the current block ends with.
    pub(super) fn store_for(&mut self, s: usize) {
        let Some((registers, flags)) = self.due_for(s) else {
            return;
        };
        self.store_registers(registers);
        if flags {
            let p = self.pinned();
            self.store_flags(p);
        }
    }

    /// Guest memory or the state's has changed: what was done before can't be done again.
    pub(super) fn end_site(&mut self) {
        if let Some(view) = &mut self.view {
            view.known.site = None;
        }
    }

    /// Stores these registers, as what happens on every way from here on.
    fn store_registers(&mut self, which: Written) {
        let p = self.pinned();
        // What is stored is not dropped: whether the current instruction has read it does not matter.
        let read_raising = self.read_raising;
        for r in 0..16 {
            if which.gprs >> r & 1 != 0 && self.gprs[r].full != Home::Memory {
                let v = self.gpr_full(r as u8);
                self.fb.ins().store(state_flags(), v, p, layout::gpr(r));
                self.know_slot(r, v);
            }
            if which.vecs >> r & 1 != 0 && self.vecs[r].low != Home::Memory {
                let v = self.vec_low(r);
                self.fb.ins().store(state_flags(), v, p, layout::xmm(r));
            }
            if which.highs >> r & 1 != 0 && self.vecs[r].high != Home::Memory {
                let v = self.vec_high(r);
                self.fb.ins().store(state_flags(), v, p, layout::ymmh(r));
            }
        }
        self.read_raising = read_raising;
        self.dirty_gprs &= !which.gprs;
        self.dirty_vecs &= !which.vecs;
        self.dirty_highs &= !which.highs;
    }

    /// All that was stale has just been stored.
    pub(super) fn know_written_back(&mut self) {
        for r in 0..16 {
            if self.dirty_gprs >> r & 1 != 0
                && let Home::Value(v) = self.gprs[r].full
            {
                self.know_slot(r, v);
            }
        }
        self.forget_stored_flags();
    }

    /// The register's slot holds `v` now.
    pub(super) fn know_slot(&mut self, r: usize, v: Value) {
        let v = self.fb.func.dfg.resolve_aliases(v);
        if let Some(view) = &mut self.view {
            view.known.gprs[r] = Some(v);
        }
    }

    /// The register's slot holds something else now.
    pub(super) fn forget_slot(&mut self, r: usize) {
        if let Some(view) = &mut self.view {
            view.known.gprs[r] = None;
        }
    }

    /// The record in the state's memory is another now.
    pub(super) fn forget_stored_flags(&mut self) {
        if let Some(view) = &mut self.view {
            view.known.flags = [None; 3];
        }
    }

    /// The host address of `va`, if that needs no probe: an access there may fault.
    pub(super) fn viewed(&mut self, va: Value) -> Option<Value> {
        let base = self.view.as_ref()?.base;
        if self.constant(va).is_some_and(|k| k >> LARGEST != 0) || !self.site() {
            return None;
        }
        self.check_inside(va);
        Some(self.fb.ins().iadd(base, va))
    }

    /// Traps unless `va` lies in the view or its guards.
    fn check_inside(&mut self, va: Value) {
        if let Some(k) = self.constant(va) {
            return self.check_constant(k);
        }
        let (root, distance) = self.parts(va);
        let near = i32::try_from(distance).is_ok();
        let root = if near {
            root
        } else {
            self.fb.func.dfg.resolve_aliases(va)
        };
        if self.is_small(root) || self.is_inside(root) {
            return;
        }
        // One of two summands is enough, if the other is small.
        let mut compared = root;
        if let Some((x, y)) = self.sum(root) {
            for (x, y) in [(x, y), (y, x)] {
                if self.is_small(y) {
                    if self.is_inside(x) {
                        return;
                    }
                    if let Some(k) = self.constant(x).filter(|k| k >> LARGEST == 0) {
                        return self.check_constant(k);
                    }
                    compared = x;
                }
            }
        }
        let Some(view) = &mut self.view else { return };
        view.known.inside.push(compared);
        let base = view.base;
        let outside = self
            .fb
            .ins()
            .icmp(IntCC::UnsignedGreaterThanOrEqual, compared, base);
        self.fb.ins().trapnz(outside, TrapCode::unwrap_user(1));
    }

    /// As [`Self::check_inside`], for an address below 2 to the [`LARGEST`]. What the smallest view has needs no look; for the rest one look
    /// at how large this one is will do.
    fn check_constant(&mut self, k: u64) {
        let Some(view) = &mut self.view else { return };
        if k >> SMALLEST == 0 || std::mem::replace(&mut view.known.large, true) {
            return;
        }
        let base = view.base;
        let largest = self.iconst(types::I64, 1 << LARGEST);
        let smaller = self.fb.ins().icmp(IntCC::UnsignedLessThan, base, largest);
        self.fb.ins().trapnz(smaller, TrapCode::unwrap_user(1));
    }

    fn is_inside(&self, v: Value) -> bool {
        self.view
            .as_ref()
            .is_some_and(|w| w.known.inside.contains(&v))
    }

    fn sum(&self, v: Value) -> Option<(Value, Value)> {
        let dfg = &self.fb.func.dfg;
        let inst = dfg.value_def(v).inst()?;
        match dfg.insts[inst] {
            InstructionData::Binary {
                opcode: Opcode::Iadd,
                args: [x, y],
            } => Some((dfg.resolve_aliases(x), dfg.resolve_aliases(y))),
            _ => None,
        }
    }

    /// Whether `v` as a signed number has at most [`NEAR_BITS`] bits, for what is known of it.
    fn is_small(&self, v: Value) -> bool {
        let dfg = &self.fb.func.dfg;
        let Some(inst) = dfg.value_def(v).inst() else {
            return false;
        };
        match dfg.insts[inst] {
            InstructionData::UnaryImm {
                opcode: Opcode::Iconst,
                imm,
            } => i32::try_from(imm.bits()).is_ok(),
            InstructionData::Unary {
                opcode: Opcode::Uextend | Opcode::Sextend,
                ..
            } => true,
            InstructionData::Binary {
                opcode: Opcode::Ishl,
                args: [x, n],
            } => {
                let x = dfg.resolve_aliases(x);
                let widened = dfg.value_def(x).inst().is_some_and(|i| {
                    matches!(dfg.insts[i].opcode(), Opcode::Uextend | Opcode::Sextend)
                });
                widened
                    && self
                        .constant(n)
                        .is_some_and(|n| n <= u64::from(NEAR_BITS - 32))
            }
            _ => false,
        }
    }

    /// Sees to it that the guest's registers can be worked out at the current instruction's accesses. False if they take the probe.
    fn site(&mut self) -> bool {
        let Some(view) = &self.view else { return false };
        if let Some(decided) = view.decided {
            return decided;
        }
        if let Some(n) = view.known.site {
            self.fb.set_srcloc(SourceLoc::new(n));
            if let Some(view) = &mut self.view {
                view.decided = Some(true);
            }
            return true;
        }
        let record = self.record_at_site();
        if let Some(view) = &mut self.view {
            view.decided = Some(record.is_some());
        }
        let Some(record) = record else { return false };
        let gprs = self.settle_registers();
        let flags = match record {
            Record::Current => None,
            Record::Of(op, operands, read) => Some((op, self.settle_flags(operands, read))),
        };
        let retired = self.retired_at_site();
        let rip = self.insn.rip;
        let Some(view) = &mut self.view else {
            return false;
        };
        let n = view.sites.len() as u32;
        view.sites.push(Site {
            rip,
            retired,
            gprs,
            flags,
        });
        view.known.site = Some(n);
        self.fb.set_srcloc(SourceLoc::new(n));
        true
    }

    /// The flags at the current instruction, or None if they are of several sources.
    fn record_at_site(&mut self) -> Option<Record> {
        if !self.flags.dirty() {
            return Some(Record::Current);
        }
        let (op, operands) = self.single_record()?;
        let (a, b) = sevlab_cpu::FlagOp::from_bits(op as u8).reads();
        Some(Record::Of(op, operands, [a, b, true]))
    }

    /// Stores registers, or says how they follow from what is stored.
    fn settle_registers(&mut self) -> Vec<(u8, Source)> {
        self.store_registers(Written {
            gprs: 0,
            ..self.stale_now()
        });
        loop {
            let mut sources = Vec::new();
            let mut store = 0;
            for r in 0..16u8 {
                if self.dirty_gprs >> r & 1 == 0 || self.gprs[usize::from(r)].full == Home::Memory {
                    continue;
                }
                let v = self.gpr_full(r);
                match self.source(v) {
                    Some(source) => sources.push((r, source)),
                    None => store |= 1 << r,
                }
            }
            if store == 0 {
                return sources;
            }
            // What is stored now may be what another register was to follow from.
            self.store_registers(Written {
                gprs: store,
                vecs: 0,
                highs: 0,
            });
        }
    }

    /// Stores the operands of a record, or says how they follow from what is stored.
    fn settle_flags(&mut self, operands: [Value; 3], read: [bool; 3]) -> [Source; 3] {
        let p = self.pinned();
        std::array::from_fn(|k| {
            let v = self.fb.func.dfg.resolve_aliases(operands[k]);
            if !read[k] {
                return Source::Stored;
            }
            if let Some(source) = self.source(v) {
                return source;
            }
            let stored = self.view.as_ref().and_then(|w| w.known.flags[k]);
            if stored != Some(v) {
                let wide = self.to64(false, v);
                let at = layout::CC + 8 * (k as i32 + 1);
                self.fb.ins().store(state_flags(), wide, p, at);
                if let Some(view) = &mut self.view {
                    view.known.flags[k] = Some(v);
                }
            }
            Source::Stored
        })
    }

    /// How an integer follows from registers' slots, zero-extended to 64 bits.
    fn source(&self, v: Value) -> Option<Source> {
        self.source_within(v, 3)
    }

    fn source_within(&self, v: Value, depth: u32) -> Option<Source> {
        let dfg = &self.fb.func.dfg;
        let v = dfg.resolve_aliases(v);
        let bits = dfg.value_type(v).bits() as u8;
        let mask = if bits >= 64 { !0 } else { (1u64 << bits) - 1 };
        if let Some(k) = self.constant(v) {
            return Some(Source::Constant(k & mask));
        }
        let known = &self.view.as_ref()?.known;
        if let Some(slot) = known.gprs.iter().position(|k| *k == Some(v)) {
            let slot = slot as u8;
            return Some(Source::Slot {
                slot,
                plus: 0,
                bits,
            });
        }
        if bits == 32
            && let Some(slot) = (0..16).find(|&r| {
                let gpr = &self.gprs[r];
                let full = match gpr.full {
                    Home::Value(full) => Some(dfg.resolve_aliases(full)),
                    _ => None,
                };
                gpr.low.map(|low| dfg.resolve_aliases(low)) == Some(v)
                    && full.is_some()
                    && full == known.gprs[r]
            })
        {
            let slot = slot as u8;
            return Some(Source::Slot {
                slot,
                plus: 0,
                bits,
            });
        }
        if depth == 0 {
            return None;
        }
        let inner = |x: Value| self.source_within(x, depth - 1);
        match dfg.insts[dfg.value_def(v).inst()?] {
            InstructionData::Binary {
                opcode: opcode @ (Opcode::Iadd | Opcode::Isub),
                args: [x, y],
            } => {
                let k = self.constant(y)? as i64;
                let k = if opcode == Opcode::Iadd {
                    k
                } else {
                    k.wrapping_neg()
                };
                match inner(x)? {
                    Source::Slot {
                        slot,
                        plus,
                        bits: had,
                    } if had >= bits => Some(Source::Slot {
                        slot,
                        plus: plus.wrapping_add(k),
                        bits,
                    }),
                    Source::Constant(c) => Some(Source::Constant(c.wrapping_add(k as u64) & mask)),
                    _ => None,
                }
            }
            InstructionData::Unary {
                opcode: Opcode::Ireduce,
                arg,
            } => match inner(arg)? {
                Source::Slot {
                    slot,
                    plus,
                    bits: had,
                } => Some(Source::Slot {
                    slot,
                    plus,
                    bits: had.min(bits),
                }),
                Source::Constant(c) => Some(Source::Constant(c & mask)),
                Source::Stored => None,
            },
            InstructionData::Unary {
                opcode: Opcode::Uextend,
                arg,
            } => inner(arg),
            _ => None,
        }
    }

    /// The instructions retired before the current one.
    fn retired_at_site(&mut self) -> Retired {
        let done = self.done;
        if let Some(k) = self.counts[self.at] {
            return Retired::Since(k + u64::from(done));
        }
        let known = self.view.as_ref().and_then(|w| w.known.count);
        let start = known.unwrap_or_else(|| {
            let count = self.retired_so_far();
            let p = self.pinned();
            self.fb.ins().store(state_flags(), count, p, layout::COUNT);
            let start = -i64::from(done);
            if let Some(view) = &mut self.view {
                view.known.count = Some(start);
            }
            start
        });
        Retired::Word(start + i64::from(done))
    }
}
