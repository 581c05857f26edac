//! The search.

use crate::board::{Board, Move, NONE, PAWN};
use crate::evaluate::{VALUE, evaluate};
use crate::moves::{attacked, in_check, pseudo, taken};
use crate::table::{Bound, Table};

const MATE: i32 = 30_000;
const PLIES: usize = 64;

pub struct Search {
    pub table: Table,
    pub nodes: u64,
    killers: [[Move; 2]; PLIES],
    history: Box<[[i32; 64]; 64]>,
    best: Move,
}

impl Search {
    pub fn new(mib: usize) -> Self {
        Self {
            table: Table::new(mib),
            nodes: 0,
            killers: [[Move::default(); 2]; PLIES],
            history: Box::new([[0; 64]; 64]),
            best: Move::default(),
        }
    }

    /// Depth after depth; the best move and its score.
    pub fn run(&mut self, board: &Board, depth: i32) -> (Move, i32) {
        self.killers = [[Move::default(); 2]; PLIES];
        self.history.iter_mut().flatten().for_each(|h| *h /= 8);
        let mut score = 0;
        for d in 1..=depth {
            score = self.node(board, d, 0, -MATE, MATE, false);
        }
        (self.best, score)
    }

    fn node(
        &mut self,
        b: &Board,
        depth: i32,
        ply: usize,
        alpha: i32,
        beta: i32,
        pass: bool,
    ) -> i32 {
        let check = in_check(b);
        let depth = depth + i32::from(check);
        if depth <= 0 || ply >= PLIES - 1 {
            return self.quiet(b, ply, alpha, beta);
        }
        self.nodes += 1;
        let known = self.table.get(b.hash);
        let wide = beta - alpha > 1;
        if let Some(k) = &known
            && k.depth >= depth
            && !wide
            && match k.bound {
                Bound::Exact => true,
                Bound::Lower => k.score >= beta,
                Bound::Upper => k.score <= alpha,
            }
        {
            return k.score;
        }
        let pieces = b.colours[b.side] & !b.pieces[PAWN];
        if pass && !check && !wide && depth >= 3 && pieces.count_ones() > 1 && evaluate(b) >= beta {
            let score = -self.node(&b.passed(), depth - 3, ply + 1, -beta, -beta + 1, false);
            if score >= beta {
                return beta;
            }
        }
        let first = known.map_or(Move::default(), |k| k.best);
        let mut moves = Vec::with_capacity(48);
        pseudo(b, false, &mut moves);
        let mut order = self.order(b, &moves, first, ply);
        let (mut best, mut best_move, mut alpha_now, mut tried) =
            (-MATE, Move::default(), alpha, 0);
        for n in 0..order.len() {
            // The next best one; most nodes need few.
            let next = (n..order.len())
                .max_by_key(|i| (order[*i].0, -(*i as i32)))
                .unwrap_or(n);
            order.swap(n, next);
            let m = order[n].1;
            let after = b.after(m);
            if attacked(&after, after.king(b.side), after.side) {
                continue;
            }
            tried += 1;
            let silent = taken(b, m) == NONE && m.promotion() == 0;
            let reduce = if silent && tried > 4 && depth >= 3 && !check {
                1 + i32::from(tried > 12)
            } else {
                0
            };
            let mut score;
            if tried == 1 {
                score = -self.node(&after, depth - 1, ply + 1, -beta, -alpha_now, true);
            } else {
                score = -self.node(
                    &after,
                    depth - 1 - reduce,
                    ply + 1,
                    -alpha_now - 1,
                    -alpha_now,
                    true,
                );
                if score > alpha_now && (reduce > 0 || score < beta) {
                    score = -self.node(&after, depth - 1, ply + 1, -beta, -alpha_now, true);
                }
            }
            if score > best {
                (best, best_move) = (score, m);
                if ply == 0 {
                    self.best = m;
                }
            }
            alpha_now = alpha_now.max(score);
            if alpha_now >= beta {
                if silent {
                    self.learn(m, ply, depth);
                }
                break;
            }
        }
        if tried == 0 {
            return if check { ply as i32 - MATE } else { 0 };
        }
        let bound = if best >= beta {
            Bound::Lower
        } else if best > alpha {
            Bound::Exact
        } else {
            Bound::Upper
        };
        self.table.put(b.hash, best_move, best, depth, bound);
        best
    }

    /// Captures only, until nothing hangs.
    fn quiet(&mut self, b: &Board, ply: usize, alpha: i32, beta: i32) -> i32 {
        self.nodes += 1;
        let stand = evaluate(b);
        if stand >= beta || ply >= PLIES - 1 {
            return stand;
        }
        let mut alpha = alpha.max(stand);
        let mut moves = Vec::with_capacity(16);
        pseudo(b, true, &mut moves);
        let mut order: Vec<(i32, Move)> = moves.iter().map(|m| (gain(b, *m), *m)).collect();
        order.sort_by_key(|(gain, _)| -gain);
        let mut best = stand;
        for (_, m) in order {
            let value = VALUE[taken(b, m) as usize];
            if stand + value + 150 < alpha && m.promotion() == 0 {
                continue;
            }
            let after = b.after(m);
            if attacked(&after, after.king(b.side), after.side) {
                continue;
            }
            let score = -self.quiet(&after, ply + 1, -beta, -alpha);
            best = best.max(score);
            alpha = alpha.max(score);
            if alpha >= beta {
                break;
            }
        }
        best
    }

    fn order(&self, b: &Board, moves: &[Move], first: Move, ply: usize) -> Vec<(i32, Move)> {
        let score = |m: Move| {
            if m == first {
                return 1 << 30;
            }
            match gain(b, m) {
                0 if self.killers[ply].contains(&m) => 1 << 20,
                0 => self.history[m.from()][m.to()],
                gain => gain + (1 << 21),
            }
        };
        moves.iter().map(|m| (score(*m), *m)).collect()
    }

    /// A silent move that was too good is tried early next time.
    fn learn(&mut self, m: Move, ply: usize, depth: i32) {
        if self.killers[ply][0] != m {
            self.killers[ply][1] = self.killers[ply][0];
            self.killers[ply][0] = m;
        }
        let h = &mut self.history[m.from()][m.to()];
        *h = (*h + depth * depth).min(1 << 19);
    }
}

/// The most valuable victim by the least valuable attacker; 0 for what takes nothing.
fn gain(b: &Board, m: Move) -> i32 {
    let victim = VALUE[taken(b, m) as usize];
    if victim == 0 && m.promotion() == 0 {
        return 0;
    }
    victim * 16 + VALUE[m.promotion()] * i32::from(m.promotion() > 0)
        - VALUE[b.mailbox[m.from()] as usize] / 16
}
