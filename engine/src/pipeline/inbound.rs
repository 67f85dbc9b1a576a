//! Inbound ESP and AH (RFC 4303 and RFC 4302 section 3.4, RFC 4301 section 5.2): SA, replay check, verification and
//! decryption of the group, replay commit, then everything the packet inside must prove before it goes on.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use zeroize::Zeroize;

use super::admission::{Admitted, Way};
use super::audit::Evidence;
use super::nesting::Nested;
use super::scratch::{Groups, Place};
use super::{BURST, COVERED_HEADERS, DropReason, Frames, Pass, Received, datagram};
use crate::crypto::{IcvValid, Open, Opener, Verifier, Verify};
use crate::policy::Tunnel;
use crate::route::{PortId, Side};
use crate::sa::InboundSa;
use crate::sa::inbound::InboundKeys;
use crate::sa::lifetime::Allowance;
use crate::sa::replay::{Authenticated, Candidate, Refused};
use crate::sa::selector::Selectors;
use crate::sa::spec::{Mode, UdpPorts};
use crate::transform::ah::{self, Role};
use crate::transform::esp::{self, BadTrailer};
use crate::transform::natt::{self, Datagram};
use crate::transform::transport::{self, Split};
use crate::transform::{Layout, ecn, mss};
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, Fragment, IpPacket, IpVersion, Upper};
use crate::wire::reader::{Reader, Seen};
use crate::wire::{self, Spi, protocol, udp};

/// ESP and AH packets of a burst by SA.
pub(super) type Inbound<'g> = Groups<'g, InboundSa, Sealed>;

/// An ESP or AH packet whose lengths are checked and whose number is not refused yet: where it lies, and what else is
/// needed of what is around it.
pub(super) struct Sealed {
    candidate: Candidate,
    /// Where ESP or AH begins in the frame, and how long it is with all that follows.
    start: u32,
    length: u16,
    /// Bytes that opening it gives: ESP's payload, padding and trailer, or what AH covers behind itself.
    opened_length: u16,
    /// Its frame's place in the burst.
    index: u8,
    /// DSCP and ECN of the outer header.
    traffic_class: u8,
    /// What AH says follows it. ESP says so inside.
    next_header: u8,
    /// Transport mode: where it is to be joined.
    joint: Option<Split>,
}

impl Sealed {
    /// Bytes of the packet's own headers that stay in front of what is opened.
    fn kept(&self) -> usize {
        self.joint.map_or(0, |joint| usize::from(joint.at))
    }

    /// Where in the frame it is opened into that begins and ends.
    fn opened(&self) -> std::ops::Range<usize> {
        let start = HEADER_LENGTH + self.kept();
        start..start + usize::from(self.opened_length)
    }

    /// ESP or AH, and all that follows, in the frame it came in.
    fn bytes<'b>(&self, burst: &'b [Received<'_>]) -> &'b [u8] {
        let start = self.start as usize;
        &burst[usize::from(self.index)].frame[start..start + usize::from(self.length)]
    }

    /// What there is to tell of it when it is dropped.
    fn evidence<'b>(&self, burst: &'b [Received<'_>], sa: &'b InboundSa) -> Evidence<'b> {
        let received = &burst[usize::from(self.index)];
        Evidence::received(received).inbound(&sa.spec.sa).numbered(self.candidate.sequence())
    }

    /// The IP headers in front of that.
    fn headers<'b>(&self, burst: &'b [Received<'_>]) -> &'b [u8] {
        &burst[usize::from(self.index)].frame[HEADER_LENGTH..self.start as usize]
    }
}

/// What an ESP or AH header says before its SA is known.
struct Outside<'f> {
    spi: Spi,
    sequence_low: u32,
    ah: Option<wire::ah::AhHeader>,
    /// ESP or AH and all that follows.
    sealed: &'f [u8],
    in_udp: bool,
}

/// A packet with the transmit frame its plaintext goes into.
struct Taken<'p, F> {
    sealed: &'p Sealed,
    port: PortId,
    frame: F,
}

