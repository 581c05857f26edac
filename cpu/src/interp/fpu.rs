//! Saving and restoring vector and x87 state: FXSAVE, XSAVE and their relatives, MXCSR, XGETBV.

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::insn::{Insn, Op, Operand, Width};
use crate::state::gpr::{RAX, RCX, RDX};
use crate::state::{CpuState, FxImage, Lane};
use crate::stop::Exception;
use crate::thunk::mxcsr;

/// XSAVE state components (APM vol. 2, 11.5).
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

/// Offsets in an XSAVE area; the first extended component follows the header in both formats.
const LEGACY: usize = 512;
const AVX_AT: usize = 576;
const AREA: usize = 832;
/// Bytes of the FXSAVE image that the instruction writes.
const FX_WRITTEN: usize = 416;
const XMM_AT: usize = 160;

/// XCOMP_BV bit 63: the compacted format.
const COMPACT: u64 = 1 << 63;
const MXCSR_INIT: u32 = 0x1f80;

fn put_lanes(out: &mut [u8], lanes: &[Lane; 16]) {
    for (b, l) in out.chunks_exact_mut(16).zip(lanes) {
        b[..8].copy_from_slice(&l.0[0].to_le_bytes());
        b[8..].copy_from_slice(&l.0[1].to_le_bytes());
    }
}

fn get_lanes(from: &[u8], lanes: &mut [Lane; 16]) {
    for (b, l) in from.chunks_exact(16).zip(lanes) {
        *l = Lane([u64_at(b, 0), u64_at(b, 8)]);
    }
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut x = [0; 8];
    x.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(x)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut x = [0; 4];
    x.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(x)
}

/// The x87 part of a legacy image. The form without REX.W has 32-bit pointers and selectors (zero).
fn put_x87(s: &CpuState, wide: bool, out: &mut [u8; 512]) {
    s.fx.save_x87(out);
    if !wide {
        out[12..16].fill(0);
        out[20..24].fill(0);
    }
}

