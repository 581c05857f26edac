//! Every case in `regress/` agrees in all engines, and so does a fresh handful of random ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn difftest(args: &[&str], files: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_difftest"))
        .args(args)
        .args(files)
        .output()
        .expect("difftest runs")
}

fn show(o: &Output) -> String {
    format!(
        "{}{}{}",
        o.status,
        String::from_utf8_lossy(&o.stdout),
        String::from_utf8_lossy(&o.stderr)
    )
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regress")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory of cases")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    all.sort();
    all
}

#[test]
fn regressions_stay_fixed() {
    let all = files(&directory());
    assert!(!all.is_empty());
    let o = difftest(&["--replay"], &all);
    assert!(o.status.success(), "{}", show(&o));
}

#[test]
fn known_cases_can_be_read() {
    let all = files(&directory().join("known"));
    let o = difftest(&["--replay"], &all);
    assert_ne!(o.status.code(), Some(2), "{}", show(&o));
    for f in all {
        let text = std::fs::read_to_string(&f).expect("readable");
        assert!(text.starts_with("# "), "{}: no word why", f.display());
    }
}

#[test]
fn random_cases_agree() {
    let dir = std::env::temp_dir().join(format!("difftest-{}", std::process::id()));
    let dir = dir.to_str().expect("a plain path");
    let o = difftest(
        &["--cases", "20000", "--threads", "2", "--regress", dir],
        &[],
    );
    eprintln!("{}", show(&o));
    assert!(o.status.success());
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &["--row", "No_such_row"][..],
        &["--engines", "native"],
        &["--replay", "/nowhere"],
        &["--threads", "0"],
        &["--bogus"],
    ] {
        let o = difftest(args, &[]);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {}", show(&o));
    }
}
