//! The hierarchy, by hand. Lines are numbers; times are those of the first level.

mod common;

use common::{cache, model};
use sevlab_arch::Asid;
use sevlab_memctl::Domain::{self, Private, Shared};
use sevlab_memctl::model::{DramModel, Inclusion, Model, Policy};
use sevlab_reference::caches::{Caches, Level};
use sevlab_reference::counts::Kind;

struct Run {
    caches: Caches,
    time: u64,
}

impl Run {
    fn new(model: &Model) -> Self {
        Self {
            caches: Caches::new(model),
            time: 0,
        }
    }
    fn on(&mut self, core: usize, kind: Kind, line: u64, domain: Domain) -> (Level, u64) {
        self.time += 1;
        let (level, stalls) = self.caches.access(core, kind, line, domain, self.time, 0);
        (level, stalls.total())
    }
    fn read(&mut self, line: u64) -> (Level, u64) {
        self.on(0, Kind::Read, line, Shared)
    }
    fn write(&mut self, line: u64) -> (Level, u64) {
        self.on(0, Kind::Write, line, Shared)
    }
    fn count(&mut self, core: usize, name: &str) -> u64 {
        self.caches.core(core).counts.get(name)
    }
    fn has(&mut self, core: usize, line: u64) -> [bool; 4] {
        let c = self.caches.core(core);
        let l2 =
            c.l2.as_ref()
                .is_some_and(|l2| l2.find(line, line).is_some());
        let (i, d) = (c.l1i.find(line, line), c.l1d.find(line, line));
        let llc = self.caches.llc.find(line, line).is_some();
        [i.is_some(), d.is_some(), l2, llc]
    }
}

#[test]
fn each_level_serves_what_it_holds() {
    let mut r = Run::new(&model());
    assert_eq!(r.read(1), (Level::Dram, 10_010));
    assert_eq!(r.read(1), (Level::L1, 0));
    r.read(2);
    r.read(3); // L1D: 2, 3. L2: 1, 2, 3.
    assert_eq!(r.read(1), (Level::L2, 1));
    r.read(4);
    r.read(5); // L2 had 1 to 4, of which 2 was used longest ago.
    assert_eq!(r.has(0, 1), [false, false, true, true]);
    assert_eq!(r.has(0, 2), [false, false, false, true]);
    assert_eq!(r.read(2), (Level::Llc, 10));
    for (name, n) in [
        ("l1d.read_misses", 7),
        ("l2.read_hits", 1),
        ("l2.read_misses", 6),
        ("llc.read_hits", 1),
        ("llc.read_misses", 5),
        ("dram.reads_plain", 5),
    ] {
        assert_eq!(r.count(0, name), n, "{name}");
    }
}

#[test]
fn a_dirty_line_sinks_level_by_level() {
    let mut r = Run::new(&model());
    r.write(1);
    r.read(2);
    r.read(3); // 1 goes from L1D to L2.
    assert_eq!(r.count(0, "l1d.write_backs"), 1);
    // That is no use of it: it is still the one that was used longest ago in L2.
    r.read(4);
    assert_eq!(r.has(0, 1), [false, false, true, true]);
    assert_eq!(r.count(0, "l2.write_backs"), 0);
    r.read(5);
    assert_eq!(r.has(0, 1), [false, false, false, true]);
    assert_eq!(r.count(0, "l2.write_backs"), 1);
    // Nor is this: it is the first to leave the LLC.
    for line in 6..=8 {
        assert_eq!(r.read(line).1, 10_010);
    }
    assert_eq!(
        r.read(9).1,
        110_010,
        "the write-back is charged to who caused it"
    );
    assert_eq!(r.has(0, 1), [false; 4]);
    assert_eq!(r.count(0, "dram.writes_plain"), 1);
    assert_eq!(r.count(0, "llc.write_backs"), 1);
}

#[test]
fn an_inclusive_llc_takes_its_victims_out_of_the_cores() {
    let mut m = model();
    m.llc = cache(2, 2, Policy::Fifo);
    let mut r = Run::new(&m);
    r.write(1);
    r.read(2);
    assert_eq!(r.read(3), (Level::Dram, 110_010), "1 goes, dirty in L1D");
    assert_eq!(r.has(0, 1), [false; 4]);
    assert_eq!(r.count(0, "llc.write_backs"), 1);

    m.llc_inclusion = Inclusion::NonInclusive;
    let mut r = Run::new(&m);
    r.write(1);
    r.read(2);
    assert_eq!(
        r.read(3),
        (Level::Dram, 10_010),
        "1 goes from the LLC, where it is clean"
    );
    // L1D's victim 1 was written into L2, which had it.
    assert_eq!(r.has(0, 1), [false, false, true, false]);
    assert_eq!(r.read(1), (Level::L2, 1));
}

#[test]
fn encrypted_lines_alone_are_charged_for_aes() {
    let key = Private(Asid(1));
    let mut r = Run::new(&model());
    assert_eq!(r.on(0, Kind::Read, 1, key), (Level::Dram, 1_010_010));
    r.on(0, Kind::Write, 1, key);
    r.on(0, Kind::Read, 2, key);
    // Another domain: the page is flushed first, at the price of the write-back with its encryption; then read as it is.
    assert_eq!(r.on(0, Kind::Read, 1, Shared), (Level::Dram, 10_110_010));
    assert_eq!(r.has(0, 2), [false; 4]);
    assert_eq!(r.count(0, "dram.reads_encrypted"), 2);
    assert_eq!(r.count(0, "dram.writes_encrypted"), 1);
    assert_eq!(r.count(0, "dram.reads_plain"), 1);
}

