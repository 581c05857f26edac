//! What translated code calls: helpers reached through words of the CPU state.
//!
//! Helpers are called with Cranelift's `preserve_all` convention: they change no register, and answer through the
//! state's `RET` words. The assembly stubs here save what a System V callee may change and call the Rust side with
//! the pinned state pointer as the fourth argument.
#![allow(unsafe_code)] // the other half of an ABI that the compiler can't check

mod lines;

use crate::layout::{self, word};
use sevlab_arch::Va;
use sevlab_cpu::flags::LazyFlags;
use sevlab_cpu::mmu::Access;
use sevlab_cpu::thunk::Thunk;
use sevlab_cpu::{CpuState, Insn, MemRef, Stop, Vcpu};
use std::cell::{Cell, RefCell};

/// A line for each vector register, with its number between the parts.
macro_rules! each_vector {
    (from 4: $($part:literal),+) => {
        $crate::runtime::each_vector!(@ [$($part),+] 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($($part:literal),+) => {
        $crate::runtime::each_vector!(@ [$($part),+] 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $parts:tt $($n:literal)+) => {
        concat!($($crate::runtime::each_vector!(# $parts $n), "\n"),+)
    };
    (# [$first:literal $(, $part:literal)*] $n:literal) => { concat!($first $(, $n, $part)*) };
}

/// The vector registers into 256 bytes from RSP on.
macro_rules! store_vectors {
    () => {
        $crate::runtime::each_vector!("movups [rsp + 16 * ", "], xmm", "")
    };
}

/// And back.
macro_rules! load_vectors {
    () => {
        $crate::runtime::each_vector!("movups xmm", ", [rsp + 16 * ", "]")
    };
}

pub(crate) use {each_vector, load_vectors, store_vectors};

std::arch::global_asm!(
    ".macro sevlab_helper stub, target",
    ".globl \\stub",
    ".p2align 4",
    "\\stub:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "sub rsp, 256",
    crate::runtime::store_vectors!(),
    "mov rcx, r15",
    "call \\target",
    crate::runtime::load_vectors!(),
    "add rsp, 256",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "ret",
    ".endm",
    "sevlab_helper sevlab_stub_load, {load}",
    "sevlab_helper sevlab_stub_rmw, {rmw}",
    "sevlab_helper sevlab_stub_store, {store}",
    "sevlab_helper sevlab_stub_store16, {store16}",
    "sevlab_helper sevlab_stub_step, {step}",
    "sevlab_helper sevlab_stub_thunk, {thunk}",
    "sevlab_helper sevlab_stub_flags, {flags}",
    "sevlab_helper sevlab_stub_div, {div}",
    "sevlab_helper sevlab_stub_pdep, {pdep}",
    // Enters translated code at RSI with the state RDI pinned, in a frame that all regions share: see `frame`.
    ".globl sevlab_enter",
    ".p2align 4",
    "sevlab_enter:",
    "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
    "sub rsp, 8",
    "mov r15, rdi",
    "call 3f",
    "2:",
    "add rsp, 8",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
    "ret",
    "3:",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, {frame}",
    "xor edi, edi",
    "jmp rsi",
    // Behind an exit slot that is not linked: translated code returns the slot's number, with which it comes here.
    ".globl sevlab_unlinked",
    ".p2align 4",
    "sevlab_unlinked:",
    "mov rax, rdi",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    // Both of regions that are functions with frames of their own.
    ".globl sevlab_enter_framed",
    ".p2align 4",
    "sevlab_enter_framed:",
    "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
    "sub rsp, 8",
    "mov r15, rdi",
    "xor edi, edi",
    "call rsi",
    "jmp 2b",
    ".globl sevlab_unlinked_framed",
    ".p2align 4",
    "sevlab_unlinked_framed:",
    "mov rax, rdi",
    "ret",
    frame = const crate::frame::BYTES,
    load = sym load,
    rmw = sym rmw,
    store = sym store,
    store16 = sym store16,
    step = sym step,
    thunk = sym thunk,
    flags = sym flags,
    div = sym div,
    pdep = sym pdep,
);

unsafe extern "C" {
    fn sevlab_enter();
    fn sevlab_enter_framed();
    fn sevlab_unlinked();
    fn sevlab_unlinked_framed();
    fn sevlab_stub_load();
    fn sevlab_stub_rmw();
    fn sevlab_stub_store();
    fn sevlab_stub_store16();
    fn sevlab_stub_step();
    fn sevlab_stub_thunk();
    fn sevlab_stub_flags();
    fn sevlab_stub_div();
    fn sevlab_stub_pdep();
}

/// Addresses of what enters translated code, `extern "sysv64" fn(*mut CpuState, code) -> i64`, and of the code behind an exit slot that is not
/// linked; for regions that share a frame, or have one each.
pub(crate) fn enter_and_unlinked(shared_frame: bool) -> [usize; 2] {
    let ways: [unsafe extern "C" fn(); 2] = if shared_frame {
        [sevlab_enter, sevlab_unlinked]
    } else {
        [sevlab_enter_framed, sevlab_unlinked_framed]
    };
    ways.map(|f| f as usize)
}

thread_local! {
    /// What stopped the instruction that a helper ran, for the dispatcher to pick up.
    static PENDING: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Takes the stop that a helper left behind.
pub(crate) fn take_pending() -> Option<Stop> {
    PENDING.with(|p| p.borrow_mut().take())
}

/// Writes the helpers' addresses into the state.
pub(crate) fn install(state: &mut CpuState) {
    let table: [(i32, unsafe extern "C" fn()); 18] = [
        (layout::H_LOAD, sevlab_stub_load),
        (layout::H_RMW, sevlab_stub_rmw),
        (layout::H_STORE, sevlab_stub_store),
        (layout::H_STORE16, sevlab_stub_store16),
        (layout::H_STEP, sevlab_stub_step),
        (layout::H_THUNK, sevlab_stub_thunk),
        (layout::H_FLAGS, sevlab_stub_flags),
        (layout::H_DIV, sevlab_stub_div),
        (layout::H_PDEP, sevlab_stub_pdep),
        (layout::H_LINE_LOAD, lines::sevlab_stub_line_load),
        (layout::H_LINE_RMW, lines::sevlab_stub_line_rmw),
        (layout::H_LINE_STORE, lines::sevlab_stub_line_store),
        (
            layout::H_LINE_STORE_WIDE,
            lines::sevlab_stub_line_store_wide,
        ),
        (layout::H_LINE_FETCH, lines::sevlab_stub_line_fetch),
        (layout::H_LINE_THUNK, lines::sevlab_stub_line_thunk),
        (layout::H_LINE_STEP, lines::sevlab_stub_line_step),
        (layout::H_COPY_ACCESS, lines::sevlab_stub_copy_access),
        (layout::H_COPY_FETCH, lines::sevlab_stub_copy_fetch),
    ];
    for (offset, stub) in table {
        state.engine[word(offset)] = stub as usize as u64;
    }
}

/// The vCPU behind a pinned state pointer.
///
/// # Safety
/// `state` is the `state` field of a live `Vcpu` that the caller's caller entered translated code with, exclusively.
unsafe fn vcpu<'a>(state: *mut CpuState) -> &'a mut Vcpu {
    // SAFETY: `Vcpu` is `repr(C)` with `state` first; exclusivity is the caller's promise.
    unsafe { &mut *state.cast::<Vcpu>() }
}

fn answer(v: &mut Vcpu, value: u64) {
    v.state.engine[word(layout::RET)] = value;
}

/// Host address of `n` readable bytes at `va`, or 0. Where memory has no host address (an access across pages, cache
/// mode `none`) the bytes are copied to the scratch space.
extern "sysv64" fn load(va: u64, n: u64, how: u64, state: *mut CpuState) {
    // SAFETY: called by translated code only, with the pinned register as the fourth argument.
    let v = unsafe { vcpu(state) };
    let drops = v.tlb.drops();
    let at = readable(v, va, n, how);
    answer_if_held(v, at, how, drops);
}

fn readable(v: &mut Vcpu, va: u64, n: u64, how: u64) -> u64 {
    let crosses = va & 0xfff > 0x1000 - n;
    if !crosses {
        match v.fill(Va(va), Access::Read) {
            Ok(Some(_))
                if how & layout::WRITABLE != 0 && v.tlb.lookup_write(Va(va), n).is_none() =>
            {
                return 0;
            }
            Ok(Some(host)) => return host.as_ptr() as u64,
            Ok(None) => {}
            Err(_) => return 0,
        }
    }
    if how & layout::WHOLE != 0 {
        return 0;
    }
    copy_to_scratch(v, va, n)
}

/// Answers `at`, but 0 if host addresses that must still be good may not be: something was dropped since the count was
/// `drops`.
fn answer_if_held(v: &mut Vcpu, at: u64, how: u64, drops: u64) {
    let bad = how & layout::HELD != 0 && v.tlb.drops() != drops;
    answer(v, if bad { 0 } else { at });
}

/// Host address of `n` bytes that may be read and written, or 0. With [`layout::COPY`], bytes that have no host address are
/// copied to the scratch space, after a check that they may be written.
extern "sysv64" fn rmw(va: u64, n: u64, how: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let drops = v.tlb.drops();
    let at = writable(v, va, n, how);
    answer_if_held(v, at, how, drops);
}

fn writable(v: &mut Vcpu, va: u64, n: u64, how: u64) -> u64 {
    if v.would_hit_code(va, n) {
        return 0;
    }
    if va & 0xfff <= 0x1000 - n {
        match v.fill(Va(va), Access::Write) {
            Ok(Some(host)) => return host.as_ptr() as u64,
            Ok(None) => {}
            Err(_) => return 0,
        }
    }
    if how & layout::COPY == 0 || v.probe_write(va, n).is_err() {
        return 0;
    }
    copy_to_scratch(v, va, n)
}

/// Where a copy of `n` bytes at `va` is, or 0.
fn copy_to_scratch(v: &mut Vcpu, va: u64, n: u64) -> u64 {
    let mut bytes = [0u8; 64];
    let n = (n as usize).min(64);
    if v.read(va, &mut bytes[..n]).is_err() {
        return 0;
    }
    v.state.scratch.0[..n].copy_from_slice(&bytes[..n]);
    v.state.scratch.0.as_ptr() as u64
}

/// Stores, unless that faults or hits code.
fn store_bytes(v: &mut Vcpu, va: u64, bytes: &[u8]) -> bool {
    !v.would_hit_code(va, bytes.len() as u64) && v.write(va, bytes).is_ok()
}

extern "sysv64" fn store(va: u64, value: u64, n: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let ok = store_bytes(v, va, &value.to_le_bytes()[..(n as usize).min(8)]);
    answer(v, u64::from(ok));
}

extern "sysv64" fn store16(va: u64, _: u64, _: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&v.state.scratch.0[..16]);
    let ok = store_bytes(v, va, &bytes);
    answer(v, u64::from(ok));
}

/// An instruction that translated code has a helper run.
#[derive(Default)]
pub(crate) struct StepSite {
    insn: Option<Insn>,
    /// What it counts where caches are simulated.
    tally: u64,
    thunk: Cell<Option<&'static Thunk>>,
}

impl StepSite {
    pub(crate) fn new(insn: Insn, tally: u64) -> Self {
        Self {
            insn: Some(insn),
            tally,
            thunk: Cell::new(None),
        }
    }
}

/// Site `n` of the table that the state's word points at.
fn site<'a>(v: &Vcpu, n: u64) -> Option<&'a StepSite> {
    let table = v.state.engine[word(layout::STEPS)] as *const StepSite;
    // SAFETY: the engine put the table of its own sites there before it entered translated code, does not touch it
    // while that runs, and `n` is a number that it gave out for a site in it.
    let site = unsafe { &*table.add(n as usize) };
    site.insn.is_some().then_some(site)
}

/// Runs instruction `n` in the interpreter. 1 if translated code may go on behind it (and counts it); else it has been
/// counted, or has stopped.
extern "sysv64" fn step(n: u64, _: u64, _: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let Some(site) = site(v, n) else {
        return answer(v, 0);
    };
    let go_on = run_step(v, site);
    v.state.retired -= u64::from(go_on);
    answer(v, u64::from(go_on));
}

/// Runs an instruction in the interpreter; whether translated code may go on behind it.
fn run_step(v: &mut Vcpu, site: &StepSite) -> bool {
    let Some(insn) = &site.insn else {
        return false;
    };
    match step_over(v, insn, site.tally) {
        Ok(goes_on) => goes_on,
        Err(stop) => {
            PENDING.with(|p| *p.borrow_mut() = Some(stop));
            false
        }
    }
}

/// Runs an instruction in the interpreter; whether code that was made before may go on behind it.
pub(crate) fn step_over(v: &mut Vcpu, insn: &Insn, tally: u64) -> Result<bool, Stop> {
    let epoch = v.code_epoch;
    sevlab_cpu::interp::exec_with(v, insn, tally)?;
    let requests = v
        .state
        .exit_request
        .load(std::sync::atomic::Ordering::Relaxed);
    // A repeated string instruction that was interrupted is still at its own address.
    Ok(v.code_epoch == epoch
        && v.state.rip != insn.rip
        && !crate::engine::interpret_only(&v.state)
        && requests == 0)
}

/// Runs thunk `n`; 0 if it did nothing, because it faults or stores into code.
extern "sysv64" fn thunk(n: u64, _: u64, _: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let ok = run_thunk(v, n).is_some();
    answer(v, u64::from(ok));
}

fn run_thunk(v: &mut Vcpu, n: u64) -> Option<()> {
    let site = site(v, n)?;
    let insn = site.insn.as_ref()?;
    let t = match site.thunk.get() {
        Some(t) => t,
        None => {
            let t = v.interp.thunks().ok()?.get(insn).ok()?;
            site.thunk.set(Some(t));
            t
        }
    };
    let va = effective_address(&v.state, &insn.mem);
    let written = u64::from(t.mem_write());
    if written != 0 && v.would_hit_code(va, written) {
        return None;
    }
    v.state.rip = insn.rip;
    sevlab_cpu::thunk::run_on(t, v, insn, va).ok()
}

/// The linear address of a memory operand; the registers in it are current in the state.
fn effective_address(s: &CpuState, m: &MemRef) -> u64 {
    let register = |r: u8| {
        if r == MemRef::NONE {
            0
        } else {
            s.gpr[r as usize & 15]
        }
    };
    let mut va = register(m.base)
        .wrapping_add(register(m.index) << m.scale)
        .wrapping_add(m.disp as u64);
    if m.addr32 {
        va &= 0xffff_ffff;
    }
    if m.seg != MemRef::NONE {
        va = va.wrapping_add(s.seg[m.seg as usize % 6].base);
    }
    va
}

extern "sysv64" fn flags(a: u64, b: u64, r: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let op = v.state.engine[word(layout::RET2)];
    let bits = LazyFlags { op, a, b, r }.bits();
    answer(v, bits);
}

/// Divides `hi:lo` by `d`: quotient in the scratch space, remainder in `RET2`, `RET` 0 for #DE.
extern "sysv64" fn div(hi: u64, lo: u64, d: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let signed = v.state.engine[word(layout::RET2)] != 0;
    let dividend = u128::from(hi) << 64 | u128::from(lo);
    let result = if d == 0 {
        None
    } else if signed {
        let (n, d) = (dividend as i128, i128::from(d as i64));
        n.checked_div(d)
            .and_then(|q| i64::try_from(q).ok())
            .map(|q| (q as u64, (n % d) as u64))
    } else {
        let d = u128::from(d);
        u64::try_from(dividend / d)
            .ok()
            .map(|q| (q, (dividend % d) as u64))
    };
    match result {
        Some((q, r)) => {
            v.state.scratch.0[..8].copy_from_slice(&q.to_le_bytes());
            v.state.engine[word(layout::RET2)] = r;
            answer(v, 1);
        }
        None => answer(v, 0),
    }
}

extern "sysv64" fn pdep(value: u64, mask: u64, deposit: u64, state: *mut CpuState) {
    // SAFETY: as in `load`.
    let v = unsafe { vcpu(state) };
    let (mut out, mut mask, mut n) = (0u64, mask, 0u32);
    while mask != 0 {
        let at = mask.trailing_zeros();
        mask &= mask - 1;
        out |= if deposit != 0 {
            (value >> n & 1) << at
        } else {
            (value >> at & 1) << n
        };
        n += 1;
    }
    answer(v, out);
}
