//! The features that a guest is shown: those that this machine runs and the host has.

use sevlab_machine::SevMode;
use sevlab_machine::hv::cpuid::CpuModel;

use super::Finding;

/// EAX, EBX, ECX, EDX.
const EBX: usize = 1;
const ECX: usize = 2;
const EXTENDED: u32 = 0x8000_0001;

/// Name, leaf, register, bit.
type Feature = (&'static str, u32, usize, u32);

/// x86-64-v3: what the C library and newer programs choose their code by.
const V3: &[Feature] = &[
    ("SSE4.2", 1, ECX, 20),
    ("POPCNT", 1, ECX, 23),
    ("MOVBE", 1, ECX, 22),
    ("AVX", 1, ECX, 28),
    ("F16C", 1, ECX, 29),
    ("FMA", 1, ECX, 12),
    ("AVX2", 7, EBX, 5),
    ("BMI1", 7, EBX, 3),
    ("BMI2", 7, EBX, 8),
    ("LZCNT", EXTENDED, ECX, 5),
];

/// What programs for cryptography use besides.
const CRYPTO: &[Feature] = &[
    ("AES", 1, ECX, 25),
    ("PCLMULQDQ", 1, ECX, 1),
    ("SHA", 7, EBX, 29),
    ("RDRAND", 1, ECX, 30),
    ("VAES", 7, ECX, 9),
];

pub fn section() -> Vec<Finding> {
    let model = CpuModel::host(SevMode::Snp, 1, 1);
    let split = |list: &[Feature]| {
        let (mut has, mut lacks) = (Vec::new(), Vec::new());
        for (name, leaf, register, bit) in list {
            let shown = model.leaf(*leaf, 0)[*register] >> bit & 1 == 1;
            if shown {
                has.push(*name)
            } else {
                lacks.push(*name)
            }
        }
        (has.join(" "), lacks.join(" "))
    };
    let (has, lacks) = split(V3);
    let mut out = vec![Finding::plain("shown", has)];
    out.push(if lacks.is_empty() {
        Finding::check("not shown", true, "none of them", "")
    } else {
        Finding::check(
            "not shown",
            false,
            lacks,
            "the host lacks them, so programs in a guest choose older and slower code paths",
        )
    });
    let (has, lacks) = split(CRYPTO);
    let lacks = if lacks.is_empty() {
        String::new()
    } else {
        format!(" (not: {lacks})")
    };
    out.push(Finding::plain("for cryptography", format!("{has}{lacks}")));
    out.push(Finding::plain("never shown", "AVX-512, AMX, TSX"));
    out
}
