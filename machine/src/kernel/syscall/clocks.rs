//! What the time is, and what else a program may see of the machine that differs from run to run: answered here where
//! time is simulated ([`crate::simtime`]), by the host elsewhere.

use std::time::Duration;

use sevlab_cpu::Vcpu;
use zerocopy::IntoBytes;

use super::signals::duration;
use super::{Call, DONE, Sys, SysResult, events, fs};
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::outside::Outside;
use crate::kernel::simulated::{Action, Armed};
use crate::simtime::{SimTime, advance, clock};

const TIMER_ABSTIME: u64 = 1;
/// Processors that a guest in simulated time is told of, whatever the host has.
pub const CPUS: u64 = 8;
/// Nanoseconds of a tick (`sysconf(_SC_CLK_TCK)` is 100).
const TICK: u128 = 10_000_000;
const O_NONBLOCK_CLOEXEC: u64 = 0o2_004_000;

/// As the host answers.
fn by_host(call: &mut Call<'_, '_>) -> SysResult {
    Ok(Sys::Ret(call.proxy(&call.args.clone())?))
}

/// A `struct timespec`.
fn spec(d: Duration) -> [u64; 2] {
    [d.as_secs(), u64::from(d.subsec_nanos())]
}

/// A `struct timeval`.
fn val(d: Duration) -> [u64; 2] {
    [d.as_secs(), u64::from(d.subsec_micros())]
}

/// Which clock a number means, and whose: that of another thread's processor time names the thread.
///
/// # Errors
/// EINVAL for none.
fn named(call: &mut Call<'_, '_>, id: i32) -> Result<(i32, usize), Fail> {
    let own = call.kernel.slot();
    if id >= 0 {
        return match id {
            0..=9 | clock::TAI => Ok((id, own)),
            _ => Err(Errno::EINVAL.into()),
        };
    }
    // ~number in the upper bits, then whether it is a thread's, then which time.
    let (number, thread, kind) = (!(id >> 3), id & 4 != 0, id & 3);
    if kind == 3 {
        return Err(Errno::EINVAL.into());
    }
    if thread {
        let slot = match number {
            0 => Some(own),
            tid => call.kernel.slot_of(tid),
        };
        return Ok((clock::THREAD_CPUTIME, slot.ok_or(Errno::EINVAL)?));
    }
    if number != 0 && number != call.pid()? {
        return Err(Errno::EINVAL.into());
    }
    Ok((clock::PROCESS_CPUTIME, own))
}

fn read_clock(call: &mut Call<'_, '_>, id: i32) -> Result<Duration, Fail> {
    let (id, slot) = named(call, id)?;
    let time = call.kernel.time().ok_or(Errno::EINVAL)?;
    let now = call.vcpu.cycles();
    Ok(time.clock(id, slot, now).ok_or(Errno::EINVAL)?)
}

/// clock_gettime(2).
///
/// # Errors
/// As Linux.
pub fn clock_gettime(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [id, va, ..] = call.args;
    let now = read_clock(call, id as i32)?;
    call.write_user(va, spec(now).as_bytes())?;
    DONE
}

/// clock_getres(2).
///
/// # Errors
/// As Linux.
pub fn clock_getres(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [id, va, ..] = call.args;
    let (id, _) = named(call, id as i32)?;
    if va != 0 {
        call.write_user(va, [0, SimTime::resolution(id)].as_bytes())?;
    }
    DONE
}

/// gettimeofday(2).
///
/// # Errors
/// As Linux.
pub fn gettimeofday(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [time, zone, ..] = call.args;
    let now = read_clock(call, clock::REALTIME)?;
    if time != 0 {
        call.write_user(time, val(now).as_bytes())?;
    }
    if zone != 0 {
        call.write_user(zone, &[0; 8])?;
    }
    DONE
}

/// time(2).
///
/// # Errors
/// As Linux.
pub fn time(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let now = read_clock(call, clock::REALTIME)?.as_secs();
    if call.args[0] != 0 {
        call.write_user(call.args[0], &now.to_le_bytes())?;
    }
    Ok(Sys::Ret(now as i64))
}

/// User and system time of (busy, system) cycles.
fn split(time: &SimTime, (busy, system): (u64, u64)) -> [Duration; 2] {
    [busy - system.min(busy), system].map(|cycles| Duration::from_nanos(time.nanos(cycles)))
}

