//! Shuffles: all become byte shuffles of one or two sources with a constant mask.

use super::super::Lower;
use super::{Halves, V};
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value, types};
use iced_x86::Mnemonic as M;

/// Byte indexes 0..=15 name the first source, 16..=31 the second.
type Mask = [u8; 16];

/// A mask made of lanes of `size` bytes: lane `n` of the result is lane `lanes[n]` of the sources' concatenation.
fn by_lanes(size: usize, lanes: &[u8]) -> Mask {
    std::array::from_fn(|k| lanes[k / size] * size as u8 + (k % size) as u8)
}

/// Interleaves lanes of `size` bytes from the low (or high) halves of two sources.
fn unpack(size: usize, high: bool) -> Mask {
    let count = 16 / size;
    let first = if high { count / 2 } else { 0 };
    let lanes: Vec<u8> = (0..count)
        .map(|n| (first + n / 2 + if n % 2 == 1 { count } else { 0 }) as u8)
        .collect();
    by_lanes(size, &lanes)
}

impl Lower<'_, '_> {
    fn shuffle_bytes(&mut self, a: Value, b: Value, mask: Mask) -> Value {
        let m = self
            .fb
            .func
            .dfg
            .immediates
            .push(ConstantData::from(&mask[..]));
        self.fb.ins().shuffle(a, b, m)
    }

    fn shuffle2(&mut self, v: &V, mask: Mask) -> bool {
        self.map2(v, types::I8X16, |l, a, b| l.shuffle_bytes(a, b, mask))
    }

    fn shuffle1(&mut self, v: &V, mask: Mask) -> bool {
        self.map1(v, types::I8X16, |l, a| l.shuffle_bytes(a, a, mask))
    }

    pub(super) fn vector_shuffle(&mut self, v: &V) -> bool {
        let two = |n: u8, k: u8| n >> (2 * k) & 3;
        match v.ins.mnemonic() {
            M::Punpcklbw | M::Vpunpcklbw => self.shuffle2(v, unpack(1, false)),
            M::Punpckhbw | M::Vpunpckhbw => self.shuffle2(v, unpack(1, true)),
            M::Punpcklwd | M::Vpunpcklwd => self.shuffle2(v, unpack(2, false)),
            M::Punpckhwd | M::Vpunpckhwd => self.shuffle2(v, unpack(2, true)),
            M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => {
                self.shuffle2(v, unpack(4, false))
            }
            M::Punpckhdq | M::Vpunpckhdq | M::Unpckhps | M::Vunpckhps => {
                self.shuffle2(v, unpack(4, true))
            }
            M::Punpcklqdq
            | M::Vpunpcklqdq
            | M::Unpcklpd
            | M::Vunpcklpd
            | M::Movlhps
            | M::Vmovlhps => self.shuffle2(v, unpack(8, false)),
            M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => {
                self.shuffle2(v, unpack(8, true))
            }
            M::Movhlps | M::Vmovhlps => self.shuffle2(v, by_lanes(8, &[3, 1])),
            M::Pshufd | M::Vpshufd => {
                let n = v.imm(2);
                self.shuffle1(
                    v,
                    by_lanes(4, &[two(n, 0), two(n, 1), two(n, 2), two(n, 3)]),
                )
            }
            M::Vpermilps if v.ins.op_kind(2) == iced_x86::OpKind::Immediate8 => {
                let n = v.imm(2);
                self.shuffle1(
                    v,
                    by_lanes(4, &[two(n, 0), two(n, 1), two(n, 2), two(n, 3)]),
                )
            }
            M::Pshuflw | M::Vpshuflw => {
                let n = v.imm(2);
                self.shuffle1(
                    v,
                    by_lanes(2, &[two(n, 0), two(n, 1), two(n, 2), two(n, 3), 4, 5, 6, 7]),
                )
            }
            M::Pshufhw | M::Vpshufhw => {
                let n = v.imm(2);
                let lanes = [
                    0,
                    1,
                    2,
                    3,
                    4 + two(n, 0),
                    4 + two(n, 1),
                    4 + two(n, 2),
                    4 + two(n, 3),
                ];
                self.shuffle1(v, by_lanes(2, &lanes))
            }
            M::Shufps | M::Vshufps => {
                let n = v.imm(if v.vex { 3 } else { 2 });
                self.shuffle2(
                    v,
                    by_lanes(4, &[two(n, 0), two(n, 1), 4 + two(n, 2), 4 + two(n, 3)]),
                )
            }
            M::Shufpd | M::Vshufpd if !v.wide => {
                let n = v.imm(if v.vex { 3 } else { 2 });
                self.shuffle2(v, by_lanes(8, &[n & 1, 2 + (n >> 1 & 1)]))
            }
            M::Movddup | M::Vmovddup if v.is_vec(1) => self.shuffle1(v, by_lanes(8, &[0, 0])),
            M::Movshdup | M::Vmovshdup => self.shuffle1(v, by_lanes(4, &[1, 1, 3, 3])),
            M::Movsldup | M::Vmovsldup => self.shuffle1(v, by_lanes(4, &[0, 0, 2, 2])),
            M::Palignr | M::Vpalignr => {
                let n = v.imm(if v.vex { 3 } else { 2 });
                if n > 16 {
                    return false;
                }
                // The second source is the low half of the concatenation.
                self.map2(v, types::I8X16, |l, a, b| {
                    l.shuffle_bytes(b, a, std::array::from_fn(|k| k as u8 + n))
                })
            }
            M::Pslldq | M::Vpslldq => self.byte_shift(v, true),
            M::Psrldq | M::Vpsrldq => self.byte_shift(v, false),
            M::Pshufb | M::Vpshufb => {
                self.map2(v, types::I8X16, |l, a, b| l.fb.ins().x86_pshufb(a, b))
            }
            M::Vperm2f128 | M::Vperm2i128 => self.perm128(v),
            M::Vpermq | M::Vpermpd if v.ins.op_kind(2) == iced_x86::OpKind::Immediate8 => {
                self.permq(v)
            }
            _ => false,
        }
    }

