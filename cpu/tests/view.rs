#![allow(unsafe_code)] // writes by host addresses, as translated code does
//! The view of guest memory as a vCPU opens and closes it: whatever takes a translation away closes its slot.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sevlab_arch::paging::C_MASK;
use sevlab_arch::paging::pte::{A, D, NX, P, U, W};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_cpu::{Access, SevMode, Vcpu, VcpuConfig};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, HostOptions, MemCtl, MemoryKey};

const ASID: Asid = Asid(5);
/// Guest pages from here on are mapped to frames from [`FRAMES`] on, for reading and writing.
const BASE: u64 = 0x40_0000;
const FRAMES: u64 = 0x20_0000;
const PAGES: u64 = 64;
const TABLES: u64 = 0x1000;

/// A process has room for one view.
static ONE_VIEW: Mutex<()> = Mutex::new(());

struct Rig {
    vcpu: Box<Vcpu>,
    mem: Arc<MemCtl>,
    domain: Domain,
    base: u64,
    _only: MutexGuard<'static, ()>,
}

fn config(mode: SevMode) -> VcpuConfig {
    VcpuConfig {
        asid: ASID,
        mode,
        ..VcpuConfig::default()
    }
}

impl Rig {
    fn new(mode: SevMode) -> Self {
        let only = ONE_VIEW.lock().unwrap_or_else(PoisonError::into_inner);
        let cipher = CipherKind::Aes128Xex;
        let config_of = Config {
            size: 16 << 20,
            cipher,
            cache: CacheMode::Page,
            resident: None,
            tweak_seed: 1,
            hierarchy: None,
            cores: 1,
            snp: false,
        };
        let mut host = HostOptions::default();
        host.view = true;
        let mem = MemCtl::with_options(config_of, &host).unwrap();
        mem.install_key(ASID, MemoryKey::new(cipher, &[7; 16]).unwrap())
            .unwrap();
        let vcpu = Vcpu::new(Arc::clone(&mem), config(mode));
        let base = mem.view().expect("the host allows a view").0;
        let mut rig = Self {
            domain: vcpu.domain(true),
            vcpu,
            mem,
            base: base.as_ptr() as u64,
            _only: only,
        };
        let c = if mode.encrypted() { C_MASK } else { 0 };
        for level in 0..4 {
            rig.mem
                .zero_page(rig.domain, Spa(TABLES + level * 0x1000))
                .unwrap();
        }
        for (level, index) in [(0, 0), (1, 0), (2, BASE >> 21)] {
            let next = TABLES + (level + 1) * 0x1000;
            rig.entry(
                TABLES + level * 0x1000 + index * 8,
                next | P | W | U | A | c,
            );
        }
        for i in 0..PAGES {
            let frame = FRAMES + i * 0x1000;
            rig.mem.zero_page(rig.domain, Spa(frame)).unwrap();
            rig.map(BASE + i * 0x1000, frame | P | W | U | A | D | NX | c);
        }
        rig.vcpu.state.sys.cr3 = TABLES | c;
        assert_eq!(rig.vcpu.state.cpl, 3);
        rig
    }

    fn entry(&mut self, at: u64, entry: u64) {
        self.mem.write_u64(self.domain, Spa(at), entry).unwrap();
    }

    fn map(&mut self, va: u64, entry: u64) {
        self.entry(TABLES + 0x3000 + (va >> 12 & 511) * 8, entry);
    }

    fn fill(&mut self, va: u64, access: Access) {
        let host = self.vcpu.fill(Va(va), access).unwrap().unwrap();
        assert_eq!(host.as_ptr() as u64, self.base + va);
    }

    fn rights(&self, va: u64) -> (bool, bool) {
        self.mem.view_rights(Va(va))
    }

    /// As translated code writes.
    fn put(&self, va: u64, value: u64) {
        assert_eq!(self.rights(va), (true, true));
        let at = (self.base + va) as *mut u64;
        // SAFETY: the slot is open for writing, just checked, and this is the only thread.
        unsafe { at.write_unaligned(value) };
    }
}

const OPEN: (bool, bool) = (true, true);
const CLOSED: (bool, bool) = (false, false);

#[test]
fn all_ways_to_memory_are_one() {
    for mode in [SevMode::Off, SevMode::Sev] {
        let mut rig = Rig::new(mode);
        rig.fill(BASE + 8, Access::Write);
        rig.put(BASE + 8, 77);
        assert_eq!(rig.vcpu.read_u64(BASE + 8).unwrap(), 77);
        rig.vcpu.write_u64(BASE + 8, 78).unwrap();
        let frame = Spa(FRAMES + 8);
        assert_eq!(rig.mem.read_u64(rig.domain, frame).unwrap(), 78);
        rig.mem.write_u64(rig.domain, frame, 79).unwrap();
        assert_eq!(rig.rights(BASE), OPEN);
        assert_eq!(rig.vcpu.read_u64(BASE + 8).unwrap(), 79);
    }
}

