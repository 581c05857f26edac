//! `/proc`, where the host's would tell about the host process: which names, and who answers instead. What the files
//! say is in [`super::proctext`].
//!
//! Names are recognised however they are spelled: by `self`, `thread-self` or the own number, through `task`, with
//! dots, and relative to a directory of `/proc` that is open or the working directory.

use super::{Call, Sys, SysResult, fs, proctext};
use crate::kernel::error::{Errno, Fail};
use crate::kernel::syscall::marshal::GUEST_FDS;

/// A name in `/proc` that is the guest's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// Of the process: what follows `/proc/self/`.
    Own(String),
    /// Of the machine: what follows `/proc/`.
    Machine(String),
}

/// An open directory whose list has entries that are the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Directory {
    /// `/proc/self/fd`, `/proc/self/fdinfo`.
    Descriptors,
    /// `/proc/self/task`.
    Threads,
}

/// Last parts of the names that are the guest's. Other paths are passed on without another look.
const LAST: [&[u8]; 22] = [
    b"maps",
    b"smaps",
    b"smaps_rollup",
    b"exe",
    b"cmdline",
    b"environ",
    b"auxv",
    b"comm",
    b"stat",
    b"statm",
    b"status",
    b"limits",
    b"fd",
    b"fdinfo",
    b"task",
    b"mem",
    b"pagemap",
    b"clear_refs",
    b"cpuinfo",
    b"meminfo",
    b"uptime",
    b"loadavg",
];
const AT_FDCWD: i32 = -100;

/// A path's parts, without empty ones and dots; `None` if it is no text.
fn parts(path: &[u8]) -> Option<Vec<&str>> {
    let text = core::str::from_utf8(path).ok()?;
    let mut all = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                all.pop();
            }
            part => all.push(part),
        }
    }
    Some(all)
}

impl Call<'_, '_> {
    /// What a path means, if it is a name in `/proc` that is the guest's. `dir`: the descriptor that a relative path
    /// starts from; `None` for the working directory.
    ///
    /// # Errors
    /// The exit failed.
    pub fn in_proc(&mut self, dir: Option<u64>, path: &[u8]) -> Result<Option<Name>, Fail> {
        let path = path.strip_suffix(b"\0").unwrap_or(path);
        let last = path
            .split(|b| *b == b'/')
            .rfind(|part| !matches!(*part, b"" | b"."));
        if !last.is_some_and(|last| LAST.contains(&last)) {
            return Ok(None);
        }
        if path.first() == Some(&b'/') {
            let Some(parts) = parts(path) else {
                return Ok(None);
            };
            return self.name_of(&parts);
        }
        let base = match dir {
            Some(fd) if fd as i32 != AT_FDCWD => self.fd_name(fd)?,
            _ => self.host_link(b"/proc/self/cwd")?,
        };
        let mut whole = base.into_bytes();
        whole.push(b'/');
        whole.extend_from_slice(path);
        let Some(parts) = parts(&whole) else {
            return Ok(None);
        };
        self.name_of(&parts)
    }

    fn name_of(&mut self, parts: &[&str]) -> Result<Option<Name>, Fail> {
        let ["proc", who, rest @ ..] = parts else {
            return Ok(None);
        };
        if rest.is_empty() {
            let simulated = self.kernel.sim.is_some() && matches!(*who, "uptime" | "loadavg");
            let machine = simulated || matches!(*who, "cpuinfo" | "meminfo");
            return Ok(machine.then(|| Name::Machine((*who).to_owned())));
        }
        let own = match *who {
            "self" | "thread-self" => true,
            who if who.starts_with(|c: char| c.is_ascii_digit()) => {
                let who = who.parse().unwrap_or(0);
                self.is_thread(who)?
            }
            _ => false,
        };
        if !own {
            return Ok(None);
        }
        let rest = match rest {
            ["task", tid, rest @ ..] if !rest.is_empty() => {
                let tid = tid.parse().unwrap_or(0);
                if !self.is_thread(tid)? {
                    return Ok(None);
                }
                rest
            }
            rest => rest,
        };
        Ok(Some(Name::Own(rest.join("/"))))
    }

