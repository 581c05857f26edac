//! Paths through a document: `a/*/b`, `..`, `.`, `text()`, `@name`, `a[@b='c']`, and several of them between `|`.

use crate::document::{Document, Kind, Node};

#[derive(Debug)]
enum Step {
    Child(String),
    Any,
    Parent,
    This,
    Text,
    Attribute(String),
}

/// What a step's attribute must be.
type Filter = Option<(String, String)>;

#[derive(Debug)]
pub struct Path {
    ways: Vec<Vec<(Step, Filter)>>,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Found {
    Node(Node),
    Attribute(String),
}

impl Path {
    pub fn new(text: &str) -> Result<Self, String> {
        let way = |text: &str| text.split('/').map(step).collect();
        let ways: Result<_, String> = text.split('|').map(way).collect();
        Ok(Self { ways: ways? })
    }

    /// All that it leads to, from a node on; several ways in the order of the document.
    pub fn follow(&self, document: &Document, from: Node) -> Vec<Found> {
        let mut out = Vec::new();
        for way in &self.ways {
            walk(document, from, way, &mut out);
        }
        if self.ways.len() > 1 {
            out.sort_by_key(|f| match f {
                Found::Node(n) => *n,
                Found::Attribute(_) => 0,
            });
        }
        out
    }

    /// The text of the first thing it leads to.
    pub fn value(&self, document: &Document, from: Node) -> String {
        match self.follow(document, from).into_iter().next() {
            None => String::new(),
            Some(Found::Attribute(value)) => value,
            Some(Found::Node(node)) => {
                let mut out = String::new();
                document.value(node, &mut out);
                out
            }
        }
    }
}

fn step(text: &str) -> Result<(Step, Filter), String> {
    let (name, filter) = match text.split_once("[@") {
        None => (text, None),
        Some((name, test)) => {
            let parts = test.strip_suffix("']").and_then(|t| t.split_once("='"));
            let (attribute, value) = parts.ok_or_else(|| format!("a path with [@{test}"))?;
            (name, Some((attribute.to_owned(), value.to_owned())))
        }
    };
    let step = match name {
        "" => return Err("an empty step in a path".to_owned()),
        "*" => Step::Any,
        ".." => Step::Parent,
        "." => Step::This,
        "text()" => Step::Text,
        name => match name.strip_prefix('@') {
            Some(attribute) => Step::Attribute(attribute.to_owned()),
            None => Step::Child(name.to_owned()),
        },
    };
    Ok((step, filter))
}

fn walk(document: &Document, from: Node, way: &[(Step, Filter)], out: &mut Vec<Found>) {
    let Some(((step, filter), rest)) = way.split_first() else {
        out.push(Found::Node(from));
        return;
    };
    let data = &document.nodes[from];
    let mut go = |node: Node| {
        let right =
            |(name, value): &(String, String)| document.attribute(node, name) == Some(value);
        if filter.as_ref().is_none_or(right) {
            walk(document, node, rest, out);
        }
    };
    match step {
        Step::This => go(from),
        Step::Parent => data.parent.into_iter().for_each(go),
        Step::Attribute(name) => {
            if let Some(value) = document.attribute(from, name) {
                out.push(Found::Attribute(value.to_owned()));
            }
        }
        Step::Child(_) | Step::Any | Step::Text => {
            for child in &data.children {
                let is = match (&document.nodes[*child].kind, step) {
                    (Kind::Element(name), Step::Child(wanted)) => document.text_of(*name) == wanted,
                    (Kind::Element(_), Step::Any) | (Kind::Text(_), Step::Text) => true,
                    _ => false,
                };
                if is {
                    go(*child);
                }
            }
        }
    }
}