/// What becomes of the packets of a group, in its order.
type Outcomes = ArrayVec<Result<(), DropReason>, BURST>;

/// Whether packets of an SA are authentic, and whether those that are, are new.
struct Judgement<'s> {
    sa: &'s InboundSa,
    /// No number above it is accepted now.
    ceiling: u64,
    outcomes: Outcomes,
    /// The numbers of what is authentic, and their places in the group.
    authentic: ArrayVec<Authenticated, BURST>,
    places: ArrayVec<u8, BURST>,
}

impl<'s> Judgement<'s> {
    fn of(sa: &'s InboundSa) -> Self {
        let ceiling = sa.lease.as_ref().map_or(u64::MAX, |lease| lease.ceiling());
        let (outcomes, authentic, places) = (ArrayVec::new(), ArrayVec::new(), ArrayVec::new());
        Self { sa, ceiling, outcomes, authentic, places }
    }

    /// What the ICV of the next packet says.
    #[inline(always)]
    fn hear(&mut self, candidate: Candidate, verdict: Option<IcvValid>) {
        let sequence = candidate.sequence();
        let outcome = match verdict.and_then(|proof| candidate.authenticate(proof)) {
            None => Err(DropReason::IcvFailed),
            // What is not recorded as received yet is not received: a crash now would forget it. Only an
            // authentic number calls for a higher record, so nobody else can spend the numbers of an SA.
            Some(_) if sequence > self.ceiling => {
                self.sa.lease.iter().for_each(|lease| lease.reach(sequence));
                Err(DropReason::ReplayFloor)
            }
            Some(number) => {
                // A group is a burst at most.
                self.places.push(self.outcomes.len() as u8);
                self.authentic.push(number);
                Ok(())
            }
        };
        self.outcomes.push(outcome);
    }

    /// Marks the numbers of what is authentic as received. Looks again: copies in one burst, or at two workers, all
    /// passed the check.
    fn commit(mut self) -> Outcomes {
        self.sa.replay.commit_group(&self.authentic, |number, refused| {
            self.outcomes[usize::from(self.places[number])] = Err(replay_reason(refused));
        });
        self.outcomes
    }
}

/// How an inner packet goes on.
#[derive(Clone, Copy)]
enum Sent {
    /// In the frame it was decrypted into.
    InPlace { version: IpVersion, length: u32 },
    /// To the gateway itself, from the frame it was decrypted into.
    Delivered { length: u32 },
    /// To an SA inside this one, likewise.
    Again { length: u32, outer: usize },
    /// In frames of its egress; the one it was decrypted into is free again.
    Copied,
}

/// What a group adds to its SA's counters.
#[derive(Default)]
struct GroupCount {
    /// With a right ICV and a new number.
    verified: u64,
    verified_bytes: u64,
    packets: u64,
    bytes: u64,
    replayed: u64,
    icv_failed: u64,
    refused: u64,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// As [`Pass::sort`], for ESP of the flow of an earlier packet of the burst that was this SA's: whose they are has been found out. `None`, and nothing done, for anything else; what there is to refuse, `sort`
    /// refuses.
    #[inline(always)]
    pub(super) fn sort_alike(
        &mut self,
        index: usize,
        received: &Received<'_>,
        Seen { like, total_length, flow }: &Seen<'_>,
        inbound: &mut Inbound<'g>,
    ) -> Option<()> {
        let (known, port, sa) = self.memo.alike?;
        if *flow != Some(known) || received.port != port {
            return None;
        }
        let start = HEADER_LENGTH + usize::from(like.payload_offset);
        let esp = received.frame.get(start..HEADER_LENGTH + *total_length as usize)?;
        let header = wire::esp::parse(esp).ok()?;
        let Layout::Esp(layout) = &sa.layout else { return None };
        if header.spi != sa.spec.sa.spi {
            return None;
        }
        let sealed = Sealed {
            opened_length: layout.ciphertext_length(esp.len())? as u16,
            candidate: sa.replay.check(header.sequence_low).ok()?,
            index: index as u8,
            traffic_class: like.traffic_class,
            next_header: protocol::NO_NEXT_HEADER,
            start: start as u32,
            length: esp.len() as u16,
            joint: None,
        };
        inbound.push(sa, sealed);
        Some(())
    }

