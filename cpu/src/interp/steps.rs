//! Instructions made ready to run: the function that runs just this form of operands and width, and the operands, in 32
//! bytes.
//!
//! What an instruction means stays in [`crate::sem`]: each function here is one of its definitions with all that
//! is the same for a form (family, width, kinds of operands) known to the compiler. Forms that are rare have none of their own and run
//! from their [`Insn`].

use super::{Block, Halt, Interp};
use crate::flags::Cond;
use crate::insn::{Control, Insn, MemRef, Op, Operand, Rep, Width};
use crate::sem::{self, arith, control, mov, muldiv, shift};

/// Runs one instruction of a block. RIP is brought up to date only by what leaves the block, or by forms that run from their
/// [`Insn`].
pub(super) type Run = fn(&mut Interp<'_>, &Step, &Block) -> Result<(), Halt>;

/// One instruction, ready to run.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Step {
    pub(super) run: Run,
    /// Displacement of the memory operand; of direct jumps and calls, where the next instruction is.
    disp: i64,
    /// The immediate; the target of direct jumps and calls; of indirect calls, where the next instruction is.
    imm: i64,
    a: u8,
    b: u8,
    base: u8,
    index: u8,
    /// log2 of the scale; bit 2: the address is 32 bits; bit 3: runs from its [`Insn`]; bits 7:4: the condition.
    scale: u8,
    seg: u8,
    /// Which of the instructions that the block keeps, if it is one of them.
    at: u16,
}

/// Kinds of operands. M is a base register and a displacement, X any memory operand.
mod shape {
    pub const NONE: u8 = 0;
    pub const R: u8 = 1;
    pub const I: u8 = 2;
    pub const M: u8 = 3;
    pub const X: u8 = 4;
    pub const RR: u8 = 5;
    /// Twice the same register.
    pub const SAME: u8 = 6;
    pub const RI: u8 = 7;
    pub const RM: u8 = 8;
    pub const RX: u8 = 9;
    pub const MR: u8 = 10;
    pub const XR: u8 = 11;
    pub const MI: u8 = 12;
    pub const XI: u8 = 13;
    pub const RRI: u8 = 14;
    pub const RMI: u8 = 15;
    pub const RXI: u8 = 16;
}

impl Step {
    /// Makes an instruction ready, which is the `at`th that the block keeps, if it is to be kept.
    pub(super) fn new(i: &Insn, at: usize) -> Self {
        let (shape, a, b, imm) = shape_of(i);
        let run = specialised(i, shape);
        let mut s = Self {
            run: run.unwrap_or(if i.op == Op::Thunk { thunk } else { general }),
            disp: i.mem.disp,
            imm,
            a,
            b,
            base: i.mem.base,
            index: i.mem.index,
            scale: i.mem.scale & 3 | u8::from(i.mem.addr32) << 2 | u8::from(run.is_none()) << 3,
            seg: i.mem.seg,
            at: at as u16,
        };
        match i.control {
            Control::Jump(t) | Control::Branch(t) | Control::Call(t) => {
                s.imm = t as i64;
                s.disp = i.next_rip() as i64;
            }
            Control::IndirectCall => s.imm = i.next_rip() as i64,
            _ => {}
        }
        if let Op::Cmov(cc) | Op::Setcc(cc) = i.op {
            s.scale |= (cc as u8) << 4;
        }
        s
    }

    /// Whether it runs from its decoded form.
    pub(super) fn needs_insn(&self) -> bool {
        self.scale & 8 != 0
    }

    /// See [`Step::new`].
    pub(super) fn kept_at(&self) -> usize {
        usize::from(self.at)
    }

    /// Whether it has brought RIP up to date itself, whatever came of it.
    pub(super) fn keeps_rip(&self) -> bool {
        self.scale & 8 != 0
    }

    #[inline(always)]
    fn cond(&self) -> Cond {
        Cond::from_bits(self.scale >> 4)
    }

    #[inline(always)]
    fn mem<const S: u8>(&self) -> MemRef {
        match S {
            shape::M | shape::RM | shape::MR | shape::MI | shape::RMI => MemRef {
                base: self.base & 15,
                disp: self.disp,
                ..MemRef::ABSENT
            },
            shape::X | shape::RX | shape::XR | shape::XI | shape::RXI => MemRef {
                base: self.base,
                index: self.index,
                scale: self.scale & 3,
                seg: self.seg,
                addr32: self.scale & 4 != 0,
                disp: self.disp,
            },
            _ => MemRef::ABSENT,
        }
    }

