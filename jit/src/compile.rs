//! The compiler: regions in, code addresses out, on a thread of its own or in the foreground.
#![allow(unsafe_code)] // reads the thread's clock, makes a zeroed table

use crate::codebuf::CodeBuf;
use crate::faults::Sites;
use crate::frame;
use crate::lower;
use crate::region::Region;
use crate::runtime;
use crate::{Error, JitOptions, OptLevel};
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{CompiledCode, Context};
use cranelift_frontend::FunctionBuilderContext;
use sevlab_cpu::Insn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Instructions that helpers run, at most, before everything is translated anew.
const MOST_STEPS: u32 = 1 << 20;
/// Exit slots in the slot table.
pub(crate) const SLOTS: usize = 1 << 20;

/// A region's translation.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub entry: u64,
    /// Request number, to tell it from a later request for the same address.
    pub ticket: u64,
    pub result: Result<Code, Error>,
    pub time: Duration,
}

/// Where translated code is and what it can leave to.
#[derive(Debug)]
pub(crate) struct Code {
    /// Where it is entered.
    pub address: usize,
    pub bytes: usize,
    /// Host instructions, if they are counted.
    pub instructions: usize,
    pub slot_base: u32,
    /// Guest addresses of the exit slots from `slot_base` on.
    pub targets: Vec<u64>,
    pub step_base: u32,
    /// Instructions that helpers run, from `step_base` on.
    pub steps: Vec<Insn>,
    /// Where it may fault; offsets are from `begin`.
    pub sites: Sites,
    /// Address of its first byte, which `address` may be behind.
    pub begin: usize,
}

/// The exit slot table: code addresses that translated code jumps through.
pub(crate) struct Slots {
    table: Box<[AtomicU64]>,
    next: AtomicU64,
    stub: u64,
}

impl Slots {
    fn new(stub: usize) -> Self {
        // Untouched entries cost no memory: the host gives zeroed pages as they are touched.
        let table = Box::new_zeroed_slice(SLOTS);
        // SAFETY: all zeros is a valid `AtomicU64`.
        let table: Box<[AtomicU64]> = unsafe { table.assume_init() };
        Self {
            table,
            next: AtomicU64::new(0),
            stub: stub as u64,
        }
    }
    pub(crate) fn base(&self) -> u64 {
        self.table.as_ptr() as u64
    }
    /// Points slot `n` at `code`.
    pub(crate) fn link(&self, n: u32, code: usize) {
        self.table[n as usize].store(code as u64, Ordering::Release);
    }
    /// Points slot `n` back at the stub that returns to the dispatcher.
    pub(crate) fn unlink(&self, n: u32) {
        self.table[n as usize].store(self.stub, Ordering::Release);
    }
    /// The number of the slot that is taken next.
    pub(crate) fn peek(&self) -> u32 {
        self.next.load(Ordering::Relaxed) as u32
    }
    fn take(&self, count: usize) {
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed) as usize;
        for s in &self.table[first..first + count] {
            s.store(self.stub, Ordering::Relaxed);
        }
    }
    /// The next slot taken is `next`: those below belong to code that will be taken in, or are given up.
    pub(crate) fn reset(&self, next: u32) {
        self.next.store(u64::from(next), Ordering::Relaxed);
    }
}

/// Code shared between the compile thread and the dispatcher.
pub(crate) struct Shared {
    pub code: CodeBuf,
    pub slots: Slots,
    /// `extern "sysv64" fn(*mut CpuState, code) -> i64`: enters translated code.
    pub enter: usize,
    /// Number of the next instruction that a helper is to run.
    pub next_step: AtomicU32,
}

/// One compiler: Cranelift's contexts, reused from region to region.
pub(crate) struct Compiler {
    isa: OwnedTargetIsa,
    options: JitOptions,
    context: Context,
    builder: FunctionBuilderContext,
    shared: Arc<Shared>,
}

