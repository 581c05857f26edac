//! The command itself: help, errors, exit statuses, streams and signals.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mode, Outcome, compile_c, installed, run, run_for, sevlab, sevlab_run};

const SNP: Mode = Mode::new("snp", true, "page");

fn sevlab_with(args: &[&str]) -> Outcome {
    run(sevlab().args(args))
}

#[test]
fn help_teaches() {
    let out = sevlab_with(&["--help"]);
    assert_eq!(out.code(), 0);
    for word in ["run", "doctor", "docs/guide.md"] {
        assert!(
            out.stdout_text().contains(word),
            "{word} in {}",
            out.stdout_text()
        );
    }
    let out = sevlab_with(&["run", "--help"]);
    assert_eq!(out.code(), 0);
    let options = [
        "--sev",
        "--cipher",
        "--cache",
        "--memory",
        "--resident",
        "--jit",
        "--jit-opt",
        "--seed",
        "--stats",
    ];
    for word in
        options
            .into_iter()
            .chain(["--report", "--dump-dram", "Examples:", "125", "126", "127"])
    {
        assert!(
            out.stdout_text().contains(word),
            "{word} in {}",
            out.stdout_text()
        );
    }
    let out = sevlab_with(&["--version"]);
    assert_eq!(
        out.stdout_text(),
        concat!("sevlab ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let out = sevlab_with(&["run", "--jit-opt", "help"]);
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    assert!(
        out.stdout_text().contains("threshold=NUMBER"),
        "{}",
        out.stdout_text()
    );
}

/// The guide explains every option there is.
#[test]
fn the_guide_knows_every_option() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide.md"))
        .expect("the guide");
    let help = sevlab_with(&["run", "--help"]).stdout_text()
        + &sevlab_with(&["run", "--jit-opt", "help"]).stdout_text();
    let options = help
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|w| w.len() > 3 && w.starts_with("--"));
    for option in options {
        assert!(
            guide.contains(option),
            "docs/guide.md does not mention {option}"
        );
    }
    for line in help
        .lines()
        .filter(|line| line.starts_with("  ") && line.contains('='))
    {
        if let Some((key, _)) = line.trim().split_once('=')
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            assert!(
                guide.contains(&format!("`{key}`")),
                "docs/guide.md does not mention --jit-opt {key}"
            );
        }
    }
}

