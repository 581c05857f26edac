//! Files: what stands in front of the host's own system calls.
//!
//! Transfers larger than the bounce area are made in pieces; scatter/gather lists are flattened; new
//! descriptors must be the guest's; and some names in `/proc/self` mean the guest, not the host process.

use std::sync::atomic::Ordering;

use sevlab_arch::PAGE_SIZE;

use super::marshal::{GUEST_FDS, PATH_MAX, guest_fd};
use super::procfs::Name;
use super::{Call, Sys, SysResult, clocks, events, memory, procfs};
use crate::kernel::error::{Errno, Fail};
use crate::kernel::outside::NULL;
use crate::kernel::signal::{self, SigInfo};

/// Room that a piece leaves in the bounce area for other arguments.
const SLACK: usize = 8192;
/// Linux never transfers more in one call.
const RW_MAX: u64 = 0x7fff_f000;

impl Call<'_, '_> {
    /// Largest buffer that goes through the bounce area at once.
    fn chunk(&self) -> u64 {
        (self.out.bounce_len() - SLACK.min(self.out.bounce_len() / 2)) as u64
    }

    /// SIGPIPE for a write that found nobody reading.
    pub(super) fn broken_pipe(&mut self, ret: i64) {
        if ret == Errno::EPIPE.ret() {
            let slot = self.kernel.slot();
            self.kernel
                .raise_task(slot, SigInfo::kernel(signal::SIGPIPE));
        }
    }

    /// The process id, as the host says.
    ///
    /// # Errors
    /// The exit failed.
    pub fn pid(&mut self) -> Result<i32, Fail> {
        if let Some(pid) = self.kernel.pid {
            return Ok(pid);
        }
        let pid = self.host(39, [0; 6])? as i32;
        self.kernel.pid = Some(pid);
        Ok(pid)
    }

    /// A host system call whose argument `index` is a string at the start of the bounce area.
    fn host_with_str(
        &mut self,
        nr: i64,
        text: &[u8],
        index: usize,
        mut args: [u64; 6],
    ) -> Result<i64, Fail> {
        let mut bytes = text.to_vec();
        if bytes.last() != Some(&0) {
            bytes.push(0);
        }
        if bytes.len() > PATH_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        self.out.bounce_write(self.vcpu, 0, &bytes)?;
        args[index] = 0;
        Ok(self.host(nr, args)?)
    }

    /// What a descriptor names, for `/proc/self/maps`; empty if the host does not say.
    ///
    /// # Errors
    /// The exit failed.
    pub fn fd_name(&mut self, fd: u64) -> Result<String, Fail> {
        self.host_link(format!("/proc/self/fd/{}", fd as u32).as_bytes())
    }

