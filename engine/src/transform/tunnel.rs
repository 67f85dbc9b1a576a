//! Outer headers of tunnel mode (RFC 4301 section 5.1.2) and the tunnel's MTU (section 8.2.1).

use std::net::IpAddr;

use super::ecn::Ecn;
use super::{Layout, fixed_header};
use crate::wire::checksum::Sum;
use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH, Ipv4Header, Ipv6Header};
use crate::wire::ip::{IpPacket, IpVersion};
use crate::wire::protocol;
use crate::wire::udp::{self, UdpHeader};

/// Where the outer DSCP comes from (RFC 4301 section 5.1.2, RFC 2983).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dscp {
    /// Copied from the inner header.
    Copy,
    /// Always this value, 0..=63.
    Fixed(u8),
}

/// Both rules of the outer traffic class, as masks.
#[derive(Clone, Copy, Debug)]
pub struct TrafficClass {
    /// Bits of the inner one that are copied.
    copied: u8,
    /// Bits that are always set.
    fixed: u8,
}

impl TrafficClass {
    /// DSCP as RFC 4301 section 5.1.2 has it, ECN as RFC 6040 section 4.1.
    pub fn new(dscp: Dscp, ecn: Ecn) -> Self {
        match dscp {
            Dscp::Copy => Self { copied: 0xfc | ecn.copied(), fixed: 0 },
            Dscp::Fixed(dscp) => Self { copied: ecn.copied(), fixed: dscp << 2 },
        }
    }
}

/// Where the outer DF bit comes from (RFC 4301 section 8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DontFragment {
    /// Copied from the inner IPv4 header; set for an inner IPv6 packet.
    Copy,
    /// Always set.
    Set,
    /// Always clear.
    Clear,
}

/// The outer header of an SA, prepared once: per packet only lengths, traffic class, DF, identification and
/// checksum are filled in.
#[derive(Clone, Copy, Debug)]
pub struct OuterHeader {
    /// Tunnel source: one of our addresses.
    pub source: IpAddr,
    /// Tunnel destination, same version.
    pub destination: IpAddr,
    /// What follows it: ESP (50) or AH (51).
    pub protocol: u8,
    /// Our port and the peer's, where that is in UDP (RFC 3948).
    pub udp_ports: Option<(u16, u16)>,
    /// Outer TTL or hop limit; never copied from the inner one.
    pub ttl: u8,
    /// DSCP and ECN rules.
    pub traffic_class: TrafficClass,
    /// DF rule, IPv4 outer only.
    pub dont_fragment: DontFragment,
}

impl OuterHeader {
    /// Version of the outer header.
    #[inline]
    pub fn version(&self) -> IpVersion {
        match self.destination {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        }
    }

    /// Bytes in front of ESP or AH: 20 or 40, and 8 more in UDP.
    #[inline]
    pub fn length(&self) -> usize {
        fixed_header(self.version()) + if self.udp_ports.is_some() { udp::HEADER_LENGTH } else { 0 }
    }

