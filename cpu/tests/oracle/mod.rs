//! The host processor as oracle: runs instructions natively on given registers and memory, at the same
//! addresses as the guest.
#![allow(unsafe_code)] // maps memory at fixed addresses and jumps into it
#![allow(dead_code)] // each test file uses its part

use iced_x86::code_asm::*;
use sevlab_arch::Va;
use sevlab_cpu::state::CpuState;
use sevlab_cpu::vcpu::{SevMode, Vcpu, VcpuConfig};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, MemCtl};
use std::sync::{Arc, Mutex, MutexGuard};

/// Where code under test is, natively and in the guest. Pages: code slot, stubs, context.
pub const CODE: u64 = 0x1000_0000;
const STUB: u64 = CODE + 0x1000;
const CONTEXT: u64 = CODE + 0x2000;
/// Where native code goes to leave.
pub const EXIT: u64 = STUB + 0x800;
/// Scratch memory, natively and in the guest.
pub const DATA: u64 = 0x2000_0000;
pub const DATA_LEN: usize = 0x4000;
/// GS base in both.
pub const GS_BASE: u64 = 0x12340;

static ONE: Mutex<()> = Mutex::new(());

/// Registers, as the stub reads and writes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Regs {
    pub gpr: [u64; 16],
    pub flags: u64,
}

pub struct Host {
    _one: MutexGuard<'static, ()>,
}

fn map(at: u64, len: usize, prot: i32) {
    // SAFETY: a fresh mapping where nothing is.
    let p = unsafe {
        libc::mmap(
            at as *mut _,
            len,
            prot,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_eq!(p as u64, at, "mmap");
}

const ORDER: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];

impl Host {
    pub fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        map(
            CODE,
            0x3000,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(DATA, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE);
        let saved_sp = CONTEXT + 0x100;
        let mut a = CodeAssembler::new(64).unwrap();
        for r in [rbx, rbp, r12, r13, r14, r15] {
            a.push(r).unwrap();
        }
        a.mov(qword_ptr(saved_sp), rsp).unwrap();
        a.push(qword_ptr(CONTEXT + 128)).unwrap();
        a.popfq().unwrap();
        for (k, r) in ORDER.iter().enumerate() {
            a.mov(*r, qword_ptr(CONTEXT + 8 * k as u64)).unwrap();
        }
        a.jmp(CODE).unwrap();
        put(STUB, &a.assemble(STUB).unwrap());
        let mut a = CodeAssembler::new(64).unwrap();
        for (k, r) in ORDER.iter().enumerate() {
            a.mov(qword_ptr(CONTEXT + 8 * k as u64), *r).unwrap();
        }
        a.mov(rsp, qword_ptr(saved_sp)).unwrap();
        a.pushfq().unwrap();
        a.pop(qword_ptr(CONTEXT + 128)).unwrap();
        a.push(2).unwrap();
        a.popfq().unwrap();
        for r in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(r).unwrap();
        }
        a.ret().unwrap();
        put(EXIT, &a.assemble(EXIT).unwrap());
        // SAFETY: sets the thread's GS base, which Linux user space does not use.
        let r = unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, GS_BASE) };
        assert_eq!(r, 0);
        Self { _one: one }
    }

    /// Runs `code` natively; it must fall through at its end, or jump to [`EXIT`].
    pub fn run(&self, code: &[u8], regs: &mut Regs) {
        put(CODE, code);
        let end = CODE + code.len() as u64;
        let rel = EXIT.wrapping_sub(end + 5) as u32;
        put(end, &[0xe9]);
        put(end + 1, &rel.to_le_bytes());
        // SAFETY: the context page is mapped; the stub saves and restores what the ABI asks for.
        unsafe {
            (CONTEXT as *mut Regs).write(*regs);
            let f: extern "sysv64" fn() = std::mem::transmute(STUB as *const ());
            f();
            *regs = (CONTEXT as *const Regs).read();
        }
    }

    pub fn data(&self) -> &[u8] {
        // SAFETY: mapped; only native runs write it.
        unsafe { std::slice::from_raw_parts(DATA as *const u8, DATA_LEN) }
    }

    pub fn set_data(&self, d: &[u8]) {
        put(DATA, d);
    }
}

fn put(at: u64, bytes: &[u8]) {
    // SAFETY: inside the mappings above.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

/// A guest without SEV whose tables map each `(va, pages)` to memory of its own.
pub fn guest(ranges: &[(u64, u64)]) -> Box<Vcpu> {
    let mem = MemCtl::new(Config {
        size: 32 << 20,
        cipher: CipherKind::Aes128Xex,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp: false,
    })
    .unwrap();
    let mut v = Vcpu::new(
        Arc::clone(&mem),
        VcpuConfig {
            mode: SevMode::Off,
            ..VcpuConfig::default()
        },
    );
    let mut next = 0x10_1000u64;
    let root = 0x10_0000u64;
    let mut data = 0x80_0000u64;
    for &(va, pages) in ranges {
        for p in 0..pages {
            let va = va + p * 4096;
            let mut table = root;
            for level in (1..4).rev() {
                let at = sevlab_arch::Spa(table + (va >> (12 + 9 * level) & 511) * 8);
                let mut b = [0; 8];
                mem.read(Domain::Shared, at, &mut b).unwrap();
                let mut e = u64::from_le_bytes(b);
                if e == 0 {
                    e = next | 7;
                    next += 4096;
                    mem.write(Domain::Shared, at, &e.to_le_bytes()).unwrap();
                }
                table = e & !0xfff;
            }
            let at = sevlab_arch::Spa(table + (va >> 12 & 511) * 8);
            mem.write(Domain::Shared, at, &(data | 7).to_le_bytes())
                .unwrap();
            data += 4096;
        }
    }
    v.set_cr3(root);
    v.state.seg[5].base = GS_BASE;
    v
}

/// Makes the guest's page of `va` not present.
pub fn unmap(v: &mut Vcpu, va: u64) {
    let mut table = 0x10_0000u64;
    for level in (1..4).rev() {
        let mut b = [0; 8];
        v.mem
            .read(
                Domain::Shared,
                sevlab_arch::Spa(table + (va >> (12 + 9 * level) & 511) * 8),
                &mut b,
            )
            .unwrap();
        table = u64::from_le_bytes(b) & !0xfff;
    }
    v.mem
        .write(
            Domain::Shared,
            sevlab_arch::Spa(table + (va >> 12 & 511) * 8),
            &[0; 8],
        )
        .unwrap();
    v.invlpg(Va(va));
}

pub fn load(s: &mut CpuState, r: &Regs) {
    s.gpr = r.gpr;
    s.set_rflags(r.flags);
}

pub fn store(s: &CpuState) -> Regs {
    Regs {
        gpr: s.gpr,
        flags: s.rflags(),
    }
}

/// xorshift64*.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    /// A value that likes the edges.
    pub fn value(&mut self) -> u64 {
        let v = self.next();
        match self.below(8) {
            0 => v,
            1 => v & 0xff,
            2 => 0u64.wrapping_sub(v & 0xf),
            3 => 1 << (v & 63),
            4 => (1u64 << (v & 63)).wrapping_sub(1),
            5 => v & 0xffff_ffff,
            6 => [
                0,
                1,
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                u64::MAX >> 1,
                1 << 63,
            ][(v % 10) as usize],
            _ => v >> (v & 63),
        }
    }
}
