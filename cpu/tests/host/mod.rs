//! Whose processor the host is, and what AMD's (as seen on family 19h) make in their own way of encodings that the manuals
//! leave open, where the guest does what Intel's do: for tests to leave out on AMD's, and only there. `docs/isa.md` has the
//! list.
#![allow(dead_code)] // each test file uses its part

use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind, Register};
use std::arch::x86_64::__cpuid;
use std::sync::OnceLock;

/// Whether the host's processor is AMD's.
pub fn amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| {
        let l = __cpuid(0);
        [l.ebx, l.edx, l.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
    })
}

fn is_prefix(b: u8) -> bool {
    matches!(
        b,
        0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
    )
}

/// Whether the host is AMD's and has its own way with this instruction, whose bytes `raw` begin with. `cl`: the count.
pub fn own_way(x: &Instruction, raw: &[u8], cl: u64) -> bool {
    if !amd() {
        return false;
    }
    let n = raw.iter().take_while(|b| is_prefix(**b)).count();
    let has = |b: u8| raw[..n].contains(&b);
    if x.is_invalid() {
        // LOCK is ignored before VERR and the like; before MOV to CR0 it names CR8.
        let second = raw.get(n + 1);
        return has(0xf0)
            && raw.get(n) == Some(&0x0f)
            && matches!(second, Some(0 | 2 | 3 | 0x20 | 0x22));
    }
    let memory = (0..x.op_count()).any(|k| x.op_kind(k) == OpKind::Memory);
    match x.mnemonic() {
        // The condition becomes the prefix's.
        M::Loope | M::Loopne => has(0xf2) || has(0xf3) || has(0x66),
        // XCHG with R8.
        M::Pause => has_rex_b(raw, n),
        // SVM's: the host's hypervisor decides what is raised.
        M::Vmrun | M::Vmload | M::Vmsave | M::Stgi | M::Clgi | M::Skinit | M::Invlpga => true,
        // The result is undefined.
        M::Shld | M::Shrd => {
            let count = match x.op_kind(2) {
                OpKind::Immediate8 => u64::from(x.immediate8()),
                _ => cl,
            };
            x.op1_register().size() == 2 && count & 31 > 16
        }
        // Four bytes are read.
        _ if x.code() == Code::Movsxd_r16_rm16 => memory,
        // A prefetch of a register is #UD.
        _ if matches!(
            x.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        ) =>
        {
            !memory
        }
        // No alignment is asked for.
        _ if x.cpuid_features().contains(&iced_x86::CpuidFeature::SHA) => memory,
        // 32-bit pointers and counts are written when the first of them is used.
        _ if x.is_string_instruction() => has(0x67) && (has(0xf2) || has(0xf3)),
        // The target is cut to 16 bits, and a displacement has 16.
        _ => has(0x66) && near_branch(x),
    }
}

/// Whether the host is AMD's and this rotates through carry: OF is undefined for counts other than one, and Intel's leave it
/// if the count is a whole turn.
pub fn rotates(x: &Instruction) -> bool {
    amd() && matches!(x.mnemonic(), M::Rcl | M::Rcr)
}

fn has_rex_b(raw: &[u8], prefixes: usize) -> bool {
    prefixes > 0 && raw[prefixes - 1] & 0xf1 == 0x41
}

fn near_branch(x: &Instruction) -> bool {
    let branches = !matches!(
        x.flow_control(),
        FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt
    );
    branches && !x.is_jmp_far_indirect() && !x.is_call_far_indirect()
}

/// Whether the host is AMD's and checks the alignment of this operand under EFLAGS.AC, which Intel's do not for vectors.
pub fn checks_vectors(x: &Instruction) -> bool {
    let vector = |k| matches!(x.op_kind(k), OpKind::Register) && is_vector(x.op_register(k));
    amd() && x.memory_size().size() >= 16 && (0..x.op_count()).any(vector)
}

fn is_vector(r: Register) -> bool {
    r.is_xmm() || r.is_ymm()
}
