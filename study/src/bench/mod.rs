//! `sevlab bench`: is this sevlab worse than an earlier one?
//!
//! Each workload is run at its smallest size twice over: with simulated caches under SEV-SNP, whose counts are exact (simulated
//! cycles, guest instructions, host code that the translator made), and in cache mode `page`, as programs are run for their
//! own sake, several times, for wall-clock. A change of an exact count is a change of sevlab, however small; a change of
//! wall-clock is one only if it is larger than what runs differ by.

mod gate;
mod program;
mod stat;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sevlab_machine::hv::cpuid::{CpuModel, CpuPreset};
use sevlab_machine::{SevMode, host_isa};
use sevlab_workloads::manifest::{Manifest, Program, Size};
use sevlab_workloads::resolve::{Places, sha256};

pub use gate::{Allowed, Verdict, compare};
pub use stat::Interval;

use crate::error::Error;
use crate::exec::Bench;
use crate::guard::Guard;
use crate::os;
use crate::plan::{self, Entry};
use crate::record::{Record, Status};

/// Version of a baseline's format.
pub const FORMAT: u32 = 2;

/// Measurements of one build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// [`FORMAT`].
    pub format: u32,
    /// sevlab's version, and
    pub version: String,
    /// the SHA-256 of its executable.
    pub build: String,
    /// The host's processor.
    pub processor: String,
    /// The extensions of its instruction set that generated code uses: `host_` and `page_` counts depend on them.
    pub isa: Vec<String>,
    /// A digest of what CPUID shows the guest, which is what the host has of an epyc-milan: the C library chooses its code by it.
    pub shown: String,
    /// By workload.
    pub workloads: BTreeMap<String, Case>,
}

/// Measurements of one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Which program: another one counts otherwise.
    pub program: String,
    /// SHA-256 of its file.
    pub file: String,
    /// The compilers that made it.
    pub compilers: String,
    /// A digest of the C library that it found.
    pub library: String,
    /// Exact counts, by name.
    pub exact: BTreeMap<String, u64>,
    /// Wall-clock seconds of the guest in cache mode page; `None`: not measured.
    pub wall: Option<Interval>,
    /// Host instructions that a run retires, with a performance counter; `None`: the host has none.
    pub host_instructions: Option<u64>,
}

/// The names of exact counts, in the order of tables, and what they are.
pub const EXACT: [(&str, &str); 8] = [
    ("cycles", "simulated cycles, SEV-SNP, epyc-milan"),
    ("instructions", "guest instructions"),
    (
        "host_insns",
        "host instructions that the translator made, simulated caches",
    ),
    ("host_bytes", "their bytes"),
    (
        "page_insns",
        "host instructions that the translator made, cache mode page",
    ),
    ("page_bytes", "their bytes"),
    (
        "copy_bytes",
        "bytes of host code of copied blocks, cache mode page",
    ),
    ("line_bytes", "the same, simulated caches"),
];

/// Those of [`EXACT`] that depend on [`Measured::isa`].
const GENERATED: [&str; 6] = [
    "host_insns",
    "host_bytes",
    "page_insns",
    "page_bytes",
    "copy_bytes",
    "line_bytes",
];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// These workloads; none: all of this repository's own.
    pub workloads: Vec<String>,
    /// Runs for wall-clock; 0: none.
    pub runs: usize,
}

/// Counts what child processes do, where the host has performance counters.
pub trait Counter {
    /// Forgets what was counted.
    fn start(&mut self);
    /// What was counted since; `None`: it can't be.
    fn read(&mut self) -> Option<u64>;
}

