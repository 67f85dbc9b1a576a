//! UDP headers (RFC 768), as far as ESP in UDP needs them.
//!
//! ```text
//! |          Source Port          |       Destination Port        |  0
//! |            Length             |           Checksum            |  4
//! ```

use super::Malformed;

/// Bytes of the header.
pub const HEADER_LENGTH: usize = 8;
/// IKE and ESP in UDP (RFC 3947 section 4, RFC 3948 section 2.1).
pub const NAT_TRAVERSAL_PORT: u16 = 4500;

/// A UDP header but for its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Bytes of header and payload: 8 or more, at most what was received.
    pub length: u16,
}

impl UdpHeader {
    /// The header as it goes on the wire, its checksum 0.
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_LENGTH] {
        let ([s0, s1], [d0, d1]) = (self.source.to_be_bytes(), self.destination.to_be_bytes());
        let [l0, l1] = self.length.to_be_bytes();
        [s0, s1, d0, d1, l0, l1, 0, 0]
    }
}

/// Reads the header at the start of `datagram`. The checksum is not looked at.
///
/// # Errors
/// [`Malformed::TooShort`] below 8 bytes, [`Malformed::TotalLength`] when its length is less or more than there is.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<UdpHeader, Malformed> {
    let [s0, s1, d0, d1, l0, l1, _, _] =
        *datagram.first_chunk::<HEADER_LENGTH>().ok_or(Malformed::TooShort)?;
    let length = u16::from_be_bytes([l0, l1]);
    if usize::from(length) < HEADER_LENGTH || usize::from(length) > datagram.len() {
        return Err(Malformed::TotalLength);
    }
    let (source, destination) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    Ok(UdpHeader { source, destination, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_network_order() {
        let bytes = [0x11, 0x94, 0x04, 0xd2, 0x00, 0x0a, 0x12, 0x34, 1, 2, 3];
        let header = UdpHeader { source: 4500, destination: 1234, length: 10 };
        assert_eq!(parse(&bytes), Ok(header));
        assert_eq!(header.to_bytes(), [0x11, 0x94, 0x04, 0xd2, 0x00, 0x0a, 0, 0]);
        for length in 0..8 {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::TooShort));
        }
        assert_eq!(parse(&bytes[..9]), Err(Malformed::TotalLength));
        let mut short = bytes;
        short[5] = 7;
        assert_eq!(parse(&short), Err(Malformed::TotalLength));
    }
}
