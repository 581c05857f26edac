//! Which arithmetic flags somebody may still read at the start of each block of a region.
//!
//! Everything is live at an exit, and before an instruction that can fault (the fault's frame shows RFLAGS).
//! What is not live need not be carried across the block boundary.

use crate::region::{Block, Region};
use sevlab_cpu::flags::{ARITH, CF};
use sevlab_cpu::insn::{Control, Insn, Op, Operand};

/// Whether the instruction can stop with the state as it was before it: memory, traps, or anything that runs
/// outside the translated code.
pub fn may_fault(i: &Insn) -> bool {
    let register_only = i.ops.iter().all(|o| !matches!(o, Operand::Mem));
    !matches!(
        i.op,
        Op::Mov
            | Op::Movzx
            | Op::Movsx
            | Op::Cmov(_)
            | Op::Setcc(_)
            | Op::Cwd
            | Op::Cbw
            | Op::Bswap
            | Op::Add
            | Op::Adc
            | Op::Sub
            | Op::Sbb
            | Op::Cmp
            | Op::And
            | Op::Or
            | Op::Xor
            | Op::Test
            | Op::Inc
            | Op::Dec
            | Op::Neg
            | Op::Not
            | Op::Imul1
            | Op::Imul2
            | Op::Imul3
            | Op::Mul
            | Op::Mulx
            | Op::Shl
            | Op::Shr
            | Op::Sar
            | Op::Rol
            | Op::Ror
            | Op::Shlx
            | Op::Shrx
            | Op::Sarx
            | Op::Rorx
            | Op::Bt
            | Op::Bts
            | Op::Btr
            | Op::Btc
            | Op::Bsf
            | Op::Bsr
            | Op::Tzcnt
            | Op::Lzcnt
            | Op::Popcnt
            | Op::Andn
            | Op::Blsi
            | Op::Blsr
            | Op::Blsmsk
            | Op::Bzhi
            | Op::Bextr
            | Op::Xchg
    ) || !register_only
}

/// The flags live at the start of each block, in block order.
pub fn live_in(region: &Region) -> Vec<u64> {
    let mut live = vec![0u64; region.blocks.len()];
    loop {
        let mut changed = false;
        for (n, block) in region.blocks.iter().enumerate().rev() {
            let mut mask = live_out(region, &live, n);
            for i in block.insns.iter().rev() {
                mask = (mask & !i.flags_out) | i.flags_in;
                let harmless = matches!(i.op, Op::Lea | Op::Nop | Op::Jmp | Op::Jcc(_));
                if may_fault(i) && !harmless {
                    mask = ARITH;
                }
            }
            if mask != live[n] {
                live[n] = mask;
                changed = true;
            }
        }
        if !changed {
            return live;
        }
    }
}

/// The flags live after block `n`'s last instruction.
pub fn live_out(region: &Region, live_in: &[u64], n: usize) -> u64 {
    let block = &region.blocks[n];
    match block.insns.last().map(|i| i.control) {
        Some(Control::Next | Control::Jump(_) | Control::Branch(_)) => block
            .successors()
            .map(|t| region.index.get(&t).map_or(ARITH, |&s| live_in[s]))
            .fold(0, |a, b| a | b),
        _ => ARITH,
    }
}

/// The flags whose value at each block's start is wanted by itself, and not as part of the record: those that an
/// instruction reads before it or another writes them, and CF where INC or DEC leave it out of their record.
pub fn wanted_in(region: &Region, live_in: &[u64]) -> Vec<u64> {
    let mut wanted = vec![0u64; region.blocks.len()];
    loop {
        let mut changed = false;
        for (n, block) in region.blocks.iter().enumerate().rev() {
            let behind = block
                .successors()
                .filter_map(|t| region.index.get(&t))
                .fold(0, |mask, &s| mask | wanted[s]);
            let mask = wanted_by(block, live_out(region, live_in, n), behind);
            if mask != wanted[n] {
                wanted[n] = mask;
                changed = true;
            }
        }
        if !changed {
            return wanted;
        }
    }
}

fn wanted_by(block: &Block, live_out: u64, behind: u64) -> u64 {
    let (mut old, mut mask) = (ARITH, 0);
    for i in &block.insns {
        // A record that is stored here has flags of several sources.
        if old != ARITH && may_fault(i) {
            mask |= old & CF;
        }
        mask |= old & read_alone(i);
        old &= !i.flags_out;
    }
    if old != ARITH {
        mask |= old & live_out & CF;
    }
    mask | old & behind
}

/// The flags that translated code of `i` reads one by one.
fn read_alone(i: &Insn) -> u64 {
    match i.op {
        Op::Adc | Op::Sbb | Op::Cmc | Op::Adcx | Op::Rcl | Op::Rcr => CF,
        Op::Adox | Op::Cmov(_) | Op::Setcc(_) | Op::Jcc(_) | Op::Loope | Op::Loopne => i.flags_in,
        _ => 0,
    }
}
