//! `sevlab workloads`: what the manifest names, whether it is here, and native runs of it.

mod list;
mod run;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use sevlab_workloads::manifest::{Manifest, Size};
use sevlab_workloads::resolve::Places;

use crate::failure::Failure;

pub const EXAMPLES: &str = "\
Examples:
  sevlab workloads
      The list: what there is, which SPEC CPU 2017 program it follows, and whether it can be run here.
  sevlab workloads show mcf
      One of them: why it is there, its sizes, its inputs and the commands that run it.
  sevlab workloads run mcf --size test --native
      Run it without sevlab, and check what it prints.
  sevlab workloads run mcf -- --sev snp --stats
      Run it under sevlab; what follows -- are options of sevlab run.

The programs are looked for beside the sevlab executable (cargo build --release -p sevlab-workloads puts them there), or in
the folder that $SEVLAB_WORKLOADS names. docs/workloads.md has what they are like.";

/// `sevlab workloads`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct WorkloadsArgs {
    #[command(subcommand)]
    command: Option<WorkloadsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand, Debug)]
enum WorkloadsCommand {
    /// List them (the same as without a subcommand)
    List(ListArgs),
    /// Show one with all the manifest says of it
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        from: From,
        /// JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run one, and check what it prints against the manifest
    Run(RunArgs),
}

/// Which manifest.
#[derive(Args, Debug)]
struct From {
    /// Another manifest than the one that is built in
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    from: From,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    from: From,
    /// test, train or ref
    #[arg(long, default_value = "test")]
    size: Size,
    /// On this host, without sevlab
    #[arg(long, conflicts_with = "options")]
    native: bool,
    /// Where to make its input files; without it a folder in $TMPDIR, which is removed again
    #[arg(long, value_name = "FOLDER")]
    inputs: Option<PathBuf>,
    /// Options of `sevlab run`, as --sev snp --stats
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// Does what the command says.
pub fn workloads(args: &WorkloadsArgs) -> Result<ExitCode, Failure> {
    let places = Places::from_environment();
    let read = |from: &From| Manifest::read(from.manifest.as_deref());
    match &args.command {
        None => list::list(&read(&args.list.from)?, &places, args.list.json),
        Some(WorkloadsCommand::List(l)) => list::list(&read(&l.from)?, &places, l.json),
        Some(WorkloadsCommand::Show { name, from, json }) => {
            show::show(read(from)?.get(name)?, &places, *json)
        }
        Some(WorkloadsCommand::Run(run)) => {
            run::run(read(&run.from)?.get(&run.name)?, &places, run)
        }
    }
}
