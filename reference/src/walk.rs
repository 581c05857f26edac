//! Page walks: what the walk caches spare of a walk from CR3, and a walk of our own to see that it is one.

use sevlab_memctl::Domain;

use crate::counts::Kind;
use crate::tlb::CoreTlbs;

/// A table entry that a walk from CR3 reads if there are no walk caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ref {
    /// Level of the guest table, or of the one for whose address nested tables are read; 0: for the final address.
    pub guest: u8,
    /// Level of the nested table; 0: it is the guest's table.
    pub nested: u8,
    /// Guest physical address: of the guest's entry, or what nested tables translate.
    pub gpa: u64,
    /// System-physical address of the entry.
    pub spa: u64,
    /// Its accessed or dirty bit is set.
    pub changes: bool,
}

/// A walk, as it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk<'a> {
    /// For which address.
    pub va: u64,
    /// What is read.
    pub refs: &'a [Ref],
    /// The domain of guest tables.
    pub guest: Domain,
    /// Level of the guest's leaf.
    pub leaf: u8,
    /// Where the page's RMP entry is.
    pub rmp: Option<u64>,
}

/// An access that is left of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// `Walk`, `WalkWrite` or `Rmp`.
    pub kind: Kind,
    /// Where.
    pub spa: u64,
    /// Through which domain.
    pub domain: Domain,
}

/// Bits of an address above the table that an entry of `level` leads to.
fn prefix(va: u64, level: u8) -> u64 {
    va >> (3 + 9 * u32::from(level))
}

/// What is really accessed, given the walk caches, which learn.
pub fn steps(tlbs: &mut CoreTlbs, walk: &Walk<'_>) -> Vec<Step> {
    // The deepest table that is known.
    let mut start = 4;
    for level in [2, 3, 4] {
        if tlbs.tables[usize::from(level) - 2].has(prefix(walk.va, level)) {
            start = level - 1;
            break;
        }
    }
    let mut steps = Vec::new();
    for level in [4, 3, 2, 1, 0] {
        let of_level: Vec<&Ref> = walk.refs.iter().filter(|r| r.guest == level).collect();
        let skipped = level > start;
        // Its address.
        let nested: Vec<&Ref> = of_level.iter().filter(|r| r.nested != 0).copied().collect();
        if let Some(first) = nested.first() {
            let known = !skipped && tlbs.nested.has(first.gpa >> 12);
            for r in &nested {
                if r.changes || !(skipped || known) {
                    steps.push(step(r, Domain::Shared));
                }
            }
            if !skipped && !known && level != 0 {
                tlbs.nested.put(first.gpa >> 12);
            }
        }
        // The entry itself.
        for r in of_level.iter().filter(|r| r.nested == 0) {
            if r.changes || !skipped {
                steps.push(step(r, walk.guest));
            }
            if !skipped && level >= 2 && level != walk.leaf {
                tlbs.tables[usize::from(level) - 2].put(prefix(walk.va, level));
            }
        }
    }
    if let Some(spa) = walk.rmp {
        steps.push(Step {
            kind: Kind::Rmp,
            spa,
            domain: Domain::Shared,
        });
    }
    steps
}

fn step(r: &Ref, domain: Domain) -> Step {
    Step {
        kind: if r.changes {
            Kind::WalkWrite
        } else {
            Kind::Walk
        },
        spa: r.spa,
        domain,
    }
}

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where the tables begin, and how to read them.
pub struct Tables<'a> {
    /// CR3's address.
    pub root: u64,
    /// The mask of the C-bit.
    pub c_mask: u64,
    /// The nested tables' root; `None`: guest physical is system physical.
    pub nested: Option<u64>,
    /// The domain of guest tables.
    pub guest: Domain,
    /// Where the RMP begins, if there is one.
    pub rmp: Option<u64>,
    /// Reads an entry, changing nothing.
    pub read: &'a dyn Fn(Domain, u64) -> u64,
}

/// Bytes before the RMP's first entry, and of an entry.
const RMP_HEAD: u64 = 0x4000;
const RMP_ENTRY: u64 = 16;

impl Tables<'_> {
    fn address(&self, entry: u64) -> u64 {
        entry & ADDRESS & !self.c_mask
    }

    /// The entries that lead to `va`, guest and nested, as (guest level, nested level, system-physical address). `None`:
    /// something on the way is not present.
    #[must_use]
    pub fn walk(&self, va: u64) -> Option<Vec<(u8, u8, u64)>> {
        self.follow(va).map(|(found, _)| found)
    }

    /// The RMP entry that is read for `va`: that of its frame, or of the first of 2 MiB if the nested page has that size.
    #[must_use]
    pub fn rmp_entry(&self, va: u64) -> Option<u64> {
        let base = self.rmp? + RMP_HEAD;
        let (found, spa) = self.follow(va)?;
        let frame = match found.last() {
            Some((0, 2.., _)) => spa >> 21 << 9,
            _ => spa >> 12,
        };
        Some(base + frame * RMP_ENTRY)
    }

    /// The entries, and the system-physical address that they lead to.
    #[allow(clippy::type_complexity)] // one private step
    fn follow(&self, va: u64) -> Option<(Vec<(u8, u8, u64)>, u64)> {
        let mut found = Vec::new();
        let mut table = self.address(self.root);
        let mut level = 4;
        loop {
            let gpa = table + (va >> (3 + 9 * level) & 511) * 8;
            let spa = self.translate(gpa, level as u8, &mut found)?;
            found.push((level as u8, 0, spa));
            let entry = (self.read)(self.guest, spa);
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || (level < 4 && entry & LARGE != 0) {
                let inside = (1u64 << (3 + 9 * level)) - 1;
                let page = (self.address(entry) & !inside) | (va & inside);
                let spa = self.translate(page, 0, &mut found)?;
                return Some((found, spa));
            }
            table = self.address(entry);
            level -= 1;
        }
    }

    fn translate(&self, gpa: u64, guest: u8, found: &mut Vec<(u8, u8, u64)>) -> Option<u64> {
        let Some(root) = self.nested else {
            return Some(gpa);
        };
        let (mut table, mut level) = (self.address(root), 4);
        loop {
            let spa = table + (gpa >> (3 + 9 * level) & 511) * 8;
            found.push((guest, level as u8, spa));
            let entry = (self.read)(Domain::Shared, spa);
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || (level < 4 && entry & LARGE != 0) {
                let inside = (1u64 << (3 + 9 * level)) - 1;
                return Some((self.address(entry) & !inside) | (gpa & inside));
            }
            table = self.address(entry);
            level -= 1;
        }
    }
}
