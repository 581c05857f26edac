#![allow(unsafe_code)] // memory of its own alignment
//! A fixed array for the filters: on the host's large pages where it fills most of one, so that probes scattered over it do not miss
//! the host's TLB; and in the lowest 2 GiB where there is room, so that an operand of the host's can name an element without a register.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;

/// The host's large page.
const HUGE: usize = 2 << 20;

/// `N` elements in memory of their own.
pub(super) struct Table<T, const N: usize> {
    elements: NonNull<[T; N]>,
    mapping: NonNull<u8>,
}

// SAFETY: it owns its elements, as a `Box<[T]>` does.
unsafe impl<T: Send, const N: usize> Send for Table<T, N> {}
// SAFETY: likewise.
unsafe impl<T: Sync, const N: usize> Sync for Table<T, N> {}

impl<T, const N: usize> Table<T, N> {
    const NO_DROP: () = assert!(
        !std::mem::needs_drop::<T>() && size_of::<[T; N]>() != 0 && align_of::<T>() <= 4096
    );

    /// Bytes that are mapped for it: with a large page's more, to begin at one's start.
    const fn bytes() -> usize {
        let bytes = size_of::<[T; N]>();
        if bytes < HUGE / 2 {
            bytes
        } else {
            bytes.next_multiple_of(HUGE) + HUGE
        }
    }

    pub(super) fn new(mut make: impl FnMut(usize) -> T) -> Self {
        let () = Self::NO_DROP;
        let map = |flags| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | flags;
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping where nothing is.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), Self::bytes(), rights, flags, -1, 0) };
            NonNull::new(at).filter(|_| at != libc::MAP_FAILED)
        };
        let Some(mapping) = map(libc::MAP_32BIT).or_else(|| map(0)) else {
            handle_alloc_error(Layout::new::<[T; N]>())
        };
        let mut first = mapping.cast::<T>();
        if Self::bytes() > HUGE {
            first = first.map_addr(|at| {
                let skip = at.get().next_multiple_of(HUGE) - at.get();
                at.saturating_add(skip)
            });
            // SAFETY: advice on memory that is this table's. Where the host has no large pages it stays without effect.
            unsafe {
                libc::madvise(
                    first.as_ptr().cast(),
                    Self::bytes() - HUGE,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
        for i in 0..N {
            // SAFETY: element `i` is inside the mapping, which is aligned as a page is.
            unsafe { first.add(i).write(make(i)) };
        }
        Self {
            elements: first.cast(),
            mapping: mapping.cast(),
        }
    }
}

impl<T, const N: usize> Deref for Table<T, N> {
    type Target = [T; N];
    #[inline]
    fn deref(&self) -> &[T; N] {
        // SAFETY: all elements were written, and nobody has them mutably.
        unsafe { self.elements.as_ref() }
    }
}

impl<T, const N: usize> Drop for Table<T, N> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with so many bytes; elements need no drop.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), Self::bytes()) };
    }
}
