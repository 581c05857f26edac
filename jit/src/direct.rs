//! Blocks that run as they are: the guest's own instructions on the host's registers.
//!
//! The problem: most of a program's blocks run some hundred times. That is too little for a compilation to pay, and the interpreter
//! takes twenty times as long for an instruction as the host.
//!
//! The approach: the guest's instructions are the host's. Where guest memory is in the view, a block's integer instructions are
//! copied, in some microseconds: guest registers are loaded into the host registers of the same name, memory operands get GS, whose
//! base is the view's, and what changed is stored. Two registers are the host's own (RSP, and R15 for the state), so the
//! guest's go into registers that the block does not use. From the first instruction that is not copied on, the interpreter
//! goes on.
//!
//! Invariants:
//! 1. Each address was checked to lie in the view before it is used, but for a displacement and some pushes, for which the view's
//!    guards are wide enough. The check touches no flags: it reads a table at the address's high bits, of which only the
//!    first entry can be read.
//! 2. Until the access of an instruction has been made, no guest register of it has changed. So a fault of the host's
//!    ([`crate::faults`]) goes on at a way out that stores the registers and says how many instructions were done.
#![allow(unsafe_code)] // maps the table of the check, sets the GS base, asks the host for flags

mod asm;
mod exact;

use crate::layout;
use asm::At;
use exact::{exact_prefix, may_write, registers, touches};
use iced_x86::{Decoder, DecoderOptions, Encoder, Mnemonic, OpKind, Register};
use sevlab_cpu::flags::{AF, ARITH, LazyFlags};
use sevlab_cpu::insn::{Control, Insn, MemRef, Op, Operand};
use std::cell::Cell;
use std::sync::OnceLock;

const RSP: u8 = 4;
const R15: u8 = 15;
const RAX: u8 = 0;
const RDX: u8 = 2;
const RBP: u8 = 5;
const RDI: u8 = 7;
/// RBX, RBP, R12 to R14: the caller's. R15 is always saved.
const CALLEE_SAVED: u16 = 0x7028;
/// Guest segment number of FS.
const FS: u8 = 4;
/// log2 of the view's size: what has higher bits is not in it.
const VIEW_BITS: u8 = 45;
/// A stack pointer that was checked may move so far by one instruction.
const NEAR: i64 = 1 << 20;

/// A block's code.
pub(crate) struct Direct {
    pub code: Vec<u8>,
    /// Instructions that it runs, from the first on.
    pub insns: u8,
    /// Whether the flags' record has to be explicit before.
    pub needs_flags: bool,
    /// Where an instruction's code begins that may fault, and its way out; both as offsets in the code. Each reaches to the next.
    pub sites: Vec<(u32, u32)>,
}

/// Whether this host and process can run such code.
pub(crate) fn is_possible() -> bool {
    std::arch::is_x86_feature_detected!("bmi2") && table().is_some()
}

/// The address of the check's table, in the lowest 2 GiB.
fn table() -> Option<i32> {
    static TABLE: OnceLock<Option<i32>> = OnceLock::new();
    *TABLE.get_or_init(|| {
        const PAGE: usize = 4096;
        // An entry for each value of the 16 bits looked at, the first of which ends a page.
        const BYTES: usize = PAGE + (8 << 16);
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        (1..8).map(|n| n * 0x0800_0000_usize).find_map(|at| {
            let want = std::ptr::without_provenance_mut(at);
            // SAFETY: a new mapping where nothing is; of it one page can be read.
            unsafe {
                let got = libc::mmap(want, BYTES, libc::PROT_NONE, flags, -1, 0);
                if got != want {
                    if got != libc::MAP_FAILED {
                        libc::munmap(got, BYTES);
                    }
                    return None;
                }
                (libc::mprotect(got, PAGE, libc::PROT_READ) == 0).then_some((at + PAGE - 8) as i32)
            }
        })
    })
}

