//! Tokens to a syntax tree, by recursive descent.

use sevlab_workloads::guest::Map;

use crate::lexer::Token;

/// Two operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Lt,
    Le,
    Eq,
    Ne,
}

#[derive(Debug)]
pub enum Expr {
    Number(i32),
    Variable(usize),
    Element(usize, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `&&` (true) or `||`.
    Short(bool, Box<Expr>, Box<Expr>),
    Call(usize, Vec<Expr>),
}

#[derive(Debug)]
pub enum Stmt {
    Assign(usize, Expr),
    Store(usize, Expr, Expr),
    If(Expr, Vec<Stmt>, Vec<Stmt>),
    While(Expr, Vec<Stmt>),
    Return(Expr),
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub params: usize,
    pub body: Vec<Stmt>,
}

#[derive(Debug, Default)]
pub struct Program {
    /// Names and lengths.
    pub arrays: Vec<(String, usize)>,
    pub functions: Vec<Function>,
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    arrays: Map<String, usize>,
    functions: Map<String, usize>,
    /// Of the function, innermost scope last.
    scopes: Vec<Map<String, usize>>,
    variables: usize,
}

type Result<T> = std::result::Result<T, String>;

pub fn parse(tokens: Vec<Token>) -> Result<Program> {
    let mut p = Parser {
        tokens,
        at: 0,
        arrays: Map::default(),
        functions: Map::default(),
        scopes: Vec::new(),
        variables: 0,
    };
    let mut program = Program::default();
    while p.tokens[p.at] != Token::End {
        p.word("int")?;
        let name = p.name()?;
        if p.accept("[") {
            let Token::Number(length) = p.next() else {
                return Err(format!("{name}: no length"));
            };
            p.arrays.insert(name.clone(), program.arrays.len());
            program.arrays.push((name, length as usize));
            p.expect("]")?;
            p.expect(";")?;
        } else {
            p.functions.insert(name.clone(), program.functions.len());
            program.functions.push(p.function(name)?);
        }
    }
    Ok(program)
}

impl Parser {
    fn next(&mut self) -> Token {
        let token = std::mem::replace(&mut self.tokens[self.at], Token::End);
        self.at += usize::from(self.at + 1 < self.tokens.len());
        token
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = matches!(&self.tokens[self.at], Token::Sign(s) if *s == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.accept(sign) {
            return Ok(());
        }
        Err(format!(
            "token {}: {sign} expected, {:?} found",
            self.at, self.tokens[self.at]
        ))
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.tokens[self.at], Token::Name(n) if n == word)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        match self.next() {
            Token::Name(n) if n == word => Ok(()),
            other => Err(format!(
                "token {}: {word} expected, {other:?} found",
                self.at
            )),
        }
    }

    fn name(&mut self) -> Result<String> {
        match self.next() {
            Token::Name(n) => Ok(n),
            other => Err(format!(
                "token {}: a name expected, {other:?} found",
                self.at
            )),
        }
    }

