//! ESP and AH as they come in (RFC 4303 and RFC 4302 section 3.4): the SA that each packet names, its lengths, its number.

use std::sync::atomic::Ordering;

use super::audit::Evidence;
use super::inbound::Inbound;
use super::sort::datagram;
use super::{DropReason, Frames, Pass, Received};
use crate::sa::InboundSa;
use crate::sa::inbound::InboundKeys;
use crate::sa::replay::{Candidate, Refused};
use crate::sa::spec::{Mode, UdpPorts};
use crate::transform::Layout;
use crate::transform::natt::{self, Datagram};
use crate::transform::transport::{self, Split};
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::ip::{Fragment, IpPacket, Upper};
use crate::wire::reader::Seen;
use crate::wire::{self, Spi, protocol, udp};

/// An ESP or AH packet whose lengths are checked and whose number is not refused yet: where it lies, and what else is
/// needed of what is around it.
pub(super) struct Sealed {
    pub(super) candidate: Candidate,
    /// Where ESP or AH begins in the frame, and how long it is with all that follows.
    pub(super) start: u32,
    pub(super) length: u16,
    /// Bytes that opening it gives: ESP's payload, padding and trailer, or what AH covers behind itself.
    pub(super) opened_length: u16,
    /// Its frame's place in the burst.
    pub(super) index: u8,
    /// DSCP and ECN of the outer header.
    pub(super) traffic_class: u8,
    /// What AH says follows it. ESP says so inside.
    pub(super) next_header: u8,
    /// Transport mode: where it is to be joined.
    pub(super) joint: Option<Split>,
}

impl Sealed {
    /// Bytes of the packet's own headers that stay in front of what is opened.
    pub(super) fn kept(&self) -> usize {
        self.joint.map_or(0, |joint| usize::from(joint.at))
    }

    /// Where in the frame it is opened into that begins and ends.
    pub(super) fn opened(&self) -> std::ops::Range<usize> {
        let start = HEADER_LENGTH + self.kept();
        start..start + usize::from(self.opened_length)
    }

    /// ESP or AH, and all that follows, in the frame it came in.
    pub(super) fn bytes<'b>(&self, burst: &'b [Received<'_>]) -> &'b [u8] {
        let start = self.start as usize;
        &burst[usize::from(self.index)].frame[start..start + usize::from(self.length)]
    }

    /// What there is to tell of it when it is dropped.
    pub(super) fn evidence<'b>(&self, burst: &'b [Received<'_>], sa: &'b InboundSa) -> Evidence<'b> {
        let received = &burst[usize::from(self.index)];
        Evidence::received(received).inbound(&sa.spec.sa).numbered(self.candidate.sequence())
    }

    /// The IP headers in front of that.
    pub(super) fn headers<'b>(&self, burst: &'b [Received<'_>]) -> &'b [u8] {
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

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// As [`Pass::sort`], for ESP of the flow of an earlier packet of the burst that was this SA's: whose they are has
    /// been found out. `None`, and nothing done, for anything else; what there is to refuse, `sort` refuses.
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

    /// The SA that an ESP or AH packet names.
    pub(super) fn sa_of(&self, frame: &[u8], packet: &IpPacket) -> Result<&'g InboundSa, DropReason> {
        let outside = read_outside(packet.flow.protocol, datagram(frame, packet))?;
        self.sad.lookup(outside.spi, self.guard).ok_or(DropReason::NoState)
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

/// Whether an SA is for ESP in tunnel mode, not in UDP.
pub(super) fn is_plain(sa: &InboundSa) -> bool {
    let spec = &sa.spec.sa;
    matches!(sa.keys, InboundKeys::Esp(_)) && spec.mode == Mode::Tunnel && spec.udp.is_none()
}

pub(super) fn replay_reason(refused: Refused) -> DropReason {
    match refused {
        Refused::Duplicate => DropReason::ReplayDuplicate,
        Refused::TooOld => DropReason::ReplayOld,
        Refused::Impossible => DropReason::ReplayImpossible,
    }
}
