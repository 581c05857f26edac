//! The frame that a handler gets, faults, and what returning does.

use std::arch::asm;
use std::cell::UnsafeCell;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{self, Pages, RW, RWX, child, ended};

const PAGE: usize = 4096;

/// What handlers report: they only store.
static NOTES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

fn note(n: usize) -> u64 {
    NOTES[n].load(Ordering::Relaxed)
}

fn set_note(n: usize, value: u64) {
    NOTES[n].store(value, Ordering::Relaxed);
}

fn clear() {
    for n in &NOTES {
        n.store(0, Ordering::Relaxed);
    }
}

/// The context that a handler gets.
///
/// # Safety
/// `context` is a handler's third argument.
unsafe fn context<'a>(context: *mut libc::c_void) -> &'a mut libc::ucontext_t {
    // SAFETY: the caller's promise.
    unsafe { &mut *context.cast() }
}

/// The FXSAVE area of a frame, and the XSAVE header behind it.
///
/// # Safety
/// `c` is a handler's context.
unsafe fn saved(c: &mut libc::ucontext_t) -> *mut u8 {
    c.uc_mcontext.fpregs.cast()
}

extern "C" fn on_layout(signal: i32, info: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's arguments; the frame is read as the kernel lays it out.
    unsafe {
        let here: usize;
        asm!("mov {}, rsp", out(reg) here);
        let c = context(place);
        let fp = saved(c);
        let frame = place as usize;
        set_note(0, signal as u64);
        // The frame: return address, ucontext, siginfo.
        set_note(1, (info as usize - frame) as u64);
        set_note(
            2,
            u64::from((frame - 8).is_multiple_of(16))
                + 10 * u64::from((fp as usize).is_multiple_of(64)),
        );
        set_note(
            3,
            u64::from(here < frame) + 10 * u64::from((fp as usize) > info as usize),
        );
        set_note(4, c.uc_flags);
        // Software-reserved bytes: magic, size, features, size of the area; and the magic behind it.
        set_note(5, fp.add(464).cast::<u32>().read_unaligned().into());
        let size = fp.add(464 + 16).cast::<u32>().read_unaligned();
        let magic2 = fp.add(size as usize).cast::<u32>().read_unaligned();
        set_note(6, magic2.into());
        let features = fp.add(464 + 8).cast::<u64>().read_unaligned();
        let present = fp.add(512).cast::<u64>().read_unaligned();
        set_note(7, features & 3);
        set_note(8, u64::from(present & !features == 0));
        set_note(
            9,
            c.uc_mcontext.gregs[libc::REG_CSGSFS as usize] as u64 & 0xffff,
        );
        set_note(10, c.uc_stack.ss_flags as u64);
        set_note(
            11,
            u64::from((c.uc_mcontext.gregs[libc::REG_RSP as usize] as usize) > frame),
        );
    }
}

pub fn layout(_: &Settings) -> String {
    clear();
    sys::handle(libc::SIGUSR1, 0, on_layout);
    sys::kill(sys::getpid(), libc::SIGUSR1);
    let list: Vec<String> = (0..12).map(|n| format!("{:#x}", note(n))).collect();
    sys::default_action(libc::SIGUSR1);
    list.join(" ")
}

extern "C" fn on_registers(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's context.
    let g = unsafe { &mut context(place).uc_mcontext.gregs };
    for (n, (register, value)) in [
        (libc::REG_RBX, 0x1111),
        (libc::REG_R8, 0x8888),
        (libc::REG_R12, 0xcccc),
        (libc::REG_R15, 0xffff),
        (libc::REG_RSI, 0x5151),
    ]
    .into_iter()
    .enumerate()
    {
        set_note(n, g[register as usize] as u64);
        g[register as usize] = value;
    }
    set_note(5, g[libc::REG_EFL as usize] as u64 & 0xcd5);
    // Carry, sign, overflow and direction.
    g[libc::REG_EFL as usize] ^= 0xc81;
    // Past the ud2.
    g[libc::REG_RIP as usize] += 2;
}