type Way = fn(&mut Vcpu, u64);

#[test]
fn what_takes_translations_away_closes() {
    let mut rig = Rig::new(SevMode::Sev);
    let cr3 = rig.vcpu.state.sys.cr3;
    let ways: [(&str, Way); 7] = [
        ("invlpg", |v, _| v.invlpg(Va(BASE + 0x123))),
        ("shoot down", |v, _| {
            v.shoot_down(Va(BASE), Va(BASE + 0x1000), true);
        }),
        ("flush range", |v, _| v.flush_range(Va(BASE), Va(BASE + 1))),
        ("flush", |v, _| v.flush_tlb()),
        ("flush all", |v, _| v.flush_all()),
        ("nested", |v, _| v.flush_nested()),
        ("cr3", |v, cr3| v.set_cr3(cr3)),
    ];
    for (name, way) in ways {
        rig.fill(BASE, Access::Write);
        rig.put(BASE, 5);
        way(&mut rig.vcpu, cr3);
        assert_eq!(rig.rights(BASE), CLOSED, "{name}");
        assert_eq!(rig.vcpu.read_u64(BASE).unwrap(), 5, "{name}");
    }
    rig.fill(BASE, Access::Write);
    rig.fill(BASE + 0x1000, Access::Write);
    rig.vcpu.invlpg(Va(BASE));
    assert_eq!(rig.rights(BASE + 0x1000), OPEN, "another page");
    rig.vcpu.set_cpl(0);
    rig.vcpu.state.sys.cr4 &= !(1 << 21); // SMAP
    assert_eq!(rig.rights(BASE + 0x1000), CLOSED, "privileged code");
    rig.vcpu.fill(Va(BASE + 0x1000), Access::Write).unwrap();
    assert_eq!(rig.rights(BASE + 0x1000), CLOSED);
}

#[test]
fn a_new_frame_is_what_its_address_shows() {
    let mut rig = Rig::new(SevMode::Sev);
    rig.fill(BASE, Access::Write);
    rig.put(BASE, 1);
    // Another frame, and then the first one elsewhere and read-only.
    let c = rig.vcpu.c_bit_mask();
    rig.map(BASE, (FRAMES + 0x5000) | P | W | U | A | D | NX | c);
    rig.map(BASE + 0x9000, FRAMES | P | U | A | D | NX | c);
    rig.vcpu.shoot_down(Va(BASE), Va(BASE + 0xa000), false);
    rig.fill(BASE, Access::Write);
    assert_eq!(rig.vcpu.read_u64(BASE).unwrap(), 0);
    rig.fill(BASE + 0x9000, Access::Read);
    assert_eq!(rig.rights(BASE + 0x9000), (true, false));
    assert_eq!(rig.vcpu.read_u64(BASE + 0x9000).unwrap(), 1);
}

#[test]
fn code_pages_cannot_be_written_unseen() {
    let mut rig = Rig::new(SevMode::Sev);
    let c = rig.vcpu.c_bit_mask();
    rig.map(BASE, FRAMES | P | W | U | A | D | c);
    rig.fill(BASE, Access::Write);
    rig.vcpu.note_code(Va(BASE)).unwrap();
    assert_eq!(rig.rights(BASE), (true, false));
    rig.fill(BASE, Access::Read);
    assert_eq!(rig.rights(BASE), (true, false));
    rig.fill(BASE, Access::Write);
    assert_eq!(rig.rights(BASE), OPEN);
    assert!(!rig.vcpu.has_code(Va(BASE)), "the write was seen");
}

#[test]
fn recorded_writes_are_all_seen() {
    let mut rig = Rig::new(SevMode::Sev);
    for page in 0..4 {
        rig.fill(BASE + page * 0x1000, Access::Write);
    }
    rig.vcpu.record_writes();
    for page in 0..PAGES {
        assert!(!rig.rights(BASE + page * 0x1000).1);
    }
    rig.fill(BASE + 0x2000, Access::Read);
    assert_eq!(rig.rights(BASE + 0x2000), (true, false));
    rig.fill(BASE + 0x2000, Access::Write);
    rig.fill(BASE + 0x3000, Access::Write);
    assert!(!rig.rights(BASE + 0x4000).1, "none ahead");
    assert_eq!(rig.vcpu.recorded_writes(), [BASE + 0x2000, BASE + 0x3000]);
}

