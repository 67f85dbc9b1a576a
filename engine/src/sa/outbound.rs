//! An outbound SA at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::inbound::SaCounters;
use super::lease::Lease;
use super::lifetime::{Allowance, Lifetime};
use super::peer::{Keepalive, PeerEndpoint};
use super::spec::{Mode, OutboundSpec, Protocol, Workers};
use crate::crypto::key::{KeyError, KeyMaterial};
use crate::crypto::sequence::{FreshRange, SequenceCounter};
use crate::crypto::{Sealer, Signer};
use crate::transform::tunnel::OuterHeader;
use crate::transform::{Layout, transport};
use crate::wire::udp;

/// The owner of an SA that no worker has used yet.
const NO_OWNER: u32 = u32::MAX;

/// The expanded keys of an outbound SA, by its protocol.
pub enum OutboundKeys {
    /// Encrypt and authenticate.
    Esp(Sealer),
    /// Authenticate.
    Ah(Signer),
}

/// What a worker needs to seal a packet. At most 1 KiB.
pub struct OutboundSa {
    /// The request it was made from.
    pub spec: OutboundSpec,
    /// Lengths.
    pub layout: Layout,
    /// Keys.
    pub keys: OutboundKeys,
    /// Outer header template; transport mode only has its addresses, and in UDP the peer may be elsewhere by now.
    pub outer: OuterHeader,
    /// Where the peer is and when it is to be sent a keepalive, if ESP is in UDP.
    pub in_udp: Option<Box<InUdp>>,
    /// Counters.
    pub counters: SaCounters,
    /// What is left of its life.
    pub lifetime: Lifetime,
    /// How far numbers may go; all the way to the limit without.
    pub lease: Option<Arc<Lease>>,
    sequence: SequenceCounter,
    owner: AtomicU32,
}

/// What ESP in UDP needs to get through a NAT.
pub struct InUdp {
    /// Where the peer is.
    pub peer: PeerEndpoint,
    /// When it is to be sent a keepalive.
    pub keepalive: Keepalive,
}

/// Numbers for a group of packets.
pub struct Numbers {
    /// As many as there are; each is used once.
    pub range: Option<FreshRange>,
    /// Why there are not more, if there are fewer than were asked for.
    pub short: Exhausted,
}

/// Why an SA cannot number a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exhausted {
    /// It has used all numbers there are (RFC 4303 section 3.3.3).
    Sequence,
    /// Stable storage has not kept up: the next number is above the lease.
    Lease,
}

