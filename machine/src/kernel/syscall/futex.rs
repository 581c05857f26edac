//! futex(2): waiting for a word of memory to change.
//!
//! A futex in private memory is a queue of the guest kernel's, by address: all who can reach the word are
//! threads of this process. The kernel's lock is held from the look at the word to the place in the
//! queue, so no wake-up gets between. A futex in memory that is shared with other processes lies in host
//! memory, and is the host's.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::signals::duration;
use super::{Call, DONE, Sys, SysResult};
use crate::doorbell::Deadline;
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Fail};
use crate::kernel::outside::{HostCall, NULL, machine_call};
use crate::simtime::advance;

/// Who waits at a futex.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// The task.
    slot: usize,
    /// Which wake-ups are for it.
    bits: u32,
}

const CLOCK_REALTIME: u64 = 256;
const ANY: u32 = u32::MAX;
/// The futex word's bit that says somebody waits (priority-inheriting and robust futexes).
const FUTEX_WAITERS: u32 = 0x8000_0000;
/// The futex word's bit that says its owner died.
const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
/// Longest robust list that is followed.
const ROBUST_LIMIT: usize = 2048;

impl Kernel {
    /// Wakes up to `most` waiters of `bits` at a futex; how many there were.
    pub fn futex_wake(&mut self, va: u64, most: u32, bits: u32) -> i64 {
        let Some(queue) = self.futexes.get_mut(&va) else {
            return 0;
        };
        let mut woken = Vec::new();
        queue.retain(|w| {
            let take = w.bits & bits != 0 && (woken.len() as u64) < u64::from(most);
            if take {
                woken.push(w.slot);
            }
            !take
        });
        if queue.is_empty() {
            self.futexes.remove(&va);
        }
        for slot in &woken {
            if let Some(task) = self.tasks[*slot].as_mut() {
                task.futex = None;
            }
            self.ring(*slot);
        }
        woken.len() as i64
    }

    /// Moves up to `most` waiters to another futex; how many there were.
    fn futex_move(&mut self, from: u64, to: u64, most: u32) -> i64 {
        if from == to {
            return 0;
        }
        let Some(queue) = self.futexes.get_mut(&from) else {
            return 0;
        };
        let n = queue.len().min(most as usize);
        let moved: Vec<Waiter> = queue.drain(..n).collect();
        if queue.is_empty() {
            self.futexes.remove(&from);
        }
        for waiter in &moved {
            if let Some(task) = self.tasks[waiter.slot].as_mut() {
                task.futex = Some(to);
            }
        }
        self.futexes.entry(to).or_default().extend(moved);
        n as i64
    }

    /// The current task does not wait any more.
    fn futex_give_up(&mut self) {
        let slot = self.current;
        if let Some(va) = self.task().futex.take()
            && let Some(queue) = self.futexes.get_mut(&va)
        {
            queue.retain(|w| w.slot != slot);
            if queue.is_empty() {
                self.futexes.remove(&va);
            }
        }
    }
}

impl Call<'_, '_> {
    /// Waits at a futex whose word has been looked at.
    fn futex_sleep(&mut self, va: u64, bits: u32, until: Deadline) -> SysResult {
        let slot = self.kernel.slot();
        self.kernel.task().futex = Some(va);
        let waiter = Waiter { slot, bits };
        self.kernel.futexes.entry(va).or_default().push_back(waiter);
        loop {
            let more = self.idle(until)?;
            if self.kernel.task().futex.is_none() {
                return DONE;
            }
            if !more {
                self.kernel.futex_give_up();
                return Err(Errno::ETIMEDOUT.into());
            }
            if self.kernel.interrupted() {
                self.kernel.futex_give_up();
                return Err(Errno::EINTR.into());
            }
        }
    }

    fn futex_until(&mut self, va: u64, op: u64, absolute: bool) -> Result<Deadline, Fail> {
        if va == 0 {
            return Ok(Deadline::Never);
        }
        let time = [self.read_u64(va)?, self.read_u64(va.wrapping_add(8))?];
        if !absolute {
            return self.after(time);
        }
        let at = duration(time)?;
        Ok(if op & CLOCK_REALTIME == 0 {
            Deadline::Monotonic(at)
        } else {
            Deadline::Realtime(at)
        })
    }

