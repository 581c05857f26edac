//! The hierarchy once more, as slow and as plain as can be: every access looks at every list. It knows no filters and no data.
#![allow(dead_code)]

mod cache;

use std::collections::{BTreeMap, HashMap};

pub use cache::Cache;
use sevlab_memctl::model::{DramModel, Inclusion, Model};
use sevlab_memctl::{Domain, HierCounters, Level, LineKind, Stalls};

pub struct Core {
    l1i: Cache,
    l1d: Cache,
    l2: Option<Cache>,
    streams: HashMap<u64, (u64, i64, i64, bool)>,
    busy: HashMap<u64, u64>,
    aes_busy: HashMap<u64, u64>,
    pub counters: HierCounters,
}

pub struct Naive {
    m: Model,
    pub cores: Vec<Core>,
    llc: Cache,
    domains: HashMap<u64, Domain>,
    rows: HashMap<(u64, u64), u64>,
    /// Of the access under way.
    core: usize,
    now: u64,
    stalls: Stalls,
}

fn kind_index(k: LineKind) -> usize {
    match k {
        LineKind::Load => 0,
        LineKind::Store => 1,
        LineKind::Fetch => 2,
        LineKind::Walk | LineKind::WalkWrite => 3,
        LineKind::Rmp => 4,
    }
}

impl Naive {
    pub fn new(m: &Model, cores: usize) -> Self {
        let core = |_| Core {
            l1i: Cache::new(&m.l1i, 0),
            l1d: Cache::new(&m.l1d, 1),
            l2: m.l2.as_ref().map(|c| Cache::new(c, 2)),
            streams: HashMap::new(),
            busy: HashMap::new(),
            aes_busy: HashMap::new(),
            counters: HierCounters::default(),
        };
        Self {
            m: m.clone(),
            cores: (0..cores).map(core).collect(),
            llc: Cache::new(&m.llc, 3),
            domains: HashMap::new(),
            rows: HashMap::new(),
            core: 0,
            now: 0,
            stalls: Stalls::default(),
        }
    }

    /// All lines that are in a cache, and whether dirty.
    pub fn cached(&self) -> BTreeMap<u64, bool> {
        let mut all = BTreeMap::new();
        let mut add = |c: &Cache| {
            for e in c.entries() {
                *all.entry(e.line).or_insert(false) |= e.dirty;
            }
        };
        add(&self.llc);
        for c in &self.cores {
            add(&c.l1i);
            add(&c.l1d);
            if let Some(l2) = &c.l2 {
                add(l2);
            }
        }
        all
    }

    /// The domain of the page's cached lines, if it has any.
    pub fn domain_of(&self, page: u64) -> Option<Domain> {
        let any = self
            .cached()
            .range(page * 64..page * 64 + 64)
            .next()
            .is_some();
        any.then(|| self.domains[&page])
    }

    pub fn rebase(&mut self, core: usize) {
        self.cores[core].l1d.rebase();
        self.cores[core].l1i.rebase();
    }

    /// Somebody looks at the page under `d`; flushed pages' dirty lines are charged only in an access.
    pub fn look(&mut self, page: u64, d: Domain, charged: bool) {
        let any = self
            .cached()
            .range(page * 64..page * 64 + 64)
            .next()
            .is_some();
        if !any || self.domains[&page] == d {
            return;
        }
        for line in page * 64..page * 64 + 64 {
            let mut dirty = self.llc.remove(line).unwrap_or(false);
            for c in &mut self.cores {
                dirty |= c.l1i.remove(line).unwrap_or(false);
                dirty |= c.l1d.remove(line).unwrap_or(false);
                dirty |=
                    c.l2.as_mut()
                        .and_then(|l2| l2.remove(line))
                        .unwrap_or(false);
            }
            if dirty && charged {
                self.write_dram(line);
            }
        }
    }

    pub fn access(
        &mut self,
        core: usize,
        line: u64,
        d: Domain,
        kind: LineKind,
        stamp: u64,
        now: u64,
    ) -> (Level, Stalls) {
        self.core = core;
        self.now = now;
        self.stalls = Stalls::default();
        self.look(line / 64, d, true);
        self.domains.insert(line / 64, d);
        let stamp = Some(stamp as i64);
        let level = match kind {
            LineKind::Load | LineKind::Store => {
                let write = kind == LineKind::Store;
                if self.cores[core].l1d.hit(line, stamp) {
                    if write && !self.cores[core].l1d.is_dirty(line) {
                        self.invalidate_others(line);
                        self.cores[core].l1d.get(line).expect("hit").dirty = true;
                    }
                    Level::L1
                } else {
                    self.cores[core].counters.l1d.misses[kind_index(kind)] += 1;
                    let level = self.below(line, kind);
                    let (way, out) = self.cores[core].l1d.room(line);
                    self.l1_out(out);
                    self.cores[core].l1d.put(way, line, write, stamp);
                    self.prefetch(line, d);
                    level
                }
            }
            LineKind::Fetch => {
                if self.cores[core].l1i.hit(line, stamp) {
                    Level::L1
                } else {
                    self.cores[core].counters.l1i.misses[2] += 1;
                    let level = self.below(line, kind);
                    let (way, out) = self.cores[core].l1i.room(line);
                    self.l1_out(out);
                    self.cores[core].l1i.put(way, line, false, stamp);
                    level
                }
            }
            _ => {
                let level = self.below(line, kind);
                if kind == LineKind::WalkWrite {
                    let first = self.cores[core].l2.as_mut().unwrap_or(&mut self.llc);
                    first.get(line).expect("filled just now").dirty = true;
                }
                level
            }
        };
        (level, self.stalls)
    }

