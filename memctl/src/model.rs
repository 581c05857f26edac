//! What the simulated machine is made of: geometry of caches and TLBs, latencies, the core. Pure configuration; what it means is
//! in `docs/model.md`, and the presets with their sources are in `machine/presets/`.
//!
//! Keys are those of the TOML files (`sevlab config show epyc-milan`). Figures end in their unit: `_cycles` of the core's
//! clock, `_ns`. Nanoseconds become cycles once, when a run begins ([`Model::cycles`]).

use serde::{Deserialize, Serialize};

/// Bytes of a cache line in every simulated cache.
pub const LINE: u64 = 64;

/// A whole model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name, for reports.
    pub name: String,
    /// The core.
    pub core: Core,
    /// First-level instruction cache.
    pub l1i: Cache,
    /// First-level data cache.
    pub l1d: Cache,
    /// Second level, private to a core, for data and code.
    #[serde(default)]
    pub l2: Option<Cache>,
    /// Last level, shared by all cores.
    pub llc: Cache,
    /// Whether what is in a core's caches is always in the LLC too.
    #[serde(default)]
    pub llc_inclusion: Inclusion,
    /// Prefetchers into L2 (into the LLC where there is no L2).
    #[serde(default)]
    pub prefetch: Prefetch,
    /// TLBs; none: translation costs nothing and makes no traffic.
    #[serde(default)]
    pub tlb: Option<Tlbs>,
    /// DRAM behind the LLC.
    pub dram: Dram,
    /// Latencies.
    pub latency: Latency,
    /// Cycles of instructions by class.
    #[serde(default)]
    pub cost: Costs,
    /// Cycles of exits and of what the hypervisor and the firmware do.
    #[serde(default)]
    pub exit: ExitCosts,
}

/// The core model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Core {
    /// How stalls add up.
    pub model: CoreModel,
    /// Core clock in MHz. The guest's TSC runs at this rate.
    pub clock_mhz: u32,
    /// `overlap`: instructions in the reorder window.
    #[serde(default = "Core::window")]
    pub window: u32,
    /// `overlap`: misses of the L1D outstanding at a time.
    #[serde(default = "Core::mshrs")]
    pub mshrs: u32,
}

impl Core {
    fn window() -> u32 {
        256
    }
    fn mshrs() -> u32 {
        16
    }
}

/// How stalls add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoreModel {
    /// In order: each stall is paid in full.
    #[default]
    Simple,
    /// Out of order: misses within a reorder window overlap unless one's address depends on another's data.
    Overlap,
}

/// One cache.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Bytes. Sets = size / (64 x ways), a power of two.
    pub size: u64,
    /// Ways of a set.
    pub ways: u32,
    /// Which line goes.
    #[serde(default)]
    pub policy: Policy,
}

impl Cache {
    /// Number of sets.
    #[must_use]
    pub fn sets(&self) -> u64 {
        self.size / (LINE * u64::from(self.ways.max(1)))
    }
}

/// Which entry of a set is replaced. An entry that holds nothing is always taken first (lowest way).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The one used longest ago; of several used by the same instruction, the lowest way.
    #[default]
    Lru,
    /// Tree pseudo-LRU; ways are a power of two.
    TreePlru,
    /// Not recently used: a bit a way, set by use; the lowest way without one. Would all be set, the others' are cleared.
    Nru,
    /// The one filled longest ago.
    Fifo,
    /// By a fixed pseudo-random sequence, one for each cache.
    Random,
}

/// See [`Model::llc_inclusion`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inclusion {
    /// A line that leaves the LLC leaves the cores' caches. (Between L1 and L2 nothing is promised: L2 is non-inclusive.)
    #[default]
    Inclusive,
    /// The LLC is filled by what memory delivers and keeps no promise about the cores' caches.
    NonInclusive,
}

/// Prefetchers. They are trained by demand misses of the first level only, and fill the second.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefetch {
    /// A demand miss brings the next line of the same page.
    #[serde(default)]
    pub next_line: bool,
    /// Misses at a constant distance inside a page bring the next ones.
    #[serde(default)]
    pub stride: bool,
    /// Lines that the stride prefetcher runs ahead.
    #[serde(default = "Prefetch::degree")]
    pub degree: u32,
}

impl Prefetch {
    fn degree() -> u32 {
        2
    }
}

/// Translation caches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tlbs {
    /// First level, instructions.
    pub l1i: Tlb,
    /// First level, data.
    pub l1d: Tlb,
    /// Second level, instructions; absent: [`Tlbs::l2`] serves both.
    #[serde(default)]
    pub l2i: Option<Tlb>,
    /// Second level, data (and instructions if `l2i` is absent).
    pub l2: Tlb,
    /// Guest page-walk cache: entries for each of the levels 4, 3 and 2, fully associative, LRU.
    pub walk_entries: u32,
    /// Nested translations of guest page-table pages: entries, fully associative, LRU.
    pub nested_entries: u32,
}

