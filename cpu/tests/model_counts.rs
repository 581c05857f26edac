//! Small programs on a small machine whose counts are worked out by hand, in the comments.

mod model;

use iced_x86::code_asm::*;
use model::{CODE, DATA, MOVED, Rig, STACK, small};
use sevlab_arch::{Gpa, Spa, Va};
use sevlab_cpu::model::{Cause, StallCycles, TlbCounters};
use sevlab_cpu::stop::{Exception, Stop};
use sevlab_cpu::{Access, SevMode};
use sevlab_memctl::{CountKind, PageSize};

const READ: usize = CountKind::Read as usize;
const WRITE: usize = CountKind::Write as usize;
const FETCH: usize = CountKind::Fetch as usize;
const WALK: usize = CountKind::Walk as usize;
const RMP: usize = CountKind::Rmp as usize;

const END: Stop = Stop::Exception(Exception::INVALID_OPCODE);

fn page_fault(va: u64, error: u32) -> Stop {
    Stop::Exception(Exception::page_fault(Va(va), error))
}

/// Six instructions: three reads, three writes.
fn straight(a: &mut CodeAssembler) {
    a.mov(rax, qword_ptr(DATA)).unwrap();
    a.mov(rbx, qword_ptr(DATA + 8)).unwrap();
    a.mov(qword_ptr(DATA + 64), rax).unwrap();
    a.add(qword_ptr(DATA + 128), 1).unwrap();
    a.push(rax).unwrap();
    a.pop(rbx).unwrap();
    a.ud2().unwrap();
}

/// What is the same whatever protects the guest.
fn check_straight(rig: &mut Rig) {
    let v = &rig.v;
    assert_eq!((v.state.retired, v.state.repeats), (6, 0));
    let c = rig.core();
    assert_eq!((c.reads, c.writes, c.fetches), (3, 3, 1));
    assert_eq!(c.instruction_cycles, 6);
    // One page of code. DATA's first access, its first write (which sets D: the entry is replaced), the stack.
    let misses = |misses| TlbCounters {
        misses,
        second_hits: 0,
        walks: misses,
    };
    assert_eq!(c.fetch_tlb, misses(1));
    assert_eq!(c.data_tlb, misses(3));
    let h = rig.caches();
    assert_eq!(h.l1i.misses[FETCH], 1);
    // DATA; DATA + 64, DATA + 128, the stack.
    assert_eq!((h.l1d.misses[READ], h.l1d.misses[WRITE]), (1, 3));
    assert_eq!(h.l2.misses[READ] + h.l2.misses[WRITE], 4);
    assert_eq!((h.l2.misses[FETCH], h.llc.misses[FETCH]), (1, 1));
    assert_eq!((h.l1d.write_backs, h.l2.write_backs), (0, 0));
}

#[test]
fn plain_guest() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 1, straight);
    assert_eq!(rig.run(), END);
    check_straight(&mut rig);
    let (c, h) = (rig.core(), rig.caches());
    // Code: levels 4 to 1. DATA and the stack share its level 2 table (bits above 30): levels 2 and 1. DATA's write: level 1.
    assert_eq!(c.walk_reads, 4 + 2 + 1 + 2);
    // All of them set A, or D.
    assert_eq!(c.walk_writes, 9);
    assert_eq!((h.l2.misses[WALK], h.l2.hits[WALK]), (8, 1));
    assert_eq!(h.llc.misses[WALK], 8);
    assert_eq!((h.dram_reads_plain, h.dram_reads_encrypted), (13, 0));
    let stalls = StallCycles {
        llc: 5 * 40,
        dram: 5 * 100,
        walk: 4 * 5 + 8 * (40 + 100) + 10,
        ..StallCycles::default()
    };
    assert_eq!(c.stalls, stalls);
    assert_eq!(rig.v.cycles(), 6 + stalls.total());
    rig.v.charge(1000, Cause::Syscall);
    assert_eq!(rig.v.cycles(), 1006 + stalls.total());
}

