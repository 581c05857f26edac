//! Odd encodings against the host: random bytes with stray, repeated and misplaced prefixes, stepped natively and here. What
//! is compared is everything: which exception, where control goes, registers, memory.
#![allow(unsafe_code)] // the native half
#![allow(dead_code)] // shared with other tests

mod host;
#[path = "thunk/native.rs"]
mod native;
mod oracle;

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature as F, Decoder, DecoderOptions, Instruction, Mnemonic as M};
use native::{MEMORY, Native, Registers};
use oracle::{CODE, DATA, GS_BASE, Rng, guest};
use sevlab_cpu::flags::{ARITH, DF, OF};
use sevlab_cpu::interp::step;
use sevlab_cpu::state::{CpuState, Lane};
use sevlab_cpu::stop::{Exception, Stop};
use sevlab_cpu::table::{self, Route};
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::vcpu::Vcpu;

const AC: u64 = 1 << 18;

/// What the host may be asked to run: nothing that leaves the sandbox, asks the outside, or that only the host has.
fn safe(x: &Instruction) -> bool {
    use M::*;
    if matches!(
        x.mnemonic(),
        Syscall
            | Sysenter
            | Sysexit
            | Sysexitq
            | Sysret
            | Sysretq
            | Int
            | Int1
            | Iret
            | Iretd
            | Iretq
            | Retf
    ) || matches!(
        x.mnemonic(),
        Wrfsbase
            | Rdfsbase
            | Wrgsbase
            | Rdgsbase
            | Cpuid
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdpid
            | Rdrand
            | Rdseed
    ) || matches!(
        x.mnemonic(),
        Xrstor
            | Xrstor64
            | Fxrstor
            | Fxrstor64
            | Xsave
            | Xsave64
            | Xsavec
            | Xsavec64
            | Xsaveopt
            | Xsaveopt64
            | Xgetbv
    ) || matches!(
        x.mnemonic(),
        Vmmcall | Vmcall | Vmgexit | Vmfunc | Lss | Lfs | Lgs | Popf | Popfq
    ) || matches!(
        x.mnemonic(),
        Sgdt | Sidt | Sldt | Smsw | Str | Lar | Lsl | Verr | Verw
    ) || matches!(
        x.mnemonic(),
        Psmash
            | Pvalidate
            | Rmpupdate
            | Rmpadjust
            | Clzero
            | Monitorx
            | Mwaitx
            | Rdpru
            | Extrq
            | Insertq
            | Movntss
            | Movntsd
    ) || x.segment_prefix() == iced_x86::Register::FS
    {
        return false;
    }
    // Segment registers and far transfers would leave 64-bit code.
    let code = x.code();
    if matches!(
        code,
        Code::Mov_Sreg_rm16
            | Code::Mov_Sreg_r32m16
            | Code::Mov_Sreg_r64m16
            | Code::Popw_FS
            | Code::Popq_FS
    ) || matches!(
        code,
        Code::Popw_GS
            | Code::Popq_GS
            | Code::Mov_rm16_Sreg
            | Code::Mov_r32m16_Sreg
            | Code::Mov_r64m16_Sreg
    ) || matches!(
        code,
        Code::Pushw_FS | Code::Pushq_FS | Code::Pushw_GS | Code::Pushq_GS
    ) || x.is_jmp_far_indirect()
        || x.is_call_far_indirect()
    {
        return false;
    }
    let row = table::row(code);
    if row.route == Route::Undefined {
        // The host may have what this machine has not.
        return code
            .cpuid_features()
            .iter()
            .all(|f| matches!(f, F::INTEL8086 | F::INTEL386 | F::X64 | F::FPU | F::FPU387));
    }
    // RDSSP writes a register where there are shadow stacks; the host may have hint encodings that mean something.
    !matches!(
        x.mnemonic(),
        Rdsspd | Rdsspq | Reservednop | Endbr32 | Endbr64 | Cldemote | Prefetchit0 | Prefetchit1
    )
}

/// Bytes that look like an instruction with too many prefixes.
fn bytes(r: &mut Rng) -> Vec<u8> {
    let mut b = Vec::new();
    for _ in 0..r.below(5) {
        let p = [
            0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x65, 0x2e, 0x36, 0x3e, 0x26, 0x66, 0xf2, 0xf3,
        ][r.below(13) as usize];
        b.push(p);
        if r.below(8) == 0 {
            b.push(0x40 | r.below(16) as u8);
        }
    }
    let v = r.next();
    if r.below(2) == 0 {
        b.push(0x40 | v as u8 & 15);
    }
    match r.below(8) {
        0 => b.extend([0xc4, r.next() as u8, r.next() as u8, r.next() as u8]),
        1 => b.extend([0xc5, r.next() as u8, r.next() as u8]),
        2 | 3 => b.push((v >> 8) as u8),
        4 | 5 => b.extend([0x0f, (v >> 8) as u8]),
        6 => b.extend([0x0f, 0x38, (v >> 8) as u8]),
        _ => b.extend([0x0f, 0x3a, (v >> 8) as u8]),
    }
    while b.len() < 15 {
        b.push(if r.below(3) == 0 {
            r.below(32) as u8
        } else {
            r.next() as u8
        });
    }
    b.truncate(15);
    b
}

