//! The cache of decoded blocks: by address, and by the pages they were decoded from.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use iced_x86::Instruction;
use sevlab_arch::PAGE_SIZE;

use super::steps::Step;
use crate::decode;
use crate::insn::{Control, Insn, Op, Rep};
use crate::model::costs::CostTable;
use crate::thunk::{Thunk, ThunkCache};

/// Most instructions in a block.
pub const MAX_BLOCK: usize = 64;

/// Entries of the direct-mapped front.
const FRONT: usize = 32768;

/// Where a block led: an address, the block there, and the cache's epoch in which it was there.
#[derive(Clone, Copy, Debug)]
struct Link {
    rip: u64,
    epoch: u64,
    block: *const Block,
}

impl Link {
    const NONE: Self = Self {
        rip: 0,
        epoch: u64::MAX,
        block: core::ptr::null(),
    };
}

/// A decoded basic block. What comes first fits one of the host's cache lines: what is looked at before it runs, if it does; then where it
/// led, and what is seldom looked at.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Block {
    /// Guest address of the first instruction.
    pub rip: u64,
    /// Its instructions, ready to run.
    pub(super) steps: Box<[Step]>,
    /// How often the block was entered.
    pub hits: Cell<u32>,
    /// The last instruction may go on to `end` without saying so.
    pub(super) falls_through: bool,
    /// No copy of its code is wanted.
    no_copy: Cell<bool>,
    /// A word for an engine above the interpreter: where its translation of this block is, 0 if there is none.
    pub(super) translated: Cell<u64>,
    /// Guest address after the last.
    pub end: u64,
    /// The last two places it led to.
    links: Cell<[Link; 2]>,
    /// Their bytes. Most instructions run from their step alone, and their decoded form is five times as large.
    bytes: Box<[u8]>,
    /// Those that run from their decoded form, by the number in their step; under a machine model all.
    pub(super) kept: Box<[Insn]>,
    /// Thunks of those, filled when first run; empty if none is a thunk.
    pub(super) thunks: Box<[Cell<Option<&'static Thunk>>]>,
    /// Under a machine model: what it has to know of each instruction.
    pub(super) counted: Box<[Counted]>,
    /// Some of them are repeated ones.
    pub(super) repeats: bool,
}

/// What a machine model has to know of an instruction of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// What it adds to the tally.
    pub tally: u64,
    /// Its address, from the block's.
    pub at: u16,
    /// The line fetched last may be another than the one it lies in: it does not lie where the one before it ends.
    pub fetches: bool,
}

impl Counted {
    fn of(insns: &[Insn], costs: &CostTable) -> Box<[Self]> {
        let line = |va: u64| va >> 6;
        let mut last = None;
        let counted = insns.iter().map(|i| {
            let end = line(i.next_rip().wrapping_sub(1));
            let before = last.replace(end);
            Self {
                tally: costs.tally(i),
                at: i.rip.wrapping_sub(insns[0].rip) as u16,
                fetches: before != Some(line(i.rip)) || end != line(i.rip),
            }
        });
        counted.collect()
    }
}

const _: () = assert!(core::mem::offset_of!(Block, links) <= 64);

impl Block {
    pub(super) fn new(rip: u64, end: u64, insns: &[Insn], costs: Option<&CostTable>) -> Box<Self> {
        let mut kept = Vec::new();
        let mut steps = Vec::with_capacity(insns.len());
        for i in insns {
            let step = Step::new(i, kept.len());
            if step.needs_insn() || costs.is_some() {
                kept.push(*i);
            }
            steps.push(step);
        }
        let thunks = if insns.iter().any(|i| i.op == Op::Thunk) {
            kept.iter().map(|_| Cell::new(None)).collect()
        } else {
            Box::default()
        };
        let mut bytes = Vec::with_capacity(end.wrapping_sub(rip) as usize);
        for i in insns {
            bytes.extend_from_slice(&i.bytes[..usize::from(i.len)]);
        }
        let falls_through = insns.last().is_none_or(|i| i.control == Control::Next);
        let counted = costs.map_or_else(Box::default, |c| Counted::of(insns, c));
        Box::new(Self {
            steps: steps.into_boxed_slice(),
            counted,
            repeats: insns.iter().any(|i| i.rep != Rep::None),
            rip,
            end,
            bytes: bytes.into_boxed_slice(),
            kept: kept.into_boxed_slice(),
            falls_through,
            links: Cell::new([Link::NONE; 2]),
            hits: Cell::new(0),
            translated: Cell::new(0),
            no_copy: Cell::new(false),
            thunks,
        })
    }

