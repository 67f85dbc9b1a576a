//! What the path to a peer is told to be like, by ICMP errors from outside (RFC 4301 section 8.2).

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a time in milliseconds: 500 years of them.
const TIME_BITS: u32 = 44;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// What may be wrong with a path, beside its MTU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The peer, its network or its protocol is not reached.
    Unreachable,
    /// TTL or hop limit, or the time for reassembly, ended on the way.
    TimeExceeded,
    /// Somebody did not understand a header.
    ParameterProblem,
}

impl Trouble {
    const ALL: [Self; 3] = [Self::Unreachable, Self::TimeExceeded, Self::ParameterProblem];

    /// As users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimeExceeded => "time exceeded",
            Self::ParameterProblem => "parameter problem",
        }
    }
}

/// MTUs that links have (RFC 1191 section 7), less than which each is the next to try.
const PLATEAUS: [u32; 11] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];

/// The likely MTU of a path that did not carry a packet of `length` bytes, where nobody told it.
pub fn plateau_below(length: u32) -> u32 {
    PLATEAUS.into_iter().find(|&plateau| plateau < length).unwrap_or(0)
}

/// A tunnel's path: a figure and when it was told, in one word each, so that any worker may write and none waits.
#[derive(Debug, Default)]
pub struct Path {
    mtu: AtomicU64,
    trouble: AtomicU64,
}

impl Path {
    /// The MTU, bytes, unless it was told longer than `ageing` milliseconds before `now` or never.
    #[inline]
    pub fn mtu(&self, now: u64, ageing: u64) -> Option<u32> {
        // One word says everything, so nothing is ordered behind it.
        let (mtu, told) = split(self.mtu.load(Ordering::Relaxed));
        (mtu != 0 && now.saturating_sub(told) < ageing).then_some(mtu)
    }

    /// An MTU was told at `now`.
    pub fn learn(&self, mtu: u32, now: u64) {
        self.mtu.store(u64::from(mtu) << TIME_BITS | now & TIME, Ordering::Relaxed);
    }

    /// The last trouble, and when it was told.
    pub fn trouble(&self) -> Option<(Trouble, u64)> {
        let (number, told) = split(self.trouble.load(Ordering::Relaxed));
        let index = (number as usize).checked_sub(1)?;
        Trouble::ALL.get(index).map(|&trouble| (trouble, told))
    }

    /// Trouble was told at `now`.
    pub fn note(&self, trouble: Trouble, now: u64) {
        self.trouble.store((trouble as u64 + 1) << TIME_BITS | now & TIME, Ordering::Relaxed);
    }
}

fn split(word: u64) -> (u32, u64) {
    ((word >> TIME_BITS) as u32, word & TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_ages() {
        let path = Path::default();
        assert_eq!(path.mtu(0, 600_000), None);
        path.learn(1_400, 5_000);
        assert_eq!(path.mtu(5_000, 600_000), Some(1_400));
        assert_eq!(path.mtu(604_999, 600_000), Some(1_400));
        assert_eq!(path.mtu(605_000, 600_000), None);
        // Another worker's clock may be read a moment earlier.
        assert_eq!(path.mtu(4_999, 600_000), Some(1_400));
        path.learn(65_575, TIME);
        assert_eq!(path.mtu(TIME, 1), Some(65_575));
    }

    #[test]
    fn trouble_is_remembered() {
        let path = Path::default();
        assert_eq!(path.trouble(), None);
        for trouble in Trouble::ALL {
            path.note(trouble, 7);
            assert_eq!(path.trouble(), Some((trouble, 7)));
        }
    }
}