    fn futex_wait(&mut self, va: u64, value: u32, bits: u32, until: Deadline) -> SysResult {
        if bits == 0 {
            return Err(Errno::EINVAL.into());
        }
        if self.read_u32(va)? != value {
            return Err(Errno::EAGAIN.into());
        }
        self.futex_sleep(va, bits, until)
    }

    /// FUTEX_WAKE_OP: changes a second word, wakes at the first, and at the second if it was so.
    fn futex_wake_op(
        &mut self,
        first: u64,
        second: u64,
        wake: u32,
        also: u32,
        op: u32,
    ) -> SysResult {
        let (kind, test) = (op >> 28 & 7, op >> 24 & 15);
        let sign = |v: u32| ((v << 20) as i32 >> 20) as u32;
        let (mut operand, against) = (sign(op >> 12 & 0xfff), sign(op & 0xfff));
        if op >> 28 & 8 != 0 {
            operand = 1 << (operand & 31);
        }
        let apply = |old: u32| {
            Ok(match kind {
                0 => operand,
                1 => old.wrapping_add(operand),
                2 => old | operand,
                3 => old & !operand,
                4 => old ^ operand,
                _ => return Err(Errno::ENOSYS),
            })
        };
        let old = self.update_u32(second, apply)?;
        let (a, b) = (old as i32, against as i32);
        let so = match test {
            0 => a == b,
            1 => a != b,
            2 => a < b,
            3 => a <= b,
            4 => a > b,
            5 => a >= b,
            _ => return Err(Errno::ENOSYS.into()),
        };
        let mut woken = self.kernel.futex_wake(first, wake, ANY);
        if so {
            woken += self.kernel.futex_wake(second, also, ANY);
        }
        Ok(Sys::Ret(woken))
    }

    /// FUTEX_LOCK_PI and its likes, without the inheritance: the lock and its hand-over are exact, the
    /// order of waiting is first come, first served.
    fn futex_lock_pi(&mut self, va: u64, until: Deadline, may_wait: bool) -> SysResult {
        let tid = self.tid()? as u32;
        loop {
            let mut owned = 0;
            self.update_u32(va, |old| {
                owned = old & FUTEX_TID_MASK;
                Ok(if owned == 0 {
                    tid | old & (FUTEX_WAITERS | FUTEX_OWNER_DIED)
                } else if may_wait && owned != tid {
                    old | FUTEX_WAITERS
                } else {
                    old
                })
            })?;
            if owned == 0 {
                return DONE;
            }
            if owned == tid {
                return Err(Errno::EDEADLK.into());
            }
            if !may_wait {
                return Err(Errno::EAGAIN.into());
            }
            if self.kernel.slot_of(owned as i32).is_none() {
                return Err(Errno::ESRCH.into());
            }
            match self.futex_sleep(va, ANY, until)? {
                Sys::Ret(0) => {}
                other => return Ok(other),
            }
        }
    }

    fn futex_unlock_pi(&mut self, va: u64) -> SysResult {
        let tid = self.tid()? as u32;
        if self.read_u32(va)? & FUTEX_TID_MASK != tid {
            return Err(Errno::EPERM.into());
        }
        let others = self.kernel.futexes.get(&va).is_some_and(|q| q.len() > 1);
        self.update_u32(va, |_| Ok(if others { FUTEX_WAITERS } else { 0 }))?;
        self.kernel.futex_wake(va, 1, ANY);
        DONE
    }

