//! Error bits of a nested page fault: EXITINFO1 of VMEXIT_NPF (APM vol. 2, 15.25.6 and 15.36.10), as
//! plain numbers, and one bit more.

use sevlab_arch::rmp::NpfError;

/// The nested translation was present.
pub const PRESENT: u64 = NpfError::PRESENT.bits();
/// The access was a write.
pub const WRITE: u64 = NpfError::WRITE.bits();
/// Always set: nested accesses count as user accesses.
pub const USER: u64 = NpfError::USER.bits();
/// A reserved bit was set in a nested entry.
pub const RESERVED: u64 = NpfError::RESERVED.bits();
/// The access was an instruction fetch.
pub const FETCH: u64 = NpfError::FETCH.bits();
/// The RMP check failed.
pub const RMP: u64 = NpfError::RMP.bits();
/// The fault was on the access's final guest physical address.
pub const FINAL: u64 = NpfError::FINAL.bits();
/// The fault was on the guest's page tables.
pub const TABLE: u64 = NpfError::WALK.bits();
/// The guest's effective C-bit was 1.
pub const ENC: u64 = NpfError::ENC.bits();
/// The VMPL permissions deny the access.
pub const VMPL: u64 = NpfError::VMPL.bits();
/// Not a hardware bit: the frame is the guest's but not validated. Hardware raises #VC in the guest
/// with error code 0x404 (PAGE_NOT_VALIDATED); whoever runs the guest half turns this stop into it.
/// It never comes with [`RMP`].
pub const NOT_VALIDATED: u64 = 1 << 63;
