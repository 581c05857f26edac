//! A set-associative array: which lines are there, which are dirty, which goes next. What lines mean, and what happens to a
//! victim, is for [`super`] to know.
//!
//! Invariants:
//! 1. A line is in at most one way of its set.
//! 2. A way that is there only to fill a chunk holds [`PAD`], which no line matches and nothing frees.
//! 3. Order changes by touches alone: a way that loses its line keeps its place.

use crate::model::{self, Policy};

const VALID: u32 = 1;
const DIRTY: u32 = 2;
const TAG_SHIFT: u32 = 2;
const PAD: u32 = u32::MAX;
/// Ways that are compared at a time.
pub(super) const CHUNK: usize = 8;
/// Ranks that are aged at a time.
const RANKS: usize = 16;

/// Tags are below this.
pub(super) const TAGS: u64 = (1 << (32 - TAG_SHIFT)) - 1;
/// Ways a set may have: with a bit for each, and with a rank for each.
pub(super) const MOST_BITS: u32 = 64;
pub(super) const MOST_RANKS: u32 = 255;

/// What a set's ways are ordered by.
enum Order {
    /// Stamps that the owner of the array keeps.
    Stamps,
    /// A permutation a set, 0 the newest; padded with 255. `on_hit`: LRU, else FIFO.
    Ranks {
        ranks: Box<[u8]>,
        stride: usize,
        on_hit: bool,
    },
    /// A bit a way, a word a set.
    Nru(Box<[u64]>),
    /// The inner nodes of a tree, a word a set; and for each way the nodes on its path, as a mask and as a touch leaves them.
    Plru {
        nodes: Box<[u64]>,
        paths: Box<[(u64, u64)]>,
    },
    /// State of the generator.
    Random(u64),
}

/// A line that had to go.
#[derive(Clone, Copy)]
pub(super) struct Victim {
    pub line: u64,
    pub dirty: bool,
}

/// The array.
pub(super) struct Cache {
    tags: Box<[u32]>,
    ways: usize,
    /// Ways and padding.
    stride: usize,
    set_mask: u64,
    set_bits: u32,
    order: Order,
}

