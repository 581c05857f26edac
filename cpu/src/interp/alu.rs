//! The builder that computes.

use super::{Halt, Interp};
use crate::builder::{Bin, Builder, Cmp, Rmw, Un};
use crate::flags::{ARITH, CF, Cond, DF, Flag, FlagMask, FlagOp, LazyFlags};
use crate::insn::{Insn, MemRef, Op, Width};
use crate::stop::Exception;

/// CF of a record.
#[inline]
fn carry(f: &LazyFlags) -> bool {
    match FlagOp::from_bits(f.op as u8) {
        FlagOp::Explicit => f.r & CF != 0,
        FlagOp::Logic => false,
        FlagOp::Sub => f.a < f.b,
        FlagOp::Inc | FlagOp::Dec | FlagOp::Mul => f.b & 1 != 0,
        _ => f.bits() & CF != 0,
    }
}

/// Whether a condition holds, without computing flags that it does not need.
#[inline]
fn holds(f: &LazyFlags, cc: Cond) -> bool {
    let op = FlagOp::from_bits(f.op as u8);
    let w = Width::from_log2((f.op >> 8) as u8);
    let sign = |x: u64| x >> (w.bits() - 1) & 1 != 0;
    match (op, cc) {
        (FlagOp::Explicit, _) => cc.holds(f.r),
        (_, Cond::E) => f.r == 0,
        (_, Cond::Ne) => f.r != 0,
        (_, Cond::S) => sign(f.r),
        (_, Cond::Ns) => !sign(f.r),
        (_, Cond::B) => carry(f),
        (_, Cond::Ae) => !carry(f),
        (FlagOp::Sub, Cond::Be) => f.a <= f.b,
        (FlagOp::Sub, Cond::A) => f.a > f.b,
        (FlagOp::Sub, Cond::L) => (w.sext(f.a) as i64) < w.sext(f.b) as i64,
        (FlagOp::Sub, Cond::Ge) => w.sext(f.a) as i64 >= w.sext(f.b) as i64,
        (FlagOp::Sub, Cond::Le) => w.sext(f.a) as i64 <= w.sext(f.b) as i64,
        (FlagOp::Sub, Cond::G) => w.sext(f.a) as i64 > w.sext(f.b) as i64,
        (FlagOp::Logic, Cond::Le) => f.r == 0 || sign(f.r),
        (FlagOp::Logic, Cond::G) => f.r != 0 && !sign(f.r),
        (FlagOp::Logic, Cond::L) => sign(f.r),
        (FlagOp::Logic, Cond::Ge) => !sign(f.r),
        _ => cc.holds(f.bits()),
    }
}

macro_rules! by_width {
    ($w:expr, $f:ident) => {
        match $w {
            Width::B1 => $f!(u8),
            Width::B2 => $f!(u16),
            Width::B4 => $f!(u32),
            Width::B8 => $f!(u64),
        }
    };
}

impl Interp<'_> {
    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, w: Width, va: u64) -> Result<u64, Halt> {
        let mut b = [0; 8];
        let r = self.v.read(va, &mut b[..w.bytes() as usize]);
        self.lift(r)?;
        Ok(u64::from_le_bytes(b))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, w: Width, va: u64, v: u64) -> Result<(), Halt> {
        let r = self.v.write(va, &v.to_le_bytes()[..w.bytes() as usize]);
        self.lift(r)
    }

    #[cold]
    #[inline(never)]
    fn load_rmw_slow(&mut self, w: Width, va: u64) -> Result<u64, Halt> {
        let r = self.v.probe_write(va, u64::from(w.bytes()));
        self.lift(r)?;
        self.load_slow(w, va)
    }

    /// The record's place for a partial update: the flags of `mask` come from `bits`.
    #[inline]
    fn merge_flags(&mut self, mask: FlagMask, bits: u64) {
        let old = self.v.state.cc.bits();
        self.v.state.cc = LazyFlags::explicit(old & !mask | bits & mask);
    }
}

