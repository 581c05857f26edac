//! The VMSA's registers: all of them, as SEV-ES and SNP switch them (APM vol. 2, table B-4).

use core::mem::offset_of;

use sevlab_arch::vmsa::Vmsa;

use super::save::{common_load, common_store, segment_in, segment_out, table_out};
use crate::state::{CpuState, Lane, gpr, seg};

/// Offsets in the FXSAVE image, 64-bit form.
mod fx {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const RIP: usize = 8;
    pub const DP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
}

/// `(number in CpuState::gpr, VMSA field)` of the registers that only the VMSA holds.
macro_rules! gprs {
    ($with:ident, $s:expr, $v:expr) => {
        $with!($s, $v, 1 rcx, 2 rdx, 3 rbx, 5 rbp, 6 rsi, 7 rdi, 8 r8, 9 r9, 10 r10, 11 r11,
            12 r12, 13 r13, 14 r14, 15 r15)
    };
}
macro_rules! gprs_in {
    ($s:expr, $v:expr, $($n:literal $f:ident),*) => { $($s.gpr[$n] = $v.$f;)* };
}
macro_rules! gprs_out {
    ($s:expr, $v:expr, $($n:literal $f:ident),*) => { $($v.$f = $s.gpr[$n];)* };
}

pub(super) fn load(s: &mut CpuState, v: &Vmsa) {
    common_load!(&mut *s, v);
    gprs!(gprs_in, s, v);
    let r = &mut s.sys;
    r.dr[0..4].copy_from_slice(&[v.dr0, v.dr1, v.dr2, v.dr3]);
    r.xss = v.xss;
    r.xcr0 = v.xcr0;
    r.tsc_aux = u64::from(v.tsc_aux);
    r.tsc_offset = v.tsc_offset;
    s.mxcsr = v.mxcsr;
    lanes_in(&mut s.xmm, &v.fpreg_xmm);
    lanes_in(&mut s.ymmh, &v.fpreg_ymm);
    let f = &mut s.fx.0;
    f.fill(0);
    f[fx::FCW..][..2].copy_from_slice(&v.x87_fcw.to_le_bytes());
    f[fx::FSW..][..2].copy_from_slice(&v.x87_fsw.to_le_bytes());
    f[fx::FTW] = abridged_tags(v.x87_ftw);
    f[fx::FOP..][..2].copy_from_slice(&v.x87_fop.to_le_bytes());
    f[fx::RIP..][..8].copy_from_slice(&v.x87_rip.to_le_bytes());
    f[fx::DP..][..8].copy_from_slice(&v.x87_dp.to_le_bytes());
    f[fx::MXCSR..][..4].copy_from_slice(&v.mxcsr.to_le_bytes());
    f[fx::MXCSR_MASK..][..4].copy_from_slice(&0x0002_ffffu32.to_le_bytes());
    for (i, st) in v.fpreg_x87.chunks_exact(10).enumerate() {
        f[fx::ST + 16 * i..][..10].copy_from_slice(st);
    }
}

pub(super) fn store(s: &CpuState, v: &mut Vmsa) {
    common_store!(s, &mut *v);
    gprs!(gprs_out, s, v);
    let r = &s.sys;
    [v.dr0, v.dr1, v.dr2, v.dr3] = [r.dr[0], r.dr[1], r.dr[2], r.dr[3]];
    v.xss = r.xss;
    v.xcr0 = r.xcr0;
    v.tsc_aux = r.tsc_aux as u32;
    v.mxcsr = s.mxcsr;
    lanes_out(&s.xmm, &mut v.fpreg_xmm);
    lanes_out(&s.ymmh, &mut v.fpreg_ymm);
    let f = &s.fx.0;
    v.x87_fcw = u16::from_le_bytes(word(f, fx::FCW));
    v.x87_fsw = u16::from_le_bytes(word(f, fx::FSW));
    v.x87_fop = u16::from_le_bytes(word(f, fx::FOP));
    v.x87_rip = u64::from_le_bytes(word(f, fx::RIP));
    v.x87_dp = u64::from_le_bytes(word(f, fx::DP));
    for (i, st) in v.fpreg_x87.chunks_exact_mut(10).enumerate() {
        st.copy_from_slice(&f[fx::ST + 16 * i..][..10]);
    }
    v.x87_ftw = full_tags(f[fx::FTW], v.x87_fsw, &v.fpreg_x87);
}

