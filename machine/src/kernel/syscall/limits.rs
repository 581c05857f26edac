//! Resource limits: what they are, and what they do here.
//!
//! NOFILE, FSIZE, AS, DATA and STACK are the guest kernel's to enforce; CPU is a timer. The others are kept and shown.

use super::marshal::GUEST_FDS;
use super::{Call, DONE, SysResult, timers};
use crate::kernel::Kernel;
use crate::kernel::error::{Errno, Fail};
use crate::kernel::mm::page_up;
use crate::kernel::signal::SigInfo;

const RLIMIT_CPU: usize = 0;
const RLIMIT_FSIZE: usize = 1;
const RLIMIT_DATA: usize = 2;
const RLIMIT_STACK: usize = 3;
const RLIMIT_CORE: usize = 4;
const RLIMIT_NOFILE: usize = 7;
const RLIMIT_MEMLOCK: usize = 8;
const RLIMIT_AS: usize = 9;
const RLIMIT_NICE: usize = 13;
const RLIMIT_RTPRIO: usize = 14;
/// Number of resource limits.
pub const RLIMITS: usize = 16;
/// No limit.
pub const INFINITY: u64 = u64::MAX;
/// Most of the stack that there is room for.
const STACK_MAX: u64 = 120 << 20;
const SIGXFSZ: i32 = 25;

/// Soft and hard limits, by resource number.
pub type Limits = [[u64; 2]; RLIMITS];

/// The limits a process starts with.
#[must_use]
pub fn initial_limits(stack: u64) -> Limits {
    let mut limits = [[INFINITY; 2]; RLIMITS];
    limits[RLIMIT_STACK] = [stack, INFINITY];
    limits[RLIMIT_NOFILE] = [GUEST_FDS as u64; 2];
    limits[RLIMIT_CORE] = [0, INFINITY];
    limits[RLIMIT_MEMLOCK] = [8 << 20; 2];
    limits[RLIMIT_NICE] = [0; 2];
    limits[RLIMIT_RTPRIO] = [0; 2];
    limits
}

fn get(call: &mut Call<'_, '_>, resource: u64, va: u64) -> Result<(), Fail> {
    let limit = *usize::try_from(resource)
        .ok()
        .and_then(|r| call.kernel.limits.get(r))
        .ok_or(Errno::EINVAL)?;
    if va != 0 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&limit[0].to_le_bytes());
        bytes[8..].copy_from_slice(&limit[1].to_le_bytes());
        call.write_user(va, &bytes)?;
    }
    Ok(())
}

fn set(call: &mut Call<'_, '_>, resource: u64, new: [u64; 2]) -> Result<(), Fail> {
    let resource = resource as usize;
    let slot = call.kernel.limits.get_mut(resource).ok_or(Errno::EINVAL)?;
    if new[0] > new[1] {
        return Err(Errno::EINVAL.into());
    }
    if new[1] > slot[1] {
        return Err(Errno::EPERM.into());
    }
    let old = *slot;
    *slot = new;
    match resource {
        RLIMIT_STACK => call.kernel.mm.stack_limit = new[0].min(STACK_MAX),
        RLIMIT_CPU if new != old => {
            let seconds = |limit: u64| (limit != INFINITY).then_some(limit);
            timers::limit_cpu(call, seconds(new[0]), seconds(new[1]))?;
        }
        _ => {}
    }
    Ok(())
}

fn read(call: &mut Call<'_, '_>, va: u64) -> Result<[u64; 2], Fail> {
    Ok([call.read_u64(va)?, call.read_u64(va.wrapping_add(8))?])
}

/// getrlimit(2).
///
/// # Errors
/// As Linux.
pub fn getrlimit(call: &mut Call<'_, '_>) -> SysResult {
    let [resource, va, ..] = call.args;
    get(call, u64::from(resource as u32), va)?;
    DONE
}

/// setrlimit(2).
///
/// # Errors
/// As Linux.
pub fn setrlimit(call: &mut Call<'_, '_>) -> SysResult {
    let [resource, va, ..] = call.args;
    let new = read(call, va)?;
    set(call, u64::from(resource as u32), new)?;
    DONE
}

/// prlimit64(2), for the process itself.
///
/// # Errors
/// As Linux; EPERM for another process.
pub fn prlimit64(call: &mut Call<'_, '_>) -> SysResult {
    let [pid, resource, new, old, ..] = call.args;
    if pid as i32 != 0 && pid as i32 != call.pid()? {
        return Err(Errno::EPERM.into());
    }
    let resource = u64::from(resource as u32);
    let wanted = match new {
        0 => None,
        va => Some(read(call, va)?),
    };
    get(call, resource, old)?;
    if let Some(new) = wanted {
        set(call, resource, new)?;
    }
    DONE
}

impl Kernel {
    /// Descriptors from this one on are beyond `RLIMIT_NOFILE`.
    #[must_use]
    pub fn end_of_fds(&self) -> i32 {
        let soft = self.limits[RLIMIT_NOFILE][0];
        i32::try_from(soft).map_or(GUEST_FDS, |n| n.min(GUEST_FDS))
    }

    /// Whether `len` more bytes may be mapped, of which `freed` were mapped before. `data`: private and writable.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn may_map(&self, len: u64, freed: u64, data: bool) -> Result<(), Errno> {
        let over = |resource: usize, only_data: bool| {
            let limit = self.limits[resource][0];
            if limit == INFINITY {
                return false;
            }
            let areas = self.mm.areas().iter();
            let counted = areas.filter(|(_, a)| !only_data || a.prot.writes() && !a.shared);
            let used: u64 = counted.map(|(start, a)| a.end - start).sum();
            let more = page_up(len).unwrap_or(u64::MAX).saturating_sub(freed);
            used.saturating_add(more) > limit
        };
        if over(RLIMIT_AS, false) || data && over(RLIMIT_DATA, true) {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Whether mappings are limited at all.
    #[must_use]
    pub fn maps_limited(&self) -> bool {
        [RLIMIT_AS, RLIMIT_DATA]
            .iter()
            .any(|r| self.limits[*r][0] != INFINITY)
    }

    /// Soft `RLIMIT_FSIZE`, if there is one.
    #[must_use]
    pub fn file_limit(&self) -> Option<u64> {
        let soft = self.limits[RLIMIT_FSIZE][0];
        (soft != INFINITY).then_some(soft)
    }
}

impl Call<'_, '_> {
    /// A file would grow beyond `RLIMIT_FSIZE`: SIGXFSZ and this error.
    pub fn too_large(&mut self) -> Errno {
        let slot = self.kernel.slot();
        self.kernel.raise_task(slot, SigInfo::kernel(SIGXFSZ));
        Errno::EFBIG
    }
}

/// The lines of `/proc/self/limits`.
#[must_use]
pub fn text(limits: &Limits) -> String {
    const NAMES: [(&str, &str); RLIMITS] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let mut text = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    let value = |v: u64| match v {
        INFINITY => "unlimited".to_owned(),
        v => v.to_string(),
    };
    for ((name, unit), [soft, hard]) in NAMES.iter().zip(limits) {
        text.push_str(&format!(
            "{name:<25} {:<20} {:<20} {unit:<10}\n",
            value(*soft),
            value(*hard)
        ));
    }
    text
}
