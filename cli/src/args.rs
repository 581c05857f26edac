//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sevlab_machine::kernel::syscall::strace;
use sevlab_machine::{CacheMode, CipherKind, CpuPreset, SevMode};
use sevlab_memctl::MIN_RESIDENT;

use crate::jit_opt::JitOpt;
use crate::{bench, report, study, workloads};

const RUN_EXAMPLES: &str = "\
Examples:
  sevlab run -- ls -l
      Run ls in unencrypted simulated memory.
  sevlab run --sev snp --stats -- xz -9 -k -T1 FILE
      Run xz as an SEV-SNP guest; print counts and the launch measurement to stderr.
  sevlab run --sev es --cipher aes256-xts --report run.json -- sha256sum FILE
      Another mode and cipher; keep the run's configuration, measurement and counts as JSON.
  sevlab run --sev snp --dump-dram dram.bin -- sh -c 'echo done'
      Keep what a probe on the memory bus would see when the guest has ended.
  sevlab run --strace=calls.txt --strace-only %file -- cat FILE
      Which files the guest asks for, as strace would print it.
  sevlab run --sev sev --cache none -- true
      The worst case: AES on every access to encrypted memory.
  sevlab run --sev snp --cache hierarchy --model epyc-genoa --set latency.aes_ns=12 --stats -- sort FILE
      Simulated caches: what encryption costs this program, in cycles that every run repeats.
  sevlab run --sev snp --resident 4096 --stats -- sort FILE
      At most 16 MiB of plaintext at any time, so that encryption traffic never ends.

Exit status:
  That of the guest. If a signal killed the guest, sevlab dies of the same signal.
  125  sevlab itself failed        126  PROGRAM is there, but can't be run
  2    wrong usage                 127  PROGRAM was not found

Environment:
  SEVLAB_LOG=debug (or info, trace, sevlab::jit=debug, ...) prints sevlab's own log to stderr.
  SEVLAB_CODE_CACHE=FOLDER (or off) is what --code-cache is if it is not given.";

const EXAMPLES: &str = "\
Start with:
  sevlab doctor
  sevlab run --sev snp --stats -- ls -l

docs/guide.md explains every option and every number that is printed.";

/// Runs unmodified x86-64 Linux programs in simulated AMD SEV memory: what the program sees is plaintext, what lies
/// in DRAM is ciphertext under the key of its ASID.
#[derive(Parser, Debug)]
#[command(name = "sevlab", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a program as the guest of a simulated machine
    #[command(after_help = RUN_EXAMPLES, override_usage = "sevlab run [OPTIONS] -- PROGRAM [ARGS]...")]
    Run(Box<RunArgs>),
    /// Tell what this host offers, what is missing, and what that costs
    Doctor,
    /// List, show and check what `--cache hierarchy` simulates
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run programs on simulated machines, all combinations of a file, and keep what was counted
    #[command(after_help = study::EXAMPLES)]
    Study(study::StudyArgs),
    /// Draw what a study has counted: a page, and figures for a paper
    #[command(after_help = report::EXAMPLES)]
    Report(report::ReportArgs),
    /// Measure this build on the workloads, and compare it with an earlier one
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// What ends a study's runs if the study is killed
    #[command(name = sevlab_study::guard::COMMAND, hide = true)]
    StudyGuard,
    /// What an element of a job array runs
    #[command(name = sevlab_study::slurm::COMMAND, hide = true)]
    StudyTask(study::TaskArgs),
    /// List the workloads of studies, show one, run and check one
    #[command(after_help = workloads::EXAMPLES)]
    Workloads(workloads::WorkloadsArgs),
}

const CONFIG_EXAMPLES: &str = "\
Examples:
  sevlab config show epyc-milan > mine.toml
      A whole configuration, each figure with its source, to be edited.
  sevlab config show epyc-milan --set l1d.ways=16 --set l1d.size=64KiB
      What these settings make of it.
  printf '%s\\n' 'base = \"epyc-milan\"' '[latency]' 'aes_ns = 30' > slow.toml
  sevlab config check slow.toml && sevlab run --cache hierarchy --model slow.toml -- ls
      A file of three lines that says only what differs.

docs/model.md says what each key means.";

