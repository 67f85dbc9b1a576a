//! Outer headers of tunnel mode (RFC 4301 section 5.1.2) and the tunnel's MTU (section 8.2.1).

use std::net::IpAddr;

use super::esp::Layout;
use crate::wire::ip::{IpPacket, IpVersion};

/// Where the outer DSCP comes from (RFC 4301 section 5.1.2, RFC 2983).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dscp {
    /// Copied from the inner header.
    Copy,
    /// Always this value, 0..=63.
    Fixed(u8),
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
#[derive(Clone, Debug)]
pub struct OuterHeader {
    /// Tunnel source: one of our addresses.
    pub source: IpAddr,
    /// Tunnel destination, same version.
    pub destination: IpAddr,
    /// Outer TTL or hop limit; never copied from the inner one.
    pub ttl: u8,
    /// DSCP rule.
    pub dscp: Dscp,
    /// DF rule, IPv4 outer only.
    pub dont_fragment: DontFragment,
}

impl OuterHeader {
    /// Version of the outer header.
    pub fn version(&self) -> IpVersion {
        todo!()
    }

    /// Bytes of the outer header: 20 or 40.
    pub fn length(&self) -> usize {
        todo!()
    }

    /// Writes the header for an ESP packet of `esp_length` bytes around `inner` into the first
    /// [`OuterHeader::length`] bytes of `out`. `identification` is used where DF is clear (RFC 6864 section 4).
    /// Options and extension headers are never copied outward.
    pub fn write(&self, out: &mut [u8], inner: &IpPacket, esp_length: usize, identification: u16) {
        let _ = (out, inner, esp_length, identification);
        todo!()
    }

    /// The largest inner packet that leaves as one outer packet of at most `outside_mtu` bytes.
    pub fn inside_mtu(&self, outside_mtu: u32, layout: &Layout) -> u32 {
        let _ = (outside_mtu, layout);
        todo!()
    }
}
