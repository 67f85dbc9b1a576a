//! What an authentic packet still has to prove, and its way on.

use super::admission::Way;
use super::scratch::Place;
use super::sealed::Sealed;
use super::{DropReason, Frames, Pass};
use crate::route::PortId;
use crate::sa::InboundSa;
use crate::sa::inbound::InboundKeys;
use crate::sa::selector::Selectors;
use crate::transform::esp::{self, BadTrailer};
use crate::transform::natt;
use crate::transform::transport;
use crate::transform::{ecn, mss};
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{self, Fragment, IpPacket, IpVersion};
use crate::wire::protocol;
use crate::wire::reader::{Reader, Seen};

/// The ECN field of a traffic class.
const ECN: u8 = 0b11;

/// How an inner packet goes on.
#[derive(Clone, Copy)]
pub(super) enum Sent {
    /// In the frame it was decrypted into.
    InPlace { version: IpVersion, length: u32 },
    /// To the gateway itself, from the frame it was decrypted into.
    Delivered { length: u32 },
    /// To an SA inside this one, likewise.
    Again { length: u32, outer: usize },
    /// In frames of its egress; the one it was decrypted into is free again.
    Copied,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// What one authentic packet still has to prove, in the order of RFC 4303 section 3.4.4 and RFC 4301 section 5.2,
    /// and its way on. `frame`, a frame of `port`, has it at [`HEADER_LENGTH`], in transport mode with its headers as
    /// they came.
    #[inline(always)]
    pub(super) fn decapsulate<const PLAIN: bool>(
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
            if (packet.traffic_class ^ sealed.traffic_class) & ECN != 0 {
                self.mark(plaintext, version, packet.traffic_class, sealed.traffic_class)?;
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

    /// What the way between the gateways says of congestion comes inside (RFC 6040 section 4.2).
    #[inline(never)]
    fn mark(
        &mut self,
        plaintext: &mut [u8],
        version: IpVersion,
        inner: u8,
        outer: u8,
    ) -> Result<(), DropReason> {
        // "the decapsulator SHOULD log the event": counted, as one log line a packet would be a weapon.
        self.tally.ecn_suspect += u64::from(ecn::is_suspect(inner, outer));
        let marked = inner & !ECN | ecn::egress(inner, outer).ok_or(DropReason::EcnForbidden)?;
        if marked != inner {
            ip::set_traffic_class(plaintext, version, marked);
        }
        Ok(())
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
