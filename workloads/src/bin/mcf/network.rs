//! The network: nodes and arcs, and a timetable to make them of.

use sevlab_workloads::guest::Random;

/// No node, no arc.
pub const NONE: u64 = u64::MAX;

/// A node, with its place in the spanning tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Dual value.
    pub potential: i64,
    /// Flow on the arc to the parent.
    pub flow: i64,
    /// What leaves it, without what enters it.
    pub supply: i64,
    /// In the tree.
    pub parent: u64,
    /// One of the nodes below it.
    pub child: u64,
    /// The next child of its parent.
    pub next: u64,
    /// The one before.
    pub previous: u64,
    /// The arc to its parent.
    pub basic: u64,
    /// Nodes between it and the root.
    pub depth: u64,
    /// Whether that arc leads to the parent (not from it).
    pub up: bool,
    /// First arc that leaves it.
    pub first_out: u64,
    /// First arc that enters it.
    pub first_in: u64,
}

/// An arc; there is no limit to its flow.
#[derive(Clone, Debug)]
pub struct Arc {
    /// A unit of flow costs that.
    pub cost: i64,
    /// Flow, once the tree is final.
    pub flow: i64,
    /// From.
    pub tail: u64,
    /// To.
    pub head: u64,
    /// Whether it is in the tree.
    pub basic: u64,
    /// The next arc that leaves the same node.
    pub next_out: u64,
    /// The next arc that enters the same node.
    pub next_in: u64,
    /// Which pair of trips it links; a mark for whoever reads a solution.
    pub link: u64,
    /// Reduced cost when it was last priced.
    pub priced: i64,
}

/// Nodes and arcs; node 0 is the depot and the tree's root.
#[derive(Debug)]
pub struct Network {
    /// The depot, then two of each trip: its end (supply 1) and its start (demand 1).
    pub nodes: Vec<Node>,
    /// All arcs, in an order that has nothing to do with the tree.
    pub arcs: Vec<Arc>,
}

struct Trip {
    start: i64,
    end: i64,
    from: (i64, i64),
    to: (i64, i64),
}

/// A day of trips in a town; each is linked with the `links` next ones that the same vehicle could do, and with the depot.
pub fn generate(trips: usize, links: usize, seed: u64) -> Network {
    let mut random = Random::new(seed);
    let mut table: Vec<Trip> = (0..trips)
        .map(|_| {
            let place = |r: &mut Random| (r.range(0, 999), r.range(0, 999));
            let (from, to) = (place(&mut random), place(&mut random));
            let start = random.range(0, 14_400);
            let end = start + distance(from, to) / 4 + random.range(20, 200);
            Trip {
                start,
                end,
                from,
                to,
            }
        })
        .collect();
    table.sort_by_key(|t| (t.start, t.end, t.from));
    let mut nodes = vec![
        Node {
            potential: 0,
            flow: 0,
            supply: 0,
            parent: NONE,
            child: NONE,
            next: NONE,
            previous: NONE,
            basic: NONE,
            depth: 0,
            up: false,
            first_out: NONE,
            first_in: NONE,
        };
        1 + 2 * trips
    ];
    let mut arcs = Vec::with_capacity(trips * (links + 2));
    let (end_of, start_of) = (|t: usize| 1 + 2 * t as u64, |t: usize| 2 + 2 * t as u64);
    let depot = (500, 500);
    let mut add = |tail: u64, head: u64, cost: i64, link: usize| {
        arcs.push(Arc {
            cost,
            flow: 0,
            tail,
            head,
            basic: 0,
            next_out: NONE,
            next_in: NONE,
            link: link as u64,
            priced: 0,
        });
    };
    for (t, trip) in table.iter().enumerate() {
        // A vehicle costs much; half of it on its way out, half on its way home.
        add(end_of(t), 0, 20_000 + 10 * distance(trip.to, depot), t);
        add(0, start_of(t), 20_000 + 10 * distance(depot, trip.from), t);
    }
    for (t, trip) in table.iter().enumerate() {
        let first = table.partition_point(|other| other.start < trip.end);
        let mut left = links;
        for (o, other) in table.iter().enumerate().skip(first) {
            let far = distance(trip.to, other.from);
            // Not each of them, so that arcs reach further into the day.
            if trip.end + far / 4 > other.start || random.below(4) == 0 {
                continue;
            }
            add(
                end_of(t),
                start_of(o),
                10 * far + 2 * (other.start - trip.end),
                o,
            );
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    // The depot's arcs stay in front: they are the first tree.
    random.shuffle(&mut arcs[2 * trips..]);
    for (a, arc) in arcs.iter_mut().enumerate() {
        let (tail, head) = (arc.tail as usize, arc.head as usize);
        arc.next_out = std::mem::replace(&mut nodes[tail].first_out, a as u64);
        arc.next_in = std::mem::replace(&mut nodes[head].first_in, a as u64);
    }
    for t in 0..trips {
        nodes[end_of(t) as usize].supply = 1;
        nodes[start_of(t) as usize].supply = -1;
    }
    let mut net = Network { nodes, arcs };
    net.star(trips);
    net
}

fn distance(a: (i64, i64), b: (i64, i64)) -> i64 {
    (a.0 - b.0).abs() + (a.1 - b.1).abs()
}

impl Network {
    /// The first tree: a vehicle for each trip, from the depot and back.
    fn star(&mut self, trips: usize) {
        for a in 0..2 * trips as u64 {
            let arc = &mut self.arcs[a as usize];
            arc.basic = 1;
            let up = arc.head == 0;
            let n = if up { arc.tail } else { arc.head };
            let cost = arc.cost;
            let node = &mut self.nodes[n as usize];
            node.parent = 0;
            node.basic = a;
            node.up = up;
            node.flow = 1;
            node.depth = 1;
            node.potential = if up { cost } else { -cost };
            self.adopt(0, n);
        }
    }

    /// Makes `n` a child of `parent`.
    pub fn adopt(&mut self, parent: u64, n: u64) {
        let first = std::mem::replace(&mut self.nodes[parent as usize].child, n);
        let node = &mut self.nodes[n as usize];
        node.parent = parent;
        node.next = first;
        node.previous = NONE;
        if first != NONE {
            self.nodes[first as usize].previous = n;
        }
    }

    /// Takes `n` from its parent.
    pub fn orphan(&mut self, n: u64) {
        let node = &self.nodes[n as usize];
        let (parent, next, previous) = (node.parent, node.next, node.previous);
        match previous {
            NONE => self.nodes[parent as usize].child = next,
            p => self.nodes[p as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
    }
}
