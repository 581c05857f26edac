//! Translation and whole instructions, by hand.

mod common;

use std::collections::BTreeMap;

use common::{cache, model};
use sevlab_arch::Asid;
use sevlab_memctl::Domain::{self, Private, Shared};
use sevlab_memctl::model::{Model, Policy, Tlb, Tlbs};
use sevlab_reference::counts::Kind;
use sevlab_reference::sim::Touch;
use sevlab_reference::tlb::Page;
use sevlab_reference::walk::{Ref, Tables, Walk};
use sevlab_reference::{Event, Reference};

const RW: u64 = 0x67;
const LARGE: u64 = 0x80;
const C_BIT: u64 = 1 << 51;

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
    m.l2 = Some(cache(64, 64, Policy::Lru));
    m.llc = cache(256, 64, Policy::Lru);
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

/// A guest whose physical address plus 1 MiB is the system's, by 4 KiB. Its tables are at 0x1000 (level 4) to 0x4000; pages from
/// 0x1_0000 are mapped to 0x2_0000 and on, and 2 MiB at 0x20_0000. The nested tables are at 0x80_0000.
fn memory() -> BTreeMap<u64, u64> {
    let mut words = BTreeMap::from([
        (0x80_0000, 0x80_1000 | RW),
        (0x80_1000, 0x80_2000 | RW),
        (0x80_2000, 0x80_3000 | RW),
    ]);
    for n in 0..256 {
        words.insert(0x80_3000 + n * 8, (0x10_0000 + n * 4096) | RW);
    }
    for (at, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        words.insert(0x10_0000 + at, next | RW | C_BIT);
    }
    for n in 0..32 {
        words.insert(0x10_4000 + (16 + n) * 8, (0x2_0000 + n * 4096) | RW | C_BIT);
    }
    words.insert(0x10_3008, RW | LARGE | C_BIT);
    words
}

/// The walk for `va` without walk caches.
fn refs(va: u64, nested: bool) -> Vec<Ref> {
    let words = memory();
    let read = |_: Domain, at: u64| {
        words
            .get(&(at + if nested { 0 } else { 0x10_0000 }))
            .copied()
    };
    let tables = Tables {
        root: 0x1000,
        c_mask: C_BIT,
        nested: nested.then_some(0x80_0000),
        guest: Private(Asid(1)),
        rmp: None,
        read: &|d, at| read(d, at).unwrap_or(0),
    };
    let found = tables.walk(va).expect("it is mapped");
    found
        .iter()
        .map(|&(guest, of, spa)| Ref {
            guest,
            nested: of,
            // Any address in the page will do: that of the guest's table, or the final page.
            gpa: match guest {
                0 => 0x2_0000 + (va - 0x1_0000),
                level => (5 - u64::from(level)) << 12,
            },
            spa,
            changes: false,
        })
        .collect()
}

#[test]
fn walks_read_what_the_tables_say() {
    let at = |va, nested| {
        refs(va, nested)
            .iter()
            .map(|r| (r.guest, r.nested, r.spa))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        at(0x1_1000, false),
        [
            (4, 0, 0x1000),
            (3, 0, 0x2000),
            (2, 0, 0x3000),
            (1, 0, 0x4088)
        ]
    );
    assert_eq!(
        at(0x20_1000, false),
        [(4, 0, 0x1000), (3, 0, 0x2000), (2, 0, 0x3008)]
    );
    let both = at(0x1_1000, true);
    assert_eq!(both.len(), 24);
    assert_eq!(
        both[..5],
        [
            (4, 4, 0x80_0000),
            (4, 3, 0x80_1000),
            (4, 2, 0x80_2000),
            (4, 1, 0x80_3008),
            (4, 0, 0x10_1000)
        ]
    );
    // The page at guest physical 0x2_1000.
    assert_eq!(
        both[19..],
        [
            (1, 0, 0x10_4088),
            (0, 4, 0x80_0000),
            (0, 3, 0x80_1000),
            (0, 2, 0x80_2000),
            (0, 1, 0x80_3108)
        ]
    );
}

struct Run {
    reference: Reference,
    domain: Domain,
    nested: bool,
    /// What walks are told to change, by address.
    changes: Vec<u64>,
    time: u64,
}

