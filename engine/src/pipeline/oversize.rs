//! Packets that are larger than their way carries (RFC 4301 section 8.2.1): refused, or in fragments, before or after they
//! are sealed.

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::nesting::Nested;
use super::outbound::{Group, Lengths, Payload, Ready, as_next_header};
use super::{BURST, DropReason, Frames, Pass, Received};
use crate::route::PortId;
use crate::sa::spec::Mode;
use crate::transform::fragment::{fragment_ipv4, write_fragment};
use crate::transform::transport::Split;
use crate::transform::tunnel::{DontFragment, OuterHeader};
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, IpPacket, IpVersion};

/// The smallest MTU an IPv6 link may have (RFC 8200 section 5): never announced lower.
const IPV6_MINIMUM_MTU: u32 = 1280;

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// What is too large for one packet outside and must not become several is told so.
    #[cold]
    pub(super) fn refuse_too_large(
        &mut self,
        received: &Received<'_>,
        packet: &IpPacket,
        inside_mtu: u32,
        group: &Group<'g>,
        split: Option<&Split>,
    ) -> Result<(), DropReason> {
        // RFC 2473 section 7.1 (b): what every IPv6 link carries, a tunnel carries too, in fragments if need be. A layer
        // inside this one has seen to that already.
        let is_least = packet.version == IpVersion::V6 && packet.total_length <= IPV6_MINIMUM_MTU;
        let is_nested = received.port == PortId::OWN;
        // Who has fragmented a packet himself may have it fragmented once more.
        let is_in_fragments = received.port == PortId::HOST_IN_FRAGMENTS;
        if packet.dont_fragment && !is_least && !is_nested && !is_in_fragments {
            let mtu = match packet.version {
                IpVersion::V4 => inside_mtu,
                IpVersion::V6 => inside_mtu.max(IPV6_MINIMUM_MTU),
            };
            self.originate_error(received, IcmpError::PacketTooBig { mtu });
            return Err(DropReason::TooBig);
        }
        if Lengths::new(group.sa, split, packet.total_length as usize).sum() > usize::from(u16::MAX) {
            return Err(DropReason::TooBig);
        }
        Ok(())
    }

    /// RFC 4301 section 8.2.1, case 2, the other way: the packet is sealed whole, under a header that lets it be
    /// fragmented.
    pub(super) fn seal_too_large<'p>(
        &mut self,
        burst: &mut [Received<'_>],
        index: usize,
        packet: &'p IpPacket,
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'p, F::Frame>, BURST>,
    ) -> Result<(), DropReason> {
        // Rare, so plain: what is ready goes first, and this packet alone.
        self.seal_ready(burst, group, ready);
        let length = packet.total_length as usize;
        let sealed = Lengths::new(group.sa, None, length);
        let frame = self.take_frame(group.egress.id, sealed.of_frame(group.sa))?;
        if burst[index].port < PortId::OWN {
            ip::decrement_ttl(&mut burst[index].frame[HEADER_LENGTH..], packet.version);
        }
        let outer = OuterHeader { dont_fragment: DontFragment::Clear, ..group.outer };
        let (payload, next_header) = (Payload::Received { index }, as_next_header(packet.version));
        ready.push(Ready { payload, packet, next_header, length, sealed, split: None, frame });
        self.seal_ready(burst, &group.under(outer), ready);
        Ok(())
    }

    /// RFC 4301 section 8.2.1: too large and DF clear, so fragments are sealed one by one. The first
    /// stands for the packet that was received; the others are originated.
    pub(super) fn prepare_fragments<'p>(
        &mut self,
        burst: &mut [Received<'_>],
        index: usize,
        packet: &'p IpPacket,
        inside_mtu: u32,
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'p, F::Frame>, BURST>,
    ) -> Result<(), DropReason> {
        if burst[index].port < PortId::OWN {
            ip::decrement_ttl(&mut burst[index].frame[HEADER_LENGTH..], packet.version);
        }
        let burst = &*burst;
        let bytes = &burst[index].frame[HEADER_LENGTH..];
        let pieces = fragment_ipv4(bytes, packet, inside_mtu).ok_or(DropReason::TooBig)?;
        // Rare, so plain: what is ready goes first, and the room for fragments is this packet's alone.
        self.seal_ready(burst, group, ready);
        let mut start = 0;
        let mut outcome = Ok(());
        for (number, piece) in pieces.enumerate() {
            let length = piece.total_length();
            // Padding may make any of them as large as the largest.
            if ready.is_full() || start + inside_mtu as usize > self.own.fragments.len() {
                self.seal_ready(burst, group, ready);
                start = 0;
            }
            if number > 0 {
                self.tally.originated += 1;
            }
            let sealed = Lengths::new(group.sa, None, length);
            outcome = write_fragment(&mut self.own.fragments[start..], bytes, &piece)
                .ok_or(DropReason::TooBig)
                .and_then(|_| self.take_frame(group.egress.id, sealed.of_frame(group.sa)))
                .map(|frame| {
                    let (payload, next_header) = (Payload::Room { start }, as_next_header(packet.version));
                    ready.push(Ready { payload, packet, next_header, length, sealed, split: None, frame });
                    start += self.pad(group, ready.last_mut());
                });
            if outcome.is_err() {
                break;
            }
        }
        self.seal_ready(burst, group, ready);
        outcome
    }

    /// Into the next tunnel, or in fragments: it is larger than the way carries.
    #[cold]
    pub(super) fn send_otherwise(&mut self, group: &Group<'g>, frame: F::Frame, length: usize) {
        match group.carrier {
            // Takes whole datagrams only (RFC 4303 section 3.3.4), and fragments what it makes of them.
            Some(Mode::Transport(_)) => self.send_on(group, frame, length),
            Some(Mode::Tunnel) if length <= group.outside_mtu as usize => self.send_on(group, frame, length),
            Some(Mode::Tunnel) | None => self.send_sealed_in_fragments(group, frame, length),
        }
    }

    /// A sealed packet, or a fragment of one, into the next tunnel or out.
    fn send_on(&mut self, group: &Group<'g>, frame: F::Frame, length: usize) {
        let egress = &group.egress;
        match group.carrier {
            Some(_) => self.results.made.push(Nested { port: egress.id, frame, length }),
            None => self.emit(egress, group.sa.outer.version(), frame, length),
        }
    }

    /// The sealed packet's place is taken by its first fragment; the others are originated.
    #[cold]
    fn send_sealed_in_fragments(&mut self, group: &Group<'g>, mut frame: F::Frame, length: usize) {
        let Group { egress, outside_mtu, .. } = group;
        let bytes = &frame[HEADER_LENGTH..HEADER_LENGTH + length];
        let send = |this: &mut Self, frame, length| this.send_on(group, frame, length);
        let sent = match ip::parse(bytes) {
            Ok(packet) if packet.version == IpVersion::V4 => {
                self.send_fragments(egress, *outside_mtu, &packet, bytes, send)
            }
            Ok(packet) => self.send_ipv6_fragments(egress, *outside_mtu, &packet, bytes, send),
            Err(_) => Err(DropReason::TooBig),
        };
        if let Err(reason) = sent {
            self.drop(reason, &Evidence::between(&frame, length).outbound(&group.sa.spec.sa));
        }
        // AH is in clear: it does not lie about in free frames.
        frame[HEADER_LENGTH..HEADER_LENGTH + length].fill(0);
        self.frames.give_back(egress.id, frame);
    }
}
