//! Instructions to test: every form that 64-bit decoding reaches, found by walking the opcode space, and random instances of them.

use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// One decoded example of each (code, has a memory operand).
pub fn walk(wanted: impl Fn(Code) -> bool) -> BTreeMap<(u16, bool), Instruction> {
    let mut found = BTreeMap::new();
    let mut try_bytes = |bytes: &[u8]| {
        let mut b = bytes.to_vec();
        b.resize(bytes.len() + 9, 0x11);
        let i = Decoder::new(64, &b, DecoderOptions::NONE).decode();
        if !i.is_invalid() && !i.has_lock_prefix() && i.len() >= bytes.len() && wanted(i.code()) {
            let mem = has_memory(&i);
            found.entry((i.code() as u16, mem)).or_insert(i);
        }
    };
    // ModRM: every /reg with a register and with a memory operand; every register form for x87; SIB for vector indexes.
    let mut modrms: Vec<Vec<u8>> = (0..=255u8)
        .filter(|m| m & 0xc0 == 0xc0 || m & 0xc7 == 0x00 || m & 0xc7 == 0x04)
        .map(|m| {
            if m & 0xc7 == 4 {
                vec![m, 0x08]
            } else {
                vec![m]
            }
        })
        .collect();
    modrms.push(Vec::new());
    let prefixes: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf2], &[0x66, 0xf3]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for p in prefixes {
        for rex in [None, Some(0x48)] {
            for map in maps {
                for op in 0..=255u8 {
                    for m in &modrms {
                        let mut b = p.to_vec();
                        b.extend(rex);
                        b.extend_from_slice(map);
                        b.push(op);
                        b.extend_from_slice(m);
                        try_bytes(&b);
                    }
                }
            }
        }
    }
    for map in 1..=3u8 {
        for w_l_pp in 0..16u8 {
            let (w, l, pp) = (w_l_pp & 8, w_l_pp & 4, w_l_pp & 3);
            for vvvv in [0x78, 0x28] {
                for op in 0..=255u8 {
                    for m in &modrms {
                        let mut b = vec![0xc4, 0xe0 | map, w << 4 | vvvv | l | pp, op];
                        b.extend_from_slice(m);
                        try_bytes(&b);
                    }
                }
            }
        }
    }
    found
}

pub fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

pub fn encode(i: &Instruction) -> Option<Vec<u8>> {
    let mut e = Encoder::new(64);
    e.encode(i, 0).ok()?;
    let bytes = e.take_buffer();
    let back = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    (back.code() == i.code() && back.len() == bytes.len()).then_some(bytes)
}

fn random_register(like: Register, r: &mut Random) -> Register {
    let n = r.below(16) as u32;
    match like {
        _ if like.is_gpr8() => Register::AL + r.below(20) as u32,
        _ if like.is_gpr16() => Register::AX + n,
        _ if like.is_gpr32() => Register::EAX + n,
        _ if like.is_gpr64() => Register::RAX + n,
        _ if like.is_xmm() => Register::XMM0 + n,
        _ if like.is_ymm() => Register::YMM0 + n,
        _ if like.is_mm() => Register::MM0 + n % 8,
        _ if like.is_st() => Register::ST0 + n % 8,
        _ => like,
    }
}

/// Where a random instance has its memory operand: registers to set so that the address is `va`.
#[derive(Default)]
pub struct Placement {
    pub base: Option<usize>,
    pub index: Option<usize>,
    pub vector_index: Option<usize>,
    pub scale: u64,
    pub disp: u64,
}

/// A random instance of a form: registers, immediate and memory operand changed wherever the encoding allows.
pub fn instance(form: &Instruction, r: &mut Random) -> (Instruction, Vec<u8>, Placement) {
    let mut i = *form;
    let mut place = Placement::default();
    let keep = |i: &mut Instruction, change: &mut dyn FnMut(&mut Instruction)| {
        let mut next = *i;
        change(&mut next);
        if encode(&next).is_some() {
            *i = next;
        }
    };
    let vsib = form.is_vsib();
    if has_memory(form) {
        let base = r.below(16);
        let mut index = (base + 1 + r.below(15)) % 16;
        if index == 4 {
            index = (base + 1) % 16;
        }
        let use_index = vsib || (r.one_in(3) && index != 4);
        let disp = if r.one_in(2) {
            r.below(200) as i64 - 100
        } else {
            r.next() as i32 as i64 >> 4
        };
        let scale = 1u32 << r.below(4);
        keep(&mut i, &mut |i| {
            i.set_memory_base(Register::RAX + base as u32);
            i.set_memory_displacement64(disp as u64);
            i.set_memory_displ_size(8);
            if !vsib {
                i.set_memory_index(if use_index {
                    Register::RAX + index as u32
                } else {
                    Register::None
                });
                i.set_memory_index_scale(if use_index { scale } else { 1 });
            } else {
                i.set_memory_index_scale(scale);
            }
        });
    }
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let to = random_register(i.op_register(n), r);
                keep(&mut i, &mut |i| i.set_op_register(n, to));
            }
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {
                let v = r.next() as i8;
                keep(&mut i, &mut |i| i.set_immediate_i64(n, i64::from(v)));
            }
            OpKind::Immediate16 | OpKind::Immediate32 | OpKind::Immediate64 => {
                let v = r.next() as i64;
                keep(&mut i, &mut |i| i.set_immediate_i64(n, v));
            }
            OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
                let v = i64::from(r.next() as i8);
                keep(&mut i, &mut |i| i.set_immediate_i64(n, v));
            }
            OpKind::Immediate32to64 => {
                let v = i64::from(r.next() as i32);
                keep(&mut i, &mut |i| i.set_immediate_i64(n, v));
            }
            OpKind::Memory if vsib => {
                // Distinct from the other two, or it is #UD.
                let to = random_register(i.memory_index(), r);
                keep(&mut i, &mut |i| i.set_memory_index(to));
            }
            _ => {}
        }
    }
    if has_memory(&i) {
        let number = |x: Register| x.is_gpr().then(|| x.number());
        place.base = number(i.memory_base());
        place.index = number(i.memory_index());
        place.vector_index = vsib.then(|| i.memory_index().number());
        place.scale = u64::from(i.memory_index_scale());
        place.disp = i.memory_displacement64();
    }
    let bytes = encode(&i).expect("a decoded form encodes");
    (i, bytes, place)
}
