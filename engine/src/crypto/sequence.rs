//! Sequence numbers of outbound SAs (RFC 4303 section 3.3.3): each given out once, never beyond a limit,
//! never cycling. It lives beside the ciphers because a counter-mode nonce is made from nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number nobody else has or will get. Not Copy, not Clone, and only a [`FreshRange`] makes one:
///
/// ```compile_fail,E0423
/// let forged = adit_engine::crypto::sequence::FreshSequence(7);
/// ```
/// ```compile_fail,E0599
/// # use adit_engine::crypto::sequence::SequenceCounter;
/// let number = SequenceCounter::starting_after(0).take(1, 10).unwrap().next().unwrap();
/// let twice = number.clone();
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct FreshSequence(u64);

impl FreshSequence {
    /// The 64-bit number.
    pub fn get(&self) -> u64 {
        self.0
    }
}

/// Consecutive fresh numbers, an iterator that gives each out once. Numbers still in it when it is
/// dropped are burnt: a gap in the sequence is harmless, a second use is not.
#[derive(Debug)]
#[must_use = "numbers that are not used are burnt"]
pub struct FreshRange {
    /// The last number given out, so that a range ending at 2^64-1 needs no number beyond it.
    last: u64,
    end: u64,
}

impl Iterator for FreshRange {
    type Item = FreshSequence;

    fn next(&mut self) -> Option<FreshSequence> {
        if self.last == self.end {
            return None;
        }
        self.last += 1;
        Some(FreshSequence(self.last))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Exact below 2^64: `usize` is 64 bits on every target adit builds for.
        let left = (self.end - self.last) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for FreshRange {}
impl core::iter::FusedIterator for FreshRange {}

/// The counter of one outbound SA, shared by any number of workers.
pub struct SequenceCounter {
    last: AtomicU64,
}

impl SequenceCounter {
    /// A counter whose first number will be `last + 1`; a new SA starts with 0 (its first packet carries 1).
    pub fn starting_after(last: u64) -> Self {
        Self { last: AtomicU64::new(last) }
    }

    /// Takes `count` numbers by a bounded compare-exchange: all of n+1..=n+count at or below `limit`, or
    /// nothing changes and `None` comes back. A `fetch_add` would not do: it moves the counter even when
    /// the limit is passed, and enough refused calls would make it cycle (RFC 4303 section 3.3.3 forbids
    /// that outright).
    pub fn take(&self, count: u64, limit: u64) -> Option<FreshRange> {
        // Relaxed: the counter guards no other memory. That no number is given out twice needs only
        // that all exchanges on this one atomic happen in a single order, which every ordering promises.
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let end = last.checked_add(count).filter(|&end| end <= limit)?;
            match self.last.compare_exchange_weak(last, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(FreshRange { last, end }),
                Err(current) => last = current,
            }
        }
    }

    /// The last number given out.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(range: FreshRange) -> Vec<u64> {
        range.map(|number| number.get()).collect()
    }

    #[test]
    fn starts_after_the_last_number_and_counts_on() {
        let counter = SequenceCounter::starting_after(0);
        assert_eq!(numbers(counter.take(3, 100).unwrap()), [1, 2, 3]);
        assert_eq!(numbers(counter.take(1, 100).unwrap()), [4]);
        assert_eq!(counter.last(), 4);
    }

    #[test]
    fn takes_all_or_nothing_at_the_limit() {
        let counter = SequenceCounter::starting_after(7);
        assert!(counter.take(4, 10).is_none());
        assert_eq!(counter.last(), 7);
        assert_eq!(numbers(counter.take(3, 10).unwrap()), [8, 9, 10]);
        assert!(counter.take(1, 10).is_none());
        assert_eq!(counter.take(0, 10).unwrap().len(), 0);
    }

    #[test]
    fn never_cycles_at_the_end_of_64_bits() {
        let counter = SequenceCounter::starting_after(u64::MAX - 2);
        assert!(counter.take(3, u64::MAX).is_none());
        assert_eq!(numbers(counter.take(2, u64::MAX).unwrap()), [u64::MAX - 1, u64::MAX]);
        for count in [1, 2, u64::MAX] {
            assert!(counter.take(count, u64::MAX).is_none());
        }
        assert_eq!(counter.last(), u64::MAX);
    }

    #[test]
    fn a_counter_already_beyond_the_limit_gives_nothing() {
        let counter = SequenceCounter::starting_after(11);
        assert!(counter.take(1, 10).is_none());
        assert!(counter.take(0, 10).is_none());
    }

    #[test]
    fn a_dropped_range_burns_its_numbers() {
        let counter = SequenceCounter::starting_after(0);
        let mut range = counter.take(5, 100).unwrap();
        assert_eq!(range.len(), 5);
        assert_eq!(range.next().unwrap().get(), 1);
        assert_eq!(range.len(), 4);
        drop(range);
        assert_eq!(numbers(counter.take(1, 100).unwrap()), [6]);
    }

    #[test]
    fn many_threads_get_every_number_once() {
        const LIMIT: u64 = 40_001;
        let counter = SequenceCounter::starting_after(0);
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let takers: Vec<_> = (1..=4)
                .map(|count| {
                    let counter = &counter;
                    scope.spawn(move || {
                        let mut mine = Vec::new();
                        while let Some(range) = counter.take(count, LIMIT) {
                            mine.extend(range.map(|number| number.get()));
                        }
                        mine
                    })
                })
                .collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
        });
        all.sort_unstable();
        // The taker of single numbers stops only at the limit, so none is left over.
        assert_eq!(all, (1..=LIMIT).collect::<Vec<_>>());
    }
}
