use std::fs;

use super::*;
use crate::record::Status;
use crate::tests::record;

fn keys(store: &Store) -> Vec<&str> {
    store.records().keys().map(String::as_str).collect()
}

#[test]
fn what_was_added_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = Store::open(dir.path()).expect("opens");
    for key in ["a", "b"] {
        store.add(record(key, 100)).expect("adds");
    }
    let again = record("a", 200);
    store.add(again.clone()).expect("adds");
    drop(store);
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!(keys(&store), ["a", "b"]);
    assert_eq!(store.records()["a"], again, "the later line stands");
    assert_eq!(Store::look(dir.path()).expect("reads").len(), 2);
}

#[test]
fn a_second_writer_is_told_who_is_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let _first = Store::open(dir.path()).expect("opens");
    let error = Store::open(dir.path()).expect_err("held").to_string();
    let pid = std::process::id().to_string();
    assert!(
        error.contains("at work here") && error.contains(&pid),
        "{error}"
    );
}

/// Every place at which a write can be cut off.
#[test]
fn a_torn_end_is_set_aside_and_the_rest_stands() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(RESULTS);
    let mut store = Store::open(dir.path()).expect("opens");
    for key in ["a", "b"] {
        store.add(record(key, 100)).expect("adds");
    }
    drop(store);
    let whole = fs::read(&path).expect("reads");
    let first = whole.iter().position(|b| *b == b'\n').expect("a line") + 1;
    for cut in [first + 1, first + 100, whole.len() - 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).expect("writes");
        let _ = fs::remove_file(dir.path().join(TORN));
        let mut store = Store::open(dir.path()).expect("opens");
        assert_eq!((keys(&store), store.torn()), (vec!["a"], 1), "cut at {cut}");
        let torn = fs::read(dir.path().join(TORN)).expect("reads");
        assert_eq!(torn, [&whole[first..cut], b"\n"].concat());
        store.add(record("b", 100)).expect("adds");
        drop(store);
        assert_eq!(fs::read(&path).expect("reads"), whole, "cut at {cut}");
    }
}

#[test]
fn a_damaged_line_in_the_middle_costs_no_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(RESULTS);
    let mut store = Store::open(dir.path()).expect("opens");
    for key in ["a", "b", "c"] {
        store.add(record(key, 100)).expect("adds");
    }
    drop(store);
    let text = fs::read_to_string(&path).expect("reads");
    let damaged = text.replacen("\"key\":\"b\"", "\"key\":\0b\0", 1);
    assert_ne!(text, damaged);
    fs::write(&path, damaged).expect("writes");
    let mut store = Store::open(dir.path()).expect("opens");
    assert_eq!((keys(&store), store.torn()), (vec!["a", "c"], 1));
    store.add(record("b", 100)).expect("adds");
    drop(store);
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!((keys(&store), store.torn()), (vec!["a", "b", "c"], 0));
}

#[test]
fn results_under_another_limit_and_failures_of_sevlab_do_not_stand() {
    let mut r = record("a", 1);
    assert!(r.stands(Some(5.0), None));
    r.status = Status::SecondsLimit;
    r.limit_seconds = Some(5.0);
    assert!(r.stands(Some(5.0), None) && !r.stands(Some(9.0), None));
    r.status = Status::InstructionsLimit;
    r.limit_instructions = Some(10);
    assert!(r.stands(None, Some(10)) && !r.stands(None, None));
    r.status = Status::Broken;
    assert!(!r.stands(Some(5.0), Some(10)));
}
