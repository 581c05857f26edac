//! The controller's entry points for cores with caches.

use std::sync::Arc;

use sevlab_arch::Spa;

use super::{FetchFilter, HierCounters, Line, LineFilter, Served};
use crate::ctl::MemCtl;
use crate::error::Error;

impl MemCtl {
    /// Gives a core its caches, cold the first time, and keeps the tags of its filters true from now on.
    ///
    /// # Errors
    /// [`Error::NoCore`] for a number that is not below [`Config::cores`](crate::Config::cores).
    pub fn attach_core(
        &self,
        core: usize,
        data: Arc<LineFilter>,
        fetch: Arc<FetchFilter>,
    ) -> Result<(), Error> {
        let _ = (data, fetch);
        Err(Error::NoCore { core })
    }

    /// The opposite: the filters' tags are gone. What the core's caches hold stays there.
    pub fn detach_core(&self, core: usize) {
        let _ = core;
    }

    /// In a clone of the host process: of the attached cores only this one has an owner here.
    pub fn keep_only_core(&self, core: usize) {
        let _ = core;
    }

    /// Accesses a line: looks the caches up, brings the line in, and enters it into the core's filter.
    ///
    /// # Errors
    /// [`Error::NoCore`], [`Error::OutOfRange`], [`Error::NoKey`].
    pub fn line(&self, core: usize, line: &Line) -> Result<Served, Error> {
        let _ = line;
        Err(Error::NoCore { core })
    }

    /// Takes the write tags of every core's filter for lines of the frame at `page` away: it holds decoded code now.
    pub fn drop_line_writes(&self, page: Spa) {
        let _ = page;
    }

    /// What `core` has caused so far; zeroes if it never was attached.
    #[must_use]
    pub fn hier_counters(&self, core: usize) -> HierCounters {
        let _ = core;
        HierCounters::default()
    }

    /// What all cores have caused.
    #[must_use]
    pub fn hier_totals(&self) -> HierCounters {
        HierCounters::default()
    }
}
