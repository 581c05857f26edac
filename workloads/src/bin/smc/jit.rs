//! A small JIT: random expressions over two variables, compiled to stack code in an arena that is used again and
//! again, and compared with their evaluation.

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{Pages, RWX, Random};

enum Node {
    X,
    Y,
    Constant(u64),
    Unary(u8, Box<Node>),
    Binary(u8, Box<Node>, Box<Node>),
}

fn random(r: &mut Random, depth: u32) -> Node {
    match r.below(if depth == 0 { 3 } else { 12 }) {
        0 => Node::X,
        1 => Node::Y,
        2 => Node::Constant(r.draw() >> r.below(60)),
        3..5 => Node::Unary(r.below(4) as u8, Box::new(random(r, depth - 1))),
        _ => Node::Binary(
            r.below(9) as u8,
            Box::new(random(r, depth - 1)),
            Box::new(random(r, depth - 1)),
        ),
    }
}

fn value(node: &Node, x: u64, y: u64) -> u64 {
    match node {
        Node::X => x,
        Node::Y => y,
        Node::Constant(c) => *c,
        Node::Unary(op, a) => {
            let a = value(a, x, y);
            match op {
                0 => a.wrapping_neg(),
                1 => !a,
                2 => a << 7,
                _ => a.swap_bytes(),
            }
        }
        Node::Binary(op, a, b) => {
            let (a, b) = (value(a, x, y), value(b, x, y));
            match op {
                0 => a.wrapping_add(b),
                1 => a.wrapping_sub(b),
                2 => a.wrapping_mul(b),
                3 => a ^ b,
                4 => a & b,
                5 => a | b,
                6 => u64::from(a < b),
                7 => a / (b | 1),
                _ => a.rotate_right((b & 63) as u32),
            }
        }
    }
}

/// Pushes the value of a node; `x` is in rdi, `y` in rsi.
fn compile(node: &Node, code: &mut Vec<u8>) {
    match node {
        Node::X => code.push(0x57),
        Node::Y => code.push(0x56),
        Node::Constant(c) => {
            code.extend([0x48, 0xb8]); // mov rax, imm64; push rax
            code.extend(c.to_le_bytes());
            code.push(0x50);
        }
        Node::Unary(op, a) => {
            compile(a, code);
            code.push(0x58); // pop rax
            match op {
                0 => code.extend([0x48, 0xf7, 0xd8]),       // neg rax
                1 => code.extend([0x48, 0xf7, 0xd0]),       // not rax
                2 => code.extend([0x48, 0xc1, 0xe0, 0x07]), // shl rax, 7
                _ => code.extend([0x48, 0x0f, 0xc8]),       // bswap rax
            }
            code.push(0x50);
        }
        Node::Binary(op, a, b) => {
            compile(a, code);
            compile(b, code);
            code.extend([0x59, 0x58]); // pop rcx; pop rax
            code.extend_from_slice(match op {
                0 => &[0x48, 0x01, 0xc8],       // add rax, rcx
                1 => &[0x48, 0x29, 0xc8],       // sub rax, rcx
                2 => &[0x48, 0x0f, 0xaf, 0xc1], // imul rax, rcx
                3 => &[0x48, 0x31, 0xc8],       // xor rax, rcx
                4 => &[0x48, 0x21, 0xc8],       // and rax, rcx
                5 => &[0x48, 0x09, 0xc8],       // or rax, rcx
                6 => &[0x48, 0x39, 0xc8, 0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0], // cmp; setb al; movzx eax, al
                7 => &[0x31, 0xd2, 0x48, 0x83, 0xc9, 0x01, 0x48, 0xf7, 0xf1], // xor edx, edx; or rcx, 1; div rcx
                _ => &[0x48, 0xd3, 0xc8],                                     // ror rax, cl
            });
            code.push(0x50);
        }
    }
}

/// `f(x, y, n)`: the expression for `x`, `x + 1`, ... `n` times, each rotated into the last.
fn function(node: &Node) -> Vec<u8> {
    let mut code = vec![
        0x53, 0x55, 0x48, 0x89, 0xd3, 0x31,
        0xed, // push rbx; push rbp; mov rbx, rdx; xor ebp, ebp
    ];
    let top = code.len();
    compile(node, &mut code);
    // pop rax; rol rbp, 1; add rbp, rax; inc rdi; dec rbx; jnz top
    code.extend([
        0x58, 0x48, 0xd1, 0xc5, 0x48, 0x01, 0xc5, 0x48, 0xff, 0xc7, 0x48, 0xff, 0xcb, 0x0f, 0x85,
    ]);
    let back = top as i32 - (code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code.extend([0x48, 0x89, 0xe8, 0x5d, 0x5b, 0xc3]); // mov rax, rbp; pop rbp; pop rbx; ret
    code
}

pub fn run(s: &Settings) -> String {
    let arena = Pages::private(64 * 1024, RWX);
    let mut r = Random(20);
    let functions = s.count / 100;
    let (mut at, mut bytes, mut all) = (0, 0, 0u64);
    for i in 0..functions {
        let depth = 2 + r.below(6) as u32;
        let node = random(&mut r, depth);
        let code = function(&node);
        if at + code.len() > arena.size() {
            at = r.below(64) as usize; // over the old ones, in other places
        }
        arena.put(at, &code);
        // One in 32 is hot enough to be worth a translation.
        let turns = if i % 32 == 31 { 5000 } else { 1 + r.below(8) };
        for _ in 0..2 {
            let (x, y) = (r.draw(), r.draw());
            let mut expected = 0u64;
            for k in 0..turns {
                expected = expected
                    .rotate_left(1)
                    .wrapping_add(value(&node, x.wrapping_add(k), y));
            }
            // SAFETY: the function was just put there; it keeps to the convention.
            let got = unsafe { arena.call(at, x, y, turns) };
            assert_eq!(
                got, expected,
                "function {i} at {at:#x} computes something else"
            );
            all = all.rotate_left(7) ^ got;
        }
        at += code.len() + r.below(16) as usize;
        bytes += code.len();
    }
    format!("{functions} functions of {bytes} bytes, results {all:#x}")
}
