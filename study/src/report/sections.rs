//! The sections of a report.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::figures::{Figure, listed, shown_labels};
use super::html::{Cell, Page};
use super::svg::escaped;
use crate::numbers::{AES, Results, cycles, overhead, parts, share, short};
use crate::plan::{Entry, label};
use crate::record::{Record, leaves};

/// The page of a result set; the figures' files are in `folder`.
pub(super) fn page(results: &Results, figures: &[Figure<'_>], folder: &str) -> String {
    let plan = &results.plan;
    let mut page = Page::default();
    page.raw(&format!("<h1>{}</h1>", escaped(&plan.study)));
    let runs = plan.unique().len();
    let good = plan
        .unique()
        .iter()
        .filter(|e| results.good(e).is_some())
        .count();
    page.raw(&format!(
        "<p class=\"sub\">{good} of {runs} runs, {} workloads, size {}, sevlab {}</p>",
        plan.workloads.len(),
        escaped(&plan.size),
        escaped(&plan.version)
    ));
    troubles(&mut page, results);
    tiles(&mut page, results);
    page.raw(
        "<nav><a href=\"#overhead\">Overhead</a><a href=\"#cycles\">Cycles</a><a href=\"#misses\">Misses</a>\
         <a href=\"#traffic\">DRAM traffic</a><a href=\"#exits\">Exits</a><a href=\"#machines\">Configurations</a>\
         <a href=\"#workloads\">Workloads</a><a href=\"#runs\">Runs</a></nav>",
    );
    let of = |names: &[&str]| -> Vec<&Figure<'_>> {
        let wanted = |f: &&Figure<'_>| names.iter().any(|n| f.name.starts_with(n));
        figures.iter().filter(wanted).collect()
    };
    page.section("overhead", "Overhead");
    for figure in of(&["overhead", "lines-", "workloads-"]) {
        page.figure(figure, folder);
    }
    overheads(&mut page, results);
    page.section("cycles", "Where the cycles go");
    for figure in of(&["cycles"]) {
        page.figure(figure, folder);
    }
    stack_table(&mut page, results);
    page.section("misses", "Cache and TLB misses");
    misses(&mut page, results);
    page.section("traffic", "DRAM traffic");
    traffic(&mut page, results);
    page.section("exits", "Exits");
    for figure in of(&["exits"]) {
        page.figure(figure, folder);
    }
    exits(&mut page, results);
    page.section("machines", "Configurations");
    machines(&mut page, results);
    page.section("workloads", "Workloads");
    workloads(&mut page, results);
    page.section("runs", "Runs");
    runs_and_versions(&mut page, results);
    page.finish(&format!("{} \u{2013} sevlab", plan.study))
}

/// What went ill, and what is not there.
fn troubles(page: &mut Page, results: &Results) {
    let (ill, missing) = results.troubles();
    if ill.is_empty() && missing.is_empty() {
        return;
    }
    let mut html = String::from("<div class=\"bad\"><strong>Not in the figures:</strong><ul>");
    // A workload mostly fails everywhere, for the same reason.
    let mut groups: Vec<(&Record, Vec<String>)> = Vec::new();
    for record in ill {
        let name = label(&record.config, &record.vary);
        let same = |(r, _): &(&Record, Vec<String>)| {
            r.workload == record.workload && r.status == record.status && r.why == record.why
        };
        match groups.iter().position(same) {
            Some(at) => groups[at].1.push(name),
            None => groups.push((record, vec![name])),
        }
    }
    for (record, names) in groups {
        html.push_str(&format!(
            "<li>{}: {}. {} <span class=\"dim\">({})</span></li>",
            escaped(&record.workload),
            record.status.words(),
            escaped(record.why.as_deref().unwrap_or_default()),
            escaped(&names.join(", "))
        ));
    }
    if !missing.is_empty() {
        html.push_str(&format!(
            "<li>{} runs have no result yet</li>",
            missing.len()
        ));
    }
    html.push_str("</ul></div>");
    page.raw(&html);
}

fn tiles(page: &mut Page, results: &Results) {
    let labels = results.labels();
    let some = if labels.len() > 4 {
        &labels[labels.len() - 4..]
    } else {
        &labels[..]
    };
    if some.is_empty() {
        return;
    }
    page.raw("<div class=\"tiles\">");
    for label in some {
        if let Some((mean, n)) = results.mean(label) {
            page.raw(&format!(
                "<div class=\"tile\"><b>{}</b><span>{}, geometric mean of {n}</span></div>",
                overhead(mean),
                escaped(label)
            ));
        }
    }
    page.raw("</div>");
}

