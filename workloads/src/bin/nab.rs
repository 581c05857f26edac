//! Molecular mechanics with implicit solvent: bonds, nonbonded pairs, generalized Born. Follows 544.nab_r.
//!
//! As there: for each step the effective Born radii (a sum over pairs with logarithms), then energy and forces of bonds, of
//! Lennard-Jones and electrostatic pairs, and of the solvent (an exponential and square roots for each pair); all pairs within a long
//! cutoff. Its behaviour: much floating point, divisions, square roots and calls of elementary functions, a footprint that fits the
//! caches.
//!
//! What differs: a chain folded at random instead of a protein; no angles and torsions; radii count as constant within a step's forces.
#![allow(clippy::needless_range_loop)] // components of several vectors at a time

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values, exp, ln};

const GUEST: Guest = Guest {
    name: "nab",
    about: "Molecular mechanics: bonds, nonbonded pairs and generalized Born solvation.",
    params: &[
        Param {
            name: "atoms",
            what: "atoms of the chain",
            values: [300, 900, 2500],
            limits: (16, 100_000),
        },
        Param {
            name: "steps",
            what: "time steps",
            values: [10, 25, 90],
            limits: (1, 1 << 30),
        },
        Param {
            name: "seed",
            what: "seed of the chain",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

/// Angstrom, kcal/mol.
const CUTOFF: f64 = 20.0;
const BOND: f64 = 1.5;
const STIFF: f64 = 300.0;
/// (1 - 1/78.5) times the electrostatic constant.
const SOLVENT: f64 = 332.0637 * (1.0 - 1.0 / 78.5);
const COULOMB: f64 = 332.0637;
const STEP: f64 = 2e-4;

type Vector = [f64; 3];

struct Molecule {
    at: Vec<Vector>,
    charge: Vec<f64>,
    /// Intrinsic radius.
    radius: Vec<f64>,
    /// Effective radius.
    born: Vec<f64>,
    force: Vec<Vector>,
    pairs: Vec<(u32, u32)>,
}

fn between(a: Vector, b: Vector) -> (Vector, f64) {
    let d = [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
    (d, d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
}

impl Molecule {
    fn new(atoms: usize, random: &mut Random) -> Self {
        // A random walk on a cubic lattice that avoids itself, within a ball.
        let ball = (atoms as f64 * 3.0).cbrt_fixed() * BOND;
        let mut at: Vec<Vector> = vec![[0.0; 3]];
        let mut tries = 0;
        while at.len() < atoms {
            let last = at[at.len() - 1];
            let mut next = last;
            let axis = random.below(3) as usize;
            next[axis] += if random.below(2) == 0 { BOND } else { -BOND };
            let free = at.iter().all(|p| between(*p, next).1 > 1.0);
            tries += 1;
            if free && (between(next, [0.0; 3]).1 < ball * ball || tries > 2000) {
                at.push(next);
                tries = 0;
            } else if tries > 60 && tries % 61 == 0 && at.len() > 8 {
                // A dead end: back by some steps.
                at.truncate(at.len() - 7);
            }
        }
        let n = at.len();
        let jitter = |v: f64, random: &mut Random| v * 2.4 + 0.1 * (random.unit() - 0.5);
        for p in &mut at {
            for v in p {
                *v = jitter(*v, random);
            }
        }
        Self {
            charge: (0..n)
                .map(|i| if i % 2 == 0 { 0.3 } else { -0.3 })
                .collect(),
            radius: (0..n).map(|_| 1.2 + 0.6 * random.unit()).collect(),
            born: vec![0.0; n],
            force: vec![[0.0; 3]; n],
            at,
            pairs: Vec::new(),
        }
    }

    fn list(&mut self) {
        self.pairs.clear();
        for i in 0..self.at.len() {
            for j in i + 1..self.at.len() {
                if between(self.at[i], self.at[j]).1 < CUTOFF * CUTOFF {
                    self.pairs.push((i as u32, j as u32));
                }
            }
        }
    }

    /// Effective radii by the pairwise sum of Hawkins, Cramer and Truhlar.
    fn radii(&mut self) {
        let mut sum = vec![0.0; self.at.len()];
        for (i, j) in &self.pairs {
            let (i, j) = (*i as usize, *j as usize);
            let r = between(self.at[i], self.at[j]).1.sqrt();
            sum[i] += descreening(r, self.radius[i], 0.8 * self.radius[j]);
            sum[j] += descreening(r, self.radius[j], 0.8 * self.radius[i]);
        }
        for (i, s) in sum.iter().enumerate() {
            let inverse = 1.0 / self.radius[i] - 0.5 * s;
            self.born[i] = 1.0 / inverse.max(1.0 / 30.0);
        }
    }

    /// Energy and forces, for the radii as they are.
    fn forces(&mut self) -> f64 {
        self.force.fill([0.0; 3]);
        let mut energy = 0.0;
        for i in 1..self.at.len() {
            let (d, r2) = between(self.at[i], self.at[i - 1]);
            let r = r2.sqrt();
            let stretch = r - BOND * 2.4;
            energy += STIFF * stretch * stretch;
            self.push(i, i - 1, d, -2.0 * STIFF * stretch / r);
        }
        for n in 0..self.pairs.len() {
            let (i, j) = (self.pairs[n].0 as usize, self.pairs[n].1 as usize);
            let (d, r2) = between(self.at[i], self.at[j]);
            let charges = self.charge[i] * self.charge[j];
            let mut f = 0.0;
            // Neighbours in the chain have a bond instead.
            if j - i > 2 {
                let i2 = 1.0 / r2;
                let size = 1.5 * (self.radius[i] + self.radius[j]) * 0.5;
                let s2 = size * size * i2;
                let s6 = s2 * s2 * s2;
                let coulomb = COULOMB * charges * i2.sqrt();
                energy += 0.4 * s6 * (s6 - 1.0) + coulomb;
                f += 0.4 * 6.0 * s6 * (2.0 * s6 - 1.0) * i2 + coulomb * i2;
            }
            let b = self.born[i] * self.born[j];
            let damp = exp(-r2 / (4.0 * b));
            let inverse = 1.0 / (r2 + b * damp).sqrt();
            energy -= SOLVENT * charges * inverse;
            f -= SOLVENT * charges * inverse * inverse * inverse * (1.0 - 0.25 * damp);
            self.push(i, j, d, f);
        }
        for (q, born) in self.charge.iter().zip(&self.born) {
            energy -= 0.5 * SOLVENT * q * q / born;
        }
        energy
    }

    fn push(&mut self, i: usize, j: usize, d: Vector, f: f64) {
        for (k, d) in d.into_iter().enumerate() {
            self.force[i][k] += f * d;
            self.force[j][k] -= f * d;
        }
    }

    /// Whether forces are what the energy's slope says, for some atoms.
    fn check(&mut self) -> Result<(), String> {
        self.forces();
        let forces = self.force.clone();
        for i in [0, self.at.len() / 3, self.at.len() - 1] {
            for k in 0..3 {
                let (here, h) = (self.at[i][k], 1e-5);
                self.at[i][k] = here + h;
                let above = self.forces();
                self.at[i][k] = here - h;
                let below = self.forces();
                self.at[i][k] = here;
                let slope = (above - below) / (2.0 * h);
                let scale = 1.0 + forces[i][k].abs();
                let off = (slope + forces[i][k]).abs();
                if off.is_nan() || off > 1e-3 * scale {
                    return Err(format!("atom {i}: force {}, slope {slope}", forces[i][k]));
                }
            }
        }
        Ok(())
    }
}

/// What a ball of radius `s` at distance `r` takes from the integral around an atom of radius `a`.
#[inline]
fn descreening(r: f64, a: f64, s: f64) -> f64 {
    if r + s <= a {
        return 0.0;
    }
    let low = if r - s > a { r - s } else { a };
    let (l, u) = (1.0 / low, 1.0 / (r + s));
    l - u + 0.25 * (r - s * s / r) * (u * u - l * l) + 0.5 * ln(u / l) / r
}

trait Cbrt {
    fn cbrt_fixed(self) -> f64;
}

impl Cbrt for f64 {
    /// By the functions that give the same bits everywhere.
    fn cbrt_fixed(self) -> f64 {
        exp(ln(self) / 3.0)
    }
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut random = Random::new(values.get("seed"));
    let mut molecule = Molecule::new(values.size("atoms"), &mut random);
    let n = molecule.at.len();
    let mut velocity = vec![[0.0; 3]; n];
    molecule.list();
    molecule.radii();
    molecule.check()?;
    let first = molecule.forces();
    let mut energy = first;
    for step in 0..values.get("steps") {
        if step % 8 == 7 {
            molecule.list();
        }
        for i in 0..n {
            for k in 0..3 {
                velocity[i][k] += 0.5 * STEP * molecule.force[i][k];
                molecule.at[i][k] += STEP * velocity[i][k];
            }
        }
        molecule.radii();
        energy = molecule.forces();
        for (v, f) in velocity.iter_mut().zip(&molecule.force) {
            for k in 0..3 {
                v[k] += 0.5 * STEP * f[k];
            }
        }
    }
    for k in 0..3 {
        let momentum: f64 = velocity.iter().map(|v| v[k]).sum();
        if momentum.is_nan() || momentum.abs() > 1e-8 * n as f64 {
            return Err(format!("the whole moves: {momentum}"));
        }
    }
    let mut sum = Sum::default();
    molecule.at.iter().flatten().for_each(|v| sum.add_f64(*v));
    let mean = molecule.born.iter().sum::<f64>() / n as f64;
    Ok(format!(
        "{n} atoms, {} pairs\nenergy {first:.6} to {energy:.6}\nmean Born radius {mean:.6}\npositions {sum}",
        molecule.pairs.len()
    ))
}
