//! Threads that hammer atomics, futexes and signals for some seconds, and litmus tests of the memory model. How often
//! things happen differs from run to run, so only what must hold is printed; `--verbose` has the counts.
#![allow(unsafe_code)] // inline assembly, futexes, signals

mod atomics;
mod futexes;
mod litmus;
mod signals;

use std::time::{Duration, Instant};

use sevlab_workloads::sections::{self, Program, Section, Settings, Watchdog};

static PROGRAM: Program = Program {
    name: "stress",
    about: "threads on atomics, futexes and signals, and litmus tests of the memory model",
    sections: &[
        Section {
            name: "atomics",
            about: "fetch_add, compare-and-exchange loops, fetch_max, swaps",
            run: atomics::library,
        },
        Section {
            name: "locked",
            about: "every locked instruction in 8, 16, 32 and 64 bits",
            run: atomics::locked,
        },
        Section {
            name: "wide",
            about: "cmpxchg8b and cmpxchg16b",
            run: atomics::wide,
        },
        Section {
            name: "spin",
            about: "spin locks around plain memory: exchange, ticket, bit",
            run: atomics::spin,
        },
        Section {
            name: "mutex",
            about: "a mutex on raw futexes",
            run: futexes::mutex,
        },
        Section {
            name: "condition",
            about: "a bounded buffer on a mutex and conditions on raw futexes",
            run: futexes::condition,
        },
        Section {
            name: "requeue",
            about: "FUTEX_CMP_REQUEUE, WAKE_OP, bit sets, time limits",
            run: futexes::operations,
        },
        Section {
            name: "std",
            about: "Mutex, RwLock, Condvar, Barrier, channels, park",
            run: futexes::standard,
        },
        Section {
            name: "handshake",
            about: "signals from thread to thread, one at a time: none is lost",
            run: signals::handshake,
        },
        Section {
            name: "storm",
            about: "signals as fast as they go, into code whose registers must stay",
            run: signals::storm,
        },
        Section {
            name: "queued",
            about: "queued real-time signals: all arrive, in order",
            run: signals::queued,
        },
        Section {
            name: "eintr",
            about: "blocking calls that signals interrupt or restart",
            run: signals::eintr,
        },
        Section {
            name: "timers",
            about: "timer signals into code whose registers must stay",
            run: signals::timers,
        },
        Section {
            name: "sb",
            about: "store buffering: both old is allowed",
            run: litmus::sb,
        },
        Section {
            name: "sbfence",
            about: "with mfence, xchg or a locked instruction between: forbidden",
            run: litmus::sb_fence,
        },
        Section {
            name: "mp",
            about: "message passing: the flag without the message is forbidden",
            run: litmus::mp,
        },
        Section {
            name: "lb",
            about: "load buffering: both new is forbidden",
            run: litmus::lb,
        },
        Section {
            name: "iriw",
            about: "two readers that disagree on the order of two writes: forbidden",
            run: litmus::iriw,
        },
        Section {
            name: "coherence",
            about: "one location goes backwards, or writes cross: forbidden",
            run: litmus::coherence,
        },
        Section {
            name: "tearing",
            about: "aligned accesses of up to eight bytes are whole",
            run: litmus::tearing,
        },
    ],
    defaults: Settings {
        count: 1000,
        threads: 8,
        seconds: 10.0,
        verbose: false,
    },
    limit: Duration::from_secs(300),
    watchdog: Watchdog::Thread,
};

fn main() {
    sections::main(&PROGRAM);
}

/// When a section is to stop, if each gets the same share.
pub fn deadline(s: &Settings) -> Instant {
    Instant::now() + Duration::from_secs_f64(s.seconds / PROGRAM.sections.len() as f64)
}

/// Turns until a deadline, but at least one, however late a thread comes to it.
pub struct Turns {
    end: Instant,
    begun: bool,
}

impl Turns {
    /// None is done yet.
    pub fn until(end: Instant) -> Self {
        Self { end, begun: false }
    }

    /// Whether there is to be another.
    pub fn go(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.begun, true);
        first || Instant::now() < self.end
    }
}

/// Runs `body(i)` on each of `n` threads at once; what they return.
pub fn on_threads<T: Send>(n: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..n).map(|i| scope.spawn(move || body(i))).collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("a thread ends"))
            .collect()
    })
}

/// A count that differs from run to run.
pub fn note(s: &Settings, what: &str, count: u64) {
    if s.verbose {
        eprintln!("stress: {what}: {count}");
    }
}
