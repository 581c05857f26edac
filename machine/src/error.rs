//! Why a machine could not be built or could not go on. What a guest does wrong is not among these
//! unless nothing can answer it.

use sevlab_arch::Gpa;
use sevlab_arch::exit::ExitCode;

use crate::hv::npt::NptError;
use crate::kernel;

/// The crate's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory controller failed.
    #[error("memory: {0}")]
    Memory(#[from] sevlab_memctl::Error),
    /// The secure processor refused a command.
    #[error("secure processor: {0}")]
    Firmware(#[from] sevlab_psp::driver::DriverError),
    /// The machine's guest-owner half failed.
    #[error("guest owner: {0}")]
    Owner(#[from] sevlab_psp::owner::OwnerError),
    /// The measurement is not that of what was launched.
    #[error("the launch measurement is not that of the image")]
    Measurement,
    /// An RMP instruction of the hypervisor failed.
    #[error("{instruction} of {gpa}: {status}")]
    Rmp {
        /// Which instruction.
        instruction: &'static str,
        /// The guest page.
        gpa: Gpa,
        /// EAX.
        status: sevlab_arch::rmp::RmpStatus,
    },
    /// The nested page tables could not be built.
    #[error("nested page tables: {0}")]
    Npt(#[from] NptError),
    /// VMRUN failed.
    #[error("VMRUN: {0}")]
    Entry(#[from] sevlab_cpu::svm::EntryError),
    /// The guest half failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// A nested page fault that no mapping can resolve.
    #[error("nested page fault at {gpa}, error {error:#x}: nothing to map")]
    NestedFault {
        /// The address.
        gpa: Gpa,
        /// EXITINFO1.
        error: u64,
    },
    /// An exit that this hypervisor does not handle.
    #[error("unexpected exit {code}")]
    Exit {
        /// EXITCODE.
        code: ExitCode,
    },
    /// The guest asked to be terminated through the GHCB protocol.
    #[error("the guest terminated itself: reason {set:#x}:{reason:#x}")]
    Terminated {
        /// Who defines the reason.
        set: u8,
        /// The reason.
        reason: u8,
    },
    /// The guest broke the GHCB MSR protocol.
    #[error("the guest's GHCB MSR value {value:#x} is no request")]
    GhcbMsr {
        /// The value.
        value: u64,
    },
    /// The translator could not be set up.
    #[error("translator: {0}")]
    Jit(#[from] sevlab_jit::Error),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The machine has run already.
    #[error("the machine has run already")]
    Used,
}
