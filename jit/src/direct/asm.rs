//! The few host instructions that come between copied ones, as bytes: no labels and no choice of forms, so there is nothing to wait for.

use super::{Copier, R15};

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
    pub(super) fn plain(base: u8, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
            gs: false,
        }
    }
    pub(super) fn sum(base: Option<u8>, index: Option<(u8, u8)>) -> Self {
        Self {
            base,
            index,
            disp: 0,
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

impl Copier<'_> {
    /// Opcode, with a register and a memory operand. `w`: 64 bits.
    pub(super) fn mem(&mut self, op: &[u8], reg: u8, at: At, w: bool) {
        if at.gs {
            self.code.push(0x65);
        }
        let (base, index) = (at.base.unwrap_or(5), at.index.map_or(4, |i| i.0));
        let rex = 0x40
            | u8::from(w) << 3
            | (reg >> 3) << 2
            | if at.index.is_some() {
                (index >> 3) << 1
            } else {
                0
            }
            | if at.base.is_some() { base >> 3 } else { 0 };
        self.code.push(rex);
        self.code.extend_from_slice(op);
        let field = (reg & 7) << 3;
        if at.index.is_some() || at.base.is_none() || base & 7 == 4 {
            let mode = if at.base.is_some() { 0x80 } else { 0 };
            let scale = at.index.map_or(0, |i| i.1) << 6;
            self.code.push(mode | field | 4);
            self.code.push(scale | (index & 7) << 3 | base & 7);
        } else {
            self.code.push(0x80 | field | base & 7);
        }
        self.code.extend_from_slice(&at.disp.to_le_bytes());
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
    pub(super) fn constant(&mut self, r: u8, value: u64) {
        let wide = u32::try_from(value).is_err();
        self.code.push(0x40 | u8::from(wide) << 3 | r >> 3);
        self.code.push(0xb8 | r & 7);
        let bytes = value.to_le_bytes();
        self.code
            .extend_from_slice(&bytes[..if wide { 8 } else { 4 }]);
    }
    /// Between registers, `reg` in the field of that name.
    pub(super) fn between(&mut self, op: &[u8], reg: u8, rm: u8, w: bool) {
        self.code
            .push(0x40 | u8::from(w) << 3 | (reg >> 3) << 2 | rm >> 3);
        self.code.extend_from_slice(op);
        self.code.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }
    pub(super) fn push(&mut self, r: u8) {
        self.code.extend_from_slice(&[0x40 | r >> 3, 0x50 | r & 7]);
    }
    pub(super) fn pop(&mut self, r: u8) {
        self.code.extend_from_slice(&[0x40 | r >> 3, 0x58 | r & 7]);
    }
}
