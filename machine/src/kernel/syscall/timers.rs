//! POSIX timers.
//!
//! The guest kernel keeps the list, and says what has expired by the clock. The host keeps a timer for each of them
//! whose only purpose is to wake the guest: its signal is always [`WAKE`], which the guest never sees while it has
//! timers. So signals that are the C library's own (SIGEV_THREAD uses one) work like all others, and every signal
//! has its timer's number, value and overrun count.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use sevlab_cpu::Vcpu;

use super::{Call, DONE, Sys, SysResult};
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::outside::{HostCall, NULL, Outside};
use crate::kernel::signal::{SIG_MAX, SigInfo, bit};

/// The host signal of all timers.
pub const WAKE: i32 = SIG_MAX;
/// Bytes of `struct sigevent`.
pub const SIGEVENT: usize = 64;
/// `SIGEV_SIGNAL`.
pub const SIGEV_SIGNAL: u32 = 0;
/// `SIGEV_NONE`.
pub const SIGEV_NONE: u32 = 1;
const SIGEV_THREAD_ID: u32 = 4;
const SI_TIMER: i32 = -2;
const TIMER_ABSTIME: u64 = 1;
const SECOND: i128 = 1_000_000_000;
const CLOCK_PROCESS_CPUTIME: u64 = 2;

/// A timer.
struct Timer {
    /// The host's number.
    host: u64,
    clock: u64,
    /// The signal; 0: none.
    signo: i32,
    value: u64,
    /// The thread that gets the signal; 0: any.
    thread: i32,
    /// When it expires next, by its clock.
    next: Option<i128>,
    interval: i128,
    /// Of the signal that was raised last.
    overrun: i64,
    /// Expirations since then whose signal found the last one still pending.
    merged: i64,
}

/// The timers of a process.
#[derive(Default)]
pub struct Timers {
    map: BTreeMap<i32, Timer>,
    next: i32,
}

impl Timers {
    /// Whether there are any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// A host call of the kernel's own.
fn host(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    nr: i64,
    args: [u64; 6],
) -> Result<i64, Error> {
    kernel.stats.host_calls += 1;
    out.host_call(vcpu, &HostCall { nr, args })
}

/// What a clock says, in nanoseconds; `None` if there is no such clock.
fn read_clock(
    kernel: &mut Kernel,
    vcpu: &mut Vcpu,
    out: &mut dyn Outside,
    clock: u64,
) -> Result<Option<i128>, Error> {
    if host(kernel, vcpu, out, 228, [clock, 0, 0, 0, 0, 0])? != 0 {
        return Ok(None);
    }
    let mut time = [0; 16];
    out.bounce_read(vcpu, 0, &mut time)?;
    Ok(Some(nanos(&time)))
}

fn nanos(timespec: &[u8]) -> i128 {
    let word = |at: usize| i64::from_le_bytes(core::array::from_fn(|i| timespec[at + i]));
    i128::from(word(0)) * SECOND + i128::from(word(8))
}

impl Call<'_> {
    /// What a clock says, in nanoseconds.
    ///
    /// # Errors
    /// EINVAL if there is no such clock; the exit failed.
    pub fn clock(&mut self, clock: u64) -> Result<i128, Fail> {
        let now = read_clock(self.kernel, self.vcpu, self.out, clock)?;
        Ok(now.ok_or(Errno::EINVAL)?)
    }

