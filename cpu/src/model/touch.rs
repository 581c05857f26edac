//! The slow path of an access: TLBs, page walk, caches, and what of it takes time.

use core::ptr::NonNull;

use sevlab_arch::rmp::BOOKKEEPING_SIZE;
use sevlab_arch::{Gpa, Spa, Va};
use sevlab_memctl::{Domain, Grant, Line, LineKind, PageSize, Stalls};

use super::known::{at_byte, each_page};
use super::overlap::Code;
use super::tlb::Entry;
use super::trace::{Touch, TraceEvent};
use super::uses::Uses;
use super::{At, CoreModel, StallCycles};
use crate::decode::{self, MAX_LEN};
use crate::mmu::{Access, Seen, Steps};
use crate::stop::Stop;
use crate::vcpu::{SevMode, Vcpu};

/// Bytes of an RMP entry.
const RMP_ENTRY: u64 = 16;

/// Table entries that a walk really reads: where they are, with what else is to know in bits that their addresses do not have.
#[derive(Default)]
struct Reads {
    list: [u64; 24],
    len: usize,
}

impl Reads {
    const NESTED: u64 = 1;
    /// The walk sets bits in it.
    const CHANGES: u64 = 2;
    const BITS: u64 = 7;

    fn push(&mut self, spa: u64, nested: bool, changes: bool) {
        if let Some(to) = self.list.get_mut(self.len) {
            let nested = if nested { Self::NESTED } else { 0 };
            let changes = if changes { Self::CHANGES } else { 0 };
            *to = spa | nested | changes;
            self.len += 1;
        }
    }

    fn list(&self) -> &[u64] {
        &self.list[..self.len]
    }
}

/// What becomes of a store, and of decoded code in its frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// The code is dropped.
    Goes,
    /// It may stay: the store is only announced.
    Stays,
    /// The store is not made.
    InTheWay,
}

impl Vcpu {
    /// An access of `n` bytes at `va` inside one line by the instruction at `at`, through TLB and caches. Returns the host
    /// address of `va`'s byte; `None` for a store into a frame with decoded code, which is the interpreter's to make: all that is done of it
    /// then is the translation. The short way has been tried ([`super::short`]).
    ///
    /// # Errors
    /// The translation faults; TLBs, caches and counters are then as before.
    #[inline]
    pub fn touch_data(
        &mut self,
        va: u64,
        n: u64,
        access: Access,
        at: At,
    ) -> Result<Option<NonNull<u8>>, Stop> {
        if let Some(host) = self.touch_longer(va, access, at) {
            return Ok(Some(host));
        }
        // Where misses overlap, a translation and its access are one miss.
        let overlaps = self.model.as_ref().is_some_and(|m| m.overlap.is_some());
        if overlaps && access == Access::Write && self.would_hit_code(va, n) {
            return Ok(None);
        }
        self.touch_rest(va, n, access, at, Decoded::InTheWay)
    }

    /// The same by the interpreter.
    ///
    /// # Errors
    /// As [`Vcpu::touch_data`].
    #[inline]
    pub(crate) fn touch(
        &mut self,
        va: u64,
        n: u64,
        access: Access,
        at: At,
        decoded: Decoded,
    ) -> Result<NonNull<u8>, Stop> {
        if let Some(host) = self.touch_known(va, access, at) {
            return Ok(host);
        }
        let host = self.touch_rest(va, n, access, at, decoded)?;
        host.ok_or_else(no_model)
    }

    /// The same of a page that is not known.
    #[inline(never)]
    fn touch_rest(
        &mut self,
        va: u64,
        n: u64,
        access: Access,
        at: At,
        decoded: Decoded,
    ) -> Result<Option<NonNull<u8>>, Stop> {
        debug_assert!(va & 63 <= 64 - n);
        self.start();
        let epoch = self.mem.rmp().epoch();
        let e = self.model_entry(va, access, at)?;
        let spa = Spa(e.spa | va & e.mask());
        let store = access == Access::Write;
        if e.writable {
            // Before the look at the code bits, see `crate::smp`.
            self.cluster.note_writer(&self.seat, spa);
        }
        let mut code = self.cluster.holds(spa);
        if code && store {
            match decoded {
                Decoded::Stays => {}
                Decoded::Goes => {
                    self.drop_frame_code(spa);
                    code = false;
                }
                Decoded::InTheWay => {
                    self.settle(at, LineKind::Store);
                    return Ok(None);
                }
            }
        }
        let mut write = e.writable && !code;
        if let Some(pages) = &mut self.writes {
            write &= store;
            if store && pages.last() != Some(&Va(va).page().0) {
                pages.push(Va(va).page().0);
            }
        }
        let line = Line {
            va: Va(va),
            spa,
            domain: self.domain(e.private),
            kind: if store {
                LineKind::Store
            } else {
                LineKind::Load
            },
            grant: Grant { read: true, write },
            stamp: 0,
            now: 0,
        };
        let host = self.model_line(line, n, &e, at)?;
        self.settle(at, line.kind);
        let stores = e.writable && (store || self.rmp_allows(&e, va, Access::Write));
        if let Some(m) = &mut self.model {
            m.known_data.set(va, &e, 0, line.domain, epoch, stores);
            if let Some((at, below)) = m.tlbs.second.as_ref().and_then(|t| t.lookup(va))
                && below == e
            {
                m.known_second.set(va, &e, at, line.domain, epoch, stores);
            }
        }
        Ok(Some(at_byte(host, va)))
    }

