//! A program with its input, run natively and under sevlab in fresh folders, and everything it did compared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::{Mode, Outcome, TIMEOUT, run_for, sevlab_run, show};

/// A program with its input.
#[derive(Clone, Default)]
pub struct Case {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub stdin: Vec<u8>,
    /// Files in its folder, by name; a name may have folders in it.
    pub files: Vec<(String, Vec<u8>)>,
    /// More options for sevlab.
    pub options: Vec<&'static str>,
}

impl Case {
    pub fn new(program: impl Into<PathBuf>, args: &[&str]) -> Self {
        Self {
            program: program.into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            ..Self::default()
        }
    }

    pub fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = data.into();
        self
    }

    pub fn file(mut self, name: &str, data: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), data.into()));
        self
    }

    pub fn option(mut self, option: &'static str) -> Self {
        self.options.push(option);
        self
    }

    /// Runs it natively, then in each mode, and panics with every difference there is.
    pub fn check(&self, modes: &[Mode]) {
        let expected = Did::of(self, &mut Command::new(&self.program));
        assert!(
            !expected.outcome.timed_out,
            "{} takes too long natively",
            self.name()
        );
        let mut wrong = Vec::new();
        for mode in modes {
            let mut command = sevlab_run(*mode, &self.options);
            command.arg(&self.program);
            let did = Did::of(self, &mut command);
            if let Some(difference) = expected.difference(&did) {
                wrong.push(format!(
                    "under {mode} ({:.1?}): {difference}",
                    did.outcome.took
                ));
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", self.name(), wrong.join("\n"));
    }

    fn name(&self) -> String {
        format!("{} {}", self.program.display(), show(&self.args))
    }
}

/// What a run left behind.
struct Did {
    outcome: Outcome,
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Did {
    fn of(case: &Case, command: &mut Command) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, data) in &case.files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
            fs::write(&path, data).expect("an input file");
            let file = fs::File::open(&path).expect("just written");
            // Allocated blocks and times are part of what `ls -l` shows.
            file.sync_all().expect("the file reaches the disk");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000))
                .expect("a time");
        }
        command
            .args(&case.args)
            .current_dir(folder.path())
            .env("LC_ALL", "C.UTF-8")
            .env("SEVLAB_CODE_CACHE", "off")
            .env("TZ", "UTC")
            .env("PYTHONHASHSEED", "0")
            .env_remove("MALLOC_PERTURB_");
        let outcome = run_for(command, &case.stdin, TIMEOUT);
        let mut files = BTreeMap::new();
        collect(folder.path(), folder.path(), &mut files);
        Self { outcome, files }
    }

    /// The first thing that is not as here.
    fn difference(&self, other: &Self) -> Option<String> {
        let (a, b) = (&self.outcome, &other.outcome);
        let tail = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1500)..]).into_owned()
        };
        if b.timed_out {
            return Some(format!("timed out; stderr: {}", tail(&b.stderr)));
        }
        if a.code() != b.code() {
            return Some(format!(
                "status {} instead of {}; stderr: {}",
                b.code(),
                a.code(),
                tail(&b.stderr)
            ));
        }
        bytes("stdout", &a.stdout, &b.stdout)
            .map(|difference| format!("{difference}\n  stderr: {}", tail(&b.stderr)))
            .or_else(|| bytes("stderr", &a.stderr, &b.stderr))
            .or_else(|| {
                let names = |d: &Self| d.files.keys().cloned().collect::<Vec<_>>();
                let (a, b) = (names(self), names(other));
                (a != b).then(|| format!("files {b:?} instead of {a:?}"))
            })
            .or_else(|| {
                self.files.iter().zip(&other.files).find_map(
                    |((name, (mode, data)), (_, (mode2, data2)))| {
                        if mode != mode2 {
                            return Some(format!("{name} has mode {mode2:o} instead of {mode:o}"));
                        }
                        bytes(name, data, data2)
                    },
                )
            })
    }
}

fn bytes(what: &str, expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let at = expected
        .iter()
        .zip(got)
        .position(|(a, b)| a != b)
        .unwrap_or(expected.len().min(got.len()));
    let window = |b: &[u8]| {
        let from = at.saturating_sub(60).min(b.len());
        String::from_utf8_lossy(&b[from..b.len().min(at + 200)]).into_owned()
    };
    Some(format!(
        "{what} differs at byte {at} ({} bytes instead of {}):\n  expected ...{:?}\n  got      ...{:?}",
        got.len(),
        expected.len(),
        window(expected),
        window(got)
    ))
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
            continue;
        }
        let name = path
            .strip_prefix(root)
            .expect("below the root")
            .to_string_lossy()
            .into_owned();
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        files.insert(name, (mode, fs::read(&path).expect("readable")));
    }
}
