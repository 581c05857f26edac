#![allow(unsafe_code)] // signal handlers of the host process
//! The host process around a guest: its signals, its descriptors, and how it ends.
//!
//! While a guest runs, every signal that can be caught is only noted, for the guest kernel to deliver;
//! the handlers are installed without SA_RESTART, so a proxied system call returns EINTR. Signals that
//! say something about the host's own instructions (SIGSEGV and the like) stay the host's.

use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::doorbell::{interrupt, kick_signal};
use crate::kernel::signal::{STOP_SIGNALS, SigInfo, bit};
use crate::kernel::{GuestEnd, Process};

/// Signals that are never forwarded.
const OWN: [i32; 2] = [libc::SIGKILL, libc::SIGSTOP];
/// Signals that are forwarded only if somebody sent them: else they are about the host's own code.
const FAULTS: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
];
/// Highest signal number.
const LAST: i32 = 64;
/// Signals that may wait to be taken in.
const PLACES: usize = 256;
/// vCPUs that a signal can be reported to.
const CPUS: usize = crate::layout::MAX_CPUS;

/// One signal on its way in.
struct Place {
    /// 0 free, 1 being written, 2 full.
    state: AtomicU32,
    /// When it came.
    order: AtomicU64,
    info: UnsafeCell<[u8; 128]>,
}

/// Signals from outside the guest, as an asynchronous handler may leave them.
pub struct Inbox {
    places: Box<[Place]>,
    full: AtomicBool,
    next: AtomicU64,
}

// SAFETY: `info` is accessed only by whoever took the place from free to being written, or from full to
// free, and `state` orders that.
unsafe impl Sync for Inbox {}
// SAFETY: plain data.
unsafe impl Send for Inbox {}

impl Default for Inbox {
    fn default() -> Self {
        let place = |_| Place {
            state: AtomicU32::new(0),
            order: AtomicU64::new(0),
            info: UnsafeCell::new([0; 128]),
        };
        Self {
            places: (0..PLACES).map(place).collect(),
            full: AtomicBool::new(false),
            next: AtomicU64::new(0),
        }
    }
}

impl Inbox {
    /// Leaves a signal. Async-signal-safe; if there is no place, the signal is lost, as with a full
    /// `RLIMIT_SIGPENDING`.
    pub fn put(&self, info: &[u8; 128]) {
        for place in &self.places {
            let taken = place
                .state
                .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                // SAFETY: the place is this call's until the state changes.
                unsafe { *place.info.get() = *info };
                let order = self.next.fetch_add(1, Ordering::Relaxed);
                place.order.store(order, Ordering::Relaxed);
                place.state.store(2, Ordering::Release);
                self.full.store(true, Ordering::Release);
                return;
            }
        }
    }

    /// Takes all that came, oldest first. One caller at a time.
    pub fn take(&self) -> Vec<SigInfo> {
        if !self.full.load(Ordering::Relaxed) || !self.full.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for place in &self.places {
            if place.state.load(Ordering::Acquire) == 2 {
                // SAFETY: a full place is the taker's.
                let info = unsafe { *place.info.get() };
                found.push((place.order.load(Ordering::Relaxed), SigInfo(info)));
                place.state.store(0, Ordering::Release);
            }
        }
        found.sort_unstable_by_key(|(order, _)| *order);
        found.into_iter().map(|(_, info)| info).collect()
    }
}

static ACTIVE: AtomicBool = AtomicBool::new(false);
static INBOX: AtomicPtr<Inbox> = AtomicPtr::new(ptr::null_mut());
/// Exit requests of the vCPUs, by number.
static REQUESTS: [AtomicPtr<AtomicU32>; CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; CPUS];

