//! Running a program every way there is, and saying how the results differ.
#![allow(dead_code)] // each test file uses its part

use crate::machine::{CODE, CODE_PAGES, Kind, Machine, Outcome, PAGE, Rng, Start, WATCHED};
use crate::program::listing;
use sevlab_jit::{JitOptions, OptLevel};
use std::fmt::Write;
use std::path::PathBuf;

/// The engines that are held against the interpreter. What the last one may do follows from `variation`, and which of the two before
/// copies goes without a view: there are places for five in a process.
pub fn engines(variation: u64) -> [(&'static str, JitOptions); 5] {
    let mut r = Rng::new(variation);
    let small = JitOptions {
        threshold: 2,
        opt_level: OptLevel::Speed,
        background: false,
        direct: 0,
        code_bytes: 4 << 20,
        ..JitOptions::default()
    };
    [
        (
            "all off",
            JitOptions {
                code_bytes: 4 << 20,
                ..JitOptions::all_off()
            },
        ),
        (
            "speed",
            JitOptions {
                view: variation.is_multiple_of(2),
                ..small.clone()
            },
        ),
        (
            "none",
            JitOptions {
                opt_level: OptLevel::None,
                threshold: 1,
                view: !variation.is_multiple_of(2),
                // Registers are stored before what may leave, and not on the ways out.
                lazy_accesses: 0,
                ..small.clone()
            },
        ),
        (
            "direct",
            JitOptions {
                threshold: u32::MAX,
                opt_level: OptLevel::None,
                direct: 1,
                ..small.clone()
            },
        ),
        (
            "mixed",
            JitOptions {
                threshold: 1 + r.below(3) as u32,
                opt_level: r.pick(&[OptLevel::None, OptLevel::Speed]),
                regions: !r.one_in(4),
                chaining: !r.one_in(3),
                jump_cache: !r.one_in(3),
                shared_frame: !r.one_in(3),
                groups: !r.one_in(3),
                view: !r.one_in(3),
                direct: r.below(3) as u32,
                short: !r.one_in(3),
                dead_flags: !r.one_in(3),
                vectors: !r.one_in(4),
                lazy_accesses: r.pick(&[0, 1, 3, 16]),
                max_blocks: r.pick(&[1, 2, 3, 5, 24]),
                max_insns: r.pick(&[1, 4, 10, 128]),
                ..small
            },
        ),
    ]
}

/// A difference.
pub struct Difference {
    pub engine: &'static str,
    /// Which of the runs of the program in the engine.
    pub run: usize,
    pub expected: Outcome,
    pub got: Outcome,
    /// The translation of the program's first region.
    pub clif: Option<String>,
}

pub enum Verdict {
    Agree,
    /// The interpreter did not come to an end.
    Endless,
    Differ(Box<Difference>),
}

/// The machines, reused from program to program.
pub struct Rig {
    reference: Machine,
    others: Vec<(&'static str, Sticky, Machine)>,
    /// Guest instructions of all last runs, and how many of them the interpreter ran.
    last_runs: (u64, u64),
}

/// Runs in each engine: until the program is translated, and a few times more.
const RUNS: usize = 5;

impl Rig {
    pub fn new(kind: Kind, variation: u64) -> Self {
        Self {
            reference: Machine::new(kind, None),
            others: engines(variation)
                .into_iter()
                .map(|(name, o)| (name, Sticky::of(&o), Machine::new(kind, Some(o))))
                .collect(),
            last_runs: (0, 0),
        }
    }

    pub fn check(&mut self, start: &Start) -> Verdict {
        self.check_with(start, |_| {})
    }

    /// With `prepare` done to each machine after its state is put in place.
    pub fn check_with(&mut self, start: &Start, prepare: impl Fn(&mut Machine)) -> Verdict {
        self.reference.reset(start);
        prepare(&mut self.reference);
        let Some(expected) = self.reference.run() else {
            return Verdict::Endless;
        };
        for (name, sticky, machine) in &mut self.others {
            if start.undefined && machine.copies {
                continue;
            }
            for run in 0..RUNS {
                machine.reset(start);
                prepare(machine);
                if run == 3 {
                    machine.forget_mappings();
                }
                let before = interpreted(machine);
                let got = machine.run().expect("an engine has no budget");
                if run == RUNS - 1 {
                    self.last_runs.0 += got.retired;
                    self.last_runs.1 += interpreted(machine) - before;
                }
                if !same(&expected, &got, *sticky) {
                    let engine = machine.engine.as_mut().expect("made with one");
                    let clif = engine.clif(&mut machine.vcpu, CODE);
                    return Verdict::Differ(Box::new(Difference {
                        engine: name,
                        run,
                        expected,
                        got,
                        clif,
                    }));
                }
            }
        }
        Verdict::Agree
    }

    /// Regions that could not be translated. There is no reason for one: an instruction used a register that the
    /// translator did not expect of it.
    pub fn refused(&self) -> u64 {
        let stats = |m: &Machine| m.engine.as_ref().expect("made with one").stats();
        self.others.iter().map(|o| stats(&o.2).refused).sum()
    }

    /// What the engines did.
    pub fn summary(&self) -> String {
        let (all, interpreted) = self.last_runs;
        let mut out = format!(
            "{:.1}% of the last runs translated; ",
            100.0 - 100.0 * interpreted as f64 / all.max(1) as f64
        );
        for (name, _, m) in &self.others {
            let s = m.engine.as_ref().expect("made with one").stats();
            let _ = write!(
                out,
                "[{name}: {} regions, {} guest instructions, {} refused, {} entries, {} flushes, {:?}] ",
                s.regions, s.guest_insns, s.refused, s.entries, s.flushes, s.compile_time
            );
        }
        out
    }
}

fn interpreted(m: &Machine) -> u64 {
    m.engine
        .as_ref()
        .expect("made with one")
        .stats()
        .interpreted
}

/// What an engine promises of MXCSR's sticky exception flags.
#[derive(Clone, Copy)]
pub enum Sticky {
    /// As on hardware.
    Exact,
    /// A floating-point operation whose result nobody reads is not carried out.
    Fewer,
    /// Also, one whose operands a loop does not change is carried out before the loop, needed or not.
    Any,
}

impl Sticky {
    pub fn of(o: &JitOptions) -> Self {
        match (o.vectors, o.opt_level) {
            (false, _) => Self::Exact,
            (true, OptLevel::None) => Self::Fewer,
            (true, OptLevel::Speed) => Self::Any,
        }
    }
}

/// Whether the outcomes are the same.
pub fn same(expected: &Outcome, got: &Outcome, sticky: Sticky) -> bool {
    const FLAGS: u32 = 0x3f;
    let mut got = got.clone();
    got.mxcsr |= match sticky {
        Sticky::Exact => 0,
        Sticky::Fewer if got.mxcsr & FLAGS & !expected.mxcsr != 0 => 0,
        Sticky::Fewer => expected.mxcsr & FLAGS,
        Sticky::Any => {
            got.mxcsr &= !FLAGS;
            expected.mxcsr & FLAGS
        }
    };
    *expected == got
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// A listing, what the start was and what differs.
pub fn report(start: &Start, kind: Kind, d: &Difference) -> String {
    let mut out = format!(
        "engine `{}`, run {}, {kind:?} memory\n{}",
        d.engine,
        d.run,
        listing(&start.code)
    );
    let (e, g) = (&d.expected, &d.got);
    let _ = writeln!(
        out,
        "  {:8}{:>20}{:>20}{:>20}",
        "", "start", "interpreter", "translated"
    );
    for (n, name) in NAMES.iter().enumerate() {
        let mark = if e.gpr[n] == g.gpr[n] { ' ' } else { '!' };
        let _ = writeln!(
            out,
            "{mark} {name:8}{:20x}{:20x}{:20x}",
            start.gpr[n], e.gpr[n], g.gpr[n]
        );
    }
    let mut line = |name: &str, a: u64, b: u64, c: u64| {
        let mark = if b == c { ' ' } else { '!' };
        let _ = writeln!(out, "{mark} {name:8}{a:20x}{b:20x}{c:20x}");
    };
    line("rip", CODE, e.rip, g.rip);
    line("rflags", start.flags, e.flags, g.flags);
    line("mxcsr", start.mxcsr.into(), e.mxcsr.into(), g.mxcsr.into());
    line("retired", 0, e.retired, g.retired);
    for n in 0..16 {
        for (what, s, a, b) in [
            ("xmm", start.xmm[n], e.xmm[n], g.xmm[n]),
            ("ymmh", start.ymmh[n], e.ymmh[n], g.ymmh[n]),
        ] {
            if a != b {
                let _ = writeln!(
                    out,
                    "! {what}{n}: start {:016x}_{:016x}\n          interpreter {:016x}_{:016x}\n           translated {:016x}_{:016x}",
                    s[1], s[0], a[1], a[0], b[1], b[0]
                );
            }
        }
    }
    if e.x87 != g.x87 {
        let _ = writeln!(out, "! x87\n  {:02x?}\n  {:02x?}", e.x87, g.x87);
    }
    if e.bases != g.bases {
        let _ = writeln!(out, "! segment bases {:x?} {:x?}", e.bases, g.bases);
    }
    if e.stop != g.stop {
        let _ = writeln!(out, "! stop {:?}, translated {:?}", e.stop, g.stop);
    }
    let mut at = 0;
    let mut shown = 0;
    for (from, pages) in WATCHED {
        for k in 0..(pages * PAGE) as usize {
            if e.memory[at + k] != g.memory[at + k] && shown < 16 {
                shown += 1;
                let _ = writeln!(
                    out,
                    "! [{:x}] {:02x}, translated {:02x}",
                    from + k as u64,
                    e.memory[at + k],
                    g.memory[at + k]
                );
            }
        }
        at += (pages * PAGE) as usize;
    }
    if let Some(clif) = &d.clif
        && std::env::var_os("SEVLAB_DIFF_CLIF").is_some()
    {
        out += clif;
    }
    out
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/regress")
}

/// Writes a regression case; returns where. The start state follows from the seed.
pub fn save(seed: u64, kind: Kind, variation: u64, start: &Start) -> String {
    let path = directory().join(format!("{seed:x}.txt"));
    let code: String = start.code.iter().map(|b| format!("{b:02x}")).collect();
    let comment: String = listing(&start.code)
        .lines()
        .map(|l| format!("# {}\n", l.trim()))
        .collect();
    let text =
        format!("{comment}memory {kind:?}\noptions {variation}\nseed {seed:x}\ncode {code}\n");
    if let Err(e) = std::fs::create_dir_all(directory()).and_then(|()| std::fs::write(&path, text))
    {
        return format!("(not saved: {e})");
    }
    path.display().to_string()
}

/// All regression cases.
pub fn regressions() -> Vec<(String, Kind, u64, Start)> {
    let mut cases = Vec::new();
    let Ok(files) = std::fs::read_dir(directory()) else {
        return cases;
    };
    let mut files: Vec<_> = files.flatten().map(|f| f.path()).collect();
    files.sort();
    for path in files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
    {
        let text = std::fs::read_to_string(path).expect("a readable file");
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap_or_else(|| panic!("{}: no `{name}`", path.display()))
                .trim()
        };
        let kind = match field("memory") {
            "Private" => Kind::Private,
            "Scarce" => Kind::Scarce,
            "Uncached" => Kind::Uncached,
            _ => Kind::Plain,
        };
        let variation = field("options").parse().expect("a number");
        let seed = u64::from_str_radix(field("seed"), 16).expect("a hexadecimal seed");
        let hex = field("code");
        let code: Vec<u8> = (0..hex.len() / 2)
            .map(|k| u8::from_str_radix(&hex[2 * k..2 * k + 2], 16).expect("hexadecimal code"))
            .collect();
        assert!(code.len() as u64 <= CODE_PAGES * PAGE);
        cases.push((
            path.display().to_string(),
            kind,
            variation,
            Start::new(seed, &code),
        ));
    }
    cases
}
