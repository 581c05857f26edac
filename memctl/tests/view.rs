#![allow(unsafe_code)] // accesses memory by host addresses, as translated code does
//! The view: what goes through it is what goes around it, and nothing is open that must not be. Rights are asked of the host
//! (a system call minds them as an instruction does), and a second controller without a view says what every byte must be.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::{ONE, PAGE, Rng, TWO, bus, config, key, pattern, read};
use sevlab_arch::{Asid, Spa, Va};
use sevlab_memctl::{
    Access, CacheMode, CipherKind, Config, Domain, FastTlb, HostOptions, MemCtl, Perms, RmpUpdate,
};

const R: Perms = Perms {
    r: true,
    w: false,
    x: true,
};

/// A process has room for one view.
static ONE_VIEW: Mutex<()> = Mutex::new(());

struct Rig {
    m: Arc<MemCtl>,
    tlbs: Vec<Arc<FastTlb>>,
    base: u64,
    _only: MutexGuard<'static, ()>,
}

fn with_view(cfg: Config, on: bool) -> Arc<MemCtl> {
    let kind = cfg.cipher;
    let mut host = HostOptions::default();
    host.view = on;
    let m = MemCtl::with_options(cfg, &host).expect("configuration");
    for asid in [1u8, 2] {
        m.install_key(Asid(asid.into()), key(kind, asid))
            .expect("key");
    }
    m
}

thread_local! {
    /// Both ends of a pipe.
    static PIPE: [File; 2] = {
        let mut fds = [0; 2];
        // SAFETY: a live place for two descriptors, which are new and nobody else's.
        unsafe {
            assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK), 0);
            fds.map(|fd| File::from_raw_fd(fd))
        }
    };
}

/// Whether the host lets this thread read or write bytes there: a system call does it, to which a closed page is an error.
fn host_access(addr: u64, bytes: &mut [u8], write: bool) -> bool {
    PIPE.with(|[out, into]| {
        let (mut out, mut into) = (out, into);
        let at = addr as *mut libc::c_void;
        if write {
            into.write_all(bytes).expect("room in a pipe");
            // SAFETY: what the host checks; no Rust reference covers guest memory.
            let done = unsafe { libc::read(out.as_raw_fd(), at, bytes.len()) };
            if done < 0 {
                out.read_exact(&mut vec![0; bytes.len()])
                    .expect("what is left");
            }
            done == bytes.len() as isize
        } else {
            // SAFETY: as above.
            let done = unsafe { libc::write(into.as_raw_fd(), at, bytes.len()) };
            if done > 0 {
                out.read_exact(&mut bytes[..done as usize])
                    .expect("what came");
            }
            done == bytes.len() as isize
        }
    })
}

impl Rig {
    fn new(cfg: Config, tlbs: usize) -> Self {
        let only = ONE_VIEW.lock().unwrap_or_else(PoisonError::into_inner);
        let m = with_view(cfg, true);
        let (base, size) = m.view().expect("the host allows a view");
        assert_eq!((size, base.as_ptr() as u64), (1 << 45, 1 << 45));
        let tlbs: Vec<_> = (0..tlbs).map(|_| Arc::new(FastTlb::new())).collect();
        for t in &tlbs {
            m.attach_tlb(Arc::clone(t));
        }
        Self {
            m,
            tlbs,
            base: base.as_ptr() as u64,
            _only: only,
        }
    }

    fn fill(&self, va: u64, d: Domain, page: u64, perms: Perms) -> u64 {
        self.fill_by(0, va, d, page, perms)
    }

    fn fill_by(&self, tlb: usize, va: u64, d: Domain, page: u64, perms: Perms) -> u64 {
        let host = self
            .m
            .fill_tlb(&self.tlbs[tlb], Va(va), d, Spa(page), perms)
            .expect("fill")
            .expect("an address");
        assert_eq!(
            self.tlbs[tlb].lookup_read(Va(va), 1),
            Some(host),
            "entry and answer"
        );
        host.as_ptr() as u64
    }

    /// Filled, and in its slot.
    fn open(&self, va: u64, d: Domain, page: u64, perms: Perms) {
        assert_eq!(self.fill(va, d, page, perms), self.base + va);
        assert_eq!(self.rights(va), (true, perms.w));
    }

