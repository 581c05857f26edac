#![allow(unsafe_code)] // bytes of pages by their host addresses
//! Where the bytes of a page are: what the rest of the controller asks before it touches them. Without a view that is at home,
//! always; see [`crate::view`].

use std::collections::HashSet;
use std::iter;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use sevlab_arch::{Asid, PAGE_SHIFT, PAGE_SIZE, Spa, Va};

use crate::cipher::PAGE;
use crate::ctl::{Domain, Fill, MemCtl, Meta};
use crate::error::Error;
use crate::tlb::Perms;
use crate::view::Place;

/// A page's bytes, aligned as a page is.
#[repr(C, align(4096))]
pub(crate) struct PageCopy(pub [u8; PAGE]);

/// Reads from a page at `page` what lies at `at` in it.
pub(crate) fn read_at(page: NonNull<u8>, at: Spa, out: &mut [u8]) {
    let offset = at.offset() as usize;
    assert!(out.len() <= PAGE - offset, "a read across a page");
    // SAFETY: `page` is the address of a readable page, and the range lies inside it, just checked; `out` is a Rust slice, which no
    // mapping of ours is.
    unsafe {
        page.as_ptr()
            .add(offset)
            .copy_to_nonoverlapping(out.as_mut_ptr(), out.len());
    }
}

/// Writes to a page at `page` what lies at `at` in it.
pub(crate) fn write_at(page: NonNull<u8>, at: Spa, data: &[u8]) {
    let offset = at.offset() as usize;
    assert!(data.len() <= PAGE - offset, "a write across a page");
    // SAFETY: as in `read_at`, of a writable page.
    unsafe {
        page.as_ptr()
            .add(offset)
            .copy_from_nonoverlapping(data.as_ptr(), data.len());
    }
}

/// The aligned word at `at` in the page at `page`, which lives as long as the lock is held.
pub(crate) fn word<'a>(page: NonNull<u8>, at: Spa) -> &'a AtomicU64 {
    let offset = at.offset() as usize;
    assert!(offset.is_multiple_of(8), "{at} is not a multiple of 8");
    // SAFETY: inside a page of memory that is never unmapped before the controller goes, aligned.
    unsafe { AtomicU64::from_ptr(page.as_ptr().add(offset).cast()) }
}

impl MemCtl {
    /// Little of what lies at these whole pages is going to be touched, so it comes in the host's small pages: to clear a huge one takes as
    /// long as some hundreds of small ones.
    ///
    /// # Panics
    /// The range is not in DRAM.
    pub fn sparse(&self, range: Range<Spa>) {
        let len = (range.end.0 - range.start.0) as usize;
        for region in iter::once(&self.dram.raw).chain(self.dram.plain_of()) {
            region.small_pages(range.start.0, len);
        }
    }

    /// The view, if there is one: the host address of guest address 0, and how many bytes of guest virtual memory lie from
    /// there on. An address of it can be accessed if a fast TLB may have an entry for it ([`MemCtl::fill_tlb`]); any other
    /// access is a fault of the host's.
    #[must_use]
    pub fn view(&self) -> Option<(NonNull<u8>, u64)> {
        self.view.as_ref().map(|v| (v.base(), v.size()))
    }

    /// Nobody may access the view at `[start, end)` any more, before a page is filled anew: the guest's translations there go.
    /// Entries of fast TLBs for pages that are there go too, whatever addresses they are for.
    pub fn close_view(&self, start: Va, end: Va) {
        if let Some(view) = &self.view {
            view.park(&self.lock().slots, &self.tlbs, start.0..end.0);
        }
    }

    /// As [`MemCtl::close_view`], for whatever addresses show `pages` pages of system physical memory from `start` on: who changes
    /// nested tables or the like.
    pub fn close_frames(&self, start: Spa, pages: u64) {
        let frames = start.pfn()..start.pfn().saturating_add(pages);
        if let Some(view) = &self.view
            && frames.clone().any(|pfn| view.place(pfn).in_view())
        {
            let meta = self.lock();
            frames.for_each(|pfn| view.park_page(&meta.slots, &self.tlbs, pfn));
        }
    }

