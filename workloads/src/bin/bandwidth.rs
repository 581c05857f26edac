//! Bytes a second of memcpy and memset over buffers that no cache holds: two lines of tinymembench.
//!
//! `bandwidth [MIB] [ROUNDS]`: 10^6 bytes copied or set a second, by the guest's clock, each buffer of that many MiB (tinymembench:
//! 32). With `--cache hierarchy` they are the model's.

use std::hint::black_box;
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |name: &str, default: usize| {
        args.next().map_or(default, |a| {
            a.parse()
                .unwrap_or_else(|_| panic!("{name} must be a number"))
        })
    };
    let (mib, rounds) = (number("MIB", 32), number("ROUNDS", 4));
    let bytes = mib << 20;
    let (mut to, from) = (vec![1u8; bytes], vec![2u8; bytes]);
    let mut told = |name: &str, work: &mut dyn FnMut(&mut [u8])| {
        // The caches are to hold what they hold in the long run.
        work(&mut to);
        let start = Instant::now();
        for _ in 0..rounds {
            work(black_box(&mut to));
        }
        let speed = (bytes * rounds) as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("{name}: {speed:9.1} MB/s");
    };
    told("memcpy", &mut |to| to.copy_from_slice(black_box(&from)));
    told("memset", &mut |to| to.fill(black_box(3)));
}
