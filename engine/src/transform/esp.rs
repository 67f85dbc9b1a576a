//! ESP packet arithmetic and trailers (RFC 4303 section 2): how long, where, how much padding.
//!
//! ```text
//! | SPI 4 | Sequence 4 | IV | Payload | Padding 0..=255 | Pad Length 1 | Next Header 1 | ICV |
//!                           |<-- ciphertext: a multiple of the alignment, at least 4 -->|
//! ```

use crate::crypto::Suite;
use crate::wire::esp::HEADER_LENGTH;

/// Pad length and next header.
const TRAILER_LENGTH: usize = 2;

/// Lengths of an ESP packet under one suite, computed once per SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// IV bytes behind the ESP header.
    pub iv_length: u8,
    /// Ciphertext is a multiple of this: 4, 8 or 16.
    pub alignment: u8,
    /// ICV bytes at the end.
    pub icv_length: u8,
}

impl Layout {
    /// The layout of `suite`.
    pub fn new(suite: &Suite) -> Self {
        Self { iv_length: suite.iv_length(), alignment: suite.alignment(), icv_length: suite.icv_length() }
    }

    /// Bytes around the ciphertext: header, IV, ICV.
    #[inline]
    fn around(&self) -> usize {
        HEADER_LENGTH + usize::from(self.iv_length) + usize::from(self.icv_length)
    }

    /// Bytes from SPI to ICV for `payload_length` bytes with minimal padding (RFC 4303 section 2.4).
    #[inline]
    pub fn esp_length(&self, payload_length: usize) -> usize {
        // A power of two: `next_multiple_of` would divide.
        let beyond = usize::from(self.alignment) - 1;
        self.around() + ((payload_length + TRAILER_LENGTH + beyond) & !beyond)
    }

    /// The largest payload whose ESP packet fits into `esp_length` bytes; `None` if not even an empty one.
    #[inline]
    pub fn max_payload(&self, esp_length: usize) -> Option<usize> {
        let room = esp_length.checked_sub(self.around())?;
        (room & !(usize::from(self.alignment) - 1)).checked_sub(TRAILER_LENGTH)
    }

    /// Ciphertext length of an ESP packet of `esp_length` bytes, or `None` if it is too short or not a
    /// multiple of the alignment: the one length check before any crypto (RFC 4303 section 3.4.4.1).
    #[inline]
    pub fn ciphertext_length(&self, esp_length: usize) -> Option<usize> {
        let length = esp_length.checked_sub(self.around())?;
        // The alignment is at least 4, so a ciphertext that is not empty has room for the trailer.
        (length != 0 && length & (usize::from(self.alignment) - 1) == 0).then_some(length)
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
#[inline]
pub fn trailer(plaintext: &[u8]) -> Result<Trailer, BadTrailer> {
    let (body, &[pad_length, next_header]) =
        plaintext.split_last_chunk::<TRAILER_LENGTH>().ok_or(BadTrailer::PadLength)?;
    let payload_length = body.len().checked_sub(usize::from(pad_length)).ok_or(BadTrailer::PadLength)?;
    let (_, padding) = body.split_at(payload_length);
    // RFC 4303 section 2.4: 1, 2, 3, …; mostly less than a cipher's block, which is the end of a word.
    let is_right = match (body.last_chunk::<16>(), pad_length) {
        (Some(end), 0..=16) => {
            const ASCENDING: u128 =
                u128::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
            let outside = 128 - 8 * u32::from(pad_length);
            let [expected, mask] = [ASCENDING, u128::MAX].map(|word| word.checked_shl(outside).unwrap_or(0));
            u128::from_le_bytes(*end) & mask == expected
        }
        _ => padding.iter().zip(1..=u8::MAX).all(|(&found, expected)| found == expected),
    };
    if !is_right {
        return Err(BadTrailer::Padding);
    }
    Ok(Trailer { payload_length, next_header })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        [0u8, 8, 16].into_iter().flat_map(|iv_length| {
            [4u8, 8, 16].into_iter().flat_map(move |alignment| {
                [8u8, 12, 16, 24, 32].into_iter().map(move |icv_length| Layout {
                    iv_length,
                    alignment,
                    icv_length,
                })
            })
        })
    }

    #[test]
    fn lengths_of_packets_that_others_built() {
        // draft-mcgrew-gcm-test-01, cases 2, 6 and 12.
        let gcm = Layout { iv_length: 8, alignment: 4, icv_length: 16 };
        for (payload, esp) in [(62, 96), (24, 60), (0, 36)] {
            assert_eq!(gcm.esp_length(payload), esp);
        }
        // RFC 3602 section 4, cases 5 to 8: AES-CBC without ICV.
        let cbc = Layout { iv_length: 16, alignment: 16, icv_length: 0 };
        for (payload, esp) in [(64, 104), (28, 56), (84, 120), (68, 104)] {
            assert_eq!(cbc.esp_length(payload), esp);
        }
    }

    /// The definition of RFC 4303 section 2.4, by trying: the least padding that aligns the trailer's end.
    #[test]
    fn minimal_padding_and_exact_inverse() {
        for layout in layouts() {
            let fixed = 8 + usize::from(layout.iv_length) + usize::from(layout.icv_length);
            for payload in 0..600 {
                let pad =
                    (0..16).find(|pad| (payload + pad + 2) % usize::from(layout.alignment) == 0).unwrap();
                let length = layout.esp_length(payload);
                assert_eq!(length, fixed + payload + pad + 2);
                assert_eq!(length % 4, 0, "RFC 4303 section 2.4: right-aligned in a 4-byte word");
                assert_eq!(layout.ciphertext_length(length), Some(payload + pad + 2));
                let largest = layout.max_payload(length).unwrap();
                assert!(largest >= payload);
                assert_eq!(layout.esp_length(largest), length);
                assert!(layout.esp_length(largest + 1) > length);
            }
            for short in 0..fixed + usize::from(layout.alignment) {
                assert_eq!(layout.max_payload(short), None);
                assert_eq!(layout.ciphertext_length(short), None);
            }
        }
    }

    #[test]
    fn every_pad_length_is_read() {
        for pad in 0..=255u8 {
            for payload in [0usize, 1, 20] {
                let mut plaintext = vec![0xee; payload];
                plaintext.extend(1..=pad);
                plaintext.extend([pad, 4]);
                let read = Trailer { payload_length: payload, next_header: 4 };
                assert_eq!(trailer(&plaintext), Ok(read), "pad {pad}");
                for wrong in payload..payload + usize::from(pad) {
                    let mut plaintext = plaintext.clone();
                    plaintext[wrong] ^= 0x80;
                    assert_eq!(trailer(&plaintext), Err(BadTrailer::Padding));
                }
                // One byte more than there is.
                let at = plaintext.len() - 2;
                if let Ok(beyond) = u8::try_from(at + 1) {
                    plaintext[at] = beyond;
                    assert_eq!(trailer(&plaintext), Err(BadTrailer::PadLength));
                }
            }
        }
        for short in [&[][..], &[0]] {
            assert_eq!(trailer(short), Err(BadTrailer::PadLength));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_plaintext_never_panics(plaintext in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Trailer { payload_length, .. }) = trailer(&plaintext) {
                prop_assert_eq!(payload_length + usize::from(plaintext[plaintext.len() - 2]) + 2, plaintext.len());
            }
        }
    }
}