    /// Nobody may write through the view any more, before a page is filled anew for writing.
    pub fn close_view_writes(&self) {
        if let Some(view) = &self.view {
            view.lower_all(&self.lock().slots, &self.tlbs);
        }
    }

    /// The rights that the view gives at an address: read, and write.
    #[must_use]
    pub fn view_rights(&self, va: Va) -> (bool, bool) {
        match &self.view {
            Some(view) => view.rights(&self.lock().slots, va),
            None => (false, false),
        }
    }

    /// Asks the host for a line that is about to be accessed: a matter of speed alone.
    #[inline]
    pub fn ask_for(&self, d: Domain, a: Spa) {
        let region = match (d, self.dram.plain_of()) {
            (Domain::Private(_), Some(plain)) => plain,
            _ => &self.dram.raw,
        };
        if a.0 >= self.size() {
            return;
        }
        crate::hier::host::prefetch_write(region.ptr(a.0).as_ptr());
    }

    /// An aligned word of a private line that is in a simulated cache; `None`, with nothing done, of another.
    pub(crate) fn cached_word(&self, asid: Asid, a: Spa) -> Option<u64> {
        let before = self.states.get(a.pfn())?;
        // The owner is the cached lines', and a page without any has none.
        if before.owner() != Some(asid) || !self.is_line_cached(a) {
            return None;
        }
        let v = self.dram.plain().load(a.0);
        // Still the same stay.
        (self.states.get(a.pfn()) == Some(before)).then_some(v)
    }

    /// Whether the page has a place in the sense of [`crate::view`].
    #[inline]
    pub(crate) fn has_place(&self, pfn: u64) -> bool {
        self.view.is_some() && self.states.get(pfn).is_some()
    }

    /// Whether the page's bytes are at home.
    #[inline]
    pub(crate) fn is_home(&self, pfn: u64) -> bool {
        match &self.view {
            Some(view) => view.place(pfn) == Place::HOME,
            None => true,
        }
    }

    /// The page's address at home.
    fn home(&self, pfn: u64) -> NonNull<u8> {
        let at = pfn << PAGE_SHIFT;
        match self.states.get(pfn).and_then(|s| s.owner()) {
            Some(_) => self.dram.plain().ptr(at),
            None => self.dram.raw.ptr(at),
        }
    }

    /// Brings the page's bytes home.
    pub(crate) fn settle(&self, meta: &mut Meta, pfn: u64) {
        let Some(view) = &self.view else { return };
        let place = view.place(pfn);
        if place == Place::ZERO {
            // SAFETY: a page of one of the two mappings.
            unsafe { self.home(pfn).as_ptr().write_bytes(0, PAGE) };
            view.set_place(pfn, Place::HOME);
        } else if place.in_view() {
            view.leave(&mut meta.slots, &self.tlbs, pfn, Some(self.home(pfn)));
        }
    }

    /// The address of the page's bytes for reading, or for reading and writing; good as long as the lock is held.
    pub(crate) fn bytes(&self, meta: &mut Meta, pfn: u64, write: bool) -> NonNull<u8> {
        if let Some(view) = &self.view {
            if let Some(host) = view.usable(view.place(pfn), write) {
                return host;
            }
            self.settle(meta, pfn);
        }
        self.home(pfn)
    }

    /// The address of the page's bytes for reading them once, in `copy` if not otherwise: nothing moves.
    pub(crate) fn source(&self, meta: &Meta, pfn: u64, copy: &mut PageCopy) -> NonNull<u8> {
        let Some(view) = &self.view else {
            return self.home_of_resident(pfn);
        };
        let place = view.place(pfn);
        if place == Place::ZERO {
            copy.0.fill(0);
        } else if place.in_view() {
            if let Some(host) = view.usable(place, false) {
                return host;
            }
            view.read_parked(&meta.slots, place, &mut copy.0);
        } else {
            return self.home_of_resident(pfn);
        }
        NonNull::from(&mut copy.0).cast()
    }

