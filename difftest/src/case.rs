//! A case: instructions and everything they start from.

use crate::layout::{CODE, DATA_PAGES, MEMORY, PAGE, offset};
use crate::random::Rng;

/// Most bytes of code in a case.
pub const MAX_CODE: usize = 224;
/// Most patches of a case.
pub const MAX_PATCHES: usize = 24;
/// Most bytes of a patch.
pub const PATCH: usize = 64;
/// What comes after a case's code, and ends it: HLT, which raises #GP at CPL 3.
pub const END: u8 = 0xf4;

/// x87 state, registers in stack order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct X87 {
    /// Control word.
    pub control: u16,
    /// Status word.
    pub status: u16,
    /// Abridged tag word, by physical register.
    pub tag: u8,
    /// Opcode of the last instruction.
    pub opcode: u16,
    /// Its address.
    pub instruction: u64,
    /// Address of its operand.
    pub data: u64,
    /// ST(0) to ST(7): significand, then sign and exponent.
    pub st: [(u64, u16); 8],
}

impl Default for X87 {
    fn default() -> Self {
        Self {
            control: 0x37f,
            status: 0,
            tag: 0,
            opcode: 0,
            instruction: 0,
            data: 0,
            st: [(0, 0); 8],
        }
    }
}

impl X87 {
    /// From the legacy part of an FXSAVE image with 64-bit pointers.
    #[must_use]
    pub fn from_image(b: &[u8; 512]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|k| b[at + k]));
        Self {
            control: u16_at(0),
            status: u16_at(2),
            tag: b[4],
            opcode: u16_at(6),
            instruction: u64_at(8),
            data: u64_at(16),
            st: std::array::from_fn(|n| (u64_at(32 + 16 * n), u16_at(40 + 16 * n))),
        }
    }
    /// Writes the legacy part of an FXSAVE image.
    pub fn to_image(&self, b: &mut [u8; 512]) {
        b[0..2].copy_from_slice(&self.control.to_le_bytes());
        b[2..4].copy_from_slice(&self.status.to_le_bytes());
        b[4] = self.tag;
        b[5] = 0;
        b[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        b[8..16].copy_from_slice(&self.instruction.to_le_bytes());
        b[16..24].copy_from_slice(&self.data.to_le_bytes());
        for (n, st) in self.st.iter().enumerate() {
            let at = 32 + 16 * n;
            b[at..at + 8].copy_from_slice(&st.0.to_le_bytes());
            b[at + 8..at + 10].copy_from_slice(&st.1.to_le_bytes());
            b[at + 10..at + 16].fill(0);
        }
    }
    /// Makes ES and B follow from the exceptions, as the processor does on loading.
    pub fn settle(&mut self) {
        let pending = self.status & !self.control & 0x3f != 0;
        self.status = self.status & 0x7f7f | if pending { 0x8080 } else { 0 };
    }
}

/// Registers at the start of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Registers {
    /// In encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// Base of FS.
    pub fs: u64,
    /// Base of GS.
    pub gs: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// Vector registers, low quadword first.
    pub ymm: [[u64; 4]; 16],
    /// x87 state.
    pub x87: X87,
}

impl Default for Registers {
    fn default() -> Self {
        let mut gpr = [0; 16];
        gpr[4] = crate::layout::STACK;
        Self {
            gpr,
            flags: 0x202,
            fs: 0,
            gs: 0,
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
            x87: X87::default(),
        }
    }
}

/// Bytes of memory that differ from the fill.
#[derive(Clone, Copy)]
#[repr(C)]
struct Patch {
    at: u64,
    len: usize,
    bytes: [u8; PATCH],
}

/// Instructions and everything they start from. Plain data: it is kept in shared memory while it runs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Case {
    code: [u8; MAX_CODE],
    code_len: usize,
    /// Address of the first instruction.
    pub at: u64,
    /// Registers.
    pub regs: Registers,
    /// Which of the [`fill`]s memory has.
    pub fill: u8,
    patches: [Patch; MAX_PATCHES],
    patch_count: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            code: [END; MAX_CODE],
            code_len: 0,
            at: CODE,
            regs: Registers::default(),
            fill: 0,
            patches: [Patch {
                at: 0,
                len: 0,
                bytes: [0; PATCH],
            }; MAX_PATCHES],
            patch_count: 0,
        }
    }
}

