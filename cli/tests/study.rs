//! Studies end to end: whatever happens to a study or to one of its runs, no result is lost or doubled, and the rest goes on.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Random, TIMEOUT, run, run_for, sevlab};
use serde_json::Value;

/// Programs of a study: name, shell script, and more lines of its table.
type Program<'a> = (&'a str, &'a str, &'a str);

/// A folder with a study file, and the command that makes its runs.
struct Study {
    folder: tempfile::TempDir,
}

impl Study {
    fn new(programs: &[Program<'_>], rest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut text = String::new();
        for (name, script, more) in programs {
            text.push_str(&format!(
                "[[program]]\nname = \"{name}\"\ncommand = [\"sh\", \"-c\", '''{script}''']\n{more}\n"
            ));
        }
        fs::write(folder.path().join("s.toml"), text + rest).expect("a study file");
        // For runs as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        Self { folder }
    }

    /// Twelve runs: two programs, two machines, three values.
    fn small() -> Self {
        Self::new(
            &[
                ("words", "echo some words", ""),
                ("child", "(exit 0); echo more", ""),
            ],
            "[[config]]\nsev = \"off\"\n[[config]]\nsev = \"snp\"\n[vary]\nlatency.aes_ns = [0, 10, 20]\n",
        )
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = sevlab();
        command
            .arg("study")
            .arg(self.folder.path().join("s.toml"))
            .arg("--out")
            .arg(self.dir())
            .args(options);
        command
    }

    /// The whole lines of the results: how often each key is there, and its status.
    fn results(&self) -> BTreeMap<String, (usize, String)> {
        let text = fs::read_to_string(self.dir().join("results.jsonl")).unwrap_or_default();
        let mut found = BTreeMap::new();
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let of = |key: &str| record[key].as_str().expect("text").to_owned();
            let entry = found.entry(of("key")).or_insert((0, String::new()));
            entry.0 += 1;
            entry.1 = of("status");
        }
        found
    }

    /// The status of each program's runs.
    fn statuses(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.dir().join("results.jsonl")).expect("results");
        let records = text
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
        records
            .map(|r| {
                let of = |key: &str| r[key].as_str().unwrap_or_default().to_owned();
                (of("workload"), format!("{}: {}", of("status"), of("why")))
            })
            .collect()
    }

    fn check_all(&self, runs: usize) {
        let results = self.results();
        assert_eq!(results.len(), runs);
        for (key, (times, status)) in results {
            assert_eq!((times, status.as_str()), (1, "ok"), "{key}");
        }
    }
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(status.expect("kill runs").success());
}

/// Runs of a study, and what their guests have forked: their command line says where the report goes.
fn processes_of(folder: &Path) -> usize {
    let all = fs::read_dir("/proc").expect("/proc");
    let folder = folder.display().to_string();
    all.flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains("\0run\0") && line.contains(&folder))
        .count()
}

/// Kills a study at random moments, and lets it go on each time.
#[test]
fn a_kill_loses_and_doubles_nothing() {
    let study = Study::small();
    let mut random = Random(20);
    let mut before = study.results();
    for round in 0..5 {
        let mut child = spawn(&mut study.command(&["--jobs", "2"]));
        std::thread::sleep(Duration::from_millis(100 + random.below(900)));
        let _ = child.kill();
        child.wait().expect("waits");
        let after = study.results();
        for (key, (times, status)) in &before {
            assert_eq!(
                after.get(key),
                Some(&(*times, status.clone())),
                "round {round}: {key}"
            );
        }
        assert!(
            after.values().all(|(times, _)| *times == 1),
            "round {round}: {after:?}"
        );
        before = after;
    }
    // What it had started is gone, too.
    let start = Instant::now();
    while processes_of(study.folder.path()) > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "runs outlive their study"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let out = run(&mut study.command(&[]));
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    study.check_all(12);
    for file in ["report.html", "results.csv", "figures/overhead.png"] {
        assert!(study.dir().join(file).is_file(), "{file}");
    }
    let again = run(&mut study.command(&[]));
    assert!(
        again.stderr_text().contains("12 of 12 runs have results"),
        "{}",
        again.stderr_text()
    );
    study.check_all(12);
}

