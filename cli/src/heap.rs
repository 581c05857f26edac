#![allow(unsafe_code)] // the C library's option, and when it is set; an allocator in front of it
//! The heap of the simulator itself, in huge pages: decoded blocks and translations are gone over at random, and each of the host's
//! small pages costs a walk.
//!
//! Large tables of zeros are the exception: mimalloc would write all of their zeros, and most of them are only ever read or
//! written here and there (a word for each page of guest memory, a slot for each way out of a region). They are mapped one by
//! one, and the host gives zeros as they are touched, in small pages: to clear a huge one takes as long as 300 of these.
//!
//! Invariant: who an allocation belongs to follows from its size alone, so whoever frees it knows: [`TABLE`] bytes and more are
//! mappings of their own.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;

use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set};
use mimalloc::MiMalloc;

#[global_allocator]
static HEAP: Heap = Heap;

/// An allocation of so many bytes is a mapping of its own.
const TABLE: usize = 256 << 10;
/// The host's large page: the alignment of mappings in large pages.
const LARGE: usize = 2 << 20;
const PAGE: usize = 4096;

struct Heap;

/// Maps `layout.size()` bytes of zeros; null if the host has no room. `dense`: all of it is about to be written.
fn map(layout: Layout, dense: bool) -> *mut u8 {
    let bytes = layout.size().next_multiple_of(PAGE);
    let (least, advice) = match dense {
        true if bytes >= LARGE => (LARGE, Some(libc::MADV_HUGEPAGE)),
        true => (PAGE, None),
        false => (PAGE, Some(libc::MADV_NOHUGEPAGE)),
    };
    // A fault for each page costs several times what its memory does.
    let at_once = if advice.is_none() {
        libc::MAP_POPULATE
    } else {
        0
    };
    // Room to begin at a large page, without which none of the mapping could be one.
    let align = layout.align().max(least);
    let room = align - PAGE;
    // SAFETY: a new mapping, of which what is not handed out is given back.
    unsafe {
        let at = libc::mmap(
            ptr::null_mut(),
            bytes + room,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | at_once,
            -1,
            0,
        );
        if at == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        let skip = at.addr().next_multiple_of(align) - at.addr();
        let begin = at.byte_add(skip);
        if skip != 0 {
            libc::munmap(at, skip);
        }
        if skip != room {
            libc::munmap(begin.byte_add(bytes), room - skip);
        }
        if let Some(advice) = advice {
            libc::madvise(begin, bytes, advice);
        }
        begin.cast()
    }
}

// SAFETY: each call goes either to mimalloc or to the mappings, by the size in the layout (the module's invariant); what they give
// is as large and as aligned as asked for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= TABLE {
            return map(layout, true);
        }
        // SAFETY: the caller's promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= TABLE {
            return map(layout, false);
        }
        // SAFETY: the caller's promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if layout.size() >= TABLE {
            // SAFETY: the caller's `at` came from `map` with this layout.
            unsafe { libc::munmap(at.cast(), layout.size().next_multiple_of(PAGE)) };
            return;
        }
        // SAFETY: the caller's promises; it is mimalloc's.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < TABLE && size < TABLE {
            // SAFETY: the caller's promises; it is mimalloc's and stays so.
            return unsafe { MiMalloc.realloc(at, layout, size) };
        }
        // SAFETY: the caller has checked that the new size is one; both ranges are live and apart.
        unsafe {
            let to = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !to.is_null() {
                ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

/// Before the first allocation, or what comes first would be without.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn huge_pages() {
        // SAFETY: sets an option; its number is the library's own.
        unsafe { mi_option_set(mi_option_large_os_pages, 1) };
    }
    huge_pages
};
