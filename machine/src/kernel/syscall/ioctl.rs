//! ioctl(2): what each request's argument is, and the few requests that need more than passing on.

use super::{Call, Sys, SysResult};
use crate::kernel::error::{Errno, Fail};

/// What the third argument of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoctlArg {
    /// A number, or nothing.
    Int,
    /// A descriptor.
    Fd,
    /// That many bytes which the host reads.
    In(u32),
    /// That many bytes which the host writes.
    Out(u32),
    /// That many bytes which the host reads and writes.
    InOut(u32),
}

/// Bytes of `struct ifreq`.
const IFREQ: u32 = 40;
/// Interfaces that SIOCGIFCONF looks at.
const INTERFACES: u32 = 64;
const TIOCGPTPEER: u32 = 0x5441;
const SIOCGIFNAME: u32 = 0x8910;
const SIOCGIFCONF: u32 = 0x8912;
const SIOCGIFADDR: u32 = 0x8915;

/// What a request's argument is (asm-generic/ioctls.h, linux/sockios.h, linux/fs.h, linux/kd.h).
///
/// # Errors
/// ENOTTY for a request that is not passed on.
pub fn argument(request: u32) -> Result<IoctlArg, Errno> {
    use IoctlArg::{Fd, In, InOut, Int, Out};
    Ok(match request {
        // terminals
        0x5401 => Out(36),                                       // TCGETS
        0x5402..=0x5404 => In(36),                               // TCSETS, TCSETSW, TCSETSF
        0x802c_542a => Out(44),                                  // TCGETS2
        0x402c_542b..=0x402c_542d => In(44),                     // TCSETS2, ...
        0x5405 => Out(18),                                       // TCGETA
        0x5406..=0x5408 => In(18),                               // TCSETA, TCSETAW, TCSETAF
        0x5409..=0x540e => Int, // TCSBRK, TCXONC, TCFLSH, TIOCEXCL, TIOCNXCL, TIOCSCTTY
        0x540f | 0x5411 => Out(4), // TIOCGPGRP, TIOCOUTQ
        0x5410 => In(4),        // TIOCSPGRP
        0x5412 => In(1),        // TIOCSTI
        0x5413 => Out(8),       // TIOCGWINSZ
        0x5414 => In(8),        // TIOCSWINSZ
        0x5415 | 0x5419 | 0x5424 | 0x5429 => Out(4), // TIOCMGET, TIOCGSOFTCAR, TIOCGETD, TIOCGSID
        0x5416..=0x5418 | 0x541a | 0x5423 => In(4), // TIOCMBIS, TIOCMBIC, TIOCMSET, TIOCSSOFTCAR, TIOCSETD
        0x541b => Out(4),       // FIONREAD
        0x5420 | 0x5421 | 0x5452 => In(4), // TIOCPKT, FIONBIO, FIOASYNC
        0x5422 | 0x5425 | 0x5427 | 0x5428 | 0x5437 => Int, // TIOCNOTTY, TCSBRKP, TIOCSBRK, TIOCCBRK, TIOCVHANGUP
        0x5450 | 0x5451 => Int, // FIONCLEX, FIOCLEX
        0x5460 => Out(8),       // FIOQSIZE
        0x8004_5430 | 0x8004_5438..=0x8004_5440 => Out(4), // TIOCGPTN, TIOCGPKT, TIOCGPTLCK, TIOCGEXCL
        0x4004_5431 => In(4),   // TIOCSPTLCK
        0x4004_5436 | TIOCGPTPEER => Int, // TIOCSIG
        0x4b33 => Out(1),       // KDGKBTYPE
        0x4b3b => Out(4),       // KDGETMODE
        // sockets
        0x8901 | 0x8902 => In(4),          // FIOSETOWN, SIOCSPGRP
        0x8903..=0x8905 => Out(4),         // FIOGETOWN, SIOCGPGRP, SIOCATMARK
        0x8906 | 0x8907 => Out(16),        // SIOCGSTAMP, SIOCGSTAMPNS
        SIOCGIFNAME
        | 0x8913 // SIOCGIFFLAGS
        | SIOCGIFADDR
        | 0x8917 // SIOCGIFDSTADDR
        | 0x8919 // SIOCGIFBRDADDR
        | 0x891b // SIOCGIFNETMASK
        | 0x891d // SIOCGIFMETRIC
        | 0x8921 // SIOCGIFMTU
        | 0x8927 // SIOCGIFHWADDR
        | 0x8933 // SIOCGIFINDEX
        | 0x8942 // SIOCGIFTXQLEN
        | 0x8970 => InOut(IFREQ), // SIOCGIFMAP
        // files and block devices
        1 => InOut(4),                                           // FIBMAP
        2 => Out(4),                                             // FIGETBSZ
        0x4004_9409 => Fd,                                       // FICLONE
        0x8008_6601 | 0x8008_7601 => Out(8),                     // FS_IOC_GETFLAGS, FS_IOC_GETVERSION
        0x4008_6602 => In(8),                                    // FS_IOC_SETFLAGS
        0x801c_581f => Out(28),                                  // FS_IOC_FSGETXATTR
        0x401c_5820 => In(28),                                   // FS_IOC_FSSETXATTR
        0x125e | 0x1268 | 0x1278..=0x127c => Out(4), // BLKROGET, BLKSSZGET, BLKIOMIN, BLKIOOPT, ...
        0x1260 | 0x1263 | 0x8008_1270 | 0x8008_1272 => Out(8), // BLKGETSIZE, BLKRAGET, BLKBSZGET, BLKGETSIZE64
        0x127e => Out(2),                            // BLKROTATIONAL
        0x8004_5200 => Out(4),                       // RNDGETENTCNT
        _ => return Err(Errno::ENOTTY),
    })
}

