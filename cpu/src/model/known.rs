//! The short way of an access that a filter did not pass, but whose page a TLB has: the caches are asked right away.
//!
//! Hits of a first-level TLB change nothing, so a copy of its entries by page serves as well; the second level's copy knows where
//! the entry is, which a hit touches. Nothing here is a rule of the model: whatever this does not know takes the way of
//! [`super::touch`].
//!
//! Invariants:
//! 1. What is known of a page is what the TLB has, of the same privilege: who takes an entry out of the TLB, or changes it, takes
//!    the page out here.
//! 2. The RMP's word on the page was asked for at the noted epoch of the table, and is void at another.

use core::ptr::NonNull;

use sevlab_arch::{Asid, PAGE_SIZE, Spa, Va};
use sevlab_memctl::{Domain, Grant, Line, LineKind, Near, Served};

use super::tlb::Entry;
use super::{At, CoreModel};
use crate::mmu::Access;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Pages that are known at a time of a first-level TLB, and of the second level: more than they mostly have, since two of them may
/// want one place.
pub(super) const FIRST: usize = 8192;
pub(super) const SECOND: usize = 4096;
const NEVER: u64 = u64::MAX;

/// What is known of one page; none lies in two of the host's lines.
#[derive(Clone, Copy)]
#[repr(C, align(32))] // the short way is assembly
pub(super) struct Page {
    /// Its address, with bit 0 for CPL 3.
    pub(super) tag: u64,
    /// Its system-physical address, with bit 0 if a store is allowed, the RMP's word included.
    pub(super) spa: u64,
    /// The RMP's when it was asked.
    pub(super) epoch: u64,
    /// Whose it is: 0 if it is shared, else its ASID and 1.
    pub(super) who: u32,
    /// Where the second-level TLB has it; 0 in what is known of a first level.
    at: u32,
}

const _: () = assert!(size_of::<Page>() == 32);

impl Page {
    const STORE: u64 = 1;

    /// Whether an access may go by it while the RMP is at `epoch`.
    #[inline]
    fn serves(&self, store: bool, epoch: u64) -> bool {
        self.epoch == epoch && (self.stores() || !store)
    }

    #[inline]
    fn stores(&self) -> bool {
        self.spa & Self::STORE != 0
    }

    /// The address of `va`'s byte.
    #[inline]
    fn spa(&self, va: u64) -> Spa {
        Spa(self.spa & !(PAGE_SIZE - 1) | va & (PAGE_SIZE - 1))
    }

    #[inline]
    fn domain(&self) -> Domain {
        match self.who {
            0 => Domain::Shared,
            n => Domain::Private(Asid(n - 1)),
        }
    }
}

/// `PAGES` pages that a TLB has for one kind of access; direct-mapped.
pub(super) struct Known<const PAGES: usize>(Box<[Page; PAGES]>);

impl<const PAGES: usize> Known<PAGES> {
    pub(super) fn new() -> Self {
        let none = Page {
            tag: NEVER,
            spa: 0,
            epoch: 0,
            who: 0,
            at: 0,
        };
        let pages: Box<[Page]> = vec![none; PAGES].into();
        Self(
            pages
                .try_into()
                .unwrap_or_else(|_| unreachable!("as many pages")),
        )
    }

