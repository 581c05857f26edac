//! Random instructions on the host processor, the interpreter and the translator, compared.
//!
//! A [`case::Case`] is a short sequence of instructions with everything it starts from. [`generate`] makes hostile ones,
//! drawing on the processor's instruction table so that every row gets its turn; [`native`] runs a case on the host's own
//! processor, [`guest`] on the interpreter and on the translator; [`check`] compares what they leave behind, with what
//! the manuals leave undefined taken out ([`masks`]) and what can't be the same by nature compared in its structure
//! ([`policy`]). [`shrink`] cuts a difference down, [`text`] is its file format, [`drive`] runs many of them on worker
//! processes. `docs/difftest.md` is the user's page.

pub mod case;
pub mod check;
pub mod coverage;
pub mod drive;
pub mod forms;
pub mod generate;
pub mod guest;
pub mod host;
pub mod known;
pub mod layout;
pub mod masks;
pub mod native;
pub mod outcome;
pub mod policy;
pub mod random;
pub mod report;
pub mod rig;
pub mod shared;
pub mod shrink;
pub mod text;