    /// The rights of an address by the host's word, which must be the controller's.
    fn rights(&self, va: u64) -> (bool, bool) {
        let mut byte = 0;
        let r = self.get(va, &mut byte);
        let w = r && self.put(va, byte);
        assert_eq!(self.m.view_rights(Va(va)), (r, w), "{va:#x}");
        (r, w)
    }

    fn get(&self, va: u64, byte: &mut u8) -> bool {
        host_access(self.base + va, std::slice::from_mut(byte), false)
    }

    fn put(&self, va: u64, mut byte: u8) -> bool {
        host_access(self.base + va, std::slice::from_mut(&mut byte), true)
    }
}

fn page_config() -> Config {
    config(CipherKind::Aes128Xex, CacheMode::Page)
}

#[test]
fn content_moves_in_and_is_seen_as_it_was() {
    for cipher in CipherKind::ALL {
        for threads in [1, 2] {
            for d in [ONE, Domain::Shared] {
                let rig = Rig::new(config(cipher, CacheMode::Page), threads);
                let twin = with_view(config(cipher, CacheMode::Page), false);
                for m in [&rig.m, &twin] {
                    m.write(d, Spa(0x3000), &pattern(3)).expect("write");
                }
                rig.open(0x7_0000, d, 0x3000, Perms::RW);
                let mut byte = 0;
                assert!(rig.get(0x7_0123, &mut byte));
                assert_eq!(byte, pattern(3)[0x123]);
                assert!(rig.put(0x7_0123, 0xee));
                twin.write(d, Spa(0x3123), &[0xee]).expect("write");
                assert_eq!(read::<PAGE>(&rig.m, d, 0x3000), read(&twin, d, 0x3000));
                assert_eq!(rig.rights(0x7_0000), (true, true), "read in place");
                // A probe on the bus sees what it always saw; the next write is to be noticed again.
                assert_eq!(bus::<PAGE>(&rig.m, 0x3000), bus(&twin, 0x3000));
                if d != Domain::Shared {
                    assert_ne!(bus::<PAGE>(&rig.m, 0x3000), read(&twin, d, 0x3000));
                    assert_eq!(rig.rights(0x7_0000), (true, false), "clean");
                    assert!(rig.tlbs[0].lookup_write(Va(0x7_0000), 1).is_none());
                    assert!(rig.tlbs[0].lookup_read(Va(0x7_0000), 1).is_some());
                }
                rig.open(0x7_0000, d, 0x3000, Perms::RW);
                assert!(rig.put(0x7_0fff, 0x11));
                twin.write(d, Spa(0x3fff), &[0x11]).expect("write");
                assert_eq!(bus::<PAGE>(&rig.m, 0x3000), bus(&twin, 0x3000));
                // Another domain closes it.
                let other = if d == ONE { TWO } else { ONE };
                let seen = read::<PAGE>(&rig.m, other, 0x3000);
                assert_eq!(seen, read::<PAGE>(&twin, other, 0x3000));
                assert_eq!(rig.rights(0x7_0000), (false, false));
                assert!(rig.tlbs[0].lookup_read(Va(0x7_0000), 1).is_none());
                assert_eq!(read::<PAGE>(&rig.m, d, 0x3000), read(&twin, d, 0x3000));
            }
        }
    }
}

