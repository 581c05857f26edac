//! The helpers of line mode (`--cache hierarchy`): what to do about an access or a fetch that the filters did not pass.
//!
//! They are told the position of their instruction, the clock and the tally before it, because the state's own words
//! are brought up to date only where translated code is left. While a helper runs, [`Vcpu::lag`] says how far they are
//! behind. An access in one line is a touch, whose host address the code then uses; one that crosses lines is the vCPU's
//! business, through a copy. What faults has changed nothing: the interpreter meets it again.

use crate::layout::{self, word};
use sevlab_memctl::{LineFilter, TAG_SHIFT};

use super::{CpuState, answer, copy_to_scratch, run_step, run_thunk, site, store_bytes, vcpu};
use crate::direct::lines::Access;
use sevlab_cpu::Vcpu;
use sevlab_cpu::mmu::Access as Why;
use sevlab_cpu::model::At;
use std::mem::offset_of;

// A helper begins without saving anything, with the one case that a program can meet as often as hits: an access
// across two lines of a page which the filter both has. All that is left to do are two
// stamps. `write` says whether stores must pass, `bytes` the register with the access's length.
std::arch::global_asm!(
    ".macro sevlab_two_lines write, bytes",
    "push rax", "push r9", "push r10", "push r11", "push r12", "push r13",
    "lea r10, [rdi + \\bytes - 1]",
    "mov r12, rdi", "xor r12, r10", "shr r12, 12", "jnz 9f",
    "mov r9, rdi", "shr r9, 6", "shr r10, 6",
    "movzx eax, r9w", "movzx r11d, r10w", "mov r13, [r15 + {lines}]",
    "mov rax, [r13 + rax * 8]", "mov r11, [r13 + r11 * 8]",
    "mov r12, rdi", "shr r12, 12 - ({pair} - 3)", "and r12d, {pages}", "lea r12, [r13 + r12 * 8]",
    "add r9, [r12 + {asleep}]", "add r10, [r12 + {asleep}]",
    ".if \\write",
    "mov r13, rax", "shr r13, {tag} - 1", "add r9, r9", "cmp r13, r9", "jne 9f",
    "mov r13, r11", "shr r13, {tag} - 1", "add r10, r10", "cmp r13, r10", "jne 9f",
    ".else",
    "mov r13, rax", "shr r13, {tag}", "cmp r13, r9", "jne 9f",
    "mov r13, r11", "shr r13, {tag}", "cmp r13, r10", "jne 9f",
    ".endif",
    "movzx eax, ax", "movzx r11d, r11w", "mov r13, [r15 + {lines}]",
    "lea r10, [rcx + 1]", "mov [r13 + rax * 8 + {stamp}], r10", "mov [r13 + r11 * 8 + {stamp}], r10",
    ".if \\write",
    "mov byte ptr [r13 + rax + {wrote}], 1", "mov byte ptr [r13 + r11 + {wrote}], 1",
    ".endif",
    "mov r9, [r12 + {addend}]", "add r9, rdi",
    ".endm",
    ".macro sevlab_restore_all",
    "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop rax",
    ".endm",
    ".macro sevlab_restore_and_return",
    "sevlab_restore_all", "ret",
    ".endm",
    ".macro sevlab_call_saving_all target",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "sub rsp, 256",
    crate::runtime::store_vectors!(),
    "mov r9, r15",
    "call \\target",
    crate::runtime::load_vectors!(),
    "add rsp, 256",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "ret",
    ".endm",
    ".macro sevlab_line_address stub, write, target",
    ".globl \\stub",
    ".p2align 4",
    "\\stub:",
    "sevlab_two_lines \\write, rsi",
    "mov [r15 + {ret}], r9",
    "sevlab_restore_and_return",
    "9: sevlab_restore_all",
    "sevlab_call_saving_all \\target",
    ".endm",
    ".macro sevlab_line_helper stub, target",
    ".globl \\stub",
    ".p2align 4",
    "\\stub:",
    "sevlab_call_saving_all \\target",
    ".endm",

    "sevlab_line_address sevlab_stub_line_load, 0, {load}",
    "sevlab_line_address sevlab_stub_line_rmw, 1, {rmw}",

    // 2, 4 or 8 bytes: a single one does not cross.
    ".globl sevlab_stub_line_store",
    ".p2align 4",
    "sevlab_stub_line_store:",
    "sevlab_two_lines 1, rdx",
    "cmp edx, 4", "je 4f", "ja 8f",
    "mov [r9], si", "jmp 7f",
    "4: mov [r9], esi", "jmp 7f",
    "8: mov [r9], rsi",
    "7: mov qword ptr [r15 + {ret}], 1",
    "sevlab_restore_and_return",
    "9: sevlab_restore_all",
    "sevlab_call_saving_all {store}",

    ".globl sevlab_stub_line_store_wide",
    ".p2align 4",
    "sevlab_stub_line_store_wide:",
    "sevlab_two_lines 1, rsi",
    "mov rax, [r15 + {scratch}]", "mov r10, [r15 + {scratch} + 8]",
    "mov [r9], rax", "mov [r9 + 8], r10",
    "cmp esi, 16", "je 7f",
    "mov rax, [r15 + {scratch} + 16]", "mov r10, [r15 + {scratch} + 24]",
    "mov [r9 + 16], rax", "mov [r9 + 24], r10",
    "7: mov qword ptr [r15 + {ret}], 1",
    "sevlab_restore_and_return",
    "9: sevlab_restore_all",
    "sevlab_call_saving_all {store_wide}",

    // For copies: the address in R10, the number in R11; R14 is what the helper answers, and ZF whether that is 0. What comes between the
    // guest's instructions there keeps nothing else. RAX to R8 are on the stack before.
    ".macro sevlab_copy_begin",
    "push r9", "push rbx", "push rbp", "push r12", "push r13",
    "sub rsp, 520",
    "cmp dword ptr [r15 + {highs}], 0", "jne 21f",
    "movups [rsp], xmm0", "movups [rsp + 32], xmm1", "movups [rsp + 64], xmm2", "movups [rsp + 96], xmm3",
    "jmp 22f",
    "21:",
    "vmovups [rsp], ymm0", "vmovups [rsp + 32], ymm1", "vmovups [rsp + 64], ymm2", "vmovups [rsp + 96], ymm3",
    "22:",
    ".endm",
    ".macro sevlab_copy_end",
    "add rsp, 520",
    "pop r13", "pop r12", "pop rbp", "pop rbx", "pop r9",
    "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "test r14, r14",
    "ret",
    ".endm",
    // The short way of an access or a fetch in one line, RDI and ESI being ready; 8: it has to be finished, 9: it is another's.
    ".macro sevlab_short target",
    "sevlab_copy_begin",
    "push r11", "movq r11, mm0",
    "call \\target",
    "pop r11",
    "mov r14, rax",
    "test rdx, rdx", "jnz 8f",
    "test rax, rax", "jz 9f",
    "cmp dword ptr [r15 + {highs}], 0", "jne 23f",
    "movups xmm0, [rsp]", "movups xmm1, [rsp + 32]", "movups xmm2, [rsp + 64]", "movups xmm3, [rsp + 96]",
    "jmp 24f",
    "23:",
    "vmovups ymm0, [rsp]", "vmovups ymm1, [rsp + 32]", "vmovups ymm2, [rsp + 64]", "vmovups ymm3, [rsp + 96]",
    "24:",
    "sevlab_copy_end",
    ".endm",
    // The helper at RAX.
    ".macro sevlab_copy_call",
    "cmp dword ptr [r15 + {highs}], 0",
    "jne 25f",
    crate::runtime::each_vector!(from 4: "movups [rsp + 32 * ", "], xmm", ""),
    "jmp 26f",
    "25:",
    crate::runtime::each_vector!(from 4: "vmovups [rsp + 32 * ", "], ymm", ""),
    // Or the helper's instructions wait for halves that they do not use.
    "vzeroupper",
    "26:",
    "mov rdi, r10", "mov esi, r11d",
    "movq rdx, mm0", "movq rcx, mm1", "movq r8, mm2",
    "mov r9, r15",
    "call rax",
    "mov r14, rax",
    "cmp dword ptr [r15 + {highs}], 0",
    "jne 27f",
    crate::runtime::each_vector!("movups xmm", ", [rsp + 32 * ", "]"),
    "jmp 28f",
    "27:",
    crate::runtime::each_vector!("vmovups ymm", ", [rsp + 32 * ", "]"),
    "28:",
    "sevlab_copy_end",
    ".endm",
    ".globl sevlab_stub_copy_access",
    ".p2align 4",
    "sevlab_stub_copy_access:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8",
    "mov rax, [r15 + {accesses}]", "imul rcx, r11, {access}", "add rax, rcx",
    "movzx ecx, word ptr [rax + {bytes}]",
    "lea rdx, [r10 + rcx - 1]",
    "mov rsi, r10", "xor rsi, rdx", "shr rsi, 6", "jnz 3f",
    "movzx esi, word ptr [rax + {align}]", "dec esi", "test r10, rsi", "jnz 7f",
    "mov rdi, [r15 + {short}]", "test rdi, rdi", "jz 7f",
    "movzx esi, byte ptr [rax + {write}]",
    "sevlab_short {touch_data}",
    "3:",
    // One across two lines that the filter both has is as for translated code, above.
    "shr rsi, 6", "jnz 7f",
    "cmp byte ptr [rax + {whole}], 0", "jne 7f",
    "movzx esi, word ptr [rax + {align}]", "dec esi", "test r10, rsi", "jnz 7f",
    "mov rsi, r10", "shr rsi, 47", "jnz 7f",
    "movzx eax, byte ptr [rax + {write}]",
    "mov rcx, [r15 + {lines}]",
    "mov rsi, r10", "shr rsi, 12 - ({pair} - 3)", "and esi, {pages}", "lea rsi, [rcx + rsi * 8]",
    "mov r14, r10", "shr r14, 6", "shr rdx, 6",
    "movzx edi, r14w", "mov rdi, [rcx + rdi * 8]",
    "movzx r8d, dx", "mov r8, [rcx + r8 * 8]",
    "add r14, [rsi + {asleep}]", "add rdx, [rsi + {asleep}]",
    "shl r14, {tag}", "shl rdx, {tag}", "xor r14, rdi", "xor rdx, r8",
    "mov edi, 1 << {tag}", "test eax, eax", "jz 4f", "shr edi, 1", "4:",
    "cmp r14, rdi", "jae 7f", "cmp rdx, rdi", "jae 7f",
    "movzx r14d, r14w", "movzx edx, dx",
    "movq [rcx + r14 * 8 + {stamp}], mm0", "movq [rcx + rdx * 8 + {stamp}], mm0",
    "test eax, eax", "jz 5f",
    "mov byte ptr [rcx + r14 + {wrote}], 1", "mov byte ptr [rcx + rdx + {wrote}], 1",
    "5:",
    "mov r14, [rsi + {addend}]", "add r14, r10",
    "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "test r14, r14",
    "ret",
    "7:",
    "sevlab_copy_begin",
    "9:",
    "lea rax, [rip + {copy_access}]",
    "6:",
    "sevlab_copy_call",
    "8:",
    "lea rax, [rip + {copy_due}]", "jmp 6b",
    ".globl sevlab_stub_copy_fetch",
    ".p2align 4",
    "sevlab_stub_copy_fetch:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8",
    "mov rdi, [r15 + {short}]", "test rdi, rdi", "jz 7f",
    "xor esi, esi",
    "sevlab_short {touch_fetch}",
    "7:",
    "sevlab_copy_begin",
    "8:", "9:",
    "lea rax, [rip + {copy_fetch}]",
    "sevlab_copy_call",

    "sevlab_line_helper sevlab_stub_line_fetch, {fetch}",
    "sevlab_line_helper sevlab_stub_line_thunk, {thunk}",
    "sevlab_line_helper sevlab_stub_line_step, {step}",
    tag = const TAG_SHIFT,
    lines = const layout::LINES,
    ret = const layout::RET,
    scratch = const layout::SCRATCH,
    stamp = const LineFilter::STAMP,
    pair = const LineFilter::PAIR_SHIFT,
    pages = const (LineFilter::PAGES - 1) << (LineFilter::PAIR_SHIFT - 3),
    addend = const LineFilter::ADDEND,
    asleep = const LineFilter::ASLEEP,
    wrote = const LineFilter::WROTE,
    highs = const layout::HIGHS,
    accesses = const layout::ACCESSES,
    access = const size_of::<Access>(),
    bytes = const offset_of!(Access, bytes),
    align = const offset_of!(Access, align),
    write = const offset_of!(Access, write),
    whole = const offset_of!(Access, whole),
    short = const layout::SHORT,
    touch_data = sym sevlab_cpu::model::short::touch_data,
    touch_fetch = sym sevlab_cpu::model::short::touch_fetch,
    copy_access = sym copy_access,
    copy_due = sym copy_due,
    copy_fetch = sym copy_fetch,
    load = sym load,
    rmw = sym rmw,
    store = sym store,
    store_wide = sym store_wide,
    fetch = sym fetch,
    thunk = sym thunk,
    step = sym step,
);

