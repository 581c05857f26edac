//! The protocol's tests, in one binary.

mod common;
mod malformed;
mod msr;
mod psc;
mod round_trip;
