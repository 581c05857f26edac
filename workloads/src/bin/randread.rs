//! Random reads, each address known only when the last read is done: the latency test of tinymembench.
//!
//! `randread [READS] [MiB]...`: nanoseconds of a read beyond those of one that hits the first-level cache, by the guest's clock,
//! for each size of the buffer (a power of two). With `--cache hierarchy` they are the model's.

use std::hint::black_box;
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let reads: u64 = args
        .next()
        .map_or(2_000_000, |a| a.parse().expect("READS must be a number"));
    let mut sizes: Vec<usize> = args
        .map(|a| a.parse().expect("MiB must be a number"))
        .collect();
    if sizes.is_empty() {
        sizes = vec![1, 4, 16, 32, 64];
    }
    let base = measure(16 << 10, reads);
    for mib in sizes {
        assert!(mib.is_power_of_two(), "{mib} MiB is not a power of two");
        let ns = measure(mib << 20, reads) - base;
        println!("{mib:>5} MiB: {ns:6.1} ns");
    }
}

/// Nanoseconds of a read in a buffer of that many bytes.
fn measure(bytes: usize, reads: u64) -> f64 {
    // The compiler is not to know that what is read is 0.
    let buffer = vec![black_box(0u8); bytes];
    let mask = bytes - 1;
    let mut seed = 1u64;
    let mut last = 0usize;
    let mut read = |n| {
        for _ in 0..n {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 32) as usize & mask ^ last;
            last = usize::from(buffer[at]);
        }
        black_box(last);
    };
    // The caches are to hold what they hold in the long run.
    read(reads);
    let start = Instant::now();
    read(reads);
    start.elapsed().as_nanos() as f64 / reads as f64
}
