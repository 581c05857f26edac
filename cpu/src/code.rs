//! Self-modifying code: which frames hold decoded code, and what a write to them undoes.
//!
//! Decoded blocks and translations are kept by linear address, but a write reaches code through any
//! mapping of its frame. So the frames are the key here:
//! 1. A frame with decoded code has no write tag in the fast TLB: [`Vcpu::note_code`] strips it, fills
//!    don't give it.
//! 2. A write that gets past the tags (fill, kernel write) first drops the frame's code: every linear
//!    page it was decoded at goes to [`Vcpu::dropped_code`] and [`Vcpu::dropped_blocks`], and
//!    [`Vcpu::code_epoch`] grows. Then the frame is ordinary again.
//! 3. An engine drains its list before it runs anything by address, and compares the epoch after a
//!    store inside a block.
//!
//! The frames are the cluster's ([`crate::smp`]), the linear pages a vCPU's own: a write by another vCPU
//! reaches this one as mail, which it reads before it runs anything more by address.

use std::collections::BTreeMap;

use sevlab_arch::{PAGE_SIZE, Spa, Va};

use crate::mmu::{Access, Translation};
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Past this many undrained pages a list is sorted and freed of duplicates.
const COMPACT: usize = 4096;

/// Linear pages that hold decoded code.
#[derive(Default)]
pub(crate) struct CodeMap {
    /// The frame each linear page was decoded from.
    pages: BTreeMap<u64, u64>,
    /// The linear page noted last.
    recent: Option<Noted>,
}

/// A linear page that is noted: as long as the fast TLB lets it be fetched at that host address, and nothing was dropped from it, it
/// is that frame. (Frames come and go at one address of the view.)
#[derive(Clone, Copy)]
struct Noted {
    page: u64,
    host: usize,
    /// [`FastTlb::drops`](sevlab_memctl::FastTlb::drops) when it was noted.
    drops: u64,
    frame: Spa,
}

impl Vcpu {
    /// Announces that code at `va`'s page is being decoded: from here on a write to its frame is
    /// noticed. Returns the frame. Call it before reading the bytes.
    pub fn note_code(&mut self, va: Va) -> Result<Spa, Stop> {
        let page = va.page().0;
        if let Some(r) = self.code.recent
            && r.page == page
            && r.drops == self.tlb.drops()
            && self.exec_host(page) == Some(r.host)
        {
            return Ok(r.frame);
        }
        let drops = self.tlb.drops();
        let t = self.translate_code(va)?;
        let pfn = t.spa.pfn();
        match self.code.pages.get(&page) {
            Some(&known) if known == pfn && self.model.is_some() => return Ok(t.spa.page()),
            Some(&known) if known == pfn => {
                let host = self
                    .mem
                    .host_page(t.domain, t.spa.page(), false)
                    .map_err(Stop::Host)?;
                // A fast-TLB entry may be older than the page tables: only one that agrees will do.
                let host = host.map(|h| h.addr().get());
                if let Some(host) = host.filter(|h| self.exec_host(page) == Some(*h)) {
                    let frame = t.spa.page();
                    self.code.recent = Some(Noted {
                        page,
                        host,
                        drops,
                        frame,
                    });
                }
                return Ok(t.spa.page());
            }
            // The page is now another frame: what was decoded before is void.
            Some(_) => self.drop_page_code(page),
            None => {}
        }
        self.code.pages.insert(page, pfn);
        self.cluster.add_code(&self.seat, page, pfn);
        if self.cluster.written_by_others(&self.seat, t.spa) {
            // One of them may be between its probe and its store.
            let mine = self.begin_exclusive();
            let stripped = self.strip_write_tags(&t);
            if mine {
                self.end_exclusive();
            }
            stripped?;
            // What was read in the mail may have undone the above.
            return self.note_code(va);
        }
        self.strip_write_tags(&t)?;
        Ok(t.spa.page())
    }

    /// Where code at `va` is decoded from. Under a model this is no access of the guest's.
    fn translate_code(&mut self, va: Va) -> Result<Translation, Stop> {
        if self.model.is_none() {
            return self.translate(va, Access::Exec);
        }
        Ok(self.resolve(va, Access::Exec)?.0)
    }

