//! Launching a guest: the image goes into guest memory, then the secure processor encrypts, measures
//! and starts it, command by command in the order the specifications ask for.

use sevlab_arch::cpuid::{CpuidEntry, CpuidPage};
use sevlab_arch::psp::{SevPolicy, SnpPageType};
use sevlab_arch::rmp::RmpUpdate;
use sevlab_arch::snp::VMSA_GPA;
use sevlab_arch::vmcb::{Control, Intercepts1, Intercepts2, Save, Segment};
use sevlab_arch::vmsa::{SevFeatures, Vmsa};
use sevlab_arch::{Asid, Gpa, PAGE_SIZE, Spa};
use sevlab_cpu::state::{CpuState, seg};
use sevlab_cpu::{SevMode, Vcpu};
use sevlab_memctl::{Domain, MemCtl, PageSize};
use sevlab_psp::driver::Driver;
use sevlab_psp::owner::{ExpectedDigest, GuestOwner};
use sevlab_psp::{ApiVersion, Entropy, VmplPerms};
use zerocopy::{FromZeros, IntoBytes};

use crate::config::MachineConfig;
use crate::error::Error;
use crate::hv::Hypervisor;
use crate::hv::cpuid::CpuModel;
use crate::kernel::image::{Image, ImagePage};
use crate::layout::{LARGE_PAGE, Layout};

/// Bytes of a page.
const PAGE: usize = PAGE_SIZE as usize;
/// EFER.SVME, which VMRUN wants set in every guest's EFER.
const EFER_SVME: u64 = 1 << 12;
/// Longest region of one LAUNCH_UPDATE_DATA.
const MAX_REGION: u64 = 1 << 20;

/// What a launch left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launched {
    /// The measurement: HMAC-SHA256 for SEV and SEV-ES, SHA-384 for SNP, empty without encryption.
    pub measurement: Vec<u8>,
    /// SEV and SEV-ES: the SHA-256 digest under that HMAC.
    pub digest: Vec<u8>,
    /// SEV and SEV-ES: the firmware's nonce.
    pub nonce: Vec<u8>,
    /// Pages placed.
    pub pages: u64,
    /// What the firmware knows the guest by.
    pub(crate) guest: Option<FirmwareGuest>,
}

/// A guest as the firmware's commands name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirmwareGuest {
    /// SEV and SEV-ES: its handle.
    Sev(u32),
    /// SNP: its context page.
    Snp(Spa),
}

impl Launched {
    /// Has the firmware forget the guest: its key is wiped, and the ASID may be used again.
    pub(crate) fn retire(&self, driver: &Driver) -> Result<(), Error> {
        match self.guest {
            Some(FirmwareGuest::Sev(handle)) => {
                driver.deactivate(handle)?;
                driver.df_flush()?;
                driver.decommission(handle)?;
            }
            Some(FirmwareGuest::Snp(gctx)) => {
                driver.snp_decommission(gctx)?;
                driver.snp_df_flush()?;
            }
            None => {}
        }
        Ok(())
    }
}

/// What a launch works on.
pub(crate) struct Launch<'a> {
    pub(crate) config: &'a MachineConfig,
    pub(crate) mem: &'a MemCtl,
    pub(crate) driver: &'a Driver,
    pub(crate) layout: &'a Layout,
    pub(crate) hv: &'a mut Hypervisor,
    pub(crate) cpuid: &'a CpuModel,
    pub(crate) asid: Asid,
    pub(crate) entropy: Entropy,
}

