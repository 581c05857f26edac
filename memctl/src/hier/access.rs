//! One access: look-ups, the fills of a miss, the filter's entry.
//!
//! The order is the model's definition (docs/model.md): look-ups from the first level down, each touching what it hits; then other
//! cores; then the fills from the LLC up, each with its victim's handling before the line goes in; then prefetches.

use std::ptr::NonNull;

use sevlab_arch::Asid;

use super::counters::CountKind;
use super::data::{Env, LINE_SHIFT, PAGE_LINES_SHIFT};
use super::far::Far;
use super::filter::{FetchFilter, LineFilter, has_tag};
use super::l1::L1;
use super::{Hier, Level, Line, LineKind, Served, Stalls};
use crate::ctl::Domain;
use crate::error::Error;

/// Who causes what happens now, and what it has cost so far.
pub(super) struct Cause {
    pub core: usize,
    pub now: u64,
    pub stalls: Stalls,
    /// The line that is accessed is in no cache: nobody has to look for it.
    pub absent: bool,
    /// It has arrived, and is still to be decrypted.
    pub owed: Option<Asid>,
}

impl Cause {
    #[inline]
    pub(super) fn new(core: usize, now: u64) -> Self {
        Self {
            core,
            now,
            stalls: Stalls::default(),
            absent: false,
            owed: None,
        }
    }
}

impl Hier {
    /// [`MemCtl::line`](crate::MemCtl::line) for a core that is attached (by its index in `cores`), and an address that exists, at cycle `now`.
    #[inline(never)]
    pub(super) fn access(
        &mut self,
        env: &Env<'_>,
        core: usize,
        a: &Line,
        now: u64,
    ) -> Result<Served, Error> {
        let line = a.spa.0 >> LINE_SHIFT;
        let mut cause = Cause::new(core, now);
        if matches!(a.kind, LineKind::Load | LineKind::Store | LineKind::Fetch) {
            // Those of a walk were foreseen together.
            self.foresee(env, core, line, a.domain);
        }
        let mut page = self.pages.of(line);
        if page.cached == 0 {
            let pfn = line >> PAGE_LINES_SHIFT;
            if self.pages.lingers(env, pfn, a.domain) {
                self.pages.settle(env);
            }
            if let Domain::Private(asid) = a.domain {
                env.keys.engine(asid, a.spa)?;
            }
        } else if page.domain() != a.domain {
            self.flush_page(env, line >> PAGE_LINES_SHIFT, Some(&mut cause));
            page.cached = 0;
        }
        cause.absent = !page.has(line);
        let level = match a.kind {
            LineKind::Load | LineKind::Store => {
                self.data(env, &mut cause, line, a, a.kind == LineKind::Store)
            }
            LineKind::Fetch => self.fetch(env, &mut cause, line, a),
            LineKind::Walk | LineKind::WalkWrite | LineKind::Rmp => {
                let write = a.kind == LineKind::WalkWrite;
                let level = self.below(env, &mut cause, line, a, write);
                self.in_flight = [NOTHING; 3];
                if write {
                    self.dirty_below(core, line);
                }
                level
            }
        };
        self.pages.decrypt(env, line, cause.owed.take());
        Ok(Served {
            host: env.host(line, a.domain),
            level,
            stalls: cause.stalls,
        })
    }

    /// Asks the host for what an access to a line that L2 does not have will look at: its own misses overlap then, with each other and with
    /// what comes before.
    pub(super) fn foresee(&self, env: &Env<'_>, core: usize, line: u64, d: Domain) {
        if let Some(l2) = &self.cores[core].l2 {
            if l2.find(line).is_some() {
                return;
            }
            if let Some(victim) = l2.next_victim(line) {
                self.llc.prefetch(victim);
            }
        }
        self.llc.prefetch(line);
        self.llc.prefetch_order(line);
        if !self.pages.of(line).has(line) {
            env.prefetch(line, d);
        }
    }

