//! The whole: events of a run in, counts out.

use std::collections::BTreeMap;

use sevlab_memctl::model::Model;

use crate::caches::{Caches, Level};
use crate::counts::{Counts, Kind};
use crate::operands::{self, Counted, Counting};
use crate::tlb::{CoreTlbs, Page, Want};
use crate::walk::{self, Guest};

/// What happens, in program order; each is told before it changes anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// An instruction begins, perhaps not for the first time.
    Begin {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// It accesses data.
    Data {
        /// Where.
        va: u64,
        /// Bytes.
        size: u64,
        /// Written, or read and written.
        write: bool,
    },
    /// An iteration of a repeated instruction is complete, and another follows.
    Repeat,
    /// The instruction is complete.
    Retire,
    /// Something outside of instructions takes so many cycles.
    Charge {
        /// What.
        cause: &'a str,
        /// How long.
        cycles: u64,
    },
    /// All translations of the guest are forgotten, and with `nested` those of the nested tables.
    ForgetAll {
        /// Also the nested ones.
        nested: bool,
    },
    /// The translation of the page of this address is forgotten.
    ForgetPage(u64),
    /// The next instruction fetches its line whatever was fetched last.
    Restart,
    /// Lines of this range of system-physical memory were flushed from all caches from outside.
    Evicted {
        /// First byte.
        spa: u64,
        /// Bytes.
        len: u64,
    },
}

/// One core.
struct Core {
    tlbs: Option<CoreTlbs>,
    fetch_line: u64,
    clock: u64,
    cycles: u64,
    /// The running instruction.
    now: Option<Counted>,
    /// It has accessed data since it began or since its last iteration ended.
    accessed: bool,
    counts: Counts,
}

/// The simulation.
pub struct Reference {
    model: Model,
    caches: Caches,
    cores: BTreeMap<usize, Core>,
    decoded: BTreeMap<Vec<u8>, Counted>,
}

