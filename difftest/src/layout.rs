//! Where things are, in the guest and natively alike. Everything lies below 4 GiB, so that 32-bit addresses reach it.

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Code: readable and executable.
pub const CODE: u64 = 0x1000_0000;
/// Pages of code; nothing is mapped behind.
pub const CODE_PAGES: u64 = 2;
/// Behind the code.
pub const CODE_END: u64 = CODE + CODE_PAGES * PAGE;
/// Data: three writable pages, one that can only be read, one that is not mapped, one more writable one.
pub const DATA: u64 = 0x2000_0000;
/// Writable pages at [`DATA`].
pub const DATA_PAGES: u64 = 3;
/// The page that can only be read.
pub const READ_ONLY: u64 = DATA + DATA_PAGES * PAGE;
/// The page that is not mapped.
pub const UNMAPPED: u64 = READ_ONLY + PAGE;
/// The last writable page; nothing is mapped behind.
pub const ISLAND: u64 = UNMAPPED + PAGE;
/// Where a stack pointer that nothing is known of begins.
pub const STACK: u64 = DATA + 0x1800;

/// Data pages, in the order in which their contents are kept.
pub const PAGES: [u64; 5] = [DATA, DATA + PAGE, DATA + 2 * PAGE, READ_ONLY, ISLAND];
/// Bytes of all data pages.
pub const MEMORY: usize = PAGES.len() * PAGE as usize;

/// Offset in the data's contents of an address, if it is in a data page.
#[must_use]
pub fn offset(va: u64) -> Option<usize> {
    let page = PAGES.iter().position(|p| *p == va & !(PAGE - 1))?;
    Some(page * PAGE as usize + (va & (PAGE - 1)) as usize)
}

/// Address of an offset in the data's contents.
#[must_use]
pub fn address(offset: usize) -> u64 {
    PAGES[offset / PAGE as usize] + (offset as u64 & (PAGE - 1))
}
