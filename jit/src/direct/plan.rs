//! Which host registers stand for the guest's in one copy.

use super::uses::{Uses, touches};
use super::{A, Homes};
use iced_x86::Instruction;
use sevlab_cpu::insn::{Control, Insn, MemRef};

/// Which host registers stand for what in one block.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) hosts: [u8; 16],
    /// Guest registers that come from the state's memory, with the guest registers whose hosts they get meanwhile.
    pub(super) moved: [(u8, u8); 5],
    pub(super) count: usize,
    /// Guest registers that are written.
    pub(super) written: u16,
}

impl Plan {
    /// The registers of a block, and how many of its instructions there are enough for.
    pub(super) fn of(homes: &Homes, insns: &[(Instruction, Option<Uses>)]) -> (Self, usize) {
        let homeless = (0..16).filter(|&r| homes[r].is_none());
        let homeless = homeless.fold(0u16, |all, r| all | 1 << r);
        let (mut used, mut written, mut n) = (0u16, 0u16, 0);
        for (_, uses) in insns {
            let u = uses.unwrap_or_default();
            let all = used | u.used | u.written;
            if (all & homeless).count_ones() > (!all & !homeless).count_ones() {
                break;
            }
            (used, written, n) = (all, written | u.written, n + 1);
        }
        let mut plan = Self {
            hosts: homes.map(|h| h.unwrap_or(A)),
            moved: [(0, 0); 5],
            count: 0,
            written,
        };
        // The last ones are callee's, and mostly of the same functions that do not use them.
        let mut free = (0..16u8).rev().filter(|r| !(used | homeless) >> r & 1 != 0);
        for r in (0..16u8).filter(|r| used & homeless & 1 << r != 0) {
            let Some(from) = free.next() else { break };
            plan.hosts[usize::from(r)] = homes[usize::from(from)].unwrap_or(A);
            plan.moved[plan.count] = (r, from);
            plan.count += 1;
        }
        (plan, n)
    }

    /// Host registers that addresses are made of before there is a way out, and that do not change.
    pub(super) fn constant_bases(
        &self,
        insns: &[Insn],
        decoded: &[(Instruction, Option<Uses>)],
    ) -> u16 {
        let mut bases = 0u16;
        for (i, (ins, uses)) in insns.iter().zip(decoded) {
            if uses.is_none() {
                break;
            }
            let m = &i.mem;
            if touches(i, ins)
                && m.base != MemRef::NONE
                && (m.index, m.seg) == (MemRef::NONE, MemRef::NONE)
            {
                bases |= 1 << (m.base & 15);
            }
            if i.control != Control::Next {
                break;
            }
        }
        let moved = self.moved.iter().take(self.count);
        let changes = moved.fold(self.written, |all, m| all | 1 << m.0 | 1 << m.1);
        let constant = (0..16u8).filter(|r| bases & !changes & 1 << r != 0);
        constant.fold(0, |all, r| all | 1 << self.host(r))
    }

    /// The host register that a guest register is in.
    pub(super) fn host(&self, r: u8) -> u8 {
        self.hosts[usize::from(r & 15)]
    }
}
