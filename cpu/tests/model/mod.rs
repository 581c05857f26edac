//! A small machine with a small model, whose counts can be worked out by hand.
#![allow(dead_code)] // each test file uses its part

pub mod random;

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::CodeAssembler;
use sevlab_arch::paging::C_MASK;
use sevlab_arch::paging::pte::{NX, P, PS, U, W};
use sevlab_arch::rmp::{RmpStatus, RmpUpdate};
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_cpu::interp::run_block;
use sevlab_cpu::model::CoreCounters;
use sevlab_cpu::model::trace::TraceEvent;
use sevlab_cpu::{SevMode, Stop, Vcpu, VcpuConfig};
use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch, Tlb, Tlbs,
};
use sevlab_memctl::{
    CacheMode, CipherKind, Config, Domain, HierCounters, MemCtl, MemoryKey, PageSize,
};

pub const ASID: Asid = Asid(3);
pub const CODE: u64 = 0x1000_0000;
pub const DATA: u64 = 0x2000_0000;
pub const STACK: u64 = 0x3000_0000;
/// Guest physical `g` is system physical `g + MOVED` where nested tables are used.
pub const MOVED: u64 = 0x0100_0000;
const NCR3: u64 = 0x0300_0000;
const ROOT: u64 = 0x1000;

