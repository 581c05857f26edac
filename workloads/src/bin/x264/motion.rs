//! The search for a block in the frame before.

use crate::block::{Block, satd};
use crate::video::Frame;

/// A vector in half pixels.
pub type Motion = (isize, isize);

/// Blocks of that edge.
pub const EDGE: usize = 16;

pub struct Search<'a> {
    pub source: &'a Frame,
    pub before: &'a Frame,
    /// The frame before, half a pixel to the right, down, and both.
    pub half: &'a [Frame; 3],
    pub sads: u64,
    pub satds: u64,
}

/// The three frames between the pixels, by the six-tap filter of H.264.
pub fn halves(frame: &Frame) -> [Frame; 3] {
    let tap = |a: &Frame, step: usize| {
        let mut out = a.clone();
        let n = a.pixels.len();
        let (p, low) = (&a.pixels, 2 * step);
        for at in low..n - 3 * step {
            let v = |by: usize| i32::from(p[at + by * step - low]);
            let sum = v(0) - 5 * v(1) + 20 * v(2) + 20 * v(3) - 5 * v(4) + v(5);
            out.pixels[at] = ((sum + 16) >> 5).clamp(0, 255) as u8;
        }
        out
    };
    let right = tap(frame, 1);
    let down = tap(frame, frame.stride);
    let both = tap(&right, frame.stride);
    [right, down, both]
}

impl Search<'_> {
    /// The frame and the place that a vector in half pixels leads to.
    pub fn reference(&self, x: usize, y: usize, m: Motion) -> (&Frame, usize) {
        let frame = match (m.0 & 1, m.1 & 1) {
            (0, 0) => self.before,
            (1, 0) => &self.half[0],
            (0, _) => &self.half[1],
            _ => &self.half[2],
        };
        (
            frame,
            frame.at(x as isize + (m.0 >> 1), y as isize + (m.1 >> 1)),
        )
    }

    /// Whether the block stays within the padded frame.
    fn allowed(&self, x: usize, y: usize, m: Motion) -> bool {
        let inside = |v: usize, by: isize, n: usize| {
            let to = v as isize + (by >> 1);
            to >= -24 && to + EDGE as isize <= n as isize + 24
        };
        inside(x, m.0, self.source.width) && inside(y, m.1, self.source.height)
    }

    fn sad(&mut self, x: usize, y: usize, m: Motion) -> u32 {
        self.sads += 1;
        let from = self.source.at(x as isize, y as isize);
        let (frame, to) = self.reference(x, y, m);
        let mut sum = 0;
        for row in 0..EDGE {
            let a = &self.source.pixels[from + row * self.source.stride..][..EDGE];
            let b = &frame.pixels[to + row * frame.stride..][..EDGE];
            sum += a
                .iter()
                .zip(b)
                .map(|(a, b)| u32::from(a.abs_diff(*b)))
                .sum::<u32>();
        }
        sum
    }

    fn satd(&mut self, x: usize, y: usize, m: Motion) -> u32 {
        self.satds += 1;
        let from = self.source.at(x as isize, y as isize);
        let (frame, to) = self.reference(x, y, m);
        let mut sum = 0;
        for by in (0..EDGE).step_by(4) {
            for bx in (0..EDGE).step_by(4) {
                let block: Block = std::array::from_fn(|n| {
                    let (px, py) = (bx + n % 4, by + n / 4);
                    let a = self.source.pixels[from + py * self.source.stride + px];
                    let b = frame.pixels[to + py * frame.stride + px];
                    i32::from(a) - i32::from(b)
                });
                sum += satd(&block);
            }
        }
        sum
    }

    /// The best vector from the candidates on: a hexagon that moves, then its middle, then half pixels. With its SATD.
    pub fn find(&mut self, x: usize, y: usize, candidates: &[Motion]) -> (Motion, u32) {
        const HEXAGON: [Motion; 6] = [(-4, 0), (-2, 4), (2, 4), (4, 0), (2, -4), (-2, -4)];
        const AROUND: [Motion; 8] = [
            (0, -1),
            (0, 1),
            (-1, 0),
            (1, 0),
            (-1, -1),
            (-1, 1),
            (1, -1),
            (1, 1),
        ];
        let cost = |m: Motion| ((m.0.unsigned_abs() + m.1.unsigned_abs()) as u32) / 2;
        let mut best = (u32::MAX, (0, 0));
        let consider = |this: &mut Self, m: Motion, best: &mut (u32, Motion)| {
            if this.allowed(x, y, m) {
                let found = this.sad(x, y, m) + cost(m);
                if found < best.0 {
                    *best = (found, m);
                }
            }
        };
        for m in candidates {
            consider(self, (m.0 & !1, m.1 & !1), &mut best);
        }
        for _ in 0..16 {
            let centre = best.1;
            for (dx, dy) in HEXAGON {
                consider(self, (centre.0 + dx, centre.1 + dy), &mut best);
            }
            if best.1 == centre {
                break;
            }
        }
        let centre = best.1;
        for (dx, dy) in AROUND {
            consider(self, (centre.0 + 2 * dx, centre.1 + 2 * dy), &mut best);
        }
        let centre = best.1;
        let mut fine = (self.satd(x, y, centre) + cost(centre), centre);
        for (dx, dy) in AROUND {
            let m = (centre.0 + dx, centre.1 + dy);
            if self.allowed(x, y, m) {
                let found = self.satd(x, y, m) + cost(m);
                if found < fine.0 {
                    fine = (found, m);
                }
            }
        }
        (fine.1, fine.0)
    }
}
