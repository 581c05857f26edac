//! The manifest: which workloads there are, why, in which sizes, and what each prints.
//!
//! It is a TOML file; `workloads/manifest.toml` is built in. Finding the programs is [`crate::resolve`]'s part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::inputs::InputFile;

/// The manifest that is built in.
const BUILTIN: &str = include_str!("../manifest.toml");
/// The version of the format that this code reads.
const FORMAT: u32 = 1;

/// A list of workloads.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, 1.
    pub format: u32,
    /// In the order of lists and tables.
    #[serde(rename = "workload")]
    pub workloads: Vec<Workload>,
}

/// A program with what it is given to do.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Unique; letters, digits, `-` and `_`.
    pub name: String,
    /// The SPEC CPU 2017 program whose behaviour it follows, as `505.mcf_r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// What it is bound by.
    pub kind: Kind,
    /// What it does, in one line.
    pub what: String,
    /// Why it is in the list: access pattern, branches, footprint.
    pub why: String,
    /// What is run.
    pub program: Program,
    /// Arguments of every size; `{size}` stands for the size's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The name of one of the case's files, if the program reads its standard input. Else it gets an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Files of every size, in the working directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InputFile>,
    /// At least one.
    pub sizes: BTreeMap<Size, Case>,
}

/// What a workload is bound by, or its arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Integers and branches, as SPECrate Integer.
    Integer,
    /// Floating point, as SPECrate Floating Point.
    Fp,
    /// One access pattern and little else.
    Memory,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Integer => "integer",
            Self::Fp => "fp",
            Self::Memory => "memory",
        })
    }
}

/// How large a run is; SPEC's names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// Hundredths of a second natively.
    Test,
    /// Tenths of a second.
    Train,
    /// Seconds.
    Ref,
}

impl Size {
    /// Smallest first.
    pub const ALL: [Self; 3] = [Self::Test, Self::Train, Self::Ref];

    /// As manifests and command lines have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Train => "train",
            Self::Ref => "ref",
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| format!("no size \"{text}\": there are test, train and ref"))
    }
}

/// What is run.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// A binary of the `workloads` room.
    Own(String),
    /// A program that may be installed: looked for in /usr/bin, /bin and PATH. `cc1` is where gcc says it is.
    Installed(String),
    /// A file of the user's; relative to the manifest.
    File(PathBuf),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(name) | Self::Installed(name) => f.write_str(name),
            Self::File(file) => write!(f, "{}", file.display()),
        }
    }
}

/// One size of a workload.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Arguments after those of every size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Files besides those of every size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InputFile>,
    /// SHA-256 of what it writes to its standard output, in hexadecimal. None if that depends on the installed version:
    /// then a native run says what is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The most memory that is resident in a native run, in MiB (measured; a guide, not a limit).
    pub footprint_mib: f64,
}

/// A manifest that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// It is no TOML, or has not these keys.
    #[error("{from}: {what}")]
    Parse {
        /// The manifest.
        from: String,
        /// With line and column.
        what: String,
    },
    /// What it says makes no sense.
    #[error("{from}: workload \"{workload}\": {what}")]
    Wrong {
        /// The manifest.
        from: String,
        /// Whose entry.
        workload: String,
        /// Why.
        what: String,
    },
    /// Asked for a workload that there is not.
    #[error("no workload \"{name}\": there are {}", known.join(", "))]
    Unknown {
        /// As asked for.
        name: String,
        /// All there are.
        known: Vec<String>,
    },
    /// Asked for a size that the workload has not.
    #[error("workload \"{workload}\" has no size {size}")]
    NoSize {
        /// The workload.
        workload: String,
        /// As asked for.
        size: Size,
    },
}

impl Manifest {
    /// The one that is built in.
    pub fn builtin() -> Self {
        // A test reads it.
        Self::parse(BUILTIN, "manifest.toml", Path::new(".")).expect("the built-in manifest")
    }

    /// That of a file, or without one the built-in.
    pub fn read(path: Option<&Path>) -> Result<Self, ManifestError> {
        let Some(path) = path else {
            return Ok(Self::builtin());
        };
        let text = std::fs::read_to_string(path).map_err(|source| ManifestError::Read {
            path: path.to_owned(),
            source,
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, &path.display().to_string(), folder)
    }

    /// Reads TOML; `from` is its name in messages, `folder` what its files are relative to.
    pub fn parse(text: &str, from: &str, folder: &Path) -> Result<Self, ManifestError> {
        let mut manifest: Self = toml::from_str(text).map_err(|e| ManifestError::Parse {
            from: from.to_owned(),
            what: e.to_string().trim_end().to_owned(),
        })?;
        if manifest.format != FORMAT {
            return Err(ManifestError::Parse {
                from: from.to_owned(),
                what: format!("format {}, where {FORMAT} is known", manifest.format),
            });
        }
        let mut names = Vec::new();
        for workload in &mut manifest.workloads {
            let wrong = |what: String| ManifestError::Wrong {
                from: from.to_owned(),
                workload: workload.name.clone(),
                what,
            };
            workload.check().map_err(wrong)?;
            if names.contains(&workload.name) {
                return Err(wrong("there are two of that name".to_owned()));
            }
            names.push(workload.name.clone());
            if let Program::File(file) = &mut workload.program {
                *file = folder.join(&*file);
            }
        }
        Ok(manifest)
    }

    /// The workload of that name.
    pub fn get(&self, name: &str) -> Result<&Workload, ManifestError> {
        let found = self.workloads.iter().find(|w| w.name == name);
        found.ok_or_else(|| ManifestError::Unknown {
            name: name.to_owned(),
            known: self.workloads.iter().map(|w| w.name.clone()).collect(),
        })
    }
}

impl Workload {
    /// One of its sizes.
    pub fn case(&self, size: Size) -> Result<&Case, ManifestError> {
        self.sizes.get(&size).ok_or(ManifestError::NoSize {
            workload: self.name.clone(),
            size,
        })
    }

    /// Whether its program need not be there.
    pub fn is_optional(&self) -> bool {
        !matches!(self.program, Program::Own(_))
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Err("a name is made of letters, digits, - and _".to_owned());
        }
        if self.sizes.is_empty() {
            return Err("it has no size".to_owned());
        }
        for (size, case) in &self.sizes {
            let files = || self.files.iter().chain(&case.files);
            for file in files() {
                if !file.name.chars().all(|c| plain(c) || c == '.') || file.name.starts_with('.') {
                    let name = &file.name;
                    return Err(format!("{size}: \"{name}\" is no plain name of a file"));
                }
            }
            if let Some(stdin) = &self.stdin
                && !files().any(|f| f.name == *stdin)
            {
                return Err(format!("{size}: stdin \"{stdin}\" is none of its files"));
            }
            let digest = |d: &String| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit());
            if case.sha256.as_ref().is_some_and(|d| !digest(d)) {
                return Err(format!("{size}: sha256 has 64 hexadecimal digits"));
            }
        }
        Ok(())
    }
}
