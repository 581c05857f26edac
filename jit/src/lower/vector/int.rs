//! Packed integer and bitwise operations.

use super::super::Lower;
use super::{Halves, V};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::Mnemonic as M;
use sevlab_cpu::Width;
use sevlab_cpu::builder::Builder;
use sevlab_cpu::flags::{AF, Flag, OF, PF, SF};

const B: Type = types::I8X16;
const W: Type = types::I16X8;
const D: Type = types::I32X4;
const Q: Type = types::I64X2;

/// Which way a packed shift goes.
#[derive(Clone, Copy)]
enum Shift {
    Left,
    Right,
    Arithmetic,
}

macro_rules! ins2 {
    ($self:ident, $v:ident, $t:expr, $op:ident) => {
        $self.map2($v, $t, |l, a, b| l.fb.ins().$op(a, b))
    };
}

impl Lower<'_, '_> {
    pub(super) fn vector_int(&mut self, v: &V) -> bool {
        match v.ins.mnemonic() {
            M::Paddb | M::Vpaddb => ins2!(self, v, B, iadd),
            M::Paddw | M::Vpaddw => ins2!(self, v, W, iadd),
            M::Paddd | M::Vpaddd => ins2!(self, v, D, iadd),
            M::Paddq | M::Vpaddq => ins2!(self, v, Q, iadd),
            M::Psubb | M::Vpsubb => ins2!(self, v, B, isub),
            M::Psubw | M::Vpsubw => ins2!(self, v, W, isub),
            M::Psubd | M::Vpsubd => ins2!(self, v, D, isub),
            M::Psubq | M::Vpsubq => ins2!(self, v, Q, isub),
            M::Paddusb | M::Vpaddusb => ins2!(self, v, B, uadd_sat),
            M::Paddusw | M::Vpaddusw => ins2!(self, v, W, uadd_sat),
            M::Paddsb | M::Vpaddsb => ins2!(self, v, B, sadd_sat),
            M::Paddsw | M::Vpaddsw => ins2!(self, v, W, sadd_sat),
            M::Psubusb | M::Vpsubusb => ins2!(self, v, B, usub_sat),
            M::Psubusw | M::Vpsubusw => ins2!(self, v, W, usub_sat),
            M::Psubsb | M::Vpsubsb => ins2!(self, v, B, ssub_sat),
            M::Psubsw | M::Vpsubsw => ins2!(self, v, W, ssub_sat),
            M::Pand | M::Vpand | M::Andps | M::Vandps | M::Andpd | M::Vandpd => {
                ins2!(self, v, Q, band)
            }
            M::Por | M::Vpor | M::Orps | M::Vorps | M::Orpd | M::Vorpd => ins2!(self, v, Q, bor),
            M::Pxor | M::Vpxor | M::Xorps | M::Vxorps | M::Xorpd | M::Vxorpd => self.vector_xor(v),
            M::Pandn | M::Vpandn | M::Andnps | M::Vandnps | M::Andnpd | M::Vandnpd => {
                self.map2(v, Q, |l, a, b| l.fb.ins().band_not(b, a))
            }
            M::Pcmpeqb | M::Vpcmpeqb => self.compare(v, B, IntCC::Equal),
            M::Pcmpeqw | M::Vpcmpeqw => self.compare(v, W, IntCC::Equal),
            M::Pcmpeqd | M::Vpcmpeqd => self.compare(v, D, IntCC::Equal),
            M::Pcmpeqq | M::Vpcmpeqq => self.compare(v, Q, IntCC::Equal),
            M::Pcmpgtb | M::Vpcmpgtb => self.compare(v, B, IntCC::SignedGreaterThan),
            M::Pcmpgtw | M::Vpcmpgtw => self.compare(v, W, IntCC::SignedGreaterThan),
            M::Pcmpgtd | M::Vpcmpgtd => self.compare(v, D, IntCC::SignedGreaterThan),
            M::Pcmpgtq | M::Vpcmpgtq => self.compare(v, Q, IntCC::SignedGreaterThan),
            M::Pminub | M::Vpminub => ins2!(self, v, B, umin),
            M::Pmaxub | M::Vpmaxub => ins2!(self, v, B, umax),
            M::Pminuw | M::Vpminuw => ins2!(self, v, W, umin),
            M::Pmaxuw | M::Vpmaxuw => ins2!(self, v, W, umax),
            M::Pminud | M::Vpminud => ins2!(self, v, D, umin),
            M::Pmaxud | M::Vpmaxud => ins2!(self, v, D, umax),
            M::Pminsb | M::Vpminsb => ins2!(self, v, B, smin),
            M::Pmaxsb | M::Vpmaxsb => ins2!(self, v, B, smax),
            M::Pminsw | M::Vpminsw => ins2!(self, v, W, smin),
            M::Pmaxsw | M::Vpmaxsw => ins2!(self, v, W, smax),
            M::Pminsd | M::Vpminsd => ins2!(self, v, D, smin),
            M::Pmaxsd | M::Vpmaxsd => ins2!(self, v, D, smax),
            M::Pavgb | M::Vpavgb => ins2!(self, v, B, avg_round),
            M::Pavgw | M::Vpavgw => ins2!(self, v, W, avg_round),
            M::Pmullw | M::Vpmullw => ins2!(self, v, W, imul),
            M::Pmulld | M::Vpmulld => ins2!(self, v, D, imul),
            M::Pabsb | M::Vpabsb => self.map1(v, B, |l, a| l.fb.ins().iabs(a)),
            M::Pabsw | M::Vpabsw => self.map1(v, W, |l, a| l.fb.ins().iabs(a)),
            M::Pabsd | M::Vpabsd => self.map1(v, D, |l, a| l.fb.ins().iabs(a)),
            M::Pmuludq | M::Vpmuludq => self.map2(v, Q, |l, a, b| {
                let mask = l.vconst([
                    255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0,
                ]);
                let mask = l.cast(Q, mask);
                let (a, b) = (l.fb.ins().band(a, mask), l.fb.ins().band(b, mask));
                l.fb.ins().imul(a, b)
            }),
            M::Packsswb | M::Vpacksswb => ins2!(self, v, W, snarrow),
            M::Packssdw | M::Vpackssdw => ins2!(self, v, D, snarrow),
            M::Packuswb | M::Vpackuswb => ins2!(self, v, W, unarrow),
            M::Packusdw | M::Vpackusdw => ins2!(self, v, D, unarrow),
            M::Psllw | M::Vpsllw => self.shift(v, W, Shift::Left),
            M::Pslld | M::Vpslld => self.shift(v, D, Shift::Left),
            M::Psllq | M::Vpsllq => self.shift(v, Q, Shift::Left),
            M::Psrlw | M::Vpsrlw => self.shift(v, W, Shift::Right),
            M::Psrld | M::Vpsrld => self.shift(v, D, Shift::Right),
            M::Psrlq | M::Vpsrlq => self.shift(v, Q, Shift::Right),
            M::Psraw | M::Vpsraw => self.shift(v, W, Shift::Arithmetic),
            M::Psrad | M::Vpsrad => self.shift(v, D, Shift::Arithmetic),
            M::Pmovmskb | M::Vpmovmskb => self.mask_bits(v, B),
            M::Movmskps | M::Vmovmskps => self.mask_bits(v, D),
            M::Movmskpd | M::Vmovmskpd => self.mask_bits(v, Q),
            M::Ptest | M::Vptest => self.ptest(v),
            M::Pmovzxbw | M::Vpmovzxbw => self.widen_lanes(v, B, false),
            M::Pmovzxwd | M::Vpmovzxwd => self.widen_lanes(v, W, false),
            M::Pmovzxdq | M::Vpmovzxdq => self.widen_lanes(v, D, false),
            M::Pmovsxbw | M::Vpmovsxbw => self.widen_lanes(v, B, true),
            M::Pmovsxwd | M::Vpmovsxwd => self.widen_lanes(v, W, true),
            M::Pmovsxdq | M::Vpmovsxdq => self.widen_lanes(v, D, true),
            _ => false,
        }
    }

