//! The board: chains as circular lists, with a count of pseudo-liberties (an empty point counts once for each neighbour in the chain).

use sevlab_workloads::guest::Random;

pub const EMPTY: u8 = 0;
pub const EDGE: u8 = 3;
/// The move that is none.
pub const PASS: usize = 0;
/// Points with a border around them.
const WIDTH: usize = 21;
const SIZE: usize = WIDTH * WIDTH;
const AROUND: [isize; 4] = [-(WIDTH as isize), -1, 1, WIDTH as isize];
const CORNERS: [isize; 4] = [
    -(WIDTH as isize) - 1,
    -(WIDTH as isize) + 1,
    WIDTH as isize - 1,
    WIDTH as isize + 1,
];

#[derive(Clone)]
pub struct Board {
    edge: usize,
    /// 1 black, 2 white.
    points: [u8; SIZE],
    /// The chain that a stone belongs to.
    chain: [u16; SIZE],
    /// The next stone of the chain.
    next: [u16; SIZE],
    liberties: [u16; SIZE],
    stones: [u16; SIZE],
    /// Empty points in any order, and where each stands in it.
    empty: [u16; SIZE],
    place: [u16; SIZE],
    empties: usize,
    /// A point that must not be retaken now.
    ko: usize,
    pub to_move: u8,
    pub passes: u32,
}

fn step(point: usize, by: isize) -> usize {
    point.wrapping_add_signed(by)
}

impl Board {
    pub fn new(edge: usize) -> Self {
        let mut board = Self {
            edge,
            points: [EDGE; SIZE],
            chain: [0; SIZE],
            next: [0; SIZE],
            liberties: [0; SIZE],
            stones: [0; SIZE],
            empty: [0; SIZE],
            place: [0; SIZE],
            empties: 0,
            ko: PASS,
            to_move: 1,
            passes: 0,
        };
        for y in 1..=edge {
            for x in 1..=edge {
                board.points[y * WIDTH + x] = EMPTY;
                board.vacate(y * WIDTH + x);
            }
        }
        board
    }

    pub fn name(&self, point: usize) -> String {
        if point == PASS {
            return "pass".to_owned();
        }
        let column = b"ABCDEFGHJKLMNOPQRST"[point % WIDTH - 1] as char;
        format!("{column}{}", point / WIDTH)
    }

    fn vacate(&mut self, point: usize) {
        self.place[point] = self.empties as u16;
        self.empty[self.empties] = point as u16;
        self.empties += 1;
    }

    fn occupy(&mut self, point: usize) {
        self.empties -= 1;
        let (at, last) = (self.place[point], self.empty[self.empties]);
        self.empty[at as usize] = last;
        self.place[last as usize] = at;
    }

    pub fn empties(&self) -> &[u16] {
        &self.empty[..self.empties]
    }

