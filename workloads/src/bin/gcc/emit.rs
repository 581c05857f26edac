//! Assembly, in the manner of GCC.

use std::fmt::Write as _;

use crate::allocate::{Code, Place, reads, sets};
use crate::ir::{End, Op};
use crate::parser::{Binary, Program};

const NAMES: [&str; 13] = [
    "%eax", "%ecx", "%edx", "%ebx", "%esi", "%edi", "%r8d", "%r9d", "%r10d", "%r11d", "%r12d",
    "%r13d", "%r14d",
];

fn name(place: Place) -> String {
    match place {
        Place::Register(r) => NAMES[r as usize].to_owned(),
        Place::Slot(s) => format!("-{}(%rbp)", 4 * (s + 1)),
        Place::Nowhere => "%r15d".to_owned(),
    }
}

pub fn emit(program: &Program, code: &Code, out: &mut String) {
    let f = &code.f;
    let place = |v: u32| name(code.places[v as usize]);
    let _ = writeln!(
        out,
        "\t.globl\t{0}\n{0}:\n\tpushq\t%rbp\n\tmovq\t%rsp, %rbp",
        f.name
    );
    if code.slots > 0 {
        let _ = writeln!(out, "\tsubq\t${}, %rsp", (4 * code.slots + 15) & !15);
    }
    for (n, b) in code.order.iter().enumerate() {
        let _ = writeln!(out, ".L{}_{b}:", f.name);
        for v in &f.blocks[*b as usize].insns {
            let to = sets(f, *v).map(place).unwrap_or_default();
            let args: Vec<String> = reads(f, *v).iter().map(|a| place(*a)).collect();
            let _ = match f.insns[*v as usize].op {
                Op::Const(c) => writeln!(out, "\tmovl\t${c}, {to}"),
                Op::Param(p) => writeln!(out, "\tmovl\t{}(%rbp), {to}", 16 + 8 * p),
                Op::Copy if args[0] == to => Ok(()),
                Op::Copy => writeln!(out, "\tmovl\t{}, {to}", args[0]),
                Op::Load(a) => writeln!(
                    out,
                    "\tmovl\t{}(,{},4), {to}",
                    program.arrays[a as usize].0, args[0]
                ),
                Op::Store(a) => writeln!(
                    out,
                    "\tmovl\t{}, {}(,{},4)",
                    args[1], program.arrays[a as usize].0, args[0]
                ),
                Op::Call(c) => {
                    for a in args.iter().rev() {
                        let _ = writeln!(out, "\tpushq\t{a}");
                    }
                    writeln!(
                        out,
                        "\tcall\t{}\n\tmovl\t%eax, {to}",
                        program.functions[c as usize].name
                    )
                }
                Op::Binary(op) => {
                    let _ = writeln!(out, "\tmovl\t{}, %r15d", args[0]);
                    let _ = match op {
                        Binary::Div | Binary::Rem => writeln!(out, "\tcltd\n\tidivl\t{}", args[1]),
                        op => writeln!(out, "\t{}\t{}, %r15d", mnemonic(op), args[1]),
                    };
                    writeln!(out, "\tmovl\t%r15d, {to}")
                }
                Op::Phi | Op::Nop => Ok(()),
            };
        }
        let next = code.order.get(n + 1);
        let label = |b: u32| format!(".L{}_{b}", f.name);
        let _ = match f.blocks[*b as usize].end {
            End::Jump(to) if next == Some(&to) => Ok(()),
            End::Jump(to) => writeln!(out, "\tjmp\t{}", label(to)),
            End::Branch(v, yes, no) => {
                let (v, yes, no) = (place(v), label(yes), label(no));
                writeln!(out, "\ttestl\t{v}, {v}\n\tjne\t{yes}\n\tjmp\t{no}")
            }
            End::Return(v) => writeln!(out, "\tmovl\t{}, %eax\n\tleave\n\tret", place(v)),
        };
    }
}

fn mnemonic(op: Binary) -> &'static str {
    match op {
        Binary::Add => "addl",
        Binary::Sub => "subl",
        Binary::Mul => "imull",
        Binary::Div | Binary::Rem => "idivl",
        Binary::And => "andl",
        Binary::Or => "orl",
        Binary::Xor => "xorl",
        Binary::Shl => "sall",
        Binary::Shr => "sarl",
        Binary::Lt => "setl",
        Binary::Le => "setle",
        Binary::Eq => "sete",
        Binary::Ne => "setne",
    }
}
