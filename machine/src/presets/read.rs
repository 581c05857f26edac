//! TOML into settings, each checked against the schema where it stands, and settings into a [`Model`].

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde_json::{Map, Number, Value as Json};
use sevlab_memctl::model::Model;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::schema::{self, Kind, Node, ROOT, allowed, join};
use super::{PRESETS, Preset, preset};

/// A key's value, and who said it.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub value: Json,
    pub origin: Origin,
}

/// Values by key (`l1d.size`).
#[derive(Clone, Default, Debug)]
pub(super) struct Settings {
    values: BTreeMap<String, Setting>,
    /// Tables that a file opened, for what is missing in them.
    opened: BTreeMap<String, Origin>,
}

/// The preset that a file names as its base.
pub(super) fn base(file: &str, text: &str) -> Result<Option<&'static Preset>, ConfigError> {
    let root = parse(file, text)?;
    let Some(value) = root.get_ref().get("base") else {
        return Ok(None);
    };
    let refused = |what: String| {
        let line = Some(line(text, value.span()));
        let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
        let what = format!("{what}; the presets are {}", names.join(", "));
        ConfigError::file(file, line, Some("base".to_owned()), what)
    };
    let name = value
        .get_ref()
        .as_str()
        .ok_or_else(|| refused("not the name of a preset".to_owned()))?;
    preset(name)
        .map(Some)
        .ok_or_else(|| refused(format!("no preset \"{}\"", name.escape_debug())))
}

fn parse<'a>(file: &str, text: &'a str) -> Result<Spanned<DeTable<'a>>, ConfigError> {
    DeTable::parse(text).map_err(|e| {
        let line = e.span().map(|span| line(text, span));
        let what = e.message().trim().replace('\n', "; ");
        ConfigError::file(file, line, None, format!("not TOML: {what}"))
    })
}

/// The line, from 1, on which a span begins.
fn line(text: &str, span: Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or_default();
    before.iter().filter(|b| **b == b'\n').count() + 1
}

