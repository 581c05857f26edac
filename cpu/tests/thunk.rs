//! Native thunks against the host processor: every supported form, random registers, operands, rounding and exception modes.
#![allow(unsafe_code)] // runs raw instructions

#[path = "thunk/forms.rs"]
mod forms;
mod host;
#[path = "thunk/native.rs"]
mod native;

use std::collections::{BTreeMap, BTreeSet};

use forms::{Placement, Random};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};
use native::{MEMORY, Native, Registers};
use sevlab_cpu::insn::{Control, Rep};
use sevlab_cpu::state::Lane;
use sevlab_cpu::thunk::{self, ThunkCache, ThunkError, ThunkKind, ThunkMemory, mxcsr};
use sevlab_cpu::{CpuState, Exception, Insn, MemRef, Op, Operand, Stop, Width, flags};

/// Guest memory: the bytes of the native operand memory, at the same addresses.
struct Memory {
    base: u64,
    bytes: Vec<u8>,
}

impl Memory {
    fn range(&self, va: u64, len: usize) -> Result<core::ops::Range<usize>, Stop> {
        let at = va.wrapping_sub(self.base) as usize;
        match at.checked_add(len) {
            Some(end) if end <= self.bytes.len() => Ok(at..end),
            _ => Err(Exception::page_fault(sevlab_arch::Va(va), 4).into()),
        }
    }
}

impl ThunkMemory for Memory {
    fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        out.copy_from_slice(&self.bytes[self.range(va, out.len())?]);
        Ok(())
    }
    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        let r = self.range(va, data.len())?;
        self.bytes[r].copy_from_slice(data);
        Ok(())
    }
    fn probe_write(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.range(va, len).map(|_| ())
    }
}

fn insn(i: &Instruction, bytes: &[u8]) -> Insn {
    let mut b = [0; 15];
    b[..bytes.len()].copy_from_slice(bytes);
    Insn {
        rip: 0x40_1000,
        op: Op::Thunk,
        len: bytes.len() as u8,
        width: Width::B8,
        src_width: Width::B8,
        lock: false,
        rep: Rep::None,
        control: Control::Next,
        ops: [Operand::None; 4],
        mem: MemRef::ABSENT,
        code: i.code() as u16,
        flags_in: 0,
        flags_out: 0,
        bytes: b,
    }
}

/// 32 bytes in one of several styles: noise, floats of all classes, small integers.
fn vector(r: &mut Random) -> [u8; 32] {
    const SINGLE: [u32; 16] = [
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7fa0_0001,
        1,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x3f80_0000,
        0xbf80_0000,
        0x4000_0000,
        0x4f00_0000,
        0x3f00_0001,
        0x4b80_0001,
    ];
    const DOUBLE: [u64; 16] = [
        0,
        1 << 63,
        0x7ff0 << 48,
        0xfff0 << 48,
        0x7ff8 << 48,
        0x7ff4_0000_0000_0001,
        1,
        0x800f_ffff_ffff_ffff,
        0x0010 << 48,
        0x7fef_ffff_ffff_ffff,
        0x3ff0 << 48,
        0xbff0 << 48,
        0x4000 << 48,
        0x41e0 << 48,
        0x3fe0_0000_0000_0001,
        0x43e0 << 48,
    ];
    let mut out = [0; 32];
    let style = r.below(7);
    for lane in 0..4 {
        let q = match style {
            0 | 1 => r.next(),
            2 => u64::from(SINGLE[r.below(16)]) << 32 | u64::from(SINGLE[r.below(16)]),
            3 => DOUBLE[r.below(16)],
            4 => {
                let f = |r: &mut Random| {
                    ((r.next() as i32 >> 8) as f32 / (1 + r.below(3000)) as f32).to_bits()
                };
                u64::from(f(r)) << 32 | u64::from(f(r))
            }
            5 => ((r.next() as i64 >> 20) as f64 / (1 + r.below(3000)) as f64).to_bits(),
            _ => r.next() & 0x0f81_0183_000f_8107,
        };
        out[8 * lane..8 * lane + 8].copy_from_slice(&q.to_le_bytes());
    }
    out
}