    /// ESP or AH to one of our addresses: finds the SA, checks lengths and number, and joins the SA's group.
    pub(super) fn sort_sealed(
        &mut self,
        index: usize,
        frame: &[u8],
        packet: &IpPacket,
        inbound: &mut Inbound<'g>,
    ) -> Result<(), DropReason> {
        // RFC 4303 and RFC 4302 section 3.4.1: never a fragment. `sort` sees to that.
        debug_assert_eq!(packet.fragment, Fragment::Whole);
        let datagram = datagram(frame, packet);
        let outside = read_outside(packet.flow.protocol, datagram)?;
        let sealed = outside.sealed;
        let in_front = if outside.in_udp { udp::HEADER_LENGTH } else { 0 };
        let start = HEADER_LENGTH + usize::from(packet.payload_offset) + in_front;
        let sa = match self.memo.sa {
            Some((spi, sa)) if spi == outside.spi => sa,
            _ => {
                let sa = self.sad.lookup(outside.spi, self.guard).ok_or(DropReason::NoState)?;
                self.memo.sa = Some((outside.spi, sa));
                sa
            }
        };
        let spec = &sa.spec.sa;
        let to_port = match packet.flow.upper {
            Upper::Ports { destination, .. } if outside.in_udp => Some(destination),
            _ => None,
        };
        if packet.flow.destination != spec.local
            // Behind a NAT the peer may be anywhere; the ICV says whether it is the peer. Transport mode is with an
            // address: there only the port may be another.
            || (packet.flow.source != spec.remote && (!outside.in_udp || spec.mode != Mode::Tunnel))
            || outside.ah.is_some() != (spec.protocol.number() == protocol::AH)
            || to_port != spec.udp.map(UdpPorts::local)
        {
            return Err(DropReason::NoState);
        }
        let refuse = |reason| {
            sa.counters.refused.fetch_add(1, Ordering::Relaxed);
            reason
        };
        let opened_length = match (&sa.layout, &outside.ah) {
            (Layout::Esp(layout), _) => layout.ciphertext_length(sealed.len()).ok_or(DropReason::EspTooShort),
            (Layout::Ah(layout), Some(header)) => {
                layout.payload_length(header, sealed.len()).ok_or(DropReason::AhLength)
            }
            (Layout::Ah(_), None) => Err(DropReason::NoState),
        }
        .map_err(refuse)?;
        let joint = match spec.mode {
            Mode::Tunnel => None,
            Mode::Transport(_) => {
                let joint = transport::joint(&frame[HEADER_LENGTH..], packet);
                Some(joint.ok_or(DropReason::Malformed).map_err(refuse)?)
            }
        };
        let candidate = sa.replay.check(outside.sequence_low).map_err(|refused| {
            sa.counters.replayed.fetch_add(1, Ordering::Relaxed);
            replay_reason(refused)
        })?;
        let sealed = Sealed {
            candidate,
            // A burst is at most 64 packets, and what an IP packet carries at most 65,535 bytes.
            index: index as u8,
            traffic_class: packet.traffic_class,
            next_header: outside.ah.map_or(protocol::NO_NEXT_HEADER, |header| header.next_header),
            start: start as u32,
            length: sealed.len() as u16,
            opened_length: opened_length as u16,
            joint,
        };
        inbound.push(sa, sealed);
        Ok(())
    }

