//! Sleeping for a time: the guest kernel's own sleeps, and the time limits of proxied ones.
//!
//! A signal that runs no handler does not end a sleep; the call is made again. What it was to wait for is
//! then counted from its first beginning: the task remembers the deadline.

use super::signals::duration;
use super::{Call, DONE, Sys, SysResult, ready};
use crate::doorbell::Deadline;
use crate::kernel::error::{Errno, Fail};

const TIMER_ABSTIME: u64 = 1;
const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;

impl Call<'_, '_> {
    /// The deadline of a sleep that begins now, or of the one that is being continued.
    pub(super) fn deadline(&mut self, wait: std::time::Duration) -> Result<Deadline, Fail> {
        let nr = self.row.nr;
        if let Some((for_nr, until)) = self.kernel.task().resume.take()
            && for_nr == nr
        {
            return Ok(until);
        }
        let now = self.now(CLOCK_MONOTONIC)?;
        Ok(Deadline::Monotonic(now.saturating_add(wait)))
    }

    /// What is left of a deadline.
    pub(super) fn left(&mut self, until: Deadline) -> Result<std::time::Duration, Fail> {
        Ok(match until {
            Deadline::Monotonic(at) => at.saturating_sub(self.now(CLOCK_MONOTONIC)?),
            Deadline::Realtime(at) => at.saturating_sub(self.now(CLOCK_REALTIME)?),
            Deadline::Never => std::time::Duration::MAX,
        })
    }

    fn sleep_until(&mut self, until: Deadline, remain: u64) -> SysResult {
        let relative = self.row.nr == 35 || self.args[1] & TIMER_ABSTIME == 0;
        loop {
            if self.kernel.interrupted() {
                if relative {
                    let left = self.left(until)?;
                    if remain != 0 {
                        let mut bytes = [0; 16];
                        bytes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
                        bytes[8..].copy_from_slice(&u64::from(left.subsec_nanos()).to_le_bytes());
                        self.write_user(remain, &bytes)?;
                    }
                    self.kernel.task().resume = Some((self.row.nr, until));
                }
                return Err(Errno::EINTR.into());
            }
            if !self.idle(until)? {
                return DONE;
            }
        }
    }

    fn time_at(&mut self, va: u64) -> Result<std::time::Duration, Fail> {
        let time = [self.read_u64(va)?, self.read_u64(va.wrapping_add(8))?];
        Ok(duration(time)?)
    }
}

/// nanosleep(2).
///
/// # Errors
/// As Linux.
pub fn nanosleep(call: &mut Call<'_, '_>) -> SysResult {
    let [time, remain, ..] = call.args;
    let wait = call.time_at(time)?;
    let until = call.deadline(wait)?;
    call.sleep_until(until, remain)
}

/// clock_nanosleep(2): the two clocks that all others follow here; what else there is, the host sleeps.
///
/// # Errors
/// As Linux.
pub fn clock_nanosleep(call: &mut Call<'_, '_>) -> SysResult {
    let [clock, flags, time, remain, ..] = call.args;
    let at = call.time_at(time)?;
    match (clock, flags & TIMER_ABSTIME) {
        (CLOCK_REALTIME | CLOCK_MONOTONIC | 7, 0) => {
            let until = call.deadline(at)?;
            call.sleep_until(until, remain)
        }
        (7, _) if call.kernel.sim.is_some() => call.sleep_until(Deadline::Monotonic(at), 0),
        (11, 0) if call.kernel.sim.is_some() => {
            let until = call.deadline(at)?;
            call.sleep_until(until, remain)
        }
        (11, _) if call.kernel.sim.is_some() => call.sleep_until(Deadline::Realtime(at), 0),
        (CLOCK_REALTIME, _) => call.sleep_until(Deadline::Realtime(at), 0),
        (CLOCK_MONOTONIC, _) => call.sleep_until(Deadline::Monotonic(at), 0),
        // Processor time: what sleeps uses none.
        _ if call.kernel.sim.is_some() => Err(Errno::ENOTSUP.into()),
        _ => Ok(Sys::Ret(call.proxy(&call.args.clone())?)),
    }
}

/// A proxied call whose argument `index` is a time limit in milliseconds, negative for none.
fn limited(call: &mut Call<'_, '_>, index: usize, mut args: [u64; 6]) -> SysResult {
    if call.kernel.sim.is_some() {
        return Ok(Sys::Ret(ready::wait(call, args)?));
    }
    let limit = args[index] as i32;
    let mut until = Deadline::Never;
    if limit > 0 {
        until = call.deadline(std::time::Duration::from_millis(limit as u64))?;
        let left = call.left(until)?.as_micros().div_ceil(1000);
        args[index] = left.min(i32::MAX as u128) as u64;
    }
    let ret = call.proxy(&args)?;
    if ret == Errno::EINTR.ret() && limit > 0 {
        call.kernel.task().resume = Some((call.row.nr, until));
    }
    Ok(Sys::Ret(ret))
}

/// poll(2).
///
/// # Errors
/// As Linux.
pub fn poll(call: &mut Call<'_, '_>) -> SysResult {
    limited(call, 2, call.args)
}

/// select(2).
///
/// # Errors
/// As Linux.
pub fn select(call: &mut Call<'_, '_>) -> SysResult {
    let args = call.args;
    if call.kernel.sim.is_some() {
        return Ok(Sys::Ret(ready::wait(call, args)?));
    }
    Ok(Sys::Ret(call.proxy(&args)?))
}

/// epoll_wait(2).
///
/// # Errors
/// As Linux.
pub fn epoll_wait(call: &mut Call<'_, '_>) -> SysResult {
    limited(call, 3, call.args)
}
