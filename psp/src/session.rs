//! The transport keys of a launch: unwrapped from the owner's session, or made up.
//!
//! SEV API, "LAUNCH_START": Z = ECDH(PDH, owner's key); M = KDF(Z, "sev-master-secret", nonce); KEK and
//! KIK follow from M; the session carries TEK and TIK encrypted with KEK and authenticated with KIK.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use p384::ecdh::diffie_hellman;
use p384::{PublicKey, SecretKey};
use sevlab_arch::psp::{CURVE_P384, Certificate, KeyAlgo, KeyUsage, Session, SevPolicy, Status};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::entropy::{Rng, hmac_sha256};
use crate::keys::{kdf, public_from_le};

/// Transport encryption and integrity keys of one guest.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct TransportKeys {
    pub(crate) tek: [u8; 16],
    pub(crate) tik: [u8; 16],
}

impl TransportKeys {
    /// Random keys: nobody outside can check this launch.
    pub(crate) fn random(rng: &mut Rng) -> Result<Self, Status> {
        let tek = rng.bytes::<16>().ok_or(Status::HWERROR_PLATFORM)?;
        let tik = rng.bytes::<16>().ok_or(Status::HWERROR_PLATFORM)?;
        Ok(Self {
            tek: *tek,
            tik: *tik,
        })
    }

    /// Keys from the owner's certificate and session.
    pub(crate) fn unwrap(
        pdh: &SecretKey,
        cert: &Certificate,
        session: &Session,
        policy: SevPolicy,
    ) -> Result<Self, Status> {
        let owner = owner_key(cert)?;
        let (kek, kik) = wrapping_keys(pdh, &owner, &session.nonce);
        let mac = hmac_sha256(&kik, &[&session.wrap_tk]);
        if !bool::from(mac.ct_eq(&session.wrap_mac)) {
            return Err(Status::BAD_MEASUREMENT);
        }
        let mut wrapped = session.wrap_tk;
        ctr(&kek, &session.wrap_iv, &mut wrapped);
        let mut keys = Self {
            tek: [0; 16],
            tik: [0; 16],
        };
        keys.tek.copy_from_slice(&wrapped[..16]);
        keys.tik.copy_from_slice(&wrapped[16..]);
        wrapped.zeroize();
        let mac = hmac_sha256(&keys.tik, &[&policy.bits().to_le_bytes()]);
        if !bool::from(mac.ct_eq(&session.policy_mac)) {
            return Err(Status::BAD_MEASUREMENT);
        }
        Ok(keys)
    }
}

/// The key encryption and key integrity keys that a pair of Diffie-Hellman keys and a nonce give.
pub(crate) fn wrapping_keys(
    own: &SecretKey,
    other: &PublicKey,
    nonce: &[u8; 16],
) -> ([u8; 16], [u8; 32]) {
    let z = diffie_hellman(own.to_nonzero_scalar(), other.as_affine());
    let master = kdf(z.raw_secret_bytes(), "sev-master-secret", nonce, 16);
    let mut kek = [0; 16];
    let mut kik = [0; 32];
    kek.copy_from_slice(&kdf(&master, "sev-kek", &[], 16));
    kik.copy_from_slice(&kdf(&master, "sev-kik", &[], 32));
    (kek, kik)
}

/// The owner's Diffie-Hellman key in a certificate.
fn owner_key(cert: &Certificate) -> Result<PublicKey, Status> {
    let algo = KeyAlgo(cert.key_algo);
    let usage = KeyUsage(cert.key_usage);
    let known = algo == KeyAlgo::ECDH_SHA256 || algo == KeyAlgo::ECDH_SHA384;
    let curve = u32::from_le_bytes([cert.key[0], cert.key[1], cert.key[2], cert.key[3]]);
    if { cert.version } != 1 || !known || usage != KeyUsage::PDH || curve != CURVE_P384 {
        return Err(Status::INVALID_CERTIFICATE);
    }
    public_from_le(&cert.key[4..76], &cert.key[76..148]).ok_or(Status::INVALID_CERTIFICATE)
}

/// AES-128 in counter mode, in place: the whole block is the big-endian counter.
pub(crate) fn ctr(key: &[u8; 16], iv: &[u8; 16], data: &mut [u8]) {
    let cipher = Aes128::new(&(*key).into());
    let mut counter = u128::from_be_bytes(*iv);
    for chunk in data.chunks_mut(16) {
        let mut block = counter.to_be_bytes().into();
        cipher.encrypt_block(&mut block);
        for (byte, pad) in chunk.iter_mut().zip(block.iter()) {
            *byte ^= pad;
        }
        counter = counter.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.5.1.
    #[test]
    fn ctr_matches_nist() {
        let key = 0x2b7e151628aed2a6abf7158809cf4f3cu128.to_be_bytes();
        let iv = 0xf0f1f2f3f4f5f6f7f8f9fafbfcfdfeffu128.to_be_bytes();
        let mut data = 0x6bc1bee22e409f96e93d7e117393172au128.to_be_bytes();
        ctr(&key, &iv, &mut data);
        assert_eq!(
            u128::from_be_bytes(data),
            0x874d6191b620e3261bef6864990db6ce
        );
    }
}