#[test]
fn a_slot_has_the_rights_of_its_entry() {
    let rig = Rig::new(page_config(), 1);
    rig.open(0x1000, ONE, 0x3000, R);
    rig.open(0x1000, ONE, 0x3000, Perms::RW);
    rig.m.drop_writes(ONE, Spa(0x3000)).expect("resident");
    assert_eq!(rig.rights(0x1000), (true, false));
    rig.open(0x1000, ONE, 0x3000, Perms::RW);
    rig.m.close_view_writes();
    assert_eq!(rig.rights(0x1000), (true, false));
    assert!(rig.tlbs[0].lookup_write(Va(0x1000), 1).is_none());
    rig.m.close_view(Va(0), Va(0x1000));
    assert_eq!(rig.rights(0x1000), (true, false));
    rig.m.close_view(Va(0x1fff), Va(u64::MAX));
    assert_eq!(rig.rights(0x1000), (false, false));
    assert!(rig.tlbs[0].lookup_read(Va(0x1000), 1).is_none());
    // What only code may be fetched from is not data.
    let x = Perms {
        r: false,
        w: false,
        x: true,
    };
    let host = rig
        .m
        .fill_tlb(&rig.tlbs[0], Va(0x5000), ONE, Spa(0x5000), x)
        .expect("fill");
    assert_ne!(host.expect("address").as_ptr() as u64, rig.base + 0x5000);
    assert_eq!(rig.rights(0x5000), (false, false));
    // Nor what privileged code may do what user code may.
    rig.m
        .fill_tlb_unseen(&rig.tlbs[0], Va(0x6000), ONE, Spa(0x6000), Perms::RW)
        .expect("fill");
    assert_eq!(rig.rights(0x6000), (false, false));
    // Beyond the view, as ever.
    let end = 1u64 << 45;
    assert_ne!(rig.fill(end, ONE, 0x7000, Perms::RW), rig.base + end);
    rig.open(end - 0x1000, ONE, 0x8000, Perms::RW);
}

#[test]
fn two_addresses_of_a_page_are_one_memory() {
    let rig = Rig::new(page_config(), 1);
    rig.m.write(ONE, Spa(0x3000), &[7; 4]).expect("write");
    rig.open(0x1000, ONE, 0x3000, Perms::RW);
    // The other one goes by the interpreter.
    assert_eq!(rig.fill(0x9000, ONE, 0x3000, Perms::RW), rig.base + 0x1000);
    assert_eq!(rig.rights(0x9000), (false, false));
    // Without its slot it is not reached either, and then it may have one of its own.
    rig.m.close_view(Va(0x1000), Va(0x2000));
    assert!(rig.tlbs[0].lookup_read(Va(0x9000), 1).is_none());
    rig.open(0x9000, ONE, 0x3000, Perms::RW);
    assert_eq!(read(&rig.m, ONE, 0x3000), [7; 4]);
    // Where the rights differ, no slot has the greater ones.
    rig.open(0x1000, ONE, 0x5000, R);
    let host = rig.fill(0xa000, ONE, 0x5000, Perms::RW);
    assert!(host != rig.base + 0x1000 && host != rig.base + 0xa000);
    assert_eq!(rig.rights(0x1000), (false, false));
    assert_eq!(rig.fill(0x1000, ONE, 0x5000, R), host);
}

#[test]
fn a_page_whose_home_is_known_to_others_stays_there() {
    let rig = Rig::new(page_config(), 2);
    let x = Perms {
        r: false,
        w: false,
        x: true,
    };
    rig.m
        .fill_tlb(&rig.tlbs[1], Va(0x5000), ONE, Spa(0x5000), x)
        .expect("fill");
    assert_ne!(rig.fill(0x5000, ONE, 0x5000, Perms::RW), rig.base + 0x5000);
    // Zeroes must be there at once.
    rig.m.write(ONE, Spa(0x5000), &[1; 64]).expect("write");
    let host = rig.tlbs[0].lookup_read(Va(0x5000), 1).expect("entry");
    rig.m.zero_page(ONE, Spa(0x5000)).expect("zero");
    // SAFETY: the address of the page, alive as long as the controller.
    assert_eq!(unsafe { host.as_ptr().read_volatile() }, 0);
    // After it was away it is free again.
    rig.m.bus_write(Spa(0x5000), &[0]);
    rig.open(0x5000, ONE, 0x5000, Perms::RW);
    // And the hypervisor's own pages never move.
    drop(rig);
    let one = Rig::new(page_config(), 1);
    one.m
        .host_page(Domain::Shared, Spa(0x7000), true)
        .expect("page");
    assert_ne!(
        one.fill(0x7000, Domain::Shared, 0x7000, Perms::RW),
        one.base + 0x7000
    );
}

