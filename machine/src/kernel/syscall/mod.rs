//! System calls: from the guest's registers to a handler and back.
//!
//! [`table`] says who answers; [`marshal`] carries pointer arguments across the fence; the other
//! modules are the handlers of the guest kernel's own.

pub mod clocks;
pub mod clone;
pub mod events;
pub mod exec;
pub mod fs;
pub mod futex;
pub mod ioctl;
pub mod limits;
pub mod marshal;
pub mod memory;
pub mod misc;
pub mod openat2;
pub mod proc;
pub mod procfs;
pub mod proctext;
pub mod ready;
pub mod services;
pub mod signals;
pub mod sleep;
pub mod sockets;
pub mod strace;
pub mod system;
pub mod table;
pub mod timers;

use sevlab_cpu::state::gpr;
use sevlab_cpu::{Stop, Vcpu};

use super::error::{Errno, Error, Fail};
use super::mm::{Cx, Fault};
use super::outside::Outside;
use super::{GuestEnd, Kernel, Locked, TaskEnd};
use marshal::PATH_MAX;
use table::{Handler, Row};

/// What a handler leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sys {
    /// RAX gets this value (`-errno` on failure).
    Ret(i64),
    /// The registers are as the guest shall find them (rt_sigreturn).
    Restored,
    /// The thread is over, with this status.
    Exit(i32),
    /// The process is over.
    End(GuestEnd),
}

/// What a handler returns.
pub type SysResult = Result<Sys, Fail>;

/// Success with 0.
pub const DONE: SysResult = Ok(Sys::Ret(0));
/// Longest scatter/gather list (`UIO_MAXIOV`).
const IOV_MAX: u64 = 1024;