/// An 80-bit value of any class.
fn extended(r: &mut Random) -> [u8; 10] {
    let exponent = match r.below(6) {
        0 => 0,
        1 => 0x7fff,
        2 => r.next() as u16 & 0x7fff,
        _ => 0x3fff - 40 + r.below(100) as u16,
    };
    let mantissa = match r.below(6) {
        0 => 0,
        1 => 1 << 63,
        2 => r.next(),
        3 => 3 << 62,
        _ => r.next() | 1 << 63,
    };
    let mut out = [0; 10];
    out[..8].copy_from_slice(&mantissa.to_le_bytes());
    out[8..].copy_from_slice(&(exponent | (r.next() as u16 & 0x8000)).to_le_bytes());
    out
}

/// A random FXSAVE image with a consistent status word.
fn fx_image(r: &mut Random, modes: bool) -> [u8; 512] {
    let mut fx = [0; 512];
    let masks = if modes && r.one_in(3) {
        r.next() as u16 & 0x3f
    } else {
        0x3f
    };
    let control = masks | 0x40 | (r.next() as u16 & 0x0c00) | [0, 0x200, 0x300, 0x300][r.below(4)];
    let mut status = r.next() as u16 & 0x7f7f;
    if r.one_in(2) {
        status &= 0x7f00;
    }
    if status & !control & 0x3f != 0 {
        if r.one_in(2) {
            status &= control | !0x3f;
        } else {
            status |= 0x8080;
        }
    }
    let tag = [0, 0xff, r.next() as u8, 0xff][r.below(4)];
    fx[0..2].copy_from_slice(&control.to_le_bytes());
    fx[2..4].copy_from_slice(&status.to_le_bytes());
    fx[4] = tag;
    let mxcsr_masks = if modes && r.one_in(4) {
        r.next() as u32 & 0x1f80
    } else {
        0x1f80
    };
    let mut v = mxcsr_masks | (r.next() as u32 & 0x6000);
    if r.one_in(4) {
        v |= r.next() as u32 & 0x8040;
    }
    if r.one_in(3) {
        v |= r.next() as u32 & 0x3f;
    }
    fx[24..28].copy_from_slice(&v.to_le_bytes());
    for n in 0..8 {
        let e = extended(r);
        fx[32 + 16 * n..42 + 16 * n].copy_from_slice(&e);
    }
    fx
}

fn random_registers(r: &mut Random, modes: bool) -> Registers {
    let mut regs = Registers {
        gpr: core::array::from_fn(|_| {
            let v = r.next();
            [v, v & 0xff, v as i32 as u64, v & 0x1f, u64::MAX, 0][r.below(6)]
        }),
        flags: 0x202 | (r.next() & flags::ARITH),
        pad: [0; 15],
        ymm: core::array::from_fn(|_| vector(r)),
        fx: fx_image(r, modes),
    };
    // Two equal registers now and then: comparisons, ties.
    if r.one_in(4) {
        regs.ymm[r.below(16)] = regs.ymm[r.below(16)];
    }
    regs
}

/// Sets address registers so that the memory operand is at `va`, as far as the operand allows.
fn place(p: &Placement, i: &Instruction, regs: &mut Registers, va: u64, r: &mut Random) {
    if let Some(v) = p.vector_index {
        let index_bytes = if matches!(
            i.mnemonic(),
            Mnemonic::Vgatherdps
                | Mnemonic::Vgatherdpd
                | Mnemonic::Vpgatherdd
                | Mnemonic::Vpgatherdq
        ) {
            4
        } else {
            8
        };
        for k in (0..32).step_by(index_bytes) {
            let v64 = (r.below(200) as i64 - 100).to_le_bytes();
            regs.ymm[v][k..k + index_bytes].copy_from_slice(&v64[..index_bytes]);
        }
    }
    let mut offset = p.disp;
    if let Some(x) = p.index {
        regs.gpr[x] = r.next() >> 20;
        offset = offset.wrapping_add(regs.gpr[x].wrapping_mul(p.scale));
    }
    if let Some(b) = p.base {
        regs.gpr[b] = va.wrapping_sub(offset);
    }
    if matches!(
        i.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    ) {
        regs.gpr[7] = va;
    }
}

