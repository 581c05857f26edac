//! What the processor remembers of each VMSA, so that it notices a change.

use std::collections::HashMap;

use sevlab_arch::vmsa::Vmsa;
use sevlab_arch::{Asid, Spa};
use sevlab_memctl::{Error, MemCtl};
use zerocopy::IntoBytes;

use super::{EntryError, vmsa};

const PAGE: usize = 4096;

/// One VMSA as the processor or the firmware last left it.
struct Record {
    asid: Asid,
    /// The whole page in DRAM: ciphertext.
    page: [u8; PAGE],
    /// What its registers decrypt to: tells another key from the right one.
    plain: Vmsa,
}

/// The processor's private storage, by the VMSA's address.
#[derive(Default)]
pub(super) struct Vault(HashMap<u64, Box<Record>>);

impl Vault {
    /// Records the VMSA at `spa` as it is in DRAM.
    pub(super) fn install(&mut self, mem: &MemCtl, asid: Asid, spa: Spa) -> Result<(), Error> {
        let mut r = Box::new(Record {
            asid,
            page: [0; PAGE],
            plain: Vmsa::default(),
        });
        mem.decrypt_for_firmware(asid, spa, r.plain.as_mut_bytes())?;
        mem.bus_read(spa, &mut r.page);
        self.0.insert(spa.0, r);
        Ok(())
    }

    /// Decrypts the VMSA into `out`, if it is what was recorded. `adopt`: an unknown one is recorded
    /// first (SNP: the RMP has said that the guest or the firmware made it, and nobody else can have
    /// written it since).
    pub(super) fn open(
        &mut self,
        mem: &MemCtl,
        asid: Asid,
        spa: Spa,
        adopt: bool,
        out: &mut Vmsa,
    ) -> Result<(), EntryError> {
        if adopt && !self.0.contains_key(&spa.0) {
            self.install(mem, asid, spa)?;
        }
        let known = self
            .0
            .get(&spa.0)
            .filter(|r| r.asid == asid)
            .ok_or(EntryError::NotInstalled { spa })?;
        let changed = |offset: usize| EntryError::Integrity {
            spa,
            offset,
            region: vmsa::region(offset),
        };
        let mut page = [0; PAGE];
        mem.bus_read(spa, &mut page);
        if let Some(at) = first_difference(&page, &known.page) {
            return Err(changed(at));
        }
        mem.decrypt_for_firmware(asid, spa, out.as_mut_bytes())?;
        match first_difference(out.as_bytes(), known.plain.as_bytes()) {
            Some(at) => Err(changed(at)),
            None => Ok(()),
        }
    }

    /// Encrypts `v` to `spa` and records it. The rest of the page stays as recorded before.
    pub(super) fn seal(
        &mut self,
        mem: &MemCtl,
        asid: Asid,
        spa: Spa,
        v: &Vmsa,
    ) -> Result<(), EntryError> {
        mem.encrypt_for_firmware(asid, spa, v.as_bytes())?;
        let known = self
            .0
            .get_mut(&spa.0)
            .ok_or(EntryError::NotInstalled { spa })?;
        known.plain = *v;
        mem.bus_read(spa, &mut known.page[..Vmsa::SIZE]);
        Ok(())
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(x, y)| x != y)
}

/// Whether the RMP lets `spa` be entered as a VMSA of `asid` (APM vol. 2, 15.36.12).
pub(super) fn check_rmp(mem: &MemCtl, asid: Asid, spa: Spa) -> Result<(), EntryError> {
    match mem.rmp().lookup(spa) {
        Some(e) if e.assigned() && e.vmsa() && e.validated() && e.asid() == asid.0 => Ok(()),
        _ => Err(EntryError::NotVmsaPage { spa, asid }),
    }
}
