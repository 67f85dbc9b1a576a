//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, read once into an [`IpPacket`].
//!
//! ```text
//! IPv4 (RFC 791 section 3.1)                     IPv6 (RFC 8200 section 3)
//! |Ver| IHL |  TOS  |      Total Length     |  0 |Ver| Traffic Class |     Flow Label     |  0
//! |    Identification     |0|D|M|Fr. Offset |  4 |   Payload Length  |Next Header|Hop Lim.|  4
//! |   TTL   | Protocol    | Header Checksum |  8 |                                         |  8
//! |             Source Address              | 12 |         Source Address, 16 bytes        |
//! |           Destination Address           | 16 |                                         | 24
//! |           Options (IHL > 5) …           | 20 |      Destination Address, 16 bytes      |
//!                                                |         Extension headers …             | 40
//!
//! Extension headers: the first byte is the next header, the second a length
//! |Next Header| Length |  Hop-by-Hop, Routing, Destination Options: (length + 1) * 8 bytes
//! |Next Header|Reserved| Fragment Offset:13 |Res:2|M|   Identification, 4 bytes   |  Fragment: 8 bytes
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{self, Sum};
use super::header::{DONT_FRAGMENT, FRAGMENT_OFFSET, IPV4_LENGTH, IPV6_LENGTH, MORE_FRAGMENTS};
use super::{Malformed, protocol};

/// Most extension headers in one packet. RFC 8200 section 4.1 recommends an order of at most six in front of
/// the next layer; longer chains serve only to hide what comes behind them.
const MAX_EXTENSION_HEADERS: usize = 8;

/// The two versions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where a packet stands in a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not a fragment (an IPv6 atomic fragment counts as whole).
    Whole,
    /// Offset 0, more fragments follow: the next layer's header is in it.
    First,
    /// Offset beyond 0: ports are not available (OPAQUE).
    Later,
}

/// What selectors look at behind the addresses (RFC 4301 section 4.4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Upper {
    /// TCP, UDP, SCTP: source and destination port.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6 type and code.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Not available: a later fragment, a protocol without ports, or a header cut short.
    Opaque,
}

/// What a policy or an SA decides on: addresses, next-layer protocol, ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Next-layer protocol after IPv6 extension headers (4301 section 4.4.1.1).
    pub protocol: u8,
    /// Ports or ICMP type and code.
    pub upper: Upper,
}

/// What a packet does not show of what selectors may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hidden {
    /// It shows all there is.
    Nothing,
    /// Ports, or ICMP type and code: they are in the first fragment, or cut off.
    Upper,
    /// The protocol as well: of an IPv6 datagram's later fragment only the first extension header is known.
    Protocol,
}

impl Flow {
    /// The version of its addresses.
    #[inline]
    pub fn version(&self) -> IpVersion {
        if self.source.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
    }

    /// What this packet does not show.
    pub fn hides(&self, fragment: Fragment) -> Hidden {
        match (fragment, self.upper, self.protocol) {
            (
                Fragment::Later,
                _,
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS,
            ) if self.source.is_ipv6() => Hidden::Protocol,
            (Fragment::Later, ..)
            | (
                _,
                Upper::Opaque,
                protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6,
            ) => Hidden::Upper,
            _ => Hidden::Nothing,
        }
    }
}

/// An IP packet, read and validated once. Offsets count from the first byte of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpPacket {
    /// Version.
    pub version: IpVersion,
    /// Addresses, protocol, ports.
    pub flow: Flow,
    /// Bytes of the IP header: IHL * 4, or 40.
    pub header_length: u16,
    /// Where the next layer begins (behind IPv6 extension headers).
    pub payload_offset: u16,
    /// Bytes of the whole packet as the IP header says: at most what was received.
    pub total_length: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// DSCP and ECN: the TOS byte, or the traffic class.
    pub traffic_class: u8,
    /// IPv4 DF; true for IPv6.
    pub dont_fragment: bool,
    /// Fragment or not.
    pub fragment: Fragment,
}

