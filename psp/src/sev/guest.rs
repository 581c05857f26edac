//! Guest commands: ACTIVATE, DEACTIVATE, DECOMMISSION, GUEST_STATUS, debugging.

use sevlab_arch::psp::{
    Activate, Dbg, Deactivate, Decommission, GuestState, GuestStatus, PlatformState, SevPolicy,
    Status,
};
use sevlab_arch::{Asid, Spa};
use zeroize::Zeroizing;

use crate::firmware::{Owner, State};

/// Longest region of one debug command.
const MAX_DEBUG: u32 = 1 << 20;

impl State {
    pub(crate) fn activate(&mut self, buf: Spa) -> Result<(), Status> {
        let c: Activate = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        if guest.state == GuestState::SENT {
            return Err(Status::INVALID_GUEST_STATE);
        }
        if guest.asid.is_some() {
            return Err(Status::ACTIVE);
        }
        let es = guest.policy.contains(SevPolicy::ES);
        let asid = Asid(c.asid);
        self.check_asid(asid, es)?;
        self.bind(asid, Owner::Sev(c.handle))?;
        self.guest(c.handle)?.asid = Some(asid);
        Ok(())
    }

    pub(crate) fn deactivate(&mut self, buf: Spa) -> Result<(), Status> {
        let c: Deactivate = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        let asid = guest.asid.take().ok_or(Status::INACTIVE)?;
        self.release(asid);
        Ok(())
    }

    pub(crate) fn decommission(&mut self, buf: Spa) -> Result<(), Status> {
        let c: Decommission = self.dram.get(buf)?;
        if self.guest(c.handle)?.asid.is_some() {
            return Err(Status::ACTIVE);
        }
        self.guests.remove(&{ c.handle });
        if self.guests.is_empty() {
            self.platform = PlatformState::INIT;
        }
        Ok(())
    }

    pub(crate) fn guest_status(&mut self, buf: Spa) -> Result<(), Status> {
        let mut c: GuestStatus = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        c.policy = guest.policy.bits();
        c.asid = guest.asid.map_or(0, |a| a.0);
        c.state = guest.state.0;
        self.output(buf, GuestStatus::SIZE as u64)?;
        self.dram.put(buf, &c)
    }

    /// DBG_DECRYPT (`decrypt`) and DBG_ENCRYPT.
    pub(crate) fn dbg(&mut self, buf: Spa, decrypt: bool) -> Result<(), Status> {
        let c: Dbg = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        if guest.policy.contains(SevPolicy::NODBG) {
            return Err(Status::POLICY_FAILURE);
        }
        let asid = guest.asid.ok_or(Status::INACTIVE)?;
        let len = { c.len };
        if c.reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        if len == 0 || len % 16 != 0 || len > MAX_DEBUG {
            return Err(Status::INVALID_LENGTH);
        }
        let (src, dst) = (Spa(c.src_address), Spa(c.dst_address));
        if src.0 % 16 != 0 || dst.0 % 16 != 0 {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(src, u64::from(len))?;
        self.dram.check(dst, u64::from(len))?;
        let mut data = Zeroizing::new(vec![0; len as usize]);
        if decrypt {
            self.output(dst, u64::from(len))?;
            self.decrypt(asid, src, &mut data)?;
            self.dram.write(dst, &data)
        } else {
            self.plain_pages(dst, u64::from(len))?;
            self.dram.read(src, &mut data)?;
            self.encrypt(asid, dst, &data)
        }
    }
}
