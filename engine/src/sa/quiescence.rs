//! Who is reading: seats of reading threads, and the wait until all that were reading have stopped. Knows
//! nothing of pointers (those are [`super::publish`]'s), so that tests/loom can check the protocol by itself.
//!
//! # The protocol
//!
//! An *epoch* counts retirements. A reader pins by writing the current epoch into its seat and unpins by writing
//! 0; a thread that sleeps has 0 there and holds nobody up. A writer first unlinks a value, then calls
//! [`Domain::retire_tag`], which ends an epoch and returns its number. The value may be freed when
//! [`Domain::all_beyond`] says so: every seat holds 0 or a later epoch.
//!
//! # Why that is enough
//!
//! Say the reader's pin is P, its load of the pointer is L, the writer's unlinking is U, and the writer's look
//! at the seat is S. There are sequentially consistent fences between P and L ([`Domain::pin`]) and between U
//! and S ([`Domain::all_beyond`]). One of the two fences comes first in their total order:
//!
//! - The writer's: then L sees U. The reader has the new value, and may be ignored.
//! - The reader's: then S sees P, or what the reader wrote after P.
//!   - It sees P with an epoch not beyond the tag: the writer waits.
//!   - It sees P with an epoch beyond the tag: the reader took that epoch from the `fetch_add` that came after U
//!     (a release, and the fence in `pin` acquires), so again L sees U.
//!   - It sees something later: that is stored with release and read with acquire, so everything the reader did
//!     under P happened before S, and so before the value is freed.
//!
//! Without the fence in `pin`, the processor may let L overtake P (a load passing an earlier store to another
//! address: x86 does it too). The writer would see an empty seat, free the value, and L would have found it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The value of a seat whose reader is not pinned.
const UNPINNED: u64 = 0;

/// One reader's seat, alone on its cache lines (two: processors prefetch them in pairs), because it is written
/// once per burst.
#[repr(align(128))]
struct Seat {
    taken: AtomicBool,
    /// The epoch its reader pinned in, or [`UNPINNED`].
    pinned_in: AtomicU64,
}

/// Seats and their epoch.
pub struct Domain {
    epoch: AtomicU64,
    seats: Box<[Seat]>,
}

/// An occupied seat's index. Not Copy: exactly one reader sits on it.
pub struct SeatIndex(usize);

impl Domain {
    /// A domain with `seats` seats.
    pub fn new(seats: usize) -> Self {
        let seats = (0..seats)
            .map(|_| Seat { taken: AtomicBool::new(false), pinned_in: AtomicU64::new(UNPINNED) })
            .collect();
        Self { epoch: AtomicU64::new(UNPINNED + 1), seats }
    }

    /// Takes a free seat; `None` when there is none.
    pub fn sit(&self) -> Option<SeatIndex> {
        let free = |seat: &Seat| {
            seat.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        self.seats.iter().position(free).map(SeatIndex)
    }

    /// Gives a seat back: the last use of `seat`, whose reader is not pinned.
    pub fn stand(&self, seat: &SeatIndex) {
        self.seats[seat.0].taken.store(false, Ordering::Release);
    }

    /// From here to [`Domain::unpin`], what the reader loads is not freed.
    pub fn pin(&self, seat: &SeatIndex) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        // Release, although the fence follows: S may read this store, and must then have before it what this
        // reader did under earlier pins.
        self.seats[seat.0].pinned_in.store(epoch, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The quiescent state: the reader holds nothing.
    pub fn unpin(&self, seat: &SeatIndex) {
        self.seats[seat.0].pinned_in.store(UNPINNED, Ordering::Release);
    }

    /// Ends the epoch in which something was unlinked, and returns it. Call it after unlinking.
    pub fn retire_tag(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel)
    }

    /// Whether no reader can still hold what was retired with `tag` or before.
    pub fn all_beyond(&self, tag: u64) -> bool {
        self.first_within(0, tag).is_none()
    }

    /// As [`Domain::all_beyond`], seat by seat: the first one, from index `from` on, whose reader may still hold
    /// something. A seat once passed need not be looked at again: its reader's next pin is later.
    pub fn first_within(&self, from: usize, tag: u64) -> Option<usize> {
        fence(Ordering::SeqCst);
        (from..self.seats.len()).find(|&index| {
            let pinned_in = self.seats[index].pinned_in.load(Ordering::Acquire);
            pinned_in != UNPINNED && pinned_in <= tag
        })
    }

    /// The largest tag for which [`Domain::all_beyond`] holds.
    pub fn quiet_tag(&self) -> u64 {
        // Before the seats: a reader that pins after we passed its seat may hold what is retired from now on,
        // but that carries this epoch or a later one.
        let epoch = self.epoch.load(Ordering::Acquire);
        fence(Ordering::SeqCst);
        let pinned = self.seats.iter().map(|seat| seat.pinned_in.load(Ordering::Acquire));
        pinned.filter(|&pinned_in| pinned_in != UNPINNED).fold(epoch, u64::min) - 1
    }
}
