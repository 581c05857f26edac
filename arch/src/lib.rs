//! SEV, SVM and x86-64 facts: register and table layouts, exit codes, numbers.
//!
//! Facts only: no behaviour, no unsafe code. Every offset and size is asserted at compile time.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;

pub mod addr;
pub mod cpuid;
pub mod exit;
pub mod ghcb;
pub mod msr;
pub mod paging;
pub mod psp;
pub mod rmp;
pub mod secrets;
pub mod snp;
pub mod vector;
pub mod vmcb;
pub mod vmsa;

pub use addr::{Asid, Gpa, PAGE_SHIFT, PAGE_SIZE, Spa, Va};
