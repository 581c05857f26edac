//! Futexes: a lost wake-up hangs, and the watchdog says so.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, Condvar, Mutex, Once, RwLock, mpsc};
use std::time::{Duration, Instant};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, errno, futex_wait, futex_wake, until};

use crate::{Turns, deadline, note, on_threads};

const PRIVATE: i32 = libc::FUTEX_PRIVATE_FLAG;

/// 0 free, 1 taken, 2 taken and wanted (Drepper's third mutex).
struct Lock(AtomicU32);

impl Lock {
    fn lock(&self) {
        if self
            .0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return;
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            let _ = futex_wait(&self.0, 2, None, PRIVATE);
        }
    }

    fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            futex_wake(&self.0, 1, PRIVATE);
        }
    }
}

/// A sequence number that each notification changes.
struct Condition(AtomicU32);

impl Condition {
    fn wait(&self, lock: &Lock) {
        let seen = self.0.load(Ordering::Relaxed);
        lock.unlock();
        let _ = futex_wait(&self.0, seen, None, PRIVATE);
        lock.lock();
    }

    fn notify(&self, count: i32) {
        self.0.fetch_add(1, Ordering::Relaxed);
        futex_wake(&self.0, count, PRIVATE);
    }
}

struct Guarded<T>(UnsafeCell<T>);

// SAFETY: a `Lock` guards it.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    fn place(&self) -> *mut T {
        self.0.get()
    }
}

pub fn mutex(s: &Settings) -> String {
    let end = deadline(s);
    let lock = Lock(AtomicU32::new(0));
    let guarded = Guarded(UnsafeCell::new((0u64, 0u64)));
    let rounds = on_threads(s.threads, |me| {
        let mut n = 0u64;
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for _ in 0..50 {
                lock.lock();
                // SAFETY: under the lock.
                let g = unsafe { &mut *guarded.place() };
                g.0 += 1;
                g.1 += g.0 & 7;
                if n % 64 == me as u64 {
                    std::thread::yield_now(); // while others want it
                }
                lock.unlock();
                n += 1;
            }
        }
        n
    });
    let n: u64 = rounds.iter().sum();
    let sum = (n / 8) * 28 + (1..=n % 8).map(|i| i & 7).sum::<u64>();
    assert_eq!(guarded.0.into_inner(), (n, sum), "the mutex lets two in");
    assert_eq!(lock.0.into_inner(), 0, "the mutex stays taken");
    note(s, "turns of the mutex", n);
    format!("{} threads, what it guards agrees", s.threads)
}

pub fn condition(s: &Settings) -> String {
    const ROOM: usize = 5;
    let end = deadline(s);
    let lock = Lock(AtomicU32::new(0));
    let (not_full, not_empty) = (Condition(AtomicU32::new(0)), Condition(AtomicU32::new(0)));
    let items: Guarded<VecDeque<u64>> = Guarded(UnsafeCell::new(VecDeque::new()));
    let half = (s.threads / 2).max(1);
    let put = |x| {
        lock.lock();
        // SAFETY: under the lock, here and below.
        while unsafe { &*items.place() }.len() == ROOM {
            not_full.wait(&lock);
        }
        // SAFETY: as above.
        unsafe { &mut *items.place() }.push_back(x);
        lock.unlock();
        not_empty.notify(1);
    };
    let take = || {
        lock.lock();
        loop {
            // SAFETY: as above.
            if let Some(x) = unsafe { &mut *items.place() }.pop_front() {
                lock.unlock();
                not_full.notify(1);
                return x;
            }
            not_empty.wait(&lock);
        }
    };
    let done = on_threads(2 * half, |me| {
        let (mut n, mut sum) = (0u64, 0u64);
        if me < half {
            let mut turns_left = Turns::until(end);
            while turns_left.go() {
                for _ in 0..20 {
                    n += 1;
                    sum += n;
                    put(n);
                }
            }
            put(u64::MAX);
        } else {
            loop {
                let x = take();
                if x == u64::MAX {
                    break;
                }
                n += 1;
                sum += x;
            }
        }
        (n, sum)
    });
    let total = |part: &[(u64, u64)]| part.iter().fold((0, 0), |a, d| (a.0 + d.0, a.1 + d.1));
    assert_eq!(
        total(&done[..half]),
        total(&done[half..]),
        "items sent and items taken"
    );
    note(s, "items through the buffer", total(&done[half..]).0);
    format!("{half} senders, {half} takers, all items arrive")
}

/// `futex` with all six arguments.
fn futex(
    word: &AtomicU32,
    op: i32,
    value: u32,
    value2: usize,
    other: &AtomicU32,
    value3: u32,
) -> i64 {
    // SAFETY: both words are there; `value2` is a count or a pointer to a time, as `op` wants it.
    let r = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op | PRIVATE,
            value,
            value2,
            other.as_ptr(),
            value3,
        )
    };
    if r < 0 { -i64::from(errno()) } else { r }
}

