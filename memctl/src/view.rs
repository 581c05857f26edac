#![allow(unsafe_code)] // rights and content of pages of a reservation that translated code accesses directly
//! The view: guest virtual address plus a constant is a host address.
//!
//! The problem: a probe of the fast TLB at every memory access costs more than most instructions of a guest do. The host's own
//! MMU checks every access anyway.
//!
//! The approach: a reservation of the host's address space, as large as the part of guest virtual memory that process guests
//! use, of which every page (a *slot*) is inaccessible until a fast-TLB entry for its address is made. Then the bytes of the
//! guest's page move into the slot and live there: the fast TLB, the controller and translated code all use that one place. An
//! access to a closed slot is a fault of the host's, which whoever runs translated code turns into a fill. All of it is private
//! anonymous memory, so a fork of the host process copies it on write, and neighbouring slots of equal rights are one mapping.
//!
//! 1. A page of DRAM has one place ([`View::place`]): *home* (`plain` for a page that is resident, DRAM for another), or a slot, or
//!    nowhere since it is *zero* and nobody has used it yet. Home bytes of a page that is not at home mean nothing.
//! 2. A slot belongs to at most one page, and the page's place names it. A slot without a page is inaccessible and reads as zero.
//! 3. A slot can be read or written only where a fast-TLB entry for its own address may have that right. A *parked* slot has a page
//!    and no rights.
//! 4. Places and rights change under the metadata lock. A page's state changes its generation with its place, so that whoever
//!    reads without the lock notices.
//! 5. No fast TLB has an entry for a slot that the slot's rights do not allow, under whatever address: whoever takes rights
//!    away takes the entries first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use sevlab_arch::{PAGE_SHIFT, PAGE_SIZE, Va};

use crate::cipher::PAGE;
use crate::ctl::HostOptions;
use crate::error::Error;
use crate::tlb::{Perms, TlbSet};

/// Where a view may be. It is as large as its address is high, so that translated code needs one register for both. The first is
/// where the largest fits below what the host gives its programs, the others are for more machines in one process.
const PLACES: [u64; 5] = [1 << 45, 1 << 43, 1 << 41, 1 << 39, 1 << 37];
/// Inaccessible bytes on either side, for addresses of which only the base was checked.
const GUARD: usize = 64 << 30;
const HUGE: usize = 2 << 20;
/// Pages of a [`Chunk`].
const CHUNK: u64 = 512;
/// Where a page of DRAM is: an address of the view with the flags below, [`Place::HOME`] or [`Place::ZERO`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u64);

impl Place {
    /// At home.
    pub(crate) const HOME: Self = Self(0);
    /// All zeroes, and home does not know yet.
    pub(crate) const ZERO: Self = Self(8);
    const HERE: u64 = 1;
    const READ: u64 = 2;
    const WRITE: u64 = 4;

    /// In a slot.
    pub(crate) fn in_view(self) -> bool {
        self.0 & Self::HERE != 0
    }
    /// The slot's address.
    fn va(self) -> u64 {
        self.0 & !(PAGE_SIZE - 1)
    }
    fn reads(self) -> bool {
        self.0 & Self::READ != 0
    }
    fn writes(self) -> bool {
        self.0 & Self::WRITE != 0
    }
    fn rights(self) -> u64 {
        self.0 & (Self::READ | Self::WRITE)
    }
}

/// The pages of 2 MiB of slots.
struct Chunk {
    pages: [u32; CHUNK as usize],
    used: u32,
}

const NONE: u32 = u32::MAX;

