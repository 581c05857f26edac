//! Arithmetic flags in translated code.
//!
//! Each flag has a source: a record (operation, operands, result), a known bit, or a conditional update over an
//! older source. Reading a flag or a condition emits just what it needs; nothing is emitted for flags that
//! nobody reads. Between blocks, and at exits, the six sources collapse into one record in the form of
//! [`sevlab_cpu::flags::LazyFlags`].

use super::{Lower, ty};
use crate::layout;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, InstructionData, Opcode, Value, types};
use sevlab_cpu::flags::{ARITH, LazyFlags};
use sevlab_cpu::{Cond, Flag, FlagOp, Width};

/// A record of SSA values, each of type `ty(w)`.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Rec {
    op: FlagOp,
    w: Width,
    a: Value,
    b: Value,
    r: Value,
}

/// Where one flag comes from.
#[derive(Clone, Copy, PartialEq)]
enum Src {
    /// The block's incoming record, whose kind is not known here.
    Incoming,
    /// Record number.
    Rec(usize),
    /// An I8 that is 0 or 1.
    Bit(Value),
    /// Conditional update number.
    Cond(usize),
}

/// The flags of the block being translated.
#[derive(Clone, Default)]
pub(super) struct FlagState {
    src: [Option<Src>; 6],
    recs: Vec<Rec>,
    conds: Vec<(Value, usize, [Src; 6])>,
    /// op, a, b, r as I64.
    incoming: Option<[Value; 4]>,
    incoming_bits: Option<Value>,
    dirty: bool,
    /// The sources are those the block began with.
    untouched: bool,
    /// The state's own record is current.
    in_memory: bool,
}

impl FlagState {
    /// The state at the start of a block that several ways lead to: one record, of a kind that is not known here, in
    /// the block's incoming variables.
    pub(super) fn at_block_start(dirty: bool) -> Self {
        Self {
            src: [Some(Src::Incoming); 6],
            dirty,
            untouched: true,
            in_memory: !dirty,
            ..Self::default()
        }
    }

    /// The state after a helper has written the record in state memory.
    fn from_record(record: [Value; 4]) -> Self {
        Self {
            src: [Some(Src::Incoming); 6],
            incoming: Some(record),
            dirty: true,
            untouched: false,
            in_memory: true,
            ..Self::default()
        }
    }

    /// The value of one flag at the block's start is known apart from the record.
    pub(super) fn know(&mut self, f: Flag, v: Value) {
        self.src[f as usize] = Some(Src::Bit(v));
    }

    /// Whether the sources are those the block began with.
    pub(super) fn untouched(&self) -> bool {
        self.untouched
    }

    /// Whether the record in state memory may be stale.
    pub(super) fn dirty(&self) -> bool {
        self.dirty && !self.in_memory
    }

    pub(super) fn written_back(&mut self) {
        self.in_memory = true;
    }
}

impl Lower<'_, '_> {
    /// A helper has written the state's record: start again from there.
    pub(super) fn flags_from_memory(&mut self) {
        self.forget_stored_flags();
        let record = self.load_record();
        self.flags = FlagState::from_record(record);
    }

    /// The record in state memory.
    fn load_record(&mut self) -> [Value; 4] {
        let p = self.pinned();
        std::array::from_fn(|k| {
            let at = layout::CC + 8 * k as i32;
            self.fb.ins().load(types::I64, super::state_flags(), p, at)
        })
    }

    /// The kind and the operands {a, b, r} of the record that all flags are of, each operand of its own width. None if they are of
    /// several sources, but for INC and DEC, whose CF is an operand.
    pub(super) fn single_record(&mut self) -> Option<(u64, [Value; 3])> {
        let src = |f: Flag| self.flags.src[f as usize];
        let Some(Src::Rec(n)) = src(Flag::Zf) else {
            return None;
        };
        let rec = self.flags.recs[n];
        let op = LazyFlags::encode(rec.op, rec.w);
        let others = Flag::ALL.into_iter().filter(|f| *f != Flag::Cf);
        if !others.into_iter().all(|f| src(f) == Some(Src::Rec(n))) {
            return None;
        }
        let b = match src(Flag::Cf)? {
            Src::Rec(m) if m == n => rec.b,
            _ if !matches!(rec.op, FlagOp::Inc | FlagOp::Dec) => return None,
            Src::Bit(v) => v,
            Src::Rec(m) => {
                let carry = self.flags.recs[m];
                let v = self.rec_bit(Flag::Cf, carry);
                // Another access finds it worked out.
                self.flags.src[Flag::Cf as usize] = Some(Src::Bit(v));
                v
            }
            Src::Incoming | Src::Cond(_) => return None,
        };
        Some((op, [rec.a, b, rec.r]))
    }

