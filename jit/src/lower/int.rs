//! The builder of instruction semantics, emitting CLIF.

use super::{Lower, Stopped, Term, ty};
use crate::layout;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AtomicRmwOp, BlockArg, InstBuilder, Value, types};
use sevlab_cpu::builder::{Bin, Builder, Cmp, Rmw, Un};
use sevlab_cpu::flags::{Cond, Flag, FlagMask, FlagOp};
use sevlab_cpu::insn::{Insn, MemRef, Op, Width};
use sevlab_cpu::stop::Exception;

impl Builder for Lower<'_, '_> {
    type V = Value;
    type C = Value;
    type Stop = Stopped;

    fn imm(&mut self, w: Width, v: u64) -> Value {
        self.iconst(ty(w), v)
    }

    fn gpr(&mut self, r: u8, w: Width) -> Value {
        if w == Width::B4
            && let Some(v) = self.gprs[r as usize].low
        {
            return v;
        }
        let full = self.gpr_full(r);
        if w == Width::B8 {
            return full;
        }
        let v = self.fb.ins().ireduce(ty(w), full);
        if w == Width::B4 {
            self.gprs[r as usize].low = Some(v);
        }
        v
    }

    fn gpr_high(&mut self, r: u8) -> Value {
        let full = self.gpr_full(r);
        let eight = self.iconst(types::I64, 8);
        let v = self.fb.ins().ushr(full, eight);
        self.fb.ins().ireduce(types::I8, v)
    }

    fn set_gpr(&mut self, r: u8, w: Width, v: Value) {
        match w {
            Width::B8 => self.set_gpr_full(r, v, None),
            Width::B4 => {
                let full = self.fb.ins().uextend(types::I64, v);
                self.set_gpr_full(r, full, Some(v));
            }
            Width::B2 | Width::B1 => {
                let old = self.gpr_full(r);
                let keep = self.iconst(types::I64, !w.mask());
                let kept = self.fb.ins().band(old, keep);
                let wide = self.fb.ins().uextend(types::I64, v);
                let new = self.fb.ins().bor(kept, wide);
                self.set_gpr_full(r, new, None);
            }
        }
    }

    fn set_gpr_high(&mut self, r: u8, v: Value) {
        let old = self.gpr_full(r);
        let keep = self.iconst(types::I64, !0xff00);
        let kept = self.fb.ins().band(old, keep);
        let wide = self.fb.ins().uextend(types::I64, v);
        let eight = self.iconst(types::I64, 8);
        let wide = self.fb.ins().ishl(wide, eight);
        let new = self.fb.ins().bor(kept, wide);
        self.set_gpr_full(r, new, None);
    }

    fn seg_base(&mut self, s: u8) -> Value {
        let p = self.pinned();
        self.fb.ins().load(
            types::I64,
            super::state_flags(),
            p,
            layout::seg_base(s as usize),
        )
    }

    fn bin(&mut self, op: Bin, w: Width, a: Value, b: Value) -> Value {
        if w == Width::B8
            && matches!(op, Bin::Add | Bin::Sub)
            && let Some(k) = self.constant(b)
        {
            return self.add_constant(a, if op == Bin::Add { k } else { k.wrapping_neg() });
        }
        let i = self.fb.ins();
        match op {
            Bin::Add => i.iadd(a, b),
            Bin::Sub => i.isub(a, b),
            Bin::And => i.band(a, b),
            Bin::Or => i.bor(a, b),
            Bin::Xor => i.bxor(a, b),
            Bin::Mul => i.imul(a, b),
            Bin::Shl => i.ishl(a, b),
            Bin::Shr => i.ushr(a, b),
            Bin::Sar => i.sshr(a, b),
            Bin::Rotl => i.rotl(a, b),
            Bin::Rotr => i.rotr(a, b),
            Bin::UMulHi | Bin::SMulHi if w == Width::B8 => {
                if op == Bin::UMulHi {
                    i.umulhi(a, b)
                } else {
                    i.smulhi(a, b)
                }
            }
            Bin::UMulHi | Bin::SMulHi => {
                let signed = op == Bin::SMulHi;
                let (a, b) = (self.to64(signed, a), self.to64(signed, b));
                let product = self.fb.ins().imul(a, b);
                let n = self.iconst(types::I64, u64::from(w.bits()));
                let high = self.fb.ins().ushr(product, n);
                self.fb.ins().ireduce(ty(w), high)
            }
        }
    }

