//! A process as its threads share it: one lock over the kernel's state, a task for each thread, and how
//! they reach each other.
//!
//! Every thread is a vCPU with a host thread of its own. What the guest kernel does for one of them it
//! does under [`Process`]'s lock; guest code runs without it, and a system call that may sleep outside
//! gives it up ([`Locked::unlocked`]). Whoever waits for the lock is not in guest code
//! ([`Vcpu::pause_guest`]), so an exclusive section never waits for one who waits for its owner.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sevlab_arch::Gpa;
use sevlab_cpu::Vcpu;

use super::signal::{STOP_SIGNALS, SigInfo, TaskSignals, UNBLOCKABLE, bit};
use super::syscall::timers;
use super::{GuestEnd, Kernel};
use crate::doorbell::{Deadline, Doorbell};
use crate::host::Inbox;
use crate::layout::MAX_CPUS;
use crate::pids::Pids;
use crate::simtime::SimTime;

/// A thread.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// Its thread id.
    pub tid: i32,
    /// Its signals.
    pub signals: TaskSignals,
    /// Where 0 is written and a futex woken when it ends (`CLONE_CHILD_CLEARTID`).
    pub clear_tid: u64,
    /// Head of its list of robust futexes.
    pub robust: u64,
    /// Its name.
    pub comm: [u8; 16],
    /// The futex it is queued at; `None` once it is woken.
    pub futex: Option<u64>,
    /// A sleep that a signal has cut short without running a handler: its call's number, and until when.
    pub resume: Option<(i64, Deadline)>,
    /// Which of the terminal's stop signals the host thread blocks for it.
    pub host_mask: u64,
    /// The frame of its save area, kept for the next thread in this place.
    pub vmsa: Option<Gpa>,
}

/// How a thread left the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskEnd {
    /// The thread is over, the process goes on.
    Thread,
    /// The process is over.
    Process(GuestEnd),
}

/// A process.
pub struct Process {
    kernel: Mutex<Kernel>,
    bells: Arc<[Arc<Doorbell>]>,
    inbox: Arc<Inbox>,
    time: Option<Arc<SimTime>>,
    pids: Option<Arc<Pids>>,
}

impl Process {
    /// The process of `kernel`.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            bells: Arc::clone(&kernel.bells),
            inbox: Arc::clone(&kernel.inbox),
            time: kernel.time().cloned(),
            pids: kernel.sim.as_ref().and_then(|sim| sim.pids.clone()),
            kernel: Mutex::new(kernel),
        }
    }

    /// The clocks, if they are simulated.
    #[must_use]
    pub fn time(&self) -> Option<&Arc<SimTime>> {
        self.time.as_ref()
    }

    /// The numbers of processes and threads, if they are the guest's own.
    #[must_use]
    pub fn pids(&self) -> Option<&Arc<Pids>> {
        self.pids.as_ref()
    }

    /// The kernel's state, for whoever is no vCPU.
    pub fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's state, when the process is over.
    #[must_use]
    pub fn into_kernel(self) -> Kernel {
        self.kernel
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The doorbell of vCPU `cpu`.
    #[must_use]
    pub fn bell(&self, cpu: usize) -> Arc<Doorbell> {
        Arc::clone(&self.bells[cpu])
    }

    /// In a clone of the host process: no vCPU but `cpu` has a thread.
    pub(crate) fn forked(&self, cpu: usize) {
        for (i, bell) in self.bells.iter().enumerate() {
            if i != cpu {
                bell.detach();
            }
        }
    }

    /// Where host signals for the guest arrive.
    #[must_use]
    pub fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Enters the kernel for the task in `slot`, whose vCPU this is.
    pub fn lock<'p>(&'p self, slot: usize, vcpu: &mut Vcpu) -> Locked<'p> {
        let mut guard = match self.kernel.try_lock() {
            Ok(guard) => guard,
            Err(_) => {
                vcpu.pause_guest();
                let guard = self.kernel();
                vcpu.resume_guest();
                guard
            }
        };
        guard.current = slot;
        if let Some(time) = &self.time {
            vcpu.drain();
            time.enter(slot, vcpu);
        }
        Locked {
            process: self,
            guard: Some(guard),
            slot,
        }
    }
}

