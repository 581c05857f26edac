//! Launch commands: SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH.

use sevlab_arch::psp::{
    SnpGuestState, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType, SnpPolicy, Status,
};
use sevlab_arch::rmp::RmpEntry;
use sevlab_arch::{Asid, PAGE_SIZE, Spa};
use sevlab_memctl::CipherKind;
use zeroize::Zeroizing;

use super::Identity;
use crate::config::CpuidLeaf;
use crate::firmware::State;
use crate::measure::VmplPerms;
use crate::pages::PageKind;

/// Permission bits a launched page may give (read, write, both kinds of execute, shadow stack).
const PERMS: u8 = 0x1f;
/// Bytes of a 4 KiB page.
const PAGE: usize = PAGE_SIZE as usize;

impl State {
    pub(crate) fn snp_launch_start(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpLaunchStart = self.dram.get(buf)?;
        if self.context(c.gctx_paddr)?.state != SnpGuestState::INIT {
            return Err(Status::INVALID_GUEST_STATE);
        }
        let flags = { c.flags };
        if flags & !(SnpLaunchStart::FLAG_MA_EN | SnpLaunchStart::FLAG_IMI_EN) != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let policy = self.snp_policy(c.policy)?;
        if flags & SnpLaunchStart::FLAG_MA_EN != 0 {
            return Err(if policy.contains(SnpPolicy::MIGRATE_MA) {
                Status::INVALID_GUEST
            } else {
                Status::POLICY_FAILURE
            });
        }
        if flags & SnpLaunchStart::FLAG_IMI_EN != 0 {
            return Err(Status::UNSUPPORTED);
        }
        let vek = self.new_vek()?;
        let mut vmpck: [Zeroizing<[u8; 32]>; 4] = std::array::from_fn(|_| Zeroizing::new([0; 32]));
        for key in &mut vmpck {
            *key = self.rng.bytes::<32>().ok_or(Status::HWERROR_PLATFORM)?;
        }
        let guest = self.context(c.gctx_paddr)?;
        guest.vek = Some(vek);
        guest.vmpck = vmpck;
        guest.policy = policy;
        guest.gosvw = c.gosvw;
        guest.state = SnpGuestState::LAUNCH;
        Ok(())
    }

    /// A policy this platform can keep.
    fn snp_policy(&self, bits: u64) -> Result<SnpPolicy, Status> {
        let policy = SnpPolicy::from_bits(bits).ok_or(Status::POLICY_FAILURE)?;
        let abi = (self.config.snp_api.major, self.config.snp_api.minor);
        let kept = policy.contains(SnpPolicy::RESERVED_MUST_BE_ONE)
            && (policy.abi_major(), policy.abi_minor()) <= abi
            && (policy.contains(SnpPolicy::SMT) || !self.config.smt)
            && (!policy.contains(SnpPolicy::MEM_AES_256_XTS)
                || self.cipher == CipherKind::Aes256Xts)
            && (!policy.contains(SnpPolicy::RAPL_DIS) || self.rapl_disabled)
            && !policy.contains(SnpPolicy::CIPHERTEXT_HIDING_DRAM);
        if kept {
            Ok(policy)
        } else {
            Err(Status::POLICY_FAILURE)
        }
    }

