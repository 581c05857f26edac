//! What copying takes whatever becomes of accesses: registers that have no host register, the instruction with its operands replaced, ways out.

use super::asm::{Asm, At};
use super::plan::Plan;
use super::tables::number;
use super::uses::{ordered, wide};
use super::{Direct, Exit, First, Fix, Left, S};
use crate::layout;
use iced_x86::{Encoder, Instruction, OpKind, Register};
use sevlab_cpu::flags::{AF, ARITH};
use sevlab_cpu::insn::{Insn, MemRef, Op, Operand};

/// A copy in the making.
pub(super) struct Writer<'a> {
    pub plan: Plan,
    /// The check's table, and that of targets.
    pub table: i32,
    pub targets: i32,
    pub encoder: &'a mut Encoder,
    pub asm: Asm,
    pub insns: &'a [Insn],
    /// Those of the flags that are kept: what a shift or a product leaves in AF is undefined, and 0 in the interpreter.
    pub kept: u64,
    /// Instructions done.
    pub done: usize,
    pub first: First,
    pub out: Direct,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        plan: Plan,
        (table, targets): (i32, i32),
        encoder: &'a mut Encoder,
        insns: &'a [Insn],
        first: First,
    ) -> Self {
        Self {
            plan,
            table,
            targets,
            encoder,
            asm: Asm::default(),
            insns,
            kept: ARITH,
            done: 0,
            first,
            out: Direct::default(),
        }
    }

    /// Where the guest is when it comes in.
    pub(super) fn head(&self) -> u64 {
        self.insns.first().map_or(0, |i| i.rip)
    }

    /// Registers of the block that have no host register come into one.
    pub(super) fn take(&mut self) {
        let plan = self.plan;
        for (r, from) in plan.moved.into_iter().take(plan.count) {
            let host = plan.host(r);
            self.asm.store(At::gpr(from), host);
            self.asm.load(host, At::gpr(r));
        }
    }

    /// And go back.
    pub(super) fn give(&mut self) {
        let plan = self.plan;
        for (r, from) in plan.moved.into_iter().take(plan.count) {
            let host = plan.host(r);
            if plan.written >> r & 1 != 0 {
                self.asm.store(At::gpr(r), host);
            }
            self.asm.load(host, At::gpr(from));
        }
    }

    /// Adds a small number to MMX register `r`.
    pub(super) fn count(&mut self, r: u8, n: usize) {
        if n != 0 {
            self.asm.add_mmx(r, true, number(self.table, n));
            self.fix(Fix::Table);
        }
    }

    /// The last 32 bits are a distance from something.
    pub(super) fn fix(&mut self, from: Fix) {
        self.out.fixes.push((self.asm.here() - 4, from));
    }

    /// Leaves copied code, A being where the guest goes on.
    pub(super) fn leave(&mut self, why: Left, kept: u64) {
        let af = if kept & AF == 0 {
            Left::UNDEFINED_AF
        } else {
            0
        };
        self.asm.constant(S, u64::from(why.word() | af));
        match why {
            Left::Exit(_) => self.fix(Fix::Exit),
            Left::Step(_) => self.fix(Fix::Step),
            Left::Indirect | Left::Out(_) | Left::Look => {}
        }
        self.asm.jump_to(At::state(layout::LEAVE));
    }

    /// Where the copy goes on behind the instruction, if it does.
    pub(super) fn next(&self) -> Option<u64> {
        self.insns.get(self.done + 1).map(|i| i.rip)
    }

    fn renamed(&self, r: Register) -> Register {
        if !r.is_gpr() {
            return r;
        }
        let from = r.full_register().number() as u8;
        let to = self.plan.host(from);
        if to == from {
            return r;
        }
        let table = match r.size() {
            8 => Register::RAX,
            4 => Register::EAX,
            2 => Register::AX,
            _ => {
                // The byte registers of encodings 4 to 7 come behind AH to BH.
                return match to {
                    0..=3 => Register::AL + u32::from(to),
                    _ => Register::SPL + u32::from(to - 4),
                };
            }
        };
        table + u32::from(to)
    }

    /// The instruction itself as bytes, with its registers replaced, and with `at` for its memory operand if it accesses one.
    pub(super) fn encoded(&mut self, ins: &Instruction, at: Option<At>) -> Option<Vec<u8>> {
        let mut ins = *ins;
        if let Some(at) = at {
            let segment = if at.gs { Register::GS } else { Register::None };
            ins.set_segment_prefix(segment);
            ins.set_memory_base(at.base.map_or(Register::None, wide));
            let (index, scale) = at
                .index
                .map_or((Register::None, 0), |(r, scale)| (wide(r), scale));
            ins.set_memory_index(index);
            ins.set_memory_index_scale(1 << scale);
            ins.set_memory_displacement64(i64::from(at.disp) as u64);
            ins.set_memory_displ_size(match at.disp {
                _ if at.base.is_none() => 8,
                0 => 0,
                -128..128 => 1,
                _ => 8,
            });
            ins.set_code(ordered(ins.code()));
        } else if ins.op_kinds().any(|k| k == OpKind::Memory) {
            ins.set_segment_prefix(Register::None);
            let (base, index) = (ins.memory_base(), ins.memory_index());
            ins.set_memory_base(self.renamed(base));
            ins.set_memory_index(self.renamed(index));
            ins.set_memory_displ_size(8);
        }
        for n in 0..ins.op_count() {
            if ins.op_kind(n) == OpKind::Register {
                ins.set_op_register(n, self.renamed(ins.op_register(n)));
            }
        }
        ins.set_has_rep_prefix(false);
        ins.set_has_repne_prefix(false);
        let encoded = self.encoder.encode(&ins, 0);
        // What it has written before it found an error is there, too.
        let bytes = self.encoder.take_buffer();
        encoded.ok().map(|_| bytes)
    }

    /// Copies the instruction, as [`Writer::encoded`] gives it.
    pub(super) fn emit(&mut self, ins: &Instruction, at: Option<At>) -> Option<()> {
        let mut bytes = self.encoded(ins, at)?;
        self.asm.bytes(&bytes);
        bytes.clear();
        self.encoder.set_buffer(bytes);
        Some(())
    }

    /// The host registers of a memory operand: base, and index with its scale.
    pub(super) fn registers(&self, m: &MemRef) -> (Option<u8>, Option<(u8, u8)>) {
        let host = |r: u8| (r != MemRef::NONE).then(|| self.plan.host(r));
        (host(m.base), host(m.index).map(|r| (r, m.scale & 3)))
    }

    /// The address of an operand without registers as a number, if that is all of the instruction (a LEA): the host register that has it, and
    /// the number.
    pub(super) fn load_address(&mut self, i: &Insn) -> Option<(u8, u64)> {
        let Operand::Gpr(r) = i.ops[0] else {
            return None;
        };
        if i.width.bytes() < 4 || i.mem.addr32 {
            return None;
        }
        let (r, value) = (self.plan.host(r), i.mem.disp as u64 & i.width.mask());
        self.asm.constant(r, value);
        Some((r, value))
    }

    /// A branch of the current instruction to where the copy does not go on: its jump, and where it goes to.
    pub(super) fn branch_aside(&mut self, i: &Insn, cc: u8, to: u64) -> (u32, u64) {
        let falls = self.next() == Some(i.next_rip());
        let (cc, to) = if falls {
            (cc, to)
        } else {
            (cc ^ 1, i.next_rip())
        };
        (self.asm.jump(&[0x0f, 0x80 | cc]), to)
    }

    /// Aims a jump that is not linked at what comes next, and numbers it.
    pub(super) fn number_exit(&mut self, jump: u32, to: u64, line: u64) -> Left {
        self.asm.aim(jump);
        let number = self.first.exit + self.out.exits.len() as u32;
        let stub = self.asm.here();
        self.out.exits.push(Exit {
            jump,
            stub,
            to,
            line,
        });
        Left::Exit(number)
    }

    /// The current instruction's way to the interpreter, behind which the copy goes on at what comes next.
    pub(super) fn number_step(&self) -> Left {
        Left::Step(self.first.step + self.out.steps.len() as u32)
    }

    /// What comes next is behind the step that [`Writer::number_step`] numbered.
    pub(super) fn resume(&mut self) {
        let from = (self.insns.len() - self.done) as u32;
        self.out.steps.push((self.done, self.asm.here(), from));
        self.kept = ARITH;
        self.take();
    }

    /// An instruction has been copied: whether AF is kept from here on.
    pub(super) fn note_af(&mut self, i: &Insn) {
        if i.flags_out & AF != 0 {
            let undefined = matches!(
                i.op,
                Op::Shl | Op::Shr | Op::Sar | Op::Shld | Op::Shrd | Op::Imul2 | Op::Imul3
            );
            self.kept = if undefined { ARITH & !AF } else { ARITH };
        }
    }
}

/// What a return takes off the stack.
pub(super) fn returned(i: &Insn) -> Option<i32> {
    let more = match i.ops[0] {
        Operand::Imm(v) => i32::try_from(v).ok().filter(|v| *v >= 0)?,
        _ => 0,
    };
    Some(8 + more)
}
