//! Code that changes while it runs: a program that patches its own loop, code behind a second mapping, protection
//! flips, code the kernel writes, a small JIT, and code that another thread patches.
#![allow(unsafe_code)] // calls code that it has just written

mod cross;
mod jit;

use std::time::Duration;

use sevlab_workloads::sections::{self, Program, Section, Settings, Watchdog};
use sevlab_workloads::sys::{self, Pages, RW, RWX, RX};

const PAGE: usize = 4096;

static PROGRAM: Program = Program {
    name: "smc",
    about: "self-modifying and cross-modifying code, each result checked",
    sections: &[
        Section {
            name: "immediate",
            about: "a loop patches an immediate of its own body, with a jump in between",
            run: immediate,
        },
        Section {
            name: "next",
            about: "the same without the jump: the patched instruction is the next one",
            run: next,
        },
        Section {
            name: "opcode",
            about: "a loop patches an opcode of its own body",
            run: opcode,
        },
        Section {
            name: "behind",
            about: "a loop patches an instruction that it has already run",
            run: behind,
        },
        Section {
            name: "outside",
            about: "the caller patches a function of instructions of changing length",
            run: outside,
        },
        Section {
            name: "data",
            about: "data that changes on the page of the code that runs",
            run: data,
        },
        Section {
            name: "straddle",
            about: "an instruction across a page boundary, patched on one side",
            run: straddle,
        },
        Section {
            name: "alias",
            about: "patches through a second mapping of the page (memfd)",
            run: alias,
        },
        Section {
            name: "flip",
            about: "never writable and executable at once: mprotect before and after",
            run: flip,
        },
        Section {
            name: "remap",
            about: "other code mapped in the same place",
            run: remap,
        },
        Section {
            name: "kernel",
            about: "read() into code, pwrite() to the file that is mapped as code",
            run: kernel,
        },
        Section {
            name: "return",
            about: "a function patches the code that it returns to",
            run: returns,
        },
        Section {
            name: "jit",
            about: "a small JIT: expressions compiled, run, overwritten by others",
            run: jit::run,
        },
        Section {
            name: "cross",
            about: "another thread patches, sets a flag; this one waits, serialises, runs",
            run: cross::same,
        },
        Section {
            name: "crossalias",
            about: "the same through a second mapping",
            run: cross::alias,
        },
        Section {
            name: "crossflip",
            about: "the same with mprotect around every patch",
            run: cross::flip,
        },
        Section {
            name: "many",
            about: "several threads run what one patches",
            run: cross::many,
        },
        Section {
            name: "atomic",
            about: "an aligned store patches code that runs: old or new, and in the end new",
            run: cross::atomic,
        },
    ],
    defaults: Settings {
        count: 1_000_000,
        threads: 3,
        seconds: 1.0,
        verbose: false,
    },
    limit: Duration::from_secs(600),
    watchdog: Watchdog::Alarm,
};

fn main() {
    sections::main(&PROGRAM);
}

/// Waits for the instruction stream to be as memory is.
pub fn serialise() {
    std::arch::x86_64::__cpuid(0);
}

/// The sum of 1 to `n` as the loops below compute it.
fn sum(n: u64) -> u64 {
    u64::from((n.wrapping_mul(n + 1) / 2) as u32)
}

fn own_loop(code: &[u8], n: u64) -> String {
    let page = Pages::private(PAGE, RWX);
    let mut wrong = 0;
    // At several places in the page, and twice in each: once with fresh bytes, once with those of the last run.
    for at in [0, 61, 1024, PAGE - code.len()] {
        page.put(at, code);
        for _ in 0..2 {
            // SAFETY: a function of one argument was just put there.
            let r = unsafe { page.call(at, n / 8, 0, 0) };
            wrong += u64::from(r != sum(n / 8));
        }
    }
    assert_eq!(wrong, 0, "a loop ran stale code");
    format!("{} patches, sum {:#x}", n / 8 * 8, sum(n / 8))
}

fn immediate(s: &Settings) -> String {
    let code = [
        &[0x31, 0xc0, 0x89, 0xf9][..],         // xor eax, eax; mov ecx, edi
        &[0x89, 0x0d, 0x03, 0x00, 0x00, 0x00], // mov [rip + 3], ecx
        &[0xeb, 0x00],                         // jmp to the next
        &[0x05, 0xee, 0xee, 0xee, 0xee],       // add eax, imm32
        &[0xff, 0xc9, 0x75, 0xef, 0xc3],       // dec ecx; jnz; ret
    ];
    own_loop(&code.concat(), s.count)
}

