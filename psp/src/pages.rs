//! What a page is to the firmware, by its RMP entry (SNP ABI, "Page states"), and the firmware's own way
//! to change it.

use sevlab_arch::psp::Status;
use sevlab_arch::rmp::{BOOKKEEPING_SIZE, RmpEntry};
use sevlab_arch::{Asid, Spa};

use crate::dram::pages;
use crate::firmware::State;

/// The page states that matter here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageKind {
    /// Not assigned: the hypervisor's.
    Hypervisor,
    /// Given back by the firmware, not yet taken by the hypervisor.
    Reclaim,
    /// The firmware's, free.
    Firmware,
    /// A guest context page.
    Context,
    /// Assigned to a guest, immutable, not yet valid: launch input.
    PreGuest,
    /// A guest's.
    Guest,
}

impl PageKind {
    pub(crate) fn of(e: &RmpEntry) -> Self {
        match (e.assigned(), e.asid() != 0, e.immutable()) {
            (false, ..) => Self::Hypervisor,
            (true, false, false) => Self::Reclaim,
            (true, false, true) if e.vmsa() => Self::Context,
            (true, false, true) => Self::Firmware,
            (true, true, true) if !e.validated() => Self::PreGuest,
            (true, true, _) => Self::Guest,
        }
    }
}

impl State {
    /// The RMP entry of a page inside DRAM.
    pub(crate) fn rmp_entry(&self, page: Spa) -> Result<RmpEntry, Status> {
        self.dram
            .0
            .rmp()
            .lookup(page)
            .ok_or(Status::INVALID_ADDRESS)
    }

    /// Writes an RMP entry with the firmware's authority: straight into the table. None of the firmware's
    /// transitions takes away what some TLB may hold: the pages they start from are nobody's to map.
    pub(crate) fn rmp_set(&self, page: Spa, entry: RmpEntry) -> Result<(), Status> {
        let table = self.dram.0.rmp().base().plus(BOOKKEEPING_SIZE);
        let at = table.plus(page.pfn() * RmpEntry::SIZE as u64);
        self.dram.put(at, &entry)
    }

    /// Puts a firmware or pre-guest page into the reclaim state.
    pub(crate) fn rmp_reclaim(&self, page: Spa, entry: RmpEntry) -> Result<(), Status> {
        let size = entry.lo & RmpEntry::PAGE_2M;
        self.rmp_set(
            page,
            RmpEntry {
                lo: RmpEntry::ASSIGNED | size,
                hi: 0,
            },
        )
    }

    /// Checks a region that the firmware is about to write as output: inside DRAM, and, once SNP is
    /// initialised, in pages that belong to the firmware or to nobody's guest.
    pub(crate) fn output(&self, at: Spa, len: u64) -> Result<(), Status> {
        self.dram.check(at, len)?;
        if !self.snp {
            return Ok(());
        }
        for page in pages(at, len) {
            match PageKind::of(&self.rmp_entry(page)?) {
                PageKind::Hypervisor | PageKind::Firmware => {}
                _ => return Err(Status::INVALID_PAGE_STATE),
            }
        }
        Ok(())
    }

    /// Checks a region of a guest without SNP: no page of it may be assigned in the RMP.
    pub(crate) fn plain_pages(&self, at: Spa, len: u64) -> Result<(), Status> {
        self.dram.check(at, len)?;
        if !self.dram.0.config().snp {
            return Ok(());
        }
        for page in pages(at, len) {
            if PageKind::of(&self.rmp_entry(page)?) != PageKind::Hypervisor {
                return Err(Status::INVALID_PAGE_STATE);
            }
        }
        Ok(())
    }

    /// Writes plaintext to guest memory encrypted with the key of `asid`.
    pub(crate) fn encrypt(&self, asid: Asid, at: Spa, data: &[u8]) -> Result<(), Status> {
        self.dram
            .0
            .encrypt_for_firmware(asid, at, data)
            .map_err(|_| Status::HWERROR_PLATFORM)
    }

    /// Reads guest memory decrypted with the key of `asid`.
    pub(crate) fn decrypt(&self, asid: Asid, at: Spa, out: &mut [u8]) -> Result<(), Status> {
        self.dram
            .0
            .decrypt_for_firmware(asid, at, out)
            .map_err(|_| Status::HWERROR_PLATFORM)
    }
}
