//! Inbound ESP (RFC 4303 section 3.4, RFC 4301 section 5.2): SA, replay check, verification and decryption of
//! the group, replay commit, then everything the inner packet must prove before it goes on.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use zeroize::Zeroize;

use super::scratch::{Egress, Groups, Route};
use super::{BURST, DropReason, Frames, Pass, Received};
use crate::crypto::{IcvValid, Open};
use crate::policy::{Action, Tunnel};
use crate::route::{PortId, Side};
use crate::sa::InboundSa;
use crate::sa::replay::{Candidate, Refused};
use crate::sa::selector::Direction;
use crate::transform::esp::{self, BadTrailer};
use crate::transform::{ecn, mss};
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, Flow, Fragment, IpPacket, IpVersion};
use crate::wire::{self, protocol};

/// ESP packets of a burst by SA.
pub(super) type Inbound<'g> = Groups<'g, InboundSa, Sealed>;

/// An ESP packet whose lengths are checked and whose number is not refused yet.
pub(super) struct Sealed {
    /// Its place in the burst.
    index: u8,
    /// Where ESP begins in the frame, and how long it is.
    start: u32,
    length: u16,
    ciphertext_length: u16,
    /// DSCP and ECN of the outer header.
    traffic_class: u8,
    candidate: Candidate,
}

/// A packet with the transmit frame its plaintext goes into.
struct Taken<F> {
    sealed: Sealed,
    port: PortId,
    frame: F,
}

/// How an inner packet goes on.
enum Sent<'g> {
    /// In the frame it was decrypted into.
    InPlace { egress: Egress<'g>, version: IpVersion, length: usize },
    /// In frames of its egress; the one it was decrypted into is free again.
    Copied,
}

/// What a group adds to its SA's counters.
#[derive(Default)]
struct GroupCount {
    packets: u64,
    bytes: u64,
    replayed: u64,
    icv_failed: u64,
    refused: u64,
}

/// The last flow of a group that selectors and policy let through: the next packet is mostly the same flow's.
type Admitted<'g> = Option<(Flow, Fragment, Protection<'g>)>;

