//! The dispatcher: decides what runs where, keeps regions linked, and throws away what became wrong.
//!
//! Invariants:
//! 1. A region is in `regions` only while every guest page it was made from is tracked by the vCPU's code map and
//!    none of them has been reported in `dropped_code` since its bytes were read.
//! 2. A slot or a jump-cache entry points at a region only while that region is in `regions`.
//! 3. Code memory is reset only here, when no translated code is running and no compilation is under way.
#![allow(unsafe_code)] // enters translated code

mod copies;
mod stored;
mod warm;

use crate::compile::{Code, Compiled, Compiler, Shared};
use crate::faults::{self, Faulting};
use crate::layout::{self, JUMP_CACHE_ENTRIES, exit, word};
use crate::region::Region;
use crate::runtime::{self, StepSite};
use crate::store::file::Image;
use crate::{Error, JitOptions, OptLevel};
use copies::{COPY, Copies};
use rustc_hash::{FxHashMap, FxHashSet};
use sevlab_arch::Va;
use sevlab_cpu::insn::Insn;
use sevlab_cpu::interp::Dispatched;
use sevlab_cpu::thunk::mxcsr;
use sevlab_cpu::{CpuState, Stop, Vcpu, decode, interp};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use warm::{Made, Warm};

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

struct Live {
    code: Code,
    pages: Vec<u64>,
    blocks: Vec<u64>,
    /// Slots of other regions (and its own) that point here.
    incoming: Vec<u32>,
    /// What the code cache wants to know, if it has one and the region is not from there.
    made: Option<Box<Made>>,
}

/// How often each region was left because something that it was translated to rely on was not so.
#[derive(Default)]
struct Leaves(FxHashMap<u64, u32>);

impl Leaves {
    /// So often, and it is translated without.
    const MOST: u32 = 64;

    /// Counts. Whether the region has to go.
    fn note(&mut self, entry: u64) -> bool {
        let times = self.0.entry(entry).or_default();
        *times += 1;
        *times == Self::MOST
    }

