//! A small machine: identity-mapped pages around one vCPU, a state to start from, and three ways to run.
#![allow(unsafe_code)] // the watchdog writes the exit request of a vCPU that runs
#![allow(dead_code)] // each test file uses its part

use sevlab_arch::{Asid, Gpa, Spa, Va};
use sevlab_cpu::model::{Cause, costs::CostTable};
use sevlab_cpu::state::{CpuState, Lane};
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{SevMode, Stop, Vcpu, VcpuConfig, interp};
use sevlab_jit::{Engine, JitOptions};
use sevlab_memctl::model::{CoreModel, Model};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, HostOptions, MemCtl, MemoryKey};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const PAGE: u64 = 0x1000;
/// Code, readable, writable and executable.
pub const CODE: u64 = 0x20_0000;
pub const CODE_PAGES: u64 = 3;
/// The same frames, for data accesses.
pub const ALIAS: u64 = 0x30_0000;
/// Writable data.
pub const DATA: u64 = 0x40_0000;
pub const DATA_PAGES: u64 = 4;
/// A page that can only be read, directly behind the data.
pub const READ_ONLY: u64 = DATA + DATA_PAGES * PAGE;
/// A page that is not mapped, behind that one.
pub const UNMAPPED: u64 = READ_ONLY + PAGE;
/// One more writable page, behind the unmapped one.
pub const ISLAND: u64 = UNMAPPED + PAGE;
pub const STACK: u64 = 0x50_0000;
pub const STACK_PAGES: u64 = 2;
/// Many more writable pages, which no outcome shows; only with [`Kind::Scarce`].
pub const WIDE: u64 = 0x60_0000;
pub const WIDE_PAGES: u64 = 256;
/// What FS points at.
pub const FS_BASE: u64 = DATA + 0x1000;

const ROOT: u64 = 0x1000;
const SIZE: u64 = 8 << 20;
/// Frames that nothing else uses.
const SPARE: u64 = SIZE - 8 * PAGE;
const ASID: Asid = Asid(3);

/// Frames whose contents are part of a result.
pub const WATCHED: [(u64, u64); 4] = [
    (CODE, CODE_PAGES),
    (DATA, DATA_PAGES + 1),
    (ISLAND, 1),
    (STACK, STACK_PAGES),
];

/// xorshift64*.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut r = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            r.next();
        }
        r
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    /// A value that likes the edges.
    pub fn value(&mut self) -> u64 {
        let v = self.next();
        match self.below(8) {
            0 => v,
            1 => v & 0xff,
            2 => 0u64.wrapping_sub(v & 0xf),
            3 => 1 << (v & 63),
            4 => (1u64 << (v & 63)).wrapping_sub(1),
            5 => v & 0xffff_ffff,
            6 => self.pick(&[
                0,
                1,
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                u64::MAX >> 1,
                1 << 63,
            ]),
            _ => v >> (v & 63),
        }
    }
    /// A quadword of a vector register: integers, and floating-point numbers of all kinds.
    pub fn lane(&mut self) -> u64 {
        let single = |r: &mut Self| -> u32 {
            match r.below(10) {
                0 => r.pick(&[0, 0x8000_0000, 0x7f80_0000, 0xff80_0000]),
                1 => 0x7fc0_0000 | r.next() as u32 & 0x803f_ffff,
                2 => 0x7f80_0001 | r.next() as u32 & 0x803f_ffff,
                3 => r.next() as u32 & 0x807f_ffff,
                4 | 5 => (r.below(4000) as f32 / 8.0 - 250.0).to_bits(),
                6 => (r.below(40) as f32).to_bits(),
                _ => 0x3000_0000 + (r.next() as u32 & 0x9fff_ffff),
            }
        };
        match self.below(6) {
            0 => self.value(),
            1 => self.next(),
            2 => u64::from(single(self)) << 32 | u64::from(single(self)),
            3 => (self.below(4000) as f64 / 16.0 - 125.0).to_bits(),
            4 => match self.below(5) {
                0 => self.pick(&[0, 1 << 63, 0x7ff << 52, 0xfff << 52]),
                1 => 0x7ff8 << 48 | self.next() & 0x8007_ffff_ffff_ffff,
                2 => (0x7ff << 52 | 1) | self.next() & 0x8007_ffff_ffff_ffff,
                3 => self.next() & 0x800f_ffff_ffff_ffff,
                _ => (self.below(1 << 40) as f64).to_bits(),
            },
            _ => (0x3e00 << 48) + (self.next() & 0x83ff_ffff_ffff_ffff),
        }
    }
}

