//! The host's driver for the secure processor: fills command buffers in DRAM, submits them, reads the
//! answers back. What Linux's ccp driver does for KVM.

use std::sync::{Arc, Mutex, PoisonError};

use sevlab_arch::psp::*;
use sevlab_arch::{Asid, PAGE_SIZE, Spa};
use sevlab_memctl::{Domain, MemCtl};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::firmware::Firmware;
use crate::measure::VmplPerms;

/// Pages of hypervisor memory a [`Driver`] uses: the command buffer, then data the commands point at.
pub const AREA_PAGES: u64 = 8;

/// Why a driver call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The firmware refused the command.
    #[error("{command}: {status}")]
    Refused {
        /// The command.
        command: Command,
        /// The firmware's answer.
        status: Status,
    },
    /// The driver's own memory can't be reached.
    #[error("command buffer: {source}")]
    Memory {
        /// The memory controller's error.
        #[from]
        source: sevlab_memctl::Error,
    },
}

impl DriverError {
    /// The firmware's answer, if that is what failed.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Memory { .. } => None,
        }
    }
}

/// One submitted command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// The command.
    pub command: Command,
    /// The firmware's answer.
    pub status: Status,
}

/// A handle on the secure processor, with a few pages of DRAM for command buffers.
pub struct Driver {
    firmware: Arc<Firmware>,
    mem: Arc<MemCtl>,
    area: Spa,
    log: Mutex<Vec<LogEntry>>,
}

type Result<T> = std::result::Result<T, DriverError>;

impl Driver {
    /// A driver that uses [`AREA_PAGES`] pages of hypervisor memory at `area`.
    #[must_use]
    pub fn new(firmware: Arc<Firmware>, mem: Arc<MemCtl>, area: Spa) -> Self {
        Self {
            firmware,
            mem,
            area,
            log: Mutex::new(Vec::new()),
        }
    }

    /// The secure processor.
    #[must_use]
    pub fn firmware(&self) -> &Arc<Firmware> {
        &self.firmware
    }

    /// Every command submitted so far, in order.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Submits `command` with `buffer` as its command buffer; the buffer is read back.
    ///
    /// # Errors
    /// [`DriverError`]. The buffer is read back also if the firmware refuses.
    pub fn call<T: FromBytes + IntoBytes + Immutable>(
        &self,
        command: Command,
        buffer: &mut T,
    ) -> Result<()> {
        self.mem
            .write(Domain::Shared, self.area, buffer.as_bytes())?;
        let status = self.firmware.submit(command.0, self.area);
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(LogEntry { command, status });
        self.mem
            .read(Domain::Shared, self.area, buffer.as_mut_bytes())?;
        if status.is_success() {
            Ok(())
        } else {
            Err(DriverError::Refused { command, status })
        }
    }

    /// Submits a command that takes no buffer.
    fn bare(&self, command: Command) -> Result<()> {
        self.call(command, &mut [0u8; 4])
    }

    /// The data page number `n` of the area.
    fn data(&self, n: u64) -> Spa {
        self.area.plus((1 + n) * PAGE_SIZE)
    }

    fn put<T: IntoBytes + Immutable + ?Sized>(&self, n: u64, value: &T) -> Result<Spa> {
        let at = self.data(n);
        self.mem.write(Domain::Shared, at, value.as_bytes())?;
        Ok(at)
    }

    fn get<T: FromBytes + IntoBytes>(&self, n: u64) -> Result<T> {
        let mut value = T::new_zeroed();
        self.mem
            .read(Domain::Shared, self.data(n), value.as_mut_bytes())?;
        Ok(value)
    }

