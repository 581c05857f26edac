//! Results as a table for a terminal.

use std::fmt::Write;

use crate::numbers::{AES, Results, cycles, overhead, share, short};

/// More columns than this make a table of means only.
const WIDE: usize = 5;

/// The overhead of each configuration over the baseline, by workload and in the mean, and AES's share in the last one's cycles.
#[must_use]
pub fn overheads(results: &Results) -> String {
    let labels = results.labels();
    let mut rows: Vec<Vec<String>> = Vec::new();
    if labels.is_empty() {
        return plain(results);
    }
    if labels.len() > WIDE {
        rows.push(
            ["configuration", "geomean", "workloads"]
                .map(str::to_owned)
                .to_vec(),
        );
        for label in &labels {
            let mean = results.mean(label);
            rows.push(vec![
                label.clone(),
                mean.map_or("-".to_owned(), |(m, _)| overhead(m)),
                mean.map_or(0, |(_, n)| n).to_string(),
            ]);
        }
        return aligned(&rows, false);
    }
    let last = labels.last().cloned().unwrap_or_default();
    let base = results.plan.baseline.clone().unwrap_or_default();
    let mut head = vec!["workload".to_owned(), format!("cycles, {base}")];
    head.extend(labels.iter().cloned());
    head.push(format!("AES share, {last}"));
    rows.push(head);
    for workload in &results.plan.workloads {
        let entry = |label: &str| results.entry(&workload.name, label);
        let baseline = entry(&last).and_then(|e| results.baseline(e));
        let mut row = vec![
            workload.name.clone(),
            baseline
                .and_then(|e| results.good(e))
                .map_or("-".to_owned(), |r| short(cycles(r))),
        ];
        for label in &labels {
            row.push(
                entry(label)
                    .and_then(|e| results.ratio(e))
                    .map_or("-".to_owned(), overhead),
            );
        }
        row.push(
            entry(&last)
                .and_then(|e| results.good(e))
                .map_or("-".to_owned(), |r| {
                    format!("{:.1} %", share(r, AES) * 100.0)
                }),
        );
        rows.push(row);
    }
    let mut row = vec!["geomean".to_owned(), String::new()];
    for label in &labels {
        row.push(
            results
                .mean(label)
                .map_or("-".to_owned(), |(m, _)| overhead(m)),
        );
    }
    row.push(String::new());
    rows.push(row);
    aligned(&rows, true)
}

/// Without a baseline: cycles.
fn plain(results: &Results) -> String {
    let mut rows = vec![
        ["workload", "configuration", "cycles"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for entry in &results.plan.entries {
        let cycles = results
            .good(entry)
            .map_or("-".to_owned(), |r| short(cycles(r)));
        rows.push(vec![entry.workload.clone(), entry.label(), cycles]);
    }
    aligned(&rows, false)
}

/// Columns, the first to the left and the others to the right; a line above the last row if it is a `sum`.
#[must_use]
pub fn aligned(rows: &[Vec<String>], sum: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        let widths = rows
            .iter()
            .filter_map(|r| r.get(c))
            .map(|t| t.chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1));
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        if i == 1 || (sum && i + 1 == rows.len()) {
            let _ = writeln!(text, "{rule}");
        }
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            if c > 0 {
                line.push_str("  ");
            }
            let w = widths[c];
            let _ = if c == 0 {
                write!(line, "{cell:<w$}")
            } else {
                write!(line, "{cell:>w$}")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
