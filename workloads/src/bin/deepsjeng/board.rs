//! The board: bitboards, a mailbox beside them, and a hash that every move keeps up to date.

use std::fmt;

use sevlab_workloads::guest::Random;

pub const PAWN: usize = 0;
pub const KNIGHT: usize = 1;
pub const BISHOP: usize = 2;
pub const ROOK: usize = 3;
pub const QUEEN: usize = 4;
pub const KING: usize = 5;
/// No piece, in the mailbox.
pub const NONE: u8 = 6;

/// From, to, promotion (0 or a piece), in six bits each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Move(pub u32);

impl Move {
    pub fn new(from: usize, to: usize, promotion: usize) -> Self {
        Self((from | to << 6 | promotion << 12) as u32)
    }
    pub fn from(self) -> usize {
        self.0 as usize & 63
    }
    pub fn to(self) -> usize {
        self.0 as usize >> 6 & 63
    }
    pub fn promotion(self) -> usize {
        self.0 as usize >> 12
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let square = |s: usize| {
            [
                (b'a' + (s & 7) as u8) as char,
                (b'1' + (s >> 3) as u8) as char,
            ]
        };
        for c in square(self.from()).into_iter().chain(square(self.to())) {
            write!(f, "{c}")?;
        }
        if self.promotion() > 0 {
            write!(f, "{}", b"pnbrqk"[self.promotion()] as char)?;
        }
        Ok(())
    }
}

#[derive(Clone)]
pub struct Board {
    /// By piece.
    pub pieces: [u64; 6],
    /// By colour: 0 white.
    pub colours: [u64; 2],
    pub mailbox: [u8; 64],
    /// To move.
    pub side: usize,
    /// White king's side 1, queen's 2; black 4 and 8.
    pub castling: u8,
    /// The square behind a pawn that has just made two steps, or 64.
    pub passant: usize,
    pub hash: u64,
}

/// Numbers that a hash is made of.
struct Keys {
    piece: [[[u64; 64]; 6]; 2],
    castling: [u64; 16],
    passant: [u64; 65],
    side: u64,
}

static KEYS: std::sync::LazyLock<Keys> = std::sync::LazyLock::new(|| {
    let mut random = Random::new(0xc4e55);
    let mut next = || random.next_u64();
    Keys {
        piece: std::array::from_fn(|_| std::array::from_fn(|_| std::array::from_fn(|_| next()))),
        castling: std::array::from_fn(|_| next()),
        passant: std::array::from_fn(|_| next()),
        side: next(),
    }
});

/// Rights that are gone when something leaves or enters a square.
fn rights_lost(square: usize) -> u8 {
    match square {
        0 => 2,
        4 => 3,
        7 => 1,
        56 => 8,
        60 => 12,
        63 => 4,
        _ => 0,
    }
}

impl Board {
    /// From FEN; the built-in ones are right.
    pub fn parse(fen: &str) -> Self {
        let mut board = Self {
            pieces: [0; 6],
            colours: [0; 2],
            mailbox: [NONE; 64],
            side: 0,
            castling: 0,
            passant: 64,
            hash: 0,
        };
        let mut fields = fen.split(' ');
        let (mut x, mut y) = (0, 7);
        for c in fields.next().unwrap_or_default().chars() {
            match c {
                '/' => (x, y) = (0, y - 1),
                '1'..='8' => x += c as usize - '0' as usize,
                _ => {
                    let piece = "pnbrqk".find(c.to_ascii_lowercase()).unwrap_or(0);
                    board.put(usize::from(c.is_ascii_lowercase()), piece, y * 8 + x);
                    x += 1;
                }
            }
        }
        board.side = usize::from(fields.next() == Some("b"));
        for c in fields.next().unwrap_or_default().chars() {
            board.castling |= "KQkq".find(c).map_or(0, |n| 1 << n);
        }
        board.hash = board.hash_anew();
        board
    }

    /// The hash, from what is on the board.
    pub fn hash_anew(&self) -> u64 {
        let mut hash = KEYS.castling[self.castling as usize] ^ KEYS.passant[self.passant];
        if self.side == 1 {
            hash ^= KEYS.side;
        }
        for colour in 0..2 {
            for piece in 0..6 {
                let mut squares = self.of(colour, piece);
                while squares != 0 {
                    hash ^= KEYS.piece[colour][piece][squares.trailing_zeros() as usize];
                    squares &= squares - 1;
                }
            }
        }
        hash
    }

    #[inline]
    pub fn of(&self, colour: usize, piece: usize) -> u64 {
        self.colours[colour] & self.pieces[piece]
    }

    #[inline]
    pub fn all(&self) -> u64 {
        self.colours[0] | self.colours[1]
    }

    #[inline]
    pub fn king(&self, colour: usize) -> usize {
        self.of(colour, KING).trailing_zeros() as usize & 63
    }

    fn put(&mut self, colour: usize, piece: usize, square: usize) {
        self.pieces[piece] |= 1 << square;
        self.colours[colour] |= 1 << square;
        self.mailbox[square] = piece as u8;
        self.hash ^= KEYS.piece[colour][piece][square];
    }

    fn take(&mut self, colour: usize, piece: usize, square: usize) {
        self.pieces[piece] &= !(1 << square);
        self.colours[colour] &= !(1 << square);
        self.mailbox[square] = NONE;
        self.hash ^= KEYS.piece[colour][piece][square];
    }

    /// The board after a move (which may leave the king in check).
    pub fn after(&self, m: Move) -> Self {
        let mut b = self.clone();
        let (us, them) = (self.side, self.side ^ 1);
        let (from, to) = (m.from(), m.to());
        let piece = self.mailbox[from] as usize;
        b.hash ^= KEYS.castling[b.castling as usize] ^ KEYS.passant[b.passant];
        if self.mailbox[to] != NONE {
            b.take(them, self.mailbox[to] as usize, to);
        }
        b.take(us, piece, from);
        b.put(
            us,
            if m.promotion() > 0 {
                m.promotion()
            } else {
                piece
            },
            to,
        );
        b.passant = 64;
        if piece == PAWN {
            if from.abs_diff(to) == 16 {
                b.passant = (from + to) / 2;
            } else if to == self.passant {
                b.take(them, PAWN, to ^ 8);
            }
        } else if piece == KING && from.abs_diff(to) == 2 {
            let (rook, there) = if to > from {
                (to + 1, to - 1)
            } else {
                (to - 2, to + 1)
            };
            b.take(us, ROOK, rook);
            b.put(us, ROOK, there);
        }
        b.castling &= !(rights_lost(from) | rights_lost(to));
        b.side = them;
        b.hash ^= KEYS.castling[b.castling as usize] ^ KEYS.passant[b.passant] ^ KEYS.side;
        b
    }

    /// The board if the side to move did nothing.
    pub fn passed(&self) -> Self {
        let mut b = self.clone();
        b.hash ^= KEYS.passant[b.passant] ^ KEYS.passant[64] ^ KEYS.side;
        b.passant = 64;
        b.side ^= 1;
        b
    }
}
