//! What holds at the start and the end of a region's blocks: analyses over the ways that control can take, done before anything is
//! lowered. Liveness of flags is [`crate::liveness`]'s.

use super::{Written, groups, vector};
use crate::region::Region;
use sevlab_cpu::insn::{Insn, Op, Operand};

/// Per-block results of the forward "may be stale in memory" analysis.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Dirty {
    pub(super) gprs: u16,
    pub(super) vecs: u16,
    pub(super) highs: u16,
    pub(super) flags: bool,
}

/// For each block, the one block of the region that leads to it, if that is all that does.
pub(super) fn sole_predecessors(region: &Region) -> Vec<Option<usize>> {
    let mut edges = vec![0; region.blocks.len()];
    let mut from = vec![None; region.blocks.len()];
    // The region's entry is an edge too.
    edges[0] = 1;
    for (n, block) in region.blocks.iter().enumerate() {
        for s in block
            .successors()
            .filter_map(|t| region.index.get(&t).copied())
        {
            edges[s] += 1;
            from[s] = Some(n);
        }
    }
    from.into_iter()
        .zip(edges)
        .map(|(f, e)| if e == 1 { f } else { None })
        .collect()
}

/// Forward analysis: how many instructions have been retired at the start of each block, where that does not depend on the
/// way there.
pub(super) fn counts_in(region: &Region) -> Vec<Option<u64>> {
    let mut counts = vec![None; region.blocks.len()];
    counts[0] = Some(Some(0));
    loop {
        let mut changed = false;
        for (n, block) in region.blocks.iter().enumerate() {
            let Some(count) = counts[n] else { continue };
            let out = count.map(|k| k + block.insns.len() as u64);
            for s in block.successors().filter_map(|t| region.index.get(&t)) {
                let merged = match counts[*s] {
                    Some(other) if other != out => None,
                    _ => out,
                };
                changed |= counts[*s] != Some(merged);
                counts[*s] = Some(merged);
            }
        }
        if !changed {
            return counts.into_iter().map(Option::flatten).collect();
        }
    }
}

/// Forward analysis: what may be stale in state memory at the start of each block. `behind` says what may be at a block's end,
/// given what may be at its start.
fn stale_in(region: &Region, behind: impl Fn(usize, Dirty) -> Dirty) -> Vec<Dirty> {
    let mut dirty = vec![Dirty::default(); region.blocks.len()];
    loop {
        let mut changed = false;
        for (n, block) in region.blocks.iter().enumerate() {
            let out = behind(n, dirty[n]);
            for &s in block.successors().filter_map(|t| region.index.get(&t)) {
                let d = &mut dirty[s];
                let merged = Dirty {
                    gprs: d.gprs | out.gprs,
                    vecs: d.vecs | out.vecs,
                    highs: d.highs | out.highs,
                    flags: d.flags || out.flags,
                };
                changed |= *d != merged;
                *d = merged;
            }
        }
        if !changed {
            return dirty;
        }
    }
}

/// What may be stale at the start of each block where registers are stored on the way out, or, in an eager region, before what
/// may leave.
pub(super) fn dirty_in(region: &Region, uses: &[vector::Uses], eager: bool) -> Vec<Dirty> {
    let keep = if eager { 0 } else { !0 };
    stale_in(region, |n, d| Dirty {
        gprs: (d.gprs | uses[n].gprs_out) & keep,
        vecs: (d.vecs | uses[n].vecs_out) & keep,
        highs: (d.highs | uses[n].highs_out) & keep,
        flags: d.flags || uses[n].flags,
    })
}

/// Backward analysis: the registers whose value at each block's start is read in it or behind it, be it by a way out
/// that writes it back.
pub(super) fn needed_in(region: &Region, uses: &[vector::Uses], dirty: &[Dirty]) -> Vec<Written> {
    let mut needed = vec![Written::default(); region.blocks.len()];
    loop {
        let mut changed = false;
        for (n, block) in region.blocks.iter().enumerate().rev() {
            let (mut gprs, mut vecs, mut highs) = (0, 0, 0);
            for s in block.successors().filter_map(|t| region.index.get(&t)) {
                gprs |= needed[*s].gprs;
                vecs |= needed[*s].vecs;
                highs |= needed[*s].highs;
            }
            let (u, d) = (&uses[n], &dirty[n]);
            let now = Written {
                gprs: d.gprs | u.gprs_in | (gprs & !u.gprs_killed),
                vecs: d.vecs | u.vecs_in | (vecs & !u.vecs_killed),
                highs: d.highs | u.highs_in | (highs & !u.highs_killed),
            };
            if now != needed[n] {
                needed[n] = now;
                changed = true;
            }
        }
        if !changed {
            return needed;
        }
    }
}

