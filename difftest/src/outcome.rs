//! What a run left behind, in one form for all engines.

use crate::case::X87;

/// Why a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// An exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Error code, for those that have one.
        error: u32,
        /// The faulting address of a #PF, else 0.
        address: u64,
    },
    /// SYSCALL.
    Syscall,
    /// An instruction that the hypervisor intercepts: what it is, and its length.
    Intercept(String, u8),
    /// It did not come to an end.
    Endless,
    /// Something that should not happen.
    Other(String),
}

impl End {
    /// #GP(0).
    pub const PROTECTION: Self = Self::Exception {
        vector: 13,
        error: 0,
        address: 0,
    };
    /// #UD.
    pub const UNDEFINED: Self = Self::Exception {
        vector: 6,
        error: 0,
        address: 0,
    };
}

/// Registers, memory and the reason.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // named by the architecture
pub struct Outcome {
    pub end: End,
    pub rip: u64,
    pub gpr: [u64; 16],
    pub flags: u64,
    pub fs: u64,
    pub gs: u64,
    /// Selectors of DS, ES, FS and GS.
    pub selectors: [u16; 4],
    pub mxcsr: u32,
    pub ymm: [[u64; 4]; 16],
    pub x87: X87,
    /// All data pages.
    pub memory: Vec<u8>,
}
