//! AES-NI: 128-bit vectors, a block each.

use std::arch::x86_64::*;

use super::kernel::entry_points;
use super::lane::Lane;

entry_points!("aes,pclmulqdq,sse2", __m128i, in flight 8 and 4, in a line 4);

// SAFETY of each body below: the trait's promise is that of the instruction.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lane for __m128i {
    const BLOCKS: usize = 1;
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self {
        unsafe { _mm_loadu_si128(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { _mm_storeu_si128(p.cast(), self) }
    }
    #[inline(always)]
    unsafe fn splat(block: __m128i) -> Self {
        block
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u128) -> Self {
        unsafe { _mm_load_si128(p.cast()) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm_xor_si128(self, other) }
    }
    #[inline(always)]
    unsafe fn enc(self, key: Self) -> Self {
        unsafe { _mm_aesenc_si128(self, key) }
    }
    #[inline(always)]
    unsafe fn enc_last(self, key: Self) -> Self {
        unsafe { _mm_aesenclast_si128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec(self, key: Self) -> Self {
        unsafe { _mm_aesdec_si128(self, key) }
    }
    #[inline(always)]
    unsafe fn dec_last(self, key: Self) -> Self {
        unsafe { _mm_aesdeclast_si128(self, key) }
    }
    #[inline(always)]
    unsafe fn xts(self, part: usize) -> Self {
        unsafe {
            // Both halves shifted left by `part`; what the lower loses goes to the upper, what that loses comes back times 0x87.
            let shifted = _mm_sll_epi64(self, _mm_cvtsi64_si128(part as i64));
            let lost = _mm_srl_epi64(self, _mm_cvtsi64_si128(64 - part as i64));
            let reduced = _mm_clmulepi64_si128::<0x01>(lost, _mm_cvtsi64_si128(0x87));
            _mm_xor_si128(_mm_xor_si128(shifted, _mm_slli_si128::<8>(lost)), reduced)
        }
    }
}
