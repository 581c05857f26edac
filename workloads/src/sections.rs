//! A guest program as a list of sections. Each checks one thing and prints one line, which is the same in every run,
//! so that a native run and an emulated one can be compared byte by byte. What is wrong ends the program with status 1
//! and a message that names the section.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// One thing a program checks.
pub struct Section {
    /// What `--only` calls it.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Does it, and returns the rest of its output line. Panics when something is wrong.
    pub run: fn(&Settings) -> String,
}

/// A program of sections.
pub struct Program {
    /// Its name, for messages.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// In the order in which they run.
    pub sections: &'static [Section],
    /// The settings without options.
    pub defaults: Settings,
    /// How long a run may take (with [`Watchdog::Alarm`], a section of it).
    pub limit: Duration,
    /// Who ends it then.
    pub watchdog: Watchdog,
}

/// Who ends a program that hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watchdog {
    /// A thread.
    Thread,
    /// SIGALRM, so that the program begins with one thread. A section that has its own use for it has no watchdog.
    Alarm,
}

/// What the options set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often a section repeats its main step; sections with costly steps divide it.
    pub count: u64,
    /// How many threads it starts where it starts many.
    pub threads: usize,
    /// For how long sections repeat themselves that go by time, all together.
    pub seconds: f64,
    /// Whether counts that differ from run to run go to standard error.
    pub verbose: bool,
}

/// The section that runs, for the messages of other threads.
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PROGRAM: OnceLock<&'static Program> = OnceLock::new();

/// Ends the process at once, without running anything of its own.
pub fn die(status: i32) -> ! {
    crate::sys::exit_now(status)
}

/// Handles the options, runs the sections and returns.
pub fn main(program: &'static Program) {
    std::panic::set_hook(Box::new(|info| {
        let section = program.sections[CURRENT.load(Ordering::Relaxed)].name;
        let text = info
            .payload()
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| info.payload().downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        let line = info.location().map_or(0, std::panic::Location::line);
        eprintln!("{}: {section}: {text} (line {line})", program.name);
        die(1);
    }));
    PROGRAM.get_or_init(|| program);
    let (settings, only) = options(program);
    if program.watchdog == Watchdog::Thread {
        crate::sys::watchdog(program.limit, || hangs());
    }
    for (at, section) in program.sections.iter().enumerate() {
        if only.is_empty() || only.iter().any(|o| o == section.name) {
            CURRENT.store(at, Ordering::Relaxed);
            if program.watchdog == Watchdog::Alarm {
                crate::sys::handle(libc::SIGALRM, 0, alarm);
                crate::sys::alarm(program.limit.as_secs() as u32);
            }
            println!("{}: {}", section.name, (section.run)(&settings));
        }
    }
}

fn hangs() -> ! {
    let text = PROGRAM.get().map_or(String::new(), |program| {
        let section = program.sections[CURRENT.load(Ordering::Relaxed)].name;
        let (name, limit) = (program.name, program.limit);
        format!("{name}: {section}: hangs (no end within {limit:?})\n")
    });
    crate::sys::write(2, text.as_bytes());
    die(1)
}

extern "C" fn alarm(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    hangs();
}

fn options(program: &Program) -> (Settings, Vec<String>) {
    let mut settings = program.defaults;
    let mut only = Vec::new();
    let mut args = std::env::args().skip(1);
    let usage = |message: String| -> ! {
        eprintln!("{}: {message} (see --help)", program.name);
        die(2);
    };
    while let Some(arg) = args.next() {
        if arg == "--help" || arg == "-h" {
            help(program);
            die(0);
        }
        if arg == "--verbose" {
            settings.verbose = true;
            continue;
        }
        let Some(value) = args.next() else {
            usage(format!("{arg} wants a value or is unknown"));
        };
        let bad = || -> ! { usage(format!("{arg} {value}: not a number that it takes")) };
        match arg.as_str() {
            "--count" => settings.count = value.parse().unwrap_or_else(|_| bad()),
            "--threads" => match value.parse() {
                Ok(n @ 1..=256) => settings.threads = n,
                _ => bad(),
            },
            "--seconds" => match value.parse() {
                Ok(s) if (0.0..1e6).contains(&s) => settings.seconds = s,
                _ => bad(),
            },
            "--only" => {
                for name in value.split(',') {
                    if !program.sections.iter().any(|s| s.name == name) {
                        usage(format!("no section named {name:?}"));
                    }
                    only.push(name.to_owned());
                }
            }
            _ => usage(format!("unknown option {arg}")),
        }
    }
    (settings, only)
}

fn help(program: &Program) {
    let d = program.defaults;
    println!("{}: {}\n", program.name, program.about);
    println!(
        "usage: {} [--only NAME,...] [--count N] [--threads N] [--seconds S] [--verbose]\n",
        program.name
    );
    println!("  --only      these sections instead of all");
    println!(
        "  --count     repetitions, where a section counts them (default {})",
        d.count
    );
    println!(
        "  --threads   threads, where it starts many (default {})",
        d.threads
    );
    println!(
        "  --seconds   time, where a section goes by time, for all together (default {})",
        d.seconds
    );
    println!("  --verbose   counts that differ from run to run, on standard error");
    println!("\nsections:");
    for section in program.sections {
        println!("  {:<12} {}", section.name, section.about);
    }
    println!("\nOne line for each section; status 1 and a message if something is wrong.");
}
