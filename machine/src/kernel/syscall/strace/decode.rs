//! One argument as text, by its word in the table.
//!
//! A word that begins with a capital is a set of names from [`super::flags`]. The others are in [`WORDS`]. A word that
//! ends in `>` is something the call writes: it is printed when the call is over, and as an address if it failed.

use super::flags::Names;
use super::signal_name;
use crate::kernel::syscall::Call;

/// The words that are not names of flags.
#[rustfmt::skip]
pub const WORDS: &[&str] = &[
    "d", "u", "l", "x", "o", "p", "mode?", // numbers, octal, address, mode if O_CREAT
    "fd", "at", "s", "s>", "<", ">", // descriptors, strings, buffers: the next argument or the result is the length
    "d*", "d*>", "l*", "fds>", "iov", "iov>", "strv", "envv", "cpus", "cpus>",
    "stat>", "statx>", "dents>", "uts>", "ts", "ts>", "tv", "tv>", "itv", "itv>", "its", "its>", "times",
    "rlim", "rlim>", "wstatus>", "stack", "stack>", "sig", "set", "set>", "act", "act>", "info>",
    "poll", "fdset", "ev", "evs>", "sa", "sa>", "msg", "msg>", "opt", "opt>", "how",
    "iarg", "farg", "prarg", "proto", "so", "_", // the last one is not printed
];

/// Bytes of a string or buffer that are printed.
const SHOWN: usize = 32;
/// Elements of a list that are printed.
const LISTED: u64 = 32;