/// A system call being answered.
pub struct Call<'a, 'p> {
    /// The kernel.
    pub kernel: &'a mut Locked<'p>,
    /// The vCPU that made the call.
    pub vcpu: &'a mut Vcpu,
    /// The way out.
    pub out: &'a mut dyn Outside,
    /// Its row.
    pub row: &'static Row,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Answers the system call whose number and arguments are in the guest's registers. `Ok(None)`: the
/// task goes on.
///
/// # Errors
/// The machine can't go on.
pub fn dispatch(
    kernel: &mut Locked<'_>,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
) -> Result<Option<TaskEnd>, Error> {
    let g = &vcpu.state.gpr;
    let nr = i64::from(g[gpr::RAX as usize] as i32);
    let args = [g[7], g[6], g[2], g[10], g[8], g[9]]; // rdi rsi rdx r10 r8 r9
    kernel.stats.syscalls += 1;
    kernel.task().signals.restart = None;
    let Some(row) = table::row(nr) else {
        *kernel.stats.unknown.entry(nr).or_default() += 1;
        tracing::debug!(nr, "unknown system call");
        strace::unknown(nr, &args);
        vcpu.state.gpr[gpr::RAX as usize] = Errno::ENOSYS.ret() as u64;
        return Ok(None);
    };
    let mut call = Call {
        kernel,
        vcpu,
        out,
        row,
        args,
    };
    let traced = strace::enter(&mut call);
    // The other vCPUs are out of guest code while entries go or lose rights.
    let stopped = takes_away(nr, &args) && call.vcpu.begin_exclusive();
    let result = match row.handler {
        Handler::Proxy => call.proxy(&args).map(Sys::Ret),
        Handler::Front(f) | Handler::Kernel(f) => f(&mut call),
        Handler::Refuse(e) => {
            *call.kernel.stats.refused.entry(nr).or_default() += 1;
            Err(e.into())
        }
    };
    if stopped {
        call.vcpu.end_exclusive();
    }
    strace::leave(&mut call, traced, &result);
    events::refresh(call.kernel, call.vcpu, call.out)?;
    let ret = match result {
        Ok(Sys::Ret(ret)) => ret,
        Ok(Sys::Restored) => return Ok(None),
        Ok(Sys::Exit(status)) => return kernel.exit_task(vcpu, out, status).map(Some),
        Ok(Sys::End(end)) => return Ok(Some(TaskEnd::Process(kernel.end_process(end)))),
        Err(Fail::Errno(e)) => e.ret(),
        Err(Fail::Fatal(e)) => return Err(e),
    };
    tracing::trace!(name = row.name, ?args, ret, "system call");
    if ret == Errno::EINTR.ret() {
        kernel.task().signals.restart = Some((nr, row.restarts() && !futex::is_timed(nr, &args)));
    }
    vcpu.state.gpr[gpr::RAX as usize] = ret as u64;
    Ok(None)
}

/// Whether a call may take page-table entries, or rights in them, away. None of these calls lets another
/// thread into the kernel meanwhile.
fn takes_away(nr: i64, args: &[u64; 6]) -> bool {
    const MAP_FIXED: u64 = 0x10;
    match nr {
        9 => args[3] & MAP_FIXED != 0,
        // mprotect, munmap, brk, mremap, msync, madvise, truncate, ftruncate, remap_file_pages, fallocate
        10 | 11 | 12 | 25 | 26 | 28 | 76 | 77 | 216 | 285 => true,
        _ => false,
    }
}

impl Call<'_, '_> {
    /// The machine, for memory management.
    pub fn cx(&mut self) -> (&mut Kernel, Cx<'_>) {
        (
            self.kernel,
            Cx {
                vcpu: self.vcpu,
                out: self.out,
            },
        )
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_user(&mut self, va: u64, out: &mut [u8]) -> Result<(), Fail> {
        user_read(self.kernel, self.vcpu, self.out, va, out)
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// EFAULT.
    pub fn write_user(&mut self, va: u64, data: &[u8]) -> Result<(), Fail> {
        user_write(self.kernel, self.vcpu, self.out, va, data)
    }

    /// Reads a 32-bit word of guest memory.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_u32(&mut self, va: u64) -> Result<u32, Fail> {
        let mut b = [0; 4];
        self.read_user(va, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Reads a 64-bit word of guest memory.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_u64(&mut self, va: u64) -> Result<u64, Fail> {
        let mut b = [0; 8];
        self.read_user(va, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// Reads a path to pass on; its NUL is included. The guest's `/proc/self/exe` is its program.
    ///
    /// # Errors
    /// EFAULT, ENAMETOOLONG.
    pub fn read_path(&mut self, va: u64) -> Result<Vec<u8>, Fail> {
        let path = self.read_str(va)?;
        let absolute = path.first() == Some(&b'/');
        if !absolute || self.in_proc(None, &path)? != Some(procfs::Name::Own("exe".to_owned())) {
            return Ok(path);
        }
        let mut exe = self.kernel.exe_bytes().to_vec();
        exe.push(0);
        Ok(exe)
    }

    /// Reads a NUL-terminated string of at most `PATH_MAX` bytes with its NUL.
    ///
    /// # Errors
    /// EFAULT, ENAMETOOLONG.
    pub fn read_str(&mut self, va: u64) -> Result<Vec<u8>, Fail> {
        let mut text = Vec::new();
        loop {
            let at = va.wrapping_add(text.len() as u64);
            // never beyond the page, whose neighbour may not be there
            let n = (256 - (at % 256) as usize).min(PATH_MAX - text.len());
            if n == 0 {
                return Err(Errno::ENAMETOOLONG.into());
            }
            let from = text.len();
            text.resize(from + n, 0);
            self.read_user(at, &mut text[from..])?;
            if let Some(nul) = text[from..].iter().position(|b| *b == 0) {
                text.truncate(from + nul + 1);
                return Ok(text);
            }
        }
    }

    /// Reads a NUL-terminated string of at most `most` bytes, and of what Linux allows for an argument
    /// (`MAX_ARG_STRLEN`), with its NUL.
    ///
    /// # Errors
    /// EFAULT, E2BIG.
    pub fn read_long_str(&mut self, va: u64, most: usize) -> Result<Vec<u8>, Fail> {
        let most = most.min(128 << 10);
        let mut text = Vec::new();
        loop {
            let at = va.wrapping_add(text.len() as u64);
            let n = 256 - (at % 256) as usize;
            let from = text.len();
            if from + n > most {
                return Err(Errno::E2BIG.into());
            }
            text.resize(from + n, 0);
            self.read_user(at, &mut text[from..])?;
            if let Some(nul) = text[from..].iter().position(|b| *b == 0) {
                text.truncate(from + nul + 1);
                return Ok(text);
            }
        }
    }

    /// Reads a list of `struct iovec`: address and length of each.
    ///
    /// # Errors
    /// EFAULT, EINVAL for a list that is too long or whose lengths overflow.
    pub fn iovecs(&mut self, va: u64, n: u64) -> Result<Vec<(u64, u64)>, Fail> {
        if n > IOV_MAX {
            return Err(Errno::EINVAL.into());
        }
        let mut raw = vec![0; n as usize * 16];
        self.read_user(va, &mut raw)?;
        let mut total = 0u64;
        let mut list = Vec::with_capacity(n as usize);
        for v in raw.chunks_exact(16) {
            let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| v[at + i]));
            total = total
                .checked_add(word(8))
                .filter(|t| *t < 1 << 63)
                .ok_or(Errno::EINVAL)?;
            list.push((word(0), word(8)));
        }
        Ok(list)
    }

    /// Reads at most `max` bytes through an iovec list.
    ///
    /// # Errors
    /// As [`Call::iovecs`].
    pub fn gather(&mut self, va: u64, n: u64, max: usize) -> Result<Vec<u8>, Fail> {
        let mut data = Vec::new();
        for (at, len) in self.iovecs(va, n)? {
            let len = len.min((max - data.len()) as u64) as usize;
            let from = data.len();
            data.resize(from + len, 0);
            self.read_user(at, &mut data[from..])?;
        }
        Ok(data)
    }

    /// Writes `data` through an iovec list.
    ///
    /// # Errors
    /// As [`Call::iovecs`].
    pub fn scatter(&mut self, va: u64, n: u64, data: &[u8]) -> Result<(), Fail> {
        let mut rest = data;
        for (at, len) in self.iovecs(va, n)? {
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            self.write_user(at, now)?;
            rest = later;
        }
        Ok(())
    }

    /// A system call of the kernel's own without pointers.
    ///
    /// # Errors
    /// The exit failed.
    pub fn host(&mut self, nr: i64, args: [u64; 6]) -> Result<i64, Error> {
        self.kernel.stats.host_calls += 1;
        self.out
            .host_call(self.vcpu, &super::outside::HostCall { nr, args })
    }
}

/// Resolves what stopped a kernel access to guest memory; `Ok`: try again.
fn resolve(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    stop: Stop,
) -> Result<(), Fail> {
    match stop {
        Stop::Exception(e) if e.vector == 14 => {
            let va = e.cr2.map_or(0, |va| va.0);
            let error = e.error.unwrap_or(0);
            let write = error & 2 != 0;
            match kernel.mm.fault(&mut Cx { vcpu, out }, va, write, false)? {
                Fault::Fixed => Ok(()),
                Fault::OutOfMemory => {
                    kernel.stats.out_of_memory = true;
                    Err(Errno::ENOMEM.into())
                }
                Fault::Segv(_) | Fault::Bus => Err(Errno::EFAULT.into()),
            }
        }
        Stop::Exception(_) => Err(Errno::EFAULT.into()),
        Stop::NestedFault { gpa, error } => Ok(out.nested_fault(vcpu, gpa, error)?),
        Stop::Host(e) => Err(Error::from(e).into()),
        stop => Err(Error::UnexpectedStop {
            during: "accessing guest memory for a system call",
            stop: format!("{stop:?}"),
        }
        .into()),
    }
}

impl Kernel {
    /// Makes sure that the page of `va` can be written.
    ///
    /// # Errors
    /// EFAULT where the guest would get a signal.
    pub fn probe_write(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        va: u64,
    ) -> Result<(), Fail> {
        loop {
            match vcpu.probe_write(va, 1) {
                Ok(()) => return Ok(()),
                Err(stop) => resolve(self, vcpu, out, stop)?,
            }
        }
    }
}

/// Bytes from `at` to the end of its page, at most `left`.
fn piece(at: u64, left: usize) -> usize {
    ((4096 - at % 4096) as usize).min(left)
}

/// Reads guest memory as the guest would, faulting pages in.
///
/// # Errors
/// EFAULT where the guest would get a signal.
pub fn user_read(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    va: u64,
    data: &mut [u8],
) -> Result<(), Fail> {
    let mut done = 0;
    while done < data.len() {
        let at = va.wrapping_add(done as u64);
        let n = piece(at, data.len() - done);
        match vcpu.read(at, &mut data[done..done + n]) {
            Ok(()) => done += n,
            Err(stop) => resolve(kernel, vcpu, out, stop)?,
        }
    }
    Ok(())
}

/// Writes guest memory as the guest would, faulting pages in.
///
/// # Errors
/// EFAULT where the guest would get a signal.
pub fn user_write(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    va: u64,
    data: &[u8],
) -> Result<(), Fail> {
    let mut done = 0;
    while done < data.len() {
        let at = va.wrapping_add(done as u64);
        let n = piece(at, data.len() - done);
        match vcpu.write(at, &data[done..done + n]) {
            Ok(()) => done += n,
            Err(stop) => resolve(kernel, vcpu, out, stop)?,
        }
    }
    Ok(())
}
