//! Prefetchers: trained by demand misses of L1D, filling L2 (the LLC where there is none). They charge nothing.

use super::Hier;
use super::access::{Cause, NOTHING};
use super::data::{Env, PAGE_LINES_SHIFT};
use crate::ctl::Domain;

/// Pages that the stride prefetcher follows at a time.
pub(super) const PAGES: u64 = 16;
const LAST: i64 = 63;

/// What a core's stride prefetcher knows of one page.
#[derive(Clone, Copy)]
#[repr(C, align(32))] // the short way is assembly
pub(super) struct Stream {
    pub page: u64,
    pub last: i64,
    pub stride: i64,
}

/// A core's stride prefetcher.
pub(super) struct Strides([Stream; PAGES as usize]);

impl Strides {
    pub(super) fn new() -> Self {
        Self(
            [Stream {
                page: u64::MAX,
                last: 0,
                stride: 0,
            }; PAGES as usize],
        )
    }

    pub(super) fn streams(&mut self) -> *mut Stream {
        self.0.as_mut_ptr()
    }

    /// A miss; the distance at which the next ones are expected.
    #[inline]
    pub(super) fn train(&mut self, line: u64) -> Option<i64> {
        let (page, at) = (line >> PAGE_LINES_SHIFT, (line & 63) as i64);
        let s = &mut self.0[(page % PAGES) as usize];
        if s.page != page {
            *s = Stream {
                page,
                last: at,
                stride: 0,
            };
            return None;
        }
        let distance = at - s.last;
        if distance == 0 {
            return None;
        }
        let before = std::mem::replace(&mut s.stride, distance);
        s.last = at;
        (before == distance).then_some(distance)
    }
}

impl Hier {
    /// A load or a store missed L1D, and is done.
    #[inline]
    pub(super) fn after_miss(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64, d: Domain) {
        let mut free = Cause::new(cause.core, cause.now);
        let at = (line & 63) as i64;
        if self.next_line && at < LAST {
            self.foresee(env, free.core, line + 1, d);
            self.prefetch(env, &mut free, line + 1, d);
        }
        if self.degree > 0
            && let Some(stride) = self.cores[cause.core].strides.train(line)
        {
            self.prefetch_stride(env, &mut free, line, stride, d);
        }
    }

    /// Brings in what lies at that distance from a line of its page, and so on.
    pub(super) fn prefetch_stride(
        &mut self,
        env: &Env<'_>,
        free: &mut Cause,
        line: u64,
        stride: i64,
        d: Domain,
    ) {
        let mut at = (line & 63) as i64;
        for _ in 0..self.degree {
            at += stride;
            if !(0..=LAST).contains(&at) {
                return;
            }
            let to = line & !63 | at as u64;
            if self.prefetch_far(env, free.core, free.now, to, d).is_none() {
                self.prefetch(env, free, to, d);
            }
        }
        // What will be next to come in, if this goes on.
        at += stride;
        if (0..=LAST).contains(&at) {
            self.foresee(env, free.core, line & !63 | at as u64, d);
        }
    }

    #[inline(never)]
    fn prefetch(&mut self, env: &Env<'_>, cause: &mut Cause, line: u64, d: Domain) {
        let core = cause.core;
        let absent = !self.pages.of(line).has(line);
        if !absent
            && let Some(l2) = &self.cores[core].l2
            && l2.find(line).is_some()
        {
            return;
        }
        let in_llc = !absent && self.llc.find(line).is_some();
        let there = in_llc && self.cores[core].l2.is_none();
        if there || self.dirty_elsewhere(core, line) {
            return;
        }
        self.in_flight[0] = line;
        if !in_llc {
            self.fill_llc(env, cause, line, false);
            cause.owed = self.pages.arrive(env, line, d);
            self.read_dram(cause, line, d, false);
            self.cores[core].counters.llc.prefetched += 1;
        }
        if self.cores[core].l2.is_some() {
            self.fill_l2(env, cause, line, false);
            self.cores[core].counters.l2.prefetched += 1;
        }
        self.in_flight[0] = NOTHING;
        self.pages.decrypt(env, line, cause.owed.take());
    }
}
