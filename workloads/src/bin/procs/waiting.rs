//! How children end, and how their parents hear of it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{
    self, child, close, ended, errno, exit_now, kill, ok, pipe, read, show_status, until, wait,
};

/// Sleeps for ever.
pub fn idle() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

pub fn exits(_: &Settings) -> String {
    let mut out = String::new();
    for status in [0, 1, 7, 127, 128, 255, 256 + 3, -1] {
        let _ = write!(out, "{} ", ended(child(|| status)));
    }
    // Several at once, asked for in another order.
    let pids: Vec<i32> = (0..6).map(|i| child(|| i + 20)).collect();
    for pid in pids.iter().rev() {
        let _ = write!(out, "{} ", ended(*pid));
    }
    // And whichever comes.
    let mut pids: Vec<i32> = (0..6).map(|i| child(|| i + 40)).collect();
    let mut statuses = Vec::new();
    while !pids.is_empty() {
        let (who, status) = wait(-1, 0);
        let at = pids
            .iter()
            .position(|p| *p == who)
            .expect("one of the children");
        pids.remove(at);
        statuses.push(show_status(status));
    }
    statuses.sort();
    out + &statuses.join(" ")
}

pub fn killed(_: &Settings) -> String {
    let mut out = String::new();
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGABRT,
        libc::SIGKILL,
        libc::SIGUSR1,
        libc::SIGSEGV,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGXCPU,
        libc::SIGSYS,
        34,
        64,
    ] {
        let (from, to) = pipe();
        let pid = child(|| {
            if signal != libc::SIGKILL {
                sys::default_action(signal);
            }
            sys::write(to, b"x");
            idle()
        });
        read(from, 1).expect("the child is ready");
        close(from);
        close(to);
        kill(pid, signal);
        let _ = write!(out, "{} ", ended(pid));
    }
    // By its own doing.
    for kind in 0..5 {
        let pid = child(|| {
            for signal in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
                libc::SIGTRAP,
            ] {
                sys::default_action(signal);
            }
            // SAFETY: none of it is; the child is to die of it.
            unsafe {
                match kind {
                    0 => std::arch::asm!("mov byte ptr [{}], 1", in(reg) 0x1000usize),
                    1 => std::arch::asm!("ud2"),
                    2 => {
                        std::arch::asm!("xor ecx, ecx", "div ecx", out("ecx") _, out("edx") _, out("eax") _)
                    }
                    3 => libc::abort(),
                    _ => std::arch::asm!("int3"),
                }
            }
            0
        });
        let _ = write!(out, "{} ", ended(pid));
    }
    out.pop();
    out
}

pub fn stops(_: &Settings) -> String {
    let mut out = String::new();
    for signal in [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN] {
        let pid = child(|| {
            // SAFETY: stops this process.
            unsafe {
                libc::setpgid(0, 0);
                libc::raise(signal);
            }
            33
        });
        // A group whose parent is in another one of the session is not orphaned: SIGTSTP stops it.
        let _ = write!(out, "{}, ", show_status(wait(pid, libc::WUNTRACED).1));
        assert_eq!(
            wait(pid, libc::WUNTRACED | libc::WNOHANG).0,
            0,
            "reported once only"
        );
        kill(pid, libc::SIGCONT);
        let (_, mut status) = wait(pid, libc::WCONTINUED);
        if libc::WIFCONTINUED(status) {
            out.push_str("continued, ");
            status = wait(pid, 0).1;
        } else {
            // It ended before this process looked.
            out.push_str("continued, ");
        }
        let _ = write!(out, "{}; ", show_status(status));
    }
    // A stopped process dies of SIGKILL only; other signals wait.
    let pid = child(|| {
        // SAFETY: stops this process.
        unsafe { libc::raise(libc::SIGSTOP) };
        idle()
    });
    let _ = write!(out, "{}, ", show_status(wait(pid, libc::WUNTRACED).1));
    kill(pid, libc::SIGTERM);
    sys::pause_ms(20);
    assert_eq!(wait(pid, libc::WNOHANG).0, 0, "it is stopped");
    kill(pid, libc::SIGCONT);
    let _ = write!(out, "{}, ", ended(pid));
    let pid = child(|| {
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGSTOP) };
        idle()
    });
    wait(pid, libc::WUNTRACED);
    kill(pid, libc::SIGKILL);
    out + &ended(pid)
}

/// `waitid`, with what it says in words.
fn waitid_of(kind: libc::idtype_t, id: u32, options: i32) -> Result<(i32, String), i32> {
    // SAFETY: fills a local.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::waitid(kind, id, &raw mut info, options) < 0 {
            return Err(errno());
        }
        let code = match info.si_code {
            libc::CLD_EXITED => "exited",
            libc::CLD_KILLED => "killed",
            libc::CLD_DUMPED => "dumped",
            libc::CLD_STOPPED => "stopped",
            libc::CLD_CONTINUED => "continued",
            0 => "nothing",
            _ => "?",
        };
        Ok((info.si_pid(), format!("{code} {}", info.si_status())))
    }
}

