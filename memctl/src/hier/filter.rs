#![allow(unsafe_code)] // host addresses come back from addends, as in the fast TLB
//! The filters: what a core's translated code probes before it calls [`MemCtl::line`](crate::MemCtl::line).
//!
//! The problem: a simulator that looks at every access is fifty times slower than the code it studies, and one that looks at a
//! part of them counts wrong. The approach (docs/adr/0011): an entry stands for a line that is in the first-level cache and
//! whose translation is in the first-level TLB, so a hit can't be a miss of anything; and what a hit changes in the
//! cache, the time of the line's last use, is the one word that the hit writes into the entry, the *stamp*.
//!
//! Invariants:
//! 1. A tag is the virtual address of a line whose index is the entry's own, or [`TlbEntry::NEVER`]; or that address with
//!    [`ASLEEP`]: all that is missing for the tag is the page in the L1 TLB, from which the second level may bring it back.
//! 2. A set tag means: line in L1, page in the L1 TLB with that right; a write tag: line dirty in L1D too, page writable and
//!    dirty, frame without decoded code.
//! 3. Tags are set by the controller alone, in a call of the core that the filter belongs to, and woken by that core. Anybody may
//!    take them away while the core does not run (cores run in turns).
//! 4. The stamp stays when tags go: it is the line's last use until the controller gives the entry to another line.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sevlab_arch::Va;

use super::table::Table;
use crate::tlb::TlbEntry;

const LINE_SHIFT: u32 = 6;
const LINE_MASK: u64 = 63;
/// In a tag of data: no access matches it, because the L1 DTLB has lost the page.
const ASLEEP: u64 = 1;

/// A core's filter of data accesses: direct-mapped, an entry a line, in the fast TLB's layout with the stamp in the place of
/// the execute tag.
///
/// An access of `n` bytes at `va` hits if the tag for its kind equals `(va + n - 1) & !63`; the entry is
/// `(va >> 6) % ENTRIES`. A hit stores the access's stamp into [`TlbEntry::exec`], and its byte is at `va + addend`.
pub struct LineFilter {
    entries: Table<TlbEntry, { Self::ENTRIES }>,
    /// A word for the entries of a page's lines: which may have a tag. Only the core's own thread changes it.
    used: Box<[AtomicU64]>,
}

impl LineFilter {
    /// Number of entries; a power of two. Far more than a first level has lines, so that few of these lines want the same entry:
    /// each access to one of two that do is a call.
    pub const ENTRIES: usize = 1 << 16;

