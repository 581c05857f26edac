//! Where random bytes come from: the host's generator, or a seeded stream so that a run can be repeated.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The source a firmware draws keys and nonces from.
#[derive(Clone)]
pub enum Entropy {
    /// The host's random generator.
    Os,
    /// A stream that this seed determines, for repeatable studies and golden tests.
    Seeded([u8; 32]),
}

/// A running source.
pub(crate) struct Rng {
    kind: Entropy,
    counter: u64,
}

impl Rng {
    pub(crate) fn new(kind: Entropy) -> Self {
        Self { kind, counter: 0 }
    }

    /// Fills `out`; false if the host has no randomness to give.
    #[must_use]
    pub(crate) fn fill(&mut self, out: &mut [u8]) -> bool {
        match &self.kind {
            Entropy::Os => getrandom::fill(out).is_ok(),
            Entropy::Seeded(seed) => {
                for chunk in out.chunks_mut(32) {
                    self.counter += 1;
                    let block =
                        hmac_sha256(seed, &[b"sevlab-entropy", &self.counter.to_le_bytes()]);
                    chunk.copy_from_slice(&block[..chunk.len()]);
                }
                true
            }
        }
    }

    /// `N` random bytes that are wiped when dropped.
    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<Zeroizing<[u8; N]>> {
        let mut out = Zeroizing::new([0; N]);
        self.fill(&mut out[..]).then_some(out)
    }
}

/// HMAC-SHA256 over the concatenation of `parts`.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length: longer ones are hashed first.
    let mut padded = [0; 64];
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => {
            padded[..32].copy_from_slice(&sha256(&[key]));
            Hmac::<Sha256>::new(&padded.into())
        }
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// SHA-256 over the concatenation of `parts`.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    use sha2::Digest;
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}
