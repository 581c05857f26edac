//! The fast TLB by itself, on host addresses that nothing ever touches.

mod common;

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use common::Rng;
use sevlab_arch::Va;
use sevlab_memctl::{Access, FastTlb, Granule, Perms, TlbEntry};

fn host(page: u64) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut((page << 12) as usize)).expect("not null")
}

#[test]
fn an_access_hits_inside_its_granule_only() {
    let t = FastTlb::new();
    t.insert(Va(0x7000), host(0x9_0000), Perms::R);
    assert_eq!(t.lookup_read(Va(0x7000), 1), Some(host(0x9_0000)));
    assert_eq!(
        t.lookup_read(Va(0x7ff8), 8).map(|p| p.addr().get()),
        Some(0x9000_0ff8)
    );
    for (va, size) in [
        (0x7ff9, 8),
        (0x6fff, 2),
        (0x8000, 1),
        (0x6fff, 1),
        (0x7000 + (16384 << 12), 1),
    ] {
        assert_eq!(t.lookup_read(Va(va), size), None, "{va:#x}+{size}");
    }
    assert_eq!(
        (t.lookup_write(Va(0x7000), 1), t.lookup_exec(Va(0x7000), 1)),
        (None, None)
    );
    // The last page of the address space, where the end wraps.
    let top = Va(!0xfff);
    t.insert(top, host(1), Perms::RW);
    assert!(t.lookup_write(Va(u64::MAX), 1).is_some());
    assert_eq!(t.lookup_write(Va(u64::MAX), 2), None);
}

#[test]
fn never_is_no_granule_s_tag() {
    let t = FastTlb::new();
    for va in [0, 0xfff, u64::MAX, u64::MAX - 0xfff] {
        for a in [Access::Read, Access::Write, Access::Exec] {
            assert_eq!(t.lookup(Va(va), 1, a), None);
            // Behind the last byte of an entry's page, or of all, is another's first.
            assert_eq!(t.lookup(Va(va | 0xfff), 2, a), None);
        }
    }
    assert_ne!(TlbEntry::NEVER & 0xfff, 0);
}

#[test]
fn the_inline_probe_reads_the_same_entry() {
    let t = FastTlb::new();
    let va = Va(0x1234_5678_9000);
    t.insert(
        va,
        host(0x77),
        Perms {
            r: true,
            w: true,
            x: false,
        },
    );
    let e = t.entry(va);
    assert!(std::ptr::eq(e, t.base_ptr().wrapping_add(t.index(va))));
    assert_eq!(e.read.load(Ordering::Relaxed), va.0);
    assert_eq!(e.exec.load(Ordering::Relaxed), TlbEntry::NEVER);
    assert_eq!(
        va.0.wrapping_add(e.addend.load(Ordering::Relaxed)),
        0x77_000
    );
}

#[test]
fn an_insert_replaces_the_permissions() {
    let t = FastTlb::new();
    t.insert(Va(0x1000), host(5), Perms::RW);
    t.insert(Va(0x1000), host(5), Perms::RX);
    assert_eq!(t.lookup_write(Va(0x1000), 1), None);
    assert!(t.lookup_exec(Va(0x1000), 1).is_some());
    t.insert(Va(0x1000), host(5), Perms::default());
    assert_eq!(t.occupied(), 0);
}

#[test]
fn lines_are_a_granule_like_another() {
    let t = FastTlb::with_granule(Granule::LINE);
    let p = |b: u64| {
        NonNull::new(std::ptr::without_provenance_mut::<u8>(b as usize)).expect("not null")
    };
    for line in 0..64u64 {
        t.insert(Va(0x3000 + line * 64), p(0x9000 + line * 64), Perms::RW);
    }
    assert_eq!(t.occupied(), 64);
    assert!(t.lookup_read(Va(0x3038), 8).is_some());
    assert_eq!(t.lookup_read(Va(0x3039), 8), None);
    t.drop_write_host(host(9));
    assert_eq!(t.lookup_write(Va(0x3fc0), 1), None);
    t.drop_va(Va(0x3000));
    assert_eq!(t.occupied(), 0);
    t.insert(Va(0x3040), p(0x9040), Perms::RW);
    t.insert(Va(0x3080), p(0xa080), Perms::RW);
    t.drop_host(host(9));
    assert_eq!((t.lookup_read(Va(0x3040), 1), t.occupied()), (None, 1));
}

/// What an address should map to: (host page, read, write, execute).
type Model = HashMap<u64, (u64, Perms)>;

#[test]
fn random_operations_match_a_map() {
    let t = FastTlb::new();
    let mut model: Model = HashMap::new();
    let slot = |va: u64| t.index(Va(va));
    let mut rng = Rng(99);
    for step in 0..60_000 {
        // Few host pages, many addresses, some sharing an entry: chains, aliases and replacements.
        let va = (rng.below(48) + (rng.below(3) << 14)) << 12;
        let h = 1 + rng.below(24);
        match rng.below(20) {
            0..=11 => {
                let perms = Perms {
                    r: rng.below(4) != 0,
                    w: rng.below(2) == 0,
                    x: rng.below(2) == 0,
                };
                t.insert(Va(va), host(h), perms);
                model.retain(|&v, _| slot(v) != slot(va));
                if perms != Perms::default() {
                    model.insert(va, (h, perms));
                }
            }
            12..=14 => {
                t.drop_va(Va(va + rng.below(4096)));
                model.remove(&va);
            }
            15..=16 => {
                t.drop_host(host(h));
                model.retain(|_, m| m.0 != h);
            }
            17..=18 => {
                t.drop_write_host(host(h));
                model
                    .values_mut()
                    .filter(|m| m.0 == h)
                    .for_each(|m| m.1.w = false);
            }
            _ if rng.below(50) == 0 => {
                t.flush();
                model.clear();
            }
            _ => {}
        }
        for i in 0..48 * 3u64 {
            let va = ((i % 48) + ((i / 48) << 14)) << 12;
            let m = model.get(&va).copied().unwrap_or_default();
            for (a, on) in [
                (Access::Read, m.1.r),
                (Access::Write, m.1.w),
                (Access::Exec, m.1.x),
            ] {
                let want = on.then(|| host(m.0));
                assert_eq!(t.lookup(Va(va), 1, a), want, "step {step}, {va:#x} {a:?}");
            }
        }
    }
}
