//! The short way of an access that the core's own caches serve: L1, or L2 with an L1 victim that L2 has too. It does what
//! [`super::access`] does, in less words; whatever is not so simple is left to that, before anything has changed.

use super::access::{Cause, enter_data, enter_fetch};
use super::cache::Victim;
use super::counters::CountKind;
use super::data::{Env, LINE_SHIFT};
use super::l1::{Filter, L1};
use super::{Core, Hier, Level, Line, LineKind, Served, Stalls};

/// How much of it there was to do.
enum Near {
    First,
    Second,
}

impl Core {
    /// Makes room in an L1 for a line that L2 has at `at`; the slot. `None`, with nothing changed, if that takes more than L1 and L2.
    #[inline(always)] // twice, for L1I and L1D
    fn exchange<F: Filter>(
        l1: &mut L1<F>,
        l2: &mut super::cache::Cache,
        at: usize,
        line: u64,
    ) -> Option<(usize, bool)> {
        let (slot, victim) = l1.least(line)?;
        let mut written = false;
        if let Some(Victim { line: out, dirty }) = victim {
            let below = l2.find(out)?;
            if dirty {
                l2.set_dirty(below, true);
                written = true;
            }
        }
        l2.hit(at, line);
        l1.empty(slot);
        Some((slot, written))
    }

    #[inline]
    fn near_data(&mut self, env: &Env<'_>, line: u64, a: &Line, write: bool) -> Option<Near> {
        if let Some(slot) = self.l1d.cache.find(line) {
            if write {
                self.l1d.cache.set_dirty(slot, true);
            }
            self.l1d.hit(slot, line, a.stamp);
            enter_data(env, &mut self.l1d, slot, line, a);
            return Some(Near::First);
        }
        let l2 = self.l2.as_mut()?;
        let at = l2.find(line)?;
        let (slot, written) = Self::exchange(&mut self.l1d, l2, at, line)?;
        let kind = CountKind::of(a.kind) as usize;
        self.counters.l1d.misses[kind] += 1;
        self.counters.l2.hits[kind] += 1;
        self.counters.l1d.write_backs += u64::from(written);
        self.l1d.insert(slot, line, write, a.stamp);
        enter_data(env, &mut self.l1d, slot, line, a);
        Some(Near::Second)
    }

    #[inline]
    fn near_fetch(&mut self, env: &Env<'_>, line: u64, a: &Line) -> Option<Near> {
        if let Some(slot) = self.l1i.cache.find(line) {
            self.l1i.hit(slot, line, a.stamp);
            enter_fetch(env, &mut self.l1i, slot, line, a);
            return Some(Near::First);
        }
        let l2 = self.l2.as_mut()?;
        let at = l2.find(line)?;
        let (slot, _) = Self::exchange(&mut self.l1i, l2, at, line)?;
        self.counters.l1i.misses[CountKind::Fetch as usize] += 1;
        self.counters.l2.hits[CountKind::Fetch as usize] += 1;
        self.l1i.insert(slot, line, false, a.stamp);
        enter_fetch(env, &mut self.l1i, slot, line, a);
        Some(Near::Second)
    }
}

impl Hier {
    /// As [`Hier::access`]; `None`, with nothing changed, if that has to do it.
    #[inline]
    pub(super) fn near(&mut self, env: &Env<'_>, core: usize, a: &Line) -> Option<Served> {
        let line = a.spa.0 >> LINE_SHIFT;
        let page = self.pages.of(line);
        // Nobody else has the page: a store claims nothing, and no copy is dirty elsewhere.
        if !page.has(line) || page.domain() != a.domain || page.others(core) {
            return None;
        }
        let c = &mut self.cores[core];
        let near = match a.kind {
            LineKind::Load => c.near_data(env, line, a, false)?,
            LineKind::Store => c.near_data(env, line, a, true)?,
            LineKind::Fetch => c.near_fetch(env, line, a)?,
            _ => return None,
        };
        let mut served = Served {
            host: env.host(line, a.domain),
            level: Level::L1,
            stalls: Stalls::default(),
        };
        if let Near::Second = near {
            served.level = Level::L2;
            served.stalls.cache = self.l2_cycles;
            if self.prefetches && a.kind != LineKind::Fetch {
                let mut cause = Cause::new(core, a.now);
                self.after_miss(env, &mut cause, line, a.domain);
            }
        }
        Some(served)
    }
}
