//! The result of a run: a line of `results.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a run went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// To its end, with the right output.
    Ok,
    /// To its end, with another output than the manifest has.
    WrongOutput,
    /// The program ended with a status that is not 0.
    Failed,
    /// A signal killed the guest.
    Crashed,
    /// It was ended after its seconds.
    SecondsLimit,
    /// It was ended after its instructions.
    InstructionsLimit,
    /// sevlab itself failed, or was killed from outside. Such a run is made again at the next start.
    Broken,
}

impl Status {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WrongOutput => "wrong output",
            Self::Failed => "the program failed",
            Self::Crashed => "the guest crashed",
            Self::SecondsLimit => "out of time",
            Self::InstructionsLimit => "out of instructions",
            Self::Broken => "sevlab failed",
        }
    }
}

/// A run's result.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub format: u32,
    /// The run's key ([`crate::plan::Entry::key`]).
    pub key: String,
    /// How it went.
    pub status: Status,
    /// If not well: why.
    pub why: Option<String>,
    /// The workload.
    pub workload: String,
    /// The configuration.
    pub config: String,
    /// Values of the axes.
    pub vary: BTreeMap<String, Value>,
    /// When it began: seconds since 1970.
    pub started: u64,
    /// Host seconds, all in all.
    pub seconds: f64,
    /// Host CPU seconds.
    pub cpu_seconds: f64,
    /// Most host memory, in KiB.
    pub peak_kib: u64,
    /// The host.
    pub host: String,
    /// The command line.
    pub command: String,
    /// sevlab's version.
    pub version: String,
    /// SHA-256 of its executable.
    pub build: String,
    /// SHA-256 of the standard output.
    pub stdout_sha256: String,
    /// Bytes of the standard output.
    pub stdout_bytes: u64,
    /// Limits that it ran under.
    pub limit_seconds: Option<f64>,
    /// As above.
    pub limit_instructions: Option<u64>,
    /// What `sevlab run --report` wrote.
    pub report: Value,
}

impl Record {
    /// A number of the report, by its path; 0 if it is not there.
    #[must_use]
    pub fn count(&self, path: &[&str]) -> u64 {
        self.at(path).as_u64().unwrap_or(0)
    }

    /// A part of the report.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> &Value {
        path.iter().fold(&self.report, |at, key| &at[*key])
    }

    /// Whether the result stands, or the run is to be made again under these limits.
    #[must_use]
    pub fn stands(&self, seconds: Option<f64>, instructions: Option<u64>) -> bool {
        match self.status {
            Status::Broken => false,
            Status::SecondsLimit => self.limit_seconds == seconds,
            Status::InstructionsLimit => self.limit_instructions == instructions,
            _ => true,
        }
    }
}

/// Visits the values of a tree that are no tables, each with its path of keys joined by dots.
pub(crate) fn leaves(path: &str, value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    let Value::Object(map) = value else {
        return visit(path, value);
    };
    for (key, value) in map {
        if path.is_empty() {
            leaves(key, value, visit);
        } else {
            leaves(&format!("{path}.{key}"), value, visit);
        }
    }
}
