//! The transposition table: what is known of positions that were searched before.

use crate::board::Move;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Exact,
    Lower,
    Upper,
}

/// 16 bytes, so that four share a line.
#[derive(Clone, Copy)]
pub struct Entry {
    key: u32,
    best: u32,
    score: i32,
    depth: i16,
    bound: Bound,
}

pub struct Table {
    entries: Vec<[Entry; 4]>,
    pub hits: u64,
}

/// What a probe found.
pub struct Known {
    pub best: Move,
    pub score: i32,
    pub depth: i32,
    pub bound: Bound,
}

impl Table {
    pub fn new(mib: usize) -> Self {
        let empty = Entry {
            key: 0,
            best: 0,
            score: 0,
            depth: -1,
            bound: Bound::Upper,
        };
        Self {
            entries: vec![[empty; 4]; mib << 20 >> 6],
            hits: 0,
        }
    }

    fn at(&self, hash: u64) -> (usize, u32) {
        (
            hash as usize & (self.entries.len() - 1),
            (hash >> 32) as u32,
        )
    }

    pub fn get(&mut self, hash: u64) -> Option<Known> {
        let (at, key) = self.at(hash);
        let found = self.entries[at]
            .iter()
            .find(|e| e.key == key && e.depth >= 0)?;
        self.hits += 1;
        Some(Known {
            best: Move(found.best),
            score: found.score,
            depth: i32::from(found.depth),
            bound: found.bound,
        })
    }

    /// Replaces the same position, or the least deep of the four.
    pub fn put(&mut self, hash: u64, best: Move, score: i32, depth: i32, bound: Bound) {
        let (at, key) = self.at(hash);
        let bucket = &mut self.entries[at];
        let mut worst = 0;
        for n in 0..4 {
            if bucket[n].key == key {
                worst = n;
                break;
            }
            if bucket[n].depth < bucket[worst].depth {
                worst = n;
            }
        }
        bucket[worst] = Entry {
            key,
            best: best.0,
            score,
            depth: depth as i16,
            bound,
        };
    }
}
