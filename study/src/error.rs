//! What stops a study as a whole; what happens to one run is a result.

use std::io;
use std::path::{Path, PathBuf};

use sevlab_machine::presets::ConfigError;

/// Why a study can't begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The study file, or a configuration that it names.
    #[error("{0}")]
    Spec(#[from] ConfigError),
    /// A file or folder of the study.
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Another process writes there.
    #[error("{}: another sevlab study is at work here{}", dir.display(), pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Busy {
        /// The folder.
        dir: PathBuf,
        /// Who, if it could be read.
        pid: Option<u32>,
    },
    /// A program of the study.
    #[error("workload {name}: {why}")]
    Workload {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// What to do about a failure of the file system.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            ". Every result so far is kept: make room, then start the same command again"
        }
        io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ". Every result so far is kept: raise the limit, then start the same command again"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            ". Name another folder with --out"
        }
        _ => "",
    }
}

impl Error {
    /// For `map_err`.
    pub fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
