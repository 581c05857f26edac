//! Translation and whole instructions, by hand.

mod common;

use std::collections::BTreeMap;

use common::{Memory, cache, model};
use sevlab_arch::Asid;
use sevlab_memctl::Domain::{Private, Shared};
use sevlab_memctl::model::{Model, Policy, Tlb, Tlbs};
use sevlab_reference::{Event, Reference};

/// Present, writable, user, accessed, dirty.
const RW: u64 = 0x67;
const LARGE: u64 = 0x80;

/// A guest without nested paging: tables at 0x1000 (level 4) to 0x4000, pages 0x10000.. mapped to 0x20000.. .
fn flat() -> Memory {
    let mut words = BTreeMap::from([
        (0x1000, 0x2000 | RW),
        (0x2000, 0x3000 | RW),
        (0x3000, 0x4000 | RW),
    ]);
    for n in 0..32 {
        words.insert(0x4000 + (16 + n) * 8, (0x20000 + n * 4096) | RW);
    }
    // 2 MiB at 0x20_0000, not yet dirty.
    words.insert(0x3008, 0x40_0000 | 0x27 | LARGE);
    Memory {
        words,
        cr3: 0x1000,
        ncr3: None,
        private: Shared,
        rmp: None,
    }
}

fn tlb(entries: u32, ways: u32, policy: Policy) -> Tlb {
    Tlb {
        entries,
        ways,
        policy,
    }
}

fn with_tlbs() -> Model {
    let mut m = model();
    m.l1d = cache(64, 4, Policy::Lru);
    m.l2 = Some(cache(64, 4, Policy::Lru));
    m.llc = cache(256, 4, Policy::Lru);
    m.tlb = Some(Tlbs {
        l1i: tlb(2, 2, Policy::Fifo),
        l1d: tlb(2, 2, Policy::Fifo),
        l2i: None,
        l2: tlb(4, 4, Policy::Lru),
        walk_entries: 2,
        nested_entries: 4,
    });
    m
}

struct Run {
    reference: Reference,
    guest: Memory,
}

impl Run {
    fn new(model: &Model, guest: Memory) -> Self {
        Self {
            reference: Reference::new(model),
            guest,
        }
    }
    fn event(&mut self, event: Event<'_>) {
        self.reference.event(0, &self.guest, event);
    }
    fn data(&mut self, va: u64, size: u64, write: bool) {
        self.event(Event::Data { va, size, write });
    }
    /// Which of these counts are not what is said.
    fn wrong(&mut self, counts: &[(&str, u64)]) -> Vec<(String, u64)> {
        let have = self.reference.counts(0);
        let wrong = counts.iter().filter(|(name, n)| have.get(name) != *n);
        wrong
            .map(|(name, _)| ((*name).to_owned(), have.get(name)))
            .collect()
    }
}

#[test]
fn a_walk_reads_four_entries_then_one() {
    let mut r = Run::new(&with_tlbs(), flat());
    r.data(0x10000, 8, false);
    assert_eq!(
        r.wrong(&[
            ("walks", 1),
            ("walk_reads", 4),
            ("tlb.l1d_misses", 1),
            ("tlb.l2_misses", 1)
        ]),
        []
    );
    r.data(0x11000, 8, false);
    assert_eq!(r.wrong(&[("walks", 2), ("walk_reads", 5)]), []);
    r.data(0x12000, 8, false);
    // The L1 TLB has the last two; the L2 TLB has the first still.
    r.data(0x10008, 8, false);
    assert_eq!(
        r.wrong(&[
            ("walks", 3),
            ("tlb.l1d_misses", 4),
            ("tlb.l2_hits", 1),
            ("stall.tlb", 2),
            ("stall.walk", 60)
        ]),
        []
    );
    r.event(Event::ForgetPage(0x10000));
    r.data(0x12010, 8, false);
    assert_eq!(r.wrong(&[("walks", 3)]), []);
    // The upper levels were forgotten with the page.
    r.data(0x10000, 8, false);
    assert_eq!(r.wrong(&[("walks", 4), ("walk_reads", 10)]), []);
    r.event(Event::ForgetAll { nested: true });
    r.data(0x10000, 8, false);
    assert_eq!(r.wrong(&[("walks", 5), ("walk_reads", 14)]), []);
}

#[test]
fn a_fault_leaves_nothing() {
    let mut r = Run::new(&with_tlbs(), flat());
    r.data(0x60_0000, 8, false);
    // Crosses into a page that is not there.
    r.data(0x2fffc, 8, false);
    assert_eq!(r.wrong(&[("l1d.read_misses", 0)]), []);
    r.event(Event::ForgetAll { nested: false });
    let total = r.reference.total();
    assert_eq!(total.get("walks"), 1, "of the lower page, which is there");
}

#[test]
fn a_first_write_walks_again_and_sets_the_dirty_bit() {
    let mut r = Run::new(&with_tlbs(), flat());
    r.data(0x20_0000, 8, false);
    r.data(0x3f_ffc0, 8, false);
    assert_eq!(
        r.wrong(&[("walks", 1), ("walk_reads", 3)]),
        [],
        "one entry for 2 MiB"
    );
    r.data(0x20_0000, 8, true);
    // Level 3's entry is known, level 2's is the leaf: one read and one write.
    assert_eq!(
        r.wrong(&[
            ("walks", 2),
            ("walk_reads", 4),
            ("l2.walk_misses", 3),
            ("l2.walk_hits", 2)
        ]),
        []
    );
    r.guest.words.insert(0x3008, 0x40_0000 | RW | LARGE);
    r.data(0x21_0000, 8, true);
    assert_eq!(r.wrong(&[("walks", 2)]), []);
}

