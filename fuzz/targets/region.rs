//! Bytes as guest code: decoded, run by the interpreter, formed into regions, translated with every optimisation on and
//! with none, and run again. Each way must end in the same stop with the same registers and memory, and no region may be
//! refused. This is `jit/tests/diff.rs` with the fuzzer's bytes instead of generated programs.
//!
//! Input: a byte (kind of memory), a byte (registers), then code.
#![no_main]

#[path = "../../jit/tests/diff/compare.rs"]
mod compare;
#[path = "../../jit/tests/diff/forms.rs"]
mod forms;
#[path = "../../jit/tests/diff/machine.rs"]
mod machine;
#[path = "../../jit/tests/diff/program.rs"]
mod program;

use std::sync::Mutex;

use compare::{Rig, Verdict, report};
use libfuzzer_sys::fuzz_target;
use machine::{CODE_PAGES, Kind, PAGE, Start};
use sevlab_fuzz::Input;

/// Inputs that run in the same machines.
const PROGRAMS: u32 = 200;

static RIGS: Mutex<[Option<(Rig, u32)>; 3]> = Mutex::new([None, None, None]);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let number = match input.u8() {
        0xf0..=0xf7 => 1,
        0xf8..=0xff => 2,
        _ => 0,
    };
    let kind = [Kind::Plain, Kind::Private, Kind::Uncached][number];
    let seed = u64::from(input.u8());
    let code = input.bytes((CODE_PAGES * PAGE) as usize);
    let start = Start::new(seed, code);
    let mut rigs = RIGS.lock().expect("one thread");
    let slot = &mut rigs[number];
    if slot.as_ref().is_some_and(|(_, n)| *n >= PROGRAMS) {
        *slot = None;
    }
    let (rig, n) = slot.get_or_insert_with(|| (Rig::new(kind, seed), 0));
    *n += 1;
    let verdict = rig.check(&start);
    if let Verdict::Differ(first) = verdict {
        if let Verdict::Differ(alone) = Rig::new(kind, seed).check(&start) {
            panic!("{}", report(&start, kind, &alone));
        }
        panic!(
            "only after what ran before:\n{}",
            report(&start, kind, &first)
        );
    }
    assert_eq!(rig.refused(), 0, "a region was refused");
});
