//! ESP packet arithmetic and trailers (RFC 4303 section 2): how long, where, how much padding.

use crate::crypto::Suite;

/// Lengths of an ESP packet under one suite, computed once per SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// IV bytes behind the ESP header.
    pub iv_length: u8,
    /// Ciphertext is a multiple of this (4, 8 or 16).
    pub alignment: u8,
    /// ICV bytes at the end.
    pub icv_length: u8,
}

impl Layout {
    /// The layout of `suite`.
    pub fn new(suite: &Suite) -> Self {
        let _ = suite;
        todo!()
    }

    /// Bytes from SPI to ICV for `payload_length` bytes with minimal padding (RFC 4303 section 2.4).
    pub fn esp_length(&self, payload_length: usize) -> usize {
        let _ = payload_length;
        todo!()
    }

    /// The largest payload whose ESP packet fits into `esp_length` bytes; `None` if not even an empty one.
    pub fn max_payload(&self, esp_length: usize) -> Option<usize> {
        let _ = esp_length;
        todo!()
    }

    /// Ciphertext length of an ESP packet of `esp_length` bytes, or `None` if it is too short or not a
    /// multiple of the alignment: the one length check before any crypto (RFC 4303 section 3.4.4.1).
    pub fn ciphertext_length(&self, esp_length: usize) -> Option<usize> {
        let _ = esp_length;
        todo!()
    }
}

/// What a decrypted, verified ESP plaintext says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Bytes of payload in front of the padding.
    pub payload_length: usize,
    /// Next header: 4, 41, 59 …
    pub next_header: u8,
}

/// What is wrong with a trailer that an authenticated peer sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadTrailer {
    /// Pad length beyond the plaintext.
    PadLength,
    /// Padding is not 1, 2, 3, … (RFC 4303 section 2.4).
    Padding,
}

/// Reads pad length, padding and next header from the end of `plaintext` (payload, padding, pad length, next header).
///
/// # Errors
/// [`BadTrailer`].
pub fn trailer(plaintext: &[u8]) -> Result<Trailer, BadTrailer> {
    let _ = plaintext;
    todo!()
}
