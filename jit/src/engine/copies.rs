//! Blocks that run as copies of the guest's own instructions: when, and where they are noted. What a copy is, is in
//! [`crate::direct`].

use super::Engine;
use crate::direct;
use sevlab_cpu::Vcpu;
use sevlab_cpu::insn::Insn;

impl Engine {
    /// Readies this thread for the copies of a vCPU, if it may have some: its view begins at `view`.
    pub(super) fn prepare_direct(&mut self, vcpu: &Vcpu, view: Option<u64>) {
        self.direct = self.direct.take().filter(|_| view.is_some());
        if let Some(base) = view
            && self.options.direct != 0
            && self.views(vcpu)
            && direct::is_possible()
        {
            direct::set_gs(base);
            self.direct.get_or_insert_with(direct::Maker::new);
        }
    }

    /// Has a block that runs in the interpreter run as it is.
    pub(super) fn make_direct(&mut self, vcpu: &mut Vcpu, rip: u64) {
        let Some(maker) = &mut self.direct else {
            return;
        };
        let Some(block) = vcpu.interp.block(rip).filter(|b| b.wants_direct()) else {
            return;
        };
        let insns: Vec<Insn> = block.insns().collect();
        let Some(made) = maker.make(&insns) else {
            block.set_direct(0, 0, false);
            return;
        };
        match self.shared.code.append(&made.code) {
            Ok(at) => {
                self.faults.direct.insert(at, made.sites.into());
                block.set_direct(at, made.insns, made.needs_flags);
                self.stats.direct += 1;
            }
            Err(_) => self.full = true,
        }
    }
}
