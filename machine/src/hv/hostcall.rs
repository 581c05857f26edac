#![allow(unsafe_code)] // host system calls on shared guest memory
//! Proxied system calls: the guest's VMMCALL with RAX = 0x5EB1 asks the host to execute one.
//!
//! The request block, in shared memory, is eight quadwords: number, six arguments, result. The
//! hypervisor copies it once; every pointer is an offset into the bounce area and is checked by the
//! table that both halves share, so the host kernel only ever sees addresses inside that area.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sevlab_arch::{Gpa, PAGE_SIZE};
use sevlab_memctl::{Domain, Error as MemError, MemCtl};
use zerocopy::IntoBytes;

use crate::kernel::Notifier;
use crate::kernel::outside::HostCall;
use crate::kernel::syscall::marshal;
use crate::layout::Layout;

/// RAX of the hypercall.
pub const NUMBER: u64 = 0x5eb1;
/// Bytes of a request block.
pub const BLOCK: u64 = 64;
/// Offset of the result in it.
pub const RESULT: u64 = 56;
/// RAX after a call that was executed (whatever its own result).
pub const DONE: u64 = 0;
/// RAX after a request block that is not where it may be.
pub const BAD_BLOCK: u64 = 1;

/// System calls that may sleep until a signal comes: read, poll, select, nanosleep, connect, accept,
/// recvfrom, recvmsg, flock, clock_nanosleep, epoll_wait, pselect6, ppoll, epoll_pwait, accept4.
const SLEEPERS: [i64; 15] = [
    0, 7, 23, 35, 42, 43, 45, 47, 73, 230, 232, 270, 271, 281, 288,
];

/// The executor of proxied system calls.
pub struct HostCalls {
    mem: Arc<MemCtl>,
    layout: Layout,
    /// The bounce area as the host sees it: contiguous, as DRAM is.
    bounce: Option<NonNull<u8>>,
    /// Where host signals for the guest are reported.
    signals: Option<Notifier>,
    /// Calls executed.
    pub executed: u64,
    /// Calls refused by the table.
    pub refused: u64,
}

impl HostCalls {
    /// Calls on the bounce area of `layout`.
    ///
    /// # Errors
    /// The area does not lie in DRAM.
    pub fn new(mem: Arc<MemCtl>, layout: Layout) -> Result<Self, MemError> {
        let len = layout.bounce_len;
        let mut bounce = None;
        if let Some(start) = layout.shared_spa(layout.bounce_gpa(), len) {
            for offset in (0..len).step_by(PAGE_SIZE as usize) {
                // Each page, so that a sparse dump knows that the host may write there.
                let page = mem.host_page(Domain::Shared, start.plus(offset), true)?;
                bounce = bounce.or(page);
            }
        }
        Ok(Self {
            mem,
            layout,
            bounce,
            signals: None,
            executed: 0,
            refused: 0,
        })
    }

    /// From now on a call that may sleep is not begun while a signal waits here.
    pub fn interrupted_by(&mut self, signals: Notifier) {
        self.signals = Some(signals);
    }

    fn interrupted(&self, nr: i64) -> bool {
        let waiting = |n: &Notifier| n.word().load(Ordering::Acquire) != 0;
        SLEEPERS.contains(&nr) && self.signals.as_ref().is_some_and(waiting)
    }

    /// Executes the request block at `gpa`; returns the hypercall's RAX.
    ///
    /// # Errors
    /// Shared memory can't be reached.
    pub fn execute(&mut self, gpa: Gpa) -> Result<u64, MemError> {
        let Some(at) = self.layout.shared_spa(gpa, BLOCK) else {
            return Ok(BAD_BLOCK);
        };
        let mut block = [0u64; 7];
        self.mem.read(Domain::Shared, at, block.as_mut_bytes())?;
        let [nr, args @ ..] = block;
        let call = HostCall {
            nr: nr as i64,
            args,
        };
        let result = self.call(&call);
        self.mem
            .write(Domain::Shared, at.plus(RESULT), &result.to_le_bytes())?;
        Ok(DONE)
    }

    fn call(&mut self, call: &HostCall) -> i64 {
        let Some(area) = self.bounce else {
            return -i64::from(libc::ENOMEM);
        };
        let len = self.layout.bounce_len as usize;
        // SAFETY: the area is `len` bytes of the DRAM mapping, contiguous as system physical memory
        // is, alive as long as `self.mem`; the guest does not run meanwhile, and no other reference
        // into DRAM exists (the memory controller works with raw pointers).
        let bounce = unsafe { std::slice::from_raw_parts_mut(area.as_ptr(), len) };
        let host = match marshal::check(call, bounce) {
            Ok(host) => host,
            Err(errno) => {
                self.refused += 1;
                return errno.ret();
            }
        };
        if self.interrupted(call.nr) {
            return -i64::from(libc::EINTR);
        }
        self.executed += 1;
        let a = &host.args;
        // SAFETY: the table admitted the call and its arguments: pointers are null, or lie inside
        // the bounce area (or `host`) for as many bytes as the host kernel may touch, and none of the
        // admitted calls changes this process's memory map or control flow.
        let ret = unsafe { libc::syscall(call.nr, a[0], a[1], a[2], a[3], a[4], a[5]) };
        if ret == -1 {
            let errno = std::io::Error::last_os_error().raw_os_error();
            return -i64::from(errno.unwrap_or(libc::EIO));
        }
        host.complete(bounce);
        ret
    }
}
