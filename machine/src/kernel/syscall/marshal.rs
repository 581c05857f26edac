//! Pointer arguments across the fence: guest addresses to bounce offsets, and back to host addresses.
//!
//! Both directions read the same [`Row`], so they can't disagree about what an argument is.
//!
//! - [`stage`] (guest half) copies what the host kernel will read into the bounce area and gives a
//!   [`HostCall`] whose pointers are offsets; [`finish`] copies results to the guest's memory.
//! - [`check`] (hypervisor half) refuses every call the table does not describe, and every pointer
//!   that does not lie inside the bounce area with its full length.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use std::sync::atomic::Ordering;

use super::Call;
use super::ioctl::{self, IoctlArg};
use super::system::host_option;
use super::table::{Arg, Len, Row, row};
use super::timers::{SIGEV_NONE, SIGEV_SIGNAL, SIGEVENT, WAKE};
use crate::hv::hostcall::sleeps;
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::outside::{HostCall, INTERRUPTIBLE, NULL, machine_call};
use crate::pids::Pids;

/// Longest path with its NUL.
pub const PATH_MAX: usize = 4096;
/// Descriptors below this are the guest's.
pub const GUEST_FDS: i32 = 1000;
/// Descriptors from [`GUEST_FDS`] up to this are the guest kernel's (files behind mappings). The
/// host keeps its own at or above this number.
pub const KERNEL_FDS_END: i32 = 9000;
/// Bytes at the end of the bounce area for a time limit that is not the guest's own.
pub const LIMIT_ROOM: usize = 16;
/// Largest control area of a message.
const CONTROL_MAX: u64 = 16 << 10;
/// Largest `socklen_t` the kernel passes on.
const SOCKLEN_MAX: u32 = 4096;
const AT_FDCWD: i32 = -100;

/// A message in the bounce area: `struct msghdr` with one flat buffer. Pointers are bounce offsets.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireMsg {
    /// Offset of the address, or [`NULL`].
    pub name: u64,
    /// Bytes of the address.
    pub name_len: u64,
    /// Offset of the data.
    pub data: u64,
    /// Bytes of data.
    pub data_len: u64,
    /// Offset of the control area, or [`NULL`].
    pub control: u64,
    /// Bytes of the control area.
    pub control_len: u64,
    /// `msg_flags`, filled when receiving.
    pub flags: u64,
}
const WIRE_MSG: usize = size_of::<WireMsg>();

/// Who accesses a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dir {
    In,
    Out,
    OutRet(u32),
    InOut,
}

/// What an argument is once the others are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Int,
    Fd { cwd: bool },
    Path,
    Buf(Dir, Len),
    Null,
    Msg { send: bool },
}

/// The one place where an argument's description meets its call's numbers.
fn shape(arg: Arg, args: &[u64; 6]) -> Result<Shape, Errno> {
    Ok(match arg {
        Arg::Int => Shape::Int,
        Arg::Fd => Shape::Fd { cwd: false },
        Arg::DirFd => Shape::Fd { cwd: true },
        Arg::Path => Shape::Path,
        Arg::In(l) => Shape::Buf(Dir::In, l),
        Arg::Out(l) => Shape::Buf(Dir::Out, l),
        Arg::OutRet(l, unit) => Shape::Buf(Dir::OutRet(unit), l),
        Arg::InOut(l) => Shape::Buf(Dir::InOut, l),
        Arg::Null => Shape::Null,
        Arg::MsgIn => Shape::Msg { send: true },
        Arg::MsgOut => Shape::Msg { send: false },
        Arg::Ioctl => ioctl(args[1] as u32)?,
        Arg::Fcntl => fcntl(args[1] as u32)?,
        Arg::PrctlArg => prctl(args[0] as u32)?,
        Arg::Event => Shape::Buf(Dir::In, Len::Bytes(SIGEVENT as u32)),
    })
}

/// Requests of `ioctl` by what their argument is.
fn ioctl(request: u32) -> Result<Shape, Errno> {
    let buf = |d, n| Shape::Buf(d, Len::Bytes(n));
    Ok(match ioctl::argument(request)? {
        IoctlArg::Int => Shape::Int,
        IoctlArg::Fd => Shape::Fd { cwd: false },
        IoctlArg::In(n) => buf(Dir::In, n),
        IoctlArg::Out(n) => buf(Dir::Out, n),
        IoctlArg::InOut(n) => buf(Dir::InOut, n),
    })
}

