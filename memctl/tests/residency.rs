//! Residency: counters, the limit, host pointers, and random accesses against a plain model.
#![allow(unsafe_code)] // reads and writes through host pointers, as translated code does

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{ONE, PAGE, Rng, TWO, bus, config, everywhere, machine, pattern, read};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_memctl::{Access, CacheMode, CipherKind, Domain, FastTlb, MemCtl, Perms};

fn page(m: &MemCtl, d: Domain, a: u64, write: bool) -> NonNull<u8> {
    m.host_page(d, Spa(a), write)
        .expect("page")
        .expect("a mode with host pages")
}

fn get(p: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: `p` is a host page just handed out, `at` is below 4096.
    unsafe { p.add(at).read() }
}

fn put(p: NonNull<u8>, at: usize, v: u8) {
    // SAFETY: `p` is a host page just handed out for writing, `at` is below 4096.
    unsafe { p.add(at).write(v) }
}

#[test]
fn aes_runs_once_in_and_once_out() {
    let m = machine(config(CipherKind::Aes128Xex, CacheMode::Page));
    m.write(ONE, Spa(0x1008), &[1]).expect("write");
    m.write(ONE, Spa(0x1009), &[2]).expect("write");
    page(&m, ONE, 0x1000, true);
    let s = m.stats();
    assert_eq!(
        (s.pages_decrypted, s.pages_encrypted, s.aes_blocks),
        (1, 0, 256)
    );
    assert_eq!((s.resident, s.peak_resident, s.evictions), (1, 1, 0));
    m.write_back_all().expect("write back");
    m.write_back_all().expect("write back");
    bus::<16>(&m, 0x1000);
    assert_eq!(
        m.stats().pages_encrypted,
        1,
        "clean pages are not encrypted again"
    );
    assert_eq!(m.stats().resident, 1);
    read::<1>(&m, Domain::Shared, 0x1000);
    let s = m.stats();
    assert_eq!(
        (s.pages_encrypted, s.evictions, s.resident, s.peak_resident),
        (1, 1, 0, 1)
    );
    // Whole pages come in without AES.
    m.zero_page(ONE, Spa(0x2000)).expect("zero");
    m.write(ONE, Spa(0x3000), &pattern(1)).expect("write");
    assert_eq!(m.stats().pages_decrypted, 1);
    assert!(bus::<PAGE>(&m, 0x2000).iter().filter(|&&b| b == 0).count() < 64);
}

#[test]
fn none_mode_runs_aes_on_the_touched_blocks() {
    let m = machine(config(CipherKind::Aes128Xex, CacheMode::None));
    assert_eq!(m.host_page(ONE, Spa(0x1000), true), Ok(None));
    assert!(
        m.host_page(Domain::Shared, Spa(0x1000), true)
            .expect("page")
            .is_some()
    );
    let blocks = |f: &dyn Fn()| {
        let before = m.stats().aes_blocks;
        f();
        m.stats().aes_blocks - before
    };
    assert_eq!(blocks(&|| _ = read::<8>(&m, ONE, 0x1000)), 1);
    assert_eq!(blocks(&|| _ = read::<8>(&m, ONE, 0x100c)), 2);
    assert_eq!(blocks(&|| _ = read::<8>(&m, ONE, 0x1ffc)), 2);
    assert_eq!(blocks(&|| _ = read::<PAGE>(&m, ONE, 0x1000)), 256);
    assert_eq!(
        blocks(&|| m.write(ONE, Spa(0x1000), &[0; 8]).expect("write")),
        2
    );
    assert_eq!(
        blocks(&|| m.write(ONE, Spa(0x1000), &[0; 32]).expect("write")),
        2
    );
    assert_eq!(
        blocks(&|| m.zero_page(ONE, Spa(0x1000)).expect("zero")),
        256
    );
    assert_eq!(m.stats().resident, 0);
}

