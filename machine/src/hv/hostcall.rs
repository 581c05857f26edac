#![allow(unsafe_code)] // host system calls on shared guest memory
//! Proxied system calls: the guest's VMMCALL with RAX = 0x5EB1 asks the host to execute one.
//!
//! The request block, in shared memory, is eight quadwords: number, six arguments, result. The
//! hypervisor copies it once; every pointer is an offset into the bounce area and is checked by the
//! table that both halves share, so the host kernel only ever sees addresses inside that area.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use sevlab_arch::vmsa::Vmsa;
use sevlab_arch::{Gpa, PAGE_SIZE, Spa};
use sevlab_cpu::{SevMode, Vcpu};
use sevlab_memctl::{Domain, Error as MemError, MemCtl};
use zerocopy::{FromZeros, IntoBytes};

use super::{Hypervisor, ids, window};
use crate::doorbell::{Deadline, Doorbell, host_clock, interruptible};
use crate::error::Error;
use crate::host;
use crate::kernel::outside::{
    AT_ONCE, HostCall, INTERRUPTIBLE, WOULD_SLEEP, WindowCall, machine_call,
};
use crate::kernel::signal::STOP_SIGNALS;
use crate::kernel::syscall::marshal;
use crate::layout::Layout;
use crate::pids::Pids;

/// RAX of the hypercall.
pub const NUMBER: u64 = 0x5eb1;
/// Bytes of a request block.
pub const BLOCK: u64 = 64;
/// Offset of the result in it.
pub const RESULT: u64 = 56;
/// RAX after a call that was executed (whatever its own result).
pub const DONE: u64 = 0;
/// RAX after a request block that is not where it may be.
pub const BAD_BLOCK: u64 = 1;

/// The executor of proxied system calls.
pub struct HostCalls {
    mem: Arc<MemCtl>,
    layout: Layout,
    /// The bounce area as the host sees it: contiguous, as DRAM is.
    bounce: Option<NonNull<u8>>,
    bounce_len: usize,
    /// What ends a call that sleeps.
    doorbell: Arc<Doorbell>,
    /// What the guest calls processes and threads, if that is not what the host calls them.
    pub(crate) pids: Option<Arc<Pids>>,
    /// Calls executed.
    pub executed: u64,
    /// Calls refused by the table.
    pub refused: u64,
}

impl HostCalls {
    /// Calls on the bounce area of vCPU `cpu`.
    ///
    /// # Errors
    /// The area does not lie in DRAM.
    pub fn new(mem: Arc<MemCtl>, layout: Layout, cpu: usize) -> Result<Self, MemError> {
        let port = layout.port(cpu);
        let len = port.bounce_len;
        let mut bounce = None;
        if let Some(start) = layout.shared_spa(port.bounce, len) {
            for offset in (0..len).step_by(PAGE_SIZE as usize) {
                // Each page, so that a sparse dump knows that the host may write there.
                let page = mem.host_page(Domain::Shared, start.plus(offset), true)?;
                bounce = bounce.or(page);
            }
        }
        Ok(Self {
            mem,
            layout,
            bounce,
            bounce_len: len as usize,
            doorbell: Arc::default(),
            pids: None,
            executed: 0,
            refused: 0,
        })
    }

    /// From now on this ends calls that sleep.
    pub(crate) fn interrupted_by(&mut self, doorbell: Arc<Doorbell>) {
        self.doorbell = doorbell;
    }

    /// The vCPU's doorbell.
    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// The first bytes of the bounce area.
    pub(super) fn bounced(&self, out: &mut [u8]) {
        if let Some(area) = self.bounce {
            let n = out.len().min(self.bounce_len);
            // SAFETY: as in `call`.
            let bounce = unsafe { std::slice::from_raw_parts(area.as_ptr(), n) };
            out[..n].copy_from_slice(bounce);
        }
    }

