#![allow(unsafe_code)] // signal handlers of the host process
//! The host process around a guest: its signals, its descriptors, and how it ends.
//!
//! While a guest runs, every signal that can be caught is only noted, for the guest kernel to deliver;
//! the handlers are installed without SA_RESTART, so a proxied system call returns EINTR. Signals that
//! say something about the host's own instructions (SIGSEGV and the like) stay the host's.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::kernel::{GuestEnd, Kernel, Notifier};

/// Signals that are never forwarded: uncatchable, or about the host's own code. SIGPIPE stays ignored,
/// so that a proxied write fails with EPIPE and the guest kernel raises the signal.
const OWN: [i32; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGPIPE,
];
/// Highest signal number.
const LAST: i32 = 64;

static ACTIVE: AtomicBool = AtomicBool::new(false);
static PENDING: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static REQUEST: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

extern "C" fn note(signo: i32) {
    let (pending, request) = (
        PENDING.load(Ordering::Acquire),
        REQUEST.load(Ordering::Acquire),
    );
    if pending.is_null() || request.is_null() {
        return;
    }
    // SAFETY: `Forwarding` keeps both alive and takes the pointers away before they go; atomics are
    // async-signal-safe.
    unsafe {
        (*pending).fetch_or(1 << (signo - 1), Ordering::Release);
        (*request).store(1, Ordering::Release);
    }
}

/// Host signals go to a guest as long as this lives.
pub(crate) struct Forwarding {
    old: Vec<(i32, libc::sigaction)>,
    /// Keeps the word alive that the handler writes.
    _pending: Notifier,
}

impl Forwarding {
    /// Installs the handlers, unless another machine of this process has them. `request` is the
    /// vCPU's `exit_request`; it must outlive the result. Signals that are ignored stay so, and the
    /// guest starts with them ignored.
    pub(crate) fn install(kernel: &mut Kernel, request: &AtomicU32) -> Option<Self> {
        if ACTIVE.swap(true, Ordering::AcqRel) {
            return None;
        }
        let pending = kernel.notifier();
        PENDING.store(ptr::from_ref(pending.word()).cast_mut(), Ordering::Release);
        REQUEST.store(ptr::from_ref(request).cast_mut(), Ordering::Release);
        let mut old = Vec::new();
        for signo in (1..=LAST).filter(|s| !OWN.contains(s)) {
            // SAFETY: zeroed is a valid `sigaction`; the calls get live locals. The C library refuses
            // the signals it keeps to itself.
            unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signo, ptr::null(), &raw mut before) != 0 {
                    continue;
                }
                if before.sa_sigaction == libc::SIG_IGN {
                    kernel.inherit_ignored(signo);
                    continue;
                }
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as extern "C" fn(i32) as usize;
                // Guest code runs with a stack pointer of its own making only inside translated code,
                // which keeps the host's; still, an alternate stack is the safer place.
                action.sa_flags = libc::SA_ONSTACK;
                libc::sigfillset(&raw mut action.sa_mask);
                if libc::sigaction(signo, &raw const action, ptr::null_mut()) == 0 {
                    old.push((signo, before));
                }
            }
        }
        Some(Self {
            old,
            _pending: pending,
        })
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for (signo, action) in &self.old {
            // SAFETY: puts back what `install` found.
            unsafe { libc::sigaction(*signo, ptr::from_ref(action), ptr::null_mut()) };
        }
        PENDING.store(ptr::null_mut(), Ordering::Release);
        REQUEST.store(ptr::null_mut(), Ordering::Release);
        ACTIVE.store(false, Ordering::Release);
    }
}

/// Raises the limit on open descriptors as far as it goes: guest files, the guest kernel's, and the
/// host's own live in separate ranges.
pub(crate) fn raise_descriptor_limit() {
    // SAFETY: `getrlimit` and `setrlimit` get a live local.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0
            && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Ends this process as the guest ended: with its exit status, or killed by the same signal.
pub fn exit_like(end: GuestEnd) -> ! {
    match end {
        GuestEnd::Exited(status) => std::process::exit(status),
        GuestEnd::Killed(signo) => {
            // SAFETY: plain libc calls on live locals. A core file would be this process's, not the
            // guest's, so none is written.
            unsafe {
                let none = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                libc::signal(signo, libc::SIG_DFL);
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, signo);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
                libc::raise(signo);
            }
            // Only a signal whose default is to do nothing gets here.
            std::process::exit(128 + signo)
        }
    }
}
