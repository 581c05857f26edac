//! A cache as lists, every policy spelled out.

use std::collections::HashMap;

use sevlab_memctl::model::{self, Policy};

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub line: u64,
    pub dirty: bool,
    pub used: i64,
    pub filled: i64,
}

pub struct Cache {
    pub sets: Vec<Vec<Option<Entry>>>,
    policy: Policy,
    ways: usize,
    marked: Vec<Vec<bool>>,
    /// For each set and range of ways: whether the right half is the older one.
    right_older: Vec<HashMap<(usize, usize), bool>>,
    random: u64,
    tick: i64,
}

impl Cache {
    pub fn new(c: &model::Cache, instance: u64) -> Self {
        let (sets, ways) = ((c.size / 64 / u64::from(c.ways)) as usize, c.ways as usize);
        Self {
            sets: vec![vec![None; ways]; sets],
            policy: c.policy,
            ways,
            marked: vec![vec![false; ways]; sets],
            right_older: vec![HashMap::new(); sets],
            random: 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(instance + 1),
            tick: 0,
        }
    }

    fn set(&self, line: u64) -> usize {
        (line % self.sets.len() as u64) as usize
    }

    pub fn get(&mut self, line: u64) -> Option<&mut Entry> {
        let set = self.set(line);
        self.sets[set].iter_mut().flatten().find(|e| e.line == line)
    }

    pub fn has(&mut self, line: u64) -> bool {
        self.get(line).is_some()
    }

    pub fn is_dirty(&mut self, line: u64) -> bool {
        self.get(line).is_some_and(|e| e.dirty)
    }

    pub fn remove(&mut self, line: u64) -> Option<bool> {
        let set = self.set(line);
        for e in &mut self.sets[set] {
            if e.is_some_and(|e| e.line == line) {
                return e.take().map(|e| e.dirty);
            }
        }
        None
    }

    /// A hit or a fill; without a stamp the cache counts itself.
    fn touch(&mut self, set: usize, way: usize, stamp: Option<i64>, fill: bool) {
        self.tick += 1;
        let now = stamp.unwrap_or(self.tick);
        let tick = self.tick;
        let e = self.sets[set][way].as_mut().expect("an entry");
        e.used = now;
        if fill {
            e.filled = tick;
        }
        let marked = &mut self.marked[set];
        marked[way] = true;
        if marked.len() > 1 && marked.iter().all(|&m| m) {
            marked.fill(false);
            marked[way] = true;
        }
        if self.policy == Policy::TreePlru {
            let (mut lo, mut hi) = (0, self.ways);
            while hi - lo > 1 {
                let mid = (lo + hi) / 2;
                let in_right = way >= mid;
                self.right_older[set].insert((lo, hi), !in_right);
                if in_right {
                    lo = mid;
                } else {
                    hi = mid;
                }
            }
        }
    }

    pub fn hit(&mut self, line: u64, stamp: Option<i64>) -> bool {
        let set = self.set(line);
        let way = self.sets[set]
            .iter()
            .position(|e| e.is_some_and(|e| e.line == line));
        if let Some(way) = way {
            self.touch(set, way, stamp, false);
        }
        way.is_some()
    }

    /// Makes room: which way, and who left it.
    pub fn room(&mut self, line: u64) -> (usize, Option<Entry>) {
        let set = self.set(line);
        if let Some(way) = self.sets[set].iter().position(Option::is_none) {
            return (way, None);
        }
        let all: Vec<Entry> = self.sets[set].iter().flatten().copied().collect();
        let least = |key: fn(&Entry) -> i64| {
            let min = all.iter().map(key).min().expect("ways");
            all.iter().position(|e| key(e) == min).expect("ways")
        };
        let way = match self.policy {
            Policy::Lru => least(|e| e.used),
            Policy::Fifo => least(|e| e.filled),
            Policy::Nru => self.marked[set].iter().position(|m| !m).unwrap_or(0),
            Policy::TreePlru => {
                let (mut lo, mut hi) = (0, self.ways);
                while hi - lo > 1 {
                    let mid = (lo + hi) / 2;
                    if self.right_older[set].get(&(lo, hi)) == Some(&true) {
                        lo = mid;
                    } else {
                        hi = mid;
                    }
                }
                lo
            }
            Policy::Random => {
                let mut x = self.random;
                x ^= x >> 12;
                x ^= x << 25;
                x ^= x >> 27;
                self.random = x;
                let r = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
                ((r * self.ways as u64) >> 32) as usize
            }
        };
        (way, self.sets[set][way].take())
    }

    pub fn put(&mut self, way: usize, line: u64, dirty: bool, stamp: Option<i64>) {
        let set = self.set(line);
        assert!(self.sets[set][way].is_none());
        self.sets[set][way] = Some(Entry {
            line,
            dirty,
            used: 0,
            filled: 0,
        });
        self.touch(set, way, stamp, true);
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.sets.iter().flatten().flatten().copied()
    }

    /// Another clock begins.
    pub fn rebase(&mut self) {
        let newest = self.entries().map(|e| e.used).max().unwrap_or(0);
        for e in self.sets.iter_mut().flatten().flatten() {
            e.used -= newest + 1;
        }
    }
}
