//! openat2(2): openat with its flags in a structure, which may grow.

use super::{Call, SysResult, fs, procfs};
use crate::kernel::error::Errno;

/// `struct open_how` as of its first version: flags, mode, resolve.
const HOW: u64 = 24;

/// openat2(2).
///
/// # Errors
/// As Linux.
pub fn openat2(call: &mut Call<'_, '_>) -> SysResult {
    let [dir, path, how, size, ..] = call.args;
    if size < HOW {
        return Err(Errno::EINVAL.into());
    }
    if size > 4096 {
        return Err(Errno::E2BIG.into());
    }
    let flags = call.read_u64(how)?;
    for at in (HOW..size).step_by(1) {
        let mut byte = [0];
        call.read_user(how.wrapping_add(at), &mut byte)?;
        if byte[0] != 0 {
            return Err(Errno::E2BIG.into());
        }
    }
    let text = call.read_str(path)?;
    match procfs::open(call, Some(dir), &text, flags)? {
        Some(done) => Ok(done),
        None => fs::new_fd(call),
    }
}
