//! A chess program: alpha-beta search with a transposition table. Follows 531.deepsjeng_r.
//!
//! As there: bitboards, iterative deepening, principal-variation search with null moves, late-move reductions, killer and history
//! moves, quiescence search, and a hash table far larger than the caches, probed at random in every node. Its behaviour: bit
//! tricks, branches that depend on the position and nothing else, a cache and TLB miss for each node, little data otherwise.
//!
//! What differs: a simpler evaluation (material, squares, mobility, pawns); sliding attacks by rays, not by magic multiplication; positions
//! are fixed. It checks its move generator against the known numbers of move sequences before it searches.

mod board;
mod evaluate;
mod moves;
mod search;
mod table;

use std::fmt::Write as _;
use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values};

use board::Board;

const GUEST: Guest = Guest {
    name: "deepsjeng",
    about: "Searches chess positions: alpha-beta with a transposition table.",
    params: &[
        Param {
            name: "depth",
            what: "plies",
            values: [5, 7, 9],
            limits: (1, 30),
        },
        Param {
            name: "positions",
            what: "how many of the built-in positions",
            values: [2, 4, 8],
            limits: (1, POSITIONS.len() as u64),
        },
        Param {
            name: "mib",
            what: "MiB of the transposition table; a power of two",
            values: [4, 32, 256],
            limits: (1, 65536),
        },
    ],
};

const POSITIONS: [&str; 8] = [
    "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1",
    "r1bq1rk1/ppp2ppp/2np1n2/2b1p3/2B1P3/2NP1N2/PPP2PPP/R1BQ1RK1 w - - 0 1",
    "8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1",
    "r2q1rk1/pp2bppp/2n1pn2/2pp4/3P1B2/2PBPN2/PP1N1PPP/R2QK2R w KQ - 0 1",
    "2rq1rk1/pb1n1ppN/4p3/1pb5/3P1Pn1/P1N5/1PQ1B1PP/R1B2RK1 b - - 0 1",
    "r1bqk2r/pp1n1ppp/2pbpn2/3p4/2PP4/2NBPN2/PP3PPP/R1BQK2R w KQkq - 0 1",
    "8/5pk1/1p1r2p1/p1p1R2p/P1P4P/1P4P1/5PK1/8 w - - 0 1",
    "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1",
];

/// Sequences of moves of a length, as chess programmers agree on them.
const COUNTS: [(&str, u32, u64); 3] = [
    (POSITIONS[7], 3, 8_902),
    (POSITIONS[0], 2, 2_039),
    (POSITIONS[2], 3, 2_812),
];

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    for (position, depth, known) in COUNTS {
        let found = count(&Board::parse(position), depth);
        if found != known {
            return Err(format!(
                "{position}: {found} sequences of {depth} moves, not {known}"
            ));
        }
    }
    if !values.get("mib").is_power_of_two() {
        return Err("--mib is no power of two".to_owned());
    }
    let mut search = search::Search::new(values.size("mib"));
    let mut text = String::new();
    let mut sum = Sum::default();
    for position in POSITIONS.iter().take(values.size("positions")) {
        let board = Board::parse(position);
        let (best, score) = search.run(&board, values.get("depth") as i32);
        if !moves::legal(&board).contains(&best) {
            return Err(format!("{position}: {best} is no move"));
        }
        let _ = writeln!(text, "{best} {score:+} {}", search.nodes);
        sum.add(search.nodes);
        sum.add(u64::from(best.0));
        sum.add(score as u64);
    }
    let _ = write!(
        text,
        "{} nodes, {} found in the table\nchecksum {sum}",
        search.nodes, search.table.hits
    );
    Ok(text)
}

/// How many sequences of `depth` moves there are (perft); checks each position's hash on the way.
fn count(board: &Board, depth: u32) -> u64 {
    if depth == 0 {
        return u64::from(board.hash == board.hash_anew());
    }
    let moves = moves::legal(board);
    moves
        .iter()
        .map(|m| count(&board.after(*m), depth - 1))
        .sum()
}
