//! One run: `sevlab run` as a child process, watched.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sevlab_workloads::resolve::{ENVIRONMENT, sha256};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::guard::Guard;
use crate::os::{self, Ended};
use crate::plan::{Entry, FORMAT, Plan};
use crate::record::{Record, Status};

/// The folder of what runs leave while they run.
pub const SCRATCH: &str = "tmp";

/// The status with which `sevlab run` says that it is sevlab itself that failed, and those for a program that can't be run.
const OWN: [i32; 4] = [2, 125, 126, 127];
/// The signal of a guest that has had its instructions.
const SPENT: i32 = libc::SIGXCPU;
/// What a report may take, in bytes.
const PROBE: usize = 32 << 10;
/// Most of a run's standard error that is kept.
const STDERR: u64 = 4096;

/// Where working directories are made. Their paths are of one length everywhere, because guests see them: glibc reads
/// `/proc/self/maps` as a program starts, with the program's path in it, and a longer path is another count of misses.
const WORK: &str = "/tmp";

/// A run's own working directory, with copies of its inputs and program; gone afterwards.
struct Work(PathBuf);

impl Work {
    fn new(entry: &Entry) -> Result<Self, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!(
            "{} {} {number} {}",
            os::host_name(),
            std::process::id(),
            entry.key
        );
        let name = &sha256(unique.as_bytes())[..16];
        let work = Self(Path::new(WORK).join(format!("sevlab-{name}")));
        fs::create_dir(&work.0).map_err(Error::file("making", &work.0))?;
        let files = fs::read_dir(&entry.folder).map_err(Error::file("reading", &entry.folder))?;
        for file in files.flatten().map(|f| f.path()).filter(|f| f.is_file()) {
            let to = work.0.join(file.file_name().unwrap_or_default());
            fs::copy(&file, &to).map_err(Error::file("copying", &to))?;
        }
        Ok(work)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What runs have in common.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The study's folder.
    pub dir: &'a Path,
    /// Version and build, for the records.
    pub version: &'a str,
    /// As above.
    pub build: &'a str,
    /// Ends the runs if this process is killed.
    pub guard: Option<&'a Guard>,
}

impl<'a> Bench<'a> {
    /// For the runs of a plan.
    pub fn of(plan: &'a Plan, dir: &'a Path, guard: Option<&'a Guard>) -> Self {
        Self {
            dir,
            version: &plan.version,
            build: &plan.build,
            guard,
        }
    }

    /// Makes a run; `None` if [`os::stopped`] ended it. Only what keeps all runs from being made is an error.
    pub fn run(&self, entry: &Entry) -> Result<Option<Record>, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", entry.key, std::process::id());
        let scratch = self.dir.join(SCRATCH).join(name);
        fs::create_dir_all(&scratch).map_err(Error::file("making", &scratch))?;
        let scratch = scratch
            .canonicalize()
            .map_err(Error::file("finding", &scratch))?;
        let result = self.run_in(entry, &scratch);
        let _ = fs::remove_dir_all(&scratch);
        result
    }

    fn run_in(&self, entry: &Entry, scratch: &Path) -> Result<Option<Record>, Error> {
        let work = Work::new(entry)?;
        let report = scratch.join("report.json");
        let stderr = scratch.join("stderr");
        let errors = File::create(&stderr).map_err(Error::file("making", &stderr))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("run");
        // What one run has translated is not to make the next one faster.
        if !entry.options.iter().any(|o| o == "--code-cache") {
            command.args(["--code-cache", "off"]);
        }
        command
            .args(&entry.options)
            .arg("--report")
            .arg(&report)
            .arg("--")
            .args(&entry.command)
            .current_dir(&work.0)
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        if let Some(file) = &entry.stdin {
            let open = File::open(file).map_err(Error::file("reading", file))?;
            command.stdin(open);
        }
        os::apart(&mut command);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|e| Error::Other(format!("a run can't be started: {e}")))?;
        let leader = child.id();
        if let Some(guard) = self.guard {
            guard.began(leader, &work.0);
        }
        let output = child.stdout.take().map(digest);
        let watched = watch(leader, start, entry.seconds);
        // Whatever the guest has left behind.
        os::kill_group(leader);
        if let Some(guard) = self.guard {
            guard.ended(leader);
        }
        let seconds = start.elapsed().as_secs_f64();
        let (ended, out_of_time) =
            match watched.map_err(|e| Error::Other(format!("waiting for a run: {e}")))? {
                Watched::Stopped => return Ok(None),
                Watched::Ended(ended) => (ended, false),
                Watched::OutOfTime(ended) => (ended, true),
            };
        // A guest's process in a session of its own may still hold the pipe.
        let (stdout_sha256, stdout_bytes) = output
            .and_then(|o| o.recv_timeout(Duration::from_secs(5)).ok())
            .unwrap_or_default();
        let told = fs::read(&report).ok();
        let report: Value = told
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or(Value::Null);
        let mut record = Record {
            format: FORMAT,
            key: entry.key.clone(),
            status: Status::Ok,
            why: None,
            workload: entry.workload.clone(),
            config: entry.config.clone(),
            vary: entry.vary.clone(),
            started: since.map_or(0, |d| d.as_secs()),
            seconds,
            cpu_seconds: ended.cpu.as_secs_f64(),
            peak_kib: ended.peak_kib,
            host: os::host_name(),
            command: entry.shown(),
            version: self.version.to_owned(),
            build: self.build.to_owned(),
            stdout_sha256,
            stdout_bytes,
            limit_seconds: entry.seconds,
            limit_instructions: entry.instructions,
            report,
        };
        judge(&mut record, entry, ended, out_of_time, &stderr);
        if record.status == Status::Broken {
            // A disk that is full is nothing about this run, and the next would fail as well.
            let probe = scratch.join("probe");
            fs::write(&probe, vec![1; PROBE]).map_err(Error::file("writing", &probe))?;
        }
        Ok(Some(record))
    }
}

