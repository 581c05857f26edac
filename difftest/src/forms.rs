//! Encodings: which byte sequences lead to each row of the table, found by walking the opcode space, and random ones.

use crate::random::Rng;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use std::collections::HashMap;

/// How an opcode is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    /// Which of [`PREFIXES`], REX.W, map (0 to 3) and opcode.
    Legacy {
        prefix: u8,
        wide: bool,
        map: u8,
        opcode: u8,
    },
    /// Map, W, L and pp as in the three-byte form.
    Vex {
        map: u8,
        w: bool,
        l: bool,
        pp: u8,
        opcode: u8,
        /// The vvvv field has to be 1111.
        one: bool,
    },
}

/// A slot with the ModRM bytes that lead to one row.
#[derive(Clone, Copy, Debug)]
struct Template {
    slot: Slot,
    /// ModRM with a memory operand.
    memory: bool,
    /// Reg fields, or with `memory` unset reg and rm fields, that lead there.
    fields: u64,
}

/// All encodings of all rows.
pub struct Forms {
    templates: HashMap<u16, Vec<Template>>,
}

const PREFIXES: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf2], &[0x66, 0xf3]];

/// Decodes one instruction.
#[must_use]
pub fn decode(bytes: &[u8], at: u64) -> Option<Instruction> {
    let i = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    (!i.is_invalid()).then_some(i)
}

/// Whether bytes begin with LOCK before LAR, LSL, VERR or their group, or a MOV of a control register, which Intel's processors
/// refuse.
#[must_use]
pub fn locked_check(bytes: &[u8]) -> bool {
    let prefix = |b: &&u8| {
        matches!(
            b,
            0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        )
    };
    let n = bytes.iter().take_while(prefix).count();
    bytes[..n].contains(&0xf0)
        && bytes.get(n) == Some(&0x0f)
        && matches!(bytes.get(n + 1), Some(0 | 2 | 3 | 0x20 | 0x22))
}

fn head(slot: Slot) -> Vec<u8> {
    let mut b = Vec::with_capacity(6);
    match slot {
        Slot::Legacy {
            prefix,
            wide,
            map,
            opcode,
        } => {
            b.extend_from_slice(PREFIXES[prefix as usize]);
            if wide {
                b.push(0x48);
            }
            b.extend_from_slice([&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]][map as usize]);
            b.push(opcode);
        }
        Slot::Vex {
            map,
            w,
            l,
            pp,
            opcode,
            one,
        } => {
            let vvvv = if one { 0x78 } else { 0x28 };
            let last = u8::from(w) << 7 | vvvv | u8::from(l) << 2 | pp;
            b.extend_from_slice(&[0xc4, 0xe0 | map, last, opcode]);
        }
    }
    b
}

impl Forms {
    /// Walks the opcode space.
    #[must_use]
    pub fn new() -> Self {
        let mut slots = Vec::new();
        for prefix in 0..PREFIXES.len() as u8 {
            for wide in [false, true] {
                for map in 0..4 {
                    for opcode in 0..=255 {
                        slots.push(Slot::Legacy {
                            prefix,
                            wide,
                            map,
                            opcode,
                        });
                    }
                }
            }
        }
        for map in 1..=3 {
            for bits in 0..16u8 {
                for opcode in 0..=255 {
                    for one in [true, false] {
                        slots.push(Slot::Vex {
                            map,
                            w: bits & 8 != 0,
                            l: bits & 4 != 0,
                            pp: bits & 3,
                            opcode,
                            one,
                        });
                    }
                }
            }
        }
        let mut found: HashMap<(u16, Slot, bool), u64> = HashMap::new();
        for slot in slots {
            let mut b = head(slot);
            let at = b.len();
            b.resize(at + 12, 0x11);
            let mut try_one = |modrm: u8, memory: bool, field: u32| {
                b[at] = modrm;
                if memory {
                    // A SIB byte, for vector indexes too.
                    b[at + 1] = 0x08;
                }
                if let Some(i) = decode(&b, 0)
                    && i.len() >= at
                    && !i.has_lock_prefix()
                {
                    *found.entry((i.code() as u16, slot, memory)).or_default() |= 1 << field;
                }
                b[at + 1] = 0x11;
            };
            for reg in 0..8u8 {
                try_one(reg << 3 | 4, true, u32::from(reg));
                for rm in 0..8u8 {
                    try_one(0xc0 | reg << 3 | rm, false, u32::from(reg << 3 | rm));
                }
            }
        }
        let mut templates: HashMap<u16, Vec<Template>> = HashMap::new();
        for ((code, slot, memory), fields) in found {
            templates.entry(code).or_default().push(Template {
                slot,
                memory,
                fields,
            });
        }
        for list in templates.values_mut() {
            list.sort_by_key(|t| (head(t.slot), t.memory));
        }
        Self { templates }
    }

