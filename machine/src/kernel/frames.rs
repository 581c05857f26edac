//! Guest-physical frames: which are free, which are usable already, and where the next should come from.
//!
//! Contiguous virtual pages should get contiguous frames (host mappings then merge), so an allocation
//! may name the frame it would like, within a run that was set aside with [`Frames::reserve`]. A
//! reservation is only a wish: when memory runs low its free frames go to whoever asks. The lowest free
//! frames and runs always go first, so that memory which was used before is used again before memory
//! that the host never had to provide. Frames are made usable (PVALIDATE) when first handed out, in
//! runs.

use core::ops::Range;

use sevlab_arch::{Gpa, PAGE_SHIFT, PAGE_SIZE};

use super::error::Error;
use super::mm::Hw;

/// Frames a bitmap word covers.
const WORD: u64 = 64;
/// Frames that are set aside together at least: 64 KiB.
pub const SMALL: u64 = 16;
/// Frames of a large run: 2 MiB, aligned so.
pub const LARGE: u64 = 512;
/// Small runs in a large one.
const PARTS: u64 = LARGE / SMALL;

/// The frame allocator.
pub struct Frames {
    /// Number of the frame that bit 0 stands for: aligned to a large run.
    base: u64,
    /// Index behind the last frame there is.
    end: u64,
    /// Frames there are.
    count: u64,
    /// A bit a frame: handed out, or not there.
    used: Vec<u64>,
    /// A bit a frame: usable.
    accepted: Vec<u64>,
    /// A bit for each small run that is set aside.
    aside: Vec<u32>,
    /// Below these nothing is: free frames that are not set aside, free small runs, free large runs.
    lowest: [u64; 3],
    free: u64,
}

impl Frames {
    /// All frames of `memory` (page-aligned), free and not yet accepted.
    #[must_use]
    pub fn new(memory: Range<Gpa>) -> Self {
        let first = memory.start.0.div_ceil(PAGE_SIZE);
        let end = memory.end.pfn().max(first);
        let base = first & !(LARGE - 1);
        let runs = (end - base).div_ceil(LARGE);
        let mut frames = Self {
            base,
            end: end - base,
            count: end - first,
            used: vec![0; (runs * LARGE / WORD) as usize],
            accepted: vec![0; (runs * LARGE / WORD) as usize],
            aside: vec![0; runs as usize],
            lowest: [0; 3],
            free: end - first,
        };
        for missing in (0..first - base).chain(end - base..runs * LARGE) {
            frames.used[(missing / WORD) as usize] |= 1 << (missing % WORD);
        }
        frames
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

    fn len(&self) -> u64 {
        self.used.len() as u64 * WORD
    }

    fn index(&self, gpa: Gpa) -> Option<u64> {
        gpa.pfn()
            .checked_sub(self.base)
            .filter(|i| (self.end - self.count..self.end).contains(i))
    }

    fn gpa(&self, index: u64) -> Gpa {
        Gpa((self.base + index) << PAGE_SHIFT)
    }

    fn is_used(&self, index: u64) -> bool {
        self.used[(index / WORD) as usize] >> (index % WORD) & 1 != 0
    }

    fn is_aside(&self, index: u64) -> bool {
        self.aside[(index / LARGE) as usize] >> (index % LARGE / SMALL) & 1 != 0
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
        let Some(index) = wished.or_else(|| self.single()).or_else(|| self.any()) else {
            return Ok(None);
        };
        self.used[(index / WORD) as usize] |= 1 << (index % WORD);
        self.free -= 1;
        self.accept(hw, index)?;
        Ok(Some(self.gpa(index)))
    }

    /// The lowest free frame that is not set aside.
    fn single(&mut self) -> Option<u64> {
        let mut at = self.lowest[0];
        while at < self.len() {
            let word = self.used[(at / WORD) as usize];
            if word == !0 {
                at = (at / WORD + 1) * WORD;
            } else if self.is_aside(at) {
                at = (at / SMALL + 1) * SMALL;
            } else if self.is_used(at) {
                at += 1;
            } else {
                break;
            }
        }
        self.lowest[0] = at;
        (at < self.len()).then_some(at)
    }

    /// The lowest free frame, set aside or not.
    fn any(&self) -> Option<u64> {
        let w = self.used.iter().position(|w| *w != !0)?;
        Some(w as u64 * WORD + u64::from(self.used[w].trailing_ones()))
    }

    /// Sets a small or large run aside, [`SMALL`] or [`LARGE`] frames that nobody uses, and returns its
    /// first. `None`: there is none.
    pub fn reserve(&mut self, frames: u64) -> Option<Gpa> {
        if frames == LARGE {
            let from = self.lowest[2] / LARGE;
            let runs = from..self.aside.len() as u64;
            let found = runs.clone().find(|&r| {
                let words = (r * LARGE / WORD) as usize..((r + 1) * LARGE / WORD) as usize;
                self.aside[r as usize] == 0 && self.used[words].iter().all(|w| *w == 0)
            });
            self.lowest[2] = found.unwrap_or(runs.end) * LARGE;
            let run = found?;
            self.aside[run as usize] = !0;
            return Some(self.gpa(run * LARGE));
        }
        let mask = (1 << SMALL) - 1;
        let parts = self.lowest[1] / SMALL..self.len() / SMALL;
        let found = parts.clone().find(|&part| {
            let at = part * SMALL;
            !self.is_aside(at) && self.used[(at / WORD) as usize] >> (at % WORD) & mask == 0
        });
        self.lowest[1] = found.unwrap_or(parts.end) * SMALL;
        let part = found?;
        self.aside[(part / PARTS) as usize] |= 1 << (part % PARTS);
        Some(self.gpa(part * SMALL))
    }

    /// The run at `gpa` is not set aside any more; its used frames stay used.
    pub fn unreserve(&mut self, gpa: Gpa, frames: u64) {
        let Some(at) = self.index(gpa) else { return };
        let run = (at / LARGE) as usize;
        if frames == LARGE {
            self.aside[run] = 0;
        } else {
            self.aside[run] &= !(1 << (at % LARGE / SMALL));
        }
        self.freed(at);
    }

    /// Something at `index` has become free.
    fn freed(&mut self, index: u64) {
        let [single, small, large] = &mut self.lowest;
        *single = (*single).min(index);
        *small = (*small).min(index / SMALL * SMALL);
        *large = (*large).min(index / LARGE * LARGE);
    }

    /// Accepts the frame and its not yet accepted neighbours in the same word.
    fn accept(&mut self, hw: &mut dyn Hw, index: u64) -> Result<(), Error> {
        let (w, bit) = ((index / WORD) as usize, index % WORD);
        if self.accepted[w] >> bit & 1 != 0 {
            return Ok(());
        }
        let end = WORD.min(self.end - w as u64 * WORD);
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
            self.freed(i);
        }
    }
}
