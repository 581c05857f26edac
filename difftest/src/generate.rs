//! Hostile cases.
//!
//! A sequence is built instruction by instruction: the row that has run least often among a few random ones, random
//! bytes for it ([`crate::forms`]), then whatever of the start state the instruction depends on is *aimed*: the base
//! register so that its operand lies somewhere interesting, a count, a divisor, a return address in memory. A register
//! is aimed only while no earlier instruction writes it or relies on it. What is left over is random.

mod aim;
mod setup;

use crate::case::{Case, FILLS, MAX_CODE};
use crate::check::{saves_mask, stores_pointers};
use crate::coverage::Picker;
use crate::forms::{Forms, decode, locked_check};
use crate::host::amd;
use crate::layout::{CODE, CODE_END, DATA, PAGE, STACK};
use crate::masks;
use crate::policy::{self, Policy};
use crate::random::Rng;
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use sevlab_cpu::flags::{ARITH, DF};

/// Makes cases.
pub struct Generator<'a> {
    forms: &'a Forms,
    info: InstructionInfoFactory,
    /// Random numbers.
    pub r: Rng,
}

/// A branch whose target is still to come.
#[derive(Clone, Copy)]
struct Fixup {
    /// Offset of the displacement in the code.
    at: usize,
    /// Its bytes.
    size: usize,
    /// Address behind the branch.
    from: u64,
    /// Instructions that it jumps over, still to come.
    over: usize,
}

/// A case in the making.
struct Draft {
    case: Case,
    /// Registers whose start value something relies on.
    fixed: u16,
    /// Registers that an instruction writes.
    dirty: u16,
    /// Undefined flags at the end, and those that a branch made so for good.
    undefined: u64,
    sticky: u64,
    /// RSP less its start value, while it is known.
    stack: Option<i64>,
    fixups: Vec<Fixup>,
    /// An x87 instruction has run, so what the pointers are is up to the processor.
    pointers: bool,
    /// The last x87 instruction's pointers may be others than zero with no exception pending: AMD's processors save zeros
    /// then, the guest saves them.
    lost: bool,
    /// MXCSR's mask is in memory, and AMD's has a bit more.
    masked: bool,
    /// An operand is aimed at code.
    reads_code: bool,
    /// There is a branch.
    branched: bool,
}

impl Draft {
    fn free(&self, n: usize) -> bool {
        (self.fixed | self.dirty) >> n & 1 == 0
    }
    /// Sets a register's start value if nothing depends on it yet.
    fn set(&mut self, n: usize, v: u64) -> bool {
        let free = self.free(n);
        if free {
            self.case.regs.gpr[n] = v;
            self.fixed |= 1 << n;
        }
        free
    }
    /// A register's value before the next instruction, if it is known.
    fn value(&self, n: usize) -> Option<u64> {
        (self.dirty >> n & 1 == 0).then_some(self.case.regs.gpr[n])
    }
    /// RSP before the next instruction, if it is known.
    fn rsp(&self) -> Option<u64> {
        Some(self.case.regs.gpr[4].wrapping_add(self.stack? as u64))
    }
}

/// How often an instruction is tried before the sequence goes on without it.
const TRIES: usize = 12;

impl<'a> Generator<'a> {
    /// A generator with a seed.
    #[must_use]
    pub fn new(forms: &'a Forms, seed: u64) -> Self {
        Self {
            forms,
            info: InstructionInfoFactory::new(),
            r: Rng::new(seed),
        }
    }

