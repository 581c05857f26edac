//! What an instruction costs and how many data accesses it counts: a constant of the instruction, packed into one word, so
//! that translated code adds one constant for many instructions.
//!
//! The word ([`Tally`]): bits 0 to 25 cycles, 26 to 44 data reads, 45 to 63 data writes. An instruction has at most 4095 cycles
//! and 31 accesses of a kind, so the fields can't run into each other in [`MOST`] instructions.
//!
//! Reads and writes are those of the operands, as Cachegrind counts them: one for an operand, whatever lines it lies in, and
//! one write for what is read and written. Two kinds of instruction count while they run instead, and have none in their
//! constant: repeated string instructions (by iteration) and gathers (by loaded element).

use std::sync::OnceLock;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess,
};
use sevlab_memctl::model::{Costs, Model};

use crate::insn::{Control, Insn, Op, Operand, Rep};

/// Instructions that may be added up between two drains, whatever they cost. With low costs there may be more
/// ([`CostTable::most`]).
pub const MOST: u64 = 1 << 14;

/// A packed count, see the module's page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Cycles.
    pub cycles: u64,
    /// Data reads.
    pub reads: u64,
    /// Data writes.
    pub writes: u64,
}

const READS: u32 = 26;
const WRITES: u32 = 45;

impl Tally {
    /// The word.
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.cycles | self.reads << READS | self.writes << WRITES
    }
    /// What a word says.
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            cycles: word & ((1 << READS) - 1),
            reads: word >> READS & ((1 << (WRITES - READS)) - 1),
            writes: word >> WRITES,
        }
    }
    /// One data read.
    pub const READ: u64 = 1 << READS;
    /// One data write.
    pub const WRITE: u64 = 1 << WRITES;
}

/// Which cost an instruction has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Class {
    Default,
    Branch,
    Mul,
    Div,
    Fp,
    FpDiv,
    X87,
    Vector,
    Crypto,
    Locked,
    Fence,
}

/// Classes of the instructions that registers beside the general ones make, by `Code`.
fn classes() -> &'static [Class] {
    static TABLE: OnceLock<Box<[Class]>> = OnceLock::new();
    TABLE.get_or_init(|| Code::values().map(by_code).collect())
}

fn by_code(code: Code) -> Class {
    let features = code.cpuid_features();
    let has = |f: &[CpuidFeature]| features.iter().any(|x| f.contains(x));
    if has(&[
        CpuidFeature::FPU,
        CpuidFeature::FPU287,
        CpuidFeature::FPU387,
    ]) {
        return Class::X87;
    }
    if has(&[
        CpuidFeature::AES,
        CpuidFeature::VAES,
        CpuidFeature::SHA,
        CpuidFeature::PCLMULQDQ,
        CpuidFeature::VPCLMULQDQ,
        CpuidFeature::GFNI,
    ]) {
        return Class::Crypto;
    }
    if !features.is_empty() && features.iter().all(|&f| general(f)) {
        return Class::Default;
    }
    let m = code.mnemonic();
    if matches!(m, Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence) {
        return Class::Fence;
    }
    let name = format!("{m:?}").to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    floating_point(name)
}

/// Whether instructions of this extension work on general registers alone.
fn general(f: CpuidFeature) -> bool {
    matches!(
        f,
        CpuidFeature::BMI1
            | CpuidFeature::BMI2
            | CpuidFeature::ADX
            | CpuidFeature::LZCNT
            | CpuidFeature::POPCNT
            | CpuidFeature::MOVBE
            | CpuidFeature::RDRAND
            | CpuidFeature::RDSEED
    )
}

/// The class of an SSE or AVX instruction of that name, without its V.
fn floating_point(name: &str) -> Class {
    const DIVIDE: [&str; 2] = ["div", "sqrt"];
    const COMPUTE: [&str; 20] = [
        "add", "sub", "mul", "hadd", "hsub", "addsub", "max", "min", "cmp", "comi", "ucomi",
        "round", "dp", "rcp", "rsqrt", "fmadd", "fmsub", "fnmadd", "fnmsub", "cvt",
    ];
    let suffix = ["ss", "sd", "ps", "pd"].iter().any(|s| name.ends_with(s));
    if suffix && DIVIDE.iter().any(|d| name.starts_with(d)) {
        return Class::FpDiv;
    }
    if name.starts_with("cvt") || suffix && COMPUTE.iter().any(|c| name.starts_with(c)) {
        return Class::Fp;
    }
    Class::Vector
}

