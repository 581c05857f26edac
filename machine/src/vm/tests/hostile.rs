#![allow(unsafe_code)] // a word of a vCPU that another thread writes; descriptors the lies opened
//! A hypervisor that lies: what the guest half must notice, and what must never take the host down.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use sevlab_cpu::Stop;

use super::*;
use crate::hv::hostcall;
use crate::kernel::TaskEnd;
use crate::kernel::outside::INTERRUPTIBLE;
use crate::kernel::signal::SigInfo;

/// Where the GHCB page has its exit code.
const EXIT_CODE: u64 = 0x390;
/// Where the GHCB page has its shared buffer.
const BUFFER: u64 = 0x800;

/// [`with_guest`], with `answer` in the hypervisor's place; it also gets the number of the exit.
fn against<R: 'static>(
    mode: SevMode,
    guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>, &Layout) -> R + 'static,
    mut answer: impl FnMut(&mut Hypervisor, &mut Vcpu, &MemCtl, &Layout) -> Result<(), Error>,
) -> Result<R, Error> {
    let program = elf(&[0x0f, 0x0b], &[]);
    let mut m = machine(mode, &program);
    let Guest { regions, .. } = m.guest.take().expect("a fresh machine");
    let (mem, layout, inner) = (Arc::clone(&m.mem), m.layout.clone(), m.layout.clone());
    m.world_by(
        regions,
        move |vcpu, fence| {
            fence.boot(vcpu).expect("the protocol's start");
            guest(vcpu, fence, &inner)
        },
        &mut |hv, vcpu| answer(hv, vcpu, &mem, &layout),
    )
}

fn word(mem: &MemCtl, at: Spa) -> u64 {
    mem.read_u64(Domain::Shared, at).expect("shared memory")
}

fn set_word(mem: &MemCtl, at: Spa, value: u64) {
    mem.write_u64(Domain::Shared, at, value)
        .expect("shared memory");
}

fn getpid() -> HostCall {
    HostCall {
        nr: libc::SYS_getpid,
        args: [0; 6],
    }
}

