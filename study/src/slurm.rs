//! Runs as a Slurm job array: submitted with sbatch, each element makes its share of the runs and writes a file of its own;
//! this process waits, and collects the files as they grow.
//!
//! 1. All that an element needs is in the study's folder, which must be on a file system that all nodes have, as must
//!    sevlab. An element refuses to run another build than the one that planned.
//! 2. An element never writes `results.jsonl`; it has `slurm/parts/*.jsonl`, made anew at each start of the element. Only
//!    the process that holds the folder's lock adds their lines to the results, each key once.
//! 3. Ending this process leaves the job alone. The next start goes on waiting for it; it submits again only what has no
//!    result once the job is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::exec::Bench;
use crate::guard::Guard;
use crate::local::{Outcome, pending};
use crate::os;
use crate::plan::{self, Entry, Plan};
use crate::progress::Progress;
use crate::record::Record;
use crate::store::{PLAN, Store, replace};

/// The hidden subcommand of an element.
pub const COMMAND: &str = "study-task";

/// The folder of the job's files, in that of the results.
const FOLDER: &str = "slurm";
const PARTS: &str = "parts";
const JOB: &str = "job.json";
const SCRIPT: &str = "job.sh";

/// Most elements of an array, if Slurm does not say (its default `MaxArraySize` is 1001).
const ELEMENTS: usize = 1000;
/// How often Slurm is asked.
const ASK: Duration = Duration::from_secs(2);
/// How long files may take to be seen from here when a job has ended.
const SEEN: Duration = Duration::from_secs(10);

/// A job that was submitted.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Job {
    /// Its number.
    id: String,
    /// Keys of the runs, by element.
    elements: Vec<Vec<String>>,
}

/// How to submit.
#[derive(Clone, Debug)]
pub struct Options {
    /// Elements that may run at once.
    pub jobs: usize,
    /// More options of sbatch, such as `--partition=big`.
    pub sbatch: Vec<String>,
    /// Also those that went ill before.
    pub again: bool,
}