#[test]
fn cores_see_each_others_writes() {
    let mut r = Run::new(&model());
    assert_eq!(r.on(0, Kind::Write, 1, Shared).0, Level::Dram);
    assert_eq!(r.on(1, Kind::Read, 1, Shared), (Level::Remote, 100));
    // Both have it clean now; the LLC is dirty.
    assert_eq!(r.on(1, Kind::Read, 1, Shared), (Level::L1, 0));
    assert_eq!(
        r.on(0, Kind::Write, 1, Shared),
        (Level::L1, 1000),
        "an upgrade"
    );
    assert_eq!(r.has(1, 1), [false, false, false, true]);
    assert_eq!(
        (r.count(1, "l1d.invalidated"), r.count(1, "l2.invalidated")),
        (1, 1)
    );
    assert_eq!(
        r.on(0, Kind::Write, 1, Shared),
        (Level::L1, 0),
        "nobody else has it"
    );
    assert_eq!(r.on(1, Kind::Write, 1, Shared), (Level::Remote, 1100));
    assert_eq!(r.has(0, 1), [false, false, false, true]);
    assert_eq!(r.count(0, "l1d.invalidated"), 1);
    assert_eq!((r.count(0, "upgrades"), r.count(1, "upgrades")), (1, 1));
    // Clean at another core: the LLC serves, and the copies go.
    r.on(0, Kind::Read, 2, Shared);
    assert_eq!(r.on(1, Kind::Write, 2, Shared), (Level::Llc, 1010));
    assert_eq!(r.has(0, 2), [false, false, false, true]);
}

#[test]
fn walks_enter_at_the_second_level() {
    let mut r = Run::new(&model());
    assert_eq!(r.on(0, Kind::Walk, 1, Shared), (Level::Dram, 10_010));
    assert_eq!(r.has(0, 1), [false, false, true, true]);
    assert_eq!(r.on(0, Kind::WalkWrite, 1, Shared), (Level::L2, 1));
    for line in 2..=5 {
        r.on(0, Kind::Rmp, line, Shared);
    }
    assert_eq!(r.count(0, "l2.write_backs"), 1, "1 was dirty");
    assert_eq!(r.count(0, "l2.walk_hits"), 1);
    assert_eq!(r.count(0, "l2.rmp_misses"), 4);
}

#[test]
fn without_an_l2_victims_go_to_the_llc() {
    let mut m = model();
    m.l2 = None;
    let mut r = Run::new(&m);
    r.write(1);
    r.read(2);
    r.read(3);
    assert_eq!(r.count(0, "l1d.write_backs"), 1);
    assert_eq!(r.read(1), (Level::Llc, 10));
    assert_eq!(r.count(0, "l2.read_hits") + r.count(0, "l2.read_misses"), 0);
}

#[test]
fn prefetches_fill_the_second_level_for_nothing() {
    let mut m = model();
    m.prefetch.next_line = true;
    let mut r = Run::new(&m);
    assert_eq!(r.read(62), (Level::Dram, 10_010));
    assert_eq!(r.has(0, 63), [false, false, true, true]);
    assert_eq!(r.read(63), (Level::L2, 1));
    assert_eq!(r.has(0, 64), [false; 4], "another page");
    assert_eq!(r.count(0, "l2.prefetched"), 1);
    assert_eq!(r.count(0, "dram.reads_plain"), 2);

    m.prefetch.next_line = false;
    m.prefetch.stride = true;
    let mut r = Run::new(&m);
    for line in [10, 13] {
        r.read(line);
    }
    assert_eq!(r.count(0, "llc.prefetched"), 0);
    r.read(16);
    assert_eq!(r.count(0, "llc.prefetched"), 2);
    assert_eq!(r.has(0, 19), [false, false, true, true]);
    assert_eq!(r.has(0, 22), [false, false, true, true]);
}

#[test]
fn banks_remember_their_row_and_channels_their_bandwidth() {
    let mut m = model();
    m.dram.model = DramModel::Banks;
    m.dram.line_ns = 40_000.0;
    // Four lines a row, two banks: lines 0-3 row 0 of bank 0, 4-7 row 0 of bank 1, 8-11 row 1 of bank 0.
    let mut r = Run::new(&m);
    let mut at = |line, now| {
        r.time += 1;
        let stalls = r.caches.access(0, Kind::Read, line, Shared, r.time, now).1;
        stalls.total()
    };
    assert_eq!(at(0, 0), 15_010, "row opened");
    assert_eq!(at(1, 100_000), 10_010, "row open");
    assert_eq!(at(4, 200_000), 15_010, "another bank");
    assert_eq!(at(2, 300_000), 10_010, "still open");
    assert_eq!(at(8, 400_000), 15_010, "another row");
    assert_eq!(
        at(9, 410_000),
        10_010 + 30_000,
        "the channel is taken until 440,000"
    );
    assert_eq!(r.count(0, "dram.row_hits"), 3);
    assert_eq!(r.count(0, "dram.row_misses"), 3);
}
