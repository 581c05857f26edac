//! Simulated caches and simulated time, end to end: runs repeat to the bit, clocks keep their promises, latencies and exit
//! costs are charged once an event, and encryption costs nothing where nothing is encrypted.

mod common;

use std::path::{Path, PathBuf};

use common::{TIMEOUT, compile_c, run_for, sevlab};
use serde_json::Value;

const CLOCKS: &str = include_str!("hierarchy/clocks.c");
const THREADS: &str = include_str!("hierarchy/threads.c");
const TOUCH: &str = include_str!("hierarchy/touch.c");

/// A small machine, so that small programs miss everywhere.
const SMALL: [&str; 8] = [
    "--set",
    "l1d.size=8192",
    "--set",
    "l2.size=65536",
    "--set",
    "llc.size=1048576",
    "--set",
    "llc.ways=16",
];

/// A run: what it printed, and its counts.
struct Run {
    stdout: String,
    stderr: String,
    code: i32,
    counts: Value,
}

impl Run {
    fn simulation(&self, path: &[&str]) -> u64 {
        let mut at = &self.counts["stats"]["simulation"];
        for key in path {
            at = &at[*key];
        }
        at.as_u64().unwrap_or(0)
    }

    /// All of a kind of count of a cache.
    fn cache(&self, name: &str, what: &str) -> u64 {
        let all = self.counts["stats"]["simulation"]["caches"][name][what].as_object();
        all.map_or(0, |o| o.values().filter_map(Value::as_u64).sum())
    }

    /// What must repeat: all that was simulated, without what was host time.
    fn repeats(&self) -> (String, i32, Value) {
        let simulation = self.counts["stats"]["simulation"].clone();
        (self.stdout.clone(), self.code, simulation)
    }
}

/// Runs a program in simulated caches, with an environment that is always the same.
fn hierarchy(folder: &Path, options: &[&str], program: &Path, args: &[&str]) -> Run {
    let report = folder.join("report.json");
    let mut command = sevlab();
    command
        .env_clear()
        .args(["run", "--cache", "hierarchy", "--report"])
        .arg(&report)
        .args(options)
        .arg("--")
        .arg(program)
        .args(args);
    let out = run_for(&mut command, b"", TIMEOUT);
    assert!(!out.is_broken(), "{options:?}: {}", out.stderr_text());
    let text = std::fs::read(&report).unwrap_or_default();
    Run {
        code: out.code(),
        counts: serde_json::from_slice(&text).unwrap_or(Value::Null),
        stdout: out.stdout_text(),
        stderr: out.stderr_text(),
    }
}

fn program(folder: &Path, source: &str, name: &str) -> Option<PathBuf> {
    compile_c(
        source,
        folder,
        name,
        &["-O2", "-w", "-pthread", "-static", "-mrdrnd", "-mrdseed"],
    )
}

/// Runs that must be one: again, without the translator, and translated at once and without other threads.
const WAYS: [&[&str]; 3] = [
    &[],
    &["--jit", "off"],
    &["--jit-opt", "threshold=2", "--jit-opt", "background=off"],
];

#[test]
fn time_and_chance_repeat_and_keep_their_promises() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(clocks) = program(folder.path(), CLOCKS, "clocks") else {
        return;
    };
    for sev in ["off", "snp"] {
        let first = hierarchy(folder.path(), &["--sev", sev], &clocks, &[]);
        assert!(
            first.stdout.ends_with("passed\n"),
            "{sev}: {}{}",
            first.stdout,
            first.stderr
        );
        assert!(first.simulation(&["cycles"]) > 0);
        for way in WAYS {
            let options = [&["--sev", sev], way].concat();
            let again = hierarchy(folder.path(), &options, &clocks, &[]);
            assert_eq!(again.repeats(), first.repeats(), "{options:?}");
        }
        let other = hierarchy(folder.path(), &["--sev", sev, "--seed", "2"], &clocks, &[]);
        assert!(other.stdout.ends_with("passed\n"), "{}", other.stdout);
        assert_ne!(other.stdout, first.stdout, "another seed is another run");
    }
}

