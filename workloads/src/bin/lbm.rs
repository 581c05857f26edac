//! Flow past an obstacle by the lattice Boltzmann method: D3Q19, one relaxation time, doubles. Follows 519.lbm_r.
//!
//! As there: two grids, of which each step reads one and writes the other, 19 numbers a cell in one record; streaming and collision in
//! one pass; obstacle cells reflect; a force drives the flow. Its behaviour: floating-point arithmetic without branches
//! between 19 streams of loads and 19 of stores to neighbouring cells; bound by bandwidth once the grids outgrow the caches.
//!
//! What differs: periodic in all directions; the obstacle is a sphere in the middle, not read from a file; the grid is smaller (SPEC's
//! has 400 MiB).

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values};

const GUEST: Guest = Guest {
    name: "lbm",
    about: "Flow past a sphere by the lattice Boltzmann method (D3Q19).",
    params: &[
        Param {
            name: "edge",
            what: "cells along x and y; twice as many along z",
            values: [20, 44, 80],
            limits: (4, 1000),
        },
        Param {
            name: "steps",
            what: "time steps",
            values: [16, 16, 30],
            limits: (1, 1 << 30),
        },
    ],
};

/// Where the nineteen densities of a cell go to, in x, y and z. Opposite ones are neighbours in the list.
const DIRECTIONS: [[isize; 3]; 19] = [
    [0, 0, 0],
    [1, 0, 0],
    [-1, 0, 0],
    [0, 1, 0],
    [0, -1, 0],
    [0, 0, 1],
    [0, 0, -1],
    [1, 1, 0],
    [-1, -1, 0],
    [1, -1, 0],
    [-1, 1, 0],
    [1, 0, 1],
    [-1, 0, -1],
    [1, 0, -1],
    [-1, 0, 1],
    [0, 1, 1],
    [0, -1, -1],
    [0, 1, -1],
    [0, -1, 1],
];

const OMEGA: f64 = 1.85;
const FORCE: f64 = 1e-5;

/// A cell.
type Cell = [f64; 19];

fn weight(direction: usize) -> f64 {
    match direction {
        0 => 1.0 / 3.0,
        1..7 => 1.0 / 18.0,
        _ => 1.0 / 36.0,
    }
}

const fn opposite(direction: usize) -> usize {
    match direction {
        0 => 0,
        d => ((d - 1) ^ 1) + 1,
    }
}

struct Grid {
    size: [usize; 3],
    solid: Vec<bool>,
    /// How far on in a grid the neighbours lie.
    offset: [isize; 19],
}

impl Grid {
    fn new(edge: usize) -> Self {
        let size = [edge, edge, 2 * edge];
        let mut solid = Vec::with_capacity(2 * edge * edge * edge);
        let radius = edge as f64 / 5.0;
        for z in 0..size[2] {
            for y in 0..size[1] {
                for x in 0..size[0] {
                    let d = |v: usize, n: usize| v as f64 + 0.5 - n as f64 / 2.0;
                    let (x, y, z) = (d(x, size[0]), d(y, size[1]), d(z, size[2]));
                    solid.push(x * x + y * y + z * z < radius * radius);
                }
            }
        }
        let offset = DIRECTIONS.map(|[x, y, z]| (z * edge as isize + y) * edge as isize + x);
        Self {
            size,
            solid,
            offset,
        }
    }

    /// Streams and collides: reads `from`, writes `to`.
    fn step(&self, from: &[Cell], to: &mut [Cell]) {
        let [nx, ny, nz] = self.size;
        for z in 0..nz {
            for y in 0..ny {
                for x in 0..nx {
                    let at = (z * ny + y) * nx + x;
                    let cell = &from[at];
                    let new = if self.solid[at] {
                        std::array::from_fn(|d| cell[opposite(d)])
                    } else {
                        collide(cell)
                    };
                    if (1..nx - 1).contains(&x)
                        && (1..ny - 1).contains(&y)
                        && (1..nz - 1).contains(&z)
                    {
                        for d in 0..19 {
                            to[at.wrapping_add_signed(self.offset[d])][d] = new[d];
                        }
                    } else {
                        for (d, by) in DIRECTIONS.iter().enumerate() {
                            to[self.neighbour([x, y, z], by)][d] = new[d];
                        }
                    }
                }
            }
        }
    }

