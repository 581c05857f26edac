//! Timers and sleeps. What is printed does not depend on how fast things go.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, errno, gettid, ok, set, until};

static TICKS: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicI64 = AtomicI64::new(0);
/// A timer whose overruns are wanted, or -1.
static TIMER: AtomicI64 = AtomicI64::new(-1);
static MOST_OVERRUN: AtomicI64 = AtomicI64::new(0);
static THREAD: AtomicI64 = AtomicI64::new(0);

extern "C" fn tick(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr as i64) };
    VALUE.store(
        i64::from(code) * 1000 + if code == libc::SI_TIMER { value } else { 0 },
        Ordering::Relaxed,
    );
    THREAD.store(gettid().into(), Ordering::Relaxed);
    let timer = TIMER.load(Ordering::Relaxed);
    if timer >= 0 {
        // SAFETY: a timer that is not deleted while its number is here.
        let overrun = unsafe { libc::timer_getoverrun(timer as libc::timer_t) };
        MOST_OVERRUN.fetch_max(overrun.into(), Ordering::Relaxed);
    }
    TICKS.fetch_add(1, Ordering::Release);
}

fn ticks() -> u64 {
    TICKS.load(Ordering::Acquire)
}

fn time(us: i64) -> libc::timeval {
    libc::timeval {
        tv_sec: us / 1_000_000,
        tv_usec: us % 1_000_000,
    }
}

pub fn itimer(_: &Settings) -> String {
    let mut out = Vec::new();
    for (name, which, signal) in [
        ("real", libc::ITIMER_REAL, libc::SIGALRM),
        ("virtual", libc::ITIMER_VIRTUAL, libc::SIGVTALRM),
        ("profiling", libc::ITIMER_PROF, libc::SIGPROF),
    ] {
        sys::handle(signal, libc::SA_RESTART, tick);
        TICKS.store(0, Ordering::Relaxed);
        let setting = libc::itimerval {
            it_interval: time(10_000),
            it_value: time(20_000),
        };
        // SAFETY: locals.
        unsafe {
            let mut old: libc::itimerval = std::mem::zeroed();
            ok(
                "setitimer",
                libc::setitimer(which, &raw const setting, &raw mut old),
            );
            let start = Instant::now();
            let mut x = 1u64;
            while ticks() < 4 {
                x = std::hint::black_box(x.wrapping_mul(3));
                assert!(
                    start.elapsed() < Duration::from_secs(30),
                    "no signal of the {name} timer"
                );
            }
            if which == libc::ITIMER_REAL {
                assert!(
                    start.elapsed() >= Duration::from_millis(45),
                    "the timer is early"
                );
            }
            ok("getitimer", libc::getitimer(which, &raw mut old));
            let sane = old.it_interval.tv_usec == 10_000
                && old.it_value.tv_sec == 0
                && old.it_value.tv_usec <= 20_000;
            let off = libc::itimerval {
                it_interval: time(0),
                it_value: time(0),
            };
            ok(
                "setitimer",
                libc::setitimer(which, &raw const off, std::ptr::null_mut()),
            );
            let seen = ticks();
            sys::pause_ms(30);
            out.push(format!("{name} {sane} {}", ticks() - seen <= 1));
        }
        if signal != libc::SIGALRM {
            sys::default_action(signal);
        }
    }
    TICKS.store(0, Ordering::Relaxed);
    sys::alarm(100);
    let left = sys::alarm(1);
    until("the alarm", || ticks() == 1);
    out.push(format!(
        "alarm {} {}",
        (99..=100).contains(&left),
        sys::alarm(0)
    ));
    out.join(", ")
}

