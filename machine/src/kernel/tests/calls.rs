//! The table of system calls as a whole: every number of Linux, formats that the trace can print, and the page that
//! says who answers.

use std::fmt::Write;
use std::path::Path;

use crate::kernel::error::Errno;
use crate::kernel::syscall::strace::{self, WORDS, errno_name};
use crate::kernel::syscall::table::{Arg, Handler, ROWS, Row, row};

/// Numbers that x86-64 has never given out, up to the last one.
const GAP: std::ops::Range<i64> = 337..424;
/// The last system call of Linux 6.18.
const LAST: i64 = 469;

#[test]
fn every_number_of_linux_has_a_row() {
    for nr in (0..=LAST).filter(|nr| !GAP.contains(nr)) {
        assert!(row(nr).is_some(), "{nr}");
    }
}

/// The words that stand for arguments.
fn words(row: &Row) -> Vec<&'static str> {
    row.format
        .split_ascii_whitespace()
        .filter(|w| !w.starts_with('='))
        .collect()
}

#[test]
fn every_word_of_a_format_can_be_printed_and_fits_its_argument() {
    for r in ROWS {
        let words = words(r);
        assert!(words.len() <= 6, "{}", r.name);
        for (i, arg) in r.args.iter().enumerate() {
            let Some(word) = words.get(i) else {
                assert_eq!(*arg, Arg::Int, "{}: argument {i} has no word", r.name);
                continue;
            };
            let known = WORDS.contains(word) || strace::is_names(word);
            assert!(known, "{}: {word}", r.name);
            let fits = match arg {
                Arg::Fd => matches!(*word, "fd") || r.nr == 312,
                Arg::DirFd => *word == "at",
                Arg::Path => *word == "s",
                Arg::Out(_) | Arg::OutRet(..) => word.ends_with('>') || matches!(*word, "p" | "d*"),
                _ => true,
            };
            assert!(fits, "{}: {word} for {arg:?}", r.name);
        }
    }
}

#[test]
fn a_filter_takes_names_classes_and_their_opposite() {
    let on = |list: &str| -> Vec<&str> {
        let picked = strace::filter(list).expect("a filter");
        let rows = ROWS.iter().zip(picked).filter(|(_, on)| *on);
        rows.map(|(r, _)| r.name).collect()
    };
    assert_eq!(on("mmap,read"), ["read", "mmap"]);
    assert!(on("%file").contains(&"openat") && !on("%file").contains(&"read"));
    assert!(on("%desc").contains(&"read") && on("%network").contains(&"socket"));
    assert_eq!(on("!mmap").len(), ROWS.len() - 1);
    assert!(strace::filter("nonsense").is_err());
    assert!(strace::filter("%nonsense").is_err());
}

fn who(handler: &Handler) -> String {
    match handler {
        Handler::Proxy => "host".to_owned(),
        Handler::Front(_) => "guest kernel, with the host".to_owned(),
        Handler::Kernel(_) => "guest kernel".to_owned(),
        Handler::Refuse(e) => format!("nobody: {}", errno_name(e.0)),
    }
}

fn page() -> String {
    let mut text = String::from(INTRODUCTION);
    let count = |wanted: fn(&Handler) -> bool| ROWS.iter().filter(|r| wanted(&r.handler)).count();
    let answered = count(|h| !matches!(h, Handler::Refuse(_)));
    let refused = count(|h| matches!(h, Handler::Refuse(_)));
    let enosys = count(|h| matches!(h, Handler::Refuse(Errno::ENOSYS)));
    let _ = writeln!(
        text,
        "{} numbers: {answered} are answered, {refused} are refused ({enosys} of them with ENOSYS).\n",
        ROWS.len()
    );
    text.push_str("| number | name | who answers |\n|---:|---|---|\n");
    for r in ROWS {
        let _ = writeln!(text, "| {} | {} | {} |", r.nr, r.name, who(&r.handler));
    }
    text
}

const INTRODUCTION: &str = "\
# System calls

What a process guest gets for each system call of Linux (x86-64, up to 6.18). The table below is made from the table
that the guest kernel works by (`machine/src/kernel/syscall/table.rs`); a test fails when it is out of date, and
`BLESS=1 cargo test --release -p sevlab-machine calls` writes it again.

- **host**: the call goes through the fence as it is. What its pointers point at is copied through the bounce area.
- **guest kernel, with the host**: the guest kernel looks at the call before or after the host, or makes other host
  calls of it.
- **guest kernel**: the host never learns of the call, or only of calls of the guest kernel's own.
- **nobody**: the guest gets that error, and `--stats` counts it. ENOSYS makes programs fall back; EPERM is what a
  process without privileges gets from Linux.

A number that is not in the table gets ENOSYS. `sevlab run --strace` prints every call.

What differs from Linux, and can be noticed:

- There is no vDSO, on purpose: AT_SYSINFO_EHDR is not in the auxiliary vector, so the C library makes system calls for
  the time. Code of the host's must not run in the guest's address space, and the time comes from beyond the fence.
- A guest's descriptors are the host's 0 to 999. RLIMIT_NOFILE starts with 1000 and goes no further.
- Of the resource limits, NOFILE, FSIZE, DATA, AS and STACK are enforced by the guest kernel, and CPU by a timer that
  counts the time of the whole simulation. The others are kept and shown.
- `/proc/self` (and by number, and `thread-self`) tells about the guest: maps, smaps, exe, cmdline, environ, auxv, comm,
  stat, statm, status, limits, fd, task. `/proc/cpuinfo` has the guest's CPUID, `/proc/meminfo` its memory. `mem`,
  `pagemap` and `map_files` can't be opened. The other files are the host process's.
- A file of `/proc` that the guest kernel writes is a file in memory: fstat tells its size where Linux says 0.
- A signalfd is an eventfd to the host: `/proc/self/fdinfo` says so. A child has its parent's signal state in it.
- preadv2 and pwritev2: RWF_APPEND looks up the end of the file first; other writers may come between.
- vmsplice copies. sendfile, splice and copy_file_range do not look at RLIMIT_FSIZE.
- `ioctl` and `fcntl` pass on the requests they know (`ioctl.rs`, `marshal.rs`); others get ENOTTY and EINVAL.
- setuid and its family change the guest's thread, and no other thread of the simulation.
- membarrier does not offer the commands that serialize instruction fetches.

";

#[test]
fn the_page_about_system_calls_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/syscalls.md");
    let page = page();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs/syscalls.md can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(page.lines()).position(|(a, b)| a != b);
    assert!(
        there == page,
        "docs/syscalls.md is out of date (first in line {}): run this test with BLESS=1",
        differs.map_or(there.lines().count() + 1, |n| n + 1)
    );
}