impl Case {
    /// The instructions' bytes. What follows them is [`END`].
    #[must_use]
    pub fn code(&self) -> &[u8] {
        &self.code[..self.code_len]
    }
    /// Appends instructions; false if there is no room.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let end = self.code_len + bytes.len();
        if end > MAX_CODE {
            return false;
        }
        self.code[self.code_len..end].copy_from_slice(bytes);
        self.code_len = end;
        true
    }
    /// Puts other instructions in place; false if there are too many.
    pub fn set_code(&mut self, bytes: &[u8]) -> bool {
        self.code_len = 0;
        self.code = [END; MAX_CODE];
        self.push(bytes)
    }
    /// Changes one byte of code.
    pub fn set_byte(&mut self, at: usize, byte: u8) {
        self.code[at] = byte;
    }
    /// Address behind the instructions.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at + self.code_len as u64
    }
    /// Has memory at `at` begin with other bytes than the fill's. False: no room, or no data pages there.
    pub fn patch(&mut self, at: u64, bytes: &[u8]) -> bool {
        if bytes.len() > PATCH
            || self.patch_count == MAX_PATCHES
            || (0..bytes.len() as u64).any(|k| offset(at.wrapping_add(k)).is_none())
        {
            return false;
        }
        let p = &mut self.patches[self.patch_count];
        (p.at, p.len) = (at, bytes.len());
        p.bytes[..bytes.len()].copy_from_slice(bytes);
        self.patch_count += 1;
        true
    }
    /// The patches: address and bytes, in the order in which they apply.
    pub fn patches(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.patches[..self.patch_count]
            .iter()
            .map(|p| (p.at, &p.bytes[..p.len]))
    }
    /// Drops patch `n`.
    pub fn remove_patch(&mut self, n: usize) {
        self.patches.copy_within(n + 1..self.patch_count, n);
        self.patch_count -= 1;
    }
    /// Memory at the start, into `out` of [`MEMORY`] bytes.
    pub fn memory(&self, fills: &Fills, out: &mut [u8]) {
        out.copy_from_slice(fills.get(self.fill));
        for (at, bytes) in self.patches() {
            for (k, b) in bytes.iter().enumerate() {
                if let Some(o) = offset(at + k as u64) {
                    out[o] = *b;
                }
            }
        }
    }
}

/// What memory is filled with before patches: 0 is zeros, 1 to 15 are [`Rng::value`]s and [`Rng::lane`]s in turn of the
/// generator with that seed; the page that can only be read is fill 1's in all.
pub struct Fills(Vec<Vec<u8>>);

/// How many fills there are.
pub const FILLS: u8 = 16;

impl Fills {
    /// All of them.
    #[must_use]
    pub fn new() -> Self {
        let mut all: Vec<_> = (0..FILLS).map(fill).collect();
        // The page that can only be read is the same in all, so that it is seldom written.
        let (at, page) = ((DATA_PAGES * PAGE) as usize, PAGE as usize);
        let read_only = all[1][at..at + page].to_vec();
        for f in &mut all {
            f[at..at + page].copy_from_slice(&read_only);
        }
        Self(all)
    }
    /// One of them.
    #[must_use]
    pub fn get(&self, n: u8) -> &[u8] {
        &self.0[usize::from(n % FILLS)]
    }
}

impl Default for Fills {
    fn default() -> Self {
        Self::new()
    }
}

fn fill(n: u8) -> Vec<u8> {
    let mut out = vec![0; MEMORY];
    if n != 0 {
        let mut r = Rng::new(u64::from(n));
        for (k, q) in out.chunks_exact_mut(8).enumerate() {
            let v = if k % 2 == 0 { r.value() } else { r.lane() };
            q.copy_from_slice(&v.to_le_bytes());
        }
        // Runs of equal bytes, so that repeated string comparisons go on for a while.
        out[0x400..0x600].fill(n);
        out[0x1400..0x1600].fill(n);
    }
    out
}