    /// Puts bytes at the start of the bounce area.
    pub(super) fn bounce(&self, data: &[u8]) {
        if let Some(area) = self.bounce {
            let n = data.len().min(self.bounce_len);
            // SAFETY: as in `call`.
            let bounce = unsafe { std::slice::from_raw_parts_mut(area.as_ptr(), n) };
            bounce.copy_from_slice(&data[..n]);
        }
    }

    /// The request block at `gpa`, and where it is; `None` if it is not where it may be.
    fn request(&self, gpa: Gpa) -> Result<Option<(Spa, HostCall)>, MemError> {
        let Some(at) = self.layout.shared_spa(gpa, BLOCK) else {
            return Ok(None);
        };
        let mut block = [0u64; 7];
        self.mem.read(Domain::Shared, at, block.as_mut_bytes())?;
        let [nr, args @ ..] = block;
        let call = HostCall {
            nr: nr as i64,
            args,
        };
        Ok(Some((at, call)))
    }

    /// Executes a system call; `request` ends it if it sleeps.
    fn call(&mut self, request: Option<&AtomicU32>, call: &HostCall) -> i64 {
        let Some(area) = self.bounce else {
            return -i64::from(libc::ENOMEM);
        };
        let len = self.bounce_len;
        // SAFETY: the area is `len` bytes of the DRAM mapping, contiguous as system physical memory
        // is, alive as long as `self.mem`; its vCPU does not run meanwhile, and no other reference
        // into DRAM exists (the memory controller works with raw pointers).
        let bounce = unsafe { std::slice::from_raw_parts_mut(area.as_ptr(), len) };
        let mut outer = *call;
        let call = &mut outer;
        if let Some(pids) = &self.pids {
            ids::outward(pids, call, bounce);
        }
        let host = match marshal::check_for(call, bounce, self.pids.as_deref()) {
            Ok(host) => host,
            Err(errno) => {
                self.refused += 1;
                return errno.ret();
            }
        };
        self.executed += 1;
        let a = &host.args;
        if let Some(request) = request {
            // SAFETY: as below.
            let ret = self
                .doorbell
                .asleep(|| unsafe { interruptible(request, call.nr, a) });
            if ret >= 0 {
                host.complete(bounce);
            }
            return self.inward(call, ret, bounce);
        }
        // SAFETY: the table admitted the call and its arguments: pointers are null, or lie inside
        // the bounce area (or `host`) for as many bytes as the host kernel may touch, and none of the
        // admitted calls changes this process's memory map or control flow.
        let ret = unsafe { libc::syscall(call.nr, a[0], a[1], a[2], a[3], a[4], a[5]) };
        if ret == -1 {
            let errno = std::io::Error::last_os_error().raw_os_error();
            return -i64::from(errno.unwrap_or(libc::EIO));
        }
        host.complete(bounce);
        self.inward(call, ret, bounce)
    }

    fn inward(&self, call: &HostCall, ret: i64, bounce: &mut [u8]) -> i64 {
        match &self.pids {
            Some(pids) => ids::inward(pids, call, ret, bounce),
            None => ret,
        }
    }
}

/// Whether a system call may sleep until something happens elsewhere, so that a signal must be able to
/// end it.
pub fn sleeps(nr: i64) -> bool {
    // read, write, open, poll, pread64, pwrite64, readv, writev, select, nanosleep, sendfile, connect, accept,
    // sendto, recvfrom, sendmsg, recvmsg, wait4, fcntl, flock, futex, semop, msgsnd, msgrcv, clock_nanosleep,
    // epoll_wait, waitid, openat, pselect6, ppoll, splice, tee, epoll_pwait, accept4, preadv, pwritev, recvmmsg,
    // sendmmsg, copy_file_range, epoll_pwait2, semtimedop
    matches!(
        nr,
        0 | 1
            | 2
            | 7
            | 17..=20
            | 23
            | 35
            | 40
            | 42..=47
            | 61
            | 65
            | 69
            | 70
            | 72
            | 73
            | 202
            | 220
            | 230
            | 232
            | 247
            | 257
            | 270
            | 271
            | 275
            | 276
            | 281
            | 288
            | 295
            | 296
            | 299
            | 307
            | 326
            | 437
            | 441
    )
}

