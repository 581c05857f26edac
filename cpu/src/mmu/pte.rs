//! Arithmetic on page-table levels, as the guest walk and the nested walk both need it.

pub use sevlab_arch::paging::pte::{A, ADDR_WITH_C, D, NX, P, PS, U, W};

/// Bits of an address that a leaf at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) leaves to the offset.
#[must_use]
pub const fn offset_mask(level: u32) -> u64 {
    (1 << (12 + 9 * (level - 1))) - 1
}

/// Byte offset of `va`'s entry in a table of `level`.
#[must_use]
pub const fn entry_offset(va: u64, level: u32) -> u64 {
    (va >> (12 + 9 * (level - 1)) & 0x1ff) * 8
}
