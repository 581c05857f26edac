//! The caches of all cores, one access after the other: look-ups, fills, victims, coherence, prefetches, DRAM.

use std::collections::BTreeMap;

use sevlab_memctl::Domain;
use sevlab_memctl::model::{Cache, Inclusion, Model};

use crate::array::Array;
use crate::counts::{Counts, Kind};
use crate::dram::Dram;
use crate::prefetch::Prefetcher;

/// A line in a cache. Its key is its number: system-physical address / 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// Through whose key it was brought.
    pub domain: Domain,
    /// Lower levels don't have what it has.
    pub dirty: bool,
}

/// Which level served an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Level {
    L1,
    L2,
    Llc,
    Remote,
    Dram,
}

/// The caches of a core.
#[derive(Clone, Debug)]
pub struct Private {
    /// Instructions.
    pub l1i: Array<Line>,
    /// Data.
    pub l1d: Array<Line>,
    /// Both.
    pub l2: Option<Array<Line>>,
    prefetcher: Prefetcher,
    /// What this core's accesses counted.
    pub counts: Counts,
}

/// All caches.
#[derive(Clone, Debug)]
pub struct Caches {
    model: Model,
    /// By number of the core, those that made an access.
    pub cores: BTreeMap<usize, Private>,
    /// The last level.
    pub llc: Array<Line>,
    dram: Dram,
    /// Accesses so far to any second or third level: the time of their replacement.
    time: u64,
    /// Whether what happens is a prefetch's doing, which is not charged.
    free_of_charge: bool,
    /// Cycles that the access at hand has stalled for.
    stalled: u64,
    /// The cycle at which it began.
    now: u64,
}

fn array(cache: &Cache, level: u64) -> Array<Line> {
    Array::new(
        cache.sets() as usize,
        cache.ways as usize,
        cache.policy,
        level,
    )
}

fn encrypted(domain: Domain) -> bool {
    domain != Domain::Shared
}

/// Takes a line out of a cache; whether it was there and whether it was dirty.
fn take(cache: &mut Array<Line>, line: u64) -> Option<bool> {
    let at = cache.find(line, line)?;
    cache.remove(at).map(|(_, l)| l.dirty)
}

