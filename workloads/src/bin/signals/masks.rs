//! Masks and dispositions, and what the calls refuse.

use std::sync::atomic::{AtomicU64, Ordering};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, child, ended, errno, getpid, kill, mask, set};

static INSIDE: AtomicU64 = AtomicU64::new(0);

/// The mask as a number: bit 0 is signal 1.
fn bits(s: &libc::sigset_t) -> u64 {
    sys::members(s).iter().fold(0, |b, n| b | 1 << (n - 1))
}

/// Notes the mask within, and changes the one to return to.
extern "C" fn on_mask(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    INSIDE.store(bits(&sys::current_mask()), Ordering::Relaxed);
    // SAFETY: the kernel's context.
    unsafe {
        libc::sigaddset(
            &raw mut (*place.cast::<libc::ucontext_t>()).uc_sigmask,
            libc::SIGTERM,
        )
    };
}

pub fn inherit(_: &Settings) -> String {
    let mut out = Vec::new();
    let old = mask(libc::SIG_SETMASK, &set(&[libc::SIGHUP]));
    let handler = on_mask as *const () as usize;
    sys::action(
        libc::SIGUSR1,
        libc::SA_SIGINFO,
        handler,
        &set(&[libc::SIGINT, libc::SIGRTMIN()]),
    );
    kill(getpid(), libc::SIGUSR1);
    out.push(format!(
        "inside {:#x}, after {:#x}",
        INSIDE.load(Ordering::Relaxed),
        bits(&sys::current_mask())
    ));
    let now = mask(libc::SIG_SETMASK, &set(&[libc::SIGQUIT, libc::SIGRTMAX()]));
    out.push(format!("was {:#x}", bits(&now)));
    // A child has the mask, but not what is pending.
    kill(getpid(), libc::SIGQUIT);
    let pid = child(|| {
        let same = bits(&sys::current_mask()) == bits(&set(&[libc::SIGQUIT, libc::SIGRTMAX()]));
        i32::from(same) + 2 * i32::from(sys::pending().is_empty())
    });
    out.push(format!("child {}", ended(pid)));
    let inherited = std::thread::spawn(|| {
        let m = bits(&sys::current_mask());
        mask(libc::SIG_BLOCK, &sys::full_set());
        (m, sys::pending())
    })
    .join();
    out.push(format!(
        "thread {:x?}, still {:#x}",
        inherited.ok(),
        bits(&sys::current_mask())
    ));
    // An ignored signal that is pending goes.
    sys::action(libc::SIGQUIT, 0, libc::SIG_IGN, &set(&[]));
    out.push(format!("pending {:?}", sys::pending()));
    sys::default_action(libc::SIGQUIT);
    mask(libc::SIG_SETMASK, &old);
    sys::default_action(libc::SIGUSR1);
    out.join(", ")
}

pub fn ignore(_: &Settings) -> String {
    let mut out = Vec::new();
    // By default these do nothing.
    for signal in [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT] {
        sys::default_action(signal);
        kill(getpid(), signal);
    }
    sys::action(libc::SIGTERM, 0, libc::SIG_IGN, &set(&[]));
    kill(getpid(), libc::SIGTERM);
    out.push("goes on".to_owned());
    // Kept by fork; a fault can't be ignored.
    let pid = child(|| {
        kill(getpid(), libc::SIGTERM);
        sys::action(libc::SIGSEGV, 0, libc::SIG_IGN, &set(&[]));
        // SAFETY: it is not; the child is to die of it.
        unsafe { std::arch::asm!("mov byte ptr [{}], 1", in(reg) 0x1000usize) };
        3
    });
    out.push(format!("ignored fault {}", ended(pid)));
    // Nor blocked.
    let pid = child(|| {
        sys::default_action(libc::SIGFPE);
        mask(libc::SIG_BLOCK, &sys::full_set());
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("div ecx", inout("ecx") 0 => _, inout("eax") 1 => _, inout("edx") 0 => _)
        };
        3
    });
    out.push(format!("blocked fault {}", ended(pid)));
    // But an int3 or a sent SIGSEGV waits for its turn.
    let pid = child(|| {
        sys::default_action(libc::SIGSEGV);
        mask(libc::SIG_BLOCK, &set(&[libc::SIGSEGV]));
        kill(getpid(), libc::SIGSEGV);
        i32::from(sys::pending() == [libc::SIGSEGV]) + 4
    });
    out.push(format!("blocked kill {}", ended(pid)));
    let full = mask(libc::SIG_BLOCK, &sys::full_set());
    let blocked = sys::members(&sys::current_mask());
    mask(libc::SIG_SETMASK, &full);
    let odd: Vec<i32> = (1..=64).filter(|s| !blocked.contains(s)).collect();
    out.push(format!("never blocked {odd:?}"));
    sys::default_action(libc::SIGTERM);
    out.join(", ")
}

pub fn errors(_: &Settings) -> String {
    let refused = |r: i64| if r < 0 { errno() } else { 0 };
    // SAFETY: a call that the kernel refuses, with a structure that is there.
    let action = |signal: i32| unsafe {
        let new: libc::sigaction = std::mem::zeroed();
        refused(libc::sigaction(signal, &raw const new, std::ptr::null_mut()).into())
    };
    let mut out = vec![format!(
        "sigaction {:?}",
        [0, 65, libc::SIGKILL, libc::SIGSTOP, -1].map(action)
    )];
    // SAFETY: plain numbers.
    let kill_of = |pid: i32, signal: i32| unsafe { refused(libc::kill(pid, signal).into()) };
    out.push(format!(
        "kill {:?}",
        [
            kill_of(getpid(), 65),
            kill_of(getpid(), -1),
            kill_of(0x3fff_ffff, 0),
            kill_of(getpid(), 0)
        ]
    ));
    // SAFETY: plain numbers.
    let thread =
        |tgid: i32, tid: i32| unsafe { refused(libc::syscall(libc::SYS_tgkill, tgid, tid, 0)) };
    out.push(format!(
        "tgkill {:?}",
        [
            thread(getpid(), 0),
            thread(getpid(), 0x3fff_ffff),
            thread(getpid(), getpid())
        ]
    ));
    // SAFETY: a set of eight bytes; a wrong size and a wrong way are refused.
    unsafe {
        let s = 0u64;
        let change = |how: i32, size: usize| {
            refused(libc::syscall(
                libc::SYS_rt_sigprocmask,
                how,
                &raw const s,
                std::ptr::null_mut::<u64>(),
                size,
            ))
        };
        out.push(format!(
            "mask {:?}",
            [change(7, 8), change(0, 4), change(0, 8)]
        ));
        let bad = refused(libc::syscall(
            libc::SYS_rt_sigprocmask,
            0,
            8usize,
            std::ptr::null_mut::<u64>(),
            8,
        ));
        out.push(format!("pointer {bad}"));
        let forged = {
            let mut info = [0i32; 32];
            info[2] = libc::SI_USER;
            refused(libc::syscall(
                libc::SYS_rt_sigqueueinfo,
                1,
                libc::SIGUSR1,
                info.as_ptr(),
            ))
        };
        out.push(format!(
            "forged {}",
            forged == libc::EPERM || forged == libc::ESRCH
        ));
        out.push(format!("alarm {}", sys::alarm(60) > 0));
    }
    out.join(", ")
}
