//! ICMP and ICMPv6 errors that a gateway sends itself: too big, time exceeded, prohibited (RFC 792, 1191, 4443, 1812).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |     Type      |     Code      |           Checksum            |  0
//! +---------------+---------------+-------------------------------+
//! |   unused      |  (IPv4 3/4)   Next-Hop MTU (RFC 1191 sec. 4)  |  4
//! |   or, ICMPv6 type 2: MTU, all 32 bits (RFC 4443 section 3.2)  |
//! +---------------------------------------------------------------+
//! |   the offending packet, from its IP header on                 |  8
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::header::{IPV4_LENGTH, IPV6_LENGTH, Ipv4Header, Ipv6Header};
use super::ip::{self, Fragment, IpPacket, Upper};
use super::protocol;

/// Bytes of an ICMP error in front of what it quotes.
const HEADER_LENGTH: usize = 8;
/// RFC 1812 section 4.3.2.3: the ICMP datagram should not exceed 576 bytes.
const MAX_LENGTH_V4: usize = 576;
/// RFC 4443 section 2.4 (c): not exceeding the minimum IPv6 MTU.
const MAX_LENGTH_V6: usize = 1280;
/// Most bytes of an error, its IP header included.
pub const LONGEST_ERROR: usize = MAX_LENGTH_V6;
/// RFC 791 section 3.2: every module forwards 68 bytes.
const MIN_MTU_V4: u32 = 68;
/// RFC 8200 section 5.
const MIN_MTU_V6: u32 = 1280;
/// Internet Control: the precedence of ICMP errors (RFC 1812 section 4.3.2.5).
const TRAFFIC_CLASS_V4: u8 = 0xc0;
/// The default TTL of RFC 1700.
const TTL: u8 = 64;

/// Which error to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// IPv4 "fragmentation needed and DF set" (3/4, RFC 1191) or IPv6 "packet too big" (2/0).
    PacketTooBig {
        /// MTU towards the tunnel's inside, bytes; 68 (IPv4) or 1280 (IPv6) is told where it is less.
        mtu: u32,
    },
    /// TTL or hop limit exceeded in transit (11/0 or 3/0).
    TimeExceeded,
    /// Communication administratively prohibited (3/13, RFC 1812 section 5.2.7.1, or 1/1, RFC 4443 section 3.1).
    Prohibited,
}

/// Writes a complete IP packet with the error about `offending` (bytes from its IP header on) into `out`
/// and returns its length; quotes as much as RFC 1812 (576 bytes in all) or RFC 4443 (1280) allow.
/// `source` is the gateway's own address on the side the packet came from, same version as `offending`.
/// `None` where no error may be sent: `offending` is malformed, itself an ICMP error, a later fragment, or has a
/// multicast, broadcast or unspecified source or destination (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e;
/// packet too big for an IPv6 multicast destination is allowed), or `out` is too short.
pub fn write_error(out: &mut [u8], error: IcmpError, offending: &[u8], source: IpAddr) -> Option<usize> {
    let parsed = ip::parse(offending).ok()?;
    if !may_report(error, &parsed) {
        return None;
    }
    let quoted = offending.get(..parsed.total_length as usize)?;
    match (source, parsed.flow.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write_v4(out, error, quoted, from, to),
        (IpAddr::V6(from), IpAddr::V6(to)) => write_v6(out, error, quoted, from, to),
        _ => None,
    }
}

