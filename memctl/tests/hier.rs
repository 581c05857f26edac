//! The cache hierarchy against a naive one, on random streams: who serves what, what it costs, every counter, which lines are
//! cached and dirty, and the data, with the filters in the loop.
#![allow(unsafe_code)] // reads and writes through host pointers, as translated code does

mod common;
mod hier_naive;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use common::{ONE, Rng, TWO, config, machine};
use hier_naive::Naive;
use sevlab_arch::{Spa, Va};
use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch,
};
use sevlab_memctl::{
    CacheMode, CipherKind, Domain, Error, FetchFilter, Grant, Level, Line, LineFilter, LineKind,
    MemCtl, Near, Served, Stalls,
};

const PAGES: u64 = 12;
const BASE: u64 = 0x10_0000;

fn cache(sets: u64, ways: u32, policy: Policy) -> Cache {
    Cache {
        size: sets * 64 * u64::from(ways),
        ways,
        policy,
    }
}

fn model() -> Model {
    Model {
        name: "tiny".into(),
        core: Core {
            model: CoreModel::Simple,
            clock_mhz: 1000,
            window: 1,
            mshrs: 1,
        },
        l1i: cache(2, 2, Policy::Lru),
        l1d: cache(2, 4, Policy::Lru),
        l2: Some(cache(4, 4, Policy::Lru)),
        llc: cache(8, 4, Policy::Lru),
        llc_inclusion: Inclusion::Inclusive,
        prefetch: Prefetch::default(),
        tlb: None,
        dram: Dram {
            model: DramModel::Flat,
            channels: 2,
            banks: 4,
            row_bytes: 256,
            line_ns: 9.0,
        },
        latency: Latency {
            l1d_cycles: 3,
            l1i_cycles: 0,
            l2_cycles: 11,
            llc_cycles: 41,
            remote_cycles: 97,
            upgrade_cycles: 29,
            dram_ns: 83.0,
            dram_row_ns: 17.0,
            dram_write_ns: 5.0,
            aes_ns: 7.0,
            aes_write_ns: 2.0,
            aes_line_ns: 13.0,
            tlb2_cycles: 0,
            walk_cycles: 0,
            rmp_cycles: 0,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    }
}

/// A random model with few lines, so that everything happens often.
fn random_model(r: &mut Rng) -> Model {
    let policies = [
        Policy::Lru,
        Policy::Lru,
        Policy::TreePlru,
        Policy::Nru,
        Policy::Fifo,
        Policy::Random,
    ];
    let mut any = |sets: u64, most: u64| {
        let policy = policies[r.below(6) as usize];
        let mut ways = 1 + r.below(most) as u32;
        if policy == Policy::TreePlru {
            ways = ways.next_power_of_two();
        }
        cache(1 << r.below(sets), ways, policy)
    };
    let mut m = model();
    m.l1i = any(2, 4);
    m.l1d = any(3, 9);
    m.l2 = Some(any(3, 8));
    m.llc = any(4, 17);
    if r.below(3) == 0 {
        m.l2 = None;
    }
    if r.below(2) == 0 {
        m.llc_inclusion = Inclusion::NonInclusive;
    }
    m.prefetch = Prefetch {
        next_line: r.below(3) == 0,
        stride: r.below(3) == 0,
        degree: 1 + r.below(4) as u32,
    };
    if r.below(2) == 0 {
        m.dram.model = DramModel::Banks;
    }
    m
}

fn build(m: &Model, cipher: CipherKind, cores: usize) -> Arc<MemCtl> {
    let mut cfg = config(cipher, CacheMode::Hierarchy);
    cfg.hierarchy = Some(Arc::new(m.clone()));
    cfg.cores = cores;
    machine(cfg)
}

struct Seat {
    data: Arc<LineFilter>,
    fetch: Arc<FetchFilter>,
    clock: u64,
    cycles: u64,
}

fn seat(m: &MemCtl, core: usize) -> Seat {
    let (data, fetch) = (LineFilter::new(), FetchFilter::new());
    m.attach_core(core, Arc::clone(&data), Arc::clone(&fetch))
        .expect("core");
    Seat {
        data,
        fetch,
        clock: 0,
        cycles: 0,
    }
}

fn get(p: NonNull<u8>, n: usize) -> Vec<u8> {
    // SAFETY: `p` is inside a cached line just handed out, with `n` bytes before its end.
    (0..n).map(|i| unsafe { p.add(i).read() }).collect()
}

fn put(p: NonNull<u8>, data: &[u8]) {
    for (i, &b) in data.iter().enumerate() {
        // SAFETY: as in `get`; the line was taken for a store.
        unsafe { p.add(i).write(b) }
    }
}

/// Hits of the filters, and lines whose DRAM was old because a cache had them dirty: both must happen, or nothing was tested.
#[derive(Default, Debug)]
struct Seen {
    filter_hits: u64,
    accesses: u64,
    stale: u64,
    levels: BTreeMap<String, u64>,
}

struct Run {
    model: Model,
    real: Arc<MemCtl>,
    /// The same accesses without caches: what data and DRAM must be.
    plain: Arc<MemCtl>,
    naive: Naive,
    seats: Vec<Seat>,
    rng: Rng,
    seen: Seen,
    /// The domain that a page is mostly used under.
    domains: Vec<Domain>,
    /// Lines by first use.
    recent: Vec<u64>,
}

impl Run {
    fn new(m: &Model, cores: usize, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let cipher = CipherKind::ALL[rng.below(3) as usize];
        let real = build(m, cipher, cores);
        let seats = (0..cores).map(|c| seat(&real, c)).collect();
        let mut naive = Naive::new(m, cores);
        (0..cores).for_each(|c| naive.rebase(c));
        Self {
            model: m.clone(),
            real,
            plain: machine(config(cipher, CacheMode::None)),
            naive,
            seats,
            domains: (0..PAGES)
                .map(|p| [ONE, ONE, Domain::Shared][p as usize % 3])
                .collect(),
            rng,
            recent: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.rng.below(200) {
            0..180 => self.access(),
            180..187 => self.kernel(),
            187..190 => {
                let (core, page) = (self.core(), self.page());
                let alias = self.alias();
                let va = Va((page << 12) + alias);
                match self.rng.below(8) {
                    0 => self.seats[core].data.drop_write_tags_of(va),
                    1 => self.seats[core].fetch.drop_va_page(va),
                    2..4 => self.seats[core].data.put_to_sleep(va),
                    4..6 => self.seats[core].data.wake(va),
                    6 => self.seats[core].data.forget_sleeping(va),
                    _ => self.seats[core].data.drop_va_page(va),
                }
            }
            190 => {
                let page = self.page();
                self.real.drop_line_writes(Spa(page << 12));
            }
            191 => {
                let core = self.core();
                self.seats[core].data.flush();
                self.seats[core].fetch.flush();
            }
            192 => {
                let i = self.rng.below(PAGES) as usize;
                self.domains[i] = [ONE, TWO, Domain::Shared][self.rng.below(3) as usize];
            }
            193 => {
                // Looks that change nothing in the model.
                let mut b = [0; 300];
                let at = Spa((self.page() << 12) + self.rng.below(3000));
                self.real.bus_read(at, &mut b);
                let mut want = [0; 300];
                self.plain.bus_read(at, &mut want);
                assert_eq!(b, want, "bus at {at}");
            }
            194 => {
                let core = self.core();
                if self.rng.below(2) == 0 {
                    self.real.detach_core(core);
                }
                self.seats[core] = seat(&self.real, core);
                self.naive.rebase(core);
            }
            195 => {
                let page = self.page();
                self.real
                    .host_page(Domain::Shared, Spa(page << 12), true)
                    .expect("page");
                self.naive.look(page, Domain::Shared, false);
            }
            _ => self.seats.iter_mut().for_each(|s| s.cycles += 100),
        }
    }

    fn core(&mut self) -> usize {
        self.rng.below(self.seats.len() as u64) as usize
    }

    fn page(&mut self) -> u64 {
        (BASE >> 12) + self.rng.below(PAGES)
    }

    /// Virtual addresses are physical ones plus one of these.
    fn alias(&mut self) -> u64 {
        [
            0x40_0000_0000,
            0x40_0000_0000,
            0x40_0004_1000,
            0x7f00_0000_0000,
        ][self.rng.below(4) as usize]
    }

    fn domain(&mut self, page: u64) -> Domain {
        match self.rng.below(400) {
            0 => TWO,
            1 => Domain::Shared,
            _ => self.domains[(page - (BASE >> 12)) as usize],
        }
    }

    /// One instruction: one or more touches with one stamp.
    fn access(&mut self) {
        let core = self.core();
        self.seats[core].clock += 1;
        let stamp = self.seats[core].clock;
        for _ in 0..1 + self.rng.below(8) / 6 {
            self.touch(core, stamp);
        }
    }

    /// An access by the short way, if it takes that.
    fn near(&self, core: usize, line: &Line) -> Served {
        let m = &self.model;
        let of = |host, level, cache| Served {
            host,
            level,
            stalls: Stalls {
                cache,
                ..Stalls::default()
            },
        };
        let second = |host| match m.l2 {
            Some(_) => of(host, Level::L2, m.latency.l2_cycles),
            None => of(host, Level::Llc, m.latency.llc_cycles),
        };
        match self.real.near(core, line, || line.now).expect("line") {
            Near::First(host) => of(host, Level::L1, 0),
            Near::Second(host) => second(host),
            Near::Beyond(served) => served,
            Near::Due => match self.real.finish(core, line, line.now) {
                Some(Near::Second(host)) => second(host),
                other => panic!("a prefetch ends as {other:?}"),
            },
        }
    }

    fn touch(&mut self, core: usize, stamp: u64) {
        // Mostly lines that were used lately, else few lines of a page, all of them in a row, or any.
        let recent = self.rng.below(8);
        let line = match self.recent.len() as u64 {
            n if n > 0 && recent < 6 => self.recent[(n - 1 - self.rng.below(n.min(8))) as usize],
            _ => {
                let in_page = match self.rng.below(3) {
                    0 => self.seats[core].clock % 64,
                    1 => self.rng.below(4),
                    _ => self.rng.below(64),
                };
                let line = self.page() << 6 | in_page;
                self.recent.push(line);
                line
            }
        };
        let page = line >> 6;
        let d = self.domain(page);
        let kind = match self.rng.below(24) {
            0..10 => LineKind::Load,
            10..18 => LineKind::Store,
            18..21 => LineKind::Fetch,
            21 => LineKind::Walk,
            22 => LineKind::WalkWrite,
            _ => LineKind::Rmp,
        };
        let at = self.rng.below(57);
        let n = 1 + self.rng.below(8).min(63 - at);
        let spa = Spa((line << 6) + at);
        let va = Va(spa.0 + self.alias());
        let now = self.seats[core].cycles;
        self.seen.accesses += 1;
        // The filter's tags know no domains: whoever changes a page's domain flushes the TLB first.
        let other = self.naive.domain_of(page).is_some_and(|now| now != d);
        let seat = &self.seats[core];
        let hit = match kind {
            _ if other => None,
            LineKind::Load => seat.data.hit(va, n, false, stamp),
            LineKind::Store => seat.data.hit(va, n, true, stamp),
            LineKind::Fetch => seat.fetch.hit(va, stamp).then(NonNull::dangling),
            _ => None,
        };
        let (level, stalls) = self.naive.access(core, line, d, kind, stamp, now);
        let host = if let Some(host) = hit {
            self.seen.filter_hits += 1;
            assert_eq!(level, Level::L1, "the filter hit {kind:?} of {spa}");
            assert_eq!(stalls.total(), 0);
            host
        } else {
            let line = Line {
                va,
                spa,
                domain: d,
                kind,
                grant: Grant {
                    read: self.rng.below(20) != 0,
                    write: self.rng.below(4) != 0,
                },
                stamp,
                now,
            };
            let walks = matches!(kind, LineKind::Walk | LineKind::WalkWrite | LineKind::Rmp);
            let short = !walks && self.rng.below(2) == 0;
            let served = if short {
                self.near(core, &line)
            } else {
                self.real.line(core, &line).expect("line")
            };
            assert_eq!(
                (served.level, served.stalls),
                (level, stalls),
                "{kind:?} of {spa}"
            );
            // SAFETY: inside the line.
            unsafe { served.host.add(at as usize) }
        };
        *self.seen.levels.entry(format!("{level:?}")).or_insert(0) += 1;
        self.seats[core].cycles += stalls.total();
        let n = n as usize;
        match kind {
            LineKind::Store => {
                let data: Vec<u8> = (0..n).map(|_| self.rng.next() as u8).collect();
                put(host, &data);
                self.plain.write(d, spa, &data).expect("write");
            }
            LineKind::Load => {
                let mut want = vec![0; n];
                self.plain.read(d, spa, &mut want).expect("read");
                assert_eq!(get(host, n), want, "data at {spa}");
            }
            _ => {}
        }
    }

    fn kernel(&mut self) {
        let page = self.page();
        let d = self.domain(page);
        let len = [1, 8, 100, 1500][self.rng.below(4) as usize];
        let at = Spa((page << 12) + self.rng.below(4096 - len));
        let len = len as usize;
        match self.rng.below(4) {
            0 => {
                let data: Vec<u8> = (0..len).map(|_| self.rng.next() as u8).collect();
                self.real.write(d, at, &data).expect("write");
                self.plain.write(d, at, &data).expect("write");
            }
            1 => {
                let (at, bits) = (Spa(at.0 & !7), self.rng.next());
                self.real.or_u64(d, at, bits).expect("or");
                self.plain.or_u64(d, at, bits).expect("or");
            }
            2 => {
                let at = Spa(at.0 & !7);
                let got = self.real.read_u64(d, at).expect("read");
                assert_eq!(got, self.plain.read_u64(d, at).expect("read"));
            }
            _ => {
                let (mut got, mut want) = (vec![0; len], vec![0; len]);
                self.real.read(d, at, &mut got).expect("read");
                self.plain.read(d, at, &mut want).expect("read");
                assert_eq!(got, want, "kernel's read at {at}");
            }
        }
        self.naive.look(page, d, false);
    }

    /// Everything that can be seen.
    fn check(&mut self) {
        for core in 0..self.seats.len() {
            assert_eq!(
                self.real.hier_counters(core),
                self.naive.cores[core].counters,
                "core {core}"
            );
        }
        let want = self.naive.cached();
        let got: BTreeMap<u64, bool> = self
            .real
            .cached_lines()
            .iter()
            .map(|(s, d)| (s.0 >> 6, *d))
            .collect();
        assert_eq!(got, want);
        for line in BASE >> 6..(BASE >> 6) + PAGES * 64 {
            let spa = Spa(line << 6);
            assert_eq!(
                self.real.is_line_cached(spa),
                want.contains_key(&line),
                "{spa}"
            );
            let (mut now, mut right) = ([0; 64], [0; 64]);
            self.real.dram_now(spa, &mut now);
            self.plain.bus_read(spa, &mut right);
            if want.get(&line) != Some(&true) {
                assert_eq!(now, right, "DRAM of {spa}, which no cache has dirty");
            } else if now != right {
                self.seen.stale += 1;
            }
        }
    }
}

fn run(m: &Model, cores: usize, seed: u64, steps: u64) -> Seen {
    let mut run = Run::new(m, cores, seed);
    for i in 0..steps {
        run.step();
        if i % 64 == 0 {
            run.check();
        }
    }
    run.check();
    run.seen
}

impl Seen {
    fn add(&mut self, s: Self) {
        self.filter_hits += s.filter_hits;
        self.accesses += s.accesses;
        self.stale += s.stale;
        for (l, n) in s.levels {
            *self.levels.entry(l).or_insert(0) += n;
        }
    }
}

fn enough(s: &Seen) {
    assert!(s.filter_hits * 20 > s.accesses, "{s:?}");
    assert!(s.stale > 0, "{s:?}");
}

#[test]
fn every_policy_at_every_level() {
    for (i, policy) in [
        Policy::Lru,
        Policy::TreePlru,
        Policy::Nru,
        Policy::Fifo,
        Policy::Random,
    ]
    .into_iter()
    .enumerate()
    {
        for inclusion in [Inclusion::Inclusive, Inclusion::NonInclusive] {
            let mut m = model();
            m.llc_inclusion = inclusion;
            m.l1i.policy = policy;
            m.l1d = cache(4, 8, policy);
            m.l2 = Some(cache(4, 8, policy));
            m.llc = cache(16, 16, policy);
            enough(&run(&m, 1, 100 + i as u64, 6000));
        }
    }
}

/// Machines of the kind that short ways are for.
#[test]
fn random_models_of_the_usual_kind() {
    let mut all = Seen::default();
    for seed in 0..150 {
        let r = &mut Rng(seed ^ 0x5157);
        let mut any = |sets: u64, most: u64| {
            let ways = 1 + r.below(most) as u32;
            cache(1 << r.below(sets), ways, Policy::Lru)
        };
        let mut m = model();
        m.l1i = any(3, 8);
        m.l1d = any(3, 8);
        m.l2 = Some(any(4, 8));
        m.llc = any(5, 16);
        if r.below(3) == 0 {
            m.l2 = None;
        }
        if r.below(2) == 0 {
            m.llc_inclusion = Inclusion::NonInclusive;
        }
        m.prefetch.stride = r.below(2) == 0;
        m.prefetch.degree = 1 + r.below(4) as u32;
        if r.below(2) == 0 {
            m.dram.model = DramModel::Banks;
        }
        let cores = if seed % 4 == 0 { 2 } else { 1 };
        all.add(run(&m, cores, seed, 2500));
    }
    enough(&all);
    assert_eq!(all.levels.len(), 5, "every level served: {all:?}");
}

#[test]
fn random_models() {
    let mut all = Seen::default();
    for seed in 0..60 {
        let m = random_model(&mut Rng(seed));
        all.add(run(&m, 1 + (seed % 3) as usize, seed, 2500));
    }
    enough(&all);
    assert_eq!(all.levels.len(), 5, "every level served: {all:?}");
}

#[test]
fn bad_geometry_names_its_field() {
    let with = |change: fn(&mut Model)| {
        let mut m = model();
        change(&mut m);
        let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Hierarchy);
        cfg.hierarchy = Some(Arc::new(m));
        match MemCtl::new(cfg) {
            Err(Error::Hierarchy { field, .. }) => field,
            Err(e) => panic!("{e}"),
            Ok(_) => "",
        }
    };
    assert_eq!(with(|_| {}), "");
    assert_eq!(with(|m| m.l1d.ways = 0), "l1d.ways");
    assert_eq!(with(|m| m.l1i.size = 0), "l1i.size");
    assert_eq!(with(|m| m.llc.size = 3 * 64 * 4), "llc.size");
    assert_eq!(
        with(|m| m.l2 = Some(cache(4, 3, Policy::TreePlru))),
        "l2.ways"
    );
    assert_eq!(
        with(|m| m.l2 = Some(cache(4, 65, Policy::Nru))),
        "l2.policy"
    );
    assert_eq!(with(|m| m.latency.aes_ns = -1.0), "latency.aes_ns");
    assert_eq!(with(|m| m.latency.dram_ns = f64::NAN), "latency.dram_ns");
    assert_eq!(with(|m| m.core.clock_mhz = 0), "core.clock_mhz");
    assert_eq!(
        with(|m| {
            m.dram.model = DramModel::Banks;
            m.dram.channels = 0;
        }),
        "dram.channels"
    );
    let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
    cfg.hierarchy = Some(Arc::new(model()));
    assert!(MemCtl::new(cfg).is_err(), "a model without its mode");
    let cfg = config(CipherKind::Aes128Xex, CacheMode::Hierarchy);
    assert!(MemCtl::new(cfg).is_err(), "the mode without a model");
}