    pub(super) fn record_flags(
        &mut self,
        mask: u64,
        op: FlagOp,
        w: Width,
        a: Value,
        b: Value,
        r: Value,
    ) {
        let n = self.flags.recs.len();
        self.flags.recs.push(Rec { op, w, a, b, r });
        self.assign(mask, Src::Rec(n));
    }

    pub(super) fn record_flags_if(
        &mut self,
        c: Value,
        mask: u64,
        rec: (FlagOp, Width, Value, Value, Value),
    ) {
        let old = self.flags.src.map(|s| s.expect("set at the block's start"));
        let n = self.flags.recs.len();
        let (op, w, a, b, r) = rec;
        self.flags.recs.push(Rec { op, w, a, b, r });
        let k = self.flags.conds.len();
        self.flags.conds.push((c, n, old));
        self.assign(mask, Src::Cond(k));
    }

    pub(super) fn set_flag_bit(&mut self, f: Flag, c: Value) {
        self.assign(f.bit(), Src::Bit(c));
    }

    fn assign(&mut self, mask: u64, src: Src) {
        for f in Flag::ALL {
            if mask & f.bit() != 0 {
                self.flags.src[f as usize] = Some(src);
            }
        }
        self.flags.dirty = true;
        self.flags.untouched = false;
        self.flags.in_memory = false;
    }

    /// One flag as an I8 of 0 or 1.
    pub(super) fn flag_bit(&mut self, f: Flag) -> Value {
        let src = self.flags.src[f as usize].expect("set at the block's start");
        self.src_bit(f, src)
    }

    fn src_bit(&mut self, f: Flag, src: Src) -> Value {
        match src {
            Src::Bit(v) => v,
            Src::Rec(n) => {
                let rec = self.flags.recs[n];
                self.rec_bit(f, rec)
            }
            Src::Cond(k) => {
                let (c, n, old) = self.flags.conds[k];
                let rec = self.flags.recs[n];
                let new = self.rec_bit(f, rec);
                let old = self.src_bit(f, old[f as usize]);
                self.fb.ins().select(c, new, old)
            }
            Src::Incoming => {
                let bits = self.incoming_bits();
                let shift = self.iconst(types::I64, u64::from(f.bit().trailing_zeros()));
                let v = self.fb.ins().ushr(bits, shift);
                let v = self.fb.ins().ireduce(types::I8, v);
                let one = self.iconst(types::I8, 1);
                self.fb.ins().band(v, one)
            }
        }
    }

    /// The record that the block began with.
    fn incoming_record(&mut self) -> [Value; 4] {
        if let Some(record) = self.flags.incoming {
            return record;
        }
        let record = if self.view.is_some() {
            self.load_record()
        } else {
            self.reads_record = true;
            self.cc_var.map(|v| self.fb.use_var(v))
        };
        self.flags.incoming = Some(record);
        record
    }

    /// The six flags of the incoming record, by helper.
    fn incoming_bits(&mut self) -> Value {
        if let Some(v) = self.flags.incoming_bits {
            return v;
        }
        let [op, a, b, r] = self.incoming_record();
        // Three arguments go in registers of the helper; the fourth through its word.
        let p = self.pinned();
        self.fb
            .ins()
            .store(super::state_flags(), op, p, layout::RET2);
        self.call_helper(layout::H_FLAGS, [a, b, r]);
        let p = self.pinned();
        let v = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        self.flags.incoming_bits = Some(v);
        v
    }

