//! The table against the decoder's own list: every encoding of 64-bit mode that x86-64-v3 and this machine's extras bring is
//! there, or is named here with the reason why not.

use iced_x86::{Code, CpuidFeature as F, EncodingKind, Mnemonic as M};
use sevlab_cpu::table::{self, Route};

/// x86-64-v3 with x87, what user code may run besides, and what an EPYC adds.
const INSIDE: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CPUID,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::FXSR,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::AVX,
    F::AVX2,
    F::BMI1,
    F::BMI2,
    F::F16C,
    F::FMA,
    F::LZCNT,
    F::MOVBE,
    F::XSAVE,
    F::XSAVEC,
    F::XSAVEOPT,
    F::XSAVES,
    F::AES,
    F::PCLMULQDQ,
    F::VAES,
    F::VPCLMULQDQ,
    F::SHA,
    F::GFNI,
    F::ADX,
    F::RDRAND,
    F::RDSEED,
    F::FSGSBASE,
    F::RDPID,
    F::RDPMC,
    F::RDTSCP,
    F::TSC,
    F::MSR,
    F::SYSCALL,
    F::SEP,
    F::CLFSH,
    F::CLFLUSHOPT,
    F::CLWB,
    F::PREFETCHW,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::CET_IBT,
    F::SMAP,
    F::INVPCID,
    F::SSE4A,
    F::CLZERO,
    F::MONITORX,
    F::RDPRU,
    F::WBNOINVD,
    F::SVM,
    F::SKINIT,
    F::SKINIT_or_SVM,
    F::SEV_ES,
    F::SEV_SNP,
    F::INVLPGB,
];

/// Why an encoding inside is not supported.
fn excused(code: Code) -> Option<&'static str> {
    let name = format!("{code:?}");
    let narrow = name.contains("_16") || name.ends_with("rel16") || name.ends_with("rm16");
    let near_branch = code.is_jcc_short_or_near()
        || code.is_jmp_short_or_near()
        || code.is_call_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near_indirect()
        || code.is_jcx_short()
        || code.is_loop()
        || code.is_loopcc();
    Some(match code.mnemonic() {
        M::INVALID | M::Db | M::Dw | M::Dd | M::Dq | M::Zero_bytes => {
            "no instruction: what the assembler emits as data"
        }
        M::Fstenv | M::Fstcw | M::Fclex | M::Finit | M::Fsave | M::Fstsw => {
            "two instructions, FWAIT and the one without, which is how bytes decode"
        }
        M::Feni | M::Fdisi | M::Fsetpm => {
            "two instructions, FWAIT and a NOP, which is how bytes decode"
        }
        M::Ret if matches!(code, Code::Retnw | Code::Retnw_imm16) => {
            "a 16-bit near return: the operand-size prefix is ignored here, as Intel's processors do"
        }
        _ if near_branch && narrow => {
            "a 16-bit near branch: the operand-size prefix is ignored here, as Intel's processors do"
        }
        M::Sysenter | M::Sysexit | M::Sysexitq => "#UD in long mode on AMD's processors",
        _ => return None,
    })
}

/// Whether bytes can reach it in 64-bit mode.
fn exists(code: Code) -> bool {
    let enc = code.encoding();
    code.op_code().mode64() && matches!(enc, EncodingKind::Legacy | EncodingKind::VEX)
}

fn inside(code: Code) -> bool {
    let features = code.cpuid_features();
    !features.is_empty() && features.iter().all(|f| INSIDE.contains(f))
}

#[test]
fn every_encoding_is_supported_or_excused() {
    let (mut supported, mut missing, mut stale) = (0, Vec::new(), Vec::new());
    let mut excuses = std::collections::BTreeMap::<&str, u32>::new();
    for code in Code::values().filter(|&c| exists(c) && inside(c)) {
        let there = table::row(code).route != Route::Undefined;
        match excused(code) {
            None if there => supported += 1,
            None => missing.push(code),
            Some(_) if there => stale.push(code),
            Some(why) => *excuses.entry(why).or_default() += 1,
        }
    }
    println!("{supported} encodings are supported");
    for (why, n) in &excuses {
        println!("{n} are not: {why}");
    }
    assert!(
        missing.is_empty(),
        "neither supported nor excused: {missing:?}"
    );
    assert!(stale.is_empty(), "excused, but supported: {stale:?}");
    assert!(
        supported > 1900,
        "the decoder's list has shrunk: {supported}"
    );
}

/// What no guest here is shown is not run either.
#[test]
fn nothing_newer_slips_in() {
    let outside = [
        F::AVX512F,
        F::AVX512BW,
        F::AMX_TILE,
        F::AVX_VNNI,
        F::AVX_IFMA,
        F::XOP,
        F::FMA4,
        F::TBM,
        F::D3NOW,
        F::RTM,
        F::MOVDIRI,
        F::WAITPKG,
        F::SERIALIZE,
        F::CMPCCXADD,
        F::SHA512,
    ];
    for code in Code::values() {
        if code.cpuid_features().iter().any(|f| outside.contains(f)) {
            assert_eq!(table::row(code).route, Route::Undefined, "{code:?}");
        }
    }
}
