//! Blocks that run as copies of the guest's own instructions. That they do what the interpreter does is seen by random programs
//! (`diff.rs`).

#[path = "diff/forms.rs"]
mod forms;
#[path = "diff/machine.rs"]
mod machine;
#[path = "diff/program.rs"]
mod program;

use iced_x86::code_asm::*;
use machine::{DATA, Kind, Machine, Start};
use program::assemble;
use sevlab_jit::JitOptions;

/// Blocks are copied at once, and nothing is compiled.
fn copying() -> JitOptions {
    JitOptions {
        threshold: u32::MAX,
        direct: 1,
        background: false,
        code_bytes: 4 << 20,
        ..JitOptions::default()
    }
}

/// Blocks run as copies of the guest's own instructions, and leave at an access that faults as precisely as the interpreter does:
/// to a page that is not in the view yet (then the access is made again), to no page, beyond the view, to no address at all.
#[test]
fn copies_fault_precisely() {
    for far in [0x1000, 1 << 45, 0x7fff_ffff_f000, 1 << 62, 1 << 63] {
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.mov(ecx, 20)?;
            a.set_label(&mut top)?;
            a.push(rcx)?;
            a.add(qword_ptr(rbx + 8), rcx)?;
            a.lea(rdx, ptr(rdx + rcx))?;
            a.cmp(ecx, 3)?;
            a.cmove(rbx, r15)?;
            a.mov(rsi, qword_ptr(rbx + rdi * 8))?;
            a.pop(rcx)?;
            a.sub(ecx, 1)?;
            a.jne(top)?;
            a.cpuid()
        });
        let mut start = Start::new(4, &code);
        (start.gpr[3], start.gpr[7], start.gpr[15]) = (DATA, 0, far);
        let mut plain = Machine::new(Kind::Plain, None);
        plain.reset(&start);
        let expected = plain.run().expect("it ends");
        let mut m = Machine::new(Kind::Plain, Some(copying()));
        m.reset(&start);
        let got = m.run().expect("engines have no budget");
        let stats = m.engine.as_ref().expect("made with one").stats();
        assert_eq!((got.gpr, got.rip), (expected.gpr, expected.rip), "{far:#x}");
        assert_eq!((got.retired, got.flags), (expected.retired, expected.flags));
        assert_eq!(format!("{:?}", got.stop), format!("{:?}", expected.stop));
        assert_eq!(stats.entries, 0);
        assert!(stats.direct >= 1, "{stats:?}");
    }
}

/// An address that is a sum with the stack pointer is another one once that has moved.
#[test]
fn sums_follow_the_stack_pointer() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(r15d, 5)?;
        a.set_label(&mut top)?;
        a.sub(rsp, 64)?;
        a.mov(qword_ptr(rsp + rdi * 8), r15)?;
        a.push(r15)?;
        a.add(rax, qword_ptr(rsp + rdi * 8))?;
        a.pop(rcx)?;
        a.xor(rdx, qword_ptr(rsp + rdi * 8))?;
        a.add(rsp, 64)?;
        a.add(rax, qword_ptr(rsp + rdi * 8))?;
        a.dec(r15d)?;
        a.jne(top)?;
        a.cpuid()
    });
    let mut start = Start::new(4, &code);
    start.gpr[7] = 1;
    let mut plain = Machine::new(Kind::Plain, None);
    plain.reset(&start);
    let expected = plain.run().expect("it ends");
    let mut m = Machine::new(Kind::Plain, Some(copying()));
    for _ in 0..3 {
        m.reset(&start);
        assert_eq!(m.run().expect("engines have no budget").gpr, expected.gpr);
    }
}

/// A conversion whose store faults has noted no exceptions.
#[test]
fn a_conversion_that_faults_notes_nothing() {
    let code = assemble(|a| {
        a.mov(ecx, 1)?;
        a.mov(edx, 2)?;
        a.vcvtps2ph(xmmword_ptr(rsi), ymm15, 0x7f)?;
        a.cpuid()
    });
    let mut start = Start::new(4, &code);
    (start.gpr[6], start.mxcsr) = (1 << 40, 0x1f80);
    // Inexact.
    (start.xmm[15], start.ymmh[15]) = ([0x3f80_0001; 2], [0x3f80_0001; 2]);
    let mut m = Machine::new(Kind::Plain, Some(copying()));
    for _ in 0..3 {
        m.reset(&start);
        let out = m.run().expect("engines have no budget");
        assert_eq!(out.mxcsr, 0x1f80);
    }
}

/// Some processors take an operand of SHA's that is not aligned; the interpreter does not, so copies must not.
#[test]
fn an_operand_of_sha_has_to_be_aligned() {
    if !std::arch::is_x86_feature_detected!("sha") {
        return;
    }
    let code = assemble(|a| {
        a.mov(ecx, 1)?;
        a.sha1msg1(xmm1, xmmword_ptr(rsi))?;
        a.add(ecx, 1)?;
        a.cpuid()
    });
    let mut start = Start::new(4, &code);
    start.gpr[6] = DATA + 7;
    let mut plain = Machine::new(Kind::Plain, None);
    plain.reset(&start);
    let expected = plain.run().expect("it ends");
    let mut m = Machine::new(Kind::Plain, Some(copying()));
    for _ in 0..3 {
        m.reset(&start);
        let got = m.run().expect("engines have no budget");
        assert_eq!((got.rip, got.gpr[1]), (expected.rip, 1));
        assert_eq!(got.xmm, expected.xmm);
        assert_eq!(format!("{:?}", got.stop), format!("{:?}", expected.stop));
    }
    let stats = m.engine.as_ref().expect("made with one").stats();
    assert!(stats.direct >= 1, "{stats:?}");
}
