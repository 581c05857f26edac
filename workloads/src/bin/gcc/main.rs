//! A compiler for a part of C: lexer, parser, SSA, optimiser, register allocation by graph colouring, assembly. Follows 502.gcc_r.
//!
//! As there: one large source file is compiled function by function, through data structures of many small allocations that are walked
//! again and again (syntax trees, a graph of blocks, bit sets of live values, an interference graph). Its behaviour: pointer
//! chasing, hash tables, unpredictable branches, a large code footprint for its size, much allocation.
//!
//! What differs: the language has int, global arrays, and no pointers or structs; the optimiser has a handful of passes where GCC
//! has hundreds, so its code fits the first-level cache better; the source is generated. What it compiled is run, before optimisation
//! and after register allocation, and must do the same.

mod allocate;
mod emit;
mod execute;
mod ir;
mod lexer;
mod lower;
mod optimize;
mod parser;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values};
use sevlab_workloads::inputs::c;

const GUEST: Guest = Guest {
    name: "gcc",
    about: "Compiles generated C: parses, optimises in SSA form, allocates registers, writes assembly.",
    params: &[
        Param {
            name: "functions",
            what: "functions in the source",
            values: [12, 200, 1600],
            limits: (1, 100_000),
        },
        Param {
            name: "seed",
            what: "seed of the source",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let source = c::source(values.size("functions"), values.get("seed"));
    let tokens = lexer::tokens(&source)?;
    let count = tokens.len();
    let program = parser::parse(tokens)?;
    let mut plain = Vec::new();
    for function in &program.functions {
        plain.push(lower::lower(function)?);
    }
    let mut assembly = String::new();
    let mut allocated = Vec::new();
    let (mut before, mut after, mut spilled) = (0, 0, 0);
    for function in &plain {
        before += function.size();
        let mut function = function.clone();
        optimize::optimize(&mut function);
        after += function.size();
        let code = allocate::allocate(function);
        spilled += code.slots;
        emit::emit(&program, &code, &mut assembly);
        allocated.push(code);
    }
    // A sample of the functions is run in both forms.
    let (mut ran, step) = (0, (plain.len() / 64).max(1));
    for at in (0..plain.len()).step_by(step) {
        for argument in [3, -70_001] {
            let one = execute::plain(&program, &plain, at, argument);
            let other = execute::allocated(&program, &allocated, at, argument);
            if one != other {
                let name = &program.functions[at].name;
                return Err(format!(
                    "{name}({argument}) is {one:?}, and optimised {other:?}"
                ));
            }
            ran += 1;
        }
    }
    let mut sum = Sum::default();
    sum.add_bytes(assembly.as_bytes());
    Ok(format!(
        "{} bytes of source, {count} tokens, {} functions\n{before} instructions, {after} optimised, {spilled} values \
         spilled\n{} bytes of assembly, {ran} runs agree\nchecksum {sum}",
        source.len(),
        plain.len(),
        assembly.len()
    ))
}
