//! Records of dropped packets, for whoever asks "which packets are these?" (RFC 4303 section 4, RFC 4301 section 5.2).
//!
//! A flood must not make a flood of records: of each reason a worker keeps the first packet since it last told of that
//! reason, and tells of it about once a second, together with how many more there were. So the records of a reason
//! always add up to its counter. Any other dropped packet costs one test of a bit.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

use super::reassembly::Remains;
use super::{DropReason, Frames, Own, Pass, Pipeline, Received, Tables, WorkerCounters};
use crate::policy::Spd;
use crate::route::{Network, PortId, Side};
use crate::sa::InboundSa;
use crate::sa::publish::Guard;
use crate::sa::selector::Direction;
use crate::sa::spec::SaSpec;
use crate::wire::ethernet::{self, HEADER_LENGTH, ether_type};
use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH};
use crate::wire::ip::{self, Flow, Fragment, Upper};
use crate::wire::{Spi, protocol, udp};

/// Records that wait to be collected. When there are as many, workers keep theirs, and tell more with it later.
const WAITING: usize = 256;

/// What there is to tell of dropped packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The worker that dropped them.
    pub worker: u32,
    /// Why.
    pub reason: DropReason,
    /// Packets that this worker dropped for it since its record before.
    pub drops: u64,
    /// When the first of them was dropped, in milliseconds of the workers' clock.
    pub at: u64,
    /// The first of them, unless no header was at hand where it was dropped (on most rings and queues).
    pub seen: Option<Seen>,
}

/// A dropped packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Where it came in, or was to leave when it was finished; [`PortId::OWN`] when it came out of an SA, or is made here.
    pub port: PortId,
    /// As RFC 4301 has it.
    pub direction: Direction,
    /// The tunnel of its SA or policy, as far as that was found.
    pub tunnel: Option<Arc<str>>,
    /// The SPI of its SA; inbound, what it names where there is no such SA.
    pub spi: Option<Spi>,
    /// Its sequence number: all of it where its SA was found and it passed the first check, else the low 32 bits.
    pub sequence: Option<u64>,
    /// The packet: inbound as it came, outbound as it was to be sealed. `None` for what is not IP.
    pub packet: Option<Header>,
    /// What came out of its SA, if that is authentic and a packet.
    pub inner: Option<Header>,
}

/// What a record tells of an IP header, and no byte behind the ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Addresses, protocol, ports.
    pub flow: Flow,
    /// IPv6: its flow label.
    pub flow_label: Option<u32>,
}

/// Where workers leave records, and whether they are to.
pub struct Trail {
    records: ArrayQueue<Record>,
    is_on: AtomicBool,
}

impl Default for Trail {
    /// Empty, and on.
    fn default() -> Self {
        Self { records: ArrayQueue::new(WAITING), is_on: AtomicBool::new(true) }
    }
}

impl Trail {
    /// Switches it on or off (RFC 4303 section 4: "MUST allow a system administrator to enable or disable auditing").
    /// Workers follow within a second or so; what is dropped while it is off is counted, and no record tells of it.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// The oldest record that nobody has taken yet.
    pub fn take(&self) -> Option<Record> {
        self.records.pop()
    }
}

/// What a worker has seen of dropped packets and not told of yet.
pub(super) struct Audit {
    /// Reasons that nothing is kept of, a bit for each; none while auditing is off.
    wanted: u128,
    /// By reason: a packet, and when.
    kept: Box<[Option<(u64, Seen)>]>,
    /// By reason: the part of its counter that was told of.
    told: Box<[u64]>,
}

const _: () = assert!(DropReason::COUNT <= u128::BITS as usize);

impl Default for Audit {
    fn default() -> Self {
        let kept = vec![None; DropReason::COUNT].into_boxed_slice();
        Self { wanted: u128::MAX, kept, told: vec![0; DropReason::COUNT].into_boxed_slice() }
    }
}

impl Audit {
    fn wants(&self, reason: DropReason) -> bool {
        self.wanted & 1 << reason as u8 != 0
    }

    /// Looks at a packet that was dropped for `reason`, if nothing of that is kept yet.
    pub(super) fn keep(&mut self, reason: DropReason, evidence: &Evidence<'_>, scene: &Scene<'_>) {
        if self.wants(reason) {
            self.wanted &= !(1 << reason as u8);
            self.kept[reason as usize] = Some((scene.now, evidence.look(reason, scene)));
        }
    }

