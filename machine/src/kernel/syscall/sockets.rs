//! Messages: descriptors that come with them, several at once, and pipes fed from memory.

use std::time::Duration;

use super::{Call, Sys, SysResult, fs};
use crate::kernel::error::{Errno, Fail};
use crate::kernel::syscall::marshal::rights;

/// Bytes of `struct mmsghdr`.
const MMSGHDR: u64 = 64;
/// Most messages of one call (`UIO_MAXIOV`).
const MESSAGES: u64 = 1024;
const MSG_NOSIGNAL: u64 = 0x4000;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITFORONE: u64 = 0x1_0000;
const MSG_CTRUNC: u32 = 8;
const SENDMSG: i64 = 46;
const RECVMSG: i64 = 47;

/// sendmsg(2).
///
/// # Errors
/// As Linux.
pub fn sendmsg(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    if call.args[2] & MSG_NOSIGNAL == 0 {
        call.broken_pipe(ret);
    }
    Ok(Sys::Ret(ret))
}

/// recvmsg(2).
///
/// # Errors
/// As Linux.
pub fn recvmsg(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    if ret >= 0 {
        let message = call.args[1];
        receive_rights(call, message)?;
    }
    Ok(Sys::Ret(ret))
}

/// Descriptors that came with the message at `va` are the guest's now, if it may have their numbers.
fn receive_rights(call: &mut Call<'_, '_>, va: u64) -> Result<(), Fail> {
    let at = call.read_u64(va.wrapping_add(32))?;
    let len = call.read_u64(va.wrapping_add(40))?;
    if at == 0 || len == 0 {
        return Ok(());
    }
    let mut control = vec![0; len.min(1 << 16) as usize];
    call.read_user(at, &mut control)?;
    let end = call.kernel.end_of_fds();
    let mut lost = false;
    for offset in rights(&control) {
        let fd = i32::from_le_bytes(core::array::from_fn(|i| control[offset + i]));
        if fd < end {
            call.forget_fd(fd);
        } else {
            call.host(3, [fd as u64, 0, 0, 0, 0, 0])?;
            call.write_user(at.wrapping_add(offset as u64), &(-1i32).to_le_bytes())?;
            lost = true;
        }
    }
    if lost {
        let flags = call.read_u32(va.wrapping_add(48))? | MSG_CTRUNC;
        call.write_user(va.wrapping_add(48), &flags.to_le_bytes())?;
    }
    Ok(())
}

/// sendmmsg(2).
///
/// # Errors
/// As Linux.
pub fn sendmmsg(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, list, n, flags, ..] = call.args;
    let mut done = 0;
    while done < n.min(MESSAGES) {
        let at = list.wrapping_add(done * MMSGHDR);
        let ret = match call.proxy_nr(SENDMSG, &[fd, at, flags, 0, 0, 0]) {
            Ok(ret) => ret,
            Err(Fail::Errno(e)) => e.ret(),
            Err(e) => return Err(e),
        };
        if ret < 0 {
            if done == 0 {
                if flags & MSG_NOSIGNAL == 0 {
                    call.broken_pipe(ret);
                }
                return Ok(Sys::Ret(ret));
            }
            break;
        }
        call.write_user(at.wrapping_add(56), &(ret as u32).to_le_bytes())?;
        done += 1;
    }
    Ok(Sys::Ret(done as i64))
}

/// recvmmsg(2). As in Linux, the time is looked at when a message has come.
///
/// # Errors
/// As Linux.
pub fn recvmmsg(call: &mut Call<'_, '_>) -> SysResult {
    const MONOTONIC: u64 = 1;
    let [fd, list, n, flags, timeout, _] = call.args;
    let until = if timeout == 0 {
        None
    } else {
        let (s, ns) = (
            call.read_u64(timeout)?,
            call.read_u64(timeout.wrapping_add(8))?,
        );
        if s >= 1 << 62 || ns >= 1_000_000_000 {
            return Err(Errno::EINVAL.into());
        }
        Some(
            call.now(MONOTONIC)?
                .saturating_add(Duration::new(s, ns as u32)),
        )
    };
    let mut now = flags & !MSG_WAITFORONE;
    let mut done = 0;
    while done < n.min(MESSAGES) {
        let at = list.wrapping_add(done * MMSGHDR);
        let ret = match call.proxy_nr(RECVMSG, &[fd, at, now, 0, 0, 0]) {
            Ok(ret) => ret,
            Err(Fail::Errno(e)) => e.ret(),
            Err(e) => return Err(e),
        };
        if ret < 0 {
            if done == 0 {
                return Ok(Sys::Ret(ret));
            }
            break;
        }
        receive_rights(call, at)?;
        call.write_user(at.wrapping_add(56), &(ret as u32).to_le_bytes())?;
        done += 1;
        if flags & MSG_WAITFORONE != 0 {
            now |= MSG_DONTWAIT;
        }
        if let Some(until) = until
            && call.now(MONOTONIC)? >= until
        {
            break;
        }
    }
    Ok(Sys::Ret(done as i64))
}

/// vmsplice(2): pages are copied, which nobody can tell who keeps to the rules.
///
/// # Errors
/// As Linux.
pub fn vmsplice(call: &mut Call<'_, '_>) -> SysResult {
    const NONBLOCK: u64 = 2;
    let [fd, iov, n, flags, ..] = call.args;
    if flags & !15 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let access = call.host(72, [fd, 3, 0, 0, 0, 0])?; // F_GETFL
    if access < 0 || call.host(5, [fd, 0, 0, 0, 0, 0])? != 0 {
        return Err(Errno::EBADF.into());
    }
    let mut mode = [0; 4];
    call.out.bounce_read(call.vcpu, 24, &mut mode)?;
    if u32::from_le_bytes(mode) & 0o170_000 != 0o010_000 {
        return Err(Errno::EBADF.into());
    }
    let writes = access & 3 != 0;
    if flags & NONBLOCK != 0 && call.iovecs(iov, n)?.iter().any(|v| v.1 > 0) {
        let event = if writes { libc::POLLOUT } else { libc::POLLIN };
        if !call.is_ready(fd, event)? {
            return Err(Errno::EAGAIN.into());
        }
    }
    if writes {
        fs::writev(call)
    } else {
        fs::readv(call)
    }
}
