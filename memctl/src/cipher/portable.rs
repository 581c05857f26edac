#![allow(unsafe_code)] // implements `Kernel`, whose memory is raw pointers
//! The modes on the `aes` crate: for hosts without AES instructions, and as a second opinion on the other paths.
//!
//! Nothing here is tuned: it copies each piece through a buffer, so that the modes read like their definitions. The crate's
//! ciphers wipe their round keys on drop (its feature `zeroize`).

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};

use super::engine::Kernel;
use super::tweak::{self, TweakTable};
use super::{BLOCK, CipherKind, LINE, PAGE};
use crate::key::MemoryKey;

/// Blocks in a line.
const PER_LINE: usize = LINE / BLOCK;
/// Blocks in a page.
const PER_PAGE: usize = PAGE / BLOCK;

/// The `aes` crate's kernel for this key.
pub(super) fn kernel(key: &MemoryKey, tweaks: &TweakTable) -> Box<dyn Kernel> {
    let data = Box::new(Data::new(key));
    Box::new(Portable {
        data,
        tweaks: tweaks.clone(),
    })
}

/// The key and with it the mode.
enum Data {
    Xe(Aes128),
    Xex(Aes128),
    Xts {
        data: Box<Aes256>,
        tweak: Box<Aes256>,
    },
}

impl Data {
    fn new(key: &MemoryKey) -> Self {
        fn array<const N: usize>(bytes: &[u8]) -> &[u8; N] {
            bytes
                .first_chunk()
                .expect("a MemoryKey has its cipher's length")
        }
        let bytes = key.bytes();
        match key.kind() {
            CipherKind::Aes128Xe => Self::Xe(Aes128::new(array::<16>(bytes).into())),
            CipherKind::Aes128Xex => Self::Xex(Aes128::new(array::<16>(bytes).into())),
            CipherKind::Aes256Xts => Self::Xts {
                data: Box::new(Aes256::new(array::<32>(bytes).into())),
                tweak: Box::new(Aes256::new(array::<32>(&bytes[32..]).into())),
            },
        }
    }

    fn encrypt(&self, blocks: &mut [aes::Block]) {
        match self {
            Self::Xe(c) | Self::Xex(c) => c.encrypt_blocks(blocks),
            Self::Xts { data, .. } => data.encrypt_blocks(blocks),
        }
    }

    fn decrypt(&self, blocks: &mut [aes::Block]) {
        match self {
            Self::Xe(c) | Self::Xex(c) => c.decrypt_blocks(blocks),
            Self::Xts { data, .. } => data.decrypt_blocks(blocks),
        }
    }

    /// Whether the ciphertext side is XORed with the tweak, too.
    fn tweaks_ciphertext(&self) -> bool {
        !matches!(self, Self::Xe(_))
    }
}

struct Portable {
    data: Box<Data>,
    tweaks: TweakTable,
}

impl Portable {
    /// The tweaks of the blocks from `spa` on.
    fn tweaks(&self, spa: u64, out: &mut [u128]) {
        match &*self.data {
            Data::Xe(_) | Data::Xex(_) => {
                for (i, t) in out.iter_mut().enumerate() {
                    *t = self.tweaks.tables.tweak(spa + (i * BLOCK) as u64);
                }
            }
            Data::Xts { .. } => {
                let mut unit = 0;
                for (i, t) in out.iter_mut().enumerate() {
                    let at = spa + (i * BLOCK) as u64;
                    let block = (at as usize % LINE / BLOCK) as u32;
                    if i == 0 || block == 0 {
                        unit = self.number_tweak(u128::from(at / LINE as u64));
                    }
                    *t = tweak::times_x(unit, block);
                }
            }
        }
    }

    /// XTS: `E2(number)`.
    fn number_tweak(&self, number: u128) -> u128 {
        let Data::Xts { tweak, .. } = &*self.data else {
            return 0;
        };
        let mut block = number.to_le_bytes().into();
        tweak.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }

