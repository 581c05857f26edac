//! The translator against the interpreter: random programs, run from the same state in both, must leave the same
//! registers, flags, memory, retired count and stop.
//!
//! `SEVLAB_DIFF_CASES` is the number of programs, `SEVLAB_DIFF_SEED` where to begin (random and printed by
//! default). A program that disagrees is cut down to few instructions, printed, and written to
//! `tests/regress/<seed>.txt`, from where every later run replays it first.

#[path = "diff/compare.rs"]
mod compare;
#[path = "diff/forms.rs"]
mod forms;
#[path = "diff/machine.rs"]
mod machine;
#[path = "diff/program.rs"]
mod program;

use compare::{Rig, Verdict, regressions};
use forms::Forms;
use machine::{Kind, Start};
use program::{Generator, Program};
use std::time::{Duration, Instant};

fn variable(name: &str) -> Option<u64> {
    let v = std::env::var(name).ok()?;
    let v = v.trim();
    Some(match v.strip_prefix("0x") {
        Some(h) => u64::from_str_radix(h, 16).expect("a hexadecimal number"),
        None => v.parse().expect("a number"),
    })
}

fn first_seed() -> u64 {
    variable("SEVLAB_DIFF_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock after 1970");
        now.as_nanos() as u64 & 0xffff_ffff_0000
    })
}

/// Drops items as long as the program still disagrees on fresh machines.
fn shrink(program: &Program, seed: u64, kind: Kind, variation: u64) -> Program {
    let mut best = program.clone();
    if best.at > 0 {
        let p = Program {
            at: 0,
            ..best.clone()
        };
        if disagrees(&p, seed, kind, variation) {
            best = p;
        }
    }
    let started = Instant::now();
    loop {
        let before = best.items.len();
        let mut n = before;
        while n > 0 {
            n -= 1;
            // The last instruction of all stops the program; it may go too, what is behind faults.
            let p = best.without(n);
            if disagrees(&p, seed, kind, variation) {
                best = p;
            }
            if started.elapsed() > Duration::from_secs(60) {
                return best;
            }
        }
        if best.items.len() == before {
            return best;
        }
    }
}

/// Where the program of a seed begins.
fn start(seed: u64, p: &Program) -> Start {
    Start {
        undefined: !p.defined,
        ..Start::new(seed, &p.assemble())
    }
}

fn disagrees(p: &Program, seed: u64, kind: Kind, variation: u64) -> bool {
    let start = start(seed, p);
    matches!(Rig::new(kind, variation).check(&start), Verdict::Differ(_))
}

/// Programs that run in the same engines, one after the other.
const PROGRAMS: u64 = 400;

/// Runs `cases` programs from `seed` on.
fn random(kind: Kind, cases: u64, seed: u64) {
    let forms = Forms::new();
    let mut variation = seed;
    let mut rig = Rig::new(kind, variation);
    let (mut endless, mut failed, mut refused) = (0, 0, 0);
    for case in 0..cases {
        let seed = seed + case;
        if case % PROGRAMS == PROGRAMS - 1 {
            refused += rig.refused();
            variation = seed;
            rig = Rig::new(kind, variation);
        }
        let program = Generator::new(&forms, seed).program();
        let start = self::start(seed, &program);
        match rig.check(&start) {
            Verdict::Agree => {}
            Verdict::Endless => endless += 1,
            Verdict::Differ(first) => {
                failed += 1;
                refused += rig.refused();
                // Others need the places of its views.
                drop(rig);
                let small = shrink(&program, seed, kind, variation);
                let start = self::start(seed, &small);
                match Rig::new(kind, variation).check(&start) {
                    Verdict::Differ(d) => {
                        let path = compare::save(seed, kind, variation, &start);
                        eprintln!("{}\nsaved as {path}", compare::report(&start, kind, &d));
                    }
                    _ => eprintln!(
                        "seed {seed:#x} disagrees only after what ran before it:\n{}",
                        compare::report(&start, kind, &first)
                    ),
                }
                rig = Rig::new(kind, variation);
                if failed == 5 {
                    break;
                }
            }
        }
    }
    eprintln!(
        "{kind:?}: {cases} programs from seed {seed:#x}, {endless} endless, {failed} differ; in the last engines: {}",
        rig.summary()
    );
    assert_eq!(failed, 0, "programs differ");
    assert_eq!(refused + rig.refused(), 0, "regions were refused");
}

#[test]
fn regressions_stay_fixed() {
    let mut failed = 0;
    for (name, kind, variation, start) in regressions() {
        let mut rig = Rig::new(kind, variation);
        if let Verdict::Differ(d) = rig.check(&start) {
            failed += 1;
            eprintln!("{name}:\n{}", compare::report(&start, kind, &d));
        }
        assert_eq!(rig.refused(), 0, "{name}: refused");
    }
    assert_eq!(failed, 0, "regressions");
}

#[test]
fn random_programs_agree() {
    random(
        Kind::Plain,
        variable("SEVLAB_DIFF_CASES").unwrap_or(2500),
        first_seed(),
    );
}

#[test]
fn random_programs_agree_in_encrypted_memory() {
    let cases = variable("SEVLAB_DIFF_CASES").unwrap_or(2500);
    random(Kind::Private, cases / 8, first_seed() ^ 0x1_0000_0000_0000);
    random(Kind::Uncached, cases / 8, first_seed() ^ 0x2_0000_0000_0000);
}
