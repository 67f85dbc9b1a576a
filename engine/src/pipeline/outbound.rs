//! Outbound PROTECT (RFC 4303 section 3.3, RFC 4301 section 5.1): size, TTL, numbers for the group, outer
//! header, encryption and authentication of the group.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::scratch::{Egress, Groups, Route};
use super::{BURST, DropReason, Frames, Packets, Pass, Received};
use crate::crypto::Seal;
use crate::policy::Tunnel;
use crate::route::Side;
use crate::sa::OutboundSa;
use crate::sa::outbound::{Exhausted, Numbers};
use crate::transform::fragment::{fragment_ipv4, write_fragment};
use crate::transform::mss;
use crate::wire::checksum;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, Fragment, IpPacket, IpVersion};
use crate::wire::protocol;

/// Packets of a burst (by their places in it) under PROTECT, by the tunnel that protects them.
pub(super) type Outbound<'g> = Groups<'g, Tunnel, usize>;

/// A packet with everything but its number, in the order of numbering.
struct Ready<'p, F> {
    payload: Payload,
    /// What it is, or what it is a fragment of.
    packet: &'p IpPacket,
    /// Bytes of it, or of the fragment.
    length: usize,
    frame: F,
}

/// Where the inner packet lies.
enum Payload {
    /// In the received frame.
    Received { index: usize },
    /// In the worker's room for fragments.
    Fragment { start: usize },
}

/// What the packets of a group share.
struct Group<'g> {
    sa: &'g OutboundSa,
    egress: Egress<'g>,
    inside_mtu: u32,
    clamp_mss: bool,
}

