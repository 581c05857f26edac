#![allow(unsafe_code)] // clones the host process
//! The vCPUs of a machine: each on a host thread, started as the guest asks for them, and counted
//! together when they end. And the clones of the whole machine that a guest's fork makes.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use sevlab_arch::{Asid, Spa};
use sevlab_cpu::model::CoreCounters;
use sevlab_cpu::vcpu::Counters;
use sevlab_cpu::{Vcpu, VcpuConfig, svm};
use sevlab_memctl::{Domain, MemCtl, MemStats};
use zerocopy::IntoBytes;

use crate::config::MachineConfig;
use crate::error::Error;
use crate::exec::Exec;
use crate::family::{self, Children, Family};
use crate::fence::Regions;
use crate::host::{self, Cpu};
use crate::hv::cpuid::{C_BIT, CpuModel};
use crate::hv::hostcall::{Board, Start};
use crate::hv::{Exits, GuestMemory, Hypervisor};
use crate::kernel::signal::SIGKILL;
use crate::kernel::{GuestEnd, Process, TaskEnd};
use crate::launch;
use crate::simtime::{Random, advance};
use crate::stats::Translated;
use crate::world::{Half, world};

/// Stack of a vCPU's host thread: the hypervisor half's.
const STACK: usize = 1 << 20;

/// How a new vCPU begins.
struct Begin {
    cluster: Arc<sevlab_cpu::smp::Cluster>,
    /// In simulated time: when.
    at: u64,
    /// Its [`Vcpu::random`].
    random: Option<u64>,
}

/// A seed for a vCPU that comes from this one.
fn another(vcpu: &Vcpu) -> Option<u64> {
    let seed = vcpu.random?;
    Some(Random::new(seed, vcpu.state.clock()).number())
}

/// What the vCPUs that have ended counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) instructions: u64,
    pub(crate) translated: Option<Translated>,
    pub(crate) vcpu: Counters,
    pub(crate) exits: Exits,
    pub(crate) host_calls: u64,
    /// Of a machine with a model: the latest time, how many threads there were, and what their cores counted.
    pub(crate) cycles: u64,
    pub(crate) threads: u64,
    pub(crate) core: CoreCounters,
}

/// A vCPU's host thread.
struct HostThread {
    handle: JoinHandle<()>,
    /// It takes neither the kernel's lock nor that of the list of threads any more: whoever holds them may join it.
    leaving: Arc<AtomicBool>,
}

/// Waits for the host threads of `which`.
fn join(threads: &mut Vec<HostThread>, which: impl Fn(&HostThread) -> bool) {
    for thread in threads.extract_if(.., |t| which(t)) {
        // A panic there has become a failure.
        let _ = thread.handle.join();
    }
}

/// Waits for the host threads that are about to end.
fn join_leaving(threads: &mut Vec<HostThread>) {
    join(threads, |t| t.leaving.load(Ordering::SeqCst));
}

