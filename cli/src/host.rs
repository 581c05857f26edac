#![allow(unsafe_code)] // signal dispositions and descriptors of this process
//! What sevlab's own process is to its surroundings.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use sevlab_machine::kernel::syscall::marshal::{GUEST_FDS, KERNEL_FDS_END};

/// SIGPIPE ends the process, as it does a C program: `sevlab doctor | head` is no error. Not for guests, whose kernel
/// raises the signal itself.
pub fn default_sigpipe() {
    // SAFETY: the default action; no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A stderr that a guest can't close: coreutils close theirs at the end.
pub fn own_stderr() -> Box<dyn Write> {
    match out_of_reach(io::stderr()) {
        Ok(file) => Box::new(file),
        Err(_) => Box::new(io::stderr()),
    }
}

/// The same file under a descriptor that is none of a guest's.
pub fn out_of_reach(file: impl AsRawFd) -> io::Result<File> {
    for from in [KERNEL_FDS_END, GUEST_FDS] {
        // SAFETY: touches no memory; the new descriptor is owned by nobody else.
        unsafe {
            let fd = libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from);
            if fd >= 0 {
                return Ok(File::from_raw_fd(fd));
            }
        }
    }
    Err(io::Error::last_os_error())
}