impl Caches {
    /// Empty caches.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            cores: BTreeMap::new(),
            llc: array(&model.llc, 4),
            dram: Dram::new(model),
            time: 0,
            free_of_charge: false,
            stalled: 0,
            now: 0,
        }
    }

    /// The caches of that core.
    pub fn core(&mut self, core: usize) -> &mut Private {
        let m = &self.model;
        self.cores.entry(core).or_insert_with(|| Private {
            l1i: array(&m.l1i, 1),
            l1d: array(&m.l1d, 2),
            l2: m.l2.as_ref().map(|c| array(c, 3)),
            prefetcher: Prefetcher::new(&m.prefetch),
            counts: Counts::default(),
        })
    }

    fn count(&mut self, core: usize, name: &str, n: u64) {
        self.core(core).counts.add(name, n);
    }

    fn stall(&mut self, core: usize, cause: &str, cycles: u64) {
        if !self.free_of_charge {
            self.stalled += cycles;
            self.count(core, &format!("stall.{cause}"), cycles);
        }
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// One access to one line. `stamp` is the time for the first level's replacement, `now` the core's cycle. Returns the
    /// level that served it and the cycles it stalled the core for.
    pub fn access(
        &mut self,
        core: usize,
        kind: Kind,
        line: u64,
        domain: Domain,
        stamp: u64,
        now: u64,
    ) -> (Level, u64) {
        self.stalled = 0;
        self.now = now;
        self.core(core);
        self.expel_other_domains(core, line, domain);
        let level = self.demand(core, kind, line, domain, stamp);
        let data = matches!(kind, Kind::Read | Kind::Write);
        if data && level != Level::L1 {
            let wanted = self.core(core).prefetcher.miss(line);
            self.free_of_charge = true;
            for other in wanted {
                self.prefetch(core, other, domain);
            }
            self.free_of_charge = false;
        }
        (level, self.stalled)
    }

    fn demand(&mut self, core: usize, kind: Kind, line: u64, domain: Domain, stamp: u64) -> Level {
        let l = self.model.latency.clone();
        // First level.
        let own = self.core(core);
        let first = match kind {
            Kind::Read | Kind::Write => Some(("l1d", &mut own.l1d)),
            Kind::Fetch => Some(("l1i", &mut own.l1i)),
            Kind::Walk | Kind::WalkWrite | Kind::Rmp => None,
        };
        if let Some((name, cache)) = first {
            if let Some(at) = cache.find(line, line) {
                cache.touch(at, stamp);
                if kind == Kind::Write && !cache.value(at).dirty {
                    cache.value(at).dirty = true;
                    if self.drop_other_copies(core, line) {
                        self.stall(core, "upgrade", u64::from(l.upgrade_cycles));
                    }
                }
                return Level::L1;
            }
            self.count(core, &format!("{name}.{}_misses", kind.name()), 1);
        }

        // Second level.
        let time = self.tick();
        let own = self.core(core);
        let has_l2 = own.l2.is_some();
        let mut in_l2 = false;
        if let Some(l2) = &mut own.l2 {
            if let Some(at) = l2.find(line, line) {
                l2.touch(at, time);
                in_l2 = true;
            }
            let what = if in_l2 { "hits" } else { "misses" };
            self.count(core, &format!("l2.{}_{what}", kind.name()), 1);
        }

        // Last level.
        let mut in_llc = false;
        let remote = !in_l2 && self.dirty_elsewhere(core, line);
        if !in_l2 {
            if let Some(at) = self.llc.find(line, line) {
                self.llc.touch(at, time);
                in_llc = true;
            }
            let what = if in_llc { "hits" } else { "misses" };
            self.count(core, &format!("llc.{}_{what}", kind.name()), 1);
        }

        // Who serves it.
        let level = if in_l2 {
            self.stall(core, "l2", u64::from(l.l2_cycles));
            Level::L2
        } else if remote {
            self.stall(core, "remote", u64::from(l.remote_cycles));
            self.count(core, "remote", 1);
            Level::Remote
        } else if in_llc {
            self.stall(core, "llc", u64::from(l.llc_cycles));
            Level::Llc
        } else {
            self.stall(core, "llc", u64::from(l.llc_cycles));
            self.dram_read(core, line, domain);
            Level::Dram
        };

        // What it does to the other cores.
        let mut llc_dirty = false;
        if kind.writes() {
            if self.drop_other_copies(core, line) && level != Level::Remote {
                self.stall(core, "upgrade", u64::from(l.upgrade_cycles));
            }
        } else if remote {
            self.clean_other_copies(core, line);
            llc_dirty = true;
        }

        // Fills, from the bottom up.
        if !in_l2 && !in_llc {
            self.fill_llc(core, line, domain, llc_dirty);
        } else if llc_dirty && let Some(at) = self.llc.find(line, line) {
            self.llc.value(at).dirty = true;
        }
        if has_l2 && !in_l2 {
            self.fill_l2(core, line, domain, false);
        }
        match kind {
            Kind::Read | Kind::Write => self.fill_l1d(core, line, domain, kind.writes(), stamp),
            Kind::Fetch => {
                let entry = Line {
                    domain,
                    dirty: false,
                };
                self.core(core).l1i.insert(line, line, entry, stamp);
            }
            Kind::Walk | Kind::WalkWrite | Kind::Rmp => {
                if kind.writes() {
                    self.set_dirty_below_l1(core, line);
                }
            }
        }
        level
    }

    fn set_dirty_below_l1(&mut self, core: usize, line: u64) {
        if let Some(l2) = &mut self.core(core).l2 {
            if let Some(at) = l2.find(line, line) {
                l2.value(at).dirty = true;
            }
        } else if let Some(at) = self.llc.find(line, line) {
            self.llc.value(at).dirty = true;
        }
    }

    fn prefetch(&mut self, core: usize, line: u64, domain: Domain) {
        let own = self.core(core);
        let has_l2 = own.l2.is_some();
        let known = match &own.l2 {
            Some(l2) => l2.find(line, line).is_some(),
            None => self.llc.find(line, line).is_some(),
        };
        if known || self.dirty_elsewhere(core, line) {
            return;
        }
        self.expel_other_domains(core, line, domain);
        self.count(core, "prefetches", 1);
        let time = self.tick();
        if let Some(at) = self.llc.find(line, line) {
            self.llc.touch(at, time);
        } else {
            self.count_dram_read(core, domain);
            self.fill_llc(core, line, domain, false);
        }
        if has_l2 {
            self.fill_l2(core, line, domain, false);
        }
    }

    fn fill_l1d(&mut self, core: usize, line: u64, domain: Domain, dirty: bool, stamp: u64) {
        let (victim, at) = self.core(core).l1d.make_room(line);
        if let Some((number, old)) = victim
            && old.dirty
        {
            self.count(core, "l1d.write_backs", 1);
            if self.core(core).l2.is_some() {
                self.write_into_l2(core, number, old.domain);
            } else {
                self.write_into_llc(core, number, old.domain);
            }
        }
        self.core(core)
            .l1d
            .fill(at, line, Line { domain, dirty }, stamp);
    }

    fn write_into_l2(&mut self, core: usize, line: u64, domain: Domain) {
        let time = self.tick();
        if let Some(l2) = &mut self.core(core).l2
            && let Some(at) = l2.find(line, line)
        {
            l2.touch(at, time);
            l2.value(at).dirty = true;
        } else {
            self.fill_l2(core, line, domain, true);
        }
    }

    fn fill_l2(&mut self, core: usize, line: u64, domain: Domain, dirty: bool) {
        let Some(l2) = &mut self.core(core).l2 else {
            return;
        };
        let (victim, at) = l2.make_room(line);
        if let Some((number, old)) = victim
            && old.dirty
        {
            self.count(core, "l2.write_backs", 1);
            self.write_into_llc(core, number, old.domain);
        }
        let time = self.tick();
        if let Some(l2) = &mut self.core(core).l2 {
            l2.fill(at, line, Line { domain, dirty }, time);
        }
    }

    fn write_into_llc(&mut self, core: usize, line: u64, domain: Domain) {
        let time = self.tick();
        if let Some(at) = self.llc.find(line, line) {
            self.llc.touch(at, time);
            self.llc.value(at).dirty = true;
        } else {
            self.fill_llc(core, line, domain, true);
        }
    }

    fn fill_llc(&mut self, core: usize, line: u64, domain: Domain, dirty: bool) {
        let (victim, at) = self.llc.make_room(line);
        if let Some((number, old)) = victim {
            let mut old_dirty = old.dirty;
            if self.model.llc_inclusion == Inclusion::Inclusive {
                old_dirty |= self.drop_everywhere_above(number);
            }
            if old_dirty {
                self.count(core, "llc.write_backs", 1);
                self.dram_write(core, number, old.domain);
            }
        }
        let time = self.tick();
        self.llc.fill(at, line, Line { domain, dirty }, time);
    }

    /// Drops a line from all cores' caches; whether one of them was dirty.
    fn drop_everywhere_above(&mut self, line: u64) -> bool {
        let mut dirty = false;
        for core in self.cores.values_mut() {
            for cache in [Some(&mut core.l1i), Some(&mut core.l1d), core.l2.as_mut()] {
                dirty |= cache.and_then(|c| take(c, line)).unwrap_or(false);
            }
        }
        dirty
    }

    /// Drops the other cores' copies, dirty or not: what they had is in the line that the writer gets. Whether there were any.
    fn drop_other_copies(&mut self, core: usize, line: u64) -> bool {
        let mut found = false;
        for (number, other) in &mut self.cores {
            if *number == core {
                continue;
            }
            let mut had = false;
            for cache in [
                Some(&mut other.l1i),
                Some(&mut other.l1d),
                other.l2.as_mut(),
            ] {
                had |= cache.and_then(|c| take(c, line)).is_some();
            }
            if had {
                other.counts.add("invalidations", 1);
                found = true;
            }
        }
        found
    }

    fn clean_other_copies(&mut self, core: usize, line: u64) {
        for (number, other) in &mut self.cores {
            if *number == core {
                continue;
            }
            for cache in [Some(&mut other.l1d), other.l2.as_mut()]
                .into_iter()
                .flatten()
            {
                if let Some(at) = cache.find(line, line) {
                    cache.value(at).dirty = false;
                }
            }
        }
    }

    fn dirty_elsewhere(&mut self, core: usize, line: u64) -> bool {
        self.cores.iter_mut().any(|(number, other)| {
            *number != core
                && [Some(&mut other.l1d), other.l2.as_mut()]
                    .into_iter()
                    .flatten()
                    .any(|cache| {
                        cache
                            .find(line, line)
                            .is_some_and(|at| cache.value(at).dirty)
                    })
        })
    }

    /// A line that is cached through another domain leaves all caches first.
    fn expel_other_domains(&mut self, core: usize, line: u64, domain: Domain) {
        if let Some(old) = self.domain_of(line)
            && old != domain
        {
            self.expel(core, line);
        }
    }

    /// The domain through which a line is cached, if it is cached anywhere.
    #[must_use]
    pub fn domain_of(&mut self, line: u64) -> Option<Domain> {
        if let Some(at) = self.llc.find(line, line) {
            return Some(self.llc.value(at).domain);
        }
        for core in self.cores.values_mut() {
            for cache in [Some(&mut core.l1i), Some(&mut core.l1d), core.l2.as_mut()]
                .into_iter()
                .flatten()
            {
                if let Some(at) = cache.find(line, line) {
                    return Some(cache.value(at).domain);
                }
            }
        }
        None
    }

    /// A line leaves all caches, to DRAM if it is dirty.
    fn expel(&mut self, core: usize, line: u64) {
        let Some(domain) = self.domain_of(line) else {
            return;
        };
        let mut dirty = self.drop_everywhere_above(line);
        dirty |= take(&mut self.llc, line).unwrap_or(false);
        if dirty {
            self.count(core, "llc.write_backs", 1);
            self.dram_write(core, line, domain);
        }
    }

    /// Somebody outside had this line flushed; nobody is charged, nothing is counted.
    pub fn flush(&mut self, line: u64) {
        self.drop_everywhere_above(line);
        take(&mut self.llc, line);
    }

    fn count_dram_read(&mut self, core: usize, domain: Domain) {
        if encrypted(domain) {
            self.count(core, "dram.reads_encrypted", 1);
            self.count(core, "aes.lines_in", 1);
        } else {
            self.count(core, "dram.reads_plain", 1);
        }
    }

    fn dram_read(&mut self, core: usize, line: u64, domain: Domain) {
        self.count_dram_read(core, domain);
        let at = self.now + self.stalled;
        let taken = self.dram.read(line, encrypted(domain), at);
        self.stall(core, "dram", taken.dram);
        self.stall(core, "aes", taken.aes);
    }

    fn dram_write(&mut self, core: usize, line: u64, domain: Domain) {
        if encrypted(domain) {
            self.count(core, "dram.writes_encrypted", 1);
            self.count(core, "aes.lines_out", 1);
        } else {
            self.count(core, "dram.writes_plain", 1);
        }
        if !self.free_of_charge {
            let at = self.now + self.stalled;
            let taken = self.dram.write(line, encrypted(domain), at);
            self.stall(core, "write_back", taken.dram + taken.aes);
        }
    }
}
