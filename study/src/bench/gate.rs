//! What is worse than before by more than allowed.

use std::collections::BTreeMap;

use super::{Case, EXACT, GENERATED, Measured};

/// What a count may grow by, as a share of 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Allowed {
    /// Exact counts.
    pub exact: f64,
    /// Wall-clock, if that is to count; it differs from host to host and from hour to hour.
    pub wall: Option<f64>,
}

/// What generated code may grow by at least if a program was built elsewhere: its functions lie in another order, and what is near
/// decides what is translated together (1.3 % was seen).
const ELSEWHERE: f64 = 0.05;

/// How a measurement compares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What is worse, in words.
    pub culprits: Vec<String>,
    /// What can't be compared, and why.
    pub notes: Vec<String>,
    /// What can't be compared although everything around it is the baseline's: the baseline is out of date.
    pub stale: Vec<String>,
    /// How many exact counts were compared.
    pub compared: usize,
}

/// Compares `now` with `before`.
#[must_use]
pub fn compare(now: &Measured, before: &Measured, allowed: Allowed) -> Verdict {
    let mut verdict = Verdict::default();
    // Each workload's own reasons are those of many: they are told once, with the workloads.
    let mut elsewhere: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let generated = now.isa == before.isa;
    for (name, case) in &now.workloads {
        let Some(old) = before.workloads.get(name) else {
            verdict.stale.push(format!("{name}: not in the baseline"));
            continue;
        };
        if let Some(why) = other_place(now, before, case, old) {
            elsewhere.entry(why).or_default().push(name);
        } else if old.program != case.program {
            verdict.stale.push(format!(
                "{name}: its program is another than the baseline's, so its counts are not compared"
            ));
        } else {
            one(name, case, old, allowed, generated, &mut verdict);
        }
    }
    for (why, names) in elsewhere {
        let names = names.join(", ");
        verdict
            .notes
            .push(format!("{why}, so no counts are compared of: {names}"));
    }
    let gone = before.workloads.keys();
    let gone: Vec<&str> = gone
        .filter(|n| !now.workloads.contains_key(*n))
        .map(String::as_str)
        .collect();
    if !gone.is_empty() {
        let names = gone.join(", ");
        verdict.notes.push(format!("only in the baseline: {names}"));
    }
    if !generated {
        verdict.notes.push(format!(
            "the baseline's host has other instruction-set extensions ({}), so generated code is not compared",
            before.isa.join(" ")
        ));
    }
    if now.processor != before.processor {
        verdict.notes.push(format!(
            "the baseline's wall-clock is another processor's ({})",
            before.processor
        ));
    }
    verdict
}

/// What around a program makes it count otherwise than the baseline's did.
fn other_place(now: &Measured, before: &Measured, case: &Case, old: &Case) -> Option<String> {
    if now.shown != before.shown {
        let what = "this host shows guests another epyc-milan than the baseline's (sevlab doctor)";
        return Some(what.to_owned());
    }
    if case.library != old.library {
        return Some("another C library than the baseline's is installed".to_owned());
    }
    (case.compilers != old.compilers).then(|| {
        format!(
            "the baseline's programs are of another compiler ({})",
            old.compilers
        )
    })
}

fn one(
    name: &str,
    case: &Case,
    old: &Case,
    allowed: Allowed,
    generated: bool,
    verdict: &mut Verdict,
) {
    for (count, what) in EXACT {
        let (Some(&now), Some(&before)) = (case.exact.get(count), old.exact.get(count)) else {
            continue;
        };
        let made = GENERATED.contains(&count);
        if made && !generated {
            continue;
        }
        let most = if made && case.file != old.file {
            allowed.exact.max(ELSEWHERE)
        } else {
            allowed.exact
        };
        verdict.compared += 1;
        if now as f64 > before as f64 * (1.0 + most) {
            verdict.culprits.push(format!(
                "{name}: {count} {} -> {}, {:+.3} % ({what})",
                before,
                now,
                change(now as f64, before as f64)
            ));
        }
    }
    if let Some(most) = allowed.wall
        && let (Some(now), Some(before)) = (&case.wall, &old.wall)
        && now.mean > before.mean * (1.0 + most)
        && now.apart(before)
    {
        verdict.culprits.push(format!(
            "{name}: wall-clock {:.4} s \u{b1} {:.4} -> {:.4} s \u{b1} {:.4}, {:+.1} %",
            before.mean,
            before.half,
            now.mean,
            now.half,
            change(now.mean, before.mean)
        ));
    }
}

