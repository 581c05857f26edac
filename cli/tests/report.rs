//! The report: its form, and its measurement against one computed here from what lies in the launched guest's memory.

mod common;

use std::path::Path;
use std::process::Command;

use common::{SEV, installed, run, sevlab};
use serde_json::Value;
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_machine::{CacheMode, Machine, MachineConfig, SevMode};
use sevlab_memctl::CipherKind;
use sha2::{Digest, Sha256, Sha384};

const MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// The only thing in the guest's environment, so that both sides start the same guest.
const VARIABLE: (&str, &str) = ("SEVLAB_TEST", "measured");

fn report(command: &mut Command, file: &Path) -> Value {
    let out = run(command);
    assert_eq!(out.code(), 0, "{}", out.stderr_text());
    let text = std::fs::read_to_string(file).expect("the report is there");
    serde_json::from_str(&text).expect("the report is JSON")
}

/// A run of `true`, which is repeatable: seeded, with a known environment.
fn run_true(sev: &str, seed: &str, program: &Path) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report.json");
    let mut command = sevlab();
    command
        .args([
            "run", "--sev", sev, "--seed", seed, "--memory", "32M", "--report",
        ])
        .arg(&file);
    command
        .arg("--")
        .arg(program)
        .env_clear()
        .env(VARIABLE.0, VARIABLE.1);
    report(&mut command, &file)
}

/// The same guest, launched here and not run.
fn launch(sev: SevMode, seed: u64, program: &Path) -> Machine {
    let config = MachineConfig {
        sev,
        memory: MEMORY,
        seed: Some(seed),
        envp: vec![format!("{}={}", VARIABLE.0, VARIABLE.1).into()],
        ..MachineConfig::new(program)
    };
    assert_eq!(
        (config.cipher, config.cache),
        (CipherKind::Aes128Xex, CacheMode::Page),
        "the command's defaults"
    );
    Machine::new(config).expect("the guest can be launched")
}

/// A page as the secure processor sees it: DRAM through the guest's key, which is the only one there is.
fn decrypted(machine: &Machine, at: Spa) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let has_key = |asid| {
        machine
            .mem()
            .decrypt_for_firmware(Asid(asid), at, &mut page)
            .is_ok()
    };
    assert!((1..=509).any(has_key), "no key is installed");
    page
}

/// Guest addresses of the pages that were launched, in order: those that are not zero in DRAM, since ciphertext of
/// anything is not.
fn launched(machine: &Machine) -> Vec<Gpa> {
    let range = machine.layout().private();
    (range.start.0..range.end.0)
        .step_by(PAGE as usize)
        .map(Gpa)
        .filter(|gpa| {
            let mut page = [0; PAGE as usize];
            machine.mem().bus_read(spa(machine, *gpa), &mut page);
            page.iter().any(|b| *b != 0)
        })
        .collect()
}

