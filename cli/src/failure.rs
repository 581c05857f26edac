//! Why the command failed, and the exit status for it: those of `env` and `timeout`.

use std::io;
use std::path::{Path, PathBuf};

use sevlab_machine::Error;
use sevlab_machine::kernel;
use sevlab_machine::presets::ConfigError;
use sevlab_workloads::manifest::ManifestError;
use sevlab_workloads::resolve::ResolveError;

/// A failure of sevlab itself.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The program is nowhere.
    #[error("{}: {why}", program.display())]
    NotFound {
        /// As it was named.
        program: PathBuf,
        /// Where it was looked for.
        why: String,
    },
    /// The program is there and can't be run.
    #[error("{}: {why}", program.display())]
    NotRunnable {
        /// Its path.
        program: PathBuf,
        /// Why not.
        why: String,
    },
    /// Options contradict each other.
    #[error("{0} (see sevlab run --help)")]
    Usage(String),
    /// A configuration of the simulated machine is wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A result could not be written.
    #[error("{option} {}: {source}", path.display())]
    Output {
        /// The option that asked for it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The slow reference counted otherwise.
    #[error("not what the reference counted:\n{}", .0.trim_end())]
    Differs(String),
    /// A workload's manifest, program or input is wrong or not there.
    #[error("{0}")]
    Workloads(#[from] ResolveError),
    /// A workload did not end well, or printed something else than it should.
    #[error("{0}")]
    Workload(String),
    /// The machine could not be built or could not go on.
    #[error("{0}")]
    Machine(#[source] Error),
}

impl From<ManifestError> for Failure {
    fn from(e: ManifestError) -> Self {
        Self::Workloads(e.into())
    }
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotRunnable { .. } => 126,
            Self::Workloads(ResolveError::Manifest(_)) | Self::Usage(_) | Self::Config(_) => 2,
            Self::Workloads(_) => 127,
            Self::Workload(_) => 1,
            Self::Output { .. } | Self::Machine(_) | Self::Differs(_) => 125,
        }
    }

    /// What a machine's error means for the command that asked for `program`.
    pub fn of_machine(error: Error, program: &Path) -> Self {
        match error {
            Error::Kernel(kernel::Error::Elf(e)) => Self::NotRunnable {
                program: PathBuf::from(&e.file),
                why: format!("not a runnable x86-64 ELF program: {}: {}", e.field, e.what),
            },
            // The program was found before; so this is its interpreter, or it has vanished or is unreadable.
            Error::Kernel(kernel::Error::File { path, source }) => Self::NotRunnable {
                why: if path == program {
                    source.to_string()
                } else {
                    format!("needed by {}: {source}", program.display())
                },
                program: path,
            },
            e => Self::Machine(e),
        }
    }
}