impl Launch<'_> {
    /// Launches `image`; afterwards the VMCB is ready to be entered by `vcpu`.
    pub(crate) fn run(&mut self, image: &Image, vcpu: &mut Vcpu) -> Result<Launched, Error> {
        let mut launched = match self.config.sev {
            SevMode::Off => {
                self.place(&image.pages)?;
                Launched::default()
            }
            SevMode::Sev => self.sev(image, vcpu, false)?,
            SevMode::Es => self.sev(image, vcpu, true)?,
            SevMode::Snp => self.snp(image, vcpu)?,
        };
        launched.pages = image.pages.len() as u64;
        self.vmcb(image)?;
        Ok(launched)
    }

    fn spa(&self, gpa: Gpa) -> Result<Spa, Error> {
        let unmapped = Error::NestedFault { gpa, error: 0 };
        self.layout.spa(gpa).ok_or(unmapped)
    }

    /// Writes the pages to DRAM as they are.
    fn place(&self, pages: &[ImagePage]) -> Result<(), Error> {
        for (gpa, page) in pages {
            self.mem.write(Domain::Shared, self.spa(*gpa)?, &page[..])?;
        }
        Ok(())
    }

    // ---- SEV and SEV-ES ----

    fn sev(&mut self, image: &Image, vcpu: &mut Vcpu, es: bool) -> Result<Launched, Error> {
        let driver = self.driver;
        driver.init(es.then_some((self.layout.tmr(), crate::layout::TMR_SIZE as u32)))?;
        driver.df_flush()?;
        let [pdh, ..] = driver.pdh_cert_export()?;
        let mut policy = self.config.sev_policy;
        policy.set(SevPolicy::ES, es);
        let owner = GuestOwner::new(self.entropy.clone())?;
        let (cert, session) = owner.session(&pdh, policy)?;
        let handle = driver.launch_start(policy, Some((&cert, &session)))?;
        driver.activate(handle, self.asid)?;

        self.place(&image.pages)?;
        let mut digest = ExpectedDigest::default();
        for (at, len) in self.runs(&image.pages)? {
            driver.launch_update_data(handle, at, len)?;
        }
        for (_, page) in &image.pages {
            digest.update(&page[..]);
        }
        if es {
            let page = vmsa_page(image, false);
            self.mem
                .write(Domain::Shared, self.layout.vmsa(), &page[..])?;
            driver.launch_update_vmsa(handle, self.layout.vmsa())?;
            digest.update(&page[..]);
            vcpu.vmsa_installed(self.layout.vmsa())?;
        }
        let m = driver.launch_measure(handle)?;
        let digest = digest.finish();
        let status = driver.platform_status()?;
        let api = ApiVersion {
            major: status.api_major,
            minor: status.api_minor,
            build: status.build,
        };
        if !owner.accepts(&m, api, policy, &digest) {
            return Err(Error::Measurement);
        }
        driver.launch_finish(handle)?;
        Ok(Launched {
            measurement: m.measure.to_vec(),
            digest: digest.to_vec(),
            nonce: m.mnonce.to_vec(),
            pages: 0,
            guest: Some(FirmwareGuest::Sev(handle)),
        })
    }

    /// The pages as contiguous regions of system physical memory, in order.
    fn runs(&self, pages: &[ImagePage]) -> Result<Vec<(Spa, u32)>, Error> {
        let mut runs: Vec<(Spa, u64)> = Vec::new();
        for (gpa, _) in pages {
            let at = self.spa(*gpa)?;
            match runs.last_mut() {
                Some((start, len)) if start.plus(*len) == at && *len < MAX_REGION => {
                    *len += PAGE_SIZE;
                }
                _ => runs.push((at, PAGE_SIZE)),
            }
        }
        Ok(runs.into_iter().map(|(at, len)| (at, len as u32)).collect())
    }

    // ---- SNP ----

    fn snp(&mut self, image: &Image, vcpu: &mut Vcpu) -> Result<Launched, Error> {
        let driver = self.driver;
        let gctx = self.layout.context();
        driver.snp_init()?;
        driver.snp_df_flush()?;
        self.firmware_page(gctx)?;
        driver.snp_gctx_create(gctx)?;
        driver.snp_launch_start(gctx, self.config.snp_policy)?;
        driver.snp_activate(gctx, self.asid)?;

        self.place(&image.pages)?;
        let cpuid = self.cpuid_page();
        let at = self.spa(self.layout.cpuid_page())?;
        self.mem.write(Domain::Shared, at, cpuid.as_bytes())?;
        self.assign_memory(&image.pages)?;

        let perms = VmplPerms::default();
        for (gpa, _) in &image.pages {
            let at = self.spa(*gpa)?;
            driver.snp_launch_update(gctx, at, SnpPageType::NORMAL, false, perms)?;
        }
        for (gpa, kind) in self.special_pages() {
            driver.snp_launch_update(gctx, self.spa(gpa)?, kind, false, perms)?;
        }
        let vmsa = vmsa_page(image, true);
        let at = self.layout.vmsa();
        self.mem.write(Domain::Shared, at, &vmsa[..])?;
        self.rmpupdate(at, VMSA_GPA, self.asid)?;
        driver.snp_launch_update(gctx, at, SnpPageType::VMSA, false, perms)?;
        vcpu.vmsa_installed(at)?;
        driver.snp_launch_finish(gctx, self.config.host_data, None)?;
        let (measured, _) = driver
            .firmware()
            .snp_identity(gctx)
            .ok_or(Error::Measurement)?;
        #[cfg(test)]
        assert_eq!(measured, self.expected(image, &vmsa));
        Ok(Launched {
            measurement: measured.to_vec(),
            guest: Some(FirmwareGuest::Snp(gctx)),
            ..Launched::default()
        })
    }

    /// The pages that the firmware fills or looks at.
    fn special_pages(&self) -> [(Gpa, SnpPageType); 2] {
        [
            (self.layout.secrets_page(), SnpPageType::SECRETS),
            (self.layout.cpuid_page(), SnpPageType::CPUID),
        ]
    }

    /// What an owner who knows the image expects the firmware to have measured.
    #[cfg(test)]
    fn expected(&self, image: &Image, vmsa: &[u8; PAGE]) -> [u8; 48] {
        let perms = VmplPerms::default();
        let mut digest = sevlab_psp::SnpDigest::default();
        for (gpa, page) in &image.pages {
            digest.extend(SnpPageType::NORMAL, false, perms, gpa.0, Some(page));
        }
        for (gpa, kind) in self.special_pages() {
            digest.extend(kind, false, perms, gpa.0, None);
        }
        digest.extend(SnpPageType::VMSA, false, perms, VMSA_GPA, Some(vmsa));
        digest.value()
    }

    /// Gives the guest the memory around what is launched, page by page. The rest it gets in 2 MiB pages
    /// when it asks for them.
    fn assign_memory(&mut self, pages: &[ImagePage]) -> Result<(), Error> {
        let mut launched: Vec<Gpa> = pages.iter().map(|(gpa, _)| *gpa).collect();
        launched.extend([self.layout.secrets_page(), self.layout.cpuid_page()]);
        launched.sort_unstable();
        for inside in launched.chunk_by(|a, b| a.0 / LARGE_PAGE == b.0 / LARGE_PAGE) {
            let head = inside[0].0 & !(LARGE_PAGE - 1);
            self.hv.memory().mark_given(Gpa(head));
            for gpa in (head..head + LARGE_PAGE).step_by(PAGE) {
                let immutable = inside.binary_search(&Gpa(gpa)).is_ok();
                self.hv
                    .memory()
                    .assign(Gpa(gpa), PageSize::Size4K, true, immutable)?;
            }
        }
        Ok(())
    }

    /// Hands a hypervisor page to the firmware.
    fn firmware_page(&self, page: Spa) -> Result<(), Error> {
        self.rmpupdate(page, 0, Asid(0))
    }

    /// RMPUPDATE to an assigned, immutable 4 KiB page.
    fn rmpupdate(&self, page: Spa, gpa: u64, asid: Asid) -> Result<(), Error> {
        let update = RmpUpdate {
            gpa,
            assigned: 1,
            page_size: 0,
            immutable: 1,
            reserved: 0,
            asid: asid.0,
        };
        match self.mem.rmp().rmpupdate(page, &update) {
            sevlab_arch::rmp::RmpStatus::SUCCESS => Ok(()),
            status => Err(Error::Rmp {
                instruction: "RMPUPDATE",
                gpa: Gpa(gpa),
                status,
            }),
        }
    }

    fn cpuid_page(&self) -> Box<CpuidPage> {
        let mut page = Box::new(CpuidPage::new_zeroed());
        let leaves = CpuModel::page_leaves();
        page.count = leaves.len() as u32;
        for (entry, (leaf, subleaf)) in page.entries.iter_mut().zip(leaves) {
            let [eax, ebx, ecx, edx] = self.cpuid.leaf(leaf, subleaf);
            *entry = CpuidEntry {
                eax_in: leaf,
                ecx_in: subleaf,
                xcr0_in: if leaf == 0xd { 7 } else { 0 },
                eax,
                ebx,
                ecx,
                edx,
                ..CpuidEntry::default()
            };
        }
        page
    }

    // ---- the VMCB ----

    fn vmcb(&self, image: &Image) -> Result<(), Error> {
        let vmsa = self.layout.vmsa();
        let root = self.hv.memory().npt.root();
        let control = control(self.config, self.asid, root, vmsa);
        let at = self.layout.vmcb();
        self.mem.write(Domain::Shared, at, control.as_bytes())?;
        if !self.config.sev.encrypted_state() {
            let save = save_area(image);
            self.mem.write(
                Domain::Shared,
                at.plus(Control::SIZE as u64),
                save.as_bytes(),
            )?;
        }
        Ok(())
    }
}

