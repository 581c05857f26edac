//! The `overlap` core model: cycles worked out by hand, and independence of how code is run.

mod model;

use iced_x86::code_asm::*;
use model::random::{PAGES, program};
use model::{CODE, DATA, Rig, STACK, small};
use sevlab_cpu::model::Cause;
use sevlab_cpu::stop::{Exception, Stop};
use sevlab_cpu::{SevMode, interp};
use sevlab_memctl::model::{CoreModel, Model};

/// A miss: LLC and DRAM.
const MISS: u64 = 140;

/// Translation is free, a window of 16 instructions, four miss registers.
fn wide() -> Model {
    let mut m = small();
    m.tlb = None;
    m.core.model = CoreModel::Overlap;
    m.core.window = 16;
    m.core.mshrs = 4;
    m
}

/// Cycles of a program, all misses waited for, whose code is one line. A list of pointers is at DATA: each line's first word
/// points to the next line.
fn cycles(m: &Model, f: impl FnOnce(&mut CodeAssembler)) -> u64 {
    let mut rig = Rig::program(SevMode::Off, m, 2, f);
    for k in 0..64 {
        let next = DATA + (k + 1) * 64;
        rig.poke(DATA + k * 64, &next.to_le_bytes());
    }
    rig.v.state.gpr[3] = DATA; // RBX
    assert_eq!(rig.run(), Stop::Exception(Exception::INVALID_OPCODE));
    assert_eq!(rig.core().fetches, 1);
    rig.v.charge(0, Cause::Syscall);
    let c = rig.core();
    assert_eq!(
        rig.v.cycles(),
        c.instruction_cycles + c.stalls.total(),
        "every cycle has a reason"
    );
    rig.v.cycles()
}

#[test]
fn independent_misses_overlap() {
    let four = |a: &mut CodeAssembler| {
        for k in 0..4 {
            a.mov(rax, qword_ptr(rbx + k * 64)).unwrap();
        }
        a.ud2().unwrap();
    };
    // The fetch, then a miss a cycle.
    assert_eq!(cycles(&wide(), four), MISS + 3 + MISS);
    let mut m = wide();
    m.core.mshrs = 2;
    // The third is issued when the first is done, the fourth when the second is.
    assert_eq!(cycles(&m, four), MISS + 1 + 2 * MISS);
    m.core.mshrs = 1;
    assert_eq!(cycles(&m, four), MISS + 4 * MISS);
    m.core.model = CoreModel::Simple;
    assert_eq!(cycles(&m, four), MISS + 4 * MISS + 4);
}

#[test]
fn a_pointer_waits_for_the_miss_that_loads_it() {
    let chase = |a: &mut CodeAssembler| {
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(rax, qword_ptr(rax)).unwrap();
        a.mov(rax, qword_ptr(rax)).unwrap();
        a.ud2().unwrap();
    };
    assert_eq!(cycles(&wide(), chase), MISS + 3 * MISS);
    // Through arithmetic, the stack, vector registers.
    let roundabout = |a: &mut CodeAssembler| {
        a.push(rbx).unwrap(); // a miss of its own
        a.mov(rax, qword_ptr(rbx)).unwrap(); // dispatched at 1
        a.lea(rcx, qword_ptr(rax * 2)).unwrap();
        a.sub(rcx, rax).unwrap();
        a.movq(xmm1, rcx).unwrap();
        a.movq(rdx, xmm1).unwrap();
        a.mov(rax, qword_ptr(rdx)).unwrap();
        a.ud2().unwrap();
    };
    assert_eq!(cycles(&wide(), roundabout), MISS + 1 + 2 * MISS);
    // What breaks the chain: a constant, and the stack pointer, which does not wait for what is popped.
    let broken = |a: &mut CodeAssembler| {
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.and(eax, 0).unwrap(); // still depends
        a.mov(rcx, qword_ptr(rbx + rax + 64)).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(rcx, qword_ptr(rbx + rax + 128)).unwrap();
        a.pop(rcx).unwrap();
        a.pop(rcx).unwrap();
        a.ud2().unwrap();
    };
    assert_eq!(cycles(&wide(), broken), MISS + 2 * MISS);
}

#[test]
fn the_window_holds_what_follows() {
    let apart = |n: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(rax, qword_ptr(rbx)).unwrap();
            for _ in 1..n {
                a.nop().unwrap();
            }
            a.mov(rcx, qword_ptr(rbx + 64)).unwrap();
            a.ud2().unwrap();
        }
    };
    // In the window: dispatched n cycles after the first.
    assert_eq!(cycles(&wide(), apart(15)), MISS + 15 + MISS);
    // The sixteenth behind it waits until it is done.
    assert_eq!(cycles(&wide(), apart(16)), MISS + MISS + MISS);
    assert_eq!(cycles(&wide(), apart(36)), MISS + MISS + 20 + MISS);
    // A store does not hold the window.
    let store = |a: &mut CodeAssembler| {
        a.mov(qword_ptr(rbx), rax).unwrap();
        for _ in 0..40 {
            a.nop().unwrap();
        }
        a.mov(rcx, qword_ptr(rbx + 64)).unwrap();
        a.ud2().unwrap();
    };
    assert_eq!(cycles(&wide(), store), MISS + 41 + MISS);
}

