//! An outbound SA at run time.

use std::sync::atomic::{AtomicU32, Ordering};

use super::inbound::SaCounters;
use super::peer::PeerEndpoint;
use super::spec::{OutboundSpec, Protocol, Workers};
use crate::crypto::key::{KeyError, KeyMaterial};
use crate::crypto::sequence::{FreshRange, SequenceCounter};
use crate::crypto::{Sealer, Signer};
use crate::transform::Layout;
use crate::transform::tunnel::OuterHeader;
use crate::wire::udp::NAT_TRAVERSAL_PORT;

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
    /// Where the peer is, if ESP is in UDP.
    pub peer: PeerEndpoint,
    /// Counters.
    pub counters: SaCounters,
    sequence: SequenceCounter,
    owner: AtomicU32,
}

impl OutboundSa {
    /// Compiles a request that [`OutboundSpec::validate`] passed, and its keys.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn new(spec: OutboundSpec, keys: &KeyMaterial) -> Result<Self, KeyError> {
        let (suite, esn) = (spec.sa.suite, spec.sa.esn);
        Ok(Self {
            layout: spec.sa.layout(),
            keys: match spec.sa.protocol {
                Protocol::Esp => OutboundKeys::Esp(Sealer::new(suite, keys, esn)?),
                Protocol::Ah(_) => OutboundKeys::Ah(Signer::new(suite, keys, esn)?),
            },
            outer: OuterHeader {
                source: spec.sa.local,
                destination: spec.sa.remote,
                protocol: spec.sa.protocol.number(),
                udp_ports: spec.sa.udp_port.map(|port| (NAT_TRAVERSAL_PORT, port)),
                ttl: spec.ttl,
                dscp: spec.dscp,
                dont_fragment: spec.dont_fragment,
            },
            counters: SaCounters::default(),
            sequence: SequenceCounter::starting_after(spec.last_sequence),
            owner: AtomicU32::new(NO_OWNER),
            peer: PeerEndpoint::new(spec.sa.remote, spec.sa.udp_port.unwrap_or(0)),
            spec,
        })
    }

    /// Numbers for up to `count` packets: all of them, or as many as the limit (2^32-1 without ESN,
    /// 2^64-1 with) leaves; `None` when none is left.
    pub fn take_numbers(&self, count: u64) -> Option<FreshRange> {
        take_up_to(&self.sequence, count, self.spec.sa.sequence_limit())
    }

    /// The last number given out.
    pub fn last_sequence(&self) -> u64 {
        self.sequence.last()
    }

    /// The outer header's template, and in UDP the place where the peer is now.
    pub fn outer_now(&self) -> OuterHeader {
        match (self.outer.udp_ports, self.peer.get()) {
            (Some((own, _)), Some((destination, port))) => {
                OuterHeader { destination, udp_ports: Some((own, port)), ..self.outer }
            }
            _ => self.outer,
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
