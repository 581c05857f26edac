//! The intermediate form: a graph of blocks of instructions in static single assignment.

use crate::parser::Binary;

/// An instruction and what it computes, by number.
pub type Value = u32;
/// A block, by number; 0 is the entry.
pub type Block = u32;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    Const(i32),
    Param(u32),
    Binary(Binary),
    /// Of an array, at the index in `args`.
    Load(u32),
    /// Index and value.
    Store(u32),
    Call(u32),
    /// One argument for each predecessor.
    Phi,
    /// What its argument is.
    Copy,
    /// Removed.
    Nop,
}

#[derive(Clone, Debug)]
pub struct Insn {
    pub op: Op,
    pub args: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Jump(Block),
    /// Not 0, 0.
    Branch(Value, Block, Block),
    Return(Value),
}

#[derive(Clone, Debug)]
pub struct Body {
    pub insns: Vec<Value>,
    pub end: End,
    pub before: Vec<Block>,
}

#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub insns: Vec<Insn>,
    pub blocks: Vec<Body>,
}

impl Function {
    /// Instructions in blocks.
    pub fn size(&self) -> usize {
        self.blocks.iter().map(|b| b.insns.len()).sum()
    }

    pub fn add(&mut self, op: Op, args: Vec<Value>) -> Value {
        self.insns.push(Insn { op, args });
        self.insns.len() as Value - 1
    }

    pub fn successors(&self, block: Block) -> Vec<Block> {
        match self.blocks[block as usize].end {
            End::Jump(to) => vec![to],
            End::Branch(_, yes, no) => vec![yes, no],
            End::Return(_) => Vec::new(),
        }
    }

    /// Blocks that can be reached, each after its predecessors but for loops.
    pub fn order(&self) -> Vec<Block> {
        let mut seen = vec![false; self.blocks.len()];
        let mut out = Vec::new();
        let mut stack = vec![(0, self.successors(0))];
        seen[0] = true;
        while let Some((block, left)) = stack.last_mut() {
            match left.pop() {
                Some(next) if !seen[next as usize] => {
                    seen[next as usize] = true;
                    stack.push((next, self.successors(next)));
                }
                Some(_) => {}
                None => {
                    out.push(*block);
                    stack.pop();
                }
            }
        }
        out.reverse();
        out
    }
}

/// What an operator does.
pub fn compute(op: Binary, a: i32, b: i32) -> i32 {
    match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        // The generator divides by odd numbers only; the optimiser must not die of others.
        Binary::Div => {
            if b == 0 {
                0
            } else {
                a.wrapping_div(b)
            }
        }
        Binary::Rem => {
            if b == 0 {
                0
            } else {
                a.wrapping_rem(b)
            }
        }
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl => a.wrapping_shl(b as u32),
        Binary::Shr => a.wrapping_shr(b as u32),
        Binary::Lt => i32::from(a < b),
        Binary::Le => i32::from(a <= b),
        Binary::Eq => i32::from(a == b),
        Binary::Ne => i32::from(a != b),
    }
}