    fn declare(&mut self, name: String) -> usize {
        let number = self.variables;
        self.variables += 1;
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, number);
        }
        number
    }

    fn function(&mut self, name: String) -> Result<Function> {
        self.scopes = vec![Map::default()];
        self.variables = 0;
        self.expect("(")?;
        while !self.accept(")") {
            self.word("int")?;
            let param = self.name()?;
            self.declare(param);
            self.accept(",");
        }
        let params = self.variables;
        let body = self.block()?;
        Ok(Function { name, params, body })
    }

    fn block(&mut self) -> Result<Vec<Stmt>> {
        self.expect("{")?;
        self.scopes.push(Map::default());
        let mut out = Vec::new();
        while !self.accept("}") {
            out.push(self.statement()?);
        }
        self.scopes.pop();
        Ok(out)
    }

    fn statement(&mut self) -> Result<Stmt> {
        if self.is_word("int") {
            self.next();
            let name = self.name()?;
            self.expect("=")?;
            let value = self.expression(0)?;
            self.expect(";")?;
            return Ok(Stmt::Assign(self.declare(name), value));
        }
        if self.is_word("if") {
            self.next();
            self.expect("(")?;
            let condition = self.expression(0)?;
            self.expect(")")?;
            let yes = self.block()?;
            let no = if self.is_word("else") {
                self.next();
                self.block()?
            } else {
                Vec::new()
            };
            return Ok(Stmt::If(condition, yes, no));
        }
        if self.is_word("while") {
            self.next();
            self.expect("(")?;
            let condition = self.expression(0)?;
            self.expect(")")?;
            return Ok(Stmt::While(condition, self.block()?));
        }
        if self.is_word("return") {
            self.next();
            let value = self.expression(0)?;
            self.expect(";")?;
            return Ok(Stmt::Return(value));
        }
        let name = self.name()?;
        let statement = if self.accept("[") {
            let array = self.array(&name)?;
            let index = self.expression(0)?;
            self.expect("]")?;
            self.expect("=")?;
            Stmt::Store(array, index, self.expression(0)?)
        } else {
            self.expect("=")?;
            Stmt::Assign(self.variable(&name)?, self.expression(0)?)
        };
        self.expect(";")?;
        Ok(statement)
    }

    fn array(&self, name: &str) -> Result<usize> {
        let found = self.arrays.get(name);
        found.copied().ok_or_else(|| format!("no array {name}"))
    }

    fn variable(&self, name: &str) -> Result<usize> {
        let found = self.scopes.iter().rev().find_map(|s| s.get(name));
        found.copied().ok_or_else(|| format!("no variable {name}"))
    }

    /// Operators that bind at least as strongly as `least`.
    fn expression(&mut self, least: u8) -> Result<Expr> {
        let mut left = self.primary()?;
        loop {
            let Token::Sign(sign) = self.tokens[self.at] else {
                return Ok(left);
            };
            let Some((strength, op)) = operator(sign) else {
                return Ok(left);
            };
            if strength < least {
                return Ok(left);
            }
            self.at += 1;
            let right = self.expression(strength + 1)?;
            let (left_box, right) = (Box::new(left), Box::new(right));
            left = match (sign, op) {
                ("&&" | "||", _) => Expr::Short(sign == "&&", left_box, right),
                // a > b is b < a: the operands have no effects but calls, and those stand alone.
                (">" | ">=", op) => Expr::Binary(op, right, left_box),
                (_, op) => Expr::Binary(op, left_box, right),
            };
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        if self.accept("(") {
            let inner = self.expression(0)?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.next() {
            Token::Number(n) => Ok(Expr::Number(n)),
            Token::Name(name) if self.accept("(") => {
                let callee = self.functions.get(&name).copied();
                let callee = callee.ok_or_else(|| format!("no function {name}"))?;
                let mut args = Vec::new();
                while !self.accept(")") {
                    args.push(self.expression(0)?);
                    self.accept(",");
                }
                Ok(Expr::Call(callee, args))
            }
            Token::Name(name) if self.accept("[") => {
                let array = self.array(&name)?;
                let index = self.expression(0)?;
                self.expect("]")?;
                Ok(Expr::Element(array, Box::new(index)))
            }
            Token::Name(name) => Ok(Expr::Variable(self.variable(&name)?)),
            other => Err(format!(
                "token {}: an expression expected, {other:?} found",
                self.at
            )),
        }
    }
}

/// How strongly an operator binds, and what it is.
fn operator(sign: &str) -> Option<(u8, Binary)> {
    Some(match sign {
        "||" => (1, Binary::Or),
        "&&" => (2, Binary::And),
        "|" => (3, Binary::Or),
        "^" => (4, Binary::Xor),
        "&" => (5, Binary::And),
        "==" => (6, Binary::Eq),
        "!=" => (6, Binary::Ne),
        "<" | ">" => (7, Binary::Lt),
        "<=" | ">=" => (7, Binary::Le),
        "<<" => (8, Binary::Shl),
        ">>" => (8, Binary::Shr),
        "+" => (9, Binary::Add),
        "-" => (9, Binary::Sub),
        "*" => (10, Binary::Mul),
        "/" => (10, Binary::Div),
        "%" => (10, Binary::Rem),
        _ => return None,
    })
}
