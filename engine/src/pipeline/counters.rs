//! One worker's counters: written by that worker only, read by anyone at any time.

use std::sync::atomic::AtomicU64;

use super::DropReason;

/// received + originated = transmitted + delivered + dropped + absorbed + in flight, always.
pub struct WorkerCounters {
    /// Frames taken from receive rings (hand-overs counted once, where they were received).
    pub received: AtomicU64,
    /// Frames the gateway wrote itself (ICMP errors).
    pub originated: AtomicU64,
    /// Fragments that were put together: all of a datagram but one, which stands for it.
    pub absorbed: AtomicU64,
    /// Frames completed by the kernel.
    pub transmitted: AtomicU64,
    /// Packets delivered to the host.
    pub delivered: AtomicU64,
    /// Dropped, by [`DropReason`].
    pub dropped: [AtomicU64; DropReason::COUNT],
    /// Packets sealed in ESP or AH.
    pub sealed: AtomicU64,
    /// Packets out of ESP or AH, verified and delivered.
    pub opened: AtomicU64,
    /// Packets forwarded in clear under a BYPASS policy.
    pub bypassed: AtomicU64,
    /// Verified packets whose ECN fields inside and outside no tunnel makes together (RFC 6040 section 4.2).
    pub ecn_suspect: AtomicU64,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            received: AtomicU64::new(0),
            originated: AtomicU64::new(0),
            absorbed: AtomicU64::new(0),
            transmitted: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            dropped: [const { AtomicU64::new(0) }; DropReason::COUNT],
            sealed: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            ecn_suspect: AtomicU64::new(0),
        }
    }
}