    fn below(&mut self, line: u64, kind: LineKind) -> Level {
        let k = kind_index(kind);
        let write = matches!(kind, LineKind::Store | LineKind::WalkWrite);
        let core = self.core;
        let c = &mut self.cores[core];
        if let Some(l2) = &mut c.l2 {
            if l2.hit(line, None) {
                c.counters.l2.hits[k] += 1;
                self.stalls.cache = self.m.latency.l2_cycles;
                if write {
                    self.invalidate_others(line);
                }
                return Level::L2;
            }
            c.counters.l2.misses[k] += 1;
        }
        let in_llc = self.llc.hit(line, None);
        let mut remote = false;
        for i in (0..self.cores.len()).filter(|&i| i != core) {
            let c = &mut self.cores[i];
            for cache in [Some(&mut c.l1d), c.l2.as_mut()].into_iter().flatten() {
                if let Some(e) = cache.get(line) {
                    remote |= e.dirty;
                    e.dirty = false;
                }
            }
        }
        if write {
            self.invalidate_others(line);
        }
        let counters = &mut self.cores[core].counters;
        let level = if remote {
            counters.remote += 1;
            counters.llc.hits[k] += 1;
            self.stalls.cache = self.m.latency.remote_cycles;
            Level::Remote
        } else if in_llc {
            counters.llc.hits[k] += 1;
            self.stalls.cache = self.m.latency.llc_cycles;
            Level::Llc
        } else {
            counters.llc.misses[k] += 1;
            self.stalls.cache = self.m.latency.llc_cycles;
            Level::Dram
        };
        if !in_llc {
            self.fill_llc(line, remote);
        } else if remote {
            self.llc.get(line).expect("hit").dirty = true;
        }
        if level == Level::Dram {
            self.read_dram(line, true);
        }
        self.fill_l2(line, false);
        level
    }

    fn invalidate_others(&mut self, line: u64) {
        let core = self.core;
        let mut any = false;
        for i in (0..self.cores.len()).filter(|&i| i != core) {
            let c = &mut self.cores[i];
            let had = [
                c.l1i.remove(line).is_some(),
                c.l1d.remove(line).is_some(),
                c.l2.as_mut().is_some_and(|l2| l2.remove(line).is_some()),
            ];
            c.counters.l1i.invalidated += u64::from(had[0]);
            c.counters.l1d.invalidated += u64::from(had[1]);
            c.counters.l2.invalidated += u64::from(had[2]);
            any |= had.contains(&true);
        }
        if any {
            self.cores[core].counters.upgrades += 1;
            self.stalls.upgrade += self.m.latency.upgrade_cycles;
        }
    }

    fn fill_llc(&mut self, line: u64, dirty: bool) {
        let (way, out) = self.llc.room(line);
        if let Some(out) = out {
            let mut dirty = out.dirty;
            if self.m.llc_inclusion == Inclusion::Inclusive {
                for c in &mut self.cores {
                    if c.l1i.remove(out.line).is_some() {
                        c.counters.l1i.back_invalidated += 1;
                    }
                    if let Some(d) = c.l1d.remove(out.line) {
                        c.counters.l1d.back_invalidated += 1;
                        dirty |= d;
                    }
                    if let Some(d) = c.l2.as_mut().and_then(|l2| l2.remove(out.line)) {
                        c.counters.l2.back_invalidated += 1;
                        dirty |= d;
                    }
                }
            }
            if dirty {
                self.write_dram(out.line);
            }
        }
        self.llc.put(way, line, dirty, None);
    }

    fn give_llc(&mut self, line: u64) {
        match self.llc.get(line) {
            Some(e) => e.dirty = true,
            None => self.fill_llc(line, true),
        }
    }

    fn fill_l2(&mut self, line: u64, dirty: bool) {
        let core = self.core;
        let Some(l2) = &mut self.cores[core].l2 else {
            return;
        };
        let (way, out) = l2.room(line);
        if let Some(out) = out.filter(|o| o.dirty) {
            self.cores[core].counters.l2.write_backs += 1;
            self.give_llc(out.line);
        }
        let l2 = self.cores[core].l2.as_mut().expect("there");
        l2.put(way, line, dirty, None);
    }

