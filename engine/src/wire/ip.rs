//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, read once into an [`IpPacket`].

use std::net::IpAddr;

use super::Malformed;

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

/// Reads an IP packet from bytes that begin at its header. Bytes behind the IP length (Ethernet
/// padding) are ignored. The IPv4 header checksum is verified.
///
/// # Errors
/// [`Malformed`] with the one reason.
pub fn parse(bytes: &[u8]) -> Result<IpPacket, Malformed> {
    let _ = bytes;
    todo!()
}

/// Decrements TTL or hop limit in place and mends the IPv4 checksum (RFC 1624). `bytes` begins at the
/// IP header of an already parsed packet with TTL > 1.
pub fn decrement_ttl(bytes: &mut [u8], version: IpVersion) {
    let _ = (bytes, version);
    todo!()
}

/// Replaces DSCP+ECN in place and mends the IPv4 checksum.
pub fn set_traffic_class(bytes: &mut [u8], version: IpVersion, traffic_class: u8) {
    let _ = (bytes, version, traffic_class);
    todo!()
}