    fn byte_shift(&mut self, v: &V, left: bool) -> bool {
        let (s1, s2) = v.sources();
        let n = v.imm(s2).min(16);
        let mask: Mask = std::array::from_fn(|k| {
            let k = k as u8;
            match left {
                true if k < n => 16,
                true => k - n,
                false if k + n > 15 => 16,
                false => k + n,
            }
        });
        let a = self.read_halves(v, s1);
        let zero = self.vzero();
        let low = self.shuffle_bytes(a.low, zero, mask);
        let high = a.high.map(|h| self.shuffle_bytes(h, zero, mask));
        self.write_halves(v, Halves { low, high });
        true
    }

    fn perm128(&mut self, v: &V) -> bool {
        let b = self.read_halves(v, 2);
        let a = self.read_halves(v, 1);
        let (Some(ah), Some(bh)) = (a.high, b.high) else {
            return false;
        };
        let all = [a.low, ah, b.low, bh];
        let n = v.imm(3);
        let zero = self.vzero();
        let pick = |n: u8| {
            if n & 8 != 0 {
                zero
            } else {
                all[(n & 3) as usize]
            }
        };
        self.write_halves(
            v,
            Halves {
                low: pick(n & 15),
                high: Some(pick(n >> 4)),
            },
        );
        true
    }

    fn permq(&mut self, v: &V) -> bool {
        let a = self.read_halves(v, 1);
        let Some(high) = a.high else { return false };
        let n = v.imm(2);
        let half =
            |l: &mut Self, s: u8| l.shuffle_bytes(a.low, high, by_lanes(8, &[s & 3, s >> 2 & 3]));
        let low = half(self, n);
        let up = half(self, n >> 4);
        self.write_halves(
            v,
            Halves {
                low,
                high: Some(up),
            },
        );
        true
    }
}
