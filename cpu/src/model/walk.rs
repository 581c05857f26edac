//! What a TLB miss reads: the two-dimensional walk's memory references.
//!
//! The walk itself is the MMU's ([`crate::mmu`]), which is asked to go all the way from CR3, past its own caches, and to note
//! every table entry that it reads ([`WalkLog`]; [`Steps`] where it has been before, and no bit is to be set). From these the model's walk caches take away what hardware would not read:
//! - the guest walk cache: by level 4, 3 and 2, the table that an entry of that level points to, by the linear address bits
//!   that lead to it. The deepest known table is where the walk begins.
//! - the nested cache: guest physical pages whose nested translation is known. Only pages that hold guest page tables enter
//!   it; the final address is looked up in it.
//!
//! Both are filled in the course of the walk. An entry whose accessed or dirty bit the walk sets is always accessed. A walk that
//! faults is no walk of the model: it leaves no trace there.

use sevlab_arch::Spa;
use sevlab_memctl::PageSize;

use super::tlb::Lru;
use crate::mmu::{Seen, Steps};

/// A table entry that a walk from CR3 reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkRef {
    /// Level of the guest table (4 to 1) that is read, or for whose address nested tables are; 0: for the final address.
    pub guest: u8,
    /// Level of the nested table (4 to 1); 0: the guest table itself.
    pub nested: u8,
    /// Guest physical address: of the guest table's entry, or what the nested tables translate.
    pub gpa: u64,
    /// Where the entry is.
    pub spa: Spa,
    /// The walk sets bits in it.
    pub changes: bool,
}

/// What a walk notes.
#[derive(Clone, Default)]
pub(crate) struct WalkLog {
    pub(crate) refs: Vec<WalkRef>,
    /// The guest level that nested tables are walked for now.
    pub(crate) guest: u8,
    /// Level of the guest's leaf; 0 if paging is off.
    pub(crate) leaf: u8,
    /// Size of the nested page of the final address.
    pub(crate) nested: Option<PageSize>,
    /// Guest entries as they were read.
    pub(crate) seen: Seen,
}

impl WalkLog {
    pub(crate) fn note(&mut self, nested: u8, gpa: u64, spa: u64, changes: bool) {
        self.refs.push(WalkRef {
            guest: self.guest,
            nested,
            gpa,
            spa: Spa(spa),
            changes,
        });
    }

    /// The guest entry at `spa` has bits set.
    pub(crate) fn changed(&mut self, spa: u64) {
        for r in &mut self.refs {
            if r.nested == 0 && r.spa.0 == spa {
                r.changes = true;
            }
        }
    }
}

/// The walk caches of a core.
pub(crate) struct WalkCaches {
    /// By level 2, 3, 4.
    guest: [Lru; 3],
    nested: Lru,
}

impl WalkCaches {
    pub(crate) fn new(guest: u32, nested: u32) -> Self {
        Self {
            guest: [Lru::new(guest), Lru::new(guest), Lru::new(guest)],
            nested: Lru::new(nested),
        }
    }

    /// Forgets guest tables.
    pub(crate) fn flush_guest(&mut self) {
        self.guest.iter_mut().for_each(Lru::flush);
    }

    /// Forgets nested translations.
    pub(crate) fn flush_nested(&mut self) {
        self.nested.flush();
    }

    /// The guest level that a walk for `va` begins at.
    fn start(&mut self, va: u64) -> usize {
        (2..=4)
            .find(|level| self.guest[level - 2].hit(prefix(va, *level)))
            .map_or(4, |level| level - 1)
    }

    /// Keeps of a walk for `va` what is really read, in `log`.
    pub(crate) fn filter(&mut self, va: u64, log: &mut WalkLog) {
        let start = self.start(va);
        // Whether the nested entries for the guest level in hand are skipped.
        let mut known = None;
        let leaf = log.leaf;
        let (guest, nested) = (&mut self.guest, &mut self.nested);
        log.refs.retain(|r| {
            let level = usize::from(r.guest);
            if level > start {
                return r.changes;
            }
            if r.nested != 0 {
                let skip = match known {
                    Some((of, skip)) if of == r.guest => skip,
                    _ => {
                        let skip = nested.hit(r.gpa >> 12);
                        known = Some((r.guest, skip));
                        if !skip && r.guest != 0 {
                            nested.put(r.gpa >> 12);
                        }
                        skip
                    }
                };
                return r.changes || !skip;
            }
            if r.guest != leaf && level >= 2 {
                guest[level - 2].put(prefix(va, level));
            }
            true
        });
    }