/// A number in hexadecimal, as strace has it.
pub(super) fn hex(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

fn pointer(value: u64) -> String {
    if value == 0 {
        "NULL".to_owned()
    } else {
        format!("{value:#x}")
    }
}

fn octal(value: u64) -> String {
    if value == 0 {
        "000".to_owned()
    } else {
        format!("0{value:o}")
    }
}

/// Bytes in quotes with C's escapes; `more`: there are more than these.
pub fn quoted(bytes: &[u8], more: bool) -> String {
    let mut text = String::from("\"");
    for (i, b) in bytes.iter().enumerate() {
        match b {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\r' => text.push_str("\\r"),
            0x0b => text.push_str("\\v"),
            0x0c => text.push_str("\\f"),
            b' '..=b'~' => text.push(char::from(*b)),
            // short, unless a digit follows that would be taken as part of it
            _ if bytes.get(i + 1).is_some_and(u8::is_ascii_digit) => {
                text.push_str(&format!("\\{b:03o}"));
            }
            _ => text.push_str(&format!("\\{b:o}")),
        }
    }
    text.push('"');
    if more {
        text.push_str("...");
    }
    text
}

/// The beginning of what is no path.
pub(super) fn shortened(bytes: &[u8]) -> String {
    quoted(&bytes[..bytes.len().min(SHOWN)], bytes.len() > SHOWN)
}

fn named(word: &str, value: u64) -> String {
    Names::of(word).map_or_else(|| hex(value), |names| names.text(value))
}

/// Little-endian fields of a structure in the guest's memory.
struct Fields(Vec<u8>);

impl Fields {
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|i| self.0[at + i]))
    }
    fn half(&self, at: usize) -> u32 {
        u32::from_le_bytes(core::array::from_fn(|i| self.0[at + i]))
    }
    fn quarter(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

fn fields(call: &mut Call<'_, '_>, va: u64, n: usize) -> Option<Fields> {
    let mut bytes = vec![0; n];
    call.read_user(va, &mut bytes).ok()?;
    Some(Fields(bytes))
}

/// Argument `i`, which the table calls `word`. `ret`: what the call returned, if it has; `None` as a result: to be
/// asked for again then.
pub(super) fn argument(
    call: &mut Call<'_, '_>,
    word: &str,
    i: usize,
    ret: Option<i64>,
) -> Option<String> {
    let value = call.args[i];
    if call.row.nr == 202 && i > 0 {
        return Some(futex_argument(call, i));
    }
    if word.ends_with('>') {
        return match ret {
            None => None,
            Some(ret) if ret < 0 || value == 0 => Some(pointer(value)),
            Some(ret) => Some(output(call, word, i, ret).unwrap_or_else(|| pointer(value))),
        };
    }
    let text = match word {
        "d" => (value as i32).to_string(),
        "u" => value.to_string(),
        "l" => (value as i64).to_string(),
        "x" => hex(value),
        "o" => octal(value & 0xffff_ffff),
        "p" => pointer(value),
        "mode?" => {
            const O_CREAT: u64 = 0o100;
            const TMPFILE: u64 = 0o20_000_000;
            let flags = call.args[i - 1];
            if flags & (O_CREAT | TMPFILE) == 0 {
                return Some(String::new());
            }
            octal(value & 0xffff_ffff)
        }
        "fd" => (value as i32).to_string(),
        "at" if value as i32 == -100 => "AT_FDCWD".to_owned(),
        "at" => (value as i32).to_string(),
        "sig" => signal_name(value as i32),
        "iarg" if call.args[2] < 0x1000 => call.args[2].to_string(),
        "iarg" => return ret.map(|ret| ioctl_argument(call, ret)),
        "farg" => return fcntl_argument(call, ret),
        "_" => String::new(),
        "proto" => match call.args[0] {
            2 | 10 => named("IPPROTO", value),
            _ => value.to_string(),
        },
        "so" => match call.args[1] {
            1 => named("SO", value),
            6 => named("TCP", value),
            _ => value.to_string(),
        },
        "prarg" => match call.args[0] as u32 {
            15 => short_string(call, value).unwrap_or_else(|| pointer(value)),
            _ => hex(value),
        },
        word if word.starts_with(|c: char| c.is_ascii_uppercase()) => named(word, value),
        _ if value == 0 => "NULL".to_owned(),
        word => input(call, word, i).unwrap_or_else(|| pointer(value)),
    };
    Some(text)
}

/// What a pointer argument points at before the call.
fn input(call: &mut Call<'_, '_>, word: &str, i: usize) -> Option<String> {
    let va = call.args[i];
    let next = call.args.get(i + 1).copied().unwrap_or(0);
    Some(match word {
        "s" => string(call, va)?,
        "<" => buffer(call, va, next)?,
        "d*" => format!("[{}]", fields(call, va, 4)?.half(0) as i32),
        "l*" => format!("[{}]", fields(call, va, 8)?.word(0) as i64),
        "opt" if next == 4 => format!("[{}]", fields(call, va, 4)?.half(0) as i32),
        "opt" => buffer(call, va, next)?,
        "iov" => iovecs(call, va, next, u64::MAX)?,
        "strv" => strings(call, va)?,
        "envv" => format!("{va:#x} /* {} vars */", pointers(call, va)?.len()),
        "ts" | "tv" => time(&fields(call, va, 16)?, 0, word),
        "times" => {
            let f = fields(call, va, 32)?;
            format!("[{}, {}]", time(&f, 0, "ts"), time(&f, 16, "ts"))
        }
        "itv" | "its" => interval(&fields(call, va, 32)?, word),
        "rlim" => limits(&fields(call, va, 16)?),
        "stack" => stack(&fields(call, va, 24)?),
        "set" => signals(fields(call, va, 8)?.word(0)),
        "act" => action(&fields(call, va, 32)?),
        "cpus" => cpus(call, va, call.args[i - 1])?,
        "poll" => {
            let n = next.min(LISTED);
            let f = fields(call, va, n as usize * 8)?;
            let each = |at: usize| {
                let fd = f.half(at) as i32;
                if fd < 0 {
                    return format!("{{fd={fd}}}");
                }
                let events = named("POLL", u64::from(f.quarter(at + 4)));
                format!("{{fd={fd}, events={events}}}")
            };
            list((0..n as usize).map(|i| each(i * 8)), next > n)
        }
        "fdset" => fd_set(call, va, call.args[0])?,
        "ev" => {
            let f = fields(call, va, 12)?;
            event(&f, 0)
        }
        "sa" => address(call, va, next)?,
        "msg" => message(call, va, u64::MAX)?,
        "how" => {
            let f = fields(call, va, 24)?;
            let (flags, resolve) = (named("O", f.word(0)), hex(f.word(16)));
            format!(
                "{{flags={flags}, mode={}, resolve={resolve}}}",
                octal(f.word(8))
            )
        }
        _ => return None,
    })
}

/// What a call that returned `ret` wrote.
fn output(call: &mut Call<'_, '_>, word: &str, i: usize, ret: i64) -> Option<String> {
    let va = call.args[i];
    Some(match word {
        ">" => {
            let room = call.args.get(i + 1).copied().unwrap_or(u64::MAX);
            buffer(call, va, room.min(ret as u64))?
        }
        "s>" => string(call, va)?,
        "d*>" => format!("[{}]", fields(call, va, 4)?.half(0) as i32),
        "fds>" => {
            let f = fields(call, va, 8)?;
            format!("[{}, {}]", f.half(0) as i32, f.half(4) as i32)
        }
        "opt>" => {
            let n = fields(call, call.args[i + 1], 4)?.half(0);
            match n {
                4 => format!("[{}]", fields(call, va, 4)?.half(0) as i32),
                n => buffer(call, va, u64::from(n))?,
            }
        }
        "iov>" => iovecs(call, va, call.args[i + 1], ret as u64)?,
        "cpus>" => cpus(call, va, ret as u64)?,
        "stat>" => {
            let f = fields(call, va, 144)?;
            stat(f.half(24), f.word(40), f.word(48))
        }
        "statx>" => {
            let f = fields(call, va, 256)?;
            let mode = file_mode(u32::from(f.quarter(28)));
            let mask = named("STATX", u64::from(f.half(0)));
            format!(
                "{{stx_mask={mask}, stx_mode={mode}, stx_size={}, ...}}",
                f.word(40)
            )
        }
        "dents>" => {
            let f = fields(call, va, ret as usize)?;
            let (mut at, mut n) = (0, 0);
            while at + 18 <= f.0.len() {
                at += usize::from(f.quarter(at + 16)).max(18);
                n += 1;
            }
            format!("{va:#x} /* {n} entries */")
        }
        "uts>" => {
            let f = fields(call, va, 130)?;
            let text = |at: usize| {
                let s = &f.0[at..at + 65];
                quoted(&s[..s.iter().position(|b| *b == 0).unwrap_or(65)], false)
            };
            format!("{{sysname={}, nodename={}, ...}}", text(0), text(65))
        }
        "ts>" | "tv>" => time(&fields(call, va, 16)?, 0, &word[..2]),
        "itv>" | "its>" => interval(&fields(call, va, 32)?, &word[..3]),
        "rlim>" => limits(&fields(call, va, 16)?),
        "stack>" => stack(&fields(call, va, 24)?),
        "set>" => signals(fields(call, va, 8)?.word(0)),
        "act>" => action(&fields(call, va, 32)?),
        "info>" => {
            let f = fields(call, va, 16)?;
            format!(
                "{{si_signo={}, si_code={}}}",
                signal_name(f.half(0) as i32),
                f.half(8) as i32
            )
        }
        "wstatus>" => status(fields(call, va, 4)?.half(0)),
        "evs>" => {
            let n = (ret as u64).min(LISTED);
            let f = fields(call, va, n as usize * 12)?;
            list((0..n as usize).map(|i| event(&f, i * 12)), ret as u64 > n)
        }
        "sa>" => {
            let n = fields(call, call.args[i + 1], 4)?.half(0);
            address(call, va, u64::from(n))?
        }
        "msg>" => message(call, va, ret as u64)?,
        _ => return None,
    })
}

/// What stands behind a result, as strace adds it: which descriptors poll has found, what flags a file has.
pub(super) fn returned(call: &mut Call<'_, '_>, ret: i64) -> String {
    match call.row.nr {
        7 | 271 if ret == 0 => " (Timeout)".to_owned(),
        7 | 271 => {
            let n = call.args[1].min(LISTED) as usize;
            let Some(f) = fields(call, call.args[0], n * 8) else {
                return String::new();
            };
            let ready = (0..n).map(|i| i * 8).filter(|at| f.quarter(at + 6) != 0);
            let each = |at: usize| {
                let events = named("POLL", u64::from(f.quarter(at + 6)));
                format!("{{fd={}, revents={events}}}", f.half(at) as i32)
            };
            format!(" ({})", list(ready.map(each), false))
        }
        23 | 270 if ret == 0 => " (Timeout)".to_owned(),
        72 if call.args[1] as u32 == 1 && ret != 0 => {
            format!(" (flags {})", named("FD_", ret as u64))
        }
        72 if call.args[1] as u32 == 3 => {
            let flags = named("O", ret as u64 & !0o100_000);
            format!(" (flags {flags})")
        }
        _ => String::new(),
    }
}

fn list(parts: impl Iterator<Item = String>, more: bool) -> String {
    let mut parts: Vec<String> = parts.collect();
    if more {
        parts.push("...".to_owned());
    }
    format!("[{}]", parts.join(", "))
}

fn string(call: &mut Call<'_, '_>, va: u64) -> Option<String> {
    let text = call.read_str(va).ok()?;
    let text = &text[..text.len() - 1];
    // Paths are printed whole, as strace does.
    Some(quoted(text, false))
}

/// A string that is no path: its beginning.
fn short_string(call: &mut Call<'_, '_>, va: u64) -> Option<String> {
    let text = call.read_str(va).ok()?;
    let text = &text[..text.len() - 1];
    Some(shortened(text))
}

fn buffer(call: &mut Call<'_, '_>, va: u64, len: u64) -> Option<String> {
    let n = len.min(SHOWN as u64) as usize;
    let f = fields(call, va, n)?;
    Some(quoted(&f.0, len > n as u64))
}

fn pointers(call: &mut Call<'_, '_>, va: u64) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    while all.len() < 100_000 {
        match call.read_u64(va.checked_add(all.len() as u64 * 8)?).ok()? {
            0 => return Some(all),
            p => all.push(p),
        }
    }
    None
}

