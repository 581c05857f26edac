//! AES key schedules (FIPS 197, 5.2) through AESKEYGENASSIST, and their equivalent inverses (5.3.5) through AESIMC.

use std::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Round keys in the order they are used: 11 for AES-128, 15 for AES-256, the rest zero. Wiped on drop.
#[repr(C, align(64))]
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct RoundKeys(pub [u128; 15]);

impl RoundKeys {
    /// No keys.
    pub(super) const fn zero() -> Self {
        Self([0; 15])
    }

    fn set(&mut self, i: usize, k: __m128i) {
        // SAFETY: `i` is checked; a u128 is 16 bytes.
        unsafe { _mm_storeu_si128((&raw mut self.0[i]).cast(), k) }
    }

    fn get(&self, i: usize) -> __m128i {
        // SAFETY: `i` is checked; a u128 is 16 bytes.
        unsafe { _mm_loadu_si128((&raw const self.0[i]).cast()) }
    }

    /// Expands a key of 16 bytes.
    #[target_feature(enable = "aes")]
    pub(super) fn expand_128(&mut self, key: &[u8; 16]) {
        // SAFETY: 16 readable bytes.
        let mut k = unsafe { _mm_loadu_si128(key.as_ptr().cast()) };
        self.set(0, k);
        macro_rules! rounds {
            ($($round:literal: $rcon:literal),*) => {$(
                k = mix(k, _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$rcon>(k)));
                self.set($round, k);
            )*};
        }
        rounds!(1: 0x01, 2: 0x02, 3: 0x04, 4: 0x08, 5: 0x10, 6: 0x20, 7: 0x40, 8: 0x80, 9: 0x1b, 10: 0x36);
    }

    /// Expands a key of 32 bytes.
    #[target_feature(enable = "aes")]
    pub(super) fn expand_256(&mut self, key: &[u8; 32]) {
        // SAFETY: 32 readable bytes.
        let (mut a, mut b) = unsafe {
            (
                _mm_loadu_si128(key.as_ptr().cast()),
                _mm_loadu_si128(key.as_ptr().add(16).cast()),
            )
        };
        self.set(0, a);
        self.set(1, b);
        macro_rules! rounds {
            ($($round:literal: $rcon:literal),*) => {$(
                a = mix(a, _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$rcon>(b)));
                self.set($round, a);
                if $round < 14 {
                    b = mix(b, _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(a)));
                    self.set($round + 1, b);
                }
            )*};
        }
        rounds!(2: 0x01, 4: 0x02, 6: 0x04, 8: 0x08, 10: 0x10, 12: 0x20, 14: 0x40);
    }

    /// The schedule of the equivalent inverse cipher for `forward`, which has `rounds` rounds.
    #[target_feature(enable = "aes")]
    pub(super) fn invert(&mut self, forward: &Self, rounds: usize) {
        self.set(0, forward.get(rounds));
        for i in 1..rounds {
            self.set(i, _mm_aesimc_si128(forward.get(rounds - i)));
        }
        self.set(rounds, forward.get(0));
    }
}

/// Each word of `k` XORed with those before it, and with `word`.
#[inline]
#[target_feature(enable = "sse2")]
fn mix(k: __m128i, word: __m128i) -> __m128i {
    let k = _mm_xor_si128(k, _mm_slli_si128::<4>(k));
    let k = _mm_xor_si128(k, _mm_slli_si128::<8>(k));
    _mm_xor_si128(k, word)
}
