//! Vehicle scheduling as a minimum-cost flow, by the primal network simplex method. Follows 505.mcf_r (MCF).
//!
//! The same problem (timetabled trips, one depot, deadhead trips between them), the same algorithm (a spanning tree with parent,
//! child and sibling links; multiple partial pricing that strides through the whole array of arcs and keeps a basket of candidates)
//! and so the same behaviour: pointer chasing through nodes, strided misses in an array that no cache holds, branches that nothing
//! predicts, next to no floating point.
//!
//! What differs: all arcs are there from the beginning, where MCF generates columns; links are 64-bit indexes where MCF has
//! pointers (an arc has 72 bytes in both); a pricing group begins where the last one ended; the leaving arc is chosen so that the tree stays strongly feasible.

mod check;
mod network;
mod simplex;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Values};

const GUEST: Guest = Guest {
    name: "mcf",
    about: "Schedules vehicles: minimum-cost flow by the network simplex method.",
    params: &[
        Param {
            name: "trips",
            what: "timetabled trips; two nodes each",
            values: [600, 1500, 3230],
            limits: (2, 1_000_000),
        },
        Param {
            name: "links",
            what: "most arcs from a trip to later ones",
            values: [40, 150, 3230],
            limits: (1, 10_000),
        },
        Param {
            name: "seed",
            what: "seed of the timetable",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut net = network::generate(
        values.size("trips"),
        values.size("links"),
        values.get("seed"),
    );
    let (arcs, nodes) = (net.arcs.len(), net.nodes.len());
    let pivots = simplex::solve(&mut net);
    let found = check::check(&net)?;
    Ok(format!(
        "{nodes} nodes, {arcs} arcs\n{pivots} pivots\n{} vehicles\noptimal cost {}\nflow {}",
        found.vehicles, found.cost, found.sum
    ))
}
