//! System calls as these programs want them: close to the kernel's, and a panic that names the call when one fails
//! that should not.
#![allow(unsafe_code)] // system calls and mappings are what these programs test

use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

/// A handler with `SA_SIGINFO`.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Read and write.
pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Read and execute.
pub const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;
/// All three.
pub const RWX: i32 = RW | libc::PROT_EXEC;

/// The calling thread's error number.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The result of a call that must not fail.
#[track_caller]
pub fn ok<T: Copy + PartialOrd + Default>(what: &str, result: T) -> T {
    assert!(result >= T::default(), "{what} failed with {}", errno());
    result
}

/// `_exit`.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Calls `hung` when the process still runs after `limit`, on a thread that takes no signals.
pub fn watchdog(limit: Duration, hung: impl FnOnce() + Send + 'static) {
    let old = mask(libc::SIG_SETMASK, &full_set());
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        hung();
    });
    mask(libc::SIG_SETMASK, &old);
}

/// Waits until `done` says so; panics with `what` after half a minute.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut turns = 0u32;
    while !done() {
        turns += 1;
        if turns > 1000 {
            std::thread::sleep(Duration::from_micros(200));
        } else if turns > 100 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{what}: waited in vain"
        );
    }
}

/// Mapped memory, unmapped when dropped.
pub struct Pages {
    start: *mut u8,
    len: usize,
}

// SAFETY: it is only an address range; those who share it use atomics or take turns.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// `mmap` at an address of the kernel's choice.
    #[track_caller]
    pub fn map(len: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> Self {
        // SAFETY: a new mapping replaces nothing.
        let start = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, offset) };
        assert_ne!(start, libc::MAP_FAILED, "mmap failed with {}", errno());
        Self {
            start: start.cast(),
            len,
        }
    }

    /// Private and anonymous.
    #[track_caller]
    pub fn private(len: usize, protection: i32) -> Self {
        Self::map(
            len,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }

    /// Anonymous, and shared with children.
    #[track_caller]
    pub fn shared(len: usize) -> Self {
        Self::map(len, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Maps something else in this place.
    #[track_caller]
    pub fn replace(&self, protection: i32, flags: i32, fd: i32, offset: i64) {
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: replaces what this owns; references into it are gone by the callers' doing.
        let p = unsafe { libc::mmap(self.start.cast(), self.len, protection, flags, fd, offset) };
        assert_eq!(
            p,
            self.start.cast(),
            "mmap in place failed with {}",
            errno()
        );
    }

    /// `mprotect` of all of it.
    #[track_caller]
    pub fn protect(&self, protection: i32) {
        // SAFETY: protection of pages this owns.
        let r = unsafe { libc::mprotect(self.start.cast(), self.len, protection) };
        ok("mprotect", r);
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Copies bytes to `offset`.
    #[track_caller]
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len, "beyond the mapping");
        // SAFETY: inside the mapping, as just checked, and `bytes` is elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len());
        }
    }

    /// Copies bytes from `offset`.
    #[track_caller]
    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len, "beyond the mapping");
        // SAFETY: inside the mapping, as just checked.
        unsafe { std::slice::from_raw_parts(self.start.add(offset), len) }.to_vec()
    }

    /// The 32-bit word at `offset`.
    #[track_caller]
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.len && offset.is_multiple_of(4));
        // SAFETY: inside the mapping and aligned.
        unsafe { &*self.start.add(offset).cast() }
    }

    /// The 64-bit word at `offset`.
    #[track_caller]
    pub fn quad(&self, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= self.len && offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned.
        unsafe { &*self.start.add(offset).cast() }
    }

    /// Calls the code at `offset` with three arguments.
    ///
    /// # Safety
    /// There is a function there that follows the System V convention.
    pub unsafe fn call(&self, offset: usize, a: u64, b: u64, c: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe {
            let f: extern "sysv64" fn(u64, u64, u64) -> u64 =
                std::mem::transmute(self.start.add(offset));
            f(a, b, c)
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: unmaps what this owns.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// A file in memory of `len` bytes.
pub fn memfd(len: usize) -> i32 {
    // SAFETY: a C string and plain numbers.
    unsafe {
        let fd = ok(
            "memfd_create",
            libc::memfd_create(c"workload".as_ptr(), libc::MFD_CLOEXEC),
        );
        ok("ftruncate", libc::ftruncate(fd, len as i64));
        fd
    }
}

/// `fork`, with the child's pid in the parent. The child gets an alarm, so that none outlives its test for long.
pub fn fork() -> i32 {
    // SAFETY: the children of these programs do little, and nothing with locks that others may hold.
    let pid = ok("fork", unsafe { libc::fork() });
    if pid == 0 {
        alarm(100);
    }
    pid
}

/// A child that runs `body` and exits with what it returns.
pub fn child(body: impl FnOnce() -> i32) -> i32 {
    match fork() {
        0 => exit_now(body()),
        pid => pid,
    }
}

/// `waitpid`: whose status, and which.
#[track_caller]
pub fn wait(pid: i32, options: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: the status goes to a local.
    let who = unsafe { libc::waitpid(pid, &raw mut status, options) };
    (ok("waitpid", who), status)
}

/// Waits for the end of `pid` and says how it ended.
#[track_caller]
pub fn ended(pid: i32) -> String {
    let (who, status) = wait(pid, 0);
    assert_eq!(who, pid, "waitpid returns another child");
    show_status(status)
}

/// A wait status in words.
pub fn show_status(status: i32) -> String {
    if libc::WIFEXITED(status) {
        format!("exit {}", libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        format!("signal {}", libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) {
        format!("stopped {}", libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        "continued".to_owned()
    } else {
        format!("status {status:#x}")
    }
}

/// `pipe`: the end to read from and the one to write to.
pub fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: room for two.
    ok("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) });
    (ends[0], ends[1])
}

/// `close`.
pub fn close(fd: i32) {
    // SAFETY: these programs own the descriptors they close.
    unsafe { libc::close(fd) };
}

/// `write` of all bytes.
#[track_caller]
pub fn write(fd: i32, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: reads from a slice.
        let n = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        if n < 0 && errno() == libc::EINTR {
            continue;
        }
        rest = &rest[ok("write", n) as usize..];
    }
}

/// One `read` of at most `len` bytes, or the error number.
pub fn read(fd: i32, len: usize) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0; len];
    // SAFETY: writes into a vector of that length.
    let n = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) };
    if n < 0 {
        return Err(errno());
    }
    bytes.truncate(n as usize);
    Ok(bytes)
}

