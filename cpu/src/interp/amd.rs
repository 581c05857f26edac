//! What AMD's processors have and the host may not: SSE4a, CLZERO, MONITORX and MWAITX, RDPRU.

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::insn::{Insn, Op, Operand, Width};
use crate::state::gpr::{RAX, RCX, RDX};
use crate::state::{CpuState, Lane};
use crate::stop::{Exception, Intercept, InterceptKind, Stop};

const B4: Width = Width::B4;
const B8: Width = Width::B8;
/// Bytes of a line, for CLZERO.
const LINE: u64 = 64;
const CR4_TSD: u64 = 1 << 2;
/// Registers that RDPRU reads: MPERF and APERF.
const RDPRU_REGISTERS: u64 = 2;

/// A bit field of a quadword: (mask before shifting, shift). A length of 0 is 64 bits; what passes bit 63 is undefined, and
/// here is cut off.
fn field(length: u64, index: u64) -> (u64, u32) {
    let length = length & 63;
    let mask = if length == 0 {
        u64::MAX
    } else {
        (1 << length) - 1
    };
    (mask, (index & 63) as u32)
}

fn imm(i: &Insn, n: usize) -> Option<u64> {
    match i.ops[n] {
        Operand::Imm(v) => Some(v as u64),
        _ => None,
    }
}

fn lane(s: &CpuState, o: Operand) -> Lane {
    match o {
        Operand::Vec(r) => s.xmm[usize::from(r & 15)],
        _ => Lane::default(),
    }
}

impl Interp<'_> {
    pub(super) fn amd(&mut self, i: &Insn) -> Result<(), Halt> {
        match i.op {
            Op::Extrq => {
                let (mask, shift) = match (imm(i, 1), imm(i, 2)) {
                    (Some(length), Some(index)) => field(length, index),
                    _ => {
                        let control = lane(&self.v.state, i.ops[1]).0[0];
                        field(control, control >> 8)
                    }
                };
                self.change_low(i, |old| old >> shift & mask);
                Ok(())
            }
            Op::Insertq => {
                let from = lane(&self.v.state, i.ops[1]).0;
                let (mask, shift) = match (imm(i, 2), imm(i, 3)) {
                    (Some(length), Some(index)) => field(length, index),
                    _ => field(from[1], from[1] >> 8),
                };
                self.change_low(i, |old| old & !(mask << shift) | (from[0] & mask) << shift);
                Ok(())
            }
            Op::Movnts => {
                let v = lane(&self.v.state, i.ops[1]).0[0];
                let va = self.address(&i.mem);
                self.store(i.width, va, v & i.width.mask())
            }
            Op::Clzero => {
                let va = self.implicit_address(i) & !(LINE - 1);
                let r = self.v.write(va, &[0; LINE as usize]);
                self.lift(r)
            }
            // Nothing is watched: MWAITX ends its wait at once, as it may for any reason.
            Op::Monitorx => {
                if self.gpr(RCX, B4) != 0 {
                    return self.halt(Exception::GENERAL_PROTECTION);
                }
                let va = self.implicit_address(i);
                self.load(Width::B1, va)?;
                Ok(())
            }
            Op::Mwaitx => {
                if self.gpr(RCX, B4) & !3 != 0 {
                    return self.halt(Exception::GENERAL_PROTECTION);
                }
                std::thread::yield_now();
                Ok(())
            }
            _ => self.rdpru(i),
        }
    }

    /// The low quadword of the destination becomes `f` of itself. The high one is undefined, and zero as on AMD's processors.
    fn change_low(&mut self, i: &Insn, f: impl FnOnce(u64) -> u64) {
        if let Operand::Vec(r) = i.ops[0] {
            let lane = &mut self.v.state.xmm[usize::from(r & 15)].0;
            *lane = [f(lane[0]), 0];
        }
    }

    /// The address in rAX of an instruction without a memory operand of its own.
    fn implicit_address(&mut self, i: &Insn) -> u64 {
        let mut m = i.mem;
        m.base = RAX;
        self.address(&m)
    }

    /// MPERF and APERF run at the speed of the TSC, whose reading is the hypervisor's business.
    fn rdpru(&mut self, i: &Insn) -> Result<(), Halt> {
        if self.v.state.sys.cr4 & CR4_TSD != 0 && self.v.state.cpl != 0 {
            return self.halt(Exception::INVALID_OPCODE);
        }
        if self.gpr(RCX, B4) < RDPRU_REGISTERS {
            return self.halt(Stop::Intercept(Intercept {
                kind: InterceptKind::Rdtsc,
                len: i.len,
            }));
        }
        self.set_gpr(RAX, B8, 0);
        self.set_gpr(RDX, B8, 0);
        self.v.state.rip = self.next;
        Ok(())
    }
}
