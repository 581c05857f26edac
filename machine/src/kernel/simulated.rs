//! What the guest kernel keeps where time is simulated ([`crate::simtime`]): its timers, its random numbers, and what may
//! come from outside.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Kernel;
use super::signal::{SIGCHLD, SigInfo};
use super::syscall::timers::{self, SI_TIMER};
use crate::hv::ids::SI_PID;
use crate::pids::Pids;
use crate::simtime::{NEVER, Random, SimTime, clock};

/// Which purposes random numbers have, so that one never shifts another's.
pub mod purpose {
    /// Of a process: getrandom(2), /dev/urandom, `AT_RANDOM` of later programs.
    pub const PROCESS: u64 = 1;
    /// RDRAND and RDSEED of a vCPU.
    pub const VCPU: u64 = 2;
}

/// What a timer does when it is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The signal of a POSIX timer.
    Posix(i32),
    /// The signal of an interval timer: real (0), virtual (1) or profiling (2).
    Interval(usize),
    /// Counts up a timer descriptor.
    Descriptor(i32),
}

/// A timer that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Armed {
    /// What it does.
    pub action: Action,
    /// Its clock: `MONOTONIC` or `REALTIME` (which run alike), or one of processor time.
    pub clock: i32,
    /// Of a thread's processor time: the thread's slot.
    pub slot: usize,
    /// When it is due next, in its clock.
    pub at: Duration,
    /// From then on again and again; zero: once.
    pub interval: Duration,
}

/// The state of one process.
pub struct Simulated {
    /// The clocks.
    pub time: Arc<SimTime>,
    /// The numbers of processes and threads, which the host's side translates in system calls.
    pub pids: Option<Arc<Pids>>,
    /// The random numbers.
    pub random: Random,
    /// The timers that run.
    pub armed: Vec<Armed>,
    /// Descriptors of timers, and how often they were due since the guest was told.
    pub timerfds: Vec<(i32, u64)>,
    /// Those of them that follow `CLOCK_REALTIME`.
    pub realtime_fds: HashSet<i32>,
    /// Descriptors of the random devices.
    pub randoms: HashSet<i32>,
    /// Descriptors that only this process has the other end of.
    pub inside: HashSet<i32>,
    /// Child processes that have not been waited for.
    pub children: u64,
    /// There is, or was, another process that memory may be shared with.
    pub related: bool,
}

impl Simulated {
    /// A process that begins.
    #[must_use]
    pub fn new(time: Arc<SimTime>, pids: Option<Arc<Pids>>) -> Self {
        Self {
            random: Random::new(time.seed(), purpose::PROCESS),
            time,
            pids,
            armed: Vec::new(),
            timerfds: Vec::new(),
            realtime_fds: HashSet::new(),
            randoms: HashSet::new(),
            inside: HashSet::new(),
            children: 0,
            related: false,
        }
    }

    /// What a child begins with: the random numbers are its own, and its parent has the other ends of its descriptors.
    pub fn forked(&mut self, pid: i32) {
        self.random = Random::new(self.random.number(), pid as u64);
        self.armed.clear();
        self.timerfds.clear();
        self.inside.clear();
        self.children = 0;
        self.related = true;
    }

    /// Descriptor `fd` names nothing any more.
    pub fn forget(&mut self, fd: i32) {
        self.randoms.remove(&fd);
        self.inside.remove(&fd);
        if self.timerfds.iter().any(|(f, _)| *f == fd) {
            self.timerfds.retain(|(f, _)| *f != fd);
            self.armed.retain(|a| a.action != Action::Descriptor(fd));
        }
    }

    /// Descriptor `to` names what `from` names.
    pub fn copy(&mut self, from: i32, to: i32) {
        self.forget(to);
        for set in [&mut self.randoms, &mut self.inside] {
            if set.contains(&from) {
                set.insert(to);
            }
        }
    }