    /// Of a page that is resident, or was an instant ago.
    fn home_of_resident(&self, pfn: u64) -> NonNull<u8> {
        self.dram.plain().ptr(pfn << PAGE_SHIFT)
    }

    /// Calls `f` with the address of the page, of which DRAM is the only copy.
    pub(crate) fn with_raw<R>(&self, pfn: u64, write: bool, f: impl FnOnce(NonNull<u8>) -> R) -> R {
        if self.has_place(pfn) {
            let mut meta = self.lock();
            self.evict(&mut meta, pfn);
            f(self.bytes(&mut meta, pfn, write))
        } else {
            self.make_raw(pfn);
            f(self.dram.raw.ptr(pfn << PAGE_SHIFT))
        }
    }

    /// Makes DRAM itself, not the view, hold the page, which belongs to nobody.
    pub(crate) fn to_dram(&self, meta: &mut Meta, pfn: u64) {
        self.evict(meta, pfn);
        if self.has_place(pfn) {
            self.settle(meta, pfn);
        }
    }

    /// Replaces the content of a page that is where it belongs.
    pub(crate) fn overwrite(&self, meta: &mut Meta, pfn: u64, fill: Fill<'_>) {
        match fill {
            Fill::Decrypt => {}
            Fill::Data(data) => {
                self.void(meta, pfn, true);
                write_at(self.bytes(meta, pfn, true), Spa(pfn << PAGE_SHIFT), data);
            }
            Fill::Zero => {
                self.void(meta, pfn, false);
                match &self.view {
                    // Somebody may read it at home.
                    Some(view) if !meta.slots.is_handed(pfn) => view.set_place(pfn, Place::ZERO),
                    // SAFETY: a page of one of the two mappings.
                    _ => unsafe { self.home(pfn).as_ptr().write_bytes(0, PAGE) },
                }
            }
        }
    }

    /// The page's content is void: it is at home, or with `keep` in a slot that can be written.
    fn void(&self, meta: &mut Meta, pfn: u64, keep: bool) {
        let Some(view) = &self.view else { return };
        let place = view.place(pfn);
        if keep && view.usable(place, true).is_some() {
            return;
        }
        view.leave(&mut meta.slots, &self.tlbs, pfn, None);
        view.set_place(pfn, Place::HOME);
    }

    /// Takes the write tags for the page away, wherever it is, and the view's right.
    pub(crate) fn drop_write_tags(&self, meta: &Meta, pfn: u64) {
        if let Some(view) = &self.view
            && view.place(pfn).in_view()
        {
            view.lower(&meta.slots, &self.tlbs, pfn);
        } else {
            self.tlbs.drop_write_host(self.home(pfn));
        }
    }

    /// The place of the page for a fast-TLB entry of `va` with these rights: its slot there, if it can be. `seen`: the view may
    /// show it.
    pub(crate) fn place_for(
        &self,
        meta: &mut Meta,
        pfn: u64,
        va: Va,
        perms: Perms,
        seen: bool,
    ) -> NonNull<u8> {
        let Some(view) = self.view.as_ref().filter(|_| self.has_place(pfn)) else {
            return self.home(pfn);
        };
        let place = view.place(pfn);
        if place.in_view() {
            let enough = view.usable(place, perms.w).is_some();
            if view.is_at(place, va) {
                if seen && view.raise(pfn, perms) || enough {
                    return view.host(view.place(pfn));
                }
            } else if enough {
                return view.host(place);
            } else if !view.is_parked(place) {
                // Two addresses with different rights: no slot can serve both.
                meta.slots.hand_out(pfn, true);
            }
            // Either another address of the page was used before and is no more, or the host allows no more.
            view.leave(&mut meta.slots, &self.tlbs, pfn, Some(self.home(pfn)));
        }
        let alone = self.tlbs.is_single();
        if seen && view.takes(&meta.slots, va, pfn, perms, alone) {
            let free = match view.occupant(&meta.slots, va) {
                None => true,
                Some((other, parked)) if parked || alone => {
                    self.settle(meta, other);
                    true
                }
                Some(_) => false,
            };
            if free {
                if meta.slots.is_handed(pfn) {
                    self.tlbs.drop_host(self.home(pfn));
                    meta.slots.take_back(pfn);
                }
                if self.enter(meta, va, &[pfn], perms.w) {
                    return view.host(view.place(pfn));
                }
            }
        }
        self.settle(meta, pfn);
        meta.slots.hand_out(pfn, false);
        self.home(pfn)
    }