#[test]
fn barriers_wait_for_everything() {
    let locked = |a: &mut CodeAssembler| {
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.lock().inc(dword_ptr(rbx + 64)).unwrap();
        a.mov(rcx, qword_ptr(rbx + 128)).unwrap();
        a.ud2().unwrap();
    };
    // The store; LOCK's own miss; 18 cycles, which the last load comes after.
    assert_eq!(cycles(&wide(), locked), MISS + MISS + MISS + 18 + MISS);
    let fenced = |a: &mut CodeAssembler| {
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mfence().unwrap();
        a.mov(rcx, qword_ptr(rbx + 128)).unwrap();
        a.ud2().unwrap();
    };
    let t = cycles(&wide(), fenced);
    // The fence's own cycles are not told apart from the load's before it: it waits from somewhere between.
    assert!(
        (MISS + MISS + MISS..=MISS + MISS + 21 + MISS).contains(&t),
        "{t}"
    );
}

#[test]
fn encryption_shows_where_it_is_waited_for() {
    let mut rig = Rig::program(SevMode::Sev, &wide(), 1, |a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(rcx, qword_ptr(DATA + 64)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(rig.run(), Stop::Exception(Exception::INVALID_OPCODE));
    rig.v.charge(0, Cause::Syscall);
    let c = rig.core();
    // The fetch in full; of the two loads the second is waited for, in proportion: 1140 cycles less the 1 of its own.
    assert_eq!(rig.v.cycles(), 2 * 1140 + 1);
    assert_eq!(c.stalls.total(), 2 * 1140 - 1);
    assert_eq!(c.stalls.aes, 1000 + 999 + 2); // and what does not divide
    assert_eq!(c.stalls.dram, 100 + 99);
}

/// Random programs take the same cycles whether they run by block, by single instruction, in turns of any length, or with every
/// access seen.
#[test]
fn how_code_is_cut_does_not_matter() {
    let mut m = small();
    m.core.model = CoreModel::Overlap;
    m.l2.as_mut().unwrap().size = 2 << 10;
    m.l2.as_mut().unwrap().ways = 4;
    m.llc.size = 8 << 10;
    m.llc.ways = 4;
    let simple = {
        let mut m = m.clone();
        m.core.model = CoreModel::Simple;
        m
    };
    let machine = |m: &Model, seed| {
        let mut rig = Rig::new(SevMode::Sev, m);
        rig.map(CODE, 3);
        rig.map(DATA, PAGES);
        rig.map(STACK, 1);
        rig.load(CODE, |a| program(a, seed));
        rig.start(m);
        rig
    };
    let end = |rig: &mut Rig| {
        rig.v.charge(0, Cause::Syscall);
        (rig.v.cycles(), rig.core(), rig.caches())
    };
    for seed in 1..25 {
        m.core.window = [1, 7, 48, 300][seed as usize % 4];
        m.core.mshrs = [1, 4, 16][seed as usize % 3];
        let mut rig = machine(&m, seed);
        rig.run();
        let by_block = end(&mut rig);
        let mut rig = machine(&m, seed);
        loop {
            rig.v.state.stop_at = u64::MAX;
            if interp::step(&mut rig.v).is_err() {
                break;
            }
            rig.v.drain();
        }
        let by_step = end(&mut rig);
        assert_eq!(by_block, by_step, "seed {seed}: by step");
        let mut rig = machine(&m, seed);
        let mut turn = 1;
        loop {
            rig.v.state.stop_at = rig.v.state.clock() + turn;
            turn = turn * 3 % 1009;
            match interp::run_block(&mut rig.v) {
                Ok(()) | Err(Stop::Budget) => rig.v.drain(),
                Err(_) => break,
            }
        }
        let mut in_turns = end(&mut rig);
        // A repeated instruction that lies in two lines is fetched again where a turn's end has cut it.
        assert!(in_turns.1.fetches >= by_block.1.fetches);
        in_turns.1.fetches = by_block.1.fetches;
        assert_eq!(by_block, in_turns, "seed {seed}: in turns");
        let mut rig = machine(&m, seed);
        let _log = rig.traced();
        rig.run();
        assert_eq!(by_block, end(&mut rig), "seed {seed}: traced");
        let mut rig = machine(&simple, seed);
        rig.run();
        let plain = end(&mut rig);
        assert_eq!(by_block.2, plain.2, "the same events");
        assert!(
            by_block.0 < plain.0,
            "less time: {} {}",
            by_block.0,
            plain.0
        );
    }
}
