//! The whole architectural state of a long-mode CPU, in one `repr(C)` structure.
//!
//! Translated code addresses it through one pinned register, so the fields that code touches come
//! first and keep their order. Nothing here behaves; see [`crate::flags`] for what the lazy flags mean.

use crate::flags::LazyFlags;

/// A 128-bit lane, low quadword first.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Lane(pub [u64; 2]);

/// A segment register with its hidden part. `attr` has the VMCB's packed 12-bit format.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Attributes as the VMCB packs them: type, S, DPL, P, AVL, L, D/B, G.
    pub attr: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// Indexes into [`CpuState::seg`]; the order is the ISA's encoding order.
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// Register numbers in [`CpuState::gpr`]; the ISA's encoding order.
pub mod gpr {
    /// RAX.
    pub const RAX: u8 = 0;
    /// RCX.
    pub const RCX: u8 = 1;
    /// RDX.
    pub const RDX: u8 = 2;
    /// RBX.
    pub const RBX: u8 = 3;
    /// RSP.
    pub const RSP: u8 = 4;
    /// RBP.
    pub const RBP: u8 = 5;
    /// RSI.
    pub const RSI: u8 = 6;
    /// RDI.
    pub const RDI: u8 = 7;
    /// R8; R9 to R15 follow in order.
    pub const R8: u8 = 8;
    /// R11, which SYSCALL overwrites with RFLAGS.
    pub const R11: u8 = 11;
    /// R15.
    pub const R15: u8 = 15;
}

/// The legacy FXSAVE image: x87 and MMX state, MXCSR. Its XMM part is not kept up to date
/// ([`CpuState::xmm`] is the truth).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct FxImage(pub [u8; 512]);

/// System registers that no translated code touches.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
#[allow(missing_docs)] // named by the architecture
pub struct SystemRegs {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub dr: [u64; 8],
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    pub tsc_offset: u64,
    pub xcr0: u64,
    pub xss: u64,
    pub ghcb: u64,
    pub sev_status: u64,
    pub gdtr: (u64, u32),
    pub idtr: (u64, u32),
}

/// Words that an execution engine keeps beside the state, reached through the same pointer.
pub const ENGINE_WORDS: usize = 64;

/// The architectural state of one vCPU.
#[repr(C, align(64))]
pub struct CpuState {
    /// General registers, in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer (the instruction about to run).
    pub rip: u64,
    /// Arithmetic flags CF, PF, AF, ZF, SF, OF, kept lazily.
    pub cc: LazyFlags,
    /// RFLAGS without the six arithmetic flags (those are in `cc`); bit 1 is set.
    pub rflags: u64,
    /// Base of the fast TLB that inline probes use.
    pub tlb: *const sevlab_memctl::TlbEntry,
    /// Non-zero: leave translated code at the next boundary.
    pub exit_request: core::sync::atomic::AtomicU32,
    /// MXCSR as last saved; while guest code runs the host's own MXCSR is the guest's.
    pub mxcsr: u32,
    /// Guest instructions retired.
    pub retired: u64,
    /// In turns: how many loops and blocks may still run. Else it does not count.
    pub budget: i64,
    /// Under a machine model ([`crate::model`]): the line that was fetched last, as its address shifted right by 6.
    pub fetch_line: u64,
    /// Under a machine model: iterations of repeated instructions that did not complete their instruction.
    pub repeats: u64,
    /// Under a machine model: what the instructions completed since the last drain count ([`crate::model::costs`]).
    pub tally: u64,
    /// Under a machine model: how often a line was fetched.
    pub fetched: u64,
    /// Under a machine model: the clock (`retired + repeats`) at which the turn ends.
    pub stop_at: u64,
    /// Under a machine model: memory of the filter of data lines ([`sevlab_memctl::LineFilter`]).
    pub lines: *const core::sync::atomic::AtomicU64,
    /// Under a machine model: memory of the filter of instruction lines ([`sevlab_memctl::FetchFilter`]).
    pub fetches: *const core::sync::atomic::AtomicU64,
    /// Under a machine model whose misses overlap: the next place of the trail ([`crate::model::TRAIL`]), where each piece of
    /// straight code that is entered leaves its address and the clock. Else null.
    pub trail: *mut [u64; 2],
    /// Words an execution engine keeps here (helper addresses, caches, slots).
    pub engine: [u64; ENGINE_WORDS],
    /// Low 128 bits of the vector registers.
    pub xmm: [Lane; 16],
    /// High 128 bits of the YMM registers.
    pub ymmh: [Lane; 16],
    /// Segment registers, in encoding order.
    pub seg: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// x87 state.
    pub fx: FxImage,
    /// Scratch space through which memory operands pass (64-byte aligned).
    pub scratch: FxImage,
    /// Control, debug and model-specific registers.
    pub sys: SystemRegs,
}

impl CpuState {
    /// The state after INIT in long mode with flat segments at CPL 3: what a process guest starts
    /// from. RIP, RSP and CR3 are for the caller to set.
    #[must_use]
    pub fn process() -> Box<Self> {
        let mut fx = FxImage([0; 512]);
        fx.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fx.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        fx.0[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        let data = Segment {
            selector: 0x2b,
            attr: 0xcf3,
            limit: 0xffff_ffff,
            base: 0,
        };
        let code = Segment {
            selector: 0x33,
            attr: 0xafb,
            limit: 0xffff_ffff,
            base: 0,
        };
        let flat = Segment {
            selector: 0,
            attr: 0xcf3,
            limit: 0xffff_ffff,
            base: 0,
        };
        Box::new(Self {
            gpr: [0; 16],
            rip: 0,
            cc: LazyFlags::default(),
            rflags: 0x202,
            tlb: core::ptr::null(),
            exit_request: core::sync::atomic::AtomicU32::new(0),
            mxcsr: 0x1f80,
            retired: 0,
            budget: i64::MAX,
            fetch_line: u64::MAX,
            repeats: 0,
            tally: 0,
            fetched: 0,
            stop_at: u64::MAX,
            lines: core::ptr::null(),
            fetches: core::ptr::null(),
            trail: core::ptr::null_mut(),
            engine: [0; ENGINE_WORDS],
            xmm: [Lane::default(); 16],
            ymmh: [Lane::default(); 16],
            seg: [flat, code, data, flat, flat, flat],
            ldtr: Segment::default(),
            tr: Segment {
                selector: 0x40,
                attr: 0x8b,
                limit: 0x67,
                base: 0,
            },
            cpl: 3,
            fx,
            scratch: FxImage([0; 512]),
            sys: SystemRegs {
                cr0: 0x8005_0033,
                cr4: 0x0035_06f0,
                efer: 0xd01,
                xcr0: 7,
                pat: 0x0007_0406_0007_0406,
                dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
                ..SystemRegs::default()
            },
        })
    }

    /// The clock of a machine model: instructions completed, and iterations of repeated ones beyond the last.
    #[must_use]
    pub const fn clock(&self) -> u64 {
        self.retired.wrapping_add(self.repeats)
    }

    /// The architectural RFLAGS value, with the arithmetic flags computed.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.rflags | self.cc.bits()
    }

    /// Sets RFLAGS as a whole.
    pub fn set_rflags(&mut self, value: u64) {
        self.cc = LazyFlags::explicit(value);
        self.rflags = (value & !crate::flags::ARITH) | 2;
    }
}
