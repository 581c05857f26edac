//! Why an instruction or a block did not simply go on: guest faults as values, host failures as errors.

use sevlab_arch::{Gpa, Va};

/// An x86 exception, to be delivered to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector number, 0 to 31.
    pub vector: u8,
    /// Error code, for those vectors that push one.
    pub error: Option<u32>,
    /// The faulting address, for #PF.
    pub cr2: Option<Va>,
}

impl Exception {
    /// #DE.
    pub const DIVIDE: Self = Self::plain(0);
    /// #DB.
    pub const DEBUG: Self = Self::plain(1);
    /// #BP.
    pub const BREAKPOINT: Self = Self::plain(3);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::plain(6);
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    /// #MF.
    pub const X87: Self = Self::plain(16);
    /// #XM.
    pub const SIMD: Self = Self::plain(19);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error: Some(0),
        cr2: None,
    };
    /// #AC(0).
    pub const ALIGNMENT: Self = Self {
        vector: 17,
        error: Some(0),
        cr2: None,
    };

    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: None,
        }
    }
    /// A page fault with its error-code bits at `va`.
    #[must_use]
    pub const fn page_fault(va: Va, error: u32) -> Self {
        Self {
            vector: 14,
            error: Some(error),
            cr2: Some(va),
        }
    }
}

/// An instruction that the hypervisor may intercept; under SEV-ES it becomes a #VC. RIP is still at
/// the instruction; `len` is its length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum InterceptKind {
    Cpuid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    In { port: u16, width: u8 },
    Out { port: u16, width: u8, value: u32 },
    Hlt,
    Vmmcall,
    Vmgexit,
    Rdmsr,
    Wrmsr,
    Wbinvd,
    Monitor,
    Mwait,
}

/// An intercepted instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intercept {
    /// Which.
    pub kind: InterceptKind,
    /// Instruction length in bytes.
    pub len: u8,
}

/// Why execution stopped. In every case the state is precise: RIP is at the instruction that could
/// not complete (after it for `Syscall`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// A guest exception.
    Exception(Exception),
    /// SYSCALL executed: RCX, R11 are set, RIP is at the next instruction.
    Syscall,
    /// An intercepted instruction.
    Intercept(Intercept),
    /// A nested page fault or RMP violation: for the hypervisor. `error` has the #NPF bits.
    NestedFault {
        /// Faulting guest physical address.
        gpa: Gpa,
        /// EXITINFO1 of a #NPF exit.
        error: u64,
    },
    /// `exit_request` was seen between instructions.
    Requested,
    /// The instruction budget is used up.
    Budget,
    /// The memory controller failed; the machine can't go on.
    Host(sevlab_memctl::Error),
}

impl From<Exception> for Stop {
    fn from(e: Exception) -> Self {
        Stop::Exception(e)
    }
}
