//! Publishing values to workers that read without locks: quiescent-state reclamation.
//!
//! Readers pin once per burst; a worker that sleeps is not pinned. A writer replaces a pointer, and
//! [`synchronize`] returns when no reader can still hold the old one: the moment at which a deleted key is gone.
//! Who may still be reading is [`super::quiescence`]'s business, proof included; here is what it guards.
//!
//! This is the one place outside `io` and the crypto kernels with `unsafe`. Its whole argument is one invariant:
//!
//! > A non-null pointer in a [`Published`] owns one count of its `Arc`. The count leaves the pointer only in
//! > `replace`, which hands it to the retired list, where it stays until every reader pinned at that time has
//! > unpinned; or in `drop`, when nobody borrows the `Published` any more.
#![allow(unsafe_code)] // AtomicPtr to Arc and back: no safe type loads an Arc without touching its count.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::quiescence::{Domain, SeatIndex};

/// Readers at once.
pub const SEATS: usize = 256;

/// One domain for the process: a worker reads several tables under one pin.
static DOMAIN: LazyLock<Domain> = LazyLock::new(|| Domain::new(SEATS));

/// What was taken out of a `Published` and may still be read. Tags ascend.
static RETIRED: Mutex<VecDeque<(u64, Arc<dyn Send + Sync>)>> = Mutex::new(VecDeque::new());

fn retired() -> MutexGuard<'static, VecDeque<(u64, Arc<dyn Send + Sync>)>> {
    // Nothing can panic while it is locked and leave it half changed.
    RETIRED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reading thread's seat. One per worker; at most [`SEATS`] at once.
pub struct Reader {
    domain: &'static Domain,
    seat: SeatIndex,
}

/// Proof that the calling thread is pinned: what is loaded under it lives as long as it.
///
/// A thread cannot sleep in `poll` and forget to unpin: a worker holds the guard for a burst, and nothing loaded
/// under it outlives it.
///
/// ```compile_fail,E0505
/// # use adit_engine::sa::publish::{Published, Reader};
/// let published = Published::new(Some(std::sync::Arc::new(1)));
/// let mut reader = Reader::register();
/// let guard = reader.pin();
/// let value = published.load(&guard);
/// drop(guard);
/// assert_eq!(value, Some(&1));
/// ```
pub struct Guard<'r> {
    reader: &'r mut Reader,
    /// Not Send: the thread that pinned is the one that unpins.
    _thread: PhantomData<*const ()>,
}

impl Reader {
    /// Takes a seat.
    ///
    /// # Panics
    /// When all seats are taken.
    pub fn register() -> Self {
        let domain: &'static Domain = &DOMAIN;
        let seat = domain.sit().expect("more reading threads than publish::SEATS");
        Self { domain, seat }
    }

    /// Pins for one burst; dropping the guard is the quiescent state.
    pub fn pin(&mut self) -> Guard<'_> {
        self.domain.pin(&self.seat);
        Guard { reader: self, _thread: PhantomData }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.reader.domain.unpin(&self.reader.seat);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A guard that was leaked left the seat pinned; nothing loaded under it is left now.
        self.domain.unpin(&self.seat);
        self.domain.stand(&self.seat);
    }
}

/// A pointer to an `Arc<T>` that workers load without touching its reference count.
#[repr(transparent)]
pub struct Published<T: Send + Sync + 'static> {
    /// `Arc::into_raw`, or null.
    pointer: AtomicPtr<T>,
    _owns: PhantomData<Arc<T>>,
}

fn into_raw<T>(value: Option<Arc<T>>) -> *mut T {
    value.map_or(ptr::null_mut(), |value| Arc::into_raw(value).cast_mut())
}

