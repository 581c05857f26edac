//! Signal frames on the guest's stack, as Linux lays them out (arch/x86/kernel/signal_64.c,
//! asm/sigframe.h, uapi/asm/sigcontext.h), with an XSAVE area for x87, SSE and AVX state.

use sevlab_cpu::state::{CpuState, Lane, gpr};

use super::signal::{Action, AltStack, SA_ONSTACK, SA_RESTORER, SigInfo};

/// Bytes of the frame without floating-point state: return address, ucontext, siginfo.
pub const FRAME: usize = 8 + UCONTEXT + 128;
const UCONTEXT: usize = 40 + SIGCONTEXT + 8;
const SIGCONTEXT: usize = 256;
/// Bytes of XSAVE state: legacy area, header, upper YMM halves.
const XSTATE: usize = 512 + 64 + 256;
/// The state and its trailing magic.
const FP_AREA: usize = XSTATE + 4;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Offset of `struct _fpx_sw_bytes` in the legacy area.
const SW_BYTES: usize = 464;
/// x87, SSE, AVX.
const FEATURES: u64 = 7;
/// What one delivery may need of a stack (`AT_MINSIGSTKSZ`): frame, state, alignment.
pub const FRAME_MAX: u64 = 2048;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// RFLAGS bits that a frame may change: CF PF AF ZF SF TF DF OF RF AC.
const RESTORABLE: u64 = 0x5_0dd5;
/// DF, RF, TF: clear when a handler starts.
const CLEARED: u64 = 0x1_0500;

/// `sigcontext`'s registers in order, but RIP and RFLAGS which follow.
const ORDER: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, gpr::RSP];

/// A frame ready to be written.
pub struct Frame {
    /// Address of the frame: RSP when the handler starts.
    pub at: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Address of the floating-point state.
    pub fp_at: u64,
    /// Its bytes.
    pub fp: Vec<u8>,
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}
fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

/// Builds the frame of `info` for `action`. `mask` is what sigreturn restores. `None`: the alternate
/// stack would overflow, or the handler has no restorer.
#[must_use]
pub fn build(
    state: &CpuState,
    action: &Action,
    info: &SigInfo,
    mask: u64,
    alt: &AltStack,
    last_fault: (u64, u64, u64),
) -> Option<Frame> {
    if action.flags & SA_RESTORER == 0 {
        return None;
    }
    let rsp = state.gpr[gpr::RSP as usize];
    let on_alt = alt.holds(rsp);
    let enters = action.flags & SA_ONSTACK != 0 && !on_alt && alt.flags & AltStack::DISABLE == 0;
    let top = if enters {
        alt.sp.wrapping_add(alt.size)
    } else {
        rsp.wrapping_sub(128)
    };
    let fp_at = top.wrapping_sub(FP_AREA as u64) & !63;
    let at = (fp_at.wrapping_sub(FRAME as u64) & !15).wrapping_sub(8);
    if (on_alt || enters) && (at < alt.sp || at > alt.sp.wrapping_add(alt.size)) {
        return None;
    }

    let mut b = vec![0; FRAME];
    put(&mut b, 0, action.restorer);
    let uc = 8;
    put(
        &mut b,
        uc,
        UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
    );
    put(&mut b, uc + 16, alt.sp);
    let on_stack = u64::from(on_alt);
    put(&mut b, uc + 24, u64::from(alt.flags) | on_stack);
    put(&mut b, uc + 32, alt.size);
    let sc = uc + 40;
    for (i, r) in ORDER.iter().enumerate() {
        put(&mut b, sc + i * 8, state.gpr[usize::from(*r)]);
    }
    put(&mut b, sc + 128, state.rip);
    put(&mut b, sc + 136, state.rflags());
    let segments = u64::from(state.seg[1].selector) | u64::from(state.seg[2].selector) << 48;
    put(&mut b, sc + 144, segments);
    let (trap, error, cr2) = last_fault;
    put(&mut b, sc + 152, error);
    put(&mut b, sc + 160, trap);
    put(&mut b, sc + 168, mask);
    put(&mut b, sc + 176, cr2);
    put(&mut b, sc + 184, fp_at);
    put(&mut b, sc + SIGCONTEXT, mask);
    b[8 + UCONTEXT..].copy_from_slice(&info.0);
    Some(Frame {
        at,
        bytes: b,
        fp_at,
        fp: save_fp(state),
    })
}

