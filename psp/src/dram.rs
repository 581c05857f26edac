//! How the firmware reaches DRAM: raw, by system physical address, with every range checked first.

use std::sync::Arc;

use sevlab_arch::psp::Status;
use sevlab_arch::{PAGE_SIZE, Spa};
use sevlab_memctl::{Domain, MemCtl};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The firmware's port to memory.
#[derive(Clone)]
pub(crate) struct Dram(pub(crate) Arc<MemCtl>);

impl Dram {
    /// Whether `len` bytes at `at` lie inside DRAM.
    pub(crate) fn contains(&self, at: Spa, len: u64) -> bool {
        at.0.checked_add(len)
            .is_some_and(|end| end <= self.0.size())
    }

    /// Refuses ranges outside DRAM.
    pub(crate) fn check(&self, at: Spa, len: u64) -> Result<(), Status> {
        if self.contains(at, len) {
            Ok(())
        } else {
            Err(Status::INVALID_ADDRESS)
        }
    }

    pub(crate) fn read(&self, at: Spa, out: &mut [u8]) -> Result<(), Status> {
        self.check(at, out.len() as u64)?;
        self.0
            .read(Domain::Shared, at, out)
            .map_err(|_| Status::HWERROR_PLATFORM)
    }

    pub(crate) fn write(&self, at: Spa, data: &[u8]) -> Result<(), Status> {
        self.check(at, data.len() as u64)?;
        self.0
            .write(Domain::Shared, at, data)
            .map_err(|_| Status::HWERROR_PLATFORM)
    }

    /// Reads a structure.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, at: Spa) -> Result<T, Status> {
        let mut value = T::new_zeroed();
        self.read(at, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a structure.
    pub(crate) fn put<T: IntoBytes + Immutable>(&self, at: Spa, value: &T) -> Result<(), Status> {
        self.write(at, value.as_bytes())
    }
}

/// The 4 KiB pages that `len` bytes at `at` touch.
pub(crate) fn pages(at: Spa, len: u64) -> impl Iterator<Item = Spa> {
    let first = at.page().0;
    let last = at.0.saturating_add(len.saturating_sub(1)) & !(PAGE_SIZE - 1);
    (first..=last).step_by(PAGE_SIZE as usize).map(Spa)
}
