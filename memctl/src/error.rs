//! The crate's public error. Guest faults are not errors: see [`RmpFault`](crate::RmpFault).

use sevlab_arch::{Asid, Spa};
use thiserror::Error;

use crate::cipher::CipherKind;

/// Why the memory controller could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A private access under an ASID that has no key.
    #[error("ASID {asid} has no memory key (access to SPA {spa})")]
    NoKey {
        /// The ASID.
        asid: Asid,
        /// The address that was to be accessed.
        spa: Spa,
    },
    /// The range does not lie in DRAM.
    #[error("SPA {spa} + {len:#x} is outside DRAM of {size:#x} bytes")]
    OutOfRange {
        /// First address of the access.
        spa: Spa,
        /// Its length, bytes.
        len: u64,
        /// Bytes of DRAM.
        size: u64,
    },
    /// A page operation on an address that is not a page's.
    #[error("SPA {spa} is not the address of a 4 KiB page")]
    Unaligned {
        /// The address.
        spa: Spa,
    },
    /// DRAM of this size can't be made: not a multiple of 4 KiB, zero, too large, or too small to hold its RMP.
    #[error("DRAM of {size:#x} bytes: {why}")]
    Size {
        /// The size asked for, bytes.
        size: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The limit on resident pages is too small to hold what one instruction may need at once.
    #[error("a limit of {limit} resident pages is below the minimum of {min}")]
    ResidentLimit {
        /// The limit asked for, pages.
        limit: usize,
        /// The least there is, pages.
        min: usize,
    },
    /// Caches that can't be: the configuration's field and what is wrong with it.
    #[error("{field}: {why}")]
    Hierarchy {
        /// Path of the field, as in the TOML file.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A core that the machine does not have, or that is not attached.
    #[error("core {core} has no caches")]
    NoCore {
        /// Its number.
        core: usize,
    },
    /// An ASID that this processor does not have.
    #[error("ASID {asid} is above the processor's last, {max}")]
    AsidRange {
        /// The ASID.
        asid: Asid,
        /// The last one there is.
        max: u32,
    },
    /// A key for another cipher than the machine's.
    #[error("a key for {key} on a machine with {machine}")]
    CipherMismatch {
        /// The key's cipher.
        key: CipherKind,
        /// The machine's.
        machine: CipherKind,
    },
    /// The host refused something.
    #[error("{what}: OS error {errno}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The raw OS error code, 0 if there was none.
        errno: i32,
    },
}

impl Error {
    /// [`Error::Host`] with the calling thread's last error.
    pub(crate) fn host(what: &'static str) -> Self {
        Self::Host {
            what,
            errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        }
    }
}
