//! The GHCB protocol, guest and hypervisor halves.
//!
//! A guest with encrypted registers tells the hypervisor what it wants by filling a shared page (the GHCB) and executing
//! VMGEXIT, or, before it has such a page, by a value in the GHCB MSR. Both halves here work on a local copy of the page:
//! whoever calls them copies it from and to shared memory, once, so nothing can change between a check and its use.
//!
//! - [`Request`] and [`Response`] are the closed sets both halves speak.
//! - [`guest`] fills a page from a request and checks the response.
//! - [`hv`] validates a page into a request and writes the response, a refusal or an exception.
//! - [`msr`] is the protocol of the GHCB MSR.
//! - [`psc`] is the list of a page state change.
//!
//! Nothing here executes a request. Source: GHCB specification (AMD 56421).

pub mod guest;
pub mod hv;
pub mod msr;
pub mod psc;
mod request;

pub use request::{
    ApCreation, ApOperation, Doorbell, ExtendedRequest, Hypercall, IoSize, Request, Response,
    Scratch, Shape, StringIo,
};
pub use sevlab_arch::ghcb::{ErrorCode, FieldNotValid, Ghcb, HvFeatures};

use sevlab_arch::{Gpa, PAGE_SIZE, paging};

/// Whether the address is a guest physical address at all: below the C-bit.
pub(crate) const fn is_gpa(address: u64) -> bool {
    address < paging::C_MASK
}

/// A page-aligned guest physical address.
pub(crate) const fn page(address: u64) -> Option<Gpa> {
    if is_gpa(address) && address.is_multiple_of(PAGE_SIZE) {
        Some(Gpa(address))
    } else {
        None
    }
}
