//! Guest commands: SNP_GCTX_CREATE, SNP_ACTIVATE, SNP_DECOMMISSION, SNP_GUEST_STATUS, debugging.

use sevlab_arch::psp::{
    SnpActivate, SnpAddress, SnpDbg, SnpGuestState, SnpGuestStatus, SnpPolicy, Status,
};
use sevlab_arch::rmp::RmpEntry;
use sevlab_arch::{Asid, PAGE_SIZE, Spa};
use zeroize::Zeroizing;

use super::{Identity, SnpGuest};
use crate::firmware::{Owner, State};
use crate::measure::SnpDigest;
use crate::pages::PageKind;

/// Bytes SNP_GUEST_STATUS writes: policy u64, ASID u32, state u8, reserved.
const GUEST_STATUS_SIZE: usize = 0x20;

impl State {
    pub(crate) fn snp_gctx_create(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpAddress = self.dram.get(buf)?;
        self.snp_ready()?;
        let page = Spa(c.address);
        if page.offset() != 0 {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(page, PAGE_SIZE)?;
        let entry = self.rmp_entry(page)?;
        if entry.is_2m() {
            return Err(Status::INVALID_PAGE_SIZE);
        }
        if PageKind::of(&entry) != PageKind::Firmware {
            return Err(Status::INVALID_PAGE_STATE);
        }
        self.rmp_set(
            page,
            RmpEntry {
                lo: RmpEntry::ASSIGNED | RmpEntry::IMMUTABLE | RmpEntry::VMSA,
                hi: 0,
            },
        )?;
        self.contexts.insert(
            page,
            SnpGuest {
                state: SnpGuestState::INIT,
                policy: SnpPolicy::empty(),
                asid: None,
                vek: None,
                digest: SnpDigest::default(),
                vmpck: std::array::from_fn(|_| Zeroizing::new([0; 32])),
                gosvw: [0; 16],
                identity: Identity::default(),
            },
        );
        Ok(())
    }

    pub(crate) fn snp_activate(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpActivate = self.dram.get(buf)?;
        let guest = self.context(c.gctx_paddr)?;
        if guest.state == SnpGuestState::INIT {
            return Err(Status::INVALID_GUEST_STATE);
        }
        if guest.asid.is_some() {
            return Err(Status::ACTIVE);
        }
        let asid = Asid(c.asid);
        self.check_asid(asid, true)?;
        self.bind(asid, Owner::Snp(Spa(c.gctx_paddr)))?;
        self.context(c.gctx_paddr)?.asid = Some(asid);
        Ok(())
    }

    pub(crate) fn snp_decommission(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpAddress = self.dram.get(buf)?;
        self.context(c.address)?;
        self.drop_context(Spa(c.address))
    }

    /// Forgets a guest: its key leaves the memory controller, its context page becomes a firmware page.
    pub(super) fn drop_context(&mut self, page: Spa) -> Result<(), Status> {
        self.rmp_set(
            page,
            RmpEntry {
                lo: RmpEntry::ASSIGNED | RmpEntry::IMMUTABLE,
                hi: 0,
            },
        )?;
        if let Some(guest) = self.contexts.remove(&page)
            && let Some(asid) = guest.asid
        {
            self.release(asid);
        }
        Ok(())
    }

    pub(crate) fn snp_guest_status(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpGuestStatus = self.dram.get(buf)?;
        let guest = self.context(c.gctx_paddr)?;
        let mut out = [0; GUEST_STATUS_SIZE];
        out[..8].copy_from_slice(&guest.policy.bits().to_le_bytes());
        out[8..12].copy_from_slice(&guest.asid.map_or(0, |a| a.0).to_le_bytes());
        out[12] = guest.state.0;
        out[16] = u8::from(guest.identity.vcek_disabled);
        self.output(Spa(c.address), out.len() as u64)?;
        self.dram.write(Spa(c.address), &out)
    }

    /// SNP_DBG_DECRYPT (`decrypt`) and SNP_DBG_ENCRYPT: one page.
    pub(crate) fn snp_dbg(&mut self, buf: Spa, decrypt: bool) -> Result<(), Status> {
        let c: SnpDbg = self.dram.get(buf)?;
        let guest = self.context(c.gctx_paddr)?;
        if !guest.policy.contains(SnpPolicy::DEBUG) {
            return Err(Status::POLICY_FAILURE);
        }
        let asid = guest.asid.ok_or(Status::INACTIVE)?;
        let (src, dst) = (Spa(c.src_address), Spa(c.dst_address));
        if src.offset() != 0 || dst.offset() != 0 {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(src, PAGE_SIZE)?;
        self.dram.check(dst, PAGE_SIZE)?;
        let private = if decrypt { src } else { dst };
        let entry = self.rmp_entry(private)?;
        if !entry.assigned() || entry.asid() != asid.0 {
            return Err(Status::INVALID_PAGE_OWNER);
        }
        let mut page = Zeroizing::new([0; PAGE_SIZE as usize]);
        if decrypt {
            self.output(dst, PAGE_SIZE)?;
            self.decrypt(asid, src, &mut page[..])?;
            self.dram.write(dst, &page[..])
        } else {
            self.dram.read(src, &mut page[..])?;
            self.encrypt(asid, dst, &page[..])
        }
    }
}
