//! Threads, processes, signals and code that changes: the guest programs `procs`, `signals`, `stress` and `smc`, section by
//! section, give under sevlab what they give natively.
//!
//! A section is one line of output that is the same in every native run. Each runs in a process of its own, so that a
//! failure names all sections that fail, not only the first.

mod common;

use std::process::Command;
use std::time::Duration;

use common::compare::Case;
use common::{Mode, all_modes, compile_c, run_for, sevlab_run, workload};

const TRANSLATED: [Mode; 2] = [
    Mode::new("off", true, "page"),
    Mode::new("snp", true, "page"),
];

const INTERPRETED: [Mode; 2] = [
    Mode::new("off", false, "page"),
    Mode::new("snp", false, "page"),
];

/// A section that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// The sections of a guest program, as its help lists them.
fn sections(program: &str) -> Vec<String> {
    let out = run_for(
        Command::new(workload(program)).arg("--help"),
        b"",
        Duration::from_secs(20),
    );
    let text = out.stdout_text();
    let list = text.split_once("sections:").expect("it lists them").1;
    list.lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Runs sections (all without names) natively and in each mode; panics with all that differ.
fn check(program: &str, only: &[&str], args: &[&str], modes: &[Mode]) {
    let file = workload(program);
    let all = sections(program);
    assert!(all.len() > 10, "{program} --help: {all:?}");
    for name in only {
        assert!(
            all.iter().any(|s| s == name),
            "{program} has no section {name}"
        );
    }
    let mut wrong = Vec::new();
    for section in all {
        if !only.is_empty() && !only.contains(&section.as_str()) {
            continue;
        }
        let arguments = [&["--only", &section], args].concat();
        let native = run_for(Command::new(&file).args(&arguments), b"", LIMIT);
        assert!(
            native.code() == 0 && !native.timed_out,
            "{program} {section} fails natively: {}",
            native.stderr_text()
        );
        for mode in modes {
            let mut command = sevlab_run(*mode, &[]);
            let guest = run_for(command.arg(&file).args(&arguments), b"", LIMIT);
            if guest.timed_out || guest.code() != 0 || guest.stdout != native.stdout {
                wrong.push(format!(
                    "{section} under {mode}: status {}{}\n  expected {}  got      {}\n  stderr   {}",
                    guest.code(),
                    if guest.timed_out { ", timed out" } else { "" },
                    native.stdout_text(),
                    guest.stdout_text(),
                    guest.stderr_text()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{program}: {} differences\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn processes() {
    check("procs", &[], &["--count", "200"], &TRANSLATED);
}

#[test]
fn processes_interpreted() {
    let some = [
        "exits",
        "killed",
        "waitid",
        "vfork",
        "pipes",
        "exec",
        "cow",
        "shared",
        "threads",
        "threadexec",
    ];
    check("procs", &some, &["--count", "60"], &INTERPRETED);
}

#[test]
fn signals() {
    check("signals", &[], &["--count", "300"], &TRANSLATED);
}

#[test]
fn signals_interpreted() {
    check("signals", &[], &["--count", "50"], &INTERPRETED);
}

#[test]
fn threads_under_stress() {
    check("stress", &[], &["--seconds", "10"], &TRANSLATED);
}

#[test]
fn threads_under_stress_interpreted() {
    check(
        "stress",
        &[],
        &["--seconds", "4", "--threads", "4"],
        &INTERPRETED,
    );
}

#[test]
fn code_that_changes() {
    check("smc", &[], &["--count", "40000"], &TRANSLATED);
}

#[test]
fn code_that_changes_interpreted() {
    check("smc", &[], &["--count", "10000"], &INTERPRETED[..1]);
}

/// Every block is translated at once, so that each change meets a translation.
#[test]
fn code_that_changes_translated_at_once() {
    let file = workload("smc");
    let single = [
        "immediate",
        "next",
        "opcode",
        "behind",
        "outside",
        "straddle",
        "flip",
        "return",
        "jit",
    ];
    let args = ["--count", "4000", "--only", &single.join(",")];
    let native = run_for(Command::new(&file).args(args), b"", LIMIT);
    for options in [
        &["--jit-opt", "threshold=1", "--jit-opt", "background=off"][..],
        &["--jit-opt", "threshold=1"],
        &["--jit-opt", "all=off"],
    ] {
        let mut command = sevlab_run(TRANSLATED[1], options);
        let guest = run_for(command.arg(&file).args(args), b"", LIMIT);
        assert_eq!(
            guest.stdout_text(),
            native.stdout_text(),
            "smc with {options:?}: status {}: {}",
            guest.code(),
            guest.stderr_text()
        );
    }
}

/// ThreadSanitizer finds no race where there is none, and ends with the program's status. Its shadow wants fixed places
/// of a 47-bit address space; where address randomisation is on, the program executes itself anew without it.
#[test]
fn thread_sanitizer() {
    let source = include_str!("../../scripts/programs.d/tsan/program.c");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["-O1", "-g", "-fsanitize=thread", "-pthread"];
    let Some(program) = compile_c(source, folder.path(), "race-free", &flags) else {
        return;
    };
    // What it can do natively depends on the host's kernel: a random layout may be one it does not know.
    let native = run_for(Command::new("setarch").arg("-R").arg(&program), b"", LIMIT);
    if native.code() != 0 {
        eprintln!(
            "SKIPPED: ThreadSanitizer does not run here: {}",
            native.stderr_text()
        );
        return;
    }
    Case::new(
        "/usr/bin/setarch",
        &["-R", program.to_str().expect("in UTF-8")],
    )
    .check(&TRANSLATED);
}

/// What pthreads programs do, linked statically and dynamically.
const THREADS: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static __thread int own = 3;
static atomic_int sum;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t key;
static void gone(void *p) { sum += *(int *)p; }
static void *work(void *p) {
    int me = *(int *)p;
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        own += me;
        pthread_mutex_unlock(&mutex);
    }
    pthread_setspecific(key, p);
    return (void *)(long)own;
}
int main(void) {
    pthread_t t[4];
    int n[4];
    long all = 0;
    pthread_key_create(&key, gone);
    for (int i = 0; i < 4; i++) n[i] = i, pthread_create(&t[i], 0, work, &n[i]);
    for (int i = 0; i < 4; i++) {
        void *r;
        pthread_join(t[i], &r);
        all += (long)r;
    }
    int status;
    pid_t pid = fork();
    if (!pid) _exit(own + 4);
    waitpid(pid, &status, 0);
    printf("%ld %d %d %d\n", all, own, sum, WEXITSTATUS(status));
    return 5;
}
"#;

#[test]
fn static_and_dynamic_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, flags) in [
        ("dynamic", &["-O1", "-pthread"][..]),
        ("static", &["-O1", "-pthread", "-static", "-no-pie"]),
        ("static-pie", &["-O1", "-pthread", "-static-pie"]),
    ] {
        if let Some(program) = compile_c(THREADS, folder.path(), name, flags) {
            Case::new(program, &[]).check(&TRANSLATED);
        }
    }
}

/// What a vfork child does to memory is done to its parent's: the break, mappings, rights and content.
#[test]
fn vfork_shares_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = include_str!("vfork.c");
    if let Some(program) = compile_c(source, folder.path(), "vfork", &["-O1"]) {
        for args in [&[][..], &["exec"]] {
            Case::new(&program, args)
                .file("input", vec![b'x'; 9000])
                .check(&all_modes());
        }
    }
}

/// The commonest uses of children, each a line of shell.
#[test]
fn shell_lines() {
    for line in [
        "echo a | cat | tr a b",
        "x=$(echo $(echo inner)); echo \"[$x]\"; exit 3",
        "for i in 1 2 3 4 5; do /bin/echo $i; done | sort -r",
        "sleep 0.05 & wait $!; echo $?; (exit 7) & wait $!; echo $?",
        "trap 'echo caught' USR1; kill -USR1 $$; echo after",
        "seq 1 3000 | awk '{ s += $1 } END { print s }'",
        "yes | head -n 2",
        "kill -TERM $$",
    ] {
        for shell in ["bash", "dash"] {
            if let Some(path) = common::installed(shell) {
                Case::new(path, &["-c", line]).check(&TRANSLATED);
            }
        }
    }
}

/// A program that ends while its interval timer runs ends as it says, and not by the timer's signal.
#[test]
fn an_armed_timer_does_not_outlive_the_guest() {
    const SOURCE: &str = "#include <signal.h>\n#include <stdlib.h>\n#include <sys/time.h>\n
        static volatile int n;
        static void caught(int s) { if (++n == 20) exit(3); }
        int main(void) {
            struct itimerval t = {{0, 500}, {0, 500}};
            signal(SIGALRM, caught);
            setitimer(ITIMER_REAL, &t, 0);
            for (;;) ;
        }";
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Some(program) = compile_c(SOURCE, folder.path(), "timer", &["-O0"]) {
        for _ in 0..4 {
            Case::new(program.clone(), &[]).check(&TRANSLATED);
        }
    }
}
