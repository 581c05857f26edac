//! Signals between threads: none is lost that must not be, and the code they interrupt does not notice.

use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, Pages, RW, errno, gettid, until};

use crate::{Turns, deadline, note, on_threads};

const MOST: usize = 256;
/// Signals that each thread's handler has seen.
static SEEN: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// What went wrong in a handler: it can't say it itself.
static WRONG: AtomicU64 = AtomicU64::new(0);
static TIDS: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];

thread_local! {
    static ME: Cell<usize> = const { Cell::new(0) };
    static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn forget() {
    for (seen, tid) in SEEN.iter().zip(&TIDS) {
        seen.store(0, Ordering::Relaxed);
        tid.store(0, Ordering::Relaxed);
    }
    WRONG.store(0, Ordering::Relaxed);
}

/// Gives the calling thread a number and an alternate stack.
fn enrol(me: usize) -> Pages {
    let stack = Pages::private(64 * 1024, RW);
    let description = libc::stack_t {
        ss_sp: stack.start().cast(),
        ss_flags: 0,
        ss_size: stack.size(),
    };
    // SAFETY: the stack lives until the thread has left.
    sys::ok("sigaltstack", unsafe {
        libc::sigaltstack(&raw const description, std::ptr::null_mut())
    });
    ME.with(|m| m.set(me));
    STACK.with(|s| s.set((stack.start() as usize, stack.size())));
    TIDS[me].store(gettid(), Ordering::Release);
    stack
}

fn leave(stack: Pages) {
    let none = libc::stack_t {
        ss_sp: std::ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: the thread is not on it.
    sys::ok("sigaltstack", unsafe {
        libc::sigaltstack(&raw const none, std::ptr::null_mut())
    });
    drop(stack);
}

/// Counts, spoils every register that a handler may spoil, and checks that it is on the alternate stack.
extern "C" fn count(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let here = &raw const info as usize;
    let (start, len) = STACK.with(Cell::get);
    let mut x = [0.1f64; 8];
    for (i, v) in x.iter_mut().enumerate() {
        *v = (*v + i as f64).sqrt();
    }
    std::hint::black_box(x);
    // SAFETY: changes registers that it names.
    unsafe {
        std::arch::asm!(
            "pcmpeqd xmm0, xmm0", "pcmpeqd xmm7, xmm7", "pcmpeqd xmm15, xmm15", "std", "cld", "stc",
            out("xmm0") _, out("xmm7") _, out("xmm15") _,
        );
    }
    if !(start..start + len).contains(&here) {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    SEEN[ME.with(Cell::get)].fetch_add(1, Ordering::Release);
}

/// A computation in integer, vector and x87 registers and flags; what it gives depends on `seed` only.
fn compute(seed: u64) -> u64 {
    let (mut a, mut b, mut f) = (seed | 1, !seed, 1.0f64 + seed as f64);
    let mut v = [seed as f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    for i in 0..2000u64 {
        a = a.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i);
        b = b.rotate_left(13) ^ a;
        f = f * 1.000_001 + (b >> 60) as f64;
        for x in &mut v {
            *x = *x * 0.999 + 1.0;
        }
    }
    let v: u64 = v.iter().map(|x| u64::from(x.to_bits())).sum();
    a ^ b ^ f.to_bits() ^ v
}

fn install(signal: i32, flags: i32) {
    forget();
    sys::handle(signal, flags | libc::SA_ONSTACK, count);
}

#[track_caller]
fn uninstall(signal: i32) {
    sys::action(signal, 0, libc::SIG_IGN, &sys::set(&[]));
    assert_eq!(
        WRONG.load(Ordering::Relaxed),
        0,
        "a handler is not on the alternate stack"
    );
}

pub fn handshake(s: &Settings) -> String {
    install(libc::SIGUSR1, libc::SA_RESTART);
    let end = deadline(s);
    let n = s.threads.clamp(2, MOST);
    let received_all = AtomicU64::new(0);
    let sent = on_threads(n, |me| {
        let stack = enrol(me);
        let next = (me + 1) % n;
        until("the next thread", || {
            TIDS[next].load(Ordering::Acquire) != 0
        });
        let mut sent = 0u64;
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            assert_eq!(
                sys::tgkill(TIDS[next].load(Ordering::Relaxed), libc::SIGUSR1),
                0
            );
            sent += 1;
            until("the handler of a signal", || {
                SEEN[next].load(Ordering::Acquire) == sent
            });
        }
        // Nobody leaves while another may still send to it.
        received_all.fetch_add(1, Ordering::AcqRel);
        until("the others", || {
            received_all.load(Ordering::Acquire) == n as u64
        });
        leave(stack);
        sent
    });
    for (i, sent) in sent.iter().enumerate() {
        assert_eq!(
            SEEN[(i + 1) % n].load(Ordering::Relaxed),
            *sent,
            "signals sent and seen"
        );
    }
    uninstall(libc::SIGUSR1);
    note(s, "signals, one at a time", sent.iter().sum());
    format!("{n} threads, each signal seen once")
}

pub fn storm(s: &Settings) -> String {
    install(libc::SIGUSR2, libc::SA_RESTART);
    let end = deadline(s);
    let n = s.threads.clamp(2, MOST);
    let left = AtomicU64::new(0);
    let sent = on_threads(n, |me| {
        let stack = enrol(me);
        until("all threads", || {
            TIDS[..n].iter().all(|t| t.load(Ordering::Acquire) != 0)
        });
        let (mut sent, mut turn) = (0u64, 0u64);
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            turn += 1;
            if me % 2 == 0 {
                for k in 0..20 {
                    let to = (me + 1 + k % (n - 1)) % n;
                    sent += u64::from(
                        sys::tgkill(TIDS[to].load(Ordering::Relaxed), libc::SIGUSR2) == 0,
                    );
                }
            }
            assert_eq!(
                compute(turn % 16),
                compute(turn % 16),
                "a signal changes what it interrupts"
            );
        }
        left.fetch_add(1, Ordering::AcqRel);
        until("the others", || left.load(Ordering::Acquire) == n as u64);
        leave(stack);
        sent
    });
    let (sent, seen) = (
        sent.iter().sum::<u64>(),
        SEEN.iter().map(|x| x.load(Ordering::Relaxed)).sum::<u64>(),
    );
    assert!(
        seen > 0 && seen <= sent,
        "{seen} signals seen of {sent} sent"
    );
    uninstall(libc::SIGUSR2);
    note(s, "signals sent in the storm", sent);
    note(s, "signals seen in the storm", seen);
    format!("{n} threads, computations undisturbed")
}

static LAST: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

extern "C" fn in_order(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo with a value.
    let value = unsafe { (*info).si_value().sival_ptr as usize };
    let (from, number) = (value >> 32, (value & 0xffff_ffff) as u64);
    if LAST[from].swap(number, Ordering::Relaxed) + 1 != number {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    SEEN[0].fetch_add(1, Ordering::Release);
}

pub fn queued(s: &Settings) -> String {
    forget();
    let signal = libc::SIGRTMIN() + 1;
    sys::handle(signal, libc::SA_RESTART, in_order);
    for last in &LAST {
        last.store(0, Ordering::Relaxed);
    }
    let end = deadline(s);
    let receiver = gettid();
    // This thread receives; all others must not.
    let senders = s.threads.clamp(1, MOST);
    let mut sent = Vec::new();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..senders)
            .map(|me| {
                scope.spawn(move || {
                    let mut n = 0usize;
                    let mut turns_left = Turns::until(end);
                    while turns_left.go() {
                        // SAFETY: a siginfo as sigqueue makes one.
                        let r = unsafe {
                            let mut info = [0i32; 32];
                            info[0] = signal;
                            info[2] = libc::SI_QUEUE;
                            info[4] = sys::getpid();
                            let value = me << 32 | (n + 1);
                            info[6] = value as i32;
                            info[7] = (value >> 32) as i32;
                            libc::syscall(
                                libc::SYS_rt_tgsigqueueinfo,
                                sys::getpid(),
                                receiver,
                                signal,
                                info.as_ptr(),
                            )
                        };
                        if r == 0 {
                            n += 1;
                        } else {
                            assert_eq!(errno(), libc::EAGAIN, "rt_tgsigqueueinfo");
                            std::thread::yield_now();
                        }
                    }
                    n as u64
                })
            })
            .collect();
        sent = handles
            .into_iter()
            .map(|h| h.join().expect("a sender ends"))
            .collect();
    });
    let total: u64 = sent.iter().sum();
    until("all queued signals", || {
        SEEN[0].load(Ordering::Acquire) == total
    });
    assert_eq!(
        WRONG.load(Ordering::Relaxed),
        0,
        "queued signals out of order"
    );
    sys::default_action(signal);
    note(s, "queued signals", total);
    format!("{senders} senders, all signals arrive, each sender's in order")
}

