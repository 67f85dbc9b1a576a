//! Pure functions over bytes: how a packet becomes an ESP or AH packet, in tunnel or transport mode, and back.

pub mod ah;
pub mod ecn;
pub mod esp;
pub mod fragment;
pub mod mss;
pub mod natt;
pub mod transport;
pub mod tunnel;

use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH};
use crate::wire::ip::IpVersion;

/// Lengths of what follows the IP headers under one SA: ESP, or AH and what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// ESP.
    Esp(esp::Layout),
    /// AH.
    Ah(ah::Layout),
}

impl Layout {
    /// Bytes from SPI to ICV, or from AH to the payload's end, for `payload_length` bytes with minimal padding.
    #[inline]
    pub fn length(&self, payload_length: usize) -> usize {
        match self {
            Self::Esp(layout) => layout.esp_length(payload_length),
            Self::Ah(layout) => layout.header_length() + payload_length,
        }
    }

    /// The largest payload that fits into `length` bytes; `None` if not even an empty one.
    #[inline]
    pub fn max_payload(&self, length: usize) -> Option<usize> {
        match self {
            Self::Esp(layout) => layout.max_payload(length),
            Self::Ah(layout) => length.checked_sub(layout.header_length()),
        }
    }

    /// The largest packet that leaves as one of at most `outside_mtu` bytes, IP headers of `headers` bytes in front
    /// and all that follows them sealed; 0 where not even an empty one does (RFC 4301 section 8.2.1).
    #[inline]
    fn room(&self, outside_mtu: u32, version: IpVersion, headers: usize) -> usize {
        // Total length (IPv4) and payload length (IPv6) have 16 bits, whatever the link carries.
        let largest = match version {
            IpVersion::V4 => usize::from(u16::MAX),
            IpVersion::V6 => IPV6_LENGTH + usize::from(u16::MAX),
        };
        let behind = (outside_mtu as usize).min(largest).checked_sub(headers);
        behind.and_then(|length| self.max_payload(length)).unwrap_or(0)
    }
}

/// Bytes of an IP header without options or extension headers.
#[inline]
const fn fixed_header(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => IPV4_LENGTH,
        IpVersion::V6 => IPV6_LENGTH,
    }
}
