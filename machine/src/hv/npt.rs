//! Nested page tables: four levels in plain DRAM, 2 MiB leaves, split into 4 KiB ones where needed.

use std::ops::Range;
use std::sync::Arc;

use sevlab_arch::{Gpa, PAGE_SIZE, Spa};
use sevlab_memctl::{Domain, Error as MemError, MemCtl, PageSize};

use crate::layout::LARGE_PAGE;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What a table entry permits; leaves permit the same.
const FLAGS: u64 = PRESENT | WRITE | USER;

/// Why nested tables could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NptError {
    /// No page is left for tables.
    #[error("no page is left for nested page tables")]
    Full,
    /// The memory controller failed.
    #[error(transparent)]
    Memory(#[from] MemError),
}

/// The nested page tables of one guest.
pub struct Npt {
    mem: Arc<MemCtl>,
    root: Spa,
    pool: Range<Spa>,
}

impl Npt {
    /// Empty tables; their pages come from `pool`.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn new(mem: Arc<MemCtl>, pool: Range<Spa>) -> Result<Self, NptError> {
        let mut npt = Self {
            mem,
            root: Spa(0),
            pool,
        };
        npt.root = npt.page()?;
        Ok(npt)
    }

    /// nCR3.
    #[must_use]
    pub fn root(&self) -> Spa {
        self.root
    }

    fn page(&mut self) -> Result<Spa, NptError> {
        let page = self.pool.start;
        if page >= self.pool.end {
            return Err(NptError::Full);
        }
        self.pool.start = page.plus(PAGE_SIZE);
        self.mem.zero_page(Domain::Shared, page)?;
        Ok(page)
    }

    fn slot(table: Spa, gpa: Gpa, level: u32) -> Spa {
        table.plus((gpa.0 >> (12 + 9 * (level - 1)) & 511) * 8)
    }

    fn load(&self, slot: Spa) -> Result<u64, NptError> {
        Ok(self.mem.read_u64(Domain::Shared, slot)?)
    }

    fn store(&self, slot: Spa, entry: u64) -> Result<(), NptError> {
        Ok(self.mem.write_u64(Domain::Shared, slot, entry)?)
    }

    /// The entry of `gpa` at `level`, with the tables above it made.
    fn descend(&mut self, gpa: Gpa, level: u32) -> Result<Spa, NptError> {
        let mut table = self.root;
        for above in ((level + 1)..=4).rev() {
            let slot = Self::slot(table, gpa, above);
            let entry = self.load(slot)?;
            table = if entry & PRESENT == 0 {
                let page = self.page()?;
                self.store(slot, page.0 | FLAGS)?;
                page
            } else if entry & LARGE != 0 {
                self.split_slot(slot, entry)?
            } else {
                Spa(entry & ADDRESS)
            };
        }
        Ok(Self::slot(table, gpa, level))
    }

    /// Replaces a 2 MiB leaf by a table of 512 small ones that say the same.
    fn split_slot(&mut self, slot: Spa, leaf: u64) -> Result<Spa, NptError> {
        let table = self.page()?;
        let base = leaf & ADDRESS & !(LARGE_PAGE - 1);
        let flags = leaf & !(ADDRESS | LARGE);
        for i in 0..512 {
            self.store(table.plus(8 * i), (base + i * PAGE_SIZE) | flags)?;
        }
        self.store(slot, table.0 | FLAGS)?;
        Ok(table)
    }

    /// Maps one page.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn map(&mut self, gpa: Gpa, spa: Spa, size: PageSize) -> Result<(), NptError> {
        match size {
            PageSize::Size4K => {
                let slot = self.descend(gpa, 1)?;
                self.store(slot, spa.0 & ADDRESS | FLAGS)
            }
            PageSize::Size2M => {
                let slot = self.descend(gpa, 2)?;
                self.store(slot, spa.0 & ADDRESS & !(LARGE_PAGE - 1) | FLAGS | LARGE)
            }
        }
    }

    /// Maps a range whose ends and addresses are 2 MiB aligned, with large leaves.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn map_range(&mut self, gpa: Range<Gpa>, spa: Spa) -> Result<(), NptError> {
        for offset in (0..gpa.end.0.saturating_sub(gpa.start.0)).step_by(LARGE_PAGE as usize) {
            self.map(gpa.start.plus(offset), spa.plus(offset), PageSize::Size2M)?;
        }
        Ok(())
    }

    /// Makes the 2 MiB around `gpa` not present.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn unmap_large(&mut self, gpa: Gpa) -> Result<(), NptError> {
        let slot = self.descend(gpa, 2)?;
        self.store(slot, 0)
    }

    /// Makes `gpa`'s leaf a small one. True if it was large before.
    ///
    /// # Errors
    /// [`NptError`].
    pub fn split(&mut self, gpa: Gpa) -> Result<bool, NptError> {
        match self.lookup(gpa)? {
            Some((_, PageSize::Size2M)) => {
                self.descend(gpa, 1)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Where `gpa` leads, and with which leaf.
    ///
    /// # Errors
    /// [`NptError::Memory`].
    pub fn lookup(&self, gpa: Gpa) -> Result<Option<(Spa, PageSize)>, NptError> {
        let mut table = self.root;
        for level in (1..=4).rev() {
            let entry = self.load(Self::slot(table, gpa, level))?;
            if entry & PRESENT == 0 {
                return Ok(None);
            }
            let base = entry & ADDRESS;
            if level == 1 {
                return Ok(Some((Spa(base | gpa.offset()), PageSize::Size4K)));
            }
            if entry & LARGE != 0 {
                let offset = gpa.0 & (LARGE_PAGE - 1);
                return Ok(Some((
                    Spa(base & !(LARGE_PAGE - 1) | offset),
                    PageSize::Size2M,
                )));
            }
            table = Spa(base);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sevlab_memctl::{CacheMode, CipherKind, Config};

    fn npt() -> Npt {
        let mem = MemCtl::new(Config {
            size: 16 << 20,
            cipher: CipherKind::Aes128Xe,
            cache: CacheMode::Page,
            resident: None,
            tweak_seed: 1,
            hierarchy: None,
            cores: 1,
            snp: false,
        })
        .expect("memory");
        Npt::new(mem, Spa(0x10_0000)..Spa(0x10_8000)).expect("tables")
    }

    #[test]
    fn a_split_says_the_same() {
        let mut n = npt();
        n.map_range(Gpa(0)..Gpa(4 << 20), Spa(4 << 20))
            .expect("map");
        let at = Gpa(0x20_3456);
        let before = n.lookup(at).expect("lookup");
        assert_eq!(before, Some((Spa(0x60_3456), PageSize::Size2M)));
        assert!(n.split(at).expect("split"));
        assert!(!n.split(at).expect("split"));
        assert_eq!(
            n.lookup(at).expect("lookup"),
            Some((Spa(0x60_3456), PageSize::Size4K))
        );
        let neighbour = n.lookup(Gpa(0x20_0000)).expect("lookup");
        assert_eq!(neighbour, Some((Spa(0x60_0000), PageSize::Size4K)));
        assert_eq!(n.lookup(Gpa(4 << 20)).expect("lookup"), None);
    }

    #[test]
    fn small_pages_and_exhaustion() {
        let mut n = npt();
        n.map(Gpa(0x5000), Spa(0x9000), PageSize::Size4K)
            .expect("map");
        assert_eq!(
            n.lookup(Gpa(0x5008)).expect("lookup"),
            Some((Spa(0x9008), PageSize::Size4K))
        );
        let mut gpa = Gpa(1 << 39);
        let full = loop {
            match n.map(gpa, Spa(0), PageSize::Size4K) {
                Ok(()) => gpa = gpa.plus(1 << 39),
                Err(e) => break e,
            }
        };
        assert_eq!(full, NptError::Full);
    }
}
