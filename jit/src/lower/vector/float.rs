//! Scalar and packed floating point.

use super::super::Lower;
use super::{Halves, V};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::Mnemonic as M;
use sevlab_cpu::Width;
use sevlab_cpu::builder::Builder;
use sevlab_cpu::flags::{AF, Flag, OF, SF};

/// The four arithmetic operations.
#[derive(Clone, Copy)]
enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

/// Which operands are a, b and c of `a * b + c`: the 132, 213 and 231 forms.
type Fma = [u32; 3];

/// Minimum or maximum of a register and itself: it would be simplified away, but it may turn a denormal into zero.
fn chooses_between_equals(v: &V, op: Arith) -> bool {
    let (s1, s2) = v.sources();
    matches!(op, Arith::Min | Arith::Max) && v.is_vec(s2) && v.reg(s1) == v.reg(s2)
}

fn lanes(t: Type) -> Type {
    t.by(128 / t.bits()).expect("a scalar lane type")
}

impl Lower<'_, '_> {
    pub(super) fn vector_float(&mut self, v: &V) -> bool {
        if !self.float_operation(v) {
            return false;
        }
        if v.is_vec(0) && v.ins.rflags_modified() == 0 {
            self.vecs[v.reg(0)].raises = (true, v.wide);
        }
        true
    }

    fn float_operation(&mut self, v: &V) -> bool {
        let (f32, f64) = (types::F32, types::F64);
        use Arith::*;
        match v.ins.mnemonic() {
            M::Addss | M::Vaddss => self.scalar2(v, f32, Add),
            M::Addsd | M::Vaddsd => self.scalar2(v, f64, Add),
            M::Subss | M::Vsubss => self.scalar2(v, f32, Sub),
            M::Subsd | M::Vsubsd => self.scalar2(v, f64, Sub),
            M::Mulss | M::Vmulss => self.scalar2(v, f32, Mul),
            M::Mulsd | M::Vmulsd => self.scalar2(v, f64, Mul),
            M::Divss | M::Vdivss => self.scalar2(v, f32, Div),
            M::Divsd | M::Vdivsd => self.scalar2(v, f64, Div),
            M::Minss | M::Vminss => self.scalar2(v, f32, Min),
            M::Minsd | M::Vminsd => self.scalar2(v, f64, Min),
            M::Maxss | M::Vmaxss => self.scalar2(v, f32, Max),
            M::Maxsd | M::Vmaxsd => self.scalar2(v, f64, Max),
            M::Addps | M::Vaddps => self.packed2(v, f32, Add),
            M::Addpd | M::Vaddpd => self.packed2(v, f64, Add),
            M::Subps | M::Vsubps => self.packed2(v, f32, Sub),
            M::Subpd | M::Vsubpd => self.packed2(v, f64, Sub),
            M::Mulps | M::Vmulps => self.packed2(v, f32, Mul),
            M::Mulpd | M::Vmulpd => self.packed2(v, f64, Mul),
            M::Divps | M::Vdivps => self.packed2(v, f32, Div),
            M::Divpd | M::Vdivpd => self.packed2(v, f64, Div),
            M::Minps | M::Vminps => self.packed2(v, f32, Min),
            M::Minpd | M::Vminpd => self.packed2(v, f64, Min),
            M::Maxps | M::Vmaxps => self.packed2(v, f32, Max),
            M::Maxpd | M::Vmaxpd => self.packed2(v, f64, Max),
            M::Sqrtss | M::Vsqrtss => self.sqrt_scalar(v, f32),
            M::Sqrtsd | M::Vsqrtsd => self.sqrt_scalar(v, f64),
            M::Sqrtps | M::Vsqrtps => self.map1(v, types::F32X4, |l, a| l.fb.ins().sqrt(a)),
            M::Sqrtpd | M::Vsqrtpd => self.map1(v, types::F64X2, |l, a| l.fb.ins().sqrt(a)),
            M::Ucomiss | M::Vucomiss => self.compare_scalar(v, f32, false),
            M::Ucomisd | M::Vucomisd => self.compare_scalar(v, f64, false),
            M::Comiss | M::Vcomiss => self.compare_scalar(v, f32, true),
            M::Comisd | M::Vcomisd => self.compare_scalar(v, f64, true),
            M::Cvtsi2ss | M::Vcvtsi2ss => self.int_to_float(v, f32),
            M::Cvtsi2sd | M::Vcvtsi2sd => self.int_to_float(v, f64),
            M::Cvttss2si | M::Vcvttss2si => self.float_to_int(v, f32),
            M::Cvttsd2si | M::Vcvttsd2si => self.float_to_int(v, f64),
            M::Cvtss2sd | M::Vcvtss2sd => self.convert(v, f32, f64),
            M::Cvtsd2ss | M::Vcvtsd2ss => self.convert(v, f64, f32),
            M::Cvtdq2ps | M::Vcvtdq2ps => self.map1(v, types::I32X4, |l, a| {
                l.fb.ins().fcvt_from_sint(types::F32X4, a)
            }),
            M::Vfmadd132sd => self.fma_scalar(v, f64, FORM_132),
            M::Vfmadd213sd => self.fma_scalar(v, f64, FORM_213),
            M::Vfmadd231sd => self.fma_scalar(v, f64, FORM_231),
            M::Vfmadd132ss => self.fma_scalar(v, f32, FORM_132),
            M::Vfmadd213ss => self.fma_scalar(v, f32, FORM_213),
            M::Vfmadd231ss => self.fma_scalar(v, f32, FORM_231),
            M::Vfmadd132pd => self.fma_packed(v, f64, FORM_132),
            M::Vfmadd213pd => self.fma_packed(v, f64, FORM_213),
            M::Vfmadd231pd => self.fma_packed(v, f64, FORM_231),
            M::Vfmadd132ps => self.fma_packed(v, f32, FORM_132),
            M::Vfmadd213ps => self.fma_packed(v, f32, FORM_213),
            M::Vfmadd231ps => self.fma_packed(v, f32, FORM_231),
            _ => false,
        }
    }