/// ioctl(2).
///
/// # Errors
/// As Linux; ENOTTY for a request that is not passed on.
pub fn ioctl(call: &mut Call<'_, '_>) -> SysResult {
    if call.args[1] as u32 == SIOCGIFCONF {
        return interfaces(call);
    }
    let ret = call.proxy(&call.args.clone())?;
    if call.args[1] as u32 == TIOCGPTPEER {
        return Ok(Sys::Ret(call.adopt(ret)?));
    }
    Ok(Sys::Ret(ret))
}

/// SIOCGIFCONF: its structure points at a buffer of its own, so the list is asked for one by one.
fn interfaces(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, _, at, ..] = call.args;
    let room = call.read_u32(at)? as i32;
    let buffer = call.read_u64(at.wrapping_add(8))?;
    let mut list = Vec::new();
    for index in 1..=INTERFACES {
        let mut entry = [0; IFREQ as usize];
        entry[16..20].copy_from_slice(&index.to_le_bytes());
        let Some(named) = one(call, fd, SIOCGIFNAME, &entry)? else {
            continue;
        };
        if let Some(full) = one(call, fd, SIOCGIFADDR, &named)? {
            list.extend_from_slice(&full);
        }
    }
    let whole = IFREQ as usize;
    if buffer == 0 {
        call.write_user(at, &(list.len() as u32).to_le_bytes())?;
        return super::DONE;
    }
    list.truncate(room.max(0) as usize / whole * whole);
    call.write_user(buffer, &list)?;
    call.write_user(at, &(list.len() as u32).to_le_bytes())?;
    super::DONE
}

/// One request about an interface; `None` if the host has no answer.
fn one(
    call: &mut Call<'_, '_>,
    fd: u64,
    request: u32,
    entry: &[u8; IFREQ as usize],
) -> Result<Option<[u8; IFREQ as usize]>, Fail> {
    call.out.bounce_write(call.vcpu, 0, entry)?;
    let ret = call.host(16, [fd, u64::from(request), 0, 0, 0, 0])?;
    if matches!(-ret as i32, libc::EBADF | libc::ENOTTY | libc::ENOTSOCK) {
        return Err(Errno(-ret as i32).into());
    }
    if ret != 0 {
        return Ok(None);
    }
    let mut out = [0; IFREQ as usize];
    call.out.bounce_read(call.vcpu, 0, &mut out)?;
    Ok(Some(out))
}
