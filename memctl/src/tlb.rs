#![allow(unsafe_code)] // host addresses leave and re-enter as integers, because translated code adds them
//! The fast TLB: the one structure that translated code touches for a memory access.
//!
//! The problem: translated code must turn a guest virtual address into a host address in a handful of inline instructions, and
//! yet the memory controller must be able to take a page away (evict it, give it to another key domain, change its RMP entry)
//! at any time, and be sure that no entry survives.
//!
//! The approach: a direct-mapped array of [`TlbEntry`]. An access of `size` bytes at `va` hits if
//! `(va + size - 1) & !granule_mask` equals the entry's tag for that kind of access, where the entry is the one at
//! `(va >> granule_shift) % ENTRIES`; so an access that crosses a granule always misses. The host address is `va + addend`.
//! Beside the array, and never touched by translated code, hash chains link the entries that map one host page, so that
//! dropping a host page costs one bucket, aliases included, and flushing costs what is occupied.
//!
//! Invariants:
//! 1. A tag is the address of a granule whose index is the entry's own, or [`TlbEntry::NEVER`], or, where the entry has never been
//!    used, 0: the address of a granule whose index is another.
//! 2. An entry with any tag set is in exactly one chain: its host page's.
//! 3. While a tag is set, the addend is the one it was made with: entries are emptied before they are changed.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use sevlab_arch::{PAGE_SHIFT, PAGE_SIZE, Va};

use crate::hier::{FetchFilter, LineFilter};

/// What a fast-TLB entry covers: the one parameter in which the cache models' probes differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule(u32);

impl Granule {
    /// 4 KiB pages.
    pub const PAGE: Self = Self(PAGE_SHIFT);
    /// 64-byte cache lines.
    pub const LINE: Self = Self(6);

    /// log2 of the bytes covered: an address shifted right by this, modulo [`FastTlb::ENTRIES`], is its entry's index.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.0
    }
    /// Bytes covered.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
    /// The bits of an address inside the granule.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.bytes() - 1
    }
}

/// What is done to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Exec,
}

/// What a fast-TLB entry lets pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Perms {
    /// Reads hit.
    pub r: bool,
    /// Writes hit. Only for a host page taken with `write`, or the memory controller misses the change.
    pub w: bool,
    /// Fetches hit.
    pub x: bool,
}

impl Perms {
    /// Reads only.
    pub const R: Self = Self {
        r: true,
        w: false,
        x: false,
    };
    /// Reads and writes.
    pub const RW: Self = Self {
        r: true,
        w: true,
        x: false,
    };
    /// Reads and fetches.
    pub const RX: Self = Self {
        r: true,
        w: false,
        x: true,
    };
}

/// One entry. Translated code reads it at these offsets: read tag 0, write tag 8, execute tag 16, addend 24.
#[repr(C, align(32))]
pub struct TlbEntry {
    /// Address of the granule for reads, or [`TlbEntry::NEVER`].
    pub read: AtomicU64,
    /// Address of the granule for writes, or [`TlbEntry::NEVER`].
    pub write: AtomicU64,
    /// Address of the granule for fetches, or [`TlbEntry::NEVER`].
    pub exec: AtomicU64,
    /// Host address minus guest virtual address, wrapping.
    pub addend: AtomicU64,
}

const _: () = assert!(size_of::<TlbEntry>() == 32);
const _: () = assert!(std::mem::offset_of!(TlbEntry, read) == 0);
const _: () = assert!(std::mem::offset_of!(TlbEntry, write) == 8);
const _: () = assert!(std::mem::offset_of!(TlbEntry, exec) == 16);
const _: () = assert!(std::mem::offset_of!(TlbEntry, addend) == 24);

impl TlbEntry {
    /// The tag that no access matches: no granule's address has its low bits set.
    pub const NEVER: u64 = u64::MAX;
    /// log2 of an entry's size.
    pub const SIZE_SHIFT: u32 = 5;

    fn clear(&self) {
        for tag in [&self.read, &self.write, &self.exec] {
            tag.store(Self::NEVER, Ordering::Release);
        }
    }
}

/// "No entry" in a chain: an entry is said by its index and one, so that new chains are zeros, and take no memory until they are used.
const NIL: u32 = 0;
const BUCKET_BITS: u32 = 14;

/// The side of an entry that only this module sees.
#[derive(Clone, Copy)]
struct Link {
    va: u64,
    /// Host page number.
    host: u64,
    next: u32,
    prev: u32,
}

struct Links {
    links: Box<[Link]>,
    buckets: Box<[u32]>,
    /// A bit for each entry that is in a chain.
    used: Box<[u64]>,
    /// How many bits of `used` are set.
    count: usize,
}

