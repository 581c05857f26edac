//! Translated code against the interpreter where caches are simulated: random programs on machines with tiny caches and
//! TLBs must leave the same registers and memory, and have counted the same, at the end of each turn.
//!
//! Caches and TLBs are never emptied: each program runs several times, one after another on the same machines, so that what
//! the comparison does not look at itself shows in what misses next.
//!
//! `SEVLAB_LINES_CASES` is the number of programs, `SEVLAB_DIFF_SEED` where to begin (random and printed by default).

#[path = "diff/compare.rs"]
mod compare;
#[path = "diff/forms.rs"]
mod forms;
#[path = "diff/machine.rs"]
mod machine;
#[path = "diff/program.rs"]
mod program;

use compare::{Sticky, engines, same};
use forms::Forms;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::{
    ALIAS, CODE, CODE_PAGES, DATA, DATA_PAGES, Kind, Machine, Outcome, PAGE, Rng, Start,
};
use program::{Generator, Program, assemble_at, listing};
use sevlab_arch::{Spa, Va};
use sevlab_cpu::Stop;
use sevlab_cpu::model::CoreCounters;
use sevlab_jit::JitOptions;
use sevlab_memctl::HierCounters;
use sevlab_memctl::model::{
    Cache, Core, CoreModel, Costs, Dram, DramModel, ExitCosts, Inclusion, Latency, Model, Policy,
    Prefetch, Tlb, Tlbs,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn variable(name: &str) -> Option<u64> {
    let v = std::env::var(name).ok()?;
    let v = v.trim();
    Some(match v.strip_prefix("0x") {
        Some(h) => u64::from_str_radix(h, 16).expect("a hexadecimal number"),
        None => v.parse().expect("a number"),
    })
}

fn first_seed() -> u64 {
    variable("SEVLAB_DIFF_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock after 1970");
        now.as_nanos() as u64 & 0xffff_ffff_0000
    })
}

/// Mostly the one whose state is in the stamps.
const POLICIES: [Policy; 8] = [
    Policy::Lru,
    Policy::Lru,
    Policy::Lru,
    Policy::Lru,
    Policy::TreePlru,
    Policy::Nru,
    Policy::Fifo,
    Policy::Random,
];

fn cache(r: &mut Rng, sets: &[u64], ways: &[u32]) -> Cache {
    let ways = r.pick(ways);
    Cache {
        size: 64 * r.pick(sets) * u64::from(ways),
        ways,
        policy: r.pick(&POLICIES),
    }
}

fn tlb(r: &mut Rng, policies: &[Policy]) -> Tlb {
    let ways = r.pick(&[1, 2, 4]);
    Tlb {
        entries: ways * r.pick(&[1, 2]),
        ways,
        policy: r.pick(policies),
    }
}

