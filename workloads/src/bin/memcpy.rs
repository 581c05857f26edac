//! Copies of a buffer, of all sizes up to it: streams of loads and stores, by the C library's routine for each size.
//!
//! `memcpy [MIB] [ROUNDS]`: prints a checksum of what was copied last.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Values};

const GUEST: Guest = Guest {
    name: "memcpy",
    about: "Copies parts of a buffer in pieces of 16 bytes to all of it, with the C library's memcpy.",
    params: &[
        Param {
            name: "mib",
            what: "MiB of each of two buffers",
            values: [1, 16, 64],
            limits: (1, 65536),
        },
        Param {
            name: "rounds",
            what: "rounds",
            values: [100, 20, 60],
            limits: (0, 1 << 30),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (mib, rounds) = (values.size("mib"), values.size("rounds"));
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
    Ok(format!("{mib} MiB, {rounds} rounds: {sum:016x}"))
}
