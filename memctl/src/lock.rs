#![allow(unsafe_code)] // what the lock is around
//! The lock around the controller's metadata, which a thread can keep while it takes it many times.
//!
//! The problem: a core of a simulated machine comes here for every access that its filter does not pass, and taking and leaving a
//! mutex nobody else wants are two operations that wait for all stores before them: a third of what an access costs that L2
//! serves. While a core has its turn nobody else accesses memory, so it keeps the lock ([`Lock::hold`]); taking it again then is a
//! comparison.
//!
//! Invariants:
//! 1. The value is reached through one [`Guard`] at a time, of the thread that has the mutex. Taking it twice is a mistake of this
//!    crate, and panics.
//! 2. `holder` is a thread's mark only while that thread has the mutex for a [`Hold`]: who finds its own mark there has it.
//!
//! The mutex is the standard library's, of which a clone of the host process can be made while others wait for it: a reentrant one whose
//! waiters stand in a table of the process would hand itself to a thread that the clone does not have.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nobody's mark.
const NOBODY: usize = 0;

/// The calling thread's mark: no two that live have the same.
#[inline]
fn mark() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
}

/// The lock, and its value.
pub(crate) struct Lock<T> {
    mutex: Mutex<()>,
    holder: AtomicUsize,
    /// Whether there is a guard; only the thread that has the mutex looks.
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a `Guard` alone, and there is one at a time: of the thread that has the mutex.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to the value.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// Unless the thread holds the lock anyway.
    _mutex: Option<MutexGuard<'a, ()>>,
}

/// Keeps other threads out; the thread that has it takes and leaves the lock for next to nothing.
pub struct Hold<'a> {
    holder: &'a AtomicUsize,
    _mutex: MutexGuard<'a, ()>,
}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            mutex: Mutex::new(()),
            holder: AtomicUsize::new(NOBODY),
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    fn mutex(&self) -> MutexGuard<'_, ()> {
        self.mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the calling thread holds it.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.holder.load(Relaxed) == mark()
    }

    /// Takes the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let held = self.is_held();
        let mutex = if held { None } else { Some(self.mutex()) };
        assert!(
            !self.taken.load(Relaxed),
            "the metadata is being used already"
        );
        self.taken.store(true, Relaxed);
        Guard {
            lock: self,
            _mutex: mutex,
        }
    }

    /// Keeps the lock for this thread, which can still take it, but not hold it once more.
    pub(crate) fn hold(&self) -> Hold<'_> {
        let mutex = self.mutex();
        self.holder.store(mark(), Relaxed);
        Hold {
            holder: &self.holder,
            _mutex: mutex,
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.holder.store(NOBODY, Relaxed);
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(false, Relaxed);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this is the one guard, of the thread that has the mutex; the reference lives no longer.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn who_holds_it_takes_it_and_nobody_else() {
        let lock = Arc::new(Lock::new(0));
        let hold = lock.hold();
        *lock.lock() += 1;
        *lock.lock() += 1;
        let other = std::thread::spawn({
            let lock = Arc::clone(&lock);
            move || std::mem::replace(&mut *lock.lock(), 10)
        });
        *lock.lock() += 1;
        std::thread::sleep(std::time::Duration::from_millis(20));
        *lock.lock() += 1;
        drop(hold);
        assert_eq!(other.join().ok(), Some(4));
        assert_eq!(*lock.lock(), 10);
    }

    #[test]
    #[should_panic = "used already"]
    fn twice_at_a_time_is_refused() {
        let lock = Lock::new(());
        let _hold = lock.hold();
        let _one = lock.lock();
        let _two = lock.lock();
    }
}
