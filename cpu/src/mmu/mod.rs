//! The MMU: guest linear address to host pointer, and everything that may go wrong in between.
//!
//! A translation has two dimensions (APM vol. 2, 15.25): the guest's own 4-level tables, in guest
//! memory ([`walk`](self)), and for every guest physical address on the way the nested tables, in the
//! hypervisor's plain memory ([`nested`](self)). Under SNP each frame that comes out is checked
//! against the RMP.
//!
//! Invariants:
//! 1. Guest page tables and instruction bytes of an encrypted guest are private whatever the C-bit
//!    says (APM vol. 2, 15.34.5); only data accesses honour it.
//! 2. A fast-TLB entry never grants more than a walk at the same CPL would, without side effects left
//!    to do: the write tag means the dirty bit is set and the frame holds no decoded code.
//! 3. The walk caches hold only upper levels whose accessed bits are set. They may go stale exactly
//!    where hardware's may; a fault found through one is confirmed by a full walk before it counts.
//! 4. A walk for a model goes past these caches. Where it has been before it is made again in fewer steps ([`again`](self)), with
//!    the result of a full one.
//! 5. Whoever changes nested tables, or the RMP entry of a page-table page, calls
//!    [`Vcpu::flush_nested`].

mod again;
mod cache;
mod nested;
pub mod npf;
pub mod pte;
mod walk;

use core::ptr::NonNull;

use sevlab_arch::{Gpa, PAGE_SIZE, Spa, Va};
use sevlab_memctl::{Domain, Perms};

use crate::model::WalkLog;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use again::Memo;
pub(crate) use again::{Seen, Steps};
use cache::{NestedCache, PageCache, WalkCache};

/// Most pages that the view is opened for beside the one that is filled.
const AHEAD: u64 = 512;
/// Bytes for which they are opened at once.
const LARGE: u64 = 2 << 20;
/// Bytes that the view is opened for at once where the guest reads.
const AROUND: u64 = 8 * PAGE_SIZE;

/// What a memory access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Exec,
}

/// Where a linear address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Guest physical address, C-bit stripped.
    pub gpa: Gpa,
    /// System physical address.
    pub spa: Spa,
    /// The C-bit of the mapping (always false with SEV off).
    pub private: bool,
    /// The domain that this access uses: for a fetch, private in any encrypted guest.
    pub domain: Domain,
    /// A write at this CPL needs nothing more: permitted everywhere, dirty bits set.
    pub writable: bool,
    /// A fetch at this CPL is permitted.
    pub executable: bool,
    /// The guest mapping is a user page.
    pub user: bool,
}

/// Paging configuration and walk caches of one vCPU.
pub(crate) struct Paging {
    pub(crate) c_mask: u64,
    /// Physical address bits 51 down to the guest's width, without the C-bit: reserved in entries.
    pub(crate) reserved: u64,
    pub(crate) nested: NestedCache,
    pub(crate) walk: WalkCache,
    pub(crate) pages: PageCache,
    memo: Memo,
    /// Where the next fill is expected if they follow each other, and how many pages it opens the view for.
    ahead: (u64, u64),
    /// Of the walk under way, if it notes what it reads: it uses no cache then.
    pub(crate) log: Option<Box<WalkLog>>,
}

impl Paging {
    pub(crate) fn new(c_bit: u32, phys_bits: u32) -> Self {
        let c_mask = 1u64 << c_bit.min(51);
        Self {
            c_mask,
            reserved: ((1 << 52) - 1) & !((1 << phys_bits.clamp(32, 48)) - 1) & !c_mask,
            nested: NestedCache::new(),
            walk: WalkCache::new(),
            pages: PageCache::new(),
            memo: Memo::new(),
            ahead: (0, 1),
            log: None,
        }
    }
}

impl Vcpu {
    /// The domain of memory whose C-bit is `private`.
    #[must_use]
    pub fn domain(&self, private: bool) -> Domain {
        if private && self.mode.encrypted() {
            Domain::Private(self.asid)
        } else {
            Domain::Shared
        }
    }