fn get_x87(s: &mut CpuState, wide: bool, from: &[u8; 512]) {
    let mut image = *from;
    if !wide {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    s.fx.restore_x87(&image);
}

/// The components that are not in their initial configuration.
fn in_use(s: &CpuState) -> u64 {
    let mut initial = FxImage([0; 512]);
    initial.reset_x87();
    let mut now = [0; 512];
    s.fx.save_x87(&mut now);
    let x87 = now[..24] != initial.0[..24] || now[32..XMM_AT] != initial.0[32..XMM_AT];
    let sse = s.xmm.iter().any(|l| l.0 != [0; 2]);
    let avx = s.ymmh.iter().any(|l| l.0 != [0; 2]);
    (if x87 { X87 } else { 0 }) | (if sse { SSE } else { 0 }) | (if avx { AVX } else { 0 })
}

impl Interp<'_> {
    pub(super) fn fpu(&mut self, i: &Insn) -> Result<(), Halt> {
        match i.op {
            Op::Stmxcsr => {
                let va = self.address(&i.mem);
                let v = mxcsr::live(&self.v.state);
                self.store(Width::B4, va, u64::from(v))
            }
            Op::Ldmxcsr => {
                let va = self.address(&i.mem);
                let v = self.load(Width::B4, va)? as u32;
                self.check_mxcsr(v)?;
                mxcsr::load(&mut self.v.state, v);
                Ok(())
            }
            Op::Xgetbv => {
                let v = match self.gpr(RCX, Width::B4) {
                    0 => self.v.state.sys.xcr0,
                    1 => in_use(&self.v.state) & self.v.state.sys.xcr0,
                    _ => return self.halt(Exception::GENERAL_PROTECTION),
                };
                self.set_gpr(RAX, Width::B4, v & 0xffff_ffff);
                self.set_gpr(RDX, Width::B4, v >> 32);
                Ok(())
            }
            Op::Fxsave => self.fxsave(i),
            Op::Fxrstor => self.fxrstor(i),
            Op::Xsave => self.xsave(i),
            _ => self.xrstor(i),
        }
    }

    fn check_mxcsr(&mut self, v: u32) -> Result<(), Halt> {
        if v & !mxcsr::WRITABLE != 0 {
            return self.halt(Exception::GENERAL_PROTECTION);
        }
        Ok(())
    }

    fn aligned(&mut self, i: &Insn, to: u64) -> Result<u64, Halt> {
        let va = self.address(&i.mem);
        if va & (to - 1) != 0 {
            self.check_alignment(Width::B4, va)?;
            return self.halt(Exception::GENERAL_PROTECTION);
        }
        Ok(va)
    }

    fn fxsave(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.aligned(i, 16)?;
        // All of the operand must be writable, though its end is not written.
        let r = self.v.probe_write(va, 512);
        self.lift(r)?;
        let s = &self.v.state;
        let mut b = [0; 512];
        put_x87(s, i.width == Width::B8, &mut b);
        b[24..28].copy_from_slice(&mxcsr::live(s).to_le_bytes());
        b[28..32].copy_from_slice(&mxcsr::WRITABLE.to_le_bytes());
        put_lanes(&mut b[XMM_AT..FX_WRITTEN], &s.xmm);
        let r = self.v.write(va, &b[..FX_WRITTEN]);
        self.lift(r)
    }

    fn fxrstor(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.aligned(i, 16)?;
        let mut b = [0; 512];
        let r = self.v.read(va, &mut b);
        self.lift(r)?;
        let m = u32_at(&b, 24);
        self.check_mxcsr(m)?;
        let s = &mut self.v.state;
        get_x87(s, i.width == Width::B8, &b);
        get_lanes(&b[XMM_AT..FX_WRITTEN], &mut s.xmm);
        mxcsr::load(s, m);
        Ok(())
    }

    /// The components that EDX:EAX asks for.
    fn requested(&mut self) -> u64 {
        let lo = self.gpr(RAX, Width::B4);
        let hi = self.gpr(RDX, Width::B4);
        (hi << 32 | lo) & self.v.state.sys.xcr0
    }

    fn xsave(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.aligned(i, 64)?;
        let asked = self.requested();
        let kind = match i.ops[1] {
            Operand::Imm(k) => k,
            _ => 0,
        };
        let (optimised, compact) = (kind == 1, kind == 2);
        let s = &self.v.state;
        let live_mxcsr = mxcsr::live(s);
        let mut used = in_use(s);
        // MXCSR counts as SSE state where that decides whether it is written.
        if compact && live_mxcsr != MXCSR_INIT {
            used |= SSE;
        }
        let written = if optimised || compact {
            asked & used
        } else {
            asked
        };
        let size = if written & AVX != 0 { AREA } else { AVX_AT };
        let r = self.v.probe_write(va, size as u64);
        self.lift(r)?;
        let mut b = [0; AREA];
        let r = self.v.read(va, &mut b[..size]);
        self.lift(r)?;
        let s = &self.v.state;
        if written & X87 != 0 {
            let mut legacy = [0; 512];
            put_x87(s, i.width == Width::B8, &mut legacy);
            b[..24].copy_from_slice(&legacy[..24]);
            b[32..XMM_AT].copy_from_slice(&legacy[32..XMM_AT]);
        }
        let has_mxcsr = if compact {
            written & SSE != 0
        } else {
            asked & (SSE | AVX) != 0
        };
        if has_mxcsr {
            b[24..28].copy_from_slice(&live_mxcsr.to_le_bytes());
            b[28..32].copy_from_slice(&mxcsr::WRITABLE.to_le_bytes());
        }
        if written & SSE != 0 {
            put_lanes(&mut b[XMM_AT..FX_WRITTEN], &s.xmm);
        }
        if written & AVX != 0 {
            put_lanes(&mut b[AVX_AT..AREA], &s.ymmh);
        }
        let present = if compact {
            asked & used
        } else {
            u64_at(&b, LEGACY) & !asked | used & asked
        };
        b[LEGACY..LEGACY + 8].copy_from_slice(&present.to_le_bytes());
        if compact {
            b[LEGACY + 8..LEGACY + 16].copy_from_slice(&(asked | COMPACT).to_le_bytes());
        }
        let r = self.v.write(va, &b[..size]);
        self.lift(r)
    }

    fn xrstor(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.aligned(i, 64)?;
        let asked = self.requested();
        let mut b = [0; AREA];
        let r = self.v.read(va, &mut b[..AVX_AT]);
        self.lift(r)?;
        let (present, layout) = (u64_at(&b, LEGACY), u64_at(&b, LEGACY + 8));
        let compact = layout & COMPACT != 0;
        let xcr0 = self.v.state.sys.xcr0;
        let bad = if compact {
            layout & !(xcr0 | COMPACT) != 0
                || present & !layout != 0
                || b[LEGACY + 16..AVX_AT].iter().any(|x| *x != 0)
        } else {
            present & !xcr0 != 0 || b[LEGACY + 8..LEGACY + 24].iter().any(|x| *x != 0)
        };
        if bad {
            return self.halt(Exception::GENERAL_PROTECTION);
        }
        let load = asked & present;
        if load & AVX != 0 {
            let r = self.v.read(va + AVX_AT as u64, &mut b[AVX_AT..]);
            self.lift(r)?;
        }
        let m = u32_at(&b, 24);
        let loads_mxcsr = if compact {
            load & SSE != 0
        } else {
            asked & (SSE | AVX) != 0
        };
        if loads_mxcsr {
            self.check_mxcsr(m)?;
        }
        let s = &mut self.v.state;
        if load & X87 != 0 {
            let mut legacy = [0; 512];
            legacy.copy_from_slice(&b[..512]);
            get_x87(s, i.width == Width::B8, &legacy);
        } else if asked & X87 != 0 {
            s.fx.reset_x87();
        }
        if load & SSE != 0 {
            get_lanes(&b[XMM_AT..FX_WRITTEN], &mut s.xmm);
        } else if asked & SSE != 0 {
            s.xmm = [Lane::default(); 16];
        }
        if load & AVX != 0 {
            get_lanes(&b[AVX_AT..AREA], &mut s.ymmh);
        } else if asked & AVX != 0 {
            s.ymmh = [Lane::default(); 16];
        }
        if loads_mxcsr {
            mxcsr::load(s, m);
        } else if compact && asked & SSE != 0 {
            mxcsr::load(s, MXCSR_INIT);
        }
        Ok(())
    }
}
