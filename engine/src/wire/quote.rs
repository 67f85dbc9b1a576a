//! ICMP and ICMPv6 errors that were received, and the packets they quote (RFC 792, RFC 1191, RFC 4443).
//!
//! A quote is the front of a packet, from its IP header on: its lengths are not those of what is there, routers on its
//! way have changed it, and nobody proved it. So it only says which packet somebody means.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::header::{FRAGMENT_OFFSET, IPV4_LENGTH, IPV6_LENGTH, MORE_FRAGMENTS};
use super::ip::{self, Flow, Fragment, IpPacket, IpVersion, Upper};
use super::protocol;

/// Bytes of an error in front of its quote.
const HEADER_LENGTH: usize = 8;
/// Most extension headers in a quote.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What an error says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// IPv4 3/4, IPv6 2: with the MTU of the link that did not carry it; 0 from routers older than RFC 1191.
    PacketTooBig {
        /// Bytes.
        mtu: u32,
    },
    /// IPv4 3 but for 3/4, IPv6 1.
    Unreachable,
    /// IPv4 11, IPv6 3.
    TimeExceeded,
    /// IPv4 12, IPv6 4.
    ParameterProblem,
}

/// What is there of the packet that an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote<'a> {
    /// Addresses, protocol, and ports or type and code, where the quote reaches them.
    pub flow: Flow,
    /// Bytes of the whole packet, as its IP header has it.
    pub length: u32,
    /// Where it stood in a datagram.
    pub fragment: Fragment,
    /// From its next layer on.
    pub payload: &'a [u8],
}

/// Whether `packet` is an ICMP error, by its type: the ones that [`read`] reads.
#[inline]
pub fn is_error(packet: &IpPacket) -> bool {
    let Upper::Icmp { kind, .. } = packet.flow.upper else { return false };
    match (packet.version, packet.flow.protocol) {
        (IpVersion::V4, protocol::ICMP) => matches!(kind, 3 | 11 | 12),
        (IpVersion::V6, protocol::ICMPV6) => matches!(kind, 1..=4),
        _ => false,
    }
}

/// Reads the error `packet`, which was read from `bytes`. `None` where it is none, a fragment of one, has a wrong
/// checksum, or quotes nothing that can be read.
pub fn read<'a>(bytes: &'a [u8], packet: &IpPacket) -> Option<(ErrorKind, Quote<'a>)> {
    if !is_error(packet) || packet.fragment != Fragment::Whole {
        return None;
    }
    let message = bytes.get(usize::from(packet.payload_offset)..packet.total_length as usize)?;
    let sum = match packet.version {
        IpVersion::V4 => Sum::default(),
        // RFC 4443 section 2.3; behind a Routing header with segments left the destination is another, but then it is
        // not for us.
        IpVersion::V6 => {
            Sum::default().pseudo_header(bytes.get(8..IPV6_LENGTH)?, message.len() as u32, protocol::ICMPV6)
        }
    };
    if sum.bytes(message).checksum() != 0 {
        return None;
    }
    let ([kind, code, _, _, m0, m1, m2, m3], quoted) = message.split_first_chunk::<HEADER_LENGTH>()?;
    let kind = match (packet.version, kind, code) {
        (IpVersion::V4, 3, 4) => ErrorKind::PacketTooBig { mtu: u32::from(u16::from_be_bytes([*m2, *m3])) },
        (IpVersion::V6, 2, _) => ErrorKind::PacketTooBig { mtu: u32::from_be_bytes([*m0, *m1, *m2, *m3]) },
        (IpVersion::V4, 3, _) | (IpVersion::V6, 1, _) => ErrorKind::Unreachable,
        (IpVersion::V4, 11, _) | (IpVersion::V6, 3, _) => ErrorKind::TimeExceeded,
        _ => ErrorKind::ParameterProblem,
    };
    let quote = match packet.version {
        IpVersion::V4 => quote_v4(quoted),
        IpVersion::V6 => quote_v6(quoted),
    };
    quote.map(|quote| (kind, quote))
}

fn quote_v4(quoted: &[u8]) -> Option<Quote<'_>> {
    let fixed = quoted.first_chunk::<IPV4_LENGTH>()?;
    let header_length = usize::from(fixed[0] & 0x0f) * 4;
    if fixed[0] >> 4 != 4 || header_length < IPV4_LENGTH {
        return None;
    }
    let payload = quoted.get(header_length..)?;
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let fragment = match (field & FRAGMENT_OFFSET, field & MORE_FRAGMENTS) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    let (source, destination, protocol) = (address(12), address(16), fixed[9]);
    let length = u32::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let mut upper = Upper::Opaque;
    ip::read_upper(&mut upper, protocol, payload, fragment);
    Some(Quote { flow: Flow { source, destination, protocol, upper }, length, fragment, payload })
}

fn quote_v6(quoted: &[u8]) -> Option<Quote<'_>> {
    let (fixed, mut payload) = quoted.split_first_chunk::<IPV6_LENGTH>()?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut fragment) = (fixed[6], Fragment::Whole);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if fragment == Fragment::Later {
            break;
        }
        let length = match protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (usize::from(*payload.get(1)?) + 1) * 8
            }
            protocol::FRAGMENT => {
                let field = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
                fragment = match (field >> 3, field & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                8
            }
            _ => break,
        };
        protocol = *payload.first()?;
        payload = payload.get(length..)?;
    }
    let (source, destination) = fixed[8..].split_at(16);
    let address = |octets: &[u8]| Some(IpAddr::V6(Ipv6Addr::from(*octets.first_chunk::<16>()?)));
    let (source, destination) = (address(source)?, address(destination)?);
    let length = IPV6_LENGTH as u32 + u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let mut upper = Upper::Opaque;
    ip::read_upper(&mut upper, protocol, payload, fragment);
    Some(Quote { flow: Flow { source, destination, protocol, upper }, length, fragment, payload })
}

#[cfg(test)]
#[path = "quote_tests.rs"]
mod tests;
