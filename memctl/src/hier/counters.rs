//! What the hierarchy has counted, a core at a time.

use super::LineKind;

/// Kinds of accesses that caches count apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CountKind {
    /// Data reads.
    Read,
    /// Data writes.
    Write,
    /// Instruction fetches.
    Fetch,
    /// Page walks, of guest and nested tables, accessed and dirty bits included.
    Walk,
    /// RMP checks.
    Rmp,
}

impl CountKind {
    /// Every kind, in the order of [`CacheCounters`]' arrays.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Fetch, Self::Walk, Self::Rmp];

    /// The kind of an access.
    #[must_use]
    pub const fn of(kind: LineKind) -> Self {
        match kind {
            LineKind::Load => Self::Read,
            LineKind::Store => Self::Write,
            LineKind::Fetch => Self::Fetch,
            LineKind::Walk | LineKind::WalkWrite => Self::Walk,
            LineKind::Rmp => Self::Rmp,
        }
    }
}

/// Counters of one cache, caused by one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheCounters {
    /// Hits by [`CountKind`]. 0 for L1I and L1D, whose hits are mostly seen by the filter alone: references minus misses.
    pub hits: [u64; 5],
    /// Misses by [`CountKind`].
    pub misses: [u64; 5],
    /// Dirty lines that it gave to the level below as they were replaced (of the LLC: to DRAM, for whatever reason).
    pub write_backs: u64,
    /// Lines of this core that it lost because another core wrote them.
    pub invalidated: u64,
    /// Lines of this core that it lost because they left an inclusive LLC.
    pub back_invalidated: u64,
    /// Lines that a prefetcher brought in.
    pub prefetched: u64,
}

impl CacheCounters {
    /// All hits.
    #[must_use]
    pub fn all_hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// All misses.
    #[must_use]
    pub fn all_misses(&self) -> u64 {
        self.misses.iter().sum()
    }

    fn add(&mut self, o: &Self) {
        for (a, b) in self.hits.iter_mut().zip(o.hits) {
            *a += b;
        }
        for (a, b) in self.misses.iter_mut().zip(o.misses) {
            *a += b;
        }
        self.write_backs += o.write_backs;
        self.invalidated += o.invalidated;
        self.back_invalidated += o.back_invalidated;
        self.prefetched += o.prefetched;
    }
}

/// What one core has caused in caches and DRAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct HierCounters {
    /// First level, instructions. Hits are not counted, see [`CacheCounters::hits`].
    pub l1i: CacheCounters,
    /// First level, data. Hits are not counted.
    pub l1d: CacheCounters,
    /// Second level.
    pub l2: CacheCounters,
    /// Last level.
    pub llc: CacheCounters,
    /// Accesses that another core's cache served (they count as hits of the LLC).
    pub remote: u64,
    /// Stores that made other cores drop the line.
    pub upgrades: u64,
    /// Lines read from DRAM, not encrypted. Prefetches included, here and below.
    pub dram_reads_plain: u64,
    /// Lines read from DRAM and decrypted.
    pub dram_reads_encrypted: u64,
    /// Lines written to DRAM, not encrypted.
    pub dram_writes_plain: u64,
    /// Lines encrypted and written to DRAM.
    pub dram_writes_encrypted: u64,
    /// `banks`: accesses that found their row open.
    pub row_hits: u64,
    /// `banks`: accesses that did not.
    pub row_misses: u64,
}

impl HierCounters {
    #[inline]
    pub(super) fn row(&mut self, hit: Option<bool>) {
        match hit {
            Some(true) => self.row_hits += 1,
            Some(false) => self.row_misses += 1,
            None => {}
        }
    }

    /// Adds another core's.
    pub fn add(&mut self, o: &Self) {
        self.l1i.add(&o.l1i);
        self.l1d.add(&o.l1d);
        self.l2.add(&o.l2);
        self.llc.add(&o.llc);
        self.remote += o.remote;
        self.upgrades += o.upgrades;
        self.dram_reads_plain += o.dram_reads_plain;
        self.dram_reads_encrypted += o.dram_reads_encrypted;
        self.dram_writes_plain += o.dram_writes_plain;
        self.dram_writes_encrypted += o.dram_writes_encrypted;
        self.row_hits += o.row_hits;
        self.row_misses += o.row_misses;
    }
}
