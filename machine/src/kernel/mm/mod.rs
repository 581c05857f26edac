//! The address space of the guest process: areas, page tables, frames.
//!
//! Problem: answer `mmap` and its family and every page fault as Linux does, with page tables that are
//! real, in guest memory, and with frames only for what is touched.
//!
//! 1. Areas say what may be accessed; page-table entries never allow more than their area.
//! 2. A page-table entry that is not zero owns its frame; no two entries own the same. Frames of the file window are nobody's:
//!    they are counted.
//! 3. An area that goes or loses rights takes its translations and its decoded code with it before the
//!    call returns.
//! 4. A shared mapping shows the file's own pages, through the file window ([`window`]); shared anonymous memory is a file
//!    without a name. Nothing has to be written back.
//! 5. An entry without C-bit (where memory is encrypted) is a page that the process shares with the
//!    hypervisor; its frame is made private before it is free.
//!
//! There is one process, so there is no copy-on-write.

mod fault;
mod hw;
mod lend;
pub mod paging;
mod share;
mod vma;
mod window;

use core::ops::Range;
use std::collections::HashMap;
use std::sync::Arc;

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

pub use fault::Fault;
pub use hw::{Cx, Hw, write_run};
pub use lend::Change;
pub use vma::{Areas, Backing, File, FileId, Prot, Vma};

use super::error::{Errno, Error, Fail};
use super::frames::{Frames, LARGE, SMALL};
use paging::{ACCESSED, DIRTY, Tables};
use window::Window;

/// End of the addresses a process may use.
pub const USER_END: u64 = 0x7fff_ffff_f000;
/// End of the stack. Linux has it at the end of all; here all that the kernel places lies in the lowest quarter, which a host
/// process has room to reserve (`sevlab_memctl::MemCtl::view`).
pub const STACK_END: u64 = 0x1fff_ffff_f000;
/// Mappings are placed downwards from here.
pub const MMAP_TOP: u64 = 0x1fff_f7ff_f000;
/// Where the kernel places what it places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// End of the stack.
    pub stack_end: u64,
    /// Mappings are placed downwards from here.
    pub mmap_top: u64,
    /// Position-independent programs are placed upwards from here.
    pub pie_base: u64,
}

impl Places {
    /// As low as a view reaches.
    pub const LOW: Self = Self {
        stack_end: STACK_END,
        mmap_top: MMAP_TOP,
        pie_base: 0x1555_5555_5000,
    };
    /// Where Linux has them, for programs that know that.
    pub const LINUX: Self = Self {
        stack_end: 0x7fff_ffff_f000,
        mmap_top: 0x7fff_f7ff_f000,
        pie_base: 0x5555_5555_5000,
    };
}

/// Lowest address `mmap` gives (`vm.mmap_min_addr`).
pub const MMAP_MIN: u64 = 0x1_0000;
/// Beyond this many pages a range's translations are forgotten by a flush.
const FLUSH_ABOVE: u64 = 2048;

/// Rounds up to pages; `None` on overflow.
#[must_use]
pub fn page_up(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(PAGE_SIZE)
}

/// Where a new mapping goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Anywhere below `top`; at `hint` if that is free.
    Any {
        /// Wished address, 0 for none.
        hint: u64,
        /// End of the region searched.
        top: u64,
    },
    /// There, replacing what is there.
    Fixed(u64),
    /// There, if nothing is there.
    Free(u64),
}

/// What memory management counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MmStats {
    /// Page faults that were resolved.
    pub faults: u64,
    /// Pages given a frame.
    pub pages_mapped: u64,
    /// Pages resident now.
    pub resident: u64,
    /// Most pages resident at any time.
    pub peak: u64,
    /// Pages of the file window that were entered.
    pub shared: u64,
}

/// The address space.
pub struct AddressSpace {
    areas: Areas,
    tables: Tables,
    frames: Frames,
    window: Window,
    /// Runs of frames, by the aligned address and length of the part of the address space they are for.
    runs: HashMap<(u64, u64), Run>,
    /// The page behind the one that was given a frame last.
    next: u64,
    brk_start: u64,
    brk: u64,
    /// Soft `RLIMIT_STACK`.
    pub stack_limit: u64,
    /// Where the program's parts are placed.
    pub places: Places,
    /// Where the next sequential fault is expected, and how many pages it brings.
    ahead: (u64, u64),
    stats: MmStats,
    /// Ranges that a child does not get as they are: `MADV_WIPEONFORK` (true), `MADV_DONTFORK` (false).
    kept_back: Vec<(u64, u64, bool)>,
}