/// The VMCB's control area of a vCPU that has not run yet.
pub(crate) fn control(config: &MachineConfig, asid: Asid, nested_root: Spa, vmsa: Spa) -> Control {
    let mode = config.sev;
    let nested = match mode {
        SevMode::Off => 0,
        SevMode::Sev => Control::NESTED_SEV,
        SevMode::Es | SevMode::Snp => Control::NESTED_SEV | Control::NESTED_SEV_ES,
    };
    let mut misc1 = Intercepts1::CPUID
        | Intercepts1::RDTSC
        | Intercepts1::HLT
        | Intercepts1::IOIO
        | Intercepts1::MSR
        | Intercepts1::SHUTDOWN;
    let mut misc2 = Intercepts2::VMRUN | Intercepts2::VMMCALL | Intercepts2::RDTSCP;
    if config.model.is_some() {
        // The TSC is the vCPU's own, and read without an exit, as under KVM.
        misc1 -= Intercepts1::RDTSC;
        misc2 -= Intercepts2::RDTSCP;
    }
    Control {
        intercept_misc1: misc1.bits(),
        intercept_misc2: misc2.bits(),
        asid: asid.0,
        tlb_control: Control::TLB_FLUSH_ASID,
        nested_control: Control::NESTED_PAGING | nested,
        nested_cr3: nested_root.0,
        vmsa_pa: if mode.encrypted_state() { vmsa.0 } else { 0 },
        ..Control::default()
    }
}

