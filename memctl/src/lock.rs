#![allow(unsafe_code)] // what the lock is around
//! The lock around the controller's metadata, which a thread can keep while it takes it many times.
//!
//! The problem: a core of a simulated machine comes here for every access that its filter does not pass, and taking and leaving a
//! mutex nobody else wants are two operations that wait for all stores before them: a third of what an access costs that L2
//! serves. While a core has its turn nobody else accesses memory, so it keeps the lock ([`Lock::hold`]); taking it again then is a
//! comparison.
//!
//! Invariant: the value is reached through one [`Guard`] at a time. Taking it twice is a mistake of this crate, and panics.

use std::cell::{Cell, UnsafeCell};
use std::ops::{Deref, DerefMut};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

/// The lock, and its value.
pub(crate) struct Lock<T> {
    /// Whether there is a guard; only the thread that has the mutex looks.
    taken: ReentrantMutex<Cell<bool>>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a `Guard` alone, and there is one at a time: of the thread that has the mutex.
unsafe impl<T: Send> Send for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to the value.
pub(crate) struct Guard<'a, T> {
    taken: ReentrantMutexGuard<'a, Cell<bool>>,
    value: &'a UnsafeCell<T>,
}

/// Keeps other threads out; the thread that has it takes and leaves the lock for next to nothing.
pub struct Hold<'a>(
    #[expect(dead_code, reason = "its drop is what matters")] ReentrantMutexGuard<'a, Cell<bool>>,
);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            taken: ReentrantMutex::new(Cell::new(false)),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let taken = self.taken.lock();
        assert!(!taken.replace(true), "the metadata is being used already");
        Guard {
            taken,
            value: &self.value,
        }
    }

    /// Keeps the lock for this thread, which can still take it.
    pub(crate) fn hold(&self) -> Hold<'_> {
        Hold(self.taken.lock())
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.taken.set(false);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this is the one guard, of the thread that has the mutex; the reference lives no longer.
        unsafe { &*self.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.value.get() }
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
        let _one = lock.lock();
        let _two = lock.lock();
    }
}
