//! `sevlab bench`: this build beside an earlier one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use perf_event::events::Hardware;
use perf_event::{Builder, Counter as Perf};
use sevlab_study::bench::{self, Allowed, Case, Counter, EXACT, Measured, Options};
use sevlab_study::numbers::short;
use sevlab_study::store::replace;
use sevlab_study::{Error, os, table};

use crate::failure::Failure;

/// What stands under `sevlab bench --help`.
pub const EXAMPLES: &str = "\
Examples:
  sevlab bench --save before.json
      Measure this build, and keep it.
  sevlab bench --baseline before.json
      Measure another build, and fail if an exact count has grown by more than 0.1 %.
  sevlab bench --baseline before.json --fail-above 2% --fail-wall-above 10%
      With other limits; wall-clock counts only beyond its confidence interval.
  sevlab bench --runs 0 --save benches/baseline.json
      Exact counts alone, for the gate of .ci/run.

Exit status:
  0  nothing is worse than allowed, or nothing can be compared (another compiler, C library or processor than the baseline's: it is said)
  1  something is worse, or the baseline is out of date (a program has changed, or is not in it); each is named
  125  a workload could not be measured";

/// `sevlab bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Compare with what an earlier bench has saved
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Save the measurements
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// By how much an exact count may grow
    #[arg(long, value_name = "PERCENT", default_value = "0.1%", value_parser = percent, requires = "baseline")]
    pub fail_above: f64,

    /// By how much wall-clock may grow, beyond its confidence interval; without it wall-clock is only shown
    #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "baseline")]
    pub fail_wall_above: Option<f64>,

    /// Runs of each workload for wall-clock; 0: none, exact counts alone
    #[arg(long, value_name = "N", default_value = "5", value_parser = runs)]
    pub runs: u16,

    /// Only these workloads
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    number
        .parse::<f64>()
        .ok()
        .filter(|n| (0.0..=1000.0).contains(n))
        .map(|n| n / 100.0)
        .ok_or_else(|| "not a percentage, such as 2%".to_owned())
}

fn runs(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|n| *n != 1 && *n <= 1000)
        .ok_or_else(|| "0, or 2 to 1000: one run has no confidence interval".to_owned())
}

/// Host instructions of this process's children.
struct Host {
    counter: Option<Perf>,
    before: u64,
}

impl Host {
    fn new() -> Result<Self, std::io::Error> {
        let mut builder = Builder::new().kind(Hardware::INSTRUCTIONS);
        builder.attrs_mut().set_inherit(1);
        let mut counter = builder.build()?;
        counter.enable()?;
        Ok(Self {
            counter: Some(counter),
            before: 0,
        })
    }
}

impl Counter for Host {
    fn start(&mut self) {
        self.before = self
            .counter
            .as_mut()
            .and_then(|c| c.read().ok())
            .unwrap_or(0);
    }

    fn read(&mut self) -> Option<u64> {
        let now = self.counter.as_mut()?.read().ok()?;
        Some(now.saturating_sub(self.before)).filter(|n| *n > 0)
    }
}

/// Measures, compares, says what is worse.
pub fn bench(args: &BenchArgs) -> Result<ExitCode, Failure> {
    os::take_signals();
    let before = args.baseline.as_deref().map(bench::read).transpose()?;
    let none = || Host {
        counter: None,
        before: 0,
    };
    let mut counter = if args.runs == 0 {
        none()
    } else {
        Host::new().unwrap_or_else(|e| {
            eprintln!(
                "no hardware counters here ({e}): host instructions are not counted, only time is"
            );
            none()
        })
    };
    let options = Options {
        workloads: args.workloads.clone(),
        runs: usize::from(args.runs),
    };
    let now = bench::measure(&options, &mut counter, &mut |name| eprintln!("{name} ..."))?;
    print!("{}", shown(&now, before.as_ref()));
    if let Some(path) = &args.save {
        replace(path, bench::to_json(&now).as_bytes()).map_err(Error::file("writing", path))?;
    }
    let Some(before) = before else {
        return Ok(ExitCode::SUCCESS);
    };
    let allowed = Allowed {
        exact: args.fail_above,
        wall: args.fail_wall_above,
    };
    let verdict = bench::compare(&now, &before, allowed);
    for note in &verdict.notes {
        eprintln!("note: {note}");
    }
    if !verdict.stale.is_empty() {
        println!("\nthe baseline is out of date (sevlab bench --save makes another):");
        for what in &verdict.stale {
            println!("  {what}");
        }
    }
    if !verdict.culprits.is_empty() {
        println!("\nworse than the baseline:");
        for culprit in &verdict.culprits {
            println!("  {culprit}");
        }
    }
    if !verdict.stale.is_empty() || !verdict.culprits.is_empty() {
        return Ok(ExitCode::from(1));
    }
    if verdict.compared == 0 {
        println!("\nNOTHING WAS COMPARED with the baseline: see the notes");
    } else {
        let n = verdict.compared;
        println!(
            "\nnothing is worse than the baseline by more than allowed ({n} exact counts compared)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The measurements as a table; with an earlier one's beside them, what changed.
fn shown(now: &Measured, before: Option<&Measured>) -> String {
    let mut head = vec!["workload".to_owned()];
    head.extend(EXACT.iter().map(|(name, _)| (*name).to_owned()));
    head.extend(["wall ms".to_owned(), "host insns run".to_owned()]);
    let mut rows = vec![head];
    for (name, case) in &now.workloads {
        let old = before.and_then(|b| b.workloads.get(name));
        let old = old.filter(|o| o.program == case.program);
        rows.push(row(name, case, old));
    }
    let mut text = table::aligned(&rows, false);
    text.push('\n');
    for (name, what) in EXACT {
        text.push_str(&format!("{name}: {what}\n"));
    }
    text.push_str(
        "wall: of the guest in cache mode page under SEV-SNP, mean and 95 % confidence interval\n",
    );
    text
}

fn row(name: &str, case: &Case, old: Option<&Case>) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    for (count, _) in EXACT {
        let n = case.exact.get(count).copied().unwrap_or(0);
        let change = old
            .and_then(|o| o.exact.get(count))
            .map_or(String::new(), |o| {
                if *o == n {
                    " =".to_owned()
                } else {
                    format!(" {:+.3}%", (n as f64 / (*o).max(1) as f64 - 1.0) * 100.0)
                }
            });
        row.push(format!("{}{change}", short(n)));
    }
    row.push(case.wall.map_or("-".to_owned(), |wall| {
        let before = old.and_then(|o| o.wall);
        let change = before.map_or(String::new(), |o| {
            format!(" {:+.1}%", (wall.mean / o.mean - 1.0) * 100.0)
        });
        format!(
            "{:.1} \u{b1} {:.1}{change}",
            wall.mean * 1e3,
            wall.half * 1e3
        )
    }));
    row.push(case.host_instructions.map_or("-".to_owned(), short));
    row
}
