//! Regions of hot blocks: when they are asked for, taken in, and thrown away.

use super::warm::Made;
use super::worker::Worker;
use super::{Engine, JUMP_CACHE_ENTRIES, decode_at, empty_entry};
use crate::Error;
use crate::compile::{Code, Compiled};
use crate::faults::{self, Faulting};
use crate::region::Region;
use crate::runtime::StepSite;
use crate::store::file::Image;
use rustc_hash::FxHashMap;
use sevlab_arch::Va;
use sevlab_cpu::{Vcpu, interp};
use std::sync::Arc;

/// A region that is run.
pub(super) struct Live {
    pub(super) code: Code,
    pub(super) pages: Vec<u64>,
    pub(super) blocks: Vec<u64>,
    /// Slots of other regions (and its own) that point here.
    pub(super) incoming: Vec<u32>,
    /// What the code cache wants to know, if it has one and the region is not from there.
    pub(super) made: Option<Box<Made>>,
}

/// How often each region was left because something that it was translated to rely on was not so.
#[derive(Default)]
pub(super) struct Leaves(FxHashMap<u64, u32>);

impl Leaves {
    /// So often, and it is translated without.
    const MOST: u32 = 64;

    /// Counts. Whether the region has to go.
    pub(super) fn note(&mut self, entry: u64) -> bool {
        let times = self.0.entry(entry).or_default();
        *times += 1;
        *times == Self::MOST
    }

    pub(super) fn too_often(&self, entry: u64) -> bool {
        self.0.get(&entry).is_some_and(|&n| n >= Self::MOST)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A region that is being compiled.
pub(super) struct Pending {
    ticket: u64,
    pages: Vec<u64>,
    pub(super) blocks: Vec<u64>,
    insns: u64,
    pub(super) void: bool,
    made: Option<Box<Made>>,
}

impl Engine {
    /// Whether the region at `entry` may be one without probes.
    pub(super) fn may_fault(&self, vcpu: &Vcpu, entry: u64) -> bool {
        !self.unseen.too_often(entry) && self.views(vcpu)
    }

    /// Has the region at a hot block translated.
    pub(super) fn request(&mut self, vcpu: &mut Vcpu, rip: u64) {
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
    pub(super) fn collect(&mut self) {
        self.receive();
        if self.full && self.pending.is_empty() {
            self.flush();
        }
    }

    pub(super) fn install(&mut self, done: Compiled) {
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
    pub(super) fn number(&mut self, code: &Code) {
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
    pub(super) fn admit(&mut self, entry: u64, mut live: Live) {
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
    pub(super) fn add_copies(&mut self, vcpu: &Vcpu, blocks: &[u64]) {
        for &b in blocks {
            let n = self.copies.entry(b).or_default();
            *n = n.saturating_add(1);
        }
        self.warm.cover(vcpu, blocks);
    }

    pub(super) fn forget_copies(&mut self, blocks: &[u64]) {
        for b in blocks {
            if let Some(n) = self.copies.get_mut(b) {
                *n = n.saturating_sub(1);
            }
        }
    }

    /// Drops every region made from a page that the vCPU reports as changed.
    pub(super) fn drop_pages(&mut self, vcpu: &mut Vcpu) {
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
    pub(super) fn drop_region(&mut self, entry: u64) -> bool {
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
        self.shared.code.clear();
        self.full = false;
        self.reopen();
    }
}
