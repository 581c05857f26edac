#![allow(unsafe_code)] // a system call that a signal can't miss
//! How a vCPU that does not run guest code is reached: the doorbell that others ring, and host system
//! calls that a ring ends.
//!
//! A vCPU that halts sleeps on its doorbell; one whose thread is inside a proxied system call is sent a
//! host signal. Between the look at the request word and the system call instruction there is a gap in
//! which a signal would be missed: [`interrupt`], called by the signal handler, moves a thread that is in
//! that gap behind it.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

/// The host signal that means nothing but "look up".
pub(crate) fn kick_signal() -> i32 {
    libc::SIGRTMAX()
}

std::arch::global_asm!(
    ".globl sevlab_interruptible_syscall",
    ".globl sevlab_interruptible_gap",
    ".globl sevlab_interruptible_end",
    ".globl sevlab_interruptible_out",
    ".p2align 4",
    "sevlab_interruptible_syscall:",
    "mov r11, rdi",
    "mov rax, rsi",
    "mov rcx, rdx",
    "mov rdi, [rcx]",
    "mov rsi, [rcx + 8]",
    "mov rdx, [rcx + 16]",
    "mov r10, [rcx + 24]",
    "mov r8, [rcx + 32]",
    "mov r9, [rcx + 40]",
    "sevlab_interruptible_gap:",
    "cmp dword ptr [r11], 0",
    "jne sevlab_interruptible_out",
    "syscall",
    "sevlab_interruptible_end:",
    "ret",
    "sevlab_interruptible_out:",
    "mov rax, -4",
    "ret",
);

unsafe extern "sysv64" {
    fn sevlab_interruptible_syscall(request: *const AtomicU32, nr: i64, args: *const u64) -> i64;
    fn sevlab_interruptible_gap();
    fn sevlab_interruptible_end();
    fn sevlab_interruptible_out();
}

/// For a signal handler: if the thread was about to make an interruptible call, it does not make it.
pub(crate) fn interrupt(rip: &mut i64) {
    let at = *rip as usize;
    let gap = sevlab_interruptible_gap as *const () as usize
        ..sevlab_interruptible_end as *const () as usize;
    if gap.contains(&at) {
        *rip = sevlab_interruptible_out as *const () as usize as i64;
    }
}

/// A host system call that returns `-EINTR` if `request` is not zero, or becomes so with a signal.
///
/// # Safety
/// As for the system call.
pub(crate) unsafe fn interruptible(request: &AtomicU32, nr: i64, args: &[u64; 6]) -> i64 {
    // SAFETY: the caller answers for the call; the pointers are to live data.
    unsafe { sevlab_interruptible_syscall(request, nr, args.as_ptr()) }
}

/// The host's `CLOCK_MONOTONIC`.
pub(crate) fn host_now() -> Duration {
    host_clock(libc::CLOCK_MONOTONIC)
}

/// What a clock of the host's says.
pub(crate) fn host_clock(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live local.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// When a halted vCPU goes on by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    /// Never.
    Never,
    /// At this time of the host's `CLOCK_MONOTONIC`.
    Monotonic(Duration),
    /// At this time of the host's `CLOCK_REALTIME`.
    Realtime(Duration),
}

impl Deadline {
    /// A clock number and nanoseconds, for a hypercall.
    #[must_use]
    pub fn encode(self) -> [u64; 2] {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        match self {
            Self::Never => [u64::MAX, 0],
            Self::Realtime(d) => [0, nanos(d)],
            Self::Monotonic(d) => [1, nanos(d)],
        }
    }
    /// The opposite of [`Deadline::encode`].
    #[must_use]
    pub fn decode([clock, nanos]: [u64; 2]) -> Self {
        match clock {
            0 => Self::Realtime(Duration::from_nanos(nanos)),
            1 => Self::Monotonic(Duration::from_nanos(nanos)),
            _ => Self::Never,
        }
    }
}

/// One vCPU's doorbell.
#[derive(Debug, Default)]
pub struct Doorbell {
    /// Grows with every ring.
    rings: AtomicU32,
    /// The vCPU's `exit_request`; null while there is no vCPU.
    request: AtomicPtr<AtomicU32>,
    /// The host thread, 0 for none.
    thread: AtomicI32,
    /// The thread is in a host system call that may sleep.
    sleeping: AtomicBool,
    /// It has been sent a signal since it went there. One is enough, and host signals of this kind queue up: a thread that is
    /// sent them faster than it takes them would do nothing else.
    kicked: AtomicBool,
    /// The vCPU is halted, and has not joined the queue of those who wait for their turn.
    halted: AtomicBool,
}

impl Doorbell {
    /// The vCPU whose exit request this is runs on the calling thread. The word must outlive the call of
    /// [`Doorbell::detach`].
    pub(crate) fn attach(&self, request: &AtomicU32) {
        self.request
            .store(std::ptr::from_ref(request).cast_mut(), Ordering::SeqCst);
        // SAFETY: no arguments, no memory.
        let tid = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
        self.thread.store(tid, Ordering::SeqCst);
    }

    /// The vCPU is about to go.
    pub(crate) fn detach(&self) {
        self.thread.store(0, Ordering::SeqCst);
        self.request.store(std::ptr::null_mut(), Ordering::SeqCst);
    }

