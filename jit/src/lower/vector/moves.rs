//! Moves between vector registers, general registers and memory.

use super::super::Lower;
use super::{Halves, V};
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::Mnemonic as M;
use sevlab_cpu::Width;
use sevlab_cpu::builder::Builder;

impl Lower<'_, '_> {
    pub(super) fn vector_move(&mut self, v: &V) -> bool {
        match v.ins.mnemonic() {
            M::Movaps
            | M::Movapd
            | M::Movdqa
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq => self.move_full(v, true),
            M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Vmovups
            | M::Vmovupd
            | M::Vmovdqu
            | M::Vlddqu => self.move_full(v, false),
            M::Movd | M::Vmovd => self.move_gpr(v, Width::B4),
            M::Movq | M::Vmovq => self.move_gpr(v, Width::B8),
            M::Movss | M::Vmovss => self.move_scalar(v, types::F32),
            M::Movsd | M::Vmovsd if v.ins.op_count() > 0 => self.move_scalar(v, types::F64),
            M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => self.move_quad(v, 0),
            M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => self.move_quad(v, 1),
            M::Vzeroupper => {
                for r in 0..16 {
                    let zero = self.vzero();
                    self.set_vec_high(r, zero);
                }
                true
            }
            M::Vbroadcastss | M::Vpbroadcastd => self.broadcast(v, types::I32),
            M::Vbroadcastsd | M::Vpbroadcastq => self.broadcast(v, types::I64),
            M::Vpbroadcastb => self.broadcast(v, types::I8),
            M::Vpbroadcastw => self.broadcast(v, types::I16),
            M::Vbroadcastf128 | M::Vbroadcasti128 => {
                let va = self.vector_address(v);
                let low = self.load_type(types::I8X16, va);
                self.write_halves(
                    v,
                    Halves {
                        low,
                        high: Some(low),
                    },
                );
                true
            }
            M::Vextractf128 | M::Vextracti128 => {
                let r = v.reg(1);
                let h = if v.imm(2) & 1 == 0 {
                    self.vec_low(r)
                } else {
                    self.vec_high(r)
                };
                if v.is_vec(0) {
                    let d = v.reg(0);
                    self.set_vec_low(d, h);
                    let zero = self.vzero();
                    self.set_vec_high(d, zero);
                } else {
                    let va = self.vector_address(v);
                    self.store_type(types::I8X16, va, h);
                }
                true
            }
            M::Vinsertf128 | M::Vinserti128 => {
                let part = if v.is_vec(2) {
                    self.vec_low(v.reg(2))
                } else {
                    let va = self.vector_address(v);
                    self.load_type(types::I8X16, va)
                };
                let (low, high) = (self.vec_low(v.reg(1)), self.vec_high(v.reg(1)));
                let h = if v.imm(3) & 1 == 0 {
                    Halves {
                        low: part,
                        high: Some(high),
                    }
                } else {
                    Halves {
                        low,
                        high: Some(part),
                    }
                };
                self.write_halves(v, h);
                true
            }
            M::Pextrb | M::Vpextrb => self.extract(v, types::I8X16, Width::B1),
            M::Pextrw | M::Vpextrw => self.extract(v, types::I16X8, Width::B2),
            M::Pextrd | M::Vpextrd => self.extract(v, types::I32X4, Width::B4),
            M::Pextrq | M::Vpextrq => self.extract(v, types::I64X2, Width::B8),
            M::Pinsrb | M::Vpinsrb => self.insert(v, types::I8X16, Width::B1),
            M::Pinsrw | M::Vpinsrw => self.insert(v, types::I16X8, Width::B2),
            M::Pinsrd | M::Vpinsrd => self.insert(v, types::I32X4, Width::B4),
            M::Pinsrq | M::Vpinsrq => self.insert(v, types::I64X2, Width::B8),
            _ => false,
        }
    }

    fn move_full(&mut self, v: &V, aligned: bool) -> bool {
        let bytes = if v.wide { 32 } else { 16 };
        if v.is_vec(0) && v.is_vec(1) {
            let h = self.read_halves(v, 1);
            self.write_halves(v, h);
        } else if v.is_vec(0) {
            let va = self.vector_address(v);
            if aligned {
                self.check_aligned(va, bytes);
            }
            let h = self.load_halves(va, v.wide);
            self.write_halves(v, h);
        } else {
            let r = v.reg(1);
            let low = self.vec_low(r);
            let high = if v.wide { Some(self.vec_high(r)) } else { None };
            let va = self.vector_address(v);
            if aligned {
                self.check_aligned(va, bytes);
            }
            self.store_halves(va, Halves { low, high });
        }
        true
    }