pub fn registers(_: &Settings) -> String {
    clear();
    sys::handle(libc::SIGILL, 0, on_registers);
    let (bx, r8, r12, r15, rsi, flags): (u64, u64, u64, u64, u64, u64);
    // SAFETY: the handler moves on; rbx, which is the compiler's, is saved.
    unsafe {
        asm!(
            "push rbx",
            "mov rbx, 101",
            "mov eax, 0",
            "cmp eax, 1",
            "ud2",
            "pushfq",
            "cld",
            "pop rcx",
            "mov rax, rbx",
            "pop rbx",
            out("rax") bx, out("rcx") flags,
            inout("r8") 108u64 => r8, inout("r12") 112u64 => r12, inout("r15") 115u64 => r15, inout("rsi") 104u64 => rsi,
        );
    }
    sys::default_action(libc::SIGILL);
    format!(
        "saw {} {} {} {} {} flags {:#x}, then {bx:#x} {r8:#x} {r12:#x} {r15:#x} {rsi:#x} flags {:#x}",
        note(0),
        note(1),
        note(2),
        note(3),
        note(4),
        note(5),
        flags & 0xcd5
    )
}

extern "C" fn on_vectors(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's context, and its XSAVE area: XMM registers at 160, the header at 512, upper halves at 576.
    unsafe {
        let c = context(place);
        c.uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
        let fp = saved(c);
        let xmm = |n: usize| fp.add(160 + 16 * n).cast::<u64>();
        set_note(0, xmm(3).read_unaligned());
        set_note(1, xmm(3).add(1).read_unaligned());
        set_note(2, xmm(15).read_unaligned());
        xmm(3).write_unaligned(0x3333);
        xmm(15).add(1).write_unaligned(0xf0f0);
        let features = fp.add(464 + 8).cast::<u64>().read_unaligned();
        if features & 4 != 0 {
            let high = |n: usize| fp.add(576 + 16 * n).cast::<u64>();
            let header = fp.add(512).cast::<u64>();
            set_note(3, header.read_unaligned() & 4);
            set_note(4, high(3).read_unaligned());
            high(3).add(1).write_unaligned(0x4444);
            header.write_unaligned(header.read_unaligned() | 4);
        }
        // The handler's own use of them must not reach the code that was interrupted.
        asm!("pcmpeqd xmm0, xmm0", "pcmpeqd xmm3, xmm3", "pcmpeqd xmm7, xmm7", out("xmm0") _, out("xmm3") _, out("xmm7") _);
        if features & 4 != 0 {
            asm!("vpcmpeqd xmm8, xmm8, xmm8", "vxorps ymm9, ymm9, ymm9", "vzeroupper", out("xmm8") _, out("xmm9") _);
        }
    }
}

pub fn vectors(_: &Settings) -> String {
    clear();
    sys::handle(libc::SIGILL, 0, on_vectors);
    let input: [u64; 4] = [0x0123, 0x4567, 0x89ab, 0xcdef];
    let mut out = [[0u64; 4]; 3];
    let avx = std::arch::is_x86_feature_detected!("avx");
    // SAFETY: the handler moves past the ud2; AVX where the processor has it.
    unsafe {
        if avx {
            asm!(
                "vmovups ymm3, [{i}]", "vmovups ymm7, [{i}]", "vmovups ymm15, [{i}]",
                "ud2",
                "vmovups [{o}], ymm3", "vmovups [{o} + 32], ymm7", "vmovups [{o} + 64], ymm15", "vzeroupper",
                i = in(reg) input.as_ptr(), o = in(reg) out.as_mut_ptr(),
                out("xmm3") _, out("xmm7") _, out("xmm15") _,
            );
        } else {
            asm!(
                "movups xmm3, [{i}]", "movups xmm7, [{i}]", "movups xmm15, [{i}]",
                "ud2",
                "movups [{o}], xmm3", "movups [{o} + 32], xmm7", "movups [{o} + 64], xmm15",
                i = in(reg) input.as_ptr(), o = in(reg) out.as_mut_ptr(),
                out("xmm3") _, out("xmm7") _, out("xmm15") _,
            );
        }
    }
    sys::default_action(libc::SIGILL);
    let notes: Vec<String> = (0..5).map(|n| format!("{:x}", note(n))).collect();
    format!("avx {avx}, saw {}, then {out:x?}", notes.join(" "))
}

extern "C" fn on_control(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's context; control registers are read.
    unsafe {
        let c = context(place);
        let fp = saved(c);
        let (mut mxcsr, mut cw) = (0u32, 0u16);
        asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut mxcsr, in(reg) &raw mut cw);
        set_note(0, mxcsr.into());
        set_note(1, cw.into());
        set_note(2, fp.add(24).cast::<u32>().read_unaligned().into());
        set_note(3, fp.cast::<u16>().read_unaligned().into());
        // Round up, from now on.
        fp.add(24).cast::<u32>().write_unaligned(0x5f80);
        let other = 0x1f80u32;
        asm!("ldmxcsr [{}]", "fninit", in(reg) &raw const other);
    }
}

