//! VAES on 256-bit vectors, two blocks each.

use std::arch::x86_64::*;

use super::kernel::entry_points;
use super::lane::Lane;

entry_points!("aes,pclmulqdq,avx2,vaes,vpclmulqdq", __m256i, in flight 8 and 4, in a line 2);

// SAFETY of each body below: the trait's promise is that of the instruction.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lane for __m256i {
    const BLOCKS: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { _mm256_storeu_si256(p.cast(), self) }
    }
    #[inline(always)]
    unsafe fn splat(block: __m128i) -> Self {
        unsafe { _mm256_broadcastsi128_si256(block) }
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u128) -> Self {
        unsafe { _mm256_broadcastsi128_si256(_mm_load_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm256_xor_si256(self, other) }
    }
    #[inline(always)]
    unsafe fn enc(self, key: Self) -> Self {
        unsafe { _mm256_aesenc_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn enc_last(self, key: Self) -> Self {
        unsafe { _mm256_aesenclast_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec(self, key: Self) -> Self {
        unsafe { _mm256_aesdec_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec_last(self, key: Self) -> Self {
        unsafe { _mm256_aesdeclast_epi128(self, key) }
    }
    #[inline(always)]
    unsafe fn xts(self, part: usize) -> Self {
        unsafe {
            // As for one block, with a count for each.
            let (a, b) = (2 * part as i64, 2 * part as i64 + 1);
            let shifted = _mm256_sllv_epi64(self, _mm256_set_epi64x(b, b, a, a));
            let lost = _mm256_srlv_epi64(self, _mm256_set_epi64x(64 - b, 64 - b, 64 - a, 64 - a));
            let reduced =
                _mm256_clmulepi64_epi128::<0x01>(lost, _mm256_set_epi64x(0, 0x87, 0, 0x87));
            _mm256_xor_si256(
                _mm256_xor_si256(shifted, _mm256_slli_si256::<8>(lost)),
                reduced,
            )
        }
    }
}