#[test]
fn zeroed_pages_are_zero_wherever_they_are_seen() {
    let rig = Rig::new(page_config(), 1);
    let twin = with_view(page_config(), false);
    for d in [ONE, Domain::Shared] {
        for m in [&rig.m, &twin] {
            m.write(d, Spa(0x3000), &pattern(1)).expect("write");
            m.zero_page(d, Spa(0x3000)).expect("zero");
        }
        assert_eq!(bus::<PAGE>(&rig.m, 0x3000), bus(&twin, 0x3000));
        rig.open(0x1000, d, 0x3000, Perms::RW);
        assert!(rig.put(0x1008, 9));
        assert_eq!(rig.m.read_u64(d, Spa(0x3008)).expect("read"), 9);
        rig.m.zero_page(d, Spa(0x3000)).expect("zero");
        assert_eq!(rig.rights(0x1000), (false, false));
        assert_eq!(rig.m.read_u64(d, Spa(0x3008)).expect("read"), 0);
        rig.open(0x1000, d, 0x3000, Perms::RW);
        assert_eq!(read::<PAGE>(&rig.m, d, 0x3000), [0; PAGE]);
        rig.m.zero_page(d, Spa(0x3000)).expect("zero");
        rig.m.write_u64(d, Spa(0x3010), 5).expect("write");
        rig.m.or_u64(d, Spa(0x3018), 6).expect("write");
        assert_eq!(rig.m.read_u64(d, Spa(0x3010)).expect("read"), 5);
        assert_eq!(rig.m.read_u64(d, Spa(0x3018)).expect("read"), 6);
        rig.m.close_view(Va(0), Va(u64::MAX));
    }
}

#[test]
fn keys_dumps_and_the_rmp_close_slots() {
    let rig = Rig::new(page_config(), 1);
    let open = || rig.open(0x1000, ONE, 0x3000, Perms::RW);
    open();
    rig.m.dump(&mut std::io::sink()).expect("dump");
    assert_eq!(rig.rights(0x1000), (true, false));
    open();
    rig.m.discard(Asid(1));
    assert_eq!(rig.rights(0x1000), (false, false));
    open();
    rig.m.remove_key(Asid(1));
    assert_eq!(rig.rights(0x1000), (false, false));
    drop(rig);
    let rig = Rig::new(
        Config {
            size: 64 << 20,
            snp: true,
            ..page_config()
        },
        1,
    );
    for d in [ONE, Domain::Shared] {
        rig.open(0x1000, d, 0x3000, Perms::RW);
        let given = RmpUpdate {
            gpa: 0x5000,
            assigned: 1,
            asid: 1,
            ..RmpUpdate::default()
        };
        let _ = rig.m.rmp().rmpupdate(Spa(0x3000), &given);
        assert_eq!(rig.rights(0x1000), (false, false));
        assert!(rig.tlbs[0].lookup_read(Va(0x1000), 1).is_none());
    }
}

#[test]
fn hosts_and_modes_without_a_view() {
    let asks = |cfg: Config| with_view(cfg, true).view();
    assert!(asks(config(CipherKind::Aes128Xex, CacheMode::None)).is_none());
    assert!(
        asks(Config {
            resident: Some(64),
            ..page_config()
        })
        .is_none()
    );
    assert!(with_view(page_config(), false).view().is_none());
}

const PAGES: u64 = 24;
const SLOTS: u64 = 40;

