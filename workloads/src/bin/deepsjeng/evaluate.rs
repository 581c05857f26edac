//! What a position is worth, in hundredths of a pawn, for the side to move.

use crate::board::{BISHOP, Board, KING, PAWN, ROOK};
use crate::moves::attacks;

pub const VALUE: [i32; 7] = [100, 320, 330, 500, 950, 0, 0];

/// Worth of squares toward the centre: 0 in a corner, 6 in the middle.
fn centre(square: usize) -> i32 {
    let d = |v: usize| if v < 4 { v } else { 7 - v } as i32;
    d(square & 7) + d(square >> 3)
}

const FILE: u64 = 0x0101_0101_0101_0101;

fn neighbours(file: usize) -> u64 {
    let left = if file > 0 { FILE << (file - 1) } else { 0 };
    let right = if file < 7 { FILE << (file + 1) } else { 0 };
    left | right
}

pub fn evaluate(b: &Board) -> i32 {
    let score = side(b, 0) - side(b, 1);
    if b.side == 0 { score } else { -score }
}

fn side(b: &Board, us: usize) -> i32 {
    let (all, own) = (b.all(), b.colours[us]);
    let (pawns, theirs) = (b.of(us, PAWN), b.of(us ^ 1, PAWN));
    let endgame = (b.all() & !b.pieces[PAWN]).count_ones() <= 6;
    let mut score = 0;
    let mut set = pawns;
    while set != 0 {
        let s = set.trailing_zeros() as usize;
        set &= set - 1;
        let (file, rank) = (s & 7, if us == 0 { s >> 3 } else { 7 - (s >> 3) });
        score += VALUE[PAWN] + 3 * centre(s) + 2 * rank as i32;
        if pawns & neighbours(file) == 0 {
            score -= 15;
        }
        if (pawns & FILE << file).count_ones() > 1 {
            score -= 10;
        }
        let ahead = if us == 0 {
            !0u64 << 8 << (s & 56)
        } else {
            !(!0u64 << (s & 56))
        };
        if theirs & ahead & (FILE << file | neighbours(file)) == 0 {
            score += 5 + 4 * (rank * rank) as i32;
        }
    }
    for (piece, value) in VALUE.iter().enumerate().take(KING).skip(1) {
        let mut set = b.of(us, piece);
        while set != 0 {
            let s = set.trailing_zeros() as usize;
            set &= set - 1;
            let mobility = (attacks(piece, s, all) & !own).count_ones() as i32;
            score += value
                + if piece < ROOK {
                    4 * mobility + 2 * centre(s)
                } else {
                    2 * mobility
                };
            if piece == ROOK && pawns & FILE << (s & 7) == 0 {
                score += 15;
            }
        }
    }
    if b.of(us, BISHOP).count_ones() > 1 {
        score += 30;
    }
    let king = b.king(us);
    if endgame {
        score + 5 * centre(king)
    } else {
        let shield = attacks(KING, king, all) & pawns;
        score - 8 * centre(king) + 10 * shield.count_ones() as i32
    }
}
