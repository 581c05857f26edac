use std::fs;

use crate::record::Status;
use crate::tests::{entry, results};

use super::*;

fn study() -> Results {
    let mut runs = Vec::new();
    for (workload, base) in [("mcf", 1000), ("a<b", 2000)] {
        for (i, aes) in [0.0, 10.0, 20.0].into_iter().enumerate() {
            runs.push((entry(workload, "off", Some(aes)), base));
            runs.push((entry(workload, "snp", Some(aes)), base + 100 * i as u64));
        }
    }
    results(&runs, &[0.0, 10.0, 20.0])
}

/// Tags are closed in the order in which they were opened.
fn check_tags(html: &str) {
    const VOID: [&str; 3] = ["meta", "!DOCTYPE", "br"];
    let mut open: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().expect("a tag");
        let name = tag.split_whitespace().next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn a_page_is_whole_and_needs_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let page = dir.path().join("r.html");
    let written = write(&study(), &page).expect("writes");
    let html = fs::read_to_string(&page).expect("reads");
    check_tags(&html);
    assert!(html.contains("a&lt;b") && !html.contains("<b:") && !html.contains("a<b"));
    for outside in [
        "http:", "https:", "@import", "url(", "<script", "<link", "src=",
    ] {
        let html = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!html.contains(outside), "{outside}");
    }
    let names: Vec<String> = written
        .iter()
        .filter_map(|f| Some(f.file_name()?.to_string_lossy().into_owned()))
        .collect();
    for name in [
        "overhead",
        "lines-latency-aes_ns",
        "workloads-latency-aes_ns",
        "cycles",
        "exits",
    ] {
        for kind in ["svg", "png"] {
            assert!(
                names.contains(&format!("{name}.{kind}")),
                "{name}.{kind} in {names:?}"
            );
        }
    }
}

#[test]
fn numbers_of_the_page_are_those_of_the_results() {
    let r = study();
    let html = sections::page(&r, &figures::figures(&r), "figures");
    // 1200 over 1000, 2200 over 2000, and their mean.
    for text in ["+20.0 %", "+10.0 %", "+14.9 %", "1200 over 1000 cycles"] {
        assert!(html.contains(text), "{text}");
    }
}

#[test]
fn what_went_ill_is_told_first() {
    let mut r = study();
    let key = r.plan.entries[1].key.clone();
    let record = r.records.get_mut(&key).expect("a record");
    record.status = Status::Crashed;
    record.why = Some("killed by <SIGSEGV>".to_owned());
    let missing = r.plan.entries[2].key.clone();
    r.records.remove(&missing);
    let html = sections::page(&r, &figures::figures(&r), "figures");
    check_tags(&html);
    assert!(html.contains("the guest crashed. killed by &lt;SIGSEGV&gt;"));
    assert!(html.contains("1 runs have no result yet"));
}

#[test]
fn a_comparison_marks_what_differs() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, mut b) = (study(), study());
    let key = b.plan.entries[5].key.clone();
    let record = b.records.get_mut(&key).expect("a record");
    record.report["stats"]["simulation"]["cycles"] = 1320.into();
    record.report["config"]["model"]["latency"]["aes_ns"] = 99.0.into();
    let page = dir.path().join("c.html");
    compare::write(&a, &b, ["A", "B"], &page).expect("writes");
    let html = fs::read_to_string(&page).expect("reads");
    check_tags(&html);
    assert!(html.contains("class=\"up\">\u{25b2} +10.0 %"));
    assert!(html.contains("latency.aes_ns") && html.contains("99.0"));
    let same = html.matches(">same<").count();
    assert!(same > 10, "{same}");
}

#[test]
fn a_page_of_nothing_is_one() {
    let mut r = study();
    r.records.clear();
    let html = sections::page(&r, &figures::figures(&r), "figures");
    check_tags(&html);
    assert!(html.contains("12 runs have no result yet"));
}

#[test]
fn nothing_in_common_is_an_error() {
    let a = results(&[(entry("v", "off", None), 1)], &[]);
    let b = results(&[(entry("w", "off", None), 1)], &[]);
    let dir = tempfile::tempdir().expect("a folder");
    let error =
        compare::write(&a, &b, ["A", "B"], &dir.path().join("c.html")).expect_err("nothing");
    assert!(error.to_string().contains("no run in common"));
}
