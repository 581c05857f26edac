//! What a hostile guest kernel can ask of the file window.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sevlab_arch::Asid;
use sevlab_cpu::{SevMode, VcpuConfig};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, HostOptions};
use zerocopy::IntoBytes;

use super::*;
use crate::hv::cpuid::CpuModel;
use crate::hv::hostcall::{BAD_BLOCK, BLOCK, DONE, RESULT};
use crate::kernel::outside::HostCall;

fn hypervisor() -> Hypervisor {
    let layout = Layout::new(4 << 20, 1 << 16, true);
    let config = Config {
        size: layout.size,
        cipher: CipherKind::Aes128Xe,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp: true,
    };
    let mem = MemCtl::with_window(config, &HostOptions::default(), layout.files_len);
    let cpuid = Arc::new(CpuModel::host(SevMode::Snp, 509, 100));
    Hypervisor::new(mem.expect("memory"), layout, SevMode::Snp, Asid(1), cpuid)
        .expect("a hypervisor")
}

/// The request as a guest makes it; the result in its block.
fn ask(hv: &mut Hypervisor, block: &HostCall) -> i64 {
    let at = hv.layout.request_gpa();
    let mut words = [0u64; 8];
    words[0] = block.nr as u64;
    words[1..7].copy_from_slice(&block.args);
    let spa = hv.layout.shared_spa(at, BLOCK).expect("shared");
    let (mem, bytes) = (Arc::clone(&hv.mem), words.as_bytes());
    mem.write(Domain::Shared, spa, bytes).expect("memory");
    let mut vcpu = Vcpu::new(Arc::clone(&mem), VcpuConfig::default());
    assert_eq!(hv.hypercall(&mut vcpu, at).expect("answered"), DONE);
    mem.read_u64(Domain::Shared, spa.plus(RESULT))
        .expect("memory") as i64
}

/// A file of one page, open, with a descriptor that a guest could have.
fn file() -> std::fs::File {
    let mut path = std::env::temp_dir();
    path.push(format!("sevlab-window-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).open(&path);
    let mut file = file.expect("a file");
    std::fs::remove_file(&path).expect("just made");
    file.write_all(&[7; 4096]).expect("written");
    file
}

fn map(hv: &mut Hypervisor, fd: i32, offset: u64, len: u64, at: Gpa, writable: bool) -> i64 {
    let call = WindowCall::Map {
        fd,
        offset,
        len,
        at,
        writable,
    };
    ask(hv, &call.encode())
}

#[test]
fn pages_of_files_come_and_go() {
    let mut hv = hypervisor();
    let (file, at) = (file(), hv.layout.file_window().start);
    let fd = file.as_raw_fd();
    let spa = hv.layout.file_spa(at, 1).expect("the window");
    assert_eq!(hv.memory().npt.lookup(at).expect("lookup"), None);
    assert_eq!(map(&mut hv, fd, 0, LARGE_PAGE, at, true), 0);
    let leaf = Some((spa, PageSize::Size2M));
    assert_eq!(hv.memory().npt.lookup(at).expect("lookup"), leaf);
    hv.mem
        .write(Domain::Shared, spa, b"guest")
        .expect("the window");
    let mut got = [0; 6];
    file.read_exact_at(&mut got, 0).expect("read");
    assert_eq!(&got, b"guest\x07");
    let host = host_ptr(&hv.mem, &hv.layout, at, 8).expect("the window");
    assert_eq!(Some(host), hv.mem.window_ptr(spa, 8));
    let len = LARGE_PAGE;
    assert_eq!(ask(&mut hv, &WindowCall::Unmap { at, len }.encode()), 0);
    assert_eq!(hv.memory().npt.lookup(at).expect("lookup"), None);
    // A memfd among the kernel's own.
    let made = ask(&mut hv, &WindowCall::Create { len: 8192 }.encode());
    let made = i32::try_from(made).expect("a descriptor");
    assert!((GUEST_FDS..KERNEL_FDS_END).contains(&made));
    assert_eq!(map(&mut hv, made, 0, LARGE_PAGE, at, true), 0);
    // SAFETY: made for this test.
    drop(unsafe { OwnedFd::from_raw_fd(made) });
    assert_eq!(hv.mem.read_u64(Domain::Shared, spa), Ok(0));
}

#[test]
fn what_no_guest_may_have_is_refused() {
    let mut hv = hypervisor();
    let file = file();
    let fd = file.as_raw_fd();
    let window = hv.layout.file_window();
    let at = window.start;
    let (einval, ebadf) = (-i64::from(libc::EINVAL), -i64::from(libc::EBADF));
    for (len, at) in [
        (0, at),
        (4096, at),
        (LARGE_PAGE + 4096, at),
        (LARGE_PAGE, at.plus(4096)),
        (LARGE_PAGE, Gpa(0)),
        (LARGE_PAGE, Gpa(at.0 - LARGE_PAGE)),
        (LARGE_PAGE, window.end),
        (window.end.0 - at.0 + LARGE_PAGE, at),
        (0u64.wrapping_sub(LARGE_PAGE), at),
        (LARGE_PAGE, Gpa(0u64.wrapping_sub(LARGE_PAGE))),
    ] {
        assert_eq!(map(&mut hv, fd, 0, len, at, true), einval, "{len:#x} {at}");
        let unmap = WindowCall::Unmap { at, len };
        assert_eq!(ask(&mut hv, &unmap.encode()), einval, "{len:#x} {at}");
    }
    for fd in [-1, KERNEL_FDS_END, i32::MAX, i32::MIN, 998] {
        assert_eq!(map(&mut hv, fd, 0, LARGE_PAGE, at, false), ebadf, "{fd}");
        let check = WindowCall::Check {
            fd,
            writable: false,
        };
        assert_eq!(ask(&mut hv, &check.encode()), ebadf, "{fd}");
    }
    let device = std::fs::File::open("/dev/zero").expect("there");
    let read_only = std::fs::File::open("/proc/self/exe").expect("there");
    for (file, writable, errno) in [
        (&device, false, libc::ENODEV),
        (&read_only, true, libc::EACCES),
    ] {
        let fd = file.as_raw_fd();
        let refused = map(&mut hv, fd, 0, LARGE_PAGE, at, writable);
        assert_eq!(refused, -i64::from(errno));
    }
    assert_eq!(map(&mut hv, fd, 1, LARGE_PAGE, at, true), einval);
    let far = map(&mut hv, fd, u64::MAX - 4095, LARGE_PAGE, at, true);
    assert_eq!(far, -i64::from(libc::EOVERFLOW));
    let huge = WindowCall::Create { len: u64::MAX };
    assert_eq!(ask(&mut hv, &huge.encode()), einval);
    for nr in [-24, i64::MIN] {
        let block = HostCall { nr, args: [1; 6] };
        assert_eq!(ask(&mut hv, &block), -i64::from(libc::ENOSYS));
    }
    assert_eq!(hv.memory().npt.lookup(at).expect("lookup"), None);
    let outside = hv.layout.private().start;
    let mut vcpu = Vcpu::new(Arc::clone(&hv.mem), VcpuConfig::default());
    let answer = hv.hypercall(&mut vcpu, outside).expect("answered");
    assert_eq!(answer, BAD_BLOCK);
    assert_eq!(host_ptr(&hv.mem, &hv.layout, outside, 1), None);
}
