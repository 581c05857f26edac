//! What results say: cycles and where they went, ratios to the baseline, means.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::plan::{Entry, Plan};
use crate::record::{Record, Status};

/// Where cycles go, in the order in which they are stacked.
pub const PARTS: [&str; 7] = [
    "compute",
    "cache",
    "DRAM",
    "AES",
    "walk and RMP",
    "exits",
    "idle",
];

/// Index of AES in [`PARTS`].
pub const AES: usize = 3;

/// A plan with the results that there are.
#[derive(Clone, Debug)]
pub struct Results {
    /// The plan.
    pub plan: Plan,
    /// By key.
    pub records: BTreeMap<String, Record>,
}

impl Results {
    /// The result of a run, however it went.
    #[must_use]
    pub fn record(&self, entry: &Entry) -> Option<&Record> {
        self.records.get(&entry.key)
    }

    /// The result of a run that went well.
    #[must_use]
    pub fn good(&self, entry: &Entry) -> Option<&Record> {
        self.record(entry).filter(|r| r.status == Status::Ok)
    }

    /// The run that this one's overhead is told over; `None`: it is one of those itself, or there is none.
    #[must_use]
    pub fn baseline(&self, entry: &Entry) -> Option<&Entry> {
        let find = |config: &str, vary: &BTreeMap<String, Value>| {
            self.plan
                .entries
                .iter()
                .find(|e| e.workload == entry.workload && e.config == config && e.vary == *vary)
        };
        if entry.vary.contains_key("sev") {
            let mut vary = entry.vary.clone();
            vary.insert("sev".to_owned(), "off".into());
            let found = find(&entry.config, &vary);
            if found.is_some() {
                return found.filter(|b| b.vary != entry.vary);
            }
        }
        let name = self.plan.baseline.as_deref()?;
        if entry.config == name {
            return None;
        }
        find(name, &entry.vary).or_else(|| find(name, &BTreeMap::new()))
    }

    /// Cycles over those of the baseline.
    #[must_use]
    pub fn ratio(&self, entry: &Entry) -> Option<f64> {
        let base = cycles(self.good(self.baseline(entry)?)?);
        let own = cycles(self.good(entry)?);
        (base > 0 && own > 0).then(|| own as f64 / base as f64)
    }

    /// Labels of what overheads are told of, in order.
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        let mut labels = Vec::new();
        for entry in &self.plan.entries {
            let label = entry.label();
            if self.baseline(entry).is_some() && !labels.contains(&label) {
                labels.push(label);
            }
        }
        labels
    }

    /// The run of a workload under a label.
    #[must_use]
    pub fn entry(&self, workload: &str, label: &str) -> Option<&Entry> {
        self.plan
            .entries
            .iter()
            .find(|e| e.workload == workload && e.label() == label)
    }

    /// The geometric mean of the ratios under a label, and of how many workloads.
    #[must_use]
    pub fn mean(&self, label: &str) -> Option<(f64, usize)> {
        let ratios: Vec<f64> = self
            .plan
            .workloads
            .iter()
            .filter_map(|w| self.ratio(self.entry(&w.name, label)?))
            .collect();
        geomean(&ratios).map(|mean| (mean, ratios.len()))
    }

    /// Runs that went ill, and runs that are not there.
    #[must_use]
    pub fn troubles(&self) -> (Vec<&Record>, Vec<&Entry>) {
        let (mut ill, mut missing) = (Vec::new(), Vec::new());
        for entry in self.plan.unique() {
            match self.record(entry) {
                None => missing.push(entry),
                Some(r) if r.status != Status::Ok => ill.push(r),
                Some(_) => {}
            }
        }
        (ill, missing)
    }
}

/// The simulated duration, in cycles.
#[must_use]
pub fn cycles(record: &Record) -> u64 {
    record.count(&["stats", "simulation", "cycles"])
}

/// Cycles by [`PARTS`]. Of the machine's own process: what a guest's child processes do is in its idle time.
#[must_use]
pub fn parts(record: &Record) -> [u64; 7] {
    let simulation = record.at(&["stats", "simulation"]);
    let at = |key: &str| simulation[key].as_u64().unwrap_or(0);
    let stall = |key: &str| simulation["stall_cycles"][key].as_u64().unwrap_or(0);
    let exits = simulation["exits"].as_object();
    let exits = exits.map_or(0, |map| {
        map.values()
            .filter_map(|e| e["cycles"].as_u64())
            .sum::<u64>()
    });
    [
        at("instruction_cycles") + at("hit_cycles"),
        stall("l2") + stall("llc") + stall("remote") + stall("upgrade"),
        stall("dram") + stall("write-back"),
        stall("aes"),
        stall("tlb") + stall("walk") + stall("rmp"),
        exits,
        at("idle_cycles"),
    ]
}

/// The share of a part in all cycles of the cores.
#[must_use]
pub fn share(record: &Record, part: usize) -> f64 {
    let parts = parts(record);
    parts[part] as f64 / parts.iter().sum::<u64>().max(1) as f64
}

/// The geometric mean; `None` of nothing.
#[must_use]
pub fn geomean(values: &[f64]) -> Option<f64> {
    let logs: f64 = values.iter().map(|v| v.ln()).sum();
    (!values.is_empty()).then(|| (logs / values.len() as f64).exp())
}

/// A ratio as an overhead: `+3.1 %`.
#[must_use]
pub fn overhead(ratio: f64) -> String {
    let percent = (ratio - 1.0) * 100.0;
    let digits = if percent.abs() < 9.995 { 2 } else { 1 };
    // A minus sign, and none before zero.
    let text = format!("{percent:+.digits$}");
    let text = if text.trim_matches(['+', '-', '0', '.']).is_empty() {
        format!("{:.digits$}", 0.0)
    } else {
        text.replace('-', "\u{2212}")
    };
    format!("{text} %")
}

/// A count with a prefix of a thousand: `4.21 G`.
#[must_use]
pub fn short(n: u64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let value = n as f64;
    for (size, unit) in units {
        if value >= size {
            let scaled = value / size;
            let digits = if scaled < 10.0 {
                2
            } else {
                usize::from(scaled < 100.0)
            };
            return format!("{scaled:.digits$} {unit}");
        }
    }
    n.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overheads_read_as_people_write_them() {
        assert_eq!(overhead(1.031), "+3.10 %");
        assert_eq!(overhead(0.98), "\u{2212}2.00 %");
        assert_eq!(overhead(1.0), "0.00 %");
        assert_eq!(overhead(0.9999999), "0.00 %");
        assert_eq!(overhead(2.5), "+150.0 %");
    }

    #[test]
    fn counts_are_short() {
        assert_eq!(short(999), "999");
        assert_eq!(short(4_210_000_000), "4.21 G");
        assert_eq!(short(42_100), "42.1 k");
        assert_eq!(short(421_000), "421 k");
    }

    #[test]
    fn means_are_geometric() {
        let mean = geomean(&[2.0, 0.5, 1.0]).expect("a mean");
        assert!((mean - 1.0).abs() < 1e-12);
        assert_eq!(geomean(&[]), None);
    }
}
