//! Outbound PROTECT (RFC 4303 and RFC 4302 section 3.3, RFC 4301 section 5.1): size, TTL, numbers for the group,
//! headers, encryption and authentication of the group.

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::nesting::{Nested, WayOut};
use super::scratch::{Egress, Groups, Route};
use super::{BURST, COVERED_HEADERS, DropReason, Frames, Own, Pass, Received};
use crate::crypto::{Seal, Sign};
use crate::policy::tfc::Padding;
use crate::policy::{Fragmentation, Tunnel};
use crate::route::{PortId, Side};
use crate::sa::OutboundSa;
use crate::sa::outbound::{Exhausted, Numbers, OutboundKeys};
use crate::sa::spec::Mode;
use crate::transform::ah::{self, Role};
use crate::transform::fragment::{fragment_ipv4, write_fragment};
use crate::transform::natt;
use crate::transform::transport::{self, Split};
use crate::transform::tunnel::{DontFragment, OuterHeader, Writer};
use crate::transform::{Layout, mss};
use crate::wire::ah::AhHeader;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, Fragment, IpPacket, IpVersion};
use crate::wire::protocol;
use crate::wire::udp::{self, UdpHeader};

/// Packets of a burst (by their places in it) under PROTECT, by the tunnel that protects them.
pub(super) type Outbound<'g> = Groups<'g, Tunnel, usize>;

/// A packet with everything but its number, in the order of numbering.
pub(super) struct Ready<'p, F> {
    pub(super) payload: Payload,
    /// What it is, or what it is a fragment of.
    pub(super) packet: &'p IpPacket,
    /// What ESP or AH says it carries in a tunnel.
    pub(super) next_header: u8,
    /// Bytes of it, or of the fragment, and of its padding for traffic-flow confidentiality.
    pub(super) length: usize,
    /// Bytes that it takes once it is sealed.
    pub(super) sealed: Lengths,
    /// Transport mode: where ESP or AH goes.
    pub(super) split: Option<Split>,
    pub(super) frame: F,
}

/// Where the inner packet lies.
pub(super) enum Payload {
    /// In the received frame.
    Received { index: usize },
    /// In the worker's room for what it makes itself.
    Room { start: usize },
}

/// What the packets of a group share.
pub(super) struct Group<'g> {
    pub(super) sa: &'g OutboundSa,
    pub(super) outer: OuterHeader,
    pub(super) egress: Egress<'g>,
    /// What leaves in one piece: what the egress carries, or less where the path is told to, or what the tunnels carry
    /// that this one goes through.
    outside_mtu: u32,
    /// The same, where nothing else is to be done with it.
    leaves_up_to: usize,
    /// How the tunnel carries that this one goes through.
    carrier: Option<Mode>,
    /// What a tunnel carries; in transport mode it depends on the packet's own headers.
    pub(super) tunnel_mtu: u32,
    /// For traffic-flow confidentiality.
    pub(super) padding: Padding,
    clamp_mss: bool,
    fragmentation: Fragmentation,
}

impl<'g> Group<'g> {
    pub(super) fn new(
        tunnel: &Tunnel,
        sa: &'g OutboundSa,
        outer: OuterHeader,
        egress: Egress<'g>,
        mtu: u32,
    ) -> Self {
        let carrier = tunnel.through.as_ref().map(|outer| outer.mode);
        Self {
            sa,
            outer,
            egress,
            outside_mtu: mtu,
            leaves_up_to: if carrier.is_some() { 0 } else { mtu as usize },
            carrier,
            tunnel_mtu: outer.inside_mtu(mtu, &sa.layout),
            padding: tunnel.tfc.padding,
            clamp_mss: tunnel.clamp_mss,
            fragmentation: tunnel.fragmentation,
        }
    }

    /// What leaves as one packet: any packet in a tunnel, one with the headers of `split` in transport mode.
    fn inside_mtu(&self, split: Option<&Split>) -> u32 {
        let Self { sa, outside_mtu, .. } = self;
        match split {
            None => self.tunnel_mtu,
            Some(split) => {
                let mtu = outside_mtu.saturating_sub(in_udp(sa) as u32);
                transport::inside_mtu(mtu, &sa.layout, sa.outer.version(), split.at.into())
            }
        }
    }
}