    fn un(&mut self, op: Un, _w: Width, a: Value) -> Value {
        let i = self.fb.ins();
        match op {
            Un::Not => i.bnot(a),
            Un::Neg => i.ineg(a),
            Un::Clz => i.clz(a),
            Un::Ctz => i.ctz(a),
            Un::Popcnt => i.popcnt(a),
            Un::Bswap => i.bswap(a),
        }
    }

    fn zext(&mut self, from: Width, to: Width, v: Value) -> Value {
        match from.cmp(&to) {
            std::cmp::Ordering::Equal => v,
            std::cmp::Ordering::Less => self.fb.ins().uextend(ty(to), v),
            std::cmp::Ordering::Greater => self.fb.ins().ireduce(ty(to), v),
        }
    }

    fn sext(&mut self, from: Width, to: Width, v: Value) -> Value {
        if from == to {
            v
        } else {
            self.fb.ins().sextend(ty(to), v)
        }
    }

    fn cmp(&mut self, op: Cmp, _w: Width, a: Value, b: Value) -> Value {
        let code = match op {
            Cmp::Eq => IntCC::Equal,
            Cmp::Ne => IntCC::NotEqual,
            Cmp::Ult => IntCC::UnsignedLessThan,
            Cmp::Ule => IntCC::UnsignedLessThanOrEqual,
            Cmp::Slt => IntCC::SignedLessThan,
            Cmp::Sle => IntCC::SignedLessThanOrEqual,
        };
        self.fb.ins().icmp(code, a, b)
    }

    fn select(&mut self, c: Value, _w: Width, a: Value, b: Value) -> Value {
        self.fb.ins().select(c, a, b)
    }

    fn cond_value(&mut self, c: Value, w: Width) -> Value {
        if w == Width::B1 {
            c
        } else {
            self.fb.ins().uextend(ty(w), c)
        }
    }

    fn cond_const(&mut self, v: bool) -> Value {
        self.iconst(types::I8, u64::from(v))
    }

    fn cond_and(&mut self, a: Value, b: Value) -> Value {
        self.fb.ins().band(a, b)
    }

    fn cond_not(&mut self, a: Value) -> Value {
        let one = self.iconst(types::I8, 1);
        self.fb.ins().bxor(a, one)
    }

    fn div(
        &mut self,
        signed: bool,
        w: Width,
        hi: Value,
        lo: Value,
        d: Value,
    ) -> Result<(Value, Value), Stopped> {
        if w == Width::B8 {
            return Ok(self.div64(signed, hi, lo, d));
        }
        // The dividend fits 64 bits: hi:lo.
        let n = self.iconst(types::I64, u64::from(w.bits()));
        let hi = self.to64(signed, hi);
        let hi = self.fb.ins().ishl(hi, n);
        let lo = self.to64(false, lo);
        let dividend = self.fb.ins().bor(hi, lo);
        let d = self.to64(signed, d);
        // A divisor of zero (and -1, which could overflow) is left to the interpreter, which raises #DE.
        let zero = self.iconst(types::I64, 0);
        let mut bad = self.fb.ins().icmp(IntCC::Equal, d, zero);
        if signed {
            let minus = self.iconst(types::I64, u64::MAX);
            let m = self.fb.ins().icmp(IntCC::Equal, d, minus);
            bad = self.fb.ins().bor(bad, m);
        }
        self.leave_if(bad);
        let (q, r) = self.quotient(signed, dividend, d);
        let q_low = self.fb.ins().ireduce(ty(w), q);
        let back = self.to64(signed, q_low);
        let overflow = self.fb.ins().icmp(IntCC::NotEqual, back, q);
        self.leave_if(overflow);
        let r = self.fb.ins().ireduce(ty(w), r);
        Ok((q_low, r))
    }

    fn pdep_pext(&mut self, deposit: bool, w: Width, v: Value, mask: Value) -> Value {
        let v = self.to64(false, v);
        let mask = self.to64(false, mask);
        let which = self.iconst(types::I64, u64::from(deposit));
        self.call_helper(layout::H_PDEP, [v, mask, which]);
        let p = self.pinned();
        let r = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        self.zext(Width::B8, w, r)
    }

    fn address(&mut self, m: &MemRef) -> Value {
        let mut sum = None;
        let add = |l: &mut Self, sum: Option<Value>, v: Value| {
            Some(match sum {
                None => v,
                Some(s) => l.fb.ins().iadd(s, v),
            })
        };
        if m.base != MemRef::NONE {
            let v = self.gpr_full(m.base);
            sum = add(self, sum, v);
        }
        if m.index != MemRef::NONE {
            let mut v = self.gpr_full(m.index);
            if m.scale != 0 {
                let n = self.iconst(types::I64, u64::from(m.scale));
                v = self.fb.ins().ishl(v, n);
            }
            sum = add(self, sum, v);
        }
        let mut va = match sum {
            Some(v) => self.add_constant(v, m.disp as u64),
            None => self.iconst(types::I64, m.disp as u64),
        };
        if m.addr32 {
            let low = self.fb.ins().ireduce(types::I32, va);
            va = self.fb.ins().uextend(types::I64, low);
        }
        if m.seg != MemRef::NONE {
            let base = self.seg_base(m.seg);
            va = self.fb.ins().iadd(va, base);
        }
        va
    }

