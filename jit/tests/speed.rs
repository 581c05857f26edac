//! How fast simple loops run: not a test of anything, so it has to be asked for:
//! `cargo test --release -p sevlab-jit --test speed -- --ignored --nocapture`. With `SEVLAB_DUMP` set to a directory,
//! the translations are written there for reading; `SEVLAB_LOOP` picks the loops whose name contains it.

#[path = "diff/machine.rs"]
mod machine;

use iced_x86::code_asm::*;
use machine::{CODE, Kind, Machine, Start};
use sevlab_jit::{JitOptions, OptLevel};
use std::time::Instant;

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A loop of `turns` turns around `body`, which leaves RCX alone.
fn program(turns: u32, body: Body) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 bits");
    let mut build = || -> Result<Vec<u8>, IcedError> {
        let (mut top, mut function, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        a.jmp(over)?;
        // The function that the calling loop calls: CODE + 5.
        a.set_label(&mut function)?;
        a.lea(rax, ptr(rax + rdx))?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.mov(ecx, turns)?;
        a.mov(edx, 3)?;
        a.set_label(&mut top)?;
        body(&mut a)?;
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.cpuid()?;
        a.assemble(CODE)
    };
    build().expect("an encodable program")
}

const LOOPS: [(&str, Body); 8] = [
    ("add, cmp, jcc", |a| {
        let mut skip = a.create_label();
        a.add(rax, rdx)?;
        a.cmp(rax, r8)?;
        a.jb(skip)?;
        a.xor(eax, eax)?;
        a.set_label(&mut skip)?;
        a.zero_bytes()
    }),
    ("load, store", |a| {
        a.mov(rax, qword_ptr(rbx))?;
        a.add(rax, rdx)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(r8d, dword_ptr(rbp + 16))
    }),
    ("read-modify-write", |a| {
        a.add(dword_ptr(rbx), edx)?;
        a.inc(qword_ptr(rbp))
    }),
    ("call, ret", |a| a.call(CODE + 2)),
    ("push, pop", |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.pop(rdx)?;
        a.pop(rax)
    }),
    ("packed integers", |a| {
        a.movdqu(xmm0, xmmword_ptr(rbx))?;
        a.paddd(xmm0, xmm1)?;
        a.pmulld(xmm0, xmm2)?;
        a.pxor(xmm1, xmm0)?;
        a.movdqu(xmmword_ptr(rbp), xmm0)
    }),
    ("scalar doubles", |a| {
        a.movsd_2(xmm0, qword_ptr(rbx))?;
        a.mulsd(xmm0, xmm1)?;
        a.addsd(xmm2, xmm0)?;
        a.ucomisd(xmm2, xmm3)
    }),
    ("adc over dec", |a| {
        a.dec(r9)?;
        a.adc(rax, rdx)?;
        a.lea(r8, ptr(r8 + 8))
    }),
];

#[test]
#[ignore = "measures"]
fn simple_loops() {
    let engines: [(&str, Option<JitOptions>); 3] = {
        let base = JitOptions {
            threshold: 50,
            background: false,
            dump_dir: std::env::var_os("SEVLAB_DUMP").map(Into::into),
            ..JitOptions::default()
        };
        [
            ("interpreter", None),
            (
                "none",
                Some(JitOptions {
                    opt_level: OptLevel::None,
                    dump_dir: None,
                    ..base.clone()
                }),
            ),
            (
                "speed",
                Some(JitOptions {
                    opt_level: OptLevel::Speed,
                    ..base
                }),
            ),
        ]
    };
    println!(
        "{:20}{:>14}{:>14}{:>14}   ns per guest instruction",
        "", "interpreter", "none", "speed"
    );
    let mut compiled = Vec::new();
    let only = std::env::var("SEVLAB_LOOP").unwrap_or_default();
    for (name, body) in LOOPS.into_iter().filter(|l| l.0.contains(&only)) {
        print!("{name:20}");
        for (engine, options) in engines.clone() {
            let turns = if options.is_some() {
                20_000_000
            } else {
                2_000_000
            };
            let mut m = Machine::new(Kind::Plain, options);
            m.budget = u64::MAX;
            let mut start = Start::new(1, &program(turns, body));
            start.gpr[8] = 1 << 40;
            start.gpr[9] = u64::MAX;
            start.mxcsr = 0x1f80;
            start.data[0x800..0x808].copy_from_slice(&1f64.to_bits().to_le_bytes());
            for x in &mut start.xmm {
                *x = [1.5f64.to_bits(); 2];
            }
            // Twice: the first run translates.
            let mut time = 0.0;
            for _ in 0..2 {
                m.reset(&start);
                let before = Instant::now();
                let out = m.run().expect("fewer blocks than the budget");
                time = before.elapsed().as_nanos() as f64 / out.retired as f64;
            }
            print!("{time:14.3}");
            if let Some(e) = &m.engine {
                let s = e.stats();
                compiled.push((
                    engine,
                    s.regions,
                    s.guest_insns,
                    s.host_bytes,
                    s.compile_time,
                ));
            }
        }
        println!();
    }
    for which in ["none", "speed"] {
        let mine = compiled.iter().filter(|c| c.0 == which);
        let (mut regions, mut insns, mut bytes, mut time) = (0, 0, 0, 0.0);
        for c in mine {
            regions += c.1;
            insns += c.2;
            bytes += c.3;
            time += c.4.as_secs_f64() * 1e6;
        }
        println!(
            "{which}: {regions} regions, {:.0} us a region, {:.1} us and {:.0} bytes a guest instruction",
            time / regions as f64,
            time / insns as f64,
            bytes as f64 / insns as f64
        );
    }
}