#[test]
fn host_pages_are_the_domain_s_bytes() {
    let m = machine(config(CipherKind::Aes256Xts, CacheMode::Page));
    m.write(ONE, Spa(0x1000), b"x").expect("write");
    let p = page(&m, ONE, 0x1000, true);
    assert_eq!(get(p, 0), b'x');
    put(p, 7, b'y');
    assert_eq!(read::<1>(&m, ONE, 0x1007), *b"y");
    assert_eq!(page(&m, ONE, 0x1000, false), p);
    let d = page(&m, Domain::Shared, 0x1000, true);
    assert_ne!(d, p);
    assert_eq!(get(d, 7), bus::<1>(&m, 0x1007)[0]);
    assert_eq!(
        get(page(&m, ONE, 0x1000, false), 7),
        b'y',
        "the write was written back"
    );
    // A write after a write-back is noticed, because it asks again.
    let p = page(&m, ONE, 0x2000, true);
    put(p, 0, 1);
    let raw = bus::<16>(&m, 0x2000);
    put(page(&m, ONE, 0x2000, true), 0, 2);
    assert_ne!(bus::<16>(&m, 0x2000), raw);
}

#[test]
fn the_limit_holds_and_spares_what_was_just_handed_out() {
    let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
    cfg.resident = Some(64);
    let m = machine(cfg);
    let mut rng = Rng(1);
    let mut held: Vec<(u64, NonNull<u8>)> = Vec::new();
    for i in 0..5000u64 {
        let pfn = rng.below(300);
        let p = page(&m, ONE, pfn * 4096, true);
        held.retain(|&(n, _)| n != pfn);
        held.insert(0, (pfn, p));
        held.truncate(8);
        // All of the last eight are still resident: asking again decrypts nothing.
        let before = m.stats().pages_decrypted;
        for &(n, q) in held.iter().rev() {
            assert_eq!(page(&m, ONE, n * 4096, true), q);
            put(q, (i % 4096) as usize, i as u8);
        }
        assert_eq!(m.stats().pages_decrypted, before);
        assert!(m.stats().resident <= 64);
    }
    assert_eq!((m.stats().resident, m.stats().peak_resident), (64, 64));
}

#[test]
fn an_old_page_hit_again_is_not_the_next_victim() {
    let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
    cfg.resident = Some(64);
    let m = machine(cfg);
    for pfn in 0..64 {
        page(&m, ONE, pfn * 4096, true);
    }
    page(&m, ONE, 0, true); // the oldest: held by the caller from here
    page(&m, ONE, 64 * 4096, true);
    let before = m.stats().pages_decrypted;
    page(&m, ONE, 0, true);
    assert_eq!(m.stats().pages_decrypted, before);
    page(&m, ONE, 4096, true);
    assert_eq!(
        m.stats().pages_decrypted,
        before + 1,
        "the second oldest went"
    );
}

