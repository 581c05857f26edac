//! The `mmap` family.

use std::sync::{Arc, Weak};

use sevlab_arch::PAGE_SIZE;

use super::marshal::{GUEST_FDS, guest_fd};
use super::{Call, DONE, Sys, SysResult};
use crate::kernel::error::{Errno, Error, Fail};
use crate::kernel::mm::{Backing, File, FileId, Hw, Place, Prot, Vma, page_up};
use crate::kernel::outside::WindowCall;

const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_TYPE: u64 = 15;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_32BIT: u64 = 0x40;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_SYNC: u64 = 0x8_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

const MS_SYNC: u64 = 4;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;
/// `/dev/zero`: major 1, minor 5.
const DEV_ZERO: u64 = 0x105;

/// What a guest descriptor names, remembered until the descriptor is closed.
pub struct CachedFile {
    /// The file, while an area uses it.
    pub file: Weak<File>,
}

/// What the host says about a descriptor.
struct FileFacts {
    mode: u32,
    rdev: u64,
    size: u64,
    id: FileId,
    /// `O_ACCMODE` bits.
    access: u64,
}

fn aligned(va: u64, len: u64) -> Result<(u64, u64), Errno> {
    let len = page_up(len).ok_or(Errno::ENOMEM)?;
    let end = va.checked_add(len).ok_or(Errno::ENOMEM)?;
    if !va.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    Ok((va, end))
}

/// mmap(2).
///
/// # Errors
/// As Linux.
pub fn mmap(call: &mut Call<'_, '_>) -> SysResult {
    let [addr, len, prot, flags, fd, offset] = call.args;
    let kind = flags & MAP_TYPE;
    if !(1..=3).contains(&kind) || offset % PAGE_SIZE != 0 || len == 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags & MAP_HUGETLB != 0 {
        return Err(Errno::ENOMEM.into());
    }
    let shared = kind & MAP_SHARED != 0; // 1 MAP_SHARED, 3 MAP_SHARED_VALIDATE
    let prot = Prot::from_arg(prot);
    let place = if flags & MAP_FIXED_NOREPLACE != 0 {
        Place::Free(addr)
    } else if flags & MAP_FIXED != 0 {
        Place::Fixed(addr)
    } else {
        let top = if flags & MAP_32BIT != 0 {
            0x8000_0000
        } else {
            call.kernel.mm.places.mmap_top
        };
        let hint = if flags & MAP_32BIT != 0 && addr >= top {
            0
        } else {
            addr
        };
        Place::Any { hint, top }
    };
    // What the host's file systems make of it (MAP_SYNC) is not the guest's.
    if kind == MAP_SHARED_VALIDATE && flags & (MAP_ANONYMOUS | MAP_SYNC) != 0 {
        let anonymous = flags & MAP_ANONYMOUS != 0;
        return Err(Errno(if anonymous {
            libc::EINVAL
        } else {
            libc::EOPNOTSUPP
        })
        .into());
    }
    let mut eager = None;
    let backing = if flags & MAP_ANONYMOUS != 0 && shared {
        Backing::File {
            file: shared_memory(call, len)?,
            offset: 0,
        }
    } else if flags & MAP_ANONYMOUS != 0 {
        Backing::Anon("")
    } else {
        file_backing(call, fd, offset, len, prot, shared, &mut eager)?
    };
    let area = Vma {
        end: 0,
        prot,
        shared,
        backing,
    };
    if call.kernel.maps_limited() {
        let freed: u64 = match place {
            Place::Fixed(at) => {
                let end = at.saturating_add(page_up(len).unwrap_or(len));
                let parts = call.kernel.mm.areas().within(at, end);
                parts.iter().map(|(start, part)| part.end - start).sum()
            }
            _ => 0,
        };
        call.kernel.may_map(len, freed, prot.writes() && !shared)?;
    }
    let file = match &area.backing {
        Backing::File { file, .. } => Some(Arc::clone(file)),
        _ => None,
    };
    let (kernel, mut cx) = call.cx();
    let at = match kernel
        .mm
        .map(&mut cx, place, len, area, flags & MAP_NORESERVE != 0)
    {
        Ok(at) => at,
        Err(e) => {
            // Nobody else has it if it was opened for this.
            if let Some(Ok(file)) = file.map(Arc::try_unwrap) {
                cx.close(file.fd)?;
            }
            return Err(e);
        }
    };
    drop(file);
    if let Some(data) = eager
        && !kernel.mm.populate(&mut cx, at, &data)?
    {
        kernel
            .mm
            .unmap(&mut cx, at, at + page_up(len).unwrap_or(len))?;
        return Err(Errno::ENOMEM.into());
    }
    Ok(Sys::Ret(at as i64))
}

