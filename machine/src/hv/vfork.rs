#![allow(unsafe_code)] // a pipe's descriptors
//! Clones that share memory with their original for a while (vfork): the original waits, and takes the
//! pages that the clone changed, as they are in DRAM: ciphertext under the key that both have.

use std::collections::HashSet;
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

    /// Waits for the clone to let go, or to tell something and give pages with that.
    pub(super) fn vfork_wait(&mut self) -> i64 {
        let Some(mut pipe) = self.clone_pipe.take() else {
            return 0;
        };
        let Some(told) = read_part(&mut pipe) else {
            return 0;
        };
        self.given = read_part(&mut pipe).unwrap_or_default();
        self.clone_pipe = Some(pipe);
        self.calls.bounce(&told);
        told.len() as i64
    }

    /// Takes pages that were given last: those whose addresses are in the bounce area.
    pub(super) fn vfork_take(&mut self, count: u64) -> i64 {
        let wanted: HashSet<Gpa> = self.bounced_list(count).into_iter().collect();
        for parcel in std::mem::take(&mut self.given).chunks_exact(PARCEL) {
            let (gpa, page) = parcel.split_at(8);
            let gpa = word(gpa);
            if let Some(spa) = self.layout.spa(gpa).filter(|_| wanted.contains(&gpa)) {
                self.mem.bus_write(spa, page);
            }
        }
        0
    }

    /// Tells the original what is in the bounce area.
    pub(super) fn vfork_tell(&mut self, len: u64) -> i64 {
        let mut told = vec![0; len.min(1 << 20) as usize];
        self.calls.bounced(&mut told);
        self.send(&told)
    }

    /// Gives pages whose addresses are in the bounce area to the original.
    pub(super) fn vfork_give(&mut self, count: u64) -> i64 {
        let mut parcels = Vec::new();
        let mut page = [0; PAGE_SIZE as usize];
        for gpa in self.bounced_list(count) {
            if let Some(spa) = self.layout.spa(gpa.page()) {
                self.mem.bus_read(spa, &mut page);
                parcels.extend_from_slice(&gpa.0.to_le_bytes());
                parcels.extend_from_slice(&page);
            }
        }
        self.send(&parcels)
    }

    fn bounced_list(&self, count: u64) -> Vec<Gpa> {
        let mut list = vec![0; count.min(1 << 17) as usize * 8];
        self.calls.bounced(&mut list);
        list.chunks_exact(8).map(word).collect()
    }

    /// One part of what a clone has to say, its length before it.
    fn send(&mut self, part: &[u8]) -> i64 {
        if let Some(pipe) = &mut self.clone_pipe {
            let len = (part.len() as u64).to_le_bytes();
            if pipe
                .write_all(&len)
                .and_then(|()| pipe.write_all(part))
                .is_err()
            {
                self.clone_pipe = None; // the original is gone
            }
        }
        0
    }
}

fn word(bytes: &[u8]) -> Gpa {
    Gpa(u64::from_le_bytes(core::array::from_fn(|i| bytes[i])))
}

/// Reads what [`Hypervisor::send`] wrote; `None` at the end. The host's signals do not end it: vfork can't be interrupted.
fn read_part(pipe: &mut File) -> Option<Vec<u8>> {
    let mut len = [0; 8];
    pipe.read_exact(&mut len).ok()?;
    let mut part = Vec::new();
    let len = u64::from_le_bytes(len);
    let read = pipe.take(len).read_to_end(&mut part).ok()?;
    (read as u64 == len).then_some(part)
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