/// The smallest MTU an IPv6 link may have (RFC 8200 section 5): never announced lower.
const IPV6_MINIMUM_MTU: u32 = 1280;

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Sends a group of packets of one tunnel through its current SA.
    pub(super) fn seal_group(
        &mut self,
        burst: &mut [Received<'_>],
        packets: &[IpPacket],
        tunnel: &'g Tunnel,
        group: impl Iterator<Item = usize>,
    ) {
        let Some(sa) = tunnel.outbound.load(self.guard) else {
            return self.refuse_outbound(DropReason::NoOutboundSa, burst, tunnel, group);
        };
        if sa.lifetime.is_over() {
            return self.refuse_outbound(DropReason::HardLifetime, burst, tunnel, group);
        }
        let owner = self.owner_of(tunnel, sa);
        if owner != self.own.worker {
            // Untouched: the owner does all of it.
            return self.results.hand_over.extend(group.map(|index| (index, owner)));
        }
        let outer = sa.outer_now();
        let WayOut { egress, mtu } = match self.way_out(tunnel, &outer) {
            Ok(way) => way,
            Err(reason) => return self.refuse_outbound(reason, burst, tunnel, group),
        };
        if let Some(other) = self.frames.instead(egress.id) {
            self.pass_on(tunnel, other);
            return self.results.hand_over.extend(group.map(|index| (index, other)));
        }
        let shared = Group::new(tunnel, sa, outer, egress, mtu);
        self.seal_all(burst, packets, &shared, group);
        if let Some(through) = &tunnel.through {
            self.seal_onwards(through);
        }
    }

    /// Drops all of a group.
    #[cold]
    fn refuse_outbound(
        &mut self,
        reason: DropReason,
        burst: &[Received<'_>],
        tunnel: &Tunnel,
        group: impl Iterator<Item = usize>,
    ) {
        let sa = tunnel.outbound.load(self.guard);
        for index in group {
            let evidence = Evidence::received(&burst[index]).into_tunnel(&tunnel.name);
            self.drop(reason, &sa.map_or(evidence, |sa| evidence.outbound(&sa.spec.sa)));
        }
    }

    /// Seals a group; where it goes through another tunnel, it waits for that.
    #[inline]
    pub(super) fn seal_all(
        &mut self,
        burst: &mut [Received<'_>],
        packets: &[IpPacket],
        shared: &Group<'g>,
        group: impl Iterator<Item = usize>,
    ) {
        if shared.padding != Padding::Off {
            return self.seal_padded(burst, packets, shared, group);
        }
        let mut ready = ArrayVec::new();
        for index in group {
            if let Err(reason) = self.prepare(burst, index, &packets[index], shared, &mut ready) {
                self.drop(reason, &Evidence::received(&burst[index]).outbound(&shared.sa.spec.sa));
            }
            if ready.is_full() {
                self.seal_ready(burst, shared, &mut ready);
            }
        }
        self.seal_ready(burst, shared, &mut ready);
    }

    /// Sends a packet of our own, which lies at the start of the room for fragments; where it cannot go, it is not
    /// made.
    pub(super) fn seal_originated(&mut self, tunnel: &'g Tunnel, packet: &IpPacket) {
        let Some(shared) = self.own_group(tunnel) else { return };
        let Group { sa, egress, .. } = &shared;
        let length = packet.total_length as usize;
        let Ok(split) = split(sa, &self.own.fragments[..length], packet, &mut self.own.covered) else {
            return;
        };
        if packet.total_length > shared.inside_mtu(split.as_ref()) {
            return;
        }
        let sealed = Lengths::new(sa, split.as_ref(), length);
        let Ok(frame) = self.take_frame(egress.id, sealed.of_frame(sa)) else { return };
        self.tally.originated += 1;
        let mut ready = ArrayVec::<_, BURST>::new();
        let (payload, next_header) = (Payload::Room { start: 0 }, as_next_header(packet.version));
        ready.push(Ready { payload, packet, next_header, length, sealed, split, frame });
        self.pad(&shared, ready.last_mut());
        self.seal_ready(&[], &shared, &mut ready);
        if let Some(through) = &tunnel.through {
            self.seal_onwards(through);
        }
    }

    /// ESP and AH leave by an unprotected port, or not at all.
    pub(super) fn outer_egress(&mut self, outer: &OuterHeader) -> Result<Egress<'g>, DropReason> {
        match self.route(outer.destination) {
            Route::Port(egress) if egress.port.side == Side::Protected => Err(DropReason::NoRoute),
            Route::Port(egress) if !egress.port.up => Err(DropReason::LinkDown),
            Route::Port(egress) => Ok(egress),
            Route::Local | Route::OtherInterface | Route::Unreachable => Err(DropReason::NoRoute),
        }
    }

    /// The largest packet on the path of `tunnel`: `mtu`, which its link carries or the tunnel that it goes through, or
    /// less where the path is told to.
    pub(super) fn path_mtu(&self, tunnel: &Tunnel, mtu: u32) -> u32 {
        let told = tunnel.path.mtu(self.now, self.icmp.path_mtu_ageing);
        told.map_or(mtu, |told| told.min(mtu))
    }

    /// What `tunnel` carries now, or `None` while it carries nothing.
    pub(super) fn inside_mtu(&mut self, tunnel: &'g Tunnel) -> Option<u32> {
        let sa = tunnel.outbound.load(self.guard)?;
        Some(sa.inside_mtu(self.way_out(tunnel, &sa.outer_now()).ok()?.mtu))
    }

    /// Everything that can refuse a packet comes before it gets a number.
    pub(super) fn prepare<'p>(
        &mut self,
        burst: &mut [Received<'_>],
        index: usize,
        packet: &'p IpPacket,
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'p, F::Frame>, BURST>,
    ) -> Result<(), DropReason> {
        let received = &mut burst[index];
        let is_forwarded = received.port < PortId::OWN;
        if is_forwarded && packet.ttl <= 1 {
            self.originate_error(received, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        if ip::has_partial_checksum(&received.frame[HEADER_LENGTH..], packet) {
            return Err(DropReason::PartialChecksum);
        }
        let whole = &received.frame[HEADER_LENGTH..];
        let split = split(group.sa, whole, packet, &mut self.own.covered)?;
        let inside_mtu = group.inside_mtu(split.as_ref());
        let length = packet.total_length as usize;
        if packet.total_length > inside_mtu {
            // Transport mode fragments what it has sealed (RFC 4303 section 3.3.4), like any other packet.
            self.refuse_too_large(received, packet, inside_mtu, group, split.as_ref())?;
            if split.is_none() {
                return match (group.fragmentation, packet.version) {
                    (Fragmentation::Before, IpVersion::V4) => {
                        self.prepare_fragments(burst, index, packet, inside_mtu, group, ready)
                    }
                    _ => self.seal_too_large(burst, index, packet, group, ready),
                };
            }
        }
        let sealed = Lengths::new(group.sa, split.as_ref(), length);
        let frame = self.take_frame(group.egress.id, sealed.of_frame(group.sa))?;
        let bytes = &mut received.frame[HEADER_LENGTH..];
        // RFC 4301 section 5.1.2.1: decremented by whoever forwards, not by whoever sends.
        if is_forwarded {
            ip::decrement_ttl(bytes, packet.version);
        }
        if group.clamp_mss {
            mss::clamp(bytes, packet, inside_mtu);
        }
        let (payload, next_header) = (Payload::Received { index }, as_next_header(packet.version));
        ready.push(Ready { payload, packet, next_header, length, sealed, split, frame });
        Ok(())
    }

    /// What is too large for one packet outside and must not become several is told so.
    #[cold]
    fn refuse_too_large(
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
    fn seal_too_large<'p>(
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
        self.seal_ready(burst, &Group { outer, ..*group }, ready);
        Ok(())
    }

    /// RFC 4301 section 8.2.1: too large and DF clear, so fragments are sealed one by one. The first
    /// stands for the packet that was received; the others are originated.
    fn prepare_fragments<'p>(
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

    /// Seals what is ready under consecutive numbers. A number that was taken is never used again, whatever
    /// becomes of its packet.
    pub(super) fn seal_ready(
        &mut self,
        burst: &[Received<'_>],
        group: &Group<'g>,
        ready: &mut ArrayVec<Ready<'_, F::Frame>, BURST>,
    ) {
        let Group { sa, outer, .. } = group;
        let fragments = &self.own.fragments;
        let mut allowance = sa.allowance();
        let is_ample = allowance.is_ample();
        let fits = |Ready { sealed, .. }: &Ready<'_, F::Frame>| allowance.take(sealed.behind as u64);
        let fitting = match is_ample {
            true => ready.len(),
            false => ready.iter().map(fits).take_while(|fits| *fits).count(),
        };
        if fitting < ready.len() {
            sa.lifetime.end();
        }
        let Numbers { range, short } = sa.take_numbers(fitting as u64);
        let identification = self.identifications.take(outer, fitting);
        let mut writer = outer.writer();
        let numbered = ready.iter_mut().zip(range.into_iter().flatten()).enumerate().map(
            |(index, (Ready { payload, packet, next_header, length, sealed, split, frame }, number))| {
                let bytes = match *payload {
                    Payload::Received { index } => &burst[index].frame[HEADER_LENGTH..][..*length],
                    Payload::Room { start } => &fragments[start..start + *length],
                };
                let identification = identification.wrapping_add(index as u16);
                let room = &mut frame[HEADER_LENGTH..sealed.of_frame(sa)];
                let (split, inner) = (split.as_ref(), (*packet, *next_header, bytes));
                (write_headers(outer, &mut writer, inner, *sealed, split, room, identification), number)
            },
        );
        let mut sealed = 0;
        match &sa.keys {
            OutboundKeys::Esp(sealer) => {
                let mut seals = ArrayVec::<Seal<'_>, BURST>::new();
                for (Placed { behind, payload, next_header, .. }, sequence) in numbered {
                    seals.push(Seal { esp: behind, payload, next_header, sequence });
                }
                sealed += seals.len();
                sealer.seal(sa.spec.sa.spi, &mut seals, &mut self.own.ivs);
            }
            OutboundKeys::Ah(signer) => {
                let mut room = &mut self.own.covered[..];
                let mut signs = ArrayVec::<Sign<'_>, BURST>::new();
                for (Placed { headers, behind, payload, next_header }, sequence) in numbered {
                    let (ah, behind) = behind.split_at_mut(sa.layout.length(0));
                    let (covered, rest) = std::mem::take(&mut room).split_at_mut(headers.len() + ah.len());
                    room = rest;
                    let is_covered =
                        ah::cover(&mut covered[..headers.len()], headers, sa.outer.version(), Role::Sender);
                    debug_assert!(is_covered, "`split` looked at them");
                    let header = AhHeader {
                        next_header,
                        length: ah.len() as u16,
                        spi: sa.spec.sa.spi,
                        sequence_low: 0,
                    };
                    let fixed = header.to_bytes();
                    ah[..fixed.len()].copy_from_slice(&fixed);
                    let copy = &mut behind[..payload.len() + signer.tail_length()];
                    copy[..payload.len()].copy_from_slice(payload);
                    signs.push(Sign { covered, ah, payload: copy, sequence });
                }
                sealed += signs.len();
                signer.sign(sa.spec.sa.spi, &mut signs);
            }
        }

        let refused = match short {
            _ if sa.lifetime.is_over() => DropReason::HardLifetime,
            Exhausted::Lease => DropReason::LeaseExhausted,
            Exhausted::Sequence => DropReason::SequenceExhausted,
        };
        let mut bytes = 0;
        let is_udp_ipv6 = sa.outer.udp_ports.is_some() && sa.outer.version() == IpVersion::V6;
        for (position, Ready { sealed: lengths, payload, length, mut frame, .. }) in
            ready.drain(..).enumerate()
        {
            if position < sealed {
                if is_udp_ipv6 {
                    let packet = &mut frame[HEADER_LENGTH..HEADER_LENGTH + lengths.sum()];
                    natt::checksum_ipv6(packet, lengths.headers - udp::HEADER_LENGTH);
                }
                bytes += lengths.behind as u64;
                self.send_sealed(group, frame, lengths.sum());
            } else {
                self.frames.give_back(group.egress.id, frame);
                self.drop_ready(refused, burst, sa, &payload, length);
            }
        }
        self.tally.sealed += sealed as u64;
        if sealed > 0 {
            sa.sealed(sealed as u64, bytes);
        }
    }

    /// Drops a packet that got no number.
    #[cold]
    fn drop_ready(
        &mut self,
        reason: DropReason,
        burst: &[Received<'_>],
        sa: &OutboundSa,
        payload: &Payload,
        length: usize,
    ) {
        self.tally.drop(reason);
        let scene = self.scene();
        let Own { audit, fragments, .. } = &mut *self.own;
        let evidence = match *payload {
            Payload::Received { index } => Evidence::received(&burst[index]),
            Payload::Room { start } => Evidence::made(&fragments[start..start + length]),
        };
        audit.keep(reason, &evidence.outbound(&sa.spec.sa), &scene);
    }

    /// Transmits a sealed packet, if it does not go through another tunnel first.
    #[inline(always)]
    fn send_sealed(&mut self, group: &Group<'g>, frame: F::Frame, length: usize) {
        if length <= group.leaves_up_to {
            return self.emit(&group.egress, group.sa.outer.version(), frame, length);
        }
        self.send_otherwise(group, frame, length);
    }

    /// Into the next tunnel, or in fragments: it is larger than the way carries.
    #[cold]
    fn send_otherwise(&mut self, group: &Group<'g>, frame: F::Frame, length: usize) {
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

/// Where ESP or AH goes in a packet under `sa`, `None` in tunnel mode; everything about its headers that can refuse it.
/// `covered`: where they are put together for AH, to see whether they can be.
fn split(
    sa: &OutboundSa,
    bytes: &[u8],
    packet: &IpPacket,
    covered: &mut [u8],
) -> Result<Option<Split>, DropReason> {
    let Mode::Transport(rule) = sa.spec.sa.mode else { return Ok(None) };
    // RFC 4303 section 3.3.4: "transport mode is applied only to whole IP datagrams".
    if packet.fragment != Fragment::Whole {
        return Err(DropReason::TransportFragment);
    }
    // The policy led here, and selectors are the endpoints (`SaSpec::validate`); a template is not bent to others.
    if (packet.flow.source, packet.flow.destination) != (sa.outer.source, sa.outer.destination) {
        return Err(DropReason::SelectorMismatch);
    }
    let split = transport::split(bytes, packet, rule);
    let headers = &bytes[..usize::from(split.at)];
    if let Layout::Ah(_) = sa.layout
        && (headers.len() > COVERED_HEADERS
            || !ah::cover(&mut covered[..headers.len()], headers, packet.version, Role::Sender))
    {
        return Err(DropReason::AhHeaders);
    }
    Ok(Some(split))
}

/// A packet in its transmit frame, headers written.
struct Placed<'f, 'b> {
    headers: &'f [u8],
    /// Room for ESP or AH and what follows.
    behind: &'f mut [u8],
    /// What is to be protected, where it came from.
    payload: &'b [u8],
    next_header: u8,
}

/// Writes the IP headers of `bytes` into `room`: `outer` in tunnel mode, its own in transport mode.
#[inline(always)]
fn write_headers<'f, 'b>(
    outer: &OuterHeader,
    writer: &mut Writer<'_>,
    (packet, next_header, bytes): (&IpPacket, u8, &'b [u8]),
    sealed: Lengths,
    split: Option<&Split>,
    room: &'f mut [u8],
    identification: u16,
) -> Placed<'f, 'b> {
    let (headers_length, behind_length) = (sealed.headers, sealed.behind);
    let (headers, behind) = room.split_at_mut(headers_length);
    let (payload, next_header) = match split {
        None => {
            writer.write(headers, packet, behind_length, identification);
            (bytes, next_header)
        }
        Some(split) => {
            let (own, payload) = bytes.split_at(split.at.into());
            let (ip, udp) = headers.split_at_mut(own.len());
            ip.copy_from_slice(own);
            let carried = udp.len() + behind_length;
            let protocol = match outer.udp_ports {
                None => outer.protocol,
                Some((source, destination)) => {
                    // `prepare` bounds the packet.
                    udp.copy_from_slice(
                        &UdpHeader { source, destination, length: carried as u16 }.to_bytes(),
                    );
                    protocol::UDP
                }
            };
            transport::rewrite(ip, packet.version, split.named_at, protocol, carried);
            (payload, split.next_header)
        }
    };
    Placed { headers, behind, payload, next_header }
}

/// Bytes of a UDP header in front of ESP.
#[inline(always)]
fn in_udp(sa: &OutboundSa) -> usize {
    if sa.outer.udp_ports.is_some() { udp::HEADER_LENGTH } else { 0 }
}

/// How ESP and AH call a whole packet.
fn as_next_header(version: IpVersion) -> u8 {
    match version {
        IpVersion::V4 => protocol::IPV4,
        IpVersion::V6 => protocol::IPV6,
    }
}

/// How long a sealed packet is.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// The IP headers in front of ESP or AH, UDP's too.
    headers: usize,
    /// ESP, or AH, and all that follows.
    behind: usize,
}

impl Lengths {
    /// Of a packet of `length` bytes under `sa`.
    #[inline(always)]
    pub(super) fn new(sa: &OutboundSa, split: Option<&Split>, length: usize) -> Self {
        match split {
            None => Self { headers: sa.outer.length(), behind: sa.layout.length(length) },
            Some(split) => {
                let own = usize::from(split.at);
                Self { headers: own + in_udp(sa), behind: sa.layout.length(length - own) }
            }
        }
    }

    fn sum(self) -> usize {
        self.headers + self.behind
    }

    /// Bytes of a frame that are written for it.
    #[inline(always)]
    fn of_frame(self, sa: &OutboundSa) -> usize {
        let tail = match &sa.keys {
            OutboundKeys::Esp(_) => 0,
            OutboundKeys::Ah(signer) => signer.tail_length(),
        };
        HEADER_LENGTH + self.sum() + tail
    }
}
