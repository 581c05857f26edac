//! All engines, and one case through them.

use crate::case::{Case, Fills};
use crate::check::{Analysis, Difference, Sticky, compare};
use crate::guest::{self, Guest};
use crate::host::amd;
use crate::known::{self, Known};
use crate::layout::{CODE_END, MEMORY};
use crate::native::Native;
use crate::outcome::{End, Outcome};
use crate::policy::{Expect, Policy};
use iced_x86::{Instruction, OpKind};
use std::error::Error;

/// Which engines run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engines {
    /// The host's processor.
    pub native: bool,
    /// The interpreter.
    pub interp: bool,
    /// The translator, every optimisation off.
    pub jit_off: bool,
    /// The translator, everything on.
    pub jit_on: bool,
    /// Copies of the guest's own instructions.
    pub direct: bool,
}

impl Engines {
    /// All but the last: its memory lies in this process's address space, where native code with stray addresses would find it.
    pub const ALL: Self = Self {
        native: true,
        interp: true,
        jit_off: true,
        jit_on: true,
        direct: false,
    };

    /// From a list of names with commas between.
    ///
    /// # Errors
    /// The name that is none, or that there are fewer than two.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut e = Self {
            native: false,
            interp: false,
            jit_off: false,
            jit_on: false,
            direct: false,
        };
        for name in list.split(',') {
            match name.trim() {
                "native" => e.native = true,
                "interp" => e.interp = true,
                "jit-off" => e.jit_off = true,
                "jit-on" => e.jit_on = true,
                "direct" => e.direct = true,
                other => {
                    return Err(format!(
                        "no engine `{other}`: there are native, interp, jit-off, jit-on and direct"
                    ));
                }
            }
        }
        let n = [e.native, e.interp, e.jit_off, e.jit_on, e.direct];
        if n.iter().filter(|x| **x).count() < 2 {
            return Err("at least two engines are needed to compare".into());
        }
        if e.native && e.direct {
            return Err("native and direct can't be in one process: stray addresses of the one reach the other's memory; \
                        compare direct with interp"
                .into());
        }
        Ok(e)
    }

    /// Their names.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        [
            (self.native, "native"),
            (self.interp, "interp"),
            (self.jit_off, "jit-off"),
            (self.jit_on, "jit-on"),
            (self.direct, "direct"),
        ]
        .into_iter()
        .filter_map(|(on, n)| on.then_some(n))
        .collect()
    }
}

/// An engine that did something else than the reference.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The reference.
    pub reference: &'static str,
    /// The engine.
    pub engine: &'static str,
    /// Which fields.
    pub differences: Vec<Difference>,
    /// What each engine left behind.
    pub outcomes: Vec<(&'static str, Outcome)>,
}

/// What became of a case.
pub enum Verdict {
    /// All the same. How many of its instructions surely ran.
    Agree(usize),
    /// It did not end.
    Endless,
    /// All the same but for a known difference: why.
    Known(Known),
    /// An engine differs.
    Differ(Box<Failure>),
}