fn random_registers(r: &mut Rng) -> Registers {
    let mut regs = Registers {
        gpr: [0; 16],
        flags: 0x302 | r.next() & ARITH,
        pad: [0; 15],
        ymm: [[0; 32]; 16],
        fx: [0; 512],
    };
    for g in &mut regs.gpr {
        *g = match r.below(8) {
            0 => r.value(),
            1 => r.below(64),
            2 => 0x0001_2345_6789_0000 | r.next() << 48,
            _ => DATA + 0x800 + r.below(0x1000),
        };
        if r.below(2) == 0 {
            *g &= !63;
        }
        // An operand that begins below the hole of non-canonical addresses and ends in it is walked by pages here.
        if (*g ^ g.wrapping_add(1 << 32)) >> 47 & 1 != 0 {
            *g = DATA;
        }
    }
    regs.gpr[4] = DATA + 0x800 + r.below(0x100) * 8;
    if r.below(16) == 0 {
        regs.gpr[4] |= 1 << 60;
    }
    regs.gpr[1] = if r.below(2) == 0 {
        r.below(20)
    } else {
        regs.gpr[1]
    };
    if r.below(4) == 0 {
        regs.flags |= DF;
    }
    for y in &mut regs.ymm {
        for b in y.iter_mut() {
            *b = r.next() as u8;
        }
    }
    regs.fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    regs.fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    regs
}

fn put(s: &mut CpuState, r: &Registers) {
    let q = |b: &[u8], n: usize| {
        u64::from_le_bytes(b[8 * n..8 * n + 8].try_into().expect("eight bytes"))
    };
    s.gpr = r.gpr;
    s.set_rflags(r.flags);
    for n in 0..16 {
        s.xmm[n] = Lane([q(&r.ymm[n], 0), q(&r.ymm[n], 1)]);
        s.ymmh[n] = Lane([q(&r.ymm[n], 2), q(&r.ymm[n], 3)]);
    }
    s.fx.restore_x87(&r.fx);
    mxcsr::load(
        s,
        u32::from_le_bytes(r.fx[24..28].try_into().expect("four bytes")),
    );
}

fn vector(s: &CpuState, n: usize) -> [u8; 32] {
    let mut out = [0; 32];
    let quads = [s.xmm[n].0[0], s.xmm[n].0[1], s.ymmh[n].0[0], s.ymmh[n].0[1]];
    for (c, q) in out.chunks_exact_mut(8).zip(quads) {
        c.copy_from_slice(&q.to_le_bytes());
    }
    out
}

/// The signal that Linux makes of a stop; SIGTRAP for an instruction that ran.
fn signal(r: &Result<(), Stop>) -> i32 {
    match r {
        Ok(()) => 0,
        Err(Stop::Exception(e)) => match e.vector {
            0 | 16 | 19 => libc::SIGFPE,
            1 | 3 => libc::SIGTRAP,
            6 => libc::SIGILL,
            12 | 17 => libc::SIGBUS,
            _ => libc::SIGSEGV,
        },
        Err(_) => libc::SIGSEGV,
    }
}

struct Case<'a> {
    raw: &'a [u8],
    /// Leave undefined flags out.
    mask: u64,
    /// AMD's processors have the flags of the last comparison when a repeated one stops before its end.
    compares: bool,
    /// AMD's processors have not stored the return address when a call faults at its target.
    calls: bool,
    /// AMD's mask of MXCSR's bits, which is stored, has bit 17.
    saves: bool,
}

/// Whether this process has something at an address that the guest has not: its stack is elsewhere each time.
fn is_own(at: u64) -> bool {
    let guests = [(CODE, 4096), (DATA, MEMORY as u64)];
    let mut resident = 0;
    let page = std::ptr::without_provenance_mut((at & !4095) as usize);
    // SAFETY: asks about a page, whatever is there, and has room for the answer.
    let known = unsafe { libc::mincore(page, 4096, &raw mut resident) } == 0;
    known && !guests.iter().any(|g| (g.0..g.0 + g.1).contains(&at))
}