    /// Translates `va` for `access` as hardware does before the access: permissions checked, accessed
    /// and dirty bits set. Stops with #GP(0) for a non-canonical address, #PF, or a nested fault.
    pub fn translate(&mut self, va: Va, access: Access) -> Result<Translation, Stop> {
        // Under a model the fetch that sets bits is the instruction's own, not that of its decoding.
        let commit = self.model.is_none() || access != Access::Exec;
        self.walk(va.0, access, commit)
    }

    /// Translates without side effects: no accessed or dirty bit is set, no cache filled.
    pub fn peek(&mut self, va: Va, access: Access) -> Result<Translation, Stop> {
        match self.paging.pages.get(va.0, access, self.state.cpl == 3) {
            Some(t) => Ok(t),
            None => self.walk(va.0, access, false),
        }
    }

    /// Translates `va` for `access`, makes the page resident and enters it into the fast TLB. Returns
    /// the host address of `va`'s byte, good until the next call into the memory controller; `None`
    /// if such memory has none (cache mode `none`). A fill for writing drops the frame's decoded code.
    pub fn fill(&mut self, va: Va, access: Access) -> Result<Option<NonNull<u8>>, Stop> {
        Ok(self.resolve(va, access)?.1)
    }

    pub(crate) fn resolve(
        &mut self,
        va: Va,
        access: Access,
    ) -> Result<(Translation, Option<NonNull<u8>>), Stop> {
        let user = self.state.cpl == 3;
        let known = self.paging.pages.get(va.0, access, user);
        let t = match known {
            Some(t) => t,
            None => self.translate(va, access)?,
        };
        let writing = access == Access::Write;
        // Before the look at the code bits, see `crate::smp`.
        if t.writable {
            self.cluster.note_writer(&self.seat, t.spa);
        }
        if writing && self.cluster.holds(t.spa) {
            self.drop_frame_code(t.spa);
        }
        if known.is_some() {
            return Ok((t, None));
        }
        if self.model.is_some() {
            // What is not the guest's own access goes past the caches, without host addresses.
            if let Some(pages) = self.writes.as_mut().filter(|_| writing) {
                pages.push(va.page().0);
            }
            if self.may_cache(&t) {
                self.paging.pages.put(va.0, access, user, t);
            }
            return Ok((t, None));
        }
        // A write tag means writes that nobody sees, so the page must count as dirty from now on.
        // Only where pages are pushed out would that cost anything.
        let data_domain = self.domain(t.private);
        // Whoever makes the frame code after the look above has seen this vCPU noted, and waits until it is out of guest code: a write
        // that is under way may still be done.
        let is_free = || t.domain == Domain::Shared || self.mem.config().resident.is_none();
        let mut grant_write = t.writable
            && data_domain == t.domain
            && (writing || !self.cluster.holds(t.spa) && is_free());
        if let Some(pages) = &mut self.writes {
            grant_write &= writing;
            if writing {
                pages.push(va.page().0);
            }
        }
        let write = writing || grant_write;
        let cached = self.may_cache(&t);
        let page = if cached {
            // One entry has one addend: where data and fetch use different domains, an entry holds
            // only the rights of the access that filled it.
            let same = data_domain == self.domain(true);
            let perms = Perms {
                r: access != Access::Exec || same,
                w: grant_write,
                x: t.executable && (access == Access::Exec || same),
            };
            self.counters.tlb_fills += 1;
            if user && !write && self.writes.is_none() {
                self.open_around(va.page(), t)?;
            }
            let (mem, page) = (&self.mem, t.spa.page());
            if user {
                mem.fill_tlb(&self.tlb, va.page(), t.domain, page, perms)
            } else {
                mem.fill_tlb_unseen(&self.tlb, va.page(), t.domain, page, perms)
            }
        } else {
            self.mem.host_page(t.domain, t.spa.page(), write)
        };
        let page = page.map_err(Stop::Host)?;
        if page.is_none() && cached {
            self.paging.pages.put(va.0, access, user, t);
        }
        if cached
            && user
            && self.writes.is_none()
            && let Some(page) = page
        {
            self.open_ahead(va.page(), page, t, grant_write)?;
        }
        let byte = page.and_then(|p| NonNull::new(p.as_ptr().wrapping_add(va.offset() as usize)));
        Ok((t, byte))
    }

