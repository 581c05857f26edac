//! Blocks that run as they are: the guest's own instructions on the host's registers.
//!
//! The problem: a compilation costs what some ten thousand runs of a block take, and most of a program's blocks run some hundred times;
//! and what a compiler makes of the guest's instructions, with flags, partial registers and a state in memory, is slower than what
//! the guest's own compiler made.
//!
//! The approach: the guest's instructions are the host's. A block's instructions are copied, in some microseconds, with what they need
//! between them. Registers keep their names, but for those of [`HOSTS`]; the vector registers are the host's, and the flags. So copies go on
//! to each other by plain jumps; the state's memory is current only outside ([`enter`]). An instruction that is not copied is run by the
//! interpreter, between two parts of the block. Where guest memory is in the view, operands get GS, whose base is the view's ([`view`]);
//! where caches are simulated, each access has a probe ([`lines`]).
//!
//! Invariants:
//! 1. Between blocks, each guest register is where [`HOSTS`] (or [`LINE_HOSTS`]) says.
//! 2. In the view, each address was checked to lie there before it is used, but for a displacement and some pushes, for which the view's
//!    guards are wide enough. The check touches no flags: it reads a table at the address's high bits, of which only the
//!    first entry can be read.
//! 3. Until the access of an instruction has been made, no guest register of it has changed. So a fault of the host's
//!    ([`crate::faults`]) goes on at a way out that says how many instructions were not done.
//! 4. In the view, nothing that comes between the guest's instructions changes the host's flags.

mod asm;
pub(crate) mod enter;
pub(crate) mod lines;
mod plan;
mod tables;
mod uses;
mod view;
mod writer;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use plan::Plan;
use sevlab_cpu::flags::{AF, ARITH};
use sevlab_cpu::insn::{Control, Insn};
use tables::{Targets, table};
pub(crate) use tables::{is_possible, set_gs};
use uses::{Uses, uses};
use writer::Writer;

const RCX: u8 = 1;
const RSP: u8 = 4;
const RBP: u8 = 5;
/// Guest segment number of FS.
const FS: u8 = 4;
/// A host register for each guest register that has one.
type Homes = [Option<u8>; 16];
/// Where guest registers are between blocks; those without a host register are in the state's memory. R15 has the state, RSP is the host's
/// own, and R10 and R11 ([`A`], [`S`]) are for what comes between.
const HOSTS: Homes = {
    let mut hosts = [None; 16];
    let mut r = 0;
    while r < 15 {
        hosts[r] = Some(r as u8);
        r += 1;
    }
    (hosts[RSP as usize], hosts[9], hosts[10], hosts[11]) = (Some(9), None, None, None);
    hosts
};
/// The same where caches are simulated ([`lines`]): what comes between needs R14 ([`P`]), too.
const LINE_HOSTS: Homes = {
    let mut hosts = HOSTS;
    hosts[P as usize] = None;
    hosts
};
/// A target, or an address that is a sum.
const A: u8 = 10;
/// What is forgotten soon.
const S: u8 = 11;
/// Where caches are simulated: the host address of an access.
const P: u8 = 14;
/// Most instructions of a copy.
pub(crate) const MOST: usize = 64;
/// Why copied code was left: what R11 says there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// By the exit of this number.
    Exit(u32),
    /// To an address that is not in [`Targets`].
    Indirect,
    /// For an instruction that the interpreter has to run: its number.
    Step(u32),
    /// An access faulted, with so many instructions counted that were not done.
    Out(u32),
    /// Whoever runs the vCPU is to look.
    Look,
}

impl Left {
    const UNDEFINED_AF: u32 = 8;

    const fn word(self) -> u32 {
        match self {
            Self::Exit(n) => n << 4,
            Self::Indirect => 1,
            Self::Step(n) => n << 4 | 2,
            Self::Out(n) => n << 4 | 3,
            Self::Look => 4,
        }
    }

    /// What a word says, and which arithmetic flags are the guest's.
    pub(crate) fn of(word: u32) -> (Self, u64) {
        let n = word >> 4;
        let left = match word & 7 {
            0 => Self::Exit(n),
            1 => Self::Indirect,
            2 => Self::Step(n),
            3 => Self::Out(n),
            _ => Self::Look,
        };
        let kept = if word & Self::UNDEFINED_AF != 0 {
            ARITH & !AF
        } else {
            ARITH
        };
        (left, kept)
    }
}

/// A block's code.
#[derive(Default)]
pub(crate) struct Direct {
    pub code: Vec<u8>,
    /// Where it begins for who has fetched its first line last: no fetch comes then. 0 where caches are not simulated.
    pub same: u32,
    /// Its exits, by number from the first on.
    pub exits: Vec<Exit>,
    /// Instructions for the interpreter, by number from the first on: which of the block's, where the block goes on behind it, and how many
    /// there are from it on.
    pub steps: Vec<(usize, u32, u32)>,
    /// Where an instruction's code begins that may fault, and its way out; both as offsets in the code. Each reaches to the next.
    pub sites: Vec<(u32, u32)>,
    /// Where the code depends on the engine: offsets of 32 bits, and what they are a distance from. (Not where caches are simulated.)
    pub fixes: Vec<(u32, Fix)>,
}

/// What parts of a copy's code are a distance from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Fix {
    /// The number of its first exit, as [`Left`] has it.
    Exit = 0,
    /// That of its first step, likewise.
    Step = 1,
    /// The check's table.
    Table = 2,
    /// [`Targets`].
    Targets = 3,
}