    /// An empty filter.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // it is always shared with the controller
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Table::new(TlbEntry::empty),
            used: words(Self::ENTRIES),
        })
    }

    /// The first entry, for translated code. Valid as long as the filter.
    #[must_use]
    pub fn base_ptr(&self) -> *const TlbEntry {
        self.entries.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn index(va: Va) -> usize {
        (va.0 >> LINE_SHIFT) as usize & (Self::ENTRIES - 1)
    }

    /// The entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn entry(&self, va: Va) -> &TlbEntry {
        &self.entries[Self::index(va)]
    }

    /// The probe that translated code makes inline: the host address of an access of `n` bytes (1 to 64) at `va`, and `stamp`
    /// noted, if it hits.
    #[must_use]
    #[inline]
    pub fn hit(&self, va: Va, n: u64, write: bool, stamp: u64) -> Option<NonNull<u8>> {
        let e = self.entry(va);
        let tag = if write { &e.write } else { &e.read };
        let last = va.0.wrapping_add(n.wrapping_sub(1));
        if tag.load(Relaxed) != last & !LINE_MASK {
            return None;
        }
        e.exec.store(stamp, Relaxed);
        let addr = va.0.wrapping_add(e.addend.load(Relaxed));
        NonNull::new(std::ptr::with_exposed_provenance_mut(addr as usize))
    }

    /// Takes the tags of all lines of `va`'s 4 KiB page away, sleeping ones too: for whoever changes a translation.
    pub fn drop_va_page(&self, va: Va) {
        self.each_of_page(va, TlbEntry::clear_data);
    }

    /// Puts the tags of all lines of `va`'s 4 KiB page to sleep: its translation has left the L1 DTLB, and may come back as it is.
    pub fn put_to_sleep(&self, va: Va) {
        self.each_of_page(va, |e| {
            for tag in [&e.read, &e.write] {
                let at = tag.load(Relaxed);
                if at != TlbEntry::NEVER {
                    tag.store(at | ASLEEP, Relaxed);
                }
            }
        });
    }

    /// The translation of `va`'s 4 KiB page is back in the L1 DTLB, with the rights that it had: so are the tags that sleep.
    pub fn wake(&self, va: Va) {
        self.each_of_page(va, |e| {
            for tag in [&e.read, &e.write] {
                let at = tag.load(Relaxed);
                if at != TlbEntry::NEVER {
                    tag.store(at & !ASLEEP, Relaxed);
                }
            }
        });
    }

    /// Takes the sleeping tags of `va`'s 4 KiB page away: it has another translation, or may have.
    pub fn forget_sleeping(&self, va: Va) {
        self.each_of_page(va, |e| {
            if e.read.load(Relaxed) & ASLEEP != 0 {
                e.clear_data();
            }
        });
    }

    /// Takes the write tags of all lines of `va`'s 4 KiB page away. By frame: `MemCtl::drop_line_writes`.
    pub fn drop_write_tags_of(&self, va: Va) {
        self.each_of_page(va, |e| e.write.store(TlbEntry::NEVER, Relaxed));
    }

    /// Takes all tags away.
    pub fn flush(&self) {
        for (word, entries) in self.used.iter().zip(self.entries.chunks(64)) {
            each_bit(word.load(Relaxed), |i| entries[i].clear_data());
            word.store(0, Relaxed);
        }
    }

    fn each_of_page(&self, va: Va, f: impl Fn(&TlbEntry)) {
        let page = va.page().0;
        let first = Self::index(Va(page));
        let entries = &self.entries[first..first + 64];
        let word = &self.used[first / 64];
        let mut left = word.load(Relaxed);
        each_bit(left, |i| {
            let (e, line) = (&entries[i], page + ((i as u64) << LINE_SHIFT));
            // A write tag never is without a read tag.
            if e.read.load(Relaxed) & !ASLEEP == line {
                f(e);
            }
            if e.read.load(Relaxed) == TlbEntry::NEVER {
                left &= !(1 << i);
            }
        });
        word.store(left, Relaxed);
    }

    // ---- the controller's side ----

    /// Takes the tags (or only the write tags) of lines in this range of host addresses away.
    pub(crate) fn drop_hosts(&self, hosts: &Range<u64>, writes_only: bool) {
        for (word, entries) in self.used.iter().zip(self.entries.chunks(64)) {
            each_bit(word.load(Relaxed), |i| {
                let e = &entries[i];
                // A write tag never is without a read tag.
                let line = e.read.load(Relaxed) & !ASLEEP;
                let host = line.wrapping_add(e.addend.load(Relaxed));
                if hosts.contains(&host) {
                    e.write.store(TlbEntry::NEVER, Relaxed);
                    if !writes_only {
                        e.read.store(TlbEntry::NEVER, Relaxed);
                    }
                }
            });
        }
    }

    /// Makes entry `i` the line's at `va`, with the host address of its first byte.
    #[inline]
    pub(super) fn set(&self, i: usize, va: u64, host: NonNull<u8>, write: bool, stamp: u64) {
        let e = &self.entries[i];
        let word = &self.used[i / 64];
        word.store(word.load(Relaxed) | 1 << (i % 64), Relaxed);
        let host = host.as_ptr().expose_provenance() as u64;
        e.exec.store(stamp, Relaxed);
        e.addend.store(host.wrapping_sub(va), Relaxed);
        e.read.store(va, Relaxed);
        e.write
            .store(if write { va } else { TlbEntry::NEVER }, Relaxed);
    }

    #[inline]
    pub(super) fn at(&self, i: usize) -> *const TlbEntry {
        &raw const self.entries[i]
    }

    #[inline]
    pub(super) fn stamp(&self, i: usize) -> u64 {
        self.entries[i].exec.load(Relaxed)
    }

    #[inline]
    pub(super) fn clear(&self, i: usize) {
        self.entries[i].clear_data();
    }

    #[inline]
    pub(super) fn clear_write(&self, i: usize) {
        self.entries[i].write.store(TlbEntry::NEVER, Relaxed);
    }
}

/// An entry of the [`FetchFilter`]. Translated code reads it at these offsets: tag 0, stamp 8.
#[repr(C, align(16))]
pub struct FetchEntry {
    /// Address of the line, or [`FetchEntry::NEVER`].
    pub tag: AtomicU64,
    /// Stamp of the line's last fetch.
    pub stamp: AtomicU64,
}

const _: () = assert!(size_of::<FetchEntry>() == 16);
const _: () = assert!(std::mem::offset_of!(FetchEntry, tag) == 0);
const _: () = assert!(std::mem::offset_of!(FetchEntry, stamp) == 8);