/// Options of `prctl` by what their argument is.
fn prctl(option: u32) -> Result<Shape, Errno> {
    match host_option(option) {
        Some(true) => Ok(Shape::Buf(Dir::Out, Len::Bytes(4))),
        Some(false) => Ok(Shape::Int),
        None => Err(Errno::EINVAL),
    }
}

/// Commands of `fcntl` by what their argument is.
fn fcntl(command: u32) -> Result<Shape, Errno> {
    match command {
        0..=4 | 8..=11 | 1024..=1026 | 1030..=1034 => Ok(Shape::Int),
        1027 => Ok(Shape::Fd { cwd: false }), // F_DUPFD_QUERY
        1028 => Ok(Shape::Int),               // F_CREATED_QUERY
        1035 | 1037 => Ok(Shape::Buf(Dir::Out, Len::Bytes(8))), // F_GET_RW_HINT, F_GET_FILE_RW_HINT
        1036 | 1038 => Ok(Shape::Buf(Dir::In, Len::Bytes(8))), // F_SET_RW_HINT, F_SET_FILE_RW_HINT
        5 | 36 => Ok(Shape::Buf(Dir::InOut, Len::Bytes(32))), // F_GETLK, F_OFD_GETLK
        6 | 7 | 37 | 38 => Ok(Shape::Buf(Dir::In, Len::Bytes(32))), // F_SETLK(W), F_OFD_SETLK(W)
        15 => Ok(Shape::Buf(Dir::In, Len::Bytes(8))), // F_SETOWN_EX
        16 => Ok(Shape::Buf(Dir::Out, Len::Bytes(8))), // F_GETOWN_EX
        _ => Err(Errno::EINVAL),
    }
}

/// A length in bytes; `via` reads the word behind a pointer argument.
fn length<E>(
    len: Len,
    args: &[u64; 6],
    via: impl FnOnce(u64) -> Result<u32, E>,
) -> Result<Option<u64>, E> {
    Ok(match len {
        Len::Bytes(n) => Some(u64::from(n)),
        Len::Arg(i) => Some(args[usize::from(i)]),
        Len::Times(i, size) => u64::from(args[usize::from(i)] as u32).checked_mul(u64::from(size)),
        Len::Bits(i) => {
            let bits = args[usize::from(i)] as u32 as i32;
            u64::try_from(bits).ok().map(|b| b.div_ceil(64) * 8)
        }
        Len::Via(i) => Some(u64::from(via(args[usize::from(i)])?)),
    })
}

// ---------------------------------------------------------------- the guest half

/// What [`finish`] has to copy back.
#[derive(Clone, Copy, Debug)]
struct Back {
    off: usize,
    va: u64,
    len: usize,
    dir: Dir,
    /// For a buffer whose length is behind a pointer: that word's offset.
    via: Option<usize>,
}

/// A call whose pointer arguments are in the bounce area.
pub struct Staged {
    /// What the host is asked.
    pub call: HostCall,
    backs: [Option<Back>; 6],
    message: Option<(u64, WireMsg, GuestMsg)>,
}

/// The guest's `struct msghdr`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct GuestMsg {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_len: u64,
    control: u64,
    control_len: u64,
    flags: u64,
}

struct Room {
    next: usize,
    len: usize,
}
impl Room {
    fn take(&mut self, bytes: u64) -> Result<usize, Errno> {
        let at = self.next;
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let end = at.checked_add(bytes).ok_or(Errno::EINVAL)?;
        if end > self.len {
            return Err(Errno::EINVAL);
        }
        self.next = end.next_multiple_of(16);
        Ok(at)
    }
}

