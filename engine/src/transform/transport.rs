//! Transport mode (RFC 4301 section 3.3, RFC 4303 and RFC 4302 section 3.1): ESP or AH between a packet's own headers
//! and its payload.
//!
//! ```text
//! IPv4 | header, options | ESP or AH | payload
//! IPv6 | header, hop-by-hop, routing, fragment | ESP or AH | destination options, payload
//! ```
//!
//! Of the headers in front, three fields change: the one that named the payload, the length, and the IPv4 checksum.

use super::{Layout, ah};
use crate::wire::checksum;
use crate::wire::header::IPV6_LENGTH;
use crate::wire::ip::{IpPacket, IpVersion};
use crate::wire::options::Extensions;
use crate::wire::protocol;

/// On which side of ESP or AH destination options go that are for the final destination alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DestinationOptions {
    /// Behind it, where ESP hides them ("generally desirable", RFC 4303 section 3.1.1).
    #[default]
    After,
    /// In front of it, in sight.
    Before,
}

/// Where a packet is taken apart, or was put together. Offsets from its IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Bytes in front of ESP or AH.
    pub at: u16,
    /// The byte there that names what follows them.
    pub named_at: u16,
    /// What that is.
    pub next_header: u8,
}

/// Where ESP or AH goes in a packet that is to be sent: `packet` is what `parsed` was read from.
#[inline]
pub fn split(packet: &[u8], parsed: &IpPacket, rule: DestinationOptions) -> Split {
    match parsed.version {
        IpVersion::V4 => Split { at: parsed.header_length, named_at: 9, next_header: packet[9] },
        IpVersion::V6 => {
            let headers = &packet[..usize::from(parsed.payload_offset)];
            let mut split = Split { at: IPV6_LENGTH as u16, named_at: 6, next_header: packet[6] };
            for extension in Extensions::new(headers) {
                // What routers, or each address of a route, have to read stays in front (RFC 4303 section 3.1.1).
                if extension.kind != protocol::DESTINATION_OPTIONS || rule == DestinationOptions::Before {
                    split = Split {
                        at: extension.end as u16,
                        named_at: extension.start as u16,
                        next_header: packet[extension.start],
                    };
                }
            }
            split
        }
    }
}

/// Where ESP or AH was put in a packet that was received: in front of the next layer. `None` where this is not the
/// end of its route: a Routing header with addresses left (RFC 5095 section 3).
#[inline]
pub fn joint(packet: &[u8], parsed: &IpPacket) -> Option<Split> {
    let at = parsed.payload_offset;
    let mut named_at = match parsed.version {
        IpVersion::V4 => 9,
        IpVersion::V6 => 6,
    };
    if at != parsed.header_length {
        for extension in Extensions::new(&packet[..usize::from(at)]) {
            if extension.kind == protocol::ROUTING && packet[extension.start + ah::SEGMENTS_LEFT] != 0 {
                return None;
            }
            named_at = extension.start as u16;
        }
    }
    Some(Split { at, named_at, next_header: parsed.flow.protocol })
}

/// Makes `headers`, a copy of what was in front, those of a packet with `next_header` and `length` bytes behind them.
///
/// # Panics
/// When they are not the headers that `named_at` belongs to, or the whole is longer than an IP packet can be: the
/// caller's own numbers, bounded by [`inside_mtu`] or by the packet that was received.
#[inline]
pub fn rewrite(headers: &mut [u8], version: IpVersion, named_at: u16, next_header: u8, length: usize) {
    let field = |length: usize| u16::try_from(length).expect("inside_mtu bounds the packet").to_be_bytes();
    headers[usize::from(named_at)] = next_header;
    match version {
        IpVersion::V4 => {
            let total_length = field(headers.len() + length);
            headers[2..4].copy_from_slice(&total_length);
            headers[10..12].fill(0);
            let checksum = checksum::internet(headers);
            headers[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        IpVersion::V6 => {
            let payload_length = field(headers.len() - IPV6_LENGTH + length);
            headers[4..6].copy_from_slice(&payload_length);
        }
    }
}

/// The largest packet with `headers` bytes in front of ESP or AH that leaves as one of at most `outside_mtu` bytes; 0
/// where not even an empty one does.
#[inline]
pub fn inside_mtu(outside_mtu: u32, layout: &Layout, version: IpVersion, headers: usize) -> u32 {
    match layout.room(outside_mtu, version, headers) {
        0 => 0,
        payload => (headers + payload) as u32,
    }
}

/// As [`inside_mtu`], for a packet without options and extension headers.
#[inline]
pub fn usual_inside_mtu(outside_mtu: u32, layout: &Layout, version: IpVersion) -> u32 {
    inside_mtu(outside_mtu, layout, version, super::fixed_header(version))
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