    fn arith(&mut self, op: Arith, a: Value, b: Value) -> Value {
        let i = self.fb.ins();
        match op {
            Arith::Add => i.fadd(a, b),
            Arith::Sub => i.fsub(a, b),
            Arith::Mul => i.fmul(a, b),
            Arith::Div => i.fdiv(a, b),
            // The second operand wins when they are equal or unordered.
            Arith::Min => self.pick(a, b, a, b),
            Arith::Max => self.pick(b, a, a, b),
        }
    }

    /// `x < y ? a : b`, in the form that is selected as the real minimum or maximum: denormals that count as zero, and
    /// the invalid flag of quiet NaNs, need that one.
    fn pick(&mut self, x: Value, y: Value, a: Value, b: Value) -> Value {
        let c = self.fb.ins().fcmp(FloatCC::LessThan, x, y);
        let t = self.fb.func.dfg.value_type(a);
        if t.is_vector() {
            let mask = self.cast(t, c);
            self.fb.ins().bitselect(mask, a, b)
        } else {
            self.fb.ins().select(c, a, b)
        }
    }

    /// Writes scalar `s` into lane 0 over the first source's other lanes.
    fn write_scalar(&mut self, v: &V, t: Type, into: u32, s: Value) {
        let base = self.vec_low(v.reg(into));
        let base = self.cast(lanes(t), base);
        let low = self.fb.ins().insertlane(base, s, 0);
        self.write_halves(v, Halves { low, high: None });
    }

    fn scalar2(&mut self, v: &V, t: Type, op: Arith) -> bool {
        let (s1, s2) = v.sources();
        if chooses_between_equals(v, op) {
            return false;
        }
        let b = self.read_scalar(v, s2, t);
        let a = self.read_scalar(v, s1, t);
        let r = self.arith(op, a, b);
        self.write_scalar(v, t, s1, r);
        true
    }

    fn packed2(&mut self, v: &V, t: Type, op: Arith) -> bool {
        if chooses_between_equals(v, op) {
            return false;
        }
        self.map2(v, lanes(t), |l, a, b| l.arith(op, a, b))
    }

    fn sqrt_scalar(&mut self, v: &V, t: Type) -> bool {
        let (s1, s2) = v.sources();
        let b = self.read_scalar(v, s2, t);
        let r = self.fb.ins().sqrt(b);
        self.write_scalar(v, t, s1, r);
        true
    }

    /// UCOMIS and COMIS. A signalling comparison of unordered operands is left to the real instruction, which also
    /// raises the sticky invalid flag for quiet NaNs.
    fn compare_scalar(&mut self, v: &V, t: Type, signalling: bool) -> bool {
        let b = self.read_scalar(v, 1, t);
        let a = self.read_scalar(v, 0, t);
        let pf = self.fb.ins().fcmp(FloatCC::Unordered, a, b);
        if signalling {
            self.leave_if(pf);
            // Ordered from here on.
            let cf = self.fb.ins().fcmp(FloatCC::LessThan, a, b);
            let zf = self.fb.ins().fcmp(FloatCC::Equal, a, b);
            self.set_flag(Flag::Cf, cf);
            self.set_flag(Flag::Zf, zf);
            self.clear_flags(AF | OF | SF | sevlab_cpu::flags::PF);
            return true;
        }
        let cf = self.fb.ins().fcmp(FloatCC::UnorderedOrLessThan, a, b);
        let zf = self.fb.ins().fcmp(FloatCC::UnorderedOrEqual, a, b);
        self.set_flag(Flag::Cf, cf);
        self.set_flag(Flag::Zf, zf);
        self.set_flag(Flag::Pf, pf);
        self.clear_flags(AF | OF | SF);
        true
    }

