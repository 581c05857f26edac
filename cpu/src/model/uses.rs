//! Which registers an instruction reads and writes, as the `overlap` core model follows data through them.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess,
    Register,
};

use crate::insn::{Insn, Op, Rep};

/// The stack pointer's bit.
pub(super) const RSP: u32 = 1 << 4;
const RBP: u32 = 1 << 5;
/// RCX, RSI and RDI: what string instructions step by themselves.
const STRING: u32 = 1 << 1 | 1 << 6 | 1 << 7;

/// Registers by bit: 0 to 15 general, 16 to 31 vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Uses {
    /// Bytes of the instruction.
    pub(super) len: u8,
    /// Of the addresses of its memory operands.
    pub(super) address: u32,
    /// Read, addresses included.
    pub(super) reads: u32,
    /// Written with a result that depends on what is read.
    pub(super) writes: u32,
    /// RSP becomes a copy of RBP (LEAVE).
    pub(super) from_frame: bool,
    /// A repeated string instruction.
    pub(super) repeats: bool,
    /// Waits for everything before it: LOCK, a fence, a serialising instruction.
    pub(super) waits: bool,
}

fn bit(r: Register) -> u32 {
    let full = r.full_register();
    if full.is_gpr() {
        1 << full.number()
    } else if full.is_vector_register() && full.number() < 16 {
        1 << (16 + full.number())
    } else {
        0
    }
}

impl Uses {
    /// Of an instruction.
    pub(super) fn of(i: &Insn) -> Self {
        let bytes = &i.bytes[..usize::from(i.len.min(15))];
        let x = Decoder::with_ip(64, bytes, i.rip, DecoderOptions::NONE).decode();
        if x.code() == Code::INVALID {
            return Self {
                len: i.len,
                ..Self::default()
            };
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&x);
        let (mut reads, mut writes, mut address) = (0, 0, 0);
        for m in info.used_memory() {
            if m.access() != OpAccess::NoMemAccess {
                address |= bit(m.base()) | bit(m.index());
            }
        }
        for r in info.used_registers() {
            let b = bit(r.register());
            match r.access() {
                OpAccess::Read | OpAccess::CondRead => reads |= b,
                OpAccess::Write => {
                    writes |= b;
                    // What is left of a register that is written in part.
                    if r.register().is_gpr8() || r.register().is_gpr16() {
                        reads |= b;
                    }
                }
                OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite => {
                    reads |= b;
                    writes |= b;
                }
                OpAccess::None | OpAccess::NoMemAccess => {}
            }
        }
        let stack = x.is_stack_instruction()
            || matches!(
                x.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return
            );
        // The stack pointer moves without waiting for what is moved; so do a string's pointers and count.
        if stack {
            writes &= !RSP;
        }
        let string = matches!(i.op, Op::Movs | Op::Stos | Op::Lods | Op::Scas | Op::Cmps);
        if string {
            writes &= !STRING;
        }
        let from_frame = i.op == Op::Leave;
        if from_frame {
            writes |= RBP;
        }
        Self {
            len: i.len,
            address,
            reads: reads | address,
            writes,
            from_frame,
            repeats: string && i.rep != Rep::None,
            waits: i.lock
                || matches!(i.op, Op::Mfence | Op::Cpuid | Op::Iret)
                || x.mnemonic() == Mnemonic::Lfence
                || x.mnemonic() == Mnemonic::Serialize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use iced_x86::code_asm::*;

    fn uses(f: impl FnOnce(&mut CodeAssembler)) -> Uses {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a);
        let code = a.assemble(0x1000).unwrap();
        Uses::of(&decode(0x1000, &code).unwrap())
    }

    const A: u32 = 1;
    const C: u32 = 1 << 1;
    const D: u32 = 1 << 2;

    #[test]
    fn addresses_and_results() {
        let u = uses(|a| a.mov(rax, qword_ptr(rcx + rdx * 8)).unwrap());
        assert_eq!((u.address, u.reads, u.writes), (C | D, C | D, A));
        let u = uses(|a| a.mov(qword_ptr(rcx), rax).unwrap());
        assert_eq!((u.address, u.reads, u.writes), (C, A | C, 0));
        let u = uses(|a| a.xor(eax, eax).unwrap());
        assert_eq!((u.reads, u.writes), (0, A));
        let u = uses(|a| a.mov(al, cl).unwrap());
        assert_eq!((u.reads, u.writes), (A | C, A));
        let u = uses(|a| a.lea(rax, qword_ptr(rcx)).unwrap());
        assert_eq!((u.address, u.reads, u.writes), (0, C, A));
        let u = uses(|a| a.movq(xmm3, rcx).unwrap());
        assert_eq!((u.reads, u.writes), (C, 1 << 19));
    }

    #[test]
    fn pointers_that_step_by_themselves() {
        let u = uses(|a| a.push(rax).unwrap());
        assert_eq!((u.address, u.reads, u.writes), (RSP, A | RSP, 0));
        let u = uses(|a| a.pop(rax).unwrap());
        assert_eq!((u.address, u.reads & A, u.writes), (RSP, 0, A));
        let u = uses(|a| a.ret().unwrap());
        assert_eq!((u.address, u.writes), (RSP, 0));
        let u = uses(|a| a.leave().unwrap());
        assert!(u.from_frame);
        assert_eq!((u.address, u.writes), (RBP, RBP));
        let u = uses(|a| a.rep().lodsb().unwrap());
        assert!(u.repeats);
        assert_eq!(u.writes, A);
        assert!(uses(|a| a.lock().inc(dword_ptr(rax)).unwrap()).waits);
        assert!(uses(|a| a.lfence().unwrap()).waits);
    }
}
