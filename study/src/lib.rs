//! Studies: which programs, which SEV modes and which latencies, as a file; the runs that this makes; their results on disk,
//! whatever happens in between; and tables and figures of them.
//!
//! A study file ([`spec`]) is planned into runs ([`plan`]), each with a key that names everything its counts depend on. A run
//! is a child process `sevlab run` ([`exec`]), so that nothing that happens in it reaches the others. Results are lines of a
//! file that survives a kill at any moment ([`store`]). Runs that have a line are not made again.

pub mod bench;
pub mod csv;
pub mod exec;
pub mod guard;
pub mod local;
pub mod numbers;
pub mod os;
pub mod plan;
pub mod progress;
pub mod record;
pub mod report;
pub mod slurm;
pub mod spec;
pub mod store;
pub mod table;

mod error;

pub use error::Error;

#[cfg(test)]
mod tests;