/// Runs that went well, workload by workload.
fn shown(results: &Results) -> Vec<(&Entry, &Record)> {
    let labels = shown_labels(results);
    results
        .plan
        .entries
        .iter()
        .filter(|e| labels.contains(&e.label()))
        .filter_map(|e| Some((e, results.good(e)?)))
        .collect()
}

fn overheads(page: &mut Page, results: &Results) {
    let labels = results.labels();
    if labels.is_empty() {
        page.note("There is no configuration without encryption to tell an overhead over.");
        return;
    }
    let mut head = vec![Cell::text("workload")];
    head.extend(labels.iter().map(Cell::number));
    let mut rows = Vec::new();
    for workload in &results.plan.workloads {
        let mut row = vec![Cell::text(&workload.name)];
        for label in &labels {
            let entry = results.entry(&workload.name, label);
            let pair = entry.and_then(|e| {
                let (own, base) = (results.good(e)?, results.good(results.baseline(e)?)?);
                Some((results.ratio(e)?, cycles(own), cycles(base)))
            });
            row.push(match pair {
                Some((ratio, own, base)) => {
                    Cell::number(overhead(ratio)).titled(format!("{own} over {base} cycles"))
                }
                None => Cell::number("\u{2013}"),
            });
        }
        rows.push(row);
    }
    let mut row = vec![Cell::text("geomean")];
    for label in &labels {
        let mean = results.mean(label);
        row.push(Cell::number(
            mean.map_or("\u{2013}".to_owned(), |(m, _)| overhead(m)),
        ));
    }
    rows.push(row);
    page.table(&head, &rows);
}

fn stack_table(page: &mut Page, results: &Results) {
    let mut head: Vec<Cell> = vec![
        Cell::text("workload"),
        Cell::text("configuration"),
        Cell::number("cycles"),
        Cell::number("CPI"),
    ];
    head.extend(crate::numbers::PARTS.iter().map(|p| Cell::number(*p)));
    let mut rows = Vec::new();
    for (entry, record) in shown(results) {
        let parts = parts(record);
        let all = parts.iter().sum::<u64>().max(1) as f64;
        let instructions = record.count(&["stats", "simulation", "instructions"]);
        let busy = record.count(&["stats", "simulation", "busy_cycles"]);
        let mut row = vec![
            Cell::text(&entry.workload),
            Cell::text(entry.label()),
            Cell::number(short(cycles(record))).titled(cycles(record).to_string()),
            Cell::number(format!("{:.2}", busy as f64 / instructions.max(1) as f64)),
        ];
        for n in parts {
            let text = format!("{:.1} %", n as f64 / all * 100.0);
            row.push(Cell::number(text).titled(n.to_string()));
        }
        rows.push(row);
    }
    page.fold("Table: shares of all cycles", |page| {
        page.table(&head, &rows)
    });
    let children = results
        .plan
        .entries
        .iter()
        .filter_map(|e| results.good(e))
        .any(|r| r.count(&["stats", "children", "processes"]) > 0);
    if children {
        page.note(
            "Some workloads have child processes: their time is in the parent's idle time, their misses are not counted here.",
        );
    }
}

/// Sums of a map of counts.
fn sum(value: &Value) -> u64 {
    let map = value.as_object();
    map.map_or(0, |m| m.values().filter_map(Value::as_u64).sum())
}

