//! The regression bench end to end: its exit status is what a build is gated on.

mod common;

use std::fs;
use std::path::Path;

use common::{run, sevlab};
use serde_json::{Value, json};

/// The bench of the smallest workload, without wall-clock, with these options.
fn bench(options: &[&str]) -> (Option<i32>, String) {
    let mut command = sevlab();
    command
        .args(["bench", "chase", "--runs", "0"])
        .args(options);
    let out = run(&mut command);
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    (out.status.code(), text.into_owned())
}

/// A copy of a baseline with a change.
fn changed(from: &Path, to: &Path, change: impl FnOnce(&mut Value)) {
    let mut all: Value = serde_json::from_slice(&fs::read(from).expect("saved")).expect("JSON");
    change(&mut all);
    fs::write(to, all.to_string()).expect("a baseline");
}

#[test]
fn a_grown_count_fails_the_gate() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let saved = folder.path().join("saved.json");
    let other = folder.path().join("other.json");
    let (saved, other) = (saved.as_path(), other.as_path());
    let path = |p: &Path| p.to_str().expect("text").to_owned();

    let (status, text) = bench(&["--save", &path(saved)]);
    assert_eq!(status, Some(0), "{text}");
    let gate = |baseline: &Path| bench(&["--baseline", &path(baseline), "--fail-above", "2%"]);

    // Itself: every count to the digit.
    let (status, text) = gate(saved);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("(8 exact counts compared)"), "{text}");

    // It took 3 % less before, of each count in turn.
    for count in [
        "cycles",
        "instructions",
        "host_insns",
        "page_bytes",
        "line_bytes",
    ] {
        changed(saved, other, |all| {
            let n = &mut all["workloads"]["chase"]["exact"][count];
            *n = json!(n.as_u64().expect("a count") * 97 / 100);
        });
        let (status, text) = gate(other);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(&format!("chase: {count} ")), "{text}");
    }

    // Another program under the same compiler: the baseline is out of date.
    changed(saved, other, |all| {
        all["workloads"]["chase"]["program"] = json!("another");
    });
    let (status, text) = gate(other);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("the baseline is out of date"), "{text}");

    // Another C library: nobody's fault, but it is said.
    changed(saved, other, |all| {
        all["workloads"]["chase"]["library"] = json!("another");
        all["workloads"]["chase"]["exact"]["cycles"] = json!(1);
    });
    let (status, text) = gate(other);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("NOTHING WAS COMPARED"), "{text}");

    let (status, text) = bench(&["--runs", "1"]);
    assert_eq!(status, Some(2), "{text}");
}