#[test]
fn wrong_usage_is_named() {
    for (args, says) in [
        (&["run", "--sev", "tdx", "--", "true"][..], "--sev"),
        (&["run", "--cipher", "rot13", "--", "true"], "aes128-xex"),
        (&["run", "--cache", "l2", "--", "true"], "--cache"),
        (&["run", "--memory", "4X", "--", "true"], "--memory"),
        (&["run", "--memory", "1M", "--", "true"], "16M"),
        (&["run", "--resident", "3", "--", "true"], "64 pages"),
        (
            &["run", "--resident", "100", "--cache", "none", "--", "true"],
            "--resident",
        ),
        (&["run", "--jit-opt", "warp=on", "--", "true"], "warp"),
        (
            &[
                "run",
                "--jit",
                "off",
                "--jit-opt",
                "chaining=off",
                "--",
                "true",
            ],
            "--jit-opt",
        ),
        (&["run", "--seed", "x", "--", "true"], "--seed"),
        (&["run", "--frobnicate", "--", "true"], "--frobnicate"),
        (&["run"], "PROGRAM"),
        (&[], "Usage"),
        (&["walk"], "walk"),
    ] {
        let out = sevlab_with(args);
        assert_eq!(out.code(), 2, "{args:?}: {}", out.stderr_text());
        assert!(
            out.stderr_text().contains(says),
            "{args:?}: {says} in {}",
            out.stderr_text()
        );
        assert!(out.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn programs_that_can_not_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let locked = folder.path().join("locked");
    fs::write(&locked, "no program").expect("written");
    let locked = locked.to_str().expect("UTF-8");
    for (program, status) in [
        ("no-such-program-anywhere", 127),
        ("/no/such/folder/program", 127),
        ("", 127),
        ("/etc", 126),
        (locked, 126),
    ] {
        let out = sevlab_with(&["run", "--", program]);
        let text = out.stderr_text();
        assert_eq!(out.code(), status, "{program}: {text}");
        assert!(
            text.starts_with("sevlab: ") && text.contains(program),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        if !program.is_empty() {
            let native = run(Command::new("env").arg(program));
            assert_eq!(native.code(), status, "env says the same of {program}");
        }
    }
}

#[test]
fn path_is_searched_as_by_a_shell() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    for place in [&first, &second] {
        fs::create_dir(place).expect("a folder");
    }
    let echo = installed("echo").expect("coreutils");
    // Not executable in the first folder, so the second one's is meant.
    fs::copy(&echo, first.join("tool")).expect("copied");
    fs::copy(&echo, second.join("tool")).expect("copied");
    fs::set_permissions(first.join("tool"), fs::Permissions::from_mode(0o644)).expect("mode");
    let path = format!("{}:{}", first.display(), second.display());
    let out = run(sevlab()
        .args(["run", "--", "tool", "found"])
        .env("PATH", &path));
    assert_eq!(
        (out.code(), out.stdout_text().as_str()),
        (0, "found\n"),
        "{}",
        out.stderr_text()
    );
    let out = run(sevlab().args(["run", "--", "tool"]).env("PATH", &first));
    assert_eq!(out.code(), 126, "{}", out.stderr_text());
    let out = run(sevlab()
        .args(["run", "--", "./tool", "here"])
        .current_dir(&second));
    assert_eq!(
        (out.code(), out.stdout_text().as_str()),
        (0, "here\n"),
        "{}",
        out.stderr_text()
    );
}

#[test]
fn results_that_can_not_be_written_are_told_before_the_guest_runs() {
    for option in ["--report", "--dump-dram"] {
        for file in ["/no/such/folder/file", "/etc"] {
            let out = sevlab_with(&["run", option, file, "--", "echo", "ran"]);
            assert_eq!(out.code(), 125, "{option} {file}: {}", out.stderr_text());
            assert!(
                out.stderr_text().contains(option) && out.stderr_text().contains(file),
                "{}",
                out.stderr_text()
            );
            assert!(out.stdout.is_empty(), "the guest ran");
        }
    }
}

#[test]
fn results_do_not_touch_the_guests_streams() {
    let out = run(sevlab_run(SNP, &["--stats"]).args(["echo", "mine"]));
    assert_eq!(out.stdout_text(), "mine\n");
    let text = out.stderr_text();
    for word in [
        "guest instructions",
        "AES blocks",
        "VMGEXIT",
        "measurement",
        "seconds",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    // A guest that leaves its folder and closes its stderr still gets its report where it was asked for.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = sevlab_run(SNP, &["--stats", "--report", "r.json"]);
    let out = run(command
        .args(["sh", "-c", "cd /; exec 2>&-; echo away"])
        .current_dir(folder.path()));
    assert_eq!(
        (out.code(), out.stdout_text().as_str()),
        (0, "away\n"),
        "{}",
        out.stderr_text()
    );
    assert!(folder.path().join("r.json").exists());
    assert!(
        out.stderr_text().contains("guest instructions"),
        "{}",
        out.stderr_text()
    );
    // A report to a pipe.
    let out = sevlab_with(&["run", "--report", "/dev/stderr", "--", "true"]);
    assert!(out.stderr_text().starts_with('{'), "{}", out.stderr_text());
}

#[test]
fn exit_statuses_are_the_guests() {
    for status in [0, 1, 3, 42, 125, 126, 127, 128, 255] {
        let out = run(sevlab_run(SNP, &[]).args(["sh", "-c", &format!("exit {status}")]));
        assert_eq!(out.code(), status, "{}", out.stderr_text());
        assert!(out.stderr.is_empty(), "{}", out.stderr_text());
    }
}

#[test]
fn standard_input_is_the_guests() {
    let data = common::text(1, 3 << 20);
    for mode in [SNP, Mode::new("off", true, "page")] {
        let out = run_for(sevlab_run(mode, &[]).arg("cat"), &data, common::TIMEOUT);
        assert!(
            out.code() == 0 && out.stdout == data,
            "{mode}: {} of {} bytes",
            out.stdout.len(),
            data.len()
        );
    }
    let out = run_for(
        sevlab_run(SNP, &[]).args(["head", "-c", "5"]),
        &data,
        common::TIMEOUT,
    );
    assert_eq!(out.stdout, data[..5]);
}

/// `sevlab run -- yes | head -c 100`: the guest dies of SIGPIPE, and so does sevlab.
#[test]
fn a_reader_that_leaves() {
    let mut yes = sevlab_run(SNP, &[])
        .arg("yes")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawned");
    let mut some = [0; 100];
    let mut output = yes.stdout.take().expect("piped");
    output.read_exact(&mut some).expect("yes says something");
    drop(output);
    let status = yes.wait().expect("it ends");
    assert_eq!(status.signal(), Some(libc::SIGPIPE));
    let mut text = String::new();
    yes.stderr
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("readable");
    assert_eq!((&some[..4], text.as_str()), (&b"y\ny\n"[..], ""));
}

const HANDLER: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static volatile sig_atomic_t got;
static void note(int signal) { got = signal; }
int main(int argc, char **argv) {
    signal(SIGTERM, note);
    signal(SIGINT, SIG_IGN);
    puts("ready");
    fflush(stdout);
    if (argc > 1) { while (!got) ; } else { while (!got) pause(); }
    printf("got %d\n", got);
    return 7;
}
"#;

#[allow(unsafe_code)] // the standard library can only kill
fn send(child: &Child, signal: i32) {
    // SAFETY: a process of ours that has not been waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Waits for the guest's first line, so that its handlers are in place.
fn wait_for_line(child: &mut Child) -> impl Read + use<> {
    let mut output = child.stdout.take().expect("piped");
    let mut byte = [0];
    while byte[0] != b'\n' {
        output
            .read_exact(&mut byte)
            .expect("the guest says that it is ready");
    }
    output
}

#[test]
fn signals_reach_the_guests_handlers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compile_c(HANDLER, folder.path(), "handler", &["-O1"]) else {
        return;
    };
    for mode in [
        SNP,
        Mode::new("off", false, "page"),
        Mode::new("es", true, "page"),
    ] {
        // Once waiting in a system call, once in a loop that never leaves guest code.
        for args in [&[][..], &["spin"]] {
            let mut command = sevlab_run(mode, &[]);
            let mut child = command
                .arg(&program)
                .args(args)
                .stdout(Stdio::piped())
                .spawn()
                .expect("spawned");
            let mut output = wait_for_line(&mut child);
            std::thread::sleep(Duration::from_millis(300));
            send(&child, libc::SIGINT);
            std::thread::sleep(Duration::from_millis(50));
            send(&child, libc::SIGTERM);
            let status = ended(&mut child);
            let mut rest = String::new();
            output.read_to_string(&mut rest).expect("readable");
            assert_eq!(
                (status.code(), rest.as_str()),
                (Some(7), "got 15\n"),
                "{mode} {args:?}: {status}"
            );
        }
    }
}

fn ended(child: &mut Child) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waited for") {
            return status;
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("killed");
            panic!("the guest does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether this process was started with a signal ignored, as a shell does with SIGINT of what it starts in the background:
/// guests inherit that.
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let set = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let set = u64::from_str_radix(set.expect("there").trim(), 16).expect("hexadecimal");
    set >> (signal - 1) & 1 != 0
}

#[test]
fn signals_without_a_handler_kill() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGKILL,
    ] {
        if ignored(signal) {
            continue;
        }
        let mut command = sevlab_run(SNP, &[]);
        command
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("spawned");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"ready\n").expect("written");
        let _output = wait_for_line(&mut child);
        send(&child, signal);
        assert_eq!(ended(&mut child).signal(), Some(signal));
    }
}

#[test]
fn the_guests_own_signal_kills_with_stats() {
    let out = run(sevlab_run(SNP, &["--stats"]).args(["sh", "-c", "kill -USR2 $$"]));
    assert_eq!(out.code(), -libc::SIGUSR2, "{}", out.stderr_text());
    assert!(
        out.stderr_text().contains("guest instructions"),
        "{}",
        out.stderr_text()
    );
}

#[test]
fn doctor_tells() {
    let out = sevlab_with(&["doctor"]);
    assert_eq!(out.code(), 0, "{}{}", out.stdout_text(), out.stderr_text());
    for word in [
        "AES-NI",
        "VAES",
        "GB/s",
        "AVX2",
        "overcommit",
        "max_map_count",
        "huge pages",
        "memfd",
        "instructions",
    ] {
        assert!(
            out.stdout_text().contains(word),
            "{word} in {}",
            out.stdout_text()
        );
    }
    assert!(out.stderr.is_empty());
}
