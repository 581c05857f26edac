//! Guest programs; see the binaries. What they share is here: sections of checks with one result line each, and system
//! calls that say which of them failed.

pub mod sections;
pub mod sys;
