#![allow(unsafe_code)] // raw access to the two host mappings
//! The two host mappings: `dram`, what the memory modules hold, and `plain`, the plaintext of resident private pages.
//!
//! Both are anonymous, private to the process and take no host memory until touched. Behind DRAM lies the window
//! ([`crate::window`]), address space that holds nothing until files are mapped there. Guest code, devices and this crate reach
//! them through raw pointers, as any machine's memory is reached: nothing here ever makes a Rust reference to their bytes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sevlab_arch::{PAGE_SHIFT, PAGE_SIZE, Spa};

use crate::error::Error;
use crate::window::Watch;

const HUGE: usize = 2 << 20;

/// One mapping, aligned to 2 MiB.
pub(crate) struct Region {
    base: NonNull<u8>,
    /// Bytes, the window included.
    len: usize,
    /// What the host gave, with room to align.
    whole: (NonNull<u8>, usize),
}

// SAFETY: the mapping is owned, lives as long as the region and has no thread affinity; every access to its bytes is through raw
// pointers, whose data races are those of the simulated machine.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` bytes of memory and `window` bytes of address space behind them.
    fn new(len: usize, window: usize, huge_pages: bool) -> Result<Self, Error> {
        let all = len + window + HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, where the host likes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        let whole = NonNull::new(start.cast::<u8>())
            .filter(|_| start != libc::MAP_FAILED)
            .ok_or_else(|| Error::host("reserving guest memory"))?;
        let skip = whole.as_ptr().align_offset(HUGE);
        // SAFETY: an alignment of 2 MiB skips less than 2 MiB, by which the mapping is longer than what is used of it.
        let base = unsafe { whole.add(skip) };
        let region = Self {
            base,
            len: len + window,
            whole: (whole, all),
        };
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the first `len` bytes of the mapping, page-aligned.
        if unsafe { libc::mprotect(base.as_ptr().cast(), len, rights) } != 0 {
            return Err(Error::host("mapping guest memory"));
        }
        // Nobody has business in the window before something is mapped there, but it is no reason to die. A host that counts
        // every writable page (vm.overcommit_memory 2) may not allow that many: zeroes to read will do.
        // SAFETY: inside the mapping, page-aligned.
        unsafe {
            let behind = base.as_ptr().add(len).cast();
            if libc::mprotect(behind, window, rights) != 0 {
                libc::mprotect(behind, window, libc::PROT_READ);
            }
        }
        if huge_pages && len >= HUGE {
            // Only advice: a host without huge pages runs slower, not wrong.
            // SAFETY: inside the mapping.
            unsafe { libc::madvise(base.as_ptr().cast(), len & !(HUGE - 1), libc::MADV_HUGEPAGE) };
        }
        base.as_ptr().expose_provenance(); // fast-TLB addends come back as integers
        Ok(region)
    }

    /// What lies there comes in the host's small pages.
    pub(crate) fn small_pages(&self, at: u64, len: usize) {
        let start = self.span(at, len).as_ptr().cast();
        // SAFETY: `span` checked the range; only advice.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
    }

    /// The host address of byte `at`.
    #[inline]
    pub(crate) fn ptr(&self, at: u64) -> NonNull<u8> {
        assert!(
            at < self.len as u64,
            "offset {at:#x} in a region of {:#x}",
            self.len
        );
        // SAFETY: inside the mapping, just checked.
        unsafe { self.base.add(at as usize) }
    }

    /// The host address of `len` bytes from `at`.
    #[inline]
    pub(crate) fn span(&self, at: u64, len: usize) -> NonNull<u8> {
        assert!(
            at <= self.len as u64 && len as u64 <= self.len as u64 - at,
            "{len:#x} bytes at {at:#x} in a region of {:#x}",
            self.len
        );
        // SAFETY: inside the mapping or at its end, just checked.
        unsafe { self.base.add(at as usize) }
    }

    pub(crate) fn read(&self, at: u64, out: &mut [u8]) {
        let src = self.span(at, out.len());
        // SAFETY: `span` checked the source; `out` is a Rust slice, which no mapping of ours is.
        unsafe {
            src.as_ptr()
                .copy_to_nonoverlapping(out.as_mut_ptr(), out.len())
        };
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        let dst = self.span(at, data.len());
        // SAFETY: `span` checked the destination; `data` is a Rust slice, which no mapping of ours is.
        unsafe {
            dst.as_ptr()
                .copy_from_nonoverlapping(data.as_ptr(), data.len())
        };
    }

    pub(crate) fn zero(&self, at: u64, len: usize) {
        let dst = self.span(at, len);
        // SAFETY: `span` checked the destination.
        unsafe { dst.as_ptr().write_bytes(0, len) };
    }

    /// An aligned 64-bit load; `at` is a multiple of 8.
    #[inline]
    pub(crate) fn load(&self, at: u64) -> u64 {
        self.cell(at).load(Ordering::Acquire)
    }

    /// An aligned 64-bit store; `at` is a multiple of 8.
    #[inline]
    pub(crate) fn store(&self, at: u64, v: u64) {
        self.cell(at).store(v, Ordering::Release);
    }

    /// Sets bits of an aligned 64-bit word; `at` is a multiple of 8.
    #[inline]
    pub(crate) fn or(&self, at: u64, bits: u64) {
        self.cell(at).fetch_or(bits, Ordering::AcqRel);
    }

    #[inline]
    fn cell(&self, at: u64) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(8),
            "offset {at:#x} is not a multiple of 8"
        );
        let p = self.span(at, 8);
        // SAFETY: 8 bytes inside the mapping, aligned (the base is, by 2 MiB, and `at` was checked), alive as long as `self`.
        unsafe { AtomicU64::from_ptr(p.as_ptr().cast()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (start, len) = self.whole;
        // SAFETY: the region's own mapping, whatever is mapped over its window; nothing points there any more.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

/// DRAM and the plaintext beside it.
pub(crate) struct Dram {
    /// Ends before the mapping does.
    _watch: Option<Watch>,
    /// Bytes of the window behind DRAM.
    pub window: u64,
    /// What a bus probe sees.
    pub raw: Region,
    /// The plaintext of resident private pages, at the same offsets. None where nothing is ever resident.
    plain: Option<Region>,
    /// A bit for each page of `raw` that may differ from zero.
    written: Box<[AtomicU64]>,
}

impl Dram {
    pub(crate) fn new(
        size: u64,
        window: u64,
        with_plain: bool,
        huge_pages: bool,
    ) -> Result<Self, Error> {
        let pages = size >> PAGE_SHIFT;
        let raw = Region::new(size as usize, window as usize, huge_pages)?;
        Ok(Self {
            _watch: match window {
                0 => None,
                _ => Some(Watch::new(
                    raw.span(size, window as usize),
                    window as usize,
                )?),
            },
            window,
            raw,
            plain: if with_plain {
                Some(Region::new(size as usize, 0, huge_pages)?)
            } else {
                None
            },
            written: zeroed_u64(pages.div_ceil(64) as usize),
        })
    }

    /// The plaintext mapping, if there is one.
    pub(crate) fn plain_of(&self) -> Option<&Region> {
        self.plain.as_ref()
    }

    /// The plaintext mapping, for code that only a mode with one reaches.
    #[inline]
    pub(crate) fn plain(&self) -> &Region {
        match &self.plain {
            Some(p) => p,
            None => unreachable!("a private page is resident in a mode without plaintext"),
        }
    }

    /// Notes that the page may differ from zero from now on, if it is one of DRAM.
    #[inline]
    pub(crate) fn mark(&self, pfn: u64) {
        let Some(word) = self.written.get((pfn / 64) as usize) else {
            return;
        };
        let bit = 1 << (pfn % 64);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether the page may differ from zero.
    pub(crate) fn may_be_nonzero(&self, pfn: u64) -> bool {
        self.written[(pfn / 64) as usize].load(Ordering::Relaxed) >> (pfn % 64) & 1 != 0
    }

    /// [`Region::store`] into DRAM, noted.
    pub(crate) fn store_raw(&self, at: u64, v: u64) {
        self.mark(at >> PAGE_SHIFT);
        self.raw.store(at, v);
    }
}

/// The parts of `len` bytes from `a`, none crossing a page: (page number, address, range in the buffer).
pub(crate) fn page_parts(
    a: Spa,
    len: usize,
) -> impl Iterator<Item = (u64, Spa, std::ops::Range<usize>)> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let here = a.plus(at as u64);
        let n = (len - at).min((PAGE_SIZE - here.offset()) as usize);
        let range = at..at + n;
        at += n;
        Some((here.pfn(), here, range))
    })
}

/// `n` zeroes that take no host memory until they are changed.
pub(crate) fn zeroed_u32(n: usize) -> Box<[AtomicU32]> {
    let zeroes: Box<[u32]> = vec![0; n].into();
    // SAFETY: `AtomicU32` has the layout of `u32`, and the box is the only owner.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU32]) }
}

/// As [`zeroed_u32`].
pub(crate) fn zeroed_u64(n: usize) -> Box<[AtomicU64]> {
    let zeroes: Box<[u64]> = vec![0; n].into();
    // SAFETY: `AtomicU64` has the layout of `u64`, and the box is the only owner.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU64]) }
}
