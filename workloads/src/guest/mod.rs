//! What the SPEC-like programs share: their command line, random numbers, checksums, and elementary functions that give
//! the same bits on every processor. Nothing but the standard library.

mod args;
mod hash;
mod math;
mod random;
mod sum;

pub use args::{Guest, Param, Values};
pub use hash::{Map, Set};
pub use math::{cos_sin, exp, ln};
pub use random::Random;
pub use sum::Sum;
