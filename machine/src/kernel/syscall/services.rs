//! What system calls keep from one to the next beside memory and signals: timers, signal descriptors, directories of
//! `/proc` that are open.

use std::collections::HashMap;
use std::sync::Arc;

use super::Call;
use super::events::SignalFd;
use super::procfs::Directory;
use super::timers::Timers;

/// The state of a process; [`Services::forked`] says what a child keeps.
#[derive(Default)]
pub struct Services {
    /// POSIX timers.
    pub timers: Timers,
    /// Signal descriptors. Copies of a descriptor share what it is.
    pub signalfds: HashMap<i32, Arc<SignalFd>>,
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

    /// Descriptor `fd` names something else from now on, or nothing.
    pub fn forget(&mut self, fd: i32) {
        self.signalfds.remove(&fd);
        self.directories.remove(&fd);
    }

    /// Descriptor `to` names what `from` names.
    pub fn copy(&mut self, from: i32, to: i32) {
        self.forget(to);
        if let Some(file) = self.signalfds.get(&from).cloned() {
            self.signalfds.insert(to, file);
        }
        if let Some(kind) = self.directories.get(&from).copied() {
            self.directories.insert(to, kind);
        }
    }
}

impl Call<'_, '_> {
    /// Forgets what was known about a descriptor that is closed or replaced.
    pub fn forget_fd(&mut self, fd: i32) {
        self.kernel.files.remove(&fd);
        self.kernel.services.forget(fd);
        if let Some(sim) = &mut self.kernel.sim {
            sim.forget(fd);
        }
    }
}
