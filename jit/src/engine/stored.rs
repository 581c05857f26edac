//! Copies of blocks in the code cache: what a file is to say of one that was made, and how one of a former run comes to be here.

use super::Engine;
use super::copies::{ALIGN, Source, Trace};
use super::warm::unchanged;
use crate::direct::{Direct, Exit, First, Fix, Memory};
use crate::engine::decode_at;
use crate::store::copies::{self as packed, Stored};
use crate::store::file::{Image, Span};
use rustc_hash::FxHashSet;
use sevlab_cpu::{Vcpu, interp};
use std::borrow::Cow;
use std::time::{Duration, Instant};
use zerocopy::little_endian::{U32, U64};

/// What it takes to decode a block: some 10,000 of the host's instructions.
const DECODE: Duration = Duration::from_micros(3);
/// A file that has so many bytes gets no more copies of what is cold.
const MOST_BYTES: usize = 32 << 20;
/// Making them takes one part in so many of a run, or [`LEAST`].
const SHARE: u32 = 10;
const LEAST: Duration = Duration::from_millis(10);

/// Adds to 32 bits of code.
fn add(code: &mut [u8], at: u32, by: u32) {
    let word = code
        .get_mut(at as usize..)
        .and_then(|c| c.first_chunk_mut());
    if let Some(word) = word {
        *word = u32::from_le_bytes(*word).wrapping_add(by).to_le_bytes();
    }
}

/// The record of a copy that was just made, in a view of so many bytes; `base`: what its code is a distance from.
pub(super) fn record(
    trace: &Trace,
    made: &Direct,
    view: u64,
    cold: bool,
    base: impl Fn(Fix) -> u32,
) -> Box<[u8]> {
    let n = U32::new;
    let (mut spans, mut guest) = (Vec::<Span>::new(), Vec::new());
    for i in &trace.insns {
        guest.extend_from_slice(&i.bytes[..usize::from(i.len)]);
        let end = |s: &Span| s.rip.get().wrapping_add(s.bytes.get().into());
        match spans.last_mut().filter(|s| end(s) == i.rip) {
            Some(span) => span.bytes += u32::from(i.len),
            None => spans.push(Span {
                rip: U64::new(i.rip),
                bytes: n(i.len.into()),
            }),
        }
    }
    let mut code = made.code.clone();
    for &(at, from) in &made.fixes {
        add(&mut code, at, base(from).wrapping_neg());
    }
    let exits = made.exits.iter().map(|e| packed::Exit {
        to: U64::new(e.to),
        jump: n(e.jump),
        stub: n(e.stub),
    });
    let steps = made.steps.iter().map(|&(k, resume, from)| packed::Step {
        rip: U64::new(trace.insns[k].rip),
        resume: n(resume),
        from: n(from),
    });
    let sites = made.sites.iter().map(|&(begins, out)| packed::Site {
        begins: n(begins),
        out: n(out),
    });
    let fixes = made.fixes.iter().map(|&(at, from)| packed::Fix {
        at: n(at),
        from: from as u8,
    });
    let stored = Stored {
        view,
        cold,
        spans: &spans,
        guest: &guest,
        code: &code,
        exits: &exits.collect::<Vec<_>>(),
        steps: &steps.collect::<Vec<_>>(),
        sites: &sites.collect::<Vec<_>>(),
        fixes: &fixes.collect::<Vec<_>>(),
    };
    stored.encode().into()
}

impl Engine {
    /// Takes the copy at `rip` in from the file, if it is there and is of what the guest has there now.
    pub(super) fn take_copy(&mut self, vcpu: &mut Vcpu, image: &Image, rip: u64) {
        if self.try_copy(vcpu, image, rip).is_some() {
            self.stats.loaded_copies += 1;
        }
    }

    fn try_copy(&mut self, vcpu: &mut Vcpu, image: &Image, rip: u64) -> Option<()> {
        let entry = image.find_copy(rip)?;
        let Some(Memory::View { bytes, .. }) = self.direct.memory else {
            return None;
        };
        if self.full || self.direct.refused.contains(&rip) {
            return None;
        }
        let stored = match image.copy(entry) {
            Ok(stored) => stored,
            Err(e) => {
                tracing::warn!(target: "sevlab::jit", rip, error = %e, "copy of the code cache refused");
                return None;
            }
        };
        // What was decoded has its runs counted already.
        if stored.view != bytes || stored.cold && vcpu.interp.has(rip) {
            return None;
        }
        if self.direct.blocks.is_empty() {
            self.direct.reserve(image.copies().len());
        }
        let pages = unchanged(vcpu, stored.spans, stored.guest)?;
        let first = self.direct.first();
        let maker = self.direct.maker.as_ref()?;
        let mut code = stored.code.to_vec();
        for fix in stored.fixes {
            add(
                &mut code,
                fix.at.get(),
                maker.base(Fix::of(fix.from)?, first),
            );
        }
        let steps = stored.steps.iter().map(|s| decode_at(vcpu, s.rip.get()));
        let insns: Vec<_> = steps.collect::<Option<_>>()?;
        // What is full is emptied by whoever wants to add something and has to.
        let at = self.shared.code.append_at(&code, ALIGN).ok()?;
        let exits = stored.exits.iter().map(|e| Exit {
            jump: e.jump.get(),
            stub: e.stub.get(),
            to: e.to.get(),
            line: 0,
        });
        let steps = stored.steps.iter().enumerate();
        let sites = stored.sites.iter();
        let direct = Direct {
            exits: exits.collect(),
            steps: steps
                .map(|(n, s)| (n, s.resume.get(), s.from.get()))
                .collect(),
            sites: sites.map(|s| (s.begins.get(), s.out.get())).collect(),
            ..Direct::default()
        };
        let cold = stored.cold;
        self.stats.cold_copies += u64::from(cold);
        let source = Source::Stored { cold };
        self.admit_copy(rip, at, direct, pages, source, |n| (insns[n], 0));
        Some(())
    }