/// Runs one case on both; what differs, or nothing.
fn compare(
    host: &mut Native,
    v: &mut Vcpu,
    c: &Case<'_>,
    regs: &Registers,
    memory: &[u8],
) -> Option<String> {
    let default = 0x1f80u32;
    v.write(CODE, c.raw).expect("mapped");
    v.write(DATA, memory).expect("mapped");
    host.memory().copy_from_slice(memory);
    put(&mut v.state, regs);
    v.state.rip = CODE;
    let here = step(v);
    let sticky = mxcsr::live(&v.state);
    mxcsr::load(&mut v.state, default);
    let mut there = regs.clone();
    let native = host.step(c.raw, &mut there);
    let canonical = ((v.state.rip as i64) << 16 >> 16) as u64 == v.state.rip;
    if here == Err(Exception::DEBUG.into()) && !canonical && native.signal == libc::SIGSEGV {
        // A branch to a non-canonical address faults at the branch there, at the target here.
        return None;
    }
    if let Err(Stop::Exception(Exception { cr2: Some(at), .. })) = &here
        && native.signal != libc::SIGSEGV
        && is_own(at.0)
    {
        return None;
    }
    let mut out = vec![0; MEMORY];
    v.read(DATA, &mut out).expect("mapped");
    let mut t = String::new();
    let want = signal(&here);
    if want != native.signal {
        t += &format!(
            "  signal: host {} (code {}) here {want} ({here:?})\n",
            native.signal, native.code
        );
    }
    if v.state.rip != native.rip {
        t += &format!("  rip: host {:x} here {:x}\n", native.rip, v.state.rip);
    }
    for n in 0..16 {
        if v.state.gpr[n] != there.gpr[n] {
            t += &format!(
                "  r{n}: before {:x} host {:x} here {:x}\n",
                regs.gpr[n], there.gpr[n], v.state.gpr[n]
            );
        }
        if vector(&v.state, n) != there.ymm[n] {
            t += &format!(
                "  ymm{n}: host {:02x?} here {:02x?}\n",
                there.ymm[n],
                vector(&v.state, n)
            );
        }
    }
    let stays = native.rip == CODE;
    let flags = if c.compares && stays { DF } else { c.mask };
    if (v.state.rflags() ^ there.flags) & flags != 0 {
        t += &format!(
            "  flags: host {:x} here {:x}\n",
            there.flags & c.mask,
            v.state.rflags() & c.mask
        );
    }
    let host_mxcsr = u32::from_le_bytes(there.fx[24..28].try_into().expect("four bytes"));
    if sticky != host_mxcsr {
        t += &format!("  mxcsr: host {host_mxcsr:x} here {sticky:x}\n");
    }
    let native_memory = host.memory();
    let at = regs.gpr[4].wrapping_sub(8).wrapping_sub(DATA) as usize;
    if c.calls && stays && at < MEMORY - 8 {
        out[at..at + 8].copy_from_slice(&native_memory[at..at + 8]);
    }
    let differs = |k: usize| {
        let (x, y) = (native_memory[k], out[k]);
        x != y && !(c.saves && k % 16 == 14 && (x, y) == (2, 0))
    };
    if let Some(k) = (0..MEMORY).find(|&k| differs(k)) {
        t += &format!(
            "  memory at {k:x}: host {:02x?} here {:02x?}\n",
            &native_memory[k..(k + 8).min(MEMORY)],
            &out[k..(k + 8).min(MEMORY)]
        );
    }
    (!t.is_empty()).then_some(t)
}

fn machine() -> (Native, Box<Vcpu>) {
    let host = Native::at(CODE, DATA);
    // SAFETY: sets the thread's GS base, which Linux user space does not use.
    let r = unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, GS_BASE) };
    assert_eq!(r, 0);
    let v = guest(&[(CODE, 1), (DATA, (MEMORY / 4096) as u64)]);
    (host, v)
}

