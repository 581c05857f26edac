#![allow(unsafe_code)] // AES between the two mappings
//! Where the bytes of cached lines are: the plaintext of an encrypted page's cached lines in `plain`, everything else in DRAM.
//!
//! Invariants:
//! 1. [`Pages`] has a bit for exactly the lines that are in a cache, between calls. They belong to the page's one domain.
//! 2. A page with a cached or kept encrypted line has its owner in `States`; another has none.
//! 3. A kept line ([`Kept`]) is encrypted before anybody but its own domain's caches could miss that.

use std::ptr::NonNull;

use sevlab_arch::{Asid, PAGE_SHIFT, Spa};

use super::KEPT;
use crate::cipher::{BLOCK, Engine};
use crate::ctl::Domain;
use crate::dram::Dram;
use crate::keys::KeySlots;
use crate::model::LINE;
use crate::residency::States;

pub(super) const LINE_SHIFT: u32 = LINE.trailing_zeros();
/// A page number is a line number shifted by this.
pub(super) const PAGE_LINES_SHIFT: u32 = PAGE_SHIFT - LINE_SHIFT;

/// What the hierarchy needs of the rest of the controller.
#[derive(Clone, Copy)]
pub(super) struct Env<'a> {
    pub dram: &'a Dram,
    pub states: &'a States,
    pub keys: &'a KeySlots,
}

impl Env<'_> {
    /// The host address of a line's bytes.
    #[inline]
    pub(super) fn host(&self, line: u64, domain: Domain) -> NonNull<u8> {
        let at = line << LINE_SHIFT;
        match domain {
            Domain::Shared => self.dram.raw.ptr(at),
            Domain::Private(_) => self.dram.plain().ptr(at),
        }
    }

    /// The cipher of an ASID whose lines are cached, or are about to be: that it has a key was checked before.
    #[inline]
    fn engine(&self, line: u64, asid: Asid) -> &Engine {
        let spa = Spa(line << LINE_SHIFT);
        match self.keys.engine(asid, spa) {
            Ok(engine) => engine,
            // A key goes only after its lines went.
            Err(_) => unreachable!("line {spa} is cached under ASID {asid}, which has no key"),
        }
    }

    /// Asks the host for what a fill of the line needs.
    #[inline]
    pub(super) fn prefetch(&self, line: u64, domain: Domain) {
        super::host::prefetch(self.dram.raw.ptr(line << LINE_SHIFT).as_ptr());
        if domain != Domain::Shared {
            super::host::prefetch_write(self.dram.plain().ptr(line << LINE_SHIFT).as_ptr());
        }
    }

    /// `plain` from DRAM.
    #[inline]
    fn decrypt(&self, line: u64, asid: Asid) {
        let spa = line << LINE_SHIFT;
        let src = self.dram.raw.span(spa, LINE as usize);
        let dst = self.dram.plain().span(spa, LINE as usize);
        let engine = self.engine(line, asid);
        // SAFETY: both spans are a line inside their mappings, and `spa` is a line's.
        unsafe { engine.decrypt_line(spa, src.as_ptr(), dst.as_ptr()) };
    }

    /// DRAM from `plain`.
    pub(super) fn encrypt(&self, line: u64, asid: Asid) {
        let spa = line << LINE_SHIFT;
        let src = self.dram.plain().span(spa, LINE as usize);
        let dst = self.dram.raw.span(spa, LINE as usize);
        self.dram.mark(spa >> PAGE_SHIFT);
        let engine = self.engine(line, asid);
        // SAFETY: both spans are a line inside their mappings, and `spa` is a line's.
        unsafe { engine.encrypt_line(spa, src.as_ptr(), dst.as_ptr()) };
    }
}

/// What is known of a page: its cached lines, and who may have them.
#[derive(Clone, Copy, Default)]
pub(super) struct Page {
    /// A bit for each line that is in a cache.
    pub cached: u64,
    /// Low bits: cores (modulo their number) whose private caches may have lines. High bits: 0 for a shared page, else ASID + 1.
    who: u64,
}

