//! A model's walk where a walk has been before: what the full one ([`super::walk`]) would say, in fewer steps.
//!
//! The problem: the full walk goes from CR3 through two dimensions and reads up to 24 entries, and a program with large data
//! makes one at most of its accesses. The approach: entries of upper levels are kept with their values, and looked at again in
//! each walk. What was made of them holds as long as the values do. Guest tables are kept by the 2 MiB of linear addresses that
//! they lead to ([`Path`]), nested ones by the 2 MiB of guest physical addresses ([`Region`]).
//!
//! Invariants:
//! 1. The result is what the full walk would find now, or there is none. Each entry that the full walk would read is looked at,
//!    so nobody who writes tables has to tell. What else the result hangs on is compared ([`Key`], the RMP's epoch) or asked for
//!    anew (CPL and the rules of control registers, the RMP's entry of the page).
//! 2. A walk that has bits to set, that faults, or that ends above level 1 of the guest's tables is the full walk's.
//! 3. Guest entries are read as the full walk reads them, each once: the controller notices reads of private memory. If the full
//!    walk has to be made after all, it takes what was read here ([`Seen`]).
//! 4. Nested entries are looked at without effect ([`MemCtl::load_shared`]). Where that can't be, there is no result.
//! 5. The MMU's own caches get what the full walk would have entered.

use sevlab_arch::{Asid, Spa};
use sevlab_memctl::{Domain, MemCtl, PageSize};

use super::cache::{NestedCache, Rights, Table};
use super::nested::Nested;
use super::walk::Leaf;
use super::{Access, pte};
use crate::model::{Entry, WalkLog};
use crate::vcpu::{SevMode, Vcpu};

/// No region has this tag.
const EMPTY: u64 = u64::MAX;
/// Places for paths, for regions with guest tables, and for others.
const PATHS: usize = 512;
const TABLES: usize = 64;
const FINALS: usize = 512;
/// A guest page's table.
const LAST: usize = 3;

/// What walks of a moment have in common.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Key {
    cr3: u64,
    ncr3: Option<Spa>,
    asid: Asid,
    mode: SevMode,
    vmpl: u8,
    nxe: bool,
}

/// Guest entries that were read: where, and what.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    entries: [(u64, u64); 4],
    len: usize,
}

impl Seen {
    pub(super) fn note(&mut self, spa: u64, value: u64) {
        if let Some(e) = self.entries.get_mut(self.len) {
            *e = (spa, value);
            self.len += 1;
        }
    }

    pub(super) fn value(&self, spa: u64) -> Option<u64> {
        let mut all = self.entries[..self.len].iter();
        all.find(|e| e.0 == spa).map(|e| e.1)
    }
}

/// What 2 MiB of guest physical memory are reached by.
#[derive(Clone, Copy)]
struct Region {
    tag: u64,
    /// The walk that looked at it last.
    looked: u64,
    /// The entries of levels 4, 3 and 2: where, and what.
    at: [u64; 3],
    values: [u64; 3],
    /// Base of the 2 MiB of memory, or of the last-level table.
    base: u64,
    leaf: bool,
    write: bool,
    exec: bool,
    /// The leaf's dirty bit is set.
    dirty: bool,
}

const NO_REGION: Region = Region {
    tag: EMPTY,
    looked: 0,
    at: [0; 3],
    values: [0; 3],
    base: 0,
    leaf: false,
    write: false,
    exec: false,
    dirty: false,
};

/// Bits of entries, from [`super::Paging`].
#[derive(Clone, Copy)]
struct Bits {
    c_mask: u64,
    reserved: u64,
}

impl Bits {
    fn address(self, entry: u64) -> u64 {
        entry & pte::ADDR_WITH_C & !self.c_mask
    }
}