/// What backs a mapping of descriptor `fd`. If the file can't be kept open its contents are returned
/// in `eager`, to be copied now.
fn file_backing(
    call: &mut Call<'_, '_>,
    fd: u64,
    offset: u64,
    len: u64,
    prot: Prot,
    shared: bool,
    eager: &mut Option<Vec<u8>>,
) -> Result<Backing, Fail> {
    if !guest_fd(fd) {
        return Err(Errno::EBADF.into());
    }
    let facts = facts(call, fd)?;
    if facts.access == 1 || (shared && prot.writes() && facts.access != 2) {
        return Err(Errno::EACCES.into());
    }
    if facts.mode & S_IFMT == S_IFCHR && facts.rdev == DEV_ZERO {
        return Ok(match shared {
            true => Backing::File {
                file: shared_memory(call, len)?,
                offset: 0,
            },
            false => Backing::Anon(""),
        });
    }
    if facts.mode & S_IFMT != S_IFREG {
        return Err(Errno::ENODEV.into());
    }
    if offset
        .checked_add(len)
        .is_none_or(|end| end > i64::MAX as u64)
    {
        return Err(Errno::EOVERFLOW.into());
    }
    let key = fd as u32 as i32;
    let mut writable = facts.access == 2;
    if shared {
        writable = mappable(call, key, writable, prot)?;
    }
    if let Some(file) = call.kernel.files.get(&key).and_then(|c| c.file.upgrade())
        && file.writable == writable
    {
        return Ok(Backing::File { file, offset });
    }
    // F_DUPFD_CLOEXEC into the kernel's own range
    let own = call.host(72, [fd, 1030, GUEST_FDS as u64, 0, 0, 0])?;
    let Some(own) = i32::try_from(own).ok().filter(|n| *n >= GUEST_FDS) else {
        if shared {
            return Err(Errno::ENOMEM.into());
        }
        let n = len.min(facts.size.saturating_sub(offset)).min(1 << 32);
        let mut data = vec![0; n as usize];
        let (_, mut cx) = call.cx();
        let got = cx.pread(key, offset, &mut data)??;
        data.truncate(got);
        *eager = Some(data);
        return Ok(Backing::Anon(""));
    };
    let name = call.fd_name(fd)?;
    let file = Arc::new(File {
        fd: own,
        id: facts.id,
        writable,
        name,
    });
    call.kernel.files.insert(
        key,
        CachedFile {
            file: Arc::downgrade(&file),
        },
    );
    Ok(Backing::File { file, offset })
}

