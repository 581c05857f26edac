//! What the modes need of a vector register.

use std::arch::x86_64::__m128i;

/// A vector of one, two or four AES blocks.
///
/// The methods are `inline(always)` wrappers of single instructions: they become those only inside a function that is compiled
/// for the path's features, which is what the entry points of each path are.
///
/// # Safety
/// The host has the path's instructions; pointers are good for the bytes named, at any alignment.
pub(super) trait Lane: Copy {
    /// Blocks in a vector.
    const BLOCKS: usize;
    /// Loads [`Lane::BLOCKS`] blocks.
    unsafe fn load(p: *const u8) -> Self;
    /// Stores [`Lane::BLOCKS`] blocks.
    unsafe fn store(self, p: *mut u8);
    /// A block, repeated.
    unsafe fn splat(block: __m128i) -> Self;
    /// A block in memory, repeated.
    unsafe fn splat_at(p: *const u128) -> Self;
    /// Bitwise exclusive or.
    unsafe fn xor(self, other: Self) -> Self;
    /// A round of encryption.
    unsafe fn enc(self, key: Self) -> Self;
    /// The last round of encryption.
    unsafe fn enc_last(self, key: Self) -> Self;
    /// A round of the equivalent inverse cipher.
    unsafe fn dec(self, key: Self) -> Self;
    /// The last round of the equivalent inverse cipher.
    unsafe fn dec_last(self, key: Self) -> Self;
    /// From the tweak of an XTS line's first block, repeated, those of its blocks `part * BLOCKS ..`.
    unsafe fn xts(self, part: usize) -> Self;
}