    /// Fetches the line of `va` for the instruction at `at`, and makes it [`CpuState::fetch_line`](crate::CpuState::fetch_line).
    ///
    /// # Errors
    /// As [`Vcpu::touch_data`].
    pub fn touch_fetch(&mut self, va: u64, at: At) -> Result<(), Stop> {
        if let Some(done) = self.fetch_known(va, at) {
            return done;
        }
        self.start();
        let epoch = self.mem.rmp().epoch();
        let e = self.model_entry(va, Access::Exec, at)?;
        let line = Line {
            va: Va(va),
            spa: Spa(e.spa | va & e.mask()),
            domain: self.domain(true),
            kind: LineKind::Fetch,
            grant: Grant::default(),
            stamp: 0,
            now: 0,
        };
        self.model_line(line, 1, &e, at)?;
        self.settle(at, LineKind::Fetch);
        if let Some(m) = &mut self.model {
            m.known_code.set(va, &e, 0, line.domain, epoch, false);
        }
        self.fetched(va);
        Ok(())
    }

    #[inline]
    pub(crate) fn fetched(&mut self, va: u64) {
        self.state.fetch_line = va >> 6;
        self.state.fetched += 1;
    }

    /// An access begins. As long as it hits the first level everywhere, that is all.
    fn start(&mut self) {
        if let Some(m) = &mut self.model {
            m.pending = StallCycles::default();
            m.begun = false;
        }
    }

    /// The access under way does not hit: when it is issued.
    fn begin(&mut self, at: At, fetch: bool) {
        let fetched = self.state.fetched;
        let Some(m) = &mut self.model else { return };
        if core::mem::replace(&mut m.begun, true) {
            return;
        }
        let time = m.cycles_at(at.tally, fetched);
        m.issue = time;
        if let Some(mut o) = m.overlap.take() {
            let mut stalls = core::mem::take(&mut m.counters.stalls);
            let (clock, trail) = (self.stamp(at) - 1, self.state.trail);
            let issue = o.begin(self, trail, clock, time, fetch, &mut stalls);
            if let Some(m) = &mut self.model {
                m.counters.stalls = stalls;
                m.issue = issue;
                m.overlap = Some(o);
            }
        }
    }

    /// It is over.
    fn settle(&mut self, at: At, kind: LineKind) {
        let clock = self.stamp(at) - 1;
        let Some(m) = &mut self.model else { return };
        let parts = m.pending;
        if parts == StallCycles::default() {
            return;
        }
        match &mut m.overlap {
            Some(o) if kind == LineKind::Fetch => {
                m.counters.stalls.add(&parts);
                o.passed(parts.total());
            }
            Some(o) => o.missed(clock, m.issue, kind == LineKind::Store, parts),
            None => {
                m.counters.stalls.add(&parts);
                m.waited += parts.total();
            }
        }
    }

    /// The access itself, when its translation is known.
    fn model_line(&mut self, line: Line, n: u64, e: &Entry, at: At) -> Result<NonNull<u8>, Stop> {
        let stamp = self.stamp(at);
        let hits = match &self.model {
            Some(m) if m.overlap.is_some() => self.mem.would_hit(m.core, &line),
            _ => false,
        };
        if !hits {
            self.begin(at, line.kind == LineKind::Fetch);
        }
        let Some(m) = &mut self.model else {
            return Err(no_model());
        };
        let now = m.issue + m.pending.total();
        let line = Line { stamp, now, ..line };
        if let Some(trace) = &mut self.trace {
            trace(&TraceEvent::Touch(Touch {
                core: m.core,
                stamp,
                kind: line.kind,
                va: line.va,
                len: n,
                gpa: Gpa(e.gpa | line.va.0 & e.mask()),
                spa: line.spa,
                domain: line.domain,
                large: e.large,
                writable: e.writable,
                executable: e.executable,
            }));
        }
        let served = self.mem.line(m.core, &line).map_err(Stop::Host)?;
        m.pending.add_line(&served);
        Ok(served.host)
    }

