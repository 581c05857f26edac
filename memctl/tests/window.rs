//! Pages of host files in the window behind DRAM.
#![allow(unsafe_code)] // a clone of the process

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sevlab_arch::{Asid, Spa, Va};
use sevlab_memctl::{
    Access, CacheMode, CipherKind, Config, Domain, Error, FastTlb, HostOptions, MemCtl, Perms,
    check_file,
};

const PAGE: u64 = 4096;
const SIZE: u64 = 4 << 20;
const WINDOW: u64 = 8 << 20;

fn memory(cache: CacheMode) -> Arc<MemCtl> {
    let config = Config {
        size: SIZE,
        cipher: CipherKind::Aes128Xex,
        cache,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp: true,
    };
    MemCtl::with_window(config, &HostOptions::default(), WINDOW).expect("memory")
}

/// A file of so many pages, each filled with its number, open for reading and writing, and its path for as long as it lives.
fn file(pages: u8) -> (tempfile::NamedTempFile, File) {
    let named = tempfile::NamedTempFile::new().expect("a file");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(named.path())
        .expect("just made");
    for i in 0..pages {
        file.write_all_at(&[i + 1; 4096], u64::from(i) * PAGE)
            .expect("written");
    }
    (named, file)
}

fn byte(mem: &MemCtl, at: Spa) -> u8 {
    let mut b = [0];
    mem.read(Domain::Shared, at, &mut b).expect("the window");
    b[0]
}

#[test]
fn mappings_and_the_file_are_the_same() {
    for cache in [CacheMode::Page, CacheMode::None] {
        let mem = memory(cache);
        let at = mem.window().start;
        let (_path, f) = file(4);
        mem.map_file(at, 4 * PAGE, f.as_fd(), 0, true)
            .expect("mapped");
        let other = at.plus(16 * PAGE);
        mem.map_file(other, 2 * PAGE, f.as_fd(), PAGE, false)
            .expect("mapped");
        assert_eq!(byte(&mem, at.plus(3 * PAGE)), 4);
        assert_eq!(byte(&mem, other), 2);
        mem.write(Domain::Shared, at.plus(PAGE + 7), b"shared")
            .expect("written");
        let mut got = [0; 6];
        f.read_exact_at(&mut got, PAGE + 7).expect("read");
        assert_eq!(&got, b"shared");
        mem.read(Domain::Shared, other.plus(7), &mut got)
            .expect("read");
        assert_eq!(&got, b"shared");
        f.write_all_at(b"SHARED", PAGE + 7).expect("written");
        mem.read(Domain::Shared, other.plus(7), &mut got)
            .expect("read");
        assert_eq!(&got, b"SHARED");
        // Without the right to write, a write stays here.
        mem.write(Domain::Shared, other, &[99])
            .expect("an accident");
        f.read_exact_at(&mut got[..1], PAGE).expect("read");
        assert_eq!(got[0], 2);
        mem.unmap_file(at, 4 * PAGE).expect("unmapped");
        assert_eq!(byte(&mem, at), 0);
    }
}

#[test]
fn only_shared_accesses_reach_the_window() {
    let mem = memory(CacheMode::Page);
    let window = mem.window();
    assert_eq!((window.start.0, window.end.0), (SIZE, SIZE + WINDOW));
    let (_path, f) = file(1);
    mem.map_file(window.start, PAGE, f.as_fd(), 0, true)
        .expect("mapped");
    let private = Domain::Private(Asid(1));
    let mut b = [0; 8];
    let out = |r: Result<(), Error>| assert!(matches!(r, Err(Error::OutOfRange { .. })), "{r:?}");
    out(mem.read(private, window.start, &mut b));
    out(mem.write(private, window.start, &b));
    out(mem.write_u64(private, window.start, 0));
    out(mem.zero_page(private, window.start));
    out(mem.host_page(private, window.start, true).map(drop));
    out(mem.read(Domain::Shared, window.end, &mut b));
    out(mem.encrypt_in_place(Asid(1), window.start));
    out(mem.decrypt_for_firmware(Asid(1), window.start, &mut b));
    assert_eq!(mem.rmp().lookup(window.start), None);
    mem.rmp()
        .check_host_write(window.start)
        .expect("nobody's but the hypervisor's");
    mem.bus_read(window.start, &mut b);
    assert_eq!(b, [0xff; 8], "no DRAM");
    mem.write_u64(Domain::Shared, window.start, 42)
        .expect("written");
    assert_eq!(mem.read_u64(Domain::Shared, window.start), Ok(42));
    let host = mem.window_ptr(window.start, PAGE).expect("inside");
    assert_eq!(
        mem.host_page(Domain::Shared, window.start, true),
        Ok(Some(host))
    );
    assert_eq!(mem.window_ptr(window.start, WINDOW + 1), None);
    assert_eq!(mem.window_ptr(Spa(0), PAGE), None);
    let mut dump = Vec::new();
    mem.dump(&mut dump).expect("a dump");
    assert_eq!(dump.len() as u64, SIZE);
}

