//! The process interface: small C programs, one for each area, print the same under sevlab as natively. And `--strace`
//! prints what strace would.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::compare::Case;
use common::{Mode, installed, run, sevlab, sevlab_run};

/// One mode with each way out of the guest: intercepts, and the GHCB.
const MODES: [Mode; 3] = [
    Mode::new("off", true, "page"),
    Mode::new("es", false, "page"),
    Mode::new("snp", true, "page"),
];

/// Compiles a guest of this folder; `None` without a C compiler.
fn guest(name: &str, folder: &std::path::Path) -> Option<PathBuf> {
    let cc = installed("cc").or_else(|| installed("gcc"))?;
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guests/syscalls");
    let output = folder.join(name);
    let done = Command::new(cc)
        .args(["-O1", "-w", "-o"])
        .arg(&output)
        .arg(source.join(format!("{name}.c")))
        .output()
        .expect("cc runs");
    let why = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{name}.c: {why}");
    Some(output)
}

fn same_as_native(name: &str, args: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Some(program) = guest(name, folder.path()) {
        Case::new(program, args).check(&MODES);
    }
}

#[test]
fn files() {
    same_as_native("files", &[]);
}

#[test]
fn events_and_timers() {
    same_as_native("events", &[]);
}

#[test]
fn sockets() {
    same_as_native("sockets", &[]);
}

#[test]
fn terminals() {
    same_as_native("terminal", &[]);
}

#[test]
fn the_process() {
    same_as_native("process", &[]);
}

#[test]
fn proc_tells_about_the_guest() {
    same_as_native("proc", &["argument"]);
}

/// A trace without what differs from run to run: addresses, process numbers, blanks.
fn normal(trace: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    trace
        .lines()
        .map(|line| {
            let mut out = String::new();
            let mut rest = line;
            while let Some(at) = rest.find("0x") {
                let (before, hex) = rest.split_at(at);
                let digits = hex[2..].find(|c: char| !c.is_ascii_hexdigit());
                let end = digits.map_or(hex.len(), |n| n + 2);
                out.push_str(before);
                // small ones are flags and offsets
                out.push_str(if end > 9 { "ADDRESS" } else { &hex[..end] });
                rest = &hex[end..];
            }
            out.push_str(rest);
            let words: Vec<&str> = out.split_whitespace().collect();
            words.join(" ").replace(&own, "PARENT")
        })
        .collect()
}

const TRACED: [&str; 13] = [
    "openat",
    "read",
    "write",
    "close",
    "pread64",
    "mprotect",
    "access",
    "newfstatat",
    "getdents64",
    "lseek",
    "munmap",
    "fcntl",
    "exit_group",
];

#[test]
fn a_trace_is_what_strace_prints() {
    let Some(cat) = installed("cat") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("input");
    fs::write(
        &file,
        "a line with a \t tab and \"quotes\" and more than that\n",
    )
    .expect("a file");
    let calls = TRACED.join(",");
    let trace = folder.path().join("trace");
    let option = format!("--strace={}", trace.display());
    let mode = Mode::new("snp", true, "page");
    let did = run(sevlab_run(mode, &[&option, "--strace-only", &calls])
        .args([&cat, &file])
        .env("LC_ALL", "C")
        .env_remove("LD_LIBRARY_PATH"));
    assert_eq!(did.code(), 0, "{}", did.stderr_text());
    let mut ours = normal(&fs::read_to_string(&trace).expect("a trace"));
    let first = ours.remove(0);
    assert!(
        first.starts_with("execve(\"") && first.ends_with(" = 0"),
        "{first}"
    );
    let text = ours.join("\n");
    let file_name = file.display().to_string();
    for expected in [
        format!("openat(AT_FDCWD, \"{file_name}\", O_RDONLY) = 3"),
        "openat(AT_FDCWD, \"/etc/ld.so.cache\", O_RDONLY|O_CLOEXEC) = 3".to_owned(),
        "read(3, \"a line with a \\t tab and \\\"quotes\\\"\"..., 131072) = 52".to_owned(),
        "write(1, \"a line with a \\t tab and \\\"quotes\\\"\"..., 52) = 52".to_owned(),
        "exit_group(0) = ?".to_owned(),
        "+++ exited with 0 +++".to_owned(),
    ] {
        assert!(text.contains(&expected), "no {expected} in\n{text}");
    }
    // as strace itself has it, where there is one and it may trace
    let Some(strace) = installed("strace") else {
        return;
    };
    let native = folder.path().join("native");
    let done = Command::new(strace)
        .args(["-e", &format!("trace={calls}"), "-o"])
        .arg(&native)
        .args([&cat, &file])
        .env("LC_ALL", "C")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .expect("strace runs");
    if !done.status.success() {
        eprintln!("SKIPPED: strace can't trace here");
        return;
    }
    let theirs = normal(&fs::read_to_string(&native).expect("a trace"));
    assert_eq!(ours, theirs);
}

#[test]
fn a_trace_goes_to_stderr_and_leaves_the_guests_output_alone() {
    let Some(echo) = installed("echo") else {
        return;
    };
    let mode = Mode::new("off", true, "page");
    let did = run(sevlab_run(mode, &["--strace", "--strace-only", "%desc"])
        .arg(&echo)
        .arg("text"));
    assert_eq!(did.stdout_text(), "text\n");
    let trace = did.stderr_text();
    assert!(
        trace.contains("write(1, \"text\\n\", 5)                   = 5\n"),
        "{trace}"
    );
    assert!(!trace.contains("brk("), "{trace}");
    assert!(!trace.contains("[pid "), "there is one thread: {trace}");
}

#[test]
fn lines_say_whose_they_are_once_there_are_two() {
    let Some(sh) = installed("sh") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    let option = format!("--strace={}", trace.display());
    let mode = Mode::new("snp", true, "page");
    let did = run(sevlab_run(mode, &[&option])
        .arg(&sh)
        .args(["-c", "/bin/true; exit 3"]));
    assert_eq!(did.code(), 3, "{}", did.stderr_text());
    let text = fs::read_to_string(&trace).expect("a trace");
    let line = |what: &str| {
        text.lines()
            .find(|l| l.contains(what))
            .unwrap_or_else(|| panic!("no {what} in\n{text}"))
    };
    assert!(!line("brk(NULL)").starts_with("[pid "), "{text}");
    let child = line("execve(\"/bin/true\", [\"/bin/true\"], 0x");
    assert!(
        child.starts_with("[pid ") && child.ends_with(" = 0"),
        "{child}"
    );
    let waited = line("wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL)");
    let pid = child.split([' ', ']']).nth(1).expect("a number");
    assert!(waited.ends_with(&format!(" = {pid}")), "{waited}");
    assert!(
        text.contains("+++ exited with 0 +++") && text.contains("+++ exited with 3 +++"),
        "{text}"
    );
}

#[test]
fn what_is_no_call_is_refused_before_the_guest_runs() {
    let did = run(sevlab().args(["run", "--strace", "--strace-only", "opennat", "--", "true"]));
    assert_eq!(did.code(), 2);
    assert!(
        did.stderr_text().contains("opennat"),
        "{}",
        did.stderr_text()
    );
    let did = run(sevlab().args(["run", "--strace=/nonexistent/file", "--", "true"]));
    assert_ne!(did.code(), 0);
    assert!(
        did.stderr_text().contains("--strace"),
        "{}",
        did.stderr_text()
    );
}
