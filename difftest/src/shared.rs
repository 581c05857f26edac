//! What worker processes and their parent share: counters, and the case that each worker is running.
#![allow(unsafe_code)] // memory shared between processes

use crate::case::Case;
use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Room for rows.
pub const ROWS: usize = 8192;
/// Most workers.
pub const WORKERS: usize = 64;
/// Room for signatures of failures.
const SIGNATURES: usize = 4096;

/// Zero bytes are its initial state.
#[repr(C)]
#[derive(Debug)]
pub struct Shared {
    /// Everybody is to stop.
    pub stop: AtomicBool,
    /// Cases begun.
    pub begun: AtomicU64,
    /// Cases compared.
    pub cases: AtomicU64,
    /// Cases that the translator ran too.
    pub translated_cases: AtomicU64,
    /// Guest instructions in the translator's last runs, and how many of them it left to the interpreter.
    pub translated_insns: [AtomicU64; 2],
    /// Cases that did not end.
    pub endless: AtomicU64,
    /// Cases that differ.
    pub failed: AtomicU64,
    /// Cases with a known difference, by reason.
    pub known: [AtomicU64; 32],
    /// Failures that were found to be different ones.
    pub different: AtomicU64,
    /// Cases whose sticky MXCSR flags alone differ in optimised translated code.
    pub sticky: AtomicU64,
    /// Regions that the translator refused.
    pub refused: AtomicU64,
    /// How often each row ran.
    pub ran: [AtomicU64; ROWS],
    /// How often each row was in a case that the translator ran.
    pub translated: [AtomicU64; ROWS],
    signatures: [AtomicU64; SIGNATURES],
    running: [Slot; WORKERS],
}

#[repr(C)]
struct Slot {
    busy: AtomicBool,
    case: UnsafeCell<Case>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({:?})", self.busy)
    }
}

// SAFETY: a slot's case is written by its worker alone, and read by the parent after that worker is gone.
unsafe impl Sync for Shared {}

impl Shared {
    /// Fresh counters in memory that children share. Never freed.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn new() -> io::Result<&'static Self> {
        // SAFETY: a new mapping.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed, large enough, page-aligned, never unmapped; zeros are valid for every field.
        Ok(unsafe { &*p.cast::<Self>() })
    }

    /// Worker `w` begins a case.
    pub fn begin(&self, w: usize, case: &Case) {
        let slot = &self.running[w % WORKERS];
        // SAFETY: only this worker writes its slot, and the parent reads it after the worker's end.
        unsafe { *slot.case.get() = *case };
        slot.busy.store(true, Ordering::Release);
    }
    /// Worker `w` is done with it.
    pub fn end(&self, w: usize) {
        self.running[w % WORKERS]
            .busy
            .store(false, Ordering::Release);
    }
    /// The case that worker `w`, which is gone, was running.
    pub fn left(&self, w: usize) -> Option<Case> {
        let slot = &self.running[w % WORKERS];
        slot.busy.swap(false, Ordering::AcqRel).then(|| {
            // SAFETY: the worker is gone; it left a whole case.
            unsafe { *slot.case.get() }
        })
    }

    /// Counts a failure with this signature; returns how many there were before.
    pub fn note(&self, signature: u64) -> u64 {
        let signature = signature | 1;
        let mut at = signature as usize % SIGNATURES;
        for _ in 0..SIGNATURES / 2 {
            let key = &self.signatures[at & !1];
            let count = &self.signatures[at | 1];
            match key.compare_exchange(0, signature, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return count.fetch_add(1, Ordering::AcqRel),
                Err(k) if k == signature => return count.fetch_add(1, Ordering::AcqRel),
                Err(_) => at = (at + 2) % SIGNATURES,
            }
        }
        0
    }
}
