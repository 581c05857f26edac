//! Accesses that no core's caches see: by the built-in kernel, the hypervisor, the firmware and devices. They find the data that the
//! caches hold, and change nothing in the model, with one exception: who comes from another domain flushes the page.

use std::sync::atomic::Ordering::Relaxed;

use sevlab_arch::{Asid, Spa};

use super::Hier;
use super::data::{Env, LINE_SHIFT};
use crate::ctl::{Domain, MemCtl, Meta};
use crate::dram::page_parts;
use crate::error::Error;
use crate::model::LINE;
use crate::uncached;

/// A part of a line.
struct Part {
    line: u64,
    at: u64,
    range: std::ops::Range<usize>,
}

/// The lines of `len` bytes from `a`.
fn parts(a: Spa, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = a.0 + done as u64;
        let n = (len - done).min((LINE - at % LINE) as usize);
        let range = done..done + n;
        done += n;
        (n > 0).then_some(Part {
            line: at >> LINE_SHIFT,
            at,
            range,
        })
    })
}

impl Hier {
    /// The page is seen under `d` from now on, and DRAM is current for lines that are in no cache.
    fn look(&mut self, env: &Env<'_>, pfn: u64, d: Domain) {
        let page = self.pages.page(pfn);
        if page.cached != 0 && page.domain() != d {
            self.flush_page(env, pfn, None);
        }
        self.pages.settle(env);
    }

    fn is_cached(&self, line: u64) -> bool {
        self.pages.of(line).has(line)
    }
}