    pub(crate) fn snp_launch_update(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpLaunchUpdate = self.dram.get(buf)?;
        let guest = self.context(c.gctx_paddr)?;
        if guest.state != SnpGuestState::LAUNCH {
            return Err(Status::INVALID_GUEST_STATE);
        }
        let asid = guest.asid.ok_or(Status::INACTIVE)?;
        let perms = VmplPerms {
            vmpl1: c.vmpl1_perms,
            vmpl2: c.vmpl2_perms,
            vmpl3: c.vmpl3_perms,
        };
        let known = SnpLaunchUpdate::PAGE_2M
            | SnpLaunchUpdate::PAGE_TYPE_MASK << SnpLaunchUpdate::PAGE_TYPE_SHIFT
            | SnpLaunchUpdate::PAGE_IMI;
        let kind = c.page_type();
        let large = c.is_2m();
        let only_small = matches!(
            kind,
            SnpPageType::VMSA | SnpPageType::SECRETS | SnpPageType::CPUID
        );
        if { c.page } & !known != 0
            || c.reserved2 != 0
            || c.reserved3 != 0
            || c.reserved4 != 0
            || (perms.vmpl1 | perms.vmpl2 | perms.vmpl3) & !PERMS != 0
            || kind.name().is_none()
            || c.is_imi()
            || large && only_small
        {
            return Err(Status::INVALID_PARAM);
        }
        let size = if large { 512 * PAGE_SIZE } else { PAGE_SIZE };
        let page = Spa(c.address);
        if !page.0.is_multiple_of(size) {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(page, size)?;
        let entry = self.rmp_entry(page)?;
        if entry.is_2m() != large {
            return Err(Status::INVALID_PAGE_SIZE);
        }
        if PageKind::of(&entry) != PageKind::PreGuest {
            return Err(Status::INVALID_PAGE_STATE);
        }
        if entry.asid() != asid.0 {
            return Err(Status::INVALID_PAGE_OWNER);
        }
        self.insert(c.gctx_paddr, asid, page, size, kind, entry.gpa(), perms)?;
        self.validate_launched(page, entry, kind, perms)
    }

    /// Fills, measures and encrypts the page's 4 KiB parts.
    #[allow(clippy::too_many_arguments)]
    fn insert(
        &mut self,
        gctx: u64,
        asid: Asid,
        page: Spa,
        size: u64,
        kind: SnpPageType,
        gpa: u64,
        perms: VmplPerms,
    ) -> Result<(), Status> {
        let mut digest = self.context(gctx)?.digest;
        let mut bytes = Zeroizing::new([0u8; PAGE]);
        for offset in (0..size).step_by(PAGE) {
            let at = page.plus(offset);
            let measured = matches!(kind, SnpPageType::NORMAL | SnpPageType::VMSA);
            match kind {
                SnpPageType::ZERO => bytes.fill(0),
                SnpPageType::SECRETS => self.secrets_page(gctx, &mut bytes)?,
                SnpPageType::CPUID => {
                    self.dram.read(at, &mut bytes[..])?;
                    if self.correct_cpuid(&mut bytes)? {
                        // The hypervisor may look at the corrected page and try again.
                        self.dram.write(at, &bytes[..])?;
                        return Err(Status::INVALID_PARAM);
                    }
                }
                _ => self.dram.read(at, &mut bytes[..])?,
            }
            digest.extend(kind, false, perms, gpa + offset, measured.then_some(&bytes));
            self.encrypt(asid, at, &bytes[..])?;
        }
        self.context(gctx)?.digest = digest;
        Ok(())
    }

    /// The page becomes the guest's, valid.
    fn validate_launched(
        &mut self,
        page: Spa,
        entry: RmpEntry,
        kind: SnpPageType,
        perms: VmplPerms,
    ) -> Result<(), Status> {
        let mut lo = entry.lo & !RmpEntry::IMMUTABLE | RmpEntry::VALIDATED;
        if kind == SnpPageType::VMSA {
            lo |= RmpEntry::VMSA;
        }
        let mut valid = RmpEntry { lo, hi: 0 };
        valid.set_perms(0, sevlab_arch::rmp::VmplPerms::FULL.bits());
        valid.set_perms(1, perms.vmpl1);
        valid.set_perms(2, perms.vmpl2);
        valid.set_perms(3, perms.vmpl3);
        self.rmp_set(page, valid)
    }

    /// The secrets page (SNP ABI, "Secrets page"): version 3, the message keys, the workarounds.
    fn secrets_page(&mut self, gctx: u64, out: &mut [u8; PAGE]) -> Result<(), Status> {
        let guest = self.context(gctx)?;
        out.fill(0);
        out[..4].copy_from_slice(&3u32.to_le_bytes());
        out[0x10..0x20].copy_from_slice(&guest.gosvw);
        for (i, key) in guest.vmpck.iter().enumerate() {
            out[0x20 + 32 * i..0x40 + 32 * i].copy_from_slice(&key[..]);
        }
        Ok(())
    }

    /// Holds a CPUID page against the platform's policy. True if something had to be corrected.
    fn correct_cpuid(&self, page: &mut [u8; PAGE]) -> Result<bool, Status> {
        let word = |page: &[u8; PAGE], at: usize| {
            u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
        };
        let count = word(page, 0) as usize;
        if count > 64 {
            return Err(Status::INVALID_PARAM);
        }
        let Some(policy) = &self.config.cpuid else {
            return Ok(false);
        };
        let mut corrected = false;
        for i in 0..count {
            let at = 16 + 48 * i;
            let long = |at: usize| u64::from(word(page, at)) | u64::from(word(page, at + 4)) << 32;
            let leaf = CpuidLeaf {
                leaf: word(page, at),
                subleaf: word(page, at + 4),
                xcr0: long(at + 8),
                xss: long(at + 16),
                out: std::array::from_fn(|r| word(page, at + 24 + 4 * r)),
            };
            let allowed = policy(&leaf);
            if allowed != leaf.out {
                corrected = true;
                for (r, value) in allowed.iter().enumerate() {
                    page[at + 24 + 4 * r..at + 28 + 4 * r].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        Ok(corrected)
    }

    pub(crate) fn snp_launch_finish(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpLaunchFinish = self.dram.get(buf)?;
        let guest = self.context(c.gctx_paddr)?;
        if guest.state != SnpGuestState::LAUNCH {
            return Err(Status::INVALID_GUEST_STATE);
        }
        let (policy, digest) = (guest.policy, guest.digest.value());
        let flags = { c.flags };
        let known = SnpLaunchFinish::FLAG_ID_BLOCK_EN
            | SnpLaunchFinish::FLAG_AUTH_KEY_EN
            | SnpLaunchFinish::FLAG_VCEK_DISABLED;
        if flags & !known != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let author = flags & SnpLaunchFinish::FLAG_AUTH_KEY_EN != 0;
        let mut identity = if flags & SnpLaunchFinish::FLAG_ID_BLOCK_EN != 0 {
            let (block, auth) = (Spa(c.id_block_paddr), Spa(c.id_auth_paddr));
            self.check_identity(block, auth, author, policy, &digest)?
        } else if author {
            return Err(Status::INVALID_PARAM);
        } else {
            Identity::default()
        };
        identity.host_data = c.host_data;
        identity.vcek_disabled = flags & SnpLaunchFinish::FLAG_VCEK_DISABLED != 0;
        let guest = self.context(c.gctx_paddr)?;
        guest.identity = identity;
        guest.state = SnpGuestState::RUNNING;
        Ok(())
    }
}
