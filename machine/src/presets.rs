//! Configurations of simulated machines: presets, TOML files, single settings, and what is wrong with them.
//!
//! A model ([`Model`]) comes from a preset or a file, changed by settings `key=value`. A file is complete, or says
//! `base = "PRESET"` and what differs. Keys, types and ranges are in one table (`schema`); a file is read against it with
//! positions, so that every message names file, line and key (`read`), then geometry is checked across keys (`check`).
//! What the keys mean is in docs/model.md.

mod check;
mod error;
mod read;
mod schema;
mod show;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sevlab_memctl::model::Model;

pub use error::{ConfigError, Origin};
use read::Settings;
pub use read::kind_of;

/// A configuration that is built in.
#[derive(Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    /// The TOML text, with the source of each figure.
    pub text: &'static str,
}

/// The preset that `--cache hierarchy` uses unless told otherwise.
pub const DEFAULT: &str = "epyc-milan";

/// The presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "epyc-naples",
        what: "EPYC 7001, Zen 1: 8 MiB of L3 for 4 cores, SEV and SEV-ES",
        text: include_str!("../presets/epyc-naples.toml"),
    },
    Preset {
        name: "epyc-rome",
        what: "EPYC 7002, Zen 2: 16 MiB of L3 for 4 cores, SEV and SEV-ES",
        text: include_str!("../presets/epyc-rome.toml"),
    },
    Preset {
        name: "epyc-milan",
        what: "EPYC 7003, Zen 3: 32 MiB of L3 for 8 cores, the first with SEV-SNP",
        text: include_str!("../presets/epyc-milan.toml"),
    },
    Preset {
        name: "epyc-genoa",
        what: "EPYC 9004, Zen 4: 1 MiB of L2, 32 MiB of L3 for 8 cores, DDR5",
        text: include_str!("../presets/epyc-genoa.toml"),
    },
    Preset {
        name: "cachegrind",
        what: "what valgrind --tool=cachegrind simulates: I1, D1, LL, and nothing else",
        text: include_str!("../presets/cachegrind.toml"),
    },
];

/// Most bytes of a configuration file.
const MOST_BYTES: u64 = 1 << 20;

/// A model and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    base: Option<&'static Preset>,
    text: String,
    settings: Settings,
}

impl Loaded {
    /// The preset that it is, or that its file is based on.
    #[must_use]
    pub fn base(&self) -> Option<&'static str> {
        self.base.map(|preset| preset.name)
    }

    /// The keys that a file or a setting changed, with where.
    pub fn changes(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.settings
            .iter()
            .filter(|(_, s)| !matches!(s.origin, Origin::Preset(_)))
            .map(|(key, s)| (key, &s.origin))
    }

    /// The whole model as TOML, with the comments of where it came from. Read again it is the same model.
    #[must_use]
    pub fn to_toml(&self) -> String {
        show::toml(self)
    }

    /// The whole model as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        show::json(&self.model)
    }
}

/// The preset of that name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}

/// Reads the preset or the file `what`, and then applies `sets` (`key=value`) from left to right.
pub fn load(what: &str, sets: &[String]) -> Result<Model, ConfigError> {
    read(what, sets).map(|loaded| loaded.model)
}

/// Like [`load`], and remembers where each figure came from.
pub fn read(what: &str, sets: &[String]) -> Result<Loaded, ConfigError> {
    if let Some(preset) = preset(what) {
        return read_preset(preset, sets);
    }
    let failed = |why: String| ConfigError::file(what, None, None, why);
    let text = match contents(Path::new(what)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
            let names = names.join(", ");
            return Err(failed(format!(
                "neither a file nor a preset; the presets are {names}"
            )));
        }
        Err(e) => return Err(failed(e.to_string())),
    };
    read_text(what, &text, sets)
}

/// Reads `text` as the file `name`, and then applies `sets`.
pub fn read_text(name: &str, text: &str, sets: &[String]) -> Result<Loaded, ConfigError> {
    let base = read::base(name, text)?;
    let mut settings = Settings::default();
    if let Some(base) = base {
        settings.preset(base)?;
    }
    settings.file(name, text)?;
    finish(base, text, settings, sets)
}

fn read_preset(preset: &'static Preset, sets: &[String]) -> Result<Loaded, ConfigError> {
    let mut settings = Settings::default();
    settings.preset(preset)?;
    finish(Some(preset), preset.text, settings, sets)
}

fn finish(
    base: Option<&'static Preset>,
    text: &str,
    mut settings: Settings,
    sets: &[String],
) -> Result<Loaded, ConfigError> {
    for set in sets {
        settings.set(set)?;
    }
    let mut model = settings.model()?;
    check::geometry(&model, &settings)?;
    for set in sets.iter().filter(|set| !set.starts_with("name=")) {
        // Reports tell configurations apart by their name.
        model.name = format!("{}, {}", model.name, set.trim());
    }
    Ok(Loaded {
        model,
        base,
        text: base.map_or(text, |b| b.text).to_owned(),
        settings,
    })
}

fn contents(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!(
            "more than {MOST_BYTES} bytes: no configuration"
        )));
    }
    Ok(text)
}