/// Where in a control area the descriptors are that it carries (`SCM_RIGHTS`).
#[must_use]
pub fn rights(control: &[u8]) -> Vec<usize> {
    const HEADER: usize = 16;
    const SCM_RIGHTS: (u32, u32) = (1, 1); // SOL_SOCKET
    let half = |at: usize| u32::from_le_bytes(core::array::from_fn(|i| control[at + i]));
    let (mut at, mut found) = (0, Vec::new());
    while at + HEADER <= control.len() {
        let len = u64::from_le_bytes(core::array::from_fn(|i| control[at + i]));
        let left = control.len() - at;
        let Some(len) = usize::try_from(len)
            .ok()
            .filter(|n| (HEADER..=left).contains(n))
        else {
            break;
        };
        if (half(at + 8), half(at + 12)) == SCM_RIGHTS {
            found.extend(
                (at + HEADER..at + len)
                    .step_by(4)
                    .filter(|o| o + 4 <= at + len),
            );
        }
        at += len.next_multiple_of(8);
    }
    found
}

/// Whether every descriptor that a control area carries lies below `end`.
fn only_rights_to(control: &[u8], end: i32) -> bool {
    rights(control).into_iter().all(|at| {
        let fd = i32::from_le_bytes(core::array::from_fn(|i| control[at + i]));
        fd < end
    })
}

/// Whether the guest may name this descriptor. Negative ones are the host's to refuse.
#[must_use]
pub fn guest_fd(value: u64) -> bool {
    (value as u32 as i32) < GUEST_FDS
}

/// Guest half: copies in what the host will read and turns pointers into offsets.
///
/// # Errors
/// EFAULT for guest memory that is not there, EBADF for a descriptor that is not the guest's, EINVAL
/// for what does not fit; or the machine failed.
pub fn stage(call: &mut Call<'_, '_>, row: &Row, args: &[u64; 6]) -> Result<Staged, Fail> {
    let mut room = Room {
        next: 0,
        len: call.out.bounce_len(),
    };
    if call.kernel.sim.is_some() {
        room.len -= LIMIT_ROOM;
    }
    let mut staged = Staged {
        call: HostCall {
            nr: row.nr,
            args: *args,
        },
        backs: [None; 6],
        message: None,
    };
    for i in 0..6 {
        let value = args[i];
        match shape(row.args[i], args)? {
            Shape::Int => {}
            Shape::Fd { .. } => {
                if !guest_fd(value) {
                    return Err(Errno::EBADF.into());
                }
            }
            Shape::Null => staged.call.args[i] = NULL,
            _ if value == 0 => staged.call.args[i] = NULL,
            Shape::Path => {
                let text = call.read_path(value)?;
                let off = room.take(text.len() as u64)?;
                call.out.bounce_write(call.vcpu, off, &text)?;
                staged.call.args[i] = off as u64;
            }
            Shape::Buf(dir, len) => {
                let n = length(len, args, |va| -> Result<u32, Fail> {
                    Ok(call.read_u32(va)?.min(SOCKLEN_MAX))
                })?
                .ok_or(Errno::EINVAL)?;
                let off = room.take(n)?;
                let n = n as usize;
                if matches!(dir, Dir::In | Dir::InOut) && n > 0 {
                    let mut data = core::mem::take(&mut call.kernel.scratch);
                    data.clear();
                    data.resize(n, 0);
                    let got = call
                        .read_user(value, &mut data)
                        .and_then(|()| Ok(call.out.bounce_write(call.vcpu, off, &data)?));
                    call.kernel.scratch = data;
                    got?;
                }
                staged.call.args[i] = off as u64;
                if dir != Dir::In {
                    let via = match len {
                        Len::Via(_) => Some(0), // the word's own offset is known only later
                        _ => None,
                    };
                    staged.backs[i] = Some(Back {
                        off,
                        va: value,
                        len: n,
                        dir,
                        via,
                    });
                }
            }
            Shape::Msg { send } => stage_message(call, &mut room, &mut staged, i, value, send)?,
        }
    }
    for i in 0..6 {
        if let (Some(back), Arg::Out(Len::Via(n))) = (&mut staged.backs[i], row.args[i]) {
            back.via = usize::try_from(staged.call.args[usize::from(n)]).ok();
        }
    }
    // A clamped length word must be what the host sees.
    for (arg, value) in row.args.iter().zip(args) {
        if let Arg::Out(Len::Via(n)) = *arg
            && let Some(word) = staged.backs[usize::from(n)]
            && *value != 0
        {
            let mut bytes = [0; 4];
            call.out.bounce_read(call.vcpu, word.off, &mut bytes)?;
            let clamped = u32::from_le_bytes(bytes).min(SOCKLEN_MAX);
            call.out
                .bounce_write(call.vcpu, word.off, &clamped.to_le_bytes())?;
        }
    }
    Ok(staged)
}

