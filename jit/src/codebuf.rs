//! The code buffer: one memfd mapped twice, so that no page is both writable and executable.
//!
//! Unlike a Cranelift `JITModule`, which changes protections of whole segments as it finalises them, it can be
//! appended to from the compile thread while code in it runs.
#![allow(unsafe_code)] // maps executable memory

use crate::Error;
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of each function: a cache line, which also serves its constants.
const ALIGN: usize = 64;

/// Append-only executable memory.
pub(crate) struct CodeBuf {
    writable: Mutex<MmapMut>,
    executable: Mmap,
    used: AtomicUsize,
}

impl CodeBuf {
    /// A buffer of `bytes` bytes, backed by memory only as far as it is filled.
    pub(crate) fn new(bytes: usize) -> Result<Self, Error> {
        let fail = |source| Error::CodeBuffer { bytes, source };
        // SAFETY: the name is a NUL-terminated constant.
        let fd = unsafe { libc::memfd_create(c"sevlab-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(fail(std::io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64).map_err(fail)?;
        // SAFETY: nobody else has the memfd, so the mappings change only through `writable`.
        let writable = unsafe { MmapOptions::new().map_mut(&file) }.map_err(fail)?;
        // SAFETY: as above.
        let executable = unsafe { MmapOptions::new().map_exec(&file) }.map_err(fail)?;
        Ok(Self {
            writable: Mutex::new(writable),
            executable,
            used: AtomicUsize::new(0),
        })
    }

    /// Appends position-independent code and returns its executable address.
    pub(crate) fn append(&self, code: &[u8]) -> Result<usize, Error> {
        let mut writable = self
            .writable
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = self.used.load(Ordering::Relaxed).next_multiple_of(ALIGN);
        let end = at + code.len();
        if end > writable.len() {
            return Err(Error::CodeBufferFull);
        }
        writable[at..end].copy_from_slice(code);
        self.used.store(end, Ordering::Relaxed);
        Ok(self.executable.as_ptr() as usize + at)
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Forgets what was appended after the first `keep` bytes. The caller makes sure that none of it runs.
    pub(crate) fn truncate(&self, keep: usize) {
        self.used.store(keep, Ordering::Relaxed);
    }
}
