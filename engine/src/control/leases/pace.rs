//! How long a lease is: long enough that storage is asked about once a second, short enough that a crash costs
//! few numbers.

use std::time::{Duration, Instant};

use crate::sa::selector::Direction;

/// What a crash may cost.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    seconds: u64,
    least: u64,
    most: u64,
    limit: u64,
}

impl Terms {
    /// Outbound, a crash burns numbers, and there are plenty: 2^28 stay within what a peer's ESN inference bears,
    /// 2^20 of 32 bits bear 4,096 crashes. Inbound, a crash refuses what the peer sends until it is beyond the
    /// ceiling: a second's worth, or 64 packets of a peer that has been slow for a minute.
    pub(super) fn new(direction: Direction, limit: u64) -> Self {
        match direction {
            Direction::Outbound => {
                let most = if limit > u64::from(u32::MAX) { 1 << 28 } else { 1 << 20 };
                Self { seconds: 8, least: 1 << 16, most, limit }
            }
            Direction::Inbound => Self { seconds: 1, least: 64, most: 1 << 20, limit },
        }
    }

    /// The highest number there is.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Numbers ahead of `reached` at `rate` a second: at most a hundredth of what is left, until that would ask
    /// storage about every few packets.
    pub(super) fn length(&self, rate: u64, reached: u64) -> u64 {
        let left = self.limit.saturating_sub(reached);
        let length = rate.saturating_mul(self.seconds).clamp(self.least, self.most);
        length.min((left / 100).max(4096)).min(left)
    }

    /// The ceiling `length` above `reached`.
    pub(super) fn ceiling(&self, reached: u64, length: u64) -> u64 {
        reached.saturating_add(length).min(self.limit)
    }

    /// Above what number the keeper is wanted: half of the lease is used.
    pub(super) fn ring_above(&self, ceiling: u64, length: u64) -> u64 {
        if ceiling == self.limit { u64::MAX } else { ceiling - (length / 2).min(ceiling) }
    }
}

/// How fast numbers go: over the last second, or in this one if that is more. Fast peers are forgotten slowly: what
/// comes in a burst before storage has answered is dropped, so for a minute after a burst there is room for another.
pub(super) struct Pace {
    since: Instant,
    from: u64,
    rate: u64,
}

impl Pace {
    /// A second is over.
    const PERIOD: Duration = Duration::from_secs(1);
    /// Fewer say nothing: one burst is not a rate.
    const SHORTEST: Duration = Duration::from_millis(250);

    /// What nobody knows the pace of yet gets room for a burst.
    pub(super) const BURST: u64 = 4096;

    pub(super) fn new(reached: u64, now: Instant) -> Self {
        Self { since: now, from: reached, rate: Self::BURST }
    }

    /// What is left of a rate after a second without: half of it, down to a burst's, and that in about a minute.
    fn fade(rate: u64) -> u64 {
        if rate > Self::BURST { (rate / 2).max(Self::BURST) } else { rate - rate.div_ceil(16) }
    }

    /// Numbers that were passed over.
    pub(super) fn skip(&mut self, numbers: u64) {
        self.from = self.from.saturating_add(numbers);
    }

    /// Numbers a second.
    pub(super) fn rate(&mut self, reached: u64, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since);
        let used = reached.saturating_sub(self.from) as f64;
        let current = (used / elapsed.max(Self::SHORTEST).as_secs_f64()) as u64;
        let rate = current.max(self.rate);
        if elapsed >= Self::PERIOD {
            let rate = current.max(Self::fade(self.rate));
            *self = Self { since: now, from: reached, rate };
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESN: u64 = u64::MAX;
    const SHORT: u64 = u32::MAX as u64;

    #[test]
    fn lengths_are_as_the_design_has_them() {
        let out = |limit, rate, reached| Terms::new(Direction::Outbound, limit).length(rate, reached);
        assert_eq!(out(ESN, 0, 0), 1 << 16);
        assert_eq!(out(ESN, 1_000_000, 0), 8_000_000);
        assert_eq!(out(ESN, u64::MAX, 0), 1 << 28);
        assert_eq!(out(SHORT, 1_000_000, 0), 1 << 20);
        assert_eq!(out(SHORT, 0, SHORT - 1_000_000), 10_000, "a hundredth of what is left");
        assert_eq!(out(SHORT, 0, SHORT - 1000), 1000, "the rest");
        assert_eq!(out(SHORT, 0, SHORT), 0);
        let inbound = |rate| Terms::new(Direction::Inbound, ESN).length(rate, 0);
        assert_eq!([inbound(0), inbound(1000), inbound(9_000_000)], [64, 1000, 1 << 20]);
    }

    #[test]
    fn half_of_a_lease_calls_the_keeper_unless_it_is_the_last() {
        let terms = Terms::new(Direction::Outbound, SHORT);
        assert_eq!(terms.ring_above(1000, 100), 950);
        assert_eq!(terms.ring_above(terms.ceiling(SHORT - 5, 100), 100), u64::MAX);
    }

    #[test]
    fn the_rate_follows_up_at_once_and_down_in_its_time() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(100, start);
        assert_eq!(pace.rate(140, at(1)), Pace::BURST, "nobody knows yet");
        assert_eq!(pace.rate(10_100, at(100)), 40_000, "a burst is a rate of a quarter of a second at most");
        assert_eq!(pace.rate(10_100, at(1000)), 10_000);
        assert_eq!(pace.rate(10_100, at(1500)), 10_000, "over the last second");
        let fading: Vec<_> = (2..70).map(|second| pace.rate(10_100, at(second * 1000 + 500))).collect();
        assert_eq!(fading[..4], [10_000, 5000, 4096, 3840]);
        assert!(fading.is_sorted_by(|a, b| a >= b) && *fading.last().unwrap() < 64, "{fading:?}");
        pace.skip(1_000_000);
        assert!(pace.rate(1_010_100, at(70_000)) < 64, "a jump is no rate");
    }
}
