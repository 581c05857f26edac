//! The host processor as oracle: loads a whole register state, runs raw bytes, saves the whole state. Independent of the thunk
//! module: nothing here looks at what the instruction uses.

#![allow(dead_code)] // each test file uses its part

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, Once};

/// Everything an instruction may use.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Registers {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub pad: [u64; 15],
    pub ymm: [[u8; 32]; 16],
    pub fx: [u8; 512],
}

// The offsets that the assembly has.
const _: () = assert!(core::mem::offset_of!(Registers, flags) == 128);
const _: () = assert!(core::mem::offset_of!(Registers, ymm) == 256);
const _: () = assert!(core::mem::offset_of!(Registers, fx) == 768);

core::arch::global_asm!(
    ".bss",
    ".balign 8",
    "sevlab_native_rsp: .skip 8",
    "sevlab_native_regs: .skip 8",
    "sevlab_native_code: .skip 8",
    "sevlab_native_rdi: .skip 8",
    ".text",
    ".globl sevlab_native_run",
    "sevlab_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + sevlab_native_rsp], rsp",
    "mov [rip + sevlab_native_regs], rdi",
    "mov [rip + sevlab_native_code], rsi",
    "fxrstor64 [rdi + 768]",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\n, [rdi + 256 + 32 * \\n]",
    ".endr",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi + 0]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp qword ptr [rip + sevlab_native_code]",
    // The same with flags that take effect at the first instruction of the code: TF, AC.
    ".globl sevlab_native_step",
    "sevlab_native_step:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + sevlab_native_rsp], rsp",
    "mov [rip + sevlab_native_regs], rdi",
    "fxrstor64 [rdi + 768]",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\n, [rdi + 256 + 32 * \\n]",
    ".endr",
    "mov eax, ss",
    "push rax",
    "push qword ptr [rdi + 32]",
    "push qword ptr [rdi + 128]",
    "mov eax, cs",
    "push rax",
    "push rsi",
    "mov rax, [rdi + 0]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "iretq",
    ".globl sevlab_native_done",
    "sevlab_native_done:",
    "mov [rip + sevlab_native_rdi], rdi",
    "mov rdi, [rip + sevlab_native_regs]",
    "mov [rdi + 0], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 32], rsp",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "mov rsp, [rip + sevlab_native_rsp]",
    "pushfq",
    "pop rax",
    "mov [rdi + 128], rax",
    "push 2",
    "popfq",
    "mov rax, [rip + sevlab_native_rdi]",
    "mov [rdi + 56], rax",
    "cld",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [rdi + 256 + 32 * \\n], ymm\\n",
    ".endr",
    "fxsave64 [rdi + 768]",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "vzeroupper",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "sysv64" {
    fn sevlab_native_run(regs: *mut Registers, code: *const u8);
    fn sevlab_native_step(regs: *mut Registers, code: *const u8);
    fn sevlab_native_done();
}

const PAGE: usize = 4096;

thread_local! {
    /// The fault of the running instruction.
    static SIGNAL: Cell<i32> = const { Cell::new(0) };
    static CODE: Cell<usize> = const { Cell::new(0) };
    /// One instruction is being stepped: every signal is its own.
    static STEPPING: Cell<bool> = const { Cell::new(false) };
    /// Where the signal was raised, its code, and the address it names.
    static PLACE: Cell<(u64, i32)> = const { Cell::new((0, 0)) };
}

/// TF in RFLAGS.
const TF: u64 = 1 << 8;

