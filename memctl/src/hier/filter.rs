//! The filters: what a core's translated code probes before it calls [`MemCtl::line`](crate::MemCtl::line).
//!
//! The problem: a simulator that looks at every access is fifty times slower than the code it studies, and one that looks at a
//! part of them counts wrong. The approach (docs/adr/0011): an entry stands for a line that is in the first-level cache and
//! whose translation is in the first-level TLB, so a hit can't be a miss of anything; and what a hit changes in the
//! cache, the time of the line's last use, is the one word that the hit writes into the entry, the *stamp*.
//!
//! Invariants:
//! 1. A tag is the virtual address of a line whose index is the entry's own, or [`LineFilter::NEVER`]. It counts while its page is
//!    awake: for one that sleeps, all that is missing is the page in the L1 TLB, to which the second level may bring it back.
//! 2. A set tag means: line in L1, page in the L1 TLB with that right; a write tag: line dirty in L1D too, page writable and
//!    dirty, frame without decoded code.
//! 3. Tags are set by the controller alone, in a call of the core that the filter belongs to, and woken by that core. Anybody may
//!    take them away.
//! 4. A line with a tag is of the page that its place among the pages is of: who gives the place to another takes the tags away.
//! 5. The stamp stays when tags go: it is the line's last use until the controller gives the entry to another line.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sevlab_arch::Va;

use super::table::Table;

const LINE_SHIFT: u32 = 6;
const LINE_MASK: u64 = 63;
/// What is added to a sleeping page's addresses before they are compared with tags.
const ASLEEP: u64 = 1;

/// A core's filter of data accesses: direct-mapped, an entry a line: tags for reads and writes and a stamp, in an array each; and
/// for each page a pair {addend, asleep}: what makes host addresses of its virtual ones, so that an access waits for no word of its
/// line's entry, and 0 if its tags count.
///
/// An access of `n` bytes at `va` hits if the tag for its kind equals `((va + n - 1) & !63) + asleep`; the entry is
/// `(va >> 6) % ENTRIES`, the pair that of `(va >> 12) % PAGES`. A hit stores the access's stamp, and its byte is at `va + addend`.
/// Where the arrays are in its memory: [`LineFilter::READ`] and so on.
pub struct LineFilter {
    /// The arrays.
    words: Table<AtomicU64, { Self::WORDS }>,
    /// Which page each pair is of. Only the core's own thread changes it, as the next.
    pages: Box<[AtomicU64]>,
    /// A word for the entries of a page's lines: which may have a tag.
    used: Box<[AtomicU64]>,
}

impl LineFilter {
    /// Number of entries; a power of two. Far more than a first level has lines, so that few of these lines want the same entry:
    /// each access to one of two that do is a call.
    pub const ENTRIES: usize = 1 << 16;
    /// Number of pairs; a power of two. Of two pages that want the same one only one has tags.
    pub const PAGES: usize = 1 << 14;
    /// Byte offset of the array of read tags, 8 bytes each, from [`LineFilter::base_ptr`].
    pub const READ: usize = 0;
    /// Of the write tags.
    pub const WRITE: usize = 8 * Self::ENTRIES;
    /// Of the stamps.
    pub const STAMP: usize = 2 * Self::WRITE;
    /// Of the pairs' first words: host address minus guest virtual address, wrapping. The other word is behind it.
    pub const ADDEND: usize = 3 * Self::WRITE;
    /// Of the pairs' second words.
    pub const ASLEEP: usize = Self::ADDEND + 8;
    /// The tag that no access matches.
    pub const NEVER: u64 = u64::MAX;

    const WORDS: usize = 3 * Self::ENTRIES + 2 * Self::PAGES;

    /// An empty filter.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // it is always shared with the controller
    pub fn new() -> Arc<Self> {
        let memory: Table<_, { Self::WORDS }> = Table::new(|| AtomicU64::new(Self::NEVER));
        // Anything else than 0 or 1 could make a tag of NEVER.
        for word in &memory[Self::ADDEND / 8..] {
            word.store(0, Relaxed);
        }
        Arc::new(Self {
            words: memory,
            pages: (0..Self::PAGES)
                .map(|_| AtomicU64::new(Self::NEVER))
                .collect(),
            used: words(Self::ENTRIES),
        })
    }

