//! The decoded form of one guest instruction: what the semantics, the interpreter and the translator read.

/// Integer operand width.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Width {
    B1 = 0,
    B2 = 1,
    B4 = 2,
    B8 = 3,
}

impl Width {
    /// log2 of the bytes.
    #[must_use]
    pub const fn log2(self) -> u8 {
        self as u8
    }
    /// From log2 of the bytes (low two bits).
    #[must_use]
    pub const fn from_log2(n: u8) -> Self {
        [Width::B1, Width::B2, Width::B4, Width::B8][(n & 3) as usize]
    }
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        1 << self as u32
    }
    /// Bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }
    /// All ones in this width.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
    /// Sign-extends the low bits of `v` from this width to 64.
    #[must_use]
    pub const fn sext(self, v: u64) -> u64 {
        let s = 64 - self.bits();
        (((v << s) as i64) >> s) as u64
    }
}

/// An operand, resolved at decode time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// Absent.
    None,
    /// General register 0..=15 at the instruction's (or its own) width, low part.
    Gpr(u8),
    /// AH, CH, DH or BH: bits 15:8 of general register 0..=3.
    High(u8),
    /// The instruction's memory operand, [`Insn::mem`].
    Mem,
    /// An immediate, sign-extended to 64 bits as the instruction does.
    Imm(i64),
    /// XMM or YMM register (only on rows that the vector tables handle).
    Vec(u8),
}

/// A memory operand: `segment base + (base + index * scale + disp)` truncated to the address size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRef {
    /// Base register, or [`MemRef::NONE`].
    pub base: u8,
    /// Index register, or [`MemRef::NONE`].
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// FS (4) or GS (5), or [`MemRef::NONE`] where the segment base is zero.
    pub seg: u8,
    /// 67-prefixed: the address is 32 bits.
    pub addr32: bool,
    /// Displacement; for RIP-relative operands the absolute address, with no base.
    pub disp: i64,
}

impl MemRef {
    /// No register.
    pub const NONE: u8 = 0xff;
    /// No memory operand.
    pub const ABSENT: Self = Self {
        base: Self::NONE,
        index: Self::NONE,
        scale: 0,
        seg: Self::NONE,
        addr32: false,
        disp: 0,
    };
}

