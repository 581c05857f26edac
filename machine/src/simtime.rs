//! Simulated time: what clocks say to a guest whose machine has a model ([`MachineConfig::model`]).
//!
//! Each vCPU has a clock of its own: the cycles that its instructions, their stalls and its exits have cost, and those
//! that it has waited. A cycle is a tick of the TSC, and [`Core::clock_mhz`](sevlab_memctl::model::Core::clock_mhz) says
//! how many nanoseconds it is. `CLOCK_MONOTONIC` is the TSC in nanoseconds; `CLOCK_REALTIME` begins at a time that the
//! seed gives.
//!
//! 1. The host's time appears nowhere.
//! 2. The vCPU whose clock is behind all others runs next ([`Vcpu::set_turn_key`]). Who waits for a time is in the same
//!    queue with that time, so when nobody has anything to do, time jumps to whoever waits for the earliest.
//! 3. Who is woken goes on at the waker's time, if that is later than its own.
//! 4. What comes from outside (another process, a terminal) takes no time of its own; the host waits for it. While it may
//!    come, time does not jump before the host has waited as long.
//!
//! [`MachineConfig::model`]: crate::MachineConfig::model

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sevlab_cpu::Vcpu;
use sevlab_cpu::model::Cause;
use sevlab_memctl::model::Model;

use crate::doorbell::Deadline;
use crate::layout::MAX_CPUS;

/// 2025-01-01T00:00:00Z, seconds: where the real-time clock of seed 1 begins.
const EPOCH: u64 = 1_735_689_600;
/// A time that never comes.
pub const NEVER: u64 = u64::MAX;
/// Tick of the coarse clocks and of what is counted in ticks of 250 Hz.
const COARSE: u64 = 4_000_000;

/// Clock numbers (linux/time.h).
pub mod clock {
    #![allow(missing_docs)] // named by the ABI
    pub const REALTIME: i32 = 0;
    pub const MONOTONIC: i32 = 1;
    pub const PROCESS_CPUTIME: i32 = 2;
    pub const THREAD_CPUTIME: i32 = 3;
    pub const MONOTONIC_RAW: i32 = 4;
    pub const REALTIME_COARSE: i32 = 5;
    pub const MONOTONIC_COARSE: i32 = 6;
    pub const BOOTTIME: i32 = 7;
    pub const REALTIME_ALARM: i32 = 8;
    pub const BOOTTIME_ALARM: i32 = 9;
    pub const TAI: i32 = 11;
}

/// Cycles by cause.
fn spent(vcpu: &Vcpu) -> [u64; Cause::COUNT] {
    vcpu.model
        .as_ref()
        .map_or([0; Cause::COUNT], |m| m.counters.exits)
}

/// Cycles that the vCPU has not waited.
#[must_use]
pub fn busy(vcpu: &Vcpu) -> u64 {
    vcpu.cycles() - spent(vcpu)[Cause::Idle as usize]
}

/// Those of them that exits and the kernel have cost.
#[must_use]
pub fn system(vcpu: &Vcpu) -> u64 {
    let spent = spent(vcpu);
    spent.iter().sum::<u64>() - spent[Cause::Idle as usize]
}

/// The vCPU has waited until `to`.
pub fn advance(vcpu: &mut Vcpu, to: u64) {
    let wait = to.saturating_sub(vcpu.cycles());
    vcpu.charge(wait, Cause::Idle);
}

/// What others may know of a vCPU's clock.
#[derive(Default)]
struct Seat {
    /// The key of its place in the queue.
    key: Mutex<Arc<AtomicU64>>,
    /// Since when it waits.
    since: AtomicU64,
    /// The earliest time at which somebody has rung since then.
    rung: AtomicU64,
    /// Cycles that its thread has run, and those of them that were the system's.
    busy: AtomicU64,
    system: AtomicU64,
    /// What the vCPU had counted of both when the thread began.
    before: AtomicU64,
    before_system: AtomicU64,
    /// It only looks again whether something has come: that is not charged.
    looks: AtomicBool,
}

