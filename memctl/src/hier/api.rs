//! The controller's entry points for cores with caches.

use std::sync::Arc;

use sevlab_arch::Spa;

use super::data::Env;
use super::near::Near;
use super::short::ShortWay;
use super::{Core, FetchFilter, Hier, HierCounters, Line, LineFilter, LineKind, Served};
use crate::ctl::{Domain, MemCtl, Meta};
use crate::error::Error;
use crate::keys::KeySlots;

impl MemCtl {
    /// Gives a core its caches, cold the first time, and keeps the tags of its filters true from now on. What its caches hold
    /// from an earlier stay counts as used before all that comes: the new stay's clock begins again.
    ///
    /// # Errors
    /// [`Error::NoCore`] for a number that is not below [`Config::cores`](crate::Config::cores).
    pub fn attach_core(
        &self,
        core: usize,
        data: Arc<LineFilter>,
        fetch: Arc<FetchFilter>,
    ) -> Result<(), Error> {
        let mut meta = self.lock();
        let hier = meta.hier.as_mut().ok_or(Error::NoCore { core })?;
        let place = hier.places.get_mut(core).ok_or(Error::NoCore { core })?;
        let at = match *place {
            Some(at) => at as usize,
            None => {
                *place = Some(hier.cores.len() as u32);
                let next = hier.cores.len();
                let core = Core::new(&hier.model, &hier.dram, &hier.llc, next);
                hier.cores.push(Box::new(core));
                next
            }
        };
        let c = &mut hier.cores[at];
        data.flush();
        fetch.flush();
        self.tlbs.attach_filters(core, &data, &fetch);
        c.l1d.attach(data);
        c.l1i.attach(fetch);
        Ok(())
    }

    /// The opposite: the filters' tags are gone. What the core's caches hold stays there.
    pub fn detach_core(&self, core: usize) {
        let mut meta = self.lock();
        if let Some(hier) = &mut meta.hier
            && let Ok(at) = hier.place(core)
        {
            hier.cores[at].l1d.detach();
            hier.cores[at].l1i.detach();
            self.tlbs.detach_filters(|n| n == core);
        }
    }

    /// Notes from now on which pages leave the caches because of somebody outside, for a simulation that has to know.
    pub fn watch_flushes(&self) {
        if let Some(hier) = &mut self.lock().hier {
            hier.flushed.get_or_insert_default();
        }
    }

    /// Numbers of the pages noted since the last call.
    #[must_use]
    pub fn take_flushes(&self) -> Vec<u64> {
        let mut meta = self.lock();
        let flushed = meta.hier.as_mut().and_then(|h| h.flushed.as_mut());
        flushed.map(std::mem::take).unwrap_or_default()
    }

    /// In a clone of the host process: of the attached cores only this one has an owner here.
    pub fn keep_only_core(&self, core: usize) {
        let mut meta = self.lock();
        let Some(hier) = &mut meta.hier else { return };
        for (number, place) in hier.places.iter().enumerate() {
            if let Some(at) = place.filter(|_| number != core) {
                hier.cores[at as usize].l1d.detach();
                hier.cores[at as usize].l1i.detach();
            }
        }
        self.tlbs.detach_filters(|n| n != core);
    }

    /// Accesses a line: looks the caches up, brings the line in, and enters it into the core's filter.
    ///
    /// # Errors
    /// [`Error::NoCore`], [`Error::OutOfRange`], [`Error::NoKey`].
    pub fn line(&self, core: usize, line: &Line) -> Result<Served, Error> {
        self.check_line(line)?;
        let mut meta = self.lock();
        let Meta { keys, hier, .. } = &mut *meta;
        let hier = hier.as_mut().ok_or(Error::NoCore { core })?;
        let (at, env) = (hier.place(core)?, self.env(keys));
        if matches!(
            line.kind,
            LineKind::Walk | LineKind::WalkWrite | LineKind::Rmp
        ) && let Some(served) = hier.refer(&env, at, line)
        {
            return Ok(served);
        }
        hier.access(&env, at, line, line.now)
    }

