//! The memory ciphers: one 64-byte line and one 4 KiB page, each path, cipher and direction, beside a plain copy of the same
//! bytes and beside the `aes` crate called on them directly.
//!
//! The working set (256 KiB in, 256 KiB out) fits a second-level cache and not a first-level one; lines and pages are visited in
//! an order that a prefetcher can't guess. A time is that of one line, or one page, called for one at a time.
#![allow(unsafe_code)] // the engine's entry points take raw pointers, as guest memory does
#![allow(missing_docs)] // criterion's macros make public items

use std::hint::black_box;

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sevlab_memctl::cipher::{Engine, LINE, PAGE, Path, TweakTable};
use sevlab_memctl::{CipherKind, MemoryKey};

const SET: usize = 256 * 1024;
/// Where the simulated memory starts: some high bits set, as in a real machine.
const SPA: u64 = 0x1_2340_0000;

fn key_bytes(kind: CipherKind) -> Vec<u8> {
    (0..kind.key_len() as u8)
        .map(|i| i.wrapping_mul(37).wrapping_add(5))
        .collect()
}

fn engine(kind: CipherKind, path: Path) -> Engine {
    let key = MemoryKey::new(kind, &key_bytes(kind)).expect("a key of the right length");
    Engine::new(&key, &TweakTable::for_cipher(kind, 1), path)
}

/// Buffers in, out, and the visiting order: a full-period congruential walk over the granules.
struct Walk {
    src: Vec<aes::Block>,
    dst: Vec<aes::Block>,
    at: usize,
    granule: usize,
    /// Granules in the set less one; a mask, as a division would cost as much as a line.
    mask: usize,
}

impl Walk {
    fn new(granule: usize) -> Self {
        let src = (0..SET / 16).map(|i| {
            (i as u128)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060)
                .to_le_bytes()
                .into()
        });
        Self {
            src: src.collect(),
            dst: vec![aes::Block::default(); SET / 16],
            at: 0,
            granule,
            mask: SET / granule - 1,
        }
    }

    /// The next granule: its address, and pointers good for its bytes.
    #[inline(always)]
    fn next(&mut self) -> (u64, *const u8, *mut u8) {
        self.at = (self.at * 5 + 1) & self.mask;
        let offset = self.at * self.granule;
        // SAFETY: the granule lies in both buffers, which are SET bytes long.
        unsafe {
            let (src, dst) = (
                self.src.as_ptr().cast::<u8>(),
                self.dst.as_mut_ptr().cast::<u8>(),
            );
            (SPA + offset as u64, src.add(offset), dst.add(offset))
        }
    }
}

/// The `aes` crate on the same bytes: what a program without kernels of its own would do. Tweaks of the page's blocks are a
/// table; XTS encrypts its line numbers in one call.
enum Crate {
    One(Box<aes::Aes128>),
    Two(Box<aes::Aes256>, Box<aes::Aes256>),
}

struct Plain {
    cipher: Crate,
    kind: CipherKind,
    tweaks: TweakTable,
    low: Vec<u128>,
    scratch: Vec<u128>,
    numbers: Vec<aes::Block>,
}

impl Plain {
    fn new(kind: CipherKind) -> Self {
        let k = key_bytes(kind);
        let tweaks = TweakTable::for_cipher(kind, 1);
        let cipher = match kind {
            CipherKind::Aes128Xe | CipherKind::Aes128Xex => {
                Crate::One(Box::new(aes::Aes128::new_from_slice(&k).expect("16 bytes")))
            }
            CipherKind::Aes256Xts => Crate::Two(
                Box::new(aes::Aes256::new_from_slice(&k[..32]).expect("32 bytes")),
                Box::new(aes::Aes256::new_from_slice(&k[32..]).expect("32 bytes")),
            ),
        };
        let low = (0..256)
            .map(|i| u128::from_le_bytes(tweaks.tweak(i * 16)))
            .collect();
        Self {
            cipher,
            kind,
            tweaks,
            low,
            scratch: vec![0; 256],
            numbers: vec![aes::Block::default(); 64],
        }
    }

