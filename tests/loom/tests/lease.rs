//! A worker takes numbers while the keeper raises the ceiling: whatever the worker uses is on stable storage.

use adit_loom::lease::Lease;
use adit_loom::sequence::SequenceCounter;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

/// The keeper writes twice and raises behind each write; the worker takes what it may, three times. `stable` stands
/// for the disk: it is read as another host would after the power went, at the moment a number is used.
fn model(raise_behind_the_write: bool) {
    loom::model(move || {
        let rung = Arc::new(AtomicBool::new(false));
        let bell = Arc::clone(&rung);
        let lease =
            Arc::new(Lease::starting_after(10, Box::new(move || bell.store(true, Ordering::Relaxed))));
        let stable = Arc::new(AtomicU64::new(10));
        let keeper = thread::spawn({
            let (lease, stable) = (Arc::clone(&lease), Arc::clone(&stable));
            move || {
                for ceiling in [12, 13] {
                    if raise_behind_the_write {
                        stable.store(ceiling, Ordering::Relaxed);
                        lease.raise(ceiling, ceiling - 1);
                    } else {
                        lease.raise(ceiling, ceiling - 1);
                        stable.store(ceiling, Ordering::Relaxed);
                    }
                }
            }
        });
        let numbers = SequenceCounter::starting_after(10);
        for _ in 0..3 {
            let ceiling = lease.ceiling();
            if numbers.take(1, ceiling).is_some() {
                assert!(numbers.last() <= stable.load(Ordering::Relaxed), "used above what is stable");
            }
            lease.reach(numbers.last() + u64::from(numbers.last() == ceiling));
        }
        keeper.join().unwrap();
        assert!(numbers.last() <= lease.ceiling());
        assert!(lease.reached() >= numbers.last());
        // Nothing is waited for in vain: at the end of what was granted, the keeper is called.
        while numbers.take(1, lease.ceiling()).is_some() {}
        lease.reach(numbers.last() + 1);
        assert!(rung.load(Ordering::Relaxed));
    });
}

#[test]
fn what_is_used_is_on_stable_storage() {
    model(true);
}

#[test]
#[should_panic(expected = "used above what is stable")]
fn a_ceiling_raised_before_the_write_is_seen_to_fail() {
    model(false);
}
