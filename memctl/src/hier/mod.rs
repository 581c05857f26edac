//! The cache hierarchy in the controller ([`CacheMode::Hierarchy`](crate::CacheMode::Hierarchy)): L1I and L1D, L2, LLC and DRAM, line by line, exact for every
//! access although most of them never come here.
//!
//! What is modelled is `docs/model.md`'s to define. A core's accesses arrive at [`MemCtl::line`](crate::MemCtl::line) when its
//! filter ([`filter`]) does not know the line.

mod access;
mod api;
mod cache;
mod coherence;
mod counters;
mod data;
mod dram;
mod far;
mod fill;
mod filter;
mod geometry;
pub(crate) mod host;
mod kernel;
mod l1;
mod near;
mod prefetch;
mod short;
mod table;

use std::ptr::NonNull;

use sevlab_arch::{PAGE_SHIFT, Spa, Va};

use access::NOTHING;
use cache::Cache;
use data::Pages;
use dram::{Busy, DramTimes};
use far::Far;
use l1::L1;
use prefetch::Strides;

use crate::ctl::Domain;
use crate::error::Error;
use crate::model::{CoreModel, Inclusion, Model};

pub use counters::{CacheCounters, CountKind, HierCounters};
pub use filter::{FetchFilter, LineFilter, TAG_SHIFT};
pub use near::Near;
pub use short::ShortWay;

/// What is done to a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LineKind {
    /// Data read.
    Load,
    /// Data write: the line becomes dirty in L1D.
    Store,
    /// Instruction fetch.
    Fetch,
    /// A page walk reads a table entry, at L2.
    Walk,
    /// A page walk sets accessed or dirty bits, at L2.
    WalkWrite,
    /// An RMP entry is read, at L2.
    Rmp,
}

/// What the page's translation allows beyond the access itself: the tags that the filter's entry may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grant {
    /// Loads.
    pub read: bool,
    /// Stores: the page is writable and its dirty bits are set, and its frame holds no decoded code.
    pub write: bool,
}

/// One access to one line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// Its virtual address, any byte of the line. Unused for walks and RMP checks.
    pub va: Va,
    /// Its system-physical address, any byte of the line.
    pub spa: Spa,
    /// Who sees it.
    pub domain: Domain,
    /// What is done.
    pub kind: LineKind,
    /// For the filter's entry, of loads and stores.
    pub grant: Grant,
    /// The core's clock before the instruction, plus one.
    pub stamp: u64,
    /// The core's cycles so far: when DRAM is asked. Used by [`DramModel::Banks`](crate::model::DramModel::Banks) and AES queues.
    pub now: u64,
}

/// Who served an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Level {
    /// The core's L1I or L1D.
    L1,
    /// Its L2.
    L2,
    /// The LLC.
    Llc,
    /// Another core's cache.
    Remote,
    /// DRAM.
    Dram,
}

/// What an access waits for, in cycles of the core beyond what an L1 hit costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stalls {
    /// The cache that served it: `l2_cycles`, `llc_cycles` or `remote_cycles`; `llc_cycles` if DRAM did; 0 for L1.
    pub cache: u32,
    /// DRAM.
    pub dram: u32,
    /// Decryption.
    pub aes: u32,
    /// Write-backs that it caused, their encryption included.
    pub write_back: u32,
    /// Other cores' invalidation.
    pub upgrade: u32,
}

impl Stalls {
    /// All of them.
    #[must_use]
    #[inline]
    pub fn total(&self) -> u64 {
        let of = u64::from;
        of(self.cache) + of(self.dram) + of(self.aes) + of(self.write_back) + of(self.upgrade)
    }
}

/// What came of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// Host address of the line's first byte. A store through it counts as long as fewer than
    /// [`KEPT`] dirty lines have left the caches since, and the domain is the same: time for an instruction to touch all its
    /// lines before it writes any.
    pub host: NonNull<u8>,
    /// Who served it.
    pub level: Level,
    /// What that costs.
    pub stalls: Stalls,
}

/// Lines that left the caches last and whose encryption waits, so that stores under way are not lost.
pub const KEPT: usize = 16;

/// A core's own caches.
struct Core {
    l1d: L1<LineFilter>,
    l1i: L1<FetchFilter>,
    l2: Option<Cache>,
    strides: Strides,
    busy: Busy,
    counters: HierCounters,
    /// [`near`] may serve it.
    near: bool,
    /// Stores to clean lines that nobody else has pass its filter. Not where they would tell a core that lets misses overlap when
    /// they are made.
    stores_pass: bool,
    /// Its bit among those that may have a page, if it is its own.
    bit: u64,
}