/// `sevlab config`.
#[derive(Subcommand, Debug)]
#[command(after_help = CONFIG_EXAMPLES)]
pub enum ConfigCommand {
    /// List the presets
    List,
    /// Print a preset or a file as TOML, with every key, its value and the source of the figure
    #[command(after_help = CONFIG_EXAMPLES)]
    Show {
        /// A preset (sevlab config list) or a TOML file
        #[arg(value_name = "PRESET|FILE")]
        model: String,

        /// Change one key, such as latency.aes_ns=12 or l1d.size=64KiB; may be given more than once
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,

        /// JSON instead of TOML: all values, no comments
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong with a file, with its line; or what it changes
    #[command(after_help = CONFIG_EXAMPLES)]
    Check {
        /// A TOML file, or a preset
        #[arg(value_name = "FILE")]
        model: String,

        /// Change one key first; may be given more than once
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
}

/// `sevlab run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// What protects the guest
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        default_value = "off",
        help_heading = "Machine"
    )]
    pub sev: Protection,

    /// The memory controller's cipher: aes128-xe, aes128-xex or aes256-xts
    #[arg(long, value_name = "CIPHER", default_value = "aes128-xex", value_parser = cipher, help_heading = "Machine")]
    pub cipher: CipherKind,

    /// How much of encrypted memory is kept as plaintext once it was touched
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "page",
        help_heading = "Machine"
    )]
    pub cache: Cache,

    /// With --cache hierarchy: the simulated caches, TLBs, latencies and core: a preset (`sevlab config list`) or a TOML
    /// file; without it: epyc-milan
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Machine")]
    pub model: Option<String>,

    /// Change one key of the model, as latency.aes_ns=12; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Machine")]
    pub set: Vec<String>,

    /// The processor that the guest is shown: epyc-rome (Zen 2), epyc-milan (Zen 3), epyc-genoa (Zen 4, without AVX-512),
    /// or host, everything that this host and sevlab can run. An instruction that it lacks is an invalid opcode.
    /// Without it: host, or with --cache hierarchy the model's or epyc-milan
    #[arg(long, value_name = "PRESET", help_heading = "Machine")]
    pub cpu: Option<CpuPreset>,

    /// Guest memory: bytes, or with a suffix K, M, G or T (powers of 1024)
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size, help_heading = "Machine")]
    pub memory: u64,

    /// Keep at most this many encrypted pages (4 KiB) as plaintext; the others are encrypted back into DRAM. Without
    /// it there is no limit
    #[arg(long, value_name = "PAGES", value_parser = resident, help_heading = "Machine")]
    pub resident: Option<usize>,

    /// Make keys, nonces and tweaks from this number, so that a run's ciphertext can be repeated. Without it they
    /// are random. With --cache hierarchy all that is random in the guest comes from it, and it is 1 without the option
    #[arg(long, value_name = "NUMBER", help_heading = "Machine")]
    pub seed: Option<u64>,

    /// With --cache hierarchy: kill the guest with SIGXCPU after about that many instructions (each of its processes by its
    /// own count)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Machine")]
    pub limit_instructions: Option<u64>,

    /// Run the guest's threads one at a time, in turns that are the same in every run. Without it they run in parallel,
    /// each on a host thread of its own
    #[arg(long, help_heading = "Machine")]
    pub deterministic: bool,

    /// Translate hot guest code (on), or interpret all of it (off)
    #[arg(
        long,
        value_enum,
        value_name = "on|off",
        default_value = "on",
        help_heading = "Translator"
    )]
    pub jit: Switch,

    /// Set one of the translator's options; may be given more than once. `--jit-opt help` lists them
    #[arg(long, value_name = "KEY=VALUE", value_parser = JitOpt::parse, help_heading = "Translator")]
    pub jit_opt: Vec<JitOpt>,

    /// Keep translations in files in this folder, so that a later run of the program starts with them; or off. Without the
    /// option: what SEVLAB_CODE_CACHE says, else sevlab/code in $XDG_CACHE_HOME or ~/.cache
    #[arg(long, value_name = "FOLDER|off", help_heading = "Translator")]
    pub code_cache: Option<PathBuf>,

    /// Bytes of that folder; the files that were not used for longest are removed
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size, help_heading = "Translator")]
    pub code_cache_size: u64,

    /// Print counts to stderr when the guest has ended
    #[arg(long, help_heading = "Results")]
    pub stats: bool,

    /// With --cache hierarchy: interpret all of the guest and simulate every access once more, by the slow reference. If any
    /// count differs, say which and exit with 125. A hundred times slower
    #[arg(long, help_heading = "Results")]
    pub check: bool,

    /// Write configuration, launch, measurement and counts to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub report: Option<PathBuf>,

    /// Write all of DRAM as a bus probe sees it to this file when the guest has ended
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub dump_dram: Option<PathBuf>,

    /// Print every system call of the guest to stderr, or to FILE, in the form of strace(1)
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        help_heading = "Results"
    )]
    pub strace: Option<Option<PathBuf>>,

    /// With --strace: only these calls. Names and the classes %file, %desc, %memory, %network, %process and %signal,
    /// separated by commas; with ! before the list, all others
    #[arg(long, value_name = "CALLS", requires = "strace", value_parser = calls, help_heading = "Results")]
    pub strace_only: Option<String>,

    /// The program, looked up in PATH as a shell does, and its arguments
    #[arg(
        value_name = "PROGRAM",
        required_unless_present = "jit_opt",
        trailing_var_arg = true
    )]
    pub command: Vec<OsString>,
}

