//! The filters change nothing: random programs count the same with them and with every access made in full, and compute what
//! they compute without a model.

mod model;

use model::random::{PAGES, program};
use model::{CODE, DATA, Rig, STACK, small};
use sevlab_cpu::model::CoreCounters;
use sevlab_cpu::stop::{Exception, Stop};
use sevlab_cpu::{SevMode, interp};
use sevlab_memctl::HierCounters;
use sevlab_memctl::model::{Cache, Inclusion, Model, Policy, Prefetch};

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