#[test]
fn threads_repeat() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(threads) = program(folder.path(), THREADS, "threads") else {
        return;
    };
    for core in ["core.model=simple", "core.model=overlap"] {
        let options = [&["--sev", "es", "--set", core], &SMALL[..]].concat();
        let first = hierarchy(folder.path(), &options, &threads, &[]);
        assert_eq!(first.code, 0, "{}{}", first.stdout, first.stderr);
        assert_eq!(first.simulation(&["threads"]), 7);
        assert!(first.simulation(&["upgrades"]) > 0 && first.simulation(&["idle_cycles"]) > 0);
        for way in WAYS {
            let options = [&options[..], way].concat();
            let again = hierarchy(folder.path(), &options, &threads, &[]);
            assert_eq!(again.repeats(), first.repeats(), "{options:?}");
        }
    }
}

/// "Extra latency only taken for encrypted pages."
/// `core.model = "overlap"`: the events of `simple`, fewer cycles, and the same ones translated and interpreted.
#[test]
fn overlapping_misses_cost_the_same_however_code_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = folder.path().join("text");
    let lines = (0..2000u32).map(|n| format!("{} and {}\n", n.wrapping_mul(2_654_435_761), n % 97));
    std::fs::write(&text, lines.collect::<String>()).expect("a file");
    let text = text.to_str().expect("a path in UTF-8");
    let mut programs = vec![
        (PathBuf::from("/usr/bin/sort"), vec![text]),
        (PathBuf::from("/usr/bin/gzip"), vec!["-c", text]),
    ];
    if let Some(touch) = program(folder.path(), TOUCH, "touch") {
        programs.push((touch, vec!["private", "3000000"]));
    }
    for (program, args) in programs.iter().filter(|p| p.0.exists()) {
        let with = |more: &[&str]| {
            let options = [&["--sev", "snp"], &SMALL[..], more].concat();
            let run = hierarchy(folder.path(), &options, program, args);
            assert_eq!(run.code, 0, "{program:?} {more:?}: {}", run.stderr);
            run
        };
        let overlap = ["--set", "core.model=overlap"];
        let (simple, first) = (with(&[]), with(&overlap));
        assert_eq!(simple.stdout, first.stdout);
        for events in ["instructions", "caches", "tlb", "dram", "upgrades"] {
            let of = |r: &Run| r.counts["stats"]["simulation"][events].clone();
            assert_eq!(of(&simple), of(&first), "{program:?}: {events}");
        }
        let cycles = |r: &Run| r.simulation(&["cycles"]);
        assert!(cycles(&first) < cycles(&simple), "{program:?}");
        assert!(cycles(&first) > first.simulation(&["instruction_cycles"]));
        for way in WAYS {
            let again = with(&[&overlap[..], way].concat());
            assert_eq!(again.repeats(), first.repeats(), "{program:?} {way:?}");
        }
    }
}

#[test]
fn shared_pages_cost_no_encryption() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(touch) = program(folder.path(), TOUCH, "touch") else {
        return;
    };
    // No page walks, whose tables are private; and code stays where it is.
    let options = [
        "--sev",
        "snp",
        "--model",
        "cachegrind",
        "--set",
        "llc.size=1048576",
        "--set",
        "llc_inclusion=non-inclusive",
    ];
    let aes = |run: &Run| {
        let reads = run.simulation(&["dram", "reads_encrypted"]);
        let writes = run.simulation(&["dram", "writes_encrypted"]);
        (reads, writes)
    };
    let lines = |bytes: u64| bytes / 64;
    // As many digits, so that the arguments lie in the same lines.
    let (small, large) = (4 << 20, 8 << 20);
    let run = |kind: &str, bytes: u64, ns: &str| {
        let latency = [
            format!("latency.aes_ns={ns}"),
            format!("latency.aes_write_ns={ns}"),
        ];
        let options = [&options[..], &["--set", &latency[0], "--set", &latency[1]]].concat();
        let run = hierarchy(folder.path(), &options, &touch, &[kind, &bytes.to_string()]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run
    };
    // Four more megabytes of shared data: not one more line through AES, and with AES a thousand times slower every
    // cycle more than before is that of the lines that are private.
    let (a, b) = (run("shared", small, "10"), run("shared", large, "10"));
    assert_eq!(aes(&a), aes(&b));
    let more = b.simulation(&["dram", "reads_plain"]) - a.simulation(&["dram", "reads_plain"]);
    assert!(more >= lines(large - small), "{more} lines");
    let slow = run("shared", large, "10000");
    let per_line = slow.simulation(&["cycles"]) - b.simulation(&["cycles"]);
    assert_eq!(aes(&slow), aes(&b));
    let (reads, writes) = aes(&b);
    let ghz = b.counts["config"]["model"]["core"]["clock_mhz"]
        .as_f64()
        .expect("a clock")
        / 1e3;
    let cycles = |ns: f64| (ns * ghz).round() as u64;
    assert_eq!(
        per_line,
        (reads + writes) * (cycles(10000.0) - cycles(10.0))
    );
    // The same bytes in private memory do go through it.
    let (c, d) = (run("private", small, "10"), run("private", large, "10"));
    assert!(aes(&d).0 - aes(&c).0 >= lines(large - small));
}

