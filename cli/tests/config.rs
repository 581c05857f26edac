//! `sevlab config`: what it prints, what it refuses, and how.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

const PRESETS: [&str; 5] = [
    "epyc-naples",
    "epyc-rome",
    "epyc-milan",
    "epyc-genoa",
    "cachegrind",
];

fn config(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sevlab"))
        .arg("config")
        .args(args)
        .output()
        .expect("sevlab runs")
}

fn text(args: &[&str]) -> String {
    let output = config(args);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {err}");
    assert_eq!(err, "", "{args:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refused(args: &[&str]) -> String {
    let output = config(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn the_list_has_the_presets_and_the_default() {
    let list = text(&["list"]);
    let names: Vec<_> = list.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(names, PRESETS);
    let default: Vec<_> = list.lines().filter(|l| l.contains("default")).collect();
    assert!(
        default.len() == 1 && default[0].starts_with("epyc-milan "),
        "{list}"
    );
}

#[test]
fn a_preset_is_shown_with_its_sources_and_can_be_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    for preset in PRESETS {
        let shown = text(&["show", preset]);
        assert!(shown.contains("[latency]\n"), "{shown}");
        assert!(shown.contains("# Sources:"), "{shown}");
        let file = folder.path().join("model.toml");
        fs::write(&file, &shown).expect("written");
        let file = file.to_str().expect("UTF-8");
        assert_eq!(text(&["check", file]), format!("{file}: fine\n"));
        assert_eq!(
            text(&["show", file, "--json"]),
            text(&["show", preset, "--json"])
        );
    }
}

#[test]
fn settings_are_shown_with_what_they_replace() {
    let shown = text(&[
        "show",
        "epyc-milan",
        "--set",
        "latency.aes_ns=12",
        "--set",
        "l1d.ways=4",
    ]);
    let line = |key: &str| shown.lines().find(|l| l.starts_with(key)).expect("there");
    assert!(
        line("aes_ns").starts_with("aes_ns = 12.0 # --set latency.aes_ns=12; epyc-milan: "),
        "{shown}"
    );
    let json = text(&[
        "show",
        "epyc-milan",
        "--json",
        "--set",
        "latency.aes_ns=12",
        "--set",
        "l1d.size=64KiB",
    ]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["latency"]["aes_ns"], 12.0);
    assert_eq!(json["l1d"]["size"], 65536);
    assert_eq!(json["l1d"]["ways"], 8);
}

#[test]
fn a_file_says_what_differs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("slow.toml");
    fs::write(&path, "base = \"epyc-genoa\"\n[latency]\naes_ns = 30\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    let checked = text(&["check", file]);
    assert_eq!(
        checked,
        format!("{file}: fine, on the base of epyc-genoa\n  latency.aes_ns from {file}:3\n")
    );
    let shown = text(&["show", file]);
    let aes = shown
        .lines()
        .find(|l| l.starts_with("aes_ns"))
        .expect("there");
    assert!(
        aes.starts_with(&format!("aes_ns = 30.0 # {file}:3; epyc-genoa: ")),
        "{aes}"
    );
}

#[test]
fn mistakes_are_told_with_file_line_and_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wrong.toml");
    fs::write(&path, "base = \"epyc-milan\"\n[latency]\naes_cycles = 30\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    for command in ["check", "show"] {
        let error = refused(&[command, file]);
        let expected = format!(
            "sevlab: {file}:3: latency.aes_cycles: no such key; latency.aes_ns is a number of nanoseconds, 0 to 1000000\n"
        );
        assert_eq!(error, expected);
    }
    let error = refused(&["show", "epyc-milan", "--set", "l1d.size=48KiB"]);
    assert!(
        error.starts_with("sevlab: --set l1d.size=48KiB: l1d.size: 48KiB in 8 ways"),
        "{error}"
    );
    let error = refused(&["check", "epyc-turin"]);
    assert!(
        error.contains("neither a file nor a preset; the presets are epyc-naples,"),
        "{error}"
    );
}
