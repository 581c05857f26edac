//! The core's side of a simulated machine (`--cache hierarchy`): where the cycles of a vCPU come from.
//!
//! The caches themselves are the memory controller's. Here are the clock, the counts of instructions and operands
//! ([`costs`]), what exits cost, and the slow path of an access. docs/model.md defines what is modelled.
//!
//! The clock of a core counts completed instructions ([`CpuState::retired`]) and iterations of repeated instructions that did
//! not complete theirs ([`CpuState::repeats`]). All accesses of an instruction, or of an iteration, carry one stamp: the clock
//! before it, plus 1. So it does not matter who makes an access, or whether it is made twice.

pub mod costs;
mod known;
mod overlap;
mod paths;
pub mod short;
mod tlb;
mod touch;
pub mod trace;
mod uses;
mod walk;

use std::sync::Arc;

use sevlab_arch::Va;
use sevlab_memctl::model::{Model, Policy, Tlb as TlbConfig};
use sevlab_memctl::{Error, FetchFilter, Level, LineFilter, Served};

use crate::state::CpuState;
use crate::vcpu::Vcpu;
use costs::{CostTable, Tally};
use known::Known;
use overlap::Overlap;
pub use overlap::{TRAIL, TRAIL_BYTES};
use short::Short;
pub(crate) use tlb::Entry;
use tlb::Tlb;
pub(crate) use touch::Decoded;
use trace::{Trace, TraceEvent};
use walk::WalkCaches;
pub(crate) use walk::WalkLog;
pub use walk::WalkRef;

/// Instructions and iterations of a turn.
pub const TURN: u64 = 10_000;

/// Of a turn that nobody waits for the end of but timers: an end costs the host time.
pub const TURN_ALONE: u64 = 1 << 16;

/// A place between two instructions, for callers whose state words lag behind: what [`CpuState::retired`] and
/// [`CpuState::tally`] would be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct At {
    /// Instructions completed.
    pub retired: u64,
    /// The tally so far.
    pub tally: u64,
}

/// What cycles outside of instructions are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the keys of `[exit]`
#[repr(u8)]
pub enum Cause {
    Syscall,
    Fault,
    Vmrun,
    EsState,
    Ghcb,
    Vc,
    Pvalidate,
    Rmpadjust,
    Rmpupdate,
    Launch,
    /// The vCPU waited, in simulated time.
    Idle,
}

impl Cause {
    /// How many there are.
    pub const COUNT: usize = 11;
}

/// What the TLBs of one kind of access count. First-level hits are not counted: the filters do not see them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TlbCounters {
    /// Misses of the first level.
    pub misses: u64,
    /// Of these, those that the second level served.
    pub second_hits: u64,
    /// Of these, those that took a page walk.
    pub walks: u64,
}

impl TlbCounters {
    fn add(&mut self, o: &Self) {
        self.misses += o.misses;
        self.second_hits += o.second_hits;
        self.walks += o.walks;
    }
}

/// Cycles that instructions waited, by what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StallCycles {
    /// L2.
    pub l2: u64,
    /// The LLC, also on the way to DRAM.
    pub llc: u64,
    /// Another core's cache.
    pub remote: u64,
    /// DRAM.
    pub dram: u64,
    /// Decryption, that of page tables included.
    pub aes: u64,
    /// Write-backs and their encryption.
    pub write_back: u64,
    /// Invalidation of other cores' copies.
    pub upgrade: u64,
    /// Second-level TLB.
    pub tlb: u64,
    /// Page walks and their memory accesses, without decryption.
    pub walk: u64,
    /// RMP checks and their memory accesses.
    pub rmp: u64,
}

impl StallCycles {
    /// Adds what an access to a line waited for.
    #[inline]
    fn add_line(&mut self, served: &Served) {
        let s = &served.stalls;
        match served.level {
            Level::L1 => {}
            Level::L2 => self.l2 += u64::from(s.cache),
            Level::Llc | Level::Dram => self.llc += u64::from(s.cache),
            Level::Remote => self.remote += u64::from(s.cache),
        }
        self.dram += u64::from(s.dram);
        self.aes += u64::from(s.aes);
        self.write_back += u64::from(s.write_back);
        self.upgrade += u64::from(s.upgrade);
    }