/// times(2).
///
/// # Errors
/// As Linux.
pub fn times(call: &mut Call<'_, '_>) -> SysResult {
    let Some(time) = call.kernel.time() else {
        return by_host(call);
    };
    let ticks = |d: Duration| (d.as_nanos() / TICK) as u64;
    let [user, system] = split(time, time.process());
    let [cuser, csystem] = split(time, time.children());
    let now = Duration::from_nanos(time.nanos(call.vcpu.cycles()));
    if call.args[0] != 0 {
        let all = [user, system, cuser, csystem].map(ticks);
        call.write_user(call.args[0], all.as_bytes())?;
    }
    Ok(Sys::Ret(ticks(now) as i64))
}

/// Ticks for `/proc/self/stat`: user, system, and the children's of both.
#[must_use]
pub fn ticks(time: &SimTime) -> [u64; 4] {
    let [a, b] = split(time, time.process());
    let [c, d] = split(time, time.children());
    [a, b, c, d].map(|d| (d.as_nanos() / TICK) as u64)
}

/// Puts simulated times into the `struct rusage` at `va`, whose other counts (of the host) go.
///
/// # Errors
/// EFAULT.
pub fn fill_usage(call: &mut Call<'_, '_>, who: i32, va: u64) -> Result<(), Fail> {
    let Some(time) = call.kernel.time() else {
        return Ok(());
    };
    let slot = call.kernel.slot();
    let [user, system] = match who {
        -1 => split(time, time.children()),
        1 => split(time, time.thread(slot)),
        _ => split(time, time.process()),
    };
    let mut usage = [0; 144];
    usage[..16].copy_from_slice(val(user).as_bytes());
    usage[16..32].copy_from_slice(val(system).as_bytes());
    call.write_user(va, &usage)
}

// ---- timers ----

/// The time spec at `va`: interval, then value.
fn read_pair(call: &mut Call<'_, '_>, va: u64, micros: bool) -> Result<[Duration; 2], Fail> {
    let mut words = [0; 4];
    for (i, w) in words.iter_mut().enumerate() {
        *w = call.read_u64(va.wrapping_add(i as u64 * 8))?;
    }
    let one = |seconds: u64, small: u64| -> Result<Duration, Errno> {
        match micros {
            true if small < 1_000_000 => duration([seconds, small * 1000]),
            true => Err(Errno::EINVAL),
            false => duration([seconds, small]),
        }
    };
    Ok([one(words[0], words[1])?, one(words[2], words[3])?])
}

fn pair(form: fn(Duration) -> [u64; 2], left: Duration, interval: Duration) -> [u64; 4] {
    let ([a, b], [c, d]) = (form(interval), form(left));
    [a, b, c, d]
}

/// Sets a timer: `absolute` or from now on. What was left of it, and its interval.
pub(super) fn set_timer(
    call: &mut Call<'_, '_>,
    action: &Action,
    (clock, slot): (i32, usize),
    [interval, value]: [Duration; 2],
    absolute: bool,
) -> (Duration, Duration) {
    let Some(sim) = call.kernel.sim.as_mut() else {
        return (Duration::ZERO, Duration::ZERO);
    };
    let before = sim.left(action);
    let new = (!value.is_zero()).then(|| {
        let now = sim.time.clock(clock, slot, sim.time.now());
        let at = if absolute {
            value
        } else {
            value.saturating_add(now.unwrap_or_default())
        };
        Armed {
            action: action.clone(),
            clock,
            slot,
            at,
            interval,
        }
    });
    sim.arm(action, new);
    before
}

/// The clock of an interval timer.
const INTERVAL: [i32; 3] = [
    clock::MONOTONIC,
    clock::PROCESS_CPUTIME,
    clock::PROCESS_CPUTIME,
];

/// setitimer(2).
///
/// # Errors
/// As Linux.
pub fn setitimer(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [which, new, old, ..] = call.args;
    let clock = *INTERVAL.get(which as usize).ok_or(Errno::EINVAL)?;
    let slot = call.kernel.slot();
    let new = match new {
        0 => [Duration::ZERO; 2],
        va => read_pair(call, va, true)?,
    };
    let action = Action::Interval(which as usize);
    let (left, interval) = set_timer(call, &action, (clock, slot), new, false);
    if old != 0 {
        call.write_user(old, pair(val, left, interval).as_bytes())?;
    }
    DONE
}

