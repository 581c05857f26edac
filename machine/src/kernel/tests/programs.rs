//! Programs of the host system, unmodified.

use super::*;

#[test]
fn true_and_false() {
    assert_eq!(run(&["/bin/true"]).end, GuestEnd::Exited(0));
    assert_eq!(run(&["/bin/false"]).end, GuestEnd::Exited(1));
}

#[test]
fn echo() {
    let r = run(&["/bin/echo", "hello", "world"]);
    assert_eq!(
        (r.end, r.stdout.as_str()),
        (GuestEnd::Exited(0), "hello world\n")
    );
}

#[test]
fn cat_in_small_pieces() {
    let text: String = (0..60_000).map(|i| format!("line {i}\n")).collect();
    let file = scratch("cat", text.as_bytes());
    let r = run_with(&["/bin/cat", file.path()], &[], 64 << 20, 16 << 10);
    assert_eq!(r.end, GuestEnd::Exited(0));
    assert!(
        r.stdout == text,
        "{} bytes of {}",
        r.stdout.len(),
        text.len()
    );
}

#[test]
fn sort_numbers() {
    let text: String = (0..20_000u64)
        .map(|i| format!("{}\n", i * 7919 % 20_011))
        .collect();
    let file = scratch("sort", text.as_bytes());
    let r = run(&["/usr/bin/sort", "-n", file.path()]);
    assert_eq!(r.end, GuestEnd::Exited(0), "{:?}", r.kernel.unanswered());
    let numbers: Vec<u64> = r
        .stdout
        .lines()
        .map(|l| l.parse().expect("number"))
        .collect();
    assert_eq!(numbers.len(), 20_000);
    assert!(numbers.is_sorted());
}

#[test]
fn shell_with_signals() {
    let script = "trap 'echo caught; exit 3' TERM; x=0; while [ $x -lt 100 ]; do x=$((x+1)); done; \
                  echo $x; kill -TERM $$; echo not here";
    let r = run(&["/bin/bash", "-c", script]);
    assert_eq!(
        (r.end, r.stdout.as_str()),
        (GuestEnd::Exited(3), "100\ncaught\n")
    );
    assert!(r.kernel.stats().signals >= 1);
}

#[test]
fn shell_killed_by_its_own_signal() {
    let r = run(&["/bin/bash", "-c", "kill -KILL $$"]);
    assert_eq!(r.end, GuestEnd::Killed(9));
}

#[test]
fn scripts_name_their_interpreter() {
    let file = scratch("script", b"#!/bin/bash -e\necho \"$0 $1\"\n");
    let r = run(&[file.path(), "arg"]);
    assert_eq!(
        (r.end, r.stdout),
        (GuestEnd::Exited(0), format!("{} arg\n", file.path()))
    );
}

#[test]
fn the_process_knows_itself() {
    let r = run(&["/bin/readlink", "/proc/self/exe"]);
    let real = std::fs::canonicalize("/bin/readlink").expect("path");
    assert_eq!(r.stdout.trim_end(), real.to_string_lossy());
    let r = run(&["/bin/cat", "/proc/self/maps", "/proc/self/cmdline"]);
    assert!(r.stdout.contains("[stack]"), "{}", r.stdout);
    assert!(
        r.stdout.contains("/bin/cat\0/proc/self/maps\0"),
        "{}",
        r.stdout
    );
}

#[test]
fn memory_that_is_used_up_ends_the_guest() {
    let r = run_with(
        &[
            "/bin/bash",
            "-c",
            "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done",
        ],
        &[],
        48 << 20,
        64 << 10,
    );
    assert!(r.end != GuestEnd::Exited(0), "{:?}", r.end);
}

#[test]
fn reads_longer_than_the_bounce_area_are_whole() {
    let text: Vec<u8> = (0..250_000u32).map(|i| (i / 3) as u8).collect();
    let file = scratch("read", &text);
    for (from, length) in [("/dev/zero", 300_000), (file.path(), 250_000)] {
        let script = format!(
            "open F, '<', '{from}'; my $n = sysread F, my $x, 300000; print $n, ' ', unpack '%32C*', $x"
        );
        let args = ["/usr/bin/perl", "-e", &script];
        let r = run_with(&args, &[], 64 << 20, 16 << 10);
        let sum: u32 = match length {
            300_000 => 0,
            _ => text.iter().map(|b| u32::from(*b)).sum(),
        };
        assert_eq!(r.stdout, format!("{length} {sum}"), "{from}");
    }
}
