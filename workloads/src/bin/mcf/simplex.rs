//! The primal network simplex method.
//!
//! A unit on an arc costs `cost - potential(tail) + potential(head)` (its reduced cost) more than the same unit on the tree.
//! Tree arcs have none. An arc with a negative one enters; flow goes round the cycle that it closes until a tree arc is
//! empty; that one leaves.

use crate::network::{NONE, Network};

/// Arcs that are priced in a step, at least.
const GROUP: usize = 300;
/// Candidates that are kept from step to step.
const BASKET: usize = 50;

/// Goes on until no arc enters, and returns how many have.
pub fn solve(net: &mut Network) -> u64 {
    let mut pricing = Pricing::new(net.arcs.len());
    let mut pivots = 0;
    while let Some(arc) = pricing.entering(net) {
        pivot(net, arc);
        pivots += 1;
    }
    for n in 1..net.nodes.len() {
        let node = &net.nodes[n];
        net.arcs[node.basic as usize].flow = node.flow;
    }
    pivots
}

fn reduced(net: &Network, arc: u64) -> i64 {
    let arc = &net.arcs[arc as usize];
    arc.cost - net.nodes[arc.tail as usize].potential + net.nodes[arc.head as usize].potential
}

/// Multiple partial pricing: each step looks at one group of arcs, spread over the whole array, until the basket has candidates.
struct Pricing {
    groups: usize,
    at: usize,
    basket: Vec<(i64, u64)>,
}

impl Pricing {
    fn new(arcs: usize) -> Self {
        Self {
            groups: arcs.div_ceil(GROUP).max(1),
            at: 0,
            basket: Vec::new(),
        }
    }

    /// The candidate with the most negative reduced cost.
    fn entering(&mut self, net: &mut Network) -> Option<u64> {
        // What is left of the last basket, at today's prices.
        self.basket.truncate(BASKET);
        self.basket.retain_mut(|(cost, arc)| {
            *cost = reduced(net, *arc);
            *cost < 0
        });
        let kept = self.basket.len();
        for _ in 0..self.groups {
            let mut a = self.at;
            self.at = (self.at + 1) % self.groups;
            while a < net.arcs.len() {
                if net.arcs[a].basic == 0 {
                    let cost = reduced(net, a as u64);
                    if cost < 0 && !self.basket[..kept].iter().any(|(_, b)| *b == a as u64) {
                        net.arcs[a].priced = cost;
                        self.basket.push((cost, a as u64));
                    }
                }
                a += self.groups;
            }
            if !self.basket.is_empty() {
                break;
            }
        }
        self.basket.sort_unstable();
        if self.basket.is_empty() {
            return None;
        }
        Some(self.basket.remove(0).1)
    }
}

/// Brings `arc` into the tree.
fn pivot(net: &mut Network, arc: u64) {
    let cost = reduced(net, arc);
    let (tail, head) = {
        let a = &net.arcs[arc as usize];
        (a.tail, a.head)
    };
    // Flow goes along the arc, from its head up to the common ancestor, and down to its tail. It takes from arcs against it.
    let (mut t, mut h) = (tail, head);
    let (mut flow, mut leaving, mut below_tail) = (i64::MAX, NONE, false);
    while t != h {
        let (dt, dh) = (net.nodes[t as usize].depth, net.nodes[h as usize].depth);
        if dt >= dh {
            let node = &net.nodes[t as usize];
            // The first one from the tail, unless one on the head's side is as empty: so the tree stays strongly feasible.
            if node.up && (node.flow < flow) {
                (flow, leaving, below_tail) = (node.flow, t, true);
            }
            t = node.parent;
        }
        if dh >= dt && t != h || dh > dt {
            let node = &net.nodes[h as usize];
            if !node.up && (node.flow <= flow) {
                (flow, leaving, below_tail) = (node.flow, h, false);
            }
            h = node.parent;
        }
    }
    let top = t;
    debug_assert_ne!(leaving, NONE, "a cycle of negative cost without end");
    let mut n = tail;
    while n != top {
        let node = &mut net.nodes[n as usize];
        node.flow += if node.up { -flow } else { flow };
        n = node.parent;
    }
    let mut n = head;
    while n != top {
        let node = &mut net.nodes[n as usize];
        node.flow += if node.up { flow } else { -flow };
        n = node.parent;
    }
    // The part of the tree below the leaving arc is hung up again by the entering one.
    let (inside, outside) = if below_tail {
        (tail, head)
    } else {
        (head, tail)
    };
    net.arcs[net.nodes[leaving as usize].basic as usize].basic = 0;
    net.arcs[arc as usize].basic = 1;
    let (mut n, mut parent) = (inside, outside);
    let (mut basic, mut up, mut amount) = (arc, below_tail, flow);
    loop {
        let node = &net.nodes[n as usize];
        let old = (node.parent, node.basic, node.up, node.flow);
        net.orphan(n);
        let node = &mut net.nodes[n as usize];
        (node.basic, node.up, node.flow) = (basic, up, amount);
        net.adopt(parent, n);
        if n == leaving {
            break;
        }
        // What was its arc to the parent becomes the parent's to it.
        (parent, basic, up, amount) = (n, old.1, !old.2, old.3);
        n = old.0;
    }
    shift(net, inside, if below_tail { cost } else { -cost });
}

/// Adds to the potentials of a part of the tree, and sets its depths.
fn shift(net: &mut Network, root: u64, by: i64) {
    let mut n = root;
    loop {
        let parent = net.nodes[n as usize].parent;
        let depth = net.nodes[parent as usize].depth + 1;
        let node = &mut net.nodes[n as usize];
        node.potential += by;
        node.depth = depth;
        if node.child != NONE {
            n = node.child;
            continue;
        }
        while n != root && net.nodes[n as usize].next == NONE {
            n = net.nodes[n as usize].parent;
        }
        if n == root {
            return;
        }
        n = net.nodes[n as usize].next;
    }
}