/// Everything up to the end of the file.
#[track_caller]
pub fn read_all(fd: i32) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match read(fd, 4096) {
            Ok(b) if b.is_empty() => return all,
            Ok(b) => all.extend(b),
            Err(libc::EINTR) => {}
            Err(e) => panic!("read failed with {e}"),
        }
    }
}

/// `gettid`.
pub fn gettid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

/// `getpid`.
pub fn getpid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getpid() }
}

/// `kill`.
#[track_caller]
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: plain numbers; these programs signal only themselves and their children.
    ok("kill", unsafe { libc::kill(pid, signal) });
}

/// `tgkill` within this process, with its result.
pub fn tgkill(tid: i32, signal: i32) -> i64 {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_tgkill, getpid(), tid, signal) }
}

/// `alarm`; returns the seconds that were left.
pub fn alarm(seconds: u32) -> u32 {
    // SAFETY: a plain number.
    unsafe { libc::alarm(seconds) }
}

/// Installs a handler; returns what was there.
pub fn handle(signal: i32, flags: i32, handler: Handler) -> libc::sigaction {
    action(
        signal,
        flags | libc::SA_SIGINFO,
        handler as usize,
        &set(&[]),
    )
}

/// Installs a disposition with a mask; returns what was there.
pub fn action(signal: i32, flags: i32, handler: usize, mask: &libc::sigset_t) -> libc::sigaction {
    // SAFETY: both structures are locals; the handlers of these programs only touch atomics and their own frame.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = handler;
        new.sa_flags = flags;
        new.sa_mask = *mask;
        ok(
            "sigaction",
            libc::sigaction(signal, &raw const new, &raw mut old),
        );
        old
    }
}

/// Back to the default.
pub fn default_action(signal: i32) {
    action(signal, 0, libc::SIG_DFL, &set(&[]));
}

/// A set of signals.
pub fn set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: fills a local.
    unsafe {
        let mut s: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut s);
        for signal in signals {
            libc::sigaddset(&raw mut s, *signal);
        }
        s
    }
}

/// All signals.
pub fn full_set() -> libc::sigset_t {
    // SAFETY: fills a local.
    unsafe {
        let mut s: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut s);
        s
    }
}

/// Which of the usual and real-time signals a set holds.
pub fn members(s: &libc::sigset_t) -> Vec<i32> {
    (1..=64)
        // SAFETY: reads a set.
        .filter(|n| unsafe { libc::sigismember(s, *n) } == 1)
        .collect()
}

/// Changes the calling thread's mask; returns what it was.
pub fn mask(how: i32, s: &libc::sigset_t) -> libc::sigset_t {
    let mut old = set(&[]);
    // SAFETY: both sets are there.
    let r = unsafe { libc::pthread_sigmask(how, s, &raw mut old) };
    assert_eq!(r, 0, "pthread_sigmask failed with {r}");
    old
}

/// The calling thread's mask.
pub fn current_mask() -> libc::sigset_t {
    mask(libc::SIG_BLOCK, &set(&[]))
}

/// Signals that wait, for the thread or the process.
pub fn pending() -> Vec<i32> {
    let mut s = set(&[]);
    // SAFETY: fills a local.
    ok("sigpending", unsafe { libc::sigpending(&raw mut s) });
    members(&s)
}

/// Blocks while the word holds `expected`; the error number if the kernel gives one.
pub fn futex_wait(
    word: &AtomicU32,
    expected: u32,
    timeout: Option<Duration>,
    flags: i32,
) -> Result<(), i32> {
    let time = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as i64,
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time are there.
    let r = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | flags,
            expected,
            time,
        )
    };
    if r < 0 { Err(errno()) } else { Ok(()) }
}

/// Wakes at most `count` waiters; returns how many.
#[track_caller]
pub fn futex_wake(word: &AtomicU32, count: i32, flags: i32) -> i64 {
    // SAFETY: the word is there.
    ok("futex wake", unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | flags,
            count,
        )
    })
}

/// A short sleep.
pub fn pause_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Repeatable random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}
