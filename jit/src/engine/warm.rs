//! The engine's side of the code cache ([`crate::store`]): regions that a former run translated, and blocks that it found warm. Copies are
//! in [`super::stored`].
//!
//! A region of the file is taken in when control comes to its entry: before the interpreter decodes the block there, and, because its
//! other pages may not be mapped then, again as the block has run 2, 4, 8, ... times. From then on it is a region as any other.
//! Blocks that a former run interpreted often, but not so often that they were translated, are translated as soon as
//! they are met, the hottest first, for as long as compiling does not take more than a share of the run.
//!
//! Invariants, besides the engine's:
//! 1. A region is taken in only after its pages were noted as code and then its guest bytes compared, all of them, with what
//!    the guest would fetch now. So the engine's first invariant holds for it as for a region compiled at this moment.
//! 2. The numbers in its code are below those that the compiler gives out ([`Engine::reopen`]).
//! 3. Where vCPUs run in turns, nothing of this is used: how threads interleave may depend on what is translated.

use super::regions::Live;
use super::{Engine, decode_at};
use crate::JitOptions;
use crate::compile::{Code, Compiler};
use crate::layout::JUMP_CACHE_ENTRIES;
use crate::region::Region;
use crate::store::Store;
use crate::store::file::{Contents, Image, MOST_BLOCK, Record, Span};
use crate::store::key::Key;
use crate::store::sites::Lists;
use rustc_hash::FxHashMap;
use sevlab_arch::Va;
use sevlab_cpu::interp;
use sevlab_cpu::profile::Profile;
use sevlab_cpu::{Insn, Vcpu};
use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zerocopy::little_endian::{U32, U64};

/// Most blocks whose runs are kept in a file.
const MOST_COUNTS: usize = 1 << 16;
/// Of the time since the program began, compiling in the foreground may have taken one part in so many before no more warm blocks are
/// translated. A thread of its own may have been at it all the time.
const SHARE: u32 = 3;
/// Translations of warm blocks under way at a time: whoever gets hot in this run does not wait behind them for long.
const AT_ONCE: usize = 2;
/// It is looked whether a warm block may be translated once in so many turns of the dispatcher.
const LOOK: u32 = 64;
/// A file is written again once what it lacks took longer to compile than this many nanoseconds for each of its bytes.
const WRITE: u64 = 1;

/// What a file is to say of a region, besides what the engine keeps anyway.
pub(super) struct Made {
    spans: Vec<Span>,
    guest: Vec<u8>,
    insns: u32,
    groups: bool,
    view: bool,
}

/// A program that is about to run.
struct Next {
    program: PathBuf,
    profile: Profile,
    /// Whether regions for it are made without probes.
    view: bool,
}

/// The engine's part of the cache.
pub(super) struct Warm {
    /// The code generator's settings; None: no cache is to be used.
    settings: Option<String>,
    store: Option<Store>,
    /// The program that runs, as soon as nothing of the last one is left.
    next: Option<Next>,
    /// Whether there has been a program.
    begun: Option<Instant>,
    /// Warm blocks that were met: how often they ran in a former run, and where they are.
    wanted: BinaryHeap<(u32, u64)>,
    /// How often blocks had run when they became part of a region: not because they are entered from elsewhere.
    covered: FxHashMap<u64, u32>,
    /// Time that it took to compile what the file lacks.
    pub(super) added: Duration,
    looks: u32,
    is_clone: bool,
}

impl Warm {
    pub(super) fn new(options: &JitOptions, compiler: &Compiler) -> Self {
        let usable = options.dump_dir.is_none() && !options.count_host;
        let in_turns = options.budget || options.lines;
        let used = options.cache.is_some() && usable && !in_turns;
        Self {
            settings: used.then(|| compiler.settings()),
            store: None,
            next: None,
            begun: None,
            wanted: BinaryHeap::new(),
            covered: FxHashMap::default(),
            added: Duration::ZERO,
            looks: 0,
            is_clone: false,
        }
    }

    /// In a clone of the host process: what is not in the file is the original's to write.
    pub(super) fn forked(&mut self) {
        self.added = Duration::ZERO;
        self.is_clone = true;
    }

    /// Whether the program that runs began in another process.
    pub(super) fn is_clone(&self) -> bool {
        self.is_clone
    }

