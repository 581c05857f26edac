//! The dispatcher: decides what runs where, keeps regions linked, and throws away what became wrong.
//!
//! Invariants:
//! 1. A region is in `regions` only while every guest page it was made from is tracked by the vCPU's code map and
//!    none of them has been reported in `dropped_code` since its bytes were read.
//! 2. A slot or a jump-cache entry points at a region only while that region is in `regions`.
//! 3. Code memory is reset only in `flush`, when no translated code is running and no compilation is under way.
#![allow(unsafe_code)] // enters translated code

mod copies;
mod regions;
mod stored;
mod warm;
mod worker;

use crate::compile::{Compiler, Shared};
use crate::faults;
use crate::layout::{self, JUMP_CACHE_ENTRIES, exit, word};
use crate::region::Region;
use crate::runtime::{self, StepSite};
use crate::{Error, JitOptions, OptLevel};
use copies::{COPY, Copies};
use regions::{Leaves, Live, Pending};
use rustc_hash::{FxHashMap, FxHashSet};
use sevlab_cpu::insn::Insn;
use sevlab_cpu::interp::Dispatched;
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{CpuState, Stop, Vcpu, decode, interp};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use warm::Warm;
use worker::Worker;

/// What the translator did.
#[derive(Clone, Copy, Debug, Default)]
pub struct JitStats {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions in them.
    pub guest_insns: u64,
    /// Bytes of host code.
    pub host_bytes: u64,
    /// Host instructions, with [`JitOptions::count_host`].
    pub host_insns: u64,
    /// Processor time spent compiling, on whichever thread.
    pub compile_time: Duration,
    /// Regions dropped because their guest code changed.
    pub dropped: u64,
    /// Times translated code was entered from the dispatcher.
    pub entries: u64,
    /// Guest instructions that the interpreter ran.
    pub interpreted: u64,
    /// Regions that could not be translated.
    pub refused: u64,
    /// Times all code was thrown away because the buffer was full.
    pub flushes: u64,
    /// Regions taken from the code cache.
    pub loaded: u64,
    /// Copies of blocks taken from there.
    pub loaded_copies: u64,
    /// Those of them that are of cold blocks ([`JitOptions::cold`]).
    pub cold_copies: u64,
    /// Blocks copied ([`JitOptions::direct`]).
    pub direct: u64,
    /// Bytes of host code of those.
    pub direct_bytes: u64,
    /// Guest instructions that ran as copies.
    pub copied: u64,
}

/// The translating execution engine of one vCPU.
pub struct Engine {
    options: JitOptions,
    shared: Arc<Shared>,
    worker: Worker,
    regions: FxHashMap<u64, Live>,
    /// How many regions (pending ones too) each block is part of.
    copies: FxHashMap<u64, u8>,
    by_page: FxHashMap<u64, Vec<u64>>,
    slot_target: Vec<u64>,
    /// Instructions that translated code has run by a helper, by the number it knows them by.
    steps: Vec<StepSite>,
    pending: FxHashMap<u64, Pending>,
    next_ticket: u64,
    /// The exit slot that translated code last came out of, if it is to be linked to where it led.
    unlinked: Option<u32>,
    /// Regions that came or went since the blocks' words were last brought up to date: address and word.
    words: Vec<(u64, u64)>,
    jump_cache: Box<[[u64; 2]; JUMP_CACHE_ENTRIES]>,
    refused: FxHashSet<u64>,
    /// How often regions were left with [`exit::SPLIT`].
    splits: Leaves,
    /// How often regions were left with [`exit::UNSEEN`].
    unseen: Leaves,
    /// Where translated code may fault.
    faults: Box<faults::Table>,
    /// Blocks that run as copies of the guest's own instructions.
    direct: Copies,
    stats: JitStats,
    full: bool,
    warm: Warm,
    stop: Arc<AtomicBool>,
    quiet: Arc<Mutex<()>>,
}