fn to_state(regs: &Registers, r: &mut Random) -> Box<CpuState> {
    let mut s = CpuState::process();
    s.gpr = regs.gpr;
    s.set_rflags(regs.flags);
    let q = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
    for n in 0..16 {
        let v = &regs.ymm[n];
        s.xmm[n] = Lane([q(&v[0..8]), q(&v[8..16])]);
        s.ymmh[n] = Lane([q(&v[16..24]), q(&v[24..32])]);
    }
    s.fx.0 = regs.fx;
    s.fx.0[160..416].fill(0x5a);
    for b in &mut s.scratch.0 {
        *b = r.next() as u8;
    }
    s
}

fn from_state(s: &CpuState, mxcsr: u32) -> Registers {
    let mut fx = s.fx.0;
    fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    Registers {
        gpr: s.gpr,
        flags: s.rflags(),
        pad: [0; 15],
        ymm: core::array::from_fn(|n| {
            let mut v = [0; 32];
            for (c, q) in v
                .chunks_exact_mut(8)
                .zip([s.xmm[n].0, s.ymmh[n].0].as_flattened())
            {
                c.copy_from_slice(&q.to_le_bytes());
            }
            v
        }),
        fx,
    }
}

/// What differs, in words.
fn differences(native: &Registers, thunk: &Registers) -> Vec<String> {
    let mut out = Vec::new();
    for n in 0..16 {
        if native.gpr[n] != thunk.gpr[n] {
            out.push(format!(
                "gpr{n}: native {:#x}, thunk {:#x}",
                native.gpr[n], thunk.gpr[n]
            ));
        }
        if native.ymm[n] != thunk.ymm[n] {
            out.push(format!(
                "ymm{n}: native {:02x?}, thunk {:02x?}",
                native.ymm[n], thunk.ymm[n]
            ));
        }
    }
    let (a, b) = (native.flags & flags::ARITH, thunk.flags & flags::ARITH);
    if a != b {
        out.push(format!("flags: native {a:#x}, thunk {b:#x}"));
    }
    let mut part = |name: &str, r: core::ops::Range<usize>| {
        if native.fx[r.clone()] != thunk.fx[r.clone()] {
            out.push(format!(
                "{name}: native {:02x?}, thunk {:02x?}",
                &native.fx[r.clone()],
                &thunk.fx[r]
            ));
        }
    };
    part("fcw", 0..2);
    part("fsw", 2..4);
    part("ftw", 4..5);
    part("mxcsr", 24..28);
    for n in 0..8 {
        part(&format!("st{n}"), 32 + 16 * n..42 + 16 * n);
    }
    out
}

/// Where the instruction pointer is in the environment that an instruction loads.
fn environment(i: &Instruction) -> Option<core::ops::Range<usize>> {
    use Mnemonic::{Fldenv, Frstor};
    match (i.mnemonic(), i.memory_size().size()) {
        (Fldenv | Frstor, 14 | 94) => Some(6..8),
        (Fldenv | Frstor, _) => Some(12..16),
        _ => None,
    }
}

/// What `thunk::run` says is not exact when a SIMD exception is raised: PE beside OE or UE, flags of dot products.
fn forgive_flags(i: &Instruction, native: &Registers, thunk: &mut Registers) {
    use Mnemonic::*;
    if matches!(i.mnemonic(), Dpps | Dppd | Vdpps | Vdppd) {
        thunk.fx[24] = native.fx[24];
    } else if native.fx[24] & 0x18 != 0 {
        thunk.fx[24] = thunk.fx[24] & !0x20 | native.fx[24] & 0x20;
    }
}

#[derive(Default)]
struct Tally {
    runs: usize,
    faults: BTreeMap<i32, usize>,
    failures: BTreeMap<String, (usize, String)>,
}

struct Bench {
    native: Native,
    cache: ThunkCache,
    random: Random,
    tally: Tally,
    modes: bool,
    integer: bool,
}

impl Bench {
    fn new(seed: u64, modes: bool, integer: bool) -> Self {
        Self {
            native: Native::new(),
            cache: ThunkCache::new().expect("executable memory"),
            random: Random(seed),
            tally: Tally::default(),
            modes,
            integer,
        }
    }

    fn fail(&mut self, i: &Instruction, bytes: &[u8], what: String) {
        let e = self
            .tally
            .failures
            .entry(format!("{:?}", i.code()))
            .or_default();
        e.0 += 1;
        if e.1.is_empty() {
            e.1 = format!("{bytes:02x?} {what}");
        }
    }

