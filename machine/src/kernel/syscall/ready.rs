//! Waiting in simulated time: for descriptors (poll's family), for calls that sleep on the host, for a ring.
//!
//! A look at a descriptor takes no time. If there is nothing yet, the other threads run, and the look is taken again
//! after each of their turns; only when none can run does the host wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::marshal::{LIMIT_ROOM, Staged, finish, stage};
use super::signals::duration;
use super::{Call, Sys, SysResult, events, fs};
use crate::doorbell::Deadline;
use crate::hv::halted;
use crate::kernel::error::{Errno, Fail};
use crate::kernel::outside::{AT_ONCE, HostCall, INTERRUPTIBLE, WOULD_SLEEP, machine_call};
use crate::simtime::{NEVER, advance};

/// What the time limit of a call looks like, and which argument it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    /// Milliseconds; negative for none.
    Millis(usize),
    /// A pointer to a `struct timespec`; null for none.
    Spec(usize),
    /// A pointer to a `struct timeval`; null for none.
    Val(usize),
}

impl Limit {
    /// That of a call of poll's family.
    fn of(nr: i64) -> Self {
        match nr {
            7 => Self::Millis(2),
            23 => Self::Val(4),
            270 => Self::Spec(4),
            271 => Self::Spec(2),
            441 => Self::Spec(3),
            _ => Self::Millis(3), // epoll_wait, epoll_pwait
        }
    }
}

impl Call<'_, '_> {
    /// The time limit among the arguments; `None`: none.
    fn limit(&mut self, limit: Limit) -> Result<Option<Duration>, Fail> {
        Ok(match limit {
            Limit::Millis(i) => {
                let ms = self.args[i] as i32;
                u64::try_from(ms).ok().map(Duration::from_millis)
            }
            Limit::Spec(i) | Limit::Val(i) => match self.args[i] {
                0 => None,
                va => {
                    let mut time = [self.read_u64(va)?, self.read_u64(va.wrapping_add(8))?];
                    if limit == Limit::Val(i) {
                        // Microseconds, and more than a second's worth of them is allowed.
                        if time[0] >> 63 != 0 || time[1] >> 63 != 0 {
                            return Err(Errno::EINVAL.into());
                        }
                        time = [
                            time[0].saturating_add(time[1] / 1_000_000),
                            time[1] % 1_000_000 * 1000,
                        ];
                    }
                    Some(duration(time)?)
                }
            },
        })
    }