/// A machine in which much misses.
fn model(variation: u64) -> Model {
    const FIRST: [Policy; 2] = [Policy::Fifo, Policy::Random];
    let r = &mut Rng::new(variation ^ 0x1135);
    let small = r.one_in(2);
    let sets: &[u64] = if small { &[1, 2, 4] } else { &[8, 16, 32] };
    let model = Model {
        name: "tiny".into(),
        core: Core {
            model: r.pick(&[CoreModel::Simple, CoreModel::Overlap]),
            clock_mhz: 1000,
            window: r.pick(&[1, 7, 64, 500]),
            mshrs: r.pick(&[1, 4, 16]),
        },
        l1i: cache(r, sets, &[1, 2, 4]),
        l1d: cache(r, sets, &[2, 4, 8]),
        l2: (!r.one_in(4)).then(|| cache(r, &[4, 8, 16], &[2, 4, 8, 16])),
        llc: cache(r, &[16, 32, 64], &[4, 8, 16]),
        llc_inclusion: r.pick(&[Inclusion::Inclusive, Inclusion::NonInclusive]),
        prefetch: Prefetch {
            next_line: r.one_in(3),
            stride: r.one_in(3),
            degree: 2,
        },
        tlb: (!r.one_in(5)).then(|| Tlbs {
            l1i: tlb(r, &FIRST),
            l1d: tlb(r, &FIRST),
            l2i: r.one_in(2).then(|| tlb(r, &POLICIES)),
            l2: tlb(r, &POLICIES),
            walk_entries: 2,
            nested_entries: 2,
        }),
        dram: Dram {
            model: r.pick(&[DramModel::Flat, DramModel::Banks]),
            channels: 2,
            banks: 2,
            row_bytes: 1024,
            line_ns: 3.0,
        },
        latency: Latency {
            l1d_cycles: 1,
            l1i_cycles: 2,
            l2_cycles: 11,
            llc_cycles: 41,
            remote_cycles: 67,
            upgrade_cycles: 31,
            dram_ns: 101.0,
            dram_row_ns: 17.0,
            dram_write_ns: 13.0,
            aes_ns: 19.0,
            aes_write_ns: 23.0,
            aes_line_ns: 7.0,
            tlb2_cycles: 5,
            walk_cycles: 3,
            rmp_cycles: 2,
        },
        cost: Costs::default(),
        exit: ExitCosts::default(),
    };
    if r.one_in(2) { usual(model) } else { model }
}

/// The same of the kind that most machines are of, for which there are short ways.
fn usual(mut m: Model) -> Model {
    m.core.model = CoreModel::Simple;
    m.prefetch.next_line = false;
    for cache in [&mut m.l1i, &mut m.l1d, m.l2.as_mut().unwrap_or(&mut m.llc)] {
        cache.policy = Policy::Lru;
    }
    m
}

/// All that a turn's end shows. (Not the flags: those that nothing can read before they are written are not kept.)
#[derive(Clone, PartialEq, Debug)]
struct TurnEnd {
    gpr: [u64; 16],
    rip: u64,
    retired: u64,
    repeats: u64,
    fetched: u64,
    /// The line of RIP is the one fetched last. (Which other one it is that was fetched last makes no difference.)
    is_here: bool,
    cycles: u64,
    core: CoreCounters,
    hier: HierCounters,
    /// Lines in caches, and whether they are dirty.
    lines: Vec<(Spa, bool)>,
    /// What the filters have: tags and stamps. (Not the write tags of code pages, which go when code there is decoded: translated
    /// code is decoded earlier.)
    filters: Vec<[u64; 3]>,
}

/// Entries of the filters that have tags: address, whether stores pass, stamp.
fn filters(m: &Machine) -> Vec<[u64; 3]> {
    let core = m.vcpu.model.as_ref().expect("made with one");
    let data = core.lines().entries().map(|(va, writes, stamp)| {
        let is_code = [CODE, ALIAS]
            .iter()
            .any(|at| (*at..at + CODE_PAGES * PAGE).contains(&va.0));
        [va.0, u64::from(writes && !is_code), stamp]
    });
    let code = core.fetches().entries();
    data.chain(code.map(|(va, stamp)| [va.0, 0, stamp]))
        .collect()
}

fn turn_end(m: &mut Machine) -> TurnEnd {
    m.vcpu.drain();
    let s = &m.vcpu.state;
    TurnEnd {
        gpr: s.gpr,
        rip: s.rip,
        retired: s.retired,
        repeats: s.repeats,
        fetched: s.fetched,
        is_here: s.fetch_line == s.rip >> 6,
        cycles: m.vcpu.cycles(),
        core: m
            .vcpu
            .model
            .as_ref()
            .expect("made with one")
            .counters
            .clone(),
        hier: m.vcpu.mem.hier_counters(0),
        filters: filters(m),
        lines: m.vcpu.mem.cached_lines(),
    }
}

/// Most instructions of a run: some programs don't end.
const MOST: u64 = 20_000;