impl Run {
    fn new(model: &Model) -> Self {
        Self {
            reference: Reference::new(model),
            domain: Shared,
            nested: false,
            changes: Vec::new(),
            time: 1,
        }
    }
    fn event(&mut self, event: Event<'_>) {
        self.reference.event(0, event);
    }
    fn touch(&mut self, kind: Kind, va: u64, len: u64, writable: bool) {
        let page = if va < 0x20_0000 {
            Page {
                shift: 12,
                spa: 0x12_0000 + (va & !0xfff) - 0x1_0000,
                writable,
                executable: true,
            }
        } else {
            Page {
                shift: 21,
                spa: 0x40_0000,
                writable,
                executable: true,
            }
        };
        self.event(Event::Touch(Touch {
            kind,
            va,
            len,
            page,
            domain: self.domain,
            stamp: self.time,
        }));
    }
    fn walk(&mut self, va: u64) {
        let mut refs = refs(va, self.nested);
        for r in &mut refs {
            r.changes = self.changes.contains(&r.spa);
        }
        let leaf = if va < 0x20_0000 { 1 } else { 2 };
        self.event(Event::Walk(Walk {
            va,
            refs: &refs,
            guest: self.domain,
            leaf,
            rmp: self.nested.then_some(0x90_0000 + (va >> 12) * 16),
        }));
    }
    /// A read whose translation no TLB has.
    fn walked(&mut self, va: u64) {
        self.walk(va);
        self.touch(Kind::Read, va, 8, true);
    }
    /// Which of these counts are not what is said.
    fn wrong(&mut self, counts: &[(&str, u64)]) -> Vec<(String, u64)> {
        assert_eq!(self.reference.complaints(), [""; 0]);
        let have = self.reference.counts(0);
        let wrong = counts.iter().filter(|(name, n)| have.get(name) != *n);
        wrong
            .map(|(name, _)| ((*name).to_owned(), have.get(name)))
            .collect()
    }
}

#[test]
fn a_walk_reads_four_entries_then_one() {
    let mut r = Run::new(&with_tlbs());
    r.walked(0x1_0000);
    assert_eq!(
        r.wrong(&[
            ("walk_reads", 4),
            ("tlb.data_misses", 1),
            ("tlb.data_walks", 1)
        ]),
        []
    );
    r.walked(0x1_1000);
    assert_eq!(r.wrong(&[("tlb.data_walks", 2), ("walk_reads", 5)]), []);
    r.walked(0x1_2000);
    // The L1 TLB has the last two; the L2 TLB has the first still.
    r.touch(Kind::Read, 0x1_0008, 8, true);
    assert_eq!(
        r.wrong(&[
            ("tlb.data_walks", 3),
            ("tlb.data_misses", 4),
            ("tlb.data_second_hits", 1),
            ("stall.tlb", 2)
        ]),
        []
    );
    r.event(Event::ForgetPage {
        va: 0x1_0000,
        tables: true,
    });
    r.touch(Kind::Read, 0x1_2010, 8, true);
    assert_eq!(r.wrong(&[("tlb.data_walks", 3)]), []);
    // The upper levels were forgotten with the page.
    r.walked(0x1_0000);
    assert_eq!(r.wrong(&[("tlb.data_walks", 4), ("walk_reads", 10)]), []);
    r.event(Event::ForgetAll { nested: true });
    r.walked(0x1_0000);
    assert_eq!(r.wrong(&[("tlb.data_walks", 5), ("walk_reads", 14)]), []);
}

#[test]
fn a_first_write_walks_again_and_sets_the_dirty_bit() {
    let mut r = Run::new(&with_tlbs());
    r.walk(0x20_0000);
    r.touch(Kind::Read, 0x20_0000, 8, false);
    r.touch(Kind::Read, 0x3f_ffc0, 8, false);
    assert_eq!(
        r.wrong(&[("tlb.data_walks", 1), ("walk_reads", 3)]),
        [],
        "one entry for 2 MiB"
    );
    r.changes.push(0x3008);
    r.walk(0x20_0000);
    r.touch(Kind::Write, 0x20_0000, 8, true);
    // Level 3's entry is known, level 2's is the leaf: one access.
    assert_eq!(
        r.wrong(&[
            ("tlb.data_walks", 2),
            ("walk_reads", 4),
            ("walk_writes", 1),
            ("l2.walk_misses", 3),
            ("l2.walk_hits", 1)
        ]),
        []
    );
    r.touch(Kind::Write, 0x21_0000, 8, true);
    assert_eq!(r.wrong(&[("tlb.data_walks", 2)]), []);
}

