//! A double-precision seven-point stencil on a cube, the inner loop of many a solver.
//!
//! `stencil [EDGE] [SWEEPS]`: prints a checksum of the field's bits. Checks that no value leaves the range of the first
//! ones (each is a mean of its neighbours).

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Values};

const GUEST: Guest = Guest {
    name: "stencil",
    about: "Sweeps a seven-point stencil over a cube of doubles.",
    params: &[
        Param {
            name: "edge",
            what: "points along an edge",
            values: [64, 128, 240],
            limits: (3, 2000),
        },
        Param {
            name: "sweeps",
            what: "sweeps",
            values: [20, 40, 60],
            limits: (0, 1 << 30),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (n, sweeps) = (values.size("edge"), values.size("sweeps"));
    let mut a: Vec<f64> = (0..n * n * n)
        .map(|i| ((i * 7919) % 1024) as f64 / 1024.0)
        .collect();
    let mut b = a.clone();
    for _ in 0..sweeps {
        for z in 1..n - 1 {
            for y in 1..n - 1 {
                let row = (z * n + y) * n;
                for x in 1..n - 1 {
                    let i = row + x;
                    b[i] = 0.4 * a[i]
                        + 0.1
                            * (a[i - 1]
                                + a[i + 1]
                                + a[i - n]
                                + a[i + n]
                                + a[i - n * n]
                                + a[i + n * n]);
                }
            }
        }
        std::mem::swap(&mut a, &mut b);
    }
    if let Some(out) = a.iter().find(|v| !(-1e-9..1.0 + 1e-9).contains(*v)) {
        return Err(format!("a mean of values from 0 to 1 is {out}"));
    }
    let sum = a.iter().fold(0u64, |s, v| s.rotate_left(5) ^ v.to_bits());
    Ok(format!("{n}^3, {sweeps} sweeps: {sum:016x}"))
}
