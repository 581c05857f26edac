//! Two result sets side by side, with what differs marked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::figures::{Figure, grouped, mean, over};
use super::html::{Cell, Page};
use super::sections::machine;
use super::svg::escaped;
use super::{FIGURES, put};
use crate::error::Error;
use crate::numbers::{Results, cycles, overhead, short};
use crate::record::Record;

/// A change of less than this is none: simulated counts are exact, so every other is.
const MARK: f64 = 1e-4;

/// A run that both sets have.
struct Pair<'a> {
    workload: String,
    label: String,
    a: &'a Record,
    b: &'a Record,
}

fn pairs<'a>(a: &'a Results, b: &'a Results) -> (Vec<Pair<'a>>, Vec<String>) {
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    let name = |e: &crate::plan::Entry| format!("{} {}", e.workload, e.label());
    for entry in &a.plan.entries {
        let other = b.entry(&entry.workload, &entry.label());
        match (a.good(entry), other.and_then(|e| b.good(e))) {
            (Some(ra), Some(rb)) => pairs.push(Pair {
                workload: entry.workload.clone(),
                label: entry.label(),
                a: ra,
                b: rb,
            }),
            (Some(_), None) => alone.push(format!("only in A: {}", name(entry))),
            (None, Some(_)) => alone.push(format!("only in B: {}", name(entry))),
            (None, None) => {}
        }
    }
    for entry in &b.plan.entries {
        if a.entry(&entry.workload, &entry.label()).is_none() && b.good(entry).is_some() {
            alone.push(format!("only in B: {}", name(entry)));
        }
    }
    (pairs, alone)
}

/// A change as a cell: red if B takes more, green if less.
fn change(ratio: Option<f64>) -> Cell {
    match ratio {
        None => Cell::number("\u{2013}"),
        Some(r) if (r - 1.0).abs() < MARK => Cell::number("same").marked("dim"),
        Some(r) => {
            let (arrow, class) = if r > 1.0 {
                ("\u{25b2}", "up")
            } else {
                ("\u{25bc}", "down")
            };
            Cell::number(format!("{arrow} {}", overhead(r))).marked(class)
        }
    }
}

/// Writes the page that compares B with A.
pub fn write(
    a: &Results,
    b: &Results,
    names: [&str; 2],
    page: &Path,
) -> Result<Vec<PathBuf>, Error> {
    let (pairs, alone) = pairs(a, b);
    if pairs.is_empty() {
        return Err(Error::Other(
            "the two have no run in common (same workload, configuration name and varied values)"
                .to_owned(),
        ));
    }
    let labels = pairs.iter().fold(Vec::new(), |mut all: Vec<String>, p| {
        if !all.contains(&p.label) {
            all.push(p.label.clone());
        }
        all
    });
    let workloads = pairs.iter().fold(Vec::new(), |mut all: Vec<String>, p| {
        if !all.contains(&p.workload) {
            all.push(p.workload.clone());
        }
        all
    });
    let ratio = |workload: &str, label: &str| {
        let pair = pairs
            .iter()
            .find(|p| p.workload == workload && p.label == label)?;
        over(pair.b, pair.a)
    };
    let drawn: Vec<String> = labels.iter().take(4).cloned().collect();
    let row = |workload: &String| {
        let values: Vec<Option<f64>> = drawn.iter().map(|l| ratio(workload, l)).collect();
        (workload.clone(), values)
    };
    let mut rows: Vec<_> = workloads.iter().map(row).collect();
    let means = |label: &String| {
        let all: Vec<_> = workloads.iter().map(|w| ratio(w, label)).collect();
        mean(&all)
    };
    rows.push(("geomean".to_owned(), drawn.iter().map(means).collect()));
    let legend: Vec<_> = drawn
        .iter()
        .enumerate()
        .map(|(i, l)| (l.clone(), format!("c{i}")))
        .collect();
    let figures = [Figure {
        name: "compare".to_owned(),
        title: "Cycles of B over A".to_owned(),
        note: "Each workload's simulated cycles in B beyond those in A, in percent.".to_owned(),
        draw: Box::new(move |w, who| grouped(&rows, &legend, w, who)),
    }];

    let mut html = Page::default();
    html.raw(&format!(
        "<h1>{} and {}</h1><p class=\"sub\">{} runs in common</p>",
        escaped(names[0]),
        escaped(names[1]),
        pairs.len()
    ));
    sets(&mut html, a, b, names);
    html.section("cycles", "Cycles");
    html.figure(&figures[0], FIGURES);
    let mut head = vec![Cell::text("workload")];
    head.extend(labels.iter().map(Cell::number));
    let mut table = Vec::new();
    for workload in &workloads {
        let mut row = vec![Cell::text(workload)];
        row.extend(labels.iter().map(|l| change(ratio(workload, l))));
        table.push(row);
    }
    let mut row = vec![Cell::text("geomean")];
    row.extend(labels.iter().map(|l| change(means(l))));
    table.push(row);
    html.table(&head, &table);
    overheads(&mut html, a, b);
    machines(&mut html, &pairs);
    counts(&mut html, &pairs);
    if !alone.is_empty() {
        html.fold(&format!("{} runs that only one has", alone.len()), |page| {
            page.pre(&alone.join("\n"));
        });
    }
    let title = format!("{} and {} \u{2013} sevlab", names[0], names[1]);
    put(page, &html.finish(&title), &figures)
}