#[test]
fn walks_that_are_not_told_or_not_needed_are_complained_of() {
    let mut r = Run::new(&with_tlbs());
    r.touch(Kind::Read, 0x1_0000, 8, true);
    assert_eq!(r.reference.complaints().len(), 1);
    r.walked(0x1_0000);
    assert_eq!(r.reference.complaints().len(), 2);
}

#[test]
fn a_nested_walk_reads_twenty_four_entries_and_the_rmp() {
    let mut r = Run::new(&with_tlbs());
    (r.nested, r.domain) = (true, Private(Asid(1)));
    r.walked(0x1_0000);
    assert_eq!(r.wrong(&[("walk_reads", 24), ("rmp_reads", 1)]), []);
    // One guest entry, whose table is in the nested cache; four nested ones for the page.
    r.walked(0x1_1000);
    assert_eq!(r.wrong(&[("walk_reads", 29), ("rmp_reads", 2)]), []);
    // Guest tables are encrypted: their four lines and two of data were decrypted.
    assert_eq!(r.wrong(&[("dram.reads_encrypted", 6)]), []);
    // From DRAM: four lines of guest tables, three of upper nested ones, two of the last (pages 0 to 7, and 32 to 39); the other 15
    // reads, and the five of the second walk, from L2. The RMP entry was in DRAM, then in L2. 20 for each walk, 200 for each check.
    let walks = 9 * 10_010 + 15 + 5 + 2 * 20;
    let checks = 10_010 + 1 + 2 * 200;
    assert_eq!(r.wrong(&[("stall.walk", walks), ("stall.rmp", checks)]), []);
}

#[test]
fn the_rmp_entry_is_that_of_the_nested_page() {
    let mut words = memory();
    // Guest physical 0x2_0000 and on: frames 0x120 and on, by 4 KiB; then all of it in one nested page of 2 MiB, at 0x60_0000.
    for (large, va, entry) in [
        (false, 0x1_0000, 0x120),
        (false, 0x1_1000, 0x121),
        (true, 0x1_0000, 0x600),
        (true, 0x1_1000, 0x600),
    ] {
        if large {
            words.insert(0x80_2000, 0x60_0000 | RW | LARGE);
            for n in 0..16 {
                for at in [0x1000, 0x2000, 0x3000, 0x4000] {
                    let e = words.get(&(0x10_0000 + at + n * 8)).copied();
                    words.insert(0x60_0000 + at + n * 8, e.unwrap_or(0));
                }
            }
            words.insert(0x60_4080, words[&0x10_4080]);
            words.insert(0x60_4088, words[&0x10_4088]);
        }
        let tables = Tables {
            root: 0x1000,
            c_mask: C_BIT,
            nested: Some(0x80_0000),
            guest: Private(Asid(1)),
            rmp: Some(0x90_0000),
            read: &|_, at| words.get(&at).copied().unwrap_or(0),
        };
        assert_eq!(
            tables.rmp_entry(va),
            Some(0x90_0000 + 0x4000 + entry * 16),
            "{va:#x}, {large}"
        );
        assert_eq!(
            Tables {
                rmp: None,
                ..tables
            }
            .rmp_entry(va),
            None
        );
    }
}

fn insn(r: &mut Run, rip: u64, bytes: &[u8], fetches: &[u64], accesses: &[(u64, u64, Kind)]) {
    r.event(Event::Begin { rip, bytes });
    for va in fetches {
        r.touch(Kind::Fetch, *va, 1, true);
    }
    for (va, len, kind) in accesses {
        r.touch(*kind, *va, *len, true);
    }
    r.event(Event::Retired);
    r.time += 1;
}