/// Runs a program turn by turn. Between turns something may happen that makes the next accesses miss.
fn run(m: &mut Machine, start: &Start, seed: u64) -> (Vec<TurnEnd>, Option<Outcome>) {
    let mut r = Rng::new(seed ^ 0x7075);
    let longest = r.pick(&[30, 200, 3000]);
    m.reset(start);
    let mut ends = Vec::new();
    let mut left = MOST;
    while left > 0 {
        let length = (1 + r.below(longest)).min(left);
        left -= length;
        let stop = m.run_turn(length);
        ends.push(turn_end(m));
        if stop != Stop::Budget {
            return (ends, Some(m.outcome(stop)));
        }
        match r.below(8) {
            0 => m.forget_mappings(),
            1 => m.vcpu.invlpg(Va(DATA + PAGE * r.below(DATA_PAGES))),
            _ => {}
        }
    }
    (ends, None)
}

/// Runs of a program: until it is translated, and a few times more.
const RUNS: u64 = 5;

struct Rig {
    reference: Machine,
    others: Vec<(&'static str, Sticky, Machine)>,
    /// Of each program's last runs, the part of the instructions that the interpreter did not run.
    translated: Vec<f64>,
}

impl Rig {
    fn new(kind: Kind, variation: u64) -> Self {
        let model = Arc::new(model(variation));
        let machine =
            |o: Option<JitOptions>| Machine::with_model(kind, o, Some(Arc::clone(&model)));
        Self {
            reference: machine(None),
            others: engines(variation)
                .into_iter()
                .map(|(name, o)| (name, Sticky::of(&o), machine(Some(o))))
                .collect(),
            translated: Vec::new(),
        }
    }

    /// What differs, if something does.
    fn check(&mut self, start: &Start, seed: u64) -> Option<String> {
        let mut last_runs = (0, 0);
        for n in 0..RUNS {
            let turns = seed.wrapping_mul(RUNS) + n;
            let (ends, out) = run(&mut self.reference, start, turns);
            for (name, sticky, m) in &mut self.others {
                let interpreted = |m: &Machine| {
                    m.engine
                        .as_ref()
                        .expect("made with one")
                        .stats()
                        .interpreted
                };
                let before = (m.vcpu.state.retired, interpreted(m));
                let (got, end) = run(m, start, turns);
                if n == RUNS - 1 {
                    last_runs.0 += m.vcpu.state.retired - before.0;
                    last_runs.1 += interpreted(m) - before.1;
                }
                if let Some(k) = (0..ends.len().max(got.len())).find(|&k| ends.get(k) != got.get(k))
                {
                    return Some(format!(
                        "engine `{name}`, run {n}: turn {k} of {} differs\n{}",
                        ends.len(),
                        difference(ends.get(k), got.get(k))
                    ));
                }
                let agree = match (&out, &end) {
                    (Some(a), Some(b)) => same(a, b, *sticky),
                    (None, None) => true,
                    _ => false,
                };
                if !agree {
                    return Some(format!("engine `{name}`, run {n}: the outcomes differ"));
                }
            }
        }
        let (ran, interpreted) = last_runs;
        self.translated
            .push(1.0 - interpreted as f64 / f64::max(ran as f64, 1.0));
        None
    }

    /// A few starts of one program, on machines that are called so, must not differ.
    fn agrees(&mut self, what: &str, variation: u64, code: &[u8]) {
        for seed in 0..4 {
            if let Some(difference) = self.check(&Start::new(seed, code), seed) {
                panic!(
                    "{what}: machine {variation}, seed {seed}: {difference}{}",
                    listing(code)
                );
            }
        }
    }

