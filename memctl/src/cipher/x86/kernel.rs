//! The modes, written once over a vector type.
//!
//! Everything here is `inline(always)` and generic; it is instantiated inside the entry points of each path, which carry the
//! target features. Closures and iterators would not inherit those, so the loops are plain.
//!
//! - A tweak is XORed into the first and the last round key, not into the data, which saves an instruction in the chain.
//! - XE and XEX tweaks of a line are a constant of the page, XOR an entry of a 64-entry table: a broadcast load and an XOR.
//! - XTS tweaks of lines are encrypted many at a time into a buffer, which then serves as that table.
//! - `N` vectors are in flight at once. AESENC takes 3 to 4 cycles and one or two start in each, so 4 to 8 are enough.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::lane::Lane;
use super::schedule::RoundKeys;
use crate::cipher::tweak::{Tables, TweakTable};
use crate::cipher::{BLOCK, CipherKind, LINE, PAGE};
use crate::key::MemoryKey;

/// [`CipherKind::Aes128Xe`] as a constant parameter.
pub(super) const XE: u8 = 0;
/// [`CipherKind::Aes128Xex`] as a constant parameter.
pub(super) const XEX: u8 = 1;
/// [`CipherKind::Aes256Xts`] as a constant parameter.
pub(super) const XTS: u8 = 2;
/// AES-256 alone, for the tweaks of XTS.
const ECB: u8 = 3;

/// Lines in a page.
pub(super) const LINES: usize = PAGE / LINE;

const fn rounds(kind: u8) -> usize {
    match kind {
        XE | XEX => 10,
        _ => 14,
    }
}

/// Whether the tweak goes in before the cipher.
const fn before(kind: u8, dec: bool) -> bool {
    match kind {
        ECB => false,
        XE => !dec,
        _ => true,
    }
}

/// Whether the tweak goes in after the cipher.
const fn after(kind: u8, dec: bool) -> bool {
    match kind {
        ECB => false,
        XE => dec,
        _ => true,
    }
}

/// Keys and tables of an engine, on the heap: a move leaves no copy of the keys.
pub(super) struct Context(Box<Inner>);

struct Inner {
    encrypt: RoundKeys,
    decrypt: RoundKeys,
    /// The second key of XTS.
    tweak: RoundKeys,
    tables: Arc<Tables>,
}

impl Context {
    /// Expands the key.
    ///
    /// # Safety
    /// The host has AES-NI.
    pub(super) unsafe fn new(key: &MemoryKey, tweaks: &TweakTable) -> Self {
        let mut inner = Box::new(Inner {
            encrypt: RoundKeys::zero(),
            decrypt: RoundKeys::zero(),
            tweak: RoundKeys::zero(),
            tables: Arc::clone(&tweaks.tables),
        });
        let Inner {
            encrypt,
            decrypt,
            tweak,
            ..
        } = &mut *inner;
        let bytes = key.bytes();
        // SAFETY: the host has AES-NI.
        unsafe {
            match key.kind() {
                CipherKind::Aes128Xe | CipherKind::Aes128Xex => {
                    encrypt.expand_128(bytes.first_chunk().expect("16 bytes"));
                    decrypt.invert(encrypt, 10);
                }
                CipherKind::Aes256Xts => {
                    encrypt.expand_256(bytes.first_chunk().expect("64 bytes"));
                    decrypt.invert(encrypt, 14);
                    tweak.expand_256(bytes.last_chunk().expect("64 bytes"));
                }
            }
        }
        Self(inner)
    }

    #[inline(always)]
    fn keys(&self, dec: bool) -> &RoundKeys {
        if dec {
            &self.0.decrypt
        } else {
            &self.0.encrypt
        }
    }
}

/// The round keys, each repeated over a vector. Those past the last round are never used.
#[inline(always)]
unsafe fn load_keys<V: Lane, const KIND: u8>(keys: &RoundKeys) -> [V; 15] {
    // SAFETY: the caller's promise; the keys are 15 blocks.
    unsafe {
        let mut k = [V::splat_at(&keys.0[0]); 15];
        let mut i = 1;
        while i <= rounds(KIND) {
            k[i] = V::splat_at(&keys.0[i]);
            i += 1;
        }
        k
    }
}

