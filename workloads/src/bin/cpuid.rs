//! What CPUID costs: a leaf that an SNP guest answers from its table of leaves, and one for which it needs the hypervisor.
//!
//! `cpuid [TIMES]`: cycles of the TSC for one CPUID of leaf 0 and of leaf 1. With `--cache hierarchy` they are the model's.

use std::arch::x86_64::{__cpuid_count, _rdtsc};
use std::hint::black_box;

fn main() {
    let times: u64 = std::env::args()
        .nth(1)
        .map_or(10_000, |a| a.parse().expect("TIMES must be a number"));
    for leaf in [0, 1] {
        let run = |times| {
            for _ in 0..times {
                black_box(__cpuid_count(black_box(leaf), 0));
            }
        };
        run(times / 100 + 1);
        let start = tsc();
        run(times);
        println!(
            "leaf {leaf}: {:8.1} cycles",
            (tsc() - start) as f64 / times as f64
        );
    }
}

/// The time-stamp counter.
fn tsc() -> u64 {
    // SAFETY: RDTSC is always there on x86-64 and touches no memory.
    #[allow(unsafe_code)]
    unsafe {
        _rdtsc()
    }
}
