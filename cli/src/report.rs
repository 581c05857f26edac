//! `sevlab report`: results as a page and figures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use sevlab_study::{Error, report};

use crate::failure::Failure;

/// What stands under `sevlab report --help`.
pub const EXAMPLES: &str = "\
Examples:
  sevlab report quick-results
      quick-results/report.html, one file that needs no network, and quick-results/figures/*.svg and *.png.
  sevlab report aes-results --out paper/aes.html
      The page there, its figures in paper/figures.
  sevlab report --compare before after
      after/compare.html: the runs that both have, with every difference marked.

docs/report.md says what each figure and table shows.";

/// `sevlab report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// The folder of a study's results
    #[arg(
        value_name = "DIR",
        required_unless_present = "compare",
        conflicts_with = "compare"
    )]
    pub dir: Option<PathBuf>,

    /// The page; without it DIR/report.html (B/compare.html). Figures go to the folder figures beside it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Compare the results in folder B with those in folder A
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Option<Vec<PathBuf>>,
}

/// Writes the page.
pub fn report(args: &ReportArgs) -> Result<ExitCode, Failure> {
    let written = match (args.compare.as_deref(), &args.dir) {
        (Some([a, b]), _) => {
            let page = out(args, b, "compare.html");
            let names = [a.display().to_string(), b.display().to_string()];
            let names = [names[0].as_str(), names[1].as_str()];
            report::compare::write(&report::read(a)?, &report::read(b)?, names, &page)?
        }
        (_, Some(dir)) => report::write(&report::read(dir)?, &out(args, dir, report::REPORT))?,
        _ => return Err(Error::Other("no folder was named".to_owned()).into()),
    };
    for file in written {
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn out(args: &ReportArgs, dir: &Path, name: &str) -> PathBuf {
    args.out.clone().unwrap_or_else(|| dir.join(name))
}