    /// How many instructions it has; never none.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Its instructions, decoded anew.
    pub fn insns(&self) -> impl Iterator<Item = Insn> + '_ {
        let mut done = 0;
        (0..self.steps.len()).map(move |k| {
            let i = self.insn(k, done, |rip, rest| decode::decode(rip, rest).ok());
            done += usize::from(i.len);
            i
        })
    }

    /// The same, with what the decoder says of each; `None` for what it takes for none.
    pub fn decoded(&self) -> impl Iterator<Item = (Option<Instruction>, Insn)> + '_ {
        let mut done = 0;
        (0..self.steps.len()).map(move |k| {
            let rip = self.rip.wrapping_add(done as u64);
            let both = decode::decode_both(rip, &self.bytes[done..]).ok();
            let i = self.insn(k, done, |_, _| both.map(|b| b.1));
            done += usize::from(i.len);
            (both.map(|b| b.0), i)
        })
    }

    /// Under a machine model: what each instruction adds to the tally.
    pub fn tallies(&self) -> impl Iterator<Item = u64> + '_ {
        self.counted.iter().map(|c| c.tally)
    }

    /// Instruction `k`, before which there are `done` bytes.
    #[inline]
    fn insn(&self, k: usize, done: usize, decode: impl Fn(u64, &[u8]) -> Option<Insn>) -> Insn {
        let rip = self.rip.wrapping_add(done as u64);
        let rest = &self.bytes[done..];
        match self
            .kept
            .get(self.steps[k].kept_at())
            .filter(|i| i.rip == rip)
        {
            Some(i) => *i,
            // It was one when the block was made, and is no other.
            None => decode(rip, rest).unwrap_or_else(|| decode::faulting(rip, Op::Ud, &rest[..1])),
        }
    }

    /// Its first instruction.
    pub(super) fn first(&self) -> Insn {
        let first = self.insns().next();
        first.unwrap_or_else(|| decode::faulting(self.rip, Op::Ud, &[]))
    }

    /// Whether an engine may run it as a copy of the guest's code.
    #[must_use]
    pub fn wants_copy(&self) -> bool {
        !self.no_copy.get()
    }

    /// From now on it may not.
    pub fn refuse_copy(&self) {
        self.no_copy.set(true);
    }

    /// The block at `rip`, if this one led there in this epoch of the cache.
    #[inline(always)]
    pub(super) fn next(&self, rip: u64, epoch: u64) -> Option<*const Block> {
        let links = self.links.get();
        let found = links.iter().find(|l| l.rip == rip && l.epoch == epoch);
        found.map(|l| l.block)
    }

    /// Notes that this block led to `block`, which is at `rip`.
    pub(super) fn link(&self, rip: u64, epoch: u64, block: *const Block) {
        let [first, _] = self.links.get();
        self.links.set([Link { rip, epoch, block }, first]);
    }
}

/// A multiplicative hasher for addresses.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        let x = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ x >> 32;
    }
}

type AddressMap<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// What the interpreter keeps with a vCPU: decoded blocks and thunks.
pub struct Cache {
    front: Box<[(u64, *const Block)]>,
    blocks: AddressMap<Box<Block>>,
    /// Addresses of the blocks that have bytes in a page.
    pages: AddressMap<Vec<u64>>,
    /// Grows whenever blocks are freed.
    pub(super) epoch: u64,
    /// Address of the block that [`super::dispatch`] came to last.
    pub(super) entered: u64,
    pub(super) thunks: Option<ThunkCache>,
}

/// No block has this address in the front (an empty entry's pointer is null).
const EMPTY: (u64, *const Block) = (0, core::ptr::null());