    /// Changes a word of guest memory atomically against all vCPUs; what it was before.
    ///
    /// # Errors
    /// EFAULT, EINVAL for an address that is not aligned, or what `change` returns.
    pub fn update_u32(
        &mut self,
        va: u64,
        mut change: impl FnMut(u32) -> Result<u32, Errno>,
    ) -> Result<u32, Fail> {
        if !va.is_multiple_of(4) {
            return Err(Errno::EINVAL.into());
        }
        loop {
            let old = self.read_u32(va)?;
            let new = change(old)?;
            // Faults the page in for writing, with what that needs.
            self.kernel.probe_write(self.vcpu, self.out, va)?;
            match self.vcpu.compare_exchange_u32(va, old, new) {
                Ok(true) => return Ok(old),
                Ok(false) => {}
                Err(_) => return Err(Errno::EFAULT.into()),
            }
        }
    }
}

/// futex(2).
///
/// # Errors
/// As Linux; ENOSYS for requeueing to priority-inheriting futexes.
pub fn futex(call: &mut Call<'_, '_>) -> SysResult {
    let [va, op, value, timeout, second, value3] = call.args;
    if va % 4 != 0 {
        return Err(Errno::EINVAL.into());
    }
    // A process without relatives shares its words with its own threads at most.
    let own = call.kernel.sim.as_ref().is_some_and(|sim| !sim.related);
    if op & FUTEX_PRIVATE == 0
        && !own
        && let Some(ret) = call.shared_futex()?
    {
        return Ok(Sys::Ret(ret));
    }
    let (count, count2, value3) = (value as u32, timeout as u32, value3 as u32);
    match op & 127 {
        0 => {
            let until = call.futex_until(timeout, op, false)?;
            call.futex_wait(va, count, ANY, until)
        }
        9 => {
            let until = call.futex_until(timeout, op, true)?;
            call.futex_wait(va, count, value3, until)
        }
        1 => Ok(Sys::Ret(call.kernel.futex_wake(va, count, ANY))),
        10 if value3 == 0 => Err(Errno::EINVAL.into()),
        10 => Ok(Sys::Ret(call.kernel.futex_wake(va, count, value3))),
        3 | 4 => {
            if (count as i32) < 0 || (count2 as i32) < 0 {
                return Err(Errno::EINVAL.into());
            }
            if op & 127 == 4 && call.read_u32(va)? != value3 {
                return Err(Errno::EAGAIN.into());
            }
            let woken = call.kernel.futex_wake(va, count, ANY);
            let moved = call.kernel.futex_move(va, second, count2);
            Ok(Sys::Ret(woken + moved))
        }
        5 => call.futex_wake_op(va, second, count, count2, value3),
        6 | 13 => {
            let realtime = if op & 127 == 6 { CLOCK_REALTIME } else { op };
            let until = call.futex_until(timeout, realtime, true)?;
            call.futex_lock_pi(va, until, true)
        }
        7 => call.futex_unlock_pi(va),
        8 => call.futex_lock_pi(va, Deadline::Never, false),
        _ => Err(Errno::ENOSYS.into()),
    }
}

const FUTEX_PRIVATE: u64 = 128;

impl Call<'_, '_> {
    /// Where the word at `va` is in the file window, if it is there.
    fn shared_word(&mut self, va: u64) -> Result<Option<u64>, Fail> {
        self.read_u32(va)?; // brings the page in
        let (kernel, mut cx) = self.cx();
        let frame = kernel.mm.shared_frame(&mut cx, va)?;
        Ok(frame.map(|gpa| gpa.0))
    }

