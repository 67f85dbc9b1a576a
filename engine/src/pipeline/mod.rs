//! A burst in, outputs and verdicts out. No threads, sockets or clock: everything comes in as an argument.
//!
//! One packet, top to bottom:
//!
//! ```text
//! read      every frame once                                            sort
//! sort      whose is it?
//!   ESP, also in UDP, or AH to one of our addresses -> SA by SPI,       sealed
//!   lengths, replay check, group by SA
//!     a fragment of it waits for the others; the datagram is a packet
//!     of the next burst                                                 fragments
//!     open_group    verify and decrypt the group, replay commit         inbound
//!     decapsulate   trailer, packet inside                              decapsulate
//!     admit         selectors, policy, route                            admission
//!       for an SA inside this one -> SA by SPI, as above                nesting
//!   an ICMP error from outside to one of our addresses -> the path of
//!   the tunnel that it quotes                                           outside
//!   from the gateway itself -> policy                                   host
//!     a fragment to a peer in transport mode waits for the others       fragments
//!     PROTECT       group by tunnel, as below
//!     BYPASS        forward, as below; else drop
//!   from a protected port -> policy
//!     PROTECT       group by tunnel
//!       prepare     TTL, size, MSS, transmit frame                      outbound
//!         larger than its way carries -> ICMP error, or fragments       oversize
//!       seal_ready  numbers, headers, encrypt and authenticate the group
//!       through another tunnel -> prepare again, for that               nesting
//!     BYPASS        forward                                             forward
//!   decrypted, to one of our addresses -> the gateway's own stack       host
//!   clear text from outside -> policy reversed: BYPASS -> forward, or
//!   deliver; else drop
//! ```
//!
//! A protected packet is read from the frame it was received in and written to a free transmit frame.

mod admission;
pub mod audit;
mod burst;
pub mod counters;
mod decapsulate;
pub mod drop_reason;
mod forward;
mod fragments;
mod host;
mod icmp;
mod identification;
mod inbound;
mod keepalive;
mod nesting;
mod outbound;
mod outside;
mod oversize;
pub mod reassembly;
mod scratch;
mod sealed;
mod sort;
mod tfc;

use std::sync::Arc;

use arrayvec::ArrayVec;
pub use burst::{Frames, Output, Received, Results, Untagged};
pub use counters::WorkerCounters;
pub use drop_reason::DropReason;
pub use fragments::{Completed, Reassembly};
pub use host::{Delivery, HostEnd};
pub use identification::Identifications;
pub use outside::IcmpRules;

use crate::crypto::IvSource;
use crate::policy::{FlowCache, PolicyCache, Spd};
use crate::route::{Network, PortId};
use crate::sa::Sad;
use crate::sa::publish::{Guard, Published};
use crate::wire::ip::IpPacket;
use crate::wire::reader::Reader;
use admission::{Admission, Admitted};
use audit::{Audit, Evidence, Trail};
use inbound::Inbound;
use outbound::Outbound;
use scratch::{Few, Memo, Notes, Recent, Tally};
use sort::{ip_version, read_ip};

/// Most packets in one burst.
pub const BURST: usize = 64;

/// Bytes of a frame for the longest IP packet, 65,535 bytes, and for what a transform writes behind it for itself.
pub const LONGEST_FRAME: usize = 65 << 10;

/// The shared tables that workers read.
pub struct Tables {
    /// Inbound SAs by SPI.
    pub sad: Sad,
    /// Policies and the tunnels they name.
    pub spd: Published<Spd>,
    /// Ports, routes, neighbours.
    pub network: Published<Network>,
    /// Fragments that wait for the others.
    pub reassembly: Reassembly,
    /// What to make of ICMP errors.
    pub icmp: IcmpRules,
    /// Of outer IPv4 headers.
    pub identifications: Identifications,
    /// What there is to tell of dropped packets.
    pub audit: Trail,
}

impl Tables {
    /// Empty ones: nothing passes.
    pub fn new(reassembly: reassembly::Limits, icmp: IcmpRules) -> Self {
        Self {
            sad: Sad::new(),
            spd: Published::new(None),
            network: Published::new(None),
            reassembly: Reassembly::new(reassembly),
            icmp,
            identifications: Identifications::default(),
            audit: Trail::default(),
        }
    }
}

/// One worker's pipeline.
pub struct Pipeline {
    own: Own,
    reading: Reading,
}

