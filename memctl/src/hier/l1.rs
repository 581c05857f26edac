//! A first-level cache and the filter in front of it.
//!
//! Invariants:
//! 1. If a filter entry names slot s, it is `entry[s]`. It may have lost its tag since, or have become another slot's.
//! 2. The last use of a line is its slot's stamp: in the filter, where its hits write it, while there is one, else in `stamps`. (LRU;
//!    other orders look at none.)
//! 3. A line is dirty if the cache says so, or the filter has noted a store to it.
//! 4. An entry names a slot only while a hit on it would change nothing but the stamp.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cache::{Cache, Victim};
use super::filter::{Filter, SLOTS};
use crate::model;

pub(super) const NO_ENTRY: u32 = u32::MAX;
/// Ways that are looked at at a time: what sets are padded to.
const WAYS: usize = super::cache::CHUNK;
/// Where the way is below a stamp while they are compared.
const KEY_SHIFT: u32 = WAYS.trailing_zeros();
/// A stamp that is no line's, and newer than any.
const PADDING: u64 = (i64::MAX >> KEY_SHIFT) as u64;
/// Slots that a first-level cache may have.
pub(super) const MOST_SLOTS: u64 = SLOTS as u64;

/// The cache.
pub(super) struct L1<F> {
    pub cache: Cache,
    /// Last uses, as the owner's clock has them; compared as signed numbers, see [`L1::attach`].
    stamps: Box<[AtomicU64]>,
    entry: Box<[u32]>,
    filter: Option<Arc<F>>,
}

impl<F: Filter> L1<F> {
    pub(super) fn new(cfg: &model::Cache, instance: u64) -> Self {
        let cache = Cache::new(cfg, true, instance);
        let stamp = |slot| if cache.is_padding(slot) { PADDING } else { 0 };
        Self {
            stamps: (0..cache.slots())
                .map(|slot| AtomicU64::new(stamp(slot)))
                .collect(),
            entry: vec![NO_ENTRY; cache.slots()].into(),
            filter: None,
            cache,
        }
    }

    /// A filter without tags, for a core whose clock begins again: what the lines were used at moves before its zero.
    pub(super) fn attach(&mut self, filter: Arc<F>) {
        self.detach();
        let lines = || (0..self.entry.len()).filter(|slot| !self.cache.is_padding(*slot));
        let stamp = |slot: usize| self.stamps[slot].load(Relaxed);
        let newest = lines().map(|slot| stamp(slot) as i64).max().unwrap_or(0);
        for slot in lines() {
            let before = stamp(slot).wrapping_sub(newest as u64).wrapping_sub(1);
            self.stamps[slot].store(before, Relaxed);
        }
        for (slot, from) in self.stamps.iter().enumerate() {
            filter.stamps()[slot].store(from.load(Relaxed), Relaxed);
            filter.clear_wrote(slot);
        }
        self.filter = Some(filter);
    }

