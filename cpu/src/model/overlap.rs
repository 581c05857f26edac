//! The `overlap` core model: misses wait for each other only where a processor that runs out of order would have them wait.
//!
//! The events are those of `simple`; what differs is which cycles they cost. Instructions are dispatched in order, each at its
//! cost, to a window of `window` instructions. An access that is no L1 hit is a *miss*: it is issued when it is dispatched, when
//! what its address depends on is there, and when one of `mshrs` miss registers is free; it is done its latency (TLB, walk, RMP,
//! caches, DRAM, AES) later. Dispatch itself waits for
//! - a load miss that is not done, `window` instructions (and iterations) after it;
//! - all misses before an instruction with LOCK, a fence, and at an exit;
//! - fetches, in full.
//!
//! A store miss holds a miss register, not the window. Cycles that dispatch waits for a miss are shared out over what that miss
//! waited for.
//!
//! Dependence goes through general and vector registers: a result is there when all that the instruction read is, for a load that
//! missed when it is done; instructions in between take no time beyond their dispatch. It is found by going over the executed
//! instructions again, from the *trail*: where each piece of straight code began, and at what clock. Translated code and the
//! interpreter cut the code into different pieces, which makes no difference to the instructions in them. Nothing is gone over
//! while no result is outstanding.
//!
//! The time of an instruction between two misses is taken as evenly spread between theirs.

use std::collections::VecDeque;

use super::StallCycles;
use super::uses::{RSP, Uses};

/// Places in the trail; its ring is aligned to its size.
pub const TRAIL: usize = 1024;
/// Bytes of the ring.
pub const TRAIL_BYTES: usize = TRAIL * 16;
/// The most instructions in a window: fewer than the trail has places.
const MOST_WINDOW: u64 = 1000;
/// Entries of the cache of instructions.
const KNOWN: usize = 4096;

/// Where a piece of straight code began, and the clock there.
#[repr(C, align(16384))]
struct Ring([[u64; 2]; TRAIL]);

/// A load miss that holds the window.
struct Miss {
    clock: u64,
    done: u64,
    latency: u64,
    parts: StallCycles,
}

/// What the `overlap` model keeps of a core.
pub(super) struct Overlap {
    window: u64,
    mshrs: usize,
    ring: Box<Ring>,
    /// When each register's value is there.
    ready: [u64; 32],
    /// The latest of these.
    horizon: u64,
    /// Instructions before this clock have been gone over.
    seen: u64,
    /// Load misses of instructions that have not been gone over: clock, and when they are done.
    results: VecDeque<(u64, u64)>,
    held: VecDeque<Miss>,
    /// When the misses in flight are done.
    busy: Vec<u64>,
    /// The last miss that finishes.
    last: Option<Miss>,
    /// The clock at an instruction that has waited for all before it.
    waited: Option<u64>,
    /// Clock and time of the last event.
    before: (u64, u64),
    known: Box<[(u64, Uses)]>,
    epoch: u64,
}

/// How instructions are found again.
pub(super) trait Code {
    /// The registers of the instruction at `rip`.
    fn uses(&mut self, rip: u64) -> Option<Uses>;
    /// What grows when code changes.
    fn epoch(&self) -> u64;
}

impl Overlap {
    pub(super) fn new(window: u32, mshrs: u32) -> Self {
        Self {
            window: u64::from(window).clamp(1, MOST_WINDOW),
            mshrs: mshrs.max(1) as usize,
            ring: Box::new(Ring([[0; 2]; TRAIL])),
            ready: [0; 32],
            horizon: 0,
            seen: 0,
            results: VecDeque::new(),
            held: VecDeque::new(),
            busy: Vec::new(),
            last: None,
            waited: None,
            before: (0, 0),
            known: vec![(u64::MAX, Uses::default()); KNOWN].into(),
            epoch: 0,
        }
    }

    /// Where the trail's next place is, to begin with.
    pub(super) fn trail(&mut self) -> *mut [u64; 2] {
        self.ring.0.as_mut_ptr()
    }

