//! The host's own processor as an engine.
//!
//! A case's pages are mapped at their addresses in this process. [`Native::run`] loads the whole register state with
//! XRSTOR and IRETQ (which also makes the processor see the new code), and the case runs until something stops it: at
//! the latest the HLT behind its code. The signal handler leaves with the state that the kernel saved in its frame,
//! without returning to the kernel. FS and GS have the case's bases meanwhile, so nothing of Rust's runs before they are
//! put back.
//!
//! A case must not reach the kernel: [`confine`] has every system call from below 4 GiB, and every 32-bit one, trap.
#![allow(unsafe_code)] // runs raw instructions, reads signal frames

use crate::case::{Case, END, X87};
use crate::layout::{
    CODE, CODE_END, CODE_PAGES, DATA, DATA_PAGES, ISLAND, MEMORY, PAGE, PAGES, READ_ONLY,
};
use crate::outcome::{End, Outcome};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// What the assembly works with.
#[repr(C, align(64))]
struct Context {
    gpr: [u64; 16],
    rip: u64,
    flags: u64,
    host_rsp: u64,
    host_fs: u64,
    host_gs: u64,
    fs: u64,
    gs: u64,
    active: AtomicU64,
    out_fs: u64,
    out_gs: u64,
    selectors: [u16; 4],
    signal: u64,
    frame: *const libc::ucontext_t,
    ticks: AtomicU64,
    late: AtomicU64,
    pad: u64,
    xsave: [u8; 832],
}

// The offsets that the assembly has.
const _: () = {
    use core::mem::offset_of as at;
    assert!(at!(Context, rip) == 128 && at!(Context, host_rsp) == 144);
    assert!(at!(Context, host_fs) == 152 && at!(Context, fs) == 168);
    assert!(at!(Context, active) == 184 && at!(Context, out_fs) == 192);
    assert!(at!(Context, selectors) == 208 && at!(Context, signal) == 216);
    assert!(at!(Context, frame) == 224 && at!(Context, ticks) == 232);
    assert!(at!(Context, late) == 240 && at!(Context, xsave) == 256);
};

core::arch::global_asm!(
    ".bss",
    ".balign 64",
    ".globl sevlab_difftest_context",
    "sevlab_difftest_context: .skip 1088",
    ".text",
    ".globl sevlab_difftest_enter",
    "sevlab_difftest_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + sevlab_difftest_context + 144], rsp",
    "rdfsbase rax",
    "mov [rip + sevlab_difftest_context + 152], rax",
    "rdgsbase rax",
    "mov [rip + sevlab_difftest_context + 160], rax",
    "mov rax, [rip + sevlab_difftest_context + 168]",
    "wrfsbase rax",
    "mov rax, [rip + sevlab_difftest_context + 176]",
    "wrgsbase rax",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rip + sevlab_difftest_context + 256]",
    "xor eax, eax",
    "mov ax, ss",
    "push rax",
    "push qword ptr [rip + sevlab_difftest_context + 32]",
    "push qword ptr [rip + sevlab_difftest_context + 136]",
    "mov ax, cs",
    "push rax",
    "push qword ptr [rip + sevlab_difftest_context + 128]",
    "mov qword ptr [rip + sevlab_difftest_context + 184], 1",
    "mov rax, [rip + sevlab_difftest_context + 0]",
    "mov rcx, [rip + sevlab_difftest_context + 8]",
    "mov rdx, [rip + sevlab_difftest_context + 16]",
    "mov rbx, [rip + sevlab_difftest_context + 24]",
    "mov rbp, [rip + sevlab_difftest_context + 40]",
    "mov rsi, [rip + sevlab_difftest_context + 48]",
    "mov rdi, [rip + sevlab_difftest_context + 56]",
    "mov r8, [rip + sevlab_difftest_context + 64]",
    "mov r9, [rip + sevlab_difftest_context + 72]",
    "mov r10, [rip + sevlab_difftest_context + 80]",
    "mov r11, [rip + sevlab_difftest_context + 88]",
    "mov r12, [rip + sevlab_difftest_context + 96]",
    "mov r13, [rip + sevlab_difftest_context + 104]",
    "mov r14, [rip + sevlab_difftest_context + 112]",
    "mov r15, [rip + sevlab_difftest_context + 120]",
    "iretq",
    // The signal handler. The kernel gave the vector and x87 units their initial state and cleared DF.
    ".globl sevlab_difftest_signal",
    "sevlab_difftest_signal:",
    "cmp qword ptr [rip + sevlab_difftest_context + 184], 0",
    "je {other}",
    "cmp edi, 27",
    "jne 1f",
    // Time is up after a few ticks in one run.
    "inc qword ptr [rip + sevlab_difftest_context + 232]",
    "cmp qword ptr [rip + sevlab_difftest_context + 232], 4",
    "jae 1f",
    "ret",
    "1:",
    "mov [rip + sevlab_difftest_context + 216], rdi",
    "mov [rip + sevlab_difftest_context + 224], rdx",
    "rdfsbase rax",
    "mov [rip + sevlab_difftest_context + 192], rax",
    "rdgsbase rax",
    "mov [rip + sevlab_difftest_context + 200], rax",
    "mov ax, ds",
    "mov [rip + sevlab_difftest_context + 208], ax",
    "mov ax, es",
    "mov [rip + sevlab_difftest_context + 210], ax",
    "mov ax, fs",
    "mov [rip + sevlab_difftest_context + 212], ax",
    "mov ax, gs",
    "mov [rip + sevlab_difftest_context + 214], ax",
    "xor eax, eax",
    "mov ds, ax",
    "mov es, ax",
    "mov fs, ax",
    "mov gs, ax",
    "mov rax, [rip + sevlab_difftest_context + 152]",
    "wrfsbase rax",
    "mov rax, [rip + sevlab_difftest_context + 160]",
    "wrgsbase rax",
    "mov qword ptr [rip + sevlab_difftest_context + 184], 0",
    "mov rsp, [rip + sevlab_difftest_context + 144]",
    // NT, which IRETQ would mind, AC, ID.
    "push 2",
    "popfq",
    "vzeroupper",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    other = sym other_signal,
);

