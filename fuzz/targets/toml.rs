//! Configurations of simulated machines: TOML files and settings. What is refused is refused with a message that names the
//! file or the option; what is accepted has a geometry that can be built, shows as TOML and JSON that read back the same, and
//! makes a memory controller or is refused by it with an error.
//!
//! Input: settings, one a line, up to an empty line; then the file.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sevlab_machine::presets;
use sevlab_memctl::model::Model;
use sevlab_memctl::{CacheMode, CipherKind, Config, MemCtl};

/// Caches up to this are built.
const SMALL: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (sets, file) = text.split_once("\n\n").unwrap_or(("", &text));
    let sets: Vec<String> = sets.lines().map(str::to_owned).collect();
    for what in [presets::DEFAULT, "cachegrind"] {
        if let Err(e) = presets::load(what, &sets) {
            assert!(e.to_string().starts_with("--set "), "{e}");
        }
    }
    let loaded = match presets::read_text("fuzzed.toml", file, &sets) {
        Ok(loaded) => loaded,
        Err(e) => {
            let text = e.to_string();
            assert!(
                text.starts_with("fuzzed.toml") || text.starts_with("--set "),
                "{text}"
            );
            assert!(!text.contains('\n'), "{text}");
            return;
        }
    };
    let model = &loaded.model;
    let again = presets::read_text("shown", &loaded.to_toml(), &[]);
    let again = again.unwrap_or_else(|e| panic!("{e}\n{}", loaded.to_toml()));
    assert_eq!(&again.model, model, "{}", loaded.to_toml());
    let json: Model = serde_json::from_str(&loaded.to_json()).expect("JSON of its own");
    assert_eq!(&json, model);
    let _ = loaded.changes().count();
    let caches = [
        Some(&model.l1i),
        Some(&model.l1d),
        model.l2.as_ref(),
        Some(&model.llc),
    ];
    for cache in caches.into_iter().flatten() {
        assert!(cache.sets().is_power_of_two());
        if cache.size > SMALL {
            return;
        }
    }
    let _ = MemCtl::new(Config {
        size: 16 << 20,
        cipher: CipherKind::Aes128Xex,
        cache: CacheMode::Hierarchy,
        resident: None,
        tweak_seed: 0,
        snp: false,
        hierarchy: Some(Arc::new(model.clone())),
        cores: 1,
    });
});
