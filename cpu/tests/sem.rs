//! Every integer instruction against the host: random encodings, registers and memory.

mod host;
mod oracle;

use iced_x86::{Decoder, DecoderOptions};
use oracle::{CODE, DATA, DATA_LEN, Host, Regs, Rng, guest, load, store};
use sevlab_cpu::flags::{AF, ARITH, CF, DF, OF, PF, SF, ZF};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand, Rep};
use sevlab_cpu::stop::Stop;
use sevlab_cpu::table::{self, Route};
use sevlab_cpu::{decode, interp};
use std::collections::BTreeMap;

/// Flags that are undefined and not modelled.
fn undefined(i: &Insn, regs: &Regs) -> u64 {
    let mask = if i.width.bytes() == 8 { 63 } else { 31 };
    let count = |n: usize| match i.ops[n] {
        Operand::Imm(c) => c as u64 & mask,
        _ => regs.gpr[1] & mask,
    };
    match i.op {
        Op::Mul | Op::Imul1 | Op::Imul2 | Op::Imul3 => SF | ZF | AF | PF,
        // OF is defined for a count of one.
        Op::Shl if count(1) > 1 => OF,
        Op::Shld if count(2) > 1 => OF,
        Op::Andn | Op::Blsi | Op::Blsmsk | Op::Blsr | Op::Bzhi => AF | PF,
        _ => 0,
    }
}

/// The decoder's flags as RFLAGS bits.
fn flags_of(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [
        (B::CF, CF),
        (B::PF, PF),
        (B::AF, AF),
        (B::ZF, ZF),
        (B::SF, SF),
        (B::OF, OF),
    ]
    .iter()
    .filter(|(b, _)| bits & b != 0)
    .map(|(_, f)| f)
    .sum()
}

fn wanted(i: &Insn) -> bool {
    let row = table::row(iced_x86::Code::try_from(i.code as usize).unwrap());
    let complex = matches!(
        i.op,
        Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps | Op::Cmpxchg8b | Op::Cmpxchg16b
    );
    (row.route == Route::Sem || complex) && i.control == Control::Next && i.mem.seg != 4
}

/// Random bytes that look like an instruction.
fn bytes(r: &mut Rng) -> Vec<u8> {
    let mut b = Vec::new();
    if r.below(6) == 0 {
        b.push([0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x65][r.below(6) as usize]);
    }
    if r.below(6) == 0 {
        b.push([0x66, 0xf2, 0xf3, 0xf0, 0xf0, 0x66][r.below(6) as usize]);
    }
    let v = r.next();
    match r.below(8) {
        0 => {
            // VEX: BMI
            b.clear();
            b.extend([
                0xc4,
                (v as u8 & 0xe0) | (2 + r.below(2) as u8),
                r.next() as u8 & 0xfb,
                0xf0 | r.below(8) as u8,
            ]);
        }
        1..=4 => {
            if r.below(2) == 0 {
                b.push(0x40 | v as u8 & 15);
            }
            b.push((v >> 8) as u8);
        }
        _ => {
            if r.below(2) == 0 {
                b.push(0x40 | v as u8 & 15);
            }
            b.push(0x0f);
            if r.below(8) == 0 {
                b.extend([0x38, 0xf0 | r.below(8) as u8]);
            } else {
                b.push((v >> 8) as u8);
            }
        }
    }
    for _ in 0..10 {
        b.push(r.next() as u8);
    }
    b
}

