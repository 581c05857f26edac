//! Shared by the fuzz targets: a fuzzer's bytes as small decisions. Input that has run out reads as zero, so that every
//! prefix of an input means something.

use sevlab_arch::Gpa;
use sevlab_ghcb::hv::Context;
use sevlab_ghcb::{HvFeatures, guest::Session};

/// The bytes that are left.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `n` bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// `N` bytes, zeros behind the end.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let head = self.bytes(N);
        out[..head.len()].copy_from_slice(head);
        out
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A word as a guest would choose it: a small number, something near one of `anchors`, a power of two, any.
    pub fn word(&mut self, anchors: &[u64]) -> u64 {
        let tag = self.u8();
        match tag >> 6 {
            0 => u64::from(tag & 0x3f),
            1 => {
                let anchor = anchors.get(usize::from(tag & 0x1f)).copied().unwrap_or(0);
                let near = if tag & 0x20 == 0 {
                    0
                } else {
                    self.u16() as i16
                };
                anchor.wrapping_add_signed(i64::from(near))
            }
            2 => (1u64 << (tag & 0x3f)).wrapping_sub(u64::from(self.u8() & 1)),
            _ => self.u64(),
        }
    }
}

/// The bytes by which [`Input::word`] gives `value`.
#[must_use]
pub fn spell(value: u64) -> Vec<u8> {
    match value {
        0..0x40 => vec![value as u8],
        _ => [0xc0].into_iter().chain(value.to_le_bytes()).collect(),
    }
}

/// Where the page of the `ghcb` target lies.
pub const GHCB: Gpa = Gpa(0x7_f000);

/// The agreements under which the `ghcb` target looks at a page.
#[must_use]
pub fn contexts() -> [Context; 3] {
    let snp = Context {
        version: 2,
        features: HvFeatures::all(),
        snp: true,
        ghcb: GHCB,
        registered: Some(GHCB),
    };
    let es = Context {
        version: 1,
        features: HvFeatures::empty(),
        snp: false,
        ghcb: GHCB,
        registered: None,
    };
    [snp, es, Context { snp: false, ..snp }]
}

/// The guest's side of the same.
#[must_use]
pub fn session(version: u16) -> Session {
    Session {
        version,
        ghcb: GHCB,
    }
}
