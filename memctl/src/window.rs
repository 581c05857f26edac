#![allow(unsafe_code)] // maps files over a part of the DRAM mapping, and handles the SIGBUS that they can raise
//! The window: addresses behind DRAM at which pages of host files are mapped, to be shared with whoever else uses the files.
//!
//! The problem: DRAM is memory of this process alone, and a clone of the process (fork) gets a copy of it. What a guest shares
//! with other guests or with the host must be the very pages of the host's page cache. A real guest is given them as a range of
//! device memory behind its RAM (virtio-pmem, the DAX window of virtiofs), and so it is here.
//!
//! 1. Only [`Domain::Shared`](crate::Domain::Shared) reaches the window: it is never encrypted, it has no RMP entries (so it is
//!    the hypervisor's), it is no part of dumps, and no book is kept about its pages.
//! 2. A page of the window is one of a file, or memory of this process's own, zeroes at first, that nobody has business with. It
//!    is never free for other mappings of the process.
//! 3. No entry of a fast TLB outlives a change of what is mapped at its page.
//! 4. A file may shrink while it is mapped, and a touch of what is beyond its end is a SIGBUS. A handler puts a page of zeroes
//!    there, and the access goes on: whoever shrinks a file from outside does not end this process. That page is not the
//!    file's any more until the range is mapped again.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sevlab_arch::{PAGE_SIZE, Spa};

use crate::ctl::MemCtl;
use crate::error::Error;

impl MemCtl {
    /// The window, empty if the machine has none: it begins where DRAM ends.
    #[must_use]
    pub fn window(&self) -> Range<Spa> {
        Spa(self.size())..Spa(self.span())
    }

    /// Bytes of DRAM and window.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.size() + self.dram.window
    }

    /// Where `len` bytes of the window from `at` are in this process's memory. `None` if they don't lie inside it.
    ///
    /// The address is good as long as the controller; what is there is for [`MemCtl::map_file`] to say.
    #[must_use]
    pub fn window_ptr(&self, at: Spa, len: u64) -> Option<NonNull<u8>> {
        let window = self.window();
        let end = at.0.checked_add(len)?;
        (at >= window.start && end <= window.end.0).then(|| self.dram.raw.span(at.0, len as usize))
    }

    /// Maps `len` bytes of a file from `offset` on at `at` in the window, in place of what is there.
    ///
    /// If `writable`, what is written there is the file's; the file must be open for reading and writing. Otherwise a write is
    /// seen by this process only, which is an accident that the host survives. The file need not reach that far: pages beyond
    /// its end come with it when it grows.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Unaligned`] for what is no page of the window, [`Error::Host`] for a file that the host
    /// does not map so.
    pub fn map_file(
        &self,
        at: Spa,
        len: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        writable: bool,
    ) -> Result<(), Error> {
        let target = self.window_pages(at, len)?;
        let mapped = map(file, offset, len as usize, writable)?;
        self.replace(target, len, || {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let (from, to) = (mapped.as_ptr().cast(), target.as_ptr().cast::<u8>());
            // SAFETY: moves the mapping just made to pages of the window, which belong to this controller and to which no
            // Rust reference exists.
            let moved = unsafe { libc::mremap(from, len as usize, len as usize, flags, to) };
            if moved != libc::MAP_FAILED {
                return Ok(());
            }
            let why = Error::host("moving a file's mapping into the window");
            // SAFETY: the mapping just made, of which nobody knows.
            unsafe { libc::munmap(from, len as usize) };
            // The host may have unmapped the target before it failed.
            set_aside(target, len as usize)?;
            Err(why)
        })
    }

    /// Takes what is mapped away.
    ///
    /// # Errors
    /// As [`MemCtl::map_file`].
    pub fn unmap_file(&self, at: Spa, len: u64) -> Result<(), Error> {
        let target = self.window_pages(at, len)?;
        self.replace(target, len, || set_aside(target, len as usize))
    }

    fn window_pages(&self, at: Spa, len: u64) -> Result<NonNull<u8>, Error> {
        if at.offset() != 0 || !len.is_multiple_of(PAGE_SIZE) || len == 0 {
            return Err(Error::Unaligned { spa: at });
        }
        self.window_ptr(at, len).ok_or(Error::OutOfRange {
            spa: at,
            len,
            size: self.span(),
        })
    }

    /// Changes what is mapped, without entries of fast TLBs for it before or after (invariant 3).
    fn replace(
        &self,
        target: NonNull<u8>,
        len: u64,
        change: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut meta = self.lock(); // no entry is made meanwhile
        let first = (target.addr().get() - self.dram.raw.ptr(0).addr().get()) as u64 / PAGE_SIZE;
        self.evict_range(&mut meta, first..first + len / PAGE_SIZE);
        self.tlbs.drop_host_range(target, len / PAGE_SIZE);
        change()
    }
}