fn make_isa(options: &JitOptions) -> Result<OwnedTargetIsa, Error> {
    let mut flags = settings::builder();
    let mut set = |k: &str, v: &str| {
        flags
            .set(k, v)
            .map_err(|e| Error::Host(format!("{k}={v}: {e}")))
    };
    set("enable_pinned_reg", "true")?;
    // Tail calls rely on frame pointers.
    set("preserve_frame_pointers", "true")?;
    set("unwind_info", "false")?;
    set(
        "enable_verifier",
        if cfg!(debug_assertions) {
            "true"
        } else {
            "false"
        },
    )?;
    set("enable_probestack", "false")?;
    set(
        "opt_level",
        match options.opt_level {
            OptLevel::None => "none",
            OptLevel::Speed => "speed",
        },
    )?;
    let builder = cranelift_native::builder().map_err(|e| Error::Host(e.to_owned()))?;
    builder
        .finish(settings::Flags::new(flags))
        .map_err(|e| Error::Host(e.to_string()))
}

/// The instruction-set extensions of this host that generated code uses, by Cranelift's names: code made on hosts that differ in
/// them differs.
pub fn host_isa() -> Result<Vec<String>, Error> {
    let isa = make_isa(&JitOptions::default())?;
    let on = |value: &settings::Value| value.as_bool() == Some(true);
    let flags = isa.isa_flags();
    Ok(flags
        .iter()
        .filter(|value| on(value))
        .map(|value| value.name.to_owned())
        .collect())
}

/// For each part of the code, the source location that it belongs to, where that changes: offset and number.
fn starts_of_sites(compiled: &CompiledCode) -> Vec<(u32, u32)> {
    let mut starts: Vec<(u32, u32)> = Vec::new();
    for range in compiled.buffer.get_srclocs_sorted() {
        let site = range.loc.bits();
        if !range.loc.is_default() && starts.last().is_none_or(|s| s.1 != site) {
            starts.push((range.start, site));
        }
    }
    starts
}

/// Where a function's code is, where it is entered, and its bytes.
struct Placed {
    address: usize,
    entry: usize,
    bytes: usize,
}

/// Compiles the function in `context`; with `shared_frame` it is entered and left as [`frame`] says.
fn compile_function(
    isa: &OwnedTargetIsa,
    context: &mut Context,
    code: &CodeBuf,
    rip: u64,
    shared_frame: bool,
) -> Result<Placed, Error> {
    let compiled = context
        .compile(isa.as_ref(), &mut ControlPlane::default())
        .map_err(|e| Error::Compile {
            rip,
            reason: format!("{:?}", e.inner),
        })?;
    if let Some(r) = compiled.buffer.relocs().first() {
        return Err(Error::Compile {
            rip,
            reason: format!("needs the relocation {r:?}"),
        });
    }
    let shared;
    let (bytes, entry) = if shared_frame {
        shared = frame::share(compiled).ok_or_else(|| Error::Compile {
            rip,
            reason: "its stack frame can't be shared".into(),
        })?;
        (shared.0.as_slice(), shared.1)
    } else {
        (compiled.code_buffer(), 0)
    };
    let address = code.append(bytes)?;
    Ok(Placed {
        address,
        entry: address + entry,
        bytes: bytes.len(),
    })
}

impl Compiler {
    /// A compiler with a new code buffer.
    pub(crate) fn new(options: &JitOptions) -> Result<Self, Error> {
        let [enter, unlinked] = runtime::enter_and_unlinked(options.shared_frame);
        let shared = Arc::new(Shared {
            code: CodeBuf::new(options.code_bytes)?,
            slots: Slots::new(unlinked),
            enter,
            next_step: AtomicU32::new(0),
        });
        Self::again(options, shared)
    }

    /// A compiler for the code buffer of one that is gone.
    pub(crate) fn again(options: &JitOptions, shared: Arc<Shared>) -> Result<Self, Error> {
        Ok(Self {
            isa: make_isa(options)?,
            options: options.clone(),
            context: Context::new(),
            builder: FunctionBuilderContext::new(),
            shared,
        })
    }

