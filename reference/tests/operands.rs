//! What instructions count, by their bytes.

use sevlab_memctl::model::Costs;
use sevlab_reference::operands::{Counted, Counting, count};

/// Every class another number.
const COSTS: Costs = Costs {
    default: 1,
    branch: 2,
    mul: 3,
    div: 4,
    fp: 5,
    fp_div: 6,
    x87: 7,
    vector: 8,
    crypto: 9,
    locked: 10,
    fence: 11,
    rep: 12,
};

fn of(bytes: &[u8]) -> Counted {
    count(&COSTS, 0x1000, bytes)
}

#[test]
fn classes() {
    let cases: &[(&str, &[u8], u32)] = &[
        ("mov eax, ebx", &[0x89, 0xd8], COSTS.default),
        ("syscall", &[0x0f, 0x05], COSTS.default),
        ("cpuid", &[0x0f, 0xa2], COSTS.default),
        ("movnti [rax], ecx", &[0x0f, 0xc3, 0x08], COSTS.default),
        ("stmxcsr [rax]", &[0x0f, 0xae, 0x18], COSTS.default),
        ("prefetcht0 [rax]", &[0x0f, 0x18, 0x08], COSTS.default),
        ("xsavec [rax]", &[0x0f, 0xc7, 0x20], COSTS.default),
        ("tzcnt eax, eax", &[0xf3, 0x0f, 0xbc, 0xc0], COSTS.default),
        (
            "blsr eax, ecx",
            &[0xc4, 0xe2, 0x78, 0xf3, 0xc9],
            COSTS.default,
        ),
        ("jmp $+2", &[0xeb, 0x00], COSTS.branch),
        ("je $+2", &[0x74, 0x00], COSTS.branch),
        ("call $+5", &[0xe8, 0, 0, 0, 0], COSTS.branch),
        ("call rax", &[0xff, 0xd0], COSTS.branch),
        ("ret", &[0xc3], COSTS.branch),
        ("imul eax, ecx", &[0x0f, 0xaf, 0xc1], COSTS.mul),
        ("div ecx", &[0xf7, 0xf1], COSTS.div),
        ("addsd xmm0, xmm1", &[0xf2, 0x0f, 0x58, 0xc1], COSTS.fp),
        ("cvtsi2sd xmm0, eax", &[0xf2, 0x0f, 0x2a, 0xc0], COSTS.fp),
        (
            "vfmadd213pd xmm0, xmm1, xmm2",
            &[0xc4, 0xe2, 0xf1, 0xa8, 0xc2],
            COSTS.fp,
        ),
        ("sqrtps xmm0, xmm1", &[0x0f, 0x51, 0xc1], COSTS.fp_div),
        ("fadd st, st1", &[0xd8, 0xc1], COSTS.x87),
        ("pxor xmm0, xmm1", &[0x66, 0x0f, 0xef, 0xc1], COSTS.vector),
        ("movd eax, xmm0", &[0x66, 0x0f, 0x7e, 0xc0], COSTS.vector),
        ("vzeroupper", &[0xc5, 0xf8, 0x77], COSTS.vector),
        ("emms", &[0x0f, 0x77], COSTS.vector),
        (
            "crc32 eax, ecx",
            &[0xf2, 0x0f, 0x38, 0xf1, 0xc1],
            COSTS.vector,
        ),
        (
            "aesenc xmm0, xmm1",
            &[0x66, 0x0f, 0x38, 0xdc, 0xc1],
            COSTS.crypto,
        ),
        ("lock inc [rax]", &[0xf0, 0xff, 0x00], COSTS.locked),
        ("xchg [rax], ecx", &[0x87, 0x08], COSTS.locked),
        ("xchg eax, ecx", &[0x87, 0xc8], COSTS.default),
        ("mfence", &[0x0f, 0xae, 0xf0], COSTS.fence),
        ("lfence", &[0x0f, 0xae, 0xe8], COSTS.fence),
    ];
    for (text, bytes, cycles) in cases {
        assert_eq!(of(bytes).cycles, u64::from(*cycles), "{text}");
    }
}

#[test]
fn references() {
    #[allow(clippy::type_complexity)]
    // a table: text, bytes, reads and writes, how they are counted
    let cases: &[(&str, &[u8], (u64, u64), Counting)] = &[
        ("mov eax, [rax]", &[0x8b, 0x00], (1, 0), Counting::Fixed),
        ("mov [rax], eax", &[0x89, 0x00], (0, 1), Counting::Fixed),
        ("add [rax], eax", &[0x01, 0x00], (0, 1), Counting::Fixed),
        ("cmp [rax], eax", &[0x39, 0x00], (1, 0), Counting::Fixed),
        ("lea eax, [rax]", &[0x8d, 0x00], (0, 0), Counting::Fixed),
        ("nop [rax]", &[0x0f, 0x1f, 0x00], (0, 0), Counting::Fixed),
        ("push rax", &[0x50], (0, 1), Counting::Fixed),
        ("pop [rax]", &[0x8f, 0x00], (1, 1), Counting::Fixed),
        ("call [rax]", &[0xff, 0x10], (1, 1), Counting::Fixed),
        ("ret", &[0xc3], (1, 0), Counting::Fixed),
        ("movsb", &[0xa4], (1, 1), Counting::Fixed),
        ("rep movsb", &[0xf3, 0xa4], (1, 1), Counting::Repeated),
        ("rep stosb", &[0xf3, 0xaa], (0, 1), Counting::Repeated),
        ("repe cmpsb", &[0xf3, 0xa6], (2, 0), Counting::Repeated),
        ("repne scasb", &[0xf2, 0xae], (1, 0), Counting::Repeated),
        (
            "prefetcht0 [rax]",
            &[0x0f, 0x18, 0x08],
            (0, 0),
            Counting::Fixed,
        ),
        (
            "clflush [rax]",
            &[0x0f, 0xae, 0x38],
            (1, 0),
            Counting::Fixed,
        ),
        // Prefixes that mean nothing here.
        ("rep ret", &[0xf3, 0xc3], (1, 0), Counting::Fixed),
    ];
    for (text, bytes, (reads, writes), counting) in cases {
        let c = of(bytes);
        assert_eq!(
            (c.reads, c.writes, c.counting),
            (*reads, *writes, *counting),
            "{text}"
        );
    }
    let gather = of(&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8e]);
    assert_eq!(gather.counting, Counting::Gather(4));
}
