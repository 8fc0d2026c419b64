//! Locks whose holder may have panicked: nothing here is left half changed, so what they guard is used all the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the mutex guards, once it is free.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
