//! System calls about signals.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Call, DONE, Sys, SysResult, ready};
use crate::doorbell::Deadline;
use crate::kernel::error::{Errno, Fail};
use crate::kernel::mm::USER_END;
use crate::kernel::outside::{HostCall, NULL, machine_call};
use crate::kernel::sigframe;
use crate::kernel::signal::{
    self, Action, AltStack, SIG_DFL, SIG_IGN, SIG_MAX, SIG_RTMIN, SIGCHLD, STOP_SIGNALS, SigInfo,
    UNBLOCKABLE, bit,
};

/// Smallest alternate stack (`MINSIGSTKSZ`).
const MINSIGSTKSZ: u64 = 2048;

fn signo(value: u64) -> Result<i32, Errno> {
    let n = value as i32;
    if (1..=SIG_MAX).contains(&n) {
        Ok(n)
    } else {
        Err(Errno::EINVAL)
    }
}

/// A `struct timespec`.
///
/// # Errors
/// EINVAL for what is no time.
pub fn duration([seconds, nanos]: [u64; 2]) -> Result<Duration, Errno> {
    if seconds > i64::MAX as u64 || nanos >= 1_000_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(Duration::new(seconds, nanos as u32))
}

fn set_size(size: u64) -> Result<(), Errno> {
    if size == 8 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// rt_sigaction(2).
///
/// # Errors
/// As Linux.
pub fn rt_sigaction(call: &mut Call<'_, '_>) -> SysResult {
    let [n, new, old, size, ..] = call.args;
    set_size(size)?;
    let n = signo(n)?;
    let fixed = UNBLOCKABLE & bit(n) != 0;
    if new != 0 && fixed {
        return Err(Errno::EINVAL.into());
    }
    let before = call.kernel.signals.action(n);
    let wanted = if new == 0 {
        None
    } else {
        let mut w = [0; 4];
        for (i, w) in w.iter_mut().enumerate() {
            *w = call.read_u64(new.wrapping_add(i as u64 * 8))?;
        }
        Some(Action {
            handler: w[0],
            flags: w[1],
            restorer: w[2],
            mask: w[3] & !UNBLOCKABLE,
        })
    };
    if old != 0 {
        let words = [before.handler, before.flags, before.restorer, before.mask];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        call.write_user(old, &bytes)?;
    }
    if let Some(action) = wanted {
        call.kernel.signals.set_action(n, action);
        call.tell_host(n, &action)?;
        if call.kernel.signals.ignored(n) {
            call.kernel.discard_signal(n);
        }
    }
    DONE
}

/// rt_sigprocmask(2).
///
/// # Errors
/// As Linux.
pub fn rt_sigprocmask(call: &mut Call<'_, '_>) -> SysResult {
    let [how, new, old, size, ..] = call.args;
    set_size(size)?;
    let before = call.kernel.task().signals.mask;
    if new != 0 {
        let set = call.read_u64(new)?;
        let mask = match how {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::EINVAL.into()),
        };
        call.kernel.set_mask(mask);
    }
    if old != 0 {
        call.write_user(old, &before.to_le_bytes())?;
    }
    DONE
}

/// rt_sigpending(2).
///
/// # Errors
/// As Linux.
pub fn rt_sigpending(call: &mut Call<'_, '_>) -> SysResult {
    let set = call.kernel.pending() & call.kernel.task().signals.mask;
    let n = call.args[1].min(8) as usize;
    call.write_user(call.args[0], &set.to_le_bytes()[..n])?;
    DONE
}

/// rt_sigreturn(2). A frame that can't be read is a SIGSEGV.
///
/// # Errors
/// The machine can't go on.
pub fn rt_sigreturn(call: &mut Call<'_, '_>) -> SysResult {
    match restore(call) {
        Err(Fail::Errno(_)) => {
            call.kernel.force(SigInfo::kernel(signal::SIGSEGV));
            Ok(Sys::Restored)
        }
        other => other,
    }
}