/// An entry's index is a word of 16 bits.
const _: () = assert!(LineFilter::ENTRIES == 1 << 16);

unsafe extern "C" {
    pub(super) fn sevlab_stub_line_load();
    pub(super) fn sevlab_stub_line_rmw();
    pub(super) fn sevlab_stub_line_store();
    pub(super) fn sevlab_stub_line_store_wide();
    pub(super) fn sevlab_stub_line_fetch();
    pub(super) fn sevlab_stub_line_thunk();
    pub(super) fn sevlab_stub_line_step();
    pub(super) fn sevlab_stub_copy_access();
    pub(super) fn sevlab_stub_copy_fetch();
}

/// The vCPU, with its lag set to what translated code says of its position: the clock, and what the state's tally lacks.
///
/// # Safety
/// As [`vcpu`].
unsafe fn at<'a>(state: *mut CpuState, clock: u64, tally: u64) -> &'a mut Vcpu {
    // SAFETY: the caller's promise.
    let v = unsafe { vcpu(state) };
    v.lag = At {
        retired: clock.wrapping_sub(v.state.clock()),
        tally,
    };
    v
}

/// Ends a helper that [`at`] began.
fn done(v: &mut Vcpu, value: u64) {
    v.lag = At::default();
    answer(v, value);
}

