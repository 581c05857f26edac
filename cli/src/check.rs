//! `sevlab run --check`: the slow reference beside the run, and the comparison when the guest has ended.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use sevlab_cpu::model::Cause;
use sevlab_cpu::model::trace::{Touch, TraceEvent};
use sevlab_machine::{CAUSES, Simulation, Watch};
use sevlab_memctl::hier::CacheCounters;
use sevlab_memctl::model::Model;
use sevlab_memctl::{LineKind, MemCtl};
use sevlab_reference::counts::Kind;
use sevlab_reference::sim;
use sevlab_reference::tlb::Page;
use sevlab_reference::walk::{Ref, Tables, Walk};
use sevlab_reference::{Counts, Event, Reference};

/// Position of the C-bit in table entries.
const C_MASK: u64 = 1 << 51;

/// The reference of one run.
pub struct Check(Arc<Mutex<Reference>>);

impl Check {
    /// A reference for that model.
    pub fn new(model: &Model) -> Self {
        Self(Arc::new(Mutex::new(Reference::new(model))))
    }

    /// What tells the reference of the run.
    pub fn watch(&self) -> Watch {
        let reference = Arc::clone(&self.0);
        Watch(Arc::new(move |event, mem| {
            let mut reference = reference.lock().unwrap_or_else(PoisonError::into_inner);
            tell(&mut reference, event, mem);
        }))
    }

    /// What differs, a line each; nothing if all counts are equal.
    pub fn differences(&self, run: &Simulation) -> String {
        let mut reference = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for complaint in reference.complaints() {
            let _ = writeln!(text, "{complaint}");
        }
        let mut slow = reference.total();
        let fast = counts(run);
        if run.threads != 1 {
            // The duration of several threads is the longest one's.
            let both = fast.get("cycles");
            slow.set("cycles", both);
        }
        for (name, fast, slow) in fast.differences(&slow) {
            let _ = writeln!(text, "{name}: {fast}, but {slow} in the reference");
        }
        text
    }
}

fn cause_name(cause: Cause) -> &'static str {
    let known = CAUSES.iter().find(|(c, _)| *c == cause);
    known.map_or(
        if cause == Cause::Idle {
            "idle"
        } else {
            "launch"
        },
        |(_, name)| name,
    )
}

/// A run's counts with the reference's names.
fn counts(run: &Simulation) -> Counts {
    let (c, m) = (&run.core, &run.memory);
    let mut all = Counts::default();
    for (name, n) in [
        ("cycles", run.cycles),
        ("instructions", run.instructions),
        ("instruction_cycles", c.instruction_cycles),
        ("reads", c.reads),
        ("writes", c.writes),
        ("fetches", c.fetches),
        ("tlb.data_misses", c.data_tlb.misses),
        ("tlb.data_second_hits", c.data_tlb.second_hits),
        ("tlb.data_walks", c.data_tlb.walks),
        ("tlb.fetch_misses", c.fetch_tlb.misses),
        ("tlb.fetch_second_hits", c.fetch_tlb.second_hits),
        ("tlb.fetch_walks", c.fetch_tlb.walks),
        ("walk_reads", c.walk_reads),
        ("walk_writes", c.walk_writes),
        ("rmp_reads", c.rmp_reads),
        ("remote", m.remote),
        ("upgrades", m.upgrades),
        ("dram.reads_plain", m.dram_reads_plain),
        ("dram.reads_encrypted", m.dram_reads_encrypted),
        ("dram.writes_plain", m.dram_writes_plain),
        ("dram.writes_encrypted", m.dram_writes_encrypted),
        ("dram.row_hits", m.row_hits),
        ("dram.row_misses", m.row_misses),
    ] {
        all.add(name, n);
    }
    for (cause, cycles) in c.stalls.list() {
        all.add(&format!("stall.{cause}"), cycles);
    }
    for (cause, name) in CAUSES.iter().chain(&[(Cause::Idle, "idle")]) {
        all.add(&format!("exit.{name}"), c.exits[*cause as usize]);
    }
    for (name, cache) in [
        ("l1i", &m.l1i),
        ("l1d", &m.l1d),
        ("l2", &m.l2),
        ("llc", &m.llc),
    ] {
        add_cache(&mut all, name, cache);
    }
    all
}

