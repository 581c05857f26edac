//! The `sevlab` command: reads the command line, builds a machine from it, and passes on how the guest ended.

mod args;
mod bench;
mod check;
mod config;
mod doctor;
mod failure;
mod heap;
mod host;
mod jit_opt;
mod output;
mod program;
mod report;
mod run;
mod study;
mod workloads;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    log_to_stderr();
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Doctor => {
            host::default_sigpipe();
            doctor::doctor()
        }
        Command::Config(command) => {
            host::default_sigpipe();
            config::config(&command)
        }
        Command::Study(args) => study::study(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::StudyTask(args) => study::task(&args),
        Command::Report(args) => {
            host::default_sigpipe();
            report::report(&args)
        }
        Command::StudyGuard => {
            sevlab_study::guard::serve(std::io::stdin().lock());
            Ok(ExitCode::SUCCESS)
        }
        Command::Workloads(args) => {
            host::default_sigpipe();
            workloads::workloads(&args)
        }
    };
    done.unwrap_or_else(|failure: Failure| {
        eprintln!("sevlab: {failure}");
        ExitCode::from(failure.status())
    })
}

/// The log goes to stderr, errors only unless SEVLAB_LOG asks for more: stderr is the guest's in the first place.
fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_env_var("SEVLAB_LOG")
        .with_default_directive(LevelFilter::ERROR.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}