#[test]
fn encrypted_guest() {
    let m = small();
    let mut rig = Rig::program(SevMode::Sev, &m, 1, straight);
    assert_eq!(rig.run(), END);
    check_straight(&mut rig);
    let (c, h) = (rig.core(), rig.caches());
    // Code: four guest entries and five addresses of four nested entries each. DATA: level 2, whose table's translation is
    // known; level 1; the final address. Its write: level 1, known, and the final address. The stack: as DATA.
    assert_eq!(c.walk_reads, 24 + (1 + 5 + 4) + (1 + 4) + (1 + 5 + 4));
    // Guest entries as without SEV. Nested ones: the root table's four; the other tables' last level; level 2 and last level of
    // the frames; DATA's twice, for A and for D.
    assert_eq!(c.walk_writes, 9 + 4 + (3 + 2) + 1 + 1 + 1 + (1 + 1));
    // Lines: 8 of guest tables; of nested ones levels 4, 3, 2 and two last ones.
    assert_eq!((h.l2.misses[WALK], h.l2.hits[WALK]), (13, 36));
    // Guest tables, code, data are private; nested tables are not.
    assert_eq!((h.dram_reads_plain, h.dram_reads_encrypted), (5, 13));
    let stalls = StallCycles {
        llc: 5 * 40,
        dram: 5 * 100,
        aes: 13 * 1000,
        walk: 4 * 5 + 13 * (40 + 100) + 36 * 10,
        ..StallCycles::default()
    };
    assert_eq!(c.stalls, stalls);
    assert_eq!(rig.v.cycles(), 6 + stalls.total());
}

#[test]
fn snp_guest() {
    let m = small();
    let mut rig = Rig::program(SevMode::Snp, &m, 1, straight);
    assert_eq!(rig.run(), END);
    check_straight(&mut rig);
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!((c.walk_reads, c.walk_writes), (49, 23));
    // One for each walk. Frames: 0x400, 0x402 twice, 0x403; four entries a line.
    assert_eq!(c.rmp_reads, 4);
    assert_eq!((h.l2.misses[RMP], h.l2.hits[RMP]), (1, 3));
    assert_eq!((h.dram_reads_plain, h.dram_reads_encrypted), (6, 13));
    assert_eq!(c.stalls.rmp, 4 * 3 + (40 + 100) + 3 * 10);
    assert_eq!(c.stalls.aes, 13 * 1000);
}

#[test]
fn one_rmp_entry_speaks_for_a_large_nested_page() {
    let m = small();
    for large in [false, true] {
        let mut rig = Rig::new(SevMode::Snp, &m);
        rig.map(CODE, 1);
        if large {
            rig.map_within_large(DATA, 33);
        } else {
            rig.map(DATA, 33);
        }
        rig.load(CODE, |a| {
            for page in [8, 16, 24, 32] {
                a.mov(al, byte_ptr(DATA + page * 0x1000)).unwrap();
            }
            a.ud2().unwrap();
        });
        rig.start(&m);
        assert_eq!(rig.run(), END);
        let (c, h) = (rig.core(), rig.caches());
        assert_eq!((c.data_tlb.walks, c.rmp_reads), (4, 5));
        // The code's frame has an entry of its own, in another line; so have DATA's, or there is one for all of them.
        let lines = if large { 1 + 1 } else { 1 + 4 };
        assert_eq!((h.l2.misses[RMP], h.l2.hits[RMP]), (lines, 5 - lines));
        assert_eq!(c.data_tlb.misses, 4, "the TLB has an entry for each");
    }
}

#[test]
fn without_tlbs_translation_is_free() {
    let mut m = small();
    m.tlb = None;
    let mut rig = Rig::program(SevMode::Snp, &m, 1, straight);
    assert_eq!(rig.run(), END);
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!((c.data_tlb, c.fetch_tlb), Default::default());
    assert_eq!((c.walk_reads, c.rmp_reads), (0, 0));
    assert_eq!((h.dram_reads_plain, h.dram_reads_encrypted), (0, 5));
    assert_eq!(c.stalls.total(), 5 * 1140);
}

#[test]
fn crossing_lines_and_pages() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 2, |a| {
        a.mov(rax, qword_ptr(DATA + 60)).unwrap(); // two lines
        a.mov(qword_ptr(DATA + 0xffd), rax).unwrap(); // two pages
        a.movups(xmm0, xmmword_ptr(DATA + 0x38)).unwrap(); // both lines of the first
        a.ud2().unwrap();
    });
    let log = rig.traced();
    assert_eq!(rig.run(), END);
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!((c.reads, c.writes), (2, 1));
    assert_eq!((h.l1d.misses[READ], h.l1d.misses[WRITE]), (2, 2));
    assert_eq!(c.data_tlb.misses, 3, "DATA, its D bit, the next page");
    let data: Vec<String> = log.lock().unwrap()[2..].to_vec();
    assert_eq!(
        data,
        [
            "walk 0x2000003c 4 leaf 1",
            "Load 0x2000003c+4 at 1",
            "Load 0x20000040+4 at 1",
            "walk 0x20000ffd 4 leaf 1",
            "Store 0x20000ffd+3 at 2",
            "walk 0x20001000 4 leaf 1",
            "Store 0x20001000+5 at 2",
            "Load 0x20000038+8 at 3",
            "Load 0x20000040+8 at 3",
        ]
    );
}

