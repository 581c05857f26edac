//! The secure processor: firmware commands, keys, launch measurement.
//!
//! The hypervisor writes a command buffer into DRAM and submits its address, as it would to the real
//! device's mailbox ([`Firmware::submit`]); [`driver`] fills the buffers. The secure processor is the only
//! source of memory encryption keys: they reach the memory controller at ACTIVATE and nowhere else.
//!
//! Layouts and numbers are in `sevlab_arch::psp`. Attestation reports and certificates of SNP are not here.

mod cert;
mod config;
mod dram;
pub mod driver;
mod entropy;
mod firmware;
mod keys;
mod measure;
pub mod owner;
mod pages;
mod session;
mod sev;
mod snp;

pub use config::{ApiVersion, Config, CpuidLeaf, CpuidPolicy};
pub use entropy::Entropy;
pub use firmware::Firmware;
pub use keys::kdf;
pub use measure::{SnpDigest, VmplPerms};
pub use snp::Identity;