/// AES blocks of a line.
const BLOCKS: u64 = LINE / BLOCK as u64;
pub(super) const CORE_BITS: u32 = 48;
const CORES: u64 = (1 << CORE_BITS) - 1;

impl Page {
    /// Whether the line, one of the page, is in a cache.
    #[inline]
    pub(super) fn has(self, line: u64) -> bool {
        self.cached & line_bit(line) != 0
    }

    /// Its lines, it being page `pfn`, that are in a cache.
    pub(super) fn lines(self, pfn: u64) -> impl Iterator<Item = u64> {
        let mut left = self.cached;
        std::iter::from_fn(move || {
            let at = u64::from(left.trailing_zeros());
            left &= left.checked_sub(1)?;
            Some(pfn << PAGE_LINES_SHIFT | at)
        })
    }

    #[inline]
    pub(super) fn domain(self) -> Domain {
        match (self.who >> CORE_BITS) as u32 {
            0 => Domain::Shared,
            n => Domain::Private(Asid(n - 1)),
        }
    }

    /// Whether the core's private caches may have lines of the page.
    #[inline]
    pub(super) fn may_have(self, core: usize) -> bool {
        self.who & core_bit(core) != 0
    }

    /// Whether it is `d`'s, and no core's private caches but those of the one with this bit may have lines of it.
    #[inline]
    pub(super) fn is_only(self, core: u64, d: Domain) -> bool {
        self.who == domain_bits(d) | core
    }

    /// Whether those of the core with this bit may have lines of it, who shares the bit with no other.
    #[inline]
    pub(super) fn has_core(self, bit: u64) -> bool {
        self.who & bit != 0
    }

    /// Whether any other core's may.
    #[inline]
    pub(super) fn not_only(self, bit: u64) -> bool {
        self.who & CORES & !bit != 0
    }

    /// The same of a core's number.
    #[inline]
    pub(super) fn others(self, core: usize) -> bool {
        // More cores than bits share them.
        self.who & CORES & !core_bit(core) != 0 || core >= CORE_BITS as usize
    }
}

/// The bit of a core that it shares with no other, if there is one.
pub(super) fn own_bit(core: usize) -> Option<u64> {
    (core < CORE_BITS as usize).then(|| core_bit(core))
}

#[inline]
fn core_bit(core: usize) -> u64 {
    1 << (core % CORE_BITS as usize)
}

#[inline]
fn domain_bits(d: Domain) -> u64 {
    match d {
        Domain::Shared => 0,
        Domain::Private(asid) => u64::from(asid.0 + 1) << CORE_BITS,
    }
}

#[inline]
fn line_bit(line: u64) -> u64 {
    1 << (line & 63)
}

/// All pages of DRAM and the window behind it.
pub(super) struct Pages {
    /// `[cached, who]`.
    words: Box<[[u64; 2]]>,
    kept: Kept,
    /// 16-byte blocks that went through AES.
    pub aes_blocks: u64,
    /// Pages with private lines in caches, and the most there ever were.
    pub resident: u64,
    pub peak: u64,
}

impl Pages {
    pub(super) fn new(pages: u64) -> Self {
        Self {
            words: vec![[0; 2]; pages as usize].into(),
            kept: Kept::new(),
            aes_blocks: 0,
            resident: 0,
            peak: 0,
        }
    }

    #[inline]
    pub(super) fn page(&self, pfn: u64) -> Page {
        let [cached, who] = self.words[pfn as usize];
        Page { cached, who }
    }

    #[inline]
    pub(super) fn of(&self, line: u64) -> Page {
        self.page(line >> PAGE_LINES_SHIFT)
    }

