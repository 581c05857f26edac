//! When signals are delivered, in which order, and with what.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, errno, getpid, gettid, kill, mask, ok, set, until};

const ROOM: usize = 64;
/// What handlers saw, in order: they only store.
static SEEN: [AtomicU64; ROOM] = [const { AtomicU64::new(0) }; ROOM];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static DEPTH: AtomicI32 = AtomicI32::new(0);

fn saw(value: u64) {
    let at = COUNT.fetch_add(1, Ordering::AcqRel);
    SEEN[at % ROOM].store(value, Ordering::Release);
}

fn list() -> Vec<u64> {
    let n = COUNT.swap(0, Ordering::AcqRel).min(ROOM);
    SEEN[..n]
        .iter()
        .map(|s| s.load(Ordering::Acquire))
        .collect()
}

/// Sends the next signal from within, three deep; notes the way in and out.
extern "C" fn on_nested(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    saw(signal as u64);
    if DEPTH.fetch_add(1, Ordering::Relaxed) < 3 {
        kill(
            getpid(),
            if signal == libc::SIGUSR1 {
                libc::SIGUSR2
            } else {
                libc::SIGUSR1
            },
        );
    }
    saw(signal as u64 + 100);
}

extern "C" fn on_same(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    saw(signal as u64);
    if DEPTH.fetch_add(1, Ordering::Relaxed) < 3 {
        kill(getpid(), signal);
    }
    saw(signal as u64 + 100);
}

pub fn nested(_: &Settings) -> String {
    let mut out = Vec::new();
    let me = getpid();
    DEPTH.store(0, Ordering::Relaxed);
    sys::handle(libc::SIGUSR1, 0, on_nested);
    sys::handle(libc::SIGUSR2, 0, on_nested);
    kill(me, libc::SIGUSR1);
    out.push(format!("{:?}", list()));
    // Each blocked in the other's handler.
    DEPTH.store(0, Ordering::Relaxed);
    for (signal, other) in [
        (libc::SIGUSR1, libc::SIGUSR2),
        (libc::SIGUSR2, libc::SIGUSR1),
    ] {
        sys::action(
            signal,
            libc::SA_SIGINFO,
            on_nested as *const () as usize,
            &set(&[other]),
        );
    }
    kill(me, libc::SIGUSR1);
    out.push(format!("masked {:?}", list()));
    for (name, flags) in [("deferred", 0), ("not deferred", libc::SA_NODEFER)] {
        DEPTH.store(0, Ordering::Relaxed);
        sys::handle(libc::SIGUSR1, flags, on_same);
        kill(me, libc::SIGUSR1);
        out.push(format!("{name} {:?}", list()));
    }
    // Once only.
    DEPTH.store(9, Ordering::Relaxed);
    sys::handle(libc::SIGUSR1, libc::SA_RESETHAND, on_same);
    kill(me, libc::SIGUSR1);
    let old = sys::action(libc::SIGUSR1, 0, libc::SIG_IGN, &set(&[]));
    out.push(format!(
        "reset {:?} {}",
        list(),
        old.sa_sigaction == libc::SIG_DFL
    ));
    sys::default_action(libc::SIGUSR1);
    sys::default_action(libc::SIGUSR2);
    out.join(", ")
}

/// Signal, code and value in one number.
extern "C" fn on_value(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr as u64) };
    saw(signal as u64 * 1_000_000 + (code as u64 & 0xff) * 1000 + value);
}

fn queue_one(signal: i32, value: usize) -> i32 {
    // SAFETY: plain numbers.
    unsafe {
        libc::sigqueue(
            getpid(),
            signal,
            libc::sigval {
                sival_ptr: value as *mut libc::c_void,
            },
        )
    }
}

pub fn queue(_: &Settings) -> String {
    let mut out = Vec::new();
    let real = libc::SIGRTMIN() + 4;
    sys::handle(real, 0, on_value);
    sys::handle(libc::SIGUSR1, 0, on_value);
    assert_eq!(queue_one(real, 1), 0);
    out.push(format!("at once {:?}", list()));
    let all = set(&[real, libc::SIGUSR1]);
    mask(libc::SIG_BLOCK, &all);
    for i in 0..10 {
        queue_one(real, 10 + i);
        // A plain one is kept once, with what it had first.
        queue_one(libc::SIGUSR1, 10 + i);
    }
    out.push(format!("pending {:?}", sys::pending()));
    mask(libc::SIG_UNBLOCK, &all);
    out.push(format!("then {:?}", list()));
    sys::default_action(real);
    sys::default_action(libc::SIGUSR1);
    out.join(", ")
}

