//! Out of SSA, liveness, and registers by colouring the interference graph (Chaitin, Briggs).

use crate::ir::{Block, Body, End, Function, Op, Value};

/// Registers of the target, but for two that spill code uses.
pub const REGISTERS: usize = 13;

/// Where a value lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Register(u8),
    Slot(u32),
    /// Nobody reads it.
    Nowhere,
}

/// A function with registers.
pub struct Code {
    pub f: Function,
    pub order: Vec<Block>,
    pub places: Vec<Place>,
    /// Values in memory.
    pub slots: usize,
}

pub fn allocate(mut f: Function) -> Code {
    split(&mut f);
    leave_ssa(&mut f);
    let order = f.order();
    let live = liveness(&f, &order);
    let graph = Graph::new(&f, &order, &live);
    let (places, slots) = graph.colour(&f);
    Code {
        f,
        order,
        places,
        slots,
    }
}

/// An edge from a block with two successors to one with two predecessors gets a block of its own.
fn split(f: &mut Function) {
    for b in 0..f.blocks.len() {
        let End::Branch(v, yes, no) = f.blocks[b].end else {
            continue;
        };
        let mut ends = [yes, no];
        for to in &mut ends {
            if f.blocks[*to as usize].before.len() < 2 {
                continue;
            }
            let new = f.blocks.len() as Block;
            f.blocks.push(Body {
                insns: Vec::new(),
                end: End::Jump(*to),
                before: vec![b as Block],
            });
            let before = &mut f.blocks[*to as usize].before;
            if let Some(p) = before.iter_mut().find(|p| **p == b as Block) {
                *p = new;
            }
            *to = new;
        }
        f.blocks[b].end = End::Branch(v, ends[0], ends[1]);
    }
}

/// A phi becomes a copy of a variable that each predecessor sets.
fn leave_ssa(f: &mut Function) {
    for b in f.order() {
        let phis: Vec<Value> = f.blocks[b as usize].insns.clone();
        for phi in phis {
            if f.insns[phi as usize].op != Op::Phi {
                continue;
            }
            let args = std::mem::take(&mut f.insns[phi as usize].args);
            let shared = f.add(Op::Copy, Vec::new());
            for (from, value) in f.blocks[b as usize].before.clone().into_iter().zip(args) {
                // One that several instructions define: the copies carry its number in `args[1]`.
                let copy = f.add(Op::Copy, vec![value, shared]);
                f.blocks[from as usize].insns.push(copy);
            }
            f.insns[phi as usize].op = Op::Copy;
            f.insns[phi as usize].args = vec![shared];
        }
    }
}

/// What an instruction sets, and what it reads.
pub fn sets(f: &Function, v: Value) -> Option<Value> {
    match (f.insns[v as usize].op, &f.insns[v as usize].args[..]) {
        (Op::Store(_), _) => None,
        (Op::Copy, [_, shared]) => Some(*shared),
        _ => Some(v),
    }
}

pub fn reads(f: &Function, v: Value) -> &[Value] {
    let insn = &f.insns[v as usize];
    match insn.op {
        Op::Copy => &insn.args[..1],
        _ => &insn.args,
    }
}

type Bits = Vec<u64>;

fn set(bits: &mut [u64], v: Value) {
    bits[v as usize / 64] |= 1 << (v % 64);
}

fn clear(bits: &mut [u64], v: Value) {
    bits[v as usize / 64] &= !(1 << (v % 64));
}

/// What is alive at the end of each block.
fn liveness(f: &Function, order: &[Block]) -> Vec<Bits> {
    let words = f.insns.len().div_ceil(64);
    let mut at_end: Vec<Bits> = vec![vec![0; words]; f.blocks.len()];
    let mut at_start: Vec<Bits> = at_end.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in order.iter().rev() {
            let mut live = vec![0; words];
            for to in f.successors(*b) {
                for (l, s) in live.iter_mut().zip(&at_start[to as usize]) {
                    *l |= s;
                }
            }
            at_end[*b as usize].clone_from(&live);
            step_back(f, *b, &mut live, |_, _| ());
            if live != at_start[*b as usize] {
                at_start[*b as usize] = live;
                changed = true;
            }
        }
    }
    at_end
}

