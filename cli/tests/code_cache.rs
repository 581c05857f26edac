//! The code cache from the outside: real programs do the same cold, warm and without it.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Mode, Outcome, installed, run, sevlab_run, workload};

const PAGE: Mode = Mode::new("off", true, "page");
/// So that short programs translate much.
const EAGER: [&str; 4] = ["--jit-opt", "threshold=20", "--jit-opt", "direct=off"];

/// Runs a program with a cache; the environment, and so the guest's stack, is the same each time.
fn cached(mode: Mode, options: &[&str], cache: &Path, program: &Path, args: &[&str]) -> Outcome {
    let cache = format!("--code-cache={}", cache.display());
    let options = [&EAGER[..], options, &["--stats", &cache]].concat();
    let mut command = sevlab_run(mode, &options);
    command.arg(program).args(args).env("LC_ALL", "C");
    let out = run(&mut command);
    assert!(!out.is_broken(), "{}", out.stderr_text());
    out
}

/// What `--stats` says of one count; 0 if it has no such line.
fn stat(out: &Outcome, what: &str) -> u64 {
    let text = out.stderr_text();
    let line = text.lines().find(|l| l.contains(what));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.map_or(0, |n| n.replace(',', "").parse().expect("a number first"))
}

const COMPILED: &str = "regions compiled";
const LOADED: &str = "regions from the code cache";

#[test]
fn a_later_run_loads_what_a_former_one_compiled() {
    let Some(sh) = installed("dash") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo $i";
    let args = ["-c", script];
    for sev in ["off", "snp"] {
        let mode = Mode::new(sev, true, "page");
        let first = cached(mode, &[], &cache, &sh, &args);
        let compiled = stat(&first, COMPILED);
        // Code depends on none of what SEV changes.
        assert_eq!(stat(&first, LOADED) > 0, sev == "snp");
        for _ in 0..4 {
            cached(mode, &[], &cache, &sh, &args);
        }
        let last = cached(mode, &[], &cache, &sh, &args);
        assert_eq!((last.code(), last.stdout_text().as_str()), (0, "3000\n"));
        assert!(stat(&last, LOADED) > 10, "{}", last.stderr_text());
        assert!(
            sev == "snp" || stat(&last, COMPILED) < compiled / 4,
            "{}",
            last.stderr_text()
        );
    }
    // Nothing is loaded or written if it is off.
    let off = cached(PAGE, &[], Path::new("off"), &sh, &args);
    assert_eq!(stat(&off, LOADED), 0);
    assert!(!Path::new("off").exists());
    assert_eq!(fs::read_dir(&cache).expect("the cache").count(), 1);
}

/// Guest programs with code that changes, children, programs that execute others, and threads.
#[test]
fn guests_do_the_same_warm() {
    let folder = tempfile::tempdir().expect("a folder");
    let sections = [
        (
            "smc",
            "immediate,next,opcode,outside,straddle,alias,flip,remap,kernel,return,jit,cross,crossflip,many",
        ),
        ("procs", "exits,many,vfork,exec,spawn,chain,cow,threadfork"),
        ("stress", "atomics,locked,mutex,condition,handshake"),
    ];
    for (program, only) in sections {
        let path = workload(program);
        let args = ["--count", "2000", "--only", only];
        let native = Command::new(&path).args(args).output().expect("runs");
        assert!(native.status.success());
        let mut loaded = 0;
        for round in 0..3 {
            let out = cached(PAGE, &[], &folder.path().join("cache"), &path, &args);
            let text = String::from_utf8_lossy(&native.stdout);
            assert_eq!(
                out.stdout_text(),
                text,
                "{program} {round}: {}",
                out.stderr_text()
            );
            assert_eq!(out.code(), 0);
            loaded += stat(&out, LOADED);
        }
        assert!(loaded > 0, "{program}");
    }
}

#[test]
fn several_runs_at_once_share_a_folder() {
    let Some(sh) = installed("dash") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; (echo $i; true) | cat";
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let out = cached(PAGE, &[], folder.path(), &sh, &["-c", script]);
                    assert_eq!((out.code(), out.stdout_text().as_str()), (0, "2000\n"));
                }
            });
        }
    });
    let names = fs::read_dir(folder.path()).expect("the cache");
    let names: Vec<_> = names.map(|e| e.expect("readable").file_name()).collect();
    assert!(
        names.iter().all(|n| n.to_string_lossy().ends_with(".code")),
        "{names:?}"
    );
}

/// Where turns and counts must repeat, nothing is loaded and nothing written.
#[test]
fn it_is_not_used_where_runs_must_repeat() {
    let Some(sh) = installed("dash") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let args = ["-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"];
    cached(PAGE, &[], &cache, &sh, &args);
    let before = fs::read_dir(&cache).expect("the cache").count();
    let hierarchy = Mode::new("off", true, "hierarchy");
    for (mode, options) in [
        (hierarchy, &[][..]),
        (PAGE, &["--deterministic"]),
        (Mode::new("snp", true, "page"), &["--resident=4096"]),
    ] {
        for _ in 0..2 {
            let out = cached(mode, options, &cache, &sh, &args);
            assert_eq!(out.code(), 0, "{}", out.stderr_text());
            assert!(stat(&out, LOADED) == 0 && stat(&out, COMPILED) > 0);
        }
    }
    assert_eq!(fs::read_dir(&cache).expect("the cache").count(), before);
}
