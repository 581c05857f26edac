//! Shared mappings: pages of the file window, which the hypervisor fills with the pages of the files themselves.
//!
//! 1. Of each 2 MiB of a file that is mapped shared there is at most one *chunk* in the window, whatever mapping asked for it:
//!    a page of a file is one frame, as with private memory, so a write to decoded code is noticed under every address.
//! 2. A chunk is in the window as long as page-table entries lead there; the last one that goes takes it along. If the window
//!    is full, another chunk's entries go, and come back by faults.
//! 3. An entry is made only for a page that begins before the file's end. What a file loses later the host fills with zeroes,
//!    unless it was the guest that shortened it ([`AddressSpace::truncated`]).
//! 4. A guest whose memory is encrypted fetches instructions from private memory only (APM vol. 2, 15.34.5), so a page of the
//!    window is never executable there. What is executed is a private *copy*, and as long as a page has one, its entries for
//!    the window are not writable: a write drops the copy first, the next fetch makes another. A page that one mapping both
//!    writes and executes is that mapping's own from its first fetch on.

use core::ops::Range;
use std::collections::{HashMap, HashSet};

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::paging::{ACCESSED, DIRTY, PRESENT, Tables, WRITABLE};
use super::vma::FileId;
use super::{AddressSpace, Backing, Fault, File, Hw, Prot, Vma, page_up};
use crate::kernel::error::{Errno, Error};
use crate::kernel::outside::WindowCall;

/// Bytes of a chunk: what the hypervisor maps at a time.
const CHUNK: u64 = 2 << 20;
/// Pages that one fault enters: what is there already costs little.
const AROUND: u64 = 64;
const _: () = assert!(CHUNK.is_multiple_of(AROUND * PAGE_SIZE));

/// A part of a file in the window.
struct Chunk {
    file: FileId,
    /// Which 2 MiB of the file.
    number: u64,
    writable: bool,
    /// Page-table entries that lead there.
    entries: u64,
}

/// What is in the file window.
pub(super) struct Window {
    range: Range<Gpa>,
    /// By place in the window.
    chunks: Vec<Option<Chunk>>,
    /// Places by file and number.
    places: HashMap<(FileId, u64), usize>,
    /// Places among `chunks` with nothing there.
    free: Vec<usize>,
    /// Where the search for a chunk that can go begins.
    hand: usize,
    /// Pages of files that may have private copies.
    copies: HashSet<(FileId, u64)>,
    /// Something in a shared mapping has been executed.
    executed: bool,
    /// The page of a file that the next instruction both is executed from and writes.
    stepping: Option<(FileId, u64)>,
}

impl Window {
    pub(super) fn new(range: Range<Gpa>) -> Self {
        Self {
            range,
            chunks: Vec::new(),
            places: HashMap::new(),
            free: Vec::new(),
            hand: 0,
            copies: HashSet::new(),
            executed: false,
            stepping: None,
        }
    }

    /// The place that a frame lies in, if it is the window's.
    pub(super) fn place(&self, frame: Gpa) -> Option<usize> {
        let inside = self.range.contains(&frame);
        inside.then(|| ((frame.0 - self.range.start.0) / CHUNK) as usize)
    }

    fn gpa(&self, place: usize) -> Gpa {
        self.range.start.plus(place as u64 * CHUNK)
    }

    /// An entry for the place is gone. True if it was the last.
    pub(super) fn left(&mut self, place: usize) -> bool {
        let Some(Some(chunk)) = self.chunks.get_mut(place) else {
            return false;
        };
        chunk.entries = chunk.entries.saturating_sub(1);
        chunk.entries == 0
    }

    /// A free place: behind the file's chunk before, or where none was ever, or any.
    fn take(&mut self, file: FileId, number: u64) -> Option<usize> {
        let end = self.chunks.len();
        let before = number
            .checked_sub(1)
            .and_then(|n| self.places.get(&(file, n)));
        let fresh = (end as u64) < (self.range.end.0 - self.range.start.0) / CHUNK;
        let in_a_row = fresh && before.is_some_and(|p| p + 1 == end);
        match self.free.pop() {
            Some(place) if !in_a_row => return Some(place),
            Some(place) => self.free.push(place),
            None => {}
        }
        fresh.then(|| {
            self.chunks.push(None);
            end
        })
    }

