//! Programs with little plaintext memory, or none: page tables, code and data push each other out all
//! the time, and every program still does what it does natively.
//!
//! A guest's descriptors are those of the process that runs it, and programs close their standard
//! output at the end. So each guest runs in a process of its own: this one again, as the test
//! [`guest`], told by its environment what to run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use sevlab_machine::{
    CacheMode, CipherKind, Engine, JitOptions, Machine, MachineConfig, SevMode, exit_like,
};

/// A folder that goes away with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "sevlab-pressure-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What memory a run has.
#[derive(Clone, Copy, Debug)]
struct Memory {
    sev: SevMode,
    cipher: CipherKind,
    /// Resident pages; `None`: nothing is cached.
    resident: Option<usize>,
    translated: bool,
}

impl Memory {
    fn config(self, program: &Path, args: &[&str]) -> MachineConfig {
        let mut c = MachineConfig::new(program);
        c.sev = self.sev;
        c.cipher = self.cipher;
        c.memory = 128 << 20;
        c.resident = self.resident;
        c.cache = match self.resident {
            Some(_) => CacheMode::Page,
            None => CacheMode::None,
        };
        c.engine = match self.translated {
            // Translated early and in the foreground, so that most of what runs is translated code.
            true => Engine::Jit(JitOptions {
                threshold: 8,
                background: false,
                ..JitOptions::default()
            }),
            false => Engine::Interpreter,
        };
        c.host_signals = false;
        c.envp = vec![OsString::from("LC_ALL=C")];
        c.argv
            .extend(args.iter().map(|a| OsString::from((*a).to_owned())));
        c
    }
}

/// Every kind of memory, each with a mode, a cipher and an engine.
fn memories() -> Vec<Memory> {
    let ciphers = [
        CipherKind::Aes128Xe,
        CipherKind::Aes128Xex,
        CipherKind::Aes256Xts,
    ];
    let mut all = Vec::new();
    for (i, resident) in [Some(64), Some(256), Some(4096), None]
        .into_iter()
        .enumerate()
    {
        for (k, cipher) in ciphers.into_iter().enumerate() {
            all.push(Memory {
                sev: [SevMode::Sev, SevMode::Snp][(i + k) % 2],
                cipher,
                resident,
                translated: k != 1,
            });
        }
    }
    all
}

/// Runs `program` natively and in every memory; `out` must be the same each time.
fn same(program: &str, args: &[&str], out: &str, folder: &Folder) {
    let path = PathBuf::from(program);
    if !path.exists() {
        eprintln!("{program} is not installed: skipped");
        return;
    }
    let file = folder.file(out);
    let native = Command::new(&path).args(args).env("LC_ALL", "C").status();
    assert!(native.expect("a native run").success());
    let wanted = std::fs::read(&file).expect("what it writes natively");
    for (number, memory) in memories().into_iter().enumerate() {
        std::fs::remove_file(&file).expect("a file of the last run");
        let counts = folder.file("counts");
        let run = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "guest", "--ignored"])
            .env(MEMORY, number.to_string())
            .env(COMMAND, [&[program], args].concat().join("\x1f"))
            .env(COUNTS, &counts)
            .output()
            .expect("a process for the guest");
        assert!(run.status.success(), "{program} {memory:?}: {run:?}");
        let got = std::fs::read(&file).expect("what the guest wrote");
        assert!(got == wanted, "{program} {memory:?}");
        let counts = std::fs::read_to_string(&counts).expect("the counts");
        let counts: Vec<u64> = counts
            .split(' ')
            .map(|n| n.parse().expect("a count"))
            .collect();
        if let Some(limit) = memory.resident {
            assert!(counts[0] <= limit as u64, "{counts:?} {program} {memory:?}");
        }
        if memory.resident == Some(64) {
            assert!(counts[1] > 100, "{counts:?} {program} {memory:?}");
        }
    }
}

/// Number of the memory that [`guest`] runs in.
const MEMORY: &str = "SEVLAB_PRESSURE_MEMORY";
/// Its program and arguments, separated by 0x1f.
const COMMAND: &str = "SEVLAB_PRESSURE_COMMAND";
/// The file for its peak residency and its evictions.
const COUNTS: &str = "SEVLAB_PRESSURE_COUNTS";

#[test]
#[ignore = "run by the other tests"]
fn guest() {
    let variable = |name| std::env::var(name).expect("told by the environment");
    let number: usize = variable(MEMORY).parse().expect("a number");
    let command = variable(COMMAND);
    let command: Vec<&str> = command.split('\x1f').collect();
    let memory = memories()[number];
    let config = memory.config(Path::new(command[0]), &command[1..]);
    let mut machine = Machine::new(config).expect("a machine");
    let outcome = machine.run().expect("the guest ends");
    let s = outcome.stats.memory;
    let counts = format!("{} {}", s.peak_resident, s.evictions);
    std::fs::write(variable(COUNTS), counts).expect("the counts are written");
    exit_like(outcome.exit)
}

fn text(lines: u32) -> String {
    (0..lines)
        .map(|i| {
            format!(
                "{} line {i} of {lines}\n",
                i.wrapping_mul(2_654_435_761) % 10_007
            )
        })
        .collect()
}

#[test]
fn sort() {
    let folder = Folder::new();
    let (input, output) = (folder.file("in"), folder.file("out"));
    std::fs::write(&input, text(2000)).expect("an input");
    let (i, o) = (input.to_string_lossy(), output.to_string_lossy());
    same("/usr/bin/sort", &["-n", "-o", &o, &i], "out", &folder);
}

#[test]
fn compressors() {
    for (program, args, suffix) in [
        ("/usr/bin/gzip", &["-n9kf"][..], ".gz"),
        ("/usr/bin/bzip2", &["-1kf"], ".bz2"),
        ("/usr/bin/xz", &["-0kf", "-T1"], ".xz"),
    ] {
        let folder = Folder::new();
        let input = folder.file("in");
        std::fs::write(&input, text(800)).expect("an input");
        let i = input.to_string_lossy();
        let args = [args, &[&*i]].concat();
        same(program, &args, &format!("in{suffix}"), &folder);
    }
}

#[test]
fn an_interpreter() {
    let folder = Folder::new();
    let output = folder.file("out");
    let script = format!(
        "my %c; $c{{$_ * $_ % 97}} .= chr(65 + $_ % 26) for 1 .. 3000; my $t = join ',', map {{ \"$_=$c{{$_}}\" }} \
         sort {{ $a <=> $b }} keys %c; $t =~ s/(A)(.)/$2$1/g; open my $f, '>', '{}'; printf $f \"%s %.9f\\n\", $t, sin 3;",
        output.display()
    );
    same("/usr/bin/perl", &["-e", &script], "out", &folder);
}