#[test]
fn odd_encodings_do_what_the_host_does() {
    let env = |name: &str, or: u64| {
        std::env::var(name)
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or(or)
    };
    let total = env("SEVLAB_ODD_CASES", 150_000);
    let mut r = Rng(0x1234_5678_9abc_def1 ^ env("SEVLAB_ODD_SEED", 1));
    let (mut host, mut v) = machine();
    let mut failures = BTreeMap::<String, (u64, String)>::new();
    let (mut done, mut ran) = (0, 0);
    let mut memory = vec![0; MEMORY];
    while done < total {
        let raw = bytes(&mut r);
        let mut d = Decoder::with_ip(64, &raw, CODE, DecoderOptions::NONE);
        let x = d.decode();
        if !x.is_invalid() && !safe(&x) {
            continue;
        }
        if x.is_invalid() && !safe_unknown(&raw) {
            continue;
        }
        if done % 64 == 0 {
            for c in memory.chunks_exact_mut(8) {
                c.copy_from_slice(&r.value().to_le_bytes());
            }
        }
        let mut regs = random_registers(&mut r);
        if r.below(8) == 0 {
            regs.flags |= AC;
        }
        let undefined = x.rflags_undefined();
        let mut mask = if undefined != 0 { DF } else { ARITH | DF };
        if host::rotates(&x) {
            mask &= !OF;
        }
        // An undefined opcode has a length, too, which only the host knows: past 15 bytes it is #GP.
        let prefixes = raw.iter().position(|b| !is_prefix(*b)).unwrap_or(15);
        if x.is_invalid() && prefixes > 3 {
            continue;
        }
        if host::own_way(&x, &raw, regs.gpr[1]) {
            continue;
        }
        if host::checks_vectors(&x) {
            regs.flags &= !AC;
        }
        done += 1;
        let compares = x.is_string_instruction() && x.rflags_written() != 0;
        let case = Case {
            raw: &raw,
            mask,
            compares: host::amd() && compares,
            calls: host::amd() && x.mnemonic() == M::Call,
            saves: host::amd() && matches!(x.mnemonic(), M::Fxsave | M::Fxsave64),
        };
        let bad = compare(&mut host, &mut v, &case, &regs, &memory);
        ran += u64::from(bad.is_none());
        if let Some(why) = bad {
            let name = format!("{:?}", x.code());
            let e = failures.entry(name).or_default();
            e.0 += 1;
            if e.0 <= 2 {
                e.1 += &format!(
                    "{x} {:02x?} flags {:x}\n{why}",
                    &raw[..x.len().max(1)],
                    regs.flags
                );
                if x.is_invalid() {
                    e.1 += &format!("  bytes {raw:02x?}\n");
                }
            }
        }
    }
    for (name, (n, first)) in &failures {
        println!("{name}: {n} differ\n{first}");
    }
    println!("{ran} of {done} agree");
    assert!(failures.is_empty(), "{} codes differ", failures.len());
}

/// Bytes that the decoder does not know may still be something on the host: only those maps are run that hold nothing newer.
fn safe_unknown(raw: &[u8]) -> bool {
    let at = raw.iter().position(|b| !is_prefix(*b));
    let Some(at) = at else { return true };
    match raw[at] {
        0xc4 | 0xc5 | 0x62 | 0xd5 => false,
        0x0f => match raw.get(at + 1) {
            Some(0x38) => raw.get(at + 2).is_some_and(|b| *b < 0x40),
            Some(0x01 | 0x05 | 0x34 | 0x35 | 0xc7 | 0xae | 0x78 | 0x79 | 0x1e) => false,
            Some(_) => true,
            None => false,
        },
        0xcd | 0xcf => false,
        _ => true,
    }
}

fn is_prefix(b: u8) -> bool {
    matches!(
        b,
        0x66 | 0x67 | 0xf2 | 0xf3 | 0xf0 | 0x65 | 0x2e | 0x36 | 0x3e | 0x26 | 0x40..=0x4f
    )
}

/// Masked stores whose unselected bytes lie beyond the end of memory.
#[test]
fn masked_byte_stores_probe_as_the_host_does() {
    let mut r = Rng(7);
    let (mut host, mut v) = machine();
    let memory = vec![0x5a; MEMORY];
    let maskmovdqu = [0x66, 0x0f, 0xf7, 0xc1];
    let vmaskmovdqu = [0xc5, 0xf9, 0xf7, 0xc1];
    let maskmovq = [0x0f, 0xf7, 0xc1];
    for n in 0..400u64 {
        let mut regs = random_registers(&mut r);
        let (raw, size): (&[u8], u64) = match n % 3 {
            0 => (&maskmovdqu, 16),
            1 => (&vmaskmovdqu, 16),
            _ => (&maskmovq, 8),
        };
        regs.flags &= !AC;
        let inside = r.below(size + 1);
        regs.gpr[7] = DATA + MEMORY as u64 - inside;
        let some = r.below(3);
        for k in 0..16 {
            let on = match some {
                0 => false,
                1 => k < inside && r.below(2) == 0,
                _ => r.below(2) == 0,
            };
            regs.ymm[1][k as usize] = if on { 0x80 } else { 0x7f };
            regs.fx[48 + k as usize % 8] = regs.ymm[1][k as usize];
        }
        let case = Case {
            raw,
            mask: 0,
            compares: false,
            calls: false,
            saves: false,
        };
        if let Some(why) = compare(&mut host, &mut v, &case, &regs, &memory) {
            panic!("{n}: {inside} bytes inside, kind {some}\n{why}");
        }
    }
}
