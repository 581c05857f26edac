//! Memory encryption keys: made by the firmware, handed to the memory controller, never read back.
//!
//! A [`MemoryKey`] has no `Debug`, no `Clone` and no accessor outside this crate; its bytes live in one heap place (so that a
//! move leaves no copy behind) and are wiped on drop.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::cipher::CipherKind;

/// Bytes of the longest key.
pub(crate) const MAX_KEY_LEN: usize = 64;

/// Why a memory key could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The cipher takes keys of another length.
    #[error("{kind} takes a key of {expected} bytes, got {got}")]
    Length {
        /// The cipher asked for.
        kind: CipherKind,
        /// The length it takes, bytes.
        expected: usize,
        /// The length it was given, bytes.
        got: usize,
    },
    /// The data key and the tweak key of XTS are equal (refused by FIPS 140-3 IG C.I).
    #[error("the data key and the tweak key of {kind} are equal")]
    EqualHalves {
        /// The cipher asked for.
        kind: CipherKind,
    },
    /// The host's random number generator failed.
    #[error("host random numbers: OS error {code:?}")]
    Random {
        /// The raw OS error, if there was one.
        code: Option<i32>,
    },
}

/// The key of one ASID (or of the host's own SME domain).
///
/// It cannot be printed, copied or read:
///
/// ```compile_fail,E0277
/// let k = sevlab_memctl::MemoryKey::random(sevlab_memctl::CipherKind::Aes128Xe).unwrap();
/// println!("{k:?}");
/// ```
/// ```compile_fail,E0599
/// let k = sevlab_memctl::MemoryKey::random(sevlab_memctl::CipherKind::Aes128Xe).unwrap();
/// let copy = k.clone();
/// ```
pub struct MemoryKey {
    kind: CipherKind,
    bytes: Box<Zeroizing<[u8; MAX_KEY_LEN]>>,
}

impl MemoryKey {
    /// A key of the given bytes: 16 for the AES-128 ciphers; for XTS 64, the data key first, then the tweak key.
    ///
    /// # Errors
    /// [`KeyError::Length`] if `key` is not [`CipherKind::key_len`] bytes long, [`KeyError::EqualHalves`] for XTS with two
    /// equal keys.
    pub fn new(kind: CipherKind, key: &[u8]) -> Result<Self, KeyError> {
        let expected = kind.key_len();
        if key.len() != expected {
            return Err(KeyError::Length {
                kind,
                expected,
                got: key.len(),
            });
        }
        if kind == CipherKind::Aes256Xts {
            let (data, tweak) = key.split_at(expected / 2);
            // Without an early exit, so that the time does not depend on where they differ.
            if data.iter().zip(tweak).fold(0, |d, (a, b)| d | (a ^ b)) == 0 {
                return Err(KeyError::EqualHalves { kind });
            }
        }
        let mut bytes = Box::new(Zeroizing::new([0; MAX_KEY_LEN]));
        bytes[..expected].copy_from_slice(key);
        Ok(Self { kind, bytes })
    }

    /// A fresh key from the host's random number generator.
    ///
    /// # Errors
    /// [`KeyError::Random`] if that fails.
    pub fn random(kind: CipherKind) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; MAX_KEY_LEN]);
        getrandom::fill(&mut bytes[..]).map_err(|e| KeyError::Random {
            code: e.raw_os_error(),
        })?;
        Self::new(kind, &bytes[..kind.key_len()])
    }

    /// The cipher this key is for.
    #[must_use]
    pub fn kind(&self) -> CipherKind {
        self.kind
    }

    /// The key's bytes, [`CipherKind::key_len`] of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.kind.key_len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        for (kind, len) in [
            (CipherKind::Aes128Xe, 16),
            (CipherKind::Aes128Xex, 16),
            (CipherKind::Aes256Xts, 64),
        ] {
            let bytes: Vec<u8> = (0..len as u8 + 1).collect();
            let k = MemoryKey::new(kind, &bytes[..len]).expect("the right length");
            assert_eq!((k.kind(), k.bytes()), (kind, &bytes[..len]));
            for wrong in [0, len - 1, len + 1] {
                let e = MemoryKey::new(kind, &bytes[..wrong]).err();
                assert_eq!(
                    e,
                    Some(KeyError::Length {
                        kind,
                        expected: len,
                        got: wrong
                    })
                );
            }
        }
    }

    #[test]
    fn equal_halves_are_refused_for_xts() {
        let kind = CipherKind::Aes256Xts;
        assert_eq!(
            MemoryKey::new(kind, &[7; 64]).err(),
            Some(KeyError::EqualHalves { kind })
        );
    }

    #[test]
    fn random_keys_differ() {
        let kind = CipherKind::Aes256Xts;
        let (a, b) = (
            MemoryKey::random(kind).expect("rng"),
            MemoryKey::random(kind).expect("rng"),
        );
        assert_ne!(a.bytes(), b.bytes());
    }
}
