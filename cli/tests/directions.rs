//! Dependencies between the rooms point one way: arch <- memctl <- {psp, ghcb, cpu} <- jit <- machine <- cli; and workloads,
//! which depends on no other room, <- cli.

use std::collections::{BTreeMap, BTreeSet};

/// What each room may depend on among the others.
const ALLOWED: &[(&str, &[&str])] = &[
    ("arch", &[]),
    ("memctl", &["arch"]),
    ("psp", &["arch", "memctl"]),
    ("ghcb", &["arch", "memctl"]),
    ("cpu", &["arch", "memctl"]),
    ("jit", &["arch", "memctl", "cpu"]),
    ("machine", &["arch", "memctl", "psp", "ghcb", "cpu", "jit"]),
    ("reference", &["memctl"]),
    (
        "cli",
        &[
            "arch",
            "memctl",
            "psp",
            "ghcb",
            "cpu",
            "jit",
            "machine",
            "reference",
            "workloads",
        ],
    ),
    (
        "benches",
        &["arch", "memctl", "psp", "ghcb", "cpu", "jit", "machine"],
    ),
    ("difftest", &["arch", "memctl", "cpu", "jit"]),
    ("workloads", &[]),
];

#[test]
fn rooms_depend_one_way() {
    let out = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo metadata runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let meta: serde_json::Value =
        serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON");
    let room = |name: &str| name.strip_prefix("sevlab-").map(str::to_owned);
    let mut found = BTreeMap::new();
    for p in meta["packages"].as_array().expect("packages") {
        let Some(name) = p["name"].as_str().and_then(room) else {
            continue;
        };
        let deps: BTreeSet<String> = p["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .filter(|d| d["kind"].as_str() != Some("dev"))
            .filter_map(|d| d["name"].as_str().and_then(room))
            .collect();
        found.insert(name, deps);
    }
    assert_eq!(
        found.len(),
        ALLOWED.len(),
        "a room is missing from the list or from the workspace: {found:?}"
    );
    for (name, allowed) in ALLOWED {
        let deps = found
            .get(*name)
            .unwrap_or_else(|| panic!("no room named {name}"));
        for d in deps {
            assert!(
                allowed.contains(&d.as_str()),
                "{name} must not depend on {d}"
            );
        }
    }
}
