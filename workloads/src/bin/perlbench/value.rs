//! What a variable holds.

use std::cell::RefCell;
use std::rc::Rc;

use sevlab_workloads::guest::Map;

#[derive(Clone)]
pub enum Value {
    Undef,
    Int(i64),
    Str(Rc<str>),
    Array(Rc<RefCell<Vec<Value>>>),
    Hash(Rc<RefCell<Map<Rc<str>, Value>>>),
}

impl Value {
    pub fn array(list: Vec<Value>) -> Self {
        Self::Array(Rc::new(RefCell::new(list)))
    }

    /// As a number; strings by their digits.
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(n) => *n,
            Self::Str(s) => s.trim().parse().unwrap_or(0),
            Self::Array(a) => a.borrow().len() as i64,
            Self::Hash(h) => h.borrow().len() as i64,
            Self::Undef => 0,
        }
    }

    pub fn text(&self) -> Rc<str> {
        match self {
            Self::Str(s) => s.clone(),
            Self::Int(n) => Rc::from(n.to_string()),
            Self::Undef => Rc::from(""),
            Self::Array(_) => Rc::from("ARRAY"),
            Self::Hash(_) => Rc::from("HASH"),
        }
    }

    pub fn truth(&self) -> bool {
        match self {
            Self::Str(s) => !s.is_empty() && &**s != "0",
            other => other.int() != 0,
        }
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Int(i64::from(b))
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Self::Str(Rc::from(s))
    }
}
