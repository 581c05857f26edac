//! Fills of L2 and LLC, and what becomes of victims at every level.

use super::access::{Cause, NOTHING};
use super::cache::Victim;
use super::data::Env;
use super::{Hier, Inclusion};
use crate::ctl::Domain;

impl Hier {
    /// The line is known not to be in the LLC.
    pub(super) fn fill_llc(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64, dirty: bool) {
        let (slot, victim) = self.llc.make_room(line, |_, _| 0);
        if let Some(v) = victim {
            self.llc_victim(env, cause, v);
        }
        self.llc.insert(slot, line, dirty);
    }

    fn llc_victim(&mut self, env: &Env<'_>, cause: &mut Cause, v: Victim) {
        let domain = self.pages.of(v.line).domain();
        let (dirty, held) = match self.inclusion {
            Inclusion::Inclusive => (self.drop_back(v.line) | v.dirty, false),
            Inclusion::NonInclusive => (v.dirty, self.held_above(v.line)),
        };
        if dirty {
            self.write_dram(env, Some(cause), v.line, domain, held);
        }
        if !held {
            self.pages.leave(env, v.line);
        }
    }

    /// The line is known not to be in L2.
    pub(super) fn fill_l2(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64, dirty: bool) {
        let core = cause.core;
        let c = &mut self.cores[core];
        let Some(l2) = &mut c.l2 else { return };
        let (slot, victim) = l2.make_room(line, |_, _| 0);
        if let Some(v) = victim {
            if v.dirty {
                c.counters.l2.write_backs += 1;
                let before = std::mem::replace(&mut self.in_flight[2], v.line);
                self.hand_to_llc(env, cause, v.line);
                self.in_flight[2] = before;
            } else {
                self.gone_clean(env, v.line);
            }
        }
        self.note_core(line, core);
        if let Some(l2) = &mut self.cores[core].l2 {
            l2.insert(slot, line, dirty);
        }
    }

    /// What L1D or L1I had to give up.
    #[inline]
    pub(super) fn l1_victim(&mut self, env: &Env<'_>, cause: &mut Cause, v: Victim) {
        if !v.dirty {
            self.dropped_clean(env, cause.core, v.line);
            return;
        }
        let c = &mut self.cores[cause.core];
        c.counters.l1d.write_backs += 1;
        if let Some(l2) = &mut c.l2
            && let Some(slot) = l2.find(v.line)
        {
            return l2.set_dirty(slot, true);
        }
        self.l1_victim_below(env, cause, v.line);
    }

    /// A dirty victim that L2 does not have.
    #[inline(never)]
    fn l1_victim_below(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64) {
        self.in_flight[1] = line;
        if self.cores[cause.core].l2.is_some() {
            self.fill_l2(env, cause, line, true);
        } else {
            self.hand_to_llc(env, cause, line);
        }
        self.in_flight[1] = NOTHING;
    }

    fn hand_to_llc(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64) {
        match self.llc.find(line) {
            Some(slot) => self.llc.set_dirty(slot, true),
            None => self.fill_llc(env, cause, line, true),
        }
    }

    /// A private cache of `core` dropped a clean line: it may have been the last copy.
    #[inline]
    fn dropped_clean(&mut self, env: &Env<'_>, core: usize, line: u64) {
        if self.inclusion == Inclusion::Inclusive {
            return;
        }
        // Mostly an L1 drops what its L2 has.
        let l2 = self.cores[core].l2.as_ref();
        if l2.is_none_or(|l2| l2.find(line).is_none()) {
            self.gone_clean(env, line);
        }
    }

    /// The same of one that the core's L2 does not have.
    #[inline]
    fn gone_clean(&mut self, env: &Env<'_>, line: u64) {
        if self.inclusion != Inclusion::Inclusive && !self.held(line) {
            self.pages.leave(env, line);
        }
    }

    /// Whether any cache has the line, or it is on its way into one.
    #[inline(never)]
    fn held(&self, line: u64) -> bool {
        self.llc.find(line).is_some() || self.held_above(line)
    }

    /// The same of a line that the LLC does not have.
    #[inline(never)]
    fn held_above(&self, line: u64) -> bool {
        let page = self.pages.of(line);
        let mut cores = self.cores.iter().enumerate();
        self.in_flight.contains(&line) || cores.any(|(i, c)| page.may_have(i) && c.holds(line))
    }

    /// A dirty line goes to DRAM; `stays`: it is still in a cache. Without a cause nobody pays and nothing is counted.
    pub(super) fn write_dram(
        &mut self,
        env: &Env<'_>,
        cause: Option<&mut Cause>,
        line: u64,
        domain: Domain,
        stays: bool,
    ) {
        if let Some(cause) = cause {
            let encrypted = domain != Domain::Shared;
            let c = &mut self.cores[cause.core];
            let took = self.dram.write(&mut c.busy, line, encrypted, cause.now);
            c.counters.row(took.row);
            c.counters.llc.write_backs += 1;
            if encrypted {
                c.counters.dram_writes_encrypted += 1;
            } else {
                c.counters.dram_writes_plain += 1;
            }
            cause.stalls.write_back += took.dram + took.aes;
        }
        if let Domain::Private(asid) = domain {
            self.pages.write_back(env, line, asid, stays);
        }
    }
}
