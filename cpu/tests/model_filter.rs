//! The filters change nothing: random programs count the same with them and with every access made in full, and compute what
//! they compute without a model.

mod model;

use iced_x86::code_asm::*;
use model::{CODE, DATA, Rig, STACK, small};
use sevlab_cpu::model::CoreCounters;
use sevlab_cpu::stop::{Exception, Stop};
use sevlab_cpu::{SevMode, interp};
use sevlab_memctl::HierCounters;
use sevlab_memctl::model::{Cache, Inclusion, Model, Policy, Prefetch};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
}

const PAGES: u64 = 12;

/// An address with `n` bytes behind it; often near the others.
fn address(r: &mut Rng, n: u64) -> u64 {
    let page = if r.below(3) == 0 {
        r.below(PAGES)
    } else {
        r.below(3)
    };
    let line = if r.below(2) == 0 {
        r.below(64)
    } else {
        r.below(4) * 16
    };
    let at = page * 0x1000 + line * 64 + r.below(64);
    DATA + at.min(PAGES * 0x1000 - n)
}

fn one(a: &mut CodeAssembler, r: &mut Rng) {
    let at = |r: &mut Rng, n| address(r, n);
    match r.below(22) {
        0..=3 => a.mov(rax, qword_ptr(at(r, 8))),
        4 => a.movzx(ebx, byte_ptr(at(r, 1))),
        5 => a.mov(cx, word_ptr(at(r, 2))),
        6..=8 => a.mov(qword_ptr(at(r, 8)), rax),
        9 => a.mov(byte_ptr(at(r, 1)), bl),
        10 => a.add(dword_ptr(at(r, 4)), r.below(1000) as i32),
        11 => a.lock().xadd(qword_ptr(at(r, 8)), rdx),
        12 => a.xchg(dword_ptr(at(r, 4)), ebp),
        13 => a.movups(xmm0, xmmword_ptr(at(r, 16))),
        14 => a.movups(xmmword_ptr(at(r, 16)), xmm0),
        15 => a.vmovups(ymm1, ymmword_ptr(at(r, 32))),
        16 => a.vmovups(ymmword_ptr(at(r, 32)), ymm1),
        17 => {
            a.push(qword_ptr(at(r, 8))).unwrap();
            a.pop(qword_ptr(at(r, 8)))
        }
        18 | 19 => {
            let n = r.below(300);
            a.mov(rsi, at(r, 8 * n)).unwrap();
            a.mov(rdi, at(r, 8 * n)).unwrap();
            a.mov(ecx, n as u32).unwrap();
            match r.below(7) {
                0 => a.rep().movsb(),
                1 => a.rep().movsq(),
                2 => a.rep().stosd(),
                3 => a.repe().cmpsb(),
                4 => a.repne().scasw(),
                5 => a.rep().lodsb(),
                _ => {
                    a.std().unwrap();
                    a.mov(ecx, (n % 20) as u32).unwrap();
                    a.rep().movsb().unwrap();
                    a.cld()
                }
            }
        }
        20 => {
            a.mov(rdi, at(r, 512) & !15).unwrap();
            if r.below(2) == 0 {
                a.fxsave(ptr(rdi))
            } else {
                a.stmxcsr(dword_ptr(rdi))
            }
        }
        _ => a.imul_2(rdx, rax),
    }
    .unwrap();
}

/// Functions in two pages, called in a loop.
fn program(a: &mut CodeAssembler, seed: u64) {
    let r = &mut Rng(seed);
    let mut labels: Vec<_> = (0..6).map(|_| a.create_label()).collect();
    let mut top = a.create_label();
    a.mov(r15d, 6).unwrap();
    a.set_label(&mut top).unwrap();
    for _ in 0..10 {
        a.call(labels[r.below(6) as usize]).unwrap();
    }
    a.dec(r15d).unwrap();
    a.jne(top).unwrap();
    a.ud2().unwrap();
    for l in &mut labels {
        for _ in 0..r.below(100) {
            a.nop().unwrap();
        }
        a.set_label(l).unwrap();
        for _ in 0..12 {
            one(a, r);
        }
        a.ret().unwrap();
    }
}

fn machine(mode: SevMode, m: Option<&Model>, seed: u64) -> Rig {
    let mut rig = match m {
        Some(m) => Rig::new(mode, m),
        None => Rig::plain(mode),
    };
    rig.map(CODE, 3);
    rig.map(DATA, PAGES);
    rig.map(STACK, 1);
    rig.load(CODE, |a| program(a, seed));
    match m {
        Some(m) => rig.start(m),
        None => {
            rig.v.state.rip = CODE;
            rig.v.state.gpr[4] = STACK + 0x800;
        }
    }
    rig
}