fn strings(call: &mut Call<'_, '_>, va: u64) -> Option<String> {
    let all = pointers(call, va)?;
    let n = all.len().min(LISTED as usize);
    let mut parts = Vec::new();
    for p in &all[..n] {
        parts.push(short_string(call, *p).unwrap_or_else(|| pointer(*p)));
    }
    Some(list(parts.into_iter(), all.len() > n))
}

/// A scatter/gather list of which `total` bytes hold something.
fn iovecs(call: &mut Call<'_, '_>, va: u64, n: u64, total: u64) -> Option<String> {
    let vectors = call.iovecs(va, n).ok()?;
    let mut left = total;
    let mut parts = Vec::new();
    for (base, len) in vectors.iter().take(LISTED as usize) {
        let here = (*len).min(left);
        left -= here;
        let base = buffer(call, *base, here).unwrap_or_else(|| pointer(*base));
        parts.push(format!("{{iov_base={base}, iov_len={len}}}"));
    }
    Some(list(parts.into_iter(), n > LISTED))
}

fn message(call: &mut Call<'_, '_>, va: u64, total: u64) -> Option<String> {
    let f = fields(call, va, 56)?;
    let name = match f.word(0) {
        0 => "NULL".to_owned(),
        at => address(call, at, u64::from(f.half(8))).unwrap_or_else(|| pointer(at)),
    };
    let iov = iovecs(call, f.word(16), f.word(24), total).unwrap_or_else(|| pointer(f.word(16)));
    let mut text = format!(
        "{{msg_name={name}, msg_namelen={}, msg_iov={iov}, msg_iovlen={}",
        f.half(8),
        f.word(24)
    );
    if f.word(40) != 0 && f.word(32) != 0 {
        let control = control(call, f.word(32), f.word(40)).unwrap_or_else(|| pointer(f.word(32)));
        text.push_str(&format!(", msg_control={control}"));
    }
    text.push_str(&format!(
        ", msg_controllen={}, msg_flags={}}}",
        f.word(40),
        named("MSG", u64::from(f.half(48)))
    ));
    Some(text)
}

