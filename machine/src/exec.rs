#![allow(unsafe_code)] // MXCSR of the host thread
//! What runs guest code between two stops: the interpreter, or the translator on top of it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use sevlab_cpu::model::costs::CostTable;
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{Stop, Vcpu, interp};
use sevlab_jit::JitStats;
use sevlab_memctl::model::CoreModel;

use crate::config::{CacheMode, Engine, MachineConfig};
use crate::error::Error;
use crate::kernel::Runner;

/// An execution engine.
pub(crate) enum Exec {
    /// The interpreter alone.
    Interpreter,
    /// The translator.
    Jit(Box<sevlab_jit::Engine>),
}

impl Exec {
    /// The engine that the configuration asks for.
    pub(crate) fn new(config: &MachineConfig) -> Result<Self, Error> {
        let uncached = config.cache == CacheMode::None && config.sev.encrypted();
        let modelled = config.model.is_some();
        // With a model a turn ends at an instruction count, which needs no budget.
        let (engine, budget) = (&config.engine, config.in_turns() && !modelled);
        Ok(match engine {
            Engine::Interpreter => Self::Interpreter,
            Engine::Jit(options) => {
                let options = sevlab_jit::JitOptions {
                    uncached,
                    budget,
                    lines: modelled,
                    // Five times the host code has to be made then.
                    threshold: match options.threshold {
                        1 => 1,
                        n if modelled => n.saturating_mul(2),
                        n => n,
                    },
                    groups: options.groups && config.resident.is_none(),
                    trail: config
                        .model
                        .as_ref()
                        .is_some_and(|m| m.core.model == CoreModel::Overlap),
                    costs: config.model.as_deref().map(|m| Arc::new(CostTable::new(m))),
                    background: options.background && !config.deterministic,
                    ..options.clone()
                };
                Self::Jit(Box::new(sevlab_jit::Engine::new(options)?))
            }
        })
    }

    /// What must be held while the host process is cloned.
    pub(crate) fn quiet(&self) -> Option<Arc<Mutex<()>>> {
        match self {
            Self::Interpreter => None,
            Self::Jit(engine) => Some(engine.quiet()),
        }
    }

    /// The engine ends, and its thread with it.
    pub(crate) fn close(self) {
        if let Self::Jit(engine) = self {
            engine.close();
        }
    }

    fn run_guest(&mut self, vcpu: &mut Vcpu) -> Stop {
        let mem = Arc::clone(&vcpu.mem);
        // It is alone in guest code, and asks the controller at every miss.
        let turn = vcpu.model.is_some() && vcpu.cluster().in_turns();
        let _hold = turn.then(|| mem.hold());
        with_guest_mxcsr(vcpu, |vcpu| match self {
            Self::Interpreter if vcpu.model.is_some() => loop {
                if let Err(stop) = interp::run_row(vcpu) {
                    break stop;
                }
            },
            Self::Interpreter => loop {
                vcpu.state.budget = vcpu.state.budget.wrapping_sub(1);
                if vcpu.state.budget < 0 {
                    break Stop::Budget;
                }
                if let Err(stop) = interp::run_row(vcpu) {
                    break stop;
                }
            },
            Self::Jit(engine) => engine.run(vcpu),
        })
    }

    /// The program has ended: what was translated of it may be kept for the next run.
    pub(crate) fn save(&mut self, vcpu: &Vcpu) {
        if let Self::Jit(engine) = self {
            engine.save(vcpu);
        }
    }

    /// The translator's counts, if there is one.
    pub(crate) fn jit_stats(&self) -> Option<JitStats> {
        match self {
            Self::Interpreter => None,
            Self::Jit(engine) => Some(engine.stats()),
        }
    }
}

impl Runner for Exec {
    fn step(&mut self, vcpu: &mut Vcpu) -> Result<(), Stop> {
        with_guest_mxcsr(vcpu, interp::step)
    }

    fn run(&mut self, vcpu: &mut Vcpu) -> Stop {
        self.run_guest(vcpu)
    }

    fn forked(&mut self, vcpu: &mut Vcpu) {
        if let Self::Jit(engine) = self
            && let Err(e) = engine.forked()
        {
            // The code buffer is the original's, which goes on using it.
            tracing::error!("the clone has no code buffer of its own, so it interprets: {e}");
            vcpu.interp.forget_translated();
            *self = Self::Interpreter;
        }
    }

    fn program(&mut self, vcpu: &mut Vcpu, exe: &Path) {
        if let Self::Jit(engine) = self {
            engine.program(vcpu, exe);
        }
    }
}

/// Runs `f` with the guest's MXCSR in the host's register.
fn with_guest_mxcsr<R>(vcpu: &mut Vcpu, f: impl FnOnce(&mut Vcpu) -> R) -> R {
    let host = read_mxcsr();
    let guest = vcpu.state.mxcsr;
    mxcsr::load(&mut vcpu.state, guest);
    let result = f(vcpu);
    vcpu.state.mxcsr = mxcsr::live(&vcpu.state);
    write_mxcsr(host);
    result
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