fn next(s: &Settings) -> String {
    let code = [
        &[0x31, 0xc0, 0x89, 0xf9][..],
        &[0x89, 0x0d, 0x01, 0x00, 0x00, 0x00], // mov [rip + 1], ecx
        &[0x05, 0xee, 0xee, 0xee, 0xee],
        &[0xff, 0xc9, 0x75, 0xf1, 0xc3],
    ];
    own_loop(&code.concat(), s.count)
}

/// The instruction that was patched comes before the patch in the loop, so that it runs in the next turn.
fn behind(s: &Settings) -> String {
    let code = [
        &[0x31, 0xc0, 0x89, 0xf9][..],         // xor eax, eax; mov ecx, edi
        &[0x89, 0x0d, 0x01, 0x00, 0x00, 0x00], // mov [rip + 1], ecx: the first turn's
        &[0x05, 0xee, 0xee, 0xee, 0xee],       // add eax, imm32
        &[0x8d, 0x51, 0xff],                   // lea edx, [rcx - 1]
        &[0x89, 0x15, 0xf3, 0xff, 0xff, 0xff], // mov [rip - 13], edx: the next turn's
        &[0xff, 0xc9, 0x75, 0xee, 0xc3],       // dec ecx; jnz to the add; ret
    ];
    own_loop(&code.concat(), s.count)
}

fn opcode(s: &Settings) -> String {
    const CODE: [u8; 27] = [
        0x89, 0xf8, 0x89, 0xf9, // mov eax, edi; mov ecx, edi
        0x89, 0xca, 0x83, 0xe2, 0x03, // mov edx, ecx; and edx, 3
        0x8a, 0x14, 0x16, // mov dl, [rsi + rdx]
        0x88, 0x15, 0x02, 0x00, 0x00, 0x00, // mov [rip + 2], dl
        0xeb, 0x00, // jmp to the next
        0x01, 0xc8, // add, or, sub or xor eax, ecx
        0xff, 0xc9, 0x75, 0xea, 0xc3, // dec ecx; jnz; ret
    ];
    const OPCODES: [u8; 4] = [0x01, 0x09, 0x29, 0x31];
    let n = s.count as u32;
    let mut expected = n;
    for i in (1..=n).rev() {
        expected = match i & 3 {
            0 => expected.wrapping_add(i),
            1 => expected | i,
            2 => expected.wrapping_sub(i),
            _ => expected ^ i,
        };
    }
    let page = Pages::private(PAGE, RWX);
    page.put(100, &CODE);
    // SAFETY: the function was just put there; it reads four bytes at its second argument.
    let r = unsafe { page.call(100, u64::from(n), OPCODES.as_ptr() as u64, 0) };
    assert_eq!(r, u64::from(expected), "a loop ran stale code");
    format!("{n} patches, result {r:#x}")
}

/// Functions of one argument that compute `a + k` or `a ^ k` with instructions of different lengths.
fn variant(i: u64) -> (Vec<u8>, impl Fn(u64) -> u64) {
    let k = (i.wrapping_mul(0x9e37_79b9) as i32) >> 1;
    let small = k as i8;
    let mut code = vec![0x48, 0x89, 0xf8]; // mov rax, rdi
    match i % 6 {
        0 => {
            code.extend([0x48, 0x05]); // add rax, imm32
            code.extend(k.to_le_bytes());
        }
        1 => code.extend([0x48, 0x83, 0xc0, small as u8]), // add rax, imm8
        2 => code.extend([0x90, 0x90, 0x48, 0x83, 0xf0, small as u8]), // nop; nop; xor rax, imm8
        3 => code.extend([0x0f, 0x1f, 0x40, 0x00, 0x48, 0xff, 0xc0]), // nop; inc rax
        4 => {
            code.extend([0x48, 0x35]); // xor rax, imm32
            code.extend(k.to_le_bytes());
        }
        _ => {
            code.extend([0x48, 0xb9]); // mov rcx, imm64; add rax, rcx
            code.extend((k as i64).wrapping_mul(0x1_0001_0001).to_le_bytes());
            code.extend([0x48, 0x01, 0xc8]);
        }
    }
    code.push(0xc3);
    let expected = move |a: u64| match i % 6 {
        0 => a.wrapping_add(k as i64 as u64),
        1 => a.wrapping_add(small as i64 as u64),
        2 => a ^ small as i64 as u64,
        3 => a.wrapping_add(1),
        4 => a ^ k as i64 as u64,
        _ => a.wrapping_add((k as i64).wrapping_mul(0x1_0001_0001) as u64),
    };
    (code, expected)
}

/// Runs the code that stands at `at` now, for step `i`, `times` over.
fn check(page: &Pages, at: usize, i: u64, times: u64, expected: impl Fn(u64) -> u64) -> u64 {
    let mut all = 0u64;
    for a in 0..times {
        let a = a.wrapping_mul(0x1234_5678_9abc_def1) ^ i;
        // SAFETY: callers have put a function of one argument there.
        let r = unsafe { page.call(at, a, 0, 0) };
        assert_eq!(r, expected(a), "stale code at step {i}");
        all = all.rotate_left(5) ^ r;
    }
    all
}