/// Submits what is pending, or goes on waiting for what was submitted, and collects.
pub fn run(
    plan: &Plan,
    store: &mut Store,
    dir: &Path,
    options: &Options,
) -> Result<Outcome, Error> {
    let folder = dir.join(FOLDER);
    let parts = folder.join(PARTS);
    fs::create_dir_all(&parts).map_err(Error::file("making", &parts))?;
    let entries: BTreeMap<&str, &Entry> = plan
        .unique()
        .into_iter()
        .map(|e| (e.key.as_str(), e))
        .collect();
    let before = pending(plan, store, options.again).len();
    let mut outcome = Outcome {
        kept: entries.len() - before,
        ..Outcome::default()
    };
    let mut again = options.again;
    let earlier = read_job(&folder);
    let job = match earlier {
        Some(job) if !states(&job.id)?.is_empty() => {
            eprintln!("job {} is still there: waiting for it", job.id);
            again = false;
            job
        }
        earlier => {
            if earlier.is_some() {
                collect(&parts, &entries, store, &mut |_, _| outcome.made += 1)?;
            }
            let pending = pending(plan, store, again);
            if pending.is_empty() {
                return Ok(outcome);
            }
            let job = submit(plan, dir, &folder, &pending, options)?;
            eprintln!(
                "submitted job {}: {} runs in {} elements, {} at a time",
                job.id,
                pending.len(),
                job.elements.len(),
                options.jobs
            );
            job
        }
    };
    let waiting = pending(plan, store, again);
    let keys: BTreeSet<&str> = job.elements.iter().flatten().map(String::as_str).collect();
    let waiting: Vec<&Entry> = waiting
        .into_iter()
        .filter(|e| keys.contains(e.key.as_str()))
        .collect();
    let mut progress = Progress::new(&waiting, options.jobs);
    let mut left: BTreeSet<String> = waiting.iter().map(|e| e.key.clone()).collect();
    let mut gone: Option<Instant> = None;
    let mut last_states = BTreeMap::new();
    while !left.is_empty() && !os::stopped() {
        collect(&parts, &entries, store, &mut |entry, record| {
            if left.remove(&entry.key) {
                outcome.made += 1;
                progress.ended(entry, record);
            }
        })?;
        if gone.is_some_and(|since| since.elapsed() > SEEN) {
            break;
        }
        if gone.is_none() {
            let now = states(&job.id)?;
            if now.is_empty() {
                gone = Some(Instant::now());
            } else {
                last_states = now;
            }
        }
        let until = Instant::now() + if gone.is_some() { ASK / 8 } else { ASK };
        while Instant::now() < until && !os::stopped() && !left.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    progress.finish();
    outcome.stopped = os::stopped();
    if outcome.stopped {
        eprintln!(
            "job {} goes on without this command: start it again to collect, or end the job with scancel {}",
            job.id, job.id
        );
    } else if !left.is_empty() {
        let why = accounted(&job.id).unwrap_or_else(|| {
            let all: BTreeSet<_> = last_states.into_values().collect();
            all.into_iter().collect::<Vec<_>>().join(", ")
        });
        return Err(Error::Other(format!(
            "job {} is gone and {} runs have no result{}: see {}/log-*.txt; start the same command again to submit them again",
            job.id,
            left.len(),
            if why.is_empty() {
                String::new()
            } else {
                format!(" ({why})")
            },
            folder.display()
        )));
    }
    Ok(outcome)
}

fn read_job(folder: &Path) -> Option<Job> {
    serde_json::from_slice(&fs::read(folder.join(JOB)).ok()?).ok()
}

/// Submits the runs.
fn submit(
    plan: &Plan,
    dir: &Path,
    folder: &Path,
    pending: &[&Entry],
    options: &Options,
) -> Result<Job, Error> {
    let count = pending.len().min(most_elements());
    let mut elements = vec![Vec::new(); count];
    for (i, entry) in pending.iter().enumerate() {
        elements[i % count].push(entry.key.clone());
    }
    let absolute = dir.canonicalize().map_err(Error::file("finding", dir))?;
    let exe =
        std::env::current_exe().map_err(Error::file("finding", Path::new("/proc/self/exe")))?;
    let name: String = plan
        .study
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let script = format!(
        "#!/bin/sh\n\
         # {} runs of the study {name}. sbatch takes more options on its command line: sevlab study --slurm.\n\
         #SBATCH --job-name=sevlab-{name}\n\
         #SBATCH --array=0-{}%{}\n\
         #SBATCH --nodes=1\n\
         #SBATCH --ntasks=1\n\
         #SBATCH --cpus-per-task=1\n\
         exec {} {COMMAND} {} \"$SLURM_ARRAY_TASK_ID\"\n",
        pending.len(),
        count - 1,
        options.jobs,
        quote(&exe),
        quote(&absolute),
    );
    let path = folder.join(SCRIPT);
    replace(&path, script.as_bytes()).map_err(Error::file("writing", &path))?;
    // The elements read their keys from it; its number is not known yet.
    let mut job = Job {
        id: String::new(),
        elements,
    };
    keep(folder, &job)?;
    let log = absolute.join(FOLDER).join("log-%a.txt");
    let out = Command::new("sbatch")
        .arg("--parsable")
        .arg("--output")
        .arg(log)
        .args(&options.sbatch)
        .arg(&path)
        .output()
        .map_err(|e| {
            let what = "sbatch can't be started (Debian: apt-get install slurm-client)";
            Error::Other(format!("{what}: {e}"))
        })?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        let _ = fs::remove_file(folder.join(JOB));
        return Err(Error::Other(format!("sbatch: {}", why.trim())));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    // With several clusters: NUMBER;CLUSTER.
    job.id = text.trim().split(';').next().unwrap_or_default().to_owned();
    keep(folder, &job)?;
    Ok(job)
}

fn keep(folder: &Path, job: &Job) -> Result<(), Error> {
    let path = folder.join(JOB);
    let text = serde_json::to_vec(job).map_err(|e| Error::Other(e.to_string()))?;
    replace(&path, &text).map_err(Error::file("writing", &path))
}

/// Elements that Slurm lets an array have.
fn most_elements() -> usize {
    let out = Command::new("scontrol").args(["show", "config"]).output();
    let text = out
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MaxArraySize"));
    line.and_then(|l| l.split('=').nth(1)?.trim().parse::<usize>().ok())
        .map_or(ELEMENTS, |size| size.saturating_sub(1).clamp(1, ELEMENTS))
}

/// The elements that Slurm still has, and their states; none if the job is gone.
fn states(id: &str) -> Result<BTreeMap<String, String>, Error> {
    if id.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut why = String::new();
    // The controller may be restarting.
    for attempt in 0..5 {
        if attempt > 0 {
            std::thread::sleep(ASK);
        }
        let out = Command::new("squeue")
            .args(["--noheader", "--array", "--jobs", id, "--format", "%i %T"])
            .output()
            .map_err(|e| Error::Other(format!("squeue can't be started: {e}")))?;
        let error = String::from_utf8_lossy(&out.stderr);
        if out.status.success() {
            let text = String::from_utf8_lossy(&out.stdout);
            let ended = [
                "COMPLETED",
                "FAILED",
                "CANCELLED",
                "TIMEOUT",
                "NODE_FAIL",
                "OUT_OF_MEMORY",
            ];
            return Ok(text
                .lines()
                .filter_map(|l| l.trim().split_once(' '))
                .filter(|(_, state)| !ended.contains(state))
                .map(|(id, state)| (id.to_owned(), state.to_owned()))
                .collect());
        }
        if error.contains("Invalid job id") {
            return Ok(BTreeMap::new());
        }
        why = error.trim().to_owned();
    }
    Err(Error::Other(format!("squeue: {why}")))
}

/// How the elements ended, where Slurm keeps accounts.
fn accounted(id: &str) -> Option<String> {
    let out = Command::new("sacct")
        .args([
            "--noheader",
            "--allocations",
            "--parsable2",
            "--jobs",
            id,
            "--format",
            "State",
        ])
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&out.stdout);
    let states: BTreeSet<&str> = text
        .lines()
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .collect();
    (!states.is_empty()).then(|| states.into_iter().collect::<Vec<_>>().join(", "))
}