    /// futex(2) on a word that other processes may share: the host's. `None`: the word is private.
    fn shared_futex(&mut self) -> Result<Option<i64>, Fail> {
        let mut args = self.args;
        let command = args[1] & 127;
        let mut ends = Deadline::Never;
        let Some(word) = self.shared_word(args[0])? else {
            return Ok(None);
        };
        args[0] = word;
        match command {
            0 | 6 | 9 | 13 if args[3] != 0 => {
                let time = [
                    self.read_u64(args[3])?,
                    self.read_u64(args[3].wrapping_add(8))?,
                ];
                let limit = duration(time)?;
                let time = match self.kernel.sim {
                    None => time,
                    Some(_) => {
                        let realtime = command == 6 || args[1] & CLOCK_REALTIME != 0;
                        let until = match command {
                            0 => self.after(time)?,
                            _ if realtime => Deadline::Realtime(limit),
                            _ => Deadline::Monotonic(limit),
                        };
                        ends = until;
                        // The host's clocks are others: how long it is from now.
                        args[1] &= !CLOCK_REALTIME;
                        let left = self.left(until)?;
                        [left.as_secs(), u64::from(left.subsec_nanos())]
                    }
                };
                self.out.bounce_write(self.vcpu, 0, time.as_bytes())?;
                args[3] = 0;
            }
            0 | 6 | 9 | 13 => args[3] = NULL,
            3..=5 => {
                let Some(second) = self.shared_word(args[4])? else {
                    return Err(Errno::EINVAL.into());
                };
                args[4] = second;
            }
            _ => {}
        }
        let call = HostCall {
            nr: machine_call::FUTEX,
            args,
        };
        if !matches!(command, 0 | 6 | 9 | 13) {
            return Ok(Some(self.out.host_call(self.vcpu, &call)?));
        }
        self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
        if self.kernel.interrupted() {
            return Ok(Some(Errno::EINTR.ret()));
        }
        let out = &mut *self.out;
        let ret = self
            .kernel
            .unlocked(self.vcpu, |vcpu| out.host_call(vcpu, &call))?;
        if ret == Errno::ETIMEDOUT.ret()
            && let Some(time) = self.kernel.time()
        {
            let until = time.tsc_of(ends);
            advance(self.vcpu, until);
        }
        Ok(Some(ret))
    }

    /// Wakes one waiter at a word, wherever it is: a thread dies.
    fn wake_one(&mut self, va: u64) {
        self.kernel.futex_wake(va, 1, ANY);
        let (row, args) = (self.row, self.args);
        self.args = [va, 1, 1, 0, 0, 0];
        // A word that is not there has no waiters.
        let _ = self.shared_futex();
        (self.row, self.args) = (row, args);
    }
}

/// Whether a call is a futex wait with a time limit, which a handler ends whatever its flags are.
#[must_use]
pub fn is_timed(nr: i64, args: &[u64; 6]) -> bool {
    nr == 202 && matches!(args[1] & 127, 0 | 9) && args[3] != 0
}

/// A thread dies: the robust futexes it holds say so, and who waits for one is woken
/// (kernel/futex/core.c, exit_robust_list).
pub fn release_robust(call: &mut Call<'_, '_>) {
    let head = std::mem::take(&mut call.kernel.task().robust);
    if head != 0 {
        // A broken list is the program's loss.
        let _ = walk_robust(call, head);
    }
}

fn walk_robust(call: &mut Call<'_, '_>, head: u64) -> Result<(), Fail> {
    let tid = call.tid()? as u32;
    let mut entry = call.read_u64(head)?;
    let offset = call.read_u64(head.wrapping_add(8))?;
    let pending = call.read_u64(head.wrapping_add(16))?;
    let mut left = ROBUST_LIMIT;
    while entry & !1 != head && left > 0 {
        let next = call.read_u64(entry & !1)?;
        if entry != pending {
            robust_death(call, (entry & !1).wrapping_add(offset), tid, false)?;
        }
        entry = next;
        left -= 1;
    }
    if pending & !1 != 0 {
        robust_death(call, (pending & !1).wrapping_add(offset), tid, true)?;
    }
    Ok(())
}

fn robust_death(call: &mut Call<'_, '_>, va: u64, tid: u32, pending: bool) -> Result<(), Fail> {
    let mut waiters = false;
    let old = call.read_u32(va)?;
    if pending && old == 0 {
        call.wake_one(va);
        return Ok(());
    }
    if old & FUTEX_TID_MASK != tid {
        return Ok(());
    }
    call.update_u32(va, |old| {
        waiters = old & FUTEX_WAITERS != 0;
        Ok(old & FUTEX_WAITERS | FUTEX_OWNER_DIED)
    })?;
    if waiters {
        call.wake_one(va);
    }
    Ok(())
}