/// Where each pointer register starts. The generator computes displacements from these.
pub fn pointer(r: usize) -> Option<u64> {
    Some(match r {
        3 => DATA + 0x800,
        4 => STACK + 0x1800,
        5 => DATA + 0x1800,
        6 => DATA + 0x240,
        7 => DATA + 0x2300,
        13 => READ_ONLY - 0x100,
        14 => ISLAND + 0x80,
        _ => return None,
    })
}
/// The register that holds a small index.
pub const INDEX: usize = 12;
/// The register that counts loops.
pub const COUNTER: usize = 15;

/// MXCSR values that the data page begins with, for LDMXCSR.
pub const MXCSRS: [u32; 6] = [0x1f80, 0x3f80, 0x5f80, 0x7f80, 0x9fc0, 0x1d80];

/// What a program starts from.
#[derive(Clone)]
pub struct Start {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub xmm: [[u64; 2]; 16],
    pub ymmh: [[u64; 2]; 16],
    pub mxcsr: u32,
    pub fx: [u8; 512],
    pub code: Vec<u8>,
    pub data: Vec<u8>,
    /// The program may see flags that instructions leave undefined.
    pub undefined: bool,
}

impl Start {
    /// The state that belongs to a seed.
    pub fn new(seed: u64, code: &[u8]) -> Self {
        let mut r = Rng::new(seed ^ 0x5eed);
        let mut gpr = [0; 16];
        for (n, v) in gpr.iter_mut().enumerate() {
            *v = pointer(n).unwrap_or_else(|| r.value());
        }
        gpr[INDEX] = r.below(33);
        gpr[COUNTER] = r.below(5);
        if r.one_in(2) {
            gpr[1] = r.below(70);
        }
        let xmm = std::array::from_fn(|_| [r.lane(), r.lane()]);
        let ymmh = std::array::from_fn(|_| [r.lane(), r.lane()]);
        let data_len = ((DATA_PAGES + 1) * PAGE) as usize;
        let mut data = Vec::with_capacity(data_len);
        while data.len() < data_len {
            let v = if r.one_in(3) { r.lane() } else { r.value() };
            data.extend_from_slice(&v.to_le_bytes());
        }
        for (n, v) in MXCSRS.iter().enumerate() {
            data[n * 4..n * 4 + 4].copy_from_slice(&v.to_le_bytes());
        }
        let mut fx = CpuState::process().fx.0;
        for st in 0..8 {
            // Normal numbers, exponent near the bias.
            let at = 32 + 16 * st;
            fx[at..at + 8].copy_from_slice(&(r.next() | 1 << 63).to_le_bytes());
            let e = (0x3ff0 + r.below(32) as u16) | (r.below(2) as u16) << 15;
            fx[at + 8..at + 10].copy_from_slice(&e.to_le_bytes());
        }
        // Half of the x87 stack is in use.
        fx[2..4].copy_from_slice(&(4u16 << 11).to_le_bytes());
        fx[4] = 0xf0;
        let mxcsr = if r.one_in(4) {
            r.pick(&MXCSRS[..5])
        } else {
            0x1f80
        };
        Self {
            gpr,
            flags: 0x202 | r.next() & sevlab_cpu::flags::ARITH,
            xmm,
            ymmh,
            mxcsr,
            fx,
            code: code.to_vec(),
            data,
            undefined: false,
        }
    }
}

/// What a run left behind.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    pub stop: Stop,
    pub gpr: [u64; 16],
    pub rip: u64,
    pub flags: u64,
    pub xmm: [[u64; 2]; 16],
    pub ymmh: [[u64; 2]; 16],
    pub mxcsr: u32,
    pub x87: Vec<u8>,
    pub bases: [u64; 2],
    pub retired: u64,
    /// The watched frames, in order.
    pub memory: Vec<u8>,
}