    /// Whether `r` was computed as plain `a + b`.
    fn is_plain_sum(&self, rec: Rec) -> bool {
        let Some(inst) = self.fb.func.dfg.value_def(rec.r).inst() else {
            return false;
        };
        match self.fb.func.dfg.insts[inst] {
            InstructionData::Binary {
                opcode: Opcode::Iadd,
                args,
            } => args == [rec.a, rec.b],
            _ => false,
        }
    }

    fn sign(&mut self, w: Width, v: Value) -> Value {
        let zero = self.iconst(ty(w), 0);
        self.fb.ins().icmp(IntCC::SignedLessThan, v, zero)
    }

    fn constant_bit(&mut self, v: bool) -> Value {
        self.iconst(types::I8, u64::from(v))
    }

    fn low_bit(&mut self, w: Width, v: Value) -> Value {
        let v = if w == Width::B1 {
            v
        } else {
            self.fb.ins().ireduce(types::I8, v)
        };
        let one = self.iconst(types::I8, 1);
        self.fb.ins().band(v, one)
    }

    /// Bit `b - 1` of `a` (b at least 1), arithmetic shift if `signed`.
    fn last_bit_out(&mut self, rec: Rec, signed: bool) -> Value {
        let one = self.iconst(types::I64, 1);
        let n = self.widen(rec.w, rec.b);
        let n = self.fb.ins().isub(n, one);
        let a = if signed {
            self.widen_signed(rec.w, rec.a)
        } else {
            self.widen(rec.w, rec.a)
        };
        let v = if signed {
            self.fb.ins().sshr(a, n)
        } else {
            self.fb.ins().ushr(a, n)
        };
        self.low_bit(Width::B8, v)
    }

    fn widen(&mut self, w: Width, v: Value) -> Value {
        if w == Width::B8 {
            v
        } else {
            self.fb.ins().uextend(types::I64, v)
        }
    }

    fn widen_signed(&mut self, w: Width, v: Value) -> Value {
        if w == Width::B8 {
            v
        } else {
            self.fb.ins().sextend(types::I64, v)
        }
    }