impl Region {
    /// Follows nested tables from `root` to what leads to `gpa`; `None` if bits are to be set, or nothing is there.
    fn learn(mem: &MemCtl, root: u64, bits: Bits, gpa: u64) -> Option<Self> {
        let must = pte::P | pte::U | pte::A;
        let mut r = Self {
            tag: gpa >> 21,
            base: root,
            write: true,
            exec: true,
            ..NO_REGION
        };
        if gpa >> 48 != 0 {
            return None;
        }
        for (k, level) in [4, 3, 2].into_iter().enumerate() {
            let at = r.base + pte::entry_offset(gpa, level);
            let e = mem.load_shared(Spa(at))?;
            r.leaf = e & pte::PS != 0;
            let mut reserved = bits.reserved;
            if r.leaf {
                // Bit 12 of a large leaf is its PAT bit.
                reserved |= pte::offset_mask(2) & !0x1fff;
            }
            if e & must != must || e & reserved != 0 || r.leaf && level != 2 {
                return None;
            }
            (r.at[k], r.values[k]) = (at, e);
            r.write &= e & pte::W != 0;
            r.exec &= e & pte::NX == 0;
            r.dirty = r.leaf && e & pte::D != 0;
            r.base = bits.address(e);
        }
        if r.leaf {
            r.base &= !pte::offset_mask(2);
        }
        Some(r)
    }

    fn unchanged(&self, mem: &MemCtl) -> bool {
        let mut all = self.at.iter().zip(self.values);
        all.all(|(at, v)| mem.load_shared(Spa(*at)) == Some(v))
    }

    /// Where `gpa` is, and where the last-level entry is that says so (0: there is none); `None` if that is not for `access`, or
    /// bits are to be set.
    fn lead(&self, mem: &MemCtl, bits: Bits, gpa: u64, access: Access) -> Option<(Nested, u64)> {
        let (mut write, mut exec, mut dirty) = (self.write, self.exec, self.dirty);
        let (spa, size, last) = if self.leaf {
            let spa = self.base | gpa & pte::offset_mask(2);
            (spa, PageSize::Size2M, 0)
        } else {
            let must = pte::P | pte::U | pte::A;
            let at = self.base + pte::entry_offset(gpa, 1);
            let e = mem.load_shared(Spa(at))?;
            if e & must != must || e & bits.reserved != 0 {
                return None;
            }
            write &= e & pte::W != 0;
            exec &= e & pte::NX == 0;
            dirty = e & pte::D != 0;
            let page = bits.address(e) & !pte::offset_mask(1);
            (page | gpa & pte::offset_mask(1), PageSize::Size4K, at)
        };
        let fits = match access {
            Access::Read => true,
            Access::Write => write && dirty,
            Access::Exec => exec,
        };
        let nested = Nested {
            spa: Spa(spa),
            size: Some(size),
            writable: write && dirty,
            executable: exec,
        };
        fits.then_some((nested, last))
    }

    /// What the full walk enters into the MMU's own cache.
    fn enter(&self, cache: &mut NestedCache, gpa: u64) {
        cache.put(gpa, self.base, self.leaf, self.write, self.exec, self.dirty);
    }
}

/// The tables that 2 MiB of linear addresses are mapped by, from level 4 down to level 1.
#[derive(Clone, Copy)]
struct Path {
    tag: u64,
    /// The RMP's when it was asked about the tables.
    epoch: u64,
    /// Guest physical addresses of the tables, where they are, and the sizes of the nested pages there.
    gpas: [u64; 4],
    spas: [u64; 4],
    sizes: [Option<PageSize>; 4],
    /// The entries of levels 4, 3 and 2.
    values: [u64; 3],
    /// What these allow.
    rights: Rights,
    /// The tables of levels 2 and 1, for the MMU's own cache.
    tables: [Table; 2],
}

const NO_RIGHTS: Rights = Rights {
    write: false,
    user: false,
    exec: false,
};

const NO_PATH: Path = Path {
    tag: EMPTY,
    epoch: 0,
    gpas: [0; 4],
    spas: [0; 4],
    sizes: [None; 4],
    values: [0; 3],
    rights: NO_RIGHTS,
    tables: [Table::new(0, (Spa(0), None), NO_RIGHTS); 2],
};

/// What is kept of walks.
pub(crate) struct Memo {
    key: Key,
    walks: u64,
    /// Empty before the first walk; direct-mapped.
    paths: Vec<Path>,
    tables: Vec<Region>,
    finals: Vec<Region>,
}

