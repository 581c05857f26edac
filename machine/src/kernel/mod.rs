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
pub mod sigframe;
pub mod signal;
pub mod stack;
pub mod syscall;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use sevlab_cpu::state::gpr;
use sevlab_cpu::stop::InterceptKind;
use sevlab_cpu::{Exception, Stop, Vcpu};

pub use error::{Errno, Error, Fail};
pub use image::{Image, ImageConfig};
pub use mm::MmStats;
pub use outside::{HostCall, Outside};
pub use signal::Notifier;

use mm::{AddressSpace, Cx, Fault};
use signal::{
    AltStack, DefaultAction, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SIG_DFL, SIG_IGN,
    SIGBUS, SIGILL, SIGKILL, SIGSEGV, SIGSTOP, SigInfo, Signals, UNBLOCKABLE, bit,
};
use syscall::limits::{Limits, initial_limits};
use syscall::memory::CachedFile;
use syscall::services::{self, Services};
use syscall::strace;

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

/// The guest kernel of one process.
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
    comm: [u8; 16],
    pid: Option<i32>,
    scratch: Vec<u8>,
    services: Services,
}

impl Kernel {
    /// A kernel for the process laid out in `mm`.
    pub(crate) fn new(
        mm: AddressSpace,
        exe: PathBuf,
        argv: Vec<Vec<u8>>,
        envp: Vec<Vec<u8>>,
        auxv: Vec<u8>,
    ) -> Self {
        let mut comm = [0; 16];
        let name = exe.file_name().unwrap_or_default().as_bytes();
        let n = name.len().min(15);
        comm[..n].copy_from_slice(&name[..n]);
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
            comm,
            pid: None,
            scratch: Vec::new(),
            services: Services::default(),
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
    fn comm_line(&self) -> Vec<u8> {
        self.comm
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

    /// Where host signals for the guest are reported.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.signals.outside.clone()
    }
    /// Reports a host signal for the guest. The caller also sets the vCPU's `exit_request`.
    pub fn notify(&self, signo: i32) {
        self.signals.outside.notify(signo);
    }
    /// Has the process start with a signal ignored (inherited from whoever started it).
    pub fn inherit_ignored(&mut self, signo: i32) {
        let action = signal::Action {
            handler: SIG_IGN,
            ..signal::Action::default()
        };
        self.signals.set_action(signo, action);
    }

    /// Runs the process to its end. `exec` runs guest code until something stops it.
    ///
    /// # Errors
    /// The machine can't go on; nothing a guest does is an error.
    pub fn run(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        exec: &mut dyn FnMut(&mut Vcpu) -> Stop,
    ) -> Result<GuestEnd, Error> {
        strace::started(self.exe_bytes(), &self.argv, self.envp.len());
        let end = loop {
            if let Some(end) = self.deliver(vcpu, out)? {
                break end;
            }
            let end = match exec(vcpu) {
                Stop::Syscall => syscall::dispatch(self, vcpu, out)?,
                Stop::Exception(e) => self.exception(vcpu, out, &e)?,
                Stop::Intercept(i) => {
                    self.intercept(vcpu, out, i.kind, i.len)?;
                    None
                }
                Stop::NestedFault { gpa, error } => {
                    out.nested_fault(vcpu, gpa, error)?;
                    None
                }
                Stop::Requested => {
                    vcpu.state.exit_request.store(0, Ordering::Relaxed);
                    None
                }
                Stop::Budget => None,
                Stop::Host(e) => return Err(e.into()),
            };
            if let Some(end) = end {
                break end;
            }
        };
        strace::ended(end);
        self.mm.sync_all(&mut Cx { vcpu, out })?;
        Ok(end)
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
                Fault::Fixed => return Ok(None),
                Fault::Segv(code) => SigInfo::fault(SIGSEGV, code, va),
                Fault::Bus => SigInfo::fault(SIGBUS, 2, va), // BUS_ADRERR
                Fault::OutOfMemory => {
                    self.stats.out_of_memory = true;
                    let mib = self.mm.frames().total() >> 8;
                    tracing::error!("the guest's {mib} MiB of memory are used up: it is killed");
                    return Ok(Some(GuestEnd::Killed(SIGKILL)));
                }
            }
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
            self.signals.last_fault.2
        };
        self.signals.last_fault = (u64::from(e.vector), u64::from(error), cr2);
        self.signals.force(info);
        Ok(None)
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
                let (tsc, aux) = out.rdtsc(vcpu, rdtscp)?;
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
                self.signals
                    .force(SigInfo::fault(SIGILL, 2, vcpu.state.rip));
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
                self.signals.force(SigInfo::kernel(SIGSEGV));
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
        services::tick(self, vcpu, out)?;
        self.signals.collect();
        while let Some(info) = self.signals.take(!self.signals.mask) {
            let signo = info.signo();
            let action = self.signals.action(signo);
            strace::signal(signo, info.code());
            match (action.handler, signal::default_action(signo)) {
                (SIG_IGN, _) | (SIG_DFL, DefaultAction::Ignore) => {}
                (SIG_DFL, DefaultAction::Terminate) => return Ok(Some(GuestEnd::Killed(signo))),
                (SIG_DFL, DefaultAction::Stop) => {
                    let pid = out.host_call(
                        vcpu,
                        &HostCall {
                            nr: 39,
                            args: [0; 6],
                        },
                    )?;
                    let stop = [pid as u64, SIGSTOP as u64, 0, 0, 0, 0];
                    out.host_call(vcpu, &HostCall { nr: 62, args: stop })?;
                }
                _ => self.call_handler(vcpu, out, action, &info)?,
            }
        }
        // No handler ran: the interrupted call goes on.
        if let Some((nr, _)) = self.signals.restart.take() {
            restart(vcpu, nr);
        }
        if let Some(mask) = self.signals.saved_mask.take() {
            self.signals.mask = mask;
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
        if let Some((nr, may)) = self.signals.restart.take()
            && may
            && action.flags & SA_RESTART != 0
        {
            restart(vcpu, nr);
        }
        let mask = self.signals.saved_mask.take().unwrap_or(self.signals.mask);
        let (alt, last) = (self.signals.alt, self.signals.last_fault);
        let frame = sigframe::build(&vcpu.state, &action, info, mask, &alt, last);
        let written = match &frame {
            None => Err(Errno::EFAULT.into()),
            Some(f) => syscall::user_write(self, vcpu, out, f.fp_at, &f.fp)
                .and_then(|()| syscall::user_write(self, vcpu, out, f.at, &f.bytes)),
        };
        match (frame, written) {
            (Some(frame), Ok(())) => {
                sigframe::enter(&mut vcpu.state, &action, signo, frame.at);
                let mut mask = self.signals.mask | action.mask;
                if action.flags & SA_NODEFER == 0 {
                    mask |= bit(signo);
                }
                self.signals.mask = mask & !UNBLOCKABLE;
                if action.flags & SA_RESETHAND != 0 {
                    let reset = signal::Action {
                        handler: SIG_DFL,
                        ..action
                    };
                    self.signals.set_action(signo, reset);
                }
                if action.flags & SA_ONSTACK != 0 && alt.flags & AltStack::AUTODISARM != 0 {
                    self.signals.alt = AltStack::NONE;
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
                self.signals.force(SigInfo::kernel(SIGSEGV));
                Ok(())
            }
        }
    }
}

/// Puts the guest back before the SYSCALL instruction (two bytes) with its number in RAX.
fn restart(vcpu: &mut Vcpu, nr: i64) {
    vcpu.state.rip = vcpu.state.rip.wrapping_sub(2);
    vcpu.state.gpr[gpr::RAX as usize] = nr as u64;
}