    /// Tells the guest how much of its limit is left, where Linux does.
    fn tell_left(&mut self, limit: Limit, left: Duration) -> Result<(), Fail> {
        let (va, small) = match (self.row.nr, limit) {
            (23, Limit::Val(i)) => (self.args[i], left.subsec_micros()),
            (270 | 271, Limit::Spec(i)) => (self.args[i], left.subsec_nanos()),
            _ => return Ok(()),
        };
        if va != 0 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
            bytes[8..].copy_from_slice(&u64::from(small).to_le_bytes());
            self.write_user(va, &bytes)?;
        }
        Ok(())
    }

    /// The call, staged with another time limit; `None`: without.
    fn stage_limited(
        &mut self,
        args: &[u64; 6],
        limit: Limit,
        left: Option<Duration>,
    ) -> Result<Staged, Fail> {
        let mut args = *args;
        let mut struct_at = None;
        match limit {
            Limit::Millis(i) => {
                args[i] = left.map_or(u64::MAX, |left| {
                    left.as_micros().div_ceil(1000).min(i32::MAX as u128) as u64
                });
            }
            Limit::Spec(i) | Limit::Val(i) => {
                args[i] = 0;
                struct_at = Some(i);
            }
        }
        let mut staged = stage(self, self.row, &args)?;
        if let (Some(i), Some(left)) = (struct_at, left) {
            let small = match limit {
                Limit::Val(_) => u64::from(left.subsec_nanos()).div_ceil(1000).min(999_999),
                _ => u64::from(left.subsec_nanos()),
            };
            let at = self.out.bounce_len() - LIMIT_ROOM;
            let mut bytes = [0; LIMIT_ROOM];
            bytes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
            bytes[8..].copy_from_slice(&small.to_le_bytes());
            self.out.bounce_write(self.vcpu, at, &bytes)?;
            staged.call.args[i] = at as u64;
        }
        Ok(staged)
    }

    /// The descriptors that a call of poll's family waits at.
    fn waits_at(&mut self, args: &[u64; 6]) -> Result<Vec<i32>, Fail> {
        let nr = self.row.nr;
        let mut fds = Vec::new();
        match nr {
            7 | 271 => {
                for i in 0..args[1].min(4096) {
                    fds.push(self.read_u32(args[0].wrapping_add(i * 8))? as i32);
                }
            }
            23 | 270 => {
                let bits = (args[0] as i32).clamp(0, 1024) as u64;
                for set in args[1..4].iter().filter(|va| **va != 0) {
                    for word in 0..bits.div_ceil(64) {
                        let set = self.read_u64(set.wrapping_add(word * 8))?;
                        let in_word = (0..64).filter(|b| set >> b & 1 != 0);
                        fds.extend(in_word.map(|b| (word * 64 + b) as i32));
                    }
                }
            }
            _ => fds.push(args[0] as i32),
        }
        Ok(fds)
    }

    // ---- halting ----

    /// [`HALT`](machine_call::HALT) until `until` on the TSC. Other threads may enter the kernel meanwhile.
    fn halt(
        &mut self,
        until: u64,
        outside: bool,
        looks: bool,
        at: Option<(i32, i16)>,
    ) -> Result<i64, Fail> {
        self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
        if self.kernel.interrupted() {
            return Ok(halted::RUNG);
        }
        let slot = self.kernel.slot();
        let seen = self.kernel.rings(slot);
        let flags = [u64::from(outside), u64::from(looks)];
        let (fd, events) = at.map_or((0, 0), |(fd, events)| (fd as u64 + 1, events as u64));
        let call = HostCall {
            nr: machine_call::HALT,
            args: [u64::from(seen), until, flags[0], flags[1], fd, events],
        };
        // Whether there is anything to wait for may depend on when something comes from outside.
        self.looking(true, |c| c.host_unlocked(&call))
    }

    /// The TSC of a deadline, and of the timer that is due before it.
    fn deadlines(&self, until: Deadline) -> (u64, u64) {
        let sim = self.kernel.sim.as_ref();
        sim.map_or((NEVER, NEVER), |sim| {
            let until = sim.time.tsc_of(until);
            (until, until.min(sim.next_timer()))
        })
    }

    /// [`Call::idle`] in simulated time.
    pub(super) fn halt_until(&mut self, until: Deadline) -> Result<bool, Fail> {
        let (until, next) = self.deadlines(until);
        if until <= self.vcpu.cycles() {
            return Ok(false);
        }
        let outside = self.kernel.sim.as_ref().is_some_and(|s| s.children > 0);
        let ended = self.halt(next, outside, false, None)?;
        Ok(ended != halted::UP || next < until)
    }

    /// Not charged: another look at what is waited for.
    fn looking<R>(&mut self, again: bool, f: impl FnOnce(&mut Self) -> R) -> R {
        let slot = self.kernel.slot();
        let before = self.kernel.time().map(|t| t.set_looks(slot, again));
        let result = f(self);
        if let (Some(time), Some(before)) = (self.kernel.time(), before) {
            time.set_looks(slot, before);
        }
        result
    }

    /// A host call that may sleep: made when it does not, or when nobody else can run.
    pub(super) fn wait_for_outside(&mut self, call: &HostCall) -> Result<i64, Fail> {
        let sleeping = HostCall {
            nr: call.nr | INTERRUPTIBLE,
            ..*call
        };
        let at = match call.nr {
            0 | 17 | 19 | 43 | 45 | 47 | 288 | 295 => Some((call.args[0] as i32, libc::POLLIN)),
            1 | 18 | 20 | 44 | 46 | 296 => Some((call.args[0] as i32, libc::POLLOUT)),
            _ => None,
        };
        // wait4, waitid, and what opens files or changes them can be looked at; for the others the host waits.
        let looks = at.is_some() || matches!(call.nr, 2 | 61 | 72 | 247 | 257 | 437);
        let mut again = false;
        loop {
            self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
            if self.kernel.interrupted() {
                return Ok(Errno::EINTR.ret());
            }
            if !looks {
                return self.host_unlocked(&sleeping);
            }
            let at_once = HostCall {
                nr: call.nr | INTERRUPTIBLE | AT_ONCE,
                ..*call
            };
            let ret = self.looking(again, |c| c.host_unlocked(&at_once))?;
            if ret != WOULD_SLEEP {
                return Ok(ret);
            }
            again = true;
            let (_, next) = self.deadlines(Deadline::Never);
            let alone = self.halt(next, true, true, None)? == halted::ALONE;
            if alone && next == NEVER {
                return self.looking(true, |c| c.host_unlocked(&sleeping));
            }
            if alone {
                // A timer ends the wait, if nothing comes before.
                let sim = self.kernel.sim.as_ref();
                let outside = sim.is_some_and(|sim| at.is_none_or(|(fd, _)| sim.outside(&[fd])));
                self.halt(next, outside, false, at)?;
            }
            self.kernel.collect();
            events::refresh(self.kernel, self.vcpu, self.out)?;
        }
    }

    /// A call with another time limit, and the host sleeps.
    fn sleep_on_host(
        &mut self,
        args: &[u64; 6],
        limit: Limit,
        left: Option<Duration>,
    ) -> Result<i64, Fail> {
        let mut staged = self.stage_limited(args, limit, left)?;
        staged.call.nr |= INTERRUPTIBLE;
        self.kernel.stats.host_calls += 1;
        self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
        if self.kernel.interrupted() {
            return Ok(Errno::EINTR.ret());
        }
        let ret = self.host_unlocked(&staged.call)?;
        staged.call.nr &= !INTERRUPTIBLE;
        finish(self, &staged, ret)
    }

    fn host_unlocked(&mut self, call: &HostCall) -> Result<i64, Fail> {
        let out = &mut *self.out;
        let ret = self
            .kernel
            .unlocked(self.vcpu, |vcpu| out.host_call(vcpu, call))?;
        Ok(ret)
    }
}

