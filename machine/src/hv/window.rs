#![allow(unsafe_code)] // descriptors of the host, named by the guest
//! The file window: what the guest asks to be shown there ([`WindowCall`]).
//!
//! It is how a guest shares pages of the host's page cache, as by the DAX window of virtiofs. What is mapped is mapped in the
//! nested tables, in 2 MiB leaves, and nothing else is; the RMP does not cover it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;

use sevlab_arch::{Gpa, Spa};
use sevlab_cpu::Vcpu;
use sevlab_memctl::{Error as MemError, MemCtl, PageSize, check_file};

use super::Hypervisor;
use crate::error::Error;
use crate::kernel::outside::WindowCall;
use crate::kernel::syscall::marshal::{GUEST_FDS, KERNEL_FDS_END};
use crate::layout::{LARGE_PAGE, Layout};

/// Where `len` bytes of the file window from `gpa` on are in the host process's memory. `None` if they are not in the window.
#[must_use]
pub fn host_ptr(mem: &MemCtl, layout: &Layout, gpa: Gpa, len: u64) -> Option<NonNull<u8>> {
    mem.window_ptr(layout.file_spa(gpa, len)?, len)
}

impl Hypervisor {
    /// Answers a request; the result is for the guest.
    pub(super) fn window_call(&mut self, vcpu: &mut Vcpu, call: &WindowCall) -> Result<i64, Error> {
        let result = match *call {
            WindowCall::Map {
                fd,
                offset,
                len,
                at,
                writable,
            } => {
                let mapped = self.window_range(at, len).and_then(|spa| {
                    let file = regular_file(fd)?;
                    let mapped = self.mem.map_file(spa, len, file, offset, writable);
                    mapped.map(|()| spa).map_err(|e| errno(&e))
                });
                if let Ok(spa) = mapped {
                    let mut memory = self.memory();
                    for offset in (0..len).step_by(LARGE_PAGE as usize) {
                        let (at, spa) = (at.plus(offset), spa.plus(offset));
                        memory.npt.map(at, spa, PageSize::Size2M)?;
                    }
                }
                mapped.map(|_| 0)
            }
            WindowCall::Unmap { at, len } => match self.window_range(at, len) {
                Ok(spa) => {
                    let mut memory = self.memory();
                    for offset in (0..len).step_by(LARGE_PAGE as usize) {
                        memory.npt.unmap_large(at.plus(offset))?;
                    }
                    drop(memory);
                    // Nobody finds the way there any more.
                    self.changed(vcpu)?;
                    self.mem.unmap_file(spa, len)?;
                    Ok(0)
                }
                Err(errno) => Err(errno),
            },
            WindowCall::Check { fd, writable } => regular_file(fd).and_then(|file| {
                let fits = check_file(file, writable);
                fits.map(|()| 0).map_err(|e| errno(&e))
            }),
            WindowCall::Create { len } => create(len).map(i64::from),
        };
        Ok(result.unwrap_or_else(|errno| -i64::from(errno)))
    }

    /// The window's part, if it is one and whole large pages.
    fn window_range(&self, at: Gpa, len: u64) -> Result<Spa, i32> {
        if len == 0 || (at.0 | len) & (LARGE_PAGE - 1) != 0 {
            return Err(libc::EINVAL);
        }
        self.layout.file_spa(at, len).ok_or(libc::EINVAL)
    }
}

fn errno(e: &MemError) -> i32 {
    match e {
        MemError::Host { errno, .. } if *errno > 0 => *errno,
        _ => libc::EINVAL,
    }
}

fn last_errno() -> i32 {
    let last = std::io::Error::last_os_error().raw_os_error();
    last.unwrap_or(libc::EIO)
}

/// A descriptor that the guest or its kernel may have and that is a regular file's: what else could be mapped, devices above
/// all, is not for guests.
fn regular_file<'fd>(fd: i32) -> Result<BorrowedFd<'fd>, i32> {
    if !(0..KERNEL_FDS_END).contains(&fd) {
        return Err(libc::EBADF);
    }
    // SAFETY: `stat` is plain data; `fstat` fills it or fails, whatever the number is.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) != 0 {
            return Err(last_errno());
        }
        stat
    };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(libc::ENODEV);
    }
    // SAFETY: open, just asked. The guest may close it at another time; a system call on a closed descriptor fails.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A new memfd of `len` bytes among the guest kernel's descriptors.
fn create(len: u64) -> Result<i32, i32> {
    let len = libc::off_t::try_from(len).map_err(|_| libc::EINVAL)?;
    // SAFETY: plain calls; what they return is owned here, and checked.
    unsafe {
        let fd = libc::memfd_create(c"sevlab-shared".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(last_errno());
        }
        let low = OwnedFd::from_raw_fd(fd);
        let own = libc::fcntl(low.as_raw_fd(), libc::F_DUPFD_CLOEXEC, GUEST_FDS);
        if own < 0 {
            return Err(last_errno());
        }
        let own = OwnedFd::from_raw_fd(own);
        if own.as_raw_fd() >= KERNEL_FDS_END {
            return Err(libc::EMFILE);
        }
        if libc::ftruncate(own.as_raw_fd(), len) != 0 {
            return Err(last_errno());
        }
        Ok(own.into_raw_fd())
    }
}

#[cfg(test)]
mod tests;
