use std::path::Path;

use super::*;

const GOOD: &str = r#"
name = "aes"
seed = 7
workloads = ["mcf", "stream"]

[limit]
seconds = 2.5
instructions = 3e9

[[config]]
name = "off"
sev = "off"
vary = false

[[config]]
sev = "snp"
[config.set]
l2.size = "1MiB"
"llc.ways" = 8

[vary]
latency.aes_ns = [0, 12, 24.5]
cipher = ["aes128-xex", "aes256-xts"]
"#;

fn parse(text: &str) -> Result<Spec, String> {
    Spec::parse("s.toml", text, Path::new("/nowhere")).map_err(|e| e.to_string())
}

#[test]
fn a_file_is_read() {
    let spec = parse(GOOD).expect("a study");
    assert_eq!(
        (spec.name.as_str(), spec.size.as_str(), spec.seed),
        ("aes", "test", 7)
    );
    assert_eq!(spec.limit.seconds, Some(2.5));
    assert_eq!(spec.limit.instructions, Some(3_000_000_000));
    let snp = &spec.configs[1];
    assert_eq!(snp.name.value, "snp");
    assert_eq!(snp.parts.seed, 7);
    assert!(snp.vary && !spec.configs[0].vary);
    let sets: Vec<_> = snp
        .parts
        .sets
        .iter()
        .map(|s| (s.value.as_str(), s.line))
        .collect();
    assert_eq!(sets, [("l2.size=1MiB", 18), ("llc.ways=8", 19)]);
    let axes: Vec<_> = spec
        .axes
        .iter()
        .map(|a| (a.key.value.as_str(), a.values.len()))
        .collect();
    assert_eq!(axes, [("latency.aes_ns", 3), ("cipher", 2)]);
}

#[test]
fn the_study_that_is_built_in_is_one() {
    let spec = Spec::load(QUICK).expect("a study");
    assert_eq!(spec.configs.len(), 4);
}

/// Each mistake, and how its message begins and goes on.
#[test]
fn a_mistake_is_told_with_its_line_and_key() {
    for (from, to, at, what) in [
        ("seed = 7", "sed = 7", "s.toml:3: sed: no such key", "seed"),
        ("seed = 7", "seed = -7", "s.toml:3: seed:", "whole number"),
        (
            "seed = 7",
            "seed = 1\nseed = 2",
            "s.toml:4:",
            "duplicate key",
        ),
        (
            "\"mcf\", \"stream\"",
            "\"mcf\", 3",
            "s.toml:4: workloads: a number",
            "text",
        ),
        (
            "\"mcf\", \"stream\"",
            "\"mcf\", \"mcf\"",
            "s.toml:4: workloads:",
            "twice",
        ),
        (
            "seconds = 2.5",
            "seconds = 0",
            "s.toml:7: limit.seconds:",
            "above 0",
        ),
        (
            "seconds = 2.5",
            "second = 1",
            "s.toml:7: limit.second: no such key",
            "seconds",
        ),
        (
            "sev = \"off\"",
            "sev = \"of\"",
            "s.toml:12: config.sev: \"of\"",
            "off, sev, es, snp",
        ),
        (
            "vary = false",
            "vary = 0",
            "s.toml:13: config.vary: a number",
            "true or false",
        ),
        (
            "name = \"off\"",
            "name = \"snp\"",
            "s.toml:15: config.name:",
            "another",
        ),
        (
            "sev = \"snp\"",
            "model = \"epyc-milano\"",
            "s.toml:16: config.model:",
            "epyc-milan",
        ),
        (
            "sev = \"snp\"",
            "",
            "s.toml:15: config.sev: is missing",
            "snp",
        ),
        (
            "sev = \"snp\"",
            "sev = \"snp\"\nmemory = \"4 G\"",
            "s.toml:17: config.memory:",
            "512M",
        ),
        (
            "l2.size = \"1MiB\"",
            "l2.size = [1]",
            "s.toml:18: config.set.l2.size: a list",
            "vary",
        ),
        (
            "[0, 12, 24.5]",
            "12",
            "s.toml:22: vary.latency.aes_ns: not a list",
            "[0, 12, 24]",
        ),
        (
            "[0, 12, 24.5]",
            "[]",
            "s.toml:22: vary.latency.aes_ns: an empty list",
            "",
        ),
        (
            "[0, 12, 24.5]",
            "[1, 1]",
            "s.toml:22: vary.latency.aes_ns: 1 is there twice",
            "",
        ),
        (
            "\"aes256-xts\"",
            "\"rot13\"",
            "s.toml:23: vary.cipher: \"rot13\"",
            "aes128-xe",
        ),
        (
            "name = \"aes\"",
            "baseline = \"none\"",
            "s.toml:2: baseline:",
            "off, snp",
        ),
        (
            "workloads = [\"mcf\", \"stream\"]",
            "",
            "s.toml: workloads: is missing",
            "all",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let message = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert!(message.starts_with(at), "{to}: {message}");
        assert!(message.contains(what), "{to}: {message}");
    }
    assert!(
        parse("")
            .expect_err("empty")
            .contains("workloads: is missing")
    );
    let no_config = parse("workloads = [\"mcf\"]").expect_err("no machine");
    assert!(no_config.contains("config: is missing"), "{no_config}");
}

#[test]
fn a_program_of_the_file_needs_its_files_and_a_digest_has_64_digits() {
    let with = |line: &str| {
        let program = format!(
            "[[program]]\nname = \"p\"\ncommand = [\"true\"]\n{line}\n[[config]]\nsev = \"off\"\n"
        );
        parse(&program)
    };
    assert!(with("").is_ok());
    let digest = "ab".repeat(32);
    assert!(with(&format!("stdout_sha256 = \"{digest}\"")).is_ok());
    let e = with("stdout_sha256 = \"abc\"").expect_err("short");
    assert!(e.starts_with("s.toml:4: program.stdout_sha256:"), "{e}");
    let e = with("files = [\"gone\"]").expect_err("no file");
    assert!(
        e.starts_with("s.toml:4: program.files: there is no file gone"),
        "{e}"
    );
}
