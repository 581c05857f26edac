//! What AMD's processors do in their own way, as seen on family 19h: where the guest does what the manuals say, or what
//! Intel's do.

use super::{Known, is_x87, saves_state, stores_mm, vector};
use crate::check::{Analysis, Difference};
use crate::forms::locked_check;
use crate::outcome::{End, Outcome};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic as M, OpKind, Register};

/// Where the lower half of the address space ends.
const HALF: u64 = 1 << 47;
/// Most bytes of an operand.
const OPERAND: u64 = 1024;

/// The reason, if all of the differences are one of AMD's ways. `e` is what the host left behind.
pub(super) fn reason(
    a: &Analysis,
    e: &Outcome,
    got: &Outcome,
    differences: &[Difference],
) -> Option<Known> {
    let only = |pass: &dyn Fn(&str) -> bool| differences.iter().all(|d| pass(&d.field));
    let (host, guest) = (vector(e)?, vector(got).unwrap_or(u8::MAX));
    let faults = |v| matches!(v, 12..=14);
    if let Some(i) = a.instruction(got.rip)
        && guest == 13
    {
        if loads_mxcsr(i.mnemonic()) && e.mxcsr >> 17 & 1 != 0 {
            return Some(Known::AmdMisaligned);
        }
        if is_sha(&i) && (e.rip != got.rip || matches!(host, 12 | 14)) {
            return Some(Known::AmdAlignment);
        }
    }
    if guest == 6 && locked_check(a.bytes(got.rip)) {
        return Some(Known::AmdLock);
    }
    let same = e.rip == got.rip;
    if guest == 14
        && address(got).is_some_and(|at| at >> 32 != 0)
        && let Some(i) = a.instruction(got.rip)
        && masked(i.mnemonic())
        && (i.memory_base().size() == 4 || i.memory_index().size() == 4)
    {
        return Some(Known::AmdOffset);
    }
    let i = a.instruction(e.rip)?;
    let m = i.mnemonic();
    if faults(host) && i.code() == Code::Movsxd_r16_rm16 {
        return Some(Known::AmdWord);
    }
    // The guest has gone on with an unmasked exception pending, and may have cleared it since.
    if faults(host) && stores_x87(&i) && e.x87.control & 0x3f != 0x3f && !same {
        return Some(Known::AmdOrder);
    }
    // Before the page is looked at, and where the guest goes on.
    if host == 17
        && i.memory_size().size() >= 16
        && (!same || faults(guest) && only(&|f| f == "end"))
    {
        return Some(Known::AmdWide);
    }
    if !same {
        return None;
    }
    let end = |f: &str| f == "end" || stores_mm(&i) && is_x87(f);
    if matches!(host, 12 | 13) && guest == 14 && only(&end) && wraps(&i, e) {
        return Some(Known::AmdOffset);
    }
    if host == 13 && guest == 12 && saves_state(m) && only(&|f| f == "end") {
        return Some(Known::AmdOrder);
    }
    if masked(m)
        && host == 14
        && matches!(guest, 12 | 13)
        && only(&|f| f == "end")
        && address(e).is_some_and(|at| (HALF - 32..HALF).contains(&at))
    {
        return Some(Known::AmdOrder);
    }
    if i.is_vsib()
        && faults(host)
        && (host == guest || guest == 14 && wraps(&i, e))
        && let (Some(to), Some(mask)) = (number(i.op_register(0)), number(i.op_register(2)))
    {
        let vector = i.op_register(0).size().max(i.memory_index().size());
        let elem = i.memory_size().element_size().max(4);
        let signs = |o: &Outcome| signs(&o.ymm[mask][..vector / 8], elem);
        let names = [format!("ymm{mask}"), format!("ymm{to}"), "end".to_owned()];
        let same = |o: &Outcome| (signs(o), o.ymm[to][..vector / 8].to_vec());
        return (only(&|f| names.iter().any(|n| n == f)) && same(e) == same(got))
            .then_some(Known::AmdGather);
    }
    if m == M::Call && (host, guest) == (13, 13) && only(&|f| f.starts_with('[')) {
        return Some(Known::AmdCall);
    }
    if compares(&i)
        && (i.has_rep_prefix() || i.has_repne_prefix())
        && faults(host)
        && host == guest
        && only(&|f| f == "rflags" || f == "end")
    {
        return Some(Known::AmdString);
    }
    None
}

fn loads_mxcsr(m: M) -> bool {
    matches!(
        m,
        M::Ldmxcsr | M::Vldmxcsr | M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64
    )
}

fn is_sha(i: &Instruction) -> bool {
    i.cpuid_features().contains(&CpuidFeature::SHA)
}

fn stores_x87(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    ) && i.op0_kind() == OpKind::Memory
}

fn masked(m: M) -> bool {
    matches!(
        m,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
    )
}

fn compares(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
    ) && i.is_string_instruction()
}

fn address(o: &Outcome) -> Option<u64> {
    match o.end {
        End::Exception { address, .. } => Some(address),
        _ => None,
    }
}

/// Whether an operand's address is not canonical before the base of FS or GS is added, and is afterwards. An instruction
/// that faulted has changed no register.
fn wraps(i: &Instruction, o: &Outcome) -> bool {
    let canonical = |va: u64| ((va as i64) << 16 >> 16) as u64 == va;
    let base = match i.memory_segment() {
        Register::FS => o.fs,
        Register::GS => o.gs,
        _ => return false,
    };
    let register = |r: Register, element: usize, size: usize| {
        let n = number(r)?;
        if r.is_vector_register() {
            let q = o.ymm[n][element * size / 8];
            let narrow = (q >> (8 * (element * size % 8))) as u32 as i32;
            return Some(if size == 4 { narrow as u64 } else { q });
        }
        let v = o.gpr[n];
        Some(match r.size() {
            1 => v & 0xff,
            4 => v & 0xffff_ffff,
            _ => v,
        })
    };
    // The base is added here.
    let offset = |r: Register, element: usize, size: usize| {
        if r.is_segment_register() {
            return Some(0);
        }
        register(r, element, size)
    };
    let elements = match i.memory_index() {
        x if x.is_vector_register() => x.size() / if i.is_vsib64() { 8 } else { 4 },
        _ => 1,
    };
    (0..i.op_count()).any(|n| {
        (0..elements).any(|element| {
            i.virtual_address(n, element, offset).is_some_and(|at| {
                let end = at.wrapping_add(OPERAND);
                !(canonical(at) && canonical(end)) && canonical(at.wrapping_add(base))
            })
        })
    })
}

/// The number of a general or vector register.
fn number(r: Register) -> Option<usize> {
    if r.is_gpr() {
        return Some(r.full_register().number());
    }
    r.is_vector_register().then(|| r.number() & 15)
}

/// The sign bits of a vector's elements.
fn signs(v: &[u64], elem: usize) -> Vec<bool> {
    let of = |q: u64| (1..=8 / elem).map(move |k| q >> (8 * elem * k - 1) & 1 != 0);
    v.iter().flat_map(|q| of(*q)).collect()
}
