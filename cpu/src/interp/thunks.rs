//! Native thunks on a vCPU.

use std::cell::Cell;

use super::{Halt, Interp};
use crate::builder::Builder;
use crate::insn::Insn;
use crate::stop::Exception;
use crate::thunk::{self, Thunk};

impl Interp<'_> {
    /// Runs a thunk whose place in its block remembers it.
    #[inline]
    pub(super) fn thunk(
        &mut self,
        i: &Insn,
        place: &Cell<Option<&'static Thunk>>,
    ) -> Result<(), Halt> {
        let t = match place.get() {
            Some(t) => t,
            None => {
                let t = self.find_thunk(i)?;
                place.set(Some(t));
                t
            }
        };
        self.run_thunk(t, i)
    }

    /// Runs a thunk, looking it up.
    #[cold]
    pub(super) fn thunk_slow(&mut self, i: &Insn) -> Result<(), Halt> {
        let t = self.find_thunk(i)?;
        self.run_thunk(t, i)
    }

    #[inline(always)]
    fn run_thunk(&mut self, t: &Thunk, i: &Insn) -> Result<(), Halt> {
        let va = self.address(&i.mem);
        let mut r = Ok(());
        let size = u64::from(t.mem_read().max(t.mem_write()));
        if va & t.checked_alignment() != 0 && self.misaligned(va, size).is_err() {
            r = Err(self.stop.take().unwrap_or(Exception::ALIGNMENT.into()));
        }
        if r.is_ok() {
            r = thunk::run_on(t, self.v, i, va);
        }
        match r {
            Ok(()) => Ok(()),
            Err(s) if va & u64::from(t.align() - 1) != 0 => self.halt(s),
            Err(s) => {
                let s = self.named_thunk(i, va, s);
                self.halt(s)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn find_thunk(&mut self, i: &Insn) -> Result<&'static Thunk, Halt> {
        let found = match self.v.interp.thunks() {
            Ok(cache) => cache.get(i).ok(),
            Err(_) => None,
        };
        // What the host can't run is not part of the guest's processor.
        match found {
            Some(t) => Ok(t),
            None => self.halt(Exception::INVALID_OPCODE),
        }
    }
}
