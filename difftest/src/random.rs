//! Random numbers, and values that like the edges.

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; every seed is good.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ z >> 31) | 1)
    }
    /// 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 11) % n.max(1)
    }
    /// True once in `n` times.
    #[inline]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    /// One of these.
    #[inline]
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer that likes the edges.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            u64::MAX,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            u64::MAX >> 1,
            1 << 63,
            0xffff_ffff_8000_0000,
        ];
        let v = self.bits();
        match self.below(9) {
            0 => v,
            1 => v & 0xff,
            2 => 0u64.wrapping_sub(v & 0xf),
            3 => 1 << (v & 63),
            4 => (1u64 << (v & 63)).wrapping_sub(1),
            5 => v & 0xffff_ffff,
            6 | 7 => EDGES[(v % 14) as usize],
            _ => v >> (v & 63),
        }
    }

    /// A single-precision number of any class.
    pub fn single(&mut self) -> u32 {
        match self.below(12) {
            0 => self.pick(&[0, 0x8000_0000, 0x7f80_0000, 0xff80_0000]),
            1 => 0x7fc0_0000 | self.bits() as u32 & 0x803f_ffff,
            2 => 0x7f80_0001 | self.bits() as u32 & 0x803f_ffff,
            3 => self.bits() as u32 & 0x807f_ffff,
            4 => self.pick(&[
                0x0080_0000,
                0x7f7f_ffff,
                0x3f80_0000,
                0xbf80_0000,
                0x4f00_0000,
                0xcf00_0000,
                0x5f00_0000,
                0x3f00_0001,
                0x4b80_0001,
                1,
            ]),
            5 | 6 => (self.below(4000) as f32 / 8.0 - 250.0).to_bits(),
            7 => (self.below(40) as f32).to_bits(),
            8 => self.bits() as u32,
            _ => 0x3000_0000 + (self.bits() as u32 & 0x9fff_ffff),
        }
    }

    /// A double-precision number of any class.
    pub fn double(&mut self) -> u64 {
        match self.below(11) {
            0 => self.pick(&[0, 1 << 63, 0x7ff << 52, 0xfff << 52]),
            1 => 0x7ff8 << 48 | self.bits() & 0x8007_ffff_ffff_ffff,
            2 => (0x7ff << 52 | 1) | self.bits() & 0x8007_ffff_ffff_ffff,
            3 => self.bits() & 0x800f_ffff_ffff_ffff,
            4 => self.pick(&[
                0x0010 << 48,
                0x7fef_ffff_ffff_ffff,
                0x3ff0 << 48,
                0xbff0 << 48,
                0x41e0 << 48,
                0xc1e0 << 48,
                0x43e0 << 48,
                0xc3e0 << 48,
                0x47ef_ffff_ffff_ffff,
                0x3690 << 48,
                1,
            ]),
            5 => (self.below(1 << 40) as f64).to_bits(),
            6 | 7 => (self.below(4000) as f64 / 16.0 - 125.0).to_bits(),
            _ => (0x3e00 << 48) + (self.bits() & 0x83ff_ffff_ffff_ffff),
        }
    }

    /// An 80-bit number of any class, unnormal ones too: significand, then sign and exponent.
    pub fn extended(&mut self) -> (u64, u16) {
        let exponent = match self.below(7) {
            0 => 0,
            1 => 0x7fff,
            2 => self.bits() as u16 & 0x7fff,
            _ => 0x3fff - 70 + self.below(140) as u16,
        };
        let significand = match self.below(7) {
            0 => 0,
            1 => 1 << 63,
            2 => self.bits(),
            3 => 3 << 62,
            4 => 1 << 63 | self.bits() & 0xffff_ffff << 32,
            _ => self.bits() | 1 << 63,
        };
        (significand, exponent | self.bits() as u16 & 0x8000)
    }

    /// A quadword of a vector register or of memory.
    pub fn lane(&mut self) -> u64 {
        match self.below(7) {
            0 => self.value(),
            1 => self.bits(),
            2 | 3 => u64::from(self.single()) << 32 | u64::from(self.single()),
            4 => self.bits() & 0x0f81_0183_000f_8107,
            _ => self.double(),
        }
    }

    /// An x87 control word.
    pub fn control_word(&mut self) -> u16 {
        let masks = if self.one_in(6) {
            self.bits() as u16 & 0x3f
        } else {
            0x3f
        };
        masks | 0x40 | self.bits() as u16 & 0xc00 | self.pick(&[0, 0x200, 0x300, 0x300])
    }

    /// An MXCSR value: any rounding, now and then FTZ, DAZ, unmasked exceptions and raised flags.
    pub fn mxcsr(&mut self) -> u32 {
        let mut v = 0x1f80;
        if self.one_in(8) {
            v = self.bits() as u32 & 0x1f80;
        }
        if self.one_in(2) {
            v |= self.bits() as u32 & 0x6000;
        }
        if self.one_in(4) {
            v |= self.bits() as u32 & 0x8040;
        }
        if self.one_in(3) {
            v |= self.bits() as u32 & 0x3f;
        }
        v
    }
}
