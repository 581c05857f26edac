//! The model's TLBs. What they hold is what accesses use, so an entry that should have gone and did not is seen by the guest.
//!
//! An entry is of 4 KiB or 2 MiB, in the set of its page's number modulo the number of sets. A hit changes nothing where the
//! policy is FIFO or random, which first-level TLBs therefore have: the filters in front of them are exact then.

use sevlab_memctl::PageSize;
use sevlab_memctl::model::{Policy, Tlb as Config};

const PAGE: u32 = 12;
const LARGE: u32 = 21;
/// No page has this key.
const EMPTY: u64 = u64::MAX;

/// A translation of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// Guest and system physical address of the page.
    pub(crate) gpa: u64,
    pub(crate) spa: u64,
    /// The C-bit.
    pub(crate) private: bool,
    pub(crate) writable: bool,
    pub(crate) executable: bool,
    /// Whose rights these are: CPL 3's.
    pub(crate) user: bool,
    /// Of 2 MiB.
    pub(crate) large: bool,
    /// Size of the nested page, for the RMP check.
    pub(crate) nested: Option<PageSize>,
}

impl Entry {
    /// Bits of an address that are the offset.
    pub(crate) const fn mask(&self) -> u64 {
        if self.large {
            (1 << LARGE) - 1
        } else {
            (1 << PAGE) - 1
        }
    }
}

const NONE: Entry = Entry {
    gpa: 0,
    spa: 0,
    private: false,
    writable: false,
    executable: false,
    user: false,
    large: false,
    nested: None,
};

const fn key(va: u64, large: bool) -> u64 {
    if large {
        va >> LARGE << 1 | 1
    } else {
        va >> PAGE << 1
    }
}

/// Address and size of the page that a key stands for.
const fn page_of(key: u64) -> (u64, bool) {
    if key & 1 != 0 {
        (key >> 1 << LARGE, true)
    } else {
        (key >> 1 << PAGE, false)
    }
}

const NOBODY: u32 = u32::MAX;

/// Entries of a set in the order of their last use (LRU) or of their filling (FIFO).
struct Queues {
    /// By entry: the one before and the one behind it.
    links: Box<[[u32; 2]]>,
    /// By set: the first, which is the oldest, and the last.
    ends: Box<[[u32; 2]]>,
}

impl Queues {
    fn new(sets: usize, ways: usize) -> Self {
        Self {
            links: vec![[NOBODY; 2]; sets * ways].into(),
            ends: vec![[NOBODY; 2]; sets].into(),
        }
    }

    fn take_out(&mut self, set: usize, at: usize) {
        let [before, behind] = self.links[at];
        match before {
            NOBODY => self.ends[set][0] = behind,
            b => self.links[b as usize][1] = behind,
        }
        match behind {
            NOBODY => self.ends[set][1] = before,
            b => self.links[b as usize][0] = before,
        }
    }

    fn append(&mut self, set: usize, at: usize) {
        let last = self.ends[set][1];
        self.links[at] = [last, NOBODY];
        match last {
            NOBODY => self.ends[set][0] = at as u32,
            l => self.links[l as usize][1] = at as u32,
        }
        self.ends[set][1] = at as u32;
    }

    /// The oldest of a set becomes the last.
    fn turn(&mut self, set: usize) -> usize {
        let [first, last] = self.ends[set];
        let second = self.links[first as usize][1];
        if second != NOBODY {
            self.links[second as usize][0] = NOBODY;
            self.links[last as usize][1] = first;
            self.links[first as usize] = [last, NOBODY];
            self.ends[set] = [second, first];
        }
        first as usize
    }
}

