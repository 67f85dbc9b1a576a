//! What bytes mean. Every length is checked once, here, before any field is read; what comes out is
//! a small value that says where things are, so no later stage does arithmetic on what a peer wrote.

pub mod ah;
pub mod checksum;
pub mod esp;
pub mod ethernet;
pub mod fragment;
pub mod header;
pub mod icmp;
pub mod ip;
pub mod options;
pub mod quote;
pub mod reader;
pub mod udp;
pub mod vlan;

#[cfg(test)]
pub(crate) mod frames;

/// Security Parameters Index (RFC 4303 section 2.1), in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Spi(pub u32);

impl std::fmt::Display for Spi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Why bytes are not the packet they should be. One cause each; the pipeline turns it into a drop reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Shorter than the header it must hold.
    TooShort,
    /// Not IPv4 or IPv6, or the version nibble disagrees with the EtherType.
    Version,
    /// IHL below 5, or an extension header chain that overruns the packet or never ends.
    HeaderLength,
    /// The IP length field is below the header or beyond the bytes received (jumbograms included).
    TotalLength,
    /// The IPv4 header checksum is wrong.
    Checksum,
}

/// IP protocol numbers that adit looks at.
pub mod protocol {
    #![allow(missing_docs)]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT_HEADER: u8 = 59;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
}