/// What an instruction does, by family. Width, operands and prefixes are in [`Insn`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)] // the ISA's own names
#[repr(u16)]
pub enum Op {
    // data movement
    Mov,
    Movzx,
    Movsx,
    Lea,
    Xchg,
    Push,
    Pop,
    Pushf,
    Popf,
    Leave,
    Enter,
    Bswap,
    Movbe,
    Xlat,
    Cmov(crate::flags::Cond),
    Setcc(crate::flags::Cond),
    Cwd,
    Cbw,
    Lahf,
    Sahf,
    // arithmetic and logic: op0 = op0 OP op1
    Add,
    Adc,
    Sub,
    Sbb,
    Cmp,
    And,
    Or,
    Xor,
    Test,
    Inc,
    Dec,
    Neg,
    Not,
    Adcx,
    Adox,
    Mul,
    Imul1,
    Imul2,
    Imul3,
    Div,
    Idiv,
    Mulx,
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shld,
    Shrd,
    Rorx,
    Sarx,
    Shlx,
    Shrx,
    Bt,
    Bts,
    Btr,
    Btc,
    Bsf,
    Bsr,
    Tzcnt,
    Lzcnt,
    Popcnt,
    Andn,
    Bextr,
    Blsi,
    Blsmsk,
    Blsr,
    Bzhi,
    Pdep,
    Pext,
    Xadd,
    Cmpxchg,
    Cmpxchg8b,
    Cmpxchg16b,
    Clc,
    Stc,
    Cmc,
    Cld,
    Std,
    // control flow
    Jmp,
    JmpInd,
    Jcc(crate::flags::Cond),
    Jrcxz,
    Loop,
    Loope,
    Loopne,
    Call,
    CallInd,
    Ret,
    Int3,
    Int,
    Ud,
    Into,
    Iret,
    // strings (REP in `Insn::rep`)
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    // no effect on state that we model: NOP, ENDBR, PAUSE, prefetches, LFENCE and SFENCE (loads keep their order, and so do
    // stores: there are no weakly ordered ones), CLFLUSH family
    Nop,
    Clflush,
    /// A full barrier.
    Mfence,
    // far transfers within the code segment
    JmpFar,
    CallFar,
    RetFar,
    // AMD's own
    Extrq,
    Insertq,
    /// MOVNTSS, MOVNTSD: the low scalar to memory.
    Movnts,
    Clzero,
    Monitorx,
    Mwaitx,
    Rdpru,
    // system
    Syscall,
    Cpuid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Rdpid,
    Rdmsr,
    Wrmsr,
    Xgetbv,
    In,
    Out,
    Ins,
    Outs,
    Hlt,
    Vmmcall,
    Vmgexit,
    Wbinvd,
    Rdfsbase,
    Rdgsbase,
    Wrfsbase,
    Wrgsbase,
    Stmxcsr,
    Ldmxcsr,
    Fxsave,
    Fxrstor,
    Xsave,
    Xrstor,
    MovFromSeg,
    /// MOV to a segment register; `ops[0]` is its number as an immediate.
    MovToSeg,
    /// PUSH FS or GS; `ops[0]` is the segment number as an immediate.
    PushSeg,
    /// POP FS or GS; `ops[0]` is the segment number as an immediate.
    PopSeg,
    /// LAR, LSL, VERR, VERW: no descriptor is visible to the guest, so ZF = 0.
    SegCheck,
    /// INT1 (ICEBP).
    Int1,
    Rdrand,
    Rdseed,
    /// Privileged at CPL 3: #GP(0).
    Privileged,
    /// Runs as a native thunk over register state (see the thunk module).
    Thunk,
}

/// REP prefix of a string instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Rep {
    None,
    Rep,
    Repne,
}

/// How control leaves the instruction; decides where blocks end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Falls through to the next instruction only.
    Next,
    /// Unconditional jump to a known address.
    Jump(u64),
    /// Conditional: to the address, or falls through.
    Branch(u64),
    /// Call of a known address; returns to the next instruction.
    Call(u64),
    /// Indirect jump.
    Indirect,
    /// Indirect call.
    IndirectCall,
    /// Return.
    Return,
    /// Leaves to whoever runs the vCPU (SYSCALL, intercepted or always-faulting instructions).
    Leave,
}

/// One decoded guest instruction.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    /// Guest virtual address.
    pub rip: u64,
    /// Family.
    pub op: Op,
    /// Bytes.
    pub len: u8,
    /// Operand width. For MOVZX/MOVSX the destination's; see `src_width`.
    pub width: Width,
    /// Source width where it differs (MOVZX, MOVSX, MOVSXD); else equal to `width`.
    pub src_width: Width,
    /// LOCK prefix (or implied, for XCHG with memory).
    pub lock: bool,
    /// REP prefix, for string instructions.
    pub rep: Rep,
    /// How control leaves.
    pub control: Control,
    /// Operands, destination first.
    pub ops: [Operand; 4],
    /// The memory operand, if any is `Operand::Mem` (or for string, LEA and thunk rows).
    pub mem: MemRef,
    /// iced's code number (`iced_x86::Code as u16`), for tables and thunks.
    pub code: u16,
    /// Arithmetic flags it reads.
    pub flags_in: u64,
    /// Arithmetic flags it always writes (defined, cleared or left undefined).
    pub flags_out: u64,
    /// The instruction's bytes, zero padded: a thunk is made from them.
    pub bytes: [u8; 15],
}

impl Insn {
    /// Address of the following instruction.
    #[must_use]
    pub const fn next_rip(&self) -> u64 {
        self.rip.wrapping_add(self.len as u64)
    }
    /// Whether the instruction ends a basic block.
    #[must_use]
    pub const fn ends_block(&self) -> bool {
        !matches!(self.control, Control::Next)
    }
}