    /// All of them, with names.
    #[must_use]
    pub fn list(&self) -> [(&'static str, u64); 10] {
        [
            ("l2", self.l2),
            ("llc", self.llc),
            ("remote", self.remote),
            ("dram", self.dram),
            ("aes", self.aes),
            ("write-back", self.write_back),
            ("upgrade", self.upgrade),
            ("tlb", self.tlb),
            ("walk", self.walk),
            ("rmp", self.rmp),
        ]
    }

    /// Their sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.list().iter().map(|(_, n)| n).sum()
    }

    /// Adds `cycles`, in proportion to the parts of `of`, which sum up to `total`; what does not divide goes to the largest.
    fn share(&mut self, cycles: u64, of: &Self, total: u64) {
        let part = |n: u64| (u128::from(cycles) * u128::from(n) / u128::from(total.max(1))) as u64;
        let mut s = Self {
            l2: part(of.l2),
            llc: part(of.llc),
            remote: part(of.remote),
            dram: part(of.dram),
            aes: part(of.aes),
            write_back: part(of.write_back),
            upgrade: part(of.upgrade),
            tlb: part(of.tlb),
            walk: part(of.walk),
            rmp: part(of.rmp),
        };
        let rest = cycles - s.total();
        let all = [
            (of.l2, &mut s.l2),
            (of.llc, &mut s.llc),
            (of.remote, &mut s.remote),
            (of.dram, &mut s.dram),
            (of.aes, &mut s.aes),
            (of.write_back, &mut s.write_back),
            (of.upgrade, &mut s.upgrade),
            (of.tlb, &mut s.tlb),
            (of.walk, &mut s.walk),
            (of.rmp, &mut s.rmp),
        ];
        if let Some((_, most)) = all.into_iter().max_by_key(|(n, _)| *n) {
            *most += rest;
        }
        self.add(&s);
    }

    fn add(&mut self, o: &Self) {
        self.l2 += o.l2;
        self.llc += o.llc;
        self.remote += o.remote;
        self.dram += o.dram;
        self.aes += o.aes;
        self.write_back += o.write_back;
        self.upgrade += o.upgrade;
        self.tlb += o.tlb;
        self.walk += o.walk;
        self.rmp += o.rmp;
    }
}

/// What one core counts beside what the memory controller counts for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CoreCounters {
    /// Cycles of the instructions themselves.
    pub instruction_cycles: u64,
    /// Data reads of operands.
    pub reads: u64,
    /// Data writes of operands.
    pub writes: u64,
    /// Lines fetched, whoever served them.
    pub fetches: u64,
    /// Cycles waited.
    pub stalls: StallCycles,
    /// Cycles by [`Cause`].
    pub exits: [u64; Cause::COUNT],
    /// Events by [`Cause`].
    pub events: [u64; Cause::COUNT],
    /// TLBs, for data.
    pub data_tlb: TlbCounters,
    /// TLBs, for fetches.
    pub fetch_tlb: TlbCounters,
    /// Table entries that walks read, guest's and nested ones.
    pub walk_reads: u64,
    /// Of these, those that had accessed or dirty bits set.
    pub walk_writes: u64,
    /// RMP entries read.
    pub rmp_reads: u64,
}

impl CoreCounters {
    /// Adds another core's.
    pub fn add(&mut self, o: &Self) {
        self.instruction_cycles += o.instruction_cycles;
        self.reads += o.reads;
        self.writes += o.writes;
        self.fetches += o.fetches;
        self.stalls.add(&o.stalls);
        for (a, b) in self.exits.iter_mut().zip(o.exits) {
            *a += b;
        }
        for (a, b) in self.events.iter_mut().zip(o.events) {
            *a += b;
        }
        self.data_tlb.add(&o.data_tlb);
        self.fetch_tlb.add(&o.fetch_tlb);
        self.walk_reads += o.walk_reads;
        self.walk_writes += o.walk_writes;
        self.rmp_reads += o.rmp_reads;
    }
}

/// The TLBs of a core.
struct Tlbs {
    fetch: Tlb,
    data: Tlb,
    second_fetch: Option<Tlb>,
    second: Option<Tlb>,
}