    /// A case; `None` now and then.
    pub fn case(&mut self, picker: &Picker) -> Option<Case> {
        let r = &mut self.r;
        let n = match r.below(8) {
            0 | 1 => 1,
            2..=4 => 2 + r.below(3),
            _ => 4 + r.below(9),
        };
        let mut d = Draft {
            case: self.start(),
            fixed: 1 << 4,
            dirty: 0,
            undefined: 0,
            sticky: 0,
            stack: Some(0),
            fixups: Vec::new(),
            pointers: false,
            lost: false,
            masked: false,
            reads_code: false,
            branched: false,
        };
        let x = &d.case.regs.x87;
        d.lost = amd() && x.status & 0x80 == 0 && (x.opcode, x.instruction, x.data) != (0, 0, 0);
        for _ in 0..n {
            if d.case.code().len() + 20 > MAX_CODE {
                break;
            }
            let code = picker.pick(&mut self.r);
            let p = policy::policy(code);
            if let Some(done) = self.add(&mut d, code, p)
                && done
            {
                break;
            }
        }
        let end = d.case.end();
        for f in std::mem::take(&mut d.fixups) {
            // What was to go far goes somewhere behind the end.
            let to = if f.over > MAX_CODE {
                self.r.below(9)
            } else {
                0
            };
            land(&mut d.case, f, end + to);
        }
        (!d.case.code().is_empty()).then_some(d.case)
    }

    /// Registers and memory that nothing depends on yet.
    fn start(&mut self) -> Case {
        let r = &mut self.r;
        let mut case = Case::default();
        let g = &mut case.regs;
        for v in &mut g.gpr {
            *v = match r.below(6) {
                0 => DATA + r.below(3 * PAGE),
                1 => r.below(70),
                _ => r.value(),
            };
        }
        g.gpr[4] = STACK + 8 * r.below(64);
        if r.one_in(16) {
            g.gpr[4] = DATA + r.below(3 * PAGE);
        }
        g.flags = 0x202 | r.bits() & ARITH;
        if r.one_in(6) {
            g.flags |= DF;
        }
        g.fs = DATA + PAGE;
        g.gs = 0x12340;
        g.mxcsr = r.mxcsr();
        for n in 0..16 {
            g.ymm[n] = std::array::from_fn(|_| r.lane());
        }
        if r.one_in(4) {
            g.ymm[r.below(16) as usize] = g.ymm[r.below(16) as usize];
        }
        let x = &mut g.x87;
        x.control = r.control_word();
        x.status = r.bits() as u16 & 0x7f00;
        if r.one_in(3) {
            x.status |= r.bits() as u16 & 0x7f;
        }
        if r.one_in(2) {
            // Seldom is an exception pending.
            x.status &= x.control | !0x3f;
        }
        x.settle();
        x.tag = r.pick(&[0, 0xff, 0xff, 0]);
        if r.one_in(2) {
            x.tag = r.bits() as u8;
        }
        for st in &mut x.st {
            *st = r.extended();
        }
        if r.one_in(2) {
            // The last instruction's pointers are those of FNINIT, or of another instruction.
            x.opcode = r.bits() as u16 & 0x7ff;
            x.instruction = CODE + r.below(PAGE);
            x.data = DATA + r.below(PAGE);
        }
        case.fill = r.below(u64::from(FILLS)) as u8;
        case.at = match r.below(12) {
            0 => CODE_END - 1 - r.below(64),
            1 => CODE + PAGE - r.below(64),
            _ => CODE + r.below(64),
        };
        case
    }

