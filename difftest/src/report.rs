//! Failures in words.

use crate::case::Case;
use crate::forms::decode;
use crate::outcome::Outcome;
use crate::rig::Failure;
use iced_x86::{Formatter, InstructionInfoFactory, IntelFormatter, Register};
use std::fmt::Write;

/// Names of the general registers.
pub const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// One line an instruction: address, bytes, disassembly, iced's name.
#[must_use]
pub fn listing(case: &Case) -> String {
    let mut f = IntelFormatter::new();
    f.options_mut().set_rip_relative_addresses(true);
    let mut out = String::new();
    let mut at = 0;
    while at < case.code().len() {
        let ip = case.at + at as u64;
        let rest = &case.code()[at..];
        let mut text = String::new();
        let len = match decode(rest, ip) {
            Some(i) => {
                f.format(&i, &mut text);
                let _ = write!(text, "  ({:?})", i.code());
                i.len()
            }
            None => {
                text.push_str("(no instruction)");
                rest.len()
            }
        };
        let bytes: Vec<String> = rest[..len].iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "{ip:8x}  {:30}  {text}", bytes.join(" "));
        at += len;
    }
    out
}

/// Registers that the case's instructions use: general ones as a mask, vector ones, x87 or MMX.
#[must_use]
pub fn used(case: &Case) -> (u16, u16, bool) {
    let mut info = InstructionInfoFactory::new();
    let (mut gpr, mut vector, mut x87) = (0, 0, false);
    let mut at = 0;
    while let Some(i) = decode(&case.code()[at..], case.at + at as u64) {
        at += i.len();
        for u in info.info(&i).used_registers() {
            let r = u.register();
            if r.is_gpr() {
                gpr |= 1 << r.full_register().number();
            } else if r.is_vector_register() {
                vector |= 1 << (r.number() & 15);
            } else if r.is_st() || r.is_mm() {
                x87 = true;
            }
        }
        x87 |= uses_x87(&i);
        if at >= case.code().len() {
            break;
        }
    }
    (gpr, vector, x87)
}

fn uses_x87(i: &iced_x86::Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    i.cpuid_features()
        .iter()
        .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX))
        || (0..i.op_count()).any(|n| i.op_register(n) != Register::None && i.op_register(n).is_mm())
}

/// What matters of a failure: the instructions, what they start from, and every engine's view of what differs.
#[must_use]
pub fn failure(case: &Case, f: &Failure) -> String {
    let mut out = format!("{} differs from {}\n", f.engine, f.reference);
    out += &listing(case);
    let (gpr, vector, x87) = used(case);
    let r = &case.regs;
    let _ = writeln!(out, "start: rflags {:x} mxcsr {:x}", r.flags, r.mxcsr);
    for (n, name) in GPR.iter().enumerate() {
        if gpr >> n & 1 != 0 {
            let _ = writeln!(out, "  {name} {:x}", r.gpr[n]);
        }
    }
    for n in 0..16 {
        if vector >> n & 1 != 0 {
            let y = r.ymm[n];
            let _ = writeln!(
                out,
                "  ymm{n} {:016x}_{:016x}_{:016x}_{:016x}",
                y[3], y[2], y[1], y[0]
            );
        }
    }
    if x87 {
        let x = &r.x87;
        let _ = writeln!(
            out,
            "  fcw {:x} fsw {:x} ftw {:x}",
            x.control, x.status, x.tag
        );
        for (n, st) in x.st.iter().enumerate() {
            let _ = writeln!(out, "  st{n} {:04x}_{:016x}", st.1, st.0);
        }
    }
    for (at, bytes) in case.patches() {
        let b: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "  [{at:x}] {}", b.join(" "));
    }
    for (name, o) in &f.outcomes {
        let _ = writeln!(out, "{name}: {}", end(o));
    }
    for d in &f.differences {
        let _ = writeln!(
            out,
            "  {:14} {} {:>24}   {} {:>24}",
            d.field, f.reference, d.expected, f.engine, d.got
        );
    }
    out
}

fn end(o: &Outcome) -> String {
    format!("{:x?} at {:x}, rflags {:x}", o.end, o.rip, o.flags)
}
