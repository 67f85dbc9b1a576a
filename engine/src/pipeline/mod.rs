//! A burst in, outputs and verdicts out. No threads, sockets or clock: everything comes in as an argument.
//!
//! One packet, top to bottom:
//!
//! ```text
//! parse     every frame once                                            this file
//! sort      whose is it?
//!   ESP, also in UDP, or AH to one of our addresses -> SA by SPI, replay check, group inbound
//!     a fragment of it waits for the others; the datagram is a packet of the next burst         fragments
//!     open_group    verify and decrypt the group
//!     decapsulate   replay commit, trailer, packet inside, selectors, policy, route
//!       for an SA inside this one -> SA by SPI, as above                nesting
//!   an ICMP error from outside to one of our addresses -> the path of the tunnel that it quotes outside
//!   from the gateway itself -> policy                                   host
//!     a fragment to a peer in transport mode waits for the others       fragments
//!     PROTECT       group by tunnel, as below
//!     BYPASS        forward, as below; else drop
//!   from a protected port -> policy                                     outbound
//!     PROTECT       group by tunnel
//!       prepare     TTL, size (ICMP error or fragments), MSS, transmit frame
//!       seal_ready  numbers, headers, encrypt and authenticate the group
//!       through another tunnel -> prepare again, for that               nesting
//!     BYPASS        forward                                             forward
//!   decrypted, to one of our addresses -> the gateway's own stack       host
//!   clear text from outside -> policy reversed: BYPASS -> forward, or deliver; else drop
//! ```
//!
//! A protected packet is read from the frame it was received in and written to a free transmit frame.

mod admission;
pub mod audit;
pub mod counters;
pub mod drop_reason;
mod forward;
mod fragments;
mod host;
mod icmp;
mod inbound;
mod keepalive;
mod nesting;
mod outbound;
mod outside;
pub mod reassembly;
mod scratch;
mod tfc;

use std::net::IpAddr;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
pub use counters::WorkerCounters;
pub use drop_reason::DropReason;
pub use fragments::{Completed, Reassembly};
pub use host::{Delivery, HostEnd};
pub use outside::IcmpRules;

use crate::crypto::IvSource;
use crate::policy::{Action, FlowCache, PolicyCache, Spd};
use crate::route::{Network, PortId, Side};
use crate::sa::Sad;
use crate::sa::publish::{Guard, Published};
use crate::sa::selector::Direction;
use crate::transform::natt::{self, Datagram};
use crate::wire::ethernet::{self, ether_type};
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{Fragment, Hidden, IpPacket, IpVersion, Upper};
use crate::wire::reader::{FlowNumber, Reader, Seen};
use crate::wire::vlan::{self, Tags};
use crate::wire::{protocol, quote};
use admission::{Admission, Admitted};
use audit::{Audit, Evidence, Trail};
use inbound::Inbound;
use nesting::Nested;
use outbound::Outbound;
use reassembly::Arrival;
use scratch::{Few, Memo, Notes, Recent, Tally};

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
            audit: Trail::default(),
        }
    }
}

/// One received Ethernet frame. It stays where it is; it belongs to the pipeline until `process` returns, which
/// may lower its TTL and MSS before it is sealed. A frame that is handed over has not been touched, but for its VLAN tags.
pub struct Received<'a> {
    /// Where it came in.
    pub port: PortId,
    /// The frame, Ethernet header first.
    pub frame: &'a mut [u8],
}

/// Where free transmit frames come from. A frame belongs to the port it was taken for.
pub trait Frames {
    /// A free frame, whole: at least 1792 bytes (2048 without the headroom the kernel keeps).
    type Frame: DerefMut<Target = [u8]>;
    /// Takes a frame that `port` can transmit, for a packet of up to `length` bytes: as long as that, or the longest
    /// there is. What is longer than any MTU is not to be transmitted from it, but in fragments. `None` when all are in
    /// flight.
    fn take(&mut self, port: PortId, length: usize) -> Option<Self::Frame>;
    /// Gives an unused frame back.
    fn give_back(&mut self, port: PortId, frame: Self::Frame);
    /// The worker that transmits on `port` where this one cannot, busy or not; `None` where it can.
    fn instead(&self, _port: PortId) -> Option<u32> {
        None
    }
    /// The far end of the gateway's own stack; `None` while there is no way to it.
    fn host(&self) -> Option<HostEnd> {
        None
    }
}