/// Which memory the guest has.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// No encryption.
    Plain,
    /// SEV, pages decrypted whole.
    Private,
    /// The same, with fewer pages held decrypted than [`WIDE`] has.
    Scarce,
    /// SEV, nothing ever held decrypted: no access has a host address.
    Uncached,
}

/// One vCPU and what it runs under.
pub struct Machine {
    // Stops before the vCPU goes.
    watchdog: Watchdog,
    pub engine: Option<Engine>,
    pub vcpu: Box<Vcpu>,
    /// Its engine copies blocks, whose flags are the host's where they are undefined.
    pub copies: bool,
    /// Blocks that the interpreter may run before a program counts as endless.
    pub budget: u64,
}

fn domain(kind: Kind) -> Domain {
    match kind {
        Kind::Plain => Domain::Shared,
        _ => Domain::Private(ASID),
    }
}

impl Machine {
    /// A machine that runs under the interpreter, or under a translator with these options.
    pub fn new(kind: Kind, options: Option<JitOptions>) -> Self {
        Self::with_model(kind, options, None)
    }

    /// As [`Machine::new`], a core of this model.
    pub fn with_model(kind: Kind, options: Option<JitOptions>, model: Option<Arc<Model>>) -> Self {
        let view = options.as_ref().is_some_and(|o| o.view);
        Self::with(kind, options, model, view)
    }

    /// As [`Machine::new`], with memory that can be accessed through a view or not, whatever the options say.
    pub fn with_view(kind: Kind, options: Option<JitOptions>, view: bool) -> Self {
        Self::with(kind, options, None, view)
    }

    fn with(
        kind: Kind,
        options: Option<JitOptions>,
        model: Option<Arc<Model>>,
        view: bool,
    ) -> Self {
        let mut host = HostOptions::default();
        host.view = view;
        let config = Config {
            size: SIZE,
            cipher: CipherKind::Aes128Xex,
            cache: match kind {
                _ if model.is_some() => CacheMode::Hierarchy,
                Kind::Uncached => CacheMode::None,
                _ => CacheMode::Page,
            },
            resident: (kind == Kind::Scarce).then_some(64),
            tweak_seed: 1,
            hierarchy: model.clone(),
            cores: 1,
            snp: false,
        };
        let mem = MemCtl::with_options(config, &host).expect("a few MiB");
        let key = MemoryKey::new(CipherKind::Aes128Xex, &[9; 16]).expect("16 bytes");
        mem.install_key(ASID, key).expect("a free ASID");
        let mode = if kind == Kind::Plain {
            SevMode::Off
        } else {
            SevMode::Sev
        };
        let mut vcpu = Vcpu::new(
            mem,
            VcpuConfig {
                asid: ASID,
                mode,
                ..VcpuConfig::default()
            },
        );
        let c = if mode.encrypted() {
            vcpu.c_bit_mask()
        } else {
            0
        };
        for page in 0..SIZE / PAGE {
            let at = Spa(page * PAGE);
            vcpu.mem.zero_page(domain(kind), at).expect("in range");
        }
        let mut tables = Tables {
            mem: Arc::clone(&vcpu.mem),
            domain: domain(kind),
            c,
            next: ROOT + PAGE,
        };
        for p in 0..CODE_PAGES {
            tables.map(CODE + p * PAGE, CODE + p * PAGE, 7);
            tables.map(ALIAS + p * PAGE, CODE + p * PAGE, 7 | 1 << 63);
        }
        for p in 0..DATA_PAGES {
            tables.map(DATA + p * PAGE, DATA + p * PAGE, 7);
        }
        tables.map(READ_ONLY, READ_ONLY, 5);
        tables.map(ISLAND, ISLAND, 7);
        let wide = if kind == Kind::Scarce { WIDE_PAGES } else { 0 };
        for p in 0..wide {
            tables.map(WIDE + p * PAGE, WIDE + p * PAGE, 7);
        }
        for p in 0..STACK_PAGES {
            tables.map(STACK + p * PAGE, STACK + p * PAGE, 7);
        }
        vcpu.set_cr3(ROOT | c);
        let options = options.map(|o| match &model {
            None => o,
            Some(model) => JitOptions {
                lines: true,
                costs: Some(Arc::new(CostTable::new(model))),
                trail: model.core.model == CoreModel::Overlap,
                ..o
            },
        });
        if let Some(model) = model {
            vcpu.set_model(0, model).expect("one core");
        }
        let watchdog = Watchdog::new(&vcpu.state.exit_request);
        Self {
            watchdog,
            copies: options.as_ref().is_some_and(|o| o.direct != 0),
            engine: options.map(|o| Engine::new(o).expect("the host runs translated code")),
            vcpu,
            budget: 50_000,
        }
    }