    pub(super) fn detach(&mut self) {
        for slot in 0..self.entry.len() {
            let dirty = self.take_dirty(slot);
            self.cache.set_dirty(slot, dirty);
            self.forget(slot);
        }
        if let Some(filter) = self.filter.take() {
            for (to, from) in self.stamps.iter().zip(filter.stamps()) {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
    }

    pub(super) fn filter(&self) -> Option<&Arc<F>> {
        self.filter.as_ref()
    }

    /// Filter entries by slot.
    pub(super) fn entries(&mut self) -> *mut u32 {
        self.entry.as_mut_ptr()
    }

    #[inline]
    fn stamps(&self) -> &[AtomicU64] {
        Self::current(self.filter.as_deref(), &self.stamps)
    }

    /// The filter's stamps, or a cache's own while there is none.
    #[inline]
    fn current<'a>(filter: Option<&'a F>, own: &'a [AtomicU64]) -> &'a [AtomicU64] {
        match filter {
            Some(f) => f.stamps(),
            None => own,
        }
    }

    /// Whether a slot's line is dirty.
    #[inline(always)] // in the short way, and small
    pub(super) fn dirty(&self, slot: usize) -> bool {
        self.cache.dirty(slot) || self.filter.as_deref().is_some_and(|f| f.wrote(slot))
    }

    /// The same of a line that leaves the slot, or becomes clean.
    #[inline(always)] // in the short way, and small
    pub(super) fn take_dirty(&self, slot: usize) -> bool {
        let wrote = self.filter.as_deref().filter(|f| f.wrote(slot));
        if let Some(f) = wrote {
            f.clear_wrote(slot);
        }
        wrote.is_some() || self.cache.dirty(slot)
    }

    /// The lines that are there, with their dirtiness.
    pub(super) fn lines(&self) -> impl Iterator<Item = (u64, bool)> + '_ {
        let lines = self.cache.lines();
        lines.map(|(slot, line, _)| (line, self.dirty(slot)))
    }

    /// Asks the host for what entry `i` will need.
    #[inline]
    pub(super) fn prefetch(&self, i: usize) {
        if let Some(f) = &self.filter {
            f.prefetch(i);
        }
    }

    /// Whether an entry, if it is one, names the slot.
    #[inline]
    fn names(f: &F, entry: u32, slot: usize) -> bool {
        entry != NO_ENTRY && f.slot(entry as usize) == Some(slot)
    }

    /// The entry that names the slot, of the filter.
    #[inline]
    fn named(&self, slot: usize) -> Option<(&F, usize)> {
        let (f, i) = (self.filter.as_deref()?, self.entry[slot]);
        Self::names(f, i, slot).then_some((f, i as usize))
    }

    /// Takes the slot's filter entry away.
    #[inline]
    pub(super) fn forget(&mut self, slot: usize) {
        if let Some((f, i)) = self.named(slot) {
            f.clear(i);
        }
        self.entry[slot] = NO_ENTRY;
    }

    /// Lets no store to the slot's line pass the filter.
    pub(super) fn forget_write(&self, slot: usize) {
        if let Some((f, i)) = self.named(slot) {
            f.clear_write(i);
        }
    }

    /// Makes filter entry `i` the slot's. The caller writes it.
    #[inline]
    pub(super) fn claim(&mut self, slot: usize, i: usize) {
        if self.entry[slot] != i as u32 {
            self.forget(slot);
            self.entry[slot] = i as u32;
        }
    }

    /// Notes a use of the line in `slot`, which may end what other lines of its set were entered for.
    #[inline]
    pub(super) fn hit(&mut self, slot: usize, line: u64, stamp: u64) {
        self.cache.hit(slot, line);
        self.used(slot, line, stamp);
    }

    /// The same where stamps are the order.
    #[inline]
    pub(super) fn stamp(&self, slot: usize, stamp: u64) {
        self.stamps()[slot].store(stamp, Relaxed);
    }

    /// Puts a line, by its word, into a slot that another may be in, where stamps are the order and a set has 8 ways at most. `wrote`: the
    /// filter has noted a store to the other.
    #[inline(always)] // in the short way, and small
    pub(super) fn replace(&mut self, set: usize, way: usize, word: u32, stamp: u64, wrote: bool) {
        let slot = set * WAYS + way;
        let entry = std::mem::replace(&mut self.entry[slot], NO_ENTRY);
        match self.filter.as_deref() {
            Some(f) => {
                if wrote {
                    f.clear_wrote(slot);
                }
                if Self::names(f, entry, slot) {
                    f.clear(entry as usize);
                }
                f.stamps()[slot].store(stamp, Relaxed);
            }
            None => self.stamps[slot].store(stamp, Relaxed),
        }
        *self.cache.way_mut(set, way) = word;
    }

    /// Whether the filter has noted a store to the slot's line.
    #[inline(always)] // in the short way, and small
    pub(super) fn wrote(&self, slot: usize) -> bool {
        self.filter.as_deref().is_some_and(|f| f.wrote(slot))
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
        self.stamp(slot, stamp);
    }

    fn unsettle(&mut self, line: u64) {
        for slot in self.cache.slots_of(line) {
            if self.entry[slot] != NO_ENTRY && !self.cache.settled(slot, line) {
                self.forget(slot);
            }
        }
    }

    /// The lowest of 8 ways whose line was used longest ago, behind when that was: [`KEY_SHIFT`] says where.
    #[inline(always)] // in the short way, and small
    fn oldest_of_8(stamps: &[AtomicU64; WAYS]) -> i64 {
        // Without branches: which way it is can't be foretold.
        let key = |w: usize| (stamps[w].load(Relaxed) as i64) << KEY_SHIFT | w as i64;
        let pair = |w| key(w).min(key(w + 1));
        (pair(0).min(pair(2))).min(pair(4).min(pair(6)))
    }

    /// The same of a set of any number of ways.
    fn oldest(stamps: &[AtomicU64]) -> usize {
        let (mut way, mut least) = (0, i64::MAX);
        for (n, stamps) in stamps.as_chunks::<WAYS>().0.iter().enumerate() {
            let key = Self::oldest_of_8(stamps);
            if key >> KEY_SHIFT < least >> KEY_SHIFT {
                (way, least) = (n * WAYS + key as usize % WAYS, key);
            }
        }
        way
    }

    /// A slot for the line; the victim has no filter entry any more.
    #[inline]
    pub(super) fn make_room(&mut self, line: u64) -> (usize, Option<Victim>) {
        let (slot, mut victim) = if self.cache.is_of_8() && self.cache.has_stamps() {
            let set = self.cache.at(line).0;
            let slot = set * WAYS + self.way_for_another(set);
            (slot, self.cache.take(slot, set))
        } else {
            let stamps = Self::current(self.filter.as_deref(), &self.stamps);
            let oldest = |base, stride| Self::oldest(&stamps[base..base + stride]);
            self.cache.make_room(line, oldest)
        };
        let wrote = self.take_dirty(slot);
        if let Some(v) = &mut victim {
            v.dirty |= wrote;
        }
        self.forget(slot);
        (slot, victim)
    }

    /// The way of a set of 8 for another line: the lowest without one, or the one used longest ago.
    #[inline(always)] // in the short way, and small
    pub(super) fn way_for_another(&self, set: usize) -> usize {
        match self.cache.ways(set).free() {
            0 => Self::oldest_of_8(&self.stamps().as_chunks::<WAYS>().0[set]) as usize % WAYS,
            free => free.trailing_zeros() as usize,
        }
    }

    /// Takes the line out, if it is there; the result says whether it was, and dirty.
    #[inline]
    pub(super) fn remove(&mut self, line: u64) -> Option<bool> {
        let slot = self.cache.find(line)?;
        self.forget(slot);
        let dirty = self.take_dirty(slot);
        self.cache.clear(slot);
        Some(dirty)
    }
}