    /// One flag of a record, as an I8 of 0 or 1. The formulas are those of `LazyFlags::bits`.
    fn rec_bit(&mut self, f: Flag, rec: Rec) -> Value {
        let Rec { op, w, a, b, r } = rec;
        if op == FlagOp::Explicit {
            return self.explicit_bit(f, w, r);
        }
        let t = ty(w);
        match f {
            Flag::Zf => {
                if op == FlagOp::Sub {
                    return self.fb.ins().icmp(IntCC::Equal, a, b);
                }
                let zero = self.iconst(t, 0);
                self.fb.ins().icmp(IntCC::Equal, r, zero)
            }
            Flag::Sf => self.sign(w, r),
            Flag::Pf => {
                let low = if w == Width::B1 {
                    r
                } else {
                    self.fb.ins().ireduce(types::I8, r)
                };
                let ones = self.fb.ins().popcnt(low);
                let one = self.iconst(types::I8, 1);
                let odd = self.fb.ins().band(ones, one);
                self.fb.ins().bxor(odd, one)
            }
            Flag::Af => match op {
                FlagOp::Add | FlagOp::Sub | FlagOp::Sbb => {
                    let x = self.fb.ins().bxor(a, b);
                    let x = self.fb.ins().bxor(x, r);
                    let x = if w == Width::B1 {
                        x
                    } else {
                        self.fb.ins().ireduce(types::I8, x)
                    };
                    let four = self.iconst(types::I8, 4);
                    let x = self.fb.ins().ushr(x, four);
                    let one = self.iconst(types::I8, 1);
                    self.fb.ins().band(x, one)
                }
                FlagOp::Inc | FlagOp::Dec => {
                    let low = if w == Width::B1 {
                        r
                    } else {
                        self.fb.ins().ireduce(types::I8, r)
                    };
                    let m = self.iconst(types::I8, 15);
                    let x = self.fb.ins().band(low, m);
                    let want = self.iconst(types::I8, if op == FlagOp::Inc { 0 } else { 15 });
                    self.fb.ins().icmp(IntCC::Equal, x, want)
                }
                _ => self.constant_bit(false),
            },
            Flag::Cf => match op {
                FlagOp::Add if self.is_plain_sum(rec) => {
                    self.fb.ins().icmp(IntCC::UnsignedLessThan, r, a)
                }
                FlagOp::Add => {
                    let or = self.fb.ins().bor(a, b);
                    let x = self.fb.ins().band_not(or, r);
                    let and = self.fb.ins().band(a, b);
                    let x = self.fb.ins().bor(x, and);
                    self.sign(w, x)
                }
                FlagOp::Sub => self.fb.ins().icmp(IntCC::UnsignedLessThan, a, b),
                FlagOp::Sbb => {
                    let not_a = self.fb.ins().bnot(a);
                    let x = self.fb.ins().bor(not_a, b);
                    let x = self.fb.ins().band(x, r);
                    let y = self.fb.ins().band(not_a, b);
                    let x = self.fb.ins().bor(x, y);
                    self.sign(w, x)
                }
                FlagOp::Logic => self.constant_bit(false),
                FlagOp::Inc | FlagOp::Dec | FlagOp::Mul => self.low_bit(w, b),
                FlagOp::Shl => {
                    // Bit n - b of a; a count above n shifts everything out.
                    let n = self.iconst(types::I64, u64::from(w.bits()));
                    let count = self.widen(w, b);
                    let at = self.fb.ins().isub(n, count);
                    let a64 = self.widen(w, a);
                    let v = self.fb.ins().ushr(a64, at);
                    let bit = self.low_bit(Width::B8, v);
                    if w.bits() >= 32 {
                        return bit;
                    }
                    let over = self.fb.ins().icmp(IntCC::UnsignedGreaterThan, count, n);
                    let zero = self.constant_bit(false);
                    self.fb.ins().select(over, zero, bit)
                }
                FlagOp::Shr => self.last_bit_out(rec, false),
                FlagOp::Sar => self.last_bit_out(rec, true),
                FlagOp::Explicit => unreachable!("handled above"),
            },
            Flag::Of => match op {
                FlagOp::Add => {
                    let x = self.fb.ins().bxor(a, r);
                    let y = self.fb.ins().bxor(b, r);
                    let x = self.fb.ins().band(x, y);
                    self.sign(w, x)
                }
                FlagOp::Sub | FlagOp::Sbb => {
                    let x = self.fb.ins().bxor(a, b);
                    let y = self.fb.ins().bxor(a, r);
                    let x = self.fb.ins().band(x, y);
                    self.sign(w, x)
                }
                FlagOp::Inc => {
                    let min = self.iconst(t, 1 << (w.bits() - 1));
                    self.fb.ins().icmp(IntCC::Equal, r, min)
                }
                FlagOp::Dec => {
                    let max = self.iconst(t, (1 << (w.bits() - 1)) - 1);
                    self.fb.ins().icmp(IntCC::Equal, r, max)
                }
                FlagOp::Mul => self.low_bit(w, b),
                FlagOp::Shl => {
                    let cf = self.rec_bit(Flag::Cf, rec);
                    let sf = self.sign(w, r);
                    self.fb.ins().bxor(cf, sf)
                }
                FlagOp::Shr => self.sign(w, a),
                FlagOp::Logic | FlagOp::Sar => self.constant_bit(false),
                FlagOp::Explicit => unreachable!("handled above"),
            },
        }
    }

    fn explicit_bit(&mut self, f: Flag, w: Width, r: Value) -> Value {
        let r = self.widen(w, r);
        let shift = self.iconst(types::I64, u64::from(f.bit().trailing_zeros()));
        let v = self.fb.ins().ushr(r, shift);
        self.low_bit(Width::B8, v)
    }

