#![allow(unsafe_code)] // pipes
//! Whole machines with tiny programs: every mode runs them, DRAM hides what it should, and what an
//! attacker changes is noticed.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use sevlab_arch::Spa;
use sevlab_arch::exit::ExitCode;
use sevlab_arch::rmp::{RmpStatus, RmpUpdate};
use sevlab_cpu::svm::EntryError;
use sevlab_memctl::{CacheMode, CipherKind, Domain, PageSize};
use sevlab_psp::SnpDigest;

use super::*;
use crate::config::Engine;
use crate::kernel;
use crate::kernel::mm::{AddressSpace, Backing, Cx, Fault, Place, Prot, Vma};
use crate::kernel::outside::{HostCall, Outside};

mod hostile;
mod limits;

const MODES: [SevMode; 4] = [SevMode::Off, SevMode::Sev, SevMode::Es, SevMode::Snp];
const MARKER: &[u8; 16] = b"SEVLAB-MARKER-16";
const MESSAGE: &[u8] = b"told through the fence\n";

/// A program file that is removed when dropped.
struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A static ELF of one segment: `code`, then `data` at a 16-byte boundary, at 0x400000.
fn elf(code: &[u8], data: &[u8]) -> Program {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    const BASE: u64 = 0x40_0000;
    const START: u64 = 64 + 56;
    let mut body = code.to_vec();
    while !(START as usize + body.len()).is_multiple_of(16) {
        body.push(0xcc);
    }
    body.extend_from_slice(data);
    let size = START + body.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [BASE + START, 64, 0] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [0, BASE, BASE, size, size + 0x2000, 0x1000] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    assert_eq!(file.len() as u64, START);
    file.extend_from_slice(&body);
    let name = format!(
        "sevlab-machine-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, file).expect("a temporary file");
    Program(path)
}

/// Checks CPUID's vendor, executes RDTSC and RDTSCP, copies the marker to its stack, writes the message
/// to `fd`, and exits with 7 (with 1 if the vendor is wrong).
fn teller(fd: i32) -> Program {
    // The data: the marker, then the message. `code` ends where padding begins.
    let build = |data: u32| -> Vec<u8> {
        let mut c = vec![0x31, 0xc0, 0x0f, 0xa2]; // xor eax, eax; cpuid
        c.extend_from_slice(&[0x81, 0xfb]); // cmp ebx, "Auth"
        c.extend_from_slice(b"Auth");
        c.extend_from_slice(&[0x74, 0x0c]); // je +12
        c.extend_from_slice(&[0xb8, 231, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x0f, 0x05]); // exit_group(1)
        c.extend_from_slice(&[0x0f, 0x31, 0x0f, 0x01, 0xf9]); // rdtsc; rdtscp
        for half in [0u32, 8] {
            c.extend_from_slice(&[0x48, 0x8b, 0x05]); // mov rax, [rip + marker]
            let next = c.len() as u32 + 4;
            c.extend_from_slice(&(data + half - next).to_le_bytes());
            c.extend_from_slice(&[0x48, 0x89, 0x84, 0x24]); // mov [rsp - 4096 + half], rax
            c.extend_from_slice(&(half as i32 - 4096).to_le_bytes());
        }
        c.extend_from_slice(&[0xb8, 1, 0, 0, 0, 0xbf]); // write(fd, message, length)
        c.extend_from_slice(&fd.to_le_bytes());
        c.extend_from_slice(&[0x48, 0x8d, 0x35]);
        let next = c.len() as u32 + 4;
        c.extend_from_slice(&(data + 16 - next).to_le_bytes());
        c.push(0xba);
        c.extend_from_slice(&(MESSAGE.len() as u32).to_le_bytes());
        c.extend_from_slice(&[0x0f, 0x05]);
        c.extend_from_slice(&[0xb8, 231, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05]); // exit_group(7)
        c
    };
    let padded = (120 + build(1 << 20).len() as u32).next_multiple_of(16) - 120;
    elf(&build(padded), &[MARKER.as_slice(), MESSAGE].concat())
}

fn config(mode: SevMode, program: &Program) -> MachineConfig {
    let mut c = MachineConfig::new(program.0.clone());
    c.sev = mode;
    c.memory = 16 << 20;
    c.engine = Engine::Interpreter;
    c.seed = Some(42);
    c.host_signals = false;
    c
}

fn machine(mode: SevMode, program: &Program) -> Machine {
    Machine::new(config(mode, program)).expect("a machine")
}

fn pipe() -> (std::fs::File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `pipe` gets room for two descriptors, which then have one owner each.
    unsafe {
        use std::os::fd::FromRawFd;
        assert_eq!(libc::pipe(fds.as_mut_ptr()), 0);
        (
            std::fs::File::from_raw_fd(fds[0]),
            OwnedFd::from_raw_fd(fds[1]),
        )
    }
}

/// Runs a teller; what it said, and how it ended.
fn tell(config: impl FnOnce(&Program) -> MachineConfig) -> (Vec<u8>, Machine, RunOutcome) {
    let (mut from, to) = pipe();
    let program = teller(to.as_raw_fd());
    let mut m = Machine::new(config(&program)).expect("a machine");
    let outcome = m.run().expect("the guest ends");
    drop(to);
    let mut said = Vec::new();
    from.read_to_end(&mut said).expect("a pipe");
    (said, m, outcome)
}

/// How often DRAM holds the marker, as a bus probe sees it.
fn markers(m: &Machine) -> usize {
    m.mem().write_back_all().expect("write-back");
    let mut found = 0;
    let mut page = [0; 4096];
    for at in (0..m.mem().size()).step_by(4096) {
        m.mem().bus_read(Spa(at), &mut page);
        found += page.chunks(16).filter(|c| *c == MARKER).count();
    }
    found
}

#[test]
fn every_mode_runs_the_same_program() {
    for mode in MODES {
        for (cipher, cache) in [
            (CipherKind::Aes128Xe, CacheMode::Page),
            (CipherKind::Aes128Xex, CacheMode::None),
            (CipherKind::Aes256Xts, CacheMode::Page),
        ] {
            let (said, _, outcome) = tell(|p| MachineConfig {
                cipher,
                cache,
                ..config(mode, p)
            });
            assert_eq!(said, MESSAGE, "{mode:?} {cipher} {cache:?}");
            assert_eq!(outcome.exit, GuestEnd::Exited(7));
            let s = &outcome.stats;
            let exits = |code: ExitCode| s.exits.codes.get(&code.0).copied().unwrap_or(0);
            let events = |code: ExitCode| s.exits.events.get(&code.0).copied().unwrap_or(0);
            assert_eq!(s.vcpu.entries, s.exits.total());
            if mode.encrypted_state() {
                assert_eq!(exits(ExitCode::VMMCALL) + exits(ExitCode::CPUID), 0);
                assert!(exits(ExitCode::VMGEXIT) >= 4);
                for code in [ExitCode::CPUID, ExitCode::RDTSC, ExitCode::RDTSCP] {
                    assert_eq!(events(code), 1, "{code}");
                }
                assert!(events(ExitCode::VMMCALL) >= 1);
            } else {
                assert_eq!(exits(ExitCode::VMGEXIT), 0);
                for code in [ExitCode::CPUID, ExitCode::RDTSC, ExitCode::RDTSCP] {
                    assert_eq!(exits(code), 1, "{code}");
                }
                assert!(exits(ExitCode::VMMCALL) >= 1);
            }
            assert_eq!(s.memory.aes_blocks > 0, mode.encrypted());
        }
    }
}

#[test]
fn the_translator_says_the_same() {
    for mode in MODES {
        let (said, _, outcome) = tell(|p| MachineConfig {
            engine: Engine::Jit(sevlab_jit::JitOptions::all_off()),
            ..config(mode, p)
        });
        assert_eq!(
            (said.as_slice(), outcome.exit),
            (MESSAGE, GuestEnd::Exited(7))
        );
        assert!(outcome.stats.translated.is_some());
    }
}

#[test]
fn dram_shows_private_memory_only_without_encryption() {
    for mode in MODES {
        let (_, m, _) = tell(|p| config(mode, p));
        let found = markers(&m);
        // In the image and on the stack; never anywhere once memory is encrypted.
        assert_eq!(found, if mode == SevMode::Off { 2 } else { 0 }, "{mode:?}");
    }
}

#[test]
fn a_dump_is_all_of_dram() {
    let (_, m, _) = tell(|p| config(SevMode::Snp, p));
    let path = std::env::temp_dir().join(format!("sevlab-dump-{}", std::process::id()));
    m.dump_dram(&path).expect("a dump");
    let dump = std::fs::read(&path).expect("the dump");
    std::fs::remove_file(&path).expect("the dump");
    assert_eq!(dump.len() as u64, m.mem().size());
    let at = m.layout().vmsa().0 as usize;
    let mut page = [0; 4096];
    m.mem().bus_read(m.layout().vmsa(), &mut page);
    assert_eq!(dump[at..at + 4096], page);
    assert!(!dump.chunks(16).any(|c| c == MARKER));
}

#[test]
fn a_seed_makes_runs_repeatable() {
    let run = |mode, seed| {
        let (from, to) = pipe();
        // The same descriptor, so the same program, each time.
        let program = teller(to.as_raw_fd());
        let mut c = config(mode, &program);
        c.seed = seed;
        c.argv = vec![OsString::from("teller")];
        let m = Machine::new(c).expect("a machine");
        drop((from, to));
        let mut page = [0; 4096];
        let first = m.layout().kernel_memory().start;
        m.mem().bus_read(m.spa(first).expect("memory"), &mut page);
        (m.launched().clone(), page)
    };
    for mode in [SevMode::Sev, SevMode::Es] {
        let (a, _) = run(mode, Some(1));
        let (b, _) = run(mode, Some(2));
        assert_eq!(a.measurement.len(), 32);
        assert_ne!(a.measurement, b.measurement, "another owner, another nonce");
    }
    let (a, _) = run(SevMode::Snp, Some(1));
    assert_eq!(a.measurement.len(), 48);
    assert_eq!(run(SevMode::Off, None).0.measurement, Vec::<u8>::new());
}

#[test]
fn the_snp_measurement_is_of_the_image_alone() {
    let program = elf(&[0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05], &[]);
    let other = elf(&[0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05], &[1]);
    let measure = |p: &Program, change: &dyn Fn(&mut MachineConfig)| {
        let mut c = config(SevMode::Snp, p);
        c.argv = vec![OsString::from("x")];
        change(&mut c);
        let m = Machine::new(c).expect("a machine");
        m.launched().measurement.clone()
    };
    let first = measure(&program, &|_| {});
    assert_eq!(first, measure(&program, &|_| {}));
    assert_eq!(
        first,
        measure(&program, &|c| c.cipher = CipherKind::Aes256Xts)
    );
    assert_eq!(first, measure(&program, &|c| c.host_data = [1; 32]));
    assert_ne!(
        first,
        measure(&program, &|c| c.argv.push(OsString::from("y")))
    );
    assert_ne!(first, measure(&other, &|_| {}));
    assert_ne!(first, SnpDigest::default().value());
}

#[test]
fn a_changed_save_area_is_not_entered() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let (_from, to) = pipe();
        let program = teller(to.as_raw_fd());
        for offset in [0x178, 0x1f8, 0x3b0, 0x800] {
            let mut m = machine(mode, &program);
            let at = m.layout().vmsa().plus(offset);
            let mut byte = [0];
            m.mem().bus_read(at, &mut byte);
            m.mem().bus_write(at, &[byte[0] ^ 1]);
            match m.run() {
                Err(Error::Entry(EntryError::Integrity { spa, .. })) => {
                    assert_eq!(spa, m.layout().vmsa());
                }
                other => panic!("{mode:?} {offset:#x}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_remapped_page_is_noticed_under_snp() {
    let (_from, to) = pipe();
    let program = teller(to.as_raw_fd());
    let mut m = machine(SevMode::Snp, &program);
    // Two launched pages change places in the nested tables.
    let first = m.layout().kernel_memory().start;
    let (a, b) = (first, first.plus(4096));
    let spa = |gpa| m.layout.spa(gpa).expect("memory");
    let (at_a, at_b) = (spa(a), spa(b));
    m.hv.memory()
        .npt
        .map(a, at_b, PageSize::Size4K)
        .expect("a map");
    m.hv.memory()
        .npt
        .map(b, at_a, PageSize::Size4K)
        .expect("a map");
    match m.run() {
        Err(Error::NestedFault { gpa, .. }) => assert!(gpa.page() == a || gpa.page() == b),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_taken_and_given_back_is_noticed_under_snp() {
    let (_from, to) = pipe();
    let program = teller(to.as_raw_fd());
    let mut m = machine(SevMode::Snp, &program);
    let gpa = m.layout().kernel_memory().start;
    let spa = m.spa(gpa).expect("memory");
    let update = |assigned| RmpUpdate {
        gpa: gpa.0,
        assigned,
        asid: ES_ASID.0,
        ..RmpUpdate::default()
    };
    let free = RmpUpdate::default();
    assert_eq!(m.mem().rmp().rmpupdate(spa, &free), RmpStatus::SUCCESS);
    assert_eq!(m.mem().rmp().rmpupdate(spa, &update(1)), RmpStatus::SUCCESS);
    match m.run() {
        Err(Error::Kernel(kernel::Error::Protocol { what })) => {
            assert!(what.contains("not validated"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn faults_end_a_guest_and_not_the_host() {
    for (code, end) in [
        (&[0x0f, 0x0b][..], GuestEnd::Killed(libc::SIGILL)),
        (&[0xf4], GuestEnd::Killed(libc::SIGSEGV)),
        (&[0xcc], GuestEnd::Killed(libc::SIGTRAP)),
        (&[0x0f, 0x01, 0xd9], GuestEnd::Killed(libc::SIGILL)),
        (&[0xe4, 0x60], GuestEnd::Killed(libc::SIGSEGV)),
        (
            &[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
            GuestEnd::Killed(libc::SIGSEGV),
        ),
    ] {
        let program = elf(code, &[]);
        for mode in MODES {
            let outcome = machine(mode, &program).run().expect("the guest ends");
            assert_eq!(outcome.exit, end, "{mode:?} {code:x?}");
        }
    }
}

#[test]
fn a_machine_runs_once() {
    let program = elf(&[0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05], &[]);
    let mut m = machine(SevMode::Off, &program);
    assert_eq!(m.run().expect("the guest ends").exit, GuestEnd::Exited(0));
    assert!(matches!(m.run(), Err(Error::Used)));
}

#[test]
fn reports_are_json_with_the_measurement() {
    for mode in MODES {
        let (_, m, outcome) = tell(|p| config(mode, p));
        let report = m.report(&outcome);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("valid JSON");
        assert_eq!(json["config"]["sev"], crate::mode_name(mode));
        assert_eq!(json["end"], "exited with status 7");
        let hex = crate::stats::hex(&m.launched().measurement);
        assert_eq!(json["launch"]["measurement"], hex.as_str());
        assert_eq!(
            json["launch"]["commands"]
                .as_array()
                .is_some_and(|c| !c.is_empty()),
            mode.encrypted()
        );
        assert!(
            json["stats"]["instructions"]
                .as_u64()
                .is_some_and(|n| n > 10)
        );
        assert!(outcome.stats.to_string().contains(&hex));
    }
}

#[test]
fn resident_limits_hold() {
    let (said, m, _) = tell(|p| MachineConfig {
        resident: Some(sevlab_memctl::MIN_RESIDENT),
        ..config(SevMode::Snp, p)
    });
    assert_eq!(said, MESSAGE);
    assert!(m.mem().stats().peak_resident <= sevlab_memctl::MIN_RESIDENT as u64);
}

/// A machine whose guest half is `guest` instead of a program.
fn with_guest<R: 'static>(
    mode: SevMode,
    guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>, &Layout) -> R + 'static,
) -> (R, Machine) {
    let program = elf(&[0x0f, 0x0b], &[]);
    let mut m = machine(mode, &program);
    let Guest { regions, .. } = m.guest.take().expect("a fresh machine");
    let layout = m.layout.clone();
    let result = m.world(regions, move |vcpu, fence| {
        fence.boot(vcpu).expect("the protocol's start");
        guest(vcpu, fence, &layout)
    });
    (result.expect("no exit fails"), m)
}

/// A frame near the end of memory, which no launch touches.
fn far(layout: &Layout) -> Gpa {
    Gpa(layout.memory - 0x10_0000)
}

#[test]
fn the_fence_gives_every_mode_the_same_services() {
    for mode in MODES {
        let ((), m) = with_guest(mode, |vcpu, fence, _| {
            let before = (vcpu.state.gpr, vcpu.state.rip);
            let call = HostCall {
                nr: libc::SYS_getpid,
                args: [0; 6],
            };
            let pid = fence.host_call(vcpu, &call).expect("an answer");
            assert_eq!(pid, i64::from(std::process::id()));
            let call = HostCall {
                nr: libc::SYS_close,
                args: [999, 0, 0, 0, 0, 0],
            };
            let closed = fence.host_call(vcpu, &call).expect("an answer");
            assert_eq!(closed, -i64::from(libc::EBADF));
            let [a, b, ..] = fence.cpuid(vcpu, 0xd, 0).expect("an answer");
            assert_eq!((a, b), (7, 832));
            let (first, _) = fence.rdtsc(vcpu, false).expect("an answer");
            let (second, _) = fence.rdtsc(vcpu, true).expect("an answer");
            assert!(second > first);
            let data: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
            let mut back = vec![0; data.len()];
            fence.bounce_write(vcpu, 100, &data).expect("shared");
            fence.bounce_read(vcpu, 100, &mut back).expect("shared");
            assert_eq!(back, data);
            let len = fence.bounce_len() + fence.pager_len();
            assert!(fence.bounce_write(vcpu, len - 1, &[0; 2]).is_err());
            assert!(fence.bounce_read(vcpu, usize::MAX, &mut [0; 2]).is_err());
            assert_eq!(
                (vcpu.state.gpr, vcpu.state.rip),
                before,
                "as the program left them"
            );
        });
        let mut at = [0; 100];
        let bounce = m.spa(m.layout.bounce_gpa()).expect("shared");
        m.mem().bus_read(bounce.plus(100), &mut at);
        assert_eq!(at[99], 99, "the bounce area is plain to everybody");
    }
}

#[test]
fn pages_are_validated_once_and_large_ones_whole() {
    let ((), m) = with_guest(SevMode::Snp, |vcpu, fence, layout| {
        let gpa = far(layout);
        fence.accept(vcpu, gpa, 64).expect("PVALIDATE");
        // Its neighbours came along: this is no second validation.
        fence
            .accept(vcpu, gpa.plus(64 * 4096), 64)
            .expect("PVALIDATE");
        vcpu.write_gpa(gpa, true, b"private").expect("a valid page");
        // A launched region is validated page by page, and a second time is an attack.
        let launched = layout.kernel_memory().start.plus(0x1f_0000);
        fence.accept(vcpu, launched, 2).expect("PVALIDATE");
        let again = fence.accept(vcpu, launched, 1);
        assert!(
            matches!(again, Err(kernel::Error::Protocol { .. })),
            "{again:?}"
        );
    });
    let spa = m.spa(far(&m.layout)).expect("memory");
    let entry = m.mem().rmp().lookup(spa).expect("an entry");
    assert!(entry.is_2m() && entry.validated());
    let mut raw = [0; 7];
    m.mem().bus_read(spa, &mut raw);
    assert_ne!(&raw, b"private");
}

#[test]
fn pages_are_shared_and_taken_back() {
    let ((), m) = with_guest(SevMode::Snp, |vcpu, fence, layout| {
        let gpa = far(layout);
        fence.accept(vcpu, gpa, 1).expect("PVALIDATE");
        let one = gpa.plus(4096);
        // PVALIDATE of one page under a large entry faults; the hypervisor splits it.
        fence
            .share(vcpu, gpa, 3, true)
            .expect("a page state change");
        vcpu.write_gpa(one, false, b"for everybody")
            .expect("a shared page");
        let private = vcpu.read_gpa(one, true, &mut [0; 4]);
        assert!(private.is_err(), "not the guest's any more");
        let mut host = [0; 13];
        let spa = layout.spa(one).expect("memory");
        vcpu.mem.read(Domain::Shared, spa, &mut host).expect("DRAM");
        assert_eq!(&host, b"for everybody");
        fence
            .share(vcpu, gpa, 3, false)
            .expect("a page state change");
        vcpu.write_gpa(one, true, b"mine").expect("a private page");
        let shared = vcpu.write_gpa(one, false, b"x");
        assert!(shared.is_err(), "not the hypervisor's any more");
    });
    let entry = |gpa: Gpa| {
        m.mem()
            .rmp()
            .lookup(m.spa(gpa).expect("memory"))
            .expect("an entry")
    };
    let gpa = far(&m.layout);
    assert!(!entry(gpa).is_2m() && entry(gpa).validated());
    assert!(
        entry(gpa.plus(0x1_0000)).validated(),
        "the split kept its neighbours valid"
    );
    let events = m.hv.exits.events.get(&ExitCode::PSC.0);
    assert_eq!(events, Some(&2));
    assert!(m.hv.exits.codes.contains_key(&ExitCode::NPF.0));
}

#[test]
fn a_process_shares_pages_and_takes_them_back() {
    const SECRET: u64 = u64::from_le_bytes(*b"SECRET-1");
    for mode in MODES {
        let ((), m) = with_guest(mode, move |vcpu, fence, layout| {
            let private = vcpu.c_bit_mask();
            let c_mask = if mode.encrypted() { private } else { 0 };
            let memory = Gpa(layout.memory - 0x40_0000)..Gpa(layout.memory);
            let mut cx = Cx { vcpu, out: fence };
            let mut mm = AddressSpace::new(&mut cx, memory, c_mask).expect("tables");
            cx.vcpu.set_cr3(mm.cr3());
            let area = Vma {
                end: 0,
                prot: Prot::RW,
                shared: false,
                backing: Backing::Anon(""),
            };
            let place = Place::Fixed(0x1000_0000);
            let at = mm.map(&mut cx, place, 0x8000, area, false).expect("mmap");
            let fault = mm.fault(&mut cx, at, true, false).expect("a fault");
            assert_eq!(fault, Fault::Fixed);
            cx.vcpu.write_u64(at, SECRET).expect("a write");
            let seen = |cx: &mut Cx<'_>, va: u64| {
                let access = sevlab_cpu::Access::Read;
                let t = cx.vcpu.translate(sevlab_arch::Va(va), access);
                let t = t.expect("a translation");
                assert_eq!(t.gpa.page().0 & 0xfff, 0);
                let mut raw = [0; 8];
                cx.vcpu.mem.bus_read(t.spa, &mut raw);
                u64::from_le_bytes(raw)
            };
            assert_eq!(seen(&mut cx, at) == SECRET, !mode.encrypted(), "{mode:?}");
            for round in 0..3 {
                mm.share(&mut cx, at, at + 0x3000, true).expect("shared");
                assert_eq!(cx.vcpu.read_u64(at).expect("a read"), SECRET + round);
                cx.vcpu.write_u64(at, SECRET + round + 1).expect("a write");
                assert_eq!(
                    seen(&mut cx, at),
                    SECRET + round + 1,
                    "{mode:?}: in the open"
                );
                mm.share(&mut cx, at, at + 0x3000, false).expect("private");
                assert_eq!(cx.vcpu.read_u64(at).expect("a read"), SECRET + round + 1);
                let open = seen(&mut cx, at) == SECRET + round + 1;
                assert_eq!(open, !mode.encrypted(), "{mode:?}: hidden again");
            }
            // What is unmapped while shared is private when it is used again.
            mm.share(&mut cx, at, at + 0x8000, true).expect("shared");
            if mode.encrypted() {
                cx.vcpu.write_u64(at + 0x7000, 5).expect("a write");
            }
            mm.unmap(&mut cx, at, at + 0x8000).expect("munmap");
            assert!(cx.vcpu.read_u64(at).is_err());
            let area = Vma {
                end: 0,
                prot: Prot::RW,
                shared: false,
                backing: Backing::Anon(""),
            };
            mm.map(&mut cx, place, 0x8000, area, false).expect("mmap");
            for page in (at..at + 0x8000).step_by(0x1000) {
                let fault = mm.fault(&mut cx, page, true, false).expect("a fault");
                assert_eq!(fault, Fault::Fixed);
                assert_eq!(cx.vcpu.read_u64(page).expect("a read"), 0);
                cx.vcpu.write_u64(page, SECRET).expect("a write");
                assert_eq!(seen(&mut cx, page) == SECRET, !mode.encrypted());
            }
        });
        let changes = m.hv.exits.events.get(&ExitCode::PSC.0).copied();
        assert_eq!(changes.is_some(), mode == SevMode::Snp);
    }
}

#[test]
fn the_key_goes_with_the_guest() {
    use sevlab_arch::psp::Command;
    for mode in MODES {
        for keep_dram in [true, false] {
            let (said, m, _) = tell(|p| MachineConfig {
                keep_dram,
                ..config(mode, p)
            });
            assert_eq!(said, MESSAGE);
            let log = m.launch_log();
            assert!(log.iter().all(|e| e.status.is_success()), "{log:?}");
            let last: &[Command] = match mode {
                SevMode::Off => &[],
                SevMode::Sev | SevMode::Es => &[
                    Command::DEACTIVATE,
                    Command::DF_FLUSH,
                    Command::DECOMMISSION,
                ],
                SevMode::Snp => &[
                    Command::SNP_DECOMMISSION,
                    Command::SNP_DF_FLUSH,
                    Command::SNP_PAGE_RECLAIM,
                ],
            };
            let names: Vec<Command> = log.iter().map(|e| e.command).collect();
            assert!(names.ends_with(last), "{names:?}");
            if mode.encrypted() {
                let gone = m
                    .mem()
                    .read(Domain::Private(m.asid), Spa(0x40_0000), &mut [0]);
                assert!(matches!(gone, Err(sevlab_memctl::Error::NoKey { .. })));
                assert_eq!(markers(&m), 0);
                assert_eq!(m.mem().stats().resident, 0);
            }
        }
    }
}
