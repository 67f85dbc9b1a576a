//! Ethernet II frames and the VLAN tags in front of the EtherType.

use super::Malformed;

/// Bytes of an untagged Ethernet header.
pub const HEADER_LENGTH: usize = 14;

/// EtherType values adit looks at, host byte order.
pub mod ether_type {
    #![allow(missing_docs)]
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
}

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct MacAddress(pub [u8; 6]);

/// An Ethernet header, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// Destination address.
    pub destination: MacAddress,
    /// Source address.
    pub source: MacAddress,
    /// EtherType of the payload; [`ether_type::VLAN`] or [`ether_type::QINQ`] when tagged.
    pub ether_type: u16,
}

/// Reads the header of `frame`.
///
/// # Errors
/// [`Malformed::TooShort`] below [`HEADER_LENGTH`] bytes.
pub fn parse(frame: &[u8]) -> Result<Ethernet, Malformed> {
    let _ = frame;
    todo!()
}

/// Writes an untagged header into the first [`HEADER_LENGTH`] bytes of `frame`.
pub fn write(frame: &mut [u8], header: &Ethernet) {
    let _ = (frame, header);
    todo!()
}