impl Memo {
    pub(crate) const fn new() -> Self {
        Self {
            key: Key {
                cr3: 0,
                ncr3: None,
                asid: Asid(0),
                mode: SevMode::Off,
                vmpl: 0,
                nxe: false,
            },
            walks: 0,
            paths: Vec::new(),
            tables: Vec::new(),
            finals: Vec::new(),
        }
    }

    /// Walks of another kind begin.
    #[cold]
    fn renew(&mut self, key: Key) {
        let none = Self::new();
        *self = Self {
            key,
            walks: self.walks,
            ..none
        };
        self.paths.resize(PATHS, NO_PATH);
        self.tables.resize(TABLES, NO_REGION);
        self.finals.resize(FINALS, NO_REGION);
    }
}

/// The region of `gpa` in a place of its own, as it is now. A place that this walk has used for another is not taken.
fn region<'a>(
    all: &'a mut [Region],
    walk: u64,
    mem: &MemCtl,
    root: u64,
    bits: Bits,
    gpa: u64,
) -> Option<&'a Region> {
    // A power of two of places.
    let r = all.get_mut((gpa >> 21) as usize & all.len().wrapping_sub(1))?;
    if r.looked != walk {
        if r.tag != gpa >> 21 || !r.unchanged(mem) {
            r.tag = EMPTY;
            *r = Region::learn(mem, root, bits, gpa)?;
        }
        r.looked = walk;
    }
    (r.tag == gpa >> 21).then_some(r)
}

/// A guest entry, or at last a page, and the nested entries that lead to it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Step {
    /// Guest physical address of the table or the page.
    pub(crate) gpa: u64,
    /// Where the guest entry is.
    pub(crate) entry: u64,
    /// Where the nested entries are.
    nested: [u64; 4],
    len: usize,
}

impl Step {
    fn nested_by(&mut self, r: &Region, last: u64) {
        self.nested[..3].copy_from_slice(&r.at);
        self.nested[3] = last;
        self.len = 3 + usize::from(last != 0);
    }

    /// Where the nested entries are, from level 4 down.
    pub(crate) fn nested(&self) -> &[u64] {
        &self.nested[..self.len]
    }
}

/// The steps of a walk that was made again, without a bit to set: by guest level from 4 to 1; then the page.
pub(crate) type Steps = [Step; 5];

impl Vcpu {
    fn walk_key(&self) -> Key {
        Key {
            cr3: self.state.sys.cr3,
            ncr3: self.ncr3,
            asid: self.asid,
            mode: self.mode,
            vmpl: self.vmpl,
            nxe: self.rules().nxe,
        }
    }

