//! `sevlab study`: runs of a file, kept whatever happens.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use sevlab_study::csv::{self, CSV};
use sevlab_study::numbers::Results;
use sevlab_study::plan::{MODELS, Plan};
use sevlab_study::spec::Spec;
use sevlab_study::store::{PLAN, Store, replace};
use sevlab_study::{Error, local, os, report, slurm, table};

use crate::failure::Failure;

/// What stands under `sevlab study --help`.
pub const EXAMPLES: &str = "\
Examples:
  sevlab study quick
      Small programs under no encryption, SEV, SEV-ES and SNP: a table of what encryption costs, in half a minute.
  sevlab study aes.toml --out aes --jobs 8
      The runs of a file of your own, eight at a time; aes/results.jsonl has a line for each, aes/results.csv all of them.
  sevlab study aes.toml --engine slurm --jobs 64 --slurm=--partition=big --slurm=--time=2:00:00
      The same runs as a Slurm job array, from a folder that all nodes have.
  sevlab study aes.toml --dry-run
      Only check the file, and list the runs.

A study that was ended (Ctrl-C, a kill, a full disk) goes on where it was when the same command is started again: each result
is on the disk as soon as its run has ended, and what has a result is not run again.

Exit status:
  0  every run went well       1  some did not (they are listed)
  2  the file is wrong         125  the study can't go on        130  ended by Ctrl-C

docs/study.md describes the file and the results.";

/// `sevlab study`.
#[derive(Args, Debug)]
pub struct StudyArgs {
    /// A study file, or quick, the study that is built in
    #[arg(value_name = "FILE|quick")]
    pub file: String,

    /// Folder of the results; without it NAME-results, by the file's name
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Where runs are made: on this machine, or as a Slurm job array
    #[arg(long, value_enum, value_name = "local|slurm", default_value = "local")]
    pub engine: Engine,

    /// With --engine slurm: an option for sbatch, as --slurm=--partition=big; may be given more than once
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub slurm: Vec<String>,

    /// How many runs at a time; without it as many as there are cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,

    /// Run those again that went ill before
    #[arg(long)]
    pub again: bool,

    /// Check the file and list its runs, nothing else
    #[arg(long)]
    pub dry_run: bool,
}

/// `--engine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Engine {
    /// On this machine
    Local,
    /// As a job array of Slurm's
    Slurm,
}

/// An element of a job array.
#[derive(Args, Debug)]
pub struct TaskArgs {
    /// The study's folder.
    pub dir: PathBuf,
    /// Which element.
    pub element: usize,
}

/// Makes an element's runs.
pub fn task(args: &TaskArgs) -> Result<ExitCode, Failure> {
    os::take_signals();
    slurm::task(&args.dir, args.element)?;
    Ok(ExitCode::SUCCESS)
}

/// The status of a command that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Makes the runs of a study that have no result yet, and prints the table.
pub fn study(args: &StudyArgs) -> Result<ExitCode, Failure> {
    if args.engine == Engine::Local && !args.slurm.is_empty() {
        let why = "--slurm has no effect without --engine slurm".to_owned();
        return Err(Failure::Usage(why));
    }
    os::take_signals();
    let spec = Spec::load(&args.file).map_err(Error::from)?;
    let dir = folder(args);
    if args.dry_run {
        return Ok(list(&Plan::new(&spec, &dir, true)?));
    }
    let mut store = Store::open(&dir)?;
    let plan = Plan::new(&spec, &dir, false)?;
    keep(&plan, &dir)?;
    let unique = plan.unique().len();
    let jobs = args.jobs.map_or_else(os::cores, usize::from);
    let pending = local::pending(&plan, &store, args.again).len();
    if store.torn() > 0 {
        let what = "torn by an earlier kill, and set aside in results.torn";
        eprintln!("{}: {} line(s) {what}", dir.display(), store.torn());
    }
    for skipped in &plan.skipped {
        eprintln!("left out: {skipped}");
    }
    if pending < unique {
        let kept = unique - pending;
        eprintln!("{}: {kept} of {unique} runs have results", dir.display());
    }
    let result = match args.engine {
        Engine::Local => local::run(&plan, &mut store, &dir, jobs, args.again),
        Engine::Slurm => {
            let options = slurm::Options {
                jobs,
                sbatch: args.slurm.clone(),
                again: args.again,
            };
            slurm::run(&plan, &mut store, &dir, &options)
        }
    };
    let results = Results {
        plan,
        records: store.records().clone(),
    };
    if result.as_ref().is_ok_and(|outcome| !outcome.stopped) {
        write(&dir.join(CSV), csv::csv(&results).as_bytes())?;
        report::write(&results, &dir.join(report::REPORT))?;
    }
    let outcome = result?;
    if outcome.stopped {
        let there = results.plan.unique().len() - results.troubles().1.len();
        eprintln!(
            "stopped; {there} of {unique} runs have results in {}: start the same command again to go on",
            dir.display()
        );
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(tell(&results, &dir))
}

/// Where results go.
fn folder(args: &StudyArgs) -> PathBuf {
    args.out.clone().unwrap_or_else(|| {
        let stem = Path::new(&args.file).file_stem().unwrap_or_default();
        PathBuf::from(format!("{}-results", stem.to_string_lossy()))
    })
}

/// Keeps the plan with the results, and the models that came from files.
fn keep(plan: &Plan, dir: &Path) -> Result<(), Failure> {
    let json = serde_json::to_vec_pretty(plan).map_err(|e| Error::Other(e.to_string()))?;
    write(&dir.join(PLAN), &json)?;
    if !plan.models.is_empty() {
        let models = dir.join(MODELS);
        std::fs::create_dir_all(&models).map_err(Error::file("making", &models))?;
        for (name, text) in &plan.models {
            write(&models.join(name), text.as_bytes())?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    Ok(replace(path, bytes).map_err(Error::file("writing", path))?)
}

/// The runs, for people.
fn list(plan: &Plan) -> ExitCode {
    let mut text = String::new();
    for skipped in &plan.skipped {
        text.push_str(&format!("left out: {skipped}\n"));
    }
    let unique = plan.unique();
    for entry in &unique {
        text.push_str(&format!(
            "{} {}: {}\n",
            entry.workload,
            entry.label(),
            entry.shown()
        ));
    }
    text.push_str(&format!("{} runs\n", unique.len()));
    // `| head` is no failure.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Table, troubles and files; the exit status.
fn tell(results: &Results, dir: &Path) -> ExitCode {
    let plan = &results.plan;
    let mut text = format!(
        "\n{}: simulated cycles, size {}{}\n\n{}",
        plan.study,
        plan.size,
        plan.baseline
            .as_ref()
            .map_or(String::new(), |b| format!(", over \"{b}\"")),
        table::overheads(results)
    );
    text.push_str(&format!(
        "\n{0}/report.html, {0}/results.csv, {0}/results.jsonl\n",
        dir.display()
    ));
    let _ = io::stdout().write_all(text.as_bytes());
    let (ill, missing) = results.troubles();
    for record in &ill {
        eprintln!(
            "{} {}: {}: {}",
            record.workload,
            sevlab_study::plan::label(&record.config, &record.vary),
            record.status.words(),
            record.why.as_deref().unwrap_or_default()
        );
    }
    if ill.is_empty() && missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprintln!(
            "{} of {} runs went ill",
            ill.len() + missing.len(),
            plan.unique().len()
        );
        ExitCode::from(1)
    }
}