impl OutboundSa {
    /// Compiles a request that [`OutboundSpec::validate`] passed, and its keys. Its numbers have no lease: the key
    /// must not outlive this SA.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn new(spec: OutboundSpec, keys: &KeyMaterial) -> Result<Self, KeyError> {
        Self::under(None, spec, keys)
    }

    /// The same under a lease, which must not reach beyond the SA's sequence limit.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn under(
        lease: Option<Arc<Lease>>,
        spec: OutboundSpec,
        keys: &KeyMaterial,
    ) -> Result<Self, KeyError> {
        let (suite, esn) = (spec.sa.suite, spec.sa.esn);
        Ok(Self {
            lease,
            layout: spec.sa.layout(),
            keys: match spec.sa.protocol {
                Protocol::Esp => OutboundKeys::Esp(Sealer::new(suite, keys, esn)?),
                Protocol::Ah(_) => OutboundKeys::Ah(Signer::new(suite, keys, esn)?),
            },
            outer: OuterHeader {
                source: spec.sa.local,
                destination: spec.sa.remote,
                protocol: spec.sa.protocol.number(),
                udp_ports: spec.sa.udp.map(|udp| (udp.local(), udp.remote())),
                ttl: spec.ttl,
                dscp: spec.dscp,
                dont_fragment: spec.dont_fragment,
            },
            counters: SaCounters::default(),
            lifetime: Lifetime::default(),
            sequence: SequenceCounter::starting_after(spec.last_sequence),
            owner: AtomicU32::new(NO_OWNER),
            in_udp: spec.sa.udp.map(|udp| {
                let peer = PeerEndpoint::new(spec.sa.remote, udp.remote());
                Box::new(InUdp { peer, keepalive: Keepalive::new(spec.keepalive_seconds) })
            }),
            spec,
        })
    }

    /// Numbers for up to `count` packets: all of them, or as many as the lease leaves, which never reaches beyond
    /// the limit (2^32-1 without ESN, 2^64-1 with, or the hard limit in packets).
    pub fn take_numbers(&self, count: u64) -> Numbers {
        let limit = self.spec.sa.sequence_limit().min(self.spec.sa.limits.packets.hard);
        let ceiling = self.lease.as_ref().map_or(limit, |lease| lease.ceiling()).min(limit);
        let range = take_up_to(&self.sequence, count, ceiling);
        let short = if ceiling < limit { Exhausted::Lease } else { Exhausted::Sequence };
        if let Some(lease) = &self.lease {
            // With nothing given out, the next number is wanted.
            let wanted = u64::from(range.is_none() && short == Exhausted::Lease);
            lease.reach(self.sequence.last() + wanted);
        }
        Numbers { range, short }
    }

    /// What a group may use of its lifetime; the limit in packets is one on the numbers.
    pub fn allowance(&self) -> Allowance {
        self.spec.sa.limits.allowance(self.last_sequence(), self.counters.bytes.load(Ordering::Relaxed))
    }

    /// A group of so many packets and bytes was sealed.
    pub fn sealed(&self, packets: u64, bytes: u64) {
        self.counters.packets.fetch_add(packets, Ordering::Relaxed);
        let bytes = self.counters.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.lifetime.used(&self.spec.sa.limits, self.last_sequence(), bytes);
    }

    /// The last number given out.
    pub fn last_sequence(&self) -> u64 {
        self.sequence.last()
    }

    /// The outer header's template, and in UDP the place where the peer is now.
    pub fn outer_now(&self) -> OuterHeader {
        match (self.outer.udp_ports, self.in_udp.as_ref().and_then(|in_udp| in_udp.peer.get())) {
            (Some((own, _)), Some((destination, port))) => {
                OuterHeader { destination, udp_ports: Some((own, port)), ..self.outer }
            }
            _ => self.outer,
        }
    }

    /// The largest packet that leaves as one of at most `outside` bytes; in transport mode, of those without options and
    /// extension headers.
    pub fn inside_mtu(&self, outside: u32) -> u32 {
        match self.spec.sa.mode {
            Mode::Tunnel => self.outer.inside_mtu(outside, &self.layout),
            Mode::Transport(_) => {
                let in_udp = if self.outer.udp_ports.is_some() { udp::HEADER_LENGTH as u32 } else { 0 };
                let outside = outside.saturating_sub(in_udp);
                transport::usual_inside_mtu(outside, &self.layout, self.outer.version())
            }
        }
    }

    /// The worker that numbers and transmits this SA: claimed by `worker` if nobody has it yet;
    /// always `worker` for a shared SA.
    pub fn owner(&self, worker: u32) -> u32 {
        match self.spec.workers {
            Workers::One => claim(&self.owner, worker),
            Workers::Shared => worker,
        }
    }

    /// The owner, `worker`, cannot transmit any more where this SA leaves: `other` is the owner from now on. Packets
    /// that `worker` numbered have left it, or never will; numbers come from the one counter, so none repeats.
    pub fn pass_on(&self, worker: u32, other: u32) {
        // Fails for a shared SA, which has no owner. Relaxed, as `claim`.
        let _ = self.owner.compare_exchange(worker, other, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// All `count` numbers, or the rest up to `limit`; `None` when there is none.
fn take_up_to(counter: &SequenceCounter, count: u64, limit: u64) -> Option<FreshRange> {
    loop {
        if let Some(range) = counter.take(count, limit) {
            return Some(range);
        }
        // Another worker may take some of the rest first; then less is left, so this ends.
        let rest = limit.checked_sub(counter.last()).filter(|&rest| rest > 0)?;
        if let Some(range) = counter.take(rest.min(count), limit) {
            return Some(range);
        }
    }
}

/// The owner, which is `worker` if nobody was.
fn claim(owner: &AtomicU32, worker: u32) -> u32 {
    // Looked at first: the claim succeeds once in an SA's life and would otherwise be a locked operation per
    // group. Relaxed: the number says everything.
    match owner.load(Ordering::Relaxed) {
        NO_OWNER => owner
            .compare_exchange(NO_OWNER, worker, Ordering::Relaxed, Ordering::Relaxed)
            .map_or_else(|first| first, |_| worker),
        first => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_at_the_limit_gets_what_is_left_and_then_nothing() {
        let limit = u64::from(u32::MAX);
        let counter = SequenceCounter::starting_after(limit - 5);
        let numbers = |range: FreshRange| range.map(|number| number.get()).collect::<Vec<_>>();
        assert_eq!(numbers(take_up_to(&counter, 3, limit).unwrap()), [limit - 4, limit - 3, limit - 2]);
        // RFC 4303 section 3.3.3: 2^32-1 itself is sent, the next packet is not.
        assert_eq!(numbers(take_up_to(&counter, 3, limit).unwrap()), [limit - 1, limit]);
        assert!(take_up_to(&counter, 3, limit).is_none());
        assert!(take_up_to(&counter, 1, limit).is_none());
        assert_eq!(counter.last(), limit);
    }

    #[test]
    fn workers_share_the_rest_without_losing_a_number() {
        let counter = SequenceCounter::starting_after(0);
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let workers: Vec<_> = [7, 64]
                .map(|count| {
                    let counter = &counter;
                    scope.spawn(move || {
                        std::iter::from_fn(|| take_up_to(counter, count, 50_001))
                            .flatten()
                            .map(|number| number.get())
                            .collect::<Vec<_>>()
                    })
                })
                .into();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (1..=50_001).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_worker_to_ask_owns_the_sa() {
        let owner = AtomicU32::new(NO_OWNER);
        assert_eq!(claim(&owner, 3), 3);
        assert_eq!(claim(&owner, 0), 3);
        assert_eq!(claim(&owner, 3), 3);
    }

    #[test]
    fn one_of_racing_workers_owns_the_sa_and_all_agree() {
        for _ in 0..200 {
            let owner = AtomicU32::new(NO_OWNER);
            let told = std::thread::scope(|scope| {
                [0, 1]
                    .map(|worker| {
                        scope.spawn({
                            let owner = &owner;
                            move || claim(owner, worker)
                        })
                    })
                    .map(|worker| worker.join().unwrap())
            });
            assert_eq!(told[0], told[1]);
        }
    }

    #[test]
    fn an_sa_fits_into_a_kibibyte() {
        assert!(size_of::<OutboundSa>() <= 1024, "{}", size_of::<OutboundSa>());
        assert!(size_of::<super::super::InboundSa>() <= 1024, "{}", size_of::<super::super::InboundSa>());
    }
}
