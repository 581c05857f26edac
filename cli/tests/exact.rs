//! Counts of simulated caches against the slow reference: a few quick cases. `scripts/exact` has the others.
//!
//! Each case is run twice: translated, with filters in front of the caches; and interpreted, with the reference beside it, which
//! fails the run if it counts anything else. The two runs count the same.

mod common;

use std::fs;
use std::path::Path;

use common::{run, sevlab, workload};
use serde_json::Value;

/// Caches and TLBs that every program overflows.
const SMALL: &str = "l1i.size=4KiB l1i.ways=4 l1d.size=4KiB l1d.ways=4 l2.size=16KiB l2.ways=4 llc.size=128KiB llc.ways=8 \
                     tlb.l1i.entries=8 tlb.l1i.ways=4 tlb.l1d.entries=8 tlb.l1d.ways=4 tlb.l2.entries=32 tlb.l2.ways=4 \
                     tlb.walk_entries=2 tlb.nested_entries=4";

fn counts(sev: &str, sets: &str, more: &[&str], program: &Path, args: &[&str]) -> (Vec<u8>, Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report");
    let mut command = sevlab();
    command
        .env_clear()
        .args(["run", "--cache", "hierarchy", "--sev", sev]);
    for set in SMALL
        .split(' ')
        .chain(sets.split(' '))
        .filter(|s| !s.is_empty())
    {
        command.args(["--set", set]);
    }
    command
        .args(more)
        .arg("--report")
        .arg(&report)
        .arg("--")
        .arg(program)
        .args(args);
    let out = run(&mut command);
    assert_eq!(
        out.code(),
        0,
        "{sev} {sets} {more:?}: {}",
        out.stderr_text()
    );
    let text = fs::read_to_string(&report).expect("a report");
    let mut report: Value = serde_json::from_str(&text).expect("JSON");
    (out.stdout, report["stats"]["simulation"].take())
}

fn exact(sev: &str, sets: &str, name: &str, args: &[&str]) {
    let program = workload(name);
    let (said, fast) = counts(sev, sets, &[], &program, args);
    let (said_too, slow) = counts(sev, sets, &["--jit", "off", "--check"], &program, args);
    assert_eq!(said, said_too, "{sev} {sets}");
    assert_eq!(fast, slow, "{sev} {sets}");
    assert!(
        fast["caches"]["llc"]["misses"].to_string().len() > 4,
        "{fast}"
    );
}

#[test]
fn lru_under_snp() {
    exact("snp", "", "chase", &["1", "3000"]);
}

#[test]
fn other_policies() {
    for policy in ["tree-plru", "nru", "fifo", "random"] {
        let sets = ["l1i", "l1d", "l2", "llc"].map(|c| format!("{c}.policy={policy}"));
        exact("sev", &sets.join(" "), "gups", &["1", "2000"]);
    }
}

#[test]
fn prefetchers_banks_and_inclusion() {
    let sets = "prefetch.next_line=true prefetch.stride=true llc_inclusion=inclusive dram.model=banks dram.channels=2 \
                dram.banks=4 dram.line_ns=30 latency.aes_line_ns=40";
    exact("es", sets, "stencil", &["12", "2"]);
}

#[test]
fn no_second_level_and_no_tlb() {
    exact(
        "off",
        "l2=none prefetch.stride=false",
        "memcpy",
        &["1", "1"],
    );
    let folder = "tlb=none";
    let program = workload("chase");
    let sets = ["l1d.size=4KiB", "l1d.ways=4", folder];
    let mut command = sevlab();
    command
        .env_clear()
        .args(["run", "--cache", "hierarchy", "--jit", "off", "--check"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let out = run(command.arg("--").arg(program).args(["1", "1000"]));
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
}

#[test]
fn what_the_check_needs() {
    for options in [&["--check"][..], &["--check", "--cache", "hierarchy"]] {
        let out = run(sevlab().arg("run").args(options).args(["--", "true"]));
        assert_eq!(out.code(), 2, "{options:?}");
        assert!(
            out.stderr_text().contains("--jit off"),
            "{}",
            out.stderr_text()
        );
    }
}
