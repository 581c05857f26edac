//! The process: its end, its memory in figures, its thread pointer.

use sevlab_cpu::state::seg;

pub use super::limits::{Limits, initial_limits};
use super::{Call, DONE, Sys, SysResult};
use crate::kernel::GuestEnd;
use crate::kernel::error::{Errno, Error, Fail};

/// Addresses from here on are no user addresses.
const TASK_SIZE: u64 = 1 << 47;

/// exit(2), exit_group(2).
///
/// # Errors
/// The machine can't go on.
pub fn exit(call: &mut Call<'_>) -> SysResult {
    Ok(Sys::End(GuestEnd::Exited((call.args[0] & 0xff) as i32)))
}

/// sysinfo(2): the host's, but the memory is the guest's.
///
/// # Errors
/// As Linux.
pub fn sysinfo(call: &mut Call<'_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    if ret == 0 {
        let frames = call.kernel.mm.frames();
        let (total, free) = (frames.total() * 4096, frames.free() * 4096);
        let mut memory = [0; 48]; // totalram, freeram, sharedram, bufferram, totalswap, freeswap
        memory[..8].copy_from_slice(&total.to_le_bytes());
        memory[8..16].copy_from_slice(&free.to_le_bytes());
        call.write_user(call.args[0].wrapping_add(32), &memory)?;
        call.write_user(call.args[0].wrapping_add(88), &[0; 16])?;
        call.write_user(call.args[0].wrapping_add(104), &1u32.to_le_bytes())?;
    }
    Ok(Sys::Ret(ret))
}

/// personality(2): the plain Linux one.
///
/// # Errors
/// EINVAL for another.
pub fn personality(call: &mut Call<'_>) -> SysResult {
    const ADDR_NO_RANDOMIZE: u32 = 0x4_0000;
    match call.args[0] as u32 {
        0 | u32::MAX | ADDR_NO_RANDOMIZE => DONE,
        _ => Err(Errno::EINVAL.into()),
    }
}

/// arch_prctl(2): FS and GS base.
///
/// # Errors
/// EPERM for a base that is no user address, EINVAL for another code.
pub fn arch_prctl(call: &mut Call<'_>) -> SysResult {
    let [code, value, ..] = call.args;
    match code {
        0x1001 | 0x1002 => {
            if value >= TASK_SIZE {
                return Err(Errno::EPERM.into());
            }
            let which = if code == 0x1001 { seg::GS } else { seg::FS };
            call.vcpu.state.seg[which].base = value;
            DONE
        }
        0x1003 | 0x1004 => {
            let which = if code == 0x1003 { seg::FS } else { seg::GS };
            let base = call.vcpu.state.seg[which].base;
            call.write_user(value, &base.to_le_bytes())?;
            DONE
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

/// set_tid_address(2).
///
/// # Errors
/// The exit failed.
pub fn set_tid_address(call: &mut Call<'_>) -> SysResult {
    Ok::<_, Error>(Sys::Ret(call.host(186, [0; 6])?)).map_err(Fail::from)
}
