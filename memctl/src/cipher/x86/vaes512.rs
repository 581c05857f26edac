//! VAES on 512-bit vectors, a line each.

use std::arch::x86_64::*;

use super::kernel::entry_points;
use super::lane::Lane;

entry_points!("aes,pclmulqdq,avx2,vaes,vpclmulqdq,avx512f,avx512vl", __m512i, in flight 8 and 4, in a line 1);

// SAFETY of each body below: the trait's promise is that of the instruction.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lane for __m512i {
    const BLOCKS: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { _mm512_storeu_si512(p.cast(), self) }
    }
    #[inline(always)]
    unsafe fn splat(block: __m128i) -> Self {
        unsafe { _mm512_broadcast_i32x4(block) }
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u128) -> Self {
        unsafe { _mm512_broadcast_i32x4(_mm_load_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm512_xor_si512(self, other) }
    }
    #[inline(always)]
    unsafe fn enc(self, key: Self) -> Self {
        unsafe { _mm512_aesenc_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn enc_last(self, key: Self) -> Self {
        unsafe { _mm512_aesenclast_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec(self, key: Self) -> Self {
        unsafe { _mm512_aesdec_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec_last(self, key: Self) -> Self {
        unsafe { _mm512_aesdeclast_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn xts(self, _part: usize) -> Self {
        unsafe {
            // As for one block, with a count for each. `unpacklo` moves each lower half up and leaves zero below.
            let shifted = _mm512_sllv_epi64(self, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
            let lost = _mm512_srlv_epi64(self, _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64));
            let reduced = _mm512_clmulepi64_epi128::<0x01>(
                lost,
                _mm512_set_epi64(0, 0x87, 0, 0x87, 0, 0x87, 0, 0x87),
            );
            let moved = _mm512_unpacklo_epi64(_mm512_setzero_si512(), lost);
            _mm512_xor_si512(_mm512_xor_si512(shifted, moved), reduced)
        }
    }
}