#[test]
fn what_is_no_page_of_the_window_is_refused() {
    let mem = memory(CacheMode::Page);
    let (_path, f) = file(1);
    let start = mem.window().start;
    let map = |at, len, offset| mem.map_file(at, len, f.as_fd(), offset, true);
    assert!(matches!(
        map(start.plus(1), PAGE, 0),
        Err(Error::Unaligned { .. })
    ));
    assert!(matches!(
        map(start, PAGE + 1, 0),
        Err(Error::Unaligned { .. })
    ));
    assert!(matches!(map(start, 0, 0), Err(Error::Unaligned { .. })));
    assert!(matches!(
        map(Spa(0), PAGE, 0),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        map(start, WINDOW + PAGE, 0),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        map(start, PAGE, 1),
        Err(Error::Host {
            errno: libc::EINVAL,
            ..
        })
    ));
    assert!(matches!(
        map(start, PAGE, u64::MAX),
        Err(Error::Host {
            errno: libc::EOVERFLOW,
            ..
        })
    ));
    let zero = File::open("/proc/self/status").expect("there");
    assert!(matches!(
        mem.map_file(start, PAGE, zero.as_fd(), 0, false),
        Err(Error::Host { .. })
    ));
    let (path, _) = file(1);
    let read_only = File::open(path.path()).expect("there");
    assert!(check_file(read_only.as_fd(), false).is_ok());
    assert!(matches!(
        check_file(read_only.as_fd(), true),
        Err(Error::Host {
            errno: libc::EACCES,
            ..
        })
    ));
    assert_eq!(
        byte(&mem, start.plus(WINDOW - 1)),
        0,
        "still the window's own"
    );
}

#[test]
fn a_file_that_shrinks_leaves_zeroes() {
    let mem = memory(CacheMode::Page);
    let at = mem.window().start;
    let (_path, f) = file(3);
    mem.map_file(at, 8 * PAGE, f.as_fd(), 0, true)
        .expect("mapped");
    assert_eq!(byte(&mem, at.plus(2 * PAGE)), 3);
    f.set_len(PAGE).expect("shrunk");
    assert_eq!(byte(&mem, at.plus(2 * PAGE)), 0);
    mem.write(Domain::Shared, at.plus(5 * PAGE), &[1])
        .expect("nowhere");
    assert_eq!(f.metadata().expect("there").len(), PAGE);
    assert_eq!(byte(&mem, at), 1);
    // Mapped again, it is the file again.
    f.set_len(8 * PAGE).expect("grown");
    mem.map_file(at, 8 * PAGE, f.as_fd(), 0, true)
        .expect("mapped");
    assert_eq!(byte(&mem, at.plus(5 * PAGE)), 0);
}

#[test]
fn no_tlb_entry_outlives_its_mapping() {
    let mem = memory(CacheMode::Page);
    let tlb = Arc::new(FastTlb::new());
    mem.attach_tlb(Arc::clone(&tlb));
    let at = mem.window().start;
    let (_path, f) = file(1);
    let (va, hit) = (Va(0x7000), || tlb.lookup(Va(0x7000), 8, Access::Write));
    for again in 0..2 {
        mem.map_file(at, PAGE, f.as_fd(), 0, true).expect("mapped");
        assert_eq!(hit(), None);
        let filled = mem.fill_tlb(&tlb, va, Domain::Shared, at, Perms::RW);
        assert_eq!(filled, Ok(mem.window_ptr(at, PAGE)));
        assert!(hit().is_some());
        if again == 1 {
            mem.unmap_file(at, PAGE).expect("unmapped");
            assert_eq!(hit(), None);
        }
    }
}

#[test]
fn a_clone_of_the_process_shares_the_window_and_not_dram() {
    let mem = memory(CacheMode::Page);
    let at = mem.window().start;
    let (_path, f) = file(2);
    mem.map_file(at, 2 * PAGE, f.as_fd(), 0, true)
        .expect("mapped");
    let reader = at.plus(16 * PAGE);
    mem.map_file(reader, 2 * PAGE, f.as_fd(), 0, false)
        .expect("mapped");
    let shared = mem.window_ptr(at, PAGE).expect("the window");
    let dram = mem.host_page(Domain::Shared, Spa(0x5000), true);
    let dram = dram.expect("memory").expect("it has an address");
    // SAFETY: the child only stores two bytes where the controller says, and ends; nothing of the harness runs in it.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            shared.as_ptr().write_volatile(42);
            dram.as_ptr().write_volatile(42);
            libc::_exit(7);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7);
    assert_eq!((byte(&mem, at), byte(&mem, reader)), (42, 42));
    assert_eq!(byte(&mem, Spa(0x5000)), 0);
}