/// Random operations on a controller with a view and on one without.
fn against_a_twin(cipher: CipherKind, tlbs: usize, seed: u64, steps: u64) {
    let rig = Rig::new(config(cipher, CacheMode::Page), tlbs);
    let twin = with_view(config(cipher, CacheMode::Page), false);
    let both = [&rig.m, &twin];
    let mut rng = Rng(seed);
    // What each address maps: domain, page, rights.
    let mut maps: Vec<Option<(Domain, u64, Perms)>> = vec![None; SLOTS as usize];
    let va_of = |slot: u64| 0x40_0000 - 0x6000 + slot * 4096;
    for step in 0..steps {
        let page = rng.below(PAGES) * 4096;
        let d = match rng.below(10) {
            0 => TWO,
            1..=3 => Domain::Shared,
            _ => ONE,
        };
        let slot = rng.below(SLOTS);
        let va = va_of(slot);
        let at = page + rng.below(4096);
        let value = rng.next() as u8;
        let op = rng.below(28);
        match op {
            0..=8 => {
                let perms = if rng.below(3) == 0 { R } else { Perms::RW };
                if let Some(old) = maps[slot as usize]
                    && old != (d, page, perms)
                {
                    rig.m.close_view(Va(va), Va(va + 4096));
                    for t in &rig.tlbs {
                        t.drop_va(Va(va));
                    }
                }
                maps[slot as usize] = Some((d, page, perms));
                let tlb = rng.below(tlbs as u64) as usize;
                rig.fill_by(tlb, va, d, page, perms);
                twin.host_page(d, Spa(page), perms.w).expect("page");
            }
            9..=15 => {
                // As translated code does it, or by the fast TLB.
                let offset = at & 4095;
                let tlb = &rig.tlbs[rng.below(tlbs as u64) as usize];
                let done = if op < 13 {
                    rig.put(va + offset, value)
                } else if let Some(p) = tlb.lookup(Va(va + offset), 1, Access::Write) {
                    // SAFETY: an address that the fast TLB gave.
                    unsafe { p.as_ptr().write_volatile(value) };
                    true
                } else {
                    false
                };
                if done {
                    let (d, page, perms) = maps[slot as usize].expect("nothing is mapped");
                    assert!(perms.w, "step {step}: written against the rights");
                    twin.write(d, Spa(page + offset), &[value]).expect("write");
                }
            }
            16 => both.iter().for_each(|m| {
                m.write(d, Spa(at), &vec![value; (value as usize * 40).min(9000)])
                    .expect("write");
            }),
            17 => both
                .iter()
                .for_each(|m| m.zero_page(d, Spa(page)).expect("zero")),
            18 => both
                .iter()
                .for_each(|m| m.or_u64(d, Spa(at & !7), 1 << (value & 63)).expect("or")),
            19 => both.iter().for_each(|m| {
                m.write_u64(d, Spa(at & !7), u64::from(value))
                    .expect("write");
            }),
            20 => both.iter().for_each(|m| m.bus_write(Spa(at), &[value; 32])),
            21 => both
                .iter()
                .for_each(|m| m.drop_writes(d, Spa(page)).expect("drop")),
            22 => {
                let end = Va(va + rng.below(8) * 4096);
                rig.m.close_view(Va(va), end);
            }
            23 => match value % 8 {
                0 => rig.m.close_view_writes(),
                1 => both.iter().for_each(|m| m.write_back_all().expect("all")),
                2 => both.iter().for_each(|m| m.discard(Asid(1))),
                3 => rig.m.close_frames(Spa(page), 3),
                4 => both
                    .iter()
                    .for_each(|m| m.encrypt_in_place(Asid(1), Spa(page)).expect("key")),
                5 => both.iter().for_each(|m| {
                    m.encrypt_for_firmware(Asid(2), Spa(at), &[value; 40])
                        .expect("key");
                }),
                6 => {
                    let mut seen = [[0; 64]; 2];
                    for (m, out) in both.iter().zip(&mut seen) {
                        m.decrypt_for_firmware(Asid(1), Spa(at), out).expect("key");
                    }
                    assert_eq!(seen[0], seen[1], "step {step}");
                }
                _ => both.iter().for_each(|m| {
                    m.install_key(Asid(2), key(cipher, 2)).expect("key");
                }),
            },
            24 => assert_eq!(
                rig.m.read_u64(d, Spa(at & !7)),
                twin.read_u64(d, Spa(at & !7)),
                "step {step}"
            ),
            25 => assert_eq!(
                bus::<64>(&rig.m, at),
                bus::<64>(&twin, at),
                "step {step}: DRAM at {at:#x}"
            ),
            _ => assert_eq!(
                read::<64>(&rig.m, d, at),
                read::<64>(&twin, d, at),
                "step {step}: {d:?} at {at:#x}"
            ),
        }
        // What is open shows what it should.
        let mut seen = 0;
        let offset = rng.below(4096);
        if rig.get(va + offset, &mut seen) {
            let (d, page, _) = maps[slot as usize].expect("nothing is mapped");
            let owner = twin.read_u64(d, Spa((page + offset) & !7)).expect("read");
            let byte = owner.to_le_bytes()[(offset & 7) as usize];
            assert_eq!(seen, byte, "step {step}: {op} at {va:#x}");
        }
        if step % 16 == 0 {
            rig.rights(va);
        }
    }
    for page in 0..PAGES {
        let a = page * 4096;
        assert_eq!(bus::<PAGE>(&rig.m, a), bus(&twin, a), "page {page}");
    }
}

