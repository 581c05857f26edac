//! Writes inputs to begin with into a directory: `seeds TARGET DIRECTORY`. It is linked as a fuzz target, because the
//! coverage hooks of the project's crates are in libFuzzer, and leaves before the fuzzer starts.
#![no_main]

#[path = "../../jit/tests/diff/forms.rs"]
mod forms;
#[path = "../../jit/tests/diff/machine.rs"]
mod machine;
#[path = "../../jit/tests/diff/program.rs"]
mod program;
#[path = "../../ghcb/tests/protocol/common.rs"]
#[allow(dead_code)] // its generator and agreements are the tests'
mod protocol;

use std::path::Path;

use sevlab_fuzz::{session, spell};
use sevlab_ghcb::{Ghcb, psc};
use sevlab_machine::kernel::syscall::table::ROWS;
use sevlab_machine::presets::PRESETS;
use zerocopy::{FromZeros, IntoBytes};

libfuzzer_sys::fuzz_target!(
    init: {
        write();
        if true {
            std::process::exit(0);
        }
    },
    |_data: &[u8]| {}
);

fn write() {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(directory)) = (args.next(), args.next()) else {
        panic!("usage: seeds TARGET DIRECTORY");
    };
    let seeds = match &target[..] {
        "elf" => elf(),
        "region" => region(),
        "ghcb" => ghcb(),
        "psp" => psp(),
        "syscall" => syscall(),
        "toml" => toml(),
        other => panic!("no target {other}"),
    };
    for (n, seed) in seeds.iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{n:04}"));
        std::fs::write(&path, seed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// The presets, whole and as bases of small files, and settings of each kind.
fn toml() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for preset in PRESETS {
        seeds.push(format!("\n\n{}", preset.text).into_bytes());
        let small =
            "[l1d]\nsize = \"48KiB\"\nways = 12\n[latency]\naes_ns = 12.5\n[tlb.l2]\nways = 4\n";
        let sets = "llc.size=1MiB\nllc.policy=tree-plru\nl2=none\ntlb=none\nprefetch={next_line=true, degree=3}";
        seeds.push(format!("{sets}\n\nbase = \"{}\"\n{small}", preset.name).into_bytes());
    }
    seeds
}

/// A program header.
fn header(kind: u32, flags: u32, [offset, vaddr, filesz, memsz, align]: [u64; 5]) -> Vec<u8> {
    let mut out = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for v in [offset, vaddr, vaddr, filesz, memsz, align] {
        out.extend(v.to_le_bytes());
    }
    out
}

/// A small program file.
fn file(kind: u16, entry: u64, headers: &[Vec<u8>], tail: &[u8]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([kind, 62].map(u16::to_le_bytes).concat());
    out.extend(1u32.to_le_bytes());
    out.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    out.extend(0u32.to_le_bytes());
    out.extend(
        [64, 56, headers.len() as u16, 0, 0, 0]
            .map(u16::to_le_bytes)
            .concat(),
    );
    out.extend(headers.concat());
    out.extend(tail);
    out
}

