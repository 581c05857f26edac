//! A linear system as implicit flow solvers have it, solved by BiCGSTAB. Follows 503.bwaves_r.
//!
//! As there: five unknowns a cell, a seven-point stencil of 5 by 5 blocks on a periodic box, the biconjugate gradient method
//! stabilised. Its behaviour: long streams of doubles (a product with the matrix reads 1.4 kB a cell and reuses none of it), few
//! branches, bound by bandwidth at ref.
//!
//! What differs: the matrix is made once and is not that of a transonic flow; one system where SPEC has one for each time step.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values};

const GUEST: Guest = Guest {
    name: "bwaves",
    about: "Solves a block-structured linear system by BiCGSTAB.",
    params: &[
        Param {
            name: "edge",
            what: "cells along an edge of the box",
            values: [10, 28, 56],
            limits: (3, 500),
        },
        Param {
            name: "iterations",
            what: "iterations",
            values: [10, 12, 16],
            limits: (1, 10_000),
        },
        Param {
            name: "seed",
            what: "seed of the matrix",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

/// The unknowns of a cell.
type Cell = [f64; 5];
type Block = [[f64; 5]; 5];

struct Matrix {
    edge: usize,
    /// The cell itself, then its six neighbours.
    blocks: Vec<[Block; 7]>,
}

impl Matrix {
    fn new(edge: usize, random: &mut Random) -> Self {
        let small = |random: &mut Random| -> Block {
            std::array::from_fn(|_| std::array::from_fn(|_| (random.unit() - 0.5) * 0.25))
        };
        let blocks = (0..edge * edge * edge)
            .map(|_| {
                let mut row: [Block; 7] = std::array::from_fn(|_| small(random));
                // Heavy on the diagonal, so that the method converges.
                for (k, line) in row[0].iter_mut().enumerate() {
                    line[k] += 1.0;
                }
                row
            })
            .collect();
        Self { edge, blocks }
    }

    fn times(&self, x: &[Cell], out: &mut [Cell]) {
        let n = self.edge;
        for z in 0..n {
            for y in 0..n {
                for i in 0..n {
                    let at = |z: usize, y: usize, x: usize| (z * n + y) * n + x;
                    let (up, down) = (|v: usize| (v + 1) % n, |v: usize| (v + n - 1) % n);
                    let cells = [
                        at(z, y, i),
                        at(z, y, down(i)),
                        at(z, y, up(i)),
                        at(z, down(y), i),
                        at(z, up(y), i),
                        at(down(z), y, i),
                        at(up(z), y, i),
                    ];
                    let mut sum = [0.0; 5];
                    for (block, cell) in self.blocks[cells[0]].iter().zip(cells) {
                        let v = &x[cell];
                        for (s, row) in sum.iter_mut().zip(block) {
                            *s += row[0] * v[0]
                                + row[1] * v[1]
                                + row[2] * v[2]
                                + row[3] * v[3]
                                + row[4] * v[4];
                        }
                    }
                    out[cells[0]] = sum;
                }
            }
        }
    }
}

fn dot(a: &[Cell], b: &[Cell]) -> f64 {
    let mut sum = [0.0; 5];
    for (a, b) in a.iter().zip(b) {
        for k in 0..5 {
            sum[k] += a[k] * b[k];
        }
    }
    sum.iter().sum()
}

/// `y = x + by * y`, for whole fields.
fn each(y: &mut [Cell], x: &[Cell], step: impl Fn(f64, f64) -> f64) {
    for (y, x) in y.iter_mut().zip(x) {
        for k in 0..5 {
            y[k] = step(y[k], x[k]);
        }
    }
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut random = Random::new(values.get("seed"));
    let matrix = Matrix::new(values.size("edge"), &mut random);
    let cells = matrix.blocks.len();
    let b: Vec<Cell> = (0..cells)
        .map(|_| std::array::from_fn(|_| random.unit() - 0.5))
        .collect();
    let zero = vec![[0.0; 5]; cells];
    let (mut x, mut r) = (zero.clone(), b.clone());
    let shadow = r.clone();
    let (mut p, mut v, mut t) = (zero.clone(), zero.clone(), zero);
    let (mut rho, mut alpha, mut omega) = (1.0, 1.0, 1.0);
    for _ in 0..values.get("iterations") {
        let next = dot(&shadow, &r);
        let beta = next / rho * (alpha / omega);
        rho = next;
        each(&mut p, &v, |p, v| p - omega * v);
        each(&mut p, &r, |p, r| r + beta * p);
        matrix.times(&p, &mut v);
        alpha = rho / dot(&shadow, &v);
        each(&mut r, &v, |r, v| r - alpha * v);
        matrix.times(&r, &mut t);
        omega = dot(&t, &r) / dot(&t, &t);
        each(&mut x, &p, |x, p| x + alpha * p);
        each(&mut x, &r, |x, r| x + omega * r);
        each(&mut r, &t, |r, t| r - omega * t);
    }
    // The residual that the method keeps, and the one that it has.
    let kept = dot(&r, &r).sqrt();
    matrix.times(&x, &mut t);
    each(&mut t, &b, |t, b| b - t);
    let (real, first) = (dot(&t, &t).sqrt(), dot(&b, &b).sqrt());
    if real.is_nan() || real > first * 0.3 || (real - kept).abs() > first * 1e-8 {
        return Err(format!(
            "the residual went from {first} to {real}; the method believes {kept}"
        ));
    }
    let mut sum = Sum::default();
    x.iter().flatten().for_each(|v| sum.add_f64(*v));
    Ok(format!(
        "{cells} cells\nresidual {first:.6e} to {real:.6e}\nsolution {sum}"
    ))
}
