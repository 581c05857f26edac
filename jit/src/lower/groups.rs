//! One probe for several accesses off one base.
//!
//! The problem: a function's prologue, its spills and the fields of a structure are accesses at constant distances from one
//! register, and each pays for a probe of its own, though nearly all of them lie in one page.
//!
//! The approach: before a block is translated, a look over its instructions finds accesses off one base whose range is
//! short ([`plan`]). The first of them probes for the whole range, and keeps the host address. Those after it are a load or
//! store and nothing else: they need no probe, no way out and, in an eager region, no registers stored before. Blocks that are
//! reached from one other block only inherit what that had.
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
use crate::region::Block;
use cranelift_codegen::ir::{BlockArg, InstBuilder, InstructionData, Opcode, Value, types};
use iced_x86::{InstructionInfoFactory, OpAccess, OpKind};
use sevlab_cpu::Width;
use sevlab_cpu::insn::{Insn, MemRef, Op, Operand};
use sevlab_cpu::state::gpr::RSP;

/// Most bytes that one probe covers.
const SPAN: i64 = 256;

/// Accesses that are to share a probe: so many bytes from a register's value at some place of the block.
struct Planned {
    /// The instruction behind which the register has the value; `None`: the start of the block.
    born: Option<usize>,
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
}

/// A register's value at some place, and the accesses off it.
struct Origin {
    born: Option<usize>,
    reg: u8,
    seen: Vec<Seen>,
}

/// The bytes of an instruction's memory operand, and whether they are written.
fn operand_access(i: &Insn) -> Option<(i64, bool)> {
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

/// Finds accesses of a block that may share a probe.
fn plan(block: &Block) -> Vec<Planned> {
    let mut origins: Vec<Origin> = (0..16)
        .map(|reg| Origin {
            born: None,
            reg,
            seen: Vec::new(),
        })
        .collect();
    // Which origin a register's value is how far from.
    let mut at: [(usize, i64); 16] = std::array::from_fn(|r| (r, 0));
    for (k, i) in block.insns.iter().enumerate() {
        let mut see = |(origin, from): (usize, i64), (bytes, write): (i64, bool)| {
            let lo = from;
            let Some(hi) = lo.checked_add(bytes) else {
                return;
            };
            origins[origin].seen.push(Seen { lo, hi, write });
        };
        let rsp = usize::from(RSP);
        let m = &i.mem;
        let plain = m.index == MemRef::NONE && m.seg == MemRef::NONE && !m.addr32;
        if plain
            && m.base < 16
            && i.ops.contains(&Operand::Mem)
            && i.op != Op::Lea
            && let Some(access) = operand_access(i)
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
        let written = vector::uses(i).gprs_out;
        for r in 0..16u8 {
            let there = &mut at[usize::from(r)];
            match moved {
                Some((to, value)) if to == r => *there = value,
                _ if written >> r & 1 != 0 => {
                    *there = (origins.len(), 0);
                    origins.push(Origin {
                        born: Some(k),
                        reg: r,
                        seen: Vec::new(),
                    });
                }
                _ => {}
            }
        }
    }
    origins.into_iter().flat_map(clusters).collect()
}

/// The ranges of at most [`SPAN`] bytes that two accesses or more lie in.
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
        if n > 1 {
            found.push(Planned {
                born: origin.born,
                reg: origin.reg,
                lo: first.lo,
                hi: these.iter().map(|s| s.hi).max().unwrap_or(first.hi),
                write: these.iter().any(|s| s.write),
            });
        }
    }
    found
}

impl Lower<'_, '_> {
    /// At the start of block `n`: what the only block before it knows still holds, and what is to come is planned.
    pub(super) fn begin_groups(&mut self, n: usize, before: Option<usize>) {
        self.groups = Groups::default();
        if !self.groups_on {
            return;
        }
        if let Some(p) = before {
            self.groups.known.clone_from(&self.groups_out[p]);
        }
        self.groups.planned = plan(&self.region.blocks[n]);
        self.born_groups(None);
    }

    /// At the end of block `n`.
    pub(super) fn end_groups(&mut self, n: usize) {
        self.groups.known.retain(|g| g.host.is_some());
        self.groups_out[n].clone_from(&self.groups.known);
    }

    /// Instruction `k` of the block has been translated (or none yet): ranges off what it has written have their base now.
    pub(super) fn born_groups(&mut self, k: Option<usize>) {
        for n in 0..self.groups.planned.len() {
            let Planned {
                born,
                reg,
                lo,
                hi,
                write,
            } = self.groups.planned[n];
            if born == k
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
    fn parts(&self, v: Value) -> (Value, i64) {
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
                let host = self.probe_group(first, (g.hi - g.lo) as u32, g.write);
                self.groups.known[n].host = Some(host);
                host
            }
        };
        Some(self.add_constant(host, lo.wrapping_sub(g.lo) as u64))
    }

    /// The host address of `bytes` bytes of one page at `va`.
    fn probe_group(&mut self, va: Value, bytes: u32, write: bool) -> Value {
        let (hit, host) = self.probe(va, bytes, if write { For::Store } else { For::Load });
        let (merge, cold) = (self.fb.create_block(), self.fb.create_block());
        self.fb.set_cold_block(cold);
        let result = self.fb.append_block_param(merge, types::I64);
        self.fb
            .ins()
            .brif(hit, merge, &[BlockArg::Value(host)], cold, &[]);
        self.fb.switch_to_block(cold);
        let n = self.iconst(types::I64, u64::from(bytes));
        let how = self.iconst(types::I64, layout::WHOLE | self.held());
        let helper = if write { layout::H_RMW } else { layout::H_LOAD };
        self.call_helper(helper, [va, n, how]);
        let p = self.pinned();
        let got = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        let leave = self.leave_block();
        self.fb
            .ins()
            .brif(got, merge, &[BlockArg::Value(got)], leave, &[]);
        self.leave_split_in(leave);
        self.fb.switch_to_block(merge);
        result
    }
}