fn crosses(va: u64, n: u64) -> bool {
    va & 63 > 64 - n
}

fn touch(v: &mut Vcpu, va: u64, n: u64, access: Why) -> u64 {
    let at = v.at();
    if let Some(host) = v.touch_short(va, access, at) {
        return host.as_ptr() as u64;
    }
    touch_longer(v, va, n, access)
}

/// The same where the short way has been tried.
fn touch_longer(v: &mut Vcpu, va: u64, n: u64, access: Why) -> u64 {
    let at = v.at();
    let touched = v.touch_data(va, n, access, at);
    touched.map_or(0, |host| host.map_or(0, |host| host.as_ptr() as u64))
}

/// The host address of bytes in two lines of one page that is known, both touched. They stay where they are
/// at least until the next instruction, even if one of the lines pushes out the other.
fn both_lines(v: &mut Vcpu, va: u64, access: Why) -> Option<u64> {
    let upper = (va | 63).wrapping_add(1);
    if upper & 0xfff == 0 {
        return None;
    }
    let at = v.at();
    let host = v.touch_line(va, access, at)?;
    v.touch_line(upper, access, at)?;
    Some(host.as_ptr() as u64)
}

/// As [`store_bytes`], with a short way for what lies in one line.
fn store_line(v: &mut Vcpu, va: u64, bytes: &[u8]) -> bool {
    let at = v.at();
    if !crosses(va, bytes.len() as u64)
        && let Some(host) = v.touch_known(va, Why::Write, at)
    {
        // SAFETY: the bytes are of one line, which the controller has just given for a store.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), host.as_ptr(), bytes.len()) };
        return true;
    }
    store_bytes(v, va, bytes)
}