impl IpPacket {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        version: IpVersion::V4,
        flow: Flow {
            source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            protocol: 0,
            upper: Upper::Opaque,
        },
        header_length: 0,
        payload_offset: 0,
        total_length: 0,
        ttl: 0,
        traffic_class: 0,
        dont_fragment: false,
        fragment: Fragment::Whole,
    };
}

/// Reads an IP packet from bytes that begin at its header. Bytes behind the IP length (Ethernet
/// padding) are ignored. The IPv4 header checksum is verified.
///
/// # Errors
/// [`Malformed`] with the one reason.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<IpPacket, Malformed> {
    let mut packet = IpPacket::EMPTY;
    read(bytes, &mut packet).map(|()| packet)
}

/// As [`parse`], into the place where the packet stays: moving what was just written waits for the stores.
///
/// # Errors
/// As [`parse`]; what `packet` is then says nothing.
#[inline(always)]
pub fn read(bytes: &[u8], packet: &mut IpPacket) -> Result<(), Malformed> {
    match bytes.first().ok_or(Malformed::TooShort)? >> 4 {
        4 => read_v4(bytes, packet),
        6 => read_v6(bytes, packet),
        _ => Err(Malformed::Version),
    }
}

#[inline(always)]
fn read_v4(bytes: &[u8], out: &mut IpPacket) -> Result<(), Malformed> {
    let fixed = bytes.first_chunk::<IPV4_LENGTH>().ok_or(Malformed::TooShort)?;
    // Three loads; everything below comes out of registers.
    let (first, middle, last) = in_words(fixed);
    let header_length = (first >> 56 & 0x0f) as usize * 4;
    let total_length = (first >> 32 & 0xffff) as usize;
    if total_length > bytes.len() || total_length < header_length {
        return Err(Malformed::TotalLength);
    }
    let fixed_sum = Sum::default().word(first).word(middle).number(last);
    let sum = match header_length {
        IPV4_LENGTH => fixed_sum,
        0..IPV4_LENGTH => return Err(Malformed::HeaderLength),
        _ => fixed_sum.bytes(&bytes[IPV4_LENGTH..header_length]),
    };
    if sum.checksum() != 0 {
        return Err(Malformed::Checksum);
    }

    let flags = first as u16;
    let fragment = match flags & (FRAGMENT_OFFSET | MORE_FRAGMENTS) {
        0 => Fragment::Whole,
        MORE_FRAGMENTS => Fragment::First,
        _ => Fragment::Later,
    };
    let protocol = (middle >> 48) as u8;
    out.version = IpVersion::V4;
    out.flow.source = IpAddr::V4(Ipv4Addr::from_bits(middle as u32));
    out.flow.destination = IpAddr::V4(Ipv4Addr::from_bits(last));
    out.flow.protocol = protocol;
    out.header_length = header_length as u16;
    out.payload_offset = header_length as u16;
    out.total_length = total_length as u32;
    out.ttl = (middle >> 56) as u8;
    out.traffic_class = (first >> 48) as u8;
    out.dont_fragment = flags & DONT_FRAGMENT != 0;
    out.fragment = fragment;
    read_upper(&mut out.flow.upper, protocol, &bytes[header_length..total_length], fragment);
    Ok(())
}

/// The numbers that the words of a header are on the wire.
#[inline(always)]
pub(super) fn in_words(header: &[u8; IPV4_LENGTH]) -> (u64, u64, u32) {
    let (words, last) = header.as_chunks::<8>();
    let last = last.first_chunk().map_or(0, |last| u32::from_be_bytes(*last));
    (u64::from_be_bytes(words[0]), u64::from_be_bytes(words[1]), last)
}

