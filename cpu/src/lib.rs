//! The processor: state, modes, MMU and TLB, exceptions, instruction semantics, interpreter, world switch.
//!
//! A guest instruction becomes an [`insn::Insn`] once ([`decode`]); its meaning is written once in
//! [`sem`], generic over [`builder::Builder`]. The interpreter implements that trait by computing,
//! the translator (another crate) by emitting code. This crate does not know that a translator exists.

pub mod builder;
pub mod code;
pub mod decode;
pub mod flags;
pub mod insn;
pub mod interp;
pub mod mmu;
pub mod model;
pub mod profile;
pub mod sem;
pub mod smp;
pub mod state;
pub mod stop;
pub mod svm;
pub mod table;
pub mod thunk;
pub mod vcpu;

pub use builder::Builder;
pub use flags::{Cond, Flag, FlagMask, FlagOp};
pub use insn::{Insn, MemRef, Op, Operand, Width};
pub use mmu::{Access, Translation};
pub use profile::Profile;
pub use state::CpuState;
pub use stop::{Exception, Intercept, Stop};
pub use vcpu::{SevMode, Vcpu, VcpuConfig};