    /// Where a link of the host's points to; empty if the host does not say.
    ///
    /// # Errors
    /// The exit failed.
    pub fn host_link(&mut self, link: &[u8]) -> Result<String, Fail> {
        let at = PATH_MAX as u64;
        let n = self.host_with_str(89, link, 0, [0, at, 1024, 0, 0, 0])?;
        let Ok(n @ 1..=1024) = usize::try_from(n) else {
            return Ok(String::new());
        };
        let mut name = vec![0; n];
        self.out.bounce_read(self.vcpu, PATH_MAX, &mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// What a file of the host's says; empty if it can't be read.
    ///
    /// # Errors
    /// The exit failed.
    pub fn host_file(&mut self, path: &[u8]) -> Result<Vec<u8>, Fail> {
        const O_CLOEXEC: u64 = 0o2_000_000;
        let fd = self.host_with_str(2, path, 0, [0, O_CLOEXEC, 0, 0, 0, 0])?;
        let mut all = Vec::new();
        if fd < 0 {
            return Ok(all);
        }
        let chunk = self.chunk();
        loop {
            let n = self.host(0, [fd as u64, 0, chunk, 0, 0, 0])?;
            if n == Errno::EINTR.ret() {
                self.vcpu.state.exit_request.store(0, Ordering::SeqCst); // the look is taken soon
                continue;
            }
            let Some(n @ 1..) = usize::try_from(n).ok().filter(|n| *n as u64 <= chunk) else {
                break;
            };
            let from = all.len();
            all.resize(from + n, 0);
            self.out.bounce_read(self.vcpu, 0, &mut all[from..])?;
        }
        self.host(3, [fd as u64, 0, 0, 0, 0, 0])?;
        Ok(all)
    }

    /// Takes a new descriptor from the host, if it is one the guest may have.
    pub(super) fn adopt(&mut self, ret: i64) -> Result<i64, Fail> {
        let Ok(fd) = i32::try_from(ret) else {
            return Ok(ret);
        };
        if fd >= self.kernel.end_of_fds() {
            self.host(3, [fd as u64, 0, 0, 0, 0, 0])?;
            return Err(Errno::EMFILE.into());
        }
        if fd >= 0 {
            self.forget_fd(fd);
        }
        Ok(ret)
    }

    fn is_regular(&mut self, fd: u64) -> Result<bool, Fail> {
        if self.host(5, [fd, 0, 0, 0, 0, 0])? != 0 {
            return Ok(false);
        }
        let mut mode = [0; 4];
        self.out.bounce_read(self.vcpu, 24, &mut mode)?;
        Ok(u32::from_le_bytes(mode) & 0o170_000 == 0o100_000)
    }

    /// Whether another read would return at once: a regular file, or poll(2) says that there is more.
    fn has_more(&mut self, fd: u64) -> Result<bool, Fail> {
        Ok(self.is_regular(fd)? || self.is_ready(fd, libc::POLLIN)?)
    }

    /// Whether poll(2) reports this event at once.
    pub(super) fn is_ready(&mut self, fd: u64, event: i16) -> Result<bool, Fail> {
        let mut poll = [0; 8];
        poll[..4].copy_from_slice(&(fd as u32).to_le_bytes());
        poll[4..6].copy_from_slice(&event.to_le_bytes());
        self.out.bounce_write(self.vcpu, 0, &poll)?;
        if self.host(7, [0, 1, 0, 0, 0, 0])? != 1 {
            return Ok(false);
        }
        self.out.bounce_read(self.vcpu, 0, &mut poll)?;
        Ok(i16::from_le_bytes([poll[6], poll[7]]) & event != 0)
    }

    /// How many of `len` bytes at `at` (`None`: the file's position) `RLIMIT_FSIZE` lets through.
    ///
    /// # Errors
    /// EFBIG, with a SIGXFSZ, for none.
    fn within_file_limit(&mut self, fd: u64, at: Option<u64>, len: u64) -> Result<u64, Fail> {
        const O_APPEND: i64 = 0o2000;
        let Some(limit) = self.kernel.file_limit() else {
            return Ok(len);
        };
        if len == 0 || !self.is_regular(fd)? {
            return Ok(len);
        }
        let mut size = [0; 8];
        self.out.bounce_read(self.vcpu, 48, &mut size)?;
        let flags = self.host(72, [fd, 3, 0, 0, 0, 0])?; // F_GETFL
        let at = match at {
            _ if flags >= 0 && flags & O_APPEND != 0 => u64::from_le_bytes(size),
            Some(at) => at,
            None => self.host(8, [fd, 0, 1, 0, 0, 0])?.max(0) as u64, // SEEK_CUR
        };
        match limit.saturating_sub(at) {
            0 => Err(self.too_large().into()),
            room => Ok(len.min(room)),
        }
    }

    /// read, write, pread64 or pwrite64 in pieces.
    fn transfer(&mut self) -> SysResult {
        let mut args = self.args;
        let mut total = args[2].min(RW_MAX);
        let (nr, chunk) = (self.row.nr, self.chunk());
        let reads = matches!(nr, 0 | 17);
        if !reads {
            total = self.within_file_limit(args[0], (nr == 18).then_some(args[3]), total)?;
        }
        args[2] = total.min(chunk);
        let mut ret = self.proxy(&args)?;
        let mut done = ret;
        while (done as u64) < total && ret > 0 && ret == args[2] as i64 {
            if reads && !self.has_more(args[0])? {
                break;
            }
            args[1] = self.args[1].wrapping_add(done as u64);
            args[2] = (total - done as u64).min(chunk);
            args[3] = self.args[3].wrapping_add(done as u64);
            ret = match self.proxy(&args) {
                Ok(n) if n > 0 => n,
                Ok(_) | Err(Fail::Errno(_)) => break,
                Err(e) => return Err(e),
            };
            done += ret;
        }
        if !reads {
            self.broken_pipe(done);
            self.wrote(args[0])?;
        }
        Ok(Sys::Ret(done))
    }

    /// A file was written to: code that a mapping shows of it is another now.
    fn wrote(&mut self, fd: u64) -> Result<(), Fail> {
        if !self.kernel.mm.executes_files() {
            return Ok(());
        }
        let Some(id) = super::memory::file_id(self, fd)? else {
            return Ok(());
        };
        let mine = self.vcpu.begin_exclusive();
        let (kernel, mut cx) = self.cx();
        let done = kernel.mm.file_changed(&mut cx, id);
        if mine {
            self.vcpu.end_exclusive();
        }
        Ok(done?)
    }
}

/// read(2).
///
/// # Errors
/// As Linux.
pub fn read(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, buffer, len, ..] = call.args;
    if let Some(records) = events::read(call, fd as i32, len)? {
        call.write_user(buffer, &records)?;
        return Ok(Sys::Ret(records.len() as i64));
    }
    if let Some(bytes) = call.random_device(fd, len) {
        call.write_user(buffer, &bytes)?;
        return Ok(Sys::Ret(bytes.len() as i64));
    }
    call.transfer()
}
/// write(2).
///
/// # Errors
/// As Linux.
pub fn write(call: &mut Call<'_, '_>) -> SysResult {
    call.transfer()
}
/// pread(2).
///
/// # Errors
/// As Linux.
pub fn pread64(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, buffer, len, ..] = call.args;
    if let Some(bytes) = call.random_device(fd, len) {
        call.write_user(buffer, &bytes)?;
        return Ok(Sys::Ret(bytes.len() as i64));
    }
    call.transfer()
}
/// pwrite(2).
///
/// # Errors
/// As Linux.
pub fn pwrite64(call: &mut Call<'_, '_>) -> SysResult {
    call.transfer()
}

