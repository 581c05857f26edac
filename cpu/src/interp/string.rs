//! String instructions.
//!
//! With DF clear and 64-bit addresses a repeated instruction works a page at a time on host memory; all
//! else goes element by element. Registers are brought up to date after every step, so a fault or a
//! pending exit request leaves an instruction that, restarted, does the rest. Flags are written only
//! when it ends.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use sevlab_arch::{PAGE_SIZE, Va};

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::flags::{ARITH, DF, FlagOp};
use crate::insn::{Insn, MemRef, Op, Rep, Width};
use crate::mmu::Access;
use crate::state::gpr::{RAX, RCX, RDI, RSI};
use crate::stop::{Exception, Stop};

/// Elements between two looks at the exit request.
const CHECK: u64 = 4096;

/// What does not change while a string instruction repeats.
struct Plan {
    op: Op,
    w: Width,
    rep: Rep,
    addr32: bool,
    /// Bytes from one element to the next.
    step: u64,
    down: bool,
    /// Base of the source's segment.
    base: u64,
}

impl Plan {
    fn uses_source(&self) -> bool {
        matches!(self.op, Op::Movs | Op::Lods | Op::Cmps)
    }
    fn uses_destination(&self) -> bool {
        !matches!(self.op, Op::Lods)
    }
    fn compares(&self) -> bool {
        matches!(self.op, Op::Cmps | Op::Scas)
    }
    /// Whether the comparison of `a` and `b` ends the repetition.
    fn ends(&self, a: u64, b: u64) -> bool {
        match self.rep {
            Rep::Rep => a != b,
            Rep::Repne => a == b,
            Rep::None => true,
        }
    }
}

/// Elements from `va` on that lie in its line.
fn in_line(va: u64, size: u64) -> u64 {
    (64 - (va & 63)) / size
}

fn to_page_end(va: u64) -> u64 {
    PAGE_SIZE - (va & (PAGE_SIZE - 1))
}