    /// Where the fast TLB has `page` for fetches.
    fn exec_host(&self, page: u64) -> Option<usize> {
        Some(self.probe_exec(page, 1)?.addr().get())
    }

    fn strip_write_tags(&mut self, t: &Translation) -> Result<(), Stop> {
        if self.model.is_some() {
            self.mem.drop_line_writes(t.spa.page());
            self.cluster.no_writers(t.spa);
            return Ok(());
        }
        // Of the frame's two possible host pages only one can have tags at a time: the controller
        // drops those of the other domain when it brings the page in.
        self.mem
            .drop_writes(t.domain, t.spa.page())
            .map_err(Stop::Host)?;
        self.cluster.no_writers(t.spa);
        Ok(())
    }

    /// Whether `[va, va + len)` touches a frame that holds decoded code. For the slow store path of
    /// translated code: when true, the store is left to the interpreter. No side effects; false also
    /// where the translation faults (the store will find out).
    pub fn would_hit_code(&mut self, va: u64, len: u64) -> bool {
        let modelled = self.model.is_some();
        let tagged = |v: &Self| len <= PAGE_SIZE && v.probe_write_tag(va, len).is_some();
        if len == 0 || !modelled && tagged(self) {
            return false;
        }
        if modelled && va & 63 <= 64 - len.min(64) && self.filtered(va, len.min(64), true).is_some()
        {
            return false;
        }
        let last = Va(va.wrapping_add(len - 1)).page();
        let mut at = Va(va);
        loop {
            let frame = if modelled {
                self.frame_for_write(at.0)
            } else {
                self.peek(at, Access::Write).ok().map(|t| t.spa)
            };
            if frame.is_some_and(|spa| self.cluster.holds(spa)) {
                return true;
            }
            if at.page() == last {
                return false;
            }
            at = at.page().plus(PAGE_SIZE);
        }
    }

    /// Whether code decoded at `va`'s page is current.
    #[must_use]
    pub fn has_code(&self, va: Va) -> bool {
        self.code.pages.contains_key(&va.page().0)
    }

    /// Whether the frame of `spa` holds decoded code.
    #[must_use]
    pub fn frame_has_code(&self, spa: Spa) -> bool {
        self.cluster.holds(spa)
    }

    /// Drops all code decoded from the frame of `spa`: for whoever changes its bytes other than
    /// through this vCPU's writes.
    pub fn drop_frame_code(&mut self, spa: Spa) {
        for page in self.cluster.take_code(&self.seat, spa.pfn()) {
            self.drop_page_code(page);
        }
    }

    /// Drops all code decoded in `[start, end)`, as munmap and mprotect need.
    pub fn drop_code_range(&mut self, start: Va, end: Va) {
        if start >= end {
            return;
        }
        let pages: Vec<u64> = self
            .code
            .pages
            .range(start.page().0..end.0)
            .map(|(&p, _)| p)
            .collect();
        for page in pages {
            self.drop_page_code(page);
        }
    }

    /// Drops all decoded code.
    pub fn drop_all_code(&mut self) {
        let pages: Vec<u64> = self.code.pages.keys().copied().collect();
        for page in pages {
            self.drop_page_code(page);
        }
    }

    /// Another vCPU wrote to the frame that `page` was decoded from.
    pub(crate) fn drop_decoded(&mut self, page: u64, pfn: u64) {
        if self.code.pages.get(&page) == Some(&pfn) {
            self.drop_page_code(page);
        }
    }

    fn drop_page_code(&mut self, page: u64) {
        if self.code.recent.is_some_and(|r| r.page == page) {
            self.code.recent = None;
        }
        if let Some(pfn) = self.code.pages.remove(&page) {
            self.cluster.remove_code(&self.seat, page, pfn);
        }
        self.code_epoch += 1;
        self.counters.code_drops += 1;
        for list in [&mut self.dropped_code, &mut self.dropped_blocks] {
            if list.last() != Some(&page) {
                list.push(page);
            }
            // An engine that is not there never drains: keep the list at one entry a page.
            if list.len() >= COMPACT && list.len().is_power_of_two() {
                list.sort_unstable();
                list.dedup();
            }
        }
    }
}
