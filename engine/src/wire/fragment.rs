//! What a fragment says of its place in a datagram: IPv4 in its header (RFC 791 section 3.1), IPv6 in a Fragment header
//! (RFC 8200 section 4.5).
//!
//! ```text
//! |Next Header|Reserved| Fragment Offset:13 |Res:2|M|   Identification, 4 bytes   |
//! ```

use std::ops::Range;

use super::header::{FRAGMENT_OFFSET, IPV6_LENGTH, MORE_FRAGMENTS};
use super::ip::{Fragment, IpPacket, IpVersion};
use super::protocol;

/// Bytes of an IPv6 Fragment header.
pub const FRAGMENT_HEADER_LENGTH: usize = 8;
/// Where an IPv4 header names its protocol.
const IPV4_PROTOCOL_AT: u16 = 9;
/// Where an IPv6 header names what follows it.
const IPV6_NEXT_HEADER_AT: u16 = 6;

/// A fragment's place. Offsets in the packet count from its IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which datagram of its source and destination: 16 bits of it in IPv4.
    pub identification: u32,
    /// Bytes of the datagram's fragmentable part in front of this one's: a multiple of 8.
    pub offset: usize,
    /// More follow.
    pub more: bool,
    /// What the fragmentable part begins with; the first fragment decides (RFC 8200 section 4.5).
    pub next_header: u8,
    /// Where the headers in front say so, once the fragment's own are gone.
    pub named_at: u16,
    /// Bytes of the headers that every fragment has: IPv4's, or all in front of the Fragment header.
    pub headers: usize,
    /// The piece that it carries.
    pub payload: Range<usize>,
}

/// The place of `packet`, which was read from `bytes`; `None` for what is not a fragment.
pub fn place(bytes: &[u8], packet: &IpPacket) -> Option<Place> {
    if packet.fragment == Fragment::Whole {
        return None;
    }
    let end = packet.total_length as usize;
    if packet.version == IpVersion::V4 {
        let [i0, i1, f0, f1] = *bytes.get(4..)?.first_chunk()?;
        let field = u16::from_be_bytes([f0, f1]);
        let headers = usize::from(packet.header_length);
        return Some(Place {
            identification: u16::from_be_bytes([i0, i1]).into(),
            offset: usize::from(field & FRAGMENT_OFFSET) * 8,
            more: field & MORE_FRAGMENTS != 0,
            next_header: packet.flow.protocol,
            named_at: IPV4_PROTOCOL_AT,
            headers,
            payload: headers..end,
        });
    }
    // The chain was read before, so it leads to a Fragment header.
    let (mut at, mut named_at) = (IPV6_LENGTH, IPV6_NEXT_HEADER_AT);
    let mut next_header = *bytes.get(usize::from(named_at))?;
    while next_header != protocol::FRAGMENT {
        let [next, length] = *bytes.get(at..end)?.first_chunk()?;
        (named_at, next_header) = (at as u16, next);
        at += (usize::from(length) + 1) * 8;
    }
    let [next_header, _, f0, f1, identification @ ..] =
        *bytes.get(at..end)?.first_chunk::<FRAGMENT_HEADER_LENGTH>()?;
    let field = u16::from_be_bytes([f0, f1]);
    Some(Place {
        identification: u32::from_be_bytes(identification),
        // The offset is in units of 8 bytes, three bits above flags.
        offset: usize::from(field & 0xfff8),
        more: field & 1 != 0,
        next_header,
        named_at,
        headers: at,
        payload: at + FRAGMENT_HEADER_LENGTH..end,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ip;
    use super::*;

    #[test]
    fn ipv4_has_it_in_its_header() {
        let mut packet = vec![0x46, 0, 0, 40, 0xbe, 0xef, 0x20, 5, 64, 50, 0, 0];
        packet.extend([192, 0, 2, 1, 198, 51, 100, 9]);
        packet.extend([1, 1, 1, 0]);
        packet.extend([7; 16]);
        let sum = super::super::checksum::internet(&packet[..24]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        // Ethernet padding is not the packet's.
        packet.extend([0; 6]);
        let expected = Place {
            identification: 0xbeef,
            offset: 40,
            more: true,
            next_header: 50,
            named_at: 9,
            headers: 24,
            payload: 24..40,
        };
        assert_eq!(place(&packet, &ip::parse(&packet).unwrap()), Some(expected));
    }

    #[test]
    fn ipv6_has_it_in_a_header_behind_those_that_every_fragment_has() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 40, 0, 64];
        packet.extend([0x20; 32]);
        packet.extend([43, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([44, 0, 0, 0, 0, 0, 0, 0]);
        // Offset 185 * 8, the two reserved bits set, more.
        packet.extend([50, 0xff, 0x05, 0xcf, 1, 2, 3, 4]);
        packet.extend([9; 16]);
        let expected = Place {
            identification: 0x0102_0304,
            offset: 1480,
            more: true,
            next_header: 50,
            named_at: 48,
            headers: 56,
            payload: 64..80,
        };
        assert_eq!(place(&packet, &ip::parse(&packet).unwrap()), Some(expected));
        // An atomic fragment is whole (RFC 6946).
        packet[58..60].copy_from_slice(&[0, 0]);
        assert_eq!(place(&packet, &ip::parse(&packet).unwrap()), None);
    }
}
