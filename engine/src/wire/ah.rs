//! The Authentication Header (RFC 4302 section 2).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! | Next Header   |  Payload Len  |          RESERVED             |  0
//! +---------------------------------------------------------------+
//! |                 Security Parameters Index (SPI)               |  4
//! +---------------------------------------------------------------+
//! |                    Sequence Number Field                      |  8
//! +---------------------------------------------------------------+
//! |          Integrity Check Value, then padding …                | 12
//! ```

use super::{Malformed, Spi};

/// Bytes in front of the ICV.
pub const FIXED_LENGTH: usize = 12;

/// An Authentication Header but for its ICV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AhHeader {
    /// What follows it.
    pub next_header: u8,
    /// Bytes of the header, ICV and padding included: a multiple of 4, 12 to 1028, at most what was received.
    pub length: u16,
    /// Security Parameters Index.
    pub spi: Spi,
    /// Low 32 bits of the sequence number.
    pub sequence_low: u32,
}

impl AhHeader {
    /// The bytes in front of the ICV as they go on the wire, reserved ones 0 (RFC 4302 section 2.3).
    #[inline]
    pub fn to_bytes(&self) -> [u8; FIXED_LENGTH] {
        let mut out = [0; FIXED_LENGTH];
        out[0] = self.next_header;
        // Section 2.2: its length in 32-bit words, minus 2.
        out[1] = (self.length / 4).wrapping_sub(2) as u8;
        out[4..8].copy_from_slice(&self.spi.0.to_be_bytes());
        out[8..].copy_from_slice(&self.sequence_low.to_be_bytes());
        out
    }
}

/// Reads the header at the start of `ah`. The reserved field means nothing (RFC 4302 section 2.3); the ICV covers it.
///
/// # Errors
/// [`Malformed::TooShort`] below 12 bytes, [`Malformed::HeaderLength`] when its own length is less than that or more
/// than there is.
#[inline]
pub fn parse(ah: &[u8]) -> Result<AhHeader, Malformed> {
    let [next_header, words, _, _, p0, p1, p2, p3, s0, s1, s2, s3] =
        *ah.first_chunk::<FIXED_LENGTH>().ok_or(Malformed::TooShort)?;
    let length = (usize::from(words) + 2) * 4;
    if length < FIXED_LENGTH || length > ah.len() {
        return Err(Malformed::HeaderLength);
    }
    Ok(AhHeader {
        next_header,
        length: length as u16,
        spi: Spi(u32::from_be_bytes([p0, p1, p2, p3])),
        sequence_low: u32::from_be_bytes([s0, s1, s2, s3]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_network_order() {
        // RFC 4302 section 2.2: "if an integrity algorithm yields a 96-bit ICV, this length field will be 4".
        let mut bytes = vec![6, 4, 0, 0, 0, 0, 0x43, 0x21, 0x87, 0x65, 0x43, 0x21];
        bytes.extend([0xee; 12]);
        let header = AhHeader { next_header: 6, length: 24, spi: Spi(0x4321), sequence_low: 0x8765_4321 };
        assert_eq!(parse(&bytes), Ok(header));
        assert_eq!(header.to_bytes(), bytes[..12]);
        bytes[2] = 0xff;
        assert_eq!(parse(&bytes), Ok(header), "reserved");
        for length in 0..12 {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::TooShort));
        }
        for length in 12..24 {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::HeaderLength));
        }
        bytes[1] = 0;
        assert_eq!(parse(&bytes), Err(Malformed::HeaderLength), "8 bytes hold no sequence number");
        bytes[1] = 1;
        assert_eq!(parse(&bytes).unwrap().length, 12);
        bytes[1] = 255;
        bytes.resize(1028, 0);
        assert_eq!(parse(&bytes).unwrap().length, 1028);
        assert_eq!(parse(&bytes).unwrap().to_bytes()[1], 255);
        assert_eq!(parse(&bytes[..1027]), Err(Malformed::HeaderLength));
    }
}
