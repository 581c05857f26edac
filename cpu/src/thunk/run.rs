//! Running a thunk: memory operand to scratch and back, faults before effects, x87 and SIMD exceptions.

use super::soft::{self, Soft};
use super::{Pointers, Thunk, mxcsr, x87};
use crate::flags::LazyFlags;
use crate::insn::Insn;
use crate::state::{CpuState, FxImage};
use crate::stop::{Exception, Stop};

/// Guest memory by linear address. Each call does all of its access or none of it.
pub trait ThunkMemory {
    /// Loads `out.len()` bytes.
    ///
    /// # Errors
    /// The access stops: page fault, host failure.
    fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop>;
    /// Stores `data`.
    ///
    /// # Errors
    /// The access stops: page fault, host failure.
    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop>;
    /// Raises what a store of `len` bytes would, without storing.
    ///
    /// # Errors
    /// The access would stop.
    fn probe_write(&mut self, va: u64, len: usize) -> Result<(), Stop>;
}

/// A processor: registers and memory in one.
pub trait ThunkCpu: ThunkMemory {
    /// The registers.
    fn state(&mut self) -> &mut CpuState;

    /// A gather has loaded an element.
    fn loaded_element(&mut self) {}

    /// Loads `len` bytes (at most 128) into scratch; more of it may be overwritten.
    ///
    /// # Errors
    /// As [`ThunkMemory::read`].
    #[inline]
    fn load_scratch(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        match len {
            4 => load::<4, _>(self, va)?,
            8 => load::<8, _>(self, va)?,
            16 => load::<16, _>(self, va)?,
            32 => load::<32, _>(self, va)?,
            _ => {
                let mut b = [0; 128];
                self.read(va, &mut b[..len])?;
                self.state().scratch.0[..128].copy_from_slice(&b);
            }
        }
        Ok(())
    }
    /// Stores `len` bytes (at most 128) from scratch.
    ///
    /// # Errors
    /// As [`ThunkMemory::write`].
    #[inline]
    fn store_scratch(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        match len {
            4 => store::<4, _>(self, va),
            8 => store::<8, _>(self, va),
            16 => store::<16, _>(self, va),
            32 => store::<32, _>(self, va),
            _ => {
                let mut b = [0; 128];
                b.copy_from_slice(&self.state().scratch.0[..128]);
                self.write(va, &b[..len])
            }
        }
    }
}

// The common sizes are constants, so that a copy is a register move.

#[inline(always)]
fn load<const N: usize, C: ThunkCpu + ?Sized>(cpu: &mut C, va: u64) -> Result<(), Stop> {
    let mut b = [0; N];
    cpu.read(va, &mut b)?;
    cpu.state().scratch.0[..N].copy_from_slice(&b);
    Ok(())
}

#[inline(always)]
fn store<const N: usize, C: ThunkCpu + ?Sized>(cpu: &mut C, va: u64) -> Result<(), Stop> {
    let mut b = [0; N];
    b.copy_from_slice(&cpu.state().scratch.0[..N]);
    cpu.write(va, &b)
}

/// State and memory that are not one value.
struct Pair<'a, M> {
    state: &'a mut CpuState,
    mem: &'a mut M,
}

impl<M: ThunkMemory> ThunkMemory for Pair<'_, M> {
    #[inline]
    fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        self.mem.read(va, out)
    }
    #[inline]
    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        self.mem.write(va, data)
    }
    #[inline]
    fn probe_write(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.mem.probe_write(va, len)
    }
}

impl<M: ThunkMemory> ThunkCpu for Pair<'_, M> {
    #[inline]
    fn state(&mut self) -> &mut CpuState {
        self.state
    }
}

/// Runs a thunk on separate registers and memory. `va` is the linear address of the memory operand (ignored where there is none,
/// and by gathers and MASKMOV, which compute theirs). RIP is not advanced.
///
/// # Errors
/// Why the instruction did not complete; registers and memory are then as before it (a gather has its elements so far).
#[inline]
pub fn run<M: ThunkMemory>(
    t: &Thunk,
    state: &mut CpuState,
    mem: &mut M,
    i: &Insn,
    va: u64,
) -> Result<(), Stop> {
    run_on(t, &mut Pair { state, mem }, i, va)
}

/// As [`run()`], on a processor.
///
/// # Errors
/// As [`run()`].
#[inline]
pub fn run_on<C: ThunkCpu>(t: &Thunk, cpu: &mut C, i: &Insn, va: u64) -> Result<(), Stop> {
    if t.x87 || !matches!(t.soft, Soft::None) {
        return run_special(t, cpu, i, va);
    }
    before(t, cpu, va, t.mem_read)?;
    call(t, cpu)?;
    if t.mem_write != 0 {
        cpu.store_scratch(va, usize::from(t.mem_write))?;
    }
    Ok(())
}

