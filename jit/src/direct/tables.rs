#![allow(unsafe_code)] // maps tables, sets the GS base
//! What copied code reads by its address: small numbers, the check's table, and where indirect jumps lead.

use super::MOST;
use std::cell::Cell;
use std::sync::OnceLock;

/// The largest small number: each instruction of a copy may lie in two lines.
const NUMBERS: usize = 2 * MOST + 1;

/// Memory in the lowest 2 GiB, which an operand can name without a register.
fn low(bytes: usize, protection: i32) -> Option<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_32BIT;
    // SAFETY: a new mapping where nothing is.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    let at = (at != libc::MAP_FAILED).then_some(at as usize)?;
    (at + bytes <= i32::MAX as usize).then_some(at)
}

/// Whether this host and process can run such code.
pub(crate) fn is_possible() -> bool {
    std::arch::is_x86_feature_detected!("bmi2") && table().is_some()
}

/// The address of the check's table: what index 0 reads is there, and nothing behind it. Before it are small [`number`]s.
pub(super) fn table() -> Option<i32> {
    static TABLE: OnceLock<Option<i32>> = OnceLock::new();
    *TABLE.get_or_init(|| {
        const PAGE: usize = 4096;
        const { assert!(8 * NUMBERS < PAGE - 16) };
        // An entry for each value of the 16 bits looked at, the first of which ends a page.
        let at = low(PAGE + (8 << 16), libc::PROT_NONE)?;
        let page: *mut u64 = std::ptr::with_exposed_provenance_mut(at);
        // SAFETY: part of what was just mapped, and larger than what is written.
        let readable = unsafe {
            let protect = |how| libc::mprotect(page.cast(), PAGE, how) == 0;
            protect(libc::PROT_READ | libc::PROT_WRITE) && {
                for n in 0..=NUMBERS {
                    page.add(n).write(n as u64);
                }
                protect(libc::PROT_READ)
            }
        };
        readable.then_some((at + PAGE - 8) as i32)
    })
}

/// The address of a small number as a word, from the table's.
pub(super) fn number(table: i32, n: usize) -> i32 {
    table + 8 - 4096 + 8 * n as i32
}

/// Makes `base` the base of GS on this thread, which the simulator has no other use for.
pub(crate) fn set_gs(base: u64) {
    const ARCH_SET_GS: i32 = 0x1001;
    thread_local! {
        static GS: Cell<u64> = const { Cell::new(0) };
    }
    if GS.replace(base) != base {
        // SAFETY: nothing on this thread is addressed by GS but what this module makes.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Where indirect jumps lead: for the low 16 bits of a guest address, minus that address, and behind all of those its code.
pub(crate) struct Targets(usize);

impl Targets {
    pub(super) const ENTRIES: usize = 1 << 16;

    /// Where it is.
    pub(super) fn address(&self) -> i32 {
        self.0 as i32
    }

    pub(super) fn new() -> Option<Self> {
        let at = low(16 * Self::ENTRIES, libc::PROT_READ | libc::PROT_WRITE)?;
        let targets = Self(at);
        // What no address is the opposite of, for the entry that zeroes would match.
        targets.set(0, 1, 0);
        Some(targets)
    }

    fn set(&self, index: u64, word: u64, code: usize) {
        let at: *mut u64 =
            std::ptr::with_exposed_provenance_mut(self.0 + 8 * (index as usize & 0xffff));
        // SAFETY: both words are in the mapping, which lives as long as this and is read by copied code alone, on this thread.
        unsafe {
            at.write(word);
            at.add(Self::ENTRIES).write(code as u64);
        }
    }

    /// Jumps to `rip` lead there from now on.
    pub(crate) fn enter(&self, rip: u64, code: usize) {
        self.set(rip, rip.wrapping_neg(), code);
    }

    /// Jumps to `rip` lead nowhere.
    pub(crate) fn remove(&self, rip: u64) {
        let at: *const u64 =
            std::ptr::with_exposed_provenance(self.0 + 8 * (rip as usize & 0xffff));
        // SAFETY: as in `set`.
        if unsafe { at.read() } == rip.wrapping_neg() {
            // The opposite of an address that belongs elsewhere.
            self.set(rip, !rip, 0);
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and copied code that reads it is gone with the engine.
        unsafe {
            libc::munmap(
                std::ptr::with_exposed_provenance_mut(self.0),
                16 * Self::ENTRIES,
            )
        };
    }
}
