//! Faults end or reach a guest as they do natively: the same signal, the same code, the same address.

mod common;

use common::{Mode, Outcome, run, sevlab_run, workload};

const KINDS: [&str; 15] = [
    "null",
    "nowhere",
    "jump",
    "noncanonical",
    "readonly",
    "noexec",
    "divide",
    "divide-overflow",
    "undefined",
    "trap",
    "privileged",
    "misaligned",
    "abort",
    "stack",
    "raise",
];

const MODES: [Mode; 6] = [
    Mode::new("off", true, "page"),
    Mode::new("off", false, "page"),
    Mode::new("sev", true, "page"),
    Mode::new("snp", true, "page"),
    Mode::new("snp", false, "page"),
    Mode::new("snp", true, "none"),
];

fn check(arguments: &[&str]) {
    let program = workload("faults");
    let mut native = std::process::Command::new(&program);
    let native = run(native.args(arguments));
    let mut wrong = Vec::new();
    for mode in MODES {
        // The compiler sees every block at once, or the fault would be the interpreter's.
        for options in [
            &[][..],
            &["--jit-opt", "threshold=1", "--jit-opt", "background=off"],
        ] {
            if !mode.jit && !options.is_empty() {
                continue;
            }
            let guest = run(sevlab_run(mode, options).arg(&program).args(arguments));
            if what(&guest) != what(&native) || guest.is_broken() {
                let [n, g] = [&native, &guest].map(what);
                wrong.push(format!(
                    "{mode} {options:?}: {g:?} instead of {n:?}: {}",
                    guest.stderr_text()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "faults {}\n{}",
        arguments.join(" "),
        wrong.join("\n")
    );
}

fn what(outcome: &Outcome) -> (i32, String) {
    (outcome.code(), outcome.stdout_text())
}

#[test]
fn they_kill_as_natively() {
    for kind in KINDS {
        check(&[kind]);
    }
    // Where exactly recursion meets the end of the stack is a matter of chance.
    check(&["recursion"]);
}

#[test]
fn handlers_learn_the_same() {
    for kind in KINDS {
        check(&[kind, "--handle"]);
    }
}
