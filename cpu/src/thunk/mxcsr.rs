//! MXCSR: where its parts live while guest code runs.
//!
//! Rounding, FTZ, DAZ and the sticky flags are in the host's own register. The six exception masks are in [`CpuState::mxcsr`]:
//! the host's are to stay set whatever the guest asks for, so that no guest operation raises SIGFPE in the host. Where the
//! guest's are clear, a thunk compares sticky flags before and after and raises #XM itself.

use core::arch::asm;

use crate::state::CpuState;

/// The exception masks of MXCSR.
pub const MASKS: u32 = 0x1f80;
/// The sticky exception flags of MXCSR.
pub const FLAGS: u32 = 0x3f;
/// The underflow exception's mask.
pub(super) const UNDERFLOW_MASK: u32 = 1 << 11;
/// Flush to zero.
pub(super) const FLUSH: u32 = 1 << 15;
/// The bits that a guest may set: bit 17 (misaligned SSE) and those above 15 are not offered.
pub const WRITABLE: u32 = 0xffff;

/// The host's MXCSR.
#[inline]
pub(super) fn host() -> u32 {
    let mut v = 0u32;
    // SAFETY: stores four bytes to a live local.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut v, options(nostack, preserves_flags)) };
    v
}

/// Loads the host's MXCSR; `v` has no reserved bit.
#[inline]
pub(super) fn set_host(v: u32) {
    let v = v & WRITABLE;
    // SAFETY: reads four bytes from a live local; no reserved bit is set, so it can't fault. The caller runs guest code under
    // this MXCSR, which is what it is for.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const v, options(nostack, preserves_flags, readonly))
    };
}

/// The guest's MXCSR, while the host's register holds its live part.
#[inline]
#[must_use]
pub fn live(state: &CpuState) -> u32 {
    host() & !MASKS | state.mxcsr & MASKS
}

/// Gives the guest this MXCSR, live: host register (with every exception masked) and state. Reserved bits are dropped; LDMXCSR
/// raises #GP for them before it comes here.
#[inline]
pub fn load(state: &mut CpuState, v: u32) {
    state.mxcsr = v & WRITABLE;
    set_host(v | MASKS);
}