extern "sysv64" fn load(va: u64, n: u64, _: u64, clock: u64, tally: u64, state: *mut CpuState) {
    // SAFETY: called by translated code only, with the pinned register as the last argument.
    let v = unsafe { at(state, clock, tally) };
    let host = if crosses(va, n) {
        both_lines(v, va, Why::Read).unwrap_or_else(|| copy_to_scratch(v, va, n))
    } else {
        touch(v, va, n, Why::Read)
    };
    done(v, host);
}

extern "sysv64" fn rmw(va: u64, n: u64, _: u64, clock: u64, tally: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { at(state, clock, tally) };
    let host = if crosses(va, n) {
        0
    } else {
        touch(v, va, n, Why::Write)
    };
    done(v, host);
}

extern "sysv64" fn store(
    va: u64,
    value: u64,
    n: u64,
    clock: u64,
    tally: u64,
    state: *mut CpuState,
) {
    // SAFETY: as in `load`.
    let v = unsafe { at(state, clock, tally) };
    let bytes = value.to_le_bytes();
    let ok = store_line(v, va, &bytes[..(n as usize).min(8)]);
    done(v, u64::from(ok));
}

extern "sysv64" fn store_wide(
    va: u64,
    n: u64,
    _: u64,
    clock: u64,
    tally: u64,
    state: *mut CpuState,
) {
    // SAFETY: as in `load`.
    let v = unsafe { at(state, clock, tally) };
    let mut bytes = [0u8; 32];
    bytes.copy_from_slice(&v.state.scratch.0[..32]);
    let ok = store_line(v, va, &bytes[..(n as usize).min(32)]);
    done(v, u64::from(ok));
}

