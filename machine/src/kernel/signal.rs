//! Signals: actions, masks, what is pending, and what an exception becomes. Frames are in
//! [`super::sigframe`].

use std::collections::VecDeque;

use sevlab_cpu::{CpuState, Exception};

/// Signal numbers (x86-64).
#[allow(missing_docs)] // named by the ABI
mod numbers {
    pub const SIGILL: i32 = 4;
    pub const SIGTRAP: i32 = 5;
    pub const SIGBUS: i32 = 7;
    pub const SIGFPE: i32 = 8;
    pub const SIGKILL: i32 = 9;
    pub const SIGSEGV: i32 = 11;
    pub const SIGPIPE: i32 = 13;
    pub const SIGCHLD: i32 = 17;
    pub const SIGCONT: i32 = 18;
    pub const SIGSTOP: i32 = 19;
    pub const SIGTSTP: i32 = 20;
    pub const SIGTTIN: i32 = 21;
    pub const SIGTTOU: i32 = 22;
    pub const SIGURG: i32 = 23;
    pub const SIGXCPU: i32 = 24;
    pub const SIGWINCH: i32 = 28;
    pub const SIGSYS: i32 = 31;
}
pub use numbers::*;

/// Highest signal number.
pub const SIG_MAX: i32 = 64;
/// First real-time signal.
pub const SIG_RTMIN: i32 = 32;
/// Signals that may wait in one queue.
const MAX_PENDING: usize = 4096;
/// Handler value: default action.
pub const SIG_DFL: u64 = 0;
/// Handler value: ignore.
pub const SIG_IGN: u64 = 1;

/// `SA_SIGINFO`.
pub const SA_SIGINFO: u64 = 4;
/// `SA_RESTORER`.
pub const SA_RESTORER: u64 = 0x0400_0000;
/// `SA_ONSTACK`.
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// `SA_RESTART`.
pub const SA_RESTART: u64 = 0x1000_0000;
/// `SA_NODEFER`.
pub const SA_NODEFER: u64 = 0x4000_0000;
/// `SA_RESETHAND`.
pub const SA_RESETHAND: u64 = 0x8000_0000;

/// Signals that say something about the instruction that ran; delivered before all others.
const SYNCHRONOUS: u64 =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);
/// Never blocked.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);

/// Signals by which a terminal stops a process. The host delivers their default action, and knows who
/// blocks them.
pub const STOP_SIGNALS: u64 = bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

/// The bit of a signal in a set.
#[must_use]
pub const fn bit(signo: i32) -> u64 {
    1 << (signo - 1)
}

/// What a signal does when it has no handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultAction {
    /// The process ends with that signal (a core dump is an end like any other).
    Terminate,
    /// Nothing happens.
    Ignore,
    /// The process stops.
    Stop,
}

/// A signal's default action.
#[must_use]
pub fn default_action(signo: i32) -> DefaultAction {
    match signo {
        SIGCHLD | SIGCONT | SIGURG | SIGWINCH => DefaultAction::Ignore,
        SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU => DefaultAction::Stop,
        _ => DefaultAction::Terminate,
    }
}

/// `struct sigaction` as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Action {
    /// Handler, or [`SIG_DFL`], [`SIG_IGN`].
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals blocked while it runs.
    pub mask: u64,
}

/// `siginfo_t`: 128 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SigInfo(pub [u8; 128]);