fn word<const N: usize>(f: &[u8; 512], at: usize) -> [u8; N] {
    core::array::from_fn(|i| f[at + i])
}

fn lanes_in(lanes: &mut [Lane; 16], bytes: &[u8; 256]) {
    for (lane, b) in lanes.iter_mut().zip(bytes.as_chunks::<16>().0) {
        let n = u128::from_le_bytes(*b);
        lane.0 = [n as u64, (n >> 64) as u64];
    }
}

fn lanes_out(lanes: &[Lane; 16], bytes: &mut [u8; 256]) {
    for (lane, b) in lanes.iter().zip(bytes.as_chunks_mut::<16>().0) {
        *b = (u128::from(lane.0[0]) | u128::from(lane.0[1]) << 64).to_le_bytes();
    }
}

/// The FXSAVE form of the tag word: one bit a register, set where it is not empty.
fn abridged_tags(full: u16) -> u8 {
    (0..8).fold(0, |bits, i| bits | u8::from(full >> (2 * i) & 3 != 3) << i)
}

/// The full tag word, which FXSAVE leaves out: 0 valid, 1 zero, 2 special, 3 empty (APM vol. 2,
/// 11.4.4). Tags are by physical register, the register images by distance from the top of stack.
fn full_tags(abridged: u8, fsw: u16, st: &[u8; 80]) -> u16 {
    let top = usize::from(fsw >> 11 & 7);
    (0..8).fold(0, |tags, i| {
        let tag = if abridged >> i & 1 == 0 {
            3
        } else {
            let reg = &st[10 * ((i + 8 - top) % 8)..][..10];
            let mantissa = u64::from_le_bytes(core::array::from_fn(|k| reg[k]));
            match u16::from_le_bytes([reg[8], reg[9]]) & 0x7fff {
                0 if mantissa == 0 => 1,
                0 | 0x7fff => 2,
                _ if mantissa >> 63 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * i)
    })
}

/// Names of the VMSA's parts, by the offset at which each ends.
const REGIONS: &[(usize, &str)] = &[
    (offset_of!(Vmsa, gdtr), "segment registers"),
    (offset_of!(Vmsa, pl0_ssp), "descriptor tables and TR"),
    (offset_of!(Vmsa, reserved_0c8), "shadow stack registers"),
    (offset_of!(Vmsa, reserved_0cc), "VMPL and CPL"),
    (offset_of!(Vmsa, xss), "EFER"),
    (offset_of!(Vmsa, rflags), "control and debug registers"),
    (offset_of!(Vmsa, dr0), "RFLAGS and RIP"),
    (offset_of!(Vmsa, rsp), "debug registers"),
    (offset_of!(Vmsa, star), "RSP, RAX and shadow stack"),
    (offset_of!(Vmsa, cr2), "syscall registers"),
    (offset_of!(Vmsa, pkru), "CR2, PAT and debug MSRs"),
    (offset_of!(Vmsa, rcx), "PKRU and TSC"),
    (offset_of!(Vmsa, reserved_380), "general registers"),
    (offset_of!(Vmsa, sev_features), "guest exit information"),
    (offset_of!(Vmsa, xcr0), "SEV features and events"),
    (offset_of!(Vmsa, x87_dp), "XCR0"),
    (offset_of!(Vmsa, fpreg_xmm), "x87 state and MXCSR"),
    (offset_of!(Vmsa, fpreg_ymm), "XMM registers"),
    (Vmsa::SIZE, "YMM registers"),
];

/// What lies at `offset` of a VMSA page.
pub(super) fn region(offset: usize) -> &'static str {
    REGIONS
        .iter()
        .find(|&&(end, _)| offset < end)
        .map_or("unused part of the page", |&(_, name)| name)
}