pub fn order(_: &Settings) -> String {
    let mut out = Vec::new();
    let low = libc::SIGRTMIN();
    let signals = [
        libc::SIGUSR1,
        libc::SIGHUP,
        libc::SIGTERM,
        low + 5,
        low + 2,
        low + 9,
        libc::SIGUSR2,
    ];
    // A handler that runs blocks the rest, so that each runs to its end: the lowest number first.
    for signal in signals {
        sys::action(
            signal,
            libc::SA_SIGINFO,
            on_value as *const () as usize,
            &sys::full_set(),
        );
    }
    let all = set(&signals);
    mask(libc::SIG_BLOCK, &all);
    for (i, signal) in signals.into_iter().enumerate() {
        queue_one(signal, i);
        queue_one(signal, 100 + i);
    }
    mask(libc::SIG_UNBLOCK, &all);
    let signals_seen: Vec<u64> = list();
    out.push(format!("{signals_seen:?}"));
    for signal in signals {
        sys::default_action(signal);
    }
    out.join(", ")
}

extern "C" fn on_info(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo.
    let (code, pid, uid) = unsafe { ((*info).si_code, (*info).si_pid(), (*info).si_uid()) };
    // SAFETY: takes nothing.
    let own = pid == getpid() && uid == unsafe { libc::getuid() };
    saw((signal as u64) << 32 | u64::from(own) << 16 | u64::from(code as u16 & 0xff));
}

pub fn info(_: &Settings) -> String {
    sys::handle(libc::SIGUSR1, 0, on_info);
    let me = getpid();
    kill(me, libc::SIGUSR1);
    assert_eq!(sys::tgkill(gettid(), libc::SIGUSR1), 0);
    // SAFETY: signals this process.
    unsafe {
        libc::raise(libc::SIGUSR1);
        libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1);
        libc::syscall(libc::SYS_tkill, gettid(), libc::SIGUSR1);
    }
    queue_one(libc::SIGUSR1, 0);
    let seen: Vec<String> = list()
        .iter()
        .map(|s| format!("{} {} code {}", s >> 32, s >> 16 & 1, *s as u8 as i8))
        .collect();
    sys::default_action(libc::SIGUSR1);
    seen.join(", ")
}

/// `sigtimedwait`: signal and value, or the error number.
fn timed_wait(s: &libc::sigset_t, ms: i64) -> Result<(i32, u64), i32> {
    // SAFETY: locals.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let time = libc::timespec {
            tv_sec: ms / 1000,
            tv_nsec: ms % 1000 * 1_000_000,
        };
        let r = libc::sigtimedwait(s, &raw mut info, &raw const time);
        if r < 0 {
            Err(errno())
        } else {
            Ok((r, info.si_value().sival_ptr as u64))
        }
    }
}

/// From another thread, a little later.
fn later(signal: i32) -> std::thread::JoinHandle<()> {
    let (pid, tid) = (getpid(), gettid());
    std::thread::spawn(move || {
        sys::pause_ms(40);
        assert_eq!(pid, getpid());
        assert_eq!(sys::tgkill(tid, signal), 0);
    })
}

pub fn wait(_: &Settings) -> String {
    let mut out = Vec::new();
    let real = libc::SIGRTMIN() + 6;
    let both = set(&[real, libc::SIGUSR1]);
    let old = mask(libc::SIG_BLOCK, &both);
    out.push(format!(
        "{:?} {:?}",
        timed_wait(&both, 0),
        timed_wait(&both, 20)
    ));
    for i in 0..3 {
        queue_one(real, 70 + i);
    }
    queue_one(libc::SIGUSR1, 60);
    out.push(
        (0..4)
            .map(|_| format!("{:?}", timed_wait(&both, 1000)))
            .collect::<Vec<_>>()
            .join(" "),
    );
    let sender = later(real);
    let start = Instant::now();
    // SAFETY: a set, and no information wanted.
    let r = unsafe { libc::sigwaitinfo(&raw const both, std::ptr::null_mut()) };
    assert!(start.elapsed() >= Duration::from_millis(20));
    out.push(format!("late {}", r == real));
    sender.join().expect("the sender ends");
    // A handler interrupts the wait for another signal.
    sys::handle(libc::SIGUSR2, libc::SA_RESTART, on_value);
    let sender = later(libc::SIGUSR2);
    out.push(format!(
        "interrupted {:?} {}",
        timed_wait(&both, 20_000),
        list().len()
    ));
    sender.join().expect("the sender ends");
    // sigsuspend: with another mask until a handler has run, then the old mask again.
    sys::handle(libc::SIGUSR1, 0, on_value);
    kill(getpid(), libc::SIGUSR1);
    assert!(list().is_empty(), "it is blocked");
    let mut open = sys::current_mask();
    // SAFETY: sets that are locals.
    let r = unsafe {
        libc::sigdelset(&raw mut open, libc::SIGUSR1);
        libc::sigsuspend(&raw const open)
    };
    let e = errno();
    out.push(format!(
        "sigsuspend {r} {e} {} {:?}",
        list().len(),
        sys::members(&sys::current_mask())
    ));
    let sender = later(libc::SIGUSR2);
    // SAFETY: takes nothing.
    let r = unsafe { libc::pause() };
    out.push(format!("pause {r} {} {}", errno(), list().len()));
    sender.join().expect("the sender ends");
    // ppoll has a mask, too.
    kill(getpid(), libc::SIGUSR1);
    // SAFETY: no descriptors; a set that is a local.
    let r = unsafe { libc::ppoll(std::ptr::null_mut(), 0, std::ptr::null(), &raw const open) };
    out.push(format!("ppoll {r} {} {}", errno(), list().len()));
    mask(libc::SIG_SETMASK, &old);
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        sys::default_action(signal);
    }
    out.join(", ")
}

