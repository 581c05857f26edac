#![allow(unsafe_code)] // The caller's memory is guest memory: raw pointers, never references.
//! An expanded key, ready to encrypt and decrypt physical memory.

use thiserror::Error;

use super::{BLOCK, CipherKind, LINE, PAGE, Path, TweakTable, portable, tweak};
use crate::key::MemoryKey;

/// What a path implements. An implementation holds its round keys and wipes them on drop.
///
/// # Safety
/// For every method: `src` is readable and `dst` writable for all the bytes named (a block is 16, a line 64), they are the same
/// address or do not overlap, and nobody else writes `src` or touches `dst` meanwhile. The host has the path's instructions.
pub(super) trait Kernel: Send + Sync {
    /// Encrypts the line at `spa`, a multiple of 64.
    unsafe fn encrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8);
    /// Decrypts the line at `spa`, a multiple of 64.
    unsafe fn decrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8);
    /// Encrypts `n` lines from `spa`, a multiple of 64, that lie in one page.
    unsafe fn encrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize);
    /// Decrypts `n` lines from `spa`, a multiple of 64, that lie in one page.
    unsafe fn decrypt_lines(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize);
    /// Encrypts `n` blocks from `spa`, a multiple of 16, that lie in one line.
    unsafe fn encrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize);
    /// Decrypts `n` blocks from `spa`, a multiple of 16, that lie in one line.
    unsafe fn decrypt_blocks(&self, spa: u64, src: *const u8, dst: *mut u8, n: usize);
    /// XTS only: the tweak of the data unit's first block, `E2(number)`.
    unsafe fn unit_tweak(&self, number: u128) -> u128;
    /// XTS only: encrypts `tweaks.len()` lines, where each has the given tweak for its first block.
    unsafe fn encrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8);
    /// XTS only: decrypts `tweaks.len()` lines, where each has the given tweak for its first block.
    unsafe fn decrypt_with(&self, tweaks: &[u128], src: *const u8, dst: *mut u8);
}

/// A data unit was given to an engine whose cipher has none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} has no data units")]
pub struct NotXts {
    /// The engine's cipher.
    pub kind: CipherKind,
}

/// An expanded [`MemoryKey`] with the machine's tweaks and the code for this host. The keys are wiped on drop.
pub struct Engine {
    kernel: Box<dyn Kernel>,
    kind: CipherKind,
    path: Path,
}

impl Engine {
    /// Expands `key`. A path that this host lacks is replaced by [`Path::detect`]'s.
    #[must_use]
    pub fn new(key: &MemoryKey, tweaks: &TweakTable, path: Path) -> Self {
        let path = if path.is_available() {
            path
        } else {
            Path::detect()
        };
        let kernel = match path {
            Path::Portable => portable::kernel(key, tweaks),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the path is available.
            Path::AesNi | Path::Vaes256 | Path::Vaes512 => unsafe {
                super::x86::kernel(key, tweaks, path)
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::kernel(key, tweaks),
        };
        Self {
            kernel,
            kind: key.kind(),
            path,
        }
    }

    /// The cipher.
    #[must_use]
    pub fn kind(&self) -> CipherKind {
        self.kind
    }

    /// The path in use.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }

    /// Encrypts the 64-byte line at `spa`, a multiple of 64.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for 64 bytes; they are the same address or do not overlap; nobody writes `src` or
    /// touches `dst` meanwhile.
    #[inline]
    pub unsafe fn encrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
        debug_assert!(spa.is_multiple_of(LINE as u64));
        // SAFETY: the caller's promise is the kernel's.
        unsafe { self.kernel.encrypt_line(spa, src, dst) }
    }

    /// Decrypts the 64-byte line at `spa`, a multiple of 64.
    ///
    /// # Safety
    /// As for [`Engine::encrypt_line`].
    #[inline]
    pub unsafe fn decrypt_line(&self, spa: u64, src: *const u8, dst: *mut u8) {
        debug_assert!(spa.is_multiple_of(LINE as u64));
        // SAFETY: the caller's promise is the kernel's.
        unsafe { self.kernel.decrypt_line(spa, src, dst) }
    }