    /// Moves pages into free slots from `va` on. False: they stay.
    fn enter(&self, meta: &mut Meta, va: Va, pages: &[u64], write: bool) -> bool {
        let Some(view) = &self.view else { return false };
        // Who reads without the lock must not take home for the place from here on.
        pages.iter().for_each(|pfn| self.states.moved(*pfn));
        let pages: Vec<_> = pages.iter().map(|pfn| (*pfn, self.home(*pfn))).collect();
        let alone = self.tlbs.is_single();
        view.enter(&mut meta.slots, va, &pages, write, alone)
    }

    /// Moves pages into the slots from `va` on as [`MemCtl::fill_tlb`] would, with the rights to read and, with `write`, to write;
    /// no fast TLB needs to know. `None` is no page. It is a matter of speed alone: pages that can't stay where they are.
    ///
    /// # Errors
    /// As [`MemCtl::host_page`].
    pub fn open_view(
        &self,
        va: Va,
        pages: &[Option<(Domain, Spa)>],
        write: bool,
    ) -> Result<(), Error> {
        let Some(view) = &self.view else {
            return Ok(());
        };
        let mut meta = self.lock();
        let perms = Perms {
            r: true,
            w: write,
            x: false,
        };
        let alone = self.tlbs.is_single();
        let mut seen = HashSet::new();
        let mut run = Vec::with_capacity(pages.len());
        let mut at = va;
        for page in pages.iter().chain(&[None]) {
            let next = at.plus(PAGE_SIZE);
            let pfn = match page {
                Some((d, page)) => Some((*d, self.page_of(*d, *page)?)),
                None => None,
            };
            let fit = pfn.filter(|(_, pfn)| {
                view.occupant(&meta.slots, at).is_none()
                    && view.takes(&meta.slots, at, *pfn, perms, alone)
                    && !meta.slots.is_handed(*pfn)
                    && seen.insert(*pfn)
            });
            if let Some((d, pfn)) = fit {
                self.bring(&mut meta, d, pfn, write)?;
                run.push(pfn);
            } else if !run.is_empty() {
                let first = Va(at.0 - ((run.len() as u64) << PAGE_SHIFT));
                view.want_huge(first, &run);
                self.enter(&mut meta, first, &run, write);
                run.clear();
            }
            at = next;
        }
        Ok(())
    }

    /// Whether the view has room for `va`, where the page is not in it.
    #[must_use]
    pub fn could_enter(&self, va: Va, page: Spa) -> bool {
        let view = self.view.as_ref();
        view.is_some_and(|view| va.0 < view.size() && !view.place(page.pfn()).in_view())
    }

    /// Whether the page is zero and has no place yet.
    #[must_use]
    pub fn is_untouched(&self, page: Spa) -> bool {
        let view = self.view.as_ref();
        view.is_some_and(|view| view.place(page.pfn()) == Place::ZERO)
    }

    /// Makes the page one of the domain's, and dirty with `write`.
    pub(crate) fn bring(
        &self,
        meta: &mut Meta,
        d: Domain,
        pfn: u64,
        write: bool,
    ) -> Result<(), Error> {
        match d {
            Domain::Shared => {
                self.evict(meta, pfn);
                self.dram.mark(pfn);
                Ok(())
            }
            Domain::Private(asid) => self.bring_in(meta, pfn, asid, write, Fill::Decrypt),
        }
    }

    /// Takes the pages, whose content nobody wants, out of the view.
    pub(crate) fn forget_places(&self, meta: &mut Meta, pages: &[u64]) {
        if let Some(view) = &self.view {
            view.forget(&mut meta.slots, &self.tlbs, pages);
        }
    }
}
