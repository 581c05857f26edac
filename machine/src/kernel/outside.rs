//! What the guest kernel needs from beyond the fence: the only way out of the guest.
//!
//! The kernel is trusted guest code. It reads and writes guest memory in the guest's key domain, and
//! everything else (files, time, CPUID) is asked of the hypervisor through [`Outside`], whose
//! implementation goes through the GHCB page and a shared, unencrypted bounce area. What comes back
//! is untrusted: the kernel checks every length and count before it uses it.

use sevlab_arch::Gpa;
use sevlab_cpu::Vcpu;

use super::error::Error;

/// "No pointer" among the pointer arguments of a [`HostCall`].
pub const NULL: u64 = u64::MAX;

/// A system call for the host to execute. Scalar arguments are the guest's own; pointer arguments
/// are byte offsets into the bounce area, [`NULL`] for a null pointer. Which argument is which is
/// said by the call's row in [`super::syscall::table`], and [`super::syscall::marshal::check`] turns
/// the whole into host arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct HostCall {
    /// Linux x86-64 system call number.
    pub nr: i64,
    /// The six arguments.
    pub args: [u64; 6],
}

/// The world outside the guest, as the guest kernel reaches it.
pub trait Outside {
    /// Bytes in the shared bounce area; it is contiguous, and a multiple of the page size.
    fn bounce_len(&self) -> usize;

    /// Copies `data` into the bounce area at `off`.
    ///
    /// # Errors
    /// The range lies outside the area, or shared memory can't be written.
    fn bounce_write(&mut self, vcpu: &mut Vcpu, off: usize, data: &[u8]) -> Result<(), Error>;

    /// Copies from the bounce area at `off` into `out`.
    ///
    /// # Errors
    /// The range lies outside the area, or shared memory can't be read.
    fn bounce_read(&mut self, vcpu: &mut Vcpu, off: usize, out: &mut [u8]) -> Result<(), Error>;

    /// Has the host execute a system call; returns its raw result, `-errno` on failure.
    ///
    /// # Errors
    /// The exit itself failed (a protocol violation), not the system call.
    fn host_call(&mut self, vcpu: &mut Vcpu, call: &HostCall) -> Result<i64, Error>;

    /// CPUID as this machine answers it: EAX, EBX, ECX, EDX.
    ///
    /// # Errors
    /// The exit failed.
    fn cpuid(&mut self, vcpu: &mut Vcpu, leaf: u32, subleaf: u32) -> Result<[u32; 4], Error>;

    /// The time-stamp counter, and TSC_AUX if `rdtscp`.
    ///
    /// # Errors
    /// The exit failed.
    fn rdtsc(&mut self, vcpu: &mut Vcpu, rdtscp: bool) -> Result<(u64, u32), Error>;

    /// Makes private pages usable before their first use (PVALIDATE under SNP; else nothing).
    ///
    /// # Errors
    /// The page was already validated or the RMP refuses.
    fn accept(&mut self, vcpu: &mut Vcpu, gpa: Gpa, pages: u64) -> Result<(), Error>;

    /// Page state change: makes pages shared or private.
    ///
    /// # Errors
    /// The hypervisor refuses the change.
    fn share(&mut self, vcpu: &mut Vcpu, gpa: Gpa, pages: u64, shared: bool) -> Result<(), Error>;

    /// A nested page fault (an automatic exit): the hypervisor maps the page, then the access is
    /// tried again. `error` has the #NPF error-code bits.
    ///
    /// # Errors
    /// The hypervisor can't resolve it; the guest can't go on.
    fn nested_fault(&mut self, vcpu: &mut Vcpu, gpa: Gpa, error: u64) -> Result<(), Error>;

    /// Asks the hypervisor for a change of the file window; returns its result, `-errno` on failure.
    ///
    /// # Errors
    /// As [`Outside::host_call`].
    fn window(&mut self, vcpu: &mut Vcpu, call: &WindowCall) -> Result<i64, Error>;
}

/// What the guest kernel asks about the file window: guest-physical addresses at which the hypervisor shows pages of
/// host files, for mappings that are shared. Addresses and lengths are multiples of 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WindowCall {
    /// `len` bytes of a file from `offset` on appear at `at`, in place of what is there.
    Map {
        /// The guest kernel's descriptor.
        fd: i32,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Where in the window.
        at: Gpa,
        /// What is written there is the file's.
        writable: bool,
    },
    /// What is there goes.
    Unmap {
        /// Where in the window.
        at: Gpa,
        /// Bytes.
        len: u64,
    },
    /// Whether a file can be mapped so.
    Check {
        /// The guest kernel's descriptor.
        fd: i32,
        /// As in [`WindowCall::Map`].
        writable: bool,
    },
    /// A new file without a name; the result is the guest kernel's descriptor.
    Create {
        /// Its size, bytes.
        len: u64,
    },
}

impl WindowCall {
    /// As it stands in a request block.
    #[must_use]
    pub fn encode(&self) -> HostCall {
        let (nr, args) = match *self {
            Self::Map {
                fd,
                offset,
                len,
                at,
                writable,
            } => (1, [fd as u64, offset, len, at.0, u64::from(writable), 0]),
            Self::Unmap { at, len } => (2, [at.0, len, 0, 0, 0, 0]),
            Self::Check { fd, writable } => (3, [fd as u64, u64::from(writable), 0, 0, 0, 0]),
            Self::Create { len } => (4, [len, 0, 0, 0, 0, 0]),
        };
        HostCall { nr, args }
    }

    /// The opposite of [`WindowCall::encode`].
    #[must_use]
    pub fn decode(block: &HostCall) -> Option<Self> {
        let [a, b, c, d, e, _] = block.args;
        let fd = a as u32 as i32;
        Some(match block.nr {
            1 => Self::Map {
                fd,
                offset: b,
                len: c,
                at: Gpa(d),
                writable: e != 0,
            },
            2 => Self::Unmap { at: Gpa(a), len: b },
            3 => Self::Check {
                fd,
                writable: b != 0,
            },
            4 => Self::Create { len: a },
            _ => return None,
        })
    }
}
