//! The command line of a workload program: a size, or its parameters one by one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// A program.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its binary.
    pub name: &'static str,
    /// What it does, for `--help`.
    pub about: &'static str,
    /// What can be set, in the order of plain numbers on the command line.
    pub params: &'static [Param],
}

/// A whole number that can be set.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// The option's name.
    pub name: &'static str,
    /// What it is, with its unit.
    pub what: &'static str,
    /// Its value at sizes test, train and ref.
    pub values: [u64; 3],
    /// The least and the most that the program can do with.
    pub limits: (u64, u64),
}

/// The values of a run.
#[derive(Clone, Debug)]
pub struct Values(Vec<(&'static str, u64)>);

impl Values {
    /// A parameter's value.
    pub fn get(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(n, _)| *n == name);
        found.map_or_else(|| panic!("no parameter {name}"), |(_, v)| *v)
    }

    /// The same as an index or a count.
    pub fn size(&self, name: &str) -> usize {
        self.get(name) as usize
    }
}

/// What a command line asks for.
#[derive(Debug)]
enum Request {
    Run(Values),
    Help,
}

const SIZES: [&str; 3] = ["test", "train", "ref"];

impl Guest {
    /// Parses the command line, runs, prints. Exit status 0; 1 if the program failed its own check; 2 for wrong usage.
    pub fn main(&self, run: impl FnOnce(&Values) -> Result<String, String>) -> ExitCode {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let values = match self.parse(&words) {
            Ok(Request::Run(values)) => values,
            Ok(Request::Help) => {
                print!("{}", self.help());
                return ExitCode::SUCCESS;
            }
            Err(why) => {
                eprintln!("{}: {why} ({} --help explains)", self.name, self.name);
                return ExitCode::from(2);
            }
        };
        match run(&values) {
            Ok(mut text) => {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                match std::io::stdout().write_all(text.as_bytes()) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(e) => {
                        eprintln!("{}: standard output: {e}", self.name);
                        ExitCode::FAILURE
                    }
                }
            }
            Err(why) => {
                eprintln!("{}: check failed: {why}", self.name);
                ExitCode::FAILURE
            }
        }
    }

    fn parse(&self, words: &[String]) -> Result<Request, String> {
        let mut size = 1;
        let mut given: Vec<(usize, u64)> = Vec::new();
        let mut plain = 0;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                return Ok(Request::Help);
            }
            let (name, value) = match word.strip_prefix("--") {
                Some(option) => match option.split_once('=') {
                    Some((name, value)) => (name, value.to_owned()),
                    None => {
                        let value = words.next().ok_or(format!("{word} needs a value"))?;
                        (option, value.clone())
                    }
                },
                None => {
                    plain += 1;
                    let param = self.params.get(plain - 1);
                    let param = param.ok_or(format!("\"{word}\" is one number too many"))?;
                    (param.name, word.clone())
                }
            };
            if name == "size" {
                let at = SIZES.iter().position(|s| *s == value);
                size = at.ok_or(format!(
                    "no size \"{value}\": there are test, train and ref"
                ))?;
                continue;
            }
            let at = self.params.iter().position(|p| p.name == name);
            let at = at.ok_or(format!("no option --{name}"))?;
            let number = number(&value).ok_or(format!("--{name}: \"{value}\" is no number"))?;
            let (low, high) = self.params[at].limits;
            if !(low..=high).contains(&number) {
                return Err(format!("--{name}: {number} is not from {low} to {high}"));
            }
            given.push((at, number));
        }
        let mut values: Vec<_> = self
            .params
            .iter()
            .map(|p| (p.name, p.values[size]))
            .collect();
        for (at, number) in given {
            values[at].1 = number;
        }
        Ok(Request::Run(Values(values)))
    }

    fn help(&self) -> String {
        let mut text = format!(
            "{}: {}\n\nUsage: {} [--size test|train|ref]",
            self.name,
            self.about.trim(),
            self.name
        );
        for p in self.params {
            let _ = write!(text, " [--{} N]", p.name);
        }
        text.push_str(
            "\n\nWithout --size: train. A parameter changes one figure of the size; plain numbers are the parameters in \
             this order:\n\n",
        );
        let _ = writeln!(
            text,
            "  {:<14} {:>12} {:>12} {:>12}",
            "parameter", "test", "train", "ref"
        );
        for p in self.params {
            let [test, train, big] = p.values;
            let _ = writeln!(
                text,
                "  --{:<12} {test:>12} {train:>12} {big:>12}  {}",
                p.name, p.what
            );
        }
        text.push_str(
            "\nExit status: 0; 1 if the result is not what it must be; 2 for wrong usage.\n",
        );
        text
    }
}

/// Decimal, or hexadecimal with 0x; underscores may stand in it.
fn number(text: &str) -> Option<u64> {
    let plain = text.replace('_', "");
    match plain.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => plain.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Guest = Guest {
        name: "example",
        about: "Does nothing.",
        params: &[
            Param {
                name: "mib",
                what: "MiB",
                values: [1, 2, 3],
                limits: (1, 100),
            },
            Param {
                name: "steps",
                what: "steps",
                values: [10, 20, 30],
                limits: (0, 1000),
            },
        ],
    };

    fn parse(line: &str) -> Result<(u64, u64), String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match GUEST.parse(&words)? {
            Request::Run(v) => Ok((v.get("mib"), v.get("steps"))),
            Request::Help => Err("help".to_owned()),
        }
    }

    #[test]
    fn sizes_parameters_and_plain_numbers() {
        assert_eq!(parse(""), Ok((2, 20)));
        assert_eq!(parse("--size ref"), Ok((3, 30)));
        assert_eq!(parse("--steps 7 --size test"), Ok((1, 7)));
        assert_eq!(parse("64 --steps=0x10"), Ok((64, 16)));
        assert_eq!(parse("5 6"), Ok((5, 6)));
        for wrong in [
            "--size big",
            "--steps",
            "--steps x",
            "1 2 3",
            "0",
            "--mib 101",
            "--nothing 1",
            "x",
        ] {
            assert!(parse(wrong).is_err_and(|e| e != "help"), "{wrong}");
        }
        assert_eq!(parse("--help"), Err("help".to_owned()));
        for word in ["--mib", "--steps", "Does nothing", "ref"] {
            assert!(GUEST.help().contains(word), "{word}");
        }
    }
}
