//! Counters: relaxed atomics, written where AES runs, never on a hit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the memory controller has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct MemStats {
    /// Whole pages decrypted into `plain`.
    pub pages_decrypted: u64,
    /// Whole pages encrypted into DRAM.
    pub pages_encrypted: u64,
    /// 16-byte blocks through AES, both directions, those of whole pages included.
    pub aes_blocks: u64,
    /// Resident pages pushed out, for whatever reason.
    pub evictions: u64,
    /// Private pages in `plain` now.
    pub resident: u64,
    /// The most there ever were.
    pub peak_resident: u64,
}

/// The counters behind [`MemStats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub pages_decrypted: AtomicU64,
    pub pages_encrypted: AtomicU64,
    pub aes_blocks: AtomicU64,
    pub evictions: AtomicU64,
    pub resident: AtomicU64,
    pub peak_resident: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// One page more in `plain`. The caller holds the metadata lock.
    pub(crate) fn page_in(&self) {
        let now = self.resident.load(Relaxed) + 1;
        self.resident.store(now, Relaxed);
        self.peak_resident.fetch_max(now, Relaxed);
    }

    /// One page fewer in `plain`. The caller holds the metadata lock.
    pub(crate) fn page_out(&self) {
        self.resident
            .store(self.resident.load(Relaxed).saturating_sub(1), Relaxed);
        self.evictions.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> MemStats {
        MemStats {
            pages_decrypted: self.pages_decrypted.load(Relaxed),
            pages_encrypted: self.pages_encrypted.load(Relaxed),
            aes_blocks: self.aes_blocks.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
            resident: self.resident.load(Relaxed),
            peak_resident: self.peak_resident.load(Relaxed),
        }
    }
}