fn stage_message(
    call: &mut Call<'_, '_>,
    room: &mut Room,
    staged: &mut Staged,
    index: usize,
    va: u64,
    send: bool,
) -> Result<(), Fail> {
    let mut guest = GuestMsg::default();
    call.read_user(va, guest.as_mut_bytes())?;
    let header = room.take(WIRE_MSG as u64)?;
    let mut wire = WireMsg {
        name: NULL,
        control: NULL,
        ..WireMsg::default()
    };
    let name_len = u64::from(guest.name_len as u32).min(128);
    if guest.name != 0 && name_len > 0 {
        let off = room.take(name_len)?;
        if send {
            let mut name = vec![0; name_len as usize];
            call.read_user(guest.name, &mut name)?;
            call.out.bounce_write(call.vcpu, off, &name)?;
        }
        (wire.name, wire.name_len) = (off as u64, name_len);
    }
    if guest.control != 0 && guest.control_len > 0 {
        if send && guest.control_len > CONTROL_MAX {
            return Err(Errno::ENOBUFS.into());
        }
        let n = guest.control_len.min(CONTROL_MAX);
        let off = room.take(n)?;
        if send {
            let mut control = vec![0; n as usize];
            call.read_user(guest.control, &mut control)?;
            if !only_rights_to(&control, GUEST_FDS) {
                return Err(Errno::EBADF.into());
            }
            call.out.bounce_write(call.vcpu, off, &control)?;
        }
        (wire.control, wire.control_len) = (off as u64, n);
    }
    let space = (room.len - room.next) as u64;
    let data = if send {
        call.gather(guest.iov, guest.iov_len, space as usize)?
    } else {
        let total = call.iovecs(guest.iov, guest.iov_len)?;
        vec![0; total.iter().map(|v| v.1).sum::<u64>().min(space) as usize]
    };
    wire.data = room.take(data.len() as u64)? as u64;
    wire.data_len = data.len() as u64;
    if send {
        call.out
            .bounce_write(call.vcpu, wire.data as usize, &data)?;
    }
    call.out.bounce_write(call.vcpu, header, wire.as_bytes())?;
    staged.call.args[index] = header as u64;
    if !send {
        staged.message = Some((va, wire, guest));
    }
    Ok(())
}

/// Guest half: copies results to the guest. `ret` is the host's raw result; what is returned is what
/// the guest gets. The host's word is not trusted: a count is never taken beyond its buffer.
///
/// # Errors
/// EFAULT if the guest's memory can't be written; or the machine failed.
pub fn finish(call: &mut Call<'_, '_>, staged: &Staged, ret: i64) -> Result<i64, Fail> {
    // nanosleep and clock_nanosleep write the remaining time only when interrupted; select, pselect6 and ppoll then
    // too, and nothing else changes
    let fills = match staged.call.nr {
        35 | 230 => ret == Errno::EINTR.ret(),
        23 | 270 | 271 => ret >= 0 || ret == Errno::EINTR.ret(),
        _ => ret >= 0,
    };
    if !fills {
        return Ok(ret);
    }
    for back in staged.backs.iter().flatten() {
        let mut n = match back.dir {
            Dir::OutRet(unit) => (ret.max(0) as u64)
                .saturating_mul(u64::from(unit))
                .min(back.len as u64) as usize,
            _ => back.len,
        };
        if let Some(word) = back.via {
            let mut bytes = [0; 4];
            call.out.bounce_read(call.vcpu, word, &mut bytes)?;
            n = n.min(u32::from_le_bytes(bytes) as usize);
        }
        if n == 0 {
            continue;
        }
        copy_out(call, back.off, back.va, n)?;
    }
    if let Some((va, wire, mut guest)) = staged.message {
        let header = staged.call.args[1] as usize;
        let mut after = WireMsg::default();
        call.out
            .bounce_read(call.vcpu, header, after.as_mut_bytes())?;
        let n = (ret.max(0) as u64).min(wire.data_len) as usize;
        let mut data = vec![0; n];
        call.out
            .bounce_read(call.vcpu, wire.data as usize, &mut data)?;
        call.scatter(guest.iov, guest.iov_len, &data)?;
        if wire.name != NULL {
            copy_out(
                call,
                wire.name as usize,
                guest.name,
                after.name_len.min(wire.name_len) as usize,
            )?;
            guest.name_len = guest.name_len & !0xffff_ffff | after.name_len & 0xffff_ffff;
        }
        let control = after.control_len.min(wire.control_len);
        if wire.control != NULL {
            copy_out(call, wire.control as usize, guest.control, control as usize)?;
        }
        guest.control_len = control;
        guest.flags = guest.flags & !0xffff_ffff | after.flags & 0xffff_ffff;
        call.write_user(va, guest.as_bytes())?;
    }
    Ok(ret)
}