impl SigInfo {
    fn new(signo: i32, code: i32) -> Self {
        let mut info = Self([0; 128]);
        info.0[..4].copy_from_slice(&signo.to_le_bytes());
        info.0[8..12].copy_from_slice(&code.to_le_bytes());
        info
    }
    /// From the kernel itself (`SI_KERNEL`).
    #[must_use]
    pub fn kernel(signo: i32) -> Self {
        Self::new(signo, 0x80)
    }
    /// A fault at `addr`.
    #[must_use]
    pub fn fault(signo: i32, code: i32, addr: u64) -> Self {
        let mut info = Self::new(signo, code);
        info.0[16..24].copy_from_slice(&addr.to_le_bytes());
        info
    }
    /// Sent by a process: `code` is `SI_USER` (0) or `SI_TKILL` (-6).
    #[must_use]
    pub fn sent(signo: i32, code: i32, pid: i32, uid: u32) -> Self {
        let mut info = Self::new(signo, code);
        info.0[16..20].copy_from_slice(&pid.to_le_bytes());
        info.0[20..24].copy_from_slice(&uid.to_le_bytes());
        info
    }
    /// Where it comes from: `si_code`.
    #[must_use]
    pub fn code(&self) -> i32 {
        i32::from_le_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }
    /// The signal's number.
    #[must_use]
    pub fn signo(&self) -> i32 {
        i32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

/// `stack_t` of `sigaltstack`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltStack {
    /// Lowest address.
    pub sp: u64,
    /// `SS_*`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

impl AltStack {
    /// `SS_DISABLE`.
    pub const DISABLE: u32 = 2;
    /// `SS_AUTODISARM`.
    pub const AUTODISARM: u32 = 1 << 31;
    /// None.
    pub const NONE: Self = Self {
        sp: 0,
        flags: Self::DISABLE,
        size: 0,
    };

    /// Whether `rsp` lies on it.
    #[must_use]
    pub fn holds(&self, rsp: u64) -> bool {
        self.flags & Self::AUTODISARM == 0 && rsp > self.sp && rsp - self.sp <= self.size
    }
}

/// Signals that wait, in the order they came. Of a standard signal one waits at a time, of a real-time
/// signal as many as were sent (signal(7)).
#[derive(Clone, Default, Debug)]
pub struct Pending {
    set: u64,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    /// The signals that wait.
    #[must_use]
    pub fn set(&self) -> u64 {
        self.set
    }

    /// Adds a signal; a standard one that waits already is not added again. False if the queue is full
    /// (`RLIMIT_SIGPENDING`).
    pub fn add(&mut self, info: SigInfo) -> bool {
        let signo = info.signo();
        if signo < SIG_RTMIN && self.set & bit(signo) != 0 {
            return true;
        }
        if self.queue.len() >= MAX_PENDING {
            return false;
        }
        self.set |= bit(signo);
        self.queue.push_back(info);
        true
    }

    /// Whether a signal waits that is so.
    pub fn any(&self, is: impl FnMut(&SigInfo) -> bool) -> bool {
        self.queue.iter().any(is)
    }

    /// Adds a signal whether or not it waits already: a fault.
    fn force(&mut self, info: SigInfo) {
        self.discard(bit(info.signo()));
        self.set |= bit(info.signo());
        self.queue.push_front(info);
    }

    /// Forgets signals.
    pub fn discard(&mut self, signals: u64) {
        if self.set & signals != 0 {
            self.set &= !signals;
            self.queue.retain(|i| signals & bit(i.signo()) == 0);
        }
    }

    /// Takes the next signal out of `among`: one that says something about the instruction first, then
    /// the lowest number, then the oldest.
    pub fn take(&mut self, among: u64) -> Option<SigInfo> {
        let ready = self.set & among;
        if ready == 0 {
            return None;
        }
        let first = if ready & SYNCHRONOUS != 0 {
            ready & SYNCHRONOUS
        } else {
            ready
        };
        let signo = first.trailing_zeros() as i32 + 1;
        let at = self.queue.iter().position(|i| i.signo() == signo)?;
        let info = self.queue.remove(at)?;
        if !self.queue.iter().any(|i| i.signo() == signo) {
            self.set &= !bit(signo);
        }
        Some(info)
    }
}

/// The signal state that the threads of a process share.
pub struct Signals {
    actions: [Action; SIG_MAX as usize + 1],
    /// Signals for the process, whichever thread takes them.
    pub pending: Pending,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            actions: [Action::default(); SIG_MAX as usize + 1],
            pending: Pending::default(),
        }
    }
}