    /// How often it has rung: what [`Doorbell::wait`] compares with.
    #[must_use]
    pub fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Has the vCPU leave guest code, a halt, or a sleeping system call.
    pub fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        let request = self.request.load(Ordering::SeqCst);
        if request.is_null() {
            return;
        }
        // SAFETY: the word is live until `detach`, which the kernel's lock, held by whoever rings,
        // comes before.
        unsafe { (*request).store(1, Ordering::SeqCst) };
        // SAFETY: wakes waiters of a live word.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.rings.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            );
        }
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0
            && self.sleeping.load(Ordering::SeqCst)
            && !self.kicked.swap(true, Ordering::SeqCst)
        {
            // SAFETY: a signal to a thread of this process; if it has ended meanwhile, an error.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal());
            }
        }
    }

    /// In turns: the vCPU halts; from now on [`Doorbell::ring_in_turn`] waits for it.
    pub(crate) fn halt(&self, halted: bool) {
        self.halted.store(halted, Ordering::SeqCst);
    }

    /// As [`Doorbell::ring`], and returns only when a vCPU that was halted has joined the queue.
    pub fn ring_in_turn(&self) {
        self.ring();
        while self.halted.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    /// Sleeps until it has rung more often than `seen`, a signal comes, or the time is up (then false).
    pub(crate) fn wait(&self, request: &AtomicU32, seen: u32, until: Deadline) -> bool {
        const FUTEX_WAIT_BITSET: i32 = 9;
        const FUTEX_CLOCK_REALTIME: i32 = 256;
        let (clock, time) = match until {
            Deadline::Never => (0, None),
            Deadline::Monotonic(d) => (0, Some(d)),
            Deadline::Realtime(d) => (FUTEX_CLOCK_REALTIME, Some(d)),
        };
        let time = time.map(|d| [d.as_secs() as i64, i64::from(d.subsec_nanos())]);
        let args = [
            self.rings.as_ptr() as u64,
            (FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | clock) as u64,
            u64::from(seen),
            time.as_ref().map_or(0, |t| t.as_ptr() as u64),
            0,
            u64::from(u32::MAX),
        ];
        // SAFETY: the word and the time are live.
        let ret = self.asleep(|| unsafe { interruptible(request, libc::SYS_futex, &args) });
        ret != -i64::from(libc::ETIMEDOUT)
    }

    /// Sleeps until a descriptor is ready, it has rung, a signal comes, or the time is up (then false).
    pub(crate) fn wait_at(
        &self,
        request: &AtomicU32,
        fd: i32,
        events: i16,
        until: Deadline,
    ) -> bool {
        let left = match until {
            Deadline::Monotonic(at) => Some(at.saturating_sub(host_now())),
            _ => None,
        };
        let mut poll = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let time = left.map(|d| [d.as_secs() as i64, i64::from(d.subsec_nanos())]);
        let args = [
            (&raw mut poll) as u64,
            1,
            time.as_ref().map_or(0, |t| t.as_ptr() as u64),
            0,
            0,
            0,
        ];
        // SAFETY: the entry and the time are live.
        self.asleep(|| unsafe { interruptible(request, libc::SYS_ppoll, &args) }) != 0
    }

    /// Runs `f`, one [`interruptible`] call, which may sleep in the host kernel, so that a ring is noticed.
    pub(crate) fn asleep<R>(&self, f: impl FnOnce() -> R) -> R {
        self.kicked.store(false, Ordering::SeqCst);
        self.sleeping.store(true, Ordering::SeqCst);
        let result = f();
        self.sleeping.store(false, Ordering::SeqCst);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;

    /// The kick signals that wait for the calling thread, which blocks them.
    fn take_kicks() -> usize {
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut kicks = 0;
        // SAFETY: live locals.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, kick_signal());
            while libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) > 0 {
                kicks += 1;
            }
        }
        kicks
    }

    /// Signals of that kind queue: an execve that rang in a loop until the other threads were gone kept one of them busy with
    /// 94,000 of them, for ever.
    #[test]
    fn a_sleep_is_sent_one_signal_however_often_it_rings() {
        let bell = &Doorbell::default();
        let (asleep, is_asleep) = sync_channel(0);
        let (rung, has_rung) = sync_channel(0);
        std::thread::scope(|s| {
            s.spawn(move || {
                // SAFETY: a live local; the mask is this thread's own.
                unsafe {
                    let mut set = std::mem::zeroed();
                    libc::sigemptyset(&raw mut set);
                    libc::sigaddset(&raw mut set, kick_signal());
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                }
                let request = AtomicU32::new(0);
                bell.attach(&request);
                for _ in 0..2 {
                    bell.asleep(|| {
                        asleep.send(()).unwrap();
                        has_rung.recv_timeout(Duration::from_secs(60)).unwrap();
                    });
                    assert_eq!(take_kicks(), 1);
                    assert_eq!(request.swap(0, Ordering::SeqCst), 1);
                }
                bell.detach();
            });
            for _ in 0..2 {
                is_asleep.recv_timeout(Duration::from_secs(60)).unwrap();
                (0..1000).for_each(|_| bell.ring());
                rung.send(()).unwrap();
            }
        });
        assert_eq!(bell.rings(), 2000);
    }
}