fn refused<T: std::fmt::Debug>(r: Result<T, kernel::Error>, why: &str) {
    match r {
        Err(kernel::Error::Protocol { what }) => assert!(what.contains(why), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replayed_answer_is_noticed() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut saved: Option<Vec<u8>> = None;
        against(
            mode,
            |vcpu, fence, _| {
                let pid = fence.host_call(vcpu, &getpid()).expect("an answer");
                assert_eq!(pid, i64::from(std::process::id()));
                // From here on the page of that answer comes back, whatever is asked.
                refused(fence.host_call(vcpu, &getpid()), "not executed");
                assert!(fence.rdtsc(vcpu, false).is_err(), "no RDX in that answer");
                assert!(fence.cpuid(vcpu, 1, 0).is_err(), "no RBX in that answer");
            },
            |hv, vcpu, mem, layout| {
                let at = layout.shared;
                let hypercall = word(mem, at.plus(EXIT_CODE)) == ExitCode::VMMCALL.0;
                if let Some(page) = &saved {
                    mem.write(Domain::Shared, at, page)?;
                    return Ok(());
                }
                hv.handle(vcpu)?;
                if hypercall {
                    let mut page = vec![0; 4096];
                    mem.read(Domain::Shared, at, &mut page)?;
                    saved = Some(page);
                }
                Ok(())
            },
        )
        .expect("no exit fails");
    }
}

#[test]
fn the_answer_to_another_question_is_noticed() {
    for mode in [SevMode::Es, SevMode::Snp] {
        let mut saved: Option<Vec<u8>> = None;
        against(
            mode,
            |vcpu, fence, _| {
                fence.cpuid(vcpu, 0x8000_001f, 0).expect("an answer");
                refused(fence.host_call(vcpu, &getpid()), "refused");
            },
            |hv, vcpu, mem, layout| {
                let at = layout.shared;
                if let Some(page) = &saved {
                    mem.write(Domain::Shared, at, page)?;
                    return Ok(());
                }
                hv.handle(vcpu)?;
                if word(mem, at.plus(EXIT_CODE)) == ExitCode::CPUID.0 {
                    let mut page = vec![0; 4096];
                    mem.read(Domain::Shared, at, &mut page)?;
                    saved = Some(page);
                }
                Ok(())
            },
        )
        .expect("no exit fails");
    }
}

#[test]
fn results_that_no_system_call_has_are_refused() {
    for mode in MODES {
        for result in [i64::MIN, i64::MIN + 1, -4096, -1 << 40] {
            against(
                mode,
                |vcpu, fence, _| assert!(fence.host_call(vcpu, &getpid()).is_err()),
                |hv, vcpu, mem, layout| {
                    hv.handle(vcpu)?;
                    let block = layout.spa(layout.request_gpa()).expect("shared");
                    set_word(mem, block.plus(hostcall::RESULT), result as u64);
                    Ok(())
                },
            )
            .expect("no exit fails");
        }
    }
}

#[test]
fn a_page_state_change_that_was_not_made_is_noticed() {
    // The hypervisor says that it is done, and has done nothing.
    let lie = |hv: &mut Hypervisor, vcpu: &mut Vcpu, mem: &MemCtl, layout: &Layout| {
        let at = layout.shared;
        if word(mem, at.plus(EXIT_CODE)) != ExitCode::PSC.0 {
            return hv.handle(vcpu);
        }
        let header = word(mem, at.plus(BUFFER));
        let end = header >> 16 & 0xffff;
        set_word(mem, at.plus(EXIT_CODE), 0);
        set_word(mem, at.plus(BUFFER), header & !0xffff | (end + 1));
        set_word(mem, at.plus(0x398), 0);
        set_word(mem, at.plus(0x3a0), 0);
        Ok(())
    };
    let shared = against(
        SevMode::Snp,
        |vcpu, fence, layout| {
            let gpa = far(layout);
            fence.accept(vcpu, gpa, 1).expect("PVALIDATE");
            if fence.share(vcpu, gpa, 1, true).is_ok() {
                match vcpu.write_gpa(gpa, false, b"open") {
                    Err(Stop::NestedFault { gpa, error }) => {
                        let _ = fence.nested_fault(vcpu, gpa, error);
                    }
                    other => panic!("the page is still the guest's: {other:?}"),
                }
                panic!("that can't be mended");
            }
        },
        lie,
    );
    assert!(
        matches!(shared, Err(Error::NestedFault { .. })),
        "{shared:?}"
    );
    let mut honest = true;
    let private = against(
        SevMode::Snp,
        |vcpu, fence, layout| {
            let gpa = far(layout);
            fence.accept(vcpu, gpa, 1).expect("PVALIDATE");
            fence.share(vcpu, gpa, 1, true).expect("shared");
            assert!(fence.share(vcpu, gpa, 1, false).is_err());
        },
        |hv, vcpu, mem, layout| {
            let change = word(mem, layout.shared.plus(EXIT_CODE)) == ExitCode::PSC.0;
            if change && honest {
                honest = false;
                hv.handle(vcpu)
            } else {
                lie(hv, vcpu, mem, layout)
            }
        },
    );
    assert!(
        matches!(private, Err(Error::NestedFault { .. })),
        "{private:?}"
    );
}

/// Calls that may run on the host whatever a confused guest asks for.
const HARMLESS: [i64; 8] = [
    libc::SYS_access,
    libc::SYS_getpid,
    libc::SYS_readlink,
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_getrandom,
    libc::SYS_statfs,
    libc::SYS_clock_gettime,
];

/// Calls that may run on a descriptor that the guest opened.
const ON_ITS_OWN: [i64; 6] = [
    libc::SYS_read,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_fcntl,
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn among<T: Copy>(&mut self, list: &[T]) -> T {
        list[(self.next() % list.len() as u64) as usize]
    }
}

/// Runs `/bin/true` under a hypervisor that changes every few answers.
fn lied_to(mode: SevMode, seed: u64) -> Result<TaskEnd, Error> {
    let mut c = MachineConfig::new(PathBuf::from("/bin/true"));
    c.sev = mode;
    c.memory = 64 << 20;
    c.engine = Engine::Interpreter;
    c.seed = Some(seed);
    c.host_signals = false;
    let mut m = Machine::new(c).expect("a machine");
    let Guest {
        kernel,
        mut exec,
        regions,
    } = m.guest.take().expect("a fresh machine");
    let (mem, layout) = (Arc::clone(&m.mem), m.layout.clone());
    let block = layout.spa(layout.request_gpa()).expect("shared");
    let bounce = layout.spa(layout.bounce_gpa()).expect("shared");
    let ghcb = layout.shared;
    let mut rng = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut exits = 0;
    let mut opened = std::collections::HashSet::new();
    // A guest that loops is stopped by a signal, as from outside.
    let done = AtomicBool::new(false);
    let process = Process::new(*kernel);
    let (signals, request) = (process.inbox(), &raw const m.vcpu.state.exit_request);
    let request = request.expose_provenance();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !done.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(20));
                if start.elapsed() > Duration::from_secs(5) {
                    signals.put(&SigInfo::sent(libc::SIGKILL, 0, 1, 0).0);
                    // SAFETY: the machine, and the vCPU in it, outlives this scope.
                    let request: &AtomicU32 =
                        unsafe { &*std::ptr::with_exposed_provenance(request) };
                    request.store(1, Ordering::Release);
                }
            }
        });
        let result = m.world_by(
            regions,
            move |vcpu, fence| {
                fence
                    .boot(vcpu)
                    .and_then(|()| process.run(0, vcpu, fence, &mut exec))
            },
            &mut |hv, vcpu| {
                exits += 1;
                let nr = word(&mem, block) as i64 & !INTERRUPTIBLE;
                let fd = word(&mem, block.plus(8));
                let own = ON_ITS_OWN.contains(&nr) && opened.contains(&fd);
                let called = hv.calls.executed;
                // What stands there before a call is answered.
                let asked = word(&mem, block.plus(hostcall::RESULT)) == i64::MIN as u64;
                if exits > 2000 || (asked && !own && !HARMLESS.contains(&nr)) {
                    return Err(Error::GhcbMsr { value: 0 });
                }
                hv.handle(vcpu)?;
                let result = word(&mem, block.plus(hostcall::RESULT));
                if hv.calls.executed > called {
                    // F_DUPFD gives descriptors in the guest kernel's range; other answers are flags.
                    let new = match nr {
                        libc::SYS_openat => (result as i64) > 2,
                        libc::SYS_fcntl => (1000..2000).contains(&result),
                        _ => false,
                    };
                    if new {
                        opened.insert(result);
                    } else if nr == libc::SYS_close {
                        opened.remove(&fd);
                    }
                }
                if exits < 8 || !rng.next().is_multiple_of(8) {
                    return Ok(());
                }
                let interesting = [0, 1, 7, 0xff, 4096, 1 << 31, 1 << 52, u64::MAX, !4095];
                let value = match rng.next() % 2 {
                    0 => rng.next(),
                    _ => rng.among(&interesting),
                };
                match rng.next() % 4 {
                    0 => set_word(&mem, ghcb.plus(rng.next() % 512 * 8), value),
                    1 => set_word(&mem, block.plus(rng.next() % 8 * 8), value),
                    2 => set_word(&mem, block.plus(hostcall::RESULT), value),
                    // Not what is read from files: that could be code.
                    _ if [libc::SYS_fstat, libc::SYS_newfstatat].contains(&nr) => {
                        set_word(&mem, bounce.plus(rng.next() % 32 * 8), value);
                    }
                    _ => {}
                }
                Ok(())
            },
        );
        done.store(true, Ordering::Release);
        for fd in &opened {
            // SAFETY: the guest's own, and the guest is gone.
            unsafe { libc::close(*fd as i32) };
        }
        result.and_then(|end| end.map_err(Error::from))
    })
}

#[test]
fn random_lies_end_the_guest_at_worst() {
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for mode in MODES {
        for seed in 1..=60 {
            let end = match lied_to(mode, seed) {
                Ok(end) => format!("{end:?}"),
                Err(e) => format!("{e:.24}"),
            };
            *ends.entry(end).or_default() += 1;
        }
    }
    assert!(ends.len() > 3, "different lies end differently: {ends:?}");
}
