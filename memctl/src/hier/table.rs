#![allow(unsafe_code)] // memory of its own alignment
//! A fixed array for the filters: on one of the host's large pages where it fills most of one, so that probes scattered over it do not miss
//! the host's TLB.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;

/// The host's large page.
const HUGE: usize = 2 << 20;

/// `N` elements in memory of their own.
pub(super) struct Table<T, const N: usize>(NonNull<[T; N]>);

// SAFETY: it owns its elements, as a `Box<[T]>` does.
unsafe impl<T: Send, const N: usize> Send for Table<T, N> {}
// SAFETY: likewise.
unsafe impl<T: Sync, const N: usize> Sync for Table<T, N> {}

impl<T, const N: usize> Table<T, N> {
    const NO_DROP: () = assert!(!std::mem::needs_drop::<T>() && size_of::<[T; N]>() != 0);

    fn layout() -> Layout {
        let array = Layout::new::<[T; N]>();
        if array.size() < HUGE / 2 {
            return array;
        }
        array.align_to(HUGE).expect("a power of two").pad_to_align()
    }

    pub(super) fn new(mut make: impl FnMut() -> T) -> Self {
        let () = Self::NO_DROP;
        let layout = Self::layout();
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(layout) };
        let Some(first) = NonNull::new(memory.cast::<T>()) else {
            handle_alloc_error(layout)
        };
        if layout.size() >= HUGE {
            // SAFETY: advice on memory that is this table's. Where the host has no large pages it stays without effect.
            unsafe { libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        for i in 0..N {
            // SAFETY: element `i` is inside the allocation.
            unsafe { first.add(i).write(make()) };
        }
        Self(first.cast())
    }
}

impl<T, const N: usize> Deref for Table<T, N> {
    type Target = [T; N];
    #[inline]
    fn deref(&self) -> &[T; N] {
        // SAFETY: all elements were written, and nobody has them mutably.
        unsafe { self.0.as_ref() }
    }
}

impl<T, const N: usize> Drop for Table<T, N> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; elements need no drop.
        unsafe { dealloc(self.0.as_ptr().cast(), Self::layout()) };
    }
}