/// A guest's view kept in plain arrays, against the machine, through every way in.
fn against_model(cipher: CipherKind, cache: CacheMode, resident: Option<usize>, seed: u64) {
    const PAGES: u64 = 160;
    let mut cfg = config(cipher, cache);
    cfg.resident = resident;
    let m = machine(cfg);
    let tlb = Arc::new(FastTlb::new());
    m.attach_tlb(Arc::clone(&tlb));
    let domains = [ONE, TWO, Domain::Shared];
    let mut owner: Vec<usize> = (0..PAGES).map(|p| p as usize % 3).collect();
    let mut model = vec![0u8; (PAGES as usize) * PAGE];
    for p in 0..PAGES {
        m.zero_page(domains[owner[p as usize]], Spa(p * 4096))
            .expect("zero");
    }
    let mut rng = Rng(seed);
    for step in 0..6000 {
        let p = rng.below(PAGES);
        let d = domains[owner[p as usize]];
        let base = p as usize * PAGE;
        let at = rng.below(4096) as usize;
        let len = [1, 8, 16, 40, 100, 4096][rng.below(6) as usize].min(4096 - at);
        let spa = Spa((base + at) as u64);
        let what = || format!("{cipher} {cache:?} {resident:?} seed {seed} step {step} page {p}");
        // Two addresses for each page: aliases in different entries.
        let va = Va(p * 4096 + (rng.below(2) << 20) + at as u64);
        match rng.below(12) {
            0..=2 => {
                let mut out = vec![0; len];
                m.read(d, spa, &mut out).expect("read");
                assert!(out == model[base + at..][..len], "read: {}", what());
            }
            3..=4 => {
                let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
                m.write(d, spa, &data).expect("write");
                model[base + at..][..len].copy_from_slice(&data);
            }
            5..=7 => {
                // As translated code: probe, on a miss fill and insert, then touch the host byte.
                let access = if rng.below(2) == 0 {
                    Access::Read
                } else {
                    Access::Write
                };
                let w = access == Access::Write;
                let host = tlb.lookup(va, 1, access).or_else(|| {
                    let perms = Perms {
                        r: true,
                        w,
                        x: false,
                    };
                    let host = m.fill_tlb(&tlb, va, d, spa.page(), perms).expect("fill")?;
                    assert_eq!(
                        tlb.lookup(va, 1, access),
                        NonNull::new(host.as_ptr().wrapping_add(at))
                    );
                    NonNull::new(host.as_ptr().wrapping_add(at))
                });
                if let Some(host) = host {
                    assert_eq!(get(host, 0), model[base + at], "probe: {}", what());
                    if w {
                        model[base + at] = rng.next() as u8;
                        put(host, 0, model[base + at]);
                    }
                }
            }
            8 => {
                // The bus looks; a shared page it sees, a private one it must not.
                let mut raw = [0; PAGE];
                m.bus_read(Spa(p * 4096), &mut raw);
                assert_eq!(
                    raw == model[base..base + PAGE],
                    d == Domain::Shared,
                    "bus: {}",
                    what()
                );
            }
            9 => {
                let v = rng.next();
                let a = Spa(spa.0 & !7);
                m.write_u64(d, a, v).expect("write");
                assert_eq!(m.read_u64(d, a), Ok(v), "u64: {}", what());
                model[a.0 as usize..][..8].copy_from_slice(&v.to_le_bytes());
            }
            10 => {
                // The page changes hands; its new owner starts with zeroes.
                owner[p as usize] = rng.below(3) as usize;
                if cache == CacheMode::None {
                    // DRAM is the only copy, so a shared mapping stays true; it is the guest that turned the C-bit.
                    tlb.drop_va(Va(p * 4096));
                    tlb.drop_va(Va(p * 4096 + (1 << 20)));
                }
                m.zero_page(domains[owner[p as usize]], Spa(p * 4096))
                    .expect("zero");
                model[base..base + PAGE].fill(0);
            }
            _ => {
                // Somebody else looks, which must change nothing.
                let other = domains[rng.below(3) as usize];
                let mut out = [0; 32];
                m.read(other, Spa(p * 4096), &mut out).expect("read");
                if let Domain::Private(asid) = d {
                    let mut out = vec![0; len];
                    m.decrypt_for_firmware(asid, spa, &mut out)
                        .expect("firmware");
                    assert!(out == model[base + at..][..len], "firmware: {}", what());
                }
            }
        }
        if let Some(limit) = resident {
            assert!(m.stats().resident <= limit as u64, "limit: {}", what());
        }
    }
    m.write_back_all().expect("write back");
    for p in 0..PAGES {
        let mut out = [0; PAGE];
        let base = p as usize * PAGE;
        match domains[owner[p as usize]] {
            Domain::Shared => m.bus_read(Spa(base as u64), &mut out),
            Domain::Private(a) => m
                .decrypt_for_firmware(a, Spa(base as u64), &mut out)
                .expect("firmware"),
        }
        assert!(
            out == model[base..base + PAGE],
            "{cipher} {cache:?} {resident:?} seed {seed}: page {p}"
        );
    }
}

#[test]
fn random_accesses_match_a_plain_model() {
    everywhere(|cipher, cache| {
        for seed in 1..4 {
            against_model(cipher, cache, None, seed);
            against_model(cipher, cache, Some(64), seed);
        }
    });
}

