//! Other cores' copies, and lines that all caches lose.

use super::access::Cause;
use super::data::{Env, PAGE_LINES_SHIFT};
use super::{Core, Hier};

impl Hier {
    /// Before `cause.core` makes the line dirty: no other core keeps a copy. They are clean, or were cleaned just now.
    #[inline]
    pub(super) fn claim_line(&mut self, cause: &mut Cause, line: u64) {
        if self.pages.of(line).others(cause.core) {
            self.drop_others(cause, line);
        }
    }

    fn drop_others(&mut self, cause: &mut Cause, line: u64) {
        let page = self.pages.of(line);
        let mut dropped = false;
        for (i, c) in self.cores.iter_mut().enumerate() {
            if i == cause.core || !page.may_have(i) {
                continue;
            }
            let copies = c.drop_line(line);
            c.counters.l1i.invalidated += u64::from(copies.l1i);
            c.counters.l1d.invalidated += u64::from(copies.l1d);
            c.counters.l2.invalidated += u64::from(copies.l2);
            dropped |= copies.any();
            debug_assert!(!copies.dirty, "cleaned before");
        }
        if dropped {
            self.cores[cause.core].counters.upgrades += 1;
            cause.stalls.upgrade += self.upgrade_cycles;
        }
    }

    /// The core's private caches have a line of the page from now on.
    #[inline]
    pub(super) fn note_core(&mut self, line: u64, core: usize) {
        let page = self.pages.of(line);
        if !page.may_have(core) && page.others(core) {
            self.share(line >> PAGE_LINES_SHIFT);
        }
        self.pages.note_core(line, core);
    }

    /// More than one core will have the page: stores to its clean lines pass no filter any more.
    #[inline(never)]
    fn share(&mut self, pfn: u64) {
        let page = self.pages.page(pfn);
        let owners = self.cores.iter_mut().enumerate();
        for (_, c) in owners.filter(|(i, _)| page.may_have(*i)) {
            for line in page.lines(pfn) {
                if let Some(slot) = c.l1d.cache.find(line).filter(|&s| !c.l1d.dirty(s)) {
                    c.l1d.forget_write(slot);
                }
            }
        }
    }

    /// Makes a line that another core holds dirty clean there; whether there was one.
    pub(super) fn clean_others(&mut self, core: usize, line: u64) -> bool {
        let page = self.pages.of(line);
        let mut was_dirty = false;
        for (i, c) in self.cores.iter_mut().enumerate() {
            if i == core || !page.may_have(i) {
                continue;
            }
            if let Some(slot) = c.l1d.cache.find(line).filter(|&s| c.l1d.take_dirty(s)) {
                c.l1d.cache.set_dirty(slot, false);
                c.l1d.forget_write(slot);
                was_dirty = true;
            }
            if let Some(l2) = &mut c.l2
                && let Some(slot) = l2.find(line).filter(|&s| l2.dirty(s))
            {
                l2.set_dirty(slot, false);
                was_dirty = true;
            }
        }
        was_dirty
    }

    /// Whether another core holds the line dirty.
    pub(super) fn dirty_elsewhere(&self, core: usize, line: u64) -> bool {
        let page = self.pages.of(line);
        page.others(core)
            && self.cores.iter().enumerate().any(|(i, c)| {
                i != core
                    && page.may_have(i)
                    && (c.l1d.cache.find(line).is_some_and(|s| c.l1d.dirty(s))
                        || c.l2
                            .as_ref()
                            .is_some_and(|l2| l2.find(line).is_some_and(|s| l2.dirty(s))))
            })
    }

    /// The line leaves an inclusive LLC: no core keeps it. Whether one had it dirty.
    pub(super) fn drop_back(&mut self, line: u64) -> bool {
        let page = self.pages.of(line);
        let mut dirty = false;
        for (i, c) in self.cores.iter_mut().enumerate() {
            if !page.may_have(i) {
                continue;
            }
            let copies = c.drop_line(line);
            c.counters.l1i.back_invalidated += u64::from(copies.l1i);
            c.counters.l1d.back_invalidated += u64::from(copies.l1d);
            c.counters.l2.back_invalidated += u64::from(copies.l2);
            dirty |= copies.dirty;
        }
        dirty
    }

    /// Takes a page's lines out of all caches, dirty ones to DRAM, which is current then; charged and counted if there is a
    /// cause.
    pub(super) fn flush_page(&mut self, env: &Env<'_>, pfn: u64, mut cause: Option<&mut Cause>) {
        if cause.is_none() {
            self.note_flush(pfn);
        }
        self.empty_page(env, pfn, |hier, line, dirty| {
            if dirty {
                let domain = hier.pages.of(line).domain();
                hier.write_dram(env, cause.as_deref_mut(), line, domain, false);
            }
        });
        self.pages.settle(env);
    }

    /// [`Hier::flush_page`] without writing anything.
    pub(super) fn discard_page(&mut self, env: &Env<'_>, pfn: u64) {
        self.note_flush(pfn);
        self.empty_page(env, pfn, |_, _, _| {});
    }

    /// For [`MemCtl::take_flushes`](crate::MemCtl::take_flushes).
    fn note_flush(&mut self, pfn: u64) {
        if let Some(flushed) = &mut self.flushed {
            flushed.push(pfn);
        }
    }

    fn empty_page(&mut self, env: &Env<'_>, pfn: u64, mut out: impl FnMut(&mut Self, u64, bool)) {
        let page = self.pages.page(pfn);
        for line in page.lines(pfn) {
            let mut dirty = self.llc.remove(line).unwrap_or(false);
            for (i, c) in self.cores.iter_mut().enumerate() {
                if page.may_have(i) {
                    dirty |= c.drop_line(line).dirty;
                }
            }
            out(self, line, dirty);
            self.pages.leave(env, line);
        }
    }
}

/// Where a core had a line.
#[derive(Clone, Copy)]
pub(super) struct Copies {
    l1i: bool,
    l1d: bool,
    l2: bool,
    dirty: bool,
}

impl Copies {
    fn any(self) -> bool {
        self.l1i | self.l1d | self.l2
    }
}

impl Core {
    /// Takes the line out of the core's caches and filters.
    fn drop_line(&mut self, line: u64) -> Copies {
        let l1i = self.l1i.remove(line);
        let l1d = self.l1d.remove(line);
        let l2 = self.l2.as_mut().and_then(|l2| l2.remove(line));
        Copies {
            l1i: l1i.is_some(),
            l1d: l1d.is_some(),
            l2: l2.is_some(),
            dirty: l1d == Some(true) || l2 == Some(true),
        }
    }
}