impl MemCtl {
    /// [`MemCtl::read`] of private memory.
    pub(crate) fn read_lines(&self, asid: Asid, a: Spa, out: &mut [u8]) -> Result<(), Error> {
        let mut meta = self.lock();
        meta.keys.engine(asid, a)?;
        for (pfn, at, r) in page_parts(a, out.len()) {
            let out = &mut out[r];
            self.with_hier(&mut meta, |h, env| -> Result<(), Error> {
                h.look(env, pfn, Domain::Private(asid));
                let engine = env.keys.engine(asid, at)?;
                if h.pages.page(pfn).cached == 0 {
                    uncached::read(engine, &self.dram, &self.counters, at, out);
                    return Ok(());
                }
                for p in parts(at, out.len()) {
                    let out = &mut out[p.range];
                    if h.is_cached(p.line) {
                        self.dram.plain().read(p.at, out);
                    } else {
                        uncached::read(engine, &self.dram, &self.counters, Spa(p.at), out);
                    }
                }
                Ok(())
            })
            .unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// [`MemCtl::write`] of private memory: into the caches' copy where there is one, and to DRAM.
    pub(crate) fn write_lines(&self, asid: Asid, a: Spa, data: &[u8]) -> Result<(), Error> {
        let mut meta = self.lock();
        meta.keys.engine(asid, a)?;
        for (pfn, at, r) in page_parts(a, data.len()) {
            let data = &data[r];
            self.with_hier(&mut meta, |h, env| -> Result<(), Error> {
                h.look(env, pfn, Domain::Private(asid));
                let engine = env.keys.engine(asid, at)?;
                if h.pages.page(pfn).cached == 0 {
                    uncached::write(engine, &self.dram, &self.counters, at, data);
                    return Ok(());
                }
                for p in parts(at, data.len()) {
                    let data = &data[p.range];
                    if h.is_cached(p.line) {
                        self.dram.plain().write(p.at, data);
                        h.pages.write_back(env, p.line, asid, true);
                    } else {
                        uncached::write(engine, &self.dram, &self.counters, Spa(p.at), data);
                    }
                }
                Ok(())
            })
            .unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// [`MemCtl::or_u64`] of private memory; `a` is a multiple of 8.
    pub(crate) fn or_line(&self, asid: Asid, a: Spa, bits: u64) -> Result<(), Error> {
        let mut word = [0; 8];
        let line = a.0 >> LINE_SHIFT;
        let mut meta = self.lock();
        self.with_hier(&mut meta, |h, env| {
            h.look(env, a.pfn(), Domain::Private(asid));
            let engine = env.keys.engine(asid, a)?;
            if h.is_cached(line) {
                self.dram.plain().or(a.0, bits);
                h.pages.write_back(env, line, asid, true);
            } else {
                uncached::read(engine, &self.dram, &self.counters, a, &mut word);
                let word = (u64::from_le_bytes(word) | bits).to_le_bytes();
                uncached::write(engine, &self.dram, &self.counters, a, &word);
            }
            Ok(())
        })
        .unwrap_or(Ok(()))
    }

    /// [`MemCtl::evict`]: private lines of the page leave the caches, and DRAM is current. Shared ones may stay: DRAM is their
    /// place.
    pub(crate) fn evict_lines(&self, meta: &mut Meta, pfn: u64) {
        self.with_hier(meta, |h, env| {
            let page = h.pages.page(pfn);
            if page.cached != 0 && page.domain() != Domain::Shared {
                h.flush_page(env, pfn, None);
            } else {
                h.pages.settle(env);
            }
        });
    }

    /// All lines of these pages leave the caches.
    pub(crate) fn evict_range(&self, meta: &mut Meta, pfns: std::ops::Range<u64>) {
        self.with_hier(meta, |h, env| {
            let pages: Vec<u64> = h.pages.cached_in(pfns).collect();
            for pfn in pages {
                h.flush_page(env, pfn, None);
            }
        });
    }

    /// Makes DRAM current for the page; its lines stay in the caches as they are.
    pub(crate) fn sync_lines(&self, meta: &mut Meta, pfn: u64) {
        self.with_hier(meta, |h, env| {
            h.pages.settle(env);
            h.sync(env, pfn);
        });
    }

    /// [`MemCtl::sync_lines`] for all pages.
    pub(crate) fn sync_all_lines(&self, meta: &mut Meta) {
        self.with_hier(meta, |h, env| {
            h.pages.settle(env);
            let pages: Vec<u64> = h.pages.cached_in(0..h.pages.len()).collect();
            for pfn in pages {
                h.sync(env, pfn);
            }
        });
    }

    /// The ASID's lines leave the caches: to DRAM, or (`discard`) nowhere.
    pub(crate) fn evict_lines_of(&self, meta: &mut Meta, asid: Asid, discard: bool) {
        self.with_hier(meta, |h, env| {
            let of = |&p: &u64| h.pages.page(p).domain() == Domain::Private(asid);
            let most = h.pages.resident as usize; // pages with private lines, whosever
            let private = |&p: &u64| h.pages.page(p).domain() != Domain::Shared;
            let all = h.pages.cached_in(0..h.pages.len()).filter(private);
            let pages: Vec<u64> = all.take(most).filter(of).collect();
            if discard {
                h.pages.discard_kept(env, asid);
            }
            for pfn in pages {
                if discard {
                    h.discard_page(env, pfn);
                } else {
                    h.flush_page(env, pfn, None);
                }
            }
            h.pages.settle(env);
        });
    }

    /// Counters of [`MemStats`](crate::MemStats) that live in the hierarchy: AES blocks, pages with plaintext, the most of them.
    pub(crate) fn line_stats(&self) -> Option<[u64; 3]> {
        let meta = self.lock();
        let pages = &meta.hier.as_ref()?.pages;
        let blocks = self.counters.aes_blocks.load(Relaxed);
        Some([pages.aes_blocks + blocks, pages.resident, pages.peak])
    }
}

impl Hier {
    fn sync(&mut self, env: &Env<'_>, pfn: u64) {
        let page = self.pages.page(pfn);
        let Domain::Private(asid) = page.domain() else {
            return;
        };
        for line in page.lines(pfn) {
            self.pages.write_back(env, line, asid, true);
        }
    }
}
