//! The slow reference: a plain full simulation of every access, to hold `--cache hierarchy` against.
//!
//! The memory controller and the processor simulate caches and TLBs behind filters that let most accesses pass without a look;
//! what they count has to be what a simulation without filters counts. This is that simulation, written from the definition
//! (`docs/model.md`) and not from the code: every access looks into every structure that the definition names, in sets that are
//! vectors. It is about a hundred times slower, and short.
//!
//! It is driven by the interpreter's trace ([`Event`]). From that it takes which accesses there are and what page tables hold;
//! which of it any TLB, walk cache or cache knows it finds out itself. It decodes instructions itself to count their operands,
//! and can walk page tables itself ([`walk::Tables`]). What it has in common with the code under test is the configuration
//! ([`sevlab_memctl::model`]) alone.

pub mod array;
pub mod caches;
pub mod counts;
pub mod dram;
pub mod operands;
pub mod prefetch;
pub mod sim;
pub mod tlb;
pub mod walk;

pub use counts::Counts;
pub use sim::{Event, Reference};