    /// Opens the view for more pages than `va`'s, which is at `host`: for some that follow where pages are filled one after the
    /// other, for the rest of 2 MiB where neighbours wait for their first use. A fault of the host's in translated code costs far
    /// more than what is done here.
    fn open_ahead(
        &mut self,
        va: Va,
        host: NonNull<u8>,
        t: Translation,
        write: bool,
    ) -> Result<(), Stop> {
        let Some((base, size)) = self.mem.view() else {
            return Ok(());
        };
        let next = va.plus(PAGE_SIZE);
        let (expected, window) = self.paging.ahead;
        let window = if va.0 == expected {
            (window * 2).min(AHEAD)
        } else {
            1
        };
        self.paging.ahead = (next.0, window);
        let slot = base.addr().get() as u64 + va.0;
        if !write || va.0 >= size || host.addr().get() as u64 != slot {
            return Ok(());
        }
        // A table of the last level is the same for so much.
        let large = Va(va.0 & !(LARGE - 1))..Va(next.0.next_multiple_of(LARGE));
        let pages = if window > 1 {
            next..Va((next.0 + window * PAGE_SIZE).min(large.end.0))
        } else if large.contains(&next) && self.waits_like(next, t) {
            large
        } else {
            return Ok(());
        };
        let mut list = Vec::with_capacity(AHEAD as usize);
        let mut at = pages.start;
        while at.0 < pages.end.0 {
            let page = self.opens_like(at, t);
            if page.is_none() && window > 1 {
                break;
            }
            list.push(page);
            at = at.plus(PAGE_SIZE);
        }
        if window > 1 {
            self.paging.ahead.0 = at.0;
        }
        let opened = self.mem.open_view(pages.start, &list, write);
        opened.map_err(Stop::Host)
    }

    /// Opens the view for reading `va`'s page, unless it is there, and what lies around it, and the guest may read, too.
    fn open_around(&mut self, va: Va, t: Translation) -> Result<(), Stop> {
        if !self.mem.could_enter(va, t.spa) {
            return Ok(());
        }
        let first = Va(va.0 & !(AROUND - 1));
        let pages = (first.0..first.0 + AROUND).step_by(PAGE_SIZE as usize);
        let list: Vec<_> = pages.map(|at| self.reads_like(Va(at), t)).collect();
        let opened = self.mem.open_view(first, &list, false);
        opened.map_err(Stop::Host)
    }

    /// The page at `va`, if it can be opened for reading together with one that `t` leads to, and somebody has written to it.
    fn reads_like(&mut self, va: Va, t: Translation) -> Option<(Domain, Spa)> {
        // Sets accessed bits, as a processor that walks ahead may.
        let next = self.translate(va, Access::Read).ok()?;
        let fits = next.domain == t.domain
            && next.private == t.private
            && !self.mem.is_untouched(next.spa.page());
        fits.then(|| (next.domain, next.spa.page()))
    }

    /// The page at `va`, if it can be opened for writing together with one that `t` leads to.
    fn opens_like(&mut self, va: Va, t: Translation) -> Option<(Domain, Spa)> {
        // D says that a write has nothing to set any more.
        let next = self.peek(va, Access::Read).ok()?;
        if !next.writable || next.domain != t.domain || next.private != t.private {
            return None;
        }
        self.cluster.note_writer(&self.seat, next.spa);
        (!self.cluster.holds(next.spa)).then(|| (next.domain, next.spa.page()))
    }

