//! The caches of all cores, one access after the other: look-ups, fills, victims, coherence, prefetches, DRAM.

use std::collections::BTreeMap;

use sevlab_memctl::Domain;
use sevlab_memctl::model::{Cache, Inclusion, Model};

use crate::array::{Array, Sequence};
use crate::counts::{Counts, Kind};
use crate::dram::{Busy, Dram};
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

/// What an access stalls for, in cycles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stalls {
    /// The cache that served it, or that would have before DRAM did.
    pub cache: u64,
    /// DRAM.
    pub dram: u64,
    /// Decryption.
    pub aes: u64,
    /// Write-backs and their encryption.
    pub write_back: u64,
    /// Other cores' copies had to go.
    pub upgrade: u64,
}

impl Stalls {
    /// Their sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.cache + self.dram + self.aes + self.write_back + self.upgrade
    }
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
    busy: Busy,
    /// What this core's accesses counted.
    pub counts: Counts,
}

impl Private {
    fn each(&mut self) -> impl Iterator<Item = (&'static str, &mut Array<Line>)> {
        let l2 = self.l2.as_mut().map(|l2| ("l2", l2));
        [("l1i", &mut self.l1i), ("l1d", &mut self.l1d)]
            .into_iter()
            .chain(l2)
    }
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
    /// Through which domain each page was accessed last: its cached lines are of that one.
    domains: BTreeMap<u64, Domain>,
    /// Uses so far of any second or third level: the time of their replacement.
    time: u64,
    /// What the access at hand stalls for.
    stalls: Stalls,
    /// The cycle at which it began.
    now: u64,
}

fn array(cache: &Cache, number: u64) -> Array<Line> {
    Array::new(
        cache.sets() as usize,
        cache.ways as usize,
        cache.policy,
        Sequence::of_cache(number),
    )
}

fn encrypted(domain: Domain) -> bool {
    domain != Domain::Shared
}

