//! Presets, the schema against the model's fields, files and settings that are wrong, and showing.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value as Json;
use sevlab_memctl::model::{CoreModel, Model, Policy};

use super::schema::{self, Kind};
use super::*;

fn sets(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn refused(text: &str) -> String {
    match read_text("m.toml", text, &[]) {
        Ok(loaded) => panic!("accepted:\n{text}\n{:?}", loaded.model),
        Err(e) => e.to_string(),
    }
}

fn refused_set(list: &[&str]) -> String {
    match load(DEFAULT, &sets(list)) {
        Ok(model) => panic!("accepted: {list:?}\n{model:?}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn presets_load_and_are_called_what_they_are() {
    for preset in PRESETS {
        let model = load(preset.name, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(model.name, preset.name);
        assert_eq!(model.core.model, CoreModel::Simple, "{}", preset.name);
    }
    assert!(super::preset(DEFAULT).is_some());
}

#[test]
fn each_figure_of_a_preset_has_its_source_on_its_line() {
    for preset in PRESETS {
        let mut table = "";
        for line in preset.text.lines() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[') {
                table = header.trim_end_matches(']');
            }
            if line.is_empty() || line.starts_with(['#', '[']) || line.starts_with("name =") {
                continue;
            }
            let comment = line.split_once('#').map_or("", |(_, c)| c.trim());
            assert!(
                comment.len() >= 2,
                "{}: [{table}] {line}: no source",
                preset.name
            );
        }
    }
}

#[test]
fn presets_say_every_key() {
    for preset in PRESETS {
        let loaded = read(preset.name, &[]).expect("loads");
        let model = serde_json::to_value(&loaded.model).expect("JSON");
        schema::leaves(&mut |path, _, _| {
            let value = path.split('.').try_fold(&model, |v, name| v.get(name));
            if value.is_some_and(|v| !v.is_null()) && preset.name != "cachegrind" {
                assert!(
                    loaded.settings.get(path).is_some(),
                    "{}: {path} is left to its default",
                    preset.name
                );
            }
        });
    }
}

#[test]
fn the_schema_is_the_models_fields() {
    let mut milan = load("epyc-milan", &[]).expect("loads");
    let tlb = milan.tlb.as_mut().expect("has TLBs");
    tlb.l2i = Some(tlb.l2.clone());
    let full = serde_json::to_value(&milan).expect("JSON");
    let mut fields = BTreeSet::new();
    paths(&full, "", &mut fields);
    let mut keys = BTreeSet::new();
    schema::leaves(&mut |path, kind, needed| {
        keys.insert(path.to_owned());
        // What has no default for serde has none here, and the other way around.
        let mut less = full.clone();
        remove(&mut less, path);
        assert_eq!(
            Model::deserialize(less).is_err(),
            needed,
            "{path}: needed or not"
        );
        // And it accepts what this accepts, at both ends.
        for value in ends(kind) {
            let mut other = full.clone();
            replace(&mut other, path, value.clone());
            assert!(Model::deserialize(other).is_ok(), "{path} = {value}");
        }
    });
    assert_eq!(keys, fields);
}

fn ends(kind: &Kind) -> Vec<Json> {
    match kind {
        Kind::Text => vec!["x".into()],
        Kind::Size { most } => vec![1.into(), (*most).into()],
        Kind::Count { least, most, .. } => vec![(*least).into(), (*most).into()],
        Kind::Ns { most } => vec![0.0.into(), (*most).into()],
        Kind::Switch => vec![true.into(), false.into()],
        Kind::One(names) => names.iter().map(|n| (*n).into()).collect(),
    }
}

fn paths(value: &Json, path: &str, to: &mut BTreeSet<String>) {
    match value {
        Json::Object(map) => {
            for (name, value) in map {
                paths(value, &schema::join(path, name), to);
            }
        }
        _ => {
            to.insert(path.to_owned());
        }
    }
}

fn slot<'a>(value: &'a mut Json, path: &str) -> (&'a mut serde_json::Map<String, Json>, String) {
    let mut names: Vec<_> = path.split('.').collect();
    let last = names.pop().expect("a name");
    let mut at = value;
    for name in names {
        at = &mut at[name];
    }
    (at.as_object_mut().expect("a table"), last.to_owned())
}

fn remove(value: &mut Json, path: &str) {
    let (map, key) = slot(value, path);
    map.remove(&key);
}

fn replace(value: &mut Json, path: &str, with: Json) {
    let (map, key) = slot(value, path);
    map.insert(key, with);
}

#[test]
fn a_file_changes_its_base() {
    let text = "base = \"epyc-milan\"\n[latency]\naes_ns = 12\n[l2]\nsize = \"1MiB\"\npolicy = \"tree-plru\"\n";
    let loaded = read_text("m.toml", text, &[]).unwrap_or_else(|e| panic!("{e}"));
    let milan = load("epyc-milan", &[]).expect("loads");
    let l2 = loaded.model.l2.as_ref().expect("an L2");
    assert_eq!((l2.size, l2.ways), (1 << 20, 8));
    assert_eq!(l2.policy, Policy::TreePlru);
    assert!((loaded.model.latency.aes_ns - 12.0).abs() < 1e-9);
    assert_eq!(loaded.model.name, "m.toml");
    assert_eq!(loaded.model.l1d, milan.l1d);
    let changes: Vec<_> = loaded
        .changes()
        .map(|(k, at)| format!("{k} {at}"))
        .collect();
    assert!(
        changes.contains(&"latency.aes_ns m.toml:3".to_owned()),
        "{changes:?}"
    );
}

#[test]
fn a_complete_file_needs_no_base() {
    for preset in PRESETS {
        let loaded = read_text("m.toml", preset.text, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.model, load(preset.name, &[]).expect("loads"));
        assert_eq!(loaded.base(), None);
    }
}

#[test]
fn settings_apply_from_left_to_right() {
    let model = load(
        "cachegrind",
        &sets(&[
            "l1d.size=32KiB",
            "l1d.ways=8",
            "l1d.policy=fifo",
            "llc.size=8388608",
            "llc.size=\"4MiB\"",
            "llc.ways = 16",
            "prefetch.next_line=true",
            "latency.aes_ns=9.5",
            "l2={size=\"512KiB\", ways=8}",
        ]),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((model.l1d.size, model.l1d.ways), (32 << 10, 8));
    assert_eq!(model.l1d.policy, Policy::Fifo);
    assert_eq!((model.llc.size, model.llc.ways), (4 << 20, 16));
    assert!(model.prefetch.next_line);
    assert_eq!(model.l2.expect("an L2").sets(), 1024);
    assert!(
        model.name.starts_with("cachegrind, l1d.size=32KiB, "),
        "{}",
        model.name
    );
}

#[test]
fn tables_can_be_taken_away() {
    let model = load("epyc-milan", &sets(&["l2=none", "tlb=none"])).expect("loads");
    assert_eq!((model.l2, model.tlb), (None, None));
    let model = load("epyc-milan", &sets(&["tlb.l2i=none"])).expect("loads");
    assert_eq!(model.tlb.expect("TLBs").l2i, None);
    let again = refused_set(&["l2=none", "l2.size=1MiB"]);
    assert!(
        again.starts_with("--set l2.size=1MiB: l2.ways: is missing"),
        "{again}"
    );
    assert!(refused_set(&["llc=none"]).contains("not a table of size, ways, policy"));
}

#[test]
fn errors_name_file_line_and_key_and_say_what_is_allowed() {
    let base = "base = \"epyc-milan\"\n\n";
    let cases = [
        (
            "[latency]\naes_cycles = 30",
            "m.toml:4: latency.aes_cycles: no such key; latency.aes_ns is a number of nanoseconds",
        ),
        (
            "[latency]\nl2_ns = 3",
            "m.toml:4: latency.l2_ns: no such key; latency.l2_cycles is a whole number of cycles",
        ),
        (
            "[core]\nclock_ghz = 3.6",
            "m.toml:4: core.clock_ghz: no such key; core.clock_mhz is a whole number of MHz",
        ),
        (
            "[l1d]\nsice = 1",
            "m.toml:4: l1d.sice: no such key; is l1d.size meant?",
        ),
        (
            "aes_ns = 3",
            "m.toml:3: aes_ns: no such key here; there is latency.aes_ns",
        ),
        (
            "[l1d]\ncolour = 1",
            "m.toml:4: l1d.colour: no such key; in [l1d] there is size, ways, policy",
        ),
        ("[l3]\nsize = 1", "m.toml:3: l3: no such key; is l2 meant?"),
        (
            "[latency]\naes_ns = \"12ns\"",
            "m.toml:4: latency.aes_ns: \"12ns\" is text; the key's name says the unit",
        ),
        (
            "[latency]\naes_ns = -1",
            "m.toml:4: latency.aes_ns: -1 is out of range; allowed is a number of nanoseconds, 0 to",
        ),
        (
            "[latency]\naes_ns = nan",
            "m.toml:4: latency.aes_ns: NaN is out of range",
        ),
        (
            "[latency]\naes_ns = inf",
            "m.toml:4: latency.aes_ns: inf is out of range",
        ),
        (
            "[latency]\nl2_cycles = 2.5",
            "m.toml:4: latency.l2_cycles: a fraction; allowed is a whole number of cycles",
        ),
        (
            "[latency]\naes_ns = true",
            "m.toml:4: latency.aes_ns: true or false; allowed is a number of nanoseconds",
        ),
        (
            "[core]\nclock_mhz = 0",
            "m.toml:4: core.clock_mhz: 0 is out of range; allowed is a whole number of MHz, 1 to",
        ),
        (
            "[core]\nmodel = \"fast\"",
            "m.toml:4: core.model: \"fast\"; allowed is one of simple, overlap",
        ),
        (
            "[l1d]\nways = 0",
            "m.toml:4: l1d.ways: 0 is out of range; allowed is a whole number of ways, 1 to 64",
        ),
        (
            "[l1d]\nways = 7",
            "m.toml:4: l1d.ways: 32KiB in 7 ways of 64-byte lines are 73.1",
        ),
        (
            "[l1d]\nways = 6",
            "ways that make it one: 1, 2, 4, 8, 16, 32, 64",
        ),
        (
            "[l1d]\nsize = \"48KiB\"",
            "m.toml:4: l1d.size: 48KiB in 8 ways of 64-byte lines are 96 sets, which must be a power of two; ways that make it one: 3, 6, 12, 24, 48",
        ),
        ("[l1d]\nsize = 100", "no number of ways makes it one"),
        (
            "[l1d]\nsize = \"32KB\"",
            "m.toml:4: l1d.size: \"32KB\" (KiB, MiB and GiB are there)",
        ),
        (
            "[l1d]\nsize = \"4GiB\"",
            "m.toml:4: l1d.size: 4294967296 bytes; allowed is a size",
        ),
        ("[llc]\nsize = \"99999999999GiB\"", "m.toml:4: llc.size: "),
        (
            "[llc]\nsize = 99999999999999999999999",
            "m.toml:4: llc.size: 99999999999999999999999 is out of range",
        ),
        (
            "[l2]\nways = 16\nsize = \"48KiB\"\n",
            "m.toml:5: l2.size: 48KiB in 16 ways",
        ),
        (
            "[tlb.l2]\nways = 12\npolicy = \"tree-plru\"\nentries = 1536",
            "m.toml:5: tlb.l2.policy: tree-plru needs a power of two of ways, 64 at most; here are 12",
        ),
        (
            "[tlb.l1d]\npolicy = \"lru\"",
            "m.toml:4: tlb.l1d.policy: \"lru\"; allowed is one of fifo, random",
        ),
        (
            "[tlb.l2]\nways = 5",
            "m.toml:4: tlb.l2.ways: 2048 entries in 5 ways are 409.6 sets",
        ),
        (
            "[tlb.l2]\nways = 4096",
            "m.toml:4: tlb.l2.ways: 2048 entries in 4096 ways are 0.5 sets",
        ),
        (
            "[dram]\nrow_bytes = 1000",
            "m.toml:4: dram.row_bytes: 1000 bytes are no row: it is a power of two",
        ),
        (
            "l1d = 7",
            "m.toml:3: l1d: not a table of size, ways, policy",
        ),
        (
            "l2 = 7",
            "m.toml:3: l2: not a table of size, ways, policy, or \"none\"",
        ),
        ("l1d = [1, 2]", "m.toml:3: l1d: not a table"),
        ("name = \"\"", "m.toml:3: name: empty"),
        ("name = 3", "m.toml:3: name: a number; allowed is text"),
        (
            "[cost]\ndiv = 5000",
            "m.toml:4: cost.div: 5000 is out of range; allowed is a whole number of cycles, 0 to 4000",
        ),
        ("[latency\naes_ns = 1", "m.toml:3: not TOML: "),
        ("[latency]\naes_ns = 1\naes_ns = 2", "m.toml:5: not TOML: "),
    ];
    for (text, expected) in cases {
        let error = refused(&format!("{base}{text}"));
        assert!(
            error.contains(expected),
            "{text}\n  says  {error}\n  wants {expected}"
        );
    }
    assert_eq!(
        refused("base = \"epyc-turin\""),
        "m.toml:1: base: no preset \"epyc-turin\"; the presets are epyc-naples, epyc-rome, epyc-milan, epyc-genoa, cachegrind"
    );
    assert!(refused("base = 3").starts_with("m.toml:1: base: not the name of a preset"));
    assert!(
        refused("")
            .starts_with("m.toml: name: is missing (a file may begin with base = \"epyc-milan\")")
    );
    let mut short = super::preset("epyc-milan").expect("there").text.to_owned();
    short = short.replace("dram_ns = ", "# ");
    let at = short.lines().position(|l| l == "[latency]").expect("there") + 1;
    let error = refused(&short);
    assert!(
        error.starts_with(&format!("m.toml:{at}: latency.dram_ns: is missing")),
        "{error}"
    );
}

#[test]
fn wrong_settings_name_the_option() {
    let cases = [
        (
            &["latency.aes_cycles=3"][..],
            "--set latency.aes_cycles=3: latency.aes_cycles: no such key; latency.aes_ns is a number of nanoseconds",
        ),
        (
            &["latency.aes_ns=fast"],
            "--set latency.aes_ns=fast: latency.aes_ns: \"fast\" is text",
        ),
        (
            &["latency.aes_ns="],
            "--set latency.aes_ns=: latency.aes_ns: \"\" is text",
        ),
        (&["latency.aes_ns"], "--set latency.aes_ns: not KEY=VALUE"),
        (
            &["latency.aes_ns.x=3"],
            "no such key; latency.aes_ns is a number",
        ),
        (&["=3"], "--set =3: : no such key"),
        (
            &["latency=3"],
            "--set latency=3: latency: not a table of l1d_cycles",
        ),
        (
            &["l1d.size=48KiB"],
            "--set l1d.size=48KiB: l1d.size: 48KiB in 8 ways",
        ),
        (
            &["l1d.ways=3"],
            "--set l1d.ways=3: l1d.ways: 32KiB in 3 ways",
        ),
        (
            &["base=epyc-rome"],
            "--set base=epyc-rome: base: no such key; is name meant?",
        ),
        (
            &["l1d.size=1\nl2=none"],
            "--set l1d.size=1\\nl2=none: l1d.size: ",
        ),
    ];
    for (list, expected) in cases {
        let error = refused_set(list);
        assert!(
            error.contains(expected),
            "{list:?}\n  says  {error}\n  wants {expected}"
        );
    }
}

#[test]
fn files_that_are_none() {
    let error = load("epyc-turin", &[]).expect_err("refused").to_string();
    assert!(
        error.starts_with("epyc-turin: neither a file nor a preset; the presets are epyc-naples, "),
        "{error}"
    );
    assert!(load("/", &[]).is_err());
    let error = load("/dev/zero", &[]).expect_err("refused").to_string();
    assert!(error.contains("1048576 bytes"), "{error}");
}

#[test]
fn what_is_shown_reads_back_the_same() {
    let cases: [&[&str]; 4] = [
        &[],
        &["latency.aes_ns=12.25", "l1d.size=64KiB", "l1d.ways=16"],
        &["l2=none", "tlb=none", "dram.model=banks"],
        &["name=\"quoted\" # and so on\\"],
    ];
    for preset in PRESETS {
        for list in cases {
            let loaded = read(preset.name, &sets(list)).unwrap_or_else(|e| panic!("{e}"));
            let text = loaded.to_toml();
            let again = read_text("shown", &text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(again.model, loaded.model, "{text}");
            let json: Model = serde_json::from_str(&loaded.to_json()).expect("JSON");
            assert_eq!(json, loaded.model);
        }
    }
}

#[test]
fn what_is_shown_has_the_comments_and_says_what_changed() {
    let loaded = read("epyc-milan", &sets(&["latency.aes_ns=12"])).expect("loads");
    let text = loaded.to_toml();
    assert!(text.starts_with("# EPYC 7003"), "{text}");
    let line = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(key));
        line.unwrap_or_else(|| panic!("no {key}\n{text}"))
            .to_owned()
    };
    let aes = line("aes_ns");
    assert!(
        aes.starts_with("aes_ns = 12.0 # --set latency.aes_ns=12; epyc-milan: 16.0, gr"),
        "{aes}"
    );
    assert!(line("l2_cycles").contains("# SOG 2.6.3"));
    let lines = |text: &str| text.lines().filter(|l| l.contains('#')).count();
    let milan = super::preset("epyc-milan").expect("there").text;
    assert_eq!(
        lines(&read("epyc-milan", &[]).expect("loads").to_toml()),
        lines(milan)
    );
}