/// Reserves address space for a view at `place`, guards included.
fn reserve(place: u64) -> Option<NonNull<u8>> {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let at = std::ptr::without_provenance_mut::<libc::c_void>(place as usize - GUARD);
    let len = place as usize + 2 * GUARD;
    // SAFETY: a new mapping, where nothing is.
    let start = unsafe { libc::mmap(at, len, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    if start != at {
        // A host that does not know the last flag.
        // SAFETY: the mapping just made, of which nobody knows.
        unsafe { libc::munmap(start, len) };
        return None;
    }
    NonNull::new(start.cast())
}

/// What changes under the metadata lock.
pub(crate) struct Slots {
    /// By address / 2 MiB.
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// A bit for each page: its home address was put into a fast TLB.
    handed: Box<[u64]>,
    /// A bit for each page: its home address is known elsewhere.
    pinned: Box<[u64]>,
    /// `/proc/self/mem` of the process with this number.
    mem: Option<(u32, File)>,
}

impl Slots {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            chunks: BTreeMap::new(),
            handed: vec![0; pages.div_ceil(64)].into(),
            pinned: vec![0; pages.div_ceil(64)].into(),
            mem: None,
        }
    }

    fn page(&self, va: u64) -> Option<u64> {
        let chunk = self.chunks.get(&(va / HUGE as u64))?;
        let pfn = chunk.pages[(va >> PAGE_SHIFT) as usize % CHUNK as usize];
        (pfn != NONE).then_some(u64::from(pfn))
    }

    fn set(&mut self, va: u64, pfn: u64) {
        let chunk = self.chunks.entry(va / HUGE as u64).or_insert_with(|| {
            Box::new(Chunk {
                pages: [NONE; CHUNK as usize],
                used: 0,
            })
        });
        let slot = &mut chunk.pages[(va >> PAGE_SHIFT) as usize % CHUNK as usize];
        if *slot == NONE {
            chunk.used += 1;
        }
        *slot = pfn as u32;
    }

    fn clear(&mut self, va: u64) {
        let key = va / HUGE as u64;
        if let Some(chunk) = self.chunks.get_mut(&key) {
            let slot = &mut chunk.pages[(va >> PAGE_SHIFT) as usize % CHUNK as usize];
            if *slot != NONE {
                *slot = NONE;
                chunk.used -= 1;
                if chunk.used == 0 {
                    self.chunks.remove(&key);
                }
            }
        }
    }

    /// The slots with a page in a range of addresses: address and page.
    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let keys = range.start / HUGE as u64..range.end.div_ceil(HUGE as u64);
        let range = range.clone();
        self.chunks.range(keys).flat_map(move |(key, chunk)| {
            let base = key * HUGE as u64;
            let first = range.start.saturating_sub(base) >> PAGE_SHIFT;
            let end = ((range.end - base) >> PAGE_SHIFT).min(CHUNK);
            (first..end).filter_map(move |i| {
                let pfn = chunk.pages[i as usize];
                (pfn != NONE).then_some((base + (i << PAGE_SHIFT), u64::from(pfn)))
            })
        })
    }

    /// The page's home address is in a fast TLB; with `pin` somebody outside may have it, too.
    pub(crate) fn hand_out(&mut self, pfn: u64, pin: bool) {
        let (word, bit) = ((pfn / 64) as usize, 1 << (pfn % 64));
        if let (Some(handed), Some(pinned)) = (self.handed.get_mut(word), self.pinned.get_mut(word))
        {
            *handed |= bit;
            if pin {
                *pinned |= bit;
            }
        }
    }

    /// Nobody has the page's home address any more.
    pub(crate) fn take_back(&mut self, pfn: u64) {
        let (word, bit) = ((pfn / 64) as usize, 1u64 << (pfn % 64));
        if let (Some(handed), Some(pinned)) = (self.handed.get_mut(word), self.pinned.get_mut(word))
        {
            *handed &= !bit;
            *pinned &= !bit;
        }
    }

    /// Whether the page's home address may be known.
    pub(crate) fn is_handed(&self, pfn: u64) -> bool {
        self.stays(pfn, false)
    }

    /// Whether the page must stay at home, with one fast TLB (`alone`) or several.
    fn stays(&self, pfn: u64, alone: bool) -> bool {
        let list = if alone { &self.pinned } else { &self.handed };
        list[(pfn / 64) as usize] >> (pfn % 64) & 1 != 0
    }

    /// Opens this process's memory as a file, which minds no rights, with a descriptor of at least `least`.
    pub(crate) fn open_mem(&mut self, least: i32) -> std::io::Result<()> {
        // In a clone of the process the old one is the original's.
        self.mem = None;
        let low = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/proc/self/mem")?;
        // SAFETY: duplicates a descriptor that is open.
        let own = unsafe { libc::fcntl(low.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
        if own < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        self.mem = Some((std::process::id(), unsafe { File::from_raw_fd(own) }));
        Ok(())
    }

    fn mem(&self) -> std::io::Result<&File> {
        match &self.mem {
            Some((of, file)) if *of == std::process::id() => Ok(file),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}

/// The reservation, and where pages are.
pub(crate) struct View {
    base: NonNull<u8>,
    /// Bytes of it.
    size: u64,
    /// What the host gave, with guards.
    whole: (NonNull<u8>, usize),
    /// [`Place`] by page number.
    places: Box<[AtomicU64]>,
    huge_pages: bool,
    least_fd: i32,
}

// SAFETY: the reservation is owned, lives as long as the view and has no thread affinity; every access to its bytes is through
// raw pointers, whose data races are those of the simulated machine.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A view of nothing yet, for a machine with so many pages of DRAM.
    pub(crate) fn new(pages: usize, host: &HostOptions, slots: &mut Slots) -> Result<Self, Error> {
        let (whole, size) = PLACES
            .iter()
            .find_map(|&place| reserve(place).map(|whole| (whole, place)))
            .ok_or_else(|| Error::host("reserving a view of guest memory"))?;
        let all = size as usize + 2 * GUARD;
        let start = whole.as_ptr().cast();
        // SAFETY: inside the mapping.
        let base = unsafe { whole.add(GUARD) };
        let view = Self {
            base,
            size,
            whole: (whole, all),
            places: crate::dram::zeroed_u64(pages),
            huge_pages: host.huge_pages,
            least_fd: host.own_fds,
        };
        // Only advice.
        // SAFETY: inside the mapping.
        unsafe { libc::madvise(start, all, libc::MADV_DONTDUMP) };
        base.as_ptr().expose_provenance(); // fast-TLB addends come back as integers
        // All this rests on it.
        let probe = [0x5a; 16];
        let mut back = [0; 16];
        let tried = slots.open_mem(view.least_fd).and_then(|()| {
            let mem = slots.mem()?;
            mem.write_all_at(&probe, view.addr(0))?;
            mem.read_exact_at(&mut back, view.addr(0))
        });
        view.free(0..PAGE_SIZE);
        if tried.is_err() || back != probe {
            return Err(Error::host("writing through /proc/self/mem"));
        }
        Ok(view)
    }

    /// Bytes of guest virtual memory that it covers, from address 0 on.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Its first byte: guest address 0.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn addr(&self, va: u64) -> u64 {
        self.base.addr().get() as u64 + va
    }

    /// The host address of a guest address inside the view.
    fn ptr(&self, va: u64) -> NonNull<u8> {
        assert!(va < self.size, "{va:#x} is not in the view");
        // SAFETY: inside the reservation, just checked.
        unsafe { self.base.add(va as usize) }
    }

    /// Where the page is. Pages beyond DRAM are at home.
    #[inline]
    pub(crate) fn place(&self, pfn: u64) -> Place {
        let place = self.places.get(pfn as usize);
        Place(place.map_or(0, |p| p.load(Ordering::Acquire)))
    }

    pub(crate) fn set_place(&self, pfn: u64, place: Place) {
        if let Some(p) = self.places.get(pfn as usize) {
            p.store(place.0, Ordering::Release);
        }
    }

    /// The host address of a page in a slot.
    pub(crate) fn host(&self, place: Place) -> NonNull<u8> {
        self.ptr(place.va())
    }

    /// The address of the page's bytes, if they are in a slot that allows that.
    pub(crate) fn usable(&self, place: Place, write: bool) -> Option<NonNull<u8>> {
        let allowed = if write { place.writes() } else { place.reads() };
        (place.in_view() && allowed).then(|| self.ptr(place.va()))
    }

    /// Whether the page could be entered at `va` for these rights now: the slot is free, or can be made so.
    pub(crate) fn takes(&self, slots: &Slots, va: Va, pfn: u64, perms: Perms, alone: bool) -> bool {
        perms.r
            && va.0 < self.size
            && (pfn as usize) < self.places.len()
            && !self.place(pfn).in_view()
            && !slots.stays(pfn, alone)
    }

    /// The rights at an address: read, and write.
    pub(crate) fn rights(&self, slots: &Slots, va: Va) -> (bool, bool) {
        let page = slots.page(va.page().0);
        let place = page.map_or(Place::HOME, |pfn| self.place(pfn));
        (place.reads(), place.writes())
    }

    /// The page that the slot at `va` belongs to, and whether it is parked.
    pub(crate) fn occupant(&self, slots: &Slots, va: Va) -> Option<(u64, bool)> {
        let pfn = slots.page(va.0)?;
        Some((pfn, self.place(pfn).rights() == 0))
    }

    /// Moves pages that are at home, at the addresses given, or zero, into the free slots from `va` on. The caller has changed
    /// their generations. `alone`: no other thread runs guest code. False: the host does not allow it, and nothing has changed.
    pub(crate) fn enter(
        &self,
        slots: &mut Slots,
        va: Va,
        pages: &[(u64, NonNull<u8>)],
        write: bool,
        alone: bool,
    ) -> bool {
        let range = va.0..va.0 + pages.len() as u64 * PAGE_SIZE;
        let each = || range.clone().step_by(PAGE).zip(pages);
        let rights = rights_of(write);
        let filled = each().filter(|(_, (pfn, _))| self.place(*pfn) != Place::ZERO);
        let filled: Vec<_> = filled.map(|(at, (_, home))| (at, *home)).collect();
        // Other threads can touch a slot from the moment that it is open.
        let open = alone && !filled.is_empty() && self.protect(range.clone(), rights_of(true));
        if open && filled.len() > 1 {
            self.populate(range.clone());
        }
        for (at, home) in filled {
            // SAFETY: the caller names the page's bytes at home, 4096 of them, which nobody writes while the metadata lock is
            // held: whoever could has no address.
            let bytes = unsafe { std::slice::from_raw_parts(home.as_ptr(), PAGE) };
            if open {
                // SAFETY: a page of the view that can be written, of which nobody knows.
                unsafe {
                    self.ptr(at)
                        .as_ptr()
                        .copy_from_nonoverlapping(bytes.as_ptr(), PAGE);
                }
                continue;
            }
            let written = slots
                .mem()
                .and_then(|mem| mem.write_all_at(bytes, self.addr(at)));
            if written.is_err() {
                self.free(range);
                return false;
            }
        }
        let mut before = Vec::with_capacity(pages.len());
        for (at, (pfn, _)) in each() {
            before.push(self.place(*pfn));
            self.set_place(*pfn, Place(at | Place::HERE | rights));
        }
        let done = open && write || self.protect(range.clone(), rights);
        if !done {
            for ((pfn, _), place) in pages.iter().zip(before) {
                self.set_place(*pfn, place);
            }
            if open {
                // What is open already joins what it was part of.
                let closed = self.protect(range.clone(), 0);
                assert!(closed, "closing {range:x?} of the view of guest memory");
            }
            self.free(range);
            return false;
        }
        for (at, (pfn, _)) in each() {
            slots.set(at, *pfn);
        }
        let last = (range.end - 1) / HUGE as u64;
        if write
            && self.huge_pages
            && slots
                .chunks
                .get(&last)
                .is_some_and(|c| c.used == CHUNK as u32)
        {
            self.collapse(slots, last);
        }
        true
    }

    /// Makes 2 MiB whose slots have all been filled one huge page, if all can be written. What was filled in order is one already;
    /// the rest misses the host's TLB otherwise, which costs a random access more than it takes.
    fn collapse(&self, slots: &Slots, chunk: u64) {
        let range = chunk * HUGE as u64..(chunk + 1) * HUGE as u64;
        if slots
            .within(&range)
            .all(|(_, pfn)| self.place(pfn).writes())
        {
            let at = self.ptr(range.start);
            // SAFETY: inside the reservation, whose content this does not change. Where the host can't, it stays as it is.
            unsafe { libc::madvise(at.as_ptr().cast(), HUGE, libc::MADV_COLLAPSE) };
        }
    }

    /// Asks for a huge page where the slots from `va` on, with the one before, are a whole one of zero pages: nothing in it has
    /// been touched then, and the first touch finds all of it open.
    pub(crate) fn want_huge(&self, va: Va, pages: &[u64]) {
        let (first, bytes) = (
            va.0.wrapping_sub(PAGE_SIZE),
            (pages.len() as u64 + 1) << PAGE_SHIFT,
        );
        if self.huge_pages
            && first.is_multiple_of(HUGE as u64)
            && bytes == HUGE as u64
            && pages.iter().all(|pfn| self.place(*pfn) == Place::ZERO)
        {
            let at = self.ptr(first);
            // Only advice.
            // SAFETY: inside the reservation, whose content this does not change.
            unsafe { libc::madvise(at.as_ptr().cast(), HUGE, libc::MADV_HUGEPAGE) };
        }
    }

    /// Whether the page is in the slot at `va`.
    pub(crate) fn is_at(&self, place: Place, va: Va) -> bool {
        place.in_view() && place.va() == va.0
    }

    /// Whether the page's slot has no rights.
    pub(crate) fn is_parked(&self, place: Place) -> bool {
        place.in_view() && place.rights() == 0
    }

    /// Gives the page's slot more rights. False: the host does not allow it.
    pub(crate) fn raise(&self, pfn: u64, perms: Perms) -> bool {
        let place = self.place(pfn);
        let mut rights = place.rights();
        if perms.r {
            rights |= rights_of(perms.w);
        }
        if rights == place.rights() {
            return true;
        }
        if !self.protect(place.va()..place.va() + PAGE_SIZE, rights) {
            return false;
        }
        self.set_place(pfn, Place(place.0 | rights));
        true
    }

    /// Takes the write right of the page's slot away.
    pub(crate) fn lower(&self, slots: &Slots, tlbs: &TlbSet, pfn: u64) {
        let place = self.place(pfn);
        if place.writes() {
            tlbs.drop_write_host(self.ptr(place.va()));
            self.reduce(slots, tlbs, place.va()..place.va() + PAGE_SIZE, Place::READ);
        }
    }

    /// Takes all write rights away.
    pub(crate) fn lower_all(&self, slots: &Slots, tlbs: &TlbSet) {
        let mut run: Option<Range<u64>> = None;
        let mut runs = Vec::new();
        for (va, pfn) in slots.within(&(0..self.size)) {
            if !self.place(pfn).writes() {
                continue;
            }
            match &mut run {
                Some(r) if r.end == va => r.end += PAGE_SIZE,
                _ => runs.extend(run.replace(va..va + PAGE_SIZE)),
            }
        }
        runs.extend(run);
        for run in runs {
            for va in run.clone().step_by(PAGE) {
                tlbs.drop_write_host(self.ptr(va));
            }
            self.reduce(slots, tlbs, run, Place::READ);
        }
    }

    /// Parks the slots of `range` that have a page: neither translated code nor a fast TLB reaches them any more.
    pub(crate) fn park(&self, slots: &Slots, tlbs: &TlbSet, range: Range<u64>) {
        let end = range.end.min(self.size).next_multiple_of(PAGE_SIZE);
        let range = range.start & !(PAGE_SIZE - 1)..end;
        if range.start >= range.end {
            return;
        }
        let mut open = slots
            .within(&range)
            .filter(|(_, pfn)| self.place(*pfn).rights() != 0)
            .map(|(va, _)| va);
        let Some(first) = open.next() else { return };
        let last = open.last().unwrap_or(first);
        // What lies between is closed already.
        let all = first..last + PAGE_SIZE;
        tlbs.drop_host_range(self.ptr(first), (all.end - first) / PAGE_SIZE);
        self.reduce(slots, tlbs, all, 0);
    }

    /// [`View::park`] for one page.
    pub(crate) fn park_page(&self, slots: &Slots, tlbs: &TlbSet, pfn: u64) {
        let place = self.place(pfn);
        if place.in_view() {
            self.park(slots, tlbs, place.va()..place.va() + PAGE_SIZE);
        }
    }

    /// Takes the page out of its slot, if it is in one. Its bytes go to `to`, if given, 4096 of them. Its place is home then,
    /// whatever is there.
    pub(crate) fn leave(
        &self,
        slots: &mut Slots,
        tlbs: &TlbSet,
        pfn: u64,
        to: Option<NonNull<u8>>,
    ) {
        let place = self.place(pfn);
        if !place.in_view() {
            return;
        }
        self.park_page(slots, tlbs, pfn);
        if let Some(to) = to {
            // SAFETY: the caller names a page of memory that no Rust reference covers.
            let out = unsafe { std::slice::from_raw_parts_mut(to.as_ptr(), PAGE) };
            self.read_parked(slots, place, out);
        }
        slots.clear(place.va());
        self.set_place(pfn, Place::HOME);
        self.free(place.va()..place.va() + PAGE_SIZE);
    }

    /// Reads the page in a slot, whatever its rights.
    pub(crate) fn read_parked(&self, slots: &Slots, place: Place, out: &mut [u8]) {
        let at = self.addr(place.va());
        let read = slots.mem().and_then(|mem| mem.read_exact_at(out, at));
        if read.is_ok() {
            return;
        }
        // It takes borders between mappings, and a moment in which translated code could read the page.
        let range = place.va()..place.va() + PAGE_SIZE;
        assert!(
            self.protect(range.clone(), Place::READ),
            "reading the view of guest memory at {at:#x}"
        );
        // SAFETY: a page that can be read, just made so; `out` is a Rust slice of at most a page, which no mapping of ours is.
        unsafe {
            self.ptr(range.start)
                .as_ptr()
                .copy_to_nonoverlapping(out.as_mut_ptr(), out.len().min(PAGE));
        }
        assert!(self.protect(range, place.rights()), "closing {at:#x}");
    }

    /// In a clone of the host process, before the guest goes on.
    pub(crate) fn forked(&self, slots: &mut Slots) {
        // Without it pages stay at home, and those that leave their slots take longer.
        let _ = slots.open_mem(self.least_fd);
    }

    /// Empties the slots of `pages`, whose content nobody wants.
    pub(crate) fn forget(&self, slots: &mut Slots, tlbs: &TlbSet, pages: &[u64]) {
        let mut gone: Vec<u64> = Vec::new();
        for &pfn in pages {
            let place = self.place(pfn);
            if place.in_view() {
                gone.push(place.va());
            } else {
                self.set_place(pfn, Place::HOME);
            }
        }
        gone.sort_unstable();
        for run in gone.chunk_by(|a, b| a + PAGE_SIZE == *b) {
            let range = run[0]..run[run.len() - 1] + PAGE_SIZE;
            tlbs.drop_host_range(self.ptr(range.start), run.len() as u64);
            self.reduce(slots, tlbs, range.clone(), 0);
            for va in run {
                if let Some(pfn) = slots.page(*va) {
                    slots.clear(*va);
                    self.set_place(pfn, Place::HOME);
                }
            }
            self.free(range);
        }
    }

    /// Takes rights away from all slots of a range, in one step where the host has room for the borders that this makes, and
    /// from more than that where not.
    fn reduce(&self, slots: &Slots, tlbs: &TlbSet, range: Range<u64>, to: u64) {
        if !self.protect(range.clone(), to) {
            // No more mappings. Borders that are there already need none.
            let all = 0..self.size;
            let runs = self.rights_runs(slots, &all);
            for (run, _) in runs {
                if run.start < range.end && range.start < run.end {
                    tlbs.drop_host_range(self.ptr(run.start), (run.end - run.start) / PAGE_SIZE);
                    assert!(
                        self.protect(run.clone(), 0),
                        "closing {run:x?} of the view of guest memory"
                    );
                    self.note(slots, &run, 0);
                }
            }
            return;
        }
        self.note(slots, &range, to);
    }

    /// Notes that the slots of a range have no more than these rights.
    fn note(&self, slots: &Slots, range: &Range<u64>, to: u64) {
        for (_, pfn) in slots.within(range) {
            let place = self.place(pfn);
            let rights = place.rights() & to;
            self.set_place(pfn, Place(place.0 & !(Place::READ | Place::WRITE) | rights));
        }
    }

    /// Runs of slots with equal rights, but none.
    fn rights_runs(&self, slots: &Slots, range: &Range<u64>) -> Vec<(Range<u64>, u64)> {
        let mut runs: Vec<(Range<u64>, u64)> = Vec::new();
        for (va, pfn) in slots.within(range) {
            let rights = self.place(pfn).rights();
            match runs.last_mut() {
                _ if rights == 0 => {}
                Some((run, r)) if run.end == va && *r == rights => run.end += PAGE_SIZE,
                _ => runs.push((va..va + PAGE_SIZE, rights)),
            }
        }
        runs
    }

    fn protect(&self, range: Range<u64>, rights: u64) -> bool {
        let prot = match rights {
            0 => libc::PROT_NONE,
            Place::READ => libc::PROT_READ,
            _ => libc::PROT_READ | libc::PROT_WRITE,
        };
        let at = self.ptr(range.start);
        // SAFETY: pages of the reservation, which is the view's own.
        unsafe { libc::mprotect(at.as_ptr().cast(), (range.end - range.start) as usize, prot) == 0 }
    }

    /// Has the host give slots that can be written their memory: a fault for each costs several times that.
    fn populate(&self, range: Range<u64>) {
        let (at, len) = (self.ptr(range.start), (range.end - range.start) as usize);
        // SAFETY: pages of the reservation, whose content this does not change. A host that can't leaves it to faults.
        unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
    }

    /// Gives the host the memory of slots without a page back: they read as zero.
    fn free(&self, range: Range<u64>) {
        let (at, len) = (self.ptr(range.start), (range.end - range.start) as usize);
        // SAFETY: pages of the reservation that belong to no page of the guest's.
        unsafe { libc::madvise(at.as_ptr().cast(), len, libc::MADV_DONTNEED) };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let (start, len) = self.whole;
        // SAFETY: the view's own mapping; nothing points there any more.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

fn rights_of(write: bool) -> u64 {
    if write {
        Place::READ | Place::WRITE
    } else {
        Place::READ
    }
}
