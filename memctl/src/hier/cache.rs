//! A set-associative array: which lines are there, which are dirty, which goes next. What lines mean, and what happens to a
//! victim, is for [`super`] to know.
//!
//! Invariants:
//! 1. A line is in at most one way of its set.
//! 2. A way that is there only to fill a chunk holds [`PAD`], which no line matches and nothing frees.
//! 3. Order changes by touches alone: a way that loses its line keeps its place.

use crate::model::{self, Policy};

pub(super) const VALID: u32 = 1;
pub(super) const DIRTY: u32 = 2;
pub(super) const TAG_SHIFT: u32 = 2;
const PAD: u32 = u32::MAX;
/// Ways of a [`Ways`].
pub(super) const CHUNK: usize = 8;

/// What is in each of eight ways of a set: a tag, whether it is valid, and dirty. Those of sixteen are in one of the host's lines.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Ways([u32; CHUNK]);

/// Under [`Order::Ranks`], a place in the order of the set for each of eight ways, 0 the newest; padding has 255.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Ranks([u8; CHUNK]);

/// Tags are below this.
pub(super) const TAGS: u64 = (1 << (32 - TAG_SHIFT)) - 1;
/// Ways a set may have: with a bit for each, and with a rank for each.
pub(super) const MOST_BITS: u32 = 64;
pub(super) const MOST_RANKS: u32 = 255;

/// Whether a way with this word has a line.
#[inline]
pub(super) const fn is_valid(word: u32) -> bool {
    word & VALID != 0
}

/// Whether it has a dirty one.
#[inline]
pub(super) const fn is_dirty(word: u32) -> bool {
    word & DIRTY != 0
}

/// The word of a clean line, or of the same line dirty.
#[inline]
pub(super) const fn with_dirty(word: u32, dirty: bool) -> u32 {
    word | if dirty { DIRTY } else { 0 }
}

/// Which of the ways of a set equal `want` in the bits of `mask`.
#[inline(always)]
fn matches_of<const N: usize>(set: &[Ways; N], want: u32, mask: u32) -> u32 {
    match &set[..] {
        [low, high] => super::host::matches_16([&low.0, &high.0], want, mask),
        _ => {
            let mut bits = 0;
            // By index: that is unrolled.
            #[allow(clippy::needless_range_loop)]
            for n in 0..N {
                bits |= super::host::matches(&set[n].0, want, mask) << (n * CHUNK);
            }
            bits
        }
    }
}

/// A way of a set becomes the newest.
#[inline(always)]
fn renew<const N: usize>(ranks: &mut [Ranks; N], way: usize) {
    let (chunk, at) = (way / CHUNK % N, way % CHUNK);
    let mine = ranks[chunk].0[at];
    #[allow(clippy::needless_range_loop)] // as above
    for n in 0..N {
        ranks[n].age(mine);
    }
    ranks[chunk].0[at] = 0;
}

/// The slot of the one bit's way, of a cache of 8 ways at most.
#[inline]
pub(super) fn slot_of(set: usize, hit: u32) -> usize {
    set * CHUNK + hit.trailing_zeros() as usize % CHUNK
}

/// What a set's ways are ordered by.
enum Order {
    /// Stamps that the owner of the array keeps.
    Stamps,
    /// A permutation a set, in its [`Ranks`]. `on_hit`: LRU, else FIFO.
    Ranks { on_hit: bool },
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

/// A way for a line that is not there, and its word.
#[derive(Clone, Copy)]
pub(super) struct Room {
    set: usize,
    way: usize,
    word: u32,
}

/// The array.
pub(super) struct Cache {
    sets: Box<[Ways]>,
    ranks: Box<[Ranks]>,
    ways: usize,
    /// Ways and padding of a set: a multiple of [`CHUNK`].
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
        let firsts = || (0..stride).step_by(CHUNK);
        let way = |first: usize, w: usize| (first + w < ways).then_some(first + w);
        let words = |first| Ways(std::array::from_fn(|w| way(first, w).map_or(PAD, |_| 0)));
        let ranks = |first| {
            let rank = |w| way(first, w).map_or(u8::MAX, |w| w as u8);
            Ranks(std::array::from_fn(rank))
        };
        let order = match cfg.policy {
            Policy::Lru if stamps => Order::Stamps,
            Policy::Lru | Policy::Fifo => Order::Ranks {
                on_hit: cfg.policy == Policy::Lru,
            },
            Policy::Nru => Order::Nru(vec![0; sets].into()),
            Policy::TreePlru => Order::Plru {
                nodes: vec![0; sets].into(),
                paths: (0..ways).map(|w| path(ways, w)).collect(),
            },
            Policy::Random => Order::Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(1 + instance)),
        };
        Self {
            sets: firsts().map(words).collect::<Vec<_>>().repeat(sets).into(),
            ranks: firsts().map(ranks).collect::<Vec<_>>().repeat(sets).into(),
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
        self.sets.len() * CHUNK
    }