impl Settings {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.values.iter().map(|(key, s)| (key.as_str(), s))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        self.values.get(key)
    }

    /// Takes a preset's values.
    pub(super) fn preset(&mut self, preset: &'static Preset) -> Result<(), ConfigError> {
        let root = parse(preset.name, preset.text)?;
        let at = &|_: Range<usize>| Origin::Preset(preset.name);
        self.table(root.get_ref(), ROOT, "", at)
    }

    /// Takes a file's values.
    pub(super) fn file(&mut self, file: &str, text: &str) -> Result<(), ConfigError> {
        let mut root = parse(file, text)?;
        let has_base = root.get_mut().remove("base").is_some();
        let at = &|span: Range<usize>| Origin::File {
            file: file.to_owned(),
            line: Some(line(text, span)),
        };
        let whole = Origin::File {
            file: file.to_owned(),
            line: None,
        };
        self.opened.insert(String::new(), whole.clone());
        self.table(root.get_ref(), ROOT, "", at)?;
        if has_base && !root.get_ref().contains_key("name") {
            let name = Setting {
                value: Json::String(file.to_owned()),
                origin: whole,
            };
            self.values.insert("name".to_owned(), name);
        }
        Ok(())
    }

    /// Takes `key=value`.
    pub(super) fn set(&mut self, text: &str) -> Result<(), ConfigError> {
        let origin = Origin::Set(text.to_owned());
        let Some((path, value)) = text.split_once('=') else {
            return Err(ConfigError {
                at: origin,
                key: None,
                what: "not KEY=VALUE, such as latency.aes_ns=12".to_owned(),
            });
        };
        let (path, value) = (path.trim(), value.trim());
        let (mut keys, mut table) = (ROOT, String::new());
        let mut names = path.split('.');
        let node = loop {
            let name = names.next().unwrap_or_default();
            let Some(node) = schema::child(keys, name) else {
                let what = schema::unknown(&table, keys, name);
                return Err(ConfigError::new(
                    origin,
                    path.escape_debug().to_string(),
                    what,
                ));
            };
            table = join(&table, name);
            match (node, names.clone().next()) {
                (node, None) => break node,
                (Node::Table { keys: below, .. }, Some(_)) => keys = below,
                (Node::Leaf { kind, .. }, Some(_)) => {
                    let what = format!("no such key; {table} is {}", allowed(kind));
                    return Err(ConfigError::new(
                        origin,
                        path.escape_debug().to_string(),
                        what,
                    ));
                }
            }
        };
        // What is no TOML value is text without quotes, which a shell takes away.
        let bare = || DeValue::String(value.into());
        let value = match node {
            Node::Leaf {
                kind: Kind::Text, ..
            } => bare(),
            _ => DeValue::parse(value).map_or_else(|_| bare(), Spanned::into_inner),
        };
        self.node(&value, node, &table, 0..0, &|_| origin.clone())
    }

    fn table(
        &mut self,
        values: &DeTable<'_>,
        keys: &'static [(&'static str, Node)],
        table: &str,
        at: &dyn Fn(Range<usize>) -> Origin,
    ) -> Result<(), ConfigError> {
        // In the order of the text, so that the first mistake is told first.
        let mut entries: Vec<_> = values.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let path = join(table, name.get_ref());
            let Some(node) = schema::child(keys, name.get_ref()) else {
                let what = schema::unknown(table, keys, name.get_ref());
                let path = path.escape_debug().to_string();
                return Err(ConfigError::new(at(name.span()), path, what));
            };
            self.node(value.get_ref(), node, &path, name.span(), at)?;
        }
        Ok(())
    }

    fn node(
        &mut self,
        value: &DeValue<'_>,
        node: &'static Node,
        path: &str,
        span: Range<usize>,
        at: &dyn Fn(Range<usize>) -> Origin,
    ) -> Result<(), ConfigError> {
        let origin = at(span);
        match (node, value) {
            (Node::Table { keys, .. }, DeValue::Table(values)) => {
                self.opened.insert(path.to_owned(), origin);
                self.table(values, keys, path, at)
            }
            (Node::Table { optional: true, .. }, value) if value.as_str() == Some("none") => {
                let prefix = format!("{path}.");
                self.values.retain(|key, _| !key.starts_with(&prefix));
                let within = |key: &str| key == path || key.starts_with(&prefix);
                self.opened.retain(|key, _| !within(key));
                Ok(())
            }
            (Node::Table { keys, optional }, _) => {
                let names: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
                let none = if *optional { ", or \"none\"" } else { "" };
                let what = format!("not a table of {}{none}", names.join(", "));
                Err(ConfigError::new(origin, path, what))
            }
            (Node::Leaf { kind, .. }, value) => {
                let value = self::value(kind, value).map_err(|why| {
                    let what = format!("{why}; allowed is {}", allowed(kind));
                    ConfigError::new(origin.clone(), path, what)
                })?;
                let setting = Setting { value, origin };
                self.values.insert(path.to_owned(), setting);
                Ok(())
            }
        }
    }

    /// The model that the settings make.
    pub(super) fn model(&self) -> Result<Model, ConfigError> {
        let root = self.build(ROOT, "")?;
        Model::deserialize(Json::Object(root)).map_err(|e| ConfigError {
            at: self.whole(),
            key: None,
            what: e.to_string(),
        })
    }

    fn build(
        &self,
        keys: &'static [(&'static str, Node)],
        table: &str,
    ) -> Result<Map<String, Json>, ConfigError> {
        let mut map = Map::new();
        for (name, node) in keys {
            let path = join(table, name);
            match node {
                Node::Leaf { needed, .. } => match self.values.get(&path) {
                    Some(setting) => {
                        map.insert((*name).to_owned(), setting.value.clone());
                    }
                    None if *needed => return Err(self.missing(table, &path)),
                    None => {}
                },
                Node::Table { optional, keys } => {
                    let prefix = format!("{path}.");
                    let here = self.values.keys().any(|key| key.starts_with(&prefix));
                    if here || !optional {
                        let below = self.build(keys, &path)?;
                        map.insert((*name).to_owned(), Json::Object(below));
                    }
                }
            }
        }
        Ok(map)
    }

    fn missing(&self, table: &str, path: &str) -> ConfigError {
        // Whoever began the table should have finished it.
        let prefix = format!("{table}.");
        let began = self
            .values
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .map(|(_, s)| &s.origin);
        let at = self
            .opened
            .get(table)
            .or_else(|| began.clone().next())
            .cloned()
            .unwrap_or_else(|| self.whole());
        let what = format!(
            "is missing (a file may begin with base = \"{}\")",
            super::DEFAULT
        );
        ConfigError::new(at, path, what)
    }

    fn whole(&self) -> Origin {
        let whole = self.opened.get("").or_else(|| {
            let first = self.values.values().next();
            first.map(|setting| &setting.origin)
        });
        whole.cloned().unwrap_or(Origin::Set(String::new()))
    }
}