/// What a worker keeps from burst to burst.
struct Own {
    worker: u32,
    counters: Arc<WorkerCounters>,
    audit: Audit,
    ivs: IvSource,
    policies: PolicyCache,
    /// Where flows out of SAs go on.
    admissions: FlowCache<Admission, 3>,
    /// The same, of a few flows.
    decisions: [Few<usize, 2>; 2],
    /// Flows from protected ports: which port, and the policy that protects them.
    protected: Few<(PortId, usize), 3>,
    admitted: Few<Admitted, 4>,
    recent: Recent,
    errors: icmp::Budget,
    /// For tunnels that are searched one by one.
    searches: icmp::Budget,
    /// Where the last decrypted packet left: the likely egress of the next, which is not known before decryption.
    inside: Option<PortId>,
    /// Where packets are fragmented, padded and made up before encryption.
    fragments: Box<[u8]>,
    /// Where the headers that AH covers are put together, for a burst of them.
    covered: Box<[u8]>,
    /// Datagrams that became whole in this burst, and buffers for more.
    completed: Vec<Completed>,
    spare_datagrams: Vec<Vec<u8>>,
}

/// What the packets of a burst are read with.
struct Reading {
    outside: Reader,
    /// Reads what comes out of SAs.
    inside: Reader,
    /// The packets of a burst that are not sorted at sight. The place of any other says nothing.
    packets: Box<[IpPacket]>,
}

/// Flows a worker remembers the policy of (64 bytes each), and whither those out of SAs go (128).
const FLOWS: usize = 8192;

/// Room for the fragments of a few packets of any size a receive frame holds.
const FRAGMENTS_LENGTH: usize = 64 * 1024;

/// Most bytes of IP header, options and extension headers in front of AH. Nobody needs more than a few dozen.
const COVERED_HEADERS: usize = 1024;
/// Most bytes of AH itself: RFC 4302 section 2.2 has its length in one byte, but ours have at most 32 bytes of ICV.
const LONGEST_AH: usize = 48;

impl Pipeline {
    /// For worker number `worker`.
    pub fn new(worker: u32, counters: Arc<WorkerCounters>, mut ivs: IvSource) -> Self {
        // Whoever cannot guess IVs cannot guess which flows share a line of the cache either.
        let mut seed = [[0; 8]; 2];
        seed.iter_mut().for_each(|word| ivs.fill(word));
        let own = Own {
            worker,
            counters,
            audit: Audit::default(),
            ivs,
            policies: FlowCache::new(FLOWS, seed.map(u64::from_ne_bytes)),
            admissions: FlowCache::new(FLOWS, seed.map(u64::from_ne_bytes)),
            decisions: Default::default(),
            protected: Few::default(),
            admitted: Few::default(),
            recent: Recent::default(),
            errors: icmp::Budget::errors(),
            searches: outside::SEARCH_BUDGET,
            inside: None,
            fragments: vec![0; FRAGMENTS_LENGTH].into_boxed_slice(),
            covered: vec![0; BURST * (COVERED_HEADERS + LONGEST_AH)].into_boxed_slice(),
            completed: Vec::new(),
            spare_datagrams: Vec::new(),
        };
        let (outside, inside) = (Reader::default(), Reader::default());
        let packets = vec![IpPacket::EMPTY; BURST].into_boxed_slice();
        Self { own, reading: Reading { outside, inside, packets } }
    }

    /// Processes up to [`BURST`] frames. Every one of them ends as an output, a delivery, a hand-over or one counted drop,
    /// or waits as a fragment, until it is dropped or absorbed by its datagram, which goes on in its place;
    /// what the gateway writes itself (ICMP errors, further fragments) is counted as originated. `received`,
    /// `transmitted` and `delivered` are the caller's to count. `now` is milliseconds of a monotonic clock.
    ///
    /// # Panics
    /// When the burst is longer than [`BURST`].
    pub fn process<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        assert!(burst.len() <= BURST, "a burst of {} packets", burst.len());
        results.untagged.clear();
        self.process_burst(tables, guard, now, burst, frames, results);
        if !self.own.completed.is_empty() {
            self.process_completed(tables, guard, now, frames, results);
        }
    }

    /// Datagrams that a burst made whole are a burst of their own; inside them may be the last fragments of others.
    #[cold]
    fn process_completed<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        while !self.own.completed.is_empty() {
            let mut completed = std::mem::take(&mut self.own.completed);
            let outside = completed.iter_mut().filter(|datagram| datagram.outer.is_none());
            let mut burst: ArrayVec<Received<'_>, BURST> =
                outside.map(|Completed { port, frame, .. }| Received { port: *port, frame }).collect();
            let of_the_burst = results.hand_over.len();
            if !burst.is_empty() {
                self.process_burst(tables, guard, now, &mut burst, frames, results);
            }
            drop(burst);
            for (index, owner) in results.hand_over.drain(of_the_burst..) {
                let mut outside = completed.iter_mut().filter(|datagram| datagram.outer.is_none());
                if let Some(Completed { port, frame, .. }) = outside.nth(index) {
                    let datagram = Completed { port: *port, outer: None, frame: std::mem::take(frame) };
                    results.hand_over_completed.push((datagram, owner));
                }
            }
            let mut notes = Notes::default();
            if let Some(pass) = self.own.pass(tables, guard, now, frames, results, &mut notes) {
                pass.open_completed(&mut completed, &mut self.reading.inside);
            }
            notes.tally.write_down(&self.own.counters);
            self.recycle(completed);
        }
    }

    fn process_burst<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        let mut notes = Notes::default();
        match self.own.pass(tables, guard, now, frames, results, &mut notes) {
            Some(pass) => pass.run(burst, &mut self.reading),
            // No way around the policy: none published yet means that nothing passes.
            None => notes.tally.drop_all(DropReason::PolicyDiscard, burst.len()),
        }
        notes.tally.write_down(&self.own.counters);
    }
}