#[inline]
fn read_v6(bytes: &[u8], out: &mut IpPacket) -> Result<(), Malformed> {
    let fixed = bytes.first_chunk::<IPV6_LENGTH>().ok_or(Malformed::TooShort)?;
    let payload_length = u16::from_be_bytes([fixed[4], fixed[5]]);
    let next_header = fixed[6];
    // RFC 2675 section 2: a jumbogram has payload length 0 and its length in a hop-by-hop option. Length 0
    // without that header is a packet of 40 bytes (RFC 8200 section 4.7, next header 59).
    if payload_length == 0 && next_header == protocol::HOP_BY_HOP {
        return Err(Malformed::TotalLength);
    }
    let total_length = IPV6_LENGTH + usize::from(payload_length);
    let packet = bytes.get(..total_length).ok_or(Malformed::TotalLength)?;
    let chain = extension_headers(packet, next_header)?;

    let (source, destination) = fixed[8..].split_at(16);
    let address = |octets: &[u8]| IpAddr::V6(Ipv6Addr::from(*octets.first_chunk::<16>().unwrap_or(&[0; 16])));
    *out = IpPacket {
        version: IpVersion::V6,
        flow: Flow {
            source: address(source),
            destination: address(destination),
            protocol: chain.protocol,
            upper: Upper::Opaque,
        },
        header_length: IPV6_LENGTH as u16,
        payload_offset: chain.offset as u16,
        total_length: total_length as u32,
        ttl: fixed[7],
        traffic_class: fixed[0] << 4 | fixed[1] >> 4,
        dont_fragment: true,
        fragment: chain.fragment,
    };
    let payload = packet.get(chain.offset..).unwrap_or_default();
    read_upper(&mut out.flow.upper, chain.protocol, payload, chain.fragment);
    Ok(())
}

/// Where a chain of extension headers leads.
struct Chain {
    /// The next layer, or in a later fragment what its Fragment header says follows.
    protocol: u8,
    /// Where that begins; at most the length of the packet.
    offset: usize,
    fragment: Fragment,
}

/// Follows the next-header fields of `packet` through the headers of RFC 4301 section 4.4.1.1's default list (0, 43,
/// 44, 60; AH, ESP and Mobility are next layers themselves), which is at least [`IPV6_LENGTH`] long. Every turn moves on by
/// at least 8 bytes and there are at most [`MAX_EXTENSION_HEADERS`] of them.
#[inline]
fn extension_headers(packet: &[u8], next_header: u8) -> Result<Chain, Malformed> {
    let mut chain = Chain { protocol: next_header, offset: IPV6_LENGTH, fragment: Fragment::Whole };
    let mut fragmented = false;
    for count in 0..=MAX_EXTENSION_HEADERS {
        match chain.protocol {
            // Only directly behind the IPv6 header (RFC 8200 section 4.1).
            protocol::HOP_BY_HOP if chain.offset == IPV6_LENGTH => {}
            // Not twice: reassembly would not agree on which of them counts.
            protocol::FRAGMENT if !fragmented => {}
            protocol::HOP_BY_HOP | protocol::FRAGMENT => return Err(Malformed::HeaderLength),
            protocol::ROUTING | protocol::DESTINATION_OPTIONS => {}
            _ => return Ok(chain),
        }
        if count == MAX_EXTENSION_HEADERS {
            break;
        }
        let rest = packet.get(chain.offset..).unwrap_or_default();
        let header = *rest.first_chunk::<8>().ok_or(Malformed::HeaderLength)?;
        let length = match chain.protocol {
            protocol::FRAGMENT => {
                fragmented = true;
                let field = u16::from_be_bytes([header[2], header[3]]);
                chain.fragment = match (field >> 3, field & 1) {
                    // RFC 6946: an atomic fragment is a whole packet.
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                8
            }
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if length > rest.len() {
            return Err(Malformed::HeaderLength);
        }
        chain.offset += length;
        chain.protocol = header[0];
        if chain.fragment == Fragment::Later {
            // What follows is the middle of a datagram.
            return Ok(chain);
        }
    }
    Err(Malformed::HeaderLength)
}

/// Ports or type and code, where they are there to be read. Written where they stay: on the way through a register
/// they would be packed and unpacked.
#[inline(always)]
pub(super) fn read_upper(out: &mut Upper, protocol: u8, payload: &[u8], fragment: Fragment) {
    *out = Upper::Opaque;
    if fragment == Fragment::Later {
        return;
    }
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            if let Some(&[s0, s1, d0, d1]) = payload.first_chunk() {
                let (source, destination) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
                *out = Upper::Ports { source, destination };
            }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if let Some(&[kind, code]) = payload.first_chunk() {
                *out = Upper::Icmp { kind, code };
            }
        }
        _ => {}
    }
}

