//! System instructions, software interrupts, flags and segments, and the wide compare-exchanges.

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::flags::{ARITH, DF, Flag, FlagOp, ZF};
use crate::insn::{Insn, Op, Operand, Width};
use crate::sem;
use crate::state::gpr::{R11, RAX, RBX, RCX, RDX, RSP};
use crate::state::seg;
use crate::stop::{Exception, Intercept, InterceptKind, Stop};

const B2: Width = Width::B2;
const B4: Width = Width::B4;
const B8: Width = Width::B8;

const TF: u64 = super::TF;
const IF: u64 = 1 << 9;
const IOPL: u64 = 3 << 12;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

const CR4_TSD: u64 = 1 << 2;
const CR4_PCE: u64 = 1 << 8;
const EFER_SCE: u64 = 1;

/// The flat user data selector, the one that a process guest may load besides null ones.
const USER_DATA: u16 = 0x2b;

fn canonical(va: u64) -> bool {
    ((va as i64) << 16 >> 16) as u64 == va
}

impl Interp<'_> {
    pub(super) fn system(&mut self, i: &Insn) -> Result<(), Halt> {
        match i.op {
            Op::Syscall => self.syscall(i),
            Op::Cpuid => self.intercept(i, InterceptKind::Cpuid),
            Op::Rdtsc | Op::Rdtscp => {
                if self.v.state.sys.cr4 & CR4_TSD != 0 && self.user() {
                    return self.protection();
                }
                let kind = if i.op == Op::Rdtsc {
                    InterceptKind::Rdtsc
                } else {
                    InterceptKind::Rdtscp
                };
                self.intercept(i, kind)
            }
            Op::Rdpmc => {
                if self.v.state.sys.cr4 & CR4_PCE == 0 && self.user() {
                    return self.protection();
                }
                self.intercept(i, InterceptKind::Rdpmc)
            }
            Op::Vmmcall => self.intercept(i, InterceptKind::Vmmcall),
            Op::Vmgexit => self.intercept(i, InterceptKind::Vmgexit),
            Op::Hlt => self.kernel_only(i, InterceptKind::Hlt),
            Op::Rdmsr => self.kernel_only(i, InterceptKind::Rdmsr),
            Op::Wrmsr => self.kernel_only(i, InterceptKind::Wrmsr),
            Op::Wbinvd => self.kernel_only(i, InterceptKind::Wbinvd),
            Op::In | Op::Out => self.port(i),
            Op::Rdpid => {
                let v = self.v.state.sys.tsc_aux & 0xffff_ffff;
                sem::write_op(self, i, 0, B8, v)
            }
            Op::Rdfsbase => self.read_base(i, seg::FS),
            Op::Rdgsbase => self.read_base(i, seg::GS),
            Op::Wrfsbase => self.write_base(i, seg::FS),
            Op::Wrgsbase => self.write_base(i, seg::GS),
            Op::MovFromSeg => {
                let v = self.selector(i.ops[1]);
                let w = if i.ops[0] == Operand::Mem {
                    B2
                } else {
                    i.width
                };
                sem::write_op(self, i, 0, w, u64::from(v))
            }
            Op::MovToSeg => {
                let v = sem::read_op(self, i, 1, B2)? as u16;
                self.load_segment(i.ops[0], v)
            }
            Op::PushSeg => {
                let v = u64::from(self.selector(i.ops[0]));
                let sp = self.gpr(RSP, B8).wrapping_sub(u64::from(i.width.bytes()));
                self.store(i.width, sp, v)?;
                self.set_gpr(RSP, B8, sp);
                Ok(())
            }
            Op::PopSeg => {
                let sp = self.gpr(RSP, B8);
                let v = self.load(i.width, sp)? as u16;
                self.load_segment(i.ops[0], v)?;
                self.set_gpr(RSP, B8, sp.wrapping_add(u64::from(i.width.bytes())));
                Ok(())
            }
            Op::SegCheck => {
                if i.ops.contains(&Operand::Mem) {
                    let va = self.address(&i.mem);
                    self.load(B2, va)?;
                }
                self.set_flag(Flag::Zf, false);
                Ok(())
            }
            Op::Popf => self.popf(i),
            Op::Iret => self.iret(i),
            Op::Int3 => self.trap(Exception::BREAKPOINT),
            Op::Int1 => self.trap(Exception::DEBUG),
            Op::Int => self.interrupt(i),
            Op::Cmpxchg8b => self.cmpxchg8b(i),
            Op::Cmpxchg16b => self.cmpxchg16b(i),
            Op::Neg => self.locked_neg(i),
            Op::Rdrand | Op::Rdseed => self.random(i),
            Op::Privileged | Op::Ins | Op::Outs => self.protection(),
            _ => self.halt(Exception::INVALID_OPCODE),
        }
    }

    fn user(&self) -> bool {
        self.v.state.cpl != 0
    }

    fn protection(&mut self) -> Result<(), Halt> {
        self.halt(Exception::GENERAL_PROTECTION)
    }

    fn intercept(&mut self, i: &Insn, kind: InterceptKind) -> Result<(), Halt> {
        self.halt(Stop::Intercept(Intercept { kind, len: i.len }))
    }

    fn kernel_only(&mut self, i: &Insn, kind: InterceptKind) -> Result<(), Halt> {
        if self.user() {
            return self.protection();
        }
        self.intercept(i, kind)
    }

    /// An exception of the trap kind: RIP is after the instruction.
    fn trap(&mut self, e: Exception) -> Result<(), Halt> {
        self.v.state.rip = self.next;
        self.halt(e)
    }

    fn syscall(&mut self, i: &Insn) -> Result<(), Halt> {
        if self.v.state.sys.efer & EFER_SCE == 0 {
            return self.halt(Exception::INVALID_OPCODE);
        }
        let flags = self.v.state.rflags() & !RF;
        self.set_gpr(RCX, B8, i.next_rip());
        self.set_gpr(R11, B8, flags);
        self.v.state.rip = i.next_rip();
        self.halt(Stop::Syscall)
    }

    fn port(&mut self, i: &Insn) -> Result<(), Halt> {
        if u64::from(self.v.state.cpl) > (self.v.state.rflags & IOPL) >> 12 {
            return self.protection();
        }
        let at = usize::from(i.op == Op::In);
        let port = match i.ops[at] {
            Operand::Imm(p) => p as u16 & 0xff,
            _ => self.gpr(RDX, B2) as u16,
        };
        let width = i.width.bytes() as u8;
        let kind = if i.op == Op::In {
            InterceptKind::In { port, width }
        } else {
            let value = self.gpr(RAX, i.width) as u32;
            InterceptKind::Out { port, width, value }
        };
        self.intercept(i, kind)
    }

    fn read_base(&mut self, i: &Insn, s: usize) -> Result<(), Halt> {
        let v = self.v.state.seg[s].base & i.width.mask();
        sem::write_op(self, i, 0, i.width, v)
    }

    fn write_base(&mut self, i: &Insn, s: usize) -> Result<(), Halt> {
        let v = sem::read_op(self, i, 0, i.width)?;
        if !canonical(v) {
            return self.protection();
        }
        self.v.state.seg[s].base = v;
        Ok(())
    }

    fn selector(&self, o: Operand) -> u16 {
        match o {
            Operand::Imm(s) => self.v.state.seg.get(s as usize).map_or(0, |s| s.selector),
            _ => 0,
        }
    }

    /// Loads a segment register. There are no descriptor tables to load from: null selectors, and what
    /// the register holds, and the flat user data selector are all that is accepted.
    fn load_segment(&mut self, o: Operand, selector: u16) -> Result<(), Halt> {
        let s = match o {
            Operand::Imm(s) if s as usize != seg::CS && (s as usize) < 6 => s as usize,
            _ => return self.halt(Exception::INVALID_OPCODE),
        };
        let null = selector & !3 == 0;
        let flat = selector == USER_DATA;
        if !(flat || null && s != seg::SS || selector == self.v.state.seg[s].selector) {
            return self.halt(Exception {
                error: Some(u32::from(selector & !3)),
                ..Exception::GENERAL_PROTECTION
            });
        }
        let r = &mut self.v.state.seg[s];
        // Whatever was in the register: a descriptor's base, or a null selector's on EPYC (NullSelectorClearsBase).
        if s == seg::FS || s == seg::GS {
            r.base = 0;
        }
        r.selector = selector;
        Ok(())
    }

    /// Takes over RFLAGS as POPF and IRET may at this CPL.
    fn take_flags(&mut self, w: Width, v: u64) {
        let mut writable = ARITH | TF | DF | NT | AC | ID;
        if !self.user() {
            writable |= IOPL;
        }
        let iopl = (self.v.state.rflags & IOPL) >> 12;
        if u64::from(self.v.state.cpl) <= iopl {
            writable |= IF;
        }
        writable &= w.mask();
        let old = self.v.state.rflags() & !RF;
        self.v.state.set_rflags(old & !writable | v & writable);
    }

    fn popf(&mut self, i: &Insn) -> Result<(), Halt> {
        let sp = self.gpr(RSP, B8);
        let v = self.load(i.width, sp)?;
        self.set_gpr(RSP, B8, sp.wrapping_add(u64::from(i.width.bytes())));
        self.take_flags(i.width, v);
        self.v.state.rip = self.next;
        Ok(())
    }

    /// IRET to the same privilege level with the same segments.
    fn iret(&mut self, i: &Insn) -> Result<(), Halt> {
        let w = i.width;
        let sp = self.gpr(RSP, B8);
        let mut frame = [0; 5];
        for (k, v) in frame.iter_mut().enumerate() {
            *v = self.load(w, sp.wrapping_add(k as u64 * u64::from(w.bytes())))?;
        }
        let [rip, cs, flags, rsp, ss] = frame;
        let state = &self.v.state;
        let same =
            cs as u16 == state.seg[seg::CS].selector && ss as u16 == state.seg[seg::SS].selector;
        if state.rflags & NT != 0 || !same || !canonical(rip) {
            return self.protection();
        }
        self.take_flags(w, flags);
        self.set_gpr(RSP, B8, rsp);
        self.v.state.rip = rip;
        Ok(())
    }

    fn interrupt(&mut self, i: &Insn) -> Result<(), Halt> {
        let n = match i.ops[0] {
            Operand::Imm(n) => n as u8,
            _ => 0,
        };
        match n {
            3 => self.trap(Exception::BREAKPOINT),
            4 => self.trap(Exception::plain(4)),
            _ if self.user() => self.halt(Exception {
                // The gate's privilege forbids it: the error code names the gate.
                error: Some(u32::from(n) << 3 | 2),
                ..Exception::GENERAL_PROTECTION
            }),
            _ => self.trap(Exception::plain(n)),
        }
    }

    fn locked_neg(&mut self, i: &Insn) -> Result<(), Halt> {
        let w = i.width;
        let va = self.address(&i.mem);
        let mut old = self.load_rmw(w, va)?;
        loop {
            let new = old.wrapping_neg() & w.mask();
            let seen = self.atomic_cas(w, va, old, new)?;
            if seen == old {
                self.set_flags(ARITH, FlagOp::Sub, w, 0, old, new);
                return Ok(());
            }
            old = seen;
        }
    }

    fn cmpxchg8b(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.address(&i.mem);
        let expected = self.gpr(RDX, B4) << 32 | self.gpr(RAX, B4);
        let new = self.gpr(RCX, B4) << 32 | self.gpr(RBX, B4);
        let old = self.atomic_cas(B8, va, expected, new)?;
        if old != expected {
            self.set_gpr(RAX, B4, old & 0xffff_ffff);
            self.set_gpr(RDX, B4, old >> 32);
        }
        self.set_flags(
            ZF,
            FlagOp::Explicit,
            B8,
            0,
            0,
            if old == expected { ZF } else { 0 },
        );
        Ok(())
    }

    fn cmpxchg16b(&mut self, i: &Insn) -> Result<(), Halt> {
        let va = self.address(&i.mem);
        if va & 15 != 0 {
            return self.protection();
        }
        let expected = [self.gpr(RAX, B8), self.gpr(RDX, B8)];
        let new = [self.gpr(RBX, B8), self.gpr(RCX, B8)];
        let old = self.locked_cas_16(va, expected, new)?;
        if old != expected {
            self.set_gpr(RAX, B8, old[0]);
            self.set_gpr(RDX, B8, old[1]);
        }
        self.set_flags(
            ZF,
            FlagOp::Explicit,
            B8,
            0,
            0,
            if old == expected { ZF } else { 0 },
        );
        Ok(())
    }

    fn random(&mut self, i: &Insn) -> Result<(), Halt> {
        let number = match &mut self.v.random {
            Some(seed) => Some(seeded(seed)),
            None => from_host(),
        };
        let ok = number.is_some();
        let v = number.unwrap_or(0) & i.width.mask();
        sem::write_op(self, i, 0, i.width, v)?;
        self.set_flags(ARITH, FlagOp::Explicit, B8, 0, 0, u64::from(ok));
        Ok(())
    }
}

/// A number from the host.
fn from_host() -> Option<u64> {
    let mut b = [0; 8];
    // SAFETY: fills eight bytes of a live local.
    let n = unsafe { libc::getrandom(b.as_mut_ptr().cast(), b.len(), 0) };
    (n == 8).then(|| u64::from_le_bytes(b))
}

/// The next number after `seed` (SplitMix64).
fn seeded(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