    /// Something is about to be accessed at `clock`, whose dispatch would be at `time` if it had not to wait. Adds what dispatch
    /// has waited since the last event to `stalls`, and returns when the access is issued if it misses. `trail`: the next
    /// place. A fetch waits for no registers.
    pub(super) fn begin(
        &mut self,
        code: &mut impl Code,
        trail: *const [u64; 2],
        clock: u64,
        time: u64,
        fetch: bool,
        stalls: &mut StallCycles,
    ) -> u64 {
        let mut now = time;
        self.leave_window(clock, &mut now, stalls);
        let mut issue = now;
        if self.horizon > self.before.1 {
            let uses = self.follow(code, trail, clock, &mut now, stalls, fetch);
            issue = now;
            if let Some(u) = uses {
                issue = issue.max(self.latest(u.address));
            }
        } else {
            self.forget(clock);
        }
        self.before = (clock, now);
        if fetch {
            return now;
        }
        self.busy.retain(|done| *done > issue);
        if self.busy.len() >= self.mshrs {
            // Those that must be done before one is free.
            self.busy.sort_unstable();
            issue = issue.max(self.busy[self.busy.len() - self.mshrs]);
        }
        issue
    }

    /// What [`Overlap::begin`] announced has taken `parts`.
    pub(super) fn missed(&mut self, clock: u64, issue: u64, store: bool, parts: StallCycles) {
        let latency = parts.total();
        let done = issue + latency;
        self.busy.push(done);
        let miss = || Miss {
            clock,
            done,
            latency,
            parts,
        };
        if self.last.as_ref().is_none_or(|m| m.done < done) {
            self.last = Some(miss());
        }
        self.horizon = self.horizon.max(done);
        if !store {
            self.held.push_back(miss());
            self.results.push_back((clock, done));
        }
    }

    /// Dispatch has waited so long since the last event: for a fetch that [`Overlap::begin`] announced, for an exit.
    pub(super) fn passed(&mut self, latency: u64) {
        self.before.1 += latency;
    }

    /// What is known of instructions by their address is no longer so.
    pub(super) fn forget_code(&mut self) {
        self.epoch = u64::MAX;
    }

    /// Dispatch waits for everything, at `time`.
    pub(super) fn wait_for_all(&mut self, clock: u64, time: u64, stalls: &mut StallCycles) {
        let mut now = time;
        self.leave_window(clock, &mut now, stalls);
        self.drain(&mut now, stalls);
        self.forget(clock);
        self.before = (clock, now);
    }

    fn drain(&mut self, now: &mut u64, stalls: &mut StallCycles) {
        if let Some(m) = self.last.take() {
            wait(&m, now, stalls);
        }
        self.held.clear();
        self.busy.clear();
    }

    /// Nothing is outstanding: instructions before `clock` need not be gone over.
    fn forget(&mut self, clock: u64) {
        self.seen = clock;
        self.results.clear();
        self.horizon = 0;
        self.ready = [0; 32];
    }

    /// The time of an instruction between the last event and the one at `clock`, at `now`.
    fn time_of(&self, at: u64, clock: u64, now: u64) -> u64 {
        let (first, start) = self.before;
        if at <= first || clock <= first {
            return start.min(now);
        }
        let share = u128::from(now.saturating_sub(start)) * u128::from(at - first)
            / u128::from(clock - first);
        start + share as u64
    }

    /// Loads that left the window before `clock` have been waited for.
    fn leave_window(&mut self, clock: u64, now: &mut u64, stalls: &mut StallCycles) {
        let time = *now;
        let mut waited = 0;
        while let Some(m) = self.held.front().filter(|m| m.clock + self.window <= clock) {
            let mut there = self.time_of(m.clock + self.window, clock, time) + waited;
            let before = there;
            wait(m, &mut there, stalls);
            waited += there - before;
            self.held.pop_front();
        }
        *now = time + waited;
    }