fn control(call: &mut Call<'_, '_>, va: u64, len: u64) -> Option<String> {
    let f = fields(call, va, len.min(4096) as usize)?;
    let (mut at, mut parts) = (0, Vec::new());
    while at + 16 <= f.0.len() {
        let n = f.word(at) as usize;
        if n < 16 || at + n > f.0.len() {
            break;
        }
        let kind = match (f.half(at + 8), f.half(at + 12)) {
            (1, 1) => {
                let fds = (at + 16..at + n - 3).step_by(4);
                let fds = list(fds.map(|a| (f.half(a) as i32).to_string()), false);
                format!("cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data={fds}")
            }
            (1, 2) if n >= 28 => format!(
                "cmsg_level=SOL_SOCKET, cmsg_type=SCM_CREDENTIALS, cmsg_data={{pid={}, uid={}, gid={}}}",
                f.half(at + 16),
                f.half(at + 20),
                f.half(at + 24)
            ),
            (level, kind) => format!(
                "cmsg_level={}, cmsg_type={kind}",
                named("SOL", level.into())
            ),
        };
        parts.push(format!("{{cmsg_len={n}, {kind}}}"));
        at += n.next_multiple_of(8);
    }
    Some(list(parts.into_iter(), false))
}

fn address(call: &mut Call<'_, '_>, va: u64, len: u64) -> Option<String> {
    if len < 2 {
        return None;
    }
    let f = fields(call, va, len.min(128) as usize)?;
    let family = f.quarter(0);
    let name = named("AF", u64::from(family));
    let port = || u16::from_be_bytes([f.0[2], f.0[3]]);
    Some(match family {
        1 if f.0.len() == 2 => format!("{{sa_family={name}}}"),
        1 if f.0[2] == 0 => {
            let path = quoted(&f.0[3..], false);
            format!("{{sa_family={name}, sun_path=@{path}}}")
        }
        1 => {
            let path = &f.0[2..];
            let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
            format!(
                "{{sa_family={name}, sun_path={}}}",
                quoted(&path[..end], false)
            )
        }
        2 if f.0.len() >= 8 => format!(
            "{{sa_family={name}, sin_port=htons({}), sin_addr=inet_addr(\"{}.{}.{}.{}\")}}",
            port(),
            f.0[4],
            f.0[5],
            f.0[6],
            f.0[7]
        ),
        10 if f.0.len() >= 24 => {
            let bytes: [u8; 16] = core::array::from_fn(|i| f.0[8 + i]);
            let ip = std::net::Ipv6Addr::from(bytes);
            format!(
                "{{sa_family={name}, sin6_port=htons({}), sin6_addr=\"{ip}\"}}",
                port()
            )
        }
        _ => format!("{{sa_family={name}, sa_data={}}}", quoted(&f.0[2..], false)),
    })
}