#[test]
fn a_fault_leaves_no_trace() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 2, |a| {
        a.mov(rax, qword_ptr(DATA + 0xffc)).unwrap();
        a.mov(qword_ptr(DATA + 0xffc), rax).unwrap();
        a.ud2().unwrap();
    });
    rig.unmap(DATA + 0x1000);
    assert_eq!(rig.run(), page_fault(DATA + 0x1000, 4));
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!((c.reads, c.data_tlb.misses, c.walk_reads), (0, 0, 4));
    assert_eq!(h.l1d.misses[READ], 0);
    assert_eq!((rig.v.state.clock(), rig.v.state.rip), (0, CODE));
    // Mapped, but not for writing.
    rig.protect(DATA + 0x1000, 2, 1);
    assert_eq!(rig.run(), page_fault(DATA + 0x1000, 7));
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!((c.reads, c.writes, c.data_tlb.misses), (1, 0, 2));
    assert_eq!((h.l1d.misses[READ], h.l1d.misses[WRITE]), (2, 0));
    assert_eq!(c.fetches, 1, "the line is not fetched again");
    assert_eq!(rig.v.state.clock(), 1);
}

#[test]
fn fetches_are_of_lines() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 1, |a| {
        // Line 0 to its last byte, then an instruction that begins in line 0 and ends in line 1.
        for _ in 0..61 {
            a.nop().unwrap();
        }
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.nop().unwrap();
        // Into line 3, back into line 1.
        let mut back = a.create_label();
        let mut over = a.create_label();
        a.jmp(over).unwrap();
        a.set_label(&mut back).unwrap();
        a.ud2().unwrap();
        for _ in 0..120 {
            a.nop().unwrap();
        }
        a.set_label(&mut over).unwrap();
        a.jmp(back).unwrap();
    });
    let log = rig.traced();
    assert_eq!(rig.run(), END);
    let c = rig.core();
    assert_eq!(c.fetches, 4);
    let events = log.lock().unwrap().clone();
    assert_eq!(
        events,
        [
            "walk 0x10000000 4 leaf 1",
            "Fetch 0x10000000+1 at 1",
            "Fetch 0x10000040+1 at 62",
            "Fetch 0x100000c4+1 at 65",
            "Fetch 0x1000004a+1 at 66",
        ]
    );
    assert_eq!(rig.caches().l1i.misses[FETCH], 3);
    assert_eq!(c.instruction_cycles, 65);
}

#[test]
fn an_instruction_across_pages_needs_both() {
    let m = small();
    let mut rig = Rig::new(SevMode::Off, &m);
    rig.map(CODE, 2);
    rig.map(STACK, 1);
    rig.load(CODE + 0xffe, |a| {
        a.mov(eax, 5).unwrap();
        a.ud2().unwrap();
    });
    rig.no_exec(CODE + 0x1000);
    rig.start(&m);
    rig.v.state.rip = CODE + 0xffe;
    assert_eq!(rig.run(), page_fault(CODE + 0x1000, 0x15));
    // The fault is met in decoding: nothing was fetched.
    let c = rig.core();
    assert_eq!((c.fetches, c.fetch_tlb.misses), (0, 0));
    rig.protect(CODE + 0x1000, 1 << 63, 0);
    assert_eq!(rig.run(), END);
    let c = rig.core();
    assert_eq!((c.fetches, c.fetch_tlb.walks), (2, 2));
    assert_eq!(rig.v.state.clock(), 1);
}