/// The kernel, entered for one task.
pub struct Locked<'p> {
    process: &'p Process,
    guard: Option<MutexGuard<'p, Kernel>>,
    slot: usize,
}

impl Locked<'_> {
    /// Runs `f` without the lock: other threads may enter the kernel meanwhile.
    pub fn unlocked<R>(&mut self, vcpu: &mut Vcpu, f: impl FnOnce(&mut Vcpu) -> R) -> R {
        self.guard = None;
        let result = f(vcpu);
        *self = self.process.lock(self.slot, vcpu);
        result
    }

    /// The task's slot, which is its vCPU's number.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot
    }
}

impl Deref for Locked<'_> {
    type Target = Kernel;
    fn deref(&self) -> &Kernel {
        self.guard
            .as_ref()
            .expect("the lock is held between calls of `unlocked`")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Kernel {
        self.guard
            .as_mut()
            .expect("the lock is held between calls of `unlocked`")
    }
}

impl Kernel {
    /// The task that the kernel was entered for.
    pub fn task(&mut self) -> &mut Task {
        let slot = self.current;
        self.tasks[slot].get_or_insert_default()
    }

    /// All tasks with their slots.
    pub fn tasks(&self) -> impl Iterator<Item = (usize, &Task)> {
        self.tasks
            .iter()
            .enumerate()
            .filter_map(|(i, t)| Some((i, t.as_ref()?)))
    }

    /// The slot of a thread.
    #[must_use]
    pub fn slot_of(&self, tid: i32) -> Option<usize> {
        self.tasks().find(|(_, t)| t.tid == tid).map(|(i, _)| i)
    }

    /// A place for a new task: none has it, and no host thread still cleans up behind the last one.
    #[must_use]
    pub fn free_slot(&self) -> Option<usize> {
        (0..MAX_CPUS).find(|&i| self.tasks[i].is_none() && !self.busy[i])
    }

    /// How often a vCPU's doorbell has rung.
    #[must_use]
    pub fn rings(&self, slot: usize) -> u32 {
        self.bells[slot].rings()
    }

    /// Has the vCPU of a task look up.
    pub fn ring(&self, slot: usize) {
        if let Some(time) = self.time() {
            time.ring(slot);
        }
        if self.in_turns && slot != self.current {
            self.bells[slot].ring_in_turn();
        } else {
            self.bells[slot].ring();
        }
    }

    /// Has every task look up.
    pub fn ring_all(&self) {
        for (slot, _) in self.tasks() {
            self.ring(slot);
        }
    }

    /// Has every other task look up.
    pub fn ring_others(&self) {
        for (slot, _) in self.tasks() {
            if slot != self.current {
                self.ring(slot);
            }
        }
    }

    // ---- signals ----

    /// The stop signals that the host's terminal raises are the host's to deliver, so it must know which of
    /// them the current thread blocks: the new set, if the host has another.
    pub fn host_mask_changed(&mut self) -> Option<u64> {
        let task = self.task();
        let wanted = task.signals.mask & STOP_SIGNALS;
        (task.host_mask != wanted).then(|| {
            task.host_mask = wanted;
            wanted
        })
    }

    /// Sends a signal to the process: to whichever thread does not block it. False if too many wait.
    pub fn raise(&mut self, info: SigInfo) -> bool {
        let signo = info.signo();
        let set = bit(signo);
        let wants = |t: &Task| t.signals.mask & set == 0 || t.signals.waits_for & set != 0;
        // An ignored signal is kept only where somebody blocks it, or waits for it.
        let kept = |t: &Task| t.signals.mask & set != 0 || t.signals.waits_for & set != 0;
        if self.signals.ignored(signo) && !self.tasks().any(|(_, t)| kept(t)) {
            return true;
        }
        if !self.signals.pending.add(info) {
            return false;
        }
        let current = self.current;
        let mine = self.tasks[current].as_ref().is_some_and(wants);
        if !mine && let Some((slot, _)) = self.tasks().find(|(_, t)| wants(t)) {
            self.ring(slot);
        }
        true
    }

