//! New threads and processes, and their end.
//!
//! A thread is one more vCPU of the machine. A process is a clone of the whole machine on the host: its
//! memory is a copy, encrypted as the original's was, and who waits for it waits for the host process.

use sevlab_cpu::Vcpu;
use sevlab_cpu::state::{gpr, seg};
use sevlab_cpu::svm;
use zerocopy::IntoBytes;

use super::futex::release_robust;
use super::{Call, DONE, Sys, SysResult, strace, user_write};
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::mm::{Change, Cx, USER_END};
use crate::kernel::outside::{HostCall, Outside, machine_call};
use crate::kernel::process::{Locked, Task, TaskEnd};
use crate::kernel::signal::{AltStack, Pending, TaskSignals};
use crate::kernel::{GuestEnd, Kernel};

const CLONE_VM: u64 = 0x100;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// Namespaces, tracing, cgroups: what a process guest may not ask for.
const REFUSED: u64 = CLONE_PIDFD | CLONE_PARENT | 0x7e02_0000 | 0x80 | 0x2000;

/// What a process shares with another only if both are one machine: CLONE_FS, CLONE_FILES.
const TOGETHER: u64 = 0x600;

/// What a clone is asked for, whichever call asks.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    flags: u64,
    exit_signal: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
}

/// clone(2).
///
/// # Errors
/// As Linux; EINVAL for namespaces, and for memory shared with another process other than by vfork.
pub fn clone(call: &mut Call<'_, '_>) -> SysResult {
    let [flags, stack, parent_tid, child_tid, tls, _] = call.args;
    spawn(
        call,
        Wanted {
            flags: flags & !0xff,
            exit_signal: flags & 0xff,
            stack,
            parent_tid,
            child_tid,
            tls,
        },
    )
}

/// clone3(2).
///
/// # Errors
/// As [`clone`].
pub fn clone3(call: &mut Call<'_, '_>) -> SysResult {
    let [at, size, ..] = call.args;
    if size < 64 {
        return Err(Errno::EINVAL.into());
    }
    let mut w = [0; 8]; // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    for (i, w) in w.iter_mut().enumerate() {
        *w = call.read_u64(at.wrapping_add(i as u64 * 8))?;
    }
    for more in (64..size.min(88)).step_by(8) {
        if call.read_u64(at.wrapping_add(more))? != 0 {
            return Err(Errno::EINVAL.into());
        }
    }
    let [
        flags,
        _,
        child_tid,
        parent_tid,
        exit_signal,
        stack,
        stack_size,
        tls,
    ] = w;
    if (stack == 0) != (stack_size == 0) || flags & 0xff != 0 {
        return Err(Errno::EINVAL.into());
    }
    spawn(
        call,
        Wanted {
            flags,
            exit_signal,
            stack: stack.wrapping_add(stack_size),
            parent_tid,
            child_tid,
            tls,
        },
    )
}

/// fork(2).
///
/// # Errors
/// As Linux.
pub fn fork(call: &mut Call<'_, '_>) -> SysResult {
    spawn(
        call,
        Wanted {
            exit_signal: 17,
            ..Wanted::default()
        },
    )
}

/// vfork(2).
///
/// # Errors
/// As Linux.
pub fn vfork(call: &mut Call<'_, '_>) -> SysResult {
    spawn(
        call,
        Wanted {
            flags: CLONE_VM | CLONE_VFORK,
            exit_signal: 17,
            ..Wanted::default()
        },
    )
}

fn spawn(call: &mut Call<'_, '_>, w: Wanted) -> SysResult {
    let has = |flag| w.flags & flag != 0;
    if w.flags & REFUSED != 0
        || has(CLONE_THREAD) && !has(CLONE_SIGHAND)
        || has(CLONE_SIGHAND) && !has(CLONE_VM)
        || w.stack >= USER_END
    {
        return Err(Errno::EINVAL.into());
    }
    if has(CLONE_SETTLS) && w.tls >= USER_END {
        return Err(Errno::EPERM.into());
    }
    if has(CLONE_THREAD) {
        return thread(call, &w);
    }
    if has(CLONE_VM) && !has(CLONE_VFORK) || w.flags & TOGETHER != 0 {
        return Err(Errno::EINVAL.into());
    }
    process(call, &w)
}

