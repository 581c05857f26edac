#![allow(unsafe_code)] // memory that survives a fork as one
//! What the clones of a machine counted: a guest's child processes, each a host process of its own, add
//! theirs to a page that all of them share when they end.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use sevlab_memctl::MemStats;

/// The counts of the processes that have ended so far, but the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// How many there were. One that SIGKILL ended is not among them.
    pub processes: u64,
    /// Guest instructions retired.
    pub instructions: u64,
    /// World switches into the guest.
    pub entries: u64,
    /// System calls made.
    pub syscalls: u64,
    /// Whole pages decrypted, after the process began.
    pub pages_decrypted: u64,
    /// Whole pages encrypted.
    pub pages_encrypted: u64,
    /// AES blocks, both directions.
    pub aes_blocks: u64,
    /// In simulated time: cycles that they were not waiting.
    pub busy_cycles: u64,
}

const COUNTS: usize = 8;

/// The shared page.
pub(crate) struct Family(Option<NonNull<[AtomicU64; COUNTS]>>);

// SAFETY: the page is atomics, and is never unmapped.
unsafe impl Send for Family {}
// SAFETY: as above.
unsafe impl Sync for Family {}

impl Family {
    /// A page of zeroes. If the host has none left, nothing is counted.
    pub(crate) fn new() -> Self {
        // SAFETY: a new mapping, of which nothing else knows.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        Self(NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED))
    }

    fn counts(&self) -> Option<&[AtomicU64; COUNTS]> {
        // SAFETY: mapped, zeroed at first (a valid state of atomics), and never unmapped.
        self.0.map(|p| unsafe { p.as_ref() })
    }

    /// Adds one process.
    pub(crate) fn add(&self, c: &Children) {
        let counts = [
            c.processes,
            c.instructions,
            c.entries,
            c.syscalls,
            c.pages_decrypted,
            c.pages_encrypted,
            c.aes_blocks,
            c.busy_cycles,
        ];
        for (sum, n) in self.counts().into_iter().flatten().zip(counts) {
            sum.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The sums.
    pub(crate) fn sums(&self) -> Children {
        let mut c = [0; COUNTS];
        for (n, sum) in c.iter_mut().zip(self.counts().into_iter().flatten()) {
            *n = sum.load(Ordering::Relaxed);
        }
        let [
            processes,
            instructions,
            entries,
            syscalls,
            pages_decrypted,
            pages_encrypted,
            aes_blocks,
            busy_cycles,
        ] = c;
        Children {
            processes,
            instructions,
            entries,
            syscalls,
            pages_decrypted,
            pages_encrypted,
            aes_blocks,
            busy_cycles,
        }
    }
}

/// One process's counts: `before` is what its memory controller had counted when it began.
pub(crate) fn of(
    totals: &crate::cpus::Totals,
    syscalls: u64,
    before: &MemStats,
    now: &MemStats,
) -> Children {
    Children {
        processes: 1,
        instructions: totals.instructions,
        entries: totals.vcpu.entries,
        syscalls,
        pages_decrypted: now.pages_decrypted - before.pages_decrypted,
        pages_encrypted: now.pages_encrypted - before.pages_encrypted,
        aes_blocks: now.aes_blocks - before.aes_blocks,
        busy_cycles: 0,
    }
}