fn outside(s: &Settings) -> String {
    let page = Pages::private(2 * PAGE, RWX);
    let mut all = 0;
    for i in 0..s.count {
        // Mostly one place; now and then another, in the page or over its end.
        let at = if i % 16 == 15 {
            (i * 7) as usize % (PAGE + 1000)
        } else {
            64
        };
        let (code, expected) = variant(i);
        page.put(at, &code);
        // Long enough for a translator to take an interest, from time to time.
        let times = if i % 20_000 == 19_999 { 20_000 } else { 2 };
        all ^= check(&page, at, i, times, expected);
    }
    format!("{} functions, results {all:#x}", s.count)
}

fn data(s: &Settings) -> String {
    // A loop that counts in a quadword on its own page, and one that fills bytes around itself.
    const CODE: [u8; 18] = [
        0x48, 0x01, 0x3d, 0xf1, 0x07, 0x00,
        0x00, // add [rip + 0x7f1], rdi: 2048 from the start of the page
        0x40, 0x88, 0x3c, 0x3e, // mov [rsi + rdi], dil
        0x48, 0xff, 0xcf, 0x75, 0xf0, // dec rdi; jnz
        0xc3, 0x90,
    ];
    let page = Pages::private(PAGE, RWX);
    page.put(8, &CODE);
    let n = s.count / 100;
    for round in 1..=n {
        // SAFETY: the function was just put there; it writes 100 bytes of the page that are not code.
        unsafe { page.call(8, 100, page.start() as u64 + 3000, 0) };
        if round % 64 == 0 || round == n {
            let got = page.quad(2048).load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(got, round * 5050, "the data beside the code is wrong");
        }
    }
    assert_eq!(page.get(3001, 100), (1..=100).collect::<Vec<u8>>());
    format!("{} stores, counter {}", n * 200, n * 5050)
}

fn straddle(s: &Settings) -> String {
    let pages = Pages::private(2 * PAGE, RWX);
    let n = s.count / 10;
    let mut all = 0u64;
    for i in 0..n {
        // mov eax, imm32; ret: two to four bytes of the immediate on the second page
        let before = 1 + (i / 64 % 3) as usize;
        let at = PAGE - before;
        if i % 64 == 0 {
            pages.put(at, &[0xb8, 1, 2, 3, 4, 0xc3]);
        }
        let old = pages.get(at, 6);
        let mut second = old[before..5].to_vec();
        for (k, byte) in second.iter_mut().enumerate() {
            *byte = (i >> (8 * k)) as u8 ^ 0x5a;
        }
        pages.put(PAGE, &second);
        let mut bytes = old[1..before].to_vec();
        bytes.extend(second);
        let expected = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        // SAFETY: mov and ret were put there.
        let r = unsafe { pages.call(at, 0, 0, 0) };
        assert_eq!(
            r,
            u64::from(expected),
            "stale half of an instruction at step {i}"
        );
        all = all.rotate_left(3) ^ r;
    }
    format!("{n} patches, results {all:#x}")
}

/// The same memory, writable here and executable there.
pub fn two_mappings(len: usize) -> (Pages, Pages) {
    let fd = sys::memfd(len);
    let writable = Pages::map(len, RW, libc::MAP_SHARED, fd, 0);
    let executable = Pages::map(len, RX, libc::MAP_SHARED, fd, 0);
    sys::close(fd);
    (writable, executable)
}

fn alias(s: &Settings) -> String {
    let (writable, executable) = two_mappings(PAGE);
    // CPUID leaves a virtual machine: few of these.
    let n = s.count / 100;
    let mut all = 0;
    for i in 0..n {
        let at = (i % 8) as usize * 200;
        let (code, expected) = variant(i);
        writable.put(at, &code);
        serialise();
        let times = if i % 5000 == 4999 { 20_000 } else { 2 };
        all ^= check(&executable, at, i, times, expected);
    }
    // Code that patches itself through the other mapping, with CPUID where the rules want it.
    let code = [
        &[0x53, 0x45, 0x31, 0xc0][..],               // push rbx; xor r8d, r8d
        &[0x41, 0x89, 0xf9],                         // mov r9d, edi
        &[0x44, 0x89, 0x0e],                         // mov [rsi], r9d
        &[0x31, 0xc0, 0x0f, 0xa2],                   // xor eax, eax; cpuid
        &[0x41, 0x81, 0xc0, 0xee, 0xee, 0xee, 0xee], // add r8d, imm32
        &[0x41, 0xff, 0xc9, 0x75, 0xed],             // dec r9d; jnz
        &[0x44, 0x89, 0xc0, 0x5b, 0xc3],             // mov eax, r8d; pop rbx; ret
    ]
    .concat();
    writable.put(2048, &code);
    serialise();
    let place = writable.start() as u64 + 2048 + 17;
    // SAFETY: the function was just put there; it writes to the immediate at its second argument.
    let r = unsafe { executable.call(2048, n, place, 0) };
    assert_eq!(r, sum(n), "stale code behind the other mapping");
    format!("{} patches, results {all:#x} {r:#x}", 2 * n)
}

