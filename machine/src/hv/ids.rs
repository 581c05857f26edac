//! Where ids of processes and threads are in system calls: the guest's on the way out, the host's on the way in
//! ([`Pids`]).

use crate::kernel::outside::{HostCall, NULL};
use crate::pids::Pids;

/// Where the sender is in a `siginfo_t`.
pub const SI_PID: usize = 12;
const P_PID: u64 = 1;
const P_PGID: u64 = 2;
const SOL_SOCKET: u64 = 1;
const SO_PEERCRED: u64 = 17;

/// An id in the bounce area.
fn change(bounce: &mut [u8], off: u64, plus: usize, f: impl FnOnce(i32) -> i32) {
    if off == NULL {
        return;
    }
    let at = usize::try_from(off).ok().and_then(|o| o.checked_add(plus));
    if let Some(word) = at.and_then(|at| bounce.get_mut(at..at + 4)) {
        let id = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        word.copy_from_slice(&f(id).to_le_bytes());
    }
}

/// The ids among the arguments become the host's.
pub(super) fn outward(pids: &Pids, call: &mut HostCall, bounce: &mut [u8]) {
    let a = &mut call.args;
    let id = |v: &mut u64| *v = pids.outward(*v as i32) as u64;
    let group = |v: &mut u64| *v = pids.outward_or_group(*v as i32) as i64 as u64;
    match call.nr {
        // kill, wait4: a negative number is a group's
        62 | 61 => group(&mut a[0]),
        // setpgid, tgkill, kcmp
        109 | 234 | 312 => {
            id(&mut a[0]);
            id(&mut a[1]);
        }
        // getpgid, getsid, sched_*, tkill, prlimit64, pidfd_open
        121 | 124 | 142..=145 | 148 | 200 | 203 | 204 | 302 | 314 | 315 | 434 => id(&mut a[0]),
        // rt_sigqueueinfo
        129 => {
            id(&mut a[0]);
            change(bounce, a[2], SI_PID, |id| pids.outward(id));
        }
        // pidfd_send_signal
        424 => change(bounce, a[2], SI_PID, |id| pids.outward(id)),
        // getpriority, setpriority: of a process or a group
        140 | 141 if a[0] <= 1 => id(&mut a[1]),
        // ioprio_set, ioprio_get
        251 | 252 if matches!(a[0], 1 | 2) => id(&mut a[1]),
        247 if matches!(a[0], P_PID | P_PGID) => id(&mut a[1]),
        // fcntl: F_SETOWN, F_SETOWN_EX
        72 if a[1] as u32 == 8 => group(&mut a[2]),
        72 if a[1] as u32 == 15 => change(bounce, a[2], 4, |id| pids.outward(id)),
        // ioctl: TIOCSPGRP, FIOSETOWN, SIOCSPGRP
        16 if matches!(a[1] as u32, 0x5410 | 0x8901 | 0x8902) => {
            change(bounce, a[2], 0, |id| pids.outward_or_group(id));
        }
        _ => {}
    }
}

/// The ids in what a call gives become the guest's.
pub(super) fn inward(pids: &Pids, call: &HostCall, ret: i64, bounce: &mut [u8]) -> i64 {
    let a = &call.args;
    if ret < 0 {
        return ret;
    }
    match call.nr {
        // getpid, wait4, getppid, getpgrp, setsid, getpgid, getsid, gettid
        39 | 61 | 110 | 111 | 112 | 121 | 124 | 186 => i64::from(pids.inward(ret as i32)),
        247 => {
            change(bounce, a[2], SI_PID, |id| pids.inward(id));
            ret
        }
        // fcntl: F_GETOWN, F_GETOWN_EX, F_GETLK, F_OFD_GETLK
        72 => match a[1] as u32 {
            9 => i64::from(pids.inward(ret as i32)),
            16 => {
                change(bounce, a[2], 4, |id| pids.inward(id));
                ret
            }
            5 | 36 => {
                change(bounce, a[2], 24, |id| pids.inward(id));
                ret
            }
            _ => ret,
        },
        // ioctl: TIOCGPGRP, TIOCGSID, FIOGETOWN, SIOCGPGRP
        16 if matches!(a[1] as u32, 0x540f | 0x5429 | 0x8903 | 0x8904) => {
            change(bounce, a[2], 0, |id| pids.inward(id));
            ret
        }
        55 if (a[1], a[2]) == (SOL_SOCKET, SO_PEERCRED) => {
            change(bounce, a[3], 0, |id| pids.inward(id));
            ret
        }
        _ => ret,
    }
}