    fn domain(&self) -> Domain {
        self.vcpu.domain(true)
    }

    /// Maps `va`'s page to frame `to` with these entry bits (0: not present) and forgets the old mapping.
    pub fn remap(&mut self, va: u64, to: u64, bits: u64) {
        let c = if self.vcpu.mode.encrypted() {
            self.vcpu.c_bit_mask()
        } else {
            0
        };
        let mut tables = Tables {
            mem: Arc::clone(&self.vcpu.mem),
            domain: self.domain(),
            c,
            // The upper tables exist, but for those of one page far away.
            next: SPARE,
        };
        tables.map(va, to, bits);
        self.vcpu.invlpg(Va(va));
        self.vcpu.drop_code_range(Va(va), Va(va + PAGE));
    }

    /// Writes guest memory from outside, dropping code decoded there.
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        let private = self.vcpu.mode.encrypted();
        self.vcpu
            .write_gpa(Gpa(at), private, bytes)
            .expect("identity-mapped memory");
    }

    pub fn peek(&mut self, at: u64, out: &mut [u8]) {
        let d = self.domain();
        self.vcpu.mem.read(d, Spa(at), out).expect("in range");
    }

    /// Puts the start state in place. Code is written only if it differs, so that translations stay.
    pub fn reset(&mut self, start: &Start) {
        // Whoever puts another program there has been told of an exit, at which a core waits for its misses.
        self.vcpu.charge(0, Cause::Idle);
        let mut code = start.code.clone();
        code.resize((CODE_PAGES * PAGE) as usize, 0xf4);
        let mut now = vec![0; code.len()];
        self.peek(CODE, &mut now);
        if now != code {
            self.poke(CODE, &code);
        }
        self.poke(DATA, &start.data);
        self.poke(ISLAND, &start.data[..PAGE as usize]);
        self.poke(STACK, &start.data[..(STACK_PAGES * PAGE) as usize]);
        let s = &mut self.vcpu.state;
        s.gpr = start.gpr;
        s.rip = CODE;
        s.set_rflags(start.flags);
        s.xmm = start.xmm.map(Lane);
        s.ymmh = start.ymmh.map(Lane);
        s.mxcsr = start.mxcsr;
        s.fx.0 = start.fx;
        s.seg = CpuState::process().seg;
        s.seg[4].base = FS_BASE;
        // The clock of a model does not go back.
        if self.vcpu.model.is_none() {
            s.retired = 0;
        }
    }

    /// Runs from here until something stops it. None: it went on for too long.
    pub fn run(&mut self) -> Option<Outcome> {
        match self.run_to_stop() {
            Stop::Budget => None,
            stop => Some(self.outcome(stop)),
        }
    }

    /// Runs a turn of so many instructions under a model, or to what stops it before.
    pub fn run_turn(&mut self, length: u64) -> Stop {
        self.vcpu.state.stop_at = self.vcpu.state.clock() + length;
        self.run_to_stop()
    }

    fn run_to_stop(&mut self) -> Stop {
        let host = mxcsr_now();
        let guest = self.vcpu.state.mxcsr;
        mxcsr::load(&mut self.vcpu.state, guest);
        self.vcpu.modelled = self.vcpu.model.is_some();
        let mem = Arc::clone(&self.vcpu.mem);
        // As a machine does it. The interpreter goes without, and so without the short way.
        let held = self.engine.is_some() && self.vcpu.model.is_some();
        let _hold = held.then(|| mem.hold());
        let stop = match &mut self.engine {
            None => interpret(&mut self.vcpu, self.budget),
            Some(engine) => {
                self.watchdog.arm();
                let stop = engine.run(&mut self.vcpu);
                self.watchdog.disarm(&self.vcpu.state.exit_request);
                stop
            }
        };
        self.vcpu.modelled = false;
        self.vcpu.state.mxcsr = mxcsr::live(&self.vcpu.state);
        set_mxcsr(host);
        stop
    }

    pub fn outcome(&mut self, stop: Stop) -> Outcome {
        let bytes = WATCHED.iter().map(|w| (w.1 * PAGE) as usize).sum();
        let mut memory = vec![0; bytes];
        let mut at = 0;
        for (from, pages) in WATCHED {
            let n = (pages * PAGE) as usize;
            self.peek(from, &mut memory[at..at + n]);
            at += n;
        }
        let s = &self.vcpu.state;
        Outcome {
            stop,
            gpr: s.gpr,
            rip: s.rip,
            flags: s.rflags(),
            xmm: s.xmm.map(|l| l.0),
            ymmh: s.ymmh.map(|l| l.0),
            mxcsr: s.mxcsr,
            x87: s.fx.0[..24]
                .iter()
                .chain(&s.fx.0[32..160])
                .copied()
                .collect(),
            bases: [s.seg[4].base, s.seg[5].base],
            retired: s.retired,
            memory,
        }
    }

    /// Forgets all mappings, so that the next accesses take their cold paths.
    pub fn forget_mappings(&mut self) {
        self.vcpu.flush_tlb();
    }
}