/// Decrements TTL or hop limit in place and mends the IPv4 checksum (RFC 1624). `bytes` begins at the
/// IP header of an already parsed packet with TTL > 1.
#[inline]
pub fn decrement_ttl(bytes: &mut [u8], version: IpVersion) {
    match version {
        IpVersion::V4 => {
            if let Some(word) = bytes[8..].first_chunk_mut::<4>() {
                // TTL, protocol, checksum.
                let old = u32::from_be_bytes(*word);
                let new = if old >> 24 == 0 { old } else { old - (1 << 24) };
                let checksum = checksum::update(old as u16, (old >> 16) as u16, (new >> 16) as u16);
                *word = (new & 0xffff_0000 | u32::from(checksum)).to_be_bytes();
            }
        }
        IpVersion::V6 => {
            if let Some(header) = bytes.first_chunk_mut::<IPV6_LENGTH>() {
                header[7] = header[7].saturating_sub(1);
            }
        }
    }
}

/// Replaces DSCP+ECN in place and mends the IPv4 checksum. `bytes` begins at the IP header of an already
/// parsed packet.
#[inline]
pub fn set_traffic_class(bytes: &mut [u8], version: IpVersion, traffic_class: u8) {
    match version {
        IpVersion::V4 => {
            if let Some(header) = bytes.first_chunk_mut::<IPV4_LENGTH>() {
                let old = u16::from_be_bytes([header[0], header[1]]);
                header[1] = traffic_class;
                mend_v4(header, old, u16::from_be_bytes([header[0], header[1]]));
            }
        }
        IpVersion::V6 => {
            if let Some(header) = bytes.first_chunk_mut::<IPV6_LENGTH>() {
                header[0] = header[0] & 0xf0 | traffic_class >> 4;
                header[1] = header[1] & 0x0f | traffic_class << 4;
            }
        }
    }
}

#[inline]
fn mend_v4(header: &mut [u8; IPV4_LENGTH], old: u16, new: u16) {
    let checksum = checksum::update(u16::from_be_bytes([header[10], header[11]]), old, new);
    [header[10], header[11]] = checksum.to_be_bytes();
}

/// Whether the sender of a packet left its TCP or UDP checksum to hardware that is not there (Linux, where transmit
/// checksum offload is on): the field then holds the sum of the pseudo-header alone. One right checksum in 2^16 looks
/// like that too, so the whole sum decides. `bytes` begins at the IP header of `packet`.
pub fn has_partial_checksum(bytes: &[u8], packet: &IpPacket) -> bool {
    let field = match packet.flow.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return false,
    };
    // Who fragments has to sum first; behind extension headers the final destination may be another.
    if packet.fragment != Fragment::Whole || packet.payload_offset != packet.header_length {
        return false;
    }
    let segment = &bytes[usize::from(packet.payload_offset)..packet.total_length as usize];
    let Some(&found) = segment.get(field..).and_then(<[u8]>::first_chunk) else { return false };
    let addresses = match packet.version {
        IpVersion::V4 => Sum::default().bytes(bytes[12..].first_chunk::<8>().unwrap_or(&[0; 8])),
        IpVersion::V6 => Sum::default().bytes(bytes[8..].first_chunk::<32>().unwrap_or(&[0; 32])),
    };
    let pseudo = addresses.number(segment.len() as u32).number(packet.flow.protocol.into());
    u16::from_be_bytes(found) == pseudo.fold() && pseudo.bytes(segment).checksum() != 0
}

#[cfg(test)]
#[path = "ip_tests.rs"]
mod tests;
