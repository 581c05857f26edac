//! The process: its end, its limits, its names and its thread pointer.

use sevlab_cpu::state::seg;

use super::{Call, DONE, Sys, SysResult, clocks};
use crate::kernel::GuestEnd;
use crate::kernel::error::{Errno, Fail};

/// Addresses from here on are no user addresses.
const TASK_SIZE: u64 = 1 << 47;

/// exit(2): the thread ends.
///
/// # Errors
/// None.
pub fn exit(call: &mut Call<'_, '_>) -> SysResult {
    Ok(Sys::Exit((call.args[0] & 0xff) as i32))
}

/// exit_group(2): the process ends.
///
/// # Errors
/// None.
pub fn exit_group(call: &mut Call<'_, '_>) -> SysResult {
    Ok(Sys::End(GuestEnd::Exited((call.args[0] & 0xff) as i32)))
}

/// gettid(2).
///
/// # Errors
/// The exit failed.
pub fn gettid(call: &mut Call<'_, '_>) -> SysResult {
    Ok(Sys::Ret(i64::from(call.tid()?)))
}

/// set_tid_address(2).
///
/// # Errors
/// The exit failed.
pub fn set_tid_address(call: &mut Call<'_, '_>) -> SysResult {
    call.kernel.task().clear_tid = call.args[0];
    gettid(call)
}

/// set_robust_list(2).
///
/// # Errors
/// EINVAL for a head of another size.
pub fn set_robust_list(call: &mut Call<'_, '_>) -> SysResult {
    let [head, len, ..] = call.args;
    if len != 24 {
        return Err(Errno::EINVAL.into());
    }
    call.kernel.task().robust = head;
    DONE
}

/// get_robust_list(2), inside the process.
///
/// # Errors
/// ESRCH for a thread of another process.
pub fn get_robust_list(call: &mut Call<'_, '_>) -> SysResult {
    let [tid, head, len, ..] = call.args;
    let slot = match tid as i32 {
        0 => call.kernel.slot(),
        tid => call.kernel.slot_of(tid).ok_or(Errno::ESRCH)?,
    };
    let robust = call.kernel.tasks[slot].as_ref().map_or(0, |t| t.robust);
    call.write_user(head, &robust.to_le_bytes())?;
    call.write_user(len, &24u64.to_le_bytes())?;
    DONE
}

impl Call<'_, '_> {
    /// The thread's id. The first thread's is the process's.
    ///
    /// # Errors
    /// The exit failed.
    pub fn tid(&mut self) -> Result<i32, Fail> {
        if self.kernel.task().tid == 0 {
            self.kernel.task().tid = self.pid()?;
        }
        Ok(self.kernel.task().tid)
    }
}

/// sysinfo(2): the host's, but the memory is the guest's.
///
/// # Errors
/// As Linux.
pub fn sysinfo(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    if ret == 0 {
        let frames = call.kernel.mm.frames();
        let (total, free) = (frames.total() * 4096, frames.free() * 4096);
        let mut memory = [0; 48]; // totalram, freeram, sharedram, bufferram, totalswap, freeswap
        if let Some(up) = clocks::uptime(call) {
            let mut head = [0; 32]; // uptime, loads
            head[..8].copy_from_slice(&up.as_secs().to_le_bytes());
            call.write_user(call.args[0], &head)?;
        }
        memory[..8].copy_from_slice(&total.to_le_bytes());
        memory[8..16].copy_from_slice(&free.to_le_bytes());
        call.write_user(call.args[0].wrapping_add(32), &memory)?;
        if call.kernel.sim.is_some() {
            call.write_user(call.args[0].wrapping_add(80), &1u16.to_le_bytes())?; // procs
        }
        call.write_user(call.args[0].wrapping_add(88), &[0; 16])?;
        call.write_user(call.args[0].wrapping_add(104), &1u32.to_le_bytes())?;
    }
    Ok(Sys::Ret(ret))
}

/// personality(2): the plain Linux one.
///
/// # Errors
/// EINVAL for another.
pub fn personality(call: &mut Call<'_, '_>) -> SysResult {
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
pub fn arch_prctl(call: &mut Call<'_, '_>) -> SysResult {
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