    /// The rights that an entry of a shared area has.
    fn rights(&self, area: Prot, frame: Gpa, page: (FileId, u64), encrypted: bool) -> Prot {
        let mut prot = area;
        let in_window = self.place(frame).is_some();
        if in_window && encrypted && !area.is_none() {
            prot.0 = prot.0 & !4 | 1;
            if self.copies.contains(&page) {
                prot.0 &= !2;
            }
        }
        prot
    }
}

/// A page of a shared mapping.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) va: u64,
    /// Start of its area.
    pub(super) start: u64,
    pub(super) area: &'a Vma,
    pub(super) file: &'a File,
    /// Where in the file the area starts.
    pub(super) offset: u64,
}

impl Page<'_> {
    fn at(&self) -> u64 {
        self.offset.wrapping_add(self.va - self.start)
    }
    fn key(&self) -> (FileId, u64) {
        (self.file.id, self.at() / PAGE_SIZE)
    }
}

impl AddressSpace {
    /// Says where the file window is.
    pub fn use_window(&mut self, range: Range<Gpa>) {
        self.window = Window::new(range);
    }

    /// The window's address of a byte, if `va` is in a page of the window that has been touched: who else maps the page of that
    /// file has it at the same place of the host's page cache.
    ///
    /// # Errors
    /// Guest memory can't be read.
    pub fn shared_frame(&mut self, hw: &mut dyn Hw, va: u64) -> Result<Option<Gpa>, Error> {
        let entry = self.tables.get(hw, Va(va & !(PAGE_SIZE - 1)))?;
        let frame = self.tables.frame(entry);
        let there = entry & PRESENT != 0 && self.window.place(frame).is_some();
        Ok(there.then(|| frame.plus(va % PAGE_SIZE)))
    }

    /// A fault in a shared mapping, whose area allows the access.
    pub(super) fn fault_shared(
        &mut self,
        hw: &mut dyn Hw,
        page: Page<'_>,
        write: bool,
        exec: bool,
    ) -> Result<Fault, Error> {
        let encrypted = self.tables.c_mask() != 0;
        self.window.executed |= page.area.prot.executes();
        if write && self.window.copies.contains(&page.key()) {
            if self.runs_from(hw.rip(), page.key()) {
                return self.step_over(hw, page);
            }
            self.drop_copies(hw, page.key())?;
        }
        let entry = self.tables.get(hw, Va(page.va))?;
        let in_window = self.window.place(self.tables.frame(entry)).is_some();
        let wanted = !(exec && encrypted && in_window);
        if entry & PRESENT != 0 && wanted {
            hw.renew(Va(page.va)); // a translation older than the entry
            return Ok(Fault::Fixed);
        }
        let size = hw.file_size(page.file.fd)?;
        if page.at() >= size {
            return Ok(Fault::Bus);
        }
        if exec && encrypted {
            return self.copy(hw, page);
        }
        self.enter(hw, page, size)
    }

