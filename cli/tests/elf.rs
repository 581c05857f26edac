//! Damaged program files: a clear error or a program that runs somehow; never a panic, never a hang.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Mode, Outcome, Random, compile_c, installed, run_for, sevlab_run};

const PROGRAM: &str = "#include <stdio.h>\nint main(void) { puts(\"fine\"); return 0; }\n";
/// For one damaged file.
const LIMIT: Duration = Duration::from_secs(10);

/// The header and the program headers: where damage matters.
fn headers(bytes: &[u8]) -> usize {
    64 + 56 * usize::from(u16::from_le_bytes([bytes[56], bytes[57]]))
}

/// Files damaged in one way or another, with a word on how.
fn damaged(original: &[u8], count: usize, seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut random = Random(seed);
    let headers = headers(original) as u64;
    // Values that arithmetic goes wrong with.
    let nasty = [
        0,
        1,
        0x7f,
        0xff,
        0xfff,
        0x1000,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 47,
        1 << 63,
        u64::MAX - 0xfff,
        u64::MAX,
    ];
    (0..count)
        .map(|i| {
            let mut bytes = original.to_vec();
            let what = match i % 5 {
                0 => {
                    let keep = if i % 10 == 0 {
                        random.below(headers + 64)
                    } else {
                        random.below(bytes.len() as u64)
                    };
                    bytes.truncate(keep as usize);
                    format!("truncated to {keep} bytes")
                }
                1 | 2 => {
                    let at = random.below(headers) as usize;
                    let bit = random.below(8);
                    bytes[at] ^= 1 << bit;
                    format!("bit {bit} of byte {at:#x} flipped")
                }
                3 => {
                    let at = random.below(headers / 8) as usize * 8;
                    let value = nasty[random.below(nasty.len() as u64) as usize];
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                    format!("quadword {at:#x} set to {value:#x}")
                }
                _ => {
                    let n = 1 + random.below(16) as usize;
                    let at = random.below(headers - 16) as usize;
                    bytes[at..at + n].copy_from_slice(&random.bytes(n));
                    format!("{n} bytes at {at:#x} overwritten")
                }
            };
            (format!("damage {i}: {what}"), bytes)
        })
        .collect()
}

fn write_program(file: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(file);
    fs::write(file, bytes).expect("a file");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("its mode");
}

fn sevlab(mode: Mode, file: &Path, folder: &Path) -> Outcome {
    run_for(
        sevlab_run(mode, &["--memory", "64M"])
            .arg(file)
            .current_dir(folder),
        b"",
        LIMIT,
    )
}

/// Whether a program also takes forever natively: then it is no hang of ours.
fn hangs_natively(file: &Path, folder: &Path) -> bool {
    let mut command = Command::new(file);
    command.current_dir(folder);
    // A file that the host's kernel refuses does not hang.
    command.output().is_ok() && run_for(&mut command, b"", LIMIT).timed_out
}

fn check(name: &str, flags: &[&str], count: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let work = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compile_c(PROGRAM, folder.path(), name, flags) else {
        return;
    };
    let original = fs::read(&program).expect("the program");
    let modes = [
        Mode::new("off", false, "page"),
        Mode::new("snp", true, "page"),
    ];
    for mode in modes {
        let out = sevlab(mode, &program, work.path());
        assert_eq!(
            (out.code(), out.stdout_text().as_str()),
            (0, "fine\n"),
            "{mode}: {}",
            out.stderr_text()
        );
    }
    let mut refused = 0;
    let mut wrong = Vec::new();
    for (i, (what, bytes)) in damaged(&original, count, 0x5e5 + count as u64)
        .into_iter()
        .enumerate()
    {
        let file = work.path().join("damaged");
        write_program(&file, &bytes);
        let out = sevlab(modes[i % modes.len()], &file, work.path());
        let told = out.stderr_text().starts_with("sevlab: ");
        if out.timed_out && !hangs_natively(&file, work.path()) {
            wrong.push(format!("{what}: hangs"));
        } else if !out.timed_out && (out.is_broken() || out.code() == 101) {
            wrong.push(format!(
                "{what}: status {}, {}",
                out.code(),
                out.stderr_text()
            ));
        } else if out.code() == 126 || out.code() == 125 {
            if !told {
                wrong.push(format!(
                    "{what}: status {} without a message: {}",
                    out.code(),
                    out.stderr_text()
                ));
            }
            refused += 1;
        }
    }
    assert!(wrong.is_empty(), "{name}\n{}", wrong.join("\n"));
    assert!(
        refused > count / 4,
        "{name}: only {refused} of {count} were refused"
    );
}

#[test]
fn a_static_program_damaged() {
    check("static", &["-O1", "-static", "-no-pie"], 200);
}

#[test]
fn a_dynamic_program_damaged() {
    check("dynamic", &["-O1"], 200);
}

#[test]
fn what_is_no_program_at_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    let mode = Mode::new("snp", true, "page");
    let mut elf32 = b"\x7fELF\x01\x01\x01".to_vec();
    elf32.resize(200, 0);
    for (bytes, says) in [
        (&b""[..], "too short"),
        (b"\x7fELF", "too short"),
        (&[0u8; 4096], "magic"),
        (&elf32, "64-bit"),
        (b"#!/no/such/interpreter\n", "/no/such/interpreter"),
        (b"#!\n", "interpreter"),
    ] {
        write_program(&file, bytes);
        let out = sevlab(mode, &file, folder.path());
        let text = out.stderr_text();
        assert_eq!(out.code(), 126, "{says}: {text}");
        assert!(
            text.starts_with("sevlab: ") && text.contains(says),
            "{says}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    if installed("dash").is_some() {
        let mut script = fs::File::create(&file).expect("a file");
        script
            .write_all(b"#!/bin/sh -e\necho \"$# $1\"; exit 4\n")
            .expect("written");
        drop(script);
        let out = run_for(
            sevlab_run(mode, &[]).arg(&file).args(["a b", "c"]),
            b"",
            LIMIT,
        );
        assert_eq!(
            (out.code(), out.stdout_text().as_str()),
            (4, "2 a b\n"),
            "{}",
            out.stderr_text()
        );
    }
}