    /// Time since the program began.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.map_or(Duration::ZERO, |t| t.elapsed())
    }

    /// Whether the engine empties its buffer because another program begins.
    pub(super) fn switches(&self) -> bool {
        self.next.is_some()
    }

    /// What former runs counted.
    pub(super) fn counts(&self) -> Option<Arc<Image>> {
        self.store.as_ref()?.image.clone()
    }

    /// When something begins that a file may lack, if there is one.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.store.as_ref().map(|_| Instant::now())
    }

    /// What the file is to say of a region that is about to be compiled.
    pub(super) fn made(&self, region: &Region) -> Option<Box<Made>> {
        self.store.as_ref()?;
        let bytes = |i: &Insn| i.bytes[..usize::from(i.len)].to_vec();
        let spans = region.blocks.iter().map(|b| Span {
            rip: U64::new(b.rip),
            bytes: U32::new(b.insns.iter().map(|i| u32::from(i.len)).sum()),
        });
        let insns = || region.blocks.iter().flat_map(|b| &b.insns);
        Some(Box::new(Made {
            spans: spans.collect(),
            guest: insns().flat_map(bytes).collect(),
            insns: insns().count() as u32,
            groups: region.groups,
            view: region.view,
        }))
    }

    /// Notes how often blocks have run that become part of a region.
    pub(super) fn cover(&mut self, vcpu: &Vcpu, blocks: &[u64]) {
        if self.store.is_some() {
            let run = blocks.iter().map(|&b| (b, interp::hits(vcpu, b)));
            self.covered.extend(run.filter(|&(_, hits)| hits != 0));
        }
    }
}

impl Engine {
    /// From here on the guest runs `program` in an address space of its own. Called before the first run, and after an execve: what
    /// was translated of the program before goes to its file.
    pub fn program(&mut self, vcpu: &Vcpu, program: &Path) {
        if self.warm.settings.is_none() {
            return;
        }
        let first = self.warm.begun.is_none();
        if !first {
            self.save(vcpu);
        }
        self.warm.next = Some(Next {
            program: program.to_owned(),
            profile: vcpu.profile,
            view: self.views(vcpu),
        });
        if first {
            self.reopen();
        } else {
            // Numbers of the old program's regions are in the way until no compilation is under way.
            self.warm.store = None;
            self.warm.wanted.clear();
            self.full = true;
            for p in self.pending.values_mut() {
                p.void = true;
            }
        }
    }

    /// The buffer is empty: numbers begin behind those of the file, if there is a program to open one for. If not, this buffer was
    /// full, and numbers of the file may be given out again: it is not used any more.
    pub(super) fn reopen(&mut self) {
        let warm = &mut self.warm;
        warm.store = None;
        warm.wanted.clear();
        warm.covered.clear();
        warm.added = Duration::ZERO;
        if let (Some(next), Some(settings), Some(cache)) =
            (warm.next.take(), &warm.settings, &self.options.cache)
        {
            let program = &next.program;
            let key = Key::new(settings, &self.options, &next.profile, next.view, program);
            warm.store = Store::open(cache, key, program);
            warm.begun = Some(Instant::now());
            warm.is_clone = false;
            self.splits.clear();
            self.unseen.clear();
            self.refused.clear();
        }
        let image = warm.counts();
        let (slots, steps) = image.map_or((0, 0), |i| (i.slots, i.steps));
        self.shared.slots.reset(slots);
        self.shared.next_step.store(steps, Ordering::Relaxed);
    }

    /// The word of what there is for the block at `rip`, if the engine knows it without the interpreter: it has just been there, or the block has
    /// not been decoded. May find that code was dropped, which is to be seen to before anything else.
    pub(super) fn known(&mut self, vcpu: &mut Vcpu, rip: u64) -> Option<u64> {
        // A cache that has nothing takes no memory: it is not read for nothing, either.
        if !self.regions.is_empty() {
            let [tag, address] = self.jump_cache[rip as usize & (JUMP_CACHE_ENTRIES - 1)];
            if tag == rip {
                return Some(address);
            }
        }
        let image = self.warm.store.as_ref()?.image.as_ref()?;
        if vcpu.interp.has(rip) {
            return None;
        }
        if self.word(rip).is_none() {
            let image = Arc::clone(image);
            if !self.take_in(vcpu, &image, rip) && vcpu.dropped_code.is_empty() {
                self.take_copy(vcpu, &image, rip);
            }
        }
        let word = self.word(rip)?;
        vcpu.dropped_code.is_empty().then_some(word)
    }