    fn neighbour(&self, at: [usize; 3], by: &[isize; 3]) -> usize {
        let [nx, ny, nz] = self.size;
        let wrap = |v: usize, d: isize, n: usize| (v + n).wrapping_add_signed(d) % n;
        let (x, y, z) = (
            wrap(at[0], by[0], nx),
            wrap(at[1], by[1], ny),
            wrap(at[2], by[2], nz),
        );
        (z * ny + y) * nx + x
    }
}

/// Relaxes a cell's densities toward their equilibrium. Written out, direction by direction, as the C program has it.
#[inline]
fn collide(f: &Cell) -> Cell {
    let faces = (f[1] + f[2]) + (f[3] + f[4]) + (f[5] + f[6]);
    let flat = (f[7] + f[8]) + (f[9] + f[10]);
    let steep = (f[11] + f[12]) + (f[13] + f[14]) + (f[15] + f[16]) + (f[17] + f[18]);
    let rho = f[0] + faces + (flat + steep);
    let x = (f[1] - f[2]) + (f[7] - f[8]) + (f[9] - f[10]) + (f[11] - f[12]) + (f[13] - f[14]);
    let y = (f[3] - f[4]) + (f[7] - f[8]) - (f[9] - f[10]) + (f[15] - f[16]) + (f[17] - f[18]);
    let z = (f[5] - f[6]) + (f[11] - f[12]) - (f[13] - f[14]) + (f[15] - f[16]) - (f[17] - f[18]);
    let inverse = 1.0 / rho;
    let (x, y, z) = (x * inverse, y * inverse, z * inverse + FORCE);
    let rest = 1.0 - 1.5 * (x * x + y * y + z * z);
    let (none, face, edge) = (weight(0) * rho, weight(1) * rho, weight(7) * rho);
    let to = |weight: f64, along: f64| weight * (rest + 3.0 * along + 4.5 * along * along);
    let equilibrium: Cell = [
        to(none, 0.0),
        to(face, x),
        to(face, -x),
        to(face, y),
        to(face, -y),
        to(face, z),
        to(face, -z),
        to(edge, x + y),
        to(edge, -x - y),
        to(edge, x - y),
        to(edge, y - x),
        to(edge, x + z),
        to(edge, -x - z),
        to(edge, x - z),
        to(edge, z - x),
        to(edge, y + z),
        to(edge, -y - z),
        to(edge, y - z),
        to(edge, z - y),
    ];
    std::array::from_fn(|d| f[d] + OMEGA * (equilibrium[d] - f[d]))
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let grid = Grid::new(values.size("edge"));
    let cells = grid.solid.len();
    let rest: Cell = std::array::from_fn(weight);
    let (mut a, mut b) = (vec![rest; cells], vec![rest; cells]);
    for _ in 0..values.get("steps") {
        grid.step(&a, &mut b);
        std::mem::swap(&mut a, &mut b);
    }
    // Mass neither comes nor goes; the force pushes along z.
    let (mut mass, mut momentum, mut sum) = (0.0, [0.0; 3], Sum::default());
    for (cell, solid) in a.iter().zip(&grid.solid) {
        for (f, d) in cell.iter().zip(&DIRECTIONS) {
            mass += f;
            if !solid {
                for (m, d) in momentum.iter_mut().zip(d) {
                    *m += f * *d as f64;
                }
            }
        }
        sum.add_f64(cell[5]);
    }
    if (mass / cells as f64 - 1.0).abs() > 1e-9 {
        return Err(format!("a mass of {cells} became {mass}"));
    }
    let across = (momentum[0].abs() + momentum[1].abs()) / momentum[2];
    if momentum[2].is_nan() || momentum[2] <= 0.0 || across > 1e-6 {
        return Err(format!("the flow is {momentum:?}, and should be along z"));
    }
    let fluid = grid.solid.iter().filter(|s| !**s).count();
    Ok(format!(
        "{cells} cells, {fluid} of them fluid\nmass {mass:.6}\nmean velocity {:.6e}\nchecksum {sum}",
        momentum[2] / fluid as f64
    ))
}
