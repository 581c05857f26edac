//! Accesses: their addresses, their probes, and what helpers have to know of them.

use super::behind::{Tail, Way};
use super::sums::bring_flags;
use super::{Access, Copier, JAE, PAGE_SHIFT, PAIR_WORDS, SHIFT, divides};
use crate::direct::asm::{Asm, At};
use crate::direct::{A, P, S};
use crate::layout;
use iced_x86::{Instruction, Mnemonic, OpAccess};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op};
use sevlab_cpu::thunk;
use sevlab_memctl::{LineFilter, TAG_SHIFT};

/// An address as the guest gives it, with host registers.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) base: Option<u8>,
    pub(super) index: Option<(u8, u8)>,
    pub(super) disp: i64,
    pub(super) segment: Option<u8>,
}

impl Address {
    /// A becomes it.
    pub(super) fn into_a(self, asm: &mut Asm) {
        let Self {
            base,
            index,
            disp,
            segment,
        } = self;
        if let Some(segment) = segment {
            asm.segment_sum(A, segment, base, index);
            if disp != 0 {
                asm.lea(A, At::plain(A, disp as i32));
            }
        } else if base.is_none() && index.is_none() {
            asm.constant(A, disp as u64);
        } else {
            asm.lea(A, At::sum(base, index).displaced(disp as i32));
        }
    }
}

/// A load of so many bytes.
pub(super) fn plain(bytes: u16) -> Access {
    Access {
        tally: 0,
        fetched: 0,
        bytes,
        align: 1,
        write: false,
        whole: false,
    }
}

impl Copier<'_> {
    pub(super) fn address_of(&self, m: &MemRef) -> Option<Address> {
        let (base, index) = self.w.registers(m);
        let a = Address {
            base,
            index,
            disp: m.disp,
            segment: (m.seg != MemRef::NONE).then_some(m.seg),
        };
        let plain = a.base.is_none() && a.index.is_none() && a.segment.is_none();
        (plain || i32::try_from(a.disp).is_ok()).then_some(a)
    }

    /// An access of the current instruction, by `bytes`, whose operand is at P; its way out is `way`.
    pub(super) fn access(
        &mut self,
        address: Address,
        access: Access,
        way: Way,
        flags: bool,
        bytes: Vec<u8>,
    ) {
        let k = self.w.done;
        self.advance(k);
        self.lose_flags();
        let number = self.accesses.number(Access {
            tally: self.tally,
            fetched: self.fetched,
            ..access
        });
        let lines = self.filters.lines;
        let asm = &mut self.w.asm;
        let of = |offset: usize, index: u8| At::entry(lines + offset as i32, index);
        address.into_a(asm);
        asm.rotate(P, A, PAGE_SHIFT - PAIR_WORDS);
        asm.group(4, P, (LineFilter::PAGES as i32 - 1) << PAIR_WORDS);
        asm.lea(S, At::plain(A, i32::from(access.bytes) - 1));
        asm.shift(5, S, SHIFT);
        asm.mem(&[0x03], S, of(LineFilter::ASLEEP, P), true);
        asm.load(P, of(LineFilter::ADDEND, P));
        asm.lea(P, At::sum(Some(P), Some((A, 0))));
        asm.shift(5, A, SHIFT);
        asm.low16(A, A);
        asm.shift(4, S, TAG_SHIFT as u8);
        asm.mem(&[0x33], S, of(0, A), true);
        // What is left of a hit is the slot, and for a load the bit behind the tag.
        asm.group(7, S, 1 << (TAG_SHIFT - u32::from(access.write)));
        let jump = asm.jump(&JAE);
        if flags {
            bring_flags(asm);
        }
        self.faults(way);
        self.w.asm.bytes(&bytes);
        self.safe();
        let asm = &mut self.w.asm;
        asm.low16(S, S);
        asm.mem(&[0x0f, 0x7f], 0, of(LineFilter::STAMP, S), false);
        if access.write {
            let wrote = At {
                disp: lines + LineFilter::WROTE as i32,
                ..At::sum(None, Some((S, 0)))
            };
            asm.mem(&[0xc6], 0, wrote, false);
            asm.bytes(&[1]);
        }
        let back = asm.here();
        self.tails.push(Tail::Access {
            jump,
            address,
            number,
            way,
            flags,
            bytes,
            back,
        });
    }

    /// An access of 8 bytes off a host register, by what `emit` says.
    pub(super) fn word_at(
        &mut self,
        r: u8,
        disp: i32,
        write: bool,
        way: Way,
        emit: impl FnOnce(&mut Asm),
    ) {
        let address = Address {
            base: Some(r),
            index: None,
            disp: disp.into(),
            segment: None,
        };
        self.word_of(address, write, way, emit);
    }

    pub(super) fn word_of(
        &mut self,
        address: Address,
        write: bool,
        way: Way,
        emit: impl FnOnce(&mut Asm),
    ) {
        let mut body = Asm::default();
        emit(&mut body);
        let i = &self.w.insns[self.w.done];
        // A call's or a PUSH's store may fault, and a target may not be the guest's to have.
        let more = i.op == Op::Push || i.control != Control::Next;
        let access = Access {
            write,
            whole: more && !write,
            ..plain(8)
        };
        self.access(address, access, way, false, body.code);
    }

    /// The bytes of an instruction's memory operand, whether it is written, and what its address must be a multiple of.
    pub(super) fn shape(&mut self, i: &Insn, ins: &Instruction) -> Option<Access> {
        let memory = self.info.info(ins).used_memory();
        let [m] = memory else { return None };
        let write = match m.access() {
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write
            | OpAccess::CondWrite
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite => true,
            OpAccess::None | OpAccess::NoMemAccess => return None,
        };
        let bytes = u16::try_from(m.memory_size().size()).ok()?;
        if !(1..=64).contains(&bytes) {
            return None;
        }
        let align = match i.op {
            Op::Thunk => thunk::alignment(ins, bytes),
            Op::Cmpxchg16b => 16,
            _ => 1,
        };
        Some(Access {
            write,
            align,
            whole: divides(i)
                || matches!(m.access(), OpAccess::ReadWrite | OpAccess::ReadCondWrite),
            ..plain(bytes)
        })
    }

    /// Says whether high halves of vector registers are in use behind the instruction: helpers keep them then.
    pub(super) fn note_highs(&mut self, ins: &Instruction) {
        let uses = match ins.mnemonic() {
            Mnemonic::Vzeroupper | Mnemonic::Vzeroall => false,
            _ if self.highs => return,
            _ if (0..ins.op_count()).any(|n| ins.op_register(n).is_ymm()) => true,
            _ => return,
        };
        self.highs = uses;
        let at = At::state(layout::HIGHS);
        self.w.asm.mem(&[0xc7], 0, at, false);
        self.w.asm.bytes(&u32::from(uses).to_le_bytes());
    }
}
