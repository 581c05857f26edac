//! Random updates: a read, an exclusive or and a write at a random place of a table, again and again (HPC Challenge's RandomAccess).
//!
//! `gups [MiB] [updates]`: what defeats caches and TLBs alike, with stores. Prints a checksum of the table.

fn main() {
    let mut args = std::env::args().skip(1);
    let mib: usize = args
        .next()
        .map_or(64, |a| a.parse().expect("MiB must be a number"));
    let updates: usize = args
        .next()
        .map_or(4_000_000, |a| a.parse().expect("updates must be a number"));
    let mut table: Vec<u64> = (0..(mib << 20) as u64 / 8).collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..updates {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let at = seed as usize % table.len();
        table[at] ^= seed;
    }
    let sum = table.iter().fold(0u64, |s, v| s.rotate_left(1) ^ v);
    println!("{mib} MiB, {updates} updates: {sum:016x}");
}