    /// The translation of `va` for an access, out of TLBs or by a walk.
    fn model_entry(&mut self, va: u64, access: Access, at: At) -> Result<Entry, Stop> {
        let user = self.state.cpl == 3;
        let allows = |e: &Entry| {
            e.user == user
                && match access {
                    Access::Read => true,
                    Access::Write => e.writable,
                    Access::Exec => e.executable,
                }
        };
        let fetch = access == Access::Exec;
        let tlbs = |v: &mut Self| v.model.as_mut().map(|m| m.tlbs.first(fetch).lookup(va));
        let Some(first) = tlbs(self) else {
            return Err(no_model());
        };
        if let Some((_, e)) = first.filter(|(_, e)| allows(e))
            && self.still_allowed(&e, va, access)
        {
            return Ok(e);
        }
        self.second_level(va, access, allows, at)
    }

    /// Whether the RMP lets an entry's access through, as it did when the entry was made. If not, the entries are gone.
    fn still_allowed(&mut self, e: &Entry, va: u64, access: Access) -> bool {
        if self.mode != SevMode::Snp || self.rmp_allows(e, va, access) {
            return true;
        }
        if let Some(m) = &mut self.model {
            m.drop_entry(va);
        }
        self.tell(|core| TraceEvent::Dead { core, va: Va(va) });
        false
    }

    /// What the first-level TLB does not have.
    fn second_level(
        &mut self,
        va: u64,
        access: Access,
        allows: impl Fn(&Entry) -> bool,
        at: At,
    ) -> Result<Entry, Stop> {
        let fetch = access == Access::Exec;
        let second = |m: &mut Box<CoreModel>| m.tlbs.second(fetch).and_then(|t| t.lookup(va));
        let found = self.model.as_mut().and_then(second);
        let found = found.filter(|(_, e)| allows(e));
        let found = found.filter(|(_, e)| self.still_allowed(e, va, access));
        let e = match found {
            Some((way, e)) => {
                self.begin(at, fetch);
                if let Some(m) = &mut self.model {
                    if let Some(t) = m.tlbs.second(fetch) {
                        t.touch(way);
                    }
                    m.tlb_counters(fetch).second_hits += 1;
                    m.pending.tlb += u64::from(m.model.latency.tlb2_cycles);
                }
                e
            }
            None => {
                let e = self.walk_and_wait(va, access, at)?;
                if let Some(m) = &mut self.model {
                    m.fill_second(va, e, fetch);
                }
                e
            }
        };
        let Some(m) = &mut self.model else {
            return Err(no_model());
        };
        if m.tlbs.modelled() {
            m.tlb_counters(fetch).misses += 1;
        }
        if fetch {
            m.fill_fetch(va, e);
        } else {
            m.fill_data(va, e);
        }
        match found {
            Some(_) if fetch => m.fetches.wake(Va(va)),
            Some(_) => m.lines.wake(Va(va)),
            None => each_page(va & !e.mask(), e.large, |at| {
                m.lines.forget_sleeping(Va(at));
                m.fetches.forget_sleeping(Va(at));
            }),
        }
        Ok(e)
    }