/// The position argument of readv's family: `None` for the file's own.
fn position(call: &Call<'_, '_>) -> Result<Option<u64>, Errno> {
    let positioned = matches!(call.row.nr, 295 | 296 | 327 | 328);
    let v2 = matches!(call.row.nr, 327 | 328);
    match call.args[3] as i64 {
        _ if !positioned => Ok(None),
        -1 if v2 => Ok(None),
        n if n < 0 => Err(Errno::EINVAL),
        n => Ok(Some(n as u64)),
    }
}

/// Flags of preadv2 and pwritev2.
mod rwf {
    /// A hint.
    pub const HIPRI: u64 = 1;
    /// The data is on the disk when the call returns.
    pub const DSYNC: u64 = 2;
    /// The data and what describes it.
    pub const SYNC: u64 = 4;
    /// EAGAIN instead of waiting.
    pub const NOWAIT: u64 = 8;
    /// At the end of the file.
    pub const APPEND: u64 = 16;
}

/// The flags argument, checked.
///
/// # Errors
/// EOPNOTSUPP for unknown ones; EAGAIN if NOWAIT is asked for and nothing can be had at once.
fn rw_flags(call: &mut Call<'_, '_>, writes: bool) -> Result<u64, Fail> {
    let flags = if matches!(call.row.nr, 327 | 328) {
        call.args[5]
    } else {
        0
    };
    let known = rwf::HIPRI
        | rwf::NOWAIT
        | if writes {
            rwf::DSYNC | rwf::SYNC | rwf::APPEND
        } else {
            0
        };
    if flags & !known != 0 {
        return Err(Errno::ENOTSUP.into());
    }
    let fd = call.args[0];
    let event = if writes { libc::POLLOUT } else { libc::POLLIN };
    if flags & rwf::NOWAIT != 0 && !call.is_regular(fd)? && !call.is_ready(fd, event)? {
        return Err(Errno::EAGAIN.into());
    }
    Ok(flags)
}