    #[inline]
    fn slot(&self, slot: usize) -> &u32 {
        &self.sets[slot / CHUNK].0[slot % CHUNK]
    }

    #[inline]
    fn slot_mut(&mut self, slot: usize) -> &mut u32 {
        &mut self.sets[slot / CHUNK].0[slot % CHUNK]
    }

    /// The ways of the set whose first slot is `base`.
    #[inline]
    fn chunks(&self, base: usize) -> &[Ways] {
        &self.sets[base / CHUNK..][..self.stride / CHUNK]
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
        let (set, want) = self.at(line);
        if self.is_of_8() {
            let hit = self.sets[set].find(want);
            return (hit != 0).then(|| slot_of(set, hit));
        }
        self.scan(set * self.stride, want, !DIRTY)
    }

    /// The lowest slot of the set at `base` whose word equals `want` in the bits of `mask`.
    #[inline]
    fn scan(&self, base: usize, want: u32, mask: u32) -> Option<usize> {
        for (n, chunk) in self.chunks(base).iter().enumerate() {
            let hit = super::host::matches(&chunk.0, want, mask);
            if hit != 0 {
                return Some(base + n * CHUNK + hit.trailing_zeros() as usize);
            }
        }
        None
    }

    /// The set of a line and the word that its way has (and may be dirty).
    #[inline]
    pub(super) fn at(&self, line: u64) -> (usize, u32) {
        (self.set(line), self.word(line))
    }

    /// The ways of a set; for a cache of 8 ways at most.
    #[inline]
    pub(super) fn ways(&self, set: usize) -> &Ways {
        &self.sets[set]
    }

    /// Whether a set is one [`Ways`].
    pub(super) fn is_of_8(&self) -> bool {
        self.stride == CHUNK
    }

    /// Whether its order is that of last uses, as ranks.
    pub(super) fn is_ranked(&self) -> bool {
        matches!(self.order, Order::Ranks { on_hit: true })
    }

    /// The arrays, and the mask and the bits that make a set and a tag of a line's number, for who does in other words what this does.
    pub(super) fn parts(&mut self) -> (*mut Ways, *mut Ranks, u64, u64) {
        let (sets, ranks) = (self.sets.as_mut_ptr(), self.ranks.as_mut_ptr());
        (sets, ranks, self.set_mask, self.set_bits.into())
    }

    /// Ways and padding of a set.
    pub(super) fn width(&self) -> usize {
        self.stride
    }

    /// Whether the owner of the array keeps its order, as stamps.
    pub(super) fn has_stamps(&self) -> bool {
        matches!(self.order, Order::Stamps)
    }

    /// The line of a way of `set` whose word is this.
    #[inline]
    pub(super) fn line_of(&self, word: u32, set: usize) -> u64 {
        u64::from(word >> TAG_SHIFT) << self.set_bits | set as u64
    }

    /// The word of a way of a set, to put another there as [`Cache::insert`] does where the order is the owner's; for a cache of 8 ways at
    /// most.
    #[inline]
    pub(super) fn way_mut(&mut self, set: usize, way: usize) -> &mut u32 {
        &mut self.sets[set].0[way % CHUNK]
    }

    /// Takes out what is in a slot of a set.
    #[inline]
    pub(super) fn take(&mut self, slot: usize, set: usize) -> Option<Victim> {
        let word = std::mem::take(self.slot_mut(slot));
        is_valid(word).then(|| Victim {
            line: self.line_of(word, set),
            dirty: is_dirty(word),
        })
    }

