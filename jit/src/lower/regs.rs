//! The guest's registers in the block being translated: where each value is, and what a new one makes stale.

use super::{Gpr, Home, Lower, state_flags};
use crate::layout;
use cranelift_codegen::ir::{InstBuilder, Value, types};

impl Lower<'_, '_> {
    pub(super) fn gpr_full(&mut self, r: u8) -> Value {
        let r = r as usize;
        match self.gprs[r].full {
            Home::Value(v) => v,
            Home::Var => {
                if self.needed[self.at].gprs >> r & 1 == 0 {
                    self.undeclared = Some(self.insn.rip);
                }
                let v = self.fb.use_var(self.gpr_var[r]);
                self.gprs[r].full = Home::Value(v);
                v
            }
            Home::Memory => {
                let p = self.pinned();
                let v = self
                    .fb
                    .ins()
                    .load(types::I64, state_flags(), p, layout::gpr(r));
                self.gprs[r].full = Home::Value(v);
                self.know_slot(r, v);
                v
            }
        }
    }

    pub(super) fn set_gpr_full(&mut self, r: u8, v: Value, low: Option<Value>) {
        if self.used_gprs >> r & 1 == 0 {
            self.undeclared = Some(self.insn.rip);
        }
        self.gprs[r as usize] = Gpr {
            full: Home::Value(v),
            low,
        };
        self.dirty_gprs |= 1 << r;
        self.written.gprs |= 1 << r;
    }

    pub(super) fn vec_low(&mut self, r: usize) -> Value {
        self.read_raising |= std::mem::take(&mut self.vecs[r].raises.0);
        match self.vecs[r].low {
            Home::Value(v) => v,
            Home::Var => {
                if self.needed[self.at].vecs >> r & 1 == 0 {
                    self.undeclared = Some(self.insn.rip);
                }
                let v = self.fb.use_var(self.vec_var[r]);
                self.vecs[r].low = Home::Value(v);
                v
            }
            Home::Memory => {
                let p = self.pinned();
                let v = self
                    .fb
                    .ins()
                    .load(types::I8X16, state_flags(), p, layout::xmm(r));
                self.vecs[r].low = Home::Value(v);
                v
            }
        }
    }

    pub(super) fn vec_high(&mut self, r: usize) -> Value {
        self.read_raising |= std::mem::take(&mut self.vecs[r].raises.1);
        match self.vecs[r].high {
            Home::Value(v) => v,
            Home::Var => {
                if self.needed[self.at].highs >> r & 1 == 0 {
                    self.undeclared = Some(self.insn.rip);
                }
                let v = self.fb.use_var(self.vech_var[r]);
                self.vecs[r].high = Home::Value(v);
                v
            }
            Home::Memory => {
                let p = self.pinned();
                let v = self
                    .fb
                    .ins()
                    .load(types::I8X16, state_flags(), p, layout::ymmh(r));
                self.vecs[r].high = Home::Value(v);
                v
            }
        }
    }

    /// Before half a register is overwritten: if it holds a floating-point result that nobody used, a store keeps the
    /// operation from being dropped.
    pub(super) fn keep_raising(&mut self, r: usize, high: bool) {
        let half = &mut self.vecs[r];
        let (unused, home) = if high {
            (std::mem::take(&mut half.raises.1), half.high)
        } else {
            (std::mem::take(&mut half.raises.0), half.low)
        };
        if let (true, Home::Value(old)) = (unused, home) {
            // A pointer that nobody else has: of two stores to one place the mid-end may drop the first.
            let p = self.fb.ins().get_pinned_reg(types::I64);
            self.fb.ins().store(state_flags(), old, p, layout::DISCARD);
        }
    }

    pub(super) fn set_vec_low(&mut self, r: usize, v: Value) {
        if self.used_vecs >> r & 1 == 0 {
            self.undeclared = Some(self.insn.rip);
        }
        self.keep_raising(r, false);
        self.vecs[r].low = Home::Value(v);
        self.dirty_vecs |= 1 << r;
        self.written.vecs |= 1 << r;
    }

    pub(super) fn set_vec_high(&mut self, r: usize, v: Value) {
        if self.used_highs >> r & 1 == 0 {
            self.undeclared = Some(self.insn.rip);
        }
        self.keep_raising(r, true);
        self.vecs[r].high = Home::Value(v);
        self.dirty_highs |= 1 << r;
        self.written.highs |= 1 << r;
    }
}
