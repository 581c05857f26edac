//! The controller's other entry points while lines are cached: keys, RMP, dumps, filters' tags, clones, errors.
#![allow(unsafe_code)] // reads and writes through host pointers, as translated code does

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use common::{ONE, PAGE, TWO, config, key, machine, pattern, read};
use sevlab_arch::rmp::RmpUpdate;
use sevlab_arch::{Asid, Gpa, Spa, Va};
use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch,
};
use sevlab_memctl::{
    CacheMode, CipherKind, Config, Domain, Error, FastTlb, FetchFilter, Grant, HostOptions, Level,
    Line, LineFilter, LineKind, MemCtl, PageSize, Perms, RmpStatus,
};

const KIND: CipherKind = CipherKind::Aes256Xts;

fn model() -> Model {
    let cache = |size, ways| Cache {
        size,
        ways,
        policy: Policy::Lru,
    };
    Model {
        name: "small".into(),
        core: Core {
            model: CoreModel::Simple,
            clock_mhz: 1000,
            window: 1,
            mshrs: 1,
        },
        l1i: cache(1 << 10, 2),
        l1d: cache(1 << 10, 2),
        l2: Some(cache(4 << 10, 4)),
        llc: cache(16 << 10, 4),
        llc_inclusion: Inclusion::Inclusive,
        prefetch: Prefetch::default(),
        tlb: None,
        dram: Dram {
            model: DramModel::Flat,
            channels: 1,
            banks: 1,
            row_bytes: 4096,
            line_ns: 0.0,
        },
        latency: Latency {
            l1d_cycles: 3,
            l1i_cycles: 0,
            l2_cycles: 12,
            llc_cycles: 40,
            remote_cycles: 90,
            upgrade_cycles: 20,
            dram_ns: 80.0,
            dram_row_ns: 0.0,
            dram_write_ns: 3.0,
            aes_ns: 7.0,
            aes_write_ns: 2.0,
            aes_line_ns: 0.0,
            tlb2_cycles: 0,
            walk_cycles: 0,
            rmp_cycles: 0,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    }
}

fn hierarchy(snp: bool) -> Config {
    let mut cfg = config(KIND, CacheMode::Hierarchy);
    cfg.hierarchy = Some(Arc::new(model()));
    cfg.cores = 2;
    cfg.snp = snp;
    cfg
}

struct Seat {
    m: Arc<MemCtl>,
    core: usize,
    data: Arc<LineFilter>,
    fetch: Arc<FetchFilter>,
}

fn seat(m: &Arc<MemCtl>, core: usize) -> Seat {
    let (data, fetch) = (LineFilter::new(), FetchFilter::new());
    m.attach_core(core, Arc::clone(&data), Arc::clone(&fetch))
        .expect("core");
    Seat {
        m: Arc::clone(m),
        core,
        data,
        fetch,
    }
}

/// Virtual addresses are physical ones plus this.
const VA: u64 = 0x5555_0000_0000;

impl Seat {
    fn line(&self, kind: LineKind, domain: Domain, a: u64) -> Result<(Level, NonNull<u8>), Error> {
        let served = self.m.line(
            self.core,
            &Line {
                va: Va(VA + a),
                spa: Spa(a),
                domain,
                kind,
                grant: Grant {
                    read: true,
                    write: true,
                },
                stamp: 1,
                now: 0,
            },
        )?;
        Ok((served.level, served.host))
    }
    fn store(&self, domain: Domain, a: u64, v: u8) {
        let host = self.line(LineKind::Store, domain, a).expect("line").1;
        // SAFETY: inside the line just taken for a store.
        unsafe { host.add(a as usize % 64).write(v) }
    }
    fn load(&self, domain: Domain, a: u64) -> u8 {
        let host = self.line(LineKind::Load, domain, a).expect("line").1;
        // SAFETY: inside the line just taken.
        unsafe { host.add(a as usize % 64).read() }
    }
    fn reads(&self, a: u64) -> bool {
        self.data.hit(Va(VA + a), 1, false, 1).is_some()
    }
    fn writes(&self, a: u64) -> bool {
        self.data.hit(Va(VA + a), 1, true, 1).is_some()
    }
}

fn now(m: &MemCtl, a: u64) -> [u8; 64] {
    let mut b = [0; 64];
    m.dram_now(Spa(a), &mut b);
    b
}

#[test]
fn a_store_stays_in_the_cache_until_somebody_looks() {
    let m = machine(hierarchy(false));
    let s = seat(&m, 0);
    let before = now(&m, 0x1000);
    s.store(ONE, 0x1005, 42);
    assert_eq!(now(&m, 0x1000), before, "write-back, not through");
    assert!(s.reads(0x1005) && s.writes(0x103f) && !s.reads(0x1040));
    // A probe on the bus sees what write-back will bring, and the line stays as it is.
    let mut seen = [0; 64];
    m.bus_read(Spa(0x1000), &mut seen);
    assert_ne!(seen, before);
    assert!(s.writes(0x1005));
    s.store(ONE, 0x1006, 43);
    assert_eq!(read::<2>(&m, ONE, 0x1005), [42, 43], "the kernel's view");
    // Another domain flushes it.
    let raw = read::<64>(&m, Domain::Shared, 0x1000);
    assert_eq!(raw, now(&m, 0x1000));
    assert!(!s.reads(0x1005) && !m.is_line_cached(Spa(0x1000)));
    assert_eq!(
        s.line(LineKind::Load, ONE, 0x1005).expect("line").0,
        Level::Dram
    );
    assert_eq!(s.load(ONE, 0x1006), 43);
    assert_ne!(read::<1>(&m, TWO, 0x1006), [43], "another key");
    assert!(!m.is_line_cached(Spa(0x1000)));
}

#[test]
fn lines_of_a_key_go_with_it() {
    let m = machine(hierarchy(false));
    let s = seat(&m, 0);
    for a in (0..0x1000).step_by(64) {
        s.store(ONE, 0x1000 + a, 7);
        s.store(TWO, 0x9000 + a, 8);
    }
    m.remove_key(Asid(1));
    assert!(m.cached_lines().iter().all(|(a, _)| a.0 >= 0x9000));
    assert!(!m.cached_lines().is_empty());
    let gone = s.line(LineKind::Load, ONE, 0x1000).map(|s| s.0);
    assert!(matches!(gone, Err(Error::NoKey { asid: Asid(1), .. })));
    m.install_key(Asid(1), key(KIND, 1)).expect("key");
    for a in (0..0x1000).step_by(64) {
        assert_eq!(s.load(ONE, 0x1000 + a), 7, "written back under the old key");
    }
    // Discarded, DRAM is what it was.
    s.load(TWO, 0x9000);
    m.write_back_all().expect("write back");
    let kept = now(&m, 0x9000);
    s.store(TWO, 0x9000, 99);
    m.discard(Asid(2));
    assert_eq!(now(&m, 0x9000), kept);
    assert_eq!(s.load(TWO, 0x9000), 8);
    // Also where the line has left the caches just now, and its encryption was put off.
    s.store(TWO, 0x9000, 99);
    for a in 1..6 {
        s.load(ONE, 0x9000 + a * 4096 * 4);
    }
    assert!(!m.is_line_cached(Spa(0x9000)), "pushed out");
    m.discard(Asid(2));
    assert_eq!(s.load(TWO, 0x9000), 8);
}

#[test]
fn a_store_through_a_pointer_counts_after_the_line_left() {
    let m = machine(hierarchy(false));
    let s = seat(&m, 0);
    let host = s.line(LineKind::Store, ONE, 0x3000).expect("line").1;
    for a in 1..=8 {
        s.store(ONE, 0x3000 + a * 4096 * 4, 1);
    }
    assert!(!m.is_line_cached(Spa(0x3000)), "pushed out");
    // SAFETY: the first byte of a line taken for a store, of which fewer than 16 have left since.
    unsafe { host.write(77) };
    assert_eq!(s.load(ONE, 0x3000), 77);
    for a in 1..=8 {
        s.load(ONE, 0x3000 + a * 4096 * 4);
    }
    assert!(!m.is_line_cached(Spa(0x3000)), "clean, and dropped");
    assert_eq!(read::<1>(&m, ONE, 0x3000), [77]);
}

#[test]
fn stores_to_clean_lines_pass_while_nobody_else_has_the_page() {
    for overlaps in [false, true] {
        let mut cfg = hierarchy(false);
        let mut small = model();
        if overlaps {
            small.core.model = CoreModel::Overlap;
        }
        cfg.hierarchy = Some(Arc::new(small));
        let m = MemCtl::new(cfg).expect("a machine");
        let (a, b) = (seat(&m, 0), seat(&m, 1));
        let dirty = |at| m.cached_lines().contains(&(Spa(at), true));
        let d = Domain::Shared;
        // Lines of one page, in different sets.
        assert_eq!((a.load(d, 0x1000), a.load(d, 0x1040)), (0, 0));
        assert!(!dirty(0x1000) && a.reads(0x1000));
        if overlaps {
            assert!(!a.writes(0x1000), "it is told when the store was made");
            continue;
        }
        assert!(a.writes(0x1000), "nobody else has the page");
        assert!(dirty(0x1000) && !dirty(0x1040));
        // The other core takes another line of the page: it could take the clean one without a word.
        assert_eq!(b.load(d, 0x1080), 0);
        assert!(a.writes(0x1000) && a.reads(0x1040) && !a.writes(0x1040));
        assert!(!b.writes(0x1080));
        // A line that a store made dirty inline is cleaned for the other, and written back when it leaves.
        assert_eq!(
            b.line(LineKind::Load, d, 0x1000).expect("line").0,
            Level::Remote
        );
        assert!(a.reads(0x1000) && !a.writes(0x1000));
        assert_eq!(m.hier_counters(1).remote, 1);
        // So is one of a page of its own.
        assert_eq!(a.load(d, 0x40c0), 0);
        assert!(a.writes(0x40c0));
        let before = m.hier_counters(0).l1d.write_backs;
        // The set has two ways.
        for at in [0x42c0, 0x44c0] {
            assert_eq!(a.load(d, at), 0);
        }
        assert_eq!(m.hier_counters(0).l1d.write_backs, before + 1);
    }
}

#[test]
fn decoded_code_takes_write_tags() {
    let m = machine(hierarchy(false));
    let (a, b) = (seat(&m, 0), seat(&m, 1));
    a.store(ONE, 0x1000, 1);
    a.store(ONE, 0x2000, 1);
    b.store(Domain::Shared, 0x8000, 1);
    m.drop_line_writes(Spa(0x1fff));
    assert!(a.reads(0x1000) && !a.writes(0x1000) && a.writes(0x2000));
    m.drop_line_writes(Spa(0x8000));
    assert!(b.reads(0x8000) && !b.writes(0x8000));
    m.drop_line_writes(Spa(u64::MAX)); // nobody's
}

#[test]
fn rmp_changes_take_tags_of_data_and_code() {
    let m = machine(hierarchy(true));
    let s = seat(&m, 0);
    s.store(ONE, 0x1000, 1);
    s.store(ONE, 0x2000, 1);
    s.line(LineKind::Fetch, ONE, 0x1040).expect("line");
    assert!(s.fetch.hit(Va(VA + 0x1040), 1));
    // The hypervisor's change shows in the simulated cache's copy of the table, too.
    let entry = m.rmp().base().0 + 0x4000 + 16;
    assert_eq!(
        s.line(LineKind::Rmp, Domain::Shared, entry)
            .expect("line")
            .0,
        Level::Dram
    );
    let update = RmpUpdate {
        gpa: 0x1000,
        assigned: 1,
        page_size: 0,
        immutable: 0,
        asid: 1,
        ..RmpUpdate::default()
    };
    assert_eq!(m.rmp().rmpupdate(Spa(0x1000), &update), RmpStatus::SUCCESS);
    assert!(!s.reads(0x1000) && s.reads(0x2000));
    assert!(!s.fetch.hit(Va(VA + 0x1040), 1));
    let (level, host) = s.line(LineKind::Rmp, Domain::Shared, entry).expect("line");
    assert_eq!(level, Level::L2);
    // SAFETY: 8 bytes inside the line just read.
    let seen = unsafe { host.add(entry as usize % 64).cast::<u64>().read() };
    assert_eq!(seen & 1, 1, "assigned");
    assert_eq!(s.load(ONE, 0x1000), 1, "data stays");
    let valid = m
        .rmp()
        .pvalidate(Asid(1), Gpa(0x1000), Spa(0x1000), PageSize::Size4K, true);
    assert!(valid.is_ok());
    assert!(!s.reads(0x1000));
}

#[test]
fn dumps_hold_what_caches_hold() {
    let m = machine(hierarchy(false));
    let plain = machine(config(KIND, CacheMode::None));
    let s = seat(&m, 0);
    for (a, d) in [(0x1000, ONE), (0x5000, TWO), (0x7000, Domain::Shared)] {
        for i in 0..PAGE as u64 {
            s.store(d, a + i, pattern(3)[i as usize]);
        }
        plain.write(d, Spa(a), &pattern(3)).expect("write");
    }
    let cached = m.cached_lines();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    m.dump(&mut got).expect("dump");
    plain.dump(&mut want).expect("dump");
    assert!(got == want, "the same DRAM as without caches");
    assert_eq!(m.cached_lines(), cached, "and the caches as they were");
    // The firmware's ways to DRAM.
    let mut b = [0; 32];
    m.decrypt_for_firmware(Asid(1), Spa(0x1010), &mut b)
        .expect("read");
    assert_eq!(b, pattern(3)[0x10..0x30]);
    m.encrypt_for_firmware(Asid(1), Spa(0x1010), &[5; 32])
        .expect("write");
    assert_eq!(s.load(ONE, 0x1010), 5);
    m.zero_page(ONE, Spa(0x1000)).expect("zero");
    assert_eq!(s.load(ONE, 0x1010), 0);
    m.bus_write(Spa(0x5000), &[0; 64]);
    assert_ne!(s.load(TWO, 0x5001), pattern(3)[1]);
    assert_eq!(s.load(TWO, 0x5041), pattern(3)[0x41]);
}

#[test]
fn nothing_goes_around_the_caches() {
    let m = machine(hierarchy(false));
    assert_eq!(m.host_page(ONE, Spa(0x1000), true).expect("page"), None);
    let tlb = Arc::new(FastTlb::new());
    m.attach_tlb(Arc::clone(&tlb));
    let host = m
        .fill_tlb(&tlb, Va(0x1000), Domain::Shared, Spa(0x1000), Perms::RW)
        .expect("page");
    assert!(host.is_some() && tlb.occupied() == 0);
}

#[test]
fn a_core_that_comes_back_finds_its_lines_older_than_new_ones() {
    let m = machine(hierarchy(false));
    let s = seat(&m, 0);
    let touch = |s: &Seat, a: u64, stamp| {
        let l = Line {
            va: Va(a),
            spa: Spa(a),
            domain: ONE,
            kind: LineKind::Load,
            grant: Grant {
                read: true,
                write: false,
            },
            stamp,
            now: 0,
        };
        s.m.line(0, &l).expect("line").level
    };
    touch(&s, 0x1000, 1000);
    touch(&s, 0x2000, 2000);
    m.detach_core(0);
    assert!(s.data.hit(Va(0x1000), 1, false, 1).is_none());
    let s = seat(&m, 0);
    assert_eq!(touch(&s, 0x1000, 1), Level::L1);
    touch(&s, 0x3000, 2);
    assert_eq!(touch(&s, 0x1000, 3), Level::L1, "0x2000 had to go");
    // In a clone, cores without an owner lose their filters, and nothing else.
    let other = seat(&m, 1);
    other.load(ONE, 0x6000);
    assert!(other.reads(0x6000));
    m.keep_only_core(0);
    assert!(!other.reads(0x6000) && m.is_line_cached(Spa(0x6000)));
    assert_eq!(m.hier_counters(1).l1d.all_misses(), 1);
    let (all, one) = (m.hier_totals(), m.hier_counters(0));
    assert_eq!(all.l1d.all_misses(), one.l1d.all_misses() + 1);
}

#[test]
fn files_in_the_window_are_cached_as_shared() {
    let mut host = HostOptions::default();
    host.huge_pages = false;
    let m = MemCtl::with_window(hierarchy(false), &host, 1 << 20).expect("configuration");
    let s = seat(&m, 0);
    let mut f: File = tempfile::tempfile().expect("file");
    f.write_all(&[9; PAGE]).expect("write");
    let at = m.window().start;
    m.map_file(at, PAGE as u64, f.as_fd(), 0, true)
        .expect("map");
    assert_eq!(s.load(Domain::Shared, at.0 + 5), 9);
    assert!(s.reads(at.0 + 5) && m.is_line_cached(at));
    m.unmap_file(at, PAGE as u64).expect("unmap");
    assert!(!s.reads(at.0 + 5) && !m.is_line_cached(at));
    assert_eq!(s.load(Domain::Shared, at.0 + 5), 0);
    let out = s.line(LineKind::Load, ONE, at.0).map(|s| s.0);
    assert!(matches!(out, Err(Error::OutOfRange { .. })));
    let out = s
        .line(LineKind::Load, Domain::Shared, m.span())
        .map(|s| s.0);
    assert!(matches!(out, Err(Error::OutOfRange { .. })));
}

#[test]
fn cores_that_are_not_there() {
    let m = machine(hierarchy(false));
    let no = m.attach_core(2, LineFilter::new(), FetchFilter::new());
    assert!(matches!(no, Err(Error::NoCore { core: 2 })));
    let mut s = seat(&m, 0);
    s.core = 1;
    assert!(matches!(
        s.line(LineKind::Load, ONE, 0),
        Err(Error::NoCore { core: 1 })
    ));
    s.core = usize::MAX;
    assert!(s.line(LineKind::Load, ONE, 0).is_err());
    // Nor in other modes.
    let m = machine(config(KIND, CacheMode::Page));
    assert!(
        m.attach_core(0, LineFilter::new(), FetchFilter::new())
            .is_err()
    );
    assert_eq!(m.hier_totals(), Default::default());
    m.detach_core(0);
    m.keep_only_core(0);
    m.drop_line_writes(Spa(0));
}