    /// Leaves a record of every reason that counted something since the last time.
    fn tell(&mut self, worker: u32, counters: &WorkerCounters, trail: &Trail, now: u64) {
        let is_on = trail.is_on.load(Ordering::Relaxed);
        let mut wanted = 0;
        for &reason in DropReason::ALL {
            let (kept, told) = (&mut self.kept[reason as usize], &mut self.told[reason as usize]);
            let counted = counters.dropped[reason as usize].load(Ordering::Relaxed);
            let drops = counted.wrapping_sub(*told);
            let seen = kept.take();
            if is_on && drops > 0 {
                let (at, seen) = seen.map_or((now, None), |(at, seen)| (at, Some(seen)));
                if let Err(Record { at, seen, .. }) =
                    trail.records.push(Record { worker, reason, drops, at, seen })
                {
                    *kept = seen.map(|seen| (at, seen));
                    wanted |= u128::from(kept.is_none()) << reason as u8;
                    continue;
                }
            }
            *told = counted;
            wanted |= u128::from(is_on) << reason as u8;
        }
        self.wanted = wanted;
    }
}

/// What is known where a packet is dropped.
#[derive(Clone, Copy)]
pub(super) struct Scene<'g> {
    now: u64,
    spd: &'g Spd,
    network: &'g Network,
    /// The SA that was looked up last.
    latest: Option<(Spi, &'g InboundSa)>,
}

impl<'g> Scene<'g> {
    /// Between two bursts; `None` while there is no policy, or no picture of the network.
    pub(super) fn of(tables: &'g Tables, guard: &'g Guard<'_>, now: u64) -> Option<Self> {
        let (spd, network) = (tables.spd.load(guard)?, tables.network.load(guard)?);
        Some(Self { now, spd, network, latest: None })
    }
}

