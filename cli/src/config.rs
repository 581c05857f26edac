//! `sevlab config`: the presets of `--cache hierarchy`, and files that change them.

use std::process::ExitCode;

use sevlab_machine::presets::{self, PRESETS};

use crate::args::ConfigCommand;
use crate::failure::Failure;

/// Does what the command says.
pub fn config(command: &ConfigCommand) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::List => {
            for preset in PRESETS {
                let default = if preset.name == presets::DEFAULT {
                    " (the default)"
                } else {
                    ""
                };
                println!("{:<12} {}{default}", preset.name, preset.what);
            }
        }
        ConfigCommand::Show { model, set, json } => {
            let loaded = presets::read(model, set)?;
            if *json {
                println!("{}", loaded.to_json());
            } else {
                print!("{}", loaded.to_toml());
            }
        }
        ConfigCommand::Check { model, set } => {
            let loaded = presets::read(model, set)?;
            match loaded.base() {
                Some(base) if base != model => println!("{model}: fine, on the base of {base}"),
                _ => println!("{model}: fine"),
            }
            if loaded.base().is_some() {
                for (key, at) in loaded.changes().filter(|(key, _)| *key != "name") {
                    println!("  {key} from {at}");
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