    #[inline]
    fn data(
        &mut self,
        env: &Env<'_>,
        cause: &mut Cause,
        line: u64,
        a: &Line,
        write: bool,
    ) -> Level {
        let core = cause.core;
        if cause.absent {
            return self.data_miss(env, cause, line, a, write);
        }
        let Some(slot) = self.cores[core].l1d.cache.find(line) else {
            return self.data_miss(env, cause, line, a, write);
        };
        if write && !self.cores[core].l1d.dirty(slot) {
            self.claim_line(cause, line);
            self.cores[core].l1d.cache.set_dirty(slot, true);
        }
        let alone = self.is_alone(core, line, a);
        let l1d = &mut self.cores[core].l1d;
        l1d.hit(slot, line, a.stamp);
        let passes = alone || l1d.dirty(slot);
        enter_data(l1d, slot, env.host(line, a.domain), a, passes);
        Level::L1
    }

    #[inline(never)]
    fn data_miss(
        &mut self,
        env: &Env<'_>,
        cause: &mut Cause,
        line: u64,
        a: &Line,
        write: bool,
    ) -> Level {
        let core = cause.core;
        let l2 = self.cores[core].l2.as_ref();
        if self.far != Far::Not
            && (cause.absent || l2.is_some_and(|l2| l2.find(line).is_none()))
            && let Some(served) = self.far(env, core, a, cause.now)
        {
            cause.stalls = served.stalls;
            return served.level;
        }
        let kind = if write {
            CountKind::Write
        } else {
            CountKind::Read
        };
        let c = &mut self.cores[core];
        c.counters.l1d.misses[kind as usize] += 1;
        c.l1d.prefetch(LineFilter::index(a.va));
        let level = self.below(env, cause, line, a, write);
        let (slot, victim) = self.cores[core].l1d.make_room(line);
        if let Some(v) = victim {
            self.l1_victim(env, cause, v);
        }
        self.note_core(line, core);
        let alone = self.is_alone(core, line, a);
        let l1d = &mut self.cores[core].l1d;
        l1d.insert(slot, line, write, a.stamp);
        enter_data(l1d, slot, env.host(line, a.domain), a, alone || write);
        self.in_flight = [NOTHING; 3];
        self.pages.decrypt(env, line, cause.owed.take());
        if self.prefetches {
            self.after_miss(env, cause, line, a.domain);
        }
        level
    }

    /// Whether stores to the line may pass the core's filter while it is clean: nobody else has a copy to lose.
    #[inline]
    fn is_alone(&self, core: usize, line: u64, a: &Line) -> bool {
        let c = &self.cores[core];
        c.stores_pass && self.pages.of(line).is_only(c.bit, a.domain)
    }

    fn fetch(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64, a: &Line) -> Level {
        let core = cause.core;
        if let Some(slot) = self.cores[core].l1i.cache.find(line) {
            let l1i = &mut self.cores[core].l1i;
            l1i.hit(slot, line, a.stamp);
            enter_fetch(l1i, slot, env.host(line, a.domain), a);
            return Level::L1;
        }
        self.cores[core].counters.l1i.misses[CountKind::Fetch as usize] += 1;
        let level = self.below(env, cause, line, a, false);
        let (slot, victim) = self.cores[core].l1i.make_room(line);
        if let Some(v) = victim {
            self.l1_victim(env, cause, v);
        }
        self.note_core(line, core);
        let l1i = &mut self.cores[core].l1i;
        l1i.insert(slot, line, false, a.stamp);
        enter_fetch(l1i, slot, env.host(line, a.domain), a);
        self.in_flight = [NOTHING; 3];
        level
    }

    /// Everything below the first level: afterwards the line is in L2 and LLC, as far as those are there and keep it.
    #[inline]
    fn below(
        &mut self,
        env: &Env<'_>,
        cause: &mut Cause,
        line: u64,
        a: &Line,
        write: bool,
    ) -> Level {
        let kind = CountKind::of(a.kind) as usize;
        let c = &mut self.cores[cause.core];
        if let Some(l2) = &mut c.l2
            && !cause.absent
            && let Some(slot) = l2.find(line)
        {
            l2.hit(slot, line);
            c.counters.l2.hits[kind] += 1;
            cause.stalls.cache = self.l2_cycles;
            if write && !l2.dirty(slot) {
                self.claim_line(cause, line);
            }
            self.in_flight[0] = line;
            return Level::L2;
        }
        self.beyond_l2(env, cause, line, a, write)
    }

