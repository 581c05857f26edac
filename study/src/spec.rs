//! A study file: which programs, which machines, what is varied. Every message names the file, the line and the key, as those
//! of `sevlab config check` do, and comes from the same tables where a key is the model's.
//!
//! docs/study.md describes the format.

mod read;

use std::fs;
use std::path::{Path, PathBuf};

use sevlab_machine::CpuPreset;
use sevlab_machine::presets::{ConfigError, Origin, PRESETS};
use sevlab_memctl::CipherKind;

/// The study that is built in.
pub const QUICK: &str = "quick";

const QUICK_TEXT: &str = include_str!("../quick.toml");

/// A study file as it was written.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, for titles.
    pub name: String,
    /// The file, as it was named.
    pub file: String,
    /// Its text.
    pub text: String,
    /// What other files' names are relative to.
    pub folder: PathBuf,
    /// Size of the workloads.
    pub size: String,
    /// Seed of every run.
    pub seed: u64,
    /// The configuration that overheads are told over, if it is named.
    pub baseline: Option<At<String>>,
    /// Workloads of the manifest; "all" is one of them.
    pub workloads: Vec<At<String>>,
    /// Programs that the file itself describes.
    pub programs: Vec<Program>,
    /// The machines.
    pub configs: Vec<Config>,
    /// What is varied: one run for each combination.
    pub axes: Vec<Axis>,
    /// Limits of each run.
    pub limit: Limit,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub line: usize,
}

/// A program that the study file describes.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in results.
    pub name: At<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Files that it finds in its working directory.
    pub files: Vec<At<String>>,
    /// What its standard output must be: a SHA-256, hexadecimal.
    pub stdout_sha256: Option<String>,
}

/// A simulated machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in results.
    pub name: At<String>,
    /// What it is made of.
    pub parts: Parts,
    /// Whether the study's axes apply to it.
    pub vary: bool,
}

/// What a machine is made of; each part may also be an axis.
#[derive(Clone, Debug)]
pub struct Parts {
    /// off, sev, es or snp.
    pub sev: String,
    /// A preset or a file.
    pub model: String,
    /// The memory controller's cipher.
    pub cipher: String,
    /// The processor that the guest is shown; `None`: the one that goes with the model.
    pub cpu: Option<String>,
    /// Guest memory, as `sevlab run --memory` takes it.
    pub memory: String,
    /// Seed.
    pub seed: u64,
    /// Settings of the model, `key=value`, with the line of each.
    pub sets: Vec<At<String>>,
}

/// One thing that is varied.
#[derive(Clone, Debug)]
pub struct Axis {
    /// A key of the model, or one of [`PARTS`].
    pub key: At<String>,
    /// Its values, as they would stand behind `key=`.
    pub values: Vec<At<String>>,
}

/// Limits of one run; `None`: there is none.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limit {
    /// Host time.
    pub seconds: Option<f64>,
    /// Guest instructions.
    pub instructions: Option<u64>,
}

/// A run that takes longer than this is ended, unless the file says otherwise.
pub const SECONDS: f64 = 3600.0;

/// The keys of a machine that are not the model's.
pub const PARTS: &[&str] = &["sev", "model", "cipher", "cpu", "memory", "seed"];
/// The values of `sev`, as `sevlab run --sev` takes them.
pub const MODES: &[&str] = &["off", "sev", "es", "snp"];
/// The sizes of workloads.
pub const SIZES: &[&str] = &["test", "train", "ref"];

impl Spec {
    /// Reads a study file, or the built-in study [`QUICK`].
    pub fn load(file: &str) -> Result<Self, ConfigError> {
        if file == QUICK {
            return Self::parse(QUICK, QUICK_TEXT, Path::new("."));
        }
        let path = Path::new(file);
        let text = fs::read_to_string(path).map_err(|e| {
            let what = if e.kind() == std::io::ErrorKind::NotFound {
                "no such file; the study that is built in is called quick".to_owned()
            } else {
                e.to_string()
            };
            ConfigError {
                at: Origin::File {
                    file: file.to_owned(),
                    line: None,
                },
                key: None,
                what,
            }
        })?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        Self::parse(file, &text, folder.unwrap_or(Path::new(".")))
    }

    /// Reads `text` as the file `file`.
    pub fn parse(file: &str, text: &str, folder: &Path) -> Result<Self, ConfigError> {
        read::spec(file, text, folder)
    }

    /// An error on a line of this file.
    #[must_use]
    pub fn error(&self, line: usize, key: &str, what: impl Into<String>) -> ConfigError {
        ConfigError {
            at: Origin::File {
                file: self.file.clone(),
                line: Some(line),
            },
            key: Some(key.to_owned()),
            what: what.into(),
        }
    }
}

/// Why a value of one of [`PARTS`] is none.
pub(crate) fn check_part(key: &str, value: &str, folder: &Path) -> Result<(), String> {
    match key {
        "sev" if !MODES.contains(&value) => Err(format!(
            "\"{}\"; allowed is one of {}",
            value.escape_debug(),
            MODES.join(", ")
        )),
        "cipher" if value.parse::<CipherKind>().is_err() => {
            let names = CipherKind::ALL.map(|kind| kind.to_string());
            Err(format!(
                "\"{}\"; allowed is one of {}",
                value.escape_debug(),
                names.join(", ")
            ))
        }
        "cpu" if value.parse::<CpuPreset>().is_err() => Err(format!(
            "\"{}\" is no processor (see sevlab run --help)",
            value.escape_debug()
        )),
        "model" => {
            let known = PRESETS.iter().any(|p| p.name == value);
            if known || folder.join(value).is_file() {
                return Ok(());
            }
            let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
            Err(format!(
                "\"{}\" is neither a file nor a preset; the presets are {}",
                value.escape_debug(),
                names.join(", ")
            ))
        }
        "memory" => {
            let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let suffix = &value[digits.len()..];
            if digits.parse::<u64>().is_ok() && ["", "K", "M", "G", "T"].contains(&suffix) {
                Ok(())
            } else {
                Err(format!(
                    "\"{}\"; allowed is a size such as \"512M\" or \"4G\"",
                    value.escape_debug()
                ))
            }
        }
        "seed" if value.parse::<u64>().is_err() => Err(format!(
            "{}; allowed is a whole number",
            value.escape_debug()
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
