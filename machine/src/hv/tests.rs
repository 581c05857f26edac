//! What a hostile guest can say to the hypervisor: it answers or ends the guest, and never panics.

use sevlab_memctl::{CacheMode, CipherKind, Config};
use zerocopy::IntoBytes;

use super::*;

fn hypervisor(mode: SevMode) -> Hypervisor {
    let snp = mode == SevMode::Snp;
    let layout = Layout::new(4 << 20, 1 << 16, snp);
    let mem = MemCtl::new(Config {
        size: layout.size,
        cipher: CipherKind::Aes128Xe,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp,
    })
    .expect("memory");
    let cpuid = Arc::new(CpuModel::host(mode, 509, 100));
    Hypervisor::new(mem, layout, mode, Asid(1), cpuid).expect("a hypervisor")
}

/// The guest left with VMGEXIT and this value in its GHCB MSR.
fn vmgexit(hv: &mut Hypervisor, vcpu: &mut Vcpu, msr: u64) -> Result<(), Error> {
    hv.set_control(offset_of!(Control, exit_code), ExitCode::VMGEXIT.0)?;
    hv.set_control(offset_of!(Control, ghcb_gpa), msr)?;
    hv.handle(vcpu)
}

fn vcpu(hv: &Hypervisor) -> Box<Vcpu> {
    Vcpu::new(Arc::clone(&hv.mem), sevlab_cpu::VcpuConfig::default())
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn random_ghcb_pages_are_answered() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut hv = hypervisor(mode);
        let mut vcpu = vcpu(&hv);
        let gpa = hv.layout.ghcb_gpa();
        let at = hv.layout.shared;
        let mut rng = Random(0x1234_5678_9abc_def1);
        vmgexit(&mut hv, &mut vcpu, gpa.0 | 0x12).expect("registration");
        for _ in 0..20_000 {
            let mut page = [0u64; 512];
            for word in &mut page {
                *word = match rng.next() % 4 {
                    0 => rng.next(),
                    1 => rng.next() & 0xff,
                    2 => gpa.0 + 0x800 + (rng.next() & 0x7f8),
                    _ => 0,
                };
            }
            // Mostly an event there is, on a page that passes the first checks.
            page[0x390 / 8] = ExitCode::ALL[(rng.next() % ExitCode::ALL.len() as u64) as usize].0;
            if !rng.next().is_multiple_of(4) {
                page[0x3f0 / 8] = u64::MAX;
                page[0x3f8 / 8] = u64::MAX;
                page[0xff8 / 8] = 2 << 16;
            }
            hv.mem
                .write(Domain::Shared, at, page.as_bytes())
                .expect("the page");
            match vmgexit(&mut hv, &mut vcpu, gpa.0) {
                Ok(()) | Err(Error::Terminated { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
        assert!(hv.calls.executed == 0, "none of this may reach the host");
    }
}

#[test]
fn random_msr_values_are_answered() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut hv = hypervisor(mode);
        let mut vcpu = vcpu(&hv);
        let mut rng = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..20_000 {
            let low = rng.next() & 0x1ff;
            let value = match rng.next() % 3 {
                0 => rng.next(),
                1 => rng.next() & !0xfff | low,
                _ => (rng.next() & 0xff) << 12 | low,
            };
            match vmgexit(&mut hv, &mut vcpu, value) {
                Ok(()) | Err(Error::GhcbMsr { .. } | Error::Terminated { .. }) => {}
                Err(e) => panic!("{value:#x}: {e}"),
            }
        }
    }
}

#[test]
fn request_blocks_must_be_shared() {
    let mut hv = hypervisor(SevMode::Es);
    let mut vcpu = vcpu(&hv);
    let window = hv.layout.shared_window();
    for gpa in [
        0,
        0x1000,
        window.start.0 - 8,
        window.end.0 - 8,
        window.end.0,
        u64::MAX - 8,
    ] {
        let rax = hv.hypercall(&mut vcpu, Gpa(gpa)).expect("memory");
        assert_eq!(rax, hostcall::BAD_BLOCK, "{gpa:#x}");
    }
    let mut call = |hv: &mut Hypervisor, nr: i64, args: [u64; 6]| {
        let at = hv.layout.request_gpa();
        let mut block = [0u64; 8];
        block[0] = nr as u64;
        block[1..7].copy_from_slice(&args);
        let spa = hv.layout.shared_spa(at, 64).expect("shared");
        hv.mem
            .write(Domain::Shared, spa, block.as_bytes())
            .expect("memory");
        assert_eq!(hv.hypercall(&mut vcpu, at).expect("memory"), hostcall::DONE);
        hv.mem
            .read_u64(Domain::Shared, spa.plus(hostcall::RESULT))
            .expect("memory") as i64
    };
    let pid = call(&mut hv, libc::SYS_getpid, [0; 6]);
    assert_eq!(pid, i64::from(std::process::id()));
    let len = hv.layout.bounce_len;
    for (nr, args, errno) in [
        (9999, [0; 6], libc::ENOSYS),
        (libc::SYS_mmap, [0; 6], libc::ENOSYS),
        (libc::SYS_execve, [0; 6], libc::ENOSYS),
        (libc::SYS_read, [0, len, 1, 0, 0, 0], libc::EFAULT),
        (libc::SYS_read, [0, 0, len + 1, 0, 0, 0], libc::EFAULT),
        (
            libc::SYS_write,
            [1, u64::MAX - 1, 16, 0, 0, 0],
            libc::EFAULT,
        ),
        (libc::SYS_read, [9999, 0, 1, 0, 0, 0], libc::EBADF),
    ] {
        assert_eq!(call(&mut hv, nr, args), -i64::from(errno), "{nr} {args:x?}");
    }
    assert_eq!(hv.calls.executed, 1);
}

#[test]
fn exits_that_nothing_can_answer_end_the_guest() {
    let mut hv = hypervisor(SevMode::Off);
    let mut vcpu = vcpu(&hv);
    let mut exit = |code: ExitCode| {
        hv.set_control(offset_of!(Control, exit_code), code.0)
            .expect("memory");
        hv.handle(&mut vcpu)
    };
    assert!(matches!(exit(ExitCode::VMGEXIT), Err(Error::Exit { .. })));
    assert!(matches!(exit(ExitCode::SHUTDOWN), Err(Error::Exit { .. })));
    assert!(matches!(
        exit(ExitCode::NPF),
        Err(Error::NestedFault { .. })
    ));
    assert!(exit(ExitCode::CPUID).is_ok());
}

#[test]
fn page_states_change_and_come_back() {
    let hv = hypervisor(SevMode::Snp);
    let gpa = Gpa(0x20_3000);
    hv.memory()
        .assign(Gpa(0x20_0000), PageSize::Size2M, true, false)
        .expect("RMPUPDATE");
    let spa = hv.layout.spa(gpa).expect("memory");
    let entry = |hv: &Hypervisor| hv.mem.rmp().lookup(spa).expect("an entry");
    assert!(entry(&hv).is_2m());
    hv.memory()
        .assign(gpa, PageSize::Size4K, false, false)
        .expect("RMPUPDATE");
    assert!(!entry(&hv).assigned());
    assert_eq!(
        hv.memory().npt.lookup(gpa).expect("tables").map(|l| l.1),
        Some(PageSize::Size4K)
    );
    hv.memory()
        .assign(gpa, PageSize::Size4K, true, false)
        .expect("RMPUPDATE");
    let e = entry(&hv);
    assert!(e.assigned() && !e.is_2m() && !e.validated());
    assert_eq!((e.gpa(), e.asid()), (gpa.0, 1));
}