/// Measures; `told` hears of each workload before it begins.
pub fn measure(
    options: &Options,
    counter: &mut dyn Counter,
    told: &mut dyn FnMut(&str),
) -> Result<Measured, Error> {
    let dir = os::scratch("sevlab-bench-")?;
    let manifest = Manifest::builtin();
    let places = Places::from_environment();
    let build = plan::build()?;
    let guard = Guard::start().ok();
    let bench = Bench {
        dir: dir.path(),
        version: env!("CARGO_PKG_VERSION"),
        build: &build,
        guard: guard.as_ref(),
    };
    let chosen: Vec<_> = if options.workloads.is_empty() {
        let own = |w: &&sevlab_workloads::manifest::Workload| {
            matches!(w.program, Program::Own(_)) && w.sizes.contains_key(&Size::Test)
        };
        manifest.workloads.iter().filter(own).collect()
    } else {
        let find = |name: &String| manifest.get(name).map_err(|e| Error::Other(e.to_string()));
        options
            .workloads
            .iter()
            .map(find)
            .collect::<Result<_, _>>()?
    };
    let mut workloads = BTreeMap::new();
    for workload in chosen {
        told(&workload.name);
        let failed = |why: String| Error::Workload {
            name: workload.name.clone(),
            why,
        };
        let job = places
            .prepare(workload, Size::Test, dir.path())
            .map_err(|e| failed(e.to_string()))?;
        let bytes = fs::read(&job.program).map_err(|e| failed(e.to_string()))?;
        // A name that does not depend on where sevlab was built: a path is part of the guest's stack.
        let link = job.folder.join("program");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&job.program, &link).map_err(|e| failed(e.to_string()))?;
        let mut command = vec!["./program".to_owned()];
        command.extend(job.args.iter().cloned());
        let entry = |options: &str| Entry {
            key: "bench".to_owned(),
            workload: workload.name.clone(),
            config: String::new(),
            vary: BTreeMap::new(),
            sev: "snp".to_owned(),
            options: options.split(' ').map(str::to_owned).collect(),
            command: command.clone(),
            folder: job.folder.clone(),
            stdin: job.stdin.clone(),
            stdout_sha256: job.sha256.clone(),
            seconds: Some(600.0),
            instructions: None,
        };
        let run = |options: &str| -> Result<Record, Error> {
            match bench.run(&entry(options))? {
                None => Err(Error::Other("stopped".to_owned())),
                Some(r) if r.status == Status::Ok => Ok(r),
                Some(r) => Err(failed(r.why.unwrap_or_else(|| r.status.words().to_owned()))),
            }
        };
        let lines = "--sev snp --cache hierarchy --seed 1 --jit-opt";
        let simulated = run(&format!("{lines} direct=16"))?;
        let translated = run(&format!("{lines} direct=off --jit-opt count_host=on"))?;
        let [cycles, other] =
            [&simulated, &translated].map(|r| r.count(&["stats", "simulation", "cycles"]));
        if cycles != other {
            let why = format!(
                "{cycles} cycles as copies and {other} translated, which are to be the same"
            );
            return Err(failed(why));
        }
        let page = "--sev snp --cpu epyc-milan --seed 1 --deterministic --jit-opt";
        let copied = run(&format!("{page} direct=16"))?;
        let page = run(&format!("{page} direct=off --jit-opt count_host=on"))?;
        let code = |r: &Record, key: &str| r.count(&["stats", key]);
        let exact = [
            ("cycles", cycles),
            (
                "instructions",
                simulated.count(&["stats", "simulation", "instructions"]),
            ),
            ("host_insns", code(&translated, "host_code_instructions")),
            ("host_bytes", code(&translated, "host_code_bytes")),
            ("page_insns", code(&page, "host_code_instructions")),
            ("page_bytes", code(&page, "host_code_bytes")),
            ("copy_bytes", code(&copied, "copied_code_bytes")),
            ("line_bytes", code(&simulated, "copied_code_bytes")),
        ];
        let mut walls = Vec::new();
        let mut retired = Vec::new();
        for _ in 0..options.runs {
            counter.start();
            let r = run("--sev snp --cpu epyc-milan --seed 1 --code-cache off")?;
            retired.extend(counter.read());
            walls.push(r.report["stats"]["seconds"].as_f64().unwrap_or(r.seconds));
        }
        retired.sort_unstable();
        workloads.insert(
            workload.name.clone(),
            Case {
                program: program::identity(&bytes),
                file: sha256(&bytes),
                compilers: program::compilers(&bytes),
                library: program::library(&bytes),
                exact: exact.map(|(name, n)| (name.to_owned(), n)).into(),
                wall: (!walls.is_empty()).then(|| Interval::of(&walls)),
                host_instructions: retired.get(retired.len() / 2).copied(),
            },
        );
    }
    Ok(Measured {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build,
        processor: os::processor(),
        isa: host_isa().map_err(|e| Error::Other(e.to_string()))?,
        shown: shown(),
        workloads,
    })
}

/// [`Measured::shown`] here.
fn shown() -> String {
    let model = CpuModel::new(CpuPreset::EpycMilan, SevMode::Snp, 1, 1);
    let leaves = CpuModel::page_leaves();
    let leaves = leaves.iter().map(|(leaf, sub)| model.leaf(*leaf, *sub));
    let text: Vec<String> = leaves.map(|l| format!("{l:x?}")).collect();
    sha256(text.join(" ").as_bytes())
}

/// Reads what an earlier bench has saved.
pub fn read(path: &Path) -> Result<Measured, Error> {
    let text = fs::read(path).map_err(Error::file("reading", path))?;
    let wrong = |what: String| {
        Error::Other(format!(
            "{}: not what sevlab bench saves: {what}",
            path.display()
        ))
    };
    let measured: Measured = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if measured.format != FORMAT {
        return Err(wrong(format!(
            "format {}, where {FORMAT} is known",
            measured.format
        )));
    }
    Ok(measured)
}

/// As it is saved.
pub fn to_json(measured: &Measured) -> String {
    // Numbers, text and maps with text as keys: nothing that could fail.
    serde_json::to_string_pretty(&json!(measured)).unwrap_or_default() + "\n"
}
