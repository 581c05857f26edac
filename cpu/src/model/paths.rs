//! The guest's own accesses under a model: the filters' probes, and accesses of any length line by line.
//!
//! These are the slow paths of [`Vcpu`]'s reads and writes while [`Vcpu::modelled`] is set: the fast TLB is empty then.
#![allow(unsafe_code)] // host addresses of lines, from filter and controller

use core::ptr::NonNull;

use sevlab_arch::{PAGE_SIZE, Va};

use super::TRAIL_BYTES;
use super::touch::Decoded;
use crate::insn::Insn;
use crate::mmu::Access;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Bytes from `va` to the end of its line.
fn to_line_end(va: u64) -> u64 {
    64 - (va & 63)
}

impl Vcpu {
    /// The host address of `n` bytes at `va` in one line, accessed by the running instruction.
    #[inline]
    pub(crate) fn line_host(
        &mut self,
        va: u64,
        n: u64,
        access: Access,
        decoded: Decoded,
    ) -> Result<NonNull<u8>, Stop> {
        if let Some(host) = self.line_hit(va, n, access) {
            return Ok(host);
        }
        let at = self.at();
        self.touch(va, n, access, at, decoded)
    }

    /// The same, if the filter knows the line; `None`, with nothing done, also if the bytes are of more than one.
    #[inline]
    pub(crate) fn line_hit(&self, va: u64, n: u64, access: Access) -> Option<NonNull<u8>> {
        if self.trace.is_some() || n.wrapping_sub(1) > 63 {
            return None;
        }
        let stamp = self.stamp(self.at());
        let m = self.model.as_deref()?;
        m.lines.hit(Va(va), n, access == Access::Write, stamp)
    }

    /// An access to more than one page happens if all of them can be accessed; else it leaves no trace in the model.
    fn check_pages(&mut self, va: u64, len: u64, access: Access) -> Result<(), Stop> {
        let last = Va(va.wrapping_add(len - 1)).page();
        let mut at = Va(va);
        if at.page() == last {
            return Ok(());
        }
        loop {
            self.peek(at, access)?;
            if at.page() == last {
                return Ok(());
            }
            at = at.page().plus(PAGE_SIZE);
        }
    }

    pub(crate) fn read_lines(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        let len = out.len() as u64;
        if len == 0 {
            return Ok(());
        }
        if len > to_line_end(va) {
            Self::check_end(va, len)?;
            self.check_pages(va, len, Access::Read)?;
        }
        let mut at = va;
        let mut out = out;
        while !out.is_empty() {
            let n = to_line_end(at).min(out.len() as u64);
            let host = self.line_host(at, n, Access::Read, Decoded::Stays)?;
            let (part, rest) = out.split_at_mut(n as usize);
            // SAFETY: `n` bytes at `host` lie in one line, which the filter or the controller has just given.
            unsafe { core::ptr::copy_nonoverlapping(host.as_ptr(), part.as_mut_ptr(), n as usize) };
            at = at.wrapping_add(n);
            out = rest;
        }
        Ok(())
    }

    pub(crate) fn write_lines(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        let len = data.len() as u64;
        if len == 0 {
            return Ok(());
        }
        if len > to_line_end(va) {
            Self::check_end(va, len)?;
            self.check_pages(va, len, Access::Write)?;
        }
        let mut at = va;
        let mut data = data;
        while !data.is_empty() {
            let n = to_line_end(at).min(data.len() as u64);
            let host = self.line_host(at, n, Access::Write, Decoded::Goes)?;
            let (part, rest) = data.split_at(n as usize);
            // SAFETY: as in `read_lines`; no Rust reference covers guest memory.
            unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), host.as_ptr(), n as usize) };
            at = at.wrapping_add(n);
            data = rest;
        }
        Ok(())
    }

    /// Accesses all lines of a range without reading or writing.
    pub(crate) fn probe_lines(&mut self, va: u64, len: u64, access: Access) -> Result<(), Stop> {
        if len > to_line_end(va) {
            Self::check_end(va, len)?;
            self.check_pages(va, len, access)?;
        }
        let (mut at, mut left) = (va, len);
        while left > 0 {
            let n = to_line_end(at).min(left);
            self.line_host(at, n, access, Decoded::Stays)?;
            at = at.wrapping_add(n);
            left -= n;
        }
        Ok(())
    }

    /// Where the filter has `n` bytes in one line, without an access.
    #[inline]
    pub(crate) fn filtered(&self, va: u64, n: u64, write: bool) -> Option<NonNull<u8>> {
        if self.trace.is_some() {
            return None;
        }
        self.model.as_ref()?.lines.peek(Va(va), n, write)
    }

    /// What a hit of the filter does, for the last of several accesses to a line that it has.
    #[inline]
    pub(crate) fn stamp_line(&self, va: u64, write: bool, stamp: u64) {
        if let Some(m) = &self.model {
            m.lines.stamp_line(Va(va), write, stamp);
        }
    }

    /// Straight code begins at `rip`, at the present clock.
    #[inline]
    pub(crate) fn enter_code(&mut self, rip: u64) {
        let place = self.state.trail;
        if place.is_null() {
            return;
        }
        let clock = self.clock();
        // SAFETY: `trail` is null or a place in the ring of `TRAIL` places that the model keeps alive, aligned to its size; so is
        // the next one.
        unsafe {
            *place = [rip, clock];
            let next = place.addr() + 16;
            let ring = place.addr() & !(TRAIL_BYTES - 1);
            self.state.trail = place.with_addr(ring | next & (TRAIL_BYTES - 1));
        }
    }

    /// Fetches the lines of an instruction that were not fetched last.
    #[inline]
    pub(crate) fn fetch_lines(&mut self, i: &Insn) -> Result<(), Stop> {
        let first = i.rip >> 6;
        if first != self.state.fetch_line {
            self.fetch_one(i.rip)?;
        }
        let last = i.rip.wrapping_add(u64::from(i.len) - 1);
        if last >> 6 != first {
            self.fetch_one(last & !63)?;
        }
        Ok(())
    }

    fn fetch_one(&mut self, va: u64) -> Result<(), Stop> {
        let at = self.at();
        if self.trace.is_none()
            && let Some(m) = &self.model
            && m.fetches.hit(Va(va), self.stamp(at))
        {
            self.fetched(va);
            return Ok(());
        }
        self.touch_fetch(va, at)
    }

    /// The frame of `va`, if a write there is translated or can be.
    pub(crate) fn frame_for_write(&mut self, va: u64) -> Option<sevlab_arch::Spa> {
        if let Some(m) = &mut self.model
            && let Some((_, e)) = m.tlbs.first(false).lookup(va)
            && e.writable
        {
            return Some(sevlab_arch::Spa(e.spa | va & e.mask()));
        }
        self.peek(Va(va), Access::Write).ok().map(|t| t.spa)
    }
}
