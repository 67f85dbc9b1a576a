//! NAT traversal (RFC 3948): ESP in UDP, and what else comes to its port.
//!
//! ```text
//! | UDP 8 | SPI, not 0 | … ESP
//! | UDP 8 | 0 0 0 0    | … IKE        the Non-ESP Marker, section 2.2
//! | UDP 8 | 0xff |                    a keepalive, section 2.3
//! ```

use std::net::IpAddr;

use crate::wire::Malformed;
use crate::wire::checksum::Sum;
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

/// Writes the UDP checksum of an IPv6 packet without extension headers: a zero one is for hosts that were told so (RFC
/// 6935 section 5). Over IPv4 it stays zero (RFC 3948 section 2.1).
///
/// # Panics
/// When `packet` is shorter than its headers: the caller's own.
pub fn checksum_ipv6(packet: &mut [u8]) {
    let (header, datagram) = packet.split_at_mut(crate::wire::header::IPV6_LENGTH);
    let sum = Sum::default().pseudo_header(&header[8..], datagram.len() as u32, protocol::UDP);
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
