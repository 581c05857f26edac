//! What an access costs that the filter does not know: `MemCtl::near` and `MemCtl::line` by the level that serves it, and by the size of the
//! data that a guest goes through. Time of the simulator, not of the simulated machine.
//!
//! `cargo bench -p sevlab-benches --bench hier`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch,
};
use sevlab_memctl::{
    CacheMode, CipherKind, Config, Domain, FetchFilter, Grant, Line, LineFilter, LineKind, MemCtl,
    MemoryKey,
};

const PRIVATE: Domain = Domain::Private(Asid(1));

/// The size of an EPYC 7003's caches, with a CCX's L3 cut to `llc` bytes.
fn model(llc: u64, inclusion: Inclusion, policy: Policy) -> Model {
    let cache = |size, ways| Cache { size, ways, policy };
    Model {
        name: "bench".into(),
        core: Core {
            model: CoreModel::Simple,
            clock_mhz: 3000,
            window: 256,
            mshrs: 16,
        },
        l1i: cache(32 << 10, 8),
        l1d: cache(32 << 10, 8),
        l2: Some(cache(512 << 10, 8)),
        llc: cache(llc, 16),
        llc_inclusion: inclusion,
        prefetch: Prefetch::default(),
        tlb: None,
        dram: Dram {
            model: DramModel::Flat,
            channels: 1,
            banks: 16,
            row_bytes: 8192,
            line_ns: 0.0,
        },
        latency: Latency {
            l1d_cycles: 3,
            l1i_cycles: 0,
            l2_cycles: 12,
            llc_cycles: 46,
            remote_cycles: 100,
            upgrade_cycles: 50,
            dram_ns: 80.0,
            dram_row_ns: 0.0,
            dram_write_ns: 0.0,
            aes_ns: 7.0,
            aes_write_ns: 0.0,
            aes_line_ns: 0.0,
            tlb2_cycles: 7,
            walk_cycles: 0,
            rmp_cycles: 0,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    }
}

fn machine(m: Model) -> Arc<MemCtl> {
    let cipher = CipherKind::Aes128Xex;
    let m = MemCtl::new(Config {
        size: 512 << 20,
        cipher,
        cache: CacheMode::Hierarchy,
        resident: None,
        tweak_seed: 1,
        hierarchy: Some(Arc::new(m)),
        cores: 4,
        snp: false,
    })
    .expect("configuration");
    m.install_key(Asid(1), MemoryKey::random(cipher).expect("key"))
        .expect("key");
    m.attach_core(0, LineFilter::new(), FetchFilter::new())
        .expect("core");
    m
}

/// Touches lines of `bytes` at random, `stores` of 8 as stores.
struct Guest {
    m: Arc<MemCtl>,
    lines: u64,
    stores: u64,
    domain: Domain,
    rng: u64,
    clock: u64,
}

impl Guest {
    fn new(m: &Arc<MemCtl>, bytes: u64, stores: u64, domain: Domain) -> Self {
        let mut g = Self {
            m: Arc::clone(m),
            lines: bytes / 64,
            stores,
            domain,
            rng: 1,
            clock: 0,
        };
        (0..g.lines).for_each(|l| g.touch(l, stores != 0));
        g
    }

    #[inline]
    fn touch(&mut self, line: u64, store: bool) {
        self.clock += 1;
        let at = line << 6;
        let a = Line {
            va: Va(at),
            spa: Spa(at),
            domain: self.domain,
            kind: if store {
                LineKind::Store
            } else {
                LineKind::Load
            },
            grant: Grant {
                read: true,
                write: true,
            },
            stamp: self.clock,
            now: self.clock,
        };
        // As a core does it.
        black_box(self.m.near(0, black_box(&a), || a.now).expect("line"));
    }

    #[inline]
    fn random(&mut self) {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        let line = ((self.rng >> 32) * self.lines) >> 32;
        self.touch(line, self.rng >> 10 & 7 < self.stores);
    }
}

/// Nanoseconds that this thread has had a CPU: what a loaded host does not add to.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = stat.split_whitespace().next().expect("a figure");
    first.parse().expect("a number")
}

