//! The TLBs and walk caches of a core.

use sevlab_memctl::Domain;
use sevlab_memctl::model::{Policy, Tlb, Tlbs};

use crate::array::{Array, Place};

/// What an access wants of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Want {
    Read,
    Write,
    Exec,
}

/// Where a page leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// 12: 4 KiB, 21: 2 MiB.
    pub shift: u32,
    /// System-physical address of the page's first byte.
    pub spa: u64,
    /// The domain of data accesses.
    pub data: Domain,
    /// The domain of fetches.
    pub code: Domain,
    /// A write needs nothing more.
    pub writable: bool,
    /// A fetch is allowed.
    pub executable: bool,
}

impl Page {
    /// Whether an access may use this.
    #[must_use]
    pub fn allows(&self, want: Want) -> bool {
        match want {
            Want::Read => true,
            Want::Write => self.writable,
            Want::Exec => self.executable,
        }
    }
    /// The line of `va`, and the domain that the access uses.
    #[must_use]
    pub fn line(&self, va: u64, want: Want) -> (u64, Domain) {
        let domain = if want == Want::Exec {
            self.code
        } else {
            self.data
        };
        ((self.spa + (va & ((1 << self.shift) - 1))) / 64, domain)
    }
}

const SIZES: [u32; 2] = [12, 21];

/// A TLB. Keys are page numbers; those of 2 MiB pages have a bit of their own.
#[derive(Clone, Debug)]
pub struct TlbArray {
    pages: Array<Page>,
    time: u64,
}

fn key(va: u64, shift: u32) -> u64 {
    va >> shift | u64::from(shift == 21) << 63
}

impl TlbArray {
    /// Empty. `level` as in [`Array::new`].
    #[must_use]
    pub fn new(tlb: &Tlb, level: u64) -> Self {
        let ways = tlb.ways.max(1);
        let sets = (tlb.entries / ways).max(1);
        Self {
            pages: Array::new(sets as usize, ways as usize, tlb.policy, level),
            time: 0,
        }
    }

    fn find(&self, va: u64, shift: u32) -> Option<Place> {
        self.pages.find(va >> shift, key(va, shift))
    }

    /// The entry of `va`'s page, if there is one that allows the access; using it.
    pub fn look_up(&mut self, va: u64, want: Want) -> Option<Page> {
        for shift in SIZES {
            if let Some(at) = self.find(va, shift) {
                let page = *self.pages.value(at);
                if page.allows(want) {
                    self.time += 1;
                    self.pages.touch(at, self.time);
                    return Some(page);
                }
            }
        }
        None
    }

    /// Enters a page: over the entry that it has, else in the place of another.
    pub fn enter(&mut self, va: u64, page: Page) {
        self.time += 1;
        if let Some(at) = self.find(va, page.shift) {
            *self.pages.value(at) = page;
            self.pages.touch(at, self.time);
        } else {
            let k = key(va, page.shift);
            self.pages.insert(va >> page.shift, k, page, self.time);
        }
    }

    /// Forgets the page of `va`.
    pub fn forget(&mut self, va: u64) {
        for shift in SIZES {
            if let Some(at) = self.find(va, shift) {
                self.pages.remove(at);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.retain(|_, _| false);
    }
}

/// A small fully associative cache, LRU.
#[derive(Clone, Debug)]
pub struct Small<V> {
    entries: Array<V>,
    time: u64,
    /// With no entries at all it keeps nothing.
    none: bool,
}

impl<V: Copy> Small<V> {
    /// Empty.
    #[must_use]
    pub fn new(entries: u32) -> Self {
        Self {
            entries: Array::new(1, entries.max(1) as usize, Policy::Lru, 0),
            time: 0,
            none: entries == 0,
        }
    }
    /// What it has for the key; using it.
    pub fn get(&mut self, key: u64) -> Option<V> {
        let at = self.entries.find(0, key)?;
        self.time += 1;
        self.entries.touch(at, self.time);
        Some(*self.entries.value(at))
    }
    /// Enters a value.
    pub fn put(&mut self, key: u64, value: V) {
        if self.none {
            return;
        }
        self.time += 1;
        if let Some(at) = self.entries.find(0, key) {
            *self.entries.value(at) = value;
            self.entries.touch(at, self.time);
        } else {
            self.entries.insert(0, key, value, self.time);
        }
    }
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.retain(|_, _| false);
    }
}

/// A nested translation of a page of guest tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedPage {
    /// 12 or 21 (or more): size of the nested page.
    pub shift: u32,
    /// System-physical address of the 4 KiB page.
    pub spa: u64,
    /// Writes are allowed, dirty bit set.
    pub writable: bool,
    /// Fetches are allowed.
    pub executable: bool,
}

/// A guest table that a walk knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Its guest physical address.
    pub gpa: u64,
    /// Rights of all entries above.
    pub write: bool,
    /// As above.
    pub user: bool,
    /// As above.
    pub exec: bool,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct CoreTlbs {
    /// First level, instructions.
    pub l1i: TlbArray,
    /// First level, data.
    pub l1d: TlbArray,
    /// Second level of its own for instructions.
    pub l2i: Option<TlbArray>,
    /// Second level.
    pub l2: TlbArray,
    /// By level of the entry that was read (4, 3, 2 at 2, 1, 0): the table below.
    pub tables: [Small<Table>; 3],
    /// Nested translations of pages of guest tables, by GPA page.
    pub nested: Small<NestedPage>,
}

impl CoreTlbs {
    /// All empty.
    #[must_use]
    pub fn new(t: &Tlbs) -> Self {
        Self {
            l1i: TlbArray::new(&t.l1i, 5),
            l1d: TlbArray::new(&t.l1d, 6),
            l2i: t.l2i.as_ref().map(|t| TlbArray::new(t, 7)),
            l2: TlbArray::new(&t.l2, 8),
            tables: [(); 3].map(|()| Small::new(t.walk_entries)),
            nested: Small::new(t.nested_entries),
        }
    }

    /// The TLBs that an access asks, first and second level.
    pub fn levels(&mut self, want: Want) -> (&mut TlbArray, &mut TlbArray) {
        match (want, &mut self.l2i) {
            (Want::Exec, Some(l2i)) => (&mut self.l1i, l2i),
            (Want::Exec, None) => (&mut self.l1i, &mut self.l2),
            _ => (&mut self.l1d, &mut self.l2),
        }
    }

    /// MOV to CR3 and the like: what the guest's tables said is forgotten; with `nested`, what the nested tables said too.
    pub fn forget_all(&mut self, nested: bool) {
        self.l1i.clear();
        self.l1d.clear();
        self.l2.clear();
        if let Some(l2i) = &mut self.l2i {
            l2i.clear();
        }
        self.tables.iter_mut().for_each(Small::clear);
        if nested {
            self.nested.clear();
        }
    }

    /// INVLPG: the page, and all cached upper levels.
    pub fn forget_page(&mut self, va: u64) {
        self.l1i.forget(va);
        self.l1d.forget(va);
        self.l2.forget(va);
        if let Some(l2i) = &mut self.l2i {
            l2i.forget(va);
        }
        self.tables.iter_mut().for_each(Small::clear);
    }
}
