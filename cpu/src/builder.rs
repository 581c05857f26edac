//! The builder trait: the small vocabulary in which instruction semantics are written once.
//!
//! Values carry a width; an operation's operands have the width it names. The interpreter's values are
//! `u64`s zero-extended from their width; the translator's are SSA values of that width. Semantics read
//! all operands before they write any register, and do every memory access that can fault before the
//! first write of a register or flag, so that a fault leaves the state as it was before the instruction.

use crate::flags::{Cond, Flag, FlagMask, FlagOp};
use crate::insn::{Insn, MemRef, Width};
use crate::stop::Exception;

/// Two-operand integer operations. Shift and rotate counts are already masked below the width's bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Bin {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Mul,
    UMulHi,
    SMulHi,
    Shl,
    Shr,
    Sar,
    Rotl,
    Rotr,
}

/// One-operand integer operations. Counts are of the operand's width; `Clz`/`Ctz` of 0 give the width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Un {
    Not,
    Neg,
    Clz,
    Ctz,
    Popcnt,
    Bswap,
}

/// Integer comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Ult,
    Ule,
    Slt,
    Sle,
}

/// Read-modify-write operations that must be atomic under LOCK. Each returns the old memory value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Rmw {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Xchg,
}

/// The vocabulary. Every method that can stop the instruction returns `Result<_, Self::Stop>`; the
/// translator's never do (it emits the stopping path), the interpreter's do.
pub trait Builder {
    /// An integer value with a width.
    type V: Copy;
    /// A condition.
    type C: Copy;
    /// What ends an instruction early.
    type Stop;

    /// A constant of width `w` (extra high bits are dropped).
    fn imm(&mut self, w: Width, v: u64) -> Self::V;
    /// The low part of a general register at width `w`.
    fn gpr(&mut self, r: u8, w: Width) -> Self::V;
    /// Bits 15:8 of general register `r` (0 to 3), as a B1 value.
    fn gpr_high(&mut self, r: u8) -> Self::V;
    /// Writes a general register: B8 whole, B4 zero-extends, B2 and B1 merge.
    fn set_gpr(&mut self, r: u8, w: Width, v: Self::V);
    /// Writes bits 15:8 of general register `r`.
    fn set_gpr_high(&mut self, r: u8, v: Self::V);
    /// Base address of segment FS (4) or GS (5), B8.
    fn seg_base(&mut self, s: u8) -> Self::V;

    /// `a op b` at width `w`.
    fn bin(&mut self, op: Bin, w: Width, a: Self::V, b: Self::V) -> Self::V;
    /// `op a` at width `w`.
    fn un(&mut self, op: Un, w: Width, a: Self::V) -> Self::V;
    /// Zero-extends or truncates from width `from` to `to`.
    fn zext(&mut self, from: Width, to: Width, v: Self::V) -> Self::V;
    /// Sign-extends from width `from` to a wider or equal `to`.
    fn sext(&mut self, from: Width, to: Width, v: Self::V) -> Self::V;
    /// Compares at width `w`.
    fn cmp(&mut self, op: Cmp, w: Width, a: Self::V, b: Self::V) -> Self::C;
    /// `c ? a : b` at width `w`.
    fn select(&mut self, c: Self::C, w: Width, a: Self::V, b: Self::V) -> Self::V;
    /// A condition as 0 or 1 of width `w`.
    fn cond_value(&mut self, c: Self::C, w: Width) -> Self::V;
    /// A constant condition.
    fn cond_const(&mut self, v: bool) -> Self::C;
    /// Logical and of two conditions.
    fn cond_and(&mut self, a: Self::C, b: Self::C) -> Self::C;
    /// Logical negation.
    fn cond_not(&mut self, a: Self::C) -> Self::C;