    fn latest(&self, registers: u32) -> u64 {
        let mut bits = registers;
        let mut latest = 0;
        while bits != 0 {
            latest = latest.max(self.ready[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
        latest
    }

    fn set(&mut self, registers: u32, time: u64) {
        let mut bits = registers;
        while bits != 0 {
            self.ready[bits.trailing_zeros() as usize] = time;
            bits &= bits - 1;
        }
    }

    /// Goes over the instructions up to `clock`; returns the registers of the one there, unless that is still to be fetched
    /// (its piece of code may not be in the trail yet).
    #[allow(clippy::too_many_arguments)] // the registers of one private step
    fn follow(
        &mut self,
        code: &mut impl Code,
        trail: *const [u64; 2],
        clock: u64,
        now: &mut u64,
        stalls: &mut StallCycles,
        fetch: bool,
    ) -> Option<Uses> {
        if code.epoch() != self.epoch {
            self.epoch = code.epoch();
            self.known.fill((u64::MAX, Uses::default()));
        }
        // What is further back than the window has left it.
        self.seen = self.seen.max(clock.saturating_sub(self.window));
        while self.results.front().is_some_and(|(at, _)| *at < self.seen) {
            self.results.pop_front();
        }
        let next = (trail.addr() - self.ring.0.as_ptr().addr()) / 16;
        let place = |back: usize| (next + TRAIL - back) % TRAIL;
        let mut back = 1;
        while back < TRAIL - 1 && self.ring.0[place(back)][1] > self.seen {
            back += 1;
        }
        let mut here = None;
        while back > 0 {
            let [mut rip, mut at] = self.ring.0[place(back)];
            back -= 1;
            let end = if back == 0 {
                clock
            } else {
                self.ring.0[place(back)][1].min(clock)
            };
            while at < end {
                let Some(u) = self.uses(code, rip) else {
                    // Nothing is known of what follows.
                    self.set(u32::MAX, 0);
                    break;
                };
                let next = if u.repeats { end } else { at + 1 };
                // A repeated instruction that is still at it is the one at `clock`.
                let running = u.repeats && back == 0;
                if next > self.seen && !running {
                    self.pass(&u, at, next, clock, now, stalls);
                }
                if running {
                    break;
                }
                rip = rip.wrapping_add(u64::from(u.len));
                at = next;
            }
            if back == 0 && !fetch {
                here = self.uses(code, rip);
            }
        }
        self.seen = clock;
        // Once an instruction: its own accesses are not what it waits for.
        if here.is_some_and(|u| u.waits) && self.waited != Some(clock) {
            self.waited = Some(clock);
            self.drain(now, stalls);
            self.forget(clock);
        }
        here
    }

    /// An instruction that took the clock from `at` to `next`.
    fn pass(
        &mut self,
        u: &Uses,
        at: u64,
        next: u64,
        clock: u64,
        now: &mut u64,
        stalls: &mut StallCycles,
    ) {
        if u.waits {
            let before = self.time_of(at, clock, *now);
            let mut there = before;
            self.drain(&mut there, stalls);
            *now += there - before;
            self.ready = [0; 32];
        }
        let mut result = self.latest(u.reads);
        while let Some(&(_, done)) = self.results.front().filter(|(c, _)| *c < next) {
            result = result.max(done);
            self.results.pop_front();
        }
        if u.from_frame {
            self.set(RSP, self.ready[5]);
        }
        self.set(u.writes, result);
    }

    fn uses(&mut self, code: &mut impl Code, rip: u64) -> Option<Uses> {
        let place = &mut self.known[rip as usize % KNOWN];
        if place.0 != rip {
            *place = (rip, code.uses(rip)?);
        }
        Some(place.1)
    }
}

/// Dispatch at `now` waits until the miss is done.
fn wait(m: &Miss, now: &mut u64, stalls: &mut StallCycles) {
    if m.done > *now {
        stalls.share(m.done - *now, &m.parts, m.latency);
        *now = m.done;
    }
}