    #[inline]
    fn check_line(&self, line: &Line) -> Result<(), Error> {
        let size = self.end(line.domain);
        if line.spa.0 >= size {
            let (spa, len) = (line.spa, 1);
            return Err(Error::OutOfRange { spa, len, size });
        }
        Ok(())
    }

    /// Where the addresses end that are seen under `d`.
    #[inline]
    fn end(&self, d: Domain) -> u64 {
        match d {
            Domain::Shared => self.span(),
            Domain::Private(_) => self.size(),
        }
    }

    /// As [`MemCtl::line`] for a load, a store or a fetch, with a short way where the core's own caches serve it at no more than their latency;
    /// else at cycle `now`, whatever [`Line::now`] says.
    ///
    /// # Errors
    /// As [`MemCtl::line`].
    #[inline]
    pub fn near(&self, core: usize, line: &Line, now: impl FnOnce() -> u64) -> Result<Near, Error> {
        let mut meta = self.lock();
        let Meta { keys, hier, .. } = &mut *meta;
        let (hier, env) = (hier.as_mut().ok_or(Error::NoCore { core })?, self.env(keys));
        let at = hier.place(core)?;
        if line.spa.0 < self.size()
            && let Some(near) = hier.near(&env, at, line)
        {
            return Ok(near);
        }
        self.check_line(line)?;
        hier.access(&env, at, line, now()).map(Near::Beyond)
    }

    /// The short way of an attached core's accesses, if there is one for its caches.
    #[must_use]
    pub fn short_way(&self, core: usize) -> Option<ShortWay> {
        let mut meta = self.lock();
        let Meta { keys, hier, .. } = &mut *meta;
        let hier = hier.as_mut()?;
        let at = hier.place(core).ok()?;
        hier.short_way(&self.env(keys), at)
    }

    /// Whether what L2 does not serve may go its short way, where there is one for the caches: it may from the start. Nothing that can be seen
    /// depends on it.
    pub fn use_short_ways(&self, on: bool) {
        if let Some(hier) = &mut self.lock().hier {
            hier.use_far(on);
        }
    }

    /// Accesses to these lines by the core are near. Changes nothing, but lets the host fetch what they will need.
    #[inline]
    pub fn foresee(&self, core: usize, lines: impl Iterator<Item = (Spa, Domain)>) {
        let mut meta = self.lock();
        let Meta { keys, hier, .. } = &mut *meta;
        let Some(hier) = hier.as_ref() else { return };
        let Ok(at) = hier.place(core) else { return };
        let env = self.env(keys);
        for (spa, domain) in lines.filter(|(spa, d)| spa.0 < self.end(*d)) {
            hier.foresee(&env, at, spa.0 >> super::data::LINE_SHIFT, domain);
        }
    }

    /// Does what [`MemCtl::near`] or the short way has left of an access that it has just looked at, at cycle `now`. Whether it is a load or a store
    /// need not be said.
    pub fn finish(&self, core: usize, line: &Line, now: u64) -> Option<Near> {
        let mut meta = self.lock();
        let Meta { keys, hier, .. } = &mut *meta;
        let hier = hier.as_mut()?;
        let at = hier.place(core).ok()?;
        hier.finish(&self.env(keys), at, line, now)
    }

    /// Whether [`MemCtl::line`] would find the line in the core's first level, and change no more of it than its last use.
    #[must_use]
    pub fn would_hit(&self, core: usize, a: &Line) -> bool {
        let line = a.spa.0 >> super::data::LINE_SHIFT;
        let meta = self.lock();
        let Some(hier) = meta.hier.as_ref().filter(|_| a.spa.0 < self.span()) else {
            return false;
        };
        let page = hier.pages.of(line);
        match hier.place(core) {
            Ok(at) if page.has(line) && page.domain() == a.domain => {
                hier.cores[at].has(line, a.kind)
            }
            _ => false,
        }
    }