    fn load(&mut self, w: Width, va: Value) -> Result<Value, Stopped> {
        Ok(self.load_int(w, va))
    }

    fn store(&mut self, w: Width, va: Value, v: Value) -> Result<(), Stopped> {
        self.store_int(w, va, v);
        Ok(())
    }

    fn load_rmw(&mut self, w: Width, va: Value) -> Result<Value, Stopped> {
        Ok(self.load_rmw_int(w, va))
    }

    fn atomic(&mut self, op: Rmw, w: Width, va: Value, v: Value) -> Result<Value, Stopped> {
        let host = self.locked_address(va, w);
        let flags = self.guest_flags();
        self.end_site();
        let op = match op {
            Rmw::Add => AtomicRmwOp::Add,
            Rmw::Sub => AtomicRmwOp::Sub,
            Rmw::And => AtomicRmwOp::And,
            Rmw::Or => AtomicRmwOp::Or,
            Rmw::Xor => AtomicRmwOp::Xor,
            Rmw::Xchg => AtomicRmwOp::Xchg,
        };
        Ok(self.fb.ins().atomic_rmw(ty(w), flags, op, host, v))
    }

    fn atomic_cas(
        &mut self,
        w: Width,
        va: Value,
        expected: Value,
        new: Value,
    ) -> Result<Value, Stopped> {
        let host = self.locked_address(va, w);
        let flags = self.guest_flags();
        self.end_site();
        Ok(self.fb.ins().atomic_cas(flags, host, expected, new))
    }

    fn fence(&mut self) {
        self.fb.ins().fence();
    }

    fn set_flags(&mut self, mask: FlagMask, op: FlagOp, w: Width, a: Value, b: Value, r: Value) {
        self.record_flags(mask, op, w, a, b, r);
    }

    fn set_flags_if(
        &mut self,
        c: Value,
        mask: FlagMask,
        op: FlagOp,
        w: Width,
        a: Value,
        b: Value,
        r: Value,
    ) {
        self.record_flags_if(c, mask, (op, w, a, b, r));
    }

    fn set_flag(&mut self, f: Flag, c: Value) {
        self.set_flag_bit(f, c);
    }

    fn flag(&mut self, f: Flag) -> Value {
        self.flag_bit(f)
    }

    fn cond(&mut self, cc: Cond) -> Value {
        self.condition(cc)
    }

    fn rflags(&mut self) -> Value {
        self.rflags_value()
    }

    fn set_df(&mut self, v: bool) {
        self.end_site();
        let p = self.pinned();
        let old = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RFLAGS);
        let df = sevlab_cpu::flags::DF;
        let new = if v {
            let bit = self.iconst(types::I64, df);
            self.fb.ins().bor(old, bit)
        } else {
            let keep = self.iconst(types::I64, !df);
            self.fb.ins().band(old, keep)
        };
        self.fb
            .ins()
            .store(super::state_flags(), new, p, layout::RFLAGS);
    }

    fn trap_if(&mut self, c: Value, _e: Exception) -> Result<(), Stopped> {
        // The interpreter runs the instruction again and raises the exception.
        self.leave_if(c);
        Ok(())
    }

    fn jump(&mut self, target: u64) -> Result<(), Stopped> {
        self.term = Term::Jump(target);
        Ok(())
    }

    fn branch(&mut self, c: Value, target: u64) -> Result<(), Stopped> {
        self.term = Term::Branch(c, target);
        Ok(())
    }

    fn check_target(&mut self, target: Value, _back: Option<Value>) -> Result<(), Stopped> {
        // JMP and RET write nothing but RSP: they are undone where a target is not known, see `exit_indirect`.
        if self.insn.op == Op::CallInd {
            let bad = self.not_canonical(target);
            self.leave_if(bad);
        }
        Ok(())
    }

    fn jump_indirect(&mut self, target: Value) -> Result<(), Stopped> {
        self.term = Term::Indirect(target);
        Ok(())
    }

    fn complex(&mut self, i: &Insn) -> Result<(), Stopped> {
        if matches!(i.op, Op::Nop) {
            return Ok(());
        }
        if i.ends_block() {
            // It stops, or goes where only the interpreter knows.
            return Err(Stopped);
        }
        if self.options.vectors && self.vector(i) {
            return Ok(());
        }
        self.run_by_helper(i);
        Ok(())
    }
}