fn restore(call: &mut Call<'_, '_>) -> SysResult {
    let at = call.vcpu.state.gpr[4].wrapping_sub(8);
    let mut frame = [0; sigframe::FRAME];
    call.read_user(at, &mut frame)?;
    let restored = sigframe::parse(&mut call.vcpu.state, &frame);
    call.kernel.set_mask(restored.mask);
    if restored.alt.flags & AltStack::AUTODISARM != 0 {
        call.kernel.task().signals.alt = restored.alt;
    }
    if restored.fp_at == 0 {
        sigframe::restore_fp(&mut call.vcpu.state, None);
    } else {
        let mut legacy = [0; 512];
        call.read_user(restored.fp_at, &mut legacy)?;
        let mut fp = vec![0; sigframe::fp_len(&legacy)];
        call.read_user(restored.fp_at, &mut fp)?;
        sigframe::restore_fp(&mut call.vcpu.state, Some(&fp));
    }
    if call.vcpu.state.rip >= USER_END + 4096 {
        return Err(Errno::EFAULT.into());
    }
    Ok(Sys::Restored)
}

/// sigaltstack(2).
///
/// # Errors
/// As Linux.
pub fn sigaltstack(call: &mut Call<'_, '_>) -> SysResult {
    let [new, old, ..] = call.args;
    let current = call.kernel.task().signals.alt;
    let on = current.holds(call.vcpu.state.gpr[4]);
    let wanted = if new == 0 {
        None
    } else {
        let alt = AltStack {
            sp: call.read_u64(new)?,
            flags: call.read_u32(new.wrapping_add(8))?,
            size: call.read_u64(new.wrapping_add(16))?,
        };
        if on {
            return Err(Errno::EPERM.into());
        }
        match alt.flags & !AltStack::AUTODISARM {
            AltStack::DISABLE => Some(AltStack::NONE),
            0 | 1 if alt.size < MINSIGSTKSZ => return Err(Errno::ENOMEM.into()),
            0 | 1 => Some(AltStack {
                flags: alt.flags & AltStack::AUTODISARM,
                ..alt
            }),
            _ => return Err(Errno::EINVAL.into()),
        }
    };
    if old != 0 {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&current.sp.to_le_bytes());
        bytes[8..12].copy_from_slice(&(current.flags | u32::from(on)).to_le_bytes());
        bytes[16..].copy_from_slice(&current.size.to_le_bytes());
        call.write_user(old, &bytes)?;
    }
    if let Some(alt) = wanted {
        call.kernel.task().signals.alt = alt;
    }
    DONE
}

/// Raises a signal in the guest itself.
fn raise_own(call: &mut Call<'_, '_>, n: i32, code: i32) -> SysResult {
    let pid = call.pid()?;
    let uid = call.host(102, [0; 6])? as u32;
    call.kernel.raise(SigInfo::sent(n, code, pid, uid));
    DONE
}

/// kill(2): the process itself here, others on the host.
///
/// # Errors
/// As Linux.
pub fn kill(call: &mut Call<'_, '_>) -> SysResult {
    let (pid, n) = (call.args[0] as i32, call.args[1] as i32);
    if !(0..=SIG_MAX).contains(&n) {
        return Err(Errno::EINVAL.into());
    }
    if pid != call.pid()? {
        return Ok(Sys::Ret(call.proxy(&call.args.clone())?));
    }
    if n == 0 { DONE } else { raise_own(call, n, 0) }
}

fn to_thread(call: &mut Call<'_, '_>, tid: u64, n: u64, mut info: SigInfo) -> SysResult {
    let tid = tid as i32;
    if !(0..=SIG_MAX).contains(&(n as i32)) || tid <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let slot = call.kernel.slot_of(tid).ok_or(Errno::ESRCH)?;
    if n != 0 {
        info.0[..4].copy_from_slice(&(n as u32).to_le_bytes());
        let queues = info.code() < 0 && n as i32 >= SIG_RTMIN;
        if !call.kernel.raise_task(slot, info) && queues {
            return Err(Errno::EAGAIN.into());
        }
    }
    DONE
}

fn by_tkill(call: &mut Call<'_, '_>, tid: u64, n: u64) -> SysResult {
    let pid = call.pid()?;
    let uid = call.host(102, [0; 6])? as u32;
    to_thread(call, tid, n, SigInfo::sent(n as i32, -6, pid, uid))
}

/// tkill(2).
///
/// # Errors
/// As Linux; a thread of another process is asked of the host.
pub fn tkill(call: &mut Call<'_, '_>) -> SysResult {
    let [tid, n, ..] = call.args;
    if call.kernel.slot_of(tid as i32).is_none() && tid as i32 > 0 {
        return Ok(Sys::Ret(call.proxy(&call.args.clone())?));
    }
    by_tkill(call, tid, n)
}