    fn l1_out(&mut self, out: Option<cache::Entry>) {
        let Some(out) = out.filter(|o| o.dirty) else {
            return;
        };
        let c = &mut self.cores[self.core];
        c.counters.l1d.write_backs += 1;
        match &mut c.l2 {
            None => self.give_llc(out.line),
            Some(l2) => match l2.get(out.line) {
                Some(e) => e.dirty = true,
                None => self.fill_l2(out.line, true),
            },
        }
    }

    fn prefetch(&mut self, line: u64, d: Domain) {
        let before = self.stalls;
        let mut wanted = Vec::new();
        let at = (line % 64) as i64;
        if self.m.prefetch.next_line {
            wanted.push(at + 1);
        }
        if self.m.prefetch.stride {
            let streams = &mut self.cores[self.core].streams;
            let page = line / 64;
            let s = streams.entry(page % 16).or_insert((u64::MAX, 0, 0, false));
            if s.0 != page {
                *s = (page, at, 0, false);
            } else if at != s.1 {
                let d = at - s.1;
                *s = (page, at, d, d == s.2);
                if s.3 {
                    wanted.extend((1..=i64::from(self.m.prefetch.degree)).map(|n| at + n * d));
                }
            }
        }
        for to in wanted.into_iter().filter(|to| (0..64).contains(to)) {
            let line = line / 64 * 64 + to as u64;
            let core = self.core;
            let in_llc = self.llc.has(line);
            let there = match &mut self.cores[core].l2 {
                Some(l2) => l2.has(line),
                None => in_llc,
            };
            let dirty_elsewhere = (0..self.cores.len()).filter(|&i| i != core).any(|i| {
                let c = &mut self.cores[i];
                c.l1d.is_dirty(line) || c.l2.as_mut().is_some_and(|l2| l2.is_dirty(line))
            });
            if there || dirty_elsewhere {
                continue;
            }
            self.domains.insert(line / 64, d);
            if !in_llc {
                self.fill_llc(line, false);
                self.read_dram(line, false);
                self.cores[core].counters.llc.prefetched += 1;
            }
            if self.cores[core].l2.is_some() {
                self.fill_l2(line, false);
                self.cores[core].counters.l2.prefetched += 1;
            }
        }
        self.stalls = before;
    }

    /// When the channel is free, and whether the row was open.
    fn turn(&mut self, line: u64) -> (u64, u64, Option<bool>) {
        let d = &self.m.dram;
        if d.model == DramModel::Flat {
            return (0, self.now, None);
        }
        let channels = u64::from(d.channels);
        let (ch, row) = (line % channels, line / channels / (d.row_bytes / 64));
        let (bank, row) = (row % u64::from(d.banks), row / u64::from(d.banks));
        let open = self.rows.insert((ch, bank), row) == Some(row);
        let busy = self.cores[self.core].busy.entry(ch).or_insert(0);
        let start = self.now.max(*busy);
        *busy = start + self.m.cycles(self.m.dram.line_ns);
        let c = &mut self.cores[self.core].counters;
        if open {
            c.row_hits += 1;
        } else {
            c.row_misses += 1;
        }
        (ch, start, Some(open))
    }

    fn aes_turn(&mut self, ch: u64, start: u64) -> u64 {
        let line = self.m.cycles(self.m.latency.aes_line_ns);
        let busy = self.cores[self.core].aes_busy.entry(ch).or_insert(0);
        let at = start.max(*busy);
        *busy = at + line;
        at
    }

    fn read_dram(&mut self, line: u64, demand: bool) {
        let encrypted = self.domains[&(line / 64)] != Domain::Shared;
        let (ch, start, open) = self.turn(line);
        let l = &self.m.latency;
        let mut dram = start - self.now + self.m.cycles(l.dram_ns);
        if open == Some(false) {
            dram += self.m.cycles(l.dram_row_ns);
        }
        let mut aes = 0;
        if encrypted {
            aes = self.aes_turn(ch, start) - start + self.m.cycles(self.m.latency.aes_ns);
        }
        let c = &mut self.cores[self.core].counters;
        if encrypted {
            c.dram_reads_encrypted += 1;
        } else {
            c.dram_reads_plain += 1;
        }
        if demand {
            self.stalls.dram += dram as u32;
            self.stalls.aes += aes as u32;
        }
    }

    fn write_dram(&mut self, line: u64) {
        let encrypted = self.domains[&(line / 64)] != Domain::Shared;
        let (ch, start, _) = self.turn(line);
        let mut cost = self.m.cycles(self.m.latency.dram_write_ns);
        if encrypted {
            self.aes_turn(ch, start);
            cost += self.m.cycles(self.m.latency.aes_write_ns);
        }
        self.stalls.write_back += cost as u32;
        let c = &mut self.cores[self.core].counters;
        c.llc.write_backs += 1;
        if encrypted {
            c.dram_writes_encrypted += 1;
        } else {
            c.dram_writes_plain += 1;
        }
    }
}
