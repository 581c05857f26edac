//! Running blocks as a core of a simulated machine: the clock, the fetches and the tally of every instruction.

use super::{Block, Interp, completed};
use crate::insn::{Control, Insn, Op, Rep};
use crate::model::trace::TraceEvent;
use crate::sem;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Runs `f` as guest code.
#[inline]
fn as_guest<R>(v: &mut Vcpu, f: impl FnOnce(&mut Vcpu) -> R) -> R {
    let outer = core::mem::replace(&mut v.modelled, true);
    let result = f(v);
    v.modelled = outer;
    result
}

/// Whether the turn is over.
pub(super) fn turn_over(v: &Vcpu) -> bool {
    v.clock() >= v.state.stop_at
}

/// As [`super::run`].
pub(super) fn run(v: &mut Vcpu, block: &Block) -> Result<(), Stop> {
    as_guest(v, |v| {
        let epoch = v.code_epoch;
        v.enter_code(block.rip);
        // Mostly it fits the turn, and nobody watches.
        let room = v.state.stop_at.saturating_sub(v.clock());
        let watched = v.trace.is_some() || block.repeats || room < block.steps.len() as u64;
        let mut it = Interp::new(v);
        for (k, (c, s)) in block.counted.iter().zip(&block.steps).enumerate() {
            it.v.state.rip = block.rip.wrapping_add(u64::from(c.at));
            if watched {
                if turn_over(it.v) {
                    return Err(Stop::Budget);
                }
                it.v.tell_begin(&block.kept[k]);
            }
            if c.fetches {
                it.v.fetch_lines(&block.kept[k])?;
            }
            if (s.run)(&mut it, s, block).is_err() {
                let stop = it.take_stop(&block.kept[k]);
                if completed(&stop) {
                    complete(v, c.tally);
                }
                return Err(stop);
            }
            complete(it.v, c.tally);
            if watched {
                after_repeats(it.v, &block.kept[k]);
            }
            if it.v.code_epoch != epoch {
                let i = &block.kept[k];
                if i.control == Control::Next {
                    it.v.state.rip = i.next_rip();
                    return Ok(());
                }
            }
        }
        if block.falls_through {
            v.state.rip = block.end;
        }
        Ok(())
    })
}

/// As [`super::exec`], of an instruction whose tally is known.
pub(super) fn exec(v: &mut Vcpu, i: &Insn, tally: u64) -> Result<(), Stop> {
    as_guest(v, |v| {
        v.state.rip = i.rip;
        v.enter_code(i.rip);
        v.tell_begin(i);
        v.fetch_lines(i)?;
        let mut it = Interp::new(v);
        it.next = i.next_rip();
        if sem::exec(&mut it, i).is_err() {
            let stop = it.take_stop(i);
            if completed(&stop) {
                complete(v, tally);
            }
            return Err(stop);
        }
        if i.control == Control::Next {
            v.state.rip = i.next_rip();
        }
        complete(v, tally);
        after_repeats(v, i);
        Ok(())
    })
}

#[inline(always)]
fn complete(v: &mut Vcpu, tally: u64) {
    v.state.retired += 1;
    v.state.tally = v.state.tally.wrapping_add(tally);
    v.tell(|core| TraceEvent::Retired { core });
}

/// A repeated instruction takes the clock on by more than one: a piece of code ends with it.
#[inline(always)]
fn after_repeats(v: &mut Vcpu, i: &Insn) {
    if i.rep != Rep::None {
        v.enter_code(i.next_rip());
    }
}

impl Interp<'_> {
    /// An iteration of a repeated instruction is done: `more` if the instruction goes on.
    #[inline]
    pub(super) fn iterated(&mut self, op: Op, times: u64, more: bool) {
        if let Some(m) = &self.v.model {
            let (iteration, repeat) = (m.costs.iteration(op), m.costs.repeat());
            let again = times - u64::from(!more);
            let s = &mut self.v.state;
            s.tally = s
                .tally
                .wrapping_add(iteration.wrapping_mul(times))
                .wrapping_add(repeat * again);
            s.repeats += again;
            // With a trace there is one at a time.
            self.v.tell(|core| TraceEvent::Iterated { core, more });
        }
    }

    /// How many iterations the turn has room for, at least one.
    pub(super) fn room(&self) -> u64 {
        self.v.state.stop_at.saturating_sub(self.v.clock()).max(1)
    }
}