    /// Whether the page at `va` could be opened together with one that `t` leads to, and nobody has used it yet.
    fn waits_like(&mut self, va: Va, t: Translation) -> bool {
        let page = self.opens_like(va, t);
        page.is_some_and(|(_, page)| self.mem.is_untouched(page))
    }

    /// Whether the fast TLB may hold the mapping. With SMAP on, a supervisor's right to a user page
    /// follows RFLAGS.AC, which the tags don't know.
    fn may_cache(&self, t: &Translation) -> bool {
        !(self.state.cpl != 3 && t.user && self.state.sys.cr4 & walk::CR4_SMAP != 0)
    }

    /// INVLPG: forgets the mapping of `va`'s page, the cached upper levels, and decoded code there.
    pub fn invlpg(&mut self, va: Va) {
        self.mem.close_view(va.page(), va.page().plus(PAGE_SIZE));
        self.tlb.drop_va(va.page());
        self.paging.walk.flush();
        self.paging.pages.flush();
        self.model_drop_page(va.0);
        self.drop_code_range(va.page(), va.page().plus(PAGE_SIZE));
    }

    /// Forgets all guest mappings. Decoded code stays: a caller that changed what is mapped where
    /// executable also calls [`Vcpu::drop_code_range`], or uses [`Vcpu::set_cr3`].
    pub fn flush_tlb(&mut self) {
        self.mem.close_view(Va(0), Va(u64::MAX));
        self.forget_mappings();
        self.model_flush(false);
    }

    pub(crate) fn forget_mappings(&mut self) {
        self.tlb.flush();
        self.paging.walk.flush();
        self.paging.pages.flush();
        self.counters.tlb_flushes += 1;
    }

    /// Forgets all guest and nested mappings: for whoever changed nested tables or the RMP.
    pub fn flush_nested(&mut self) {
        self.mem.close_view(Va(0), Va(u64::MAX));
        self.forget_nested();
    }

    pub(crate) fn forget_nested(&mut self) {
        self.paging.nested.flush();
        self.forget_mappings();
        self.model_flush(true);
    }

    /// MOV to CR3: another address space. All mappings and all decoded code are forgotten.
    pub fn set_cr3(&mut self, cr3: u64) {
        self.state.sys.cr3 = cr3;
        self.flush_tlb();
        self.drop_all_code();
    }

    /// Translates a guest physical address for a data access of that C-bit, with the RMP's check.
    pub fn gpa_to_spa(&mut self, gpa: Gpa, private: bool, access: Access) -> Result<Spa, Stop> {
        let leaf = self.nested(gpa.0, access, npf::FINAL, private, true)?;
        self.check_rmp(gpa, leaf.at(), access, private, npf::FINAL)?;
        Ok(leaf.spa)
    }

    /// Reads guest physical memory as the guest would with that C-bit; any length.
    pub fn read_gpa(&mut self, gpa: Gpa, private: bool, out: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < out.len() {
            let at = gpa.plus(done as u64);
            let n = ((4096 - at.offset()) as usize).min(out.len() - done);
            let spa = self.gpa_to_spa(at, private, Access::Read)?;
            self.mem
                .read(self.domain(private), spa, &mut out[done..done + n])
                .map_err(Stop::Host)?;
            done += n;
        }
        Ok(())
    }

    /// Writes guest physical memory as the guest would with that C-bit; any length. Decoded code in
    /// the frames is dropped.
    pub fn write_gpa(&mut self, gpa: Gpa, private: bool, data: &[u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < data.len() {
            let at = gpa.plus(done as u64);
            let n = ((4096 - at.offset()) as usize).min(data.len() - done);
            let spa = self.gpa_to_spa(at, private, Access::Write)?;
            if self.cluster.holds(spa) {
                self.drop_frame_code(spa);
            }
            self.mem
                .write(self.domain(private), spa, &data[done..done + n])
                .map_err(Stop::Host)?;
            done += n;
        }
        Ok(())
    }
}