fn flip(s: &Settings) -> String {
    let page = Pages::private(PAGE, RW);
    let n = s.count / 100;
    let mut all = 0;
    for i in 0..n {
        page.protect(RW);
        let (code, expected) = variant(i);
        page.put(32, &code);
        page.protect(RX);
        let times = if i % 5000 == 4999 { 20_000 } else { 2 };
        all ^= check(&page, 32, i, times, expected);
    }
    format!("{n} patches, results {all:#x}")
}

fn remap(s: &Settings) -> String {
    let n = s.count / 200;
    let fd = sys::memfd(2 * PAGE);
    let file = Pages::map(2 * PAGE, RW, libc::MAP_SHARED, fd, 0);
    let place = Pages::private(PAGE, RWX);
    let mut all = 0;
    for i in 0..n {
        let (code, expected) = variant(i);
        match i % 3 {
            // Fresh memory in its place.
            0 => {
                place.replace(RWX, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
                place.put(0, &code);
            }
            // Another page of a file.
            1 => {
                file.put(PAGE, &code);
                place.replace(RX, libc::MAP_SHARED, fd, PAGE as i64);
            }
            // A page that has been moved there.
            _ => {
                let other = Pages::private(PAGE, RWX);
                other.put(0, &code);
                // SAFETY: moves one page of this function's over another; `other` keeps a hole that unmaps as nothing.
                let p = unsafe {
                    libc::mremap(
                        other.start().cast(),
                        PAGE,
                        PAGE,
                        libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                        place.start(),
                    )
                };
                assert_eq!(
                    p,
                    place.start().cast(),
                    "mremap failed with {}",
                    sys::errno()
                );
                std::mem::forget(other);
            }
        }
        let times = if i % 2000 == 1999 { 20_000 } else { 2 };
        all ^= check(&place, 0, i, times, expected);
    }
    sys::close(fd);
    format!("{n} mappings, results {all:#x}")
}

fn kernel(s: &Settings) -> String {
    let n = s.count / 100;
    let fd = sys::memfd(PAGE);
    let mapped = Pages::map(PAGE, RX, libc::MAP_SHARED, fd, 0);
    let private = Pages::private(PAGE, RWX);
    let (from, to) = sys::pipe();
    let mut all = 0;
    for i in 0..n {
        let (code, expected) = variant(i);
        // SAFETY: writes a vector to a file, or reads a pipe into a page that is writable.
        unsafe {
            if i % 2 == 0 {
                let r = libc::pwrite(fd, code.as_ptr().cast(), code.len(), 512);
                sys::ok("pwrite", r);
            } else {
                sys::write(to, &code);
                let r = libc::read(from, private.start().add(512).cast(), code.len());
                assert_eq!(r, code.len() as isize, "read into code");
            }
        }
        let page = if i % 2 == 0 { &mapped } else { &private };
        let times = if i % 5000 < 2 { 10_000 } else { 2 };
        all ^= check(page, 512, i, times, expected);
    }
    for end in [fd, from, to] {
        sys::close(end);
    }
    format!("{n} patches, results {all:#x}")
}

fn returns(s: &Settings) -> String {
    // caller: xor eax, eax; mov ecx, edi; again: call callee; add eax, imm32; dec ecx; jnz again; ret
    // callee: mov rdx, [rsp]; mov [rdx + 1], ecx; ret
    let code = [
        &[0x31, 0xc0, 0x89, 0xf9][..],
        &[0xe8, 0x0a, 0x00, 0x00, 0x00],
        &[0x05, 0xee, 0xee, 0xee, 0xee],
        &[0xff, 0xc9, 0x75, 0xf2, 0xc3],
        &[0x48, 0x8b, 0x14, 0x24, 0x89, 0x4a, 0x01, 0xc3],
    ];
    let page = Pages::private(PAGE, RWX);
    page.put(0, &code.concat());
    let n = s.count;
    // SAFETY: the function was just put there.
    let r = unsafe { page.call(0, n, 0, 0) };
    assert_eq!(r, sum(n), "a loop ran stale code");
    format!("{n} patches, sum {r:#x}")
}