/// The clocks of one process guest.
pub struct SimTime {
    mhz: u64,
    epoch: Duration,
    seed: u64,
    seats: Box<[Seat]>,
    /// Of threads that have ended.
    gone: AtomicU64,
    gone_system: AtomicU64,
    /// Of child processes that have been waited for.
    children: AtomicU64,
    children_system: AtomicU64,
    /// Time of the vCPU that was in the guest kernel last.
    now: AtomicU64,
    /// Instructions that the process has left, of all its vCPUs; [`NEVER`]: without end.
    left: AtomicU64,
}

impl SimTime {
    /// The clocks of a machine with this model.
    #[must_use]
    pub fn new(model: &Model, seed: u64) -> Self {
        Self {
            mhz: u64::from(model.core.clock_mhz.max(1)),
            epoch: Duration::from_secs(EPOCH + seed.wrapping_sub(1) % (1 << 24)),
            seed,
            seats: (0..MAX_CPUS).map(|_| Seat::default()).collect(),
            gone: AtomicU64::new(0),
            gone_system: AtomicU64::new(0),
            children: AtomicU64::new(0),
            children_system: AtomicU64::new(0),
            now: AtomicU64::new(0),
            left: AtomicU64::new(NEVER),
        }
    }

    /// The same with an end after that many instructions, besides those of each vCPU's first turn.
    #[must_use]
    pub fn limited(mut self, instructions: Option<u64>) -> Self {
        self.left = AtomicU64::new(instructions.unwrap_or(NEVER));
        self
    }

    /// A vCPU begins a turn of `wanted` instructions: how many it may have. 0: the process has had all.
    pub(crate) fn allowed(&self, wanted: u64) -> u64 {
        let left = self.left.load(Ordering::Relaxed);
        if left == NEVER {
            return wanted;
        }
        // vCPUs run one at a time.
        let most = wanted.min(left);
        self.left.store(left - most, Ordering::Relaxed);
        most
    }

    /// Cycles of a microsecond.
    #[must_use]
    pub fn mhz(&self) -> u64 {
        self.mhz
    }

    /// The seed of all that is random in the guest.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Cycles as nanoseconds, rounded down.
    #[must_use]
    pub fn nanos(&self, cycles: u64) -> u64 {
        u64::try_from(u128::from(cycles) * 1000 / u128::from(self.mhz)).unwrap_or(u64::MAX)
    }

    /// Nanoseconds as cycles, rounded up: a wait is never too short.
    #[must_use]
    pub fn cycles(&self, nanos: u64) -> u64 {
        let cycles = (u128::from(nanos) * u128::from(self.mhz)).div_ceil(1000);
        u64::try_from(cycles).unwrap_or(NEVER)
    }

    /// Where `CLOCK_REALTIME` begins.
    #[must_use]
    pub fn epoch(&self) -> Duration {
        self.epoch
    }

    /// A deadline on the TSC.
    #[must_use]
    pub fn tsc_of(&self, until: Deadline) -> u64 {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        match until {
            Deadline::Never => NEVER,
            Deadline::Monotonic(d) => self.cycles(nanos(d)),
            Deadline::Realtime(d) => self.cycles(nanos(d.saturating_sub(self.epoch))),
        }
    }

    /// What the clock `id` says to the thread on `slot`, whose TSC is at `now`; `None`: there is no such clock.
    #[must_use]
    pub fn clock(&self, id: i32, slot: usize, now: u64) -> Option<Duration> {
        let coarse = |d: Duration| {
            let n = d.as_nanos() as u64;
            Duration::from_nanos(n - n % COARSE)
        };
        let mono = Duration::from_nanos(self.nanos(now));
        Some(match id {
            clock::REALTIME | clock::REALTIME_ALARM | clock::TAI => self.epoch + mono,
            clock::MONOTONIC | clock::MONOTONIC_RAW | clock::BOOTTIME | clock::BOOTTIME_ALARM => {
                mono
            }
            clock::REALTIME_COARSE => self.epoch + coarse(mono),
            clock::MONOTONIC_COARSE => coarse(mono),
            clock::PROCESS_CPUTIME => Duration::from_nanos(self.nanos(self.process().0)),
            clock::THREAD_CPUTIME => Duration::from_nanos(self.nanos(self.thread(slot).0)),
            _ => return None,
        })
    }