/// One TLB.
pub(crate) struct Tlb {
    keys: Box<[u64]>,
    entries: Box<[Entry]>,
    /// LRU and FIFO: of the entries that there are.
    queues: Queues,
    /// NRU's bit.
    used: Box<[bool]>,
    /// Tree-PLRU: a set's tree, node 1 its root; a bit says in which half the next victim is.
    trees: Box<[u64]>,
    /// By set: how many entries it has.
    filled: Box<[u32]>,
    ways: usize,
    sets: u64,
    /// Logarithms of both, where they are powers of two: dividing takes the host long.
    shifts: Option<(u32, u32)>,
    policy: Policy,
    random: u64,
    /// Where keys are: chains of entries by hash.
    heads: Box<[u32]>,
    next: Box<[u32]>,
    /// How many entries are of 2 MiB.
    large: usize,
}

/// A step of xorshift64*: 32 bits of it.
pub(crate) fn next_random(x: &mut u64) -> u64 {
    *x ^= *x >> 12;
    *x ^= *x << 25;
    *x ^= *x >> 27;
    x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
}

impl Tlb {
    /// An empty TLB. `seed` is its number in the random policy.
    pub(crate) fn new(c: &Config, seed: u64) -> Self {
        let entries = c.entries.max(1) as usize;
        let ways = (c.ways.max(1) as usize).min(entries);
        let sets = entries / ways;
        let n = sets * ways;
        Self {
            keys: vec![EMPTY; n].into(),
            entries: vec![NONE; n].into(),
            queues: Queues::new(sets, ways),
            used: vec![false; n].into(),
            trees: vec![0; sets].into(),
            filled: vec![0; sets].into(),
            ways,
            sets: sets as u64,
            shifts: (ways.is_power_of_two() && sets.is_power_of_two())
                .then(|| (ways.trailing_zeros(), sets.trailing_zeros())),
            policy: c.policy,
            random: seed,
            heads: vec![NOBODY; (2 * n).next_power_of_two()].into(),
            next: vec![NOBODY; n].into(),
            large: 0,
        }
    }

    #[inline]
    fn bucket(&self, key: u64) -> usize {
        (key ^ key >> 11) as usize & (self.heads.len() - 1)
    }

    #[inline]
    fn find(&self, key: u64) -> Option<usize> {
        let mut at = self.heads[self.bucket(key)];
        while at != NOBODY {
            if self.keys[at as usize] == key {
                return Some(at as usize);
            }
            at = self.next[at as usize];
        }
        None
    }

    /// Index of the first way of a key's set.
    #[inline]
    fn first(&self, key: u64) -> usize {
        match self.shifts {
            Some((ways, sets)) => ((key >> 1 & ((1 << sets) - 1)) as usize) << ways,
            None => ((key >> 1) % self.sets) as usize * self.ways,
        }
    }

    /// The set of a place.
    #[inline]
    fn set_of(&self, at: usize) -> usize {
        match self.shifts {
            Some((ways, _)) => at >> ways,
            None => at / self.ways,
        }
    }

    /// The entry of `va`'s page, and where it is.
    pub(crate) fn lookup(&self, va: u64) -> Option<(usize, Entry)> {
        let at = match self.find(key(va, false)) {
            Some(at) => at,
            None if self.large > 0 => self.find(key(va, true))?,
            None => return None,
        };
        Some((at, self.entries[at]))
    }

    /// The entry at a place that [`Tlb::lookup`] has said, and nothing has changed since.
    #[inline]
    pub(crate) fn entry(&self, at: usize) -> Entry {
        self.entries[at]
    }

    /// A hit's effect on what goes next.
    pub(crate) fn touch(&mut self, at: usize) {
        match self.policy {
            Policy::Lru => {
                let set = self.set_of(at);
                if self.queues.ends[set][1] != at as u32 {
                    self.queues.take_out(set, at);
                    self.queues.append(set, at);
                }
            }
            Policy::Nru => {
                let first = self.set_of(at) * self.ways;
                let bits = &mut self.used[first..first + self.ways];
                bits[at - first] = true;
                if bits.iter().all(|b| *b) {
                    bits.fill(false);
                    bits[at - first] = true;
                }
            }
            Policy::TreePlru => {
                let set = self.set_of(at);
                let way = at - set * self.ways;
                let tree = &mut self.trees[set];
                let (mut node, mut half) = (1, self.ways / 2);
                while half > 0 {
                    let right = way & half != 0;
                    if right {
                        *tree &= !(1 << node);
                    } else {
                        *tree |= 1 << node;
                    }
                    node = 2 * node + usize::from(right);
                    half /= 2;
                }
            }
            Policy::Fifo | Policy::Random => {}
        }
    }

