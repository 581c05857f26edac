//! Arithmetic flags, computed only when something reads them.
//!
//! An instruction records what it did ([`FlagOp`], width, operands, result); each flag is a function
//! of that record. The same record is a host-side value for the translator and a stored one
//! ([`LazyFlags`]) between blocks.

use crate::insn::Width;

/// CF in RFLAGS.
pub const CF: u64 = 1 << 0;
/// PF in RFLAGS.
pub const PF: u64 = 1 << 2;
/// AF in RFLAGS.
pub const AF: u64 = 1 << 4;
/// ZF in RFLAGS.
pub const ZF: u64 = 1 << 6;
/// SF in RFLAGS.
pub const SF: u64 = 1 << 7;
/// DF in RFLAGS (not an arithmetic flag).
pub const DF: u64 = 1 << 10;
/// OF in RFLAGS.
pub const OF: u64 = 1 << 11;
/// The six arithmetic flags.
pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// A set of arithmetic flags, as RFLAGS bits.
pub type FlagMask = u64;

/// One arithmetic flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Flag {
    Cf = 0,
    Pf = 1,
    Af = 2,
    Zf = 3,
    Sf = 4,
    Of = 5,
}

impl Flag {
    /// All six, in index order.
    pub const ALL: [Flag; 6] = [Flag::Cf, Flag::Pf, Flag::Af, Flag::Zf, Flag::Sf, Flag::Of];
    /// Its bit in RFLAGS.
    #[must_use]
    pub const fn bit(self) -> u64 {
        match self {
            Flag::Cf => CF,
            Flag::Pf => PF,
            Flag::Af => AF,
            Flag::Zf => ZF,
            Flag::Sf => SF,
            Flag::Of => OF,
        }
    }
}

/// The sixteen condition codes, in encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Cond {
    O,
    No,
    B,
    Ae,
    E,
    Ne,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

impl Cond {
    /// From the low four bits of the opcode.
    #[must_use]
    pub const fn from_bits(cc: u8) -> Self {
        use Cond::*;
        [O, No, B, Ae, E, Ne, Be, A, S, Ns, P, Np, L, Ge, Le, G][(cc & 15) as usize]
    }
    /// The flags the condition reads.
    #[must_use]
    pub const fn reads(self) -> FlagMask {
        use Cond::*;
        match self {
            O | No => OF,
            B | Ae => CF,
            E | Ne => ZF,
            Be | A => CF | ZF,
            S | Ns => SF,
            P | Np => PF,
            L | Ge => SF | OF,
            Le | G => ZF | SF | OF,
        }
    }
    /// Evaluates the condition over RFLAGS bits.
    #[must_use]
    pub const fn holds(self, f: u64) -> bool {
        let positive = match self as u8 >> 1 {
            0 => f & OF != 0,
            1 => f & CF != 0,
            2 => f & ZF != 0,
            3 => f & (CF | ZF) != 0,
            4 => f & SF != 0,
            5 => f & PF != 0,
            6 => (f & SF != 0) != (f & OF != 0),
            _ => f & ZF != 0 || (f & SF != 0) != (f & OF != 0),
        };
        positive != (self as u8 & 1 != 0)
    }
}

/// How the flags follow from the recorded operands `a`, `b` and result `r` (all zero-extended from
/// the record's width `w`, `n` bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum FlagOp {
    /// `r` holds the six flags themselves, at their RFLAGS positions.
    #[default]
    Explicit = 0,
    /// `r = a + b`, or `a + b + CF` (ADD, ADC): CF is the carry out of bit n-1.
    Add = 1,
    /// `r = a - b` (SUB, CMP, NEG with a = 0).
    Sub = 2,
    /// `r = a - b - CF` (SBB).
    Sbb = 3,
    /// A bitwise result: CF = OF = AF = 0.
    Logic = 4,
    /// `r = a + 1`; CF is not this record's (a stored record has it in `b`).
    Inc = 5,
    /// `r = a - 1`; CF is not this record's (a stored record has it in `b`).
    Dec = 6,
    /// `r = a << b`, 0 < b <= n; CF = the last bit out, OF = CF ^ sign(r), AF = 0.
    Shl = 7,
    /// `r = a >> b` logical, 0 < b; CF = bit b-1 of a, OF = sign(a), AF = 0.
    Shr = 8,
    /// `r = a >> b` arithmetic, 0 < b; CF = bit b-1 of sign-extended a, OF = 0, AF = 0.
    Sar = 9,
    /// A product whose low half is `r`; `b` is 1 if the product overflowed: CF = OF = b; SF, ZF, PF from r, AF = 0.
    Mul = 10,
}