/// A packet that is dropped.
#[derive(Clone, Copy)]
pub(super) struct Evidence<'e> {
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
    pub(super) fn received(received: &'e Received<'_>) -> Self {
        Self::framed(received.port, received.frame)
    }

    /// In this frame, received by `port`.
    pub(super) fn framed(port: PortId, frame: &'e [u8]) -> Self {
        Self::of(port, Bytes::Framed(frame))
    }

    /// Between two layers: an IP packet of `length` bytes behind room for an Ethernet header.
    pub(super) fn between(frame: &'e [u8], length: usize) -> Self {
        Self::made(&frame[HEADER_LENGTH..HEADER_LENGTH + length])
    }

    /// A datagram, as far as it was put together.
    pub(super) fn remains(remains: &Remains<'e>) -> Self {
        let Remains { port, source, destination, protocol, payload } = *remains;
        let upper = match payload {
            [a, b, c, d, ..] if protocol == protocol::UDP => Upper::Ports {
                source: u16::from_be_bytes([*a, *b]),
                destination: u16::from_be_bytes([*c, *d]),
            },
            _ => Upper::Opaque,
        };
        Self::of(port, Bytes::Parts { flow: Flow { source, destination, protocol, upper }, payload })
            .into_gateway()
    }

    /// An IP packet that was made here.
    pub(super) fn made(packet: &'e [u8]) -> Self {
        Self::of(PortId::OWN, Bytes::Bare(packet))
    }

    fn of(port: PortId, bytes: Bytes<'e>) -> Self {
        let (direction, is_leaving, tunnel, spi, sequence, inner) = (None, false, None, None, None, None);
        Self { port, bytes, direction, is_leaving, tunnel, spi, sequence, inner }
    }

    /// To be opened by an SA.
    pub(super) fn inbound(self, sa: &'e SaSpec) -> Self {
        Self { direction: Some(Direction::Inbound), tunnel: Some(&sa.tunnel), spi: Some(sa.spi), ..self }
    }

    /// To be sealed by an SA.
    pub(super) fn outbound(self, sa: &'e SaSpec) -> Self {
        Self { spi: Some(sa.spi), ..self.into_tunnel(&sa.tunnel) }
    }

    /// To be sealed by the SA of a tunnel, whichever that is.
    pub(super) fn into_tunnel(self, tunnel: &'e Arc<str>) -> Self {
        Self { direction: Some(Direction::Outbound), tunnel: Some(tunnel), ..self }
    }

    /// For an SA that is not known yet: out of another one, or in pieces.
    pub(super) fn into_gateway(self) -> Self {
        Self { direction: Some(Direction::Inbound), ..self }
    }

    /// With this number.
    pub(super) fn numbered(self, sequence: u64) -> Self {
        Self { sequence: Some(sequence), ..self }
    }

    /// `inner`: the bytes that its SA opened.
    pub(super) fn opened(self, inner: &'e [u8]) -> Self {
        Self { inner: Some(inner), ..self }
    }

    #[cold]
    #[inline(never)]
    fn look(&self, reason: DropReason, scene: &Scene<'_>) -> Seen {
        let Self { port, tunnel, spi, sequence, .. } = *self;
        let ports = &scene.network.ports;
        let direction = self.direction.unwrap_or(match ports.get(usize::from(port.0)) {
            Some(port) if port.side == Side::Unprotected => Direction::Inbound,
            _ => Direction::Outbound,
        });
        let read = |bytes| (Header::read(bytes), sealed_in(bytes, scene.spd));
        let (packet, named) = match self.bytes {
            Bytes::Framed(frame) => read(in_frame(port, frame)),
            Bytes::Bare(bytes) => read(bytes),
            Bytes::Parts { flow, payload } => {
                (Some(Header { flow, flow_label: None }), sealed_by(&flow, payload, scene.spd))
            }
        };
        let mut seen = Seen {
            port,
            direction,
            tunnel: tunnel.cloned(),
            spi,
            sequence,
            packet,
            inner: self.inner.filter(|_| is_read_inside(reason)).and_then(Header::read),
        };
        // ESP of others that passes through names no SA of ours.
        let is_sealed = (direction == Direction::Inbound) != self.is_leaving;
        if is_sealed && let Some((named, low)) = named {
            seen.spi = spi.or(Some(named));
            seen.sequence = sequence.or(low.map(u64::from));
            // Found, but refused for what the packet is. (With another endpoint it is no SA of the packet's.)
            if let Some((known, sa)) = scene.latest.filter(|_| !self.is_leaving)
                && known == named
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

/// SPI and low half of the number of a packet of ESP (also in UDP) or AH, as far as they are there.
fn sealed_in(bytes: &[u8], spd: &Spd) -> Option<(Spi, Option<u32>)> {
    let packet = ip::parse(bytes).ok()?;
    let payload = &bytes[usize::from(packet.payload_offset)..packet.total_length as usize];
    if packet.fragment == Fragment::Later { None } else { sealed_by(&packet.flow, payload, spd) }
}

/// The same of what is behind the headers.
fn sealed_by(flow: &Flow, payload: &[u8], spd: &Spd) -> Option<(Spi, Option<u32>)> {
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
    (spi != 0 || flow.protocol != protocol::UDP).then(|| (Spi(spi), word(at + 4)))
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

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Counts a drop, and keeps what a record is to tell of it.
    #[cold]
    #[inline(never)]
    pub(super) fn drop(&mut self, reason: DropReason, evidence: &Evidence<'_>) {
        self.tally.drop(reason);
        self.own.audit.keep(reason, evidence, &self.scene());
    }

    /// What is known now.
    pub(super) fn scene(&self) -> Scene<'g> {
        Scene { now: self.now, spd: self.spd, network: self.network, latest: self.memo.sa }
    }
}

impl Pipeline {
    /// Looks at a finished frame that was to leave by `port` and was dropped; whoever did counts it.
    #[cold]
    pub fn look_at_dropped(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        reason: DropReason,
        port: PortId,
        frame: &[u8],
    ) {
        let Some(scene) = Scene::of(tables, guard, now) else { return };
        let side = scene.network.ports.get(usize::from(port.0)).map(|port| port.side);
        let direction = match side {
            Some(Side::Protected) => Direction::Inbound,
            Some(Side::Unprotected) | None => Direction::Outbound,
        };
        let evidence = Evidence::framed(port, frame);
        let evidence = Evidence { direction: Some(direction), is_leaving: true, ..evidence };
        self.own.audit.keep(reason, &evidence, &scene);
    }

    /// Leaves records of what was dropped since the last time in [`Tables::audit`]; to be called every second or so.
    /// `now` is as in [`Pipeline::process`].
    pub fn tell_drops(&mut self, tables: &Tables, now: u64) {
        let Own { worker, counters, audit, .. } = &mut self.own;
        audit.tell(*worker, counters, &tables.audit, now);
    }
}
