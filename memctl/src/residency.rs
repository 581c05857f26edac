//! Which private pages are in `plain`, whose they are, and which goes next.
//!
//! Invariants:
//! 1. A page's [`PageState`] names an owner exactly while the page is in the FIFO list, and then that ASID has a key.
//! 2. States change only under the metadata lock; reading one without it is a hint that must be good enough by itself (a hit
//!    that was true an instant ago) or be checked again.
//! 3. A victim is never one of the [`PROTECTED`] pages handed out last: a caller may hold pointers to those.

use std::sync::atomic::{AtomicU32, Ordering};

use sevlab_arch::Asid;

use crate::dram::zeroed_u32;

/// How many of the pages handed out last are safe from eviction by the `resident` limit.
pub(crate) const PROTECTED: usize = 8;

const DIRTY: u32 = 1 << 31;
const OWNER_SHIFT: u32 = 20;
const OWNER_MASK: u32 = 0x7ff << OWNER_SHIFT;
const GENERATION_MASK: u32 = (1 << OWNER_SHIFT) - 1;
const NIL: u32 = u32::MAX;

/// A page's state: dirty, owner + 1 (0: not resident), and a count of fills that makes each stay distinct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageState(u32);

impl PageState {
    /// The ASID whose plaintext is resident.
    #[inline]
    pub(crate) fn owner(self) -> Option<Asid> {
        match (self.0 & OWNER_MASK) >> OWNER_SHIFT {
            0 => None,
            n => Some(Asid(n - 1)),
        }
    }

    /// Whether `plain` is newer than DRAM.
    #[inline]
    pub(crate) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// Whether an access by `asid` needs nothing done.
    #[inline]
    pub(crate) fn hits(self, asid: Asid, write: bool) -> bool {
        self.owner() == Some(asid) && (!write || self.is_dirty())
    }
}

/// The states of all pages.
pub(crate) struct States(Box<[AtomicU32]>);

impl States {
    pub(crate) fn new(pages: usize) -> Self {
        Self(zeroed_u32(pages))
    }

    /// The state, or None beyond the end of DRAM.
    #[inline]
    pub(crate) fn get(&self, pfn: u64) -> Option<PageState> {
        let s = self.0.get(usize::try_from(pfn).ok()?)?;
        Some(PageState(s.load(Ordering::Acquire)))
    }

    /// The state of a page that exists.
    #[inline]
    pub(crate) fn of(&self, pfn: u64) -> PageState {
        PageState(self.0[pfn as usize].load(Ordering::Acquire))
    }

    fn set(&self, pfn: u64, s: u32) {
        self.0[pfn as usize].store(s, Ordering::Release);
    }

    pub(crate) fn set_owner(&self, pfn: u64, asid: Asid, dirty: bool) {
        let generation = self.of(pfn).0.wrapping_add(1) & GENERATION_MASK;
        let owner = (asid.0 + 1) << OWNER_SHIFT & OWNER_MASK;
        self.set(pfn, generation | owner | if dirty { DIRTY } else { 0 });
    }

    pub(crate) fn set_dirty(&self, pfn: u64, dirty: bool) {
        let s = self.of(pfn).0 & !DIRTY;
        self.set(pfn, if dirty { s | DIRTY } else { s });
    }

    /// The page's bytes are elsewhere from now on: as if it had a new stay.
    pub(crate) fn moved(&self, pfn: u64) {
        let s = self.of(pfn).0;
        let generation = s.wrapping_add(1) & GENERATION_MASK;
        self.set(pfn, s & !GENERATION_MASK | generation);
    }

    pub(crate) fn set_absent(&self, pfn: u64) {
        self.set(pfn, self.of(pfn).0 & GENERATION_MASK);
    }
}

/// The resident pages, oldest first.
pub(crate) struct Residency {
    /// `[previous, next]` of each page; meaningful only in the list.
    links: Box<[[u32; 2]]>,
    oldest: u32,
    newest: u32,
    len: usize,
    limit: Option<usize>,
    recent: [u32; PROTECTED],
    at: usize,
}

impl Residency {
    pub(crate) fn new(pages: usize, limit: Option<usize>) -> Self {
        Self {
            links: vec![[0; 2]; pages].into(),
            oldest: NIL,
            newest: NIL,
            len: 0,
            limit,
            recent: [NIL; PROTECTED],
            at: 0,
        }
    }

    /// Notes that a pointer to the page is being handed out.
    #[inline]
    pub(crate) fn note(&mut self, pfn: u64) {
        if self.limit.is_some() && self.recent[self.at] != pfn as u32 {
            self.at = (self.at + 1) % PROTECTED;
            self.recent[self.at] = pfn as u32;
        }
    }

    /// The page to evict before another comes in, if the limit asks for one.
    pub(crate) fn victim(&self) -> Option<u64> {
        if self.len < self.limit? {
            return None;
        }
        self.iter().find(|&p| !self.recent.contains(&(p as u32)))
    }

    pub(crate) fn push(&mut self, pfn: u64) {
        let p = pfn as u32;
        self.links[p as usize] = [self.newest, NIL];
        if self.newest == NIL {
            self.oldest = p;
        } else {
            self.links[self.newest as usize][1] = p;
        }
        self.newest = p;
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, pfn: u64) {
        let [prev, next] = self.links[pfn as usize];
        if prev == NIL {
            self.oldest = next;
        } else {
            self.links[prev as usize][1] = next;
        }
        if next == NIL {
            self.newest = prev;
        } else {
            self.links[next as usize][0] = prev;
        }
        self.len -= 1;
    }

    /// The resident pages, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let mut p = self.oldest;
        std::iter::from_fn(move || {
            let here = p;
            (here != NIL).then(|| {
                p = self.links[here as usize][1];
                u64::from(here)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_order_survives_removals() {
        let mut r = Residency::new(16, None);
        for p in [3, 5, 7, 9] {
            r.push(p);
        }
        r.remove(3);
        r.remove(7);
        r.push(3);
        assert_eq!(r.iter().collect::<Vec<_>>(), [5, 9, 3]);
        r.remove(3);
        r.remove(5);
        r.remove(9);
        assert_eq!(r.iter().next(), None);
        r.push(1);
        assert_eq!(r.iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn the_victim_is_the_oldest_that_nobody_just_got() {
        let mut r = Residency::new(64, Some(12));
        for p in 0..12 {
            r.push(p);
            r.note(p);
        }
        assert_eq!(r.victim(), Some(0));
        r.note(0); // a hit on the oldest
        assert_eq!(r.victim(), Some(1));
        r.remove(1);
        assert_eq!(r.victim(), None, "below the limit");
    }

    #[test]
    fn states_hold_every_asid() {
        let s = States::new(2);
        for asid in [0, 1, 1023].map(Asid) {
            s.set_owner(1, asid, false);
            assert!(s.of(1).hits(asid, false) && !s.of(1).hits(asid, true));
            s.set_dirty(1, true);
            assert!(s.of(1).hits(asid, true) && !s.of(1).hits(Asid(asid.0 ^ 1), true));
            s.set_absent(1);
            assert!(!s.of(1).hits(asid, false) && !s.of(1).hits(Asid(u32::MAX), false));
        }
        assert_eq!(s.get(2), None);
        assert_eq!(s.get(u64::MAX), None);
    }
}