    /// Verifies and decrypts a group of one SA at once, then lets each packet prove itself.
    pub(super) fn open_group<'p>(
        &mut self,
        burst: &[Received<'_>],
        sa: &'g InboundSa,
        group: impl Iterator<Item = &'p Sealed>,
        reader: &mut Reader,
    ) {
        if sa.lifetime.is_over() {
            return self.refuse_group(DropReason::HardLifetime, burst, sa, group);
        }
        let mut count = GroupCount::default();
        // Filled and drained in place: these arrays are kilobytes, too much to move about.
        let mut taken = ArrayVec::<Taken<'_, F::Frame>, BURST>::new();
        let mut judgement = Judgement::of(sa);
        let tail = tail_length(sa);
        for sealed in group {
            match self.take_inside(sealed.opened().end + tail) {
                Ok((port, frame)) => taken.push(Taken { sealed, port, frame }),
                Err(reason) => {
                    count.refused += 1;
                    self.drop(reason, &sealed.evidence(burst, sa));
                }
            }
        }
        match &sa.keys {
            InboundKeys::Esp(opener) => open(burst, opener, &mut taken, &mut judgement),
            InboundKeys::Ah(verifier) => {
                self.verify(burst, sa, verifier, &mut taken, &mut judgement, &mut count);
            }
        }
        let outcomes = judgement.commit();
        // What most SAs are is decided here, not for every packet.
        match is_plain(sa) {
            true => self.send_group::<true>(burst, sa, &mut taken, &outcomes, &mut count, reader),
            false => self.send_group::<false>(burst, sa, &mut taken, &outcomes, &mut count, reader),
        }
        if let Some(lease) = &sa.lease {
            lease.reach(sa.replay.right_edge());
        }
        self.tally.opened += count.packets;
        count.write_down(sa);
    }

    /// Refuses all of a group.
    #[cold]
    pub(super) fn refuse_group<'p>(
        &mut self,
        reason: DropReason,
        burst: &[Received<'_>],
        sa: &InboundSa,
        group: impl Iterator<Item = &'p Sealed>,
    ) {
        for sealed in group {
            sa.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.drop(reason, &sealed.evidence(burst, sa));
        }
    }