    /// Enters the page and those around it that are in the file, the area and the chunk.
    fn enter(&mut self, hw: &mut dyn Hw, page: Page<'_>, size: u64) -> Result<Fault, Error> {
        let Page { va, area, .. } = page;
        let place = match self.chunk(hw, page.file, page.at() / CHUNK)? {
            Ok(place) => place,
            Err(Errno::ENOMEM) => return Ok(Fault::OutOfMemory),
            Err(_) => return Ok(Fault::Bus),
        };
        let block = AROUND * PAGE_SIZE;
        let before = (page.at() % block).min(va - page.start);
        let behind = (block - page.at() % block)
            .min(area.end - va)
            .min(page_up(size - page.at()).unwrap_or(block));
        let around = (va - before..va + behind).step_by(PAGE_SIZE as usize);
        for at in core::iter::once(va).chain(around) {
            if self.tables.get(hw, Va(at))? != 0 {
                continue;
            }
            let here = Page { va: at, ..page };
            let frame = self.window.gpa(place).plus(here.at() % CHUNK);
            let encrypted = self.tables.c_mask() != 0;
            let rights = self.window.rights(area.prot, frame, here.key(), encrypted);
            // Nobody looks at A and D here: spare the walks that would set them.
            let entry = self.tables.entry(frame, rights) | ACCESSED | DIRTY;
            let entry = self.tables.with_shared(entry, true);
            if !self.tables.set(hw, &mut self.frames, Va(at), entry)? {
                return Ok(if at == va {
                    Fault::OutOfMemory
                } else {
                    Fault::Fixed
                });
            }
            if let Some(Some(chunk)) = self.window.chunks.get_mut(place) {
                chunk.entries += 1;
            }
            self.stats.shared += 1;
        }
        Ok(Fault::Fixed)
    }

    /// The place of a chunk, mapped if it is not there.
    fn chunk(
        &mut self,
        hw: &mut dyn Hw,
        file: &File,
        number: u64,
    ) -> Result<Result<usize, Errno>, Error> {
        let key = (file.id, number);
        let known = self.window.places.get(&key).copied();
        if let Some(place) = known
            && let Some(Some(chunk)) = self.window.chunks.get(place)
            && (chunk.writable || !file.writable)
        {
            return Ok(Ok(place));
        }
        let place = match known.or_else(|| self.window.take(file.id, number)) {
            Some(place) => place,
            None => match self.make_room(hw)? {
                Some(place) => place,
                None => return Ok(Err(Errno::ENOMEM)),
            },
        };
        let mapped = hw.window(&WindowCall::Map {
            fd: file.fd,
            offset: number * CHUNK,
            len: CHUNK,
            at: self.window.gpa(place),
            writable: file.writable,
        })?;
        if let Err(errno) = mapped {
            if known.is_none() {
                self.window.free.push(place);
            }
            return Ok(Err(errno));
        }
        let entries = match self.window.chunks.get(place) {
            Some(Some(chunk)) => chunk.entries,
            _ => 0,
        };
        self.window.chunks[place] = Some(Chunk {
            file: file.id,
            number,
            writable: file.writable,
            entries,
        });
        self.window.places.insert(key, place);
        Ok(Ok(place))
    }

    /// Takes some chunk out of a full window.
    fn make_room(&mut self, hw: &mut dyn Hw) -> Result<Option<usize>, Error> {
        for _ in 0..self.window.chunks.len() {
            self.window.hand = (self.window.hand + 1) % self.window.chunks.len();
            let place = self.window.hand;
            let Some(Some(chunk)) = self.window.chunks.get(place) else {
                continue;
            };
            let (file, from) = (chunk.file, chunk.number * CHUNK);
            for (start, view) in self.views(file, from, from + CHUNK) {
                self.zap(hw, start, view.end, view.prot.executes())?;
            }
            // One that no entry led to has not gone with them.
            self.release_chunk(hw, place)?;
            if let Some(free) = self.window.free.pop() {
                return Ok(Some(free));
            }
        }
        Ok(None)
    }

    /// Takes a chunk that no entry leads to out of the window.
    pub(super) fn release_chunk(&mut self, hw: &mut dyn Hw, place: usize) -> Result<(), Error> {
        let window = &mut self.window;
        let unused = |chunk: &mut Option<Chunk>| chunk.take_if(|c| c.entries == 0);
        let Some(chunk) = window.chunks.get_mut(place).and_then(unused) else {
            return Ok(());
        };
        window.places.remove(&(chunk.file, chunk.number));
        let (at, len) = (window.gpa(place), CHUNK);
        match hw.window(&WindowCall::Unmap { at, len })? {
            Ok(_) => window.free.push(place),
            // Never used again.
            Err(errno) => tracing::warn!(errno = errno.0, "a part of the file window is lost"),
        }
        Ok(())
    }