// ---- threads ----

fn thread(call: &mut Call<'_, '_>, w: &Wanted) -> SysResult {
    let slot = call.kernel.free_slot().ok_or(Errno::EAGAIN)?;
    call.tid()?; // the first thread's is known from here on
    let frame = save_area_frame(call, slot)?;
    let image = {
        // The new vCPU starts where this call returns, with 0 for a result.
        let state = &mut call.vcpu.state;
        let (rax, rsp) = (state.gpr[gpr::RAX as usize], state.gpr[gpr::RSP as usize]);
        let fs = state.seg[seg::FS].base;
        state.gpr[gpr::RAX as usize] = 0;
        if w.stack != 0 {
            state.gpr[gpr::RSP as usize] = w.stack;
        }
        if w.flags & CLONE_SETTLS != 0 {
            state.seg[seg::FS].base = w.tls;
        }
        let image = svm::image_of(call.vcpu);
        let state = &mut call.vcpu.state;
        state.gpr[gpr::RAX as usize] = rax;
        state.gpr[gpr::RSP as usize] = rsp;
        state.seg[seg::FS].base = fs;
        image
    };
    call.out
        .create_vcpu(call.vcpu, slot, frame, image.as_bytes())?;
    let parent = call.kernel.task().clone();
    call.kernel.tasks[slot] = Some(Task {
        tid: 0,
        signals: TaskSignals {
            mask: parent.signals.mask,
            ..TaskSignals::default()
        },
        clear_tid: if w.flags & CLONE_CHILD_CLEARTID != 0 {
            w.child_tid
        } else {
            0
        },
        robust: 0,
        comm: parent.comm,
        futex: None,
        resume: None,
        host_mask: parent.host_mask,
        vmsa: Some(frame),
    });
    call.kernel.busy[slot] = true;
    // The new vCPU waits for the kernel's lock, which this one holds.
    let start = [slot as u64, frame.0, 0, 0, 0, 0];
    let tid = call.host(machine_call::START, start)?;
    if tid <= 0 {
        call.kernel.tasks[slot] = None;
        call.kernel.busy[slot] = false;
        call.kernel.spare_vmsas[slot] = Some(frame);
        tracing::warn!(errno = -tid, "no vCPU for a new thread");
        return Err(Errno::EAGAIN.into());
    }
    if let Some(task) = call.kernel.tasks[slot].as_mut() {
        task.tid = tid as i32;
    }
    let bytes = (tid as u32).to_le_bytes();
    if w.flags & CLONE_PARENT_SETTID != 0 {
        call.write_user(w.parent_tid, &bytes)?;
    }
    if w.flags & CLONE_CHILD_SETTID != 0 {
        call.write_user(w.child_tid, &bytes)?;
    }
    strace::another();
    Ok(Sys::Ret(tid))
}

/// The frame for a vCPU's save area: that of the thread that was there before, or a new one.
fn save_area_frame(call: &mut Call<'_, '_>, slot: usize) -> Result<sevlab_arch::Gpa, Fail> {
    if let Some(frame) = call.kernel.spare_vmsas[slot].take() {
        return Ok(frame);
    }
    let (kernel, mut cx) = call.cx();
    let frame = kernel.mm.frames_mut().alloc(&mut cx, None)?;
    Ok(frame.ok_or(Errno::ENOMEM)?)
}