    fn refused(&self) -> u64 {
        let stats = |m: &Machine| m.engine.as_ref().expect("made with one").stats();
        self.others.iter().map(|o| stats(&o.2).refused).sum()
    }
}

/// The lines of two turn ends that are not the same.
fn difference(a: Option<&TurnEnd>, b: Option<&TurnEnd>) -> String {
    let text = |t: Option<&TurnEnd>| t.map_or(String::new(), |t| format!("{t:#x?}"));
    let (a, b) = (text(a), text(b));
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    let line = |l: &[&str], n: usize| l.get(n).copied().unwrap_or("").to_owned();
    let mut section = String::new();
    let mut out = String::new();
    for n in 0..a.len().max(b.len()) {
        if line(&a, n).ends_with('{') {
            section = line(&a, n);
        }
        if line(&a, n) != line(&b, n) {
            out += &format!(
                "  {}: {} | {}\n",
                section.trim(),
                line(&a, n).trim(),
                line(&b, n).trim()
            );
        }
    }
    out
}

fn shrink(program: &Program, seed: u64, kind: Kind, variation: u64) -> (Program, String) {
    let differs =
        |p: &Program| Rig::new(kind, variation).check(&Start::new(seed, &p.assemble()), seed);
    let Some(mut what) = differs(program) else {
        return (program.clone(), "only after what ran before it".into());
    };
    let mut best = program.clone();
    let started = Instant::now();
    loop {
        let before = best.items.len();
        for n in (0..before).rev() {
            let p = best.without(n);
            if let Some(w) = differs(&p) {
                (best, what) = (p, w);
            }
            if started.elapsed() > Duration::from_secs(30) {
                return (best, what);
            }
        }
        if best.items.len() == before {
            return (best, what);
        }
    }
}

/// Programs that run on the same machines, one after the other.
const PROGRAMS: u64 = 12;

fn random(kind: Kind, cases: u64, seed: u64) {
    let forms = Forms::new();
    let mut rig = Rig::new(kind, seed);
    let mut variation = seed;
    let (mut failed, mut refused, mut translated) = (0, 0, Vec::new());
    for case in 0..cases {
        let seed = seed + case;
        if case % PROGRAMS == 0 {
            refused += rig.refused();
            translated.append(&mut rig.translated);
            variation = seed;
            rig = Rig::new(kind, variation);
        }
        let mut program = Generator::new(&forms, seed).program();
        // In copies, flags that instructions leave undefined are the host's; and all engines have to run the same programs.
        program.defined = true;
        let start = Start::new(seed, &program.assemble());
        if let Some(first) = rig.check(&start, seed) {
            failed += 1;
            let (small, what) = shrink(&program, seed, kind, variation);
            eprintln!(
                "seed {seed:#x}, machines {variation:#x}, {kind:?}, {:?}: {first}\ncut down: {what}{}",
                model(variation).core,
                listing(&small.assemble())
            );
            rig = Rig::new(kind, variation);
            if failed == 3 {
                break;
            }
        }
    }
    refused += rig.refused();
    translated.append(&mut rig.translated);
    let translated = 100.0 * translated.iter().sum::<f64>() / translated.len().max(1) as f64;
    eprintln!(
        "{kind:?}: {cases} programs from seed {seed:#x}, {failed} differ, {translated:.0}% of a program's last runs translated"
    );
    assert_eq!(failed, 0, "programs differ");
    assert_eq!(refused, 0, "regions were refused");
    // What a program runs once is interpreted, and some programs are of instructions that are.
    assert!(
        cases < 48 || translated > 40.0,
        "too little runs translated"
    );
}

/// A loop of accesses to random places in a range, and of jumps to random blocks, each in a line of its own.
fn wandering(seed: u64) -> Vec<u8> {
    const BLOCKS: u64 = CODE + PAGE;
    const END: u64 = BLOCKS + 16 * 64;
    let r = &mut Rng::new(seed ^ 0x3a4d);
    let mask = r.pick(&[0x1f8u32, 0x7f8, 0xff8, 0x3fc0, 0x3ff8]) | r.pick(&[0, 0, 3, 7]);
    let start = assemble_at(CODE, |a| {
        a.mov(r8, seed | 1)?;
        a.mov(rsi, BLOCKS)?;
        a.mov(ecx, 40 + r.below(300) as u32)
    });
    let top = CODE + start.len() as u64;
    let body = assemble_at(top, |a| {
        for _ in 0..1 + r.below(5) {
            a.mov(r9, r8)?;
            a.shl(r9, 13)?;
            a.xor(r8, r9)?;
            a.mov(r9, r8)?;
            a.shr(r9, 7)?;
            a.xor(r8, r9)?;
            a.mov(r9, r8)?;
            a.shl(r9, 17)?;
            a.xor(r8, r9)?;
            a.mov(r10, r8)?;
            a.shr(r10, 20)?;
            a.and(r10d, mask as i32)?;
            let at = DATA;
            match r.below(9) {
                0 | 1 => a.mov(rax, qword_ptr(r10 + at))?,
                2 => a.mov(qword_ptr(r10 + at), r9)?,
                3 => a.add(dword_ptr(r10 + at), 5)?,
                4 => a.movdqu(xmm1, xmmword_ptr(r10 + at))?,
                5 => a.vmovdqu(ymmword_ptr(r10 + at), ymm2)?,
                6 => a.vpaddd(ymm2, ymm3, ymmword_ptr(r10 + at))?,
                7 => a.lock().inc(dword_ptr(r10 + at))?,
                _ => a.cvttsd2si(edx, qword_ptr(r10 + at))?,
            }
        }
        a.mov(edx, r8d)?;
        a.shr(edx, 9)?;
        a.and(edx, 15 * 64)?;
        a.add(rdx, rsi)?;
        a.jmp(rdx)
    });
    let mut code = [start, body].concat();
    assert!(code.len() as u64 <= PAGE);
    for n in 0..16 {
        let at = BLOCKS + 64 * n;
        code.resize((at - CODE) as usize, 0xcc);
        code.extend(assemble_at(at, |a| {
            a.inc(ebx)?;
            if n % 3 == 0 {
                a.push(rbx)?;
                a.pop(rdi)?;
            }
            a.dec(ecx)?;
            a.je(END)?;
            a.jmp(top)
        }));
    }
    code.resize((END - CODE) as usize, 0xcc);
    code.extend(assemble_at(END, |a| a.cpuid()));
    code
}

fn wander(kind: Kind, cases: u64, seed: u64) {
    let mut rig = Rig::new(kind, seed);
    let mut translated = Vec::new();
    for case in 0..cases {
        let seed = seed + case;
        if case % 4 == 3 {
            rig = Rig::new(kind, seed);
        }
        let start = Start::new(seed, &wandering(seed));
        if let Some(what) = rig.check(&start, seed) {
            panic!("seed {seed:#x}, {kind:?}: {what}\n{}", listing(&start.code));
        }
        translated.append(&mut rig.translated);
    }
    let share = translated.iter().sum::<f64>() / translated.len() as f64;
    assert!(share > 0.5, "most must run translated: {share}");
}

#[test]
fn wandering_loops_count_the_same() {
    let cases = variable("SEVLAB_LINES_CASES").unwrap_or(120);
    wander(Kind::Plain, cases / 6, first_seed());
    wander(Kind::Private, cases / 6, first_seed() ^ 0x1_0000_0000_0000);
}

#[test]
fn random_programs_count_the_same() {
    let cases = variable("SEVLAB_LINES_CASES").unwrap_or(120);
    random(Kind::Plain, cases / 2, first_seed());
    random(Kind::Private, cases / 2, first_seed() ^ 0x1_0000_0000_0000);
}

/// What is delicate in copies, one program each: it runs on some machines whose caches hardly hold anything, in turns of all lengths.
#[test]
fn what_is_delicate_in_copies_counts_the_same() {
    let programs: [(&str, Body); 13] = [
        ("a read-modify-write across lines touches each twice", |a| {
            a.add(qword_ptr(rbx + 61), rcx)?;
            a.lock().xadd(dword_ptr(rbx + 126), eax)?;
            a.inc(word_ptr(rbx + 191))
        }),
        ("what has to be aligned and is not touches nothing", |a| {
            a.mov(rdx, qword_ptr(rbx + 64))?;
            a.cmpxchg16b(xmmword_ptr(rbx + 56))
        }),
        ("nor does a vector", |a| {
            a.mov(rdx, qword_ptr(rbx + 64))?;
            a.movaps(xmm1, xmmword_ptr(rbx + 65))
        }),
        ("flags outlive probes", |a| {
            a.add(rax, rcx)?;
            a.mov(qword_ptr(rbx), rax)?;
            a.adc(rdx, qword_ptr(rbx + 0x140))?;
            a.push(rdx)?;
            a.setc(byte_ptr(rbx + 0x401))?;
            a.pop(rsi)?;
            a.inc(esi)?;
            a.mov(rdi, qword_ptr(rbx + 0x803))?;
            a.rcl(rdi, 1)?;
            a.cmovs(rdx, qword_ptr(rbx + 0xc05))?;
            a.pushfq()?;
            a.pop(r8)
        }),
        ("high halves of vector registers outlive helpers", |a| {
            a.vmovdqu(ymm1, ymmword_ptr(rbx + 0x33))?;
            a.mov(rax, qword_ptr(rbx + 0x1040))?;
            a.vpaddd(ymm2, ymm1, ymmword_ptr(rbx + 0x2080))?;
            a.mov(rdx, qword_ptr(rbx + 0x30c0))?;
            a.vmovdqu(ymmword_ptr(rbx + 0x75), ymm2)?;
            a.vzeroupper()?;
            a.vpaddd(xmm3, xmm3, xmmword_ptr(rbx + 0x10))
        }),
        (
            "a division that lies across lines is left before its load",
            |a| {
                a.xor(edx, edx)?;
                a.or(byte_ptr(rbx + 61), 1)?;
                a.div(dword_ptr(rbx + 61))
            },
        ),
        ("and one by nothing is made anew", |a| {
            a.xor(edx, edx)?;
            a.mov(dword_ptr(rbx + 8), edx)?;
            a.mov(rsi, qword_ptr(rbx + 0x1040))?;
            a.div(dword_ptr(rbx + 8))
        }),
        ("an indirect jump may stay in its line", |a| {
            let mut there = a.create_label();
            a.lea(rax, ptr(there))?;
            a.jmp(rax)?;
            a.set_label(&mut there)?;
            a.lea(rdx, ptr(rdx + 1))
        }),
        ("an instruction may lie in two lines", |a| {
            (0..40).try_for_each(|n| a.mov(rax, qword_ptr(rbx + n * 0x47 + 0x1000)))
        }),
        ("stack and targets in memory", |a| {
            let mut over = a.create_label();
            let mut callee = a.create_label();
            a.jmp(over)?;
            a.set_label(&mut callee)?;
            a.push(rbp)?;
            a.mov(rbp, rsp)?;
            a.push(qword_ptr(rsp + 8))?;
            a.leave()?;
            a.ret_1(16)?;
            a.set_label(&mut over)?;
            a.lea(rax, ptr(callee))?;
            a.mov(qword_ptr(rbx + 0x7c), rax)?;
            a.push(5)?;
            a.push(qword_ptr(rbx + 0x3c))?;
            a.call(qword_ptr(rbx + 0x7c))?;
            a.push(rcx)?;
            a.push(rcx)?;
            a.call(rax)
        }),
        ("an address that differs in high bits is another", |a| {
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(rdx, 1u64 << 48)?;
            a.add(qword_ptr(rbx + rdx), rcx)
        }),
        ("code that was read as data is code still", |a| {
            let (mut spot, mut skip) = (a.create_label(), a.create_label());
            a.lea(r8, ptr(spot))?;
            a.add(r8, (ALIAS - CODE) as i32)?;
            a.mov(r9, r8)?;
            a.and(r9, 0x7c0)?;
            a.add(r9, rbx)?;
            // It leaves the first level, comes back from the second, and may be written then, now and again.
            for line in 0..3 {
                a.mov(rax, qword_ptr(r9 + 0x800 * line))?;
            }
            a.mov(rax, qword_ptr(r8))?;
            a.test(ecx, 3)?;
            a.jne(skip)?;
            a.mov(byte_ptr(r8 + 1), cl)?;
            a.set_label(&mut skip)?;
            a.nop()?;
            a.set_label(&mut spot)?;
            a.mov(edx, 0x11)?;
            a.add(rsi, rdx)
        }),
        ("a step that repeats", |a| {
            a.lea(rsi, ptr(rbx + 0x21))?;
            a.lea(rdi, ptr(rbx + 0x1fe1))?;
            a.mov(r9, rcx)?;
            a.mov(ecx, 77)?;
            a.rep().movsb()?;
            a.mov(rcx, r9)?;
            a.mov(rax, qword_ptr(rbx + 0x1fe1))
        }),
    ];
    let simple = |n: &u64| model(*n).core.model == CoreModel::Simple;
    // What leaves the first level is in the second.
    let has_second = |n: &u64| {
        let m = model(*n);
        let below = m.l2.as_ref().is_some_and(|l2| l2.ways >= 4);
        m == usual(m.clone()) && m.l1d.ways == 2 && below
    };
    let variations: Vec<u64> = (0..)
        .filter(simple)
        .take(3)
        .chain((0..).filter(has_second).take(2))
        .collect();
    for (what, body) in programs {
        let code = assemble_at(CODE, |a| {
            let mut top = a.create_label();
            a.mov(rbx, DATA)?;
            a.mov(ecx, 30)?;
            a.set_label(&mut top)?;
            body(a)?;
            a.sub(ecx, 1)?;
            a.jne(top)?;
            a.cpuid()
        });
        for &variation in &variations {
            let mut rig = Rig::new(Kind::Private, variation);
            rig.agrees(what, variation, &code);
            let copies = rig.others.iter().find(|o| o.0 == "direct");
            let stats = copies.and_then(|o| Some(o.2.engine.as_ref()?.stats()));
            assert!(stats.is_some_and(|s| s.copied > 40), "{what}: {stats:?}");
        }
    }
}

/// What is found out behind a load that lies in two lines, of which one may push out the other, is the interpreter's before it.
#[test]
fn what_faults_behind_a_load_loads_once() {
    let programs: [(&str, Body); 4] = [
        ("a return to nowhere", |a| {
            a.lea(rsp, ptr(rbx + 0x13c))?;
            a.ret()
        }),
        ("a jump to nowhere", |a| a.jmp(qword_ptr(rbx + 0x13c))),
        ("a call without a stack", |a| {
            a.xor(esp, esp)?;
            a.call(qword_ptr(rbx + 0x17c))
        }),
        ("a push without a stack", |a| {
            a.xor(esp, esp)?;
            a.push(qword_ptr(rbx + 0x13c))
        }),
    ];
    let pushes_out = |n: &u64| {
        let l1d = model(*n).l1d;
        l1d.sets() <= 2 && l1d.ways <= 4 && matches!(l1d.policy, Policy::Fifo | Policy::Random)
    };
    for (what, last) in programs {
        let code = assemble_at(CODE, |a| {
            let mut top = a.create_label();
            let mut target = a.create_label();
            a.mov(rbx, DATA)?;
            a.lea(rax, ptr(target))?;
            a.mov(qword_ptr(rbx + 0x17c), rax)?;
            a.mov(rax, 0x1234_5678_9abc_def0u64)?;
            a.mov(qword_ptr(rbx + 0x13c), rax)?;
            a.mov(ecx, 7)?;
            a.set_label(&mut top)?;
            a.add(edx, dword_ptr(rbx + 0x200))?;
            a.add(edx, dword_ptr(rbx + 0x1c0))?;
            a.sub(ecx, 1)?;
            a.jne(top)?;
            a.set_label(&mut target)?;
            last(a)
        });
        for variation in (0..).filter(pushes_out).take(30) {
            let mut rig = Rig::new(Kind::Private, variation);
            rig.agrees(what, variation, &code);
        }
    }
}

/// The body of a loop.
type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;
