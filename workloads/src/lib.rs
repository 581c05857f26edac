//! Guest programs; see the binaries.