/// A finished frame to transmit.
pub struct Output<F> {
    /// Egress.
    pub port: PortId,
    /// The bytes.
    pub frame: F,
    /// How many of them, Ethernet header included.
    pub length: usize,
    /// `Some`: the neighbour is not resolved yet; the Ethernet destination is still to be filled in (source and
    /// EtherType are there). The frame waits, bounded, while the kernel is asked.
    pub unresolved: Option<IpAddr>,
}

/// What a burst came to; appended to, so drain both before the next burst. Reused from burst to burst: nothing in
/// it is allocated per packet.
pub struct Results<F> {
    /// Frames to transmit, in order per SA and per flow; but what was put together of fragments follows the rest of its
    /// burst.
    pub outputs: Vec<Output<F>>,
    /// Packets for the gateway itself, likewise in order.
    pub deliveries: Vec<Delivery<F>>,
    /// Indexes into the burst of packets whose outbound SA another worker owns, and that worker.
    pub hand_over: Vec<(usize, u32)>,
    /// The same for datagrams that the burst made whole, which lie in no frame of it.
    pub hand_over_completed: Vec<(Completed, u32)>,
    /// Frames of the burst that were tagged, whether they are handed over or not.
    pub untagged: Vec<Untagged>,
    /// What a tunnel has sealed and another is to carry; empty between bursts.
    made: Vec<Nested<F>>,
    /// What an SA has opened and another is to open, and the outer tunnel's place; empty between bursts.
    opened: Vec<(Nested<F>, usize)>,
}

/// A frame whose VLAN tags were taken out: its addresses lie `length` bytes further on now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untagged {
    /// Its place in the burst.
    pub index: usize,
    /// The port of its VLAN.
    pub port: PortId,
    /// Bytes of its tags.
    pub length: usize,
}

impl<F> Results<F> {
    /// Empty, with room for a burst and the fragments and errors it may make.
    pub fn new() -> Self {
        Self {
            outputs: Vec::with_capacity(4 * BURST),
            deliveries: Vec::with_capacity(2 * BURST),
            hand_over: Vec::with_capacity(BURST),
            hand_over_completed: Vec::new(),
            made: Vec::new(),
            opened: Vec::new(),
            untagged: Vec::with_capacity(BURST),
        }
    }
}