    /// Sends a signal to one thread. False if too many wait.
    pub fn raise_task(&mut self, slot: usize, info: SigInfo) -> bool {
        let set = bit(info.signo());
        let ignored = self.signals.ignored(info.signo());
        let Some(task) = self.tasks[slot].as_mut() else {
            return true;
        };
        let s = &mut task.signals;
        if ignored && s.mask & set == 0 && s.waits_for & set == 0 {
            return true;
        }
        if !s.pending.add(info) {
            return false;
        }
        if slot != self.current && (s.mask & set == 0 || s.waits_for & set != 0) {
            self.ring(slot);
        }
        true
    }

    /// Makes a signal pending for the current thread that can't be blocked or ignored: a fault.
    pub fn force(&mut self, info: SigInfo) {
        let slot = self.current;
        let task = self.tasks[slot].get_or_insert_default();
        task.signals.force(&mut self.signals, info);
    }

    /// A signal is ignored now: none waits any more.
    pub fn discard_signal(&mut self, signo: i32) {
        self.signals.pending.discard(bit(signo));
        for task in self.tasks.iter_mut().flatten() {
            task.signals.pending.discard(bit(signo));
        }
    }

    /// Takes in what came from outside.
    pub fn collect(&mut self) {
        self.look_at_timers();
        for info in self.inbox.take() {
            let info = match &self.sim {
                Some(sim) => sim.received(info),
                None => info,
            };
            if !timers::expired(self, &info) {
                self.raise(info);
            }
        }
    }

    /// Sets the current thread's mask; what it no longer takes of the process's goes to others.
    pub fn set_mask(&mut self, mask: u64) {
        let mask = mask & !UNBLOCKABLE;
        let task = self.task();
        let newly = mask & !task.signals.mask;
        task.signals.mask = mask;
        self.hand_on(newly);
    }

    /// Signals of `set` wait for the process and the current thread does not take them.
    pub fn hand_on(&mut self, set: u64) {
        let waiting = self.signals.pending.set() & set;
        if waiting == 0 {
            return;
        }
        for (slot, task) in self.tasks() {
            if slot != self.current && waiting & !task.signals.mask != 0 {
                self.ring(slot);
            }
        }
    }

    /// Whether an unblocked signal waits for the current thread.
    pub fn deliverable(&mut self) -> bool {
        self.collect();
        let shared = self.signals.pending.set();
        let s = &self.task().signals;
        (s.pending.set() | shared) & !s.mask != 0
    }

    /// Signals that wait for the current thread or the process.
    pub fn pending(&mut self) -> u64 {
        self.collect();
        let shared = self.signals.pending.set();
        shared | self.task().signals.pending.set()
    }

    /// Takes the next signal out of `among` for the current thread.
    pub fn take_signal(&mut self, among: u64) -> Option<SigInfo> {
        let own = self.task().signals.pending.take(among);
        own.or_else(|| self.signals.pending.take(among))
    }

    /// Whether the current thread must leave whatever it waits in: a signal, or the end.
    pub fn interrupted(&mut self) -> bool {
        self.leaving() || self.deliverable()
    }

    /// Whether the current thread is to end: the process does, or another thread's execve leaves no other.
    #[must_use]
    pub fn leaving(&self) -> bool {
        self.ending.is_some() || self.only.is_some_and(|slot| slot != self.current)
    }

    /// Begins the end of the process: every thread leaves at its next look.
    pub fn end_process(&mut self, end: GuestEnd) -> GuestEnd {
        let end = *self.ending.get_or_insert(end);
        self.ring_others();
        end
    }
}
