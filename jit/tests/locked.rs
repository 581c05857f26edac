//! Locked instructions of two vCPUs on the same memory, one translated and one interpreted: they must not lose each other's.

#[path = "../../cpu/tests/oracle/mod.rs"]
mod oracle;

use iced_x86::code_asm::*;
use oracle::{CODE, DATA, guest};
use sevlab_cpu::interp::run_block;
use sevlab_cpu::stop::Stop;
use sevlab_cpu::vcpu::{SevMode, Vcpu, VcpuConfig};
use sevlab_jit::{Engine, JitOptions};
use std::sync::Arc;

const TURNS: u32 = 20_000;

/// Another vCPU with the same memory and page tables.
fn sibling(v: &Vcpu) -> Box<Vcpu> {
    let config = VcpuConfig {
        mode: SevMode::Off,
        ..VcpuConfig::default()
    };
    let mut s = Vcpu::new(Arc::clone(&v.mem), config);
    s.set_cr3(v.state.sys.cr3);
    s
}

fn run(mut v: Box<Vcpu>, engine: bool) {
    v.state.rip = CODE;
    v.state.gpr[4] = DATA + 0x800;
    if engine {
        let options = JitOptions {
            threshold: 2,
            background: false,
            ..JitOptions::default()
        };
        let mut engine = Engine::new(options).unwrap();
        assert_eq!(engine.run(&mut v), Stop::Syscall);
        assert!(engine.stats().entries > 0, "nothing ran translated");
        return;
    }
    loop {
        match run_block(&mut v) {
            Ok(()) => {}
            Err(Stop::Syscall) => return,
            Err(s) => panic!("{s:?} at {:x}", v.state.rip),
        }
    }
}

/// Runs the same loop body on two vCPUs; each turn must add 2 to the 64-bit word at `at`.
fn contend(
    at: u64,
    second: bool,
    body: impl FnOnce(&mut CodeAssembler, u64) -> Result<(), IcedError>,
) -> u64 {
    let mut v = guest(&[(CODE, 1), (DATA, 4)]);
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(r15d, TURNS).unwrap();
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    body(&mut a, at).unwrap();
    a.dec(r15d).unwrap();
    a.jne(top).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    v.write(CODE, &code).unwrap();
    let other = sibling(&v);
    let mut reader = sibling(&v);
    std::thread::scope(|s| {
        s.spawn(|| run(other, second));
        run(v, true);
    });
    reader.read_u64(at).unwrap()
}

/// Aligned, unaligned in a line, across a line, across a page.
const PLACES: [u64; 4] = [DATA + 0x40, DATA + 0x83, DATA + 0xfd, DATA + 0xffc];

/// With both vCPUs translated, and with one.
fn places() -> impl Iterator<Item = (u64, bool)> {
    PLACES.into_iter().flat_map(|at| [(at, true), (at, false)])
}

#[test]
fn additions_are_not_lost() {
    for (at, second) in places() {
        let n = contend(at, second, |a, at| {
            a.lock().inc(dword_ptr(at))?;
            a.mov(eax, 1)?;
            a.lock().xadd(dword_ptr(at), eax)
        });
        assert_eq!(n, u64::from(TURNS) * 4, "{at:x}");
    }
}

#[test]
fn compare_exchanges_are_not_lost() {
    for (at, second) in places() {
        let n = contend(at, second, |a, at| {
            let mut again = a.create_label();
            a.mov(rax, qword_ptr(at))?;
            a.set_label(&mut again)?;
            a.lea(rdx, ptr(rax + 2))?;
            a.lock().cmpxchg(qword_ptr(at), rdx)?;
            a.jne(again)
        });
        assert_eq!(n, u64::from(TURNS) * 4, "{at:x}");
    }
    let n = contend(DATA + 0x40, false, |a, at| {
        let mut again = a.create_label();
        a.mov(rsi, at)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rdx, qword_ptr(rsi + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, ptr(rax + 2))?;
        a.lea(rcx, ptr(rdx - 1))?;
        a.lock().cmpxchg16b(xmmword_ptr(rsi))?;
        a.jne(again)
    });
    assert_eq!(n, u64::from(TURNS) * 4);
}

#[test]
fn an_exchange_is_a_lock() {
    for (at, second) in places() {
        let n = contend(at, second, |a, at| {
            let lock = DATA + 0x2003;
            let mut spin = a.create_label();
            a.nop()?;
            a.set_label(&mut spin)?;
            a.mov(eax, 1)?;
            a.xchg(dword_ptr(lock), eax)?;
            a.test(eax, eax)?;
            a.jne(spin)?;
            a.add(qword_ptr(at), 2)?;
            a.mov(dword_ptr(lock), 0)
        });
        assert_eq!(n, u64::from(TURNS) * 4, "{at:x}");
    }
}