    fn check(&mut self, form: &Instruction) {
        let (i, bytes, p) = forms::instance(form, &mut self.random);
        let decoded = insn(&i, &bytes);
        let got = if self.integer {
            self.cache.get_integer(&decoded)
        } else {
            self.cache.get(&decoded)
        };
        let t = match got {
            Ok(t) => t,
            // The only feature of x86-64-v3 and beyond that some hosts of today lack.
            Err(ThunkError::HostLacks { feature, .. })
                if feature == CpuidFeature::GFNI && !is_x86_feature_detected!("gfni") =>
            {
                return;
            }
            Err(e) => return self.fail(&i, &bytes, format!("no thunk: {e}")),
        };
        for _ in 0..3 {
            let r = &mut self.random;
            let mut regs = random_registers(r, self.modes);
            let misaligned = r.one_in(8);
            let va = self.native.base() + 4096 - 64
                + 64 * r.below(3) as u64
                + if misaligned { r.below(64) as u64 } else { 0 };
            place(&p, &i, &mut regs, va, r);
            let memory: Vec<u8> = (0..MEMORY / 32).flat_map(|_| vector(r)).collect();
            if matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr) && r.one_in(2) {
                let at = (va - self.native.base()) as usize;
                self.native.memory().copy_from_slice(&memory);
                self.native.memory()[at + 2..at + 4].fill(0);
            } else {
                self.native.memory().copy_from_slice(&memory);
            }
            let mut mem = Memory {
                base: self.native.base(),
                bytes: self.native.memory().to_vec(),
            };
            let mut state = to_state(&regs, r);
            let guest_mxcsr = u32::from_le_bytes(regs.fx[24..28].try_into().expect("four bytes"));
            let before = regs.clone();
            let signal = self.native.run(&bytes, &mut regs);

            mxcsr::load(&mut state, guest_mxcsr);
            let result = thunk::run(t, &mut state, &mut mem, &decoded, va);
            let live = mxcsr::live(&state);
            let mut after = from_state(&state, live);
            mxcsr::load(&mut state, 0x1f80);

            self.tally.runs += 1;
            *self.tally.faults.entry(signal).or_default() += 1;
            if matches!(i.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed) {
                after.gpr = regs.gpr;
                after.flags = regs.flags;
            }
            let expected = match signal {
                0 => result == Ok(()),
                libc::SIGSEGV => result == Err(Exception::GENERAL_PROTECTION.into()),
                libc::SIGFPE => {
                    result == Err(Exception::X87.into()) || result == Err(Exception::SIMD.into())
                }
                _ => false,
            };
            if signal == libc::SIGFPE && result == Err(Exception::SIMD.into()) {
                forgive_flags(&i, &regs, &mut after);
            }
            if host::own_way(&i, &bytes, before.gpr[1])
                && result == Err(Exception::GENERAL_PROTECTION.into())
            {
                // SHA without alignment.
                continue;
            }
            if host::rotates(&i) {
                // OF is undefined for counts other than one, and what was there before can be seen in it.
                after.flags = after.flags & !flags::OF | regs.flags & flags::OF;
            }
            let mut wrong = differences(&regs, &after);
            if !expected {
                wrong.insert(0, format!("native signal {signal}, thunk {result:?}"));
            }
            // No host address: this instruction's own, none, or what it loaded.
            let pointer = state.fx.pointers().instruction;
            let loaded = environment(&i).map(|r| {
                let at = (va - mem.base) as usize;
                let mut b = [0; 8];
                b[..r.len()].copy_from_slice(&memory[at + r.start..at + r.end]);
                u64::from_le_bytes(b)
            });
            if ![0, decoded.rip].contains(&pointer) && loaded != Some(pointer) {
                wrong.push(format!("x87 instruction pointer {pointer:#x}"));
            }
            if self.native.memory() != mem.bytes.as_slice() {
                let at = self
                    .native
                    .memory()
                    .iter()
                    .zip(&mem.bytes)
                    .position(|(a, b)| a != b)
                    .unwrap_or(0);
                let end = (at + 32).min(MEMORY);
                wrong.push(format!(
                    "memory at operand{:+}: native {:02x?}, thunk {:02x?}",
                    at as i64 - (va - mem.base) as i64,
                    &self.native.memory()[at..end],
                    &mem.bytes[at..end]
                ));
            }
            if !wrong.is_empty() {
                let context = format!(
                    "fcw {:02x?} fsw {:02x?} ftw {:02x} mxcsr {guest_mxcsr:#x}: {}",
                    &before.fx[0..2],
                    &before.fx[2..4],
                    before.fx[4],
                    wrong.join("; ")
                );
                self.fail(&i, &bytes, context);
            }
        }
    }

    fn finish(&self, name: &str, codes: usize, forms: usize) {
        println!(
            "{name}: {codes} codes, {forms} forms, {} runs, native signals {:?}, {} thunks, {} bytes of code",
            self.tally.runs,
            self.tally.faults,
            self.cache.len(),
            self.cache.code_bytes()
        );
        for (code, (n, first)) in &self.tally.failures {
            println!("FAIL {code} x{n}: {first}");
        }
        assert!(
            self.tally.failures.is_empty(),
            "{} codes fail",
            self.tally.failures.len()
        );
    }
}

