//! Attacks and moves.

use crate::board::{BISHOP, Board, KING, KNIGHT, Move, PAWN, QUEEN, ROOK};

/// Steps of the eight directions: those of rooks, then those of bishops. The first of each pair goes to higher squares.
const STEPS: [(i32, i32); 8] = [
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (-1, -1),
    (-1, 1),
    (1, -1),
];

struct Tables {
    ray: [[u64; 64]; 8],
    knight: [u64; 64],
    king: [u64; 64],
    /// What a pawn of a colour attacks.
    pawn: [[u64; 64]; 2],
}

static TABLES: std::sync::LazyLock<Tables> = std::sync::LazyLock::new(|| {
    let square = |x: i32, y: i32| {
        let on = (0..8).contains(&x) && (0..8).contains(&y);
        if on { 1u64 << (y * 8 + x) } else { 0 }
    };
    let at = |s: usize| ((s & 7) as i32, (s >> 3) as i32);
    let around = |s: usize, steps: &[(i32, i32)]| {
        let (x, y) = at(s);
        steps
            .iter()
            .fold(0, |set, (dx, dy)| set | square(x + dx, y + dy))
    };
    let jumps = [
        (1, 2),
        (2, 1),
        (2, -1),
        (1, -2),
        (-1, -2),
        (-2, -1),
        (-2, 1),
        (-1, 2),
    ];
    Tables {
        ray: std::array::from_fn(|d| {
            std::array::from_fn(|s| {
                let (x, y) = at(s);
                let (dx, dy) = STEPS[d];
                (1..8).fold(0, |set, n| set | square(x + n * dx, y + n * dy))
            })
        }),
        knight: std::array::from_fn(|s| around(s, &jumps)),
        king: std::array::from_fn(|s| around(s, &STEPS)),
        pawn: std::array::from_fn(|c| {
            let dy = if c == 0 { 1 } else { -1 };
            std::array::from_fn(|s| around(s, &[(-1, dy), (1, dy)]))
        }),
    }
});

/// Which directions lead to higher squares.
const RISING: [bool; 8] = [true, false, true, false, true, false, true, false];

#[inline]
fn slide(t: &Tables, square: usize, all: u64, directions: std::ops::Range<usize>) -> u64 {
    let mut set = 0;
    for d in directions {
        let ray = t.ray[d][square];
        let blockers = ray & all;
        set |= ray;
        if blockers != 0 {
            let first = if RISING[d] {
                blockers.trailing_zeros()
            } else {
                63 - blockers.leading_zeros()
            };
            set ^= t.ray[d][first as usize];
        }
    }
    set
}

/// What a piece (no pawn) attacks.
#[inline]
pub fn attacks(piece: usize, square: usize, all: u64) -> u64 {
    let t = &*TABLES;
    match piece {
        KNIGHT => t.knight[square],
        BISHOP => slide(t, square, all, 4..8),
        ROOK => slide(t, square, all, 0..4),
        QUEEN => slide(t, square, all, 0..8),
        _ => t.king[square],
    }
}

/// Whether `by` attacks a square.
pub fn attacked(b: &Board, square: usize, by: usize) -> bool {
    let t = &*TABLES;
    let theirs = b.colours[by];
    if t.pawn[by ^ 1][square] & theirs & b.pieces[PAWN] != 0
        || t.knight[square] & theirs & b.pieces[KNIGHT] != 0
        || t.king[square] & theirs & b.pieces[KING] != 0
    {
        return true;
    }
    let all = b.all();
    let diagonal = theirs & (b.pieces[BISHOP] | b.pieces[QUEEN]);
    let straight = theirs & (b.pieces[ROOK] | b.pieces[QUEEN]);
    slide(t, square, all, 4..8) & diagonal != 0 || slide(t, square, all, 0..4) & straight != 0
}

/// Whether the side to move is in check.
pub fn in_check(b: &Board) -> bool {
    attacked(b, b.king(b.side), b.side ^ 1)
}

/// Moves that are legal but for the king's safety. With `captures`: only those that take or promote.
pub fn pseudo(b: &Board, captures: bool, out: &mut Vec<Move>) {
    let (us, them) = (b.side, b.side ^ 1);
    let all = b.all();
    let targets = if captures {
        b.colours[them]
    } else {
        !b.colours[us]
    };
    pawns(b, captures, out);
    for piece in KNIGHT..=KING {
        let mut from = b.of(us, piece);
        while from != 0 {
            let f = from.trailing_zeros() as usize;
            from &= from - 1;
            let mut to = attacks(piece, f, all) & targets;
            while to != 0 {
                out.push(Move::new(f, to.trailing_zeros() as usize, 0));
                to &= to - 1;
            }
        }
    }
    if !captures {
        castle(b, out);
    }
}

fn pawns(b: &Board, captures: bool, out: &mut Vec<Move>) {
    let t = &*TABLES;
    let (us, them) = (b.side, b.side ^ 1);
    let all = b.all();
    let passant = if b.passant < 64 { 1u64 << b.passant } else { 0 };
    let mut from = b.of(us, PAWN);
    while from != 0 {
        let f = from.trailing_zeros() as usize;
        from &= from - 1;
        let ahead = if us == 0 { f + 8 } else { f - 8 };
        let mut to = t.pawn[us][f] & (b.colours[them] | passant);
        let last = !(8..56).contains(&ahead);
        if all >> ahead & 1 == 0 && (!captures || last) {
            to |= 1 << ahead;
            let home = if us == 0 { f < 16 } else { f >= 48 };
            let two = if us == 0 {
                ahead + 8
            } else {
                ahead.wrapping_sub(8)
            };
            if home && !captures && all >> two & 1 == 0 {
                to |= 1 << two;
            }
        }
        while to != 0 {
            let s = to.trailing_zeros() as usize;
            to &= to - 1;
            if last {
                out.extend([QUEEN, KNIGHT, ROOK, BISHOP].map(|p| Move::new(f, s, p)));
            } else {
                out.push(Move::new(f, s, 0));
            }
        }
    }
}

fn castle(b: &Board, out: &mut Vec<Move>) {
    let (us, them) = (b.side, b.side ^ 1);
    let base = if us == 0 { 0 } else { 56 };
    let all = b.all() >> base;
    let safe = |s: usize| !attacked(b, base + s, them);
    let rights = b.castling >> (2 * us) & 3;
    if rights & 1 != 0 && all & 0x60 == 0 && safe(4) && safe(5) {
        out.push(Move::new(base + 4, base + 6, 0));
    }
    if rights & 2 != 0 && all & 0x0e == 0 && safe(4) && safe(3) {
        out.push(Move::new(base + 4, base + 2, 0));
    }
}

/// All legal moves.
pub fn legal(b: &Board) -> Vec<Move> {
    let mut moves = Vec::with_capacity(64);
    pseudo(b, false, &mut moves);
    moves.retain(|m| {
        let after = b.after(*m);
        !attacked(&after, after.king(b.side), after.side)
    });
    moves
}

/// What a move takes; `NONE` if nothing.
pub fn taken(b: &Board, m: Move) -> u8 {
    if b.mailbox[m.from()] == PAWN as u8 && m.to() == b.passant {
        return PAWN as u8;
    }
    b.mailbox[m.to()]
}