/// Longest write to a pipe or socket with room that does not sleep half-way (`PIPE_BUF`).
const WRITE_AT_ONCE: u64 = 4096;

/// Whether a call that may sleep was told not to, or works on files alone.
fn never_sleeps(call: &HostCall) -> bool {
    let flags = |fd: u64| {
        // SAFETY: no memory.
        unsafe { libc::fcntl(fd as i32, libc::F_GETFL) }
    };
    let dont_wait = match call.nr {
        44 | 45 | 299 | 307 => call.args[3],
        46 | 47 => call.args[2],
        _ => 0,
    };
    if dont_wait & libc::MSG_DONTWAIT as u64 != 0 {
        return true;
    }
    match call.nr {
        0 | 1 | 17..=20 | 42..=47 | 288 | 295 | 296 | 299 | 307 => {
            let flags = flags(call.args[0]);
            // An error comes at once, too.
            flags < 0 || flags & libc::O_NONBLOCK != 0
        }
        73 => call.args[1] & libc::LOCK_NB as u64 != 0,
        40 => [call.args[0], call.args[1]].iter().all(|fd| is_file(*fd)),
        326 => true,
        _ => false,
    }
}

/// Whether a descriptor is that of a regular file.
fn is_file(fd: u64) -> bool {
    // SAFETY: zeroed is a value of `stat`, and it is live.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let known = libc::fstat(fd as i32, &raw mut stat) == 0;
        known && stat.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// Whether a write is so long that it may sleep although there is room.
fn may_stop_half_way(call: &HostCall) -> bool {
    if call.nr != 1 || call.args[2] <= WRITE_AT_ONCE {
        return false;
    }
    // SAFETY: zeroed is a value of `stat`, and it is live.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let known = libc::fstat(call.args[0] as i32, &raw mut stat) == 0;
        known && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK)
    }
}

impl HostCalls {
    /// Whether a child's state can be had at once: `wait4` or `waitid`.
    fn child_ready(&self, mut call: HostCall) -> bool {
        if let Some(pids) = &self.pids {
            ids::outward(pids, &mut call, &mut []);
        }
        child_ready(&call)
    }
}

/// Whether a child's state can be had at once: `wait4` or `waitid`.
fn child_ready(call: &HostCall) -> bool {
    let [kind, id, options] = match (call.nr, call.args[0] as i32) {
        (61, -1) => [libc::P_ALL as u64, 0, call.args[2]],
        (61, 0) => [libc::P_PGID as u64, 0, call.args[2]],
        (61, n @ 1..) => [libc::P_PID as u64, n as u64, call.args[2]],
        (61, n) => [
            libc::P_PGID as u64,
            u64::from(n.unsigned_abs()),
            call.args[2],
        ],
        _ => [call.args[0], call.args[1], call.args[3]],
    };
    let mut options = options as i32;
    if call.nr == 61 {
        options |= libc::WEXITED;
    }
    // SAFETY: zeroed is a value of `siginfo_t`, and it is live.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let look = options | libc::WNOHANG | libc::WNOWAIT;
        let ret = libc::waitid(kind as libc::idtype_t, id as u32, &raw mut info, look);
        ret != 0 || options & libc::WNOHANG != 0 || info.si_pid() != 0
    }
}

/// Whether a call that may sleep will not: the descriptor that it reads or writes is ready, or is a file.
/// In turns a vCPU keeps its turn then.
fn ready(call: &HostCall) -> bool {
    let events = match call.nr {
        0 | 17 | 19 | 43 | 45 | 47 | 288 | 295 => libc::POLLIN,
        1 | 18 | 20 | 44 | 46 | 296 => libc::POLLOUT,
        2 | 72 | 73 | 257 | 437 => return true,
        _ => return false,
    };
    let mut poll = libc::pollfd {
        fd: call.args[0] as i32,
        events,
        revents: 0,
    };
    // SAFETY: one live entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) != 0 }
}

