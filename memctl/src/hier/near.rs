//! The short way of an access that the core's own caches serve: L1, or L2 with an L1 victim that L2 has too. It does what
//! [`super::access`] does, in few words, for sets of up to 8 ways; whatever is not so simple is left to that, before anything
//! has changed.

use std::ptr::NonNull;

use super::access::{enter_data, enter_fetch};
use super::cache::{CHUNK, Cache};
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
    /// L2, and the stride prefetcher has work to do: [`MemCtl::prefetch_due`](crate::MemCtl::prefetch_due).
    Due(NonNull<u8>),
}

/// The same without the address; the stride of what is due.
enum By {
    First,
    Second,
    Due(i64),
}

/// The slot of the one bit's way.
#[inline]
fn slot(set: usize, hit: u32) -> usize {
    set * CHUNK + hit.trailing_zeros() as usize % CHUNK
}

/// Brings a line from L2 into an L1 that does not have it, and says in which slot it is, and whether a dirty victim went; `None`, with nothing
/// done, if it is more than L1 and L2.
#[inline(always)] // twice, for L1I and L1D
fn exchange<F: Filter>(
    l1: &mut L1<F>,
    l2: &mut Cache,
    line: u64,
    (set, write, stamp): (usize, bool, u64),
    clean_may_go: bool,
) -> Option<(usize, bool)> {
    let (below, word) = l2.at(line);
    let hit = l2.ways(below).find(word);
    if hit == 0 {
        return None;
    }
    let ways = l1.cache.ways(set);
    let way = match ways.free() {
        0 => l1.oldest_way(set),
        free => free.trailing_zeros() as usize,
    };
    let mut dirty = false;
    if let Some(victim) = l1.cache.resident(ways.word(way), set) {
        let (set, word) = l2.at(victim.line);
        dirty = victim.dirty;
        if dirty || !clean_may_go {
            let hit = l2.ways(set).find(word);
            if hit == 0 {
                return None;
            }
            if dirty {
                l2.set_dirty(slot(set, hit), true);
            }
        }
    }
    l2.hit(slot(below, hit), line);
    let to = set * CHUNK + way;
    l1.empty(to);
    l1.insert(to, line, write, stamp);
    Some((to, dirty))
}

impl Core {
    /// Whether it has the geometry that the short way is for.
    pub(super) fn is_near(&self) -> bool {
        let firsts = [&self.l1d.cache, &self.l1i.cache];
        let first = firsts.iter().all(|c| c.is_of_8() && c.has_stamps());
        first && self.l2.as_ref().is_some_and(Cache::is_of_8)
    }

    #[inline]
    fn near_data(
        &mut self,
        env: &Env<'_>,
        line: u64,
        a: &Line,
        clean_may_go: bool,
        trains: bool,
    ) -> Option<By> {
        let write = a.kind == LineKind::Store;
        let (set, word) = self.l1d.cache.at(line);
        let hit = self.l1d.cache.ways(set).find(word);
        if hit != 0 {
            let slot = slot(set, hit);
            if write {
                self.l1d.cache.set_dirty(slot, true);
            }
            self.l1d.hit(slot, line, a.stamp);
            enter_data(env, &mut self.l1d, slot, line, a);
            return Some(By::First);
        }
        let l2 = self.l2.as_mut()?;
        let how = (set, write, a.stamp);
        let (slot, wrote) = exchange(&mut self.l1d, l2, line, how, clean_may_go)?;
        let kind = CountKind::of(a.kind) as usize;
        let n = &mut self.counters;
        n.l1d.misses[kind] += 1;
        n.l2.hits[kind] += 1;
        n.l1d.write_backs += u64::from(wrote);
        enter_data(env, &mut self.l1d, slot, line, a);
        let due = if trains {
            self.strides.train(line)
        } else {
            None
        };
        Some(due.map_or(By::Second, By::Due))
    }

    #[inline]
    fn near_fetch(&mut self, env: &Env<'_>, line: u64, a: &Line, clean_may_go: bool) -> Option<By> {
        let (set, word) = self.l1i.cache.at(line);
        let hit = self.l1i.cache.ways(set).find(word);
        if hit != 0 {
            let slot = slot(set, hit);
            self.l1i.hit(slot, line, a.stamp);
            enter_fetch(env, &mut self.l1i, slot, line, a);
            return Some(By::First);
        }
        let l2 = self.l2.as_mut()?;
        let how = (set, false, a.stamp);
        let (slot, _) = exchange(&mut self.l1i, l2, line, how, clean_may_go)?;
        self.counters.l1i.misses[CountKind::Fetch as usize] += 1;
        self.counters.l2.hits[CountKind::Fetch as usize] += 1;
        enter_fetch(env, &mut self.l1i, slot, line, a);
        Some(By::Second)
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
        if !c.near {
            return None;
        }
        let by = match a.kind {
            LineKind::Load | LineKind::Store if !self.next_line => {
                c.near_data(env, line, a, clean_may_go, self.degree > 0)?
            }
            LineKind::Fetch => c.near_fetch(env, line, a, clean_may_go)?,
            _ => return None,
        };
        let host = env.host(line, a.domain);
        Some(match by {
            By::First => Near::First(host),
            By::Second => Near::Second(host),
            By::Due(stride) => {
                self.due = stride;
                Near::Due(host)
            }
        })
    }
}
