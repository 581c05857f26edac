//! Tier 0: an interpreter over pre-decoded basic blocks.
//!
//! [`Interp`] implements [`Builder`](crate::Builder) by computing, so an instruction means here what
//! [`crate::sem`] says. What the vocabulary can't say (strings, system instructions, thunks) is in the
//! submodules, behind [`Builder::complex`](crate::Builder::complex).
//!
//! Invariants:
//! 1. `state.rip` is the stopped instruction's address at every stop; while a block runs, it may lag behind.
//! 2. A block is freed only by [`drain`], which runs only between blocks; a block that is running stays.
//! 3. After an instruction that voided decoded code ([`Vcpu::code_epoch`] grew), nothing more of the
//!    running block runs.
//!
//! The host's MXCSR is the guest's while this runs ([`crate::thunk::mxcsr::load`] puts it there); the
//! caller sees to that.
#![allow(unsafe_code)] // blocks are reached by pointer while they run; host memory by address

mod alu;
mod amd;
mod blocks;
mod far;
mod faults;
mod fpu;
mod locked;
mod modelled;
mod steps;
mod string;
mod system;
mod thunks;

use core::sync::atomic::Ordering;

pub use blocks::{Block, Cache, MAX_BLOCK};
pub use faults::alignment_checked;
pub(crate) use faults::canonical;

use crate::decode::{self, DecodeError, MAX_LEN, Run};
use crate::insn::{Control, Insn, Op};
use crate::mmu::Access;
use crate::sem;
use crate::stop::{Exception, Stop};
use crate::vcpu::Vcpu;
use sevlab_arch::{PAGE_SIZE, Va};

/// TF in RFLAGS: #DB after every instruction.
pub(crate) const TF: u64 = 1 << 8;

/// Marks that [`Interp::stop`] says why the instruction did not go on.
#[derive(Clone, Copy, Debug)]
pub struct Halt;

/// A builder that computes. Values are zero-extended from their width.
pub struct Interp<'a> {
    v: &'a mut Vcpu,
    /// Address of the next instruction, for branches not taken.
    next: u64,
    stop: Option<Stop>,
}

impl<'a> Interp<'a> {
    /// An interpreter on a vCPU.
    pub fn new(v: &'a mut Vcpu) -> Self {
        Self {
            v,
            next: 0,
            stop: None,
        }
    }

    /// Why the last instruction stopped.
    #[cold]
    fn take_stop(&mut self, i: &Insn) -> Stop {
        let stop = self.stop.take();
        faults::named(
            &self.v.state,
            i,
            stop.unwrap_or(Stop::Exception(Exception::INVALID_OPCODE)),
        )
    }

    #[cold]
    #[inline(never)]
    fn halt<T>(&mut self, s: impl Into<Stop>) -> Result<T, Halt> {
        self.stop = Some(s.into());
        Err(Halt)
    }

    #[inline(always)]
    fn lift<T>(&mut self, r: Result<T, Stop>) -> Result<T, Halt> {
        match r {
            Ok(v) => Ok(v),
            Err(s) => self.halt(s),
        }
    }
}

/// Fetches and decodes the instruction at `rip`, announcing that code is decoded there. Bytes that are
/// no instruction become one that faults.
///
/// # Errors
/// The fetch faults: #PF at the first byte that can't be fetched.
pub fn fetch(v: &mut Vcpu, rip: u64) -> Result<Insn, Stop> {
    v.note_code(Va(rip))?;
    let mut bytes = [0; MAX_LEN];
    let n = v.fetch(rip, &mut bytes)?;
    let i = match decode::decode(rip, &bytes[..n]) {
        Ok(i) => i,
        Err(DecodeError::NeedMore { .. }) => {
            let page = Va(rip.wrapping_add(n as u64));
            v.translate(page, Access::Exec)?;
            // It does not fault any more: another vCPU mapped it meanwhile.
            let n = v.fetch(rip, &mut bytes)?;
            decode::decode(rip, &bytes[..n])
                .unwrap_or_else(|_| decode::faulting(rip, Op::Ud, &bytes[..1]))
        }
        Err(DecodeError::Invalid { .. }) => decode::faulting(rip, Op::Ud, &bytes[..1]),
        Err(DecodeError::TooLong { .. }) => decode::faulting(rip, Op::Privileged, &bytes),
    };
    let i = v.profile.seen(i);
    let last = rip.wrapping_add(u64::from(i.len) - 1);
    if (last ^ rip) & !(PAGE_SIZE - 1) != 0 {
        v.note_code(Va(last))?;
    }
    Ok(i)
}

/// Frees the blocks whose code changed. Not to be called while one runs.
fn drain(v: &mut Vcpu) {
    while let Some(page) = v.dropped_blocks.pop() {
        v.interp.drop_page(page);
    }
}

/// The block at `state.rip`, decoded if need be.
fn find(v: &mut Vcpu) -> Result<*const Block, Stop> {
    let rip = v.state.rip;
    if let Some(b) = v.interp.find(rip) {
        return Ok(b);
    }
    build(v, rip)
}