    /// Encrypts the 4 KiB page at `spa`, a multiple of 4096.
    ///
    /// # Safety
    /// As for [`Engine::encrypt_line`], for 4096 bytes.
    #[inline]
    pub unsafe fn encrypt_page(&self, spa: u64, src: *const u8, dst: *mut u8) {
        debug_assert!(spa.is_multiple_of(PAGE as u64));
        // SAFETY: the caller's promise is the kernel's; the lines of an aligned page lie in one page.
        unsafe { self.kernel.encrypt_lines(spa, src, dst, PAGE / LINE) }
    }

    /// Decrypts the 4 KiB page at `spa`, a multiple of 4096.
    ///
    /// # Safety
    /// As for [`Engine::encrypt_line`], for 4096 bytes.
    #[inline]
    pub unsafe fn decrypt_page(&self, spa: u64, src: *const u8, dst: *mut u8) {
        debug_assert!(spa.is_multiple_of(PAGE as u64));
        // SAFETY: the caller's promise is the kernel's; the lines of an aligned page lie in one page.
        unsafe { self.kernel.decrypt_lines(spa, src, dst, PAGE / LINE) }
    }

    /// Encrypts `len` bytes from `src` to `dst`. `spa`, a multiple of 16, is the physical address of the first byte; `len` is a
    /// multiple of 16.
    ///
    /// # Safety
    /// As for [`Engine::encrypt_line`], for `len` bytes.
    pub unsafe fn encrypt(&self, spa: u64, src: *const u8, dst: *mut u8, len: usize) {
        for piece in Pieces::new(spa, len) {
            let k = &*self.kernel;
            // SAFETY: a piece lies in `len`, and is what it is called: blocks of one line, one line, lines of one page.
            unsafe {
                let (src, dst) = (src.add(piece.offset), dst.add(piece.offset));
                match piece.what {
                    Shape::Blocks(n) => k.encrypt_blocks(piece.spa, src, dst, n),
                    Shape::Lines(1) => k.encrypt_line(piece.spa, src, dst),
                    Shape::Lines(n) => k.encrypt_lines(piece.spa, src, dst, n),
                }
            }
        }
    }

    /// Decrypts `len` bytes from `src` to `dst`; otherwise as [`Engine::encrypt`].
    ///
    /// # Safety
    /// As for [`Engine::encrypt_line`], for `len` bytes.
    pub unsafe fn decrypt(&self, spa: u64, src: *const u8, dst: *mut u8, len: usize) {
        for piece in Pieces::new(spa, len) {
            let k = &*self.kernel;
            // SAFETY: a piece lies in `len`, and is what it is called: blocks of one line, one line, lines of one page.
            unsafe {
                let (src, dst) = (src.add(piece.offset), dst.add(piece.offset));
                match piece.what {
                    Shape::Blocks(n) => k.decrypt_blocks(piece.spa, src, dst, n),
                    Shape::Lines(1) => k.decrypt_line(piece.spa, src, dst),
                    Shape::Lines(n) => k.decrypt_lines(piece.spa, src, dst, n),
                }
            }
        }
    }

    /// Encrypts `data` in place, as if it lay at physical address `spa`.
    ///
    /// # Panics
    /// If `spa` or the length is not a multiple of 16.
    pub fn encrypt_slice(&self, spa: u64, data: &mut [u8]) {
        check_blocks(spa, data.len());
        let p = data.as_mut_ptr();
        // SAFETY: an exclusive borrow of that many bytes.
        unsafe { self.encrypt(spa, p, p, data.len()) }
    }

    /// Decrypts `data` in place, as if it lay at physical address `spa`.
    ///
    /// # Panics
    /// If `spa` or the length is not a multiple of 16.
    pub fn decrypt_slice(&self, spa: u64, data: &mut [u8]) {
        check_blocks(spa, data.len());
        let p = data.as_mut_ptr();
        // SAFETY: an exclusive borrow of that many bytes.
        unsafe { self.decrypt(spa, p, p, data.len()) }
    }

