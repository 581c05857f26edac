//! Random updates: a read, an exclusive or and a write at a random place of a table, again and again (HPC Challenge's RandomAccess).
//!
//! `gups [MIB] [UPDATES]`: what defeats caches and TLBs alike, with stores. Prints a checksum of the table, and checks
//! that the exclusive or of all its words is what the updates must have made of it.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Values};

const GUEST: Guest = Guest {
    name: "gups",
    about: "Updates random 64-bit words of a table (HPC Challenge's RandomAccess).",
    params: &[
        Param {
            name: "mib",
            what: "MiB of the table",
            values: [4, 64, 512],
            limits: (1, 65536),
        },
        Param {
            name: "updates",
            what: "updates",
            values: [500_000, 4_000_000, 40_000_000],
            limits: (0, 1 << 40),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (mib, updates) = (values.size("mib"), values.get("updates"));
    let mut table: Vec<u64> = (0..(mib << 20) as u64 / 8).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut applied = 0u64;
    for _ in 0..updates {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let at = seed as usize % table.len();
        table[at] ^= seed;
        applied ^= seed;
    }
    let (sum, all) = table
        .iter()
        .fold((0u64, 0u64), |(s, x), v| (s.rotate_left(1) ^ v, x ^ v));
    // The words were 0, 1, 2, ... to a power of two: their exclusive or is 0.
    let was = (0..table.len() as u64).fold(0, |x, v| x ^ v);
    if all ^ was != applied {
        return Err(format!(
            "the table's words come to {all:x}, the updates to {applied:x}"
        ));
    }
    Ok(format!("{mib} MiB, {updates} updates: {sum:016x}"))
}