/// getitimer(2).
///
/// # Errors
/// As Linux.
pub fn getitimer(call: &mut Call<'_, '_>) -> SysResult {
    let [which, va, ..] = call.args;
    let Some(sim) = &call.kernel.sim else {
        return by_host(call);
    };
    if which as usize >= INTERVAL.len() {
        return Err(Errno::EINVAL.into());
    }
    let (left, interval) = sim.left(&Action::Interval(which as usize));
    call.write_user(va, pair(val, left, interval).as_bytes())?;
    DONE
}

/// alarm(2).
///
/// # Errors
/// None.
pub fn alarm(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let slot = call.kernel.slot();
    let seconds = Duration::from_secs(u64::from(call.args[0] as u32));
    let new = [Duration::ZERO, seconds];
    let clock = (clock::MONOTONIC, slot);
    let (left, _) = set_timer(call, &Action::Interval(0), clock, new, false);
    // Rounded, but never to nothing (kernel/time/itimer.c, alarm_setitimer).
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() >= 500_000_000);
    Ok(Sys::Ret(match seconds {
        0 => i64::from(!left.is_zero()),
        n => n as i64,
    }))
}

/// The clock of a new POSIX timer.
///
/// # Errors
/// EINVAL for none.
pub(super) fn of_timer(call: &mut Call<'_, '_>, id: i32) -> Result<(i32, usize), Fail> {
    let (id, slot) = named(call, id)?;
    Ok(match id {
        clock::REALTIME_ALARM | clock::TAI => (clock::REALTIME, slot),
        clock::REALTIME | clock::PROCESS_CPUTIME | clock::THREAD_CPUTIME => (id, slot),
        clock::MONOTONIC | clock::BOOTTIME | clock::BOOTTIME_ALARM => (clock::MONOTONIC, slot),
        _ => return Err(Errno::EINVAL.into()),
    })
}

/// timer_settime(2) of the guest's timer `id`.
///
/// # Errors
/// As Linux.
pub(super) fn timer_settime(call: &mut Call<'_, '_>, id: i32) -> Result<i64, Fail> {
    let [_, flags, new, old, ..] = call.args;
    let new = read_pair(call, new, false)?;
    let clock = call.kernel.services.timers.clock_of(id);
    let absolute = flags & TIMER_ABSTIME != 0;
    let action = Action::Posix(id);
    let (left, interval) = set_timer(call, &action, clock, new, absolute);
    if old != 0 {
        call.write_user(old, pair(spec, left, interval).as_bytes())?;
    }
    Ok(0)
}

/// timer_gettime(2) of the guest's timer `id`.
///
/// # Errors
/// As Linux.
pub(super) fn timer_gettime(call: &mut Call<'_, '_>, id: i32) -> SysResult {
    let sim = call.kernel.sim.as_ref().ok_or(Errno::EINVAL)?;
    let (left, interval) = sim.left(&Action::Posix(id));
    call.write_user(call.args[1], pair(spec, left, interval).as_bytes())?;
    DONE
}

/// timerfd_create(2): a counter of the host's, which the timer counts up.
///
/// # Errors
/// As Linux.
pub fn timerfd_create(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return fs::new_fd(call);
    }
    let [clock, flags, ..] = call.args;
    let known = matches!(
        clock as i32,
        clock::REALTIME
            | clock::MONOTONIC
            | clock::BOOTTIME
            | clock::REALTIME_ALARM
            | clock::BOOTTIME_ALARM
    );
    if !known || flags & !O_NONBLOCK_CLOEXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    let fd = call.host(290, [0, flags, 0, 0, 0, 0])?;
    let fd = call.adopt(fd)?;
    if fd >= 0
        && let Some(sim) = &mut call.kernel.sim
    {
        sim.inside.insert(fd as i32);
        sim.timerfds.retain(|(f, _)| *f != fd as i32);
        sim.timerfds.push((fd as i32, 0));
        let realtime = matches!(clock as i32, clock::REALTIME | clock::REALTIME_ALARM);
        sim.realtime_fds.remove(&(fd as i32));
        if realtime {
            sim.realtime_fds.insert(fd as i32);
        }
    }
    Ok(Sys::Ret(fd))
}

/// The timer behind a descriptor, and its clock.
fn timerfd(call: &mut Call<'_, '_>, fd: u64) -> Result<(Action, i32), Fail> {
    let fd = fd as i32;
    let sim = call.kernel.sim.as_ref().ok_or(Errno::EINVAL)?;
    if sim.timerfds.iter().any(|(f, _)| *f == fd) {
        let clock = match sim.realtime_fds.contains(&fd) {
            true => clock::REALTIME,
            false => clock::MONOTONIC,
        };
        return Ok((Action::Descriptor(fd), clock));
    }
    let there = call.host(72, [fd as u64, 1, 0, 0, 0, 0])? >= 0; // F_GETFD
    Err(if there { Errno::EINVAL } else { Errno::EBADF }.into())
}

