//! Syntax trees to SSA, without a detour: Braun et al., Simple and Efficient Construction of Static Single Assignment Form (2013).

use sevlab_workloads::guest::Map;

use crate::ir::{Block, Body, End, Function, Op, Value};
use crate::parser::{self, Binary, Expr, Stmt};

struct Lower {
    f: Function,
    at: Block,
    /// What a variable is at the end of a block.
    current: Vec<Map<usize, Value>>,
    sealed: Vec<bool>,
    /// Phis of blocks whose predecessors are not all known.
    open: Vec<Vec<(usize, Value)>>,
}

pub fn lower(function: &parser::Function) -> Result<Function, String> {
    let mut l = Lower {
        f: Function {
            name: function.name.clone(),
            insns: Vec::new(),
            blocks: Vec::new(),
        },
        at: 0,
        current: Vec::new(),
        sealed: Vec::new(),
        open: Vec::new(),
    };
    l.at = l.block();
    l.seal(0);
    for v in 0..function.params {
        let value = l.emit(Op::Param(v as u32), Vec::new());
        l.write(v, value);
    }
    if !l.statements(&function.body) {
        return Err(format!("{}: no return at its end", function.name));
    }
    Ok(l.f)
}

impl Lower {
    fn block(&mut self) -> Block {
        self.f.blocks.push(Body {
            insns: Vec::new(),
            end: End::Return(0),
            before: Vec::new(),
        });
        self.current.push(Map::default());
        self.sealed.push(false);
        self.open.push(Vec::new());
        self.f.blocks.len() as Block - 1
    }

    fn emit(&mut self, op: Op, args: Vec<Value>) -> Value {
        let value = self.f.add(op, args);
        self.f.blocks[self.at as usize].insns.push(value);
        value
    }

    fn end(&mut self, end: End) {
        self.f.blocks[self.at as usize].end = end;
        for to in self.f.successors(self.at) {
            self.f.blocks[to as usize].before.push(self.at);
        }
    }

    fn write(&mut self, variable: usize, value: Value) {
        self.current[self.at as usize].insert(variable, value);
    }

    fn read(&mut self, variable: usize, block: Block) -> Value {
        let b = block as usize;
        if let Some(value) = self.current[b].get(&variable) {
            return *value;
        }
        let value = if !self.sealed[b] {
            let phi = self.phi(block);
            self.open[b].push((variable, phi));
            phi
        } else if let [one] = self.f.blocks[b].before[..] {
            self.read(variable, one)
        } else {
            let phi = self.phi(block);
            // Loops end here.
            self.current[b].insert(variable, phi);
            self.fill(variable, phi, block);
            phi
        };
        self.current[b].insert(variable, value);
        value
    }

    fn phi(&mut self, block: Block) -> Value {
        let value = self.f.add(Op::Phi, Vec::new());
        self.f.blocks[block as usize].insns.insert(0, value);
        value
    }

    fn fill(&mut self, variable: usize, phi: Value, block: Block) {
        for n in 0..self.f.blocks[block as usize].before.len() {
            let from = self.f.blocks[block as usize].before[n];
            let value = self.read(variable, from);
            self.f.insns[phi as usize].args.push(value);
        }
    }

    /// All predecessors are known.
    fn seal(&mut self, block: Block) {
        self.sealed[block as usize] = true;
        for (variable, phi) in std::mem::take(&mut self.open[block as usize]) {
            self.fill(variable, phi, block);
        }
    }

    /// Whether they end in a return.
    fn statements(&mut self, list: &[Stmt]) -> bool {
        list.iter().any(|s| self.statement(s))
    }

    fn statement(&mut self, statement: &Stmt) -> bool {
        match statement {
            Stmt::Assign(variable, value) => {
                let value = self.expression(value);
                self.write(*variable, value);
            }
            Stmt::Store(array, index, value) => {
                let args = vec![self.expression(index), self.expression(value)];
                self.emit(Op::Store(*array as u32), args);
            }
            Stmt::Return(value) => {
                let value = self.expression(value);
                self.end(End::Return(value));
                return true;
            }
            Stmt::If(condition, yes, no) => {
                let condition = self.expression(condition);
                let (then, other, after) = (self.block(), self.block(), self.block());
                self.end(End::Branch(condition, then, other));
                let mut returned = true;
                for (block, list) in [(then, yes), (other, no)] {
                    self.seal(block);
                    self.at = block;
                    if !self.statements(list) {
                        self.end(End::Jump(after));
                        returned = false;
                    }
                }
                self.seal(after);
                self.at = after;
                return returned;
            }
            Stmt::While(condition, list) => {
                let (head, body, after) = (self.block(), self.block(), self.block());
                self.end(End::Jump(head));
                self.at = head;
                let condition = self.expression(condition);
                self.end(End::Branch(condition, body, after));
                self.seal(body);
                self.at = body;
                if !self.statements(list) {
                    self.end(End::Jump(head));
                }
                self.seal(head);
                self.seal(after);
                self.at = after;
            }
        }
        false
    }

    fn expression(&mut self, e: &Expr) -> Value {
        match e {
            Expr::Number(n) => self.emit(Op::Const(*n), Vec::new()),
            Expr::Variable(v) => self.read(*v, self.at),
            Expr::Element(array, index) => {
                let index = self.expression(index);
                self.emit(Op::Load(*array as u32), vec![index])
            }
            Expr::Binary(op, a, b) => {
                let args = vec![self.expression(a), self.expression(b)];
                self.emit(Op::Binary(*op), args)
            }
            Expr::Call(callee, args) => {
                let args = args.iter().map(|a| self.expression(a)).collect();
                self.emit(Op::Call(*callee as u32), args)
            }
            Expr::Short(and, a, b) => {
                let a = self.expression(a);
                let zero = self.emit(Op::Const(0), Vec::new());
                let a = self.emit(Op::Binary(Binary::Ne), vec![a, zero]);
                let (more, after, from) = (self.block(), self.block(), self.at);
                let (yes, no) = if *and { (more, after) } else { (after, more) };
                self.end(End::Branch(a, yes, no));
                self.seal(more);
                self.at = more;
                let b = self.expression(b);
                let zero = self.emit(Op::Const(0), Vec::new());
                let b = self.emit(Op::Binary(Binary::Ne), vec![b, zero]);
                self.end(End::Jump(after));
                self.seal(after);
                self.at = after;
                let phi = self.phi(after);
                let first = self.f.blocks[after as usize].before[0] == from;
                self.f.insns[phi as usize].args = if first { vec![a, b] } else { vec![b, a] };
                phi
            }
        }
    }
}