    /// Numbers of pages from a range that have lines in caches.
    pub(super) fn cached_in(&self, pfns: std::ops::Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let first = pfns.start;
        let words = &self.words[pfns.start as usize..pfns.end as usize];
        let used = words.iter().enumerate().filter(|(_, w)| w[0] != 0);
        used.map(move |(i, _)| first + i as u64)
    }

    /// Their words: `[cached, who]`.
    pub(super) fn words(&self) -> *const [u64; 2] {
        self.words.as_ptr()
    }

    /// How many pages there are.
    pub(super) fn len(&self) -> u64 {
        self.words.len() as u64
    }

    /// A line comes from DRAM, and is marked if no other cache has it already. The result is what [`Pages::decrypt`] has to do
    /// before anybody looks: the caller lets the host fetch the ciphertext meanwhile.
    #[inline]
    #[must_use]
    pub(super) fn arrive(&mut self, env: &Env<'_>, line: u64, d: Domain) -> Option<Asid> {
        let pfn = line >> PAGE_LINES_SHIFT;
        let before = self.words[pfn as usize][0];
        if before & line_bit(line) != 0 {
            return None;
        }
        let mut owed = None;
        match d {
            Domain::Private(asid) => {
                if !self.kept.has(line) {
                    owed = Some(asid);
                }
                if before == 0 && env.states.of(pfn).owner() != Some(asid) {
                    env.states.set_owner(pfn, asid, true);
                    self.resident += 1;
                    self.peak = self.peak.max(self.resident);
                }
            }
            // It can be written from now on, and nobody will say so.
            Domain::Shared => env.dram.mark(pfn),
        }
        let word = &mut self.words[pfn as usize];
        if before == 0 {
            word[1] = domain_bits(d);
        }
        word[0] = before | line_bit(line);
        owed
    }

    /// The same of one that is in no cache, of a page that is `d`'s and has others there.
    #[inline(always)] // in the short way, and small
    #[must_use]
    pub(super) fn join(&mut self, env: &Env<'_>, line: u64, d: Domain) -> Option<Asid> {
        let pfn = line >> PAGE_LINES_SHIFT;
        self.words[pfn as usize][0] |= line_bit(line);
        match d {
            Domain::Private(asid) => (!self.kept.has(line)).then_some(asid),
            Domain::Shared => {
                env.dram.mark(pfn);
                None
            }
        }
    }

    /// Makes the plaintext of a line that has arrived.
    #[inline]
    pub(super) fn decrypt(&mut self, env: &Env<'_>, line: u64, owed: Option<Asid>) {
        if let Some(asid) = owed {
            env.decrypt(line, asid);
            self.aes_blocks += BLOCKS;
        }
    }

    /// The core's private caches have a line of the page from now on.
    #[inline]
    pub(super) fn note_core(&mut self, line: u64, core: usize) {
        self.words[(line >> PAGE_LINES_SHIFT) as usize][1] |= core_bit(core);
    }

    /// A line is in no cache any more. What was to be written is.
    #[inline]
    pub(super) fn leave(&mut self, env: &Env<'_>, line: u64) {
        let pfn = line >> PAGE_LINES_SHIFT;
        let word = &mut self.words[pfn as usize];
        word[0] &= !line_bit(line);
        if word[0] == 0 {
            let private = word[1] >> CORE_BITS != 0;
            word[1] = 0;
            if private && !self.kept.has_page(pfn) {
                self.absent(env, pfn);
            }
        }
    }

    fn absent(&mut self, env: &Env<'_>, pfn: u64) {
        env.states.set_absent(pfn);
        self.resident -= 1;
    }

    /// A dirty private line leaves the last cache (or, `stays`, only becomes clean).
    #[inline]
    pub(super) fn write_back(&mut self, env: &Env<'_>, line: u64, asid: Asid, stays: bool) {
        self.aes_blocks += BLOCKS;
        if stays {
            env.encrypt(line, asid);
            return;
        }
        super::host::prefetch_write(env.dram.raw.ptr(line << LINE_SHIFT).as_ptr());
        super::host::prefetch(env.dram.plain().ptr(line << LINE_SHIFT).as_ptr());
        if let Some((old, owner)) = self.kept.push(line, asid) {
            self.let_go(env, old, owner);
        }
    }

