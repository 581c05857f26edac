//! The tree: upper confidence bounds choose the way down, a random game judges the leaf.

use sevlab_workloads::guest::{Random, ln};

use crate::board::{Board, PASS};

/// What white gets for moving second.
const KOMI: f64 = 6.5;

#[derive(Clone, Debug)]
pub struct Node {
    pub point: usize,
    pub visits: u64,
    /// For whoever moved here.
    pub wins: u64,
    /// Children, in a row; none yet if `count` is 0.
    first: u32,
    count: u32,
}

pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub fn new() -> Self {
        Self {
            nodes: vec![Self::node(PASS)],
        }
    }

    fn node(point: usize) -> Node {
        Node {
            point,
            visits: 0,
            wins: 0,
            first: 0,
            count: 0,
        }
    }

    pub fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// One playout from the root; returns how many moves it had.
    pub fn playout(&mut self, board: &mut Board, random: &mut Random) -> u64 {
        let (mut at, mut path, mut moves) = (0, vec![(0, 3 - board.to_move)], 0);
        loop {
            if self.nodes[at].count == 0 {
                if self.nodes[at].visits == 0 && at != 0 || board.passes >= 2 {
                    break;
                }
                self.expand(at, board);
            }
            at = self.choose(at);
            path.push((at, board.to_move));
            board.play(self.nodes[at].point);
            moves += 1;
        }
        let limit = u64::from(3 * board.area_points());
        while board.passes < 2 && moves < limit {
            board.play(board.random_move(random));
            moves += 1;
        }
        let winner = if f64::from(board.area()) > KOMI { 1 } else { 2 };
        for (n, mover) in path {
            self.nodes[n].visits += 1;
            self.nodes[n].wins += u64::from(mover == winner);
        }
        moves
    }

    fn expand(&mut self, at: usize, board: &Board) {
        let first = self.nodes.len();
        for point in board.empties() {
            let point = usize::from(*point);
            if !board.is_eye(point, board.to_move) && board.is_legal(point, board.to_move) {
                self.nodes.push(Self::node(point));
            }
        }
        if self.nodes.len() == first {
            self.nodes.push(Self::node(PASS));
        }
        self.nodes[at].first = first as u32;
        self.nodes[at].count = (self.nodes.len() - first) as u32;
    }

    fn children(&self, at: usize) -> &[Node] {
        let node = &self.nodes[at];
        &self.nodes[node.first as usize..(node.first + node.count) as usize]
    }

    fn choose(&self, at: usize) -> usize {
        let total = ln(self.nodes[at].visits.max(1) as f64);
        let (mut best, mut bound) = (0, f64::NEG_INFINITY);
        for (n, child) in self.children(at).iter().enumerate() {
            let visits = child.visits as f64;
            let value = if child.visits == 0 {
                // Early ones in an order that is not that of the board.
                10.0 + (child.point * 7919 % 361) as f64 * 1e-3
            } else {
                child.wins as f64 / visits + (0.5 * total / visits).sqrt()
            };
            if value > bound {
                (best, bound) = (n, value);
            }
        }
        self.nodes[at].first as usize + best
    }

    /// The move that was tried most; checks that all visits are accounted for.
    pub fn best(&self, playouts: u64) -> Result<&Node, String> {
        let below: u64 = self.children(0).iter().map(|n| n.visits).sum();
        if self.nodes[0].visits != playouts || below != playouts {
            return Err(format!("{playouts} playouts, but {below} below the root"));
        }
        if let Some(n) = self.nodes.iter().find(|n| n.wins > n.visits) {
            return Err(format!("{} wins of {} visits", n.wins, n.visits));
        }
        let best = self
            .children(0)
            .iter()
            .max_by_key(|n| (n.visits, n.wins, n.point));
        best.ok_or_else(|| "no move".to_owned())
    }
}