pub fn eintr(s: &Settings) -> String {
    let end = deadline(s);
    let mut interrupted = 0u64;
    for (flags, restarts) in [(0, false), (libc::SA_RESTART, true)] {
        install(libc::SIGUSR1, flags);
        let (from, to) = sys::pipe();
        let half = if restarts {
            end
        } else {
            Instant::now() + (end - Instant::now()) / 2
        };
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let stack = enrol(0);
                let mut got = (0u64, 0u64);
                loop {
                    match sys::read(from, 1) {
                        Ok(b) if b == b"e" => break,
                        Ok(_) => got.0 += 1,
                        Err(libc::EINTR) => got.1 += 1,
                        Err(e) => panic!("read failed with {e}"),
                    }
                }
                leave(stack);
                got
            });
            until("the reader", || TIDS[0].load(Ordering::Acquire) != 0);
            let mut written = 0;
            let mut turns_left = Turns::until(half);
            while turns_left.go() {
                for _ in 0..10 {
                    assert_eq!(
                        sys::tgkill(TIDS[0].load(Ordering::Relaxed), libc::SIGUSR1),
                        0
                    );
                    std::thread::sleep(Duration::from_micros(50));
                }
                sys::write(to, b"x");
                written += 1;
            }
            until("the handler", || SEEN[0].load(Ordering::Acquire) > 0);
            sys::write(to, b"e");
            let got = reader.join().expect("the reader ends");
            assert_eq!(got.0, written, "bytes lost to signals");
            got
        });
        assert!(
            !restarts || reads.1 == 0,
            "a call with SA_RESTART is interrupted {} times",
            reads.1
        );
        assert!(SEEN[0].load(Ordering::Relaxed) > 0, "no signal was seen");
        interrupted += reads.1;
        uninstall(libc::SIGUSR1);
        sys::close(from);
        sys::close(to);
    }
    note(s, "interrupted reads", interrupted);
    assert!(
        interrupted > 0 || s.seconds < 2.0,
        "no read was ever interrupted"
    );
    "reads interrupted without SA_RESTART only, no byte lost".to_owned()
}

