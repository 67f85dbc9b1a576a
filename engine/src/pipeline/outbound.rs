//! Outbound PROTECT (RFC 4303 and RFC 4302 section 3.3, RFC 4301 section 5.1): size, TTL, numbers for the group,
//! headers, encryption and authentication of the group.

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::nesting::WayOut;
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
use crate::transform::natt;
use crate::transform::transport::{self, Split};
use crate::transform::tunnel::{OuterHeader, Writer};
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
    pub(super) outside_mtu: u32,
    /// The same, where nothing else is to be done with it.
    leaves_up_to: usize,
    /// How the tunnel carries that this one goes through.
    pub(super) carrier: Option<Mode>,
    /// What a tunnel carries; in transport mode it depends on the packet's own headers.
    pub(super) tunnel_mtu: u32,
    /// For traffic-flow confidentiality.
    pub(super) padding: Padding,
    clamp_mss: bool,
    pub(super) fragmentation: Fragmentation,
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

    /// The same under another header.
    pub(super) fn under(&self, outer: OuterHeader) -> Self {
        Self { outer, ..*self }
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
pub(super) fn as_next_header(version: IpVersion) -> u8 {
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

    pub(super) fn sum(self) -> usize {
        self.headers + self.behind
    }

    /// Bytes of a frame that are written for it.
    #[inline(always)]
    pub(super) fn of_frame(self, sa: &OutboundSa) -> usize {
        let tail = match &sa.keys {
            OutboundKeys::Esp(_) => 0,
            OutboundKeys::Ah(signer) => signer.tail_length(),
        };
        HEADER_LENGTH + self.sum() + tail
    }
}