    /// The walk for `va`, noted in `steps`, if it goes where one has been; else what was read on the way.
    pub(crate) fn walk_again(
        &mut self,
        va: u64,
        access: Access,
        steps: &mut Steps,
    ) -> Result<Entry, Seen> {
        let mut seen = Seen::default();
        let (rules, key) = (self.rules(), self.walk_key());
        let (domain, unpaged) = (self.domain(true), self.unpaged());
        let memo = &mut self.paging.memo;
        if memo.key != key || memo.paths.is_empty() {
            memo.renew(key);
            return Err(seen);
        }
        memo.walks += 1;
        let walk = memo.walks;
        let path = &memo.paths[(va >> 21) as usize % PATHS];
        if path.tag != va >> 21 || path.epoch != self.mem.rmp().epoch() || unpaged {
            return Err(seen);
        }
        let (mem, cache) = (&*self.mem, &mut self.paging.nested);
        let bits = Bits {
            c_mask: self.paging.c_mask,
            reserved: self.paging.reserved,
        };
        let root = self.ncr3.map(|root| bits.address(root.0));
        for (k, step) in steps[..4].iter_mut().enumerate() {
            let gpa = path.gpas[k];
            step.gpa = gpa;
            step.entry = path.spas[k] + pte::entry_offset(va, 4 - k as u32);
            let Some(root) = root else { continue };
            let Some(r) = region(&mut memo.tables, walk, mem, root, bits, gpa) else {
                return Err(seen);
            };
            let Some((nested, last)) = r.lead(mem, bits, gpa, Access::Write) else {
                return Err(seen);
            };
            if nested.spa.0 != path.spas[k] || nested.size != path.sizes[k] {
                return Err(seen);
            }
            r.enter(cache, gpa);
            step.nested_by(r, last);
        }
        for (k, step) in steps[..4].iter().enumerate() {
            let Ok(value) = mem.read_u64(domain, Spa(step.entry)) else {
                return Err(seen);
            };
            seen.note(step.entry, value);
            if k < LAST && value != path.values[k] {
                return Err(seen);
            }
        }
        let (entry, above) = (seen.entries[LAST].1, path.rights);
        let rights = above.and(entry);
        let reserved = bits.reserved | if rules.nxe { 0 } else { pte::NX };
        let mut must = pte::P | pte::A;
        if access == Access::Write {
            must |= pte::D;
        }
        if entry & must != must || entry & reserved != 0 || !rules.allows(access, rights) {
            return Err(seen);
        }
        let gpa = bits.address(entry) & !pte::offset_mask(1) | va & pte::offset_mask(1);
        let tables = path.tables;
        let nested = match root {
            Some(root) => {
                let Some(r) = region(&mut memo.finals, walk, mem, root, bits, gpa) else {
                    return Err(seen);
                };
                let Some((nested, last)) = r.lead(mem, bits, gpa, access) else {
                    return Err(seen);
                };
                r.enter(cache, gpa);
                steps[4].nested_by(r, last);
                nested
            }
            None if gpa < mem.size() => Nested::same(gpa),
            None => return Err(seen),
        };
        steps[4].gpa = gpa;
        // The access itself comes a good while later.
        let private = entry & bits.c_mask != 0;
        mem.ask_for(if private { domain } else { Domain::Shared }, nested.spa);
        let leaf = Leaf {
            gpa,
            private,
            rights,
            dirty: entry & pte::D != 0,
        };
        let Ok(t) = self.permit(&leaf, &nested, access, rules) else {
            return Err(seen);
        };
        self.counters.full_walks += 1;
        self.counters.nested_walks += if root.is_some() { 5 } else { 0 };
        self.paging.walk.put(va, 2, tables[0]);
        self.paging.walk.put(va, 1, tables[1]);
        Ok(self.entry_of(&t, 1, nested.size))
    }

    /// Keeps what the full walk for `va` has found, with the RMP as it was at `epoch`.
    pub(super) fn remember_walk(&mut self, va: u64, log: &WalkLog, epoch: u64) {
        if log.leaf != 1 {
            return;
        }
        let key = self.walk_key();
        let memo = &mut self.paging.memo;
        if memo.key != key || memo.paths.is_empty() {
            memo.renew(key);
        }
        memo.walks += 1;
        let bits = Bits {
            c_mask: self.paging.c_mask,
            reserved: self.paging.reserved,
        };
        let mut path = Path {
            tag: va >> 21,
            epoch,
            rights: Rights {
                write: true,
                user: true,
                exec: true,
            },
            ..NO_PATH
        };
        let mut refs = log.refs.iter().filter(|r| r.nested == 0);
        for k in 0..4 {
            let Some(r) = refs.next() else { return };
            let (gpa, spa) = (r.gpa & !0xfff, r.spa.0 & !0xfff);
            let size = match self.ncr3 {
                None => None,
                Some(root) => {
                    let root = bits.address(root.0);
                    let tables = &mut memo.tables;
                    let Some((nested, _)) = region(tables, memo.walks, &self.mem, root, bits, gpa)
                        .and_then(|r| r.lead(&self.mem, bits, gpa, Access::Write))
                        .filter(|(n, _)| n.spa.0 == spa)
                    else {
                        return;
                    };
                    nested.size
                }
            };
            (path.gpas[k], path.spas[k], path.sizes[k]) = (gpa, spa, size);
            if let Some(t) = k.checked_sub(2) {
                path.tables[t] = Table::new(gpa, (Spa(spa), size), path.rights);
            }
            if k < LAST {
                let Some(value) = log.seen.value(r.spa.0).filter(|v| v & pte::A != 0) else {
                    return;
                };
                path.values[k] = value;
                path.rights = path.rights.and(value);
            }
        }
        memo.paths[(va >> 21) as usize % PATHS] = path;
    }
}