impl Lower<'_, '_> {
    /// Has a helper run the current instruction.
    pub(super) fn run_by_helper(&mut self, i: &Insn) {
        let uses = super::vector::uses(i);
        if i.op == Op::Thunk {
            self.thunk_out(uses);
        } else {
            self.step_out(uses);
        }
    }

    /// The host address of an operand that is accessed by one locked instruction. One across two lines is left to the
    /// interpreter, which has a lock for those.
    fn locked_address(&mut self, va: Value, w: Width) -> Value {
        self.leave_if_crossing(va, w.bytes());
        self.host_address(va, w.bytes(), true)
    }

    /// Leaves if the `bytes` bytes at `va` lie in two lines.
    pub(super) fn leave_if_crossing(&mut self, va: Value, bytes: u32) {
        const LINE: u64 = 64;
        if bytes > 1 {
            let mask = self.iconst(types::I64, LINE - 1);
            let at = self.fb.ins().band(va, mask);
            let last = self.iconst(types::I64, LINE - u64::from(bytes));
            let crosses = self.fb.ins().icmp(IntCC::UnsignedGreaterThan, at, last);
            self.leave_if(crosses);
        }
    }

    /// Widens an integer value to I64.
    pub(super) fn to64(&mut self, signed: bool, v: Value) -> Value {
        if self.fb.func.dfg.value_type(v) == types::I64 {
            v
        } else if signed {
            self.fb.ins().sextend(types::I64, v)
        } else {
            self.fb.ins().uextend(types::I64, v)
        }
    }

    /// Quotient and remainder, of which the second is cheaper by multiplication than by a second division.
    fn quotient(&mut self, signed: bool, n: Value, d: Value) -> (Value, Value) {
        let q = if signed {
            self.fb.ins().sdiv(n, d)
        } else {
            self.fb.ins().udiv(n, d)
        };
        let whole = self.fb.ins().imul(q, d);
        (q, self.fb.ins().isub(n, whole))
    }

    /// 128 by 64 bits: inline where the high half only extends the low one, else by helper.
    fn div64(&mut self, signed: bool, hi: Value, lo: Value, d: Value) -> (Value, Value) {
        let zero = self.iconst(types::I64, 0);
        let by_zero = self.fb.ins().icmp(IntCC::Equal, d, zero);
        self.leave_if(by_zero);
        let mut simple = if signed {
            let n = self.iconst(types::I64, 63);
            let sign = self.fb.ins().sshr(lo, n);
            self.fb.ins().icmp(IntCC::Equal, hi, sign)
        } else {
            self.fb.ins().icmp(IntCC::Equal, hi, zero)
        };
        if signed {
            let minus = self.iconst(types::I64, u64::MAX);
            let other = self.fb.ins().icmp(IntCC::NotEqual, d, minus);
            simple = self.fb.ins().band(simple, other);
        }
        let (fast, slow, merge) = (
            self.fb.create_block(),
            self.fb.create_block(),
            self.fb.create_block(),
        );
        self.fb.set_cold_block(slow);
        let q = self.fb.append_block_param(merge, types::I64);
        let r = self.fb.append_block_param(merge, types::I64);
        self.fb.ins().brif(simple, fast, &[], slow, &[]);
        self.fb.switch_to_block(fast);
        let (fq, fr) = self.quotient(signed, lo, d);
        self.fb
            .ins()
            .jump(merge, &[BlockArg::Value(fq), BlockArg::Value(fr)]);
        self.fb.switch_to_block(slow);
        // RET2 carries the signedness in and the remainder out; RET is 0 for #DE, and then SCRATCH holds nothing.
        let p = self.pinned();
        let s = self.iconst(types::I64, u64::from(signed));
        self.fb
            .ins()
            .store(super::state_flags(), s, p, layout::RET2);
        self.call_helper(layout::H_DIV, [hi, lo, d]);
        let p = self.pinned();
        let ok = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        let leave = self.leave_block();
        let done = self.fb.create_block();
        self.fb.ins().brif(ok, done, &[], leave, &[]);
        self.leave_in(leave);
        self.fb.switch_to_block(done);
        let p = self.pinned();
        let sq = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::SCRATCH);
        let sr = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET2);
        self.fb
            .ins()
            .jump(merge, &[BlockArg::Value(sq), BlockArg::Value(sr)]);
        self.fb.switch_to_block(merge);
        (q, r)
    }
}