impl Hypervisor {
    /// Answers the hypercall whose request block is at `gpa`; returns its RAX.
    ///
    /// # Errors
    /// Shared memory can't be reached, or the guest can't go on.
    pub(super) fn hypercall(&mut self, vcpu: &mut Vcpu, gpa: Gpa) -> Result<u64, Error> {
        let Some((at, call)) = self.calls.request(gpa)? else {
            return Ok(BAD_BLOCK);
        };
        let result = if call.nr < 0 {
            self.machine_call(vcpu, &call)?
        } else {
            let sleeper = call.nr & INTERRUPTIBLE != 0;
            let at_once = call.nr & AT_ONCE != 0;
            let call = HostCall {
                nr: call.nr & !(INTERRUPTIBLE | AT_ONCE),
                ..call
            };
            if self.time.is_some() && sleeper {
                let sleeps = match call.nr {
                    61 | 247 => !self.calls.child_ready(call),
                    _ => !never_sleeps(&call) && !ready(&call),
                };
                if sleeps && at_once {
                    return self.answer_call(at, WOULD_SLEEP);
                }
                if sleeps || may_stop_half_way(&call) {
                    vcpu.give_turn();
                    self.waited = true;
                }
            } else if sleeper && vcpu.cluster().in_turns() && !ready(&call) {
                vcpu.give_turn();
            }
            let request = Some(&vcpu.state.exit_request).filter(|_| sleeper);
            self.calls.call(request, &call)
        };
        self.answer_call(at, result)
    }

    fn answer_call(&self, at: Spa, result: i64) -> Result<u64, Error> {
        self.mem
            .write(Domain::Shared, at.plus(RESULT), &result.to_le_bytes())?;
        Ok(DONE)
    }

    /// What a guest asks of the machine itself.
    fn machine_call(&mut self, vcpu: &mut Vcpu, call: &HostCall) -> Result<i64, Error> {
        let a = call.args;
        Ok(match call.nr {
            machine_call::IDLE => {
                let until = Deadline::decode([a[1], a[2]]);
                let bell = self.calls.doorbell();
                bell.halt(true);
                vcpu.give_turn();
                let rung = bell.wait(&vcpu.state.exit_request, a[0] as u32, until);
                vcpu.join_queue();
                bell.halt(false);
                i64::from(rung)
            }
            machine_call::HALT => match self.time.clone() {
                Some(time) => self.halt(vcpu, &time, a),
                None => -i64::from(libc::ENOSYS),
            },
            machine_call::START => {
                let Some(board) = self.board.clone() else {
                    return Ok(-i64::from(libc::EAGAIN));
                };
                let cpu = a[0] as usize;
                let start = match self.mode {
                    SevMode::Off | SevMode::Sev => {
                        let mut image = Box::new(Vmsa::new_zeroed());
                        self.calls.bounced(image.as_mut_bytes());
                        Start::Registers(image)
                    }
                    SevMode::Es => match self.layout.spa(Gpa(a[1])) {
                        Some(spa) => Start::SaveArea(spa),
                        None => return Ok(-i64::from(libc::EINVAL)),
                    },
                    SevMode::Snp => match self.take_created(a[0] as u32) {
                        Some(spa) => Start::SaveArea(spa),
                        None => return Ok(-i64::from(libc::EINVAL)),
                    },
                };
                let tid = board.start(vcpu, cpu, start);
                match &self.calls.pids {
                    Some(pids) => pids.made(tid),
                    None => tid,
                }
            }
            machine_call::FORK => match self.board.clone() {
                Some(board) => self.fork(&*board, vcpu, a[0] != 0),
                None => -i64::from(libc::EAGAIN),
            },
            machine_call::FUTEX => self.futex(vcpu, a),
            machine_call::BLOCK => host::block(a[0] & STOP_SIGNALS),
            machine_call::ACTION => host::action(a[0] as i32, a[1], a[2]),
            machine_call::STOP => host::stop(a[0] as i32),
            machine_call::VFORK_WAIT => {
                vcpu.give_turn();
                self.waited = true;
                self.vfork_wait()
            }
            machine_call::VFORK_TELL => self.vfork_tell(a[0]),
            machine_call::VFORK_GIVE => self.vfork_give(a[0]),
            machine_call::VFORK_TAKE => self.vfork_take(a[0]),
            machine_call::VFORK_DONE => {
                self.clone_pipe = None;
                0
            }
            _ => match WindowCall::decode(call) {
                Some(call) => self.window_call(vcpu, &call)?,
                None => -i64::from(libc::ENOSYS),
            },
        })
    }
}

