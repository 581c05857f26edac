//! What a run with simulated caches counted, for people (as perf stat would say it) and as data.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use sevlab_cpu::model::{Cause, CoreCounters};
use sevlab_memctl::HierCounters;
use sevlab_memctl::hier::CacheCounters;
use sevlab_memctl::model::Model;

use crate::stats::line;

/// The counts of all cores of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// The machine.
    pub model: Arc<Model>,
    /// Cycles from the first instruction to the end of the last thread: the simulated duration.
    pub cycles: u64,
    /// Instructions completed.
    pub instructions: u64,
    /// Threads that ran, each on a core of its own.
    pub threads: u64,
    /// What the cores counted.
    pub core: CoreCounters,
    /// What caches and DRAM counted.
    pub memory: HierCounters,
    /// Pages that the firmware encrypted and measured before the guest began; none without encryption.
    pub launch_pages: u64,
}

/// Every cause of cycles beside instructions and stalls, with its name.
pub const CAUSES: [(Cause, &str); 9] = [
    (Cause::Syscall, "syscall"),
    (Cause::Fault, "fault"),
    (Cause::Vmrun, "vmrun"),
    (Cause::EsState, "es-state"),
    (Cause::Ghcb, "ghcb"),
    (Cause::Vc, "vc"),
    (Cause::Pvalidate, "pvalidate"),
    (Cause::Rmpadjust, "rmpadjust"),
    (Cause::Rmpupdate, "rmpupdate"),
];

/// Names of the kinds that caches count apart, in the order of their arrays.
const KINDS: [&str; 5] = ["reads", "writes", "fetches", "walk", "rmp"];

impl Simulation {
    /// Cycles that the cores were not waiting.
    #[must_use]
    pub fn busy(&self) -> u64 {
        let c = &self.core;
        c.instruction_cycles + self.hit_cycles() + c.stalls.total() + self.exit_cycles()
    }

    /// Cycles of accesses and fetches that hit the first level.
    #[must_use]
    pub fn hit_cycles(&self) -> u64 {
        let (c, l) = (&self.core, &self.model.latency);
        (c.reads + c.writes) * u64::from(l.l1d_cycles) + c.fetches * u64::from(l.l1i_cycles)
    }

    /// Cycles of exits, system calls and faults.
    #[must_use]
    pub fn exit_cycles(&self) -> u64 {
        CAUSES
            .iter()
            .map(|(c, _)| self.core.exits[*c as usize])
            .sum()
    }

