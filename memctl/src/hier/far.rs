#![allow(unsafe_code)] // the host's newer instructions, where it has them
//! The short way of a load or a store that neither L1D nor L2 serves, and of a prefetch into L2. It does what [`super::access`], [`super::fill`]
//! and [`super::prefetch`] do, in few words, for caches in LRU order, with sets of up to 8 ways, of the LLC up to 16, where nobody but the core
//! has had anything of the page; whatever is not so simple is left to them, before anything has changed. So it has to be changed with
//! them.

use super::access::{Cause, enter_data};
use super::cache::{self, CHUNK, Cache, Room};
use super::counters::CountKind;
use super::data::{Env, LINE_SHIFT};
use super::{Core, Hier, Inclusion, Level, Line, LineKind, Near, Served, Stalls};
use crate::ctl::Domain;

/// What [`Hier::due`] is where [`super::short`] has found that neither L1D nor what is below it has the line; plus 1 for a store.
pub(super) const BEYOND: u64 = 1 << 63;

/// The caches that this is for, by the [`cache::Ways`] of a set of the LLC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Far {
    /// One.
    One,
    /// Two.
    Two,
    /// It is for others.
    Not,
}

/// Where a line goes that L2 does not have.
struct Places {
    /// Where the LLC has it.
    from: Option<usize>,
    /// Else what happens there, and who leaves: no cache above has it.
    llc: Option<(Room, Option<(u64, bool)>)>,
    l2: Option<Room>,
    /// L2's victim is dirty, and in this slot of the LLC.
    handed: Option<usize>,
}

/// What happens in L1D.
struct First {
    set: usize,
    way: usize,
    /// A store has passed the filter to its victim.
    wrote: bool,
    dirty: bool,
    /// Where its victim is below, if that is to be told that it is dirty.
    below: Option<usize>,
}

impl Core {
    /// What this is for, of the core's caches and the LLC.
    pub(super) fn far(&self, llc: &Cache) -> Far {
        let l2 = self.l2.as_ref();
        let plain = self.has_near_firsts() && l2.is_none_or(|l2| l2.is_of_8() && l2.is_ranked());
        let can = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        match llc.width() / CHUNK {
            _ if !can || !plain || !llc.is_ranked() => Far::Not,
            1 => Far::One,
            2 => Far::Two,
            _ => Far::Not,
        }
    }

    /// Whether any of its caches has the line.
    #[inline(always)] // as all of this, once for each kind
    fn has_any(&self, line: u64) -> bool {
        let has = |c: &Cache| c.find_in::<1>(line).is_some();
        self.l2.as_ref().is_some_and(has) || has(&self.l1d.cache) || has(&self.l1i.cache)
    }
}

impl Hier {
    /// Whether nobody else has had anything of the line's page, and what it has in caches is the domain's.
    #[inline(always)]
    fn is_own(&self, core: usize, line: u64, d: Domain) -> bool {
        let (page, bit) = (self.pages.of(line), self.cores[core].bit);
        bit != 0 && page.cached != 0 && page.is_only(bit, d)
    }

    /// Where a line goes that L2 does not have; `first` leaves L1D for it. `None`: it is not so simple.
    #[inline(always)]
    fn places<const W: usize>(&self, core: usize, line: u64, first: Option<u64>) -> Option<Places> {
        let c = &*self.cores[core];
        let room = c.l2.as_ref().map(|l2| l2.room::<1>(line));
        let victim = c.l2.as_ref().and_then(|l2| l2.leaves(room?));
        if let Some((victim, _)) = victim {
            if first == Some(victim) {
                return None;
            }
            // For the look at the end.
            self.llc.ask_for::<W>(victim);
        }
        let mut to = Places {
            from: None,
            llc: None,
            l2: room,
            handed: None,
        };
        if self.pages.of(line).has(line) {
            to.from = Some(self.llc.find_in::<W>(line)?);
        } else {
            let room = self.llc.room::<W>(line);
            let gone = self.llc.leaves(room);
            if let Some((victim, _)) = gone {
                let page = self.pages.of(victim);
                if page.not_only(c.bit) || page.has_core(c.bit) && c.has_any(victim) {
                    return None;
                }
            }
            to.llc = Some((room, gone));
        }
        if let Some((victim, dirty)) = victim
            && (dirty || self.inclusion == Inclusion::NonInclusive)
        {
            let slot = self.llc.find_in::<W>(victim)?;
            to.handed = dirty.then_some(slot);
        }
        Some(to)
    }

