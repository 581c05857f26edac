//! Which instructions can be thunks, from the decoder's own facts: CPUID feature, encoding, flow control, a short list of
//! exceptions by mnemonic.

use std::arch::is_x86_feature_detected as has;

use iced_x86::{Code, ConditionCode, CpuidFeature as F, EncodingKind, FlowControl, Mnemonic as M};

/// How an instruction runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThunkKind {
    /// General registers and flags only.
    Gpr,
    /// Vector registers (and, for the MMX forms of SSE instructions, the x87 unit too).
    Vector,
    /// The x87 unit.
    X87,
    /// MMX registers, which alias the x87 stack.
    Mmx,
    /// No host code: element-wise guest memory accesses, MXCSR loads and stores, FWAIT.
    Software,
}

/// The route of an iced code, or `None` if this module does not run it.
///
/// LOCK-prefixed forms are no thunks whatever their code. The answer does not depend on the host; making the thunk fails if the
/// host lacks the feature.
#[must_use]
pub fn route(code: Code) -> Option<ThunkKind> {
    if code == Code::Wait {
        return Some(ThunkKind::Software);
    }
    if !plain(code) {
        return None;
    }
    let features = code.cpuid_features();
    if features.is_empty() || !features.iter().all(|&f| supported(f)) {
        return None;
    }
    let m = code.mnemonic();
    if excluded(m) {
        return None;
    }
    if software(m) {
        return Some(ThunkKind::Software);
    }
    let any = |f: F| features.contains(&f);
    if any(F::FPU) || any(F::FPU287) || any(F::FPU387) {
        return Some(ThunkKind::X87);
    }
    if features.iter().all(|&f| gpr_only(f)) {
        return (!features.contains(&F::CMOV)).then_some(ThunkKind::Gpr);
    }
    Some(match m {
        M::Crc32 | M::Movnti => ThunkKind::Gpr,
        _ if any(F::MMX) => ThunkKind::Mmx,
        _ => ThunkKind::Vector,
    })
}

/// Whether [`super::ThunkCache::get_integer`] runs this code: register, arithmetic, shift and bit instructions of the base ISA.
///
/// Their meaning is defined elsewhere; this is the host's own, for differential tests. Not atomic, and divisions, stack, string
/// and control instructions are left out.
#[must_use]
pub fn integer(code: Code) -> bool {
    use M::*;
    let base = |f: &F| {
        matches!(
            f,
            F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV
        )
    };
    if !plain(code) || !code.cpuid_features().iter().all(base) {
        return false;
    }
    if code.condition_code() != ConditionCode::None {
        return true;
    }
    match code.mnemonic() {
        Mov => {
            !matches!(
                code,
                Code::Mov_rm16_Sreg
                    | Code::Mov_r32m16_Sreg
                    | Code::Mov_r64m16_Sreg
                    | Code::Mov_Sreg_rm16
            ) && !matches!(code, Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16)
        }
        Bt | Bts | Btr | Btc | Bsf | Bsr | Bswap | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp
        | Test | Inc | Dec | Neg | Not | Mul | Imul | Shl | Sal | Shr | Sar | Rol | Ror | Rcl
        | Rcr | Shld | Shrd | Movzx | Movsx | Movsxd | Xadd | Cmpxchg | Xchg | Cbw | Cwde
        | Cdqe | Cwd | Cdq | Cqo | Lahf | Sahf | Clc | Stc | Cmc => true,
        _ => false,
    }
}

fn plain(code: Code) -> bool {
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.flow_control() == FlowControl::Next
        && !code.is_privileged()
        && !code.is_stack_instruction()
}

/// Every feature of a supported instruction is one of these.
fn supported(f: F) -> bool {
    gpr_only(f)
        || matches!(
            f,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::GFNI
                | F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
                | F::VAES
                | F::VPCLMULQDQ
        )
}

fn gpr_only(f: F) -> bool {
    matches!(
        f,
        F::BMI1
            | F::BMI2
            | F::ADX
            | F::LZCNT
            | F::POPCNT
            | F::MOVBE
            | F::RDRAND
            | F::RDSEED
            | F::CMOV
    )
}

/// Whether the host runs instructions of this feature.
pub(super) fn host_has(f: F) -> bool {
    match f {
        F::SSE3 => has!("sse3"),
        F::SSSE3 => has!("ssse3"),
        F::SSE4_1 => has!("sse4.1"),
        F::SSE4_2 => has!("sse4.2"),
        F::AES => has!("aes"),
        F::PCLMULQDQ => has!("pclmulqdq"),
        F::SHA => has!("sha"),
        F::GFNI => has!("gfni"),
        F::AVX => has!("avx"),
        F::AVX2 => has!("avx2"),
        F::FMA => has!("fma"),
        F::F16C => has!("f16c"),
        F::VAES => has!("vaes"),
        F::VPCLMULQDQ => has!("vpclmulqdq"),
        F::BMI1 => has!("bmi1"),
        F::BMI2 => has!("bmi2"),
        F::ADX => has!("adx"),
        F::LZCNT => has!("lzcnt"),
        F::POPCNT => has!("popcnt"),
        F::MOVBE => has!("movbe"),
        F::RDRAND => has!("rdrand"),
        F::RDSEED => has!("rdseed"),
        _ => true, // part of every x86-64
    }
}

/// Supported features, but not ours: hints and fences, instructions whose 9B prefix the decoder reports on its own, and what
/// only 8087s and 287s ran.
fn excluded(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchw
            | Sfence
            | Lfence
            | Mfence
            | Pause
            | Clflush
    ) || matches!(
        m,
        Fstcw
            | Fstenv
            | Fsave
            | Fclex
            | Finit
            | Fstsw
            | Feni
            | Fdisi
            | Fsetpm
            | Fneni
            | Fndisi
            | Fnsetpm
            | Frstpm
    )
}

/// Run without host code.
pub(super) fn software(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Wait | Ldmxcsr
            | Stmxcsr
            | Vldmxcsr
            | Vstmxcsr
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Vmaskmovps
            | Vmaskmovpd
    ) || matches!(m, Vpmaskmovd | Vpmaskmovq)
        || is_gather(m)
}

/// The AVX2 gathers.
pub(super) fn is_gather(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Vgatherdps
            | Vgatherdpd
            | Vgatherqps
            | Vgatherqpd
            | Vpgatherdd
            | Vpgatherdq
            | Vpgatherqd
            | Vpgatherqq
    )
}