impl Interp<'_> {
    pub(super) fn string(&mut self, i: &Insn) -> Result<(), Halt> {
        let down = self.v.state.rflags & DF != 0;
        let size = u64::from(i.width.bytes());
        let base = if i.mem.seg == MemRef::NONE {
            0
        } else {
            self.seg_base(i.mem.seg)
        };
        let p = Plan {
            op: i.op,
            w: i.width,
            rep: i.rep,
            addr32: i.mem.addr32,
            step: if down { size.wrapping_neg() } else { size },
            down,
            base,
        };
        if i.rep == Rep::None {
            let compared = self.element(&p)?;
            self.compared(&p, compared);
            return Ok(());
        }
        let count_width = if p.addr32 { Width::B4 } else { Width::B8 };
        let mut left = self.gpr(RCX, count_width);
        let traced = self.v.state.rflags & super::TF != 0;
        let by_element = p.down || p.addr32 || traced || super::alignment_checked(&self.v.state);
        let modelled = self.v.modelled;
        if p.addr32 {
            // Hosts write the 32-bit count, and fast strings their index registers, whether or not anything moves.
            self.set_gpr(RCX, Width::B4, left);
            if matches!(p.op, Op::Movs | Op::Stos) {
                self.advance(&p, 0);
            }
        }
        let mut until_check = CHECK;
        let mut compared = None;
        while left > 0 {
            let (done, last) = if by_element {
                (0, None)
            } else if modelled {
                self.run_in_lines(&p, left)
            } else {
                self.run_of(&p, left)?
            };
            let done = if done == 0 {
                compared = self.element(&p)?;
                1
            } else {
                compared = last.or(compared);
                done
            };
            left -= done;
            self.set_gpr(RCX, count_width, left);
            let ends = compared.is_some_and(|(a, b)| p.ends(a, b));
            if modelled {
                // A traced element counts as an instruction.
                self.iterated(p.op, done, left > 0 && !ends && !traced);
            }
            if ends {
                break;
            }
            if traced && left > 0 {
                // Each element is a step of its own. The flags wait for the last.
                return self.halt(Exception::DEBUG);
            }
            if modelled && left > 0 && super::modelled::turn_over(self.v) {
                return self.halt(Stop::Budget);
            }
            until_check = until_check.saturating_sub(done);
            if until_check == 0 && left > 0 {
                until_check = CHECK;
                if self.v.state.exit_request.load(Ordering::Relaxed) != 0 {
                    return self.halt(Stop::Requested);
                }
            }
        }
        self.compared(&p, compared);
        Ok(())
    }

    fn compared(&mut self, p: &Plan, c: Option<(u64, u64)>) {
        if let Some((a, b)) = c {
            let r = a.wrapping_sub(b) & p.w.mask();
            self.set_flags(ARITH, FlagOp::Sub, p.w, a, b, r);
        }
    }

    fn index(&mut self, p: &Plan, r: u8) -> u64 {
        self.gpr(r, if p.addr32 { Width::B4 } else { Width::B8 })
    }

    fn advance(&mut self, p: &Plan, bytes: u64) {
        let w = if p.addr32 { Width::B4 } else { Width::B8 };
        if p.uses_source() {
            let v = self.gpr(RSI, w).wrapping_add(bytes) & w.mask();
            self.set_gpr(RSI, w, v);
        }
        if p.uses_destination() {
            let v = self.gpr(RDI, w).wrapping_add(bytes) & w.mask();
            self.set_gpr(RDI, w, v);
        }
    }

    /// One element. For the comparing ones, what was compared.
    fn element(&mut self, p: &Plan) -> Result<Option<(u64, u64)>, Halt> {
        let src = self.index(p, RSI).wrapping_add(p.base);
        let dst = self.index(p, RDI);
        let mut compared = None;
        match p.op {
            Op::Movs => {
                let v = self.load(p.w, src)?;
                self.store(p.w, dst, v)?;
            }
            Op::Stos => {
                let v = self.gpr(RAX, p.w);
                self.store(p.w, dst, v)?;
            }
            Op::Lods => {
                let v = self.load(p.w, src)?;
                self.set_gpr(RAX, p.w, v);
            }
            Op::Cmps => {
                // In this order, which shows where both fault.
                let b = self.load(p.w, dst)?;
                let a = self.load(p.w, src)?;
                compared = Some((a, b));
            }
            _ => {
                let a = self.gpr(RAX, p.w);
                let b = self.load(p.w, dst)?;
                compared = Some((a, b));
            }
        }
        self.advance(p, p.step);
        Ok(compared)
    }

    /// As many elements as lie in the current pages, on host memory. 0: not possible, go by element.
    fn run_of(&mut self, p: &Plan, left: u64) -> Result<(u64, Option<(u64, u64)>), Halt> {
        const NOTHING: (u64, Option<(u64, u64)>) = (0, None);
        let src = self.index(p, RSI).wrapping_add(p.base);
        let dst = self.index(p, RDI);
        let mut bytes = u64::MAX;
        if p.uses_source() {
            bytes = bytes.min(to_page_end(src));
        }
        if p.uses_destination() {
            bytes = bytes.min(to_page_end(dst));
        }
        let size = u64::from(p.w.bytes());
        let n = (bytes / size).min(left);
        let bytes = n * size;
        if n < 2 || p.op == Op::Lods {
            return Ok(NOTHING);
        }
        let access = if p.compares() {
            Access::Read
        } else {
            Access::Write
        };
        if p.uses_source() && self.v.probe_read(src, bytes).is_none() {
            let r = self.v.fill(Va(src), Access::Read);
            self.lift(r)?;
        }
        let hit = match access {
            Access::Write => self.v.probe_write_tag(dst, bytes),
            _ => self.v.probe_read(dst, bytes),
        };
        if hit.is_none() {
            let r = self.v.fill(Va(dst), access);
            self.lift(r)?;
        }
        // Filling one may have taken the other away: only pointers that the TLB has now count.
        let from = if p.uses_source() {
            self.v.probe_read(src, bytes)
        } else {
            None
        };
        let to = match access {
            Access::Write => self.v.probe_write_tag(dst, bytes),
            _ => self.v.probe_read(dst, bytes),
        };
        let Some((done, compared)) = self.move_elements(p, n, from, to) else {
            return Ok(NOTHING);
        };
        self.advance(p, done * size);
        Ok((done, compared))
    }

    /// As [`Interp::run_of`] under a machine model: elements in the lines that both pointers are in, if the filter has these
    /// lines, so that all of the accesses hit. What they change is the time of the last.
    fn run_in_lines(&mut self, p: &Plan, left: u64) -> (u64, Option<(u64, u64)>) {
        const NOTHING: (u64, Option<(u64, u64)>) = (0, None);
        let src = self.index(p, RSI).wrapping_add(p.base);
        let dst = self.index(p, RDI);
        let size = u64::from(p.w.bytes());
        let mut n = left.min(self.room());
        if p.uses_source() {
            n = n.min(in_line(src, size));
        }
        if p.uses_destination() {
            n = n.min(in_line(dst, size));
        }
        if n < 2 || p.op == Op::Lods {
            return NOTHING;
        }
        let bytes = n * size;
        let from = if p.uses_source() {
            self.v.filtered(src, bytes, false)
        } else {
            None
        };
        let to = self.v.filtered(dst, bytes, !p.compares());
        let before = self.v.stamp(self.v.at()) - 1;
        let Some((done, compared)) = self.move_elements(p, n, from, to) else {
            return NOTHING;
        };
        if p.uses_source() {
            self.v.stamp_line(src, false, before + done);
        }
        self.v.stamp_line(dst, !p.compares(), before + done);
        self.advance(p, done * size);
        (done, compared)
    }

    /// `n` elements on host memory, or those up to the end of a comparison: how many, and what was compared last. `None` if
    /// an address that the instruction uses is missing.
    fn move_elements(
        &mut self,
        p: &Plan,
        n: u64,
        from: Option<NonNull<u8>>,
        to: Option<NonNull<u8>>,
    ) -> Option<(u64, Option<(u64, u64)>)> {
        let size = u64::from(p.w.bytes());
        let len = (n * size) as usize;
        Some(match (p.op, from, to) {
            (Op::Movs, Some(from), Some(to)) => {
                // SAFETY: both tags matched for `len` bytes: mapped guest memory.
                unsafe { move_up(from.as_ptr(), to.as_ptr(), len, size as usize) };
                (n, None)
            }
            (Op::Stos, _, Some(to)) => {
                let v = self.gpr(RAX, p.w);
                // SAFETY: the tag matched for `len` bytes: mapped writable guest memory.
                unsafe { fill(to.as_ptr(), len, p.w, v) };
                (n, None)
            }
            (Op::Scas, _, Some(to)) => {
                let a = self.gpr(RAX, p.w);
                let mut k = 0;
                loop {
                    // SAFETY: `k < n`, so the element is inside the matched range.
                    let b = unsafe { element(to.as_ptr(), k, p.w) };
                    k += 1;
                    if k == n || p.ends(a, b) {
                        break (k, Some((a, b)));
                    }
                }
            }
            (Op::Cmps, Some(from), Some(to)) => {
                let mut k = 0;
                loop {
                    // SAFETY: `k < n`, so the elements are inside the matched ranges.
                    let (a, b) =
                        unsafe { (element(from.as_ptr(), k, p.w), element(to.as_ptr(), k, p.w)) };
                    k += 1;
                    if k == n || p.ends(a, b) {
                        break (k, Some((a, b)));
                    }
                }
            }
            _ => return None,
        })
    }
}