    fn victim(&mut self, first: usize) -> usize {
        let (ways, set) = (first..first + self.ways, self.set_of(first));
        if (self.filled[set] as usize) < self.ways {
            let free = self.keys[ways].iter().position(|k| *k == EMPTY);
            return first + free.unwrap_or(0);
        }
        first
            + match self.policy {
                Policy::Lru | Policy::Fifo => self.queues.ends[set][0] as usize - first,
                Policy::Nru => self.used[ways].iter().position(|b| !*b).unwrap_or(0),
                Policy::Random => (next_random(&mut self.random) % self.ways as u64) as usize,
                Policy::TreePlru => {
                    let tree = self.trees[set];
                    let mut node = 1;
                    while node < self.ways {
                        node = 2 * node + (tree >> node & 1) as usize;
                    }
                    node - self.ways
                }
            }
    }

    /// Enters the translation of `va`'s page, in the place of an entry of that page if there is one. Calls `gone` for pages
    /// whose entries that takes away or changes.
    pub(crate) fn fill(&mut self, va: u64, e: Entry, mut gone: impl FnMut(u64, bool)) {
        if (e.large || self.large > 0)
            && let Some(other) = self.find(key(va, !e.large))
        {
            self.remove(other, &mut gone);
        }
        let key = key(va, e.large);
        let e = Entry {
            gpa: e.gpa & !e.mask(),
            spa: e.spa & !e.mask(),
            ..e
        };
        if let Some(at) = self.find(key) {
            let (page, large) = page_of(key);
            gone(page, large);
            self.entries[at] = e;
            self.touch(at);
            return;
        }
        if let Some(page) = self.replace(va, &e) {
            return gone(page, false);
        }
        let first = self.first(key);
        let at = self.victim(first);
        if self.keys[at] != EMPTY {
            self.remove(at, &mut gone);
        }
        self.keys[at] = key;
        self.entries[at] = e;
        self.large += usize::from(e.large);
        let set = self.set_of(at);
        self.filled[set] += 1;
        self.link(key, at);
        match self.policy {
            Policy::Lru | Policy::Fifo => self.queues.append(set, at),
            _ => self.touch(at),
        }
    }

    /// As [`Tlb::fill`], of a page that is not there, where all are of 4 KiB and one that is has to go; which. `None`: nothing was done.
    pub(crate) fn replace(&mut self, va: u64, e: &Entry) -> Option<u64> {
        let key = key(va, false);
        let set = self.set_of(self.first(key));
        let queued = matches!(self.policy, Policy::Fifo | Policy::Lru);
        if e.large || self.large > 0 || !queued || (self.filled[set] as usize) < self.ways {
            return None;
        }
        let at = self.queues.turn(set);
        let old = std::mem::replace(&mut self.keys[at], key);
        self.entries[at] = *e;
        self.unlink(old, at);
        self.link(key, at);
        Some(page_of(old).0)
    }

    /// Chains an entry.
    #[inline]
    fn link(&mut self, key: u64, at: usize) {
        let bucket = self.bucket(key);
        self.next[at] = std::mem::replace(&mut self.heads[bucket], at as u32);
    }

    /// Takes an entry out of its chain.
    #[inline]
    fn unlink(&mut self, key: u64, at: usize) {
        let bucket = self.bucket(key);
        let behind = self.next[at];
        let mut link = &mut self.heads[bucket];
        while *link != at as u32 && *link != NOBODY {
            link = &mut self.next[*link as usize];
        }
        *link = behind;
    }