    /// A condition as an I8 that is zero or not.
    pub(super) fn condition(&mut self, cc: Cond) -> Value {
        if let Some(v) = self.fused_condition(cc) {
            return v;
        }
        let positive = Cond::from_bits(cc as u8 & !1);
        let v = match positive {
            Cond::O => self.flag_bit(Flag::Of),
            Cond::B => self.flag_bit(Flag::Cf),
            Cond::E => self.flag_bit(Flag::Zf),
            Cond::S => self.flag_bit(Flag::Sf),
            Cond::P => self.flag_bit(Flag::Pf),
            Cond::Be => {
                let (a, b) = (self.flag_bit(Flag::Cf), self.flag_bit(Flag::Zf));
                self.fb.ins().bor(a, b)
            }
            Cond::L => {
                let (a, b) = (self.flag_bit(Flag::Sf), self.flag_bit(Flag::Of));
                self.fb.ins().bxor(a, b)
            }
            _ => {
                let (a, b) = (self.flag_bit(Flag::Sf), self.flag_bit(Flag::Of));
                let less = self.fb.ins().bxor(a, b);
                let z = self.flag_bit(Flag::Zf);
                self.fb.ins().bor(less, z)
            }
        };
        if cc as u8 & 1 == 0 {
            return v;
        }
        let one = self.constant_bit(true);
        self.fb.ins().bxor(v, one)
    }

    /// A condition whose flags all come from one record, as one comparison.
    fn fused_condition(&mut self, cc: Cond) -> Option<Value> {
        let mut rec = None;
        for f in Flag::ALL {
            if cc.reads() & f.bit() != 0 {
                match self.flags.src[f as usize] {
                    Some(Src::Rec(n)) if rec.is_none() || rec == Some(n) => rec = Some(n),
                    _ => return None,
                }
            }
        }
        let Rec { op, w, a, b, r } = self.flags.recs[rec?];
        use IntCC::*;
        let zero = |l: &mut Self| l.iconst(ty(w), 0);
        let (code, x, y) = match (op, cc) {
            (FlagOp::Sub, Cond::B) => (UnsignedLessThan, a, b),
            (FlagOp::Sub, Cond::Ae) => (UnsignedGreaterThanOrEqual, a, b),
            (FlagOp::Sub, Cond::Be) => (UnsignedLessThanOrEqual, a, b),
            (FlagOp::Sub, Cond::A) => (UnsignedGreaterThan, a, b),
            (FlagOp::Sub, Cond::L) => (SignedLessThan, a, b),
            (FlagOp::Sub, Cond::Ge) => (SignedGreaterThanOrEqual, a, b),
            (FlagOp::Sub, Cond::Le) => (SignedLessThanOrEqual, a, b),
            (FlagOp::Sub, Cond::G) => (SignedGreaterThan, a, b),
            (FlagOp::Sub, Cond::E) => (Equal, a, b),
            (FlagOp::Sub, Cond::Ne) => (NotEqual, a, b),
            (FlagOp::Logic, Cond::L) => (SignedLessThan, r, zero(self)),
            (FlagOp::Logic, Cond::Ge) => (SignedGreaterThanOrEqual, r, zero(self)),
            (FlagOp::Logic, Cond::Le) => (SignedLessThanOrEqual, r, zero(self)),
            (FlagOp::Logic, Cond::G) => (SignedGreaterThan, r, zero(self)),
            (FlagOp::Logic, Cond::Be) => (Equal, r, zero(self)),
            (FlagOp::Logic, Cond::A) => (NotEqual, r, zero(self)),
            // r = a - 1 without wrap-around: r < 0 as a true integer is a < 1.
            (FlagOp::Dec, Cond::L) => (SignedLessThan, a, self.iconst(ty(w), 1)),
            (FlagOp::Dec, Cond::Ge) => (SignedGreaterThanOrEqual, a, self.iconst(ty(w), 1)),
            (FlagOp::Dec, Cond::Le) => (SignedLessThanOrEqual, a, self.iconst(ty(w), 1)),
            (FlagOp::Dec, Cond::G) => (SignedGreaterThan, a, self.iconst(ty(w), 1)),
            (FlagOp::Inc, Cond::L) => (SignedLessThan, a, self.iconst(ty(w), u64::MAX)),
            (FlagOp::Inc, Cond::Ge) => (SignedGreaterThanOrEqual, a, self.iconst(ty(w), u64::MAX)),
            (FlagOp::Inc, Cond::Le) => (SignedLessThanOrEqual, a, self.iconst(ty(w), u64::MAX)),
            (FlagOp::Inc, Cond::G) => (SignedGreaterThan, a, self.iconst(ty(w), u64::MAX)),
            (FlagOp::Explicit, _) => return None,
            (_, Cond::E) => (Equal, r, zero(self)),
            (_, Cond::Ne) => (NotEqual, r, zero(self)),
            (_, Cond::S) => (SignedLessThan, r, zero(self)),
            (_, Cond::Ns) => (SignedGreaterThanOrEqual, r, zero(self)),
            _ => return None,
        };
        Some(self.fb.ins().icmp(code, x, y))
    }

