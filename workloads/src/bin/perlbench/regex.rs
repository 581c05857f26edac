//! Regular expressions over bytes, by backtracking: literals, `.`, classes, groups, `|`, `*`, `+`, `?`, `^`, `$`.

#[derive(Debug)]
enum Node {
    Byte(u8),
    Any,
    Class(Box<[bool; 256]>),
    /// Tries the first, then the second.
    Split(usize, usize),
    Jump(usize),
    Save(usize),
    Start,
    End,
    Match,
}

#[derive(Debug)]
pub struct Regex {
    nodes: Vec<Node>,
    groups: usize,
}

/// Where groups begin and end; the first is the whole match.
pub type Groups = Vec<Option<usize>>;

struct Compiler<'a> {
    pattern: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    groups: usize,
}

impl Regex {
    pub fn new(pattern: &str) -> Result<Self, String> {
        let mut c = Compiler {
            pattern: pattern.as_bytes(),
            at: 0,
            nodes: vec![Node::Save(0)],
            groups: 1,
        };
        c.alternatives()?;
        if c.at < c.pattern.len() {
            return Err(format!("/{pattern}/: a ) too many"));
        }
        c.nodes.push(Node::Save(1));
        c.nodes.push(Node::Match);
        Ok(Self {
            nodes: c.nodes,
            groups: c.groups,
        })
    }

    /// The first match from `from` on.
    pub fn find(&self, text: &[u8], from: usize) -> Option<Groups> {
        // Most patterns here begin with something that can be looked for.
        let first = match &self.nodes[1] {
            Node::Byte(b) => Some(*b),
            _ => None,
        };
        let mut groups = vec![None; 2 * self.groups];
        let mut stack = Vec::new();
        for start in from..=text.len() {
            if let Some(b) = first
                && text.get(start) != Some(&b)
            {
                continue;
            }
            if self.run(text, start, &mut groups, &mut stack) {
                return Some(groups);
            }
        }
        None
    }

    fn run(&self, text: &[u8], start: usize, groups: &mut Groups, stack: &mut Vec<Back>) -> bool {
        groups.fill(None);
        stack.clear();
        let (mut node, mut at) = (0, start);
        loop {
            let ok = match &self.nodes[node] {
                Node::Byte(b) => text.get(at) == Some(b),
                Node::Any => at < text.len(),
                Node::Class(set) => text.get(at).is_some_and(|b| set[*b as usize]),
                Node::Split(first, second) => {
                    stack.push(Back::Try(*second, at));
                    node = *first;
                    continue;
                }
                Node::Jump(to) => {
                    node = *to;
                    continue;
                }
                Node::Save(n) => {
                    stack.push(Back::Restore(*n, groups[*n]));
                    groups[*n] = Some(at);
                    node += 1;
                    continue;
                }
                Node::Start if at == 0 => {
                    node += 1;
                    continue;
                }
                Node::End if at == text.len() => {
                    node += 1;
                    continue;
                }
                Node::Start | Node::End => false,
                Node::Match => return true,
            };
            if ok {
                node += 1;
                at += 1;
                continue;
            }
            loop {
                match stack.pop() {
                    None => return false,
                    Some(Back::Restore(n, was)) => groups[n] = was,
                    Some(Back::Try(n, a)) => {
                        (node, at) = (n, a);
                        break;
                    }
                }
            }
        }
    }
}

/// What to do when the way on fails.
enum Back {
    Try(usize, usize),
    Restore(usize, Option<usize>),
}

