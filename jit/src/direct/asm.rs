//! The few host instructions that come between copied ones, as bytes: no labels and no choice of forms, so there is nothing to wait for.

use crate::layout;

/// The state's host register.
const R15: u8 = 15;
/// Not a register.
const NONE: u8 = 4;

/// A memory operand of the host's.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub base: Option<u8>,
    /// Register, and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
    /// Of the guest's memory.
    pub gs: bool,
}

impl At {
    pub(super) fn state(disp: i32) -> Self {
        Self::plain(R15, disp)
    }
    pub(super) fn gpr(r: u8) -> Self {
        Self::state(layout::gpr(usize::from(r)))
    }
    pub(super) fn plain(base: u8, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
            gs: false,
        }
    }
    /// The same place, displaced.
    pub(super) fn displaced(self, disp: i32) -> Self {
        Self { disp, ..self }
    }
    pub(super) fn sum(base: Option<u8>, index: Option<(u8, u8)>) -> Self {
        Self {
            base,
            index,
            disp: 0,
            gs: false,
        }
    }
    /// Entry `index` of a table of words in the lowest 2 GiB.
    pub(super) fn entry(table: i32, index: u8) -> Self {
        Self {
            disp: table,
            ..Self::sum(None, Some((index, 3)))
        }
    }
    /// An address in the lowest 2 GiB.
    pub(super) fn absolute(at: i32) -> Self {
        Self {
            base: None,
            index: None,
            disp: at,
            gs: false,
        }
    }
    pub(super) fn guest(base: u8, disp: i32) -> Self {
        Self {
            gs: true,
            ..Self::plain(base, disp)
        }
    }
}

/// Host code that grows.
#[derive(Default)]
pub(super) struct Asm {
    pub code: Vec<u8>,
}

impl Asm {
    /// Where the next byte goes.
    pub(super) fn here(&self) -> u32 {
        self.code.len() as u32
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// Opcode, with a register and a memory operand. `w`: 64 bits.
    pub(super) fn mem(&mut self, op: &[u8], reg: u8, at: At, w: bool) {
        if at.gs {
            self.code.push(0x65);
        }
        let (base, index) = (at.base.unwrap_or(5), at.index.map_or(NONE, |i| i.0));
        let extended = |r: Option<u8>| r.map_or(0, |r| r >> 3);
        let rex = u8::from(w) << 3
            | (reg >> 3) << 2
            | extended(at.index.map(|i| i.0)) << 1
            | extended(at.base);
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.bytes(op);
        let field = (reg & 7) << 3;
        let short = i8::try_from(at.disp).ok().filter(|_| at.base.is_some());
        let mode = match (short, at.base) {
            (_, None) => 0,
            (Some(0), _) if base & 7 != 5 => 0,
            (Some(_), _) => 0x40,
            (None, _) => 0x80,
        };
        if at.index.is_some() || at.base.is_none() || base & 7 == 4 {
            let scale = at.index.map_or(0, |i| i.1) << 6;
            self.code.push(mode | field | 4);
            self.code.push(scale | (index & 7) << 3 | base & 7);
        } else {
            self.code.push(mode | field | base & 7);
        }
        match (short, mode) {
            (Some(short), 0x40) => self.code.push(short as u8),
            (Some(_), 0) if at.base.is_some() => {}
            _ => self.bytes(&at.disp.to_le_bytes()),
        }
    }

    pub(super) fn load(&mut self, r: u8, at: At) {
        self.mem(&[0x8b], r, at, true);
    }
    pub(super) fn store(&mut self, at: At, r: u8) {
        self.mem(&[0x89], r, at, true);
    }
    pub(super) fn lea(&mut self, r: u8, at: At) {
        self.mem(&[0x8d], r, At { gs: false, ..at }, true);
    }
    /// The base of a guest segment plus other registers.
    pub(super) fn segment_sum(
        &mut self,
        r: u8,
        segment: u8,
        base: Option<u8>,
        index: Option<(u8, u8)>,
    ) {
        self.load(r, At::state(layout::seg_base(usize::from(segment))));
        for one in base.map(|b| (b, 0)).into_iter().chain(index) {
            self.lea(r, At::sum(Some(r), Some(one)));
        }
    }
    pub(super) fn constant(&mut self, r: u8, value: u64) {
        let wide = u32::try_from(value).is_err();
        let rex = u8::from(wide) << 3 | r >> 3;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.code.push(0xb8 | r & 7);
        let bytes = value.to_le_bytes();
        self.bytes(&bytes[..if wide { 8 } else { 4 }]);
    }
    /// Between registers, `reg` in the field of that name.
    pub(super) fn between(&mut self, op: &[u8], reg: u8, rm: u8, w: bool) {
        let rex = u8::from(w) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0 {
            self.code.push(0x40 | rex);
        }
        self.bytes(op);
        self.code.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }
    /// `to` from `from`.
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        self.between(&[0x89], from, to, true);
    }
    /// RORX: no flags change.
    pub(super) fn rotate(&mut self, to: u8, from: u8, by: u8) {
        let (not_reg, not_rm) = (!(to >> 3) & 1, !(from >> 3) & 1);
        self.bytes(&[0xc4, not_reg << 7 | 0x40 | not_rm << 5 | 3, 0xfb, 0xf0]);
        self.bytes(&[0xc0 | (to & 7) << 3 | from & 7, by]);
    }
    /// The low 16 bits.
    pub(super) fn low16(&mut self, to: u8, from: u8) {
        self.between(&[0x0f, 0xb7], to, from, false);
    }
    /// Adds what is at an address in the lowest 2 GiB to MMX register `r`, or takes it off.
    pub(super) fn add_mmx(&mut self, r: u8, add: bool, at: i32) {
        let op = if add { 0xd4 } else { 0xfb };
        // PADDQ or PSUBQ
        self.mem(&[0x0f, op], r, At::absolute(at), false);
    }
    /// Shifts to the left (4) or to the right (5).
    pub(super) fn shift(&mut self, how: u8, r: u8, by: u8) {
        self.between(&[0xc1], how, r, true);
        self.bytes(&[by]);
    }
    /// Adds (0) a number, or compares with it (7).
    pub(super) fn group(&mut self, what: u8, r: u8, value: i32) {
        match i8::try_from(value) {
            Ok(short) => {
                self.between(&[0x83], what, r, true);
                self.bytes(&[short as u8]);
            }
            Err(_) => {
                self.between(&[0x81], what, r, true);
                self.bytes(&value.to_le_bytes());
            }
        }
    }
    /// Goes where the memory operand says.
    pub(super) fn jump_to(&mut self, at: At) {
        self.mem(&[0xff], 4, at, false);
    }
    /// A jump (or with its opcode a conditional one) that is aimed by [`Asm::aim`]; where its distance is.
    pub(super) fn jump(&mut self, op: &[u8]) -> u32 {
        self.bytes(op);
        self.bytes(&[0; 4]);
        self.here() - 4
    }
    /// Aims a jump at what was before.
    pub(super) fn aim_back(&mut self, distance_at: u32, to: u32) {
        let (at, by) = (distance_at as usize, to.wrapping_sub(distance_at + 4));
        self.code[at..at + 4].copy_from_slice(&by.to_le_bytes());
    }
    /// Aims a jump at what comes next.
    pub(super) fn aim(&mut self, distance_at: u32) {
        let (at, by) = (distance_at as usize, self.here() - distance_at - 4);
        self.code[at..at + 4].copy_from_slice(&by.to_le_bytes());
    }
}
