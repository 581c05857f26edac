//! Text to a tree: the script's lexer and parser.

use std::rc::Rc;

use sevlab_workloads::guest::Map;

use crate::regex::Regex;
use crate::value::Value;

pub enum Expr {
    Constant(Value),
    /// A variable of the frame, by number; those below the count of globals are global.
    Variable(usize),
    Index(usize, Box<Expr>),
    Element(usize, Box<Expr>),
    Binary(Op, Box<Expr>, Box<Expr>),
    Match(Box<Expr>, Rc<Regex>),
    Pattern(Rc<Regex>),
    Array,
    Hash,
    Builtin(Builtin, Vec<Expr>),
    Call(String, Vec<Expr>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Rem,
    Concat,
    Lt,
    Le,
    Gt,
    Ge,
    Equal,
    Same,
    And,
    Or,
}

#[derive(Clone, Copy)]
pub enum Builtin {
    Len,
    Push,
    Pop,
    Join,
    Split,
    Replace,
    Lc,
    Ord,
    Chr,
    Substr,
    Keys,
    Group,
    Print,
}

const BUILTINS: [(&str, Builtin); 13] = [
    ("len", Builtin::Len),
    ("push", Builtin::Push),
    ("pop", Builtin::Pop),
    ("join", Builtin::Join),
    ("split", Builtin::Split),
    ("replace", Builtin::Replace),
    ("lc", Builtin::Lc),
    ("ord", Builtin::Ord),
    ("chr", Builtin::Chr),
    ("substr", Builtin::Substr),
    ("keys", Builtin::Keys),
    ("group", Builtin::Group),
    ("print", Builtin::Print),
];

pub enum Stmt {
    Assign(Expr, Expr),
    If(Expr, Vec<Stmt>, Vec<Stmt>),
    While(Expr, Vec<Stmt>),
    Each(usize, Expr, Vec<Stmt>),
    Return(Expr),
    Expr(Expr),
}

/// A function, or the script itself.
#[derive(Default)]
pub struct Body {
    pub params: usize,
    pub variables: usize,
    pub statements: Vec<Stmt>,
}

pub struct Program {
    pub main: Body,
    pub functions: Map<String, Body>,
}

#[derive(Clone, PartialEq, Debug)]
enum Token {
    Word(String),
    Int(i64),
    Text(String),
    Pattern(String),
    Sign(&'static str),
}

const SIGNS: [&str; 25] = [
    "=~", "==", "<=", ">=", "&&", "||", "=", "<", ">", "+", "-", "*", "%", ".", "(", ")", "{", "}",
    "[", "]", ",", ";", "!", "?", ":",
];

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut out: Vec<Token> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let run = |is: fn(char) -> bool| rest.find(|c| !is(c)).unwrap_or(rest.len());
        let (length, token) = if c.is_whitespace() {
            (1, None)
        } else if c == '#' {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if c.is_ascii_alphabetic() {
            let n = run(|c| c.is_ascii_alphanumeric() || c == '_');
            (n, Some(Token::Word(rest[..n].to_owned())))
        } else if c.is_ascii_digit() {
            let n = run(|c| c.is_ascii_digit());
            (
                n,
                Some(Token::Int(rest[..n].parse().map_err(|e| format!("{e}"))?)),
            )
        } else if c == '"' {
            let end = rest[1..].find('"').ok_or("a string without end")? + 1;
            (
                end + 1,
                Some(Token::Text(rest[1..end].replace("\\n", "\n"))),
            )
        } else if c == '/' {
            let end = rest[1..].find('/').ok_or("a pattern without end")? + 1;
            (end + 1, Some(Token::Pattern(rest[1..end].to_owned())))
        } else {
            let sign = SIGNS.iter().find(|s| rest.starts_with(**s));
            let sign = sign.ok_or_else(|| format!("unknown character {c:?}"))?;
            (sign.len(), Some(Token::Sign(sign)))
        };
        out.extend(token);
        rest = &rest[length..];
    }
    Ok(out)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    names: Map<String, usize>,
}

type Result<T> = std::result::Result<T, String>;

/// `lines` is the first variable.
pub fn parse(text: &str) -> Result<Program> {
    let mut p = Parser {
        tokens: tokens(text)?,
        at: 0,
        names: Map::default(),
    };
    let mut functions = Map::default();
    let mut statements = Vec::new();
    p.variable("lines");
    while p.at < p.tokens.len() {
        if !p.word("sub") {
            statements.push(p.statement()?);
            continue;
        }
        let globals = std::mem::take(&mut p.names);
        let name = p.name()?;
        p.expect("(")?;
        while !p.accept(")") {
            let param = p.name()?;
            p.variable(&param);
            p.accept(",");
        }
        let params = p.names.len();
        let statements = p.block()?;
        let variables = std::mem::replace(&mut p.names, globals).len();
        functions.insert(
            name,
            Body {
                params,
                variables,
                statements,
            },
        );
    }
    let main = Body {
        params: 1,
        variables: p.names.len(),
        statements,
    };
    Ok(Program { main, functions })
}

impl Parser {
    fn variable(&mut self, name: &str) -> usize {
        let next = self.names.len();
        *self.names.entry(name.to_owned()).or_insert(next)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(s)) if *s == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.accept(sign) {
            return Ok(());
        }
        Err(format!(
            "{sign} expected, {:?} found",
            self.tokens.get(self.at)
        ))
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(w)) if w == word);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Result<String> {
        match self.tokens.get(self.at) {
            Some(Token::Word(w)) => {
                self.at += 1;
                Ok(w.clone())
            }
            other => Err(format!("a name expected, {other:?} found")),
        }
    }

    fn block(&mut self) -> Result<Vec<Stmt>> {
        self.expect("{")?;
        let mut out = Vec::new();
        while !self.accept("}") {
            out.push(self.statement()?);
        }
        Ok(out)
    }

    fn condition(&mut self) -> Result<Expr> {
        self.expect("(")?;
        let e = self.expression(0)?;
        self.expect(")")?;
        Ok(e)
    }

    fn statement(&mut self) -> Result<Stmt> {
        if self.word("if") {
            let condition = self.condition()?;
            let yes = self.block()?;
            let no = if self.word("else") {
                self.block()?
            } else {
                Vec::new()
            };
            return Ok(Stmt::If(condition, yes, no));
        }
        if self.word("while") {
            return Ok(Stmt::While(self.condition()?, self.block()?));
        }
        if self.word("each") {
            let name = self.name()?;
            let variable = self.variable(&name);
            return Ok(Stmt::Each(variable, self.condition()?, self.block()?));
        }
        if self.word("return") {
            let e = self.expression(0)?;
            self.expect(";")?;
            return Ok(Stmt::Return(e));
        }
        let e = self.expression(0)?;
        let statement = if self.accept("=") {
            Stmt::Assign(e, self.expression(0)?)
        } else {
            Stmt::Expr(e)
        };
        self.expect(";")?;
        Ok(statement)
    }

    fn expression(&mut self, least: u8) -> Result<Expr> {
        let mut left = self.primary()?;
        loop {
            let (strength, op) = match self.tokens.get(self.at) {
                Some(Token::Sign("=~")) => {
                    let Some(Token::Pattern(p)) = self.tokens.get(self.at + 1) else {
                        return Err("=~ without a pattern".to_owned());
                    };
                    left = Expr::Match(Box::new(left), Rc::new(Regex::new(p)?));
                    self.at += 2;
                    continue;
                }
                Some(Token::Word(w)) if w == "eq" => (3, Op::Same),
                Some(Token::Sign(s)) => match *s {
                    "||" => (1, Op::Or),
                    "&&" => (2, Op::And),
                    "==" => (3, Op::Equal),
                    "<" => (4, Op::Lt),
                    "<=" => (4, Op::Le),
                    ">" => (4, Op::Gt),
                    ">=" => (4, Op::Ge),
                    "." => (5, Op::Concat),
                    "+" => (6, Op::Add),
                    "-" => (6, Op::Sub),
                    "*" => (7, Op::Mul),
                    "%" => (7, Op::Rem),
                    _ => return Ok(left),
                },
                _ => return Ok(left),
            };
            if strength < least {
                return Ok(left);
            }
            self.at += 1;
            let right = self.expression(strength + 1)?;
            left = Expr::Binary(op, Box::new(left), Box::new(right));
        }
    }

    fn list(&mut self) -> Result<Vec<Expr>> {
        let mut out = Vec::new();
        while !self.accept(")") {
            out.push(self.expression(0)?);
            self.accept(",");
        }
        Ok(out)
    }

    fn primary(&mut self) -> Result<Expr> {
        let token = self
            .tokens
            .get(self.at)
            .cloned()
            .ok_or("an expression expected")?;
        self.at += 1;
        Ok(match token {
            Token::Int(n) => Expr::Constant(Value::Int(n)),
            Token::Text(t) => Expr::Constant(Value::from(&*t)),
            Token::Pattern(p) => Expr::Pattern(Rc::new(Regex::new(&p)?)),
            Token::Sign("(") => {
                let e = self.expression(0)?;
                self.expect(")")?;
                e
            }
            Token::Sign("[") => {
                self.expect("]")?;
                Expr::Array
            }
            Token::Sign("{") => {
                self.expect("}")?;
                Expr::Hash
            }
            Token::Word(name) if self.accept("(") => {
                let args = self.list()?;
                match BUILTINS.iter().find(|(n, _)| *n == name) {
                    Some((_, builtin)) => Expr::Builtin(*builtin, args),
                    None => Expr::Call(name, args),
                }
            }
            Token::Word(name) => {
                let variable = self.variable(&name);
                // A brace that follows at once is an index; statements put a parenthesis before theirs.
                if self.accept("[") {
                    let index = self.expression(0)?;
                    self.expect("]")?;
                    Expr::Index(variable, Box::new(index))
                } else if self.accept("{") {
                    let key = self.expression(0)?;
                    self.expect("}")?;
                    Expr::Element(variable, Box::new(key))
                } else {
                    Expr::Variable(variable)
                }
            }
            other => return Err(format!("an expression expected, {other:?} found")),
        })
    }
}