    /// # Safety
    /// `bytes` bytes, a line or a page, at `src` and `dst`, apart.
    unsafe fn run(&mut self, encrypt: bool, spa: u64, src: *const u8, dst: *mut u8, bytes: usize) {
        let n = bytes / 16;
        // SAFETY: the caller's; an `aes::Block` is 16 bytes of any alignment.
        let (input, out) = unsafe {
            (
                std::slice::from_raw_parts(src.cast::<[u8; 16]>(), n),
                std::slice::from_raw_parts_mut(dst.cast(), n),
            )
        };
        let t = &mut self.scratch[..n];
        match &self.cipher {
            Crate::One(_) => {
                let high = u128::from_le_bytes(self.tweaks.tweak(spa & !0xfff));
                let first = (spa as usize & 0xfff) / 16;
                t.iter_mut()
                    .zip(&self.low[first..])
                    .for_each(|(t, l)| *t = high ^ l);
            }
            Crate::Two(_, tweak) => {
                let numbers = &mut self.numbers[..bytes / LINE];
                for (i, b) in numbers.iter_mut().enumerate() {
                    *b = u128::from(spa / 64 + i as u64).to_le_bytes().into();
                }
                tweak.encrypt_blocks(numbers);
                for (t, b) in t.chunks_mut(4).zip(numbers) {
                    let mut x = u128::from_le_bytes((*b).into());
                    for t in t {
                        *t = x;
                        x = (x << 1) ^ ((x >> 127) * 0x87);
                    }
                }
            }
        }
        let (before, after) = match (self.kind, encrypt) {
            (CipherKind::Aes128Xe, true) => (true, false),
            (CipherKind::Aes128Xe, false) => (false, true),
            _ => (true, true),
        };
        for ((o, i), t) in out.iter_mut().zip(input).zip(t.iter()) {
            let t = if before { *t } else { 0 };
            *o = (u128::from_le_bytes(*i) ^ t).to_le_bytes().into();
        }
        match (&self.cipher, encrypt) {
            (Crate::One(c), true) => c.encrypt_blocks(out),
            (Crate::One(c), false) => c.decrypt_blocks(out),
            (Crate::Two(c, _), true) => c.encrypt_blocks(out),
            (Crate::Two(c, _), false) => c.decrypt_blocks(out),
        }
        if after {
            for (o, t) in out.iter_mut().zip(t.iter()) {
                *o = (u128::from_le_bytes((*o).into()) ^ t).to_le_bytes().into();
            }
        }
    }
}

fn granule(c: &mut Criterion, name: &str, bytes: usize) {
    let mut g = c.benchmark_group(name);
    g.throughput(Throughput::Bytes(bytes as u64));
    let mut w = Walk::new(bytes);
    g.bench_function("copy", |b| {
        b.iter(|| {
            let (_, src, dst) = w.next();
            // SAFETY: a granule in each of two buffers; the two arms only make the length a constant.
            unsafe {
                match bytes {
                    LINE => black_box(src).copy_to_nonoverlapping(black_box(dst), LINE),
                    _ => black_box(src).copy_to_nonoverlapping(black_box(dst), PAGE),
                }
            }
        });
    });
    for kind in CipherKind::ALL {
        for (encrypt, direction) in [(true, "encrypt"), (false, "decrypt")] {
            let label = format!("{kind}/{direction}");
            for path in Path::available() {
                let e = engine(kind, path);
                g.bench_function(BenchmarkId::new(&label, path), |b| {
                    b.iter(|| {
                        let (spa, src, dst) = w.next();
                        // SAFETY: a granule in each of two buffers, aligned to its size in the simulated memory.
                        unsafe {
                            match (bytes, encrypt) {
                                (LINE, true) => e.encrypt_line(spa, src, dst),
                                (LINE, false) => e.decrypt_line(spa, src, dst),
                                (_, true) => e.encrypt_page(spa, src, dst),
                                (_, false) => e.decrypt_page(spa, src, dst),
                            }
                        }
                    });
                });
            }
            let mut p = Plain::new(kind);
            check_same(&mut p, encrypt, bytes);
            g.bench_function(BenchmarkId::new(&label, "aes-crate"), |b| {
                b.iter(|| {
                    let (spa, src, dst) = w.next();
                    // SAFETY: a granule in each of two buffers.
                    unsafe { p.run(encrypt, spa, src, dst, bytes) }
                });
            });
        }
    }
    g.finish();
}

/// What is compared must compute the same.
fn check_same(p: &mut Plain, encrypt: bool, bytes: usize) {
    let e = engine(p.kind, Path::detect());
    let mut w = Walk::new(bytes);
    let (spa, src, dst) = w.next();
    let mut mine = vec![0; bytes];
    // SAFETY: a granule in each buffer.
    let theirs = unsafe {
        src.copy_to_nonoverlapping(mine.as_mut_ptr(), bytes);
        p.run(encrypt, spa, src, dst, bytes);
        std::slice::from_raw_parts(dst, bytes)
    };
    if encrypt {
        e.encrypt_slice(spa, &mut mine)
    } else {
        e.decrypt_slice(spa, &mut mine)
    }
    assert_eq!(mine, theirs, "{}", p.kind);
}

fn lines(c: &mut Criterion) {
    granule(c, "line", LINE);
}

fn pages(c: &mut Criterion) {
    granule(c, "page", PAGE);
}

criterion_group!(benches, lines, pages);
criterion_main!(benches);
