//! Guest-physical frames: which are free, which are usable already, and where the next should come from.
//!
//! Contiguous virtual pages should get contiguous frames (host mappings then merge), so an allocation
//! may name the frame it would like, within a run that was set aside with [`Frames::reserve`]. A
//! reservation is only a wish: when memory runs low its free frames go to whoever asks. Frames are made
//! usable (PVALIDATE) when first handed out, in runs.

use core::ops::Range;

use sevlab_arch::{Gpa, PAGE_SHIFT, PAGE_SIZE};

use super::error::Error;
use super::mm::Hw;

/// Frames a bitmap word covers.
const WORD: u64 = 64;

/// The frame allocator.
pub struct Frames {
    first: u64,
    count: u64,
    used: Vec<u64>,
    accepted: Vec<u64>,
    /// Where the next large run is looked for first.
    cursor: u64,
    /// What is left of the large run that small ones are taken from.
    pool: Range<u64>,
    free: u64,
}

/// Frames in a large run: 2 MiB.
const LARGE: u64 = 512;

impl Frames {
    /// All frames of `memory` (page-aligned), free and not yet accepted.
    #[must_use]
    pub fn new(memory: Range<Gpa>) -> Self {
        let first = memory.start.0.div_ceil(PAGE_SIZE);
        let count = memory.end.pfn().saturating_sub(first);
        let words = count.div_ceil(WORD) as usize;
        let mut used = vec![0; words];
        if let (Some(last), tail @ 1..) = (used.last_mut(), count % WORD) {
            *last = !0 << tail; // beyond the end: never free
        }
        Self {
            first,
            count,
            used,
            accepted: vec![0; words],
            cursor: 0,
            pool: 0..0,
            free: count,
        }
    }

    /// Frames that are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Frames there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.count
    }

    fn index(&self, gpa: Gpa) -> Option<u64> {
        gpa.pfn()
            .checked_sub(self.first)
            .filter(|i| *i < self.count)
    }

    fn gpa(&self, index: u64) -> Gpa {
        Gpa((self.first + index) << PAGE_SHIFT)
    }

    fn is_used(&self, index: u64) -> bool {
        self.used[(index / WORD) as usize] >> (index % WORD) & 1 != 0
    }

    /// A frame, `wish` if that is free. `None`: memory is used up.
    ///
    /// # Errors
    /// The frame can't be accepted.
    pub fn alloc(&mut self, hw: &mut dyn Hw, wish: Option<Gpa>) -> Result<Option<Gpa>, Error> {
        if self.free == 0 {
            return Ok(None);
        }
        let wished = wish
            .and_then(|g| self.index(g))
            .filter(|i| !self.is_used(*i));
        let Some(index) = wished.or_else(|| self.search()) else {
            return Ok(None);
        };
        self.used[(index / WORD) as usize] |= 1 << (index % WORD);
        self.free -= 1;
        self.accept(hw, index)?;
        Ok(Some(self.gpa(index)))
    }

    /// Sets a run of `frames` frames (a power of two) aside and returns its first; 512 and more are aligned to
    /// 2 MiB. `None`: no run is untouched.
    pub fn reserve(&mut self, frames: u64) -> Option<Gpa> {
        if frames < LARGE {
            let aligned = (self.first + self.pool.start).next_multiple_of(frames) - self.first;
            if aligned + frames > self.pool.end {
                let run = self.large()?;
                self.pool = run..run + LARGE;
                self.pool.start += frames;
                return Some(self.gpa(run));
            }
            self.pool.start = aligned + frames;
            return Some(self.gpa(aligned));
        }
        self.large().map(|run| self.gpa(run))
    }

    /// The next aligned large run without a used frame, going round once.
    fn large(&mut self) -> Option<u64> {
        let aligned = |i: u64| (self.first + i).next_multiple_of(LARGE) - self.first;
        let fits = |i: &u64| i + LARGE <= self.count;
        let from = aligned(self.cursor);
        let runs = (from..self.count).step_by(LARGE as usize);
        let again = (aligned(0)..from).step_by(LARGE as usize);
        let found = runs
            .chain(again)
            .filter(fits)
            .find(|&at| (at..at + LARGE).all(|i| !self.is_used(i)))?;
        self.cursor = found + LARGE;
        Some(found)
    }

    fn search(&mut self) -> Option<u64> {
        for _ in 0..2 * LARGE {
            match self.reserve(1).and_then(|gpa| self.index(gpa)) {
                Some(i) if !self.is_used(i) => return Some(i),
                Some(_) => {}
                None => break,
            }
        }
        let w = self.used.iter().position(|w| *w != !0)?;
        Some(w as u64 * WORD + u64::from(self.used[w].trailing_ones()))
    }

    /// Accepts the frame and its not yet accepted neighbours in the same word.
    fn accept(&mut self, hw: &mut dyn Hw, index: u64) -> Result<(), Error> {
        let (w, bit) = ((index / WORD) as usize, index % WORD);
        if self.accepted[w] >> bit & 1 != 0 {
            return Ok(());
        }
        let end = WORD.min(self.count - w as u64 * WORD);
        let mut last = bit + 1;
        while last < end && self.accepted[w] >> last & 1 == 0 {
            last += 1;
        }
        hw.accept(self.gpa(index), last - bit)?;
        let run = if last - bit == WORD {
            !0
        } else {
            ((1 << (last - bit)) - 1) << bit
        };
        self.accepted[w] |= run;
        Ok(())
    }

    /// Declares exactly these frames accepted: those the launch placed.
    pub fn set_accepted(&mut self, pages: impl Iterator<Item = Gpa>) {
        self.accepted.fill(0);
        for gpa in pages {
            if let Some(i) = self.index(gpa) {
                self.accepted[(i / WORD) as usize] |= 1 << (i % WORD);
            }
        }
    }

    /// Takes a frame back.
    pub fn release(&mut self, gpa: Gpa) {
        if let Some(i) = self.index(gpa).filter(|i| self.is_used(*i)) {
            self.used[(i / WORD) as usize] &= !(1 << (i % WORD));
            self.free += 1;
        }
    }
}
