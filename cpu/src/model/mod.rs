//! The core's side of a simulated machine (`--cache hierarchy`): where the cycles of a vCPU come from.
//!
//! The caches themselves are the memory controller's. Here are the clock, the counts of instructions and operands
//! ([`costs`]), what exits cost, and the slow path of an access. docs/model.md defines what is modelled.
//!
//! The clock of a core counts completed instructions ([`CpuState::retired`]) and iterations of repeated instructions that did
//! not complete theirs ([`CpuState::repeats`]). All accesses of an instruction, or of an iteration, carry one stamp: the clock
//! before it, plus 1. So it does not matter who makes an access, or whether it is made twice.

pub mod costs;

use core::ptr::NonNull;
use std::sync::Arc;

use sevlab_arch::Va;
use sevlab_memctl::model::Model;

use crate::mmu::Access;
use crate::state::CpuState;
use crate::stop::{Exception, Stop};
use crate::vcpu::Vcpu;
use costs::{CostTable, Tally};

/// Instructions and iterations of a turn.
pub const TURN: u64 = 10_000;

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

/// What one core counts beside what the memory controller counts for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CoreCounters {
    /// Cycles of the instructions themselves.
    pub instruction_cycles: u64,
    /// Data reads of operands.
    pub reads: u64,
    /// Data writes of operands.
    pub writes: u64,
    /// Cycles by [`Cause`].
    pub exits: [u64; Cause::COUNT],
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
}

impl CoreModel {
    /// Takes the state's tally in.
    pub fn drain(&mut self, state: &mut CpuState) {
        let t = Tally::unpack(core::mem::take(&mut state.tally));
        self.counters.instruction_cycles += t.cycles;
        self.counters.reads += t.reads;
        self.counters.writes += t.writes;
    }

    /// The cycle at a place whose tally and number of fetched lines are these.
    fn cycles_at(&self, tally: u64, fetched: u64) -> u64 {
        let (c, t) = (&self.counters, Tally::unpack(tally));
        let latency = &self.model.latency;
        let accesses = c.reads + c.writes + t.reads + t.writes;
        c.instruction_cycles
            + t.cycles
            + accesses * u64::from(latency.l1d_cycles)
            + fetched * u64::from(latency.l1i_cycles)
            + c.exits.iter().sum::<u64>()
    }
}

impl Vcpu {
    /// Makes the vCPU core `core` of a simulated machine. Before it runs anything.
    pub fn set_model(&mut self, core: usize, model: Arc<Model>) {
        let costs = Arc::new(CostTable::new(&model));
        self.state.stop_at = self.state.clock() + TURN;
        self.model = Some(Box::new(CoreModel {
            core,
            model,
            costs,
            counters: CoreCounters::default(),
        }));
    }

    /// The vCPU's time in cycles; 0 without a model.
    #[must_use]
    pub fn cycles(&self) -> u64 {
        let s = &self.state;
        self.model
            .as_ref()
            .map_or(0, |m| m.cycles_at(s.tally, s.fetched))
    }

    /// Lets time pass: `cycles` for `cause`. Nothing without a model.
    pub fn charge(&mut self, cycles: u64, cause: Cause) {
        if let Some(m) = &mut self.model {
            m.counters.exits[cause as usize] += cycles;
        }
    }

    /// Takes the state's tally in, if there is a model.
    pub fn drain(&mut self) {
        if let Some(m) = &mut self.model {
            m.drain(&mut self.state);
        }
    }

    /// The place of the running instruction, for the paths below: the state's words and what they lag behind.
    #[must_use]
    pub fn at(&self) -> At {
        At {
            retired: self.state.retired.wrapping_add(self.lag.retired),
            tally: self.state.tally.wrapping_add(self.lag.tally),
        }
    }

    /// An access of `n` bytes at `va` inside one line by the instruction at `at`, through TLB and caches. Returns the host
    /// address of `va`'s byte, good until the next access.
    ///
    /// # Errors
    /// The translation faults; TLBs, caches and counters are then as before.
    pub fn touch_data(
        &mut self,
        va: u64,
        n: u64,
        access: Access,
        at: At,
    ) -> Result<NonNull<u8>, Stop> {
        debug_assert!(va & 63 <= 64 - n);
        let _ = at;
        self.fill(Va(va), access)?
            .ok_or(Stop::Exception(Exception::GENERAL_PROTECTION))
    }

    /// Fetches the line of `va` for the instruction at `at`, and makes it [`CpuState::fetch_line`].
    ///
    /// # Errors
    /// As [`Vcpu::touch_data`].
    pub fn touch_fetch(&mut self, va: u64, at: At) -> Result<(), Stop> {
        let _ = at;
        self.fill(Va(va), Access::Exec)?;
        self.state.fetch_line = va >> 6;
        self.state.fetched += 1;
        Ok(())
    }
}
