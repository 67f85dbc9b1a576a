//! The ESP header (RFC 4303 section 2): SPI and the low 32 bits of the sequence number.

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

/// Reads the header at the start of `esp`.
///
/// # Errors
/// [`Malformed::TooShort`] below 8 bytes.
pub fn parse(esp: &[u8]) -> Result<EspHeader, Malformed> {
    let _ = esp;
    todo!()
}
