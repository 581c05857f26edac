//! An interpreter for a small scripting language with strings, hashes and regular expressions. Follows 500.perlbench_r.
//!
//! As there: a script that works on mail (splits it into words, counts them in hashes, finds addresses with regular expressions,
//! scores lines as a spam filter does, rewrites and wraps text) is parsed into a tree, which is walked. Its behaviour: indirect
//! jumps in the interpreter's loop, reference counts, many small strings made and dropped, hash tables, a backtracking matcher.
//!
//! What differs: a far smaller language and interpreter, so a smaller code footprint; one script where SPEC has three.

mod interpret;
mod parse;
mod regex;
mod value;

use std::process::ExitCode;
use std::rc::Rc;

use sevlab_workloads::guest::{Guest, Map, Param, Random, Sum, Values};
use sevlab_workloads::inputs;

use value::Value;

const GUEST: Guest = Guest {
    name: "perlbench",
    about: "Runs a script over generated mail, in an interpreter with strings, hashes and regular expressions.",
    params: &[
        Param {
            name: "mails",
            what: "mails, of about 2 KiB each",
            values: [10, 150, 1500],
            limits: (1, 1_000_000),
        },
        Param {
            name: "seed",
            what: "seed of the mails",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

const SCRIPT: &str = include_str!("script.txt");

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let lines = mail(values.size("mails"), values.get("seed"));
    let program = parse::parse(SCRIPT)?;
    let list = lines
        .iter()
        .map(|l| Value::Str(Rc::from(l.as_str())))
        .collect();
    let out = interpret::run(&program, Value::array(list))?;
    check(&out, &lines)?;
    let mut sum = Sum::default();
    sum.add_bytes(out.as_bytes());
    let last: Vec<&str> = out.lines().filter(|l| l.starts_with("total ")).collect();
    Ok(format!(
        "{} lines\n{}\n{} bytes printed\nchecksum {sum}",
        lines.len(),
        last.join("\n"),
        out.len()
    ))
}

/// Mails: headers, text, now and then an address or a price.
fn mail(count: usize, seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let text = String::from_utf8_lossy(&inputs::text(count * 2000, seed)).into_owned();
    let mut text = text.lines();
    let mut out = Vec::new();
    for n in 0..count {
        out.push(format!(
            "From: user{}@example{}.org",
            random.below(200),
            random.below(9)
        ));
        out.push(format!("Subject: message {n}"));
        out.push(String::new());
        for _ in 0..26 {
            let Some(line) = text.next() else { break };
            let mut line = line.to_owned();
            match random.below(12) {
                0 => line.push_str(&format!(
                    " write to box{}@mail.example{}.com soon",
                    random.below(500),
                    random.below(5)
                )),
                1 => line.push_str(&format!(
                    " only ${}.{:02} today",
                    random.below(90),
                    random.below(100)
                )),
                _ => {}
            }
            out.push(line);
        }
        out.push(".".to_owned());
    }
    out
}

/// Some of what the script counts, counted otherwise.
fn check(out: &str, lines: &[String]) -> Result<(), String> {
    let mut counts: Map<String, u64> = Map::default();
    for line in lines {
        for word in line
            .to_ascii_lowercase()
            .split(|c: char| !c.is_ascii_lowercase())
        {
            if word.len() > 2 {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    let total: u64 = counts.values().sum();
    let addresses = lines.iter().filter(|l| l.contains('@')).count();
    for expected in [
        format!("total words {total}"),
        format!("total distinct {}", counts.len()),
        format!("total addresses {addresses}"),
    ] {
        if !out.lines().any(|l| l == expected) {
            return Err(format!("the script should print \"{expected}\""));
        }
    }
    Ok(())
}