fn time(f: &Fields, at: usize, word: &str) -> String {
    let (seconds, rest) = (f.word(at) as i64, f.word(at + 8) as i64);
    match (word, rest) {
        ("ts", 0x3fff_ffff) => "UTIME_NOW".to_owned(),
        ("ts", 0x3fff_fffe) => "UTIME_OMIT".to_owned(),
        ("tv", _) => format!("{{tv_sec={seconds}, tv_usec={rest}}}"),
        _ => format!("{{tv_sec={seconds}, tv_nsec={rest}}}"),
    }
}

fn interval(f: &Fields, word: &str) -> String {
    let part = if word == "itv" { "tv" } else { "ts" };
    format!(
        "{{it_interval={}, it_value={}}}",
        time(f, 0, part),
        time(f, 16, part)
    )
}

fn limits(f: &Fields) -> String {
    let one = |v: u64| match v {
        u64::MAX => "RLIM64_INFINITY".to_owned(),
        v if v > 1024 && v % 1024 == 0 => format!("{}*1024", v / 1024),
        v => v.to_string(),
    };
    format!(
        "{{rlim_cur={}, rlim_max={}}}",
        one(f.word(0)),
        one(f.word(8))
    )
}

fn stack(f: &Fields) -> String {
    let flags = match f.half(8) {
        0 => "0".to_owned(),
        1 => "SS_ONSTACK".to_owned(),
        2 => "SS_DISABLE".to_owned(),
        other => hex(u64::from(other)),
    };
    format!(
        "{{ss_sp={}, ss_flags={flags}, ss_size={}}}",
        pointer(f.word(0)),
        f.word(16)
    )
}