pub fn posix(_: &Settings) -> String {
    let mut out = Vec::new();
    let signal = libc::SIGRTMIN() + 8;
    sys::handle(signal, libc::SA_RESTART, tick);
    let create = |clock: i32, notify: i32, value: usize| -> libc::timer_t {
        // SAFETY: locals.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = notify;
            event.sigev_signo = signal;
            event.sigev_value.sival_ptr = value as *mut libc::c_void;
            event.sigev_notify_thread_id = gettid();
            let mut timer: libc::timer_t = std::mem::zeroed();
            ok(
                "timer_create",
                libc::timer_create(clock, &raw mut event, &raw mut timer),
            );
            timer
        }
    };
    let arm = |timer: libc::timer_t, flags: i32, first: libc::timespec, every_ms: i64| {
        let every = libc::timespec {
            tv_sec: 0,
            tv_nsec: every_ms * 1_000_000,
        };
        let setting = libc::itimerspec {
            it_interval: every,
            it_value: first,
        };
        // SAFETY: locals.
        let r =
            unsafe { libc::timer_settime(timer, flags, &raw const setting, std::ptr::null_mut()) };
        if r < 0 { errno() } else { 0 }
    };
    let ms = |n: i64| libc::timespec {
        tv_sec: n / 1000,
        tv_nsec: n % 1000 * 1_000_000,
    };
    for (name, clock) in [
        ("monotonic", libc::CLOCK_MONOTONIC),
        ("realtime", libc::CLOCK_REALTIME),
        ("process time", libc::CLOCK_PROCESS_CPUTIME_ID),
        ("thread time", libc::CLOCK_THREAD_CPUTIME_ID),
    ] {
        TICKS.store(0, Ordering::Relaxed);
        let timer = create(clock, libc::SIGEV_SIGNAL, 42);
        assert_eq!(arm(timer, 0, ms(10), 10), 0);
        let start = Instant::now();
        while ticks() < 3 {
            std::hint::black_box(start);
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "no signal of the {name} timer"
            );
        }
        out.push(format!("{name} {}", VALUE.load(Ordering::Relaxed)));
        // SAFETY: deletes the timer.
        ok("timer_delete", unsafe { libc::timer_delete(timer) });
    }
    // Blocked: one signal, and the overruns counted.
    sys::mask(libc::SIG_BLOCK, &set(&[signal]));
    TICKS.store(0, Ordering::Relaxed);
    let timer = create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, 7);
    arm(timer, 0, ms(2), 2);
    sys::pause_ms(60);
    let blocked = ticks();
    MOST_OVERRUN.store(0, Ordering::Relaxed);
    TIMER.store(timer as i64, Ordering::Relaxed);
    sys::mask(libc::SIG_UNBLOCK, &set(&[signal]));
    until("the blocked signal", || ticks() >= 1);
    arm(timer, 0, ms(0), 0);
    let overrun = MOST_OVERRUN.load(Ordering::Relaxed);
    TIMER.store(-1, Ordering::Relaxed);
    out.push(format!("blocked {blocked} then {}", overrun >= 5));
    // An absolute time that is past comes at once; a bad one is refused.
    TICKS.store(0, Ordering::Relaxed);
    assert_eq!(arm(timer, libc::TIMER_ABSTIME, ms(1), 0), 0);
    until("a time that is past", || ticks() == 1);
    out.push(format!(
        "bad {}",
        arm(
            timer,
            0,
            libc::timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000_000
            },
            0
        )
    ));
    // SAFETY: deletes the timer, then asks for what is gone, in the kernel's own numbering.
    unsafe {
        libc::timer_delete(timer);
    }
    // To this thread, while another could take it.
    let other = std::thread::spawn(|| sys::pause_ms(60));
    TICKS.store(0, Ordering::Relaxed);
    let timer = create(libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID, 5);
    arm(timer, 0, ms(5), 0);
    until("the thread's timer", || ticks() == 1);
    out.push(format!(
        "to this thread {}",
        THREAD.load(Ordering::Relaxed) == i64::from(gettid())
    ));
    other.join().expect("it ends");
    // SAFETY: as above.
    unsafe { libc::timer_delete(timer) };
    sys::default_action(signal);
    out.join(", ")
}

pub fn sleep(_: &Settings) -> String {
    let mut out = Vec::new();
    sys::handle(libc::SIGUSR1, libc::SA_RESTART, tick);
    let later = || {
        let tid = gettid();
        std::thread::spawn(move || {
            sys::pause_ms(50);
            assert_eq!(sys::tgkill(tid, libc::SIGUSR1), 0);
        })
    };
    let ten = libc::timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    // SAFETY: locals.
    unsafe {
        let mut left: libc::timespec = std::mem::zeroed();
        let sender = later();
        let r = libc::nanosleep(&raw const ten, &raw mut left);
        out.push(format!(
            "nanosleep {r} {} left {}",
            errno(),
            (8..10).contains(&left.tv_sec)
        ));
        sender.join().expect("it ends");
        let sender = later();
        let r = libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const ten, &raw mut left);
        out.push(format!(
            "clock_nanosleep {r} left {}",
            (8..10).contains(&left.tv_sec)
        ));
        sender.join().expect("it ends");
        let mut until_then: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut until_then);
        until_then.tv_sec += 10;
        let sender = later();
        let r = libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &raw const until_then,
            std::ptr::null_mut(),
        );
        out.push(format!("absolute {r}"));
        sender.join().expect("it ends");
        let sender = later();
        out.push(format!(
            "poll {} {}",
            libc::poll(std::ptr::null_mut(), 0, 10_000),
            errno()
        ));
        sender.join().expect("it ends");
        let sender = later();
        let mut limit = time(10_000_000);
        let none = std::ptr::null_mut();
        out.push(format!(
            "select {} {}",
            libc::select(0, none, none, none, &raw mut limit),
            errno()
        ));
        sender.join().expect("it ends");
        // Undisturbed, and not early.
        let start = Instant::now();
        let short = libc::timespec {
            tv_sec: 0,
            tv_nsec: 30_000_000,
        };
        let r = libc::nanosleep(&raw const short, std::ptr::null_mut());
        out.push(format!(
            "whole {r} {}",
            start.elapsed() >= Duration::from_millis(30)
        ));
        let bad = libc::timespec {
            tv_sec: 0,
            tv_nsec: -1,
        };
        out.push(format!(
            "bad {} {}",
            libc::nanosleep(&raw const bad, std::ptr::null_mut()),
            errno()
        ));
    }
    sys::default_action(libc::SIGUSR1);
    out.join(", ")
}
