//! Native thunks: the host's own instruction, run on the guest's registers.
//!
//! # Problem
//! The long tail of the ISA (x87, MMX, SSE to AVX2, FMA, AES, SHA, GFNI, BMI, CRC32, ...) must be bit-exact, and the host has
//! every one of these instructions. But guest registers live in [`CpuState`], and guest memory is reached only through the
//! memory path.
//!
//! # Approach
//! Once per encoding, [`make`] has the decoder's instruction information say which registers and flags the instruction uses, and
//! emits a function `fn(*mut CpuState)` that loads them, runs the very same instruction and stores what it wrote. A memory operand
//! becomes [`CpuState::scratch`]; [`run()`] moves guest memory there and back. What can't be so (gathers, masked moves, MXCSR) is
//! done in software ([`soft`]). No semantics are written here.
//!
//! # Invariants
//! 1. A thunk reads and writes only the `CpuState` it is given. Nothing in it depends on guest addresses.
//! 2. No guest operation faults in the host: alignment is checked before, x87 exceptions that are pending raise #MF before a waiting
//!    instruction runs, SIMD exceptions are masked in the host's MXCSR (see [`mxcsr`]), LOCK and unknown forms are refused.
//! 3. A memory write that can fault is probed before the thunk changes any register.
//! 4. Code is made from instructions, never from guest bytes: stray prefixes do not get through.
//! 5. No host address gets into guest state: x87 instruction pointers are put right after every x87 thunk (so those must go through
//!    [`run()`], see [`Thunk::direct`]).
//!
//! What is not checked here: CR0.TS, CR0.EM, CR4.OSFXSR and XCR0 (whether the unit is enabled at all), and the guest's CPUID.
#![allow(unsafe_code)] // executable memory, and calls into it

mod codebuf;
mod make;
pub mod mxcsr;
mod route;
mod run;
mod soft;
mod vcpu;
pub mod x87;

use std::collections::HashMap;
use std::io;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory};

use crate::insn::Insn;
use crate::state::CpuState;
use codebuf::CodeBuf;
use soft::Soft;

pub use route::{ThunkKind, integer, route};
pub use run::{ThunkCpu, ThunkMemory, run, run_on};

/// What the address of an instruction's memory operand of `size` bytes must be a multiple of, if it runs as a thunk.
#[must_use]
pub fn alignment(ins: &Instruction, size: u16) -> u16 {
    route(ins.code()).map_or(1, |kind| make::alignment(ins, size, kind))
}

/// Whether the host has all that instructions of this code need.
#[must_use]
pub fn host_has(code: Code) -> bool {
    code.cpuid_features().iter().all(|&f| route::host_has(f))
}

/// Host code of a thunk.
pub type Entry = unsafe extern "sysv64" fn(*mut CpuState);

/// Why an instruction has no thunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThunkError {
    /// the bytes are no single valid instruction
    #[error("the bytes are no single valid instruction")]
    Undecodable,
    /// the instruction does not run as a thunk
    #[error("{code:?} does not run as a thunk")]
    Unsupported {
        /// The decoder's code.
        code: Code,
    },
    /// the instruction has a LOCK prefix
    #[error("{code:?} with LOCK does not run as a thunk")]
    Locked {
        /// The decoder's code.
        code: Code,
    },
    /// the host processor lacks the instruction
    #[error("the host lacks {feature:?}, which {code:?} needs")]
    HostLacks {
        /// The decoder's code.
        code: Code,
        /// What the host lacks.
        feature: CpuidFeature,
    },
    /// the instruction can't be encoded with its operands replaced
    #[error("{code:?} can't be encoded with its operands replaced: {reason}")]
    Encode {
        /// The decoder's code.
        code: Code,
        /// The encoder's message.
        reason: String,
    },
    /// the code buffer is full
    #[error("the thunk buffer is full")]
    Full,
    /// executable memory could not be had
    #[error("executable memory for thunks: {source}")]
    Io {
        /// The system's error.
        #[from]
        source: io::Error,
    },
}

/// What happens to the x87 instruction, data and opcode pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pointers {
    /// Control instructions and MMX: nothing.
    Keep,
    /// They name this instruction.
    Update,
    /// They become zero: FNINIT, FNSAVE.
    Clear,
    /// They are in the environment that the instruction loads: FLDENV, FRSTOR.
    Load,
}

/// One thunk: host code and what its caller has to know. Only a [`ThunkCache`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Thunk {
    entry: Entry,
    kind: ThunkKind,
    soft: Soft,
    mem_read: u16,
    mem_write: u16,
    align: u16,
    /// What an address may not have set where misaligned accesses raise #AC.
    natural: u8,
    /// Not only memory is written: a write is probed first.
    probe: bool,
    /// `cc` must be explicit before.
    explicit: bool,
    /// Uses vector registers: may raise SIMD floating-point exceptions.
    simd: bool,
    x87: bool,
    /// Enters MMX mode.
    mmx: bool,
    /// Raises #MF first if an x87 exception is pending.
    waits: bool,
    pointers: Pointers,
    /// FNSTENV, FNSAVE: bytes of the environment that is stored, else 0.
    env: u8,
    /// So many bytes of the operand are touched before its end is looked at; 0: none.
    piece: u8,
    /// VCVTPS2PH: how many results it has, else 0; and the vector register that they are in, if not in memory.
    halves: u8,
    half_dst: u8,
    reads_flags: u64,
    writes_flags: u64,
}

