#![allow(unsafe_code)] // signals and waiting for children, which std has no calls for
//! What a study asks of the host: process groups, limits, signals.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Error;

/// A signal has asked the study to end.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP only ask ([`stopped`]); a file that grows past a limit is an error and no signal.
pub fn take_signals() {
    for signo in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler stores to an atomic, nothing else.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = stop as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signo, &action, std::ptr::null_mut());
        }
    }
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether a signal has asked for the end.
#[must_use]
pub fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Asks for the end, as a signal does: no more runs are begun, and those that run are ended.
pub fn request_stop() {
    STOP.store(true, Ordering::SeqCst);
}

/// Has a command run in a process group of its own, with the signals that a shell would give it, and die with this process.
pub fn apart(command: &mut Command) {
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: runs between fork and exec; system calls only, no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            for signo in [libc::SIGXFSZ, libc::SIGPIPE, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signo, libc::SIG_DFL);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
            // It may have died before that.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

/// Makes a command the leader of a session of its own: no signal of a terminal reaches it.
pub fn in_own_session(command: &mut Command) {
    // SAFETY: as above.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
}

/// Kills a process group.
pub fn kill_group(leader: u32) {
    if let Ok(group) = i32::try_from(leader)
        && group > 1
    {
        // SAFETY: no memory.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Its exit status, or
    pub code: Option<i32>,
    /// the signal that killed it.
    pub signal: Option<i32>,
    /// CPU time of it and of the children that it waited for.
    pub cpu: Duration,
    /// Most memory it had resident, in KiB.
    pub peak_kib: u64,
}

/// Looks whether a child has ended, and takes what is left of it.
pub fn ended(pid: u32) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: plain data, written by the call.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to live locals.
    let got = unsafe { libc::wait4(pid as i32, &mut status, libc::WNOHANG, &mut usage) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok(None)
        } else {
            Err(error)
        };
    }
    if got == 0 {
        return Ok(None);
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    Ok(Some(Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_kib: usage.ru_maxrss as u64,
    }))
}

/// A signal's name.
#[must_use]
pub fn signal_name(signo: i32) -> String {
    let name = match signo {
        libc::SIGABRT => "SIGABRT",
        libc::SIGALRM => "SIGALRM",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("signal {signo}"),
    };
    name.to_owned()
}

/// The host's name.
#[must_use]
pub fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

/// The host's processor, as /proc/cpuinfo names it.
#[must_use]
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A folder of our own among the temporary files, gone when the value is.
pub(crate) fn scratch(prefix: &str) -> Result<tempfile::TempDir, Error> {
    let made = tempfile::Builder::new().prefix(prefix).tempdir();
    made.map_err(Error::file("making a folder in", &std::env::temp_dir()))
}
