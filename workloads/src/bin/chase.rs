//! Pointer chasing: a random cycle through a buffer, one dependent load after the other.
//!
//! `chase [MiB] [steps]`: what a cache-missing, latency-bound program does. Prints a checksum of the walk.

fn main() {
    let mut args = std::env::args().skip(1);
    let mib: usize = args
        .next()
        .map_or(64, |a| a.parse().expect("MiB must be a number"));
    let steps: usize = args
        .next()
        .map_or(4_000_000, |a| a.parse().expect("steps must be a number"));
    // One element a 64-byte line.
    let lines = mib * 1024 * 1024 / 64;
    let mut next = vec![[0u64; 8]; lines];
    // Sattolo's algorithm: a permutation of one single cycle.
    let mut order: Vec<u32> = (0..lines as u32).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for i in (1..lines).rev() {
        order.swap(i, random() as usize % i);
    }
    for w in 0..lines {
        next[order[w] as usize][0] = u64::from(order[(w + 1) % lines]);
    }
    let mut at = 0u64;
    let mut sum = 0u64;
    for _ in 0..steps {
        at = next[at as usize][0];
        sum = sum.rotate_left(1) ^ at;
    }
    println!("{mib} MiB, {steps} steps: {sum:016x}");
}