extern "sysv64" fn fetch(va: u64, _: u64, _: u64, clock: u64, tally: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { at(state, clock, tally) };
    let at = v.at();
    let ok = v.touch_fetch(va, at).is_ok();
    done(v, u64::from(ok));
}

extern "sysv64" fn thunk(n: u64, _: u64, _: u64, clock: u64, tally: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { at(state, clock, tally) };
    let ok = run_thunk(v, n).is_some();
    done(v, u64::from(ok));
}

/// Runs instruction `n` in the interpreter, with the position in the state. 1 if translated code may go on behind it; `ahead`
/// instructions more may then run before it asks whether the turn ends.
extern "sysv64" fn step(n: u64, ahead: u64, _: u64, _: u64, _: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let Some(site) = site(v, n) else {
        return answer(v, 0);
    };
    let go_on = run_step(v, site) && v.state.clock().saturating_add(ahead) < v.state.stop_at;
    answer(v, u64::from(go_on));
}

/// What `f` makes of the vCPU and access `n` of a copy, whose instruction's stamp and whose sums are these, see [`crate::direct::lines`].
///
/// # Safety
/// As [`vcpu`]; `n` is a number that the engine gave out.
unsafe fn in_copy(
    state: *mut CpuState,
    n: u64,
    [stamp, tally, fetched]: [u64; 3],
    f: impl FnOnce(&mut Vcpu, &Access) -> u64,
) -> u64 {
    // SAFETY: the caller's promises; the engine put its table there and does not touch it while copies run.
    let (v, access) = unsafe {
        let v = vcpu(state);
        let table = v.state.engine[word(layout::ACCESSES)] as *const Access;
        (v, &*table.add(n as usize))
    };
    v.lag = At {
        retired: stamp.wrapping_sub(1).wrapping_sub(v.state.clock()),
        tally: tally.wrapping_add(access.tally),
    };
    v.state.fetched = fetched.wrapping_add(access.fetched.into());
    let answer = f(v, access);
    v.lag = At::default();
    answer
}

/// The host address of an access of a copy, or 0: the interpreter has to run its instruction.
extern "sysv64" fn copy_access(
    va: u64,
    n: u64,
    stamp: u64,
    tally: u64,
    fetched: u64,
    state: *mut CpuState,
) -> u64 {
    let access = |v: &mut Vcpu, access: &Access| {
        let bytes = u64::from(access.bytes);
        let why = if access.write { Why::Write } else { Why::Read };
        if va & (u64::from(access.align) - 1) != 0 {
            0
        } else if !crosses(va, bytes) {
            touch_longer(v, va, bytes, why)
        } else if access.whole {
            0
        } else {
            both_lines(v, va, why).unwrap_or(0)
        }
    };
    // SAFETY: called by copies only, with the pinned register as the last argument and a number of their own.
    unsafe { in_copy(state, n, [stamp, tally, fetched], access) }
}

/// What the short way has left to do for an access that it has made.
extern "sysv64" fn copy_due(
    va: u64,
    n: u64,
    stamp: u64,
    tally: u64,
    fetched: u64,
    state: *mut CpuState,
) -> u64 {
    let due = |v: &mut Vcpu, _: &Access| {
        let host = v.touch_due(va, v.at());
        host.map_or(0, |host| host.as_ptr() as u64)
    };
    // SAFETY: as in `copy_access`.
    unsafe { in_copy(state, n, [stamp, tally, fetched], due) }
}

/// Fetches a line for a copy; 0 if it can't be.
extern "sysv64" fn copy_fetch(
    va: u64,
    n: u64,
    stamp: u64,
    tally: u64,
    fetched: u64,
    state: *mut CpuState,
) -> u64 {
    let fetch = |v: &mut Vcpu, _: &Access| v.touch_fetch(va, v.at()).is_ok().into();
    // SAFETY: as in `copy_access`.
    unsafe { in_copy(state, n, [stamp, tally, fetched], fetch) }
}
