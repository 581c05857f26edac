//! Faults on request: `faults KIND [--handle]`. Without a handler the program dies of the signal; with one it prints
//! what the signal carried. Native execution is what the emulator is compared with.
#![no_main] // Rust's own start-up would install a handler for stack overflow
#![allow(unsafe_code)] // faults on purpose

use std::arch::asm;
use std::ffi::{CStr, c_char, c_int, c_void};

/// A place that stays what it is from run to run.
const NOWHERE: usize = 0x1234_5000;

extern "C" fn report(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo and a ucontext.
    let (address, code, trap, error) = unsafe {
        let c = &*context.cast::<libc::ucontext_t>();
        (
            (*info).si_addr() as usize,
            (*info).si_code,
            c.uc_mcontext.gregs[libc::REG_TRAPNO as usize],
            c.uc_mcontext.gregs[libc::REG_ERR as usize],
        )
    };
    let shown = match (code, address) {
        // Sent by a process: these bytes are its number.
        (..=0, _) => 0,
        (_, ..0x1_0000_0000) => address,
        // Addresses of code and stack differ from run to run natively; say only where in the page.
        _ => address & 0xfff,
    };
    let line =
        format!("signal {signal} code {code} address {shown:#x} trap {trap} error {error:#x}\n");
    // SAFETY: writes a Rust string to standard output, then ends.
    unsafe {
        libc::write(1, line.as_ptr().cast(), line.len());
        libc::_exit(42);
    }
}

fn handle() {
    // SAFETY: an alternate stack that is never freed, and handlers for the signals tested.
    unsafe {
        let size = 64 * 1024;
        let stack = libc::stack_t {
            ss_sp: libc::malloc(size),
            ss_flags: 0,
            ss_size: size,
        };
        libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = report as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for s in [
            libc::SIGSEGV,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGBUS,
            libc::SIGTRAP,
            libc::SIGABRT,
        ] {
            libc::sigaction(s, &raw const action, std::ptr::null_mut());
        }
    }
}

#[inline(never)]
#[expect(unconditional_recursion)] // until the stack ends
fn overflow(n: u64) -> u64 {
    let mut room = [n; 512];
    std::hint::black_box(&mut room);
    overflow(n + 1) + room[(n % 512) as usize]
}

/// Entry, as the C library calls it.
///
/// # Safety
/// `argv` holds `argc` C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let arg = |n| {
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(*argv.add(n)) };
        text.to_str().unwrap_or("")
    };
    let args: Vec<&str> = (0..argc as usize).map(arg).collect();
    if args.contains(&"--handle") {
        handle();
    }
    // SAFETY: none of it is; that is the point.
    unsafe {
        match args.get(1).copied().unwrap_or("") {
            "null" => asm!("mov eax, dword ptr [{0}]", in(reg) 0usize, out("eax") _),
            "nowhere" => asm!("mov dword ptr [{0} + 0x678], 1", in(reg) NOWHERE),
            "jump" => asm!("jmp {0}", in(reg) NOWHERE),
            "noncanonical" => {
                asm!("mov eax, dword ptr [{0}]", in(reg) 0x8000_0000_0000_0000usize, out("eax") _)
            }
            "readonly" => {
                let p = c"constant".as_ptr() as usize;
                let page = p & !0xfff;
                // A page never touched is natively not present, unless the kernel mapped it along with a neighbour: the error code
                // would be a matter of chance.
                asm!("mov al, byte ptr [{0}]", in(reg) page, out("al") _);
                asm!("mov byte ptr [{0}], 1", in(reg) page);
            }
            "noexec" => {
                let p = libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                *p.cast::<u8>() = 0xc3;
                asm!("call {0}", in(reg) p);
            }
            "divide" => {
                asm!("xor edx, edx", "mov eax, 1", "div {0:e}", in(reg) 0, out("eax") _, out("edx") _)
            }
            "divide-overflow" => asm!(
                "mov edx, 7", "mov eax, 1", "div {0:e}", in(reg) 3, out("eax") _, out("edx") _
            ),
            "undefined" => asm!("ud2"),
            "trap" => asm!("int3"),
            "privileged" => asm!("hlt"),
            "misaligned" => {
                asm!("movaps xmm0, [{0}]", in(reg) (args.as_ptr() as usize & !15) + 1, out("xmm0") _)
            }
            "abort" => libc::abort(),
            // From a page boundary down, so that the address does not depend on where the stack began.
            "stack" => asm!("and rsp, -4096", "2: push 0", "jmp 2b", options(noreturn)),
            "recursion" => return overflow(1) as c_int,
            "raise" => {
                libc::raise(libc::SIGTERM);
            }
            other => {
                eprintln!("faults: unknown kind {other:?}");
                return 2;
            }
        }
    }
    0
}