/// Takes a line out of a cache: whether it was dirty, if it was there.
fn take(cache: &mut Array<Line>, line: u64) -> Option<bool> {
    let at = cache.find(line, line)?;
    cache.take(at).map(|(_, l)| l.dirty)
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
            domains: BTreeMap::new(),
            time: 0,
            stalls: Stalls::default(),
            now: 0,
        }
    }

    /// The caches of that core.
    pub fn core(&mut self, core: usize) -> &mut Private {
        let (m, dram) = (&self.model, &self.dram);
        self.cores.entry(core).or_insert_with(|| Private {
            l1i: array(&m.l1i, 1),
            l1d: array(&m.l1d, 2),
            l2: m.l2.as_ref().map(|c| array(c, 3)),
            prefetcher: Prefetcher::new(&m.prefetch),
            busy: dram.busy(),
            counts: Counts::default(),
        })
    }

    fn count(&mut self, core: usize, name: &str) {
        self.core(core).counts.add(name, 1);
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// One access to one line. `stamp` is the time for the first level's replacement, `now` the core's cycle. Returns the
    /// level that served it and what it stalled for.
    pub fn access(
        &mut self,
        core: usize,
        kind: Kind,
        line: u64,
        domain: Domain,
        stamp: u64,
        now: u64,
    ) -> (Level, Stalls) {
        self.stalls = Stalls::default();
        self.now = now;
        self.core(core);
        self.change_domain(core, line / 64, domain);
        let level = match self.first_level(core, kind, line, stamp) {
            Some(level) => level,
            None => self.below(core, kind, line, domain),
        };
        if level != Level::L1 {
            match kind {
                Kind::Read | Kind::Write => {
                    self.fill_l1d(core, line, domain, kind.writes(), stamp);
                    for other in self.core(core).prefetcher.miss(line) {
                        self.prefetch(core, other, domain);
                    }
                }
                Kind::Fetch => {
                    let dirty = false;
                    let entry = Line { domain, dirty };
                    self.core(core).l1i.insert(line, line, entry, stamp);
                }
                Kind::WalkWrite => self.dirty_below_l1(core, line),
                Kind::Walk | Kind::Rmp => {}
            }
        }
        (level, self.stalls)
    }

    fn first_level(&mut self, core: usize, kind: Kind, line: u64, stamp: u64) -> Option<Level> {
        let own = self.core(core);
        let (name, cache) = match kind {
            Kind::Read | Kind::Write => ("l1d", &mut own.l1d),
            Kind::Fetch => ("l1i", &mut own.l1i),
            Kind::Walk | Kind::WalkWrite | Kind::Rmp => return None,
        };
        let Some(at) = cache.find(line, line) else {
            self.count(core, &format!("{name}.{}_misses", kind.name()));
            return None;
        };
        cache.touch(at, stamp);
        if kind == Kind::Write {
            cache.value(at).dirty = true;
            self.drop_other_copies(core, line);
        }
        Some(Level::L1)
    }

    fn below(&mut self, core: usize, kind: Kind, line: u64, domain: Domain) -> Level {
        let l = self.model.latency.clone();
        let own = self.core(core);
        if let Some(l2) = &mut own.l2 {
            if let Some(at) = l2.find(line, line) {
                let time = self.tick();
                if let Some(l2) = &mut self.core(core).l2 {
                    l2.touch(at, time);
                }
                self.count(core, &format!("l2.{}_hits", kind.name()));
                self.stalls.cache = u64::from(l.l2_cycles);
                if kind.writes() {
                    self.drop_other_copies(core, line);
                }
                return Level::L2;
            }
            self.count(core, &format!("l2.{}_misses", kind.name()));
        }

        let in_llc = self.llc.find(line, line);
        if let Some(at) = in_llc {
            let time = self.tick();
            self.llc.touch(at, time);
        }
        // Another core's change goes down to the LLC.
        let remote = self.dirty_elsewhere(core, line);
        if remote {
            self.clean_other_copies(core, line);
        }
        if kind.writes() {
            self.drop_other_copies(core, line);
        }
        let (level, found) = if remote {
            self.stalls.cache = u64::from(l.remote_cycles);
            self.count(core, "remote");
            (Level::Remote, "hits")
        } else if in_llc.is_some() {
            self.stalls.cache = u64::from(l.llc_cycles);
            (Level::Llc, "hits")
        } else {
            self.stalls.cache = u64::from(l.llc_cycles);
            (Level::Dram, "misses")
        };
        self.count(core, &format!("llc.{}_{found}", kind.name()));

        // Fills, from the bottom up.
        match in_llc {
            Some(at) => self.llc.value(at).dirty |= remote,
            None => self.fill_llc(core, line, domain, remote, true),
        }
        if level == Level::Dram {
            self.dram_read(core, line, domain, true);
        }
        self.fill_l2(core, line, domain, false, true);
        level
    }

    fn dirty_below_l1(&mut self, core: usize, line: u64) {
        let has_l2 = self.core(core).l2.is_some();
        let cache = match &mut self.core(core).l2 {
            Some(l2) => l2,
            None => &mut self.llc,
        };
        match cache.find(line, line) {
            Some(at) => cache.value(at).dirty = true,
            None => debug_assert!(has_l2, "just filled"),
        }
    }

    fn prefetch(&mut self, core: usize, line: u64, domain: Domain) {
        let in_llc = self.llc.find(line, line).is_some();
        let known = match &self.core(core).l2 {
            Some(l2) => l2.find(line, line).is_some(),
            None => in_llc,
        };
        if known || self.dirty_elsewhere(core, line) {
            return;
        }
        if !in_llc {
            self.fill_llc(core, line, domain, false, false);
            self.dram_read(core, line, domain, false);
            self.count(core, "llc.prefetched");
        }
        if self.core(core).l2.is_some() {
            self.fill_l2(core, line, domain, false, false);
            self.count(core, "l2.prefetched");
        }
    }

    fn fill_l1d(&mut self, core: usize, line: u64, domain: Domain, dirty: bool, stamp: u64) {
        let (victim, at) = self.core(core).l1d.make_room(line);
        if let Some((number, old)) = victim
            && old.dirty
        {
            self.count(core, "l1d.write_backs");
            match &mut self.core(core).l2 {
                Some(l2) => match l2.find(number, number) {
                    Some(at) => l2.value(at).dirty = true,
                    None => self.fill_l2(core, number, old.domain, true, true),
                },
                None => self.write_into_llc(core, number, old.domain, true),
            }
        }
        let entry = Line { domain, dirty };
        self.core(core).l1d.fill(at, line, entry, stamp);
    }

    /// `demanded`: what it causes is charged.
    fn fill_l2(&mut self, core: usize, line: u64, domain: Domain, dirty: bool, demanded: bool) {
        let Some(l2) = &mut self.core(core).l2 else {
            return;
        };
        let (victim, at) = l2.make_room(line);
        if let Some((number, old)) = victim
            && old.dirty
        {
            self.count(core, "l2.write_backs");
            self.write_into_llc(core, number, old.domain, demanded);
        }
        let time = self.tick();
        if let Some(l2) = &mut self.core(core).l2 {
            l2.fill(at, line, Line { domain, dirty }, time);
        }
    }

    fn write_into_llc(&mut self, core: usize, line: u64, domain: Domain, demanded: bool) {
        match self.llc.find(line, line) {
            Some(at) => self.llc.value(at).dirty = true,
            None => self.fill_llc(core, line, domain, true, demanded),
        }
    }

    fn fill_llc(&mut self, core: usize, line: u64, domain: Domain, dirty: bool, demanded: bool) {
        let (victim, at) = self.llc.make_room(line);
        if let Some((number, old)) = victim {
            let mut old_dirty = old.dirty;
            if self.model.llc_inclusion == Inclusion::Inclusive {
                old_dirty |= self.drop_all_copies(number, Some("back_invalidated"));
            }
            if old_dirty {
                self.dram_write(core, number, old.domain, demanded);
            }
        }
        let time = self.tick();
        self.llc.fill(at, line, Line { domain, dirty }, time);
    }

    /// Drops a line from all cores' caches, counting it by that name; whether one of them was dirty.
    fn drop_all_copies(&mut self, line: u64, count: Option<&str>) -> bool {
        let mut dirty = false;
        for core in self.cores.values_mut() {
            let mut lost = Vec::new();
            for (name, cache) in core.each() {
                if let Some(was_dirty) = take(cache, line) {
                    dirty |= was_dirty;
                    lost.push(name);
                }
            }
            for (name, count) in lost.iter().zip(count.iter().cycle()) {
                core.counts.add(&format!("{name}.{count}"), 1);
            }
        }
        dirty
    }

    /// The core is about to write: the other cores' copies, all clean by now, go.
    fn drop_other_copies(&mut self, core: usize, line: u64) {
        let mut any = false;
        for (number, other) in &mut self.cores {
            if *number == core {
                continue;
            }
            let mut lost = Vec::new();
            for (name, cache) in other.each() {
                if take(cache, line).is_some() {
                    lost.push(name);
                    any = true;
                }
            }
            for name in lost {
                other.counts.add(&format!("{name}.invalidated"), 1);
            }
        }
        if any {
            self.stalls.upgrade += u64::from(self.model.latency.upgrade_cycles);
            self.count(core, "upgrades");
        }
    }

    fn clean_other_copies(&mut self, core: usize, line: u64) {
        for (number, other) in &mut self.cores {
            for (_, cache) in other.each() {
                if *number != core
                    && let Some(at) = cache.find(line, line)
                {
                    cache.value(at).dirty = false;
                }
            }
        }
    }

    fn dirty_elsewhere(&mut self, core: usize, line: u64) -> bool {
        let mut dirty = false;
        for (number, other) in &mut self.cores {
            for (_, cache) in other.each() {
                if *number != core
                    && let Some(at) = cache.find(line, line)
                {
                    dirty |= cache.value(at).dirty;
                }
            }
        }
        dirty
    }

    /// A page that is accessed through another domain than before leaves all caches first.
    fn change_domain(&mut self, core: usize, page: u64, domain: Domain) {
        let Some(before) = self.domains.insert(page, domain) else {
            return;
        };
        if before == domain {
            return;
        }
        for line in page * 64..(page + 1) * 64 {
            let mut dirty = take(&mut self.llc, line).unwrap_or(false);
            dirty |= self.drop_all_copies(line, None);
            if dirty {
                self.dram_write(core, line, before, true);
            }
        }
    }

    /// Somebody outside had this line flushed; nobody is charged, nothing is counted.
    pub fn flush(&mut self, line: u64) {
        self.drop_all_copies(line, None);
        take(&mut self.llc, line);
    }

    fn row(&mut self, core: usize, hit: Option<bool>) {
        match hit {
            Some(true) => self.count(core, "dram.row_hits"),
            Some(false) => self.count(core, "dram.row_misses"),
            None => {}
        }
    }

    fn dram_read(&mut self, core: usize, line: u64, domain: Domain, demanded: bool) {
        let name = if encrypted(domain) {
            "dram.reads_encrypted"
        } else {
            "dram.reads_plain"
        };
        self.count(core, name);
        let mut busy = self.core(core).busy.clone();
        let taken = self.dram.read(&mut busy, line, encrypted(domain), self.now);
        self.core(core).busy = busy;
        self.row(core, taken.row_hit);
        if demanded {
            self.stalls.dram += taken.dram;
            self.stalls.aes += taken.aes;
        }
    }

    fn dram_write(&mut self, core: usize, line: u64, domain: Domain, demanded: bool) {
        let name = if encrypted(domain) {
            "dram.writes_encrypted"
        } else {
            "dram.writes_plain"
        };
        self.count(core, name);
        self.count(core, "llc.write_backs");
        let mut busy = self.core(core).busy.clone();
        let taken = self
            .dram
            .write(&mut busy, line, encrypted(domain), self.now);
        self.core(core).busy = busy;
        self.row(core, taken.row_hit);
        if demanded {
            self.stalls.write_back += taken.dram + taken.aes;
        }
    }
}