#[test]
fn ctrl_c_keeps_results_and_ends_the_runs() {
    let study = Study::small();
    let mut child = spawn(&mut study.command(&["--jobs", "2"]));
    let start = Instant::now();
    while study.results().len() < 2 {
        assert!(start.elapsed() < TIMEOUT, "no result");
        std::thread::sleep(Duration::from_millis(10));
    }
    let start = Instant::now();
    while processes_of(study.folder.path()) == 0 {
        assert!(start.elapsed() < TIMEOUT, "no run to be seen");
        std::thread::sleep(Duration::from_millis(1));
    }
    // A second writer is refused meanwhile.
    let second = run(&mut study.command(&[]));
    assert_eq!(second.code(), 125);
    assert!(
        second.stderr_text().contains("at work here"),
        "{}",
        second.stderr_text()
    );
    signal(&child, "INT");
    let status = child.wait().expect("waits");
    assert_eq!(status.code(), Some(130));
    assert_eq!(processes_of(study.folder.path()), 0, "a run is left");
    let kept = study.results();
    assert!(
        kept.len() >= 2 && kept.values().all(|(n, status)| *n == 1 && status == "ok"),
        "{kept:?}"
    );
    assert_eq!(run(&mut study.command(&[])).code(), 0);
    study.check_all(12);
}

