#![allow(unsafe_code)] // AES in place on DRAM
//! What only the secure processor does (keys, AES straight on DRAM), and what goes over the memory bus beside any key.

use sevlab_arch::{Asid, PAGE_SHIFT, Spa};

use crate::cipher::{BLOCK, PAGE};
use crate::ctl::MemCtl;
use crate::dram::page_parts;
use crate::error::Error;
use crate::key::MemoryKey;
use crate::place::{read_at, write_at};
use crate::stats::Counters;
use crate::uncached;

impl MemCtl {
    /// Gives `a` a key. What was resident under an earlier one is encrypted under that one first.
    ///
    /// # Errors
    /// [`Error::AsidRange`], [`Error::CipherMismatch`].
    pub fn install_key(&self, a: Asid, k: MemoryKey) -> Result<(), Error> {
        let mut meta = self.lock();
        meta.keys.check(a, &k)?;
        self.evict_owned(&mut meta, a);
        meta.keys.install(a, &k)
    }

    /// Takes the key of `a` away and wipes it. What was resident is encrypted under it first.
    pub fn remove_key(&self, a: Asid) {
        let mut meta = self.lock();
        self.evict_owned(&mut meta, a);
        meta.keys.remove(a);
    }

    /// Drops what is resident under `a` without writing it back, as a power cut would: DRAM keeps what was written back last.
    /// For a guest that is over and whose memory nobody will look at.
    pub fn discard(&self, a: Asid) {
        let mut meta = self.lock();
        if meta.hier.is_some() {
            self.evict_lines_of(&mut meta, a, true);
            return;
        }
        let owned = self.owned(&meta, a);
        self.forget_places(&mut meta, &owned);
        for pfn in owned {
            self.states.set_dirty(pfn, false);
            self.evict(&mut meta, pfn);
        }
    }

    fn evict_owned(&self, meta: &mut crate::ctl::Meta, a: Asid) {
        if meta.hier.is_some() {
            self.evict_lines_of(meta, a, false);
            return;
        }
        for pfn in self.owned(meta, a) {
            self.evict(meta, pfn);
        }
    }

    /// The pages resident under `a`.
    fn owned(&self, meta: &crate::ctl::Meta, a: Asid) -> Vec<u64> {
        let owned = |p: &u64| self.states.of(*p).owner() == Some(a);
        meta.residency.iter().filter(owned).collect()
    }

    /// Encrypts what DRAM holds in the page under the key of `a`, in place: the firmware's launch commands.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Unaligned`], [`Error::NoKey`].
    pub fn encrypt_in_place(&self, a: Asid, page: Spa) -> Result<(), Error> {
        let pfn = self.page_number(page)?;
        let mut meta = self.lock();
        meta.keys.engine(a, page)?;
        self.to_dram(&mut meta, pfn);
        let engine = meta.keys.engine(a, page)?;
        let at = self.dram.raw.span(page.0, PAGE).as_ptr();
        self.dram.mark(pfn);
        // SAFETY: `span` checked the page; an engine works in place.
        unsafe { engine.encrypt_page(page.0, at, at) };
        Counters::add(&self.counters.pages_encrypted, 1);
        Counters::add(&self.counters.aes_blocks, (PAGE / BLOCK) as u64);
        Ok(())
    }

    /// Reads DRAM through the key of `a` without making anything resident: VMSAs, debug decryption. What is resident is written
    /// back first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NoKey`].
    pub fn decrypt_for_firmware(&self, a: Asid, spa: Spa, out: &mut [u8]) -> Result<(), Error> {
        self.check_range(spa, out.len() as u64)?;
        let mut meta = self.lock();
        meta.keys.engine(a, spa)?;
        for (pfn, at, r) in page_parts(spa, out.len()) {
            self.write_back(&mut meta, pfn);
            if self.states.of(pfn).owner().is_none() {
                self.to_dram(&mut meta, pfn);
            }
            let engine = meta.keys.engine(a, spa)?;
            uncached::read(engine, &self.dram, &self.counters, at, &mut out[r]);
        }
        Ok(())
    }

    /// Writes DRAM through the key of `a` without making anything resident: VMSAs, debug encryption. What is resident is pushed
    /// out first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NoKey`]; nothing is written then.
    pub fn encrypt_for_firmware(&self, a: Asid, spa: Spa, data: &[u8]) -> Result<(), Error> {
        self.check_range(spa, data.len() as u64)?;
        let mut meta = self.lock();
        meta.keys.engine(a, spa)?;
        for (pfn, at, r) in page_parts(spa, data.len()) {
            self.to_dram(&mut meta, pfn);
            let engine = meta.keys.engine(a, spa)?;
            uncached::write(engine, &self.dram, &self.counters, at, &data[r]);
        }
        Ok(())
    }

    /// What a probe on the memory bus reads: DRAM, after resident plaintext was written back. Where there is no DRAM the bus
    /// floats: all ones.
    pub fn bus_read(&self, a: Spa, out: &mut [u8]) {
        for (pfn, at, r) in page_parts(a, out.len()) {
            let out = &mut out[r];
            match self.states.get(pfn) {
                // `plus` wrapped, or the page is not there.
                None => out.fill(0xff),
                Some(_) if at < a => out.fill(0xff),
                Some(state) => {
                    if state.is_dirty() {
                        self.write_back(&mut self.lock(), pfn);
                    }
                    if self.has_place(pfn) {
                        let mut meta = self.lock();
                        if self.states.of(pfn).owner().is_none() {
                            read_at(self.bytes(&mut meta, pfn, false), at, out);
                            continue;
                        }
                    }
                    self.dram.raw.read(at.0, out);
                }
            }
        }
    }

    /// Changes DRAM from outside, whoever owns it: an attack on the bus. Resident plaintext is written back and dropped first.
    /// Where there is no DRAM nothing happens.
    pub fn bus_write(&self, a: Spa, data: &[u8]) {
        for (pfn, at, r) in page_parts(a, data.len()) {
            if self.states.get(pfn).is_none() || at < a {
                continue;
            }
            self.dram.mark(pfn);
            self.with_raw(pfn, true, |page| write_at(page, at, &data[r]));
        }
    }

    /// Makes DRAM current. Pages stay resident, clean.
    ///
    /// # Errors
    /// None today; a controller with DRAM beyond this process may have some.
    pub fn write_back_all(&self) -> Result<(), Error> {
        let mut meta = self.lock();
        if meta.hier.is_some() {
            self.sync_all_lines(&mut meta);
            return Ok(());
        }
        let resident: Vec<u64> = meta.residency.iter().collect();
        for pfn in resident {
            self.write_back(&mut meta, pfn);
        }
        Ok(())
    }

    /// Whether the page can differ from zero in DRAM; resident plaintext does not count before it is written back.
    pub(crate) fn dram_may_be_nonzero(&self, page: Spa) -> bool {
        self.dram.may_be_nonzero(page.0 >> PAGE_SHIFT)
    }
}
