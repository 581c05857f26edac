//! POSIX timers.
//!
//! Each is a timer of the host's whose signal is always [`WAKE`] and whose value is the timer's number. Where host
//! signals come in, [`expired`] makes the guest's signal of it. So signals that are the C library's own (SIGEV_THREAD
//! uses one) work like all others, and a timer's signal is queued once, as in Linux: what expires meanwhile is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Call, DONE, Sys, SysResult, clocks};
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::outside::NULL;
use crate::kernel::signal::{SIG_MAX, SigInfo};
use crate::kernel::simulated::Action;
use crate::simtime::clock;

/// The host signal of all timers.
pub const WAKE: i32 = SIG_MAX;
/// Bytes of `struct sigevent`.
pub const SIGEVENT: usize = 64;
/// `SIGEV_SIGNAL`.
pub const SIGEV_SIGNAL: u32 = 0;
/// `SIGEV_NONE`.
pub const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD_ID: u32 = 4;
/// `SI_TIMER`.
pub const SI_TIMER: i32 = -2;
const TIMER_ABSTIME: u64 = 1;
const CLOCK_PROCESS_CPUTIME: u64 = 2;

/// A timer.
struct Timer {
    /// The host's number; none where time is simulated.
    host: u64,
    /// Its clock, and whose processor time that is.
    clock: (i32, usize),
    /// The signal; 0: none.
    signo: i32,
    value: u64,
    /// The thread that gets the signal; 0: any.
    thread: i32,
    /// Of the signal that was raised last, up to its delivery.
    overrun: i64,
}

/// The timers of a process.
#[derive(Default)]
pub struct Timers {
    map: BTreeMap<i32, Timer>,
    next: i32,
}

impl Timers {
    /// A timer's clock, and whose processor time that is.
    #[must_use]
    pub fn clock_of(&self, id: i32) -> (i32, usize) {
        let timer = self.map.get(&id);
        timer.map_or((clock::MONOTONIC, 0), |t| t.clock)
    }
}

impl Call<'_, '_> {
    fn host_timer(&mut self, clock: u64, id: i32, signals: bool) -> Result<u64, Fail> {
        if self.kernel.sim.is_some() {
            return Ok(0);
        }
        let mut event = [0; SIGEVENT];
        let notify = if signals { SIGEV_SIGNAL } else { SIGEV_NONE };
        event[..8].copy_from_slice(&i64::from(id).to_le_bytes());
        event[8..12].copy_from_slice(&WAKE.to_le_bytes());
        event[12..16].copy_from_slice(&notify.to_le_bytes());
        self.out.bounce_write(self.vcpu, 0, &event)?;
        let ret = self.host(222, [clock, 0, SIGEVENT as u64, 0, 0, 0])?;
        if ret < 0 {
            return Err(Errno(-ret as i32).into());
        }
        let mut id = [0; 4];
        self.out.bounce_read(self.vcpu, SIGEVENT, &mut id)?;
        Ok(u64::from(u32::from_le_bytes(id)))
    }

    fn timer(&mut self) -> Result<(i32, u64), Errno> {
        let id = self.args[0] as i32;
        let timer = self.kernel.services.timers.map.get(&id);
        timer
            .map(|t| (id, t.host))
            .filter(|_| id >= 0)
            .ok_or(Errno::EINVAL)
    }
}

/// timer_create(2).
///
/// # Errors
/// As Linux.
pub fn create(call: &mut Call<'_, '_>) -> SysResult {
    let [clock, event, id_at, ..] = call.args;
    let (mut signo, mut value, mut thread) = (14, None, 0); // SIGALRM
    if event != 0 {
        let mut raw = [0; SIGEVENT];
        call.read_user(event, &mut raw)?;
        let half = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| raw[at + i]));
        value = Some(u64::from_le_bytes(core::array::from_fn(|i| raw[i])));
        signo = half(8) as i32;
        match half(12) {
            SIGEV_SIGNAL => {}
            SIGEV_NONE => signo = 0,
            SIGEV_THREAD_ID => thread = half(16) as i32,
            _ => return Err(Errno::EINVAL.into()),
        }
        if half(12) != SIGEV_NONE && !(1..=SIG_MAX).contains(&signo) {
            return Err(Errno::EINVAL.into());
        }
    }
    let id = call.kernel.services.timers.next;
    let which = match call.kernel.sim {
        Some(_) => clocks::of_timer(call, clock as i32)?,
        None => (clock as i32, 0),
    };
    let host = call.host_timer(clock, id, signo != 0)?;
    let timers = &mut call.kernel.services.timers;
    timers.next += 1;
    timers.map.insert(
        id,
        Timer {
            host,
            clock: which,
            signo,
            value: value.unwrap_or(id as u64),
            thread,
            overrun: 0,
        },
    );
    if let Err(e) = call.write_user(id_at, &id.to_le_bytes()) {
        remove(call, id)?;
        return Err(e);
    }
    DONE
}

/// timer_settime(2).
///
/// # Errors
/// As Linux.
pub fn settime(call: &mut Call<'_, '_>) -> SysResult {
    let (id, host) = call.timer()?;
    if call.args[2] == 0 {
        return Err(Errno::EINVAL.into());
    }
    let ret = match call.kernel.sim {
        Some(_) => clocks::timer_settime(call, id)?,
        None => {
            let mut args = call.args;
            args[0] = host;
            call.proxy(&args)?
        }
    };
    if ret == 0
        && let Some(timer) = call.kernel.services.timers.map.get_mut(&id)
    {
        timer.overrun = 0;
    }
    Ok(Sys::Ret(ret))
}