    /// Cycles that the cores waited in simulated time.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.core.exits[Cause::Idle as usize]
    }

    /// Cycles of the firmware's work at launch, which are in none of the others.
    #[must_use]
    pub fn launch_cycles(&self) -> u64 {
        self.launch_pages * self.model.cycles(self.model.exit.launch_page_ns)
    }

    /// Simulated seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.cycles as f64 / (f64::from(self.model.core.clock_mhz) * 1e6)
    }

    /// Accesses of a cache by kind, and those that missed. The first level's hits are known from the operands.
    fn accesses(&self, level: Level) -> [(u64, u64); 5] {
        let c = self.counters(level);
        let own = match level {
            Level::L1i => [0, 0, self.core.fetches, 0, 0],
            Level::L1d => [self.core.reads, self.core.writes, 0, 0, 0],
            Level::L2 | Level::Llc => std::array::from_fn(|i| c.hits[i] + c.misses[i]),
        };
        std::array::from_fn(|i| (own[i], c.misses[i]))
    }

    fn counters(&self, level: Level) -> &CacheCounters {
        match level {
            Level::L1i => &self.memory.l1i,
            Level::L1d => &self.memory.l1d,
            Level::L2 => &self.memory.l2,
            Level::Llc => &self.memory.llc,
        }
    }

    fn levels(&self) -> impl Iterator<Item = Level> {
        let l2 = self.model.l2.is_some();
        Level::ALL
            .into_iter()
            .filter(move |l| l2 || *l != Level::L2)
    }

    /// As data.
    #[must_use]
    pub fn report(&self) -> SimulationReport {
        let (c, m) = (&self.core, &self.memory);
        let cache = |level: Level| {
            let counters = self.counters(level);
            let of = |f: fn((u64, u64)) -> u64| {
                let all = self.accesses(level).into_iter().map(f);
                KINDS.into_iter().zip(all).filter(|(_, n)| *n > 0).collect()
            };
            let report = CacheReport {
                accesses: of(|(accesses, _)| accesses),
                misses: of(|(_, misses)| misses),
                write_backs: counters.write_backs,
                invalidated: counters.invalidated,
                back_invalidated: counters.back_invalidated,
                prefetched: counters.prefetched,
            };
            (level.name(), report)
        };
        SimulationReport {
            cycles: self.cycles,
            seconds: self.seconds(),
            instructions: self.instructions,
            threads: self.threads,
            busy_cycles: self.busy(),
            idle_cycles: self.idle(),
            instruction_cycles: c.instruction_cycles,
            hit_cycles: self.hit_cycles(),
            stall_cycles: c.stalls.list().into(),
            exits: CAUSES
                .iter()
                .map(|(cause, name)| {
                    let (events, cycles) = (c.events[*cause as usize], c.exits[*cause as usize]);
                    (*name, ExitReport { events, cycles })
                })
                .collect(),
            launch_pages: self.launch_pages,
            launch_cycles: self.launch_cycles(),
            caches: self.levels().map(cache).collect(),
            remote: m.remote,
            upgrades: m.upgrades,
            tlb: [
                ("data_misses", c.data_tlb.misses),
                ("data_second_hits", c.data_tlb.second_hits),
                ("data_walks", c.data_tlb.walks),
                ("fetch_misses", c.fetch_tlb.misses),
                ("fetch_second_hits", c.fetch_tlb.second_hits),
                ("fetch_walks", c.fetch_tlb.walks),
                ("walk_reads", c.walk_reads),
                ("walk_writes", c.walk_writes),
                ("rmp_reads", c.rmp_reads),
            ]
            .into(),
            dram: [
                ("reads_encrypted", m.dram_reads_encrypted),
                ("reads_plain", m.dram_reads_plain),
                ("writes_encrypted", m.dram_writes_encrypted),
                ("writes_plain", m.dram_writes_plain),
                ("row_hits", m.row_hits),
                ("row_misses", m.row_misses),
            ]
            .into(),
        }
    }
}

/// A cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    L1i,
    L1d,
    L2,
    Llc,
}

impl Level {
    const ALL: [Self; 4] = [Self::L1i, Self::L1d, Self::L2, Self::Llc];

    fn name(self) -> &'static str {
        match self {
            Self::L1i => "l1i",
            Self::L1d => "l1d",
            Self::L2 => "l2",
            Self::Llc => "llc",
        }
    }
}

/// [`Simulation`] as data.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // as there
pub struct SimulationReport {
    pub cycles: u64,
    pub seconds: f64,
    pub instructions: u64,
    pub threads: u64,
    pub busy_cycles: u64,
    pub idle_cycles: u64,
    pub instruction_cycles: u64,
    pub hit_cycles: u64,
    pub stall_cycles: BTreeMap<&'static str, u64>,
    pub exits: BTreeMap<&'static str, ExitReport>,
    pub launch_pages: u64,
    pub launch_cycles: u64,
    pub caches: BTreeMap<&'static str, CacheReport>,
    pub remote: u64,
    pub upgrades: u64,
    pub tlb: BTreeMap<&'static str, u64>,
    pub dram: BTreeMap<&'static str, u64>,
}