    fn int_to_float(&mut self, v: &V, t: Type) -> bool {
        let (s1, s2) = v.sources();
        let x = if v.is_reg(s2) {
            let r = v.ins.op_register(s2);
            let w = if r.size() == 8 { Width::B8 } else { Width::B4 };
            self.gpr(r.full_register().number() as u8, w)
        } else {
            let va = self.vector_address(v);
            let int = if v.ins.memory_size().size() == 8 {
                types::I64
            } else {
                types::I32
            };
            self.load_type(int, va)
        };
        let s = self.fb.ins().fcvt_from_sint(t, x);
        self.write_scalar(v, t, s1, s);
        true
    }

    /// Truncating conversion: what does not fit gives the integer indefinite value, 1 << (n - 1).
    fn float_to_int(&mut self, v: &V, t: Type) -> bool {
        let x = self.read_scalar(v, 1, t);
        let (r, is64) = v.gpr(0);
        let (int, w) = if is64 {
            (types::I64, Width::B8)
        } else {
            (types::I32, Width::B4)
        };
        // |x| < 2^(n-1), by the bits: a comparison of numbers would raise flags that the conversion does not.
        let (bits, limit, sign) = if t == types::F64 {
            let limit = 2f64.powi(w.bits() as i32 - 1).to_bits();
            (types::I64, limit, 1 << 63)
        } else {
            let limit = 2f32.powi(w.bits() as i32 - 1).to_bits();
            (types::I32, u64::from(limit), 1 << 31)
        };
        let raw = self.cast(bits, x);
        let keep = self.iconst(bits, !sign);
        let raw = self.fb.ins().band(raw, keep);
        let limit = self.iconst(bits, limit);
        let bad = self
            .fb
            .ins()
            .icmp(IntCC::UnsignedGreaterThanOrEqual, raw, limit);
        self.leave_if(bad);
        let i = self.fb.ins().fcvt_to_sint_sat(int, x);
        self.set_gpr(r, w, i);
        true
    }

    fn convert(&mut self, v: &V, from: Type, to: Type) -> bool {
        let (s1, s2) = v.sources();
        let x = self.read_scalar(v, s2, from);
        let r = if to == types::F64 {
            self.fb.ins().fpromote(to, x)
        } else {
            self.fb.ins().fdemote(to, x)
        };
        self.write_scalar(v, to, s1, r);
        true
    }

    fn fma_scalar(&mut self, v: &V, t: Type, form: Fma) -> bool {
        let x: [Value; 3] = {
            let last = self.read_scalar(v, 2, t);
            [self.read_scalar(v, 0, t), self.read_scalar(v, 1, t), last]
        };
        let r = self.fma(form.map(|n| x[n as usize]));
        self.write_scalar(v, t, 0, r);
        true
    }

    fn fma_packed(&mut self, v: &V, t: Type, form: Fma) -> bool {
        let t = lanes(t);
        let last = self.read_halves(v, 2);
        let x = [self.read_halves(v, 0), self.read_halves(v, 1), last];
        let low = form.map(|n| x[n as usize].low).map(|h| self.cast(t, h));
        let low = self.fma(low);
        let high = match form.map(|n| x[n as usize].high) {
            [Some(a), Some(b), Some(c)] => {
                let ops = [a, b, c].map(|h| self.cast(t, h));
                Some(self.fma(ops))
            }
            _ => None,
        };
        self.write_halves(v, Halves { low, high });
        true
    }

    fn fma(&mut self, [a, b, c]: [Value; 3]) -> Value {
        // In this order the selected VFMADD213 (or 132, where the factor `b` is a load) prefers the NaNs that the
        // guest's form does: those of `a`, then `b`, then `c`.
        self.fb.ins().fma(b, a, c)
    }
}

/// a = op0 * op2 + op1.
const FORM_132: Fma = [0, 2, 1];
/// a = op1 * op0 + op2.
const FORM_213: Fma = [1, 0, 2];
/// a = op1 * op2 + op0.
const FORM_231: Fma = [1, 2, 0];
