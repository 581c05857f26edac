//! The decompressor.

use crate::model::{MIN, Model, Recent, unslot};
use crate::range::Decoder;

/// The text again; an error if it can't be one.
pub fn decode(packed: &[u8]) -> Result<Vec<u8>, String> {
    let (head, body) = packed.split_at_checked(8).ok_or("no length")?;
    let size = u64::from_le_bytes(head.try_into().map_err(|_| "no length")?) as usize;
    let mut coder = Decoder::new(body);
    let mut model = Model::new();
    let mut recent = Recent::new();
    let mut out: Vec<u8> = Vec::with_capacity(size);
    let mut last = 0;
    while out.len() < size {
        let at = out.len();
        if coder.bit(&mut model.is_match[last][at & 3]) == 0 {
            let before = out.last().copied().unwrap_or(0);
            out.push(coder.tree(model.literals(before, at), 8) as u8);
            last = 0;
            continue;
        }
        let repeat = coder.bit(&mut model.is_repeat[last]) == 1;
        let length = if repeat {
            let which = coder.tree(&mut model.which, 2) as usize;
            recent.touch(which);
            last = 2;
            coder.tree(&mut model.length[1], 8) as usize + MIN
        } else {
            let length = coder.tree(&mut model.length[0], 8) as usize + MIN;
            let slot = coder.tree(&mut model.slot[(length - MIN).min(3)], 6);
            let (base, bits) = unslot(slot);
            let low = if bits >= 4 {
                coder.direct(bits - 4) << 4 | coder.tree(&mut model.align, 4)
            } else {
                coder.direct(bits)
            };
            recent.push(base + low + 1);
            last = 1;
            length
        };
        let distance = recent.0[0] as usize;
        if distance > at || at + length > size {
            return Err(format!("at {at}: a match of {length} from {distance} back"));
        }
        for n in 0..length {
            out.push(out[at - distance + n]);
        }
    }
    Ok(out)
}