/// Runs up to `blocks` blocks, or to the end of the turn.
fn interpret(vcpu: &mut Vcpu, blocks: u64) -> Stop {
    for _ in 0..blocks {
        if vcpu.state.clock() >= vcpu.state.stop_at {
            break;
        }
        if let Err(stop) = interp::run_block(vcpu) {
            return stop;
        }
    }
    Stop::Budget
}

struct Tables {
    mem: Arc<MemCtl>,
    domain: Domain,
    c: u64,
    next: u64,
}

impl Tables {
    fn map(&mut self, va: u64, frame: u64, bits: u64) {
        let mut table = ROOT;
        for level in (1..4).rev() {
            let at = Spa(table + (va >> (12 + 9 * level) & 511) * 8);
            let mut e = self.mem.read_u64(self.domain, at).expect("in range");
            if e == 0 {
                e = self.next | 7 | self.c;
                self.next += PAGE;
                self.mem.write_u64(self.domain, at, e).expect("in range");
            }
            table = e & 0xf_ffff_f000;
        }
        let at = Spa(table + (va >> 12 & 511) * 8);
        let e = if bits == 0 { 0 } else { frame | bits | self.c };
        self.mem.write_u64(self.domain, at, e).expect("in range");
    }
}

pub fn mxcsr_now() -> u32 {
    let mut v = 0u32;
    // SAFETY: stores four bytes to a live local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut v, options(nostack)) };
    v
}

pub fn set_mxcsr(v: u32) {
    // SAFETY: loads what `mxcsr_now` gave.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const v, options(nostack)) };
}

/// How long a translated program may run; only a wrong translation reaches it, however busy the host is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Raises a vCPU's exit request when it has run for too long.
struct Watchdog {
    shared: Arc<(Mutex<Option<Instant>>, AtomicBool)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Request(*const AtomicU32);
// SAFETY: points at an atomic in a boxed vCPU, which outlives the watchdog (dropped with the machine, joined).
unsafe impl Send for Request {}

impl Watchdog {
    fn new(request: &AtomicU32) -> Self {
        let shared = Arc::new((Mutex::new(None::<Instant>), AtomicBool::new(false)));
        let request = Request(request);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let request = request;
            while !theirs.1.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(500));
                let armed = *theirs.0.lock().expect("no panic under the lock");
                if armed.is_some_and(|t| t.elapsed() > PATIENCE) {
                    // SAFETY: see `Request`.
                    unsafe { (*request.0).store(1, Ordering::Release) };
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }
    fn arm(&self) {
        *self.shared.0.lock().expect("no panic under the lock") = Some(Instant::now());
    }
    fn disarm(&self, request: &AtomicU32) {
        *self.shared.0.lock().expect("no panic under the lock") = None;
        request.store(0, Ordering::Release);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::Relaxed);
        if let Some(t) = self.thread.take() {
            t.thread().unpark();
            let _ = t.join();
        }
    }
}
