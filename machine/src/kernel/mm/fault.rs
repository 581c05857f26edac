//! Page faults: what the areas allow is given a frame, everything else becomes a signal.

use std::sync::Arc;

use sevlab_arch::{PAGE_SIZE, Va};

use super::paging::PRESENT;
use super::{AddressSpace, Backing, File, Hw, LARGE_RUN, Vma, window};
use crate::kernel::error::Error;
use crate::kernel::frames::LARGE;

/// Most pages one fault brings in of a file.
const AROUND: u64 = 32;
/// Below the stack this much stays free (Linux's `stack_guard_gap`).
const STACK_GUARD: u64 = 256 * PAGE_SIZE;

/// What became of a page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The access can be tried again.
    Fixed,
    /// SIGSEGV with this `si_code`: 1 nothing mapped (MAPERR), 2 not allowed (ACCERR).
    Segv(i32),
    /// SIGBUS: behind the end of the file, or the file can't be read.
    Bus,
    /// There is no frame left.
    OutOfMemory,
}

impl AddressSpace {
    /// Handles a fault at `va`.
    ///
    /// # Errors
    /// Guest memory or the outside failed.
    pub fn fault(
        &mut self,
        hw: &mut dyn Hw,
        va: u64,
        write: bool,
        exec: bool,
    ) -> Result<Fault, Error> {
        let page = va & !(PAGE_SIZE - 1);
        let (start, area) = match self.areas.find(page) {
            Some((s, v)) => (s, v.clone()),
            None => match self.grow_stack(page) {
                Some(found) => found,
                None => return Ok(Fault::Segv(1)),
            },
        };
        // As Linux does: a fetch from a page that is not there brings it in before it is found to be forbidden.
        let executes = area.prot.executes()
            || area.shared_file().is_none() && self.tables.get(hw, Va(page))? & PRESENT == 0;
        let allowed = !area.prot.is_none() && (!write || area.prot.writes()) && (!exec || executes);
        if !allowed {
            return Ok(Fault::Segv(2));
        }
        if let Some((file, offset)) = area.shared_file() {
            let file = Arc::clone(file);
            let page = window::Page {
                va: page,
                start,
                area: &area,
                file: &file,
                offset,
            };
            // Another page of the file may have to go, or become read-only.
            let stopped = hw.stop_others();
            let done = self.fault_shared(hw, page, write, exec);
            if stopped {
                hw.let_others_go();
            }
            let done = done?;
            self.stats.faults += u64::from(done == Fault::Fixed);
            return Ok(done);
        }
        if self.tables.get(hw, Va(page))? & PRESENT != 0 {
            hw.renew(Va(page)); // a translation older than the entry
            self.stats.faults += 1;
            return Ok(Fault::Fixed);
        }
        let done = match &area.backing {
            Backing::Anon(_) | Backing::Stack => self.fault_anon(hw, page, start, &area)?,
            Backing::File { file, offset } => {
                let (file, offset) = (Arc::clone(file), *offset);
                self.fault_file(hw, page, start, &area, &file, offset)?
            }
        };
        if done == Fault::Fixed {
            self.stats.faults += 1;
        }
        Ok(done)
    }

    /// The stack's area grown down to `page`, if that is where it may grow.
    fn grow_stack(&mut self, page: u64) -> Option<(u64, Vma)> {
        let (start, area) = self.areas.above(page)?;
        if area.backing != Backing::Stack || area.end - page > self.stack_limit {
            return None;
        }
        let free_from = page.checked_sub(STACK_GUARD)?;
        if !self.areas.is_free(free_from, page) {
            return None;
        }
        let area = area.clone();
        self.areas.extend_down(start, page);
        Some((page, area))
    }

    /// Zero pages; more of them where faults come one after the other, and the rest of 2 MiB of which much has been touched.
    fn fault_anon(
        &mut self,
        hw: &mut dyn Hw,
        page: u64,
        start: u64,
        area: &Vma,
    ) -> Result<Fault, Error> {
        let (expected, window) = self.ahead;
        let window = if page == expected {
            (window * 2).min(hw.around())
        } else {
            1
        };
        if !self.bring_zeroes(hw, page, start, area)? {
            return Ok(Fault::OutOfMemory);
        }
        let next = page + PAGE_SIZE;
        let large = page & !(LARGE_RUN - 1)..next.next_multiple_of(LARGE_RUN);
        self.ahead = (next, window);
        if window == 1 {
            if hw.around() >= LARGE && self.is_no_longer_sparse(page) {
                let all = large.start.max(start)..large.end.min(area.end);
                for at in all.step_by(PAGE_SIZE as usize) {
                    if self.tables.get(hw, Va(at))? == 0
                        && !self.bring_zeroes(hw, at, start, area)?
                    {
                        break;
                    }
                }
            }
            return Ok(Fault::Fixed);
        }
        let mut end = area.end.min(page + window * PAGE_SIZE);
        if window > AROUND {
            end = end.min(large.end);
        }
        let mut at = next;
        while at < end
            && self.tables.get(hw, Va(at))? == 0
            && self.bring_zeroes(hw, at, start, area)?
        {
            at += PAGE_SIZE;
        }
        self.ahead = (at, window);
        Ok(Fault::Fixed)
    }

    /// Gives the area's page at `at` a frame of zeroes. False: there is none left.
    fn bring_zeroes(
        &mut self,
        hw: &mut dyn Hw,
        at: u64,
        start: u64,
        area: &Vma,
    ) -> Result<bool, Error> {
        let Some(frame) = self.give(hw, at, start, area)? else {
            return Ok(false);
        };
        hw.zero(frame)?;
        self.install(hw, at, frame, area)
    }

    /// Pages of a file: those missing around the fault, read at once.
    fn fault_file(
        &mut self,
        hw: &mut dyn Hw,
        page: u64,
        start: u64,
        area: &Vma,
        file: &File,
        offset: u64,
    ) -> Result<Fault, Error> {
        let block = AROUND * PAGE_SIZE;
        let mut first = (page & !(block - 1)).max(start);
        let mut end = ((page & !(block - 1)) + block).min(area.end);
        while first < page && self.tables.get(hw, Va(first))? != 0 {
            first += PAGE_SIZE;
        }
        while end > page + PAGE_SIZE && self.tables.get(hw, Va(end - PAGE_SIZE))? != 0 {
            end -= PAGE_SIZE;
        }
        let mut data = vec![0; (end - first) as usize];
        let got = match hw.pread(file.fd, offset + (first - start), &mut data)? {
            Ok(n) => n as u64,
            Err(_) => return Ok(Fault::Bus),
        };
        if first + got <= page {
            return Ok(Fault::Bus);
        }
        for (i, bytes) in data.chunks_exact(PAGE_SIZE as usize).enumerate() {
            let at = first + i as u64 * PAGE_SIZE;
            if at >= first + got {
                break;
            }
            if self.tables.get(hw, Va(at))? != 0 {
                continue;
            }
            let installed = match self.give(hw, at, start, area)? {
                Some(frame) => {
                    hw.write(frame, bytes)?;
                    self.install(hw, at, frame, area)?
                }
                None => false,
            };
            if !installed {
                let reached = at > page;
                return Ok(if reached {
                    Fault::Fixed
                } else {
                    Fault::OutOfMemory
                });
            }
        }
        Ok(Fault::Fixed)
    }
}
