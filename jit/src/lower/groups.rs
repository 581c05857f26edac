//! One probe for several accesses off one base.
//!
//! The problem: a function's prologue, its spills and the fields of a structure are accesses at constant distances from one
//! register, and each pays for a probe of its own, though nearly all of them lie in one page.
//!
//! The approach: before a block is translated, a look over its instructions finds accesses off one base whose range is
//! short ([`plan`]). The first of them probes for the whole range, and keeps the host address. Those after it are a load or
//! store and nothing else: they need no probe, no way out and, in an eager region, no registers stored before. Blocks that are
//! reached from one other block only inherit what that had, and are looked over with it.
//!
//! Invariants:
//! 1. A plan is a guess. What an access may use is decided when it is translated: the same SSA value as base, a distance inside
//!    the range that was probed, and a right that was probed for.
//! 2. From the probe to the last use of the host address nothing takes an entry out of the fast TLB. Others do that
//!    only while this vCPU is outside of guest code ([`sevlab_cpu`]'s `smp`), and this vCPU in helpers only. A helper that
//!    may run while there is such an address is told so (`HELD`): if anything was dropped meanwhile it answers 0, the
//!    region is left at the instruction, and the interpreter runs it. Helpers that run whole instructions end all groups.
//! 3. Where the resident pages are limited there are no groups ([`crate::JitOptions::groups`]): any page may go then.
//! 4. A range across two pages never passes. The region is left with [`exit::SPLIT`], and translated without groups
//!    if that happens often.
//!
//! [`exit::SPLIT`]: crate::layout::exit::SPLIT

use super::{For, Home, Lower, vector};
use crate::layout;
use crate::region::{Block, Region};
use cranelift_codegen::ir::{InstructionData, Opcode, Value};
use iced_x86::{InstructionInfoFactory, OpAccess, OpKind};
use sevlab_cpu::Width;
use sevlab_cpu::insn::{Insn, MemRef, Op, Operand};
use sevlab_cpu::state::gpr::RSP;

/// Most bytes that one probe covers.
const SPAN: i64 = 256;
/// So many blocks are looked ahead on each way.
const DEPTH: u32 = 3;

/// From where on a register has a value.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Born {
    /// The start of the block that is planned.
    Before,
    /// That instruction of it.
    Behind(usize),
    /// A block behind it.
    Elsewhere,
}

/// Accesses that are to share a probe: so many bytes from a register's value at some place of the block.
struct Planned {
    born: Born,
    reg: u8,
    lo: i64,
    hi: i64,
    write: bool,
}

/// A range off an SSA value, with the host address of its first byte once it has been probed.
#[derive(Clone, Copy)]
pub(super) struct Group {
    root: Value,
    lo: i64,
    hi: i64,
    write: bool,
    host: Option<Value>,
}

/// What the block being translated knows.
#[derive(Default)]
pub(super) struct Groups {
    planned: Vec<Planned>,
    known: Vec<Group>,
}

/// One access of the look-ahead.
struct Seen {
    lo: i64,
    hi: i64,
    write: bool,
    /// In the block that is planned, not in one behind it.
    own: bool,
}

/// A register's value at some place, and the accesses off it.
struct Origin {
    born: Born,
    reg: u8,
    seen: Vec<Seen>,
}

/// The bytes of an instruction's memory operand, and whether they are written.
pub(super) fn operand_access(i: &Insn) -> Option<(i64, bool)> {
    let ins = vector::iced(i);
    let at = (0..ins.op_count()).find(|&n| ins.op_kind(n) == OpKind::Memory)?;
    let bytes = ins.memory_size().size();
    let mut factory = InstructionInfoFactory::new();
    let write = match factory.info(&ins).op_access(at) {
        OpAccess::Read | OpAccess::CondRead => false,
        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite => {
            true
        }
        OpAccess::None | OpAccess::NoMemAccess => return None,
    };
    (1..=64).contains(&bytes).then_some((bytes as i64, write))
}

/// What the look-ahead has to know of an instruction.
struct Glance {
    /// General registers that it writes.
    written: u16,
    /// Its memory operand.
    access: Option<(i64, bool)>,
}

/// What the look-ahead knows of a region.
pub(super) struct Outlook {
    glances: Vec<Vec<Glance>>,
    /// For each block, those that only it leads to.
    only_from: Vec<Vec<usize>>,
}

impl Outlook {
    pub(super) fn new(region: &Region, sole_predecessor: &[Option<usize>]) -> Self {
        let glance = |i: &Insn| Glance {
            written: vector::uses(i).gprs_out,
            access: (i.ops.contains(&Operand::Mem) && i.op != Op::Lea)
                .then(|| operand_access(i))
                .flatten(),
        };
        let mut only_from = vec![Vec::new(); region.blocks.len()];
        for (n, before) in sole_predecessor.iter().enumerate() {
            if let Some(p) = *before {
                only_from[p].push(n);
            }
        }
        Self {
            glances: region
                .blocks
                .iter()
                .map(|b| b.insns.iter().map(glance).collect())
                .collect(),
            only_from,
        }
    }
}

