//! execve(2): another program in the same machine. The address space is emptied and filled again; page
//! tables, accepted frames and the machine's measurement stay what they are.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sevlab_cpu::CpuState;
use sevlab_cpu::state::gpr;

use super::marshal::{GUEST_FDS, PATH_MAX};
use super::{Call, Sys, SysResult, timers};
use crate::doorbell::Deadline;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::image::{Program, Source};
use crate::kernel::mm::{Cx, File, Hw, USER_END};
use crate::kernel::signal::{
    Action, AltStack, SIG_IGN, SIGCHLD, SIGKILL, SIGTSTP, SIGTTIN, SIGTTOU,
};
use crate::kernel::{GuestEnd, comm_of};

/// Most bytes of arguments and environment together (Linux: a quarter of the stack's limit).
const ARGS_MAX: usize = 2 << 20;
const AT_FDCWD: u64 = -100i64 as u64;
const AT_EMPTY_PATH: u64 = 0x1000;
const O_PATHLESS: u64 = 0o2_000_000; // O_RDONLY | O_CLOEXEC
const X_OK: u64 = 1;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

/// execve(2).
///
/// # Errors
/// As Linux.
pub fn execve(call: &mut Call<'_, '_>) -> SysResult {
    let [path, argv, envp, ..] = call.args;
    let path = call.read_path(path)?;
    execute(call, path, argv, envp)
}

/// execveat(2).
///
/// # Errors
/// As Linux.
pub fn execveat(call: &mut Call<'_, '_>) -> SysResult {
    let [dir, path, argv, envp, flags, _] = call.args;
    let mut path = call.read_path(path)?;
    if flags & !(AT_EMPTY_PATH | 0x100) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let fd = dir as u32 as i32;
    if path == [0] {
        if flags & AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT.into());
        }
        path = format!("/proc/self/fd/{fd}\0").into_bytes();
    } else if path[0] != b'/' && fd != AT_FDCWD as i32 {
        let mut whole = format!("/proc/self/fd/{fd}/").into_bytes();
        whole.extend(path);
        path = whole;
    }
    execute(call, path, argv, envp)
}

fn execute(call: &mut Call<'_, '_>, path: Vec<u8>, argv: u64, envp: u64) -> SysResult {
    let mut left = ARGS_MAX;
    let argv = strings(call, argv, &mut left)?;
    let envp = strings(call, envp, &mut left)?;
    let mut path = path;
    path.pop(); // its NUL
    if path.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    let exe = PathBuf::from(std::ffi::OsString::from_vec(path));
    let program = {
        let mut opener = Opener { errno: None };
        let (_, mut cx) = call.cx();
        let found = opener.find(&mut cx, &exe, &argv);
        match (found, opener.errno) {
            (Ok(program), _) => program,
            (Err(_), Some(errno)) => return Err(errno.into()),
            (Err(Error::Elf(e)), None) => {
                tracing::debug!("execve: {e}");
                return Err(Errno::ENOEXEC.into());
            }
            (Err(e), None) => return Err(e.into()),
        }
    };
    end_other_threads(call)?;

    // From here on there is no way back.
    close_on_exec(call)?;
    call.kernel.unhand(call.vcpu, call.out)?;
    call.kernel.leave_vfork(call.vcpu, call.out)?;
    for signo in [SIGCHLD, SIGTSTP, SIGTTIN, SIGTTOU] {
        if call.kernel.signals.action(signo).handler > SIG_IGN {
            call.tell_host(signo, &Action::default())?;
        }
    }
    timers::delete_all(call)?;
    let random = call.random_bytes()?;
    let (kernel, mut cx) = call.cx();
    kernel.template.set_random(random);
    let template = kernel.template.clone();
    kernel.files.clear();
    kernel.mm.unmap(&mut cx, 0, USER_END)?;
    kernel.mm.stack_limit = kernel.limits[3][0].clamp(64 << 12, 120 << 20);
    let loaded = match program.load(&mut cx, &mut kernel.mm, &envp, &template) {
        Ok(loaded) => loaded,
        Err(e @ (Error::Memory { .. } | Error::Protocol { .. } | Error::NotMapped { .. })) => {
            return Err(e.into());
        }
        Err(e) => {
            tracing::error!("execve of {}: {e}", exe.display());
            return Ok(Sys::End(GuestEnd::Killed(SIGKILL)));
        }
    };
    cx.vcpu.flush_all();
    cx.vcpu.drop_all_code();
    start(&mut cx.vcpu.state, loaded.rip, loaded.rsp);
    let name = match exe.file_name() {
        Some(name) => PathBuf::from(name),
        None => program.exe.clone(),
    };
    kernel.exe = program.real_path();
    kernel.executed = true;
    kernel.argv = program.argv;
    kernel.envp = envp;
    kernel.auxv = loaded.auxv;
    kernel.signals.exec();
    let pid = kernel.pid;
    let slot = kernel.current;
    kernel.leader = slot;
    let task = kernel.task();
    task.comm = comm_of(&name);
    task.signals.alt = AltStack::NONE;
    task.robust = 0;
    task.clear_tid = 0;
    task.tid = pid.unwrap_or(task.tid);
    Ok(Sys::Restored)
}