    fn remove(&mut self, at: usize, gone: &mut impl FnMut(u64, bool)) {
        let key = std::mem::replace(&mut self.keys[at], EMPTY);
        let (page, large) = page_of(key);
        self.large -= usize::from(large);
        self.used[at] = false;
        let set = self.set_of(at);
        self.filled[set] -= 1;
        if matches!(self.policy, Policy::Lru | Policy::Fifo) {
            self.queues.take_out(set, at);
        }
        self.unlink(key, at);
        gone(page, large);
    }

    /// Takes the entries of `va`'s page away.
    pub(crate) fn drop_page(&mut self, va: u64, mut gone: impl FnMut(u64, bool)) {
        for large in [false, true] {
            if let Some(at) = self.find(key(va, large)) {
                self.remove(at, &mut gone);
            }
        }
    }

    /// Takes everything away.
    pub(crate) fn flush(&mut self) {
        self.keys.fill(EMPTY);
        self.used.fill(false);
        self.filled.fill(0);
        self.heads.fill(NOBODY);
        self.queues.ends.fill([NOBODY; 2]);
        self.large = 0;
    }
}

/// A small fully associative LRU cache of keys.
pub(crate) struct Lru {
    keys: Vec<u64>,
    /// When each was used last.
    times: Vec<u64>,
    size: usize,
    time: u64,
    /// By hash: how many keys have it, and where one of these is, or was.
    buckets: Box<[(u32, u32)]>,
}

impl Lru {
    pub(crate) fn new(size: u32) -> Self {
        let size = size as usize;
        Self {
            keys: Vec::new(),
            times: Vec::new(),
            size,
            time: 0,
            buckets: vec![(0, 0); (8 * size).next_power_of_two()].into(),
        }
    }

    fn bucket(&self, key: u64) -> usize {
        (key ^ key >> 9) as usize & (self.buckets.len() - 1)
    }

    /// Where `key` is.
    fn find(&mut self, key: u64) -> Option<usize> {
        let bucket = self.bucket(key);
        let (count, hint) = self.buckets[bucket];
        if count == 0 {
            return None;
        }
        if self.keys.get(hint as usize) == Some(&key) {
            return Some(hint as usize);
        }
        let at = self.keys.iter().position(|k| *k == key)?;
        self.buckets[bucket].1 = at as u32;
        Some(at)
    }

    /// Whether it holds `key`, which has been used now then.
    pub(crate) fn hit(&mut self, key: u64) -> bool {
        self.time += 1;
        match self.find(key) {
            Some(at) => {
                self.times[at] = self.time;
                true
            }
            None => false,
        }
    }

    /// Enters `key`, in the place of the one used longest ago if it is full.
    pub(crate) fn put(&mut self, key: u64) {
        if self.size == 0 || self.hit(key) {
            return;
        }
        let mut at = self.keys.len();
        if at < self.size {
            self.keys.push(key);
            self.times.push(self.time);
        } else {
            let all = self.times.iter().enumerate();
            at = all.min_by_key(|(_, t)| **t).map_or(0, |(at, _)| at);
            let old = self.bucket(self.keys[at]);
            self.buckets[old].0 -= 1;
            (self.keys[at], self.times[at]) = (key, self.time);
        }
        let bucket = self.bucket(key);
        self.buckets[bucket].0 += 1;
        self.buckets[bucket].1 = at as u32;
    }