pub fn control(_: &Settings) -> String {
    clear();
    sys::handle(libc::SIGUSR1, 0, on_control);
    let (down, single) = (0x3f80u32, 0x007fu16);
    let (mut mxcsr, mut cw, mut st) = (0u32, 0u16, 0f64);
    let third = 3.0f64;
    // SAFETY: control registers are set, kept over a system call, read and set back; one value stays on the x87 stack.
    unsafe {
        asm!(
            "ldmxcsr [{d}]", "fninit", "fldcw [{s}]", "fld1", "fdiv qword ptr [{t}]",
            "syscall",
            "stmxcsr [{m}]", "fnstcw [{c}]", "fstp qword ptr [{v}]", "fninit",
            d = in(reg) &raw const down, s = in(reg) &raw const single, t = in(reg) &raw const third,
            m = in(reg) &raw mut mxcsr, c = in(reg) &raw mut cw, v = in(reg) &raw mut st,
            inout("rax") libc::SYS_kill => _, in("rdi") i64::from(sys::getpid()), in("rsi") i64::from(libc::SIGUSR1),
            out("rcx") _, out("r11") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
        let usual = 0x1f80u32;
        asm!("ldmxcsr [{}]", in(reg) &raw const usual);
    }
    sys::default_action(libc::SIGUSR1);
    let notes: Vec<String> = (0..4).map(|n| format!("{:x}", note(n))).collect();
    format!(
        "handler and frame {}, then {:x} {cw:x} {:x}",
        notes.join(" "),
        mxcsr & !0x3f,
        st.to_bits()
    )
}

static REGION: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_missing(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo; changes pages of the section's own region.
    unsafe {
        let at = (*info).si_addr() as usize;
        let start = REGION.load(Ordering::Relaxed);
        if !(start..start + 64 * PAGE).contains(&at) {
            sys::exit_now(99);
        }
        set_note(0, note(0) + 1);
        set_note(
            1,
            note(1) * 3 + (*info).si_code as u64 + (at - start) as u64 / PAGE as u64,
        );
        libc::mprotect((at & !(PAGE - 1)) as *mut libc::c_void, PAGE, RW);
    }
}

pub fn repair(_: &Settings) -> String {
    clear();
    // On the alternate stack that Rust's start-up made, since RSP is in the region, too.
    sys::handle(libc::SIGSEGV, libc::SA_ONSTACK, on_missing);
    let region = Pages::private(64 * PAGE, libc::PROT_NONE);
    REGION.store(region.start() as usize, Ordering::Relaxed);
    let mut sum = 0u64;
    for turn in 0..3u32 {
        region.protect(if turn == 1 {
            libc::PROT_READ
        } else {
            libc::PROT_NONE
        });
        for at in (0..64 * PAGE).step_by(PAGE / 2) {
            sum += u64::from(region.word(at).load(Ordering::Relaxed));
            region.word(at).store(turn + at as u32, Ordering::Relaxed);
        }
    }
    // Accesses over two pages, string instructions that stop in the middle, and pushes.
    region.protect(libc::PROT_NONE);
    // SAFETY: all in the region, which the handler repairs.
    let (left, moved) = unsafe {
        let start = region.start();
        start
            .add(3 * PAGE - 4)
            .cast::<u64>()
            .write_unaligned(0x1122_3344_5566_7788);
        region.protect(libc::PROT_NONE);
        let (mut n, mut from, mut to) = (5 * PAGE + 3, start.add(100), start.add(40 * PAGE + 5));
        asm!("rep movsb", inout("rcx") n, inout("rsi") from, inout("rdi") to);
        region.protect(libc::PROT_NONE);
        asm!(
            "xchg rsp, {s}", "push 7", "pop {x}", "xchg rsp, {s}",
            s = inout(reg) start.add(9 * PAGE) => _, x = out(reg) _,
        );
        region.protect(libc::PROT_NONE);
        asm!("movups xmm0, [{}]", in(reg) start.add(12 * PAGE - 8), out("xmm0") _);
        (
            n,
            (from as usize - start as usize) * 1000 + to as usize % PAGE,
        )
    };
    assert_eq!(left, 0, "rep movsb stops early");
    let byte = region.get(42 * PAGE + 5, 1)[0];
    sys::default_action(libc::SIGSEGV);
    format!(
        "{} faults, {:#x}, sum {sum}, moved {moved}, byte {byte}",
        note(0),
        note(1)
    )
}

extern "C" fn on_skip(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's context; the sections' faulting instructions have the length in r10.
    let g = unsafe { &mut context(place).uc_mcontext.gregs };
    g[libc::REG_RIP as usize] += g[libc::REG_R10 as usize];
    g[libc::REG_RAX as usize] += 1;
}

pub fn skip(s: &Settings) -> String {
    for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL] {
        sys::handle(signal, 0, on_skip);
    }
    let mut total = 0u64;
    // Often enough to be translated.
    for _ in 0..s.count * 5 {
        let (a, b, c): (u64, u64, u64);
        // SAFETY: the handler goes on behind each instruction.
        unsafe {
            asm!("mov eax, 5", "mov r10d, 3", "mov rcx, [rdx]", inout("rdx") 0x1000u64 => _, out("rax") a, out("r10") _, out("rcx") _);
            asm!("mov eax, 6", "mov r10d, 2", "xor edx, edx", "div ecx", inout("rcx") 0u64 => _, out("rax") b, out("r10") _, out("rdx") _);
            asm!("mov eax, 7", "mov r10d, 2", "ud2", out("rax") c, out("r10") _);
        }
        total += a * 10_000 + b * 100 + c;
    }
    for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL] {
        sys::default_action(signal);
    }
    assert_eq!(
        total,
        s.count * 5 * 60_708,
        "a handler's change of RAX or RIP is lost"
    );
    format!("{} faults, {total}", s.count * 15)
}