    /// As [`Cache::hit`], for a cache of 8 ways at most.
    #[inline(always)] // in the short way, and small
    pub(super) fn hit_way(&mut self, set: usize, way: usize, line: u64) {
        match self.order {
            Order::Ranks { on_hit: true } => self.ranks[set].renew(way),
            Order::Ranks { .. } => {}
            _ => self.hit(set * CHUNK + way, line),
        }
    }

    /// Whether a slot's line is dirty.
    #[inline]
    pub(super) fn dirty(&self, slot: usize) -> bool {
        self.slot(slot) & DIRTY != 0
    }

    #[inline]
    pub(super) fn set_dirty(&mut self, slot: usize, dirty: bool) {
        if dirty {
            *self.slot_mut(slot) |= DIRTY;
        } else {
            *self.slot_mut(slot) &= !DIRTY;
        }
    }

    /// Takes a slot's line out.
    #[inline]
    pub(super) fn clear(&mut self, slot: usize) {
        *self.slot_mut(slot) = 0;
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
        let (set, base) = (self.set(line), self.base(line));
        if let Some(free) = self.scan(base, 0, VALID) {
            return (free, None);
        }
        let slot = base + self.victim(set, base, oldest);
        (slot, self.take(slot, set))
    }

    // ---- of caches whose sets are `N` [`Ways`], in LRU order of ranks ----

    #[inline(always)] // small, as all of these
    fn ways_of<const N: usize>(&self, set: usize) -> &[Ways; N] {
        &self.sets.as_chunks().0[set]
    }

    /// As [`Cache::find`], whatever the order.
    #[inline(always)]
    pub(super) fn find_in<const N: usize>(&self, line: u64) -> Option<usize> {
        let (set, want) = self.at(line);
        let hit = matches_of(self.ways_of::<N>(set), want, !DIRTY);
        (hit != 0).then(|| set * N * CHUNK + hit.trailing_zeros() as usize)
    }

    /// Asks the host for the line's set, of whose ways one of the host's lines has 16.
    #[inline(always)]
    pub(super) fn ask_for<const N: usize>(&self, line: u64) {
        let set = self.set(line);
        super::host::prefetch(&raw const *self.ways_of::<N>(set));
        super::host::prefetch_write(&raw const self.ranks.as_chunks::<N>().0[set]);
    }

    /// Where a line goes that is not there, as [`Cache::make_room`] says, which changes nothing yet.
    #[inline(always)]
    pub(super) fn room<const N: usize>(&self, line: u64) -> Room {
        let set = self.set(line);
        let ways = self.ways_of::<N>(set);
        let ranks: &[Ranks; N] = &self.ranks.as_chunks().0[set];
        let last = self.ways as u8 - 1;
        let mut oldest = 0;
        #[allow(clippy::needless_range_loop)] // as below
        for n in 0..N {
            oldest |= super::host::equal(&ranks[n].0, last) << (n * CHUNK);
        }
        let free = matches_of(ways, 0, VALID);
        let of = if free != 0 { free } else { oldest };
        let way = of.trailing_zeros() as usize % (N * CHUNK);
        Room {
            set,
            way,
            word: ways[way / CHUNK].0[way % CHUNK],
        }
    }

    /// As [`Cache::hit`].
    #[inline(always)]
    pub(super) fn hit_in<const N: usize>(&mut self, slot: usize) {
        let (set, way) = (slot / (N * CHUNK), slot % (N * CHUNK));
        renew(&mut self.ranks.as_chunks_mut::<N>().0[set], way);
    }

    /// Who leaves for it, and whether dirty.
    #[inline(always)]
    pub(super) fn leaves(&self, r: Room) -> Option<(u64, bool)> {
        is_valid(r.word).then(|| (self.line_of(r.word, r.set), is_dirty(r.word)))
    }

