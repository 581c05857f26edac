#![allow(unsafe_code)] // AES between the two mappings
//! [`MemCtl`]: accesses by key domain, and the residency of plaintext behind them.
//!
//! Invariants:
//! 1. A page is seen through one domain at a time: its owner's plaintext in `plain`, or DRAM itself. Whoever comes from another
//!    domain pushes the owner's plaintext out first (encrypted under the owner's key, if dirty), and no fast-TLB entry for the
//!    other side is left when the call returns.
//! 2. A resident page that is not dirty has no write tag in any attached fast TLB.
//! 3. Plaintext of a private page is nowhere but in `plain`, and in [`CacheMode::None`] nowhere.
//!
//! Locks, in this order: the RMP's, the metadata's, the set of TLBs, a TLB's chains.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use sevlab_arch::{Asid, PAGE_SHIFT, PAGE_SIZE, Spa};

use crate::cipher::{BLOCK, CipherKind, PAGE, Path};
use crate::dram::{Dram, page_parts};
use crate::error::Error;
use crate::hier::Hier;
use crate::keys::KeySlots;
use crate::lock::{Guard, Hold, Lock};
use crate::model::Model;
use crate::place::{PageCopy, read_at, word, write_at};
use crate::residency::{Residency, States};
use crate::rmp::Rmp;
use crate::stats::{Counters, MemStats};
use crate::tlb::{FastTlb, FrozenTlbs, Perms, TlbSet};
use crate::uncached;
use crate::view::{Place, Slots, View};

/// The least [`Config::resident`] there is, pages.
pub const MIN_RESIDENT: usize = 64;

/// Who accesses memory: the meaning of the C-bit, together with the ASID that runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Domain {
    /// C-bit clear, a device, or the hypervisor: DRAM as it is.
    Shared,
    /// C-bit set: DRAM through the key of this ASID.
    Private(Asid),
}

/// How much of an encrypted page is kept as plaintext once it was touched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum CacheMode {
    /// The whole page: AES once per page brought in or pushed out.
    #[default]
    Page,
    /// The lines that are in a simulated cache, see [`crate::hier`].
    Hierarchy,
    /// Nothing: every access runs AES on its 16-byte blocks.
    None,
}

/// What memory the machine has.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Bytes of DRAM, a multiple of 4 KiB.
    pub size: u64,
    /// The cipher of private pages.
    pub cipher: CipherKind,
    /// What is kept as plaintext.
    pub cache: CacheMode,
    /// The most pages kept as plaintext at a time, [`MIN_RESIDENT`] or more; None: no limit. For [`CacheMode::Page`] alone.
    pub resident: Option<usize>,
    /// The caches: Some with [`CacheMode::Hierarchy`] and only there.
    pub hierarchy: Option<Arc<Model>>,
    /// [`CacheMode::Hierarchy`]: the most cores, [`MemCtl::attach_core`]'s numbers.
    pub cores: usize,
    /// Stands for the boot that the address tweaks were drawn at, so that a run can be repeated.
    pub tweak_seed: u64,
    /// Whether SNP is on: the top of DRAM holds the RMP.
    pub snp: bool,
}

/// How the host does it. Nothing the guest could notice depends on this.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostOptions {
    /// Ask the host for transparent huge pages: faster, and coarser in what it takes from the host.
    pub huge_pages: bool,
    /// The host instructions that do AES; None: the best there are.
    pub cipher_path: Option<Path>,
    /// Keep the bytes of pages that are entered into fast TLBs at guest address plus [`MemCtl::view`], for one address space.
    /// [`CacheMode::Page`] without a limit alone; and the host must allow it.
    pub view: bool,
    /// Descriptors that are kept open are not below this: those are for others.
    pub own_fds: i32,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            huge_pages: true,
            cipher_path: None,
            view: false,
            own_fds: 0,
        }
    }
}

/// What changes under the metadata lock.
pub(crate) struct Meta {
    pub keys: KeySlots,
    pub residency: Residency,
    /// Some exactly with [`CacheMode::Hierarchy`].
    pub hier: Option<Box<Hier>>,
    /// What the view's slots hold; of no use without one.
    pub slots: Slots,
}

