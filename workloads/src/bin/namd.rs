//! Molecular dynamics of a box of charged Lennard-Jones particles: cells, pair lists, cutoff. Follows 508.namd_r.
//!
//! As there: pairs within a cutoff plus margin are listed and reused for some steps; forces from a Lennard-Jones term that is
//! switched off smoothly and an electrostatic one that is shifted to nothing at the cutoff; integration by velocity Verlet. Its behaviour: much
//! floating point with a division and a square root for each pair, gathers through the list, one branch (within the
//! cutoff?) that is hard to predict, a footprint that mostly fits the caches.
//!
//! What differs: one kind of particle and its counter-charge instead of a protein in water; no bonds, no exclusions; forces by
//! arithmetic, where NAMD interpolates in tables; one thread, no patches.
#![allow(clippy::needless_range_loop)] // components of several vectors at a time

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values};

const GUEST: Guest = Guest {
    name: "namd",
    about: "Molecular dynamics with pair lists: Lennard-Jones and electrostatic forces, velocity Verlet.",
    params: &[
        Param {
            name: "edge",
            what: "particles along an edge of the box",
            values: [10, 16, 34],
            limits: (8, 200),
        },
        Param {
            name: "steps",
            what: "time steps",
            values: [10, 30, 40],
            limits: (1, 1 << 30),
        },
        Param {
            name: "seed",
            what: "seed of positions and velocities",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

/// Units: the particles' diameter, their well's depth, their mass.
const CUTOFF: f64 = 3.0;
/// Where the Lennard-Jones term begins to be switched off.
const SWITCH: f64 = 2.4;
/// Pairs up to this far are listed.
const LISTED: f64 = 3.4;
/// Steps between two lists.
const REUSE: u64 = 10;
const STEP: f64 = 0.002;
/// Of the lattice that the particles begin on.
const SPACING: f64 = 1.12;
const CHARGE: f64 = 0.8;

type Vector = [f64; 3];

struct System {
    edge: f64,
    position: Vec<Vector>,
    velocity: Vec<Vector>,
    force: Vec<Vector>,
    charge: Vec<f64>,
    /// Partners of particle i, each pair once: `partners[start[i]..start[i + 1]]`.
    start: Vec<u32>,
    partners: Vec<u32>,
}

impl System {
    fn new(edge: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let n = edge * edge * edge;
        let mut position = Vec::with_capacity(n);
        let mut charge = Vec::with_capacity(n);
        for z in 0..edge {
            for y in 0..edge {
                for x in 0..edge {
                    let mut at =
                        |v: usize| (v as f64 + 0.5 + 0.1 * (random.unit() - 0.5)) * SPACING;
                    position.push([at(x), at(y), at(z)]);
                    charge.push(if (x + y + z) % 2 == 0 {
                        CHARGE
                    } else {
                        -CHARGE
                    });
                }
            }
        }
        let mut velocity: Vec<Vector> = (0..n)
            .map(|_| std::array::from_fn(|_| random.unit() + random.unit() + random.unit() - 1.5))
            .collect();
        // No drift of the whole.
        for k in 0..3 {
            let mean = velocity.iter().map(|v| v[k]).sum::<f64>() / n as f64;
            velocity.iter_mut().for_each(|v| v[k] -= mean);
        }
        Self {
            edge: edge as f64 * SPACING,
            force: vec![[0.0; 3]; n],
            position,
            velocity,
            charge,
            start: Vec::new(),
            partners: Vec::new(),
        }
    }

    /// From `b` to `a`, the shortest way in a periodic box.
    #[inline]
    fn between(&self, a: Vector, b: Vector) -> (Vector, f64) {
        let half = 0.5 * self.edge;
        let d: Vector = std::array::from_fn(|k| {
            let d = a[k] - b[k];
            if d > half {
                d - self.edge
            } else if d < -half {
                d + self.edge
            } else {
                d
            }
        });
        (d, d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    }

    /// Lists the pairs, by cells as wide as the list reaches.
    fn list(&mut self) {
        let edge = self.edge;
        for p in &mut self.position {
            for v in p {
                if *v < 0.0 {
                    *v += edge;
                } else if *v >= edge {
                    *v -= edge;
                }
            }
        }
        let cells = ((edge / LISTED) as usize).max(1);
        let cell = |v: f64| ((v / edge * cells as f64) as usize).min(cells - 1);
        let index = |p: &Vector| (cell(p[2]) * cells + cell(p[1])) * cells + cell(p[0]);
        let mut members = vec![Vec::new(); cells * cells * cells];
        for (i, p) in self.position.iter().enumerate() {
            members[index(p)].push(i as u32);
        }
        self.start.clear();
        self.partners.clear();
        for (i, p) in self.position.iter().enumerate() {
            self.start.push(self.partners.len() as u32);
            let mut near: Vec<usize> = Vec::with_capacity(27);
            for dz in 0..3 {
                for dy in 0..3 {
                    for dx in 0..3 {
                        let by = |v: f64, d: usize| (cell(v) + cells + d - 1) % cells;
                        near.push((by(p[2], dz) * cells + by(p[1], dy)) * cells + by(p[0], dx));
                    }
                }
            }
            // In a small box a cell can be its neighbour's neighbour.
            near.sort_unstable();
            near.dedup();
            for c in near {
                for j in &members[c] {
                    if *j as usize > i {
                        let (_, r2) = self.between(*p, self.position[*j as usize]);
                        if r2 < LISTED * LISTED {
                            self.partners.push(*j);
                        }
                    }
                }
            }
        }
        self.start.push(self.partners.len() as u32);
    }

    /// Forces; returns the potential energy.
    fn forces(&mut self) -> f64 {
        self.force.fill([0.0; 3]);
        let mut energy = 0.0;
        for i in 0..self.position.len() {
            let (p, q) = (self.position[i], self.charge[i]);
            let mut total = [0.0; 3];
            for at in self.start[i] as usize..self.start[i + 1] as usize {
                let j = self.partners[at] as usize;
                let (d, r2) = self.between(p, self.position[j]);
                if r2 >= CUTOFF * CUTOFF {
                    continue;
                }
                let (e, f) = pair(r2, q * self.charge[j]);
                energy += e;
                let other = &mut self.force[j];
                for k in 0..3 {
                    total[k] += f * d[k];
                    other[k] -= f * d[k];
                }
            }
            for k in 0..3 {
                self.force[i][k] += total[k];
            }
        }
        energy
    }

    fn kinetic(&self) -> f64 {
        let square = |v: &Vector| v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        0.5 * self.velocity.iter().map(square).sum::<f64>()
    }

    fn kick(&mut self) {
        for (v, f) in self.velocity.iter_mut().zip(&self.force) {
            for k in 0..3 {
                v[k] += 0.5 * STEP * f[k];
            }
        }
    }
}

/// Energy of a pair, and its force divided by the distance.
#[inline]
fn pair(r2: f64, charges: f64) -> (f64, f64) {
    const C2: f64 = CUTOFF * CUTOFF;
    const S2: f64 = SWITCH * SWITCH;
    const WIDTH: f64 = 1.0 / ((C2 - S2) * (C2 - S2) * (C2 - S2));
    let i2 = 1.0 / r2;
    let i6 = i2 * i2 * i2;
    let lj = 4.0 * i6 * (i6 - 1.0);
    // -(dE/dr) / r
    let lj_force = 24.0 * i6 * (2.0 * i6 - 1.0) * i2;
    let (switch, slope) = if r2 > S2 {
        let (a, b) = (C2 - r2, C2 + 2.0 * r2 - 3.0 * S2);
        (a * a * b * WIDTH, 12.0 * a * (r2 - S2) * WIDTH)
    } else {
        (1.0, 0.0)
    };
    let i1 = i2.sqrt();
    // q / r * (1 - r2 / C2)^2
    let shift = 1.0 - r2 * (1.0 / C2);
    let coulomb = charges * i1 * shift * shift;
    let coulomb_force = charges * i1 * shift * (shift * i2 + 4.0 / C2);
    (
        lj * switch + coulomb,
        lj_force * switch + lj * slope + coulomb_force,
    )
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut system = System::new(values.size("edge"), values.get("seed"));
    let steps = values.get("steps");
    system.list();
    let mut listed = system.partners.len();
    let mut potential = system.forces();
    let first = potential + system.kinetic();
    for step in 1..=steps {
        system.kick();
        for (p, v) in system.position.iter_mut().zip(&system.velocity) {
            for k in 0..3 {
                p[k] += STEP * v[k];
            }
        }
        if step % REUSE == 0 {
            system.list();
            listed += system.partners.len();
        }
        potential = system.forces();
        system.kick();
    }
    let n = system.position.len() as f64;
    let kinetic = system.kinetic();
    let drift = (potential + kinetic - first).abs() / n;
    if drift.is_nan() || drift > 2e-3 {
        return Err(format!(
            "energy drifts by {drift} a particle in {steps} steps"
        ));
    }
    for k in 0..3 {
        let momentum = system.velocity.iter().map(|v| v[k]).sum::<f64>();
        if momentum.abs() > 1e-8 * n {
            return Err(format!("the whole moves: {momentum}"));
        }
    }
    let mut sum = Sum::default();
    for p in &system.position {
        p.iter().for_each(|v| sum.add_f64(*v));
    }
    Ok(format!(
        "{n} particles, {steps} steps, {listed} pairs listed\npotential {potential:.6}\nkinetic {kinetic:.6}\ndrift a \
         particle {drift:.3e}\npositions {sum}"
    ))
}
