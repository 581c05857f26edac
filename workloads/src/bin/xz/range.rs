//! A binary range coder, as LZMA has it: 11-bit probabilities that adapt by a 32nd.

/// A probability of 0, in 2^-11.
pub type Bit = u16;
/// What a probability begins with.
pub const HALF: Bit = 1 << 10;

const BITS: u32 = 11;
const MOVE: u32 = 5;
const TOP: u32 = 1 << 24;

/// Writes bits.
pub struct Encoder {
    low: u64,
    range: u32,
    /// The last byte that a carry can still change, and how many 0xff after it.
    cache: u8,
    pending: u64,
    /// What is written.
    pub out: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Self {
        Self {
            low: 0,
            range: u32::MAX,
            cache: 0,
            pending: 1,
            out: Vec::new(),
        }
    }

    #[inline]
    pub fn bit(&mut self, p: &mut Bit, bit: u32) {
        let bound = (self.range >> BITS) * u32::from(*p);
        if bit == 0 {
            self.range = bound;
            *p += ((1 << BITS) - *p) >> MOVE;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
            *p -= *p >> MOVE;
        }
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
    }

    /// The low `count` bits of `value`, each as likely as not.
    pub fn direct(&mut self, value: u32, count: u32) {
        for n in (0..count).rev() {
            self.range >>= 1;
            if value >> n & 1 == 1 {
                self.low += u64::from(self.range);
            }
            while self.range < TOP {
                self.range <<= 8;
                self.shift();
            }
        }
    }

    /// A number of `count` bits, highest first, each in the context of those before.
    pub fn tree(&mut self, p: &mut [Bit], value: u32, count: u32) {
        let mut at = 1;
        for n in (0..count).rev() {
            let bit = value >> n & 1;
            self.bit(&mut p[at], bit);
            at = at << 1 | bit as usize;
        }
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > 0xffff_ffff {
            let carry = (self.low >> 32) as u8;
            let mut byte = self.cache;
            while self.pending > 0 {
                self.out.push(byte.wrapping_add(carry));
                byte = 0xff;
                self.pending -= 1;
            }
            self.cache = (self.low >> 24) as u8;
        }
        self.pending += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    pub fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        self.out
    }
}

/// Reads them again.
pub struct Decoder<'a> {
    range: u32,
    code: u32,
    input: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        let mut this = Self {
            range: u32::MAX,
            code: 0,
            input,
            at: 0,
        };
        for _ in 0..5 {
            this.code = this.code << 8 | this.byte();
        }
        this
    }

    #[inline]
    fn byte(&mut self) -> u32 {
        let byte = self.input.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        u32::from(byte)
    }

    #[inline]
    fn normalize(&mut self) {
        while self.range < TOP {
            self.range <<= 8;
            self.code = self.code << 8 | self.byte();
        }
    }

    #[inline]
    pub fn bit(&mut self, p: &mut Bit) -> u32 {
        let bound = (self.range >> BITS) * u32::from(*p);
        let bit = if self.code < bound {
            self.range = bound;
            *p += ((1 << BITS) - *p) >> MOVE;
            0
        } else {
            self.code -= bound;
            self.range -= bound;
            *p -= *p >> MOVE;
            1
        };
        self.normalize();
        bit
    }

    pub fn direct(&mut self, count: u32) -> u32 {
        let mut value = 0;
        for _ in 0..count {
            self.range >>= 1;
            let bit = u32::from(self.code >= self.range);
            self.code -= self.range * bit;
            value = value << 1 | bit;
            self.normalize();
        }
        value
    }

    pub fn tree(&mut self, p: &mut [Bit], count: u32) -> u32 {
        let mut at = 1;
        for _ in 0..count {
            at = at << 1 | self.bit(&mut p[at]) as usize;
        }
        at as u32 - (1 << count)
    }
}
