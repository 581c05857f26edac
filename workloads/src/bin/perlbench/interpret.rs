//! Walks the tree.

use std::rc::Rc;

use crate::parse::{Body, Builtin, Expr, Op, Program, Stmt};
use crate::regex::Regex;
use crate::value::Value;

struct Interpreter<'a> {
    program: &'a Program,
    out: String,
    /// Of the last match that succeeded.
    groups: Vec<Rc<str>>,
}

type Frame = Vec<Value>;
type Result<T> = std::result::Result<T, String>;

/// Runs a script over `lines`, and returns what it printed.
pub fn run(program: &Program, lines: Value) -> Result<String> {
    let mut interpreter = Interpreter {
        program,
        out: String::new(),
        groups: Vec::new(),
    };
    interpreter.call(&program.main, vec![lines])?;
    Ok(interpreter.out)
}

impl Interpreter<'_> {
    fn call(&mut self, body: &Body, mut args: Vec<Value>) -> Result<Value> {
        if args.len() != body.params {
            return Err(format!(
                "{} arguments where there are {}",
                args.len(),
                body.params
            ));
        }
        args.resize(body.variables, Value::Undef);
        Ok(self
            .block(&body.statements, &mut args)?
            .unwrap_or(Value::Undef))
    }

    /// Some: a return.
    fn block(&mut self, list: &[Stmt], frame: &mut Frame) -> Result<Option<Value>> {
        for statement in list {
            let returned = match statement {
                Stmt::Expr(e) => {
                    self.value(e, frame)?;
                    None
                }
                Stmt::Assign(to, e) => {
                    let value = self.value(e, frame)?;
                    self.assign(to, value, frame)?;
                    None
                }
                Stmt::If(condition, yes, no) => {
                    let list = if self.value(condition, frame)?.truth() {
                        yes
                    } else {
                        no
                    };
                    self.block(list, frame)?
                }
                Stmt::While(condition, list) => {
                    let mut returned = None;
                    while returned.is_none() && self.value(condition, frame)?.truth() {
                        returned = self.block(list, frame)?;
                    }
                    returned
                }
                Stmt::Each(variable, e, list) => {
                    let Value::Array(array) = self.value(e, frame)? else {
                        return Err("each wants an array".to_owned());
                    };
                    let mut at = 0;
                    loop {
                        let Some(value) = array.borrow().get(at).cloned() else {
                            break None;
                        };
                        frame[*variable] = value;
                        at += 1;
                        if let Some(value) = self.block(list, frame)? {
                            break Some(value);
                        }
                    }
                }
                Stmt::Return(e) => Some(self.value(e, frame)?),
            };
            if returned.is_some() {
                return Ok(returned);
            }
        }
        Ok(None)
    }

    fn assign(&mut self, to: &Expr, value: Value, frame: &mut Frame) -> Result<()> {
        match to {
            Expr::Variable(v) => frame[*v] = value,
            Expr::Index(v, index) => {
                let index = self.value(index, frame)?.int() as usize;
                let Value::Array(array) = &frame[*v] else {
                    return Err("no array".to_owned());
                };
                let mut array = array.borrow_mut();
                if index >= array.len() {
                    array.resize(index + 1, Value::Undef);
                }
                array[index] = value;
            }
            Expr::Element(v, key) => {
                let key = self.value(key, frame)?.text();
                let Value::Hash(hash) = &frame[*v] else {
                    return Err("no hash".to_owned());
                };
                hash.borrow_mut().insert(key, value);
            }
            _ => return Err("can't assign to that".to_owned()),
        }
        Ok(())
    }

    fn value(&mut self, e: &Expr, frame: &mut Frame) -> Result<Value> {
        Ok(match e {
            Expr::Constant(value) => value.clone(),
            Expr::Variable(v) => frame[*v].clone(),
            Expr::Array => Value::array(Vec::new()),
            Expr::Hash => Value::Hash(Rc::default()),
            Expr::Index(v, index) => {
                let index = self.value(index, frame)?.int() as usize;
                match &frame[*v] {
                    Value::Array(a) => a.borrow().get(index).cloned().unwrap_or(Value::Undef),
                    _ => Value::Undef,
                }
            }
            Expr::Element(v, key) => {
                let key = self.value(key, frame)?.text();
                match &frame[*v] {
                    Value::Hash(h) => h.borrow().get(&key).cloned().unwrap_or(Value::Undef),
                    _ => Value::Undef,
                }
            }
            Expr::Binary(op, a, b) => self.binary(*op, a, b, frame)?,
            Expr::Match(e, regex) => {
                let text = self.value(e, frame)?.text();
                match regex.find(text.as_bytes(), 0) {
                    None => Value::Int(0),
                    Some(found) => {
                        let part = |g: &[Option<usize>]| match (g[0], g[1]) {
                            (Some(a), Some(b)) => Rc::from(&text[a..b]),
                            _ => Rc::from(""),
                        };
                        self.groups = found.chunks(2).map(part).collect();
                        Value::Int(1)
                    }
                }
            }
            Expr::Pattern(_) => return Err("a pattern where a value should be".to_owned()),
            Expr::Builtin(builtin, args) => self.builtin(*builtin, args, frame)?,
            Expr::Call(name, args) => {
                let program = self.program;
                let body = program
                    .functions
                    .get(name)
                    .ok_or_else(|| format!("no sub {name}"))?;
                let args: Result<Vec<Value>> = args.iter().map(|a| self.value(a, frame)).collect();
                self.call(body, args?)?
            }
        })
    }

    fn binary(&mut self, op: Op, a: &Expr, b: &Expr, frame: &mut Frame) -> Result<Value> {
        let a = self.value(a, frame)?;
        match op {
            Op::And if !a.truth() => return Ok(a),
            Op::Or if a.truth() => return Ok(a),
            _ => {}
        }
        let b = self.value(b, frame)?;
        Ok(match op {
            Op::And | Op::Or => b,
            Op::Concat => Value::from(&*[&*a.text(), &*b.text()].concat()),
            Op::Same => Value::from(a.text() == b.text()),
            Op::Add => Value::Int(a.int().wrapping_add(b.int())),
            Op::Sub => Value::Int(a.int().wrapping_sub(b.int())),
            Op::Mul => Value::Int(a.int().wrapping_mul(b.int())),
            Op::Rem => Value::Int(a.int().checked_rem(b.int()).ok_or("a remainder by 0")?),
            Op::Lt => Value::from(a.int() < b.int()),
            Op::Le => Value::from(a.int() <= b.int()),
            Op::Gt => Value::from(a.int() > b.int()),
            Op::Ge => Value::from(a.int() >= b.int()),
            Op::Equal => Value::from(a.int() == b.int()),
        })
    }

    fn builtin(&mut self, builtin: Builtin, args: &[Expr], frame: &mut Frame) -> Result<Value> {
        let pattern = |n: usize| match args.get(n) {
            Some(Expr::Pattern(p)) => Ok(p.clone()),
            _ => Err("a pattern expected".to_owned()),
        };
        let mut arg = |n: usize| match args.get(n) {
            Some(e) => self.value(e, frame),
            None => Err("an argument is missing".to_owned()),
        };
        Ok(match builtin {
            Builtin::Len => match arg(0)? {
                Value::Str(s) => Value::Int(s.len() as i64),
                other => Value::Int(other.int()),
            },
            Builtin::Push => {
                let (Value::Array(array), value) = (arg(0)?, arg(1)?) else {
                    return Err("push wants an array".to_owned());
                };
                array.borrow_mut().push(value);
                Value::Undef
            }
            Builtin::Pop => match arg(0)? {
                Value::Array(array) => array.borrow_mut().pop().unwrap_or(Value::Undef),
                _ => return Err("pop wants an array".to_owned()),
            },
            Builtin::Join => {
                let (by, Value::Array(array)) = (arg(0)?.text(), arg(1)?) else {
                    return Err("join wants an array".to_owned());
                };
                let parts: Vec<Rc<str>> = array.borrow().iter().map(Value::text).collect();
                Value::from(&*parts.join(&*by))
            }
            Builtin::Split => split(&*pattern(0)?, &arg(1)?.text()),
            Builtin::Replace => {
                let (by, text) = (arg(1)?.text(), arg(2)?.text());
                replace(&*pattern(0)?, &by, &text)
            }
            Builtin::Lc => Value::from(&*arg(0)?.text().to_ascii_lowercase()),
            Builtin::Ord => {
                let (text, at) = (arg(0)?.text(), arg(1)?.int() as usize);
                Value::Int(text.as_bytes().get(at).copied().map_or(0, i64::from))
            }
            Builtin::Chr => Value::from(&*char::from(arg(0)?.int() as u8).to_string()),
            Builtin::Substr => {
                let text = arg(0)?.text();
                let from = (arg(1)?.int() as usize).min(text.len());
                let to = (from + arg(2)?.int() as usize).min(text.len());
                Value::from(&text[from..to])
            }
            Builtin::Keys => {
                let Value::Hash(hash) = arg(0)? else {
                    return Err("keys wants a hash".to_owned());
                };
                let mut keys: Vec<Rc<str>> = hash.borrow().keys().cloned().collect();
                keys.sort_unstable();
                Value::array(keys.into_iter().map(Value::Str).collect())
            }
            Builtin::Group => {
                let n = arg(0)?.int() as usize;
                self.groups.get(n).cloned().map_or(Value::Undef, Value::Str)
            }
            Builtin::Print => {
                let text = arg(0)?.text();
                self.out.push_str(&text);
                Value::Undef
            }
        })
    }
}

fn split(by: &Regex, text: &str) -> Value {
    let (mut out, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = by.find(text.as_bytes(), at) {
        let (Some(start), Some(end)) = (found[0], found[1]) else {
            break;
        };
        if end == start {
            at += 1;
            continue;
        }
        out.push(Value::from(&text[from..start]));
        (from, at) = (end, end);
    }
    out.push(Value::from(&text[from..]));
    Value::array(out)
}

/// `&` in the replacement is what was found.
fn replace(what: &Regex, by: &str, text: &str) -> Value {
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    while let Some(found) = what.find(text.as_bytes(), from) {
        let (Some(start), Some(end)) = (found[0], found[1]) else {
            break;
        };
        if end == start {
            break;
        }
        out.push_str(&text[from..start]);
        out.push_str(&by.replace('&', &text[start..end]));
        from = end;
    }
    out.push_str(&text[from..]);
    Value::from(&*out)
}