fn copy_out(call: &mut Call<'_, '_>, off: usize, va: u64, n: usize) -> Result<(), Fail> {
    let mut data = core::mem::take(&mut call.kernel.scratch);
    data.clear();
    data.resize(n, 0);
    let done = call
        .out
        .bounce_read(call.vcpu, off, &mut data)
        .map_err(Fail::from)
        .and_then(|()| call.write_user(va, &data));
    call.kernel.scratch = data;
    done
}

// ------------------------------------------------------------ the hypervisor half

/// Host arguments of a checked call. Pointers point into the bounce area, or into this structure:
/// keep it until the system call has returned, then call [`HostArgs::complete`].
pub struct HostArgs {
    /// What to pass to the host kernel.
    pub args: [u64; 6],
    message: Option<Box<HostMsg>>,
    /// Paths that are not the guest's own words.
    paths: Vec<Box<[u8]>>,
}

struct HostMsg {
    header: usize,
    receive: bool,
    /// `struct msghdr` (7 words), then its one `struct iovec`.
    words: [u64; 9],
}

impl HostArgs {
    /// After the system call: gives the guest the updated message header, if there is one.
    pub fn complete(&self, bounce: &mut [u8]) {
        let Some(m) = self.message.as_deref().filter(|m| m.receive) else {
            return;
        };
        let Some(bytes) = bounce.get_mut(m.header..m.header + WIRE_MSG) else {
            return;
        };
        let Ok(mut wire) = WireMsg::read_from_bytes(bytes) else {
            return;
        };
        wire.name_len = u64::from(m.words[1] as u32);
        wire.control_len = m.words[5];
        wire.flags = u64::from(m.words[6] as u32);
        let _ = wire.write_to(bytes); // the lengths are equal
    }
}

/// The part `[off, off + len)` of the bounce area as a host address.
fn host_range(bounce: &mut [u8], off: u64, len: u64) -> Result<u64, Errno> {
    let start = usize::try_from(off).map_err(|_| Errno::EFAULT)?;
    let len = usize::try_from(len).map_err(|_| Errno::EFAULT)?;
    let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
    let part = bounce.get_mut(start..end).ok_or(Errno::EFAULT)?;
    Ok(part.as_mut_ptr() as u64)
}