/// Makes `base` the base of GS on this thread, which the simulator has no other use for.
pub(crate) fn set_gs(base: u64) {
    const ARCH_SET_GS: i32 = 0x1001;
    thread_local! {
        static GS: Cell<u64> = const { Cell::new(0) };
    }
    if GS.replace(base) != base {
        // SAFETY: nothing on this thread is addressed by GS but what this module makes.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}

/// Copies a block.
pub(crate) struct Maker {
    encoder: Encoder,
}

impl Maker {
    pub(crate) fn new() -> Self {
        Self {
            encoder: Encoder::new(64),
        }
    }

    /// The code of the instructions from the block's first on that can be copied; `None` if that is not worth it.
    pub(crate) fn make(&mut self, insns: &[Insn]) -> Option<Direct> {
        let table = table()?;
        let (plan, n) = Plan::of(insns)?;
        // An instruction that can't be encoded so ends what is copied.
        let mut count = exact_prefix(&insns[..n]);
        loop {
            if count < 2 {
                return None;
            }
            let mut code = Copier::new(plan, table, &mut self.encoder);
            code.begin(&insns[..count]);
            match insns[..count].iter().position(|i| code.insn(i).is_none()) {
                None => return Some(code.end(count)),
                Some(k) => count = exact_prefix(&insns[..k]),
            }
        }
    }
}

/// Which host registers stand for what.
#[derive(Clone, Copy)]
struct Plan {
    /// General registers that the instructions use.
    used: u16,
    /// Those that they may write.
    written: u16,
    /// Where the guest's RSP and R15 are.
    rsp: u8,
    r15: u8,
    /// Two registers for what comes between.
    a: u8,
    s: u8,
}

impl Plan {
    /// The registers of a block, and how many of its instructions can be copied with them.
    fn of(insns: &[Insn]) -> Option<(Self, usize)> {
        let (mut used, mut written, mut n) = (0u16, 0u16, 0);
        for i in insns {
            let Some((u, w)) = registers(i) else { break };
            let all = used | u;
            // Of 14, two are for what comes between, and RSP and R15 each take one.
            if (all & 0x7fef).count_ones() + u32::from(all >> RSP & 1) + u32::from(all >> R15) > 12
            {
                break;
            }
            (used, written, n) = (all, written | w, n + 1);
        }
        // Low ones need no prefix, and the callee-saved ones have to be saved.
        let mut free = [6, 7, 2, 1, 0, 8, 9, 10, 11, 3, 5, 12, 13, 14]
            .into_iter()
            .filter(|r| used >> r & 1 == 0);
        let mut take = |wanted: bool| if wanted { free.next() } else { Some(RSP) };
        let (rsp, r15) = (take(used >> RSP & 1 != 0)?, take(used >> R15 & 1 != 0)?);
        let (a, s) = (take(true)?, take(true)?);
        let plan = Self {
            used,
            written,
            rsp,
            r15,
            a,
            s,
        };
        Some((plan, n))
    }

    /// The host register that a guest register is in.
    fn host(&self, r: u8) -> u8 {
        match r {
            RSP => self.rsp,
            R15 => self.r15,
            r => r,
        }
    }
}

struct Copier<'a> {
    plan: Plan,
    table: i32,
    encoder: &'a mut Encoder,
    code: Vec<u8>,
    /// Host registers whose value is known to be in the view.
    checked: u16,
    /// Guest instructions done.
    done: u8,
    /// Flags that are in the host's flags: all that were written so far, or all.
    flags: u64,
    /// Those of them that are kept: what a shift or a product leaves in AF is undefined, and 0 in the interpreter.
    kept: u64,
    needs_flags: bool,
    /// Instructions that may fault: where they begin, how many were done before, and the host's flags that are kept.
    faulting: Vec<(u32, u8, Option<u64>)>,
}

impl<'a> Copier<'a> {
    fn new(plan: Plan, table: i32, encoder: &'a mut Encoder) -> Self {
        Self {
            plan,
            table,
            encoder,
            code: Vec::with_capacity(512),
            checked: 0,
            done: 0,
            flags: 0,
            kept: ARITH,
            needs_flags: false,
            faulting: Vec::new(),
        }
    }

    /// Faults unless the register's value is an address in the view. What has bits 61 to 63 alone passes: the access faults.
    fn check(&mut self, r: u8) {
        if self.checked >> r & 1 != 0 {
            return;
        }
        self.check_bits(r, VIEW_BITS);
        self.checked |= 1 << r;
    }

    /// Faults unless an address to go to is in the view.
    fn check_target(&mut self, r: u8) {
        self.check_bits(r, VIEW_BITS);
        self.check_bits(r, 48);
    }

    /// Faults unless the 16 bits of the register from one on are clear.
    fn check_bits(&mut self, r: u8, from: u8) {
        let s = self.plan.s;
        // rorx s, r, from
        let (not_reg, not_rm) = (!(s >> 3) & 1, !(r >> 3) & 1);
        self.code
            .extend_from_slice(&[0xc4, not_reg << 7 | 0x40 | not_rm << 5 | 3, 0xfb, 0xf0]);
        self.code
            .extend_from_slice(&[0xc0 | (s & 7) << 3 | r & 7, from]);
        // movzx s, s16
        self.between(&[0x0f, 0xb7], s, s, false);
        let entry = At {
            disp: self.table,
            ..At::sum(None, Some((s, 3)))
        };
        self.mem(&[0x8b], s, entry, false);
    }

    /// The host operand for the guest's memory operand, checked.
    fn operand(&mut self, m: &MemRef) -> Option<At> {
        let a = self.plan.a;
        let disp = i32::try_from(m.disp).ok();
        let base = (m.base != MemRef::NONE).then(|| self.plan.host(m.base & 15));
        let index = (m.index != MemRef::NONE).then(|| (self.plan.host(m.index & 15), m.scale & 3));
        if base.is_none() && index.is_none() && m.seg == MemRef::NONE {
            // The processor's own, or an address as a number.
            let va = m.disp as u64;
            if va >> VIEW_BITS != 0 {
                return None;
            }
            self.constant(a, va);
            return Some(At::guest(a, 0));
        }
        let disp = disp?;
        if m.seg == MemRef::NONE && index.is_none() {
            let base = base?;
            self.check(base);
            return Some(At::guest(base, disp));
        }
        if m.seg == MemRef::NONE {
            self.lea(a, At::sum(base, index));
        } else {
            self.load(a, At::state(layout::seg_base(usize::from(m.seg))));
            for (r, scale) in base.map(|b| (b, 0)).into_iter().chain(index) {
                self.lea(a, At::sum(Some(a), Some((r, scale))));
            }
        }
        self.checked &= !(1 << a);
        self.check(a);
        Some(At::guest(a, disp))
    }

    fn begin(&mut self, insns: &[Insn]) {
        // Flags that were there before are wanted where one is read that was not written, or only some are written.
        let mut known = 0;
        for i in insns {
            let may = may_write(i);
            self.needs_flags |= i.flags_in & !known != 0;
            known |= i.flags_out;
            self.needs_flags |= may != 0 && known != ARITH;
        }
        let plan = self.plan;
        for r in saved(&plan) {
            self.push(r);
        }
        self.between(&[0x89], RDI, R15, true);
        if self.needs_flags {
            // push [r15+..]; popfq
            self.mem(&[0xff], 6, At::state(layout::CC + 24), false);
            self.code.push(0x9d);
            self.flags = ARITH;
        }
        for r in (0..16).filter(|r| plan.used >> r & 1 != 0) {
            self.load(plan.host(r), At::state(layout::gpr(usize::from(r))));
        }
    }

    /// Puts a register on the guest's stack, whose pointer has been checked.
    fn guest_push(&mut self, r: u8) {
        let sp = self.plan.rsp;
        self.store(At::guest(sp, -8), r);
        self.lea(sp, At::plain(sp, -8));
    }

    /// Copies an instruction.
    fn insn(&mut self, i: &Insn) -> Option<()> {
        let plan = self.plan;
        let (a, s, sp) = (plan.a, plan.s, plan.rsp);
        let begins = self.code.len() as u32;
        if touches(i) {
            let kept = self.kept_flags();
            self.faulting.push((begins, self.done, kept));
        }
        let rip = At::state(layout::RIP);
        match (i.op, i.control) {
            (Op::Nop, _) => {}
            (Op::Push, _) => {
                self.check(sp);
                match i.ops[0] {
                    Operand::Gpr(r) => self.guest_push(plan.host(r & 15)),
                    Operand::Imm(v) => {
                        self.constant(a, v as u64);
                        self.guest_push(a);
                    }
                    _ => return None,
                }
            }
            (Op::Pop, _) => {
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                self.check(sp);
                let r = plan.host(r & 15);
                self.load(r, At::guest(sp, 0));
                self.checked &= !(1 << r);
                self.lea(sp, At::plain(sp, 8));
            }
            (Op::Leave, _) => {
                self.check(RBP);
                self.load(a, At::guest(RBP, 0));
                self.lea(sp, At::plain(RBP, 8));
                self.between(&[0x89], a, RBP, true);
                self.checked &= !(1 << a | 1 << RBP);
                self.checked |= 1 << sp;
            }
            (_, Control::Jump(to)) => {
                self.constant(a, to);
                self.store(rip, a);
            }
            (Op::Jcc(cc), Control::Branch(to)) => {
                self.constant(a, i.next_rip());
                self.constant(s, to);
                self.between(&[0x0f, 0x40 | cc as u8], a, s, true);
                self.store(rip, a);
            }
            (_, Control::Call(to)) => {
                self.check(sp);
                self.constant(a, i.next_rip());
                self.guest_push(a);
                self.constant(a, to);
                self.store(rip, a);
            }
            (_, Control::Return) => {
                let more = match i.ops[0] {
                    Operand::Imm(v) => i32::try_from(v).ok().filter(|v| *v >= 0)?,
                    _ => 0,
                };
                self.check(sp);
                self.load(a, At::guest(sp, 0));
                self.check_target(a);
                self.lea(sp, At::plain(sp, 8 + more));
                self.store(rip, a);
            }
            (_, Control::Indirect | Control::IndirectCall) => {
                match i.ops[0] {
                    Operand::Gpr(r) => self.between(&[0x89], plan.host(r & 15), a, true),
                    Operand::Mem => {
                        let at = self.operand(&i.mem)?;
                        self.load(a, at);
                    }
                    _ => return None,
                }
                self.check_target(a);
                if i.control == Control::IndirectCall {
                    self.check(sp);
                    self.constant(s, i.next_rip());
                    self.guest_push(s);
                }
                self.store(rip, a);
            }
            (Op::Lea, _) if i.mem.base == MemRef::NONE && i.mem.index == MemRef::NONE => {
                let Operand::Gpr(r) = i.ops[0] else {
                    return None;
                };
                if i.width.bytes() < 4 || i.mem.addr32 {
                    return None;
                }
                let r = plan.host(r & 15);
                self.constant(r, i.mem.disp as u64 & i.width.mask());
                self.checked &= !(1 << r);
            }
            _ => self.copy(i)?,
        }
        self.flags |= may_write(i);
        if i.flags_out & AF != 0 {
            let clears = matches!(i.op, Op::Shl | Op::Shr | Op::Sar | Op::Imul2 | Op::Imul3);
            self.kept = if clears { ARITH & !AF } else { ARITH };
        }
        self.done += 1;
        Some(())
    }

    /// The instruction itself, with its registers and its memory operand replaced.
    fn copy(&mut self, i: &Insn) -> Option<()> {
        let plan = self.plan;
        let bytes = &i.bytes[..usize::from(i.len).min(15)];
        let mut ins = Decoder::with_ip(64, bytes, i.rip, DecoderOptions::NONE).decode();
        // The guest's processor may take an instruction for another than the host does. MOVNTI is a plain store for the interpreter,
        // which therefore needs no fences; as itself it would be ordered by none.
        if ins.is_invalid()
            || ins.len() != bytes.len()
            || ins.code() as u16 != i.code
            || ins.mnemonic() == Mnemonic::Movnti
        {
            return None;
        }
        let is_mem = (0..ins.op_count()).any(|n| ins.op_kind(n) == OpKind::Memory);
        if is_mem && i.op != Op::Lea {
            let at = self.operand(&i.mem)?;
            ins.set_segment_prefix(Register::GS);
            ins.set_memory_base(wide(at.base?));
            ins.set_memory_index(Register::None);
            ins.set_memory_index_scale(1);
            ins.set_memory_displacement64(i64::from(at.disp) as u64);
            ins.set_memory_displ_size(8);
        } else if is_mem {
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
        let encoded = self.encoder.encode(&ins, 0);
        // What it has written before it found an error is there, too.
        let mut bytes = self.encoder.take_buffer();
        encoded.ok()?;
        self.code.append(&mut bytes);
        let small = matches!(i.op, Op::Add | Op::Sub)
            && i.width.bytes() == 8
            && matches!(i.ops, [Operand::Gpr(RSP), Operand::Imm(v), ..] if v.abs() < NEAR);
        let (_, written) = registers(i)?;
        for r in (0..16).filter(|r| written >> r & 1 != 0) {
            if !(r == RSP && small) {
                self.checked &= !(1 << plan.host(r));
            }
        }
        Some(())
    }

    fn renamed(&self, r: Register) -> Register {
        let full = r.full_register();
        let to = match full {
            Register::RSP => self.plan.rsp,
            Register::R15 => self.plan.r15,
            _ => return r,
        };
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

    /// The host's flags that are the guest's, if they are.
    fn kept_flags(&self) -> Option<u64> {
        (self.flags != 0).then_some(self.kept)
    }

    /// Stores registers and flags.
    fn store_all(&mut self, flags: Option<u64>) {
        let plan = self.plan;
        for r in (0..16).filter(|r| plan.written >> r & 1 != 0) {
            self.store(At::state(layout::gpr(usize::from(r))), plan.host(r));
        }
        if let Some(kept) = flags {
            self.code.push(0x9c);
            let a = plan.a;
            self.pop(a);
            // and a, kept
            self.code
                .extend_from_slice(&[0x40 | a >> 3, 0x81, 0xe0 | a & 7]);
            self.code.extend_from_slice(&(kept as u32).to_le_bytes());
            let explicit = LazyFlags::explicit(0).op as u32;
            self.mem(&[0xc7], 0, At::state(layout::CC), true);
            self.code.extend_from_slice(&explicit.to_le_bytes());
            self.store(At::state(layout::CC + 24), a);
        }
    }

    fn leave(&mut self) {
        let saved: Vec<u8> = saved(&self.plan).collect();
        for r in saved.into_iter().rev() {
            self.pop(r);
        }
        self.code.push(0xc3);
    }

    /// The ways out.
    fn end(mut self, count: usize) -> Direct {
        let end_of_faulting = self.code.len() as u32;
        self.store_all(self.kept_flags());
        self.code.push(0xb8);
        self.code.extend_from_slice(&(count as u32).to_le_bytes());
        self.leave();
        let s = self.plan.s;
        let faulting = std::mem::take(&mut self.faulting);
        let mut sites = Vec::with_capacity(faulting.len() + 1);
        for kept in [None, Some(ARITH), Some(ARITH & !AF)] {
            let mut jumps = Vec::new();
            for &(begins, done, flags) in &faulting {
                if flags == kept {
                    sites.push((begins, self.code.len() as u32));
                    self.constant(s, u64::from(done));
                    self.code.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
                    jumps.push(self.code.len());
                }
            }
            if jumps.is_empty() {
                continue;
            }
            let here = self.code.len();
            for from in jumps {
                let by = (here - from) as i32;
                self.code[from - 4..from].copy_from_slice(&by.to_le_bytes());
            }
            self.store_all(kept);
            self.between(&[0x89], s, RAX, false);
            self.leave();
        }
        sites.sort_unstable();
        sites.push((end_of_faulting, u32::MAX));
        Direct {
            code: self.code,
            insns: count as u8,
            needs_flags: self.needs_flags,
            sites,
        }
    }
}

/// Registers that the caller gets back as they were.
fn saved(plan: &Plan) -> impl Iterator<Item = u8> + use<> {
    let mut hosts = 1u16 << plan.a | 1 << plan.s;
    for r in (0..16).filter(|r| plan.used >> r & 1 != 0) {
        hosts |= 1 << plan.host(r);
    }
    (0..16).filter(move |r| *r == R15 || hosts & CALLEE_SAVED & 1 << r != 0)
}

fn wide(r: u8) -> Register {
    Register::RAX + u32::from(r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;
    use sevlab_cpu::decode;

    fn copied(emit: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Option<u8> {
        let mut a = CodeAssembler::new(64).expect("64 bits");
        emit(&mut a).expect("operands that fit");
        let code = a.assemble(0x1000).expect("it assembles");
        let (mut at, mut insns) = (0, Vec::new());
        while at < code.len() {
            let i = decode::decode(0x1000 + at as u64, &code[at..]).expect("an instruction");
            at += usize::from(i.len);
            insns.push(i);
        }
        Maker::new().make(&insns).map(|d| d.insns)
    }

    #[test]
    fn what_is_copied() {
        if !is_possible() {
            return;
        }
        // To the end, the return included.
        let plain = copied(|a| {
            a.push(r15)?;
            a.mov(eax, dword_ptr(rsp + 8))?;
            a.shl(eax, 1)?;
            a.add(qword_ptr(rax + rcx * 8), 1)?;
            a.pop(r15)?;
            a.ret()
        });
        assert_eq!(plain, Some(6));
        // By more than one OF is undefined, and seen where the access faults: that is the host's to say.
        let further = copied(|a| {
            a.push(r15)?;
            a.mov(eax, dword_ptr(rsp + 8))?;
            a.shl(eax, 3)?;
            a.add(qword_ptr(rax + rcx * 8), 1)?;
            a.pop(r15)?;
            a.ret()
        });
        let whole = exact::host_shifts().0;
        assert_eq!(further, Some(if whole { 6 } else { 2 }));
        // A store without order, of which nobody would wait for the end.
        let weak = copied(|a| {
            a.mov(rax, rcx)?;
            a.add(rax, 1)?;
            a.movnti(qword_ptr(rdi), rax)?;
            a.sfence()
        });
        assert_eq!(weak, Some(2));
        // What is undefined, and may be seen where the access faults.
        let seen = copied(|a| {
            a.mov(rax, rcx)?;
            a.add(rax, 1)?;
            a.imul_2(rax, rcx)?;
            a.mov(rcx, qword_ptr(rdi))?;
            a.add(rax, 1)
        });
        assert_eq!(seen, Some(2));
        let unseen = copied(|a| {
            a.mov(rax, rcx)?;
            a.imul_2(rax, rcx)?;
            a.add(rax, 1)
        });
        assert_eq!(unseen, Some(3));
        // With LOCK, and too few to be worth it.
        let locked = copied(|a| {
            a.mov(rax, rcx)?;
            a.lock().add(dword_ptr(rdi), 1)
        });
        assert_eq!(locked, None);
    }
}
