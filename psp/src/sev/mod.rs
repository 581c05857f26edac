//! The SEV and SEV-ES commands (SEV API, AMD 55766).

mod guest;
mod launch;
mod platform;

use sevlab_arch::Asid;
use sevlab_arch::psp::{GuestState, PlatformState, SevPolicy, Status};

use crate::firmware::{State, Vek};
use crate::measure::SevDigest;
use crate::session::TransportKeys;

/// One guest's context.
pub(crate) struct SevGuest {
    pub(crate) state: GuestState,
    pub(crate) policy: SevPolicy,
    pub(crate) asid: Option<Asid>,
    pub(crate) vek: Vek,
    transport: TransportKeys,
    digest: SevDigest,
    /// The launch measurement, once taken.
    measurement: Option<[u8; 32]>,
}

impl State {
    /// Commands about guests need the platform in WORKING.
    fn working(&self) -> Result<(), Status> {
        if self.platform == PlatformState::WORKING {
            Ok(())
        } else {
            Err(Status::INVALID_PLATFORM_STATE)
        }
    }

    /// The guest of a handle.
    fn guest(&mut self, handle: u32) -> Result<&mut SevGuest, Status> {
        self.working()?;
        self.guests.get_mut(&handle).ok_or(Status::INVALID_GUEST)
    }
}
