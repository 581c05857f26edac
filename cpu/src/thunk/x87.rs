//! The x87 part of the FXSAVE image in [`CpuState::fx`]: fields, pending exceptions, instruction pointers.
//!
//! A thunk loads the image into the host's x87 unit, runs its instruction and saves the image again, so between instructions the
//! image is the truth. What is left in the host's unit is the guest's registers with no exception pending; the host does not
//! use that unit.

use crate::state::FxImage;

/// Bytes of the image that hold x87 state: header without MXCSR, and the eight registers.
const HEADER: core::ops::Range<usize> = 0..24;
const REGISTERS: core::ops::Range<usize> = 32..160;
/// The six exception bits, in both the control and the status word.
const EXCEPTIONS: u16 = 0x3f;

/// Last non-control instruction: opcode, instruction and data pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pointers {
    /// Low three bits of the first opcode byte, then the second byte.
    pub opcode: u16,
    /// RIP of the instruction.
    pub instruction: u64,
    /// Address of its memory operand within its segment: without the base of FS or GS.
    pub data: u64,
}

impl FxImage {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn u64_at(&self, at: usize) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(b)
    }
    /// The control word.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.u16_at(0)
    }
    /// The status word.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.u16_at(2)
    }
    /// Whether a waiting instruction would raise #MF now: a raised exception is unmasked.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> bool {
        self.status() & !self.control() & EXCEPTIONS != 0
    }
    /// Whether some exception is unmasked.
    #[inline]
    #[must_use]
    pub fn unmasked(&self) -> bool {
        !self.control() & EXCEPTIONS != 0
    }
    /// The last instruction's pointers.
    #[must_use]
    pub fn pointers(&self) -> Pointers {
        Pointers {
            opcode: self.u16_at(6),
            instruction: self.u64_at(8),
            data: self.u64_at(16),
        }
    }
    /// Sets the last instruction's pointers.
    pub fn set_pointers(&mut self, p: Pointers) {
        self.0[6..8].copy_from_slice(&p.opcode.to_le_bytes());
        self.0[8..16].copy_from_slice(&p.instruction.to_le_bytes());
        self.0[16..24].copy_from_slice(&p.data.to_le_bytes());
    }
    /// Copies the x87 part (not MXCSR, not the XMM registers) into an image of the same format: FXSAVE64, XSAVE.
    pub fn save_x87(&self, out: &mut [u8; 512]) {
        out[HEADER].copy_from_slice(&self.0[HEADER]);
        out[REGISTERS].copy_from_slice(&self.0[REGISTERS]);
    }
    /// Takes the x87 part from an image of the same format: FXRSTOR64, XRSTOR. Any bytes are a valid state; ES and B follow from
    /// the exceptions.
    pub fn restore_x87(&mut self, from: &[u8; 512]) {
        self.0[HEADER].copy_from_slice(&from[HEADER]);
        self.0[REGISTERS].copy_from_slice(&from[REGISTERS]);
        self.0[5] = 0;
        self.0[7] &= 7;
        for st in self.0[REGISTERS].chunks_exact_mut(16) {
            st[10..].fill(0);
        }
        // Reserved bits: 6 reads as one, the others as zero.
        let control = self.control() & 0x1f3f | 0x40;
        self.0[0..2].copy_from_slice(&control.to_le_bytes());
        let es = if self.pending() { 0x8080 } else { 0 };
        let status = self.status() & 0x7f7f | es;
        self.0[2..4].copy_from_slice(&status.to_le_bytes());
    }
    /// The state after FNINIT (what XRSTOR loads for an absent x87 component).
    pub fn reset_x87(&mut self) {
        self.0[HEADER].fill(0);
        self.0[REGISTERS].fill(0);
        self.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    }
    /// What any MMX instruction but EMMS does to the x87 state: top of stack 0, every register valid.
    pub(super) fn enter_mmx(&mut self) {
        // The image has the registers in stack order; physical ones stay where they are.
        let top = usize::from(self.0[3] >> 3 & 7);
        self.0[32..160].rotate_right(16 * top);
        self.0[3] &= !0x38;
        self.0[4] = 0xff;
    }
    /// MMX register `n`, after [`Self::enter_mmx`].
    pub(super) fn mm(&self, n: u8) -> u64 {
        self.u64_at(32 + 16 * usize::from(n & 7))
    }
}