fn bucket(host: u64) -> usize {
    (host.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKET_BITS)) as usize
}

impl Links {
    fn is_used(&self, i: usize) -> bool {
        self.used[i / 64] >> (i % 64) & 1 != 0
    }

    fn link(&mut self, i: usize, va: u64, host: u64) {
        let (b, this) = (bucket(host), i as u32 + 1);
        let next = self.buckets[b];
        self.links[i] = Link {
            va,
            host,
            next,
            prev: NIL,
        };
        if next != NIL {
            self.links[next as usize - 1].prev = this;
        }
        self.buckets[b] = this;
        self.used[i / 64] |= 1 << (i % 64);
        self.count += 1;
    }

    fn unlink(&mut self, i: usize) {
        let Link {
            host, next, prev, ..
        } = self.links[i];
        if prev == NIL {
            self.buckets[bucket(host)] = next;
        } else {
            self.links[prev as usize - 1].next = next;
        }
        if next != NIL {
            self.links[next as usize - 1].prev = prev;
        }
        self.used[i / 64] &= !(1 << (i % 64));
        self.count -= 1;
    }

    /// Calls `f` for the entries in chains, which it may unlink.
    fn each_used(&mut self, mut f: impl FnMut(&mut Self, usize)) {
        for word in 0..self.used.len() {
            let mut bits = self.used[word];
            while bits != 0 {
                let i = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                f(self, i);
            }
        }
    }
}

/// A vCPU's fast TLB. Shared between the vCPU, which fills and probes it, and the memory controller, which takes entries out.
pub struct FastTlb {
    entries: Box<[TlbEntry]>,
    granule: Granule,
    links: Mutex<Links>,
    drops: AtomicU64,
}

impl Default for FastTlb {
    fn default() -> Self {
        Self::new()
    }
}

impl FastTlb {
    /// Number of entries; a power of two.
    pub const ENTRIES: usize = 16384;

    /// An empty TLB of 4 KiB granules.
    #[must_use]
    pub fn new() -> Self {
        Self::with_granule(Granule::PAGE)
    }

    /// An empty TLB with the given granule.
    #[must_use]
    pub fn with_granule(granule: Granule) -> Self {
        // SAFETY: integers, atomic or not, are valid as zeros.
        let (entries, links) = unsafe {
            (
                Box::<[TlbEntry]>::new_zeroed_slice(Self::ENTRIES).assume_init(),
                Box::<[Link]>::new_zeroed_slice(Self::ENTRIES).assume_init(),
            )
        };
        // An access at the first granule, or one that goes on there behind the last.
        entries[0].clear();
        entries[Self::ENTRIES - 1].clear();
        Self {
            entries,
            granule,
            links: Mutex::new(Links {
                links,
                buckets: vec![NIL; 1 << BUCKET_BITS].into(),
                used: vec![0; Self::ENTRIES / 64].into(),
                count: 0,
            }),
            drops: AtomicU64::new(0),
        }
    }

    /// How often something was to be dropped, whether or not there was an entry for it: as long as this stays the same, the
    /// host address that an entry gave is good, even if another has taken the entry's place.
    #[must_use]
    pub fn drops(&self) -> u64 {
        self.drops.load(Ordering::Acquire)
    }