/// The registers a program starts with.
fn start(state: &mut CpuState, rip: u64, rsp: u64) {
    let fresh = CpuState::process();
    state.gpr = [0; 16];
    state.gpr[gpr::RSP as usize] = rsp;
    state.rip = rip;
    state.cc = fresh.cc;
    state.rflags = fresh.rflags;
    state.mxcsr = fresh.mxcsr;
    state.xmm = fresh.xmm;
    state.ymmh = fresh.ymmh;
    state.seg = fresh.seg;
    state.fx = fresh.fx;
}

/// A list of strings, as argv and envp are.
fn strings(call: &mut Call<'_, '_>, mut at: u64, left: &mut usize) -> Result<Vec<Vec<u8>>, Fail> {
    let mut list = Vec::new();
    if at == 0 {
        return Ok(list);
    }
    loop {
        let va = call.read_u64(at)?;
        if va == 0 {
            return Ok(list);
        }
        let mut text = call.read_long_str(va, *left)?;
        text.pop();
        *left = left.checked_sub(text.len() + 9).ok_or(Errno::E2BIG)?;
        list.push(text);
        at = at.wrapping_add(8);
    }
}

/// The other threads end, and this one takes the process's id.
fn end_other_threads(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    if call.kernel.only.is_some() {
        return Err(Errno::EAGAIN.into()); // two at once: this thread is about to end
    }
    call.kernel.only = Some(call.kernel.slot());
    call.kernel.ring_others();
    while call.kernel.tasks().count() > 1 {
        if call.kernel.ending.is_some() {
            return Err(Errno::EAGAIN.into());
        }
        if call.kernel.in_turns {
            call.let_others_run();
            call.kernel.ring_others();
            continue;
        }
        // Whoever leaves rings. A signal must wait: this thread may be the only one that takes it.
        call.vcpu.state.exit_request.store(0, Ordering::SeqCst);
        call.await_ring(Deadline::Never)?;
    }
    call.kernel.only = None;
    Ok(())
}

/// Closes the descriptors that are marked so.
fn close_on_exec(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    call.out.bounce_write(call.vcpu, 0, b"/proc/self/fd\0")?;
    let flags = 0o200_000 | O_PATHLESS; // O_DIRECTORY
    let dir = call.host(257, [AT_FDCWD, 0, flags, 0, 0, 0])?;
    if dir < 0 {
        return Err(Errno(dir.unsigned_abs() as i32).into());
    }
    let mut fds = Vec::new();
    loop {
        let n = call.host(217, [dir as u64, 0, 4096, 0, 0, 0])?;
        if n <= 0 {
            break;
        }
        let mut entries = vec![0; (n as usize).min(4096)];
        call.out.bounce_read(call.vcpu, 0, &mut entries)?;
        let mut at = 0;
        while at + 19 < entries.len() {
            let len = usize::from(u16::from_le_bytes([entries[at + 16], entries[at + 17]]));
            let end = (at + len).min(entries.len());
            let name = entries.get(at + 19..end).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let number = std::str::from_utf8(name).ok().and_then(|s| s.parse().ok());
            if let Some(fd) = number.filter(|fd: &i32| *fd < GUEST_FDS) {
                fds.push(fd as u64);
            }
            at += len.max(1);
        }
    }
    call.host(3, [dir as u64, 0, 0, 0, 0, 0])?;
    for fd in fds.into_iter().filter(|fd| *fd != dir as u64) {
        let flags = call.host(72, [fd, 1, 0, 0, 0, 0])?; // F_GETFD
        if flags > 0 && flags & 1 != 0 {
            call.host(3, [fd, 0, 0, 0, 0, 0])?;
        }
    }
    Ok(())
}