    /// Standard XTS over one data unit of any number of whole blocks, with its number as the 16 bytes IEEE 1619 calls `i`.
    /// Memory is data units of one line each; this is for the standard's test vectors and for anything stored in units of
    /// another size. There is no ciphertext stealing.
    ///
    /// # Errors
    /// [`NotXts`] if the engine's cipher is not XTS.
    ///
    /// # Panics
    /// If the length is not a multiple of 16.
    pub fn encrypt_unit(&self, number: [u8; BLOCK], data: &mut [u8]) -> Result<(), NotXts> {
        self.unit(number, data, |k, tweaks, p| {
            // SAFETY: `p` is an exclusively borrowed run of as many lines as there are tweaks.
            unsafe { k.encrypt_with(tweaks, p, p) }
        })
    }

    /// The inverse of [`Engine::encrypt_unit`].
    ///
    /// # Errors
    /// [`NotXts`] if the engine's cipher is not XTS.
    ///
    /// # Panics
    /// If the length is not a multiple of 16.
    pub fn decrypt_unit(&self, number: [u8; BLOCK], data: &mut [u8]) -> Result<(), NotXts> {
        self.unit(number, data, |k, tweaks, p| {
            // SAFETY: `p` is an exclusively borrowed run of as many lines as there are tweaks.
            unsafe { k.decrypt_with(tweaks, p, p) }
        })
    }

    fn unit(
        &self,
        number: [u8; BLOCK],
        data: &mut [u8],
        apply: impl Fn(&dyn Kernel, &[u128], *mut u8),
    ) -> Result<(), NotXts> {
        if self.kind != CipherKind::Aes256Xts {
            return Err(NotXts { kind: self.kind });
        }
        check_blocks(0, data.len());
        // SAFETY: only needs the path's instructions, which `new` has seen to.
        let mut t = unsafe { self.kernel.unit_tweak(u128::from_le_bytes(number)) };
        for page in data.chunks_mut(PAGE) {
            let mut tweaks = [0; PAGE / LINE];
            for tweak in &mut tweaks[..page.len().div_ceil(LINE)] {
                *tweak = t;
                t = tweak::times_x(t, 4);
            }
            let (lines, rest) = page.split_at_mut(page.len() / LINE * LINE);
            let (whole, last) = tweaks.split_at(lines.len() / LINE);
            apply(&*self.kernel, whole, lines.as_mut_ptr());
            if !rest.is_empty() {
                let mut line = [0; LINE];
                line[..rest.len()].copy_from_slice(rest);
                apply(&*self.kernel, &last[..1], line.as_mut_ptr());
                rest.copy_from_slice(&line[..rest.len()]);
            }
        }
        Ok(())
    }
}

fn check_blocks(spa: u64, len: usize) {
    assert!(
        spa.is_multiple_of(BLOCK as u64),
        "address {spa:#x} is not a multiple of 16"
    );
    assert!(
        len.is_multiple_of(BLOCK),
        "length {len} is not a multiple of 16"
    );
}

/// What a [`Piece`] is.
enum Shape {
    /// Blocks of one line: its start or its end is missing.
    Blocks(usize),
    /// Whole lines of one page.
    Lines(usize),
}

struct Piece {
    spa: u64,
    offset: usize,
    what: Shape,
}

/// Splits a run of blocks into what the kernels take.
struct Pieces {
    spa: u64,
    offset: usize,
    end: usize,
}

impl Pieces {
    fn new(spa: u64, len: usize) -> Self {
        debug_assert!(spa.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK));
        Self {
            spa,
            offset: 0,
            end: len / BLOCK * BLOCK,
        }
    }
}

impl Iterator for Pieces {
    type Item = Piece;
    #[inline]
    fn next(&mut self) -> Option<Piece> {
        let left = self.end - self.offset;
        if left == 0 {
            return None;
        }
        let in_line = self.spa as usize % LINE;
        let (what, bytes) = if in_line != 0 || left < LINE {
            let bytes = left.min(LINE - in_line);
            (Shape::Blocks(bytes / BLOCK), bytes)
        } else {
            let lines = left.min(PAGE - self.spa as usize % PAGE) / LINE;
            (Shape::Lines(lines), lines * LINE)
        };
        let piece = Piece {
            spa: self.spa,
            offset: self.offset,
            what,
        };
        self.spa = self.spa.wrapping_add(bytes as u64);
        self.offset += bytes;
        Some(piece)
    }
}