    pub(crate) fn flush(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        self.keys.clear();
        self.times.clear();
        self.buckets.fill((0, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlb(entries: u32, ways: u32, policy: Policy) -> Tlb {
        let c = Config {
            entries,
            ways,
            policy,
        };
        Tlb::new(&c, 1)
    }

    fn page(t: &mut Tlb, n: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        let e = Entry {
            spa: n << 12,
            ..NONE
        };
        t.fill(n << 12, e, |va, _| gone.push(va >> 12));
        gone
    }

    #[test]
    fn fifo_is_not_changed_by_hits() {
        let mut t = tlb(4, 4, Policy::Fifo);
        for n in 1..=4 {
            assert_eq!(page(&mut t, n), []);
        }
        let (at, _) = t.lookup(1 << 12).unwrap();
        t.touch(at);
        assert_eq!(page(&mut t, 5), [1]);
        t.drop_page(3 << 12, |_, _| {});
        assert_eq!(page(&mut t, 6), [], "into the free place");
        assert_eq!(page(&mut t, 7), [2]);
        assert_eq!(page(&mut t, 8), [4]);
        assert_eq!(page(&mut t, 9), [5]);
    }

    #[test]
    fn who_has_become_the_oldest_can_be_taken_away() {
        let mut t = tlb(4, 4, Policy::Fifo);
        for n in 1..=4 {
            page(&mut t, n);
        }
        assert_eq!(page(&mut t, 5), [1]);
        t.drop_page(2 << 12, |_, _| {});
        assert_eq!(page(&mut t, 6), [], "into the free place");
        for (n, gone) in [(7, 3), (8, 4), (9, 5), (10, 6), (11, 7)] {
            assert_eq!(page(&mut t, n), [gone]);
        }
        // A set of one entry.
        let mut t = tlb(1, 1, Policy::Fifo);
        page(&mut t, 1);
        for n in 2..5 {
            assert_eq!(page(&mut t, n), [n - 1]);
            assert!(t.lookup((n - 1) << 12).is_none());
            assert!(t.lookup(n << 12).is_some());
        }
    }

    #[test]
    fn lru_goes_by_use() {
        let mut t = tlb(4, 2, Policy::Lru);
        // Even pages share a set.
        assert_eq!(page(&mut t, 2), []);
        assert_eq!(page(&mut t, 4), []);
        let (at, _) = t.lookup(2 << 12).unwrap();
        t.touch(at);
        assert_eq!(page(&mut t, 1), []);
        assert_eq!(page(&mut t, 6), [4]);
        assert!(t.lookup(4 << 12).is_none());
        assert_eq!(t.lookup(6 << 12 | 0x123).unwrap().1.spa, 6 << 12);
    }

    #[test]
    fn tree_plru_and_nru_choose_as_their_definitions_say() {
        let mut t = tlb(4, 4, Policy::TreePlru);
        for n in 1..=4 {
            page(&mut t, n);
        }
        // After fills 0 1 2 3 the root points left, and the left node at way 0.
        let (at, _) = t.lookup(1 << 12).unwrap();
        t.touch(at);
        // Root right; the right node points at way 2.
        assert_eq!(page(&mut t, 5), [3]);
        let mut t = tlb(4, 4, Policy::Nru);
        for n in 1..=4 {
            page(&mut t, n);
        }
        // The last fill found all bits set: only its own is.
        assert_eq!(page(&mut t, 5), [1]);
        assert_eq!(page(&mut t, 6), [2]);
    }

    #[test]
    fn sizes_do_not_mix() {
        let mut t = tlb(8, 8, Policy::Fifo);
        page(&mut t, 0x200);
        let mut gone = Vec::new();
        let large = Entry {
            spa: 0x4020_0000,
            large: true,
            ..NONE
        };
        t.fill(0x20_0000, large, |va, l| gone.push((va, l)));
        assert_eq!(gone, [(0x20_0000, false)], "the small page of that address");
        assert_eq!(t.lookup(0x3f_f000).unwrap().1.spa, 0x4020_0000);
        t.drop_page(0x33_3333, |va, l| gone.push((va, l)));
        assert_eq!(gone[1..], [(0x20_0000, true)]);
        assert!(t.lookup(0x20_0000).is_none());
    }

    #[test]
    fn the_small_cache_forgets_what_was_used_longest_ago() {
        let mut c = Lru::new(2);
        c.put(1);
        c.put(2);
        assert!(c.hit(1));
        c.put(3);
        assert!(!c.hit(2) && c.hit(1) && c.hit(3));
        let mut none = Lru::new(0);
        none.put(1);
        assert!(!none.hit(1));
    }
}