/// What is set aside for a part of the address space.
#[derive(Clone, Copy, Default)]
struct Run {
    /// The first frame, once there is reason to set frames aside.
    frames: Option<Gpa>,
    /// Pages that were given a frame.
    given: u64,
}

/// So many pages of a large part get frames from anywhere, unless they come in a row: what is touched
/// here and there only would take large pages of the host's for single ones of its own.
const SPARSE: u64 = 16;
/// Bytes of a run of frames in areas that are at least as long.
const LARGE_RUN: u64 = LARGE * PAGE_SIZE;
/// Bytes of a run of frames in shorter areas.
const SMALL_RUN: u64 = SMALL * PAGE_SIZE;

impl AddressSpace {
    /// An empty address space whose frames come from `memory`. `c_mask`: the C-bit that entries for
    /// private memory carry, 0 if memory is not encrypted.
    ///
    /// # Errors
    /// No memory for the root table.
    pub fn new(hw: &mut dyn Hw, memory: Range<Gpa>, c_mask: u64) -> Result<Self, Error> {
        let mut frames = Frames::new(memory);
        let tables = Tables::new(hw, &mut frames, c_mask)?;
        Ok(Self {
            areas: Areas::default(),
            tables,
            frames,
            window: Window::new(Gpa(0)..Gpa(0)),
            runs: HashMap::new(),
            next: 0,
            brk_start: 0,
            brk: 0,
            stack_limit: 8 << 20,
            places: Places::LOW,
            ahead: (0, 1),
            stats: MmStats::default(),
            kept_back: Vec::new(),
        })
    }