fn rounds() -> usize {
    std::env::var("THUNK_ROUNDS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(12)
}

fn routed(code: Code) -> bool {
    thunk::route(code).is_some()
}

#[test]
fn every_form_agrees_with_the_host() {
    let forms = forms::walk(routed);
    let reached: BTreeSet<u16> = forms.keys().map(|k| k.0).collect();
    let missing: Vec<_> = Code::values()
        .filter(|&c| thunk::route(c).is_some() && !reached.contains(&(c as u16)))
        .collect();
    println!("routed codes that 64-bit decoding does not reach: {missing:?}");
    let mut kinds = BTreeMap::new();
    for c in Code::values() {
        if let Some(k) = thunk::route(c)
            && reached.contains(&(c as u16))
        {
            *kinds.entry(format!("{k:?}")).or_insert(0) += 1;
        }
    }
    println!("by kind: {kinds:?}");
    for (name, modes) in [("masked", false), ("all modes", true)] {
        let mut bench = Bench::new(if modes { 2 } else { 1 }, modes, false);
        for form in forms.values() {
            for _ in 0..rounds() {
                bench.check(form);
            }
        }
        bench.finish(name, reached.len(), forms.len());
    }
    assert!(
        missing.is_empty() && reached.len() >= 1280,
        "only {} codes",
        reached.len()
    );
}

#[test]
fn base_integer_instructions_agree_with_the_host() {
    let mut forms = forms::walk(thunk::integer);
    forms.retain(|_, i| {
        let bit_string = matches!(
            i.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        ) && forms::has_memory(i)
            && i.op_kind(1) == iced_x86::OpKind::Register;
        let absolute = format!("{:?}", i.code()).contains("moffs");
        !bit_string && !absolute
    });
    let codes: BTreeSet<u16> = forms.keys().map(|k| k.0).collect();
    let mut bench = Bench::new(3, false, true);
    for form in forms.values() {
        for _ in 0..rounds() {
            bench.check(form);
        }
    }
    bench.finish("integer", codes.len(), forms.len());
}

#[test]
fn supported_features_without_a_route_are_known() {
    // Reached by 64-bit decoding, every feature supported, but no thunk: hints, fences, what only 8087s and 287s did.
    let known = [
        "Lfence", "Mfence", "Sfence", "Prefetch", "Fneni", "Fndisi", "Fnsetpm",
    ];
    let features: BTreeSet<_> = Code::values()
        .filter(|&c| thunk::route(c).is_some_and(|k| k != ThunkKind::Gpr && c != Code::Wait))
        .flat_map(|c| c.cpuid_features().iter().map(|f| *f as usize))
        .collect();
    let left = forms::walk(|c| {
        !routed(c)
            && !thunk::integer(c)
            && c.cpuid_features()
                .iter()
                .all(|f| features.contains(&(*f as usize)))
    });
    for i in left.values() {
        let name = format!("{:?}", i.code());
        assert!(
            known.iter().any(|k| name.starts_with(k)),
            "{name} is not routed"
        );
    }
}
