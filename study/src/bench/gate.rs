//! What is worse than before by more than allowed.

use super::{Case, EXACT, Measured};

/// What a count may grow by, as a share of 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Allowed {
    /// Exact counts.
    pub exact: f64,
    /// Wall-clock, if that is to count; it differs from host to host and from hour to hour.
    pub wall: Option<f64>,
}

/// How a measurement compares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What is worse, in words.
    pub culprits: Vec<String>,
    /// What can't be compared, and why.
    pub notes: Vec<String>,
}

/// Compares `now` with `before`.
#[must_use]
pub fn compare(now: &Measured, before: &Measured, allowed: Allowed) -> Verdict {
    let mut verdict = Verdict::default();
    for (name, case) in &now.workloads {
        match before.workloads.get(name) {
            None => verdict.notes.push(format!("{name}: not in the baseline")),
            Some(old) if old.program != case.program => verdict.notes.push(format!(
                "{name}: its program is another than the baseline's (built from other sources, or by another compiler), so \
                 its counts are not compared"
            )),
            Some(old) => one(name, case, old, allowed, &mut verdict),
        }
    }
    for name in before
        .workloads
        .keys()
        .filter(|n| !now.workloads.contains_key(*n))
    {
        verdict.notes.push(format!("{name}: only in the baseline"));
    }
    if now.processor != before.processor {
        verdict.notes.push(format!(
            "the baseline's wall-clock is another processor's ({})",
            before.processor
        ));
    }
    verdict
}

fn one(name: &str, case: &Case, old: &Case, allowed: Allowed, verdict: &mut Verdict) {
    for (count, what) in EXACT {
        let (Some(&now), Some(&before)) = (case.exact.get(count), old.exact.get(count)) else {
            continue;
        };
        if now as f64 > before as f64 * (1.0 + allowed.exact) {
            verdict.culprits.push(format!(
                "{name}: {count} {} -> {}, {:+.3} % ({what})",
                before,
                now,
                change(now as f64, before as f64)
            ));
        }
    }
    if let Some(most) = allowed.wall
        && case.wall.mean > old.wall.mean * (1.0 + most)
        && case.wall.apart(&old.wall)
    {
        verdict.culprits.push(format!(
            "{name}: wall-clock {:.4} s \u{b1} {:.4} -> {:.4} s \u{b1} {:.4}, {:+.1} %",
            old.wall.mean,
            old.wall.half,
            case.wall.mean,
            case.wall.half,
            change(case.wall.mean, old.wall.mean)
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
            exact: [("cycles".to_owned(), cycles), ("host_insns".to_owned(), 10)].into(),
            wall: Interval::of(wall),
            host_instructions: None,
        };
        Measured {
            format: FORMAT,
            version: "0".to_owned(),
            build: "b".to_owned(),
            processor: "x".to_owned(),
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
        assert_eq!(fine, Verdict::default());
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
    fn another_program_is_told_and_not_compared() {
        let old = measured(1_000, &[1.0, 1.0]);
        let mut now = measured(2_000, &[1.0, 1.0]);
        now.workloads.get_mut("w").expect("there").program = "q".to_owned();
        let verdict = compare(&now, &old, GATE);
        assert!(verdict.culprits.is_empty());
        assert!(verdict.notes[0].contains("its program is another"));
    }
}