    pub fn is_legal(&self, point: usize, colour: u8) -> bool {
        if self.points[point] != EMPTY || point == self.ko {
            return false;
        }
        // A free neighbour, a chain of one's own that keeps another liberty, or one of the other's that has no other.
        for by in AROUND {
            let n = step(point, by);
            match self.points[n] {
                EMPTY => return true,
                EDGE => {}
                c => {
                    let chain = self.chain[n];
                    let here = AROUND.iter().filter(|b| {
                        let m = step(point, **b);
                        self.points[m] == c && self.chain[m] == chain
                    });
                    let last = usize::from(self.liberties[chain as usize]) == here.count();
                    if last != (c == colour) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// A point that only a fool fills.
    pub fn is_eye(&self, point: usize, colour: u8) -> bool {
        if AROUND
            .iter()
            .any(|b| ![colour, EDGE].contains(&self.points[step(point, *b)]))
        {
            return false;
        }
        let count = |c: u8| {
            CORNERS
                .iter()
                .filter(|b| self.points[step(point, **b)] == c)
                .count()
        };
        count(3 - colour) + usize::from(count(EDGE) > 0) < 2
    }

    /// Plays a legal move.
    pub fn play(&mut self, point: usize) {
        let colour = self.to_move;
        self.to_move = 3 - colour;
        self.ko = PASS;
        if point == PASS {
            self.passes += 1;
            return;
        }
        self.passes = 0;
        self.points[point] = colour;
        self.occupy(point);
        self.chain[point] = point as u16;
        self.next[point] = point as u16;
        self.stones[point] = 1;
        self.liberties[point] = 0;
        for by in AROUND {
            let n = step(point, by);
            match self.points[n] {
                EMPTY => self.liberties[point] += 1,
                EDGE => {}
                _ => self.liberties[self.chain[n] as usize] -= 1,
            }
        }
        // What the chain that `point` ends up in has gained by merging.
        for by in AROUND {
            let n = step(point, by);
            if self.points[n] == colour && self.chain[n] != self.chain[point] {
                self.merge(point, n);
            }
        }
        let mut taken = Vec::new();
        for by in AROUND {
            let n = step(point, by);
            if self.points[n] == 3 - colour && self.liberties[self.chain[n] as usize] == 0 {
                self.remove(n, &mut taken);
            }
        }
        if let [one] = taken[..]
            && self.stones[self.chain[point] as usize] == 1
            && self.liberties[self.chain[point] as usize] == 1
        {
            self.ko = one;
        }
    }

    fn merge(&mut self, a: usize, b: usize) {
        let (mut a, mut b) = (self.chain[a], self.chain[b]);
        if self.stones[a as usize] < self.stones[b as usize] {
            std::mem::swap(&mut a, &mut b);
        }
        let (liberties, stones) = (self.liberties[b as usize], self.stones[b as usize]);
        self.liberties[a as usize] += liberties;
        self.stones[a as usize] += stones;
        let mut at = b;
        loop {
            self.chain[at as usize] = a;
            at = self.next[at as usize];
            if at == b {
                break;
            }
        }
        self.next.swap(a as usize, b as usize);
    }

    fn remove(&mut self, point: usize, taken: &mut Vec<usize>) {
        let start = self.chain[point] as usize;
        let mut at = start;
        loop {
            self.points[at] = EMPTY;
            self.vacate(at);
            taken.push(at);
            for by in AROUND {
                let n = step(at, by);
                if matches!(self.points[n], 1 | 2) {
                    self.liberties[self.chain[n] as usize] += 1;
                }
            }
            at = self.next[at] as usize;
            if at == start {
                break;
            }
        }
    }

    /// A random move that is legal and fills no eye.
    pub fn random_move(&self, random: &mut Random) -> usize {
        let start = random.below(self.empties.max(1) as u64) as usize;
        for n in 0..self.empties {
            let at = start + n;
            let at = if at >= self.empties {
                at - self.empties
            } else {
                at
            };
            let point = self.empty[at] as usize;
            if !self.is_eye(point, self.to_move) && self.is_legal(point, self.to_move) {
                return point;
            }
        }
        PASS
    }

    pub fn area_points(&self) -> u32 {
        (self.edge * self.edge) as u32
    }

    /// Stones and eyes of black, without those of white.
    pub fn area(&self) -> i32 {
        let mut area = 0;
        for y in 1..=self.edge {
            for x in 1..=self.edge {
                let point = y * WIDTH + x;
                area += match self.points[point] {
                    1 => 1,
                    2 => -1,
                    _ => {
                        let beside =
                            |c: u8| AROUND.iter().any(|b| self.points[step(point, *b)] == c);
                        i32::from(beside(1) && !beside(2)) - i32::from(beside(2) && !beside(1))
                    }
                };
            }
        }
        area
    }

    /// Whether chains and liberties are what the stones make them.
    pub fn check(&self) -> Result<(), String> {
        let mut liberties = [0u16; SIZE];
        let mut stones = [0u16; SIZE];
        for y in 1..=self.edge {
            for x in 1..=self.edge {
                let point = y * WIDTH + x;
                if self.points[point] == EMPTY {
                    continue;
                }
                let chain = self.chain[point] as usize;
                stones[chain] += 1;
                for by in AROUND {
                    let n = step(point, by);
                    liberties[chain] += u16::from(self.points[n] == EMPTY);
                    if self.points[n] == self.points[point] && self.chain[n] as usize != chain {
                        return Err(format!(
                            "{} and {} are two chains",
                            self.name(point),
                            self.name(n)
                        ));
                    }
                }
            }
        }
        for (chain, count) in stones.iter().enumerate() {
            let right = *count == self.stones[chain] && liberties[chain] == self.liberties[chain];
            if *count > 0 && (!right || liberties[chain] == 0) {
                return Err(format!(
                    "the chain at {} has {count} stones and {} liberties, not {} and {}",
                    self.name(chain),
                    liberties[chain],
                    self.stones[chain],
                    self.liberties[chain]
                ));
            }
        }
        Ok(())
    }
}