/// `N` vectors through the cipher, with their tweaks.
#[inline(always)]
unsafe fn apply<V: Lane, const N: usize, const KIND: u8, const DEC: bool>(
    k: &[V; 15],
    tweaks: &[V; N],
    src: *const u8,
    dst: *mut u8,
) {
    let bytes = V::BLOCKS * BLOCK;
    let last = rounds(KIND);
    // SAFETY: the caller's promise: `N` vectors at `src` and `dst`. All are loaded before any is stored.
    unsafe {
        let mut s = [k[0]; N];
        let mut i = 0;
        while i < N {
            let first = if before(KIND, DEC) {
                tweaks[i].xor(k[0])
            } else {
                k[0]
            };
            s[i] = V::load(src.add(i * bytes)).xor(first);
            i += 1;
        }
        let mut r = 1;
        while r < last {
            i = 0;
            while i < N {
                s[i] = if DEC { s[i].dec(k[r]) } else { s[i].enc(k[r]) };
                i += 1;
            }
            r += 1;
        }
        i = 0;
        while i < N {
            let key = if after(KIND, DEC) {
                tweaks[i].xor(k[last])
            } else {
                k[last]
            };
            let out = if DEC {
                s[i].dec_last(key)
            } else {
                s[i].enc_last(key)
            };
            out.store(dst.add(i * bytes));
            i += 1;
        }
    }
}

/// What the tweaks of a run of lines share.
#[derive(Clone, Copy)]
struct Base<V> {
    /// XE and XEX: the page's part of the tweak and that of each block in a line, for each vector of a line.
    parts: [V; 4],
}

impl<V: Lane> Base<V> {
    #[inline(always)]
    unsafe fn new<const KIND: u8>(c: &Context, spa: u64) -> Self {
        // SAFETY: the caller's promise; `part` stays below the line's four blocks.
        unsafe {
            if KIND == XTS {
                return Self {
                    parts: [V::splat(_mm_setzero_si128()); 4],
                };
            }
            let t = &*c.0.tables;
            let high = V::splat(page_tweak(t, spa));
            let mut parts = [high; 4];
            let mut part = 0;
            while part * V::BLOCKS < 4 {
                parts[part] = high.xor(V::load(t.block.as_ptr().add(part * V::BLOCKS).cast()));
                part += 1;
            }
            Self { parts }
        }
    }

    /// Tweaks of a line's vector `part`, given the line's entry.
    #[inline(always)]
    unsafe fn tweak<const KIND: u8>(&self, line: V, part: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            if KIND == XTS {
                line.xts(part)
            } else {
                line.xor(self.parts[part])
            }
        }
    }
}

/// Bits 12 and up of an XE or XEX tweak.
#[inline(always)]
unsafe fn page_tweak(t: &Tables, spa: u64) -> __m128i {
    // SAFETY: the caller's promise; a byte indexes 256 entries.
    unsafe {
        let at = |i: usize| {
            let entry: *const u128 = &t.high[i][(spa >> (12 + 8 * i)) as usize & 0xff];
            _mm_load_si128(entry.cast())
        };
        let mut high = _mm_xor_si128(_mm_xor_si128(at(0), at(1)), at(2));
        if spa >> 36 != 0 {
            high = _mm_xor_si128(high, _mm_xor_si128(at(3), at(4)));
        }
        high
    }
}

/// One line; `N` vectors are a line.
#[inline(always)]
pub(super) unsafe fn line<V: Lane, const N: usize, const KIND: u8, const DEC: bool>(
    c: &Context,
    spa: u64,
    src: *const u8,
    dst: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // One block's worth of work is done in a small register, and repeated over the vector once.
        let first = if KIND == XTS {
            let k = load_keys::<__m128i, ECB>(&c.0.tweak);
            encrypt_one(&k, _mm_cvtsi64_si128((spa / LINE as u64) as i64))
        } else {
            let t = &*c.0.tables;
            page_tweak(t, spa).xor(__m128i::splat_at(&t.line[spa as usize / LINE % LINES]))
        };
        let first = V::splat(first);
        let mut tweaks = [first; N];
        let mut part = 0;
        while part < N {
            tweaks[part] = if KIND == XTS {
                first.xts(part)
            } else {
                first.xor(V::load(
                    c.0.tables.block.as_ptr().add(part * V::BLOCKS).cast(),
                ))
            };
            part += 1;
        }
        let k = load_keys::<V, KIND>(c.keys(DEC));
        apply::<V, N, KIND, DEC>(&k, &tweaks, src, dst);
    }
}

