//! Executable memory for thunks: chunks of a memfd, each mapped twice, once writable and once executable.
//!
//! No page is ever writable and executable at one address. Chunks are never unmapped, so an address handed out stays valid for
//! the life of the process; the total is bounded.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;
/// Entry points are aligned to this.
const ALIGN: usize = 16;
/// What one buffer may come to, in bytes.
const LIMIT: usize = 256 << 20;
/// `MFD_EXEC` of Linux 6.3, which older kernels refuse.
const MFD_EXEC: libc::c_uint = 0x10;

/// An append-only buffer of host code.
pub(super) struct CodeBuf {
    writable: MmapMut,
    executable: &'static [u8],
    used: usize,
    total: usize,
}

fn memfd() -> io::Result<File> {
    let mut fd = -1;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name is a NUL-terminated constant; the call touches no other memory.
        fd = unsafe { libc::memfd_create(c"sevlab-thunks".as_ptr(), flags) };
        if fd >= 0 {
            break;
        }
    }
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn chunk() -> io::Result<(MmapMut, &'static [u8])> {
    let file = memfd()?;
    file.set_len(CHUNK as u64)?;
    // SAFETY: the file is anonymous and private to this process; it is never truncated.
    let writable = unsafe { MmapOptions::new().len(CHUNK).map_mut(&file)? };
    // SAFETY: as above. The bytes change only beyond what was handed out (through `writable`).
    let executable = unsafe { MmapOptions::new().len(CHUNK).map_exec(&file)? };
    let executable: &'static Mmap = Box::leak(Box::new(executable));
    Ok((writable, executable))
}

impl CodeBuf {
    pub(super) fn new() -> io::Result<Self> {
        let (writable, executable) = chunk()?;
        Ok(Self {
            writable,
            executable,
            used: 0,
            total: CHUNK,
        })
    }

    /// Copies position-independent `code` in; returns its executable address, or `None` when the buffer's limit is reached.
    pub(super) fn push(&mut self, code: &[u8]) -> io::Result<Option<*const u8>> {
        if code.len() > CHUNK {
            return Ok(None);
        }
        if self.used + code.len() > CHUNK {
            if self.total + CHUNK > LIMIT {
                return Ok(None);
            }
            (self.writable, self.executable) = chunk()?;
            self.used = 0;
            self.total += CHUNK;
        }
        let at = self.used;
        self.writable[at..at + code.len()].copy_from_slice(code);
        self.used = (at + code.len()).next_multiple_of(ALIGN);
        Ok(Some(self.executable[at..].as_ptr()))
    }

    /// In a clone of the process: what is free of the chunk is the original's too, so none of it is used.
    pub(super) fn forked(&mut self) {
        self.used = CHUNK;
    }

    /// Bytes of code made so far (whole chunks before the current one count in full).
    pub(super) fn len(&self) -> usize {
        self.total - CHUNK + self.used
    }
}
