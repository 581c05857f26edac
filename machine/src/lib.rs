//! The board: vCPU, memory, secure processor, hypervisor, process guests.
//!
//! [`Machine`] puts them together and runs one process guest. The guest half (a small built-in
//! [`kernel`] and the program) runs in a coroutine; the hypervisor half ([`hv`]) enters it with VMRUN
//! and answers its exits. They share what a real pair would: nested page tables, the VMCB, and a
//! window of unencrypted memory.

mod config;
mod cpus;
pub mod doorbell;
mod error;
mod exec;
mod family;
mod fence;
mod host;
pub mod hv;
pub mod kernel;
mod launch;
mod layout;
pub mod pids;
pub mod presets;
mod report;
pub mod simtime;
mod simulation;
mod stats;
mod vm;
mod world;

pub use config::{
    CacheMode, CipherKind, Engine, MachineConfig, SevMode, Watch, cache_name, mode_name,
};
pub use error::Error;
pub use family::Children;
pub use host::exit_like;
pub use hv::cpuid::CpuPreset;
pub use kernel::GuestEnd;
pub use launch::Launched;
pub use layout::Layout;
pub use report::{CommandReport, ConfigReport, LaunchReport, Report, StatsReport};
pub use sevlab_jit::{CodeCache, JitOptions, OptLevel, host_isa};
pub use simulation::{CAUSES, CacheReport, ExitReport, Simulation, SimulationReport};
pub use stats::{Stats, Translated};
pub use vm::{Machine, RunOutcome};
