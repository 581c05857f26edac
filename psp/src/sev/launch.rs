//! Launch commands: from LAUNCH_START to LAUNCH_FINISH.

use sevlab_arch::psp::{
    Certificate, GuestState, LaunchFinish, LaunchMeasure, LaunchSecret, LaunchStart, LaunchUpdate,
    Measurement, PacketHeader, PlatformState, Session, SevPolicy, Status,
};
use sevlab_arch::{Asid, PAGE_SIZE, Spa};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::SevGuest;
use crate::dram::pages;
use crate::entropy::hmac_sha256;
use crate::firmware::State;
use crate::measure::SevDigest;
use crate::session::{TransportKeys, ctr};

/// Longest secret one LAUNCH_SECRET may carry.
const MAX_SECRET: u32 = 16 << 10;

impl State {
    pub(crate) fn launch_start(&mut self, buf: Spa) -> Result<(), Status> {
        if self.platform == PlatformState::UNINIT {
            return Err(Status::INVALID_PLATFORM_STATE);
        }
        let mut c: LaunchStart = self.dram.get(buf)?;
        if c.reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let policy = SevPolicy::from_bits(c.policy).ok_or(Status::POLICY_FAILURE)?;
        let wanted = (policy.api_major(), policy.api_minor());
        if wanted > (self.config.api.major, self.config.api.minor)
            || policy.contains(SevPolicy::ES) && !self.es
        {
            return Err(Status::POLICY_FAILURE);
        }
        if c.handle != 0 {
            // Sharing another guest's key.
            let other = self
                .guests
                .get(&{ c.handle })
                .ok_or(Status::INVALID_GUEST)?;
            return Err(if (policy | other.policy).contains(SevPolicy::NOKS) {
                Status::POLICY_FAILURE
            } else {
                Status::UNSUPPORTED
            });
        }
        let transport = self.transport_keys(&c, policy)?;
        self.output(buf, LaunchStart::SIZE as u64)?;
        let vek = self.new_vek()?;
        let handle = self.next_handle;
        c.handle = handle;
        self.dram.put(buf, &c)?;
        self.next_handle = self.next_handle.wrapping_add(1).max(1);
        self.guests.insert(
            handle,
            SevGuest {
                state: GuestState::LAUNCH_UPDATE,
                policy,
                asid: None,
                vek,
                transport,
                digest: SevDigest::default(),
                measurement: None,
            },
        );
        self.platform = PlatformState::WORKING;
        Ok(())
    }

    fn transport_keys(
        &mut self,
        c: &LaunchStart,
        policy: SevPolicy,
    ) -> Result<TransportKeys, Status> {
        let (cert, session) = ({ c.dh_cert_address }, { c.session_address });
        if cert == 0 && session == 0 {
            return TransportKeys::random(&mut self.rng);
        }
        if cert == 0 || session == 0 {
            return Err(Status::INVALID_PARAM);
        }
        if ({ c.dh_cert_len } as usize) < Certificate::SIZE
            || ({ c.session_len } as usize) < Session::SIZE
        {
            return Err(Status::INVALID_LENGTH);
        }
        let cert: Certificate = self.dram.get(Spa(cert))?;
        let session: Session = self.dram.get(Spa(session))?;
        TransportKeys::unwrap(&self.chip().pdh, &cert, &session, policy)
    }

