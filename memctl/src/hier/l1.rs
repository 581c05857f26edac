//! A first-level cache and the filter in front of it.
//!
//! Invariants:
//! 1. `entry` and `owner` are inverse: slot s has filter entry i exactly if entry i is slot s's.
//! 2. The last use of a line is its filter entry's stamp if it has an entry, else `stamps`, which is never newer than that. (LRU;
//!    other orders use neither.)
//! 3. A slot has an entry with a tag only while a hit on it would change nothing but the stamp.

use std::sync::Arc;

use super::cache::{Cache, Victim};
use super::filter::{FetchFilter, LineFilter};
use crate::model;

/// What both filters do for the controller.
pub(super) trait Filter {
    const ENTRIES: usize;
    fn stamp(&self, i: usize) -> u64;
    fn clear(&self, i: usize);
    fn prefetch(&self, i: usize);
}

impl Filter for LineFilter {
    const ENTRIES: usize = LineFilter::ENTRIES;
    #[inline]
    fn stamp(&self, i: usize) -> u64 {
        LineFilter::stamp(self, i)
    }
    #[inline]
    fn clear(&self, i: usize) {
        LineFilter::clear(self, i);
    }
    #[inline]
    fn prefetch(&self, i: usize) {
        super::host::prefetch(LineFilter::at(self, i));
    }
}

impl Filter for FetchFilter {
    const ENTRIES: usize = FetchFilter::ENTRIES;
    #[inline]
    fn stamp(&self, i: usize) -> u64 {
        FetchFilter::stamp(self, i)
    }
    #[inline]
    fn clear(&self, i: usize) {
        FetchFilter::clear(self, i);
    }
    #[inline]
    fn prefetch(&self, i: usize) {
        super::host::prefetch(FetchFilter::at(self, i));
    }
}

const NO_ENTRY: u32 = u32::MAX;
const NO_SLOT: u16 = u16::MAX;
/// Ways that are looked at at a time: what sets are padded to.
const WAYS: usize = super::cache::CHUNK;
/// A stamp that is no line's, and newer than any.
const PADDING: u64 = i64::MAX as u64;
/// Slots that a first-level cache may have.
pub(super) const MOST_SLOTS: u64 = NO_SLOT as u64;

/// The cache.
pub(super) struct L1<F> {
    pub cache: Cache,
    /// Last uses, as the owner's clock has them; compared as signed numbers, see [`L1::attach`].
    stamps: Box<[u64]>,
    entry: Box<[u32]>,
    owner: Box<[u16]>,
    filter: Option<Arc<F>>,
}

impl<F: Filter> L1<F> {
    pub(super) fn new(cfg: &model::Cache, instance: u64) -> Self {
        let cache = Cache::new(cfg, true, instance);
        let stamp = |slot| if cache.is_padding(slot) { PADDING } else { 0 };
        Self {
            stamps: (0..cache.slots()).map(stamp).collect(),
            entry: vec![NO_ENTRY; cache.slots()].into(),
            owner: vec![NO_SLOT; F::ENTRIES].into(),
            filter: None,
            cache,
        }
    }

    /// A filter without tags, for a core whose clock begins again: what the lines were used at moves before its zero.
    pub(super) fn attach(&mut self, filter: Arc<F>) {
        self.detach();
        let (stamps, cache) = (&mut self.stamps, &self.cache);
        let lines = stamps.iter_mut().enumerate();
        let mut lines: Vec<_> = lines.filter(|(slot, _)| !cache.is_padding(*slot)).collect();
        let newest = lines.iter().map(|(_, s)| **s as i64).max().unwrap_or(0);
        for (_, s) in &mut lines {
            **s = s.wrapping_sub(newest as u64).wrapping_sub(1);
        }
        self.filter = Some(filter);
    }

    pub(super) fn detach(&mut self) {
        for slot in 0..self.entry.len() {
            self.forget(slot);
        }
        self.filter = None;
    }

    pub(super) fn filter(&self) -> Option<&Arc<F>> {
        self.filter.as_ref()
    }

    /// The filter entry of a slot.
    #[inline]
    pub(super) fn entry(&self, slot: usize) -> Option<usize> {
        let i = self.entry[slot];
        (i != NO_ENTRY).then_some(i as usize)
    }

    /// Asks the host for what entry `i` will need.
    #[inline]
    pub(super) fn prefetch(&self, i: usize) {
        super::host::prefetch(&raw const self.owner[i]);
        if let Some(f) = &self.filter {
            f.prefetch(i);
        }
    }

    /// Takes the slot's filter entry away.
    #[inline]
    pub(super) fn forget(&mut self, slot: usize) {
        let Some(i) = self.entry(slot) else { return };
        if let Some(f) = &self.filter {
            self.stamps[slot] = f.stamp(i);
            f.clear(i);
        }
        self.entry[slot] = NO_ENTRY;
        self.owner[i] = NO_SLOT;
    }

