//! What there is to tell of a packet where it is dropped: looked at once a second and reason, so plainly.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::reassembly::Remains;
use super::super::{DropReason, Received, Tables};
use super::{Header, Seen};
use crate::policy::Spd;
use crate::route::{Network, PortId, Side};
use crate::sa::InboundSa;
use crate::sa::publish::Guard;
use crate::sa::selector::Direction;
use crate::sa::spec::SaSpec;
use crate::wire::ethernet::{self, HEADER_LENGTH, ether_type};
use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH};
use crate::wire::ip::{self, Flow, Fragment, Upper};
use crate::wire::{Spi, protocol, quote, udp};

/// What is known where a packet is dropped.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct Scene<'g> {
    now: u64,
    spd: &'g Spd,
    network: &'g Network,
    /// The SA that was looked up last.
    latest: Option<(Spi, &'g InboundSa)>,
}

impl<'g> Scene<'g> {
    pub(super) fn new(
        now: u64,
        spd: &'g Spd,
        network: &'g Network,
        latest: Option<(Spi, &'g InboundSa)>,
    ) -> Self {
        Self { now, spd, network, latest }
    }

    /// Between two bursts; `None` while there is no policy, or no picture of the network.
    pub(in crate::pipeline) fn of(tables: &'g Tables, guard: &'g Guard<'_>, now: u64) -> Option<Self> {
        let (spd, network) = (tables.spd.load(guard)?, tables.network.load(guard)?);
        Some(Self { now, spd, network, latest: None })
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }
}

/// A packet that is dropped.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct Evidence<'e> {
    port: PortId,
    bytes: Bytes<'e>,
    /// `None`: by the side of the port it came in by.
    direction: Option<Direction>,
    /// It was finished, and in the frame that it was to leave in.
    is_leaving: bool,
    tunnel: Option<&'e Arc<str>>,
    spi: Option<Spi>,
    sequence: Option<u64>,
    /// Begins at an IP header.
    inner: Option<&'e [u8]>,
}

