//! Signals in detail: frames, what handlers may change, faults and their repair, queues, masks, timers.
#![allow(unsafe_code)] // handlers, frames, faults on purpose

mod delivery;
mod frames;
mod masks;
mod timers;

use std::time::Duration;

use sevlab_workloads::sections::{self, Program, Section, Settings, Watchdog};

static PROGRAM: Program = Program {
    name: "signals",
    about: "signals in detail",
    sections: &[
        Section {
            name: "frame",
            about: "what the frame holds, and that it is laid out as the kernel's",
            run: frames::layout,
        },
        Section {
            name: "registers",
            about: "integer registers and flags that a handler changes take effect",
            run: frames::registers,
        },
        Section {
            name: "vectors",
            about: "vector registers in the frame: seen, changed, restored",
            run: frames::vectors,
        },
        Section {
            name: "control",
            about: "MXCSR and the x87 control word: reset for the handler, restored after it",
            run: frames::control,
        },
        Section {
            name: "repair",
            about: "a SIGSEGV handler maps what is missing and returns",
            run: frames::repair,
        },
        Section {
            name: "skip",
            about: "a handler moves RIP past the instruction",
            run: frames::skip,
        },
        Section {
            name: "jump",
            about: "siglongjmp out of handlers, again and again",
            run: frames::jump,
        },
        Section {
            name: "faults",
            about: "SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP: code, address, trap number",
            run: frames::faults,
        },
        Section {
            name: "step",
            about: "the trap flag: one SIGTRAP an instruction",
            run: frames::step,
        },
        Section {
            name: "altstack",
            about: "the alternate stack: nested, disarmed, overflow of the usual one",
            run: frames::altstack,
        },
        Section {
            name: "nested",
            about: "handlers in handlers, SA_NODEFER, SA_RESETHAND, sa_mask",
            run: delivery::nested,
        },
        Section {
            name: "queue",
            about: "sigqueue: values, order, counts",
            run: delivery::queue,
        },
        Section {
            name: "order",
            about: "which of several pending signals comes first",
            run: delivery::order,
        },
        Section {
            name: "info",
            about: "siginfo of kill, tgkill, raise, sigqueue",
            run: delivery::info,
        },
        Section {
            name: "wait",
            about: "sigwaitinfo, sigtimedwait, sigsuspend, pause",
            run: delivery::wait,
        },
        Section {
            name: "signalfd",
            about: "signalfd with read and poll",
            run: delivery::signalfd,
        },
        Section {
            name: "thread",
            about: "signals to a thread and to the process",
            run: delivery::thread,
        },
        Section {
            name: "mask",
            about: "masks: set, changed in the frame, inherited by threads and children",
            run: masks::inherit,
        },
        Section {
            name: "ignore",
            about: "ignored, default and unblockable signals",
            run: masks::ignore,
        },
        Section {
            name: "errors",
            about: "what the calls refuse",
            run: masks::errors,
        },
        Section {
            name: "itimer",
            about: "setitimer of three kinds, alarm",
            run: timers::itimer,
        },
        Section {
            name: "posix",
            about: "POSIX timers: periods, overruns, threads, absolute times",
            run: timers::posix,
        },
        Section {
            name: "sleep",
            about: "sleeps that signals cut short, and the time that is left",
            run: timers::sleep,
        },
    ],
    defaults: Settings {
        count: 1000,
        threads: 4,
        seconds: 1.0,
        verbose: false,
    },
    limit: Duration::from_secs(120),
    watchdog: Watchdog::Alarm,
};

fn main() {
    sections::main(&PROGRAM);
}