/// Opens program files for [`Program::find`], and keeps why it could not.
struct Opener {
    errno: Option<Errno>,
}

impl Opener {
    fn find(&mut self, cx: &mut Cx<'_>, exe: &Path, argv: &[Vec<u8>]) -> Result<Program, Error> {
        Program::find(cx, exe, argv, &mut |hw, path| {
            let opened = open(hw, path)?;
            opened.map_err(|errno| {
                self.errno = Some(errno);
                Error::File {
                    path: path.to_owned(),
                    source: std::io::Error::from_raw_os_error(errno.0),
                }
            })
        })
    }
}

/// Opens a file that is to be executed, with a descriptor of the kernel's.
fn open(hw: &mut dyn Hw, path: &Path) -> Result<Result<Source, Errno>, Error> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.push(0);
    if name.len() > PATH_MAX {
        return Ok(Err(Errno::ENAMETOOLONG));
    }
    let errno = |ret: i64| Errno(ret.unsigned_abs() as i32);
    let ret = hw.host_with(&name, 21, [0, X_OK, 0, 0, 0, 0])?; // access
    if ret < 0 {
        return Ok(Err(errno(ret)));
    }
    let ret = hw.host_with(&name, 257, [AT_FDCWD, 0, O_PATHLESS, 0, 0, 0])?;
    if ret < 0 {
        return Ok(Err(errno(ret)));
    }
    let low = ret as u64;
    // What /proc calls it: the whole path, without links.
    let link = format!("/proc/self/fd/{low}\0");
    let n = hw.host_with(
        link.as_bytes(),
        89,
        [0, PATH_MAX as u64, PATH_MAX as u64, 0, 0, 0],
    )?;
    let mut name = vec![0; usize::try_from(n).unwrap_or(0).min(PATH_MAX)];
    hw.bounced(PATH_MAX, &mut name)?;
    let name = if name.is_empty() {
        path.to_string_lossy().into_owned()
    } else {
        String::from_utf8_lossy(&name).into_owned()
    };
    let high = hw.host_with(&[], 72, [low, 1030, GUEST_FDS as u64, 0, 0, 0])?;
    hw.host_with(&[], 3, [low, 0, 0, 0, 0, 0])?;
    let Ok(fd) = i32::try_from(high) else {
        return Ok(Err(errno(high)));
    };
    if fd < 0 {
        return Ok(Err(errno(high)));
    }
    let mut stat = [0; 144];
    hw.host_with(&[], 5, [fd as u64, 0, 0, 0, 0, 0])?;
    hw.bounced(0, &mut stat)?;
    let mode = u32::from_le_bytes([stat[24], stat[25], stat[26], stat[27]]);
    if mode & S_IFMT != S_IFREG {
        hw.close(fd)?;
        return Ok(Err(Errno::EACCES));
    }
    let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| stat[at + i]));
    let size = word(48);
    let file = Arc::new(File {
        fd,
        id: (word(0), word(8)),
        writable: false,
        name,
    });
    Ok(Ok(Source::File { file, size }))
}

impl Call<'_, '_> {
    /// Sixteen random bytes for a new program, as the host gives them.
    fn random_bytes(&mut self) -> Result<[u8; 16], Fail> {
        if let Some(sim) = &mut self.kernel.sim {
            let mut bytes = [0; 16];
            sim.random.fill(&mut bytes);
            return Ok(bytes);
        }
        self.host(318, [0, 16, 0, 0, 0, 0])?;
        let mut bytes = [0; 16];
        self.out.bounce_read(self.vcpu, 0, &mut bytes)?;
        Ok(bytes)
    }
}
