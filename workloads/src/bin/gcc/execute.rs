//! Runs functions: as they came from the parser, and as they are with registers. Both see arrays that begin alike.

use crate::allocate::{Code, Place, reads, sets};
use crate::ir::{End, Function, Op, Value, compute};
use crate::parser::Program;

/// The result, and the arrays afterwards.
pub type Outcome = (i32, Vec<Vec<i32>>);

fn arrays(program: &Program) -> Vec<Vec<i32>> {
    let lengths = program.arrays.iter().map(|(_, n)| *n as i32);
    lengths
        .map(|n| (0..n).map(|i| i * 7919 - 3).collect())
        .collect()
}

pub fn plain(program: &Program, functions: &[Function], at: usize, argument: i32) -> Outcome {
    let mut memory = arrays(program);
    let result = call(functions, at, &[argument, 11], &mut memory);
    (result, memory)
}

fn call(functions: &[Function], at: usize, params: &[i32], memory: &mut [Vec<i32>]) -> i32 {
    let f = &functions[at];
    let mut values = vec![0; f.insns.len()];
    let (mut block, mut from) = (0, u32::MAX);
    loop {
        let body = &f.blocks[block as usize];
        let way = body.before.iter().position(|b| *b == from).unwrap_or(0);
        // Phis take their values all at once.
        let phis: Vec<(Value, i32)> = body
            .insns
            .iter()
            .filter(|v| f.insns[**v as usize].op == Op::Phi)
            .map(|v| (*v, values[f.insns[*v as usize].args[way] as usize]))
            .collect();
        for (v, value) in phis {
            values[v as usize] = value;
        }
        for v in &body.insns {
            let insn = &f.insns[*v as usize];
            let args: Vec<i32> = insn.args.iter().map(|a| values[*a as usize]).collect();
            if let Some(value) = step(insn.op, &args, params, memory, |c, a, m| {
                call(functions, c, a, m)
            }) {
                values[*v as usize] = value;
            }
        }
        from = block;
        match body.end {
            End::Jump(to) => block = to,
            End::Branch(v, yes, no) => block = if values[v as usize] != 0 { yes } else { no },
            End::Return(v) => return values[v as usize],
        }
    }
}

/// One instruction, given its arguments.
fn step(
    op: Op,
    args: &[i32],
    params: &[i32],
    memory: &mut [Vec<i32>],
    call: impl FnOnce(usize, &[i32], &mut [Vec<i32>]) -> i32,
) -> Option<i32> {
    match op {
        Op::Const(n) => Some(n),
        Op::Param(p) => Some(params[p as usize]),
        Op::Binary(op) => Some(compute(op, args[0], args[1])),
        Op::Load(a) => Some(memory[a as usize][args[0] as usize]),
        Op::Store(a) => {
            memory[a as usize][args[0] as usize] = args[1];
            None
        }
        Op::Call(c) => Some(call(c as usize, args, memory)),
        Op::Copy => Some(args[0]),
        Op::Phi | Op::Nop => None,
    }
}

pub fn allocated(program: &Program, functions: &[Code], at: usize, argument: i32) -> Outcome {
    let mut memory = arrays(program);
    let result = run(functions, at, &[argument, 11], &mut memory);
    (result, memory)
}

fn run(functions: &[Code], at: usize, params: &[i32], memory: &mut [Vec<i32>]) -> i32 {
    let code = &functions[at];
    let f = &code.f;
    // Registers, then slots: nothing else is kept.
    let mut frame = vec![0; crate::allocate::REGISTERS + code.slots];
    let place = |v: Value| match code.places[v as usize] {
        Place::Register(r) => Some(r as usize),
        Place::Slot(s) => Some(crate::allocate::REGISTERS + s as usize),
        Place::Nowhere => None,
    };
    let read = |frame: &[i32], v: Value| place(v).map_or(0, |p| frame[p]);
    let mut block = 0;
    loop {
        let body = &f.blocks[block as usize];
        for v in &body.insns {
            let args: Vec<i32> = reads(f, *v).iter().map(|a| read(&frame, *a)).collect();
            let value = step(f.insns[*v as usize].op, &args, params, memory, |c, a, m| {
                run(functions, c, a, m)
            });
            if let (Some(value), Some(to)) = (value, sets(f, *v).and_then(place)) {
                frame[to] = value;
            }
        }
        match body.end {
            End::Jump(to) => block = to,
            End::Branch(v, yes, no) => block = if read(&frame, v) != 0 { yes } else { no },
            End::Return(v) => return read(&frame, v),
        }
    }
}
