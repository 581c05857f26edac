//! The memory controller's paths by cost: what a TLB fill pays on a hit, what a page costs in and out, what an access costs when
//! nothing is cached.
//!
//! `cargo bench -p sevlab-benches --bench memctl`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, FastTlb, MemCtl, MemoryKey, Perms};

const D: Domain = Domain::Private(Asid(1));

fn machine(cipher: CipherKind, cache: CacheMode, resident: Option<usize>) -> Arc<MemCtl> {
    let cfg = Config {
        size: 256 << 20,
        cipher,
        cache,
        resident,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp: false,
    };
    let m = MemCtl::new(cfg).expect("configuration");
    let key = MemoryKey::random(cipher).expect("key");
    m.install_key(Asid(1), key).expect("key");
    m
}

fn hits(c: &mut Criterion) {
    let mut g = c.benchmark_group("hit");
    for (name, resident) in [("no limit", None), ("with a limit", Some(1024))] {
        let m = machine(CipherKind::Aes128Xex, CacheMode::Page, resident);
        let tlb = Arc::new(FastTlb::new());
        m.attach_tlb(Arc::clone(&tlb));
        for p in 0..512u64 {
            m.zero_page(D, Spa(p << 12)).expect("page");
        }
        let mut p = 0;
        let mut next = move || {
            p = (p + 7) % 512;
            p << 12
        };
        g.bench_function(format!("host_page, {name}"), |b| {
            b.iter(|| m.host_page(D, black_box(Spa(next())), true));
        });
        g.bench_function(format!("read_u64, {name}"), |b| {
            b.iter(|| m.read_u64(D, black_box(Spa(next()))));
        });
        g.bench_function(format!("fill_tlb, {name}"), |b| {
            b.iter(|| {
                let a = black_box(next());
                m.fill_tlb(&tlb, Va(a), D, Spa(a), Perms::RW)
            });
        });
    }
    let m = machine(CipherKind::Aes128Xex, CacheMode::Page, None);
    g.bench_function("host_page, shared", |b| {
        b.iter(|| m.host_page(Domain::Shared, black_box(Spa(0x5000)), true));
    });
    g.finish();
}

/// Each iteration brings one page in and pushes the oldest out.
fn cycles(c: &mut Criterion) {
    for cipher in CipherKind::ALL {
        let mut g = c.benchmark_group(format!("page in, page out/{cipher}"));
        g.throughput(Throughput::Bytes(4096));
        for (name, write) in [("clean", false), ("dirty", true)] {
            let m = machine(cipher, CacheMode::Page, Some(64));
            let tlb = Arc::new(FastTlb::new());
            m.attach_tlb(Arc::clone(&tlb));
            let perms = Perms {
                r: true,
                w: write,
                x: false,
            };
            let mut p = 0;
            g.bench_function(name, |b| {
                b.iter(|| {
                    p = (p + 1) % 256;
                    let a = black_box(p << 12);
                    m.fill_tlb(&tlb, Va(a), D, Spa(a), perms)
                });
            });
        }
        g.finish();
    }
}

fn uncached(c: &mut Criterion) {
    for cipher in CipherKind::ALL {
        let mut g = c.benchmark_group(format!("none/{cipher}"));
        let m = machine(cipher, CacheMode::None, None);
        let mut a = 0;
        let mut next = move || {
            a = (a + 0x248) & 0xf_fff8;
            Spa(a)
        };
        g.bench_function("read 8", |b| b.iter(|| m.read_u64(D, black_box(next()))));
        g.bench_function("write 8", |b| {
            b.iter(|| m.write_u64(D, black_box(next()), 1))
        });
        let mut line = [0; 64];
        g.bench_function("read 64", |b| {
            b.iter(|| m.read(D, black_box(Spa(next().0 & !63)), &mut line))
        });
        g.finish();
    }
}

criterion_group!(benches, hits, cycles, uncached);
criterion_main!(benches);
