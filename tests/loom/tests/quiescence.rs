//! Nothing is freed while a reader may hold it. "Freed" is an exclusive access to a cell that readers look into:
//! loom fails the model if a look may overlap with it, or is not ordered before it.

use adit_loom::quiescence::Domain;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Two values; `current` is the index of the published one, as the pointer would be.
struct Table {
    domain: Domain,
    current: AtomicUsize,
    values: [UnsafeCell<u64>; 2],
}

// Access to the cells is what the models check.
unsafe impl Sync for Table {}
unsafe impl Send for Table {}

const FREED: u64 = 0;

impl Table {
    fn new(seats: usize) -> Self {
        Self {
            domain: Domain::new(seats),
            current: AtomicUsize::new(0),
            values: [UnsafeCell::new(1), UnsafeCell::new(2)],
        }
    }

    /// Pins `pins` times and looks at the current value each time.
    fn read(&self, pins: usize) {
        let seat = self.domain.sit().unwrap();
        for _ in 0..pins {
            self.domain.pin(&seat);
            let index = self.current.load(Ordering::Acquire);
            let value = self.values[index].with(|value| unsafe { *value });
            assert_ne!(value, FREED);
            self.domain.unpin(&seat);
        }
        self.domain.stand(&seat);
    }

    /// Publishes the second value in place of the first and retires that.
    fn replace(&self) -> u64 {
        assert_eq!(self.current.swap(1, Ordering::AcqRel), 0);
        self.domain.retire_tag()
    }

    fn free_first(&self) {
        self.values[0].with_mut(|value| unsafe { *value = FREED });
    }
}

#[test]
fn what_is_freed_at_once_when_nobody_is_pinned_is_held_by_nobody() {
    loom::model(|| {
        let table = Arc::new(Table::new(1));
        let reader = thread::spawn({
            let table = Arc::clone(&table);
            move || table.read(2)
        });
        let tag = table.replace();
        if table.domain.all_beyond(tag) {
            table.free_first();
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_writer_that_waits_frees_after_every_reader() {
    loom::model(|| {
        let table = Arc::new(Table::new(1));
        let reader = thread::spawn({
            let table = Arc::clone(&table);
            move || table.read(2)
        });
        let tag = table.replace();
        // As `synchronize`: seat by seat, never back.
        let mut from = 0;
        while let Some(seat) = table.domain.first_within(from, tag) {
            from = seat;
            thread::yield_now();
        }
        table.free_first();
        reader.join().unwrap();
    });
}

#[test]
fn two_readers_are_both_waited_for() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let table = Arc::new(Table::new(2));
        let readers = [(); 2].map(|()| {
            thread::spawn({
                let table = Arc::clone(&table);
                move || table.read(1)
            })
        });
        let tag = table.replace();
        let mut from = 0;
        while let Some(seat) = table.domain.first_within(from, tag) {
            from = seat;
            thread::yield_now();
        }
        table.free_first();
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// `reclaim`: another thread than the one that replaced asks what has become quiet.
#[test]
fn housekeeping_frees_only_what_is_quiet() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let table = Arc::new(Table::new(1));
        let retired = Arc::new(AtomicUsize::new(0));
        let reader = thread::spawn({
            let table = Arc::clone(&table);
            move || table.read(2)
        });
        let writer = thread::spawn({
            let (table, retired) = (Arc::clone(&table), Arc::clone(&retired));
            move || retired.store(table.replace() as usize, Ordering::Release)
        });
        let tag = retired.load(Ordering::Acquire) as u64;
        if tag != 0 && tag <= table.domain.quiet_tag() {
            table.free_first();
        }
        reader.join().unwrap();
        writer.join().unwrap();
    });
}