    /// A vector with the scalar `s` in lane 0 and zeros above.
    fn zero_extended(&mut self, s: Value) -> Value {
        let t = self.fb.func.dfg.value_type(s);
        let lanes = t.by(128 / t.bits()).expect("a scalar lane type");
        let x = self.fb.ins().scalar_to_vector(lanes, s);
        self.bytes(x)
    }

    fn move_gpr(&mut self, v: &V, w: Width) -> bool {
        let t = if w == Width::B4 {
            types::I32
        } else {
            types::I64
        };
        if v.is_vec(0) {
            let s = if v.is_vec(1) {
                self.read_scalar(v, 1, t)
            } else if v.is_reg(1) {
                let (r, _) = v.gpr(1);
                self.gpr(r, w)
            } else {
                let va = self.vector_address(v);
                self.load_type(t, va)
            };
            let low = self.zero_extended(s);
            self.write_halves(v, Halves { low, high: None });
        } else {
            let s = self.read_scalar(v, 1, t);
            if v.is_reg(0) {
                let (r, _) = v.gpr(0);
                self.set_gpr(r, w, s);
            } else {
                let va = self.vector_address(v);
                self.store_type(t, va, s);
            }
        }
        true
    }

    fn move_scalar(&mut self, v: &V, t: Type) -> bool {
        let lanes = t.by(128 / t.bits()).expect("a scalar lane type");
        if !v.is_vec(0) {
            let s = self.read_scalar(v, 1, t);
            let va = self.vector_address(v);
            self.store_type(t, va, s);
        } else if !v.is_vec(1) {
            let s = self.read_scalar(v, 1, t);
            let low = self.zero_extended(s);
            self.write_halves(v, Halves { low, high: None });
        } else {
            // Register to register merges into the first source.
            let (into, from) = if v.vex { (1, 2) } else { (0, 1) };
            let s = self.read_scalar(v, from, t);
            let base = self.vec_low(v.reg(into));
            let base = self.cast(lanes, base);
            let low = self.fb.ins().insertlane(base, s, 0);
            self.write_halves(v, Halves { low, high: None });
        }
        true
    }

    /// MOVLPS, MOVHPS and the like with memory: one quadword of a register.
    fn move_quad(&mut self, v: &V, lane: u8) -> bool {
        if v.is_vec(0) {
            let (into, from) = if v.vex { (1, 2) } else { (0, 1) };
            if v.is_vec(from) {
                return false;
            }
            let va = self.vector_address(v);
            let q = self.load_type(types::I64, va);
            let base = self.vec_low(v.reg(into));
            let base = self.cast(types::I64X2, base);
            let low = self.fb.ins().insertlane(base, q, lane);
            self.write_halves(v, Halves { low, high: None });
        } else {
            let low = self.vec_low(v.reg(1));
            let lanes = self.cast(types::I64X2, low);
            let q = self.fb.ins().extractlane(lanes, lane);
            let va = self.vector_address(v);
            self.store_type(types::I64, va, q);
        }
        true
    }

    fn broadcast(&mut self, v: &V, t: Type) -> bool {
        let s = self.read_scalar(v, 1, t);
        let x = self
            .fb
            .ins()
            .splat(t.by(128 / t.bits()).expect("a scalar lane type"), s);
        self.write_halves(
            v,
            Halves {
                low: x,
                high: v.wide.then_some(x),
            },
        );
        true
    }

    fn extract(&mut self, v: &V, lanes: Type, w: Width) -> bool {
        let lane = v.imm(2) & (lanes.lane_count() as u8 - 1);
        let x = self.vec_low(v.reg(1));
        let x = self.cast(lanes, x);
        let s = self.fb.ins().extractlane(x, lane);
        if v.is_reg(0) {
            let (r, _) = v.gpr(0);
            let s = self.zext(w, Width::B8, s);
            self.set_gpr(r, Width::B8, s);
        } else {
            let va = self.vector_address(v);
            self.store_type(lanes.lane_type(), va, s);
        }
        true
    }

    fn insert(&mut self, v: &V, lanes: Type, w: Width) -> bool {
        let (into, from) = if v.vex { (1, 2) } else { (0, 1) };
        let lane = v.imm(from + 1) & (lanes.lane_count() as u8 - 1);
        let s = if v.is_reg(from) {
            let (r, _) = v.gpr(from);
            self.gpr(r, w)
        } else {
            let va = self.vector_address(v);
            self.load_type(lanes.lane_type(), va)
        };
        let base = self.vec_low(v.reg(into));
        let base = self.cast(lanes, base);
        let low = self.fb.ins().insertlane(base, s, lane);
        self.write_halves(v, Halves { low, high: None });
        true
    }
}