thread_local! {
    /// The vCPU of this thread.
    static REQUEST: Cell<*const AtomicU32> = const { Cell::new(ptr::null()) };
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// What was done about [`FAULTS`] before.
static BEFORE: [OnceLock<libc::sigaction>; FAULTS.len()] =
    [const { OnceLock::new() }; FAULTS.len()];

/// One of [`FAULTS`]: sent to the guest, or the host's own fault, which whoever was there before deals with.
extern "C" fn note_if_sent(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as in `note`; a handler that was there gets what it was made for.
    unsafe {
        if (*info).si_code <= 0 {
            return note(signo, info, context);
        }
        let before = FAULTS
            .iter()
            .position(|s| *s == signo)
            .and_then(|i| BEFORE[i].get());
        match before {
            Some(old)
                if old.sa_sigaction > libc::SIG_IGN && old.sa_flags & libc::SA_SIGINFO != 0 =>
            {
                let handler: Handler = std::mem::transmute(old.sa_sigaction);
                handler(signo, info, context);
            }
            Some(old) => {
                // The instruction runs again, and the fault ends as it would have.
                libc::sigaction(signo, old, ptr::null_mut());
            }
            None => {
                libc::signal(signo, libc::SIG_DFL);
            }
        }
    }
}

/// SIGPIPE: a proxied write fails with EPIPE, and the guest kernel raises the signal; only what others
/// send is forwarded.
extern "C" fn note_foreign(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as in `note`.
    if unsafe { (*info).si_pid() != libc::getpid() } {
        note(signo, info, context);
    }
}

extern "C" fn note(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives both, for as long as the handler runs; the words are live until `Cpu` is
    // dropped, which takes the pointers away first; all that is called is async-signal-safe.
    unsafe {
        let raw = &*info.cast::<[u8; 128]>();
        let kick = signo == kick_signal()
            && (*info).si_code == libc::SI_TKILL
            && (*info).si_pid() == libc::getpid();
        if !kick {
            let inbox = INBOX.load(Ordering::Acquire);
            if !inbox.is_null() {
                (*inbox).put(raw);
            }
            // Whoever looks first takes it in, and passes it on to whom it concerns.
            for request in &REQUESTS {
                let request = request.load(Ordering::Acquire);
                if !request.is_null() {
                    (*request).store(1, Ordering::SeqCst);
                }
            }
        }
        let own = REQUEST.with(Cell::get);
        if !own.is_null() {
            (*own).store(1, Ordering::SeqCst);
            let context = context.cast::<libc::ucontext_t>();
            interrupt(&mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize]);
        }
    }
}

/// While this lives, signals that arrive are reported to the calling thread's vCPU.
pub(crate) struct Cpu(usize);

impl Cpu {
    /// `request` is the vCPU's `exit_request`, which must outlive the result.
    pub(crate) fn new(cpu: usize, request: &AtomicU32) -> Self {
        let request = ptr::from_ref(request);
        REQUEST.with(|r| r.set(request));
        if ACTIVE.load(Ordering::Acquire) {
            REQUESTS[cpu].store(request.cast_mut(), Ordering::Release);
        }
        Self(cpu)
    }

    /// In a clone of the process: no other vCPU is there.
    pub(crate) fn alone(cpu: usize) {
        for (i, request) in REQUESTS.iter().enumerate() {
            if i != cpu {
                request.store(ptr::null_mut(), Ordering::Release);
            }
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let own = REQUEST.with(|r| r.replace(ptr::null()));
        let _ = REQUESTS[self.0].compare_exchange(
            own.cast_mut(),
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }
}

/// As long as this lives, the calling thread takes no signals.
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    pub(crate) fn new() -> Self {
        // SAFETY: plain calls on live locals.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: puts back what `new` found.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut());
        }
    }
}

/// Host signals go to a guest as long as this lives.
pub(crate) struct Forwarding {
    old: Vec<(i32, libc::sigaction)>,
    /// Kept alive for the handler.
    _inbox: Arc<Inbox>,
}

impl Forwarding {
    /// Installs the handlers, unless another machine of this process has them. The guest starts with those
    /// signals ignored that this process ignores.
    pub(crate) fn install(process: &Process) -> Option<Self> {
        if ACTIVE.swap(true, Ordering::AcqRel) {
            return None;
        }
        let inbox = process.inbox();
        INBOX.store(Arc::as_ptr(&inbox).cast_mut(), Ordering::Release);
        let mut old = Vec::new();
        for signo in (1..=LAST).filter(|s| !OWN.contains(s) && !stops(*s)) {
            // SAFETY: zeroed is a valid `sigaction`; the calls get live locals. The C library refuses
            // the signals it keeps to itself.
            unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signo, ptr::null(), &raw mut before) != 0 {
                    continue;
                }
                if signo == libc::SIGPIPE {
                    // This process began with it ignored, whatever it inherited: a convention of its runtime.
                    if catch_by(signo, 0, note_foreign) {
                        old.push((signo, before));
                    }
                    continue;
                }
                if let Some(i) = FAULTS.iter().position(|s| *s == signo) {
                    let _ = BEFORE[i].set(before);
                    if catch_by(signo, libc::SA_NODEFER, note_if_sent) {
                        old.push((signo, before));
                    }
                    continue;
                }
                if before.sa_sigaction == libc::SIG_IGN {
                    // Caught all the same: the guest may change its mind.
                    process.kernel().inherit_ignored(signo);
                }
                if catch(signo) {
                    old.push((signo, before));
                }
            }
        }
        Some(Self { old, _inbox: inbox })
    }
}

/// Whether a signal's default action is the host's to carry out.
fn stops(signo: i32) -> bool {
    STOP_SIGNALS & bit(signo) != 0
}