impl Thunk {
    /// The host code. Valid for the life of the process.
    #[must_use]
    pub fn entry(&self) -> Entry {
        self.entry
    }
    /// How it runs.
    #[must_use]
    pub fn kind(&self) -> ThunkKind {
        self.kind
    }
    /// Bytes that are read from the memory operand into scratch before, or 0.
    #[must_use]
    pub fn mem_read(&self) -> u16 {
        self.mem_read
    }
    /// Bytes that are written from scratch to the memory operand after, or 0.
    #[must_use]
    pub fn mem_write(&self) -> u16 {
        self.mem_write
    }
    /// Alignment that the memory operand must have, or #GP(0); 1 if none.
    #[must_use]
    pub fn align(&self) -> u16 {
        self.align
    }
    /// Address bits that must be clear, or #AC(0), under EFLAGS.AC; 0 if the instruction checks nothing.
    #[inline]
    #[must_use]
    pub fn checked_alignment(&self) -> u64 {
        u64::from(self.natural)
    }
    /// Arithmetic flags whose value before matters (those it reads, or leaves undefined).
    #[must_use]
    pub fn reads_flags(&self) -> u64 {
        self.reads_flags
    }
    /// Arithmetic flags that it writes.
    #[must_use]
    pub fn writes_flags(&self) -> u64 {
        self.writes_flags
    }
    /// Whether [`CpuState::cc`] must be an explicit record when the host code is called.
    #[must_use]
    pub fn needs_explicit_flags(&self) -> bool {
        self.explicit
    }
    /// Whether it uses the x87 unit (MMX included).
    #[must_use]
    pub fn x87(&self) -> bool {
        self.x87
    }
    /// Whether translated code may call [`Self::entry`] itself, doing alignment, scratch and flags as the other methods say. The
    /// rest (x87, software) goes through [`run()`]; so does everything while the guest has a SIMD exception unmasked.
    #[must_use]
    pub fn direct(&self) -> bool {
        !self.x87 && matches!(self.soft, Soft::None)
    }
}

/// All thunks made so far, by instruction with its memory operand's address left out.
///
/// Thunks outlive the cache: their code and descriptions are never freed. The code's total size is bounded.
pub struct ThunkCache {
    code: CodeBuf,
    made: HashMap<Instruction, &'static Thunk>,
    info: InstructionInfoFactory,
    nothing: Entry,
}

impl ThunkCache {
    /// An empty cache.
    ///
    /// # Errors
    /// The system gives no executable memory.
    pub fn new() -> io::Result<Self> {
        let mut code = CodeBuf::new()?;
        let ret = code
            .push(&[0xc3])?
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self {
            code,
            made: HashMap::new(),
            info: InstructionInfoFactory::new(),
            // SAFETY: `ret` is the address of executable memory that is never unmapped; it holds a return.
            nothing: unsafe { core::mem::transmute::<*const u8, Entry>(ret) },
        })
    }

    /// The host process has been cloned, and this is the clone.
    pub fn forked(&mut self) {
        self.code.forked();
    }

    /// Finds or makes the thunk of an instruction that [`route`] accepts.
    ///
    /// # Errors
    /// [`ThunkError`] says why there is none.
    pub fn get(&mut self, i: &Insn) -> Result<&'static Thunk, ThunkError> {
        let ins = decode(i)?;
        let kind = route(ins.code()).ok_or(ThunkError::Unsupported { code: ins.code() })?;
        self.find_or_make(&ins, kind)
    }

    /// As [`Self::get`] for an instruction that [`integer`] accepts: the host's own behaviour, to test others against. Bit tests
    /// with a register index and a memory operand (bit strings), and the absolute-address MOVs, are refused.
    ///
    /// # Errors
    /// [`ThunkError`] says why there is none.
    pub fn get_integer(&mut self, i: &Insn) -> Result<&'static Thunk, ThunkError> {
        let ins = decode(i)?;
        let code = ins.code();
        if !integer(code) || make::is_bit_string(&ins) {
            return Err(ThunkError::Unsupported { code });
        }
        self.find_or_make(&ins, ThunkKind::Gpr)
    }

    /// Thunks made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.made.len()
    }
    /// Whether none was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.made.is_empty()
    }
    /// Bytes of host code made.
    #[must_use]
    pub fn code_bytes(&self) -> usize {
        self.code.len()
    }

    fn find_or_make(
        &mut self,
        ins: &Instruction,
        kind: ThunkKind,
    ) -> Result<&'static Thunk, ThunkError> {
        let code = ins.code();
        if ins.has_lock_prefix() {
            return Err(ThunkError::Locked { code });
        }
        let key = make::normalise(ins, kind);
        if let Some(&t) = self.made.get(&key) {
            return Ok(t);
        }
        if let Some(&feature) = code.cpuid_features().iter().find(|&&f| !route::host_has(f)) {
            return Err(ThunkError::HostLacks { code, feature });
        }
        let (mut thunk, bytes) = make::make(&key, kind, &mut self.info, self.nothing)?;
        if let Some(bytes) = bytes {
            let at = self.code.push(&bytes)?.ok_or(ThunkError::Full)?;
            // SAFETY: `at` is the address of executable memory that is never unmapped; it holds a function of this type.
            thunk.entry = unsafe { core::mem::transmute::<*const u8, Entry>(at) };
        }
        let thunk: &'static Thunk = Box::leak(Box::new(thunk));
        self.made.insert(key, thunk);
        Ok(thunk)
    }
}

fn decode(i: &Insn) -> Result<Instruction, ThunkError> {
    let bytes = &i.bytes[..usize::from(i.len).min(15)];
    let ins = Decoder::with_ip(64, bytes, i.rip, DecoderOptions::NONE).decode();
    if ins.is_invalid() || ins.len() != bytes.len() {
        return Err(ThunkError::Undecodable);
    }
    Ok(ins)
}