    /// Puts the line, clean, where there is room, in the place of who is there.
    #[inline(always)]
    pub(super) fn put<const N: usize>(&mut self, r: Room, line: u64) {
        let word = self.word(line);
        let ways: &mut [Ways; N] = &mut self.sets.as_chunks_mut().0[r.set];
        ways[r.way / CHUNK % N].0[r.way % CHUNK] = word;
        renew(&mut self.ranks.as_chunks_mut::<N>().0[r.set], r.way);
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
            Order::Ranks { .. } => {
                let last = (ways - 1) as u8;
                let chunks = &self.ranks[base / CHUNK..][..self.stride / CHUNK];
                // Padding is 255: with 256 ways it would be a rank, and there are fewer.
                let found = chunks.iter().enumerate();
                let mut found = found.filter_map(|(n, c)| Some(n * CHUNK + c.with_rank(last)?));
                found.next().unwrap_or(0)
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
        debug_assert!(self.slot(slot) & VALID == 0, "a slot that is free");
        *self.slot_mut(slot) = with_dirty(self.word(line), dirty);
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
            Order::Ranks { on_hit } => {
                if !fill && !*on_hit {
                    return;
                }
                if self.stride == CHUNK {
                    self.ranks[set].renew(way);
                } else {
                    let first = slot / CHUNK - way / CHUNK;
                    let set = &mut self.ranks[first..][..self.stride / CHUNK];
                    let mine = set[way / CHUNK].0[way % CHUNK];
                    for chunk in &mut *set {
                        chunk.age(mine);
                    }
                    set[way / CHUNK].0[way % CHUNK] = 0;
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
            Order::Ranks { on_hit } => !on_hit || self.ranks[slot / CHUNK].0[slot % CHUNK] == 0,
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
        for ways in self.chunks(self.base(line)).iter().step_by(2) {
            super::host::prefetch(&raw const *ways);
        }
    }

    /// And for what a hit or a fill changes.
    #[inline]
    pub(super) fn prefetch_order(&self, line: u64) {
        if let Order::Ranks { .. } = self.order {
            super::host::prefetch_write(&raw const self.ranks[self.base(line) / CHUNK]);
        }
    }

    /// The line that a fill of this one would take the place of, where that is easy to say.
    #[inline]
    pub(super) fn next_victim(&self, line: u64) -> Option<u64> {
        let set = self.set(line);
        if !self.is_of_8() || !matches!(self.order, Order::Ranks { .. }) {
            return None;
        }
        let way = self.ranks[set].with_rank(self.ways as u8 - 1)?;
        let word = self.sets[set].word(way);
        is_valid(word).then(|| self.line_of(word, set))
    }

    /// The slots that have lines, with these and their dirtiness.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, u64, bool)> + '_ {
        let words = self.sets.iter().flat_map(|c| c.0);
        words.enumerate().filter_map(|(slot, t)| {
            let set = (slot / self.stride) as u64;
            let line = u64::from(t >> TAG_SHIFT) << self.set_bits | set;
            (is_valid(t) && slot % self.stride < self.ways).then_some((slot, line, is_dirty(t)))
        })
    }
}

impl Ways {
    /// Which of them have the line of this word, as bits: one or none.
    #[inline]
    pub(super) fn find(&self, word: u32) -> u32 {
        super::host::matches(&self.0, word, !DIRTY)
    }

    /// Which of them are free.
    #[inline]
    pub(super) fn free(&self) -> u32 {
        super::host::matches(&self.0, 0, VALID)
    }

    #[inline]
    pub(super) fn word(&self, way: usize) -> u32 {
        self.0[way % CHUNK]
    }
}

impl Ranks {
    /// The lowest way with this rank.
    #[inline]
    fn with_rank(&self, rank: u8) -> Option<usize> {
        const ONES: u64 = u64::MAX / 255;
        let differ = u64::from_le_bytes(self.0) ^ (ONES * u64::from(rank));
        // The lowest bit is that of the lowest byte that is 0.
        let none = differ.wrapping_sub(ONES) & !differ & (ONES << 7);
        (none != 0).then(|| none.trailing_zeros() as usize / 8)
    }

    /// Those that are newer than rank `mine` become one older.
    #[inline]
    fn age(&mut self, mine: u8) {
        super::host::age(&mut self.0, mine);
    }

    /// This way becomes the newest; for a set that is one of these.
    #[inline]
    fn renew(&mut self, way: usize) {
        self.age(self.0[way % CHUNK]);
        self.0[way % CHUNK] = 0;
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
