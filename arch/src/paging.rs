//! Page tables: entry bits, the C-bit, page-fault error bits, the control register bits that decide a walk.
//!
//! Source: APM vol. 2, chapters 3, 5 and 15.34.

/// Position of the C-bit in page table entries and CR3 of this model, also CPUID 8000_001F EBX bits 5:0.
pub const C_BIT: u32 = 51;
/// The C-bit.
pub const C_MASK: u64 = 1 << C_BIT;
/// Entries in a table.
pub const ENTRIES: usize = 512;
/// Address bits one level of tables translates.
pub const LEVEL_BITS: u32 = 9;

/// Bits of an entry in a page table.
pub mod pte {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// User.
    pub const U: u64 = 1 << 2;
    /// Write-through.
    pub const PWT: u64 = 1 << 3;
    /// Cache disable.
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// Large page (levels 2 and 3), or PAT (level 1).
    pub const PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// PAT of a large page.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// No execute.
    pub const NX: u64 = 1 << 63;
    /// Address bits 51:12 of a 4 KiB page or of a table, with the C-bit still in.
    pub const ADDR_WITH_C: u64 = 0x000f_ffff_ffff_f000;
    /// Address bits, without the C-bit.
    pub const ADDR: u64 = ADDR_WITH_C & !super::C_MASK;
    /// Address bits of a 2 MiB page, without the C-bit.
    pub const ADDR_2M: u64 = ADDR & !0x1f_ffff;
    /// Address bits of a 1 GiB page, without the C-bit.
    pub const ADDR_1G: u64 = ADDR & !0x3fff_ffff;
}

bitflags::bitflags! {
    /// Error code of a page fault.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct PfError: u32 {
        /// A protection violation; else the page was not present.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// At CPL 3.
        const U = 1 << 2;
        /// A reserved bit was set.
        const RSVD = 1 << 3;
        /// An instruction fetch.
        const ID = 1 << 4;
        /// Protection key.
        const PK = 1 << 5;
        /// Shadow stack.
        const SS = 1 << 6;
        /// RMP violation.
        const RMP = 1 << 31;
    }
}

bitflags::bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type.
        const ET = 1 << 4;
        /// Numeric errors.
        const NE = 1 << 5;
        /// Supervisor writes obey W.
        const WP = 1 << 16;
        /// Alignment checks.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags::bitflags! {
    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Cr4: u64 {
        /// Virtual 8086 extensions.
        const VME = 1 << 0;
        /// Protected mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC at CPL 0 only.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// Page size extension.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine check.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC at every CPL.
        const PCE = 1 << 8;
        /// SSE enabled.
        const OSFXSR = 1 << 9;
        /// #XF enabled.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// Five-level paging.
        const LA57 = 1 << 12;
        /// RDFSBASE and friends.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE enabled.
        const OSXSAVE = 1 << 18;
        /// No supervisor execution of user pages.
        const SMEP = 1 << 20;
        /// No supervisor access to user pages.
        const SMAP = 1 << 21;
        /// Protection keys.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
    }
}

bitflags::bitflags! {
    /// XCR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Xcr0: u64 {
        /// x87; always one.
        const X87 = 1 << 0;
        /// XMM registers and MXCSR.
        const SSE = 1 << 1;
        /// Upper halves of the YMM registers.
        const AVX = 1 << 2;
        /// PKRU.
        const PKRU = 1 << 9;
    }
}