#[derive(PartialEq, Debug)]
struct Outcome {
    core: CoreCounters,
    caches: HierCounters,
    clock: (u64, u64),
    cycles: u64,
    memory: Vec<u8>,
    gpr: [u64; 16],
}

fn outcome(rig: &mut Rig) -> Outcome {
    let stop = rig.run();
    assert_eq!(stop, Stop::Exception(Exception::INVALID_OPCODE));
    let mut memory = vec![0; (PAGES * 0x1000) as usize];
    rig.v.read(DATA, &mut memory).unwrap();
    let s = &rig.v.state;
    let (clock, gpr) = ((s.retired, s.repeats), s.gpr);
    let cycles = rig.v.cycles();
    Outcome {
        core: rig.core(),
        caches: rig.caches(),
        clock,
        cycles,
        memory,
        gpr,
    }
}

fn compare(name: &str, mode: SevMode, m: &Model, seed: u64) {
    let fast = outcome(&mut machine(mode, Some(m), seed));
    let mut rig = machine(mode, Some(m), seed);
    let log = rig.traced();
    let slow = outcome(&mut rig);
    assert!(log.lock().unwrap().len() > 1000);
    assert!(fast.caches.llc.all_misses() > 50, "{name}: nothing to see");
    assert_eq!(fast.core, slow.core, "{name}, seed {seed}");
    assert_eq!(fast.caches, slow.caches, "{name}, seed {seed}");
    assert!(fast == slow, "{name}, seed {seed}");
    let mut plain = machine(mode, None, seed);
    let stop = loop {
        if let Err(s) = interp::run_block(&mut plain.v) {
            break s;
        }
    };
    assert_eq!(stop, Stop::Exception(Exception::INVALID_OPCODE));
    let mut memory = vec![0; fast.memory.len()];
    plain.v.read(DATA, &mut memory).unwrap();
    assert!(memory == fast.memory, "{name}, seed {seed}: memory");
    assert_eq!(plain.v.state.gpr, fast.gpr, "{name}, seed {seed}");
    assert_eq!(plain.v.state.retired, fast.clock.0);
}

/// Caches small enough that everything is thrown out again and again.
fn tight() -> Model {
    let mut m = small();
    let cache = |size, ways| Cache {
        size,
        ways,
        policy: Policy::Lru,
    };
    m.l2 = Some(cache(2 << 10, 4));
    m.llc = cache(8 << 10, 4);
    m
}

#[test]
fn lru_under_every_protection() {
    for (k, mode) in [SevMode::Off, SevMode::Sev, SevMode::Snp]
        .into_iter()
        .enumerate()
    {
        for seed in 1..8 {
            compare(&format!("{mode:?}"), mode, &tight(), seed + 100 * k as u64);
        }
    }
}

#[test]
fn every_policy() {
    for policy in [
        Policy::Fifo,
        Policy::Random,
        Policy::TreePlru,
        Policy::Nru,
        Policy::Lru,
    ] {
        let mut m = tight();
        m.l1i.policy = policy;
        m.l1d.policy = policy;
        m.l1d.size = 2048;
        m.l1d.ways = 8;
        if let Some(l2) = &mut m.l2 {
            l2.policy = policy;
        }
        m.llc.policy = policy;
        if let Some(t) = &mut m.tlb {
            t.l2.policy = policy;
        }
        for seed in 1..6 {
            compare(&format!("{policy:?}"), SevMode::Sev, &m, 1000 + seed);
        }
    }
}

#[test]
fn other_machines() {
    let mut m = tight();
    m.l2 = None;
    compare("no L2", SevMode::Sev, &m, 2001);
    let mut m = tight();
    m.llc_inclusion = Inclusion::NonInclusive;
    compare("non-inclusive", SevMode::Snp, &m, 2002);
    let mut m = tight();
    m.prefetch = Prefetch {
        next_line: true,
        stride: true,
        degree: 2,
    };
    compare("prefetch", SevMode::Sev, &m, 2003);
    let mut m = tight();
    m.tlb = None;
    compare("no TLB", SevMode::Sev, &m, 2004);
    let mut m = tight();
    if let Some(t) = &mut m.tlb {
        t.walk_entries = 0;
        t.nested_entries = 0;
        t.l1d.policy = Policy::Random;
        t.l2i = Some(t.l1i.clone());
    }
    compare("bare walks", SevMode::Snp, &m, 2005);
    let mut m = tight();
    m.l1d.ways = 1;
    m.l1d.size = 256;
    compare("direct-mapped", SevMode::Sev, &m, 2006);
}