impl Engine {
    /// An engine with its own code buffer (and compile thread, if `options.background`).
    pub fn new(options: JitOptions) -> Result<Self, Error> {
        let compiler = Compiler::new(&options)?;
        let shared = compiler.shared();
        let warm = Warm::new(&options, &compiler);
        let worker = if options.background {
            Worker::Idle(Some(Box::new(compiler)))
        } else {
            Worker::Foreground(Box::new(compiler))
        };
        let mut cache: Box<[_]> = vec![[0; 2]; JUMP_CACHE_ENTRIES].into();
        cache[0] = empty_entry(0);
        Ok(Self {
            options,
            shared,
            worker,
            regions: FxHashMap::default(),
            copies: FxHashMap::default(),
            by_page: FxHashMap::default(),
            slot_target: Vec::new(),
            steps: Vec::new(),
            pending: FxHashMap::default(),
            next_ticket: 0,
            unlinked: None,
            words: Vec::new(),
            jump_cache: cache.try_into().expect("length is JUMP_CACHE_ENTRIES"),
            refused: FxHashSet::default(),
            splits: Leaves::default(),
            unseen: Leaves::default(),
            faults: Box::default(),
            direct: Copies::default(),
            stats: JitStats::default(),
            full: false,
            warm,
            stop: Arc::new(AtomicBool::new(false)),
            quiet: Arc::default(),
        })
    }