    /// A block has run so often: its region may be in the file, or it was warm in a former run.
    pub(super) fn count_early(&mut self, vcpu: &mut Vcpu, rip: u64, hits: u32) {
        let Some(image) = self.warm.counts() else {
            return;
        };
        if hits == 1 {
            let before = image.hits_at(rip);
            if before >= self.options.warm {
                self.warm.wanted.push((before, rip));
                self.warm.looks = LOOK - 1;
            }
        } else if hits.is_power_of_two() && !self.regions.contains_key(&rip) {
            self.take_in(vcpu, &image, rip);
        }
        if hits.is_power_of_two() && self.word(rip).is_none() {
            self.take_copy(vcpu, &image, rip);
        }
    }

    /// Asks for translations of warm blocks, while there is time for it.
    pub(super) fn ask_early(&mut self, vcpu: &mut Vcpu) {
        if self.warm.wanted.is_empty() {
            return;
        }
        self.warm.looks = self.warm.looks.wrapping_add(1);
        if !self.warm.looks.is_multiple_of(LOOK) {
            return;
        }
        let share = if self.options.background { 1 } else { SHARE };
        let elapsed = self.warm.elapsed();
        while !self.full
            && self.pending.len() < AT_ONCE
            && self.stats.compile_time * share <= elapsed
            && let Some((_, rip)) = self.warm.wanted.pop()
        {
            if !self.regions.contains_key(&rip) {
                self.request(vcpu, rip);
            }
        }
    }

    /// Takes the region at `rip` in from the file, if it is there and is of what the guest has there now.
    fn take_in(&mut self, vcpu: &mut Vcpu, image: &Image, rip: u64) -> bool {
        let Some(entry) = image.find(rip) else {
            return false;
        };
        if self.full || self.pending.contains_key(&rip) {
            return false;
        }
        let record = match image.record(entry) {
            Ok(record) => record,
            Err(e) => {
                tracing::warn!(target: "sevlab::jit", rip, error = %e, "region of the code cache refused");
                return false;
            }
        };
        if record.groups && self.splits.too_often(rip) {
            return false;
        }
        if record.view && !self.may_fault(vcpu, rip) {
            return false;
        }
        let Some((pages, steps)) = current(vcpu, &record) else {
            return false;
        };
        let Some(sites) = record.sites.unpack() else {
            return false;
        };
        let Ok(begin) = self.shared.code.append(record.code) else {
            return false;
        };
        let targets = record.targets.iter().map(|t| t.get()).collect();
        let blocks: Vec<u64> = record.spans.iter().map(|s| s.rip.get()).collect();
        let code = Code {
            address: begin + record.entry as usize,
            bytes: record.code.len(),
            instructions: 0,
            slot_base: record.slot_base,
            targets,
            step_base: record.step_base,
            steps,
            sites,
            begin,
        };
        self.number(&code);
        for slot in 0..code.targets.len() as u32 {
            self.shared.slots.unlink(code.slot_base + slot);
        }
        self.add_copies(vcpu, &blocks);
        self.stats.loaded += 1;
        let live = Live {
            code,
            pages,
            blocks,
            incoming: Vec::new(),
            made: None,
        };
        self.admit(rip, live);
        true
    }

    /// Writes the program's file, if this run has something to add that is worth it. To be called when the program has ended, on the
    /// engine of each of its threads.
    pub fn save(&mut self, vcpu: &Vcpu) {
        self.receive();
        let Some(store) = &self.warm.store else {
            return;
        };
        let old = store.image.clone();
        let old = old.as_deref();
        let mut cold = Vec::new();
        if let Some(old) = old {
            let worth = Duration::from_nanos(old.len() as u64 * WRITE);
            if self.warm.added + self.time_of_cold(vcpu, old) > worth {
                cold = self.cold_copies(vcpu, old);
            }
            if cold.is_empty() && self.warm.added <= worth {
                return;
            }
        }
        let counts = self.counts(vcpu, old);
        let nothing = counts.is_empty() && self.warm.added.is_zero() && !self.keeps_cold();
        if old.is_none() && nothing {
            return;
        }
        let new = self.regions.iter().filter_map(|(&rip, live)| {
            let record = self.record(live)?;
            Some((rip, Cow::Owned(record)))
        });
        let mut regions: Vec<_> = new.collect();
        let kept = old.into_iter().flat_map(|old| {
            let index = old.index().iter();
            let index = index.filter(|e| self.keeps(e.rip.get()) && old.record(e).is_ok());
            index.filter_map(|e| Some((e.rip.get(), Cow::Borrowed(old.raw(e)?))))
        });
        regions.extend(kept);
        let mut copies = self.stored_copies(old);
        let cold = cold
            .iter()
            .map(|(rip, record)| (*rip, Cow::Borrowed(&**record)));
        copies.extend(cold);
        let Some(store) = &self.warm.store else {
            return;
        };
        store.write(Contents {
            slots: self.shared.slots.peek(),
            steps: self.shared.next_step.load(Ordering::Relaxed),
            regions,
            copies,
            counts,
        });
        self.warm.added = Duration::ZERO;
    }