#[test]
fn random_operations_match_a_controller_without_a_view() {
    for (i, cipher) in CipherKind::ALL.into_iter().enumerate() {
        for tlbs in [1, 3] {
            for seed in 0..6 {
                against_a_twin(cipher, tlbs, seed * 77 + i as u64, 6000);
            }
        }
    }
}

#[test]
fn threads_count_while_slots_come_and_go() {
    const THREADS: usize = 3;
    const ROUNDS: u64 = 3000;
    let rig = Rig::new(page_config(), THREADS);
    let (m, tlbs, base) = (&rig.m, &rig.tlbs, rig.base);
    for page in 0..8 {
        m.zero_page(ONE, Spa(page * 4096)).expect("zero");
    }
    let counted = std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS)
            .map(|t| {
                s.spawn(move || {
                    let mut rng = Rng(t as u64);
                    let mut counted = [0u8; 8];
                    for _ in 0..ROUNDS {
                        // A byte of this thread's in a page of all: the host may write some of several before it finds the page closed.
                        let page = rng.below(8);
                        let (va, own) = (0x10_0000 + page * 4096, t as u64);
                        loop {
                            let mut byte = [0u8];
                            let at = base + va + own;
                            let read = host_access(at, &mut byte, false);
                            let mut next = [byte[0].wrapping_add(1)];
                            if read && host_access(at, &mut next, true) {
                                break;
                            }
                            let perms = if rng.below(3) == 0 { R } else { Perms::RW };
                            m.fill_tlb(&tlbs[t], Va(va), ONE, Spa(page * 4096), perms)
                                .expect("fill");
                        }
                        let n = &mut counted[page as usize];
                        *n = n.wrapping_add(1);
                        match rng.below(40) {
                            0 => m.close_view(Va(va), Va(va + 4096)),
                            1 => m.close_view_writes(),
                            2 => drop(bus::<16>(m, page * 4096)),
                            3 => drop(read::<16>(m, Domain::Shared, page * 4096)),
                            _ => {}
                        }
                    }
                    counted
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("thread"))
            .collect::<Vec<_>>()
    });
    for (t, counted) in counted.iter().enumerate() {
        for (page, n) in counted.iter().enumerate() {
            let word = rig.m.read_u64(ONE, Spa(page as u64 * 4096)).expect("read");
            assert_eq!(word.to_le_bytes()[t], *n, "page {page}, thread {t}");
        }
    }
}

#[test]
fn without_room_for_mappings_pages_stay_home_and_slots_still_close() {
    let most: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .expect("a Linux host")
        .trim()
        .parse()
        .expect("a number");
    if most > 100_000 {
        return; // would need too many
    }
    let pages = 2 * most;
    let rig = Rig::new(
        Config {
            size: pages * 4096,
            ..page_config()
        },
        1,
    );
    // Every other slot: each is a mapping of its own, and so is each gap.
    let (mut inside, mut home) = (0, 0);
    for i in 0..most / 2 + 2000 {
        let va = 0x1000_0000 + i * 0x2000;
        if rig.fill(va, Domain::Shared, i * 4096, Perms::RW) == rig.base + va {
            inside += 1;
        } else {
            home += 1;
        }
    }
    assert!(inside > 1000 && home > 0, "{inside} {home}");
    // A long run, of which one in the middle goes.
    rig.m
        .close_view(Va(0x1000_0000), Va(0x1000_0000 + 0x2000 * 400));
    for i in 0..64 {
        let va = 0x8_0000_0000 + i * 0x1000;
        let page = (pages - 100 + i) * 4096;
        rig.m.write(ONE, Spa(page), &[i as u8 + 1]).expect("write");
        rig.open(va, ONE, page, Perms::RW);
    }
    let mut i = most;
    while rig.fill(
        0x1000_0000 + i * 0x2000,
        Domain::Shared,
        i * 4096,
        Perms::RW,
    ) == rig.base + 0x1000_0000 + i * 0x2000
    {
        i += 1;
    }
    let middle = 0x8_0000_0000 + 30 * 0x1000;
    rig.m.close_view(Va(middle), Va(middle + 1));
    assert_eq!(rig.rights(middle), (false, false));
    rig.m
        .drop_writes(ONE, Spa((pages - 100 + 10) * 4096))
        .expect("drop");
    assert!(!rig.rights(0x8_0000_0000 + 10 * 0x1000).1);
    for i in 0..64 {
        assert_eq!(read(&rig.m, ONE, (pages - 100 + i) * 4096), [i as u8 + 1]);
    }
}