/// A call of poll's family in simulated time.
///
/// # Errors
/// As Linux.
pub fn wait(call: &mut Call<'_, '_>, args: [u64; 6]) -> Result<i64, Fail> {
    let limit = Limit::of(call.row.nr);
    let until = match call.limit(limit)? {
        None => Deadline::Never,
        Some(wait) => call.deadline(wait)?,
    };
    let fds = call.waits_at(&args)?;
    let mut again = false;
    let ret = loop {
        let ret = call.looking(again, |c| {
            let staged = c.stage_limited(&args, limit, Some(Duration::ZERO))?;
            c.ask(c.row, &staged, false)
        })?;
        if ret != 0 {
            break ret;
        }
        let (end, next) = call.deadlines(until);
        if end <= call.vcpu.cycles() {
            break 0;
        }
        if call.kernel.interrupted() {
            call.kernel.task().resume = Some((call.row.nr, until));
            break Errno::EINTR.ret();
        }
        let outside = call.kernel.sim.as_ref().is_some_and(|s| s.outside(&fds));
        let ended = call.halt(next, outside, true, None)?;
        again = true;
        if ended == halted::ALONE {
            let now = call.vcpu.cycles();
            let left = (next != NEVER).then(|| {
                let nanos = call
                    .kernel
                    .time()
                    .map_or(0, |t| t.nanos(next - now.min(next)));
                Duration::from_nanos(nanos.max(1))
            });
            let ret = call.looking(true, |c| c.sleep_on_host(&args, limit, left))?;
            if ret == 0 && next != NEVER {
                advance(call.vcpu, next);
            }
            if ret != 0 && ret != Errno::EINTR.ret() {
                break ret;
            }
        }
        call.kernel.collect();
        events::refresh(call.kernel, call.vcpu, call.out)?;
    };
    if until != Deadline::Never && (ret >= 0 || ret == Errno::EINTR.ret()) {
        let left = call.left(until)?;
        call.tell_left(limit, left)?;
    }
    Ok(ret)
}

/// epoll_create(2), epoll_create1(2).
///
/// # Errors
/// As Linux.
pub fn epoll_create(call: &mut Call<'_, '_>) -> SysResult {
    let done = fs::new_fd(call)?;
    if let (Sys::Ret(fd @ 0..), Some(sim)) = (done, &mut call.kernel.sim) {
        sim.inside.insert(fd as i32);
    }
    Ok(done)
}

/// epoll_ctl(2).
///
/// # Errors
/// As Linux.
pub fn epoll_ctl(call: &mut Call<'_, '_>) -> SysResult {
    let [epoll, _, fd, ..] = call.args;
    if let Some(sim) = &mut call.kernel.sim
        && !sim.inside.contains(&(fd as i32))
    {
        sim.inside.remove(&(epoll as i32));
    }
    Ok(Sys::Ret(call.proxy(&call.args.clone())?))
}