fn class(i: &Insn) -> Class {
    match i.op {
        Op::Mfence => Class::Fence,
        Op::Nop => match classes()[usize::from(i.code)] {
            Class::Fence => Class::Fence,
            _ => Class::Default,
        },
        _ if i.lock && i.ops.contains(&Operand::Mem) => Class::Locked,
        Op::Mul | Op::Imul1 | Op::Imul2 | Op::Imul3 | Op::Mulx => Class::Mul,
        Op::Div | Op::Idiv => Class::Div,
        Op::Thunk | Op::Extrq | Op::Insertq | Op::Movnts => classes()[usize::from(i.code)],
        _ => match i.control {
            Control::Next | Control::Leave => Class::Default,
            _ => Class::Branch,
        },
    }
}

/// The costs of a model, by class of instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CostTable {
    cycles: [u32; 11],
    repeat: u64,
}

impl CostTable {
    /// The table of a model.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        let Costs {
            default,
            branch,
            mul,
            div,
            fp,
            fp_div,
            x87,
            vector,
            crypto,
            locked,
            fence,
            rep,
        } = model.cost;
        let cycles = [
            default, branch, mul, div, fp, fp_div, x87, vector, crypto, locked, fence,
        ];
        Self {
            cycles: cycles.map(|c| c.min(4095)),
            repeat: u64::from(rep.min(4095)),
        }
    }

    /// How many instructions may be added up between two drains at these costs, with 8 reads and 8 writes each at most.
    #[must_use]
    pub fn most(&self) -> u64 {
        let costs = self.cycles.iter().map(|&c| u64::from(c));
        let dearest = costs.fold(self.repeat, u64::max).max(1);
        ((1 << READS) / dearest).min(1 << (WRITES - READS - 3))
    }

    /// What an instruction adds to [`CpuState::tally`](crate::CpuState::tally) when it completes.
    #[must_use]
    pub fn tally(&self, i: &Insn) -> u64 {
        let (reads, writes) = accesses(i);
        Tally {
            cycles: u64::from(self.cycles[class(i) as usize]),
            reads: reads.min(31),
            writes: writes.min(31),
        }
        .pack()
    }

    /// What an iteration of a repeated string instruction adds.
    #[must_use]
    pub fn iteration(&self, op: Op) -> u64 {
        let (reads, writes) = match op {
            Op::Movs => (1, 1),
            Op::Stos => (0, 1),
            Op::Cmps => (2, 0),
            _ => (1, 0),
        };
        let cycles = 0;
        Tally {
            cycles,
            reads,
            writes,
        }
        .pack()
    }

    /// What an iteration adds besides if the instruction goes on after it.
    #[must_use]
    pub fn repeat(&self) -> u64 {
        self.repeat
    }
}

/// Data reads and writes of an instruction's operands.
fn accesses(i: &Insn) -> (u64, u64) {
    match i.op {
        Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps if i.rep != Rep::None => {
            return (0, 0);
        }
        Op::Clflush | Op::Monitorx => return (1, 0),
        Op::Clzero => return (0, 1),
        Op::Ud | Op::Privileged => return (0, 0),
        _ => {}
    }
    let bytes = &i.bytes[..usize::from(i.len.min(15))];
    let x = Decoder::with_ip(64, bytes, i.rip, DecoderOptions::NONE).decode();
    if x.is_vsib() {
        return (0, 0);
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&x);
    let (mut reads, mut writes) = (0, 0);
    for m in info.used_memory() {
        match m.access() {
            OpAccess::Read | OpAccess::CondRead => reads += 1,
            OpAccess::Write
            | OpAccess::CondWrite
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite => writes += 1,
            OpAccess::None | OpAccess::NoMemAccess => {}
        }
    }
    (reads, writes)
}
