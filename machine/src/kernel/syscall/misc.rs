//! What a process with one thread needs little of: futexes, calls that change nothing.

use super::{Call, DONE, Sys, SysResult};
use crate::kernel::error::Errno;

/// Success without effect.
///
/// # Errors
/// None.
pub fn nothing(_: &mut Call<'_>) -> SysResult {
    DONE
}

/// futex(2) for one thread: nobody waits, so nobody is woken; who waits, waits for time or a signal.
///
/// # Errors
/// As Linux; ENOSYS for priority inheritance.
pub fn futex(call: &mut Call<'_>) -> SysResult {
    let [va, op, value, timeout, _, expected] = call.args;
    const CLOCK_REALTIME: u64 = 256;
    const ABSOLUTE: u64 = 1;
    let command = op & 127;
    match command {
        0 | 9 => {
            if va % 4 != 0 {
                return Err(Errno::EINVAL.into());
            }
            if call.read_u32(va)? != value as u32 {
                return Err(Errno::EAGAIN.into());
            }
            if timeout == 0 {
                call.wait_for_signal()?;
                return Err(Errno::EINTR.into());
            }
            let time = [
                call.read_u64(timeout)?,
                call.read_u64(timeout.wrapping_add(8))?,
            ];
            let clock = u64::from(op & CLOCK_REALTIME == 0);
            let flags = if command == 9 { ABSOLUTE } else { 0 };
            match call.host_sleep(clock, flags, time)? {
                0 => Err(Errno::ETIMEDOUT.into()),
                ret => Ok(Sys::Ret(ret)),
            }
        }
        1 | 10 | 3 => {
            call.read_u32(va)?;
            DONE
        }
        4 => {
            if call.read_u32(va)? != expected as u32 {
                return Err(Errno::EAGAIN.into());
            }
            DONE
        }
        _ => Err(Errno::ENOSYS.into()),
    }
}
