//! The short way of an access that L1 serves, or L2 with an L1 victim that L2 has too; where there is no L2, the LLC likewise. It does what
//! [`super::access`] does, in few words, for sets of up to 8 ways; whatever is not so simple is left to that, before anything
//! has changed.

use std::ptr::NonNull;

use super::access::{enter_data, enter_fetch};
use super::cache::{self, CHUNK, Cache};
use super::counters::CountKind;
use super::data::{Env, LINE_SHIFT};
use super::filter::Filter;
use super::l1::L1;
use super::{Core, Hier, Inclusion, Line, LineKind, Served};

/// Who served an access: L1, or L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Near {
    /// L1.
    First(NonNull<u8>),
    /// L2, or the LLC where there is none.
    Second(NonNull<u8>),
    /// The same, and the stride prefetcher has work to do: [`MemCtl::finish`](crate::MemCtl::finish).
    Due,
    /// Neither, or not alone.
    Beyond(Served),
}

/// What is to be done with a line.
#[derive(Clone, Copy)]
struct Wanted {
    line: u64,
    write: bool,
    stamp: u64,
    /// A clean victim of L1 may go unasked: what is inclusive has it.
    clean_may_go: bool,
}

/// Where a line is after a look at L1 and what is below it.
enum Found {
    /// In this slot of L1.
    Here(usize),
    /// It has come there from below; whether a dirty victim went.
    Brought(usize, bool),
}

/// Brings a line into an L1, if it is not there and what is below has it; `None`, with nothing done, if it is more than these two.
#[inline(always)] // twice, for L1I and L1D
fn exchange<F: Filter>(l1: &mut L1<F>, below: &mut Cache, w: Wanted) -> Option<Found> {
    let (set, word) = l1.cache.at(w.line);
    let ways = l1.cache.ways(set);
    let hit = ways.find(word);
    if hit != 0 {
        let slot = cache::slot_of(set, hit);
        if w.write {
            l1.cache.set_dirty(slot, true);
        }
        l1.stamp(slot, w.stamp);
        return Some(Found::Here(slot));
    }
    let (from, want) = below.at(w.line);
    let hit = below.ways(from).find(want);
    if hit == 0 {
        return None;
    }
    let way = l1.way_for_another(set);
    let (victim, to) = (ways.word(way), set * CHUNK + way);
    let wrote = l1.wrote(to);
    let dirty = wrote || cache::is_dirty(victim);
    if dirty || !w.clean_may_go && cache::is_valid(victim) {
        let (set, want) = below.at(l1.cache.line_of(victim, set));
        let hit = below.ways(set).find(want);
        if hit == 0 {
            return None;
        }
        if dirty {
            let word = below.way_mut(set, hit.trailing_zeros() as usize);
            *word = cache::with_dirty(*word, true);
        }
    }
    below.hit_way(from, hit.trailing_zeros() as usize % CHUNK, w.line);
    l1.replace(set, way, cache::with_dirty(word, w.write), w.stamp, wrote);
    Some(Found::Brought(to, dirty))
}

impl Core {
    /// Whether it has the geometry that the short way is for, as `below` must have.
    pub(super) fn is_near(&self, below: &Cache) -> bool {
        below.is_of_8() && self.has_near_firsts()
    }

    /// Whether its first levels have it.
    pub(super) fn has_near_firsts(&self) -> bool {
        let firsts = [&self.l1d.cache, &self.l1i.cache];
        firsts.iter().all(|c| c.is_of_8() && c.has_stamps())
    }
}

impl Hier {
    /// As [`Hier::access`] of a load, a store or a fetch, whose `now` is not looked at; `None`, with nothing changed, if that has
    /// to do it.
    #[inline(never)] // once for all, so that it stays in the host's caches
    pub(super) fn near(&mut self, env: &Env<'_>, core: usize, a: &Line) -> Option<Near> {
        let line = a.spa.0 >> LINE_SHIFT;
        let page = self.pages.of(line);
        let c = &mut self.cores[core];
        // Nobody else has the page: a store claims nothing, and no copy is dirty elsewhere.
        if !c.near || !page.has(line) || !page.is_only(c.bit, a.domain) {
            return None;
        }
        let (below, counters) = match &mut c.l2 {
            Some(l2) => (l2, &mut c.counters.l2),
            None => (&mut self.llc, &mut c.counters.llc),
        };
        let wanted = Wanted {
            line,
            write: a.kind == LineKind::Store,
            stamp: a.stamp,
            clean_may_go: self.inclusion == Inclusion::Inclusive,
        };
        let host = env.host(line, a.domain);
        if a.kind == LineKind::Fetch {
            let found = exchange(&mut c.l1i, below, wanted)?;
            return Some(match found {
                Found::Here(slot) => {
                    enter_fetch(&mut c.l1i, slot, host, a);
                    Near::First(host)
                }
                Found::Brought(slot, _) => {
                    c.counters.l1i.misses[CountKind::Fetch as usize] += 1;
                    counters.hits[CountKind::Fetch as usize] += 1;
                    enter_fetch(&mut c.l1i, slot, host, a);
                    Near::Second(host)
                }
            });
        }
        if self.next_line {
            return None;
        }
        let alone = c.stores_pass;
        Some(match exchange(&mut c.l1d, below, wanted)? {
            Found::Here(slot) => {
                let passes = alone || c.l1d.dirty(slot);
                enter_data(&mut c.l1d, slot, host, a, passes);
                Near::First(host)
            }
            Found::Brought(slot, wrote) => {
                let kind = CountKind::of(a.kind) as usize;
                c.counters.l1d.misses[kind] += 1;
                c.counters.l1d.write_backs += u64::from(wrote);
                counters.hits[kind] += 1;
                enter_data(&mut c.l1d, slot, host, a, alone || wanted.write);
                if self.degree > 0
                    && let Some(stride) = c.strides.train(line)
                {
                    self.due = stride;
                    return Some(Near::Due);
                }
                Near::Second(host)
            }
        })
    }
}
