//! `sevlab doctor`: what this host offers, what is missing, and what that costs. Everything said is tried, not assumed.

mod cpu;
mod host;
mod speed;

use std::fmt;
use std::process::ExitCode;

use crate::failure::Failure;

/// What a finding means for runs on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// As it should be.
    Good,
    /// A fact, neither good nor bad.
    Plain,
    /// Works, with a cost that the note names.
    Costs,
    /// `sevlab run` can't work.
    Fatal,
}

/// One line of the report.
struct Finding {
    what: &'static str,
    value: String,
    verdict: Verdict,
    /// What it costs or how to change it; may be empty.
    note: String,
}

impl Finding {
    fn new(
        what: &'static str,
        verdict: Verdict,
        value: impl Into<String>,
        note: impl Into<String>,
    ) -> Self {
        Self {
            what,
            value: value.into(),
            verdict,
            note: note.into(),
        }
    }

    fn plain(what: &'static str, value: impl Into<String>) -> Self {
        Self::new(what, Verdict::Plain, value, "")
    }

    /// Good if `yes`, else with a cost.
    fn check(what: &'static str, yes: bool, value: impl Into<String>, otherwise: &str) -> Self {
        if yes {
            Self::new(what, Verdict::Good, value, "")
        } else {
            Self::new(what, Verdict::Costs, value, otherwise)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Plain => "",
            Verdict::Costs => "!",
            Verdict::Fatal => "FAIL",
        };
        writeln!(f, "{mark:>4}  {:<26} {}", self.what, self.value)?;
        if !self.note.is_empty() {
            writeln!(f, "      {:<26} {}", "", self.note)?;
        }
        Ok(())
    }
}

/// Prints the report. The exit status is 0 if guests can run here, and 125 if not.
pub fn doctor() -> Result<ExitCode, Failure> {
    println!("sevlab {}", env!("CARGO_PKG_VERSION"));
    let mut all = Vec::new();
    for (title, section) in [
        ("Host", host::machine as fn() -> Vec<Finding>),
        ("Memory encryption (what AES costs here)", speed::section),
        ("What a guest's CPUID shows (x86-64-v3)", cpu::section),
        ("Host kernel", host::kernel),
        ("Performance counters", host::counters),
    ] {
        println!("\n{title}");
        let findings = section();
        for finding in &findings {
            print!("{finding}");
        }
        all.extend(findings);
    }
    let count = |verdict| all.iter().filter(|f| f.verdict == verdict).count();
    let (fatal, costs) = (count(Verdict::Fatal), count(Verdict::Costs));
    println!();
    if fatal > 0 {
        println!("Guests can't run here: see FAIL above.");
        return Ok(ExitCode::from(125));
    }
    match costs {
        0 => println!("Guests can run here, and nothing is missing."),
        1 => println!("Guests can run here; one thing is missing or costs something (!)."),
        n => println!("Guests can run here; {n} things are missing or cost something (!)."),
    }
    Ok(ExitCode::SUCCESS)
}