struct Buffer(UnsafeCell<[u64; 64]>);
// SAFETY: one thread uses it.
unsafe impl Sync for Buffer {}
static BUFFER: Buffer = Buffer(UnsafeCell::new([0; 64]));

extern "C" fn on_jump(_: i32, _: *mut libc::siginfo_t, place: *mut libc::c_void) {
    set_note(0, note(0) + 1);
    // As siglongjmp does, but with registers that the assembly below expects: out of the handler without returning.
    // SAFETY: the section stored its stack pointer and its continuation, and holds nothing else on the stack.
    unsafe {
        let mask = &raw const context(place).uc_sigmask;
        libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut());
        let b = *BUFFER.0.get();
        asm!("mov rsp, {}", "mov rbp, {}", "mov rbx, {}", "jmp {}", in(reg) b[0], in(reg) b[1], in(reg) b[2], in(reg) b[3], options(noreturn));
    }
}

pub fn jump(s: &Settings) -> String {
    clear();
    sys::handle(libc::SIGSEGV, 0, on_jump);
    let turns = s.count * 2;
    for _ in 0..turns {
        // SAFETY: the handler continues at the label with the stack as it was; all other registers count as changed.
        unsafe {
            asm!(
                "mov [rdi], rsp", "mov [rdi + 8], rbp", "mov [rdi + 16], rbx",
                "lea rsi, [rip + 2f]", "mov [rdi + 24], rsi",
                "mov byte ptr [rdx], 1",
                "2:",
                inout("rdi") BUFFER.0.get() => _, out("rsi") _, inout("rdx") 0x1000usize => _,
                clobber_abi("C"), out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
    }
    sys::default_action(libc::SIGSEGV);
    format!(
        "{} of {turns}, mask {:?}",
        note(0),
        sys::members(&sys::current_mask())
    )
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, place: *mut libc::c_void) {
    // SAFETY: the kernel's arguments.
    unsafe {
        let g = &context(place).uc_mcontext.gregs;
        let at = (*info).si_addr() as usize;
        let start = REGION.load(Ordering::Relaxed);
        let region = start..start + 64 * PAGE;
        let rip = g[libc::REG_RIP as usize] as usize;
        // Where: in the region, at the instruction, or a small number.
        let address = if region.contains(&at) {
            format!("region+{:#x}", at - start)
        } else if at == rip {
            "rip".to_owned()
        } else if at < 1 << 32 {
            format!("{at:#x}")
        } else {
            "elsewhere".to_owned()
        };
        let cr2 = g[libc::REG_CR2 as usize] as usize;
        let text = format!(
            "{signal} code {} at {address} trap {} error {:#x}{}\n",
            (*info).si_code,
            g[libc::REG_TRAPNO as usize],
            g[libc::REG_ERR as usize],
            if region.contains(&cr2) && cr2 == at {
                " cr2"
            } else {
                ""
            }
        );
        sys::write(1, text.as_bytes());
        sys::exit_now(0);
    }
}

const FAULTS: [&str; 19] = [
    "null",
    "read none",
    "write read-only",
    "unmapped",
    "into two pages",
    "execute data",
    "execute nothing",
    "not canonical",
    "behind the file",
    "misaligned",
    "divide",
    "quotient",
    "undefined",
    "int3",
    "int1",
    "hlt",
    "in",
    "float",
    "x87",
];

/// Faults in the way that has this name; `b` is where the region of [`faults`] begins.
///
/// # Safety
/// Handlers for the signals are installed, and don't return.
unsafe fn fault(name: &str, b: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match name {
            "null" => asm!("mov eax, [{}]", in(reg) 0usize, out("eax") _),
            "read none" => asm!("mov al, [{}]", in(reg) b + 2 * PAGE + 5, out("al") _),
            "write read-only" => asm!("mov byte ptr [{}], 1", in(reg) b + PAGE + 7),
            "unmapped" => asm!("add qword ptr [{}], 1", in(reg) b + 7 * PAGE),
            "into two pages" => asm!("mov qword ptr [{}], rax", in(reg) b + 7 * PAGE - 3),
            "execute data" => asm!("call {}", in(reg) b + 3 * PAGE),
            "execute nothing" => asm!("jmp {}", in(reg) b + 7 * PAGE + 9),
            "not canonical" => asm!("mov al, [{}]", in(reg) 1usize << 62, out("al") _),
            "behind the file" => asm!("mov al, [{}]", in(reg) b + 5 * PAGE + 3, out("al") _),
            "misaligned" => asm!("movaps xmm0, [{}]", in(reg) b + 1, out("xmm0") _),
            "divide" => {
                asm!("xor edx, edx", "div {:e}", in(reg) 0, out("edx") _, inout("eax") 1 => _)
            }
            "quotient" => asm!(
                "idiv {:e}", in(reg) -1, inout("edx") -0x4000_0000 => _, inout("eax") 0 => _
            ),
            "undefined" => asm!("call {}", in(reg) b),
            "int3" => asm!("int3"),
            "int1" => asm!(".byte 0xf1"),
            "hlt" => asm!("hlt"),
            "in" => asm!("in al, dx", in("dx") 0x60u16, out("al") _),
            "float" => {
                let mxcsr = 0x1d00u32;
                asm!(
                    "ldmxcsr [{}]", "divsd xmm0, xmm1",
                    in(reg) &raw const mxcsr, inout("xmm0") 1.0f64 => _, in("xmm1") 0.0f64
                );
            }
            "x87" => {
                let cw = 0x037bu16;
                asm!(
                    "fldcw [{}]", "fld1", "fldz", "fdivp", "fwait",
                    in(reg) &raw const cw, out("st(0)") _, out("st(1)") _
                );
            }
            other => panic!("no fault named {other}"),
        }
    }
}

pub fn faults(_: &Settings) -> String {
    let fd = sys::memfd(PAGE);
    let region = Pages::private(64 * PAGE, RWX);
    REGION.store(region.start() as usize, Ordering::Relaxed);
    // Page 1 can't be written, page 2 not accessed, page 3 not executed, page 4 is behind the end of a file.
    // SAFETY: pages of the region.
    unsafe {
        let page = |n: usize| region.start().add(n * PAGE).cast::<libc::c_void>();
        libc::mprotect(page(1), PAGE, libc::PROT_READ);
        libc::mprotect(page(2), PAGE, libc::PROT_NONE);
        libc::mprotect(page(3), PAGE, RW);
        libc::mmap(
            page(4),
            2 * PAGE,
            RW,
            libc::MAP_SHARED | libc::MAP_FIXED,
            fd,
            0,
        );
        libc::munmap(page(7), PAGE);
    }
    region.put(0, &[0x0f, 0x0b]);
    let base = region.start() as usize;
    let mut out = String::new();
    for name in FAULTS {
        let (from, to) = sys::pipe();
        let pid = child(|| {
            // SAFETY: standard output goes to the pipe.
            unsafe { libc::dup2(to, 1) };
            for signal in [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
            ] {
                sys::handle(signal, 0, on_fault);
            }
            // SAFETY: what it does ends in the handler, and the child with it.
            unsafe { fault(name, base) };
            7
        });
        sys::close(to);
        let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
        sys::close(from);
        let status = ended(pid);
        let _ = write!(
            out,
            "\n  {name}: {}",
            if status == "exit 0" {
                text.trim()
            } else {
                &status
            }
        );
    }
    sys::close(fd);
    out
}

extern "C" fn on_step(_: i32, info: *mut libc::siginfo_t, place: *mut libc::c_void) {
    set_note(0, note(0) + 1);
    // SAFETY: the kernel's arguments.
    unsafe {
        set_note(1, (*info).si_code as u64);
        set_note(
            2,
            context(place).uc_mcontext.gregs[libc::REG_TRAPNO as usize] as u64,
        );
    }
}

pub fn step(_: &Settings) -> String {
    clear();
    sys::handle(libc::SIGTRAP, 0, on_step);
    // SAFETY: sets the trap flag for some instructions; the red zone is not the compiler's in a block that pushes.
    unsafe {
        asm!(
            "pushfq", "or dword ptr [rsp], 0x100", "popfq",
            "nop", "inc eax", "xor ecx, ecx", "2:", "inc ecx", "cmp ecx, 10", "jb 2b",
            "pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq",
            out("eax") _, out("ecx") _,
        );
    }
    sys::default_action(libc::SIGTRAP);
    format!("{} traps, code {}, trap {}", note(0), note(1), note(2))
}

extern "C" fn on_alternate(signal: i32, info: *mut libc::siginfo_t, place: *mut libc::c_void) {
    let here = &raw const info as usize;
    let start = REGION.load(Ordering::Relaxed);
    let inside = (start..start + 64 * PAGE).contains(&here);
    // SAFETY: asks for the stack; the kernel's context.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &raw mut stack);
        set_note(
            0,
            note(0) * 100 + u64::from(inside) * 10 + stack.ss_flags as u64,
        );
        set_note(1, context(place).uc_stack.ss_size as u64);
    }
    if signal == libc::SIGUSR1 {
        // On the same stack, further down.
        sys::kill(sys::getpid(), libc::SIGUSR2);
    }
    if signal == libc::SIGSEGV {
        sys::exit_now(inside.into());
    }
}