    /// The six flags packed at their RFLAGS positions, I64.
    pub(super) fn flags_packed(&mut self) -> Value {
        if self.flags.untouched {
            return self.incoming_bits();
        }
        let mut sum = None;
        for f in Flag::ALL {
            let bit = self.flag_bit(f);
            let wide = self.fb.ins().uextend(types::I64, bit);
            let shift = self.iconst(types::I64, u64::from(f.bit().trailing_zeros()));
            let v = self.fb.ins().ishl(wide, shift);
            sum = Some(match sum {
                None => v,
                Some(s) => self.fb.ins().bor(s, v),
            });
        }
        sum.expect("six flags")
    }

    /// The record {op, a, b, r} (I64 each) that holds the flags in `live`; the others may come out as anything.
    pub(super) fn flags_record(&mut self, live: u64) -> [Value; 4] {
        if self.flags.untouched {
            return self.incoming_record();
        }
        let needed = |m: u64| Flag::ALL.into_iter().filter(move |f| m & f.bit() != 0);
        let same = |s: &Self, m: u64| {
            let mut sources = needed(m).map(|f| s.flags.src[f as usize]);
            let first = sources.next().flatten();
            if sources.all(|x| x == first) {
                first
            } else {
                None
            }
        };
        match same(self, live) {
            Some(Src::Rec(n)) => {
                let rec = self.flags.recs[n];
                let carry_elsewhere = matches!(rec.op, FlagOp::Inc | FlagOp::Dec)
                    && self.flags.src[Flag::Cf as usize] != Some(Src::Rec(n));
                let b = if carry_elsewhere && live & sevlab_cpu::flags::CF == 0 {
                    rec.r
                } else {
                    rec.b
                };
                return self.pack_record(rec, b);
            }
            Some(Src::Incoming) => return self.incoming_record(),
            _ => {}
        }
        if let Some(Src::Rec(n)) = same(self, live & !sevlab_cpu::flags::CF) {
            let rec = self.flags.recs[n];
            if matches!(rec.op, FlagOp::Inc | FlagOp::Dec) {
                let cf = self.flag_bit(Flag::Cf);
                let b = if rec.w == Width::B1 {
                    cf
                } else {
                    self.fb.ins().uextend(ty(rec.w), cf)
                };
                return self.pack_record(rec, b);
            }
        }
        let bits = self.flags_packed();
        let zero = self.iconst(types::I64, 0);
        [zero, zero, zero, bits]
    }

    fn pack_record(&mut self, rec: Rec, b: Value) -> [Value; 4] {
        let op = self.iconst(types::I64, LazyFlags::encode(rec.op, rec.w));
        let a = self.widen(rec.w, rec.a);
        let b = self.widen(rec.w, b);
        let r = self.widen(rec.w, rec.r);
        [op, a, b, r]
    }

    /// RFLAGS as PUSHF sees it: the arithmetic flags with the rest of the state's word.
    pub(super) fn rflags_value(&mut self) -> Value {
        let bits = self.flags_packed();
        let mask = self.iconst(types::I64, ARITH);
        let bits = self.fb.ins().band(bits, mask);
        let p = self.pinned();
        let rest = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RFLAGS);
        self.fb.ins().bor(rest, bits)
    }
}
