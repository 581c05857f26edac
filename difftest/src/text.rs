//! The file format of a case: lines of words, `#` begins a comment. `docs/difftest.md` describes it.
//!
//! ```text
//! difftest 1
//! at 10000000
//! code 48 01 d8
//! fill 3
//! rflags 202
//! gpr rax 1
//! mem 20000040 00 11 22
//! ```
//! A line that is left out stands for the default: registers zero but RSP, MXCSR and the control word as after reset.

use crate::case::{Case, FILLS};
use crate::report::{GPR, listing};
use std::fmt::Write;

/// A case as a file.
#[must_use]
pub fn write(case: &Case) -> String {
    let mut out = "difftest 1\n".to_owned();
    for line in listing(case).lines() {
        let _ = writeln!(out, "# {line}");
    }
    let hex = |b: &[u8]| {
        let v: Vec<String> = b.iter().map(|b| format!("{b:02x}")).collect();
        v.join(" ")
    };
    let (r, fresh) = (&case.regs, &Case::default().regs);
    let _ = writeln!(out, "at {:x}", case.at);
    let _ = writeln!(out, "code {}", hex(case.code()));
    let _ = writeln!(out, "fill {}", case.fill);
    let _ = writeln!(out, "rflags {:x}", r.flags);
    let _ = writeln!(out, "mxcsr {:x}", r.mxcsr);
    for (name, v) in [("fs", r.fs), ("gs", r.gs)] {
        if v != 0 {
            let _ = writeln!(out, "base {name} {v:x}");
        }
    }
    for (n, name) in GPR.iter().enumerate() {
        if r.gpr[n] != fresh.gpr[n] {
            let _ = writeln!(out, "gpr {name} {:x}", r.gpr[n]);
        }
    }
    for (n, y) in r.ymm.iter().enumerate() {
        if *y != [0; 4] {
            let _ = writeln!(out, "ymm {n} {:x} {:x} {:x} {:x}", y[0], y[1], y[2], y[3]);
        }
    }
    let x = &r.x87;
    if *x != fresh.x87 {
        let _ = writeln!(
            out,
            "x87 {:x} {:x} {:x} {:x} {:x} {:x}",
            x.control, x.status, x.tag, x.opcode, x.instruction, x.data
        );
        for (n, st) in x.st.iter().enumerate() {
            if *st != (0, 0) {
                let _ = writeln!(out, "st {n} {:x} {:x}", st.1, st.0);
            }
        }
    }
    for (at, bytes) in case.patches() {
        let _ = writeln!(out, "mem {at:x} {}", hex(bytes));
    }
    out
}

/// The case in a file.
///
/// # Errors
/// The line that is wrong, and why.
pub fn read(text: &str) -> Result<Case, String> {
    let mut case = Case::default();
    let mut version = false;
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("");
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((&key, args)) = words.split_first() else {
            continue;
        };
        let at_line = |e: String| format!("line {}: {e}", n + 1);
        if key == "difftest" {
            if args != ["1"] {
                return Err(at_line("not version 1 of the format".into()));
            }
            version = true;
            continue;
        }
        if !version {
            return Err(at_line("the file does not begin with `difftest 1`".into()));
        }
        field(&mut case, key, args).map_err(at_line)?;
    }
    if !version {
        return Err("the file does not begin with `difftest 1`".into());
    }
    if case.code().is_empty() {
        return Err("no `code` line".into());
    }
    let size = crate::layout::CODE_END;
    if !(crate::layout::CODE..size).contains(&case.at) {
        return Err(format!("`at {:x}` is outside the code pages", case.at));
    }
    Ok(case)
}

fn number(s: &str) -> Result<u64, String> {
    u64::from_str_radix(s, 16).map_err(|_| format!("`{s}` is no hexadecimal number"))
}

fn bytes(args: &[&str]) -> Result<Vec<u8>, String> {
    args.iter()
        .map(|s| u8::from_str_radix(s, 16).map_err(|_| format!("`{s}` is no byte")))
        .collect()
}

fn index(s: &str, below: usize) -> Result<usize, String> {
    s.parse()
        .ok()
        .filter(|n| *n < below)
        .ok_or_else(|| format!("`{s}` is no register number"))
}

fn field(case: &mut Case, key: &str, args: &[&str]) -> Result<(), String> {
    let r = &mut case.regs;
    match (key, args) {
        ("at", [v]) => case.at = number(v)?,
        ("code", b) => {
            if !case.set_code(&bytes(b)?) {
                return Err("too much code".into());
            }
        }
        ("fill", [v]) => {
            case.fill = v
                .parse()
                .ok()
                .filter(|n| *n < FILLS)
                .ok_or_else(|| format!("`{v}` is no fill"))?;
        }
        ("rflags", [v]) => r.flags = number(v)?,
        ("mxcsr", [v]) => {
            r.mxcsr = number(v)? as u32;
            if r.mxcsr & !0xffff != 0 {
                return Err("reserved bits in MXCSR".into());
            }
        }
        ("base", ["fs", v]) => r.fs = number(v)?,
        ("base", ["gs", v]) => r.gs = number(v)?,
        ("gpr", [name, v]) => {
            let n = GPR
                .iter()
                .position(|g| g == name)
                .ok_or_else(|| format!("no register `{name}`"))?;
            r.gpr[n] = number(v)?;
        }
        ("ymm", [n, a, b, c, d]) => {
            r.ymm[index(n, 16)?] = [number(a)?, number(b)?, number(c)?, number(d)?];
        }
        ("x87", [control, status, tag, opcode, instruction, data]) => {
            let x = &mut r.x87;
            x.control = number(control)? as u16;
            x.status = number(status)? as u16;
            x.tag = number(tag)? as u8;
            x.opcode = number(opcode)? as u16;
            x.instruction = number(instruction)?;
            x.data = number(data)?;
        }
        ("st", [n, e, s]) => r.x87.st[index(n, 8)?] = (number(s)?, number(e)? as u16),
        ("mem", [at, b @ ..]) => {
            let at = number(at)?;
            if !case.patch(at, &bytes(b)?) {
                return Err("too long, too many, or outside the data pages".into());
            }
        }
        _ => return Err(format!("`{key}` with {} words", args.len())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    #[test]
    fn what_is_written_is_read() {
        let mut r = Rng::new(7);
        let mut c = Case::default();
        c.set_code(&[0x48, 0x01, 0xd8, 0x90]);
        c.regs.gpr = std::array::from_fn(|_| r.value());
        c.regs.ymm = std::array::from_fn(|_| std::array::from_fn(|_| r.lane()));
        c.regs.x87.st = std::array::from_fn(|_| r.extended());
        c.regs.mxcsr = r.mxcsr();
        c.fill = 5;
        assert!(c.patch(crate::layout::DATA + 0xfff, &[1, 2, 3]));
        let back = read(&write(&c)).expect("readable");
        assert_eq!(back.code(), c.code());
        assert!(back.regs == c.regs);
        assert_eq!(write(&back), write(&c));
    }

    #[test]
    fn errors_name_the_line() {
        let e = read("difftest 1\ncode 90\ngpr rzx 1\n").map(|_| ());
        assert_eq!(e, Err("line 3: no register `rzx`".into()));
    }
}