/// tgkill(2).
///
/// # Errors
/// As Linux.
pub fn tgkill(call: &mut Call<'_, '_>) -> SysResult {
    let [group, tid, n, ..] = call.args;
    if group as i32 <= 0 {
        return Err(Errno::EINVAL.into());
    }
    if group as i32 != call.pid()? {
        return Ok(Sys::Ret(call.proxy(&call.args.clone())?));
    }
    by_tkill(call, tid, n)
}

fn queued_info(call: &mut Call<'_, '_>, n: u64, va: u64) -> Result<SigInfo, Fail> {
    let n = signo(n)?;
    let mut info = SigInfo([0; 128]);
    call.read_user(va, &mut info.0)?;
    info.0[..4].copy_from_slice(&n.to_le_bytes());
    Ok(info)
}

/// rt_sigqueueinfo(2): to the process itself here, to others on the host.
///
/// # Errors
/// As Linux.
pub fn rt_sigqueueinfo(call: &mut Call<'_, '_>) -> SysResult {
    let [pid, n, va, ..] = call.args;
    if pid as i32 != call.pid()? {
        return Ok(Sys::Ret(call.proxy(&call.args.clone())?));
    }
    let info = queued_info(call, n, va)?;
    if !call.kernel.raise(info) {
        return Err(Errno::EAGAIN.into());
    }
    DONE
}

/// rt_tgsigqueueinfo(2), inside the process.
///
/// # Errors
/// As Linux; EPERM for another process.
pub fn rt_tgsigqueueinfo(call: &mut Call<'_, '_>) -> SysResult {
    let [pid, tid, n, va, ..] = call.args;
    if pid as i32 != call.pid()? {
        return Err(Errno::EPERM.into());
    }
    let info = queued_info(call, n, va)?;
    to_thread(call, tid, n, info)
}

impl Call<'_, '_> {
    /// Halts until something rings, a signal comes, or `until`; false if the time is up. Spurious returns
    /// happen. Other threads may enter the kernel meanwhile.
    ///
    /// # Errors
    /// The exit failed.
    pub fn idle(&mut self, until: Deadline) -> Result<bool, Fail> {
        // What may have asked for a look before is looked at now.
        self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
        if self.kernel.interrupted() {
            return Ok(true);
        }
        if self.kernel.sim.is_some() {
            return self.halt_until(until);
        }
        self.await_ring(until)
    }

    /// As [`Call::idle`], whatever waits already; `exit_request` is 0.
    pub(super) fn await_ring(&mut self, until: Deadline) -> Result<bool, Fail> {
        let slot = self.kernel.slot();
        let seen = self.kernel.rings(slot);
        let [clock, nanos] = until.encode();
        let call = HostCall {
            nr: machine_call::IDLE,
            args: [u64::from(seen), clock, nanos, 0, 0, 0],
        };
        let out = &mut *self.out;
        let ret = self
            .kernel
            .unlocked(self.vcpu, |vcpu| out.host_call(vcpu, &call))?;
        Ok(ret != 0)
    }

    /// The host carries out what some signals do without a handler, so it is told which have none.
    ///
    /// # Errors
    /// The exit failed.
    pub fn tell_host(&mut self, n: i32, action: &Action) -> Result<(), Fail> {
        if n != SIGCHLD && STOP_SIGNALS & bit(n) == 0 {
            return Ok(());
        }
        let what = match action.handler {
            SIG_IGN => 1,
            SIG_DFL if n != SIGCHLD => 2,
            _ => 0,
        };
        let args = [n as u64, what, action.flags, 0, 0, 0];
        self.host(machine_call::ACTION, args)?;
        Ok(())
    }

    /// A point in time that a relative `struct timespec` names, on the monotonic clock.
    ///
    /// # Errors
    /// EINVAL for what is no time.
    pub fn after(&mut self, time: [u64; 2]) -> Result<Deadline, Fail> {
        let wait = duration(time)?;
        let now = self.now(1)?;
        Ok(Deadline::Monotonic(now.saturating_add(wait)))
    }

