//! The whole: events of a run in, counts out.

use std::collections::{BTreeMap, HashMap};

use sevlab_memctl::Domain;
use sevlab_memctl::model::Model;

use crate::caches::{Caches, Level};
use crate::counts::{Counts, Kind};
use crate::operands::{self, Counted, Counting};
use crate::tlb::{CoreTlbs, Page, Want};
use crate::walk::{self, Ref, Tables, Walk};

/// An access within a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    /// Read, Write or Fetch.
    pub kind: Kind,
    /// Its first byte.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// What the page's tables say.
    pub page: Page,
    /// Through which domain.
    pub domain: Domain,
    /// The time that the simulation under test has for it.
    pub stamp: u64,
}

/// What happens, in program order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// An instruction begins, perhaps not for the first time.
    Begin {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// The next access needs a walk, if no TLB helps: this one.
    Walk(Walk<'a>),
    /// An access.
    Touch(Touch),
    /// An iteration of a repeated instruction is complete, and another follows if `more`.
    Iterated {
        /// Another follows.
        more: bool,
    },
    /// The instruction is complete.
    Retired,
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
    ForgetPage {
        /// The address.
        va: u64,
        /// And all guest tables that the walk cache knows.
        tables: bool,
    },
    /// The core is another processor's from here on: no translation is known, no line was fetched last, and its clocks are these.
    Attached {
        /// Instructions and iterations so far.
        clock: u64,
        /// Cycles so far.
        cycles: u64,
    },
    /// Lines of this range of system-physical memory were flushed from all caches from outside.
    Evicted {
        /// First byte.
        spa: u64,
        /// Bytes.
        len: u64,
    },
}

/// A walk that was told and not yet needed.
struct Told {
    va: u64,
    refs: Vec<Ref>,
    guest: Domain,
    leaf: u8,
    rmp: Option<u64>,
}

/// One core.
struct Core {
    tlbs: Option<CoreTlbs>,
    fetch_line: u64,
    /// Lines that the running instruction has still to fetch.
    due: Vec<u64>,
    clock: u64,
    /// The clocks of the processors that were this core before.
    before: u64,
    cycles: u64,
    /// The running instruction.
    now: Option<Counted>,
    /// Bytes of data it has accessed since it began or since its last iteration ended.
    accessed: u64,
    walk: Option<Told>,
    often: Often,
    counts: Counts,
}

/// What nearly every instruction counts.
#[derive(Clone, Copy, Default)]
struct Often {
    instructions: u64,
    instruction_cycles: u64,
    reads: u64,
    writes: u64,
    fetches: u64,
}

/// How many complaints are kept word by word.
const COMPLAINTS: usize = 20;

/// The simulation.
pub struct Reference {
    model: Model,
    caches: Caches,
    cores: BTreeMap<usize, Core>,
    decoded: HashMap<Vec<u8>, Counted>,
    complaints: Vec<String>,
}

impl Reference {
    /// A cold machine.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            caches: Caches::new(model),
            cores: BTreeMap::new(),
            decoded: HashMap::new(),
            complaints: Vec::new(),
        }
    }

    fn core(&mut self, core: usize) -> &mut Core {
        let tlbs = self.model.tlb.as_ref();
        self.cores.entry(core).or_insert_with(|| Core {
            tlbs: tlbs.map(CoreTlbs::new),
            fetch_line: u64::MAX,
            due: Vec::new(),
            clock: 0,
            before: 0,
            cycles: 0,
            now: None,
            accessed: 0,
            walk: None,
            often: Often::default(),
            counts: Counts::default(),
        })
    }

    /// The caches, to look into.
    pub fn caches(&mut self) -> &mut Caches {
        &mut self.caches
    }

    /// Events that do not fit to each other or to what is simulated here: the first of them.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// What a core has counted.
    pub fn counts(&mut self, core: usize) -> Counts {
        self.gathered(core);
        let c = self.core(core);
        let mut all = c.counts.clone();
        all.add("cycles", c.cycles);
        all.add("instructions", c.often.instructions);
        all.add("instruction_cycles", c.often.instruction_cycles);
        all.add("reads", c.often.reads);
        all.add("writes", c.often.writes);
        all.add("fetches", c.often.fetches);
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

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(what());
        }
    }

    /// Sees that a walk is the one that these tables give.
    pub fn check_walk(&mut self, walk: &Walk<'_>, tables: &Tables<'_>) {
        let told: Vec<_> = walk
            .refs
            .iter()
            .map(|r| (r.guest, r.nested, r.spa))
            .collect();
        let own = tables.walk(walk.va);
        if own.as_ref() != Some(&told) {
            let va = walk.va;
            self.complain(|| format!("walk for {va:#x}: {told:x?}, but the tables say {own:x?}"));
        }
        let own = tables.rmp_entry(walk.va);
        if own != walk.rmp {
            let (va, told) = (walk.va, walk.rmp);
            self.complain(|| format!("RMP entry for {va:#x}: {told:x?}, but it is {own:x?}"));
        }
    }

    /// The next event.
    pub fn event(&mut self, core: usize, event: Event<'_>) {
        match event {
            Event::Begin { rip, bytes } => self.begin(core, rip, bytes),
            Event::Walk(w) => {
                self.core(core).walk = Some(Told {
                    va: w.va,
                    refs: w.refs.to_vec(),
                    guest: w.guest,
                    leaf: w.leaf,
                    rmp: w.rmp,
                });
            }
            Event::Touch(t) => self.touch(core, &t),
            Event::Iterated { more } => self.iterated(core, more),
            Event::Retired => self.retired(core),
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
            Event::ForgetPage { va, tables } => {
                if let Some(t) = &mut self.core(core).tlbs {
                    t.forget_page(va);
                    if tables {
                        t.forget_tables();
                    }
                }
            }
            Event::Attached { clock, cycles } => self.attached(core, clock, cycles),
            Event::Evicted { spa, len } => {
                for line in spa / 64..(spa + len).div_ceil(64) {
                    self.caches.flush(line);
                }
            }
        }
    }

    fn attached(&mut self, core: usize, clock: u64, cycles: u64) {
        self.gathered(core);
        let tlbs = self.model.tlb.as_ref().map(CoreTlbs::new);
        let c = self.core(core);
        // What the caches hold counts as used before all that comes.
        c.before += c.clock;
        c.clock = clock;
        c.cycles = cycles;
        c.tlbs = tlbs;
        c.fetch_line = u64::MAX;
        c.due.clear();
        c.now = None;
        c.walk = None;
    }

    fn begin(&mut self, core: usize, rip: u64, bytes: &[u8]) {
        self.gathered(core);
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
        c.accessed = 0;
        let (first, last) = (rip >> 6, (rip + bytes.len() as u64 - 1) >> 6);
        c.due.clear();
        if first != c.fetch_line {
            c.due.push(first);
        }
        if last != first {
            c.due.push(last);
        }
    }

    fn touch(&mut self, core: usize, t: &Touch) {
        let c = self.core(core);
        let line = t.va >> 6;
        let mut wrong = None;
        if t.kind == Kind::Fetch {
            if c.due.first() == Some(&line) {
                c.due.remove(0);
            } else {
                wrong = Some("a line is fetched that should not be");
            }
            c.fetch_line = line;
        } else if !c.due.is_empty() {
            wrong = Some("data before the instruction's lines were fetched");
        }
        if t.stamp != c.clock + 1 {
            wrong = Some("another time");
        }
        if let Some(wrong) = wrong {
            let clock = c.clock;
            self.complain(|| format!("core {core}, clock {clock}: {wrong}: {t:x?}"));
        }
        let want = match t.kind {
            Kind::Write => Want::Write,
            Kind::Fetch => Want::Exec,
            _ => Want::Read,
        };
        self.translate(core, t, want);
        let inside = t.va & ((1 << t.page.shift) - 1);
        let (level, s) = self.access(core, t.kind, (t.page.spa + inside) / 64, t.domain);
        let served = match level {
            Level::L1 => "l1",
            Level::L2 => "l2",
            Level::Llc | Level::Dram => "llc",
            Level::Remote => "remote",
        };
        if s.total() > 0 {
            for (cause, cycles) in [
                (served, s.cache),
                ("dram", s.dram),
                ("aes", s.aes),
                ("write-back", s.write_back),
                ("upgrade", s.upgrade),
            ] {
                self.stall(core, cause, cycles);
            }
        }
        let l1i_cycles = u64::from(self.model.latency.l1i_cycles);
        let c = self.core(core);
        if t.kind == Kind::Fetch {
            c.often.fetches += 1;
            c.cycles += l1i_cycles;
        } else {
            c.accessed += t.len;
        }
    }

    fn operands(&mut self, core: usize, reads: u64, writes: u64) {
        let l1d_cycles = u64::from(self.model.latency.l1d_cycles);
        let c = self.core(core);
        c.often.reads += reads;
        c.often.writes += writes;
        c.cycles += (reads + writes) * l1d_cycles;
    }

    /// Counts the elements that the running instruction has gathered, whether or not it comes to its end.
    fn gathered(&mut self, core: usize) {
        let c = self.core(core);
        if let Some(Counting::Gather(size)) = c.now.map(|n| n.counting) {
            let elements = c.accessed / size;
            c.accessed = 0;
            self.operands(core, elements, 0);
        }
    }

    fn iterated(&mut self, core: usize, more: bool) {
        let rep = u64::from(self.model.cost.rep);
        let c = self.core(core);
        let Some(now) = c.now else { return };
        c.accessed = 0;
        if more {
            c.clock += 1;
            c.cycles += rep;
            c.often.instruction_cycles += rep;
        }
        self.operands(core, now.reads, now.writes);
    }

    fn retired(&mut self, core: usize) {
        self.gathered(core);
        let c = self.core(core);
        let Some(now) = c.now.take() else {
            self.complain(|| format!("core {core}: an instruction ends that did not begin"));
            return;
        };
        let missing = !c.due.is_empty();
        c.clock += 1;
        c.cycles += now.cycles;
        c.often.instructions += 1;
        c.often.instruction_cycles += now.cycles;
        if now.counting == Counting::Fixed {
            self.operands(core, now.reads, now.writes);
        }
        if missing {
            self.complain(|| format!("core {core}: an instruction whose line was not fetched"));
        }
    }

    fn stall(&mut self, core: usize, cause: &str, cycles: u64) {
        let c = self.core(core);
        c.cycles += cycles;
        if cycles > 0 {
            c.counts.add(&format!("stall.{cause}"), cycles);
        }
    }

    fn access(
        &mut self,
        core: usize,
        kind: Kind,
        line: u64,
        domain: Domain,
    ) -> (Level, crate::caches::Stalls) {
        let c = self.core(core);
        let (stamp, now) = (c.before + c.clock + 1, c.cycles);
        self.caches.access(core, kind, line, domain, stamp, now)
    }

    /// What it takes to find the page of an access.
    fn translate(&mut self, core: usize, t: &Touch, want: Want) {
        let (tlb2, walk_cycles, rmp_cycles) = (
            u64::from(self.model.latency.tlb2_cycles),
            u64::from(self.model.latency.walk_cycles),
            u64::from(self.model.latency.rmp_cycles),
        );
        let side = if want == Want::Exec { "fetch" } else { "data" };
        let c = self.core(core);
        let told = c.walk.take();
        let Some(tlbs) = &mut c.tlbs else { return };
        let (first, second) = tlbs.levels(want);
        let mut page = first.look_up(t.va, want);
        let mut walked = false;
        if page.is_none() {
            c.counts.add(&format!("tlb.{side}_misses"), 1);
            page = second.look_up(t.va, want);
            if let Some(page) = page {
                first.enter(t.va, page);
                c.counts.add(&format!("tlb.{side}_second_hits"), 1);
                self.stall(core, "tlb", tlb2);
            } else {
                first.enter(t.va, t.page);
                second.enter(t.va, t.page);
                c.counts.add(&format!("tlb.{side}_walks"), 1);
                walked = true;
            }
        }
        if walked != told.is_some() {
            self.complain(|| {
                format!(
                    "core {core}: walk needed {walked}, made {}: {t:x?}",
                    !walked
                )
            });
        }
        if let Some(page) = page
            && page.spa != t.page.spa
        {
            self.complain(|| format!("core {core}: {page:x?} in the TLB, but {t:x?}"));
        }
        if !walked {
            return;
        }
        self.stall(core, "walk", walk_cycles);
        let Some(told) = told else { return };
        let walk = Walk {
            va: told.va,
            refs: &told.refs,
            guest: told.guest,
            leaf: told.leaf,
            rmp: told.rmp,
        };
        let Some(tlbs) = &mut self.core(core).tlbs else {
            return;
        };
        for step in walk::steps(tlbs, &walk) {
            let (_, s) = self.access(core, step.kind, step.spa / 64, step.domain);
            let c = self.core(core);
            if step.kind == Kind::Rmp {
                c.counts.add("rmp_reads", 1);
                self.stall(core, "rmp", s.total() + rmp_cycles);
            } else {
                c.counts.add("walk_reads", 1);
                c.counts
                    .add("walk_writes", u64::from(step.kind == Kind::WalkWrite));
                self.stall(core, "aes", s.aes);
                self.stall(core, "walk", s.total() - s.aes);
            }
        }
    }
}
