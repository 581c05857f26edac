//! What the tests of this crate share.
#![allow(dead_code)] // each test binary uses its part

use std::sync::Arc;

use sevlab_arch::{Asid, Spa};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, HostOptions, MemCtl, MemoryKey};

pub const PAGE: usize = 4096;
pub const ONE: Domain = Domain::Private(Asid(1));
pub const TWO: Domain = Domain::Private(Asid(2));

pub fn config(cipher: CipherKind, cache: CacheMode) -> Config {
    Config {
        size: 8 << 20,
        cipher,
        cache,
        resident: None,
        tweak_seed: 7,
        hierarchy: None,
        cores: 1,
        snp: false,
    }
}

/// A machine with keys for ASIDs 1 and 2.
pub fn machine(cfg: Config) -> Arc<MemCtl> {
    let kind = cfg.cipher;
    let mut host = HostOptions::default();
    host.huge_pages = false;
    let m = MemCtl::with_options(cfg, &host).expect("configuration");
    for asid in [1u8, 2] {
        m.install_key(Asid(asid.into()), key(kind, asid))
            .expect("key");
    }
    m
}

pub fn key(kind: CipherKind, salt: u8) -> MemoryKey {
    let bytes: Vec<u8> = (0..kind.key_len() as u8)
        .map(|i| i.wrapping_mul(37) ^ salt)
        .collect();
    MemoryKey::new(kind, &bytes).expect("length")
}

/// Every cipher in both cache modes.
pub fn everywhere(test: impl Fn(CipherKind, CacheMode)) {
    for cipher in CipherKind::ALL {
        for cache in [CacheMode::Page, CacheMode::None] {
            test(cipher, cache);
        }
    }
}

pub fn read<const N: usize>(m: &MemCtl, d: Domain, a: u64) -> [u8; N] {
    let mut out = [0; N];
    m.read(d, Spa(a), &mut out).expect("read");
    out
}

pub fn bus<const N: usize>(m: &MemCtl, a: u64) -> [u8; N] {
    let mut out = [0; N];
    m.bus_read(Spa(a), &mut out);
    out
}

/// A page with no two equal 16-byte blocks.
pub fn pattern(salt: u8) -> [u8; PAGE] {
    std::array::from_fn(|i| (i as u8) ^ (i >> 8) as u8 ^ salt)
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