/// Whether an instruction before the last has an operand in memory.
fn reads_memory(a: &Analysis) -> bool {
    let (_, before) = a.instructions.split_last().unzip();
    before.is_some_and(|before: &[Instruction]| {
        before.iter().any(|i| {
            (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
                || i.is_stack_instruction()
                || i.is_string_instruction()
        })
    })
}

/// Runs of a case in a translator: the first is the interpreter's, and has the region translated; behind branches there
/// are more blocks to find.
const RUNS: usize = 3;

/// What the translators did with cases so far.
#[derive(Clone, Copy, Default, Debug)]
pub struct Translated {
    /// Guest instructions in last runs.
    pub insns: u64,
    /// How many of them the interpreter ran.
    pub interpreted: u64,
    /// Cases whose sticky flags alone differ.
    pub sticky: u64,
    /// Regions that were refused.
    pub refused: u64,
}

/// The engines of one process.
pub struct Rig {
    native: Option<Native>,
    interp: Option<Guest>,
    translators: Vec<(&'static str, Sticky, Guest)>,
    fills: Fills,
    memory: Vec<u8>,
    /// Counts since they were last taken.
    pub translated: Translated,
}

impl Rig {
    /// Makes them.
    ///
    /// # Errors
    /// The host can't run one of them.
    pub fn new(e: Engines) -> Result<Self, Box<dyn Error>> {
        let mut translators = Vec::new();
        if e.jit_off {
            let g = Guest::new(Some(guest::options_off()))?;
            translators.push(("jit-off", Sticky::Exact, g));
        }
        if e.jit_on {
            let g = Guest::new(Some(guest::options_on()))?;
            translators.push(("jit-on", Sticky::Ignored, g));
        }
        if e.direct {
            let g = Guest::new(Some(guest::options_direct()))?;
            translators.push(("direct", Sticky::Exact, g));
        }
        Ok(Self {
            native: e.native.then(Native::new).transpose()?,
            interp: e.interp.then(|| Guest::new(None)).transpose()?,
            translators,
            fills: Fills::new(),
            memory: vec![0; MEMORY],
            translated: Translated::default(),
        })
    }

    /// Runs a case in the engines that compute at once, and with `translate` in the translators too.
    pub fn run(&mut self, case: &Case, translate: bool) -> Verdict {
        let a = Analysis::new(case);
        case.memory(&self.fills, &mut self.memory);
        let mut outcomes: Vec<(&'static str, Outcome)> = Vec::new();
        let alone = matches!(a.last, Policy::Guest(Expect::Alone, _));
        // What the guest alone runs is not there natively: the case ends before it.
        // An instruction that can't be fetched whole does not run, so it may stand.
        let native_case = a.guest_only().filter(|i| i.next_ip() <= CODE_END).map(|i| {
            let mut shorter = *case;
            let len = (i.ip() - case.at) as usize;
            shorter.set_code(&case.code()[..len]);
            shorter
        });
        if let Some(n) = self.native.as_mut().filter(|_| !alone) {
            let o = n.run(native_case.as_ref().unwrap_or(case), &self.memory);
            if matches!(o.end, End::Endless | End::Other(_)) {
                return Verdict::Endless;
            }
            outcomes.push(("native", o));
        }
        if let Some(g) = &mut self.interp {
            let o = g.run(case, &self.memory);
            if o.end == End::Endless && outcomes.is_empty() {
                return Verdict::Endless;
            }
            outcomes.push(("interp", o));
        }
        let reference = outcomes.first().map(|o| o.0);
        let fail = |engine, differences, outcomes: Vec<(&'static str, Outcome)>| {
            Verdict::Differ(Box::new(Failure {
                reference: outcomes[0].0,
                engine,
                differences,
                outcomes,
            }))
        };
        if outcomes.len() == 2 {
            let mut d = compare(&a, &outcomes[0].1, true, &outcomes[1].1, Sticky::Exact);
            if !d.is_empty()
                && amd()
                && let Some(n) = &mut self.native
            {
                // The x87 unit's pointers are lost when the kernel switches to another process and back. What differs from
                // one native run to the next is no fault of the guest's, which is not run again.
                outcomes[0].1 = n.run(native_case.as_ref().unwrap_or(case), &self.memory);
                d = compare(&a, &outcomes[0].1, true, &outcomes[1].1, Sticky::Exact);
            }
            if !d.is_empty() {
                let known = known::reason(&a, &outcomes[0].1, &outcomes[1].1, &d, Sticky::Exact)
                    .or_else(|| {
                        // The bytes that are not there natively may have been read as data: then the
                        // interpreter agrees on the code that ran natively.
                        let shorter = native_case.as_ref().filter(|_| reads_memory(&a))?;
                        let o = self.interp.as_mut()?.run(shorter, &self.memory);
                        let b = Analysis::new(shorter);
                        let d = compare(&b, &outcomes[0].1, true, &o, Sticky::Exact);
                        d.is_empty().then_some(Known::OwnCode)
                    });
                return match known {
                    Some(n) => Verdict::Known(n),
                    None => fail("interp", d, outcomes),
                };
            }
        }
        if translate {
            for (name, sticky, g) in &mut self.translators {
                for run in 0..RUNS {
                    let before = g.interpreted();
                    let o = g.run(case, &self.memory);
                    let after = g.interpreted();
                    self.translated.refused += after.1 - before.1;
                    if run == RUNS - 1 {
                        self.translated.insns += g.retired();
                        self.translated.interpreted += after.0 - before.0;
                    }
                    let Some(r) = outcomes.first() else {
                        outcomes.push((*name, o));
                        continue;
                    };
                    // Copies leave undefined what the host leaves undefined.
                    let native = reference == Some("native") || *name == "direct";
                    let d = compare(&a, &r.1, native, &o, *sticky);
                    if !d.is_empty() {
                        if let Some(n) = known::reason(&a, &r.1, &o, &d, *sticky) {
                            return Verdict::Known(n);
                        }
                        outcomes.push((*name, o));
                        return fail(name, d, outcomes);
                    }
                    if run == RUNS - 1
                        && *sticky == Sticky::Ignored
                        && (o.mxcsr ^ r.1.mxcsr) & 0x3f != 0
                    {
                        self.translated.sticky += 1;
                    }
                }
            }
        }
        Verdict::Agree(outcomes.first().map_or(0, |o| a.executed(&o.1)))
    }
}