    /// As [`FastTlb::lock`], by whoever is about to drop something.
    fn lock_to_drop(&self) -> MutexGuard<'_, Links> {
        let links = self.lock();
        self.drops.fetch_add(1, Ordering::Release);
        links
    }

    /// The granule of this TLB.
    #[must_use]
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// The first entry, for translated code. Valid as long as the TLB.
    #[must_use]
    pub fn base_ptr(&self) -> *const TlbEntry {
        self.entries.as_ptr()
    }

    /// The index of the entry that `va` would be in.
    #[must_use]
    pub fn index(&self, va: Va) -> usize {
        (va.0 >> self.granule.shift()) as usize & (Self::ENTRIES - 1)
    }

    /// The entry that `va` would be in.
    #[must_use]
    pub fn entry(&self, va: Va) -> &TlbEntry {
        &self.entries[self.index(va)]
    }

    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the entry of `va`'s granule map `host`, the host address of the granule's first byte, for exactly `perms`: what the
    /// entry held before, for this address or another, is gone.
    ///
    /// With [`MemCtl`](crate::MemCtl) calls on other threads use [`MemCtl::fill_tlb`](crate::MemCtl::fill_tlb), which leaves
    /// no gap between taking the host page and inserting it.
    pub fn insert(&self, va: Va, host: NonNull<u8>, perms: Perms) {
        let va = va.0 & !self.granule.mask();
        let i = self.index(Va(va));
        let addr = host.as_ptr().expose_provenance() as u64;
        debug_assert_eq!(addr & self.granule.mask(), 0, "host address of a granule");
        let mut links = self.lock();
        let e = &self.entries[i];
        e.clear();
        if links.is_used(i) {
            links.unlink(i);
        }
        if perms == Perms::default() {
            return;
        }
        links.link(i, va, addr >> PAGE_SHIFT);
        e.addend.store(addr.wrapping_sub(va), Ordering::Release);
        for (tag, on) in [(&e.read, perms.r), (&e.write, perms.w), (&e.exec, perms.x)] {
            if on {
                tag.store(va, Ordering::Release);
            }
        }
    }

    /// The host address of an access of `size` bytes (1 or more) at `va`, if it hits: the probe that translated code makes
    /// inline.
    #[must_use]
    #[inline]
    pub fn lookup(&self, va: Va, size: u64, access: Access) -> Option<NonNull<u8>> {
        let e = self.entry(va);
        let tag = match access {
            Access::Read => &e.read,
            Access::Write => &e.write,
            Access::Exec => &e.exec,
        };
        let last = va.0.wrapping_add(size.wrapping_sub(1));
        if tag.load(Ordering::Acquire) != last & !self.granule.mask() {
            return None;
        }
        let addr = va.0.wrapping_add(e.addend.load(Ordering::Acquire));
        NonNull::new(std::ptr::with_exposed_provenance_mut(addr as usize))
    }

    /// [`FastTlb::lookup`] for a read.
    #[must_use]
    #[inline]
    pub fn lookup_read(&self, va: Va, size: u64) -> Option<NonNull<u8>> {
        self.lookup(va, size, Access::Read)
    }

    /// [`FastTlb::lookup`] for a write.
    #[must_use]
    #[inline]
    pub fn lookup_write(&self, va: Va, size: u64) -> Option<NonNull<u8>> {
        self.lookup(va, size, Access::Write)
    }

    /// [`FastTlb::lookup`] for a fetch.
    #[must_use]
    #[inline]
    pub fn lookup_exec(&self, va: Va, size: u64) -> Option<NonNull<u8>> {
        self.lookup(va, size, Access::Exec)
    }

    /// Drops what maps any byte of `va`'s 4 KiB page.
    pub fn drop_va(&self, va: Va) {
        let page = va.page().0;
        let mut links = self.lock_to_drop();
        for at in (0..PAGE_SIZE).step_by(self.granule.bytes() as usize) {
            let i = self.index(Va(page + at));
            if links.is_used(i) && links.links[i].va == page + at {
                self.entries[i].clear();
                links.unlink(i);
            }
        }
    }

    /// Drops every entry that maps a byte of `host`'s 4 KiB page, under whatever addresses.
    pub fn drop_host(&self, host: NonNull<u8>) {
        let mut links = self.lock_to_drop();
        self.drop_page(&mut links, host.addr().get() as u64 >> PAGE_SHIFT);
    }

    /// [`FastTlb::drop_host`] for `pages` 4 KiB pages from `host` on, at the price of what is occupied if that is less.
    pub fn drop_host_range(&self, host: NonNull<u8>, pages: u64) {
        let first = host.addr().get() as u64 >> PAGE_SHIFT;
        let range = first..first + pages;
        let mut links = self.lock_to_drop();
        if links.count as u64 <= pages {
            if links.count > 0 {
                links.each_used(|links, i| {
                    if range.contains(&links.links[i].host) {
                        self.entries[i].clear();
                        links.unlink(i);
                    }
                });
            }
        } else {
            range.for_each(|page| self.drop_page(&mut links, page));
        }
    }

    /// Drops every entry that maps a byte of the host page with this number.
    fn drop_page(&self, links: &mut Links, page: u64) {
        let mut at = links.buckets[bucket(page)];
        while at != NIL {
            let i = at as usize - 1;
            let Link { host, next, .. } = links.links[i];
            if host == page {
                self.entries[i].clear();
                links.unlink(i);
            }
            at = next;
        }
    }

    /// Strips the write tag from every entry that maps a byte of `host`'s 4 KiB page.
    pub fn drop_write_host(&self, host: NonNull<u8>) {
        let page = host.addr().get() as u64 >> PAGE_SHIFT;
        let links = self.lock_to_drop();
        let mut at = links.buckets[bucket(page)];
        while at != NIL {
            let i = at as usize - 1;
            let Link { host, next, .. } = links.links[i];
            if host == page {
                self.entries[i]
                    .write
                    .store(TlbEntry::NEVER, Ordering::Release);
            }
            at = next;
        }
    }

    /// Drops everything.
    pub fn flush(&self) {
        self.lock_to_drop().each_used(|links, i| {
            self.entries[i].clear();
            links.unlink(i);
        });
    }

    /// How many entries map something.
    #[must_use]
    pub fn occupied(&self) -> usize {
        self.lock().count
    }
}

