//! The workloads of studies under sevlab: what they print at size test is what the manifest says, in every kind of run; and the
//! command that lists, shows and runs them.

mod common;

use std::path::PathBuf;

use common::{Outcome, TIMEOUT, run, sevlab, workload};
use serde_json::Value;
use sevlab_workloads::manifest::{Manifest, Program, Size, Workload};
use sevlab_workloads::resolve::Places;

/// The binaries that the tests build.
fn folder() -> PathBuf {
    workload("chase").parent().expect("in a folder").to_owned()
}

fn own() -> Vec<Workload> {
    let is_own = |w: &Workload| matches!(w.program, Program::Own(_));
    let mut all = Manifest::builtin().workloads;
    all.retain(is_own);
    all
}

/// Runs workloads under sevlab, two at a time, and checks what they print.
fn right(workloads: &[Workload], options: &[&str]) {
    let inputs = tempfile::tempdir().expect("a temporary folder");
    let places = Places {
        own: folder(),
        own_from: "where the tests' are",
        path: std::env::var_os("PATH").unwrap_or_default(),
    };
    let check = |workload: &Workload| {
        let job = places
            .prepare(workload, Size::Test, inputs.path())
            .unwrap_or_else(|e| panic!("{e}"));
        let mut command = sevlab();
        command.arg("run").args(options).arg("--");
        command.arg(&job.program).args(&job.args);
        job.surround(&mut command).expect("its input");
        let out = common::run_for(&mut command, b"", TIMEOUT);
        let name = format!("{} {options:?}", workload.name);
        assert_eq!(out.code(), 0, "{name}: {}", out.stderr_text());
        if let Err(why) = job.check(&out.stdout) {
            panic!("{name}: {why}\n{}", out.stdout_text());
        }
    };
    std::thread::scope(|scope| {
        let (one, other) = workloads.split_at(workloads.len() / 2);
        scope.spawn(|| one.iter().for_each(check));
        other.iter().for_each(check);
    });
}

#[test]
fn output_is_right_in_plain_memory() {
    let all = own();
    assert!(all.len() >= 20, "{} workloads", all.len());
    right(&all, &["--sev", "off"]);
}

#[test]
fn output_is_right_under_snp() {
    right(&own(), &["--sev", "snp"]);
}

#[test]
fn output_is_right_in_simulated_caches() {
    let mut some = own();
    // Integers and branches, floating point, memory; those that run few instructions.
    some.retain(|w| ["mcf", "deepsjeng", "namd", "chase", "stream"].contains(&w.name.as_str()));
    assert_eq!(some.len(), 5);
    right(&some, &["--sev", "snp", "--cache", "hierarchy"]);
}

fn workloads(args: &[&str]) -> Outcome {
    run(sevlab()
        .arg("workloads")
        .args(args)
        .env("SEVLAB_WORKLOADS", folder()))
}

#[test]
fn the_list() {
    let text = workloads(&[]).stdout_text();
    for name in ["mcf", "505.mcf_r", "stream", "integer"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    let json: Value =
        serde_json::from_str(&workloads(&["list", "--json"]).stdout_text()).expect("JSON");
    let rows = json.as_array().expect("a list");
    assert_eq!(rows.len(), Manifest::builtin().workloads.len());
    let mcf = rows.iter().find(|r| r["name"] == "mcf").expect("mcf");
    assert_eq!(mcf["path"], folder().join("mcf").display().to_string());
    assert_eq!(mcf["missing"], Value::Null);
    assert!(mcf["sizes"]["ref"]["footprint_mib"].as_f64() > Some(100.0));
}

#[test]
fn one_of_them() {
    let text = workloads(&["show", "mcf"]).stdout_text();
    for word in ["505.mcf_r", "mcf --size train", "SHA-256", "MiB"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let out = workloads(&["show", "nothing"]);
    assert_eq!(out.code(), 2);
    assert!(
        out.stderr_text().contains(", mcf,"),
        "{}",
        out.stderr_text()
    );
}

#[test]
fn a_run_is_checked() {
    let out = workloads(&["run", "chase", "--native"]);
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    assert!(
        out.stderr_text().contains("the output is right"),
        "{}",
        out.stderr_text()
    );
    let out = workloads(&["run", "chase", "--", "--sev", "snp"]);
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    // A manifest of one's own that expects something else.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("mine.toml");
    let entry = |digest: &str| {
        format!(
            "format = 1\n[[workload]]\nname = \"mine\"\nkind = \"memory\"\nwhat = \"\"\nwhy = \"\"\nprogram = {{ own = \
             \"chase\" }}\nargs = [\"1\", \"5\"]\n[workload.sizes]\ntest = {{ footprint_mib = 1, sha256 = \"{digest}\" }}\n"
        )
    };
    std::fs::write(&file, entry(&"0".repeat(64))).expect("written");
    let mine = file.display().to_string();
    let out = workloads(&["run", "mine", "--native", "--manifest", &mine]);
    assert_eq!(out.code(), 1);
    assert!(
        out.stderr_text().contains("SHA-256"),
        "{}",
        out.stderr_text()
    );
    std::fs::write(&file, entry("short")).expect("written");
    let out = workloads(&["list", "--manifest", &mine]);
    assert_eq!(out.code(), 2);
    assert!(
        out.stderr_text().contains("64 hexadecimal digits"),
        "{}",
        out.stderr_text()
    );
}

#[test]
fn programs_that_are_not_there() {
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    let with = |args: &[&str]| {
        run(sevlab()
            .arg("workloads")
            .args(args)
            .env("SEVLAB_WORKLOADS", nowhere.path()))
    };
    let out = with(&["run", "mcf"]);
    assert_eq!(out.code(), 127);
    for word in [
        "$SEVLAB_WORKLOADS",
        "cargo build --release -p sevlab-workloads",
    ] {
        assert!(
            out.stderr_text().contains(word),
            "{word} in {}",
            out.stderr_text()
        );
    }
    let out = with(&[]);
    assert_eq!(out.code(), 0);
    assert!(
        out.stdout_text().contains("Not here:"),
        "{}",
        out.stdout_text()
    );
}