/// Commands of futex(2) whose fourth argument is a time limit: WAIT, LOCK_PI, WAIT_BITSET, LOCK_PI2.
const FUTEX_TIMED: [u64; 4] = [0, 6, 9, 13];
/// Commands of futex(2) with a second word: REQUEUE, CMP_REQUEUE, WAKE_OP.
const FUTEX_SECOND: [u64; 3] = [3, 4, 5];
/// `FUTEX_CLOCK_REALTIME`.
const FUTEX_CLOCK: u64 = 256;

impl Hypervisor {
    /// futex(2) on words of the file window, which other processes may map too.
    fn futex(&mut self, vcpu: &Vcpu, a: [u64; 6]) -> i64 {
        let word = |gpa: u64| {
            let found = window::host_ptr(&self.mem, &self.layout, Gpa(gpa), 4);
            found.filter(|_| gpa.is_multiple_of(4))
        };
        let invalid = -i64::from(libc::EINVAL);
        let command = a[1] & 127;
        let Some(first) = word(a[0]) else {
            return invalid;
        };
        let mut args = [
            first.as_ptr() as u64,
            command | a[1] & FUTEX_CLOCK,
            a[2],
            a[3],
            0,
            a[5],
        ];
        let timed = FUTEX_TIMED.contains(&command);
        let mut time = [0u64; 2];
        if FUTEX_SECOND.contains(&command) {
            let Some(second) = word(a[4]) else {
                return invalid;
            };
            args[4] = second.as_ptr() as u64;
        } else if timed && a[3] == 0 {
            self.calls.bounced(time.as_mut_bytes());
            if self.time.is_some() && command != 0 {
                // How long from now, where the host wants to know until when.
                let clock = if command == 6 {
                    libc::CLOCK_REALTIME
                } else {
                    libc::CLOCK_MONOTONIC
                };
                let wait = Duration::new(time[0], (time[1] % 1_000_000_000) as u32);
                let until = host_clock(clock).saturating_add(wait);
                time = [until.as_secs(), u64::from(until.subsec_nanos())];
            }
            args[3] = time.as_ptr() as u64;
        } else {
            args[3] = 0;
        }
        if !timed {
            // Nothing ends a wake-up half-way.
            let never = AtomicU32::new(0);
            // SAFETY: as below.
            return unsafe { interruptible(&never, libc::SYS_futex, &args) };
        }
        vcpu.give_turn();
        self.waited = true;
        let request = &vcpu.state.exit_request;
        let bell = self.calls.doorbell();
        // SAFETY: the words lie in the window, the time here; the commands touch nothing else.
        bell.asleep(|| unsafe { interruptible(request, libc::SYS_futex, &args) })
    }
}

/// What a new vCPU starts from.
pub enum Start {
    /// These registers, which the hypervisor may know.
    Registers(Box<Vmsa>),
    /// The encrypted save area at this address.
    SaveArea(Spa),
}

/// What concerns the machine as a whole: other vCPUs, and its clones.
pub trait Board: Send + Sync {
    /// Starts vCPU `cpu` on a host thread of its own; its host thread id, or `-errno`.
    fn start(self: Arc<Self>, vcpu: &Vcpu, cpu: usize, start: Start) -> i64;
    /// Clones the machine: 0 in the clone, its host process id in the original, or `-errno`. No other
    /// vCPU runs guest code meanwhile, and none exists in the clone.
    fn fork(&self, vcpu: &mut Vcpu, cpu: usize) -> i64;
}
