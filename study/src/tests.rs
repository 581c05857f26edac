//! Results to test with.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::numbers::Results;
use crate::plan::{Entry, FORMAT, Plan, PlanAxis, PlanWorkload};
use crate::record::{Record, Status};

/// A result of so many cycles, a tenth of them AES.
pub(crate) fn record(key: &str, cycles: u64) -> Record {
    let report = json!({
        "config": {"sev": "sev-snp", "seed": 1, "model": {"name": "m", "latency": {"aes_ns": 18.0}}},
        "stats": {"instructions": 50, "simulation": {
            "cycles": cycles, "busy_cycles": cycles, "idle_cycles": 0, "instructions": 50,
            "instruction_cycles": cycles - cycles / 10, "hit_cycles": 0, "stall_cycles": {"aes": cycles / 10},
            "exits": {"vmrun": {"events": 3, "cycles": 0}},
            "caches": {"l1d": {"accesses": {"reads": 10}, "misses": {"reads": 5}}},
            "tlb": {"data_misses": 1}, "dram": {"reads_encrypted": 4, "reads_plain": 4},
        }},
    });
    Record {
        format: FORMAT,
        key: key.to_owned(),
        status: Status::Ok,
        why: None,
        workload: "w".to_owned(),
        config: "off".to_owned(),
        vary: BTreeMap::new(),
        started: 1,
        seconds: 0.5,
        cpu_seconds: 0.4,
        peak_kib: 1,
        host: "h".to_owned(),
        command: "sevlab run -- w".to_owned(),
        version: "0".to_owned(),
        build: "b".to_owned(),
        stdout_sha256: "s".to_owned(),
        stdout_bytes: 0,
        limit_seconds: None,
        limit_instructions: None,
        report,
    }
}

/// A run of a plan.
pub(crate) fn entry(workload: &str, config: &str, aes: Option<f64>) -> Entry {
    let vary: BTreeMap<String, Value> = aes
        .map(|n| ("latency.aes_ns".to_owned(), json!(n)))
        .into_iter()
        .collect();
    Entry {
        key: format!("{workload}/{config}/{aes:?}"),
        workload: workload.to_owned(),
        config: config.to_owned(),
        vary,
        sev: config.to_owned(),
        options: vec!["--sev".to_owned(), config.to_owned()],
        command: vec![format!("./{workload}")],
        folder: ".".into(),
        stdin: None,
        stdout_sha256: None,
        seconds: None,
        instructions: None,
    }
}

/// Results of entries, each with its cycles.
pub(crate) fn results(runs: &[(Entry, u64)], axis: &[f64]) -> Results {
    let mut workloads: Vec<PlanWorkload> = Vec::new();
    let mut configs: Vec<String> = Vec::new();
    for (entry, _) in runs {
        if !workloads.iter().any(|w| w.name == entry.workload) {
            workloads.push(PlanWorkload {
                name: entry.workload.clone(),
                what: "a <workload> & more".to_owned(),
                command: entry.command.clone(),
                program_sha256: "00".repeat(32),
            });
        }
        if !configs.contains(&entry.config) {
            configs.push(entry.config.clone());
        }
    }
    let axes = (!axis.is_empty()).then(|| PlanAxis {
        key: "latency.aes_ns".to_owned(),
        values: axis.iter().map(|v| json!(v)).collect(),
    });
    Results {
        plan: Plan {
            format: FORMAT,
            study: "a study".to_owned(),
            file: "s.toml".to_owned(),
            text: "# <text>".to_owned(),
            size: "test".to_owned(),
            baseline: Some("off".to_owned()),
            configs,
            axes: axes.into_iter().collect(),
            workloads,
            skipped: Vec::new(),
            version: "0".to_owned(),
            build: "b".to_owned(),
            entries: runs.iter().map(|(e, _)| e.clone()).collect(),
            models: BTreeMap::new(),
        },
        records: runs
            .iter()
            .map(|(e, cycles)| {
                let record = Record {
                    workload: e.workload.clone(),
                    config: e.config.clone(),
                    vary: e.vary.clone(),
                    ..record(&e.key, *cycles)
                };
                (e.key.clone(), record)
            })
            .collect(),
    }
}

#[test]
fn overheads_are_over_the_baseline_of_the_same_values() {
    let runs = [
        (entry("w", "off", Some(0.0)), 100),
        (entry("w", "off", Some(9.0)), 200),
        (entry("w", "snp", Some(0.0)), 110),
        (entry("w", "snp", Some(9.0)), 300),
    ];
    let r = results(&runs, &[0.0, 9.0]);
    assert_eq!(r.ratio(&runs[2].0), Some(1.1));
    assert_eq!(r.ratio(&runs[3].0), Some(1.5));
    assert_eq!(r.ratio(&runs[0].0), None);
    assert_eq!(
        r.labels(),
        ["snp latency.aes_ns=0.0", "snp latency.aes_ns=9.0"]
    );
}

#[test]
fn a_baseline_that_is_not_varied_serves_all_values() {
    let runs = [
        (entry("w", "off", None), 100),
        (entry("w", "snp", Some(9.0)), 150),
    ];
    assert_eq!(results(&runs, &[9.0]).ratio(&runs[1].0), Some(1.5));
}

#[test]
fn an_ill_run_is_in_no_mean() {
    let runs = [
        (entry("v", "off", None), 100),
        (entry("v", "snp", None), 121),
        (entry("w", "off", None), 100),
        (entry("w", "snp", None), 900),
    ];
    let mut r = results(&runs, &[]);
    let ill = r.records.get_mut(&runs[3].0.key).expect("a record");
    ill.status = Status::WrongOutput;
    let (mean, n) = r.mean("snp").expect("a mean");
    assert!((mean - 1.21).abs() < 1e-12 && n == 1);
    assert_eq!(r.troubles().0.len(), 1);
    let table = crate::table::overheads(&r);
    assert!(
        table.contains("+21.0 %") && !table.contains("+800"),
        "{table}"
    );
}

#[test]
fn csv_has_a_column_for_each_axis_and_count() {
    let runs = [
        (entry("w", "off", Some(0.5)), 100),
        (entry("w", "snp", Some(0.5)), 110),
    ];
    let text = crate::csv::csv(&results(&runs, &[0.5]));
    let mut lines = text.split("\r\n").map(|l| l.split(',').collect::<Vec<_>>());
    let head = lines.next().expect("a head");
    let row = lines.nth(1).expect("a second row");
    let value = |name: &str| {
        let at = head.iter().position(|c| *c == name);
        row[at.unwrap_or_else(|| panic!("{name} in {head:?}"))]
    };
    assert_eq!(value("latency.aes_ns"), "0.5");
    assert_eq!(value("config"), "snp");
    assert_eq!(value("ratio"), "1.1");
    assert_eq!(value("simulation.cycles"), "110");
    assert_eq!(value("simulation.exits.vmrun.events"), "3");
    assert_eq!(value("part_aes"), "11");
}