/// In percent.
pub(super) fn change(now: f64, before: f64) -> f64 {
    if before == 0.0 {
        return if now == 0.0 { 0.0 } else { f64::INFINITY };
    }
    (now / before - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{FORMAT, Interval};

    fn measured(cycles: u64, wall: &[f64]) -> Measured {
        let case = Case {
            program: "p".to_owned(),
            file: "f".to_owned(),
            compilers: "c".to_owned(),
            library: "l".to_owned(),
            exact: [("cycles".to_owned(), cycles), ("host_insns".to_owned(), 10)].into(),
            wall: Some(Interval::of(wall)),
            host_instructions: None,
        };
        Measured {
            format: FORMAT,
            version: "0".to_owned(),
            build: "b".to_owned(),
            processor: "x".to_owned(),
            isa: vec!["has_avx".to_owned()],
            shown: "s".to_owned(),
            workloads: [("w".to_owned(), case)].into(),
        }
    }

    const GATE: Allowed = Allowed {
        exact: 0.001,
        wall: Some(0.05),
    };

    #[test]
    fn a_tenth_of_a_percent_is_seen() {
        let old = measured(1_000_000, &[1.0, 1.0]);
        let fine = compare(&measured(1_000_900, &[1.0, 1.0]), &old, GATE);
        let none = Verdict {
            compared: 2,
            ..Verdict::default()
        };
        assert_eq!(fine, none);
        let worse = compare(&measured(1_001_100, &[1.0, 1.0]), &old, GATE);
        assert_eq!(worse.culprits.len(), 1);
        assert!(worse.culprits[0].starts_with("w: cycles 1000000 -> 1001100, +0.110 %"));
        let better = compare(&measured(900_000, &[1.0, 1.0]), &old, GATE);
        assert!(better.culprits.is_empty());
    }

    #[test]
    fn wall_clock_counts_only_beyond_its_noise_and_if_asked_for() {
        let old = measured(1, &[1.00, 1.02, 0.98]);
        let noisy = measured(1, &[1.0, 1.6, 1.3]);
        assert!(compare(&noisy, &old, GATE).culprits.is_empty());
        let slow = measured(1, &[1.30, 1.31, 1.32]);
        assert_eq!(compare(&slow, &old, GATE).culprits.len(), 1);
        let unasked = Allowed { wall: None, ..GATE };
        assert!(compare(&slow, &old, unasked).culprits.is_empty());
    }

    #[test]
    fn another_program_makes_the_baseline_stale() {
        let old = measured(1_000, &[1.0, 1.0]);
        let mut now = measured(2_000, &[1.0, 1.0]);
        now.workloads.get_mut("w").expect("there").program = "q".to_owned();
        now.workloads
            .insert("v".to_owned(), now.workloads["w"].clone());
        let verdict = compare(&now, &old, GATE);
        assert_eq!((verdict.compared, verdict.culprits.len()), (0, 0));
        assert_eq!(verdict.stale[0], "v: not in the baseline");
        assert!(verdict.stale[1].contains("its program is another"));
    }

    /// Makes a measurement another place's.
    type Elsewhere = fn(&mut Measured);

    #[test]
    fn another_place_is_told_and_not_compared() {
        let old = measured(1_000, &[1.0, 1.0]);
        let change: [(Elsewhere, &str); 3] = [
            (|m| m.shown = "t".to_owned(), "another epyc-milan"),
            (|m| case(m).library = "m".to_owned(), "another C library"),
            (
                |m| case(m).compilers = "d".to_owned(),
                "another compiler (c)",
            ),
        ];
        for (change, words) in change {
            let mut now = measured(2_000, &[1.0, 1.0]);
            case(&mut now).program = "q".to_owned();
            change(&mut now);
            let verdict = compare(&now, &old, GATE);
            assert_eq!((verdict.compared, verdict.culprits.len()), (0, 0));
            assert!(verdict.stale.is_empty() && verdict.notes[0].contains(words));
            assert!(verdict.notes[0].ends_with("of: w"), "{:?}", verdict.notes);
        }
    }

    #[test]
    fn generated_code_is_compared_on_hosts_alike() {
        let old = measured(1_000, &[1.0, 1.0]);
        let mut now = measured(1_000, &[1.0, 1.0]);
        case(&mut now).exact.insert("host_insns".to_owned(), 1_040);
        let mut old = old;
        case(&mut old).exact.insert("host_insns".to_owned(), 1_000);
        assert_eq!(compare(&now, &old, GATE).culprits.len(), 1);
        case(&mut now).file = "built elsewhere".to_owned();
        assert_eq!(compare(&now, &old, GATE).culprits.len(), 0);
        case(&mut now).exact.insert("host_insns".to_owned(), 1_060);
        assert_eq!(compare(&now, &old, GATE).culprits.len(), 1);
        now.isa.push("has_avx512f".to_owned());
        let verdict = compare(&now, &old, GATE);
        assert_eq!((verdict.compared, verdict.culprits.len()), (1, 0));
        case(&mut now).exact.insert("cycles".to_owned(), 2_000);
        assert_eq!(compare(&now, &old, GATE).culprits.len(), 1);
    }

    fn case(m: &mut Measured) -> &mut Case {
        m.workloads.get_mut("w").expect("there")
    }
}