impl Core {
    /// Whether any of its caches has the line.
    #[inline]
    fn holds(&self, line: u64) -> bool {
        self.l2.as_ref().is_some_and(|l2| l2.find(line).is_some())
            || self.l1d.cache.find(line).is_some()
            || self.l1i.cache.find(line).is_some()
    }

    /// Whether an access hits the first level and changes no more of it than the line's last use.
    fn has(&self, line: u64, kind: LineKind) -> bool {
        let data = &self.l1d;
        match kind {
            LineKind::Load => data.cache.find(line).is_some(),
            LineKind::Store => data.cache.find(line).is_some_and(|slot| data.dirty(slot)),
            LineKind::Fetch => self.l1i.cache.find(line).is_some(),
            LineKind::Walk | LineKind::WalkWrite | LineKind::Rmp => false,
        }
    }

    /// The core that is the next of those ever attached: `at` is how many there are.
    fn new(m: &Model, dram: &DramTimes, llc: &Cache, at: usize) -> Self {
        let mut core = Self {
            l1i: L1::new(&m.l1i, 0),
            l1d: L1::new(&m.l1d, 1),
            l2: m.l2.as_ref().map(|l2| Cache::new(l2, false, 2)),
            strides: Strides::new(),
            busy: dram.busy(),
            counters: HierCounters::default(),
            near: false,
            stores_pass: m.core.model == CoreModel::Simple,
            bit: data::own_bit(at).unwrap_or(0),
        };
        core.near = core.bit != 0 && core.is_near(core.l2.as_ref().unwrap_or(llc));
        core
    }
}

/// All caches of the machine. Under the controller's metadata lock.
pub(crate) struct Hier {
    model: std::sync::Arc<Model>,
    /// Those that were ever attached, in that order.
    #[allow(clippy::vec_box)] // the short way knows where they are
    cores: Vec<Box<Core>>,
    /// Their places in `cores`, by number.
    places: Vec<Option<u32>>,
    llc: Cache,
    pages: Pages,
    dram: DramTimes,
    inclusion: Inclusion,
    /// Lines on their way: the one that is demanded or prefetched, the victim of an L1, the victim of an L2.
    in_flight: [u64; 3],
    /// Whether [`far`] is for these caches.
    far: Far,
    prefetches: bool,
    next_line: bool,
    /// Of the stride prefetcher; 0: there is none.
    degree: i64,
    /// What [`near`] or [`short`] has left to [`far`]: a distance of the stride prefetcher, or all of an access.
    due: i64,
    l2_cycles: u32,
    llc_cycles: u32,
    remote_cycles: u32,
    upgrade_cycles: u32,
    /// Pages that were flushed from outside, while somebody wants to know.
    flushed: Option<Vec<u64>>,
}

impl Hier {
    /// Cold caches in front of `span` bytes of memory, for at most `cores` cores.
    ///
    /// # Errors
    /// [`Error::Hierarchy`].
    pub(crate) fn new(m: &std::sync::Arc<Model>, span: u64, cores: usize) -> Result<Self, Error> {
        geometry::check(m, span >> data::LINE_SHIFT)?;
        let degree = if m.prefetch.stride {
            i64::from(m.prefetch.degree)
        } else {
            0
        };
        let mut hier = Self {
            cores: Vec::new(),
            places: vec![None; cores],
            llc: Cache::new(&m.llc, false, 3),
            far: Far::Not,
            pages: Pages::new(span >> PAGE_SHIFT),
            dram: DramTimes::new(m),
            inclusion: m.llc_inclusion,
            in_flight: [NOTHING; 3],
            prefetches: m.prefetch.next_line || degree > 0,
            next_line: m.prefetch.next_line,
            degree,
            due: 0,
            l2_cycles: m.latency.l2_cycles,
            llc_cycles: m.latency.llc_cycles,
            remote_cycles: m.latency.remote_cycles,
            upgrade_cycles: m.latency.upgrade_cycles,
            flushed: None,
            model: std::sync::Arc::clone(m),
        };
        hier.use_far(true);
        Ok(hier)
    }

    /// Whether [`far`] is used, if it is for these caches.
    fn use_far(&mut self, on: bool) {
        let any = Core::new(&self.model, &self.dram, &self.llc, 0);
        self.far = if on { any.far(&self.llc) } else { Far::Not };
    }

    /// Where a core that was ever attached is in `cores`.
    #[inline]
    fn place(&self, core: usize) -> Result<usize, Error> {
        match self.places.get(core) {
            Some(&Some(at)) => Ok(at as usize),
            _ => Err(Error::NoCore { core }),
        }
    }
}
