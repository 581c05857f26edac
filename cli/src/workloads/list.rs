//! `sevlab workloads list`.

use std::process::ExitCode;

use sevlab_workloads::manifest::{Manifest, Workload};
use sevlab_workloads::resolve::Places;

use crate::failure::Failure;

/// Prints the list.
pub fn list(manifest: &Manifest, places: &Places, json: bool) -> Result<ExitCode, Failure> {
    if json {
        let rows: Vec<_> = manifest
            .workloads
            .iter()
            .map(|w| object(w, places))
            .collect();
        println!("{:#}", serde_json::Value::Array(rows));
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<12} {:<8} {:<15} {:<19} {:<13} what",
        "name", "kind", "follows", "MiB: test/train/ref", "here"
    );
    let mut missing = Vec::new();
    for workload in &manifest.workloads {
        let here = match places.find(&workload.program) {
            Ok(_) => "yes",
            Err(why) => {
                missing.push(format!("{}: {why}", workload.name));
                if workload.is_optional() {
                    "no (optional)"
                } else {
                    "no"
                }
            }
        };
        let sizes: Vec<String> = workload
            .sizes
            .iter()
            .map(|(size, case)| {
                format!(
                    "{}{:.0}",
                    if workload.sizes.len() < 3 {
                        format!("{size} ")
                    } else {
                        String::new()
                    },
                    case.footprint_mib.ceil()
                )
            })
            .collect();
        println!(
            "{:<12} {:<8} {:<15} {:<19} {here:<13} {}",
            workload.name,
            workload.kind,
            workload.spec.as_deref().unwrap_or("-"),
            sizes.join("/"),
            workload.what
        );
    }
    if let Some(first) = missing.first() {
        println!(
            "\nNot here: {} of {}.",
            missing.len(),
            manifest.workloads.len()
        );
        println!("{first}.");
        for other in &missing[1..] {
            // The same reason once is enough; the name is in the table.
            if !other.contains("sevlab-workloads") {
                println!("{other}.");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An entry with where its program is.
pub fn object(workload: &Workload, places: &Places) -> serde_json::Value {
    let mut object = serde_json::to_value(workload).unwrap_or_default();
    let (path, why) = match places.find(&workload.program) {
        Ok(path) => (Some(path.display().to_string()), None),
        Err(why) => (None, Some(why.to_string())),
    };
    object["optional"] = workload.is_optional().into();
    object["path"] = path.into();
    object["missing"] = why.into();
    object
}