    /// What a clock says: the host's, or the simulated one.
    ///
    /// # Errors
    /// The exit failed.
    pub fn now(&mut self, clock: u64) -> Result<Duration, Fail> {
        if let Some(time) = self.kernel.time() {
            let now = self.vcpu.cycles();
            let slot = self.kernel.slot();
            return Ok(time.clock(clock as i32, slot, now).unwrap_or_default());
        }
        self.host(228, [clock, 0, 0, 0, 0, 0])?;
        let mut bytes = [0; 16];
        self.out.bounce_read(self.vcpu, 0, &mut bytes)?;
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]));
        Ok(duration([word(0), word(8)]).unwrap_or_default())
    }

    /// Sleeps until a signal can be delivered.
    ///
    /// # Errors
    /// The exit failed.
    pub fn wait_for_signal(&mut self) -> Result<(), Fail> {
        while !self.kernel.interrupted() {
            self.idle(Deadline::Never)?;
        }
        Ok(())
    }

    /// Replaces the mask until the call is over and its signals are delivered.
    fn mask_for_now(&mut self, set: u64) {
        let signals = &mut self.kernel.task().signals;
        signals.saved_mask = Some(signals.mask);
        self.kernel.set_mask(set);
    }

    /// Proxies with the mask at `va` (if any) in force and argument `null` withheld from the host.
    fn proxy_masked(&mut self, va: u64, null: usize) -> SysResult {
        if va != 0 {
            let set = self.read_u64(va)?;
            self.mask_for_now(set);
            if self.kernel.deliverable() {
                return Err(Errno::EINTR.into());
            }
        }
        let mut args = self.args;
        args[null] = NULL;
        let ret = if self.kernel.sim.is_some() {
            ready::wait(self, args)
        } else {
            self.proxy(&args)
        };
        let interrupted = matches!(ret, Ok(r) if r == Errno::EINTR.ret());
        if !interrupted && let Some(mask) = self.kernel.task().signals.saved_mask.take() {
            self.kernel.set_mask(mask);
        }
        Ok(Sys::Ret(ret?))
    }
}

/// pause(2).
///
/// # Errors
/// EINTR, always.
pub fn pause(call: &mut Call<'_, '_>) -> SysResult {
    call.wait_for_signal()?;
    Err(Errno::EINTR.into())
}

/// rt_sigsuspend(2).
///
/// # Errors
/// EINTR, always.
pub fn rt_sigsuspend(call: &mut Call<'_, '_>) -> SysResult {
    set_size(call.args[1])?;
    let set = call.read_u64(call.args[0])?;
    call.mask_for_now(set);
    call.wait_for_signal()?;
    Err(Errno::EINTR.into())
}

/// rt_sigtimedwait(2).
///
/// # Errors
/// As Linux.
pub fn rt_sigtimedwait(call: &mut Call<'_, '_>) -> SysResult {
    let [set, info, timeout, size, ..] = call.args;
    set_size(size)?;
    let set = call.read_u64(set)? & !UNBLOCKABLE;
    let until = match timeout {
        0 => Deadline::Never,
        va => {
            let time = [call.read_u64(va)?, call.read_u64(va.wrapping_add(8))?];
            call.after(time)?
        }
    };
    call.kernel.task().signals.waits_for = set;
    let found = loop {
        call.kernel.collect();
        if let Some(found) = call.kernel.take_signal(set) {
            break Ok(found);
        }
        if call.kernel.interrupted() {
            break Err(Fail::from(Errno::EINTR));
        }
        match call.idle(until) {
            Ok(true) => {}
            Ok(false) => {
                call.kernel.collect();
                break call.kernel.take_signal(set).ok_or(Errno::EAGAIN.into());
            }
            Err(e) => break Err(e),
        }
    };
    call.kernel.task().signals.waits_for = 0;
    let found = found?;
    if info != 0 {
        call.write_user(info, &found.0)?;
    }
    Ok(Sys::Ret(i64::from(found.signo())))
}

/// ppoll(2).
///
/// # Errors
/// As Linux.
pub fn ppoll(call: &mut Call<'_, '_>) -> SysResult {
    let va = call.args[3];
    call.proxy_masked(va, 3)
}

/// epoll_pwait(2).
///
/// # Errors
/// As Linux.
pub fn epoll_pwait(call: &mut Call<'_, '_>) -> SysResult {
    let va = call.args[4];
    call.proxy_masked(va, 4)
}

/// pselect6(2).
///
/// # Errors
/// As Linux.
pub fn pselect6(call: &mut Call<'_, '_>) -> SysResult {
    let va = match call.args[5] {
        0 => 0,
        pair => call.read_u64(pair)?,
    };
    call.proxy_masked(va, 5)
}
