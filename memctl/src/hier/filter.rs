//! The filters: what a core's translated code probes before it calls [`MemCtl::line`](crate::MemCtl::line).
//!
//! The problem: a simulator that looks at every access is fifty times slower than the code it studies, and one that looks at a
//! part of them counts wrong. The approach (docs/adr/0011): an entry stands for a line that is in the first-level cache and
//! whose translation is in the first-level TLB, so a hit can't be a miss of anything; and what a hit changes in the
//! cache, the time of the line's last use, is the one word that the hit writes, the *stamp* of the line's slot.
//!
//! An entry is one word: the line's number above [`TAG_SHIFT`], whether stores may pass, and the slot of the first-level cache that
//! has the line. Stamps are an array by slot, which is small, and where the choice of a victim finds those of a set side by side.
//!
//! Invariants:
//! 1. A tag is the number of a line, one below 2^41, whose index is the entry's own; or the entry is [`never`]'s, which no access
//!    matches. It counts while its page is awake: for one that sleeps, all that is missing is the page in the L1 TLB, to which the
//!    second level may bring it back.
//! 2. A tag means: line in that slot of L1, page in the L1 TLB with that right; the bit for writes: line dirty in L1D, or its
//!    page no other core's (see 6), page writable and dirty, frame without decoded code.
//! 3. Tags are set by the controller alone, in a call of the core that the filter belongs to, and woken by that core. Anybody may
//!    take them away.
//! 4. A line with a tag is of the page that its place among the pages is of: who gives the place to another takes the tags away.
//! 5. A slot's stamp is the last use of its line, whether an entry names the slot or none.
//! 6. A store that passes notes so in its slot's byte of `wrote`. The first level takes the line for dirty then, as if it had seen
//!    the store: a clean line may let stores pass as long as nobody else has a copy.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sevlab_arch::Va;

use super::table::Table;

const LINE_SHIFT: u32 = 6;
/// A tag is an entry shifted by this.
pub const TAG_SHIFT: u32 = 22;
/// The bit of an entry that lets no store pass, right below the tag.
pub(super) const NO_WRITES: u64 = 1 << (TAG_SHIFT - 1);
/// An entry's bits with the slot.
const SLOT: u64 = (1 << SLOT_BITS) - 1;
const SLOT_BITS: u32 = 16;
/// Slots that a first-level cache may have.
pub(super) const SLOTS: usize = 1 << SLOT_BITS;
/// Bits of a line's number that a tag may have: of addresses in the lower half. It has room for one more.
const TAG_BITS: u32 = 63 - TAG_SHIFT;
/// What is added to the line numbers of a sleeping page before they are compared with tags: more than any tag, and no more than
/// an entry has room for.
const ASLEEP: u64 = 1 << TAG_BITS;
/// The bit of a fetch filter's entry that belongs to a sleeping page: no line's number has it.
const SLEEPS: u64 = ASLEEP << TAG_SHIFT;
/// No page.
const NO_PAGE: u64 = u64::MAX;

/// The entry at `i` that no access matches: its line's index is neither `i` nor the next, where an access that crosses ends, and its
/// high half is no tag's.
const fn never(i: usize) -> u64 {
    1 << 63 | (i as u64 ^ 2) << TAG_SHIFT
}

const fn line(va: u64) -> u64 {
    va >> LINE_SHIFT
}

/// What both filters are: `N` entries, direct-mapped by the line's number, and a stamp a slot behind them, in a table of `WORDS`.
struct Entries<const N: usize, const WORDS: usize> {
    words: Table<AtomicU64, WORDS>,
    /// A word for the entries of a page's lines: which may have a tag.
    used: Box<[AtomicU64]>,
}