/// `--sev`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Protection {
    /// No encryption
    Off,
    /// Encrypted memory
    Sev,
    /// Encrypted memory and registers (SEV-ES)
    Es,
    /// Encrypted memory and registers, and page ownership in the RMP (SEV-SNP)
    Snp,
}

impl From<Protection> for SevMode {
    fn from(mode: Protection) -> Self {
        match mode {
            Protection::Off => Self::Off,
            Protection::Sev => Self::Sev,
            Protection::Es => Self::Es,
            Protection::Snp => Self::Snp,
        }
    }
}

/// `--cache`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Cache {
    /// Whole pages: AES once for a page brought in or pushed out
    Page,
    /// Nothing: AES on every access to encrypted memory
    None,
    /// Lines, in simulated caches: their misses and what encryption costs are counted in cycles, and the guest lives in
    /// simulated time
    Hierarchy,
}

impl From<Cache> for CacheMode {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Page => Self::Page,
            Cache::None => Self::None,
            Cache::Hierarchy => Self::Hierarchy,
        }
    }
}

/// `--jit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

fn cipher(text: &str) -> Result<CipherKind, String> {
    text.parse().map_err(|_| {
        let names = CipherKind::ALL.map(|kind| kind.to_string());
        format!("the ciphers are {}", names.join(", "))
    })
}

/// The least guest memory that a dynamically linked program starts in.
const MIN_MEMORY: u64 = 16 << 20;
/// The most: guest physical addresses have 43 bits here.
const MAX_MEMORY: u64 = 4 << 40;

fn calls(text: &str) -> Result<String, String> {
    strace::filter(text).map(|_| text.to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("unknown suffix \"{other}\" (K, M, G or T)")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size, such as 512M or 4G".to_owned())?;
    let bytes = number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= MAX_MEMORY);
    match bytes {
        None => Err("more than 4T".to_owned()),
        Some(bytes) if bytes < MIN_MEMORY => Err("less than 16M".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

fn resident(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(pages) if pages >= MIN_RESIDENT => Ok(pages),
        Ok(_) => Err(format!("at least {MIN_RESIDENT} pages")),
        Err(_) => Err("not a number of pages".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4G"), Ok(4 << 30));
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("20480KiB"), Ok(20 << 20));
        assert_eq!(size("33554432"), Ok(32 << 20));
        for bad in [
            "",
            "G",
            "4X",
            "1K",
            "5T",
            "-1G",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_follows_the_program_is_the_programs() {
        let cli = Cli::try_parse_from(["sevlab", "run", "--stats", "--", "xz", "--stats", "-9"])
            .expect("parses");
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        assert!(args.stats);
        assert_eq!(args.command, ["xz", "--stats", "-9"]);
        let cli = Cli::try_parse_from(["sevlab", "run", "ls", "--report"]).expect("parses");
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        assert_eq!((args.command.len(), args.report), (2, None));
    }

    #[test]
    fn a_trace_goes_to_stderr_or_to_a_file_and_takes_known_names() {
        let parse = |options: &[&str]| {
            let words = ["sevlab", "run"].iter().chain(options).chain(&["ls"]);
            Cli::try_parse_from(words).map(|cli| match cli.command {
                Command::Run(args) => args.strace,
                _ => panic!("not run"),
            })
        };
        assert_eq!(parse(&["--strace"]).expect("parses"), Some(None));
        let file = Some(Some(PathBuf::from("out")));
        assert_eq!(parse(&["--strace=out"]).expect("parses"), file);
        assert!(parse(&["--strace", "--strace-only", "%file,mmap"]).is_ok());
        assert!(parse(&["--strace", "--strace-only", "!mmap"]).is_ok());
        assert!(parse(&["--strace", "--strace-only", "nosuchcall"]).is_err());
        assert!(
            parse(&["--strace-only", "mmap"]).is_err(),
            "without --strace"
        );
    }
}
