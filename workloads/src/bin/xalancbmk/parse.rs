//! Text to a tree.

use crate::document::{Document, Kind};

type Result<T> = std::result::Result<T, String>;

pub fn parse(text: &str) -> Result<Document> {
    let mut document = Document::new();
    let mut open = vec![0];
    let mut rest = text;
    while !rest.is_empty() {
        let Some(inner) = rest.strip_prefix('<') else {
            let end = rest.find('<').unwrap_or(rest.len());
            // White space between elements that hold no text is layout only.
            if open.len() > 1 && !rest[..end].trim().is_empty() {
                let text = unescape(&rest[..end])?;
                document.add(open.last().copied(), Kind::Text(text));
            }
            rest = &rest[end..];
            continue;
        };
        let end = tag_end(inner)?;
        let (tag, after) = (&inner[..end], &inner[end + 1..]);
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let node = open.pop().unwrap_or(0);
            if document.element(node) != Some(name) || open.is_empty() {
                return Err(format!("</{name}> closes {:?}", document.element(node)));
            }
            continue;
        }
        let (tag, empty) = match tag.strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        if name.is_empty() {
            return Err("an element without a name".to_owned());
        }
        let name = document.name(name);
        let node = document.add(open.last().copied(), Kind::Element(name));
        let mut left = attributes.trim_start();
        while !left.is_empty() {
            let (name, value) = left
                .split_once("=\"")
                .ok_or_else(|| format!("attributes: {left}"))?;
            let (value, more) = value
                .split_once('"')
                .ok_or_else(|| format!("attributes: {left}"))?;
            let name = document.name(name);
            let value = unescape(value)?;
            document.nodes[node].attributes.push((name, value));
            left = more.trim_start();
        }
        if !empty {
            open.push(node);
        }
    }
    if open.len() != 1 {
        return Err(format!(
            "{:?} is not closed",
            document.element(open[open.len() - 1])
        ));
    }
    Ok(document)
}

/// Where the tag ends; a > in quotes does not end it.
fn tag_end(text: &str) -> Result<usize> {
    let mut quoted = false;
    for (at, c) in text.bytes().enumerate() {
        match c {
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Ok(at),
            _ => {}
        }
    }
    Err("a tag without end".to_owned())
}

fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = rest[at..].find(';').ok_or("an & without ;")? + at;
        out.push(match &rest[at + 1..end] {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            other => return Err(format!("unknown entity {other}")),
        });
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}