/// AES-256 of a block in a register.
#[inline(always)]
unsafe fn encrypt_one(k: &[__m128i; 15], block: __m128i) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe {
        let mut s = block.xor(k[0]);
        let mut r = 1;
        while r < 14 {
            s = s.enc(k[r]);
            r += 1;
        }
        s.enc_last(k[14])
    }
}

/// `n` lines of a page, `N` vectors at a time (a number of whole lines), `M` for XTS; `PER` vectors are a line.
#[inline(always)]
pub(super) unsafe fn lines<
    V: Lane,
    const N: usize,
    const M: usize,
    const PER: usize,
    const KIND: u8,
    const DEC: bool,
>(
    c: &Context,
    spa: u64,
    src: *const u8,
    dst: *mut u8,
    n: usize,
) {
    debug_assert!(n <= LINES - spa as usize / LINE % LINES);
    // SAFETY: the caller's promise; the lines lie in one page, so there are at most as many as the tables have.
    unsafe {
        if KIND == XTS {
            let mut buffer = [MaybeUninit::<u128>::uninit(); LINES];
            let tweaks = buffer.as_mut_ptr().cast::<u128>();
            numbers::<V, N>(c, spa / LINE as u64, tweaks, n);
            run::<V, M, PER, KIND, DEC>(c, spa, tweaks, src, dst, n);
        } else {
            let tweaks = c.0.tables.line.as_ptr().add(spa as usize / LINE % LINES);
            run::<V, N, PER, KIND, DEC>(c, spa, tweaks, src, dst, n);
        }
    }
}

/// The XTS tweaks of `n` lines from number `first` on, into a buffer of [`LINES`].
#[inline(always)]
unsafe fn numbers<V: Lane, const N: usize>(c: &Context, first: u64, out: *mut u128, n: usize) {
    // SAFETY: the caller's promise. The buffer is a whole number of groups, so the last one fits, too.
    unsafe {
        let group = N * V::BLOCKS;
        let total = n.div_ceil(group) * group;
        let mut i = 0;
        while i < total {
            out.add(i).write(u128::from(first + i as u64));
            i += 1;
        }
        let k = load_keys::<V, ECB>(&c.0.tweak);
        i = 0;
        while i < total {
            let p = out.add(i).cast::<u8>();
            apply::<V, N, ECB, false>(&k, &[k[0]; N], p, p);
            i += group;
        }
    }
}

/// `n` lines with an entry each at `entries`, `N` vectors at a time.
#[inline(always)]
pub(super) unsafe fn run<
    V: Lane,
    const N: usize,
    const PER: usize,
    const KIND: u8,
    const DEC: bool,
>(
    c: &Context,
    spa: u64,
    entries: *const u128,
    src: *const u8,
    dst: *mut u8,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let base = Base::<V>::new::<KIND>(c, spa);
        let k = load_keys::<V, KIND>(c.keys(DEC));
        let group = N / PER;
        let mut at = 0;
        while at + group <= n {
            let mut tweaks = [k[0]; N];
            let mut i = 0;
            while i < N {
                tweaks[i] = base.tweak::<KIND>(V::splat_at(entries.add(at + i / PER)), i % PER);
                i += 1;
            }
            apply::<V, N, KIND, DEC>(&k, &tweaks, src.add(at * LINE), dst.add(at * LINE));
            at += group;
        }
        while at < n {
            let mut tweaks = [k[0]; PER];
            let mut i = 0;
            while i < PER {
                tweaks[i] = base.tweak::<KIND>(V::splat_at(entries.add(at)), i);
                i += 1;
            }
            apply::<V, PER, KIND, DEC>(&k, &tweaks, src.add(at * LINE), dst.add(at * LINE));
            at += 1;
        }
    }
}

