//! The study file's own keys.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use sevlab_machine::presets::{self, ConfigError, Origin, kind_of};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    At, Axis, Config, Limit, MODES, PARTS, Parts, Program, SECONDS, SIZES, Spec, check_part,
};

const ROOT: &[&str] = &[
    "name",
    "size",
    "seed",
    "baseline",
    "workloads",
    "limit",
    "config",
    "vary",
    "program",
];
const CONFIG: &[&str] = &[
    "name", "sev", "model", "cipher", "cpu", "memory", "seed", "vary", "set",
];
const PROGRAM: &[&str] = &["name", "command", "files", "stdout_sha256"];
const LIMIT: &[&str] = &["seconds", "instructions"];

/// Most runs of a study: beyond it an axis was meant otherwise.
const MOST_VALUES: usize = 10_000;

/// A file, and where in it one is.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    folder: &'a Path,
}

type Entry<'t, 'a> = (
    &'t Spanned<std::borrow::Cow<'a, str>>,
    &'t Spanned<DeValue<'a>>,
);

pub(super) fn spec(file: &str, text: &str, folder: &Path) -> Result<Spec, ConfigError> {
    let r = Reader { file, text, folder };
    let root = DeTable::parse(text).map_err(|e| ConfigError {
        at: Origin::File {
            file: file.to_owned(),
            line: e.span().map(|span| r.line(&span)),
        },
        key: None,
        what: format!("not TOML: {}", e.message().trim().replace('\n', "; ")),
    })?;
    r.spec(root.get_ref())
}