impl Builder for Interp<'_> {
    type V = u64;
    type C = bool;
    type Stop = Halt;

    #[inline(always)]
    fn imm(&mut self, w: Width, v: u64) -> u64 {
        v & w.mask()
    }
    #[inline(always)]
    fn gpr(&mut self, r: u8, w: Width) -> u64 {
        self.v.state.gpr[usize::from(r & 15)] & w.mask()
    }
    #[inline(always)]
    fn gpr_high(&mut self, r: u8) -> u64 {
        self.v.state.gpr[usize::from(r & 15)] >> 8 & 0xff
    }
    #[inline(always)]
    fn set_gpr(&mut self, r: u8, w: Width, v: u64) {
        let reg = &mut self.v.state.gpr[usize::from(r & 15)];
        *reg = match w {
            Width::B8 | Width::B4 => v,
            Width::B2 => *reg & !0xffff | v,
            Width::B1 => *reg & !0xff | v,
        };
    }
    #[inline(always)]
    fn set_gpr_high(&mut self, r: u8, v: u64) {
        let reg = &mut self.v.state.gpr[usize::from(r & 15)];
        *reg = *reg & !0xff00 | v << 8;
    }
    #[inline(always)]
    fn seg_base(&mut self, s: u8) -> u64 {
        self.v.state.seg.get(usize::from(s)).map_or(0, |s| s.base)
    }

    #[inline(always)]
    fn bin(&mut self, op: Bin, w: Width, a: u64, b: u64) -> u64 {
        let n = w.bits();
        let r = match op {
            Bin::Add => a.wrapping_add(b),
            Bin::Sub => a.wrapping_sub(b),
            Bin::And => a & b,
            Bin::Or => a | b,
            Bin::Xor => a ^ b,
            Bin::Mul => a.wrapping_mul(b),
            Bin::UMulHi => ((u128::from(a) * u128::from(b)) >> n) as u64,
            Bin::SMulHi => {
                ((i128::from(w.sext(a) as i64) * i128::from(w.sext(b) as i64)) >> n) as u64
            }
            Bin::Shl => a << (b & 63),
            Bin::Shr => a >> (b & 63),
            Bin::Sar => ((w.sext(a) as i64) >> (b & 63)) as u64,
            Bin::Rotl | Bin::Rotr => {
                let b = b as u32 & (n - 1);
                let l = if op == Bin::Rotl {
                    b
                } else {
                    (n - b) & (n - 1)
                };
                if l == 0 { a } else { a << l | a >> (n - l) }
            }
        };
        r & w.mask()
    }
    #[inline(always)]
    fn un(&mut self, op: Un, w: Width, a: u64) -> u64 {
        let n = w.bits();
        let r = match op {
            Un::Not => !a,
            Un::Neg => a.wrapping_neg(),
            Un::Clz => u64::from(a.leading_zeros() - (64 - n)),
            Un::Ctz => u64::from(a.trailing_zeros().min(n)),
            Un::Popcnt => u64::from(a.count_ones()),
            Un::Bswap => a.swap_bytes() >> (64 - n),
        };
        r & w.mask()
    }
    #[inline(always)]
    fn zext(&mut self, _from: Width, to: Width, v: u64) -> u64 {
        v & to.mask()
    }
    #[inline(always)]
    fn sext(&mut self, from: Width, to: Width, v: u64) -> u64 {
        from.sext(v) & to.mask()
    }
    #[inline(always)]
    fn cmp(&mut self, op: Cmp, w: Width, a: u64, b: u64) -> bool {
        match op {
            Cmp::Eq => a == b,
            Cmp::Ne => a != b,
            Cmp::Ult => a < b,
            Cmp::Ule => a <= b,
            Cmp::Slt => (w.sext(a) as i64) < w.sext(b) as i64,
            Cmp::Sle => w.sext(a) as i64 <= w.sext(b) as i64,
        }
    }
    #[inline(always)]
    fn select(&mut self, c: bool, _w: Width, a: u64, b: u64) -> u64 {
        if c { a } else { b }
    }
    #[inline(always)]
    fn cond_value(&mut self, c: bool, _w: Width) -> u64 {
        u64::from(c)
    }
    #[inline(always)]
    fn cond_const(&mut self, v: bool) -> bool {
        v
    }
    #[inline(always)]
    fn cond_and(&mut self, a: bool, b: bool) -> bool {
        a && b
    }
    #[inline(always)]
    fn cond_not(&mut self, a: bool) -> bool {
        !a
    }

    fn div(
        &mut self,
        signed: bool,
        w: Width,
        hi: u64,
        lo: u64,
        d: u64,
    ) -> Result<(u64, u64), Halt> {
        let n = w.bits();
        let done = if w == Width::B8 {
            if signed {
                div_signed(hi, lo, d)
            } else {
                div_unsigned(hi, lo, d)
            }
        } else {
            let x = hi << n | lo;
            if signed {
                let s = 64 - 2 * n;
                let x = ((x << s) as i64) >> s;
                let d = w.sext(d) as i64;
                match (x.checked_div(d), x.checked_rem(d)) {
                    (Some(q), Some(r)) if w.sext(q as u64) as i64 == q => {
                        Some((q as u64 & w.mask(), r as u64 & w.mask()))
                    }
                    _ => None,
                }
            } else {
                match x.checked_div(d) {
                    Some(q) if q <= w.mask() => Some((q, x % d)),
                    _ => None,
                }
            }
        };
        match done {
            Some(x) => Ok(x),
            None => self.halt(Exception::DIVIDE),
        }
    }
    fn pdep_pext(&mut self, deposit: bool, w: Width, v: u64, mask: u64) -> u64 {
        let mut m = mask & w.mask();
        let mut r = 0;
        let mut k = 0;
        while m != 0 {
            let bit = m & m.wrapping_neg();
            if deposit {
                if v >> k & 1 != 0 {
                    r |= bit;
                }
            } else if v & bit != 0 {
                r |= 1 << k;
            }
            k += 1;
            m ^= bit;
        }
        r
    }

    #[inline(always)]
    fn address(&mut self, m: &MemRef) -> u64 {
        let g = &self.v.state.gpr;
        let mut a = m.disp as u64;
        if m.base != MemRef::NONE {
            a = a.wrapping_add(g[usize::from(m.base & 15)]);
        }
        if m.index != MemRef::NONE {
            a = a.wrapping_add(g[usize::from(m.index & 15)] << (m.scale & 3));
        }
        if m.addr32 {
            a &= 0xffff_ffff;
        }
        if m.seg != MemRef::NONE {
            a = a.wrapping_add(self.seg_base(m.seg));
        }
        a
    }
    #[inline(always)]
    fn load(&mut self, w: Width, va: u64) -> Result<u64, Halt> {
        self.check_alignment(w, va)?;
        let Some(host) = self.v.probe_read(va, u64::from(w.bytes())) else {
            return self.load_slow(w, va);
        };
        macro_rules! get {
            ($t:ty) => {
                // SAFETY: the tag matched for all of the access: mapped guest memory.
                u64::from(unsafe { host.cast::<$t>().read_unaligned() })
            };
        }
        Ok(by_width!(w, get))
    }
    #[inline(always)]
    fn store(&mut self, w: Width, va: u64, v: u64) -> Result<(), Halt> {
        self.check_alignment(w, va)?;
        let Some(host) = self.v.probe_write_tag(va, u64::from(w.bytes())) else {
            return self.store_slow(w, va, v);
        };
        macro_rules! put {
            ($t:ty) => {
                // SAFETY: the tag matched for all of the access: mapped writable guest memory.
                unsafe { host.cast::<$t>().write_unaligned(v as $t) }
            };
        }
        by_width!(w, put);
        Ok(())
    }
    #[inline(always)]
    fn load_rmw(&mut self, w: Width, va: u64) -> Result<u64, Halt> {
        self.check_alignment(w, va)?;
        if self.v.probe_write_tag(va, u64::from(w.bytes())).is_none() {
            return self.load_rmw_slow(w, va);
        }
        self.load(w, va)
    }
    fn atomic(&mut self, op: Rmw, w: Width, va: u64, v: u64) -> Result<u64, Halt> {
        self.locked_rmw(op, w, va, v)
    }
    fn atomic_cas(&mut self, w: Width, va: u64, expected: u64, new: u64) -> Result<u64, Halt> {
        self.locked_cas(w, va, expected, new)
    }
    fn fence(&mut self) {
        super::locked::barrier();
    }

    #[inline(always)]
    fn set_flags(&mut self, mask: FlagMask, op: FlagOp, w: Width, a: u64, b: u64, r: u64) {
        if mask == ARITH && op != FlagOp::Explicit {
            self.v.state.cc = LazyFlags::record(op, w, a, b, r);
        } else if mask == ARITH & !CF && matches!(op, FlagOp::Inc | FlagOp::Dec) {
            let c = u64::from(carry(&self.v.state.cc));
            self.v.state.cc = LazyFlags::record(op, w, a, c, r);
        } else {
            self.merge_flags(mask, LazyFlags::record(op, w, a, b, r).bits());
        }
    }
    #[inline(always)]
    fn set_flags_if(
        &mut self,
        c: bool,
        mask: FlagMask,
        op: FlagOp,
        w: Width,
        a: u64,
        b: u64,
        r: u64,
    ) {
        if c {
            self.set_flags(mask, op, w, a, b, r);
        }
    }
    #[inline(always)]
    fn set_flag(&mut self, f: Flag, c: bool) {
        self.merge_flags(f.bit(), if c { f.bit() } else { 0 });
    }
    #[inline(always)]
    fn flag(&mut self, f: Flag) -> bool {
        if f == Flag::Cf {
            return carry(&self.v.state.cc);
        }
        self.v.state.cc.bits() & f.bit() != 0
    }
    #[inline(always)]
    fn cond(&mut self, cc: Cond) -> bool {
        holds(&self.v.state.cc, cc)
    }
    fn rflags(&mut self) -> u64 {
        self.v.state.rflags()
    }
    fn set_df(&mut self, v: bool) {
        let f = &mut self.v.state.rflags;
        *f = if v { *f | DF } else { *f & !DF };
    }

    fn trap_if(&mut self, c: bool, e: Exception) -> Result<(), Halt> {
        if c { self.halt(e) } else { Ok(()) }
    }

    #[inline(always)]
    fn jump(&mut self, target: u64) -> Result<(), Halt> {
        self.v.state.rip = target;
        Ok(())
    }
    #[inline(always)]
    fn branch(&mut self, c: bool, target: u64) -> Result<(), Halt> {
        self.v.state.rip = if c { target } else { self.next };
        Ok(())
    }
    #[inline(always)]
    fn check_target(&mut self, target: u64, back: Option<u64>) -> Result<(), Halt> {
        if super::faults::canonical(target) {
            return Ok(());
        }
        self.bad_target(back)
    }
    #[inline(always)]
    fn jump_indirect(&mut self, target: u64) -> Result<(), Halt> {
        self.v.state.rip = target;
        Ok(())
    }

    #[inline(never)]
    fn complex(&mut self, i: &Insn) -> Result<(), Halt> {
        match i.op {
            Op::Thunk => self.thunk_slow(i),
            Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps => self.string(i),
            Op::Fxsave
            | Op::Fxrstor
            | Op::Xsave
            | Op::Xrstor
            | Op::Stmxcsr
            | Op::Ldmxcsr
            | Op::Xgetbv => self.fpu(i),
            Op::JmpFar | Op::CallFar | Op::RetFar => self.far(i),
            Op::Extrq
            | Op::Insertq
            | Op::Movnts
            | Op::Clzero
            | Op::Monitorx
            | Op::Mwaitx
            | Op::Rdpru => self.amd(i),
            _ => self.system(i),
        }
    }
}

fn div_unsigned(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    if hi >= d {
        return None; // also d = 0
    }
    if hi == 0 {
        return Some((lo / d, lo % d));
    }
    let x = u128::from(hi) << 64 | u128::from(lo);
    let d = u128::from(d);
    Some(((x / d) as u64, (x % d) as u64))
}

fn div_signed(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    let (l, d) = (lo as i64, d as i64);
    if hi as i64 == l >> 63 {
        return Some((l.checked_div(d)? as u64, l.checked_rem(d)? as u64));
    }
    let x = (u128::from(hi) << 64 | u128::from(lo)) as i128;
    let q = x.checked_div(i128::from(d))?;
    let r = x.checked_rem(i128::from(d))?;
    Some((i64::try_from(q).ok()? as u64, r as u64))
}