    /// XOR; of a register with itself, a constant.
    fn vector_xor(&mut self, v: &V) -> bool {
        let (s1, s2) = v.sources();
        if v.is_vec(s2) && v.reg(s1) == v.reg(s2) {
            let zero = self.vzero();
            self.write_halves(
                v,
                Halves {
                    low: zero,
                    high: v.wide.then_some(zero),
                },
            );
            return true;
        }
        ins2!(self, v, Q, bxor)
    }

    fn compare(&mut self, v: &V, t: Type, cc: IntCC) -> bool {
        self.map2(v, t, |l, a, b| l.fb.ins().icmp(cc, a, b))
    }

    /// Packed shift by an immediate; by a register it stays a thunk.
    fn shift(&mut self, v: &V, t: Type, how: Shift) -> bool {
        let (s1, s2) = v.sources();
        if v.ins.op_kind(s2) != iced_x86::OpKind::Immediate8 {
            return false;
        }
        let bits = t.lane_bits() as u8;
        let n = v.imm(s2);
        let a = self.read_halves(v, s1);
        let half = |l: &mut Self, x: Value| {
            let x = l.cast(t, x);
            match how {
                Shift::Left | Shift::Right if n >= bits => l.vzero(),
                Shift::Left => {
                    let n = l.iconst(types::I32, u64::from(n));
                    l.fb.ins().ishl(x, n)
                }
                Shift::Right => {
                    let n = l.iconst(types::I32, u64::from(n));
                    l.fb.ins().ushr(x, n)
                }
                Shift::Arithmetic => {
                    let n = l.iconst(types::I32, u64::from(n.min(bits - 1)));
                    l.fb.ins().sshr(x, n)
                }
            }
        };
        let low = half(self, a.low);
        let high = a.high.map(|h| half(self, h));
        self.write_halves(v, Halves { low, high });
        true
    }