    /// Whether `tid` is the number of one of the guest's own threads.
    ///
    /// # Errors
    /// The exit failed.
    pub fn is_thread(&mut self, tid: i32) -> Result<bool, Fail> {
        Ok(tid > 0 && (tid == self.pid()? || self.kernel.slot_of(tid).is_some()))
    }
}

/// Opens a name of the guest's; `None`: it is the host's to open.
///
/// # Errors
/// As open(2).
pub fn open(
    call: &mut Call<'_, '_>,
    dir: Option<u64>,
    path: &[u8],
    flags: u64,
) -> Result<Option<Sys>, Fail> {
    const O_PATH: u64 = 0o10_000_000;
    let Some(name) = call.in_proc(dir, path)? else {
        return Ok(None);
    };
    let kind = match &name {
        Name::Own(rest) => match rest.as_str() {
            "fd" | "fdinfo" => Some(Directory::Descriptors),
            "task" => Some(Directory::Threads),
            "mem" | "pagemap" | "map_files" | "clear_refs" => return Err(Errno::EACCES.into()),
            _ => None,
        },
        Name::Machine(_) => None,
    };
    if let Some(kind) = kind {
        let done = fs::new_fd(call)?;
        if let Sys::Ret(fd @ 0..) = done {
            call.kernel.services.directories.insert(fd as i32, kind);
        }
        return Ok(Some(done));
    }
    if flags & O_PATH != 0 {
        return Ok(None);
    }
    match proctext::contents(call, &name)? {
        None => Ok(None),
        Some(contents) => fs::synthetic(call, &contents, flags).map(Some),
    }
}

/// An entry with another name, which begins at `name_at`.
fn renamed(entry: &[u8], name_at: usize, name: &str) -> Vec<u8> {
    let mut new = entry[..name_at].to_vec();
    new.extend_from_slice(name.as_bytes());
    // A NUL, and in the older form of getdents the type as the last byte.
    new.resize((new.len() + 2).next_multiple_of(8), 0);
    let len = new.len();
    new[16..18].copy_from_slice(&(len as u16).to_le_bytes());
    if name_at == 18 {
        new[len - 1] = entry[entry.len() - 1];
    }
    new
}

/// getdents(2), getdents64(2): what is the host's is left out of the lists of `/proc/self/fd` and `task`.
///
/// # Errors
/// As Linux.
pub fn getdents(call: &mut Call<'_, '_>) -> SysResult {
    let [fd, buffer, ..] = call.args;
    loop {
        let done = fs::clamped(call)?;
        let kind = call.kernel.services.directories.get(&(fd as i32)).copied();
        let (Some(kind), Sys::Ret(n @ 1..)) = (kind, done) else {
            return Ok(done);
        };
        let mut list = vec![0; n as usize];
        call.read_user(buffer, &mut list)?;
        let name_at = if call.row.nr == 217 { 19 } else { 18 };
        let mut kept = Vec::new();
        let mut at = 0;
        while at + name_at < list.len() {
            let len = usize::from(u16::from_le_bytes([list[at + 16], list[at + 17]]));
            let end = at + len;
            if len <= name_at || end > list.len() {
                break;
            }
            let name = &list[at + name_at..end];
            let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
            let number = core::str::from_utf8(name)
                .ok()
                .and_then(|n| n.parse::<i32>().ok());
            let shown = match (number, kind) {
                (None, _) => true,
                (Some(n), Directory::Descriptors) => n < GUEST_FDS,
                (Some(n), Directory::Threads) => match call.known_number(n) {
                    Some(n) => call.is_thread(n)?,
                    None => false,
                },
            };
            if shown {
                let own = match (number, kind) {
                    (Some(n), Directory::Threads) => call.known_number(n).filter(|own| *own != n),
                    _ => None,
                };
                match own {
                    Some(own) => kept.extend(renamed(&list[at..end], name_at, &own.to_string())),
                    None => kept.extend_from_slice(&list[at..end]),
                }
            }
            at = end;
        }
        kept.truncate(call.args[2] as usize);
        if !kept.is_empty() {
            call.write_user(buffer, &kept)?;
            return Ok(Sys::Ret(kept.len() as i64));
        }
    }
}