fn misses(page: &mut Page, results: &Results) {
    page.note(
        "Misses of each level in a thousand instructions, and in parentheses the share of that level's accesses that missed. \
         Beyond the first level, reads of page tables and of the RMP are included.",
    );
    let levels = ["l1i", "l1d", "l2", "llc"];
    let mut head = vec![
        Cell::text("workload"),
        Cell::text("configuration"),
        Cell::number("instructions"),
    ];
    head.extend(levels.iter().map(|l| Cell::number(l.to_uppercase())));
    head.extend(["DTLB", "DTLB walks", "ITLB walks", "RMP reads"].map(Cell::number));
    let mut rows = Vec::new();
    for (entry, record) in shown(results) {
        let instructions = record.count(&["stats", "simulation", "instructions"]);
        let mpki = |n: u64| {
            let per = n as f64 * 1000.0 / instructions.max(1) as f64;
            if per > 0.0 && per < 0.01 {
                "<0.01".to_owned()
            } else {
                format!("{per:.2}")
            }
        };
        let mut row = vec![
            Cell::text(&entry.workload),
            Cell::text(entry.label()),
            Cell::number(short(instructions)).titled(instructions.to_string()),
        ];
        for level in levels {
            let cache = record.at(&["stats", "simulation", "caches", level]);
            if cache.is_null() {
                row.push(Cell::number("\u{2013}"));
                continue;
            }
            let (misses, accesses) = (sum(&cache["misses"]), sum(&cache["accesses"]));
            let rate = misses as f64 * 100.0 / accesses.max(1) as f64;
            let text = format!("{} ({rate:.1} %)", mpki(misses));
            row.push(Cell::number(text).titled(format!("{misses} of {accesses}")));
        }
        for key in ["data_misses", "data_walks", "fetch_walks", "rmp_reads"] {
            let n = record.count(&["stats", "simulation", "tlb", key]);
            row.push(Cell::number(mpki(n)).titled(n.to_string()));
        }
        rows.push(row);
    }
    page.table(&head, &rows);
}

fn traffic(page: &mut Page, results: &Results) {
    page.note("Lines of 64 bytes to and from DRAM, in MiB. Encrypted lines pass the AES engine.");
    let head = [
        Cell::text("workload"),
        Cell::text("configuration"),
        Cell::number("read, plain"),
        Cell::number("read, encrypted"),
        Cell::number("written, plain"),
        Cell::number("written, encrypted"),
        Cell::number("encrypted"),
        Cell::number("bytes an instruction"),
        Cell::number("AES share of cycles"),
    ];
    let mut rows = Vec::new();
    for (entry, record) in shown(results) {
        let lines = |key: &str| record.count(&["stats", "simulation", "dram", key]);
        let all = [
            "reads_plain",
            "reads_encrypted",
            "writes_plain",
            "writes_encrypted",
        ]
        .map(lines);
        let total = all.iter().sum::<u64>();
        let encrypted = all[1] + all[3];
        let instructions = record.count(&["stats", "simulation", "instructions"]);
        let mut row = vec![Cell::text(&entry.workload), Cell::text(entry.label())];
        for n in all {
            let mib = n as f64 * 64.0 / f64::from(1 << 20);
            row.push(Cell::number(format!("{mib:.2}")).titled(format!("{n} lines")));
        }
        let per_cent = encrypted as f64 * 100.0 / total.max(1) as f64;
        row.push(Cell::number(format!("{per_cent:.1} %")));
        let bytes = total as f64 * 64.0 / instructions.max(1) as f64;
        row.push(Cell::number(format!("{bytes:.3}")));
        row.push(Cell::number(format!("{:.1} %", share(record, AES) * 100.0)));
        rows.push(row);
    }
    page.table(&head, &rows);
}

fn exits(page: &mut Page, results: &Results) {
    let shown = shown(results);
    let mut causes = BTreeSet::new();
    for (_, record) in &shown {
        if let Some(map) = record.at(&["stats", "simulation", "exits"]).as_object() {
            let happened = map
                .iter()
                .filter(|(_, e)| e["events"].as_u64().unwrap_or(0) > 0);
            causes.extend(happened.map(|(cause, _)| cause.clone()));
        }
    }
    let mut head = vec![Cell::text("workload"), Cell::text("configuration")];
    head.extend(causes.iter().map(Cell::number));
    let mut rows = Vec::new();
    for (entry, record) in &shown {
        let mut row = vec![Cell::text(&entry.workload), Cell::text(entry.label())];
        for cause in &causes {
            let exit = record.at(&["stats", "simulation", "exits", cause]);
            let (events, cycles) = (&exit["events"], &exit["cycles"]);
            let title = format!("{events} times, {cycles} cycles");
            row.push(Cell::number(short(events.as_u64().unwrap_or(0))).titled(title));
        }
        rows.push(row);
    }
    page.fold("Table: how often, by workload", |page| {
        page.table(&head, &rows)
    });
}

/// The machine of a run, by key.
pub(super) fn machine(record: &Record) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let config = record.at(&["config"]);
    let mut put = |path: &str, value: &Value| {
        if !value.is_null() {
            out.insert(path.to_owned(), crate::plan::shown(value));
        }
    };
    for key in ["sev", "cipher", "cpu", "memory", "engine", "seed"] {
        leaves(key, &config[key], &mut put);
    }
    leaves("", &config["model"], &mut put);
    out.remove("name");
    out
}