/// The registers that both kinds of save area hold, from the state a process starts in.
macro_rules! start_state {
    ($area:ident, $image:expr, $state:expr) => {
        let s: &CpuState = $state;
        $area.es = segment(s, seg::ES);
        $area.cs = segment(s, seg::CS);
        $area.ss = segment(s, seg::SS);
        $area.ds = segment(s, seg::DS);
        $area.fs = segment(s, seg::FS);
        $area.gs = segment(s, seg::GS);
        $area.tr = Segment {
            selector: s.tr.selector,
            attributes: s.tr.attr,
            limit: s.tr.limit,
            base: s.tr.base,
        };
        $area.cpl = s.cpl;
        $area.efer = s.sys.efer | EFER_SVME;
        $area.cr0 = s.sys.cr0;
        $area.cr3 = $image.cr3;
        $area.cr4 = s.sys.cr4;
        $area.dr6 = s.sys.dr[6];
        $area.dr7 = s.sys.dr[7];
        $area.rflags = s.rflags();
        $area.rip = $image.rip;
        $area.rsp = $image.rsp;
        $area.g_pat = s.sys.pat;
    };
}

fn segment(s: &CpuState, index: usize) -> Segment {
    let from = &s.seg[index];
    Segment {
        selector: from.selector,
        attributes: from.attr,
        limit: from.limit,
        base: from.base,
    }
}

fn save_area(image: &Image) -> Save {
    let state = CpuState::process();
    let mut area = Save::default();
    start_state!(area, image, &state);
    area
}

fn vmsa_page(image: &Image, snp: bool) -> Box<[u8; PAGE]> {
    let state = CpuState::process();
    let mut area = Vmsa::default();
    start_state!(area, image, &state);
    area.xcr0 = state.sys.xcr0;
    area.mxcsr = state.mxcsr;
    area.x87_fcw = 0x37f;
    // Every x87 register is empty.
    area.x87_ftw = 0xffff;
    if snp {
        area.sev_features = SevFeatures::SNP_ACTIVE.bits();
    }
    let mut page = Box::new([0; PAGE]);
    page[..Vmsa::SIZE].copy_from_slice(area.as_bytes());
    page
}