impl Signals {
    /// A signal's action. `signo` is 1 to 64.
    #[must_use]
    pub fn action(&self, signo: i32) -> Action {
        self.actions
            .get(signo as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Sets a signal's action. The caller discards what is ignored now and waits.
    pub fn set_action(&mut self, signo: i32, action: Action) {
        if (1..=SIG_MAX).contains(&signo) {
            self.actions[signo as usize] = action;
        }
    }

    /// What execve does: handlers go, what is ignored stays ignored.
    pub fn exec(&mut self) {
        for action in &mut self.actions {
            let handler = if action.handler == SIG_IGN {
                SIG_IGN
            } else {
                SIG_DFL
            };
            *action = Action {
                handler,
                ..Action::default()
            };
        }
    }

    /// Whether a signal is dropped when it is delivered.
    #[must_use]
    pub fn ignored(&self, signo: i32) -> bool {
        match self.action(signo).handler {
            SIG_IGN => true,
            SIG_DFL => default_action(signo) == DefaultAction::Ignore,
            _ => false,
        }
    }
}

/// The signal state of one thread.
#[derive(Clone, Debug)]
pub struct TaskSignals {
    /// Blocked signals.
    pub mask: u64,
    /// The mask to return to when a call with a temporary mask is over.
    pub saved_mask: Option<u64>,
    /// Signals for this thread alone.
    pub pending: Pending,
    /// Signals that it waits for in `rt_sigtimedwait`, blocked though they are.
    pub waits_for: u64,
    /// The alternate stack.
    pub alt: AltStack,
    /// An interrupted system call, and whether SA_RESTART applies to it.
    pub restart: Option<(i64, bool)>,
    /// Trap number, error code and CR2 of the last exception, for `sigcontext`.
    pub last_fault: (u64, u64, u64),
}

impl Default for TaskSignals {
    fn default() -> Self {
        Self {
            mask: 0,
            saved_mask: None,
            pending: Pending::default(),
            waits_for: 0,
            alt: AltStack::NONE,
            restart: None,
            last_fault: (0, 0, 0),
        }
    }
}

impl TaskSignals {
    /// Makes a signal pending that can't be blocked or ignored: a fault.
    pub fn force(&mut self, actions: &mut Signals, info: SigInfo) {
        let signo = info.signo();
        if self.mask & bit(signo) != 0 || actions.action(signo).handler == SIG_IGN {
            actions.set_action(signo, Action::default());
            self.mask &= !bit(signo);
        }
        self.pending.force(info);
    }
}

/// The signal that a CPU exception (but a page fault) becomes, as Linux's trap handlers choose it.
#[must_use]
pub fn of_exception(e: &Exception, state: &CpuState) -> SigInfo {
    let rip = state.rip;
    match e.vector {
        0 => SigInfo::fault(SIGFPE, 1, rip),  // FPE_INTDIV
        1 => SigInfo::fault(SIGTRAP, 2, rip), // TRAP_TRACE
        3 => SigInfo::kernel(SIGTRAP),
        6 => SigInfo::fault(SIGILL, 2, rip), // ILL_ILLOPN
        11 | 12 => SigInfo::kernel(SIGBUS),
        16 => {
            let fx = &state.fx.0;
            let (control, status) = (u32::from(fx[0]), u32::from(fx[2]));
            SigInfo::fault(SIGFPE, fpe_code(status & !control), rip)
        }
        17 => SigInfo::fault(SIGBUS, 1, 0), // BUS_ADRALN
        19 => {
            let mxcsr = state.mxcsr;
            SigInfo::fault(SIGFPE, fpe_code(mxcsr & !(mxcsr >> 7)), rip)
        }
        _ => SigInfo::kernel(SIGSEGV),
    }
}

/// `si_code` of a floating-point exception from its status bits.
fn fpe_code(unmasked: u32) -> i32 {
    match unmasked & 0x3f {
        b if b & 1 != 0 => 7,    // FPE_FLTINV
        b if b & 4 != 0 => 3,    // FPE_FLTDIV
        b if b & 8 != 0 => 4,    // FPE_FLTOVF
        b if b & 0x12 != 0 => 5, // FPE_FLTUND
        b if b & 0x20 != 0 => 6, // FPE_FLTRES
        _ => 0,
    }
}