    /// Its memory, for translated code. Valid as long as the filter.
    #[must_use]
    pub fn base_ptr(&self) -> *const AtomicU64 {
        self.words.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn index(va: Va) -> usize {
        (va.0 >> LINE_SHIFT) as usize & (Self::ENTRIES - 1)
    }

    #[inline]
    fn page_index(va: Va) -> usize {
        va.pfn() as usize & (Self::PAGES - 1)
    }

    #[inline]
    fn read(&self, i: usize) -> &AtomicU64 {
        &self.words[Self::READ / 8 + i]
    }

    #[inline]
    fn write(&self, i: usize) -> &AtomicU64 {
        &self.words[Self::WRITE / 8 + i]
    }

    #[inline]
    fn addend(&self, va: Va) -> &AtomicU64 {
        &self.words[Self::ADDEND / 8 + 2 * Self::page_index(va)]
    }

    #[inline]
    fn asleep(&self, va: Va) -> &AtomicU64 {
        &self.words[Self::ASLEEP / 8 + 2 * Self::page_index(va)]
    }

    /// Whether the page of `va` is the one that has its pair.
    #[inline]
    fn has_pair(&self, va: Va) -> bool {
        self.pages[Self::page_index(va)].load(Relaxed) == va.page().0
    }

    /// The host address of an access of `n` bytes (1 to 64) at `va`, if it would hit.
    #[must_use]
    #[inline]
    pub fn peek(&self, va: Va, n: u64, write: bool) -> Option<NonNull<u8>> {
        let i = Self::index(va);
        let tag = if write { self.write(i) } else { self.read(i) };
        let last = va.0.wrapping_add(n.wrapping_sub(1));
        let want = (last & !LINE_MASK).wrapping_add(self.asleep(va).load(Relaxed));
        if tag.load(Relaxed) != want {
            return None;
        }
        let addr = va.0.wrapping_add(self.addend(va).load(Relaxed));
        NonNull::new(std::ptr::with_exposed_provenance_mut(addr as usize))
    }

    /// Notes the use of a line that the filter has.
    #[inline]
    pub fn stamp_line(&self, va: Va, stamp: u64) {
        self.words[Self::STAMP / 8 + Self::index(va)].store(stamp, Relaxed);
    }

    /// The probe that translated code makes inline: [`LineFilter::peek`], and `stamp` noted, if it hits.
    #[must_use]
    #[inline]
    pub fn hit(&self, va: Va, n: u64, write: bool, stamp: u64) -> Option<NonNull<u8>> {
        let host = self.peek(va, n, write)?;
        self.stamp_line(va, stamp);
        Some(host)
    }

    /// Tags and stamps of the entries whose tags count, by index: (read, write, stamp).
    pub fn entries(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let all = (0..Self::ENTRIES).map(|i| {
            let [read, write] = [self.read(i), self.write(i)].map(|w| w.load(Relaxed));
            (read, write, self.stamp(i))
        });
        all.filter(|(read, ..)| *read != Self::NEVER && self.asleep(Va(*read)).load(Relaxed) == 0)
    }

    /// Takes the tags of all lines of `va`'s 4 KiB page away, whether it sleeps or not: for whoever changes a translation.
    pub fn drop_va_page(&self, va: Va) {
        self.each_of_page(va, |i| self.clear(i));
    }

    /// The tags of `va`'s 4 KiB page do not count: its translation has left the L1 DTLB, and may come back as it is.
    #[inline]
    pub fn put_to_sleep(&self, va: Va) {
        if self.has_pair(va) {
            self.asleep(va).store(ASLEEP, Relaxed);
        }
    }

    /// The translation of `va`'s 4 KiB page is back in the L1 DTLB, with the rights that it had: its tags count.
    #[inline]
    pub fn wake(&self, va: Va) {
        if self.has_pair(va) {
            self.asleep(va).store(0, Relaxed);
        }
    }

    /// Takes the tags of `va`'s 4 KiB page away if it sleeps: it has another translation, or may have.
    pub fn forget_sleeping(&self, va: Va) {
        if self.has_pair(va) && self.asleep(va).load(Relaxed) != 0 {
            self.drop_va_page(va);
            self.wake(va);
        }
    }

    /// Takes the write tags of all lines of `va`'s 4 KiB page away. By frame: `MemCtl::drop_line_writes`.
    pub fn drop_write_tags_of(&self, va: Va) {
        self.each_of_page(va, |i| self.clear_write(i));
    }

    /// Takes all tags away.
    pub fn flush(&self) {
        for (n, word) in self.used.iter().enumerate() {
            each_bit(word.load(Relaxed), |i| self.clear(n * 64 + i));
            word.store(0, Relaxed);
        }
    }

    fn each_of_page(&self, va: Va, f: impl Fn(usize)) {
        let page = va.page().0;
        let first = Self::index(Va(page));
        let word = &self.used[first / 64];
        let mut left = word.load(Relaxed);
        each_bit(left, |i| {
            let tag = self.read(first + i);
            // A write tag never is without a read tag.
            if tag.load(Relaxed) == page + ((i as u64) << LINE_SHIFT) {
                f(first + i);
            }
            if tag.load(Relaxed) == Self::NEVER {
                left &= !(1 << i);
            }
        });
        word.store(left, Relaxed);
    }

    // ---- the controller's side ----

    /// Takes the tags (or only the write tags) of lines in this range of host addresses away.
    pub(crate) fn drop_hosts(&self, hosts: &Range<u64>, writes_only: bool) {
        for (n, word) in self.used.iter().enumerate() {
            each_bit(word.load(Relaxed), |i| {
                let i = n * 64 + i;
                let line = self.read(i).load(Relaxed);
                let host = line.wrapping_add(self.addend(Va(line)).load(Relaxed));
                if hosts.contains(&host) {
                    self.clear_write(i);
                    if !writes_only {
                        self.clear(i);
                    }
                }
            });
        }
    }

    /// Makes entry `i` the line's at `va`, with the host address of its first byte.
    #[inline]
    pub(super) fn set(&self, i: usize, va: u64, host: NonNull<u8>, write: bool, stamp: u64) {
        let host = host.as_ptr().expose_provenance() as u64;
        self.give_pair(Va(va), host.wrapping_sub(va));
        let word = &self.used[i / 64];
        word.store(word.load(Relaxed) | 1 << (i % 64), Relaxed);
        self.words[Self::STAMP / 8 + i].store(stamp, Relaxed);
        self.read(i).store(va, Relaxed);
        let tag = if write { va } else { Self::NEVER };
        self.write(i).store(tag, Relaxed);
    }

    /// Gives `va`'s page its pair, awake.
    #[inline]
    fn give_pair(&self, va: Va, addend: u64) {
        if !self.has_pair(va) || self.addend(va).load(Relaxed) != addend {
            // Tags of this page with another addend can be none but those that somebody will take away.
            let (owner, page) = (&self.pages[Self::page_index(va)], va.page().0);
            for gone in [owner.load(Relaxed), page] {
                self.drop_va_page(Va(gone));
            }
            owner.store(page, Relaxed);
            self.addend(va).store(addend, Relaxed);
        }
        self.asleep(va).store(0, Relaxed);
    }

    #[inline]
    pub(super) fn at(&self, i: usize) -> *const AtomicU64 {
        self.read(i)
    }

    #[inline]
    pub(super) fn stamp(&self, i: usize) -> u64 {
        self.words[Self::STAMP / 8 + i].load(Relaxed)
    }

    #[inline]
    pub(super) fn clear(&self, i: usize) {
        self.read(i).store(Self::NEVER, Relaxed);
        self.clear_write(i);
    }

    #[inline]
    pub(super) fn clear_write(&self, i: usize) {
        self.write(i).store(Self::NEVER, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_has_no_line() {
        let f = LineFilter::new();
        for va in [0, 0x16, 63, 64, u64::MAX, u64::MAX - 63, 1 << 63] {
            for write in [false, true] {
                assert_eq!(f.peek(Va(va), 1, write), None, "{va:#x}");
            }
            f.put_to_sleep(Va(va));
            assert_eq!(f.peek(Va(va), 1, false), None, "{va:#x}, asleep");
        }
    }
}
