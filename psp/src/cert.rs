//! The SEV certificate chain that PDH_CERT_EXPORT returns: PDH signed by PEK, PEK signed by the chip and by
//! a self-signed owner authority. AMD's own signature on the chip's key is not simulated.

use p384::SecretKey;
use p384::ecdsa::signature::hazmat::PrehashSigner;
use p384::ecdsa::{Signature, SigningKey};
use sevlab_arch::psp::{CURVE_P384, Certificate, KeyAlgo, KeyUsage};
use zerocopy::IntoBytes;

use crate::config::Config;
use crate::entropy::sha256;
use crate::keys::{ChipKeys, public_to_le};

/// Bytes of a certificate that its signatures cover.
const SIGNED: usize = 0x414;

/// PDH, then PEK, OCA and CEK.
pub(crate) fn export(config: &Config, chip: &ChipKeys) -> [Certificate; 4] {
    let mut pdh = unsigned(config, &chip.pdh, KeyUsage::PDH, KeyAlgo::ECDH_SHA256);
    let mut pek = unsigned(config, &chip.pek, KeyUsage::PEK, KeyAlgo::ECDSA_SHA256);
    let mut oca = unsigned(config, &chip.oca, KeyUsage::OCA, KeyAlgo::ECDSA_SHA256);
    let mut cek = unsigned(config, &chip.cek, KeyUsage::CEK, KeyAlgo::ECDSA_SHA256);
    sign(&mut pdh, &chip.pek, KeyUsage::PEK, false);
    sign(&mut pek, &chip.oca, KeyUsage::OCA, false);
    sign(&mut pek, &chip.cek, KeyUsage::CEK, true);
    sign(&mut oca, &chip.oca, KeyUsage::OCA, false);
    cek.sig1_usage = KeyUsage::INVALID.0;
    [pdh, pek, oca, cek]
}

/// A certificate without signatures.
pub(crate) fn unsigned(
    config: &Config,
    key: &SecretKey,
    usage: KeyUsage,
    algo: KeyAlgo,
) -> Certificate {
    let mut cert = Certificate {
        version: 1,
        api_major: config.api.major,
        api_minor: config.api.minor,
        key_usage: usage.0,
        key_algo: algo.0,
        sig1_usage: KeyUsage::INVALID.0,
        sig2_usage: KeyUsage::INVALID.0,
        ..Certificate::default()
    };
    let (x, y) = public_to_le(&key.public_key());
    cert.key[..4].copy_from_slice(&CURVE_P384.to_le_bytes());
    cert.key[4..76].copy_from_slice(&x);
    cert.key[76..148].copy_from_slice(&y);
    cert
}

fn sign(cert: &mut Certificate, key: &SecretKey, usage: KeyUsage, second: bool) {
    let hash = sha256(&[&cert.as_bytes()[..SIGNED]]);
    let signed: Result<Signature, _> = SigningKey::from(key).sign_prehash(&hash);
    // The prehash is half the curve's size or more, which is all that signing asks for.
    let Ok(signature) = signed else { return };
    let bytes = signature.to_bytes();
    let mut out = [0; 0x200];
    for i in 0..48 {
        out[i] = bytes[47 - i];
        out[72 + i] = bytes[95 - i];
    }
    if second {
        cert.sig2 = out;
        cert.sig2_usage = usage.0;
        cert.sig2_algo = KeyAlgo::ECDSA_SHA256.0;
    } else {
        cert.sig1 = out;
        cert.sig1_usage = usage.0;
        cert.sig1_algo = KeyAlgo::ECDSA_SHA256.0;
    }
}
