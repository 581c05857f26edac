//! Threads within processes: their ends, and the ends they make of processes.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{
    self, Pages, child, close, ended, errno, exit_now, getpid, gettid, pipe, until,
};

use crate::exec::{execve, output_of, own_file};
use crate::waiting::idle;

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(7) };
}

/// Ends the calling thread only.
fn exit_thread() -> ! {
    // SAFETY: the thread holds nothing that others wait for.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit returns")
}

/// How many threads this process has, by /proc.
fn tasks() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

pub fn basics(s: &Settings) -> String {
    let barrier = Barrier::new(s.threads);
    let main = gettid();
    let sum = AtomicU64::new(0);
    let tids: Vec<(i32, u64)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..s.threads as u64)
            .map(|i| {
                let (barrier, sum) = (&barrier, &sum);
                scope.spawn(move || {
                    barrier.wait();
                    for k in 0..1000 {
                        OWN.with(|o| o.set(o.get() + i + k));
                        sum.fetch_add(1, Ordering::Relaxed);
                    }
                    barrier.wait();
                    (gettid(), OWN.with(Cell::get))
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("a thread ends"))
            .collect()
    });
    for (i, (tid, own)) in tids.iter().enumerate() {
        assert_eq!(
            *own,
            7 + 999 * 500 + 1000 * i as u64,
            "thread-local storage"
        );
        assert!(
            *tid != main && tids.iter().filter(|t| t.0 == *tid).count() == 1,
            "thread ids"
        );
        until("the thread's end", || {
            sys::tgkill(*tid, 0) < 0 && errno() == libc::ESRCH
        });
    }
    assert_eq!(OWN.with(Cell::get), 7);
    // One after the other: ids and stacks are given back.
    let mut turns = 0;
    for i in 0..s.count {
        turns += std::thread::spawn(move || i & 1).join().expect("it ends");
    }
    // One that is on its own, and sends when it is done.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(tasks() >= 2));
    let counted = receiver.recv().expect("it sends");
    until("one thread", || tasks() == 1);
    format!(
        "{} at once, sum {}, {turns} of {}, tasks {counted}",
        s.threads,
        sum.into_inner(),
        s.count
    )
}

extern "C" fn in_child(word: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the creator waits, and its word with it.
    unsafe { &*word.cast::<AtomicU32>() }.store(1, Ordering::Release);
    word
}

/// A thread in the child of a process with several. Not the standard library's: another thread may have held one of
/// its locks at the fork, while the C library takes care of its own.
fn thread_in_child() -> bool {
    let word = AtomicU32::new(0);
    // SAFETY: the thread is waited for.
    unsafe {
        let mut thread: libc::pthread_t = std::mem::zeroed();
        let argument = (&raw const word).cast_mut().cast();
        let r = libc::pthread_create(&raw mut thread, std::ptr::null(), in_child, argument);
        r == 0
            && libc::pthread_join(thread, std::ptr::null_mut()) == 0
            && word.load(Ordering::Acquire) == 1
    }
}

pub fn fork(s: &Settings) -> String {
    let page = Pages::shared(4096);
    let each = s.count / 50;
    std::thread::scope(|scope| {
        for t in 0..s.threads {
            let page = &page;
            scope.spawn(move || {
                let mut memory = vec![t as u64; 20_000];
                for i in 0..each {
                    let (tid, own) = (gettid(), (t * 50 + i as usize % 50) as i32 % 200);
                    let pid = child(|| {
                        // The thread that forked is the only one, and leads.
                        let alone = gettid() == getpid() && gettid() != tid && tasks() == 1;
                        memory.fill(99);
                        page.quad(0).fetch_add(1, Ordering::Relaxed);
                        let waits = thread_in_child();
                        if alone && waits { own } else { 255 }
                    });
                    assert_eq!(ended(pid), format!("exit {own}"), "a thread's own child");
                    assert!(memory.iter().all(|m| *m == t as u64), "memory of the child");
                }
            });
        }
    });
    let total = page.quad(0).load(Ordering::Relaxed);
    assert_eq!(total, each * s.threads as u64);
    format!("{} threads, {total} children", s.threads)
}

