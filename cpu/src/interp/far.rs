//! Far jumps, calls and returns to the code segment that runs already.
//!
//! No descriptor table is visible, so every other selector is one that may not be loaded: #GP with it. (A real Linux process
//! can also go to the 32-bit code segment; compatibility mode is not part of this machine.)

use iced_x86::Code;

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::insn::{Insn, Op, Operand, Width};
use crate::state::gpr::RSP;
use crate::state::seg;
use crate::stop::Exception;

const B8: Width = Width::B8;

/// The operand size: of the offset, and of what is on the stack.
fn width(i: &Insn) -> Width {
    match Code::try_from(usize::from(i.code)) {
        Ok(Code::Jmp_m1616 | Code::Call_m1616 | Code::Retfw | Code::Retfw_imm16) => Width::B2,
        Ok(Code::Jmp_m1664 | Code::Call_m1664 | Code::Retfq | Code::Retfq_imm16) => Width::B8,
        _ => Width::B4,
    }
}

impl Interp<'_> {
    pub(super) fn far(&mut self, i: &Insn) -> Result<(), Halt> {
        let w = width(i);
        let n = u64::from(w.bytes());
        let sp = self.gpr(RSP, B8);
        let from = if i.op == Op::RetFar {
            sp
        } else {
            self.address(&i.mem)
        };
        let rip = self.load(w, from)?;
        let select = if i.op == Op::RetFar { w } else { Width::B2 };
        let cs = self.load(select, from.wrapping_add(n))? as u16;
        let here = self.v.state.seg[seg::CS].selector;
        if cs != here {
            return self.halt(Exception {
                error: Some(u32::from(cs & !3)),
                ..Exception::GENERAL_PROTECTION
            });
        }
        if ((rip as i64) << 16 >> 16) as u64 != rip {
            return self.halt(Exception::GENERAL_PROTECTION);
        }
        match i.op {
            Op::RetFar => {
                let extra = match i.ops[0] {
                    Operand::Imm(k) => k as u64 & 0xffff,
                    _ => 0,
                };
                self.set_gpr(RSP, B8, sp.wrapping_add(2 * n + extra));
            }
            Op::CallFar => {
                let (first, second) = (sp.wrapping_sub(n), sp.wrapping_sub(2 * n));
                self.load_rmw(w, first)?;
                let back = self.next & w.mask();
                self.store(w, second, back)?;
                self.store(w, first, u64::from(here))?;
                self.set_gpr(RSP, B8, second);
            }
            _ => {}
        }
        self.v.state.rip = rip;
        Ok(())
    }
}