/// Whether the host maps this file as [`MemCtl::map_file`] would.
///
/// # Errors
/// [`Error::Host`].
pub fn check_file(file: BorrowedFd<'_>, writable: bool) -> Result<(), Error> {
    let len = PAGE_SIZE as usize;
    let mapped = map(file, 0, len, writable)?;
    // SAFETY: the mapping just made, of which nobody knows.
    unsafe { libc::munmap(mapped.as_ptr().cast(), len) };
    Ok(())
}

/// Maps a part of a file anywhere. Private where it must not be written: Linux shows the page cache's own pages there, too, as
/// long as nobody writes to them.
fn map(
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    writable: bool,
) -> Result<NonNull<u8>, Error> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let fd = file.as_raw_fd();
    let fail = |errno| Error::Host {
        what: "mapping a file",
        errno,
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| fail(libc::EOVERFLOW))?;
    let with = |flags: i32| {
        // SAFETY: a new mapping, where the host likes.
        let at = unsafe { libc::mmap(null_mut(), len, prot, flags, fd, offset) };
        NonNull::new(at.cast::<u8>()).filter(|_| at != libc::MAP_FAILED)
    };
    let flags = if writable {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE | libc::MAP_NORESERVE
    };
    with(flags).ok_or_else(|| Error::host("mapping a file"))
}

/// Makes pages of the window hold nothing but zeroes of this process's own.
fn set_aside(at: NonNull<u8>, len: usize) -> Result<(), Error> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the callers name pages of a window, which belong to its controller and to which no Rust reference exists.
    let done = unsafe { libc::mmap(at.as_ptr().cast(), len, prot, flags, -1, 0) };
    if done == libc::MAP_FAILED {
        return Err(Error::host("setting a part of the window aside"));
    }
    Ok(())
}

// ---- SIGBUS ----

/// Windows that one process can have at a time.
const SLOTS: usize = 256;
/// Start and end of each; both 0 where there is none, and the start is written last.
static WINDOWS: [[AtomicUsize; 2]; SLOTS] = [const { [const { AtomicUsize::new(0) }; 2] }; SLOTS];
/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// As long as this lives, SIGBUS in the window is handled (invariant 4).
pub(crate) struct Watch(usize);

impl Watch {
    pub(crate) fn new(start: NonNull<u8>, len: usize) -> Result<Self, Error> {
        install()?;
        let start = start.addr().get();
        for (slot, [first, end]) in WINDOWS.iter().enumerate() {
            // The end marks a slot as taken.
            let taken = end.compare_exchange(0, start + len, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                first.store(start, Ordering::Release);
                return Ok(Self(slot));
            }
        }
        Err(Error::Host {
            what: "one more window",
            errno: libc::ENOMEM,
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let [first, end] = &WINDOWS[self.0];
        first.store(0, Ordering::Release);
        end.store(0, Ordering::Release);
    }
}

/// Installs the handler, once.
fn install() -> Result<(), Error> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = *DONE.get_or_init(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks what is installed; a live place for the answer, for which zeroes are a valid value.
        let before = unsafe {
            libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr());
            before.assume_init()
        };
        // Known before the handler can run.
        let _ = BEFORE.set(before);
        // SAFETY: zeroes are a valid `sigaction`; the handler is async-signal-safe, see there.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as Handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) == 0
        }
    });
    if done {
        Ok(())
    } else {
        Err(Error::host("handling SIGBUS"))
    }
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Puts a page of zeroes where a window's file has none. Only atomics and plain system calls: async-signal-safe.
extern "C" fn on_sigbus(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the host passes a valid `siginfo_t`; SIGBUS has an address.
    let at = unsafe { (*info).si_addr() } as usize;
    let inside = WINDOWS.iter().any(|[first, end]| {
        let first = first.load(Ordering::Acquire);
        first != 0 && (first..end.load(Ordering::Acquire)).contains(&at)
    });
    if inside {
        let page = NonNull::new((at & !(PAGE_SIZE as usize - 1)) as *mut u8);
        // SAFETY: the calling thread's own `errno`, put back below.
        let errno = unsafe { *libc::__errno_location() };
        let mended = page.is_some_and(|page| set_aside(page, PAGE_SIZE as usize).is_ok());
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        if mended {
            return;
        }
    }
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        // Back to the default, which the same access then meets again.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: installs the default action.
            unsafe { libc::signal(signo, libc::SIG_DFL) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: somebody installed it as a handler with three arguments, and these are the host's.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signo, info, context);
        }
        handler => {
            // SAFETY: somebody installed it as a handler with one argument.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(i32)>(handler) };
            handler(signo);
        }
    }
}
