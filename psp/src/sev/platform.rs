//! Platform commands: INIT, SHUTDOWN, PLATFORM_STATUS, PDH_CERT_EXPORT, GET_ID, DF_FLUSH.

use sevlab_arch::Spa;
use sevlab_arch::psp::{
    Certificate, GetId, Init, InitEx, PdhCertExport, PlatformState, PlatformStatus, Status,
};
use zerocopy::IntoBytes;

use crate::cert;
use crate::firmware::State;

/// The trusted memory region's alignment and least length.
const TMR_SIZE: u64 = 1 << 20;

impl State {
    pub(crate) fn init(&mut self, buf: Spa) -> Result<(), Status> {
        let c: Init = self.dram.get(buf)?;
        self.init_with(c.flags, c.reserved, c.tmr_address, c.tmr_len)
    }

    pub(crate) fn init_ex(&mut self, buf: Spa) -> Result<(), Status> {
        let c: InitEx = self.dram.get(buf)?;
        if { c.length } as usize != InitEx::SIZE {
            return Err(Status::INVALID_LENGTH);
        }
        self.init_with(c.flags, c.reserved, c.tmr_address, c.tmr_len)
    }

    fn init_with(&mut self, flags: u32, reserved: u32, tmr: u64, len: u32) -> Result<(), Status> {
        if self.platform != PlatformState::UNINIT {
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        if flags & !Init::FLAG_ES != 0 || reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let es = flags & Init::FLAG_ES != 0;
        if es {
            if !tmr.is_multiple_of(TMR_SIZE) {
                return Err(Status::INVALID_ADDRESS);
            }
            if u64::from(len) < TMR_SIZE {
                return Err(Status::INVALID_LENGTH);
            }
            self.dram.check(Spa(tmr), u64::from(len))?;
        }
        self.es = es;
        self.platform = PlatformState::INIT;
        Ok(())
    }

    pub(crate) fn shutdown(&mut self) -> Result<(), Status> {
        let asids: Vec<_> = self.guests.values().filter_map(|g| g.asid).collect();
        for asid in asids {
            self.release(asid);
        }
        self.guests.clear();
        self.es = false;
        self.platform = PlatformState::UNINIT;
        Ok(())
    }

    pub(crate) fn platform_status(&mut self, buf: Spa) -> Result<(), Status> {
        let flags = if self.es { PlatformStatus::FLAG_ES } else { 0 };
        let status = PlatformStatus {
            api_major: self.config.api.major,
            api_minor: self.config.api.minor,
            state: self.platform.0,
            flags,
            build: self.config.api.build,
            guest_count: self.guests.len() as u32,
        };
        self.output(buf, PlatformStatus::SIZE as u64)?;
        self.dram.put(buf, &status)
    }

    pub(crate) fn pdh_cert_export(&mut self, buf: Spa) -> Result<(), Status> {
        if self.platform == PlatformState::UNINIT {
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        let mut c: PdhCertExport = self.dram.get(buf)?;
        if c.reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let one = Certificate::SIZE as u32;
        if { c.pdh_cert_len } < one || { c.cert_chain_len } < 3 * one {
            self.output(buf, PdhCertExport::SIZE as u64)?;
            c.pdh_cert_len = one;
            c.cert_chain_len = 3 * one;
            self.dram.put(buf, &c)?;
            return Err(Status::INVALID_LENGTH);
        }
        let chain = cert::export(&self.config, self.chip());
        let (pdh, rest) = (Spa(c.pdh_cert_address), Spa(c.cert_chain_address));
        self.output(pdh, u64::from(one))?;
        self.output(rest, 3 * u64::from(one))?;
        self.dram.write(pdh, chain[0].as_bytes())?;
        for (i, cert) in chain[1..].iter().enumerate() {
            self.dram
                .write(rest.plus(i as u64 * u64::from(one)), cert.as_bytes())?;
        }
        Ok(())
    }

    pub(crate) fn get_id(&mut self, buf: Spa) -> Result<(), Status> {
        let mut c: GetId = self.dram.get(buf)?;
        let id = self.chip().chip_id;
        if ({ c.len } as usize) < id.len() {
            self.output(buf, GetId::SIZE as u64)?;
            c.len = id.len() as u32;
            self.dram.put(buf, &c)?;
            return Err(Status::INVALID_LENGTH);
        }
        self.output(Spa(c.address), id.len() as u64)?;
        self.dram.write(Spa(c.address), &id)
    }

    pub(crate) fn df_flush(&mut self) -> Result<(), Status> {
        if self.platform == PlatformState::UNINIT {
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        self.unflushed.clear();
        Ok(())
    }
}