    /// The code generator's settings, those of the host's processor among them.
    pub(crate) fn settings(&self) -> String {
        let values = self.isa.isa_flags();
        let values = values.iter().map(settings::Value::to_string);
        format!("{}{}", self.isa.flags(), values.collect::<String>())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Compiles one region.
    pub(crate) fn compile(&mut self, ticket: u64, region: &Region) -> Compiled {
        let start = thread_time();
        // A panic of the code generator costs one region, not the run.
        let attempt = std::panic::AssertUnwindSafe(|| self.try_compile(region));
        let result = std::panic::catch_unwind(attempt).unwrap_or_else(|_| {
            Err(Error::Compile {
                rip: region.entry(),
                reason: "the code generator panicked".into(),
            })
        });
        self.context.clear();
        Compiled {
            entry: region.entry(),
            ticket,
            result,
            time: thread_time().saturating_sub(start),
        }
    }

    fn try_compile(&mut self, region: &Region) -> Result<Code, Error> {
        // Only this compiler takes slots, so the number read here is still the next one below.
        let slot_base = self.shared.slots.peek();
        let step_base = self.shared.next_step.load(Ordering::Relaxed);
        if slot_base as usize + 4 * self.options.max_blocks > SLOTS || step_base > MOST_STEPS {
            return Err(Error::CodeBufferFull);
        }
        self.context.func.name = ir::UserFuncName::user(0, 0);
        let exits = lower::lower(
            &mut self.context.func,
            &mut self.builder,
            self.isa.as_ref(),
            &self.options,
            region,
            (slot_base, step_base),
        )?;
        let clif = self
            .options
            .dump_dir
            .as_ref()
            .map(|_| self.context.func.display().to_string());
        self.context.set_disasm(clif.is_some());
        let placed = compile_function(
            &self.isa,
            &mut self.context,
            &self.shared.code,
            region.entry(),
            self.options.shared_frame,
        )?;
        if let (Some(dir), Some(clif)) = (&self.options.dump_dir, clif) {
            let host = self
                .context
                .compiled_code()
                .and_then(|c| c.vcode.clone())
                .unwrap_or_default();
            dump(dir, region, placed.address, &clif, &host);
        }
        let compiled = self.context.compiled_code();
        let instructions = match compiled.filter(|_| self.options.count_host) {
            Some(compiled) => iced_x86::Decoder::new(64, compiled.code_buffer(), 0)
                .iter()
                .count(),
            None => 0,
        };
        let starts = match self.context.compiled_code() {
            Some(compiled) if !exits.sites.is_empty() => starts_of_sites(compiled),
            _ => Vec::new(),
        };
        self.shared.slots.take(exits.targets.len());
        self.shared
            .next_step
            .store(step_base + exits.steps.len() as u32, Ordering::Relaxed);
        Ok(Code {
            address: placed.entry,
            bytes: placed.bytes,
            instructions,
            slot_base,
            targets: exits.targets,
            step_base,
            steps: exits.steps,
            sites: Sites {
                starts,
                sites: exits.sites,
            },
            begin: placed.address,
        })
    }

    /// The CLIF of a region, for tests and for reading.
    pub(crate) fn clif(&mut self, region: &Region) -> Result<String, Error> {
        self.context.clear();
        lower::lower(
            &mut self.context.func,
            &mut self.builder,
            self.isa.as_ref(),
            &self.options,
            region,
            (0, 0),
        )?;
        let text = self.context.func.display().to_string();
        self.context.clear();
        Ok(text)
    }
}

/// Writes a region's guest instructions, CLIF and host code to a file of its own; a failure is only logged.
fn dump(dir: &std::path::Path, region: &Region, address: usize, clif: &str, host: &str) {
    use std::fmt::Write as _;
    let mut text = String::new();
    for b in &region.blocks {
        let _ = writeln!(text, "block {:#x}", b.rip);
        for i in &b.insns {
            let mut d = iced_x86::Decoder::with_ip(64, &i.bytes[..i.len as usize], i.rip, 0);
            let _ = writeln!(text, "  {:#x}  {}", i.rip, d.decode());
        }
    }
    let _ = write!(text, "\n{clif}\nhost code at {address:#x}\n{host}");
    let path = dir.join(format!("{:x}.txt", region.entry()));
    if let Err(e) = std::fs::write(&path, text) {
        tracing::warn!(target: "sevlab::jit", path = %path.display(), error = %e, "region not dumped");
    }
}

/// Processor time of this thread so far: what a compilation costs, however busy the machine is.
fn thread_time() -> Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a live local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
