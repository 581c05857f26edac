//! Generates C: functions with loops, conditions, arrays and calls. All loops end, and no call is in one.

use std::fmt::Write as _;

use crate::guest::Random;

/// Global arrays, of 256 ints each.
const ARRAYS: u64 = 8;

struct Writer {
    random: Random,
    out: String,
    /// Variables in scope.
    variables: u64,
    /// Of the function.
    level: usize,
    number: usize,
    calls: u32,
    /// Around the statement, and made so far in the function.
    loops: u32,
    counters: u64,
}

/// A source file of that many functions.
pub fn source(functions: usize, seed: u64) -> String {
    let mut w = Writer {
        random: Random::new(seed),
        out: String::from("/* generated */\n"),
        variables: 0,
        level: 0,
        number: 0,
        calls: 0,
        loops: 0,
        counters: 0,
    };
    for a in 0..ARRAYS {
        let _ = writeln!(w.out, "int g{a}[256];");
    }
    for number in 0..functions {
        w.function(number);
    }
    w.out
}

impl Writer {
    fn pick(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    fn function(&mut self, number: usize) {
        (self.number, self.level, self.calls, self.loops) = (number, number % 4, 0, 0);
        let _ = writeln!(self.out, "\nint f{number}(int v0, int v1)\n{{");
        (self.variables, self.counters) = (2, 0);
        for _ in 0..4 + self.pick(6) {
            let value = self.expression(2);
            let _ = writeln!(self.out, "  int v{} = {value};", self.variables);
            self.variables += 1;
        }
        let statements = 6 + self.pick(16);
        self.statements(statements, 1);
        let value = self.expression(3);
        let _ = writeln!(self.out, "  return {value};\n}}");
    }

    fn statements(&mut self, count: u64, depth: usize) {
        for _ in 0..count {
            self.statement(depth);
        }
    }

    fn statement(&mut self, depth: usize) {
        let pad = "  ".repeat(depth);
        match self.pick(10) {
            0..4 => {
                let (v, value) = (self.pick(self.variables), self.expression(3));
                let _ = writeln!(self.out, "{pad}v{v} = {value};");
            }
            4 => {
                let (a, index, value) = (self.pick(ARRAYS), self.expression(1), self.expression(2));
                let _ = writeln!(self.out, "{pad}g{a}[({index}) & 255] = {value};");
            }
            5 | 6 if depth < 5 => {
                let condition = self.condition();
                let _ = writeln!(self.out, "{pad}if ({condition}) {{");
                let n = 1 + self.pick(3);
                self.statements(n, depth + 1);
                if self.pick(2) == 0 {
                    let _ = writeln!(self.out, "{pad}}} else {{");
                    let n = 1 + self.pick(3);
                    self.statements(n, depth + 1);
                }
                let _ = writeln!(self.out, "{pad}}}");
            }
            7 if self.loops < 2 => {
                self.loops += 1;
                self.counters += 1;
                let (i, n) = (self.counters, 2 + self.pick(5));
                let _ = writeln!(self.out, "{pad}int i{i} = 0;\n{pad}while (i{i} < {n}) {{");
                let n = 1 + self.pick(4);
                self.statements(n, depth + 1);
                let _ = writeln!(self.out, "{pad}  i{i} = i{i} + 1;\n{pad}}}");
                self.loops -= 1;
            }
            8 if self.loops == 0 && self.level > 0 && self.calls < 2 && self.number > 4 => {
                self.calls += 1;
                // One of the level below.
                let callees = (self.number - self.level) as u64 / 4 + 1;
                let callee = self.pick(callees) as usize * 4 + self.level - 1;
                let (v, a, b) = (
                    self.pick(self.variables),
                    self.expression(1),
                    self.expression(1),
                );
                let _ = writeln!(self.out, "{pad}v{v} = f{callee}({a}, {b});");
            }
            _ => {
                let (v, op) = (
                    self.pick(self.variables),
                    ["+", "-", "^"][self.pick(3) as usize],
                );
                let value = self.expression(2);
                let _ = writeln!(self.out, "{pad}v{v} = v{v} {op} ({value});");
            }
        }
    }

    fn condition(&mut self) -> String {
        let op = ["<", "<=", "==", "!=", ">", ">="][self.pick(6) as usize];
        let one = format!("{} {op} {}", self.expression(1), self.expression(1));
        match self.pick(5) {
            0 => format!("{one} && {} != 0", self.expression(1)),
            1 => format!("{one} || {} < 7", self.expression(1)),
            _ => one,
        }
    }

    fn expression(&mut self, depth: u32) -> String {
        if depth == 0 {
            return match self.pick(4) {
                0 => self.pick(100).to_string(),
                _ => format!("v{}", self.pick(self.variables)),
            };
        }
        let (a, b) = (depth - 1, self.pick(u64::from(depth)) as u32);
        match self.pick(14) {
            0..3 => format!("{} + {}", self.expression(a), self.expression(b)),
            3 | 4 => format!("{} - ({})", self.expression(a), self.expression(b)),
            5 => format!("({}) * {}", self.expression(a), self.expression(0)),
            6 => format!("({}) / (({}) | 1)", self.expression(a), self.expression(b)),
            7 => format!("({}) % 17", self.expression(a)),
            8 => format!("(({}) & ({}))", self.expression(a), self.expression(b)),
            9 => format!("(({}) ^ ({}))", self.expression(a), self.expression(b)),
            10 => format!("(({}) << {})", self.expression(a), self.pick(8)),
            11 => format!("(({}) >> {})", self.expression(a), self.pick(8)),
            12 => format!("g{}[({}) & 255]", self.pick(ARRAYS), self.expression(b)),
            _ => self.expression(0),
        }
    }
}
