//! Sudoku: generates puzzles with one solution, by recursion over small arrays. Follows 548.exchange2_r.
//!
//! As there: puzzles are made from others and solved exhaustively, digit by digit, by recursion with small integer arrays as its
//! only data. Its behaviour: everything in the first-level cache, short loops, many branches that depend on data,
//! hardly a miss.
//!
//! What differs: SPEC's starts from 27 given puzzles and permutes; this one fills a random grid and takes digits away as
//! long as there is one solution.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values};

const GUEST: Guest = Guest {
    name: "exchange2",
    about: "Generates sudokus with one solution, and solves them.",
    params: &[
        Param {
            name: "puzzles",
            what: "puzzles",
            values: [3, 30, 260],
            limits: (1, 1_000_000),
        },
        Param {
            name: "seed",
            what: "seed of the puzzles",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

/// Nine rows of digits; 0 is empty.
type Grid = [[u8; 9]; 9];

#[derive(Clone)]
struct Board {
    grid: Grid,
    /// Whether a row, a column, a box has a digit.
    row: [[bool; 10]; 9],
    column: [[bool; 10]; 9],
    square: [[bool; 10]; 9],
}

impl Board {
    fn new(grid: &Grid) -> Self {
        let mut board = Self {
            grid: [[0; 9]; 9],
            row: [[false; 10]; 9],
            column: [[false; 10]; 9],
            square: [[false; 10]; 9],
        };
        for (y, row) in grid.iter().enumerate() {
            for (x, digit) in row.iter().enumerate() {
                if *digit != 0 {
                    board.set(y, x, *digit, true);
                }
            }
        }
        board
    }

    #[inline]
    fn can(&self, y: usize, x: usize, digit: usize) -> bool {
        !(self.row[y][digit] || self.column[x][digit] || self.square[y / 3 * 3 + x / 3][digit])
    }

    #[inline]
    fn set(&mut self, y: usize, x: usize, digit: u8, on: bool) {
        self.grid[y][x] = if on { digit } else { 0 };
        let d = digit as usize;
        self.row[y][d] = on;
        self.column[x][d] = on;
        self.square[y / 3 * 3 + x / 3][d] = on;
    }

    /// The empty field with the fewest digits that can stand there.
    fn tightest(&self) -> Option<(usize, usize)> {
        let (mut best, mut least) = (None, 10);
        for y in 0..9 {
            for x in 0..9 {
                if self.grid[y][x] != 0 {
                    continue;
                }
                let count = (1..10).filter(|d| self.can(y, x, *d)).count();
                if count < least {
                    (best, least) = (Some((y, x)), count);
                }
            }
        }
        best
    }

    /// Solutions, but no more than `most`; the last one found is left in `solution`.
    fn solve(&mut self, most: u32, nodes: &mut u64, solution: &mut Grid) -> u32 {
        *nodes += 1;
        let Some((y, x)) = self.tightest() else {
            *solution = self.grid;
            return 1;
        };
        let mut found = 0;
        for digit in 1..10 {
            if !self.can(y, x, digit) {
                continue;
            }
            self.set(y, x, digit as u8, true);
            found += self.solve(most - found, nodes, solution);
            self.set(y, x, digit as u8, false);
            if found >= most {
                break;
            }
        }
        found
    }

    /// Fills all of it at random, field by field.
    fn fill(&mut self, at: usize, random: &mut Random, nodes: &mut u64) -> bool {
        *nodes += 1;
        let (y, x) = (at / 9, at % 9);
        if y == 9 {
            return true;
        }
        let mut digits: [u8; 9] = std::array::from_fn(|d| d as u8 + 1);
        random.shuffle(&mut digits);
        for digit in digits {
            if self.can(y, x, digit as usize) {
                self.set(y, x, digit, true);
                if self.fill(at + 1, random, nodes) {
                    return true;
                }
                self.set(y, x, digit, false);
            }
        }
        false
    }
}

/// A puzzle that loses its only solution with any digit less, and that solution.
fn generate(random: &mut Random, nodes: &mut u64) -> (Grid, Grid) {
    let mut board = Board::new(&[[0; 9]; 9]);
    board.fill(0, random, nodes);
    let full = board.grid;
    let mut puzzle = full;
    let mut order: [usize; 81] = std::array::from_fn(|n| n);
    random.shuffle(&mut order);
    let mut solution = full;
    for at in order {
        let (y, x) = (at / 9, at % 9);
        let digit = std::mem::take(&mut puzzle[y][x]);
        if Board::new(&puzzle).solve(2, nodes, &mut solution) != 1 {
            puzzle[y][x] = digit;
        }
    }
    (puzzle, full)
}

fn is_solved(grid: &Grid) -> bool {
    let all = |fields: [u8; 9]| fields.iter().fold(0u32, |set, d| set | 1 << d) == 0x3fe;
    (0..9).all(|n| {
        all(grid[n])
            && all(std::array::from_fn(|m| grid[m][n]))
            && all(std::array::from_fn(|m| {
                grid[n / 3 * 3 + m / 3][n % 3 * 3 + m % 3]
            }))
    })
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut random = Random::new(values.get("seed"));
    let (mut nodes, mut sum, mut clues) = (0, Sum::default(), 0);
    let mut least: Option<(u32, Grid)> = None;
    for n in 0..values.get("puzzles") {
        let (puzzle, full) = generate(&mut random, &mut nodes);
        let mut solution = [[0; 9]; 9];
        let found = Board::new(&puzzle).solve(10, &mut nodes, &mut solution);
        if found != 1 || solution != full || !is_solved(&full) {
            return Err(format!("puzzle {n} has {found} solutions"));
        }
        let given = puzzle.iter().flatten().filter(|d| **d != 0).count() as u32;
        clues += u64::from(given);
        if least.as_ref().is_none_or(|(l, _)| given < *l) {
            least = Some((given, puzzle));
        }
        puzzle.iter().for_each(|row| sum.add_bytes(row));
    }
    let (given, puzzle) = least.ok_or("no puzzle")?;
    let text: String = puzzle
        .iter()
        .flatten()
        .map(|d| char::from(b'0' + d))
        .collect();
    Ok(format!(
        "{} puzzles, {clues} clues, {nodes} nodes\n{given} clues: {text}\nchecksum {sum}",
        values.get("puzzles")
    ))
}
