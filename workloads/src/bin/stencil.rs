//! A double-precision seven-point stencil on a cube, the inner loop of many a solver.
//!
//! `stencil [edge] [sweeps]`: prints a checksum of the field's bits.

fn main() {
    let mut args = std::env::args().skip(1);
    let n: usize = args
        .next()
        .map_or(128, |a| a.parse().expect("edge must be a number"));
    let sweeps: usize = args
        .next()
        .map_or(20, |a| a.parse().expect("sweeps must be a number"));
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
    let sum = a.iter().fold(0u64, |s, v| s.rotate_left(5) ^ v.to_bits());
    println!("{n}^3, {sweeps} sweeps: {sum:016x}");
}
