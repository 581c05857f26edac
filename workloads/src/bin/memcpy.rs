//! Copies of a buffer, of all sizes up to it: streams of loads and stores, by the C library's routine for each size.
//!
//! `memcpy [MiB] [rounds]`: prints a checksum of what was copied last.

fn main() {
    let mut args = std::env::args().skip(1);
    let mib: usize = args
        .next()
        .map_or(32, |a| a.parse().expect("MiB must be a number"));
    let rounds: usize = args
        .next()
        .map_or(20, |a| a.parse().expect("rounds must be a number"));
    let size = mib << 20;
    let mut from: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
    let mut to = vec![0u8; size];
    for round in 0..rounds {
        // 16 bytes to all of it: a sixteenth of the buffer in pieces of each size.
        let mut piece = 16;
        while piece <= size {
            let part = (size / 16).max(piece);
            for at in (0..=part - piece).step_by(piece) {
                to[at..at + piece].copy_from_slice(&from[at..at + piece]);
            }
            piece *= 4;
        }
        to[round % size] ^= 1;
        std::mem::swap(&mut from, &mut to);
    }
    let sum = from
        .iter()
        .fold(0u64, |s, v| s.rotate_left(5) ^ u64::from(*v));
    println!("{mib} MiB, {rounds} rounds: {sum:016x}");
}
