//! What every way out shares: route, transmit frame, fragments, Ethernet header; and forwarding in clear.

use std::net::IpAddr;
use std::ops::DerefMut;

use super::scratch::{Egress, Link, Route};
use super::{DropReason, Frames, Output, Pass, Received, Results};
use crate::route::{NextHop, PortId};
use crate::transform::fragment::{
    Fragments, Piece, fragment_ipv4, fragment_ipv6, write_fragment, write_fragment_ipv6,
};
use crate::wire::ethernet::{HEADER_LENGTH, ether_type};
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, IpPacket, IpVersion};

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// BYPASS of a packet that reached the engine: TTL, route, size, neighbour, as a router does; of the gateway's own,
    /// without the TTL.
    pub(super) fn forward(
        &mut self,
        received: &mut Received<'_>,
        packet: &IpPacket,
    ) -> Result<(), DropReason> {
        let egress = match self.route(packet.flow.destination) {
            Route::Local => return Err(DropReason::NoHostPath),
            Route::Port(egress) => egress,
            Route::OtherInterface | Route::Unreachable => return Err(DropReason::NoRoute),
        };
        if !egress.port.up {
            return Err(DropReason::LinkDown);
        }
        let is_forwarded = received.port < PortId::OWN;
        if is_forwarded && packet.ttl <= 1 {
            self.originate_error(received, IcmpError::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        let may_be_fragmented = !packet.dont_fragment || received.port == PortId::HOST_IN_FRAGMENTS;
        if packet.total_length > egress.port.mtu && !may_be_fragmented {
            self.originate_error(received, IcmpError::PacketTooBig { mtu: egress.port.mtu });
            return Err(DropReason::TooBig);
        }
        let bytes = &mut received.frame[HEADER_LENGTH..];
        if is_forwarded {
            ip::decrement_ttl(bytes, packet.version);
        }
        if packet.version == IpVersion::V6 && packet.total_length > egress.port.mtu {
            let emit = |this: &mut Self, frame, length| this.emit(&egress, IpVersion::V6, frame, length);
            self.send_ipv6_fragments(&egress, egress.port.mtu, packet, bytes, emit)?;
        } else {
            self.send_copy(&egress, packet, bytes)?;
        }
        self.tally.bypassed += 1;
        Ok(())
    }

    /// Where `destination` goes.
    pub(super) fn route(&mut self, destination: IpAddr) -> Route<'g> {
        let (id, link) = match self.own.recent.way {
            Some((known, id, link)) if known == destination => (id, link),
            _ => match self.network.next_hop(destination) {
                NextHop::Local => return Route::Local,
                NextHop::OtherInterface => return Route::OtherInterface,
                NextHop::Unreachable => return Route::Unreachable,
                NextHop::Port { port: id, neighbour } => {
                    let Some(port) = self.network.ports.get(usize::from(id.0)) else {
                        return Route::Unreachable;
                    };
                    let link = Link::new(port, neighbour, self.network.neighbour(id, neighbour));
                    self.own.recent.way = Some((destination, id, link));
                    (id, link)
                }
            },
        };
        match self.network.ports.get(usize::from(id.0)) {
            Some(port) => Route::Port(Egress { id, port, link }),
            None => Route::Unreachable,
        }
    }

    /// A transmit frame of `port` with room for `length` bytes.
    pub(super) fn take_frame(&mut self, port: PortId, length: usize) -> Result<F::Frame, DropReason> {
        let frame = self.frames.take(port, length).ok_or(DropReason::NoFrame)?;
        if frame.len() < length {
            self.frames.give_back(port, frame);
            return Err(DropReason::TooBig);
        }
        Ok(frame)
    }

    /// Sends a finished IP packet (`bytes` begins at its header) from a new frame, or from several if it is
    /// larger than the egress carries and may be fragmented.
    pub(super) fn send_copy(
        &mut self,
        egress: &Egress<'g>,
        packet: &IpPacket,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let length = packet.total_length as usize;
        if packet.total_length > egress.port.mtu {
            let emit = |this: &mut Self, frame, length| this.emit(egress, packet.version, frame, length);
            return self.send_fragments(egress, egress.port.mtu, packet, &bytes[..length], emit);
        }
        let mut frame = self.take_frame(egress.id, HEADER_LENGTH + length)?;
        frame[HEADER_LENGTH..HEADER_LENGTH + length].copy_from_slice(&bytes[..length]);
        self.emit(egress, packet.version, frame, length);
        Ok(())
    }

    /// The packet's place is taken by its first fragment, of at most `mtu` bytes; the others are originated. Each goes to
    /// `send` in a frame of its own.
    pub(super) fn send_fragments(
        &mut self,
        egress: &Egress<'g>,
        mtu: u32,
        packet: &IpPacket,
        bytes: &[u8],
        send: impl Fn(&mut Self, F::Frame, usize),
    ) -> Result<(), DropReason> {
        let pieces = fragment_ipv4(bytes, packet, mtu).ok_or(DropReason::TooBig)?;
        self.send_pieces(egress, pieces, |out, piece| write_fragment(out, bytes, piece), send)
    }

    /// As [`Pass::send_fragments`], for an IPv6 packet, which only its sender may fragment.
    pub(super) fn send_ipv6_fragments(
        &mut self,
        egress: &Egress<'g>,
        mtu: u32,
        packet: &IpPacket,
        bytes: &[u8],
        send: impl Fn(&mut Self, F::Frame, usize),
    ) -> Result<(), DropReason> {
        let pieces = fragment_ipv6(bytes, packet, mtu).ok_or(DropReason::TooBig)?;
        // Not to be guessed (RFC 7739), and of all SAs between the same endpoints: by chance.
        let mut identification = [0; 8];
        self.own.ivs.fill(&mut identification);
        let identification = u64::from_ne_bytes(identification) as u32;
        let write = |out: &mut [u8], piece: &Piece| write_fragment_ipv6(out, bytes, piece, identification);
        self.send_pieces(egress, pieces, write, send)
    }

    fn send_pieces(
        &mut self,
        egress: &Egress<'g>,
        pieces: Fragments,
        write: impl Fn(&mut [u8], &Piece) -> Option<usize>,
        send: impl Fn(&mut Self, F::Frame, usize),
    ) -> Result<(), DropReason> {
        for (number, piece) in pieces.enumerate() {
            // What is sent already stays sent; the rest of the datagram is one drop.
            self.tally.originated += u64::from(number > 0);
            let mut frame = self.take_frame(egress.id, HEADER_LENGTH + piece.total_length())?;
            match write(&mut frame[HEADER_LENGTH..], &piece) {
                Some(length) => send(self, frame, length),
                None => {
                    self.frames.give_back(egress.id, frame);
                    return Err(DropReason::TooBig);
                }
            }
        }
        Ok(())
    }

    /// Writes the Ethernet header and hands the frame out; `length` is that of the IP packet behind the header.
    pub(super) fn emit(&mut self, egress: &Egress<'g>, version: IpVersion, frame: F::Frame, length: usize) {
        self.results.emit(egress.id, &egress.link, version, frame, length);
    }
}

impl<F: DerefMut<Target = [u8]>> Results<F> {
    /// As [`Pass::emit`].
    #[inline(always)]
    pub(super) fn emit(
        &mut self,
        port: PortId,
        link: &Link,
        version: IpVersion,
        mut frame: F,
        length: usize,
    ) {
        let ether_type = match version {
            IpVersion::V4 => ether_type::IPV4,
            IpVersion::V6 => ether_type::IPV6,
        };
        frame[..12].copy_from_slice(&link.addresses);
        frame[12..HEADER_LENGTH].copy_from_slice(&ether_type.to_be_bytes());
        self.outputs.push(Output {
            port,
            frame,
            length: HEADER_LENGTH + length,
            unresolved: link.unresolved,
        });
    }
}