    pub(super) fn pages(&self) -> *const Page {
        self.0.as_ptr()
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

    /// Notes the entry of `va`'s page, for the RMP as it was at `epoch`; of the second level, where it is.
    pub(super) fn set(
        &mut self,
        va: u64,
        e: &Entry,
        at: usize,
        domain: Domain,
        epoch: u64,
        store: bool,
    ) {
        self.0[Self::index(va)] = Page {
            tag: va & !(PAGE_SIZE - 1) | u64::from(e.user),
            spa: (e.spa | va & e.mask()) & !(PAGE_SIZE - 1) | if store { Page::STORE } else { 0 },
            epoch,
            who: match domain {
                Domain::Shared => 0,
                Domain::Private(asid) => asid.0 + 1,
            },
            at: at as u32,
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

/// Calls `f` with each 4 KiB page of a page.
#[inline]
pub(super) fn each_page(page: u64, large: bool, f: impl FnMut(u64)) {
    let size = if large { 1 << 21 } else { 1 << 12 };
    (page..page + size).step_by(1 << 12).for_each(f);
}

/// The host address of `va`'s byte in the line at `host`.
#[inline]
pub(super) fn at_byte(host: NonNull<u8>, va: u64) -> NonNull<u8> {
    host.map_addr(|a| a.saturating_add((va & 63) as usize))
}

impl CoreModel {
    /// Counts what an access waited for that the cache below the first level served, of a core that waits for each.
    #[inline]
    fn wait_for_second(&mut self) {
        let (cycles, of) = self.second();
        *of += cycles;
        self.waited += cycles;
    }

    /// What that comes to each time, and where it is counted.
    #[inline]
    pub(super) fn second(&mut self) -> (u64, &mut u64) {
        let (latency, stalls) = (&self.model.latency, &mut self.counters.stalls);
        if self.model.l2.is_some() {
            (latency.l2_cycles.into(), &mut stalls.l2)
        } else {
            (latency.llc_cycles.into(), &mut stalls.llc)
        }
    }

    /// Brings a page that only the second-level TLB has into the first; whether it has.
    fn lift(&mut self, va: u64, user: bool, store: bool, epoch: u64) -> bool {
        if self.overlap.is_some() || self.known_data.get(va, user).is_some() {
            return false;
        }
        match self.known_below(va, user) {
            Some(p) if p.serves(store, epoch) => {
                self.raise(va, p);
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn known_below(&self, va: u64, user: bool) -> Option<Page> {
        let p = *self.known_second.get(va, user)?;
        self.tlbs.data.lookup(va).is_none().then_some(p)
    }

    /// A hit of the second-level TLB for data, by a core that waits for it.
    fn raise(&mut self, va: u64, p: Page) {
        let Some(second) = &mut self.tlbs.second else {
            return;
        };
        let e = second.entry(p.at as usize);
        second.touch(p.at as usize);
        let cycles = u64::from(self.model.latency.tlb2_cycles);
        self.counters.data_tlb.misses += 1;
        self.counters.data_tlb.second_hits += 1;
        self.counters.stalls.tlb += cycles;
        self.waited += cycles;
        match self.tlbs.data.replace(va, &e) {
            Some(gone) => {
                self.lines.put_to_sleep(Va(gone));
                self.known_data.drop_page(gone);
            }
            None => self.fill_data(va, e),
        }
        self.lines.wake(Va(va));
        self.known_data.0[Known::<FIRST>::index(va)] = p;
    }

    /// Enters a translation into the first-level TLB for data.
    #[inline]
    pub(super) fn fill_data(&mut self, va: u64, e: Entry) {
        let (lines, known) = (&self.lines, &mut self.known_data);
        self.tlbs.data.fill(va, e, |page, large| {
            each_page(page, large, |at| {
                lines.put_to_sleep(Va(at));
                known.drop_page(at);
            });
        });
    }

    /// Enters a translation into the first-level TLB for fetches.
    pub(super) fn fill_fetch(&mut self, va: u64, e: Entry) {
        let (fetches, known) = (&self.fetches, &mut self.known_code);
        self.tlbs.fetch.fill(va, e, |page, large| {
            each_page(page, large, |at| {
                fetches.put_to_sleep(Va(at));
                known.drop_page(at);
            });
        });
    }

    /// Enters what a walk has found into the second-level TLB, if there is one.
    pub(super) fn fill_second(&mut self, va: u64, e: Entry, fetch: bool) {
        let known = &mut self.known_second;
        if let Some(t) = self.tlbs.second(fetch) {
            t.fill(va, e, |page, large| {
                each_page(page, large, |at| known.drop_page(at));
            });
        }
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
    /// [`Vcpu::touch_data`] for a page that is known; `None`, with nothing done, if it is not, if a store would be one into decoded code, or if
    /// the memory controller has something against it.
    #[inline]
    pub fn touch_known(&mut self, va: u64, access: Access, at: At) -> Option<NonNull<u8>> {
        match self.touch_short(va, access, at) {
            Some(host) => Some(host),
            None => self.touch_longer(va, access, at),
        }
    }

    /// The same where the short way has been tried.
    #[inline(never)] // once for all, so that it stays in the host's caches
    pub fn touch_longer(&mut self, va: u64, access: Access, at: At) -> Option<NonNull<u8>> {
        if self.lift(va, access)
            && let Some(host) = self.touch_lifted(va, access, at)
        {
            return Some(host);
        }
        let line = self.known_line(va, access, at)?;
        let fetched = self.state.fetched;
        let m = self.model.as_deref_mut()?;
        let now = || m.cycles_at(at.tally, fetched);
        let host = match self.mem.near(m.core, &line, now).ok()? {
            Near::First(host) => host,
            Near::Second(host) => {
                m.wait_for_second();
                host
            }
            Near::Due => return self.touch_due(va, at),
            Near::Beyond(served) => m.wait_for(&served),
        };
        Some(at_byte(host, va))
    }

    /// As [`CoreModel::lift`], of the page of an access.
    #[inline]
    fn lift(&mut self, va: u64, access: Access) -> bool {
        if self.trace.is_some() || self.writes.is_some() {
            return false;
        }
        let (user, store) = (self.state.cpl == 3, access == Access::Write);
        let epoch = self.mem.rmp().epoch();
        let m = self.model.as_deref_mut();
        m.is_some_and(|m| m.lift(va, user, store, epoch))
    }

    /// The access once more, whose page was lifted: mostly the filter has its line.
    fn touch_lifted(&mut self, va: u64, access: Access, at: At) -> Option<NonNull<u8>> {
        let (store, stamp) = (access == Access::Write, self.stamp(at));
        let m = self.model.as_deref()?;
        match m.lines.hit(Va(va), 1, store, stamp) {
            Some(host) => Some(host),
            None => self.touch_short(va, access, at),
        }
    }

    /// Finishes an access of `va` that [`MemCtl::near`](sevlab_memctl::MemCtl::near) or [`short::touch_data`](super::short::touch_data) says it has left
    /// something of; where that is.
    pub fn touch_due(&mut self, va: u64, at: At) -> Option<NonNull<u8>> {
        let (fetched, user, stamp) = (self.state.fetched, self.state.cpl == 3, self.stamp(at));
        let m = self.model.as_deref_mut()?;
        let p = m.known_data.get(va, user)?;
        let line = Line {
            va: Va(va),
            spa: p.spa(va),
            domain: p.domain(),
            kind: LineKind::Load,
            // Its frame has no code, or there would be nothing to finish.
            grant: Grant {
                read: true,
                write: p.stores(),
            },
            stamp,
            now: 0,
        };
        let now = m.cycles_at(at.tally, fetched);
        let host = match self.mem.finish(m.core, &line, now)? {
            Near::Beyond(served) => m.wait_for(&served),
            Near::Second(host) => {
                m.wait_for_second();
                host
            }
            Near::First(host) => host,
            Near::Due => return None,
        };
        Some(at_byte(host, va))
    }

    /// The access of `va`'s line, if its page is known.
    #[inline(always)] // a page of arguments and results otherwise
    fn known_line(&mut self, va: u64, access: Access, at: At) -> Option<Line> {
        if self.trace.is_some() || self.writes.is_some() {
            return None;
        }
        let stamp = self.stamp(at);
        let m = self.model.as_deref_mut()?;
        if m.overlap.is_some() {
            return None;
        }
        let store = access == Access::Write;
        let p = m.known_data.get(va, self.state.cpl == 3)?;
        if !p.serves(store, self.mem.rmp().epoch()) {
            return None;
        }
        let (spa, stores, domain) = (p.spa(va), p.stores(), p.domain());
        if stores {
            // Before the look at the code bits, see `crate::smp`.
            self.cluster.note_writer(&self.seat, spa);
        }
        let code = self.cluster.holds(spa);
        if code && store {
            return None;
        }
        Some(Line {
            va: Va(va),
            spa,
            domain,
            kind: if store {
                LineKind::Store
            } else {
                LineKind::Load
            },
            grant: Grant {
                read: true,
                write: stores && !code,
            },
            stamp,
            now: 0,
        })
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
            spa: p.spa(va),
            domain: p.domain(),
            kind: LineKind::Fetch,
            grant: Grant::default(),
            stamp,
            now: 0,
        };
        let fetched = self.state.fetched;
        let now = || m.cycles_at(at.tally, fetched);
        match self.mem.near(m.core, &line, now) {
            Ok(Near::First(_)) => {}
            Ok(Near::Second(_) | Near::Due) => m.wait_for_second(),
            Ok(Near::Beyond(served)) => _ = m.wait_for(&served),
            Err(e) => return Some(Err(Stop::Host(e))),
        }
        self.fetched(va);
        Some(Ok(()))
    }
}