impl Cache {
    /// An empty array of a checked geometry. `stamps`: LRU order is the owner's to keep. `instance`: of the random sequence.
    pub(super) fn new(cfg: &model::Cache, stamps: bool, instance: u64) -> Self {
        let (ways, sets) = (cfg.ways as usize, cfg.sets() as usize);
        let stride = ways.next_multiple_of(CHUNK);
        let mut tags = vec![0; sets * stride];
        if stride != ways {
            for set in tags.chunks_mut(stride) {
                set[ways..].fill(PAD);
            }
        }
        let order = match cfg.policy {
            Policy::Lru if stamps => Order::Stamps,
            Policy::Lru | Policy::Fifo => {
                let stride = ways.next_multiple_of(RANKS);
                let mut ranks = vec![u8::MAX; sets * stride];
                for set in ranks.chunks_mut(stride) {
                    for (w, r) in set[..ways].iter_mut().enumerate() {
                        *r = w as u8;
                    }
                }
                Order::Ranks {
                    ranks: ranks.into(),
                    stride,
                    on_hit: cfg.policy == Policy::Lru,
                }
            }
            Policy::Nru => Order::Nru(vec![0; sets].into()),
            Policy::TreePlru => Order::Plru {
                nodes: vec![0; sets].into(),
                paths: (0..ways).map(|w| path(ways, w)).collect(),
            },
            Policy::Random => Order::Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(1 + instance)),
        };
        Self {
            tags: tags.into(),
            ways,
            stride,
            set_mask: sets as u64 - 1,
            set_bits: sets.trailing_zeros(),
            order,
        }
    }

    #[inline]
    fn set(&self, line: u64) -> usize {
        (line & self.set_mask) as usize
    }

    #[inline]
    fn base(&self, line: u64) -> usize {
        self.set(line) * self.stride
    }

    #[inline]
    fn word(&self, line: u64) -> u32 {
        ((line >> self.set_bits) as u32) << TAG_SHIFT | VALID
    }

    /// Ways that a slot number may name, padding included.
    pub(super) fn slots(&self) -> usize {
        self.tags.len()
    }

    /// The slots of a line's set.
    #[inline]
    pub(super) fn slots_of(&self, line: u64) -> std::ops::Range<usize> {
        let base = self.base(line);
        base..base + self.ways
    }

    /// Where the line is.
    #[inline]
    pub(super) fn find(&self, line: u64) -> Option<usize> {
        let (base, want) = (self.base(line), self.word(line));
        self.scan(base, want, !DIRTY)
    }

    /// The ways of a line's set, if there are 8 at most.
    #[inline]
    fn set_of_8(&self, line: u64) -> Option<&[u32; CHUNK]> {
        if self.stride != CHUNK {
            return None;
        }
        self.tags.as_chunks::<CHUNK>().0.get(self.set(line))
    }

    /// [`Cache::find`] in sets of 8 ways at most; nothing is found in others.
    #[inline]
    pub(super) fn find_in_8(&self, line: u64) -> Option<usize> {
        let hit = super::host::matches(self.set_of_8(line)?, self.word(line), !DIRTY);
        (hit != 0).then(|| self.set(line) * CHUNK + hit.trailing_zeros() as usize)
    }

    /// The lowest slot of the set at `base` whose word equals `want` in the bits of `mask`.
    #[inline]
    fn scan(&self, base: usize, want: u32, mask: u32) -> Option<usize> {
        let set = &self.tags[base..base + self.stride];
        for (n, chunk) in set.as_chunks::<CHUNK>().0.iter().enumerate() {
            let hit = super::host::matches(chunk, want, mask);
            if hit != 0 {
                return Some(base + n * CHUNK + hit.trailing_zeros() as usize);
            }
        }
        None
    }

    /// Whether a slot's line is dirty.
    #[inline]
    pub(super) fn dirty(&self, slot: usize) -> bool {
        self.tags[slot] & DIRTY != 0
    }

    #[inline]
    pub(super) fn set_dirty(&mut self, slot: usize, dirty: bool) {
        if dirty {
            self.tags[slot] |= DIRTY;
        } else {
            self.tags[slot] &= !DIRTY;
        }
    }

    /// Takes a slot's line out.
    #[inline]
    pub(super) fn clear(&mut self, slot: usize) {
        self.tags[slot] = 0;
    }

    /// Takes the line out, if it is there; the result says whether it was, and dirty.
    #[inline]
    pub(super) fn remove(&mut self, line: u64) -> Option<bool> {
        let slot = self.find(line)?;
        let dirty = self.dirty(slot);
        self.clear(slot);
        Some(dirty)
    }

    /// A free slot for the line, and who had to leave it: the lowest way without a line, or the policy's victim; with
    /// [`Policy::Lru`] of stamps the way that `oldest` finds in the set whose first slot it is given.
    #[inline]
    pub(super) fn make_room(
        &mut self,
        line: u64,
        oldest: impl FnMut(usize, usize) -> usize,
    ) -> (usize, Option<Victim>) {
        let base = self.base(line);
        if let Some(free) = self.scan(base, 0, VALID) {
            return (free, None);
        }
        let way = self.victim(self.set(line), base, oldest);
        let slot = base + way;
        let victim = self.in_slot(slot, line);
        self.tags[slot] = 0;
        (slot, Some(victim))
    }

    /// What is in a slot of `line`'s set.
    #[inline]
    fn in_slot(&self, slot: usize, line: u64) -> Victim {
        let word = self.tags[slot];
        Victim {
            line: u64::from(word >> TAG_SHIFT) << self.set_bits | line & self.set_mask,
            dirty: word & DIRTY != 0,
        }
    }

    /// What [`Cache::make_room`] would say, with nothing changed, of an array whose order is the owner's and whose sets have 8 ways
    /// at most; `None` of another. `oldest` is given the set's number.
    #[inline]
    pub(super) fn room_of_8(
        &self,
        line: u64,
        oldest: impl FnOnce(usize) -> usize,
    ) -> Option<(usize, Option<Victim>)> {
        if !matches!(self.order, Order::Stamps) {
            return None;
        }
        let set = self.set(line);
        let words = self.set_of_8(line)?;
        let free = super::host::matches(words, 0, VALID);
        if free != 0 {
            return Some((set * CHUNK + free.trailing_zeros() as usize, None));
        }
        let slot = set * CHUNK + oldest(set) % CHUNK;
        Some((slot, Some(self.in_slot(slot, line))))
    }

    /// Which slots are there only to fill a chunk.
    pub(super) fn is_padding(&self, slot: usize) -> bool {
        slot % self.stride >= self.ways
    }

    #[inline]
    fn victim(
        &mut self,
        set: usize,
        base: usize,
        mut oldest: impl FnMut(usize, usize) -> usize,
    ) -> usize {
        let ways = self.ways;
        match &mut self.order {
            Order::Stamps => oldest(base, self.stride),
            Order::Ranks { ranks, stride, .. } => {
                let ranks = &ranks[set * *stride..][..*stride];
                let last = (ways - 1) as u8;
                let mut chunks = ranks.as_chunks::<RANKS>().0.iter().enumerate();
                let found = chunks.find_map(|(n, chunk)| {
                    let hit = super::host::matches_bytes(chunk, last);
                    (hit != 0).then(|| n * RANKS + hit.trailing_zeros() as usize)
                });
                // Padding is 255: with 256 ways it would be a rank, and there are fewer.
                found.unwrap_or(0)
            }
            Order::Nru(bits) => match bits[set].trailing_ones() as usize {
                w if w < ways => w,
                _ => 0,
            },
            Order::Plru { nodes, .. } => {
                let nodes = nodes[set];
                let mut n = 1;
                while n < ways {
                    n = 2 * n + (nodes >> n & 1) as usize;
                }
                n - ways
            }
            Order::Random(state) => {
                let s = state;
                *s ^= *s >> 12;
                *s ^= *s << 25;
                *s ^= *s >> 27;
                let r = s.wrapping_mul(0x2545_f491_4f6c_dd1d);
                (((r >> 32) * ways as u64) >> 32) as usize
            }
        }
    }

    /// Puts the line into a free slot.
    #[inline]
    pub(super) fn insert(&mut self, slot: usize, line: u64, dirty: bool) {
        debug_assert!(self.tags[slot] & VALID == 0, "a slot that is free");
        self.tags[slot] = self.word(line) | if dirty { DIRTY } else { 0 };
        self.touch(slot, line, true);
    }

    /// Notes a hit.
    #[inline]
    pub(super) fn hit(&mut self, slot: usize, line: u64) {
        self.touch(slot, line, false);
    }

    #[inline(always)] // most of it is a choice by policy
    fn touch(&mut self, slot: usize, line: u64, fill: bool) {
        let (set, way) = (self.set(line), slot - self.base(line));
        let ways = self.ways as u32;
        match &mut self.order {
            Order::Stamps | Order::Random(_) => {}
            Order::Ranks {
                ranks,
                stride,
                on_hit,
            } => {
                if fill || *on_hit {
                    let set = &mut ranks[set * *stride..][..*stride];
                    let mine = set[way];
                    if mine != 0 {
                        for chunk in set.as_chunks_mut::<RANKS>().0 {
                            for r in chunk {
                                *r += u8::from(*r < mine);
                            }
                        }
                        set[way] = 0;
                    }
                }
            }
            Order::Nru(bits) => {
                let b = &mut bits[set];
                *b |= 1 << way;
                if *b == u64::MAX >> (64 - ways) && ways > 1 {
                    *b = 1 << way;
                }
            }
            Order::Plru { nodes, paths } => {
                let (mask, value) = paths[way];
                nodes[set] = nodes[set] & !mask | value;
            }
        }
    }

    /// Whether a touch of one way may make a touch of others no longer change nothing.
    #[inline]
    pub(super) fn touches_matter(&self) -> bool {
        matches!(self.order, Order::Nru(_) | Order::Plru { .. })
    }

    /// Whether a hit on the slot would change nothing but its stamp.
    #[inline]
    pub(super) fn settled(&self, slot: usize, line: u64) -> bool {
        let (set, way) = (self.set(line), slot - self.base(line));
        match &self.order {
            Order::Stamps | Order::Random(_) => true,
            Order::Ranks {
                ranks,
                stride,
                on_hit,
            } => !on_hit || ranks[set * stride + way] == 0,
            Order::Nru(bits) => bits[set] >> way & 1 != 0,
            Order::Plru { nodes, paths } => {
                let (mask, value) = paths[way];
                nodes[set] & mask == value
            }
        }
    }

    /// Asks the host for what a look-up of the line reads.
    #[inline]
    pub(super) fn prefetch(&self, line: u64) {
        let base = self.base(line);
        super::host::prefetch(&raw const self.tags[base]);
        if let Order::Ranks { ranks, stride, .. } = &self.order {
            super::host::prefetch(&raw const ranks[self.set(line) * stride]);
        }
    }

    /// The lines that are there, with their dirtiness.
    pub(super) fn lines(&self) -> impl Iterator<Item = (u64, bool)> + '_ {
        self.tags.iter().enumerate().filter_map(|(slot, &t)| {
            let set = (slot / self.stride) as u64;
            (t & VALID != 0 && slot % self.stride < self.ways).then_some((
                u64::from(t >> TAG_SHIFT) << self.set_bits | set,
                t & DIRTY != 0,
            ))
        })
    }
}

/// The nodes on the way from the root to `way`, as a mask, and pointing away from it: a node's bit says that the victim is in its
/// right half. Node 1 is the root, 2n and 2n + 1 are below n, the ways are below the last ones.
fn path(ways: usize, way: usize) -> (u64, u64) {
    let (mut mask, mut value) = (0, 0);
    let mut n = ways + way;
    while n > 1 {
        let left = n.is_multiple_of(2);
        n /= 2;
        mask |= 1 << n;
        value |= u64::from(left) << n;
    }
    (mask, value)
}
