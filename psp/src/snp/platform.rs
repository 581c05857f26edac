//! Platform commands: SNP_INIT, SNP_SHUTDOWN, SNP_PLATFORM_STATUS, SNP_DF_FLUSH, SNP_PAGE_RECLAIM.

use sevlab_arch::psp::{
    PlatformState, SnpAddress, SnpInitEx, SnpPageReclaim, SnpPlatformStatus, SnpRange,
    SnpShutdownEx, Status,
};
use sevlab_arch::{PAGE_SIZE, Spa};

use crate::firmware::State;
use crate::pages::PageKind;

/// Most ranges SNP_INIT_EX takes: what fits one page.
const MAX_RANGES: u32 = 255;

impl State {
    pub(crate) fn snp_init(&mut self) -> Result<(), Status> {
        self.snp_init_checks()?;
        self.snp = true;
        Ok(())
    }

    fn snp_init_checks(&self) -> Result<(), Status> {
        if self.snp || self.platform != PlatformState::UNINIT {
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        if self.dram.0.config().snp {
            Ok(())
        } else {
            Err(Status::INVALID_CONFIG)
        }
    }

    pub(crate) fn snp_init_ex(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpInitEx = self.dram.get(buf)?;
        self.snp_init_checks()?;
        let known = SnpInitEx::FLAG_INIT_RMP
            | SnpInitEx::FLAG_LIST_PADDR_EN
            | SnpInitEx::FLAG_RAPL_DIS
            | SnpInitEx::FLAG_CIPHERTEXT_HIDING_EN
            | SnpInitEx::FLAG_TIO_EN;
        let flags = { c.flags };
        if flags & !known != 0 || c.reserved1 != 0 || c.reserved2.iter().any(|b| *b != 0) {
            return Err(Status::INVALID_PARAM);
        }
        if flags & (SnpInitEx::FLAG_CIPHERTEXT_HIDING_EN | SnpInitEx::FLAG_TIO_EN) != 0 {
            return Err(Status::INVALID_CONFIG);
        }
        if flags & SnpInitEx::FLAG_LIST_PADDR_EN != 0 {
            self.check_ranges(Spa(c.list_paddr))?;
        }
        self.rapl_disabled = flags & SnpInitEx::FLAG_RAPL_DIS != 0;
        self.snp = true;
        Ok(())
    }

    /// Pages to become HV-fixed must exist; this machine's devices never write guest pages, so that is all.
    fn check_ranges(&self, list: Spa) -> Result<(), Status> {
        let mut header = [0; 8];
        self.dram.read(list, &mut header)?;
        let count = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if count > MAX_RANGES {
            return Err(Status::INVALID_LENGTH);
        }
        for i in 0..u64::from(count) {
            let range: SnpRange = self.dram.get(list.plus(8 + i * SnpRange::SIZE as u64))?;
            if range.reserved != 0 {
                return Err(Status::INVALID_PARAM);
            }
            if !range.base.is_multiple_of(PAGE_SIZE) {
                return Err(Status::INVALID_ADDRESS);
            }
        }
        Ok(())
    }

    pub(crate) fn snp_shutdown(&mut self) -> Result<(), Status> {
        if self.snp && self.platform != PlatformState::UNINIT {
            // SEV goes down first.
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        let guests: Vec<Spa> = self.contexts.keys().copied().collect();
        for gctx in guests {
            self.drop_context(gctx)?;
        }
        self.snp = false;
        self.rapl_disabled = false;
        Ok(())
    }

    pub(crate) fn snp_shutdown_ex(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpShutdownEx = self.dram.get(buf)?;
        if { c.length } as usize != SnpShutdownEx::SIZE {
            return Err(Status::INVALID_LENGTH);
        }
        if { c.flags } & !3 != 0 {
            return Err(Status::INVALID_PARAM);
        }
        self.snp_shutdown()
    }

    pub(crate) fn snp_platform_status(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpAddress = self.dram.get(buf)?;
        let mut flags = 0;
        if self.rapl_disabled {
            flags |= SnpPlatformStatus::FLAG_RAPL_DIS;
        }
        let status = SnpPlatformStatus {
            api_major: self.config.snp_api.major,
            api_minor: self.config.snp_api.minor,
            state: u8::from(self.snp),
            is_rmp_init: u8::from(self.snp),
            build_id: u32::from(self.config.snp_api.build),
            flags,
            guest_count: self.contexts.len() as u32,
            current_tcb: self.config.tcb,
            reported_tcb: self.config.tcb,
        };
        self.output(Spa(c.address), SnpPlatformStatus::SIZE as u64)?;
        self.dram.put(Spa(c.address), &status)
    }

    pub(crate) fn snp_df_flush(&mut self) -> Result<(), Status> {
        self.snp_ready()?;
        self.unflushed.clear();
        Ok(())
    }

    pub(crate) fn snp_page_reclaim(&mut self, buf: Spa) -> Result<(), Status> {
        let c: SnpPageReclaim = self.dram.get(buf)?;
        self.snp_ready()?;
        let paddr = { c.paddr };
        let large = paddr & 1 != 0;
        let size = if large { 512 * PAGE_SIZE } else { PAGE_SIZE };
        let page = Spa(paddr & !1);
        if !page.0.is_multiple_of(size) {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(page, size)?;
        let entry = self.rmp_entry(page)?;
        if entry.is_2m() != large {
            return Err(Status::INVALID_PAGE_SIZE);
        }
        match PageKind::of(&entry) {
            PageKind::Firmware | PageKind::PreGuest => self.rmp_reclaim(page, entry),
            _ => Err(Status::INVALID_PAGE_STATE),
        }
    }
}