    /// Appends an instance of a row. `Some(true)`: it has to be the last.
    fn add(&mut self, d: &mut Draft, code: Code, p: Policy) -> Option<bool> {
        for attempt in 0..TRIES {
            let bytes = self.forms.synthesise(code, &mut self.r)?;
            let at = d.case.end();
            let Some(i) = decode(&bytes, at) else {
                if attempt == 0 && self.r.one_in(4) {
                    // No instruction: #UD on either side, if the decoder and the processor see it alike.
                    if let Some(n) = invalid_length(&bytes) {
                        d.case.push(&bytes[..n]);
                        return Some(true);
                    }
                }
                continue;
            };
            if i.code() != code
                && (attempt < TRIES / 2 || policy::policy(i.code()) != Policy::Compare)
            {
                continue;
            }
            if policy::forbidden(&i, &bytes)
                || masks::reads(&i) & d.undefined != 0
                // Behind a branch there is no telling whether it ran.
                || d.branched && matches!(p, Policy::Varies { .. })
                || d.pointers && stores_pointers(&i)
                || d.masked && setup::uses_memory(&i)
                || d.lost && saves_mask(&i)
                // The native code ends before it.
                || d.reads_code && matches!(policy::policy(i.code()), Policy::Guest(..))
            {
                continue;
            }
            let p = if i.code() == code { p } else { Policy::Compare };
            let saved = (d.case, d.fixed, d.fixups.len());
            let mut bytes = bytes;
            bytes.truncate(i.len());
            if !self.aim(d, &i, &mut bytes) {
                (d.case, d.fixed) = (saved.0, saved.1);
                d.fixups.truncate(saved.2);
                continue;
            }
            let defined = |x: &Instruction| !masks::undefined_result(x, d.value(1));
            let Some(i) = decode(&bytes, at).filter(|x| x.len() == bytes.len() && defined(x))
            else {
                (d.case, d.fixed) = (saved.0, saved.1);
                d.fixups.truncate(saved.2);
                continue;
            };
            d.case.push(&bytes);
            self.follow(d, &i);
            return Some(policy::ends_case(p));
        }
        None
    }

    /// Notes what an appended instruction does.
    fn follow(&mut self, d: &mut Draft, i: &Instruction) {
        let here = d.case.end();
        let branches = !matches!(
            i.flow_control(),
            FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt
        );
        d.branched |= branches;
        if branches {
            d.sticky |= d.undefined;
        }
        d.undefined = masks::after(i, d.undefined) | d.sticky;
        d.pointers |= setup::is_x87(i);
        d.masked |= amd() && saves_mask(i);
        d.lost |= amd() && setup::restores_pointers(i);
        let skipped = !d.fixups.is_empty();
        let mut moved = None;
        for u in self.info.info(i).used_registers() {
            let r = u.register();
            let writes = !matches!(
                u.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
            );
            if !r.is_gpr() {
                continue;
            }
            let n = r.full_register().number();
            if !writes {
                d.fixed |= 1 << n;
            } else if n == 4 && i.is_stack_instruction() {
                moved = Some(i64::from(i.stack_pointer_increment()));
            } else {
                d.dirty |= 1 << n;
            }
        }
        if i.mnemonic() == Mnemonic::Enter
            || i.mnemonic() == Mnemonic::Leave
            || d.dirty >> 4 & 1 != 0
        {
            d.stack = None;
        }
        if let Some(by) = moved {
            d.stack = if skipped {
                None
            } else {
                d.stack.map(|s| s + by)
            };
        }
        let (mut k, case) = (0, &mut d.case);
        while k < d.fixups.len() {
            let f = &mut d.fixups[k];
            if f.from == here {
                k += 1;
                continue;
            }
            f.over = f.over.saturating_sub(1);
            if f.over == 0 {
                let f = d.fixups.swap_remove(k);
                land(case, f, here);
            } else {
                k += 1;
            }
        }
    }
}

/// Sets the displacement of a branch.
fn land(case: &mut Case, f: Fixup, target: u64) {
    let by = target.wrapping_sub(f.from);
    let by = if f.size == 1 { by.min(0x7f) } else { by };
    for k in 0..f.size {
        case.set_byte(f.at + k, (by >> (8 * k)) as u8);
    }
}

/// Length of bytes that are no instruction because of their prefixes only: what they are without is one.
fn invalid_length(bytes: &[u8]) -> Option<usize> {
    let prefixes = bytes
        .iter()
        .take_while(|b| {
            matches!(
                b,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f
            )
        })
        .count();
    let bare = decode(&bytes[prefixes..], 0)?;
    let p = policy::policy(bare.code());
    let n = prefixes + bare.len();
    let locked = amd() && locked_check(bytes);
    (p == Policy::Compare && !locked && !policy::forbidden(&bare, &bytes[prefixes..]) && n <= 15)
        .then_some(n)
}

/// The number of a general register.
fn number(r: Register) -> Option<usize> {
    r.is_gpr().then(|| r.full_register().number())
}