    /// Writes the header for `behind` bytes of ESP or AH around `inner` into the first
    /// [`OuterHeader::length`] bytes of `out`. `identification` is used where DF is clear (RFC 6864 section 4).
    /// Options and extension headers are never copied outward. In UDP the checksum is left 0.
    ///
    /// # Panics
    /// If `out` is shorter, the endpoints differ in version, or `behind` is more than
    /// [`OuterHeader::inside_mtu`] leads to: the caller's own numbers, none of them a peer's.
    #[inline]
    pub fn write(&self, out: &mut [u8], inner: &IpPacket, behind: usize, identification: u16) {
        let traffic_class = inner.traffic_class & self.traffic_class.copied | self.traffic_class.fixed;
        let length = |bytes: usize| u16::try_from(bytes).expect("inside_mtu bounds the packet");
        let (protocol, behind) = match self.udp_ports {
            None => (self.protocol, behind),
            Some((source, destination)) => {
                let behind = udp::HEADER_LENGTH + behind;
                let header = UdpHeader { source, destination, length: length(behind) };
                let at = fixed_header(self.version());
                out[at..at + udp::HEADER_LENGTH].copy_from_slice(&header.to_bytes());
                (protocol::UDP, behind)
            }
        };
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let dont_fragment = self.sets_dont_fragment(inner);
                let header = Ipv4Header {
                    traffic_class,
                    total_length: length(IPV4_LENGTH + behind),
                    // RFC 6864 section 4.1: with DF set, the field means nothing.
                    identification: if dont_fragment { 0 } else { identification },
                    dont_fragment,
                    ttl: self.ttl,
                    protocol,
                    source,
                    destination,
                };
                out[..IPV4_LENGTH].copy_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class,
                    payload_length: length(behind),
                    next_header: protocol,
                    hop_limit: self.ttl,
                    source,
                    destination,
                };
                out[..IPV6_LENGTH].copy_from_slice(&header.to_bytes());
            }
            _ => unreachable!("a tunnel's endpoints have one version"),
        }
    }

    #[inline]
    fn sets_dont_fragment(&self, inner: &IpPacket) -> bool {
        match self.dont_fragment {
            DontFragment::Copy => inner.dont_fragment,
            DontFragment::Set => true,
            DontFragment::Clear => false,
        }
    }

    /// As [`OuterHeader::write`], for packet after packet.
    pub fn writer(&self) -> Writer<'_> {
        Writer { outer: self, like: None }
    }

    /// The largest inner packet that leaves as one outer packet of at most `outside_mtu` bytes; 0 where not
    /// even an empty one does.
    #[inline]
    pub fn inside_mtu(&self, outside_mtu: u32, layout: &Layout) -> u32 {
        layout.room(outside_mtu, self.version(), self.length()) as u32
    }
}

/// Writes the outer headers of a group. Where the packets inside have the same to copy, those of IPv4 differ in length,
/// identification and checksum only.
pub struct Writer<'o> {
    outer: &'o OuterHeader,
    like: Option<Like>,
}

/// What a header is like for packets with this traffic class and this DF bit.
struct Like {
    traffic_class: u8,
    dont_fragment: bool,
    /// Without length, identification and checksum.
    header: [u8; IPV4_LENGTH],
    sum: Sum,
    is_identified: bool,
}

impl Writer<'_> {
    /// As [`OuterHeader::write`].
    #[inline(always)]
    pub fn write(&mut self, out: &mut [u8], inner: &IpPacket, behind: usize, identification: u16) {
        match &self.like {
            Some(like)
                if like.traffic_class == inner.traffic_class && like.dont_fragment == inner.dont_fragment =>
            {
                let identification = if like.is_identified { identification } else { 0 };
                let length = u16::try_from(IPV4_LENGTH + behind).expect("inside_mtu bounds the packet");
                let sum = like.sum.number(length.into()).number(identification.into());
                out[..IPV4_LENGTH].copy_from_slice(&like.header);
                out[2..4].copy_from_slice(&length.to_be_bytes());
                out[4..6].copy_from_slice(&identification.to_be_bytes());
                out[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
            }
            _ => self.write_anew(out, inner, behind, identification),
        }
    }

    #[inline(never)]
    fn write_anew(&mut self, out: &mut [u8], inner: &IpPacket, behind: usize, identification: u16) {
        let outer = self.outer;
        outer.write(out, inner, behind, identification);
        let is_plain = outer.version() == IpVersion::V4 && outer.udp_ports.is_none();
        if let Some(header) = out.first_chunk::<IPV4_LENGTH>().filter(|_| is_plain) {
            let mut header = *header;
            for varying in [2..6, 10..12] {
                header[varying].fill(0);
            }
            let IpPacket { traffic_class, dont_fragment, .. } = *inner;
            let is_identified = !outer.sets_dont_fragment(inner);
            let sum = Sum::default().bytes(&header);
            self.like = Some(Like { traffic_class, dont_fragment, header, sum, is_identified });
        }
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
