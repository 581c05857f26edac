//! `difftest`: random instructions on the host processor, the interpreter and the translator. See `docs/difftest.md`.

use clap::Parser;
use sevlab_difftest::coverage;
use sevlab_difftest::drive::{self, Plan};
use sevlab_difftest::forms::Forms;
use sevlab_difftest::known::REASONS;
use sevlab_difftest::rig::Engines;
use sevlab_difftest::shared::{Shared, WORKERS};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Runs random instructions natively, in the interpreter and in the translator, and compares what they leave behind.
///
/// Exit code: 0 if all agree, 1 if something differs, 2 for wrong usage.
#[derive(Parser)]
#[command(name = "difftest")]
struct Args {
    /// Stop after so many seconds (60 if neither this nor --cases is given).
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Stop after so many cases.
    #[arg(long, value_name = "N")]
    cases: Option<u64>,
    /// Where random numbers begin, in hexadecimal or decimal; from the clock by default.
    #[arg(long, value_name = "S", value_parser = number)]
    seed: Option<u64>,
    /// Worker processes; as many as there are processors by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Only the table's row of this name, as iced spells it (Add_rm32_r32).
    #[arg(long, value_name = "CODE")]
    row: Option<String>,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "SUBSTR")]
    filter: Option<String>,
    /// Engines to compare; the first of them in this order is the reference.
    #[arg(long, value_name = "LIST", default_value = "native,interp,jit-off,jit-on", value_parser = Engines::parse)]
    engines: Engines,
    /// Translate one case in so many; 0: none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    share: u64,
    /// Write each row's counts here: JSON if the name ends in .json, else tab-separated.
    #[arg(long, value_name = "FILE")]
    coverage: Option<PathBuf>,
    /// Where failing cases are written.
    #[arg(long, value_name = "DIR", default_value = "difftest/regress/new")]
    regress: PathBuf,
    /// Run the cases of these files instead.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    replay: Vec<PathBuf>,
    /// Stop after so many different failures.
    #[arg(long, value_name = "N", default_value_t = 50)]
    failures: u64,
}

fn number(s: &str) -> Result<u64, String> {
    match s.strip_prefix("0x") {
        Some(h) => u64::from_str_radix(h, 16),
        None => s.parse(),
    }
    .map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.replay.is_empty() {
        return match drive::replay(&args.replay, args.engines, false) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(n) => {
                eprintln!("{n} of {} differ", args.replay.len());
                ExitCode::from(1)
            }
            Err(e) => usage(&e.to_string()),
        };
    }
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if threads == 0 || threads > WORKERS {
        return usage(&format!("--threads: 1 to {WORKERS}"));
    }
    let plan = Plan {
        seconds: args.seconds.or(args.cases.is_none().then_some(60)),
        cases: args.cases,
        seed: args.seed.unwrap_or_else(drive::fresh_seed),
        threads,
        row: args.row,
        filter: args.filter,
        engines: args.engines,
        share: args.share,
        regress: args.regress,
        failures: args.failures,
    };
    let shared = match Shared::new() {
        Ok(s) => s,
        Err(e) => return usage(&format!("shared memory: {e}")),
    };
    let forms = Forms::new();
    eprintln!(
        "seed {:#x}, {threads} workers, engines {}, one case in {} translated",
        plan.seed,
        plan.engines.names().join(" "),
        plan.share
    );
    let started = Instant::now();
    if let Err(e) = drive::run(&plan, &forms, shared) {
        return usage(&e.to_string());
    }
    let narrowed = plan.row.is_some() || plan.filter.is_some();
    summary(shared, &forms, started.elapsed().as_secs_f64(), narrowed);
    if let Some(path) = &args.coverage {
        let rows = coverage::report(&forms, shared, false);
        let json = path.extension().is_some_and(|e| e == "json");
        let text = if json {
            coverage::json(&rows)
        } else {
            coverage::tsv(&rows)
        };
        if let Err(e) = std::fs::write(path, text) {
            return usage(&format!("{}: {e}", path.display()));
        }
    }
    if shared.failed.load(Ordering::Relaxed) == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn usage(what: &str) -> ExitCode {
    eprintln!("difftest: {what}");
    ExitCode::from(2)
}

fn summary(shared: &Shared, forms: &Forms, seconds: f64, narrowed: bool) {
    let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    let n = get(&shared.cases);
    println!(
        "{n} cases in {seconds:.1} s ({:.0}/s): {} differ ({} kinds), {} did not end",
        n as f64 / seconds,
        get(&shared.failed),
        get(&shared.different),
        get(&shared.endless)
    );
    let insns = get(&shared.translated_insns[0]);
    println!(
        "translated: {} cases, {:.1}% of {insns} instructions in their last runs; {} regions refused; \
         sticky MXCSR flags alone differ with everything on in {} cases",
        get(&shared.translated_cases),
        100.0 - 100.0 * get(&shared.translated_insns[1]) as f64 / insns.max(1) as f64,
        get(&shared.refused),
        get(&shared.sticky)
    );
    for (known, why) in REASONS {
        let n = get(&shared.known[known as usize]);
        if n != 0 {
            println!("known: {n} cases: {why}");
        }
    }
    if !narrowed {
        print!(
            "{}",
            coverage::summary(&coverage::report(forms, shared, false))
        );
    }
}