impl Reference {
    /// A cold machine.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            caches: Caches::new(model),
            cores: BTreeMap::new(),
            decoded: BTreeMap::new(),
        }
    }

    fn core(&mut self, core: usize) -> &mut Core {
        let tlbs = self.model.tlb.as_ref();
        self.cores.entry(core).or_insert_with(|| Core {
            tlbs: tlbs.map(CoreTlbs::new),
            fetch_line: u64::MAX,
            clock: 0,
            cycles: 0,
            now: None,
            accessed: false,
            counts: Counts::default(),
        })
    }

    /// The caches, to look into.
    pub fn caches(&mut self) -> &mut Caches {
        &mut self.caches
    }

    /// What a core has counted.
    pub fn counts(&mut self, core: usize) -> Counts {
        let c = self.core(core);
        let mut all = c.counts.clone();
        all.add("cycles", c.cycles);
        all.join(&self.caches.core(core).counts);
        all
    }

    /// What all cores have counted.
    pub fn total(&mut self) -> Counts {
        let cores: Vec<usize> = self.cores.keys().copied().collect();
        let mut all = Counts::default();
        for core in cores {
            all.join(&self.counts(core));
        }
        all
    }

    /// The next event.
    pub fn event(&mut self, core: usize, guest: &dyn Guest, event: Event<'_>) {
        match event {
            Event::Begin { rip, bytes } => self.begin(core, guest, rip, bytes),
            Event::Data { va, size, write } => self.data(core, guest, va, size, write),
            Event::Repeat => self.repeat(core),
            Event::Retire => self.retire(core),
            Event::Charge { cause, cycles } => {
                let c = self.core(core);
                c.cycles += cycles;
                c.counts.add(&format!("exit.{cause}"), cycles);
            }
            Event::ForgetAll { nested } => {
                if let Some(t) = &mut self.core(core).tlbs {
                    t.forget_all(nested);
                }
            }
            Event::ForgetPage(va) => {
                if let Some(t) = &mut self.core(core).tlbs {
                    t.forget_page(va);
                }
            }
            Event::Restart => self.core(core).fetch_line = u64::MAX,
            Event::Evicted { spa, len } => {
                for line in spa / 64..(spa + len).div_ceil(64) {
                    self.caches.flush(line);
                }
            }
        }
    }

    fn begin(&mut self, core: usize, guest: &dyn Guest, rip: u64, bytes: &[u8]) {
        let counted = match self.decoded.get(bytes) {
            Some(c) => *c,
            None => {
                let c = operands::count(&self.model.cost, rip, bytes);
                self.decoded.insert(bytes.to_vec(), c);
                c
            }
        };
        let c = self.core(core);
        c.now = Some(counted);
        c.accessed = false;
        let (first, last) = (rip >> 6, (rip + bytes.len() as u64 - 1) >> 6);
        if first != c.fetch_line {
            if !self.fetch(core, guest, rip) {
                return;
            }
            self.core(core).fetch_line = first;
        }
        if last != first {
            self.fetch(core, guest, last << 6);
        }
    }

    fn fetch(&mut self, core: usize, guest: &dyn Guest, va: u64) -> bool {
        let Some(page) = self.translate(core, guest, va, Want::Exec) else {
            return false;
        };
        let l1i_cycles = u64::from(self.model.latency.l1i_cycles);
        let c = self.core(core);
        c.counts.add("fetches", 1);
        c.cycles += l1i_cycles;
        let (line, domain) = page.line(va, Want::Exec);
        self.access(core, Kind::Fetch, line, domain);
        true
    }

    fn data(&mut self, core: usize, guest: &dyn Guest, va: u64, size: u64, write: bool) {
        let l1d_cycles = u64::from(self.model.latency.l1d_cycles);
        let c = self.core(core);
        if c.accessed && c.now.is_some_and(|n| n.counting == Counting::Gather) {
            // The element before this one has been loaded.
            c.counts.add("reads", 1);
            c.cycles += l1d_cycles;
        }
        c.accessed = true;
        let (want, kind) = if write {
            (Want::Write, Kind::Write)
        } else {
            (Want::Read, Kind::Read)
        };
        // Every page first, then every line.
        let last = va + size - 1;
        let mut pages: Vec<(u64, Page)> = Vec::new();
        for number in va >> 12..=last >> 12 {
            let at = va.max(number << 12);
            match self.translate(core, guest, at, want) {
                Some(page) => pages.push((number, page)),
                None => return,
            }
        }
        for line_va in va >> 6..=last >> 6 {
            let at = va.max(line_va << 6);
            for (number, page) in &pages {
                if *number == at >> 12 {
                    let (line, domain) = page.line(at, want);
                    self.access(core, kind, line, domain);
                }
            }
        }
    }

    fn operands_done(&mut self, core: usize) {
        let l1d_cycles = u64::from(self.model.latency.l1d_cycles);
        let c = self.core(core);
        let Some(now) = c.now else { return };
        let (reads, writes) = match now.counting {
            Counting::Fixed => (now.reads, now.writes),
            Counting::Repeated if c.accessed => (now.reads, now.writes),
            Counting::Gather if c.accessed => (1, 0),
            Counting::Repeated | Counting::Gather => (0, 0),
        };
        c.accessed = false;
        c.counts.add("reads", reads);
        c.counts.add("writes", writes);
        c.cycles += (reads + writes) * l1d_cycles;
    }

    fn repeat(&mut self, core: usize) {
        self.operands_done(core);
        let rep = u64::from(self.model.cost.rep);
        let c = self.core(core);
        c.clock += 1;
        c.cycles += rep;
        c.counts.add("repeats", 1);
        c.counts.add("instruction_cycles", rep);
    }

    fn retire(&mut self, core: usize) {
        self.operands_done(core);
        let c = self.core(core);
        let Some(now) = c.now.take() else { return };
        c.clock += 1;
        c.cycles += now.cycles;
        c.counts.add("instructions", 1);
        c.counts.add("instruction_cycles", now.cycles);
    }

    fn stall(&mut self, core: usize, cause: &str, cycles: u64) {
        let c = self.core(core);
        c.cycles += cycles;
        c.counts.add(&format!("stall.{cause}"), cycles);
    }

    fn access(
        &mut self,
        core: usize,
        kind: Kind,
        line: u64,
        domain: sevlab_memctl::Domain,
    ) -> Level {
        let c = self.core(core);
        let (stamp, now) = (c.clock + 1, c.cycles);
        let (level, stalled) = self.caches.access(core, kind, line, domain, stamp, now);
        self.core(core).cycles += stalled;
        level
    }

    /// The page of `va`. `None`: the access faults, and nothing has changed.
    fn translate(&mut self, core: usize, guest: &dyn Guest, va: u64, want: Want) -> Option<Page> {
        let latency = self.model.latency.clone();
        let side = if want == Want::Exec { "l1i" } else { "l1d" };
        let c = self.core(core);
        let Some(tlbs) = &mut c.tlbs else {
            // Translation is free, and makes no traffic.
            let mut nothing = CoreTlbs::new(&no_tlbs());
            return walk::walk(guest, &mut nothing, va, want).map(|(page, _)| page);
        };
        let (first, second) = tlbs.levels(want);
        if let Some(page) = first.look_up(va, want) {
            return Some(page);
        }
        if let Some(page) = second.look_up(va, want) {
            first.enter(va, page);
            c.counts.add(&format!("tlb.{side}_misses"), 1);
            c.counts.add("tlb.l2_hits", 1);
            self.stall(core, "tlb", u64::from(latency.tlb2_cycles));
            return Some(page);
        }
        let before = (tlbs.tables.clone(), tlbs.nested.clone());
        let Some((page, steps)) = walk::walk(guest, tlbs, va, want) else {
            (tlbs.tables, tlbs.nested) = before;
            return None;
        };
        let (first, second) = tlbs.levels(want);
        first.enter(va, page);
        second.enter(va, page);
        c.counts.add(&format!("tlb.{side}_misses"), 1);
        c.counts.add("tlb.l2_misses", 1);
        c.counts.add("walks", 1);
        self.stall(core, "walk", u64::from(latency.walk_cycles));
        for step in steps {
            match step.kind {
                Kind::Walk => self.core(core).counts.add("walk_reads", 1),
                Kind::Rmp => {
                    self.core(core).counts.add("rmp_reads", 1);
                    self.stall(core, "rmp", u64::from(latency.rmp_cycles));
                }
                _ => {}
            }
            self.access(core, step.kind, step.spa / 64, step.domain);
        }
        Some(page)
    }
}

fn no_tlbs() -> sevlab_memctl::model::Tlbs {
    use sevlab_memctl::model::{Policy, Tlb, Tlbs};
    let one = Tlb {
        entries: 1,
        ways: 1,
        policy: Policy::Fifo,
    };
    Tlbs {
        l1i: one.clone(),
        l1d: one.clone(),
        l2i: None,
        l2: one,
        walk_entries: 0,
        nested_entries: 0,
    }
}