/// Where it lies.
#[derive(Clone, Copy)]
enum Bytes<'e> {
    /// Behind an Ethernet header, or, of [`PortId::OWN`], behind room for one.
    Framed(&'e [u8]),
    Bare(&'e [u8]),
    /// Not all of it, and not in one piece.
    Parts {
        flow: Flow,
        payload: &'e [u8],
    },
}

impl<'e> Evidence<'e> {
    /// As it was received.
    pub(in crate::pipeline) fn received(received: &'e Received<'_>) -> Self {
        Self::framed(received.port, received.frame)
    }

    /// In this frame, received by `port`.
    pub(in crate::pipeline) fn framed(port: PortId, frame: &'e [u8]) -> Self {
        Self::of(port, Bytes::Framed(frame))
    }

    /// Between two layers: an IP packet of `length` bytes behind room for an Ethernet header.
    pub(in crate::pipeline) fn between(frame: &'e [u8], length: usize) -> Self {
        Self::made(&frame[HEADER_LENGTH..HEADER_LENGTH + length])
    }

    /// A datagram, as far as it was put together.
    pub(in crate::pipeline) fn remains(remains: &Remains<'e>) -> Self {
        let Remains { port, source, destination, protocol, payload } = *remains;
        let upper = match payload {
            [a, b, c, d, ..] if protocol == protocol::UDP => Upper::Ports {
                source: u16::from_be_bytes([*a, *b]),
                destination: u16::from_be_bytes([*c, *d]),
            },
            _ => Upper::Opaque,
        };
        Self::of(port, Bytes::Parts { flow: Flow { source, destination, protocol, upper }, payload })
            .in_pieces()
    }

    /// A finished frame that was to leave by `port`.
    pub(super) fn leaving(port: PortId, frame: &'e [u8]) -> Self {
        Self { is_leaving: true, ..Self::framed(port, frame) }
    }

    /// An IP packet that was made here.
    pub(in crate::pipeline) fn made(packet: &'e [u8]) -> Self {
        Self::of(PortId::OWN, Bytes::Bare(packet))
    }

    fn of(port: PortId, bytes: Bytes<'e>) -> Self {
        let (direction, is_leaving, tunnel, spi, sequence, inner) = (None, false, None, None, None, None);
        Self { port, bytes, direction, is_leaving, tunnel, spi, sequence, inner }
    }

    /// To be opened by an SA.
    pub(in crate::pipeline) fn inbound(self, sa: &'e SaSpec) -> Self {
        Self { direction: Some(Direction::Inbound), tunnel: Some(&sa.tunnel), spi: Some(sa.spi), ..self }
    }

    /// To be sealed by an SA.
    pub(in crate::pipeline) fn outbound(self, sa: &'e SaSpec) -> Self {
        Self { spi: Some(sa.spi), ..self.into_tunnel(&sa.tunnel) }
    }

    /// To be sealed by the SA of a tunnel, whichever that is.
    pub(in crate::pipeline) fn into_tunnel(self, tunnel: &'e Arc<str>) -> Self {
        Self { direction: Some(Direction::Outbound), tunnel: Some(tunnel), ..self }
    }

    /// Of a datagram that is to be put together: to be opened, unless the gateway itself sent it.
    pub(in crate::pipeline) fn in_pieces(self) -> Self {
        if self.port == PortId::HOST_IN_FRAGMENTS { self } else { self.into_gateway() }
    }

    /// For an SA that is not known yet: out of another one, or in pieces.
    pub(in crate::pipeline) fn into_gateway(self) -> Self {
        Self { direction: Some(Direction::Inbound), ..self }
    }

    /// With this number.
    pub(in crate::pipeline) fn numbered(self, sequence: u64) -> Self {
        Self { sequence: Some(sequence), ..self }
    }

    /// `inner`: the bytes that its SA opened.
    pub(in crate::pipeline) fn opened(self, inner: &'e [u8]) -> Self {
        Self { inner: Some(inner), ..self }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn look(&self, reason: DropReason, scene: &Scene<'_>) -> Seen {
        let Self { port, tunnel, spi, sequence, .. } = *self;
        let side = scene.network.ports.get(usize::from(port.0)).map(|port| port.side);
        let direction = self.direction.unwrap_or(match (side, self.is_leaving) {
            (Some(Side::Unprotected), false) | (Some(Side::Protected), true) => Direction::Inbound,
            _ => Direction::Outbound,
        });
        let bytes = match self.bytes {
            Bytes::Framed(frame) => in_frame(port, frame),
            Bytes::Bare(bytes) => bytes,
            Bytes::Parts { .. } => &[],
        };
        let (packet, named) = match self.bytes {
            Bytes::Parts { flow, payload } => {
                (Some(Header { flow, flow_label: None }), sealed_by(&flow, payload, scene.spd))
            }
            _ => (Header::read(bytes), sealed_in(bytes, scene.spd)),
        };
        let (inner, named) = match is_about_ours(reason).then(|| quoted(bytes, scene.spd)).flatten() {
            Some((quoted, named)) => (Some(quoted), named),
            None => (self.inner.filter(|_| is_read_inside(reason)).and_then(Header::read), named),
        };
        let mut seen = Seen { port, direction, tunnel: tunnel.cloned(), spi, sequence, packet, inner };
        // ESP of others that passes through names no SA of ours.
        let is_sealed = (direction == Direction::Inbound) != self.is_leaving;
        if is_sealed && let Some(named) = named {
            seen.spi = spi.or(Some(named.spi));
            seen.sequence = sequence.or(named.sequence_low.map(u64::from));
            // Found, but refused for what the packet is. (With another endpoint it is no SA of the packet's.)
            if let Some((known, sa)) = scene.latest.filter(|_| !self.is_leaving)
                && known == named.spi
                && reason != DropReason::NoState
            {
                seen.tunnel = tunnel.or(Some(&sa.spec.sa.tunnel)).cloned();
            }
        }
        seen
    }
}

/// The packet in a frame from its IP header on, if it has one.
fn in_frame(port: PortId, frame: &[u8]) -> &[u8] {
    let is_ip = port == PortId::OWN
        || ethernet::parse(frame)
            .is_ok_and(|header| matches!(header.ether_type, ether_type::IPV4 | ether_type::IPV6));
    frame.get(HEADER_LENGTH..).filter(|_| is_ip).unwrap_or_default()
}

impl Header {
    /// As much as is there: also of a packet that contradicts itself.
    fn read(bytes: &[u8]) -> Option<Self> {
        let flow = match ip::parse(bytes) {
            Ok(packet) => packet.flow,
            Err(_) => {
                let (source, destination, protocol) = addresses(bytes)?;
                Flow { source, destination, protocol, upper: Upper::Opaque }
            }
        };
        let first = bytes.first_chunk().filter(|_| flow.source.is_ipv6());
        Some(Self { flow, flow_label: first.map(|first| u32::from_be_bytes(*first) & 0xf_ffff) })
    }
}

/// Addresses and protocol of a header that is there, whatever is wrong with it.
fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8)> {
    match bytes.first()? >> 4 {
        4 => {
            let header = bytes.first_chunk::<IPV4_LENGTH>()?;
            let address = |at: usize| header[at..].first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
            Some((address(12)?, address(16)?, header[9]))
        }
        6 => {
            let header = bytes.first_chunk::<IPV6_LENGTH>()?;
            let address = |at: usize| header[at..].first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
            Some((address(8)?, address(24)?, header[6]))
        }
        _ => None,
    }
}

/// What ESP or AH says of its SA.
struct Named {
    spi: Spi,
    sequence_low: Option<u32>,
}

/// SPI and low half of the number of a packet of ESP (also in UDP) or AH, as far as they are there.
fn sealed_in(bytes: &[u8], spd: &Spd) -> Option<Named> {
    let packet = ip::parse(bytes).ok()?;
    let payload = &bytes[usize::from(packet.payload_offset)..packet.total_length as usize];
    if packet.fragment == Fragment::Later { None } else { sealed_by(&packet.flow, payload, spd) }
}

/// The same of what is behind the headers.
fn sealed_by(flow: &Flow, payload: &[u8], spd: &Spd) -> Option<Named> {
    let at = match flow.protocol {
        protocol::ESP => 0,
        // RFC 4302 section 2: next header, length and reserved come first.
        protocol::AH => 4,
        protocol::UDP => match flow.upper {
            Upper::Ports { destination, .. } if spd.is_nat_port(destination) => udp::HEADER_LENGTH,
            _ => return None,
        },
        _ => return None,
    };
    let word = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
    let spi = word(at)?;
    // RFC 3948 section 2.2: IKE has zeros there.
    (spi != 0 || flow.protocol != protocol::UDP).then(|| Named { spi: Spi(spi), sequence_low: word(at + 4) })
}

/// What an ICMP error quotes, and how that was sealed.
fn quoted(bytes: &[u8], spd: &Spd) -> Option<(Header, Option<Named>)> {
    let (_, quote) = quote::read(bytes, &ip::parse(bytes).ok()?)?;
    // We sent it: of ESP in UDP, the port that tells is its source.
    let upper = match quote.flow.upper {
        Upper::Ports { source, destination } => Upper::Ports { source: destination, destination: source },
        upper => upper,
    };
    let is_first = quote.fragment != Fragment::Later;
    let named = is_first.then(|| sealed_by(&Flow { upper, ..quote.flow }, quote.payload, spd)).flatten();
    Some((Header { flow: quote.flow, flow_label: None }, named))
}

/// Whether what is dropped for it is an ICMP error from outside about what we sealed, or so it says.
fn is_about_ours(reason: DropReason) -> bool {
    matches!(reason, DropReason::IcmpNoted | DropReason::IcmpForged | DropReason::IcmpRefused)
}

/// Whether a packet that is dropped for it was read once it was opened. Before, nothing says that it is one.
fn is_read_inside(reason: DropReason) -> bool {
    use DropReason as Why;
    !matches!(
        reason,
        Why::IcvFailed
            | Why::ReplayDuplicate
            | Why::ReplayOld
            | Why::ReplayImpossible
            | Why::ReplayFloor
            | Why::HardLifetime
            | Why::BadPadLength
            | Why::BadPadding
            | Why::Dummy
            | Why::NextHeader
            | Why::InnerMalformed
    )
}