fn signals(set: u64) -> String {
    let names = |set: u64| -> Vec<String> {
        (1..=64)
            .filter(|n| set >> (n - 1) & 1 != 0)
            .map(|n| signal_name(n).trim_start_matches("SIG").to_owned())
            .collect()
    };
    if set.count_ones() > 32 {
        format!("~[{}]", names(!set).join(" "))
    } else {
        format!("[{}]", names(set).join(" "))
    }
}

fn action(f: &Fields) -> String {
    let handler = match f.word(0) {
        0 => "SIG_DFL".to_owned(),
        1 => "SIG_IGN".to_owned(),
        at => format!("{at:#x}"),
    };
    let mut text = format!(
        "{{sa_handler={handler}, sa_mask={}, sa_flags={}",
        signals(f.word(24)),
        named("SA", f.word(8))
    );
    if f.word(8) & 0x0400_0000 != 0 {
        text.push_str(&format!(", sa_restorer={:#x}", f.word(16)));
    }
    text.push('}');
    text
}

fn cpus(call: &mut Call<'_, '_>, va: u64, len: u64) -> Option<String> {
    let f = fields(call, va, len.min(1024) as usize)?;
    let on = (0..f.0.len() * 8).filter(|i| f.0[i / 8] >> (i % 8) & 1 != 0);
    let on: Vec<String> = on.map(|i| i.to_string()).collect();
    Some(format!("[{}]", on.join(" ")))
}

fn fd_set(call: &mut Call<'_, '_>, va: u64, n: u64) -> Option<String> {
    let n = (n as u32 as usize).min(1024);
    let f = fields(call, va, n.div_ceil(64) * 8)?;
    let on = (0..n).filter(|i| f.0[i / 8] >> (i % 8) & 1 != 0);
    let on: Vec<String> = on.map(|i| i.to_string()).collect();
    Some(format!("[{}]", on.join(" ")))
}

fn event(f: &Fields, at: usize) -> String {
    let (low, high) = (f.half(at + 4), f.half(at + 8));
    let events = named("EPOLLEV", u64::from(f.half(at)));
    let data = u64::from(high) << 32 | u64::from(low);
    format!("{{events={events}, data={{u32={low}, u64={data}}}}}")
}

fn file_mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o010_000 => "S_IFIFO",
        0o020_000 => "S_IFCHR",
        0o040_000 => "S_IFDIR",
        0o060_000 => "S_IFBLK",
        0o100_000 => "S_IFREG",
        0o120_000 => "S_IFLNK",
        0o140_000 => "S_IFSOCK",
        _ => return octal(u64::from(mode)),
    };
    let bits = [
        (0o4000, "|S_ISUID"),
        (0o2000, "|S_ISGID"),
        (0o1000, "|S_ISVTX"),
    ];
    let bits: String = bits
        .iter()
        .filter(|(b, _)| mode & b != 0)
        .map(|(_, n)| *n)
        .collect();
    format!("{kind}{bits}|{}", octal(u64::from(mode & 0o777)))
}

fn stat(mode: u32, rdev: u64, size: u64) -> String {
    let text = file_mode(mode);
    if matches!(mode & 0o170_000, 0o020_000 | 0o060_000) {
        let major = rdev >> 8 & 0xfff | rdev >> 32 & !0xfff;
        let minor = rdev & 0xff | rdev >> 12 & !0xff;
        format!("{{st_mode={text}, st_rdev=makedev({major:#x}, {minor:#x}), ...}}")
    } else {
        format!("{{st_mode={text}, st_size={size}, ...}}")
    }
}

fn status(s: u32) -> String {
    match s & 0x7f {
        0 => format!("[{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}]", s >> 8 & 0xff),
        0x7f => format!(
            "[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]",
            signal_name((s >> 8 & 0xff) as i32)
        ),
        n => format!(
            "[{{WIFSIGNALED(s) && WTERMSIG(s) == {}}}]",
            signal_name(n as i32)
        ),
    }
}