impl<F> Default for Results<F> {
    fn default() -> Self {
        Self::new()
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
        let Tables { sad, reassembly, icmp, .. } = tables;
        let Notes { tally, memo } = notes;
        Some(Pass {
            own: self,
            sad,
            reassembly,
            icmp,
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
        let stamps = [self.spd.generation, outside.round()];
        self.own.decisions.iter_mut().for_each(|decisions| decisions.look_at(stamps));
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

    /// Takes the tags out of a frame, which is one of its VLAN's port then.
    #[cold]
    fn untag(&mut self, index: usize, received: &mut Received<'_>) -> Result<IpVersion, DropReason> {
        let (tags, length) = Tags::read(received.frame).ok_or(DropReason::Vlan)?;
        let port = self.network.port_of_tags(received.port, tags).ok_or(DropReason::Vlan)?;
        received.port = port;
        received.frame = vlan::strip(std::mem::take(&mut received.frame), length);
        self.results.untagged.push(Untagged { index, port, length });
        ip_version(received.frame)
    }

    /// Puts one packet where it belongs: into a group, or forward in clear, or away.
    fn sort(
        &mut self,
        index: usize,
        received: &mut Received<'_>,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
        inbound: &mut Inbound<'g>,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        if received.port > PortId::OWN {
            return self.sort_host(index, received, packet, flow, outbound);
        }
        // A port that is gone from the picture has no side: fail closed.
        let port = self.network.ports.get(usize::from(received.port.0)).ok_or(DropReason::PolicyDiscard)?;
        let to_us = self.is_our_destination(packet.flow.destination);
        // RFC 4301 section 5.2 step 2: only what is addressed to us is for us to decrypt.
        if to_us && packet.fragment != Fragment::Whole && Self::may_be_sealed(packet) {
            let arrival = Arrival { port: received.port, outer: None };
            return self.reassemble(arrival, received.frame, packet);
        }
        if to_us && matches!(packet.flow.protocol, protocol::ESP | protocol::AH) {
            self.sort_sealed(index, received.frame, packet, inbound)?;
            if let (Some(flow), Some((_, sa))) = (flow, self.memo.sa)
                && inbound::is_plain(sa)
            {
                self.memo.alike = Some((flow, received.port, sa));
            }
            return Ok(());
        }
        if to_us && self.is_nat_traversal(packet) {
            match natt::read(datagram(received.frame, packet)).map_err(|_| DropReason::Malformed)? {
                Datagram::Esp(..) => return self.sort_sealed(index, received.frame, packet, inbound),
                Datagram::Keepalive => return Err(DropReason::NatKeepalive),
                // The daemon's, as any other packet for the gateway itself.
                Datagram::Ike => {}
            }
        }
        if to_us && port.side == Side::Unprotected && quote::is_error(packet) {
            let reason = self.error_from_outside(received, packet);
            // Not about what we sealed: it may be about what goes in clear.
            if reason != DropReason::IcmpForged
                || !matches!(self.policy(Direction::Inbound, packet, flow), Some(Action::Bypass))
            {
                return Err(reason);
            }
            return self.deliver_clear_text(received, packet);
        }
        match port.side {
            Side::Protected if to_us => Err(DropReason::NoHostPath),
            Side::Protected => match self.policy(Direction::Outbound, packet, flow) {
                Some(Action::Protect(tunnel)) => {
                    outbound.push(tunnel, index);
                    Ok(())
                }
                Some(Action::Bypass) => self.forward(received, packet),
                decided => self.discard(index, received, packet, decided.is_some(), outbound),
            },
            Side::Unprotected => match self.policy(Direction::Inbound, packet, flow) {
                // RFC 4301 section 5.2 step 3b: what should have come protected.
                Some(Action::Protect(_)) => Err(DropReason::ClearText),
                Some(Action::Bypass) if to_us => self.deliver_clear_text(received, packet),
                Some(Action::Bypass) => self.forward(received, packet),
                Some(Action::Discard) => Err(DropReason::PolicyDiscard),
                None if to_us => Err(DropReason::NoHostPath),
                None => Err(DropReason::PolicyDiscard),
            },
        }
    }

    /// From a protected port, and no policy lets it out: unless it is an ICMP error about what came in, which goes back
    /// the same way. By configuration the sender is told (RFC 4301 section 5.1.1).
    #[cold]
    fn discard(
        &mut self,
        index: usize,
        received: &Received<'_>,
        packet: &IpPacket,
        is_decided: bool,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        let bytes = &received.frame[ethernet::HEADER_LENGTH..];
        if !is_decided
            && quote::is_error(packet)
            && let Some(tunnel) = self.tunnel_by_quote(bytes, packet)
        {
            outbound.push(tunnel, index);
            return Ok(());
        }
        if self.icmp.tell_discarded {
            self.originate_error(received, IcmpError::Prohibited);
        }
        Err(DropReason::PolicyDiscard)
    }

    /// What the policy says of a packet; counts it for the policy that decides.
    fn policy(
        &mut self,
        direction: Direction,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
    ) -> Option<&'g Action> {
        // Whoever is outside may send what looks like a flow from inside.
        let decisions = &mut self.own.decisions[direction as usize];
        let index = match decisions.find(flow).and_then(|place| decisions.at(place)) {
            Some(&index) => index,
            None => {
                let policies = &mut self.own.policies;
                let index = policies.classify(self.spd, direction, &packet.flow, packet.fragment)?;
                decisions.put(flow, index);
                index
            }
        };
        self.count_policy(index);
        self.spd.policies.get(index).map(|policy| &policy.action)
    }

    fn count_policy(&mut self, index: usize) {
        match &mut self.memo.policy {
            Some((last, count)) if *last == index => *count += 1,
            _ => {
                self.write_down_policy();
                self.memo.policy = Some((index, 1));
            }
        }
    }

    fn write_down_policy(&mut self) {
        if let Some((index, count)) = self.memo.policy.take()
            && let Some(policy) = self.spd.policies.get(index)
        {
            policy.packets.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Whether a fragment may be one of ESP or AH. A later one of UDP does not show its ports, so the first waits for it
    /// whatever its ports are; one of IPv6 not what stands behind the first header of the datagram.
    fn may_be_sealed(packet: &IpPacket) -> bool {
        match packet.flow.protocol {
            protocol::ESP | protocol::AH | protocol::UDP => true,
            _ => packet.flow.hides(packet.fragment) == Hidden::Protocol,
        }
    }

    /// Whether a packet is for a port of RFC 3948.
    fn is_nat_traversal(&self, packet: &IpPacket) -> bool {
        packet.flow.protocol == protocol::UDP
            && matches!(packet.flow.upper, Upper::Ports { destination, .. } if self.spd.is_nat_port(destination))
    }

    fn is_our_destination(&mut self, address: IpAddr) -> bool {
        is_local(self.network, &mut self.own.recent.destination, address)
    }

    fn is_our_source(&mut self, address: IpAddr) -> bool {
        is_local(self.network, &mut self.own.recent.source, address)
    }
}

fn is_local(network: &Network, last: &mut Option<(IpAddr, bool)>, address: IpAddr) -> bool {
    match *last {
        Some((known, answer)) if known == address => answer,
        _ => {
            let answer = network.is_local(address);
            *last = Some((address, answer));
            answer
        }
    }
}

/// What follows the IP headers of a packet, to its end.
fn datagram<'f>(frame: &'f [u8], packet: &IpPacket) -> &'f [u8] {
    let start = ethernet::HEADER_LENGTH + usize::from(packet.payload_offset);
    &frame[start..ethernet::HEADER_LENGTH + packet.total_length as usize]
}

/// The IP version that the Ethernet header says.
#[inline(always)]
fn ip_version(frame: &[u8]) -> Result<IpVersion, DropReason> {
    match ethernet::parse(frame).map_err(|_| DropReason::Malformed)?.ether_type {
        ether_type::IPV4 => Ok(IpVersion::V4),
        ether_type::IPV6 => Ok(IpVersion::V6),
        ether_type::VLAN | ether_type::QINQ => Err(DropReason::Vlan),
        _ => Err(DropReason::NotIp),
    }
}

/// The packet behind the Ethernet header, which must be of that version.
#[inline(always)]
fn read_ip<'r>(reader: &'r mut Reader, frame: &[u8], version: IpVersion) -> Result<Seen<'r>, DropReason> {
    match reader.read(&frame[ethernet::HEADER_LENGTH..]) {
        Ok(seen) if seen.like.version == version => Ok(seen),
        _ => Err(DropReason::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Suite;
    use crate::transform::ah::{Layout, Padding};

    #[test]
    fn the_longest_ah_is_no_longer() {
        let lengths = Suite::all().flat_map(|suite| {
            [IpVersion::V4, IpVersion::V6]
                .map(|version| Layout::new(suite.icv_length(), version, Padding::Linux).header_length())
        });
        assert_eq!(lengths.max(), Some(LONGEST_AH));
    }
}
