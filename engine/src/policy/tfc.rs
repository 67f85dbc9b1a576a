//! Traffic-flow confidentiality of a tunnel (RFC 4303 sections 2.6 and 2.7): packets padded beyond their own length, and
//! dummy packets among them, so that an observer learns less from sizes and times.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a packet is padded before it is sealed; never beyond what the path carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Padding {
    /// Not at all.
    #[default]
    Off,
    /// To a multiple of so many bytes, above 1.
    Multiple(u16),
    /// All packets to the largest that the tunnel carries.
    Mtu,
}

impl Padding {
    /// What a packet of `length` bytes is padded to, where at most `most` bytes fit.
    pub fn padded(self, length: usize, most: usize) -> usize {
        let wanted = match self {
            Self::Off => length,
            Self::Multiple(unit) => length.next_multiple_of(unit.max(1).into()),
            Self::Mtu => most,
        };
        wanted.min(most).max(length)
    }
}

/// When dummy packets are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum When {
    /// As far as packets of the tunnel's own do not make up the rate.
    #[default]
    Idle,
    /// Beside them.
    Always,
}

/// Dummy packets as the operator wants them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dummies {
    /// How many, 1 to [`Dummies::MOST_PER_SECOND`].
    pub per_second: u32,
    /// Bytes inside, by chance from this range, and at most what the tunnel carries; then padded like any packet.
    pub sizes: RangeInclusive<u16>,
    /// When.
    pub when: When,
}

impl Dummies {
    /// Of one tunnel.
    pub const MOST_PER_SECOND: u32 = 10_000;

    fn interval(&self) -> u64 {
        1_000_000 / u64::from(self.per_second.clamp(1, Self::MOST_PER_SECOND))
    }
}

/// Most dummies that one pass makes up for; what a busy worker missed beyond that is left out.
const MOST_AT_ONCE: u64 = 32;

/// Dummy packets of one tunnel, and when the next one is due. Whichever worker comes first takes what is due.
pub struct DummyStream {
    /// What is wanted.
    pub dummies: Dummies,
    /// In microseconds.
    due_at: AtomicU64,
    /// The last number of the tunnel's SA that was looked at.
    seen: AtomicU64,
}

impl DummyStream {
    /// The first one is due at once.
    pub fn new(dummies: Dummies) -> Self {
        Self { dummies, due_at: AtomicU64::new(0), seen: AtomicU64::new(0) }
    }

    /// How many are due at `now` (milliseconds), when `last_sequence` is the last number of the SA.
    pub fn take(&self, now: u64, last_sequence: u64) -> u64 {
        let now = now.saturating_mul(1000);
        let due_at = self.due_at.load(Ordering::Relaxed);
        if now < due_at {
            return 0;
        }
        let interval = self.dummies.interval();
        let periods = if due_at == 0 { 1 } else { (now - due_at) / interval + 1 };
        let (due, next) = match periods {
            1..=MOST_AT_ONCE => (periods, due_at.max(if due_at == 0 { now } else { 0 }) + periods * interval),
            _ => (MOST_AT_ONCE, now + interval),
        };
        // Another worker was quicker: the packets are his.
        if self.due_at.compare_exchange(due_at, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return 0;
        }
        let own = last_sequence.saturating_sub(self.seen.load(Ordering::Relaxed));
        self.seen.store(last_sequence, Ordering::Relaxed);
        match self.dummies.when {
            When::Always => due,
            When::Idle => due.saturating_sub(own),
        }
    }

    /// They were sent, the last one under this number: none of them counts as one of the tunnel's own.
    pub fn sent(&self, last_sequence: u64) {
        self.seen.store(last_sequence, Ordering::Relaxed);
    }

    /// When the next one is due, in milliseconds.
    pub fn due_at(&self) -> u64 {
        self.due_at.load(Ordering::Relaxed).div_ceil(1000)
    }
}

/// What a tunnel does for it; nothing by default.
#[derive(Default)]
pub struct Tfc {
    /// Padding of every packet.
    pub padding: Padding,
    /// Packets that mean nothing.
    pub dummies: Option<DummyStream>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_bounded_by_the_path() {
        for (padding, length, padded) in [
            (Padding::Off, 100, 100),
            (Padding::Multiple(256), 1, 256),
            (Padding::Multiple(256), 256, 256),
            (Padding::Multiple(256), 257, 512),
            (Padding::Multiple(256), 1400, 1446),
            (Padding::Multiple(9000), 40, 1446),
            (Padding::Mtu, 40, 1446),
            (Padding::Mtu, 1446, 1446),
            // Transit of what is too large anyway is not this function's business.
            (Padding::Mtu, 1500, 1500),
        ] {
            assert_eq!(padding.padded(length, 1446), padded, "{padding:?} of {length}");
        }
    }

    fn stream(per_second: u32, when: When) -> DummyStream {
        DummyStream::new(Dummies { per_second, sizes: 1..=100, when })
    }

    #[test]
    fn the_rate_is_kept_whatever_the_turns_of_the_worker() {
        for (per_second, step) in [(1, 1), (3, 7), (100, 1), (1000, 3), (10_000, 1), (10_000, 3)] {
            let stream = stream(per_second, When::Always);
            let sent: u64 = (5000..15_000).step_by(step).map(|now| stream.take(now, 0)).sum();
            let expected = u64::from(per_second) * 10;
            assert!(sent.abs_diff(expected) <= 32, "{per_second} a second in steps of {step} ms: {sent}");
        }
    }

    #[test]
    fn what_was_missed_is_made_up_for_within_bounds() {
        let stream = stream(1000, When::Always);
        assert_eq!(stream.take(1000, 0), 1);
        assert_eq!(stream.take(1000, 0), 0, "not yet");
        assert_eq!(stream.take(1010, 0), 10);
        assert_eq!(stream.take(9000, 0), MOST_AT_ONCE);
        assert_eq!(stream.take(9000, 0), 0);
        assert_eq!(stream.take(9001, 0), 1);
        assert_eq!(stream.due_at(), 9002);
    }

    #[test]
    fn idle_dummies_give_way_to_packets() {
        let stream = stream(100, When::Idle);
        assert_eq!(stream.take(1000, 5), 0, "five packets of its own");
        assert_eq!(stream.take(1050, 7), 3, "two of five");
        stream.sent(10);
        assert_eq!(stream.take(1100, 10), 5, "its dummies are none of its own");
        stream.sent(15);
        // Another SA counts from the beginning.
        assert_eq!(stream.take(1110, 1), 1);
    }
}