    /// Divides the double-width `hi:lo` by `d`: `(quotient, remainder)`; stops with #DE when `d` is zero
    /// or the quotient does not fit `w`. For B1 the dividend is `hi:lo` of two B1 values.
    fn div(
        &mut self,
        signed: bool,
        w: Width,
        hi: Self::V,
        lo: Self::V,
        d: Self::V,
    ) -> Result<(Self::V, Self::V), Self::Stop>;
    /// PDEP (`deposit`) or PEXT at width `w`.
    fn pdep_pext(&mut self, deposit: bool, w: Width, v: Self::V, mask: Self::V) -> Self::V;

    /// Effective linear address of a memory operand (with segment base and address size), B8.
    fn address(&mut self, m: &MemRef) -> Self::V;
    /// Loads `w` from guest memory at linear address `va`.
    fn load(&mut self, w: Width, va: Self::V) -> Result<Self::V, Self::Stop>;
    /// Stores `v`.
    fn store(&mut self, w: Width, va: Self::V, v: Self::V) -> Result<(), Self::Stop>;
    /// Loads for a read-modify-write: the page must be writable, so that the store after it can't fault.
    fn load_rmw(&mut self, w: Width, va: Self::V) -> Result<Self::V, Self::Stop>;
    /// Atomic read-modify-write; returns the old value.
    fn atomic(&mut self, op: Rmw, w: Width, va: Self::V, v: Self::V)
    -> Result<Self::V, Self::Stop>;
    /// Atomic compare-exchange; returns the old value (the store happened if it equals `expected`).
    fn atomic_cas(
        &mut self,
        w: Width,
        va: Self::V,
        expected: Self::V,
        new: Self::V,
    ) -> Result<Self::V, Self::Stop>;
    /// A full memory barrier between what comes before and what comes after.
    fn fence(&mut self);

    /// Records that the flags in `mask` now follow from this record; the others keep their source.
    fn set_flags(
        &mut self,
        mask: FlagMask,
        op: FlagOp,
        w: Width,
        a: Self::V,
        b: Self::V,
        r: Self::V,
    );
    /// As `set_flags`, but only if `c` holds; otherwise every flag keeps its value.
    #[allow(clippy::too_many_arguments)]
    fn set_flags_if(
        &mut self,
        c: Self::C,
        mask: FlagMask,
        op: FlagOp,
        w: Width,
        a: Self::V,
        b: Self::V,
        r: Self::V,
    );
    /// Sets one flag.
    fn set_flag(&mut self, f: Flag, c: Self::C);
    /// Reads one flag.
    fn flag(&mut self, f: Flag) -> Self::C;
    /// Evaluates a condition code over the current flags.
    fn cond(&mut self, cc: Cond) -> Self::C;
    /// RFLAGS as a B8 value (for PUSHF).
    fn rflags(&mut self) -> Self::V;
    /// Sets or clears DF.
    fn set_df(&mut self, v: bool);

    /// Stops with an exception if `c` holds.
    fn trap_if(&mut self, c: Self::C, e: Exception) -> Result<(), Self::Stop>;

    /// Continues at a constant address. The last thing an instruction does.
    fn jump(&mut self, target: u64) -> Result<(), Self::Stop>;
    /// Continues at `target` if `c` holds, else at the next instruction.
    fn branch(&mut self, c: Self::C, target: u64) -> Result<(), Self::Stop>;
    /// Stops with #GP(0) if `target`, a branch's, is not canonical. Comes before what the branch writes. A call's return
    /// address is stored even so, as hardware has it, but RSP is not changed.
    fn check_target(&mut self, target: Self::V, back: Option<Self::V>) -> Result<(), Self::Stop>;
    /// Continues at a computed address, which has been checked.
    fn jump_indirect(&mut self, target: Self::V) -> Result<(), Self::Stop>;

    /// Everything that is not written in this vocabulary: strings, system instructions, thunks. The
    /// interpreter runs it; the translator writes registers back and calls the interpreter, or lowers
    /// it itself (vector instructions).
    fn complex(&mut self, i: &Insn) -> Result<(), Self::Stop>;
}