    /// A signal from outside, with the guest's number of its sender.
    #[must_use]
    pub fn received(&self, mut info: SigInfo) -> SigInfo {
        let by_somebody = info.code() <= 0 && info.code() != SI_TIMER || info.signo() == SIGCHLD;
        if let Some(pids) = self.pids.as_ref().filter(|_| by_somebody) {
            let id = self.id_in(&info.0, SI_PID);
            info.0[SI_PID..SI_PID + 4].copy_from_slice(&pids.inward(id).to_le_bytes());
        }
        info
    }

    fn id_in(&self, bytes: &[u8], at: usize) -> i32 {
        i32::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
    }

    /// Whether something from outside may be waited for at these descriptors.
    #[must_use]
    pub fn outside(&self, fds: &[i32]) -> bool {
        self.children > 0 || fds.iter().any(|fd| *fd >= 0 && !self.inside.contains(fd))
    }

    /// What a timer's clock says.
    fn now(&self, clock_id: i32, slot: usize) -> Duration {
        let time = &self.time;
        time.clock(clock_id, slot, time.now()).unwrap_or_default()
    }

    /// The TSC at which the next timer is due that does not run on processor time.
    #[must_use]
    pub fn next_timer(&self) -> u64 {
        let times = self.armed.iter().filter_map(|a| {
            let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(NEVER);
            match a.clock {
                clock::PROCESS_CPUTIME | clock::THREAD_CPUTIME => None,
                clock::REALTIME => Some(nanos(a.at.saturating_sub(self.time.epoch()))),
                _ => Some(nanos(a.at)),
            }
        });
        times.min().map_or(NEVER, |nanos| self.time.cycles(nanos))
    }

    /// Takes the timers that are due: what they do, and how often they were due.
    fn due(&mut self) -> Vec<(Action, u64)> {
        let mut all = Vec::new();
        let mut armed = std::mem::take(&mut self.armed);
        armed.retain_mut(|a| {
            let now = self.now(a.clock, a.slot);
            if now < a.at {
                return true;
            }
            let mut times = 1;
            if !a.interval.is_zero() {
                let more = (now - a.at).as_nanos() / a.interval.as_nanos();
                times += more as u64;
                let step = a.interval.as_nanos().saturating_mul(u128::from(times));
                a.at += Duration::from_nanos(u64::try_from(step).unwrap_or(u64::MAX));
            }
            all.push((a.action.clone(), times));
            !a.interval.is_zero()
        });
        self.armed = armed;
        all
    }

    /// Sets or stops (`None`) the timer of an action.
    pub fn arm(&mut self, action: &Action, new: Option<Armed>) {
        self.armed.retain(|a| a.action != *action);
        self.armed.extend(new);
    }

    /// What is left of the timer of an action, and its interval.
    #[must_use]
    pub fn left(&self, action: &Action) -> (Duration, Duration) {
        match self.armed.iter().find(|a| a.action == *action) {
            None => (Duration::ZERO, Duration::ZERO),
            Some(a) => {
                // Due and not yet looked at: the least that says that it runs.
                let left = a.at.saturating_sub(self.now(a.clock, a.slot));
                (left.max(Duration::from_nanos(1)), a.interval)
            }
        }
    }
}

impl Kernel {
    /// Does what the timers that are due do. Timer descriptors are counted up by whoever can talk to the host.
    pub fn look_at_timers(&mut self) {
        let Some(sim) = self.sim.as_mut().filter(|sim| !sim.armed.is_empty()) else {
            return;
        };
        for (action, times) in sim.due() {
            match action {
                Action::Posix(id) => {
                    let info = timers::due(id, times - 1);
                    timers::expired(self, &info);
                }
                Action::Interval(which) => {
                    // SIGALRM, SIGVTALRM, SIGPROF
                    self.raise(SigInfo::kernel([14, 26, 27][which.min(2)]));
                }
                Action::Descriptor(fd) => {
                    let sim = self.sim.as_mut();
                    let fds = sim.into_iter().flat_map(|s| &mut s.timerfds);
                    for (_, count) in fds.filter(|(f, _)| *f == fd) {
                        *count += times;
                    }
                }
            }
        }
    }
}
