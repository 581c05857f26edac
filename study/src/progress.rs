//! How far a study is, on stderr: a bar on a terminal, a line for each run elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::numbers::{cycles, short};
use crate::plan::Entry;
use crate::record::{Record, Status};

/// Counts runs, and guesses how long the others take.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    jobs: usize,
    done: usize,
    all: usize,
    /// Runs that are left, by workload.
    left: BTreeMap<String, usize>,
    /// Host seconds and runs, by workload.
    took: BTreeMap<String, (f64, usize)>,
}

impl Progress {
    /// Of these runs, `jobs` at a time.
    #[must_use]
    pub fn new(pending: &[&Entry], jobs: usize) -> Self {
        let bar = (std::io::stderr().is_terminal() && !pending.is_empty()).then(|| {
            let bar = ProgressBar::new(pending.len() as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        let mut left = BTreeMap::new();
        for entry in pending {
            *left.entry(entry.workload.clone()).or_insert(0) += 1;
        }
        Self {
            bar,
            jobs,
            done: 0,
            all: pending.len(),
            left,
            took: BTreeMap::new(),
        }
    }

    /// A run has ended.
    pub fn ended(&mut self, entry: &Entry, record: &Record) {
        self.done += 1;
        if let Some(left) = self.left.get_mut(&record.workload) {
            *left = left.saturating_sub(1);
        }
        let took = self.took.entry(record.workload.clone()).or_default();
        took.0 += record.seconds;
        took.1 += 1;
        let name = format!("{} {}", entry.workload, entry.label());
        let how = match record.status {
            Status::Ok => format!("{} cycles", short(cycles(record))),
            status => {
                let why = record.why.clone().unwrap_or_default();
                format!("{}: {why}", status.words())
            }
        };
        let left = self.time_left();
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                bar.set_message(format!("{left} {name}"));
                if record.status != Status::Ok {
                    bar.println(format!("{name}: {how}"));
                }
            }
            None => {
                let line = format!(
                    "[{}/{}] {name}: {how}, {:.1} s{}\n",
                    self.done,
                    self.all,
                    record.seconds,
                    if left.is_empty() {
                        String::new()
                    } else {
                        format!(", {}", left.trim_end_matches(':'))
                    }
                );
                // Nobody may be listening.
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        }
    }

    /// The last word.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// From how long runs of the same workload took, or of all.
    fn time_left(&self) -> String {
        let (seconds, runs) = self
            .took
            .values()
            .fold((0.0, 0), |(s, n), (seconds, runs)| (s + seconds, n + runs));
        let all = seconds / runs.max(1) as f64;
        let mean = |name: &String| {
            self.took
                .get(name)
                .map_or(all, |(seconds, runs)| seconds / *runs as f64)
        };
        let left: f64 = self
            .left
            .iter()
            .map(|(name, n)| mean(name) * *n as f64)
            .sum();
        let runs: usize = self.left.values().sum();
        if runs == 0 {
            return String::new();
        }
        let seconds = left / self.jobs.clamp(1, runs) as f64;
        format!("about {} left:", duration(seconds))
    }
}

/// Seconds as a person says them.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}