    /// Applies the mode to as many blocks as there are tweaks, at most `MAX`.
    ///
    /// # Safety
    /// As for [`Kernel`].
    unsafe fn apply<const MAX: usize>(
        &self,
        encrypt: bool,
        tweaks: &[u128],
        src: *const u8,
        dst: *mut u8,
    ) {
        let n = tweaks.len();
        let (before, after) = if encrypt {
            (true, self.data.tweaks_ciphertext())
        } else {
            (self.data.tweaks_ciphertext(), true)
        };
        let mut space = [aes::Block::default(); MAX];
        let blocks = &mut space[..n];
        // SAFETY: the caller's `n` blocks; a block is 16 bytes without padding.
        unsafe { src.copy_to_nonoverlapping(blocks.as_mut_ptr().cast(), n * BLOCK) };
        let xor = |blocks: &mut [aes::Block]| {
            for (b, t) in blocks.iter_mut().zip(tweaks) {
                *b = (u128::from_le_bytes((*b).into()) ^ t).to_le_bytes().into();
            }
        };
        if before {
            xor(blocks);
        }
        if encrypt {
            self.data.encrypt(blocks)
        } else {
            self.data.decrypt(blocks)
        }
        if after {
            xor(blocks);
        }
        // SAFETY: as above.
        unsafe {
            blocks
                .as_ptr()
                .cast::<u8>()
                .copy_to_nonoverlapping(dst, n * BLOCK)
        };
    }

    /// `n` blocks at `spa`, at most `MAX`.
    ///
    /// # Safety
    /// As for [`Kernel`].
    unsafe fn at<const MAX: usize>(
        &self,
        encrypt: bool,
        spa: u64,
        src: *const u8,
        dst: *mut u8,
        n: usize,
    ) {
        let mut tweaks = [0; MAX];
        self.tweaks(spa, &mut tweaks[..n]);
        // SAFETY: the caller's promise.
        unsafe { self.apply::<MAX>(encrypt, &tweaks[..n], src, dst) }
    }

    /// As many lines as there are tweaks.
    ///
    /// # Safety
    /// As for [`Kernel`].
    unsafe fn with(&self, encrypt: bool, units: &[u128], src: *const u8, dst: *mut u8) {
        for (line, &unit) in units.iter().enumerate() {
            let tweaks: [u128; PER_LINE] = std::array::from_fn(|i| tweak::times_x(unit, i as u32));
            // SAFETY: the caller's promise, a line at a time.
            unsafe {
                self.apply::<PER_LINE>(encrypt, &tweaks, src.add(line * LINE), dst.add(line * LINE))
            }
        }
    }
}

// SAFETY of each body below: the promise is passed on.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Kernel for Portable {
    unsafe fn encrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
        unsafe { self.at::<PER_LINE>(true, spa, src, dst, PER_LINE) }
    }
    unsafe fn decrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
        unsafe { self.at::<PER_LINE>(false, spa, src, dst, PER_LINE) }
    }
    unsafe fn encrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
        unsafe { self.at::<PER_PAGE>(true, spa, src, dst, n * PER_LINE) }
    }
    unsafe fn decrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
        unsafe { self.at::<PER_PAGE>(false, spa, src, dst, n * PER_LINE) }
    }
    unsafe fn encrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
        unsafe { self.at::<PER_LINE>(true, spa, src, dst, n) }
    }
    unsafe fn decrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize) {
        unsafe { self.at::<PER_LINE>(false, spa, src, dst, n) }
    }
    unsafe fn unit_tweak(&self, number: u128) -> u128 {
        self.number_tweak(number)
    }
    unsafe fn encrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8) {
        unsafe { self.with(true, tweaks, src, dst) }
    }
    unsafe fn decrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8) {
        unsafe { self.with(false, tweaks, src, dst) }
    }
}
