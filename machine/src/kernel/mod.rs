//! The built-in guest kernel: trusted guest-side code that answers the system calls of a process guest.
//!
//! It lives inside the guest's fence: it manages the address space with real page tables in encrypted
//! guest memory, delivers signals, and reaches everything else only through [`outside::Outside`], by
//! system calls proxied over shared memory. It does not drive the vCPU: [`Kernel::run`] is given a
//! function that does.

pub mod elf;
pub mod error;
pub mod frames;
pub mod image;
pub mod mm;
pub mod outside;
pub mod process;
pub mod sigframe;
pub mod signal;
pub mod simulated;
pub mod stack;
pub mod syscall;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sevlab_cpu::model::Cause;
use sevlab_cpu::state::gpr;
use sevlab_cpu::stop::InterceptKind;
use sevlab_cpu::{Exception, Stop, Vcpu};

pub use error::{Errno, Error, Fail};
pub use image::{Image, ImageConfig};
pub use mm::MmStats;
pub use outside::{HostCall, Outside};
pub use process::{Locked, Process, Task, TaskEnd};

use crate::doorbell::Doorbell;
use crate::host::Inbox;
use crate::hv::cost::charge;
use crate::layout::MAX_CPUS;
use crate::pids::Pids;
use crate::simtime::SimTime;
use mm::{AddressSpace, Cx, Fault};
use signal::{
    AltStack, DefaultAction, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN,
    SIGBUS, SIGILL, SIGKILL, SIGSEGV, SIGXCPU, SigInfo, Signals, bit,
};
use simulated::Simulated;
use syscall::futex::Waiter;
use syscall::limits::{Limits, initial_limits};
use syscall::memory::CachedFile;
use syscall::services::Services;
use syscall::{events, strace};

/// How a process guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestEnd {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
}

/// What the kernel counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KernelStats {
    /// System calls the guest made.
    pub syscalls: u64,
    /// System calls passed to the host, the kernel's own included.
    pub host_calls: u64,
    /// Signals delivered to handlers.
    pub signals: u64,
    /// Exceptions the guest raised, by vector.
    pub exceptions: BTreeMap<u8, u64>,
    /// System calls without a row in the table, by number.
    pub unknown: BTreeMap<i64, u64>,
    /// System calls that the table refuses, by number.
    pub refused: BTreeMap<i64, u64>,
    /// The guest was killed because its memory was used up.
    pub out_of_memory: bool,
}

/// What runs guest code between two stops.
pub trait Runner {
    /// Runs until something stops it.
    fn run(&mut self, vcpu: &mut Vcpu) -> Stop;
    /// Runs one instruction.
    ///
    /// # Errors
    /// What stopped it.
    fn step(&mut self, vcpu: &mut Vcpu) -> Result<(), Stop>;
    /// The host process has been cloned, and this is the clone.
    fn forked(&mut self, vcpu: &mut Vcpu);
    /// From here on the guest runs this program: before the first run, and after each execve.
    fn program(&mut self, vcpu: &mut Vcpu, exe: &Path);
}

/// The guest kernel of one process: what its threads share.
pub struct Kernel {
    mm: AddressSpace,
    signals: Signals,
    stats: KernelStats,
    files: HashMap<i32, CachedFile>,
    limits: Limits,
    exe: PathBuf,
    argv: Vec<Vec<u8>>,
    envp: Vec<Vec<u8>>,
    auxv: Vec<u8>,
    pid: Option<i32>,
    scratch: Vec<u8>,
    services: Services,
    /// The slot of the task that the kernel was entered for.
    current: usize,
    tasks: Vec<Option<Task>>,
    /// Slots whose vCPU has a host thread.
    busy: Vec<bool>,
    bells: Arc<[Arc<Doorbell>]>,
    inbox: Arc<Inbox>,
    /// How the process ends, once that is settled.
    ending: Option<GuestEnd>,
    /// The only task that may stay: its execve ends the others.
    only: Option<usize>,
    /// The thread that the process began with, and its exit status.
    leader: usize,
    leader_status: i32,
    /// Frames of the save areas of vCPUs that no task has.
    spare_vmsas: Vec<Option<sevlab_arch::Gpa>>,
    /// Who waits at which futex.
    futexes: HashMap<u64, VecDeque<Waiter>>,
    /// The vCPUs run in turns.
    pub(crate) in_turns: bool,
    /// Time is simulated.
    pub(crate) sim: Option<Box<Simulated>>,
    /// The process has just been cloned, and this is the clone.
    cloned: bool,
    /// The process has just been given another program.
    executed: bool,
    /// The clone shares its memory with a parent that waits for it (vfork).
    vforked: bool,
    /// What an image is made with, for execve.
    template: image::Template,
}

