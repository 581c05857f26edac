//! What instructions mean: one definition per family, generic over [`Builder`].
//!
//! The interpreter runs these definitions by computing, the translator by emitting code, so the tiers
//! can't drift. Rules that every definition keeps:
//! 1. All operands are read before any register or flag is written.
//! 2. Every access that can fault comes before the first write, except the last store of a
//!    read-modify-write, which [`Builder::load_rmw`] has made safe.
//! 3. Flags that the manuals leave undefined get the value that current hardware gives them where that
//!    costs nothing; else a value that is a function of the operands.
//!
//! Instructions that don't fit the vocabulary go to [`Builder::complex`].

pub(crate) mod arith;
mod bits;
pub(crate) mod control;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod shift;

use crate::builder::{Builder, Cmp};
use crate::insn::{Insn, Op, Operand, Width};

/// Runs (or emits) one instruction.
#[inline]
pub fn exec<B: Builder>(b: &mut B, i: &Insn) -> Result<(), B::Stop> {
    match i.op {
        Op::Mov => mov::mov(b, i),
        Op::Movzx => mov::movzx(b, i),
        Op::Movsx => mov::movsx(b, i),
        Op::Lea => mov::lea(b, i),
        Op::Push => mov::push(b, i),
        Op::Pop => mov::pop(b, i),
        Op::Add => arith::add(b, i),
        Op::Sub => arith::sub(b, i),
        Op::Cmp => arith::cmp(b, i),
        Op::And => arith::and(b, i),
        Op::Or => arith::or(b, i),
        Op::Xor => arith::xor(b, i),
        Op::Test => arith::test(b, i),
        Op::Inc => arith::inc_dec(b, i, true),
        Op::Dec => arith::inc_dec(b, i, false),
        Op::Jcc(cc) => control::jcc(b, i, cc),
        Op::Jmp => control::jmp(b, i),
        Op::Call => control::call(b, i),
        Op::CallInd => control::call_indirect(b, i),
        Op::JmpInd => control::jmp_indirect(b, i),
        Op::Ret => control::ret(b, i),
        Op::Nop => Ok(()),
        Op::Mfence => {
            b.fence();
            Ok(())
        }

        Op::Xchg => mov::xchg(b, i),
        Op::Pushf => mov::pushf(b, i),
        Op::Leave => mov::leave(b, i),
        Op::Enter => mov::enter(b, i),
        Op::Bswap => mov::bswap(b, i),
        Op::Movbe => mov::movbe(b, i),
        Op::Xlat => mov::xlat(b, i),
        Op::Cmov(cc) => mov::cmov(b, i, cc),
        Op::Setcc(cc) => mov::setcc(b, i, cc),
        Op::Cwd => mov::cwd(b, i),
        Op::Cbw => mov::cbw(b, i),
        Op::Lahf => mov::lahf(b),
        Op::Sahf => mov::sahf(b),
        Op::Clflush => mov::clflush(b, i),

        Op::Adc => arith::adc(b, i),
        Op::Sbb => arith::sbb(b, i),
        Op::Neg => arith::neg(b, i),
        Op::Not => arith::not(b, i),
        Op::Adcx => arith::adcx(b, i),
        Op::Adox => arith::adox(b, i),
        Op::Xadd => arith::xadd(b, i),
        Op::Cmpxchg => arith::cmpxchg(b, i),
        Op::Clc => arith::carry(b, false),
        Op::Stc => arith::carry(b, true),
        Op::Cmc => arith::cmc(b),
        Op::Cld => {
            b.set_df(false);
            Ok(())
        }
        Op::Std => {
            b.set_df(true);
            Ok(())
        }

        Op::Mul => muldiv::mul1(b, i, false),
        Op::Imul1 => muldiv::mul1(b, i, true),
        Op::Imul2 => muldiv::imul(b, i, 0, 1),
        Op::Imul3 => muldiv::imul(b, i, 1, 2),
        Op::Div => muldiv::div(b, i, false),
        Op::Idiv => muldiv::div(b, i, true),
        Op::Mulx => muldiv::mulx(b, i),

        Op::Shl | Op::Shr | Op::Sar => shift::shift(b, i),
        Op::Rol | Op::Ror => shift::rotate(b, i),
        Op::Rcl | Op::Rcr => shift::rotate_carry(b, i),
        Op::Shld | Op::Shrd => shift::double(b, i),
        Op::Rorx => shift::rorx(b, i),
        Op::Sarx | Op::Shlx | Op::Shrx => shift::shift_x(b, i),

        Op::Bt | Op::Bts | Op::Btr | Op::Btc => bits::bit_test(b, i),
        Op::Bsf | Op::Bsr => bits::bit_scan(b, i),
        Op::Tzcnt | Op::Lzcnt => bits::count_zeros(b, i),
        Op::Popcnt => bits::popcnt(b, i),
        Op::Andn => bits::andn(b, i),
        Op::Bextr => bits::bextr(b, i),
        Op::Blsi | Op::Blsmsk | Op::Blsr => bits::lowest_set(b, i),
        Op::Bzhi => bits::bzhi(b, i),
        Op::Pdep | Op::Pext => bits::pdep_pext(b, i),

        Op::Jrcxz => control::jrcxz(b, i),
        Op::Loop | Op::Loope | Op::Loopne => control::loop_(b, i),

        Op::Popf
        | Op::Cmpxchg8b
        | Op::Cmpxchg16b
        | Op::Int3
        | Op::Int
        | Op::Int1
        | Op::Ud
        | Op::Into
        | Op::Iret
        | Op::Movs
        | Op::Stos
        | Op::Lods
        | Op::Scas
        | Op::Cmps
        | Op::Syscall
        | Op::Cpuid
        | Op::Rdtsc
        | Op::Rdtscp
        | Op::Rdpmc
        | Op::Rdpid
        | Op::Rdmsr
        | Op::Wrmsr
        | Op::Xgetbv
        | Op::In
        | Op::Out
        | Op::Ins
        | Op::Outs
        | Op::Hlt
        | Op::Vmmcall
        | Op::Vmgexit
        | Op::Wbinvd
        | Op::Rdfsbase
        | Op::Rdgsbase
        | Op::Wrfsbase
        | Op::Wrgsbase
        | Op::Stmxcsr
        | Op::Ldmxcsr
        | Op::Fxsave
        | Op::Fxrstor
        | Op::Xsave
        | Op::Xrstor
        | Op::MovFromSeg
        | Op::MovToSeg
        | Op::PushSeg
        | Op::PopSeg
        | Op::SegCheck
        | Op::JmpFar
        | Op::CallFar
        | Op::RetFar
        | Op::Extrq
        | Op::Insertq
        | Op::Movnts
        | Op::Clzero
        | Op::Monitorx
        | Op::Mwaitx
        | Op::Rdpru
        | Op::Rdrand
        | Op::Rdseed
        | Op::Privileged
        | Op::Thunk => b.complex(i),
    }
}