#[test]
fn repeated_moves_count_by_iteration() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 2, |a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0xfc0).unwrap();
        a.mov(ecx, 100).unwrap();
        a.rep().movsb().unwrap();
        a.rep().movsb().unwrap(); // nothing left
        a.lodsb().unwrap();
        a.ud2().unwrap();
    });
    rig.unmap(DATA + 0x1000);
    assert_eq!(rig.run(), page_fault(DATA + 0x1000, 6));
    let s = &rig.v.state;
    assert_eq!((s.retired, s.repeats, s.gpr[1]), (3, 64, 36));
    let c = rig.core();
    // The load of the iteration that faults was made, but no iteration is counted.
    assert_eq!((c.reads, c.writes), (64, 64));
    assert_eq!(c.instruction_cycles, 3 + 64);
    let h = rig.caches();
    assert_eq!((h.l1d.misses[READ], h.l1d.misses[WRITE]), (2, 1));
    rig.protect(DATA + 0x1000, 0, 1);
    assert_eq!(rig.run(), END);
    let s = &rig.v.state;
    assert_eq!((s.retired, s.repeats, s.gpr[1]), (6, 99, 0));
    let c = rig.core();
    assert_eq!((c.reads, c.writes), (101, 100));
    assert_eq!(c.instruction_cycles, 6 + 99);
    let h = rig.caches();
    assert_eq!((h.l1d.misses[READ], h.l1d.misses[WRITE]), (2, 2));
}

#[test]
fn turns_end_where_the_clock_says() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 2, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.rep().stosb().unwrap();
        a.jmp(top).unwrap();
    });
    for n in 1..=20u64 {
        rig.v.state.stop_at = n * 777;
        let stop = loop {
            if let Err(s) = sevlab_cpu::interp::run_block(&mut rig.v) {
                break s;
            }
        };
        assert_eq!(stop, Stop::Budget);
        assert_eq!(rig.v.state.clock(), n * 777);
        // A round: 1003 instructions and iterations.
        let at = n * 777 % 1003;
        let left = if (2..=1002).contains(&at) {
            1002 - at
        } else {
            0
        };
        if at > 1 {
            assert_eq!(rig.v.state.gpr[1], left, "turn {n}");
        }
    }
    let c = rig.core();
    assert_eq!(c.writes, 20 * 777 / 1003 * 1000 + 20 * 777 % 1003 - 2);
}

#[test]
fn operands_that_count_for_themselves() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 1, |a| {
        a.mov(rdi, DATA).unwrap();
        a.lock().add(dword_ptr(rdi), 1).unwrap(); // w
        a.xchg(dword_ptr(rdi), eax).unwrap(); // w
        a.lock().cmpxchg16b(xmmword_ptr(rdi)).unwrap(); // w
        a.bts(dword_ptr(rdi), 3).unwrap(); // w
        a.cmp(dword_ptr(rdi), 3).unwrap(); // r
        a.push(qword_ptr(rdi)).unwrap(); // r w
        a.pop(qword_ptr(rdi)).unwrap(); // r w
        a.lea(rax, qword_ptr(rdi + 8)).unwrap();
        a.nop_1(dword_ptr(rdi)).unwrap();
        a.prefetcht0(byte_ptr(rdi + 0x400)).unwrap();
        a.enter(16, 2).unwrap(); // w, then a level: r w, the frame pointer: w
        a.leave().unwrap(); // r
        a.fxsave(ptr(rdi)).unwrap(); // w, 7 lines of its 8 written
        a.fxrstor(ptr(rdi)).unwrap(); // r
        a.ud2().unwrap();
    });
    rig.v.state.gpr[5] = STACK + 0x400;
    assert_eq!(rig.run(), END);
    let c = rig.core();
    assert_eq!((c.reads, c.writes), (6, 10));
    let locked = 18 * 3;
    assert_eq!(rig.v.state.retired, 15);
    assert_eq!(c.instruction_cycles, 15 - 3 + locked);
}

#[test]
fn gathers_count_what_they_load() {
    let m = small();
    let mut rig = Rig::program(SevMode::Off, &m, 1, |a| {
        a.mov(rdi, DATA).unwrap();
        a.vmovdqu(xmm1, xmmword_ptr(rdi)).unwrap(); // index
        a.vmovdqu(xmm2, xmmword_ptr(rdi + 16)).unwrap(); // mask
        a.db(&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0f]).unwrap(); // VPGATHERDD xmm0, [rdi + xmm1], xmm2
        a.ud2().unwrap();
    });
    let mut bytes = Vec::new();
    for index in [64u32, 128, 192, 256] {
        bytes.extend(index.to_le_bytes());
    }
    for mask in [1u32 << 31, 0, 1 << 31, 1 << 31] {
        bytes.extend(mask.to_le_bytes());
    }
    rig.poke(DATA, &bytes);
    assert_eq!(rig.run(), END);
    assert_eq!(rig.core().reads, 2 + 3);
    assert_eq!(rig.caches().l1d.misses[READ], 4);
}