/// Whether the host lets a file be mapped shared, and for writing. A sealed file is not, though it may have been opened so.
fn mappable(call: &mut Call<'_, '_>, fd: i32, writable: bool, prot: Prot) -> Result<bool, Fail> {
    let check = WindowCall::Check { fd, writable };
    let (_, mut cx) = call.cx();
    match cx.window(&check)? {
        Ok(_) => Ok(writable),
        Err(Errno::EPERM) if writable && !prot.writes() => {
            let check = WindowCall::Check {
                fd,
                writable: false,
            };
            cx.window(&check)??;
            Ok(false)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Shared memory without a name: a file of its own, which a forked child has, too.
fn shared_memory(call: &mut Call<'_, '_>, len: u64) -> Result<Arc<File>, Fail> {
    let len = page_up(len).ok_or(Errno::ENOMEM)?;
    let (_, mut cx) = call.cx();
    let fd = cx.window(&WindowCall::Create { len })?;
    let fd = fd.map_err(|_| Errno::ENOMEM)?;
    let Some(fd) = i32::try_from(fd).ok().filter(|n| *n >= GUEST_FDS) else {
        let what = format!("shared memory got descriptor {fd}");
        return Err(Error::Protocol { what }.into());
    };
    let id = facts(call, fd as u64)?.id;
    Ok(Arc::new(File {
        fd,
        id,
        writable: true,
        name: "/dev/zero (deleted)".into(),
    }))
}

/// ftruncate(2): the guest's own mappings behind the new end are gone when it returns.
///
/// # Errors
/// As Linux.
pub fn ftruncate(call: &mut Call<'_, '_>) -> SysResult {
    let args = call.args;
    let ret = call.proxy(&args)?;
    if ret == 0 && call.kernel.mm.shares_files() {
        let facts = facts(call, args[0])?;
        let (kernel, mut cx) = call.cx();
        kernel.mm.truncated(&mut cx, facts.id, facts.size)?;
    }
    Ok(Sys::Ret(ret))
}

/// Which file a descriptor names, if it is one.
///
/// # Errors
/// The exit failed.
pub(super) fn file_id(call: &mut Call<'_, '_>, fd: u64) -> Result<Option<FileId>, Fail> {
    match facts(call, fd) {
        Ok(facts) => Ok(Some(facts.id)),
        Err(Fail::Errno(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn facts(call: &mut Call<'_, '_>, fd: u64) -> Result<FileFacts, Fail> {
    let access = call.host(72, [fd, 3, 0, 0, 0, 0])?; // F_GETFL
    if access < 0 {
        return Err(Errno(access.unsigned_abs() as i32).into());
    }
    let ret = call.host(5, [fd, 0, 0, 0, 0, 0])?; // fstat, into the bounce area
    if ret < 0 {
        return Err(Errno(ret.unsigned_abs() as i32).into());
    }
    let mut stat = [0; 144];
    call.out.bounce_read(call.vcpu, 0, &mut stat)?;
    let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| stat[at + i]));
    Ok(FileFacts {
        mode: word(24) as u32,
        rdev: word(40),
        size: word(48),
        id: (word(0), word(8)),
        access: access as u64 & 3,
    })
}

/// mprotect(2).
///
/// # Errors
/// As Linux.
pub fn mprotect(call: &mut Call<'_, '_>) -> SysResult {
    let (start, end) = aligned(call.args[0], call.args[1])?;
    let prot = Prot::from_arg(call.args[2]);
    let (kernel, mut cx) = call.cx();
    kernel.mm.protect(&mut cx, start, end, prot)?;
    DONE
}

/// munmap(2).
///
/// # Errors
/// As Linux.
pub fn munmap(call: &mut Call<'_, '_>) -> SysResult {
    let (start, end) = aligned(call.args[0], call.args[1]).map_err(|_| Errno::EINVAL)?;
    if start == end {
        return Err(Errno::EINVAL.into());
    }
    let (kernel, mut cx) = call.cx();
    kernel.mm.unmap(&mut cx, start, end)?;
    DONE
}

/// brk(2).
///
/// # Errors
/// None to the guest: the break it gets says what happened.
pub fn brk(call: &mut Call<'_, '_>) -> SysResult {
    let to = call.args[0];
    let (kernel, mut cx) = call.cx();
    let now = kernel.mm.set_brk(&mut cx, 0)?;
    if to > now && kernel.may_map(to - now, 0, true).is_err() {
        return Ok(Sys::Ret(now as i64));
    }
    Ok(Sys::Ret(kernel.mm.set_brk(&mut cx, to)? as i64))
}

/// mremap(2).
///
/// # Errors
/// As Linux; EINVAL for MREMAP_DONTUNMAP.
pub fn mremap(call: &mut Call<'_, '_>) -> SysResult {
    let [old, len, new_len, flags, to, _] = call.args;
    let (may_move, fixed) = (flags & 1 != 0, flags & 2 != 0);
    if flags & !3 != 0 || (fixed && !may_move) || new_len == 0 {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return again(call, old, new_len, fixed.then_some(to), may_move);
    }
    let (old, end) = aligned(old, len).map_err(|_| Errno::EINVAL)?;
    let new_len = page_up(new_len).ok_or(Errno::EINVAL)?;
    let (kernel, mut cx) = call.cx();
    if new_len > end - old {
        kernel.may_map(new_len - (end - old), 0, false)?;
    }
    let at = kernel.mm.remap(
        &mut cx,
        old,
        end - old,
        new_len,
        may_move,
        fixed.then_some(to),
    )?;
    Ok(Sys::Ret(at as i64))
}

/// mremap(2) of nothing: a second mapping of what a shared one at `old` shows.
fn again(
    call: &mut Call<'_, '_>,
    old: u64,
    len: u64,
    to: Option<u64>,
    may_move: bool,
) -> SysResult {
    let (start, area) = call.kernel.mm.areas().find(old).ok_or(Errno::EFAULT)?;
    let area = match area.shared_file() {
        Some((file, offset)) if may_move && old.is_multiple_of(PAGE_SIZE) => Vma {
            backing: Backing::File {
                file: Arc::clone(file),
                offset: offset + (old - start),
            },
            ..area.clone()
        },
        _ => return Err(Errno::EINVAL.into()),
    };
    let any = Place::Any {
        hint: 0,
        top: call.kernel.mm.places.mmap_top,
    };
    let place = to.map_or(any, Place::Fixed);
    let (kernel, mut cx) = call.cx();
    let at = kernel.mm.map(&mut cx, place, len, area, true)?;
    Ok(Sys::Ret(at as i64))
}

/// msync(2): what was written is in the file already, but maybe not on the disk.
///
/// # Errors
/// As Linux.
pub fn msync(call: &mut Call<'_, '_>) -> SysResult {
    let (start, end) = aligned(call.args[0], call.args[1])?;
    if call.args[2] & !7 != 0 || call.args[2] & 5 == 5 {
        return Err(Errno::EINVAL.into());
    }
    if call.args[2] & MS_SYNC != 0 {
        for fd in call.kernel.mm.shared_files(start, end) {
            let ret = call.host(75, [fd as u64, 0, 0, 0, 0, 0])?; // fdatasync
            if ret < 0 {
                return Err(Errno(ret.unsigned_abs() as i32).into());
            }
        }
    }
    if !call.kernel.mm.areas().covers(start, end) {
        return Err(Errno::ENOMEM.into());
    }
    DONE
}

/// mincore(2).
///
/// # Errors
/// As Linux.
pub fn mincore(call: &mut Call<'_, '_>) -> SysResult {
    let (start, end) = aligned(call.args[0], call.args[1])?;
    let (kernel, mut cx) = call.cx();
    let map = kernel.mm.resident(&mut cx, start, end)?;
    call.write_user(call.args[2], &map)?;
    DONE
}

/// Advice of sevlab's own: whole pages of private anonymous memory become shared with the hypervisor.
pub const MADV_SEV_SHARE: u64 = 0x5345_5601;
/// Undoes [`MADV_SEV_SHARE`].
pub const MADV_SEV_UNSHARE: u64 = 0x5345_5602;

/// madvise(2): MADV_DONTNEED and MADV_REMOVE are done, hints are accepted and ignored. [`MADV_SEV_SHARE`] and
/// [`MADV_SEV_UNSHARE`] change page states and keep the content.
///
/// # Errors
/// As Linux; EINVAL for advice that is not a hint and not done.
pub fn madvise(call: &mut Call<'_, '_>) -> SysResult {
    let (start, end) = aligned(call.args[0], call.args[1]).map_err(|_| Errno::EINVAL)?;
    let advised = advice(call.args[2]);
    let (kernel, mut cx) = call.cx();
    match advised {
        Some(Advice::Discard) => kernel.mm.discard(&mut cx, start, end)?,
        Some(Advice::Remove) => {
            for (fd, offset, len) in kernel.mm.file_parts(start, end)? {
                // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
                let ret = call.host(285, [fd as u64, 3, offset, len, 0, 0])?;
                if ret < 0 {
                    return Err(Errno(ret.unsigned_abs() as i32).into());
                }
            }
        }
        Some(Advice::Share(shared)) => kernel.mm.share(&mut cx, start, end, shared)?,
        Some(Advice::KeepBack(wipe)) => kernel.mm.keep_back(start, end, wipe),
        Some(Advice::Give) => kernel.mm.give_to_children(start, end),
        Some(Advice::Hint) if kernel.mm.areas().covers(start, end) => {}
        Some(Advice::Hint) => return Err(Errno::ENOMEM.into()),
        None => return Err(Errno::EINVAL.into()),
    }
    DONE
}

/// What advice asks for.
enum Advice {
    /// Pages go now.
    Discard,
    /// Pages go from the file, too.
    Remove,
    /// Pages become shared with the hypervisor, or private.
    Share(bool),
    /// A child does not get it: zeroes instead (true), or nothing.
    KeepBack(bool),
    /// A child gets it after all.
    Give,
    /// Nothing that must be done.
    Hint,
}

/// What a number of madvise(2) means; `None`: unknown.
fn advice(number: u64) -> Option<Advice> {
    match number {
        4 => Some(Advice::Discard),                               // DONTNEED
        9 => Some(Advice::Remove),                                // REMOVE
        10 => Some(Advice::KeepBack(false)),                      // DONTFORK
        18 => Some(Advice::KeepBack(true)),                       // WIPEONFORK
        11 | 19 => Some(Advice::Give),                            // DOFORK, KEEPONFORK
        0..=3 | 8 | 12..=17 | 20 | 21 | 25 => Some(Advice::Hint), // RANDOM.., FREE, MERGEABLE.., COLLAPSE
        MADV_SEV_SHARE => Some(Advice::Share(true)),
        MADV_SEV_UNSHARE => Some(Advice::Share(false)),
        _ => None,
    }
}