/// Reads operand `n` at width `w`.
#[inline(always)]
pub fn read_op<B: Builder>(b: &mut B, i: &Insn, n: usize, w: Width) -> Result<B::V, B::Stop> {
    match i.ops[n] {
        Operand::Gpr(r) => Ok(b.gpr(r, w)),
        Operand::Imm(v) => Ok(b.imm(w, v as u64)),
        Operand::Mem => {
            let va = b.address(&i.mem);
            b.load(w, va)
        }
        Operand::High(r) => Ok(b.gpr_high(r)),
        Operand::None | Operand::Vec(_) => Ok(b.imm(w, 0)),
    }
}

/// Writes operand `n` at width `w`.
#[inline(always)]
pub fn write_op<B: Builder>(
    b: &mut B,
    i: &Insn,
    n: usize,
    w: Width,
    v: B::V,
) -> Result<(), B::Stop> {
    match i.ops[n] {
        Operand::Gpr(r) => b.set_gpr(r, w, v),
        Operand::Mem => {
            let va = b.address(&i.mem);
            b.store(w, va, v)?;
        }
        Operand::High(r) => b.set_gpr_high(r, v),
        Operand::None | Operand::Imm(_) | Operand::Vec(_) => {}
    }
    Ok(())
}

/// Where a read-modify-write puts its result.
#[derive(Clone, Copy)]
enum Place<V> {
    Gpr(u8),
    High(u8),
    Mem(V),
}

/// Reads operand 0 for modification.
#[inline(always)]
#[allow(clippy::type_complexity)] // a place and its value
fn open<B: Builder>(b: &mut B, i: &Insn, w: Width) -> Result<(Place<B::V>, B::V), B::Stop> {
    Ok(match i.ops[0] {
        Operand::Gpr(r) => (Place::Gpr(r), b.gpr(r, w)),
        Operand::High(r) => (Place::High(r), b.gpr_high(r)),
        _ => {
            let va = b.address(&i.mem);
            (Place::Mem(va), b.load_rmw(w, va)?)
        }
    })
}

/// Writes what [`open`] read. Comes before any other write of the instruction.
#[inline(always)]
fn close<B: Builder>(b: &mut B, p: Place<B::V>, w: Width, v: B::V) -> Result<(), B::Stop> {
    match p {
        Place::Gpr(r) => b.set_gpr(r, w, v),
        Place::High(r) => b.set_gpr_high(r, v),
        Place::Mem(va) => b.store(w, va, v)?,
    }
    Ok(())
}

/// Whether the value is negative at width `w`.
fn negative<B: Builder>(b: &mut B, w: Width, v: B::V) -> B::C {
    let zero = b.imm(w, 0);
    b.cmp(Cmp::Slt, w, v, zero)
}

/// Whether the value is zero.
fn is_zero<B: Builder>(b: &mut B, w: Width, v: B::V) -> B::C {
    let zero = b.imm(w, 0);
    b.cmp(Cmp::Eq, w, v, zero)
}

/// Whether the value is not zero.
fn non_zero<B: Builder>(b: &mut B, w: Width, v: B::V) -> B::C {
    let zero = b.imm(w, 0);
    b.cmp(Cmp::Ne, w, v, zero)
}

/// `c ? a : b` over conditions.
fn choose<B: Builder>(b: &mut B, c: B::C, x: B::C, y: B::C) -> B::C {
    let x = b.cond_value(x, Width::B1);
    let y = b.cond_value(y, Width::B1);
    let v = b.select(c, Width::B1, x, y);
    non_zero(b, Width::B1, v)
}
