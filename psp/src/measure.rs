//! Launch digests: what a guest's initial contents hash to.

use sevlab_arch::psp::{SevPolicy, SnpPageType};
use sha2::{Digest, Sha256, Sha384};

use crate::config::ApiVersion;
use crate::entropy::hmac_sha256;

/// The running digest of an SEV or SEV-ES launch: SHA-256 over the plaintext in command order.
#[derive(Clone, Default)]
pub(crate) struct SevDigest(Sha256);

impl SevDigest {
    pub(crate) fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// LAUNCH_MEASURE's MAC: HMAC(TIK, 04 | major | minor | build | policy | digest | nonce).
    pub(crate) fn measurement(
        &self,
        tik: &[u8; 16],
        api: ApiVersion,
        policy: SevPolicy,
        nonce: &[u8; 16],
    ) -> [u8; 32] {
        let digest = self.0.clone().finalize();
        hmac_sha256(
            tik,
            &[
                &[4, api.major, api.minor, api.build],
                &policy.bits().to_le_bytes(),
                &digest,
                nonce,
            ],
        )
    }
}

/// Permissions of VMPL1 to VMPL3 on a launched page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmplPerms {
    /// Of VMPL1.
    pub vmpl1: u8,
    /// Of VMPL2.
    pub vmpl2: u8,
    /// Of VMPL3.
    pub vmpl3: u8,
}

/// The running digest of an SNP launch: a chain of SHA-384 over PAGE_INFO structures (SNP ABI,
/// "Launch digest").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpDigest([u8; 48]);

impl Default for SnpDigest {
    fn default() -> Self {
        Self([0; 48])
    }
}

impl SnpDigest {
    /// Extends the chain by one 4 KiB page. `contents` is given for the types whose contents are measured.
    pub fn extend(
        &mut self,
        page_type: SnpPageType,
        imi: bool,
        perms: VmplPerms,
        gpa: u64,
        contents: Option<&[u8; 4096]>,
    ) {
        let mut info = [0u8; 0x70];
        info[..0x30].copy_from_slice(&self.0);
        if let Some(page) = contents {
            info[0x30..0x60].copy_from_slice(&Sha384::digest(page));
        }
        info[0x60..0x62].copy_from_slice(&0x70u16.to_le_bytes());
        info[0x62] = page_type.0;
        info[0x63] = u8::from(imi);
        info[0x64] = perms.vmpl3;
        info[0x65] = perms.vmpl2;
        info[0x66] = perms.vmpl1;
        info[0x68..0x70].copy_from_slice(&gpa.to_le_bytes());
        self.0 = Sha384::digest(info).into();
    }

    /// The digest so far.
    #[must_use]
    pub fn value(&self) -> [u8; 48] {
        self.0
    }
}
