#![allow(unsafe_code)] // the host's number of the thread that makes the call
//! `--strace`: every system call as a line, in the form that strace prints.
//!
//! The table's rows say what each argument looks like (their last column, see [`decode`]). What a call reads is
//! taken down before its handler runs, what it writes afterwards, and the line is written when the call is over,
//! with one write, to a descriptor that the guest can't reach. A thread's number stands before its lines as soon as
//! there is a second thread or process.

mod decode;
mod flags;
mod names;

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

pub use decode::WORDS;
pub use names::{errno_name, signal_name};

/// Whether a word of a format is a set of names.
#[must_use]
pub fn is_names(word: &str) -> bool {
    flags::Names::of(word).is_some()
}

use super::table::{Arg, ROWS, Row};
use super::{Call, Sys, SysResult};
use crate::kernel::GuestEnd;
use crate::kernel::error::Fail;

/// Column of the equals sign.
const RESULT_COLUMN: usize = 40;

/// Where the lines go, and which calls get one. Nothing here is locked: a process may fork at any time.
struct Strace {
    file: File,
    /// By index of the row; `None`: all.
    only: Option<Vec<bool>>,
    /// The thread that made the first call; 0: none has.
    first: AtomicI32,
    /// There is, or was, another thread or process.
    several: AtomicBool,
}

/// The trace of this process. There is at most one, as there is one guest with host signals.
static TRACE: OnceLock<Strace> = OnceLock::new();

/// Starts tracing to `file`. `only` is a list of names and classes, separated by commas, `!` before it for all others.
///
/// # Errors
/// What in `only` is no system call's name and no class; or tracing has been started before.
pub fn start(file: File, only: Option<&str>) -> Result<(), String> {
    let only = only.map(filter).transpose()?;
    let trace = Strace {
        file,
        only,
        first: AtomicI32::new(0),
        several: AtomicBool::new(false),
    };
    TRACE
        .set(trace)
        .map_err(|_| "system calls are traced already".to_owned())
}

/// Which rows a list of names and classes means.
///
/// # Errors
/// What is no name and no class.
pub fn filter(list: &str) -> Result<Vec<bool>, String> {
    let (list, wanted) = match list.strip_prefix('!') {
        Some(rest) => (rest, false),
        None => (list, true),
    };
    let mut rows = vec![!wanted; ROWS.len()];
    for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let mut found = false;
        for (row, on) in ROWS.iter().zip(&mut rows) {
            if row.name == name || name.strip_prefix('%').is_some_and(|c| is_in_class(row, c)) {
                *on = wanted;
                found = true;
            }
        }
        if !found {
            return Err(format!(
                "\"{name}\" is no system call, and no class (%file, %desc, %memory, %network, %process, %signal)"
            ));
        }
    }
    Ok(rows)
}

/// strace's classes, as far as the table can tell.
fn is_in_class(row: &Row, class: &str) -> bool {
    let has = |word: &str| row.format.split(' ').any(|w| w == word);
    match class {
        "file" => row.args.contains(&Arg::Path) || matches!(row.nr, 59 | 79 | 322),
        "desc" => has("fd") || has("at") || has("poll") || has("fdset") || has("fds>"),
        "memory" => {
            matches!(row.nr, 9..=12 | 25..=30 | 67 | 149..=152 | 216 | 237..=239 | 325 | 329 | 440 | 462)
        }
        "network" => matches!(row.nr, 41..=55 | 288 | 299 | 307),
        "process" => matches!(
            row.nr,
            56..=62 | 157 | 158 | 218 | 231 | 234 | 247 | 322 | 424 | 434 | 435
        ),
        "signal" => matches!(row.nr, 13..=15 | 34 | 62 | 127..=131 | 200 | 234 | 282 | 289 | 297),
        _ => false,
    }
}

/// A call whose handler has not returned yet.
pub struct Begun {
    texts: Vec<Option<String>>,
    result: Ret,
}

/// How a result is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ret {
    Decimal,
    Hex,
    Octal,
    /// The call does not return.
    None,
}

/// The number of the thread that makes a call, as `/proc` and the guest know it.
fn thread() -> i32 {
    // SAFETY: takes nothing, and can't fail.
    unsafe { libc::gettid() }
}