    /// INIT; `tmr` is the trusted memory region (address, length) that SEV-ES needs.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn init(&self, tmr: Option<(Spa, u32)>) -> Result<()> {
        let mut c = Init::default();
        if let Some((at, len)) = tmr {
            c.flags = Init::FLAG_ES;
            c.tmr_address = at.0;
            c.tmr_len = len;
        }
        self.call(Command::INIT, &mut c)
    }

    /// SHUTDOWN.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn shutdown(&self) -> Result<()> {
        self.bare(Command::SHUTDOWN)
    }

    /// PLATFORM_STATUS.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn platform_status(&self) -> Result<PlatformStatus> {
        let mut c = PlatformStatus::default();
        self.call(Command::PLATFORM_STATUS, &mut c)?;
        Ok(c)
    }

    /// PDH_CERT_EXPORT: PDH, then PEK, OCA and CEK.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn pdh_cert_export(&self) -> Result<[Certificate; 4]> {
        let mut c = PdhCertExport {
            pdh_cert_address: self.data(0).0,
            pdh_cert_len: Certificate::SIZE as u32,
            cert_chain_address: self.data(1).0,
            cert_chain_len: 3 * Certificate::SIZE as u32,
            ..PdhCertExport::default()
        };
        self.call(Command::PDH_CERT_EXPORT, &mut c)?;
        let [a, b, d] = self.get::<[Certificate; 3]>(1)?;
        Ok([self.get(0)?, a, b, d])
    }

    /// DF_FLUSH.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn df_flush(&self) -> Result<()> {
        self.bare(Command::DF_FLUSH)
    }

    /// LAUNCH_START; returns the guest's handle.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_start(
        &self,
        policy: SevPolicy,
        session: Option<(&Certificate, &Session)>,
    ) -> Result<u32> {
        let mut c = LaunchStart {
            policy: policy.bits(),
            ..LaunchStart::default()
        };
        if let Some((cert, session)) = session {
            c.dh_cert_address = self.put(0, cert)?.0;
            c.dh_cert_len = Certificate::SIZE as u32;
            c.session_address = self.put(1, session)?.0;
            c.session_len = Session::SIZE as u32;
        }
        self.call(Command::LAUNCH_START, &mut c)?;
        Ok(c.handle)
    }

    /// LAUNCH_UPDATE_DATA.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_update_data(&self, handle: u32, at: Spa, len: u32) -> Result<()> {
        let mut c = LaunchUpdate {
            handle,
            address: at.0,
            len,
            ..LaunchUpdate::default()
        };
        self.call(Command::LAUNCH_UPDATE_DATA, &mut c)
    }

    /// LAUNCH_UPDATE_VMSA on the page at `at`.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_update_vmsa(&self, handle: u32, at: Spa) -> Result<()> {
        let mut c = LaunchUpdate {
            handle,
            address: at.0,
            len: PAGE_SIZE as u32,
            ..LaunchUpdate::default()
        };
        self.call(Command::LAUNCH_UPDATE_VMSA, &mut c)
    }

    /// LAUNCH_MEASURE.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_measure(&self, handle: u32) -> Result<Measurement> {
        let mut c = LaunchMeasure {
            handle,
            address: self.data(0).0,
            len: Measurement::SIZE as u32,
            ..LaunchMeasure::default()
        };
        self.call(Command::LAUNCH_MEASURE, &mut c)?;
        self.get(0)
    }

    /// LAUNCH_SECRET: injects `packet` (at most 8 KiB here) at guest memory `at`.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_secret(
        &self,
        handle: u32,
        header: &PacketHeader,
        packet: &[u8],
        at: Spa,
    ) -> Result<()> {
        let mut c = LaunchSecret {
            handle,
            hdr_address: self.put(0, header)?.0,
            hdr_len: PacketHeader::SIZE as u32,
            guest_address: at.0,
            guest_len: packet.len() as u32,
            trans_address: self.data(1).0,
            trans_len: packet.len() as u32,
            ..LaunchSecret::default()
        };
        if packet.len() as u64 <= 2 * PAGE_SIZE {
            self.put(1, packet)?;
        }
        self.call(Command::LAUNCH_SECRET, &mut c)
    }

    /// LAUNCH_FINISH.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn launch_finish(&self, handle: u32) -> Result<()> {
        self.call(Command::LAUNCH_FINISH, &mut Handle { handle })
    }

    /// ACTIVATE.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn activate(&self, handle: u32, asid: Asid) -> Result<()> {
        let mut c = Activate {
            handle,
            asid: asid.0,
        };
        self.call(Command::ACTIVATE, &mut c)
    }

    /// DEACTIVATE.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn deactivate(&self, handle: u32) -> Result<()> {
        self.call(Command::DEACTIVATE, &mut Handle { handle })
    }

    /// DECOMMISSION.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn decommission(&self, handle: u32) -> Result<()> {
        self.call(Command::DECOMMISSION, &mut Handle { handle })
    }

    /// GUEST_STATUS.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn guest_status(&self, handle: u32) -> Result<GuestStatus> {
        let mut c = GuestStatus {
            handle,
            ..GuestStatus::default()
        };
        self.call(Command::GUEST_STATUS, &mut c)?;
        Ok(c)
    }

    /// SNP_INIT_EX with the RMP initialised.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_init(&self) -> Result<()> {
        let mut c = SnpInitEx {
            flags: SnpInitEx::FLAG_INIT_RMP,
            ..SnpInitEx::default()
        };
        self.call(Command::SNP_INIT_EX, &mut c)
    }

    /// SNP_SHUTDOWN.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_shutdown(&self) -> Result<()> {
        self.bare(Command::SNP_SHUTDOWN)
    }

    /// SNP_DF_FLUSH.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_df_flush(&self) -> Result<()> {
        self.bare(Command::SNP_DF_FLUSH)
    }

    /// SNP_PLATFORM_STATUS.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_platform_status(&self) -> Result<SnpPlatformStatus> {
        let mut c = SnpAddress {
            address: self.data(0).0,
        };
        self.call(Command::SNP_PLATFORM_STATUS, &mut c)?;
        self.get(0)
    }

    /// SNP_GCTX_CREATE on a firmware page.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_gctx_create(&self, page: Spa) -> Result<()> {
        self.call(
            Command::SNP_GCTX_CREATE,
            &mut SnpAddress { address: page.0 },
        )
    }

    /// SNP_LAUNCH_START.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_launch_start(&self, gctx: Spa, policy: SnpPolicy) -> Result<()> {
        let mut c = SnpLaunchStart {
            gctx_paddr: gctx.0,
            policy: policy.bits(),
            ..SnpLaunchStart::default()
        };
        self.call(Command::SNP_LAUNCH_START, &mut c)
    }

    /// SNP_ACTIVATE.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_activate(&self, gctx: Spa, asid: Asid) -> Result<()> {
        let mut c = SnpActivate {
            gctx_paddr: gctx.0,
            asid: asid.0,
        };
        self.call(Command::SNP_ACTIVATE, &mut c)
    }

    /// SNP_LAUNCH_UPDATE of one page: 4 KiB, or 2 MiB if `large`.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_launch_update(
        &self,
        gctx: Spa,
        page: Spa,
        kind: SnpPageType,
        large: bool,
        perms: VmplPerms,
    ) -> Result<()> {
        let mut c = SnpLaunchUpdate {
            gctx_paddr: gctx.0,
            page: u32::from(kind.0) << SnpLaunchUpdate::PAGE_TYPE_SHIFT | u32::from(large),
            address: page.0,
            vmpl1_perms: perms.vmpl1,
            vmpl2_perms: perms.vmpl2,
            vmpl3_perms: perms.vmpl3,
            ..SnpLaunchUpdate::default()
        };
        self.call(Command::SNP_LAUNCH_UPDATE, &mut c)
    }

    /// SNP_LAUNCH_FINISH; `identity` is the identity block, its authentication, and whether that holds an
    /// author key.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_launch_finish(
        &self,
        gctx: Spa,
        host_data: [u8; 32],
        identity: Option<(&IdBlock, &IdAuth, bool)>,
    ) -> Result<()> {
        let mut c = SnpLaunchFinish {
            gctx_paddr: gctx.0,
            host_data,
            ..SnpLaunchFinish::default()
        };
        if let Some((block, auth, author)) = identity {
            c.flags = SnpLaunchFinish::FLAG_ID_BLOCK_EN;
            if author {
                c.flags |= SnpLaunchFinish::FLAG_AUTH_KEY_EN;
            }
            c.id_block_paddr = self.put(0, block)?.0;
            c.id_auth_paddr = self.put(1, auth)?.0;
        }
        self.call(Command::SNP_LAUNCH_FINISH, &mut c)
    }

    /// SNP_GUEST_STATUS: policy, ASID, state.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_guest_status(&self, gctx: Spa) -> Result<(SnpPolicy, Asid, SnpGuestState)> {
        let mut c = SnpGuestStatus {
            gctx_paddr: gctx.0,
            address: self.data(0).0,
        };
        self.call(Command::SNP_GUEST_STATUS, &mut c)?;
        let words: [u32; 8] = self.get(0)?;
        let policy = u64::from(words[0]) | u64::from(words[1]) << 32;
        Ok((
            SnpPolicy::from_bits_retain(policy),
            Asid(words[2]),
            SnpGuestState(words[3] as u8),
        ))
    }

    /// SNP_DECOMMISSION.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_decommission(&self, gctx: Spa) -> Result<()> {
        self.call(
            Command::SNP_DECOMMISSION,
            &mut SnpAddress { address: gctx.0 },
        )
    }

    /// SNP_PAGE_RECLAIM of a 4 KiB page.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn snp_page_reclaim(&self, page: Spa) -> Result<()> {
        self.call(
            Command::SNP_PAGE_RECLAIM,
            &mut SnpPageReclaim { paddr: page.0 },
        )
    }
}
