#![allow(unsafe_code)] // SSE2 loads, and a hint to the host CPU
//! What the host does best in its own words: comparing the tags of a set, and hints to its caches.

/// A bit for each word that equals `want` in the bits of `mask`.
#[inline]
pub(super) fn matches(words: &[u32; 8], want: u32, mask: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_and_si128, _mm_cmpeq_epi32, _mm_loadu_si128, _mm_movemask_epi8,
            _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32, _mm_setzero_si128,
        };
        // SAFETY: SSE2 is part of the target; both loads are inside the array, and need no alignment.
        unsafe {
            let p = words.as_ptr().cast::<__m128i>();
            let (want, mask) = (_mm_set1_epi32(want as i32), _mm_set1_epi32(mask as i32));
            let low = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(p), mask), want);
            let high = _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(p.add(1)), mask), want);
            let both = _mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
            _mm_movemask_epi8(both) as u32
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let hit = words.iter().enumerate();
        hit.fold(0, |bits, (i, w)| bits | u32::from(w & mask == want) << i)
    }
}

/// The same of two arrays, one behind the other.
#[inline(always)] // a few instructions
pub(super) fn matches_16([low, high]: [&[u32; 8]; 2], want: u32, mask: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_and_si128, _mm_cmpeq_epi32, _mm_loadu_si128, _mm_movemask_epi8,
            _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32,
        };
        // SAFETY: SSE2 is part of the target; all loads are inside their arrays, and need no alignment.
        unsafe {
            let (want, mask) = (_mm_set1_epi32(want as i32), _mm_set1_epi32(mask as i32));
            let eight = |words: &[u32; 8]| {
                let p = words.as_ptr().cast::<__m128i>();
                let four = |p| _mm_cmpeq_epi32(_mm_and_si128(_mm_loadu_si128(p), mask), want);
                _mm_packs_epi32(four(p), four(p.add(1)))
            };
            _mm_movemask_epi8(_mm_packs_epi16(eight(low), eight(high))) as u32
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        matches(low, want, mask) | matches(high, want, mask) << 8
    }
}

/// A bit for each byte that equals `want`.
#[inline(always)] // a few instructions
pub(super) fn equal(ranks: &[u8; 8], want: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_cmpeq_epi8, _mm_loadl_epi64, _mm_movemask_epi8, _mm_set1_epi8,
        };
        // SAFETY: SSE2 is part of the target; the load is of the array, and needs no alignment.
        unsafe {
            let ranks = _mm_loadl_epi64(ranks.as_ptr().cast());
            let hit = _mm_cmpeq_epi8(ranks, _mm_set1_epi8(want as i8));
            _mm_movemask_epi8(hit) as u32 & 0xff
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let hit = ranks.iter().enumerate();
        hit.fold(0, |bits, (i, r)| bits | u32::from(*r == want) << i)
    }
}

/// Adds 1 to each byte that is below `mine`.
#[inline]
pub(super) fn age(ranks: &mut [u8; 8], mine: u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_add_epi8, _mm_loadl_epi64, _mm_min_epu8, _mm_set1_epi8, _mm_storel_epi64,
            _mm_subs_epu8,
        };
        // SAFETY: SSE2 is part of the target; load and store are of the array, and need no alignment.
        unsafe {
            let p = ranks.as_mut_ptr();
            let r = _mm_loadl_epi64(p.cast());
            let below = _mm_subs_epu8(_mm_set1_epi8(mine as i8), r);
            let older = _mm_add_epi8(r, _mm_min_epu8(below, _mm_set1_epi8(1)));
            _mm_storel_epi64(p.cast(), older);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for r in ranks {
        *r += u8::from(*r < mine);
    }
}

/// Asks for the line at `p`; any address will do.
#[inline]
pub(super) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program could see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// [`prefetch`] of a line that will be written.
#[inline]
pub(crate) fn prefetch_write<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
