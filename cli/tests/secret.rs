//! The secret test: what a probe on the memory bus finds of a marker that a guest keeps in memory.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;

use common::{Mode, SEV, run, sevlab_run, workload};

/// The page that `workloads/src/bin/secret.rs` makes from a seed, written down a second time.
fn marker(seed: u64) -> Vec<u8> {
    let mut s = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut out = Vec::new();
    while out.len() < 4096 {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        out.extend(s.to_le_bytes());
    }
    out
}

/// The parts of a dump that are not holes, with their offsets.
fn dump(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut file = File::open(path).expect("the dump is there");
    let size = file.metadata().expect("metadata").len();
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(start) = seek(&file, at, libc::SEEK_DATA) else {
            break;
        };
        let end = seek(&file, start, libc::SEEK_HOLE).unwrap_or(size);
        let mut data = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start)).expect("seek");
        file.read_exact(&mut data).expect("read");
        parts.push((start, data));
        at = end;
    }
    parts
}

/// lseek(2) for holes; `None` if there is nothing more.
#[allow(unsafe_code)] // the standard library has no SEEK_DATA
fn seek(file: &File, at: u64, whence: i32) -> Option<u64> {
    // SAFETY: an open descriptor; no memory is involved.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as i64, whence) };
    u64::try_from(found).ok()
}

/// Offsets of `wanted` in a dump, at whatever alignment.
fn find(dump: &[(u64, Vec<u8>)], wanted: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for (start, data) in dump {
        let mut at = 0;
        while let Some(hit) = position(&data[at..], wanted) {
            found.push(start + (at + hit) as u64);
            at += hit + 1;
        }
    }
    found
}

fn position(data: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted[0];
    let mut at = 0;
    while let Some(hit) = data[at..].iter().position(|b| *b == first) {
        at += hit;
        if data[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Runs `secret` and returns DRAM as it was at the end.
fn secret(mode: Mode, options: &[&str], args: &[&str]) -> Vec<(u64, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("dram");
    let mut command = sevlab_run(
        mode,
        &[
            &[
                "--memory",
                "64M",
                "--dump-dram",
                file.to_str().expect("UTF-8"),
            ],
            options,
        ]
        .concat(),
    );
    let out = run(command.arg(workload("secret")).args(args));
    assert_eq!(out.code(), 0, "{mode}: {}", out.stderr_text());
    if args.contains(&"--share") {
        assert!(
            out.stdout_text().contains("share: ok"),
            "{mode}: {}",
            out.stdout_text()
        );
    }
    dump(&file)
}

fn modes(sev: &'static str) -> Vec<Mode> {
    vec![
        Mode::new(sev, true, "page"),
        Mode::new(sev, false, "page"),
        Mode::new(sev, true, "none"),
    ]
}

/// Pieces of the marker: all of it, and any 16 bytes could give it away.
fn traces(dump: &[(u64, Vec<u8>)], seed: u64) -> usize {
    let marker = marker(seed);
    (0..4096)
        .step_by(256)
        .map(|at| find(dump, &marker[at..at + 16]).len())
        .sum()
}

#[test]
fn plain_memory_shows_it() {
    for mode in modes("off") {
        let dram = secret(mode, &[], &["17"]);
        let found = find(&dram, &marker(17));
        assert!(
            found.len() >= 2,
            "{mode}: both pages are readable, found {found:x?}"
        );
        assert!(
            found.iter().filter(|at| *at % 4096 == 0).count() >= 2,
            "{mode}: {found:x?}"
        );
    }
}

#[test]
fn encrypted_memory_hides_it() {
    for sev in &SEV[1..] {
        for mode in modes(sev) {
            let dram = secret(mode, &[], &["17"]);
            assert!(
                dram.iter().map(|(_, d)| d.len()).sum::<usize>() > 1 << 20,
                "{mode}: the dump is not empty"
            );
            assert_eq!(traces(&dram, 17), 0, "{mode}");
        }
    }
}

#[test]
fn every_cipher_hides_it() {
    for cipher in ["aes128-xe", "aes128-xex", "aes256-xts"] {
        for cache in ["page", "none"] {
            let mode = Mode::new("snp", true, cache);
            assert_eq!(
                traces(&secret(mode, &["--cipher", cipher], &["17"]), 17),
                0,
                "{mode} {cipher}"
            );
        }
    }
}

#[test]
fn little_residency_hides_it_too() {
    let mode = Mode::new("snp", true, "page");
    assert_eq!(traces(&secret(mode, &["--resident", "64"], &["17"]), 17), 0);
}

#[test]
fn a_page_shared_on_purpose_is_readable() {
    for sev in SEV {
        for mode in modes(sev) {
            let dram = secret(mode, &[], &["17", "--share"]);
            assert!(
                !find(&dram, &marker(18)).is_empty(),
                "{mode}: the shared marker is not readable"
            );
            if sev != "off" {
                assert_eq!(traces(&dram, 17), 0, "{mode}: the private one is");
            }
        }
    }
}

/// Where the two private pages lie: their plaintext places, from a run without encryption. The memory map is the same
/// in all modes without an RMP.
fn places() -> Vec<u64> {
    let dram = secret(Mode::new("off", true, "page"), &["--seed", "1"], &["17"]);
    find(&dram, &marker(17))
        .into_iter()
        .filter(|at| at % 4096 == 0)
        .collect()
}

fn page(dump: &[(u64, Vec<u8>)], at: u64) -> &[u8] {
    let part = dump
        .iter()
        .find(|(start, data)| (*start..*start + data.len() as u64).contains(&at));
    let (start, data) = part.expect("the page is not a hole");
    &data[(at - start) as usize..][..4096]
}

/// 16-byte blocks that are the same at the same offset of both pages.
fn same_blocks(a: &[u8], b: &[u8]) -> usize {
    a.chunks(16)
        .zip(b.chunks(16))
        .filter(|(a, b)| a == b)
        .count()
}

#[test]
fn guests_and_addresses_have_ciphertext_of_their_own() {
    let places = places();
    let [first, second, ..] = places[..] else {
        panic!("two pages, found {places:x?}")
    };
    let run = |sev, options: &[&str]| secret(Mode::new(sev, true, "page"), options, &["17"]);
    // An SEV guest has another ASID than an SEV-ES guest. A seed stands for all that is drawn at random.
    let guests = [
        ("sev", run("sev", &[])),
        ("es", run("es", &[])),
        ("sev, seed 1", run("sev", &["--seed", "1"])),
        ("sev, seed 2", run("sev", &["--seed", "2"])),
    ];
    for (i, (one, dram)) in guests.iter().enumerate() {
        assert_eq!(
            same_blocks(page(dram, first), &marker(17)),
            0,
            "{one}: plaintext"
        );
        assert_eq!(
            same_blocks(page(dram, first), page(dram, second)),
            0,
            "{one}: one content at two addresses"
        );
        for (other, another) in &guests[..i] {
            let same = same_blocks(page(dram, first), page(another, first));
            assert_eq!(same, 0, "{one} and {other}: one content in two guests");
        }
    }
    let again = run("sev", &["--seed", "1"]);
    assert!(
        page(&guests[2].1, first) == page(&again, first),
        "the same seed gives the same ciphertext"
    );
}