/// Aims the memory operand, if there is one, into scratch memory. False: it can't be.
fn aim(r: &mut Rng, raw: &mut [u8], i: &Insn, regs: &mut Regs) -> bool {
    let target = DATA + 0x1000 + r.below(0x800);
    let target = if i.op == Op::Cmpxchg16b {
        target & !15
    } else {
        target
    };
    let m = i.mem;
    let string = matches!(i.op, Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps);
    if string {
        regs.gpr[6] = target;
        // Near enough to overlap.
        regs.gpr[7] = DATA + 0x1000 + r.below(0x1000);
        if r.below(2) == 0 {
            regs.gpr[7] = target.wrapping_add(r.below(64)).wrapping_sub(32);
        }
        if m.seg == 5 {
            regs.gpr[6] = regs.gpr[6].wrapping_sub(oracle::GS_BASE);
        }
        if i.rep != Rep::None {
            let most = if r.below(4) == 0 { 512 } else { 9 };
            regs.gpr[1] = r.below(most);
        }
        return true;
    }
    if matches!(i.op, Op::Enter | Op::Leave) {
        regs.gpr[5] = target;
    }
    if i.op == Op::Xlat {
        regs.gpr[3] = target;
        if m.seg == 5 {
            regs.gpr[3] = target.wrapping_sub(oracle::GS_BASE);
        }
        return true;
    }
    if m == MemRef::ABSENT || i.op == Op::Lea || i.op == Op::Nop {
        return true;
    }
    if matches!(i.op, Op::Bt | Op::Bts | Op::Btr | Op::Btc)
        && let Operand::Gpr(x) = i.ops[1]
    {
        let bits = r.below(0x2000).wrapping_sub(0x1000);
        let w = i.width.mask();
        let g = &mut regs.gpr[x as usize];
        *g = *g & !w | bits & w;
    }
    let seg = if m.seg == 5 { oracle::GS_BASE } else { 0 };
    let want = target.wrapping_sub(seg);
    if m.base == MemRef::NONE {
        // Absolute or RIP-relative: patch the displacement.
        let mut d = Decoder::with_ip(64, raw, CODE, DecoderOptions::NONE);
        let x = d.decode();
        let o = d.get_constant_offsets(&x);
        if !o.has_displacement() || o.displacement_size() != 4 {
            return false;
        }
        let index = if m.index == MemRef::NONE {
            0
        } else {
            regs.gpr[m.index as usize] << m.scale
        };
        let disp = if x.is_ip_rel_memory_operand() {
            want.wrapping_sub(x.next_ip())
        } else {
            want.wrapping_sub(index)
        };
        if m.index != MemRef::NONE {
            regs.gpr[m.index as usize] &= 0xff;
            let index = regs.gpr[m.index as usize] << m.scale;
            let at = o.displacement_offset();
            raw[at..at + 4].copy_from_slice(&(want.wrapping_sub(index) as u32).to_le_bytes());
            return true;
        }
        let at = o.displacement_offset();
        raw[at..at + 4].copy_from_slice(&(disp as u32).to_le_bytes());
        return true;
    }
    if m.base == m.index {
        return false;
    }
    let index = if m.index == MemRef::NONE {
        0
    } else {
        regs.gpr[m.index as usize] << m.scale
    };
    regs.gpr[m.base as usize] = want.wrapping_sub(index).wrapping_sub(m.disp as u64);
    if m.base == 4 && i.op == Op::Pop {
        regs.gpr[4] = regs.gpr[4].wrapping_sub(u64::from(i.width.bytes()));
    }
    true
}

/// Whether all memory that the instruction touches is scratch memory.
fn inside(i: &Insn, g: &[u64; 16]) -> bool {
    let ok = |a: u64| (DATA..DATA + DATA_LEN as u64 - 64).contains(&a);
    let m = &i.mem;
    if matches!(
        i.op,
        Op::Push
            | Op::Pop
            | Op::Pushf
            | Op::Enter
            | Op::Leave
            | Op::Movs
            | Op::Stos
            | Op::Lods
            | Op::Scas
            | Op::Cmps
    ) && !(ok(g[4].wrapping_sub(256)) && ok(g[4] + 64))
    {
        return false;
    }
    if matches!(i.op, Op::Enter | Op::Leave) && !(ok(g[5].wrapping_sub(256)) && ok(g[5])) {
        return false;
    }
    if m.base == MemRef::NONE && m.index == MemRef::NONE && m.disp == 0
        || matches!(
            i.op,
            Op::Lea | Op::Nop | Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps | Op::Xlat
        )
    {
        return true;
    }
    let mut a = m.disp as u64;
    if m.base != MemRef::NONE {
        a = a.wrapping_add(g[m.base as usize]);
    }
    if m.index != MemRef::NONE {
        a = a.wrapping_add(g[m.index as usize] << m.scale);
    }
    if m.addr32 {
        a &= 0xffff_ffff;
    }
    if m.seg == 5 {
        a = a.wrapping_add(oracle::GS_BASE);
    }
    if matches!(i.op, Op::Bt | Op::Bts | Op::Btr | Op::Btc)
        && let Operand::Gpr(x) = i.ops[1]
    {
        let off = i.width.sext(g[x as usize] & i.width.mask()) as i64 >> 3;
        return ok(a.wrapping_add(off as u64 & !7)) && ok(a);
    }
    ok(a)
}

