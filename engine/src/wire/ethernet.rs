//! Ethernet II frames. A VLAN tag (IEEE 802.1Q) shows as its own EtherType.
//!
//! ```text
//! +------------------------+------------------------+-----------+---------
//! | destination (6 bytes)  |    source (6 bytes)    | EtherType | payload
//! +------------------------+------------------------+-----------+---------
//! 0                        6                        12          14
//! ```

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
#[inline]
pub fn parse(frame: &[u8]) -> Result<Ethernet, Malformed> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
        *frame.first_chunk::<HEADER_LENGTH>().ok_or(Malformed::TooShort)?;
    Ok(Ethernet {
        destination: MacAddress([d0, d1, d2, d3, d4, d5]),
        source: MacAddress([s0, s1, s2, s3, s4, s5]),
        ether_type: u16::from_be_bytes([t0, t1]),
    })
}

/// Writes an untagged header into the first [`HEADER_LENGTH`] bytes of `frame`.
///
/// # Panics
/// If `frame`, which is the caller's own, is shorter.
#[inline]
pub fn write(frame: &mut [u8], header: &Ethernet) {
    let out = &mut frame[..HEADER_LENGTH];
    out[..6].copy_from_slice(&header.destination.0);
    out[6..12].copy_from_slice(&header.source.0);
    out[12..].copy_from_slice(&header.ether_type.to_be_bytes());
}

/// Writes a header without addresses in front of the IP packet behind it, which no Ethernet carried. What is neither
/// IPv4 nor IPv6 gets EtherType 0.
///
/// # Panics
/// If `frame`, which is the caller's own, is not longer than the header.
#[inline]
pub fn write_without_addresses(frame: &mut [u8]) {
    let ether_type = match frame[HEADER_LENGTH] >> 4 {
        4 => ether_type::IPV4,
        6 => ether_type::IPV6,
        _ => 0,
    };
    let nobody = MacAddress::default();
    write(frame, &Ethernet { destination: nobody, source: nobody, ether_type });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_wire_has_and_writes_it_back() {
        // Broadcast ARP request's header, as every capture begins.
        let frame = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x06, 0xaa];
        let header = parse(&frame).unwrap();
        assert_eq!(header.destination, MacAddress([0xff; 6]));
        assert_eq!(header.source, MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(header.ether_type, ether_type::ARP);
        let mut out = [0u8; 15];
        write(&mut out, &header);
        assert_eq!(out[..14], frame[..14]);
        assert_eq!(out[14], 0, "nothing behind the header is touched");
        for length in 0..HEADER_LENGTH {
            assert_eq!(parse(&frame[..length]), Err(Malformed::TooShort));
        }
    }

    #[test]
    fn a_tag_shows_as_its_own_ether_type() {
        let mut frame = [0u8; 18];
        frame[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x07]);
        assert_eq!(parse(&frame).unwrap().ether_type, ether_type::VLAN);
        frame[12..14].copy_from_slice(&[0x88, 0xa8]);
        assert_eq!(parse(&frame).unwrap().ether_type, ether_type::QINQ);
    }

    #[test]
    fn a_packet_that_no_ethernet_carried_gets_a_header_of_its_version() {
        for (first, expected) in [(0x45, 0x0800), (0x60, 0x86dd), (0x50, 0), (0x00, 0)] {
            let mut frame = [0xff; 15];
            frame[14] = first;
            write_without_addresses(&mut frame);
            let header = parse(&frame).unwrap();
            assert_eq!((header.ether_type, header.source), (expected, MacAddress([0; 6])));
            assert_eq!(frame[14], first);
        }
    }
}
