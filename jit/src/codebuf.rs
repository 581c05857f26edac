//! The code buffer: one memfd mapped twice, so that no page is both writable and executable.
//!
//! Unlike a Cranelift `JITModule`, which changes protections of whole segments as it finalises them, it can be
//! appended to from the compile thread while code in it runs.
#![allow(unsafe_code)] // maps executable memory

use crate::Error;
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of each function: a cache line, which also serves its constants.
const ALIGN: usize = 64;

/// Memory comes in parts of so many bytes.
const STEP: usize = 128 << 10;
/// The host's large page.
const LARGE: usize = 2 << 20;
/// So much of a large page's part of the buffer is filled before it becomes one: small programs do without.
const WORTH: usize = 512 << 10;

/// A file in memory of so many bytes.
fn memfd(bytes: usize) -> std::io::Result<File> {
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"sevlab-code".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes as u64)?;
    Ok(file)
}

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
        let file = memfd(bytes).map_err(fail)?;
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
        self.append_at(code, ALIGN)
    }

    /// The same of code that has no constants, at a multiple of `align`.
    pub(crate) fn append_at(&self, code: &[u8], align: usize) -> Result<usize, Error> {
        let mut writable = self
            .writable
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = self.used.load(Ordering::Relaxed).next_multiple_of(align);
        let end = at + code.len();
        if end > writable.len() {
            return Err(Error::CodeBufferFull);
        }
        if at == 0 || (end - 1) / STEP != (at - 1) / STEP {
            self.populate(&mut writable, (end - 1) / STEP);
        }
        writable[at..end].copy_from_slice(code);
        self.used.store(end, Ordering::Relaxed);
        if (end + LARGE - WORTH) / LARGE != (at + LARGE - WORTH) / LARGE {
            self.enlarge(end / LARGE);
        }
        Ok(self.executable.as_ptr() as usize + at)
    }

    /// Replaces four bytes of what was appended, which does not run meanwhile.
    pub(crate) fn patch(&self, address: usize, bytes: [u8; 4]) {
        let at = address - self.executable.as_ptr() as usize;
        let mut writable = self
            .writable
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        writable[at..at + 4].copy_from_slice(&bytes);
    }

    /// Has the host give the `n`th part of the buffer its memory, in both mappings: a fault for each page costs several times that.
    fn populate(&self, writable: &mut MmapMut, n: usize) {
        let at = n * STEP;
        if at + STEP <= self.executable.len() {
            // SAFETY: inside the mappings, whose bytes stay the same. A host that can't leaves it to faults.
            unsafe {
                let part = writable.as_mut_ptr().add(at).cast();
                libc::madvise(part, STEP, libc::MADV_POPULATE_WRITE);
                let part = self.executable.as_ptr().add(at).cast_mut().cast();
                libc::madvise(part, STEP, libc::MADV_POPULATE_READ);
            }
        }
    }

    /// Makes the `n`th large page's part of the buffer one large page, so that code scattered over it does not miss the host's
    /// instruction TLB. Where the host can't, it stays as it is.
    fn enlarge(&self, n: usize) {
        let at = n * LARGE;
        if at + LARGE <= self.executable.len() {
            // SAFETY: inside the mapping, whose bytes stay the same.
            unsafe {
                let part = self.executable.as_ptr().add(at).cast_mut().cast();
                libc::madvise(part, LARGE, libc::MADV_COLLAPSE);
            }
        }
    }

    /// In a clone of the process: the memory is the original's too, so this one gets its own, at the same
    /// address and with the same code. Nothing runs in it meanwhile.
    pub(crate) fn forked(&self) -> Result<(), Error> {
        let mut writable = self
            .writable
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = writable.len();
        let fail = |source| Error::CodeBuffer { bytes, source };
        let file = memfd(bytes).map_err(fail)?;
        // SAFETY: nobody else has the memfd, as above.
        let mut own = unsafe { MmapOptions::new().map_mut(&file) }.map_err(fail)?;
        let used = self.used.load(Ordering::Relaxed);
        own[..used].copy_from_slice(&writable[..used]);
        // SAFETY: replaces exactly the executable mapping, whose owner lives on, by one of the same length.
        let at = unsafe {
            libc::mmap(
                self.executable.as_ptr().cast_mut().cast(),
                bytes,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(fail(std::io::Error::last_os_error()));
        }
        *writable = own;
        Ok(())
    }

    /// The bytes of a function that [`CodeBuf::append`] has put at `address`.
    pub(crate) fn function(&self, address: usize, bytes: usize) -> Option<&[u8]> {
        let at = address.checked_sub(self.executable.as_ptr() as usize)?;
        let end = at.checked_add(bytes).filter(|&end| end <= self.used())?;
        // SAFETY: inside the mapping; what has been appended does not change until `truncate`, whose caller, the engine, is the one
        // who holds on to addresses.
        Some(unsafe { std::slice::from_raw_parts(self.executable.as_ptr().add(at), end - at) })
    }

    /// Where code may be.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.executable.as_ptr() as usize;
        start..start + self.executable.len()
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Forgets what was appended. The caller makes sure that none of it runs.
    pub(crate) fn clear(&self) {
        self.used.store(0, Ordering::Relaxed);
    }
}
