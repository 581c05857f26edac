#![allow(unsafe_code)] // a pipe's descriptors
//! Clones that share memory with their original for a while (vfork): the original waits, and takes the
//! pages that the clone changed, as they are in DRAM: ciphertext under the key that both have.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use sevlab_arch::{Gpa, PAGE_SIZE};
use sevlab_cpu::Vcpu;

use super::Hypervisor;
use super::hostcall::Board;
use crate::kernel::syscall::marshal::KERNEL_FDS_END;

/// A page on its way: its guest physical address, then its bytes in DRAM.
const PARCEL: usize = 8 + PAGE_SIZE as usize;

impl Hypervisor {
    /// Clones the machine; with `vfork`, both sides keep an end of a pipe.
    pub(super) fn fork(&mut self, board: &dyn Board, vcpu: &mut Vcpu, vfork: bool) -> i64 {
        let ends = if vfork {
            match pipe() {
                Ok(ends) => Some(ends),
                Err(e) => return -i64::from(e.raw_os_error().unwrap_or(libc::EMFILE)),
            }
        } else {
            None
        };
        let mut pid = board.fork(vcpu, self.cpu);
        if let Some(pids) = &self.calls.pids {
            match pid {
                0 => pids.forked(),
                made => pid = pids.made(made),
            }
        }
        self.clone_pipe = ends.map(|(read, write)| if pid == 0 { write } else { read });
        if pid == 0 {
            self.calls.executed = 0;
            self.exits = super::Exits::default();
        }
        pid
    }

    /// Waits for the clone to let go, and takes what it gives.
    pub(super) fn vfork_wait(&mut self) -> i64 {
        let Some(mut pipe) = self.clone_pipe.take() else {
            return 0;
        };
        let mut parcel = [0; PARCEL];
        while read_whole(&mut pipe, &mut parcel) {
            let (gpa, page) = parcel.split_at(8);
            let gpa = Gpa(u64::from_le_bytes(core::array::from_fn(|i| gpa[i])));
            if let Some(spa) = self.layout.spa(gpa) {
                self.mem.bus_write(spa, page);
            }
        }
        0
    }

    /// Gives pages whose addresses are in the bounce area to the original.
    pub(super) fn vfork_give(&mut self, count: u64) -> i64 {
        let Some(mut pipe) = self.clone_pipe.take() else {
            return 0;
        };
        let mut list = vec![0; (count as usize).saturating_mul(8).min(1 << 20)];
        self.calls.bounced(&mut list);
        let mut parcel = [0; PARCEL];
        for entry in list.chunks_exact(8) {
            let gpa = Gpa(u64::from_le_bytes(core::array::from_fn(|i| entry[i])));
            if let Some(spa) = self.layout.spa(gpa.page()) {
                parcel[..8].copy_from_slice(entry);
                self.mem.bus_read(spa, &mut parcel[8..]);
                if pipe.write_all(&parcel).is_err() {
                    break; // the original is gone
                }
            }
        }
        self.clone_pipe = Some(pipe);
        0
    }
}

/// Reads exactly so much; false at the end. The host's signals do not end it: vfork can't be interrupted.
fn read_whole(pipe: &mut File, out: &mut [u8]) -> bool {
    pipe.read_exact(out).is_ok()
}

/// A pipe whose ends lie in the host's own range of descriptors.
fn pipe() -> std::io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: both were just opened and have no other owner.
    let [read, write] = fds.map(|fd| unsafe { File::from_raw_fd(fd) });
    Ok((high(&read)?, high(&write)?))
}

/// The same file behind a descriptor that no guest can name.
pub(crate) fn high(file: &File) -> std::io::Result<File> {
    // SAFETY: a live descriptor; the result is a new one with no other owner.
    unsafe {
        let fd = libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, KERNEL_FDS_END);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(File::from_raw_fd(fd))
    }
}