/// Two machines that differ in one latency differ by the count of its events times the difference, to the bit.
#[test]
fn every_latency_is_charged_once_an_event() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(touch) = program(folder.path(), TOUCH, "touch") else {
        return;
    };
    let base = [
        &["--sev", "snp"],
        &SMALL[..],
        &["--set", "core.model=simple"],
    ]
    .concat();
    let base = [
        &base[..],
        &["--set", "dram.model=flat", "--set", "core.clock_mhz=1000"],
        // What a prefetcher brings is not charged.
        &[
            "--set",
            "prefetch.next_line=false",
            "--set",
            "prefetch.stride=false",
        ],
    ]
    .concat();
    let with = |set: &str| {
        let options = [&base[..], &["--set", set]].concat();
        let run = hierarchy(folder.path(), &options, &touch, &["private", "3000000"]);
        assert_eq!(run.code, 0, "{set}: {}", run.stderr);
        run
    };
    let s = |run: &Run, path: &[&str]| run.simulation(path);
    let dram = |run: &Run, what: &str| run.simulation(&["dram", what]);
    let l2_hits = |r: &Run| r.cache("l2", "accesses") - r.cache("l2", "misses");
    type Events<'a> = Box<dyn Fn(&Run) -> u64 + 'a>;
    let rows: Vec<(&str, Events<'_>)> = vec![
        (
            "latency.l1d_cycles",
            Box::new(|r| r.cache("l1d", "accesses")),
        ),
        (
            "latency.l1i_cycles",
            Box::new(|r| r.cache("l1i", "accesses")),
        ),
        ("latency.l2_cycles", Box::new(l2_hits)),
        (
            "latency.llc_cycles",
            Box::new(|r| r.cache("llc", "accesses") - s(r, &["remote"])),
        ),
        ("latency.dram_ns", Box::new(|r| r.cache("llc", "misses"))),
        (
            "latency.dram_write_ns",
            Box::new(|r| dram(r, "writes_encrypted") + dram(r, "writes_plain")),
        ),
        ("latency.aes_ns", Box::new(|r| dram(r, "reads_encrypted"))),
        (
            "latency.aes_write_ns",
            Box::new(|r| dram(r, "writes_encrypted")),
        ),
        (
            "latency.tlb2_cycles",
            Box::new(|r| s(r, &["tlb", "data_second_hits"]) + s(r, &["tlb", "fetch_second_hits"])),
        ),
        (
            "latency.walk_cycles",
            Box::new(|r| s(r, &["tlb", "data_walks"]) + s(r, &["tlb", "fetch_walks"])),
        ),
        (
            "latency.rmp_cycles",
            Box::new(|r| s(r, &["tlb", "rmp_reads"])),
        ),
        (
            "exit.syscall_cycles",
            Box::new(|r| s(r, &["exits", "syscall", "events"])),
        ),
        (
            "exit.fault_cycles",
            Box::new(|r| s(r, &["exits", "fault", "events"])),
        ),
        (
            "exit.vmrun_cycles",
            Box::new(|r| s(r, &["exits", "vmrun", "events"])),
        ),
        (
            "exit.es_state_cycles",
            Box::new(|r| s(r, &["exits", "es-state", "events"])),
        ),
        (
            "exit.ghcb_cycles",
            Box::new(|r| s(r, &["exits", "ghcb", "events"])),
        ),
        (
            "exit.vc_cycles",
            Box::new(|r| s(r, &["exits", "vc", "events"])),
        ),
        (
            "exit.pvalidate_cycles",
            Box::new(|r| s(r, &["exits", "pvalidate", "events"])),
        ),
        (
            "exit.rmpupdate_cycles",
            Box::new(|r| s(r, &["exits", "rmpupdate", "events"])),
        ),
    ];
    for (key, events) in rows {
        let (a, b) = (with(&format!("{key}=100")), with(&format!("{key}=1107")));
        let n = events(&a);
        assert_eq!(n, events(&b), "{key}: the events are the same");
        let difference = b.simulation(&["cycles"]) - a.simulation(&["cycles"]);
        assert_eq!(difference, n * 1007, "{key}: {n} events");
        let rare = ["exit.vc_cycles", "latency.dram_write_ns"];
        assert!(n > 0 || rare.contains(&key), "{key}: no event");
    }
}

