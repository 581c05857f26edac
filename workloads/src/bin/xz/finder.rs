//! The match finder: a hash of four bytes leads to the root of a binary tree of earlier positions, sorted by what follows them.

const HASH_BITS: u32 = 16;
const NONE: u32 = u32::MAX;

pub struct Finder<'a> {
    data: &'a [u8],
    roots: Vec<u32>,
    /// Positions whose text is smaller, and larger.
    tree: Vec<[u32; 2]>,
    depth: usize,
    at: usize,
}

impl<'a> Finder<'a> {
    pub fn new(data: &'a [u8], depth: usize) -> Self {
        Self {
            data,
            roots: vec![NONE; 1 << HASH_BITS],
            tree: vec![[NONE; 2]; data.len()],
            depth,
            at: 0,
        }
    }

    /// The longest match at the next position, as length and distance (0, 0 if there is none of at least 3), and goes on to the one
    /// after it. The position becomes the root of its tree, which is split into what is smaller and what is larger.
    pub fn next(&mut self, most: usize) -> (usize, u32) {
        let at = self.at;
        self.at += 1;
        let limit = most.min(self.data.len() - at);
        if limit < 4 {
            return (0, 0);
        }
        let here = &self.data[at..at + limit];
        let key = u32::from_le_bytes([here[0], here[1], here[2], here[3]]);
        let hash = (key.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize;
        let mut other = std::mem::replace(&mut self.roots[hash], at as u32);
        // Where the next smaller and the next larger position are to be linked, and what both have in common with this one.
        let (mut smaller, mut larger) = ((at, 0), (at, 1));
        let (mut common_smaller, mut common_larger) = (0, 0);
        let mut best = (0, 0);
        for _ in 0..self.depth {
            if other == NONE {
                break;
            }
            let there = &self.data[other as usize..other as usize + limit];
            let mut length = common_smaller.min(common_larger);
            while length < limit && there[length] == here[length] {
                length += 1;
            }
            if length > best.0 {
                best = (length, (at - other as usize) as u32);
            }
            if length == limit {
                // The same text: this position takes the other's place.
                let [less, more] = self.tree[other as usize];
                self.tree[smaller.0][smaller.1] = less;
                self.tree[larger.0][larger.1] = more;
                return best;
            }
            if there[length] < here[length] {
                self.tree[smaller.0][smaller.1] = other;
                smaller = (other as usize, 1);
                common_smaller = length;
                other = self.tree[smaller.0][1];
            } else {
                self.tree[larger.0][larger.1] = other;
                larger = (other as usize, 0);
                common_larger = length;
                other = self.tree[larger.0][0];
            }
        }
        self.tree[smaller.0][smaller.1] = NONE;
        self.tree[larger.0][larger.1] = NONE;
        if best.0 < 3 { (0, 0) } else { best }
    }
}
