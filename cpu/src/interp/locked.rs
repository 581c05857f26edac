//! Locked accesses: read-modify-writes that other vCPUs see whole.
//!
//! An access inside one host cache line is one locked host instruction, aligned or not. One that crosses a line, or whose
//! memory has no host address (cache mode `none`), is a read and a write under a process-wide lock: atomic against its like.
//! (A locked access of the host across lines would be atomic against everything, and stop the whole host for it; hosts that
//! detect such accesses slow the process down or kill it.)
//!
//! Every way is a full barrier, as LOCK is.

use core::arch::asm;
use core::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Halt, Interp};
use crate::builder::{Builder, Rmw};
use crate::insn::Width;

/// Bytes of a host cache line.
const LINE: u64 = 64;

static SPLIT: Mutex<()> = Mutex::new(());

/// The right to do a locked access in two steps.
fn split() -> MutexGuard<'static, ()> {
    let guard = SPLIT.lock().unwrap_or_else(PoisonError::into_inner);
    fence(Ordering::SeqCst);
    guard
}

/// A full barrier: MFENCE.
#[inline]
pub(super) fn barrier() {
    // SAFETY: a fence.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

macro_rules! locked {
    ($name:ident, $text:literal, $($reg:ident: $class:ident $t:ty),*) => {
        /// One locked instruction; returns what was there.
        ///
        /// # Safety
        /// `at` is mapped and writable for the width, and all of it lies in one line.
        #[inline]
        unsafe fn $name(at: *mut u8, w: Width, v: u64) -> u64 {
            // SAFETY: the caller says so; guest memory is only ever accessed as raw memory.
            unsafe {
                match w {
                    $(Width::$reg => {
                        let mut v = v as $t;
                        asm!(concat!($text, ", {v", locked!(@m $reg), "}"), at = in(reg) at, v = inout($class) v, options(nostack));
                        v as u64
                    })*
                }
            }
        }
    };
    (@m B1) => { "" };
    (@m B2) => { ":x" };
    (@m B4) => { ":e" };
    (@m B8) => { ":r" };
}
locked!(xadd, "lock xadd [{at}]", B1: reg_byte u8, B2: reg u16, B4: reg u32, B8: reg u64);
locked!(xchg, "xchg [{at}]", B1: reg_byte u8, B2: reg u16, B4: reg u32, B8: reg u64);

/// LOCK CMPXCHG; returns what was there.
///
/// # Safety
/// As [`xadd`].
#[inline]
unsafe fn cmpxchg(at: *mut u8, w: Width, expected: u64, new: u64) -> u64 {
    let mut a = expected;
    // SAFETY: the caller says so.
    unsafe {
        match w {
            Width::B1 => {
                asm!("lock cmpxchg [{at}], {n}", at = in(reg) at, n = in(reg_byte) new as u8, inout("rax") a, options(nostack));
            }
            Width::B2 => {
                asm!("lock cmpxchg [{at}], {n:x}", at = in(reg) at, n = in(reg) new, inout("rax") a, options(nostack));
            }
            Width::B4 => {
                asm!("lock cmpxchg [{at}], {n:e}", at = in(reg) at, n = in(reg) new, inout("rax") a, options(nostack));
            }
            Width::B8 => {
                asm!("lock cmpxchg [{at}], {n}", at = in(reg) at, n = in(reg) new, inout("rax") a, options(nostack));
            }
        }
    }
    a & w.mask()
}

/// LOCK CMPXCHG16B; returns the old value.
///
/// # Safety
/// `at` is mapped, writable and 16-byte aligned; the host has the instruction (every x86-64-v2 host).
unsafe fn cmpxchg_16(at: *mut u8, expected: [u64; 2], new: [u64; 2]) -> [u64; 2] {
    let [mut lo, mut hi] = expected;
    // SAFETY: the caller says so. RBX can't be an operand, so it is exchanged and put back.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new[0] => _,
            in("rdi") at,
            in("rcx") new[1],
            inout("rax") lo,
            inout("rdx") hi,
            options(nostack),
        );
    }
    [lo, hi]
}

fn apply(op: Rmw, old: u64, v: u64) -> u64 {
    match op {
        Rmw::Add => old.wrapping_add(v),
        Rmw::Sub => old.wrapping_sub(v),
        Rmw::And => old & v,
        Rmw::Or => old | v,
        Rmw::Xor => old ^ v,
        Rmw::Xchg => v,
    }
}

impl Interp<'_> {
    /// The host address for a locked access of `n` bytes, if it lies in one line and has one; that it may be written is
    /// known then.
    fn in_one_line(&mut self, n: u64, va: u64) -> Result<Option<*mut u8>, Halt> {
        let r = self.v.host_for_write(va, n);
        let host = self.lift(r)?;
        // Host pages are aligned as guest pages are.
        Ok(host
            .map(core::ptr::NonNull::as_ptr)
            .filter(|_| va & (LINE - 1) <= LINE - n))
    }

    pub(super) fn locked_rmw(&mut self, op: Rmw, w: Width, va: u64, v: u64) -> Result<u64, Halt> {
        self.check_alignment(w, va)?;
        let Some(at) = self.in_one_line(u64::from(w.bytes()), va)? else {
            let _alone = split();
            let old = self.load_rmw(w, va)?;
            self.store(w, va, apply(op, old, v) & w.mask())?;
            return Ok(old);
        };
        // SAFETY: a host address of mapped writable guest memory, inside one line.
        unsafe {
            match op {
                Rmw::Add => return Ok(xadd(at, w, v)),
                Rmw::Sub => return Ok(xadd(at, w, v.wrapping_neg())),
                Rmw::Xchg => return Ok(xchg(at, w, v)),
                Rmw::And | Rmw::Or | Rmw::Xor => {}
            }
            let mut old = cmpxchg(at, w, 0, 0);
            loop {
                let seen = cmpxchg(at, w, old, apply(op, old, v) & w.mask());
                if seen == old {
                    return Ok(old);
                }
                old = seen;
            }
        }
    }

    pub(super) fn locked_cas(
        &mut self,
        w: Width,
        va: u64,
        expected: u64,
        new: u64,
    ) -> Result<u64, Halt> {
        self.check_alignment(w, va)?;
        let Some(at) = self.in_one_line(u64::from(w.bytes()), va)? else {
            let _alone = split();
            let old = self.load_rmw(w, va)?;
            self.store(w, va, if old == expected { new } else { old })?;
            return Ok(old);
        };
        // SAFETY: as in `locked_rmw`.
        Ok(unsafe { cmpxchg(at, w, expected, new) })
    }

    /// `va` is 16-byte aligned.
    pub(super) fn locked_cas_16(
        &mut self,
        va: u64,
        expected: [u64; 2],
        new: [u64; 2],
    ) -> Result<[u64; 2], Halt> {
        let Some(at) = self.in_one_line(16, va)? else {
            let _alone = split();
            let w = Width::B8;
            let old = [self.load_rmw(w, va)?, self.load_rmw(w, va + 8)?];
            let put = if old == expected { new } else { old };
            self.store(w, va, put[0])?;
            self.store(w, va + 8, put[1])?;
            return Ok(old);
        };
        // SAFETY: a host address of 16 mapped writable bytes, aligned as the guest's address is.
        Ok(unsafe { cmpxchg_16(at, expected, new) })
    }
}