impl Tlbs {
    fn new(model: &Model) -> Self {
        match &model.tlb {
            Some(t) => Self {
                fetch: Tlb::new(&t.l1i, 1),
                data: Tlb::new(&t.l1d, 2),
                second_fetch: t.l2i.as_ref().map(|t| Tlb::new(t, 3)),
                second: Some(Tlb::new(&t.l2, 4)),
            },
            None => {
                // Not modelled: a store of translations that costs nothing, whatever it holds.
                let any = TlbConfig {
                    entries: 8192,
                    ways: 4,
                    policy: Policy::Fifo,
                };
                Self {
                    fetch: Tlb::new(&any, 1),
                    data: Tlb::new(&any, 2),
                    second_fetch: None,
                    second: None,
                }
            }
        }
    }

    fn modelled(&self) -> bool {
        self.second.is_some()
    }

    fn first(&mut self, fetch: bool) -> &mut Tlb {
        if fetch {
            &mut self.fetch
        } else {
            &mut self.data
        }
    }

    fn second(&mut self, fetch: bool) -> Option<&mut Tlb> {
        match &mut self.second_fetch {
            Some(t) if fetch => Some(t),
            _ => self.second.as_mut(),
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Tlb> {
        let seconds = [&mut self.second_fetch, &mut self.second];
        [&mut self.fetch, &mut self.data]
            .into_iter()
            .chain(seconds.into_iter().flatten())
    }
}

/// One core of a simulated machine.
pub struct CoreModel {
    /// Its number.
    pub core: usize,
    /// The machine.
    pub model: Arc<Model>,
    /// Costs of instructions.
    pub costs: Arc<CostTable>,
    /// What has been counted, up to the last drain.
    pub counters: CoreCounters,
    /// Cycles before anything of the above was counted.
    before: u64,
    /// Lines fetched at that time.
    fetched_before: u64,
    /// What stalls of `counters` come to, of a core that waits for each (of another they are summed up when needed).
    waited: u64,
    /// What exits of `counters` come to.
    left: u64,
    /// The controller knows the filters.
    attached: bool,
    tlbs: Tlbs,
    known_data: Known<{ known::FIRST }>,
    known_code: Known<{ known::FIRST }>,
    known_second: Known<{ known::SECOND }>,
    short: Option<Box<Short>>,
    caches: WalkCaches,
    lines: Arc<LineFilter>,
    fetches: Arc<FetchFilter>,
    /// What the access under way has waited for so far, and when it was issued.
    pending: StallCycles,
    issue: u64,
    /// It does not hit the first level everywhere.
    begun: bool,
    overlap: Option<Box<Overlap>>,
}

impl CoreModel {
    /// The filter of data accesses.
    #[must_use]
    pub fn lines(&self) -> &LineFilter {
        &self.lines
    }

    /// The filter of fetches.
    #[must_use]
    pub fn fetches(&self) -> &FetchFilter {
        &self.fetches
    }

    /// Takes the state's tally in.
    pub fn drain(&mut self, state: &mut CpuState) {
        let t = Tally::unpack(core::mem::take(&mut state.tally));
        self.counters.instruction_cycles += t.cycles;
        self.counters.reads += t.reads;
        self.counters.writes += t.writes;
        self.counters.fetches = state.fetched - self.fetched_before;
    }

    /// The cycle at a place whose tally and number of fetched lines are these.
    fn cycles_at(&self, tally: u64, fetched: u64) -> u64 {
        let (c, t) = (&self.counters, Tally::unpack(tally));
        let latency = &self.model.latency;
        let accesses = c.reads + c.writes + t.reads + t.writes;
        self.before
            + c.instruction_cycles
            + t.cycles
            + accesses * u64::from(latency.l1d_cycles)
            + (fetched - self.fetched_before) * u64::from(latency.l1i_cycles)
            + match self.overlap {
                None => self.waited,
                Some(_) => c.stalls.total(),
            }
            + self.left
    }

    fn tlb_counters(&mut self, fetch: bool) -> &mut TlbCounters {
        if fetch {
            &mut self.counters.fetch_tlb
        } else {
            &mut self.counters.data_tlb
        }
    }

    /// Takes the entries of a page away, and what the filters have of it.
    fn drop_entry(&mut self, va: u64) {
        let (lines, fetches) = (&self.lines, &self.fetches);
        let (data, code) = (&mut self.known_data, &mut self.known_code);
        let second = &mut self.known_second;
        for t in self.tlbs.each() {
            t.drop_page(va, |page, large| {
                known::each_page(page, large, |at| {
                    lines.drop_va_page(Va(at));
                    fetches.drop_va_page(Va(at));
                    data.drop_page(at);
                    code.drop_page(at);
                    second.drop_page(at);
                });
            });
        }
    }

    fn drop_page(&mut self, va: u64, trace: Option<&mut Trace>) {
        self.drop_entry(va);
        self.caches.flush_guest();
        self.forget_code();
        if let Some(trace) = trace {
            let (core, va) = (self.core, Va(va));
            trace(&TraceEvent::DropPage { core, va });
        }
    }

    fn flush(&mut self, nested: bool, trace: Option<&mut Trace>) {
        self.tlbs.each().for_each(Tlb::flush);
        self.known_data.flush();
        self.known_code.flush();
        self.known_second.flush();
        self.caches.flush_guest();
        self.forget_code();
        if nested {
            self.caches.flush_nested();
        }
        self.lines.flush();
        self.fetches.flush();
        if let Some(trace) = trace {
            let core = self.core;
            trace(&TraceEvent::Flush { core, nested });
        }
    }

    /// Other code may be where an address was.
    fn forget_code(&mut self) {
        if let Some(o) = &mut self.overlap {
            o.forget_code();
        }
    }

    /// Lets no access pass the filters unseen until it has been made once more.
    pub(crate) fn distrust_filters(&self) {
        self.lines.flush();
        self.fetches.flush();
    }
}

impl Vcpu {
    /// Makes the vCPU core `core` of a simulated machine. Before it runs anything; the memory controller's configuration has the
    /// same model.
    ///
    /// # Errors
    /// [`Error::NoCore`]: the machine has no such core.
    pub fn set_model(&mut self, core: usize, model: Arc<Model>) -> Result<(), Error> {
        let (lines, fetches) = (LineFilter::new(), FetchFilter::new());
        self.mem
            .attach_core(core, Arc::clone(&lines), Arc::clone(&fetches))?;
        self.state.lines = lines.base_ptr();
        self.state.fetches = fetches.base_ptr();
        self.state.stop_at = self.state.clock() + TURN;
        let mut overlap = match model.core.model {
            sevlab_memctl::model::CoreModel::Simple => None,
            sevlab_memctl::model::CoreModel::Overlap => {
                Some(Box::new(Overlap::new(model.core.window, model.core.mshrs)))
            }
        };
        self.state.trail = overlap
            .as_mut()
            .map_or(core::ptr::null_mut(), |o| o.trail());
        let t = model.tlb.as_ref();
        self.model = Some(Box::new(CoreModel {
            core,
            costs: Arc::new(CostTable::new(&model)),
            counters: CoreCounters::default(),
            before: 0,
            fetched_before: self.state.fetched,
            waited: 0,
            left: 0,
            attached: true,
            tlbs: Tlbs::new(&model),
            known_data: Known::new(),
            known_code: Known::new(),
            known_second: Known::new(),
            short: None,
            caches: WalkCaches::new(
                t.map_or(0, |t| t.walk_entries),
                t.map_or(0, |t| t.nested_entries),
            ),
            lines,
            fetches,
            pending: StallCycles::default(),
            issue: 0,
            begun: false,
            overlap,
            model,
        }));
        self.make_short();
        self.tlb.flush();
        Ok(())
    }

    /// Who is told of every access of the model from now on.
    pub fn set_trace(&mut self, trace: Option<Trace>) {
        self.trace = trace;
        let (clock, cycles) = (self.state.clock(), self.cycles());
        self.tell(|core| TraceEvent::Attached {
            core,
            clock,
            cycles,
        });
    }

    /// Whether somebody is told of every access.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// The vCPU's time in cycles; 0 without a model.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        let s = &self.state;
        self.model
            .as_ref()
            .map_or(0, |m| m.cycles_at(s.tally, s.fetched))
    }

    /// Lets time pass: `cycles` for `cause`, an exit: whatever is outstanding is waited for. Nothing without a model.
    pub fn charge(&mut self, cycles: u64, cause: Cause) {
        self.charge_events(0, cycles, cause);
    }

    /// As [`Vcpu::charge`], for so many events.
    pub fn charge_events(&mut self, events: u64, cycles: u64, cause: Cause) {
        let (clock, time) = (self.clock(), self.cycles());
        if let Some(m) = &mut self.model {
            if let Some(o) = &mut m.overlap {
                o.wait_for_all(clock, time, &mut m.counters.stalls);
            }
            m.counters.events[cause as usize] += events;
            m.counters.exits[cause as usize] += cycles;
            m.left += cycles;
            if let Some(o) = &mut m.overlap {
                o.passed(cycles);
            }
            if let Some(trace) = &mut self.trace {
                let core = m.core;
                trace(&TraceEvent::Charge {
                    core,
                    cause,
                    cycles,
                });
            }
        }
    }

    /// Begins a turn; `alone`: no other core waits for its end.
    pub fn begin_turn(&mut self, alone: bool) {
        if let Some(m) = &self.model {
            let turn = if alone {
                m.costs.most().clamp(TURN, TURN_ALONE)
            } else {
                TURN
            };
            self.state.stop_at = self.state.clock() + turn;
        }
    }

    /// Takes the state's tally in, if there is a model.
    pub fn drain(&mut self) {
        if let Some(m) = &mut self.model {
            m.drain(&mut self.state);
        }
    }

    /// The place of the running instruction: the state's words and what they lag behind.
    #[must_use]
    #[inline]
    pub fn at(&self) -> At {
        At {
            retired: self.state.retired.wrapping_add(self.lag.retired),
            tally: self.state.tally.wrapping_add(self.lag.tally),
        }
    }

    /// The clock before the running instruction, lag included.
    #[inline]
    pub(crate) fn clock(&self) -> u64 {
        self.state.clock().wrapping_add(self.lag.retired)
    }

    /// Tells the trace, if there is one.
    pub(crate) fn tell(&mut self, event: impl FnOnce(usize) -> TraceEvent<'static>) {
        if let (Some(trace), Some(m)) = (&mut self.trace, &self.model) {
            trace(&event(m.core));
        }
    }

    /// Tells the trace, if there is one, that an instruction begins.
    #[inline]
    pub(crate) fn tell_begin(&mut self, i: &crate::insn::Insn) {
        if let (Some(trace), Some(m)) = (&mut self.trace, &self.model) {
            trace(&TraceEvent::Begin {
                core: m.core,
                rip: Va(i.rip),
                bytes: &i.bytes[..usize::from(i.len).min(i.bytes.len())],
            });
        }
    }

    // ---- what the MMU and the cluster tell the model ----

    /// The vCPU is no core any more.
    pub(crate) fn leave_core(&mut self) {
        if let Some(m) = &mut self.model
            && core::mem::take(&mut m.attached)
        {
            m.short = None;
            self.mem.detach_core(m.core);
        }
    }

    pub(crate) fn model_drop_page(&mut self, va: u64) {
        if let Some(m) = &mut self.model {
            m.drop_page(va, self.trace.as_mut());
        }
    }

    pub(crate) fn model_flush(&mut self, nested: bool) {
        if let Some(m) = &mut self.model {
            m.flush(nested, self.trace.as_mut());
        }
    }

    /// The clone of a host process counts from nothing; its clock and its time go on.
    pub(crate) fn model_forked(&mut self) {
        let s = &mut self.state;
        if let Some(m) = &mut self.model {
            s.repeats = s.clock();
            m.before = m.cycles_at(s.tally, s.fetched);
            s.tally = 0;
            m.fetched_before = s.fetched;
            m.counters = CoreCounters::default();
            (m.waited, m.left) = (0, 0);
            s.fetch_line = u64::MAX;
            self.mem.keep_only_core(m.core);
        }
        s.retired = 0;
    }
}