fn machines(page: &mut Page, results: &Results) {
    for axis in &results.plan.axes {
        page.note(&format!("Varied: {} = {}", axis.key, listed(&axis.values)));
    }
    // The machine of each configuration, as its first run has it.
    let mut all: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for entry in &results.plan.entries {
        let name = entry.label();
        if let Some(record) = results.good(entry)
            && !all.iter().any(|(n, _)| *n == name)
        {
            all.push((name, machine(record)));
        }
    }
    let keys: BTreeSet<&String> = all.iter().flat_map(|(_, m)| m.keys()).collect();
    let value = |m: &BTreeMap<String, String>, key: &str| {
        m.get(key).cloned().unwrap_or("\u{2013}".to_owned())
    };
    let differs = |key: &str| {
        let first = all.first().map(|(_, m)| value(m, key));
        all.iter().any(|(_, m)| Some(value(m, key)) != first)
    };
    let mut head = vec![Cell::text("key")];
    head.extend(all.iter().map(|(name, _)| Cell::number(name)));
    let row = |key: &String| {
        let mut row = vec![Cell::code(key.clone())];
        row.extend(all.iter().map(|(_, m)| Cell::number(value(m, key))));
        row
    };
    let (different, same): (Vec<&String>, Vec<&String>) =
        keys.into_iter().partition(|k| differs(k));
    page.note("What differs between the configurations:");
    page.table(&head, &different.into_iter().map(row).collect::<Vec<_>>());
    page.fold("What is the same in all of them", |page| {
        let head = [Cell::text("key"), Cell::number("value")];
        let rows: Vec<_> = same
            .into_iter()
            .map(|key| vec![Cell::code(key.clone()), Cell::number(value(&all[0].1, key))])
            .collect();
        page.table(&head, &rows);
    });
    page.fold("The study file", |page| page.pre(&results.plan.text));
}

fn workloads(page: &mut Page, results: &Results) {
    let head = [
        Cell::text("workload"),
        Cell::text("what it is"),
        Cell::text("command"),
        Cell::text("SHA-256 of the program"),
    ];
    let rows: Vec<_> = results
        .plan
        .workloads
        .iter()
        .map(|w| {
            vec![
                Cell::text(&w.name),
                Cell::text(&w.what).marked("l wrap"),
                Cell::code(w.command.join(" ")),
                Cell::code(w.program_sha256.get(..16).unwrap_or_default())
                    .titled(&w.program_sha256),
            ]
        })
        .collect();
    page.table(&head, &rows);
    for skipped in &results.plan.skipped {
        page.note(&format!("Left out: {skipped}"));
    }
}

fn runs_and_versions(page: &mut Page, results: &Results) {
    let records: Vec<&Record> = results
        .plan
        .unique()
        .into_iter()
        .filter_map(|e| results.record(e))
        .collect();
    let mut builds: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for r in &records {
        let id = (r.version.clone(), r.build.clone(), r.host.clone());
        *builds.entry(id).or_default() += 1;
    }
    let head = [
        Cell::text("sevlab"),
        Cell::text("SHA-256 of its executable"),
        Cell::text("host"),
        Cell::number("runs"),
    ];
    let rows: Vec<_> = builds
        .into_iter()
        .map(|((version, build, host), n)| {
            vec![
                Cell::text(version),
                Cell::code(build),
                Cell::text(host),
                Cell::number(n.to_string()),
            ]
        })
        .collect();
    page.table(&head, &rows);
    page.note(
        "Simulated counts depend on program, input, configuration, seed and build alone: each command makes its run again, \
         in a copy of the workload's folder of inputs under a path of the same length (docs/study.md).",
    );
    let head = [
        Cell::text("workload"),
        Cell::text("configuration"),
        Cell::text("end"),
        Cell::number("host seconds"),
        Cell::number("seed"),
        Cell::text("command"),
    ];
    let rows: Vec<_> = records
        .iter()
        .map(|r| {
            vec![
                Cell::text(&r.workload),
                Cell::text(label(&r.config, &r.vary)),
                Cell::text(r.status.words()),
                Cell::number(format!("{:.2}", r.seconds)),
                Cell::number(crate::plan::shown(r.at(&["config", "seed"]))),
                Cell::code(&r.command),
            ]
        })
        .collect();
    page.fold(
        &format!("All {} runs with their commands", rows.len()),
        |page| {
            page.table(&head, &rows);
        },
    );
}
