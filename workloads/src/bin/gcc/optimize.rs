//! The optimiser: folding and value numbering along the dominator tree, branches that are decided, code that nobody needs.

use sevlab_workloads::guest::Map;

use crate::ir::{Block, End, Function, Op, Value, compute};
use crate::parser::Binary;

/// Goes on until nothing changes, three times at most.
pub fn optimize(f: &mut Function) {
    for _ in 0..3 {
        let before = f.size();
        let replaced = number(f);
        let decided = decide(f);
        sweep(f);
        if !replaced && !decided && f.size() == before {
            break;
        }
    }
}

/// Immediate dominators, by Cooper, Harvey and Kennedy; of the entry, itself.
pub fn dominators(f: &Function, order: &[Block]) -> Vec<Block> {
    let mut place = vec![usize::MAX; f.blocks.len()];
    for (n, b) in order.iter().enumerate() {
        place[*b as usize] = n;
    }
    let mut above = vec![Block::MAX; f.blocks.len()];
    above[0] = 0;
    let mut changed = true;
    while changed {
        changed = false;
        for b in &order[1..] {
            let mut new = Block::MAX;
            for p in &f.blocks[*b as usize].before {
                if above[*p as usize] == Block::MAX {
                    continue;
                }
                if new == Block::MAX {
                    new = *p;
                    continue;
                }
                let mut other = *p;
                while new != other {
                    if place[new as usize] > place[other as usize] {
                        new = above[new as usize];
                    } else {
                        other = above[other as usize];
                    }
                }
            }
            if above[*b as usize] != new {
                above[*b as usize] = new;
                changed = true;
            }
        }
    }
    above
}

fn find(same: &mut [Value], v: Value) -> Value {
    let mut root = v;
    while same[root as usize] != root {
        root = same[root as usize];
    }
    let mut at = v;
    while same[at as usize] != root {
        at = std::mem::replace(&mut same[at as usize], root);
    }
    root
}

/// Value numbering. Returns whether anything was replaced.
fn number(f: &mut Function) -> bool {
    let order = f.order();
    let above = dominators(f, &order);
    let mut children = vec![Vec::new(); f.blocks.len()];
    for b in &order[1..] {
        children[above[*b as usize] as usize].push(*b);
    }
    let mut same: Vec<Value> = (0..f.insns.len() as Value).collect();
    let mut known: Map<(Op, Vec<Value>), Value> = Map::default();
    let mut changed = false;
    // Down the tree; what a block made known is forgotten after its children.
    enum Step {
        Enter(Block),
        Leave(Vec<(Op, Vec<Value>)>),
    }
    let mut steps = vec![Step::Enter(0)];
    while let Some(step) = steps.pop() {
        let block = match step {
            Step::Leave(keys) => {
                keys.iter().for_each(|k| {
                    known.remove(k);
                });
                continue;
            }
            Step::Enter(block) => block,
        };
        let mut keys = Vec::new();
        for v in f.blocks[block as usize].insns.clone() {
            let mut args = std::mem::take(&mut f.insns[v as usize].args);
            for a in &mut args {
                *a = find(&mut same, *a);
            }
            let op = f.insns[v as usize].op;
            if let (Op::Binary(b), [x, y]) = (op, &mut args[..])
                && matches!(
                    b,
                    Binary::Add
                        | Binary::Mul
                        | Binary::And
                        | Binary::Or
                        | Binary::Xor
                        | Binary::Eq
                        | Binary::Ne
                )
                && x > y
            {
                std::mem::swap(x, y);
            }
            match simplify(f, v, op, &args) {
                Simple::Same(other) => {
                    same[v as usize] = other;
                    f.insns[v as usize].op = Op::Nop;
                    changed = true;
                    continue;
                }
                Simple::Const(n) => {
                    f.insns[v as usize].op = Op::Const(n);
                    args.clear();
                    changed = true;
                }
                Simple::No => {}
            }
            let op = f.insns[v as usize].op;
            if matches!(op, Op::Const(_) | Op::Binary(_)) {
                let key = (op, args.clone());
                if let Some(other) = known.get(&key) {
                    same[v as usize] = *other;
                    f.insns[v as usize].op = Op::Nop;
                    changed = true;
                    continue;
                }
                known.insert(key.clone(), v);
                keys.push(key);
            }
            f.insns[v as usize].args = args;
        }
        steps.push(Step::Leave(keys));
        steps.extend(children[block as usize].iter().map(|b| Step::Enter(*b)));
    }
    // What is used before it is reached: phis of loops, and ends.
    for b in &order {
        for n in 0..f.blocks[*b as usize].insns.len() {
            let v = f.blocks[*b as usize].insns[n] as usize;
            for a in &mut f.insns[v].args {
                *a = find(&mut same, *a);
            }
        }
        match &mut f.blocks[*b as usize].end {
            End::Branch(v, ..) | End::Return(v) => *v = find(&mut same, *v),
            End::Jump(_) => {}
        }
        let insns = &f.insns;
        f.blocks[*b as usize]
            .insns
            .retain(|v| insns[*v as usize].op != Op::Nop);
    }
    changed
}

