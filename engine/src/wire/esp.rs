//! The ESP header (RFC 4303 section 2): SPI and the low 32 bits of the sequence number.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |               Security Parameters Index (SPI)                 |  0
//! +---------------------------------------------------------------+
//! |                      Sequence Number                          |  4
//! +---------------------------------------------------------------+
//! |                    Payload Data (IV first) …                  |  8
//! ```

use super::{Malformed, Spi};

/// Bytes of SPI and sequence number.
pub const HEADER_LENGTH: usize = 8;

/// SPI and sequence number of an ESP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EspHeader {
    /// Security Parameters Index.
    pub spi: Spi,
    /// Low 32 bits of the sequence number.
    pub sequence_low: u32,
}

impl EspHeader {
    /// The header as it goes on the wire.
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_LENGTH] {
        (u64::from(self.spi.0) << 32 | u64::from(self.sequence_low)).to_be_bytes()
    }
}

/// Reads the header at the start of `esp`.
///
/// # Errors
/// [`Malformed::TooShort`] below 8 bytes.
#[inline]
pub fn parse(esp: &[u8]) -> Result<EspHeader, Malformed> {
    let header = u64::from_be_bytes(*esp.first_chunk().ok_or(Malformed::TooShort)?);
    Ok(EspHeader { spi: Spi((header >> 32) as u32), sequence_low: header as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_network_order() {
        // RFC 4303 section 2 puts the SPI first; values of draft-mcgrew-gcm-test-01 case 1.
        let bytes = [0x00, 0x00, 0x43, 0x21, 0x87, 0x65, 0x43, 0x21, 0xff];
        let header = EspHeader { spi: Spi(0x4321), sequence_low: 0x8765_4321 };
        assert_eq!(parse(&bytes), Ok(header));
        assert_eq!(header.to_bytes(), bytes[..8]);
        for length in 0..HEADER_LENGTH {
            assert_eq!(parse(&bytes[..length]), Err(Malformed::TooShort));
        }
    }
}
