//! The chip's own keys and the key derivation function of the SEV API.
//!
//! Every long-lived key follows from the chip's fused seed, so two runs with one seed are one chip.
//! Nothing here leaves the secure processor except public halves.

use p384::elliptic_curve::sec1::ToSec1Point;
use p384::{PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::entropy::{hmac_sha256, sha256};

/// NIST SP 800-108 in counter mode with HMAC-SHA256 (SEV API, 2.2.2 "Key derivation"): block i is
/// HMAC(key, i LE32 | label | 0 | context | output bits LE32).
#[must_use]
pub fn kdf(key: &[u8], label: &str, context: &[u8], bytes: usize) -> Zeroizing<Vec<u8>> {
    let bits = u32::try_from(bytes * 8).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.next_multiple_of(32)));
    let mut counter = 0u32;
    while out.len() < bytes {
        counter += 1;
        let block = Zeroizing::new(hmac_sha256(
            key,
            &[
                &counter.to_le_bytes(),
                label.as_bytes(),
                &[0],
                context,
                &bits,
            ],
        ));
        out.extend_from_slice(&block[..]);
    }
    out.truncate(bytes);
    out
}

/// Keys that belong to one chip.
pub(crate) struct ChipKeys {
    /// Chip endorsement key.
    pub(crate) cek: SecretKey,
    /// Platform endorsement key.
    pub(crate) pek: SecretKey,
    /// The self-made owner's authority of a platform without an owner.
    pub(crate) oca: SecretKey,
    /// Platform Diffie-Hellman key, ECDH P-384.
    pub(crate) pdh: SecretKey,
    /// Identifies the chip: a hash of the public CEK, as GET_ID returns it.
    pub(crate) chip_id: [u8; 64],
}

impl ChipKeys {
    pub(crate) fn derive(seed: &[u8; 32]) -> Self {
        let cek = secret_from(seed, "sevlab-cek");
        let point = cek.public_key().to_sec1_bytes();
        let mut chip_id = [0; 64];
        chip_id[..32].copy_from_slice(&sha256(&[b"chip-id-low", &point]));
        chip_id[32..].copy_from_slice(&sha256(&[b"chip-id-high", &point]));
        Self {
            pdh: secret_from(seed, "sevlab-pdh"),
            pek: secret_from(seed, "sevlab-pek"),
            oca: secret_from(seed, "sevlab-oca"),
            cek,
            chip_id,
        }
    }
}

/// A P-384 key that `seed` and `label` determine.
pub(crate) fn secret_from(seed: &[u8], label: &str) -> SecretKey {
    let mut attempt = 0u32;
    loop {
        let scalar = kdf(seed, label, &attempt.to_le_bytes(), 48);
        // A scalar at or above the order (or zero) is refused: take the next of the sequence.
        if let Ok(key) = SecretKey::from_slice(&scalar) {
            return key;
        }
        attempt += 1;
    }
}

/// A P-384 public key from the little-endian coordinates of an SEV certificate. `None` if the point is
/// not on the curve.
pub(crate) fn public_from_le(x: &[u8], y: &[u8]) -> Option<PublicKey> {
    let mut sec1 = [0; 97];
    sec1[0] = 4;
    be48(x, &mut sec1[1..49])?;
    be48(y, &mut sec1[49..97])?;
    PublicKey::from_sec1_bytes(&sec1).ok()
}

/// The x and y coordinates of a public key, each 72 bytes little-endian as SEV certificates have them.
pub(crate) fn public_to_le(key: &PublicKey) -> ([u8; 72], [u8; 72]) {
    let sec1 = key.to_sec1_point(false);
    let bytes = sec1.as_bytes();
    let mut x = [0; 72];
    let mut y = [0; 72];
    for i in 0..48 {
        x[i] = bytes[48 - i];
        y[i] = bytes[96 - i];
    }
    (x, y)
}

/// Reverses a 72-byte little-endian field into 48 big-endian bytes; `None` if it is wider than 384 bits.
pub(crate) fn be48(le: &[u8], out: &mut [u8]) -> Option<()> {
    if le.len() < 48 || le[48..].iter().any(|b| *b != 0) {
        return None;
    }
    for (to, from) in out.iter_mut().zip(le[..48].iter().rev()) {
        *to = *from;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kdf_is_plain_counter_mode() {
        let long = kdf(b"key", "label", b"ctx", 40);
        let first = hmac_sha256(b"key", &[&[1, 0, 0, 0], b"label\0ctx", &[64, 1, 0, 0]]);
        let second = hmac_sha256(b"key", &[&[2, 0, 0, 0], b"label\0ctx", &[64, 1, 0, 0]]);
        assert_eq!(long[..32], first);
        assert_eq!(long[32..], second[..8]);
    }

    #[test]
    fn coordinates_round_trip() {
        let key = secret_from(&[7; 32], "x").public_key();
        let (x, y) = public_to_le(&key);
        assert_eq!(public_from_le(&x, &y), Some(key));
        let mut wide = x;
        wide[60] = 1;
        assert_eq!(public_from_le(&wide, &y), None);
    }

    #[test]
    fn chips_differ() {
        let a = ChipKeys::derive(&[1; 32]);
        let b = ChipKeys::derive(&[2; 32]);
        assert_ne!(a.chip_id, b.chip_id);
        assert_eq!(a.chip_id, ChipKeys::derive(&[1; 32]).chip_id);
    }
}