impl Default for Cache {
    fn default() -> Self {
        Self {
            front: vec![EMPTY; FRONT].into_boxed_slice(),
            blocks: AddressMap::default(),
            pages: AddressMap::default(),
            epoch: 0,
            entered: 0,
            thunks: None,
        }
    }
}

/// Blocks that begin within four bytes of each other are few: so they share an entry, and the front touches less memory.
#[inline(always)]
fn slot(rip: u64) -> usize {
    (rip >> 2 ^ rip >> 15) as usize & (FRONT - 1)
}

impl Cache {
    /// The block at `rip`.
    #[inline]
    pub(super) fn find(&mut self, rip: u64) -> Option<*const Block> {
        let (at, b) = self.front[slot(rip)];
        if at == rip && !b.is_null() {
            return Some(b);
        }
        let b: *const Block = &raw const **self.blocks.get(&rip)?;
        self.front[slot(rip)] = (rip, b);
        Some(b)
    }

    pub(super) fn insert(&mut self, b: Box<Block>) -> *const Block {
        self.epoch += u64::from(self.blocks.contains_key(&b.rip));
        let rip = b.rip;
        let mask = !(PAGE_SIZE - 1);
        let (first, last) = (rip & mask, b.end.wrapping_sub(1) & mask);
        self.pages.entry(first).or_default().push(rip);
        if last != first {
            self.pages.entry(last).or_default().push(rip);
        }
        self.front[slot(rip)] = EMPTY;
        self.blocks.insert(rip, b);
        let b: *const Block = &raw const *self.blocks[&rip];
        self.front[slot(rip)] = (rip, b);
        b
    }

    /// Frees the blocks with bytes in `page`.
    pub(super) fn drop_page(&mut self, page: u64) {
        self.epoch += 1;
        for rip in self.pages.remove(&page).unwrap_or_default() {
            let front = &mut self.front[slot(rip)];
            if front.0 == rip {
                *front = EMPTY;
            }
            self.blocks.remove(&rip);
        }
    }

    /// The block at `rip`, if it has been decoded.
    #[must_use]
    pub fn block(&self, rip: u64) -> Option<&Block> {
        self.blocks.get(&rip).map(|b| &**b)
    }

    /// Whether the block at `rip` has been decoded.
    #[must_use]
    pub fn has(&self, rip: u64) -> bool {
        self.blocks.contains_key(&rip)
    }

    /// Whether an engine has a translation of the block at `rip`.
    pub(super) fn is_translated(&self, rip: u64) -> bool {
        let block = self.blocks.get(&rip);
        block.is_some_and(|b| b.translated.get() != 0)
    }

    /// Notes where the translation of the block at `rip` is (0: nowhere). False if there is no such block.
    pub fn set_translated(&mut self, rip: u64, word: u64) -> bool {
        match self.blocks.get(&rip) {
            Some(b) => {
                b.translated.set(word);
                true
            }
            None => false,
        }
    }

    /// No block has a translation any more.
    pub fn forget_translated(&mut self) {
        for b in self.blocks.values() {
            b.translated.set(0);
        }
    }

    /// How often the block at `rip` has run.
    #[must_use]
    pub fn hits(&self, rip: u64) -> u32 {
        self.block(rip).map_or(0, |b| b.hits.get())
    }

    /// Address of the block that [`dispatch`](super::dispatch) came to last: where it stopped, if it did.
    #[must_use]
    pub fn entered(&self) -> u64 {
        self.entered
    }

    /// All blocks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values().map(|b| &**b)
    }

    /// Blocks decoded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The host process has been cloned, and this is the clone.
    pub(crate) fn forked(&mut self) {
        if let Some(thunks) = &mut self.thunks {
            thunks.forked();
        }
    }

    /// The thunks, made on first use.
    ///
    /// # Errors
    /// The system gives no executable memory.
    pub fn thunks(&mut self) -> std::io::Result<&mut ThunkCache> {
        if self.thunks.is_none() {
            self.thunks = Some(ThunkCache::new()?);
        }
        self.thunks
            .as_mut()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))
    }
}