pub fn main_exit(_: &Settings) -> String {
    let mut out = Vec::new();
    // The process ends with its last thread, with status 0.
    let (from, to) = pipe();
    let pid = child(|| {
        for i in 0..3u8 {
            std::thread::spawn(move || {
                sys::pause_ms(30 * u64::from(i + 1));
                sys::write(to, &[b'0' + i]);
                exit_thread();
            });
        }
        exit_thread()
    });
    close(to);
    let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
    close(from);
    out.push(format!("{text} {}", ended(pid)));
    // A thread that goes on says how it ends.
    let pid = child(|| {
        std::thread::spawn(|| {
            sys::pause_ms(30);
            exit_now(5);
        });
        exit_thread()
    });
    out.push(ended(pid));
    // A leader that has ended is not to be waited for while others run.
    let pid = child(|| {
        std::thread::spawn(|| idle());
        exit_thread()
    });
    sys::pause_ms(50);
    assert_eq!(sys::wait(pid, libc::WNOHANG).0, 0, "a thread still runs");
    sys::kill(pid, libc::SIGKILL);
    out.push(ended(pid));
    // Other threads' ends are not the process's.
    let pid = child(|| {
        let done = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| done.fetch_add(1, Ordering::Relaxed));
            }
        });
        done.into_inner() as i32
    });
    out.push(ended(pid));
    out.join(", ")
}

pub fn exit_group(_: &Settings) -> String {
    let mut out = Vec::new();
    // While the main thread sleeps, computes, or waits for a futex.
    for kind in 0..3 {
        let pid = child(|| {
            std::thread::spawn(move || {
                sys::pause_ms(20);
                exit_now(60 + kind);
            });
            let word = AtomicU32::new(0);
            match kind {
                0 => idle(),
                1 => loop {
                    std::hint::black_box(&word);
                },
                _ => loop {
                    let _ = sys::futex_wait(&word, 0, None, 0);
                },
            }
        });
        out.push(ended(pid));
    }
    // Several at once: one of them wins.
    let pid = child(|| {
        for _ in 0..4 {
            std::thread::spawn(|| exit_now(70));
        }
        exit_now(70)
    });
    out.push(ended(pid));
    // A fault, an abort, a signal to one thread: all of them go.
    for kind in 0..4 {
        let pid = child(|| {
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGTERM] {
                sys::default_action(signal);
            }
            std::thread::spawn(move || {
                sys::pause_ms(10);
                match kind {
                    // SAFETY: faults; the process is to die of it.
                    0 => unsafe { std::arch::asm!("mov byte ptr [{}], 1", in(reg) 0x1000usize) },
                    // SAFETY: ends the process.
                    1 => unsafe { libc::abort() },
                    2 => {
                        sys::tgkill(gettid(), libc::SIGTERM);
                    }
                    _ => sys::kill(getpid(), libc::SIGKILL),
                }
            });
            idle()
        });
        out.push(ended(pid));
    }
    out.join(", ")
}

pub fn exec(_: &Settings) -> String {
    let own = own_file();
    let mut out = Vec::new();
    for others in [0, 3] {
        out.push(output_of(|| {
            let pid = getpid().to_string();
            for _ in 0..others {
                std::thread::spawn(|| idle());
            }
            let own = own.clone();
            std::thread::spawn(move || {
                sys::pause_ms(20);
                execve(&own, &["procs", "--child", "thread", &pid], &[])
            });
            idle()
        }));
    }
    // The leader has ended already; one that fails changes nothing.
    out.push(output_of(|| {
        let pid = getpid().to_string();
        let own = own.clone();
        std::thread::spawn(move || {
            sys::pause_ms(20);
            assert_eq!(execve("/does/not/exist", &["x"], &[]), libc::ENOENT);
            execve(&own, &["procs", "--child", "thread", &pid], &[])
        });
        exit_thread()
    }));
    out.join(", ")
}
