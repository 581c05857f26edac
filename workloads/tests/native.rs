//! Natively, each workload of our own prints at size test what the manifest says.

use std::path::Path;

use sevlab_workloads::manifest::{Manifest, Program, Size};
use sevlab_workloads::resolve::Places;

fn places() -> Places {
    let binary = Path::new(env!("CARGO_BIN_EXE_chase"));
    Places {
        own: binary.parent().expect("in a folder").to_owned(),
        own_from: "where this test's are",
        path: std::env::var_os("PATH").unwrap_or_default(),
    }
}

#[test]
fn outputs_are_right() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut wrong = Vec::new();
    for workload in &Manifest::builtin().workloads {
        let job = match places().prepare(workload, Size::Test, folder.path()) {
            Ok(job) => job,
            Err(why) if workload.is_optional() => {
                eprintln!("SKIPPED: {}: {why}", workload.name);
                continue;
            }
            Err(why) => panic!("{}: {why}", workload.name),
        };
        let run = || job.native().expect("its input").output().expect("it runs");
        let out = run();
        assert!(out.status.success(), "{}: {out:?}", workload.name);
        assert!(!out.stdout.is_empty(), "{}", workload.name);
        if let Err(why) = job.check(&out.stdout) {
            wrong.push(why.to_string());
        }
        assert_eq!(run().stdout, out.stdout, "{} twice", workload.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_of_our_own_has_all_sizes_and_digests() {
    for workload in &Manifest::builtin().workloads {
        if !matches!(workload.program, Program::Own(_)) {
            continue;
        }
        for size in Size::ALL {
            let case = workload.case(size).expect("every size");
            assert!(case.sha256.is_some(), "{} {size}", workload.name);
            assert!(case.footprint_mib > 0.0, "{} {size}", workload.name);
        }
    }
}
