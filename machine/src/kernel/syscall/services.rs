//! What system calls keep from one to the next beside memory and signals: timers, signal descriptors, directories of
//! `/proc` that are open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sevlab_cpu::Vcpu;

use super::procfs::Directory;
use super::timers::Timers;
use super::{Call, events, timers};
use crate::kernel::Kernel;
use crate::kernel::error::Error;
use crate::kernel::outside::Outside;

/// The state of a process; [`Services::forked`] and [`Services::executed`] say what a child and a new program keep.
#[derive(Default)]
pub struct Services {
    /// POSIX timers.
    pub timers: Timers,
    /// Signal descriptors, with the signals they are for. Copies of a descriptor share them.
    pub signalfds: HashMap<i32, Arc<AtomicU64>>,
    /// Open directories that must not show what is the host's.
    pub directories: HashMap<i32, Directory>,
}

impl Services {
    /// What a child has after a fork: descriptors, but no timers.
    #[must_use]
    pub fn forked(&self) -> Self {
        Self {
            timers: Timers::default(),
            signalfds: self.signalfds.clone(),
            directories: self.directories.clone(),
        }
    }

    /// A new program runs. Its timers are gone; the host's are given back by [`timers::delete_all`].
    pub fn executed(&mut self) {
        self.timers = Timers::default();
    }

    /// Descriptor `fd` names something else from now on, or nothing.
    pub fn forget(&mut self, fd: i32) {
        self.signalfds.remove(&fd);
        self.directories.remove(&fd);
    }

    /// Descriptor `to` names what `from` names.
    pub fn copy(&mut self, from: i32, to: i32) {
        self.forget(to);
        if let Some(set) = self.signalfds.get(&from).cloned() {
            self.signalfds.insert(to, set);
        }
        if let Some(kind) = self.directories.get(&from).copied() {
            self.directories.insert(to, kind);
        }
    }
}

/// Raises the signals of timers that have expired, and has signal descriptors say what is pending. To be called before
/// signals are looked at. Costs two comparisons if there is nothing of the kind.
///
/// # Errors
/// The exit failed.
pub fn tick(kernel: &mut Kernel, vcpu: &mut Vcpu, out: &mut dyn Outside) -> Result<(), Error> {
    timers::expire(kernel, vcpu, out)?;
    events::refresh(kernel, vcpu, out)
}

impl Call<'_> {
    /// [`tick`] from within a call.
    ///
    /// # Errors
    /// The exit failed.
    pub fn tick(&mut self) -> Result<(), Error> {
        tick(self.kernel, self.vcpu, self.out)
    }

    /// Forgets what was known about a descriptor that is closed or replaced.
    pub fn forget_fd(&mut self, fd: i32) {
        self.kernel.files.remove(&fd);
        self.kernel.services.forget(fd);
    }
}