impl Strace {
    fn print(&self, line: &str) {
        let tid = thread();
        let first = self
            .first
            .compare_exchange(0, tid, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err_and(|first| first != tid) {
            self.several.store(true, Ordering::Relaxed);
        }
        let line = if self.several.load(Ordering::Relaxed) {
            format!("[pid {tid}] {line}\n")
        } else {
            format!("{line}\n")
        };
        // Nobody is left to tell if the trace can't be written.
        let _ = (&self.file).write_all(line.as_bytes());
    }
}

/// From now on lines say whose they are: a thread or process has been started.
pub fn another() {
    if let Some(trace) = TRACE.get() {
        trace.several.store(true, Ordering::Relaxed);
    }
}

/// Before the handler: takes down what the call reads. `None` if the call is not traced.
pub fn enter(call: &mut Call<'_, '_>) -> Option<Begun> {
    let trace = TRACE.get()?;
    if let Some(only) = &trace.only {
        let at = ROWS.binary_search_by_key(&call.row.nr, |r| r.nr).ok()?;
        if !only[at] {
            return None;
        }
    }
    let (texts, result) = read_arguments(call);
    let begun = Begun { texts, result };
    if begun.result == Ret::None {
        trace.print(&line(call.row.name, &begun.texts, "?"));
    }
    Some(begun)
}

fn read_arguments(call: &mut Call<'_, '_>) -> (Vec<Option<String>>, Ret) {
    let mut texts = Vec::new();
    let mut result = Ret::Decimal;
    for word in call.row.format.split_ascii_whitespace() {
        match word {
            "=p" | "=x" => result = Ret::Hex,
            "=o" => result = Ret::Octal,
            "=?" => result = Ret::None,
            word => {
                let text = decode::argument(call, word, texts.len(), None);
                texts.push(text);
            }
        }
    }
    (texts, result)
}

/// After the handler: prints the line.
pub fn leave(call: &mut Call<'_, '_>, begun: Option<Begun>, result: &SysResult) {
    let (Some(trace), Some(mut begun)) = (TRACE.get(), begun) else {
        return;
    };
    let ret = match result {
        Ok(Sys::Ret(ret)) => *ret,
        Err(Fail::Errno(e)) => e.ret(),
        Ok(Sys::Restored) => call.vcpu.state.gpr[0] as i64,
        Ok(Sys::Exit(_) | Sys::End(_)) | Err(Fail::Fatal(_)) => return,
    };
    if begun.result == Ret::None {
        return;
    }
    let words = call.row.format.split_ascii_whitespace();
    for (i, word) in words.take(begun.texts.len()).enumerate() {
        if begun.texts[i].is_none() {
            begun.texts[i] = decode::argument(call, word, i, Some(ret));
        }
    }
    let mut value = match begun.result {
        _ if (-4095..0).contains(&ret) => names::failure(ret),
        _ if call.row.nr == 72 && matches!(call.args[1] as u32, 1 | 3 | 1034) && ret != 0 => {
            format!("{ret:#x}") // flags and seals
        }
        Ret::Hex if ret != 0 => format!("{ret:#x}"),
        Ret::Octal if ret != 0 => format!("{ret:#o}").replacen("0o", "0", 1),
        _ => ret.to_string(),
    };
    if ret >= 0 {
        value.push_str(&decode::returned(call, ret));
    }
    trace.print(&line(call.row.name, &begun.texts, &value));
}

fn line(name: &str, texts: &[Option<String>], value: &str) -> String {
    let texts: Vec<&str> = texts
        .iter()
        .map(|t| t.as_deref().unwrap_or("?"))
        .filter(|t| !t.is_empty())
        .collect();
    let call = format!("{name}({})", texts.join(", "));
    format!("{call:<width$} = {value}", width = RESULT_COLUMN - 1)
}

/// A number that the table does not know.
pub fn unknown(nr: i64, args: &[u64; 6]) {
    if let Some(trace) = TRACE.get()
        && trace.only.is_none()
    {
        let texts: Vec<_> = args.iter().map(|a| Some(format!("{a:#x}"))).collect();
        let why = names::failure(-i64::from(libc::ENOSYS));
        trace.print(&line(&format!("syscall_{nr:#x}"), &texts, &why));
    }
}

/// A program begins.
pub fn started(exe: &[u8], argv: &[Vec<u8>], variables: usize) {
    let Some(trace) = TRACE.get() else { return };
    let argv: Vec<String> = argv.iter().map(|a| decode::shortened(a)).collect();
    let texts = [
        Some(decode::quoted(exe, false)),
        Some(format!("[{}]", argv.join(", "))),
        Some(format!("[/* {variables} vars */]")),
    ];
    trace.print(&line("execve", &texts, "0"));
}

/// A signal that is delivered.
pub fn signal(signo: i32, code: i32) {
    if let Some(trace) = TRACE.get() {
        let name = signal_name(signo);
        let code = names::signal_code(signo, code);
        trace.print(&format!(
            "--- {name} {{si_signo={name}, si_code={code}}} ---"
        ));
    }
}

/// The end of the process.
pub fn ended(end: GuestEnd) {
    if let Some(trace) = TRACE.get() {
        trace.print(&match end {
            GuestEnd::Exited(status) => format!("+++ exited with {status} +++"),
            GuestEnd::Killed(signo) => format!("+++ killed by {} +++", signal_name(signo)),
        });
    }
}