/// timerfd_settime(2).
///
/// # Errors
/// As Linux.
pub fn timerfd_settime(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [fd, flags, new, old, ..] = call.args;
    let (action, clock) = timerfd(call, fd)?;
    if flags & !3 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let new = read_pair(call, new, false)?;
    let slot = call.kernel.slot();
    let absolute = flags & TIMER_ABSTIME != 0;
    let (left, interval) = set_timer(call, &action, (clock, slot), new, absolute);
    // What it has counted is void.
    if let Some(sim) = &mut call.kernel.sim {
        for (_, count) in sim.timerfds.iter_mut().filter(|(f, _)| *f == fd as i32) {
            *count = 0;
        }
    }
    if call.is_ready(fd, libc::POLLIN)? {
        events::count(call.kernel, call.vcpu, call.out, fd as i32, 0)?;
    }
    if old != 0 {
        call.write_user(old, pair(spec, left, interval).as_bytes())?;
    }
    DONE
}

/// timerfd_gettime(2).
///
/// # Errors
/// As Linux.
pub fn timerfd_gettime(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [fd, va, ..] = call.args;
    let (action, _) = timerfd(call, fd)?;
    let sim = call.kernel.sim.as_ref().ok_or(Errno::EINVAL)?;
    let (left, interval) = sim.left(&action);
    call.write_user(va, pair(spec, left, interval).as_bytes())?;
    DONE
}

/// Counts up the descriptors of timers that were due.
///
/// # Errors
/// The exit failed.
pub fn refresh(kernel: &mut Kernel, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
    let Some(sim) = kernel.sim.as_mut().filter(|s| !s.timerfds.is_empty()) else {
        return Ok(());
    };
    let due: Vec<(i32, u64)> = (sim.timerfds.iter_mut())
        .filter(|(_, n)| *n > 0)
        .map(|(fd, n)| (*fd, std::mem::take(n)))
        .collect();
    for (fd, times) in due {
        events::count(kernel, vcpu, out, fd, times)?;
    }
    Ok(())
}

/// eventfd(2), eventfd2(2).
///
/// # Errors
/// As Linux.
pub fn eventfd(call: &mut Call<'_, '_>) -> SysResult {
    let done = fs::new_fd(call)?;
    if let (Sys::Ret(fd @ 0..), Some(sim)) = (done, &mut call.kernel.sim) {
        sim.inside.insert(fd as i32);
    }
    Ok(done)
}

// ---- children ----

/// wait4(2), waitid(2).
///
/// # Errors
/// As Linux.
pub fn wait(call: &mut Call<'_, '_>) -> SysResult {
    const WNOWAIT: u64 = 0x0100_0000;
    let ret = call.proxy(&call.args.clone())?;
    let [_, status, info, options, usage, _] = call.args;
    let by_id = call.row.nr == 247;
    let (usage, kept) = match by_id {
        true => (usage, options & WNOWAIT != 0),
        false => (call.args[3], false),
    };
    if call.kernel.sim.is_none() {
        return Ok(Sys::Ret(ret));
    }
    if ret == -10
        && let Some(sim) = &mut call.kernel.sim
        && call.args[0] as i32 == -1
    {
        sim.children = 0; // ECHILD: there are none
    }
    let pid = match by_id {
        false => ret,
        true if ret == 0 && info != 0 => i64::from(call.read_u32(info.wrapping_add(12))? as i32),
        true => 0,
    };
    if ret < 0 || pid <= 0 {
        return Ok(Sys::Ret(ret));
    }
    let ended = match by_id {
        // CLD_EXITED, CLD_KILLED, CLD_DUMPED
        true => (1..=3).contains(&call.read_u32(info.wrapping_add(8))?),
        false if status == 0 => true,
        false => {
            let status = call.read_u32(status)?;
            status & 0xff != 0x7f && status != 0xffff
        }
    };
    let spent = call.child_times(pid as i32, ended && !kept);
    if usage != 0 {
        let time = call.kernel.time().ok_or(Errno::EINVAL)?;
        let [user, system] = split(time, (spent[1], spent[2]));
        let mut bytes = [0; 144];
        bytes[..16].copy_from_slice(val(user).as_bytes());
        bytes[16..32].copy_from_slice(val(system).as_bytes());
        call.write_user(usage, &bytes)?;
    }
    Ok(Sys::Ret(ret))
}

