#![allow(unsafe_code)] // memory of its own alignment
//! Fixed arrays of the simulation, which is here and there in them at random: on the host's large pages where they fill most of one, so that this
//! does not miss the host's TLB; and, for filters, in the lowest 2 GiB where there is room, so that an operand of the host's can name an element
//! without a register.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// The host's large page.
const HUGE: usize = 2 << 20;

/// Elements in memory of their own.
pub(super) struct Array<T> {
    elements: NonNull<T>,
    len: usize,
    mapping: NonNull<u8>,
}

// SAFETY: it owns its elements, as a `Box<[T]>` does.
unsafe impl<T: Send> Send for Array<T> {}
// SAFETY: likewise.
unsafe impl<T: Sync> Sync for Array<T> {}

/// What memory as the host maps it, all zeroes, is a value of.
pub(super) trait Zeroes {}
impl Zeroes for [u64; 2] {}

impl<T> Array<T> {
    const NO_DROP: () =
        assert!(!std::mem::needs_drop::<T>() && size_of::<T>() != 0 && align_of::<T>() <= 4096);

    /// Bytes that are mapped for `len` elements: with a large page's more, to begin at one's start.
    const fn bytes(len: usize) -> usize {
        let bytes = len * size_of::<T>();
        if bytes < HUGE / 2 {
            bytes
        } else {
            bytes.next_multiple_of(HUGE) + HUGE
        }
    }

    /// Memory for `len` elements, of zeroes. `low`: in the lowest 2 GiB, if there is room.
    fn map(len: usize, low: bool) -> Self {
        let () = Self::NO_DROP;
        let bytes = Self::bytes(len);
        let map = |flags| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | flags;
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping where nothing is.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0) };
            NonNull::new(at).filter(|_| at != libc::MAP_FAILED)
        };
        let lowest = if low { map(libc::MAP_32BIT) } else { None };
        let Some(mapping) = lowest.or_else(|| map(0)) else {
            handle_alloc_error(Layout::new::<T>())
        };
        let mut elements = mapping.cast::<T>();
        if bytes > HUGE {
            elements = elements.map_addr(|at| {
                let skip = at.get().next_multiple_of(HUGE) - at.get();
                at.saturating_add(skip)
            });
            // SAFETY: advice on memory that is this array's. Where the host has no large pages it stays without effect.
            unsafe {
                let huge = libc::MADV_HUGEPAGE;
                libc::madvise(elements.as_ptr().cast(), bytes - HUGE, huge)
            };
        }
        Self {
            elements,
            len,
            mapping: mapping.cast(),
        }
    }

    /// `len` elements, made one after another. `low`: in the lowest 2 GiB, if there is room.
    pub(super) fn new(len: usize, low: bool, mut make: impl FnMut(usize) -> T) -> Self {
        let array = Self::map(len, low);
        for i in 0..len {
            // SAFETY: element `i` is inside the mapping, which is aligned as a page is.
            unsafe { array.elements.add(i).write(make(i)) };
        }
        array
    }

    /// `len` elements of zeroes, whose memory is the host's to give as it is used.
    pub(super) fn zeroes(len: usize) -> Self
    where
        T: Zeroes,
    {
        Self::map(len, false)
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: all elements have values, and nobody has them mutably.
        unsafe { slice::from_raw_parts(self.elements.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Array<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: all elements have values, and nobody else has them.
        unsafe { slice::from_raw_parts_mut(self.elements.as_ptr(), self.len) }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with so many bytes; elements need no drop.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), Self::bytes(self.len)) };
    }
}

/// An array of `N` elements, in the lowest 2 GiB where there is room.
pub(super) struct Table<T, const N: usize>(Array<T>);

impl<T, const N: usize> Table<T, N> {
    pub(super) fn new(make: impl FnMut(usize) -> T) -> Self {
        Self(Array::new(N, true, make))
    }
}

impl<T, const N: usize> Deref for Table<T, N> {
    type Target = [T; N];
    #[inline]
    fn deref(&self) -> &[T; N] {
        // SAFETY: the array was made with so many elements, and nobody has them mutably.
        unsafe { self.0.elements.cast().as_ref() }
    }
}