unsafe extern "sysv64" {
    static mut sevlab_difftest_context: Context;
    fn sevlab_difftest_enter();
    fn sevlab_difftest_signal();
}

/// The exit request of a vCPU that runs, for the timer to raise.
static REQUEST: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
static GUEST_TICKS: AtomicU32 = AtomicU32::new(0);

/// Has the timer raise this exit request if it stays for too long. [`unwatch`] takes it back.
pub fn watch(request: &AtomicU32) {
    GUEST_TICKS.store(0, Ordering::Relaxed);
    REQUEST.store(std::ptr::from_ref(request).cast_mut(), Ordering::Release);
}

/// Ends [`watch`]; true if the request was raised.
pub fn unwatch(request: &AtomicU32) -> bool {
    REQUEST.store(std::ptr::null_mut(), Ordering::Release);
    request.swap(0, Ordering::AcqRel) != 0
}

/// A signal while no native code runs.
unsafe extern "C" fn other_signal(n: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if n == libc::SIGPROF {
        let context = &raw mut sevlab_difftest_context;
        // SAFETY: an atomic in a static that lives as long as the process.
        unsafe { (*context).late.fetch_add(1, Ordering::Relaxed) };
        let request = REQUEST.load(Ordering::Acquire);
        if !request.is_null() && GUEST_TICKS.fetch_add(1, Ordering::Relaxed) > 20 {
            // SAFETY: set by `watch` for as long as the vCPU runs, on the thread that this interrupts.
            unsafe { (*request).store(1, Ordering::Release) };
        }
        return;
    }
    // A failure of the harness or of translated code: let it happen again, with the default action.
    // SAFETY: resets the action of one signal.
    unsafe { libc::signal(n, libc::SIG_DFL) };
}

/// The host processor. One in a process, on one thread.
pub struct Native {
    /// The code pages, writable.
    code: *mut u8,
    /// Bytes of code there beside [`END`].
    used: (usize, usize),
}

static TAKEN: AtomicBool = AtomicBool::new(false);