    fn too_often(&self, entry: u64) -> bool {
        self.0.get(&entry).is_some_and(|&n| n >= Self::MOST)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

struct Pending {
    ticket: u64,
    pages: Vec<u64>,
    blocks: Vec<u64>,
    insns: u64,
    void: bool,
    made: Option<Box<Made>>,
}

/// Where regions are compiled.
enum Worker {
    Foreground(Box<Compiler>),
    /// On a thread that starts with the first request; `None` if there is no compiler yet either.
    Idle(Option<Box<Compiler>>),
    Background {
        requests: Sender<(u64, Region)>,
        results: Receiver<Compiled>,
        ready: Arc<AtomicUsize>,
        thread: JoinHandle<()>,
    },
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

    /// The engine ends, and its compile thread with it: after what it is at.
    pub fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let worker = std::mem::replace(&mut self.worker, Worker::Idle(None));
        if let Worker::Background {
            requests, thread, ..
        } = worker
        {
            drop(requests);
            // A panic there has been printed.
            let _ = thread.join();
        }
    }

    /// Hands a region to the compile thread, which is started if need be. False if there is none.
    fn send(&mut self, ticket: u64, region: Region) -> bool {
        if let Worker::Idle(compiler) = &mut self.worker {
            let compiler = match compiler.take() {
                Some(compiler) => Ok(*compiler),
                None => Compiler::again(&self.options, Arc::clone(&self.shared)),
            };
            match compiler.and_then(|c| background(c, &self.stop, &self.quiet)) {
                Ok(worker) => self.worker = worker,
                Err(e) => {
                    tracing::warn!(target: "sevlab::jit", error = %e, "no compile thread");
                    return false;
                }
            }
        }
        match &self.worker {
            Worker::Background { requests, .. } => requests.send((ticket, region)).is_ok(),
            _ => false,
        }
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

    /// Whether the region at `entry` may be one without probes.
    fn may_fault(&self, vcpu: &Vcpu, entry: u64) -> bool {
        !self.unseen.too_often(entry) && self.views(vcpu)
    }

    /// Has the region at a hot block translated.
    fn request(&mut self, vcpu: &mut Vcpu, rip: u64) {
        if self.full || self.pending.contains_key(&rip) || self.refused.contains(&rip) {
            return;
        }
        let (counts, hot) = (self.warm.counts(), interp::hits(vcpu, rip));
        let hot = match &counts {
            Some(counts) => hot.max(counts.hits_at(rip)),
            None => hot,
        };
        let warm = (self.options.threshold.min(hot) / 16).max(1);
        // Cold code is left to the interpreter; code that has a region of its own is chained to; and no block is
        // translated too often: every return address is an entry, and behind each the same blocks follow.
        let (regions, pending, copies) = (&self.regions, &self.pending, &self.copies);
        let most = self.options.max_copies;
        let region = Region::form(rip, &self.options, vcpu, decode_at, |vcpu, at| {
            let known = |c: &Arc<Image>| c.hits_at(at) >= warm && c.find(at).is_none();
            (interp::hits(vcpu, at) >= warm || counts.as_ref().is_some_and(known))
                && !regions.contains_key(&at)
                && !pending.contains_key(&at)
                && copies.get(&at).is_none_or(|&n| n < most)
        });
        let Some(mut region) = region else {
            self.refused.insert(rip);
            return;
        };
        region.view = self.may_fault(vcpu, rip);
        region.groups = !self.splits.too_often(rip);
        let pages = region.pages();
        if pages.iter().any(|p| vcpu.note_code(Va(p << 12)).is_err()) {
            return;
        }
        let blocks: Vec<u64> = region.blocks.iter().map(|b| b.rip).collect();
        self.add_copies(vcpu, &blocks);
        let made = self.warm.made(&region);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let insns = region.blocks.iter().map(|b| b.insns.len() as u64).sum();
        self.pending.insert(
            rip,
            Pending {
                ticket,
                pages,
                blocks,
                insns,
                void: false,
                made,
            },
        );
        match &mut self.worker {
            Worker::Foreground(compiler) => {
                let done = compiler.compile(ticket, &region);
                self.install(done);
            }
            Worker::Background { .. } | Worker::Idle(_) => {
                // If there is no thread, the program simply stays in the interpreter.
                if !self.send(ticket, region) {
                    self.full = true;
                }
            }
        }
    }

    /// Takes finished compilations in.
    fn collect(&mut self) {
        self.receive();
        if self.full && self.pending.is_empty() {
            self.flush();
        }
    }

    fn receive(&mut self) {
        while let Worker::Background { results, ready, .. } = &self.worker
            && ready.load(Ordering::Acquire) != 0
            && let Ok(done) = results.try_recv()
        {
            ready.fetch_sub(1, Ordering::AcqRel);
            self.install(done);
        }
    }

    fn install(&mut self, done: Compiled) {
        self.stats.compile_time += done.time;
        let Some(pending) = self.pending.remove(&done.entry) else {
            return;
        };
        let code = match done.result {
            Ok(code) => code,
            Err(Error::CodeBufferFull) => {
                self.full = true;
                self.forget_copies(&pending.blocks);
                return;
            }
            Err(e) => {
                tracing::debug!(target: "sevlab::jit", rip = done.entry, error = %e, "region refused");
                self.stats.refused += 1;
                self.refused.insert(done.entry);
                self.forget_copies(&pending.blocks);
                return;
            }
        };
        self.number(&code);
        if pending.void || pending.ticket != done.ticket {
            self.forget_copies(&pending.blocks);
            return;
        }
        self.stats.regions += 1;
        self.stats.guest_insns += pending.insns;
        self.stats.host_bytes += code.bytes as u64;
        self.stats.host_insns += code.instructions as u64;
        if pending.made.is_some() {
            self.warm.added += done.time;
        }
        self.admit(
            done.entry,
            Live {
                code,
                pages: pending.pages,
                blocks: pending.blocks,
                incoming: Vec::new(),
                made: pending.made,
            },
        );
    }

    /// Fills in what the numbers in a region's code stand for.
    fn number(&mut self, code: &Code) {
        let first = code.slot_base as usize;
        let end = first + code.targets.len();
        if self.slot_target.len() < end {
            self.slot_target.resize(end, 0);
        }
        self.slot_target[first..end].copy_from_slice(&code.targets);
        let first = code.step_base as usize;
        let end = first + code.steps.len();
        if self.steps.len() < end {
            self.steps.resize_with(end, StepSite::default);
        }
        let costs = self.options.costs.as_deref();
        for (site, insn) in self.steps[first..end].iter_mut().zip(&code.steps) {
            *site = StepSite::new(*insn, costs.map_or(0, |c| c.tally(insn)));
        }
    }

    /// From here on the region at `entry` is run.
    fn admit(&mut self, entry: u64, mut live: Live) {
        for &p in &live.pages {
            self.by_page.entry(p).or_default().push(entry);
        }
        self.words.push((entry, live.code.address as u64));
        let code = &mut live.code;
        if !code.sites.starts.is_empty() {
            let faulting = Faulting {
                end: code.begin + code.bytes,
                entry,
                sites: std::mem::take(&mut code.sites),
            };
            self.faults.regions.insert(code.begin, faulting);
        }
        self.regions.insert(entry, live);
    }

    /// Blocks are part of one region more.
    fn add_copies(&mut self, vcpu: &Vcpu, blocks: &[u64]) {
        for &b in blocks {
            let n = self.copies.entry(b).or_default();
            *n = n.saturating_add(1);
        }
        self.warm.cover(vcpu, blocks);
    }

    fn forget_copies(&mut self, blocks: &[u64]) {
        for b in blocks {
            if let Some(n) = self.copies.get_mut(b) {
                *n = n.saturating_sub(1);
            }
        }
    }

    /// Drops every region made from a page that the vCPU reports as changed.
    fn drop_pages(&mut self, vcpu: &mut Vcpu) {
        for page in std::mem::take(&mut vcpu.dropped_code) {
            let page = page >> 12;
            for p in self.pending.values_mut() {
                p.void |= p.pages.contains(&page);
            }
            self.drop_copies_of(page);
            for entry in self.by_page.remove(&page).unwrap_or_default() {
                self.stats.dropped += u64::from(self.drop_region(entry));
            }
        }
        self.refused.clear();
    }

    /// Forgets a region, if there is one at that entry.
    fn drop_region(&mut self, entry: u64) -> bool {
        let Some(live) = self.regions.remove(&entry) else {
            return false;
        };
        self.words.push((entry, 0));
        self.faults.regions.remove(&live.code.begin);
        self.forget_copies(&live.blocks);
        for slot in live.incoming {
            self.shared.slots.unlink(slot);
        }
        let index = entry as usize & (JUMP_CACHE_ENTRIES - 1);
        if self.jump_cache[index][0] == entry {
            self.jump_cache[index] = empty_entry(index);
        }
        for p in &live.pages {
            if let Some(list) = self.by_page.get_mut(p) {
                list.retain(|&e| e != entry);
            }
        }
        true
    }

    /// Throws all translations away and starts with an empty buffer.
    fn flush(&mut self) {
        self.stats.flushes += u64::from(!self.warm.switches());
        // Regions that were dropped just now are not in the list any more, but their blocks may still be there.
        self.words.retain(|w| w.1 == 0);
        self.words
            .extend(self.regions.keys().map(|&entry| (entry, 0)));
        self.unlinked = None;
        self.regions.clear();
        self.copies.clear();
        self.steps.clear();
        *self.faults = faults::Table::default();
        self.forget_copies_made();
        self.by_page.clear();
        self.slot_target.clear();
        for (index, entry) in self.jump_cache.iter_mut().enumerate() {
            *entry = empty_entry(index);
        }
        self.shared.code.truncate(self.shared.keep);
        self.full = false;
        self.reopen();
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

/// Starts the compile thread.
fn background(
    mut compiler: Compiler,
    stop: &Arc<AtomicBool>,
    quiet: &Arc<Mutex<()>>,
) -> Result<Worker, Error> {
    let (requests, inbox) = channel::<(u64, Region)>();
    let (outbox, results) = channel();
    let ready = Arc::new(AtomicUsize::new(0));
    let (flag, stopped, quiet) = (Arc::clone(&ready), Arc::clone(stop), Arc::clone(quiet));
    let (begun, has_begun) = sync_channel(1);
    let work = move || {
        let _ = begun.send(());
        while let Ok((ticket, region)) = inbox.recv() {
            let _working = quiet.lock().unwrap_or_else(PoisonError::into_inner);
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let done = compiler.compile(ticket, &region);
            if outbox.send(done).is_err() {
                break;
            }
            flag.fetch_add(1, Ordering::Release);
        }
    };
    let thread = without_signals(|| {
        std::thread::Builder::new()
            .name("sevlab-jit".into())
            .spawn(work)
            .map_err(|e| Error::Host(format!("compile thread: {e}")))
    })?;
    // A thread that is being started holds locks of the standard library, which a clone of the host process would find locked.
    let _ = has_begun.recv();
    Ok(Worker::Background {
        requests,
        results,
        ready,
        thread,
    })
}

/// Runs `f`, whose new threads take none of the process's signals.
fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: plain calls on live locals.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
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