impl Locked<'_> {
    /// The current thread ends with `status`: exit(2).
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn exit_task(
        &mut self,
        vcpu: &mut Vcpu,
        out: &mut dyn Outside,
        status: i32,
    ) -> Result<TaskEnd, Error> {
        let slot = self.slot();
        if slot == self.leader {
            self.leader_status = status;
        }
        self.unhand(vcpu, out)?;
        if self.tasks().count() == 1 {
            let end = GuestEnd::Exited(self.leader_status);
            return Ok(TaskEnd::Process(self.end_process(end)));
        }
        self.forget_task(slot);
        if self.sim.as_ref().is_some_and(|s| !s.armed.is_empty()) {
            // Somebody must wait for the timers.
            self.ring_others();
        }
        Ok(TaskEnd::Thread)
    }

    /// What a dying thread leaves to others: its robust futexes, and the word that says it is gone.
    pub(super) fn unhand(&mut self, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
        self.let_go(vcpu, out);
        let va = std::mem::take(&mut self.task().clear_tid);
        if va != 0 {
            match user_write(self, vcpu, out, va, &[0; 4]) {
                Ok(()) => {
                    self.futex_wake(va, 1, u32::MAX);
                }
                Err(Fail::Errno(_)) => {}
                Err(Fail::Fatal(e)) => return Err(e),
            }
        }
        Ok(())
    }

    /// The robust futexes of a dying thread say that it is dead.
    fn let_go(&mut self, vcpu: &mut Vcpu, out: &mut dyn Outside) {
        if let Some(row) = super::table::row(60) {
            release_robust(&mut Call {
                kernel: self,
                vcpu,
                out,
                row,
                args: [0; 6],
            });
        }
    }

    /// The current thread leaves because the process ends, or because another thread's execve leaves no
    /// other.
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn leave(&mut self, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<TaskEnd, Error> {
        if let Some(end) = self.ending {
            self.let_go(vcpu, out);
            self.leave_vfork(vcpu, out)?;
            return Ok(TaskEnd::Process(end));
        }
        let slot = self.slot();
        self.let_go(vcpu, out);
        self.forget_task(slot);
        Ok(TaskEnd::Thread)
    }
}

impl Kernel {
    fn forget_task(&mut self, slot: usize) {
        self.hand_on(u64::MAX);
        if let Some(task) = self.tasks[slot].take() {
            self.spare_vmsas[slot] = task.vmsa;
        }
        if let Some(only) = self.only {
            self.ring(only);
        }
    }

    /// This is a clone of the process: only the current task is in it.
    fn become_clone(&mut self, pid: i32) {
        let slot = self.current;
        for (i, task) in self.tasks.iter_mut().enumerate() {
            if i != slot
                && let Some(task) = task.take()
            {
                self.spare_vmsas[i] = task.vmsa;
            }
            self.busy[i] = i == slot;
        }
        self.leader = slot;
        self.pid = Some(pid);
        self.futexes.clear();
        self.services = self.services.forked();
        if let Some(sim) = &mut self.sim {
            sim.forked(pid);
        }
        self.signals.pending = Pending::default();
        self.only = None;
        self.stats = super::super::KernelStats::default();
        self.cloned = true;
        let task = self.task();
        task.tid = pid;
        task.robust = 0;
        task.clear_tid = 0;
        task.signals.pending = Pending::default();
    }
}

// ---- processes ----

fn process(call: &mut Call<'_, '_>, w: &Wanted) -> SysResult {
    if w.exit_signal != 17 && w.exit_signal != 0 {
        return Err(Errno::EINVAL.into());
    }
    let vfork = w.flags & CLONE_VFORK != 0;
    call.tid()?;
    let mine = call.vcpu.begin_exclusive();
    let pid = call.host(machine_call::FORK, [u64::from(vfork), 0, 0, 0, 0, 0]);
    if mine {
        call.vcpu.end_exclusive();
    }
    let pid = pid?;
    if pid < 0 {
        return Err(Errno(pid.unsigned_abs() as i32).into());
    }
    strace::another();
    if pid > 0 {
        if let Some(sim) = &mut call.kernel.sim {
            // What was this process's own has another end there.
            sim.inside.clear();
            sim.children += 1;
            sim.related = true;
        }
        if w.flags & CLONE_PARENT_SETTID != 0 {
            call.write_user(w.parent_tid, &(pid as u32).to_le_bytes())?;
        }
        if vfork {
            await_vfork(call)?;
        }
        return Ok(Sys::Ret(pid));
    }
    let pid = call.host(39, [0; 6])? as i32;
    call.kernel.become_clone(pid);
    {
        let (kernel, mut cx) = call.cx();
        kernel.mm.forked(&mut cx)?;
    }
    call.kernel.vforked = vfork;
    let parent_alt = call.kernel.task().signals.alt;
    if vfork && w.stack != 0 && parent_alt != AltStack::NONE {
        call.kernel.task().signals.alt = AltStack::NONE;
    }
    if vfork {
        call.kernel.mm.lent();
        call.vcpu.record_writes();
    }
    if w.stack != 0 {
        call.vcpu.state.gpr[gpr::RSP as usize] = w.stack;
    }
    if w.flags & CLONE_SETTLS != 0 {
        call.vcpu.state.seg[seg::FS].base = w.tls;
    }
    if w.flags & CLONE_CHILD_CLEARTID != 0 {
        call.kernel.task().clear_tid = w.child_tid;
    }
    if w.flags & CLONE_CHILD_SETTID != 0 {
        call.write_user(w.child_tid, &(pid as u32).to_le_bytes())?;
    }
    DONE
}