impl Reader<'_> {
    fn spec(&self, root: &DeTable<'_>) -> Result<Spec, ConfigError> {
        let stem = Path::new(self.file).file_stem().unwrap_or_default();
        let mut spec = Spec {
            name: stem.to_string_lossy().into_owned(),
            file: self.file.to_owned(),
            text: self.text.to_owned(),
            folder: self.folder.to_owned(),
            size: "test".to_owned(),
            seed: 1,
            baseline: None,
            workloads: Vec::new(),
            programs: Vec::new(),
            configs: Vec::new(),
            axes: Vec::new(),
            limit: Limit {
                seconds: Some(SECONDS),
                instructions: None,
            },
        };
        for (key, value) in self.entries(root, "", ROOT)? {
            let name = key.get_ref().as_ref();
            match name {
                "name" => spec.name = self.text(name, value)?.value,
                "size" => spec.size = self.one_of(name, value, SIZES)?,
                "seed" => spec.seed = self.whole(name, value)?,
                "baseline" => spec.baseline = Some(self.text(name, value)?),
                "workloads" => spec.workloads = self.texts(name, value)?,
                "limit" => spec.limit = self.limit(value)?,
                _ => {}
            }
        }
        // What depends on the seed comes after it.
        for (key, value) in self.entries(root, "", ROOT)? {
            match key.get_ref().as_ref() {
                "config" => {
                    spec.configs =
                        self.list("config", value, |t, at| self.config(t, at, spec.seed))?
                }
                "program" => {
                    spec.programs = self.list("program", value, |t, at| self.program(t, at))?
                }
                "vary" => spec.axes = self.axes(value)?,
                _ => {}
            }
        }
        self.whole_file(&spec)?;
        Ok(spec)
    }

    /// What no single key shows.
    fn whole_file(&self, spec: &Spec) -> Result<(), ConfigError> {
        let missing = |key: &str, what: &str| ConfigError {
            at: Origin::File {
                file: self.file.to_owned(),
                line: None,
            },
            key: Some(key.to_owned()),
            what: what.to_owned(),
        };
        if spec.workloads.is_empty() && spec.programs.is_empty() {
            let what = "is missing, and there is no [[program]]; sevlab workloads lists what there is, \"all\" is all of them";
            return Err(missing("workloads", what));
        }
        if spec.configs.is_empty() {
            let what = "is missing: a study needs a [[config]] at least, such as name = \"snp\" and sev = \"snp\"";
            return Err(missing("config", what));
        }
        let mut seen = BTreeSet::new();
        for config in &spec.configs {
            if !seen.insert(&config.name.value) {
                let what = format!("there is another [[config]] \"{}\"", config.name.value);
                return Err(spec.error(config.name.line, "config.name", what));
            }
        }
        if let Some(baseline) = &spec.baseline
            && !seen.contains(&baseline.value)
        {
            let names: Vec<_> = spec.configs.iter().map(|c| c.name.value.as_str()).collect();
            let what = format!(
                "no [[config]] is called \"{}\"; there is {}",
                baseline.value.escape_debug(),
                names.join(", ")
            );
            return Err(spec.error(baseline.line, "baseline", what));
        }
        let mut seen = BTreeSet::new();
        let named = spec
            .workloads
            .iter()
            .chain(spec.programs.iter().map(|p| &p.name));
        for name in named {
            if !seen.insert(&name.value) {
                let what = format!("\"{}\" is named twice", name.value.escape_debug());
                return Err(spec.error(name.line, "workloads", what));
            }
        }
        if !spec.axes.is_empty() && spec.configs.iter().all(|c| !c.vary) {
            let line = spec.axes[0].key.line;
            return Err(spec.error(line, "vary", "every [[config]] says vary = false"));
        }
        Ok(())
    }

    fn config(&self, table: &DeTable<'_>, line: usize, seed: u64) -> Result<Config, ConfigError> {
        let mut parts = Parts {
            sev: String::new(),
            model: presets::DEFAULT.to_owned(),
            cipher: "aes128-xex".to_owned(),
            cpu: None,
            memory: "4G".to_owned(),
            seed,
            sets: Vec::new(),
        };
        let (mut name, mut vary) = (None, true);
        for (key, value) in self.entries(table, "config", CONFIG)? {
            let key = key.get_ref().as_ref();
            let path = format!("config.{key}");
            match key {
                "name" => name = Some(self.name(&path, value)?),
                "vary" => vary = self.switch(&path, value)?,
                "set" => self.sets(&path, "", value, &mut parts.sets)?,
                _ => self.part(&mut parts, key, &path, value)?,
            }
        }
        if parts.sev.is_empty() {
            let what = format!("is missing; allowed is one of {}", MODES.join(", "));
            return Err(self.error(line, "config.sev", what));
        }
        let name = name.unwrap_or_else(|| At {
            value: parts.sev.clone(),
            line,
        });
        Ok(Config { name, parts, vary })
    }

    fn part(
        &self,
        parts: &mut Parts,
        key: &str,
        path: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let text = if key == "seed" {
            self.whole(path, value)?.to_string()
        } else {
            self.text(path, value)?.value
        };
        check_part(key, &text, self.folder).map_err(|what| self.at(value, path, what))?;
        parts.put(key, &text);
        Ok(())
    }

    /// Tables below `[config.set]`, down to values.
    fn sets(
        &self,
        path: &str,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        sets: &mut Vec<At<String>>,
    ) -> Result<(), ConfigError> {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in self.in_order(table) {
                    let below = join(key, name.get_ref());
                    self.sets(path, &below, value, sets)?;
                }
                Ok(())
            }
            _ if key.is_empty() => {
                let what = "not a table of keys of the model, such as latency.aes_ns = 12";
                Err(self.at(value, path, what))
            }
            DeValue::Array(_) => {
                let what = "a list; several values are for [vary]";
                Err(self.at(value, &join(path, key), what))
            }
            _ => {
                sets.push(At {
                    value: format!("{key}={}", self.raw(value)),
                    line: self.line(&value.span()),
                });
                Ok(())
            }
        }
    }

    fn axes(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Axis>, ConfigError> {
        let mut axes = Vec::new();
        self.axes_below("", value, &mut axes)?;
        let runs = axes
            .iter()
            .map(|a: &Axis| a.values.len())
            .product::<usize>();
        if runs > MOST_VALUES {
            let what = format!("{runs} combinations; {MOST_VALUES} at most");
            return Err(self.at(value, "vary", what));
        }
        Ok(axes)
    }

    fn axes_below(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        axes: &mut Vec<Axis>,
    ) -> Result<(), ConfigError> {
        let path = join("vary", key);
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in self.in_order(table) {
                    self.axes_below(&join(key, name.get_ref()), value, axes)?;
                }
                Ok(())
            }
            DeValue::Array(list) if !key.is_empty() => {
                let mut values: Vec<At<String>> = Vec::new();
                for item in list.iter() {
                    if matches!(item.get_ref(), DeValue::Table(_) | DeValue::Array(_)) {
                        return Err(self.at(item, &path, "a list or table within the list"));
                    }
                    let text = self.raw(item);
                    if PARTS.contains(&key) {
                        check_part(key, &text, self.folder)
                            .map_err(|what| self.at(item, &path, what))?;
                    }
                    if values.iter().any(|v| v.value == text) {
                        return Err(self.at(item, &path, format!("{text} is there twice")));
                    }
                    values.push(At {
                        value: text,
                        line: self.line(&item.span()),
                    });
                }
                if values.is_empty() {
                    return Err(self.at(value, &path, "an empty list"));
                }
                axes.push(Axis {
                    key: At {
                        value: key.to_owned(),
                        line: self.line(&value.span()),
                    },
                    values,
                });
                Ok(())
            }
            _ => {
                let what = "not a list of values, such as latency.aes_ns = [0, 12, 24]";
                Err(self.at(value, &path, what))
            }
        }
    }

    fn program(&self, table: &DeTable<'_>, line: usize) -> Result<Program, ConfigError> {
        let (mut name, mut command, mut files, mut digest) = (None, Vec::new(), Vec::new(), None);
        for (key, value) in self.entries(table, "program", PROGRAM)? {
            let key = key.get_ref().as_ref();
            let path = format!("program.{key}");
            match key {
                "name" => name = Some(self.name(&path, value)?),
                "command" => command = self.texts(&path, value)?,
                "files" => {
                    files = self.texts(&path, value)?;
                    for file in &files {
                        if !self.folder.join(&file.value).is_file() {
                            let what = format!("there is no file {}", file.value.escape_debug());
                            return Err(self.error(file.line, &path, what));
                        }
                    }
                }
                _ => {
                    let text = self.text(&path, value)?.value.to_lowercase();
                    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                        let what = "not a SHA-256: 64 hexadecimal digits, as sha256sum prints";
                        return Err(self.at(value, &path, what));
                    }
                    digest = Some(text);
                }
            }
        }
        if command.is_empty() {
            let what = "is missing: the program and its arguments, such as [\"sort\", \"-n\", \"numbers.txt\"]";
            return Err(self.error(line, "program.command", what));
        }
        let Some(name) = name else {
            return Err(self.error(line, "program.name", "is missing"));
        };
        Ok(Program {
            name,
            command: command.into_iter().map(|c| c.value).collect(),
            files,
            stdout_sha256: digest,
        })
    }

    fn limit(&self, value: &Spanned<DeValue<'_>>) -> Result<Limit, ConfigError> {
        let mut limit = Limit {
            seconds: Some(SECONDS),
            instructions: None,
        };
        let table = value.get_ref().as_table();
        let table = table
            .ok_or_else(|| self.at(value, "limit", "not a table of seconds and instructions"))?;
        for (key, value) in self.entries(table, "limit", LIMIT)? {
            let key = key.get_ref().as_ref();
            let path = format!("limit.{key}");
            let number: Option<f64> = match value.get_ref() {
                DeValue::Integer(_) | DeValue::Float(_) => {
                    self.raw(value).replace('_', "").parse().ok()
                }
                _ => None,
            };
            let number = number
                .filter(|n| *n > 0.0 && *n <= 1e18)
                .ok_or_else(|| self.at(value, &path, format!("not a number of {key} above 0")))?;
            if key == "seconds" {
                limit.seconds = Some(number);
            } else {
                limit.instructions = Some(number as u64);
            }
        }
        Ok(limit)
    }

    /// Entries of a table, in the order of the text; an unknown key is an error.
    fn entries<'t, 'a>(
        &self,
        table: &'t DeTable<'a>,
        path: &str,
        known: &[&str],
    ) -> Result<Vec<Entry<'t, 'a>>, ConfigError> {
        let entries = self.in_order(table);
        for (key, _) in &entries {
            if !known.contains(&key.get_ref().as_ref()) {
                let place = if path.is_empty() {
                    "at the top level".to_owned()
                } else {
                    format!("in [{path}]")
                };
                let what = format!("no such key; {place} there is {}", known.join(", "));
                let line = self.line(&key.span());
                return Err(self.error(line, &join(path, key.get_ref()), what));
            }
        }
        Ok(entries)
    }

    fn in_order<'t, 'a>(&self, table: &'t DeTable<'a>) -> Vec<Entry<'t, 'a>> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
    }

    fn list<T>(
        &self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        one: impl Fn(&DeTable<'_>, usize) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let wrong = |at: &Spanned<DeValue<'_>>| {
            self.at(at, path, format!("not a list of tables: write [[{path}]]"))
        };
        let list = value.get_ref().as_array().ok_or_else(|| wrong(value))?;
        list.iter()
            .map(|item| {
                let table = item.get_ref().as_table().ok_or_else(|| wrong(item))?;
                one(table, self.line(&item.span()))
            })
            .collect()
    }

    fn text(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<At<String>, ConfigError> {
        match value.get_ref().as_str() {
            Some(text) if !text.is_empty() && !text.chars().any(char::is_control) => Ok(At {
                value: text.to_owned(),
                line: self.line(&value.span()),
            }),
            Some(_) => Err(self.at(value, key, "empty, or with control characters")),
            None => Err(self.at(
                value,
                key,
                format!("{}; allowed is text", kind_of(value.get_ref())),
            )),
        }
    }

    /// A name for results: it becomes part of file names and tables.
    fn name(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<At<String>, ConfigError> {
        let name = self.text(key, value)?;
        let fine = |c: char| c.is_alphanumeric() || "-_.+ ".contains(c);
        if name.value.len() > 60 || !name.value.chars().all(fine) {
            let what = "a name has 60 letters, digits, spaces and -_.+ at most";
            return Err(self.at(value, key, what));
        }
        Ok(name)
    }

    fn texts(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<At<String>>, ConfigError> {
        let list = value.get_ref().as_array().ok_or_else(|| {
            let what = format!("{}; allowed is a list of texts", kind_of(value.get_ref()));
            self.at(value, key, what)
        })?;
        list.iter().map(|item| self.text(key, item)).collect()
    }

    fn one_of(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        names: &[&str],
    ) -> Result<String, ConfigError> {
        let text = self.text(key, value)?.value;
        if names.contains(&text.as_str()) {
            return Ok(text);
        }
        let what = format!(
            "\"{}\"; allowed is one of {}",
            text.escape_debug(),
            names.join(", ")
        );
        Err(self.at(value, key, what))
    }

    fn whole(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<u64, ConfigError> {
        let number = value.get_ref().as_integer();
        number
            .and_then(|n| u64::from_str_radix(n.as_str(), n.radix()).ok())
            .ok_or_else(|| self.at(value, key, "allowed is a whole number, 0 or more"))
    }

    fn switch(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<bool, ConfigError> {
        let what = || format!("{}; allowed is true or false", kind_of(value.get_ref()));
        value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.at(value, key, what()))
    }

    /// A value as it would stand on a command line behind `key=`.
    fn raw(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref().as_str() {
            Some(text) => text.to_owned(),
            None => self
                .text
                .get(value.span())
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }

    /// The line, from 1, on which a span begins.
    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|b| **b == b'\n').count() + 1
    }

    fn at(&self, value: &Spanned<DeValue<'_>>, key: &str, what: impl Into<String>) -> ConfigError {
        self.error(self.line(&value.span()), key, what)
    }

    fn error(&self, line: usize, key: &str, what: impl Into<String>) -> ConfigError {
        ConfigError {
            at: Origin::File {
                file: self.file.to_owned(),
                line: Some(line),
            },
            key: Some(key.escape_debug().to_string()),
            what: what.into(),
        }
    }
}

impl Parts {
    /// Takes a value, which [`check_part`] has passed.
    pub(crate) fn put(&mut self, key: &str, value: &str) {
        match key {
            "sev" => self.sev = value.to_owned(),
            "model" => self.model = value.to_owned(),
            "cipher" => self.cipher = value.to_owned(),
            "cpu" => self.cpu = Some(value.to_owned()),
            "memory" => self.memory = value.to_owned(),
            "seed" => self.seed = value.parse().unwrap_or(self.seed),
            _ => {}
        }
    }
}

fn join(table: &str, name: &str) -> String {
    if table.is_empty() {
        name.to_owned()
    } else if name.is_empty() {
        table.to_owned()
    } else {
        format!("{table}.{name}")
    }
}