/// One TLB. The policy of a first-level TLB is one that a hit does not change: `fifo`, `random` (docs/model.md says why).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tlb {
    /// Entries of 4 KiB or 2 MiB.
    pub entries: u32,
    /// Ways of a set; equal to `entries`: fully associative.
    pub ways: u32,
    /// Which entry goes.
    pub policy: Policy,
}

/// DRAM.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dram {
    /// How its latency comes about.
    pub model: DramModel,
    /// `banks`: channels; lines are interleaved over them.
    #[serde(default = "one")]
    pub channels: u32,
    /// `banks`: banks of a channel.
    #[serde(default = "sixteen")]
    pub banks: u32,
    /// `banks`: bytes of a row.
    #[serde(default = "row")]
    pub row_bytes: u64,
    /// `banks`: nanoseconds that a line occupies its channel: 64 bytes over the channel's bandwidth.
    #[serde(default)]
    pub line_ns: f64,
}

fn one() -> u32 {
    1
}
fn sixteen() -> u32 {
    16
}
fn row() -> u64 {
    8192
}

/// How a DRAM access's latency comes about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DramModel {
    /// Always the same.
    #[default]
    Flat,
    /// By bank: `dram_ns` if its open row is hit, `dram_row_ns` more if not; and the channel must be free.
    Banks,
}

/// Latencies. Those of caches are what an access that this level serves is charged.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// A data access that hits L1D, beyond the instruction's own cost.
    pub l1d_cycles: u32,
    /// A new line of instructions that hits L1I.
    pub l1i_cycles: u32,
    /// Served by L2.
    pub l2_cycles: u32,
    /// Served by the LLC.
    pub llc_cycles: u32,
    /// Served by another core's cache.
    pub remote_cycles: u32,
    /// A store to a line that other cores may hold: their invalidation.
    pub upgrade_cycles: u32,
    /// DRAM read, added to `llc_cycles`.
    pub dram_ns: f64,
    /// `banks`: added if the bank's open row is another.
    pub dram_row_ns: f64,
    /// A write-back to DRAM, charged to whoever causes it.
    pub dram_write_ns: f64,
    /// Decryption of a line, added to the DRAM read of an encrypted line alone.
    pub aes_ns: f64,
    /// Encryption of a line that is written back, charged to whoever causes it, of encrypted lines alone.
    pub aes_write_ns: f64,
    /// AES throughput: how long the engine of a channel is taken by a line. 0: it never queues.
    pub aes_line_ns: f64,
    /// A translation that the second-level TLB serves.
    pub tlb2_cycles: u32,
    /// A page walk, beyond its memory accesses.
    pub walk_cycles: u32,
    /// An RMP check (SNP), beyond its memory access.
    pub rmp_cycles: u32,
}

/// Cycles of an instruction by class (docs/model.md lists which instruction is in which).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)] // the keys say it
pub struct Costs {
    pub default: u32,
    pub branch: u32,
    pub mul: u32,
    pub div: u32,
    pub fp: u32,
    pub fp_div: u32,
    pub x87: u32,
    pub vector: u32,
    pub crypto: u32,
    pub locked: u32,
    pub fence: u32,
    /// An iteration of a repeated string instruction, beyond the first.
    pub rep: u32,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            default: 1,
            branch: 1,
            mul: 3,
            div: 18,
            fp: 3,
            fp_div: 13,
            x87: 4,
            vector: 1,
            crypto: 4,
            locked: 18,
            fence: 20,
            rep: 1,
        }
    }
}

/// Cycles of events around the guest. 0 where nothing is charged.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExitCosts {
    /// A system call of a process guest: entry, the kernel's work and return.
    pub syscall_cycles: u32,
    /// A page fault that the guest kernel handles.
    pub fault_cycles: u32,
    /// World switch out and in, plain SVM and SEV.
    pub vmrun_cycles: u32,
    /// Added under SEV-ES and SNP: saving and restoring the encrypted state.
    pub es_state_cycles: u32,
    /// Added for an exit through the GHCB: filling, validating and checking the page.
    pub ghcb_cycles: u32,
    /// Delivery of #VC and return from its handler.
    pub vc_cycles: u32,
    /// PVALIDATE of a page.
    pub pvalidate_cycles: u32,
    /// RMPADJUST of a page.
    pub rmpadjust_cycles: u32,
    /// RMPUPDATE of a page, by the hypervisor in a page-state change.
    pub rmpupdate_cycles: u32,
    /// Launch: a page that the firmware measures and encrypts.
    pub launch_page_ns: f64,
}

impl Model {
    /// Nanoseconds in cycles of the core's clock, to the nearest.
    #[must_use]
    pub fn cycles(&self, ns: f64) -> u64 {
        (ns * f64::from(self.core.clock_mhz) / 1000.0).round() as u64
    }
}