/// Says how a run went.
fn judge(record: &mut Record, entry: &Entry, ended: Ended, out_of_time: bool, stderr: &Path) {
    let reported = !record.report.is_null();
    let said = tail(stderr);
    let with = |what: String| {
        if said.is_empty() {
            what
        } else {
            format!("{what}: {said}")
        }
    };
    let (status, why) = match (ended.code, ended.signal) {
        _ if out_of_time => {
            let seconds = entry.seconds.unwrap_or_default();
            (
                Status::SecondsLimit,
                format!("still running after {seconds} s (limit.seconds)"),
            )
        }
        (_, Some(SPENT)) if reported && entry.instructions.is_some() => {
            let most = entry.instructions.unwrap_or_default();
            (
                Status::InstructionsLimit,
                format!("{most} instructions were not enough (limit.instructions)"),
            )
        }
        (_, Some(signo)) if reported => (
            Status::Crashed,
            with(format!("killed by {}", os::signal_name(signo))),
        ),
        (_, Some(signo)) => (
            Status::Broken,
            with(format!("sevlab was killed by {}", os::signal_name(signo))),
        ),
        (Some(code), _) if !reported => {
            let what = if OWN.contains(&code) {
                "sevlab failed"
            } else {
                "no report was written"
            };
            (Status::Broken, with(format!("{what} (status {code})")))
        }
        (Some(0), _) => match &entry.stdout_sha256 {
            Some(right) if *right != record.stdout_sha256 => {
                let what = format!(
                    "its output has SHA-256 {}, not {right}",
                    record.stdout_sha256
                );
                (Status::WrongOutput, what)
            }
            _ => return,
        },
        (Some(code), _) => (Status::Failed, with(format!("exit status {code}"))),
        (None, None) => (Status::Broken, "it ended in no known way".to_owned()),
    };
    record.status = status;
    record.why = Some(why);
}

/// How watching a run ended.
enum Watched {
    Ended(Ended),
    OutOfTime(Ended),
    Stopped,
}

fn watch(leader: u32, start: Instant, limit: Option<f64>) -> std::io::Result<Watched> {
    let mut out_of_time = false;
    loop {
        if let Some(ended) = os::ended(leader)? {
            return Ok(if os::stopped() && ended.signal == Some(libc::SIGKILL) {
                Watched::Stopped
            } else if out_of_time {
                Watched::OutOfTime(ended)
            } else {
                Watched::Ended(ended)
            });
        }
        if os::stopped() {
            os::kill_group(leader);
        } else if !out_of_time && limit.is_some_and(|s| start.elapsed().as_secs_f64() > s) {
            out_of_time = true;
            os::kill_group(leader);
        }
        std::thread::sleep(LOOK.min(start.elapsed() / 16 + Duration::from_micros(500)));
    }
}

/// Reads to the end on a thread of its own; the SHA-256 and the number of bytes come when it is reached.
fn digest(mut from: impl Read + Send + 'static) -> Receiver<(String, u64)> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let (mut sha, mut bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    sha.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let hex = sha.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let _ = tell.send((hex, bytes));
    });
    told
}

/// The end of what was written to standard error, as one line.
fn tail(file: &Path) -> String {
    let Ok(bytes) = fs::read(file) else {
        return String::new();
    };
    let from = bytes.len().saturating_sub(STDERR as usize);
    let text = String::from_utf8_lossy(&bytes[from..]);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    last.join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}