pub fn waitid(_: &Settings) -> String {
    let mut out = Vec::new();
    let pid = child(|| 9);
    let both = libc::WEXITED | libc::WNOWAIT;
    let (who, text) = waitid_of(libc::P_PID, pid as u32, both).expect("waitid");
    assert_eq!(who, pid);
    out.push(text);
    let (who, text) = waitid_of(libc::P_ALL, 0, libc::WEXITED).expect("waitid");
    assert_eq!(who, pid);
    out.push(text);
    out.push(format!("{:?}", waitid_of(libc::P_ALL, 0, libc::WEXITED)));

    let pid = child(|| idle());
    let (who, text) =
        waitid_of(libc::P_PID, pid as u32, libc::WEXITED | libc::WNOHANG).expect("waitid");
    out.push(format!("{who} {text}"));
    kill(pid, libc::SIGSTOP);
    out.push(
        waitid_of(libc::P_PID, pid as u32, libc::WSTOPPED)
            .expect("waitid")
            .1,
    );
    kill(pid, libc::SIGCONT);
    out.push(
        waitid_of(libc::P_PID, pid as u32, libc::WCONTINUED)
            .expect("waitid")
            .1,
    );
    // SAFETY: plain numbers.
    let group = unsafe {
        ok("setpgid", libc::setpgid(pid, pid));
        libc::getpgid(pid)
    };
    kill(pid, libc::SIGUSR2);
    let (who, text) = waitid_of(libc::P_PGID, group as u32, libc::WEXITED).expect("waitid");
    assert_eq!(who, pid);
    out.push(text);
    out.push(format!("{:?}", waitid_of(libc::P_PID, pid as u32, 0)));

    // wait4 counts what the child used.
    let pid = child(|| {
        let mut x = 1u64;
        for i in 0..3_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(i | 1));
        }
        (x & 1) as i32 + 2
    });
    // SAFETY: fills locals.
    let (status, usage) = unsafe {
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        let r = libc::wait4(pid, &raw mut status, 0, &raw mut usage);
        assert_eq!(r, pid, "wait4");
        (status, usage)
    };
    assert!(usage.ru_utime.tv_sec + usage.ru_utime.tv_usec > 0 || usage.ru_stime.tv_usec > 0);
    out.push(format!("usage of {}", show_status(status)));
    out.join(", ")
}

pub fn none(_: &Settings) -> String {
    let mut out = Vec::new();
    let fails = || {
        // SAFETY: no status wanted.
        let r = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
        format!("{r} {}", errno())
    };
    out.push(fails());
    // SAFETY: as above; process 1 is no child of this.
    let other = unsafe { libc::waitpid(1, std::ptr::null_mut(), 0) };
    out.push(format!("{other} {}", errno()));
    sys::action(libc::SIGCHLD, 0, libc::SIG_IGN, &sys::set(&[]));
    let (from, to) = pipe();
    for _ in 0..3 {
        child(|| 1);
    }
    out.push(fails());
    sys::action(
        libc::SIGCHLD,
        libc::SA_NOCLDWAIT,
        libc::SIG_DFL,
        &sys::set(&[]),
    );
    child(|| 2);
    out.push(fails());
    sys::default_action(libc::SIGCHLD);
    out.push(ended(child(|| 3)));
    close(from);
    close(to);
    out.join(", ")
}

static CHILD_PID: AtomicU32 = AtomicU32::new(0);
static SEEN: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
static SEEN_COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_child(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo.
    let (pid, code, status) = unsafe { ((*info).si_pid(), (*info).si_code, (*info).si_status()) };
    CHILD_PID.store(pid as u32, Ordering::Relaxed);
    let at = SEEN_COUNT.load(Ordering::Relaxed) as usize % 16;
    SEEN[at].store(
        (signal * 10_000 + code * 1000 + status) as u32,
        Ordering::Relaxed,
    );
    SEEN_COUNT.fetch_add(1, Ordering::Release);
}