fn add_cache(all: &mut Counts, name: &str, cache: &CacheCounters) {
    let kinds = ["read", "write", "fetch", "walk", "rmp"];
    for ((kind, hits), misses) in kinds.iter().zip(cache.hits).zip(cache.misses) {
        all.add(&format!("{name}.{kind}_hits"), hits);
        all.add(&format!("{name}.{kind}_misses"), misses);
    }
    all.add(&format!("{name}.write_backs"), cache.write_backs);
    all.add(&format!("{name}.invalidated"), cache.invalidated);
    all.add(&format!("{name}.back_invalidated"), cache.back_invalidated);
    all.add(&format!("{name}.prefetched"), cache.prefetched);
}

fn tell(reference: &mut Reference, event: &TraceEvent<'_>, mem: &MemCtl) {
    for page in mem.take_flushes() {
        let (spa, len) = (page << 12, 1 << 12);
        reference.event(0, Event::Evicted { spa, len });
    }
    match *event {
        TraceEvent::Attached {
            core,
            clock,
            cycles,
        } => reference.event(core, Event::Attached { clock, cycles }),
        TraceEvent::Begin { core, rip, bytes } => {
            reference.event(core, Event::Begin { rip: rip.0, bytes });
        }
        TraceEvent::Iterated { core, more } => reference.event(core, Event::Iterated { more }),
        TraceEvent::Retired { core } => reference.event(core, Event::Retired),
        TraceEvent::Charge {
            core,
            cause,
            cycles,
        } => {
            let cause = cause_name(cause);
            reference.event(core, Event::Charge { cause, cycles });
        }
        TraceEvent::Touch(t) => reference.event(t.core, Event::Touch(touch(&t))),
        TraceEvent::DropPage { core, va } => {
            let (va, tables) = (va.0, true);
            reference.event(core, Event::ForgetPage { va, tables });
        }
        TraceEvent::Dead { core, va } => {
            let (va, tables) = (va.0, false);
            reference.event(core, Event::ForgetPage { va, tables });
        }
        TraceEvent::Flush { core, nested } => reference.event(core, Event::ForgetAll { nested }),
        TraceEvent::Walk {
            core,
            va,
            refs,
            guest,
            leaf,
            rmp,
            ..
        } => {
            let refs: Vec<Ref> = refs
                .iter()
                .map(|r| Ref {
                    guest: r.guest,
                    nested: r.nested,
                    gpa: r.gpa,
                    spa: r.spa.0,
                    changes: r.changes,
                })
                .collect();
            let walk = Walk {
                va: va.0,
                refs: &refs,
                guest,
                leaf,
                rmp: rmp.map(|spa| spa.0),
            };
            let root = refs.iter().find(|r| (r.guest, r.nested) == (4, 0));
            let nested = refs.iter().find(|r| r.nested == 4);
            if let Some(root) = root {
                let tables = Tables {
                    root: root.gpa & !4095,
                    c_mask: C_MASK,
                    nested: nested.map(|r| r.spa & !4095),
                    guest,
                    rmp: rmp.map(|_| mem.rmp().base().0),
                    read: &|domain, spa| mem.read_u64(domain, sevlab_arch::Spa(spa)).unwrap_or(0),
                };
                reference.check_walk(&walk, &tables);
            }
            reference.event(core, Event::Walk(walk));
        }
    }
}

fn touch(t: &Touch) -> sim::Touch {
    let shift = if t.large { 21 } else { 12 };
    sim::Touch {
        kind: match t.kind {
            LineKind::Load => Kind::Read,
            LineKind::Store => Kind::Write,
            LineKind::Fetch => Kind::Fetch,
            LineKind::Walk => Kind::Walk,
            LineKind::WalkWrite => Kind::WalkWrite,
            LineKind::Rmp => Kind::Rmp,
        },
        va: t.va.0,
        len: t.len,
        page: Page {
            shift,
            spa: t.spa.0 >> shift << shift,
            writable: t.writable,
            executable: t.executable,
        },
        domain: t.domain,
        stamp: t.stamp,
    }
}