/// Everything that can fault, then the operand (`load` bytes of it), then flags.
#[inline]
fn before<C: ThunkCpu>(t: &Thunk, cpu: &mut C, va: u64, load: u16) -> Result<(), Stop> {
    if va & u64::from(t.align).wrapping_sub(1) != 0 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }
    if t.piece != 0 {
        if t.mem_write != 0 {
            cpu.probe_write(va, usize::from(t.piece))?;
        } else {
            cpu.read(va, &mut [0; 8][..usize::from(t.piece.min(8))])?;
        }
    }
    if t.probe {
        cpu.probe_write(va, usize::from(t.mem_write))?;
    }
    if load != 0 {
        cpu.load_scratch(va, usize::from(load))?;
    }
    if t.explicit {
        let s = cpu.state();
        s.cc = LazyFlags::explicit(s.cc.bits());
    }
    Ok(())
}

/// Calls the host code, raising unmasked SIMD exceptions.
#[inline]
fn call<C: ThunkCpu>(t: &Thunk, cpu: &mut C) -> Result<(), Stop> {
    let s = cpu.state();
    if t.simd && s.mxcsr & mxcsr::MASKS != mxcsr::MASKS {
        return call_unmasked(t, s);
    }
    // SAFETY: a thunk's entry is host code that `make` emitted for this signature and that is never unmapped; it accesses only
    // the state it is given, which is borrowed exclusively.
    unsafe { (t.entry)(s) };
    Ok(())
}

/// Runs with every exception masked and clear, then sees which were raised.
///
/// IE, DE and ZE are found before the operation: where one of them is unmasked, later ones are not reported. A tiny result raises
/// an unmasked UE even if it is exact, which a masked UE does not show; flushing to zero shows it, and changes nothing where
/// there is none. Which exception is raised is exact; PE beside an unmasked OE or UE may be reported too often, and a dot product
/// that stops between its steps may report different flags.
#[cold]
fn call_unmasked(t: &Thunk, s: &mut CpuState) -> Result<(), Stop> {
    const EARLY: u32 = 0b111;
    const UNDERFLOW: u32 = 1 << 4;
    let (gpr, xmm, ymmh, cc) = (s.gpr, s.xmm, s.ymmh, s.cc);
    let fx = FxImage(s.fx.0);
    let host = mxcsr::host();
    let masked = host & !mxcsr::FLAGS | mxcsr::MASKS;
    let mut raised = 0;
    if s.mxcsr & mxcsr::UNDERFLOW_MASK == 0 && t.halves == 0 {
        let scratch = FxImage(s.scratch.0);
        mxcsr::set_host(masked | mxcsr::FLUSH);
        // SAFETY: as in `call`.
        unsafe { (t.entry)(s) };
        raised = mxcsr::host() & UNDERFLOW;
        (s.gpr, s.xmm, s.ymmh, s.cc) = (gpr, xmm, ymmh, cc);
        (s.fx, s.scratch) = (FxImage(fx.0), scratch);
    }
    mxcsr::set_host(masked);
    // SAFETY: as in `call`.
    unsafe { (t.entry)(s) };
    raised |= mxcsr::host() & mxcsr::FLAGS;
    if t.halves != 0 && s.mxcsr & mxcsr::UNDERFLOW_MASK == 0 && tiny_halves(t, s) {
        raised |= UNDERFLOW;
    }
    let unmasked = raised & !(s.mxcsr >> 7);
    let reported = if unmasked & EARLY != 0 {
        raised & EARLY
    } else {
        raised
    };
    mxcsr::set_host(host | reported | mxcsr::MASKS);
    if unmasked == 0 {
        return Ok(());
    }
    (s.gpr, s.xmm, s.ymmh, s.cc, s.fx) = (gpr, xmm, ymmh, cc, fx);
    if t.mmx {
        // The change of mode comes before the operation.
        s.fx.enter_mmx();
    }
    Err(Exception::SIMD.into())
}

/// Whether a result of VCVTPS2PH, which does not flush to zero, is a denormal.
fn tiny_halves(t: &Thunk, s: &CpuState) -> bool {
    let mut bytes = [0; 16];
    if t.mem_write != 0 {
        bytes.copy_from_slice(&s.scratch.0[..16]);
    } else {
        let lane = s.xmm[usize::from(t.half_dst & 15)].0;
        bytes[..8].copy_from_slice(&lane[0].to_le_bytes());
        bytes[8..].copy_from_slice(&lane[1].to_le_bytes());
    }
    bytes[..2 * usize::from(t.halves.min(8))]
        .chunks_exact(2)
        .any(|h| h[1] & 0x7c == 0 && (h[0] != 0 || h[1] & 3 != 0))
}

