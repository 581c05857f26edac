//! Translation of guest regions to host code through Cranelift.
//!
//! A *region* is a set of guest basic blocks with one entry, joined by direct jumps ([`region`]). It
//! becomes one host function ([`lower`]): guest registers are SSA values across the whole region, flags are
//! records that are computed only where something reads them, a guest memory access is an inline probe of the
//! fast TLB with a cold path, or, in the memory controller's view, nothing but itself ([`faults`]). Regions are
//! compiled on a background thread ([`compile`]) while the interpreter goes on, and chain to each other by tail
//! calls through exit slots ([`engine`]).
//!
//! Translated code holds no absolute addresses: it reaches the CPU state through the pinned register and
//! helpers, slots and caches through words in the state ([`layout`]).

mod codebuf;
mod compile;
mod direct;
mod engine;
mod faults;
mod frame;
pub mod layout;
mod liveness;
pub mod lower;
mod options;
mod region;
mod runtime;
mod store;

pub use compile::host_isa;
pub use engine::{Engine, JitStats};
pub use options::{JitOptions, OptLevel};
pub use region::{Block, Region};
pub use store::CodeCache;

/// Why the translator could not be set up or a region could not be translated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host CPU is not one that Cranelift can generate code for here.
    #[error("host not supported by the code generator: {0}")]
    Host(String),
    /// The code buffer could not be mapped.
    #[error("code buffer of {bytes} bytes: {source}")]
    CodeBuffer {
        /// Size asked for.
        bytes: usize,
        /// What the host said.
        source: std::io::Error,
    },
    /// The code buffer is full; all translations are dropped and made anew.
    #[error("code buffer full")]
    CodeBufferFull,
    /// Cranelift refused a function.
    #[error("region at {rip:#x}: {reason}")]
    Compile {
        /// Region entry.
        rip: u64,
        /// Cranelift's words.
        reason: String,
    },
}