    #[inline(always)]
    fn ops<const S: u8>(&self) -> [Operand; 4] {
        use Operand::{Gpr, Imm, Mem, None};
        let (a, b) = (Gpr(self.a & 15), Gpr(self.b & 15));
        let imm = Imm(self.imm);
        let [x, y, z] = match S {
            shape::R => [a, None, None],
            shape::I => [imm, None, None],
            shape::M | shape::X => [Mem, None, None],
            shape::RR => [a, b, None],
            shape::SAME => [a, a, None],
            shape::RI => [a, imm, None],
            shape::RM | shape::RX => [a, Mem, None],
            shape::MR | shape::XR => [Mem, b, None],
            shape::MI | shape::XI => [Mem, imm, None],
            shape::RRI => [a, b, imm],
            shape::RMI | shape::RXI => [a, Mem, imm],
            _ => [None; 3],
        };
        [x, y, z, None]
    }

    /// The instruction, as far as its definition looks at it.
    #[inline(always)]
    fn insn<const W: u8, const N: u8, const S: u8>(&self, op: Op) -> Insn {
        Insn {
            rip: 0,
            op,
            len: 0,
            width: Width::from_log2(W),
            src_width: Width::from_log2(N),
            lock: false,
            rep: Rep::None,
            control: Control::Next,
            ops: self.ops::<S>(),
            mem: self.mem::<S>(),
            code: 0,
            flags_in: 0,
            flags_out: 0,
            bytes: [0; 15],
        }
    }
}

/// The kinds of an instruction's operands, its registers and its immediate; `None` where there is no name for them.
fn shape_of(i: &Insn) -> (Option<u8>, u8, u8, i64) {
    use Operand::{Gpr, Imm, Mem, None as No};
    let m = &i.mem;
    let near =
        m.base != MemRef::NONE && m.index == MemRef::NONE && m.seg == MemRef::NONE && !m.addr32;
    let by = |near_shape, any| if near { near_shape } else { any };
    let (s, a, b, imm) = match i.ops {
        [No, ..] => (shape::NONE, 0, 0, 0),
        [Gpr(a), No, ..] => (shape::R, a, 0, 0),
        [Imm(n), No, ..] => (shape::I, 0, 0, n),
        [Mem, No, ..] => (by(shape::M, shape::X), 0, 0, 0),
        [Gpr(a), Gpr(b), No, _] if a == b => (shape::SAME, a, b, 0),
        [Gpr(a), Gpr(b), No, _] => (shape::RR, a, b, 0),
        [Gpr(a), Imm(n), No, _] => (shape::RI, a, 0, n),
        [Gpr(a), Mem, No, _] => (by(shape::RM, shape::RX), a, 0, 0),
        [Mem, Gpr(b), No, _] => (by(shape::MR, shape::XR), 0, b, 0),
        [Mem, Imm(n), No, _] => (by(shape::MI, shape::XI), 0, 0, n),
        [Gpr(a), Gpr(b), Imm(n), No] => (shape::RRI, a, b, n),
        [Gpr(a), Mem, Imm(n), No] => (by(shape::RMI, shape::RXI), a, 0, n),
        _ => return (None, 0, 0, 0),
    };
    (Some(s), a, b, imm)
}