    /// The parts of shared areas that show `[from, to)` of a file.
    fn views(&self, id: FileId, from: u64, to: u64) -> Vec<(u64, Vma)> {
        let part = |(start, area): (u64, &Vma)| {
            let (file, offset) = area.shared_file()?;
            let end = offset.saturating_add(area.end - start);
            let (first, last) = (offset.max(from), end.min(to));
            if file.id != id || first >= last {
                return None;
            }
            let mut view = area.clone();
            view.end = start + (last - offset);
            if let Backing::File { offset, .. } = &mut view.backing {
                *offset = first;
            }
            Some((start + (first - offset), view))
        };
        self.areas.iter().filter_map(part).collect()
    }

    /// Whether any part of a file is in the window.
    #[must_use]
    pub fn shares_files(&self) -> bool {
        !self.window.places.is_empty()
    }

    /// The guest has made a file `size` bytes long: what is behind the end is not mapped any more.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn truncated(&mut self, hw: &mut dyn Hw, id: FileId, size: u64) -> Result<(), Error> {
        let Some(from) = page_up(size) else {
            return Ok(());
        };
        for (start, view) in self.views(id, from, u64::MAX) {
            self.zap(hw, start, view.end, view.prot.executes())?;
        }
        Ok(())
    }

    /// The guest kernel's descriptors of files whose shared writable mappings lie in `[start, end)`.
    #[must_use]
    pub fn shared_files(&self, start: u64, end: u64) -> Vec<i32> {
        let parts = self.areas.within(start, end);
        let files = parts.iter().filter_map(|(_, area)| area.shared_file());
        let mut fds: Vec<i32> = files.filter(|f| f.0.writable).map(|f| f.0.fd).collect();
        fds.sort_unstable();
        fds.dedup();
        fds
    }

    /// What `[start, end)` shows of files, for MADV_REMOVE: descriptor, offset and length of each part.
    ///
    /// # Errors
    /// ENOMEM if a part is not mapped, EINVAL if a part is not a shared mapping, EACCES if it is not writable.
    pub fn file_parts(&self, start: u64, end: u64) -> Result<Vec<(i32, u64, u64)>, Errno> {
        if !self.areas.covers(start, end) {
            return Err(Errno::ENOMEM);
        }
        let part = |(at, area): &(u64, Vma)| {
            let (file, offset) = area.shared_file().ok_or(Errno::EINVAL)?;
            if !file.writable {
                return Err(Errno::EACCES);
            }
            Ok((file.fd, offset, area.end - at))
        };
        self.areas.within(start, end).iter().map(part).collect()
    }

    /// The entry of a shared area's page with the area's new rights.
    pub(super) fn reprotect(
        &self,
        entry: u64,
        frame: Gpa,
        (start, area): (u64, &Vma),
        va: Va,
        prot: Prot,
    ) -> u64 {
        let Some((file, offset)) = area.shared_file() else {
            return Tables::with_prot(entry, prot);
        };
        let page = (file.id, (offset + (va.0 - start)) / PAGE_SIZE);
        let encrypted = self.tables.c_mask() != 0;
        Tables::with_prot(entry, self.window.rights(prot, frame, page, encrypted))
    }

    // ---- copies to execute (4) ----

    /// Gives the page a private copy in place of the window's.
    fn copy(&mut self, hw: &mut dyn Hw, page: Page<'_>) -> Result<Fault, Error> {
        let (id, number) = page.key();
        // No writes first, so that the copy is what they left.
        if self.window.copies.insert((id, number)) {
            self.each_entry(hw, (id, number), |mm, hw, va, _, entry| {
                mm.tables
                    .set(hw, &mut mm.frames, va, entry & !WRITABLE)
                    .map(drop)
            })?;
        }
        self.zap(hw, page.va, page.va + PAGE_SIZE, false)?;
        let mut data = [0; PAGE_SIZE as usize];
        if hw
            .pread(page.file.fd, number * PAGE_SIZE, &mut data)?
            .is_err()
        {
            return Ok(Fault::Bus);
        }
        let Some(frame) = self.give(hw, page.va, page.start, page.area)? else {
            return Ok(Fault::OutOfMemory);
        };
        hw.write(frame, &data)?;
        if !self.install(hw, page.va, frame, page.area)? {
            return Ok(Fault::OutOfMemory);
        }
        Ok(Fault::Fixed)
    }

    /// A page is about to be written: its copies go, and its entries get their rights back.
    fn drop_copies(&mut self, hw: &mut dyn Hw, page: (FileId, u64)) -> Result<(), Error> {
        self.window.copies.remove(&page);
        self.each_entry(hw, page, |mm, hw, va, area, entry| {
            let frame = mm.tables.frame(entry);
            if mm.window.place(frame).is_some() {
                let entry = mm.reprotect(entry, frame, (va.0, area), va, area.prot);
                mm.tables.set(hw, &mut mm.frames, va, entry).map(drop)
            } else if area.prot.writes() {
                Ok(()) // the mapping's own
            } else {
                mm.zap(hw, va.0, va.0 + PAGE_SIZE, true)
            }
        })
    }

    /// Whether the instruction at `rip` lies in that page of a file.
    fn runs_from(&self, rip: Option<u64>, key: (FileId, u64)) -> bool {
        let Some(rip) = rip else { return false };
        [rip, rip.wrapping_add(14)].into_iter().any(|at| {
            self.areas.find(at).is_some_and(|(start, area)| {
                area.shared_file().is_some_and(|(file, offset)| {
                    (file.id, (offset + (at - start)) / PAGE_SIZE) == key
                })
            })
        })
    }

    /// An instruction writes to the page that it is executed from: its copy must stay until it has run, and the
    /// page must be written. One step with both, then the copy goes ([`AddressSpace::stepped`]).
    fn step_over(&mut self, hw: &mut dyn Hw, page: Page<'_>) -> Result<Fault, Error> {
        let entry = self.tables.get(hw, Va(page.va))?;
        if self.window.place(self.tables.frame(entry)).is_none() {
            // Not mapped, or the mapping's own: the ordinary way first.
            self.drop_copies(hw, page.key())?;
            return Ok(Fault::Fixed);
        }
        let entry = Tables::with_prot(entry, page.area.prot);
        self.tables.set(hw, &mut self.frames, Va(page.va), entry)?;
        hw.invalidate(Va(page.va));
        self.window.stepping = Some(page.key());
        Ok(Fault::Fixed)
    }

    /// Whether the instruction that faulted is to run now, alone.
    pub fn stepping(&self) -> bool {
        self.window.stepping.is_some()
    }

    /// That instruction has run, or faulted in another way.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn stepped(&mut self, hw: &mut dyn Hw) -> Result<(), Error> {
        match self.window.stepping.take() {
            Some(page) => self.drop_copies(hw, page),
            None => Ok(()),
        }
    }

    /// Whether anybody has to be told that a file has changed.
    #[must_use]
    pub fn executes_files(&self) -> bool {
        self.window.executed
    }

    /// The process has written to a file other than through a mapping: what was decoded or copied from it is
    /// void.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn file_changed(&mut self, hw: &mut dyn Hw, id: FileId) -> Result<(), Error> {
        let copies = self.window.copies.iter().filter(|c| c.0 == id).copied();
        for page in copies.collect::<Vec<_>>() {
            self.drop_copies(hw, page)?;
        }
        for (at, view) in self.views(id, 0, u64::MAX) {
            if view.prot.executes() {
                hw.drop_code(Va(at), Va(view.end));
            }
        }
        Ok(())
    }

    /// Does `f` to every entry for a page of a file, and forgets its translation.
    fn each_entry(
        &mut self,
        hw: &mut dyn Hw,
        (id, number): (FileId, u64),
        mut f: impl FnMut(&mut Self, &mut dyn Hw, Va, &Vma, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let from = number * PAGE_SIZE;
        for (at, view) in self.views(id, from, from + PAGE_SIZE) {
            let entry = self.tables.get(hw, Va(at))?;
            if entry != 0 {
                f(self, hw, Va(at), &view, entry)?;
                hw.invalidate(Va(at));
            }
        }
        Ok(())
    }
}