    /// What a walk finds. Its memory references are made, and the RMP's.
    fn walk_and_wait(&mut self, va: u64, access: Access, at: At) -> Result<Entry, Stop> {
        let fetch = access == Access::Exec;
        let mut steps = Steps::default();
        let again = match self.trace {
            Some(_) => Err(Seen::default()),
            None => self.walk_again(va, access, &mut steps),
        };
        let (e, log) = match again {
            Ok(e) => (e, None),
            Err(seen) => {
                let (e, log) = self.model_walk(va, access, seen)?;
                (e, Some(log))
            }
        };
        if !self.model.as_ref().is_some_and(|m| m.tlbs.modelled()) {
            return Ok(e);
        }
        self.begin(at, fetch);
        let rmp = (self.mode == SevMode::Snp).then(|| {
            // The nested page's size is the entry's, or the check would have failed.
            let pages = e.nested.map_or(1, PageSize::pages);
            let frame = (e.spa | va & e.mask()) >> 12 & !(pages - 1);
            Spa(self.mem.rmp().base().0 + BOOKKEEPING_SIZE + frame * RMP_ENTRY)
        });
        let guest = self.domain(true);
        let Some(m) = &mut self.model else {
            return Err(no_model());
        };
        m.tlb_counters(fetch).walks += 1;
        m.pending.walk += u64::from(m.model.latency.walk_cycles);
        let mut reads = Reads::default();
        if let Some(mut log) = log {
            if let Some(trace) = &mut self.trace {
                trace(&TraceEvent::Walk {
                    core: m.core,
                    va: Va(va),
                    access,
                    refs: &log.refs,
                    guest,
                    leaf: log.leaf,
                    rmp,
                });
            }
            m.caches.filter(va, &mut log);
            for r in &log.refs {
                reads.push(r.spa.0, r.nested != 0, r.changes);
            }
        } else {
            let caches = &mut m.caches;
            caches.filter_again(va, &steps, |spa, nested| reads.push(spa, nested, false));
        }
        let domain = self.domain(fetch || e.private);
        self.foresee(&reads, rmp, Spa(e.spa | va & e.mask()), domain);
        self.references(&reads, rmp, at)?;
        Ok(e)
    }

    /// A walk's memory references, the RMP's, and the access that it is for: what they need of the host is asked for all at once.
    fn foresee(&self, reads: &Reads, rmp: Option<Spa>, spa: Spa, domain: Domain) {
        let Some(m) = &self.model else { return };
        let guest = self.domain(true);
        let walk = reads.list().iter().map(|r| {
            let nested = r & Reads::NESTED != 0;
            let domain = if nested { Domain::Shared } else { guest };
            (Spa(r & !Reads::BITS), domain)
        });
        let rmp = rmp.map(|spa| (spa, Domain::Shared));
        let all = walk.chain(rmp).chain([(spa, domain)]);
        self.mem.foresee(m.core, all);
    }

    /// A walk's memory references, and the RMP's.
    fn references(&mut self, reads: &Reads, rmp: Option<Spa>, at: At) -> Result<(), Stop> {
        let (stamp, guest) = (self.stamp(at), self.domain(true));
        let Some(m) = &mut self.model else {
            return Err(no_model());
        };
        let mut line = Line {
            va: Va(0),
            spa: Spa(0),
            domain: Domain::Shared,
            kind: LineKind::Walk,
            grant: Grant::default(),
            stamp,
            now: m.issue + m.pending.total(),
        };
        let reads = reads.list();
        for r in reads {
            let (nested, changes) = (r & Reads::NESTED != 0, r & Reads::CHANGES != 0);
            line.spa = Spa(r & !Reads::BITS);
            line.domain = if nested { Domain::Shared } else { guest };
            line.kind = if changes {
                LineKind::WalkWrite
            } else {
                LineKind::Walk
            };
            let s = self.mem.line(m.core, &line).map_err(Stop::Host)?.stalls;
            let all = total(&s);
            m.counters.walk_writes += u64::from(changes);
            m.pending.aes += u64::from(s.aes);
            m.pending.walk += all - u64::from(s.aes);
            line.now += all;
        }
        m.counters.walk_reads += reads.len() as u64;
        if let Some(spa) = rmp {
            (line.spa, line.domain, line.kind) = (spa, Domain::Shared, LineKind::Rmp);
            let s = self.mem.line(m.core, &line).map_err(Stop::Host)?.stalls;
            m.counters.rmp_reads += 1;
            m.pending.rmp += total(&s) + u64::from(m.model.latency.rmp_cycles);
        }
        Ok(())
    }

    /// The stamp of the instruction at `at`.
    #[inline]
    pub(crate) fn stamp(&self, at: At) -> u64 {
        at.retired.wrapping_add(self.state.repeats).wrapping_add(1)
    }
}

impl Code for Vcpu {
    fn uses(&mut self, rip: u64) -> Option<Uses> {
        let mut bytes = [0; MAX_LEN];
        let n = self.fetch(rip, &mut bytes).ok()?;
        let i = decode::decode(rip, &bytes[..n]).ok()?;
        Some(Uses::of(&i))
    }
    fn epoch(&self) -> u64 {
        self.code_epoch
    }
}

/// [`Stalls::total`], in place.
#[inline]
fn total(s: &Stalls) -> u64 {
    let own = u64::from(s.cache) + u64::from(s.dram) + u64::from(s.aes);
    own + u64::from(s.write_back) + u64::from(s.upgrade)
}

#[cold]
fn no_model() -> Stop {
    Stop::Host(sevlab_memctl::Error::NoCore { core: 0 })
}
