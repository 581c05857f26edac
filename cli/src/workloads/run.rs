//! `sevlab workloads run`: one workload, natively or under `sevlab run`, with its output checked.

use std::io::Write;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use sevlab_workloads::manifest::Workload;
use sevlab_workloads::resolve::{Job, Places};

use super::RunArgs;
use crate::failure::Failure;

/// Runs it. Its output goes to stdout, what the check found to stderr.
pub fn run(workload: &Workload, places: &Places, args: &RunArgs) -> Result<ExitCode, Failure> {
    let temporary = std::env::temp_dir().join(format!("sevlab-workloads-{}", std::process::id()));
    let inputs = args.inputs.as_ref().unwrap_or(&temporary);
    let prepared = places.prepare(workload, args.size, inputs);
    let done = prepared
        .map_err(Failure::from)
        .and_then(|job| checked(&job, args));
    if args.inputs.is_none() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    done
}

fn checked(job: &Job, args: &RunArgs) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let out = if args.native {
        output(job, job.native())?
    } else {
        output(job, emulated(job, &args.options))?
    };
    let took = start.elapsed().as_secs_f64();
    // What it printed is its result, even if it is wrong.
    let _ = std::io::stdout().write_all(&out.stdout);
    let name = format!("{}, size {}", job.workload, job.size);
    if !out.status.success() {
        return Err(Failure::Workload(format!("{name}: {}", out.status)));
    }
    let expected = match &job.sha256 {
        Some(_) => {
            job.check(&out.stdout)
                .map_err(|e| Failure::Workload(e.to_string()))?;
            "the output is right"
        }
        None if args.native => "the output depends on the installed version and is not checked",
        None => {
            if output(job, job.native())?.stdout != out.stdout {
                let why = format!("{name}: the output is not that of a native run");
                return Err(Failure::Workload(why));
            }
            "the output is that of a native run"
        }
    };
    eprintln!("{name}: {expected}, {took:.3} s");
    Ok(ExitCode::SUCCESS)
}

fn emulated(job: &Job, options: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").args(options).arg("--");
    command.arg(&job.program).args(&job.args);
    job.surround(&mut command)?;
    Ok(command)
}

fn output(job: &Job, command: std::io::Result<Command>) -> Result<Output, Failure> {
    let fail = |e: std::io::Error| Failure::Workload(format!("{}: {e}", job.program.display()));
    let mut command = command.map_err(fail)?;
    let command = command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let child = command.spawn().map_err(fail)?;
    child.wait_with_output().map_err(fail)
}
