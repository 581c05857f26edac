//! Instruction forms: one decoded example of each encoding that the table supports, found by walking the opcode
//! space, sorted into the groups that the generator draws from.
#![allow(dead_code)] // each test file uses its part

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic as M, OpKind, Register,
};
use sevlab_cpu::insn::Op;
use sevlab_cpu::table::{self, Route};
use std::collections::BTreeMap;

/// Forms by group.
pub struct Forms {
    /// Integer instructions in the builder vocabulary, no control flow, no stack.
    pub integer: Vec<Instruction>,
    /// Shifts, rotates, ADC, SBB, SETcc, CMOVcc and the like: what reads flags or writes some of them.
    pub flags: Vec<Instruction>,
    /// PUSH, POP and their like.
    pub stack: Vec<Instruction>,
    /// Vector and scalar floating-point instructions.
    pub vector: Vec<Instruction>,
    /// x87 and MMX.
    pub x87: Vec<Instruction>,
    /// What only the interpreter runs, apart from strings.
    pub complex: Vec<Instruction>,
    pub strings: Vec<Instruction>,
}

pub fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// The bytes of `i` at `ip`, if they decode to the same encoding again.
pub fn encode(i: &Instruction, ip: u64) -> Option<Vec<u8>> {
    let mut e = Encoder::new(64);
    e.encode(i, ip).ok()?;
    let bytes = e.take_buffer();
    let back = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
    (back.code() == i.code() && back.len() == bytes.len()).then_some(bytes)
}

fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_register(n).is_mm() || i.op_register(n).is_st())
}

impl Forms {
    pub fn new() -> Self {
        let mut f = Self {
            integer: Vec::new(),
            flags: Vec::new(),
            stack: Vec::new(),
            vector: Vec::new(),
            x87: Vec::new(),
            complex: Vec::new(),
            strings: Vec::new(),
        };
        for i in walk().into_values() {
            let row = table::row(i.code());
            let group = match row.op {
                // Random bits, or a value that the host and not the state decides.
                Op::Rdrand | Op::Rdseed => continue,
                // Their operands are whole states; random memory is none.
                Op::Fxrstor | Op::Xrstor => continue,
                Op::Ldmxcsr | Op::Wrfsbase | Op::Wrgsbase | Op::Popf => continue,
                Op::Adc
                | Op::Sbb
                | Op::Setcc(_)
                | Op::Cmov(_)
                | Op::Shl
                | Op::Shr
                | Op::Sar
                | Op::Rol
                | Op::Ror
                | Op::Rcl
                | Op::Rcr
                | Op::Shld
                | Op::Shrd
                | Op::Inc
                | Op::Dec
                | Op::Cmp
                | Op::Test
                | Op::Lahf
                | Op::Sahf
                | Op::Clc
                | Op::Stc
                | Op::Cmc
                | Op::Adcx
                | Op::Adox
                | Op::Bt
                | Op::Neg => &mut f.flags,
                Op::Push | Op::Pop | Op::Pushf | Op::Leave | Op::Enter => &mut f.stack,
                Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps => &mut f.strings,
                _ => match row.route {
                    Route::Sem if i.flow_control() == iced_x86::FlowControl::Next => &mut f.integer,
                    Route::Complex if i.flow_control() == iced_x86::FlowControl::Next => {
                        &mut f.complex
                    }
                    Route::Thunk if uses_mmx(&i) => &mut f.x87,
                    Route::Thunk => {
                        if i.is_vsib() || special(i.mnemonic()) {
                            continue;
                        }
                        let x87 = i.code().cpuid_features().iter().any(|c| {
                            use iced_x86::CpuidFeature as F;
                            matches!(c, F::FPU | F::FPU287 | F::FPU387 | F::MMX)
                        });
                        if x87 { &mut f.x87 } else { &mut f.vector }
                    }
                    _ => continue,
                },
            };
            group.push(i);
        }
        f
    }

    /// What translated code lowers itself is what matters most: those are drawn more often.
    pub fn weight(i: &Instruction) -> u64 {
        match i.mnemonic() {
            M::Mov | M::Lea | M::Add | M::Sub | M::And | M::Or | M::Xor | M::Cmp | M::Test => 3,
            _ => 1,
        }
    }
}

/// Thunks whose memory operand is no plain one.
fn special(m: M) -> bool {
    matches!(
        m,
        M::Maskmovdqu | M::Vmaskmovdqu | M::Ldmxcsr | M::Vldmxcsr | M::Rdrand | M::Rdseed
    )
}

/// One example of each (encoding, has a memory operand).
fn walk() -> BTreeMap<(u16, bool), Instruction> {
    let mut found = BTreeMap::new();
    let mut try_bytes = |bytes: &[u8]| {
        let mut b = bytes.to_vec();
        b.resize(bytes.len() + 9, 0x11);
        let i = Decoder::new(64, &b, DecoderOptions::NONE).decode();
        if i.is_invalid() || i.len() < bytes.len() || i.code() == Code::INVALID {
            return;
        }
        found.entry((i.code() as u16, has_memory(&i))).or_insert(i);
    };
    let mut modrms: Vec<Vec<u8>> = (0..=255u8)
        .filter(|m| m & 0xc0 == 0xc0 || m & 0xc7 == 0x00)
        .map(|m| vec![m])
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

/// A register of the same class, from 32 random bits.
pub fn register_like(like: Register, random: u64) -> Register {
    let n = (random % 16) as u32;
    match like {
        _ if like.is_gpr8() => Register::AL + (random % 20) as u32,
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

pub fn shifts_by_cl(i: &Instruction) -> bool {
    let n = i.op_count();
    n > 1 && i.op_kind(n - 1) == OpKind::Register && i.op_register(n - 1) == Register::CL && {
        use Op::*;
        matches!(
            table::row(i.code()).op,
            Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
        )
    }
}

pub fn divides(i: &Instruction) -> bool {
    matches!(table::row(i.code()).op, Op::Div | Op::Idiv)
}