/// Points the registers at the handler; floating-point state is the initial one. What they were was saved by [`build`].
pub fn enter(state: &mut CpuState, action: &Action, signo: i32, at: u64) {
    state.gpr[gpr::RSP as usize] = at;
    state.gpr[gpr::RDI as usize] = signo as u64;
    state.gpr[gpr::RSI as usize] = at.wrapping_add((8 + UCONTEXT) as u64);
    state.gpr[gpr::RDX as usize] = at.wrapping_add(8);
    state.gpr[gpr::RAX as usize] = 0;
    state.rip = action.handler;
    let flags = state.rflags() & !CLEARED;
    state.set_rflags(flags);
    // Linux's fpu__clear_user_states: a handler begins with no vector or x87 state of what it interrupts.
    restore_fp(state, None);
}

fn save_fp(state: &CpuState) -> Vec<u8> {
    let mut fp = vec![0; FP_AREA];
    fp[..160].copy_from_slice(&state.fx.0[..160]);
    fp[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    fp[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    let lanes = |fp: &mut [u8], at: usize, lanes: &[Lane; 16]| {
        for (i, lane) in lanes.iter().enumerate() {
            put(fp, at + i * 16, lane.0[0]);
            put(fp, at + i * 16 + 8, lane.0[1]);
        }
    };
    lanes(&mut fp, 160, &state.xmm);
    lanes(&mut fp, 576, &state.ymmh);
    fp[SW_BYTES..SW_BYTES + 4].copy_from_slice(&MAGIC1.to_le_bytes());
    fp[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&(FP_AREA as u32).to_le_bytes());
    put(&mut fp, SW_BYTES + 8, FEATURES);
    fp[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&(XSTATE as u32).to_le_bytes());
    put(&mut fp, 512, FEATURES);
    fp[XSTATE..].copy_from_slice(&MAGIC2.to_le_bytes());
    fp
}

/// What [`parse`] found in a frame.
pub struct Restored {
    /// The signal mask.
    pub mask: u64,
    /// Where the floating-point state is; 0: none.
    pub fp_at: u64,
    /// The alternate stack.
    pub alt: AltStack,
}

/// Restores the general registers from the bytes of a frame.
#[must_use]
pub fn parse(state: &mut CpuState, bytes: &[u8; FRAME]) -> Restored {
    let sc = 8 + 40;
    for (i, r) in ORDER.iter().enumerate() {
        state.gpr[usize::from(*r)] = get(bytes, sc + i * 8);
    }
    state.rip = get(bytes, sc + 128);
    let flags = get(bytes, sc + 136) & RESTORABLE | state.rflags() & !RESTORABLE;
    state.set_rflags(flags);
    Restored {
        mask: get(bytes, sc + SIGCONTEXT),
        fp_at: get(bytes, sc + 184),
        alt: AltStack {
            sp: get(bytes, 8 + 16),
            flags: get32(bytes, 8 + 24) & !1,
            size: get(bytes, 8 + 32),
        },
    }
}

/// Bytes of floating-point state to read at [`Restored::fp_at`], given its legacy area.
#[must_use]
pub fn fp_len(legacy: &[u8; 512]) -> usize {
    let size = get32(legacy, SW_BYTES + 16) as usize;
    if get32(legacy, SW_BYTES) == MAGIC1 && (576..=XSTATE).contains(&size) {
        XSTATE + 4
    } else {
        512
    }
}

/// Restores floating-point state: the whole area, or, if `fp` is shorter, its legacy part; `None`:
/// the initial state.
pub fn restore_fp(state: &mut CpuState, fp: Option<&[u8]>) {
    let initial = CpuState::process();
    let Some(fp) = fp.filter(|fp| fp.len() >= 512) else {
        state.fx = initial.fx;
        state.xmm = initial.xmm;
        state.ymmh = initial.ymmh;
        state.mxcsr = initial.mxcsr;
        return;
    };
    let extended = fp.len() >= FP_AREA && get32(fp, XSTATE) == MAGIC2;
    let have = if extended { get(fp, 512) } else { 3 };
    state.fx = initial.fx;
    if have & 1 != 0 {
        state.fx.0[..24].copy_from_slice(&fp[..24]);
        state.fx.0[32..160].copy_from_slice(&fp[32..160]);
    }
    state.mxcsr = get32(fp, 24) & 0xffff;
    let mxcsr = state.mxcsr.to_le_bytes();
    state.fx.0[24..28].copy_from_slice(&mxcsr);
    let lanes = |on: bool, at: usize| -> [Lane; 16] {
        core::array::from_fn(|i| {
            if on {
                Lane([get(fp, at + i * 16), get(fp, at + i * 16 + 8)])
            } else {
                Lane::default()
            }
        })
    };
    state.xmm = lanes(have & 2 != 0, 160);
    state.ymmh = lanes(extended && have & 4 != 0, 576);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_linux_ones() {
        assert_eq!(UCONTEXT, 304);
        assert_eq!(FRAME, 440);
        assert_eq!(XSTATE, 832);
    }

    #[test]
    fn a_frame_restores_what_it_saved() {
        let mut state = CpuState::process();
        for (i, r) in state.gpr.iter_mut().enumerate() {
            *r = 0x1000_0000 + i as u64 * 0x1111;
        }
        state.rip = 0x40_1234;
        state.set_rflags(0x246 | 1);
        state.mxcsr = 0x1f81;
        for i in 0..16 {
            state.xmm[i] = Lane([i as u64, 2]);
            state.ymmh[i] = Lane([i as u64 + 100, 3]);
        }
        state.fx.0[32] = 0xab;
        let action = Action {
            handler: 0x5000,
            flags: SA_RESTORER,
            restorer: 0x6000,
            mask: 0,
        };
        let info = SigInfo::fault(11, 1, 0xdead);
        let f = build(
            &state,
            &action,
            &info,
            0x55,
            &AltStack::NONE,
            (14, 4, 0xdead),
        )
        .unwrap();
        assert_eq!((f.at + 8) % 16, 0);
        assert_eq!(f.fp_at % 64, 0);
        assert!(f.at + FRAME as u64 <= f.fp_at);
        let (gprs, rip, flags) = (state.gpr, state.rip, state.rflags());
        let (xmm, ymmh) = (state.xmm, state.ymmh);
        enter(&mut state, &action, 11, f.at);
        assert_eq!((state.rip, state.gpr[7]), (0x5000, 11));
        assert_eq!(state.rflags() & CLEARED, 0);
        let initial = CpuState::process();
        assert_eq!((state.mxcsr, state.fx.0), (0x1f80, initial.fx.0));
        assert_eq!((state.xmm, state.ymmh), (initial.xmm, initial.ymmh));
        let bytes: [u8; FRAME] = f.bytes.clone().try_into().unwrap();
        let r = parse(&mut state, &bytes);
        let legacy: [u8; 512] = f.fp[..512].try_into().unwrap();
        assert_eq!(fp_len(&legacy), f.fp.len());
        restore_fp(&mut state, Some(&f.fp));
        assert_eq!((state.gpr, state.rip, state.rflags()), (gprs, rip, flags));
        assert_eq!((state.xmm, state.ymmh, state.mxcsr), (xmm, ymmh, 0x1f81));
        assert_eq!((r.mask, r.fp_at, state.fx.0[32]), (0x55, f.fp_at, 0xab));
    }

    #[test]
    fn an_alternate_stack_that_overflows_is_no_stack() {
        let state = CpuState::process();
        let action = Action {
            handler: 1,
            flags: SA_RESTORER | SA_ONSTACK,
            restorer: 1,
            mask: 0,
        };
        let alt = AltStack {
            sp: 0x10000,
            flags: 0,
            size: 600,
        };
        assert!(build(&state, &action, &SigInfo::kernel(11), 0, &alt, (0, 0, 0)).is_none());
    }
}
