#![allow(unsafe_code)] // enters and leaves copied code
//! The ways into copied code and out of it: the guest's registers come into the host's, and go back to the state.
//!
//! The count of retired instructions is in MM0 meanwhile, which nobody else uses: to add to it there changes no flags, and the next addition
//! does not wait for a store.

use super::lines::flags_word;
use super::{HOSTS, RSP};
use crate::layout::{self, word};
use crate::runtime::each_vector;
use sevlab_cpu::CpuState;

const _: () = {
    // What the assembly below says of `HOSTS`.
    let own = [0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 14];
    let mut n = 0;
    while n < own.len() {
        assert!(matches!(HOSTS[own[n]], Some(r) if r as usize == own[n]));
        n += 1;
    }
    assert!(matches!(HOSTS[RSP as usize], Some(9)));
};

std::arch::global_asm!(
    // extern "sysv64" fn(*mut CpuState, code) -> u64: the flags' record is explicit.
    ".globl sevlab_direct_enter",
    ".p2align 4",
    "sevlab_direct_enter:",
    "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
    "mov r15, rdi",
    "mov r10, rsi",
    "cmp qword ptr [r15 + {avx}], 0",
    "je 3f",
    // Registers whose high halves are empty are to be known as such by the host: it is faster then.
    "vxorps xmm0, xmm0, xmm0",
    each_vector!("vorps xmm0, xmm0, [r15 + {ymmh} + 16 * ", "]"),
    "vptest xmm0, xmm0",
    "jz 2f",
    each_vector!("movups xmm", ", [r15 + {xmm} + 16 * ", "]"),
    each_vector!("vinsertf128 ymm", ", ymm", ", [r15 + {ymmh} + 16 * ", "], 1"),
    "mov dword ptr [r15 + {highs}], 1",
    "jmp 4f",
    "2:",
    "vzeroupper",
    "3:",
    each_vector!("movups xmm", ", [r15 + {xmm} + 16 * ", "]"),
    "mov dword ptr [r15 + {highs}], 0",
    "4:",
    "movq mm0, [r15 + {retired}]",
    "push qword ptr [r15 + {flags}]",
    "popfq",
    "mov rax, [r15 + {gpr}]", "mov rcx, [r15 + {gpr} + 8]", "mov rdx, [r15 + {gpr} + 16]",
    "mov rbx, [r15 + {gpr} + 24]", "mov r9, [r15 + {gpr} + 32]", "mov rbp, [r15 + {gpr} + 40]",
    "mov rsi, [r15 + {gpr} + 48]", "mov rdi, [r15 + {gpr} + 56]", "mov r8, [r15 + {gpr} + 64]",
    "mov r12, [r15 + {gpr} + 96]", "mov r13, [r15 + {gpr} + 104]", "mov r14, [r15 + {gpr} + 112]",
    "jmp r10",
    // Where caches are simulated: what comes behind, with the code in the state.
    ".globl sevlab_direct_start_lines",
    ".p2align 4",
    "sevlab_direct_start_lines:",
    "movq mm0, [r15 + {stamp}]",
    "pxor mm1, mm1",
    "movq mm2, [r15 + {fetched}]",
    "pcmpeqd mm3, mm3", "psrlq mm3, 63",
    "movq mm4, mm3", "paddq mm4, mm3",
    "movq mm5, mm4", "paddq mm5, mm3",
    "movq mm6, mm5", "paddq mm6, mm3",
    "movq mm7, mm6", "paddq mm7, mm3",
    "jmp [r15 + {start}]",
    // And what comes before: sums and flags get to where they are expected, R14 is nothing.
    ".globl sevlab_direct_leave_lines",
    ".p2align 4",
    "sevlab_direct_leave_lines:",
    "movq r14, mm0",
    "dec r14",
    "sub r14, [r15 + {repeats}]",
    "movq mm0, r14",
    "movq r14, mm1",
    "add [r15 + {tally}], r14",
    "movq [r15 + {fetched}], mm2",
    "mov r14, rax",
    "mov eax, [r15 + {lahf}]",
    "add al, 127",
    "sahf",
    "mov rax, r14",
    "mov r14, [r15 + {gpr} + 112]",
    "jmp sevlab_direct_leave",
    // R10: the guest's RIP. R11: why it is left.
    ".globl sevlab_direct_leave",
    ".p2align 4",
    "sevlab_direct_leave:",
    "mov [r15 + {rip}], r10",
    "mov [r15 + {gpr}], rax", "mov [r15 + {gpr} + 8], rcx", "mov [r15 + {gpr} + 16], rdx",
    "mov [r15 + {gpr} + 24], rbx", "mov [r15 + {gpr} + 32], r9", "mov [r15 + {gpr} + 40], rbp",
    "mov [r15 + {gpr} + 48], rsi", "mov [r15 + {gpr} + 56], rdi", "mov [r15 + {gpr} + 64], r8",
    "mov [r15 + {gpr} + 96], r12", "mov [r15 + {gpr} + 104], r13", "mov [r15 + {gpr} + 112], r14",
    "pushfq",
    "pop qword ptr [r15 + {flags}]",
    "movq [r15 + {retired}], mm0",
    "emms",
    each_vector!("movups [r15 + {xmm} + 16 * ", "], xmm", ""),
    "cmp qword ptr [r15 + {avx}], 0",
    "je 5f",
    each_vector!("vextractf128 [r15 + {ymmh} + 16 * ", "], ymm", ", 1"),
    "vzeroupper",
    "5:",
    "mov eax, r11d",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
    "ret",
    gpr = const layout::gpr(0),
    rip = const layout::RIP,
    flags = const layout::CC + 24,
    retired = const layout::RETIRED,
    repeats = const layout::REPEATS,
    tally = const layout::TALLY,
    fetched = const layout::FETCHED,
    stamp = const layout::STAMP,
    start = const layout::START,
    lahf = const layout::FLAGS,
    highs = const layout::HIGHS,
    xmm = const layout::xmm(0),
    ymmh = const layout::ymmh(0),
    avx = const layout::AVX,
);

unsafe extern "C" {
    fn sevlab_direct_enter();
    fn sevlab_direct_leave();
    fn sevlab_direct_start_lines();
    fn sevlab_direct_leave_lines();
}

/// What enters copied code.
pub(crate) fn enter(state: *mut CpuState, code: usize) -> u32 {
    // SAFETY: it is of this form; the caller has code that is entered so, and a state that nothing else touches meanwhile.
    let enter: extern "sysv64" fn(*mut CpuState, usize) -> u32 =
        unsafe { std::mem::transmute(sevlab_direct_enter as *const ()) };
    enter(state, code)
}

/// The same where caches are simulated. The flags' record is explicit.
pub(crate) fn enter_lines(s: &mut CpuState, code: usize) -> u32 {
    let stamp = s.clock() + 1;
    let engine = &mut s.engine;
    engine[word(layout::FLAGS)] = flags_word(s.cc.r);
    engine[word(layout::STAMP)] = stamp;
    engine[word(layout::START)] = code as u64;
    enter(s, sevlab_direct_start_lines as *const () as usize)
}

/// Address of what leaves it; `lines`: where caches are simulated.
pub(crate) fn leave_address(lines: bool) -> usize {
    if lines {
        sevlab_direct_leave_lines as *const () as usize
    } else {
        sevlab_direct_leave as *const () as usize
    }
}