#[test]
fn tlb_levels_and_their_victims() {
    let m = small();
    // Pages 0, 1, 2, 0, 4, 8, 0 of DATA.
    let order = [0u64, 1, 2, 0, 4, 8, 0];
    let mut rig = Rig::program(SevMode::Off, &m, 10, |a| {
        for p in order {
            a.mov(al, byte_ptr(DATA + p * 0x1000)).unwrap();
        }
        a.ud2().unwrap();
    });
    let log = rig.traced();
    assert_eq!(rig.run(), END);
    // L1, FIFO of two: 0 | 0 1 | 1 2 | 2 0 (L2 hit) | 0 4 | 4 8 | 8 0. L2, four sets of two, LRU; page numbers modulo 4: set 0 has
    // the code's page, and 0; with 4 the code's goes, with 8 then 0, which was used when the L1 lost it... before 4: so 0 goes.
    let c = rig.core();
    assert_eq!(c.data_tlb.misses, 7);
    assert_eq!(c.data_tlb.second_hits, 1);
    assert_eq!(c.data_tlb.walks, 6);
    assert_eq!(c.stalls.tlb, 7);
    // The last-level table is known after the first: one entry a walk, two for the first, four for the code.
    assert_eq!(c.walk_reads, 4 + 2 + 5);
    // Another access to page 8 hits, to page 1 walks (its L2 entry is there: set 1).
    let walks = |log: &Vec<String>| log.iter().filter(|l| l.starts_with("walk")).count();
    assert_eq!(walks(&log.lock().unwrap()), 7);
    let at = rig.v.at();
    rig.v
        .touch_data(DATA + 0x8000, 1, Access::Read, at)
        .unwrap();
    rig.v
        .touch_data(DATA + 0x1000, 1, Access::Read, at)
        .unwrap();
    let c = rig.core();
    assert_eq!((c.data_tlb.misses, c.data_tlb.second_hits), (8, 2));
}

#[test]
fn large_pages_have_one_entry() {
    let m = small();
    let mut rig = Rig::new(SevMode::Off, &m);
    rig.map(CODE, 1);
    rig.map_large(DATA);
    rig.load(CODE, |a| {
        a.mov(al, byte_ptr(DATA)).unwrap();
        a.mov(al, byte_ptr(DATA + 0x1f_f000)).unwrap();
        a.mov(al, byte_ptr(DATA + 0x10_0040)).unwrap();
        a.ud2().unwrap();
    });
    rig.start(&m);
    let log = rig.traced();
    assert_eq!(rig.run(), END);
    let c = rig.core();
    assert_eq!(c.data_tlb.walks, 1);
    assert_eq!(c.walk_reads, 4 + 1);
    assert_eq!(log.lock().unwrap()[2], "walk 0x20000000 3 leaf 2");
    // Its entry goes with the whole page.
    rig.v.invlpg(Va(DATA + 0x12_3000));
    let at = rig.v.at();
    rig.v.touch_data(DATA, 1, Access::Read, at).unwrap();
    assert_eq!(rig.core().data_tlb.walks, 2);
}

#[test]
fn flushes_reach_the_model() {
    let m = small();
    let mut rig = Rig::program(SevMode::Sev, &m, 2, |a| {
        a.ud2().unwrap();
    });
    assert_eq!(rig.run(), END);
    let read = |rig: &mut Rig, page: u64| {
        let before = rig.core();
        let at = rig.v.at();
        rig.v
            .touch_data(DATA + page * 0x1000, 1, Access::Read, at)
            .unwrap();
        let after = rig.core();
        (
            after.data_tlb.misses - before.data_tlb.misses,
            after.walk_reads - before.walk_reads,
        )
    };
    // Level 2 (known table), level 1 with its nested walk, the final address.
    assert_eq!(read(&mut rig, 0), (1, 1 + 5 + 4));
    assert_eq!(read(&mut rig, 0), (0, 0));
    assert_eq!(read(&mut rig, 1), (1, 1 + 4));
    // INVLPG of one page: the guest walk cache is empty, the other page's entry stays, nested translations of tables too.
    rig.v.invlpg(Va(DATA));
    assert_eq!(read(&mut rig, 1), (0, 0));
    assert_eq!(read(&mut rig, 0), (1, 4 + 4));
    rig.v.shoot_down(Va(DATA), Va(DATA + 0x1000), false);
    assert_eq!(read(&mut rig, 0), (1, 4 + 4));
    rig.v.flush_tlb();
    assert_eq!(read(&mut rig, 0), (1, 4 + 4));
    assert_eq!(read(&mut rig, 1), (1, 1 + 4));
    rig.v.flush_nested();
    assert_eq!(read(&mut rig, 0), (1, 4 * 5 + 4));
}