/// How many threads sleep here is known when the kernel wakes or moves that many.
pub fn operations(s: &Settings) -> String {
    let mut out = Vec::new();
    let (a, b) = (AtomicU32::new(0), AtomicU32::new(0));
    let awake = AtomicU32::new(0);
    let n = s.threads as i32;
    std::thread::scope(|scope| {
        for _ in 0..n {
            scope.spawn(|| {
                let r = futex_wait(&a, 0, None, PRIVATE);
                assert_eq!(r, Ok(()), "woken by the kernel");
                awake.fetch_add(1, Ordering::Relaxed);
            });
        }
        // One wakes, all others move; until all sleep, some remain to be moved.
        let mut moved = 0;
        until("all threads sleep", || {
            moved += futex(&a, libc::FUTEX_CMP_REQUEUE, 0, i32::MAX as usize, &b, 0);
            moved == i64::from(n)
        });
        out.push(format!(
            "requeued {moved}, other value {}",
            futex(&a, libc::FUTEX_CMP_REQUEUE, 0, 1, &b, 5)
        ));
        assert_eq!(futex_wake(&a, n, PRIVATE), 0, "nobody is left at the first");
        // b: 0 becomes 3; whoever sleeps at b is woken since it was 0.
        let op = libc::FUTEX_OP_SET << 28 | libc::FUTEX_OP_CMP_EQ << 24 | 3 << 12;
        let woken = futex(&a, libc::FUTEX_WAKE_OP, 1, 2, &b, op as u32);
        out.push(format!(
            "wake_op {woken} leaves {}",
            b.load(Ordering::Relaxed)
        ));
        let woken = futex_wake(&b, i32::MAX, PRIVATE);
        out.push(format!(
            "rest {}",
            woken == i64::from(n) - 2.min(i64::from(n))
        ));
    });
    assert_eq!(awake.into_inner(), s.threads as u32, "all are awake");

    // Bit sets wake those who wait for one of the bits.
    let word = AtomicU32::new(0);
    let order = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for bit in [1u32, 2, 4] {
            let (word, order) = (&word, &order);
            scope.spawn(move || {
                let r = futex(word, libc::FUTEX_WAIT_BITSET, 0, 0, word, bit);
                assert_eq!(r, 0, "woken by the kernel");
                until("its turn", || {
                    order
                        .compare_exchange(bit - 1, 2 * bit - 1, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                });
            });
        }
        for bit in [1u32, 2, 4] {
            until("the waiter of a bit", || {
                futex(&word, libc::FUTEX_WAKE_BITSET, 9, 0, &word, bit) == 1
            });
        }
    });
    out.push(format!("bit sets {}", order.into_inner()));

    // Time limits, relative and absolute, and a value that is another one.
    let start = Instant::now();
    let late = futex_wait(&word, 0, Some(Duration::from_millis(30)), PRIVATE);
    assert!(
        start.elapsed() >= Duration::from_millis(30),
        "the time limit comes early"
    );
    // SAFETY: fills a local.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time) };
    let past = futex(
        &word,
        libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
        0,
        &raw const time as usize,
        &word,
        u32::MAX,
    );
    let negative = libc::timespec {
        tv_sec: 0,
        tv_nsec: -1,
    };
    let invalid = futex(
        &word,
        libc::FUTEX_WAIT,
        0,
        &raw const negative as usize,
        &word,
        0,
    );
    out.push(format!(
        "late {late:?}, past {past}, invalid {invalid}, other {:?}",
        futex_wait(&word, 7, None, PRIVATE)
    ));
    out.join(", ")
}

pub fn standard(s: &Settings) -> String {
    let end = deadline(s);
    let (plain, shared) = (Mutex::new(0u64), RwLock::new((0u64, 0u64)));
    let (turn, changed) = (Mutex::new(0usize), Condvar::new());
    let barrier = Barrier::new(s.threads);
    let once = Once::new();
    let begun = AtomicU64::new(0);
    let (sender, receiver) = mpsc::sync_channel::<u64>(3);
    let stop = AtomicU32::new(0);
    let taken = std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            receiver
                .into_iter()
                .fold((0u64, 0u64), |a, x| (a.0 + 1, a.1 + x))
        });
        let parked = scope.spawn(|| {
            let mut woken = 0u64;
            loop {
                std::thread::park();
                woken += 1;
                if stop.load(Ordering::Acquire) != 0 {
                    return woken;
                }
            }
        });
        let sent = on_threads(s.threads, |me| {
            let (mut n, sender) = (0u64, sender.clone());
            loop {
                // All or none of them go on, or the barrier would wait for ever.
                if barrier.wait().is_leader() {
                    stop.store(u32::from(n > 0 && Instant::now() >= end), Ordering::Release);
                }
                barrier.wait();
                if stop.load(Ordering::Acquire) != 0 {
                    return n;
                }
                for _ in 0..10 {
                    once.call_once(|| {
                        begun.fetch_add(1, Ordering::Relaxed);
                    });
                    *plain.lock().expect("not poisoned") += 1;
                    if n % 4 == me as u64 % 4 {
                        let mut w = shared.write().expect("not poisoned");
                        w.0 += 1;
                        w.1 = w.0 * 2;
                    } else {
                        let r = shared.read().expect("not poisoned");
                        assert_eq!(r.1, r.0 * 2, "a reader sees half a write");
                    }
                    n += 1;
                    sender.send(n).expect("somebody takes");
                    parked.thread().unpark();
                }
                let mut t = turn.lock().expect("not poisoned");
                while *t % s.threads != me {
                    t = changed.wait(t).expect("not poisoned");
                }
                *t += 1;
                drop(t);
                changed.notify_all();
            }
        });
        drop(sender);
        parked.thread().unpark();
        assert!(parked.join().expect("it ends") > 0, "park never returns");
        let n: u64 = sent.iter().sum();
        let sum: u64 = sent.iter().map(|n| n * (n + 1) / 2).sum();
        assert_eq!(taker.join().expect("it ends"), (n, sum), "the channel");
        n
    });
    assert_eq!(
        plain.into_inner().expect("not poisoned"),
        taken,
        "the mutex"
    );
    assert_eq!(begun.into_inner(), 1, "once");
    let turns = turn.into_inner().expect("not poisoned");
    assert_eq!(turns as u64 * 10, taken, "turns in order");
    note(s, "rounds of the standard library", taken);
    let _ = sys::gettid();
    format!("{} threads, locks, turns and channels agree", s.threads)
}
