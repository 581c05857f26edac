//! The memory controller: DRAM, per-ASID keys, ciphers, plaintext residency, RMP, fast TLB.
//!
//! DRAM holds what a bus probe would see: ciphertext in private pages, plaintext in shared ones. [`MemCtl`] is the one way to it.
//! A private page that software uses is decrypted into a second mapping, `plain`, on first touch, and encrypted back when it is
//! evicted or when anyone outside its key domain looks ([`CacheMode::Page`]); or its lines are, as they come into simulated caches and
//! leave them ([`CacheMode::Hierarchy`], [`hier`]); or nothing is ever kept and every access runs AES
//! on its 16-byte blocks ([`CacheMode::None`]). The [`FastTlb`] is what translated code probes inline; the controller takes
//! entries out of it, before it returns, whenever they would be wrong. The [`Rmp`] is SNP's page-ownership table, in DRAM itself.
//!
//! Behind DRAM there may be a *window* ([`MemCtl::window`]): addresses at which pages of host files are mapped for sharing.
//!
//! Not here: virtual addresses, page walks (`cpu`), and where keys come from (`psp`).
//!
//! # Threads
//! [`MemCtl`] is `Sync`. What it guarantees between threads is that metadata, DRAM and keys stay consistent, and that tags are
//! gone from every attached [`FastTlb`] when a call that voids them returns. It can't stop a thread in the middle of an access
//! through a pointer it already took: whoever changes the domain of a page that another vCPU is using right now must stop that
//! vCPU first, as hardware does with a TLB shootdown.

pub mod cipher;
pub mod hier;
pub mod model;

mod ctl;
mod dram;
mod dump;
mod error;
mod firmware;
mod key;
mod keys;
mod lock;
mod place;
mod residency;
mod rmp;
mod stats;
mod tlb;
mod uncached;
mod view;
mod window;

pub use cipher::CipherKind;
pub use ctl::{CacheMode, Config, Domain, HostOptions, MIN_RESIDENT, MemCtl};
pub use error::Error;
pub use hier::{
    CountKind, FetchFilter, Grant, HierCounters, Level, Line, LineFilter, LineKind, Near, Served,
    ShortWay, Stalls, TAG_SHIFT,
};
pub use key::{KeyError, MemoryKey};
pub use keys::MAX_ASID;
pub use lock::Hold;
pub use rmp::{Grants, PageSize, Pvalidate, Rmp, RmpAccess, RmpAdjust, RmpFault, RmpReason};
pub use sevlab_arch::rmp::{RmpEntry, RmpStatus, RmpUpdate, VmplPerms};
pub use stats::MemStats;
pub use tlb::{Access, FastTlb, Granule, Perms, TlbEntry};
pub use window::check_file;
