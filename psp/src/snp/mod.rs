//! The SEV-SNP commands (SNP firmware ABI, AMD 56860).
//!
//! A guest is named by the address of its context page. On the chip the page holds the context, sealed;
//! here the context stays in the firmware, and the page is only taken out of the hypervisor's hands.

mod guest;
mod identity;
mod launch;
mod platform;

use sevlab_arch::psp::{SnpGuestState, SnpPolicy, Status};
use sevlab_arch::{Asid, Spa};

use crate::firmware::{State, Vek};
use crate::measure::SnpDigest;

/// One guest's context.
pub(crate) struct SnpGuest {
    pub(crate) state: SnpGuestState,
    pub(crate) policy: SnpPolicy,
    pub(crate) asid: Option<Asid>,
    pub(crate) vek: Option<Vek>,
    pub(crate) digest: SnpDigest,
    /// Keys of the guest's messages to the firmware, as the secrets page gives them.
    pub(crate) vmpck: [zeroize::Zeroizing<[u8; 32]>; 4],
    pub(crate) gosvw: [u8; 16],
    /// Set by LAUNCH_FINISH.
    pub(crate) identity: Identity,
}

/// What LAUNCH_FINISH fixed about a guest; attestation reports carry it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The hypervisor's word on the guest.
    pub host_data: [u8; 32],
    /// From the identity block.
    pub family_id: [u8; 16],
    /// From the identity block.
    pub image_id: [u8; 16],
    /// The guest's security version, from the identity block.
    pub guest_svn: u32,
    /// SHA-384 of the key that signed the identity block.
    pub id_key_digest: Option<[u8; 48]>,
    /// SHA-384 of the key that signed that key.
    pub author_key_digest: Option<[u8; 48]>,
    /// Reports may not be signed with the VCEK.
    pub vcek_disabled: bool,
}

impl State {
    /// Commands about SNP guests need SNP_INIT.
    fn snp_ready(&self) -> Result<(), Status> {
        if self.snp {
            Ok(())
        } else {
            Err(Status::INVALID_PLATFORM_STATE)
        }
    }

    /// The guest of a context page.
    fn context(&mut self, gctx: u64) -> Result<&mut SnpGuest, Status> {
        self.snp_ready()?;
        if !gctx.is_multiple_of(sevlab_arch::PAGE_SIZE) {
            return Err(Status::INVALID_ADDRESS);
        }
        self.contexts
            .get_mut(&Spa(gctx))
            .ok_or(Status::INVALID_GUEST)
    }
}