/// readv(2), preadv(2), preadv2(2).
///
/// # Errors
/// As Linux.
pub fn readv(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, iov, n, ..] = call.args;
    if !guest_fd(fd) {
        return Err(Errno::EBADF.into());
    }
    let at = position(call)?;
    rw_flags(call, false)?;
    let total: u64 = call
        .iovecs(iov, n)?
        .iter()
        .map(|v| v.1)
        .sum::<u64>()
        .min(RW_MAX);
    if let Some(records) = events::read(call, fd as i32, total)? {
        call.scatter(iov, n, &records)?;
        return Ok(Sys::Ret(records.len() as i64));
    }
    if let Some(bytes) = call.random_device(fd, total) {
        call.scatter(iov, n, &bytes)?;
        return Ok(Sys::Ret(bytes.len() as i64));
    }
    let chunk = call.out.bounce_len() as u64;
    let mut data = Vec::new();
    loop {
        let want = (total - data.len() as u64).min(chunk);
        let ret = match at {
            None => call.host(0, [fd, 0, want, 0, 0, 0])?,
            Some(p) => call.host(17, [fd, 0, want, p + data.len() as u64, 0, 0])?,
        };
        if ret < 0 && data.is_empty() {
            return Ok(Sys::Ret(ret));
        }
        let got = (ret.max(0) as u64).min(want) as usize;
        let from = data.len();
        data.resize(from + got, 0);
        call.out.bounce_read(call.vcpu, 0, &mut data[from..])?;
        let full = got > 0 && got as u64 == want && (data.len() as u64) < total;
        if !full || !call.has_more(fd)? {
            break;
        }
    }
    call.scatter(iov, n, &data)?;
    Ok(Sys::Ret(data.len() as i64))
}

/// writev(2), pwritev(2), pwritev2(2).
///
/// # Errors
/// As Linux.
pub fn writev(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, iov, n, ..] = call.args;
    if !guest_fd(fd) {
        return Err(Errno::EBADF.into());
    }
    let mut at = position(call)?;
    let flags = rw_flags(call, true)?;
    let mut data = call.gather(iov, n, RW_MAX as usize)?;
    if flags & rwf::APPEND != 0 && call.is_regular(fd)? {
        let mut size = [0; 8];
        call.out.bounce_read(call.vcpu, 48, &mut size)?;
        at = Some(u64::from_le_bytes(size));
    }
    let fits = call.within_file_limit(fd, at, data.len() as u64)?;
    data.truncate(fits as usize);
    let mut done = 0;
    loop {
        let want = (data.len() - done).min(call.out.bounce_len());
        call.out
            .bounce_write(call.vcpu, 0, &data[done..done + want])?;
        let ret = match at {
            None => call.host(1, [fd, 0, want as u64, 0, 0, 0])?,
            Some(p) => call.host(18, [fd, 0, want as u64, p + done as u64, 0, 0])?,
        };
        if ret < 0 && done == 0 {
            call.broken_pipe(ret);
            return Ok(Sys::Ret(ret));
        }
        let put = (ret.max(0) as usize).min(want);
        done += put;
        if put < want || done == data.len() {
            if flags & (rwf::DSYNC | rwf::SYNC) != 0 {
                let nr = if flags & rwf::SYNC != 0 { 74 } else { 75 }; // fsync, fdatasync
                call.host(nr, [fd, 0, 0, 0, 0, 0])?;
            }
            call.wrote(fd)?;
            return Ok(Sys::Ret(done as i64));
        }
    }
}

/// Calls with one buffer that may be larger than the bounce area: a shorter one does as well.
///
/// # Errors
/// As Linux.
pub fn clamped(call: &mut Call<'_, '_>) -> SysResult {
    let at = if matches!(call.row.nr, 79 | 318) {
        1
    } else {
        2
    };
    let mut args = call.args;
    args[at] = args[at].min(call.chunk());
    let ret = call.proxy(&args)?;
    const MSG_NOSIGNAL: u64 = 0x4000;
    if call.row.nr == 44 && args[3] & MSG_NOSIGNAL == 0 {
        call.broken_pipe(ret);
    }
    Ok(Sys::Ret(ret))
}

/// Calls that return a new descriptor.
///
/// # Errors
/// As Linux; EMFILE if the descriptor is beyond the guest's.
pub fn new_fd(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    Ok(Sys::Ret(call.adopt(ret)?))
}

/// open(2).
///
/// # Errors
/// As Linux.
pub fn open(call: &mut Call<'_, '_>) -> SysResult {
    let [path, flags, ..] = call.args;
    open_path(call, None, path, flags)
}

/// openat(2).
///
/// # Errors
/// As Linux.
pub fn openat(call: &mut Call<'_, '_>) -> SysResult {
    let [dir, path, flags, ..] = call.args;
    open_path(call, Some(dir), path, flags)
}

/// Files that say how many processors there are.
const PROCESSORS: [&[u8]; 3] = [
    b"/sys/devices/system/cpu/online\0",
    b"/sys/devices/system/cpu/possible\0",
    b"/sys/devices/system/cpu/present\0",
];