/// Bytes that are read at once to decode a block.
const AHEAD: usize = 64;

#[cold]
#[inline(never)]
fn build(v: &mut Vcpu, rip: u64) -> Result<*const Block, Stop> {
    // A fetch that faults is the next turn's.
    if v.model.is_some() && modelled::turn_over(v) {
        return Err(Stop::Budget);
    }
    let mut insns = Vec::with_capacity(16);
    let page = rip & !(PAGE_SIZE - 1);
    let mut at = rip;
    'block: loop {
        let mut bytes = [0; AHEAD];
        let n = (PAGE_SIZE - (at & (PAGE_SIZE - 1))).min(AHEAD as u64) as usize;
        let ahead = v.note_code(Va(at));
        let ahead = ahead.and_then(|_| v.fetch(at, &mut bytes[..n]));
        let mut run = Run::new(at, &bytes[..ahead.unwrap_or(0)]);
        let first = at;
        loop {
            let (i, goes_on) = match run.next() {
                Some(i) => (v.profile.seen(i), true),
                None if at != first => continue 'block,
                None => match fetch(v, at) {
                    Ok(i) => (i, false),
                    // What comes before runs first; then the fault is met again.
                    Err(_) if !insns.is_empty() => break 'block,
                    Err(s) => return Err(s),
                },
            };
            at = i.next_rip();
            insns.push(i);
            if i.ends_block() || insns.len() >= MAX_BLOCK || at & !(PAGE_SIZE - 1) != page {
                break 'block;
            }
            // A turn may end anywhere: from there, blocks lead to the next translation and not past it.
            if v.model.is_some() && v.interp.is_translated(at) {
                break 'block;
            }
            if !goes_on {
                continue 'block;
            }
        }
    }
    // Noting the second page may have found that it is another frame now, and dropped blocks.
    drain(v);
    let costs = v.model.as_ref().map(|m| &*m.costs);
    let block = Block::new(rip, at, &insns, costs);
    Ok(v.interp.insert(block))
}

/// Runs the block at `state.rip`, or what of it comes before a stop.
///
/// # Errors
/// Why it stopped; the state is precise.
#[inline]
pub fn run_block(v: &mut Vcpu) -> Result<(), Stop> {
    if v.state.exit_request.load(Ordering::Relaxed) != 0 {
        return Err(Stop::Requested);
    }
    if !v.dropped_blocks.is_empty() {
        drain(v);
    }
    if v.state.rflags & TF != 0 {
        if v.model.is_some() && modelled::turn_over(v) {
            return Err(Stop::Budget);
        }
        return step(v);
    }
    let block = find(v)?;
    // SAFETY: the cache owns the block and frees it only in `drain`, which nothing below calls
    // (invariant 2); the cache's own structures are not touched through this reference.
    let block = unsafe { &*block };
    block.hits.set(block.hits.get().saturating_add(1));
    run(v, block)
}

/// What [`dispatch`] did.
#[derive(Clone, Copy, Debug)]
pub enum Dispatched {
    /// Nothing: the block at `state.rip` has a translation there.
    Translated(u64),
    /// Ran the block at this address, which has now been run so often.
    Ran {
        /// Guest address of the block.
        rip: u64,
        /// How often it has run, this time included.
        hits: u32,
    },
}

/// What has run less often than this is of no interest to an engine, but for its first time.
const FEW: u32 = 8;

/// Blocks that [`dispatch`] runs in a row.
const ROW: u32 = 1024;

/// Runs the block at `state.rip` and those behind it, for an engine that keeps a word with each block it has translated
/// ([`Cache::set_translated`]): a block with a word is not run. Comes back after a block that has run `hot` times or more, once, or a
/// power of two from [`FEW`] on, before one that is not decoded yet, of which the engine may know a translation, and after some blocks in any case. Each block after the first takes one from the budget, and is not run if that falls below
/// zero. The caller has seen to the exit request and TF.
///
/// # Errors
/// Why it stopped; the state is precise, and [`Cache::entered`] is the block's address.
#[inline]
pub fn dispatch(v: &mut Vcpu, hot: u32) -> Result<Dispatched, Stop> {
    if !v.dropped_blocks.is_empty() {
        drain(v);
    }
    v.interp.entered = v.state.rip;
    let mut block = find(v)?;
    // SAFETY: as in `run_block`.
    let word = unsafe { &*block }.translated.get();
    if word != 0 {
        return Ok(Dispatched::Translated(word));
    }
    let mut left = ROW;
    loop {
        // SAFETY: as in `run_block`: between here and the next `find` or `drain` nothing is freed.
        let b = unsafe { &*block };
        let (rip, hits) = (b.rip, b.hits.get().saturating_add(1));
        b.hits.set(hits);
        run(v, b)?;
        let ran = Dispatched::Ran { rip, hits };
        left -= 1;
        if hits.is_power_of_two() && (hits == 1 || hits >= FEW)
            || hits >= hot
            || left == 0
            || v.state.exit_request.load(Ordering::Relaxed) != 0
            || v.state.rflags & TF != 0
            || !v.dropped_blocks.is_empty()
        {
            return Ok(ran);
        }
        let (to, epoch) = (v.state.rip, v.interp.epoch);
        v.interp.entered = to;
        block = match b.next(to, epoch) {
            Some(next) => next,
            None => {
                let Some(next) = v.interp.find(to) else {
                    return Ok(ran);
                };
                b.link(to, epoch, next);
                next
            }
        };
        // SAFETY: as above.
        if unsafe { &*block }.translated.get() != 0 {
            return Ok(ran);
        }
        v.state.budget = v.state.budget.wrapping_sub(1);
        if v.state.budget < 0 {
            return Ok(ran);
        }
    }
}

