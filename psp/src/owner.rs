//! The guest owner's half of an SEV or SEV-ES launch: makes the session, checks the measurement, packs
//! secrets. A convenience for launches where the machine plays the owner too, as a study does.

use p384::SecretKey;
use sevlab_arch::psp::{
    CURVE_P384, Certificate, KeyAlgo, KeyUsage, Measurement, PacketHeader, Session, SevPolicy,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::ApiVersion;
use crate::entropy::{Entropy, Rng, hmac_sha256};
use crate::keys::{public_from_le, public_to_le, secret_from};
use crate::session::{TransportKeys, ctr, wrapping_keys};

/// Why an owner could not make a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// The platform's Diffie-Hellman certificate does not hold a P-384 key.
    #[error("the platform's Diffie-Hellman certificate holds no P-384 key")]
    Certificate,
    /// The host gave no random numbers.
    #[error("the host gave no random numbers")]
    Random,
}

/// The digest of what an owner expects to be launched, in launch order.
#[derive(Clone, Default)]
pub struct ExpectedDigest(Sha256);

impl ExpectedDigest {
    /// Adds the plaintext of a region or of a save area's page.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// A guest owner with fresh transport keys.
pub struct GuestOwner {
    dh: SecretKey,
    keys: TransportKeys,
    nonce: [u8; 16],
    iv: [u8; 16],
    rng: Rng,
}

impl GuestOwner {
    /// An owner with new keys.
    ///
    /// # Errors
    /// [`OwnerError::Random`].
    pub fn new(entropy: Entropy) -> Result<Self, OwnerError> {
        let mut rng = Rng::new(entropy);
        let seed = rng.bytes::<32>().ok_or(OwnerError::Random)?;
        let keys = TransportKeys::random(&mut rng).map_err(|_| OwnerError::Random)?;
        let nonce = *rng.bytes::<16>().ok_or(OwnerError::Random)?;
        let iv = *rng.bytes::<16>().ok_or(OwnerError::Random)?;
        Ok(Self {
            dh: secret_from(&seed[..], "sevlab-owner-dh"),
            keys,
            nonce,
            iv,
            rng,
        })
    }

    /// The owner's certificate and the session for LAUNCH_START, wrapped for the platform whose
    /// Diffie-Hellman certificate is `pdh`.
    ///
    /// # Errors
    /// [`OwnerError::Certificate`].
    pub fn session(
        &self,
        pdh: &Certificate,
        policy: SevPolicy,
    ) -> Result<(Certificate, Session), OwnerError> {
        let platform =
            public_from_le(&pdh.key[4..76], &pdh.key[76..148]).ok_or(OwnerError::Certificate)?;
        let (kek, kik) = wrapping_keys(&self.dh, &platform, &self.nonce);
        let mut wrap_tk = [0; 32];
        wrap_tk[..16].copy_from_slice(&self.keys.tek);
        wrap_tk[16..].copy_from_slice(&self.keys.tik);
        ctr(&kek, &self.iv, &mut wrap_tk);
        let session = Session {
            nonce: self.nonce,
            wrap_tk,
            wrap_iv: self.iv,
            wrap_mac: hmac_sha256(&kik, &[&wrap_tk]),
            policy_mac: hmac_sha256(&self.keys.tik, &[&policy.bits().to_le_bytes()]),
        };
        let (x, y) = public_to_le(&self.dh.public_key());
        let mut cert = Certificate {
            version: 1,
            api_major: pdh.api_major,
            api_minor: pdh.api_minor,
            key_usage: KeyUsage::PDH.0,
            key_algo: KeyAlgo::ECDH_SHA256.0,
            sig1_usage: KeyUsage::INVALID.0,
            sig2_usage: KeyUsage::INVALID.0,
            ..Certificate::default()
        };
        cert.key[..4].copy_from_slice(&CURVE_P384.to_le_bytes());
        cert.key[4..76].copy_from_slice(&x);
        cert.key[76..148].copy_from_slice(&y);
        Ok((cert, session))
    }

    /// Whether a measurement is that of a launch whose contents hash to `digest` (SHA-256).
    #[must_use]
    pub fn accepts(
        &self,
        m: &Measurement,
        api: ApiVersion,
        policy: SevPolicy,
        digest: &[u8; 32],
    ) -> bool {
        let expected = hmac_sha256(
            &self.keys.tik,
            &[
                &[4, api.major, api.minor, api.build],
                &policy.bits().to_le_bytes(),
                digest,
                &m.mnonce,
            ],
        );
        expected == m.measure
    }

    /// A packet for LAUNCH_SECRET: the header and the encrypted secret (padded to 16 bytes).
    ///
    /// # Errors
    /// [`OwnerError::Random`].
    pub fn pack_secret(
        &mut self,
        secret: &[u8],
        m: &Measurement,
    ) -> Result<(PacketHeader, Vec<u8>), OwnerError> {
        let mut data = Zeroizing::new(secret.to_vec());
        data.resize(secret.len().next_multiple_of(16), 0);
        let iv = *self.rng.bytes::<16>().ok_or(OwnerError::Random)?;
        ctr(&self.keys.tek, &iv, &mut data);
        let len = (data.len() as u32).to_le_bytes();
        let mac = hmac_sha256(
            &self.keys.tik,
            &[&[1], &[0; 4], &iv, &len, &len, &data, &m.measure],
        );
        Ok((PacketHeader { flags: 0, iv, mac }, data.to_vec()))
    }
}