/// Adds the parts' lines that the results do not have.
fn collect(
    parts: &Path,
    entries: &BTreeMap<&str, &Entry>,
    store: &mut Store,
    told: &mut dyn FnMut(&Entry, &Record),
) -> Result<(), Error> {
    let mut files: Vec<PathBuf> = fs::read_dir(parts)
        .map_err(Error::file("reading", parts))?
        .flatten()
        .map(|f| f.path())
        .collect();
    files.sort();
    for file in files {
        let text = fs::read(&file).map_err(Error::file("reading", &file))?;
        let end = text
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        for line in text[..end].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(record) = serde_json::from_slice::<Record>(line) else {
                continue;
            };
            let Some(entry) = entries.get(record.key.as_str()) else {
                continue;
            };
            let there = store.records().get(&record.key);
            if there.is_none_or(|r| record.started > r.started) {
                store.add(record.clone())?;
                told(entry, &record);
            }
        }
    }
    Ok(())
}

/// What an element does: makes its runs, and writes each result to its part as soon as it is there.
pub fn task(dir: &Path, element: usize) -> Result<(), Error> {
    let path = dir.join(PLAN);
    let text = fs::read(&path).map_err(Error::file("reading", &path))?;
    let plan: Plan = serde_json::from_slice(&text)
        .map_err(|e| Error::Other(format!("{}: {e}", path.display())))?;
    if plan::build()? != plan.build {
        return Err(Error::Other(
            "this sevlab is not the one that planned the study: results would not compare"
                .to_owned(),
        ));
    }
    let folder = dir.join(FOLDER);
    let job =
        read_job(&folder).ok_or_else(|| Error::Other("no job was planned here".to_owned()))?;
    let keys = job
        .elements
        .get(element)
        .ok_or_else(|| Error::Other(format!("the job has no element {element}")))?;
    let unique = format!("{}-{}-{}", os::host_name(), std::process::id(), element);
    let part = folder.join(PARTS).join(format!("{unique}.jsonl"));
    let mut file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&part)
        .map_err(Error::file("making", &part))?;
    let guard = Guard::start().ok();
    let bench = Bench::of(&plan, dir, guard.as_ref());
    for entry in plan.unique() {
        if !keys.contains(&entry.key) || os::stopped() {
            continue;
        }
        let Some(record) = bench.run(entry)? else {
            break;
        };
        let mut line = serde_json::to_vec(&record).map_err(|e| Error::Other(e.to_string()))?;
        line.push(b'\n');
        file.write_all(&line)
            .and_then(|()| file.sync_data())
            .map_err(Error::file("writing", &part))?;
        println!(
            "{} {}: {}",
            entry.workload,
            entry.label(),
            record.status.words()
        );
    }
    Ok(())
}