unsafe extern "C" fn on_signal(n: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives a valid context and information.
    let (gregs, code) = unsafe { (&mut (*context).uc_mcontext.gregs, (*info).si_code) };
    if STEPPING.replace(false) {
        PLACE.set((gregs[libc::REG_RIP as usize] as u64, code));
        gregs[libc::REG_EFL as usize] &= !(TF as i64);
        gregs[libc::REG_RIP as usize] = sevlab_native_done as *const () as i64;
        SIGNAL.set(n);
        return;
    }
    let rip = &mut gregs[libc::REG_RIP as usize];
    let code = CODE.get();
    if (*rip as usize).wrapping_sub(code) >= PAGE {
        // Not ours: let it happen again, with the default action.
        // SAFETY: resets the action of one signal.
        unsafe { libc::signal(n, libc::SIG_DFL) };
        return;
    }
    SIGNAL.set(n);
    *rip = sevlab_native_done as *const () as i64;
}

fn map(at: u64, len: usize, prot: i32) -> *mut u8 {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: a fresh anonymous mapping; fixed addresses are low ones, where nothing but these tests maps anything.
    let p = unsafe {
        libc::mmap(
            at as *mut _,
            len,
            prot,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed,
            -1,
            0,
        )
    };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

/// The right to run native code: one at a time. Has the code page and the memory that instructions may use.
pub struct Native {
    code: *mut u8,
    memory: *mut u8,
    _lock: MutexGuard<'static, ()>,
}

/// Bytes of memory for operands.
pub const MEMORY: usize = 2 * PAGE;

impl Native {
    pub fn new() -> Self {
        Self::at(0, 0)
    }

    /// With code and operand memory at these addresses, or anywhere for 0.
    pub fn at(code: u64, memory: u64) -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        static HANDLERS: Once = Once::new();
        let lock = LOCK
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        HANDLERS.call_once(|| {
            let all = [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
            ];
            for n in all {
                // SAFETY: installs a handler that only uses its context and constant-initialised thread locals.
                unsafe {
                    let mut action: libc::sigaction = core::mem::zeroed();
                    action.sa_sigaction = on_signal as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                    assert_eq!(libc::sigaction(n, &action, core::ptr::null_mut()), 0);
                }
            }
        });
        let stack = map(0, 1 << 16, libc::PROT_READ | libc::PROT_WRITE);
        let stack = libc::stack_t {
            ss_sp: stack.cast(),
            ss_flags: 0,
            ss_size: 1 << 16,
        };
        // SAFETY: the stack is a leaked mapping of that size.
        let set = unsafe { libc::sigaltstack(&stack, core::ptr::null_mut()) };
        assert_eq!(set, 0);
        let code = map(
            code,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        CODE.set(code as usize);
        Self {
            code,
            memory: map(memory, MEMORY, libc::PROT_READ | libc::PROT_WRITE),
            _lock: lock,
        }
    }

    /// Address of the operand memory.
    pub fn base(&self) -> u64 {
        self.memory as u64
    }

    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as the process; native code runs only while `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.memory, MEMORY) }
    }

    /// Runs one instruction; returns the signal that it raised, or 0.
    pub fn run(&mut self, bytes: &[u8], regs: &mut Registers) -> i32 {
        let mut code = bytes.to_vec();
        code.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
        code.extend_from_slice(&(sevlab_native_done as *const () as u64).to_le_bytes());
        SIGNAL.set(0);
        // SAFETY: the page is writable and larger than the code; the code is one instruction without control flow and a jump
        // back; it uses only `regs` and operand memory, faults are caught.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), self.code, code.len());
            sevlab_native_run(regs, self.code);
        }
        SIGNAL.get()
    }

    /// Runs one instruction, wherever it goes, and stops behind it (signal SIGTRAP) or at its fault. The registers are those
    /// after it.
    pub fn step(&mut self, bytes: &[u8], regs: &mut Registers) -> Step {
        SIGNAL.set(0);
        regs.flags |= TF;
        STEPPING.set(true);
        // SAFETY: the page is writable; the trap flag stops execution after one instruction, and so does any fault.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code, bytes.len());
            sevlab_native_step(regs, self.code);
        }
        regs.flags &= !TF;
        let (rip, code) = PLACE.get();
        Step {
            signal: SIGNAL.get(),
            code,
            rip,
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    pub rip: u64,
}