/// What becomes of a page that is brought in.
#[derive(Clone, Copy)]
pub(crate) enum Fill<'a> {
    /// What DRAM holds, decrypted.
    Decrypt,
    /// These 4096 bytes: nothing is decrypted.
    Data(&'a [u8]),
    /// Zeroes: nothing is decrypted.
    Zero,
}

/// See [`MemCtl::freeze`].
pub struct Frozen<'a> {
    _rmp: MutexGuard<'a, ()>,
    _meta: Guard<'a, Meta>,
    _tlbs: FrozenTlbs<'a>,
}

/// The memory controller. See the crate's page.
pub struct MemCtl {
    cfg: Config,
    /// A hit needs no bookkeeping, so no lock.
    hits_without_lock: bool,
    pub(crate) dram: Arc<Dram>,
    pub(crate) states: States,
    pub(crate) tlbs: Arc<TlbSet>,
    pub(crate) counters: Counters,
    /// Some: a page's bytes are where [`View::place`] says, for whatever reads and writes them here.
    pub(crate) view: Option<Arc<View>>,
    rmp: Rmp,
    meta: Arc<Lock<Meta>>,
}

impl MemCtl {
    /// Zeroed DRAM without keys.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::ResidentLimit`] for a configuration that can't be, [`Error::Host`] if the host has no room.
    pub fn new(cfg: Config) -> Result<Arc<Self>, Error> {
        Self::with_options(cfg, &HostOptions::default())
    }

    /// [`MemCtl::new`] with a choice of how the host does it.
    ///
    /// # Errors
    /// As [`MemCtl::new`].
    pub fn with_options(cfg: Config, host: &HostOptions) -> Result<Arc<Self>, Error> {
        Self::with_window(cfg, host, 0)
    }

