//! Go by Monte Carlo tree search. Follows 541.leela_r.
//!
//! As there: a tree of moves grows by upper confidence bounds; each leaf is judged by playing the game to its end with random moves on a
//! board that keeps chains and their liberties. Its behaviour: small arrays with data-dependent indexes, branches
//! that nothing predicts, a tree whose nodes are visited at random.
//!
//! What differs: playouts are uniformly random but for eyes, where Leela has patterns; no network, no book.

mod board;
mod tree;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values};

use board::{Board, PASS};
use tree::Tree;

const GUEST: Guest = Guest {
    name: "leela",
    about: "Plays Go against itself by Monte Carlo tree search.",
    params: &[
        Param {
            name: "edge",
            what: "lines of the board",
            values: [9, 9, 19],
            limits: (5, 19),
        },
        Param {
            name: "playouts",
            what: "playouts a move",
            values: [500, 1200, 3000],
            limits: (1, 1 << 30),
        },
        Param {
            name: "moves",
            what: "moves to play",
            values: [4, 12, 12],
            limits: (1, 400),
        },
        Param {
            name: "seed",
            what: "seed of the playouts",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut board = Board::new(values.size("edge"));
    let mut random = Random::new(values.get("seed"));
    let (mut sum, mut names, mut nodes, mut steps) = (Sum::default(), Vec::new(), 0, 0);
    for _ in 0..values.get("moves") {
        let mut tree = Tree::new();
        for _ in 0..values.get("playouts") {
            let mut copy = board.clone();
            steps += tree.playout(&mut copy, &mut random);
            if random.below(64) == 0 {
                copy.check()?;
            }
        }
        let found = tree.best(values.get("playouts"))?;
        nodes += tree.len();
        if found.point != PASS && !board.is_legal(found.point, board.to_move) {
            return Err(format!("{} is no move", board.name(found.point)));
        }
        names.push(board.name(found.point));
        sum.add(found.point as u64);
        sum.add(found.visits);
        sum.add(found.wins);
        board.play(found.point);
        board.check()?;
    }
    Ok(format!(
        "{}\n{nodes} nodes, {steps} moves in playouts\narea {:+}\nchecksum {sum}",
        names.join(" "),
        board.area()
    ))
}
