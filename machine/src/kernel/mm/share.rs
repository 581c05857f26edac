//! Pages that the process shares with the hypervisor on purpose (`MADV_SEV_SHARE`), and back.
//!
//! The C-bit of the last-level entry says what a page is; nothing else keeps book. A shared frame never
//! goes back to the allocator: it is made private first, so that whoever gets it next finds private
//! memory.

use sevlab_arch::{Gpa, PAGE_SIZE, Va};

use super::{AddressSpace, Backing, Hw};
use crate::kernel::error::{Errno, Error, Fail};

/// Most pages whose content is held while they change.
const RUN: usize = 256;

/// Contiguous frames as runs of at most [`RUN`].
fn runs<T>(pages: &[T], frame: impl Fn(&T) -> Gpa) -> impl Iterator<Item = &[T]> {
    pages
        .chunk_by(move |a, b| frame(a).plus(PAGE_SIZE) == frame(b))
        .flat_map(|run| run.chunks(RUN))
}

impl AddressSpace {
    /// Makes the pages of `[start, end)` shared with the hypervisor, or private; their content stays.
    /// Pages that are not there yet are given zeroes first. Nothing happens where memory is not encrypted.
    ///
    /// # Errors
    /// ENOMEM if a part is not mapped or memory is used up, EINVAL if a part is not private anonymous
    /// memory.
    pub fn share(
        &mut self,
        hw: &mut dyn Hw,
        start: u64,
        end: u64,
        shared: bool,
    ) -> Result<(), Fail> {
        if !self.areas.covers(start, end) {
            return Err(Errno::ENOMEM.into());
        }
        let parts = self.areas.within(start, end);
        let fits = |backing: &Backing| matches!(backing, Backing::Anon(_));
        if parts.iter().any(|(_, v)| v.shared || !fits(&v.backing)) {
            return Err(Errno::EINVAL.into());
        }
        if self.tables.c_mask() == 0 {
            return Ok(());
        }
        for (at, part) in parts {
            if shared {
                self.bring_in(hw, at, &part)?;
            }
            let mut pages = Vec::new();
            self.tables.visit(hw, at, part.end, |_, va, entry, frame| {
                pages.push((va, entry, frame));
                Ok(None)
            })?;
            pages.retain(|(_, entry, _)| self.tables.is_shared(*entry) != shared);
            for run in runs(&pages, |p| p.2) {
                self.change(hw, run, shared)?;
            }
            if !pages.is_empty() && part.prot.executes() {
                hw.drop_code(Va(at), Va(part.end));
            }
        }
        Ok(())
    }

    /// Zero pages for what of an area is not there.
    fn bring_in(&mut self, hw: &mut dyn Hw, start: u64, area: &super::Vma) -> Result<(), Fail> {
        for page in (start..area.end).step_by(PAGE_SIZE as usize) {
            if self.tables.get(hw, Va(page))? != 0 {
                continue;
            }
            let frame = self.give(hw, page, start, area)?.ok_or(Errno::ENOMEM)?;
            hw.zero(frame)?;
            if !self.install(hw, page, frame, area)? {
                return Err(Errno::ENOMEM.into());
            }
        }
        Ok(())
    }

    /// Changes pages with contiguous frames, which are all of the other kind.
    fn change(
        &mut self,
        hw: &mut dyn Hw,
        run: &[(Va, u64, Gpa)],
        shared: bool,
    ) -> Result<(), Error> {
        let Some((_, _, first)) = run.first() else {
            return Ok(());
        };
        let page = PAGE_SIZE as usize;
        let mut content = vec![0; run.len() * page];
        for ((_, _, frame), out) in run.iter().zip(content.chunks_mut(page)) {
            if shared {
                hw.read(*frame, out)?;
            } else {
                hw.read_shared(*frame, out)?;
            }
        }
        hw.share(*first, run.len() as u64, shared)?;
        for ((va, entry, frame), data) in run.iter().zip(content.chunks(page)) {
            let entry = self.tables.with_shared(*entry, shared);
            // The tables are there, so this takes no frame.
            self.tables.set(hw, &mut self.frames, *va, entry)?;
            hw.invalidate(*va);
            if shared {
                hw.write_shared(*frame, data)?;
            } else {
                hw.write(*frame, data)?;
            }
        }
        Ok(())
    }

    /// Takes frames back that were shared and that no entry names any more.
    pub(super) fn unshare(&mut self, hw: &mut dyn Hw, mut frames: Vec<Gpa>) -> Result<(), Error> {
        frames.sort_unstable();
        for run in runs(&frames, |frame| *frame) {
            if let Some(first) = run.first() {
                hw.share(*first, run.len() as u64, false)?;
            }
        }
        for frame in frames {
            self.frames.release(frame);
        }
        Ok(())
    }
}
