//! The interpreter and the translator as engines: one vCPU in flat, unencrypted memory each.
#![allow(unsafe_code)] // reads and sets the host's MXCSR

use crate::case::{Case, END, X87};
use crate::layout::{CODE, CODE_PAGES, MEMORY, PAGE, PAGES, READ_ONLY};
use crate::native::{unwatch, watch};
use crate::outcome::{End, Outcome};
use sevlab_arch::{Gpa, Spa};
use sevlab_cpu::state::{CpuState, Lane};
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{SevMode, Stop, Vcpu, VcpuConfig, interp};
use sevlab_jit::{Engine, JitOptions, OptLevel};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, HostOptions, MemCtl};
use std::sync::Arc;

const ROOT: u64 = 0x1000;
/// Frame of the first code page; the data pages follow behind the code.
const FRAMES: u64 = 0x10_0000;
const SIZE: u64 = 2 << 20;
/// Blocks that the interpreter may run before a case counts as endless.
const BUDGET: u64 = 100_000;

/// The translator with every optimisation off.
#[must_use]
pub fn options_off() -> JitOptions {
    JitOptions {
        code_bytes: 8 << 20,
        ..JitOptions::all_off()
    }
}

/// The translator with everything on, in the foreground.
#[must_use]
pub fn options_on() -> JitOptions {
    JitOptions {
        threshold: 1,
        opt_level: OptLevel::Speed,
        direct: 0,
        background: false,
        code_bytes: 8 << 20,
        ..JitOptions::default()
    }
}

/// Copies of the guest's own instructions, from the second run of a block on, and the interpreter for what can't be copied.
#[must_use]
pub fn options_direct() -> JitOptions {
    JitOptions {
        threshold: u32::MAX,
        direct: 1,
        background: false,
        code_bytes: 8 << 20,
        ..JitOptions::default()
    }
}

/// One vCPU and what it runs under.
pub struct Guest {
    vcpu: Box<Vcpu>,
    engine: Option<Engine>,
    code: (u64, Vec<u8>),
    host_mxcsr: u32,
}

fn table_entry(mem: &MemCtl, va: u64, level: u32, table: u64) -> (Spa, u64) {
    let at = Spa(table + (va >> (12 + 9 * level) & 511) * 8);
    let e = mem
        .read_u64(Domain::Shared, at)
        .expect("tables are in memory");
    (at, e)
}

fn map(mem: &MemCtl, next: &mut u64, va: u64, frame: u64, bits: u64) {
    let mut table = ROOT;
    for level in (1..4).rev() {
        let (at, mut e) = table_entry(mem, va, level, table);
        if e == 0 {
            e = *next | 7;
            *next += PAGE;
            mem.write_u64(Domain::Shared, at, e)
                .expect("tables are in memory");
        }
        table = e & 0xf_ffff_f000;
    }
    let (at, _) = table_entry(mem, va, 0, table);
    mem.write_u64(Domain::Shared, at, frame | bits)
        .expect("tables are in memory");
}

impl Guest {
    /// A vCPU under the interpreter, or under a translator with these options.
    ///
    /// # Errors
    /// The host gives no memory, or can't run translated code.
    pub fn new(options: Option<JitOptions>) -> Result<Self, Box<dyn std::error::Error>> {
        let mut host = HostOptions::default();
        host.view = options.as_ref().is_some_and(|o| o.view && o.direct != 0);
        let config = Config {
            size: SIZE,
            cipher: CipherKind::Aes128Xex,
            cache: CacheMode::Page,
            resident: None,
            tweak_seed: 1,
            hierarchy: None,
            cores: 1,
            snp: false,
        };
        let mem = MemCtl::with_options(config, &host)?;
        let config = VcpuConfig {
            mode: SevMode::Off,
            ..VcpuConfig::default()
        };
        let mut vcpu = Vcpu::new(Arc::clone(&mem), config);
        for page in 0..SIZE / PAGE {
            mem.zero_page(Domain::Shared, Spa(page * PAGE))?;
        }
        let mut next = ROOT + PAGE;
        let (user, no_execute) = (5, 1 << 63);
        for p in 0..CODE_PAGES {
            map(&mem, &mut next, CODE + p * PAGE, FRAMES + p * PAGE, user);
        }
        for (n, va) in PAGES.into_iter().enumerate() {
            let frame = FRAMES + (CODE_PAGES + n as u64) * PAGE;
            let bits = if va == READ_ONLY { user } else { user | 2 };
            map(&mem, &mut next, va, frame, bits | no_execute);
        }
        vcpu.set_cr3(ROOT);
        let len = (CODE_PAGES * PAGE) as usize;
        vcpu.write_gpa(Gpa(FRAMES), false, &vec![END; len])
            .map_err(|s| format!("{s:?}"))?;
        Ok(Self {
            vcpu,
            engine: options.map(Engine::new).transpose()?,
            code: (CODE, Vec::new()),
            host_mxcsr: mxcsr_now(),
        })
    }