/// The vCPUs of one machine, and what they share.
pub(crate) struct Cpus {
    config: MachineConfig,
    mem: Arc<MemCtl>,
    asid: Asid,
    memory: Arc<Mutex<GuestMemory>>,
    cpuid: Arc<CpuModel>,
    process: Arc<Process>,
    regions: Arc<Mutex<Regions>>,
    /// All but the process's first. Taken after the kernel's lock.
    threads: Mutex<Vec<HostThread>>,
    /// One of them is leaving.
    left: Condvar,
    totals: Mutex<Totals>,
    failure: Mutex<Option<Error>>,
    /// Held by compile threads while they work, by vCPU.
    quiet: Mutex<HashMap<usize, Arc<Mutex<()>>>>,
    /// This process is a clone.
    clone: AtomicBool,
    /// What all clones count together, and what this one's memory controller had counted when it began.
    family: Family,
    before: Mutex<MemStats>,
    /// The vCPU whose thread is the process's first.
    root: AtomicUsize,
    /// What has run that one, once it has ended.
    ended: Mutex<Option<Exec>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cpus {
    pub(crate) fn new(
        config: MachineConfig,
        mem: Arc<MemCtl>,
        asid: Asid,
        memory: Arc<Mutex<GuestMemory>>,
        cpuid: Arc<CpuModel>,
        process: Arc<Process>,
        regions: Arc<Mutex<Regions>>,
    ) -> Self {
        Self {
            config,
            mem,
            asid,
            memory,
            cpuid,
            process,
            regions,
            threads: Mutex::default(),
            left: Condvar::new(),
            totals: Mutex::default(),
            failure: Mutex::default(),
            quiet: Mutex::default(),
            clone: AtomicBool::new(false),
            family: Family::new(),
            before: Mutex::default(),
            root: AtomicUsize::new(0),
            ended: Mutex::default(),
        }
    }

    /// What has been counted.
    pub(crate) fn totals(&self) -> Totals {
        lock(&self.totals).clone()
    }

    /// What has run the process's first vCPU, if it has ended.
    pub(crate) fn ended(&self) -> Option<Exec> {
        lock(&self.ended).take()
    }

    /// What the clones that have ended counted.
    pub(crate) fn children(&self) -> Children {
        self.family.sums()
    }

    /// Runs vCPU `cpu` on the calling thread to the end of its task. `leaving` is the [`HostThread`]'s, if that is not the
    /// process's first.
    pub(crate) fn run(
        &self,
        cpu: usize,
        vcpu: &mut Vcpu,
        hv: &mut Hypervisor,
        exec: Exec,
        leaving: Option<&AtomicBool>,
    ) -> Result<TaskEnd, Error> {
        if let Some(time) = self.process.time() {
            time.sit(cpu, vcpu);
            hv.time = Some(Arc::clone(time));
            hv.calls.pids = self.process.pids().cloned();
        }
        let bell = self.process.bell(cpu);
        bell.attach(&vcpu.state.exit_request);
        let reported = Cpu::new(cpu, &vcpu.state.exit_request);
        hv.calls.interrupted_by(Arc::clone(&bell));
        if let Some(quiet) = exec.quiet() {
            lock(&self.quiet).insert(cpu, quiet);
        }
        let half = Half {
            mode: self.config.sev,
            asid: self.asid,
            port: hv.port(cpu),
            regions: Arc::clone(&self.regions),
        };
        let process = Arc::clone(&self.process);
        let ran = world(
            half,
            vcpu,
            hv,
            move |vcpu, fence| {
                let mut exec = exec;
                let end = fence
                    .boot(vcpu)
                    .and_then(|()| process.run(cpu, vcpu, fence, &mut exec));
                (end, exec)
            },
            &mut Hypervisor::handle,
        );
        {
            // Whoever rings holds this lock.
            let mut kernel = self.process.kernel();
            if let Some(time) = self.process.time() {
                vcpu.drain();
                time.stand(cpu, vcpu);
            }
            bell.detach();
            kernel.vcpu_gone(cpu);
            // After a failure it takes the kernel's lock once more.
            if let (Some(leaving), Ok((Ok(_), _))) = (leaving, &ran) {
                self.leave(leaving);
            }
        }
        drop(reported);
        vcpu.give_turn();
        let (end, mut exec) = ran?;
        exec.save(vcpu);
        self.count(vcpu, hv, &exec);
        if leaving.is_some() {
            exec.close();
        } else {
            *lock(&self.ended) = Some(exec);
        }
        Ok(end?)
    }

    /// A host thread is about to end.
    fn leave(&self, leaving: &AtomicBool) {
        if !leaving.load(Ordering::SeqCst) {
            let _threads = lock(&self.threads);
            leaving.store(true, Ordering::SeqCst);
            self.left.notify_all();
        }
    }

    fn count(&self, vcpu: &Vcpu, hv: &Hypervisor, exec: &Exec) {
        let mut t = lock(&self.totals);
        let instructions = vcpu.state.retired;
        t.instructions += instructions;
        if let Some(j) = exec.jit_stats() {
            let sum = t.translated.get_or_insert_default();
            sum.instructions += instructions.saturating_sub(j.interpreted + j.copied);
            sum.copied += j.copied;
            sum.copies += j.direct;
            sum.copy_bytes += j.direct_bytes;
            sum.regions += j.regions;
            sum.loaded += j.loaded;
            sum.loaded_copies += j.loaded_copies;
            sum.compile_time += j.compile_time;
            sum.code_bytes += j.host_bytes;
            sum.code_instructions += j.host_insns;
        }
        t.vcpu.add(&vcpu.counters);
        t.exits.add(&hv.exits);
        t.host_calls += hv.calls.executed;
        t.threads += 1;
        if let Some(model) = &vcpu.model {
            t.cycles = t.cycles.max(vcpu.cycles());
            t.core.add(&model.counters);
        }
    }

    /// The machine can't go on: every vCPU leaves.
    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        let mut kernel = self.process.kernel();
        kernel.end_process(GuestEnd::Killed(SIGKILL));
        kernel.ring_all();
    }