    /// Held while the compile thread works. Whoever clones the host process takes it first.
    #[must_use]
    pub fn quiet(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.quiet)
    }

    /// The host process has been cloned, and this is the clone: the compile thread is not in it, and the
    /// code buffer must not be the original's.
    ///
    /// # Errors
    /// No memory for the code.
    pub fn forked(&mut self) -> Result<(), Error> {
        self.shared.code.forked()?;
        self.relink();
        self.stats = JitStats::default();
        self.warm.forked();
        if let Worker::Background { .. } = self.worker {
            let gone = std::mem::replace(&mut self.worker, Worker::Idle(None));
            // Its channels may be locked by a thread that is not here.
            std::mem::forget(gone);
            self.stop = Arc::new(AtomicBool::new(false));
            let pending: Vec<Pending> = self.pending.drain().map(|(_, p)| p).collect();
            for p in pending {
                self.forget_copies(&p.blocks);
            }
        }
        Ok(())
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> JitStats {
        self.stats
    }

    /// Runs the vCPU until something stops it.
    pub fn run(&mut self, vcpu: &mut Vcpu) -> Stop {
        runtime::install(&mut vcpu.state);
        vcpu.state.engine[word(layout::SLOTS)] = self.shared.slots.base();
        vcpu.state.engine[word(layout::JUMP_CACHE)] = self.jump_cache.as_ptr() as u64;
        let view = view_of(vcpu);
        vcpu.state.engine[word(layout::VIEW)] = view.unwrap_or(0);
        vcpu.state.engine[word(layout::SITES)] = &raw const *self.faults as u64;
        self.prepare_direct(vcpu, view);
        vcpu.use_short_ways(self.options.short);
        let _inside = faults::Inside::new(self.shared.code.range());
        loop {
            if vcpu.state.exit_request.load(Ordering::Acquire) != 0 {
                return Stop::Requested;
            }
            if vcpu.state.clock() >= vcpu.state.stop_at {
                return Stop::Budget;
            }
            if self.options.budget && !self.options.lines {
                vcpu.state.budget -= 1;
                if vcpu.state.budget < 0 {
                    return Stop::Budget;
                }
            }
            if !vcpu.dropped_code.is_empty() {
                self.drop_pages(vcpu);
            }
            self.collect();
            for (rip, word) in self.words.drain(..) {
                vcpu.interp.set_translated(rip, word);
            }
            self.ask_early(vcpu);
            let result = if interpret_only(&vcpu.state) {
                self.interpret(vcpu, interp::run_block)
            } else {
                self.dispatch(vcpu)
            };
            if let Err(stop) = result {
                return stop;
            }
        }
    }

    fn interpret(
        &mut self,
        vcpu: &mut Vcpu,
        how: fn(&mut Vcpu) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let before = vcpu.state.retired;
        let result = how(vcpu);
        self.stats.interpreted += vcpu.state.retired - before;
        result
    }

    /// Runs what is at RIP: its translation, or the block in the interpreter, which may ask for one.
    fn dispatch(&mut self, vcpu: &mut Vcpu) -> Result<(), Stop> {
        let (rip, before) = (vcpu.state.rip, vcpu.state.retired);
        let (slot, exit) = (self.unlinked.take(), self.direct.unlinked.take());
        match self.known(vcpu, rip) {
            Some(word) if word & COPY != 0 => {
                return self.run_copies(vcpu, exit, rip, (word & !COPY) as usize);
            }
            Some(address) => return self.enter(vcpu, slot, rip, address),
            None => {}
        }
        if !vcpu.dropped_code.is_empty() {
            return Ok(());
        }
        match interp::dispatch(vcpu, self.options.threshold) {
            Ok(Dispatched::Translated(word)) if word & COPY != 0 => {
                self.run_copies(vcpu, exit, rip, (word & !COPY) as usize)
            }
            Ok(Dispatched::Translated(address)) => self.enter(vcpu, slot, rip, address),
            Ok(Dispatched::Ran { rip, hits }) => {
                self.stats.interpreted += vcpu.state.retired - before;
                self.count(vcpu, rip, hits);
                Ok(())
            }
            Err(stop) => {
                self.stats.interpreted += vcpu.state.retired - before;
                // What comes before the stop may be worth it.
                let rip = vcpu.interp.entered();
                let hits = interp::hits(vcpu, rip);
                self.count(vcpu, rip, hits);
                Err(stop)
            }
        }
    }

    /// Enters the translation of `rip`, and links the slot by which translated code was left for it.
    fn enter(
        &mut self,
        vcpu: &mut Vcpu,
        slot: Option<u32>,
        rip: u64,
        address: u64,
    ) -> Result<(), Stop> {
        self.jump_cache[rip as usize & (JUMP_CACHE_ENTRIES - 1)] = [rip, address];
        // Whoever runs the vCPU may have sent it elsewhere meanwhile.
        if let Some(slot) = slot.filter(|_| self.options.chaining)
            && self.slot_target.get(slot as usize) == Some(&rip)
            && let Some(live) = self.regions.get_mut(&rip)
        {
            self.shared.slots.link(slot, live.code.address);
            live.incoming.push(slot);
        }
        self.run_translated(vcpu, address as usize)
    }

    /// The word of what there is for the block at `rip`.
    fn word(&self, rip: u64) -> Option<u64> {
        let region = self.regions.get(&rip).map(|r| r.code.address as u64);
        region.or_else(|| self.direct.word(rip))
    }

    /// Asks for the translation of a block that has run so often.
    fn count(&mut self, vcpu: &mut Vcpu, rip: u64, hits: u32) {
        self.count_early(vcpu, rip, hits);
        if hits == 1 {
            // A new block at an old address: it may have been dropped for another page's sake.
            if let Some(word) = self.word(rip) {
                vcpu.interp.set_translated(rip, word);
                return;
            }
        }
        if hits.is_power_of_two() && hits >= self.options.direct {
            self.make_direct(vcpu, rip);
        }
        if hits > 1
            && hits >= self.options.threshold
            && hits.is_multiple_of(self.options.threshold.max(2))
        {
            self.request(vcpu, rip);
        }
    }

    fn run_translated(&mut self, vcpu: &mut Vcpu, address: usize) -> Result<(), Stop> {
        self.stats.entries += 1;
        vcpu.state.engine[word(layout::STEPS)] = self.steps.as_ptr() as u64;
        let outer = std::mem::replace(&mut vcpu.modelled, self.options.lines);
        let state: *mut CpuState = &mut vcpu.state;
        // SAFETY: `enter` was compiled with exactly this signature; `address` is a live region's code (invariant 2),
        // and the state belongs to a boxed vCPU that nothing else touches while it runs.
        let code = unsafe {
            let enter: extern "sysv64" fn(*mut CpuState, usize) -> i64 =
                std::mem::transmute(self.shared.enter);
            enter(state, address)
        };
        vcpu.modelled = outer;
        match code {
            slot if slot >= 0 => {
                let slot = slot as u32;
                let target = self.slot_target[slot as usize];
                vcpu.state.rip = target;
                self.unlinked = Some(slot);
                Ok(())
            }
            exit::INDIRECT => Ok(()),
            exit::INTERPRET => self.interpret(vcpu, interp::step),
            exit::TURN => self.finish_turn(vcpu),
            exit::SPLIT | exit::UNSEEN => {
                let entry = vcpu.state.engine[word(layout::LEFT_REGION)];
                // Its groups lie across pages, or it accesses a page that is not in the view: it goes if it often does.
                let leaves = if code == exit::SPLIT {
                    &mut self.splits
                } else {
                    &mut self.unseen
                };
                if leaves.note(entry) {
                    self.drop_region(entry);
                }
                self.interpret(vcpu, interp::step)
            }
            _ => runtime::take_pending().map_or(Ok(()), Err),
        }
    }

    /// Runs what is left of the turn in the interpreter: regions look only now and then whether it ends.
    fn finish_turn(&mut self, vcpu: &mut Vcpu) -> Result<(), Stop> {
        while vcpu.state.clock() < vcpu.state.stop_at {
            self.interpret(vcpu, interp::run_block)?;
        }
        Ok(())
    }

    /// Whether code without probes is made, and run, for this vCPU.
    fn views(&self, vcpu: &Vcpu) -> bool {
        // Who leaves a region at a fault restores no registers: only the one frame's maker expects none.
        // The mid-end drops a store of what was just loaded, and a fault of it.
        self.options.view
            && self.options.shared_frame
            && self.options.opt_level == OptLevel::None
            && view_of(vcpu).is_some()
            && faults::install()
    }

    /// The CLIF that the region at `rip` becomes; for reading and for tests. Needs a foreground engine.
    pub fn clif(&mut self, vcpu: &mut Vcpu, rip: u64) -> Option<String> {
        let region = Region::form(rip, &self.options, vcpu, decode_at, |_, _| true)?;
        match &mut self.worker {
            Worker::Foreground(c) => c.clif(&region).ok(),
            Worker::Background { .. } | Worker::Idle(_) => None,
        }
    }
}