impl Call<'_, '_> {
    /// A child has ended: time goes on from its end, and its times are its parent's children's. Its end, busy cycles
    /// and system cycles, as far as they are known.
    fn child_times(&mut self, pid: i32, gone: bool) -> [u64; 3] {
        let Some(sim) = &mut self.kernel.sim else {
            return [0; 3];
        };
        let times = sim.pids.as_ref().map_or([0; 3], |pids| pids.ended(pid));
        if gone {
            sim.children = sim.children.saturating_sub(1);
            sim.time.reaped(times[1], times[2]);
        }
        advance(self.vcpu, times[0]);
        times
    }
}

// ---- what else differs from run to run ----

/// sched_yield(2). In simulated time every thread has a core, so there is nobody to yield to: the others run when they are
/// behind.
///
/// # Errors
/// None.
pub fn sched_yield(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    DONE
}

impl Call<'_, '_> {
    /// In turns: another thread's turn, if any can run.
    pub fn let_others_run(&mut self) {
        self.kernel.unlocked(self.vcpu, |vcpu| {
            let now = vcpu.cycles();
            if let Some(next) = vcpu.next_key() {
                // Without simulated time all keys are 0, and who came first is next.
                let key = next.max(now) + u64::from(vcpu.model.is_some());
                vcpu.set_turn_key(key);
                vcpu.next_turn();
            }
        });
    }

    /// What a read of a random device gives; `None`: it is none, or the host's numbers will do.
    pub fn random_device(&mut self, fd: u64, len: u64) -> Option<Vec<u8>> {
        /// Most that Linux gives at once is far more; a program has to deal with less.
        const MOST: u64 = 1 << 20;
        let sim = self.kernel.sim.as_mut()?;
        if !sim.randoms.contains(&(fd as i32)) {
            return None;
        }
        let mut bytes = vec![0; len.min(MOST) as usize];
        sim.random.fill(&mut bytes);
        Some(bytes)
    }
}

/// getrandom(2).
///
/// # Errors
/// As Linux.
pub fn getrandom(call: &mut Call<'_, '_>) -> SysResult {
    let [va, len, flags, ..] = call.args;
    let Some(sim) = &mut call.kernel.sim else {
        return fs::clamped(call);
    };
    // NONBLOCK, RANDOM, INSECURE; the last two contradict each other
    if flags & !7 != 0 || flags & 6 == 6 {
        return Err(Errno::EINVAL.into());
    }
    let mut bytes = vec![0; len.min(1 << 20) as usize];
    sim.random.fill(&mut bytes);
    call.write_user(va, &bytes)?;
    Ok(Sys::Ret(bytes.len() as i64))
}

/// sched_getaffinity(2).
///
/// # Errors
/// As Linux.
pub fn sched_getaffinity(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let [_, len, va, ..] = call.args;
    if len < 8 || len % 8 != 0 {
        return Err(Errno::EINVAL.into());
    }
    call.write_user(va, &((1u64 << CPUS) - 1).to_le_bytes())?;
    Ok(Sys::Ret(8))
}

/// getcpu(2).
///
/// # Errors
/// As Linux.
pub fn getcpu(call: &mut Call<'_, '_>) -> SysResult {
    if call.kernel.sim.is_none() {
        return by_host(call);
    }
    let cpu = (call.kernel.slot() as u64 % CPUS) as u32;
    for (va, value) in [(call.args[0], cpu), (call.args[1], 0)] {
        if va != 0 {
            call.write_user(va, &value.to_le_bytes())?;
        }
    }
    DONE
}

/// Nanoseconds since the machine began, for `/proc/uptime`.
#[must_use]
pub fn uptime(call: &Call<'_, '_>) -> Option<Duration> {
    let time = call.kernel.time()?;
    Some(Duration::from_nanos(time.nanos(call.vcpu.cycles())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_in_two_forms() {
        let d = Duration::new(3, 1_002_003);
        assert_eq!((spec(d), val(d)), ([3, 1_002_003], [3, 1002]));
        let interval = Duration::from_secs(1);
        assert_eq!(pair(spec, d, interval), [1, 0, 3, 1_002_003]);
    }
}