fn write_v4(out: &mut [u8], error: IcmpError, quoted: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Option<usize> {
    let length = (IPV4_LENGTH + HEADER_LENGTH + quoted.len()).min(MAX_LENGTH_V4);
    let (header, icmp) = out.get_mut(..length)?.split_first_chunk_mut()?;
    *header = Ipv4Header {
        traffic_class: TRAFFIC_CLASS_V4,
        total_length: length as u16,
        // An atomic datagram (RFC 6864 section 4.1): DF is set, so the identification may be anything.
        identification: 0,
        dont_fragment: true,
        ttl: TTL,
        protocol: protocol::ICMP,
        source: from,
        destination: to,
    }
    .to_bytes();
    let (kind, code, mtu) = match error {
        IcmpError::PacketTooBig { mtu } => (3, 4, mtu.clamp(MIN_MTU_V4, u32::from(u16::MAX))),
        IcmpError::TimeExceeded => (11, 0, 0),
        IcmpError::Prohibited => (3, 13, 0),
    };
    write_message(icmp, kind, code, mtu, quoted, Sum::default())?;
    Some(length)
}

fn write_v6(out: &mut [u8], error: IcmpError, quoted: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Option<usize> {
    let length = (IPV6_LENGTH + HEADER_LENGTH + quoted.len()).min(MAX_LENGTH_V6);
    let (header, icmp) = out.get_mut(..length)?.split_first_chunk_mut::<IPV6_LENGTH>()?;
    *header = Ipv6Header {
        traffic_class: 0,
        payload_length: icmp.len() as u16,
        next_header: protocol::ICMPV6,
        hop_limit: TTL,
        source: from,
        destination: to,
    }
    .to_bytes();
    let (kind, code, mtu) = match error {
        IcmpError::PacketTooBig { mtu } => (2, 0, mtu.max(MIN_MTU_V6)),
        IcmpError::TimeExceeded => (3, 0, 0),
        IcmpError::Prohibited => (1, 1, 0),
    };
    // RFC 4443 section 2.3: unlike ICMP, the checksum covers a pseudo-header.
    let pseudo = Sum::default().pseudo_header(&header[8..], icmp.len() as u32, protocol::ICMPV6);
    write_message(icmp, kind, code, mtu, quoted, pseudo)?;
    Some(length)
}

/// Fills `icmp` with header and as much of `quoted` as it has room for.
fn write_message(icmp: &mut [u8], kind: u8, code: u8, mtu: u32, quoted: &[u8], pseudo: Sum) -> Option<()> {
    let (header, quote) = icmp.split_first_chunk_mut::<HEADER_LENGTH>()?;
    quote.copy_from_slice(quoted.get(..quote.len())?);
    let [m0, m1, m2, m3] = mtu.to_be_bytes();
    *header = [kind, code, 0, 0, m0, m1, m2, m3];
    let [c0, c1] = pseudo.bytes(header).bytes(quote).checksum().to_be_bytes();
    (header[2], header[3]) = (c0, c1);
    Some(())
}

/// Whether `packet` may be answered with `error`: RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7 and RFC 4443
/// section 2.4 (e) name what may not, so that errors never breed errors or storms.
fn may_report(error: IcmpError, packet: &IpPacket) -> bool {
    let is_error = match (packet.flow.protocol, packet.flow.upper) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (protocol::ICMP, Upper::Icmp { kind, .. }) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // RFC 4443 section 2.1: errors are below 128; 137 is Redirect, which (e.2) names as well.
        (protocol::ICMPV6, Upper::Icmp { kind, .. }) => kind < 128 || kind == 137,
        // Cut short, it might be one.
        (protocol::ICMP | protocol::ICMPV6, _) => true,
        _ => false,
    };
    if is_error || packet.fragment == Fragment::Later {
        return false;
    }
    let one_sender = match packet.flow.source {
        // RFC 1812 section 5.3.7: network 0, loopback, multicast and broadcast are no sources.
        IpAddr::V4(source) => {
            source.octets()[0] != 0
                && !source.is_loopback()
                && !source.is_multicast()
                && !source.is_broadcast()
        }
        IpAddr::V6(source) => !source.is_unspecified() && !source.is_loopback() && !source.is_multicast(),
    };
    let one_receiver = match packet.flow.destination {
        IpAddr::V4(destination) => {
            !destination.is_unspecified() && !destination.is_multicast() && !destination.is_broadcast()
        }
        // RFC 4443 section 2.4 (e.3), exception 1: path MTU discovery works for multicast.
        IpAddr::V6(destination) if destination.is_multicast() => {
            matches!(error, IcmpError::PacketTooBig { .. })
        }
        IpAddr::V6(destination) => !destination.is_unspecified(),
    };
    one_sender && one_receiver
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