/// Element `k` at `at`.
///
/// # Safety
/// The element is readable.
#[inline(always)]
unsafe fn element(at: *const u8, k: u64, w: Width) -> u64 {
    let k = k as usize;
    // SAFETY: the caller says so.
    unsafe {
        match w {
            Width::B1 => u64::from(at.add(k).read()),
            Width::B2 => u64::from(at.cast::<u16>().add(k).read_unaligned()),
            Width::B4 => u64::from(at.cast::<u32>().add(k).read_unaligned()),
            Width::B8 => at.cast::<u64>().add(k).read_unaligned(),
        }
    }
}

/// Moves `len` bytes in the order of an upward element copy: where the destination begins inside the
/// source, what was copied is copied again.
///
/// # Safety
/// Both ranges are mapped, `to` writable.
unsafe fn move_up(from: *const u8, to: *mut u8, len: usize, size: usize) {
    let ahead = (to as usize).wrapping_sub(from as usize);
    // SAFETY: all accesses are inside the two ranges.
    unsafe {
        if ahead == 0 || ahead >= len {
            core::ptr::copy(from, to, len);
        } else if ahead >= size {
            // Pieces no longer than the distance do not overlap.
            let mut done = 0;
            while done < len {
                let n = ahead.min(len - done) / size * size;
                core::ptr::copy_nonoverlapping(from.add(done), to.add(done), n);
                done += n;
            }
        } else {
            let mut done = 0;
            while done < len {
                let mut b = [0; 8];
                core::ptr::copy_nonoverlapping(from.add(done), b.as_mut_ptr(), size);
                core::ptr::copy_nonoverlapping(b.as_ptr(), to.add(done), size);
                done += size;
            }
        }
    }
}

/// Fills `len` bytes with the element `v`.
///
/// # Safety
/// The range is mapped and writable.
unsafe fn fill(to: *mut u8, len: usize, w: Width, v: u64) {
    let bytes = v.to_le_bytes();
    let size = w.bytes() as usize;
    // SAFETY: all writes are inside the range.
    unsafe {
        if bytes[..size].iter().all(|b| *b == bytes[0]) {
            core::ptr::write_bytes(to, bytes[0], len);
        } else {
            for k in 0..len / size {
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(k * size), size);
            }
        }
    }
}
