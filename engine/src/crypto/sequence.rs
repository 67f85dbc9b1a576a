//! Sequence numbers of outbound SAs (RFC 4303 section 3.3.3): each given out once, never beyond a limit,
//! never cycling. It lives beside the ciphers because a counter-mode nonce is made from nothing else.

/// A number nobody else has or will get. Not Copy, not Clone.
#[derive(Debug, PartialEq, Eq)]
pub struct FreshSequence(u64);

impl FreshSequence {
    /// The 64-bit number.
    pub fn get(&self) -> u64 {
        self.0
    }
}

/// Consecutive fresh numbers, an iterator that gives each out once.
#[derive(Debug)]
pub struct FreshRange {
    next: u64,
    end: u64,
}

impl Iterator for FreshRange {
    type Item = FreshSequence;

    fn next(&mut self) -> Option<FreshSequence> {
        todo!()
    }
}

/// The counter of one outbound SA, shared by any number of workers.
pub struct SequenceCounter {
    last: std::sync::atomic::AtomicU64,
}

impl SequenceCounter {
    /// A counter whose first number will be `last + 1`; a new SA starts with 0 (its first packet carries 1).
    pub fn starting_after(last: u64) -> Self {
        Self { last: std::sync::atomic::AtomicU64::new(last) }
    }

    /// Takes `count` numbers by a bounded compare-exchange: all of n+1..=n+count at or below `limit`, or
    /// nothing changes and `None` comes back.
    pub fn take(&self, count: u64, limit: u64) -> Option<FreshRange> {
        let _ = (count, limit, &self.last);
        todo!()
    }

    /// The last number given out.
    pub fn last(&self) -> u64 {
        todo!()
    }
}
