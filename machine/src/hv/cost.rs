//! What exits cost (`[exit]` of a model): charged to the vCPU whose exit it is, where it happens.

use sevlab_arch::exit::ExitCode;
use sevlab_cpu::Vcpu;
use sevlab_cpu::model::Cause;
use sevlab_memctl::model::ExitCosts;

use super::Hypervisor;
use crate::simtime::advance;

/// Charges `times` events of one kind. Nothing without a model.
pub(crate) fn charge(vcpu: &mut Vcpu, cause: Cause, times: u64) {
    let Some(model) = &vcpu.model else { return };
    let cycles = cycles(&model.model.exit, cause);
    vcpu.charge_events(times, times * cycles, cause);
}

/// Cycles of one event.
pub(crate) fn cycles(exit: &ExitCosts, cause: Cause) -> u64 {
    u64::from(match cause {
        Cause::Syscall => exit.syscall_cycles,
        Cause::Fault => exit.fault_cycles,
        Cause::Vmrun => exit.vmrun_cycles,
        Cause::EsState => exit.es_state_cycles,
        Cause::Ghcb => exit.ghcb_cycles,
        Cause::Vc => exit.vc_cycles,
        Cause::Pvalidate => exit.pvalidate_cycles,
        Cause::Rmpadjust => exit.rmpadjust_cycles,
        Cause::Rmpupdate => exit.rmpupdate_cycles,
        // Launch is before the guest's time, waiting has no fixed cost.
        Cause::Launch | Cause::Idle => 0,
    })
}

impl Hypervisor {
    /// A #VMEXIT from which the guest is going to return.
    pub(crate) fn charge_exit(&self, vcpu: &mut Vcpu, code: ExitCode) {
        if self.time.as_ref().is_none_or(|time| time.looks(self.cpu)) {
            return;
        }
        charge(vcpu, Cause::Vmrun, 1);
        if self.mode.encrypted_state() {
            charge(vcpu, Cause::EsState, 1);
            if code == ExitCode::VMGEXIT {
                charge(vcpu, Cause::Ghcb, 1);
            }
        }
    }

    /// The vCPU is about to run again: what was done to the RMP for it is charged, and its time decides on its turn.
    pub(crate) fn resumes(&self, vcpu: &mut Vcpu) {
        if self.time.is_some() {
            let updates = self.memory().take_updates();
            charge(vcpu, Cause::Rmpupdate, updates);
            vcpu.set_turn_key(vcpu.cycles());
        }
    }

    /// It runs again. If it has waited for others, it goes on when they are done.
    pub(crate) fn resumed(&mut self, vcpu: &mut Vcpu) {
        if std::mem::take(&mut self.waited)
            && let Some(time) = &self.time
        {
            advance(vcpu, time.now());
        }
    }
}