/// `n` blocks of one line, starting anywhere in it.
#[inline(always)]
pub(super) unsafe fn blocks<const KIND: u8, const DEC: bool>(
    c: &Context,
    spa: u64,
    src: *const u8,
    dst: *mut u8,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let entry = if KIND == XTS {
            let k = load_keys::<__m128i, ECB>(&c.0.tweak);
            encrypt_one(&k, _mm_cvtsi64_si128((spa / LINE as u64) as i64))
        } else {
            let t = &*c.0.tables;
            page_tweak(t, spa).xor(__m128i::splat_at(&t.line[spa as usize / LINE % LINES]))
        };
        let k = load_keys::<__m128i, KIND>(c.keys(DEC));
        let first = spa as usize / BLOCK % 4;
        let mut i = 0;
        while i < n {
            let part = (first + i) % 4;
            let tweak = if KIND == XTS {
                entry.xts(part)
            } else {
                entry.xor(__m128i::splat_at(&c.0.tables.block[part]))
            };
            apply::<__m128i, 1, KIND, DEC>(&k, &[tweak], src.add(i * BLOCK), dst.add(i * BLOCK));
            i += 1;
        }
    }
}

/// `E2(number)`.
#[inline(always)]
pub(super) unsafe fn unit_tweak(c: &Context, number: u128) -> u128 {
    let mut t = number;
    // SAFETY: the caller's promise; `t` is one block.
    unsafe {
        let p = (&raw mut t).cast::<u8>();
        encrypt_one(&load_keys::<__m128i, ECB>(&c.0.tweak), __m128i::load(p)).store(p);
    }
    t
}

/// The entry points of a path: a type that implements `Kernel`, with every method compiled for the path's features.
macro_rules! entry_points {
    ($features:literal, $lane:ty, in flight $n:literal and $xts:literal, in a line $per:literal) => {
        /// The kernel of this path for one cipher.
        pub(super) struct Entry<const KIND: u8>(pub(super) $crate::cipher::x86::kernel::Context);

        // SAFETY of each body below: the promise is passed on, and the features it needs are this function's.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl<const KIND: u8> $crate::cipher::engine::Kernel for Entry<KIND> {
            #[target_feature(enable = $features)]
            unsafe fn encrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
                unsafe {
                    $crate::cipher::x86::kernel::line::<$lane, $per, KIND, false>(
                        &self.0, spa, src, dst,
                    )
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn decrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
                unsafe {
                    $crate::cipher::x86::kernel::line::<$lane, $per, KIND, true>(
                        &self.0, spa, src, dst,
                    )
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn encrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
                unsafe {
                    $crate::cipher::x86::kernel::lines::<$lane, $n, $xts, $per, KIND, false>(
                        &self.0, spa, src, dst, n,
                    )
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn decrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
                unsafe {
                    $crate::cipher::x86::kernel::lines::<$lane, $n, $xts, $per, KIND, true>(
                        &self.0, spa, src, dst, n,
                    )
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn encrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
                unsafe {
                    $crate::cipher::x86::kernel::blocks::<KIND, false>(&self.0, spa, src, dst, n)
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn decrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
                unsafe {
                    $crate::cipher::x86::kernel::blocks::<KIND, true>(&self.0, spa, src, dst, n)
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn unit_tweak(&self, number: u128) -> u128 {
                unsafe { $crate::cipher::x86::kernel::unit_tweak(&self.0, number) }
            }
            #[target_feature(enable = $features)]
            unsafe fn encrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8) {
                let (t, n) = (tweaks.as_ptr(), tweaks.len());
                unsafe {
                    $crate::cipher::x86::kernel::run::<$lane, $xts, $per, KIND, false>(
                        &self.0, 0, t, src, dst, n,
                    )
                }
            }
            #[target_feature(enable = $features)]
            unsafe fn decrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8) {
                let (t, n) = (tweaks.as_ptr(), tweaks.len());
                unsafe {
                    $crate::cipher::x86::kernel::run::<$lane, $xts, $per, KIND, true>(
                        &self.0, 0, t, src, dst, n,
                    )
                }
            }
        }
    };
}
pub(super) use entry_points;
