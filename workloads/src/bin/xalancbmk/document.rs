//! A tree of nodes.

use sevlab_workloads::guest::Map;

pub type Node = usize;

/// A name of an element or attribute, by number.
pub type Name = u32;

#[derive(Debug)]
pub enum Kind {
    Element(Name),
    Text(String),
}

#[derive(Debug)]
pub struct Data {
    pub kind: Kind,
    pub attributes: Vec<(Name, String)>,
    pub parent: Option<Node>,
    pub children: Vec<Node>,
}

/// The root, node 0, is an element without a name; it is not written.
#[derive(Debug)]
pub struct Document {
    #[expect(clippy::vec_box)] // as Xalan has it: each node is an object of its own
    pub nodes: Vec<Box<Data>>,
    names: Vec<String>,
    numbers: Map<String, Name>,
}

impl Document {
    pub fn new() -> Self {
        let mut this = Self {
            nodes: Vec::new(),
            names: Vec::new(),
            numbers: Map::default(),
        };
        let root = this.name("");
        this.add(None, Kind::Element(root));
        this
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn name(&mut self, name: &str) -> Name {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as Name;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    pub fn text_of(&self, name: Name) -> &str {
        &self.names[name as usize]
    }

    pub fn add(&mut self, parent: Option<Node>, kind: Kind) -> Node {
        let node = self.nodes.len();
        self.nodes.push(Box::new(Data {
            kind,
            attributes: Vec::new(),
            parent,
            children: Vec::new(),
        }));
        if let Some(parent) = parent {
            self.nodes[parent].children.push(node);
        }
        node
    }

    pub fn element(&self, node: Node) -> Option<&str> {
        match self.nodes[node].kind {
            Kind::Element(name) => Some(self.text_of(name)),
            Kind::Text(_) => None,
        }
    }

    pub fn attribute(&self, node: Node, name: &str) -> Option<&str> {
        let found = self.nodes[node]
            .attributes
            .iter()
            .find(|(n, _)| self.text_of(*n) == name);
        found.map(|(_, value)| value.as_str())
    }

    /// All text below a node.
    pub fn value(&self, node: Node, out: &mut String) {
        match &self.nodes[node].kind {
            Kind::Text(text) => out.push_str(text),
            Kind::Element(_) => self.nodes[node]
                .children
                .iter()
                .for_each(|c| self.value(*c, out)),
        }
    }

    /// Elements of that name.
    pub fn count(&self, name: &str) -> u64 {
        (0..self.nodes.len())
            .filter(|n| self.element(*n) == Some(name))
            .count() as u64
    }

    pub fn write(&self, node: Node, out: &mut String) {
        let data = &self.nodes[node];
        let name = match &data.kind {
            Kind::Text(text) => return escape(text, out),
            Kind::Element(name) => self.text_of(*name),
        };
        if !name.is_empty() {
            out.push('<');
            out.push_str(name);
            for (attribute, value) in &data.attributes {
                out.push(' ');
                out.push_str(self.text_of(*attribute));
                out.push_str("=\"");
                escape(value, out);
                out.push('"');
            }
            if data.children.is_empty() {
                out.push_str("/>");
                return;
            }
            out.push('>');
        }
        data.children.iter().for_each(|c| self.write(*c, out));
        if !name.is_empty() {
            out.push_str("</");
            out.push_str(name);
            out.push('>');
        }
    }
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}
