//! What a model's accesses are, one by one, for a slow simulator that does them all over again.
//!
//! With a trace the filters are bypassed: every access of the interpreter is seen. Kernel and hypervisor accesses are no
//! accesses of the model.

use sevlab_arch::{Gpa, Spa, Va};
use sevlab_memctl::{Domain, LineKind};

use super::Cause;
use super::walk::WalkRef;
use crate::mmu::Access;

/// A data access or instruction fetch of bytes in one line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    /// The core.
    pub core: usize,
    /// Its stamp: the clock before the instruction, plus 1.
    pub stamp: u64,
    /// Load, Store or Fetch.
    pub kind: LineKind,
    /// The first byte.
    pub va: Va,
    /// Bytes.
    pub len: u64,
    /// Where the page's tables lead.
    pub gpa: Gpa,
    /// Its byte in memory.
    pub spa: Spa,
    /// Who sees it.
    pub domain: Domain,
    /// The TLB entry is of 2 MiB.
    pub large: bool,
    /// Rights of the TLB entry: stores need nothing more.
    pub writable: bool,
    /// Fetches are allowed.
    pub executable: bool,
}

/// What happens, in the order of the model's definition.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // made one at a time and passed by reference
pub enum TraceEvent<'a> {
    /// The core is another vCPU's from here on: its TLBs are empty and no line was fetched last. Caches keep what they have.
    Attached {
        /// The core.
        core: usize,
        /// The vCPU's clock.
        clock: u64,
        /// Its time in cycles.
        cycles: u64,
    },
    /// An instruction begins, perhaps not for the first time.
    Begin {
        /// The core.
        core: usize,
        /// Its address.
        rip: Va,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// An iteration of a repeated instruction is complete.
    Iterated {
        /// The core.
        core: usize,
        /// Another follows.
        more: bool,
    },
    /// The instruction is complete.
    Retired {
        /// The core.
        core: usize,
    },
    /// Something outside of instructions took time.
    Charge {
        /// The core.
        core: usize,
        /// What.
        cause: Cause,
        /// How long.
        cycles: u64,
    },
    /// No TLB had the translation for the touch that follows.
    Walk {
        /// The core.
        core: usize,
        /// The address.
        va: Va,
        /// What for.
        access: Access,
        /// What a walk from CR3 reads, without any walk cache. Guest tables are private if `private` says so, nested ones shared.
        refs: &'a [WalkRef],
        /// The domain of guest tables.
        guest: Domain,
        /// Level of the guest's leaf; 0 if paging is off.
        leaf: u8,
        /// The frame's RMP entry, under SNP.
        rmp: Option<Spa>,
    },
    /// An access.
    Touch(Touch),
    /// The entries of `va`'s page leave the core's TLBs, and the guest walk cache is emptied.
    DropPage {
        /// The core.
        core: usize,
        /// An address in the page.
        va: Va,
    },
    /// The RMP does not allow what an entry of `va`'s page says: it leaves the core's TLBs.
    Dead {
        /// The core.
        core: usize,
        /// An address in the page.
        va: Va,
    },
    /// The core's TLBs and guest walk cache are emptied, and with `nested` its nested cache.
    Flush {
        /// The core.
        core: usize,
        /// Nested translations are forgotten, too.
        nested: bool,
    },
}

/// Who wants to see the events.
pub type Trace = Box<dyn FnMut(&TraceEvent<'_>) + Send>;