    /// Sends on what is authentic and new, once each packet has proven the rest. `PLAIN`: ESP in tunnel mode, not in UDP.
    #[inline(always)]
    fn send_group<const PLAIN: bool>(
        &mut self,
        burst: &[Received<'_>],
        sa: &'g InboundSa,
        taken: &mut ArrayVec<Taken<'_, F::Frame>, BURST>,
        outcomes: &[Result<(), DropReason>],
        count: &mut GroupCount,
        reader: &mut Reader,
    ) {
        let tail = tail_length(sa);
        let mut allowance = sa.allowance();
        let selectors = sa.selectors.load(self.guard);
        self.begin_to_admit(selectors, reader.round());
        for (Taken { sealed, port, mut frame }, outcome) in taken.drain(..).zip(outcomes) {
            if !PLAIN && let Some(joint) = &sealed.joint {
                let headers = &sealed.headers(burst)[..usize::from(joint.at)];
                frame[HEADER_LENGTH..][..headers.len()].copy_from_slice(headers);
            }
            // Last of what is proven of the packet itself, so that a forged or repeated one takes nothing from it.
            let allowed = outcome.and_then(|()| count.spend(&mut allowance, sa, sealed.length));
            let sent = allowed
                .and_then(|()| self.decapsulate::<PLAIN>(sa, sealed, port, &mut frame, selectors, reader));
            let written = || sealed.opened().end + tail;
            let (place, sent) = match sent {
                Ok(sent) => sent,
                Err(reason) => {
                    count.refuse(reason);
                    let inner = &frame[HEADER_LENGTH..sealed.opened().end];
                    self.drop(reason, &sealed.evidence(burst, sa).opened(inner));
                    self.give_back_wiped(port, frame, written());
                    continue;
                }
            };
            count.packets += 1;
            count.bytes += u64::from(sealed.length);
            if !PLAIN
                && sa.spec.sa.udp.is_some()
                && let Some(tunnel) = self.tunnel_of(place)
            {
                self.follow(sa, sealed.candidate.sequence(), sealed.headers(burst), tunnel);
            }
            match sent {
                Sent::InPlace { version, length } => match self.own.admitted.at(place) {
                    Some(Admitted { way: Way::Out { port, link }, .. }) => {
                        self.results.emit(*port, link, version, frame, length as usize);
                    }
                    _ => unreachable!("`decapsulate` saw that it goes out"),
                },
                Sent::Delivered { length } => {
                    let length = length as usize;
                    // Whoever delivers wipes the packet, and does not know of the padding behind it.
                    frame[(HEADER_LENGTH + length).min(written())..written()].zeroize();
                    self.deliver(port, frame, length);
                }
                Sent::Again { length, outer } => {
                    let length = length as usize;
                    frame[(HEADER_LENGTH + length).min(written())..written()].zeroize();
                    self.results.opened.push((Nested { port, frame, length }, outer));
                }
                Sent::Copied => self.give_back_wiped(port, frame, written()),
            }
        }
    }

    /// ESP in UDP: the peer is where its latest packet came from, which a replayed one never is, where there is a
    /// window. `headers`: those of a packet that was authenticated, UDP at their end.
    fn follow(&self, sa: &InboundSa, sequence: u64, headers: &[u8], tunnel: &Tunnel) {
        if sa.spec.replay_window != 0
            && sa.replay.right_edge() == sequence
            && let Some(outbound) = tunnel.outbound.load(self.guard)
            && let Some(in_udp) = &outbound.in_udp
            && let Some((address, port)) = natt::origin(headers)
        {
            in_udp.peer.follow(address, port);
        }
    }

    /// Verifies a group under AH. What its ICVs cover of the headers is put together beside the frames, and what they
    /// cover of the payload is the copy that goes on. What cannot be covered is dropped here and leaves the group.
    fn verify(
        &mut self,
        burst: &[Received<'_>],
        sa: &InboundSa,
        verifier: &Verifier,
        taken: &mut ArrayVec<Taken<'_, F::Frame>, BURST>,
        judgement: &mut Judgement<'_>,
        count: &mut GroupCount,
    ) {
        let mut room = &mut self.own.covered[..];
        let mut verifies = ArrayVec::<Verify<'_>, BURST>::new();
        let mut uncovered = ArrayVec::<usize, BURST>::new();
        for (position, Taken { sealed, frame, .. }) in taken.iter_mut().enumerate() {
            let (headers, carried) = (sealed.headers(burst), sealed.bytes(burst));
            let (ah, payload) = carried.split_at(carried.len() - usize::from(sealed.opened_length));
            // The packet was parsed: its version is right.
            let version = if headers[0] >> 4 == 4 { IpVersion::V4 } else { IpVersion::V6 };
            if headers.len() > COVERED_HEADERS
                || !ah::cover(&mut room[..headers.len()], headers, version, Role::Receiver)
            {
                uncovered.push(position);
                continue;
            }
            let (covered, rest) = std::mem::take(&mut room).split_at_mut(headers.len() + ah.len());
            room = rest;
            let opened = sealed.opened();
            let copy = &mut frame[opened.start..opened.end + verifier.tail_length()];
            copy[..payload.len()].copy_from_slice(payload);
            let sequence = sealed.candidate.sequence();
            verifies.push(Verify { covered, ah, payload: copy, sequence, verdict: None });
        }
        verifier.verify(&mut verifies);
        let verdicts: ArrayVec<_, BURST> = verifies.drain(..).map(|verify| verify.verdict).collect();
        drop(verifies);
        // From the back, so that the places in front of it stay.
        for position in uncovered.into_iter().rev() {
            let Taken { sealed, port, frame } = taken.remove(position);
            self.frames.give_back(port, frame);
            count.refuse(DropReason::AhHeaders);
            self.drop(DropReason::AhHeaders, &sealed.evidence(burst, sa));
        }
        for (Taken { sealed, .. }, verdict) in taken.iter().zip(verdicts) {
            judgement.hear(sealed.candidate, verdict);
        }
    }

    /// A transmit frame of at least `length` bytes for plaintext whose egress is not known yet: of the port that
    /// the last one left by, if that has one.
    #[inline]
    fn take_inside(&mut self, length: usize) -> Result<(PortId, F::Frame), DropReason> {
        if let Some(id) = self.own.inside
            && let Some(port) = self.network.ports.get(usize::from(id.0))
            && port.side == Side::Protected
            && let Ok(frame) = self.take_frame(id, length)
        {
            return Ok((id, frame));
        }
        self.take_anywhere_inside(length)
    }

    /// Or of any protected port that has one. While none is up, the plaintext can only be for the gateway itself, and
    /// any frame will do.
    #[cold]
    fn take_anywhere_inside(&mut self, length: usize) -> Result<(PortId, F::Frame), DropReason> {
        let mut reason = DropReason::NoProtectedRoute;
        let ports = (0..self.network.ports.len()).map(|index| PortId(index as u16));
        for id in ports.clone() {
            if self.network.ports[usize::from(id.0)].side == Side::Protected {
                match self.take_frame(id, length) {
                    Ok(frame) => return Ok((id, frame)),
                    Err(refused) => reason = refused,
                }
            }
        }
        let mut inside = self.network.ports.iter().filter(|port| port.side == Side::Protected);
        if self.frames.host().is_some() && !inside.any(|port| port.up) {
            for id in ports {
                if let Ok(frame) = self.take_frame(id, length) {
                    return Ok((id, frame));
                }
            }
        }
        Err(reason)
    }

    /// What one authentic packet still has to prove, in the order of RFC 4303 section 3.4.4 and RFC 4301 section 5.2, and its way on.
    /// `frame`, a frame of `port`, has it at [`HEADER_LENGTH`], in transport mode with its headers as they came.
    #[inline(always)]
    fn decapsulate<const PLAIN: bool>(
        &mut self,
        sa: &'g InboundSa,
        sealed: &Sealed,
        port: PortId,
        frame: &mut [u8],
        selectors: Option<&Selectors>,
        reader: &mut Reader,
    ) -> Result<(Place, Sent), DropReason> {
        let (opened, kept, joint) = match PLAIN {
            true => (HEADER_LENGTH..HEADER_LENGTH + usize::from(sealed.opened_length), 0, None),
            false => (sealed.opened(), sealed.kept(), sealed.joint),
        };
        let (payload_length, next_header) = match &sa.keys {
            InboundKeys::Ah(_) if !PLAIN => (usize::from(sealed.opened_length), sealed.next_header),
            _ => {
                let trailer = esp::trailer(&frame[opened]).map_err(|bad| match bad {
                    BadTrailer::PadLength => DropReason::BadPadLength,
                    BadTrailer::Padding => DropReason::BadPadding,
                })?;
                (trailer.payload_length, trailer.next_header)
            }
        };
        let version = match (next_header, joint) {
            // RFC 4303 section 2.6: a dummy packet is discarded without prejudice.
            (protocol::NO_NEXT_HEADER, _) => return Err(DropReason::Dummy),
            (protocol::IPV4, None) => IpVersion::V4,
            (protocol::IPV6, None) => IpVersion::V6,
            // The wrong mode: nobody would ask the packet inside what it proves in a tunnel.
            (protocol::IPV4 | protocol::IPV6, Some(_)) | (_, None) => return Err(DropReason::NextHeader),
            (_, Some(joint)) => {
                let version = if sa.spec.sa.local.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
                let headers = &mut frame[HEADER_LENGTH..HEADER_LENGTH + kept];
                transport::rewrite(headers, version, joint.named_at, next_header, payload_length);
                version
            }
        };
        let plaintext = &mut frame[HEADER_LENGTH..HEADER_LENGTH + kept + payload_length];
        // The inner length may be shorter than the payload: traffic-flow confidentiality padding (section 2.7).
        let seen = reader.read(plaintext).map_err(|_| DropReason::InnerMalformed)?;
        let Seen { like: packet, total_length: length, .. } = seen;
        // Transport mode is for whole datagrams (RFC 4303 section 3.3.4).
        if packet.version != version || (joint.is_some() && packet.fragment != Fragment::Whole) {
            return Err(DropReason::InnerMalformed);
        }
        if joint.is_none() {
            const ECN: u8 = 0b11;
            let ecn = ecn::egress(packet.traffic_class & ECN, sealed.traffic_class & ECN)
                .ok_or(DropReason::EcnForbidden)?;
            if ecn != packet.traffic_class & ECN {
                ip::set_traffic_class(plaintext, version, packet.traffic_class & !ECN | ecn);
            }
        } else if sa.spec.sa.udp.is_some() {
            natt::renew_checksum(plaintext, &seen.packet());
        }

        let place = self.admit(sa, &seen, plaintext, selectors)?;
        let port_out = match self.own.admitted.at(place).ok_or(DropReason::NoRoute)?.way {
            Way::Out { port, .. } => port,
            Way::Host if self.frames.host().is_none() => return Err(DropReason::NoHostPath),
            Way::Host => {
                self.clamp_syn(place, plaintext, &seen);
                return Ok((place, Sent::Delivered { length }));
            }
            Way::Again { outer } => return Ok((place, Sent::Again { length, outer })),
        };
        if packet.ttl <= 1 {
            self.refuse_inside(place, plaintext, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        ip::decrement_ttl(plaintext, version);
        self.clamp_syn(place, plaintext, &seen);
        self.own.inside = Some(port_out);
        let mtu = self.network.ports.get(usize::from(port_out.0)).map_or(0, |port| port.mtu);
        // From where it was decrypted, if that is a frame of its egress.
        if port == port_out && length <= mtu {
            return Ok((place, Sent::InPlace { version, length }));
        }
        self.send_copy_inside(place, &seen.packet(), plaintext)?;
        Ok((place, Sent::Copied))
    }

    /// The peer's SYN announces what we will send into the tunnel.
    #[inline(always)]
    fn clamp_syn(&mut self, place: Place, plaintext: &mut [u8], seen: &Seen<'_>) {
        if is_tcp_syn(plaintext, seen)
            && let Some(tunnel) = self.tunnel_of(place)
            && tunnel.clamp_mss
            && let Some(inside_mtu) = self.inside_mtu(tunnel)
        {
            mss::clamp(plaintext, &seen.packet(), inside_mtu);
        }
    }

    /// The inner packet goes on in other frames than the one it was decrypted into.
    #[inline(never)]
    fn send_copy_inside(&mut self, place: Place, packet: &IpPacket, bytes: &[u8]) -> Result<(), DropReason> {
        let egress = self.egress_at(place).ok_or(DropReason::NoRoute)?;
        let sent = self.send_copy(&egress, packet, bytes);
        if sent == Err(DropReason::TooBig) {
            self.refuse_inside(place, bytes, IcmpError::PacketTooBig { mtu: egress.port.mtu });
        }
        sent
    }

    /// Tells the sender of an inner packet why it does not go on.
    #[cold]
    fn refuse_inside(&mut self, place: Place, bytes: &[u8], error: IcmpError) {
        if let Some(egress) = self.egress_at(place) {
            self.originate_error_through_tunnel(&egress, bytes, error);
        }
    }

    /// The SA that an ESP or AH packet names.
    pub(super) fn sa_of(&self, frame: &[u8], packet: &IpPacket) -> Result<&'g InboundSa, DropReason> {
        let outside = read_outside(packet.flow.protocol, datagram(frame, packet))?;
        self.sad.lookup(outside.spi, self.guard).ok_or(DropReason::NoState)
    }

    /// Decrypted bytes do not lie about in free frames.
    pub(super) fn give_back_wiped(&mut self, port: PortId, mut frame: F::Frame, written: usize) {
        frame[HEADER_LENGTH..written].zeroize();
        self.frames.give_back(port, frame);
    }
}

impl GroupCount {
    /// Takes a packet's part of what is left of its SA's life, which ends where it does not fit.
    fn spend(&mut self, allowance: &mut Allowance, sa: &InboundSa, length: u16) -> Result<(), DropReason> {
        if !allowance.take(length.into()) {
            sa.lifetime.end();
            return Err(DropReason::HardLifetime);
        }
        self.verified += 1;
        self.verified_bytes += u64::from(length);
        Ok(())
    }

    fn refuse(&mut self, reason: DropReason) {
        match reason {
            DropReason::ReplayDuplicate | DropReason::ReplayOld | DropReason::ReplayImpossible => {
                self.replayed += 1;
            }
            DropReason::IcvFailed => self.icv_failed += 1,
            _ => self.refused += 1,
        }
    }

    fn write_down(&self, sa: &InboundSa) {
        if self.verified > 0 {
            sa.verified(self.verified, self.verified_bytes);
        }
        for (counter, count) in [
            (&sa.counters.packets, self.packets),
            (&sa.counters.bytes, self.bytes),
            (&sa.counters.replayed, self.replayed),
            (&sa.counters.icv_failed, self.icv_failed),
            (&sa.counters.refused, self.refused),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// SPI and number, where each protocol has them.
fn read_outside(protocol: u8, datagram: &[u8]) -> Result<Outside<'_>, DropReason> {
    if protocol == protocol::AH {
        let header = wire::ah::parse(datagram).map_err(|_| DropReason::AhLength)?;
        let (spi, sequence_low) = (header.spi, header.sequence_low);
        return Ok(Outside { spi, sequence_low, ah: Some(header), sealed: datagram, in_udp: false });
    }
    let (sealed, in_udp) = match protocol {
        protocol::UDP => match natt::read(datagram) {
            Ok(Datagram::Esp(esp)) => (esp, true),
            _ => return Err(DropReason::Malformed),
        },
        _ => (datagram, false),
    };
    let header = wire::esp::parse(sealed).map_err(|_| DropReason::EspTooShort)?;
    Ok(Outside { spi: header.spi, sequence_low: header.sequence_low, ah: None, sealed, in_udp })
}

/// Verifies and decrypts a group under ESP.
fn open<F: std::ops::DerefMut<Target = [u8]>>(
    burst: &[Received<'_>],
    opener: &Opener,
    taken: &mut ArrayVec<Taken<'_, F>, BURST>,
    judgement: &mut Judgement<'_>,
) {
    let mut opens = ArrayVec::<Open<'_>, BURST>::new();
    let mut candidates = ArrayVec::<Candidate, BURST>::new();
    for Taken { sealed, frame, .. } in taken.iter_mut() {
        candidates.push(sealed.candidate);
        opens.push(Open {
            esp: sealed.bytes(burst),
            plaintext: &mut frame[sealed.opened()],
            sequence: sealed.candidate.sequence(),
            verdict: None,
        });
    }
    opener.open(&mut opens);
    for (open, candidate) in opens.drain(..).zip(candidates) {
        judgement.hear(candidate, open.verdict);
    }
}

/// Whether an SA is for ESP in tunnel mode, not in UDP.
pub(super) fn is_plain(sa: &InboundSa) -> bool {
    let spec = &sa.spec.sa;
    matches!(sa.keys, InboundKeys::Esp(_)) && spec.mode == Mode::Tunnel && spec.udp.is_none()
}

/// Bytes of a frame that are written behind what a packet is opened into.
fn tail_length(sa: &InboundSa) -> usize {
    match &sa.keys {
        InboundKeys::Esp(_) => 0,
        InboundKeys::Ah(verifier) => verifier.tail_length(),
    }
}

fn replay_reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Duplicate => DropReason::ReplayDuplicate,
        Refused::TooOld => DropReason::ReplayOld,
        Refused::Impossible => DropReason::ReplayImpossible,
    }
}

/// Only a SYN carries an MSS; the route for everything else need not be asked.
#[inline(always)]
fn is_tcp_syn(bytes: &[u8], Seen { like, total_length, .. }: &Seen<'_>) -> bool {
    const FLAGS: usize = 13;
    const SYN: u8 = 0x02;
    like.flow.protocol == protocol::TCP
        && like.fragment != Fragment::Later
        && bytes[..*total_length as usize]
            .get(usize::from(like.payload_offset) + FLAGS)
            .is_some_and(|flags| flags & SYN != 0)
}
