//! Pointer chasing: random cycles through a buffer, one dependent load after the other.
//!
//! `chase [MIB] [STEPS] [CHAINS]`: what a cache-missing program does. With one chain its time a step is the latency of
//! memory (as lmbench's `lat_mem_rd`); with more chains, walked in turn, that many misses are in flight at once, and what
//! is measured moves from latency to bandwidth. Prints a checksum of the walk.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Values};

const GUEST: Guest = Guest {
    name: "chase",
    about: "Walks a random cycle of 64-byte lines, each load's address known only when the last one is done.",
    params: &[
        Param {
            name: "mib",
            what: "MiB of the buffer",
            values: [2, 32, 256],
            limits: (1, 65536),
        },
        Param {
            name: "steps",
            what: "loads of each chain",
            values: [200_000, 1_000_000, 6_000_000],
            limits: (0, 1 << 40),
        },
        Param {
            name: "chains",
            what: "independent walks, in turn",
            values: [1, 1, 1],
            limits: (1, 64),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (mib, steps, chains) = (
        values.size("mib"),
        values.get("steps"),
        values.size("chains"),
    );
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
    // Each chain begins its share of the cycle further on.
    let start: Vec<u64> = (0..chains)
        .map(|c| {
            if c == 0 {
                0
            } else {
                u64::from(order[lines / chains * c])
            }
        })
        .collect();
    drop(order);
    let mut sum = 0u64;
    if chains == 1 {
        let mut at = 0u64;
        for _ in 0..steps {
            at = next[at as usize][0];
            sum = sum.rotate_left(1) ^ at;
        }
        return Ok(format!("{mib} MiB, {steps} steps: {sum:016x}"));
    }
    let mut at = start;
    for _ in 0..steps {
        for at in &mut at {
            *at = next[*at as usize][0];
            sum = sum.rotate_left(1) ^ *at;
        }
    }
    Ok(format!(
        "{mib} MiB, {chains} chains of {steps} steps: {sum:016x}"
    ))
}
