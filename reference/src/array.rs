//! A set-associative array with a replacement policy: what every cache and every TLB here is made of.
//!
//! A set has room for what each policy could want to know.

use sevlab_memctl::model::Policy;

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its set.
    pub set: usize,
    /// Its way.
    pub way: usize,
}

/// One way of a set.
#[derive(Clone, Debug)]
struct Way<V> {
    /// Key and value; `None`: the way is invalid.
    entry: Option<(u64, V)>,
    /// LRU: when it was used last.
    used: u64,
    /// FIFO: its number among all fills of this array.
    filled: u64,
    /// NRU: it was used.
    recent: bool,
}

#[derive(Clone, Debug)]
struct Set<V> {
    ways: Vec<Way<V>>,
    /// Tree-PLRU: `tree[n]` for node n (the root is 1, the children of n are 2n and 2n+1): true if the victim is to be
    /// looked for in the upper half.
    tree: Vec<bool>,
}

/// The array.
#[derive(Clone, Debug)]
pub struct Array<V> {
    sets: Vec<Set<V>>,
    policy: Policy,
    fills: u64,
    sequence: Sequence,
}

/// The pseudo-random sequence of [`Policy::Random`]: xorshift64*, of whose outputs the upper 32 bits count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sequence {
    /// Of a cache: the way is a fraction of the output's range.
    Cache(u64),
    /// Of a TLB: the way is a remainder.
    Tlb(u64),
}

impl Sequence {
    /// That of the cache of this number: 1 L1I, 2 L1D, 3 L2, 4 LLC.
    #[must_use]
    pub fn of_cache(number: u64) -> Self {
        Self::Cache(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number))
    }
    /// That of the TLB of this number: 1 and 2 first level of fetches and data, 3 and 4 second.
    #[must_use]
    pub fn of_tlb(number: u64) -> Self {
        Self::Tlb(number)
    }
    /// The next way of so many.
    fn next(&mut self, ways: usize) -> usize {
        let (Self::Cache(x) | Self::Tlb(x)) = self;
        *x ^= *x >> 12;
        *x ^= *x << 25;
        *x ^= *x >> 27;
        let r = x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let way = match self {
            Self::Cache(_) => (r * ways as u64) >> 32,
            Self::Tlb(_) => r % ways as u64,
        };
        way as usize
    }
}

impl<V> Array<V> {
    /// An empty array.
    #[must_use]
    pub fn new(sets: usize, ways: usize, policy: Policy, sequence: Sequence) -> Self {
        let way = || Way {
            entry: None,
            used: 0,
            filled: 0,
            recent: false,
        };
        let set = || Set {
            ways: (0..ways).map(|_| way()).collect(),
            tree: vec![false; ways.max(2)],
        };
        Self {
            sets: (0..sets).map(|_| set()).collect(),
            policy,
            fills: 0,
            sequence,
        }
    }

    /// Where `key` is, if its set, the one of number `index` modulo the number of sets, has it.
    #[must_use]
    pub fn find(&self, index: u64, key: u64) -> Option<Place> {
        let set = (index % self.sets.len() as u64) as usize;
        for (way, w) in self.sets[set].ways.iter().enumerate() {
            if w.entry.as_ref().is_some_and(|(k, _)| *k == key) {
                return Some(Place { set, way });
            }
        }
        None
    }

    /// The value there.
    ///
    /// # Panics
    /// There is none.
    pub fn value(&mut self, at: Place) -> &mut V {
        match &mut self.sets[at.set].ways[at.way].entry {
            Some((_, value)) => value,
            None => panic!("no entry at {at:?}"),
        }
    }

    /// The entry there is used at `time`.
    pub fn touch(&mut self, at: Place, time: u64) {
        let set = &mut self.sets[at.set];
        match self.policy {
            Policy::Lru => set.ways[at.way].used = time,
            Policy::Nru => {
                set.ways[at.way].recent = true;
                if set.ways.iter().all(|w| w.recent) {
                    for (way, w) in set.ways.iter_mut().enumerate() {
                        w.recent = way == at.way;
                    }
                }
            }
            Policy::TreePlru => {
                // Each node on the way down points to the half that this way is not in.
                let (mut node, mut low, mut high) = (1, 0, set.ways.len());
                while high - low > 1 {
                    let middle = (low + high) / 2;
                    let upper = at.way >= middle;
                    set.tree[node] = !upper;
                    node = 2 * node + usize::from(upper);
                    if upper {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
            }
            Policy::Fifo | Policy::Random => {}
        }
    }

    /// Takes the entry that has to go for a new one in the set of number `index`: nothing if a way is invalid.
    /// The second value is the way that is now free.
    pub fn make_room(&mut self, index: u64) -> (Option<(u64, V)>, Place) {
        let set = (index % self.sets.len() as u64) as usize;
        let way = match self.sets[set].ways.iter().position(|w| w.entry.is_none()) {
            Some(way) => way,
            None => self.victim(set),
        };
        (self.sets[set].ways[way].entry.take(), Place { set, way })
    }

    fn victim(&mut self, set: usize) -> usize {
        if self.policy == Policy::Random {
            return self.sequence.next(self.sets[set].ways.len());
        }
        let set = &self.sets[set];
        // The lowest of several that are equal, as `min_by_key` has it.
        let least = |time: fn(&Way<V>) -> u64| {
            let ways = set.ways.iter().enumerate();
            ways.min_by_key(|(_, w)| time(w)).map_or(0, |(way, _)| way)
        };
        match self.policy {
            Policy::Lru => least(|w| w.used),
            Policy::Fifo => least(|w| w.filled),
            Policy::Nru => set.ways.iter().position(|w| !w.recent).unwrap_or(0),
            Policy::TreePlru => {
                let (mut node, mut low, mut high) = (1, 0, set.ways.len());
                while high - low > 1 {
                    let middle = (low + high) / 2;
                    if set.tree[node] {
                        low = middle;
                        node = 2 * node + 1;
                    } else {
                        high = middle;
                        node *= 2;
                    }
                }
                low
            }
            // Above.
            Policy::Random => 0,
        }
    }

    /// Puts an entry into a way that [`Array::make_room`] freed, and uses it at `time`.
    pub fn fill(&mut self, at: Place, key: u64, value: V, time: u64) {
        self.fills += 1;
        let way = &mut self.sets[at.set].ways[at.way];
        way.entry = Some((key, value));
        way.filled = self.fills;
        self.touch(at, time);
    }

    /// Makes room and fills; returns what had to go.
    pub fn insert(&mut self, index: u64, key: u64, value: V, time: u64) -> Option<(u64, V)> {
        let (gone, at) = self.make_room(index);
        self.fill(at, key, value, time);
        gone
    }

    /// Takes the entry there out. Its way keeps its place in the order.
    pub fn take(&mut self, at: Place) -> Option<(u64, V)> {
        self.sets[at.set].ways[at.way].entry.take()
    }

    /// Takes the entry there out; its way counts as not used.
    pub fn remove(&mut self, at: Place) -> Option<(u64, V)> {
        self.sets[at.set].ways[at.way].recent = false;
        self.take(at)
    }

    /// Takes all entries out; no way counts as used.
    pub fn clear(&mut self) {
        for set in &mut self.sets {
            for way in &mut set.ways {
                way.entry = None;
                way.recent = false;
            }
        }
    }

    /// The keys in a set, by way.
    #[must_use]
    pub fn keys(&self, set: usize) -> Vec<Option<u64>> {
        let ways = self.sets[set].ways.iter();
        ways.map(|w| w.entry.as_ref().map(|(k, _)| *k)).collect()
    }
}
