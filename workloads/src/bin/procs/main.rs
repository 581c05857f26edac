//! Processes: fork, vfork, clone, exec, spawn, every kind of wait and of ending, and what parents, children and threads
//! share or don't.
#![allow(unsafe_code)] // system calls

mod exec;
mod family;
mod share;
mod threads;
mod waiting;

use std::time::Duration;

use sevlab_workloads::sections::{self, Program, Section, Settings, Watchdog};

static PROGRAM: Program = Program {
    name: "procs",
    about: "processes and what they share",
    sections: &[
        Section {
            name: "exits",
            about: "exit statuses through waitpid",
            run: waiting::exits,
        },
        Section {
            name: "killed",
            about: "children that signals end",
            run: waiting::killed,
        },
        Section {
            name: "stops",
            about: "stopped and continued children",
            run: waiting::stops,
        },
        Section {
            name: "waitid",
            about: "waitid with every kind of id, WNOWAIT, WNOHANG",
            run: waiting::waitid,
        },
        Section {
            name: "none",
            about: "ECHILD, ignored SIGCHLD, SA_NOCLDWAIT",
            run: waiting::none,
        },
        Section {
            name: "sigchld",
            about: "SIGCHLD and what its siginfo says",
            run: waiting::sigchld,
        },
        Section {
            name: "eintr",
            about: "waits and reads that signals interrupt or restart",
            run: waiting::eintr,
        },
        Section {
            name: "pidfd",
            about: "pidfd_open, poll, pidfd_send_signal",
            run: waiting::pidfd,
        },
        Section {
            name: "many",
            about: "many children, one after the other and at once",
            run: waiting::many,
        },
        Section {
            name: "vfork",
            about: "vfork and clone with CLONE_VM|CLONE_VFORK",
            run: family::vfork,
        },
        Section {
            name: "groups",
            about: "process groups and sessions",
            run: family::groups,
        },
        Section {
            name: "orphans",
            about: "who becomes the parent of an orphan",
            run: family::orphans,
        },
        Section {
            name: "pdeathsig",
            about: "the signal at the parent's death",
            run: family::pdeathsig,
        },
        Section {
            name: "pipes",
            about: "a row of processes, SIGPIPE, EPIPE",
            run: family::pipes,
        },
        Section {
            name: "sockets",
            about: "socketpair, descriptors sent, eventfd, epoll",
            run: family::sockets,
        },
        Section {
            name: "exec",
            about: "execve: arguments, environment, errors, scripts",
            run: exec::exec,
        },
        Section {
            name: "kept",
            about: "what an exec keeps and what it resets",
            run: exec::kept,
        },
        Section {
            name: "cloexec",
            about: "FD_CLOEXEC and shared file offsets",
            run: exec::cloexec,
        },
        Section {
            name: "spawn",
            about: "posix_spawn with file actions, std::process::Command",
            run: exec::spawn,
        },
        Section {
            name: "chain",
            about: "a program that executes itself again and again",
            run: exec::chain,
        },
        Section {
            name: "cow",
            about: "private memory after fork, in all directions",
            run: share::cow,
        },
        Section {
            name: "shared",
            about: "counters in shared anonymous memory",
            run: share::counters,
        },
        Section {
            name: "shm",
            about: "POSIX shared memory: mutex, condition, semaphore, barrier",
            run: share::shm,
        },
        Section {
            name: "futex",
            about: "shared futexes on a file mapped at two addresses",
            run: share::futex,
        },
        Section {
            name: "locks",
            about: "fcntl and flock locks between processes",
            run: share::locks,
        },
        Section {
            name: "robust",
            about: "robust mutexes whose owner dies",
            run: share::robust,
        },
        Section {
            name: "threads",
            about: "threads: ids, TLS, join, the futex at the end",
            run: threads::basics,
        },
        Section {
            name: "threadfork",
            about: "several threads fork at once",
            run: threads::fork,
        },
        Section {
            name: "mainexit",
            about: "the main thread ends before the others",
            run: threads::main_exit,
        },
        Section {
            name: "exitgroup",
            about: "exit_group and fatal signals from a second thread",
            run: threads::exit_group,
        },
        Section {
            name: "threadexec",
            about: "exec from a second thread",
            run: threads::exec,
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
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "--child") {
        exec::child(&args[2..]);
    }
    // No core files beside the tests, and no difference in the status because of them.
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: reads a local.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    sections::main(&PROGRAM);
}