impl FetchEntry {
    /// The tag that no fetch matches.
    pub const NEVER: u64 = u64::MAX;
    /// log2 of an entry's size.
    pub const SIZE_SHIFT: u32 = 4;
}

/// A core's filter of instruction fetches: the line is in L1I and its translation in the L1 ITLB. The entry of a line is
/// `(va >> 6) % ENTRIES`; a hit stores the fetch's stamp.
pub struct FetchFilter {
    entries: Table<FetchEntry, { Self::ENTRIES }>,
    /// As in [`LineFilter`].
    used: Box<[AtomicU64]>,
    /// Host addresses of the lines: by which the controller finds those of a frame.
    hosts: Box<[AtomicU64]>,
}

impl FetchFilter {
    /// Number of entries; a power of two.
    pub const ENTRIES: usize = 1 << 14;

    /// An empty filter.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // it is always shared with the controller
    pub fn new() -> Arc<Self> {
        let none = || FetchEntry {
            tag: AtomicU64::new(FetchEntry::NEVER),
            stamp: AtomicU64::new(0),
        };
        Arc::new(Self {
            entries: Table::new(none),
            used: words(Self::ENTRIES),
            hosts: (0..Self::ENTRIES).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// The first entry, for translated code. Valid as long as the filter.
    #[must_use]
    pub fn base_ptr(&self) -> *const FetchEntry {
        self.entries.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn index(va: Va) -> usize {
        (va.0 >> LINE_SHIFT) as usize & (Self::ENTRIES - 1)
    }

    /// The entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn entry(&self, va: Va) -> &FetchEntry {
        &self.entries[Self::index(va)]
    }

    /// Whether the fetch of the line at `va` hits; its stamp is noted then.
    #[must_use]
    #[inline]
    pub fn hit(&self, va: Va, stamp: u64) -> bool {
        let e = self.entry(va);
        let hit = e.tag.load(Relaxed) == va.0 & !LINE_MASK;
        if hit {
            e.stamp.store(stamp, Relaxed);
        }
        hit
    }

    /// Takes the tags of all lines of `va`'s 4 KiB page away: for whoever removes a translation from the L1 ITLB.
    pub fn drop_va_page(&self, va: Va) {
        let page = va.page();
        let first = Self::index(page);
        let word = &self.used[first / 64];
        let mut left = word.load(Relaxed);
        each_bit(left, |i| {
            let e = &self.entries[first + i];
            if Va(e.tag.load(Relaxed)).page() == page {
                e.tag.store(FetchEntry::NEVER, Relaxed);
            }
            if e.tag.load(Relaxed) == FetchEntry::NEVER {
                left &= !(1 << i);
            }
        });
        word.store(left, Relaxed);
    }

    /// Takes all tags away.
    pub fn flush(&self) {
        for (word, entries) in self.used.iter().zip(self.entries.chunks(64)) {
            each_bit(word.load(Relaxed), |i| {
                entries[i].tag.store(FetchEntry::NEVER, Relaxed);
            });
            word.store(0, Relaxed);
        }
    }

    // ---- the controller's side ----

    /// Takes the tags of lines in this range of host addresses away.
    pub(crate) fn drop_hosts(&self, hosts: &Range<u64>) {
        for (n, word) in self.used.iter().enumerate() {
            each_bit(word.load(Relaxed), |i| {
                let at = n * 64 + i;
                if hosts.contains(&self.hosts[at].load(Relaxed)) {
                    self.entries[at].tag.store(FetchEntry::NEVER, Relaxed);
                }
            });
        }
    }

    #[inline]
    pub(super) fn set(&self, i: usize, va: u64, host: NonNull<u8>, stamp: u64) {
        let word = &self.used[i / 64];
        word.store(word.load(Relaxed) | 1 << (i % 64), Relaxed);
        self.hosts[i].store(host.addr().get() as u64, Relaxed);
        self.entries[i].stamp.store(stamp, Relaxed);
        self.entries[i].tag.store(va, Relaxed);
    }

    #[inline]
    pub(super) fn at(&self, i: usize) -> *const FetchEntry {
        &raw const self.entries[i]
    }

    #[inline]
    pub(super) fn stamp(&self, i: usize) -> u64 {
        self.entries[i].stamp.load(Relaxed)
    }

    #[inline]
    pub(super) fn clear(&self, i: usize) {
        self.entries[i].tag.store(FetchEntry::NEVER, Relaxed);
    }
}

fn words(entries: usize) -> Box<[AtomicU64]> {
    (0..entries / 64).map(|_| AtomicU64::new(0)).collect()
}

fn each_bit(mut bits: u64, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}
