//! From a workload in the manifest to something that can be run here: the program's file, and its inputs in a folder.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::manifest::{Case, ManifestError, Program, Size, Workload};

/// The variable that says where the binaries of this room are.
pub const VARIABLE: &str = "SEVLAB_WORKLOADS";

/// All that a workload finds in its environment, so that every run, native or emulated, begins with the same stack.
pub const ENVIRONMENT: [(&str, &str); 3] = [
    ("LC_ALL", "C"),
    ("PATH", "/usr/bin:/bin"),
    ("PYTHONHASHSEED", "0"),
];

/// Where programs are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of this room's binaries.
    pub own: PathBuf,
    /// Where `own` comes from, for messages.
    pub own_from: &'static str,
    /// As PATH has it.
    pub path: OsString,
}

/// A workload that can be run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub workload: String,
    /// Its size.
    pub size: Size,
    /// The file to be executed.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory, with its input files in it.
    pub folder: PathBuf,
    /// What it reads on standard input; None: nothing (/dev/null).
    pub stdin: Option<PathBuf>,
    /// What it prints ([`Case::sha256`]).
    pub sha256: Option<String>,
}

/// Why a workload can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The manifest has no such thing.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A binary of this room is not where it should be.
    #[error(
        "workload program {}: {why}. The programs of workloads are looked for {from}. Build them with `cargo build --release \
         -p sevlab-workloads`, or set {VARIABLE} to the folder that has them", path.display()
    )]
    OwnMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong there.
        why: String,
        /// Why there.
        from: &'static str,
    },
    /// A program is not installed.
    #[error("{program} is not installed (looked for an ELF program in /usr/bin, /bin and PATH)")]
    NotInstalled {
        /// Its name.
        program: String,
    },
    /// A program of the user's is not there.
    #[error("{}: {why}", path.display())]
    FileMissing {
        /// As the manifest has it.
        path: PathBuf,
        /// What is wrong there.
        why: String,
    },
    /// Inputs can't be written.
    #[error("{}: {source}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// What a workload printed is not what it prints.
#[derive(Debug, thiserror::Error)]
#[error("{workload}, size {size}: the output has SHA-256 {found}, where {expected} is right")]
pub struct WrongOutput {
    /// Which.
    pub workload: String,
    /// Which size.
    pub size: Size,
    /// Of what it printed.
    pub found: String,
    /// As the manifest has it.
    pub expected: String,
}

impl Places {
    /// Those of this process: `$SEVLAB_WORKLOADS`, or the folder of the running executable; and PATH.
    pub fn from_environment() -> Self {
        let beside = || {
            let exe = std::env::current_exe().ok()?;
            Some(exe.parent()?.to_owned())
        };
        let (own, own_from) = match std::env::var_os(VARIABLE) {
            Some(folder) => (PathBuf::from(folder), "where $SEVLAB_WORKLOADS says"),
            None => (beside().unwrap_or_default(), "beside the sevlab executable"),
        };
        Self {
            own,
            own_from,
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }

    /// The file of a program.
    pub fn find(&self, program: &Program) -> Result<PathBuf, ResolveError> {
        match program {
            Program::Own(name) => {
                let path = self.own.join(name);
                is_elf(&path).map_err(|why| ResolveError::OwnMissing {
                    path: path.clone(),
                    why,
                    from: self.own_from,
                })?;
                Ok(path)
            }
            Program::Installed(name) => {
                let found = match name.as_str() {
                    "cc1" => self.cc1(),
                    name => self.installed(name),
                };
                found.ok_or_else(|| ResolveError::NotInstalled {
                    program: name.clone(),
                })
            }
            Program::File(path) => {
                is_elf(path).map_err(|why| ResolveError::FileMissing {
                    path: path.clone(),
                    why,
                })?;
                Ok(path.clone())
            }
        }
    }

    /// Finds the program, and makes the inputs in a folder of `inputs` (NAME-SIZE) unless they are there already.
    pub fn prepare(
        &self,
        workload: &Workload,
        size: Size,
        inputs: &Path,
    ) -> Result<Job, ResolveError> {
        let case = workload.case(size)?;
        let program = self.find(&workload.program)?;
        let folder = inputs.join(format!("{}-{size}", workload.name));
        let fail = |path: &Path, source| ResolveError::Input {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(&folder).map_err(|e| fail(&folder, e))?;
        let folder = folder.canonicalize().map_err(|e| fail(&folder, e))?;
        for file in workload.files.iter().chain(&case.files) {
            let path = folder.join(&file.name);
            write(&path, &file.content.bytes()).map_err(|e| fail(&path, e))?;
        }
        Ok(Job {
            workload: workload.name.clone(),
            size,
            program,
            args: arguments(workload, size, case),
            stdin: workload.stdin.as_ref().map(|name| folder.join(name)),
            folder,
            sha256: case.sha256.clone(),
        })
    }

    /// Debian's own place first, since PATH may hold scripts that only call the program.
    fn installed(&self, name: &str) -> Option<PathBuf> {
        let folders = ["/usr/bin", "/bin"].map(PathBuf::from).into_iter();
        let mut files = folders
            .chain(std::env::split_paths(&self.path))
            .map(|folder| folder.join(name));
        files.find(|file| is_elf(file).is_ok())
    }

    fn cc1(&self) -> Option<PathBuf> {
        let gcc = self.installed("gcc")?;
        let out = Command::new(gcc)
            .arg("-print-prog-name=cc1")
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        // A bare name means that there is none.
        (path.is_absolute() && is_elf(&path).is_ok()).then_some(path)
    }
}

impl Job {
    /// The native run: program, arguments, folder, environment and standard input. The caller has a place for what it prints.
    pub fn native(&self) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        self.surround(&mut command)?;
        Ok(command)
    }

    /// Gives a command (`sevlab run OPTIONS -- PROGRAM ARGS`, say) the job's folder, environment and standard input.
    pub fn surround(&self, command: &mut Command) -> io::Result<()> {
        let stdin = match &self.stdin {
            Some(file) => Stdio::from(fs::File::open(file)?),
            None => Stdio::null(),
        };
        command
            .current_dir(&self.folder)
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(stdin);
        Ok(())
    }

    /// Whether it printed what it should. Fine, too, if the manifest does not say.
    pub fn check(&self, stdout: &[u8]) -> Result<(), WrongOutput> {
        let found = sha256(stdout);
        match &self.sha256 {
            Some(expected) if !expected.eq_ignore_ascii_case(&found) => Err(WrongOutput {
                workload: self.workload.clone(),
                size: self.size,
                found,
                expected: expected.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// In hexadecimal, as manifests have it.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

fn arguments(workload: &Workload, size: Size, case: &Case) -> Vec<String> {
    let common = workload.args.iter().chain(&case.args);
    common.map(|a| a.replace("{size}", size.name())).collect()
}

/// Why a file is no program, as far as its first bytes say.
fn is_elf(file: &Path) -> Result<(), String> {
    let mut magic = [0; 4];
    let mut open = fs::File::open(file).map_err(|e| e.to_string())?;
    match open.read_exact(&mut magic) {
        Ok(()) if magic == *b"\x7fELF" => Ok(()),
        Ok(()) => Err("not an ELF program".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Whole or not at all, and untouched if it is there: jobs in parallel share inputs.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{number}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
