//! Physical-address tweaks: `T(p)` is the XOR of `t_i` over the set bits `i >= 4` of the physical address `p` (SEVurity, IEEE
//! S&P 2020).
//!
//! The constants belong to the machine, not to a guest: every key of a machine uses the same ones, for one boot. `T` is linear,
//! so a table per group of address bits gives it in a few XORs: bits 4 and 5 (the block in its 64-byte line), bits 6..=11 (the
//! line in its page) and one table for each byte of the page number.

use std::sync::Arc;

use super::CipherKind;

/// The lowest address bit that has a constant: a tweak covers 16 bytes.
pub const FIRST_BIT: u32 = 4;
/// One past the highest physical address bit.
pub const LAST_BIT: u32 = 52;

const BITS: usize = (LAST_BIT - FIRST_BIT) as usize;
/// Tables for address bits 12..52, a byte each.
pub(super) const HIGH_TABLES: usize = 5;

/// `t_4`, `t_5`, `t_6` as SEVurity prints them, in memory order: each is four bytes, repeated.
const ZEN1: [[u8; 4]; 3] = [
    [0x82, 0x25, 0x38, 0x38],
    [0xec, 0x09, 0x07, 0x9c],
    [0x40, 0x00, 0x00, 0x18],
];

/// The tables behind a [`TweakTable`]. A value is the 16 bytes of a tweak as a little-endian number.
#[repr(C, align(64))]
pub(super) struct Tables {
    /// Bits 4 and 5.
    pub block: [u128; 4],
    /// Bits 6..=11.
    pub line: [u128; 64],
    /// Bits 12..=51, a table for each byte of the page number, the lowest first.
    pub high: [[u128; 256]; HIGH_TABLES],
}

/// The tweak constants of one machine and boot, with their tables. Cloning shares the tables.
#[derive(Clone)]
pub struct TweakTable {
    constants: [u128; BITS],
    pub(super) tables: Arc<Tables>,
}

impl TweakTable {
    /// The constants a machine with this cipher would have: [`TweakTable::zen1`] for XE, [`TweakTable::random`] for the others
    /// (XTS makes its own tweaks and uses no table).
    #[must_use]
    pub fn for_cipher(kind: CipherKind, seed: u64) -> Self {
        match kind {
            CipherKind::Aes128Xe => Self::zen1(seed),
            CipherKind::Aes128Xex | CipherKind::Aes256Xts => Self::random(seed),
        }
    }

    /// Zen 2 and later: each constant is 128 random bits, fresh at each boot. The seed stands for the boot, so that a run can
    /// be repeated.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut rng = SplitMix64(seed);
        Self::from_constants(std::array::from_fn(|_| {
            u128::from(rng.next()) | u128::from(rng.next()) << 64
        }))
    }

    /// Zen 1: each constant repeats a 4-byte pattern. Bits 4, 5 and 6 have the published values; the others, which the paper
    /// does not print, are patterns made from the seed.
    #[must_use]
    pub fn zen1(seed: u64) -> Self {
        let mut rng = SplitMix64(seed);
        Self::from_constants(std::array::from_fn(|i| {
            // Shifted so that every constant has the generator's upper, better bits.
            let pattern = ZEN1
                .get(i)
                .map_or((rng.next() >> 32) as u32, |&p| u32::from_le_bytes(p));
            u128::from(pattern) * 0x0000_0001_0000_0001_0000_0001_0000_0001
        }))
    }

    fn from_constants(constants: [u128; BITS]) -> Self {
        fn fill(table: &mut [u128], constants: &[u128]) {
            for v in 1..table.len() {
                let lowest = v.trailing_zeros() as usize;
                let c = constants.get(lowest).copied().unwrap_or(0);
                table[v] = table[v & (v - 1)] ^ c;
            }
        }
        let mut tables = Tables {
            block: [0; 4],
            line: [0; 64],
            high: [[0; 256]; HIGH_TABLES],
        };
        fill(&mut tables.block, &constants[..2]);
        fill(&mut tables.line, &constants[2..8]);
        for (table, constants) in tables.high.iter_mut().zip(constants[8..].chunks(8)) {
            fill(table, constants);
        }
        Self {
            constants,
            tables: Arc::new(tables),
        }
    }

    /// `t_i` for address bit `bit`; zero for the bits that have none (below 4, above 51).
    #[must_use]
    pub fn constant(&self, bit: u32) -> [u8; 16] {
        let index = bit.checked_sub(FIRST_BIT).map(|i| i as usize);
        index
            .and_then(|i| self.constants.get(i))
            .copied()
            .unwrap_or(0)
            .to_le_bytes()
    }

    /// `T(spa)`: the tweak of the 16-byte block at this physical address. Bits 0..4 and those above 51 do not count.
    #[must_use]
    pub fn tweak(&self, spa: u64) -> [u8; 16] {
        self.tables.tweak(spa).to_le_bytes()
    }
}

impl Tables {
    /// `T(spa)`.
    pub(super) fn tweak(&self, spa: u64) -> u128 {
        let page = (0..HIGH_TABLES).fold(0, |t, i| {
            t ^ self.high[i][(spa >> (12 + 8 * i)) as usize & 0xff]
        });
        page ^ self.line[(spa >> 6) as usize & 0x3f] ^ self.block[(spa >> 4) as usize & 3]
    }
}

/// The XTS tweak `t` times `x^n` in GF(2^128) modulo `x^128 + x^7 + x^2 + x + 1` (IEEE 1619, 5.2).
pub(super) const fn times_x(mut t: u128, n: u32) -> u128 {
    let mut i = 0;
    while i < n {
        t = (t << 1) ^ ((t >> 127) * 0x87);
        i += 1;
    }
    t
}

/// Steele, Lea and Flood's SplitMix64: the constants need to look random, not to be secret.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_definition(t: &TweakTable, spa: u64) -> u128 {
        (4..52)
            .filter(|b| spa >> b & 1 == 1)
            .fold(0, |x, b| x ^ u128::from_le_bytes(t.constant(b)))
    }

    #[test]
    fn tables_match_the_definition() {
        let mut rng = SplitMix64(3);
        for t in [TweakTable::random(1), TweakTable::zen1(1)] {
            for bit in 0..64 {
                assert_eq!(
                    u128::from_le_bytes(t.tweak(1 << bit)),
                    by_definition(&t, 1 << bit),
                    "bit {bit}"
                );
            }
            for _ in 0..2000 {
                let spa = rng.next();
                assert_eq!(
                    u128::from_le_bytes(t.tweak(spa)),
                    by_definition(&t, spa),
                    "{spa:#x}"
                );
            }
        }
    }

    #[test]
    fn zen1_has_the_published_constants_and_period() {
        let t = TweakTable::zen1(99);
        assert_eq!(t.constant(4)[..4], [0x82, 0x25, 0x38, 0x38]);
        assert_eq!(t.constant(5)[..4], [0xec, 0x09, 0x07, 0x9c]);
        assert_eq!(t.constant(6)[..4], [0x40, 0x00, 0x00, 0x18]);
        for bit in 4..52 {
            let c = t.constant(bit);
            assert!(
                c.chunks(4).all(|p| p == &c[..4]) && c != [0; 16],
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_seed_is_the_boot() {
        let (a, b, c) = (
            TweakTable::random(1),
            TweakTable::random(1),
            TweakTable::random(2),
        );
        assert_eq!(a.tweak(0x1230), b.tweak(0x1230));
        assert_ne!(a.tweak(0x1230), c.tweak(0x1230));
        let mut all: Vec<_> = (4..52).map(|i| a.constant(i)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 48);
    }
}