/// Which origin a register's value is how far from, for each register.
type Distances = [(usize, i64); 16];

/// Adds the accesses of a block to `origins`; `at` is how registers stand at its start, and then at its end. Only in the
/// block that is planned (`own`) are new values the base of groups.
fn look(
    block: &Block,
    glances: &[Glance],
    own: bool,
    origins: &mut Vec<Origin>,
    at: &mut Distances,
) {
    let rsp = usize::from(RSP);
    for (k, (i, glance)) in block.insns.iter().zip(glances).enumerate() {
        let mut see = |(origin, lo): (usize, i64), (bytes, write): (i64, bool)| {
            let Some(hi) = lo.checked_add(bytes) else {
                return;
            };
            origins[origin].seen.push(Seen { lo, hi, write, own });
        };
        let m = &i.mem;
        let plain = m.index == MemRef::NONE && m.seg == MemRef::NONE && !m.addr32;
        if plain
            && m.base < 16
            && let Some(access) = glance.access
        {
            let (origin, from) = at[usize::from(m.base)];
            see((origin, from.wrapping_add(m.disp)), access);
        }
        match i.op {
            Op::Push | Op::Call | Op::CallInd => {
                see((at[rsp].0, at[rsp].1.wrapping_sub(8)), (8, true));
            }
            Op::Pop | Op::Ret => see(at[rsp], (8, false)),
            _ => {}
        }
        let sum = |r: u8, k: i64| {
            let (origin, from) = at[usize::from(r & 15)];
            (origin, from.wrapping_add(k))
        };
        let moved = match (i.op, i.ops[0], i.ops[1]) {
            _ if i.width != Width::B8 => None,
            (Op::Push, ..) => Some((RSP, sum(RSP, -8))),
            (Op::Pop, Operand::Gpr(r), _) if r != RSP => Some((RSP, sum(RSP, 8))),
            (Op::Add, Operand::Gpr(r), Operand::Imm(k)) => Some((r, sum(r, k))),
            (Op::Sub, Operand::Gpr(r), Operand::Imm(k)) => Some((r, sum(r, k.wrapping_neg()))),
            (Op::Lea, Operand::Gpr(r), _) if plain && m.base < 16 => Some((r, sum(m.base, m.disp))),
            (Op::Mov, Operand::Gpr(r), Operand::Gpr(from)) => Some((r, sum(from, 0))),
            _ => None,
        };
        for r in 0..16u8 {
            let there = &mut at[usize::from(r)];
            match moved {
                Some((to, value)) if to == r => *there = value,
                _ if glance.written >> r & 1 != 0 => {
                    *there = (origins.len(), 0);
                    origins.push(Origin {
                        born: if own {
                            Born::Behind(k)
                        } else {
                            Born::Elsewhere
                        },
                        reg: r,
                        seen: Vec::new(),
                    });
                }
                _ => {}
            }
        }
    }
}

/// Finds accesses of block `n`, and of blocks that only it leads to, which may share a probe.
fn plan(region: &Region, outlook: &Outlook, n: usize) -> Vec<Planned> {
    let mut origins: Vec<Origin> = (0..16)
        .map(|reg| Origin {
            born: Born::Before,
            reg,
            seen: Vec::new(),
        })
        .collect();
    let mut at: Distances = std::array::from_fn(|r| (r, 0));
    let block = |n: usize| (&region.blocks[n], outlook.glances[n].as_slice());
    let (own, glances) = block(n);
    look(own, glances, true, &mut origins, &mut at);
    let mut next: Vec<(usize, Distances, u32)> =
        outlook.only_from[n].iter().map(|&s| (s, at, 1)).collect();
    while let Some((s, mut at, depth)) = next.pop() {
        let (behind, glances) = block(s);
        look(behind, glances, false, &mut origins, &mut at);
        if depth < DEPTH {
            next.extend(outlook.only_from[s].iter().map(|&s| (s, at, depth + 1)));
        }
    }
    origins
        .into_iter()
        .filter(|o| o.born != Born::Elsewhere)
        .flat_map(clusters)
        .collect()
}

