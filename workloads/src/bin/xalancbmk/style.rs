//! The stylesheet: templates by element, made of elements to copy and instructions to follow.

use sevlab_workloads::guest::Map;

use crate::document::{Document, Kind, Node};
use crate::path::{Found, Path};

type Result<T> = std::result::Result<T, String>;

enum Action {
    Text(String),
    /// An element of the result.
    Element(String, Vec<Action>),
    Attribute(String, Path),
    Value(Path),
    Apply(Path),
    ForEach(Path, Option<Path>, Vec<Action>),
    If(Path, Vec<Action>),
}

pub struct Style {
    templates: Map<String, Vec<Action>>,
}

impl Style {
    pub fn new(sheet: Document) -> Result<Self> {
        let mut templates = Map::default();
        let style = sheet.nodes[0]
            .children
            .first()
            .copied()
            .ok_or("an empty stylesheet")?;
        for node in &sheet.nodes[style].children {
            let name = sheet
                .attribute(*node, "match")
                .ok_or("a template without match")?;
            templates.insert(name.to_owned(), compile(&sheet, *node)?);
        }
        Ok(Self { templates })
    }

    pub fn apply(&self, document: &Document, result: &mut Document) -> Result<()> {
        let top = document.nodes[0]
            .children
            .first()
            .copied()
            .ok_or("an empty document")?;
        self.template(document, top, result, 0)
    }

    /// The element's template; without one, what is in it.
    fn template(
        &self,
        document: &Document,
        node: Node,
        result: &mut Document,
        to: Node,
    ) -> Result<()> {
        match document.element(node) {
            None => {
                let mut text = String::new();
                document.value(node, &mut text);
                result.add(Some(to), Kind::Text(text));
                Ok(())
            }
            Some(name) => match self.templates.get(name) {
                Some(actions) => self.run(actions, document, node, result, to),
                None => {
                    let children = &document.nodes[node].children;
                    children
                        .iter()
                        .try_for_each(|c| self.template(document, *c, result, to))
                }
            },
        }
    }

    fn run(
        &self,
        actions: &[Action],
        document: &Document,
        node: Node,
        result: &mut Document,
        to: Node,
    ) -> Result<()> {
        for action in actions {
            match action {
                Action::Text(text) => {
                    result.add(Some(to), Kind::Text(text.clone()));
                }
                Action::Element(name, inner) => {
                    let name = result.name(name);
                    let element = result.add(Some(to), Kind::Element(name));
                    self.run(inner, document, node, result, element)?;
                }
                Action::Attribute(name, path) => {
                    let name = result.name(name);
                    result.nodes[to]
                        .attributes
                        .push((name, path.value(document, node)));
                }
                Action::Value(path) => {
                    result.add(Some(to), Kind::Text(path.value(document, node)));
                }
                Action::Apply(path) => {
                    for found in path.follow(document, node) {
                        if let Found::Node(n) = found {
                            self.template(document, n, result, to)?;
                        }
                    }
                }
                Action::ForEach(path, sort, inner) => {
                    let mut found: Vec<Node> = Vec::new();
                    for f in path.follow(document, node) {
                        if let Found::Node(n) = f {
                            found.push(n);
                        }
                    }
                    if let Some(key) = sort {
                        let mut keyed: Vec<(String, Node)> = found
                            .iter()
                            .map(|n| (key.value(document, *n), *n))
                            .collect();
                        keyed.sort();
                        found = keyed.into_iter().map(|(_, n)| n).collect();
                    }
                    for n in found {
                        self.run(inner, document, n, result, to)?;
                    }
                }
                Action::If(path, inner) => {
                    if !path.follow(document, node).is_empty() {
                        self.run(inner, document, node, result, to)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn compile(sheet: &Document, node: Node) -> Result<Vec<Action>> {
    let attribute = |n: Node, name: &str| {
        let value = sheet.attribute(n, name);
        value.ok_or_else(|| format!("{:?} without {name}", sheet.element(n)))
    };
    let path = |n: Node, name: &str| Path::new(attribute(n, name)?);
    let mut out = Vec::new();
    for child in &sheet.nodes[node].children {
        let child = *child;
        out.push(match sheet.element(child) {
            None => {
                let mut text = String::new();
                sheet.value(child, &mut text);
                Action::Text(text)
            }
            Some("value") => Action::Value(path(child, "select")?),
            Some("apply") => Action::Apply(path(child, "select")?),
            Some("attribute") => {
                Action::Attribute(attribute(child, "name")?.to_owned(), path(child, "select")?)
            }
            Some("if") => Action::If(path(child, "test")?, compile(sheet, child)?),
            Some("for-each") => {
                let sort = match sheet.attribute(child, "sort") {
                    Some(key) => Some(Path::new(key)?),
                    None => None,
                };
                Action::ForEach(path(child, "select")?, sort, compile(sheet, child)?)
            }
            Some(name) => Action::Element(name.to_owned(), compile(sheet, child)?),
        });
    }
    Ok(out)
}
