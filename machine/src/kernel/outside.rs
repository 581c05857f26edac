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

/// The pager's part of a bounce area of so many bytes.
#[must_use]
pub fn pager_part(bounce: usize) -> usize {
    (bounce / 4).min(64 << 10) & !15
}

/// Added to a system call's number: it may sleep, and the vCPU's doorbell or a signal ends it with EINTR. The guest
/// kernel's own calls are not ended so.
pub const INTERRUPTIBLE: i64 = 1 << 32;

/// Added to a system call's number with [`INTERRUPTIBLE`]: it is not made if it would sleep, and the result is
/// [`WOULD_SLEEP`] then.
pub const AT_ONCE: i64 = 1 << 33;
/// See [`AT_ONCE`]. No system call returns it.
pub const WOULD_SLEEP: i64 = -512;

/// Numbers of a [`HostCall`] that are no system calls: what a guest asks of the machine itself.
pub mod machine_call {
    /// Halts until the vCPU's doorbell has rung more often than argument 0 says, a signal comes (1), or the
    /// [`Deadline`](crate::doorbell::Deadline) in arguments 1 and 2 has passed (0).
    pub const IDLE: i64 = -1;
    /// In simulated time: halts until the vCPU's doorbell has rung more often than argument 0 says or a signal comes (1), or
    /// until the TSC is at argument 1 (0). With argument 2 something outside may end the wait too; with argument 3 only
    /// others of the machine can, and then the result is 2 when others have run, and 3 when none can.
    pub const HALT: i64 = -11;
    /// Starts vCPU number argument 0. Its registers are a VMSA image at the start of the bounce area, or
    /// (SEV-ES) in the save area at the guest physical address in argument 1, or (SNP) in the one that AP
    /// creation named. The result is the host's thread id.
    pub const START: i64 = -2;
    /// Clones the machine: 0 in the clone, its process id in the original. With argument 0 the original
    /// will ask to wait until the clone lets it go.
    pub const FORK: i64 = -3;
    /// Waits until the clone made last lets go (0), or tells something: so many bytes, at the start of the bounce area.
    pub const VFORK_WAIT: i64 = -4;
    /// A clone gives its original the content of the pages whose guest physical addresses, argument 0 in
    /// number, are at the start of the bounce area. Follows what it tells about them.
    pub const VFORK_GIVE: i64 = -5;
    /// A clone tells its original argument 0 bytes, which are at the start of the bounce area.
    pub const VFORK_TELL: i64 = -12;
    /// The original takes the content of pages that the clone gave with what it told last: those whose guest physical
    /// addresses, argument 0 in number, are at the start of the bounce area.
    pub const VFORK_TAKE: i64 = -13;
    /// A clone lets its original go.
    pub const VFORK_DONE: i64 = -6;
    /// The host thread blocks exactly these of its process's signals.
    pub const BLOCK: i64 = -7;
    /// The process's host signal argument 0 is ignored (1), has its default action (2), or is reported (0),
    /// with these `SA_NOCLDSTOP` and `SA_NOCLDWAIT` in argument 2. For signals whose default action the
    /// host carries out.
    pub const ACTION: i64 = -8;
    /// The process stops by this signal.
    pub const STOP: i64 = -9;
    /// futex(2) on words in the file window: the system call's arguments, but addresses are guest physical, and a
    /// time limit is at the start of the bounce area if argument 3 is 0 ([`NULL`](super::NULL): none).
    pub const FUTEX: i64 = -10;
    /// [`WindowCall::Map`](super::WindowCall::Map).
    pub const WINDOW_MAP: i64 = -20;
    /// [`WindowCall::Unmap`](super::WindowCall::Unmap).
    pub const WINDOW_UNMAP: i64 = -21;
    /// [`WindowCall::Check`](super::WindowCall::Check).
    pub const WINDOW_CHECK: i64 = -22;
    /// [`WindowCall::Create`](super::WindowCall::Create).
    pub const WINDOW_CREATE: i64 = -23;
}

/// The world outside the guest, as the guest kernel reaches it.
pub trait Outside {
    /// Bytes in the shared bounce area that arguments may use; it is contiguous.
    fn bounce_len(&self) -> usize;

    /// Bytes of the bounce area behind those: for what a page fault reads, which may happen while arguments
    /// lie in the rest.
    fn pager_len(&self) -> usize;

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

    /// Lays down what vCPU `cpu` shall start from: `image`, a VMSA. With encrypted state it goes into the
    /// private frame `frame`, which becomes a save area (RMPADJUST and AP creation under SNP); else it
    /// goes to the start of the bounce area.
    ///
    /// # Errors
    /// The RMP or the hypervisor refuses.
    fn create_vcpu(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: usize,
        frame: Gpa,
        image: &[u8],
    ) -> Result<(), Error>;

    /// A nested page fault (an automatic exit): the hypervisor maps the page, then the access is
    /// tried again. `error` has the #NPF error-code bits.
    ///
    /// # Errors
    /// The hypervisor can't resolve it; the guest can't go on.
    fn nested_fault(&mut self, vcpu: &mut Vcpu, gpa: Gpa, error: u64) -> Result<(), Error>;
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
    /// As it is asked: a [`HostCall`] with one of the numbers of [`machine_call`].
    #[must_use]
    pub fn encode(&self) -> HostCall {
        let (nr, args) = match *self {
            Self::Map {
                fd,
                offset,
                len,
                at,
                writable,
            } => (
                machine_call::WINDOW_MAP,
                [fd as u64, offset, len, at.0, u64::from(writable), 0],
            ),
            Self::Unmap { at, len } => (machine_call::WINDOW_UNMAP, [at.0, len, 0, 0, 0, 0]),
            Self::Check { fd, writable } => (
                machine_call::WINDOW_CHECK,
                [fd as u64, u64::from(writable), 0, 0, 0, 0],
            ),
            Self::Create { len } => (machine_call::WINDOW_CREATE, [len, 0, 0, 0, 0, 0]),
        };
        HostCall { nr, args }
    }

    /// The opposite of [`WindowCall::encode`].
    #[must_use]
    pub fn decode(block: &HostCall) -> Option<Self> {
        let [a, b, c, d, e, _] = block.args;
        let fd = a as u32 as i32;
        Some(match block.nr {
            machine_call::WINDOW_MAP => Self::Map {
                fd,
                offset: b,
                len: c,
                at: Gpa(d),
                writable: e != 0,
            },
            machine_call::WINDOW_UNMAP => Self::Unmap { at: Gpa(a), len: b },
            machine_call::WINDOW_CHECK => Self::Check {
                fd,
                writable: b != 0,
            },
            machine_call::WINDOW_CREATE => Self::Create { len: a },
            _ => return None,
        })
    }
}
