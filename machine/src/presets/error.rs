//! What is wrong with a configuration, and where.

use std::fmt;

/// Where a figure was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// In a preset.
    Preset(&'static str),
    /// In a file.
    File {
        /// Its name as it was given.
        file: String,
        /// The line, from 1; `None`: the file as a whole.
        line: Option<usize>,
    },
    /// In a setting, as it was given.
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { file, line: None } => f.write_str(file),
            Self::File {
                file,
                line: Some(line),
            } => write!(f, "{file}:{line}"),
            Self::Set(text) => write!(f, "--set {}", text.escape_debug()),
        }
    }
}

/// A configuration that can't be used: where, which key, and what is allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {}{what}", key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// Where it was said.
    pub at: Origin,
    /// The key, with its table; `None`: no key in particular.
    pub key: Option<String>,
    /// What is wrong, and what is allowed.
    pub what: String,
}

impl ConfigError {
    pub(super) fn new(at: Origin, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            at,
            key: Some(key.into()),
            what: what.into(),
        }
    }

    pub(super) fn file(
        file: &str,
        line: Option<usize>,
        key: Option<String>,
        what: impl Into<String>,
    ) -> Self {
        Self {
            at: Origin::File {
                file: file.to_owned(),
                line,
            },
            key,
            what: what.into(),
        }
    }
}