/// The ranges of at most [`SPAN`] bytes that two accesses or more lie in, one of them in the block that is planned. What the
/// blocks behind it may write, or may not, is no reason to ask for the right to write here.
fn clusters(mut origin: Origin) -> Vec<Planned> {
    origin.seen.sort_by_key(|s| s.lo);
    let mut found = Vec::new();
    let mut rest = origin.seen.as_slice();
    while let Some(first) = rest.first() {
        let n = rest
            .iter()
            .take_while(|s| s.hi.checked_sub(first.lo).is_some_and(|n| n <= SPAN))
            .count()
            .max(1);
        let (these, others) = rest.split_at(n);
        rest = others;
        let write = these.iter().any(|s| s.own && s.write);
        let served = || these.iter().filter(|s| s.own || write || !s.write);
        if served().count() > 1 && these.iter().any(|s| s.own) {
            found.push(Planned {
                born: origin.born,
                reg: origin.reg,
                lo: served().map(|s| s.lo).min().unwrap_or(first.lo),
                hi: served().map(|s| s.hi).max().unwrap_or(first.hi),
                write,
            });
        }
    }
    found
}

impl Lower<'_, '_> {
    /// At the start of block `n`: what the only block before it knows still holds, and what is to come is planned.
    pub(super) fn begin_groups(&mut self, n: usize, before: Option<usize>) {
        self.groups = Groups::default();
        if let Some(p) = before {
            self.groups.known.clone_from(&self.groups_out[p]);
        }
        if let Some(outlook) = &self.outlook {
            self.groups.planned = plan(self.region, outlook, n);
        }
        self.born_groups(Born::Before);
    }

    /// At the end of block `n`.
    pub(super) fn end_groups(&mut self, n: usize) {
        self.groups.known.retain(|g| g.host.is_some());
        self.groups_out[n].clone_from(&self.groups.known);
    }

    /// So far has the block been translated: ranges off what has just been written have their base now.
    pub(super) fn born_groups(&mut self, now: Born) {
        for n in 0..self.groups.planned.len() {
            let Planned {
                born,
                reg,
                lo,
                hi,
                write,
            } = self.groups.planned[n];
            if born == now
                && let Home::Value(v) = self.gprs[usize::from(reg)].full
            {
                let (root, from) = self.parts(v);
                self.groups.known.push(Group {
                    root,
                    lo: lo.wrapping_add(from),
                    hi: hi.wrapping_add(from),
                    write,
                    host: None,
                });
            }
        }
    }

    /// Ends all groups: a helper has run what may have changed anything.
    pub(super) fn end_all_groups(&mut self) {
        self.groups.known.clear();
    }

    /// The third argument of helpers that find addresses: whether there are host addresses that must stay good.
    pub(super) fn held(&self) -> u64 {
        if self.groups.known.iter().any(|g| g.host.is_some()) {
            layout::HELD
        } else {
            0
        }
    }

    /// `v` as another value plus a constant.
    pub(super) fn parts(&self, v: Value) -> (Value, i64) {
        let dfg = &self.fb.func.dfg;
        let v = dfg.resolve_aliases(v);
        if let Some(inst) = dfg.value_def(v).inst()
            && let InstructionData::Binary {
                opcode: Opcode::Iadd,
                args: [x, y],
            } = dfg.insts[inst]
            && let Some(k) = self.constant(y)
        {
            return (dfg.resolve_aliases(x), k as i64);
        }
        (v, 0)
    }

    /// The host address of an access that shares a probe with others.
    pub(super) fn grouped(&mut self, va: Value, bytes: u32, write: bool) -> Option<Value> {
        if self.groups.known.is_empty() {
            return None;
        }
        let (root, lo) = self.parts(va);
        let hi = lo.checked_add(i64::from(bytes))?;
        let fits = |g: &Group| g.root == root && g.lo <= lo && hi <= g.hi && (g.write || !write);
        let known = &self.groups.known;
        let n = known
            .iter()
            .position(|g| g.host.is_some() && fits(g))
            .or_else(|| known.iter().position(fits))?;
        let g = known[n];
        let host = match g.host {
            Some(host) => host,
            None => {
                let first = self.add_constant(root, g.lo as u64);
                let host = self.probe_group(first, (g.hi - g.lo) as u32, g.write, write);
                self.groups.known[n].host = Some(host);
                host
            }
        };
        Some(self.add_constant(host, lo.wrapping_sub(g.lo) as u64))
    }

    /// The host address of `bytes` bytes of one page at `va`. If they are to be `writable`, but the current access does not
    /// `write`, the page may not become dirty yet: it must be so already.
    fn probe_group(&mut self, va: Value, bytes: u32, writable: bool, write: bool) -> Value {
        let why = if writable { For::Store } else { For::Load };
        let dirty = if writable && !write {
            layout::WRITABLE
        } else {
            0
        };
        let helper = if write { layout::H_RMW } else { layout::H_LOAD };
        let how = layout::WHOLE | dirty;
        self.found_host(va, bytes, why, (helper, how), Self::leave_split_in)
    }
}