#[test]
fn an_ill_run_is_told_and_the_rest_goes_on() {
    let digest = format!("stdout_sha256 = \"{}\"", "0".repeat(64));
    let study = Study::new(
        &[
            ("crash", "kill -SEGV $$", ""),
            ("fail", "echo oh no >&2; exit 3", ""),
            ("endless", "while :; do :; done", ""),
            ("wrong", "echo hello", &digest),
            ("fine", "echo hello", ""),
        ],
        "[limit]\ninstructions = 40_000_000\n[[config]]\nsev = \"es\"\n",
    );
    let out = run(&mut study.command(&[]));
    assert_eq!(out.code(), 1, "{}", out.stderr_text());
    let told = out.stderr_text();
    assert!(told.contains("4 of 5 runs went ill"), "{told}");
    let statuses = study.statuses();
    for (name, begins) in [
        ("crash", "crashed: killed by SIGSEGV"),
        ("fail", "failed: exit status 3: oh no"),
        ("endless", "instructions-limit: 40000000 instructions"),
        (
            "wrong",
            "wrong-output: its output has SHA-256 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ),
        ("fine", "ok: "),
    ] {
        assert!(
            statuses[name].starts_with(begins),
            "{name}: {}",
            statuses[name]
        );
        let begins = format!("{name} es: ");
        let listed = told.lines().any(|line| line.starts_with(&begins));
        assert_eq!(listed, name != "fine", "{told}");
    }
    // They are results: not made again, unless that is asked for.
    let again = run(&mut study.command(&[]));
    assert!(again.stderr_text().contains("5 of 5 runs have results"));
    let again = run(&mut study.command(&["--again"]));
    assert!(again.stderr_text().contains("1 of 5 runs have results"));
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let study = Study::new(
        // Its child would hold the pipe of its output.
        &[
            ("endless", "while :; do :; done & while :; do :; done", ""),
            ("fine", "echo hello", ""),
        ],
        "[limit]\nseconds = 3\n[[config]]\nsev = \"off\"\n",
    );
    let out = run_for(&mut study.command(&[]), b"", Duration::from_secs(100));
    assert_eq!(out.code(), 1, "{}", out.stderr_text());
    let statuses = study.statuses();
    assert!(
        statuses["endless"].starts_with("seconds-limit: still running after 3 s"),
        "{statuses:?}"
    );
    assert!(statuses["fine"].starts_with("ok"), "{statuses:?}");
    assert_eq!(processes_of(study.folder.path()), 0, "a run is left");
}

/// A command in a mount namespace of its own, after `mount`; `None` if the host does not let us.
fn with_mount(study: &Study, mount: &str) -> Option<Command> {
    let own = Command::new("id").arg("-u").output().expect("id runs");
    let flags = if own.stdout == b"0\n" { "-m" } else { "-rm" };
    let probe = Command::new("unshare").args([flags, "true"]).status();
    if !probe.is_ok_and(|s| s.success()) {
        eprintln!("skipped: unshare {flags} does not work here");
        return None;
    }
    fs::create_dir_all(study.dir()).expect("a folder");
    let mut command = Command::new("unshare");
    command
        .args([
            flags,
            "sh",
            "-c",
            &format!("{mount} && shift && exec \"$@\""),
            "sh",
            "x",
        ])
        .arg(env!("CARGO_BIN_EXE_sevlab"))
        .arg("study")
        .arg(study.folder.path().join("s.toml"))
        .arg("--out")
        .arg(study.dir())
        .env("OUT", study.dir());
    Some(command)
}

#[test]
fn a_full_disk_is_told_and_what_is_there_stays() {
    let study = Study::small();
    let keep = study.folder.path().join("keep");
    fs::create_dir(&keep).expect("a folder");
    // The plan and 12 results do not fit; afterwards what is there is copied out of the namespace.
    let script = "mount -t tmpfs -o size=36k none \"$OUT\" && { shift; \"$@\"; status=$?; cp \"$OUT\"/results.jsonl \"$OUT/../keep\"; \
                  exit $status; } #";
    let Some(mut command) = with_mount(&study, script) else {
        return;
    };
    let out = run(&mut command);
    let told = out.stderr_text();
    assert_eq!(out.code(), 125, "{told}");
    assert!(told.contains("No space left on device"), "{told}");
    assert!(
        told.contains("make room, then start the same command again"),
        "{told}"
    );
    let kept = fs::read_to_string(keep.join("results.jsonl")).expect("results");
    assert!(kept.ends_with('\n'), "no torn line");
    let lines = kept.lines().count();
    assert!((1..12).contains(&lines), "{lines} results");
    // With room it goes on.
    fs::copy(
        keep.join("results.jsonl"),
        study.dir().join("results.jsonl"),
    )
    .expect("copies");
    let out = run(&mut study.command(&[]));
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    assert!(
        out.stderr_text()
            .contains(&format!("{lines} of 12 runs have results"))
    );
    study.check_all(12);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_at_once() {
    let study = Study::small();
    if let Some(mut command) = with_mount(&study, "mount -t tmpfs -o ro none \"$OUT\"") {
        let out = run(&mut command);
        assert_eq!(out.code(), 125, "{}", out.stderr_text());
        let told = out.stderr_text();
        assert!(
            told.contains("Read-only file system") && told.contains("--out"),
            "{told}"
        );
    }
    // A file in the folder's place.
    let study = Study::small();
    fs::write(study.dir(), "in the way").expect("a file");
    let out = run(&mut study.command(&[]));
    assert_eq!(out.code(), 125, "{}", out.stderr_text());
    // Nobody's folder, for who is not root.
    if Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout == b"0\n")
    {
        let study = Study::small();
        fs::create_dir(study.dir()).expect("a folder");
        let probe = Command::new("test")
            .args(["-x", env!("CARGO_BIN_EXE_sevlab")])
            .uid(65534)
            .status();
        if probe.is_ok_and(|s| s.success()) {
            let out = run(study.command(&[]).uid(65534).gid(65534));
            assert_eq!(out.code(), 125, "{}", out.stderr_text());
            assert!(
                out.stderr_text().contains("Permission denied"),
                "{}",
                out.stderr_text()
            );
        }
    }
}

#[test]
fn a_wrong_file_is_told_with_its_line_before_anything_runs() {
    for (line, told) in [
        (
            "[vary]\nlatency.aes = [1]",
            "s.toml:8: latency.aes: no such key; latency.aes_ns is a number of nanoseconds",
        ),
        ("[vary]\nl2.size = [\"3KiB\"]", "s.toml:8: l2.size:"),
        ("[vary]\nfoo.bar = [1]", "s.toml:8: foo.bar: no such key"),
        (
            "cpu = \"epyc-rome\"",
            "config.sev: epyc-rome has no SEV-SNP",
        ),
        ("vari = 3", "s.toml:7: config.vari: no such key"),
    ] {
        let study = Study::new(
            &[("p", "true", "")],
            &format!("[[config]]\nsev = \"snp\"\n{line}\n"),
        );
        let out = run(&mut study.command(&[]));
        assert_eq!(out.code(), 2, "{}", out.stderr_text());
        assert!(out.stderr_text().contains(told), "{}", out.stderr_text());
        assert!(study.results().is_empty());
    }
    let study = Study::new(&[("p", "true", "")], "[[config]]\nsev = \"snp\"\n");
    let out = run(&mut study.command(&["--dry-run"]));
    assert_eq!(out.code(), 0);
    assert!(
        out.stdout_text().contains("1 runs") && !study.dir().exists(),
        "{}",
        out.stdout_text()
    );
}

/// The same study twice is the same to the cycle, and a comparison says so; another latency is another number.
#[test]
fn counts_repeat_and_a_comparison_finds_what_differs() {
    let rest = |ns: u32| {
        format!("[[config]]\nsev = \"off\"\n[[config]]\nsev = \"snp\"\nset.latency.aes_ns = {ns}\n")
    };
    let [a, b, c] =
        [18, 18, 40].map(|ns| Study::new(&[("words", "echo some words", "")], &rest(ns)));
    for study in [&a, &b, &c] {
        let out = run(&mut study.command(&[]));
        assert_eq!(out.code(), 0, "{}", out.stderr_text());
    }
    let compare = |x: &Study, y: &Study| {
        let page = x.folder.path().join("c.html");
        let out = run(sevlab()
            .args(["report", "--compare"])
            .arg(x.dir())
            .arg(y.dir())
            .arg("--out")
            .arg(&page));
        assert_eq!(out.code(), 0, "{}", out.stderr_text());
        fs::read_to_string(page).expect("a page")
    };
    let same = compare(&a, &b);
    assert!(!same.contains("class=\"up\"") && !same.contains("class=\"down\""));
    let other = compare(&a, &c);
    assert!(other.contains("class=\"up\"") && other.contains("latency.aes_ns"));
}
