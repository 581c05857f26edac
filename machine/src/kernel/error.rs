//! What can go wrong: errors of the machine, and Linux error numbers for the guest.

use std::path::PathBuf;

use sevlab_arch::Gpa;

use super::elf::ElfError;

/// Why the guest kernel can't go on. A guest's own mistakes are never among these: they become error
/// numbers and signals.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory controller failed.
    #[error("guest memory: {source}")]
    Memory {
        /// Its error.
        #[from]
        source: sevlab_memctl::Error,
    },
    /// A guest-physical address that should be mapped is not.
    #[error("guest-physical address {gpa} is not mapped (error code {error:#x})")]
    NotMapped {
        /// The address.
        gpa: Gpa,
        /// #NPF error-code bits.
        error: u64,
    },
    /// The vCPU stopped for a reason which makes no sense here.
    #[error("unexpected stop of the vCPU while {during}: {stop}")]
    UnexpectedStop {
        /// What the kernel was doing.
        during: &'static str,
        /// The stop, for a human.
        stop: String,
    },
    /// The program file is not one that can run.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A file needed at launch can't be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The guest's memory is too small for what is to be loaded.
    #[error("guest memory of {have} bytes is too small for {what}")]
    OutOfMemory {
        /// Bytes the guest has.
        have: u64,
        /// What did not fit.
        what: &'static str,
    },
    /// The hypervisor answered with something the guest must not accept.
    #[error("hypervisor protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
    /// The hypervisor half failed.
    #[error("hypervisor: {0}")]
    Outside(Box<dyn std::error::Error + Send + Sync>),
}

/// A Linux error number (positive).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $v:expr),* $(,)?) => {
        #[allow(missing_docs)] // named by the ABI
        impl Errno { $(pub const $name: Errno = Errno($v);)* }
    };
}
errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8, EBADF = 9, ECHILD = 10,
    EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17, ENODEV = 19, ENOTDIR = 20,
    EISDIR = 21, EINVAL = 22, ENFILE = 23, EMFILE = 24, ENOTTY = 25, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, EROFS = 30,
    EPIPE = 32, ERANGE = 34, EDEADLK = 35, ENAMETOOLONG = 36, ENOSYS = 38, ELOOP = 40, EOVERFLOW = 75,
    ENOTSUP = 95, ENOBUFS = 105, ETIMEDOUT = 110,
}

impl Errno {
    /// The value a system call returns for it.
    #[must_use]
    pub const fn ret(self) -> i64 {
        -(self.0 as i64)
    }
}

/// How a system-call handler fails: towards the guest, or for good.
#[derive(Debug)]
pub enum Fail {
    /// The guest gets this error number.
    Errno(Errno),
    /// The machine can't go on.
    Fatal(Error),
}

impl From<Errno> for Fail {
    fn from(e: Errno) -> Self {
        Fail::Errno(e)
    }
}
impl From<Error> for Fail {
    fn from(e: Error) -> Self {
        Fail::Fatal(e)
    }
}
impl From<sevlab_memctl::Error> for Fail {
    fn from(e: sevlab_memctl::Error) -> Self {
        Fail::Fatal(e.into())
    }
}
