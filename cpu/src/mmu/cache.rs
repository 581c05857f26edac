//! Walk caches: what a fill may skip. Small, direct-mapped, flushed as a whole.

use sevlab_arch::{PAGE_SHIFT, PAGE_SIZE, Spa};
use sevlab_memctl::PageSize;

use super::{Access, Translation, pte};

/// No region has this tag.
const EMPTY: u64 = u64::MAX;

/// What one 2 MiB region of guest physical memory leads to.
#[derive(Clone, Copy)]
pub(crate) struct NestedRegion {
    tag: u64,
    /// Base of the 2 MiB of memory, or of the last-level table.
    pub(crate) spa: u64,
    pub(crate) leaf: bool,
    pub(crate) write: bool,
    pub(crate) exec: bool,
    /// The leaf's dirty bit is set.
    pub(crate) dirty: bool,
}

impl NestedRegion {
    const NONE: Self = Self {
        tag: EMPTY,
        spa: 0,
        leaf: false,
        write: false,
        exec: false,
        dirty: false,
    };
}

const NESTED: usize = 128;

/// Nested translations by 2 MiB region.
pub(crate) struct NestedCache(Box<[NestedRegion; NESTED]>);

impl NestedCache {
    pub(crate) fn new() -> Self {
        Self(Box::new([NestedRegion::NONE; NESTED]))
    }
    pub(crate) fn get(&self, gpa: u64) -> Option<NestedRegion> {
        let tag = gpa >> 21;
        let e = self.0[tag as usize % NESTED];
        (e.tag == tag).then_some(e)
    }
    pub(crate) fn put(
        &mut self,
        gpa: u64,
        spa: u64,
        leaf: bool,
        write: bool,
        exec: bool,
        dirty: bool,
    ) {
        let tag = gpa >> 21;
        self.0[tag as usize % NESTED] = NestedRegion {
            tag,
            spa,
            leaf,
            write,
            exec,
            dirty,
        };
    }
    pub(crate) fn flush(&mut self) {
        self.0.fill(NestedRegion::NONE);
    }
}

/// Rights accumulated down the levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) exec: bool,
}

impl Rights {
    /// What is left of them below an entry.
    pub(crate) const fn and(self, entry: u64) -> Self {
        Self {
            write: self.write && entry & pte::W != 0,
            user: self.user && entry & pte::U != 0,
            exec: self.exec && entry & pte::NX == 0,
        }
    }
}

/// A guest table reached by a walk: where the next step begins.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    tag: u64,
    pub(crate) gpa: u64,
    pub(crate) spa: u64,
    /// Size of the nested page it lies in, for the RMP check.
    pub(crate) size: Option<PageSize>,
    pub(crate) rights: Rights,
}

impl Table {
    pub(crate) const fn new(
        gpa: u64,
        (spa, size): (Spa, Option<PageSize>),
        rights: Rights,
    ) -> Self {
        Self {
            tag: EMPTY,
            gpa,
            spa: spa.0,
            size,
            rights,
        }
    }
}

const LAST: usize = 64;
const MIDDLE: usize = 16;

/// Guest tables by the linear region they map: last-level ones (2 MiB) and those above (1 GiB).
pub(crate) struct WalkCache {
    last: Box<[Table; LAST]>,
    middle: Box<[Table; MIDDLE]>,
}

impl WalkCache {
    pub(crate) fn new() -> Self {
        let none = Table::new(
            0,
            (Spa(0), None),
            Rights {
                write: false,
                user: false,
                exec: false,
            },
        );
        Self {
            last: Box::new([none; LAST]),
            middle: Box::new([none; MIDDLE]),
        }
    }
    /// The deepest known table on `va`'s path, with its level.
    pub(crate) fn get(&self, va: u64) -> Option<(u32, Table)> {
        let t = &self.last[(va >> 21) as usize % LAST];
        if t.tag == va >> 21 {
            return Some((1, *t));
        }
        let t = &self.middle[(va >> 30) as usize % MIDDLE];
        (t.tag == va >> 30).then_some((2, *t))
    }
    /// Remembers the table of `level` on `va`'s path; only levels 1 and 2 are kept.
    pub(crate) fn put(&mut self, va: u64, level: u32, t: Table) {
        match level {
            1 => self.last[(va >> 21) as usize % LAST] = Table { tag: va >> 21, ..t },
            2 => self.middle[(va >> 30) as usize % MIDDLE] = Table { tag: va >> 30, ..t },
            _ => {}
        }
    }
    pub(crate) fn flush(&mut self) {
        for t in self.last.iter_mut().chain(self.middle.iter_mut()) {
            t.tag = EMPTY;
        }
    }
}

const PAGES: usize = 1024;

/// Translations of pages that memory gives no host address for (cache mode `none`), which the fast TLB therefore
/// can't hold: what a hardware TLB would spare such accesses is the walk, not the cipher.
pub(crate) struct PageCache {
    entries: Box<[PageEntry]>,
    /// Entries of an earlier generation are void.
    generation: u64,
}

#[derive(Clone, Copy)]
struct PageEntry {
    tag: u64,
    generation: u64,
    to: Option<Translation>,
}

impl PageCache {
    pub(crate) fn new() -> Self {
        let none = PageEntry {
            tag: EMPTY,
            generation: 0,
            to: None,
        };
        Self {
            entries: vec![none; PAGES].into_boxed_slice(),
            generation: 1,
        }
    }

    fn tag(va: u64, access: Access, user: bool) -> u64 {
        va & !(PAGE_SIZE - 1) | access as u64 | u64::from(user) << 2
    }

    fn index(va: u64, access: Access) -> usize {
        ((va >> PAGE_SHIFT) as usize ^ (access as usize) << 8) % PAGES
    }

    /// The translation of `va`, if one of its page is known for this access and privilege.
    pub(crate) fn get(&self, va: u64, access: Access, user: bool) -> Option<Translation> {
        let e = &self.entries[Self::index(va, access)];
        if e.tag != Self::tag(va, access, user) || e.generation != self.generation {
            return None;
        }
        let offset = va & (PAGE_SIZE - 1);
        e.to.map(|t| Translation {
            gpa: t.gpa.page().plus(offset),
            spa: t.spa.page().plus(offset),
            ..t
        })
    }

    pub(crate) fn put(&mut self, va: u64, access: Access, user: bool, t: Translation) {
        self.entries[Self::index(va, access)] = PageEntry {
            tag: Self::tag(va, access, user),
            generation: self.generation,
            to: Some(t),
        };
    }

    pub(crate) fn flush(&mut self) {
        self.generation += 1;
    }
}
