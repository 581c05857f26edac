//! A model written out: TOML with the comments of the text that it came from, or JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value as Json;
use sevlab_memctl::model::Model;

use super::error::Origin;
use super::schema::{self, Kind, Node, ROOT, join};
use super::{Loaded, Preset};

pub(super) fn json(model: &Model) -> String {
    // A model has nothing that JSON lacks.
    serde_json::to_string_pretty(model).unwrap_or_default()
}

/// Comments of a configuration's text: those above a key or table, and the one behind it.
#[derive(Default)]
struct Comments {
    above: BTreeMap<String, Vec<String>>,
    behind: BTreeMap<String, String>,
}

impl Comments {
    /// Of a text in the usual form: `[table]` and `key = value # comment` on lines of their own. What has another form has no
    /// comments here.
    fn of(text: &str) -> Self {
        let mut comments = Self::default();
        let (mut table, mut block) = (String::new(), Vec::new());
        for line in text.lines().map(str::trim) {
            if line.starts_with('#') {
                block.push(line.to_owned());
                continue;
            }
            let path = if let Some(header) = line.strip_prefix('[') {
                header
                    .split(']')
                    .next()
                    .unwrap_or_default()
                    .clone_into(&mut table);
                table.clone()
            } else if let Some((key, rest)) = line.split_once('=') {
                let path = join(&table, key.trim());
                if let Some(comment) = behind(rest) {
                    comments.behind.insert(path.clone(), comment.to_owned());
                }
                path
            } else {
                // A blank line ends a block, but for the one that a text begins with.
                if !table.is_empty() || !comments.above.is_empty() {
                    block.clear();
                }
                continue;
            };
            if !block.is_empty() {
                comments.above.insert(path, std::mem::take(&mut block));
            }
        }
        comments
    }
}

/// The comment behind a value, without its mark.
fn behind(rest: &str) -> Option<&str> {
    let mut quote = None;
    for (i, c) in rest.char_indices() {
        match (quote, c) {
            (None, '#') => return Some(rest[i + 1..].trim()),
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
    }
    None
}

pub(super) fn toml(loaded: &Loaded) -> String {
    let model = serde_json::to_value(&loaded.model).unwrap_or_default();
    let comments = Comments::of(&loaded.text);
    let base = loaded.base.and_then(|base| {
        let loaded = super::read_preset(base, &[]).ok()?;
        serde_json::to_value(&loaded.model).ok()
    });
    let writer = Writer {
        loaded,
        comments,
        base,
    };
    let mut text = String::new();
    writer.table(&mut text, ROOT, "", &model);
    text
}

struct Writer<'a> {
    loaded: &'a Loaded,
    comments: Comments,
    base: Option<Json>,
}

impl Writer<'_> {
    fn table(&self, text: &mut String, keys: &[(&str, Node)], table: &str, values: &Json) {
        for (name, node) in keys {
            let (path, value) = (join(table, name), &values[*name]);
            match node {
                Node::Leaf { kind, .. } => {
                    self.above(text, &path);
                    let comment = self.comment(&path, kind).map(|c| format!(" # {c}"));
                    // Writing to a String can't fail.
                    let _ = writeln!(
                        text,
                        "{name} = {}{}",
                        written(kind, value),
                        comment.unwrap_or_default()
                    );
                }
                Node::Table { keys, .. } if value.is_object() => {
                    text.push('\n');
                    self.above(text, &path);
                    let _ = writeln!(text, "[{path}]");
                    self.table(text, keys, &path, value);
                }
                Node::Table { .. } => {
                    // Absent: nothing says it better than nothing.
                }
            }
        }
    }

    fn above(&self, text: &mut String, path: &str) {
        for line in self.comments.above.get(path).into_iter().flatten() {
            text.push_str(line);
            text.push('\n');
        }
    }

    fn comment(&self, path: &str, kind: &Kind) -> Option<String> {
        let old = self.comments.behind.get(path);
        let Some(setting) = self.loaded.settings.get(path) else {
            return Some("default".to_owned());
        };
        let by = match (&setting.origin, self.loaded.base) {
            (Origin::Preset(_), _) | (Origin::File { .. }, None) => return old.cloned(),
            (by, _) => by,
        };
        let before = self.base.as_ref().and_then(|base| {
            let value = path.split('.').try_fold(base, |v, name| v.get(name))?;
            let Preset { name, .. } = self.loaded.base?;
            (!value.is_null()).then(|| format!("; {name}: {}", written(kind, value)))
        });
        let old = old.map(|old| format!(", {old}")).unwrap_or_default();
        Some(format!("{by}{}{old}", before.unwrap_or_default()))
    }
}

/// A value as TOML has it.
fn written(kind: &Kind, value: &Json) -> String {
    match (kind, value) {
        (Kind::Size { .. }, Json::Number(n)) => match n.as_u64() {
            Some(bytes) if bytes.is_multiple_of(1024) => format!("\"{}\"", schema::size(bytes)),
            _ => n.to_string(),
        },
        // Names have no control characters; what JSON escapes besides, TOML does likewise.
        (_, value) => value.to_string(),
    }
}