fn open_path(call: &mut Call<'_, '_>, dir: Option<u64>, path: u64, flags: u64) -> SysResult {
    let text = call.read_str(path)?;
    if call.kernel.sim.is_some() && PROCESSORS.contains(&text.as_slice()) {
        let all = format!("0-{}\n", clocks::CPUS - 1);
        return synthetic(call, all.as_bytes(), flags);
    }
    match procfs::open(call, dir, &text, flags)? {
        Some(done) => Ok(done),
        None => {
            let done = new_fd(call)?;
            if let (Sys::Ret(fd @ 0..), b"/dev/urandom\0" | b"/dev/random\0", Some(sim)) =
                (done, text.as_slice(), &mut call.kernel.sim)
            {
                sim.randoms.insert(fd as i32);
            }
            Ok(done)
        }
    }
}

/// truncate(2), ftruncate(2), fallocate(2).
///
/// # Errors
/// As Linux.
pub fn set_size(call: &mut Call<'_, '_>) -> SysResult {
    let [_, length, offset, more, ..] = call.args;
    let end = match call.row.nr {
        285 => offset.saturating_add(more),
        _ => length,
    };
    if call
        .kernel
        .file_limit()
        .is_some_and(|limit| end > limit && end < 1 << 63)
    {
        return Err(call.too_large().into());
    }
    if call.row.nr == 77 {
        return memory::ftruncate(call);
    }
    Ok(Sys::Ret(call.proxy(&call.args.clone())?))
}

/// A descriptor of a file in memory that holds `contents`.
///
/// # Errors
/// EACCES for writing, EMFILE.
pub(super) fn synthetic(call: &mut Call<'_, '_>, contents: &[u8], flags: u64) -> SysResult {
    if flags & 3 != 0 {
        return Err(Errno::EACCES.into());
    }
    let cloexec = u64::from(flags & 0o2_000_000 != 0); // MFD_CLOEXEC
    let fd = call.host_with_str(319, b"proc", 0, [0, cloexec, 0, 0, 0, 0])?;
    let fd = call.adopt(fd)?;
    if fd < 0 {
        return Ok(Sys::Ret(fd));
    }
    for (i, part) in contents.chunks(PAGE_SIZE as usize).enumerate() {
        call.out.bounce_write(call.vcpu, 0, part)?;
        let at = i as u64 * PAGE_SIZE;
        call.host(18, [fd as u64, 0, part.len() as u64, at, 0, 0])?;
    }
    Ok(Sys::Ret(fd))
}

/// close(2).
///
/// # Errors
/// As Linux.
pub fn close(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    call.forget_fd(call.args[0] as i32);
    Ok(Sys::Ret(ret))
}

/// close_range(2); the kernel's own descriptors are beyond its reach.
///
/// # Errors
/// As Linux.
pub fn close_range(call: &mut Call<'_, '_>) -> SysResult {
    let (first, last) = (call.args[0] as u32, call.args[1] as u32);
    if first > last {
        return Err(Errno::EINVAL.into());
    }
    let last = last.min(GUEST_FDS as u32 - 1);
    if first > last {
        return Ok(Sys::Ret(0));
    }
    const CLOEXEC: u64 = 4;
    if call.args[2] & CLOEXEC == 0 {
        for fd in first..=last {
            call.forget_fd(fd as i32);
        }
    }
    let args = [u64::from(first), u64::from(last), call.args[2], 0, 0, 0];
    Ok(Sys::Ret(call.proxy(&args)?))
}

/// dup(2).
///
/// # Errors
/// As Linux.
pub fn dup(call: &mut Call<'_, '_>) -> SysResult {
    let done = new_fd(call)?;
    if let Sys::Ret(fd @ 0..) = done {
        let from = call.args[0] as i32;
        call.kernel.services.copy(from, fd as i32);
        if let Some(sim) = &mut call.kernel.sim {
            sim.copy(from, fd as i32);
        }
    }
    Ok(done)
}

/// dup2(2), dup3(2).
///
/// # Errors
/// As Linux.
pub fn dup2(call: &mut Call<'_, '_>) -> SysResult {
    let (from, to) = (call.args[0] as i32, call.args[1] as i32);
    if to >= call.kernel.end_of_fds() {
        return Err(Errno::EBADF.into());
    }
    let ret = call.proxy(&call.args.clone())?;
    if ret >= 0 && from != to {
        call.kernel.files.remove(&to);
        call.kernel.services.copy(from, to);
        if let Some(sim) = &mut call.kernel.sim {
            sim.copy(from, to);
        }
    }
    Ok(Sys::Ret(ret))
}

