//! The `sevlab` command: reads the command line, builds a machine from it, and passes on how the guest ended.

mod args;
mod doctor;
mod failure;
mod host;
mod jit_opt;
mod output;
mod program;
mod run;

use std::process::ExitCode;

use clap::Parser;

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
    };
    done.unwrap_or_else(|failure: Failure| {
        eprintln!("sevlab: {failure}");
        ExitCode::from(failure.status())
    })
}

/// Tracing goes to stderr, and only if asked for: a guest's own output is not to be mixed with ours.
fn log_to_stderr() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("SEVLAB_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}