/// Exits of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // their names say it
pub struct ExitReport {
    pub events: u64,
    pub cycles: u64,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // as in [`CacheCounters`]
pub struct CacheReport {
    pub accesses: BTreeMap<&'static str, u64>,
    pub misses: BTreeMap<&'static str, u64>,
    pub write_backs: u64,
    pub invalidated: u64,
    pub back_invalidated: u64,
    pub prefetched: u64,
}

fn percent(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

impl fmt::Display for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (c, m) = (&self.core, &self.memory);
        let busy = self.busy();
        let ghz = f64::from(self.model.core.clock_mhz) / 1e3;
        let note = format!(
            "{:.6} s simulated at {ghz:.3} GHz ({})",
            self.seconds(),
            self.model.name
        );
        line(f, self.cycles, "cycles", &note)?;
        let ipc = self.instructions as f64 / busy.max(1) as f64;
        let cpi = busy as f64 / self.instructions.max(1) as f64;
        let note = format!("{ipc:.3} instructions a cycle, {cpi:.3} cycles an instruction");
        line(f, busy, "busy cycles", &note)?;
        if self.idle() > 0 {
            line(f, self.idle(), "idle cycles", "")?;
        }
        let of_busy = |n: u64| format!("{:6.2} % of busy", percent(n, busy));
        let n = c.instruction_cycles;
        line(f, n, "  of instructions", &of_busy(n))?;
        let n = self.hit_cycles();
        line(f, n, "  of first-level hits", &of_busy(n))?;
        for (name, n) in c.stalls.list().into_iter().filter(|(_, n)| *n > 0) {
            line(f, n, &format!("  waiting for {name}"), &of_busy(n))?;
        }
        for (cause, name) in CAUSES {
            let (events, n) = (c.events[cause as usize], c.exits[cause as usize]);
            if events > 0 || n > 0 {
                let note = format!("{}, {events} times", of_busy(n));
                line(f, n, &format!("  exits: {name}"), &note)?;
            }
        }
        for level in self.levels() {
            let name = level.name().to_uppercase();
            for (kind, (accesses, misses)) in KINDS.into_iter().zip(self.accesses(level)) {
                if accesses == 0 && misses == 0 {
                    continue;
                }
                line(f, accesses, &format!("{name} {kind}"), "")?;
                let rate = format!("{:6.2} % of them", percent(misses, accesses));
                line(f, misses, &format!("{name} {kind} missed"), &rate)?;
            }
            let counters = self.counters(level);
            for (n, what) in [
                (counters.write_backs, "write-backs"),
                (counters.invalidated, "invalidated"),
                (counters.back_invalidated, "lost to inclusion"),
                (counters.prefetched, "prefetched"),
            ] {
                if n > 0 {
                    line(f, n, &format!("{name} {what}"), "")?;
                }
            }
        }
        for (n, what) in [
            (m.remote, "lines from other cores"),
            (m.upgrades, "invalidations sent"),
        ] {
            if n > 0 {
                line(f, n, what, "")?;
            }
        }
        if self.model.tlb.is_some() {
            let accesses = [c.reads + c.writes, c.fetches];
            let both = [("DTLB", &c.data_tlb), ("ITLB", &c.fetch_tlb)];
            for ((name, t), accesses) in both.into_iter().zip(accesses) {
                let rate = format!("{:6.2} % of accesses", percent(t.misses, accesses));
                line(f, t.misses, &format!("{name} misses"), &rate)?;
                let rate = format!("{:6.2} % of them", percent(t.walks, t.misses));
                line(f, t.walks, &format!("{name} page walks"), &rate)?;
            }
            line(f, c.walk_reads, "table entries read", "")?;
            if c.rmp_reads > 0 {
                line(f, c.rmp_reads, "RMP entries read", "")?;
            }
        }
        for (n, what, note) in [
            (m.dram_reads_plain, "DRAM reads, plain", ""),
            (
                m.dram_reads_encrypted,
                "DRAM reads, encrypted",
                "AES lines in",
            ),
            (m.dram_writes_plain, "DRAM writes, plain", ""),
            (
                m.dram_writes_encrypted,
                "DRAM writes, encrypted",
                "AES lines out",
            ),
        ] {
            line(f, n, what, note)?;
        }
        if self.launch_pages > 0 {
            let note = format!("for {} pages, before the guest's time", self.launch_pages);
            line(f, self.launch_cycles(), "launch cycles", &note)?;
        }
        Ok(())
    }
}