impl<const N: usize, const WORDS: usize> Entries<N, WORDS> {
    fn new() -> Self {
        let word = |i| if i < N { never(i) } else { 0 };
        Self {
            words: Table::new(|i| AtomicU64::new(word(i))),
            used: (0..N / 64).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    #[inline]
    fn index(va: Va) -> usize {
        line(va.0) as usize & (N - 1)
    }

    #[inline]
    fn word(&self, i: usize) -> &AtomicU64 {
        &self.words[i & (N - 1)]
    }

    #[inline]
    fn stamps(&self) -> &[AtomicU64; SLOTS] {
        const { assert!(WORDS >= N + SLOTS) };
        self.words[N..]
            .first_chunk()
            .expect("as many words, just asserted")
    }

    /// The first byte of the line that entry `i` has.
    #[inline]
    fn va(&self, i: usize) -> Option<u64> {
        let word = self.word(i).load(Relaxed);
        (word != never(i)).then_some((word & !SLEEPS) >> TAG_SHIFT << LINE_SHIFT)
    }

    /// The slot that entry `i` names.
    #[inline]
    fn slot(&self, i: usize) -> Option<usize> {
        let word = self.word(i).load(Relaxed);
        (word != never(i)).then_some((word & SLOT) as usize)
    }

    #[inline]
    fn set(&self, i: usize, va: u64, slot: usize, write: bool) {
        debug_assert!(line(va) >> TAG_BITS == 0 && slot < SLOTS);
        let used = &self.used[i / 64];
        used.store(used.load(Relaxed) | 1 << (i % 64), Relaxed);
        let writes = if write { 0 } else { NO_WRITES };
        let word = line(va) << TAG_SHIFT | writes | slot as u64;
        self.word(i).store(word, Relaxed);
    }

    #[inline]
    fn clear(&self, i: usize) {
        self.word(i).store(never(i), Relaxed);
    }

    #[inline]
    fn clear_write(&self, i: usize) {
        // Whoever is not the owner may come between two operations of his.
        self.word(i).fetch_or(NO_WRITES, Relaxed);
    }

    /// Calls `f` with the entries that the lines of `va`'s 4 KiB page have.
    fn each_of_page(&self, va: Va, f: impl Fn(usize)) {
        let page = va.page().0;
        let first = Self::index(Va(page));
        let word = &self.used[first / 64];
        let mut left = word.load(Relaxed);
        each_bit(left, |i| {
            if self.va(first + i) == Some(page + ((i as u64) << LINE_SHIFT)) {
                f(first + i);
            }
            if self.va(first + i).is_none() {
                left &= !(1 << i);
            }
        });
        word.store(left, Relaxed);
    }

    /// Calls `f` with all entries that may have a tag.
    fn each(&self, mut f: impl FnMut(usize)) {
        for (n, words) in self.used.chunks(8).enumerate() {
            // Most programs have few of all pages, and this is asked for each page that changes hands.
            if words.iter().fold(0, |any, w| any | w.load(Relaxed)) == 0 {
                continue;
            }
            for (k, word) in words.iter().enumerate() {
                each_bit(word.load(Relaxed), |i| f((n * 8 + k) * 64 + i));
            }
        }
    }

    fn flush(&self) {
        self.each(|i| self.clear(i));
        for word in &self.used {
            word.store(0, Relaxed);
        }
    }
}

/// Whether a line's number fits a tag: those of the upper half of the address space stay out of the filters.
#[inline]
pub(super) fn has_tag(va: Va) -> bool {
    line(va.0) >> TAG_BITS == 0
}

/// A core's filter of data accesses: [`LineFilter::ENTRIES`] words, then the stamps by slot; and for each page a pair of words
/// addend and asleep: what makes host addresses of its virtual ones, so that an access waits for nothing of its line's entry, and 0 if its
/// tags count. Behind these two is whose they are, so that all is in one of the host's lines.
///
/// The entry of an access of `n` bytes at `va` is `(va >> 6) % ENTRIES`, the pair that of `(va >> 12) % PAGES`. A load hits if
/// `entry >> TAG_SHIFT` equals `((va + n - 1) >> 6) + asleep`, a store if `entry >> (TAG_SHIFT - 1)` equals twice that. A hit stores the
/// access's stamp at the slot of the entry's low 16 bits, a store also 1 in the slot's byte of
/// `wrote`, and its byte is at `va + addend`. Where the arrays are in its memory: [`LineFilter::STAMP`] and so on.
pub struct LineFilter {
    /// The arrays.
    entries: Entries<{ Self::ENTRIES }, { Self::WORDS }>,
}

impl LineFilter {
    /// Number of entries; a power of two. Far more than a first level has lines, so that few of these lines want the same entry:
    /// each access to one of two that do is a call.
    pub const ENTRIES: usize = 1 << 16;
    /// Number of pairs; a power of two. Of two pages that want the same one only one has tags.
    pub const PAGES: usize = 1 << 16;
    /// Byte offset of the stamps, 8 bytes each, from [`LineFilter::base_ptr`], where the entries are.
    pub const STAMP: usize = 8 * Self::ENTRIES;
    /// log2 of the bytes from pair to pair.
    pub const PAIR_SHIFT: u32 = 5;
    /// Of the pairs' first words: host address minus guest virtual address, wrapping.
    pub const ADDEND: usize = Self::STAMP + 8 * SLOTS;
    /// Of the pairs' second words.
    pub const ASLEEP: usize = Self::ADDEND + 8;
    /// Of the pages that the pairs are of. Only the core's own thread changes these words and the addends.
    pub(super) const OWNER: usize = Self::ADDEND + 16;
    /// Of a byte a slot, 1 where a store has passed.
    pub const WROTE: usize = Self::ADDEND + (Self::PAGES << Self::PAIR_SHIFT);

    const WORDS: usize = Self::WROTE / 8 + SLOTS / 8;
    /// Of all arrays.
    pub const BYTES: usize = 8 * Self::WORDS;

    /// An empty filter.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // it is always shared with the controller
    pub fn new() -> Arc<Self> {
        let filter = Self {
            entries: Entries::new(),
        };
        for i in 0..Self::PAGES {
            filter.of_pair(Self::OWNER, i).store(NO_PAGE, Relaxed);
        }
        Arc::new(filter)
    }

    /// Its memory, for translated code. Valid as long as the filter.
    #[must_use]
    pub fn base_ptr(&self) -> *const AtomicU64 {
        self.entries.words.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn index(va: Va) -> usize {
        Entries::<{ Self::ENTRIES }, { Self::WORDS }>::index(va)
    }

    #[inline]
    fn page_index(va: Va) -> usize {
        va.pfn() as usize & (Self::PAGES - 1)
    }

    /// A word of pair `i`.
    #[inline]
    fn of_pair(&self, word: usize, i: usize) -> &AtomicU64 {
        &self.entries.words[(word + (i << Self::PAIR_SHIFT)) / 8]
    }

    #[inline]
    fn addend(&self, va: Va) -> &AtomicU64 {
        self.of_pair(Self::ADDEND, Self::page_index(va))
    }

    #[inline]
    fn asleep(&self, va: Va) -> &AtomicU64 {
        self.of_pair(Self::ASLEEP, Self::page_index(va))
    }

    /// The page that has the pair of the page of `va`.
    #[inline]
    fn owner(&self, va: Va) -> &AtomicU64 {
        self.of_pair(Self::OWNER, Self::page_index(va))
    }

    /// Whether the page of `va` is the one that has its pair.
    #[inline]
    fn has_pair(&self, va: Va) -> bool {
        self.owner(va).load(Relaxed) == va.page().0
    }

    /// The slot and the host address of an access of `n` bytes (1 to 64) at `va`, if it would hit.
    #[inline]
    fn find(&self, va: Va, n: u64, write: bool) -> Option<(usize, NonNull<u8>)> {
        let word = self.entries.word(Self::index(va)).load(Relaxed);
        let last = va.0.wrapping_add(n.wrapping_sub(1));
        let asleep = self.asleep(va).load(Relaxed);
        let hit = if write {
            word >> (TAG_SHIFT - 1) == (line(last) + asleep) << 1
        } else {
            word >> TAG_SHIFT == line(last) + asleep
        };
        if !hit {
            return None;
        }
        let addr = va.0.wrapping_add(self.addend(va).load(Relaxed));
        let host = NonNull::new(std::ptr::with_exposed_provenance_mut(addr as usize))?;
        Some(((word & SLOT) as usize, host))
    }

    /// The host address of an access of `n` bytes (1 to 64) at `va`, if it would hit.
    #[must_use]
    #[inline]
    pub fn peek(&self, va: Va, n: u64, write: bool) -> Option<NonNull<u8>> {
        self.find(va, n, write).map(|(_, host)| host)
    }

    /// Notes the use of the line of `va`, which the filter has for it.
    #[inline]
    pub fn stamp_line(&self, va: Va, write: bool, stamp: u64) {
        if let Some(slot) = self.entries.slot(Self::index(va)) {
            self.use_slot(slot, write, stamp);
        }
    }

    #[inline]
    fn use_slot(&self, slot: usize, write: bool, stamp: u64) {
        self.entries.stamps()[slot].store(stamp, Relaxed);
        let (word, bit) = self.wrote_word(slot);
        let before = word.load(Relaxed);
        if write && before & bit == 0 {
            word.store(before | bit, Relaxed);
        }
    }

    /// Where a slot's byte of `wrote` is: its word, and its 1 there.
    #[inline]
    fn wrote_word(&self, slot: usize) -> (&AtomicU64, u64) {
        let word = &self.entries.words[Self::WROTE / 8 + slot % SLOTS / 8];
        (word, 1 << (slot % 8 * 8))
    }

    /// The probe that translated code makes inline: [`LineFilter::peek`], and `stamp` noted, if it hits.
    #[must_use]
    #[inline]
    pub fn hit(&self, va: Va, n: u64, write: bool, stamp: u64) -> Option<NonNull<u8>> {
        let (slot, host) = self.find(va, n, write)?;
        self.use_slot(slot, write, stamp);
        Some(host)
    }

    /// The lines whose tags count, by index: address, whether stores pass, stamp.
    pub fn entries(&self) -> impl Iterator<Item = (Va, bool, u64)> + '_ {
        let all = (0..Self::ENTRIES).filter_map(|i| {
            let (va, slot) = (Va(self.entries.va(i)?), self.entries.slot(i)?);
            let writes = self.entries.word(i).load(Relaxed) & NO_WRITES == 0;
            Some((va, writes, self.entries.stamps()[slot].load(Relaxed)))
        });
        all.filter(|(va, ..)| self.asleep(*va).load(Relaxed) == 0)
    }

    /// Takes the tags of all lines of `va`'s 4 KiB page away, whether it sleeps or not: for whoever changes a translation.
    pub fn drop_va_page(&self, va: Va) {
        self.entries.each_of_page(va, |i| self.entries.clear(i));
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

    /// Lets no store to `va`'s 4 KiB page pass. By frame: `MemCtl::drop_line_writes`.
    pub fn drop_write_tags_of(&self, va: Va) {
        self.entries
            .each_of_page(va, |i| self.entries.clear_write(i));
    }

    /// Takes all tags away.
    pub fn flush(&self) {
        self.entries.flush();
    }

    // ---- the controller's side ----

    /// Takes the tags (or only the right to write) of lines in this range of host addresses away.
    pub(crate) fn drop_hosts(&self, hosts: &Range<u64>, writes_only: bool) {
        self.entries.each(|i| {
            let Some(va) = self.entries.va(i) else { return };
            let host = va.wrapping_add(self.addend(Va(va)).load(Relaxed));
            if hosts.contains(&host) {
                if writes_only {
                    self.entries.clear_write(i);
                } else {
                    self.entries.clear(i);
                }
            }
        });
    }

    /// Makes entry `i` the line's at `va`, which is in `slot`, with the host address of its first byte.
    #[inline]
    pub(super) fn set(&self, i: usize, va: u64, slot: usize, host: NonNull<u8>, write: bool) {
        let host = host.as_ptr().expose_provenance() as u64;
        self.give_pair(Va(va), host.wrapping_sub(va));
        self.entries.set(i, va, slot, write);
    }

    /// Gives `va`'s page its pair, awake.
    #[inline]
    fn give_pair(&self, va: Va, addend: u64) {
        if !self.has_pair(va) || self.addend(va).load(Relaxed) != addend {
            self.take_pair(va, addend);
        }
        self.asleep(va).store(0, Relaxed);
    }

    #[inline(never)]
    fn take_pair(&self, va: Va, addend: u64) {
        // Tags of this page with another addend can be none but those that somebody will take away.
        let (owner, page) = (self.owner(va), va.page().0);
        for gone in [owner.load(Relaxed), page] {
            self.drop_va_page(Va(gone));
        }
        owner.store(page, Relaxed);
        self.addend(va).store(addend, Relaxed);
    }
}

/// A core's filter of instruction fetches: the line is in L1I and its translation in the L1 ITLB. [`FetchFilter::ENTRIES`] words,
/// then the stamps by slot. The entry of a line is `(va >> 6) % ENTRIES`; a fetch hits if `entry >> TAG_SHIFT` equals `va >> 6`, and
/// stores its stamp at the slot of the entry's low 16 bits. The index says what the entry's high half, `va >> FetchFilter::HIGH`, does not.
pub struct FetchFilter {
    entries: Entries<{ Self::ENTRIES }, { Self::WORDS }>,
    /// Host addresses of the lines: by which the controller finds those of a frame.
    hosts: Box<[AtomicU64]>,
}

const _: () = assert!(FetchFilter::ENTRIES >= 1 << (FetchFilter::HIGH - LINE_SHIFT));

impl FetchFilter {
    /// Number of entries; a power of two.
    pub const ENTRIES: usize = 1 << 14;
    /// Byte offset of the stamps, 8 bytes each, from [`FetchFilter::base_ptr`], where the entries are.
    pub const STAMP: usize = 8 * Self::ENTRIES;
    /// What a line's address is shifted by to be the high half of its entry.
    pub const HIGH: u32 = 32 - TAG_SHIFT + LINE_SHIFT;

    const WORDS: usize = Self::ENTRIES + SLOTS;
    /// Of entries and stamps.
    pub const BYTES: usize = 8 * Self::WORDS;

    /// An empty filter.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // it is always shared with the controller
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Entries::new(),
            hosts: (0..Self::ENTRIES).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Its memory, for translated code. Valid as long as the filter.
    #[must_use]
    pub fn base_ptr(&self) -> *const AtomicU64 {
        self.entries.words.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    #[inline]
    pub fn index(va: Va) -> usize {
        Entries::<{ Self::ENTRIES }, { Self::WORDS }>::index(va)
    }

    /// Whether the fetch of the line at `va` hits; its stamp is noted then.
    #[must_use]
    #[inline]
    pub fn hit(&self, va: Va, stamp: u64) -> bool {
        let word = self.entries.word(Self::index(va)).load(Relaxed);
        let hit = word >> TAG_SHIFT == line(va.0);
        if hit {
            self.entries.stamps()[(word & SLOT) as usize].store(stamp, Relaxed);
        }
        hit
    }

    /// The lines whose tags count, by index, and their stamps.
    pub fn entries(&self) -> impl Iterator<Item = (Va, u64)> + '_ {
        (0..Self::ENTRIES).filter_map(|i| {
            let (va, slot) = (Va(self.entries.va(i)?), self.entries.slot(i)?);
            let awake = self.entries.word(i).load(Relaxed) & SLEEPS == 0;
            awake.then(|| (va, self.entries.stamps()[slot].load(Relaxed)))
        })
    }

    /// The tags of `va`'s 4 KiB page do not count: its translation has left the L1 ITLB, and may come back as it is.
    pub fn put_to_sleep(&self, va: Va) {
        self.entries.each_of_page(va, |i| {
            self.entries.word(i).fetch_or(SLEEPS, Relaxed);
        });
    }

    /// The translation of `va`'s 4 KiB page is back in the L1 ITLB, with the rights that it had: its tags count.
    pub fn wake(&self, va: Va) {
        self.entries.each_of_page(va, |i| {
            self.entries.word(i).fetch_and(!SLEEPS, Relaxed);
        });
    }

    /// Takes the tags of `va`'s 4 KiB page away that sleep: it has another translation, or may have.
    pub fn forget_sleeping(&self, va: Va) {
        self.entries.each_of_page(va, |i| {
            if self.entries.word(i).load(Relaxed) & SLEEPS != 0 {
                self.entries.clear(i);
            }
        });
    }

    /// Takes the tags of all lines of `va`'s 4 KiB page away, whether they sleep or not: for whoever changes a translation.
    pub fn drop_va_page(&self, va: Va) {
        self.entries.each_of_page(va, |i| self.entries.clear(i));
    }

    /// Takes all tags away.
    pub fn flush(&self) {
        self.entries.flush();
    }

    // ---- the controller's side ----

    /// Takes the tags of lines in this range of host addresses away.
    pub(crate) fn drop_hosts(&self, hosts: &Range<u64>) {
        self.entries.each(|i| {
            if hosts.contains(&self.hosts[i].load(Relaxed)) {
                self.entries.clear(i);
            }
        });
    }

    /// Host addresses of the lines, by entry.
    pub(super) fn hosts(&self) -> *const u64 {
        self.hosts.as_ptr().cast()
    }

    #[inline]
    pub(super) fn set(&self, i: usize, va: u64, slot: usize, host: NonNull<u8>) {
        self.hosts[i].store(host.addr().get() as u64, Relaxed);
        self.entries.set(i, va, slot, false);
    }
}

/// What both filters do for the first-level cache behind them.
pub(super) trait Filter {
    /// The last uses of the cache's lines, by slot.
    fn stamps(&self) -> &[AtomicU64; SLOTS];
    /// The slot that entry `i` names.
    fn slot(&self, i: usize) -> Option<usize>;
    /// Takes the tag of entry `i` away.
    fn clear(&self, i: usize);
    /// Lets no store pass through entry `i`.
    fn clear_write(&self, i: usize);
    /// Asks the host for entry `i`.
    fn prefetch(&self, i: usize);
    /// Its memory, and the words that say which entries may have a tag.
    fn parts(&self) -> (*const u64, *const u64);
    /// Whether a store has passed to the slot's line, and nobody has asked since.
    fn wrote(&self, _slot: usize) -> bool {
        false
    }
    /// It has been asked.
    fn clear_wrote(&self, _slot: usize) {}
}

/// A [`Filter`] that has `entries`, with what it does otherwise than the trait says.
macro_rules! filter {
    ($filter:ty { $($own:tt)* }) => {
        impl Filter for $filter {
            #[inline]
            fn stamps(&self) -> &[AtomicU64; SLOTS] {
                self.entries.stamps()
            }
            #[inline]
            fn slot(&self, i: usize) -> Option<usize> {
                self.entries.slot(i)
            }
            #[inline]
            fn clear(&self, i: usize) {
                self.entries.clear(i);
            }
            #[inline]
            fn clear_write(&self, i: usize) {
                self.entries.clear_write(i);
            }
            #[inline]
            fn prefetch(&self, i: usize) {
                super::host::prefetch(&raw const *self.entries.word(i));
            }
            fn parts(&self) -> (*const u64, *const u64) {
                let (words, used) = (&self.entries.words, &self.entries.used);
                (words.as_ptr().cast(), used.as_ptr().cast())
            }
            $($own)*
        }
    };
}

filter!(FetchFilter {});
filter!(LineFilter {
    #[inline]
    fn wrote(&self, slot: usize) -> bool {
        let (word, bit) = self.wrote_word(slot);
        word.load(Relaxed) & bit != 0
    }
    #[inline]
    fn clear_wrote(&self, slot: usize) {
        let (word, bit) = self.wrote_word(slot);
        word.store(word.load(Relaxed) & !bit, Relaxed);
    }
});

fn each_bit(mut bits: u64, mut f: impl FnMut(usize)) {
    while bits != 0 {
        f(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [u64; 10] = [
        0,
        0x16,
        63,
        64,
        0x3f_ffc0,
        0xffff_ffff_ffc0,
        1 << 48,
        1 << 63,
        u64::MAX - 63,
        u64::MAX,
    ];

    #[test]
    fn an_empty_filter_has_no_line() {
        let (f, fetches) = (LineFilter::new(), FetchFilter::new());
        for va in ADDRESSES.map(Va) {
            assert!(!fetches.hit(va, 1), "{va}");
            for n in [1, 2, 63, 64] {
                for write in [false, true] {
                    assert_eq!(f.peek(va, n, write), None, "{n} bytes at {va}");
                }
                f.put_to_sleep(va);
                assert_eq!(f.peek(va, n, false), None, "{va}, asleep");
            }
        }
    }

    #[test]
    fn a_line_has_its_own_bytes_and_no_others() {
        let f = LineFilter::new();
        let at = Va(0x7fff_ffff_f000 - 64);
        let host = NonNull::<u8>::dangling();
        f.set(LineFilter::index(at), at.0, 12, host, false);
        assert_eq!(f.peek(at, 64, false), Some(host));
        assert_eq!(f.peek(at, 8, true), None);
        assert_eq!(
            f.hit(at.plus(63), 1, false, 7),
            NonNull::new(host.as_ptr().wrapping_add(63))
        );
        assert_eq!(f.entries().collect::<Vec<_>>(), [(at, false, 7)]);
        for (va, n) in [
            (at.plus(1), 64),
            (at.plus(63), 2),
            (Va(at.0 - 1), 2),
            (Va(at.0 | 1 << 48), 1),
            (Va(at.0 | 1 << 63), 1),
        ] {
            assert_eq!(f.peek(va, n, false), None, "{n} bytes at {va}");
        }
        f.set(LineFilter::index(at), at.0, 12, host, true);
        assert_eq!(f.peek(at, 64, true), Some(host));
        assert_eq!(f.peek(at.plus(1), 64, true), None);
        f.put_to_sleep(at);
        assert_eq!((f.peek(at, 8, true), f.peek(at, 8, false)), (None, None));
        f.wake(at);
        f.drop_write_tags_of(at);
        assert_eq!(
            (f.peek(at, 8, true), f.peek(at, 8, false)),
            (None, Some(host))
        );
        f.drop_va_page(at);
        assert_eq!(f.peek(at, 8, false), None);
    }
}
