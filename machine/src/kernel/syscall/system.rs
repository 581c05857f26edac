//! Calls about the process and the machine under it that are neither files nor signals: prctl, resource usage, locked
//! memory, NUMA, barriers.

use super::{Call, DONE, Sys, SysResult, clocks};
use crate::kernel::error::Errno;
use crate::kernel::mm::page_up;
use crate::kernel::outside::NULL;

/// prctl(2).
///
/// # Errors
/// As Linux; EINVAL for what is not supported.
pub fn prctl(call: &mut Call<'_, '_>) -> SysResult {
    let [option, arg, ..] = call.args;
    match option as u32 {
        // GET_DUMPABLE, SET_DUMPABLE: a core would be the host process's, so nobody gets to see one
        3 => Ok(Sys::Ret(1)),
        4 if arg <= 1 => DONE,
        // GET_TIMING, SET_TIMING; statistical timing is all there is
        13 => DONE,
        14 if arg == 0 => DONE,
        // SET_NAME, GET_NAME
        15 => {
            let mut name = [0; 16];
            for (i, b) in name.iter_mut().take(15).enumerate() {
                let mut byte = [0];
                call.read_user(arg.wrapping_add(i as u64), &mut byte)?;
                if byte[0] == 0 {
                    break;
                }
                *b = byte[0];
            }
            call.kernel.task().comm = name;
            DONE
        }
        16 => {
            let name = call.kernel.task().comm;
            call.write_user(arg, &name)?;
            DONE
        }
        21 => DONE, // GET_SECCOMP: none
        25 => {
            call.write_user(arg, &1u32.to_le_bytes())?; // GET_TSC: PR_TSC_ENABLE
            DONE
        }
        26 if arg == 1 => DONE,          // SET_TSC
        31 | 32 => DONE,                 // TASK_PERF_EVENTS_DISABLE, _ENABLE
        35 => Err(Errno::EPERM.into()),  // SET_MM
        41 => DONE,                      // SET_THP_DISABLE
        42 => DONE,                      // GET_THP_DISABLE
        0x5356_4d41 if arg == 0 => DONE, // SET_VMA, ANON_NAME: names of mappings are not kept
        0x4155_5856 => {
            let auxv = call.kernel.auxv().to_vec(); // GET_AUXV
            let n = auxv.len().min(call.args[2] as usize);
            call.write_user(arg, &auxv[..n])?;
            Ok(Sys::Ret(auxv.len() as i64))
        }
        // signal of the parent's death, capabilities, timer slack, subreaper, NO_NEW_PRIVS
        option if host_option(option).is_some() => {
            let args = call.args;
            Ok(Sys::Ret(call.proxy(&args)?))
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

/// The options that the host is asked: whether their argument is a pointer to an `int` that the host writes.
#[must_use]
pub fn host_option(option: u32) -> Option<bool> {
    match option {
        2 | 37 => Some(true), // GET_PDEATHSIG, GET_CHILD_SUBREAPER
        // SET_PDEATHSIG, GET/SET_KEEPCAPS, CAPBSET_READ/DROP, GET/SET_SECUREBITS, SET/GET_TIMERSLACK,
        // SET_CHILD_SUBREAPER, SET/GET_NO_NEW_PRIVS, CAP_AMBIENT
        1 | 7 | 8 | 23 | 24 | 27..=30 | 36 | 38 | 39 | 47 => Some(false),
        _ => None,
    }
}

/// getrusage(2): times are the host's or simulated, memory is the guest's.
///
/// # Errors
/// As Linux.
pub fn getrusage(call: &mut Call<'_, '_>) -> SysResult {
    let [who, va, ..] = call.args;
    let ret = call.proxy(&call.args.clone())?;
    if ret == 0 {
        clocks::fill_usage(call, who as i32, va)?;
    }
    if ret == 0 && who as i32 != -1 {
        let stats = call.kernel.mm.stats();
        call.write_user(va.wrapping_add(32), &(stats.peak * 4).to_le_bytes())?; // ru_maxrss, KiB
        call.write_user(va.wrapping_add(64), &stats.faults.to_le_bytes())?; // ru_minflt
        call.write_user(va.wrapping_add(72), &[0; 8])?; // ru_majflt
    }
    Ok(Sys::Ret(ret))
}

/// capget(2). Its result is 12 bytes in the first version of its header and 24 in the others.
///
/// # Errors
/// As Linux.
pub fn capget(call: &mut Call<'_, '_>) -> SysResult {
    const VERSION_1: u32 = 0x1998_0330;
    let [header, data, ..] = call.args;
    let mut head = [0; 8];
    call.read_user(header, &mut head)?;
    call.out.bounce_write(call.vcpu, 0, &head)?;
    let at = if data == 0 { NULL } else { 16 };
    let ret = call.host(125, [0, at, 0, 0, 0, 0])?;
    let mut after = [0; 8];
    call.out.bounce_read(call.vcpu, 0, &mut after)?;
    if after != head {
        call.write_user(header, &after)?;
    }
    if ret == 0 && data != 0 {
        let mut sets = [0; 24];
        call.out.bounce_read(call.vcpu, 16, &mut sets)?;
        let one = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) == VERSION_1;
        let n = if one { 12 } else { 24 };
        call.write_user(data, &sets[..n])?;
    }
    Ok(Sys::Ret(ret))
}

/// mlock(2), mlock2(2), munlock(2): guest memory is never swapped, so only the range is checked.
///
/// # Errors
/// As Linux.
pub fn mlock(call: &mut Call<'_, '_>) -> SysResult {
    let [va, len, flags, ..] = call.args;
    if call.row.nr == 325 && flags & !1 != 0 {
        return Err(Errno::EINVAL.into());
    }
    let start = va & !4095;
    let end = va.checked_add(len).and_then(page_up).ok_or(Errno::EINVAL)?;
    if start < end && !call.kernel.mm.areas().covers(start, end) {
        return Err(Errno::ENOMEM.into());
    }
    DONE
}

/// mlockall(2).
///
/// # Errors
/// EINVAL for unknown flags.
pub fn mlockall(call: &mut Call<'_, '_>) -> SysResult {
    match call.args[0] {
        1..=3 | 5..=7 => DONE,
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Whether a node mask at `va` of `bits` bits names no node but the one there is.
fn one_node(call: &mut Call<'_, '_>, va: u64, bits: u64) -> Result<bool, super::Fail> {
    if va == 0 || bits <= 1 {
        return Ok(true);
    }
    let bytes = (bits - 1).div_ceil(64).min(512) * 8;
    let mut mask = vec![0; bytes as usize];
    call.read_user(va, &mut mask)?;
    Ok(mask[0] & !1 == 0 && mask[1..].iter().all(|b| *b == 0))
}

/// Modes of a memory policy, without their flags: DEFAULT to PREFERRED_MANY.
fn is_policy(mode: u64) -> bool {
    mode & !0xe000 <= 5
}

/// mbind(2): there is one node, so every policy means the same.
///
/// # Errors
/// As Linux.
pub fn mbind(call: &mut Call<'_, '_>) -> SysResult {
    let [start, len, mode, mask, bits, flags] = call.args;
    if start % 4096 != 0 || !is_policy(mode) || flags & !7 != 0 || !one_node(call, mask, bits)? {
        return Err(Errno::EINVAL.into());
    }
    let end = start
        .checked_add(len)
        .and_then(page_up)
        .ok_or(Errno::EINVAL)?;
    if start < end && !call.kernel.mm.areas().covers(start, end) {
        return Err(Errno::EFAULT.into());
    }
    DONE
}

/// set_mempolicy(2).
///
/// # Errors
/// As Linux.
pub fn set_mempolicy(call: &mut Call<'_, '_>) -> SysResult {
    let [mode, mask, bits, ..] = call.args;
    if !is_policy(mode) || !one_node(call, mask, bits)? {
        return Err(Errno::EINVAL.into());
    }
    DONE
}

/// get_mempolicy(2): the default policy, on node 0.
///
/// # Errors
/// As Linux.
pub fn get_mempolicy(call: &mut Call<'_, '_>) -> SysResult {
    const MEMS_ALLOWED: u64 = 4;
    let [mode, mask, bits, va, flags, _] = call.args;
    if flags & !7 != 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags & 2 != 0
        && !call
            .kernel
            .mm
            .areas()
            .covers(va & !4095, (va & !4095) + 4096)
    {
        return Err(Errno::EFAULT.into());
    }
    if mode != 0 {
        call.write_user(mode, &0u32.to_le_bytes())?;
    }
    if mask != 0 && bits > 0 {
        let mut nodes = vec![0; (bits.div_ceil(64).min(512) * 8) as usize];
        nodes[0] = u8::from(flags & MEMS_ALLOWED != 0);
        call.write_user(mask, &nodes)?;
    }
    DONE
}

/// kcmp(2) of the process with itself.
///
/// # Errors
/// As Linux; EPERM for other processes.
pub fn kcmp(call: &mut Call<'_, '_>) -> SysResult {
    const FILE: u64 = 0;
    let [one, other, kind, ..] = call.args;
    let own = call.pid()?;
    if one as i32 != own || other as i32 != own {
        return Err(Errno::EPERM.into());
    }
    match kind {
        FILE => {
            let args = call.args;
            Ok(Sys::Ret(call.proxy(&args)?))
        }
        1..=6 => DONE, // VM, FILES, FS, SIGHAND, IO, SYSVSEM
        _ => Err(Errno::EINVAL.into()),
    }
}

/// membarrier(2): every guest thread runs on a thread of the host process, so the host's barriers are the guest's. Those
/// that also serialize instruction fetches are not offered: translated code is not what they reach.
///
/// # Errors
/// As Linux.
pub fn membarrier(call: &mut Call<'_, '_>) -> SysResult {
    const OFFERED: i64 = 1 | 2 | 4 | 8 | 16 | 512;
    let command = call.args[0] as u32;
    if command != 0 && i64::from(command) & OFFERED == 0 {
        return Err(Errno::EINVAL.into());
    }
    let ret = call.proxy(&call.args.clone())?;
    Ok(Sys::Ret(if ret > 0 { ret & OFFERED } else { ret }))
}