impl FlagOp {
    /// From its stored number; an unknown one is `Explicit`.
    #[must_use]
    pub const fn from_bits(n: u8) -> Self {
        use FlagOp::*;
        [Explicit, Add, Sub, Sbb, Logic, Inc, Dec, Shl, Shr, Sar, Mul]
            [if n <= 10 { n as usize } else { 0 }]
    }

    /// Whether the flags of a record depend on its operands `a` and `b`; they always do on `r`.
    #[must_use]
    pub const fn reads(self) -> (bool, bool) {
        match self {
            Self::Explicit | Self::Logic => (false, false),
            Self::Inc | Self::Dec | Self::Mul => (false, true),
            Self::Add | Self::Sub | Self::Sbb | Self::Shl | Self::Shr | Self::Sar => (true, true),
        }
    }
}

/// A stored flag record. `op` is `FlagOp | log2(bytes) << 8`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LazyFlags {
    /// `FlagOp` in bits 7:0, log2 of the width in bytes in bits 9:8.
    pub op: u64,
    /// First operand.
    pub a: u64,
    /// Second operand.
    pub b: u64,
    /// Result.
    pub r: u64,
}

impl LazyFlags {
    /// A record of known flags.
    #[must_use]
    pub const fn explicit(bits: u64) -> Self {
        Self {
            op: 0,
            a: 0,
            b: 0,
            r: bits & ARITH,
        }
    }
    /// A record of an operation; operands must be zero-extended from `w`.
    #[must_use]
    pub const fn record(op: FlagOp, w: Width, a: u64, b: u64, r: u64) -> Self {
        Self {
            op: Self::encode(op, w),
            a,
            b,
            r,
        }
    }
    /// The stored form of an operation and its width.
    #[must_use]
    pub const fn encode(op: FlagOp, w: Width) -> u64 {
        op as u64 | (w.log2() as u64) << 8
    }

    /// The six flags as RFLAGS bits.
    #[must_use]
    pub fn bits(&self) -> u64 {
        let op = FlagOp::from_bits(self.op as u8);
        if op == FlagOp::Explicit {
            return self.r;
        }
        let w = Width::from_log2((self.op >> 8) as u8 & 3);
        let n = w.bits();
        let (a, b, r) = (self.a, self.b, self.r);
        let sign = |x: u64| x >> (n - 1) & 1;
        let (cf, af, of) = match op {
            FlagOp::Explicit => unreachable!("handled above"),
            FlagOp::Add => (
                sign(a & b | (a | b) & !r),
                (a ^ b ^ r) >> 4 & 1,
                sign((a ^ r) & (b ^ r)),
            ),
            FlagOp::Sub | FlagOp::Sbb => (
                sign(!a & b | (!a | b) & r),
                (a ^ b ^ r) >> 4 & 1,
                sign((a ^ b) & (a ^ r)),
            ),
            FlagOp::Logic => (0, 0, 0),
            FlagOp::Inc => (b & 1, u64::from(r & 15 == 0), u64::from(r == 1 << (n - 1))),
            FlagOp::Dec => (
                b & 1,
                u64::from(r & 15 == 15),
                u64::from(r == (1 << (n - 1)) - 1),
            ),
            FlagOp::Shl => {
                let cf = if b > u64::from(n) {
                    0
                } else {
                    a >> (u64::from(n) - b) & 1
                };
                (cf, 0, cf ^ sign(r))
            }
            FlagOp::Shr => (if b > 64 { 0 } else { a >> (b - 1) & 1 }, 0, sign(a)),
            FlagOp::Sar => (((w.sext(a) as i64) >> (b - 1).min(63)) as u64 & 1, 0, 0),
            FlagOp::Mul => (b & 1, 0, b & 1),
        };
        let zf = u64::from(r == 0);
        let pf = u64::from((r as u8).count_ones() & 1 == 0);
        cf | pf << 2 | af << 4 | zf << 6 | sign(r) << 7 | of << 11
    }
}