/// The same guest, encrypted and nested: its physical address plus 1 MiB is the system's, by 4 KiB; tables from 0x80_0000.
fn nested() -> Memory {
    let mut g = Memory {
        ncr3: Some(0x80_0000),
        private: Private(Asid(1)),
        rmp: Some(0x90_0000),
        ..flat()
    };
    g.words = g
        .words
        .into_iter()
        .map(|(at, e)| (at + 0x10_0000, e | 1 << 51))
        .collect();
    g.words.extend([
        (0x80_0000, 0x80_1000 | RW),
        (0x80_1000, 0x80_2000 | RW),
        (0x80_2000, 0x80_3000 | RW),
    ]);
    for n in 0..256 {
        g.words
            .insert(0x80_3000 + n * 8, (0x10_0000 + n * 4096) | RW);
    }
    g
}

#[test]
fn a_nested_walk_reads_twenty_four_entries_and_the_rmp() {
    let mut r = Run::new(&with_tlbs(), nested());
    r.data(0x10000, 8, false);
    assert_eq!(
        r.wrong(&[
            ("walks", 1),
            ("walk_reads", 24),
            ("rmp_reads", 1),
            ("stall.rmp", 200)
        ]),
        []
    );
    // One guest entry, whose table is in the nested cache; four nested ones for the page.
    r.data(0x11000, 8, false);
    assert_eq!(
        r.wrong(&[("walks", 2), ("walk_reads", 29), ("rmp_reads", 2)]),
        []
    );
    // Guest tables are encrypted: 4 lines of them and the data were decrypted.
    assert_eq!(r.wrong(&[("aes.lines_in", 6)]), []);
}

fn insn(r: &mut Run, rip: u64, bytes: &[u8], accesses: &[(u64, u64, bool)]) {
    r.event(Event::Begin { rip, bytes });
    for (va, size, write) in accesses {
        r.data(*va, *size, *write);
    }
    r.event(Event::Retire);
}

#[test]
fn instructions_count_their_operands() {
    let mut m = model();
    m.latency.l1d_cycles = 7;
    m.latency.l1i_cycles = 3;
    let mut r = Run::new(&m, flat());
    // add [rsi], rax: a write. Touched as read and as write, which changes nothing.
    insn(
        &mut r,
        0x10000,
        &[0x48, 0x01, 0x06],
        &[(0x1103c, 8, false), (0x1103c, 8, true)],
    );
    assert_eq!(
        r.wrong(&[
            ("instructions", 1),
            ("reads", 0),
            ("writes", 1),
            ("fetches", 1)
        ]),
        []
    );
    // push [rsi]: one of each. The same line of code.
    insn(
        &mut r,
        0x10003,
        &[0xff, 0x36],
        &[(0x11000, 8, false), (0x12000, 8, true)],
    );
    assert_eq!(r.wrong(&[("reads", 1), ("writes", 2), ("fetches", 1)]), []);
    // lock xadd [rsi], rax over the edge of the line: fetches both.
    let before = r.reference.counts(0).get("instruction_cycles");
    insn(
        &mut r,
        0x1003d,
        &[0xf0, 0x48, 0x0f, 0xc1, 0x06],
        &[(0x11000, 8, true)],
    );
    assert_eq!(r.reference.counts(0).get("instruction_cycles") - before, 18);
    assert_eq!(r.wrong(&[("writes", 3), ("fetches", 2)]), []);
    let all = r.reference.counts(0);
    let stalls: u64 = all
        .iter()
        .filter(|(name, _)| name.starts_with("stall."))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(
        all.get("cycles"),
        stalls + all.get("instruction_cycles") + 4 * 7 + 2 * 3
    );
}

#[test]
fn repeated_instructions_count_by_iteration() {
    let mut r = Run::new(&model(), flat());
    let movsq = [0xf3, 0x48, 0xa5];
    // Two iterations, then a fault, then two more.
    r.event(Event::Begin {
        rip: 0x10000,
        bytes: &movsq,
    });
    for n in 0..2 {
        r.data(0x11000 + n * 8, 8, false);
        r.data(0x12000 + n * 8, 8, true);
        r.event(Event::Repeat);
    }
    r.data(0x11010, 8, false);
    r.event(Event::Begin {
        rip: 0x10000,
        bytes: &movsq,
    });
    for n in 2..4 {
        r.data(0x11000 + n * 8, 8, false);
        r.data(0x12000 + n * 8, 8, true);
        r.event(if n == 3 { Event::Retire } else { Event::Repeat });
    }
    assert_eq!(
        r.wrong(&[
            ("instructions", 1),
            ("repeats", 3),
            ("reads", 4),
            ("writes", 4),
            ("instruction_cycles", 4)
        ]),
        []
    );
    // RCX was 0.
    insn(&mut r, 0x10000, &movsq, &[]);
    assert_eq!(
        r.wrong(&[("instructions", 2), ("reads", 4), ("writes", 4)]),
        []
    );
}

#[test]
fn gathers_count_loaded_elements() {
    let mut r = Run::new(&model(), flat());
    // vpgatherdd xmm0, [rsi+xmm1*4], xmm2; the third element faults at first.
    let gather = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8e];
    r.event(Event::Begin {
        rip: 0x10000,
        bytes: &gather,
    });
    for n in 0..3 {
        r.data(0x11000 + n * 100, 4, false);
    }
    insn(
        &mut r,
        0x10000,
        &gather,
        &[(0x110c8, 4, false), (0x1112c, 4, false)],
    );
    assert_eq!(
        r.wrong(&[("instructions", 1), ("reads", 4), ("writes", 0)]),
        []
    );
}