impl Kernel {
    /// A kernel for the process laid out in `mm`.
    pub(crate) fn new(
        mm: AddressSpace,
        exe: PathBuf,
        argv: Vec<Vec<u8>>,
        envp: Vec<Vec<u8>>,
        auxv: Vec<u8>,
        template: image::Template,
    ) -> Self {
        let mut tasks: Vec<Option<Task>> = Vec::new();
        tasks.resize_with(MAX_CPUS, || None);
        tasks[0] = Some(Task {
            comm: comm_of(&exe),
            ..Task::default()
        });
        let mut busy = vec![false; MAX_CPUS];
        busy[0] = true;
        Self {
            limits: initial_limits(mm.stack_limit),
            mm,
            signals: Signals::default(),
            stats: KernelStats::default(),
            files: HashMap::new(),
            exe,
            argv,
            envp,
            auxv,
            pid: None,
            scratch: Vec::new(),
            services: Services::default(),
            current: 0,
            tasks,
            busy,
            bells: (0..MAX_CPUS).map(|_| Arc::default()).collect(),
            inbox: Arc::default(),
            ending: None,
            only: None,
            leader: 0,
            leader_status: 0,
            spare_vmsas: vec![None; MAX_CPUS],
            futexes: HashMap::new(),
            in_turns: false,
            sim: None,
            cloned: false,
            executed: false,
            vforked: false,
            template,
        }
    }

