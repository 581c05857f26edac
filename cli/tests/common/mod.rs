//! What the end-to-end tests share: running programs natively and under sevlab, and comparing what they did.
#![allow(dead_code)] // each test binary uses its part

pub mod compare;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Long enough for the slowest case on a slow and busy host; a hang is what it is for.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// One way to run a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    pub sev: &'static str,
    pub jit: bool,
    pub cache: &'static str,
}

impl Mode {
    pub const fn new(sev: &'static str, jit: bool, cache: &'static str) -> Self {
        Self { sev, jit, cache }
    }

    pub fn args(self) -> [&'static str; 6] {
        let jit = if self.jit { "on" } else { "off" };
        ["--sev", self.sev, "--jit", jit, "--cache", self.cache]
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.args().join(" "))
    }
}

pub const SEV: [&str; 4] = ["off", "sev", "es", "snp"];

/// Every combination of SEV mode, translator and cache mode.
pub fn all_modes() -> Vec<Mode> {
    let mut modes = Vec::new();
    for sev in SEV {
        for jit in [true, false] {
            for cache in ["page", "none"] {
                modes.push(Mode { sev, jit, cache });
            }
        }
    }
    modes
}

/// The command under test. What a former test has translated is no part of it.
pub fn sevlab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sevlab"));
    command.env("SEVLAB_CODE_CACHE", "off");
    command
}

/// `sevlab run` in a mode, with more options, up to the program.
pub fn sevlab_run(mode: Mode, options: &[&str]) -> Command {
    let mut command = sevlab();
    command.arg("run").args(mode.args()).args(options).arg("--");
    command
}

/// What a process did.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub timed_out: bool,
    pub took: Duration,
}

impl Outcome {
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Exit status, or minus the signal.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }

    /// Whether sevlab itself broke, as opposed to its guest.
    pub fn is_broken(&self) -> bool {
        let text = self.stderr_text();
        self.timed_out
            || [
                "panicked at",
                "fatal runtime error",
                "stack overflow",
                "RUST_BACKTRACE",
            ]
            .iter()
            .any(|sign| text.contains(sign))
    }
}

/// Runs a command to its end with `stdin`, and ends it itself after `timeout`.
pub fn run_for(command: &mut Command, stdin: &[u8], timeout: Duration) -> Outcome {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    let mut errors = child.stderr.take().expect("piped");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The program may well end without reading it.
            let _ = input.write_all(stdin);
        });
        let stdout = scope.spawn(move || {
            let mut all = Vec::new();
            output.read_to_end(&mut all).expect("stdout is readable");
            all
        });
        let stderr = scope.spawn(move || {
            let mut all = Vec::new();
            errors.read_to_end(&mut all).expect("stderr is readable");
            all
        });
        let mut timed_out = false;
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if start.elapsed() > timeout && !timed_out {
                timed_out = true;
                child.kill().expect("the child can be killed");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        let took = start.elapsed();
        let join = |t: std::thread::ScopedJoinHandle<'_, Vec<u8>>| {
            t.join().expect("the reader does not panic")
        };
        Outcome {
            status,
            stdout: join(stdout),
            stderr: join(stderr),
            timed_out,
            took,
        }
    })
}

/// [`run_for`] the usual time, without input.
pub fn run(command: &mut Command) -> Outcome {
    run_for(command, b"", TIMEOUT)
}

/// Where the real program of that name is: Debian's own place first, since PATH may hold wrapper scripts. `None`, with
/// a line on stderr, if it is not installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = ["/usr/bin", "/bin"]
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&path));
    let found = folders.map(|f| f.join(name)).find(|file| is_elf(file));
    if found.is_none() {
        // Not captured by the test harness: whoever reads the log is to see it.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name} is not installed");
    }
    found
}

/// GCC's compiler proper.
pub fn cc1() -> Option<PathBuf> {
    let gcc = installed("gcc")?;
    let out = Command::new(gcc)
        .arg("-print-prog-name=cc1")
        .output()
        .expect("gcc runs");
    let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    if !path.is_absolute() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: cc1 is not installed");
        return None;
    }
    Some(path)
}

fn is_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(file).and_then(|mut f| f.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// A guest program of the `workloads` room, built if need be.
pub fn workload(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let out = Command::new(env!("CARGO"))
            .args([
                "build",
                "--release",
                "--bins",
                "-p",
                "sevlab-workloads",
                "--message-format=json",
            ])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(
            out.status.success(),
            "cargo build -p sevlab-workloads failed"
        );
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let executable = text.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        });
        executable
            .expect("cargo names an executable")
            .parent()
            .expect("in a folder")
            .to_owned()
    });
    let file = folder.join(name);
    assert!(file.exists(), "{}: no such workload", file.display());
    file
}

/// Compiles a C program with the compiler driver that linking Rust programs needs anyway.
pub fn compile_c(source: &str, folder: &Path, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let cc = installed("cc").or_else(|| installed("gcc"))?;
    let (input, output) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&input, source).expect("the source can be written");
    let out = Command::new(cc)
        .args(flags)
        .arg("-o")
        .args([&output, &input])
        .output()
        .expect("cc runs");
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: cc {} can't link here: {why}",
            flags.join(" ")
        );
        return None;
    }
    Some(output)
}

/// Small, fast, repeatable random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// Text of about `size` bytes with the statistics of no language, and lines of words.
pub fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| {
            let n = 2 + random.below(8) as usize;
            (0..n).map(|_| b'a' + random.below(26) as u8).collect()
        })
        .collect();
    let mut out = Vec::with_capacity(size + 128);
    while out.len() < size {
        for i in 0..10 {
            if i > 0 {
                out.push(b' ');
            }
            // Some words are more frequent than others.
            let at = random.below(2000) * random.below(2000) / 2000;
            out.extend_from_slice(&words[at as usize]);
        }
        out.push(b'\n');
    }
    out
}

/// Numbers, one a line.
pub fn numbers(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = String::new();
    for _ in 0..count {
        out.push_str(&(random.next() as i64 >> (random.below(60))).to_string());
        out.push('\n');
    }
    out.into_bytes()
}

/// A command line in short, for messages.
pub fn show<S: AsRef<OsStr>>(argv: &[S]) -> String {
    let words: Vec<OsString> = argv.iter().map(|a| a.as_ref().to_owned()).collect();
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}
