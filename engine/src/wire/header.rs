//! IP headers to write: tunnel headers and the gateway's own ICMP errors. No options, no extension headers.
//!
//! ```text
//! IPv4 (RFC 791 section 3.1)                     IPv6 (RFC 8200 section 3)
//! |Ver| IHL |  TOS  |      Total Length     |  0 |Ver| Traffic Class |     Flow Label     |  0
//! |    Identification     |Flags|Fr. Offset |  4 |   Payload Length  |Next Header|Hop Lim.|  4
//! |   TTL   | Protocol    | Header Checksum |  8 |                                         |  8
//! |             Source Address              | 12 |         Source Address, 16 bytes        |
//! |           Destination Address           | 16 |                                         | 24
//!                                             20 |      Destination Address, 16 bytes      |
//!                                                |                                         | 40
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

/// Bytes of an IPv4 header without options.
pub const IPV4_LENGTH: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LENGTH: usize = 40;

/// DF in the flags word of an IPv4 header.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// MF in the flags word of an IPv4 header.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in the flags word of an IPv4 header, units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IPv4 header without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Header and payload, bytes.
    pub total_length: u16,
    /// Identification.
    pub identification: u16,
    /// DF.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// Next layer.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Ipv4Header {
    /// The header as it goes on the wire, checksum included.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; IPV4_LENGTH] {
        // In words, so that none is read back from bytes that were just written: that waits for the stores.
        let [length, identification] = [self.total_length, self.identification].map(u64::from);
        let flags = if self.dont_fragment { DONT_FRAGMENT.into() } else { 0 };
        let first =
            0x45 << 56 | u64::from(self.traffic_class) << 48 | length << 32 | identification << 16 | flags;
        let [ttl, protocol] = [self.ttl, self.protocol].map(u64::from);
        let middle = ttl << 56 | protocol << 48 | u64::from(self.source.to_bits());
        let last = self.destination.to_bits();
        let checksum = Sum::default().word(first).word(middle).number(last).checksum();
        let middle = middle | u64::from(checksum) << 32;
        let mut out = [0; IPV4_LENGTH];
        out[..8].copy_from_slice(&first.to_be_bytes());
        out[8..16].copy_from_slice(&middle.to_be_bytes());
        out[16..].copy_from_slice(&last.to_be_bytes());
        out
    }
}

/// An IPv6 header; its flow label is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes behind this header.
    pub payload_length: u16,
    /// Next layer.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Ipv6Header {
    /// The header as it goes on the wire.
    #[inline]
    pub fn to_bytes(&self) -> [u8; IPV6_LENGTH] {
        let mut out = [0; IPV6_LENGTH];
        out[0] = 0x60 | self.traffic_class >> 4;
        out[1] = self.traffic_class << 4;
        out[4..6].copy_from_slice(&self.payload_length.to_be_bytes());
        out[6] = self.next_header;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.source.octets());
        out[24..40].copy_from_slice(&self.destination.octets());
        out
    }
}