    /// CR3 for this address space.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        self.tables.cr3()
    }

    /// The areas.
    #[must_use]
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// The frame allocator.
    pub fn frames_mut(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// The frame allocator.
    #[must_use]
    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> MmStats {
        self.stats
    }

    /// Sets where the heap begins.
    pub fn set_brk_start(&mut self, at: u64) {
        (self.brk_start, self.brk) = (at, at);
    }

    /// Whether a private writable mapping of that many bytes is refused outright, as Linux's heuristic
    /// overcommit does: more than all memory.
    fn overcommits(&self, bytes: u64) -> bool {
        bytes / PAGE_SIZE > self.frames.total()
    }

    /// Maps `len` bytes (rounded up to pages); returns the address.
    ///
    /// # Errors
    /// EINVAL, ENOMEM, EEXIST as mmap(2).
    pub fn map(
        &mut self,
        hw: &mut dyn Hw,
        place: Place,
        len: u64,
        area: Vma,
        reserve: bool,
    ) -> Result<u64, Fail> {
        if len == 0 {
            return Err(Errno::EINVAL.into());
        }
        let len = page_up(len)
            .filter(|l| *l <= USER_END)
            .ok_or(Errno::ENOMEM)?;
        let private_write = area.prot.writes() && !area.shared;
        if !reserve && private_write && self.overcommits(len) {
            return Err(Errno::ENOMEM.into());
        }
        let fits = |at: u64| at.checked_add(len).is_some_and(|end| end <= USER_END);
        let at = match place {
            Place::Fixed(at) | Place::Free(at) => {
                if at % PAGE_SIZE != 0 {
                    return Err(Errno::EINVAL.into());
                }
                if !fits(at) {
                    return Err(Errno::ENOMEM.into());
                }
                if at < MMAP_MIN {
                    return Err(Errno::EPERM.into());
                }
                if matches!(place, Place::Fixed(_)) {
                    self.unmap(hw, at, at + len)?;
                } else if !self.areas.is_free(at, at + len) {
                    return Err(Errno::EEXIST.into());
                }
                at
            }
            Place::Any { hint, top } => {
                let hint = page_up(hint).unwrap_or(0);
                if hint >= MMAP_MIN && fits(hint) && self.areas.is_free(hint, hint + len) {
                    hint
                } else {
                    self.areas
                        .gap_below(top, MMAP_MIN, len)
                        .ok_or(Errno::ENOMEM)?
                }
            }
        };
        self.areas.insert(
            at,
            Vma {
                end: at + len,
                ..area
            },
        );
        Ok(at)
    }

    /// Unmaps `[start, end)`.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn unmap(&mut self, hw: &mut dyn Hw, start: u64, end: u64) -> Result<(), Error> {
        self.give_to_children(start, end);
        let parts = self.areas.remove(start, end);
        for (at, part) in parts {
            self.zap(hw, at, part.end, part.prot.executes())?;
            Self::release(hw, part)?;
        }
        self.forget_runs(start, end);
        Ok(())
    }

    /// Closes the file of an area that is no more, if nothing else uses it.
    fn release(hw: &mut dyn Hw, area: Vma) -> Result<(), Error> {
        if let Backing::File { file, .. } = area.backing
            && let Ok(file) = Arc::try_unwrap(file)
        {
            hw.close(file.fd)?;
        }
        Ok(())
    }

    /// Gives the frames of `[start, end)` back and forgets the translations.
    fn zap(&mut self, hw: &mut dyn Hw, start: u64, end: u64, code: bool) -> Result<(), Error> {
        let (frames, stats, window) = (&mut self.frames, &mut self.stats, &mut self.window);
        let mut chunks = Vec::new();
        let by_flush = (end - start) / PAGE_SIZE > FLUSH_ABOVE;
        let (mut any, mut shared) = (false, Vec::new());
        let c_mask = self.tables.c_mask();
        self.tables.visit(hw, start, end, |hw, va, entry, frame| {
            if let Some(place) = window.place(frame) {
                if window.left(place) {
                    chunks.push(place);
                }
            } else {
                if entry & c_mask == c_mask {
                    frames.release(frame);
                } else {
                    shared.push(frame);
                }
                stats.resident -= 1;
            }
            any = true;
            if !by_flush {
                hw.invalidate(va);
            }
            Ok(Some(0))
        })?;
        if any && by_flush {
            hw.flush(Va(start), Va(end));
        }
        if any && code {
            hw.drop_code(Va(start), Va(end));
        }
        for place in chunks {
            self.release_chunk(hw, place)?;
        }
        self.unshare(hw, shared)
    }

    /// `MADV_WIPEONFORK` (`wipe`) or `MADV_DONTFORK` of `[start, end)`.
    pub fn keep_back(&mut self, start: u64, end: u64, wipe: bool) {
        self.give_to_children(start, end);
        self.kept_back.push((start, end, wipe));
    }

    /// `MADV_KEEPONFORK` and `MADV_DOFORK`: children get `[start, end)` as it is.
    pub fn give_to_children(&mut self, start: u64, end: u64) {
        if self.kept_back.is_empty() {
            return;
        }
        let cut = |(a, b, wipe): (u64, u64, bool)| {
            let parts = [(a, b.min(start), wipe), (a.max(end), b, wipe)];
            parts.into_iter().filter(|(a, b, _)| a < b)
        };
        self.kept_back = self.kept_back.drain(..).flat_map(cut).collect();
    }

    /// This is a child's address space: what its parent keeps back goes.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn forked(&mut self, hw: &mut dyn Hw) -> Result<(), Error> {
        for (start, end, wipe) in self.kept_back.clone() {
            if wipe {
                match self.discard(hw, start, end) {
                    Err(Fail::Fatal(e)) => return Err(e),
                    Ok(()) | Err(Fail::Errno(_)) => {}
                }
            } else {
                self.unmap(hw, start, end)?;
            }
        }
        Ok(())
    }

    /// `mprotect`.
    ///
    /// # Errors
    /// ENOMEM if a part is not mapped, EACCES for writing to a file opened for reading.
    pub fn protect(
        &mut self,
        hw: &mut dyn Hw,
        start: u64,
        end: u64,
        prot: Prot,
    ) -> Result<(), Fail> {
        if !self.areas.covers(start, end) {
            return Err(Errno::ENOMEM.into());
        }
        let read_only = |v: &Vma| {
            v.shared && matches!(&v.backing, Backing::File { file, .. } if !file.writable)
        };
        let parts = self.areas.within(start, end);
        if prot.writes() && parts.iter().any(|(_, v)| read_only(v)) {
            return Err(Errno::EACCES.into());
        }
        for (at, part) in parts {
            if part.prot == prot {
                continue;
            }
            self.areas.remove(at, part.end);
            self.areas.insert(
                at,
                Vma {
                    prot,
                    ..part.clone()
                },
            );
            let mut any = false;
            let by_flush = (part.end - at) / PAGE_SIZE > FLUSH_ABOVE;
            let mut changed = Vec::new();
            self.tables
                .visit(hw, at, part.end, |hw, va, entry, frame| {
                    any = true;
                    if !by_flush {
                        hw.invalidate(va);
                    }
                    if part.shared {
                        changed.push((va, entry, frame));
                        return Ok(None);
                    }
                    Ok(Some(Tables::with_prot(entry, prot)))
                })?;
            for (va, entry, frame) in changed {
                if self.window.place(frame).is_none() && !part.prot.writes() {
                    // A copy to execute; the next fetch makes another.
                    self.zap(hw, va.0, va.0 + PAGE_SIZE, true)?;
                    continue;
                }
                let entry = self.reprotect(entry, frame, (at, &part), va, prot);
                self.tables.set(hw, &mut self.frames, va, entry)?;
            }
            if any && by_flush {
                hw.flush(Va(at), Va(part.end));
            }
            if any && part.prot.executes() {
                hw.drop_code(Va(at), Va(part.end));
            }
        }
        Ok(())
    }

    /// `brk`: returns the break after it.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn set_brk(&mut self, hw: &mut dyn Hw, to: u64) -> Result<u64, Error> {
        let (Some(old), Some(new)) = (page_up(self.brk), page_up(to)) else {
            return Ok(self.brk);
        };
        if to < self.brk_start || new > self.places.mmap_top {
            return Ok(self.brk);
        }
        if new > old {
            if self.overcommits(new - self.brk_start) || !self.areas.is_free(old, new + PAGE_SIZE) {
                return Ok(self.brk);
            }
            let heap = Backing::Anon("[heap]");
            let area = Vma {
                end: new,
                prot: Prot::RW,
                shared: false,
                backing: heap,
            };
            self.areas.insert(old, area);
        } else if new < old {
            self.unmap(hw, new, old)?;
        }
        self.brk = to;
        Ok(to)
    }

    /// `madvise(MADV_DONTNEED)`: pages go; the next touch finds zeroes or the file, which has what was written to it.
    ///
    /// # Errors
    /// ENOMEM if a part is not mapped.
    pub fn discard(&mut self, hw: &mut dyn Hw, start: u64, end: u64) -> Result<(), Fail> {
        for (at, part) in self.areas.within(start, end) {
            self.zap(hw, at, part.end, part.prot.executes())?;
            self.areas.changed(at, part.end);
        }
        if self.areas.covers(start, end) {
            Ok(())
        } else {
            Err(Errno::ENOMEM.into())
        }
    }

    /// `mincore`: one byte a page.
    ///
    /// # Errors
    /// ENOMEM if a part is not mapped.
    pub fn resident(&mut self, hw: &mut dyn Hw, start: u64, end: u64) -> Result<Vec<u8>, Fail> {
        if !self.areas.covers(start, end) {
            return Err(Errno::ENOMEM.into());
        }
        let mut map = vec![0; ((end - start) / PAGE_SIZE) as usize];
        self.tables.visit(hw, start, end, |_, va, _, _| {
            map[((va.0 - start) / PAGE_SIZE) as usize] = 1;
            Ok(None)
        })?;
        Ok(map)
    }

    /// `mremap` of `[old, old + len)` to `new_len`; sizes are in whole pages.
    ///
    /// # Errors
    /// EFAULT, EINVAL, ENOMEM as mremap(2).
    pub fn remap(
        &mut self,
        hw: &mut dyn Hw,
        old: u64,
        len: u64,
        new_len: u64,
        may_move: bool,
        fixed: Option<u64>,
    ) -> Result<u64, Fail> {
        let end = old.checked_add(len).ok_or(Errno::EINVAL)?;
        let (start, area) = self.areas.find(old).ok_or(Errno::EFAULT)?;
        if area.end < end {
            return Err(Errno::EFAULT.into());
        }
        let mut area = area.clone();
        if let Backing::File { offset, .. } = &mut area.backing {
            *offset += old - start;
        }
        if let Some(to) = fixed {
            let to_end = to.checked_add(new_len).ok_or(Errno::EINVAL)?;
            if to % PAGE_SIZE != 0 || to_end > USER_END || (to < end && old < to_end) {
                return Err(Errno::EINVAL.into());
            }
            self.unmap(hw, to, to_end)?;
            if new_len < len {
                self.unmap(hw, old + new_len, end)?;
            }
            return self.relocate(hw, old, len.min(new_len), to, new_len, area);
        }
        if new_len <= len {
            self.unmap(hw, old + new_len, end)?;
            return Ok(old);
        }
        if area.prot.writes() && !area.shared && self.overcommits(new_len) {
            return Err(Errno::ENOMEM.into());
        }
        let new_end = old.checked_add(new_len).ok_or(Errno::EINVAL)?;
        if area.end == end && new_end <= USER_END && self.areas.is_free(end, new_end) {
            let mut grown = area;
            if let Backing::File { offset, .. } = &mut grown.backing {
                *offset += len;
            }
            grown.end = new_end;
            self.areas.insert(end, grown);
            return Ok(old);
        }
        if !may_move {
            return Err(Errno::ENOMEM.into());
        }
        let to = self
            .areas
            .gap_below(self.places.mmap_top, MMAP_MIN, new_len)
            .ok_or(Errno::ENOMEM)?;
        self.relocate(hw, old, len, to, new_len, area)
    }

    /// Moves frames of `[old, old + len)` to `to`, where `new_len` bytes become mapped as `area`.
    fn relocate(
        &mut self,
        hw: &mut dyn Hw,
        old: u64,
        len: u64,
        to: u64,
        new_len: u64,
        area: Vma,
    ) -> Result<u64, Fail> {
        let mut moved = Vec::new();
        self.tables.visit(hw, old, old + len, |hw, va, entry, _| {
            moved.push((va.0 - old + to, entry));
            hw.invalidate(va);
            Ok(Some(0))
        })?;
        if area.prot.executes() {
            hw.drop_code(Va(old), Va(old + len));
        }
        self.areas.remove(old, old + len);
        self.forget_runs(old, old + len);
        self.areas.insert(
            to,
            Vma {
                end: to + new_len,
                ..area
            },
        );
        for (va, entry) in moved {
            if !self.tables.set(hw, &mut self.frames, Va(va), entry)? {
                return Err(Error::OutOfMemory {
                    have: self.frames.total() * PAGE_SIZE,
                    what: "page tables of a moved mapping",
                }
                .into());
            }
        }
        Ok(to)
    }

    /// Maps frames under `[va, va + data.len())` now and fills them; for what is loaded at launch and
    /// for files that can't be kept open. The area must be there. `false`: memory is used up.
    ///
    /// # Errors
    /// Guest memory can't be accessed.
    pub fn populate(&mut self, hw: &mut dyn Hw, va: u64, data: &[u8]) -> Result<bool, Error> {
        let mut done = 0;
        while done < data.len() {
            let at = va + done as u64;
            let n = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(data.len() - done);
            let page = at & !(PAGE_SIZE - 1);
            let entry = self.tables.get(hw, Va(page))?;
            let frame = if entry != 0 {
                self.tables.frame(entry)
            } else {
                let Some((start, area)) = self.areas.find(page).map(|(s, a)| (s, a.clone())) else {
                    return Ok(false);
                };
                let Some(frame) = self.give(hw, page, start, &area)? else {
                    return Ok(false);
                };
                hw.zero(frame)?;
                if !self.install(hw, page, frame, &area)? {
                    return Ok(false);
                }
                frame
            };
            hw.write(frame.plus(at % PAGE_SIZE), &data[done..done + n])?;
            done += n;
        }
        Ok(true)
    }

    /// A frame for `page`: at its place in the run of frames set aside for that part of the address space, so that
    /// contiguous pages have contiguous frames in whatever order they are touched. Its content is undefined.
    fn give(
        &mut self,
        hw: &mut dyn Hw,
        page: u64,
        start: u64,
        area: &Vma,
    ) -> Result<Option<Gpa>, Error> {
        let bytes = if area.end - start >= LARGE_RUN {
            LARGE_RUN
        } else {
            SMALL_RUN
        };
        let base = page & !(bytes - 1);
        let dense = bytes == SMALL_RUN || page == self.next;
        self.next = page + PAGE_SIZE;
        let run = self.runs.entry((base, bytes)).or_default();
        run.given += 1;
        if run.frames.is_none() && (dense || run.given > SPARSE) {
            run.frames = self.frames.reserve(bytes / PAGE_SIZE);
        }
        let wish = run.frames.map(|gpa| gpa.plus(page - base));
        self.frames.alloc(hw, wish)
    }

    /// Whether the page just given a frame was the one with which frames were set aside for 2 MiB touched here and there.
    fn is_no_longer_sparse(&self, page: u64) -> bool {
        let run = self.runs.get(&(page & !(LARGE_RUN - 1), LARGE_RUN));
        run.is_some_and(|run| run.given == SPARSE + 1 && run.frames.is_some())
    }

    /// Gives up the runs for parts of `[start, end)` and around it where no area is left.
    fn forget_runs(&mut self, start: u64, end: u64) {
        for bytes in [SMALL_RUN, LARGE_RUN] {
            let first = start & !(bytes - 1);
            let parts = (end - first).div_ceil(bytes);
            let gone = |areas: &Areas, base: u64| areas.is_free(base, base + bytes);
            let bases: Vec<u64> = if parts < self.runs.len() as u64 {
                let parts = (first..end).step_by(bytes as usize);
                parts.filter(|b| gone(&self.areas, *b)).collect()
            } else {
                let inside = |(base, n): &&(u64, u64)| *n == bytes && (first..end).contains(base);
                let bases = self.runs.keys().filter(inside).map(|k| k.0);
                bases.filter(|b| gone(&self.areas, *b)).collect()
            };
            for base in bases {
                if let Some(run) = self.runs.remove(&(base, bytes))
                    && let Some(gpa) = run.frames
                {
                    self.frames.unreserve(gpa, bytes / PAGE_SIZE);
                }
            }
        }
    }

    /// Enters a frame into the tables with its area's rights.
    fn install(
        &mut self,
        hw: &mut dyn Hw,
        page: u64,
        frame: Gpa,
        area: &Vma,
    ) -> Result<bool, Error> {
        // Nobody looks at A and D: spare the walks that would set them.
        let entry = self.tables.entry(frame, area.prot) | ACCESSED | DIRTY;
        if !self.tables.set(hw, &mut self.frames, Va(page), entry)? {
            self.frames.release(frame);
            return Ok(false);
        }
        self.stats.pages_mapped += 1;
        self.stats.resident += 1;
        self.stats.peak = self.stats.peak.max(self.stats.resident);
        Ok(true)
    }

    /// Adds an area without a fault or a frame; for the launch.
    ///
    /// # Errors
    /// The range is not free.
    pub fn reserve(&mut self, start: u64, area: Vma) -> Result<(), Errno> {
        if start >= area.end || area.end > USER_END || !self.areas.is_free(start, area.end) {
            return Err(Errno::EEXIST);
        }
        self.areas.insert(start, area);
        Ok(())
    }

    /// The text of `/proc/self/maps`.
    #[must_use]
    pub fn maps_text(&self) -> String {
        use core::fmt::Write;
        let mut text = String::new();
        for (start, v) in self.areas.iter() {
            let bit = |b: u8, c| if v.prot.0 & b != 0 { c } else { '-' };
            let (offset, name) = match &v.backing {
                Backing::Anon(name) => (0, *name),
                Backing::Stack => (0, "[stack]"),
                Backing::File { file, offset } => (*offset, file.name.as_str()),
            };
            let (r, w, x) = (bit(1, 'r'), bit(2, 'w'), bit(4, 'x'));
            let s = if v.shared { 's' } else { 'p' };
            let _ = write!(
                text,
                "{start:x}-{:x} {r}{w}{x}{s} {offset:08x} 00:00 0",
                v.end
            );
            let pad = if name.is_empty() {
                ""
            } else {
                "                          "
            };
            let _ = writeln!(text, "{pad}{name}");
        }
        text
    }
}