/// The smallest MTU an IPv6 link may have (RFC 8200 section 5): never announced lower.
const IPV6_MINIMUM_MTU: u32 = 1280;

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Sends a group of packets of one tunnel through its current SA.
    pub(super) fn seal_group(
        &mut self,
        burst: &mut [Received<'_>],
        packets: &Packets,
        tunnel: &'g Tunnel,
        group: impl Iterator<Item = usize>,
    ) {
        let Some(sa) = tunnel.outbound.load(self.guard) else {
            return self.tally.drop_all(DropReason::NoOutboundSa, group.count());
        };
        let owner = sa.owner(self.own.worker);
        if owner != self.own.worker {
            // Untouched: the owner does all of it.
            return self.results.hand_over.extend(group.map(|index| (index, owner)));
        }
        let egress = match self.outer_egress(sa) {
            Ok(egress) => egress,
            Err(reason) => return self.tally.drop_all(reason, group.count()),
        };
        if let Some(other) = self.frames.instead(egress.id) {
            sa.pass_on(self.own.worker, other);
            return self.results.hand_over.extend(group.map(|index| (index, other)));
        }
        let inside_mtu = sa.outer.inside_mtu(egress.port.mtu, &sa.layout);
        let shared = Group { sa, egress, inside_mtu, clamp_mss: tunnel.clamp_mss };

        let mut ready = ArrayVec::new();
        for index in group {
            let Ok(packet) = &packets[index] else { continue };
            if let Err(reason) = self.prepare(burst, index, packet, &shared, &mut ready) {
                self.tally.drop(reason);
            }
            if ready.is_full() {
                self.seal_ready(burst, &shared, &mut ready);
            }
        }
        self.seal_ready(burst, &shared, &mut ready);
    }

    /// Sends a packet of our own, which lies at the start of the room for fragments; where it cannot go, it is not
    /// made.
    pub(super) fn seal_originated(&mut self, tunnel: &'g Tunnel, packet: &IpPacket) {
        let Some(sa) = tunnel.outbound.load(self.guard) else { return };
        if sa.owner(self.own.worker) != self.own.worker {
            return;
        }
        let Ok(egress) = self.outer_egress(sa) else { return };
        let inside_mtu = sa.outer.inside_mtu(egress.port.mtu, &sa.layout);
        if packet.total_length > inside_mtu {
            return;
        }
        let length = packet.total_length as usize;
        let Ok(frame) = self.take_frame(egress.id, sealed_length(sa, length)) else { return };
        self.tally.originated += 1;
        let mut ready = ArrayVec::<_, BURST>::new();
        ready.push(Ready { payload: Payload::Fragment { start: 0 }, packet, length, frame });
        let shared = Group { sa, egress, inside_mtu, clamp_mss: false };
        self.seal_ready(&[], &shared, &mut ready);
    }

    /// ESP leaves by an unprotected port, or not at all.
    fn outer_egress(&mut self, sa: &OutboundSa) -> Result<Egress<'g>, DropReason> {
        match self.route(sa.outer.destination) {
            Route::Port(egress) if egress.port.side == Side::Protected => Err(DropReason::NoRoute),
            Route::Port(egress) if !egress.port.up => Err(DropReason::LinkDown),
            Route::Port(egress) => Ok(egress),
            Route::Local | Route::OtherInterface | Route::Unreachable => Err(DropReason::NoRoute),
        }
    }

    /// What `tunnel` carries now, or `None` while it carries nothing.
    pub(super) fn inside_mtu(&mut self, tunnel: &'g Tunnel) -> Option<u32> {
        let sa = tunnel.outbound.load(self.guard)?;
        let egress = self.outer_egress(sa).ok()?;
        Some(sa.outer.inside_mtu(egress.port.mtu, &sa.layout))
    }

    /// Everything that can refuse a packet comes before it gets a number.
    fn prepare<'p>(
        &mut self,
        burst: &mut [Received<'_>],
        index: usize,
        packet: &'p IpPacket,
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'p, F::Frame>, BURST>,
    ) -> Result<(), DropReason> {
        let received = &mut burst[index];
        if packet.ttl <= 1 {
            self.originate_error(received, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        if has_partial_checksum(&received.frame[HEADER_LENGTH..], packet) {
            return Err(DropReason::PartialChecksum);
        }
        if packet.total_length > group.inside_mtu {
            if packet.dont_fragment {
                let mtu = match packet.version {
                    IpVersion::V4 => group.inside_mtu,
                    IpVersion::V6 => group.inside_mtu.max(IPV6_MINIMUM_MTU),
                };
                self.originate_error(received, IcmpError::PacketTooBig { mtu });
                return Err(DropReason::TooBig);
            }
            return self.prepare_fragments(burst, index, packet, group, ready);
        }
        let length = packet.total_length as usize;
        let frame = self.take_frame(group.egress.id, sealed_length(group.sa, length))?;
        let bytes = &mut received.frame[HEADER_LENGTH..];
        ip::decrement_ttl(bytes, packet.version);
        if group.clamp_mss {
            mss::clamp(bytes, packet, group.inside_mtu);
        }
        ready.push(Ready { payload: Payload::Received { index }, packet, length, frame });
        Ok(())
    }

    /// RFC 4301 section 8.2.1: too large and DF clear, so fragments go into ESP packets of their own. The first
    /// stands for the packet that was received; the others are originated.
    fn prepare_fragments<'p>(
        &mut self,
        burst: &mut [Received<'_>],
        index: usize,
        packet: &'p IpPacket,
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'p, F::Frame>, BURST>,
    ) -> Result<(), DropReason> {
        ip::decrement_ttl(&mut burst[index].frame[HEADER_LENGTH..], packet.version);
        let burst = &*burst;
        let bytes = &burst[index].frame[HEADER_LENGTH..];
        let pieces = fragment_ipv4(bytes, packet, group.inside_mtu).ok_or(DropReason::TooBig)?;
        // Rare, so plain: what is ready goes first, and the room for fragments is this packet's alone.
        self.seal_ready(burst, group, ready);
        let mut start = 0;
        let mut outcome = Ok(());
        for (number, piece) in pieces.enumerate() {
            let length = piece.total_length();
            if ready.is_full() || start + length > self.own.fragments.len() {
                self.seal_ready(burst, group, ready);
                start = 0;
            }
            if number > 0 {
                self.tally.originated += 1;
            }
            outcome = write_fragment(&mut self.own.fragments[start..], bytes, &piece)
                .ok_or(DropReason::TooBig)
                .and_then(|_| self.take_frame(group.egress.id, sealed_length(group.sa, length)))
                .map(|frame| {
                    ready.push(Ready { payload: Payload::Fragment { start }, packet, length, frame })
                });
            if outcome.is_err() {
                break;
            }
            start += length;
        }
        self.seal_ready(burst, group, ready);
        outcome
    }

    /// Seals what is ready under consecutive numbers. A number that was taken is never used again, whatever
    /// becomes of its packet.
    fn seal_ready(
        &mut self,
        burst: &[Received<'_>],
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'_, F::Frame>, BURST>,
    ) {
        let Group { sa, egress, .. } = group;
        let outer_length = sa.outer.length();
        let Numbers { range, short } = sa.take_numbers(ready.len() as u64);
        let mut numbers = range.into_iter().flatten();
        let mut bytes = 0;
        let mut seals = ArrayVec::<Seal<'_>, BURST>::new();
        for Ready { payload, packet, length, frame } in ready.iter_mut() {
            let Some(sequence) = numbers.next() else { break };
            let length = *length;
            let esp_length = sa.layout.esp_length(length);
            // Unique among the SA's last 2^16 packets, whichever workers send them (RFC 6864 section 4.3).
            let identification = sequence.get() as u16;
            let (headers, esp) = frame.split_at_mut(HEADER_LENGTH + outer_length);
            sa.outer.write(&mut headers[HEADER_LENGTH..], packet, esp_length, identification);
            let payload = match *payload {
                Payload::Received { index } => &burst[index].frame[HEADER_LENGTH..][..length],
                Payload::Fragment { start } => &self.own.fragments[start..start + length],
            };
            let next_header = match packet.version {
                IpVersion::V4 => protocol::IPV4,
                IpVersion::V6 => protocol::IPV6,
            };
            seals.push(Seal { esp: &mut esp[..esp_length], payload, next_header, sequence });
            bytes += esp_length as u64;
        }
        let sealed = seals.len();
        sa.sealer.seal(sa.spec.sa.spi, &mut seals, &mut self.own.ivs);
        drop(seals);

        for (position, Ready { length, frame, .. }) in ready.drain(..).enumerate() {
            if position < sealed {
                let length = outer_length + sa.layout.esp_length(length);
                self.emit(egress, sa.outer.version(), frame, length);
            } else {
                self.frames.give_back(egress.id, frame);
                self.tally.drop(match short {
                    Exhausted::Sequence => DropReason::SequenceExhausted,
                    Exhausted::Lease => DropReason::LeaseExhausted,
                });
            }
        }
        self.tally.sealed += sealed as u64;
        if sealed > 0 {
            sa.counters.packets.fetch_add(sealed as u64, Ordering::Relaxed);
            sa.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes of the whole frame around `length` bytes when they are sealed.
fn sealed_length(sa: &OutboundSa, length: usize) -> usize {
    HEADER_LENGTH + sa.outer.length() + sa.layout.esp_length(length)
}

/// Whether the sender left the TCP or UDP checksum to hardware that is not there: the field then holds the sum of
/// the pseudo-header alone. One right checksum in 2^16 looks like that too, so the whole sum decides.
fn has_partial_checksum(bytes: &[u8], packet: &IpPacket) -> bool {
    let field = match packet.flow.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return false,
    };
    // Who fragments has to sum first; behind extension headers the final destination may be another.
    if packet.fragment != Fragment::Whole || packet.payload_offset != packet.header_length {
        return false;
    }
    let segment = &bytes[usize::from(packet.payload_offset)..packet.total_length as usize];
    let Some(&[high, low]) = segment.get(field..field + 2) else { return false };
    let addresses = match packet.version {
        IpVersion::V4 => &bytes[12..20],
        IpVersion::V6 => &bytes[8..40],
    };
    let words = addresses.chunks_exact(4).map(|word| u64::from(u32::from_be_bytes(word.try_into().unwrap())));
    let pseudo = fold(words.sum::<u64>() + u64::from(packet.flow.protocol) + segment.len() as u64);
    u16::from_be_bytes([high, low]) == pseudo
        && fold(u64::from(pseudo) + u64::from(!checksum::internet(segment))) != u16::MAX
}

/// The one's complement sum of 64 bits as 16.
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