    /// The program's path.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }
    fn exe_bytes(&self) -> &[u8] {
        self.exe.as_os_str().as_bytes()
    }
    fn cmdline(&self) -> Vec<u8> {
        self.argv
            .iter()
            .flat_map(|a| a.iter().copied().chain([0]))
            .collect()
    }
    fn environ(&self) -> Vec<u8> {
        self.envp
            .iter()
            .flat_map(|e| e.iter().copied().chain([0]))
            .collect()
    }
    fn auxv(&self) -> &[u8] {
        &self.auxv
    }
    fn comm_line(&mut self) -> Vec<u8> {
        self.task()
            .comm
            .iter()
            .copied()
            .take_while(|b| *b != 0)
            .chain([b'\n'])
            .collect()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &KernelStats {
        &self.stats
    }
    /// The counters of memory management.
    #[must_use]
    pub fn mm_stats(&self) -> MmStats {
        self.mm.stats()
    }
    /// Names of the unknown and refused system calls that the guest made, with their counts.
    #[must_use]
    pub fn unanswered(&self) -> Vec<(String, u64)> {
        let name = |nr: i64| match syscall::table::row(nr) {
            Some(row) => row.name.to_owned(),
            None => format!("system call {nr}"),
        };
        let both = self.stats.unknown.iter().chain(&self.stats.refused);
        both.map(|(nr, n)| (name(*nr), *n)).collect()
    }

    /// Has the process start with a signal ignored (inherited from whoever started it).
    pub fn inherit_ignored(&mut self, signo: i32) {
        let action = signal::Action {
            handler: SIG_IGN,
            ..signal::Action::default()
        };
        self.signals.set_action(signo, action);
    }

    /// From now on time is simulated, and what is random comes from its seed.
    pub fn simulate(&mut self, time: Arc<SimTime>, pids: Option<Arc<Pids>>) {
        self.sim = Some(Box::new(Simulated::new(time, pids)));
    }

    /// The clocks, if they are simulated.
    #[must_use]
    pub fn time(&self) -> Option<&Arc<SimTime>> {
        self.sim.as_ref().map(|sim| &sim.time)
    }

    /// How the process ended, once that is settled.
    #[must_use]
    pub fn ended(&self) -> Option<GuestEnd> {
        self.ending
    }

    /// The host thread of a vCPU is gone: its slot may be used again.
    pub(crate) fn vcpu_gone(&mut self, slot: usize) {
        self.busy[slot] = false;
    }

    /// Answers what stopped the current task. `Some`: it is over.
    fn answer(
        locked: &mut Locked<'_>,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        stop: Stop,
    ) -> Result<Option<TaskEnd>, Error> {
        match stop {
            Stop::Syscall => {
                charge(vcpu, Cause::Syscall, 1);
                return syscall::dispatch(locked, vcpu, out);
            }
            Stop::Exception(e) => {
                let end = locked.exception(vcpu, out, &e)?;
                return Ok(end.map(|end| TaskEnd::Process(locked.end_process(end))));
            }
            Stop::Intercept(i) => locked.intercept(vcpu, out, i.kind, i.len)?,
            Stop::NestedFault { gpa, error } => out.nested_fault(vcpu, gpa, error)?,
            Stop::Requested | Stop::Budget => {}
            Stop::Host(e) => return Err(e.into()),
        }
        Ok(None)
    }

    fn exception(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        e: &Exception,
    ) -> Result<Option<GuestEnd>, Error> {
        *self.stats.exceptions.entry(e.vector).or_default() += 1;
        let error = e.error.unwrap_or(0);
        let va = e.cr2.map_or(0, |va| va.0);
        let info = if e.vector == 14 {
            let (write, exec) = (error & 2 != 0, error & 16 != 0);
            match self.mm.fault(&mut Cx { vcpu, out }, va, write, exec)? {
                Fault::Fixed => {
                    charge(vcpu, Cause::Fault, 1);
                    return Ok(None);
                }
                Fault::Segv(code) => SigInfo::fault(SIGSEGV, code, va),
                Fault::Bus => SigInfo::fault(SIGBUS, 2, va), // BUS_ADRERR
                Fault::OutOfMemory => {
                    self.stats.out_of_memory = true;
                    let mib = self.mm.frames().total() >> 8;
                    tracing::error!("the guest's {mib} MiB of memory are used up: it is killed");
                    return Ok(Some(GuestEnd::Killed(SIGKILL)));
                }
            }
        } else if e.vector == 1 && self.ran_int1(vcpu, out) {
            // TRAP_BRKPT: INT1 sets no bit of DR6
            SigInfo::fault(signal::SIGTRAP, 1, vcpu.state.rip)
        } else {
            signal::of_exception(e, &vcpu.state)
        };
        tracing::debug!(
            ?e,
            rip = vcpu.state.rip,
            "exception becomes signal {}",
            info.signo()
        );
        let cr2 = if e.vector == 14 {
            va
        } else {
            self.task().signals.last_fault.2
        };
        self.task().signals.last_fault = (u64::from(e.vector), u64::from(error), cr2);
        self.force(info);
        Ok(None)
    }

    /// Whether the instruction before RIP is INT1.
    fn ran_int1(&mut self, vcpu: &mut Vcpu, out: &mut dyn Outside) -> bool {
        let mut byte = [0];
        let at = vcpu.state.rip.wrapping_sub(1);
        syscall::user_read(self, vcpu, out, at, &mut byte).is_ok() && byte[0] == 0xf1
    }

    fn intercept(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        kind: InterceptKind,
        len: u8,
    ) -> Result<(), Error> {
        let set = |vcpu: &mut Vcpu, r: u8, value: u32| {
            vcpu.state.gpr[usize::from(r)] = u64::from(value);
        };
        match kind {
            InterceptKind::Cpuid => {
                if vcpu.mode.encrypted_state() {
                    charge(vcpu, Cause::Vc, 1);
                }
                let leaf = vcpu.state.gpr[gpr::RAX as usize] as u32;
                let subleaf = vcpu.state.gpr[gpr::RCX as usize] as u32;
                let [a, b, c, d] = out.cpuid(vcpu, leaf, subleaf)?;
                set(vcpu, gpr::RAX, a);
                set(vcpu, gpr::RBX, b);
                set(vcpu, gpr::RCX, c);
                set(vcpu, gpr::RDX, d);
            }
            InterceptKind::Rdtsc | InterceptKind::Rdtscp => {
                let rdtscp = kind == InterceptKind::Rdtscp;
                let (tsc, aux) = match self.time() {
                    // The processor's own answer: nobody intercepts it (launch::control).
                    Some(_) => (vcpu.cycles(), 0),
                    None => out.rdtsc(vcpu, rdtscp)?,
                };
                set(vcpu, gpr::RAX, tsc as u32);
                set(vcpu, gpr::RDX, (tsc >> 32) as u32);
                if rdtscp {
                    set(vcpu, gpr::RCX, aux);
                }
            }
            // a process has no use for hypercalls, and no such instruction
            InterceptKind::Vmmcall
            | InterceptKind::Vmgexit
            | InterceptKind::Monitor
            | InterceptKind::Mwait => {
                self.force(SigInfo::fault(SIGILL, 2, vcpu.state.rip));
                return Ok(());
            }
            // privileged: #GP at CPL 3
            InterceptKind::Rdpmc
            | InterceptKind::In { .. }
            | InterceptKind::Out { .. }
            | InterceptKind::Hlt
            | InterceptKind::Rdmsr
            | InterceptKind::Wrmsr
            | InterceptKind::Wbinvd => {
                self.force(SigInfo::kernel(SIGSEGV));
                return Ok(());
            }
        }
        vcpu.state.rip = vcpu.state.rip.wrapping_add(u64::from(len));
        Ok(())
    }

    /// Delivers pending signals and settles an interrupted system call.
    fn deliver(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
    ) -> Result<Option<GuestEnd>, Error> {
        self.collect();
        events::refresh(self, vcpu, out)?;
        loop {
            let mask = self.task().signals.mask;
            let Some(info) = self.take_signal(!mask) else {
                break;
            };
            let signo = info.signo();
            let action = self.signals.action(signo);
            strace::signal(signo, info.code());
            match (action.handler, signal::default_action(signo)) {
                (SIG_IGN, _) | (SIG_DFL, DefaultAction::Ignore) => {}
                (SIG_DFL, DefaultAction::Terminate) => return Ok(Some(GuestEnd::Killed(signo))),
                (SIG_DFL, DefaultAction::Stop) => {
                    let stop = HostCall {
                        nr: outside::machine_call::STOP,
                        args: [signo as u64, 0, 0, 0, 0, 0],
                    };
                    out.host_call(vcpu, &stop)?;
                }
                _ => self.call_handler(vcpu, out, action, &info)?,
            }
        }
        // No handler ran: the interrupted call goes on.
        if let Some((nr, _)) = self.task().signals.restart.take() {
            restart(vcpu, nr);
        }
        if let Some(mask) = self.task().signals.saved_mask.take() {
            self.set_mask(mask);
        }
        Ok(None)
    }

    fn call_handler(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        action: signal::Action,
        info: &SigInfo,
    ) -> Result<(), Error> {
        let signo = info.signo();
        if let Some((nr, may)) = self.task().signals.restart.take()
            && may
            && action.flags & SA_RESTART != 0
        {
            restart(vcpu, nr);
        }
        self.task().resume = None;
        let s = &mut self.task().signals;
        let mask = s.saved_mask.take().unwrap_or(s.mask);
        let (alt, last) = (s.alt, s.last_fault);
        let frame = sigframe::build(&vcpu.state, &action, info, mask, &alt, last);
        let written = match &frame {
            None => Err(Errno::EFAULT.into()),
            Some(f) => syscall::user_write(self, vcpu, out, f.fp_at, &f.fp)
                .and_then(|()| syscall::user_write(self, vcpu, out, f.at, &f.bytes)),
        };
        match (frame, written) {
            (Some(frame), Ok(())) => {
                sigframe::enter(&mut vcpu.state, &action, signo, frame.at);
                let mut mask = self.task().signals.mask | action.mask;
                if action.flags & SA_NODEFER == 0 {
                    mask |= bit(signo);
                }
                self.set_mask(mask);
                if action.flags & SA_RESETHAND != 0 {
                    let reset = signal::Action {
                        handler: SIG_DFL,
                        ..action
                    };
                    self.signals.set_action(signo, reset);
                }
                if action.flags & SA_ONSTACK != 0 && alt.flags & AltStack::AUTODISARM != 0 {
                    self.task().signals.alt = AltStack::NONE;
                }
                self.stats.signals += 1;
                Ok(())
            }
            (_, Err(Fail::Fatal(e))) => Err(e),
            _ => {
                // No room for the frame: SIGSEGV, which a SIGSEGV handler does not catch again.
                if signo == SIGSEGV {
                    self.signals.set_action(SIGSEGV, signal::Action::default());
                }
                self.force(SigInfo::kernel(SIGSEGV));
                Ok(())
            }
        }
    }
}

impl Process {
    /// Runs the task in `slot` to its end; `runner` runs guest code. The vCPU is active.
    ///
    /// # Errors
    /// The machine can't go on; nothing a guest does is an error.
    pub fn run(
        &self,
        slot: usize,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        runner: &mut dyn Runner,
    ) -> Result<TaskEnd, Error> {
        let mut locked = self.lock(slot, vcpu);
        if locked.stats.syscalls == 0 && slot == 0 {
            strace::started(locked.exe_bytes(), &locked.argv, locked.envp.len());
        }
        runner.program(vcpu, &locked.exe);
        let leave = |locked: &mut Locked<'_>, vcpu: &mut Vcpu, out: &mut dyn Outside| {
            let end = locked.leave(vcpu, out);
            if let Ok(TaskEnd::Process(end)) = end {
                strace::ended(end);
            }
            end
        };
        loop {
            if locked.leaving() {
                return leave(&mut locked, vcpu, out);
            }
            if let Some(end) = locked.deliver(vcpu, out)? {
                locked.end_process(end);
                return leave(&mut locked, vcpu, out);
            }
            drop(locked);
            vcpu.checkpoint();
            let stop = runner.run(vcpu);
            // Cleared before the kernel looks for what it may stand for.
            vcpu.state.exit_request.store(0, Ordering::SeqCst);
            vcpu.checkpoint();
            let spent = stop == Stop::Budget && self.turn_is_over(slot, vcpu);
            locked = self.lock(slot, vcpu);
            if spent {
                locked.end_process(GuestEnd::Killed(SIGXCPU));
            }
            let mut next = Some(stop);
            while let Some(stop) = next.take() {
                match Kernel::answer(&mut locked, vcpu, out, stop)? {
                    Some(TaskEnd::Process(_)) => return leave(&mut locked, vcpu, out),
                    Some(end) => return Ok(end),
                    None => {}
                }
                if locked.mm.stepping() {
                    let stepped = runner.step(vcpu);
                    locked.mm.stepped(&mut Cx { vcpu, out })?;
                    next = stepped.err();
                }
            }
            if std::mem::take(&mut locked.cloned) {
                runner.forked(vcpu);
            }
            if std::mem::take(&mut locked.executed) {
                runner.program(vcpu, &locked.exe);
            }
        }
    }
}

