//! The TLBs and walk caches of a core.

use sevlab_memctl::model::{Policy, Tlb, Tlbs};

use crate::array::{Array, Place, Sequence};

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
    /// Empty. `number` as in [`Sequence::of_tlb`].
    #[must_use]
    pub fn new(tlb: &Tlb, number: u64) -> Self {
        let ways = tlb.ways.max(1);
        let sets = (tlb.entries / ways).max(1);
        Self {
            pages: Array::new(
                sets as usize,
                ways as usize,
                tlb.policy,
                Sequence::of_tlb(number),
            ),
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

    /// Enters a page: over the entry that it has, else in the place of another. An entry of the other size goes.
    pub fn enter(&mut self, va: u64, page: Page) {
        for shift in SIZES {
            if shift != page.shift
                && let Some(at) = self.find(va, shift)
            {
                self.pages.remove(at);
            }
        }
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
        self.pages.clear();
    }
}

/// A small fully associative cache of keys, LRU.
#[derive(Clone, Debug)]
pub struct Small {
    entries: Array<()>,
    time: u64,
    /// With no entries at all it keeps nothing.
    none: bool,
}

impl Small {
    /// Empty.
    #[must_use]
    pub fn new(entries: u32) -> Self {
        let ways = entries.max(1) as usize;
        Self {
            entries: Array::new(1, ways, Policy::Lru, Sequence::of_tlb(0)),
            time: 0,
            none: entries == 0,
        }
    }
    /// Whether it has the key; using it.
    pub fn has(&mut self, key: u64) -> bool {
        self.time += 1;
        match self.entries.find(0, key) {
            Some(at) => {
                self.entries.touch(at, self.time);
                true
            }
            None => false,
        }
    }
    /// Enters a key.
    pub fn put(&mut self, key: u64) {
        if !self.none && !self.has(key) {
            self.entries.insert(0, key, (), self.time);
        }
    }
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
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
    /// By level of an entry (2, 3, 4 at 0, 1, 2): the addresses whose table below is known.
    pub tables: [Small; 3],
    /// Pages of guest tables whose nested translation is known, by number.
    pub nested: Small,
}

impl CoreTlbs {
    /// All empty.
    #[must_use]
    pub fn new(t: &Tlbs) -> Self {
        Self {
            l1i: TlbArray::new(&t.l1i, 1),
            l1d: TlbArray::new(&t.l1d, 2),
            l2i: t.l2i.as_ref().map(|t| TlbArray::new(t, 3)),
            l2: TlbArray::new(&t.l2, 4),
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

    /// What the guest's upper tables said is forgotten.
    pub fn forget_tables(&mut self) {
        self.tables.iter_mut().for_each(Small::clear);
    }

    /// Everything is forgotten; with `nested`, what the nested tables said too.
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

    /// The entries of a page go.
    pub fn forget_page(&mut self, va: u64) {
        self.l1i.forget(va);
        self.l1d.forget(va);
        self.l2.forget(va);
        if let Some(l2i) = &mut self.l2i {
            l2i.forget(va);
        }
    }
}