pub fn sigchld(_: &Settings) -> String {
    SEEN_COUNT.store(0, Ordering::Relaxed);
    sys::handle(libc::SIGCHLD, libc::SA_RESTART, on_child);
    let mut count = 0;
    let mut heard = |pid: i32| {
        until("SIGCHLD", || SEEN_COUNT.load(Ordering::Acquire) > count);
        count += 1;
        assert_eq!(SEEN_COUNT.load(Ordering::Relaxed), count, "one signal each");
        assert_eq!(
            CHILD_PID.load(Ordering::Relaxed),
            pid as u32,
            "of that child"
        );
    };
    let pid = child(|| 77);
    heard(pid);
    assert_eq!(ended(pid), "exit 77");
    let pid = child(|| idle());
    kill(pid, libc::SIGSTOP);
    heard(pid);
    kill(pid, libc::SIGCONT);
    heard(pid);
    kill(pid, libc::SIGKILL);
    heard(pid);
    assert_eq!(ended(pid), "signal 9");
    sys::handle(libc::SIGCHLD, libc::SA_NOCLDSTOP, on_child);
    let pid = child(|| idle());
    kill(pid, libc::SIGSTOP);
    wait(pid, libc::WUNTRACED);
    kill(pid, libc::SIGCONT);
    wait(pid, libc::WCONTINUED);
    kill(pid, libc::SIGTERM);
    heard(pid);
    ended(pid);
    sys::default_action(libc::SIGCHLD);
    let seen = SEEN[..SEEN_COUNT.load(Ordering::Relaxed) as usize].iter();
    let list: Vec<String> = seen
        .map(|s| s.load(Ordering::Relaxed).to_string())
        .collect();
    list.join(" ")
}

extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SEEN_COUNT.fetch_add(1, Ordering::Relaxed);
}

pub fn eintr(_: &Settings) -> String {
    let mut out = Vec::new();
    let parent = sys::getpid();
    for (name, flags) in [("plain", 0), ("restart", libc::SA_RESTART)] {
        sys::handle(libc::SIGUSR1, flags, ignore);
        SEEN_COUNT.store(0, Ordering::Relaxed);
        // Signals it until told to stop, so that none is early.
        let (from, to) = pipe();
        let (stop_from, stop_to) = pipe();
        let pid = child(|| {
            close(stop_to);
            // SAFETY: changes a flag of a descriptor.
            unsafe { libc::fcntl(stop_from, libc::F_SETFL, libc::O_NONBLOCK) };
            for i in 0.. {
                sys::pause_ms(5);
                kill(parent, libc::SIGUSR1);
                if flags != 0 && i == 6 {
                    sys::write(to, b"x");
                }
                if read(stop_from, 1) != Err(libc::EAGAIN) {
                    break;
                }
            }
            if flags != 0 {
                exit_now(5);
            }
            6
        });
        close(stop_from);
        out.push(format!("{name}: read {:?}", read(from, 1)));
        if flags == 0 {
            // SAFETY: no status wanted.
            let r = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            out.push(format!("waitpid {r} {}", errno()));
        }
        close(stop_to);
        let status = loop {
            let mut status = 0;
            // SAFETY: the status goes to a local.
            if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
                break status;
            }
            assert_eq!(errno(), libc::EINTR);
        };
        out.push(show_status(status));
        assert!(SEEN_COUNT.load(Ordering::Relaxed) > 0, "the handler ran");
        close(from);
        close(to);
    }
    sys::default_action(libc::SIGUSR1);
    out.join(", ")
}

pub fn pidfd(_: &Settings) -> String {
    let mut out = Vec::new();
    // Who was started in the background of a shell ignores it, and so would the child.
    sys::default_action(libc::SIGINT);
    let pid = child(|| idle());
    // SAFETY: plain numbers and one local.
    unsafe {
        let fd = ok("pidfd_open", libc::syscall(libc::SYS_pidfd_open, pid, 0)) as i32;
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        out.push(format!("poll {}", libc::poll(&raw mut poll, 1, 0)));
        ok(
            "pidfd_send_signal",
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                libc::SIGINT,
                std::ptr::null::<u8>(),
                0,
            ),
        );
        out.push(format!(
            "poll {} {}",
            libc::poll(&raw mut poll, 1, 20_000),
            poll.revents
        ));
        out.push(
            waitid_of(libc::P_PIDFD, fd as u32, libc::WEXITED)
                .expect("waitid")
                .1,
        );
        let r = libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            libc::SIGINT,
            std::ptr::null::<u8>(),
            0,
        );
        out.push(format!("{r} {}", errno()));
        close(fd);
    }
    out.join(", ")
}

pub fn many(s: &Settings) -> String {
    let one_by_one = s.count / 5;
    for i in 0..one_by_one {
        let status = (i % 256) as i32;
        assert_eq!(ended(child(|| status)), format!("exit {status}"));
    }
    let (from, to) = pipe();
    let pids: Vec<i32> = (0..s.count / 20)
        .map(|i| {
            child(|| {
                sys::write(to, &(i as u32).to_le_bytes());
                0
            })
        })
        .collect();
    close(to);
    let all = sys::read_all(from);
    close(from);
    let sum: u64 = all
        .chunks(4)
        .map(|c| u64::from(u32::from_le_bytes(c.try_into().expect("whole words"))))
        .sum();
    for pid in &pids {
        assert_eq!(ended(*pid), "exit 0");
    }
    format!("{one_by_one} in a row, {} at once, sum {sum}", pids.len())
}