impl Fix {
    /// What has this number.
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::Exit, Self::Step, Self::Table, Self::Targets]
            .into_iter()
            .find(|f| *f as u8 == number)
    }
}

/// A jump to where the guest goes on.
pub(crate) struct Exit {
    /// Where its distance is, as an offset in the code.
    pub jump: u32,
    /// Where it leads if it is not linked, likewise.
    pub stub: u32,
    /// The guest address it goes to.
    pub to: u64,
    /// The line of instructions fetched last.
    pub line: u64,
}

/// Numbers of the first exit and step of a copy.
#[derive(Clone, Copy, Default)]
pub(crate) struct First {
    pub exit: u32,
    pub step: u32,
}

/// Where guest memory is for copies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// In a view of so many bytes, a power of two; with `budget` blocks count against that of a turn.
    View { bytes: u64, budget: bool },
    /// In simulated caches.
    Lines(lines::Filters),
}

/// What copies instructions, one by one.
trait Copies {
    /// Copies one that is copied; `None` if it can't be.
    fn insn(&mut self, ins: &Instruction, uses: Uses) -> Option<()>;
    /// Leaves one to the interpreter.
    fn step(&mut self);
    /// It is done.
    fn next(&mut self);
    fn end(self) -> Direct;
}

/// Copies all of them, but for `unencodable` ones; which could not be.
fn copy_all(
    mut c: impl Copies,
    decoded: &[(Instruction, Option<Uses>)],
    unencodable: u64,
) -> Result<Direct, usize> {
    for (k, (ins, uses)) in decoded.iter().enumerate() {
        match uses {
            Some(uses) if unencodable >> k & 1 == 0 => c.insn(ins, *uses).ok_or(k)?,
            _ => c.step(),
        }
        c.next();
    }
    Ok(c.end())
}

/// Copies blocks.
pub(crate) struct Maker {
    /// Made with the first copy: its tables take as long as a hundred of these.
    encoder: Option<Encoder>,
    info: InstructionInfoFactory,
    pub targets: Targets,
    pub accesses: lines::Accesses,
    table: i32,
    memory: Memory,
}

impl Maker {
    pub(crate) fn new(memory: Memory) -> Option<Self> {
        Some(Self {
            encoder: None,
            info: InstructionInfoFactory::new(),
            targets: Targets::new()?,
            accesses: lines::Accesses::default(),
            table: table()?,
            memory,
        })
    }

    /// What things are that code is a distance from, where numbers begin with these.
    pub(crate) fn base(&self, fix: Fix, first: First) -> u32 {
        match fix {
            Fix::Exit => Left::Exit(first.exit).word() - Left::Exit(0).word(),
            Fix::Step => Left::Step(first.step).word() - Left::Step(0).word(),
            Fix::Table => self.table as u32,
            Fix::Targets => self.targets.address() as u32,
        }
    }

    /// The code of instructions that follow each other, or of the first of them: at most [`MOST`], where only the last is a jump to elsewhere
    /// than to where the next one is, or none. Its exits and so on are numbered from these on. `None` if none is one
    /// that can be copied. `tallies`: where caches are simulated, what each counts.
    pub(crate) fn make(
        &mut self,
        insns: &[Insn],
        decoded: &[Option<Instruction>],
        tallies: &[u64],
        first: First,
    ) -> Option<Direct> {
        let decoded: Vec<(Instruction, Option<Uses>)> = insns
            .iter()
            .zip(decoded)
            .map(|(i, ins)| match ins {
                Some(ins) => (*ins, uses(i, ins, &mut self.info)),
                None => (Instruction::default(), None),
            })
            .collect();
        let stays = |(i, (_, uses)): (&Insn, &(_, Option<Uses>))| {
            uses.is_some() || i.control == Control::Next
        };
        let mut n = insns.iter().zip(&decoded).take_while(|&x| stays(x)).count();
        let mut unencodable = 0u64;
        let homes = match self.memory {
            Memory::View { .. } => &HOSTS,
            Memory::Lines(_) => &LINE_HOSTS,
        };
        loop {
            let plan;
            (plan, n) = Plan::of(homes, &decoded[..n]);
            let copied = |k: usize| decoded[k].1.is_some() && unencodable >> k & 1 == 0;
            if !(0..n).any(copied) {
                return None;
            }
            let tables = (self.table, self.targets.address());
            let encoder = self.encoder.get_or_insert_with(|| Encoder::new(64));
            let w = Writer::new(plan, tables, encoder, &insns[..n], first);
            let done = match self.memory {
                Memory::View { bytes, budget } => {
                    let bases = plan.constant_bases(&insns[..n], &decoded);
                    let c = view::Copier::new(w, bytes, budget, bases);
                    copy_all(c, &decoded[..n], unencodable)
                }
                Memory::Lines(filters) => {
                    let c =
                        lines::Copier::new(w, filters, tallies, &mut self.info, &mut self.accesses);
                    copy_all(c, &decoded[..n], unencodable)
                }
            };
            match done {
                Ok(direct) => return Some(direct),
                // It is left to the interpreter; if it ends the block, so are those behind it.
                Err(k) if insns[k].control == Control::Next => unencodable |= 1 << k,
                Err(k) => n = k,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_why() {
        for left in [
            Left::Exit(77),
            Left::Indirect,
            Left::Step(3),
            Left::Out(5),
            Left::Look,
        ] {
            assert_eq!(Left::of(left.word()), (left, ARITH));
            assert_eq!(
                Left::of(left.word() | Left::UNDEFINED_AF),
                (left, ARITH & !AF)
            );
        }
    }
}
