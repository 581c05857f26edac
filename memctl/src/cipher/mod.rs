//! The memory encryption engine: AES over 16-byte blocks, each tweaked by its system physical address.
//!
//! | cipher | encrypts block `m` at `p` to | keys |
//! |---|---|---|
//! | [`Aes128Xe`](CipherKind::Aes128Xe) | `E(m ^ T(p))` | one of 16 bytes |
//! | [`Aes128Xex`](CipherKind::Aes128Xex) | `E(m ^ T(p)) ^ T(p)` | one of 16 bytes |
//! | [`Aes256Xts`](CipherKind::Aes256Xts) | `E1(m ^ X) ^ X`, `X = E2(n) * x^j` | two of 32 bytes |
//!
//! `T` is in [`tweak`]. For XTS (IEEE 1619, SP 800-38E) the data unit is one 64-byte line: its number `n` is the physical
//! address divided by 64, and `j` the block in the line. AMD does not publish its choice; what is observed is that each block of
//! a line has its own tweak, and a line is what a memory controller moves, so one line must be decryptable without the others.
//!
//! The modes are written once over a vector type (`x86/kernel.rs`) and instantiated for AES-NI, VAES-256 and VAES-512;
//! `portable` is a second implementation on the `aes` crate, which the tests hold the others against.

pub mod tweak;

mod engine;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use engine::{Engine, NotXts};
pub use tweak::TweakTable;

/// Bytes in an AES block, the granule of a tweak.
pub const BLOCK: usize = 16;
/// Bytes in a cache line.
pub const LINE: usize = 64;
/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Which memory encryption the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum CipherKind {
    /// AES-128, XOR then encrypt: Zen 1.
    Aes128Xe,
    /// AES-128, XOR, encrypt, XOR: Zen 2 and 3.
    Aes128Xex,
    /// AES-256 in XTS mode: Zen 4.
    Aes256Xts,
}

impl CipherKind {
    /// Every cipher.
    pub const ALL: [Self; 3] = [Self::Aes128Xe, Self::Aes128Xex, Self::Aes256Xts];

    /// Bytes in a key (both keys of XTS).
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Xe | Self::Aes128Xex => 16,
            Self::Aes256Xts => 64,
        }
    }

    /// The name used in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Xe => "aes128-xe",
            Self::Aes128Xex => "aes128-xex",
            Self::Aes256Xts => "aes256-xts",
        }
    }
}

/// A name that is not a cipher's, or not an engine path's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {what} \"{name}\" (one of {expected})")]
pub struct UnknownName {
    /// What was looked for.
    pub what: &'static str,
    /// What was given.
    pub name: String,
    /// The names there are.
    pub expected: &'static str,
}

impl FromStr for CipherKind {
    type Err = UnknownName;
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| UnknownName {
                what: "cipher",
                name: s.to_owned(),
                expected: "aes128-xe, aes128-xex, aes256-xts",
            })
    }
}

impl fmt::Display for CipherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which of the host's instructions do the work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// The `aes` crate: any host.
    Portable,
    /// AES-NI, 16 bytes an instruction.
    AesNi,
    /// VAES on 256-bit registers.
    Vaes256,
    /// VAES on 512-bit registers.
    Vaes512,
}

impl Path {
    /// Every path, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::AesNi, Self::Vaes256, Self::Vaes512];

    /// The best path this host has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rfind(|p| p.is_available())
            .unwrap_or(Self::Portable)
    }

    /// The paths this host has, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|p| p.is_available()).collect()
    }

    /// Whether this host has the instructions.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => x86::has_aesni(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256 => x86::has_vaes256(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => x86::has_vaes512(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The name used in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AesNi => "aesni",
            Self::Vaes256 => "vaes256",
            Self::Vaes512 => "vaes512",
        }
    }
}

impl FromStr for Path {
    type Err = UnknownName;
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| UnknownName {
                what: "cipher path",
                name: s.to_owned(),
                expected: "portable, aesni, vaes256, vaes512",
            })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
