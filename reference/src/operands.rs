//! What an instruction counts: its class, its data reads and writes. From its bytes alone.

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind,
};
use sevlab_memctl::model::Costs;

/// How an instruction's accesses are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counting {
    /// So many, when it completes.
    Fixed,
    /// So many an iteration.
    Repeated,
    /// A read for each element of so many bytes that it loads.
    Gather(u64),
}

/// What one instruction counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Its cycles (of a repeated one: with its first iteration).
    pub cycles: u64,
    /// Data reads.
    pub reads: u64,
    /// Data writes.
    pub writes: u64,
    /// When.
    pub counting: Counting,
}

/// Decodes and classifies.
#[must_use]
pub fn count(costs: &Costs, rip: u64, bytes: &[u8]) -> Counted {
    let i = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    let (reads, writes) = accesses(&i);
    let counting = if i.is_vsib() {
        Counting::Gather(i.memory_size().size().max(1) as u64)
    } else if is_string(&i) && (i.has_rep_prefix() || i.has_repne_prefix()) {
        Counting::Repeated
    } else {
        Counting::Fixed
    };
    Counted {
        cycles: u64::from(cycles(costs, &i)),
        reads,
        writes,
        counting,
    }
}

fn is_string(i: &Instruction) -> bool {
    i.is_string_instruction()
        && !matches!(
            i.mnemonic(),
            Mnemonic::Insb
                | Mnemonic::Insw
                | Mnemonic::Insd
                | Mnemonic::Outsb
                | Mnemonic::Outsw
                | Mnemonic::Outsd
        )
}

/// One for each memory operand, explicit or implicit: a write if it is written, else a read.
fn accesses(i: &Instruction) -> (u64, u64) {
    match i.mnemonic() {
        // They touch a line; iced counts no memory operand of theirs as read or written.
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Monitorx => return (1, 0),
        Mnemonic::Clzero => return (0, 1),
        _ => {}
    }
    let (mut reads, mut writes) = (0, 0);
    for m in InstructionInfoFactory::new().info(i).used_memory() {
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

fn cycles(costs: &Costs, i: &Instruction) -> u32 {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let m = i.mnemonic();
    if memory && (i.has_lock_prefix() || m == Mnemonic::Xchg) {
        return costs.locked;
    }
    match m {
        Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence => return costs.fence,
        Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Mulx => return costs.mul,
        Mnemonic::Div | Mnemonic::Idiv => return costs.div,
        _ => {}
    }
    if branch(i) {
        return costs.branch;
    }
    let code = i.code();
    if has(
        code,
        &[
            CpuidFeature::FPU,
            CpuidFeature::FPU287,
            CpuidFeature::FPU387,
        ],
    ) {
        return costs.x87;
    }
    let crypto = [
        CpuidFeature::AES,
        CpuidFeature::VAES,
        CpuidFeature::SHA,
        CpuidFeature::PCLMULQDQ,
        CpuidFeature::VPCLMULQDQ,
        CpuidFeature::GFNI,
    ];
    if has(code, &crypto) {
        return costs.crypto;
    }
    if !vector(i) {
        return costs.default;
    }
    match floating_point(m) {
        Some(true) => costs.fp_div,
        Some(false) => costs.fp,
        None => costs.vector,
    }
}

fn has(code: Code, features: &[CpuidFeature]) -> bool {
    code.cpuid_features().iter().any(|f| features.contains(f))
}

/// Jumps, calls and returns. SYSCALL and the like are none.
fn branch(i: &Instruction) -> bool {
    match i.flow_control() {
        FlowControl::Call => i.is_call_near() || i.is_call_far(),
        FlowControl::ConditionalBranch
        | FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::IndirectCall
        | FlowControl::Return => true,
        _ => false,
    }
}

/// SSE, AVX and MMX, without what works on general registers and the control register alone.
fn vector(i: &Instruction) -> bool {
    let extensions = [
        CpuidFeature::MMX,
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
        CpuidFeature::SSE4A,
        CpuidFeature::AVX,
        CpuidFeature::AVX2,
        CpuidFeature::FMA,
        CpuidFeature::F16C,
    ];
    let other = matches!(
        i.mnemonic(),
        Mnemonic::Movnti
            | Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Vstmxcsr
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Clflush
    );
    has(i.code(), &extensions) && !other
}

/// Floating-point arithmetic by name: division and square root (true), or other (false).
fn floating_point(m: Mnemonic) -> Option<bool> {
    let name = format!("{m:?}").to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    if name.starts_with("cvt") {
        return Some(false);
    }
    let stem = ["ss", "sd", "ps", "pd"]
        .iter()
        .find_map(|s| name.strip_suffix(s))?;
    match stem {
        "div" | "sqrt" => Some(true),
        "add" | "sub" | "mul" | "hadd" | "hsub" | "addsub" | "max" | "min" | "cmp" | "comi"
        | "ucomi" | "round" | "dp" | "rcp" | "rsqrt" => Some(false),
        s if s.starts_with("fm") || s.starts_with("fnm") => Some(false),
        s if s.starts_with("cmp") => Some(false),
        _ => None,
    }
}
