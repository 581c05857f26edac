//! One switch for each optimisation, so that a wrong result or a slow run can be pinned on one of them.

use crate::CodeCache;
use sevlab_cpu::model::costs::CostTable;
use std::sync::Arc;

/// How hard Cranelift tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptLevel {
    /// No mid-end: half the compile time.
    None,
    /// E-graph optimisation, alias analysis.
    Speed,
}

/// What the translator may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitOptions {
    /// How often the interpreter runs a block before its region is translated.
    pub threshold: u32,
    /// With [`JitOptions::cache`]: how often the interpreter must have run a block in a former run for its region to be translated as
    /// soon as it is met. Loading a region costs some microseconds, a run of a block in the interpreter some tens of nanoseconds more
    /// than translated, and decoding it a microsecond.
    pub warm: u32,
    /// Cranelift's optimisation level.
    pub opt_level: OptLevel,
    /// Compile on a second thread while the interpreter goes on.
    pub background: bool,
    /// Several basic blocks in a region; off: one.
    pub regions: bool,
    /// Regions jump to each other without returning to the dispatcher.
    pub chaining: bool,
    /// Look indirect jump targets up inline.
    pub jump_cache: bool,
    /// Regions run in one stack frame, and jump to each other without taking it down.
    pub shared_frame: bool,
    /// Accesses off one base share a probe. Not where the number of resident pages is limited; the machine sees to that.
    pub groups: bool,
    /// Guest memory in the memory controller's view is accessed without a probe; with `shared_frame` and
    /// [`OptLevel::None`] only. The machine has to have a view.
    pub view: bool,
    /// After so many runs in the interpreter a block that is not translated yet runs as a copy of the guest's own instructions,
    /// where `view` is; 0: never. Copying takes about as long as so many runs.
    pub direct: u32,
    /// With [`JitOptions::cache`] and `direct`: what a second run of a program decodes and does not run so often goes to the cache as
    /// copies, too; a later run counts how often it comes to one, and decodes what it comes to often. Loading a copy takes
    /// half of the time that decoding a block does, or less.
    pub cold: bool,
    /// Accesses that the filter does not pass and the cache below the first level serves are simulated in the host's own words
    /// ([`sevlab_cpu::model::short`]), and what that does not serve by the controller's short way
    /// ([`sevlab_memctl::MemCtl::use_short_ways`]).
    pub short: bool,
    /// Flags that nothing can read are not kept across blocks.
    pub dead_flags: bool,
    /// Vector and scalar floating-point instructions become CLIF operations; off: native thunks.
    pub vectors: bool,
    /// Regions with more accesses than this store registers before an access, not on the way out of a faulting one.
    pub lazy_accesses: usize,
    /// Most guest blocks in a region.
    pub max_blocks: usize,
    /// Most regions that a guest block is part of, not counting the one it begins.
    pub max_copies: u8,
    /// Most guest instructions in a region.
    pub max_insns: usize,
    /// Most memory has no host address (cache mode `none`): read-modify-writes go through the helpers too, instead of
    /// leaving to the interpreter. The machine sets it.
    pub uncached: bool,
    /// Regions count their loops against the vCPU's budget ([`sevlab_cpu::CpuState::budget`]): vCPUs that run in turns.
    /// The machine sets it.
    pub budget: bool,
    /// Caches are simulated: every access touches its line (cache mode `hierarchy`). The machine sets it.
    pub lines: bool,
    /// What instructions cost, where caches are simulated. The machine sets it.
    pub costs: Option<Arc<CostTable>>,
    /// Their core lets misses overlap: each guest block leaves its place in the trail. The machine sets it.
    pub trail: bool,
    /// Where to write each region's guest instructions, CLIF and host code, for reading.
    pub dump_dir: Option<std::path::PathBuf>,
    /// Host instructions are counted as code is made (its constants count as instructions, too); for benchmarks.
    pub count_host: bool,
    /// Bytes of the code buffer.
    pub code_bytes: usize,
    /// Where translations are kept from run to run. Not with [`JitOptions::dump_dir`] or [`JitOptions::count_host`], which are
    /// about regions as they are made. Nor with [`JitOptions::budget`] or [`JitOptions::lines`]: how the threads of a guest take
    /// turns would depend on what a former run has translated.
    pub cache: Option<Arc<CodeCache>>,
}

impl Default for JitOptions {
    fn default() -> Self {
        Self {
            threshold: 4000,
            warm: 32,
            opt_level: OptLevel::None,
            background: true,
            regions: true,
            chaining: true,
            jump_cache: true,
            shared_frame: true,
            groups: true,
            view: true,
            direct: 16,
            cold: true,
            short: true,
            dead_flags: true,
            vectors: true,
            lazy_accesses: 16,
            max_blocks: 24,
            max_copies: 3,
            max_insns: 128,
            uncached: false,
            budget: false,
            lines: false,
            costs: None,
            trail: false,
            dump_dir: None,
            count_host: false,
            code_bytes: 256 << 20,
            cache: None,
        }
    }
}

impl JitOptions {
    /// Everything off: one block a region, no chaining, translated at once and in the foreground.
    #[must_use]
    pub fn all_off() -> Self {
        Self {
            threshold: 1,
            opt_level: OptLevel::None,
            background: false,
            regions: false,
            chaining: false,
            jump_cache: false,
            shared_frame: false,
            groups: false,
            view: false,
            direct: 0,
            cold: false,
            short: false,
            dead_flags: false,
            vectors: false,
            ..Self::default()
        }
    }
}