/// timer_gettime(2).
///
/// # Errors
/// As Linux.
pub fn gettime(call: &mut Call<'_, '_>) -> SysResult {
    let (id, host) = call.timer()?;
    if call.kernel.sim.is_some() {
        return clocks::timer_gettime(call, id);
    }
    let mut args = call.args;
    args[0] = host;
    Ok(Sys::Ret(call.proxy(&args)?))
}

/// timer_getoverrun(2).
///
/// # Errors
/// As Linux.
pub fn getoverrun(call: &mut Call<'_, '_>) -> SysResult {
    let (id, _) = call.timer()?;
    let timer = call.kernel.services.timers.map.get(&id);
    Ok(Sys::Ret(timer.map_or(0, |t| t.overrun)))
}

/// timer_delete(2).
///
/// # Errors
/// As Linux.
pub fn delete(call: &mut Call<'_, '_>) -> SysResult {
    let (id, _) = call.timer()?;
    remove(call, id)?;
    DONE
}

fn remove(call: &mut Call<'_, '_>, id: i32) -> Result<(), Error> {
    if let Some(timer) = call.kernel.services.timers.map.remove(&id) {
        if let Some(sim) = &mut call.kernel.sim {
            sim.arm(&Action::Posix(id), None);
            return Ok(());
        }
        call.host(226, [timer.host, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

/// Gives all timers back to the host: a new program starts without.
///
/// # Errors
/// The exit failed.
pub fn delete_all(call: &mut Call<'_, '_>) -> Result<(), Error> {
    let ids: Vec<i32> = call.kernel.services.timers.map.keys().copied().collect();
    for id in ids {
        remove(call, id)?;
    }
    Ok(())
}

/// `RLIMIT_CPU`: a timer for the soft limit, one for the hard one. Seconds; `None`: no limit.
///
/// # Errors
/// The exit failed, or the host has no timer left.
pub fn limit_cpu(
    call: &mut Call<'_, '_>,
    soft: Option<u64>,
    hard: Option<u64>,
) -> Result<(), Fail> {
    // SIGXCPU comes again each second
    for (id, seconds, signo, interval) in [(-1, soft, 24, 1u64), (-2, hard, 9, 0)] {
        remove(call, id)?;
        let Some(seconds) = seconds else { continue };
        let host = call.host_timer(CLOCK_PROCESS_CPUTIME, id, true)?;
        let timer = Timer {
            host,
            clock: (clock::PROCESS_CPUTIME, 0),
            signo,
            value: 0,
            thread: 0,
            overrun: 0,
        };
        call.kernel.services.timers.map.insert(id, timer);
        if call.kernel.sim.is_some() {
            let times = [interval, seconds.max(1)].map(Duration::from_secs);
            let clock = (clock::PROCESS_CPUTIME, 0);
            clocks::set_timer(call, &Action::Posix(id), clock, times, true);
            continue;
        }
        let mut spec = [0; 32];
        spec[..8].copy_from_slice(&interval.to_le_bytes());
        spec[16..24].copy_from_slice(&seconds.max(1).to_le_bytes());
        call.out.bounce_write(call.vcpu, 0, &spec)?;
        call.host(223, [host, TIMER_ABSTIME, 0, NULL, 0, 0])?;
    }
    Ok(())
}

/// What the host would say of a simulated timer that is due, and was due `missed` times before.
#[must_use]
pub fn due(id: i32, missed: u64) -> SigInfo {
    let mut info = [0; 128];
    info[..4].copy_from_slice(&WAKE.to_le_bytes());
    info[8..12].copy_from_slice(&SI_TIMER.to_le_bytes());
    let missed = i32::try_from(missed).unwrap_or(i32::MAX);
    info[20..24].copy_from_slice(&missed.to_le_bytes());
    info[24..28].copy_from_slice(&id.to_le_bytes());
    SigInfo(info)
}

/// Whether a host signal is that of a timer; then the guest's is raised, if it has one.
pub fn expired(kernel: &mut Kernel, from_host: &SigInfo) -> bool {
    if from_host.signo() != WAKE || from_host.code() != SI_TIMER {
        return false;
    }
    let half = |at: usize| i32::from_le_bytes(core::array::from_fn(|i| from_host.0[at + i]));
    let (missed, id) = (i64::from(half(20)), half(24));
    let waits = |info: &SigInfo| info.code() == SI_TIMER && info.0[16..20] == id.to_le_bytes();
    let pending = kernel.signals.pending.any(waits)
        || kernel.tasks().any(|(_, t)| t.signals.pending.any(waits));
    let Some(timer) = kernel.services.timers.map.get_mut(&id) else {
        return true;
    };
    if timer.signo == 0 {
        return true;
    }
    if pending {
        timer.overrun += 1 + missed;
        return true;
    }
    timer.overrun = missed;
    let mut info = [0; 128];
    info[..4].copy_from_slice(&timer.signo.to_le_bytes());
    info[8..12].copy_from_slice(&SI_TIMER.to_le_bytes());
    info[16..20].copy_from_slice(&id.to_le_bytes());
    info[20..24].copy_from_slice(&(timer.overrun as i32).to_le_bytes());
    info[24..32].copy_from_slice(&timer.value.to_le_bytes());
    let mut info = SigInfo(info);
    let thread = timer.thread;
    if id < 0 {
        info = SigInfo::kernel(info.signo()); // the limit of processor time
    }
    match kernel.slot_of(thread).filter(|_| thread != 0) {
        Some(slot) => kernel.raise_task(slot, info),
        None => kernel.raise(info),
    };
    true
}