/// The filters of a core of a simulated hierarchy.
pub(crate) struct Filters {
    core: usize,
    data: Arc<LineFilter>,
    fetch: Arc<FetchFilter>,
}

/// The TLBs and filters that a memory controller keeps true.
#[derive(Default)]
pub(crate) struct TlbSet {
    tlbs: RwLock<Vec<Arc<FastTlb>>>,
    filters: RwLock<Vec<Filters>>,
}

/// See [`TlbSet::freeze`].
pub(crate) struct FrozenTlbs<'a> {
    _tlbs: RwLockReadGuard<'a, Vec<Arc<FastTlb>>>,
    _filters: RwLockReadGuard<'a, Vec<Filters>>,
}

impl TlbSet {
    pub(crate) fn attach(&self, tlb: Arc<FastTlb>) {
        let mut set = self.tlbs.write().unwrap_or_else(PoisonError::into_inner);
        if !set.iter().any(|t| Arc::ptr_eq(t, &tlb)) {
            set.push(tlb);
        }
    }

    /// Flushes it too: nobody would keep it true any more.
    pub(crate) fn detach(&self, tlb: &Arc<FastTlb>) {
        let mut set = self.tlbs.write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|t| !Arc::ptr_eq(t, tlb));
        tlb.flush();
    }

    /// Forgets all others, without touching them: their owners are gone, in the middle of whatever they did.
    pub(crate) fn keep_only(&self, tlb: &Arc<FastTlb>) {
        let mut set = self.tlbs.write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|t| Arc::ptr_eq(t, tlb));
    }

    /// These are the core's filters now.
    pub(crate) fn attach_filters(
        &self,
        core: usize,
        data: &Arc<LineFilter>,
        fetch: &Arc<FetchFilter>,
    ) {
        let mut set = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|f| f.core != core);
        set.push(Filters {
            core,
            data: Arc::clone(data),
            fetch: Arc::clone(fetch),
        });
    }

    /// Forgets the filters of these cores.
    pub(crate) fn detach_filters(&self, which: impl Fn(usize) -> bool) {
        let mut set = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        set.retain(|f| !which(f.core));
    }

    /// Keeps the set as it is as long as the result lives.
    pub(crate) fn freeze(&self) -> FrozenTlbs<'_> {
        FrozenTlbs {
            _tlbs: self.tlbs.read().unwrap_or_else(PoisonError::into_inner),
            _filters: self.filters.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(crate) fn drop_host(&self, host: NonNull<u8>) {
        self.each(|t| t.drop_host(host));
        self.each_filter(host, 1, false);
    }

    pub(crate) fn drop_host_range(&self, host: NonNull<u8>, pages: u64) {
        self.each(|t| t.drop_host_range(host, pages));
        self.each_filter(host, pages, false);
    }

    pub(crate) fn drop_write_host(&self, host: NonNull<u8>) {
        self.drop_write_entries(host);
        self.each_filter(host, 1, true);
    }

    /// As [`TlbSet::drop_write_host`], for somebody who knows what the filters have.
    pub(crate) fn drop_write_entries(&self, host: NonNull<u8>) {
        self.each(|t| t.drop_write_host(host));
    }

    /// Whether there is one TLB at most.
    pub(crate) fn is_single(&self) -> bool {
        self.tlbs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
            <= 1
    }

    fn each(&self, f: impl Fn(&FastTlb)) {
        let set = self.tlbs.read().unwrap_or_else(PoisonError::into_inner);
        set.iter().for_each(|t| f(t));
    }

    /// Takes tags of lines in `pages` host pages from the one of `host` on out of the filters.
    fn each_filter(&self, host: NonNull<u8>, pages: u64, writes_only: bool) {
        let set = self.filters.read().unwrap_or_else(PoisonError::into_inner);
        let first = host.addr().get() as u64 & !(PAGE_SIZE - 1);
        let hosts = first..first + pages * PAGE_SIZE;
        for f in set.iter() {
            f.data.drop_hosts(&hosts, writes_only);
            if !writes_only {
                f.fetch.drop_hosts(&hosts);
            }
        }
    }
}