pub fn timers(s: &Settings) -> String {
    install(libc::SIGALRM, libc::SA_RESTART);
    let end = deadline(s);
    let n = s.threads.clamp(1, 4);
    let own = libc::SIGRTMIN() + 2;
    sys::handle(own, libc::SA_RESTART | libc::SA_ONSTACK, count);
    // The process's timer goes to whichever thread; this one has no number and no stack.
    let old = sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGALRM]));
    let every = |us| libc::timeval {
        tv_sec: 0,
        tv_usec: us,
    };
    let real = libc::itimerval {
        it_interval: every(700),
        it_value: every(700),
    };
    // SAFETY: reads a local.
    sys::ok("setitimer", unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const real, std::ptr::null_mut())
    });
    let left = AtomicU64::new(0);
    on_threads(n, |me| {
        let stack = enrol(me);
        sys::mask(libc::SIG_UNBLOCK, &sys::set(&[libc::SIGALRM]));
        // SAFETY: structures that are locals; the timer is deleted before the thread ends.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = own;
            event.sigev_notify_thread_id = gettid();
            let mut timer: libc::timer_t = std::mem::zeroed();
            // A timer counts against the user's pending signals, of which another process may have all for a moment.
            let mut tries = 0;
            let made = loop {
                let made =
                    libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
                tries += 1;
                if made == 0 || errno() != libc::EAGAIN || tries == 1000 {
                    break made;
                }
                libc::usleep(5000);
            };
            sys::ok("timer_create", made);
            let period = libc::timespec {
                tv_sec: 0,
                tv_nsec: 900_000,
            };
            let setting = libc::itimerspec {
                it_interval: period,
                it_value: period,
            };
            sys::ok(
                "timer_settime",
                libc::timer_settime(timer, 0, &raw const setting, std::ptr::null_mut()),
            );
            let mut turn = 0u64;
            while Instant::now() < end || SEEN[me].load(Ordering::Relaxed) == 0 {
                turn += 1;
                assert_eq!(
                    compute(turn % 16),
                    compute(turn % 16),
                    "a timer changes what it interrupts"
                );
            }
            libc::timer_delete(timer);
        }
        left.fetch_add(1, Ordering::AcqRel);
        until("the others", || left.load(Ordering::Acquire) == n as u64);
        sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGALRM, own]));
        leave(stack);
    });
    let off = libc::itimerval {
        it_interval: every(0),
        it_value: every(0),
    };
    // SAFETY: reads a local.
    sys::ok("setitimer", unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const off, std::ptr::null_mut())
    });
    let seen: u64 = SEEN.iter().map(|x| x.load(Ordering::Relaxed)).sum();
    uninstall(libc::SIGALRM);
    uninstall(own);
    sys::mask(libc::SIG_SETMASK, &old);
    note(s, "timer signals", seen);
    format!("{n} threads, timers reach each, computations undisturbed")
}
