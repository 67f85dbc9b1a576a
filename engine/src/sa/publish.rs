//! Publishing values to workers that read without locks: quiescent-state reclamation.
//!
//! Readers pin once per burst; a worker that sleeps is not pinned. A writer replaces a pointer, and
//! [`synchronize`] returns when no reader can still hold the old one: the moment at which a deleted key is gone.
//! This is the one place outside `io` and the crypto kernels with `unsafe`.

use std::sync::Arc;
use std::time::Duration;

/// A reading thread's seat. One per worker; at most 256 at once.
pub struct Reader {
    _todo: (),
}

/// Proof that the calling thread is pinned: what is loaded under it lives as long as it.
pub struct Guard<'r> {
    _reader: std::marker::PhantomData<&'r mut Reader>,
}

impl Reader {
    /// Takes a seat.
    ///
    /// # Panics
    /// When all seats are taken.
    pub fn register() -> Self {
        todo!()
    }

    /// Pins for one burst; dropping the guard is the quiescent state.
    pub fn pin(&mut self) -> Guard<'_> {
        todo!()
    }
}

/// A pointer to an `Arc<T>` that workers load without touching its reference count.
pub struct Published<T: Send + Sync + 'static> {
    _todo: std::marker::PhantomData<T>,
}

impl<T: Send + Sync + 'static> Published<T> {
    /// Publishes a first value, or none.
    pub fn new(value: Option<Arc<T>>) -> Self {
        let _ = value;
        todo!()
    }

    /// The current value; a plain load.
    pub fn load<'g>(&self, guard: &'g Guard<'_>) -> Option<&'g T> {
        let _ = guard;
        todo!()
    }

    /// The current value, counted: for control threads that keep it.
    pub fn get(&self) -> Option<Arc<T>> {
        todo!()
    }

    /// Replaces the value; the old one's count is dropped after a grace period ([`reclaim`], [`synchronize`]).
    pub fn replace(&self, value: Option<Arc<T>>) {
        let _ = value;
        todo!()
    }
}

/// Waits until every reader that is pinned now has been unpinned once, then frees all that was retired before.
/// False when `timeout` passed first (a stuck worker); what was retired stays retired.
pub fn synchronize(timeout: Duration) -> bool {
    let _ = timeout;
    todo!()
}

/// Frees what can be freed without waiting; for housekeeping. Returns how many are still retired.
pub fn reclaim() -> usize {
    todo!()
}