#[test]
fn no_tag_survives_its_page() {
    let m = machine(config(CipherKind::Aes128Xex, CacheMode::Page));
    let tlbs = [Arc::new(FastTlb::new()), Arc::new(FastTlb::new())];
    for t in &tlbs {
        m.attach_tlb(Arc::clone(t));
    }
    let aliases = [0x1000u64, 0x7f00_0000_3000, 0x55_5000].map(Va);
    let fill = |d: Domain, perms: Perms| {
        for t in &tlbs {
            for va in aliases {
                m.fill_tlb(t, va, d, Spa(0x1000), perms)
                    .expect("fill")
                    .expect("page");
            }
        }
    };
    let tags = || {
        let mut n = [0; 3];
        for t in &tlbs {
            for va in aliases {
                for (i, a) in [Access::Read, Access::Write, Access::Exec]
                    .into_iter()
                    .enumerate()
                {
                    n[i] += usize::from(t.lookup(va, 8, a).is_some());
                }
            }
        }
        n
    };
    let all = Perms {
        r: true,
        w: true,
        x: true,
    };
    type Act<'a> = &'a dyn Fn();
    let acts: [(&str, Act<'_>); 8] = [
        ("shared read", &|| _ = read::<1>(&m, Domain::Shared, 0x1800)),
        ("shared write", &|| {
            m.write_u64(Domain::Shared, Spa(0x1800), 1).expect("write")
        }),
        ("other guest", &|| _ = page(&m, TWO, 0x1000, false)),
        ("other guest zeroes", &|| {
            m.zero_page(TWO, Spa(0x1000)).expect("zero")
        }),
        ("bus write", &|| m.bus_write(Spa(0x1fff), &[1])),
        ("launch", &|| {
            m.encrypt_in_place(Asid(2), Spa(0x1000)).expect("launch")
        }),
        ("firmware write", &|| {
            m.encrypt_for_firmware(Asid(1), Spa(0xff8), &[0; 16])
                .expect("fw")
        }),
        ("new key", &|| {
            m.install_key(Asid(1), common::key(CipherKind::Aes128Xex, 1))
                .expect("key")
        }),
    ];
    for (name, act) in acts {
        fill(ONE, all);
        assert_eq!(tags(), [6, 6, 6]);
        act();
        assert_eq!(tags(), [0, 0, 0], "{name}");
    }
    // The other way: shared mappings go when a guest takes the page in.
    fill(Domain::Shared, all);
    assert_eq!(tags(), [6, 6, 6]);
    read::<1>(&m, ONE, 0x1000);
    assert_eq!(tags(), [0, 0, 0]);
    // Looking writes back: reads and fetches go on, writes have to ask.
    fill(ONE, all);
    bus::<1>(&m, 0x1000);
    assert_eq!(tags(), [6, 0, 6]);
    fill(ONE, Perms::RW);
    m.dump(&mut std::io::sink()).expect("dump");
    assert_eq!(tags(), [6, 0, 0]);
    m.remove_key(Asid(1));
    assert_eq!(tags(), [0, 0, 0]);
    // Detached: flushed, then left alone.
    fill(TWO, Perms::RW);
    m.detach_tlb(&tlbs[0]);
    assert_eq!((tlbs[0].occupied(), tlbs[1].occupied()), (0, 3));
}

#[test]
fn the_limit_drops_tags_too() {
    let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
    cfg.resident = Some(64);
    let m = machine(cfg);
    let tlb = Arc::new(FastTlb::new());
    m.attach_tlb(Arc::clone(&tlb));
    for pfn in 0..1000u64 {
        m.fill_tlb(&tlb, Va(pfn << 12), ONE, Spa(pfn << 12), Perms::RW)
            .expect("fill");
        assert!(tlb.occupied() as u64 <= m.stats().resident);
    }
    assert_eq!(tlb.occupied(), 64);
    assert_eq!(tlb.lookup_read(Va(0), 1), None);
    assert!(tlb.lookup_read(Va(999 << 12), 1).is_some());
}

#[test]
fn what_is_discarded_is_neither_written_back_nor_reachable() {
    let m = machine(config(CipherKind::Aes128Xex, CacheMode::Page));
    let tlb = Arc::new(FastTlb::new());
    m.attach_tlb(Arc::clone(&tlb));
    m.write(ONE, Spa(0x3000), &[1; 4096]).expect("write");
    m.write_back_all().expect("write-back");
    let mut before = [0; 4096];
    m.bus_read(Spa(0x3000), &mut before);
    m.fill_tlb(&tlb, Va(0x9000), ONE, Spa(0x3000), Perms::RW)
        .expect("page");
    m.write(ONE, Spa(0x3000), &[2; 64]).expect("write");
    m.write(Domain::Shared, Spa(0x5000), &[3; 64])
        .expect("write");
    let encrypted = m.stats().pages_encrypted;
    m.discard(Asid(1));
    assert_eq!((m.stats().resident, tlb.occupied()), (0, 0));
    assert_eq!(m.stats().pages_encrypted, encrypted);
    let mut after = [0; 4096];
    m.bus_read(Spa(0x3000), &mut after);
    assert!(before == after, "DRAM is what was written back last");
    m.read(Domain::Shared, Spa(0x5000), &mut after[..64])
        .expect("read");
    assert_eq!(after[..64], [3; 64], "others are untouched");
}
