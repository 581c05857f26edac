//! Benchmarks of sevlab.