/// Goes through a block from its end to its start; `visit` sees each instruction with what is alive after it.
fn step_back(f: &Function, b: Block, live: &mut [u64], mut visit: impl FnMut(Value, &[u64])) {
    let body = &f.blocks[b as usize];
    match body.end {
        End::Branch(v, ..) | End::Return(v) => set(live, v),
        End::Jump(_) => {}
    }
    for v in body.insns.iter().rev() {
        visit(*v, live);
        if let Some(to) = sets(f, *v) {
            clear(live, to);
        }
        for r in reads(f, *v) {
            set(live, *r);
        }
    }
}

struct Graph {
    neighbours: Vec<Vec<Value>>,
    used: Vec<bool>,
    /// How much it would cost to keep it in memory.
    cost: Vec<u32>,
}

impl Graph {
    fn new(f: &Function, order: &[Block], live: &[Bits]) -> Self {
        let n = f.insns.len();
        let mut this = Self {
            neighbours: vec![Vec::new(); n],
            used: vec![false; n],
            cost: vec![0; n],
        };
        for b in order {
            let mut live = live[*b as usize].clone();
            step_back(f, *b, &mut live, |v, live| this.define(f, v, live));
            if let End::Branch(v, ..) | End::Return(v) = f.blocks[*b as usize].end {
                this.used[v as usize] = true;
                this.cost[v as usize] += 1;
            }
        }
        for list in &mut this.neighbours {
            list.sort_unstable();
            list.dedup();
        }
        this
    }

    fn define(&mut self, f: &Function, v: Value, live: &[u64]) {
        for r in reads(f, v) {
            self.used[*r as usize] = true;
            self.cost[*r as usize] += 1;
        }
        let Some(to) = sets(f, v) else {
            return;
        };
        self.used[to as usize] = true;
        self.cost[to as usize] += 1;
        // A copy may share a register with what it copies.
        let source = match f.insns[v as usize].op {
            Op::Copy => reads(f, v)[0],
            _ => to,
        };
        for (at, word) in live.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                let other = at as Value * 64 + word.trailing_zeros();
                word &= word - 1;
                if other != to && other != source {
                    self.neighbours[to as usize].push(other);
                    self.neighbours[other as usize].push(to);
                }
            }
        }
    }

    fn colour(&self, f: &Function) -> (Vec<Place>, usize) {
        let n = f.insns.len();
        let mut degree: Vec<usize> = self.neighbours.iter().map(Vec::len).collect();
        let mut left: Vec<bool> = self.used.clone();
        let mut easy: Vec<Value> = Vec::new();
        let mut hard: Vec<Value> = Vec::new();
        for v in 0..n {
            if left[v] {
                if degree[v] < REGISTERS {
                    &mut easy
                } else {
                    &mut hard
                }
                .push(v as Value);
            }
        }
        // What has few neighbours can wait; if none has, the cheapest to spill is taken out in hope.
        hard.sort_by_key(|v| {
            (
                self.cost[*v as usize] * 64 / degree[*v as usize].max(1) as u32,
                *v,
            )
        });
        let mut hard = hard.into_iter();
        let mut stack = Vec::new();
        loop {
            let v = match easy.pop() {
                Some(v) => v,
                None => match hard.next() {
                    Some(v) => v,
                    None => break,
                },
            };
            if !std::mem::replace(&mut left[v as usize], false) {
                continue;
            }
            stack.push(v);
            for other in &self.neighbours[v as usize] {
                let d = &mut degree[*other as usize];
                *d -= 1;
                if *d == REGISTERS - 1 && left[*other as usize] {
                    easy.push(*other);
                }
            }
        }
        let mut places = vec![Place::Nowhere; n];
        let mut slots = 0;
        while let Some(v) = stack.pop() {
            let mut taken = [false; REGISTERS];
            for other in &self.neighbours[v as usize] {
                if let Place::Register(r) = places[*other as usize] {
                    taken[r as usize] = true;
                }
            }
            // The register of what it is a copy of, if that is free: then the copy is none.
            let insn = &f.insns[v as usize];
            let hint = match (insn.op, insn.args.first()) {
                (Op::Copy, Some(a)) => places[*a as usize],
                _ => Place::Nowhere,
            };
            places[v as usize] = match hint {
                Place::Register(r) if !taken[r as usize] => hint,
                _ => match taken.iter().position(|t| !t) {
                    Some(r) => Place::Register(r as u8),
                    None => {
                        slots += 1;
                        Place::Slot(slots - 1)
                    }
                },
            };
        }
        (places, slots as usize)
    }
}