    /// Sign bits of the lanes of operand 1, into a general register.
    fn mask_bits(&mut self, v: &V, t: Type) -> bool {
        let a = self.read_halves(v, 1);
        let low = self.cast(t, a.low);
        let mut bits = self.fb.ins().vhigh_bits(types::I32, low);
        if let Some(h) = a.high {
            let h = self.cast(t, h);
            let h = self.fb.ins().vhigh_bits(types::I32, h);
            let n = self.iconst(types::I32, u64::from(t.lane_count()));
            let h = self.fb.ins().ishl(h, n);
            bits = self.fb.ins().bor(bits, h);
        }
        let (r, _) = v.gpr(0);
        self.set_gpr(r, Width::B4, bits);
        true
    }

    /// PTEST: ZF = (a & b) is zero, CF = (~a & b) is zero, the rest cleared.
    fn ptest(&mut self, v: &V) -> bool {
        let b = self.read_halves(v, 1);
        let a = self.read_halves(v, 0);
        let mut parts = Vec::new();
        for (a, b) in [(Some(a.low), Some(b.low)), (a.high, b.high)] {
            if let (Some(a), Some(b)) = (a, b) {
                let (a, b) = (self.cast(Q, a), self.cast(Q, b));
                parts.push((self.fb.ins().band(a, b), self.fb.ins().band_not(b, a)));
            }
        }
        let (mut and, mut andn) = parts[0];
        for &(x, y) in &parts[1..] {
            and = self.fb.ins().bor(and, x);
            andn = self.fb.ins().bor(andn, y);
        }
        let is_zero = |l: &mut Self, x: Value| {
            let lo = l.fb.ins().extractlane(x, 0);
            let hi = l.fb.ins().extractlane(x, 1);
            let any = l.fb.ins().bor(lo, hi);
            let zero = l.iconst(types::I64, 0);
            l.fb.ins().icmp(IntCC::Equal, any, zero)
        };
        let (zf, cf) = (is_zero(self, and), is_zero(self, andn));
        self.set_flag(Flag::Zf, zf);
        self.set_flag(Flag::Cf, cf);
        self.clear_flags(AF | OF | PF | SF);
        true
    }

    /// Clears the flags in `mask`.
    pub(super) fn clear_flags(&mut self, mask: u64) {
        let zero = self.cond_const(false);
        for f in Flag::ALL {
            if mask & f.bit() != 0 {
                self.set_flag(f, zero);
            }
        }
    }

    /// PMOVZX and PMOVSX to lanes of twice the width.
    fn widen_lanes(&mut self, v: &V, t: Type, signed: bool) -> bool {
        if v.wide {
            // 16 source bytes fill 32.
            let src = if v.is_vec(1) {
                self.vec_low(v.reg(1))
            } else {
                let va = self.vector_address(v);
                self.load_type(types::I8X16, va)
            };
            let x = self.cast(t, src);
            let (low, high) = if signed {
                (self.fb.ins().swiden_low(x), self.fb.ins().swiden_high(x))
            } else {
                (self.fb.ins().uwiden_low(x), self.fb.ins().uwiden_high(x))
            };
            self.write_halves(
                v,
                Halves {
                    low,
                    high: Some(high),
                },
            );
            return true;
        }
        let src = if v.is_vec(1) {
            self.vec_low(v.reg(1))
        } else {
            let va = self.vector_address(v);
            let q = self.load_type(types::I64, va);
            let x = self.fb.ins().scalar_to_vector(Q, q);
            self.bytes(x)
        };
        let x = self.cast(t, src);
        let low = if signed {
            self.fb.ins().swiden_low(x)
        } else {
            self.fb.ins().uwiden_low(x)
        };
        self.write_halves(v, Halves { low, high: None });
        true
    }
}