/// Waits until the vfork child lets go, and takes over what it did to the memory that is this process's, too.
fn await_vfork(call: &mut Call<'_, '_>) -> Result<(), Error> {
    loop {
        let wait = HostCall {
            nr: machine_call::VFORK_WAIT,
            args: [0; 6],
        };
        let out = &mut *call.out;
        let told = call
            .kernel
            .unlocked(call.vcpu, |vcpu| out.host_call(vcpu, &wait))?;
        let Some(len) = usize::try_from(told).ok().filter(|len| *len > 0) else {
            return Ok(());
        };
        let mut bytes = vec![0; len.min(call.out.bounce_len())];
        call.out.bounce_read(call.vcpu, 0, &mut bytes)?;
        let changes: Option<Vec<Change>> =
            bytes.chunks(Change::LEN).map(Change::from_bytes).collect();
        let Some(changes) = changes else {
            return Err(Error::Protocol {
                what: "what a vfork child did to its memory".into(),
            });
        };
        // Entries go that other threads use.
        let mine = call.vcpu.begin_exclusive();
        let taken = {
            let (kernel, mut cx) = call.cx();
            kernel.mm.take_back(&mut cx, &changes)
        };
        if mine {
            call.vcpu.end_exclusive();
        }
        let list: Vec<u8> = taken?.iter().flat_map(|gpa| gpa.0.to_le_bytes()).collect();
        call.out.bounce_write(call.vcpu, 0, &list)?;
        call.host(
            machine_call::VFORK_TAKE,
            [list.len() as u64 / 8, 0, 0, 0, 0, 0],
        )?;
    }
}

impl Locked<'_> {
    /// A vfork child ends or becomes another program: what it changed of the memory it shares with its
    /// parent goes there, and the parent goes on.
    ///
    /// # Errors
    /// The machine can't go on.
    pub fn leave_vfork(&mut self, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
        if !std::mem::take(&mut self.vforked) {
            return Ok(());
        }
        let pages = vcpu.recorded_writes();
        let changes = self.mm.give_back(&mut Cx { vcpu, out }, &pages)?;
        let most = out.bounce_len() / Change::LEN;
        for chunk in changes.chunks(most.max(1)) {
            let bytes: Vec<u8> = chunk.iter().flat_map(Change::to_bytes).collect();
            let frames = chunk.iter().filter_map(|change| match change {
                Change::Page(_, gpa) => Some(gpa.0.to_le_bytes()),
                _ => None,
            });
            let frames: Vec<u8> = frames.flatten().collect();
            for (nr, data, unit) in [
                (machine_call::VFORK_TELL, &bytes, 1),
                (machine_call::VFORK_GIVE, &frames, 8),
            ] {
                out.bounce_write(vcpu, 0, data)?;
                let give = HostCall {
                    nr,
                    args: [(data.len() / unit) as u64, 0, 0, 0, 0, 0],
                };
                out.host_call(vcpu, &give)?;
            }
        }
        let done = HostCall {
            nr: machine_call::VFORK_DONE,
            args: [0; 6],
        };
        out.host_call(vcpu, &done)?;
        Ok(())
    }
}
