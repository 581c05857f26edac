//! Regions: which guest blocks are translated together.
//!
//! From the hot entry, direct jumps, branches and fall-throughs are followed to blocks that the interpreter has
//! run before (cold code is left to it), breadth first, up to the limits in [`JitOptions`]. Calls, returns and
//! indirect jumps end a path. A block that is jumped into the middle of is simply decoded again from there: the
//! duplicate is what peels a loop's first iteration off its prologue.

use crate::JitOptions;
use sevlab_cpu::insn::{Control, Insn};
use std::collections::HashMap;

/// Most instructions in a block.
const BLOCK_INSNS: usize = 64;

/// One guest basic block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Guest virtual address.
    pub rip: u64,
    /// Its instructions; never empty.
    pub insns: Vec<Insn>,
}

impl Block {
    /// Address after the last instruction.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.insns.last().map_or(self.rip, Insn::next_rip)
    }

    /// Addresses that control may reach directly.
    pub fn successors(&self) -> impl Iterator<Item = u64> {
        let next = self.end();
        let (a, b) = match self.insns.last().map(|i| i.control) {
            Some(Control::Next) => (Some(next), None),
            Some(Control::Jump(t) | Control::Call(t)) => (Some(t), None),
            Some(Control::Branch(t)) => (Some(next), Some(t)),
            Some(Control::Indirect | Control::IndirectCall | Control::Return | Control::Leave)
            | None => (None, None),
        };
        a.into_iter().chain(b)
    }
}

/// A set of blocks with one entry, `blocks[0]`.
#[derive(Clone, Debug)]
pub struct Region {
    /// The blocks; each has another address.
    pub blocks: Vec<Block>,
    /// Index by address.
    pub index: HashMap<u64, usize>,
    /// Accesses off one base may share a probe.
    pub groups: bool,
    /// Accesses go to the view without a probe.
    pub view: bool,
}

impl Region {
    /// The entry address.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.blocks[0].rip
    }

    /// Forms the region at `entry`. `decode` gives the instruction at an address (None: can't be fetched or
    /// decoded now), `seen` says whether a block there is to be taken in. None if nothing could be decoded.
    pub fn form<C>(
        entry: u64,
        options: &JitOptions,
        context: &mut C,
        decode: impl Fn(&mut C, u64) -> Option<Insn>,
        seen: impl Fn(&C, u64) -> bool,
    ) -> Option<Self> {
        let mut region = Self {
            blocks: Vec::new(),
            index: HashMap::new(),
            groups: true,
            view: false,
        };
        let mut queue = std::collections::VecDeque::from([entry]);
        let mut total = 0;
        while let Some(rip) = queue.pop_front() {
            if region.index.contains_key(&rip) {
                continue;
            }
            if !region.blocks.is_empty()
                && (region.blocks.len() >= options.max_blocks || total >= options.max_insns)
            {
                break;
            }
            let block = decode_block(rip, |at| decode(context, at));
            if block.insns.is_empty() {
                continue;
            }
            total += block.insns.len();
            region.index.insert(rip, region.blocks.len());
            if options.regions
                && !matches!(
                    block.insns.last().map(|i| i.control),
                    Some(Control::Call(_))
                )
            {
                queue.extend(block.successors().filter(|&t| seen(context, t)));
            }
            region.blocks.push(block);
        }
        (!region.blocks.is_empty()).then_some(region)
    }

    /// Guest pages (address >> 12) that the region's instructions lie in, sorted.
    #[must_use]
    pub fn pages(&self) -> Vec<u64> {
        let mut pages: Vec<u64> = self
            .blocks
            .iter()
            .flat_map(|b| (b.rip >> 12)..=(b.end().wrapping_sub(1) >> 12))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

fn decode_block(rip: u64, mut decode: impl FnMut(u64) -> Option<Insn>) -> Block {
    let mut insns = Vec::new();
    let mut at = rip;
    while insns.len() < BLOCK_INSNS {
        let Some(insn) = decode(at) else { break };
        at = insn.next_rip();
        insns.push(insn);
        // A block's pages are checked as a whole when it is entered, so it stays on the page it begins on.
        if insn.ends_block() || at >> 12 != rip >> 12 {
            break;
        }
    }
    Block { rip, insns }
}
