//! The identity block of SNP_LAUNCH_FINISH: the owner's word on what should have been launched.

use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};
use sevlab_arch::Spa;
use sevlab_arch::psp::{CURVE_P384, IdAuth, IdBlock, SnpPolicy, Status};
use sha2::{Digest, Sha384};
use zerocopy::IntoBytes;

use super::Identity;
use crate::firmware::State;
use crate::keys::{be48, public_from_le};

/// ECDSA with P-384 and SHA-384.
const ALGO_ECDSA_P384: u32 = 1;

impl State {
    /// Checks an identity block's signatures and what it expects.
    pub(super) fn check_identity(
        &self,
        block: Spa,
        auth: Spa,
        author: bool,
        policy: SnpPolicy,
        digest: &[u8; 48],
    ) -> Result<Identity, Status> {
        let block: IdBlock = self.dram.get(block)?;
        let auth: IdAuth = self.dram.get(auth)?;
        if { block.version } != 1
            || { auth.id_key_algo } != ALGO_ECDSA_P384
            || author && { auth.auth_key_algo } != ALGO_ECDSA_P384
        {
            return Err(Status::INVALID_PARAM);
        }
        verify(&auth.id_key, &auth.id_block_sig, block.as_bytes())?;
        let author_key_digest = if author {
            verify(&auth.auth_key, &auth.id_key_sig, &auth.id_key)?;
            Some(Sha384::digest(auth.auth_key).into())
        } else {
            None
        };
        if block.ld != *digest {
            return Err(Status::BAD_MEASUREMENT);
        }
        if { block.policy } != policy.bits() {
            return Err(Status::POLICY_FAILURE);
        }
        Ok(Identity {
            family_id: block.family_id,
            image_id: block.image_id,
            guest_svn: block.guest_svn,
            id_key_digest: Some(Sha384::digest(auth.id_key).into()),
            author_key_digest,
            ..Identity::default()
        })
    }
}

/// Verifies an ECDSA P-384 signature in the firmware's little-endian format.
fn verify(key: &[u8], signature: &[u8], message: &[u8]) -> Result<(), Status> {
    if key[..4] != CURVE_P384.to_le_bytes() {
        return Err(Status::INVALID_KEY);
    }
    let key = public_from_le(&key[4..76], &key[76..148]).ok_or(Status::INVALID_KEY)?;
    let mut bytes = [0; 96];
    let (r, s) = bytes.split_at_mut(48);
    be48(&signature[..72], r)
        .and(be48(&signature[72..144], s))
        .ok_or(Status::BAD_SIGNATURE)?;
    let signature = Signature::from_slice(&bytes).map_err(|_| Status::BAD_SIGNATURE)?;
    VerifyingKey::from(key)
        .verify(message, &signature)
        .map_err(|_| Status::BAD_SIGNATURE)
}