fn timed(n: u64, mut f: impl FnMut()) -> Duration {
    let start = cpu_ns();
    (0..n).for_each(|_| f());
    Duration::from_nanos(cpu_ns() - start)
}

/// Random lines of as much as the level just holds.
fn levels(c: &mut Criterion) {
    let mut g = c.benchmark_group("line");
    for (name, bytes, stores, domain) in [
        ("L1 hit", 24 << 10, 2, PRIVATE),
        ("L2 hit", 256 << 10, 2, PRIVATE),
        ("LLC hit", 6 << 20, 2, PRIVATE),
        ("DRAM 64 MiB, loads", 64 << 20, 0, PRIVATE),
        ("DRAM 64 MiB, stores", 64 << 20, 8, PRIVATE),
        ("DRAM 64 MiB, loads, shared", 64 << 20, 0, Domain::Shared),
        ("DRAM 64 MiB, stores, shared", 64 << 20, 8, Domain::Shared),
    ] {
        for inclusion in [Inclusion::Inclusive, Inclusion::NonInclusive] {
            let m = machine(model(8 << 20, inclusion, Policy::Lru));
            let mut guest = Guest::new(&m, bytes, stores, domain);
            let kind = if inclusion == Inclusion::Inclusive {
                ""
            } else {
                ", non-inclusive"
            };
            g.bench_function(format!("{name}{kind}"), |b| {
                b.iter_custom(|n| timed(n, || guest.random()));
            });
        }
    }
    for policy in [Policy::TreePlru, Policy::Nru, Policy::Fifo, Policy::Random] {
        let m = machine(model(8 << 20, Inclusion::Inclusive, policy));
        let mut guest = Guest::new(&m, 256 << 10, 2, PRIVATE);
        g.bench_function(format!("L2 hit, {policy:?}"), |b| {
            b.iter_custom(|n| timed(n, || guest.random()));
        });
    }
    // A large LLC, whose tags the host's own caches don't hold.
    let m = machine(model(64 << 20, Inclusion::Inclusive, Policy::Lru));
    let mut guest = Guest::new(&m, 48 << 20, 2, PRIVATE);
    g.bench_function("LLC hit of 64 MiB", |b| {
        b.iter_custom(|n| timed(n, || guest.random()));
    });
    // Lines one after the other, as programs mostly go.
    let m = machine(model(8 << 20, Inclusion::Inclusive, Policy::Lru));
    let mut guest = Guest::new(&m, 64 << 20, 0, PRIVATE);
    let mut at = 0;
    g.bench_function("DRAM 64 MiB, in order", |b| {
        b.iter_custom(|n| {
            timed(n, || {
                at = (at + 1) % guest.lines;
                guest.touch(at, false);
            })
        });
    });
    g.finish();
}

/// What the kernel pays for a page.
fn kernel(c: &mut Criterion) {
    let mut g = c.benchmark_group("kernel");
    let m = machine(model(8 << 20, Inclusion::Inclusive, Policy::Lru));
    let page = [7; 4096];
    g.bench_function("write a page that is not cached", |b| {
        b.iter_custom(|n| timed(n, || m.write(PRIVATE, Spa(64 << 20), &page).expect("write")));
    });
    let mut guest = Guest::new(&m, 4096, 8, PRIVATE);
    (0..64).for_each(|l| guest.touch(l, true));
    g.bench_function("write a page that is cached", |b| {
        b.iter_custom(|n| timed(n, || m.write(PRIVATE, Spa(0), &page).expect("write")));
    });
    g.bench_function("read_u64, cached", |b| {
        b.iter_custom(|n| {
            timed(n, || {
                black_box(m.read_u64(PRIVATE, black_box(Spa(64))).expect("read"));
            })
        });
    });
    g.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = levels, kernel
}
criterion_main!(benches);