fn word_at(bounce: &[u8], off: u64) -> Result<u32, Errno> {
    let start = usize::try_from(off).map_err(|_| Errno::EFAULT)?;
    let bytes = bounce
        .get(start..start.checked_add(4).ok_or(Errno::EFAULT)?)
        .ok_or(Errno::EFAULT)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Hypervisor half: checks a call against the table and turns its offsets into host pointers.
/// `bounce` is the whole shared area.
///
/// # Errors
/// ENOSYS for a call that the host does not execute, EBADF for a descriptor that is not the guest's,
/// EFAULT for a pointer that leaves the bounce area, EACCES for a path into this process.
pub fn check(call: &HostCall, bounce: &mut [u8]) -> Result<HostArgs, Errno> {
    check_for(call, bounce, None)
}

/// As [`check`], where the guest has other numbers for processes than the host: in paths into `/proc`.
///
/// # Errors
/// As [`check`].
pub fn check_for(
    call: &HostCall,
    bounce: &mut [u8],
    pids: Option<&Pids>,
) -> Result<HostArgs, Errno> {
    let row = row(call.nr)
        .filter(|r| r.host_may_run())
        .ok_or(Errno::ENOSYS)?;
    row.check_for(call, bounce, pids)
}

impl Row {
    /// See [`check`].
    ///
    /// # Errors
    /// As [`check`].
    pub fn check(&self, call: &HostCall, bounce: &mut [u8]) -> Result<HostArgs, Errno> {
        self.check_for(call, bounce, None)
    }

    fn check_for(
        &self,
        call: &HostCall,
        bounce: &mut [u8],
        pids: Option<&Pids>,
    ) -> Result<HostArgs, Errno> {
        if call.nr != self.nr || !self.host_may_run() {
            return Err(Errno::ENOSYS);
        }
        let mut host = HostArgs {
            args: call.args,
            message: None,
            paths: Vec::new(),
        };
        for i in 0..6 {
            let value = call.args[i];
            match shape(self.args[i], &call.args)? {
                Shape::Int => {}
                Shape::Fd { cwd } => {
                    let fd = value as u32 as i32;
                    if fd >= KERNEL_FDS_END || (fd < 0 && !(cwd && fd == AT_FDCWD)) {
                        return Err(Errno::EBADF);
                    }
                }
                Shape::Null if value == NULL => host.args[i] = 0,
                Shape::Null => return Err(Errno::EFAULT),
                _ if value == NULL => host.args[i] = 0,
                Shape::Path => {
                    let (path, own) = host_path(bounce, value, pids)?;
                    host.args[i] = path;
                    host.paths.extend(own);
                }
                Shape::Buf(_, len) => {
                    let n = length(len, &call.args, |off| word_at(bounce, off))?
                        .ok_or(Errno::EINVAL)?;
                    host.args[i] = host_range(bounce, value, n)?;
                    if self.args[i] == Arg::Event && !is_wake_event(bounce, value) {
                        return Err(Errno::EINVAL);
                    }
                }
                Shape::Msg { send } => {
                    let m = host_message(bounce, value, !send)?;
                    host.args[i] = m.words.as_ptr() as u64;
                    host.message = Some(m);
                }
            }
        }
        Ok(host)
    }
}

/// Whether a `struct sigevent` in range asks for nothing, or for the signal that wakes the guest.
fn is_wake_event(bounce: &[u8], off: u64) -> bool {
    let word = |at: u64| word_at(bounce, off + at);
    match (word(8), word(12)) {
        (Ok(_), Ok(SIGEV_NONE)) => true,
        (Ok(signo), Ok(SIGEV_SIGNAL)) => signo == WAKE as u32,
        _ => false,
    }
}

/// A path's host address, and the path itself if it is not in the bounce area.
type HostPath = (u64, Option<Box<[u8]>>);

/// Where a path is.
fn host_path(bounce: &mut [u8], off: u64, pids: Option<&Pids>) -> Result<HostPath, Errno> {
    let start = usize::try_from(off).map_err(|_| Errno::EFAULT)?;
    let rest = bounce.get(start..).ok_or(Errno::EFAULT)?;
    let rest = &rest[..rest.len().min(PATH_MAX)];
    let end = rest
        .iter()
        .position(|&b| b == 0)
        .ok_or(Errno::ENAMETOOLONG)?;
    let translated = pids.and_then(|pids| pids.path(&rest[..end]));
    if names_this_process(translated.as_deref().unwrap_or(&rest[..end])) {
        return Err(Errno::EACCES);
    }
    Ok(match translated {
        None => (rest.as_ptr() as u64, None),
        Some(mut path) => {
            path.push(0);
            let path = path.into_boxed_slice();
            (path.as_ptr() as u64, Some(path))
        }
    })
}

/// Whether a path names this host process's own memory or one of the host's own descriptors. The
/// check is by name: it keeps guests from accidents, the host's kernel is what confines a process.
fn names_this_process(path: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(path) else {
        return false;
    };
    let mut parts = text.split('/').filter(|p| !p.is_empty() && *p != ".");
    let is_fd = |n: Option<&str>| {
        n.and_then(|n| n.parse::<i32>().ok())
            .is_some_and(|n| n >= GUEST_FDS)
    };
    match parts.next() {
        Some("dev") => parts.next() == Some("fd") && is_fd(parts.next()),
        Some("proc") => {
            let who = parts.next().unwrap_or("");
            let own = who == "self"
                || who == "thread-self"
                || who
                    .parse::<u32>()
                    .is_ok_and(|pid| pid == std::process::id());
            let mut what = parts.next();
            if what == Some("task") {
                parts.next();
                what = parts.next();
            }
            own && match what {
                Some("mem" | "map_files" | "pagemap" | "clear_refs") => true,
                Some("fd" | "fdinfo") => is_fd(parts.next()),
                _ => false,
            }
        }
        _ => false,
    }
}

fn host_message(bounce: &mut [u8], off: u64, receive: bool) -> Result<Box<HostMsg>, Errno> {
    host_range(bounce, off, WIRE_MSG as u64)?;
    let header = off as usize;
    let wire =
        WireMsg::read_from_bytes(&bounce[header..header + WIRE_MSG]).map_err(|_| Errno::EFAULT)?;
    let mut pointer = |off: u64, len: u64| {
        if off == NULL || len == 0 {
            Ok((0, 0))
        } else {
            Ok((host_range(bounce, off, len)?, len))
        }
    };
    let (name, name_len) = pointer(wire.name, wire.name_len)?;
    let (control, control_len) = pointer(wire.control, wire.control_len)?;
    let (data, data_len) = pointer(wire.data, wire.data_len)?;
    if !receive && control != 0 {
        let at = wire.control as usize;
        if !only_rights_to(&bounce[at..at + control_len as usize], KERNEL_FDS_END) {
            return Err(Errno::EBADF);
        }
    }
    let mut m = Box::new(HostMsg {
        header,
        receive,
        words: [
            name,
            name_len,
            0,
            1,
            control,
            control_len,
            0,
            data,
            data_len,
        ],
    });
    m.words[2] = m.words[7..].as_ptr() as u64;
    Ok(m)
}

impl Call<'_, '_> {
    /// One system call through the fence: stage, ask, finish.
    ///
    /// # Errors
    /// As [`stage`] and [`finish`]; the host's own error number is in the `Ok` value.
    pub fn proxy(&mut self, args: &[u64; 6]) -> Result<i64, Fail> {
        self.proxy_as(self.row, args)
    }

    /// As [`Call::proxy`], as another system call.
    ///
    /// # Errors
    /// As [`Call::proxy`].
    pub fn proxy_nr(&mut self, nr: i64, args: &[u64; 6]) -> Result<i64, Fail> {
        let row = row(nr).ok_or(Errno::ENOSYS)?;
        self.proxy_as(row, args)
    }

    fn proxy_as(&mut self, row: &Row, args: &[u64; 6]) -> Result<i64, Fail> {
        let staged = stage(self, row, args)?;
        self.ask(row, &staged, sleeps(row.nr))
    }

    /// Asks the host for a call that is staged, and finishes it.
    ///
    /// # Errors
    /// As [`Call::proxy`].
    pub fn ask(&mut self, row: &Row, staged: &Staged, may_sleep: bool) -> Result<i64, Fail> {
        self.kernel.stats.host_calls += 1;
        if let Some(set) = self.kernel.host_mask_changed() {
            self.host(machine_call::BLOCK, [set, 0, 0, 0, 0, 0])?;
        }
        let out = &mut *self.out;
        let ret = if may_sleep && self.kernel.sim.is_some() {
            self.wait_for_outside(&staged.call)?
        } else if may_sleep {
            // What may have asked for a look before is looked at now.
            self.vcpu.state.exit_request.store(0, Ordering::SeqCst);
            if self.kernel.interrupted() {
                return Ok(Errno::EINTR.ret());
            }
            let call = HostCall {
                nr: staged.call.nr | INTERRUPTIBLE,
                ..staged.call
            };
            self.kernel
                .unlocked(self.vcpu, |vcpu| out.host_call(vcpu, &call))?
        } else {
            out.host_call(self.vcpu, &staged.call)?
        };
        if !(-4095..=i64::MAX).contains(&ret) {
            let what = format!("{} returned {ret}", row.name);
            return Err(Error::Protocol { what }.into());
        }
        finish(self, staged, ret)
    }
}
