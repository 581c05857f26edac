//! Waiting in simulated time: a vCPU that waits for a time is in the queue of turns with that time, one that waits for
//! others of its machine sleeps until one rings, and what may come from outside is waited for in the host's time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sevlab_cpu::Vcpu;

use super::Hypervisor;
use crate::doorbell::{Deadline, host_now};
use crate::simtime::{NEVER, SimTime, advance};

/// Results of [`HALT`](crate::kernel::outside::machine_call::HALT).
pub mod halted {
    /// The time is up.
    pub const UP: i64 = 0;
    /// The doorbell has rung, or a signal came.
    pub const RUNG: i64 = 1;
    /// Others have run.
    pub const OTHERS: i64 = 2;
    /// No other vCPU can run.
    pub const ALONE: i64 = 3;
}

impl Hypervisor {
    /// [`HALT`](crate::kernel::outside::machine_call::HALT).
    pub(super) fn halt(&mut self, vcpu: &mut Vcpu, time: &SimTime, a: [u64; 6]) -> i64 {
        let (seen, until, outside, looks) = (a[0] as u32, a[1], a[2] != 0, a[3] != 0);
        let now = vcpu.cycles();
        time.waits(self.cpu, now);
        if self.rung(vcpu, seen) {
            return halted::RUNG;
        }
        let next = vcpu.next_key();
        if looks {
            return self.look(vcpu, time, seen, until, next, outside);
        }
        if until != NEVER && !(outside && next.is_none()) {
            vcpu.wait_turn(until.max(now), false);
            let rung = self.rung(vcpu, seen);
            let by = if rung { time.rung(self.cpu) } else { until };
            advance(vcpu, by.min(until));
            return i64::from(rung);
        }
        // Only a ring or the outside can end this.
        let real = match until {
            NEVER => Deadline::Never,
            until => {
                let wait = time.nanos(until.saturating_sub(now));
                Deadline::Monotonic(host_now().saturating_add(Duration::from_nanos(wait)))
            }
        };
        let bell = self.calls.doorbell();
        bell.halt(true);
        vcpu.give_turn();
        let request = &vcpu.state.exit_request;
        let rung = match a[4] {
            0 => bell.wait(request, seen, real),
            fd => bell.wait_at(request, fd as i32 - 1, a[5] as i16, real),
        };
        match (rung, time.rung(self.cpu)) {
            (false, _) => advance(vcpu, until),
            (true, NEVER) => self.waited = true,
            (true, by) => advance(vcpu, by.min(until)),
        }
        vcpu.set_turn_key(vcpu.cycles());
        vcpu.join_queue();
        bell.halt(false);
        i64::from(rung)
    }

    /// Lets the others run, if any can, so that the guest kernel may look again.
    fn look(
        &mut self,
        vcpu: &mut Vcpu,
        time: &SimTime,
        seen: u32,
        until: u64,
        next: Option<u64>,
        outside: bool,
    ) -> i64 {
        let now = vcpu.cycles();
        let Some(next) = next else {
            if until == NEVER || outside {
                return halted::ALONE;
            }
            advance(vcpu, until);
            return halted::UP;
        };
        let key = next.max(now).saturating_add(1).min(until.max(now));
        vcpu.wait_turn(key, true);
        let rung = self.rung(vcpu, seen);
        // It is that late, or somebody wanted it earlier; and what the others did, they had done by then.
        let at = if rung { time.rung(self.cpu) } else { key };
        let at = if at == NEVER { now } else { at };
        advance(vcpu, at.max(time.now()).min(until));
        if rung {
            halted::RUNG
        } else if vcpu.cycles() >= until {
            halted::UP
        } else {
            halted::OTHERS
        }
    }

    fn rung(&self, vcpu: &Vcpu, seen: u32) -> bool {
        self.calls.doorbell().rings() != seen || vcpu.state.exit_request.load(Ordering::SeqCst) != 0
    }
}
