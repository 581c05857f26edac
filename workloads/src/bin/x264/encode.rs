//! Frame after frame: prediction, what is left, bits, and the picture that a decoder would see.

use crate::block::{Block, dequantise, inverse, quantise, satd, transform};
use crate::motion::{EDGE, Motion, Search, halves};
use crate::video::Frame;

const ZIGZAG: [usize; 16] = [0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11, 14, 15];

#[derive(Default)]
pub struct Counts {
    pub inter: u64,
    pub moved: u64,
    pub intra: u64,
    pub sads: u64,
    pub satds: u64,
}

pub struct Encoder {
    step: i32,
    bits: Bits,
    /// The frame that was coded last, as it is decoded.
    pub last: Frame,
    pub counts: Counts,
}

impl Encoder {
    pub fn new(width: usize, height: usize, step: i32) -> Self {
        Self {
            step,
            bits: Bits::default(),
            last: Frame::new(width, height),
            counts: Counts::default(),
        }
    }

    pub fn stream(&self) -> &[u8] {
        &self.bits.out
    }

    /// Codes a frame, and returns the sum of squared errors.
    pub fn frame(&mut self, source: &Frame, first: bool) -> u64 {
        let half = halves(&self.last);
        let mut search = Search {
            source,
            before: &self.last,
            half: &half,
            sads: 0,
            satds: 0,
        };
        let mut now = Frame::new(source.width, source.height);
        let across = source.width / EDGE;
        let mut field: Vec<Motion> = vec![(0, 0); across * (source.height / EDGE)];
        let mut error = 0;
        for n in 0..field.len() {
            let (x, y) = (n % across * EDGE, n / across * EDGE);
            let mut prediction = [0u8; EDGE * EDGE];
            let mut inter = false;
            if !first {
                let left = if n % across > 0 { field[n - 1] } else { (0, 0) };
                let above = if n >= across {
                    field[n - across]
                } else {
                    (0, 0)
                };
                let (motion, cost) = search.find(x, y, &[left, above, (0, 0)]);
                inter = cost < flat_cost(source, x, y);
                if inter {
                    field[n] = motion;
                    self.bits.signed(motion.0 as i32 - left.0 as i32);
                    self.bits.signed(motion.1 as i32 - left.1 as i32);
                    let (frame, at) = search.reference(x, y, motion);
                    for row in 0..EDGE {
                        let from = &frame.pixels[at + row * frame.stride..][..EDGE];
                        prediction[row * EDGE..][..EDGE].copy_from_slice(from);
                    }
                    self.counts.inter += 1;
                    self.counts.moved += u64::from(motion != (0, 0));
                }
            }
            if !inter {
                prediction.fill(average_before(&now, x, y));
                self.counts.intra += 1;
            }
            error += code(
                source,
                &mut now,
                (x, y),
                &prediction,
                self.step,
                &mut self.bits,
            );
        }
        self.counts.sads += search.sads;
        self.counts.satds += search.satds;
        now.extend();
        self.last = now;
        error
    }
}

/// What coding without motion costs, about: differences from the block's mean.
fn flat_cost(source: &Frame, x: usize, y: usize) -> u32 {
    let mut cost = 0;
    for by in (0..EDGE).step_by(4) {
        for bx in (0..EDGE).step_by(4) {
            let at = source.at((x + bx) as isize, (y + by) as isize);
            let mut block: Block = std::array::from_fn(|n| {
                i32::from(source.pixels[at + n / 4 * source.stride + n % 4])
            });
            let mean = block.iter().sum::<i32>() / 16;
            block.iter_mut().for_each(|v| *v -= mean);
            cost += satd(&block) + 16;
        }
    }
    cost
}

/// The mean of the decoded pixels above and to the left.
fn average_before(now: &Frame, x: usize, y: usize) -> u8 {
    let (mut sum, mut count) = (0u32, 0u32);
    for n in 0..EDGE as isize {
        if y > 0 {
            sum += u32::from(now.pixels[now.at(x as isize + n, y as isize - 1)]);
            count += 1;
        }
        if x > 0 {
            sum += u32::from(now.pixels[now.at(x as isize - 1, y as isize + n)]);
            count += 1;
        }
    }
    sum.checked_div(count).unwrap_or(128) as u8
}

/// Codes what the prediction leaves, and puts the decoded block into `now`. Returns the squared errors.
fn code(
    source: &Frame,
    now: &mut Frame,
    at: (usize, usize),
    prediction: &[u8],
    step: i32,
    bits: &mut Bits,
) -> u64 {
    let mut error = 0;
    for by in (0..EDGE).step_by(4) {
        for bx in (0..EDGE).step_by(4) {
            let place = source.at((at.0 + bx) as isize, (at.1 + by) as isize);
            let predicted = |n: usize| i32::from(prediction[(by + n / 4) * EDGE + bx + n % 4]);
            let original =
                |n: usize| i32::from(source.pixels[place + n / 4 * source.stride + n % 4]);
            let block: Block = std::array::from_fn(|n| original(n) - predicted(n));
            let levels = quantise(&transform(&block), step);
            write(&levels, bits);
            let back = if levels == [0; 16] {
                levels
            } else {
                inverse(&dequantise(&levels, step))
            };
            for (n, rest) in back.iter().enumerate() {
                let value = (predicted(n) + rest).clamp(0, 255);
                let d = i64::from(value - original(n));
                error += (d * d) as u64;
                now.pixels[place + n / 4 * now.stride + n % 4] = value as u8;
            }
        }
    }
    error
}

/// How many levels there are, then each with the zeros before it, in zigzag order.
fn write(levels: &Block, bits: &mut Bits) {
    bits.unsigned(levels.iter().filter(|l| **l != 0).count() as u32);
    let mut zeros = 0;
    for at in ZIGZAG {
        match levels[at] {
            0 => zeros += 1,
            level => {
                bits.unsigned(zeros);
                bits.signed(level);
                zeros = 0;
            }
        }
    }
}

/// Exponential Golomb codes.
#[derive(Default)]
struct Bits {
    out: Vec<u8>,
    word: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        self.word = self.word << count | value;
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            self.out.push((self.word >> self.count) as u8);
        }
    }

    fn unsigned(&mut self, value: u32) {
        let value = u64::from(value) + 1;
        let length = 63 - value.leading_zeros();
        self.put(0, length);
        self.put(value, length + 1);
    }

    fn signed(&mut self, value: i32) {
        self.unsigned(if value > 0 {
            2 * value as u32 - 1
        } else {
            2 * value.unsigned_abs()
        });
    }
}