/// Backward analysis: the vector registers whose value at each block's start is computed with, whichever way control goes from
/// there. A way out of the region counts: it stores everything stale.
pub(super) fn surely_read(region: &Region, uses: &[vector::Uses]) -> Vec<Written> {
    let all = Written {
        gprs: 0,
        vecs: !0,
        highs: !0,
    };
    let mut sure = vec![all; region.blocks.len()];
    loop {
        let mut changed = false;
        for n in (0..region.blocks.len()).rev() {
            let after = read_behind(region, &sure, n);
            let u = &uses[n];
            let now = Written {
                gprs: 0,
                vecs: u.vecs_read | (after.vecs & !u.vecs_out),
                highs: u.highs_read | (after.highs & !u.highs_out),
            };
            changed |= now != sure[n];
            sure[n] = now;
        }
        if !changed {
            return sure;
        }
    }
}

/// What [`surely_read`] says of the end of block `n`.
pub(super) fn read_behind(region: &Region, sure: &[Written], n: usize) -> Written {
    let mut behind = Written {
        gprs: 0,
        vecs: !0,
        highs: !0,
    };
    for s in region.blocks[n]
        .successors()
        .filter_map(|t| region.index.get(&t))
    {
        behind.vecs &= sure[*s].vecs;
        behind.highs &= sure[*s].highs;
    }
    behind
}

/// Blocks that a block at the same or a higher index jumps to, found as targets of retreating edges: there the exit
/// request is polled, so that no loop runs for ever.
pub(super) fn back_edge_targets(region: &Region) -> Vec<bool> {
    // Depth-first from the entry: an edge to a block on the current path closes a cycle.
    let n = region.blocks.len();
    let (mut state, mut header) = (vec![0u8; n], vec![false; n]);
    let mut stack = vec![(0usize, 0usize)];
    state[0] = 1;
    while let Some((b, k)) = stack.pop() {
        let next = region.blocks[b]
            .successors()
            .filter_map(|t| region.index.get(&t).copied())
            .nth(k);
        match next {
            Some(s) => {
                stack.push((b, k + 1));
                match state[s] {
                    0 => {
                        state[s] = 1;
                        stack.push((s, 0));
                    }
                    1 => header[s] = true,
                    _ => {}
                }
            }
            None => state[b] = 2,
        }
    }
    header[0] = true;
    header
}

/// Whether the instruction accesses memory, and writes it.
fn access_of(i: &Insn) -> Option<bool> {
    match i.op {
        Op::Push | Op::Call | Op::CallInd => Some(true),
        Op::Lea => None,
        _ if i.ops.contains(&Operand::Mem) => {
            Some(groups::operand_access(i).is_some_and(|(_, write)| write))
        }
        Op::Pop | Op::Ret => Some(false),
        _ => None,
    }
}

/// As [`dirty_in`], where registers are settled at accesses (see [`super::view`]): at the first of a way, and at the first behind
/// each write. What is stale is what was written since. Only what to expect where ways meet: on a single way it is known.
pub(super) fn dirty_in_view(
    region: &Region,
    uses: &[Vec<vector::Uses>],
    sole_predecessor: &[Option<usize>],
) -> Vec<Dirty> {
    // For each block: whether anything is settled in it, what it writes behind that, and whether that holds at its end.
    let mut blocks: Vec<(bool, Written, bool)> = Vec::with_capacity(region.blocks.len());
    for (n, block) in region.blocks.iter().enumerate() {
        let mut holds = sole_predecessor[n]
            .and_then(|p| blocks.get(p))
            .is_some_and(|p| p.2);
        let (mut settled, mut last) = (false, Written::default());
        for (i, uses) in block.insns.iter().zip(&uses[n]) {
            if let Some(writes) = access_of(i) {
                if !holds {
                    (settled, last) = (true, Written::default());
                }
                holds = !writes;
            }
            last.gprs |= uses.gprs_out;
            last.vecs |= uses.vecs_out;
            last.highs |= uses.highs_out;
        }
        blocks.push((settled, last, holds));
    }
    stale_in(region, |n, d| {
        let (settled, last, _) = blocks[n];
        let keep = if settled { 0 } else { !0 };
        Dirty {
            gprs: d.gprs & keep | last.gprs,
            vecs: d.vecs & keep | last.vecs,
            highs: d.highs & keep | last.highs,
            flags: false,
        }
    })
}