    /// Brings the line there.
    #[inline(always)]
    fn bring<const W: usize>(
        &mut self,
        env: &Env<'_>,
        cause: &mut Cause,
        line: u64,
        d: Domain,
        demand: bool,
        to: &Places,
    ) {
        if let Some((room, gone)) = to.llc {
            if let Some((victim, dirty)) = gone {
                if dirty {
                    let domain = self.pages.of(victim).domain();
                    self.write_dram(env, Some(cause), victim, domain, false);
                }
                self.pages.leave(env, victim);
            }
            self.llc.put::<W>(room, line);
            cause.owed = if self.pages.of(line).cached == 0 {
                // Who left was the last of the same page.
                let owed = self.pages.arrive(env, line, d);
                self.pages.note_core(line, cause.core);
                owed
            } else {
                self.pages.join(env, line, d)
            };
            self.read_dram(cause, line, d, demand);
        }
        let c = &mut *self.cores[cause.core];
        if let (Some(l2), Some(room)) = (&mut c.l2, to.l2) {
            if let Some(slot) = to.handed {
                c.counters.l2.write_backs += 1;
                self.llc.set_dirty(slot, true);
            }
            l2.put::<1>(room, line);
        }
    }

    /// What leaves L1D for the line, which it does not have.
    #[inline(always)]
    fn first<const W: usize>(&self, core: usize, line: u64) -> Option<(First, Option<u64>)> {
        let c = &*self.cores[core];
        let set = c.l1d.cache.at(line).0;
        let way = c.l1d.way_for_another(set);
        let word = c.l1d.cache.ways(set).word(way);
        let wrote = c.l1d.wrote(set * CHUNK + way);
        let mut first = First {
            set,
            way,
            wrote,
            dirty: wrote || cache::is_dirty(word),
            below: None,
        };
        if !cache::is_valid(word) {
            return Some((first, None));
        }
        let victim = c.l1d.cache.line_of(word, set);
        if first.dirty || self.inclusion == Inclusion::NonInclusive {
            let below = match &c.l2 {
                Some(l2) => l2.find_in::<1>(victim),
                None => self.llc.find_in::<W>(victim),
            };
            first.below = Some(below?).filter(|_| first.dirty);
        }
        Some((first, Some(victim)))
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    fn far_by<const W: usize>(
        &mut self,
        env: &Env<'_>,
        core: usize,
        a: &Line,
        now: u64,
    ) -> Option<Served> {
        let (line, write) = (a.spa.0 >> LINE_SHIFT, a.kind == LineKind::Store);
        // All at once, and before anything waits for it.
        env.prefetch(line, a.domain);
        self.llc.ask_for::<W>(line);
        if !self.is_own(core, line, a.domain) {
            return None;
        }
        let (first, victim) = self.first::<W>(core, line)?;
        let to = self.places::<W>(core, line, victim)?;
        let mut cause = Cause::new(core, now);
        cause.stalls.cache = self.llc_cycles;
        let c = &mut *self.cores[core];
        let kind = CountKind::of(a.kind) as usize;
        c.counters.l1d.misses[kind] += 1;
        c.counters.l1d.write_backs += u64::from(first.dirty);
        if c.l2.is_some() {
            c.counters.l2.misses[kind] += 1;
        }
        let level = match to.from {
            Some(slot) => {
                c.counters.llc.hits[kind] += 1;
                self.llc.hit_in::<W>(slot);
                Level::Llc
            }
            None => {
                c.counters.llc.misses[kind] += 1;
                Level::Dram
            }
        };
        self.bring::<W>(env, &mut cause, line, a.domain, true, &to);
        let c = &mut *self.cores[core];
        if let Some(slot) = first.below {
            c.l2.as_mut().unwrap_or(&mut self.llc).set_dirty(slot, true);
        }
        let word = cache::with_dirty(c.l1d.cache.at(line).1, write);
        let (set, way) = (first.set, first.way);
        c.l1d.replace(set, way, word, a.stamp, first.wrote);
        let (host, passes) = (env.host(line, a.domain), c.stores_pass || write);
        enter_data(&mut c.l1d, set * CHUNK + way, host, a, passes);
        self.pages.decrypt(env, line, cause.owed.take());
        if self.prefetches {
            self.after_miss(env, &mut cause, line, a.domain);
        }
        Some(Served {
            host,
            level,
            stalls: cause.stalls,
        })
    }

    /// As [`Hier::access`] of a load or a store that neither L1D nor L2, or the LLC where there is none, has; `None`, with nothing
    /// changed, if that has to do it.
    #[inline(always)]
    pub(super) fn far(&mut self, env: &Env<'_>, core: usize, a: &Line, now: u64) -> Option<Served> {
        // SAFETY: `Core::far` has seen that the host has the instructions.
        unsafe {
            match self.far {
                Far::One => self.far_by::<1>(env, core, a, now),
                Far::Two => self.far_by::<2>(env, core, a, now),
                Far::Not => None,
            }
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    fn prefetch_by<const W: usize>(
        &mut self,
        env: &Env<'_>,
        core: usize,
        now: u64,
        line: u64,
        d: Domain,
    ) -> Option<()> {
        let c = &*self.cores[core];
        if !self.is_own(core, line, d) {
            return None;
        }
        if self.pages.of(line).has(line) {
            let l2 = c.l2.as_ref()?;
            if l2.find_in::<1>(line).is_some() {
                return Some(());
            }
        }
        let to = self.places::<W>(core, line, None)?;
        let mut cause = Cause::new(core, now);
        self.bring::<W>(env, &mut cause, line, d, false, &to);
        let c = &mut *self.cores[core];
        c.counters.llc.prefetched += u64::from(to.llc.is_some());
        c.counters.l2.prefetched += u64::from(to.l2.is_some());
        self.pages.decrypt(env, line, cause.owed.take());
        Some(())
    }

    /// Prefetches a line of this domain; `None`, with nothing changed, if [`Hier::prefetch`] has to.
    #[inline(always)]
    pub(super) fn prefetch_far(
        &mut self,
        env: &Env<'_>,
        core: usize,
        now: u64,
        line: u64,
        d: Domain,
    ) -> Option<()> {
        // SAFETY: as above.
        unsafe {
            match self.far {
                Far::One => self.prefetch_by::<1>(env, core, now, line, d),
                Far::Two => self.prefetch_by::<2>(env, core, now, line, d),
                Far::Not => None,
            }
        }
    }

    /// As [`Hier::access`] of a reference of a walk or to the RMP that L2 serves, or the LLC where there is none; `None`, with nothing changed, of
    /// another.
    #[inline(always)]
    pub(super) fn refer(&mut self, env: &Env<'_>, core: usize, a: &Line) -> Option<Served> {
        let line = a.spa.0 >> LINE_SHIFT;
        if self.far == Far::Not || !self.is_own(core, line, a.domain) {
            return None;
        }
        let c = &mut *self.cores[core];
        let (below, counters, cycles, level) = match &mut c.l2 {
            Some(l2) => (l2, &mut c.counters.l2, self.l2_cycles, Level::L2),
            None if self.far == Far::One => (
                &mut self.llc,
                &mut c.counters.llc,
                self.llc_cycles,
                Level::Llc,
            ),
            None => return None,
        };
        let slot = below.find_in::<1>(line)?;
        below.hit_in::<1>(slot);
        if a.kind == LineKind::WalkWrite {
            below.set_dirty(slot, true);
        }
        counters.hits[CountKind::of(a.kind) as usize] += 1;
        Some(Served {
            host: env.host(line, a.domain),
            level,
            stalls: Stalls {
                cache: cycles,
                ..Stalls::default()
            },
        })
    }

    /// Does what [`super::near`] or [`super::short`] has left of an access, at cycle `now`; its line's kind is not looked at.
    pub(super) fn finish(
        &mut self,
        env: &Env<'_>,
        core: usize,
        a: &Line,
        now: u64,
    ) -> Option<Near> {
        let line = a.spa.0 >> LINE_SHIFT;
        let kind = match self.due as u64 {
            BEYOND => LineKind::Load,
            due if due == BEYOND | 1 => LineKind::Store,
            _ => {
                let mut free = Cause::new(core, now);
                self.prefetch_stride(env, &mut free, line, self.due, a.domain);
                return Some(Near::Second(env.host(line, a.domain)));
            }
        };
        let a = Line { kind, ..*a };
        let served = match self.far(env, core, &a, now) {
            Some(served) => served,
            None => self.access(env, core, &a, now).ok()?,
        };
        Some(Near::Beyond(served))
    }
}