/// fcntl(2).
///
/// # Errors
/// As Linux.
pub fn fcntl(call: &mut Call<'_, '_>) -> SysResult {
    const F_DUPFD: u32 = 0;
    const F_DUPFD_CLOEXEC: u32 = 1030;
    if matches!(call.args[1] as u32, F_DUPFD | F_DUPFD_CLOEXEC) {
        if call.args[2] as u32 >= call.kernel.end_of_fds() as u32 {
            return Err(Errno::EINVAL.into());
        }
        return dup(call);
    }
    Ok(Sys::Ret(call.proxy(&call.args.clone())?))
}

/// pipe(2), pipe2(2), socketpair(2).
///
/// # Errors
/// As Linux; EMFILE if a descriptor is beyond the guest's.
pub fn pipe(call: &mut Call<'_, '_>) -> SysResult {
    let ret = call.proxy(&call.args.clone())?;
    if ret < 0 {
        return Ok(Sys::Ret(ret));
    }
    let va = call.args[if call.row.nr == 53 { 3 } else { 0 }];
    let fds = [call.read_u32(va)?, call.read_u32(va.wrapping_add(4))?];
    let end = call.kernel.end_of_fds();
    if fds.iter().any(|fd| *fd as i32 >= end) {
        for fd in fds {
            call.host(3, [u64::from(fd), 0, 0, 0, 0, 0])?;
        }
        return Err(Errno::EMFILE.into());
    }
    for fd in fds {
        call.forget_fd(fd as i32);
        if let Some(sim) = &mut call.kernel.sim {
            sim.inside.insert(fd as i32);
        }
    }
    Ok(Sys::Ret(ret))
}

fn read_link(
    call: &mut Call<'_, '_>,
    dir: Option<u64>,
    path: u64,
    buffer: u64,
    len: u64,
) -> SysResult {
    let text = call.read_str(path)?;
    if call.in_proc(dir, &text)? == Some(Name::Own("exe".to_owned())) {
        if len as i32 <= 0 {
            return Err(Errno::EINVAL.into());
        }
        let exe = call.kernel.exe_bytes().to_vec();
        let n = exe.len().min(len as usize);
        call.write_user(buffer, &exe[..n])?;
        return Ok(Sys::Ret(n as i64));
    }
    if call.kernel.sim.is_some() && matches!(&text[..], b"/proc/self\0" | b"/proc/thread-self\0") {
        let mut name = call.pid()?.to_string();
        if text.len() > b"/proc/self\0".len() {
            name = format!("{name}/task/{}", call.tid()?);
        }
        let n = name.len().min(len as usize);
        call.write_user(buffer, &name.as_bytes()[..n])?;
        return Ok(Sys::Ret(n as i64));
    }
    let at = if call.row.nr == 89 { 2 } else { 3 };
    let mut args = call.args;
    args[at] = len.min(call.chunk() - PATH_MAX as u64);
    Ok(Sys::Ret(call.proxy(&args)?))
}

/// readlink(2).
///
/// # Errors
/// As Linux.
pub fn readlink(call: &mut Call<'_, '_>) -> SysResult {
    let [path, buffer, len, ..] = call.args;
    read_link(call, None, path, buffer, len)
}

/// readlinkat(2).
///
/// # Errors
/// As Linux.
pub fn readlinkat(call: &mut Call<'_, '_>) -> SysResult {
    let [dir, path, buffer, len, ..] = call.args;
    read_link(call, Some(dir), path, buffer, len)
}

/// A host timespec at the start of the bounce area.
impl Call<'_, '_> {
    /// Sleeps on the host: `clock_nanosleep(clock, flags, time)`; the raw result.
    ///
    /// # Errors
    /// The exit failed.
    pub fn host_sleep(&mut self, clock: u64, flags: u64, time: [u64; 2]) -> Result<i64, Fail> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&time[0].to_le_bytes());
        bytes[8..].copy_from_slice(&time[1].to_le_bytes());
        self.out.bounce_write(self.vcpu, 0, &bytes)?;
        Ok(self.host(230, [clock, flags, 0, NULL, 0, 0])?)
    }
}