/// What the two are.
fn sets(page: &mut Page, a: &Results, b: &Results, names: [&str; 2]) {
    let builds = |r: &Results| r.plan.build.get(..16).unwrap_or_default().to_owned();
    let head = [
        Cell::text(""),
        Cell::text("folder"),
        Cell::text("study"),
        Cell::text("size"),
        Cell::text("sevlab"),
        Cell::text("SHA-256 of its executable"),
    ];
    let row = |name: &str, folder: &str, r: &Results| {
        vec![
            Cell::text(name),
            Cell::text(folder),
            Cell::text(&r.plan.study),
            Cell::text(&r.plan.size),
            Cell::text(&r.plan.version),
            Cell::code(builds(r)),
        ]
    };
    page.table(&head, &[row("A", names[0], a), row("B", names[1], b)]);
}

/// Overheads within each set.
fn overheads(page: &mut Page, a: &Results, b: &Results) {
    let labels: Vec<String> = a
        .labels()
        .into_iter()
        .filter(|l| b.labels().contains(l))
        .collect();
    if labels.is_empty() {
        return;
    }
    page.section("overhead", "Overhead within each, geometric mean");
    let head = ["configuration", "A", "B", "B over A"];
    let head: Vec<_> = head.iter().map(|h| Cell::number(*h)).collect();
    let rows: Vec<_> = labels
        .iter()
        .map(|label| {
            let (ma, mb) = (a.mean(label).map(|m| m.0), b.mean(label).map(|m| m.0));
            let text = |m: Option<f64>| Cell::number(m.map_or("\u{2013}".to_owned(), overhead));
            let both = ma.zip(mb).map(|(a, b)| b / a);
            vec![Cell::text(label), text(ma), text(mb), change(both)]
        })
        .collect();
    page.table(&head, &rows);
}

/// Keys that differ.
fn machines(page: &mut Page, pairs: &[Pair<'_>]) {
    page.section("machines", "Configurations that differ");
    let mut found: BTreeMap<(String, String, String, String), ()> = BTreeMap::new();
    for pair in pairs {
        let (a, b) = (machine(pair.a), machine(pair.b));
        for key in a.keys().chain(b.keys()) {
            let value =
                |m: &BTreeMap<String, String>| m.get(key).cloned().unwrap_or("\u{2013}".to_owned());
            if value(&a) != value(&b) {
                found.insert((pair.label.clone(), key.clone(), value(&a), value(&b)), ());
            }
        }
    }
    if found.is_empty() {
        page.note("None: every key has the same value in both.");
        return;
    }
    let head = [
        Cell::text("configuration"),
        Cell::text("key"),
        Cell::number("A"),
        Cell::number("B"),
    ];
    let rows: Vec<_> = found
        .into_keys()
        .map(|(label, key, a, b)| {
            vec![
                Cell::text(label),
                Cell::code(key),
                Cell::number(a),
                Cell::number(b),
            ]
        })
        .collect();
    page.table(&head, &rows);
}

/// A count of a run: its name, and where it is.
type Count = (&'static str, &'static [&'static str]);

/// Counts that matter, each beside the other's.
const COUNTS: [Count; 6] = [
    ("instructions", &["stats", "simulation", "instructions"]),
    (
        "DRAM reads, encrypted",
        &["stats", "simulation", "dram", "reads_encrypted"],
    ),
    (
        "DRAM writes, encrypted",
        &["stats", "simulation", "dram", "writes_encrypted"],
    ),
    ("DTLB walks", &["stats", "simulation", "tlb", "data_walks"]),
    (
        "VMRUNs",
        &["stats", "simulation", "exits", "vmrun", "events"],
    ),
    ("bytes of host code", &["stats", "host_code_bytes"]),
];

fn counts(page: &mut Page, pairs: &[Pair<'_>]) {
    page.section("counts", "Counts");
    let mut head = vec![
        Cell::text("workload"),
        Cell::text("configuration"),
        Cell::number("cycles, A"),
        Cell::number("cycles, B"),
    ];
    head.extend(COUNTS.iter().map(|(name, _)| Cell::number(*name)));
    head.push(Cell::text("output"));
    let rows: Vec<_> = pairs
        .iter()
        .map(|pair| {
            let cell = |n: u64| Cell::number(short(n)).titled(n.to_string());
            let mut row = vec![
                Cell::text(&pair.workload),
                Cell::text(&pair.label),
                cell(cycles(pair.a)),
                cell(cycles(pair.b)),
            ];
            for (_, path) in COUNTS {
                let (a, b) = (pair.a.count(path), pair.b.count(path));
                let ratio = match (a, b) {
                    (0, 0) => Some(1.0),
                    (0, _) | (_, 0) => None,
                    _ => Some(b as f64 / a as f64),
                };
                row.push(change(ratio).titled(format!("{a} and {b}")));
            }
            let same = pair.a.stdout_sha256 == pair.b.stdout_sha256;
            row.push(if same {
                Cell::text("same").marked("l dim")
            } else {
                Cell::text("differs").marked("l up")
            });
            row
        })
        .collect();
    page.table(&head, &rows);
}
