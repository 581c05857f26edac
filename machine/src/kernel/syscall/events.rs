//! Signal descriptors.
//!
//! A signalfd is an eventfd on the host, so that poll, select and epoll work on it: its counter is 1 while a signal of
//! its set is pending, which [`refresh`] sees to. Reading it takes signals out of the guest kernel's own queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sevlab_cpu::Vcpu;

use super::marshal::LIMIT_ROOM;
use super::{Call, Sys, SysResult, clocks};
use crate::doorbell::Deadline;
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::outside::{HostCall, Outside};
use crate::kernel::signal::{SigInfo, UNBLOCKABLE};

/// Bytes of `struct signalfd_siginfo`.
const RECORD: usize = 128;
const O_NONBLOCK: u64 = 0o4000;
const O_CLOEXEC: u64 = 0o2_000_000;
/// How often the counter is tried to be changed while other things ask the vCPU to look up.
const TRIES: usize = 8;

/// What a signal descriptor is.
#[derive(Debug, Default)]
pub struct SignalFd {
    /// Its signals.
    set: AtomicU64,
    /// The counter behind it is not zero.
    ready: AtomicBool,
}

/// signalfd(2), signalfd4(2).
///
/// # Errors
/// As Linux.
pub fn signalfd(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, set, size, flags, ..] = call.args;
    let flags = if call.row.nr == 289 { flags } else { 0 };
    if size != 8 || flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let set = call.read_u64(set)? & !UNBLOCKABLE;
    let fd = fd as i32;
    if fd != -1 {
        let Some(old) = call.kernel.services.signalfds.get(&fd) else {
            let there = call.host(72, [fd as u64, 1, 0, 0, 0, 0])? >= 0; // F_GETFD
            return Err(if there { Errno::EINVAL } else { Errno::EBADF }.into());
        };
        old.set.store(set, Ordering::Relaxed);
        return Ok(Sys::Ret(i64::from(fd)));
    }
    let ret = call.host(290, [0, flags, 0, 0, 0, 0])?;
    let ret = call.adopt(ret)?;
    if ret >= 0 {
        if let Some(sim) = &mut call.kernel.sim {
            sim.inside.insert(ret as i32);
        }
        let file = SignalFd {
            set: AtomicU64::new(set),
            ..SignalFd::default()
        };
        let files = &mut call.kernel.services.signalfds;
        files.insert(ret as i32, Arc::new(file));
    }
    Ok(Sys::Ret(ret))
}

/// Has every signal descriptor be readable exactly if it has something to say.
///
/// # Errors
/// The exit failed.
pub fn refresh(kernel: &mut Kernel, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
    clocks::refresh(kernel, vcpu, out)?;
    if kernel.services.signalfds.is_empty() {
        return Ok(());
    }
    let pending = kernel.pending();
    let all: Vec<(i32, Arc<SignalFd>)> = kernel
        .services
        .signalfds
        .iter()
        .map(|(fd, file)| (*fd, Arc::clone(file)))
        .collect();
    for (fd, file) in all {
        let ready = pending & file.set.load(Ordering::Relaxed) != 0;
        if ready != file.ready.load(Ordering::Relaxed)
            && count(kernel, vcpu, out, fd, u64::from(ready))?
        {
            file.ready.store(ready, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Adds `by` to the counter behind a descriptor, or sets it to nothing (0). False if that could not be done now.
pub(super) fn count(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    fd: i32,
    by: u64,
) -> Result<bool, Error> {
    for _ in 0..TRIES {
        // The host begins nothing that may sleep while the vCPU is asked to look up, and it does so soon.
        vcpu.state.exit_request.store(0, Ordering::SeqCst);
        // Not where a call that waits has its arguments.
        let at = out.bounce_len() - LIMIT_ROOM;
        out.bounce_write(vcpu, at, &by.to_le_bytes())?;
        let nr = i64::from(by != 0);
        let args = [fd as u64, at as u64, 8, 0, 0, 0];
        kernel.stats.host_calls += 1;
        if out.host_call(vcpu, &HostCall { nr, args })? != Errno::EINTR.ret() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The records of at most `room` bytes that a read of signal descriptor `fd` gets; `None` if it is none.
///
/// # Errors
/// EINVAL for less room than a record takes, EAGAIN, EINTR.
pub fn read(call: &mut Call<'_, '_>, fd: i32, room: u64) -> Result<Option<Vec<u8>>, Fail> {
    let Some(file) = call.kernel.services.signalfds.get(&fd).cloned() else {
        return Ok(None);
    };
    if room < RECORD as u64 {
        return Err(Errno::EINVAL.into());
    }
    let records = (room as usize / RECORD).min(64);
    let mut data = Vec::new();
    loop {
        call.kernel.collect();
        let set = file.set.load(Ordering::Relaxed);
        while data.len() < records * RECORD {
            let Some(info) = call.kernel.take_signal(set) else {
                break;
            };
            data.extend_from_slice(&record(&info));
        }
        if !data.is_empty() {
            return Ok(Some(data));
        }
        let flags = call.host(72, [fd as u64, 3, 0, 0, 0, 0])?; // F_GETFL
        if flags as u64 & O_NONBLOCK != 0 {
            return Err(Errno::EAGAIN.into());
        }
        if call.kernel.interrupted() {
            return Err(Errno::EINTR.into());
        }
        call.kernel.task().signals.waits_for = set;
        let idle = call.idle(Deadline::Never);
        call.kernel.task().signals.waits_for = 0;
        idle?;
    }
}

/// `struct signalfd_siginfo`.
fn record(info: &SigInfo) -> [u8; RECORD] {
    let from = |at: usize, n: usize| &info.0[at..at + n];
    let mut out = [0; RECORD];
    out[..4].copy_from_slice(from(0, 4)); // ssi_signo
    out[4..8].copy_from_slice(from(4, 4)); // ssi_errno
    out[8..12].copy_from_slice(from(8, 4)); // ssi_code
    let code = i32::from_le_bytes([out[8], out[9], out[10], out[11]]);
    let signo = info.signo();
    match (signo, code) {
        (_, -2) => {
            out[24..28].copy_from_slice(from(16, 4)); // ssi_tid
            out[32..36].copy_from_slice(from(20, 4)); // ssi_overrun
            out[44..48].copy_from_slice(from(24, 4)); // ssi_int
            out[48..56].copy_from_slice(from(24, 8)); // ssi_ptr
        }
        (17, 1..=6) => {
            out[12..16].copy_from_slice(from(16, 4)); // ssi_pid
            out[16..20].copy_from_slice(from(20, 4)); // ssi_uid
            out[40..44].copy_from_slice(from(24, 4)); // ssi_status
            out[56..64].copy_from_slice(from(32, 8)); // ssi_utime
            out[64..72].copy_from_slice(from(40, 8)); // ssi_stime
        }
        (4 | 5 | 7 | 8 | 11, 1..=0x7f) => out[72..80].copy_from_slice(from(16, 8)), // ssi_addr
        _ => {
            out[12..16].copy_from_slice(from(16, 4));
            out[16..20].copy_from_slice(from(20, 4));
            if code < 0 {
                out[44..48].copy_from_slice(from(24, 4));
                out[48..56].copy_from_slice(from(24, 8));
            }
        }
    }
    out
}
