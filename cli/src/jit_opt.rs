//! `--jit-opt KEY=VALUE`: one row for each of the translator's options.

use std::fmt::Write;

use sevlab_machine::{JitOptions, OptLevel};

type Set = fn(&mut JitOptions, &str) -> Result<(), String>;
type Get = fn(&JitOptions) -> String;

struct Row {
    key: &'static str,
    values: &'static str,
    what: &'static str,
    set: Set,
    get: Get,
}

macro_rules! number {
    ($field:ident, $what:literal) => {
        Row {
            key: stringify!($field),
            values: "NUMBER",
            what: $what,
            set: |o, v| {
                o.$field = v
                    .parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or("not a number above 0")?;
                Ok(())
            },
            get: |o| o.$field.to_string(),
        }
    };
}

macro_rules! switch {
    ($field:ident, $what:literal) => {
        Row {
            key: stringify!($field),
            values: "on|off",
            what: $what,
            set: |o, v| {
                o.$field = on_off(v)?;
                Ok(())
            },
            get: |o| if o.$field { "on" } else { "off" }.to_owned(),
        }
    };
}

const ROWS: &[Row] = &[
    number!(
        threshold,
        "how often a block is interpreted before it is translated; where caches are simulated twice as often, above 1"
    ),
    number!(
        warm,
        "with the code cache: how often in a former run, so that it is translated when it is met"
    ),
    Row {
        key: "opt_level",
        values: "none|speed",
        what: "how hard Cranelift tries; none compiles in about half the time",
        set: |o, v| {
            o.opt_level = match v {
                "none" => OptLevel::None,
                "speed" => OptLevel::Speed,
                _ => return Err("none or speed".to_owned()),
            };
            Ok(())
        },
        get: |o| match o.opt_level {
            OptLevel::None => "none".to_owned(),
            OptLevel::Speed => "speed".to_owned(),
        },
    },
    switch!(
        background,
        "compile on a second thread while the interpreter goes on"
    ),
    switch!(regions, "several basic blocks in a region; off: one"),
    switch!(
        chaining,
        "regions jump to each other without the dispatcher"
    ),
    switch!(jump_cache, "look indirect jump targets up inline"),
    switch!(
        shared_frame,
        "regions run in one stack frame, which jumps between them keep"
    ),
    switch!(groups, "accesses off one base share a probe"),
    switch!(
        view,
        "accesses in cache mode page without a probe: the host's page tables check them"
    ),
    Row {
        key: "direct",
        values: "off|NUMBER",
        what: "how often a block is interpreted before it runs as a copy of the guest's own code, with the view",
        set: |o, v| {
            o.direct = match v {
                "off" => 0,
                v => v
                    .parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or("off or a number above 0")?,
            };
            Ok(())
        },
        get: |o| match o.direct {
            0 => "off".to_owned(),
            n => n.to_string(),
        },
    },
    switch!(
        cold,
        "with the code cache, keep copies of what runs once or twice, too"
    ),
    switch!(
        short,
        "accesses that L2 serves are simulated by hand-written code"
    ),
    switch!(
        dead_flags,
        "flags that nothing can read are not kept across blocks"
    ),
    switch!(
        vectors,
        "vector and floating-point instructions become Cranelift operations; off: native thunks"
    ),
    number!(max_blocks, "most guest blocks in a region"),
    number!(max_insns, "most guest instructions in a region"),
    number!(
        max_copies,
        "most regions that a block is part of, besides the one it begins"
    ),
    number!(
        lazy_accesses,
        "regions with more accesses store registers before one, not on the way out of a faulting one"
    ),
    Row {
        key: "dump_dir",
        values: "FOLDER",
        what: "write each region's guest instructions, CLIF and host code to a file there",
        set: |o, v| {
            o.dump_dir = (v != "nowhere").then(|| v.into());
            Ok(())
        },
        get: |o| {
            o.dump_dir
                .as_ref()
                .map_or("nowhere".to_owned(), |d| d.display().to_string())
        },
    },
    switch!(
        count_host,
        "count host instructions as code is made, for --report; costs a little time"
    ),
    number!(code_bytes, "bytes of the code buffer"),
];

fn on_off(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

/// One `--jit-opt`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JitOpt {
    /// Print the list.
    Help,
    /// `all=on` or `all=off`: start from that.
    All(bool),
    /// A row of the table with a value for it.
    Set(usize, String),
}

impl JitOpt {
    /// Reads `KEY=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "help" {
            return Ok(Self::Help);
        }
        let (key, value) = text
            .split_once('=')
            .ok_or("not KEY=VALUE (--jit-opt help lists the keys)")?;
        if key == "all" {
            return on_off(value).map(Self::All);
        }
        let row = ROWS.iter().position(|r| r.key == key);
        let row =
            row.ok_or_else(|| format!("unknown key \"{key}\" (--jit-opt help lists the keys)"))?;
        // Whether the value is one is told now, while the option can be named.
        (ROWS[row].set)(&mut JitOptions::default(), value)?;
        Ok(Self::Set(row, value.to_owned()))
    }

    /// The options that a list of settings makes, from left to right.
    pub fn apply(list: &[Self]) -> Result<JitOptions, String> {
        let mut options = JitOptions::default();
        for opt in list {
            match opt {
                Self::Help => {}
                Self::All(true) => options = JitOptions::default(),
                Self::All(false) => options = JitOptions::all_off(),
                Self::Set(row, value) => (ROWS[*row].set)(&mut options, value)?,
            }
        }
        Ok(options)
    }
}

/// The list that `--jit-opt help` prints.
pub fn help() -> String {
    let defaults = JitOptions::default();
    let mut text = String::from("--jit-opt KEY=VALUE, from left to right:\n\n");
    for row in ROWS {
        let key = format!("{}={}", row.key, row.values);
        // Writing to a String can't fail.
        let _ = writeln!(text, "  {key:<22} {} [{}]", row.what, (row.get)(&defaults));
    }
    text.push_str("  all=on|off             off: every optimisation off, translated at once and in the foreground;\n");
    text.push_str("                         on: the defaults, in brackets\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_reads_back() {
        let defaults = JitOptions::default();
        for row in ROWS {
            let text = format!("{}={}", row.key, (row.get)(&defaults));
            let opt = JitOpt::parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(JitOpt::apply(&[opt]), Ok(defaults.clone()), "{text}");
            assert!(help().contains(row.key));
        }
    }

    #[test]
    fn later_ones_win() {
        let list = ["all=off", "chaining=on", "threshold=7"].map(|t| JitOpt::parse(t).expect(t));
        let options = JitOpt::apply(&list).expect("applies");
        assert_eq!(
            options,
            JitOptions {
                chaining: true,
                threshold: 7,
                ..JitOptions::all_off()
            }
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "chaining",
            "chaining=maybe",
            "threshold=0",
            "threshold=x",
            "speed=on",
            "all=7",
            "opt_level=9",
        ] {
            assert!(JitOpt::parse(bad).is_err(), "{bad}");
        }
    }
}