impl Own {
    /// A way through the tables as they are now; `None` while there is no policy, or no picture of the network.
    #[inline(always)]
    fn pass<'a, 'g, F: Frames>(
        &'a mut self,
        tables: &'g Tables,
        guard: &'g Guard<'g>,
        now: u64,
        frames: &'a mut F,
        results: &'a mut Results<F::Frame>,
        notes: &'a mut Notes<'g>,
    ) -> Option<Pass<'a, 'g, F>> {
        let (spd, network) = (tables.spd.load(guard)?, tables.network.load(guard)?);
        self.recent.look_at(network.generation);
        let Tables { sad, reassembly, icmp, identifications, .. } = tables;
        let Notes { tally, memo } = notes;
        Some(Pass {
            own: self,
            sad,
            reassembly,
            icmp,
            identifications,
            guard,
            spd,
            network,
            now,
            frames,
            results,
            tally,
            memo,
        })
    }
}

/// One burst on its way through the stages.
struct Pass<'a, 'g, F: Frames> {
    own: &'a mut Own,
    sad: &'g Sad,
    reassembly: &'g Reassembly,
    icmp: &'g IcmpRules,
    identifications: &'g Identifications,
    guard: &'g Guard<'g>,
    spd: &'g Spd,
    network: &'g Network,
    now: u64,
    frames: &'a mut F,
    results: &'a mut Results<F::Frame>,
    tally: &'a mut Tally,
    memo: &'a mut Memo<'g>,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    fn run(mut self, burst: &mut [Received<'_>], reading: &mut Reading) {
        // All of them first, so that the frames come into the cache side by side rather than one by one.
        let versions: ArrayVec<_, BURST> = burst.iter().map(|received| ip_version(received.frame)).collect();
        let Reading { outside, inside, packets } = reading;
        let mut inbound = Inbound::new();
        let mut outbound = Outbound::new();
        let (policies, round) = (self.spd.generation, outside.round());
        self.own.decisions.iter_mut().for_each(|decisions| decisions.look_at([policies, round]));
        self.own.protected.look_at([policies, self.network.generation, round]);
        for (index, ((received, packet), version)) in
            burst.iter_mut().zip(&mut *packets).zip(versions).enumerate()
        {
            let version = match version {
                Err(DropReason::Vlan) => self.untag(index, received),
                version => version,
            };
            let seen = version.and_then(|version| read_ip(outside, received.frame, version));
            let sorted = seen.and_then(|seen| {
                if self.sort_alike(index, received, &seen, &mut inbound).is_some() {
                    return Ok(());
                }
                seen.write(packet);
                if self.sort_protected(index, received, seen.flow, &mut outbound).is_some() {
                    return Ok(());
                }
                self.sort(index, received, packet, seen.flow, &mut inbound, &mut outbound)
            });
            if let Err(reason) = sorted {
                self.drop(reason, &Evidence::received(received));
            }
        }
        for (sa, group) in inbound.iter() {
            if self.spd.has_nested() && self.spd.outer_of(&sa.spec.sa.tunnel).is_some() {
                // RFC 4301 section 5.2 step 4: it has to come by way of that tunnel.
                self.refuse_group(DropReason::PolicyMismatch, burst, sa, group);
                continue;
            }
            self.open_group(burst, sa, group, inside);
        }
        if !self.results.opened.is_empty() {
            self.open_onwards(inside);
        }
        for (tunnel, group) in outbound.iter() {
            self.seal_group(burst, packets, tunnel, group.copied());
        }
        self.write_down_policy();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Suite;
    use crate::transform::ah::{Layout, Padding};
    use crate::wire::ip::IpVersion;

    #[test]
    fn the_longest_ah_is_no_longer() {
        let of_ah = Suite::all().filter(|suite| !suite.encryption().encrypts());
        let lengths = of_ah.flat_map(|suite| {
            [IpVersion::V4, IpVersion::V6]
                .map(|version| Layout::new(suite.ah_field_length(), version, Padding::Linux).header_length())
        });
        assert_eq!(lengths.max(), Some(LONGEST_AH));
    }
}