    /// Takes the slot's filter entry away from a line that was used just now.
    #[inline]
    pub(super) fn leave_filter(&mut self, slot: usize, stamp: u64) {
        self.forget(slot);
        self.stamps[slot] = stamp;
    }

    /// Makes filter entry `i` the slot's. The caller writes it.
    #[inline]
    pub(super) fn claim(&mut self, slot: usize, i: usize) {
        if self.owner[i] == slot as u16 {
            return;
        }
        if self.owner[i] != NO_SLOT {
            self.forget(usize::from(self.owner[i]));
        }
        self.forget(slot);
        self.owner[i] = slot as u16;
        self.entry[slot] = i as u32;
    }

    /// Notes a use of the line in `slot`, which may end what other lines of its set were entered for.
    #[inline]
    pub(super) fn hit(&mut self, slot: usize, line: u64, stamp: u64) {
        self.cache.hit(slot, line);
        self.used(slot, line, stamp);
    }

    /// Puts the line into a free slot.
    #[inline]
    pub(super) fn insert(&mut self, slot: usize, line: u64, dirty: bool, stamp: u64) {
        self.cache.insert(slot, line, dirty);
        self.used(slot, line, stamp);
    }

    #[inline]
    fn used(&mut self, slot: usize, line: u64, stamp: u64) {
        if self.cache.touches_matter() {
            self.unsettle(line);
        }
        // What is in the slot's entry, if it has one, is older: the caller writes it anew or takes it away.
        self.stamps[slot] = stamp;
    }

    fn unsettle(&mut self, line: u64) {
        for slot in self.cache.slots_of(line) {
            if self.entry[slot] != NO_ENTRY && !self.cache.settled(slot, line) {
                self.forget(slot);
            }
        }
    }

    /// The lowest of 8 ways whose line was used longest ago, and when. A line's last use is in its filter entry, if it has one; what
    /// `stamps` has of it is older, and is brought up to date only where it is the least: mostly that is the one.
    #[inline]
    fn oldest_of_8(
        stamps: &mut [u64; WAYS],
        entry: &[u32; WAYS],
        filter: Option<&F>,
    ) -> (usize, i64) {
        loop {
            let (mut way, mut least) = (0, i64::MAX);
            for (w, used) in stamps.iter().enumerate() {
                let older = (*used as i64) < least;
                way = if older { w } else { way };
                least = if older { *used as i64 } else { least };
            }
            let i = entry[way];
            let Some(f) = filter.filter(|_| i != NO_ENTRY) else {
                return (way, least);
            };
            let last = f.stamp(i as usize % F::ENTRIES);
            if last as i64 == least {
                return (way, least);
            }
            stamps[way] = last;
        }
    }

    /// The same of a set of any number of ways.
    fn oldest(
        stamps: &mut [u64],
        entry: &[u32],
        filter: Option<&F>,
        base: usize,
        stride: usize,
    ) -> usize {
        let stamps = stamps[base..base + stride].as_chunks_mut::<WAYS>().0;
        let entry = entry[base..base + stride].as_chunks::<WAYS>().0.iter();
        let (mut way, mut least) = (0, i64::MAX);
        for (n, (stamps, entry)) in stamps.iter_mut().zip(entry).enumerate() {
            let (w, used) = Self::oldest_of_8(stamps, entry, filter);
            if used < least {
                (way, least) = (n * WAYS + w, used);
            }
        }
        way
    }

    /// A slot for the line; the victim has no filter entry any more.
    #[inline]
    pub(super) fn make_room(&mut self, line: u64) -> (usize, Option<Victim>) {
        let (stamps, entry, filter) = (&mut self.stamps, &self.entry, self.filter.as_deref());
        let oldest = |base, stride| Self::oldest(stamps, entry, filter, base, stride);
        let (slot, victim) = self.cache.make_room(line, oldest);
        self.forget(slot);
        (slot, victim)
    }

    /// What [`L1::make_room`] would say, with nothing changed that matters, of sets of 8 ways at most; `None` if only that can say it.
    #[inline]
    pub(super) fn least_of_8(&mut self, line: u64) -> Option<(usize, Option<Victim>)> {
        let (stamps, entry, filter) = (&mut self.stamps, &self.entry, self.filter.as_deref());
        self.cache.room_of_8(line, |set| {
            let stamps = &mut stamps.as_chunks_mut::<WAYS>().0[set];
            let entry = &entry.as_chunks::<WAYS>().0[set];
            Self::oldest_of_8(stamps, entry, filter).0
        })
    }

    /// Takes the line in a slot out, with its filter entry.
    #[inline]
    pub(super) fn empty(&mut self, slot: usize) {
        self.forget(slot);
        self.cache.clear(slot);
    }

    /// Takes the line out, if it is there; the result says whether it was, and dirty.
    #[inline]
    pub(super) fn remove(&mut self, line: u64) -> Option<bool> {
        let slot = self.cache.find(line)?;
        self.forget(slot);
        let dirty = self.cache.dirty(slot);
        self.cache.clear(slot);
        Some(dirty)
    }
}