    fn host_timer(&mut self, clock: u64, signals: bool) -> Result<u64, Fail> {
        let mut event = [0; SIGEVENT];
        let notify = if signals { SIGEV_SIGNAL } else { SIGEV_NONE };
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
pub fn create(call: &mut Call<'_>) -> SysResult {
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
    let host = call.host_timer(clock, signo != 0)?;
    let timers = &mut call.kernel.services.timers;
    let id = timers.next;
    timers.next += 1;
    timers.map.insert(
        id,
        Timer {
            host,
            clock,
            signo,
            value: value.unwrap_or(id as u64),
            thread,
            next: None,
            interval: 0,
            overrun: 0,
            merged: 0,
        },
    );
    call.kernel.signals.reserved = bit(WAKE);
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
pub fn settime(call: &mut Call<'_>) -> SysResult {
    let (id, host) = call.timer()?;
    let [_, flags, new, ..] = call.args;
    if new == 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut spec = [0; 32];
    call.read_user(new, &mut spec)?;
    // Until the host has answered, the timer is what it was: it may expire meanwhile.
    call.tick()?;
    let mut args = call.args;
    args[0] = host;
    let ret = call.proxy(&args)?;
    if ret == 0 {
        arm(call, id, flags, &spec)?;
    }
    Ok(Sys::Ret(ret))
}

/// Notes when a timer expires.
fn arm(call: &mut Call<'_>, id: i32, flags: u64, spec: &[u8; 32]) -> Result<(), Fail> {
    let Some(clock) = call.kernel.services.timers.map.get(&id).map(|t| t.clock) else {
        return Ok(());
    };
    let (interval, first) = (nanos(&spec[..16]), nanos(&spec[16..]));
    let next = match first {
        0 => None,
        first if flags & TIMER_ABSTIME != 0 => Some(first),
        first => Some(call.clock(clock)? + first),
    };
    if let Some(t) = call.kernel.services.timers.map.get_mut(&id) {
        (t.next, t.interval, t.overrun, t.merged) = (next, interval, 0, 0);
    }
    Ok(())
}

/// timer_gettime(2).
///
/// # Errors
/// As Linux.
pub fn gettime(call: &mut Call<'_>) -> SysResult {
    let (_, host) = call.timer()?;
    let mut args = call.args;
    args[0] = host;
    Ok(Sys::Ret(call.proxy(&args)?))
}

/// timer_getoverrun(2).
///
/// # Errors
/// As Linux.
pub fn getoverrun(call: &mut Call<'_>) -> SysResult {
    let (id, _) = call.timer()?;
    let timer = call.kernel.services.timers.map.get(&id);
    Ok(Sys::Ret(timer.map_or(0, |t| t.overrun)))
}

/// timer_delete(2).
///
/// # Errors
/// As Linux.
pub fn delete(call: &mut Call<'_>) -> SysResult {
    let (id, _) = call.timer()?;
    remove(call, id)?;
    DONE
}

fn remove(call: &mut Call<'_>, id: i32) -> Result<(), Error> {
    if let Some(timer) = call.kernel.services.timers.map.remove(&id) {
        call.host(226, [timer.host, 0, 0, 0, 0, 0])?;
    }
    if call.kernel.services.timers.is_empty() {
        // What the last timer may have left behind is no signal for the guest.
        let outside = &call.kernel.signals.outside;
        outside.word().fetch_and(!bit(WAKE), Ordering::AcqRel);
        call.kernel.signals.reserved = 0;
    }
    Ok(())
}

/// Gives all timers back to the host: a new program starts without.
///
/// # Errors
/// The exit failed.
pub fn delete_all(call: &mut Call<'_>) -> Result<(), Error> {
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
pub fn limit_cpu(call: &mut Call<'_>, soft: Option<u64>, hard: Option<u64>) -> Result<(), Fail> {
    // SIGXCPU comes again each second
    for (id, seconds, signo, interval) in [(-1, soft, 24, 1u64), (-2, hard, 9, 0)] {
        remove(call, id)?;
        let Some(seconds) = seconds else { continue };
        let clock = CLOCK_PROCESS_CPUTIME;
        let host = call.host_timer(clock, true)?;
        let mut spec = [0; 32];
        spec[..8].copy_from_slice(&interval.to_le_bytes());
        spec[16..24].copy_from_slice(&seconds.max(1).to_le_bytes());
        call.out.bounce_write(call.vcpu, 0, &spec)?;
        call.host(223, [host, TIMER_ABSTIME, 0, NULL, 0, 0])?;
        let timer = Timer {
            host,
            clock,
            signo,
            value: 0,
            thread: 0,
            next: None,
            interval: 0,
            overrun: 0,
            merged: 0,
        };
        call.kernel.services.timers.map.insert(id, timer);
        call.kernel.signals.reserved = bit(WAKE);
        arm(call, id, TIMER_ABSTIME, &spec)?;
    }
    Ok(())
}

/// Raises the signals of what has expired, if the host says that there may be something.
///
/// # Errors
/// The exit failed.
pub fn expire(kernel: &mut Kernel, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
    if kernel.services.timers.is_empty() {
        return Ok(());
    }
    let word = kernel.signals.outside.word();
    if word.load(Ordering::Relaxed) & bit(WAKE) == 0
        || word.fetch_and(!bit(WAKE), Ordering::AcqRel) & bit(WAKE) == 0
    {
        return Ok(());
    }
    let ids: Vec<i32> = kernel.services.timers.map.keys().copied().collect();
    for id in ids {
        let Some(clock) = armed_clock(kernel, id) else {
            continue;
        };
        let Some(now) = read_clock(kernel, vcpu, out, clock)? else {
            continue;
        };
        if let Some(info) = fire(kernel, id, now) {
            kernel.signals.raise(info);
        }
    }
    Ok(())
}

fn armed_clock(kernel: &Kernel, id: i32) -> Option<u64> {
    let timer = kernel.services.timers.map.get(&id)?;
    timer.next.map(|_| timer.clock)
}

/// Moves a timer on to its next expiration behind `now`; the signal to raise, if there is one.
fn fire(kernel: &mut Kernel, id: i32, now: i128) -> Option<SigInfo> {
    let pending = kernel.signals.pending();
    let timer = kernel.services.timers.map.get_mut(&id)?;
    let due = timer.next.filter(|next| now >= *next)?;
    let count = if timer.interval > 0 {
        let more = (now - due) / timer.interval;
        timer.next = Some(due + (more + 1) * timer.interval);
        (more + 1).min(i128::from(i32::MAX)) as i64
    } else {
        timer.next = None;
        1
    };
    if timer.signo == 0 {
        return None;
    }
    if pending & bit(timer.signo) != 0 {
        timer.merged += count;
        return None;
    }
    timer.overrun = count - 1 + timer.merged;
    timer.merged = 0;
    if id < 0 {
        return Some(SigInfo::kernel(timer.signo));
    }
    let mut info = [0; 128];
    info[..4].copy_from_slice(&timer.signo.to_le_bytes());
    info[8..12].copy_from_slice(&SI_TIMER.to_le_bytes());
    info[16..20].copy_from_slice(&id.to_le_bytes());
    info[20..24].copy_from_slice(&(timer.overrun as i32).to_le_bytes());
    info[24..32].copy_from_slice(&timer.value.to_le_bytes());
    Some(SigInfo(info))
}

/// The thread that a timer's signal is for, by the timer's number in its `siginfo_t`; 0: any.
#[must_use]
pub fn thread_of(kernel: &Kernel, info: &SigInfo) -> i32 {
    let id = i32::from_le_bytes([info.0[16], info.0[17], info.0[18], info.0[19]]);
    let timer = kernel.services.timers.map.get(&id);
    timer.map_or(0, |t| t.thread)
}