enum Simple {
    Same(Value),
    Const(i32),
    No,
}

fn simplify(f: &Function, v: Value, op: Op, args: &[Value]) -> Simple {
    let constant = |v: Value| match f.insns[v as usize].op {
        Op::Const(n) => Some(n),
        _ => None,
    };
    match op {
        Op::Copy => Simple::Same(args[0]),
        Op::Phi => {
            // All the same, or itself.
            let mut others = args.iter().filter(|a| **a != v);
            match others.next() {
                Some(first) if others.all(|a| a == first) => Simple::Same(*first),
                _ => Simple::No,
            }
        }
        Op::Binary(op) => match (constant(args[0]), constant(args[1])) {
            (Some(a), Some(b)) => Simple::Const(compute(op, a, b)),
            (a, b) => identity(op, args, a, b),
        },
        _ => Simple::No,
    }
}

/// Operands that decide the result, or leave the other as it is.
fn identity(op: Binary, args: &[Value], a: Option<i32>, b: Option<i32>) -> Simple {
    use Binary::{Add, And, Eq, Le, Lt, Mul, Ne, Or, Shl, Shr, Sub, Xor};
    let [x, y] = [args[0], args[1]];
    match (op, a, b) {
        (Add | Or | Xor, Some(0), _) => Simple::Same(y),
        (Add | Or | Xor | Sub | Shl | Shr, _, Some(0)) => Simple::Same(x),
        (Mul | And, Some(0), _) | (Mul | And, _, Some(0)) => Simple::Const(0),
        (Mul, Some(1), _) => Simple::Same(y),
        (Mul, _, Some(1)) => Simple::Same(x),
        (Sub | Xor | Lt | Ne, ..) if x == y => Simple::Const(0),
        (Eq | Le, ..) if x == y => Simple::Const(1),
        (And | Or, ..) if x == y => Simple::Same(x),
        _ => Simple::No,
    }
}

/// Turns branches on constants into jumps, and drops what can't be reached any more.
fn decide(f: &mut Function) -> bool {
    let mut changed = false;
    for b in 0..f.blocks.len() {
        if let End::Branch(v, yes, no) = f.blocks[b].end
            && let Op::Const(n) = f.insns[v as usize].op
        {
            let (to, gone) = if n != 0 { (yes, no) } else { (no, yes) };
            f.blocks[b].end = End::Jump(to);
            if to != gone {
                unlink(f, b as Block, gone);
            }
            changed = true;
        }
    }
    let mut alive = vec![false; f.blocks.len()];
    for b in f.order() {
        alive[b as usize] = true;
    }
    for (b, alive) in alive.into_iter().enumerate() {
        let body = &f.blocks[b];
        if alive || (body.insns.is_empty() && body.before.is_empty()) {
            continue;
        }
        for to in f.successors(b as Block) {
            unlink(f, b as Block, to);
        }
        f.blocks[b].insns.clear();
        f.blocks[b].before.clear();
        f.blocks[b].end = End::Return(0);
        changed = true;
    }
    changed
}

fn unlink(f: &mut Function, from: Block, to: Block) {
    let Some(n) = f.blocks[to as usize].before.iter().position(|b| *b == from) else {
        return;
    };
    f.blocks[to as usize].before.remove(n);
    for v in &f.blocks[to as usize].insns {
        let insn = &mut f.insns[*v as usize];
        if insn.op == Op::Phi {
            insn.args.remove(n);
        }
    }
}

/// Removes what nothing needs.
fn sweep(f: &mut Function) {
    let mut needed = vec![false; f.insns.len()];
    let mut work = Vec::new();
    for b in f.order() {
        let body = &f.blocks[b as usize];
        for v in &body.insns {
            if matches!(f.insns[*v as usize].op, Op::Store(_) | Op::Call(_)) {
                work.push(*v);
            }
        }
        match body.end {
            End::Branch(v, ..) | End::Return(v) => work.push(v),
            End::Jump(_) => {}
        }
    }
    while let Some(v) = work.pop() {
        if !std::mem::replace(&mut needed[v as usize], true) {
            work.extend(&f.insns[v as usize].args);
        }
    }
    for body in &mut f.blocks {
        body.insns.retain(|v| needed[*v as usize]);
    }
}
