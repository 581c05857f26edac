//! Compression by LZ77 with a binary-tree match finder and a binary range coder, and back. Follows 557.xz_r.
//!
//! The same kind of coder as LZMA (adaptive bits, literals in the context of the byte before, lengths, distance slots, the last
//! distances) and the same match finder (hash of 4 bytes into a binary tree of earlier positions, `bt4`), over data in memory, as SPEC's
//! harness does it: compress, decompress, compare. Its behaviour: data-dependent branches that nothing predicts, a serial chain of
//! arithmetic in the range coder, random access over a dictionary and its tree.
//!
//! What differs: greedy parsing with one byte of look-ahead, where xz -9 has an optimal parser; the format is our own; the input is
//! generated: text of an unreal language, records, and noise.

mod decode;
mod encode;
mod finder;
mod model;
mod range;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values};
use sevlab_workloads::inputs;

const GUEST: Guest = Guest {
    name: "xz",
    about: "Compresses and decompresses generated data: LZ77 with a binary-tree match finder and a range coder.",
    params: &[
        Param {
            name: "kib",
            what: "KiB of data",
            values: [48, 400, 3200],
            limits: (1, 1 << 20),
        },
        Param {
            name: "depth",
            what: "most steps in the match finder's tree",
            values: [48, 48, 48],
            limits: (1, 1000),
        },
        Param {
            name: "seed",
            what: "seed of the data",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let data = generate(values.size("kib") << 10, values.get("seed"));
    let packed = encode::encode(&data, values.size("depth"));
    let back = decode::decode(&packed.bytes)?;
    if back != data {
        let at = back.iter().zip(&data).position(|(a, b)| a != b);
        return Err(format!(
            "{} bytes became {}, the first difference at {at:?}",
            data.len(),
            back.len()
        ));
    }
    let mut sum = Sum::default();
    sum.add_bytes(&packed.bytes);
    Ok(format!(
        "{} bytes to {} ({:.1}%)\n{} literals, {} matches, {} repeats\nchecksum {sum}",
        data.len(),
        packed.bytes.len(),
        packed.bytes.len() as f64 * 100.0 / data.len() as f64,
        packed.literals,
        packed.matches,
        packed.repeats
    ))
}

/// Four parts text, three parts records that resemble each other, one part noise; in blocks, as in an archive.
fn generate(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let text = inputs::text(size / 2 + 4096, seed + 1);
    let mut text = text.chunks(4096);
    let mut out = Vec::with_capacity(size + 4096);
    while out.len() < size {
        match random.below(8) {
            0..4 => out.extend_from_slice(text.next().unwrap_or_default()),
            4..7 => {
                let mut value = random.below(1 << 30) as u32;
                for n in 0..128u32 {
                    out.extend_from_slice(&n.to_le_bytes());
                    out.extend_from_slice(&value.to_le_bytes());
                    out.extend_from_slice(b"record\0\0");
                    out.extend_from_slice(&(random.below(50) as u32).to_le_bytes());
                    value += random.below(300) as u32;
                }
            }
            _ => out.extend((0..256).flat_map(|_| random.next_u64().to_le_bytes())),
        }
    }
    out.truncate(size);
    out
}