fn check(ok: bool, what: &str) -> io::Result<()> {
    if ok {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    Err(io::Error::new(e.kind(), format!("{what}: {e}")))
}

/// Whether this process has something of its own at an address. What belongs to cases lies in the lowest 4 GiB.
pub(crate) fn is_own(address: u64) -> bool {
    let mut resident = 0;
    let page = std::ptr::without_provenance_mut((address & !0xfff) as usize);
    // SAFETY: asks about a page, whatever is there, and has room for the answer.
    address >> 32 != 0 && unsafe { libc::mincore(page, 0x1000, &raw mut resident) } == 0
}

fn map(at: u64, len: u64, prot: i32, flags: i32, fd: i32) -> io::Result<*mut u8> {
    let fixed = if at == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    // SAFETY: a new mapping where nothing is.
    let p = unsafe { libc::mmap(at as *mut _, len as usize, prot, flags | fixed, fd, 0) };
    check(p != libc::MAP_FAILED, &format!("mapping {at:#x}"))?;
    Ok(p.cast())
}

impl Native {
    /// Maps the pages and installs the handlers.
    ///
    /// # Errors
    /// The addresses are taken, or the host lacks FSGSBASE, AVX or the system calls.
    pub fn new() -> io::Result<Self> {
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(io::Error::other("one native engine in a process"));
        }
        // SAFETY: reads a number that the kernel gave the process.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        if !fsgsbase || !std::arch::is_x86_feature_detected!("avx") {
            return Err(io::Error::other("the host lacks FSGSBASE or AVX"));
        }
        const R: i32 = libc::PROT_READ;
        const W: i32 = libc::PROT_WRITE;
        let size = CODE_PAGES * PAGE;
        // SAFETY: plain system calls; the name is a C string.
        let fd = unsafe { libc::memfd_create(c"difftest".as_ptr(), libc::MFD_CLOEXEC) };
        check(fd >= 0, "memfd")?;
        // SAFETY: our descriptor.
        let r = unsafe { libc::ftruncate(fd, size as i64) };
        check(r == 0, "ftruncate")?;
        map(CODE, size, R | libc::PROT_EXEC, libc::MAP_SHARED, fd)?;
        let code = map(0, size, R | W, libc::MAP_SHARED, fd)?;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        map(DATA, (DATA_PAGES + 1) * PAGE, R | W, anonymous, -1)?;
        map(ISLAND, PAGE, R | W, anonymous, -1)?;
        // SAFETY: changes the protection of a page just mapped.
        let r = unsafe { libc::mprotect(READ_ONLY as *mut _, PAGE as usize, R) };
        check(r == 0, "mprotect")?;
        // SAFETY: the code mapping is that long.
        unsafe { code.write_bytes(END, size as usize) };
        let stack = map(0, 1 << 17, R | W, anonymous, -1)?;
        let stack = libc::stack_t {
            ss_sp: stack.cast(),
            ss_flags: 0,
            ss_size: 1 << 17,
        };
        // SAFETY: a mapping that is never unmapped.
        let r = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
        check(r == 0, "sigaltstack")?;
        for n in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGSYS,
            libc::SIGPROF,
        ] {
            // SAFETY: the handler keeps to its context where native code runs, and to atomics elsewhere.
            let r = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = sevlab_difftest_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                if n == libc::SIGPROF {
                    action.sa_flags |= libc::SA_RESTART;
                }
                libc::sigaction(n, &raw const action, std::ptr::null_mut())
            };
            check(r == 0, "sigaction")?;
        }
        let tick = libc::timeval {
            tv_sec: 0,
            tv_usec: 50_000,
        };
        let timer = libc::itimerval {
            it_interval: tick,
            it_value: tick,
        };
        // SAFETY: sets a timer of this process.
        let r =
            unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
        check(r == 0, "setitimer")?;
        Ok(Self { code, used: (0, 0) })
    }

    fn put_code(&mut self, case: &Case) {
        let start = (case.at - CODE) as usize;
        let len = case.code().len().min((CODE_END - case.at) as usize);
        // SAFETY: both ranges are inside the writable mapping of the code pages, which nothing else refers to.
        unsafe {
            self.code.add(self.used.0).write_bytes(END, self.used.1);
            let from = case.code().as_ptr();
            std::ptr::copy_nonoverlapping(from, self.code.add(start), len);
        }
        self.used = (start, len);
    }

    fn put_memory(&mut self, memory: &[u8]) {
        let len = (DATA_PAGES + 1) * PAGE;
        const W: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let at = READ_ONLY as *mut libc::c_void;
        let first = len as usize;
        // SAFETY: the data pages are mapped by `new`; only native runs and this touch them. The page that can only be
        // read is writable just here.
        unsafe {
            let now = std::slice::from_raw_parts(READ_ONLY as *const u8, PAGE as usize);
            if now != &memory[first - PAGE as usize..first] {
                libc::mprotect(at, PAGE as usize, W);
                std::ptr::copy_nonoverlapping(
                    memory[first - PAGE as usize..].as_ptr(),
                    at.cast(),
                    PAGE as usize,
                );
                libc::mprotect(at, PAGE as usize, libc::PROT_READ);
            }
            std::ptr::copy_nonoverlapping(memory.as_ptr(), DATA as *mut u8, first - PAGE as usize);
            std::ptr::copy_nonoverlapping(
                memory[first..].as_ptr(),
                ISLAND as *mut u8,
                PAGE as usize,
            );
        }
    }

    /// Runs a case on memory that begins as `memory`.
    pub fn run(&mut self, case: &Case, memory: &[u8]) -> Outcome {
        self.put_code(case);
        loop {
            self.put_memory(memory);
            if let Some(outcome) = self.attempt(case) {
                return outcome;
            }
        }
    }

    /// `None`: the timer's frame overwrote that of the exception.
    fn attempt(&mut self, case: &Case) -> Option<Outcome> {
        let r = &case.regs;
        let context = &raw mut sevlab_difftest_context;
        // SAFETY: one engine in a process, so nothing else uses the context; the handler does only while `enter` runs,
        // and for its two counters. The case's code can't reach the kernel or Rust's memory but by an accident that the
        // sandbox (a process of its own) is for.
        unsafe {
            (*context).gpr = r.gpr;
            (*context).rip = case.at;
            (*context).flags = r.flags;
            (*context).fs = r.fs;
            (*context).gs = r.gs;
            (*context).ticks.store(0, Ordering::Relaxed);
            let x: &mut [u8; 832] = &mut (*context).xsave;
            let legacy: &mut [u8; 512] = (&mut x[..512]).try_into().expect("512 bytes");
            r.x87.to_image(legacy);
            x[24..28].copy_from_slice(&r.mxcsr.to_le_bytes());
            x[512] = 7;
            for n in 0..16 {
                for half in 0..2 {
                    let at = if half == 0 { 160 } else { 576 } + 16 * n;
                    x[at..at + 8].copy_from_slice(&r.ymm[n][2 * half].to_le_bytes());
                    x[at + 8..at + 16].copy_from_slice(&r.ymm[n][2 * half + 1].to_le_bytes());
                }
            }
            let late = (*context).late.load(Ordering::Relaxed);
            sevlab_difftest_enter();
            let outcome = self.collect(&*context);
            ((*context).late.load(Ordering::Relaxed) == late).then_some(outcome)
        }
    }

    /// Reads the signal's frame.
    fn collect(&self, c: &Context) -> Outcome {
        // SAFETY: the kernel wrote the frame to the alternate stack; no other signal's has overwritten it (`attempt`
        // sees to that afterwards).
        let frame = unsafe { &*c.frame };
        let g = &frame.uc_mcontext.gregs;
        let reg = |n: i32| g[n as usize] as u64;
        use libc::{
            REG_CR2, REG_EFL, REG_ERR, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14,
            REG_R15, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI,
            REG_RSP, REG_TRAPNO,
        };
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
            REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        let fp = frame.uc_mcontext.fpregs.cast::<[u8; 832]>();
        // SAFETY: XSAVE with AVX enabled wrote at least 832 bytes there.
        let x = unsafe { &*fp };
        let present = x[512];
        let legacy: &[u8; 512] = x[..512].try_into().expect("512 bytes");
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|k| x[at + k]));
        let ymm = std::array::from_fn(|n| {
            let half = |at: usize, bit: u8| {
                if present & bit == 0 {
                    [0; 2]
                } else {
                    [u64_at(at + 16 * n), u64_at(at + 16 * n + 8)]
                }
            };
            let (l, h) = (half(160, 2), half(576, 4));
            [l[0], l[1], h[0], h[1]]
        });
        let end = match c.signal as i32 {
            libc::SIGPROF => End::Endless,
            libc::SIGSYS => End::Other("a system call".into()),
            _ => {
                let vector = reg(REG_TRAPNO) as u8;
                let has_error = matches!(vector, 8 | 10..=14 | 17);
                End::Exception {
                    vector,
                    error: if has_error { reg(REG_ERR) as u32 } else { 0 },
                    address: if vector == 14 { reg(REG_CR2) } else { 0 },
                }
            }
        };
        let mut memory = Vec::with_capacity(MEMORY);
        for page in PAGES {
            // SAFETY: mapped by `new`; no native code runs now.
            memory.extend_from_slice(unsafe {
                std::slice::from_raw_parts(page as *const u8, PAGE as usize)
            });
        }
        Outcome {
            end,
            rip: reg(REG_RIP),
            gpr: order.map(reg),
            flags: reg(REG_EFL),
            fs: c.out_fs,
            gs: c.out_gs,
            selectors: c.selectors,
            mxcsr: u32::from_le_bytes(std::array::from_fn(|k| x[24 + k])),
            ymm,
            x87: if present & 1 == 0 {
                X87::default()
            } else {
                X87::from_image(legacy)
            },
            memory,
        }
    }
}

/// Has the kernel refuse (with SIGSYS) every system call that code below 4 GiB makes, and every one of the 32-bit
/// interface, for the rest of this process's life.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn confine() -> io::Result<()> {
    // struct seccomp_data: nr, arch, instruction_pointer (low, high), args.
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X86_64: u32 = 0xc000_003e;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(LOAD, 0, 0, 4),
        op(EQUAL, 0, 2, X86_64),
        op(LOAD, 0, 0, 12),
        op(EQUAL, 0, 1, 0),
        op(RETURN, 0, 0, libc::SECCOMP_RET_TRAP),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: restricts this process; the program is valid for the calls.
    unsafe {
        check(
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
            "no_new_privs",
        )?;
        check(
            libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const filter) == 0,
            "seccomp",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_the_process_s_own_and_what_nobody_has_is_not() {
        let local = 0u8;
        assert!(is_own((&raw const local).addr() as u64));
        assert!(!is_own(1 << 46));
        assert!(!is_own(0x8000_0000_0000));
    }
}
