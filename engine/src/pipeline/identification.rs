//! IPv4 identifications of outer headers that somebody on the way may fragment.
//!
//! RFC 6864 section 4.3: "Sources emitting non-atomic datagrams MUST NOT repeat IPv4 ID values within one MDL for a given
//! source address/destination address/protocol tuple", tunnel ingresses named among them. So it is the tuple that counts,
//! not the SA: tunnels between the same gateways, and an SA and its successor, take from one counter. (More than 2^16
//! packets within the two minutes of a maximum datagram lifetime repeat values whoever counts; DF set helps.)

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::transform::tunnel::{DontFragment, OuterHeader};
use crate::wire::protocol;

/// A power of two. Tuples that share a counter wrap sooner, and repeat nothing.
const COUNTERS: usize = 256;

/// On a cache line of its own: workers of different peers do not meet.
#[repr(align(64))]
struct Counter(AtomicU16);

/// The counters, shared by all workers.
pub struct Identifications(Box<[Counter]>);

impl Default for Identifications {
    /// All of them begin at 0.
    fn default() -> Self {
        Self((0..COUNTERS).map(|_| Counter(AtomicU16::new(0))).collect())
    }
}

impl Identifications {
    /// They begin anywhere, so that what an earlier life sent a moment ago is not likely to be repeated.
    pub fn scattered() -> Self {
        let chance = RandomState::new();
        Self((0..COUNTERS).map(|n| Counter(AtomicU16::new(chance.hash_one(n) as u16))).collect())
    }

    /// The first of `count` consecutive values for packets under this header; any value where it needs none.
    pub(super) fn take(&self, outer: &OuterHeader, count: usize) -> u16 {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (outer.source, outer.destination) else {
            return 0;
        };
        if outer.dont_fragment == DontFragment::Set {
            return 0;
        }
        let carrier = if outer.udp_ports.is_some() { protocol::UDP } else { outer.protocol };
        let tuple = u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
        // Multiplicative hashing: the upper bits depend on all of the tuple's.
        let hash = (tuple ^ u64::from(carrier) << 24).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Counter(next) = &self.0[(hash >> (u64::BITS - COUNTERS.ilog2())) as usize];
        next.fetch_add(count as u16, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::transform::ecn::Ecn;
    use crate::transform::tunnel::{Dscp, TrafficClass};

    fn outer(destination: &str, protocol: u8, dont_fragment: DontFragment) -> OuterHeader {
        let source = if destination.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
        OuterHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            udp_ports: None,
            ttl: 64,
            traffic_class: TrafficClass::new(Dscp::Copy, Ecn::Copy),
            dont_fragment,
        }
    }

    /// Many workers, one peer: a whole round of values, each once.
    #[test]
    fn workers_share_a_tuple_without_repeating() {
        let (identifications, outer) =
            (Identifications::scattered(), outer("198.51.100.1", 50, DontFragment::Copy));
        let worker = || (0..256).map(|_| identifications.take(&outer, 64)).collect::<Vec<_>>();
        let taken = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
        });
        let values: HashSet<u16> =
            taken.iter().flat_map(|first| (0..64).map(|more| first.wrapping_add(more))).collect();
        assert_eq!(values.len(), 1 << 16);
    }

    /// Peers are spread over the counters, and what needs no value takes none.
    #[test]
    fn who_does_not_share_does_not_count() {
        let identifications = Identifications::default();
        for host in 0..=255 {
            identifications.take(&outer(&format!("198.51.100.{host}"), 50, DontFragment::Clear), 1);
        }
        let fullest = identifications.0.iter().map(|counter| counter.0.load(Ordering::Relaxed)).max();
        assert!(fullest <= Some(8), "{fullest:?}");
        let before: u16 = identifications.0.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        identifications.take(&outer("198.51.100.1", 50, DontFragment::Set), 64);
        identifications.take(&outer("2001:db8::9", 50, DontFragment::Clear), 64);
        let after: u16 = identifications.0.iter().map(|counter| counter.0.load(Ordering::Relaxed)).sum();
        assert_eq!((before, after), (256, 256));
        // ESP and AH are reassembled apart.
        let identifications = Identifications::default();
        let esp = identifications.take(&outer("203.0.113.77", 50, DontFragment::Copy), 5);
        let ah = identifications.take(&outer("203.0.113.77", 51, DontFragment::Copy), 5);
        assert_eq!((esp, ah), (0, 0));
    }
}