#[test]
fn a_clone_of_the_process_has_a_view_of_its_own() {
    let rig = Rig::new(page_config(), 1);
    for page in 0..3 {
        rig.m
            .write(ONE, Spa(page * 4096), &[page as u8 + 1; 8])
            .expect("write");
        rig.open(0x1000 + page * 4096, ONE, page * 4096, Perms::RW);
    }
    let twice = |rig: &Rig, salt: u8| {
        assert!(rig.put(0x1000, salt));
        rig.m.close_view(Va(0), Va(0x3000));
        assert_eq!(read(&rig.m, ONE, 0), [salt, 1]);
        assert_eq!(read(&rig.m, ONE, 0x1000), [2, 2]);
        rig.m.write(ONE, Spa(0x1004), &[salt]).expect("write");
        rig.open(0x2000, ONE, 0x1000, Perms::RW);
        rig.open(0x9000, ONE, 0x4000, Perms::RW);
        assert_eq!(read(&rig.m, ONE, 0x1003), [2, salt]);
        assert_eq!(read(&rig.m, ONE, 0x2000), [3, 3]);
    };
    // SAFETY: the clone has this thread only, and ends without going through the test harness.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            rig.m.keep_only_tlb(&rig.tlbs[0]);
            twice(&rig, 77);
        }));
        // SAFETY: ends the clone.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = 0;
    // SAFETY: a live place for the answer.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    twice(&rig, 55);
}

/// What this thread has used of the processor.
fn cpu_time() -> std::time::Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    std::time::Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// Prints what opening costs: zeroed pages, one by one and 32 at a time, with the first touch of each.
#[test]
#[ignore = "measures"]
fn cost() {
    for (d, run, touch_only) in [
        (ONE, 1, false),
        (ONE, 32, false),
        (ONE, 512, false),
        (Domain::Shared, 32, false),
        (Domain::Shared, 512, false),
        (ONE, 32, true),
    ] {
        let pages = 65536u64;
        let rig = Rig::new(
            Config {
                size: pages * 4096,
                ..page_config()
            },
            1,
        );
        let start = cpu_time();
        let mut maps = 0;
        for at in (0..pages).step_by(run as usize) {
            for i in 0..run {
                let page = Spa((at + i) * 4096);
                if touch_only {
                    rig.m.write(d, page, &pattern(1)).expect("write");
                } else {
                    rig.m.zero_page(d, page).expect("zero");
                }
            }
            let va = 0x4000_0000 + at * 4096;
            rig.fill(va, d, at * 4096, Perms::RW);
            let ahead: Vec<_> = (1..run).map(|i| Some((d, Spa((at + i) * 4096)))).collect();
            rig.m.open_view(Va(va + 4096), &ahead, true).expect("open");
            for i in 0..run {
                // SAFETY: open, as `fill` has checked for the first.
                unsafe { ((rig.base + va + i * 4096) as *mut u64).write_volatile(at + i) };
            }
            if at == pages / 2 {
                let text = std::fs::read_to_string("/proc/self/maps").expect("maps");
                maps = text.lines().count();
            }
        }
        let opened = cpu_time() - start;
        let start = cpu_time();
        rig.m.close_view(Va(0), Va(u64::MAX));
        let parked = cpu_time() - start;
        let start = cpu_time();
        for at in 0..pages {
            rig.m.zero_page(d, Spa(at * 4096)).expect("zero");
        }
        let each = |t: std::time::Duration| t.as_nanos() / u128::from(pages);
        println!(
            "{d:?}, {run} at a time, {}: {} ns a page, {maps} mappings; parked {} ns, zeroed {} ns a page",
            if touch_only { "written" } else { "zeroed" },
            each(opened),
            each(parked),
            each(cpu_time() - start),
        );
    }
}
