//! Which exception a bad address is: #AC for a misaligned one under EFLAGS.AC, #SS(0) for a non-canonical one on the stack.

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::insn::{Insn, MemRef, Op, Operand, Width};
use crate::state::CpuState;
use crate::state::gpr::{RBP, RSP};
use crate::stop::{Exception, Stop};

/// AM in CR0.
const CR0_AM: u64 = 1 << 18;
/// AC in RFLAGS.
const AC: u64 = 1 << 18;

/// Whether misaligned data accesses raise #AC now.
#[inline]
#[must_use]
pub fn alignment_checked(s: &CpuState) -> bool {
    s.rflags & AC != 0 && s.sys.cr0 & CR0_AM != 0 && s.cpl == 3
}

/// Whether the upper bits of an address repeat its bit 47.
#[inline]
pub(crate) fn canonical(va: u64) -> bool {
    ((va as i64) << 16 >> 16) as u64 == va
}

/// The linear address of a memory operand.
fn linear(s: &CpuState, m: &MemRef) -> u64 {
    let register = |r: u8| {
        if r == MemRef::NONE {
            0
        } else {
            s.gpr[usize::from(r & 15)]
        }
    };
    let mut va = register(m.base)
        .wrapping_add(register(m.index) << (m.scale & 3))
        .wrapping_add(m.disp as u64);
    if m.addr32 {
        va &= 0xffff_ffff;
    }
    va.wrapping_add(s.seg.get(usize::from(m.seg)).map_or(0, |s| s.base))
}

/// Whether the instruction uses the stack beside its memory operand.
fn implicit_stack(op: Op) -> bool {
    matches!(
        op,
        Op::Push
            | Op::Pop
            | Op::Pushf
            | Op::Popf
            | Op::PushSeg
            | Op::PopSeg
            | Op::Enter
            | Op::Leave
            | Op::Call
            | Op::CallInd
            | Op::Ret
            | Op::Iret
            | Op::RetFar
            | Op::CallFar
    )
}

/// The stop of `i`, which has changed nothing, with the vector that it has on a stack access.
pub(super) fn named(s: &CpuState, i: &Insn, stop: Stop) -> Stop {
    // What is refused for its privilege is refused before its operand is looked at; thunks have been here.
    if stop != Stop::Exception(Exception::GENERAL_PROTECTION)
        || matches!(i.op, Op::Thunk | Op::Privileged | Op::Ins | Op::Outs)
    {
        return stop;
    }
    let near = |va: u64| !canonical(va.wrapping_sub(8)) || !canonical(va.wrapping_add(8));
    if i.op == Op::Pop && near(s.gpr[usize::from(RSP)]) {
        return as_stack(stop);
    }
    let m = &i.mem;
    // The offset of the operand's last byte.
    let last = match i.op {
        // These are #GP(0) if misaligned, but for an address that is not canonical itself.
        Op::Fxsave | Op::Fxrstor if linear(s, m) & 15 != 0 => 0,
        Op::Fxsave | Op::Fxrstor => 511,
        Op::Xsave | Op::Xrstor if linear(s, m) & 63 != 0 => 0,
        Op::Xsave | Op::Xrstor => 831,
        _ => 63,
    };
    if *m != MemRef::ABSENT && i.op != Op::Lea {
        let mut m = *m;
        if i.op == Op::Pop && m.base == RSP {
            m.disp = m.disp.wrapping_add(i64::from(i.width.bytes()));
        }
        let va = linear(s, &m);
        // Where a misaligned operand is #GP(0), it is that before it is a bad address.
        if i.op == Op::Cmpxchg16b && va & 15 != 0 {
            return stop;
        }
        let bit_string =
            matches!(i.op, Op::Bt | Op::Bts | Op::Btr | Op::Btc) && i.ops[0] == Operand::Mem;
        if bit_string || !canonical(va) || !canonical(va.wrapping_add(last)) {
            let on_stack = m.seg == MemRef::NONE && matches!(m.base, RSP | RBP);
            return if on_stack { as_stack(stop) } else { stop };
        }
    }
    let bad = match i.op {
        Op::Leave => near(s.gpr[usize::from(RBP)]),
        Op::Enter => near(s.gpr[usize::from(RSP)]) || near(s.gpr[usize::from(RBP)]),
        op => implicit_stack(op) && near(s.gpr[usize::from(RSP)]),
    };
    if bad { as_stack(stop) } else { stop }
}

fn as_stack(stop: Stop) -> Stop {
    crate::vcpu::Vcpu::as_stack_access(stop)
}

impl Interp<'_> {
    /// #AC for a misaligned access, where that is checked.
    #[inline(always)]
    pub(super) fn check_alignment(&mut self, w: Width, va: u64) -> Result<(), Halt> {
        if va & u64::from(w.bytes() - 1) != 0 {
            return self.misaligned(va, w.bytes().into());
        }
        Ok(())
    }

    #[cold]
    pub(super) fn bad_target(&mut self, back: Option<u64>) -> Result<(), Halt> {
        if let Some(back) = back {
            let sp = self.gpr(RSP, Width::B8).wrapping_sub(8);
            self.store(Width::B8, sp, back)?;
        }
        self.halt(Exception::GENERAL_PROTECTION)
    }

    /// #AC for an access of `size` bytes, more than one, where that is checked.
    #[cold]
    pub(super) fn misaligned(&mut self, va: u64, size: u64) -> Result<(), Halt> {
        if !alignment_checked(&self.v.state) {
            return Ok(());
        }
        // A byte whose address is not canonical comes first, a page fault after.
        if canonical(va) && canonical(va.wrapping_add(size - 1)) {
            self.halt(Exception::ALIGNMENT)
        } else {
            self.halt(Exception::GENERAL_PROTECTION)
        }
    }

    /// The stop of a thunk whose operand is at `va`, if that is aligned as the thunk wants it.
    #[cold]
    pub(super) fn named_thunk(&mut self, i: &Insn, va: u64, stop: Stop) -> Stop {
        let m = &i.mem;
        let on_stack = m.seg == MemRef::NONE && matches!(m.base, RSP | RBP);
        let reachable = canonical(va) && canonical(va.wrapping_add(127));
        if on_stack && stop == Stop::Exception(Exception::GENERAL_PROTECTION) && !reachable {
            return as_stack(stop);
        }
        stop
    }
}