impl Compiler<'_> {
    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn alternatives(&mut self) -> Result<(), String> {
        let start = self.nodes.len();
        self.sequence()?;
        let mut jumps = Vec::new();
        let mut start = start;
        while self.peek() == Some(b'|') {
            self.at += 1;
            // The split goes before what is there already.
            self.insert(start, Node::Split(start + 1, 0));
            jumps.push(self.nodes.len());
            self.nodes.push(Node::Jump(0));
            let next = self.nodes.len();
            self.nodes[start] = Node::Split(start + 1, next);
            start = next;
            self.sequence()?;
        }
        let end = self.nodes.len();
        for j in jumps {
            self.nodes[j] = Node::Jump(end);
        }
        Ok(())
    }

    /// Makes room for a node; what points behind it points one further.
    fn insert(&mut self, at: usize, node: Node) {
        for n in &mut self.nodes[at..] {
            match n {
                Node::Split(a, b) => (*a, *b) = (*a + 1, *b + 1),
                Node::Jump(a) => *a += 1,
                _ => {}
            }
        }
        self.nodes.insert(at, node);
    }

    fn sequence(&mut self) -> Result<(), String> {
        while let Some(c) = self.peek() {
            if c == b'|' || c == b')' {
                break;
            }
            let start = self.nodes.len();
            self.atom()?;
            match self.peek() {
                Some(b'*') => {
                    self.insert(start, Node::Split(start + 1, 0));
                    self.nodes.push(Node::Jump(start));
                    self.nodes[start] = Node::Split(start + 1, self.nodes.len());
                    self.at += 1;
                }
                Some(b'+') => {
                    let end = self.nodes.len();
                    self.nodes.push(Node::Split(start, end + 1));
                    self.at += 1;
                }
                Some(b'?') => {
                    self.insert(start, Node::Split(start + 1, 0));
                    self.nodes[start] = Node::Split(start + 1, self.nodes.len());
                    self.at += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn atom(&mut self) -> Result<(), String> {
        let c = self.pattern[self.at];
        self.at += 1;
        let node = match c {
            b'.' => Node::Any,
            b'^' => Node::Start,
            b'$' => Node::End,
            b'[' => self.class()?,
            b'\\' => {
                self.at += 1;
                Node::Byte(*self.pattern.get(self.at - 1).ok_or("a \\ at the end")?)
            }
            b'(' => {
                let group = self.groups;
                self.groups += 1;
                self.nodes.push(Node::Save(2 * group));
                self.alternatives()?;
                if self.peek() != Some(b')') {
                    return Err("a ( too many".to_owned());
                }
                self.at += 1;
                Node::Save(2 * group + 1)
            }
            other => Node::Byte(other),
        };
        self.nodes.push(node);
        Ok(())
    }

    fn class(&mut self) -> Result<Node, String> {
        let not = self.peek() == Some(b'^');
        self.at += usize::from(not);
        let mut set = Box::new([not; 256]);
        loop {
            let low = self.peek().ok_or("a [ without ]")?;
            self.at += 1;
            if low == b']' {
                return Ok(Node::Class(set));
            }
            let mut high = low;
            if self.peek() == Some(b'-') && self.pattern.get(self.at + 1) != Some(&b']') {
                high = *self.pattern.get(self.at + 1).ok_or("a [ without ]")?;
                self.at += 2;
            }
            set[low as usize..=high as usize].fill(!not);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Regex;

    #[test]
    fn finds_what_it_should() {
        let found = |pattern: &str, text: &str| {
            let groups = Regex::new(pattern)
                .expect(pattern)
                .find(text.as_bytes(), 0)?;
            let parts = groups.chunks(2).map(|g| match (g[0], g[1]) {
                (Some(a), Some(b)) => text[a..b].to_owned(),
                _ => "-".to_owned(),
            });
            Some(parts.collect::<Vec<_>>().join(","))
        };
        for (pattern, text, expected) in [
            ("a+b", "xaaab", Some("aaab")),
            ("^b", "ab", None),
            ("(a|bc|d)*e", "xabcde", Some("abcde,d")),
            (
                "([a-z.]+)@([a-z]+\\.)+(org|com)",
                "to a.b@c.d.com!",
                Some("a.b@c.d.com,a.b,d.,com"),
            ),
            ("x?y$", "xyxy", Some("xy")),
            ("[^0-9]+", "12ab3", Some("ab")),
            ("(a)|b", "b", Some("b,-")),
        ] {
            assert_eq!(found(pattern, text).as_deref(), expected, "{pattern}");
        }
        assert!(Regex::new("(a").is_err() && Regex::new("a)").is_err());
    }
}
