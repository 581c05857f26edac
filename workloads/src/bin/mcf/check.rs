//! Whether a flow is one, and optimal: by definition, not by what the simplex method believes.

use sevlab_workloads::guest::Sum;

use crate::network::{NONE, Network};

/// What was found.
pub struct Found {
    /// Units out of the depot.
    pub vehicles: i64,
    /// Of the flow.
    pub cost: i64,
    /// Of all flows.
    pub sum: Sum,
}

/// Conservation at each node, and no arc that would make the flow cheaper.
pub fn check(net: &Network) -> Result<Found, String> {
    let (mut cost, mut vehicles, mut sum) = (0, 0, Sum::default());
    for (n, node) in net.nodes.iter().enumerate() {
        let mut left = node.supply;
        let mut a = node.first_out;
        while a != NONE {
            let arc = &net.arcs[a as usize];
            left -= arc.flow;
            if n == 0 {
                vehicles += arc.flow;
            }
            a = arc.next_out;
        }
        let mut a = node.first_in;
        while a != NONE {
            left += net.arcs[a as usize].flow;
            a = net.arcs[a as usize].next_in;
        }
        if left != 0 {
            return Err(format!("node {n} has {left} left"));
        }
    }
    let mut dual = 0;
    for (a, arc) in net.arcs.iter().enumerate() {
        let reduced = arc.cost - net.nodes[arc.tail as usize].potential
            + net.nodes[arc.head as usize].potential;
        if reduced < 0 || arc.flow < 0 || (arc.flow > 0 && reduced != 0) {
            return Err(format!(
                "arc {a} has flow {} and reduced cost {reduced}",
                arc.flow
            ));
        }
        cost += arc.cost * arc.flow;
        if arc.flow != 0 {
            sum.add(a as u64);
            sum.add(arc.link);
            sum.add(arc.flow as u64);
        }
    }
    for node in &net.nodes {
        dual += node.potential * node.supply;
    }
    if cost != dual {
        return Err(format!("the flow costs {cost}, the dual {dual}"));
    }
    Ok(Found {
        vehicles,
        cost,
        sum,
    })
}
