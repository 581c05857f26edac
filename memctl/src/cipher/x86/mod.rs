#![allow(unsafe_code)] // AES instructions work on guest memory through raw pointers
//! The modes on the host's AES instructions.
//!
//! [`kernel`] has the modes, written once over [`lane::Lane`]; `aesni`, `vaes256` and `vaes512` are its vectors, each with the entry
//! points compiled for that path's instructions. Whether the host has them is checked once, when an engine is made.

mod aesni;
mod kernel;
mod lane;
mod schedule;
mod vaes256;
mod vaes512;

use super::engine::Kernel;
use super::{CipherKind, Path, TweakTable};
use crate::key::MemoryKey;

/// Whether the host has what [`Path::AesNi`] uses.
pub(super) fn has_aesni() -> bool {
    std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq")
}

/// Whether the host has what [`Path::Vaes256`] uses.
pub(super) fn has_vaes256() -> bool {
    has_aesni()
        && std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
}

/// Whether the host has what [`Path::Vaes512`] uses.
pub(super) fn has_vaes512() -> bool {
    has_vaes256()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512vl")
}

/// The kernel for this key; any path but `Vaes*` gets AES-NI.
///
/// # Safety
/// The host has the path's instructions, and AES-NI.
pub(super) unsafe fn kernel(key: &MemoryKey, tweaks: &TweakTable, path: Path) -> Box<dyn Kernel> {
    // SAFETY: the host has AES-NI.
    let c = unsafe { kernel::Context::new(key, tweaks) };
    match (path, key.kind()) {
        (Path::Vaes512, CipherKind::Aes128Xe) => Box::new(vaes512::Entry::<{ kernel::XE }>(c)),
        (Path::Vaes512, CipherKind::Aes128Xex) => Box::new(vaes512::Entry::<{ kernel::XEX }>(c)),
        (Path::Vaes512, CipherKind::Aes256Xts) => Box::new(vaes512::Entry::<{ kernel::XTS }>(c)),
        (Path::Vaes256, CipherKind::Aes128Xe) => Box::new(vaes256::Entry::<{ kernel::XE }>(c)),
        (Path::Vaes256, CipherKind::Aes128Xex) => Box::new(vaes256::Entry::<{ kernel::XEX }>(c)),
        (Path::Vaes256, CipherKind::Aes256Xts) => Box::new(vaes256::Entry::<{ kernel::XTS }>(c)),
        (_, CipherKind::Aes128Xe) => Box::new(aesni::Entry::<{ kernel::XE }>(c)),
        (_, CipherKind::Aes128Xex) => Box::new(aesni::Entry::<{ kernel::XEX }>(c)),
        (_, CipherKind::Aes256Xts) => Box::new(aesni::Entry::<{ kernel::XTS }>(c)),
    }
}