fn elf() -> Vec<Vec<u8>> {
    let code = [0x48, 0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let one = |at: u64, flags| header(1, flags, [0, at, 0x200, 0x2000, 0x1000]);
    let path = b"/proc/self/fd/901\0";
    let named = |at: u64, n: u64| header(3, 4, [at, at, n, n, 1]);
    let plain = file(
        2,
        0x40_0078,
        &[one(0x40_0000, 5)],
        &[&code[..], &[0; 0x200]].concat(),
    );
    let moved = file(3, 0x78, &[one(0, 7)], &[&code[..], &[0x90; 0x200]].concat());
    let two = file(
        3,
        0x1150,
        &[
            header(1, 4, [0, 0, 0x150, 0x150, 0x1000]),
            header(1, 5, [0x150, 0x1150, 0x90, 0x3000, 0x20_0000]),
            header(0x6474_e551, 7, [0; 5]),
            header(6, 4, [64, 64, 56, 56, 8]),
        ],
        &[0xcc; 0x180],
    );
    let with = file(
        3,
        0x100,
        &[one(0, 5), named(64 + 112, 18)],
        &[&path[..], &[0; 0x200]].concat(),
    );
    let script = b"#!/proc/self/fd/901 -x\n".to_vec();
    let pair = |a: &[u8], b: &[u8]| [&(a.len() as u16).to_le_bytes()[..], a, b].concat();
    vec![
        pair(&plain, b""),
        pair(&moved, b""),
        pair(&two, b""),
        pair(&with, &moved),
        pair(&with, &two),
        pair(&with, &plain),
        pair(&script, &plain),
        pair(&script, &with),
    ]
}

fn region() -> Vec<Vec<u8>> {
    let forms = forms::Forms::new();
    (0..300u64)
        .map(|seed| {
            let program = program::Generator::new(&forms, seed).program();
            let kind = [0, 0, 0xf0, 0xf8][seed as usize & 3];
            [&[kind, seed as u8][..], &program.assemble()].concat()
        })
        .filter(|seed| seed.len() < 2048)
        .collect()
}

fn ghcb() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (n, request) in protocol::requests().iter().enumerate() {
        for version in [1, 2] {
            let mut page = Ghcb::new_zeroed();
            request.fill(&mut page, &session(version));
            let entries: Vec<_> = [0x20_0000u64, 0x20_1000]
                .map(|at| psc::PscEntry {
                    gpa: sevlab_arch::Gpa(at),
                    operation: psc::PscOperation::Shared,
                    large: n & 1 != 0 && at == 0x20_0000,
                    done: 0,
                })
                .into();
            let list = psc::PscList::new(&entries).expect("two entries");
            list.write(page.shared_buffer_mut()).expect("room");
            seeds.push([&[version as u8 * 2 - 1, 3][..], page.as_bytes()].concat());
        }
        // The same in the sparse form, with fields of no particular value.
        let code = sevlab_arch::exit::ExitCode::ALL
            .iter()
            .position(|c| *c == request.exit_code());
        if let Some(code) = code {
            seeds.push(
                [
                    &[3, 2, code as u8, 1, 0, 0xff][..],
                    &[1; 8],
                    &[2, 4],
                    &[0; 32],
                ]
                .concat(),
            );
        }
    }
    for value in [
        0x2u64,
        0x4,
        0x10,
        0x12,
        0x14,
        0x1_0000_0020_0014,
        0x16,
        0x80,
        0x100,
        0x4000_0000_0000_0004,
    ] {
        seeds.push([&[3, 0][..], &spell(value), &[0; 8]].concat());
    }
    seeds.push(
        [
            1, 1, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0x10, 0, 0, 0x10, 0x20, 0, 0, 0x20,
            0, 1, 0,
        ]
        .to_vec(),
    );
    seeds
}

fn psp() -> Vec<Vec<u8>> {
    let drive = |step: u8, rest: &[u8]| [&[step << 3 | 5, 0, 0][..], rest].concat();
    let sev: Vec<u8> = [
        drive(0, &[]),
        drive(1, &[4]),
        drive(2, &[1]),
        drive(3, &[4]),
        drive(4, &[]),
        drive(5, &[]),
        drive(6, &[]),
        drive(10, &[]),
        drive(7, &[]),
        drive(8, &[]),
        drive(9, &[]),
        drive(11, &[]),
    ]
    .concat();
    let snp: Vec<u8> = [
        drive(12, &[]),
        drive(13, &[]),
        drive(14, &[0]),
        drive(15, &[1]),
        drive(16, &[1, 1]),
        drive(17, &[]),
        drive(18, &[]),
        drive(19, &[]),
        drive(21, &[]),
        drive(22, &[]),
    ]
    .concat();
    let mut seeds = vec![
        [&[0][..], &sev].concat(),
        [&[1][..], &snp].concat(),
        [&[3][..], &snp, &sev].concat(),
    ];
    for n in 0..sevlab_arch::psp::Command::ALL.len() as u8 {
        let raw = [0, n, 8, 1, 0x45, 0x40, 0x46, 0, 0x41, 2, 0x42, 0];
        seeds.push([&[0][..], &sev[..15], &raw].concat());
        seeds.push([&[1][..], &snp[..15], &raw].concat());
    }
    seeds
}

fn syscall() -> Vec<Vec<u8>> {
    let rows = ROWS.iter().filter(|r| r.host_may_run());
    rows.map(|row| {
        let mut seed = (row.nr as i16).to_le_bytes().to_vec();
        // Small numbers are descriptors, lengths and offsets alike.
        for n in [3u64, 16, 64, 8, 0, 32] {
            seed.extend(spell(n));
        }
        seed.extend([b'/', b'a', 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        seed
    })
    .collect()
}