/// A definition of [`crate::sem`].
trait Family {
    const OP: Op;
    fn exec(it: &mut Interp<'_>, i: &Insn) -> Result<(), Halt>;
}

macro_rules! families {
    ($($name:ident = $op:expr, |$it:ident, $i:ident| $body:expr;)*) => { $(
        struct $name;
        impl Family for $name {
            const OP: Op = $op;
            #[inline(always)]
            fn exec($it: &mut Interp<'_>, $i: &Insn) -> Result<(), Halt> { $body }
        }
    )* };
}

families! {
    Mov = Op::Mov, |it, i| mov::mov(it, i);
    Movzx = Op::Movzx, |it, i| mov::movzx(it, i);
    Movsx = Op::Movsx, |it, i| mov::movsx(it, i);
    Lea = Op::Lea, |it, i| mov::lea(it, i);
    Push = Op::Push, |it, i| mov::push(it, i);
    Pop = Op::Pop, |it, i| mov::pop(it, i);
    Cwd = Op::Cwd, |it, i| mov::cwd(it, i);
    Cbw = Op::Cbw, |it, i| mov::cbw(it, i);
    Add = Op::Add, |it, i| arith::add(it, i);
    Sub = Op::Sub, |it, i| arith::sub(it, i);
    Adc = Op::Adc, |it, i| arith::adc(it, i);
    Sbb = Op::Sbb, |it, i| arith::sbb(it, i);
    Comparison = Op::Cmp, |it, i| arith::cmp(it, i);
    And = Op::And, |it, i| arith::and(it, i);
    Or = Op::Or, |it, i| arith::or(it, i);
    Xor = Op::Xor, |it, i| arith::xor(it, i);
    Test = Op::Test, |it, i| arith::test(it, i);
    Inc = Op::Inc, |it, i| arith::inc_dec(it, i, true);
    Dec = Op::Dec, |it, i| arith::inc_dec(it, i, false);
    Neg = Op::Neg, |it, i| arith::neg(it, i);
    Not = Op::Not, |it, i| arith::not(it, i);
    Shl = Op::Shl, |it, i| shift::shift(it, i);
    Shr = Op::Shr, |it, i| shift::shift(it, i);
    Sar = Op::Sar, |it, i| shift::shift(it, i);
    Mul = Op::Mul, |it, i| muldiv::mul1(it, i, false);
    Imul2 = Op::Imul2, |it, i| muldiv::imul(it, i, 0, 1);
    Imul3 = Op::Imul3, |it, i| muldiv::imul(it, i, 1, 2);
    Div = Op::Div, |it, i| muldiv::div(it, i, false);
    Idiv = Op::Idiv, |it, i| muldiv::div(it, i, true);
    JmpInd = Op::JmpInd, |it, i| control::jmp_indirect(it, i);
    Ret = Op::Ret, |it, i| control::ret(it, i);
}

/// Runs a form.
fn form<F: Family, const W: u8, const N: u8, const S: u8>(
    it: &mut Interp<'_>,
    s: &Step,
    _: &Block,
) -> Result<(), Halt> {
    F::exec(it, &s.insn::<W, N, S>(F::OP))
}

/// Runs CMOVcc.
fn cmov<const W: u8, const S: u8>(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let cc = s.cond();
    mov::cmov(it, &s.insn::<W, W, S>(Op::Cmov(cc)), cc)
}

/// Runs SETcc to a register.
fn setcc(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let cc = s.cond();
    mov::setcc(it, &s.insn::<0, 0, { shape::R }>(Op::Setcc(cc)), cc)
}

/// Runs Jcc.
fn jcc<const CC: u8>(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let cc = Cond::from_bits(CC);
    let mut i = s.insn::<3, 3, { shape::NONE }>(Op::Jcc(cc));
    i.control = Control::Branch(s.imm as u64);
    it.next = s.disp as u64;
    control::jcc(it, &i, cc)
}

/// Runs JMP to a known address.
fn jmp(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let mut i = s.insn::<3, 3, { shape::NONE }>(Op::Jmp);
    i.control = Control::Jump(s.imm as u64);
    control::jmp(it, &i)
}

/// Runs CALL of a known address.
fn call(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let mut i = s.insn::<3, 3, { shape::NONE }>(Op::Call);
    i.control = Control::Call(s.imm as u64);
    i.rip = s.disp as u64;
    control::call(it, &i)
}

/// Runs CALL of a computed address.
fn call_indirect<const S: u8>(it: &mut Interp<'_>, s: &Step, _: &Block) -> Result<(), Halt> {
    let mut i = s.insn::<3, 3, S>(Op::CallInd);
    i.rip = s.imm as u64;
    control::call_indirect(it, &i)
}

/// Runs what does nothing.
fn nop(_: &mut Interp<'_>, _: &Step, _: &Block) -> Result<(), Halt> {
    Ok(())
}

/// Runs any instruction from its decoded form.
fn general(it: &mut Interp<'_>, s: &Step, block: &Block) -> Result<(), Halt> {
    let i = &block.kept[usize::from(s.at)];
    it.v.state.rip = i.rip;
    it.next = i.next_rip();
    sem::exec(it, i)
}

/// Runs a native thunk.
fn thunk(it: &mut Interp<'_>, s: &Step, block: &Block) -> Result<(), Halt> {
    let k = usize::from(s.at);
    let i = &block.kept[k];
    it.v.state.rip = i.rip;
    it.thunk(i, &block.thunks[k])
}

/// The forms of a family for these widths and shapes.
macro_rules! forms {
    ($f:ident, $w:expr, $n:expr, $shape:expr; $($width:literal $from:literal),*; $shapes:tt) => {
        match ($w as u8, $n as u8) {
            $(($width, $from) => forms!(@shapes $f, $width, $from, $shape, $shapes),)*
            _ => None,
        }
    };
    (@shapes $f:ident, $width:literal, $from:literal, $shape:expr, [$($s:ident)*]) => {
        match $shape {
            $(shape::$s => Some(form::<$f, $width, $from, { shape::$s }> as Run),)*
            _ => None,
        }
    };
}

/// The function for just this form, if there is one.
fn specialised(i: &Insn, shape: Option<u8>) -> Option<Run> {
    if i.lock || i.op == Op::Thunk {
        return None;
    }
    let (s, w, n) = (shape?, i.width, i.src_width);
    macro_rules! two {
        ($f:ident) => {
            forms!($f, w, w, s; 0 0, 2 2, 3 3; [RR SAME RI RM RX MR XR MI XI])
        };
    }
    macro_rules! one {
        ($f:ident) => {
            forms!($f, w, w, s; 2 2, 3 3; [R M X])
        };
    }
    macro_rules! shifts {
        ($f:ident) => {
            forms!($f, w, w, s; 0 0, 2 2, 3 3; [RR SAME RI MI XI])
        };
    }
    match i.op {
        Op::Mov => two!(Mov),
        Op::Add => two!(Add),
        Op::Sub => two!(Sub),
        Op::Cmp => two!(Comparison),
        Op::And => two!(And),
        Op::Or => two!(Or),
        Op::Xor => two!(Xor),
        Op::Test => two!(Test),
        Op::Adc => forms!(Adc, w, w, s; 2 2, 3 3; [RR SAME RI RM RX]),
        Op::Sbb => forms!(Sbb, w, w, s; 2 2, 3 3; [RR SAME RI RM RX]),
        Op::Movzx => forms!(Movzx, w, n, s; 2 0, 2 1, 3 0, 3 1; [RR SAME RM RX]),
        Op::Movsx => forms!(Movsx, w, n, s; 2 0, 2 1, 3 0, 3 1, 3 2; [RR SAME RM RX]),
        Op::Lea => forms!(Lea, w, w, s; 2 2, 3 3; [RM RX]),
        Op::Push => forms!(Push, w, w, s; 3 3; [R I M X]),
        Op::Pop => forms!(Pop, w, w, s; 3 3; [R]),
        Op::Cwd => forms!(Cwd, w, w, shape::NONE; 2 2, 3 3; [NONE]),
        Op::Cbw => forms!(Cbw, w, w, shape::NONE; 2 2, 3 3; [NONE]),
        Op::Inc => one!(Inc),
        Op::Dec => one!(Dec),
        Op::Neg => one!(Neg),
        Op::Not => one!(Not),
        Op::Mul => one!(Mul),
        Op::Div => one!(Div),
        Op::Idiv => one!(Idiv),
        Op::Shl => shifts!(Shl),
        Op::Shr => shifts!(Shr),
        Op::Sar => shifts!(Sar),
        Op::Imul2 => forms!(Imul2, w, w, s; 2 2, 3 3; [RR SAME RM RX]),
        Op::Imul3 => forms!(Imul3, w, w, s; 2 2, 3 3; [RRI RMI RXI]),
        Op::Setcc(_) if s == shape::R => Some(setcc),
        Op::Cmov(_) => match (w, s) {
            (Width::B4, shape::RR) => Some(cmov::<2, { shape::RR }>),
            (Width::B4, shape::RM) => Some(cmov::<2, { shape::RM }>),
            (Width::B4, shape::RX) => Some(cmov::<2, { shape::RX }>),
            (Width::B8, shape::RR) => Some(cmov::<3, { shape::RR }>),
            (Width::B8, shape::RM) => Some(cmov::<3, { shape::RM }>),
            (Width::B8, shape::RX) => Some(cmov::<3, { shape::RX }>),
            _ => None,
        },
        Op::Jcc(cc) => {
            const ALL: [Run; 16] = [
                jcc::<0>, jcc::<1>, jcc::<2>, jcc::<3>, jcc::<4>, jcc::<5>, jcc::<6>, jcc::<7>,
                jcc::<8>, jcc::<9>, jcc::<10>, jcc::<11>, jcc::<12>, jcc::<13>, jcc::<14>,
                jcc::<15>,
            ];
            Some(ALL[cc as usize])
        }
        Op::Jmp => Some(jmp),
        Op::Call => Some(call),
        Op::CallInd => match s {
            shape::R => Some(call_indirect::<{ shape::R }>),
            shape::M => Some(call_indirect::<{ shape::M }>),
            shape::X => Some(call_indirect::<{ shape::X }>),
            _ => None,
        },
        Op::JmpInd => forms!(JmpInd, Width::B8, Width::B8, s; 3 3; [R M X]),
        Op::Ret => forms!(Ret, Width::B8, Width::B8, s; 3 3; [NONE I]),
        Op::Nop => Some(nop),
        _ => None,
    }
}