/// Has the calling thread block these stop signals, and no others.
pub(crate) fn block(set: u64) -> i64 {
    // SAFETY: plain calls on live locals.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        for signo in (1..=LAST).filter(|s| set & bit(*s) != 0) {
            libc::sigaddset(&raw mut mask, signo);
        }
        -i64::from(libc::pthread_sigmask(
            libc::SIG_SETMASK,
            &raw const mask,
            ptr::null_mut(),
        ))
    }
}

/// What becomes of a stop signal, or of SIGCHLD: reported (0), ignored (1), or the host's default (2).
pub(crate) fn action(signo: i32, what: u64, flags: u64) -> i64 {
    let allowed = stops(signo) || signo == libc::SIGCHLD;
    if !allowed || !ACTIVE.load(Ordering::Acquire) {
        return -i64::from(libc::EINVAL);
    }
    let done = match what {
        0 => catch_with(
            signo,
            flags as i32 & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT),
        ),
        // SAFETY: a plain call.
        1 => unsafe { libc::signal(signo, libc::SIG_IGN) != libc::SIG_ERR },
        // SAFETY: a plain call.
        _ => unsafe { libc::signal(signo, libc::SIG_DFL) != libc::SIG_ERR },
    };
    if done { 0 } else { -i64::from(libc::EINVAL) }
}

/// Stops this process by a signal whose default action that is.
pub(crate) fn stop(signo: i32) -> i64 {
    let signo = if stops(signo) { signo } else { libc::SIGSTOP };
    // SAFETY: plain calls.
    unsafe {
        if stops(signo) {
            libc::signal(signo, libc::SIG_DFL);
        }
        i64::from(libc::kill(libc::getpid(), signo))
    }
}

/// Installs the handler for one signal.
fn catch(signo: i32) -> bool {
    catch_with(signo, 0)
}

fn catch_with(signo: i32, flags: i32) -> bool {
    catch_by(signo, flags, note)
}

fn catch_by(signo: i32, flags: i32, handler: Handler) -> bool {
    // SAFETY: zeroed is a valid `sigaction`, filled in below.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        // Guest code runs with a stack pointer of its own making only inside translated code,
        // which keeps the host's; still, an alternate stack is the safer place.
        action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO | flags;
        libc::sigfillset(&raw mut action.sa_mask);
        for fault in FAULTS {
            // A fault of the host's own while the handler runs must not be held back.
            libc::sigdelset(&raw mut action.sa_mask, fault);
        }
        libc::sigaction(signo, &raw const action, ptr::null_mut()) == 0
    }
}

/// The signal that ends a vCPU's sleep is always caught, also where the guest gets none of the host's.
pub(crate) fn catch_kicks() {
    catch(kick_signal());
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // The guest's interval timers are the process's, which is not to be killed by one when it has ended.
        for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
            // SAFETY: zeroes are a valid `itimerval`: disarmed.
            unsafe {
                let off: libc::itimerval = std::mem::zeroed();
                libc::setitimer(which, &raw const off, ptr::null_mut());
            }
        }
        for (signo, action) in &self.old {
            // SAFETY: puts back what `install` found.
            unsafe { libc::sigaction(*signo, ptr::from_ref(action), ptr::null_mut()) };
        }
        INBOX.store(ptr::null_mut(), Ordering::Release);
        ACTIVE.store(false, Ordering::Release);
    }
}

/// Raises the limit on open descriptors as far as it goes: guest files, the guest kernel's, and the
/// host's own live in separate ranges.
pub(crate) fn raise_descriptor_limit() {
    // SAFETY: `getrlimit` and `setrlimit` get a live local.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0
            && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Ends this process as the guest ended: with its exit status, or killed by the same signal.
pub fn exit_like(end: GuestEnd) -> ! {
    match end {
        GuestEnd::Exited(status) => std::process::exit(status),
        GuestEnd::Killed(signo) => die_of(signo),
    }
}

/// As [`exit_like`], for a clone of the process: nothing that the original would do at its end is done.
pub(crate) fn clone_exit_like(end: GuestEnd) -> ! {
    match end {
        // SAFETY: ends the process.
        GuestEnd::Exited(status) => unsafe { libc::_exit(status) },
        GuestEnd::Killed(signo) => die_of(signo),
    }
}

fn die_of(signo: i32) -> ! {
    {
        // SAFETY: plain libc calls on live locals. A core file would be this process's, not the
        // guest's, so none is written.
        unsafe {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::signal(signo, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signo);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
            libc::raise(signo);
        }
        // Only a signal whose default is to do nothing gets here.
        std::process::exit(128 + signo)
    }
}