    /// The process's first thread is done with its vCPU: waits for the others. In a clone, ends it.
    pub(crate) fn join(
        &self,
        cpu: usize,
        result: Result<TaskEnd, Error>,
    ) -> Result<GuestEnd, Error> {
        if let Err(e) = result {
            self.fail(e);
        }
        // Signals are for those who still run a vCPU.
        let signals = host::Blocked::new();
        let mut threads = lock(&self.threads);
        loop {
            join_leaving(&mut threads);
            if threads.is_empty() {
                break;
            }
            let left = self.left.wait(threads);
            threads = left.unwrap_or_else(PoisonError::into_inner);
        }
        drop(threads);
        let failure = lock(&self.failure).take();
        let end = self.process.kernel().ended();
        let end = end.unwrap_or(GuestEnd::Exited(0));
        if self.clone.load(Ordering::SeqCst) && self.root.load(Ordering::SeqCst) == cpu {
            if let Some(e) = failure {
                eprintln!("sevlab: {e}");
                host::clone_exit_like(GuestEnd::Exited(125));
            }
            let syscalls = self.process.kernel().stats().syscalls;
            let (before, now) = (*lock(&self.before), self.mem.stats());
            let counts = family::of(&self.totals(), syscalls, &before, &now);
            let time = self.process.time().map(|time| time.process());
            let (busy_cycles, system) = time.unwrap_or_default();
            self.family.add(&Children {
                busy_cycles,
                ..counts
            });
            if let Some(pids) = self.process.pids() {
                pids.end([self.totals().cycles, busy_cycles, system]);
            }
            host::clone_exit_like(end);
        }
        drop(signals);
        match failure {
            Some(e) => Err(e),
            None => Ok(end),
        }
    }

    /// What a host thread does for vCPU `cpu`, from its making to its end.
    fn thread(
        self: &Arc<Self>,
        cpu: usize,
        start: Start,
        begin: Begin,
        leaving: &AtomicBool,
        ready: impl FnOnce(i64),
    ) {
        let made = AssertUnwindSafe(|| self.make(cpu, start, begin));
        let (mut vcpu, mut hv, exec) = match std::panic::catch_unwind(made) {
            Ok(Ok(made)) => made,
            Ok(Err(e)) => {
                tracing::error!("vCPU {cpu}: {e}");
                return ready(-i64::from(libc::EAGAIN));
            }
            Err(_) => return ready(-i64::from(libc::EAGAIN)),
        };
        // SAFETY: no arguments, no memory.
        ready(unsafe { libc::syscall(libc::SYS_gettid) });
        let run = AssertUnwindSafe(|| self.run(cpu, &mut vcpu, &mut hv, exec, Some(leaving)));
        let result = std::panic::catch_unwind(run).unwrap_or_else(|_| {
            Err(Error::Host {
                what: "a vCPU's thread",
                source: std::io::Error::other("panicked"),
            })
        });
        vcpu.retire();
        if self.clone.load(Ordering::SeqCst) && self.root.load(Ordering::SeqCst) == cpu {
            // This thread is the first of a clone's process: it ends the process.
            let _ = self.join(cpu, result);
        } else if let Err(e) = result {
            self.fail(e);
        }
    }