#[test]
fn random_instructions_do_what_the_host_does() {
    let total: u64 = std::env::var("SEVLAB_SEM_CASES")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(400_000);
    let seed: u64 = std::env::var("SEVLAB_SEM_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let trace = std::env::var_os("SEVLAB_SEM_TRACE").is_some();
    let host = Host::new();
    let mut v = guest(&[(CODE, 1), (DATA, (DATA_LEN / 4096) as u64)]);
    let mut r = Rng(0x9e37_79b9_7f4a_7c15 ^ seed);
    let mut fresh = vec![0u8; DATA_LEN];
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (mut done, mut failures) = (0, BTreeMap::<String, (u64, String)>::new());
    while done < total {
        let mut raw = bytes(&mut r);
        let Ok(first) = decode::decode(CODE, &raw) else {
            continue;
        };
        if !wanted(&first) {
            continue;
        }
        let mut regs = Regs::default();
        for g in &mut regs.gpr {
            *g = r.value();
        }
        regs.gpr[4] = DATA + 0x2000 + r.below(0x400);
        regs.flags = 2 | 0x200 | r.next() & ARITH;
        if matches!(
            first.op,
            Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps
        ) && r.below(3) == 0
        {
            regs.flags |= DF;
        }
        if !aim(&mut r, &mut raw, &first, &mut regs) {
            continue;
        }
        let Ok(i) = decode::decode(CODE, &raw) else {
            continue;
        };
        if !inside(&i, &regs.gpr)
            || i.op == Op::Enter && matches!(i.ops[0], Operand::Imm(n) if n > 0x400)
        {
            continue;
        }
        if i.op == Op::Enter && matches!(i.ops[1], Operand::Imm(n) if n & 31 > 12) {
            continue;
        }
        if done % 64 == 0 {
            for c in fresh.chunks_exact_mut(8) {
                c.copy_from_slice(&r.value().to_le_bytes());
            }
            // Runs of equal bytes, so that repeated comparisons go on for a while.
            let at = 0x1000 + r.below(0x1000) as usize;
            fresh[at..at + 512].fill(r.value() as u8);
        }
        host.set_data(&fresh);
        v.write(DATA, &fresh).unwrap();
        if r.below(2) == 0 && matches!(i.op, Op::Cmpxchg | Op::Cmpxchg8b | Op::Cmpxchg16b) {
            // Let the comparison succeed now and then.
            let mut old = [0; 16];
            if let Operand::Gpr(x) = i.ops[0] {
                regs.gpr[0] = regs.gpr[x as usize] & i.width.mask() | regs.gpr[0] & !i.width.mask();
            } else {
                let m = i.mem;
                if m != MemRef::ABSENT && m.base != 0 && m.index != 0 && m.base != 2 && m.index != 2
                {
                    let mut a = m.disp as u64;
                    if m.base != MemRef::NONE {
                        a = a.wrapping_add(regs.gpr[m.base as usize]);
                    }
                    if m.index != MemRef::NONE {
                        a = a.wrapping_add(regs.gpr[m.index as usize] << m.scale);
                    }
                    if m.addr32 {
                        a &= 0xffff_ffff;
                    }
                    if m.seg == 5 {
                        a += oracle::GS_BASE;
                    }
                    v.read(a, &mut old).unwrap();
                    let lo = u64::from_le_bytes(old[..8].try_into().unwrap());
                    let hi = u64::from_le_bytes(old[8..].try_into().unwrap());
                    regs.gpr[0] = lo;
                    if i.op == Op::Cmpxchg8b {
                        regs.gpr[2] = lo >> 32;
                    } else if i.op == Op::Cmpxchg16b {
                        regs.gpr[2] = hi;
                    }
                }
            }
            if !inside(&i, &regs.gpr) {
                continue;
            }
        }
        let x = Decoder::with_ip(64, &raw[..i.len as usize], CODE, DecoderOptions::NONE).decode();
        if host::own_way(&x, &raw[..i.len as usize], regs.gpr[1]) {
            continue;
        }
        let before = regs;
        load(&mut v.state, &regs);
        let stop = interp::exec(&mut v, &i);
        match stop {
            Ok(()) => {}
            Err(Stop::Exception(e)) if e.vector == 0 && matches!(i.op, Op::Div | Op::Idiv) => {
                continue;
            }
            Err(e) => panic!("{e:?} from {i:x?} with {before:x?}"),
        }
        let got = store(&v.state);
        if trace {
            let x =
                Decoder::with_ip(64, &raw[..i.len as usize], CODE, DecoderOptions::NONE).decode();
            eprintln!("{x} {before:x?}");
        }
        host.run(&raw[..i.len as usize], &mut regs);
        done += 1;
        let name = format!("{:?}", iced_x86::Code::try_from(i.code as usize).unwrap());
        *seen.entry(name.clone()).or_default() += 1;
        // What AMD's processors leave in undefined flags is not modelled.
        let open = if host::amd() {
            let of = if host::rotates(&x) { OF } else { 0 };
            flags_of(x.rflags_undefined()) | of
        } else {
            0
        };
        let mask = (ARITH | DF) & !(undefined(&i, &before) | open);
        let mut out = vec![0; DATA_LEN];
        v.read(DATA, &mut out).unwrap();
        let same_flags = (got.flags ^ regs.flags) & mask == 0;
        let same_memory = out == host.data();
        // What an instruction claims to write or leave alone, it must.
        let changed = (got.flags ^ before.flags) & ARITH;
        let claims = changed & !(i.flags_out | i.flags_in) == 0;
        if got.gpr != regs.gpr || !same_flags || !same_memory || !claims {
            let e = failures.entry(name).or_default();
            e.0 += 1;
            if e.0 == 1 {
                let x = Decoder::with_ip(64, &raw[..i.len as usize], CODE, DecoderOptions::NONE)
                    .decode();
                let mut t = format!(
                    "{x} [{:x?}] in {:x?} width {:?}\n",
                    &raw[..i.len as usize],
                    before.flags & (ARITH | DF),
                    i.width
                );
                for k in 0..16 {
                    if got.gpr[k] != regs.gpr[k] || i.ops.contains(&Operand::Gpr(k as u8)) || k < 3
                    {
                        t += &format!(
                            "  r{k}: before {:x} host {:x} here {:x}\n",
                            before.gpr[k], regs.gpr[k], got.gpr[k]
                        );
                    }
                }
                t += &format!(
                    "  flags: host {:x} here {:x} mask {mask:x} claims {claims}\n",
                    regs.flags & mask,
                    got.flags & mask
                );
                if let Some(k) = (0..DATA_LEN).find(|&k| out[k] != host.data()[k]) {
                    let h = &host.data()[k..(k + 8).min(DATA_LEN)];
                    t += &format!(
                        "  memory at {k:x}: before {:x?} host {h:x?} here {:x?}\n",
                        &fresh[k..k + h.len()],
                        &out[k..k + h.len()]
                    );
                }
                e.1 = t;
            }
        }
    }
    let _ = (AF, PF);
    for (name, (n, first)) in &failures {
        println!("{name}: {n} of {} differ\n{first}", seen[name]);
    }
    println!("{done} cases over {} codes", seen.len());
    assert!(failures.is_empty(), "{} codes differ", failures.len());
    let rows = table::rows().filter(|r| r.route == Route::Sem);
    let unseen: Vec<_> = rows
        .filter(|r| !seen.contains_key(&format!("{:?}", r.code)))
        .map(|r| format!("{:?}", r.code))
        .collect();
    println!("never generated: {}", unseen.join(" "));
}