#[inline(never)]
#[expect(unconditional_recursion)] // until the stack ends
fn deeper(n: u64) -> u64 {
    let mut room = [n; 1024];
    std::hint::black_box(&mut room);
    deeper(n + 1) + room[(n % 1024) as usize]
}

pub fn altstack(_: &Settings) -> String {
    clear();
    let stack = Pages::private(64 * PAGE, RW);
    REGION.store(stack.start() as usize, Ordering::Relaxed);
    let set = |flags: i32, size: usize| {
        let description = libc::stack_t {
            ss_sp: stack.start().cast(),
            ss_flags: flags,
            ss_size: size,
        };
        // SAFETY: the stack lives until it is disarmed below.
        let r = unsafe { libc::sigaltstack(&raw const description, std::ptr::null_mut()) };
        if r < 0 { sys::errno() } else { 0 }
    };
    let mut out = vec![format!("{} {}", set(0, 100), set(99, 64 * PAGE))];
    assert_eq!(set(0, 64 * PAGE), 0);
    sys::handle(libc::SIGUSR1, libc::SA_ONSTACK, on_alternate);
    sys::handle(libc::SIGUSR2, libc::SA_ONSTACK, on_alternate);
    sys::kill(sys::getpid(), libc::SIGUSR1);
    out.push(format!("nested {} of {}", note(0), note(1)));
    clear();
    sys::handle(libc::SIGUSR2, 0, on_alternate);
    sys::kill(sys::getpid(), libc::SIGUSR2);
    out.push(format!("without the flag {}", note(0)));
    clear();
    const AUTODISARM: i32 = 1 << 31;
    assert_eq!(set(AUTODISARM, 64 * PAGE), 0);
    sys::handle(libc::SIGUSR2, libc::SA_ONSTACK, on_alternate);
    sys::kill(sys::getpid(), libc::SIGUSR2);
    out.push(format!("disarmed {}", note(0)));
    assert_eq!(set(0, 64 * PAGE), 0);
    let pid = child(|| {
        sys::handle(libc::SIGSEGV, libc::SA_ONSTACK, on_alternate);
        let small = libc::rlimit {
            rlim_cur: 256 << 10,
            rlim_max: 256 << 10,
        };
        // SAFETY: reads a local.
        unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const small) };
        deeper(1) as i32
    });
    out.push(format!("overflow {}", ended(pid)));
    assert_eq!(set(libc::SS_DISABLE, 0), 0);
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        sys::default_action(signal);
    }
    out.join(", ")
}
