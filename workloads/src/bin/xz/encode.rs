//! The compressor.

use crate::finder::Finder;
use crate::model::{MAX, MIN, Model, Recent, slot};
use crate::range::Encoder;

/// A compressed text.
pub struct Packed {
    pub bytes: Vec<u8>,
    pub literals: u64,
    pub matches: u64,
    pub repeats: u64,
}

/// Compresses. The length comes first, in 8 bytes.
pub fn encode(data: &[u8], depth: usize) -> Packed {
    let mut finder = Finder::new(data, depth);
    let mut coder = Encoder::new();
    let mut model = Model::new();
    let mut recent = Recent::new();
    let (mut at, mut last) = (0, 0);
    let (mut literals, mut matches, mut repeats) = (0, 0, 0);
    let mut ahead = None;
    while at < data.len() {
        let found = ahead.take().unwrap_or_else(|| finder.next(MAX));
        let mut choice = choose(data, at, found, &recent);
        if let Some((length, _)) = choice
            && length < 32
            && at + 1 < data.len()
        {
            // A longer match one byte later is worth a literal.
            let next = finder.next(MAX);
            let later = choose(data, at + 1, next, &recent);
            ahead = Some(next);
            if later.is_some_and(|(l, _)| l > length + 1) {
                choice = None;
            }
        }
        let (by_last, phase) = (last, at & 3);
        let Some((length, how)) = choice else {
            coder.bit(&mut model.is_match[by_last][phase], 0);
            let before = if at == 0 { 0 } else { data[at - 1] };
            coder.tree(model.literals(before, at), u32::from(data[at]), 8);
            literals += 1;
            last = 0;
            at += 1;
            continue;
        };
        coder.bit(&mut model.is_match[by_last][phase], 1);
        match how {
            How::Repeat(which) => {
                coder.bit(&mut model.is_repeat[by_last], 1);
                coder.tree(&mut model.which, which as u32, 2);
                coder.tree(&mut model.length[1], (length - MIN) as u32, 8);
                recent.touch(which);
                repeats += 1;
                last = 2;
            }
            How::Match(distance) => {
                coder.bit(&mut model.is_repeat[by_last], 0);
                coder.tree(&mut model.length[0], (length - MIN) as u32, 8);
                let (slot, bits) = slot(distance);
                coder.tree(&mut model.slot[(length - MIN).min(3)], slot, 6);
                let low = (distance - 1) & ((1 << bits) - 1);
                if bits >= 4 {
                    coder.direct(low >> 4, bits - 4);
                    coder.tree(&mut model.align, low & 15, 4);
                } else {
                    coder.direct(low, bits);
                }
                recent.push(distance);
                matches += 1;
                last = 1;
            }
        }
        // The finder is to know all positions; one or two it knows already.
        let known = 1 + usize::from(ahead.take().is_some());
        for _ in known..length {
            finder.next(MAX);
        }
        at += length;
    }
    let mut bytes = (data.len() as u64).to_le_bytes().to_vec();
    bytes.extend(coder.finish());
    Packed {
        bytes,
        literals,
        matches,
        repeats,
    }
}

enum How {
    Match(u32),
    Repeat(usize),
}

/// What to code at a position: a repeat if it is nearly as long as the match, for it costs less.
fn choose(data: &[u8], at: usize, found: (usize, u32), recent: &Recent) -> Option<(usize, How)> {
    let mut best = (0, 0);
    for (which, distance) in recent.0.iter().enumerate() {
        let distance = *distance as usize;
        if distance <= at {
            let (here, there) = (&data[at..], &data[at - distance..]);
            let length = here
                .iter()
                .zip(there)
                .take(MAX)
                .take_while(|(a, b)| a == b)
                .count();
            if length > best.0 {
                best = (length, which);
            }
        }
    }
    if best.0 >= MIN && best.0 + 1 >= found.0 {
        return Some((best.0, How::Repeat(best.1)));
    }
    // Three bytes from far away cost more than three literals.
    let worth = found.0 >= 4 || found.0 == 3 && found.1 < 4096;
    worth.then_some((found.0, How::Match(found.1)))
}
