#![allow(unsafe_code)] // MXCSR of the host thread
//! What runs guest code between two stops: the interpreter, or the translator on top of it.

use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{Stop, Vcpu, interp};
use sevlab_jit::JitStats;

use crate::config::Engine;
use crate::error::Error;

/// An execution engine.
pub(crate) enum Exec {
    /// The interpreter alone.
    Interpreter,
    /// The translator.
    Jit(Box<sevlab_jit::Engine>),
}

impl Exec {
    /// `uncached`: most of the guest's memory has no host address.
    pub(crate) fn new(engine: &Engine, uncached: bool) -> Result<Self, Error> {
        Ok(match engine {
            Engine::Interpreter => Self::Interpreter,
            Engine::Jit(options) => {
                let options = sevlab_jit::JitOptions {
                    uncached,
                    ..options.clone()
                };
                Self::Jit(Box::new(sevlab_jit::Engine::new(options)?))
            }
        })
    }

    /// Runs the guest until something stops it.
    pub(crate) fn run(&mut self, vcpu: &mut Vcpu) -> Stop {
        let host = read_mxcsr();
        let guest = vcpu.state.mxcsr;
        mxcsr::load(&mut vcpu.state, guest);
        let stop = match self {
            Self::Interpreter => loop {
                if let Err(stop) = interp::run_block(vcpu) {
                    break stop;
                }
            },
            Self::Jit(engine) => engine.run(vcpu),
        };
        vcpu.state.mxcsr = mxcsr::live(&vcpu.state);
        write_mxcsr(host);
        stop
    }

    /// The translator's counts, if there is one.
    pub(crate) fn jit_stats(&self) -> Option<JitStats> {
        match self {
            Self::Interpreter => None,
            Self::Jit(engine) => Some(engine.stats()),
        }
    }
}

fn read_mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores the register to a live local.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    value
}

fn write_mxcsr(value: u32) {
    // SAFETY: loads what `read_mxcsr` has read from a live local.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly, preserves_flags));
    }
}
