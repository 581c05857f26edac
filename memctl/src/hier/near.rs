//! The short way of an access that the core's own caches serve: L1, or L2 with an L1 victim that L2 has too. It does what
//! [`super::access`] does, in few words, for sets of up to 8 ways; whatever is not so simple is left to that, before anything
//! has changed.

use std::ptr::NonNull;

use super::access::{enter_data, enter_fetch};
use super::cache::Cache;
use super::counters::CountKind;
use super::data::{Env, LINE_SHIFT};
use super::filter::Filter;
use super::l1::L1;
use super::{Core, Hier, Inclusion, Line, LineKind};

/// Who served it: L1, or L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Near {
    /// L1.
    First(NonNull<u8>),
    /// L2.
    Second(NonNull<u8>),
}

/// What bringing a line from L2 into an L1 comes to.
struct Exchange {
    slot: usize,
    /// Where L2 has the line.
    at: usize,
    /// Where L2 has a dirty victim.
    below: Option<usize>,
}

/// Finds out what there is to do, and does nothing; `None` if it is more than L1 and L2.
#[inline(always)] // twice, for L1I and L1D
fn exchange<F: Filter>(
    l1: &mut L1<F>,
    l2: &Cache,
    line: u64,
    clean_may_go: bool,
) -> Option<Exchange> {
    let at = l2.find_in_8(line)?;
    let (slot, victim) = l1.least_of_8(line)?;
    let below = match victim {
        None => None,
        Some(v) => match l2.find_in_8(v.line) {
            None if v.dirty || !clean_may_go => return None,
            below => below.filter(|_| v.dirty),
        },
    };
    Some(Exchange { slot, at, below })
}

impl Core {
    #[inline]
    fn near_data(
        &mut self,
        env: &Env<'_>,
        line: u64,
        a: &Line,
        clean_may_go: bool,
        trains: bool,
    ) -> Option<bool> {
        let write = a.kind == LineKind::Store;
        if let Some(slot) = self.l1d.cache.find_in_8(line) {
            if write {
                self.l1d.cache.set_dirty(slot, true);
            }
            self.l1d.hit(slot, line, a.stamp);
            enter_data(env, &mut self.l1d, slot, line, a);
            return Some(false);
        }
        let l2 = self.l2.as_mut()?;
        if trains && self.strides.would_fetch(line) {
            return None;
        }
        let x = exchange(&mut self.l1d, l2, line, clean_may_go)?;
        if trains {
            self.strides.train(line);
        }
        let kind = CountKind::of(a.kind) as usize;
        let n = &mut self.counters;
        n.l1d.misses[kind] += 1;
        n.l2.hits[kind] += 1;
        if let Some(below) = x.below {
            n.l1d.write_backs += 1;
            l2.set_dirty(below, true);
        }
        l2.hit(x.at, line);
        self.l1d.empty(x.slot);
        self.l1d.insert(x.slot, line, write, a.stamp);
        enter_data(env, &mut self.l1d, x.slot, line, a);
        Some(true)
    }

    #[inline]
    fn near_fetch(
        &mut self,
        env: &Env<'_>,
        line: u64,
        a: &Line,
        clean_may_go: bool,
    ) -> Option<bool> {
        if let Some(slot) = self.l1i.cache.find_in_8(line) {
            self.l1i.hit(slot, line, a.stamp);
            enter_fetch(env, &mut self.l1i, slot, line, a);
            return Some(false);
        }
        let l2 = self.l2.as_mut()?;
        let x = exchange(&mut self.l1i, l2, line, clean_may_go)?;
        self.counters.l1i.misses[CountKind::Fetch as usize] += 1;
        self.counters.l2.hits[CountKind::Fetch as usize] += 1;
        l2.hit(x.at, line);
        self.l1i.empty(x.slot);
        self.l1i.insert(x.slot, line, false, a.stamp);
        enter_fetch(env, &mut self.l1i, x.slot, line, a);
        Some(true)
    }
}

impl Hier {
    /// As [`Hier::access`] of a load, a store or a fetch, whose `now` is not looked at; `None`, with nothing changed, if that has
    /// to do it.
    #[inline]
    pub(super) fn near(&mut self, env: &Env<'_>, core: usize, a: &Line) -> Option<Near> {
        let line = a.spa.0 >> LINE_SHIFT;
        let page = self.pages.of(line);
        // Nobody else has the page: a store claims nothing, and no copy is dirty elsewhere.
        if !page.has(line) || !page.is_only(core, a.domain) {
            return None;
        }
        let clean_may_go = self.inclusion == Inclusion::Inclusive;
        let c = &mut self.cores[core];
        let second = match a.kind {
            LineKind::Load | LineKind::Store if !self.next_line => {
                c.near_data(env, line, a, clean_may_go, self.degree > 0)?
            }
            LineKind::Fetch => c.near_fetch(env, line, a, clean_may_go)?,
            _ => return None,
        };
        let host = env.host(line, a.domain);
        Some(if second {
            Near::Second(host)
        } else {
            Near::First(host)
        })
    }
}
