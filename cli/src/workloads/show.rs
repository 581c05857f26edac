//! `sevlab workloads show`.

use std::process::ExitCode;

use sevlab_workloads::inputs::Content;
use sevlab_workloads::manifest::Workload;
use sevlab_workloads::resolve::Places;

use crate::failure::Failure;

/// Prints one entry.
pub fn show(workload: &Workload, places: &Places, json: bool) -> Result<ExitCode, Failure> {
    if json {
        println!("{:#}", super::list::object(workload, places));
        return Ok(ExitCode::SUCCESS);
    }
    let spec = match &workload.spec {
        Some(spec) => format!(", follows {spec}"),
        None => String::new(),
    };
    println!("{} ({}{spec})", workload.name, workload.kind);
    println!("  {}", workload.what);
    println!("  {}", workload.why);
    match places.find(&workload.program) {
        Ok(path) => println!("program: {}", path.display()),
        Err(why) => println!("program: {why}"),
    }
    for (size, case) in &workload.sizes {
        let args: Vec<String> = workload
            .args
            .iter()
            .chain(&case.args)
            .map(|a| a.replace("{size}", size.name()))
            .collect();
        let stdin = match &workload.stdin {
            Some(file) => format!(" < {file}"),
            None => String::new(),
        };
        println!("{size}: {} {}{stdin}", workload.program, args.join(" "));
        println!("  at most {} MiB resident natively", case.footprint_mib);
        match &case.sha256 {
            Some(digest) => println!("  its output has SHA-256 {digest}"),
            None => println!(
                "  its output depends on the installed version: a native run says what is right"
            ),
        }
        for file in workload.files.iter().chain(&case.files) {
            let what = match &file.content {
                Content::Literal { text } => {
                    format!("{} bytes, as the manifest has it", text.len())
                }
                Content::Text { bytes, seed } => format!("{bytes} bytes of text, seed {seed}"),
                Content::Random { bytes, seed } => {
                    format!("{bytes} bytes without patterns, seed {seed}")
                }
                Content::C { functions, seed } => {
                    format!("C source of {functions} functions, seed {seed}")
                }
                Content::Numbers { count, seed } => format!("{count} numbers, seed {seed}"),
            };
            println!("  reads {}: {what}", file.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}