    fn make(
        self: &Arc<Self>,
        cpu: usize,
        start: Start,
        begin: Begin,
    ) -> Result<(Box<Vcpu>, Hypervisor, Exec), Error> {
        let mut hv = Hypervisor::for_cpu(Arc::clone(&self.memory), Arc::clone(&self.cpuid), cpu)?;
        hv.board = Some(Arc::<Self>::clone(self));
        let root = hv.memory().npt.root();
        let mut vcpu = Vcpu::in_cluster(
            Arc::clone(&self.mem),
            begin.cluster,
            VcpuConfig {
                asid: self.asid,
                mode: self.config.sev,
                c_bit: C_BIT,
                ncr3: Some(root),
                ..VcpuConfig::default()
            },
        );
        if let Some(model) = &self.config.model {
            vcpu.set_model(cpu, Arc::clone(model))?;
            if let Some(watch) = &self.config.watch {
                vcpu.set_trace(Some(watch.trace(&self.mem)));
            }
            vcpu.random = begin.random;
            advance(&mut vcpu, begin.at);
            vcpu.set_turn_key(begin.at);
        }
        vcpu.profile = self.cpuid.profile();
        let vmsa = match &start {
            Start::SaveArea(spa) => *spa,
            Start::Registers(_) => Spa(0),
        };
        let control = launch::control(&self.config, self.asid, root, vmsa);
        let vmcb = hv.vmcb();
        self.mem.write(Domain::Shared, vmcb, control.as_bytes())?;
        match start {
            Start::Registers(image) => svm::load_registers(&mut vcpu, vmcb, &image)?,
            Start::SaveArea(spa) => vcpu.vmsa_installed(spa)?,
        }
        let exec = Exec::new(&self.config)?;
        // From here on its turn is settled, whenever the host runs this thread.
        vcpu.join_queue();
        if self.config.in_turns() {
            vcpu.state.budget = sevlab_cpu::smp::TURN;
        }
        Ok((vcpu, hv, exec))
    }
}

impl Board for Cpus {
    fn start(self: Arc<Self>, vcpu: &Vcpu, cpu: usize, start: Start) -> i64 {
        let begin = Begin {
            cluster: Arc::clone(vcpu.cluster()),
            at: vcpu.cycles(),
            random: another(vcpu),
        };
        let (tell, told) = sync_channel(1);
        let board = Arc::clone(&self);
        let leaving = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&leaving);
        let spawned = std::thread::Builder::new()
            .name(format!("vcpu{cpu}"))
            .stack_size(STACK)
            .spawn(move || {
                board.thread(cpu, start, begin, &own, |tid| {
                    let _ = tell.send(tid);
                });
                board.leave(&own);
            });
        match spawned {
            Ok(handle) => {
                let mut threads = lock(&self.threads);
                join(&mut threads, |t| t.handle.is_finished());
                threads.push(HostThread { handle, leaving });
            }
            Err(e) => return -i64::from(e.raw_os_error().unwrap_or(libc::EAGAIN)),
        }
        told.recv().unwrap_or(-i64::from(libc::EAGAIN))
    }

    fn fork(&self, vcpu: &mut Vcpu, cpu: usize) -> i64 {
        // A thread that is being started or ends holds locks of other libraries, which the clone would find locked. Whoever
        // starts one waits until it runs; no other vCPU enters the kernel, or leaves it, meanwhile.
        join_leaving(&mut lock(&self.threads));
        let quiet: Vec<_> = lock(&self.quiet).values().cloned().collect();
        let cluster = Arc::clone(vcpu.cluster());
        // What arrives before the clone has an inbox of its own waits until it has.
        let signals = host::Blocked::new();
        let pid = {
            // All that another thread could hold in the middle of a change.
            let _quiet: Vec<_> = quiet.iter().map(|q| lock(q)).collect();
            let _books = (self.mem.freeze(), cluster.freeze());
            let _own = (lock(&self.threads), lock(&self.totals), lock(&self.failure));
            let _before = lock(&self.before);
            let _guest = (lock(&self.memory), lock(&self.regions), lock(&self.quiet));
            let _console = (std::io::stdout().lock(), std::io::stderr().lock());
            // SAFETY: this thread goes on in the clone with every lock in its hands; what other threads
            // had in theirs is not touched there.
            unsafe { libc::fork() }
        };
        if pid < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error();
            return -i64::from(errno.unwrap_or(libc::EAGAIN));
        }
        if pid == 0 {
            std::mem::forget(std::mem::take(&mut *lock(&self.threads)));
            lock(&self.quiet).retain(|of, _| *of == cpu);
            *lock(&self.totals) = Totals::default();
            *lock(&self.before) = self.mem.stats();
            self.clone.store(true, Ordering::SeqCst);
            self.root.store(cpu, Ordering::SeqCst);
            Cpu::alone(cpu);
            self.process.forked(cpu);
            // What is in there was the original's.
            self.process.inbox().take();
            self.process.bell(cpu).attach(&vcpu.state.exit_request);
            vcpu.forked();
            vcpu.random = another(vcpu);
            if let Some(time) = self.process.time() {
                time.forked(cpu, vcpu);
            }
        }
        drop(signals);
        i64::from(pid)
    }
}
