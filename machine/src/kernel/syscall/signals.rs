//! System calls about signals.

use super::{Call, DONE, Sys, SysResult};
use crate::kernel::error::{Errno, Fail};
use crate::kernel::mm::USER_END;
use crate::kernel::outside::NULL;
use crate::kernel::sigframe;
use crate::kernel::signal::{self, Action, AltStack, SIG_MAX, SigInfo, UNBLOCKABLE, bit};

/// How long the kernel sleeps between looks at pending signals, nanoseconds.
const NAP: u64 = 20_000_000;
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
pub fn rt_sigaction(call: &mut Call<'_>) -> SysResult {
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
    }
    DONE
}

/// rt_sigprocmask(2).
///
/// # Errors
/// As Linux.
pub fn rt_sigprocmask(call: &mut Call<'_>) -> SysResult {
    let [how, new, old, size, ..] = call.args;
    set_size(size)?;
    let before = call.kernel.signals.mask;
    if new != 0 {
        let set = call.read_u64(new)?;
        let mask = match how {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::EINVAL.into()),
        };
        call.kernel.signals.mask = mask & !UNBLOCKABLE;
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
pub fn rt_sigpending(call: &mut Call<'_>) -> SysResult {
    call.tick()?;
    call.kernel.signals.collect();
    let set = call.kernel.signals.pending() & call.kernel.signals.mask;
    let n = call.args[1].min(8) as usize;
    call.write_user(call.args[0], &set.to_le_bytes()[..n])?;
    DONE
}

/// rt_sigreturn(2). A frame that can't be read is a SIGSEGV.
///
/// # Errors
/// The machine can't go on.
pub fn rt_sigreturn(call: &mut Call<'_>) -> SysResult {
    match restore(call) {
        Err(Fail::Errno(_)) => {
            call.kernel.signals.force(SigInfo::kernel(signal::SIGSEGV));
            Ok(Sys::Restored)
        }
        other => other,
    }
}

fn restore(call: &mut Call<'_>) -> SysResult {
    let at = call.vcpu.state.gpr[4].wrapping_sub(8);
    let mut frame = [0; sigframe::FRAME];
    call.read_user(at, &mut frame)?;
    let restored = sigframe::parse(&mut call.vcpu.state, &frame);
    call.kernel.signals.mask = restored.mask & !UNBLOCKABLE;
    if restored.alt.flags & AltStack::AUTODISARM != 0 {
        call.kernel.signals.alt = restored.alt;
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
pub fn sigaltstack(call: &mut Call<'_>) -> SysResult {
    let [new, old, ..] = call.args;
    let current = call.kernel.signals.alt;
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
        call.kernel.signals.alt = alt;
    }
    DONE
}

/// Raises a signal in the guest itself.
fn raise_own(call: &mut Call<'_>, n: i32, code: i32) -> SysResult {
    let pid = call.pid()?;
    let uid = call.host(102, [0; 6])? as u32;
    call.kernel.signals.raise(SigInfo::sent(n, code, pid, uid));
    DONE
}

/// kill(2): the process itself here, others on the host.
///
/// # Errors
/// As Linux.
pub fn kill(call: &mut Call<'_>) -> SysResult {
    let (pid, n) = (call.args[0] as i32, call.args[1] as i32);
    if !(0..=SIG_MAX).contains(&n) {
        return Err(Errno::EINVAL.into());
    }
    if pid != call.pid()? {
        return Ok(Sys::Ret(call.proxy(&call.args.clone())?));
    }
    if n == 0 { DONE } else { raise_own(call, n, 0) }
}

fn to_thread(call: &mut Call<'_>, tid: u64, n: u64) -> SysResult {
    let tid = tid as i32;
    if !(0..=SIG_MAX).contains(&(n as i32)) || tid <= 0 {
        return Err(Errno::EINVAL.into());
    }
    if tid as i64 != call.host(186, [0; 6])? && tid != call.pid()? {
        return Err(Errno::ESRCH.into());
    }
    if n == 0 {
        DONE
    } else {
        raise_own(call, n as i32, -6)
    }
}

/// tkill(2).
///
/// # Errors
/// As Linux; ESRCH for any other thread.
pub fn tkill(call: &mut Call<'_>) -> SysResult {
    let [tid, n, ..] = call.args;
    to_thread(call, tid, n)
}

/// tgkill(2).
///
/// # Errors
/// As Linux; ESRCH for any other thread.
pub fn tgkill(call: &mut Call<'_>) -> SysResult {
    let [_, tid, n, ..] = call.args;
    to_thread(call, tid, n)
}

/// rt_sigqueueinfo(2), to the process itself.
///
/// # Errors
/// As Linux; EPERM for another process.
pub fn rt_sigqueueinfo(call: &mut Call<'_>) -> SysResult {
    let [pid, n, va, ..] = call.args;
    if pid as i32 != call.pid()? {
        return Err(Errno::EPERM.into());
    }
    let n = signo(n)?;
    let mut info = SigInfo([0; 128]);
    call.read_user(va, &mut info.0)?;
    info.0[..4].copy_from_slice(&n.to_le_bytes());
    call.kernel.signals.raise(info);
    DONE
}

impl Call<'_> {
    /// Sleeps until a signal can be delivered.
    ///
    /// # Errors
    /// The exit failed.
    pub fn wait_for_signal(&mut self) -> Result<(), Fail> {
        self.tick()?;
        while !self.kernel.signals.deliverable() {
            self.host_sleep(1, 0, [0, NAP])?;
            self.tick()?;
        }
        Ok(())
    }

    /// Replaces the mask until the call is over and its signals are delivered.
    fn mask_for_now(&mut self, set: u64) {
        let signals = &mut self.kernel.signals;
        signals.saved_mask = Some(signals.mask);
        signals.mask = set & !UNBLOCKABLE;
    }

    /// Proxies with the mask at `va` (if any) in force and argument `null` withheld from the host.
    fn proxy_masked(&mut self, va: u64, null: usize) -> SysResult {
        if va != 0 {
            let set = self.read_u64(va)?;
            self.mask_for_now(set);
            if self.kernel.signals.deliverable() {
                return Err(Errno::EINTR.into());
            }
        }
        let mut args = self.args;
        args[null] = NULL;
        let ret = self.proxy(&args);
        let interrupted = matches!(ret, Ok(r) if r == Errno::EINTR.ret());
        if !interrupted && let Some(mask) = self.kernel.signals.saved_mask.take() {
            self.kernel.signals.mask = mask;
        }
        Ok(Sys::Ret(ret?))
    }
}

/// pause(2).
///
/// # Errors
/// EINTR, always.
pub fn pause(call: &mut Call<'_>) -> SysResult {
    call.wait_for_signal()?;
    Err(Errno::EINTR.into())
}

/// rt_sigsuspend(2).
///
/// # Errors
/// EINTR, always.
pub fn rt_sigsuspend(call: &mut Call<'_>) -> SysResult {
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
pub fn rt_sigtimedwait(call: &mut Call<'_>) -> SysResult {
    let [set, info, timeout, size, ..] = call.args;
    set_size(size)?;
    let set = call.read_u64(set)? & !UNBLOCKABLE;
    let mut left = if timeout == 0 {
        u64::MAX
    } else {
        let seconds = call.read_u64(timeout)?;
        let nanos = call.read_u64(timeout.wrapping_add(8))?;
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    };
    loop {
        call.tick()?;
        call.kernel.signals.collect();
        if let Some(found) = call.kernel.signals.take(set) {
            if info != 0 {
                call.write_user(info, &found.0)?;
            }
            return Ok(Sys::Ret(i64::from(found.signo())));
        }
        if call.kernel.signals.deliverable() {
            return Err(Errno::EINTR.into());
        }
        if left == 0 {
            return Err(Errno::EAGAIN.into());
        }
        let nap = left.min(NAP);
        call.host_sleep(1, 0, [0, nap])?;
        left -= nap;
    }
}

/// ppoll(2).
///
/// # Errors
/// As Linux.
pub fn ppoll(call: &mut Call<'_>) -> SysResult {
    let va = call.args[3];
    call.proxy_masked(va, 3)
}

/// epoll_pwait(2).
///
/// # Errors
/// As Linux.
pub fn epoll_pwait(call: &mut Call<'_>) -> SysResult {
    let va = call.args[4];
    call.proxy_masked(va, 4)
}

/// pselect6(2).
///
/// # Errors
/// As Linux.
pub fn pselect6(call: &mut Call<'_>) -> SysResult {
    let va = match call.args[5] {
        0 => 0,
        pair => call.read_u64(pair)?,
    };
    call.proxy_masked(va, 5)
}