impl Process {
    /// The vCPU has used its turn up. Whether that was the last that the process may have.
    fn turn_is_over(&self, slot: usize, vcpu: &mut Vcpu) -> bool {
        let Some(time) = self.time() else {
            vcpu.next_turn();
            return false;
        };
        vcpu.drain();
        time.enter(slot, vcpu);
        vcpu.set_turn_key(vcpu.cycles());
        let alone = vcpu.cluster().vcpus() == 1;
        if !alone {
            vcpu.next_turn();
        }
        vcpu.begin_turn(alone);
        let clock = vcpu.state.clock();
        match time.allowed(vcpu.state.stop_at - clock) {
            0 => true,
            most => {
                vcpu.state.stop_at = clock + most;
                false
            }
        }
    }
}

/// The name a task gets from its program.
fn comm_of(exe: &Path) -> [u8; 16] {
    let mut comm = [0; 16];
    let name = exe.file_name().unwrap_or_default().as_bytes();
    let n = name.len().min(15);
    comm[..n].copy_from_slice(&name[..n]);
    comm
}

/// Puts the guest back before the SYSCALL instruction (two bytes) with its number in RAX.
fn restart(vcpu: &mut Vcpu, nr: i64) {
    vcpu.state.rip = vcpu.state.rip.wrapping_sub(2);
    vcpu.state.gpr[gpr::RAX as usize] = nr as u64;
}