    /// Whether what is cold goes to the file, if there is one: that says that the program has run before.
    pub(super) fn keeps_cold(&self) -> bool {
        self.options.cold && self.direct.maker.is_some() && !self.warm.is_clone()
    }

    /// Blocks that were decoded, of which neither this run nor the old file has a translation.
    fn cold<'a>(
        &'a self,
        vcpu: &'a Vcpu,
        old: &'a Image,
    ) -> impl Iterator<Item = &'a interp::Block> {
        let none_of = |b: &interp::Block| {
            b.wants_copy()
                && self.word(b.rip).is_none()
                && old.find(b.rip).is_none()
                && old.find_copy(b.rip).is_none()
        };
        let can = self.keeps_cold();
        vcpu.interp.iter().filter(move |b| can && none_of(b))
    }

    /// How long it took to decode those.
    pub(super) fn time_of_cold(&self, vcpu: &Vcpu, old: &Image) -> Duration {
        DECODE * self.cold(vcpu, old).count() as u32
    }

    /// The records of copies of those, or as many as there is time for: the rest is a later run's.
    pub(super) fn cold_copies(&mut self, vcpu: &Vcpu, old: &Image) -> Vec<(u64, Box<[u8]>)> {
        let (begun, time) = (Instant::now(), self.warm.elapsed() / SHARE);
        let mut blocks: Vec<u64> = self.cold(vcpu, old).map(|b| b.rip).collect();
        // Mostly a program goes on at higher addresses: so what runs behind another block comes after it.
        blocks.sort_unstable();
        let mut covered = FxHashSet::default();
        let Some(Memory::View { bytes, .. }) = self.direct.memory else {
            return Vec::new();
        };
        let mut made = Vec::new();
        let mut bytes_left = MOST_BYTES.saturating_sub(old.len());
        for (n, rip) in blocks.into_iter().enumerate() {
            if bytes_left == 0 || n % 64 == 63 && begun.elapsed() > time.max(LEAST) {
                break;
            }
            let Some(block) = vcpu.interp.block(rip).filter(|_| !covered.contains(&rip)) else {
                continue;
            };
            let none_of = |at| old.find(at).is_none() && old.find_copy(at).is_none();
            let trace = self.trace(vcpu, block, |at| !covered.contains(&at) && none_of(at));
            // One that ran more often is come to from elsewhere, too.
            let only_here = |at: &u64| interp::hits(vcpu, *at) <= block.hits.get();
            covered.extend(trace.behind.iter().copied().filter(only_here));
            let Some(maker) = &mut self.direct.maker else {
                continue;
            };
            let first = First::default();
            if let Some(copy) = maker.make(&trace.insns, &trace.decoded, &[], first) {
                let base = |fix| maker.base(fix, first);
                let record = record(&trace, &copy, bytes, true, base);
                bytes_left = bytes_left.saturating_sub(record.len());
                made.push((rip, record));
            }
        }
        made
    }

    /// The records of copies for a file: those that were made in this run, and those of the old file that were not made anew.
    pub(super) fn stored_copies<'a>(&'a self, old: Option<&'a Image>) -> Vec<(u64, Cow<'a, [u8]>)> {
        let made = |rip: &u64| self.direct.blocks.get(rip)?.made.as_deref();
        let new = self.direct.blocks.keys();
        let new = new.filter_map(|rip| Some((*rip, Cow::Borrowed(made(rip)?))));
        let kept = old.into_iter().flat_map(|old| {
            let index = old.copies().iter();
            let index = index.filter(|e| made(&e.rip.get()).is_none() && old.copy(e).is_ok());
            index.filter_map(|e| Some((e.rip.get(), Cow::Borrowed(old.raw(e)?))))
        });
        new.chain(kept).collect()
    }
}