    /// Encrypts what is kept: DRAM is current for all lines that are in no cache.
    pub(super) fn settle(&mut self, env: &Env<'_>) {
        while let Some((line, asid)) = self.kept.pop() {
            self.let_go(env, line, asid);
        }
    }

    fn let_go(&mut self, env: &Env<'_>, line: u64, asid: Asid) {
        env.encrypt(line, asid);
        let pfn = line >> PAGE_LINES_SHIFT;
        if self.words[pfn as usize][0] == 0
            && !self.kept.has_page(pfn)
            && env.states.of(pfn).owner().is_some()
        {
            self.absent(env, pfn);
        }
    }

    /// Forgets kept lines of an ASID without writing them.
    pub(super) fn discard_kept(&mut self, env: &Env<'_>, asid: Asid) {
        let mut all = Vec::new();
        while let Some(one) = self.kept.pop() {
            all.push(one);
        }
        for (line, owner) in all {
            if owner == asid {
                let pfn = line >> PAGE_LINES_SHIFT;
                if self.words[pfn as usize][0] == 0 && env.states.of(pfn).owner().is_some() {
                    self.absent(env, pfn);
                }
            } else {
                self.let_go(env, line, owner);
            }
        }
    }

    /// Whether a page without cached lines still has kept ones of another domain.
    #[inline]
    pub(super) fn lingers(&self, env: &Env<'_>, pfn: u64, d: Domain) -> bool {
        !self.kept.is_empty()
            && env
                .states
                .get(pfn)
                .and_then(|s| s.owner())
                .is_some_and(|o| d != Domain::Private(o))
    }
}

/// Dirty lines that left the caches last. They count as written back, but their encryption waits: an instruction may
/// have touched one for a store and not have written yet. A line may come back and still be kept; its plaintext is
/// then encrypted once more than needed.
struct Kept {
    /// Low words of `lines`.
    low: [u32; KEPT],
    lines: [u64; KEPT],
    owners: [Asid; KEPT],
    /// The oldest is at `next` when all are taken.
    next: usize,
    len: usize,
}

const NO_LINE: u64 = u64::MAX;

impl Kept {
    fn new() -> Self {
        Self {
            low: [NO_LINE as u32; KEPT],
            lines: [NO_LINE; KEPT],
            owners: [Asid(0); KEPT],
            next: 0,
            len: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn has(&self, line: u64) -> bool {
        let low = self.low.as_chunks::<8>().0.iter();
        let maybe = low.fold(0, |m, low| {
            m | super::host::matches(low, line as u32, u32::MAX)
        });
        maybe != 0 && self.lines.contains(&line)
    }

    #[inline]
    fn has_page(&self, pfn: u64) -> bool {
        let of = |l: u64| l >> PAGE_LINES_SHIFT == pfn;
        self.lines.iter().fold(false, |f, &l| f | of(l))
    }

    /// Keeps one; the oldest has to go where there is no room.
    #[inline]
    fn push(&mut self, line: u64, asid: Asid) -> Option<(u64, Asid)> {
        let at = self.next;
        self.next = (at + 1) % KEPT;
        let old = (self.lines[at], self.owners[at]);
        (self.lines[at], self.owners[at]) = (line, asid);
        self.low[at] = line as u32;
        if old.0 == NO_LINE {
            self.len += 1;
            return None;
        }
        Some(old)
    }

    fn pop(&mut self) -> Option<(u64, Asid)> {
        if self.len == 0 {
            return None;
        }
        let at = (self.next + KEPT - self.len) % KEPT;
        self.len -= 1;
        let old = (self.lines[at], self.owners[at]);
        self.lines[at] = NO_LINE;
        self.low[at] = NO_LINE as u32;
        Some(old)
    }
}
