//! The probabilities, which coder and decoder adapt alike, and the tables of lengths and distances.

use crate::range::{Bit, HALF};

/// Shortest match.
pub const MIN: usize = 2;
/// Longest match: lengths have 8 bits.
pub const MAX: usize = MIN + 255;

/// All that adapts.
pub struct Model {
    /// Whether a match follows, by what came last (0 literal, 1 match, 2 repeat) and position modulo 4.
    pub is_match: [[Bit; 4]; 3],
    /// Whether the match is at one of the last distances.
    pub is_repeat: [Bit; 3],
    /// Which of them.
    pub which: [Bit; 4],
    /// Bytes, in the context of the three highest bits of the one before.
    pub literal: Vec<[Bit; 256]>,
    /// Lengths of matches and of repeats.
    pub length: [[Bit; 256]; 2],
    /// Slots of distances, by length: 2, 3, 4 and more.
    pub slot: [[Bit; 64]; 4],
    /// The low bits of a distance.
    pub align: [Bit; 16],
}

impl Model {
    pub fn new() -> Self {
        Self {
            is_match: [[HALF; 4]; 3],
            is_repeat: [HALF; 3],
            which: [HALF; 4],
            literal: vec![[HALF; 256]; 8 * 4],
            length: [[HALF; 256]; 2],
            slot: [[HALF; 64]; 4],
            align: [HALF; 16],
        }
    }

    /// The context of a literal.
    pub fn literals(&mut self, before: u8, position: usize) -> &mut [Bit; 256] {
        &mut self.literal[usize::from(before >> 5) << 2 | position & 3]
    }
}

/// A distance's slot: its highest bit and the one below; and how many bits follow.
pub fn slot(distance: u32) -> (u32, u32) {
    let value = distance - 1;
    if value < 4 {
        return (value, 0);
    }
    let bits = 31 - value.leading_zeros();
    (bits << 1 | (value >> (bits - 1) & 1), bits - 1)
}

/// The distance of a slot, without the bits that follow, and how many do.
pub fn unslot(slot: u32) -> (u32, u32) {
    if slot < 4 {
        return (slot, 0);
    }
    let bits = (slot >> 1) - 1;
    ((2 | slot & 1) << bits, bits)
}

/// The last four distances, newest first.
pub struct Recent(pub [u32; 4]);

impl Recent {
    pub fn new() -> Self {
        Self([1, 2, 3, 4])
    }

    /// Moves one of them to the front.
    pub fn touch(&mut self, which: usize) {
        self.0[..=which].rotate_right(1);
    }

    pub fn push(&mut self, distance: u32) {
        self.0.rotate_right(1);
        self.0[0] = distance;
    }
}