    /// The checks that LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA share: guest, ASID, range.
    fn launch_region(&mut self, c: &LaunchUpdate) -> Result<(Asid, Spa, u64), Status> {
        let guest = self.guest(c.handle)?;
        if guest.state != GuestState::LAUNCH_UPDATE {
            return Err(Status::INVALID_GUEST_STATE);
        }
        let asid = guest.asid.ok_or(Status::INACTIVE)?;
        if c.reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let (at, len) = (Spa(c.address), u64::from(c.len));
        if len == 0 || len % 16 != 0 {
            return Err(Status::INVALID_LENGTH);
        }
        if !at.0.is_multiple_of(16) {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(at, len)?;
        self.plain_pages(at, len)?;
        Ok((asid, at, len))
    }

    /// Hashes and encrypts a checked region page by page.
    fn measure_region(&mut self, handle: u32, asid: Asid, at: Spa, len: u64) -> Result<(), Status> {
        let mut digest = self.guest(handle)?.digest.clone();
        let mut page_bytes = Zeroizing::new([0u8; PAGE_SIZE as usize]);
        for page in pages(at, len) {
            let start = page.0.max(at.0);
            let end = (page.0 + PAGE_SIZE).min(at.0 + len);
            let bytes = &mut page_bytes[..(end - start) as usize];
            self.dram.read(Spa(start), bytes)?;
            digest.update(bytes);
            self.encrypt(asid, Spa(start), bytes)?;
        }
        self.guest(handle)?.digest = digest;
        Ok(())
    }

    pub(crate) fn launch_update_data(&mut self, buf: Spa) -> Result<(), Status> {
        let c: LaunchUpdate = self.dram.get(buf)?;
        let (asid, at, len) = self.launch_region(&c)?;
        self.measure_region(c.handle, asid, at, len)
    }

    pub(crate) fn launch_update_vmsa(&mut self, buf: Spa) -> Result<(), Status> {
        let c: LaunchUpdate = self.dram.get(buf)?;
        if !self.guest(c.handle)?.policy.contains(SevPolicy::ES) {
            return Err(Status::POLICY_FAILURE);
        }
        let (asid, at, len) = self.launch_region(&c)?;
        if at.offset() != 0 {
            return Err(Status::INVALID_ADDRESS);
        }
        if len != PAGE_SIZE {
            return Err(Status::INVALID_LENGTH);
        }
        self.measure_region(c.handle, asid, at, len)
    }

    pub(crate) fn launch_measure(&mut self, buf: Spa) -> Result<(), Status> {
        let mut c: LaunchMeasure = self.dram.get(buf)?;
        let api = self.config.api;
        if self.guest(c.handle)?.state != GuestState::LAUNCH_UPDATE {
            return Err(Status::INVALID_GUEST_STATE);
        }
        if c.reserved != 0 {
            return Err(Status::INVALID_PARAM);
        }
        self.output(buf, LaunchMeasure::SIZE as u64)?;
        if ({ c.len } as usize) < Measurement::SIZE {
            c.len = Measurement::SIZE as u32;
            self.dram.put(buf, &c)?;
            return Err(Status::INVALID_LENGTH);
        }
        let at = Spa(c.address);
        self.output(at, Measurement::SIZE as u64)?;
        let mnonce = *self.rng.bytes::<16>().ok_or(Status::HWERROR_PLATFORM)?;
        let guest = self.guest(c.handle)?;
        let measure = guest
            .digest
            .measurement(&guest.transport.tik, api, guest.policy, &mnonce);
        self.dram.put(at, &Measurement { measure, mnonce })?;
        c.len = Measurement::SIZE as u32;
        self.dram.put(buf, &c)?;
        let guest = self.guest(c.handle)?;
        guest.measurement = Some(measure);
        guest.state = GuestState::LAUNCH_SECRET;
        Ok(())
    }

    pub(crate) fn launch_secret(&mut self, buf: Spa) -> Result<(), Status> {
        let c: LaunchSecret = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        let (GuestState::LAUNCH_SECRET, Some(measure)) = (guest.state, guest.measurement) else {
            return Err(Status::INVALID_GUEST_STATE);
        };
        let asid = guest.asid.ok_or(Status::INACTIVE)?;
        let tik = Zeroizing::new(guest.transport.tik);
        let tek = Zeroizing::new(guest.transport.tek);
        if c.reserved1 != 0 || c.reserved2 != 0 || c.reserved3 != 0 {
            return Err(Status::INVALID_PARAM);
        }
        let (len, trans_len) = ({ c.guest_len }, { c.trans_len });
        if ({ c.hdr_len } as usize) < PacketHeader::SIZE
            || len == 0
            || len % 16 != 0
            || len > MAX_SECRET
            || trans_len != len
        {
            return Err(Status::INVALID_LENGTH);
        }
        let at = Spa(c.guest_address);
        if !at.0.is_multiple_of(16) {
            return Err(Status::INVALID_ADDRESS);
        }
        self.dram.check(at, u64::from(len))?;
        self.plain_pages(at, u64::from(len))?;
        let header: PacketHeader = self.dram.get(Spa(c.hdr_address))?;
        if header.flags != 0 {
            return Err(Status::UNSUPPORTED);
        }
        let mut data = Zeroizing::new(vec![0; len as usize]);
        self.dram.read(Spa(c.trans_address), &mut data)?;
        let mac = hmac_sha256(
            &tik[..],
            &[
                &[1],
                &{ header.flags }.to_le_bytes(),
                &header.iv,
                &len.to_le_bytes(),
                &trans_len.to_le_bytes(),
                &data,
                &measure,
            ],
        );
        if !bool::from(mac.ct_eq(&header.mac)) {
            return Err(Status::BAD_MEASUREMENT);
        }
        ctr(&tek, &header.iv, &mut data);
        self.encrypt(asid, at, &data)
    }

    pub(crate) fn launch_finish(&mut self, buf: Spa) -> Result<(), Status> {
        let c: LaunchFinish = self.dram.get(buf)?;
        let guest = self.guest(c.handle)?;
        if guest.state != GuestState::LAUNCH_SECRET {
            return Err(Status::INVALID_GUEST_STATE);
        }
        guest.state = GuestState::RUNNING;
        Ok(())
    }
}
