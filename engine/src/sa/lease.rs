//! How far the numbers of an SA may go.
//!
//! A key that dies with its SA needs no lease. For one that may come back, a lease is a ceiling on stable storage: after a crash, an SA with the same key begins above it. So no number
//! is used (sent, or accepted as received) above the ceiling, and then none is ever used twice. A keeper raises
//! the ceiling ahead of use; workers compare one atomic once a group, and ring when they come near.

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls the keeper.
pub type Bell = Box<dyn Fn() + Send + Sync>;

/// What workers of one SA and the keeper share.
pub struct Lease {
    /// No number above it is used.
    ceiling: AtomicU64,
    /// The highest number used, or wanted and not granted yet.
    reached: AtomicU64,
    /// Beyond it the keeper is called.
    ring_above: AtomicU64,
    bell: Bell,
}

impl Lease {
    /// Numbers up to and with `used` were used in an earlier life; nothing may be used yet.
    pub fn starting_after(used: u64, bell: Bell) -> Self {
        Self {
            ceiling: AtomicU64::new(used),
            reached: AtomicU64::new(used),
            ring_above: AtomicU64::new(used),
            bell,
        }
    }

    /// No number above this may be used now.
    pub fn ceiling(&self) -> u64 {
        // Acquire: what the keeper did to storage happened before the number is used.
        self.ceiling.load(Ordering::Acquire)
    }

    /// A worker used numbers up to `number`, or had to do without it. Once a group.
    pub fn reach(&self, number: u64) {
        // Relaxed: the keeper only measures with it; what it may promise is the ceiling.
        self.reached.fetch_max(number, Ordering::Relaxed);
        if number > self.ring_above.load(Ordering::Relaxed) {
            (self.bell)();
        }
    }

    /// The highest number used, or wanted.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// The keeper's word that `ceiling` is on stable storage; it is called above `ring_above`.
    pub fn raise(&self, ceiling: u64, ring_above: u64) {
        self.ring_above.store(ring_above, Ordering::Relaxed);
        self.ceiling.store(ceiling, Ordering::Release);
    }

    /// Takes back what was not used. A worker that looked before may still use numbers up to the old ceiling:
    /// storage may follow only when every worker has been quiescent since, with what was reached by then.
    pub fn lower(&self, ceiling: u64) {
        self.ring_above.store(ceiling, Ordering::Relaxed);
        self.ceiling.store(ceiling, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn the_bell_rings_only_where_the_keeper_asked_for_it() {
        let rung = Arc::new(AtomicU32::new(0));
        let bell = Arc::clone(&rung);
        let lease = Lease::starting_after(
            7,
            Box::new(move || {
                bell.fetch_add(1, Ordering::Relaxed);
            }),
        );
        assert_eq!((lease.ceiling(), lease.reached()), (7, 7), "nothing may be used yet");
        lease.raise(100, 50);
        lease.reach(50);
        assert_eq!(rung.load(Ordering::Relaxed), 0);
        lease.reach(51);
        lease.reach(20);
        assert_eq!((rung.load(Ordering::Relaxed), lease.reached()), (1, 51));
    }
}