/// L1D and L1I: 4 sets of 2 ways. L2: 64 KiB. LLC: 1 MiB. Latencies that can't be mistaken for one another.
pub fn small() -> Model {
    let cache = |size, ways| Cache {
        size,
        ways,
        policy: Policy::Lru,
    };
    let tlb = |entries, ways, policy| Tlb {
        entries,
        ways,
        policy,
    };
    Model {
        name: "small".into(),
        core: Core {
            model: CoreModel::Simple,
            clock_mhz: 1000,
            window: 64,
            mshrs: 4,
        },
        l1i: cache(512, 2),
        l1d: cache(512, 2),
        l2: Some(cache(64 << 10, 16)),
        llc: cache(1 << 20, 16),
        llc_inclusion: Inclusion::Inclusive,
        prefetch: Prefetch::default(),
        tlb: Some(Tlbs {
            l1i: tlb(2, 2, Policy::Fifo),
            l1d: tlb(2, 2, Policy::Fifo),
            l2i: None,
            l2: tlb(8, 2, Policy::Lru),
            walk_entries: 2,
            nested_entries: 8,
        }),
        dram: Dram {
            model: DramModel::Flat,
            channels: 1,
            banks: 16,
            row_bytes: 8192,
            line_ns: 0.0,
        },
        latency: Latency {
            l1d_cycles: 0,
            l1i_cycles: 0,
            l2_cycles: 10,
            llc_cycles: 40,
            remote_cycles: 90,
            upgrade_cycles: 30,
            dram_ns: 100.0,
            dram_row_ns: 0.0,
            dram_write_ns: 0.0,
            aes_ns: 1000.0,
            aes_write_ns: 0.0,
            aes_line_ns: 0.0,
            tlb2_cycles: 7,
            walk_cycles: 5,
            rmp_cycles: 3,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    }
}

/// A guest with hand-made tables.
pub struct Rig {
    pub v: Box<Vcpu>,
    next_table: u64,
    next_frame: u64,
    next_nested: u64,
    nested: bool,
}

impl Rig {
    /// No nested tables with SEV off, else 4 KiB ones for all of guest memory.
    pub fn new(mode: SevMode, model: &Model) -> Self {
        Self::with(mode, mode.encrypted(), model)
    }

    pub fn with(mode: SevMode, nested: bool, model: &Model) -> Self {
        Self::made(mode, nested, Some(model))
    }

    /// Without a model: caches as for running fast.
    pub fn plain(mode: SevMode) -> Self {
        Self::made(mode, mode.encrypted(), None)
    }

    fn made(mode: SevMode, nested: bool, model: Option<&Model>) -> Self {
        let cipher = CipherKind::Aes128Xex;
        let mem = MemCtl::new(Config {
            size: 64 << 20,
            cipher,
            cache: model.map_or(CacheMode::Page, |_| CacheMode::Hierarchy),
            resident: None,
            hierarchy: model.map(|m| Arc::new(m.clone())),
            cores: 4,
            tweak_seed: 1,
            snp: mode == SevMode::Snp,
        })
        .unwrap();
        mem.install_key(ASID, MemoryKey::new(cipher, &[9; 16]).unwrap())
            .unwrap();
        let v = Vcpu::new(
            mem,
            VcpuConfig {
                asid: ASID,
                mode,
                ncr3: nested.then_some(Spa(NCR3)),
                ..VcpuConfig::default()
            },
        );
        let mut rig = Self {
            v,
            next_table: ROOT + 0x1000,
            next_frame: 0x40_0000,
            next_nested: NCR3 + 0x1000,
            nested,
        };
        rig.own(ROOT);
        rig.v.state.sys.cr3 = ROOT | rig.c();
        rig
    }

    fn c(&self) -> u64 {
        if self.v.mode.encrypted() { C_MASK } else { 0 }
    }

    pub fn spa(&self, gpa: u64) -> u64 {
        gpa + if self.nested { MOVED } else { 0 }
    }

    /// Gives the guest the page: nested tables, RMP, zeroes.
    fn own(&mut self, gpa: u64) {
        self.own_sized(gpa, PageSize::Size4K);
    }

    fn own_sized(&mut self, gpa: u64, size: PageSize) {
        let spa = self.spa(gpa);
        let (leaf, large) = match size {
            PageSize::Size4K => (0, 0),
            PageSize::Size2M => (1, PS),
        };
        if self.nested {
            let mut table = NCR3;
            for level in (leaf + 1..4).rev() {
                let at = Spa(table + (gpa >> (12 + 9 * level) & 511) * 8);
                let mut e = self.v.mem.read_u64(Domain::Shared, at).unwrap();
                if e == 0 {
                    e = self.next_nested | P | W | U;
                    self.next_nested += 0x1000;
                    self.v.mem.write_u64(Domain::Shared, at, e).unwrap();
                }
                table = e & 0x000f_ffff_ffff_f000;
            }
            let at = Spa(table + (gpa >> (12 + 9 * leaf) & 511) * 8);
            self.v
                .mem
                .write_u64(Domain::Shared, at, spa | P | W | U | large)
                .unwrap();
        }
        if self.v.mode == SevMode::Snp {
            let update = RmpUpdate {
                gpa,
                assigned: 1,
                page_size: leaf,
                immutable: 0,
                reserved: 0,
                asid: ASID.0,
            };
            let rmp = self.v.mem.rmp();
            assert_eq!(rmp.rmpupdate(Spa(spa), &update), RmpStatus::SUCCESS);
            rmp.pvalidate(ASID, Gpa(gpa), Spa(spa), size, true).unwrap();
        }
        let d = self.v.domain(true);
        for page in 0..size.pages() {
            self.v.mem.zero_page(d, Spa(spa + page * 0x1000)).unwrap();
        }
    }

    fn entry(&self, table: u64, va: u64, level: u32) -> Spa {
        Spa(self.spa(table) + (va >> (12 + 9 * (level - 1)) & 511) * 8)
    }

    /// Where the guest entry of `level` for `va` is.
    pub fn entry_of(&self, va: u64, level: u32) -> Spa {
        let d = self.v.domain(true);
        let mut table = ROOT;
        for l in (level + 1..=4).rev() {
            let e = self.v.mem.read_u64(d, self.entry(table, va, l)).unwrap();
            table = e & 0x0007_ffff_ffff_f000;
        }
        self.entry(table, va, level)
    }

    fn set_entry(&mut self, va: u64, leaf: u32, e: u64) {
        let d = self.v.domain(true);
        let mut table = ROOT;
        for level in (leaf + 1..=4).rev() {
            let at = self.entry(table, va, level);
            let mut e = self.v.mem.read_u64(d, at).unwrap();
            if e == 0 {
                let new = self.next_table;
                self.next_table += 0x1000;
                self.own(new);
                e = new | P | W | U | self.c();
                self.v.mem.write_u64(d, at, e).unwrap();
            }
            table = e & 0x0007_ffff_ffff_f000;
        }
        let at = self.entry(table, va, leaf);
        self.v.mem.write_u64(d, at, e).unwrap();
    }

    /// Maps `pages` pages of fresh frames from `va` on.
    pub fn map(&mut self, va: u64, pages: u64) {
        for k in 0..pages {
            let gpa = self.next_frame;
            self.next_frame += 0x1000;
            self.own(gpa);
            let e = gpa | P | W | U | self.c();
            self.set_entry(va + k * 0x1000, 1, e);
        }
    }

    /// Maps 2 MiB at `va` with one guest entry. Only without nested tables.
    pub fn map_large(&mut self, va: u64) {
        let gpa = 0x80_0000;
        self.set_entry(va, 2, gpa | P | W | U | PS);
    }

    /// Maps `pages` guest pages of 4 KiB at `va` to frames within one nested page, and RMP entry, of 2 MiB.
    pub fn map_within_large(&mut self, va: u64, pages: u64) {
        let gpa = 0x80_0000;
        self.own_sized(gpa, PageSize::Size2M);
        for k in 0..pages {
            let e = (gpa + k * 0x1000) | P | W | U | self.c();
            self.set_entry(va + k * 0x1000, 1, e);
        }
    }

    /// Changes rights of a mapped page: bits to clear and to set in its entry.
    pub fn protect(&mut self, va: u64, clear: u64, set: u64) {
        let d = self.v.domain(true);
        let at = self.entry_of(va, 1);
        let e = self.v.mem.read_u64(d, at).unwrap();
        self.v.mem.write_u64(d, at, e & !clear | set).unwrap();
        self.v.invlpg(sevlab_arch::Va(va));
    }

    pub fn unmap(&mut self, va: u64) {
        self.protect(va, P, 0);
    }

    pub fn no_exec(&mut self, va: u64) {
        self.protect(va, 0, NX);
    }

    /// Code and data pages, the program at [`CODE`], one core of `model`.
    pub fn program(
        mode: SevMode,
        model: &Model,
        data: u64,
        f: impl FnOnce(&mut CodeAssembler),
    ) -> Self {
        let mut rig = Self::new(mode, model);
        rig.map(CODE, 2);
        rig.map(DATA, data);
        rig.map(STACK, 1);
        rig.load(CODE, f);
        rig.start(model);
        rig
    }

    /// Assembles to `va`, as the hypervisor would write it.
    pub fn load(&mut self, va: u64, f: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a);
        let code = a.assemble(va).unwrap();
        self.poke(va, &code);
    }

    /// Writes guest memory past everything.
    pub fn poke(&mut self, va: u64, bytes: &[u8]) {
        for (k, b) in bytes.iter().enumerate() {
            let va = va + k as u64;
            let t = self.v.peek(sevlab_arch::Va(va), sevlab_cpu::Access::Read);
            let t = t.unwrap();
            self.v.mem.write(t.domain, t.spa, &[*b]).unwrap();
        }
    }

    pub fn start(&mut self, model: &Model) {
        self.v.set_model(0, Arc::new(model.clone())).unwrap();
        self.v.state.rip = CODE;
        self.v.state.gpr[4] = STACK + 0x800;
    }

    /// Runs to whatever is not the end of a turn.
    pub fn run(&mut self) -> Stop {
        for _ in 0..1_000_000 {
            match run_block(&mut self.v) {
                Ok(()) => {}
                Err(Stop::Budget) => self.v.next_turn(),
                Err(s) => {
                    self.v.drain();
                    return s;
                }
            }
        }
        panic!("does not stop at {:#x}", self.v.state.rip);
    }

    /// What the core has counted.
    pub fn core(&mut self) -> CoreCounters {
        self.v.drain();
        self.v.model.as_ref().unwrap().counters.clone()
    }

    pub fn caches(&self) -> HierCounters {
        self.v.mem.hier_counters(0)
    }

    /// Notes events as lines of text from now on.
    pub fn traced(&mut self) -> Arc<Mutex<Vec<String>>> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&log);
        self.v.set_trace(Some(Box::new(move |e| {
            to.lock().unwrap().extend(show(e));
        })));
        log
    }
}

/// What a core does to TLBs and caches; where instructions begin and end is no part of it.
fn show(e: &TraceEvent<'_>) -> Option<String> {
    Some(match e {
        TraceEvent::Walk {
            va,
            refs,
            leaf,
            rmp,
            ..
        } => format!(
            "walk {:#x} {} leaf {leaf}{}",
            va.0,
            refs.len(),
            if rmp.is_some() { " rmp" } else { "" }
        ),
        TraceEvent::Touch(t) => {
            format!("{:?} {:#x}+{} at {}", t.kind, t.va.0, t.len, t.stamp)
        }
        TraceEvent::DropPage { va, .. } => format!("drop {:#x}", va.0),
        TraceEvent::Dead { va, .. } => format!("dead {:#x}", va.0),
        TraceEvent::Flush { nested, .. } => format!("flush {nested}"),
        TraceEvent::Attached { .. }
        | TraceEvent::Begin { .. }
        | TraceEvent::Iterated { .. }
        | TraceEvent::Retired { .. }
        | TraceEvent::Charge { .. } => return None,
    })
}
