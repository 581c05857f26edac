//! Guest programs (see the binaries), and the manifest that names them for studies.
//!
//! [`manifest`] says which workloads there are, in which sizes, and what they print; [`resolve`] finds their programs on
//! this machine and makes their inputs ([`inputs`]). `guest` is what the SPEC-like programs share, [`sections`] and
//! [`sys`] what the test programs share.

pub mod guest;
pub mod inputs;
pub mod manifest;
pub mod resolve;
pub mod sections;
pub mod sys;