/// Where the view of guest memory is, if there is one that translated code can use: as far from zero as it is large.
fn view_of(vcpu: &Vcpu) -> Option<u64> {
    let (base, size) = vcpu.mem.view()?;
    let base = base.addr().get() as u64;
    (base == size).then_some(base)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether the state asks for what translated code does not do: single steps, or floating-point exceptions that are
/// raised.
pub(crate) fn interpret_only(state: &CpuState) -> bool {
    const TF: u64 = 1 << 8;
    state.mxcsr & mxcsr::MASKS != mxcsr::MASKS
        || state.rflags & TF != 0
        || interp::alignment_checked(state)
}

/// A jump-cache entry that no address matches: its low bits would lead to another entry. All zeros for most, so that a new cache takes no
/// memory until it is used.
fn empty_entry(index: usize) -> [u64; 2] {
    [u64::from(index == 0), 0]
}

/// Decodes the instruction at `at`, if it can be fetched now without a fault.
fn decode_at(vcpu: &mut Vcpu, at: u64) -> Option<Insn> {
    let mut bytes = [0u8; 15];
    let n = vcpu.fetch(at, &mut bytes).ok()?;
    let insn = decode::decode(at, &bytes[..n]).ok()?;
    Some(vcpu.profile.seen(insn))
}