#[test]
fn exits_are_counted_by_what_protects_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(touch) = program(folder.path(), TOUCH, "touch") else {
        return;
    };
    let run = |sev: &str| {
        hierarchy(
            folder.path(),
            &["--sev", sev],
            &touch,
            &["private", "3000000"],
        )
    };
    let events = |r: &Run, what: &str| r.simulation(&["exits", what, "events"]);
    let [off, sev, es, snp] = ["off", "sev", "es", "snp"].map(run);
    for r in [&off, &sev, &es, &snp] {
        // The last exit, from which nobody returns, is not charged.
        let exits = r.counts["stats"]["exits"].as_object().expect("exits");
        let all: u64 = exits.values().filter_map(Value::as_u64).sum();
        assert_eq!(events(r, "vmrun"), all - 1);
        assert_eq!(
            events(r, "syscall"),
            r.counts["stats"]["syscalls"].as_u64().unwrap()
        );
        assert!(events(r, "fault") > 0);
    }
    for r in [&off, &sev] {
        assert_eq!(
            [events(r, "es-state"), events(r, "ghcb"), events(r, "vc")],
            [0; 3]
        );
    }
    let vmgexit = |r: &Run| {
        r.counts["stats"]["exits"]["VMGEXIT"]
            .as_u64()
            .expect("some")
    };
    for r in [&es, &snp] {
        assert_eq!(events(r, "es-state"), events(r, "vmrun"));
        assert_eq!(events(r, "ghcb"), vmgexit(r));
    }
    assert_eq!(events(&es, "pvalidate"), 0);
    assert!(events(&snp, "pvalidate") > 0 && events(&snp, "rmpupdate") > 0);
    assert_eq!(off.simulation(&["launch_pages"]), 0);
    assert!(snp.simulation(&["launch_pages"]) > 0 && snp.simulation(&["launch_cycles"]) > 0);
}

#[test]
fn the_model_is_in_the_report_and_wrong_options_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(touch) = program(folder.path(), TOUCH, "touch") else {
        return;
    };
    let options = [
        "--model",
        "epyc-genoa",
        "--set",
        "latency.aes_ns=12.5",
        "--stats",
    ];
    let run = hierarchy(folder.path(), &options, &touch, &["private", "65536"]);
    let config = &run.counts["config"];
    assert_eq!(config["cache"], "hierarchy");
    assert_eq!(config["cpu"], "epyc-genoa");
    assert_eq!(config["seed"], 1);
    assert_eq!(config["model"]["name"], "epyc-genoa, latency.aes_ns=12.5");
    assert_eq!(config["model"]["latency"]["aes_ns"], 12.5);
    for words in [
        "cycles",
        "LLC",
        "DRAM reads",
        "exits: syscall",
        "an instruction",
    ] {
        assert!(run.stderr.contains(words), "{words} in {}", run.stderr);
    }
    for (options, word) in [
        (&["--set", "latency.nothing=1"][..], "latency.nothing"),
        (&["--model", "epyc-nowhere"][..], "epyc-nowhere"),
        (&["--resident", "5000"][..], "--resident"),
        (&["--set", "core.model=overlap", "--check"][..], "--check"),
    ] {
        let run = hierarchy(folder.path(), options, &touch, &["private", "4096"]);
        assert!(run.code == 2 && run.stderr.contains(word), "{}", run.stderr);
    }
    let mut page = sevlab();
    page.args(["run", "--model", "epyc-rome", "--", "/bin/true"]);
    let out = run_for(&mut page, b"", TIMEOUT);
    assert!(out.code() == 2 && out.stderr_text().contains("--cache hierarchy"));
}