/// A value of the right kind, or why it is none.
fn value(kind: &Kind, value: &DeValue<'_>) -> Result<Json, String> {
    match (kind, value) {
        (Kind::Text, DeValue::String(text)) => {
            if text.is_empty() || text.chars().any(char::is_control) {
                return Err("empty, or with control characters".to_owned());
            }
            Ok(Json::String(text.to_string()))
        }
        (Kind::Switch, DeValue::Boolean(switch)) => Ok(Json::Bool(*switch)),
        (Kind::One(names), DeValue::String(text)) => {
            if names.contains(&&**text) {
                Ok(Json::String(text.to_string()))
            } else {
                Err(format!("\"{}\"", text.escape_debug()))
            }
        }
        (Kind::Count { least, most, .. }, DeValue::Integer(_)) => {
            let number = integer(value)?;
            if (u64::from(*least)..=u64::from(*most)).contains(&number) {
                Ok(number.into())
            } else {
                Err(format!("{number} is out of range"))
            }
        }
        (Kind::Size { most }, DeValue::Integer(_) | DeValue::String(_)) => {
            let bytes = match value {
                DeValue::String(text) => bytes(text)?,
                _ => integer(value)?,
            };
            if bytes == 0 || bytes > *most {
                return Err(format!("{bytes} bytes"));
            }
            Ok(bytes.into())
        }
        (Kind::Ns { most }, DeValue::Integer(_) | DeValue::Float(_)) => {
            let number = match value {
                DeValue::Float(float) => float.as_str().parse().unwrap_or(f64::NAN),
                _ => integer(value)? as f64,
            };
            // NaN is in no range.
            if !(0.0..=*most).contains(&number) {
                return Err(format!("{number} is out of range"));
            }
            Number::from_f64(number)
                .map(Json::Number)
                .ok_or_else(|| format!("{number} is no number"))
        }
        (Kind::Ns { .. } | Kind::Count { .. }, DeValue::String(text)) => Err(format!(
            "\"{}\" is text; the key's name says the unit, the value is the number alone",
            text.escape_debug()
        )),
        (Kind::Count { .. }, DeValue::Float(_)) => Err("a fraction".to_owned()),
        (_, other) => Err(kind_of(other).to_owned()),
    }
}

/// What errors call a value.
#[must_use]
pub fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn integer(value: &DeValue<'_>) -> Result<u64, String> {
    let Some(integer) = value.as_integer() else {
        return Err("not a whole number".to_owned());
    };
    u64::from_str_radix(integer.as_str(), integer.radix())
        .map_err(|_| format!("{integer} is out of range"))
}

/// `32KiB` and the like.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{}\" (KiB, MiB and GiB are there)", text.escape_debug());
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}
