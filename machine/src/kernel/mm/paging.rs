//! The guest's page tables: real 4-level tables in guest frames, private ones carrying the C-bit.
//!
//! An entry whose page must not be touched (PROT_NONE) keeps its frame with P clear and a software
//! bit set, so "has a frame" is "is not zero".

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::{Hw, Prot};
use crate::kernel::error::Error;
use crate::kernel::frames::Frames;

/// P.
pub const PRESENT: u64 = 1;
/// R/W.
pub const WRITABLE: u64 = 1 << 1;
/// U/S.
pub const USER: u64 = 1 << 2;
/// A.
pub const ACCESSED: u64 = 1 << 5;
/// D.
pub const DIRTY: u64 = 1 << 6;
/// A software bit: the frame is kept though the page is not to be touched.
pub const KEPT: u64 = 1 << 9;
/// NX.
pub const NO_EXECUTE: u64 = 1 << 63;
/// The address field, wherever the C-bit is.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes that one last-level table maps.
const TABLE_SPAN: u64 = 1 << 21;

/// The tables of one address space.
pub struct Tables {
    root: Gpa,
    c_mask: u64,
    /// The last-level table last used, by `va >> 21`.
    recent: Option<(u64, Gpa)>,
}

impl Tables {
    /// Empty tables.
    ///
    /// # Errors
    /// No memory, or guest memory can't be written.
    pub fn new(hw: &mut dyn Hw, frames: &mut Frames, c_mask: u64) -> Result<Self, Error> {
        let have = frames.total() * PAGE_SIZE;
        let root = frames.alloc(hw, None)?.ok_or(Error::OutOfMemory {
            have,
            what: "page tables",
        })?;
        hw.zero(root)?;
        Ok(Self {
            root,
            c_mask,
            recent: None,
        })
    }

    /// The CR3 value: root and C-bit.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        self.root.0 | self.c_mask
    }

    /// The frame an entry names.
    #[must_use]
    pub fn frame(&self, entry: u64) -> Gpa {
        Gpa(entry & ADDRESS & !self.c_mask)
    }

    /// The C-bit that entries of private pages carry; 0 if memory is not encrypted.
    #[must_use]
    pub fn c_mask(&self) -> u64 {
        self.c_mask
    }

    /// Whether an entry maps a page that is shared with the hypervisor.
    #[must_use]
    pub fn is_shared(&self, entry: u64) -> bool {
        entry & self.c_mask != self.c_mask
    }

    /// An entry made shared or private.
    #[must_use]
    pub fn with_shared(&self, entry: u64, shared: bool) -> u64 {
        if shared {
            entry & !self.c_mask
        } else {
            entry | self.c_mask
        }
    }

    /// The entry that maps `frame` with the rights `prot`.
    #[must_use]
    pub fn entry(&self, frame: Gpa, prot: Prot) -> u64 {
        Self::with_prot(frame.0 | self.c_mask, prot)
    }

    /// An entry with its rights replaced; A and D stay.
    #[must_use]
    pub fn with_prot(entry: u64, prot: Prot) -> u64 {
        let mut e = entry & !(PRESENT | WRITABLE | NO_EXECUTE | KEPT) | USER;
        e |= if prot.is_none() { KEPT } else { PRESENT };
        if prot.writes() {
            e |= WRITABLE;
        }
        if !prot.executes() {
            e |= NO_EXECUTE;
        }
        e
    }

    /// Address of the last-level entry for `va`; `Ok(None)` if its table does not exist.
    fn slot(&mut self, hw: &mut dyn Hw, va: u64) -> Result<Option<Gpa>, Error> {
        let slot = |table: Gpa| table.plus((va >> 12 & 511) * 8);
        if let Some((key, table)) = self.recent
            && key == va >> 21
        {
            return Ok(Some(slot(table)));
        }
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let e = hw.read_u64(table.plus((va >> shift & 511) * 8))?;
            if e & PRESENT == 0 {
                return Ok(None);
            }
            table = self.frame(e);
        }
        self.recent = Some((va >> 21, table));
        Ok(Some(slot(table)))
    }

    /// As [`Tables::slot`], making the missing tables. `None`: no memory.
    fn make_slot(
        &mut self,
        hw: &mut dyn Hw,
        frames: &mut Frames,
        va: u64,
    ) -> Result<Option<Gpa>, Error> {
        if let Some(slot) = self.slot(hw, va)? {
            return Ok(Some(slot));
        }
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let at = table.plus((va >> shift & 511) * 8);
            let e = hw.read_u64(at)?;
            table = if e & PRESENT != 0 {
                self.frame(e)
            } else {
                let Some(new) = frames.alloc(hw, None)? else {
                    return Ok(None);
                };
                hw.zero(new)?;
                hw.write_u64(
                    at,
                    new.0 | self.c_mask | PRESENT | WRITABLE | USER | ACCESSED,
                )?;
                new
            };
        }
        self.recent = Some((va >> 21, table));
        Ok(Some(table.plus((va >> 12 & 511) * 8)))
    }

    /// The entry of a page; 0 if it has none.
    ///
    /// # Errors
    /// Guest memory can't be read.
    pub fn get(&mut self, hw: &mut dyn Hw, va: Va) -> Result<u64, Error> {
        match self.slot(hw, va.0)? {
            Some(slot) => hw.read_u64(slot),
            None => Ok(0),
        }
    }

    /// Sets the entry of a page. `false`: no memory for a table.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn set(
        &mut self,
        hw: &mut dyn Hw,
        frames: &mut Frames,
        va: Va,
        entry: u64,
    ) -> Result<bool, Error> {
        let Some(slot) = self.make_slot(hw, frames, va.0)? else {
            return Ok(false);
        };
        hw.write_u64(slot, entry)?;
        Ok(true)
    }

    /// Visits every page of `[start, end)` that has a frame; `f` gets its address, entry and frame, and
    /// returns the new entry if it changes.
    /// Parts without tables cost next to nothing.
    ///
    /// # Errors
    /// Guest memory can't be accessed, or `f` fails.
    pub fn visit(
        &mut self,
        hw: &mut dyn Hw,
        start: u64,
        end: u64,
        mut f: impl FnMut(&mut dyn Hw, Va, u64, Gpa) -> Result<Option<u64>, Error>,
    ) -> Result<(), Error> {
        let mut va = start;
        while va < end {
            let mut table = self.root;
            let mut skip = 0;
            for shift in [39u32, 30, 21] {
                let e = hw.read_u64(table.plus((va >> shift & 511) * 8))?;
                if e & PRESENT == 0 {
                    skip = 1u64 << shift;
                    break;
                }
                table = self.frame(e);
            }
            if skip != 0 {
                va = (va & !(skip - 1)) + skip;
                continue;
            }
            let stop = ((va & !(TABLE_SPAN - 1)) + TABLE_SPAN).min(end);
            let first = (va >> 12 & 511) as usize;
            let n = ((stop - va) >> 12) as usize;
            let mut raw = [0; 4096];
            let raw = &mut raw[..n * 8];
            hw.read(table.plus(first as u64 * 8), raw)?;
            for (i, bytes) in raw.chunks_exact(8).enumerate() {
                let mut b = [0; 8];
                b.copy_from_slice(bytes);
                let entry = u64::from_le_bytes(b);
                if entry == 0 {
                    continue;
                }
                let frame = Gpa(entry & ADDRESS & !self.c_mask);
                if let Some(new) = f(hw, Va(va + i as u64 * PAGE_SIZE), entry, frame)? {
                    hw.write_u64(table.plus((first + i) as u64 * 8), new)?;
                }
            }
            va = stop;
        }
        Ok(())
    }
}