pub fn signalfd(_: &Settings) -> String {
    let mut out = Vec::new();
    let real = libc::SIGRTMIN() + 7;
    let both = set(&[real, libc::SIGUSR1]);
    let old = mask(libc::SIG_BLOCK, &both);
    // SAFETY: a set that is a local.
    let fd = ok("signalfd", unsafe {
        libc::signalfd(-1, &raw const both, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    });
    out.push(format!("empty {:?}", sys::read(fd, 128)));
    let ready = || {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor.
        unsafe { libc::poll(&raw mut poll, 1, 0) }
    };
    out.push(format!("poll {}", ready()));
    queue_one(real, 81);
    queue_one(real, 82);
    kill(getpid(), libc::SIGUSR1);
    out.push(format!("poll {}", ready()));
    let bytes = sys::read(fd, 128 * 5).expect("signals are pending");
    for part in bytes.chunks(128) {
        let word = |at: usize| i32::from_ne_bytes(part[at..at + 4].try_into().expect("four bytes"));
        out.push(format!(
            "{} code {} value {} own {}",
            word(0),
            word(8),
            word(44),
            word(12) == getpid()
        ));
    }
    out.push(format!("pending {:?}", sys::pending()));
    sys::close(fd);
    mask(libc::SIG_SETMASK, &old);
    out.join(", ")
}

static WHO: Mutex<Vec<i32>> = Mutex::new(Vec::new());

extern "C" fn on_thread(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    saw(gettid() as u64);
}

pub fn thread(_: &Settings) -> String {
    let mut out = Vec::new();
    sys::handle(libc::SIGUSR1, 0, on_thread);
    let main = gettid();
    // Blocked here: a signal to the process goes to the thread that takes it.
    let old = mask(libc::SIG_BLOCK, &set(&[libc::SIGUSR1]));
    let (stop, tid) = (AtomicI32::new(0), AtomicI32::new(0));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let inherited = sys::members(&sys::current_mask());
            WHO.lock().expect("not poisoned").extend(&inherited);
            mask(libc::SIG_UNBLOCK, &set(&[libc::SIGUSR1]));
            tid.store(gettid(), Ordering::Release);
            until("the end", || stop.load(Ordering::Acquire) != 0);
        });
        until("the thread", || tid.load(Ordering::Acquire) != 0);
        let other = tid.load(Ordering::Acquire);
        kill(getpid(), libc::SIGUSR1);
        until("the handler", || COUNT.load(Ordering::Acquire) == 1);
        sys::pause_ms(5);
        out.push(format!(
            "to the process: other {}",
            list() == [other as u64]
        ));
        assert_eq!(sys::tgkill(main, libc::SIGUSR1), 0);
        sys::pause_ms(20);
        out.push(format!(
            "to a thread that blocks it: {:?} pending {:?}",
            list(),
            sys::pending()
        ));
        assert_eq!(sys::tgkill(other, libc::SIGUSR1), 0);
        until("the handler", || COUNT.load(Ordering::Acquire) == 1);
        sys::pause_ms(5);
        out.push(format!("to the other: {}", list() == [other as u64]));
        stop.store(1, Ordering::Release);
        // Its very end, too: the next section's signals are for others.
        thread.join().expect("it ends");
    });
    mask(libc::SIG_SETMASK, &old);
    out.push(format!(
        "unblocked: {}, inherited {:?}",
        list() == [main as u64],
        WHO.lock().expect("not poisoned")
    ));
    sys::default_action(libc::SIGUSR1);
    out.join(", ")
}
