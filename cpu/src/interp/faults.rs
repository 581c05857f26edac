//! Which exception a bad address is: #AC for a misaligned one under EFLAGS.AC, #SS(0) for a non-canonical one on the stack.

use super::{Halt, Interp};
use crate::insn::{Insn, MemRef, Op, Width};
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

fn canonical(va: u64) -> bool {
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
    if stop != Stop::Exception(Exception::GENERAL_PROTECTION) {
        return stop;
    }
    let m = &i.mem;
    let size = 63; // no operand but the XSAVE area, which begins at the lowest address, is larger
    if *m != MemRef::ABSENT && i.op != Op::Lea {
        let mut m = *m;
        if i.op == Op::Pop && m.base == RSP {
            m.disp = m.disp.wrapping_add(i64::from(i.width.bytes()));
        }
        let va = linear(s, &m);
        if !canonical(va) || !canonical(va.wrapping_add(size)) {
            let on_stack = m.seg == MemRef::NONE && matches!(m.base, RSP | RBP);
            return if on_stack { as_stack(stop) } else { stop };
        }
    }
    let near = |va: u64| !canonical(va.wrapping_sub(8)) || !canonical(va.wrapping_add(8));
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
            return self.misaligned();
        }
        Ok(())
    }

    #[cold]
    pub(super) fn misaligned(&mut self) -> Result<(), Halt> {
        if alignment_checked(&self.v.state) {
            return self.halt(Exception::ALIGNMENT);
        }
        Ok(())
    }
}