#[cold]
#[inline(never)]
fn run_special<C: ThunkCpu>(t: &Thunk, cpu: &mut C, i: &Insn, va: u64) -> Result<(), Stop> {
    if !matches!(t.soft, Soft::None) {
        return soft::run(&t.soft, cpu, va);
    }
    let fx = &cpu.state().fx;
    if t.waits && fx.pending() {
        return Err(Exception::X87.into());
    }
    let mut pointers = fx.pointers();
    let before_all = (t.mem_write != 0 && t.waits && fx.unmasked()).then_some(FxImage(fx.0));
    let stores = match &before_all {
        Some(fx) => call_store(t, cpu, fx),
        None => {
            before(t, cpu, va, t.mem_read)?;
            call(t, cpu)?;
            true
        }
    };
    let s = cpu.state();
    if t.env != 0 {
        patch_environment(&mut s.scratch, t.env, pointers.instruction, pointers.data);
    }
    match t.pointers {
        Pointers::Clear => s.fx.set_pointers(x87::Pointers::default()),
        Pointers::Load => {
            let loaded = environment(&s.scratch, t.mem_read);
            s.fx.set_pointers(loaded);
        }
        Pointers::Keep => s.fx.set_pointers(pointers),
        Pointers::Update => {
            pointers.opcode = opcode(i);
            pointers.instruction = i.rip;
            if t.mem_read | t.mem_write != 0 {
                let base = s.seg.get(usize::from(i.mem.seg)).map_or(0, |g| g.base);
                pointers.data = va.wrapping_sub(base);
            }
            s.fx.set_pointers(pointers);
        }
    }
    if t.mem_write != 0 && stores {
        let mut done = Ok(());
        if t.piece != 0 && before_all.is_some() {
            done = cpu.probe_write(va, usize::from(t.piece));
        }
        if done.is_ok() {
            done = cpu.store_scratch(va, usize::from(t.mem_write));
        }
        if let (Err(_), Some(fx)) = (&done, before_all) {
            cpu.state().fx = fx;
        }
        return done;
    }
    Ok(())
}

/// Calls an x87 store that may raise an unmasked exception, in which case it does not store, and its operand is not looked at.
/// Whether scratch was written is seen by what it held before: one pattern, and the other if the first is still there.
#[cold]
fn call_store<C: ThunkCpu>(t: &Thunk, cpu: &mut C, fx: &FxImage) -> bool {
    let n = usize::from(t.mem_write).min(128);
    let s = cpu.state();
    for pattern in [0x5a, 0xa5] {
        s.fx = FxImage(fx.0);
        s.scratch.0[..n].fill(pattern);
        // SAFETY: as in `call`.
        unsafe { (t.entry)(s) };
        if s.scratch.0[..n].iter().any(|b| *b != pattern) {
            return true;
        }
    }
    false
}

/// The pointers that FNSTENV stores, whatever the host's unit held: hosts do not load them in every state.
fn patch_environment(scratch: &mut FxImage, format: u8, instruction: u64, data: u64) {
    let b = &mut scratch.0;
    if format == 14 {
        b[6..8].copy_from_slice(&(instruction as u16).to_le_bytes());
        b[10..12].copy_from_slice(&(data as u16).to_le_bytes());
    } else {
        b[12..16].copy_from_slice(&(instruction as u32).to_le_bytes());
        b[20..24].copy_from_slice(&(data as u32).to_le_bytes());
    }
}

/// The pointers in an environment of this many bytes, with or without registers behind it: hosts do not save them in every
/// state. The short form has no opcode.
fn environment(scratch: &FxImage, bytes: u16) -> x87::Pointers {
    let b = &scratch.0;
    let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
    if matches!(bytes, 14 | 94) {
        x87::Pointers {
            opcode: 0,
            instruction: half(6).into(),
            data: half(10).into(),
        }
    } else {
        x87::Pointers {
            opcode: half(18) & 0x7ff,
            instruction: word(12),
            data: word(20),
        }
    }
}

/// The x87 opcode: low three bits of the first byte, and the ModRM byte.
fn opcode(i: &Insn) -> u16 {
    let bytes = &i.bytes;
    let at = bytes.iter().position(|b| b & 0xf8 == 0xd8).unwrap_or(0);
    let second = bytes.get(at + 1).copied().unwrap_or(0);
    u16::from(bytes[at] & 7) << 8 | u16::from(second)
}
