//! Results as comma-separated values (RFC 4180): a row for each run of the plan, a column for each axis and each count. Python:
//! `pandas.read_csv("results.csv")`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::numbers::{self, Results};
use crate::plan::shown;
use crate::record::leaves;

/// The file's name.
pub const CSV: &str = "results.csv";

/// All of it.
#[must_use]
pub fn csv(results: &Results) -> String {
    let rows: Vec<Vec<(String, String)>> = results
        .plan
        .entries
        .iter()
        .filter_map(|entry| {
            let record = results.record(entry)?;
            let mut row: Vec<(String, String)> = Vec::new();
            let mut put = |name: &str, value: String| row.push((name.to_owned(), value));
            put("workload", entry.workload.clone());
            put("size", results.plan.size.clone());
            put("config", entry.config.clone());
            put("sev", entry.sev.clone());
            for axis in &results.plan.axes {
                put(
                    &axis.key,
                    entry.vary.get(&axis.key).map_or(String::new(), shown),
                );
            }
            put(
                "status",
                shown(&serde_json::to_value(record.status).unwrap_or(Value::Null)),
            );
            put(
                "ratio",
                results
                    .ratio(entry)
                    .map_or(String::new(), |r| r.to_string()),
            );
            put("host_seconds", record.seconds.to_string());
            put("host_cpu_seconds", record.cpu_seconds.to_string());
            for (name, n) in numbers::PARTS.iter().zip(numbers::parts(record)) {
                put(
                    &format!("part_{}", name.to_lowercase().replace(' ', "_")),
                    n.to_string(),
                );
            }
            leaves("", &record.report["stats"], &mut |path, value| {
                if value.is_number() {
                    row.push((path.to_owned(), value.to_string()));
                }
            });
            let mut put = |name: &str, value: String| row.push((name.to_owned(), value));
            put("model", shown(&record.report["config"]["model"]["name"]));
            put("key", record.key.clone());
            put("command", record.command.clone());
            Some(row)
        })
        .collect();
    // Not every run counts the same: a column for whatever one has, in the order of the first that has it.
    let mut columns: Vec<&str> = Vec::new();
    let mut seen = BTreeSet::new();
    for row in &rows {
        let mut after = 0;
        for (name, _) in row {
            if seen.insert(name.as_str()) {
                columns.insert(after, name);
            }
            after = columns
                .iter()
                .position(|c| c == name)
                .map_or(after, |at| at + 1);
        }
    }
    let mut text = line(columns.iter().copied());
    for row in &rows {
        let value = |column: &&str| {
            let found = row.iter().find(|(name, _)| name == column);
            found.map_or("", |(_, value)| value.as_str())
        };
        text.push_str(&line(columns.iter().map(value)));
    }
    text
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (i, cell) in cells.enumerate() {
        if i > 0 {
            text.push(',');
        }
        if cell.contains([',', '"', '\n', '\r']) {
            text.push('"');
            text.push_str(&cell.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(cell);
        }
    }
    text.push_str("\r\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        let cells = ["a", "b,c", "say \"x\"", ""];
        assert_eq!(line(cells.into_iter()), "a,\"b,c\",\"say \"\"x\"\"\",\r\n");
    }
}