#[test]
fn a_read_opens_what_lies_around_it() {
    for mode in [SevMode::Off, SevMode::Sev] {
        let mut rig = Rig::new(mode);
        let c = rig.vcpu.c_bit_mask();
        let frame = |page: u64| FRAMES + page * 0x1000;
        for page in (0..PAGES).filter(|page| *page != 3) {
            let at = Spa(frame(page) + 8);
            rig.mem.write_u64(rig.domain, at, 100 + page).unwrap();
        }
        for page in 0..PAGES {
            rig.map(BASE + page * 0x1000, frame(page) | P | U | D | NX | c);
        }
        // What is not there, what is another's, and what is seen elsewhere already.
        rig.map(BASE + 0x5000, 0);
        rig.map(BASE + 0x6000, frame(6) | P | A | NX | c);
        rig.map(BASE + 0x7000, frame(9) | P | U | A | NX | c);
        rig.vcpu.flush_all();
        rig.fill(BASE + 0x9000, Access::Read);
        let opened = |rig: &Rig| -> Vec<u64> {
            let pages = 0..PAGES;
            pages
                .filter(|p| rig.rights(BASE + p * 0x1000) == (true, false))
                .collect()
        };
        assert_eq!(opened(&rig), [8, 9, 10, 11, 12, 13, 14, 15]);
        rig.fill(BASE + 0x2000, Access::Read);
        assert_eq!(opened(&rig), [0, 1, 2, 4, 8, 9, 10, 11, 12, 13, 14, 15]);
        for page in opened(&rig) {
            let at = (rig.base + BASE + page * 0x1000 + 8) as *const u64;
            // SAFETY: the slot is open for reading, just checked, and this is the only thread.
            assert_eq!(unsafe { at.read_unaligned() }, 100 + page);
        }
        // A table's entry for what was only opened says that it was accessed: a processor may have read ahead.
        let entry = rig
            .mem
            .read_u64(rig.domain, Spa(TABLES + 0x3000 + (BASE >> 12 & 511) * 8));
        assert_eq!(entry.unwrap() & A, A);
    }
}

#[test]
fn fills_in_a_row_open_what_follows() {
    let mut rig = Rig::new(SevMode::Sev);
    let before = rig.vcpu.counters.tlb_fills;
    for page in 0..PAGES {
        let va = BASE + page * 0x1000;
        if rig.rights(va) == CLOSED {
            rig.fill(va, Access::Write);
        }
        rig.put(va, page);
    }
    assert!(rig.vcpu.counters.tlb_fills - before < 8);
    assert_eq!(rig.rights(BASE + PAGES * 0x1000), CLOSED, "not mapped");
    for page in 0..PAGES {
        assert_eq!(rig.vcpu.read_u64(BASE + page * 0x1000).unwrap(), page);
    }
}

#[test]
fn mail_of_old_does_not_close_what_is_open_now() {
    let mut rig = Rig::new(SevMode::Sev);
    let cluster = Arc::clone(rig.vcpu.cluster());
    let mut other = Vcpu::in_cluster(Arc::clone(&rig.mem), cluster, config(SevMode::Sev));
    other.state.sys.cr3 = rig.vcpu.state.sys.cr3;
    rig.fill(BASE, Access::Write);
    let host = other.fill(Va(BASE), Access::Write).unwrap().unwrap();
    assert_eq!(host.as_ptr() as u64, rig.base + BASE);
    rig.vcpu.flush_range(Va(BASE), Va(BASE + 0x1000));
    rig.vcpu.shoot_down(Va(BASE), Va(BASE + 0x1000), false);
    assert_eq!(rig.rights(BASE), CLOSED);
    assert!(
        other.probe_read(BASE, 1).is_none(),
        "before it reads its mail"
    );
    rig.fill(BASE, Access::Write);
    other.checkpoint();
    assert_eq!(rig.rights(BASE), OPEN);
}

/// Another vCPU may be in the middle of an access when a page's entry turns out to have gained rights.
#[test]
fn what_renews_a_translation_closes_nothing() {
    let mut rig = Rig::new(SevMode::Sev);
    rig.fill(BASE, Access::Write);
    rig.put(BASE, 7);
    rig.vcpu.renew(Va(BASE), Va(BASE + 0x1000), true);
    assert_eq!(rig.rights(BASE), (true, true));
    rig.vcpu.shoot_down(Va(BASE), Va(BASE + 0x1000), true);
    assert_eq!(rig.rights(BASE), (false, false));
}

/// Frames come and go at one address of the view: what code was decoded from is not known by that.
#[test]
fn another_frame_in_a_slot_is_another_frame_of_code() {
    let mut rig = Rig::new(SevMode::Off);
    let code = |frame: u64| frame | P | U | A;
    for frame in [FRAMES + 0x5000, FRAMES + 0x6000] {
        rig.map(BASE, code(frame));
        rig.vcpu.flush_tlb();
        for _ in 0..3 {
            rig.fill(BASE, Access::Exec);
            assert_eq!(rig.vcpu.note_code(Va(BASE)).unwrap(), Spa(frame));
        }
    }
}