    /// Puts a case's code in place; what was decoded or translated before is dropped.
    fn put_code(&mut self, case: &Case) -> Result<(), Stop> {
        if self.code.0 == case.at && self.code.1 == case.code() {
            return Ok(());
        }
        let (at, old) = (self.code.0, self.code.1.len());
        self.vcpu
            .write_gpa(Gpa(FRAMES + at - CODE), false, &vec![END; old])?;
        let room = (CODE + CODE_PAGES * PAGE - case.at) as usize;
        let code = &case.code()[..case.code().len().min(room)];
        self.vcpu
            .write_gpa(Gpa(FRAMES + case.at - CODE), false, code)?;
        self.code = (case.at, case.code().to_vec());
        self.code.1.truncate(room);
        Ok(())
    }

    fn put_state(&mut self, case: &Case, memory: &[u8]) -> Result<(), Stop> {
        let data = Spa(FRAMES + CODE_PAGES * PAGE);
        self.vcpu
            .mem
            .write(Domain::Shared, data, memory)
            .map_err(Stop::Host)?;
        let fresh = CpuState::process();
        let (r, s) = (&case.regs, &mut self.vcpu.state);
        s.gpr = r.gpr;
        s.rip = case.at;
        s.set_rflags(r.flags);
        s.seg = fresh.seg;
        s.seg[4].base = r.fs;
        s.seg[5].base = r.gs;
        for (n, y) in r.ymm.iter().enumerate() {
            s.xmm[n] = Lane([y[0], y[1]]);
            s.ymmh[n] = Lane([y[2], y[3]]);
        }
        r.x87.to_image(&mut s.fx.0);
        s.retired = 0;
        Ok(())
    }

    /// Runs a case once on memory that begins as `memory`.
    pub fn run(&mut self, case: &Case, memory: &[u8]) -> Outcome {
        let placed = self
            .put_code(case)
            .and_then(|()| self.put_state(case, memory));
        if let Err(stop) = placed {
            return self.outcome(End::Other(format!("placing the case: {stop:?}")));
        }
        mxcsr::load(&mut self.vcpu.state, case.regs.mxcsr);
        let stop = match &mut self.engine {
            None => match interp::run_blocks(&mut self.vcpu, BUDGET) {
                Err(stop) => stop,
                Ok(never) => match never {},
            },
            Some(engine) => {
                watch(&self.vcpu.state.exit_request);
                let stop = engine.run(&mut self.vcpu);
                unwatch(&self.vcpu.state.exit_request);
                stop
            }
        };
        self.vcpu.state.mxcsr = mxcsr::live(&self.vcpu.state);
        let host = self.host_mxcsr;
        set_mxcsr(host);
        let end = match stop {
            Stop::Exception(e) => End::Exception {
                vector: e.vector,
                error: e.error.unwrap_or(0),
                address: e.cr2.map_or(0, |va| va.0),
            },
            Stop::Syscall => End::Syscall,
            Stop::Intercept(i) => End::Intercept(format!("{:?}", i.kind), i.len),
            Stop::Requested | Stop::Budget => End::Endless,
            other => End::Other(format!("{other:?}")),
        };
        self.outcome(end)
    }

    /// Guest instructions that the last run retired.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.vcpu.state.retired
    }

    /// Guest instructions that the translator left to the interpreter so far, and regions it refused.
    #[must_use]
    pub fn interpreted(&self) -> (u64, u64) {
        self.engine
            .as_ref()
            .map_or((0, 0), |e| (e.stats().interpreted, e.stats().refused))
    }

    fn outcome(&self, end: End) -> Outcome {
        let mut memory = vec![0; MEMORY];
        let data = Spa(FRAMES + CODE_PAGES * PAGE);
        let read = self.vcpu.mem.read(Domain::Shared, data, &mut memory);
        let end = match read {
            Ok(()) => end,
            Err(e) => End::Other(format!("reading memory: {e}")),
        };
        let s = &self.vcpu.state;
        Outcome {
            end,
            rip: s.rip,
            gpr: s.gpr,
            flags: s.rflags(),
            fs: s.seg[4].base,
            gs: s.seg[5].base,
            selectors: [3, 0, 4, 5].map(|n| s.seg[n].selector),
            mxcsr: s.mxcsr,
            ymm: std::array::from_fn(|n| {
                let (l, h) = (s.xmm[n].0, s.ymmh[n].0);
                [l[0], l[1], h[0], h[1]]
            }),
            x87: X87::from_image(&s.fx.0),
            memory,
        }
    }
}

fn mxcsr_now() -> u32 {
    let mut v = 0u32;
    // SAFETY: stores four bytes to a live local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut v, options(nostack)) };
    v
}

fn set_mxcsr(v: u32) {
    // SAFETY: loads what `mxcsr_now` gave.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const v, options(nostack)) };
}