/// The policy that wants a packet protected, by its place, and the tunnel it names.
#[derive(Clone, Copy)]
struct Protection<'g> {
    policy: usize,
    tunnel: &'g Tunnel,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// ESP to one of our addresses: finds the SA, checks lengths and number, and joins the SA's group.
    pub(super) fn sort_esp(
        &mut self,
        index: usize,
        frame: &[u8],
        packet: &IpPacket,
        inbound: &mut Inbound<'g>,
    ) -> Result<(), DropReason> {
        // RFC 4303 section 3.4.1: a fragment that reaches ESP is discarded.
        if packet.fragment != Fragment::Whole {
            return Err(DropReason::EspFragment);
        }
        let start = HEADER_LENGTH + usize::from(packet.payload_offset);
        let esp = &frame[start..HEADER_LENGTH + packet.total_length as usize];
        let header = wire::esp::parse(esp).map_err(|_| DropReason::EspTooShort)?;
        let sa = match self.memo.sa {
            Some((spi, sa)) if spi == header.spi => sa,
            _ => {
                let sa = self.sad.lookup(header.spi, self.guard).ok_or(DropReason::NoState)?;
                self.memo.sa = Some((header.spi, sa));
                sa
            }
        };
        if packet.flow.destination != sa.spec.sa.local || packet.flow.source != sa.spec.sa.remote {
            return Err(DropReason::NoState);
        }
        let Some(ciphertext_length) = sa.layout.ciphertext_length(esp.len()) else {
            sa.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(DropReason::EspTooShort);
        };
        let candidate = sa.replay.check(header.sequence_low).map_err(|refused| {
            sa.counters.replayed.fetch_add(1, Ordering::Relaxed);
            replay_reason(refused)
        })?;
        let sealed = Sealed {
            // A burst is at most 64 packets, and what an IP packet carries at most 65,535 bytes.
            index: index as u8,
            start: start as u32,
            length: esp.len() as u16,
            ciphertext_length: ciphertext_length as u16,
            traffic_class: packet.traffic_class,
            candidate,
        };
        inbound.push(sa, sealed);
        Ok(())
    }

    /// Verifies and decrypts a group of one SA at once, then lets each packet prove itself.
    pub(super) fn open_group(
        &mut self,
        burst: &[Received<'_>],
        sa: &'g InboundSa,
        group: impl Iterator<Item = Sealed>,
    ) {
        let mut count = GroupCount::default();
        let mut taken = ArrayVec::<Taken<F::Frame>, BURST>::new();
        for sealed in group {
            match self.take_inside(HEADER_LENGTH + usize::from(sealed.ciphertext_length)) {
                Ok((port, frame)) => taken.push(Taken { sealed, port, frame }),
                Err(reason) => {
                    count.refused += 1;
                    self.tally.drop(reason);
                }
            }
        }

        // Filled and drained in place: these arrays are kilobytes, too much to move about.
        let mut opens = ArrayVec::<Open<'_>, BURST>::new();
        for Taken { sealed, frame, .. } in &mut taken {
            let (start, length) = (sealed.start as usize, usize::from(sealed.length));
            opens.push(Open {
                esp: &burst[usize::from(sealed.index)].frame[start..start + length],
                plaintext: &mut frame[HEADER_LENGTH..HEADER_LENGTH + usize::from(sealed.ciphertext_length)],
                sequence: sealed.candidate.sequence(),
                verdict: None,
            });
        }
        sa.opener.open(&mut opens);
        let mut verdicts = ArrayVec::<Option<IcvValid>, BURST>::new();
        for open in opens.drain(..) {
            verdicts.push(open.verdict);
        }
        drop(opens);

        let mut admitted: Admitted<'g> = None;
        for (Taken { sealed, port, mut frame }, verdict) in taken.drain(..).zip(verdicts.drain(..)) {
            let esp_length = u64::from(sealed.length);
            let plaintext_length = usize::from(sealed.ciphertext_length);
            let sent = self.decapsulate(sa, sealed, verdict, port, &mut frame, &mut admitted);
            match sent {
                Ok(_) => {
                    count.packets += 1;
                    count.bytes += esp_length;
                }
                Err(reason) => {
                    count.refuse(reason);
                    self.tally.drop(reason);
                }
            }
            match sent {
                Ok(Sent::InPlace { egress, version, length }) => self.emit(&egress, version, frame, length),
                Ok(Sent::Copied) | Err(_) => self.give_back_wiped(port, frame, plaintext_length),
            }
        }
        if let Some(lease) = &sa.lease {
            lease.reach(sa.replay.right_edge());
        }
        self.tally.opened += count.packets;
        count.write_down(sa);
    }

    /// A transmit frame of at least `length` bytes for plaintext whose egress is not known yet: of the port that
    /// the last one left by, or of any protected port that has one.
    fn take_inside(&mut self, length: usize) -> Result<(PortId, F::Frame), DropReason> {
        let mut reason = DropReason::NoProtectedRoute;
        let others = (0..self.network.ports.len()).map(|index| PortId(index as u16));
        for id in self.own.inside.into_iter().chain(others) {
            match self.network.ports.get(usize::from(id.0)) {
                Some(port) if port.side == Side::Protected => match self.take_frame(id, length) {
                    Ok(frame) => return Ok((id, frame)),
                    Err(refused) => reason = refused,
                },
                _ => {}
            }
        }
        Err(reason)
    }

    /// One decrypted packet's proofs, in the order of RFC 4303 section 3.4.4 and RFC 4301 section 5.2, and its way
    /// on. `frame`, a frame of `port`, has the inner packet at [`HEADER_LENGTH`].
    fn decapsulate(
        &mut self,
        sa: &'g InboundSa,
        sealed: Sealed,
        verdict: Option<IcvValid>,
        port: PortId,
        frame: &mut [u8],
        admitted: &mut Admitted<'g>,
    ) -> Result<Sent<'g>, DropReason> {
        let proof = verdict.ok_or(DropReason::IcvFailed)?;
        let number = sealed.candidate.authenticate(proof).ok_or(DropReason::IcvFailed)?;
        // What is not recorded as received yet is not received: a crash now would forget it. Only an authentic
        // number calls for a higher record, so nobody else can spend the numbers of an SA.
        if let Some(lease) = &sa.lease
            && number.sequence() > lease.ceiling()
        {
            lease.reach(number.sequence());
            return Err(DropReason::ReplayFloor);
        }
        sa.replay.commit(number).map_err(replay_reason)?;

        let plaintext = &mut frame[HEADER_LENGTH..HEADER_LENGTH + usize::from(sealed.ciphertext_length)];
        let trailer = esp::trailer(plaintext).map_err(|bad| match bad {
            BadTrailer::PadLength => DropReason::BadPadLength,
            BadTrailer::Padding => DropReason::BadPadding,
        })?;
        let version = match trailer.next_header {
            protocol::IPV4 => IpVersion::V4,
            protocol::IPV6 => IpVersion::V6,
            // RFC 4303 section 2.6: a dummy packet is discarded without prejudice.
            protocol::NO_NEXT_HEADER => return Err(DropReason::Dummy),
            _ => return Err(DropReason::NextHeader),
        };
        // The inner length may be shorter than the payload: traffic-flow confidentiality padding (section 2.7).
        let mut parsed = ip::parse(&plaintext[..trailer.payload_length]);
        // Borrowed where it was written: moving what was just written waits for the stores.
        let packet = match &mut parsed {
            Ok(packet) if packet.version == version => packet,
            _ => return Err(DropReason::InnerMalformed),
        };
        const ECN: u8 = 0b11;
        let ecn = ecn::egress(packet.traffic_class & ECN, sealed.traffic_class & ECN)
            .ok_or(DropReason::EcnForbidden)?;
        if ecn != packet.traffic_class & ECN {
            packet.traffic_class = packet.traffic_class & !ECN | ecn;
            ip::set_traffic_class(plaintext, version, packet.traffic_class);
        }

        let protection = match *admitted {
            Some((flow, fragment, known)) if flow == packet.flow && fragment == packet.fragment => known,
            _ => self.admit(sa, packet)?,
        };
        *admitted = Some((packet.flow, packet.fragment, protection));
        self.count_policy(protection.policy);

        // Decrypted packets never leave an unprotected interface.
        let egress = match self.route(packet.flow.destination) {
            Route::Local => return Err(DropReason::NoHostPath),
            Route::Port(egress) if egress.port.side == Side::Protected => egress,
            Route::Port(_) | Route::OtherInterface => return Err(DropReason::NoProtectedRoute),
            Route::Unreachable => return Err(DropReason::NoRoute),
        };
        if !egress.port.up {
            return Err(DropReason::LinkDown);
        }
        if packet.ttl <= 1 {
            self.originate_error_through_tunnel(&egress, plaintext, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        ip::decrement_ttl(plaintext, version);
        // The peer's SYN announces what we will send into the tunnel.
        if protection.tunnel.clamp_mss
            && is_tcp_syn(plaintext, packet)
            && let Some(inside_mtu) = self.inside_mtu(protection.tunnel)
        {
            mss::clamp(plaintext, packet, inside_mtu);
        }
        self.send_inside(egress, packet, port, plaintext)
    }

    /// Whether a packet out of `sa` is what the SA was agreed for, and what the policy wants from its tunnel.
    fn admit(&mut self, sa: &InboundSa, packet: &IpPacket) -> Result<Protection<'g>, DropReason> {
        if self.is_our_source(packet.flow.source) {
            return Err(DropReason::InnerSource);
        }
        let mut selectors = sa.selectors.load(self.guard).into_iter().flatten();
        if !selectors.any(|selector| selector.matches(Direction::Inbound, &packet.flow, packet.fragment)) {
            return Err(DropReason::SelectorMismatch);
        }
        let direction = Direction::Inbound;
        let policy = self.own.flows.classify(self.spd, direction, &packet.flow, packet.fragment);
        match policy.and_then(|index| Some((index, &self.spd.policies.get(index)?.action))) {
            Some((policy, Action::Protect(tunnel))) if tunnel.name == sa.spec.sa.tunnel => {
                Ok(Protection { policy, tunnel })
            }
            _ => Err(DropReason::PolicyMismatch),
        }
    }

    /// The inner packet goes from where it was decrypted, if that is a frame of its egress, else from a copy.
    fn send_inside(
        &mut self,
        egress: Egress<'g>,
        packet: &IpPacket,
        port: PortId,
        bytes: &[u8],
    ) -> Result<Sent<'g>, DropReason> {
        self.own.inside = Some(egress.id);
        if port == egress.id && packet.total_length <= egress.port.mtu {
            let length = packet.total_length as usize;
            return Ok(Sent::InPlace { egress, version: packet.version, length });
        }
        let sent = self.send_copy(&egress, packet, bytes);
        if sent == Err(DropReason::TooBig) {
            let mtu = egress.port.mtu;
            self.originate_error_through_tunnel(&egress, bytes, IcmpError::PacketTooBig { mtu });
        }
        sent.map(|()| Sent::Copied)
    }

    /// Decrypted bytes do not lie about in free frames.
    fn give_back_wiped(&mut self, port: PortId, mut frame: F::Frame, plaintext_length: usize) {
        frame[HEADER_LENGTH..HEADER_LENGTH + plaintext_length].zeroize();
        self.frames.give_back(port, frame);
    }
}

impl GroupCount {
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

fn replay_reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Duplicate => DropReason::ReplayDuplicate,
        Refused::TooOld => DropReason::ReplayOld,
        Refused::Impossible => DropReason::ReplayImpossible,
    }
}

/// Only a SYN carries an MSS; the route for everything else need not be asked.
fn is_tcp_syn(bytes: &[u8], packet: &IpPacket) -> bool {
    const FLAGS: usize = 13;
    const SYN: u8 = 0x02;
    packet.flow.protocol == protocol::TCP
        && packet.fragment != Fragment::Later
        && bytes[..packet.total_length as usize]
            .get(usize::from(packet.payload_offset) + FLAGS)
            .is_some_and(|flags| flags & SYN != 0)
}
