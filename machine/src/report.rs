//! A run as data: configuration, launch, measurement, counts; for files and for comparison by scripts.

use std::collections::BTreeMap;

use serde::Serialize;
use sevlab_arch::exit::ExitCode;
use sevlab_memctl::model::Model;
use sevlab_psp::driver::LogEntry;

use crate::config::{Engine, MachineConfig, cache_name, mode_name};
use crate::launch::Launched;
use crate::simulation::{Simulation, SimulationReport};
use crate::stats::{Stats, event_name, hex};

/// Version of the report's format.
pub const FORMAT: u32 = 1;

/// A run's report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// How the machine was built.
    pub config: ConfigReport,
    /// How the guest was launched.
    pub launch: LaunchReport,
    /// How it ended; `None` if it did not.
    pub end: Option<String>,
    /// What was counted.
    pub stats: StatsReport,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigReport {
    /// off, sev, sev-es or sev-snp.
    pub sev: String,
    /// The memory controller's cipher.
    pub cipher: String,
    /// The processor that the guest is shown.
    pub cpu: String,
    /// page, none or hierarchy.
    pub cache: String,
    /// Of hierarchy: the simulated machine.
    pub model: Option<Model>,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Limit on resident pages.
    pub resident: Option<usize>,
    /// jit or interpreter.
    pub engine: String,
    /// The seed of a repeatable run.
    pub seed: Option<u64>,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub argv: Vec<String>,
}

/// The launch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaunchReport {
    /// Pages placed.
    pub pages: u64,
    /// Measurement, hexadecimal.
    pub measurement: String,
    /// SEV and SEV-ES: the digest that it authenticates.
    pub digest: String,
    /// SEV and SEV-ES: the firmware's nonce.
    pub nonce: String,
    /// The commands to the secure processor, with their answers; repeats are counted.
    pub commands: Vec<CommandReport>,
}

/// A run of equal commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandReport {
    /// Its name.
    pub command: String,
    /// The firmware's answer.
    pub status: String,
    /// How often in a row.
    pub times: u64,
}

/// The counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // as in Stats
pub struct StatsReport {
    pub seconds: f64,
    pub instructions: u64,
    pub mips: f64,
    pub translated_instructions: Option<u64>,
    /// If blocks were copied.
    pub copied_instructions: Option<u64>,
    pub copied_blocks: Option<u64>,
    pub copied_code_bytes: Option<u64>,
    pub regions: Option<u64>,
    /// From the code cache, if there were any.
    pub cached_regions: Option<u64>,
    pub cached_copies: Option<u64>,
    pub compile_seconds: Option<f64>,
    pub host_code_bytes: Option<u64>,
    /// With [`JitOptions::count_host`](sevlab_jit::JitOptions::count_host).
    pub host_code_instructions: Option<u64>,
    pub tlb_fills: u64,
    pub page_walks: u64,
    pub tlb_flushes: u64,
    pub pages_decrypted: u64,
    pub pages_encrypted: u64,
    pub aes_blocks: u64,
    pub evictions: u64,
    pub world_switches: u64,
    pub exits: BTreeMap<String, u64>,
    pub ghcb_events: BTreeMap<String, u64>,
    pub syscalls: u64,
    pub host_calls: u64,
    pub unknown_syscalls: BTreeMap<String, u64>,
    /// What the simulated caches counted.
    pub simulation: Option<SimulationReport>,
    /// Of the guest's child processes, by name; in none of the other counts.
    pub children: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Puts a report together.
    #[must_use]
    pub fn new(
        config: &MachineConfig,
        launched: &Launched,
        log: &[LogEntry],
        stats: &Stats,
        end: Option<String>,
    ) -> Self {
        Self {
            format: FORMAT,
            config: config_report(config),
            launch: LaunchReport {
                pages: launched.pages,
                measurement: hex(&launched.measurement),
                digest: hex(&launched.digest),
                nonce: hex(&launched.nonce),
                commands: commands(log),
            },
            end,
            stats: stats_report(stats),
        }
    }

    /// The report as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys: nothing that could fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

fn config_report(config: &MachineConfig) -> ConfigReport {
    ConfigReport {
        sev: mode_name(config.sev).to_owned(),
        cipher: config.cipher.to_string(),
        cpu: config.cpu.name().to_owned(),
        cache: cache_name(config.cache).to_owned(),
        model: config.model.as_deref().cloned(),
        memory: config.memory,
        resident: config.resident,
        engine: match config.engine {
            Engine::Interpreter => "interpreter",
            Engine::Jit(_) => "jit",
        }
        .to_owned(),
        seed: config.seed,
        program: config.program.display().to_string(),
        argv: config
            .argv
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect(),
    }
}

fn commands(log: &[LogEntry]) -> Vec<CommandReport> {
    let mut out: Vec<CommandReport> = Vec::new();
    for entry in log {
        let (command, status) = (entry.command.to_string(), entry.status.to_string());
        match out.last_mut() {
            Some(last) if last.command == command && last.status == status => last.times += 1,
            _ => out.push(CommandReport {
                command,
                status,
                times: 1,
            }),
        }
    }
    out
}

fn stats_report(s: &Stats) -> StatsReport {
    let t = s.translated;
    StatsReport {
        seconds: s.elapsed.as_secs_f64(),
        instructions: s.instructions,
        mips: s.mips(),
        translated_instructions: t.map(|t| t.instructions),
        copied_instructions: t.map(|t| t.copied).filter(|n| *n > 0),
        copied_blocks: t.map(|t| t.copies).filter(|n| *n > 0),
        copied_code_bytes: t.map(|t| t.copy_bytes).filter(|n| *n > 0),
        regions: t.map(|t| t.regions),
        cached_regions: t.map(|t| t.loaded).filter(|n| *n > 0),
        cached_copies: t.map(|t| t.loaded_copies).filter(|n| *n > 0),
        compile_seconds: t.map(|t| t.compile_time.as_secs_f64()),
        host_code_bytes: t.map(|t| t.code_bytes),
        host_code_instructions: t.map(|t| t.code_instructions).filter(|n| *n > 0),
        tlb_fills: s.vcpu.tlb_fills,
        page_walks: s.vcpu.full_walks + s.vcpu.short_walks,
        tlb_flushes: s.vcpu.tlb_flushes,
        pages_decrypted: s.memory.pages_decrypted,
        pages_encrypted: s.memory.pages_encrypted,
        aes_blocks: s.memory.aes_blocks,
        evictions: s.memory.evictions,
        world_switches: s.vcpu.entries,
        exits: named(&s.exits.codes, |code| ExitCode(code).to_string()),
        ghcb_events: named(&s.exits.events, event_name),
        syscalls: s.syscalls,
        host_calls: s.host_calls,
        unknown_syscalls: s.unknown.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        simulation: s.simulation.as_ref().map(Simulation::report),
        children: [
            ("processes", s.children.processes),
            ("instructions", s.children.instructions),
            ("world_switches", s.children.entries),
            ("syscalls", s.children.syscalls),
            ("pages_decrypted", s.children.pages_decrypted),
            ("pages_encrypted", s.children.pages_encrypted),
            ("aes_blocks", s.children.aes_blocks),
            ("busy_cycles", s.children.busy_cycles),
        ]
        .into(),
    }
}

fn named(counts: &BTreeMap<u64, u64>, name: impl Fn(u64) -> String) -> BTreeMap<String, u64> {
    counts.iter().map(|(code, n)| (name(*code), *n)).collect()
}
