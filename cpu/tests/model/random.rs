//! Random programs that touch a few pages in every way.

use iced_x86::code_asm::*;

use super::DATA;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
}

pub const PAGES: u64 = 12;

/// An address with `n` bytes behind it; often near the others.
fn address(r: &mut Rng, n: u64) -> u64 {
    let page = if r.below(3) == 0 {
        r.below(PAGES)
    } else {
        r.below(3)
    };
    let line = if r.below(2) == 0 {
        r.below(64)
    } else {
        r.below(4) * 16
    };
    let at = page * 0x1000 + line * 64 + r.below(64);
    DATA + at.min(PAGES * 0x1000 - n)
}

fn one(a: &mut CodeAssembler, r: &mut Rng) {
    let at = |r: &mut Rng, n| address(r, n);
    match r.below(22) {
        0..=3 => a.mov(rax, qword_ptr(at(r, 8))),
        4 => a.movzx(ebx, byte_ptr(at(r, 1))),
        5 => a.mov(cx, word_ptr(at(r, 2))),
        6..=8 => a.mov(qword_ptr(at(r, 8)), rax),
        9 => a.mov(byte_ptr(at(r, 1)), bl),
        10 => a.add(dword_ptr(at(r, 4)), r.below(1000) as i32),
        11 => a.lock().xadd(qword_ptr(at(r, 8)), rdx),
        12 => a.xchg(dword_ptr(at(r, 4)), ebp),
        13 => a.movups(xmm0, xmmword_ptr(at(r, 16))),
        14 => a.movups(xmmword_ptr(at(r, 16)), xmm0),
        15 => a.vmovups(ymm1, ymmword_ptr(at(r, 32))),
        16 => a.vmovups(ymmword_ptr(at(r, 32)), ymm1),
        17 => {
            a.push(qword_ptr(at(r, 8))).unwrap();
            a.pop(qword_ptr(at(r, 8)))
        }
        18 | 19 => {
            let n = r.below(300);
            a.mov(rsi, at(r, 8 * n)).unwrap();
            a.mov(rdi, at(r, 8 * n)).unwrap();
            a.mov(ecx, n as u32).unwrap();
            match r.below(7) {
                0 => a.rep().movsb(),
                1 => a.rep().movsq(),
                2 => a.rep().stosd(),
                3 => a.repe().cmpsb(),
                4 => a.repne().scasw(),
                5 => a.rep().lodsb(),
                _ => {
                    a.std().unwrap();
                    a.mov(ecx, (n % 20) as u32).unwrap();
                    a.rep().movsb().unwrap();
                    a.cld()
                }
            }
        }
        20 => {
            a.mov(rdi, at(r, 512) & !15).unwrap();
            if r.below(2) == 0 {
                a.fxsave(ptr(rdi))
            } else {
                a.stmxcsr(dword_ptr(rdi))
            }
        }
        _ => a.imul_2(rdx, rax),
    }
    .unwrap();
}

/// Functions in two pages, called in a loop.
pub fn program(a: &mut CodeAssembler, seed: u64) {
    let r = &mut Rng(seed);
    let mut labels: Vec<_> = (0..6).map(|_| a.create_label()).collect();
    let mut top = a.create_label();
    a.mov(r15d, 6).unwrap();
    a.set_label(&mut top).unwrap();
    for _ in 0..10 {
        a.call(labels[r.below(6) as usize]).unwrap();
    }
    a.dec(r15d).unwrap();
    a.jne(top).unwrap();
    a.ud2().unwrap();
    for l in &mut labels {
        for _ in 0..r.below(100) {
            a.nop().unwrap();
        }
        a.set_label(l).unwrap();
        for _ in 0..12 {
            one(a, r);
        }
        a.ret().unwrap();
    }
}