    /// Whether the file's region at `rip` has not been replaced in this run.
    fn keeps(&self, rip: u64) -> bool {
        self.regions
            .get(&rip)
            .is_none_or(|live| live.made.is_none())
    }

    /// What the file is to say of a region that was compiled in this run.
    fn record(&self, live: &Live) -> Option<Vec<u8>> {
        let (made, code) = (live.made.as_ref()?, &live.code);
        let host = self.shared.code.function(code.begin, code.bytes)?;
        let sites = match self.faults.regions.get(&code.begin) {
            Some(faulting) => Lists::new(&faulting.sites)?,
            None => Lists::default(),
        };
        let words = |list: &mut dyn Iterator<Item = u64>| list.map(U64::new).collect::<Vec<_>>();
        let record = Record {
            slot_base: code.slot_base,
            step_base: code.step_base,
            insns: made.insns,
            groups: made.groups,
            view: made.view,
            entry: (code.address - code.begin) as u32,
            targets: &words(&mut code.targets.iter().copied()),
            steps: &words(&mut code.steps.iter().map(|i| i.rip)),
            spans: &made.spans,
            guest: &made.guest,
            code: host,
            sites: sites.packed(),
        };
        Some(record.encode())
    }

    /// Blocks without a region, and how often the interpreter ran them: in this run, or in a former one if they were not met in this.
    fn counts(&self, vcpu: &Vcpu, old: Option<&Image>) -> Vec<(u64, u32)> {
        let covered = &self.warm.covered;
        let run = vcpu.interp.iter().map(|b| {
            let before = covered.get(&b.rip).copied().unwrap_or(0);
            (b.rip, b.hits.get().saturating_sub(before))
        });
        let former = old.into_iter().flat_map(Image::hits);
        let former = former.map(|c| (c.rip.get(), c.hits.get()));
        let unmet = former.filter(|&(rip, _)| vcpu.interp.block(rip).is_none());
        let stored = |rip| old.is_some_and(|old| old.find(rip).is_some());
        let mut counts: Vec<_> = run
            .chain(unmet)
            .filter(|&(rip, hits)| {
                hits >= self.options.warm && !self.regions.contains_key(&rip) && !stored(rip)
            })
            .collect();
        if counts.len() > MOST_COUNTS {
            counts.sort_unstable_by_key(|&(_, hits)| std::cmp::Reverse(hits));
            counts.truncate(MOST_COUNTS);
        }
        counts
    }
}

/// The pages of a stored region and its instructions for helpers, if the guest has now what it was made from.
fn current(vcpu: &mut Vcpu, record: &Record<'_>) -> Option<(Vec<u64>, Vec<Insn>)> {
    let pages = unchanged(vcpu, record.spans, record.guest)?;
    let steps = record.steps.iter().map(|at| decode_at(vcpu, at.get()));
    Some((pages, steps.collect::<Option<_>>()?))
}

/// The pages that spans of code are in, if the guest has these bytes there now. The pages are noted as code before their bytes are read.
pub(super) fn unchanged(vcpu: &mut Vcpu, spans: &[Span], guest: &[u8]) -> Option<Vec<u64>> {
    let mut pages: Vec<u64> = spans
        .iter()
        .flat_map(|s| {
            let last = s.rip.get().wrapping_add(u64::from(s.bytes.get()) - 1);
            [s.rip.get() >> 12, last >> 12]
        })
        .collect();
    pages.sort_unstable();
    pages.dedup();
    for page in &pages {
        vcpu.note_code(Va(page << 12)).ok()?;
    }
    let mut rest = guest;
    for span in spans {
        let (expected, behind) = rest.split_at_checked(span.bytes.get() as usize)?;
        let mut bytes = [0; MOST_BLOCK];
        let bytes = bytes.get_mut(..expected.len())?;
        let fetched = vcpu.fetch(span.rip.get(), bytes).ok()?;
        if fetched != expected.len() || bytes != expected {
            return None;
        }
        rest = behind;
    }
    Some(pages)
}