    /// Whether some byte sequence decodes as this row.
    #[must_use]
    pub fn reachable(&self, code: Code) -> bool {
        self.templates.contains_key(&(code as u16))
    }

    /// Random bytes that decode as this row, most of the time; with odd prefixes now and then. More bytes than the
    /// instruction has: the caller decodes.
    pub fn synthesise(&self, code: Code, r: &mut Rng) -> Option<Vec<u8>> {
        let list = self.templates.get(&(code as u16))?;
        let t = list[r.below(list.len() as u64) as usize];
        let mut b = Vec::with_capacity(32);
        let odd = r.one_in(5);
        if odd {
            self.odd_prefixes(t.slot, r, &mut b);
        }
        let bits = r.bits();
        match t.slot {
            Slot::Legacy {
                prefix,
                wide,
                map,
                opcode,
            } => {
                b.extend_from_slice(PREFIXES[prefix as usize]);
                if wide || bits & 3 == 0 {
                    b.push(0x40 | u8::from(wide) << 3 | (bits >> 8) as u8 & 7);
                }
                b.extend_from_slice([&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]][map as usize]);
                b.push(opcode);
            }
            Slot::Vex {
                map,
                w,
                l,
                pp,
                opcode,
                one,
            } => {
                let vvvv = if one { 0x78 } else { (bits >> 16) as u8 & 0x78 };
                let last = vvvv | u8::from(l) << 2 | pp;
                if map == 1 && !w && bits & 3 == 0 {
                    b.extend_from_slice(&[0xc5, (bits >> 8) as u8 & 0x80 | last, opcode]);
                } else {
                    let rxb = (bits >> 8) as u8 & 0xe0;
                    b.extend_from_slice(&[0xc4, rxb | map, u8::from(w) << 7 | last, opcode]);
                }
            }
        }
        // ModRM, SIB and displacement, if there are any; then immediates.
        let choices = t.fields.count_ones();
        let nth = r.below(u64::from(choices)) as u32;
        let field = (0..64)
            .filter(|f| t.fields >> f & 1 != 0)
            .nth(nth as usize)
            .unwrap_or(0) as u8;
        if t.memory {
            let mode = r.pick(&[0u8, 0, 1, 2, 2, 2]);
            let rm = r.below(8) as u8;
            b.push(mode << 6 | field << 3 | rm);
            if rm == 4 {
                b.push(r.bits() as u8);
            }
            if mode == 1 {
                b.push(r.value() as u8);
            } else {
                b.extend_from_slice(&(r.bits() as i32 >> 12).to_le_bytes());
            }
        } else {
            b.push(0xc0 | field);
        }
        b.extend_from_slice(&r.value().to_le_bytes());
        b.extend_from_slice(&r.value().to_le_bytes());
        Some(b)
    }

    fn odd_prefixes(&self, slot: Slot, r: &mut Rng, b: &mut Vec<u8>) {
        let vex = matches!(slot, Slot::Vex { .. });
        for _ in 0..1 + r.below(2) {
            let any = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0x67];
            let more = [0x66, 0xf2, 0xf3, 0xf0, 0x40, 0x48, 0x4f];
            if r.one_in(3) && (!vex || r.one_in(8)) {
                b.push(r.pick(&more));
            } else {
                b.push(r.pick(&any));
            }
        }
    }
}

impl Default for Forms {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of an instruction that has no ModRM are followed by random ones either way, so a template's ModRM byte is an
/// immediate or the next instruction there.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_rows_are_found_again() {
        let forms = Forms::new();
        let mut r = Rng::new(1);
        for code in [
            Code::Add_rm32_r32,
            Code::VEX_Vaddps_ymm_ymm_ymmm256,
            Code::Fsin,
            Code::Xlat_m8,
            Code::VEX_Vpgatherdd_xmm_vm32x_xmm,
            Code::Jrcxz_rel8_64,
        ] {
            let hits = (0..1000)
                .filter(|_| {
                    let b = forms.synthesise(code, &mut r).expect("a form");
                    decode(&b, 0).is_some_and(|i| i.code() == code)
                })
                .count();
            assert!(hits > 50, "{code:?}: {hits}");
        }
    }
}
