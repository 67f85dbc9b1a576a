//! NAT traversal (RFC 3948): ESP in UDP, and what else comes to its port.
//!
//! ```text
//! | UDP 8 | SPI, not 0 | … ESP
//! | UDP 8 | 0 0 0 0    | … IKE        the Non-ESP Marker, section 2.2
//! | UDP 8 | 0xff |                    a keepalive, section 2.3
//! ```

use std::net::IpAddr;

use super::tunnel::{DontFragment, OuterHeader};
use crate::wire::Malformed;
use crate::wire::checksum::Sum;
use crate::wire::header::IPV6_LENGTH;
use crate::wire::ip::{IpPacket, IpVersion};
use crate::wire::protocol;
use crate::wire::udp::{self, HEADER_LENGTH};

/// What a datagram to the NAT traversal port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datagram<'a> {
    /// It keeps the mapping of a NAT alive, and means nothing more.
    Keepalive,
    /// For the IKE daemon.
    Ike,
    /// ESP, as the UDP length has it.
    Esp(&'a [u8]),
}

/// Reads a datagram, UDP header first.
///
/// # Errors
/// It is none of these, or contradicts its length.
#[inline]
pub fn read(datagram: &[u8]) -> Result<Datagram<'_>, Malformed> {
    let header = udp::parse(datagram)?;
    match &datagram[HEADER_LENGTH..usize::from(header.length)] {
        [0xff] => Ok(Datagram::Keepalive),
        [0, 0, 0, 0, ..] => Ok(Datagram::Ike),
        esp @ [_, _, _, _, ..] => Ok(Datagram::Esp(esp)),
        _ => Err(Malformed::TooShort),
    }
}

/// Address and port that a datagram came from: `headers` are those of an IP packet that was parsed, UDP at their end.
pub fn origin(headers: &[u8]) -> Option<(IpAddr, u16)> {
    let &[s0, s1, ..] = headers.last_chunk::<HEADER_LENGTH>()?;
    let address = match headers.first()? >> 4 {
        4 => IpAddr::from(*headers.get(12..)?.first_chunk::<4>()?),
        _ => IpAddr::from(*headers.get(8..)?.first_chunk::<16>()?),
    };
    Some((address, u16::from_be_bytes([s0, s1])))
}

/// Writes a keepalive behind the outer header of an SA, in UDP; how many bytes that is (RFC 3948 section 2.3).
///
/// # Panics
/// When `out` has not these few bytes: the caller's own.
pub fn write_keepalive(out: &mut [u8], outer: &OuterHeader) -> usize {
    // Too small for anybody to fragment, so it needs no identification.
    let outer = OuterHeader { dont_fragment: DontFragment::Set, ..*outer };
    let length = outer.length() + 1;
    outer.write(out, &IpPacket::EMPTY, 1, 0);
    out[length - 1] = 0xff;
    if outer.version() == IpVersion::V6 {
        checksum_ipv6(&mut out[..length], IPV6_LENGTH);
    }
    length
}

/// Makes the checksum of a packet's next layer right again, where it covers addresses: a NAT may have changed those of
/// a packet in transport mode since it was computed (RFC 3948 section 3.1.2 b; what was changed on the way was not the
/// payload, which its ICV covers). UDP that goes without over IPv4 stays without.
pub fn renew_checksum(bytes: &mut [u8], packet: &IpPacket) {
    let field = match (packet.flow.protocol, packet.version) {
        (protocol::TCP, _) => 16,
        (protocol::UDP, _) => 6,
        (protocol::ICMPV6, IpVersion::V6) => 2,
        _ => return,
    };
    let (headers, segment) = bytes[..packet.total_length as usize].split_at_mut(packet.payload_offset.into());
    let addresses = match packet.version {
        IpVersion::V4 => &headers[12..20],
        IpVersion::V6 => &headers[8..40],
    };
    let Some(&mut [high, low]) = segment.get_mut(field..field + 2) else { return };
    if packet.flow.protocol == protocol::UDP && packet.version == IpVersion::V4 && [high, low] == [0, 0] {
        return;
    }
    segment[field..field + 2].fill(0);
    let sum = Sum::default().pseudo_header(addresses, segment.len() as u32, packet.flow.protocol);
    let checksum = match sum.bytes(segment).checksum() {
        // RFC 768: a computed zero is sent as all ones.
        0 if packet.flow.protocol == protocol::UDP => u16::MAX,
        checksum => checksum,
    };
    segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Writes the UDP checksum of an IPv6 packet, UDP `at` its start and no Routing header with addresses left in front: a
/// zero one is for hosts that were told so (RFC 6935 section 5). Over IPv4 it stays zero (RFC 3948 section 2.1).
///
/// # Panics
/// When `packet` is shorter than its headers: the caller's own.
pub fn checksum_ipv6(packet: &mut [u8], at: usize) {
    let (header, datagram) = packet.split_at_mut(at);
    let sum = Sum::default().pseudo_header(&header[8..IPV6_LENGTH], datagram.len() as u32, protocol::UDP);
    // RFC 768: a computed zero is sent as all ones.
    let checksum = match sum.bytes(datagram).checksum() {
        0 => u16::MAX,
        checksum => checksum,
    };
    datagram[6..HEADER_LENGTH].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let length = (8 + payload.len()) as u16;
        [&udp::UdpHeader { source: 1024, destination: 4500, length }.to_bytes()[..], payload].concat()
    }

    #[test]
    fn every_kind_of_datagram() {
        assert_eq!(read(&datagram(&[0xff])), Ok(Datagram::Keepalive));
        assert_eq!(read(&datagram(&[0, 0, 0, 0])), Ok(Datagram::Ike));
        assert_eq!(read(&datagram(&[0, 0, 0, 0, 1])), Ok(Datagram::Ike));
        assert_eq!(read(&datagram(&[0, 0, 1, 0])), Ok(Datagram::Esp(&[0, 0, 1, 0])));
        for nothing in [&[][..], &[0], &[0xfe], &[0xff, 0xff], &[0xff; 3]] {
            assert_eq!(read(&datagram(nothing)), Err(Malformed::TooShort), "{nothing:?}");
        }
        // What is behind the UDP length is not the datagram's.
        let mut padded = datagram(&[0xff]);
        padded.push(0);
        assert_eq!(read(&padded), Ok(Datagram::Keepalive));
    }
}