    /// The rest of it, for a line that L2 does not have.
    #[inline(never)]
    fn beyond_l2(
        &mut self,
        env: &Env<'_>,
        cause: &mut Cause,
        line: u64,
        a: &Line,
        write: bool,
    ) -> Level {
        let core = cause.core;
        let kind = CountKind::of(a.kind) as usize;
        let c = &mut self.cores[core];
        if c.l2.is_some() {
            c.counters.l2.misses[kind] += 1;
        }
        let in_llc = if cause.absent {
            None
        } else {
            self.llc.find(line)
        };
        if let Some(slot) = in_llc {
            self.llc.hit(slot, line);
        }
        let remote =
            !cause.absent && self.pages.of(line).others(core) && self.clean_others(core, line);
        if write {
            self.claim_line(cause, line);
        }
        let c = &mut self.cores[core];
        let level = if remote {
            c.counters.llc.hits[kind] += 1;
            c.counters.remote += 1;
            cause.stalls.cache = self.remote_cycles;
            Level::Remote
        } else if in_llc.is_some() {
            c.counters.llc.hits[kind] += 1;
            cause.stalls.cache = self.llc_cycles;
            Level::Llc
        } else {
            c.counters.llc.misses[kind] += 1;
            cause.stalls.cache = self.llc_cycles;
            Level::Dram
        };
        self.in_flight[0] = line;
        match in_llc {
            Some(slot) if remote => self.llc.set_dirty(slot, true),
            Some(_) => {}
            None => self.fill_llc(env, cause, line, remote),
        }
        if level == Level::Dram {
            cause.owed = self.pages.arrive(env, line, a.domain);
            self.read_dram(cause, line, a.domain, true);
        }
        if self.cores[core].l2.is_some() {
            self.fill_l2(env, cause, line, false);
        }
        level
    }

    /// A line is read from DRAM; `demand`: somebody waits for it.
    #[inline]
    pub(super) fn read_dram(&mut self, cause: &mut Cause, line: u64, d: Domain, demand: bool) {
        let encrypted = d != Domain::Shared;
        let c = &mut self.cores[cause.core];
        let took = self.dram.read(&mut c.busy, line, encrypted, cause.now);
        c.counters.row(took.row);
        if encrypted {
            c.counters.dram_reads_encrypted += 1;
        } else {
            c.counters.dram_reads_plain += 1;
        }
        if demand {
            cause.stalls.dram += took.dram;
            cause.stalls.aes += took.aes;
        }
    }

    /// A walk's write: the first level it looks at has the line dirty.
    fn dirty_below(&mut self, core: usize, line: u64) {
        let at = match &mut self.cores[core].l2 {
            Some(l2) => l2,
            None => &mut self.llc,
        };
        if let Some(slot) = at.find(line) {
            at.set_dirty(slot, true);
        }
    }
}

// ---- the filters' entries ----

/// Makes the line in `slot`, whose bytes are at `host`, the filter's.
#[inline]
pub(super) fn enter_fetch(l1i: &mut L1<FetchFilter>, slot: usize, host: NonNull<u8>, a: &Line) {
    if !has_tag(a.va) {
        return l1i.forget(slot);
    }
    let i = FetchFilter::index(a.va);
    l1i.claim(slot, i);
    if let Some(f) = l1i.filter() {
        f.set(i, a.va.0 & !63, slot, host);
    }
}

/// Makes the line in `slot`, whose bytes are at `host`, the filter's, with the rights that the access was granted; `passes`: stores may
/// pass, since it is dirty, or may become so.
#[inline(always)] // in the short way, and small
pub(super) fn enter_data(
    l1d: &mut L1<LineFilter>,
    slot: usize,
    host: NonNull<u8>,
    a: &Line,
    passes: bool,
) {
    if !a.grant.read || !has_tag(a.va) {
        return l1d.forget(slot);
    }
    let write = a.grant.write && passes;
    let i = LineFilter::index(a.va);
    l1d.claim(slot, i);
    if let Some(f) = l1d.filter() {
        f.set(i, a.va.0 & !63, slot, host, write);
    }
}

/// No line.
pub(super) const NOTHING: u64 = u64::MAX;