#[test]
fn the_rmp_takes_translations_away() {
    let m = small();
    let mut rig = Rig::program(SevMode::Snp, &m, 1, |a| {
        a.mov(al, byte_ptr(DATA)).unwrap();
        a.mov(al, byte_ptr(DATA + 64)).unwrap();
        a.ud2().unwrap();
    });
    let log = rig.traced();
    assert_eq!(rig.run(), END);
    let frame = 0x40_2000u64;
    let validate = |rig: &Rig, on| {
        let spa = Spa(frame + MOVED);
        rig.v
            .mem
            .rmp()
            .pvalidate(model::ASID, Gpa(frame), spa, PageSize::Size4K, on)
            .unwrap();
    };
    validate(&rig, false);
    let before = rig.core();
    let at = rig.v.at();
    assert!(matches!(
        rig.v.touch_data(DATA, 1, Access::Read, at),
        Err(Stop::NestedFault { .. })
    ));
    assert_eq!(rig.core(), before, "a fault leaves no trace");
    assert_eq!(log.lock().unwrap().last().unwrap(), "dead 0x20000000");
    validate(&rig, true);
    rig.v.touch_data(DATA, 1, Access::Read, at).unwrap();
    let after = rig.core();
    assert_eq!(after.rmp_reads, before.rmp_reads + 1);
    assert_eq!(after.data_tlb.misses, before.data_tlb.misses + 1);
}

#[test]
fn the_kernel_is_not_in_the_model() {
    let m = small();
    let mut rig = Rig::program(SevMode::Snp, &m, 1, |a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.mov(rbx, qword_ptr(DATA)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(rig.run(), END);
    let (core, caches, cycles) = (rig.core(), rig.caches(), rig.v.cycles());
    // A write where the guest has the line dirty, and what it reads next.
    rig.v.write_u64(DATA, 0x1234_5678).unwrap();
    assert_eq!(rig.v.read_u64(DATA).unwrap(), 0x1234_5678);
    let mut long = [0; 0x900];
    rig.v.read(DATA + 0x20, &mut long).unwrap();
    assert_eq!(rig.v.host_for_write(DATA, 4).unwrap(), None);
    assert!(rig.v.compare_exchange_u32(DATA, 0x1234_5678, 7).unwrap());
    assert_eq!((rig.core(), rig.caches()), (core, caches));
    assert_eq!(rig.v.cycles(), cycles);
    rig.v.state.rip = CODE;
    assert_eq!(rig.run(), END);
    assert_eq!(rig.v.state.gpr[3], 7);
    assert_eq!(rig.caches(), caches, "all in the caches still");
}

#[test]
fn code_that_changes_itself() {
    let m = small();
    let mut rig = Rig::program(SevMode::Sev, &m, 1, |a| {
        // Increments the immediate below, twice round.
        let mut top = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut top).unwrap();
        a.inc(byte_ptr(CODE + 0x41)).unwrap();
        a.dec(ecx).unwrap();
        let end = a.instructions().len();
        assert!(end < 60);
        for _ in 0..0x40 - 14 {
            a.nop().unwrap();
        }
        a.mov(eax, 7).unwrap();
        a.jne(top).unwrap();
        a.ud2().unwrap();
    });
    rig.v.write_u8(CODE + 0x40, 0xb8).unwrap(); // MOV EAX, imm32 stays one
    assert_eq!(rig.run(), END);
    assert_eq!(rig.v.state.gpr[0] & 0xff, 10);
    let (c, h) = (rig.core(), rig.caches());
    assert_eq!(c.writes, 3);
    // Line 0 and line 1, then each jump back and fall into line 1 again.
    assert_eq!(c.fetches, 2 * 3);
    assert_eq!(h.l1d.misses[WRITE], 1);
}