    /// [`MemCtl::with_options`] with a window of so many bytes behind DRAM, see [`MemCtl::window`]: a multiple of 4 KiB.
    ///
    /// # Errors
    /// As [`MemCtl::new`].
    pub fn with_window(cfg: Config, host: &HostOptions, window: u64) -> Result<Arc<Self>, Error> {
        let size = cfg.size;
        let bad_size = |why| Err(Error::Size { size, why });
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return bad_size("not a positive multiple of 4 KiB");
        }
        if size > 1 << 43 || window > 1 << 43 {
            return bad_size("above 8 TiB");
        }
        if !window.is_multiple_of(PAGE_SIZE) {
            return bad_size("its window is not a multiple of 4 KiB");
        }
        // Pages come in and go as a whole only there.
        let cached = cfg.cache == CacheMode::Page;
        let hier = match (&cfg.hierarchy, cfg.cache) {
            (Some(model), CacheMode::Hierarchy) => {
                Some(Box::new(Hier::new(model, size + window, cfg.cores)?))
            }
            (None, CacheMode::Page | CacheMode::None) => None,
            _ => {
                return Err(Error::Hierarchy {
                    field: "hierarchy",
                    why: "a model goes with the cache mode `hierarchy`, and with no other".into(),
                });
            }
        };
        let limit = cfg.resident.filter(|_| cached);
        if let Some(limit) = limit.filter(|&l| l < MIN_RESIDENT) {
            return Err(Error::ResidentLimit {
                limit,
                min: MIN_RESIDENT,
            });
        }
        let pages = (size >> PAGE_SHIFT) as usize;
        let path = host.cipher_path.unwrap_or_else(Path::detect);
        let dram = Arc::new(Dram::new(
            size,
            window,
            cached || hier.is_some(),
            host.huge_pages,
        )?);
        let tlbs = Arc::new(TlbSet::default());
        let viewed = host.view && cached && limit.is_none();
        let mut slots = Slots::new(if viewed { pages } else { 0 });
        let view = viewed
            .then(|| View::new(pages, host, &mut slots).ok().map(Arc::new))
            .flatten();
        let meta = Arc::new(Lock::new(Meta {
            keys: KeySlots::new(cfg.cipher, cfg.tweak_seed, path),
            residency: Residency::new(if cached { pages } else { 0 }, limit),
            hier,
            slots,
        }));
        let shown = view.clone().map(|v| (v, Arc::clone(&meta)));
        Ok(Arc::new(Self {
            hits_without_lock: cached && limit.is_none(),
            states: States::new(pages),
            rmp: Rmp::new(size, cfg.snp, Arc::clone(&dram), Arc::clone(&tlbs), shown)?,
            view,
            meta,
            counters: Counters::default(),
            cfg,
            dram,
            tlbs,
        }))
    }

    /// Bytes of DRAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.cfg.size
    }

    /// Bytes of DRAM below the RMP: what is there for software to use.
    #[must_use]
    pub fn usable_size(&self) -> u64 {
        self.rmp.base().0
    }

    /// Keeps all other threads out of what needs the controller's metadata, for one that will often need it itself: a core of a
    /// simulated machine in its turn.
    #[must_use]
    pub fn hold(&self) -> Hold<'_> {
        self.meta.hold()
    }

    /// Whether the calling thread does so.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.meta.is_held()
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.cfg
    }

    /// The reverse map table.
    #[must_use]
    pub fn rmp(&self) -> &Rmp {
        &self.rmp
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> MemStats {
        let mut stats = self.counters.snapshot();
        if let Some([blocks, resident, peak]) = self.line_stats() {
            (stats.aes_blocks, stats.resident, stats.peak_resident) = (blocks, resident, peak);
        }
        stats
    }

    /// From now on entries of this TLB are dropped when they would be wrong.
    pub fn attach_tlb(&self, tlb: Arc<FastTlb>) {
        self.tlbs.attach(tlb);
    }

    /// The opposite. The TLB is flushed, since nobody keeps it true any more.
    pub fn detach_tlb(&self, tlb: &Arc<FastTlb>) {
        self.tlbs.detach(tlb);
    }

    /// Reads `out.len()` bytes from `a`, whatever pages they lie in, as `d` sees them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NoKey`].
    pub fn read(&self, d: Domain, a: Spa, out: &mut [u8]) -> Result<(), Error> {
        self.check_reach(d, a, out.len() as u64)?;
        match d {
            Domain::Shared => {
                for (pfn, at, r) in page_parts(a, out.len()) {
                    self.with_raw(pfn, false, |page| read_at(page, at, &mut out[r]));
                }
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::None => {
                let meta = self.lock();
                let engine = meta.keys.engine(asid, a)?;
                for (_, at, r) in page_parts(a, out.len()) {
                    uncached::read(engine, &self.dram, &self.counters, at, &mut out[r]);
                }
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::Hierarchy => {
                self.read_lines(asid, a, out)?;
            }
            Domain::Private(asid) => {
                let mut meta = self.lock();
                for (pfn, at, r) in page_parts(a, out.len()) {
                    self.bring_in(&mut meta, pfn, asid, false, Fill::Decrypt)?;
                    read_at(self.bytes(&mut meta, pfn, false), at, &mut out[r]);
                }
            }
        }
        Ok(())
    }

    /// Writes `data` at `a`, whatever pages that touches, as `d` sees them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NoKey`]; nothing is written then.
    pub fn write(&self, d: Domain, a: Spa, data: &[u8]) -> Result<(), Error> {
        self.check_reach(d, a, data.len() as u64)?;
        match d {
            Domain::Shared => {
                for (pfn, at, r) in page_parts(a, data.len()) {
                    self.dram.mark(pfn);
                    self.with_raw(pfn, true, |page| write_at(page, at, &data[r]));
                }
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::None => {
                let meta = self.lock();
                let engine = meta.keys.engine(asid, a)?;
                for (_, at, r) in page_parts(a, data.len()) {
                    uncached::write(engine, &self.dram, &self.counters, at, &data[r]);
                }
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::Hierarchy => {
                self.write_lines(asid, a, data)?;
            }
            Domain::Private(asid) => {
                let mut meta = self.lock();
                for (pfn, at, r) in page_parts(a, data.len()) {
                    if r.len() == PAGE {
                        self.bring_in(&mut meta, pfn, asid, true, Fill::Data(&data[r]))?;
                    } else {
                        self.bring_in(&mut meta, pfn, asid, true, Fill::Decrypt)?;
                        write_at(self.bytes(&mut meta, pfn, true), at, &data[r]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a little-endian 64-bit number: page-table walks.
    ///
    /// # Errors
    /// As [`MemCtl::read`].
    #[inline]
    pub fn read_u64(&self, d: Domain, a: Spa) -> Result<u64, Error> {
        if let Some(v) = self.load_at_once(d, a) {
            return Ok(v);
        }
        if let Domain::Private(asid) = d
            && self.cfg.cache == CacheMode::Hierarchy
            && a.0.is_multiple_of(8)
            && let Some(v) = self.cached_word(asid, a)
        {
            return Ok(v);
        }
        let mut b = [0; 8];
        self.read(d, a, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// [`MemCtl::read_u64`] of shared memory where that is one load; `None`, with nothing done, elsewhere: a page whose plaintext is
    /// kept, an odd address.
    #[must_use]
    #[inline]
    pub fn load_shared(&self, a: Spa) -> Option<u64> {
        self.load_at_once(Domain::Shared, a)
    }

    /// A number where it is one load, without the lock.
    #[inline]
    fn load_at_once(&self, d: Domain, a: Spa) -> Option<u64> {
        let before = self.states.get(a.pfn()).filter(|_| a.0.is_multiple_of(8))?;
        let seen = match (d, before.owner()) {
            (Domain::Shared, None) => Some(&self.dram.raw),
            (Domain::Private(asid), Some(owner)) if self.hits_without_lock && asid == owner => {
                self.dram.plain_of()
            }
            _ => None,
        };
        let region = seen.filter(|_| self.is_home(a.pfn()))?;
        let v = region.load(a.0);
        // Still the same stay of the same owner at the same place, so what was read was its plaintext.
        (self.states.get(a.pfn()) == Some(before) && self.is_home(a.pfn())).then_some(v)
    }

    /// Writes a little-endian 64-bit number; if aligned, at once for other threads.
    ///
    /// # Errors
    /// As [`MemCtl::write`].
    pub fn write_u64(&self, d: Domain, a: Spa, v: u64) -> Result<(), Error> {
        match d {
            Domain::Private(asid) if self.cfg.cache == CacheMode::Page && a.0.is_multiple_of(8) => {
                self.check_range(a, 8)?;
                let mut meta = self.lock();
                self.bring_in(&mut meta, a.pfn(), asid, true, Fill::Decrypt)?;
                word(self.bytes(&mut meta, a.pfn(), true), a).store(v, Ordering::Release);
                Ok(())
            }
            Domain::Shared if a.0.is_multiple_of(8) => {
                self.check_reach(d, a, 8)?;
                self.dram.mark(a.pfn());
                self.with_raw(a.pfn(), true, |page| {
                    word(page, a).store(v, Ordering::Release);
                });
                Ok(())
            }
            _ => self.write(d, a, &v.to_le_bytes()),
        }
    }

    /// Sets bits of an aligned little-endian 64-bit number, atomically against other threads that do so: the
    /// accessed and dirty bits of page-table entries.
    ///
    /// # Errors
    /// As [`MemCtl::write`].
    pub fn or_u64(&self, d: Domain, a: Spa, bits: u64) -> Result<(), Error> {
        self.check_range(a, 8)?;
        if !a.0.is_multiple_of(8) {
            return Err(Error::Unaligned { spa: a });
        }
        match d {
            Domain::Shared => {
                self.dram.mark(a.pfn());
                self.with_raw(a.pfn(), true, |page| {
                    word(page, a).fetch_or(bits, Ordering::AcqRel);
                });
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::None => {
                let meta = self.lock();
                let engine = meta.keys.engine(asid, a)?;
                let mut word = [0; 8];
                uncached::read(engine, &self.dram, &self.counters, a, &mut word);
                let word = u64::from_le_bytes(word) | bits;
                let bytes = word.to_le_bytes();
                uncached::write(engine, &self.dram, &self.counters, a, &bytes);
            }
            Domain::Private(asid) if self.cfg.cache == CacheMode::Hierarchy => {
                self.or_line(asid, a, bits)?;
            }
            Domain::Private(asid) => {
                let mut meta = self.lock();
                self.bring_in(&mut meta, a.pfn(), asid, true, Fill::Decrypt)?;
                let page = self.bytes(&mut meta, a.pfn(), true);
                word(page, a).fetch_or(bits, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Takes the write tags of every fast TLB for the page as `d` sees it away.
    ///
    /// # Errors
    /// As [`MemCtl::host_page`].
    pub fn drop_writes(&self, d: Domain, page: Spa) -> Result<(), Error> {
        let pfn = self.page_of(d, page)?;
        let mut meta = self.lock();
        match d {
            Domain::Shared => self.evict(&mut meta, pfn),
            Domain::Private(_) if self.cfg.cache != CacheMode::Page => return Ok(()),
            Domain::Private(asid) => {
                self.bring_in(&mut meta, pfn, asid, false, Fill::Decrypt)?;
            }
        }
        self.drop_write_tags(&meta, pfn);
        Ok(())
    }

    /// Keeps the controller's books locked, so that a clone of the host process finds them whole.
    pub fn freeze(&self) -> Frozen<'_> {
        Frozen {
            _rmp: self.rmp.freeze(),
            _meta: self.lock(),
            _tlbs: self.tlbs.freeze(),
        }
    }

    /// In a clone of the host process: of the attached TLBs only this one has an owner here.
    pub fn keep_only_tlb(&self, tlb: &Arc<FastTlb>) {
        self.tlbs.keep_only(tlb);
        if let Some(view) = &self.view {
            view.forked(&mut self.lock().slots);
        }
    }

    /// Zeroes the page as `d` sees it. What it held is not decrypted first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Unaligned`], [`Error::NoKey`].
    pub fn zero_page(&self, d: Domain, page: Spa) -> Result<(), Error> {
        let pfn = self.page_of(d, page)?;
        match d {
            Domain::Shared => {
                self.dram.mark(pfn);
                if self.has_place(pfn) {
                    let mut meta = self.lock();
                    self.evict(&mut meta, pfn);
                    self.overwrite(&mut meta, pfn, Fill::Zero);
                } else {
                    self.make_raw(pfn);
                    self.dram.raw.zero(page.0, PAGE);
                }
                Ok(())
            }
            Domain::Private(_) if self.cfg.cache != CacheMode::Page => {
                self.write(d, page, &[0; PAGE])
            }
            Domain::Private(asid) => {
                let mut meta = self.lock();
                self.bring_in(&mut meta, pfn, asid, true, Fill::Zero)
            }
        }
    }

    /// The host address of the page's 4096 bytes as `d` sees them: in DRAM for [`Domain::Shared`], in `plain` for
    /// [`Domain::Private`], made resident. `write` says that the caller may change them: without it, it must not.
    ///
    /// None for private pages with [`CacheMode::None`] and [`CacheMode::Hierarchy`]: use [`MemCtl::read`] and
    /// [`MemCtl::write`], or [`MemCtl::line`].
    ///
    /// The address is good until the page is evicted: by an access from another domain, by `bus_write`, by a change of key, or
    /// by the `resident` limit, which spares the 8 pages handed out last. After a write-back (`bus_read`, `dump`) the page is
    /// still there, but a change needs `write` again.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Unaligned`], [`Error::NoKey`].
    #[inline]
    pub fn host_page(
        &self,
        d: Domain,
        page: Spa,
        write: bool,
    ) -> Result<Option<NonNull<u8>>, Error> {
        if let Domain::Private(asid) = d
            && self.hits_without_lock
            && self.view.is_none()
            && page.offset() == 0
            && let Some(state) = self.states.get(page.pfn())
            && state.hits(asid, write)
        {
            return Ok(self.dram.plain_of().map(|p| p.ptr(page.0)));
        }
        self.host_page_slow(d, page, write, None)
    }

    /// [`MemCtl::host_page`] (with `write` = `perms.w`) and [`FastTlb::insert`] in one step, between which no other thread can
    /// take the page away. `tlb` must be attached; its granule is the page. The page's address is returned.
    ///
    /// With a view, a page goes to its slot at `va` if it can; the slot has the rights `perms` then, which are those of user
    /// code. [`MemCtl::fill_tlb_unseen`] is for others.
    ///
    /// # Errors
    /// As [`MemCtl::host_page`].
    pub fn fill_tlb(
        &self,
        tlb: &FastTlb,
        va: sevlab_arch::Va,
        d: Domain,
        page: Spa,
        perms: Perms,
    ) -> Result<Option<NonNull<u8>>, Error> {
        self.host_page_slow(d, page, perms.w, Some((tlb, va, perms, true)))
    }

    /// [`MemCtl::fill_tlb`] for what the view must not show: the rights of privileged code.
    ///
    /// # Errors
    /// As [`MemCtl::host_page`].
    pub fn fill_tlb_unseen(
        &self,
        tlb: &FastTlb,
        va: sevlab_arch::Va,
        d: Domain,
        page: Spa,
        perms: Perms,
    ) -> Result<Option<NonNull<u8>>, Error> {
        self.host_page_slow(d, page, perms.w, Some((tlb, va, perms, false)))
    }

    fn host_page_slow(
        &self,
        d: Domain,
        page: Spa,
        write: bool,
        insert: Option<(&FastTlb, sevlab_arch::Va, Perms, bool)>,
    ) -> Result<Option<NonNull<u8>>, Error> {
        let pfn = self.page_of(d, page)?;
        let mut meta = self.lock();
        if d != Domain::Shared && self.cfg.cache != CacheMode::Page {
            return Ok(None);
        }
        self.bring(&mut meta, d, pfn, write)?;
        let Some((tlb, va, perms, seen)) = insert else {
            let host = self.bytes(&mut meta, pfn, write);
            if write && self.is_home(pfn) {
                meta.slots.hand_out(pfn, true);
            }
            return Ok(Some(host));
        };
        let host = self.place_for(&mut meta, pfn, va, perms, seen);
        // Whoever goes around the simulated caches would be seen by nobody.
        if meta.hier.is_none() {
            tlb.insert(va, host, perms);
        }
        Ok(Some(host))
    }

    // ---- what the other files of this crate build on ----

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, Meta> {
        self.meta.lock()
    }

    pub(crate) fn check_range(&self, spa: Spa, len: u64) -> Result<(), Error> {
        let size = self.cfg.size;
        match spa.0.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::OutOfRange { spa, len, size }),
        }
    }

    /// [`MemCtl::check_range`] for an access by `d`: shared ones reach the window behind DRAM, too.
    fn check_reach(&self, d: Domain, spa: Spa, len: u64) -> Result<(), Error> {
        match d {
            Domain::Shared if spa.0.checked_add(len).is_some_and(|end| end <= self.span()) => {
                Ok(())
            }
            _ => self.check_range(spa, len),
        }
    }

    pub(crate) fn page_of(&self, d: Domain, page: Spa) -> Result<u64, Error> {
        if page.offset() != 0 {
            return Err(Error::Unaligned { spa: page });
        }
        self.check_reach(d, page, PAGE_SIZE)?;
        Ok(page.pfn())
    }

    pub(crate) fn page_number(&self, page: Spa) -> Result<u64, Error> {
        if page.offset() != 0 {
            return Err(Error::Unaligned { spa: page });
        }
        self.check_range(page, PAGE_SIZE)?;
        Ok(page.pfn())
    }

    /// Makes DRAM the page's only copy, if it is not already.
    pub(crate) fn make_raw(&self, pfn: u64) {
        if self.states.get(pfn).is_some_and(|s| s.owner().is_some()) {
            self.evict(&mut self.lock(), pfn);
        }
    }

    /// Makes the page resident for `asid`, and replaces its content if `fill` says so.
    pub(crate) fn bring_in(
        &self,
        meta: &mut Meta,
        pfn: u64,
        asid: Asid,
        write: bool,
        fill: Fill<'_>,
    ) -> Result<(), Error> {
        let state = self.states.of(pfn);
        if state.owner() == Some(asid) {
            if write && !state.is_dirty() {
                self.states.set_dirty(pfn, true);
            }
            meta.residency.note(pfn);
            self.overwrite(meta, pfn, fill);
            return Ok(());
        }
        let spa = Spa(pfn << PAGE_SHIFT);
        meta.keys.engine(asid, spa)?;
        if state.owner().is_some() {
            self.evict(meta, pfn);
        }
        while let Some(victim) = meta.residency.victim() {
            self.evict(meta, victim);
        }
        // Nobody may go on through DRAM while the plaintext is elsewhere.
        self.settle(meta, pfn);
        self.tlbs.drop_host(self.dram.raw.ptr(spa.0));
        meta.slots.take_back(pfn);
        // All before the page has its new owner: another thread that finds it so needs no lock to read it.
        let plain = self.dram.plain();
        match fill {
            Fill::Decrypt => {}
            Fill::Data(data) => plain.write(spa.0, data),
            Fill::Zero => match &self.view {
                Some(view) => view.set_place(pfn, Place::ZERO),
                None => plain.zero(spa.0, PAGE),
            },
        }
        if matches!(fill, Fill::Decrypt) {
            let engine = meta.keys.engine(asid, spa)?;
            let (src, dst) = (
                self.dram.raw.span(spa.0, PAGE),
                self.dram.plain().span(spa.0, PAGE),
            );
            // SAFETY: both spans are a page inside their mappings, checked just now, and page-aligned as `spa` is.
            unsafe { engine.decrypt_page(spa.0, src.as_ptr(), dst.as_ptr()) };
            Counters::add(&self.counters.pages_decrypted, 1);
            Counters::add(&self.counters.aes_blocks, (PAGE / BLOCK) as u64);
        }
        self.states.set_owner(pfn, asid, write);
        meta.residency.push(pfn);
        meta.residency.note(pfn);
        self.counters.page_in();
        Ok(())
    }

    /// Pushes the page's plaintext out, if it is resident: no fast-TLB entry for it is left, and DRAM is its only copy.
    pub(crate) fn evict(&self, meta: &mut Meta, pfn: u64) {
        if meta.hier.is_some() {
            self.evict_lines(meta, pfn);
            return;
        }
        // Beyond DRAM there are no states, and no owners.
        let Some(state) = self.states.get(pfn) else {
            return;
        };
        let Some(owner) = state.owner() else { return };
        // First, so that a thread that comes without the lock has to wait for it.
        self.states.set_absent(pfn);
        self.tlbs
            .drop_host(self.dram.plain().ptr(pfn << PAGE_SHIFT));
        if let Some(view) = &self.view {
            view.park_page(&meta.slots, &self.tlbs, pfn);
        }
        if state.is_dirty() {
            self.encrypt_out(meta, pfn, owner);
        }
        if let Some(view) = &self.view {
            view.leave(&mut meta.slots, &self.tlbs, pfn, None);
            view.set_place(pfn, Place::HOME);
            meta.slots.take_back(pfn);
        }
        meta.residency.remove(pfn);
        self.counters.page_out();
    }

    /// Makes DRAM current and keeps the page resident, clean.
    pub(crate) fn write_back(&self, meta: &mut Meta, pfn: u64) {
        if meta.hier.is_some() {
            self.sync_lines(meta, pfn);
            return;
        }
        let state = self.states.of(pfn);
        let Some(owner) = state.owner().filter(|_| state.is_dirty()) else {
            return;
        };
        // First, and the write tags too: the next write must mark the page again.
        self.states.set_dirty(pfn, false);
        self.drop_write_tags(meta, pfn);
        self.encrypt_out(meta, pfn, owner);
    }

    fn encrypt_out(&self, meta: &Meta, pfn: u64, owner: Asid) {
        let spa = Spa(pfn << PAGE_SHIFT);
        let mut copy = PageCopy([0; PAGE]);
        let src = self.source(meta, pfn, &mut copy);
        let Ok(engine) = meta.keys.engine(owner, spa) else {
            // A key goes only after its pages went (residency, invariant 1).
            unreachable!("page {spa} is resident under ASID {owner}, which has no key");
        };
        let dst = self.dram.raw.span(spa.0, PAGE);
        self.dram.mark(pfn);
        // SAFETY: the source is a readable page, the destination one inside its mapping, checked just now; both page-aligned.
        unsafe { engine.encrypt_page(spa.0, src.as_ptr(), dst.as_ptr()) };
        Counters::add(&self.counters.pages_encrypted, 1);
        Counters::add(&self.counters.aes_blocks, (PAGE / BLOCK) as u64);
    }
}