    /// The same of a walk made again: calls `read` with what is really read, and whether that is a nested entry.
    pub(crate) fn filter_again(&mut self, va: u64, steps: &Steps, mut read: impl FnMut(u64, bool)) {
        let start = self.start(va);
        let [tables @ .., page] = steps;
        for (step, level) in tables.iter().zip([4, 3, 2, 1]).skip(4 - start) {
            if !step.nested().is_empty() && !self.nested.hit(step.gpa >> 12) {
                self.nested.put(step.gpa >> 12);
                step.nested().iter().for_each(|spa| read(*spa, true));
            }
            if level >= 2 {
                self.guest[level - 2].put(prefix(va, level));
            }
            read(step.entry, false);
        }
        if !page.nested().is_empty() && !self.nested.hit(page.gpa >> 12) {
            page.nested().iter().for_each(|spa| read(*spa, true));
        }
    }
}

/// Of a level: the bits of an address that choose an entry of it.
const fn prefix(va: u64, level: usize) -> u64 {
    va >> (12 + 9 * (level - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk for `va` with 4 KiB pages in both dimensions, tables at made-up addresses.
    fn full(va: u64) -> WalkLog {
        let mut log = WalkLog {
            leaf: 1,
            ..WalkLog::default()
        };
        for guest in [4u8, 3, 2, 1, 0] {
            log.guest = guest;
            let shift = 12 + 9 * u32::from(guest);
            let table = u64::from(guest) << 40 | va >> shift << 12;
            for nested in [4, 3, 2, 1] {
                log.note(nested, table, u64::from(nested) << 50 | table, false);
            }
            if guest != 0 {
                log.note(0, table, table, false);
            }
        }
        log
    }

    fn read(c: &mut WalkCaches, va: u64) -> usize {
        let mut log = full(va);
        assert_eq!(log.refs.len(), 24);
        c.filter(va, &mut log);
        log.refs.len()
    }

    #[test]
    fn walk_caches_take_away_what_they_know() {
        let mut c = WalkCaches::new(2, 16);
        assert_eq!(read(&mut c, 0x7000_0000_0000), 24);
        // The same last-level table, whose nested translation is known; the final one is not kept.
        assert_eq!(read(&mut c, 0x7000_0000_1000), 1 + 4);
        assert_eq!(read(&mut c, 0x7000_0000_1000), 1 + 4);
        // Another last-level table, from the same second-level one.
        assert_eq!(read(&mut c, 0x7000_0020_0000), 1 + (4 + 1) + 4);
        c.flush_guest();
        // All four guest entries, nested translations of all tables known.
        assert_eq!(read(&mut c, 0x7000_0000_0000), 4 + 4);
        c.flush_nested();
        assert_eq!(read(&mut c, 0x7000_0000_0000), (4 + 1) + 4);
        // Without caches.
        let mut c = WalkCaches::new(0, 0);
        assert_eq!(read(&mut c, 0x7000_0000_0000), 24);
        assert_eq!(read(&mut c, 0x7000_0000_0000), 24);
    }

    #[test]
    fn what_is_written_is_accessed_even_where_it_is_known() {
        let mut c = WalkCaches::new(2, 16);
        read(&mut c, 0x1000);
        let mut log = full(0x1000);
        log.refs[0].changes = true; // level 4's nested table, which the walk skips
        let spa = log.refs[19].spa;
        assert_eq!((log.refs[19].guest, log.refs[19].nested), (1, 0));
        log.changed(spa.0);
        c.filter(0x1000, &mut log);
        let kept: Vec<_> = log
            .refs
            .iter()
            .map(|r| (r.guest, r.nested, r.changes))
            .collect();
        assert_eq!(
            kept,
            [
                (4, 4, true),
                (1, 0, true),
                (0, 4, false),
                (0, 3, false),
                (0, 2, false),
                (0, 1, false)
            ]
        );
    }
}
