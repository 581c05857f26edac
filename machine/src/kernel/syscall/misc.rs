//! What a process needs little of: CPU sets, calls that change nothing.

use super::{Call, DONE, Sys, SysResult};
use crate::kernel::error::Errno;

/// Success without effect.
///
/// # Errors
/// None.
pub fn nothing(_: &mut Call<'_, '_>) -> SysResult {
    DONE
}

/// sched_getaffinity(2): one CPU.
///
/// # Errors
/// As Linux.
pub fn sched_getaffinity(call: &mut Call<'_, '_>) -> SysResult {
    let [_, len, va, ..] = call.args;
    if len < 8 || len % 8 != 0 {
        return Err(Errno::EINVAL.into());
    }
    call.write_user(va, &1u64.to_le_bytes())?;
    Ok(Sys::Ret(8))
}

/// getcpu(2): CPU 0 of node 0.
///
/// # Errors
/// EFAULT.
pub fn getcpu(call: &mut Call<'_, '_>) -> SysResult {
    for va in [call.args[0], call.args[1]] {
        if va != 0 {
            call.write_user(va, &0u32.to_le_bytes())?;
        }
    }
    DONE
}