fn spa(machine: &Machine, gpa: Gpa) -> Spa {
    machine.spa(gpa).expect("guest memory")
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// One link of an SNP launch digest: SHA-384 of a PAGE_INFO (SNP ABI, "Launch digest"), without permissions for the
/// lower VMPLs.
fn extend(digest: &mut [u8; 48], page_type: u8, gpa: u64, contents: Option<&[u8]>) {
    let mut info = Vec::with_capacity(112);
    info.extend_from_slice(digest);
    match contents {
        Some(page) => info.extend_from_slice(&Sha384::digest(page)),
        None => info.extend_from_slice(&[0; 48]),
    }
    info.extend_from_slice(&112u16.to_le_bytes());
    info.extend_from_slice(&[page_type, 0, 0, 0, 0, 0]);
    info.extend_from_slice(&gpa.to_le_bytes());
    assert_eq!(info.len(), 112);
    *digest = Sha384::digest(&info).into();
}

const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;

#[test]
fn the_snp_measurement_is_that_of_the_memory() {
    let Some(program) = installed("true") else {
        return;
    };
    let machine = launch(SevMode::Snp, 5, &program);
    let (secrets, cpuid) = (
        machine.layout().secrets_page(),
        machine.layout().cpuid_page(),
    );
    let pages = launched(&machine);
    assert!(
        pages.contains(&secrets) && pages.contains(&cpuid) && pages.len() > 30,
        "{} pages",
        pages.len()
    );
    for gpa in &pages {
        let entry = machine
            .mem()
            .rmp()
            .lookup(spa(&machine, *gpa))
            .expect("in the RMP");
        assert!(entry.assigned() && entry.validated(), "{gpa}: {entry:?}");
    }
    let mut digest = [0; 48];
    for gpa in pages
        .iter()
        .filter(|gpa| **gpa != secrets && **gpa != cpuid)
    {
        extend(
            &mut digest,
            NORMAL,
            gpa.0,
            Some(&decrypted(&machine, spa(&machine, *gpa))),
        );
    }
    extend(&mut digest, SECRETS, secrets.0, None);
    extend(&mut digest, CPUID, cpuid.0, None);
    let save_area = decrypted(&machine, machine.layout().vmsa());
    extend(&mut digest, VMSA, 0xffff_ffff_f000, Some(&save_area));
    assert_eq!(
        hex(digest),
        hex(&machine.launched().measurement),
        "the library's launch"
    );

    let report = run_true("snp", "5", &program);
    assert_eq!(
        report["launch"]["measurement"],
        hex(digest),
        "the command's launch of the same guest"
    );
    let other = run_true("snp", "6", &program);
    assert_ne!(
        other["launch"]["measurement"],
        hex(digest),
        "AT_RANDOM is measured too"
    );
}

#[test]
fn the_sev_digest_is_that_of_the_memory() {
    let Some(program) = installed("true") else {
        return;
    };
    for (name, mode) in [("sev", SevMode::Sev), ("es", SevMode::Es)] {
        let machine = launch(mode, 5, &program);
        let mut digest = Sha256::new();
        for gpa in launched(&machine) {
            digest.update(decrypted(&machine, spa(&machine, gpa)));
        }
        if mode == SevMode::Es {
            digest.update(decrypted(&machine, machine.layout().vmsa()));
        }
        let digest = hex(digest.finalize());
        let report = run_true(name, "5", &program);
        assert_eq!(report["launch"]["digest"], digest, "{name}");
        // HMAC-SHA256 under a transport key that only the guest's owner and the firmware have.
        assert_eq!(
            report["launch"]["measurement"].as_str().map(str::len),
            Some(64),
            "{name}"
        );
        assert_eq!(
            report["launch"]["nonce"].as_str().map(str::len),
            Some(32),
            "{name}"
        );
    }
}

#[test]
fn commands_are_those_of_each_mode() {
    let Some(program) = installed("true") else {
        return;
    };
    for (sev, expected) in [
        ("off", &[][..]),
        (
            "sev",
            &[
                "LAUNCH_START",
                "ACTIVATE",
                "LAUNCH_UPDATE_DATA",
                "LAUNCH_MEASURE",
                "LAUNCH_FINISH",
            ],
        ),
        (
            "es",
            &[
                "LAUNCH_START",
                "LAUNCH_UPDATE_DATA",
                "LAUNCH_UPDATE_VMSA",
                "LAUNCH_MEASURE",
                "LAUNCH_FINISH",
            ],
        ),
        (
            "snp",
            &[
                "SNP_GCTX_CREATE",
                "SNP_LAUNCH_START",
                "SNP_ACTIVATE",
                "SNP_LAUNCH_UPDATE",
                "SNP_LAUNCH_FINISH",
            ],
        ),
    ] {
        let report = run_true(sev, "5", &program);
        let commands = report["launch"]["commands"]
            .as_array()
            .expect("a list")
            .clone();
        let mut names = commands.iter().filter_map(|c| c["command"].as_str());
        for name in expected {
            assert!(
                names.any(|n| n == *name),
                "{sev}: {name} is missing or out of order in {commands:?}"
            );
        }
        assert_eq!(
            report["launch"]["measurement"].as_str().map(str::is_empty),
            Some(sev == "off"),
            "{sev}"
        );
    }
}

#[test]
fn it_says_what_ran_and_how() {
    let Some(program) = installed("sort") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report.json");
    std::fs::write(&file, "an old report").expect("written");
    for sev in SEV {
        let mut command = sevlab();
        command.args([
            "run",
            "--sev",
            sev,
            "--jit",
            "on",
            "--cipher",
            "aes256-xts",
            "--memory",
            "1G",
            "--report",
        ]);
        let report = report(
            command
                .arg(&file)
                .arg("--")
                .arg(&program)
                .arg("/etc/passwd"),
            &file,
        );
        assert_eq!(report["format"], 1);
        assert_eq!(report["config"]["cipher"], "aes256-xts");
        assert_eq!(report["config"]["memory"], 1u64 << 30);
        assert_eq!(report["config"]["argv"][1], "/etc/passwd");
        assert_eq!(
            report["config"]["program"],
            program.to_str().expect("UTF-8")
        );
        let stats = &report["stats"];
        let count = |name: &str| {
            stats[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{sev}: {name} in {stats}"))
        };
        assert!(count("instructions") > 100_000, "{sev}: {stats}");
        assert!(
            count("syscalls") > 20 && count("world_switches") > 20,
            "{sev}: {stats}"
        );
        assert_eq!(count("aes_blocks") > 0, sev != "off", "{sev}: {stats}");
        let ghcb = stats["ghcb_events"].as_object().expect("a map").len();
        assert_eq!(ghcb > 0, matches!(sev, "es" | "snp"), "{sev}: {stats}");
        assert!(
            report["end"]
                .as_str()
                .is_some_and(|e| e.contains("status 0")),
            "{}",
            report["end"]
        );
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("readable")
        .collect();
    assert_eq!(left.len(), 1, "only the report is left: {left:?}");
}