    /// The resolution of a clock that there is, nanoseconds.
    #[must_use]
    pub fn resolution(id: i32) -> u64 {
        match id {
            clock::REALTIME_COARSE | clock::MONOTONIC_COARSE => COARSE,
            _ => 1,
        }
    }

    /// Whether what the thread on `slot` does now is only another look at something that is waited for, which no real
    /// machine takes.
    #[must_use]
    pub fn looks(&self, slot: usize) -> bool {
        self.seats[slot].looks.load(Ordering::Relaxed)
    }

    /// Sets [`SimTime::looks`]; what it was.
    pub fn set_looks(&self, slot: usize, looks: bool) -> bool {
        self.seats[slot].looks.swap(looks, Ordering::Relaxed)
    }

    // ---- processor time ----

    /// Cycles that the thread on `slot` has run, and those of them that were the system's.
    #[must_use]
    pub fn thread(&self, slot: usize) -> (u64, u64) {
        let seat = &self.seats[slot];
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (get(&seat.busy), get(&seat.system))
    }

    /// Of all threads together.
    #[must_use]
    pub fn process(&self) -> (u64, u64) {
        let gone = (
            self.gone.load(Ordering::Relaxed),
            self.gone_system.load(Ordering::Relaxed),
        );
        (0..MAX_CPUS).fold(gone, |sum, slot| {
            let (busy, system) = self.thread(slot);
            (sum.0 + busy, sum.1 + system)
        })
    }

    /// Of the child processes that have been waited for.
    #[must_use]
    pub fn children(&self) -> (u64, u64) {
        (
            self.children.load(Ordering::Relaxed),
            self.children_system.load(Ordering::Relaxed),
        )
    }

    /// A child process has been waited for.
    pub fn reaped(&self, busy: u64, system: u64) {
        self.children.fetch_add(busy, Ordering::Relaxed);
        self.children_system.fetch_add(system, Ordering::Relaxed);
    }

    // ---- turns ----

    /// A vCPU begins to run the thread on `slot`.
    pub fn sit(&self, slot: usize, vcpu: &Vcpu) {
        let mut key = self.seats[slot]
            .key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *key = vcpu.turn_key();
        let seat = &self.seats[slot];
        seat.looks.store(false, Ordering::Relaxed);
        seat.rung.store(NEVER, Ordering::SeqCst);
        seat.before.store(busy(vcpu), Ordering::Relaxed);
        seat.before_system.store(system(vcpu), Ordering::Relaxed);
    }

    /// The vCPU of `slot` enters the guest kernel.
    pub fn enter(&self, slot: usize, vcpu: &Vcpu) {
        self.now.store(vcpu.cycles(), Ordering::Relaxed);
        let seat = &self.seats[slot];
        let since = |now: u64, before: &AtomicU64| now - before.load(Ordering::Relaxed);
        seat.busy
            .store(since(busy(vcpu), &seat.before), Ordering::Relaxed);
        seat.system
            .store(since(system(vcpu), &seat.before_system), Ordering::Relaxed);
    }

    /// The time of whoever is in the guest kernel.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The thread on `slot` is over.
    pub fn stand(&self, slot: usize, vcpu: &Vcpu) {
        self.enter(slot, vcpu);
        let seat = &self.seats[slot];
        let (busy, system) = self.thread(slot);
        self.gone.fetch_add(busy, Ordering::Relaxed);
        self.gone_system.fetch_add(system, Ordering::Relaxed);
        seat.busy.store(0, Ordering::Relaxed);
        seat.system.store(0, Ordering::Relaxed);
    }