    /// Takes the write tags of every core's filter for lines of the frame at `page` away: it holds decoded code now.
    pub fn drop_line_writes(&self, page: Spa) {
        if page.0 >= self.span() {
            return;
        }
        self.tlbs
            .drop_write_entries(self.dram.raw.ptr(page.page().0));
        if let Some(plain) = self.dram.plain_of().filter(|_| page.0 < self.size()) {
            self.tlbs.drop_write_entries(plain.ptr(page.page().0));
        }
        let mut meta = self.lock();
        let Some(hier) = &mut meta.hier else { return };
        // What has a tag is in a cache.
        for line in hier.pages.page(page.pfn()).lines(page.pfn()) {
            for core in &hier.cores {
                if let Some(slot) = core.l1d.cache.find(line) {
                    core.l1d.forget_write(slot);
                }
            }
        }
    }

    /// What `core` has caused so far; zeroes if it never was attached.
    #[must_use]
    pub fn hier_counters(&self, core: usize) -> HierCounters {
        let meta = self.lock();
        let Some(hier) = &meta.hier else {
            return HierCounters::default();
        };
        hier.place(core)
            .map_or_else(|_| HierCounters::default(), |at| hier.cores[at].counters)
    }

    /// What all cores have caused.
    #[must_use]
    pub fn hier_totals(&self) -> HierCounters {
        let mut all = HierCounters::default();
        if let Some(hier) = &self.lock().hier {
            hier.cores.iter().for_each(|c| all.add(&c.counters));
        }
        all
    }

    /// The lines in caches now, each once, by address, with whether a copy is dirty: for tests and for who wants to see.
    #[must_use]
    pub fn cached_lines(&self) -> Vec<(Spa, bool)> {
        let meta = self.lock();
        let Some(hier) = &meta.hier else {
            return Vec::new();
        };
        let line = |(_, line, dirty)| (line, dirty);
        let mut all: Vec<(u64, bool)> = hier.llc.lines().map(line).collect();
        for c in &hier.cores {
            all.extend(c.l1d.lines().chain(c.l1i.lines()));
            all.extend(c.l2.iter().flat_map(|l2| l2.lines()).map(line));
        }
        all.sort_unstable();
        all.dedup_by(|next, first| {
            let same = next.0 == first.0;
            first.1 |= same && next.1;
            same
        });
        all.into_iter()
            .map(|(l, dirty)| (Spa(l << super::data::LINE_SHIFT), dirty))
            .collect()
    }

    /// Whether the plaintext (or, of a shared page, the data) of a line counts as in the caches.
    #[must_use]
    pub fn is_line_cached(&self, spa: Spa) -> bool {
        let line = spa.0 >> super::data::LINE_SHIFT;
        match &self.lock().hier {
            Some(hier) if spa.0 < self.span() => hier.pages.of(line).has(line),
            _ => false,
        }
    }

    /// What the memory modules hold now, without what dirty lines in caches would add: nothing is written back for it. Nothing is
    /// read beyond DRAM.
    pub fn dram_now(&self, a: Spa, out: &mut [u8]) {
        let mut meta = self.lock();
        self.with_hier(&mut meta, |h, env| h.pages.settle(env));
        if self.check_range(a, out.len() as u64).is_ok() {
            self.dram.raw.read(a.0, out);
        }
    }

    pub(super) fn env<'a>(&'a self, keys: &'a KeySlots) -> Env<'a> {
        Env {
            dram: &self.dram,
            states: &self.states,
            keys,
        }
    }

    /// Runs `f` on the hierarchy, if there is one.
    pub(super) fn with_hier<R>(
        &self,
        meta: &mut Meta,
        f: impl FnOnce(&mut Hier, &Env<'_>) -> R,
    ) -> Option<R> {
        let Meta { keys, hier, .. } = meta;
        let env = self.env(keys);
        hier.as_mut().map(|hier| f(hier, &env))
    }
}