#[test]
fn instructions_count_their_operands() {
    let (read, write) = (Kind::Read, Kind::Write);
    let mut m = model();
    m.latency.l1d_cycles = 7;
    m.latency.l1i_cycles = 3;
    let mut r = Run::new(&m);
    // add [rsi], rax over the edge of a line: one write.
    insn(
        &mut r,
        0x1_0000,
        &[0x48, 0x01, 0x06],
        &[0x1_0000],
        &[(0x1_103c, 4, write), (0x1_1040, 4, write)],
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
        0x1_0003,
        &[0xff, 0x36],
        &[],
        &[(0x1_1000, 8, read), (0x1_2000, 8, write)],
    );
    assert_eq!(r.wrong(&[("reads", 1), ("writes", 2), ("fetches", 1)]), []);
    // lock xadd [rsi], rax over the edge of its line: the next one is fetched, and the next instruction fetches nothing.
    let before = r.reference.counts(0).get("instruction_cycles");
    insn(
        &mut r,
        0x1_003d,
        &[0xf0, 0x48, 0x0f, 0xc1, 0x06],
        &[0x1_0040],
        &[(0x1_1000, 8, write)],
    );
    assert_eq!(r.reference.counts(0).get("instruction_cycles") - before, 18);
    insn(&mut r, 0x1_0042, &[0x90], &[], &[]);
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
    // A line that should have been fetched, and a time that is not its.
    insn(&mut r, 0x1_0080, &[0x90], &[], &[]);
    r.time += 1;
    insn(&mut r, 0x1_0080, &[0x90], &[0x1_0080], &[]);
    assert_eq!(r.reference.complaints().len(), 2);
}

#[test]
fn repeated_instructions_count_by_iteration() {
    let mut r = Run::new(&model());
    let movsq = [0xf3, 0x48, 0xa5];
    r.event(Event::Begin {
        rip: 0x1_0000,
        bytes: &movsq,
    });
    r.touch(Kind::Fetch, 0x1_0000, 1, true);
    // Two iterations, then a fault, then two more.
    for n in 0..2 {
        r.touch(Kind::Read, 0x1_1000 + n * 8, 8, true);
        r.touch(Kind::Write, 0x1_2000 + n * 8, 8, true);
        r.event(Event::Iterated { more: true });
        r.time += 1;
    }
    r.touch(Kind::Read, 0x1_1010, 8, true);
    r.event(Event::Begin {
        rip: 0x1_0000,
        bytes: &movsq,
    });
    for n in 2..4 {
        r.touch(Kind::Read, 0x1_1000 + n * 8, 8, true);
        r.touch(Kind::Write, 0x1_2000 + n * 8, 8, true);
        r.event(Event::Iterated { more: n == 2 });
        r.time += u64::from(n == 2);
    }
    r.event(Event::Retired);
    r.time += 1;
    assert_eq!(
        r.wrong(&[
            ("instructions", 1),
            ("reads", 4),
            ("writes", 4),
            ("instruction_cycles", 4)
        ]),
        []
    );
    // RCX was 0.
    insn(&mut r, 0x1_0000, &movsq, &[], &[]);
    assert_eq!(
        r.wrong(&[("instructions", 2), ("reads", 4), ("writes", 4)]),
        []
    );
}

#[test]
fn gathers_count_loaded_elements() {
    let read = Kind::Read;
    let mut r = Run::new(&model());
    // vpgatherdd xmm0, [rsi+xmm1*4], xmm2; at the third element the page is missing.
    let gather = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8e];
    r.event(Event::Begin {
        rip: 0x1_0000,
        bytes: &gather,
    });
    r.touch(Kind::Fetch, 0x1_0000, 1, true);
    r.touch(read, 0x1_1000, 4, true);
    // This one lies in two lines.
    r.touch(read, 0x1_103e, 2, true);
    r.touch(read, 0x1_1040, 2, true);
    insn(
        &mut r,
        0x1_0000,
        &gather,
        &[],
        &[(0x1_10c8, 4, read), (0x1_112c, 4, read)],
    );
    assert_eq!(
        r.wrong(&[("instructions", 1), ("reads", 4), ("writes", 0)]),
        []
    );
}
