//! How often each row ran, and which row is next.

use crate::forms::Forms;
use crate::policy::{Policy, policy};
use crate::random::Rng;
use crate::shared::Shared;
use iced_x86::Code;
use sevlab_cpu::table::{Route, rows};
use std::fmt::Write;
use std::sync::atomic::Ordering;

/// Picks rows, those that ran least often first.
pub struct Picker<'a> {
    shared: &'a Shared,
    /// Rows of the guest's processor that can be run.
    wanted: Vec<Code>,
    /// Rows that the guest must refuse.
    refused: Vec<Code>,
}

impl<'a> Picker<'a> {
    /// All rows whose name passes.
    #[must_use]
    pub fn new(forms: &Forms, shared: &'a Shared, pass: &dyn Fn(&str) -> bool) -> Self {
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        for r in rows() {
            if !forms.reachable(r.code)
                || matches!(policy(r.code), Policy::Never(_))
                || r.code == Code::INVALID
                || !pass(&format!("{:?}", r.code))
            {
                continue;
            }
            if r.route == Route::Undefined {
                refused.push(r.code);
            } else {
                wanted.push(r.code);
            }
        }
        Self {
            shared,
            wanted,
            refused,
        }
    }

    /// Whether no row passed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.refused.is_empty()
    }

    /// The next row.
    pub fn pick(&self, r: &mut Rng) -> Code {
        let list = if self.wanted.is_empty() || !self.refused.is_empty() && r.one_in(256) {
            &self.refused
        } else {
            &self.wanted
        };
        let mut best = r.pick(list);
        if r.one_in(4) {
            return best;
        }
        let ran = |c: Code| self.shared.ran[c as usize].load(Ordering::Relaxed);
        for _ in 0..7 {
            let other = r.pick(list);
            if ran(other) < ran(best) {
                best = other;
            }
        }
        best
    }
}

/// One row of the report.
pub struct Row {
    /// iced's name.
    pub name: String,
    /// Who runs it in the guest.
    pub route: Route,
    /// Times it ran natively without #UD and was compared with the interpreter's run.
    pub ran: u64,
    /// Times it was in a case that the translator ran too.
    pub translated: u64,
    /// Why it never can be, or what is special about it.
    pub note: String,
}

/// All rows of the guest's processor; `all`: those that it refuses too.
#[must_use]
pub fn report(forms: &Forms, shared: &Shared, all: bool) -> Vec<Row> {
    let load = |a: &[std::sync::atomic::AtomicU64], c: Code| a[c as usize].load(Ordering::Relaxed);
    rows()
        .filter(|r| all || r.route != Route::Undefined)
        .map(|r| Row {
            name: format!("{:?}", r.code),
            route: r.route,
            ran: load(&shared.ran, r.code),
            translated: load(&shared.translated, r.code),
            note: if forms.reachable(r.code) {
                match policy(r.code) {
                    Policy::Compare => String::new(),
                    Policy::Varies { why, .. } => format!("structure: {why}"),
                    Policy::Intercepted { .. } => {
                        "structure: intercepted in the guest, completes natively".into()
                    }
                    Policy::Guest(_, why) => format!("guest only: {why}"),
                    Policy::Never(why) => format!("not run: {why}"),
                }
            } else {
                "not run: no byte sequence decodes as it in 64-bit mode".into()
            },
        })
        .collect()
}

/// As tab-separated values, with a heading.
#[must_use]
pub fn tsv(rows: &[Row]) -> String {
    let mut out = "row\troute\tran\ttranslated\tnote\n".to_owned();
    for r in rows {
        let _ = writeln!(
            out,
            "{}\t{:?}\t{}\t{}\t{}",
            r.name, r.route, r.ran, r.translated, r.note
        );
    }
    out
}

/// As a JSON array of objects. No string in it has a character to escape.
#[must_use]
pub fn json(rows: &[Row]) -> String {
    let lines: Vec<String> = rows
        .iter()
        .map(|r| {
            format!(
                "  {{\"row\": \"{}\", \"route\": \"{:?}\", \"ran\": {}, \"translated\": {}, \"note\": \"{}\"}}",
                r.name, r.route, r.ran, r.translated, r.note
            )
        })
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// The summary: the minimum, rows below 1000, rows never run and why.
#[must_use]
pub fn summary(rows: &[Row]) -> String {
    let mut out = String::new();
    let (run, not): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|r| !r.note.starts_with("not run"));
    let Some(least) = run.iter().min_by_key(|r| r.ran) else {
        return out;
    };
    let _ = writeln!(
        out,
        "coverage: {} rows, least {} ({}), {} below 1000, {} never run",
        run.len(),
        least.ran,
        least.name,
        run.iter().filter(|r| r.ran < 1000).count(),
        run.iter().filter(|r| r.ran == 0).count(),
    );
    let mut low: Vec<_> = run.iter().filter(|r| r.ran < 1000).collect();
    low.sort_by_key(|r| r.ran);
    for r in low.iter().take(40) {
        let _ = writeln!(out, "  {:8} {} {}", r.ran, r.name, r.note);
    }
    if low.len() > 40 {
        let _ = writeln!(out, "  and {} more", low.len() - 40);
    }
    let mut reasons: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for r in not {
        reasons.entry(&r.note).or_default().push(&r.name);
    }
    for (why, names) in reasons {
        let _ = writeln!(out, "{} rows {why}: {}", names.len(), names.join(" "));
    }
    out
}