impl<T: Send + Sync + 'static> Published<T> {
    /// Publishes a first value, or none.
    pub fn new(value: Option<Arc<T>>) -> Self {
        Self { pointer: AtomicPtr::new(into_raw(value)), _owns: PhantomData }
    }

    /// `length` empty ones, in memory that costs nothing until it is used: the allocator takes zeroed pages from
    /// the kernel and nobody writes to them.
    pub fn empty_slice(length: usize) -> Box<[Self]> {
        let layout = std::alloc::Layout::array::<Self>(length).expect("a length that fits into memory");
        if layout.size() == 0 {
            return Box::new([]);
        }
        // SAFETY: the layout is not of size zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        if memory.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        let slice = ptr::slice_from_raw_parts_mut(memory.cast::<Self>(), length);
        // SAFETY: the memory is ours, from the global allocator, with the layout of `[Self; length]`. Zero bytes
        // are a valid `Self`: it is transparent over `AtomicPtr`, which has the representation of a pointer, and
        // all zeros is the null pointer.
        unsafe { Box::from_raw(slice) }
    }

    /// The current value; a plain load. It lives as long as the guard and this `Published` are borrowed.
    pub fn load<'g>(&'g self, _guard: &'g Guard<'_>) -> Option<&'g T> {
        // Acquire: pairs with the release in `replace`, so the value is seen as it was built.
        let pointer = self.pointer.load(Ordering::Acquire);
        // SAFETY: null gives None. Otherwise the pointer owned a count when it was loaded. The count is not
        // dropped during 'g: `drop` needs this `Published` unborrowed; `replace` retires the count, and the
        // retired list keeps it until our reader, pinned through all of 'g by `_guard`, has unpinned. The
        // guard cannot be dropped or the reader pinned anew while 'g borrows them. Nobody mutates a `T`
        // behind an `Arc`.
        unsafe { pointer.as_ref() }
    }

    /// The current value, counted: for control threads that keep it.
    pub fn get(&self) -> Option<Arc<T>> {
        if self.pointer.load(Ordering::Relaxed).is_null() {
            return None;
        }
        // This thread is not pinned; the list's lock does what a pin would. Whoever replaces the value we load
        // below must take the lock to retire it, hence after we have counted it.
        let retired = retired();
        let pointer = self.pointer.load(Ordering::Acquire).cast_const();
        if pointer.is_null() {
            return None;
        }
        // SAFETY: the pointer is from `Arc::into_raw` and owned a count when it was loaded. That count can be
        // dropped only after being pushed onto the retired list, which is locked until below; `drop` needs this
        // `Published` unborrowed. So the value is alive, and the new count is ours to turn into an `Arc`.
        let value = unsafe {
            Arc::increment_strong_count(pointer);
            Arc::from_raw(pointer)
        };
        drop(retired);
        Some(value)
    }

    /// Replaces the value; the old one's count is dropped after a grace period ([`reclaim`], [`synchronize`]).
    pub fn replace(&self, value: Option<Arc<T>>) {
        // Release: readers see the new value as it was built. Acquire: whoever frees the old one has it as its
        // publisher built it.
        let old = self.pointer.swap(into_raw(value), Ordering::AcqRel);
        if old.is_null() {
            return;
        }
        // SAFETY: the pointer is from `Arc::into_raw`, and the swap took it out for us alone: the count it owned
        // is now this `Arc`'s. Readers may still use the value, so it goes to the list, not away.
        let old: Arc<T> = unsafe { Arc::from_raw(old.cast_const()) };
        let mut retired = retired();
        // Under the lock, so that the list stays in order of tags; after the swap, as the protocol wants.
        let tag = DOMAIN.retire_tag();
        retired.push_back((tag, old));
    }
}

impl<T: Send + Sync + 'static> Drop for Published<T> {
    fn drop(&mut self) {
        let pointer = std::mem::replace(self.pointer.get_mut(), ptr::null_mut()).cast_const();
        if !pointer.is_null() {
            // SAFETY: the pointer is from `Arc::into_raw` and its count is ours. What `load` returned borrowed
            // this `Published`, so no such reference is left, pinned or not, now that we have it exclusively.
            drop(unsafe { Arc::from_raw(pointer) });
        }
    }
}

/// Waits until every reader that is pinned now has been unpinned once, then frees all that was retired before.
/// False when `timeout` passed first (a stuck worker); what was retired stays retired. A thread that is pinned
/// itself waits for itself: call it from control threads only, and never from a `Drop` of a published value.
pub fn synchronize(timeout: Duration) -> bool {
    let tag = DOMAIN.retire_tag();
    let start = Instant::now();
    let mut from = 0;
    let mut rounds = 0_u32;
    while let Some(seat) = DOMAIN.first_within(from, tag) {
        from = seat;
        if start.elapsed() >= timeout {
            return false;
        }
        // A burst takes some ten microseconds; beyond that the worker has lost its core, maybe to us.
        rounds += 1;
        if rounds < 100 { std::hint::spin_loop() } else { std::thread::sleep(Duration::from_micros(50)) }
    }
    free_through(tag);
    true
}

/// Frees what can be freed without waiting; for housekeeping. Returns how many are still retired.
pub fn reclaim() -> usize {
    free_through(DOMAIN.quiet_tag());
    retired().len()
}

/// Drops what was retired with `tag` or before, after [`Domain::all_beyond`] held for it. The drops run outside
/// of the list's lock: they may be long (wiping keys), and may retire more.
fn free_through(tag: u64) {
    /// One thread frees at a time, so that what another one took off the list is gone too when
    /// [`synchronize`] says so.
    static FREEING: Mutex<()> = Mutex::new(());
    let _freeing = FREEING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut list = retired();
    let count = list.partition_point(|&(retired_with, _)| retired_with <= tag);
    let free: Vec<_> = list.drain(..count).collect();
    drop(list);
    drop(free);
}

#[cfg(test)]
#[path = "publish_tests.rs"]
pub(crate) mod tests;
