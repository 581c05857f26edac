//! Aiming a memory operand: the start value of its base register, or its displacement, so that it lies somewhere
//! interesting.

use super::{Draft, Generator, number};
use crate::layout::{CODE, DATA, DATA_PAGES, ISLAND, PAGE, READ_ONLY, UNMAPPED};
use crate::random::Rng;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

/// Where an operand of `size` bytes may lie.
fn target(r: &mut Rng, size: u64, wide: bool) -> u64 {
    let inside = |r: &mut Rng| DATA + 64 + r.below(DATA_PAGES * PAGE - 192 - size);
    match r.below(64) {
        0 => READ_ONLY + r.below(PAGE - size),
        1 => UNMAPPED + r.below(PAGE),
        // From a good page to one that can only be read, from that to none, behind everything.
        2 => READ_ONLY - 1 - r.below(size.max(2) - 1),
        3 => UNMAPPED - 1 - r.below(size.max(2) - 1),
        4 => ISLAND + PAGE - 1 - r.below(size.max(2) - 1),
        5 if wide => 0x8000_0000_0000 - r.below(size + 8),
        6 if wide => r.pick(&[
            1 << 47,
            1 << 63,
            0xffff_8000_0000_0000,
            0xffff_ffff_ffff_fff0,
        ]),
        7 => r.below(0x1000),
        8 => CODE + r.below(64),
        // Across two good pages.
        9..=13 => DATA + PAGE * (1 + r.below(DATA_PAGES - 1)) - 1 - r.below(size.max(2) - 1),
        14..=17 => (ISLAND + r.below(PAGE - size)) & !15,
        // The last bytes of a page.
        18..=20 => DATA + PAGE * (1 + r.below(DATA_PAGES)) - size,
        21..=31 => inside(r),
        32..=36 => inside(r) & !7,
        _ => inside(r) & !63,
    }
}

impl Generator<'_> {
    /// As [`target`], noting what lies in code.
    pub(super) fn target(&mut self, d: &mut Draft, size: u64, wide: bool) -> u64 {
        let to = target(&mut self.r, size, wide);
        d.reads_code |= (CODE - 512..CODE + 2 * PAGE).contains(&to);
        to
    }

    /// Aims everything that an instruction depends on; false if this instance is no good.
    pub(super) fn aim(&mut self, d: &mut Draft, i: &Instruction, bytes: &mut [u8]) -> bool {
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        let mut at = None;
        if memory {
            let size = super::setup::memory_size(i);
            let wide = i.memory_base().size() != 4 && i.memory_index().size() != 4;
            let mut to = self.target(d, size, wide);
            let align = super::setup::alignment(i);
            if align > 1 && !self.r.one_in(16) {
                to &= !(align - 1);
            }
            if self.place(d, i, bytes, to) {
                at = Some(to);
            } else if i.is_ip_rel_memory_operand() || !self.r.one_in(10) {
                return false;
            }
        }
        self.prepare(d, i, bytes, at)
    }

    /// Has the memory operand be at `to`, as far as the start state and the encoding allow.
    fn place(&mut self, d: &mut Draft, i: &Instruction, bytes: &mut [u8], to: u64) -> bool {
        let segment = match i.memory_segment() {
            Register::FS => d.case.regs.fs,
            Register::GS => d.case.regs.gs,
            _ => 0,
        };
        let narrow = i.memory_base().size() == 4 || i.memory_index().size() == 4;
        let limit = if narrow { 0xffff_ffff } else { u64::MAX };
        let want = to.wrapping_sub(segment);
        let scale = u64::from(i.memory_index_scale());
        let mut offset = i.memory_displacement64();
        let (base, index) = (number(i.memory_base()), number(i.memory_index()));
        if i.is_ip_rel_memory_operand() {
            let next = d.case.end() + bytes.len() as u64;
            return displace(bytes, want.wrapping_sub(next), d.case.end());
        }
        if base.is_some() && base == index {
            return false;
        }
        if i.is_vsib() {
            let small = self.r.below(64) as i64 - 8;
            let lanes = &mut d.case.regs.ymm[i.memory_index().number()];
            for l in lanes.iter_mut() {
                let v = if self.r.one_in(12) {
                    self.r.value()
                } else {
                    (small + self.r.below(40) as i64) as u64
                };
                *l = if i.is_vsib64() {
                    v
                } else {
                    (v & 0xffff_ffff) | (self.r.below(48) << 32)
                };
            }
        }
        if let Some(x) = index {
            let v = if self.r.one_in(4) {
                self.r.value()
            } else {
                self.r.below(40)
            };
            d.set(x, v);
            match d.value(x) {
                Some(v) => offset = offset.wrapping_add((v & limit).wrapping_mul(scale)),
                None => return false,
            }
            if x == 4 {
                return false;
            }
            d.fixed |= 1 << x;
        }
        match base {
            // The stack pointer is aimed elsewhere.
            Some(b) if b != 4 && d.free(b) => {
                let mut v = want.wrapping_sub(offset) & limit;
                if narrow {
                    v |= self.r.value() << 32;
                }
                d.set(b, v)
            }
            Some(b) => {
                let v = if b == 4 { d.rsp() } else { d.value(b) };
                let Some(v) = v else { return false };
                d.fixed |= 1 << b;
                let rest = offset.wrapping_sub(i.memory_displacement64());
                displace(
                    bytes,
                    want.wrapping_sub(v & limit).wrapping_sub(rest) & limit,
                    d.case.end(),
                )
            }
            None => {
                let rest = offset.wrapping_sub(i.memory_displacement64());
                displace(bytes, want.wrapping_sub(rest) & limit, d.case.end())
            }
        }
    }
}

/// Writes the displacement of an instruction's encoding, if it holds it.
fn displace(bytes: &mut [u8], to: u64, ip: u64) -> bool {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let i = decoder.decode();
    let o = decoder.get_constant_offsets(&i);
    let at = o.displacement_offset();
    let size = o.displacement_size();
    let narrow = i.memory_base().size() == 4
        || i.memory_index().size() == 4
        || i.memory_base() == Register::EIP;
    let fits = match size {
        8 => true,
        4 => to as i32 as i64 as u64 == to || narrow && to >> 32 == 0,
        1 => to as i8 as i64 as u64 == to,
        0 => to == 0,
        _ => false,
    };
    if fits {
        for (k, b) in bytes[at..at + size].iter_mut().enumerate() {
            *b = (to >> (8 * k)) as u8;
        }
    }
    fits
}