    /// In a clone of the process: it has run nothing yet, and only the thread on `slot` is there.
    pub fn forked(&self, slot: usize, vcpu: &Vcpu) {
        for seat in &self.seats {
            seat.busy.store(0, Ordering::Relaxed);
            seat.system.store(0, Ordering::Relaxed);
        }
        for n in [
            &self.gone,
            &self.gone_system,
            &self.children,
            &self.children_system,
        ] {
            n.store(0, Ordering::Relaxed);
        }
        self.sit(slot, vcpu);
    }

    /// The thread on `slot` begins to wait at `now`.
    pub fn waits(&self, slot: usize, now: u64) {
        self.seats[slot].since.store(now, Ordering::SeqCst);
        self.seats[slot].rung.store(NEVER, Ordering::SeqCst);
    }

    /// Whoever is in the guest kernel rings for the thread on `slot`.
    pub fn ring(&self, slot: usize) {
        let seat = &self.seats[slot];
        let at = self.now().max(seat.since.load(Ordering::SeqCst));
        seat.rung.fetch_min(at, Ordering::SeqCst);
        let key = seat.key.lock().unwrap_or_else(PoisonError::into_inner);
        key.fetch_min(at, Ordering::SeqCst);
    }

    /// When the thread on `slot` was rung for since it waits; [`NEVER`]: not by another thread.
    #[must_use]
    pub fn rung(&self, slot: usize) -> u64 {
        self.seats[slot].rung.load(Ordering::SeqCst)
    }
}

/// A deterministic source of random numbers (SplitMix64, Steele, Lea and Flood 2014). Nothing that it gives is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random(u64);

impl Random {
    /// The numbers for one purpose.
    #[must_use]
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut random = Self(seed ^ purpose.wrapping_mul(0xd134_2543_de82_ef95));
        Self(random.number())
    }

    /// The next.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            let n = self.number().to_le_bytes();
            part.copy_from_slice(&n[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(mhz: u64) -> SimTime {
        SimTime {
            mhz,
            left: AtomicU64::new(NEVER),
            epoch: Duration::from_secs(EPOCH),
            seed: 1,
            seats: (0..MAX_CPUS).map(|_| Seat::default()).collect(),
            gone: AtomicU64::new(0),
            gone_system: AtomicU64::new(0),
            children: AtomicU64::new(0),
            children_system: AtomicU64::new(0),
            now: AtomicU64::new(0),
        }
    }

    #[test]
    fn a_wait_is_never_too_short() {
        for mhz in [1, 999, 1000, 2450, 3100] {
            let t = time(mhz);
            for nanos in [0, 1, 2, 333, 1_000_000_007, 1 << 60] {
                assert!(t.nanos(t.cycles(nanos)) >= nanos, "{nanos} ns at {mhz} MHz");
            }
        }
        assert_eq!(time(2000).cycles(u64::MAX), NEVER);
    }

    #[test]
    fn clocks_agree() {
        let t = time(2000);
        let at = |id| t.clock(id, 0, 20_000_000_000).expect("a clock");
        assert_eq!(at(clock::MONOTONIC), Duration::from_secs(10));
        assert_eq!(at(clock::REALTIME), Duration::from_secs(EPOCH + 10));
        assert_eq!(
            t.tsc_of(Deadline::Realtime(at(clock::REALTIME))),
            20_000_000_000
        );
        assert_eq!(
            t.tsc_of(Deadline::Monotonic(at(clock::MONOTONIC))),
            20_000_000_000
        );
        assert_eq!(t.clock(10, 0, 0), None);
        assert_eq!(at(clock::PROCESS_CPUTIME), Duration::ZERO);
    }

    #[test]
    fn random_numbers_depend_on_seed_and_purpose() {
        let first = |seed, purpose| Random::new(seed, purpose).number();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(1, 2), first(1, 3));
        let mut out = [0; 13];
        Random::new(7, 0).fill(&mut out);
        assert_ne!(out[8..], [0; 5]);
    }
}