/// futex: how many arguments there are depends on the operation.
fn futex_argument(call: &mut Call<'_, '_>, i: usize) -> String {
    const PRIVATE: u64 = 128;
    let (op, value) = (call.args[1], call.args[i]);
    let none = String::new();
    match (i, op & 127) {
        (1, _) => {
            let name = named("FUTEX", op & !PRIVATE);
            match (op & PRIVATE != 0, name.split_once('|')) {
                (true, Some((first, rest))) => format!("{first}_PRIVATE|{rest}"),
                (true, None) => format!("{name}_PRIVATE"),
                (false, _) => name,
            }
        }
        (2, _) => (value as u32).to_string(),
        (3, 0 | 6 | 9 | 11 | 13) if value == 0 => "NULL".to_owned(),
        (3, 0 | 6 | 9 | 11 | 13) => input(call, "ts", i).unwrap_or_else(|| pointer(value)),
        (3, 3 | 4 | 5 | 12) => (value as u32).to_string(),
        (4, 3 | 4 | 5 | 11 | 12) => pointer(value),
        (5, 9 | 10) if value as u32 == u32::MAX => "FUTEX_BITSET_MATCH_ANY".to_owned(),
        (5, 4 | 5 | 9 | 10 | 12) => hex(value & 0xffff_ffff),
        _ => none,
    }
}

fn ioctl_argument(call: &mut Call<'_, '_>, ret: i64) -> String {
    let va = call.args[2];
    let text = match call.args[1] as u32 {
        // the terminal's process group, queue lengths, numbers and locks of pseudo terminals
        0x540f | 0x5411 | 0x541b | 0x5429 | 0x8004_5430 if ret >= 0 => {
            fields(call, va, 4).map(|f| format!("[{}]", f.half(0) as i32))
        }
        0x5410 | 0x5421 | 0x5452 | 0x4004_5431 => {
            fields(call, va, 4).map(|f| format!("[{}]", f.half(0) as i32))
        }
        0x5413 if ret >= 0 => size(call, va),
        0x5414 => size(call, va),
        0x5401 if ret >= 0 => fields(call, va, 16).map(|f| {
            format!(
                "{{c_iflag={}, c_oflag={}, c_cflag={}, c_lflag={}, ...}}",
                hex(f.half(0).into()),
                hex(f.half(4).into()),
                hex(f.half(8).into()),
                hex(f.half(12).into())
            )
        }),
        _ => None,
    };
    text.unwrap_or_else(|| pointer(va))
}

fn size(call: &mut Call<'_, '_>, va: u64) -> Option<String> {
    let f = fields(call, va, 8)?;
    Some(format!(
        "{{ws_row={}, ws_col={}, ws_xpixel={}, ws_ypixel={}}}",
        f.quarter(0),
        f.quarter(2),
        f.quarter(4),
        f.quarter(6)
    ))
}

fn fcntl_argument(call: &mut Call<'_, '_>, ret: Option<i64>) -> Option<String> {
    let value = call.args[2];
    Some(match call.args[1] as u32 {
        1 | 3 | 9 | 11 | 1025 | 1032 | 1034 => String::new(),
        2 => named("FD_", value),
        4 => named("O", value),
        10 => signal_name(value as i32),
        1033 => named("SEAL", value),
        command @ (5..=7 | 36..=38) => {
            if matches!(command, 5 | 36) && ret.is_none() {
                return None;
            }
            match fields(call, value, 32) {
                None => pointer(value),
                Some(f) => {
                    let kind = match f.quarter(0) {
                        0 => "F_RDLCK",
                        1 => "F_WRLCK",
                        _ => "F_UNLCK",
                    };
                    let whence = named("SEEK", u64::from(f.quarter(2)));
                    format!(
                        "{{l_type={kind}, l_whence={whence}, l_start={}, l_len={}}}",
                        f.word(8) as i64,
                        f.word(16) as i64
                    )
                }
            }
        }
        _ if value < 0x1_0000 => value.to_string(),
        _ => hex(value),
    })
}