/// Runs the block at `state.rip` and some of those behind it, as [`dispatch`] does.
///
/// # Errors
/// Why it stopped; the state is precise.
pub fn run_row(v: &mut Vcpu) -> Result<(), Stop> {
    if v.state.rflags & TF != 0 || v.state.exit_request.load(Ordering::Relaxed) != 0 {
        return run_block(v);
    }
    dispatch(v, u32::MAX).map(|_| ())
}

/// Runs up to `blocks` blocks.
///
/// # Errors
/// [`Stop::Budget`] after so many blocks, else why it stopped.
pub fn run_blocks(v: &mut Vcpu, blocks: u64) -> Result<core::convert::Infallible, Stop> {
    for _ in 0..blocks {
        run_block(v)?;
    }
    Err(Stop::Budget)
}

fn run(v: &mut Vcpu, block: &Block) -> Result<(), Stop> {
    if v.model.is_some() {
        return modelled::run(v, block);
    }
    let epoch = v.code_epoch;
    let mut it = Interp::new(v);
    for (k, s) in block.steps.iter().enumerate() {
        if (s.run)(&mut it, s, block).is_err() {
            let Some(i) = block.insns().nth(k) else {
                unreachable!("as many as there are steps")
            };
            if !s.keeps_rip() {
                it.v.state.rip = i.rip;
            }
            let stop = it.take_stop(&i);
            v.state.retired += k as u64 + u64::from(completed(&stop));
            return Err(stop);
        }
        if it.v.code_epoch != epoch
            && let Some(next) = block.insns().nth(k + 1)
        {
            v.state.rip = next.rip;
            v.state.retired += k as u64 + 1;
            return Ok(());
        }
    }
    if block.falls_through {
        v.state.rip = block.end;
    }
    v.state.retired += block.steps.len() as u64;
    Ok(())
}

/// Whether the instruction that stopped has nevertheless run.
fn completed(s: &Stop) -> bool {
    matches!(s, Stop::Syscall)
        || matches!(s, Stop::Exception(e) if e.vector == Exception::BREAKPOINT.vector || e.vector == Exception::DEBUG.vector)
}

/// Runs exactly one instruction, at `state.rip`.
///
/// # Errors
/// Why it stopped; the state is precise.
pub fn step(v: &mut Vcpu) -> Result<(), Stop> {
    if !v.dropped_blocks.is_empty() {
        drain(v);
    }
    let rip = v.state.rip;
    let (i, tally) = match v.interp.find(rip) {
        Some(b) => {
            // SAFETY: as in `run_block`; the instruction is copied out.
            let b = unsafe { &*b };
            (b.first(), b.counted.first().map(|c| c.tally))
        }
        None => (fetch(v, rip)?, None),
    };
    let trace = v.state.rflags & TF != 0;
    match tally {
        Some(tally) => exec_with(v, &i, tally)?,
        None => exec(v, &i)?,
    }
    if trace {
        return Err(Exception::DEBUG.into());
    }
    Ok(())
}

/// Runs one decoded instruction as if `state.rip` were its address; afterwards `state.rip` is where
/// control goes on. This is how translated code runs what it does not lower itself.
///
/// # Errors
/// Why it stopped; the state is precise.
pub fn exec(v: &mut Vcpu, i: &Insn) -> Result<(), Stop> {
    if let Some(m) = &v.model {
        let tally = m.costs.tally(i);
        return modelled::exec(v, i, tally);
    }
    v.state.rip = i.rip;
    let mut it = Interp::new(v);
    it.next = i.next_rip();
    if sem::exec(&mut it, i).is_err() {
        let stop = it.take_stop(i);
        v.state.retired += u64::from(completed(&stop));
        return Err(stop);
    }
    if i.control == Control::Next {
        v.state.rip = i.next_rip();
    }
    v.state.retired += 1;
    Ok(())
}

/// As [`exec`], for a caller that knows what the instruction adds to the tally of a machine model
/// ([`CostTable::tally`](crate::model::costs::CostTable::tally)), which takes a while to find out.
///
/// # Errors
/// As [`exec`].
pub fn exec_with(v: &mut Vcpu, i: &Insn, tally: u64) -> Result<(), Stop> {
    if v.model.is_some() {
        return modelled::exec(v, i, tally);
    }
    exec(v, i)
}

/// How often the block at `rip` has run; 0 if there is none.
#[must_use]
pub fn hits(v: &Vcpu, rip: u64) -> u32 {
    v.interp.hits(rip)
}
