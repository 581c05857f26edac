//! The short way of an access that a filter did not pass, but whose page the first-level TLB has: the caches are asked right away.
//!
//! Hits of a first-level TLB change nothing, so a copy of its entries by page serves as well. Nothing here is a rule of the model:
//! whatever this does not know takes the way of [`super::touch`].
//!
//! Invariants:
//! 1. What is known of a page is what the first-level TLB has, of the same privilege: who takes an entry out of the TLB, or changes
//!    it, takes the page out here.
//! 2. The RMP's word on the page was asked for at the noted epoch of the table, and is void at another.

use core::ptr::NonNull;

use sevlab_arch::{PAGE_SIZE, Spa, Va};
use sevlab_memctl::{Domain, Grant, Line, LineKind, Near, Served};

use super::tlb::Entry;
use super::{At, CoreModel};
use crate::mmu::Access;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

const PAGES: usize = 128;
const NEVER: u64 = u64::MAX;

/// What is known of one page.
#[derive(Clone, Copy)]
struct Page {
    /// Its address, with bit 0 for CPL 3.
    tag: u64,
    spa: u64,
    /// The RMP's when it was asked.
    epoch: u64,
    domain: Domain,
    /// A store is allowed, the RMP's word included.
    store: bool,
}

/// Pages that the first-level TLB of one kind of access has; direct-mapped.
pub(super) struct Known(Box<[Page; PAGES]>);

impl Known {
    pub(super) fn new() -> Self {
        Self(Box::new(
            [Page {
                tag: NEVER,
                spa: 0,
                epoch: 0,
                domain: Domain::Shared,
                store: false,
            }; PAGES],
        ))
    }

    #[inline]
    const fn index(va: u64) -> usize {
        (va >> 12) as usize % PAGES
    }

    #[inline]
    fn get(&self, va: u64, user: bool) -> Option<&Page> {
        let p = &self.0[Self::index(va)];
        (p.tag == va & !(PAGE_SIZE - 1) | u64::from(user)).then_some(p)
    }

    /// Notes the entry of `va`'s page, for the RMP as it was at `epoch`.
    pub(super) fn set(&mut self, va: u64, e: &Entry, domain: Domain, epoch: u64, store: bool) {
        self.0[Self::index(va)] = Page {
            tag: va & !(PAGE_SIZE - 1) | u64::from(e.user),
            spa: (e.spa | va & e.mask()) & !(PAGE_SIZE - 1),
            epoch,
            domain,
            store,
        };
    }

    /// The 4 KiB page at `va` is in the TLB no more.
    #[inline]
    pub(super) fn drop_page(&mut self, va: u64) {
        let p = &mut self.0[Self::index(va)];
        if p.tag & !1 == va & !(PAGE_SIZE - 1) {
            p.tag = NEVER;
        }
    }

    pub(super) fn flush(&mut self) {
        self.0.iter_mut().for_each(|p| p.tag = NEVER);
    }
}

impl CoreModel {
    /// Counts what an access waited for that L2 served, of a core that waits for each.
    #[inline]
    fn wait_for_l2(&mut self) {
        let cycles = u64::from(self.model.latency.l2_cycles);
        self.counters.stalls.l2 += cycles;
        self.waited += cycles;
    }

    /// The same of whatever served it; where the line is.
    #[inline]
    fn wait_for(&mut self, s: &Served) -> NonNull<u8> {
        self.counters.stalls.add_line(s);
        self.waited += s.stalls.total();
        s.host
    }
}

impl Vcpu {
    /// [`Vcpu::touch_data`] for a page that is known; `None`, with nothing done, if it is not, or if a store would be one into
    /// decoded code.
    #[inline]
    pub fn touch_known(
        &mut self,
        va: u64,
        access: Access,
        at: At,
    ) -> Option<Result<NonNull<u8>, Stop>> {
        if self.trace.is_some() || self.writes.is_some() {
            return None;
        }
        let stamp = self.stamp(at);
        let m = self.model.as_deref_mut()?;
        let p = m.known_data.get(va, self.state.cpl == 3)?;
        let store = access == Access::Write;
        if p.epoch != self.mem.rmp().epoch() || store && !p.store || m.overlap.is_some() {
            return None;
        }
        let spa = Spa(p.spa | va & (PAGE_SIZE - 1));
        if p.store {
            // Before the look at the code bits, see `crate::smp`.
            self.cluster.note_writer(&self.seat, spa);
        }
        let code = self.cluster.holds(spa);
        if code && store {
            return None;
        }
        let line = Line {
            va: Va(va),
            spa,
            domain: p.domain,
            kind: if store {
                LineKind::Store
            } else {
                LineKind::Load
            },
            grant: Grant {
                read: true,
                write: p.store && !code,
            },
            stamp,
            now: 0,
        };
        let host = match self.mem.near(m.core, &line) {
            Some(Near::First(host)) => host,
            Some(Near::Second(host)) => {
                m.wait_for_l2();
                host
            }
            None => {
                let now = m.cycles_at(at.tally, self.state.fetched);
                match self.mem.line(m.core, &Line { now, ..line }) {
                    Ok(served) => m.wait_for(&served),
                    Err(e) => return Some(Err(Stop::Host(e))),
                }
            }
        };
        let offset = (va & 63) as usize;
        Some(Ok(host.map_addr(|a| a.saturating_add(offset))))
    }

    /// [`Vcpu::touch_fetch`] likewise.
    #[inline]
    pub(super) fn fetch_known(&mut self, va: u64, at: At) -> Option<Result<(), Stop>> {
        if self.trace.is_some() {
            return None;
        }
        let stamp = self.stamp(at);
        let m = self.model.as_deref_mut()?;
        let p = m.known_code.get(va, self.state.cpl == 3)?;
        if p.epoch != self.mem.rmp().epoch() || m.overlap.is_some() {
            return None;
        }
        let line = Line {
            va: Va(va),
            spa: Spa(p.spa | va & (PAGE_SIZE - 1)),
            domain: p.domain,
            kind: LineKind::Fetch,
            grant: Grant::default(),
            stamp,
            now: 0,
        };
        match self.mem.near(m.core, &line) {
            Some(Near::First(_)) => {}
            Some(Near::Second(_)) => m.wait_for_l2(),
            None => {
                let now = m.cycles_at(at.tally, self.state.fetched);
                match self.mem.line(m.core, &Line { now, ..line }) {
                    Ok(served) => _ = m.wait_for(&served),
                    Err(e) => return Some(Err(Stop::Host(e))),
                }
            }
        }
        self.fetched(va);
        Some(Ok(()))
    }
}
